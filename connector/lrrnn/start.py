"""Latents and loadings of a few samples from no start: principal components, then joint Gauss-Newton steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from connector.lrrnn.latents import update_latents
from connector.lrrnn.loadings import update_loadings
from connector.lrrnn.observation import Observation
from connector.lrrnn.samples import ActivitySamples, outer
from connector.numerics import leading_vectors, least_squares, random_rows


def denoised(y: Tensor) -> tuple[Tensor, float]:
    """The part of y (S, K) in singular modes that stand out of white noise, and the rms of the rest.

    Threshold: the median singular value times the factor that is optimal for unknown white noise (Gavish, Donoho
    2014), in its cubic approximation.
    """
    wide = y.shape[0] < y.shape[1]
    tall = y.T if wide else y
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    singular = values.clamp_min(0).sqrt()
    beta = tall.shape[1] / tall.shape[0]
    cut = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * singular.median()
    basis = vectors[:, singular > cut]
    kept = basis @ (basis.T @ y) if wide else (y @ basis) @ basis.T
    return kept, float((y - kept).square().mean().sqrt())


def _principal_start(
    samples: ActivitySamples, rank: int, has_bias: bool, observation: Observation
) -> tuple[Tensor, Tensor]:
    """Latents (S, R) with unit second moment and stacked loadings (K, P) from the principal components of phi^-1."""
    y = samples.activity[samples.rows].double()
    kept, noise = denoised(y)
    spread = observation.spread(y)
    margin = spread * min(max(0.2 * noise / max(spread, 1e-12), 1e-6), 0.05)
    full = observation.phi.inverse(observation.inside(kept, margin))
    if samples.offset is not None:
        full = full - samples.offset[samples.rows]
    h, columns = full, samples.offset_columns(torch.float64, has_bias)
    if columns:
        known = torch.cat(columns, dim=1)
        h = h - known @ least_squares(known, h)
    gram = h @ h.T if len(h) < h.shape[1] else h.T @ h
    vectors = leading_vectors(gram, rank)
    z = vectors if len(h) < h.shape[1] else h @ vectors
    z = z / z.square().mean(0).sqrt().clamp_min(1e-12)
    x = samples.design(z, has_bias)
    return z, least_squares(x, full).T.contiguous()


def with_noise_seen(samples: ActivitySamples, observation: Observation) -> Observation:
    """Of rates: two-valued noise where nearly all lie at the two ends of phi's range, else Gaussian noise."""
    phi = observation.phi
    if observation.noise == "poisson":
        return observation
    y = samples.activity[samples.rows[random_rows(len(samples), 200)]]
    if phi.high == float("inf"):
        return Observation.of(phi.name, size=float(y.double().square().mean().sqrt()))
    margin = 1e-4 * (phi.high - phi.low)
    at_ends = ((y - phi.low).abs() < margin) | ((y - phi.high).abs() < margin)
    return observation.with_noise("two_valued" if at_ends.double().mean() > 0.98 else "gaussian")


def _joint_step(
    samples: ActivitySamples, z: Tensor, theta: Tensor, observation: Observation, has_bias: bool, damping: float
) -> tuple[Tensor, Tensor]:
    """Moves of latents (S, R) and stacked loadings (K, P) by one Gauss-Newton step for both at once.

    Alternation converges slowly where the two trade off (relu, softplus). The latents are eliminated sample by sample;
    what remains for the loadings is solved by conjugate gradients, preconditioned by each neuron's own block.
    ``damping`` is relative to the diagonal blocks (Levenberg-Marquardt).
    """
    low, rank, width = samples.activity.dtype, z.shape[1], theta.shape[1]
    x, m = samples.design(z, has_bias).to(low), theta[:, :rank].to(low)
    h = samples.with_offset(x @ theta.to(low).T, slice(None))
    s, w, _ = samples.newton_terms(observation, samples.activity[samples.rows], h)

    def block(normal: Tensor, size: int, floor: float = 1e-10) -> Tensor:
        normal = normal.double().reshape(-1, size, size)
        eye = torch.eye(size, dtype=normal.dtype, device=normal.device)
        return normal + (damping * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + floor) * eye

    of_z, of_theta = block(w @ outer(m), rank, 1e-10 * observation.unit**2), block(w.T @ outer(x), width)
    inverse_z, inverse_theta = torch.linalg.inv(of_z), torch.linalg.inv(of_theta)
    extra = of_theta - (w.T @ outer(x)).double().reshape(-1, width, width)

    def eliminated(weighted: Tensor) -> Tensor:
        """The latents' answer to a weighted change of potentials (S, K)."""
        return torch.einsum("srq,sq->sr", inverse_z, (weighted @ m).double())

    def schur(direction: Tensor) -> Tensor:
        weighted = w * (x @ direction.to(low).T)
        back = w * (eliminated(weighted).to(low) @ m.T)
        return ((weighted - back).T @ x).double() + torch.einsum("kpq,kq->kp", extra, direction)

    residual = ((s - w * (eliminated(s).to(low) @ m.T)).T @ x).double()
    move = conjugate_gradients(schur, residual, lambda r: torch.einsum("kpq,kq->kp", inverse_theta, r))
    return eliminated(s - w * (x @ move.to(low).T)), move


def conjugate_gradients(
    operator: Callable, right: Tensor, precondition: Callable, iterations: int = 60, tolerance: float = 1e-3
) -> Tensor:
    """Solution of operator(x) = right for a positive semidefinite operator, to a relative residual."""
    x, residual = torch.zeros_like(right), right
    conditioned = precondition(residual)
    direction, power = conditioned, float((residual * conditioned).sum())
    goal = tolerance**2 * power
    for _ in range(iterations):
        image = operator(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0 or power <= goal:
            break
        x, residual = x + power / curvature * direction, residual - power / curvature * image
        conditioned = precondition(residual)
        power, before = float((residual * conditioned).sum()), power
        direction = conditioned + power / before * direction
    return x


def mean_loss(samples: ActivitySamples, z: Tensor, theta: Tensor, observation: Observation, has_bias: bool) -> float:
    """Mean squared residual, or twice the mean negative log likelihood up to a constant."""
    h = samples.with_offset(
        samples.design(z, has_bias).to(samples.activity.dtype) @ theta.to(samples.activity.dtype).T, slice(None)
    )
    return float(samples.loss(observation, samples.activity[samples.rows], h).mean())


def start_fit(
    samples: ActivitySamples, rank: int, has_bias: bool, observation: Observation, joint_steps: int = 25
) -> tuple[Tensor, Tensor]:
    """Latents (S, R) and stacked loadings (K, P) of some samples.

    Alternating Newton steps on the convex matching loss bring them near; damped joint Gauss-Newton steps on the
    squared error (two-valued data and counts: on the log likelihood) finish. They end when a step gains less than a
    ten-thousandth, or at float32 rounding.
    """
    z, theta = _principal_start(samples, rank, has_bias, observation)
    relu, exact = observation.phi.name == "relu", observation.noise == "gaussian"
    for sweep in range(8 if relu else 4):
        matching = sweep < (6 if relu else 2)
        z, _, error = update_latents(samples, z, theta, observation, int(matching), int(not matching))
        x, dispersion = samples.design(z, has_bias), observation.dispersion(error)
        theta = update_loadings(samples, x, theta, observation, dispersion, matching)
    power = float(samples.activity[samples.rows].square().mean())
    damping, error = 1e-4, mean_loss(samples, z, theta, observation, has_bias)
    for _ in range(joint_steps):
        if exact and error < 1e-13 * power:
            break
        z_move, move = _joint_step(samples, z, theta, observation, has_bias, damping)
        trial = mean_loss(samples, z + z_move, theta + move, observation, has_bias)
        if trial < error:
            gained, error = (error - trial) / abs(error), trial
            z, theta, damping = z + z_move, theta + move, max(damping / 10, 1e-9)
            if gained < 1e-4:
                break
        else:
            damping *= 10
            if damping > 1:
                break
    return z, theta
