"""What a run ends with, written: network.npz, figures and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from connector.analysis.attractors import find_attractors
from connector.data.modules import RecordingDataModule
from connector.files import atomic
from connector.lrrnn.spikes.baselines import NO_TIMES
from connector.report.glossary import BASELINES, ESTIMATE, GRANTS, WORDS
from connector.report.opening import LEVEL, Findings, opening, relative_sigma
from connector.report.page import Section, TableData, figure_png, format_number, write_report
from connector.runs.options import Options
from connector.runs.store import RunStore, write_network
from connector.stages.progress import StepProgress
from connector.stages.results import _OF_DIAGNOSIS, N_NEURONS, Results


def summarise(
    options: Options,
    store: RunStore,
    data: RecordingDataModule,
    stage_metrics: Mapping[str, float],
    lines: list[str],
    progress: StepProgress | None = None,
) -> tuple[dict[str, float], dict[str, Path], list[str]]:
    """Measure, write network.npz and, with the option ``report``, figures/ and report.html.

    Args:
        stage_metrics: of the stages, for the report; lines: about the recording, for its head.
        progress: told of each step.

    Returns:
        the metrics, the figures' files by name, and cautions for the reader.
    """
    progress = StepProgress("results", None) if progress is None else progress
    progress.start("networks")
    results = Results(options, store, data)
    measures, figures_due = results.measures(), results.figures() if options.report else {}
    progress.expect(len(measures) + len(figures_due) + 1 + options.report)
    write_network(store.path / "network.npz", results.network, 0.0)
    metrics, drawn, files = {}, {}, {}
    for name, measure in measures.items():
        progress.start(name)
        metrics |= measure()
    results.note_signs({**stage_metrics, **metrics})
    for name, draw in figures_due.items():
        progress.start(f"figure {name}")
        caption, figure = draw()
        drawn[name] = caption, figure_png(figure)
        files[name] = store.figures / f"{name}.png"
        with atomic(files[name]) as aside:
            aside.write_bytes(drawn[name][1])
    if options.report:
        progress.start("report")
        _report(results, {**stage_metrics, **metrics}, drawn, lines)
    return metrics, files, results.cautions()


def _report(results: Results, metrics: Mapping[str, float], drawn: dict, lines: list[str]) -> None:
    store, options = results.store, results.options

    def part(prefix: str) -> dict[str, float]:
        return {key: value for key, value in metrics.items() if key.startswith(prefix)}

    found = results.findings(metrics)
    sections = [
        Section("The words", tables=[TableData(("word", "what it is"), WORDS)]),
        Section("Dynamics", _dynamics_text(results), [drawn["flow_field"]], metrics=part("dynamics/")),
        Section(
            "Connectivity",
            _connectivity_text(results, metrics),
            [drawn[name] for name in ("loadings", "conditional_mean", "tails") if name in drawn],
            [_estimate_table(results)],
            {k: v for k, v in part("connectivity/").items() if k not in _OF_DIAGNOSIS},
        ),
        Section(
            "What the data determine",
            "The published ridge makes no statement about its error."
            if results.diagnosis is None
            else "\n\n".join(results.diagnosis.sentences()),
            [drawn[name] for name in ("intervals",) if name in drawn],
            metrics={k: v for k, v in metrics.items() if k in _OF_DIAGNOSIS},
        ),
        Section(
            "Fit to the activity",
            _fit_text(found),
            [drawn[name] for name in ("rates", "psths", "latents") if name in drawn],
            metrics=part("lrrnn/"),
        ),
        Section("Training", "", [drawn["losses"]], metrics=part("timing/") | part("loadings/") | part("outputs/")),
    ]
    head = [*lines, *results.cautions()]
    title = f"Connectivity of {options.experiment_name}"
    write_report(store.path / "report.html", title, head, sections, opening(found))


def _fit_text(found: Findings) -> str:
    if found.baseline is None:
        return ""
    said = (
        "A baseline is what each neuron fires apart from the latent state; it enters the model beside it. This run "
        f"fitted with the {found.baseline} baseline: {GRANTS[found.baseline]}."
    )
    if found.baseline_missing:
        said += f" lrrnn.baseline asks for another one, which {NO_TIMES}."
    if found.other_baseline is not None:
        said += (
            f" Measures named after the {found.other_baseline} baseline score the same fitted model with it instead: "
            f"{BASELINES[found.other_baseline]}. Compare models on equal baselines only: the local one uses that test "
            "trials lie between training trials."
        )
    return said


def _dynamics_text(results: Results) -> str:
    found = find_attractors(
        results.projected, None if results.reference is None else results.reference.starts, u=None
    ) if results.inputs.latents.inputs is None else None  # fmt: skip
    said = []
    if results.reference is not None:
        said.append(f"The true mean field has {results.reference}.")
    if found is not None:
        said.append(
            f"The projected network of {N_NEURONS} neurons has {found}, where simulations end that start in and around the "
            "visited region. One that lies where no trial went, an open square in the figure, is extrapolation."
        )
    else:
        said.append(
            "This recording is driven by inputs. A count of fixed points from such data proves nothing by itself: "
            "what states do long after the trials' end is extrapolation."
        )
    said.append(
        "A sampled network of finite size misses the field of the infinite one by chance; projection corrects n by the "
        "smallest change that restores the recurrent drive at the recorded states."
    )
    return "\n\n".join(said)


def _connectivity_text(results: Results, metrics: Mapping[str, float]) -> str:
    said = [
        "The dynamics fix the distribution of the loadings, read off the recorded neurons, and the mean output weight "
        "nu of a neuron with given loadings. They say nothing about the spread of n around nu: wherever a figure shows "
        "a spread, it is the stated sigma, the maximum-entropy choice. "
        f"Here {relative_sigma(results.sigma, results.spread)}."
    ]
    if results._only_odd():
        said.append(
            f"With the odd nonlinearity {results.inputs.activation}, no bias and no input, a neuron (m, n) and a neuron (-m, -n) act alike: "
            "only the odd part of nu can be estimated, and what is reported is the odd one. An even part would be invisible."
        )
    p = metrics.get("connectivity/cell_types_p")
    if p is not None:
        verdict = (
            "the loadings, if they are right, are not those of one Gaussian or Student-t population: there is evidence for "
            "cell types"
            if p < LEVEL
            else "the loadings give no evidence for more than one population"
        )
        said.append(
            f"Test for cell types on the recorded neurons' loadings, against re-simulated single populations: "
            f"p = {format_number(p)}; {verdict}. Clusters seen in (m, n) are no evidence: a curved nu alone makes them."
        )
    return "\n\n".join(said)


def _estimate_table(results: Results) -> TableData:
    rows = []
    for key, value in results.distribution.summary.items():
        if f"connectivity/{key}" in _OF_DIAGNOSIS and results.diagnosis is not None:
            continue  # said once, of the sampled neurons, in the section on what the data determine
        if isinstance(value, list) and value and all(isinstance(x, float) for x in value):
            value = ", ".join(format_number(x) for x in value)
        if isinstance(value, int | float | str):
            label, meaning = ESTIMATE.get(key, (key.replace("_", " "), ""))
            rows.append((label, value, meaning))
    caption = (
        "How nu, the mean output weight of neurons with given loadings, was estimated, and what the estimate found"
    )
    return TableData(("quantity", "value", "what it is"), rows, caption)
