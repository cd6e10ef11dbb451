"""A vector field with what the data leave open about it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from connector.figures.fields import _VISITED, _distance, _grid, _Region
from connector.figures.style import ACCENT, INFERRED, MUTED, as_array, legend_below, limits_of, panels, styled, thinned

FieldDraws = Callable[[Tensor], Tensor]
NEAR = 45.0  # degrees from the mean direction within which a draw agrees with it
_MOST_POINTS = 2000
_FAINTEST = 0.08


def agreement(flows: Tensor) -> Tensor:
    """Share of the draws (n, T, R) of a field whose direction lies within ``NEAR`` of that of their mean, (T,)."""
    mean = flows.mean(0)
    cosine = torch.nn.functional.cosine_similarity(flows, mean[None], dim=-1)
    return (cosine > np.cos(np.deg2rad(NEAR))).double().mean(0)


@styled
def uncertain_field(states: Tensor, draws: FieldDraws, stable_points: Tensor, n_grid: int = 22) -> Figure:
    """The posterior mean of a vector field on the visited region, arrows faded where draws differ in direction; rank 1: with
    its 95 % band.

    Args:
        states: (T, R) visited. draws: states (P, R) -> (n, P, R), units 1 / tau.
        stable_points: (F, R) stable fixed points of all draws.
        n_grid: arrows along each axis.
    """
    figure, axes = panels(1, 1, (1.2, 3.6), (0.9, 3.4), layout="compressed")
    axis, points = axes.flat[0], as_array(stable_points)
    points = points[thinned(len(points), _MOST_POINTS)]
    handles = []
    if states.shape[1] == 1:
        handles = _band(axis, states, draws, points)
    else:
        region = _Region.of(states)
        _faded_arrows(axis, region, draws, n_grid)
        axis.plot(*region.plane.down(points).T, ".", color=ACCENT, alpha=0.25, markersize=4, zorder=3)
        axis.set(
            xlabel=region.plane.labels[0], ylabel=region.plane.labels[1], xlim=region.limits[0], ylim=region.limits[1]
        )
        axis.grid(False)
        bar = ScalarMappable(Normalize(0, 1), _fading())
        figure.colorbar(bar, ax=axis, shrink=0.7, aspect=28, label=f"draws within {NEAR:g}° of the mean direction")
    if len(points):
        handles.append(Line2D([], [], linestyle="none", marker=".", color=ACCENT, label="stable fixed point of a draw"))
    legend_below(figure, handles, "Vector field and its uncertainty", handletextpad=0.4)
    return figure


def _fading() -> ListedColormap:
    shares = np.linspace(_FAINTEST, 1, 64)[:, None]
    return ListedColormap(1 - shares * (1 - np.array(to_rgb(INFERRED))))


def _faded_arrows(axis: Axes, region: _Region, draws: FieldDraws, n_grid: int) -> None:
    _, _, points = _grid(region.limits, n_grid)
    points = points[_distance(points, region.flat, np.ptp(region.limits, axis=1)) < _VISITED]
    flows = draws(torch.from_numpy(np.ascontiguousarray(region.plane.up(points))))
    share = as_array(agreement(flows))
    flow = as_array(flows.mean(0)) @ region.plane.basis
    length = np.linalg.norm(flow, axis=1, keepdims=True)
    shown = flow / np.sqrt(np.maximum(length, 1e-12))  # the root of the speed keeps slow regions readable
    spacing = (region.limits[0][1] - region.limits[0][0]) / n_grid
    scale = max(float(np.sqrt(length).max()), 1e-12) / (1.25 * spacing) if len(length) else 1.0
    colours = _fading()((share - _FAINTEST) / (1 - _FAINTEST))
    axis.quiver(
        *points.T, *shown.T, color=colours, angles="xy", scale_units="xy", scale=scale, width=0.0055, zorder=1
    )  # fmt: skip


def _band(axis: Axes, states: Tensor, draws: FieldDraws, points: np.ndarray) -> list:
    x = np.linspace(*limits_of(as_array(states), tail=0.001, pad=0.08), 300)
    flows = draws(torch.from_numpy(x[:, None]))[..., 0]
    low, middle, high = torch.quantile(flows, torch.tensor([0.025, 0.5, 0.975], dtype=flows.dtype), dim=0).numpy()
    axis.axhline(0, color=MUTED, linewidth=0.8)
    axis.fill_between(x, low, high, color=INFERRED, alpha=0.25, linewidth=0)
    axis.plot(x, middle, color=INFERRED)
    axis.plot(points[:, 0], np.zeros(len(points)), ".", color=ACCENT, alpha=0.25)
    axis.set(xlabel="latent $z$", ylabel=r"$dz/dt$ (latent units per $\tau$)")
    return [Line2D([], [], color=INFERRED, label="median of the draws, 95 % between")]
