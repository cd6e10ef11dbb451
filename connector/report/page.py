"""The report of a run: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from connector.report.glossary import METRICS, Metric

_DPI = 160


@dataclass(frozen=True)
class TableData:
    """A table: column headings (units in them), rows of cells (text or numbers) and a caption."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        title: heading, also in the table of contents.
        text: paragraphs, separated by empty lines; plain text.
        figures: (caption, figure) pairs; a figure may be given as the bytes of :func:`figure_png`.
        tables: see TableData.
        metrics: key -> value, shown as a table with the explanations of METRICS.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[str, Figure | bytes]] = ()
    tables: Sequence[TableData] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def format_number(value: object) -> str:
    """Numbers as a person writes them; anything else as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return "not defined"
    if isinstance(value, int) or (isinstance(value, float) and 1e3 <= abs(value) < 1e5):
        return f"{value:,.0f}".replace(",", "\u202f")  # narrow space, no line break
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.0f}" if value == round(value) else f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10^{int(exponent)}"


def write_report(
    path: Path | str, title: str, summary: Sequence[str], sections: Sequence[Section], opening: Sequence[str] = ()
) -> Path:
    """Writes one self-contained HTML file: no script, no font, no image from elsewhere.

    It is written aside and then renamed, so that a reader finds the old report or the new one, never half of one.

    Args:
        path: of the file; its directory exists.
        title: heading of the page.
        summary: lines under it, plain text.
        sections: in order.
        opening: what was found, in a few sentences, before all else.

    Returns:
        the path.
    """
    path = Path(path)
    page = render_report(title, summary, sections, opening)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(page)
        # mkstemp makes files private; a report is as readable as any other file here.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(aside, 0o666 & ~mask)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


def render_report(title: str, summary: Sequence[str], sections: Sequence[Section], opening: Sequence[str] = ()) -> str:
    """The HTML of :func:`write_report` as a string."""
    contents = "".join(
        f'<li><a href="#section-{i}">{_escape(section.title)}</a></li>' for i, section in enumerate(sections, 1)
    )
    body = "".join(_section(i, section) for i, section in enumerate(sections, 1))
    lines = "".join(f"<li>{_escape(line)}</li>" for line in summary)
    found = "".join(f"<li>{_escape(line)}</li>" for line in opening)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header><p class="brand">Connector</p><h1>{_escape(title)}</h1>'
        f"{f'<ul class=summary>{lines}</ul>' if lines else ''}</header>\n"
        f"{f'<section class=opening><h2>In short</h2><ul>{found}</ul></section>' if found else ''}\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>{body}</main>\n</body>\n</html>\n'
    )


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _section(number: int, section: Section) -> str:
    paragraphs = "".join(f"<p>{_escape(p.strip())}</p>" for p in section.text.split("\n\n") if p.strip())
    metrics = _metric_table(section.metrics) if section.metrics else ""
    tables = "".join(_table(table) for table in section.tables)
    drawn = "".join(_figure(caption, figure) for caption, figure in section.figures)
    inside = f"<h2>{_escape(section.title)}</h2>{paragraphs}{metrics}{tables}{drawn}"
    return f'<section id="section-{number}">{inside}</section>\n'


_ARROWS = {"lower": ("↓", "lower is better"), "higher": ("↑", "higher is better"), "": ("", "")}


def _metric_table(metrics: Mapping[str, float]) -> str:
    known = [key for key in METRICS if key in metrics]
    rows = []
    for key in known + [key for key in metrics if key not in METRICS]:
        metric = METRICS.get(key, Metric(key, "", ""))
        arrow, meaning = _ARROWS[metric.direction]
        name = f'<span title="{_escape(metric.explanation)}">{_escape(metric.label)}</span>'
        if metric.explanation:
            name = (
                f"<details><summary>{name}</summary><p>{_escape(metric.explanation)}"
                f" <code>{_escape(key)}</code></p></details>"
            )
        mark = f'<abbr title="{meaning}">{arrow}</abbr>' if arrow else ""
        rows.append(
            f'<tr><th scope="row">{name}</th><td class="number">{number_html(metrics[key])}</td>'
            f"<td>{_escape(metric.unit)}</td><td>{mark}</td></tr>"
        )
    head = '<tr><th scope="col">measure</th><th scope="col" class="number">value</th><th scope="col">unit</th>'
    head += '<th scope="col"><abbr title="which direction is better">better</abbr></th></tr>'
    note = "<p class=note>Open a measure for what it means, what a good value is, and what it cannot say.</p>"
    inside = f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="metrics">{inside}</table></div>{note}'


def number_html(value: object) -> str:
    """:func:`format_number` as HTML; text is escaped."""
    text = _escape(format_number(value))
    text = re.sub(r"× 10\^(-?\d+)", lambda found: f"× 10<sup>{found[1].replace('-', '−')}</sup>", text)
    return text.replace("-", "−") if isinstance(value, int | float) else text


def _table(table: TableData) -> str:
    def cell(value: object) -> str:
        return (
            f'<td class="number">{number_html(value)}</td>'
            if isinstance(value, int | float)
            else f"<td>{number_html(value)}</td>"
        )

    numeric = [
        bool(table.rows) and all(isinstance(row[i], int | float) for row in table.rows)
        for i in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{" class=number" if right else ""}>{_escape(name)}</th>'
        for name, right in zip(table.columns, numeric)
    )
    rows = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in table.rows)
    caption = f"<caption>{_escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file, as reports and figures/ hold it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return buffer.getvalue()


def _figure(caption: str, figure: Figure | bytes) -> str:
    png = figure if isinstance(figure, bytes) else figure_png(figure)
    data = base64.b64encode(png).decode("ascii")
    # Small figures are not blown up; on a phone, wide ones scroll sideways rather than shrink past reading.
    width = round(int.from_bytes(png[16:20], "big") * 96 / _DPI)  # pixels across, from the PNG header
    return (
        f'<figure><div class="scroll"><img src="data:image/png;base64,{data}" alt="{_escape(caption)}" '
        f'style="min-width:{min(width, 480)}px;max-width:{width}px"></div>'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


# Of every page that is written here.
CSS = """
:root{--ink:#1f2430;--soft:#5b6474;--line:#dfe3e8;--page:#fbfbfa;--card:#ffffff;--accent:#0067a3;--wash:#eef3f8}
@media (prefers-color-scheme:dark){:root{--ink:#e7e9ee;--soft:#a3abba;--line:#363c48;--page:#15181e;--card:#1d2129;
--accent:#73b9ea;--wash:#232a35}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:70rem;color:var(--ink);background:var(--page);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.brand{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em;font-size:.85rem}
h1{margin:.1rem 0 .6rem;font-size:1.8rem;line-height:1.2;font-weight:650;overflow-wrap:anywhere}
h2{margin:0 0 .7rem;font-size:1.25rem;font-weight:650}
p{max-width:46rem;margin:.5rem 0;overflow-wrap:anywhere}
.summary{margin:0;padding:0;list-style:none;color:var(--soft)}
.summary li{overflow-wrap:anywhere}
.opening{border-left:4px solid var(--accent)}
.opening ul{margin:0;padding-left:1.1rem;max-width:48rem}
.opening li{margin:.35rem 0;overflow-wrap:anywhere}
nav{margin:1.4rem 0 .4rem;padding:.7rem 1rem;background:var(--wash);border-radius:8px}
nav ol{margin:0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.4rem}
a{color:var(--accent);text-underline-offset:.2em}
section{margin:1.4rem 0;padding:1.3rem 1.4rem;background:var(--card);border:1px solid var(--line);border-radius:10px;
scroll-margin-top:1rem}
.scroll{overflow-x:auto}
sup{line-height:0}
table{border-collapse:collapse;margin:.6rem 0;font-size:.94rem}
table.metrics{width:100%}
caption{text-align:left;color:var(--soft);padding-bottom:.35rem}
th,td{padding:.38rem .9rem .38rem 0;text-align:left;vertical-align:top;font-weight:400;
border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-size:.85rem;white-space:nowrap}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
tbody td.number{font-weight:600}
abbr{text-decoration:none;cursor:help}
details summary{cursor:pointer}
details p{margin:.3rem 0 .2rem 1rem;color:var(--soft);font-size:.92em}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.note,figcaption{color:var(--soft);font-size:.9rem}
figure{margin:1.3rem 0 .4rem}
img{display:block;width:100%;height:auto;background:#fff;border-radius:8px;padding:.4rem}
figcaption{margin-top:.45rem;max-width:46rem}
@media (max-width:36rem){body{padding:1.1rem .7rem 3rem}section{padding:1rem .9rem}h1{font-size:1.45rem}
table{font-size:.88rem}th,td{padding-right:.6rem}}
@media print{body{max-width:none}nav{display:none}section{break-inside:avoid-page;border:0;padding:0}}
"""
