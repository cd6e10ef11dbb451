"""Flow fields: streamlines or coloured arrows, fixed points, cycles and trajectories."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.spatial import cKDTree
from torch import Tensor

from connector.figures.streamlines import streamlines
from connector.figures.style import (
    ACCENT,
    CONTRAST,
    INFERRED,
    MUTED,
    SPEED,
    as_array,
    group_colours,
    label_outside,
    legend_below,
    limits_of,
    panels,
    styled,
    thinned,
)

Field = Callable[[Tensor], Tensor]
_VISITED = 0.04  # of the axes' length: a place nearer than this to a visited state counts as visited
_TITLE_WIDTH = 24  # characters over a square panel; it is narrower where data are taller than wide
_NARROWEST = 0.6  # width of a panel of a field over its height, and the other way round
_UNSEEN = {"facecolor": "#efefeb", "edgecolor": "#d2d2ca", "hatch": "////", "linewidth": 0}
_STREAM, _HEAD = "#8c9bb0", 0.045  # inches
_CYCLE = {"color": ACCENT, "linewidth": 2.2}
_NO_TRIAL = "attractor where no trial came"
_FARTHEST = 0.5  # of the frame: attractors farther outside it do not widen it
# What the flow does at a fixed point -> how it is marked.
FIXED_POINTS = {
    "attractor": {"marker": "o", "markerfacecolor": ACCENT},
    _NO_TRIAL: {"marker": "s", "markerfacecolor": "white"},
    "saddle": {"marker": "D", "markerfacecolor": "white"},
    "repeller": {"marker": "o", "markerfacecolor": "white"},
}


@dataclass(frozen=True)
class Plane:
    """The plane a flow field is drawn in: the latent plane itself, or the two leading components of the states."""

    centre: np.ndarray
    basis: np.ndarray  # (R, 2), orthonormal columns
    labels: tuple[str, str]

    @staticmethod
    def of(states: np.ndarray) -> Plane:
        rank = states.shape[1]
        if rank == 2:
            return Plane(np.zeros(2), np.eye(2), ("latent $z_1$", "latent $z_2$"))
        centre = states.mean(0)
        _, spread, directions = np.linalg.svd(states - centre, full_matrices=False)
        share = spread**2 / max((spread**2).sum(), 1e-30)
        labels = tuple(f"latent component {i + 1} ({share[i]:.1%} of variance)" for i in range(2))
        return Plane(centre, directions[:2].T, labels)

    def down(self, states: np.ndarray) -> np.ndarray:
        return (states - self.centre) @ self.basis

    def up(self, points: np.ndarray) -> np.ndarray:
        return self.centre + points @ self.basis.T


@dataclass(frozen=True)
class _Region:
    """The visited states (T, R), thinned; the plane they are drawn in; where they lie in it (T, 2); limits of both axes."""

    visited: np.ndarray
    plane: Plane
    flat: np.ndarray
    limits: list[tuple[float, float]]

    @staticmethod
    def of(states: Tensor) -> _Region:
        visited = as_array(states)
        visited = visited[thinned(len(visited), 20_000)]
        plane = Plane.of(visited)
        flat = plane.down(visited)
        return _Region(visited, plane, flat, [limits_of(flat[:, i], tail=0.001, pad=0.06) for i in range(2)])

    @property
    def scale(self) -> np.ndarray:
        """Length of the axes: of each, or above rank 2 of the longer one."""
        lengths = np.ptp(self.limits, axis=1)
        return lengths if self.visited.shape[1] == 2 else lengths.max()

    def holding(self, shown: list[np.ndarray], attractors: list[np.ndarray]) -> _Region:
        """With limits that hold what is shown, (S, 2) each, and those of the attractors (F, 2) that are not far."""
        return replace(self, limits=_not_too_narrow(_holding(self.limits, [*shown, *_near(attractors, self.limits)])))


def _evaluate(field, points: np.ndarray) -> np.ndarray:
    call = getattr(field, "vector_field", field)
    with torch.no_grad():
        return as_array(call(torch.from_numpy(np.ascontiguousarray(points))))


def _not_too_narrow(limits: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Limits of two axes, the shorter one extended about its middle."""
    longest = max(high - low for low, high in limits)
    missing = [max(0.0, _NARROWEST * longest - (high - low)) / 2 for low, high in limits]
    return [(low - more, high + more) for (low, high), more in zip(limits, missing)]


@styled
def flow_field(
    fields: Mapping[str, Field],
    states: Tensor,
    *,
    trajectories: Mapping[str, Tensor] | Tensor | None = None,
    fixed_points: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    cycles: Mapping[str, Tensor] | None = None,
    colour: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    colour_label: str = "",
    title: str = "",
    n_grid: int = 60,
    max_trajectories: int = 16,
    max_columns: int = 4,
) -> Figure:
    """Vector fields -z + F(z) on the visited region, side by side with the same axes.

    Rank 1 is drawn as dz/dt against z; above rank 2, the two leading principal components of the states are drawn,
    the others held at their mean.

    Args:
        fields: panel title -> Network or vector field, (P, R) -> (P, R), units 1 / tau. Fields with an input have to
            be closed over it.
        states: (T, R) visited states: they set the region drawn; the axes hold nearly all of them, all trajectories, and
            attractors that are not far.
        trajectories: (N, S, R) drawn in every panel, or one such tensor per panel title; NaN where they have ended.
        fixed_points: panel title -> (points (F, R), eigenvalues (F, R)): attractors filled circles, those where no state
            was visited open squares, saddles diamonds, repellers open circles.
        cycles: panel title -> (S, R) one turn of a stable limit cycle.
        colour: panel title -> function of states (P, R) -> (P,) in [-1, 1], such as the normalised difference of two
            cell types' contributions; then arrows in that colour replace the streamlines.
        colour_label: what the colours mean.
        title: over all panels; n_grid: grid points along each axis.
        max_trajectories: drawn per panel; max_columns: panels in a row.
    """
    paths = trajectories if isinstance(trajectories, Mapping) else dict.fromkeys(fields, trajectories)
    points, cycles = fixed_points or {}, cycles or {}
    if states.shape[1] == 1:
        return _phase_lines(fields, states, title, max_columns)
    region = _Region.of(states)
    plane = region.plane
    shown = [plane.down(path) for of_panel in paths.values() for path in _drawn_paths(of_panel, max_trajectories)]
    shown += [plane.down(as_array(orbit)) for orbit in cycles.values()]
    attractors = [plane.down(as_array(at))[(e.real < 0).all(-1).numpy()] for at, e in points.values()]
    region = region.holding(shown, attractors)
    marked = {name: (at, _kinds_where_visited(at, e, region.visited, region.scale)) for name, (at, e) in points.items()}
    figure, axes = panels(
        len(fields),
        max_columns,
        (1.2, 3.1),
        (0.9 + 0.45 * bool(title), 3.0),
        layout="compressed",
        sharex=True,
        sharey=True,
    )
    cap = arrows = None
    for axis, (name, field) in zip(axes.flat, fields.items()):
        if colour is None:
            cap = _streams(axis, field, region, n_grid, cap)
        else:
            arrows = _arrows(axis, field, region, n_grid * 2 // 5, colour[name])
        if name in cycles:
            _cycle(axis, region, as_array(cycles[name]))
        _over_field(axis, region, paths.get(name), marked.get(name), max_trajectories)
        axis.set_title(_wrapped(name, region.limits))
    label_outside(axes, len(fields), *plane.labels)
    _colour_bar(figure, axes, arrows, cap, colour_label)
    kinds = [kind for _, of_panel in marked.values() for kind in of_panel]
    handles = flow_handles(kinds, any(p is not None for p in paths.values()), colour is None, bool(cycles))
    legend_below(figure, handles, title, handletextpad=0.5)
    return figure


def _colour_bar(figure: Figure, axes: np.ndarray, arrows: ScalarMappable | None, cap: float | None, label: str) -> None:
    """Of the arrows' contrast, or without arrows of the speed up to ``cap``."""
    bar = {"label": label, "ticks": [-1, -0.5, 0, 0.5, 1]}
    if arrows is None:
        arrows = ScalarMappable(PowerNorm(0.5, 0, cap), SPEED)
        bar = {"label": r"speed (latent units per $\tau$)", "extend": "max"}
    figure.colorbar(arrows, ax=axes, shrink=0.7, aspect=28, **bar)


def _wrapped(name: str, limits: list[tuple[float, float]]) -> str:
    """A panel's title in lines as wide as the panel, not broken within name = value."""
    narrow = min(1.0, (limits[0][1] - limits[0][0]) / (limits[1][1] - limits[1][0]))
    return textwrap.fill(name.replace(" = ", "\xa0=\xa0"), int(_TITLE_WIDTH * narrow)).replace("\xa0", " ")


@styled
def draw_flow_field(
    axis: Axes,
    field: Field,
    states: Tensor,
    *,
    trajectories: Tensor | None = None,
    fixed_points: tuple[Tensor, Tensor] | None = None,
    limits: Sequence[tuple[float, float]] | None = None,
    speed_cap: float | None = None,
    n_grid: int = 60,
    max_trajectories: int = 16,
) -> float:
    """One panel of :func:`flow_field`, on axes of a figure composed elsewhere; rank 2 or more.

    Args:
        limits: of both axes; from the states when absent.
        speed_cap: the speed drawn darkest; pass on what the first panel returns, so that shades compare.

    Returns:
        the speed drawn darkest, in units of the latents per tau.
    """
    region = _Region.of(states)
    region = replace(region, limits=list(limits)) if limits else region
    cap = _streams(axis, field, region, n_grid, speed_cap)
    _over_field(axis, region, trajectories, _with_kinds(fixed_points), max_trajectories)
    return cap


@styled
def draw_contrast_field(
    axis: Axes,
    field: Field,
    states: Tensor,
    colour: Callable[[Tensor], Tensor],
    *,
    paths: Sequence[Tensor] = (),
    path_values: Sequence[float] | None = None,
    fixed_points: tuple[Tensor, Tensor] | None = None,
    n_grid: int = 24,
) -> ScalarMappable:
    """A flow field as arrows on the visited region alone, coloured by a contrast in [-1, 1], inside a dotted line.

    Args:
        field, states: as for :func:`flow_field`; colour: states (P, R) -> (P,).
        paths: (S, R) mean trajectories of groups of trials; path_values: their signed evidence, which sets the colours.
        fixed_points: points (F, R), eigenvalues (F, R).
        n_grid: arrows along each axis.

    Returns:
        the arrows, for a colour bar.
    """
    region = _Region.of(states)
    plane = region.plane
    arrows = _arrows(axis, field, region, n_grid, colour)
    x, y, points = _grid(region.limits, 120)
    distance = _distance(points, region.flat, np.ptp(region.limits, axis=1)).reshape(120, 120)
    axis.contour(x, y, distance, levels=[_VISITED], colors=MUTED, linestyles="dotted", linewidths=1.1, zorder=1)
    colours = group_colours(np.linspace(-1, 1, len(paths)) if path_values is None else path_values)
    for path, shade in zip(paths, colours):
        down = plane.down(as_array(path))
        axis.plot(*down.T, color="white", linewidth=3.6, zorder=2)
        axis.plot(*down.T, color=shade, linewidth=2.2, zorder=3)
        axis.plot(*down[-1], "o", color=shade, markersize=4.5, zorder=3)
    _over_field(axis, region, None, _with_kinds(fixed_points), 0)
    axis.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
    return arrows


def _holding(limits: list[tuple[float, float]], shown: list[np.ndarray]) -> list[tuple[float, float]]:
    """Limits widened where needed to hold points (S, 2) with a little room."""
    room = [0.03 * (high - low) for low, high in limits]
    return [
        (min([low, *(x[:, i].min() - more for x in shown)]), max([high, *(x[:, i].max() + more for x in shown)]))
        for i, ((low, high), more) in enumerate(zip(limits, room))
    ]


def _near(points: list[np.ndarray], limits: list[tuple[float, float]]) -> list[np.ndarray]:
    """Those of several points (F, 2), each as (1, 2), that do not lie far outside the limits."""
    frame = np.array(limits).T
    room = _FARTHEST * (frame[1] - frame[0])
    return [
        x[None]
        for x in np.concatenate([np.zeros((0, 2)), *points])
        if ((frame[0] - room <= x) & (x <= frame[1] + room)).all()
    ]


def _over_field(axis: Axes, region: _Region, trajectories, fixed_points, max_trajectories: int) -> None:
    """Trajectories and fixed points (points (F, R) and their kinds) on a field, and the axes' limits."""
    plane, limits = region.plane, region.limits
    _paths(axis, plane, _drawn_paths(trajectories, max_trajectories))
    if fixed_points is not None:
        for point, kind in zip(plane.down(as_array(fixed_points[0])), fixed_points[1]):
            _fixed_point(axis, *point, kind)
    axis.set(xlim=limits[0], ylim=limits[1])
    axis.grid(False)
    axis.set_aspect("equal" if len(plane.basis) == 2 else "auto")


def _grid(limits: list[tuple[float, float]], n_grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = (np.linspace(*limit, n_grid) for limit in limits)
    return x, y, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _distance(points: np.ndarray, visited: np.ndarray, scale) -> np.ndarray:
    """Distance of each point from the nearest visited state, in units of ``scale``, the length of the axes."""
    return cKDTree(visited / scale).query(points / scale)[0]


def _streams(axis: Axes, field, region: _Region, n_grid: int, cap: float | None) -> float:
    plane, flat, limits = region.plane, region.flat, region.limits
    x, y, points = _grid(limits, n_grid)
    flow = _evaluate(field, plane.up(points)) @ plane.basis
    distance = _distance(points, flat, np.ptp(limits, axis=1))
    speed = np.linalg.norm(flow, axis=1)
    if cap is None:
        cap = max(float(np.quantile(speed[distance < 0.04], 0.97)) if (distance < 0.04).any() else 1.0, 1e-12)
    shade = SPEED(np.sqrt(np.clip(speed / cap, 0, 1)))
    shade[:, 3] = np.clip((0.045 - distance) / 0.01, 0, 1)  # ends where no state was seen, and so do streamlines
    axis.patch.set(**_UNSEEN)
    image = shade.reshape(n_grid, n_grid, 4)
    axis.imshow(image, extent=(*limits[0], *limits[1]), origin="lower", interpolation="bilinear", zorder=0)
    seen = np.where(distance[:, None] > 0.045, np.nan, flow).reshape(n_grid, n_grid, 2)
    lines = streamlines(x, y, seen, density=1.15)
    axis.add_collection(LineCollection(lines, color=_STREAM, linewidth=0.6, zorder=1))
    _arrowheads(axis, lines)
    return cap


def _arrowheads(axis: Axes, lines: list[np.ndarray]) -> None:
    """One in the middle of each line (S, 2), all as one collection."""
    at, towards = [], []
    for line in lines:
        passed = np.cumsum(np.hypot(*np.diff(line, axis=0).T))
        middle = np.searchsorted(passed, passed[-1] / 2)
        at.append(line[middle : middle + 2].mean(0))
        towards.append(line[middle + 1] - line[middle])
    if not at:
        return
    direction = np.array(towards) / np.linalg.norm(towards, axis=1, keepdims=True)
    head = {"width": _HEAD / 6, "headwidth": 6, "headlength": 6, "headaxislength": 6}
    axis.quiver(*np.array(at).T, *direction.T, color=_STREAM, angles="xy", units="inches", scale_units="inches",
                scale=1 / _HEAD, pivot="middle", zorder=1, **head)  # fmt: skip


def _arrows(axis: Axes, field, region: _Region, n_grid: int, colour):
    plane, flat, limits = region.plane, region.flat, region.limits
    _, _, points = _grid(limits, n_grid)
    points = points[_distance(points, flat, np.ptp(limits, axis=1)) < _VISITED]
    states = plane.up(points)
    flow = _evaluate(field, states) @ plane.basis
    # The root of the speed keeps slow regions readable.
    length = np.linalg.norm(flow, axis=1, keepdims=True)
    shown = flow / np.sqrt(np.maximum(length, 1e-12))
    value = as_array(colour(torch.from_numpy(states)))
    spacing = (limits[0][1] - limits[0][0]) / n_grid
    scale = max(float(np.sqrt(length).max()), 1e-12) / (1.25 * spacing) if len(length) else 1.0
    drawn = axis.quiver(
        *points.T,
        *shown.T,
        value,
        cmap=CONTRAST,
        angles="xy",
        scale_units="xy",
        scale=scale,
        width=0.0055,
        headwidth=3.2,
        headlength=3.6,
        headaxislength=3.2,
        zorder=1,
    )
    drawn.set_clim(-1, 1)
    return drawn


def _drawn_paths(trajectories: Tensor | None, limit: int) -> list[np.ndarray]:
    """At most ``limit`` of trajectories (N, S, R), each (samples, R) as far as it goes."""
    if trajectories is None:
        return []
    paths = as_array(trajectories)
    drawn = [path[np.isfinite(path).all(1)] for path in paths[thinned(len(paths), limit)]]
    return [path for path in drawn if len(path)]


def _cycle(axis: Axes, region: _Region, orbit: np.ndarray) -> None:
    """One turn (S, R), dotted where no state was visited near most of it."""
    flat = region.plane.down(np.concatenate([orbit, orbit[:1]]))
    visited = (_distance(orbit, region.visited, region.scale) <= _VISITED).mean() > 0.5
    axis.plot(*flat.T, zorder=3, linestyle="-" if visited else ":", **_CYCLE)


def _paths(axis: Axes, plane: Plane, paths: list[np.ndarray]) -> None:
    for path in paths:
        flat = plane.down(path)
        axis.plot(*flat.T, color="#6a3d9a", linewidth=0.9, alpha=0.75, zorder=2)
        axis.plot(
            *flat[0], "o", color="white", markeredgecolor="#6a3d9a", markeredgewidth=0.9, markersize=3.4, zorder=3
        )


def kinds_of_fixed_points(eigenvalues: Tensor) -> list[str]:
    """ "attractor", "saddle" or "repeller" for each fixed point, by the real parts of its eigenvalues (F, R)."""
    shrinks = eigenvalues.real < 0
    return [
        "attractor" if every else ("saddle" if some else "repeller")
        for every, some in zip(shrinks.all(-1).tolist(), shrinks.any(-1).tolist())
    ]


def _with_kinds(fixed_points: tuple[Tensor, Tensor] | None) -> tuple[Tensor, list[str]] | None:
    return None if fixed_points is None else (fixed_points[0], kinds_of_fixed_points(fixed_points[1]))


def _kinds_where_visited(points: Tensor, eigenvalues: Tensor, visited: np.ndarray, scale) -> list[str]:
    """:func:`kinds_of_fixed_points`, attractors told apart by whether a state (T, R) was visited near them, in units of
    ``scale``, the length of the axes."""
    kinds, at = kinds_of_fixed_points(eigenvalues), as_array(points)
    if not len(at):
        return kinds
    far = _distance(at, visited, scale) > _VISITED
    return [_NO_TRIAL if kind == "attractor" and alone else kind for kind, alone in zip(kinds, far)]


def _fixed_point(axis: Axes, x: float, y: float, kind: str) -> None:
    size = 6 if FIXED_POINTS[kind]["marker"] in "Ds" else 7
    style = {**FIXED_POINTS[kind], "linestyle": "none", "markeredgecolor": ACCENT, "markeredgewidth": 1.4}
    axis.plot(x, y, markersize=size, zorder=4, **style)


def flow_handles(
    kinds: Sequence[str] = ("attractor", "saddle", "repeller"),
    paths: bool = False,
    unseen: bool = True,
    cycles: bool = False,
) -> list:
    """What a legend of flow fields explains: fixed points of these ``kinds``, limit cycles, trajectories, the region not
    visited."""
    handles = [
        Line2D([], [], linestyle="none", markeredgecolor=ACCENT, markersize=6, label=kind, **FIXED_POINTS[kind])
        for kind in FIXED_POINTS
        if kind in kinds
    ]
    if cycles:
        handles.append(Line2D([], [], label="stable limit cycle", **_CYCLE))
    if paths:
        start = {"marker": "o", "markerfacecolor": "white", "markersize": 4, "markevery": [0]}
        handles.append(
            Line2D([0, 1], [0, 0], color="#6a3d9a", linewidth=1, label="trajectory, from its start", **start)
        )
    return [*handles, Patch(**_UNSEEN, label="not visited")] if unseen else handles


def _phase_lines(fields: Mapping[str, Field], states: Tensor, title: str, max_columns: int) -> Figure:
    visited = as_array(states)
    visited = visited[thinned(len(visited), 20_000)]
    figure, axes = panels(len(fields), max_columns, (0.8, 3.2), (0.7, 2.7), sharex=True, sharey=True)
    x = np.linspace(*limits_of(visited, tail=0.001, pad=0.08), 600)
    kinds = ["attractor", "repeller"]
    for axis, (name, field) in zip(axes.flat, fields.items()):
        flow = _evaluate(field, x[:, None])[:, 0]
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.plot(x, flow, color=INFERRED)
        axis.plot(visited[thinned(len(visited), 300), 0], np.full(min(300, len(visited)), 0.02), "|", color=MUTED,
                  alpha=0.4, transform=axis.get_xaxis_transform(), label="visited states")  # fmt: skip
        for i in np.flatnonzero(np.diff(np.sign(flow)) != 0):
            root = x[i] - flow[i] * (x[i + 1] - x[i]) / (flow[i + 1] - flow[i])
            slope = torch.tensor([[flow[i + 1] - flow[i]]])
            kinds += _kinds_where_visited(torch.tensor([[root]]), slope, visited, x[-1] - x[0])
            _fixed_point(axis, root, 0.0, kinds[-1])
        axis.set_title(name)
    label_outside(axes, len(fields), "latent $z$", r"$dz/dt$ (latent units per $\tau$)")
    handles = [
        *flow_handles(kinds, unseen=False),
        Line2D([], [], color=MUTED, linestyle="none", marker="|", label="visited states"),
    ]
    legend_below(figure, handles, title, handletextpad=0.3)
    return figure
