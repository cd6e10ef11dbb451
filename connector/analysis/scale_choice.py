"""Have neurons a gain or an offset of their own? The simplest scale under which held-out rates are as likely as under any.

Nothing here knows of the dynamics: on samples of other trials the states are read through loadings, gains and offsets that
training trials gave, and the likelihood of the rates is taken with each neuron's noise. Other activations are tried beside.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.analysis.readout_checks import trial_error
from connector.data.folds import Fold
from connector.errors import UserError
from connector.lrrnn.latents import latents_of
from connector.lrrnn.observation import Observation
from connector.lrrnn.samples import ActivitySamples
from connector.lrrnn.scale import ScaleFit
from connector.lrrnn.scales import SCALES, fit_scale
from connector.lrrnn.start import with_noise_seen
from connector.numerics import even_rows, random_rows
from connector.types import Recording
from connector.units import RateScale

_NEURONS, _SAMPLES, _HELD = 100, 800, 500
_CLEAN = 1e-6  # share of the signal that is left of rates that need no scale
_CLEAR = 3.0  # standard errors over trials
# Gains of log likelihood, nats per rate: of a scale over none for rates that are in the range of phi, where gains also take up what
# a rank too low leaves (0.04 in a network trained to remember two bits); of another activation; among scales.
_LEAST, _LEAST_OTHER, _LEAST_AMONG = 0.15, 0.03, 0.005
_DEVIATIONS = 100_000  # looked at
_SMALL, _LEAST_OF_SMALL = (
    0.2,
    0.03,
)  # deviations of rates from their means that show no bend of phi; the gain asked for then
_OTHERS = ("tanh", "softplus", "relu")  # a sigmoid with gain and offset is a tanh


@dataclass(frozen=True)
class ScaleChoice:
    """Result of :func:`choose_scale`.

    Attributes:
        kind: of the scale; the simplest that no other is clearly better than.
        scores: kind -> log likelihood of held-out rates, nats per rate, of those tried.
        activations: the same of gains and offsets with other activations.
        better: the activation that is clearly better than the stated one; or None.
    """

    kind: str
    scores: dict[str, float]
    activations: dict[str, float]
    better: str | None = None


def held_out_likelihood(fit: ScaleFit, held: ActivitySamples) -> Tensor:
    """Log likelihood of the rates of each held-out sample, nats per rate: (S,)."""
    scale, theta = fit.scale(), fit.state.theta
    activity = torch.zeros_like(held.activity)
    activity[held.rows] = scale.own(held.activity[held.rows])
    size = float(activity[held.rows].square().mean().sqrt())
    own = replace(held, activity=activity, scale=scale)
    z = latents_of(own, theta, fit.rank, Observation.of(fit.phi.name, size=size))[0]
    rates = scale.recorded(fit.phi(own.design(z, fit.has_bias) @ theta.T))
    error = held.activity[held.rows].double() - rates
    return -0.5 * (error.square() / fit.variance + (2 * torch.pi * fit.variance).log()).mean(1)


def choose_scale(recording: Recording, fold: Fold, rank: int, has_bias: bool) -> ScaleChoice:
    """By training and validation trials; subsets of 100 neurons and 800 samples serve.

    Args:
        recording: rates in their own units; ``out_of_range`` tells whether they may have no scale at all.
        rank, has_bias: of the loadings.

    Raises:
        UserError: rates that the rank cannot be fitted to.
    """
    some = recording.neurons(even_rows(recording.n_neurons, _NEURONS))
    train = some.trials(fold.train)
    samples = ActivitySamples.of(some.activity, _mask_of(some, fold.validation), some.inputs)
    held = samples.subset(random_rows(len(samples), _HELD))
    trial = held.rows // some.n_steps
    likely: dict[str, Tensor] = {}

    def tried(kind: str, activation: str = recording.activation) -> ScaleFit | None:
        with contextlib.suppress(UserError, torch.linalg.LinAlgError):
            fit = fit_scale(replace(train, activation=activation), rank, has_bias, kind, _SAMPLES)
            likely[kind if activation == recording.activation else activation] = held_out_likelihood(fit, held)
            return fit
        return None

    if not recording.out_of_range:
        noise = with_noise_seen(samples, Observation.of(recording.activation)).noise
        plain = tried("none") if noise == "gaussian" else None
        clean = plain is not None and float((plain.variance / plain.size.square()).mean()) < _CLEAN
        if noise != "gaussian" or clean:
            return ScaleChoice("none", {}, {})
    tried("both")
    seen = some.activity[_mask_of(some, fold.train)].double()
    away = (seen - seen.mean(0)).abs().flatten()
    small = float(away[random_rows(len(away), _DEVIATIONS)].quantile(0.99)) < _SMALL  # as of rates in another unit
    least = _LEAST_OF_SMALL if small else _LEAST
    if "both" not in likely or ("none" in likely and not _better(likely["both"], likely["none"], trial, least)):
        return ScaleChoice("none", {kind: float(x.mean()) for kind, x in likely.items()}, {})
    tried("offset")
    tried("gain")
    kind = next(
        one
        for one in SCALES
        if one in likely and not any(_better(x, likely[one], trial, _LEAST_AMONG) for x in likely.values())
    )
    scores = {one: float(likely[one].mean()) for one in SCALES if one in likely}
    stated, others = likely["both"], [name for name in _OTHERS if name != recording.activation]
    if recording.activation == "sigmoid":
        others.remove("tanh")
    for name in others:
        tried("both", name)
    there = {name: likely[name] for name in others if name in likely}
    best = max(there, key=lambda name: float(there[name].mean()), default=None)
    better = best if best is not None and _better(there[best], stated, trial, _LEAST_OTHER) else None
    return ScaleChoice(kind, scores, {name: float(x.mean()) for name, x in there.items()}, better)


def _mask_of(recording: Recording, trials: Tensor) -> Tensor:
    mask = torch.zeros_like(recording.mask)
    mask[trials] = recording.mask[trials]
    return mask


def _better(likely: Tensor, other: Tensor, trial: Tensor, least: float) -> bool:
    """Whether rates are clearly and noticeably more likely, by the samples (S,) of some trials."""
    gain = likely - other
    return float(gain.mean()) > max(least, _CLEAR * trial_error(gain, trial))


def gains_open(scale: RateScale, least: float = 0.3) -> float:
    """Share of the neurons whose gain the rates leave open by a factor of exp(least) or more."""
    return float((scale.errors[:, 0] > least).double().mean()) if scale.gains else 0.0
