"""Output weights n from latents and loadings: ridge on successive samples, or Gauss-Newton on simulated trajectories.

Regressing differences of noisy latents on rates at the same latents is biased; trajectories are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Activation, Network
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.lrrnn.samples import ActivitySamples, subset_size
from connector.numerics import leading_modes, random_rows, symmetric_root
from connector.shooting import Field, Linearised, Segments, Weighting, shoot

# Modes of the rates below this fraction of the first are not used for output weights.
_MODE_CUTOFF = 1e-5
# Simulated pieces of trials when output weights are found from noisy latents. Twenty samples (two time constants at
# alpha = .1) were as accurate as fifty and, unlike hundred, converge from any start.
SEGMENT_SAMPLES = 20
SHOOT_MODES = 48


def ridge_output_weights(x: Tensor, y: Tensor, regularizer: float | None = None) -> tuple[Tensor, float]:
    """Output weights N (K, R) minimising (1/T) ||Y - X N / K||^2 + (lambda / K) ||N||^2.

    Solved in the singular modes of X above a cutoff, by the smaller of its two Gram matrices, so that the cost is
    that of min(T, K) whatever the other size.

    Args:
        x: (T, K) rates, float64; y: (T, R) recurrent drives.
        regularizer: lambda; None chooses it by generalised cross-validation.

    Returns:
        N (K, R) and lambda.
    """
    basis = rate_modes(x)
    features = (x @ basis) / x.shape[1] ** 0.5
    weights, chosen = _ridge_in_modes(features.T @ features, features.T @ y, y.square().sum(), len(y), regularizer)
    return x.shape[1] ** 0.5 * (basis @ weights), chosen


def rate_modes(x: Tensor, most: int | None = None) -> Tensor:
    """Orthonormal directions (K, q) of the neuron space in which the rates x (T, K) vary, strongest first."""
    dual = x.shape[0] < x.shape[1]
    values, vectors = leading_modes(x @ x.T if dual else x.T @ x, _MODE_CUTOFF**2)
    return (x.T @ vectors[:, :most]) / values[:most].sqrt() if dual else vectors[:, :most]


def _ridge_in_modes(
    gram: Tensor, cross: Tensor, power: Tensor, n_samples: int, regularizer: float | None
) -> tuple[Tensor, float]:
    """Ridge weights (q, R) from sufficient statistics P^T P, P^T Y and ||Y||^2; lambda by GCV where None."""
    values, vectors = torch.linalg.eigh(gram)
    values, rotated = values.clamp_min(0), vectors.T @ cross
    if regularizer is None:
        grid = float(values[-1]) * torch.logspace(-14, -2, 49, dtype=values.dtype, device=values.device)
        shrink = values / (values + grid[:, None])
        fitted = (rotated.square().sum(1) / values.clamp_min(1e-300)) * (2 * shrink - shrink.square())
        error = (power - fitted.sum(1)).clamp_min(1e-14 * float(power))
        free = (1 - shrink.sum(1) / n_samples).clamp_min(1e-3)
        regularizer = float(grid[(error / free.square()).argmin()]) / n_samples
    return vectors @ (rotated / (values + n_samples * regularizer)[:, None]), regularizer


@dataclass(frozen=True)
class Dynamics:
    """What a regression of the drive on the rates gives."""

    n: Tensor  # (K, R)
    regularizer: float
    jump: Tensor | None  # (R, U): part of the latents that follows the input without delay


def fit_dynamics_by_ridge(
    samples: ActivitySamples,
    z: Tensor,
    theta: Tensor,
    mask: Tensor,
    alpha: float,
    phi: Activation,
    regularizer: float | None,
) -> Dynamics:
    """Output weights from latents z (trials, time, R) by ridge on all steps, and the jump of the latents with inputs.

    With inputs, loadings and activity fix the latents only up to z + C u, since b - m C undoes it. The dynamics
    decide: z[t+1] must not depend on u[t+1]. With latents z + C u the drive is F + C (u[t+1] - (1 - alpha) u[t]) /
    alpha, linear in n and C, while the rates do not depend on the choice; so both are found in one regression.
    C is left at zero for inputs whose columns are nearly in the span of the rates (constant inputs).
    """
    steps = z.shape[1]
    valid = (mask[:, 1:] & mask[:, :-1]).reshape(-1).nonzero()[:, 0]
    at = valid + torch.div(valid, steps - 1, rounding_mode="floor")  # row in the flattened (trials x time) axis
    flat = z.reshape(-1, z.shape[-1])
    y = (flat[at + 1] - (1 - alpha) * flat[at]) / alpha
    here = replace(samples, rows=at)
    sub = random_rows(len(at), subset_size(samples))
    few = here.subset(sub)
    has_bias = samples.has_bias(theta, z.shape[-1])
    basis = rate_modes(phi(few.design(flat[at[sub]], has_bias) @ theta.T))
    v = None
    if samples.inputs is not None:
        v = (samples.inputs[at + 1].double() - (1 - alpha) * samples.inputs[at].double()) / alpha
    moments = _feature_moments(here, flat[at], theta, basis, phi, v, y)
    q, rank = basis.shape[1], y.shape[1]
    jump_map = None
    if v is not None:
        moments, jump_map = _partial_out(moments, q, v.shape[1])
    gram, cross, power = moments[:q, :q], moments[:q, -rank:], moments.diagonal()[-rank:].sum()
    weights, chosen = _ridge_in_modes(gram, cross, power, len(y), regularizer)
    jump = None if jump_map is None else (jump_map[:, -rank:] - jump_map[:, :q] @ weights).T
    return Dynamics(len(theta) ** 0.5 * (basis @ weights), chosen, jump)


def _feature_moments(
    samples: ActivitySamples, z: Tensor, theta: Tensor, basis: Tensor, phi: Activation, v: Tensor | None, y: Tensor
) -> Tensor:
    """Second moments, summed over samples, of [rates in the modes / sqrt(K), v, y] side by side."""
    low = samples.activity.dtype
    x, weights = samples.design(z, samples.has_bias(theta, z.shape[1])), (basis / len(theta) ** 0.5).to(low)
    total, theta_low = 0.0, theta.to(low).T
    for at, _ in samples.pieces():
        features = (phi(x[at].to(low) @ theta_low) @ weights).double()
        row = torch.cat([features, y[at]] if v is None else [features, v[at], y[at]], dim=1)
        total = total + row.T @ row
    return total


def _partial_out(moments: Tensor, q: int, n_inputs: int) -> tuple[Tensor, Tensor | None]:
    """Moments of features and y less their regression on v, and that regression (U, q + R).

    A column of v that the features nearly explain is left out: its regression is zero. None where all are.
    """
    at = torch.arange(len(moments), device=moments.device)
    of_features, of_v = at[:q], at[q : q + n_inputs]
    gram = moments[:q, :q] + 1e-12 * moments[:q, :q].diagonal().max() * torch.eye(
        q, dtype=moments.dtype, device=moments.device
    )
    mixed = moments[of_features][:, of_v]
    explained = (mixed * torch.linalg.solve(gram, mixed)).sum(0)
    power = moments.diagonal()[of_v]
    own = (power - explained > 1e-2 * power).nonzero()[:, 0]
    rest = torch.cat([of_features, at[q + n_inputs :]])
    kept = moments[rest][:, rest]
    if not len(own):
        return kept, None
    mixed = moments[of_v[own]][:, rest]
    coefficients = moments.new_zeros(n_inputs, len(rest))
    coefficients[own] = torch.linalg.pinv(moments[of_v[own]][:, of_v[own]], hermitian=True) @ mixed
    return kept - mixed.T @ coefficients[own], coefficients


def cut_segments(z: Tensor, information: Tensor, inputs: Tensor | None) -> Segments:
    """Trials (trials, time, R) in pieces of ``SEGMENT_SAMPLES``; a sample without ``information`` (trials, time, R, R), the
    inverse of its noise covariance, is none."""

    def split(x: Tensor) -> Tensor:
        extra = -x.shape[1] % SEGMENT_SAMPLES
        x = torch.cat([x, x.new_zeros(x.shape[0], extra, *x.shape[2:])], dim=1)
        return x.reshape(-1, SEGMENT_SAMPLES, *x.shape[2:])

    information = split(information)
    mask = information.flatten(2).abs().amax(2) > 0
    root = symmetric_root(information)
    pieces = Segments(split(z), mask, None if inputs is None else split(inputs.double()), root=root)
    return pieces.pick(mask.any(1))


class Evidence(Weighting):
    """Prior c ~ N(0, v) alike for all, v by the fixed point of the evidence (MacKay 1992); noise never below the stated."""

    def __init__(self, start: float, size: int, like: Tensor):
        self.eye, self.shrinkage = torch.eye(size).to(like), start
        super().__init__(start * self.eye)

    def learn(self, found: Linearised, c: Tensor) -> None:
        values, vectors = torch.linalg.eigh(found.h)
        # A sum of squares: how far an eigenvalue is below zero is how far rounding reaches, and what lies within it is unseen.
        seen = values > (-values[0]).clamp_min(0)
        values = torch.where(seen, values, 0.0)
        self.variance = max(found.squares / max(found.free - len(c), 1), 1.0)
        target = torch.where(seen, vectors.T @ (found.b + found.h @ c), 0.0)
        for _ in range(30):
            solution = target / (values + self.shrinkage)
            self.effective = float((values / (values + self.shrinkage)).sum())
            self.shrinkage = self.variance * self.effective / max(float(solution.square().sum()), 1e-300)
        self.precision = self.shrinkage / self.variance * self.eye


def fit_trajectory_weights(
    segments: Segments, network: Network, basis: Tensor, steps: int = 7
) -> tuple[Tensor, float, float]:
    """Output weights under which noise-free trajectories pass nearest to the sample-wise latents.

    Regressing one-step differences of noisy latents on rates at the same latents is biased, most of all near fixed
    points. Here the segments are simulated (:mod:`connector.shooting`). Prior: n independent N(0, 1 / precision) in the
    modes of the rates, with the noise scaled to the misfit.

    Args:
        segments: latents, with the roots of their information.
        network: loadings, and output weights to start from.
        basis: (K, q) orthonormal modes of the rates; the weights found lie in their span.
        steps: of Gauss-Newton, at most.

    Returns:
        n (K, R), the precision divided by the number of samples (the lambda that plays its part), the misfit (mean
        squared normalised residual, about 1 where the noise is as stated and the dynamics are deterministic).

    Raises:
        UserError: trajectories run away whatever the weights.
    """
    k, rank = network.n.shape
    loadings = network.loadings.map(lambda x: x.float())
    field = Field(activation_named(network.activation), loadings, basis / k**0.5, network.alpha)
    start = (basis.T @ network.n / k**0.5).reshape(-1)
    prior = Evidence(1.0 / max(float(network.n.square().mean()), 1e-300), len(start), start)
    rules = {"shrink": 0.5, "least_gain": 1e-4, "least_decrement": 0.0, "drop_outliers": False}
    shot = shoot(field, segments, start, prior, steps, **rules)
    n = k**0.5 * basis @ shot.c.view(-1, rank)
    misfit = shot.found.squares / max(shot.found.free - len(start), 1)
    if not (math.isfinite(prior.shrinkage) and bool(torch.isfinite(n).all())):
        raise UserError("trajectories that stay near where they were seen", "a fit that ran away")
    return n, prior.shrinkage / float(segments.mask.sum()), misfit
