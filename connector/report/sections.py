"""What stands under each heading of a report."""

from __future__ import annotations

from collections.abc import Mapping

from connector.report import causes, determined, nulls
from connector.report.glossary import BASELINES, ESTIMATE, GRANTS, NO_TIMES
from connector.report.numbers import counted, format_number, percent, rough
from connector.report.opening import LEVEL, Findings, relative_sigma

_SLOW = 20.0  # tau: a direction in which states rest for as long as most trials last
ESTIMATED = "How nu, the mean output weight of neurons with given loadings, was estimated, and what was found"


def dynamics(f: Findings) -> str:
    """What the truth and the projected network settle on."""
    said = [] if f.truth_settles_on is None else [f"The true mean field has {f.truth_settles_on}."]
    if f.settles_on is not None:
        said.append(
            f"The projected network of {f.n_sampled} neurons has {f.settles_on}: simulations that start in and around the visited "
            "region end there. An attractor where no trial went (open square in the figure) is extrapolation."
        )
    else:
        said.append(
            "Inputs drive this recording. The fixed points in the figure hold for inputs at their mean, those of the verdict for "
            "inputs at zero. What states do long after the trials end is extrapolation."
        )
    if (of_trained := trained_network(f.metrics)) is not None:
        said.append(of_trained)
    said.append(
        "By chance a finite sampled network misses the field of the infinite one. Projection corrects this: it is the smallest "
        "change of n that restores the recurrent drive at the recorded states."
    )
    return "\n\n".join(said)


def trained_network(metrics: Mapping[str, float]) -> str | None:
    """The trained network beside its fit: what of it acts, where both settle, whether a sampled network does the task."""
    if (dimensions := metrics.get("lrrnn/trained_acting_dimensions")) is None:
        return None
    acting, by_chance = (metrics[f"lrrnn/trained_acting_{name}"] for name in ("weights", "by_chance"))
    said = [
        f"The recurrent drive of the trained network lies in {counted(round(dimensions), 'dimension')} (99 % of its variance on the "
        f"visited states). {percent(acting)} of its squared weights act there (random weights: {percent(by_chance)}). The rest is "
        "spare: without it the recorded activity would be nearly the same."
    ]
    own, fitted = (round(metrics[f"lrrnn/trained_stable_points{of}"]) for of in ("", "_of_fit"))
    points = f"The network has {counted(own, 'stable fixed point')} in reach of the visited states, the low-rank fit {fitted}"
    if (apart := metrics.get("lrrnn/trained_stable_points_apart")) is not None:
        points += f", at most {rough(apart)} standard deviations of the rates apart"
    said.append(f"{points}.")
    if (slowest := metrics.get("lrrnn/trained_slowest", 0.0)) > _SLOW:
        said.append(
            f"At one of them states move with a time constant of about {rough(slowest)} tau. Within a trial they rest along a line or "
            "a ring; how many of its points are stable in the end is chance."
        )
    if (given := metrics.get("dynamics/task_r2")) is not None:
        task = f"A projected network of sampled neurons gives the outputs of held-out trials with R² {given:.2f}"
        if "dynamics/task" in metrics:
            of_fit = (
                f"the low-rank fit to {metrics['dynamics/task_fit']:.2f}, " if "dynamics/task_fit" in metrics else ""
            )
            task += (
                f". It solves the task to {metrics['dynamics/task']:.2f}, {of_fit}the trained network to "
                f"{metrics['dynamics/task_trained']:.2f} (perfect: 1)"
            )
        said.append(f"{task}.")
    return " ".join(said)


def connectivity(f: Findings) -> str:
    """What of the distribution of weights is inferred, and what chosen."""
    said = [
        "The dynamics fix two things: the distribution of the loadings, read off the recorded neurons, and nu, the mean output "
        "weight of a neuron with given loadings. They do not fix the spread of n around nu. Any spread in a figure is the chosen "
        "sigma, around a maximum-entropy (normal) distribution.",
        f"{relative_sigma(f.sigma, f.spread)}.",
    ]
    if f.odd:
        said.append(
            f"With the odd nonlinearity {f.activation}, no bias and no input, the neurons (m, n) and (-m, -n) act alike. Only the "
            "odd part of nu can be estimated, and it alone is reported. An even part acts only if neurons are silenced; networks sampled "
            "with posterior=True, project=True and even_part=True have a random one."
        )
    p = f.metrics.get("connectivity/cell_types_p")
    if p is not None:
        verdict = (
            "The loadings, if they are right, are not one Gaussian or Student-t population. This concerns their shape and by itself "
            "is no evidence for cell types."
            if p < LEVEL
            else "The loadings have the shape of one such population."
        )
        said.append(
            f"The shape of the recorded loadings was tested against re-simulated single populations: p = {rough(p)}. {verdict} "
            "Clusters in (m, n) are no evidence: a curved nu alone makes them."
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
        return "The published ridge gives no error of its estimate."
    why = nulls.nothing_found(f.metrics)
    said = determined.findings(f.diagnosis)
    if causes.named(f.metrics):  # then the cautions above name the cause in place of these
        said += [f"Caution: {sign}" for sign in f.diagnosis.warnings]
    if why is not None:
        found = f"Caution: {why}: {nulls.NO_FINDING}."
        said.insert(0, f"{found} The following holds within the model only.")
    return "\n\n".join(said)


def fit(f: Findings) -> str:
    """Which baseline the spikes were fitted with, and how to compare it with others."""
    if f.baseline is None:
        return ""
    said = (
        "A baseline is what each neuron fires apart from the latent state. This run was fitted with the "
        f"{f.baseline} baseline. It consists of {GRANTS[f.baseline]}."
    )
    if f.baseline_missing:
        said += f" lrrnn.baseline asks for another one, which {NO_TIMES}."
    if f.other_baseline is not None:
        said += (
            f" Measures named after the {f.other_baseline} baseline score the same fitted model with that one. It consists of "
            f"{BASELINES[f.other_baseline]}. Compare models on equal baselines only. The local baseline uses the neighbouring "
            "training trials of each test trial."
        )
    return said
