"""Latents of single samples given the loadings: Newton steps on each sample's likelihood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.lrrnn.observation import Observation
from connector.lrrnn.samples import ActivitySamples, outer
from connector.types import Loadings
from connector.units import RateScale

# Prior standard deviation of latents, in units where they have variance one; binds only what the data leave open.
_PRIOR_SD = 10.0
_FLOOR = 1e-10  # of information on latents, where potentials are of unit size
# Levenberg damping relative to unit weights: without it what saturated or silent entries leave open is moved by the
# prior in one step, far enough to be driven back in the next.
DAMPING = 1e-3
# Neurons that bring the latents of a sample near, before all of them finish: the first steps cost so much less.
_SCOUTS = 200
# Standard error of latents, of their size, that is so small that the other neurons need no matching step to come near.
_NEAR = 1e-3


def limited_solve(normal: Tensor, score: Tensor, scale: Tensor, unit: float, limit: float = 1.5) -> Tensor:
    """Solutions (B, P) of B normal equations, shortened so that the rms change of the potential is at most limit units.

    ``scale`` (P, P) is the second moment of what the solution multiplies.
    """
    step = torch.linalg.solve_ex(normal, score[..., None])[0][..., 0]
    change = torch.einsum("bp,pq,bq->b", step, scale, step).clamp_min(1e-300).sqrt()
    step = step * (limit * unit / change).clamp_max(1.0)[:, None]
    return torch.where(torch.isfinite(step), step, torch.zeros_like(step))


def prior_precision(dispersion: float | Tensor, unit: float) -> float:
    return float(dispersion) / _PRIOR_SD**2 + _FLOOR * unit**2


def inverse_of_normal(normal: Tensor, unit: float) -> Tensor:
    """Inverses (..., P, P) of normal matrices under the weak prior, in units of the dispersion."""
    eye = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    return torch.linalg.inv(normal + _FLOOR * unit**2 * eye)


def update_latents(
    samples: ActivitySamples,
    z: Tensor,
    theta: Tensor,
    observation: Observation,
    matching_steps: int,
    newton_steps: int,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor, float]:
    """Latents of every sample given the stacked loadings theta (K, P); at most matching + newton steps.

    Returns:
        z (S, R), the normal matrices (S, R, R) before the last step, the mean squared residual there.
    """
    rank, low = z.shape[1], samples.activity.dtype
    has_bias = samples.has_bias(theta, rank)
    m, rest = theta[:, :rank].to(low), theta[:, rank:].to(low).T
    scale = theta[:, :rank].T @ theta[:, :rank] / len(theta)
    along, pairs = m.T.contiguous(), outer(m).T.contiguous()  # a product with so few columns is fast with neurons last
    eye, unit, total = torch.eye(rank, dtype=z.dtype, device=z.device), observation.unit, 0.0
    z, normals = z.clone(), z.new_zeros(len(z), rank, rank)
    columns = samples.offset_columns(low, has_bias)
    offsets = torch.cat(columns, dim=1) if columns else None
    for at, y in samples.pieces():
        fixed = None if offsets is None else offsets[at] @ rest
        matching_left = matching_steps
        for _ in range(matching_steps + newton_steps):
            h = z[at].to(low) @ m.T
            if fixed is not None:
                h += fixed
            h = samples.with_offset(h, at)
            s, w, residual = samples.newton_terms(observation, y, h, matching_left > 0)
            normal = F.linear(w, pairs).double().reshape(-1, rank, rank)
            squares = float(residual.square().sum())
            dispersion = observation.dispersion(squares / residual.numel())
            precision = prior_precision(dispersion, unit)
            damped = normal + precision * eye + DAMPING * len(theta) * scale
            move = limited_solve(damped, F.linear(s, along).double() - precision * z[at], scale, unit)
            z[at] += move
            furthest = float(move.abs().max())
            error_bar = (dispersion / normal.diagonal(dim1=1, dim2=2).median().clamp_min(1e-12 * unit**2)).sqrt()
            if matching_left == 0 and furthest < max(tolerance, 0.05 * float(error_bar)):
                break
            matching_left = 0 if furthest < 0.03 else max(matching_left - 1, 0)
        normals[at] = normal
        total += squares
    return z, normals, total / (len(samples) * len(theta))


def latents_of(
    samples: ActivitySamples, theta: Tensor, rank: int, observation: Observation
) -> tuple[Tensor, Tensor, float]:
    """Latents (S, R) of every sample given the stacked loadings, from no start; see :func:`update_latents`."""
    few = samples.every(max(1, len(theta) // _SCOUTS))
    some = theta[:: max(1, len(theta) // _SCOUTS)]
    start = _projected_start(few, some, rank, observation)
    z, normal, error = update_latents(few, start, some, observation, 10, 8)
    if len(some) == len(theta):
        return z, normal, error
    typical = float(normal.diagonal(dim1=1, dim2=2).median())
    near = observation.dispersion(error) < _NEAR**2 * typical * float(z.square().mean())
    return update_latents(samples, z, theta, observation, 0 if near else 1, 8)


def _projected_start(samples: ActivitySamples, theta: Tensor, rank: int, observation: Observation) -> Tensor:
    """phi^-1 of the rates, kept well inside the range, projected onto the loadings: (S, R)."""
    low = samples.activity.dtype
    m, rest = theta[:, :rank], theta[:, rank:]
    project = torch.linalg.pinv(m).T.to(low)
    columns = samples.offset_columns(low, samples.has_bias(theta, rank))
    offsets = torch.cat(columns, dim=1) if columns else None
    z = theta.new_empty(len(samples), rank)
    for at, y in samples.pieces():
        h = observation.phi.inverse(observation.inside(y, 0.03 * observation.spread(y)))
        if samples.offset is not None:
            h = h - samples.offset[samples.rows[at]].to(low)
        if offsets is not None:
            h = h - offsets[at] @ rest.to(low).T
        z[at] = (h @ project).double()
    return z


def least_squares_latents(
    activity: Tensor,
    mask: Tensor,
    loadings: Loadings,
    observation: Observation,
    inputs: Tensor | None = None,
    offset: Tensor | None = None,
    scale: RateScale | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """The latents that best explain each sample's rates through the loadings, sample by sample.

    Newton's method on the convex matching loss from the projected phi^-1 of the rates, then Gauss-Newton on the
    squared error; for two-valued data and counts on the log likelihood throughout. Elementwise work is done in the type of the activity, sums over neurons are solved in float64.

    Args:
        activity: (trials, time, K) rates; mask: (trials, time) True where a sample counts.
        observation: phi and the noise about it.
        inputs: (trials, time, U) or None; offset: (trials, time, K), a known part of the potentials, or None.
        scale: of the rates, whose weights the neurons have; None: alike.
        start: (trials, time, R), latents near those sought, where such are known.

    Returns:
        z (trials, time, R) float64, zero where masked; the normal matrices (trials, time, R, R) (information on z in
        units of the noise variance of one rate); the mean squared residual.
    """
    samples = ActivitySamples.of(activity, mask, inputs, offset, scale)
    theta, rank = loadings.stack().detach().double(), loadings.rank
    if start is None:
        z, normal, error = latents_of(samples, theta, rank, observation)
    else:
        z, normal, error = update_latents(
            samples, start.reshape(-1, rank)[samples.rows].double(), theta, observation, 0, 8
        )
    return samples.grid(z, mask), samples.grid(normal, mask), error


@torch.no_grad()
def read_states(
    activity: Tensor,
    mask: Tensor,
    guide: Tensor,
    loadings: Loadings,
    observation: Observation,
    dispersion: float = 1.0,
    inputs: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    scale: RateScale | None = None,
) -> tuple[Tensor, Tensor]:
    """One unregularised Fisher-scoring step from a good guide: what each sample says of the state, on its own.

    Iterated to its end the step would run away where neurons saturate; from a smoothed path it is the linearisation
    there of the sample's likelihood, unbiased to first order, with the inverse information as covariance.

    Args:
        activity: (trials, time, K) rates, or counts over their scale; mask: (trials, time).
        guide: (trials, time, R) smoothed states.
        dispersion: variance of a rate about phi(h) (1 for two-valued data and counts).
        inputs: (trials, time, U); offset: (trials, time, K), a known part of the potentials; scale: of the rates.

    Returns:
        (trials, time, R) readings, zero where masked; their covariances (trials, time, R, R); float64.
    """
    samples = ActivitySamples.of(activity, mask, inputs, offset, scale)
    theta, rank = loadings.stack().detach().double(), loadings.rank
    low = samples.activity.dtype
    z = guide.reshape(-1, rank)[samples.rows].double()
    x, m = samples.design(z, loadings.has_bias).to(low), theta[:, :rank].to(low)
    pairs, eye = outer(m), torch.eye(rank, dtype=z.dtype, device=z.device)
    moved, covariance = torch.zeros_like(z), z.new_zeros(len(z), rank, rank)
    for at, y in samples.pieces():
        score, weight, _ = samples.newton_terms(observation, y, samples.with_offset(x[at] @ theta.to(low).T, at))
        information = (weight @ pairs).double().reshape(-1, rank, rank) + prior_precision(
            dispersion, observation.unit
        ) * eye
        inverse = torch.linalg.inv(information)
        moved[at] = (inverse @ (score @ m).double()[..., None])[..., 0]
        covariance[at] = dispersion * inverse
    return samples.grid(z + moved, mask), samples.grid(covariance, mask)
