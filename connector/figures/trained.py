"""A trained network beside its low-rank fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from connector.figures.style import ACCENT, FAINT, GROUPS, INFERRED, INK, MUTED, TRUE, as_array, panels, styled, thinned

_MOST_DOTS, _MOST_OUTPUTS = 3000, 4
_SEEN = 0.99


@styled
def trained_network(
    shares: tuple[Tensor, Tensor],
    rank: int,
    rates: Tensor,
    points: Sequence[tuple[Tensor, Tensor]],
    outputs: tuple[Tensor, Tensor, Tensor | None] | None = None,
    *,
    step: float = 1.0,
) -> Figure:
    """Which part of the weights acts, where network and fit settle, and the outputs of a sampled network.

    Args:
        shares: cumulated (K,) of the variance of the drive, and of the squared weights; rank: of the fit.
        rates: (S, K_obs) visited; points: under each held input the rates (F, K_obs) at stable points of network and fit.
        outputs: (T, O) of one trial, of the trained network and of a sampled one, and the targets or None.
        step: between samples, tau.
    """
    figure, axes = panels(2 if outputs is None else 3, 3, (0.6, 3.3), (0.5, 2.9))
    _spectra(axes[0, 0], *map(as_array, shares), rank)
    _points(axes[0, 1], as_array(rates), [(as_array(a), as_array(b)) for a, b in points])
    if outputs is not None:
        _outputs(axes[0, 2], outputs, step)
    return figure


def _spectra(ax: Axes, drive: np.ndarray, matrix: np.ndarray, rank: int) -> None:
    shown = min(len(matrix), max(int((drive < 0.999).sum()), rank) + 10)
    for values, colour, label in (
        (drive, INFERRED, "of the drive on visited states"),
        (matrix, MUTED, "of all weights"),
    ):
        values = values[:shown]
        ax.plot(range(1, len(values) + 1), values, color=colour, marker="o", ms=3, label=label)
    ax.axhline(_SEEN, color=FAINT, lw=0.8, zorder=0)
    ax.axvline(rank, color=ACCENT, lw=1, ls="--", label="rank of the fit")
    ax.set(title="Which part of W acts", xlabel="dimensions", ylabel="cumulative share", ylim=(0, 1.05))
    ax.legend(loc="lower right")


def _points(ax: Axes, rates: np.ndarray, points: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    centre = rates.mean(0)
    plane = np.linalg.svd(rates[thinned(len(rates), _MOST_DOTS)] - centre, full_matrices=False)[2][:2].T
    x = (rates[thinned(len(rates), _MOST_DOTS)] - centre) @ plane
    ax.scatter(*_columns(x), s=3, color=FAINT, lw=0, label="visited", rasterized=True)
    for number, (network, fit) in enumerate(points):
        colour = GROUPS[number % len(GROUPS)] if len(points) > 1 else INK
        found = {
            "network": (network, {"marker": "o", "s": 60, "facecolors": "none"}),
            "fit": (fit, {"marker": "x", "s": 36}),
        }
        for name, (at, style) in found.items():
            style = {"edgecolors": colour} | style if "facecolors" in style else {"color": colour} | style
            label = f"stable, {name}" if number == 0 else None
            ax.scatter(*_columns((at - centre) @ plane), lw=1.3, label=label, **style)
    title = "Stable points" if any(len(a) + len(b) for a, b in points) else "Stable points: none"
    ax.set(title=title, xlabel="component 1 of the rates", ylabel="component 2 of the rates")
    ax.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")


def _columns(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x[:, 0], x[:, 1] if x.shape[1] > 1 else np.zeros(len(x))


def _outputs(ax: Axes, outputs: tuple[Tensor, Tensor, Tensor | None], step: float) -> None:
    trained, sampled, targets = (None if x is None else as_array(x) for x in outputs)
    apart = 1.3 * max(float(np.ptp(x)) for x in (trained, sampled, targets) if x is not None)
    time = step * np.arange(len(trained))
    for k in range(min(trained.shape[1], _MOST_OUTPUTS)):
        for values, style in (
            (targets, {"color": FAINT, "lw": 3, "label": "target"}),
            (trained, {"color": TRUE, "label": "trained network"}),
            (sampled, {"color": INFERRED, "ls": "--", "label": "sampled network"}),
        ):
            if values is not None:
                ax.plot(time, values[:, k] - k * apart, **(style if k == 0 else style | {"label": None}))
    ax.set(title="Outputs, a held-out trial", xlabel=r"time ($\tau$)", ylabel="output (as in the file)")
    if trained.shape[1] > 1:
        ax.set_yticks([-k * apart for k in range(min(trained.shape[1], _MOST_OUTPUTS))])
        ax.set_yticklabels([str(k + 1) for k in range(min(trained.shape[1], _MOST_OUTPUTS))])
        ax.set_ylabel("number of the output")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.4 * (high - low))  # the legend stands above the curves
    ax.legend(loc="upper left")
