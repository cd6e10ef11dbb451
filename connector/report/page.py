"""The report of a run: one HTML file that holds everything it shows, and what each number means in plain words."""

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
from typing import NamedTuple

from matplotlib.figure import Figure

_DPI = 160


class Metric(NamedTuple):
    """What a number in ``metrics.json`` is.

    Attributes:
        label: short name.
        unit: "" for a pure number.
        explanation: what it means, what a good value is, what it cannot say; plain sentences.
        direction: "lower", "higher" or "" where neither is better.
    """

    label: str
    unit: str
    explanation: str
    direction: str = ""


# Labels and explanations stand alone: a table shows the rows that a run has, each closed until it is opened.
METRICS: dict[str, Metric] = {
    "connectivity/dissimilarity": Metric(
        "Dissimilarity D to the true connectivity",
        "squared weights",
        "How far the inferred distribution of weights is from the one that generated the data: Sinkhorn divergence of "
        "the loadings plus squared error of the output weights. 0 is perfect; the finite number of neurons alone gives "
        "about 0.005 to 0.01. It can be had only where the truth is known, that is for simulated data.",
        "lower",
    ),
    "connectivity/sinkhorn": Metric(
        "Sinkhorn divergence of the loadings from the true ones",
        "squared weights",
        "Optimal-transport distance between true and inferred loadings, averaged over fresh draws of true neurons. "
        "Compare it with the Sinkhorn divergence between two samples of the truth; it says nothing about the output "
        "weights.",
        "lower",
    ),
    "connectivity/sinkhorn_floor": Metric(
        "Sinkhorn divergence between two samples of the true loadings",
        "squared weights",
        "What two fresh samples of true neurons give between themselves. Inferred loadings as near to the true ones as "
        "that cannot be told from perfect with this many neurons.",
    ),
    "connectivity/squared_error": Metric(
        "Squared error of the mean output weights",
        "squared weights",
        "Mean squared difference between true and inferred conditional mean of the output weights, per neuron and "
        "dimension, in squared units of n. Read it against the spread of n: 0.01 with n around 2 is an error of 5 %.",
        "lower",
    ),
    "connectivity/squared_error_of_n": Metric(
        "Squared difference of the mean output weights from the file's N",
        "squared weights",
        "Mean squared difference between the inferred mean output weight at each recorded neuron's loadings and the output "
        "weights N that the file gives, per neuron and dimension. N spreads about its own mean, which dynamics do not "
        "determine, so this is the error of nu plus that spread: an upper bound, and the error itself where N is a "
        "function of the loadings.",
        "lower",
    ),
    "connectivity/r2_of_n": Metric(
        "The file's N explained by the mean output weights",
        "R²",
        "Share of the variance of the file's output weights N over neurons that the inferred mean at their loadings "
        "explains, worst dimension. The spread of N about its own mean keeps it below 1.",
        "higher",
    ),
    "connectivity/valente_dissimilarity": Metric(
        "Dissimilarity after Valente et al. 2022",
        "1 − correlation",
        "One minus the correlation of the sorted entries of the true and the inferred connectivity matrix. Small for "
        "almost any two networks of similar weights: it is blind to how the weights are arranged, and given for "
        "comparison only.",
        "lower",
    ),
    "connectivity/determined_modes": Metric(
        "Combinations of the output weights fixed by the data",
        "per latent dimension",
        "How many independent weighted sums of the neurons' output weights the recorded states pin down, for each "
        "latent dimension. Every neuron has a part in each of them; whatever structure lies outside of them is the "
        "prior speaking.",
    ),
    "connectivity/predicted_error": Metric(
        "Squared error of the mean output weights that the posterior expects",
        "of their mean square",
        "The squared error that the posterior itself expects at the loadings of the sampled network, relative to the "
        "mean square of nu. 0 means pinned down, 1 means unknown. An expectation, no measured error: it relies on the "
        "model and the recorded loadings being right. Where the truth is known, compare the squared error of the mean "
        "output weights.",
        "lower",
    ),
    "connectivity/output_shift": Metric(
        "Shift of the mean output weights towards the recorded drive",
        "units of n, rms",
        "The recorded neurons' output weights scatter about their conditional mean, and so few neurons do not average "
        "that out. By so much the mean of output weights sampled at sigma > 0 is off the estimate of nu, for the "
        "vector field of infinitely many sampled neurons to be the recorded one. It is no statement about nu.",
    ),
    "connectivity/entropy": Metric(
        "Entropy of the inferred distribution of weights",
        "nats per neuron",
        "How spread out the inferred distribution of (m, b, d, n) is. It depends on the units of the latents and on "
        "sigma, so it compares runs on the same data only.",
    ),
    "connectivity/cell_types_p": Metric(
        "Test for cell types in the loadings",
        "p-value",
        "How often a population without cell types looks at least as clustered as the recorded one. Below 0.05 counts "
        "as evidence, if the fitted loadings are right. The least value that 99 simulated populations allow is 0.01. A large "
        "value does not prove that there are none: few neurons, or overlapping types, hide them.",
    ),
    "dynamics/attractors_kept": Metric(
        "Sampled networks, projected, that keep the true attractors",
        "share",
        "In what share of networks sampled from the inferred distribution and projected the fixed points, the cycle or "
        "the ring of the truth are found again near their places. 1 is best.",
        "higher",
    ),
    "dynamics/attractors_kept_unprojected": Metric(
        "Sampled networks, not projected, that keep the true attractors",
        "share",
        "In what share of networks sampled from the inferred distribution, left as they were drawn, the true "
        "attractors are found again. Finite networks lose delicate attractors by chance, even when sampled from the "
        "truth.",
        "higher",
    ),
    "dynamics/field_error": Metric(
        "Error of the vector field, infinitely many sampled neurons",
        "of the field's rms",
        "Root-mean-square error of the inferred distribution's vector field at held-out states, relative to the size "
        "of the field there, for so many neurons that chance plays no part, against the recorded network's field: of "
        "recorded rates, how the inferred states move, their own noise included, which no connectivity reproduces. Where "
        "most states rest near fixed points the field itself is small and this ratio is strict.",
        "lower",
    ),
    "dynamics/field_error_mean_field": Metric(
        "Error of the vector field, infinitely many sampled neurons against the teacher's mean field",
        "of the field's rms",
        "The recorded network is finite, and so its field differs by chance from that of infinitely many neurons of its "
        "teacher. Who reproduces the recorded network misses the mean field by about that difference, which has a "
        "measure of its own.",
        "lower",
    ),
    "dynamics/field_error_finite_size": Metric(
        "Recorded network's vector field against its teacher's mean field",
        "of the field's rms",
        "What the finite number of neurons does to the field of the recorded network; no error of any estimate.",
        "",
    ),
    "dynamics/drive_error": Metric(
        "Error of the vector field relative to the recurrent drive",
        "of the drive's rms",
        "The root-mean-square error of the vector field of infinitely many sampled neurons, relative to the size of the "
        "recurrent drive, what all neurons together feed back to the latent state: F = field + z. It does not vanish at "
        "fixed points as the field does.",
        "lower",
    ),
    "dynamics/field_error_projected": Metric(
        "Error of the vector field, sampled network after projection",
        "of the field's rms",
        "Root-mean-square error at held-out states after the smallest change of the output weights that restores the "
        "observed field at training states. Small values show that the sampled loadings can carry the dynamics; they "
        "do not show that the output weights are the true ones.",
        "lower",
    ),
    "dynamics/drift_r2": Metric(
        "Drift explained by the sampled network after projection",
        "R²",
        "Share of the variance of the drift (the vector field at held-out states) that a sampled and projected network "
        "reproduces, worst dimension.",
        "higher",
    ),
    "dynamics/left_region": Metric(
        "Trials in which the projected network leaves the visited region",
        "share",
        "Share of test trials in which a sampled and projected network, started where the trial starts, gets farther from "
        "the states of the training trials than one and a half times the farthest of them. What it does there was never "
        "fitted. Above 0.05 the report warns.",
        "lower",
    ),
    "dynamics/saturated": Metric(
        "States at which neurons are saturated",
        "share",
        "Share of neurons and held-out states at which the activation is flat: a change of the state hardly changes the "
        "rate. Above 0.5 the report warns; for spikes silent neurons count, too.",
        "",
    ),
    "loadings/outside_support": Metric(
        "Sampled loadings far from those of all recorded neurons",
        "share",
        "Share of sampled neurons whose nearest recorded one is more than twice as far as the loneliest recorded neuron's "
        "is. Above 0.05 the report warns: the flow puts neurons where none was seen.",
        "lower",
    ),
    "lrrnn/val_loss": Metric(
        "Validation loss of the low-rank RNN",
        "squared rate (rates), nats per bin (spikes)",
        "On trials not used for fitting; the quantity by which the kept model was chosen. For rates it is the mean "
        "squared error; for spikes the negative log-likelihood of all neurons' counts in a time bin, once bounded from "
        "the posterior and once of the rollout from the inputs, added up. Compare it within one data set only.",
        "lower",
    ),
    "lrrnn/loadings_r2": Metric(
        "True loadings recovered by the low-rank RNN",
        "R²",
        "Share of the variance of the true loadings that the fitted ones explain, after a linear change of the latent "
        "coordinates to the true ones, since data fix latents up to such a change only. Known only for simulated data.",
        "higher",
    ),
    "lrrnn/latents_r2": Metric(
        "True latents recovered by the low-rank RNN",
        "R²",
        "Share of the variance of the true latents that the fitted ones explain after a linear change of coordinates, up to "
        "which data fix them. Known only for simulated data.",
        "higher",
    ),
    "lrrnn/bits_per_spike": Metric(
        "Spikes predicted, latents inferred from spikes and inputs",
        "bits per spike",
        "Gain in log-likelihood per spike of held-out trials over each neuron's mean rate, integrating over the "
        "latents (a lower bound). 0 is no better than the mean rate. Values near 0.1 are usual for single trials of "
        "frontal neurons. It depends on the model of the baseline: compare equal baselines only.",
        "higher",
    ),
    "lrrnn/bits_per_spike_prior": Metric(
        "Spikes predicted by the dynamics (rollout)",
        "bits per spike",
        "Gain in log-likelihood per spike of held-out trials over each neuron's mean rate, with latents that run on "
        "by the fitted dynamics: driven by the inputs and blind to the trial's spikes; in recordings without inputs from a "
        "start that is inferred from the trial's spikes. What the dynamics explain by themselves.",
        "higher",
    ),
    "lrrnn/co_smoothing": Metric(
        "Spikes of hidden neurons predicted from the other neurons (co-smoothing)",
        "bits per spike",
        "Gain in log-likelihood per spike over each neuron's mean rate when a fifth of the neurons is hidden and predicted, "
        "on held-out trials, from the spikes of the others and the inputs; each neuron is hidden once. The model is not "
        "trained anew: loadings of hidden neurons are those fitted on training trials. Unlike the bound for latents "
        "inferred from all spikes, no neuron's own spikes help to predict it.",
        "higher",
    ),
    "lrrnn/bits_per_spike_null_drift": Metric(
        "Spikes predicted by slow drift alone",
        "bits per spike",
        "What each neuron's drift across the session predicts over its mean rate, without latents, inputs or a course "
        "within the trial. A fitted model has to beat it to say anything about a trial.",
    ),
    "lrrnn/bits_per_spike_null_drift_psth": Metric(
        "Spikes predicted by drift × mean response",
        "bits per spike",
        "What each neuron's drift across the session times its mean course within a trial (its PSTH over training trials) "
        "predicts over its mean rate. Smoothing of the course was chosen on training trials.",
    ),
    "lrrnn/bits_per_spike_null_drift_evidence_psth": Metric(
        "Spikes predicted by drift × mean response by evidence",
        "bits per spike",
        "What each neuron's drift across the session times its mean course within a trial, given the sign of the evidence, "
        "predicts over its mean rate. It knows the trial's condition but nothing of its single clicks and spikes: what a "
        "model predicts beyond it is about single trials.",
    ),
    "lrrnn/psth_r2_evidence": Metric(
        "Mean responses by evidence",
        "R², median neuron",
        "How well the model predicts each neuron's mean response to strong left and strong right evidence, held-out "
        "trials. 1 is perfect; noise in the observed means keeps weakly firing neurons below it.",
        "higher",
    ),
    "lrrnn/psth_r2_choice": Metric(
        "Mean responses by choice",
        "R², median neuron",
        "How well the model predicts each neuron's mean response on held-out trials grouped by the animal's choice, "
        "which it has to predict from inputs and spikes.",
        "higher",
    ),
    "lrrnn/psth_r2_evidence_noise_free": Metric(
        "Mean responses by evidence, noise-free rollout",
        "R², median neuron",
        "As the mean responses by evidence, but of one rollout without noise instead of the average over noisy ones.",
        "higher",
    ),
    "lrrnn/choice_auc": Metric(
        "Choice read from the final latent state",
        "AUC",
        "Chance that the final latent state ranks a right-choice trial above a left-choice one: 0.5 is chance, 1 is "
        "perfect. The clicks alone predict the choice well, so compare with their value.",
        "higher",
    ),
    "lrrnn/choice_auc_prior": Metric(
        "Choice read from the final state of the rollout",
        "AUC",
        "Chance that the final state of latents simulated from the inputs, without the trial's own spikes (but for the start, in recordings "
        "without inputs), ranks a right-choice trial above a left-choice one.",
        "higher",
    ),
    "lrrnn/click_difference_auc": Metric(
        "Choice read from the difference of clicks", "AUC", "What the stimulus alone says about the choice."
    ),
    "loadings/tail_advantage": Metric(
        "Student-t over normal base of the flow of the loadings",
        "nats per neuron",
        "Held-out log-likelihood of an elliptical Student-t over a normal density. Where it is above zero by twice its "
        "standard error, the flow starts from the Student-t, so that heavy tails are in reach.",
        "",
    ),
    "loadings/val_loss": Metric(
        "Flow-matching loss of the loadings",
        "squared velocity of the flow",
        "A flow is a velocity field that carries random numbers to loadings. The loss is the mean squared difference "
        "between its velocity and the straight paths from the ones to the others, on the training neurons, in "
        "standardised units, with random numbers that stay the same. Its lowest possible value is not zero; what counts "
        "is that it has stopped falling.",
        "lower",
    ),
    "loadings/log_likelihood": Metric(
        "Held-out log-likelihood of the loadings",
        "nats per neuron",
        "How probable the flow finds loadings of neurons it was not trained on. It compares models of the same neurons "
        "only.",
        "higher",
    ),
    "outputs/val_loss": Metric(
        "Flow-matching loss of the output weights",
        "squared velocity of the flow",
        "As for the loadings, of the flow that carries random numbers to output weights, p(n | m, b, d), on drawn neurons "
        "held out, in standardised units. Its lowest possible value is not zero; what counts is that it has stopped "
        "falling.",
        "lower",
    ),
    "timing/lrrnn_seconds": Metric("Time for the low-rank RNN", "s", "Wall-clock seconds of this stage."),
    "timing/loadings_seconds": Metric("Time for the flow of the loadings", "s", "Wall-clock seconds of this stage."),
    "timing/outputs_seconds": Metric("Time for the output weights", "s", "Wall-clock seconds of this stage."),
    "timing/results_seconds": Metric(
        "Time for measures, figures and report", "s", "Wall-clock seconds after the last stage; no part of fitting."
    ),
}

# What each neuron is granted beside the latent state, as ``lrrnn.baseline`` names it.
BASELINES = {
    "standard": "slow drift across the session, where trial times are known, and the course within the trial",
    "local": "slow drift across the session, where trial times are known, and the course within the trial, scaled to the "
    "neuron's count in neighbouring training trials",
}

# The same with what is used where there is no trial time and bins are rich in spikes.
GRANTS = {**BASELINES, "constant": "its mean rate"}

# The same quantity under the other baseline.
_SCORED = "Here the fitted model is scored with the {} baseline in place of the one it was fitted with: {}."
_NULL = "Here it has what the {} baseline grants beside the course within the trial: {}."
_GRANTED = {
    "standard": "slow drift across the session, where trial times are known",
    "local": "that drift, scaled to the neuron's count in neighbouring training trials",
}
METRICS |= {
    f"{key}_{baseline}": METRICS[key]._replace(
        label=f"{METRICS[key].label}, {baseline} baseline",
        explanation=f"{METRICS[key].explanation} {_NULL.format(baseline, _GRANTED[baseline])}",
    )
    for key in (
        "lrrnn/bits_per_spike_null_drift",
        "lrrnn/bits_per_spike_null_drift_psth",
        "lrrnn/bits_per_spike_null_drift_evidence_psth",
    )
    for baseline in BASELINES
}
METRICS |= {
    f"{key}_{baseline}": METRICS[key]._replace(
        label=f"{METRICS[key].label}, {baseline} baseline",
        explanation=f"{METRICS[key].explanation} {_SCORED.format(baseline, BASELINES[baseline])}",
    )
    for key in (
        "lrrnn/bits_per_spike",
        "lrrnn/bits_per_spike_prior",
        "lrrnn/co_smoothing",
        "lrrnn/psth_r2_evidence",
        "lrrnn/psth_r2_choice",
        "lrrnn/choice_auc",
        "lrrnn/choice_auc_prior",
        "lrrnn/click_difference_auc",
        "lrrnn/psth_r2_evidence_noise_free",
    )
    for baseline in BASELINES
}

# What an estimate of nu says of itself: key of its ``summary`` -> what it is called, what it means.
ESTIMATE: dict[str, tuple[str, str]] = {
    "estimator": ("estimator", "how nu was estimated, as connectivity.estimator names it"),
    "estimand": (
        "estimand",
        "mean: nu itself; folded: its odd part, each neuron counted with its mirror image (-m, -n)",
    ),
    "kernel": ("kernel", "prior of nu: family of smooth functions that fits best; none: a linear function"),
    "width": ("width of the kernel", "length over which nu may bend, in standard deviations of the loadings"),
    "kernel_weight": ("weight of that kernel", "its posterior probability among all kernels tried"),
    "n_kernels": ("kernels averaged", "how many kernels have a noticeable posterior probability"),
    "n_components": ("components averaged", "kernels with settings of their amplitudes, over which nu is averaged"),
    "evidence": ("log evidence", "nats; compares models of the same data only"),
    "amplitude_linear": ("prior variance, linear part", "of nu, where the latents are such that m has unit covariance"),
    "amplitude_curved": (
        "prior variance, curved part",
        "of nu beyond a linear function, in the same units as the linear part",
    ),
    "own_variance": ("neurons' own variance of n", "of n about nu among the recorded neurons, as far as it acts"),
    "noise_variance": (
        "noise variance",
        "of the drive, that no output weights explain, in units where m has unit covariance",
    ),
    "noise_sd": ("noise", "standard deviation in each latent dimension, from the trajectories' residuals"),
    "difference_noise_sd": (
        "noise between neighbours",
        "standard deviation in each latent dimension, from neighbouring samples alone",
    ),
    "residual_autocorrelation": (
        "correlation of successive residuals",
        "0 for independent noise; of no concern where the noise is negligible",
    ),
    "n_samples": ("samples used", "latent states in the trajectories' likelihood"),
    "n_dropped_segments": ("segments left out", "pieces of trajectories that the fit could not follow"),
    "lambda": ("regularizer lambda", "noise over prior variance of n, in the units of connectivity.regularizer"),
    "n_modes": ("combinations considered", "weighted sums of output weights that the recorded states tell apart"),
    "determined_modes": (
        "combinations determined",
        "how many of the combinations considered the data rather than the prior fix, per latent dimension",
    ),
    "function_modes": (
        "degrees of freedom of nu",
        "coefficients of nu itself that the data fix under its fitted prior; another way to count, which need not agree",
    ),
    "predicted_error": (
        "squared error of nu that the posterior expects, recorded neurons",
        "of its mean square, at the loadings of recorded neurons instead of sampled ones; no measured error",
    ),
    "validation_r2": ("drive explained", "R² on validation trials by n = nu, worst latent dimension"),
    "converged": ("converged", "whether the fit to the trajectories settled"),
    "odd": ("odd", "yes: nu(-m) = -nu(m) was imposed, since an even part would not act"),
}


# The words of a report, for a reader who meets them for the first time.
WORDS: tuple[tuple[str, str], ...] = (
    (
        "latent state z",
        "The few numbers that describe the activity of all neurons at one time, R of them. Data fix them up to a linear "
        "change of coordinates, hence up to units of their own, the latent units.",
    ),
    (
        "loadings m, b, d",
        "How a neuron reads: its rate is phi(m·z + b·u + d) with the nonlinearity phi, external inputs u (where there are "
        "any) and a bias d (where fitted).",
    ),
    (
        "output weight n",
        "How a neuron acts: tau dz/dt = -z + the mean over neurons of n times their rate. The weight of the connection "
        "from neuron j to neuron i is m_i·n_j / K in a network of K neurons.",
    ),
    ("recurrent drive", "That mean of n times rate: what all neurons together feed back to the latent state."),
    ("vector field", "-z + recurrent drive: how fast, and where to, the latent state moves from each place."),
    (
        "nu",
        "The mean output weight of neurons with given loadings, E[n | m, b, d]. Of n, it is all that acts on the latent "
        "states of a large network.",
    ),
    (
        "sigma",
        "Standard deviation of n about nu in sampled networks: a stated choice, since the dynamics do not determine it.",
    ),
    (
        "sampled network",
        "Neurons drawn from the inferred distribution: loadings from the learned density, n = nu plus noise of standard "
        "deviation sigma.",
    ),
    (
        "projection",
        "The smallest change of a sampled network's n that gives it the recorded drive at training states: it removes what "
        "chance does to a finite network.",
    ),
    (
        "attractor, saddle, repeller",
        "Fixed points, where the vector field is zero: states near them return; leave along some directions only; leave.",
    ),
    ("held-out", "On test trials, which no fit has seen."),
)


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
