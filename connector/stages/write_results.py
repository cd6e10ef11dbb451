"""What a run ends with, written: network.npz, figures and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from connector.analysis.trained_network import BesideNetwork
from connector.data.modules import RecordingDataModule
from connector.files import atomic
from connector.report import sections
from connector.report.glossary import WORDS
from connector.report.page import Section, TableData, figure_file, figure_png, write_report
from connector.report.verdict import verdict
from connector.runs.options import Options
from connector.runs.store import RunStore, write_network
from connector.stages.drawing import CONNECTIVITY, DETERMINED, DYNAMICS, FIGURES, FIT, TRAINING, figures_due
from connector.stages.progress import StepProgress
from connector.stages.results import Results

GLOSSARY = "Words of this report"
_OF_DIAGNOSIS = ("connectivity/determined_modes", "connectivity/predicted_error")


def summarise(
    options: Options,
    store: RunStore,
    data: RecordingDataModule,
    stage_metrics: Mapping[str, float],
    lines: list[str],
    progress: StepProgress | None = None,
    beside: BesideNetwork | None = None,
) -> tuple[dict[str, float], dict[str, Path], list[str]]:
    """Measure, write network.npz, metrics.json and then, with the option ``report``, figures/ and report.html.

    Args:
        stage_metrics: of the stages, for the report; lines: about the recording, for its head.
        progress: told of each step; beside: of :func:`connector.stages.results.beside_network`.

    Returns:
        the metrics, the figures' files by name, and cautions for the reader.
    """
    progress = StepProgress("results", None) if progress is None else progress
    progress.start("networks")
    results = Results(options, store, data, beside)
    measures, to_draw = results.measures(), figures_due(results) if options.report.draw else {}
    progress.expect(len(measures) + len(to_draw) + 1 + options.report.draw)
    write_network(store.path / "network.npz", results.network, 0.0, results.inputs.latents.input_kind)
    metrics, drawn, files = {}, {}, {}
    for name, measure in measures.items():
        progress.start(name)
        metrics |= measure()
    results.note_signs({**stage_metrics, **metrics})
    store.write_metrics({**stage_metrics, **metrics})  # before what takes as long again to draw
    for name, of_report in to_draw.items():
        progress.start(f"figure {name}")
        caption, figure = of_report.draw(results)
        drawn[name] = caption, figure_png(figure)
        files[name] = store.figures / f"{name}.png"
        for ending in options.report.formats:
            with atomic(files[name].with_suffix(f".{ending}")) as aside:
                aside.write_bytes(drawn[name][1] if ending == "png" else figure_file(figure, ending))
    if options.report.draw:
        progress.start("report")
        _report(results, {**stage_metrics, **metrics}, drawn, lines)
    return metrics, files, results.cautions()


def _report(
    results: Results, metrics: Mapping[str, float], drawn: Mapping[str, tuple[str, bytes]], lines: list[str]
) -> None:
    def part(*prefixes: str) -> dict[str, float]:
        return {key: value for key, value in metrics.items() if key.startswith(prefixes) and key not in _OF_DIAGNOSIS}

    found = results.findings(metrics)
    # said once, of the sampled neurons, in the section on what the data determine
    said_there = () if results.diagnosis is None else tuple(key.split("/")[1] for key in _OF_DIAGNOSIS)
    rows = sections.estimate(results.distribution.summary, leave_out=said_there)
    estimate = TableData(("quantity", "value", "what it is"), rows, sections.ESTIMATED)
    of_diagnosis = {key: value for key, value in metrics.items() if key in _OF_DIAGNOSIS}
    contents = {
        DYNAMICS: (sections.dynamics(found), [], part("dynamics/")),
        CONNECTIVITY: (sections.connectivity(found), [estimate], part("connectivity/")),
        DETERMINED: (sections.data_determine(found), [], of_diagnosis),
        FIT: (sections.fit(found), [], part("lrrnn/")),
        TRAINING: ("", [], part("timing/", "loadings/", "outputs/")),
    }
    page = []
    for title, (text, tables, measures) in contents.items():
        pictures = [picture for name, picture in drawn.items() if FIGURES[name].section == title]
        page.append(Section(title, text, pictures, tables, measures))
    page.append(Section(GLOSSARY, tables=[TableData(("word", "meaning"), WORDS)], folded=True))
    title = f"Connectivity of {results.data.recording.name}"
    write_report(results.store.path / "report.html", title, lines, page, verdict(found, results.cautions()))
