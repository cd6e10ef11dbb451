"""The report is well-formed, holds everything it shows, escapes what users wrote, and appears whole or not at all."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from connector import figures
from connector.connectivity.nu.regression import fit_conditional_mean
from connector.connectivity.nu.trajectories import fit_trajectories
from connector.dynamics import Network
from connector.report.cautions import parted
from connector.report.glossary import BASELINES, ESTIMATE, METRICS
from connector.report.numbers import format_number
from connector.report.page import Section, TableData, figure_file, figure_png, names_html, render_report, write_report
from connector.report.verdict import Verdict
from connector.types import Latents

VOID = {"meta", "img", "br", "hr", "link", "input"}
CONTRACT = (
    "connectivity/sinkhorn", "connectivity/squared_error", "connectivity/dissimilarity", "dynamics/attractors_kept",
    "dynamics/field_error", "dynamics/field_error_projected", "lrrnn/val_loss", "lrrnn/bits_per_spike",
    "lrrnn/bits_per_spike_prior", "lrrnn/psth_r2_evidence", "lrrnn/psth_r2_choice", "lrrnn/choice_auc",
    "timing/lrrnn_seconds", "timing/loadings_seconds", "timing/outputs_seconds",
)  # fmt: skip


class Page(HTMLParser):
    """Checks that tags nest, and collects what a page refers to and says."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.ids, self.tags, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [attributes[k] for k in ("src", "href", "data", "srcset", "action") if k in attributes]
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def sections():
    figure = figures.tails({"true": torch.arange(1.0, 50.0)})
    return [
        Section(
            "Result <b>bold</b> & more",
            "First paragraph.\n\nSecond <script>alert(1)</script> paragraph.",
            figures=[('Caption with "quotes" & <tags>', figure)],
            metrics={"connectivity/dissimilarity": 0.0123, "dynamics/attractors_kept": 1.0, "own/measure": 3e-7},
        ),
        Section(
            "Tables",
            tables=[
                TableData(
                    ("name", "rate (Hz)"), [("a<b", 1.5), ("c", -2e-6), ("1.00 × 10^-5, 2.00 × 10^3", 1.0)], "A caption"
                )
            ],
        ),
    ]


@pytest.fixture(scope="module")
def page(sections):
    return render_report("My run <1>", ["400 trials", "file a&b.npz"], sections)


def test_page_parses_and_refers_to_nothing_outside(page):
    parsed = Page(page)
    assert parsed.tags.count("img") == 1
    for link in parsed.links:
        assert link.startswith(("#", "data:image/png;base64,"))
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert not re.search(r"url\(|@import|https?://", page)


def test_contents_point_at_the_sections(page):
    parsed = Page(page)
    assert [link[1:] for link in parsed.links if link.startswith("#")] == ["section-1", "section-2"]
    assert parsed.ids == ["section-1", "section-2"]


def test_names_between_backticks_are_code_and_all_else_is_text():
    assert names_html("set `a<b` to <1") == "set <code>a&lt;b</code> to &lt;1"


def test_what_users_wrote_is_escaped_and_shown(page):
    text = Page(page).text
    assert "My run <1>" in text
    assert "Result <b>bold</b> & more" in text
    assert "Second <script>alert(1)</script> paragraph." in text
    assert "file a&b.npz" in text
    assert "a<b" in text
    assert "<b>" not in page


@pytest.mark.parametrize("layout", ["constrained", "compressed", None])
def test_a_picture_has_all_that_is_drawn_within_a_margin(layout):
    figure = Figure(figsize=(5, 3), layout=layout)
    axis = figure.subplots()
    axis.imshow([[0, 1], [1, 0]])
    axis.set(xlabel="below", ylabel="two\nlines", title="above")
    picture = np.asarray(Image.open(io.BytesIO(figure_png(figure))).convert("RGB")).astype(int)
    inked = picture.min(-1) < 255
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    margins = (rows[0], len(inked) - 1 - rows[-1], columns[0], inked.shape[1] - 1 - columns[-1])
    assert max(abs(margin - 16) for margin in margins) <= 8  # of a tenth of an inch
    drawn = io.BytesIO()  # nothing was cut: the same number of dark pixels as matplotlib has when it leaves room
    figure.savefig(drawn, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.5)
    whole = np.asarray(Image.open(drawn).convert("RGB")).min(-1) < 128
    assert (picture.min(-1) < 128).sum() == pytest.approx(whole.sum(), rel=0.02)


def test_embedded_figure_is_the_png(page):
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page).group(1)
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")


def test_metrics_come_with_label_unit_and_explanation_and_unknown_ones_with_their_key(page):
    text = Page(page).text
    for key in ("connectivity/dissimilarity", "dynamics/attractors_kept"):
        assert METRICS[key].label in text
        assert METRICS[key].explanation in text
    assert "0.0123" in text
    assert "own/measure" in text
    assert "1.00 × 10<sup>−5</sup>, 2.00 × 10<sup>3</sup>" in page
    assert "3.00 × 10" in text


def test_every_promised_metric_is_explained():
    assert set(CONTRACT) <= set(METRICS)
    for key, metric in METRICS.items():
        assert re.fullmatch(r"(connectivity|dynamics|lrrnn|loadings|outputs|timing)/\w+", key)
        assert metric.direction in ("lower", "higher", "")
        assert metric.explanation.endswith(".")
        assert metric.label[0].isupper()
    labels = [metric.label for metric in METRICS.values()]
    assert len(labels) == len(set(labels))


def test_metrics_stand_by_themselves_and_have_units():
    for key, metric in METRICS.items():
        assert metric.unit, key
        for text in (metric.label, metric.explanation):
            assert not re.search(r"^The same\b|\b(next|previous) (row|line)\b|\brow above\b", text), key
        assert not re.search(r"\b(of that|this|same|above)\b", metric.label), key
    for name in BASELINES:
        assert BASELINES[name] in METRICS[f"lrrnn/bits_per_spike_{name}"].explanation


def recording_of_a_line():
    """Latents that relax along one dimension, read by a few neurons: enough for every estimator of nu."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    network = Network(m, 1.2 * m, alpha=0.1, activation="tanh")
    z = network.simulate(torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None], 30)
    return Latents(z, torch.full((20,), z.shape[1]), 0.1), network.loadings


def test_every_quantity_of_an_estimate_of_nu_is_explained():
    latents, loadings = recording_of_a_line()
    z, u, y = latents.samples()
    fits = [
        fit_conditional_mean(z, u, y, loadings, activation="tanh", estimator=estimator, regularizer=given,
                             validation=(z, u, y))
        for estimator in ("ridge", "gaussian_process") for given in (None, "validation")
    ]  # fmt: skip
    fits.append(fit_trajectories(latents, loadings, activation="tanh"))
    found = set().union(*(fit.summary for fit in fits))
    assert {"estimator", "determined_modes", "predicted_error", "validation_r2"} <= found
    assert found - {"warnings"} <= set(ESTIMATE)
    labels = [label for label, _ in ESTIMATE.values()]
    assert len(labels) == len(set(labels))
    # Two numbers of one name would be read as a contradiction.
    assert not set(labels) & {metric.label for metric in METRICS.values()}


def test_the_opening_stands_before_the_contents():
    caution = parted("Warning: Rates <fail>. What to do: mend them.")
    said = Verdict("warning", "Read the warnings", [("Fit", "It fits <well>.")], [caution], ["p = 0.4."])
    page = render_report("Run", ["400 trials"], [Section("Part")], said)
    text = Page(page).text
    for part in ("It fits <well>.", "Read the warnings", "Warning", "Rates <fail>.", "What to do", "Mend them."):
        assert part in text
    assert 'class="verdict warning"' in page
    assert page.index("It fits") < page.index("<aside") < page.index("p = 0.4.") < page.index("<nav")
    assert "p = 0.4." in page[page.index("<details") : page.index("</details")]  # folded


def test_details_are_folded_and_figures_fill_the_width(page):
    shown = re.sub(r"<details.*</details>", "", page, flags=re.DOTALL)
    assert "First paragraph" not in shown
    assert "<figure" in shown
    small, wide = (Figure(figsize=(inches, 2)) for inches in (4, 10))
    places = [one.place for one in Section("", figures=[("", x) for x in (small, wide, small, small)]).drawn]
    assert places == ["half", "wide", "half", "alone"]


def test_a_vector_file_is_the_same_each_time_and_keeps_its_text():
    figure = figures.tails({"true": torch.arange(1.0, 50.0)})
    pdf, svg = figure_file(figure, "pdf"), figure_file(figure, "svg")
    assert pdf.startswith(b"%PDF")
    assert b"Tails of the connectivity" in svg
    assert (pdf, svg) == (figure_file(figure, "pdf"), figure_file(figure, "svg"))


def test_light_and_dark_and_phone(page):
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.0, "0"), (0.01234, "0.0123"), (1234.5, "1\u202f234"), (2e-7, "2.00 × 10^-7"), (3, "3"),
     (float("nan"), "not defined"), (True, "yes"), ("free", "free"), (12345, "12\u202f345")],
)  # fmt: skip
def test_numbers_as_people_write_them(value, text):
    assert format_number(value) == text


def test_written_whole_or_not_at_all(tmp_path, sections, monkeypatch):
    path = write_report(tmp_path / "report.html", "Run", [], sections)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, "Other", [], sections)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_empty_report_is_still_a_page():
    assert "Nothing yet" in Page(render_report("Nothing yet", [], [])).text
