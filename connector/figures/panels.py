"""Arrays in, matplotlib Figures out. No files, no training, no pyplot state: safe in threads, workers and notebooks."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.spatial import cKDTree
from scipy.stats import gaussian_kde
from torch import Tensor

from connector.types import Loadings

INK, MUTED, FAINT = "#1f2430", "#667085", "#d5d9e0"
TRUE, INFERRED, ACCENT = "#3a3f4b", "#0072b2", "#d55e00"
# After Okabe and Ito: told apart with any kind of colour vision. Yellow is left out, too pale on white.
GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#7f7f7f", "#1f2430")
SPEED = LinearSegmentedColormap.from_list("speed", ["#ffffff", "#eaf1f8", "#c9dcec", "#a3c3df"])
EVIDENCE = LinearSegmentedColormap.from_list("evidence", ["#0b4f8a", "#6aaad6", "#b9b9b9", "#eb9a6d", "#b03a0b"])
# For normalised differences; its middle is dark enough for arrows on white.
CONTRAST = LinearSegmentedColormap.from_list("contrast", ["#009e73", "#7fc4b0", "#9a9a9a", "#dcaac6", "#b8558c"])

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 7,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "hatch.linewidth": 0.6,
    "text.color": INK,
    "mathtext.fontset": "dejavusans",
}

Field = Callable[[Tensor], Tensor]
_VISITED = 0.04  # of the axes' length: a place nearer than this to a visited state counts as visited
_TITLE_WIDTH = 24  # characters over a square panel; it is narrower where data are taller than wide
_NARROWEST = 0.6  # width of a panel of a field over its height, and the other way round
_UNSEEN = {"facecolor": "#efefeb", "edgecolor": "#d2d2ca", "hatch": "////", "linewidth": 0}
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


def _styled(draw):
    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def _array(x) -> np.ndarray:
    return x.detach().double().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=float)


def _thin(count: int, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of at most ``limit`` of ``count`` things, at random, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _limits(*arrays: np.ndarray, tail: float = 0.005, pad: float = 0.12) -> tuple[float, float]:
    """Axis limits that hold all but the outermost ``tail`` of the values on either side."""
    values = np.concatenate([np.ravel(a) for a in arrays])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return -1.0, 1.0
    low, high = np.quantile(values, [tail, 1 - tail])
    room = pad * (high - low) if high > low else max(1e-3, 0.5 * abs(high))
    return float(low - room), float(high + room)


# --- flow fields ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plane:
    """The plane a flow field is drawn in: the latent plane itself, or the two leading components of the states."""

    centre: np.ndarray
    basis: np.ndarray  # (R, 2), orthonormal columns
    labels: tuple[str, str]

    @staticmethod
    def of(states: np.ndarray) -> _Plane:
        rank = states.shape[1]
        if rank == 2:
            return _Plane(np.zeros(2), np.eye(2), ("latent $z_1$", "latent $z_2$"))
        centre = states.mean(0)
        _, spread, directions = np.linalg.svd(states - centre, full_matrices=False)
        share = spread**2 / max((spread**2).sum(), 1e-30)
        labels = tuple(f"latent component {i + 1} ({share[i]:.0%} of variance)" for i in range(2))
        return _Plane(centre, directions[:2].T, labels)

    def down(self, states: np.ndarray) -> np.ndarray:
        return (states - self.centre) @ self.basis

    def up(self, points: np.ndarray) -> np.ndarray:
        return self.centre + points @ self.basis.T


def _evaluate(field, points: np.ndarray) -> np.ndarray:
    call = getattr(field, "vector_field", field)
    with torch.no_grad():
        return _array(call(torch.from_numpy(np.ascontiguousarray(points))))


def _not_too_narrow(limits: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Limits of two axes, the shorter one extended about its middle."""
    longest = max(high - low for low, high in limits)
    missing = [max(0.0, _NARROWEST * longest - (high - low)) / 2 for low, high in limits]
    return [(low - more, high + more) for (low, high), more in zip(limits, missing)]


@_styled
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
        title: over all panels.
        n_grid: grid points along each axis.
        max_trajectories: drawn per panel.
        max_columns: panels in a row.
    """
    visited = _array(states)
    visited = visited[_thin(len(visited), 20_000)]
    paths = trajectories if isinstance(trajectories, Mapping) else dict.fromkeys(fields, trajectories)
    if visited.shape[1] == 1:
        return _phase_lines(fields, visited, title, max_columns)
    columns = min(max_columns, len(fields))
    rows = math.ceil(len(fields) / columns)
    height = 0.9 + 3.0 * rows + 0.45 * bool(title)
    figure = Figure(figsize=(1.2 + 3.1 * columns, height), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    plane = _Plane.of(visited)
    flat = plane.down(visited)
    shown = [plane.down(path) for of_panel in paths.values() for path in _drawn_paths(of_panel, max_trajectories)]
    shown += [plane.down(_array(orbit)) for orbit in (cycles or {}).values()]
    attractors = [
        plane.down(_array(points))[(e.real < 0).all(-1).numpy()] for points, e in (fixed_points or {}).values()
    ]
    limits = [_limits(flat[:, i], tail=0.001, pad=0.06) for i in range(2)]
    limits = _not_too_narrow(_holding(limits, [*shown, *_near(attractors, limits)]))
    lengths = np.ptp(limits, axis=1)
    scale = lengths if visited.shape[1] == 2 else lengths.max()
    marked = {
        name: (points, _kinds_where_visited(points, eigenvalues, visited, scale))
        for name, (points, eigenvalues) in (fixed_points or {}).items()
    }
    narrow = min(1.0, (limits[0][1] - limits[0][0]) / (limits[1][1] - limits[1][0]))
    speed_cap = None
    for axis, (name, field) in zip(axes.flat, fields.items()):
        if colour is None:
            speed_cap = _streams(axis, field, plane, flat, limits, n_grid, speed_cap)
        else:
            arrows = _arrows(axis, field, plane, flat, limits, n_grid * 2 // 5, colour[name])
        if cycles is not None and name in cycles:
            _cycle(axis, plane.down(_array(cycles[name])), _is_mostly_visited(cycles[name], visited, scale))
        _over_field(axis, plane, limits, paths.get(name), marked.get(name), max_trajectories)
        whole = name.replace(" = ", "\xa0=\xa0")  # no line break within
        axis.set_title(textwrap.fill(whole, int(_TITLE_WIDTH * narrow)).replace("\xa0", " "))
    for axis in axes.flat[len(fields) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel(plane.labels[1])
    for index, axis in enumerate(axes.flat[: len(fields)]):
        if index + columns >= len(fields):
            axis.set_xlabel(plane.labels[0])
            axis.tick_params(labelbottom=True)
    if colour is not None:
        figure.colorbar(arrows, ax=axes, label=colour_label, shrink=0.7, aspect=28, ticks=[-1, -0.5, 0, 0.5, 1])
    else:
        shades = ScalarMappable(PowerNorm(0.5, 0, speed_cap), SPEED)
        label = r"speed (latent units per $\tau$)"
        figure.colorbar(shades, ax=axes, label=label, shrink=0.7, aspect=28, extend="max")
    kinds = [kind for _, of_panel in marked.values() for kind in of_panel]
    paths_drawn = any(p is not None for p in paths.values())
    handles = flow_handles(kinds, paths=paths_drawn, unseen=colour is None, cycles=bool(cycles))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.5)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@_styled
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
    visited = _array(states)
    visited = visited[_thin(len(visited), 20_000)]
    plane = _Plane.of(visited)
    flat = plane.down(visited)
    limits = limits or [_limits(flat[:, i], tail=0.001, pad=0.06) for i in range(2)]
    cap = _streams(axis, field, plane, flat, list(limits), n_grid, speed_cap)
    _over_field(axis, plane, limits, trajectories, _with_kinds(fixed_points), max_trajectories)
    return cap


@_styled
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
    visited = _array(states)
    visited = visited[_thin(len(visited), 20_000)]
    plane = _Plane.of(visited)
    flat = plane.down(visited)
    limits = [_limits(flat[:, i], tail=0.001, pad=0.06) for i in range(2)]
    arrows = _arrows(axis, field, plane, flat, limits, n_grid, colour)
    x, y, points = _grid(limits, 120)
    distance = _distance(points, flat, np.ptp(limits, axis=1)).reshape(120, 120)
    axis.contour(x, y, distance, levels=[_VISITED], colors=MUTED, linestyles="dotted", linewidths=1.1, zorder=1)
    colours = group_colours(np.linspace(-1, 1, len(paths)) if path_values is None else path_values)
    for path, shade in zip(paths, colours):
        down = plane.down(_array(path))
        axis.plot(*down.T, color="white", linewidth=3.6, zorder=2)
        axis.plot(*down.T, color=shade, linewidth=2.2, zorder=3)
        axis.plot(*down[-1], "o", color=shade, markersize=4.5, zorder=3)
    _over_field(axis, plane, limits, None, _with_kinds(fixed_points), 0)
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


def _over_field(axis: Axes, plane: _Plane, limits, trajectories, fixed_points, max_trajectories: int) -> None:
    """Trajectories and fixed points (points (F, R) and their kinds) on a field, and the axes' limits."""
    _paths(axis, plane, _drawn_paths(trajectories, max_trajectories))
    if fixed_points is not None:
        for point, kind in zip(plane.down(_array(fixed_points[0])), fixed_points[1]):
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


def _streams(axis, field, plane, flat, limits, n_grid, cap) -> float:
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
    u, v = (np.ma.array(flow[:, i], mask=distance > 0.045).reshape(n_grid, n_grid) for i in range(2))
    axis.streamplot(x, y, u, v, color="#8c9bb0", linewidth=0.6, density=1.15, arrowsize=0.65, zorder=1)
    return cap


def _arrows(axis, field, plane, flat, limits, n_grid, colour):
    _, _, points = _grid(limits, n_grid)
    points = points[_distance(points, flat, np.ptp(limits, axis=1)) < _VISITED]
    states = plane.up(points)
    flow = _evaluate(field, states) @ plane.basis
    # The root of the speed keeps slow regions readable.
    length = np.linalg.norm(flow, axis=1, keepdims=True)
    shown = flow / np.sqrt(np.maximum(length, 1e-12))
    value = _array(colour(torch.from_numpy(states)))
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
    paths = _array(trajectories)
    drawn = [path[np.isfinite(path).all(1)] for path in paths[_thin(len(paths), limit)]]
    return [path for path in drawn if len(path)]


def _cycle(axis: Axes, flat: np.ndarray, visited: bool) -> None:
    axis.plot(*np.concatenate([flat, flat[:1]]).T, zorder=3, linestyle="-" if visited else ":", **_CYCLE)


def _paths(axis: Axes, plane: _Plane, paths: list[np.ndarray]) -> None:
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
    kinds, at = kinds_of_fixed_points(eigenvalues), _array(points)
    if not len(at):
        return kinds
    far = _distance(at, visited, scale) > _VISITED
    return [_NO_TRIAL if kind == "attractor" and alone else kind for kind, alone in zip(kinds, far)]


def _is_mostly_visited(orbit: Tensor, visited: np.ndarray, scale) -> bool:
    """Whether states (T, R) were visited near most of a cycle (S, R), in units of ``scale``, the length of the axes."""
    return bool((_distance(_array(orbit), visited, scale) <= _VISITED).mean() > 0.5)


def _fixed_point(axis: Axes, x: float, y: float, kind: str) -> None:
    size = 6 if FIXED_POINTS[kind]["marker"] in "Ds" else 7
    axis.plot(
        x,
        y,
        **FIXED_POINTS[kind],
        linestyle="none",
        markeredgecolor=ACCENT,
        markeredgewidth=1.4,
        markersize=size,
        zorder=4,
    )


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


def _phase_lines(fields: Mapping[str, Field], visited: np.ndarray, title: str, max_columns: int) -> Figure:
    columns = min(max_columns, len(fields))
    rows = math.ceil(len(fields) / columns)
    figure = Figure(figsize=(0.8 + 3.2 * columns, 0.7 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    x = np.linspace(*_limits(visited, tail=0.001, pad=0.08), 600)
    kinds = ["attractor", "repeller"]
    for axis, (name, field) in zip(axes.flat, fields.items()):
        flow = _evaluate(field, x[:, None])[:, 0]
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.plot(x, flow, color=INFERRED)
        axis.plot(visited[_thin(len(visited), 300), 0], np.full(min(300, len(visited)), 0.02), "|", color=MUTED,
                  alpha=0.4, transform=axis.get_xaxis_transform(), label="visited states")  # fmt: skip
        for i in np.flatnonzero(np.diff(np.sign(flow)) != 0):
            root = x[i] - flow[i] * (x[i + 1] - x[i]) / (flow[i + 1] - flow[i])
            slope = torch.tensor([[flow[i + 1] - flow[i]]])
            kinds += _kinds_where_visited(torch.tensor([[root]]), slope, visited, x[-1] - x[0])
            _fixed_point(axis, root, 0.0, kinds[-1])
        axis.set_title(name)
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$dz/dt$ (1/$\tau$)")
    for axis in axes[-1]:
        axis.set_xlabel("latent $z$")
    for axis in axes.flat[len(fields) :]:
        axis.remove()
    handles = [
        *flow_handles(kinds, unseen=False),
        Line2D([], [], color=MUTED, linestyle="none", marker="|", label="visited states"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.3)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


# --- connectivity ---------------------------------------------------------------------------------------------------


def loading_names(loadings: Loadings, input_names: Sequence[str] = ()) -> list[str]:
    """Names of the columns of ``Loadings.stack()``, for axes."""
    inputs = list(input_names) if len(input_names) == loadings.n_inputs else range(1, loadings.n_inputs + 1)
    names = [f"loading $m_{{{i + 1}}}$\n(per latent unit)" for i in range(loadings.rank)]
    inputs = [f"$b_{{{i}}}$" if isinstance(i, int) else f"$b$, {i}" for i in inputs]
    names += [f"input weight {name}\n(per unit of input)" for name in inputs]
    return names + (["bias $d$\n(pure number)"] if loadings.has_bias else [])


@_styled
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
    """
    first = next(iter(populations.values()))[0]
    names, rank = loading_names(first, input_names), first.rank
    data = {key: (_array(loadings.stack()), _array(n)) for key, (loadings, n) in populations.items()}
    x_limits = [_limits(*(reads[:, c] for reads, _ in data.values())) for c in range(len(names))]
    y_limits = [_limits(*(drives[:, r] for _, drives in data.values())) for r in range(rank)]
    width, height = 1.05 + 1.75 * len(names) + 0.55, 0.95 + 1.65 * rank + 0.55
    beside = len(names) <= 3
    shape = (1, len(data)) if beside else (len(data), 1)
    figure = Figure(figsize=(width * shape[1], height * shape[0] + 0.3 * bool(title)), layout="constrained")
    parts = np.ravel(figure.subfigures(*shape, squeeze=False))
    for part, (key, (reads, drives)) in zip(parts, data.items()):
        group = (
            np.zeros(len(reads), dtype=int) if labels is None or key not in labels else _array(labels[key]).astype(int)
        )
        fade = None if certainty is None or key not in certainty else np.clip(_array(certainty[key]), 0, 1)
        part.suptitle(f"{key}, {len(reads)} neurons", fontsize=10)
        _scatter_block(part, reads, drives, names, (x_limits, y_limits), group, fade, max_points)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _scatter_block(part, reads, drives, names, limits, group, fade, max_points) -> None:
    rank, n_columns = drives.shape[1], len(names)
    axes = part.subplots(
        rank + 1, n_columns + 1, squeeze=False,
        gridspec_kw={"width_ratios": [1] * n_columns + [0.28], "height_ratios": [0.28] + [1] * rank},
    )  # fmt: skip
    axes[0, -1].remove()
    shown = _thin(len(reads), max_points)
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
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    # Each density to its own height: they are shapes, and a narrow one would run out of the others' range.
    axis.set(xlim=(0, None), ylim=limit) if upright else axis.set(xlim=limit, ylim=(0, None))


@_styled
def tails(entries: Mapping[str, Tensor], title: str = "Tails of the connectivity") -> Figure:
    """Survival functions of |m_i.n_j| on logarithmic axes: a power law is a straight line, a Gaussian falls off.

    Args:
        entries: name -> (P,) entries; a name that starts with "true" is drawn dark.
        title: of the figure.
    """
    figure = Figure(figsize=(4.8, 3.5), layout="constrained")
    axis = figure.subplots()
    others = iter(GROUPS)
    for name, values in entries.items():
        magnitude = np.sort(np.abs(_array(values)))[::-1]
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


@_styled
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
    a, b = _array(true), _array(inferred)
    rank = a.shape[1]
    figure = Figure(figsize=(0.6 + 2.9 * rank, 3.5), layout="constrained")
    axes = figure.subplots(1, rank, squeeze=False)[0]
    shown = _thin(len(a), 1500)
    for i, axis in enumerate(axes):
        limit = _limits(a[:, i], b[:, i])
        axis.plot(limit, limit, color=MUTED, linewidth=0.9, zorder=1)
        if half_width is not None:
            axis.errorbar(a[shown, i], b[shown, i], yerr=_array(half_width)[shown, i], fmt="none", ecolor=INFERRED,
                          alpha=0.15, elinewidth=0.7, zorder=0)  # fmt: skip
        axis.scatter(a[shown, i], b[shown, i], s=7, color=INFERRED, alpha=0.5, linewidths=0, zorder=2, rasterized=True)
        error = float(np.mean((a[:, i] - b[:, i]) ** 2))
        axis.set(xlim=limit, ylim=limit, xlabel=rf"true $\nu_{{{i + 1}}}$ (latent units)", aspect="equal",
                 ylabel=rf"inferred $\nu_{{{i + 1}}}$ (latent units)")  # fmt: skip
        axis.text(0.04, 0.96, f"mean squared error {error:.3g}", transform=axis.transAxes, va="top", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@_styled
def intervals(nu: Tensor, low: Tensor, high: Tensor, *, level: float = 0.95) -> Figure:
    """Estimates of nu in ascending order with their intervals, one panel per dimension.

    Args:
        nu, low, high: (K, R). level: probability of the intervals.
    """
    values, a, b = _array(nu), _array(low), _array(high)
    rank = values.shape[1]
    figure = Figure(figsize=(max(3.9, 0.6 + 2.9 * rank), 3.2), layout="constrained")
    axes = figure.subplots(1, rank, squeeze=False)[0]
    shown = _thin(len(values), 1500)
    for i, axis in enumerate(axes):
        order = shown[np.argsort(values[shown, i])]
        share = np.linspace(0, 100, len(order))
        axis.fill_between(share, a[order, i], b[order, i], color=INFERRED, alpha=0.25, linewidth=0,
                          label=f"{100 * level:g} % interval")  # fmt: skip
        axis.plot(share, values[order, i], color=INFERRED, linewidth=1.2, label="estimate")
        axis.axhline(0, color=MUTED, linewidth=0.8, zorder=0)
        axis.set(xlim=(0, 100), ylim=_limits(a[:, i], b[:, i]), 
                 xlabel=rf"share of the neurons (%), in the order of $\nu_{{{i + 1}}}$",
                 ylabel=rf"mean output weight $\nu_{{{i + 1}}}$ (latent units)")  # fmt: skip
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@_styled
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
    k, y, spread = (_array(v) for v in (components, mean, std))
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axis = figure.subplots()
    if null is not None:
        curves = _array(null)
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


@_styled
def spectrum(eigenvalues: Tensor, regularizer: float, title: str = "Modes of n that the dynamics show") -> Figure:
    """Eigenvalues g_j of the Gram matrix of the rates, and how far the data determine each mode, g_j / (g_j + lambda).

    Args:
        eigenvalues: (J,) descending.
        regularizer: lambda, in the same units.
        title: of the figure.
    """
    g = np.clip(_array(eigenvalues), 0, None)
    g = g[g > 0]
    share = g / (g + regularizer) if regularizer > 0 else np.ones_like(g)
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    number = np.arange(1, len(g) + 1)
    left.plot(number, g, color=INFERRED, marker="o", markersize=2.5, linewidth=0.8)
    if regularizer > 0:
        left.axhline(regularizer, color=ACCENT, linewidth=1.1, linestyle=(0, (4, 2)))
        left.text(1, regularizer, r"regulariser $\lambda$", transform=left.get_yaxis_transform(), ha="right",
                  va="bottom", color=ACCENT, fontsize=8)  # fmt: skip
    left.set(yscale="log", title=title, xlabel="mode", ylabel="variance $g_j$ of the rates")
    right.fill_between(number, share, color=INFERRED, alpha=0.2, linewidth=0)
    right.plot(number, share, color=INFERRED)
    right.set(ylim=(0, 1.05), xlabel="mode", ylabel="determined share $g_j / (g_j + \\lambda)$",
              title=f"{share.sum():.1f} modes determined, the rest is prior")  # fmt: skip
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@_styled
def dissimilarity_matrices(matrices: Mapping[str, Tensor], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Dissimilarities D(true, inferred), true systems in rows, inferred ones in columns; one panel per measure."""
    figure = Figure(figsize=(0.9 + 3.2 * len(matrices), 4.2), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (name, matrix) in zip(axes, matrices.items()):
        values = _array(matrix)
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


# --- fits and recordings --------------------------------------------------------------------------------------------


@_styled
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
    columns = min(3, max(1, len(curves)))
    rows = math.ceil(max(1, len(curves)) / columns)
    figure = Figure(figsize=(0.4 + 3.4 * columns, 0.6 + 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
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
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    if handles:  # below the panels, where it lies over no curve
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=min(len(handles), 2 * columns))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _time_axis(n_steps: int, step: float, unit: str) -> tuple[np.ndarray, str]:
    return np.arange(n_steps) * step, {"s": "time (s)", "tau": r"time ($\tau$)"}.get(unit, f"time ({unit})")


@_styled
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
        trial_numbers: of all trials given, counted from 1, as the panels name them; their places by default.
        neuron_names: K names.
        rate_label: what is drawn upwards, with its unit.
        title: of the figure.
    """
    seen, model = _array(observed), _array(fitted)
    n_trials, n_steps, n_neurons = seen.shape
    if neurons is None:
        order = np.argsort(seen.reshape(-1, n_neurons).var(0))
        neurons = order[np.unique(np.linspace(n_neurons * 0.3, n_neurons - 1, min(4, n_neurons)).astype(int))][::-1]
    if trials is None:
        trials = np.unique(np.linspace(0, n_trials - 1, min(4, n_trials)).astype(int))
    time, label = _time_axis(n_steps, step, time_unit)
    figure = Figure(figsize=(0.7 + 2.1 * len(trials), 0.9 + 1.25 * len(neurons)), layout="constrained")
    axes = figure.subplots(len(neurons), len(trials), squeeze=False, sharex=True, sharey="row")
    for row, neuron in enumerate(neurons):
        for column, trial in enumerate(trials):
            axis = axes[row, column]
            valid = slice(0, n_steps if lengths is None else int(lengths[trial]))
            axis.plot(time[valid], seen[trial, valid, neuron], color=TRUE, linewidth=2.4, alpha=0.35, label="recorded")
            axis.plot(time[valid], model[trial, valid, neuron], color=ACCENT, linewidth=1.2, label="fitted")
            axis.yaxis.set_major_locator(MaxNLocator(3))
            if row == 0:
                axis.set_title(f"trial {trial + 1 if trial_numbers is None else trial_numbers[trial]}")
        name = neuron_names[neuron] if len(neuron_names) == n_neurons else f"neuron {neuron + 1}"
        axes[row, 0].set_ylabel(f"{name}\n{rate_label}")
    for axis in axes[-1]:
        axis.set_xlabel(label)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def group_colours(values: Sequence[float]) -> list:
    """One colour for each value of a signed quantity (evidence, choice), blue for left to orange for right."""
    values = np.asarray(values, dtype=float)
    top = np.abs(values).max() if values.size and np.abs(values).max() > 0 else 1.0
    return [EVIDENCE(0.5 + 0.5 * v / top) for v in values]


@_styled
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
    t, seen, fit = (_array(v) for v in (time, observed, model))
    n_groups, _, n_neurons = seen.shape
    if neurons is None:
        centred = seen - np.nanmean(seen, axis=(0, 1))
        neurons = np.argsort(-np.nanvar(centred, axis=(0, 1)))[: min(9, n_neurons)]
    colours = group_colours(np.linspace(-1, 1, n_groups) if group_values is None else group_values)
    columns = min(3, len(neurons))
    rows = math.ceil(len(neurons) / columns)
    figure = Figure(figsize=(0.6 + 2.5 * columns, 0.9 + 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axis, neuron in zip(axes.flat, neurons):
        for g in range(n_groups):
            axis.plot(t, seen[g, :, neuron], color=colours[g], alpha=0.4, linewidth=2.6)
            axis.plot(t, fit[g, :, neuron], color=colours[g], linewidth=1.3)
        name = neuron_names[neuron] if len(neuron_names) == n_neurons else f"neuron {neuron + 1}"
        axis.set_title(name if r2 is None else f"{name}, $R^2$ {float(r2[neuron]):.2f}", fontsize=9)
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("rate (Hz)" if time_unit == "s" else "spikes per sample")
    for index, axis in enumerate(axes.flat):
        if index >= len(neurons):
            axis.remove()
        elif index + columns >= len(neurons):
            axis.set_xlabel(f"time from {origin} ({time_unit})")
            axis.tick_params(labelbottom=True)
    handles = [Line2D([], [], color=c, linewidth=1.8, label=name) for c, name in zip(colours, group_names)]
    handles += [Line2D([], [], color=MUTED, alpha=0.4, linewidth=2.6, label="observed")]
    handles += [Line2D([], [], color=MUTED, linewidth=1.3, label="model")]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * columns))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@_styled
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
    states, group = _array(z), _array(groups).astype(int)
    n_trials, n_steps, rank = states.shape
    lasting = np.full(n_trials, n_steps) if lengths is None else _array(lengths).astype(int)
    running = np.arange(n_steps)[None] < lasting[:, None]
    colours = group_colours(np.linspace(-1, 1, len(group_names)) if group_values is None else group_values)
    time, label = _time_axis(n_steps, step, time_unit)
    panels = rank + (rank >= 2)
    figure = Figure(figsize=(max(4.2, 0.5 + 2.7 * panels), 3.3), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    plane = _Plane.of(states[running]) if rank >= 2 else None
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
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 2 if panels == 1 else 3 * panels)
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
