"""Loadings, output weights and what is said of their distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import gaussian_kde
from torch import Tensor

from connector.figures.style import (
    ACCENT,
    GROUPS,
    INFERRED,
    MUTED,
    SPEED,
    TRUE,
    as_array,
    beside_labels,
    grid,
    legend_below,
    limits_of,
    require_own_figure,
    set_margins,
    styled,
    thinned,
)
from connector.types import Loadings

_SHORT = 10  # letters of an input's name that stand beside "input weight" under a panel


def loading_names(loadings: Loadings, input_names: Sequence[str] = ()) -> list[str]:
    """Names of the columns of ``Loadings.stack()``, for axes."""
    inputs = list(input_names) if len(input_names) == loadings.n_inputs else range(1, loadings.n_inputs + 1)
    names = [f"loading $m_{{{i + 1}}}$\n(per latent unit)" for i in range(loadings.rank)]
    inputs = [f"input weight $b_{{{i}}}$" if isinstance(i, int) else _input_weight(i) for i in inputs]
    names += [f"{name}\n(per unit of input)" for name in inputs]
    return names + (["bias $d$\n(pure number)"] if loadings.has_bias else [])


def _input_weight(name: str) -> str:
    """The weight of a named input, no wider than a panel."""
    if len(name) <= _SHORT:
        return f"input weight $b$, {name}"
    return f"$b$, {name if len(name) <= 2 * _SHORT else f'{name[: _SHORT - 1]}…{name[-_SHORT:]}'}"


@styled
def loadings_scatter(
    populations: Mapping[str, tuple[Loadings, Tensor]],
    *,
    labels: Mapping[str, Tensor] | None = None,
    certainty: Mapping[str, Tensor] | None = None,
    input_names: Sequence[str] = (),
    title: str = "",
    max_points: int = 1500,
) -> Figure:
    """Output weights n (rows) against loadings m, b, d (columns) of populations, with marginal densities.

    Args:
        populations: title -> (loadings, n (K, R)), such as the true and the inferred; all drawn to the same axes.
        labels: title -> (K,) integer cell types, which set the colours.
        certainty: title -> (K,) in [0, 1]; neurons whose n is not determined by the data (0) fade.
        input_names: of the columns b.
        title: over all.
        max_points: neurons drawn of each population; the densities use all.

    Raises:
        UserError: axes were given; this figure is made of blocks of its own.
    """
    require_own_figure()
    first = next(iter(populations.values()))[0]
    names, rank = loading_names(first, input_names), first.rank
    data = {key: (as_array(loadings.stack()), as_array(n)) for key, (loadings, n) in populations.items()}
    x_limits = [limits_of(*(reads[:, c] for reads, _ in data.values())) for c in range(len(names))]
    y_limits = [limits_of(*(drives[:, r] for _, drives in data.values())) for r in range(rank)]
    width, height = 1.05 + 1.75 * len(names) + 0.55, 0.95 + 1.65 * rank + 0.55
    beside = len(names) <= 3
    shape = (1, len(data)) if beside else (len(data), 1)
    figure = Figure(figsize=(width * shape[1], height * shape[0] + 0.3 * bool(title)))
    parts = np.ravel(figure.subfigures(*shape, squeeze=False))
    for part, (key, (reads, drives)) in zip(parts, data.items()):
        group = (
            np.zeros(len(reads), dtype=int)
            if labels is None or key not in labels
            else as_array(labels[key]).astype(int)
        )
        fade = None if certainty is None or key not in certainty else np.clip(as_array(certainty[key]), 0, 1)
        part.suptitle(f"{key}, {len(reads)} neurons", fontsize=10)
        _scatter_block(part, reads, drives, names, (x_limits, y_limits), group, fade, max_points)
    legend_below(figure, [], title)
    return figure


def _scatter_block(part, reads, drives, names, limits, group, fade, max_points) -> None:
    rank, n_columns = drives.shape[1], len(names)
    axes = part.subplots(
        rank + 1, n_columns + 1, squeeze=False,
        gridspec_kw={"width_ratios": [1] * n_columns + [0.28], "height_ratios": [0.28] + [1] * rank},
    )  # fmt: skip
    axes[0, -1].remove()
    shown = thinned(len(reads), max_points)
    colours = np.array([to_rgba(GROUPS[g % len(GROUPS)]) for g in group])
    colours[:, 3] = 0.55 if fade is None else 0.06 + 0.64 * fade
    size = 7 if len(shown) <= 1000 else 5
    for row in range(rank):
        for column in range(n_columns):
            axis = axes[row + 1, column]
            axis.scatter(
                reads[shown, column], drives[shown, row], s=size, c=colours[shown], linewidths=0, rasterized=True
            )
            axis.set(xlim=limits[0][column], ylim=limits[1][row])
            # Few enough ticks for labels such as -0.15 to stand beside each other.
            axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.yaxis.set_major_locator(MaxNLocator(5))
            axis.tick_params(labelbottom=row == rank - 1, labelleft=column == 0)
            if row == rank - 1:
                axis.set_xlabel(names[column])
            if column == 0:
                axis.set_ylabel(f"output weight $n_{{{row + 1}}}$\n(latent units)")
        _density(axes[row + 1, -1], drives[:, row], limits[1][row], group, upright=True)
    for column in range(n_columns):
        _density(axes[0, column], reads[:, column], limits[0][column], group, upright=False)
    room = {"left": beside_labels(axes[1:, 0]), "right": 0.05, "bottom": 0.65, "top": 0.35}
    set_margins(part, axes.shape, **room, gap=(0.1, 0.1))


def _density(axis: Axes, values: np.ndarray, limit, group: np.ndarray, upright: bool) -> None:
    """Smoothed marginal density, each group's share on top of nothing, so that overlaps stay visible."""
    at = np.linspace(*limit, 200)
    for g in np.unique(group):
        chosen = values[group == g]
        if len(chosen) < 3 or np.ptp(chosen) <= 1e-12 * max(1.0, np.abs(chosen).max()):
            continue
        inside = chosen[(chosen > limit[0]) & (chosen < limit[1])]
        spread = inside.std() if len(inside) > 2 else 0.0
        if spread <= 0:
            continue
        # The bandwidth follows the bulk: a few far neurons would otherwise smear it.
        density = gaussian_kde(inside)(at) * len(inside) / len(values)
        colour = GROUPS[g % len(GROUPS)]
        if upright:
            axis.fill_betweenx(at, density, color=colour, alpha=0.25, linewidth=0)
            axis.plot(density, at, color=colour, linewidth=1)
        else:
            axis.fill_between(at, density, color=colour, alpha=0.25, linewidth=0)
            axis.plot(at, density, color=colour, linewidth=1)
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[])
    # Each density to its own height: they are shapes, and a narrow one would run out of the others' range.
    axis.set(xlim=(0, None), ylim=limit) if upright else axis.set(xlim=limit, ylim=(0, None))


@styled
def tails(entries: Mapping[str, Tensor], title: str = "Tails of the connectivity") -> Figure:
    """Survival functions of |m_i.n_j| on logarithmic axes: a power law is a straight line, a Gaussian falls off.

    Args:
        entries: name -> (P,) entries; a name that starts with "true" is drawn dark.
        title: of the figure.
    """
    figure, axes = grid(1, 1, (4.8, 3.5))
    axis = axes[0, 0]
    others = iter(GROUPS)
    for name, values in entries.items():
        magnitude = np.sort(np.abs(as_array(values)))[::-1]
        magnitude = magnitude[magnitude > 0]
        if magnitude.size == 0:
            continue
        rank = np.unique(np.geomspace(1, len(magnitude), 400).round().astype(int))
        truth = name.lower().startswith("true")
        axis.plot(magnitude[rank - 1], rank / len(magnitude), label=name, color=TRUE if truth else next(others),
                  linewidth=2.2 if truth else 1.5, linestyle="-" if truth else (0, (4, 1.5)))  # fmt: skip
    axis.set(xscale="log", yscale="log", title=title, xlabel="$|m_i \\cdot n_j|$, connection weight times $K$ (pure number)",
             ylabel="fraction of pairs above", ylim=(None, 1.6))  # fmt: skip
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, 1e-3 * high), high)
    axis.legend(loc="lower left")
    return figure


@styled
def conditional_mean_fit(
    true: Tensor,
    inferred: Tensor,
    *,
    half_width: Tensor | None = None,
    title: str = "Conditional mean of the output weights",
) -> Figure:
    """True nu = E[n | m, b, d] against the inferred one, one panel per dimension.

    Args:
        true, inferred: (K, R) at the same loadings.
        half_width: (K, R) half of the posterior interval; drawn as bars.
        title: of the figure.
    """
    a, b = as_array(true), as_array(inferred)
    rank = a.shape[1]
    figure, axes = grid(1, rank, (0.6 + 2.9 * rank, 3.5))
    axes = axes[0]
    shown = thinned(len(a), 1500)
    for i, axis in enumerate(axes):
        limit = limits_of(a[:, i], b[:, i])
        axis.plot(limit, limit, color=MUTED, linewidth=0.9, zorder=1)
        if half_width is not None:
            axis.errorbar(a[shown, i], b[shown, i], yerr=as_array(half_width)[shown, i], fmt="none", ecolor=INFERRED,
                          alpha=0.15, elinewidth=0.7, zorder=0)  # fmt: skip
        axis.scatter(a[shown, i], b[shown, i], s=7, color=INFERRED, alpha=0.5, linewidths=0, zorder=2, rasterized=True)
        error = float(np.mean((a[:, i] - b[:, i]) ** 2))
        axis.set(xlim=limit, ylim=limit, xlabel=rf"true $\nu_{{{i + 1}}}$ (latent units)", aspect="equal",
                 ylabel=rf"inferred $\nu_{{{i + 1}}}$ (latent units)")  # fmt: skip
        axis.text(0.04, 0.96, f"mean squared error {error:.3g}", transform=axis.transAxes, va="top", fontsize=8)
    legend_below(figure, [], title)
    return figure


@styled
def intervals(nu: Tensor, low: Tensor, high: Tensor, *, level: float = 0.95) -> Figure:
    """Estimates of nu in ascending order with their intervals, one panel per dimension.

    Args:
        nu, low, high: (K, R). level: probability of the intervals.
    """
    values, a, b = as_array(nu), as_array(low), as_array(high)
    rank = values.shape[1]
    figure, axes = grid(1, rank, (max(3.9, 0.6 + 2.9 * rank), 3.2))
    axes = axes[0]
    shown = thinned(len(values), 1500)
    for i, axis in enumerate(axes):
        order = shown[np.argsort(values[shown, i])]
        share = np.linspace(0, 100, len(order))
        axis.fill_between(share, a[order, i], b[order, i], color=INFERRED, alpha=0.25, linewidth=0,
                          label=f"{100 * level:g} % interval")  # fmt: skip
        axis.plot(share, values[order, i], color=INFERRED, linewidth=1.2, label="estimate")
        axis.axhline(0, color=MUTED, linewidth=0.8, zorder=0)
        axis.set(xlim=(0, 100), ylim=limits_of(a[:, i], b[:, i]), 
                 xlabel=rf"share of the neurons (%), in the order of $\nu_{{{i + 1}}}$",
                 ylabel=rf"mean output weight $\nu_{{{i + 1}}}$ (latent units)")  # fmt: skip
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


@styled
def mixture_likelihood(
    components: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    null: Tensor | None = None,
    elbow: int | None = None,
    note: str = "",
    title: str = "Mixture likelihood of loadings and output weights",
) -> Figure:
    """Cross-validated log-likelihood against the number of mixture components, with its null beside it.

    Args:
        components, mean, std: (C,); nats per neuron, std over folds.
        null: (D, C) the same curve for re-simulated populations without cell types; drawn as a band.
        elbow: marked with a ring.
        note: under the axes, such as the outcome of the test on the loadings.
        title: of the figure.
    """
    k, y, spread = (as_array(v) for v in (components, mean, std))
    figure, axes = grid(1, 1, (5.0, 3.6))
    axis = axes[0, 0]
    if null is not None:
        curves = as_array(null)
        axis.fill_between(k, curves.min(0), curves.max(0), color=MUTED, alpha=0.22, linewidth=0)
        axis.plot(
            k, curves.mean(0), color=MUTED, linestyle=(0, (4, 2)), label=f"no cell types, {len(curves)} re-simulated"
        )
    axis.errorbar(k, y, yerr=spread, color=INFERRED, marker="o", markersize=4, capsize=2.5, elinewidth=1,
                  label="neurons (mean ± sd over folds)")  # fmt: skip
    if elbow is not None and elbow in k:
        axis.plot(elbow, y[list(k).index(elbow)], "o", markersize=11, color="none", markeredgecolor=ACCENT,
                  markeredgewidth=1.5, label=f"largest bend: {elbow}")  # fmt: skip
    axis.set(title=title, xlabel="mixture components", ylabel="held-out log-likelihood (nats per neuron)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="best")
    if note:
        figure.supxlabel(note, fontsize=8, color=MUTED)
    return figure


@styled
def dissimilarity_matrices(matrices: Mapping[str, Tensor], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Dissimilarities D(true, inferred), true systems in rows, inferred ones in columns; one panel per measure."""
    figure, axes = grid(1, len(matrices), (0.9 + 3.2 * len(matrices), 4.2))
    axes = axes[0]
    for axis, (name, matrix) in zip(axes, matrices.items()):
        values = as_array(matrix)
        top = values[np.isfinite(values)].max() if np.isfinite(values).any() else 1.0
        axis.imshow(values, cmap=SPEED, vmin=0, vmax=top)
        for (r, c), value in np.ndenumerate(values):
            if np.isfinite(value):
                best = value == np.nanmin(values[r]) and value == np.nanmin(values[:, c])
                axis.text(
                    c, r, f"{value:.2g}", ha="center", va="center", fontsize=8, fontweight="bold" if best else None
                )
        axis.set(title=name, xlabel="inferred", ylabel="true")
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    return figure
