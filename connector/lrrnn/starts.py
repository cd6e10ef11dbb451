"""Starts of a fit to rates, and how its inputs enter: judged by the rollouts of validation trials, the simplest on ties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from connector.data.folds import Fold
from connector.data.input_filter import INPUT_KINDS, with_inputs
from connector.errors import UserError
from connector.lrrnn.closed_form import bias_supported, fit_rates_closed_form
from connector.lrrnn.rate_model import RateModel
from connector.numerics import ridge, sum_of_trials
from connector.types import Recording, TrialBatch

# Ridge parameter of a quick start, in units of the power of the rates over their number.
_RIDGE = 1e-4
# What counts as better: a gain of so many standard errors over trials, of this share of the error and of the power.
_CLEAR, _LEAST_SHARE, _LEAST_POWER = 2.0, 0.01, 1e-5
# Twice the inputs gain something wherever a fit falls short: they have to gain so much of the error, and beyond the noise.
_LEAST_SHARES_OF_BOTH = 0.2, 0.67

# What errors of a step are predicted with: training trials, the ridge parameter of standardised products for each sample, and how
# many inputs (at both ends) are multiplied with one another.
_TRIALS_OF_ERRORS, _RIDGE_OF_ERRORS, _FEW_INPUTS = 150, 1e-3, 30


@dataclass(frozen=True)
class Start:
    """A fitted model, the kind of its inputs, and its errors on validation trials (B,): mean squares of each rollout."""

    kind: str
    model: RateModel
    errors: Tensor

    @property
    def loss(self) -> float:
        return float(self.errors.mean())


def trial_errors(model: RateModel, recording: Recording, fold: Fold) -> Tensor:
    """Mean squared errors of the rollouts of validation trials (B,), infinite where one ran away."""
    found = model.trial_errors(TrialBatch.of(recording, fold.validation)).double()
    return torch.where(torch.isfinite(found), found, torch.inf)


def predictable_errors(model: RateModel, recording: Recording, fold: Fold) -> float:
    """Share of the errors of one step, z[t+1] less the model's step from z[t], that products of states and inputs at both of
    its ends predict in validation trials: 0 for noise of the states, up to 1 where the dynamics are missed."""
    seen = [_errors_of_step(model, recording, part) for part in (fold.train[:_TRIALS_OF_ERRORS], fold.validation)]
    (design, errors), (held_design, held_errors) = seen
    unit = design.square().mean(0).sqrt().clamp_min(1e-300)
    weights = ridge(design / unit, errors, _RIDGE_OF_ERRORS * len(design))
    left = (held_errors - held_design / unit @ weights).square().sum()
    return 1 - float(left / (held_errors - errors.mean(0)).square().sum())


@torch.no_grad()
def _errors_of_step(model: RateModel, recording: Recording, part: Tensor) -> tuple[Tensor, Tensor]:
    """Products of states and inputs (N, p), and errors of one step (N, R), float64, of trials ``part``."""
    batch = TrialBatch.of(recording, part)
    z = model.least_squares(batch.activity, batch.mask, batch.inputs).z
    pairs, now, network = batch.mask[:, 1:], z[:, :-1], model.rnn.network().double()
    u = None if batch.inputs is None else batch.inputs.double()
    errors = z[:, 1:] - network.step(now, None if u is None else u[:, :-1])
    inputs = now[..., :0] if u is None else torch.cat([u[:, :-1], u[:, 1:]], -1)
    parts = [torch.ones_like(now[..., :1]), now, inputs, inputs**3, _products(now, now), _products(now, inputs)]
    if inputs.shape[-1] <= _FEW_INPUTS:
        parts.append(_products(inputs, inputs))
    return torch.cat(parts, -1)[pairs], errors[pairs]


def _products(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def quick_start(recording: Recording, fold: Fold, arguments: dict[str, Any], kind: str) -> Start | None:
    """The closed form without simulated trajectories, a tenth of its cost; None where the training trials allow none.

    Args:
        recording: with its inputs as they were given, or of this ``kind``.
        arguments: of :class:`RateModel`; ``has_bias`` None: as the rates ask for.
    """
    seen = with_inputs(recording, kind)
    train = seen.trials(fold.train)
    ridge = _RIDGE * float(train.activity[train.mask].square().mean()) / train.n_neurons
    rank, has_bias = arguments["rank"], arguments["has_bias"]
    try:
        if has_bias is None:
            has_bias = bias_supported(train, rank)
        model = RateModel(**arguments | {"n_inputs": seen.n_inputs, "has_bias": has_bias})
        model.start_from(fit_rates_closed_form(train, rank, has_bias, ridge, smooth=False), train.scale)
    except (UserError, torch.linalg.LinAlgError):
        return None
    return Start(kind, model, trial_errors(model, seen, fold))


def clearly_better(errors: Tensor, others: Tensor, power: float, least_share: float = _LEAST_SHARE) -> bool:
    """Whether errors (B,) of validation trials are lower than ``others`` of the same trials beyond chance, and noticeably."""
    gain = others - errors
    least = max(least_share * float(others.mean()), _LEAST_POWER * power)
    if not bool(torch.isfinite(others).all()):
        return bool(torch.isfinite(errors).all())
    return float(gain.mean()) > max(least, _CLEAR * float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else 0.0)


def best_inputs(recording: Recording, fold: Fold, arguments: dict[str, Any]) -> dict[str, Start]:
    """A quick start for each kind of inputs that allows one, the chosen kind last: the simplest that no other clearly beats.

    Args:
        recording: rates with their inputs as they were given.
    """
    found = {}
    for kind in INPUT_KINDS:
        start = quick_start(recording, fold, arguments, kind)
        if start is not None:
            found[kind] = start
    power, chosen = power_about_means(recording, fold), next(iter(found), None)
    if recording.trained is not None and recording.trained.filters and "filtered" in found:
        chosen = "filtered"  # of that network it is the exact one
    # Even a perfect rollout leaves the noise of single rates, of which the shares of an error do not speak.
    noise = min((float(start.model.residual_variance) for start in found.values()), default=0.0)
    for kind, start in found.items():
        shares = _LEAST_SHARES_OF_BOTH if kind == "both" else (0.0, _LEAST_SHARE)
        pairs = [(start.errors - least, found[chosen].errors - least) for least in (0.0, noise)]
        if all(clearly_better(*pair, power, share) for pair, share in zip(pairs, shares)):
            chosen = kind
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: kind == chosen)}


def power_about_means(recording: Recording, fold: Fold, part: Tensor | None = None) -> float:
    """Mean square of the rates of trials ``part``, by default validation, about their means over training trials: the loss of
    a model that knows these."""
    # Samples past a trial's end are zero, so that this sum needs no mask.
    mean = sum_of_trials(recording.activity, fold.train) / recording.lengths[fold.train].sum()
    part = fold.validation if part is None else part
    mask, scale = recording.mask[part], recording.scale
    deviations = (recording.activity[part] - mean.to(recording.activity)) * mask[..., None]
    squares = sum_of_trials(deviations.square_()) / mask.sum()
    return float((squares if scale is None else squares * scale.weight).mean())
