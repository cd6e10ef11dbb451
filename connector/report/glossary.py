"""What each number of a run means, and the words of a report, for a reader who meets them for the first time."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple


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


def _one_line(text: str) -> str:
    return " ".join(text.split())


_TEXT = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
METRICS: dict[str, Metric] = {
    key: Metric(said["label"], said["unit"], _one_line(said["explanation"]), said.get("better", ""))
    for key, said in _TEXT["measures"].items()
}
# What an estimate of nu says of itself: key of its ``summary`` -> what it is called, what it means.
ESTIMATE: dict[str, tuple[str, str]] = {key: (name, meaning) for key, (name, meaning) in _TEXT["estimate"].items()}
# The words of a report, for a reader who meets them for the first time.
WORDS: tuple[tuple[str, str], ...] = tuple((word, _one_line(meaning)) for word, meaning in _TEXT["words"].items())

# What runs are judged by, as far as they have it: what is known of the truth before the fit alone. The first that all
# of several runs have puts them in order.
MAIN_METRICS = (
    "connectivity/dissimilarity",
    "lrrnn/bits_per_spike",
    "dynamics/field_error",
    "dynamics/attractors_kept",
    "dynamics/field_error_projected",
    "lrrnn/bits_per_spike_prior",
    "lrrnn/val_loss",
)

# What a terminal shows of a run, the first eight that it has, under names short enough for a line.
SHORT = {
    "lrrnn/rates_r2": "Rates explained, test trials",
    "lrrnn/rates_r2_pca": "  by principal components of the same rank",
    "lrrnn/bits_per_spike": "Spikes predicted, over the mean rate",
    "lrrnn/bits_per_spike_gain": "  gain over the best null",
    "lrrnn/co_smoothing": "Spikes of hidden neurons predicted",
    "dynamics/field_error": "Error of the vector field, inferred network",
    "dynamics/field_error_projected": "  of a sampled network after projection",
    "dynamics/stable_points": "Stable fixed points, most probable number",
    "dynamics/stable_points_probability": "  its probability",
    "connectivity/dissimilarity": "Dissimilarity to the true connectivity",
    "dynamics/task": "Task solved by a sampled network",
    "dynamics/attractors_kept": "Projected networks with the true attractors",
    "lrrnn/bits_per_spike_prior": "Spikes predicted by the rollout",
    "connectivity/determined_modes": "Weighted sums of weights that the data fix",
    "connectivity/predicted_error": "Squared error of nu that the posterior expects",
    "lrrnn/val_loss": "Validation loss of the low-rank RNN",
}

# What each neuron is granted beside the latent state, as ``lrrnn.baseline`` names it.
BASELINES = {
    "standard": "slow drift across the session, where trial times are known, and the course within the trial",
    "local": "slow drift across the session, where trial times are known, and the course within the trial, scaled to the "
    "neuron's count in neighbouring training trials",
}

# The same with what is used where there is no trial time and bins are rich in spikes.
GRANTS = {**BASELINES, "constant": "its mean rate"}

TAKEN = {  # how a network takes its inputs
    "instant": "enter the neurons' potentials at once",
    "filtered": "pass the neurons' time constant before they enter the potentials",
    "both": "enter the neurons' potentials at once and through the neurons' time constant",
}
SCALE_KINDS = {  # what each neuron has beside its loadings, of rates on a scale of their own
    "offset": "each neuron has an offset",
    "gain": "each neuron has a gain",
    "both": "each neuron has a gain and an offset",
}
NO_TIMES = "needs the times of trials in the session, which this recording does not have"

# Measures under the other baseline: those of the fit, and those of the nulls with what the baseline grants them.
_SCORED = "Here the fitted model is scored with the {} baseline instead of its own. It consists of {}."
_NULL = "Here it has what the {} baseline grants in addition to the course within the trial: {}."
_GRANTED = {
    "standard": "slow drift across the session, where trial times are known",
    "local": "that drift, scaled to the neuron's count in neighbouring training trials",
}
_NULLS = [f"lrrnn/bits_per_spike_null_{name}" for name in ("drift", "drift_psth", "drift_evidence_psth")]
_OF_SPIKES = ["bits_per_spike", "bits_per_spike_prior", "co_smoothing", "psth_r2_evidence", "psth_r2_choice"]
_OF_SPIKES += ["choice_auc", "choice_auc_prior", "click_difference_auc", "psth_r2_evidence_noise_free"]


def _under(baseline: str, key: str, text: str) -> Metric:
    metric = METRICS[key]
    return metric._replace(label=f"{metric.label}, {baseline} baseline", explanation=f"{metric.explanation} {text}")


METRICS |= {
    f"{key}_{name}": _under(name, key, _NULL.format(name, _GRANTED[name])) for key in _NULLS for name in BASELINES
}
METRICS |= {
    f"lrrnn/{key}_{name}": _under(name, f"lrrnn/{key}", _SCORED.format(name, BASELINES[name]))
    for key in _OF_SPIKES
    for name in BASELINES
}

# What predictions gain over the best null, and how exactly that is known.
_GAIN = (
    "Gain over the best null without a latent state: the mean rate, drift across the session, mean responses, or mean "
    "responses by evidence. Below two standard errors the report says that nothing is gained."
)
_GAIN_ERROR = "Standard error over test trials, of paired differences of each trial's log-likelihood."
for _key in ("bits_per_spike", "bits_per_spike_prior", "co_smoothing"):
    _label = METRICS[f"lrrnn/{_key}"].label
    METRICS[f"lrrnn/{_key}_gain"] = Metric(f"{_label}: gain over the best null", "bits per spike", _GAIN, "higher")
    METRICS[f"lrrnn/{_key}_gain_error"] = Metric(
        f"{_label}: standard error of the gain over the best null", "bits per spike", _GAIN_ERROR
    )

# Checks of the model (connector.analysis.model_checks): other activations, standard errors, and what was found.
_OTHER = (
    "Share of the squared error of held-out rates, of neurons from which the states were not read, that {} removes if it replaces "
    "the stated activation. Negative where the stated one fits better. The report warns where it is clearly above 0."
)
_NAMES = {
    "rank": "the rank is too low",
    "fewer": "the rank is too high",
    "input": "an input is not recorded",
    "drift": "loadings change over the session",
    "smoothing": "rates were smoothed",
    "process_noise": "states carry noise",
    "time_step": "the time step is wrong",
    "alpha": "the time step of a whole network is wrong",
} | {f"activation_{name}": f"the activation is {name}" for name in ("tanh", "relu", "softplus", "sigmoid")}
for _name in ("tanh", "relu", "softplus", "sigmoid"):
    METRICS[f"lrrnn/check_activation_{_name}"] = Metric(
        f"Model check: {_name} as the activation", "share of the held-out squared error", _OTHER.format(_name)
    )
for _key in [
    *(f"activation_{name}" for name in ("tanh", "relu", "softplus", "sigmoid")),
    "rank",
    "fewer",
    "drift",
    "residual_correlation",
]:
    _metric = METRICS[f"lrrnn/check_{_key}"]
    METRICS[f"lrrnn/check_{_key}_error"] = Metric(
        f"{_metric.label}: standard error", _metric.unit, "Standard error over held-out trials."
    )
for _key, _text in _NAMES.items():
    METRICS[f"lrrnn/cause_{_key}"] = Metric(
        f"Found: {_text}",
        "number",
        "Present where the checks of the model found this cause. 1, or the number of missing dimensions. "
        "The report says what to do.",
    )
