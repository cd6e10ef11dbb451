"""Flow fields show stability, the visited region and the speed, in any rank."""

import numpy as np
import pytest
import torch
from drawn import all_axes, drawn_by, network, normal, render

from connector import figures


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_flow_field_in_any_rank(rank):
    net = network(rank)
    paths = net.simulate(2 * normal(30, rank, seed=5), 40)
    points = net.fixed_points(paths[:, 0])
    figure = figures.flow_field(
        {"true": net, "sampled": net.vector_field},
        paths.reshape(-1, rank),
        trajectories=paths[:5],
        fixed_points={"true": points},
        title="Flow",
    )
    assert render(figure) > 5000
    axes = all_axes(figure)
    assert [axis.get_title(loc="left") for axis in axes] == ["true", "sampled"]
    assert all("latent" in axis.get_xlabel() for axis in axes)
    assert axes[0].get_ylabel()
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_shades_of_a_flow_field_have_a_colour_bar_of_the_speed_in_its_unit():
    states = 2 * normal(500, 2)
    figure = figures.flow_field({"leak": lambda z: -z}, states)
    bar = next(axis for axis in figure.axes if axis.get_label() == "<colorbar>")
    assert bar.get_ylabel() == r"speed (latent units per $\tau$)"
    # -z is as fast as it is far: the darkest speed is near the largest distance of a state.
    assert 0.5 < bar.get_ylim()[1] / float(states.norm(dim=1).max()) <= 1.1


def test_flow_field_marks_stability_and_phase_line_finds_its_zeros():
    states = torch.linspace(-2, 2, 200, dtype=torch.float64)[:, None]
    figure = figures.flow_field({"double well": lambda z: z - z**3}, states)
    marks = [
        (round(float(line.get_xdata()[0]), 2), line.get_markerfacecolor())
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
    ]
    assert sorted(marks) == [(-1.0, figures.ACCENT), (0.0, "white"), (1.0, figures.ACCENT)]

    plane = torch.cartesian_prod(states[::10, 0], states[::10, 0])
    eigenvalues = torch.tensor([[-1.0, -2.0], [-1.0, 0.5], [1.0, 0.5]], dtype=torch.complex128)
    figure = figures.flow_field({"f": lambda z: -z}, plane, fixed_points={"f": (torch.zeros(3, 2), eigenvalues)})
    marks = [
        (line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].lines if len(line.get_xdata()) == 1
    ]
    assert marks == [("o", figures.ACCENT), ("D", "white"), ("o", "white")]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["attractor", "saddle", "repeller", "not visited"]


def test_a_legend_is_no_wider_than_its_figure():
    plane = torch.cartesian_prod(torch.linspace(-2, 2, 20), torch.linspace(-2, 2, 20)).double()
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
    eigenvalues = torch.tensor([[-1, -2], [-1, 0.5], [1, 0.5], [-1, -1]], dtype=torch.complex128)
    paths = plane.reshape(20, 20, 2)[:3]
    figure = figures.flow_field(
        {"f": lambda z: -z}, plane, trajectories=paths, fixed_points={"f": (points, eigenvalues)}
    )
    renderer = drawn_by(figure)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    box = legend.get_window_extent(renderer)
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_attractors_where_no_trial_came_are_hollow_and_the_frame_holds_all_that_is_drawn():
    disc = normal(3000, 2)
    disc = disc[disc.norm(dim=1) < 1.0]
    points = torch.tensor([[0.0, 0.0], [1.6, 0.0], [40.0, 0.0]], dtype=torch.float64)
    eigenvalues = -torch.ones(3, 2, dtype=torch.complex128)
    path = torch.tensor([[[0.0, 0.0], [0.2, -2.5], [float("nan"), float("nan")]]], dtype=torch.float64)
    angle = torch.linspace(0, 2 * torch.pi, 50, dtype=torch.float64)
    orbit = 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    figure = figures.flow_field(
        {"f": lambda z: -z}, disc, trajectories=path, fixed_points={"f": (points, eigenvalues)}, cycles={"f": orbit}
    )
    axis = figure.axes[0]
    marks = {
        float(line.get_xdata()[0]): (line.get_marker(), line.get_markerfacecolor())
        for line in axis.lines
        if line.get_markeredgecolor() == figures.ACCENT and len(line.get_xdata()) == 1
    }
    assert marks == {0.0: ("o", figures.ACCENT), 1.6: ("s", "white"), 40.0: ("s", "white")}
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    assert low < -2.5
    assert left < -1.4
    assert 1.6 < right < 4  # one that is far away does not make all else small
    assert high > 1.4
    closed = [line for line in axis.lines if len(line.get_xdata()) == len(orbit) + 1]
    assert [line.get_linestyle() for line in closed] == [":"]  # no trial came there
    inner = figures.flow_field({"f": lambda z: -z}, disc, cycles={"f": orbit / 2}).axes[0].lines
    assert [line.get_linestyle() for line in inner if len(line.get_xdata()) == len(orbit) + 1] == ["-"]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == [
        "attractor", "attractor where no trial came", "stable limit cycle", "trajectory, from its start", "not visited",
    ]  # fmt: skip


def test_an_attractor_beyond_all_states_is_hollow_on_the_line_too():
    states = torch.linspace(-2, 0.7, 100, dtype=torch.float64)[:, None]
    figure = figures.flow_field({"double well": lambda z: z - z**3}, torch.cat([states, torch.tensor([[2.0]])]))
    marks = {
        round(float(line.get_xdata()[0])): line.get_marker()
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 1
    }
    assert marks == {-1: "o", 0: "o", 1: "s"}
    assert "attractor where no trial came" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_places_that_no_state_visited_are_hatched_and_slow_ones_are_white():
    disc = normal(3000, 2)
    disc = disc[disc.norm(dim=1) < 1.5]
    axis = figures.flow_field({"rest": lambda z: 0 * z}, torch.cat([disc, disc + 9]), n_grid=100).axes[0]
    image, (low, high) = axis.images[0].get_array(), axis.get_xlim()
    pixel = lambda at: round((at - low) / (high - low) * 99)  # noqa: E731
    assert axis.patch.get_hatch()
    assert image[pixel(0), pixel(0)].tolist() == [1, 1, 1, 1]
    assert image[pixel(5), pixel(5), 3] == 0


def test_flow_field_above_rank_two_is_the_field_in_the_plane_of_the_leading_components():
    states = normal(4000, 3) * torch.tensor([3.0, 0.1, 2.0])
    plane = figures.Plane.of(states.numpy())
    assert np.abs(plane.basis[1]).max() < 0.05  # the weak axis is not in the plane
    assert np.allclose(plane.basis.T @ plane.basis, np.eye(2))
    flat = normal(5, 2).numpy()
    assert np.allclose(plane.down(plane.up(flat)), flat)


def test_coloured_flow_field_has_a_labelled_colour_bar_from_minus_one_to_one():
    net = network(2)
    figure = figures.flow_field(
        {"cells": net}, normal(500, 2), colour={"cells": lambda z: z[:, 0].tanh()}, colour_label="A against B"
    )
    assert render(figure) > 5000
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "A against B"
    assert bar.get_ylim() == (-1, 1)
