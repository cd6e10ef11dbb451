"""Loadings of the neurons given the latents: Newton steps on each neuron's likelihood, and their covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from connector.dynamics import value_and_slope
from connector.lrrnn.latents import DAMPING, limited_solve
from connector.lrrnn.observation import Observation
from connector.lrrnn.samples import ActivitySamples, outer
from connector.numerics import random_rows, symmetric_root


def _column_precision(theta: Tensor, moment: Tensor, dispersion: float) -> Tensor:
    """Prior precision (P,) of the stacked loadings, in units of the weights: each column's robust spread.

    It binds a neuron that the data leave open in a direction, for instance one that every input saturates.
    """
    spread = 1.48 * theta.abs().median(0).values
    size = moment.diagonal()
    size = torch.where(size > 0, size, 1.0)
    return dispersion / torch.maximum(spread, size.rsqrt()).square() + 1e-10 * size


def _loading_equations(
    samples: ActivitySamples,
    x: Tensor,
    theta: Tensor,
    observation: Observation,
    matching: bool = False,
    neurons: Tensor | None = None,
    seen_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal matrices (K, P, P), scores (K, P) and losses (K,) of the stacked loadings, given x = [z, u, 1] (S, P).

    The loss is that of the observation, summed over samples (matching steps on the way to a squared error ignore it).

    Args:
        neurons: the columns of the activity that theta belongs to, where they are not all.
        seen_only: relu neurons inform on their loadings only where they were seen active.
    """
    width, n_neurons, low = x.shape[1], theta.shape[0], samples.activity.dtype
    normal, score = x.new_zeros(width * width, n_neurons), x.new_zeros(width, n_neurons)
    loss, theta_low = x.new_zeros(n_neurons), theta.to(low).T
    for at, y in samples.pieces():
        piece = x[at].to(low)
        y, h = y if neurons is None else y[:, neurons], samples.with_offset(piece @ theta_low, at, neurons)
        s, w, residual = samples.newton_terms(observation, y, h, matching, neurons)
        if seen_only and observation.phi.name == "relu":
            w = w * (y > 0)
        # With the few columns first, which is five times as fast as the same products with the neurons first.
        normal += (outer(piece).T @ w).double()
        score += (piece.T @ s).double()
        # That of Gaussian noise is at hand.
        of_piece = residual.square() if observation.noise == "gaussian" else samples.loss(observation, y, h, neurons)
        loss += of_piece.sum(0).double()
    return normal.T.reshape(n_neurons, width, width), score.T.contiguous(), loss


def update_loadings(
    samples: ActivitySamples,
    x: Tensor,
    theta: Tensor,
    observation: Observation,
    dispersion: float,
    matching: bool = False,
) -> Tensor:
    """One damped Newton step for the stacked loadings of all neurons."""
    normal, score, _ = _loading_equations(samples, x, theta, observation, matching)
    moment = x.T @ x
    precision = _column_precision(theta, moment / len(x), dispersion)
    damped = normal + torch.diag(precision) + DAMPING * moment
    return theta + limited_solve(damped, score - precision * theta, moment / len(x), observation.unit)


def loadings_covariance(
    samples: ActivitySamples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float
) -> Tensor:
    """Laplace covariance (K, P, P) of the stacked loadings given the latents in x: dispersion (X^T W X + prior)^-1.

    The dispersion is at least what rounding in the type of the activity leaves.
    """
    power = float(samples.activity[samples.rows[random_rows(len(samples), 200)]].square().mean())
    dispersion = max(dispersion, power * (20 * torch.finfo(samples.activity.dtype).eps) ** 2)
    normal, _, _ = _loading_equations(samples, x, theta, observation, seen_only=True)
    if samples.scale is not None:
        left = normal - _taken_by_scale(samples, x, theta, observation, dispersion)
        normal = symmetric_root(left, 0.0, power=1)  # rounding may leave less than nothing
    precision = _column_precision(theta, x.T @ x / len(x), dispersion)
    return torch.linalg.inv(normal + torch.diag(precision)) * dispersion


def _taken_by_scale(
    samples: ActivitySamples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float
) -> Tensor:
    """Information (K, P, P) on the loadings that gains and offsets, which are fitted beside them, take away."""
    scale, low = samples.scale, samples.activity.dtype
    fitted = [scale.gains, scale.offsets]
    mixed, own = x.new_zeros(len(theta), x.shape[1], 2), x.new_zeros(len(theta), 2, 2)
    for at, _ in samples.pieces():
        piece = x[at].to(low)
        h = samples.with_offset(piece @ theta.to(low).T, at)
        value, slope = value_and_slope(observation.phi, h)
        columns = [value, torch.ones_like(value)]
        for i, column in enumerate(columns):
            mixed[:, :, i] += ((slope * column).T @ piece).double()
            own[:, i] += torch.stack([(column * other).sum(0) for other in columns], 1).double()
    weight = scale.weight.to(x)[:, None, None]
    prior = torch.diag(x.new_tensor([dispersion / max(scale.spread, 1e-3) ** 2, 0.0]))
    mixed, own = (mixed * weight)[:, :, fitted], (own * weight + prior)[:, fitted][:, :, fitted]
    return mixed @ torch.linalg.pinv(own, hermitian=True) @ mixed.mT


def converged_loadings(
    samples: ActivitySamples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float, passes: int = 30
) -> Tensor:
    """Loadings of all neurons given the design x (S, P): Levenberg-Marquardt, each neuron with its own damping.

    After a first pass over all neurons only those that still move, or were refused a step, are taken up again.
    """
    moment, theta = x.T @ x, theta.clone()
    scale = moment / len(x)
    precision = _column_precision(theta, scale, dispersion)
    step, damping = torch.zeros_like(theta), theta.new_full((len(theta),), 1e-9)
    best = theta.new_full((len(theta),), float("inf"))
    equations = [theta.new_zeros(len(theta), theta.shape[1], theta.shape[1]), torch.zeros_like(theta)]
    moving, settled = torch.arange(len(theta), device=theta.device), 1e-6 * observation.unit**2
    for _ in range(passes):
        trial = theta[moving] + step[moving]
        some = None if len(moving) == len(theta) else moving
        normal, score, loss = _loading_equations(samples, x, trial, observation, neurons=some)
        loss = loss + (precision * trial.square()).sum(1)
        better = loss < best[moving]
        up = moving[better]
        theta[up], best[up] = trial[better], loss[better]
        equations[0][up], equations[1][up] = (
            normal[better] + torch.diag(precision),
            score[better] - precision * trial[better],
        )
        damping[moving] *= torch.where(better, 0.1, 30.0).to(theta)
        lifted = equations[0][moving] + damping[moving, None, None].clamp_min(1e-9) * moment
        step[moving] = limited_solve(lifted, equations[1][moving], scale, observation.unit)
        change = torch.einsum("kp,pq,kq->k", step[moving], scale, step[moving])
        moving = moving[(change > settled) & (damping[moving] < 1e3)]
        if not len(moving):
            break
    small = torch.einsum("kp,pq,kq->k", step, scale, step) <= settled
    return torch.where(small[:, None], theta + step, theta)
