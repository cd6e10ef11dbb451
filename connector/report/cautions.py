"""What a reader should know before believing the rest of a report."""

from __future__ import annotations

from collections.abc import Mapping

from connector.report import determined
from connector.report.determined import Determined

NEURONS_PER_COLUMN = 10  # below, a distribution of the loadings is mostly assumption
SATURATED, LEFT_REGION, OUTSIDE_SUPPORT = "dynamics/saturated", "dynamics/left_region", "loadings/outside_support"
DRIVE_GAIN, DRIVE_GAIN_SD, _GAIN_TOLERANCE = "dynamics/drive_gain", "dynamics/drive_gain_sd", 0.05
# Shares above which a reader is warned.
LIMITS = {SATURATED: 0.5, LEFT_REGION: 0.05, OUTSIDE_SUPPORT: 0.05}


def cautions(n_neurons: int, n_columns: int, found: Determined | None, signs: list[str]) -> list[str]:
    """All cautions of a run.

    Args:
        n_neurons, n_columns: recorded neurons, loadings of each; found: what the data determine; signs: :func:`of_signs`.
    """
    said = []
    if n_neurons < NEURONS_PER_COLUMN * n_columns:
        said.append(
            f"Caution: {n_neurons} recorded neurons are few for a distribution over {n_columns} loadings each "
            f"(ask for {NEURONS_PER_COLUMN * n_columns} or more). The distribution of the loadings, and so every "
            "sampled network, is then mostly assumption; no test for cell types is made."
        )
    of_nu = () if found is None else determined.cautions(found)
    return [*said, *(f"Caution: {caution}" for caution in of_nu), *(f"Warning: {sign}." for sign in signs)]


def of_signs(metrics: Mapping[str, float], *, finite: bool = True, explained: float | None = None) -> list[str]:
    """Signs that a fit, a flow or a sampled network is not to be trusted, without the full stop.

    Args:
        metrics: of the run: shares that have a limit, and measures that have a baseline to beat.
        finite: the sampled network's weights are finite numbers.
        explained: share of the variance of validation trials' rates that the fit explains; None for spikes.
    """
    said = []
    if not finite:
        said.append("weights of the sampled network are not finite numbers; nothing below that rests on it holds")
    if metrics.get(SATURATED, 0.0) > LIMITS[SATURATED]:
        said.append(
            f"{100 * metrics[SATURATED]:.0f} % of the neurons' states lie where the activation is flat, so that rates say "
            "little of the latent states there; check data.activation and the scale of the rates"
        )
    if metrics.get(LEFT_REGION, 0.0) > LIMITS[LEFT_REGION]:
        said.append(
            f"in {100 * metrics[LEFT_REGION]:.0f} % of the test trials the projected network, started where the trial starts, "
            "leaves the region that training trials visit; what it does there was never fitted"
        )
    if metrics.get(OUTSIDE_SUPPORT, 0.0) > LIMITS[OUTSIDE_SUPPORT]:
        said.append(
            f"{100 * metrics[OUTSIDE_SUPPORT]:.0f} % of the sampled loadings lie where no recorded neuron is near; the flow of "
            "the loadings fits poorly, or their tails are heavy"
        )
    gain = metrics.get(DRIVE_GAIN, 1.0)
    if not abs(gain - 1) <= max(_GAIN_TOLERANCE, 2 * metrics.get(DRIVE_GAIN_SD, 0.0)):
        said.append(
            f"with n = nu the recorded neurons drive the latent states {gain:.2f} times as much as recorded (1 is right); nu is "
            "off in size by as much: state connectivity.recorded_fraction, or compare connectivity.estimator=gaussian_process"
        )
    if explained is not None and explained <= 0:
        said.append("on validation trials the fit explains the rates no better than each neuron's mean does")
    bits, null = metrics.get("lrrnn/bits_per_spike"), metrics.get("lrrnn/bits_per_spike_null_drift")
    if bits is not None and bits <= max(0.0, null or 0.0):
        than = "drift across the session alone" if (null or 0.0) > 0 else "each neuron's mean rate"
        said.append(f"on held-out trials the fit predicts spikes no better than {than} does")
    if metrics.get("dynamics/field_error", 0.0) >= 1:
        said.append("the inferred vector field is no closer to the recorded one than a field of zero would be")
    return said
