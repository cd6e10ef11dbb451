"""Shapes with holes: their densities, and how near the flow of the loadings comes to them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import hollow_flows


@pytest.mark.parametrize("name", [*hollow_flows.SHAPES, *hollow_flows.CONTROLS, *hollow_flows.KEPT_BACK])
def test_a_shape_has_the_density_of_its_samples(name):
    """By importance sampling from a wide Student-t: the density integrates to one, and has the samples' second moments."""
    shape = (hollow_flows.SHAPES | hollow_flows.CONTROLS | hollow_flows.KEPT_BACK)[name]
    generator = torch.Generator().manual_seed(0)
    drawn = shape.sample(4000, generator)
    around = hollow_flows.StudentT(drawn.shape[1], 3.0)
    scale, centre = 1.2 * drawn.std(0).max(), drawn.mean(0)
    points = 10_000 if drawn.shape[1] < 3 else 40_000
    y = around.sample(points, generator)
    x = centre + scale * y
    if isinstance(shape, hollow_flows.Annulus):  # uniform: nothing outside
        x, y = (value[(x.norm(dim=1) < 1) & (x.norm(dim=1) > shape.inner)] for value in (x, y))
    weight = (shape.log_prob(x) - around.log_prob(y)).exp() * scale ** drawn.shape[1]
    weight = weight / points
    assert float(weight.sum()) == pytest.approx(1, abs=0.08)
    if name != "Student t":  # of 3 degrees of freedom: second moments of samples hardly converge
        within = (weight[:, None] * (x - centre) ** 2).sum(0)
        torch.testing.assert_close(within, drawn.var(0), rtol=0.2, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "short"), [("two rings", 0.25), ("moons", 0.2), ("eight normals", 0.25)])
def test_the_flow_is_near_the_truth_on_hollow_shapes(name, short):
    """A perceptron of two layers, trained for 600 steps, is short by .65, .33 and .47 nats: make slow."""
    assert hollow_flows.measure(name, 1000, 0, [])["flow"] < short


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Gaussian, 5 columns", "rat-like"])
def test_few_neurons_are_not_worse_under_the_flow_than_under_one_gaussian(name):
    cells = [hollow_flows.measure(name, 76, seed, []) for seed in range(3)]
    assert sum(cell["flow"] - cell["gaussian"] for cell in cells) / 3 < 0.05
