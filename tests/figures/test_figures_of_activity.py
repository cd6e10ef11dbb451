"""Learning curves, rates, responses and trajectories are drawn as far as they go, in their units."""

import numpy as np
import pytest
import torch
from drawn import drawn_by, network, normal, render

from connector import figures


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


@pytest.mark.parametrize("scale", [3e-6, 1.0, 4e5])
def test_all_labels_of_rates_and_loadings_stand_within_the_figure_and_apart(scale):
    rates = scale * torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(0))
    net = network(2, 1, bias=True, k=30)
    drawn = (
        figures.rate_fit(rates, rates, step=0.1, neuron_names=["one", "two"]),
        figures.loadings_scatter({"true": (net.loadings, scale * net.n), "inferred": (net.loadings, scale * net.n)}),
    )
    for figure in drawn:
        renderer = drawn_by(figure)
        for axis in figure.axes:
            box = axis.get_tightbbox(renderer)
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, axis.get_ylabel()
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
        texts = [text.get_window_extent(renderer) for text in (*figure.texts, *(a.yaxis.label for a in figure.axes))]
        assert not any(a.overlaps(b) for i, a in enumerate(texts) for b in texts[:i] if a.width * b.width > 0)


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
