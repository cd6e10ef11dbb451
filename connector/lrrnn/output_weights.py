"""Output weights n from latents and loadings: ridge on successive samples, or Gauss-Newton on simulated trajectories.

Regressing differences of noisy latents on rates at the same latents is biased; trajectories are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Activation, Network, potentials, value_and_slope
from connector.dynamics import activation as activation_named
from connector.lrrnn.samples import CHUNK_ELEMENTS, ActivitySamples, subset_size
from connector.numerics import random_rows

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
    values, vectors = torch.linalg.eigh(x @ x.T if dual else x.T @ x)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = (values > _MODE_CUTOFF**2 * values[0]).nonzero()[:most, 0]
    values, vectors = values[keep], vectors[:, keep]
    return (x.T @ vectors) / values.sqrt() if dual else vectors


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
    C is left at zero where these columns are nearly in the span of the rates (constant inputs).
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

    Where the features explain v nearly, v is dropped instead and there is no regression.
    """
    is_v = torch.zeros(len(moments), dtype=torch.bool, device=moments.device)
    is_v[q : q + n_inputs] = True
    of_v, rest, mixed = moments[is_v][:, is_v], moments[~is_v][:, ~is_v], moments[is_v][:, ~is_v]
    gram = moments[:q, :q] + 1e-12 * moments[:q, :q].diagonal().max() * torch.eye(
        q, dtype=moments.dtype, device=moments.device
    )
    own = of_v - mixed[:, :q] @ torch.linalg.solve(gram, mixed[:, :q].T)
    if bool((own.diagonal() < 1e-2 * of_v.diagonal()).any()):
        return rest, None
    coefficients = torch.linalg.solve(of_v, mixed)
    return rest - mixed.T @ coefficients, coefficients


@dataclass(frozen=True)
class Segments:
    """Pieces of trials run side by side, each with its own initial state; information is zero past a trial's end."""

    z: Tensor  # (B, L, R)
    information: Tensor  # (B, L, R, R)
    inputs: Tensor | None  # (B, L, U)

    @staticmethod
    def cut(z: Tensor, information: Tensor, inputs: Tensor | None, length: int) -> Segments:
        def split(x: Tensor) -> Tensor:
            extra = -x.shape[1] % length
            if extra:
                x = torch.cat([x, x.new_zeros(x.shape[0], extra, *x.shape[2:])], dim=1)
            return x.reshape(-1, length, *x.shape[2:])

        pieces = [split(z), split(information), None if inputs is None else split(inputs.double())]
        used = pieces[1].flatten(1).abs().amax(1) > 0
        return Segments(*(None if x is None else x[used] for x in pieces))


def fit_trajectory_weights(
    segments: Segments, network: Network, basis: Tensor, iterations: int = 8
) -> tuple[Tensor, float, float]:
    """Output weights under which noise-free trajectories pass nearest to the sample-wise latents.

    Regressing one-step differences of noisy latents on rates at the same latents is biased, most of all near fixed
    points. Here the segments are simulated; their initial states are eliminated from the Gauss-Newton equations for
    the weights. Prior: n independent N(0, 1 / precision) in the modes of the rates, precision by the fixed point of
    the evidence (MacKay 1992), with the noise scaled to the misfit.

    Args:
        segments: latents with their information (inverse noise covariance).
        network: loadings, and output weights to start from.
        basis: (K, q) orthonormal modes of the rates; the weights found lie in their span.

    Returns:
        n (K, R), the precision divided by the number of samples (the lambda that plays its part), the misfit (mean
        squared normalised residual, about 1 where the noise is as stated and the dynamics are deterministic).
    """
    k, rank = network.n.shape
    weights = basis.T @ network.n / k**0.5
    start = segments.z[:, 0]
    n_obs = int((segments.information.flatten(2).abs().amax(2) > 0).sum()) * rank
    best, shrink, precision, state = None, 1.0, 1.0 / max(float(network.n.square().mean()), 1e-6), None
    for _ in range(iterations):
        trial = replace(network, n=k**0.5 * basis @ weights)
        chi2, *equations = _sensitivities(segments, trial, basis, start)
        objective = chi2 + precision * float(weights.square().sum())
        if not all(bool(torch.isfinite(part).all()) for part in equations):  # a simulation that ran away
            if best is None:
                return network.n, precision * rank / n_obs, float("inf")
            objective = math.inf
        if best is not None and not objective < best * (1 + 1e-9):
            shrink *= 0.5
            if shrink < 0.1:
                break
        else:
            if best is not None and best - objective < 1e-4 * best:
                state = weights, start, chi2
                break
            state, best, shrink = (weights, start, chi2), objective, 1.0
            move, start_move, precision = _eliminated_step(equations, weights, chi2, n_obs, precision)
            best = chi2 + precision * float(weights.square().sum())
        weights, start = state[0] + shrink * move, state[1] + shrink * start_move
    weights, _, chi2 = state
    misfit = chi2 / max(n_obs - weights.numel() - segments.z.shape[0] * rank, 1)
    return k**0.5 * basis @ weights, precision * rank / n_obs, misfit


def _sensitivities(segments: Segments, network: Network, basis: Tensor, start: Tensor) -> tuple:
    """What :func:`_sensitivities_of` returns for all segments, computed for some at a time."""
    size = max(1, CHUNK_ELEMENTS // network.n_neurons)
    parts = []
    for first in range(0, len(start), size):
        at = slice(first, first + size)
        u = None if segments.inputs is None else segments.inputs[at]
        some = Segments(segments.z[at], segments.information[at], u)
        parts.append(_sensitivities_of(some, network, basis, start[at]))
    chi2, h_ww, h_ws, h_ss, g_w, g_s = zip(*parts)
    return sum(chi2), sum(h_ww), torch.cat(h_ws), torch.cat(h_ss), sum(g_w), torch.cat(g_s)


def _sensitivities_of(segments: Segments, network: Network, basis: Tensor, start: Tensor) -> tuple:
    """Chi square of the simulated segments and the Gauss-Newton blocks for weights (q R) and initial states (R)."""
    (n_seg, steps, rank), q, k = segments.z.shape, basis.shape[1], network.n_neurons
    phi, alpha, low = activation_named(network.activation), network.alpha, network.loadings.map(lambda x: x.float())
    modes = (basis / k**0.5).float()
    pairs = (network.n[:, :, None] * network.m[:, None, :]).flatten(1).float() / k
    n = network.n.float() / k
    eye = torch.eye(rank, dtype=start.dtype, device=start.device)
    x, to_start = start, eye.expand(n_seg, rank, rank)
    to_weights = start.new_zeros(n_seg, rank, q, rank)
    size, chi2 = q * rank, 0.0
    h_ww, g_w = start.new_zeros(size, size), start.new_zeros(size)
    h_ws, h_ss, g_s = start.new_zeros(n_seg, size, rank), start.new_zeros(n_seg, rank, rank), torch.zeros_like(start)
    for t in range(steps):
        information, flat = segments.information[:, t], to_weights.reshape(n_seg, rank, size)
        pull = torch.einsum("bij,bj->bi", information, segments.z[:, t] - x)
        chi2 += float((pull * (segments.z[:, t] - x)).sum())
        weighted = information @ flat
        h_ww += flat.reshape(-1, size).T @ weighted.reshape(-1, size)
        g_w += flat.reshape(-1, size).T @ pull.reshape(-1)
        h_ws += weighted.mT @ to_start
        h_ss += to_start.mT @ information @ to_start
        g_s += torch.einsum("bji,bj->bi", to_start, pull)
        if t == steps - 1:
            break
        u = None if segments.inputs is None else segments.inputs[:, t].float()
        value, slope = value_and_slope(phi, potentials(low, x.float(), u))
        jacobian = (1 - alpha) * eye + alpha * (slope @ pairs).double().reshape(n_seg, rank, rank)
        to_weights = (jacobian @ flat).reshape(n_seg, rank, q, rank)
        to_weights = to_weights + alpha * (value @ modes).double()[:, None, :, None] * eye[None, :, None, :]
        to_start = jacobian @ to_start
        x = (1 - alpha) * x + alpha * (value @ n).double()
    return chi2, h_ww, h_ws, h_ss, g_w, g_s


def _eliminated_step(
    equations: list[Tensor], weights: Tensor, chi2: float, n_obs: int, precision: float
) -> tuple[Tensor, Tensor, float]:
    """Moves of weights and initial states, and the precision of the prior at the fixed point of its evidence."""
    h_ww, h_ws, h_ss, g_w, g_s = equations
    # a segment that leaves its initial state open in some direction must not end the fit
    ridge = 1e-6 + 1e-10 * h_ss.diagonal(dim1=1, dim2=2).mean(1)
    h_ss = h_ss + ridge[:, None, None] * torch.eye(h_ss.shape[-1], dtype=h_ss.dtype, device=h_ss.device)
    solved = torch.linalg.solve(h_ss, torch.cat([h_ws.mT, g_s[..., None]], dim=-1))
    hessian = h_ww - torch.einsum("bwi,biv->wv", h_ws, solved[..., :-1])
    score = g_w - torch.einsum("bwi,bi->w", h_ws, solved[..., -1])
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    values = values.clamp_min(0)
    scale = max(chi2 / max(n_obs - len(values) - h_ss.shape[0] * h_ss.shape[1], 1), 1.0)
    target = vectors.T @ (score + hessian @ weights.reshape(-1))
    for _ in range(30):
        solution = target / (values + precision)
        determined = float((values / (values + precision)).sum())
        precision = scale * determined / max(float(solution.square().sum()), 1e-12)
    move = (vectors @ (target / (values + precision))).reshape(weights.shape) - weights
    start_move = solved[..., -1] - torch.einsum("biw,w->bi", solved[..., :-1], move.reshape(-1))
    return move, start_move, precision
