"""The page of a comparison: one HTML file with its style, script and data inside; nothing is fetched from anywhere.

Without scripts the table is still there, in the order of the measure; with them it sorts, filters and draws.
"""

from __future__ import annotations

import colorsys
import json
import math
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from connector.report.glossary import SHORT, Metric
from connector.report.numbers import format_number
from connector.report.page import CSS, environment, number_html

# Enough for the eye, and 200 runs still make a page of a few megabytes.
_POINTS = 120
# Told apart also by colour-blind readers (after Okabe and Ito), on white and on black.
_COLOURS = ("#1f86c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")


class Link(NamedTuple):
    """A run in a row: what tells it from the row's other runs, its report ("" where there is none), its directory."""

    text: str
    report: str
    directory: str


@dataclass(frozen=True)
class Row:
    """A setting.

    Attributes:
        name: in words; options: its values; estimates: measure -> (mean, low, high, n).
        links: its runs; curves: of each run, stage -> measure -> (epochs, values).
    """

    name: str
    options: Mapping[str, Any]
    estimates: Mapping[str, tuple[float, float | None, float | None, int]]
    links: Sequence[Link]
    curves: Sequence[Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]]


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        lines: sentences under the title; rows: settings, best first.
        options: columns of options; leading: how many of them stand before the measures; metrics: key -> what it is, in the order of the columns; main: those seen at first.
        by: the measure that orders the rows; not_done: (directory, reason).
    """

    lines: Sequence[str]
    rows: Sequence[Row]
    options: Sequence[str]
    metrics: Mapping[str, Metric]
    main: Sequence[str]
    by: str
    not_done: Sequence[tuple[str, str]] = ()
    leading: int = 4

    def heading(self, key: str) -> str:
        """A measure's name over its column: the short one where it has one."""
        return SHORT[key].strip().capitalize() if key in SHORT else self.metrics[key].label

    def order(self, key: str) -> str:
        """The aria-sort of a column: the rows come in the order of one measure."""
        if key != self.by:
            return "none"
        return "descending" if self.metrics[key].direction == "higher" else "ascending"

    def numeric(self, option: str) -> bool:
        return all(is_number(row.options.get(option)) for row in self.rows)

    def colour(self, place: int) -> str:
        """Of the setting at a place: distinct for a few, from blue (first) to red (last) for many."""
        n = len(self.rows)
        if n <= len(_COLOURS):
            return _COLOURS[place]
        hue = (215 - 205 * place / (n - 1)) / 360
        return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.5, 0.62))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def option_text(value: Any) -> str:
    """An option's value as a cell shows it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _breakable(text: str) -> Markup:
    """A heading that may be broken after its dots and underscores."""
    return Markup(escape(text).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>")))


def _spelt_out(estimate: tuple[float, float | None, float | None, int]) -> str:
    mean, low, high, n = estimate
    if high is None:
        return f"{mean:.4g}, one run"
    return f"mean {mean:.4g} of {n} runs, interval {low:.4g} to {high:.4g}"


def _estimate_html(estimate: tuple[float, float | None, float | None, int]) -> Markup:
    mean, _, high, _ = estimate
    if high is None:
        return number_html(float(mean))
    text = re.sub(r"(± [\d.]+)", r'<span class="half">\1</span>', str(number_html(with_half(mean, high - mean))))
    return Markup(text.replace("-", "−"))


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def thinned(epochs: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most ``_POINTS`` points of a curve, evenly spread, with the first and the last, to 5 digits."""
    n = len(epochs)
    kept = range(n) if n <= _POINTS else [round(i * (n - 1) / (_POINTS - 1)) for i in range(_POINTS)]
    finite = [i for i in kept if abs(values[i]) < float("inf")]  # a comparison with NaN is false, too
    return [epochs[i] for i in finite], [float(f"{values[i]:.5g}") for i in finite]


def with_half(mean: float, half: float | None) -> str:
    """mean ± half, half to two significant digits and the mean to the same place."""
    if half is None or not half > 0:
        return format_number(float(mean)) + ("" if half is None else " ± 0")
    size = max(abs(mean), half)
    power = 0 if 1e-3 <= size < 1e5 else math.floor(math.log10(size))
    decimals = max(0, 1 - math.floor(math.log10(half / 10**power)))
    text = f"{mean / 10**power:.{decimals}f} ± {half / 10**power:.{decimals}f}"
    return f"({text}) × 10^{power}" if power else text


def _data(page: Page) -> dict[str, Any]:
    return {
        "by": page.by,
        "options": list(page.options),
        "main": list(page.main),
        "metrics": {key: [metric.label, metric.unit, metric.direction] for key, metric in page.metrics.items()},
        "rows": [
            {
                "name": row.name,
                "colour": page.colour(i),
                "options": {key: json.loads(json.dumps(value, default=str)) for key, value in row.options.items()},
                "means": {key: estimate[0] for key, estimate in row.estimates.items()},
                "runs": [link.text for link in row.links],
                "curves": [
                    {
                        stage: {key: thinned(*curve) for key, curve in of_stage.items()}
                        for stage, of_stage in run.items()
                    }
                    for run in row.curves
                ],
            }
            for i, row in enumerate(page.rows)
        ],
    }


def render(page: Page, title: str = "Comparison of runs") -> str:
    """The page as a string."""
    folder = Path(__file__).parent
    return (
        environment()
        .get_template("compare/page.html.j2")
        .render(
            page=page,
            title=title,
            css=Markup(CSS + (folder / "page.css").read_text(encoding="utf-8")),
            script=Markup((folder / "page.js").read_text(encoding="utf-8")),
            data=_json(_data(page)),
            n_points=_POINTS,
            n_colours=len(_COLOURS),
            breakable=_breakable,
            is_number=is_number,
            option_text=option_text,
            spelt_out=_spelt_out,
            estimate_html=_estimate_html,
            quote=urllib.parse.quote,
        )
    )
