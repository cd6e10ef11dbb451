"""A page of a report: one HTML file that holds everything it shows; no script, no font, no image from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from connector.files import write_text
from connector.report.glossary import METRICS, Metric
from connector.report.numbers import format_number
from connector.report.verdict import Verdict

_DPI = 160
_MARGIN = 0.1  # inches
_HALF = 7.0  # inches: figures that are narrower stand two in a row
_COMPRESSION = 2  # of zlib: half the time of its default, a tenth larger
_WHITE = 0xFFFFFFFF  # opaque
ARROWS = {"lower": "↓", "higher": "↑"}
MARKS = {"good": "✓", "caution": "!", "warning": "⚠", "none": "⚠"}  # beside the words, of verdicts and cautions


@dataclass(frozen=True)
class TableData:
    """A table: column headings (units in them), rows of cells (text or numbers) and a caption."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def numeric(self, column: int) -> bool:
        """Whether the column holds numbers alone."""
        return bool(self.rows) and all(isinstance(row[column], int | float) for row in self.rows)


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        title: heading, also in the table of contents.
        text: paragraphs, separated by empty lines; plain text, folded under the figures.
        figures: (caption, figure) pairs; a figure may be given as the bytes of :func:`figure_png`.
        tables: see TableData.
        metrics: key -> value, shown as a table with the explanations of METRICS.
        folded: the whole section is closed at first.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[str, Figure | bytes]] = ()
    tables: Sequence[TableData] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    folded: bool = False

    @property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]

    @property
    def explained(self) -> list[tuple[str, Metric, float]]:
        """Key, explanation and value of each metric: those of METRICS in its order, then others under their keys."""
        keys = [key for key in METRICS if key in self.metrics]
        keys += [key for key in self.metrics if key not in METRICS]
        return [(key, METRICS.get(key, Metric(key, "", "")), self.metrics[key]) for key in keys]

    @property
    def drawn(self) -> list[_Drawn]:
        """The figures as a page shows them: wide ones in a row of their own, others two in a row, the last one by itself
        where their number is odd."""
        shown = [_drawn(caption, figure) for caption, figure in self.figures]
        halves = [i for i, one in enumerate(shown) if one.place == "half"]
        if len(halves) % 2:
            shown[halves[-1]] = shown[halves[-1]]._replace(place="alone")
        return shown


def write_report(
    path: Path | str, title: str, summary: Sequence[str], sections: Sequence[Section], verdict: Verdict | None = None
) -> Path:
    """Writes the page whole: a reader finds the old report or the new one, never half of one.

    Args:
        path: of the file; its directory exists.
        title: heading of the page.
        summary: lines under it, plain text.
        sections: in order.
        verdict: what was found, and what to beware of, before all else.

    Returns:
        the path.
    """
    write_text(Path(path), render_report(title, summary, sections, verdict))
    return Path(path)


def render_report(
    title: str, summary: Sequence[str], sections: Sequence[Section], verdict: Verdict | None = None
) -> str:
    """The HTML of :func:`write_report` as a string."""
    template = environment().get_template("report/page.html.j2")
    return template.render(title=title, summary=summary, sections=sections, verdict=verdict)


@cache
def environment() -> Environment:
    """The package's templates by their path in it, such as "report/page.html.j2"; what they print is escaped.

    Filters: ``number`` (:func:`number_html`), ``names`` (:func:`names_html`).
    """
    loader = PackageLoader("connector", "")
    found = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    found.filters |= {"number": number_html, "names": names_html}
    found.globals |= {"arrows": ARROWS, "marks": MARKS}
    return found


def number_html(value: object) -> Markup:
    """:func:`format_number` as HTML; text is escaped."""
    text = html.escape(format_number(value))
    text = re.sub(r"× 10\^(-?\d+)", lambda found: f"× 10<sup>{found[1].replace('-', '−')}</sup>", text)
    return Markup(text.replace("-", "−") if isinstance(value, int | float) else text)


def names_html(text: str) -> Markup:
    """A sentence as HTML; names of files' keys and options between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)))


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file on white, as reports and figures/ hold it, with ``_MARGIN`` about what is drawn."""
    buffer = io.BytesIO()
    if figure.get_layout_engine() is None:  # what is drawn may reach beyond the figure
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight", pad_inches=_MARGIN)
        return buffer.getvalue()
    # Laid out and drawn once: savefig would do so once more, only to learn where things are.
    figure.set_facecolor("white")
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn, margin = np.asarray(canvas.buffer_rgba()), round(_MARGIN * _DPI)
    pixels, inked = drawn[..., :3], drawn.view(np.uint32)[..., 0] != _WHITE  # all channels of a pixel at once
    rows, columns = (np.flatnonzero(inked.any(across)) for across in (1, 0))
    if len(rows):
        pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    framed = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    Image.fromarray(framed).save(buffer, "png", compress_level=_COMPRESSION, dpi=(_DPI, _DPI))
    return buffer.getvalue()


def figure_file(figure: Figure, ending: str) -> bytes:
    """The figure as a vector file, "pdf" or "svg", with fonts that can be edited; the same bytes for the same figure."""
    buffer = io.BytesIO()
    date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}[ending]
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "connector"}):
        figure.savefig(
            buffer, format=ending, dpi=300, facecolor="white", bbox_inches="tight", pad_inches=_MARGIN, metadata=date
        )
    return buffer.getvalue()


class _Drawn(NamedTuple):
    """Caption, PNG as base64, and place: "wide", "half" or "alone"."""

    caption: str
    data: str
    place: str


def _drawn(caption: str, figure: Figure | bytes) -> _Drawn:
    png = figure if isinstance(figure, bytes) else figure_png(figure)
    inches = int.from_bytes(png[16:20], "big") / _DPI  # across, from the PNG header
    return _Drawn(caption, base64.b64encode(png).decode("ascii"), "half" if inches < _HALF else "wide")


# Of every page that is written here.
CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
