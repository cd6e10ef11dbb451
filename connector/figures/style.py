"""Colours, fonts and helpers that all figures share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, is_color_like, to_rgb, to_rgba
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from torch import Tensor

from connector.errors import require

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


# Colours by name, as the argument ``colours`` of every figure has them: "group 1" and so on are those of groups and curves.
PALETTE = {
    "ink": INK,
    "muted": MUTED,
    "true": TRUE,
    "inferred": INFERRED,
    "accent": ACCENT,
    **{f"group {i + 1}": colour for i, colour in enumerate(GROUPS)},
}
_given: ContextVar[list[Axes] | None] = ContextVar("axes to draw into", default=None)


def styled(draw):
    """A function that draws, in the style of all figures and with two more keywords.

    ``axes``: one axis or several, in rows, to draw into instead of a figure of its own; their figure is returned, legends
    stand in the first of them, and there is no title over all. ``colours``: name -> colour for those of ``PALETTE``.
    """

    @functools.wraps(draw)
    def wrapper(*args, axes: Axes | Iterable[Axes] | None = None, colours: Mapping[str, str] | None = None, **kwargs):
        unknown = (colours or {}).keys() - PALETTE.keys()
        require(not unknown, f"colours of {', '.join(PALETTE)}", ", ".join(sorted(unknown)))
        token = _given.set(None if axes is None else list(np.ravel(np.asarray(axes, dtype=object))))
        try:
            with matplotlib.rc_context(STYLE):
                drawn = draw(*args, **kwargs)
        finally:
            _given.reset(token)
        if colours and isinstance(drawn, FigureBase):
            _recolour(drawn, {to_rgb(PALETTE[name]): to_rgb(colour) for name, colour in colours.items()})
        return drawn

    return wrapper


def _recolour(figure: FigureBase, new: Mapping[tuple, tuple]) -> None:
    """Replace colours of all that is drawn in a figure, each with its transparency."""

    def changed(colour):
        if colour is None or (isinstance(colour, str) and colour in ("none", "auto")):
            return colour
        red, green, blue, alpha = to_rgba(colour)
        return (*new.get((red, green, blue), (red, green, blue)), alpha)

    for artist in figure.findobj():
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = (getattr(artist, f"{verb}_{part}", None) for verb in ("get", "set"))
            if get is None or put is None or isinstance(artist, FigureBase):
                continue
            now = get()
            if isinstance(now, np.ndarray) and now.ndim == 2:
                if len(now) and artist.get_array() is None:
                    put([changed(colour) for colour in now])
            elif is_color_like(now):
                put(changed(now))


def grid(
    rows: int, columns: int, size: tuple[float, float], *, layout: str | None = "constrained", **shared
) -> tuple[FigureBase, np.ndarray]:
    """Figure of a size in inches and its axes (rows, columns); or those to draw into, where the caller has given them.

    Args:
        shared: ``sharex``, ``sharey`` of matplotlib's subplots.
    """
    given = _given.get()
    if given is None:
        figure = Figure(figsize=size, layout=layout)
        return figure, figure.subplots(rows, columns, squeeze=False, **shared)
    require(len(given) >= rows * columns, f"{rows * columns} axes to draw into", len(given))
    return given[0].get_figure(root=True), np.array(given[: rows * columns], dtype=object).reshape(rows, columns)


def require_own_figure() -> None:
    """Raises UserError where axes were given."""
    require(_given.get() is None, "no axes: this figure is made of blocks of its own", "axes")


def as_array(x) -> np.ndarray:
    return x.detach().double().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=float)


def thinned(count: int, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of at most ``limit`` of ``count`` things, at random, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def limits_of(*arrays: np.ndarray, tail: float = 0.005, pad: float = 0.12) -> tuple[float, float]:
    """Axis limits that hold all but the outermost ``tail`` of the values on either side."""
    values = np.concatenate([np.ravel(a) for a in arrays])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return -1.0, 1.0
    low, high = np.quantile(values, [tail, 1 - tail])
    room = pad * (high - low) if high > low else max(1e-3, 0.5 * abs(high))
    return float(low - room), float(high + room)


def group_colours(values: Sequence[float]) -> list:
    """One colour for each value of a signed quantity (evidence, choice), blue for left to orange for right."""
    values = np.asarray(values, dtype=float)
    top = np.abs(values).max() if values.size and np.abs(values).max() > 0 else 1.0
    return [EVIDENCE(0.5 + 0.5 * v / top) for v in values]


def panels(
    count: int,
    max_columns: int,
    width: tuple[float, float],
    height: tuple[float, float],
    *,
    layout: str = "constrained",
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Figure and axes (rows, columns) of ``count`` panels; ``width``, ``height``: inches beside them, and of each."""
    columns = max(1, min(max_columns, count))
    rows = max(1, math.ceil(count / columns))
    size = (width[0] + width[1] * columns, height[0] + height[1] * rows)
    given = _given.get()
    if given is not None:  # in one row: none is left over
        rows, columns = 1, count
    return grid(rows, columns, size, layout=layout, sharex=sharex, sharey=sharey)


def set_margins(
    part: FigureBase, shape: tuple[int, int], *, left: float, right: float, bottom: float, top: float, gap: tuple
) -> None:
    """Margins about a grid of ``shape`` (rows, columns) panels and the ``gap`` (across, up) between them, in inches.

    Where they are known, half of the time of drawing many panels is saved: a layout that finds them measures each label.
    """
    if _given.get() is not None:
        return
    whole = part.get_figure(root=True)
    whole.set_layout_engine(PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True))
    width, height = part.bbox.size / whole.dpi
    across, up = (
        (size - n * between) / (n + 1)
        for size, n, between in (
            (width - left - right, shape[1] - 1, gap[0]),
            (height - bottom - top, shape[0] - 1, gap[1]),
        )
    )
    part.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height,
        wspace=gap[0] / across, hspace=gap[1] / up,
    )  # fmt: skip


def beside_labels(axes: Iterable[Axes]) -> float:
    """Room in inches at the left of axes for their tick labels and a name of two lines."""
    texts = [text for axis in axes for text in axis.yaxis.get_major_formatter().format_ticks(axis.get_yticks())]
    return 0.5 + 0.065 * max(map(len, texts), default=0)


def label_outside(axes: np.ndarray, count: int, below: str, beside: str) -> None:
    """Remove the axes that ``count`` panels leave over, and name those at the left and lowest in their columns."""
    columns = axes.shape[1]
    for axis in axes[:, 0]:
        axis.set_ylabel(beside)
    for index, axis in enumerate(axes.flat):
        if index >= count:
            axis.remove()
        elif index + columns >= count:
            axis.set_xlabel(below)
            axis.tick_params(labelbottom=True)


_LEGEND_ROW = 0.22  # inches


def legend_below(figure: Figure, handles: list, title: str = "", columns: int | None = None, **style) -> None:
    """A legend under the panels, where it lies over no curve, and the title over all.

    ``columns``: at most so many entries stand in a row; fewer where they would be wider than the figure.
    """
    given = _given.get()
    if given is not None:
        if handles:
            given[0].legend(handles=handles, loc="best", **style)
        return
    if handles:
        columns = min(len(handles), columns or len(handles))
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, **style)
        while columns > 1 and legend.get_window_extent().width > figure.bbox.width:
            legend.remove()
            rows, columns = -(-len(handles) // columns), columns - 1
            more = -(-len(handles) // columns) - rows  # each takes its room from the panels otherwise
            figure.set_figheight(figure.get_figheight() + more * _LEGEND_ROW)
            legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, **style)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
