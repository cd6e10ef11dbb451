"""What a reader should know before believing the rest of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from connector.report import causes, determined, nulls
from connector.report.determined import Determined
from connector.report.nulls import TO_DO
from connector.report.numbers import percent

WORDS = ("Caution", "Warning")
NEURONS_PER_COLUMN = 10  # below, a distribution of the loadings is mostly assumption
SATURATED, LEFT_REGION, OUTSIDE_SUPPORT = "dynamics/saturated", "dynamics/left_region", "loadings/outside_support"
DRIVE_GAIN, DRIVE_GAIN_SD, _GAIN_TOLERANCE = "dynamics/drive_gain", "dynamics/drive_gain_sd", 0.05
_LESS_THAN_LINEAR = 0.05  # variance explained by known loadings, below what a linear reading of known latents explains
_FAR_ORIGIN = 0.5  # standard deviations of given latents
POSTERIOR_SEEN, LEAST_SEEN = "lrrnn/posterior_seen", 0.4
_PROJECTED_MISSES = 0.5  # of the field's rms, where it is also more than thrice what infinitely many neurons miss
SHARE_OF_LINEAR = 0.8  # of what principal components explain: a fit below has missed the dynamics
# Shares above which a reader is warned.
LIMITS = {SATURATED: 0.5, LEFT_REGION: 0.05, OUTSIDE_SUPPORT: 0.05}


def cautions(
    n_neurons: int, n_columns: int, found: Determined | None, signs: list[str], *, cause_named: bool = False
) -> list[str]:
    """All cautions of a run.

    Args:
        n_neurons, n_columns: recorded neurons, loadings of each; found: what the data determine; signs: :func:`of_signs`.
        cause_named: signs say which assumption of the model is wrong.
    """
    said = []
    if n_neurons < NEURONS_PER_COLUMN * n_columns:
        said.append(
            f"Caution: {n_neurons} recorded neurons are few for a distribution over {n_columns} loadings each; "
            f"{NEURONS_PER_COLUMN * n_columns} or more are needed. The distribution of the loadings, and with it every sampled "
            f"network, is mostly assumption. Cell types are not tested.{TO_DO}use more neurons or a lower lrrnn.rank."
        )
    of_nu = () if found is None else determined.cautions(found, cause_named=cause_named)
    return [*said, *(f"Caution: {caution}" for caution in of_nu), *warnings(signs)]


def warnings(signs: Iterable[str]) -> list[str]:
    """Signs of trouble as they are printed and stand in a report."""
    return [f"Warning: {sign}" for sign in signs]


def warnings_of(metrics: Mapping[str, float]) -> list[str]:
    """Of a run without sampled networks."""
    return warnings(of_signs(metrics))


class Said(NamedTuple):
    """A caution in its parts: "Caution", "Warning" or another word before a colon, what is wrong, what to do about it."""

    word: str
    wrong: str
    remedy: str


def parted(caution: str) -> Said:
    """The parts of a line of :func:`cautions`; without a remedy where it has none."""
    wrong, _, remedy = caution.partition(TO_DO)
    word, colon, rest = wrong.partition(": ")
    if not colon or word not in WORDS:
        word, rest = WORDS[0], wrong
    return Said(word, rest, remedy[:1].upper() + remedy[1:])


def of_signs(metrics: Mapping[str, float], *, finite: bool = True) -> list[str]:
    """Signs that a fit, a flow or a sampled network is not to be trusted: what is wrong and what to do.

    Args:
        metrics: of the run: shares that have a limit, and measures that have a baseline to beat.
        finite: the sampled network's weights are finite numbers.
    """
    said = []
    if not finite:
        said.append(
            f"The sampled network has weights that are not finite. No result that uses it is valid.{TO_DO}run again with "
            "another seed, and look for extreme values in the recording."
        )
    if metrics.get(SATURATED, 0.0) > LIMITS[SATURATED]:
        said.append(
            f"{percent(metrics[SATURATED])} of the neurons' states lie where the activation is flat (limit: "
            f"{percent(LIMITS[SATURATED])}). Rates say little about the latent states there.{TO_DO}check data.activation and "
            "the scale of the rates."
        )
    if metrics.get(LEFT_REGION, 0.0) > LIMITS[LEFT_REGION]:
        said.append(
            f"In {percent(metrics[LEFT_REGION])} of the test trials the projected network leaves the region that training "
            f"trials visit (limit: {percent(LIMITS[LEFT_REGION])}). What it does there was never fitted.{TO_DO}interpret the "
            "network within the visited region only."
        )
    if metrics.get(OUTSIDE_SUPPORT, 0.0) > LIMITS[OUTSIDE_SUPPORT]:
        said.append(
            f"{percent(metrics[OUTSIDE_SUPPORT])} of the sampled loadings lie far from every recorded neuron (limit: "
            f"{percent(LIMITS[OUTSIDE_SUPPORT])}). The flow fits the loadings poorly, or their tails are heavy.{TO_DO}compare "
            "recorded and sampled loadings in the figure; raise connectivity.loadings_epochs."
        )
    said += _of_nu(metrics)
    said += _of_model(metrics)
    said += nulls.not_beaten(metrics)
    if metrics.get("lrrnn/rollout_r2", 1.0) <= 0:
        said.append(
            "Started at the first state of each test trial, the fitted network predicts rates no better than their training "
            f"means. Its dynamics are not the recorded ones.{TO_DO}check data.alpha, lrrnn.rank and lrrnn.inputs."
        )
    if metrics.get("dynamics/field_error", 0.0) >= 1:
        said.append(
            f"The inferred vector field is no closer to the recorded one than a field of zero.{TO_DO}do not interpret the "
            "connectivity; check data.alpha, data.activation and lrrnn.rank."
        )
    projected = metrics.get("dynamics/field_error_projected", 0.0)
    if projected > _PROJECTED_MISSES and projected > 3 * metrics.get("dynamics/field_error", math.inf):
        said.append(
            f"A sampled network misses the vector field by {projected:.2g} times its size even after projection. Either its n "
            "scatter too much for so few neurons, or too few neurons were drawn. connectivity.sigma, their scatter, has the unit of n: "
            f"rates in larger units make n smaller.{TO_DO}choose connectivity.sigma below the spread of nu, which the report names "
            "beside it, or draw networks with sigma=0."
        )
    return said


def _of_nu(metrics: Mapping[str, float]) -> list[str]:
    """Signs that nu is off in size, comes from single bins, or depends on an origin that was not chosen."""
    said = []
    seen = metrics.get(POSTERIOR_SEEN, 1.0)
    if not seen >= LEAST_SEEN:
        said.append(
            f"The spikes show the time course of one latent dimension to {percent(max(0.0, seen))} only (needed: "
            f"{percent(LEAST_SEEN)}). No posterior of the dynamics is given, and nu comes from single time bins.{TO_DO}lower "
            "lrrnn.rank by one."
        )
    gain, error = metrics.get(DRIVE_GAIN, 1.0), metrics.get(DRIVE_GAIN_SD, math.nan)
    known = math.isfinite(error)
    if not abs(gain - 1) <= max(_GAIN_TOLERANCE, 2 * error if known else 0.0):
        right = "1 is right" if known else "1 is right; one training trial does not tell the chance error"
        said.append(
            f"With n = nu the recorded neurons drive the latent states {gain:.2f} times as much as recorded ({right}). The size "
            f"of nu is off by this factor.{TO_DO}check data.alpha and lrrnn.rank, state connectivity.recorded_fraction, or "
            "compare connectivity.estimator=gaussian_process."
        )
    distance = metrics.get("lrrnn/origin_distance", 0.0)
    if distance > _FAR_ORIGIN:
        said.append(
            f"The given latents have an origin {distance:.2g} standard deviations of the latents away from the one that makes nu "
            f"most plausible. Another origin changes nu.{TO_DO}check whether the latents were centred or moved, or add lrrnn to "
            "`stages` to have the origin chosen."
        )
    return said


def _of_model(metrics: Mapping[str, float]) -> list[str]:
    """Causes where they are known; else what only says that something is wrong. Latents and loadings that were given and do
    not belong to the rates, or rates that share nothing, have no causes among the model's assumptions."""
    of_rates = _of_rates(metrics)
    if of_rates and (nulls.nothing_shared(metrics) or "lrrnn/rates_r2_linear" in metrics):
        return of_rates
    return causes.of_causes(metrics) or of_rates


def _of_rates(metrics: Mapping[str, float]) -> list[str]:
    explained, linear = metrics.get("lrrnn/rates_r2"), metrics.get("lrrnn/rates_r2_pca", 0.0)
    if explained is None:
        return []
    if nulls.nothing_shared(metrics):
        return [
            f"Principal components of the same rank explain {percent(linear)} of the variance of the rates, as they do for neurons "
            f"with nothing in common ({percent(metrics['lrrnn/rates_r2_null'])}). Hence {nulls.NO_FINDING}.{TO_DO}check that the "
            "file's axes were read as you intend (first lines of the report), and that all neurons were recorded in the same trials."
        ]
    reading = metrics.get("lrrnn/rates_r2_linear")
    if reading is not None:  # nothing was fitted to the rates
        if explained >= reading - _LESS_THAN_LINEAR and reading >= SHARE_OF_LINEAR * linear:
            return []
        return [
            f"The file's latents and MBD explain {percent(explained)} of the variance of its rates, the best linear function of "
            f"these latents {percent(reading)}, principal components of the same rank {percent(linear)}. They do not belong "
            f"together.{TO_DO}check the order of neurons and trials, the units of latents and MBD, and data.activation."
        ]
    check = f"{TO_DO}check data.alpha, data.activation and lrrnn.rank."
    if explained <= 0:
        return [
            f"On test trials the fit explains the rates no better than each neuron's mean over training trials.{check}"
        ]
    if explained < SHARE_OF_LINEAR * linear:
        return [
            f"On test trials the fit explains {percent(explained)} of the variance of the rates, principal components of the "
            f"same rank {percent(linear)}.{check}"
        ]
    return []
