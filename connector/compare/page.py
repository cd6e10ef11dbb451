"""The page of a comparison: one HTML file with its style, script and data inside; nothing is fetched from anywhere.

Without scripts the table is still there, in the order of the measure; with them it sorts, filters and draws.
"""

from __future__ import annotations

import colorsys
import html
import json
import math
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from connector.report.glossary import Metric
from connector.report.numbers import format_number
from connector.report.page import CSS, number_html

# Enough for the eye, and 200 runs still make a page of a few megabytes.
_POINTS = 120
_LONG = 24  # characters of an option's value, above which it is broken into lines
# Told apart also by colour-blind readers (after Okabe and Ito), on white and on black.
_COLOURS = ("#1f86c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
_ARROWS = {"lower": ("↓", "lower is better"), "higher": ("↑", "higher is better")}


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
        options: columns of options; metrics: key -> what it is, in the order of the columns; main: those seen at first.
        by: the measure that orders the rows; not_done: (directory, reason).
    """

    lines: Sequence[str]
    rows: Sequence[Row]
    options: Sequence[str]
    metrics: Mapping[str, Metric]
    main: Sequence[str]
    by: str
    not_done: Sequence[tuple[str, str]] = ()


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def thinned(epochs: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most ``_POINTS`` points of a curve, evenly spread, with the first and the last, to 5 digits."""
    n = len(epochs)
    kept = range(n) if n <= _POINTS else [round(i * (n - 1) / (_POINTS - 1)) for i in range(_POINTS)]
    finite = [i for i in kept if abs(values[i]) < float("inf")]  # a comparison with NaN is false, too
    return [epochs[i] for i in finite], [float(f"{values[i]:.5g}") for i in finite]


def colour(place: int, n: int) -> str:
    """Of the setting at a place: distinct for a few, from blue (first) to red (last) for many."""
    if n <= len(_COLOURS):
        return _COLOURS[place]
    hue = (215 - 205 * place / (n - 1)) / 360
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.5, 0.62))


def with_half(mean: float, half: float | None) -> str:
    """mean ± half, half to two significant digits and the mean to the same place."""
    if half is None or not half > 0:
        return format_number(float(mean)) + ("" if half is None else " ± 0")
    size = max(abs(mean), half)
    power = 0 if 1e-3 <= size < 1e5 else math.floor(math.log10(size))
    decimals = max(0, 1 - math.floor(math.log10(half / 10**power)))
    text = f"{mean / 10**power:.{decimals}f} ± {half / 10**power:.{decimals}f}"
    return f"({text}) × 10^{power}" if power else text


def _header(key: str, text: str, page: Page, *, number: bool, hidden: bool = False, hint: str = "") -> str:
    # The rows come in the order of the measure, which is said where that column stands.
    metric = page.metrics.get(key)
    state = "none"
    if key == page.by:
        state = "descending" if metric.direction == "higher" else "ascending"
    unit = ""
    if metric is not None:
        arrow, meaning = _ARROWS.get(metric.direction, ("", ""))
        mark = f' <abbr title="{meaning}">{arrow}</abbr>' if arrow else ""
        unit = f"<small>{_escape(metric.unit)}{mark}</small>"
    words = _escape(text).replace(".", ".<wbr>").replace("_", "_<wbr>")
    classes = " ".join(name for name, on in (("number", number), ("measure", metric is not None)) if on)
    return (
        f'<th scope="col" data-key="{_escape(key)}" aria-sort="{state}" class="{classes}"{" hidden" if hidden else ""}>'
        f'<button type="button" title="{_escape(hint)}">{words}</button>{unit}</th>'
    )


def _value_cell(key: str, row: Row, hidden: bool) -> str:
    attributes = f'class="number" data-key="{_escape(key)}"{" hidden" if hidden else ""}'
    if key not in row.estimates:
        return f"<td {attributes}></td>"
    mean, low, high, n = row.estimates[key]
    text, title = number_html(float(mean)), f"{mean!r}, one run"
    if high is not None:
        text = re.sub(r"(± [\d.]+)", r'<span class="half">\1</span>', number_html(with_half(mean, high - mean)))
        text = text.replace("-", "−")
        title = f"mean {mean!r} of {n} runs, interval {low!r} to {high!r}"
    return f'<td {attributes} data-value="{mean!r}" title="{_escape(title)}">{text}</td>'


def _option_cell(key: str, value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    data = f' data-value="{value!r}"' if number else ""
    classes = " ".join(name for name, on in (("option", True), ("number", number), ("long", len(text) > _LONG)) if on)
    return f'<td data-key="{_escape(key)}" class="{classes}"{data}>{_escape(text)}</td>'


def _numeric(page: Page, key: str) -> bool:
    values = [row.options.get(key) for row in page.rows]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _link(link: Link) -> str:
    title = _escape(link.directory)
    if not link.report:
        return f'<span title="{title}: no report">{_escape(link.text)} (no report)</span>'
    return f'<a href="{_escape(urllib.parse.quote(link.report))}" title="{title}">{_escape(link.text)}</a>'


def _table(page: Page) -> str:
    hidden = {key: key not in page.main for key in page.metrics}
    head = _header("place", "#", page, number=True, hint="place")
    head += "".join(_header(f"option {key}", key, page, number=_numeric(page, key)) for key in page.options)
    for key, metric in page.metrics.items():
        head += _header(key, metric.label, page, number=True, hidden=hidden[key], hint=f"{key}. {metric.explanation}")
    head += '<th scope="col">runs</th>'
    body = []
    for i, row in enumerate(page.rows):
        shade = colour(i, len(page.rows))
        cells = (
            f'<th scope="row" class="number place" data-key="place" data-value="{i + 1}" title="{_escape(row.name)}">'
        )
        cells += f'<i style="background:{shade}"></i>{i + 1}</th>'
        cells += "".join(_option_cell(f"option {key}", row.options.get(key, "")) for key in page.options)
        cells += "".join(_value_cell(key, row, hidden[key]) for key in page.metrics)
        links = ", ".join(map(_link, row.links))
        body.append(f'<tr data-row="{i}" tabindex="-1">{cells}<td class="runs">{links}</td></tr>')
    return (
        f'<div class="scroll tall" tabindex="0"><table id="settings"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        "</div>"
    )


def _columns(page: Page) -> str:
    boxes = "".join(
        f'<label title="{_escape(metric.explanation)}"><input type="checkbox" value="{_escape(key)}"'
        f"{' checked' if key in page.main else ''}> {_escape(metric.label)} <code>{_escape(key)}</code></label>"
        for key, metric in page.metrics.items()
    )
    return f'<details id="columns"><summary>Choose measures</summary><div>{boxes}</div></details>'


def _data(page: Page) -> dict[str, Any]:
    return {
        "by": page.by,
        "options": list(page.options),
        "main": list(page.main),
        "metrics": {key: [metric.label, metric.unit, metric.direction] for key, metric in page.metrics.items()},
        "rows": [
            {
                "name": row.name,
                "colour": colour(i, len(page.rows)),
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
    lines = "".join(f"<li>{_escape(line)}</li>" for line in page.lines)
    failed = "".join(
        f'<tr><th scope="row"><code>{_escape(path)}</code></th><td>{_escape(reason)}</td></tr>'
        for path, reason in page.not_done
    )
    if failed:
        failed = (
            '<section id="not-done"><h2>Left out</h2><div class="scroll"><table><thead><tr><th scope="col">directory</th>'
            f'<th scope="col">why</th></tr></thead><tbody>{failed}</tbody></table></div></section>'
        )
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    many = "from blue (first) to red (last)" if len(page.rows) > len(_COLOURS) else "as beside the places"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_escape(title)}</title>
<style>{CSS}{_CSS}</style>
</head>
<body>
<header><p class="brand">Connector</p><h1>{_escape(title)}</h1><ul class="summary">{lines}</ul></header>
<main>
<section><h2>Settings</h2>
<p class="tools scripted"><label>Filter <input id="filter" type="search" autocomplete="off" spellcheck="false"
placeholder="words, or such as rank>=2"></label> <span id="count" role="status"></span>
<button type="button" id="clear">Clear all choices</button></p>
{_table(page)}
<div class="scripted">{_columns(page)}</div>
</section>
<section id="axes" class="scripted"><h2>Options and measures</h2>
<p class="note">A line is a setting, coloured {many}. Drag along an axis to choose a range, click the axis to let it go;
without a mouse, type the range into the filter. Measures are means over a setting's runs.</p>
<div class="scroll"><div class="drawing"></div></div></section>
<section id="curves" class="scripted"><h2>Learning curves</h2>
<p class="tools"><label>Stage <select id="stage"></select></label> <label>Measure <select id="measure"></select></label>
<label><input type="checkbox" id="log" checked> logarithmic</label></p>
<div class="drawing"></div>
<p class="note">A line is a run in the colour of its setting, for the settings chosen above; of long curves
{_POINTS} points are drawn.</p></section>
{failed}
</main>
<script type="application/json" id="data">{_json(_data(page))}</script>
<script>{script}</script>
</body>
</html>
"""


_CSS = """
body{max-width:min(96rem,100%)}
body:not(.script) .scripted{display:none}
.tools{display:flex;flex-wrap:wrap;gap:.5rem 1.2rem;align-items:center;max-width:none}
input[type=search],select,.tools button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);
border-radius:6px;padding:.25rem .5rem}
input[type=search]{width:min(24rem,60vw)}
.tools button{cursor:pointer}
#count{color:var(--soft)}
.tall{max-height:75vh;overflow:auto}
#settings{font-size:.9rem;border-collapse:separate;border-spacing:0;margin:0}
#settings thead th{position:sticky;top:0;background:var(--card);z-index:1}
#settings thead th{vertical-align:bottom;white-space:normal;min-width:4rem;max-width:12rem}
#settings thead th[data-key=place]{min-width:2.5rem}
#settings thead th button{font:inherit;color:inherit;background:none;border:0;padding:0;text-align:inherit;cursor:pointer}
#settings thead th button:hover{text-decoration:underline}
#settings thead th.measure{min-width:8.5rem}
#settings thead th[aria-sort=ascending] button::after{content:" ▲";font-size:.7em}
#settings thead th[aria-sort=descending] button::after{content:" ▼";font-size:.7em}
#settings small{display:block;font-size:.8rem;opacity:.85}
#settings tbody tr:hover,#settings tbody tr.hot{background:var(--wash)}
#settings td.option{font-weight:400;white-space:nowrap}
#settings td.long{white-space:normal;overflow-wrap:anywhere;min-width:12rem;max-width:22rem}
#settings td,#settings th{padding-left:.3rem}
#settings .half{font-weight:400;color:var(--soft)}
#settings .runs{min-width:12.5rem;max-width:18rem}
#settings .runs :is(a,span){white-space:nowrap}
.place{white-space:nowrap}
.place i{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;margin-right:.45rem}
#columns{margin-top:.6rem}
#columns div{columns:22rem;margin-top:.5rem}
#columns label{display:block;break-inside:avoid;padding:.1rem 0;font-size:.9rem}
svg{display:block}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
svg text.name{fill:var(--ink);font-weight:600}
svg text.halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .grid{stroke:var(--line);stroke-width:1}
svg .line{fill:none;stroke-width:1.7;opacity:.75}
svg .line.off{opacity:.07}
svg .line.hot{stroke-width:3.4;opacity:1}
svg .brush{fill:transparent;cursor:ns-resize;touch-action:none}
svg .range{fill:var(--accent);opacity:.22;pointer-events:none}
#curves .drawing{display:flex;flex-wrap:wrap;gap:1rem}
#curves h3{margin:.4rem 0 .1rem;font-size:1rem;font-weight:600}
@media print{.tall{max-height:none}.tools,#columns{display:none}}
"""
