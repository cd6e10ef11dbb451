"""Learning curves, recorded and fitted rates, mean responses and latent trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from connector.figures.fields import Plane
from connector.figures.style import (
    ACCENT,
    INFERRED,
    INK,
    MUTED,
    TRUE,
    as_array,
    beside_labels,
    grid,
    group_colours,
    label_outside,
    legend_below,
    panels,
    set_margins,
    styled,
)


@styled
def losses(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    changes: Mapping[str, tuple[float, str]] | None = None,
    levels: Mapping[str, tuple[float, str]] | None = None,
    units: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Losses against epochs, one panel per stage.

    Args:
        curves: stage -> {"training" or "validation" or another name: (epochs, values)}.
        changes: stage -> (first epoch with another training objective, what changes there): marked by a line, and the
            training curve is broken there, since the values on its two sides are of different quantities.
        levels: stage -> (value, name): a level line, such as the loss of a start that was kept.
        units: stage -> unit of its loss.
        title: over all panels.
    """
    figure, axes = panels(len(curves), 3, (0.4, 3.4), (0.6, 2.8))
    shades = {"training": MUTED, "validation": INFERRED}
    handles = {}
    for axis, (stage, series) in zip(axes.flat, curves.items()):
        seen = []
        change, level = (changes or {}).get(stage), (levels or {}).get(stage)
        for name, (x, y) in series.items():
            x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            keep = np.isfinite(y)
            x, y = x[keep], y[keep]
            seen.append(y)
            pieces = [np.ones(len(x), dtype=bool)]
            if change is not None and name == "training":
                pieces = [x < change[0], x >= change[0]]
            # Many noisy values would hide what is drawn with them.
            style = {"linewidth": 0.6, "alpha": 0.45, "zorder": 1} if len(y) > 300 else {"linewidth": 1.4}
            for piece in pieces:
                mark = {"marker": "o", "markersize": 4} if piece.sum() < 3 else {}
                axis.plot(x[piece], y[piece], color=shades.get(name, ACCENT), **style, **mark)
            handles.setdefault(name, Line2D([], [], color=shades.get(name, ACCENT), label=name))
        if level is not None:
            seen.append(np.array([level[0]]))
            line = {"color": ACCENT, "linewidth": 1.2, "linestyle": (0, (4, 2))}
            axis.axhline(level[0], **line)
            handles.setdefault(level[1], Line2D([], [], label=level[1], **line))
        if change is not None:
            line = {"color": INK, "linewidth": 1.0, "linestyle": (0, (1, 1.5))}
            axis.axvline(change[0] - 0.5, **line)
            handles.setdefault(change[1], Line2D([], [], label=change[1], **line))
        values = np.concatenate([*seen, np.zeros(0)])
        if values.size and values.min() > 0 and values.max() > 10 * values.min():
            axis.set_yscale("log")
        unit = (units or {}).get(stage)
        axis.set(title=stage, xlabel="epoch", ylabel="loss" if unit is None else f"loss ({unit})")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    legend_below(figure, list(handles.values()), title, 2 * axes.shape[1])
    return figure


def _time_axis(n_steps: int, step: float, unit: str) -> tuple[np.ndarray, str]:
    return np.arange(n_steps) * step, {"s": "time (s)", "tau": r"time ($\tau$)"}.get(unit, f"time ({unit})")


@styled
def rate_fit(
    observed: Tensor,
    fitted: Tensor,
    *,
    step: float,
    time_unit: str = "tau",
    lengths: Tensor | None = None,
    neurons: Sequence[int] | None = None,
    trials: Sequence[int] | None = None,
    trial_numbers: Sequence[int] | None = None,
    neuron_names: Sequence[str] = (),
    rate_label: str = "rate (as recorded)",
    title: str = "Recorded and fitted rates",
) -> Figure:
    """Observed and fitted rates of a few neurons (rows) on a few trials (columns).

    Args:
        observed, fitted: (trials, time, K).
        step: time between samples; ``time_unit``: "tau", "s" or "samples".
        lengths: (trials,) samples recorded of each trial.
        neurons, trials: indices drawn; neurons spread over the range of variances, evenly spaced trials otherwise.
        trial_numbers: of all trials given, as the panels name them, from 0 as in files; their places by default.
        neuron_names: K names.
        rate_label: what is drawn upwards, with its unit.
        title: of the figure.
    """
    seen, model = as_array(observed), as_array(fitted)
    n_trials, n_steps, n_neurons = seen.shape
    if neurons is None:
        order = np.argsort(seen.reshape(-1, n_neurons).var(0))
        neurons = order[np.unique(np.linspace(n_neurons * 0.3, n_neurons - 1, min(4, n_neurons)).astype(int))][::-1]
    if trials is None:
        trials = np.unique(np.linspace(0, n_trials - 1, min(4, n_trials)).astype(int))
    time, label = _time_axis(n_steps, step, time_unit)
    size = (0.7 + 2.1 * len(trials), 1.35 + 1.25 * len(neurons))
    figure, axes = grid(len(neurons), len(trials), size, layout=None, sharex=True, sharey="row")
    for row, neuron in enumerate(neurons):
        for column, trial in enumerate(trials):
            axis = axes[row, column]
            valid = slice(0, n_steps if lengths is None else int(lengths[trial]))
            axis.plot(time[valid], seen[trial, valid, neuron], color=TRUE, linewidth=2.4, alpha=0.35, label="recorded")
            axis.plot(time[valid], model[trial, valid, neuron], color=ACCENT, linewidth=1.2, label="fitted")
            axis.yaxis.set_major_locator(MaxNLocator(3))
            if row == 0:
                axis.set_title(f"trial {trial if trial_numbers is None else trial_numbers[trial]}")
        name = neuron_names[neuron] if len(neuron_names) == n_neurons else f"neuron {neuron}"
        axes[row, 0].set_ylabel(f"{name}\n{rate_label}")
    for axis in axes[-1]:
        axis.set_xlabel(label)
    legend_below(figure, axes[0, 0].get_legend_handles_labels()[0], title)
    room = {"left": beside_labels(axes[:, 0]), "right": 0.1, "bottom": 0.75, "top": 0.6}
    set_margins(figure, axes.shape, **room, gap=(0.12, 0.16))
    return figure


@styled
def psths(
    time: Tensor,
    observed: Tensor,
    model: Tensor,
    group_names: Sequence[str],
    *,
    group_values: Sequence[float] | None = None,
    neurons: Sequence[int] | None = None,
    neuron_names: Sequence[str] = (),
    r2: Tensor | None = None,
    time_unit: str = "s",
    origin: str = "the start of the trial",
    title: str = "Responses by evidence, held-out trials",
) -> Figure:
    """Peri-stimulus time histograms of example neurons, observed (faint) and model (strong), by group of trials.

    Args:
        time: (T,) in ``time_unit``: "s", or "samples" where time has no unit; then rates are counts per sample.
        origin: what the time is counted from, as the axis says.
        observed, model: (groups, T, K) rates, Hz; NaN where a group has no trial.
        group_names: one per group; ``group_values``: their signed evidence or choice, which sets the colours.
        neurons: indices drawn; the nine of strongest modulation otherwise.
        neuron_names: K names.
        r2: (K,) shown in the panels' titles.
        title: of the figure.
    """
    t, seen, fit = (as_array(v) for v in (time, observed, model))
    n_groups, _, n_neurons = seen.shape
    if neurons is None:
        centred = seen - np.nanmean(seen, axis=(0, 1))
        neurons = np.argsort(-np.nanvar(centred, axis=(0, 1)))[: min(9, n_neurons)]
    colours = group_colours(np.linspace(-1, 1, n_groups) if group_values is None else group_values)
    figure, axes = panels(len(neurons), 3, (0.6, 2.5), (0.9, 1.85), sharex=True)
    for axis, neuron in zip(axes.flat, neurons):
        for g in range(n_groups):
            axis.plot(t, seen[g, :, neuron], color=colours[g], alpha=0.4, linewidth=2.6)
            axis.plot(t, fit[g, :, neuron], color=colours[g], linewidth=1.3)
        name = neuron_names[neuron] if len(neuron_names) == n_neurons else f"neuron {neuron}"
        axis.set_title(name if r2 is None else f"{name}, $R^2$ {float(r2[neuron]):.2f}", fontsize=9)
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.set_ylim(bottom=0)
    unit = "rate (Hz)" if time_unit == "s" else "spikes per sample"
    label_outside(axes, len(neurons), f"time from {origin} ({time_unit})", unit)
    handles = [Line2D([], [], color=c, linewidth=1.8, label=name) for c, name in zip(colours, group_names)]
    handles += [Line2D([], [], color=MUTED, alpha=0.4, linewidth=2.6, label="observed")]
    handles += [Line2D([], [], color=MUTED, linewidth=1.3, label="model")]
    legend_below(figure, handles, title, 2 * axes.shape[1])
    return figure


@styled
def latent_trajectories(
    z: Tensor,
    groups: Tensor,
    group_names: Sequence[str],
    *,
    step: float,
    time_unit: str = "s",
    lengths: Tensor | None = None,
    group_values: Sequence[float] | None = None,
    minimum: int = 10,
    title: str = "Latent trajectories, mean over trials",
) -> Figure:
    """Mean latent trajectories of groups of trials: each latent over time, and the path in the latent plane.

    Args:
        z: (trials, time, R).
        groups: (trials,) integers 0..G-1; negative for trials left out.
        group_names: G names; ``group_values``: their signed evidence or choice, which sets the colours.
        step: time between samples; ``time_unit``: "s", "tau" or "samples".
        lengths: (trials,); the mean at a time is over the trials that still run.
        minimum: a group's mean stops where fewer trials run.
        title: of the figure.
    """
    states, group = as_array(z), as_array(groups).astype(int)
    n_trials, n_steps, rank = states.shape
    lasting = np.full(n_trials, n_steps) if lengths is None else as_array(lengths).astype(int)
    running = np.arange(n_steps)[None] < lasting[:, None]
    colours = group_colours(np.linspace(-1, 1, len(group_names)) if group_values is None else group_values)
    time, label = _time_axis(n_steps, step, time_unit)
    panels_drawn = rank + (rank >= 2)
    figure, axes = grid(1, panels_drawn, (max(4.2, 0.5 + 2.7 * panels_drawn), 3.3))
    axes = axes[0]
    plane = Plane.of(states[running]) if rank >= 2 else None
    for g, colour in enumerate(colours):
        inside = running & (group == g)[:, None]
        count = inside.sum(0)
        last = int((count >= min(minimum, max(1, count[0]))).sum())
        if count[0] == 0 or last == 0:
            continue
        weight = inside[:, :last, None]
        mean = (states[:, :last] * weight).sum(0) / weight.sum(0)
        square = (np.square(states[:, :last] - mean) * weight).sum(0) / weight.sum(0)
        error = np.sqrt(square / weight.sum(0))
        for i in range(rank):
            axes[i].fill_between(
                time[:last], (mean - error)[:, i], (mean + error)[:, i], color=colour, alpha=0.18, lw=0
            )
            axes[i].plot(time[:last], mean[:, i], color=colour)
        if plane is not None:
            flat = plane.down(mean)
            axes[-1].plot(*flat.T, color=colour)
            axes[-1].plot(*flat[-1], "o", color=colour, markersize=4)
    for i in range(rank):
        axes[i].set(xlabel=label, ylabel=f"latent $z_{{{i + 1}}}$")
    if plane is not None:
        axes[-1].set(xlabel=plane.labels[0], ylabel=plane.labels[1], title="Path, ending at the dot")
        if rank > 2:
            axes[-1].xaxis.label.set_fontsize(8)
            axes[-1].yaxis.label.set_fontsize(8)
    handles = [Line2D([], [], color=c, label=name) for c, name in zip(colours, group_names)]
    legend_below(figure, handles, title, 2 if panels_drawn == 1 else 3 * panels_drawn)
    return figure
