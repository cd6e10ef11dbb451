"""The sentences of a report's opening: its verdict, and what else was found, in the order in which a reader needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from connector.report import nulls
from connector.report.determined import Determined, signs
from connector.report.glossary import GRANTS, SCALE_KINDS, TAKEN
from connector.report.numbers import counted, multiple, percent, probability, rough

LEVEL = 0.05  # below it a p-value counts as evidence
# Errors of a vector field, relative to its rms: below the first close, above the second too large to stand for it.
_CLOSE, _LARGE = 0.1, 0.25
# Shares of the input weights that differ from zero: chance alone gives 0.05.
_UNSUPPORTED, _SUPPORTED = 0.2, 0.8
# sigma over the spread of nu
_SMALL, _COMPARABLE = 0.2, 0.7
CERTAIN = 0.8  # probability of a number of attractors below which the data cannot tell it
_SHOWN = 0.02  # probability of a number of attractors that is worth mentioning
_MANY_BITS = 0.1  # per spike, from which on two decimals are enough


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


def headline(found: Findings) -> list[tuple[str, str]]:
    """At most five points of a sentence or a few, each under the name of its subject: the fit, the dynamics, what the data
    require and leave open."""
    why = nulls.nothing_found(found.metrics)
    if why is not None:
        parts = (("Fit", _fit(found)), ("Dynamics", f"{why[0].upper()}{why[1:]}: {nulls.NO_FINDING}."))
        return [*parts, ("Left open", _open(found))]
    parts = [("Fit", _fit(found)), ("Dynamics", _dynamics(found))]
    parts += [("Data require", sentence) for sentence in _determined(found)]
    parts.append(("Left open", _open(found)))
    return [(subject, sentence) for subject, sentence in parts if sentence]


def more(found: Findings) -> list[str]:
    """What else was found, a sentence or two each; nothing about the connectivity where nothing was found."""
    parts = [_scale, _inputs, _prediction, _baseline]
    if nulls.nothing_found(found.metrics) is None:
        parts += [_noise, _finite, _cell_types, _input_weights, _sigma]
    return [said for part in parts if (said := part(found))]


def _fit(f: Findings) -> str:
    explained, linear = f.metrics.get("lrrnn/rates_r2"), f.metrics.get("lrrnn/rates_r2_pca")
    bits = "lrrnn/bits_per_spike"
    data = f"the {f.kind} of {counted(f.n_neurons, 'neuron')}"
    taken = f"Latents of rank {f.rank} and the loadings were taken from the file"
    fitted = f"A rank-{f.rank} network fitted to {data}"
    if explained is not None and linear is not None:
        does, whose = (
            (f"{taken}. They explain", f"the variance of {data}")
            if f.given
            else (f"{fitted} explains", "their variance")
        )
        share = f"{percent(explained)} of {whose} in {counted(f.n_test, 'test trial')}"
        return f"{does} {share}; principal components of the same rank explain {percent(linear)}."
    if f.given:
        return f"{taken}; no network was fitted."
    if bits in f.metrics:
        tests = counted(f.n_test, "test trial")
        return f"{fitted} predicts {tests} {_gain(f.metrics[bits])} than {nulls.MEAN_RATE}.{_over_null(f)}"
    return f"A rank-{f.rank} network was fitted to {data} in {counted(f.n_trials, 'trial')}."


def _over_null(f: Findings) -> str:
    """What the fit gains over the best prediction without latent states, as a sentence."""
    bits = "lrrnn/bits_per_spike"
    null, of_null = nulls.best_null(f.metrics)
    gained = nulls.amount(f.metrics, bits)
    if nulls.is_nil(f.metrics, bits):
        beyond = "that" if null == nulls.MEAN_RATE else f"{null} ({_bits(of_null)})"
        return f" Beyond {beyond} it gains nothing ({gained})."
    return "" if null == nulls.MEAN_RATE else f" It gains {gained} over {null} ({_bits(of_null)})."


def _inputs(f: Findings) -> str:
    """Where they enter otherwise than equation (1) has it."""
    return "" if f.input_kind == "instant" else f"In this model the inputs {TAKEN[f.input_kind]}."


def _scale(f: Findings) -> str:
    """Where rates are not phi(h) itself."""
    if f.scale == "none":
        return ""
    said = f"The rates have a scale of their own: {SCALE_KINDS[f.scale]}."
    if "lrrnn/gains_open" in f.metrics:
        return f"{said} The rates leave the gain of {percent(f.metrics['lrrnn/gains_open'])} of the neurons open."
    return f"{said} The gain of a relu neuron is the length of its loadings." if f.scale != "offset" else said


def _prediction(f: Findings) -> str:
    """What the rollout predicts of spikes, and of mean responses."""
    bits = "lrrnn/bits_per_spike"
    if bits not in f.metrics:
        return ""
    said = []
    if f"{bits}_prior" in f.metrics:
        source = "inputs alone" if f.has_inputs else "start of each trial, as inferred from its spikes, alone"
        said.append(
            f"From the {source} the fit predicts spikes {_gain(f.metrics[f'{bits}_prior'])} than {nulls.MEAN_RATE}."
        )
    if "lrrnn/psth_r2_evidence" in f.metrics:
        r2 = f.metrics["lrrnn/psth_r2_evidence"]
        said.append(f"It predicts mean responses by evidence with a median R² of {r2:.2f} over neurons (mean rate: 0).")
    return " ".join(said)


def _baseline(f: Findings) -> str:
    bits = "lrrnn/bits_per_spike"
    if f.baseline is None or bits not in f.metrics:
        return ""
    said = f"Beside the latent state each neuron has the {f.baseline} baseline. It consists of {GRANTS[f.baseline]}."
    other = f.metrics.get(f"{bits}_{f.other_baseline}")
    if other is not None:
        said += (
            f" With the {f.other_baseline} baseline instead, the fit predicts spikes {_gain(other)} than mean rates."
        )
    return said


def _bits(bits: float) -> str:
    return f"{bits:.{2 if abs(bits) >= _MANY_BITS else 3}f}".replace("-", "−")


def _gain(bits: float) -> str:
    return f"{_bits(abs(bits))} bits per spike {'better' if bits > 0 else 'worse'}"


def _dynamics(f: Findings) -> str:
    """The attractors with their probabilities, and how well the inferred connectivity reproduces the vector field."""
    return " ".join(part for part in (_attractors(f), _field(f)) if part)


def _field(f: Findings) -> str:
    error = f.metrics.get("dynamics/field_error")
    if error is None:
        return ""
    verdict = "closely" if error < _CLOSE else ("roughly" if error < _LARGE else "poorly")
    sampled = f.drawn_from_teacher is None and (f.kind == "spikes" or "lrrnn/process_noise" in f.metrics)
    field, own = (
        ("estimated vector field", " It excludes the estimate's own error.") if sampled else ("vector field", "")
    )
    return (
        f"The inferred connectivity reproduces the {field} {verdict}, with an error of {multiple(error)} its size.{own}"
    )


def _attractors(f: Findings) -> str:
    if f.attractors is None:
        return ""
    shown = [(kind.partition(" in the ")[0], probability(p)) for kind, p in f.attractors.items() if p >= _SHOWN]
    held = "; inputs at zero" if f.has_inputs else ""
    if max(f.attractors.values()) >= CERTAIN:
        (kind, first), *rest = shown
        others = "".join(f"; {kind}: {p}" for kind, p in rest)
        doubted = f.diagnosis is not None and (f.diagnosis.warnings or not f.diagnosis.converged)
        trusted = ", if the fit can be trusted" if doubted else ""
        return f"The vector field of the visited region has {kind} (probability {first}{others}{held}){trusted}."
    listed = "; ".join(f"{kind}: {p}" for kind, p in shown)
    return f"The data cannot tell how many attractors the visited region holds (probabilities: {listed}{held})."


def _noise(f: Findings) -> str:
    """What the field's error includes that is no error of the connectivity."""
    if "dynamics/field_error" not in f.metrics or f.kind != "rates":
        return ""
    if f.drawn_from_teacher is not None or "lrrnn/process_noise" in f.metrics:
        return ""
    return (
        "The recorded vector field is how the inferred states move. It includes whatever noise the states have, which no "
        "connectivity reproduces."
    )


def _finite(f: Findings) -> str:
    if "dynamics/field_error" not in f.metrics:
        return ""
    said = []
    if f.unprojected_error is not None:
        infinite = multiple(f.metrics["dynamics/field_error"]).removesuffix(" of")
        said.append(
            f"A sampled network of {f.n_sampled} neurons at sigma = {f.sigma:g} misses the vector field by "
            f"{multiple(f.unprojected_error)} its size (infinitely many neurons: {infinite})."
        )
        if f.drawn_from_teacher is not None:
            said.append(
                f"A network drawn from the true distribution misses its own field by {percent(f.drawn_from_teacher)}."
            )
    projected = f.metrics.get("dynamics/field_error_projected")
    if projected is not None:
        what = "Projection" if said else f"In a sampled network of {f.n_sampled} neurons projection"
        reduces = f.unprojected_error is None or projected < f.unprojected_error
        said.append(
            f"{what}, the smallest change of the output weights that restores the recorded drive, "
            f"{'reduces the error to' if reduces else 'leaves an error of'} {multiple(projected)} its size."
        )
    kept = f.metrics.get("dynamics/attractors_kept")
    if said and kept is not None and f.n_networks:
        said.append(f"{round(kept * f.n_networks)} of {f.n_networks} projected networks keep the true attractors.")
    return " ".join(said)


def _determined(f: Findings) -> list[str]:
    """What the data require of the output weights: of their sums, and of the sign of nu."""
    if f.diagnosis is None:
        return ["The published ridge estimates no error. It does not show what the data require of the output weights."]
    nu = "nu, the mean output weight of neurons with given loadings,"
    if f.diagnosis.sign_determined.any():
        signed = f"If {nu} is smooth, its sign is determined for {signs(f.diagnosis)} of the sampled neurons, though not independently."
        if not f.diagnosis.calibrated:
            signed += " The coverage of the intervals behind this has not been measured."
    else:
        signed = f"Even if {nu} is smooth, its sign is determined for none of the sampled neurons."
    if f.diagnosis.warnings:
        signed += " See the cautions about nu below."
    elif not f.diagnosis.converged:
        signed += " The fit of nu did not converge."
    modes = rough(f.diagnosis.determined_modes)
    return [
        f"The data constrain about {modes} independent weighted sums of output weights per latent dimension.",
        signed,
    ]


def _cell_types(f: Findings) -> str:
    """Graded: groups with gaps between them, else the shape alone, which is no evidence for types."""
    gap, shape = (f.metrics.get(f"connectivity/{name}") for name in ("groups_p", "cell_types_p"))
    if gap is None and shape is None:
        return ""
    other = "" if shape is None else _shape(shape)
    if gap is None:
        return other
    if gap > LEVEL:
        said = [f"Separated groups of neurons (cell types) are not shown (p = {rough(gap)})."]
        least = f.metrics.get("connectivity/groups_detectable")
        if least is not None:
            said.append(f"With so many neurons two equal groups show in 8 of 10 cases if {least:.1f} sd or more apart.")
        return " ".join([*said, *([other] if other else [])])
    count = round(f.metrics.get("connectivity/groups", 2))
    said = [f"The loadings form {count} groups with gaps between them (p = {rough(gap)})."]
    stability = f.metrics.get("connectivity/groups_stability")
    if stability is not None:
        said.append(f"As many show in {percent(stability)} of half-samples.")
    said.append("A single population with a narrow waist, or densest at its ends, can look the same: see the figure.")
    if f.n_neurons < FEW_FOR_GROUPS:
        said.append(f"With fewer than {FEW_FOR_GROUPS} neurons this is suggestive at most.")
    if f.kind == "spikes":
        said.append(
            "This holds only if the fitted loadings are right: an input that was left out, or few neurons, can make loadings look "
            "clustered."
        )
    return " ".join(said)


def _shape(p: float) -> str:
    if p < LEVEL:
        return (
            f"The loadings are not one Gaussian or Student-t population (p = {rough(p)}). This concerns their shape and is no "
            "evidence for cell types."
        )
    return f"The loadings look like one Gaussian or Student-t population (p = {rough(p)})."


def _input_weights(f: Findings) -> str:
    if f.b_different is None:
        return ""
    if f.b_different < _UNSUPPORTED:
        verdict = "do not support the input weights b, nor structure of n along them"
    elif f.b_different < _SUPPORTED:
        verdict = "support the input weights b in part"
    else:
        verdict = "support the input weights b"
    return (
        f"The data {verdict}: the 95 % interval excludes zero for {percent(f.b_different)} of them (chance: up to 5 %)."
    )


def _open(f: Findings) -> str:
    said = [f"how n scatters around nu (sigma = {f.sigma:g} was chosen)"]
    if f.diagnosis is not None:
        loose = f.diagnosis.open_share
        if loose > 0:
            said.append(f"the size of nu for {'any neuron' if loose == 1 else f'{percent(loose)} of the neurons'}")
    even = "the even part of nu, which affects the dynamics only if neurons are silenced"
    if f.odd and len(said) == 1:
        said.append(even)
    rest = f" Nor do they determine {even}." if f.odd and even not in said else ""
    return f"The data do not determine {', nor '.join(said)}.{rest}"


def _sigma(f: Findings) -> str:
    return f"{relative_sigma(f.sigma, f.spread)}."


def relative_sigma(sigma: float, spread: float) -> str:
    """What sigma is relative to the spread of nu over neurons, in words; no full stop."""
    if not spread > 0:
        return f"sigma = {sigma:g} is a choice; nu is the same for all neurons"
    ratio = sigma / spread
    if ratio < _SMALL:
        verdict = "By this choice samples hardly differ from nu"
    elif ratio < _COMPARABLE:
        verdict = "It blurs nu visibly in a sample"
    else:
        verdict = "A sample shows this choice as much as nu"
    return (
        f"sigma = {sigma:g} is a choice, {percent(ratio)} of the spread of nu over neurons ({rough(spread)}). {verdict}"
    )
