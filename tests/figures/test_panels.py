"""Every figure draws what it was given, with labelled axes, without warnings and without global pyplot state."""

import io
import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from connector.dynamics import Network
from connector.figures import panels as figures
from connector.types import Loadings


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(rank, n_inputs=0, bias=False, k=80):
    return Network(
        m=normal(k, rank),
        n=2 * normal(k, rank, seed=1),
        b=normal(k, n_inputs, seed=2) if n_inputs else None,
        d=normal(k, seed=3) if bias else None,
    )


def render(figure: Figure) -> int:
    """Draws to PNG with every warning an error; returns the number of bytes."""
    assert isinstance(figure, Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
    return buffer.tell()


def drawn_by(figure: Figure):
    """The renderer of the figure as it is laid out, to ask where things are."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def all_axes(figure: Figure):
    return [axis for axis in figure.axes if axis.has_data() and axis.get_label() != "<colorbar>"]


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
    plane = figures._Plane.of(states.numpy())
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


def test_losses_log_axis_only_where_it_helps():
    epochs = range(1, 30)
    figure = figures.losses(
        {
            "steep": {
                "training": (epochs, [2.0**-e for e in epochs]),
                "validation": (epochs, [1.5**-e for e in epochs]),
            },
            "flat": {"training": (epochs, [1 + 1 / e for e in epochs])},
            "negative": {"validation": (epochs, [-e for e in epochs])},
            "with a gap": {"validation": ([1, 2, 3], [1.0, float("nan"), 0.9])},
        }
    )
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear", "linear", "linear"]
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}
    assert render(figure) > 3000
    assert render(figures.losses({})) > 100


def test_losses_break_where_the_objective_changes_and_show_a_start_that_was_kept():
    epochs = list(range(1, 11))
    figure = figures.losses(
        {
            "lrrnn": {"training": (epochs, [1.0] * 4 + [2.0] * 6), "validation": (epochs, [3.0] * 10)},
            "outputs": {"training": (epochs, [1.0] * 10)},
        },
        changes={"lrrnn": (5, "the objective changes")},
        levels={"outputs": (0.5, "start")},
        units={"lrrnn": "nats"},
    )
    assert render(figure) > 3000
    first, second = figure.axes
    drawn = [list(line.get_xdata()) for line in first.lines]
    assert drawn == [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10], epochs, [4.5, 4.5]]
    assert [line.get_ydata()[0] for line in second.lines] == [1.0, 0.5]
    assert (first.get_ylabel(), second.get_ylabel()) == ("loss (nats)", "loss")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "training", "validation", "the objective changes", "start",
    ]  # fmt: skip
    renderer = drawn_by(figure)
    for axis in figure.axes:  # over no curve
        assert not legend.get_window_extent(renderer).overlaps(axis.bbox)


def test_mixture_spectrum_conditional_mean_and_matrices():
    k = torch.arange(1, 10)
    figure = figures.mixture_likelihood(k, -1.0 / k, 0.1 / k, null=-2.0 / k + normal(4, 9), elbow=3, note="no evidence")
    assert render(figure) > 3000
    assert "nats" in figure.axes[0].get_ylabel()
    g = torch.logspace(0, -8, 40)
    figure = figures.spectrum(g, 1e-4)
    assert render(figure) > 3000
    expected = float((g / (g + 1e-4)).sum())
    assert figure.axes[1].get_title(loc="left").startswith(f"{expected:.1f} modes")
    assert render(figures.spectrum(g, 0.0)) > 3000
    for rank in (1, 2, 3):
        nu = normal(200, rank)
        figure = figures.conditional_mean_fit(nu, nu + 0.1, half_width=torch.full((200, rank), 0.2))
        assert len(figure.axes) == rank
        assert "0.01" in figure.axes[0].texts[0].get_text()
        assert render(figure) > 3000
    figure = figures.dissimilarity_matrices({"D": torch.rand(2, 3), "V": torch.rand(2, 3)}, ["a", "b"], ["a", "b", "c"])
    assert render(figure) > 3000


def test_rate_fit_respects_lengths_and_units():
    rates = normal(6, 50, 7)
    lengths = torch.tensor([50, 10, 50, 30, 50, 20])
    options = {"neurons": [2, 4], "trials": [0, 1], "trial_numbers": [7, 19, 23, 31, 32, 40]}
    figure = figures.rate_fit(rates, rates, step=0.01, time_unit="s", lengths=lengths, **options)
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["trial 7", "trial 19"]
    axes = figure.axes
    assert len(axes) == 4
    assert axes[-1].get_xlabel() == "time (s)"
    assert len(axes[1].lines[0].get_xdata()) == 10
    assert np.allclose(axes[1].lines[0].get_ydata(), rates[1, :10, 2])
    assert render(figure) > 3000
    assert render(figures.rate_fit(rates[:1, :, :1], rates[:1, :, :1], step=0.1)) > 3000


def test_psths_with_a_group_without_trials():
    time = torch.arange(40) * 0.02
    seen = normal(3, 40, 12).abs()
    seen[1] = float("nan")
    figure = figures.psths(time, seen, seen, ["left", "none", "right"], group_values=[-1, 0, 1], r2=torch.rand(12))
    assert len(figure.axes) == 9
    assert figure.axes[0].get_ylabel() == "rate (Hz)"
    assert figure.axes[-1].get_xlabel() == "time from the start of the trial (s)"
    figure = figures.psths(time, seen, seen, ["left", "none", "right"], origin="stimulus onset", r2=torch.rand(12))
    assert figure.axes[-1].get_xlabel() == "time from stimulus onset (s)"
    assert render(figure) > 3000


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_latent_trajectories_average_running_trials_only(rank):
    z = torch.ones(20, 30, rank, dtype=torch.float64)
    z[10:] = -1
    z[:5, 10:] = 1e6  # past the end of these trials
    z[:5, :10] = 1
    lengths = torch.full((20,), 30)
    lengths[:5] = 10
    groups = (torch.arange(20) >= 10).long()
    figure = figures.latent_trajectories(z, groups, ["a", "b"], step=0.1, time_unit="tau", lengths=lengths, minimum=5)
    first = figure.axes[0].lines[0]
    assert np.allclose(first.get_ydata(), 1)
    assert len(first.get_xdata()) == 30
    stopped = figures.latent_trajectories(z, groups, ["a", "b"], step=0.1, lengths=lengths, minimum=6)
    assert len(stopped.axes[0].lines[0].get_xdata()) == 10
    assert len(figure.axes) == rank + (rank > 1)
    assert render(figure) > 3000


def test_no_pyplot_state_is_touched():
    code = "import sys, connector.figures.panels as f, torch; f.tails({'a': torch.ones(3)}); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
