"""What a neuron fires apart from the latent state: slow drift across the session, and the course within a trial.

Every baseline is fitted on training trials only and enters a spike model inside its nonlinearity:

    expected count = count_scale * softplus(C z + d + baseline),

so it is measured in units of the softplus's argument. ``count_scale`` is the rate at softplus = 1 times the bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.dynamics import activation
from connector.errors import UserError
from connector.memo import remembered
from connector.numerics import gaussian
from connector.report.glossary import NO_TIMES
from connector.types import Recording

BASELINES = ("local", "standard", "constant")
_SOFTPLUS = activation("softplus")


def count_scale(recording: Recording, rate_scale_hz: float = 10.0) -> float:
    """Expected count per bin where softplus is 1: ``rate_scale_hz`` times the bin, or 1 where the bin has no unit."""
    if recording.kind != "spikes":
        raise UserError("a recording of spike counts", f"{recording.kind} in '{recording.name}'")
    if recording.bin_s is None:
        return 1.0
    if not rate_scale_hz > 0:
        raise UserError("a positive rate_scale_hz", str(rate_scale_hz))
    return rate_scale_hz * recording.bin_s


class PoissonFit(NamedTuple):
    """Coefficients (K, P) of K Poisson regressions, the inverse of their penalised Fisher information (K, P, P)."""

    coefficients: Tensor
    covariance: Tensor


def _objective(x: Tensor, counts: Tensor, scale: float, coefficients: Tensor, precision: Tensor) -> Tensor:
    """Penalised negative log-likelihood of each neuron, (K,), without the terms that do not depend on x."""
    rate = F.softplus(x)
    nats = (scale * rate - counts * torch.log(rate.clamp_min(1e-12))).sum(0)
    return nats + 0.5 * (coefficients**2 * precision).sum(1)


def poisson_regression(
    design: Tensor,
    counts: Tensor,
    *,
    offset: Tensor | float = 0.0,
    penalty: Tensor | float = 1e-3,
    scale: float = 1.0,
    start: Tensor | None = None,
    max_steps: int = 30,
    tolerance: float = 1e-7,
) -> PoissonFit:
    """counts ~ Poisson(scale * softplus(design @ w + offset)), one penalised fit per neuron, by Fisher scoring.

    softplus is convex and log-concave, so the problem is convex; a step that does not improve is halved.

    Args:
        design: (N, P), shared by all neurons.
        counts: (N, K).
        offset: (N, K) or a number.
        penalty: (P,) or a number: precision of a normal prior on each coefficient, mean zero.
        scale: expected count where softplus is 1.
        start: (K, P) starting coefficients, default zero.

    Returns:
        Coefficients (K, P) and the inverse of the penalised Fisher information (the Laplace covariance,
        (K, P, P)), float64.
    """
    design, counts = design.double(), counts.double()
    offset = offset.double() if isinstance(offset, Tensor) else offset
    n_columns, n_neurons = design.shape[1], counts.shape[1]
    precision = torch.as_tensor(penalty, dtype=torch.float64).expand(n_columns)
    weights = design.new_zeros(n_neurons, n_columns) if start is None else start.double().clone()
    products = (design[:, :, None] * design[:, None, :]).flatten(1)

    def information(x: Tensor) -> Tensor:
        slope = torch.sigmoid(x)
        fisher = scale * slope**2 / F.softplus(x).clamp_min(1e-12)
        return (fisher.T @ products).view(n_neurons, n_columns, n_columns) + torch.diag(precision)

    x = design @ weights.T + offset
    value = _objective(x, counts, scale, weights, precision)
    for _ in range(max_steps):
        slope = torch.sigmoid(x)
        gradient = (slope * (scale - counts / F.softplus(x).clamp_min(1e-12))).T @ design + weights * precision
        move = torch.linalg.solve(information(x), gradient)
        length = torch.ones(n_neurons, 1, dtype=torch.float64)
        for _ in range(12):
            trial = weights - length * move
            x_trial = design @ trial.T + offset
            new = _objective(x_trial, counts, scale, trial, precision)
            worse = ~(new <= value + 1e-10 * value.abs())
            if not worse.any():
                break
            length = torch.where(worse[:, None], 0.5 * length, length)
        trial = torch.where(worse[:, None], weights, trial)
        gain = torch.where(worse, torch.zeros_like(value), value - new)
        weights, value = trial, torch.where(worse, value, new)
        x = design @ weights.T + offset
        if (gain <= tolerance * (1 + value.abs())).all():
            break
    return PoissonFit(weights, torch.linalg.inv(information(x)))


def raised_cosines(x: Tensor, n_bumps: int, low: float, high: float) -> Tensor:
    """``n_bumps`` raised cosines 0.5 (1 + cos(pi (x - centre) / spacing)), one spacing wide to either side.

    Centres spread evenly over [low, high]; between them the bumps sum to 1.

    Args:
        x: any shape.

    Returns:
        (..., n_bumps) float64.
    """
    if n_bumps < 1:
        raise UserError("at least one raised cosine", str(n_bumps))
    if n_bumps == 1 or not high > low:
        return torch.ones(*x.shape, n_bumps, dtype=torch.float64)
    centres = torch.linspace(low, high, n_bumps, dtype=torch.float64)
    phase = (x.double()[..., None] - centres) * ((n_bumps - 1) / (high - low))
    return torch.where(phase.abs() < 1, 0.5 * (1 + torch.cos(math.pi * phase)), torch.zeros_like(phase))


def _ridge_by_leave_one_out(basis: Tensor, target: Tensor) -> Tensor:
    """Ridge weights (P, K) around each column's mean; one penalty per column, by the exact leave-one-out error."""
    mean = target.mean(0)  # and no more than that where the basis does not vary
    u, s, vh = torch.linalg.svd(basis - basis.mean(0), full_matrices=False)
    projected = u.T @ (target - mean)
    best, chosen = None, None
    for penalty in torch.logspace(-4, 3, 15, dtype=torch.float64) * s[0].clamp_min(1e-100) ** 2 / len(basis):
        shrink = s**2 / (s**2 + penalty)
        leverage = (u**2 * shrink).sum(1) + 1 / len(basis)
        residual = (target - mean - u @ (shrink[:, None] * projected)) / (1 - leverage).clamp_min(1e-6)[:, None]
        error, weights = (residual**2).sum(0), vh.T @ ((s / (s**2 + penalty))[:, None] * projected)
        if best is None:
            best, chosen = error, weights
        chosen = torch.where(error < best, weights, chosen)
        best = torch.minimum(error, best)
    return chosen


def session_times(recording: Recording) -> Tensor | None:
    """When each trial was in the session, (trials,) float64; None where that is not known or does not differ."""
    times = recording.trial_times_s
    if times is None or not torch.isfinite(times).all() or not times.max() > times.min():
        return None
    return times.double()


def session_drift(recording: Recording, train: Tensor, n_bumps: int) -> Tensor | None:
    """Expected count per bin of each trial and neuron from slow drift alone, (trials, K); None where none is known."""
    times = session_times(recording)
    if times is None or len(train) < 2 * n_bumps:
        return None
    counts = recording.activity.double().sum(1)
    bins = recording.lengths.double()
    if recording.baseline_hz is not None and torch.isfinite(recording.baseline_hz).all():
        target = recording.baseline_hz.double()
    else:  # no firing rate before the trials: the drift is read off the trials themselves
        target = counts / bins[:, None]
    basis = raised_cosines(times, n_bumps, float(times.min()), float(times.max()))
    weights = _ridge_by_leave_one_out(basis[train], target[train])
    drift = target[train].mean(0) + (basis - basis[train].mean(0)) @ weights
    drift = torch.maximum(drift, 0.1 * target[train].mean(0)) + 1e-9
    expected = (drift[train] * bins[train, None]).sum(0)
    return drift * (counts[train].sum(0) / expected)


def local_factor(
    counts: Tensor, predicted: Tensor, train: Tensor, sd_trials: float, pseudo_count: float, times: Tensor | None = None
) -> Tensor:
    """(obs + p) / (pred + p) for each trial and neuron: Gaussian sums over training trials, the trial itself left out.

    Args:
        counts, predicted: (trials, K) spikes of whole trials, observed and under the standard baseline.
        sd_trials: standard deviation of the Gaussian window, in trials; its peak is 1, so sums are spike counts.
        times: (trials,) in the session, by which trials are neighbours; None: they stand in that order.
    """
    number = torch.arange(len(counts), dtype=torch.float64)
    if times is not None:
        number[torch.argsort(times, stable=True)] = number.clone()
    window = gaussian(number[:, None] - number[None, train], sd_trials)
    window = window.masked_fill(number[:, None] == number[None, train], 0.0)
    return (window @ counts[train] + pseudo_count) / (window @ predicted[train] + pseudo_count)


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        argument: (trials, time, K) float32, for all trials of the recording, in units of the softplus's argument;
            zero past a trial's length.
        drift: (trials, K) float32, what of it is the same throughout a trial: all but the course within the trial.
        kind: what it holds: "local", "standard" or "constant".
        scale: expected count per bin where softplus is 1.
        null_counts: (K,) mean count per bin over the training trials: the null of bits per spike.
        description: one sentence for reports.
    """

    argument: Tensor
    drift: Tensor
    kind: str
    scale: float
    null_counts: Tensor
    description: str

    def expected_counts(self) -> Tensor:
        """Expected counts per bin under the baseline alone, (trials, time, K)."""
        return self.scale * F.softplus(self.argument)


def _course(recording: Recording, train: Tensor, drift: Tensor, scale: float, n_bumps: int, penalty: float) -> Tensor:
    """(time, K): what the time within the trial adds to the softplus's argument, on top of ``drift`` (trials, K)."""
    warped = torch.asinh(0.12 * torch.arange(recording.n_steps, dtype=torch.float64))
    basis = raised_cosines(warped, n_bumps, 0.0, float(warped[int(recording.lengths[train].max()) - 1]))
    inside = recording.mask[train]
    step = torch.arange(recording.n_steps).expand(len(train), -1)[inside]
    offset = drift[train][:, None, :].expand(-1, recording.n_steps, -1)[inside]
    fit = poisson_regression(
        basis[step], recording.activity[train][inside], offset=offset, penalty=penalty, scale=scale
    )
    return basis @ fit.coefficients.T


@remembered
def fit_baseline(
    recording: Recording,
    train: Tensor,
    kind: str = "local",
    *,
    rate_scale_hz: float = 10.0,
    n_drift: int = 10,
    n_course: int = 8,
    course_penalty: float = 2.0,
    local_sd_trials: float = 8.0,
    local_pseudo_count: float = 40.0,
) -> Baseline:
    """Fit a baseline on the training trials and evaluate it on all trials.

    - "constant": each neuron's mean rate over training trials.
    - "standard": drift across the session (ridge on raised cosines of session time fitted to the rates before the
      trials, scaled to the mean within trials; from the counts within trials where those rates are not given; none
      without trial times) and the course within a trial (raised cosines of asinh(0.12 t), t in bins, added inside
      the softplus and fitted by penalised Poisson likelihood).
    - "local": the standard one, each trial's rate multiplied by (obs + 40) / (pred + 40), where obs and pred are
      spike counts, observed and predicted, summed over the *training* trials around it under a Gaussian window of
      sd 8 trials, the trial itself left out. It uses that held-out trials lie between training trials, so models
      are comparable on equal baselines only. Which trials are neighbours their times say: without ``trial_times_s``, or
      with equal or unknown ones, it is the standard one, and ``Baseline.kind`` and ``description`` say so.

    Args:
        recording: spike counts.
        train: (n,) int64 numbers of the training trials.
        kind: one of BASELINES.
        rate_scale_hz: firing rate where softplus is 1.
        n_drift, n_course: numbers of raised cosines.
        course_penalty: precision of the normal prior on the course's coefficients.
        local_sd_trials, local_pseudo_count: width of the window in trials, and spikes added to both counts.

    Raises:
        UserError: for an unknown kind, a recording of rates, or no spike in the training trials.
    """
    if kind not in BASELINES:
        raise UserError(f"a baseline among {', '.join(BASELINES)}", repr(kind))
    scale = count_scale(recording, rate_scale_hz)
    train = torch.as_tensor(train, dtype=torch.int64)
    counts, mask = recording.activity.double() * recording.mask[..., None], recording.mask
    if not counts[train].sum() > 0:
        raise UserError("spikes in the training trials", f"none in {len(train)} trials", "check the counts and folds")
    mean = (counts[train].sum((0, 1)) + 0.5) / (mask[train].sum() + 1.0)
    rate = mean.expand(recording.n_trials, -1)
    course, said = mean.new_zeros(recording.n_steps, 1), ["mean rate"]
    if kind != "constant":
        drift = session_drift(recording, train, n_drift)
        if drift is not None:
            rate, said = drift.clamp_min(1e-6), ["drift across the session"]
        course = _course(recording, train, _SOFTPLUS.inverse(rate / scale), scale, n_course, course_penalty)
        said.append("course within the trial")
    argument = _SOFTPLUS.inverse(rate / scale)[:, None, :] + course
    name = kind
    if kind == "local" and session_times(recording) is None:
        kind, name = "standard", f"standard (local {NO_TIMES})"
    if kind == "local":
        expected = scale * F.softplus(argument)
        factor = local_factor(
            counts.sum(1), (expected * mask[..., None]).sum(1), train, local_sd_trials, local_pseudo_count,
            session_times(recording),
        )  # fmt: skip
        argument = _SOFTPLUS.inverse((expected * factor[:, None] / scale).clamp_min(1e-6))
        said.append(f"local factor (sd {local_sd_trials:g} trials)")
    argument = torch.where(mask[..., None], argument.expand(-1, recording.n_steps, -1), 0.0)
    drift = ((argument - course) * mask[..., None]).sum(1) / recording.lengths[:, None]
    return Baseline(argument.float(), drift.float(), kind, scale, mean.float(), f"{name}: " + ", ".join(said))
