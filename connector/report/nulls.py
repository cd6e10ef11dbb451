"""What a fit to spikes gains over what needs no latent state: drift across the session and mean responses."""

from __future__ import annotations

from collections.abc import Mapping

BITS = "lrrnn/bits_per_spike"
MEAN_RATE = "each neuron's mean rate"
_NULLS = {
    "drift": "drift across the session",
    "drift_psth": "drift and mean responses",
    "drift_evidence_psth": "drift and mean responses by evidence",
}
# By measure in bits per spike: what is predicted and from what; what to do where that gains nothing.
_PREDICTIONS = {
    BITS: (
        "the fit predicts spikes",
        "do not interpret single trials; compare other values of lrrnn.rank and other inputs",
    ),
    f"{BITS}_prior": (
        "the rollout of the fit predicts spikes",
        "do not interpret what the fitted dynamics do by themselves; compare other values of lrrnn.rank and other inputs",
    ),
    "lrrnn/co_smoothing": (
        "the fit predicts a neuron's spikes from those of the others",
        "do not interpret the latent states as activity that the neurons share; compare lower values of lrrnn.rank",
    ),
}
_CHECK_READING = (
    "check that trials, inputs and bin width were read as you intend (first lines of the report); then use more trials or "
    "another lrrnn.rank"
)
_ERRORS = 2.0  # standard errors that tell a gain from none
_CHANCE = 1.2  # of what principal components explain by chance
NO_FINDING = "no statement about dynamics or connectivity is a finding"
TO_DO = " What to do: "  # stands between what is wrong and its remedy, in every caution
_RELATIVE = 0.02  # of the null, where a run has no standard error of its gain


def best_null(metrics: Mapping[str, float]) -> tuple[str, float]:
    """What predicts the test trials best without a latent state, in words, and its bits per spike over the mean rate."""
    found = {words: metrics.get(f"{BITS}_null_{name}") for name, words in _NULLS.items()}
    known = {words: bits for words, bits in found.items() if bits is not None}
    if _NULLS["drift"] not in known:  # without times of the trials
        known = {words.removeprefix("drift and "): bits for words, bits in known.items()}
    return max([(MEAN_RATE, 0.0), *known.items()], key=lambda null: null[1])


def gain(metrics: Mapping[str, float], measure: str) -> tuple[float, float | None]:
    """Bits per spike over the best null, and its standard error where the run has it."""
    value = metrics.get(f"{measure}_gain", metrics[measure] - best_null(metrics)[1])
    return value, metrics.get(f"{measure}_gain_error")


def is_nil(metrics: Mapping[str, float], measure: str) -> bool:
    """Whether the gain cannot be told from none."""
    value, error = gain(metrics, measure)
    return value <= (_RELATIVE * abs(best_null(metrics)[1]) if error is None else _ERRORS * error)


def amount(metrics: Mapping[str, float], measure: str) -> str:
    """The gain with its standard error."""
    value, error = gain(metrics, measure)
    return f"{value:.2g}" + ("" if error is None else f" ± {error:.1g}")


def not_beaten(metrics: Mapping[str, float]) -> list[str]:
    """What is wrong and what to do, for each prediction that gains nothing."""
    null = best_null(metrics)[0]
    said = []
    for measure, (what, remedy) in _PREDICTIONS.items():
        if measure in metrics and is_nil(metrics, measure):
            wrong = (
                f"On test trials {what} no better than {null}: the gain is {amount(metrics, measure)} bits per spike."
            )
            if not said and no_spikes_predicted(metrics):
                wrong, remedy = f"{wrong} Hence {NO_FINDING}.", _CHECK_READING
            said.append(f"{wrong}{TO_DO}{remedy}.")
    return said


def no_spikes_predicted(metrics: Mapping[str, float]) -> bool:
    """Whether no prediction of spikes gains anything over mean rates and drift: not even mean responses were found."""
    measured = [measure for measure in _PREDICTIONS if measure in metrics]
    drift = max(0.0, metrics.get(f"{BITS}_null_drift", 0.0))
    chance = {m: metrics.get(f"{m}_gain_error", _RELATIVE * drift / _ERRORS) for m in measured}
    return bool(measured) and all(metrics[m] - drift <= _ERRORS * chance[m] for m in measured)


def nothing_shared(metrics: Mapping[str, float]) -> bool:
    """Whether rates have no more in common than those of neurons that have nothing in common."""
    null = metrics.get("lrrnn/rates_r2_null")
    return null is not None and metrics["lrrnn/rates_r2_pca"] <= _CHANCE * null


def nothing_found(metrics: Mapping[str, float]) -> str | None:
    """Why nothing that is said of dynamics and connectivity is a finding; None where something may be."""
    if no_spikes_predicted(metrics):
        return f"the fit predicts spikes no better than {MEAN_RATE} and drift"
    return "the neurons' rates have nothing in common" if nothing_shared(metrics) else None
