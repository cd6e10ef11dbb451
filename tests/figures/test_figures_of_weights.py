"""Figures of weights draw what they were given, with labelled axes, without warnings and without global pyplot state."""

import itertools
import subprocess
import sys

import pytest
import torch
from drawn import drawn_by, network, normal, render

from connector import figures
from connector.types import Loadings


@pytest.mark.parametrize(("rank", "n_inputs", "bias"), [(1, 0, False), (2, 0, False), (2, 1, True), (3, 2, True)])
def test_loadings_scatter_names_every_column_and_shares_axes(rank, n_inputs, bias):
    net = network(rank, n_inputs, bias)
    width = rank + n_inputs + bias
    groups = {"inferred": torch.arange(80) % 3}
    figure = figures.loadings_scatter(
        {"true": (net.loadings, net.n), "inferred": (net.loadings, 2 * net.n)},
        labels=groups,
        certainty={"true": torch.linspace(0, 1, 80)},
        title="Connectivity",
    )
    assert render(figure) > 5000
    scatter = [axis for axis in figure.axes if axis.collections and axis.collections[0].get_offsets().shape == (80, 2)]
    assert len(scatter) == 2 * rank * width
    x_labels = [axis.get_xlabel() for axis in scatter if axis.get_xlabel()]
    assert x_labels == figures.loading_names(net.loadings) * 2
    assert len(set(x_labels)) == width
    assert scatter[0].get_ylim() == scatter[rank * width].get_ylim()
    fades = scatter[0].collections[0].get_facecolor()[:, 3]
    assert fades[0] < 0.1 < 0.6 < fades[-1]


def test_densities_fit_their_panels_and_tick_labels_stand_apart():
    loadings = Loadings(m=normal(400, 2) * torch.tensor([0.5, 0.01]), b=normal(400, 2) * 0.13, d=normal(400))
    n = 40 * normal(400, 2, seed=4)
    figure = figures.loadings_scatter({"a": (loadings, n), "b": (loadings, n)}, input_names=("left", "right"))
    assert render(figure) > 5000
    renderer = drawn_by(figure)
    margins = [axis for axis in figure.axes if axis.lines and not axis.get_xlabel() and not axis.get_ylabel()]
    assert len(margins) == 2 * (5 + 2)
    for axis in margins:
        for line in axis.lines:
            assert line.get_xdata().max() <= axis.get_xlim()[1]
            assert line.get_ydata().max() <= axis.get_ylim()[1]
    for axis in figure.axes:
        labels = [text.get_window_extent(renderer) for text in axis.get_xticklabels() if text.get_visible()]
        inside = [box for box in labels if axis.bbox.x0 - 20 <= box.x0 and box.x1 <= axis.bbox.x1 + 20]
        for left, right in itertools.pairwise(inside):
            assert left.x1 + 2 < right.x0


def test_names_of_many_inputs_do_not_overlap():
    loadings = Loadings(m=normal(50, 2), b=normal(50, 4), d=normal(50))
    inputs = ("input 1", "input 1, filtered", "a name of many words, 1", "a name of many words, 2")
    figure = figures.loadings_scatter({"a": (loadings, normal(50, 2))}, input_names=inputs)
    renderer = drawn_by(figure)
    names = [axis.xaxis.label for axis in figure.axes if axis.get_xlabel()]
    assert len({name.get_text() for name in names}) == 7
    boxes = sorted((name.get_window_extent(renderer) for name in names), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_loading_names_use_the_inputs_names():
    loadings = Loadings(m=torch.zeros(3, 1), b=torch.zeros(3, 2), d=torch.zeros(3))
    assert figures.loading_names(loadings, ("left", "right")) == [
        "loading $m_{1}$\n(per latent unit)", "input weight $b$, left\n(per unit of input)",
        "input weight $b$, right\n(per unit of input)", "bias $d$\n(pure number)",
    ]  # fmt: skip


def test_scatter_survives_constant_columns_and_single_values():
    loadings = Loadings(m=normal(50, 1), d=torch.zeros(50, dtype=torch.float64))
    assert render(figures.loadings_scatter({"silent": (loadings, torch.zeros(50, 1))})) > 3000


def test_tails_draw_the_survival_function():
    figure = figures.tails({"true": torch.tensor([1.0, -2.0, 4.0, 0.0]), "inferred": normal(5000)})
    axis = figure.axes[0]
    assert axis.lines[0].get_xdata().tolist() == [4, 2, 1]
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert render(figure) > 3000


def test_mixture_conditional_mean_and_matrices():
    k = torch.arange(1, 10)
    figure = figures.mixture_likelihood(k, -1.0 / k, 0.1 / k, null=-2.0 / k + normal(4, 9), elbow=3, note="no evidence")
    assert render(figure) > 3000
    assert "nats" in figure.axes[0].get_ylabel()
    for rank in (1, 2, 3):
        nu = normal(200, rank)
        figure = figures.conditional_mean_fit(nu, nu + 0.1, half_width=torch.full((200, rank), 0.2))
        assert len(figure.axes) == rank
        assert "0.01" in figure.axes[0].texts[0].get_text()
        assert render(figure) > 3000
    figure = figures.dissimilarity_matrices({"D": torch.rand(2, 3), "V": torch.rand(2, 3)}, ["a", "b"], ["a", "b", "c"])
    assert render(figure) > 3000


def test_no_pyplot_state_is_touched():
    code = "import sys, torch, connector.figures as f; f.tails({'a': torch.ones(3)}); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
