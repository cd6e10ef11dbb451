"""The opening of a report: what was fitted, how good it is, what the data support and what not, in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from connector.report import nulls
from connector.report.determined import Determined, signs
from connector.report.glossary import GRANTS, SCALE_KINDS, TAKEN
from connector.report.numbers import counted, format_number, percent

LEVEL = 0.05  # below it a p-value counts as evidence
# Errors of a vector field, relative to its rms: below the first close, above the second too large to stand for it.
_CLOSE, _LARGE = 0.1, 0.25
# Shares of the input weights that differ from zero: chance alone gives 0.05.
_UNSUPPORTED, _SUPPORTED = 0.2, 0.8
# sigma over the spread of nu
_SMALL, _COMPARABLE = 0.2, 0.7
CERTAIN = 0.8  # probability of a number of attractors below which the data cannot tell it
_SHOWN = 0.02  # probability of a number of attractors that is worth mentioning


FEW_FOR_GROUPS = 60  # neurons, below which single populations of some shapes look separated too often


@dataclass(frozen=True)
class Findings:
    """What a report speaks of; None where a run does not have it.

    Attributes:
        kind: "rates" or "spikes"; rank, n_neurons, n_trials, n_test: of the fit.
        given: latents and loadings came with the file.
        metrics: of the run, as in ``metrics.json``.
        baseline: of the spikes, as fitted: "local", "standard" or "constant"; other_baseline: the other one, where it was
            scored; baseline_missing: the one asked for needs times of trials, which the recording lacks.
        n_sampled: neurons of the sampled networks; n_networks: those in which the attractors were looked for.
        unprojected_error: field error of sampled networks before projection, at held-out states.
        drawn_from_teacher: field error of as many neurons drawn from the teacher by chance, against its mean field.
        diagnosis: what the data determine about nu at the sampled loadings.
        b_different: share of the input weights whose 95 % interval excludes zero.
        sigma: stated spread of n about nu; spread: root-mean-square deviation of nu from its mean over neurons.
        odd: only the odd part of nu acts; activation: the name of the nonlinearity.
        truth_settles_on: what the true mean field does; settles_on: what the projected network without inputs does, in words.
        attractors: within the visited region, kind and number -> probability, the most probable first.
        has_inputs: whether the recording is driven by known inputs; input_kind: how the network takes them.
        scale: what each neuron's rates have beside its loadings, "offset", "gain", "both" or "none".
    """

    kind: str
    rank: int
    n_neurons: int
    n_trials: int
    n_test: int
    n_sampled: int
    sigma: float
    spread: float
    given: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    baseline: str | None = None
    other_baseline: str | None = None
    baseline_missing: bool = False
    n_networks: int = 0
    unprojected_error: float | None = None
    drawn_from_teacher: float | None = None
    diagnosis: Determined | None = None
    b_different: float | None = None
    odd: bool = False
    activation: str = ""
    truth_settles_on: str | None = None
    settles_on: str | None = None
    attractors: Mapping[str, float] | None = None
    has_inputs: bool = True
    input_kind: str = "instant"
    scale: str = "none"


def opening(found: Findings) -> list[str]:
    """Three to ten sentences, each of one thing."""
    why = nulls.nothing_found(found.metrics)
    if why is not None:
        said = [sentence for part in (_fit, _scale, _inputs, _prediction, _baseline) if (sentence := part(found))]
        return [
            *said,
            f"{why[0].upper()}{why[1:]}: {nulls.NO_FINDING}, neither a vector field nor a sign of nu.",
            _open(found),
        ]
    parts = (
        _fit,
        _scale,
        _inputs,
        _prediction,
        _baseline,
        _dynamics,
        _attractors,
        _finite,
        _determined,
        _cell_types,
        _input_weights,
        _open,
    )
    return [sentence for part in parts if (sentence := part(found))]


def _fit(f: Findings) -> str:
    data = f"{f.kind} of {counted(f.n_neurons, 'neuron')} in {counted(f.n_trials, 'trial')}"
    if f.given:
        said = (
            f"Latents of rank {f.rank} and the loadings were taken as given with the {data}, no low-rank RNN was fitted"
        )
    else:
        said = f"A low-rank RNN of rank {f.rank} was fitted to the {data}"
    explained, linear = f.metrics.get("lrrnn/rates_r2"), f.metrics.get("lrrnn/rates_r2_pca")
    if explained is not None and linear is not None:
        subject, verb = ("the given states", "explain") if f.given else ("it", "explains")
        said += (
            f"; on the {f.n_test} test trials {subject} {verb} {percent(explained)} of the variance of the rates about their "
            f"means over training trials, principal components of the same rank {percent(linear)}"
        )
    return said + "."


def _inputs(f: Findings) -> str:
    """Where they enter otherwise than equation (1) has it."""
    return "" if f.input_kind == "instant" else f"In this model the inputs {TAKEN[f.input_kind]}."


def _scale(f: Findings) -> str:
    """Where rates are not phi(h) itself."""
    if f.scale == "none":
        return ""
    said = f"The rates are fitted on a scale of their own: {SCALE_KINDS[f.scale]}"
    if "lrrnn/gains_open" in f.metrics:
        return f"{said}; the rates leave the gain of {percent(f.metrics['lrrnn/gains_open'])} of the neurons open."
    return f"{said}; a gain of relu neurons is the length of their loadings." if f.scale != "offset" else f"{said}."


def _prediction(f: Findings) -> str:
    bits = "lrrnn/bits_per_spike"
    if bits not in f.metrics:
        return ""
    said = f"On the {f.n_test} test trials it predicts spikes {_gain(f.metrics[bits])} than each neuron's mean rate"
    if f"{bits}_prior" in f.metrics:
        source = (
            "from the inputs alone"
            if f.has_inputs
            else "from the start of each trial, as inferred from its spikes, alone"
        )
        said += f" ({_gain(f.metrics[f'{bits}_prior'])} {source})"
    null, of_null = nulls.best_null(f.metrics)
    if null != nulls.MEAN_RATE:
        said += f", where {null} alone predict them {_gain(of_null)}"
    gained = nulls.amount(f.metrics, bits)
    if nulls.is_nil(f.metrics, bits):
        said += f"; beyond {'that' if null == nulls.MEAN_RATE else 'these'} it gains nothing ({gained} bits per spike)"
    elif null != nulls.MEAN_RATE:
        said += f"; beyond these it gains {gained}"
    if "lrrnn/psth_r2_evidence" in f.metrics:
        r2 = f.metrics["lrrnn/psth_r2_evidence"]
        said += f"; it gives mean responses by evidence with a median R² of {r2:.2f} over neurons"
    return said + "."


def _baseline(f: Findings) -> str:
    bits = "lrrnn/bits_per_spike"
    if f.baseline is None or bits not in f.metrics:
        return ""
    said = f"The model grants each neuron the {f.baseline} baseline beside the latent state: {GRANTS[f.baseline]}"
    other = f.metrics.get(f"{bits}_{f.other_baseline}")
    if other is not None:
        said += f"; with the {f.other_baseline} one in its place it predicts spikes {_gain(other)} than the mean rate"
    return said + "."


def _gain(bits: float) -> str:
    return f"{abs(bits):.3f} bits per spike {'better' if bits > 0 else 'worse'}"


def _dynamics(f: Findings) -> str:
    error = f.metrics.get("dynamics/field_error")
    if error is None:
        return ""
    verdict = "closely" if error < _CLOSE else ("roughly" if error < _LARGE else "poorly")
    said = (
        f"With infinitely many neurons the inferred connectivity reproduces the vector field at held-out states {verdict} "
        f"(error {percent(error)} of the field's size)"
    )
    if f.kind == "rates" and f.drawn_from_teacher is None and "lrrnn/process_noise" not in f.metrics:
        said += (
            "; that field is how the inferred states move, with whatever noise the states have of their own, which no "
            "connectivity reproduces"
        )
    return said + "."


def _attractors(f: Findings) -> str:
    if f.attractors is None:
        return ""
    listed = ", ".join(
        f"{kind} with {'probability ' * (i == 0)}{p:.2f}"
        for i, (kind, p) in enumerate(f.attractors.items())
        if p >= _SHOWN
    )
    if max(f.attractors.values()) >= CERTAIN:
        said = f"Within the visited region the vector field has {listed}, by draws from its posterior"
    else:
        said = (
            "The data cannot tell how many attractors the visited region holds: draws from the posterior of the vector field "
            f"have {listed}"
        )
    if f.has_inputs:
        said += " with inputs at zero"
    if f.diagnosis is not None and (f.diagnosis.warnings or not f.diagnosis.converged):
        said += "; that too only as far as the fit goes"
    return said + "."


def _finite(f: Findings) -> str:
    size = []
    if f.unprojected_error is not None:
        drawn = f"by {percent(f.unprojected_error)} as drawn at sigma = {f.sigma:g}"
        if f.drawn_from_teacher is not None:
            drawn += (
                f" (as many neurons drawn from the true distribution miss theirs by {percent(f.drawn_from_teacher)})"
            )
        size.append(drawn)
    if "dynamics/field_error_projected" in f.metrics:
        size.append(
            f"by {percent(f.metrics['dynamics/field_error_projected'])} after projection, the smallest change of its output "
            "weights that restores the recorded drive"
        )
    if not size or "dynamics/field_error" not in f.metrics:
        return ""
    said = f"A sampled network of {f.n_sampled} neurons, being finite, misses the field {', and '.join(size)}"
    kept = f.metrics.get("dynamics/attractors_kept")
    if kept is not None and f.n_networks:
        said += f"; {round(kept * f.n_networks)} of {f.n_networks} projected networks keep the true attractors"
    return said + "."


def _determined(f: Findings) -> str:
    if f.diagnosis is None:
        return (
            "What the data support in the output weights is left open: the published ridge makes no statement about its "
            "error."
        )
    said = (
        f"Supported by the data are about {f.diagnosis.determined_modes:.3g} combinations of the output weights in each "
        "latent dimension, weighted sums in which every neuron has a part; with nu, the mean output weight of neurons with "
        "given loadings, taken to be smooth in the loadings, they "
    )
    if f.diagnosis.sign_determined.any():
        said += (
            f"tell whether nu is positive or negative ({signs(f.diagnosis)} of the sampled neurons), jointly and not neuron by "
            "neuron"
        )
    else:
        said += "do not tell at any of the sampled neurons whether nu is positive or negative"
    if not f.diagnosis.calibrated:
        said += ", by intervals whose coverage has not been measured"
    if f.diagnosis.warnings:
        said += "; all that only as far as the fit goes, which shows signs of misfit (see the cautions)"
    elif not f.diagnosis.converged:
        said += "; all that only as far as the fit goes, which did not converge"
    return said + "."


def _cell_types(f: Findings) -> str:
    """Graded: groups with gaps between them, else the shape alone, which is no evidence for types."""
    gap, shape = (f.metrics.get(f"connectivity/{name}") for name in ("groups_p", "cell_types_p"))
    if gap is None and shape is None:
        return ""
    other = "" if shape is None else _shape(shape)
    if gap is None:
        return f"The loadings{other}."
    if gap > LEVEL:
        said = f"Separated groups of neurons (cell types) are not shown (p = {format_number(gap)})"
        least = f.metrics.get("connectivity/groups_detectable")
        if least is not None:
            said += f", and of so many neurons two equal groups show in 8 of 10 cases if {least:.1f} sd or more apart"
        return said + (f"; the loadings{other}." if other else ".")
    count = round(f.metrics.get("connectivity/groups", 2))
    said = f"The loadings form {count} groups with gaps between them (p = {format_number(gap)})"
    stability = f.metrics.get("connectivity/groups_stability")
    if stability is not None:
        said += f", as many as {percent(stability)} of half-samples show"
    if f.n_neurons < FEW_FOR_GROUPS:
        said += f"; with fewer than {FEW_FOR_GROUPS} neurons this is suggestive at most"
    if f.kind == "spikes":
        said += "; if the fitted loadings are right: an input that was left out, or few neurons, can make them look clustered"
    return said + "."


def _shape(p: float) -> str:
    if p < LEVEL:
        return f" are not one Gaussian or Student-t population (p = {format_number(p)}), which is a matter of shape and no evidence for types"
    return f" look like one Gaussian or Student-t population (p = {format_number(p)})"


def _input_weights(f: Findings) -> str:
    if f.b_different is None:
        return ""
    if f.b_different < _UNSUPPORTED:
        verdict = "are not supported by the data, and neither is structure of n along them"
    elif f.b_different < _SUPPORTED:
        verdict = "are supported in part"
    else:
        verdict = "are supported by the data"
    return (
        f"The input weights b {verdict}: {percent(f.b_different)} of them differ from zero by their 95 % interval, where "
        "chance alone gives up to 5 %."
    )


def _open(f: Findings) -> str:
    said = f"Not supported is any spread of the output weights n about nu: {relative_sigma(f.sigma, f.spread)}"
    if f.diagnosis is not None:
        loose = f.diagnosis.open_share
        if loose > 0:
            said += f"; nor how large nu is at {percent(loose)} of the neurons, where its uncertainty exceeds half its typical size"
    if f.odd:
        said += "; nor an even part of nu, which cannot act"
    return said + "."


def relative_sigma(sigma: float, spread: float) -> str:
    """What sigma is relative to the spread of nu over neurons, in words; no full stop."""
    if not spread > 0:
        return f"sigma = {sigma:g} is a choice, and nu is the same for all neurons"
    ratio = sigma / spread
    if ratio < _SMALL:
        verdict = "so small that samples hardly differ from nu, which is no finding either"
    elif ratio < _COMPARABLE:
        verdict = "enough to blur nu visibly in a sample"
    else:
        verdict = "as large as what is inferred, so that a sample shows the choice as much as nu"
    return f"sigma = {sigma:g} is a choice, {percent(ratio)} of the spread of nu over neurons ({spread:.3g}), {verdict}"
