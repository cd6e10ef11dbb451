"""What stands under each heading of a report."""

from __future__ import annotations

from collections.abc import Mapping

from connector.report import determined, nulls
from connector.report.glossary import BASELINES, ESTIMATE, GRANTS, NO_TIMES
from connector.report.numbers import counted, format_number, percent
from connector.report.opening import LEVEL, Findings, relative_sigma

_SLOW = 20.0  # tau: a direction in which states rest for as long as most trials last
ESTIMATED = "How nu, the mean output weight of neurons with given loadings, was estimated, and what the estimate found"


def dynamics(f: Findings) -> str:
    """What the truth and the projected network settle on."""
    said = [] if f.truth_settles_on is None else [f"The true mean field has {f.truth_settles_on}."]
    if f.settles_on is not None:
        said.append(
            f"The projected network of {f.n_sampled} neurons has {f.settles_on}, where simulations end that start in and around "
            "the visited region. One that lies where no trial went, an open square in the figure, is extrapolation."
        )
    else:
        said.append(
            "This recording is driven by inputs. A count of fixed points from such data proves nothing by itself: "
            "what states do long after the trials' end is extrapolation."
        )
    if (of_trained := trained_network(f.metrics)) is not None:
        said.append(of_trained)
    said.append(
        "A sampled network of finite size misses the field of the infinite one by chance; projection corrects n by the "
        "smallest change that restores the recurrent drive at the recorded states."
    )
    return "\n\n".join(said)


def trained_network(metrics: Mapping[str, float]) -> str | None:
    """The trained network beside its fit: what of it acts, where both settle, whether a sampled network does the task."""
    if (dimensions := metrics.get("lrrnn/trained_acting_dimensions")) is None:
        return None
    acting, by_chance = (metrics[f"lrrnn/trained_acting_{name}"] for name in ("weights", "by_chance"))
    said = (
        f"The recurrent drive of the trained network lies in {counted(round(dimensions), 'dimension')} (99 % of its variance on the "
        f"visited states). {percent(acting)} of its squared weights act there, of random weights {percent(by_chance)} would; the "
        "rest is spare: the recorded activity would be nearly the same without it."
    )
    own, fitted = (round(metrics[f"lrrnn/trained_stable_points{of}"]) for of in ("", "_of_fit"))
    said += f" The network has {counted(own, 'stable fixed point')} in reach of the visited states, the low-rank fit {fitted}"
    if (apart := metrics.get("lrrnn/trained_stable_points_apart")) is not None:
        said += f", at most {format_number(apart)} standard deviations of the rates apart"
    said += "."
    if (slowest := metrics.get("lrrnn/trained_slowest", 0.0)) > _SLOW:
        said += (
            f" About one of them states move with a time constant of {format_number(slowest)} tau: within a trial they rest along a "
            "line or a ring, and how many of its points are stable in the end is chance."
        )
    if (given := metrics.get("dynamics/task_r2")) is not None:
        said += f" A projected network of sampled neurons gives the outputs of held-out trials with R² {given:.3f}"
        if "dynamics/task" in metrics:
            said += (
                f" and solves the task to {format_number(metrics['dynamics/task'])}, the trained one to "
                f"{format_number(metrics['dynamics/task_trained'])} (1 is perfect)"
            )
        said += "."
    return said


def connectivity(f: Findings) -> str:
    """What of the distribution of weights is inferred, and what chosen."""
    said = [
        "The dynamics fix the distribution of the loadings, read off the recorded neurons, and the mean output weight "
        "nu of a neuron with given loadings. They say nothing about the spread of n around nu: wherever a figure shows "
        "a spread, it is the stated sigma, the maximum-entropy choice. "
        f"Here {relative_sigma(f.sigma, f.spread)}."
    ]
    if f.odd:
        said.append(
            f"With the odd nonlinearity {f.activation}, no bias and no input, a neuron (m, n) and a neuron (-m, -n) act alike: "
            "only the odd part of nu can be estimated, and what is reported is the odd one. An even part would be invisible."
        )
    p = f.metrics.get("connectivity/cell_types_p")
    if p is not None:
        verdict = (
            "the loadings, if they are right, are not those of one Gaussian or Student-t population, which is a matter of their "
            "shape and no evidence for cell types by itself"
            if p < LEVEL
            else "the loadings have the shape of one such population"
        )
        said.append(
            "Shape of the recorded neurons' loadings, against re-simulated single populations: "
            f"p = {format_number(p)}; {verdict}. Clusters seen in (m, n) are no evidence: a curved nu alone makes them."
        )
    return "\n\n".join(said)


def estimate(summary: Mapping[str, object], *, leave_out: tuple[str, ...]) -> list[tuple[str, object, str]]:
    """Name, value and meaning of what an estimate of nu says of itself, but for the keys ``leave_out``."""
    rows = []
    for key, value in summary.items():
        if isinstance(value, list) and value and all(isinstance(x, float) for x in value):
            value = ", ".join(format_number(x) for x in value)
        if isinstance(value, int | float | str) and key not in leave_out:
            label, meaning = ESTIMATE.get(key, (key.replace("_", " "), ""))
            rows.append((label, value, meaning))
    return rows


def data_determine(f: Findings) -> str:
    """What the data determine about nu, and what the prior."""
    if f.diagnosis is None:
        return "The published ridge makes no statement about its error."
    why = nulls.nothing_found(f.metrics)
    said = determined.sentences(f.diagnosis)
    if why is not None:
        said.insert(
            0,
            f"Caution: {why}: {nulls.NO_FINDING}. What stands below is what the estimate takes for true of such a fit.",
        )
    return "\n\n".join(said)


def fit(f: Findings) -> str:
    """Which baseline the spikes were fitted with, and how to compare it with others."""
    if f.baseline is None:
        return ""
    said = (
        "A baseline is what each neuron fires apart from the latent state; it enters the model beside it. This run "
        f"fitted with the {f.baseline} baseline: {GRANTS[f.baseline]}."
    )
    if f.baseline_missing:
        said += f" lrrnn.baseline asks for another one, which {NO_TIMES}."
    if f.other_baseline is not None:
        said += (
            f" Measures named after the {f.other_baseline} baseline score the same fitted model with it instead: "
            f"{BASELINES[f.other_baseline]}. Compare models on equal baselines only: the local one uses that test "
            "trials lie between training trials."
        )
    return said
