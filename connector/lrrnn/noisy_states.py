"""The posterior of the drive from rates whose states carry noise of their own: paths, field and noise are sampled in turn.

    z[t+1] = (1 - alpha) z[t] + alpha F(z[t], u[t]) + N(0, Q),      reading[t] = z[t] + N(0, R[t]),      F = B c

Readings of single samples with covariances R up to a common factor stand for the rates
(:func:`connector.lrrnn.latents.read_states`). One sweep draws the paths, by a Kalman filter of the step linearised about
the last path and backward draws (Carter and Kohn 1994); the kernel of the prior and its amplitudes, c integrated out; c; Q;
and the factor of R. Where readings are precise beside the noise, as in populations, draws are nearly independent from sweep
to sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.lrrnn.field_posterior import FieldPosterior, posterior_of_draws
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.smoother import Filtered, kalman_filter, linearised_step, times
from connector.lrrnn.spikes.coefficients import CoefficientPrior
from connector.lrrnn.spikes.posterior import effective_size
from connector.lrrnn.spikes.sampler import MakeBasis
from connector.numerics import even_rows, symmetric_root
from connector.shooting import Field

_BURN = 0.2  # of the sweeps
_PROPOSALS = 6  # of the prior in each sweep
_DRAWS_OF_C = 4  # kept of each sweep, of which the first goes on
_LEAST_SD = 0.01  # of a step, in sd of the states
_AGAINST_READINGS = 0.02  # of a step's variance, in that of a reading's error
_CLEAR = 6.0  # standard errors of the variance of a step's error
_LEAST_PAIRS, _FLOOR = 100, 1e-3  # of successive steps; of the smallest variance of Q, over that of a step's error
_JITTER = 1e-9
_JUDGED = 300  # states at which the draws are judged


class OwnNoise(NamedTuple):
    """Covariance q (R, R) of the process noise of one step, and the factor of the covariance stated for readings."""

    q: Tensor
    dispersion: float


def process_noise(fit: FittedDynamics) -> OwnNoise | None:
    """Of the training trials, from errors of one step of the fitted network between readings; None where the states carry too
    little noise of their own to matter.

    Errors of reading make successive errors of a step correlate, e[t] = r[t+1] - step(r[t]) having Cov(e[t], e[t+1]) = -R A^T
    with the step's Jacobian A; noise of the states does not. So neither needs to be stated.
    """
    if fit.readings is None or fit.n is None or fit.rollouts or fit.decay is not None:
        return None
    latents, z = fit.latents.trials(fit.fold.train), fit.readings[0][fit.fold.train].double()
    valid = latents.mask
    pairs = valid[:, 1:] & valid[:, :-1]
    following, jacobian = linearised_step(fit.network.double(), z, latents.inputs, valid)
    error, a = z[:, 1:] - following[:, :-1], jacobian[:, :-1][pairs].mean(0)
    successive = pairs[:, 1:] & pairs[:, :-1]
    if int(successive.sum()) < _LEAST_PAIRS:
        return None
    whole = error[pairs].T @ error[pairs] / pairs.sum()
    lagged = error[:, :-1][successive].T @ error[:, 1:][successive] / successive.sum()
    reading = -lagged @ torch.linalg.inv(a).T
    reading = symmetric_root(0.5 * (reading + reading.T), power=1)
    q = whole - reading - a @ reading @ a.T
    unit = symmetric_root(torch.cov(latents.z[valid].double().T).reshape(len(q), -1), power=-0.5)
    step, misread, seen = (float((unit @ x @ unit).diagonal().mean()) for x in (q, reading, whole))
    by_chance = seen * (2 / float(pairs.sum() * len(q))) ** 0.5  # standard error of the variance of a step's error
    if step < max(_LEAST_SD**2, _AGAINST_READINGS * misread, _CLEAR * by_chance):
        return None
    stated = fit.readings[1][fit.fold.train][valid].double().mean(0)
    dispersion = max(_FLOOR, misread / float((unit @ stated @ unit).diagonal().mean()))
    return OwnNoise(symmetric_root(q, _FLOOR * float(whole.diagonal().mean()), power=1), dispersion)


def sample_field(
    fit: FittedDynamics,
    noise: OwnNoise,
    make_basis: MakeBasis,
    *,
    sweeps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> FittedDynamics:
    """The same fit with the posterior of its drive, whose mean is the latents' ``drive``; latents of training trials are
    posterior means.

    Args:
        fit: to rates, with readings; noise: a first guess; make_basis: as for spikes.
    """
    generator = torch.Generator().manual_seed(seed)
    train = fit.fold.train
    latents, (seen, covariance) = fit.latents.trials(train), (x[train].double() for x in fit.readings)
    valid, alpha, u = latents.mask, latents.alpha, latents.inputs
    pairs, z = valid[:, 1:] & valid[:, :-1], latents.z.double()
    information = _information(covariance, valid)
    field, prior = make_basis(fit.loadings.map(Tensor.double), z[valid], None if u is None else u[valid].double())
    chain = _Coefficients(prior, generator)
    kept: dict[str, list[Tensor]] = {name: [] for name in ("c", "mean", "root", "prior", "q")}
    q, dispersion = noise
    total, burn = torch.zeros_like(z), int(_BURN * sweeps)
    for sweep in range(sweeps):
        progress(sweep, sweeps)
        basis = field(z[:, :-1][pairs], None if u is None else u[:, :-1][pairs].double())
        y = ((z[:, 1:] - (1 - alpha) * z[:, :-1]) / alpha)[pairs]
        mean, root, draws = chain.draw(basis, y, q / alpha**2)
        c = draws[0]
        error = alpha * (y - basis @ c)
        q = _inverse_wishart(error.T @ error, len(error), generator)
        net = Network(
            field.neurons.m,
            len(field.mixing) * field.mixing @ c,
            field.neurons.b,
            field.neurons.d,
            alpha,
            fit.activation,
        )
        following, jacobian = linearised_step(net, z, u, valid)
        forward, _ = kalman_filter(seen, information / dispersion, following, jacobian, z, q[None])
        z = _draw_back(forward.of(0), following, jacobian, z, q, generator) * valid[..., None]
        off = (seen - z)[valid]
        squares = float(torch.einsum("ni,nij,nj->", off, information[valid], off))
        shape = torch.tensor([off.numel() / 2], dtype=torch.float64)
        dispersion = 0.5 * squares / float(torch._standard_gamma(shape, generator=generator))
        if sweep >= burn:
            for name, value in zip(kept, (draws, mean, root, chain.prior_covariance(), q), strict=True):
                kept[name].append(value)
            total += z
    posterior = _packed(fit, field, prior, {k: torch.stack(v) for k, v in kept.items()}, (z[valid], u, valid))
    paths = fit.latents.z.double().clone()
    paths[train] = total / (sweeps - burn)
    return replace(fit, latents=posterior.along(replace(fit.latents, z=paths)), field=posterior)


def _information(covariance: Tensor, valid: Tensor) -> Tensor:
    eye = torch.eye(covariance.shape[-1]).to(covariance)
    return torch.where(
        valid[..., None, None], torch.linalg.inv(torch.where(valid[..., None, None], covariance, eye)), 0.0
    )


class _Coefficients:
    """The Markov chain of the prior's kernel and amplitudes, and draws of c given them."""

    def __init__(self, prior: CoefficientPrior, generator: torch.Generator):
        self.prior, self.g = prior, generator
        self.family, self.theta = 0, prior.centre[0].clone()

    def prior_covariance(self) -> Tensor:
        """Of x (p, p), c = x gauge."""
        return self.prior.covariance(self.family, self.theta)

    def draw(self, basis: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (pR,) and Cholesky factor (pR, pR) of the precision of c given basis (N, p) and drive y (N, R) with noise (R, R),
        and draws (D, p, R)."""
        weigh = torch.linalg.inv(noise)
        h = torch.kron((basis.T @ basis).contiguous(), weigh.contiguous())
        b = (basis.T @ y @ weigh).reshape(-1)
        value, found = self._evidence(h, b, self.family, self.theta)
        for _ in range(_PROPOSALS):
            family = int(torch.randint(len(self.prior.parts), (1,), generator=self.g))
            if float(torch.rand(1, generator=self.g)) < 0.5:
                family = self.family
            moved = self.theta + 0.7 * torch.randn(3, generator=self.g, dtype=torch.float64)
            theta = torch.where(self.prior.width[family] > 0, moved, self.prior.centre[family])
            tried, other = self._evidence(h, b, family, theta)
            if float(torch.rand(1, generator=self.g, dtype=torch.float64).log()) < tried - value:
                value, found, self.family, self.theta = tried, other, family, theta
        root, mean = found
        white = torch.randn(len(mean), _DRAWS_OF_C, generator=self.g, dtype=torch.float64)
        draws = mean[:, None] + torch.linalg.solve_triangular(root.T, white, upper=True)
        return mean, root, draws.T.reshape(_DRAWS_OF_C, basis.shape[1], -1)

    def _evidence(self, h: Tensor, b: Tensor, family: int, theta: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
        """Log density of family and theta given the paths, c integrated out; Cholesky factor of c's precision, c's mean."""
        precision = self.prior.precision(family, theta)
        root = torch.linalg.cholesky(h + precision)
        mean = torch.cholesky_solve(b[:, None], root)[:, 0]
        of_prior = torch.linalg.cholesky(precision + _JITTER * precision.diagonal().mean() * torch.eye(len(h)).to(h))
        log_det = of_prior.diagonal().log().sum() - root.diagonal().log().sum()
        return float(0.5 * b @ mean + log_det) + self.prior.log_density(family, theta), (root, mean)


def _inverse_wishart(scatter: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A draw of Q (R, R) given the scatter of n errors, by Bartlett's decomposition; prior of the fewest degrees of freedom."""
    rank = len(scatter)
    factor = torch.linalg.cholesky(
        torch.linalg.inv(scatter + _JITTER * scatter.diagonal().mean() * torch.eye(rank).to(scatter))
    )
    a = torch.randn(rank, rank, generator=generator, dtype=torch.float64).tril(-1)
    for i in range(rank):
        shape = torch.tensor([(n - i) / 2], dtype=torch.float64)
        a[i, i] = (2 * torch._standard_gamma(shape, generator=generator)).sqrt()[0]
    root = factor @ a
    return torch.linalg.inv(root @ root.T)


def _draw_back(
    forward: Filtered, following: Tensor, jacobian: Tensor, reference: Tensor, q: Tensor, generator: torch.Generator
) -> Tensor:
    """Paths (trials, time, R) from the filtered distributions of the linearised model, from the last sample back."""

    def drawn(mean: Tensor, covariance: Tensor) -> Tensor:
        root = symmetric_root(covariance)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        return mean + times(root, noise)

    path = [drawn(*forward.filtered[-1])]
    for t in range(len(forward.predicted) - 1, -1, -1):
        mean, covariance = forward.filtered[t]
        a = jacobian[:, t]
        ahead = following[:, t] + times(a, mean - reference[:, t])
        gain = torch.linalg.solve(a @ covariance @ a.mT + q, a @ covariance).mT
        mean = mean + times(gain, path[-1] - ahead)
        path.append(drawn(mean, covariance - gain @ a @ covariance))
    return torch.stack(path[::-1], 1)


def _packed(
    fit: FittedDynamics,
    field: Field,
    prior: CoefficientPrior,
    kept: dict[str, Tensor],
    visited: tuple[Tensor, Tensor | None, Tensor],
) -> FieldPosterior:
    """``visited``: states (N, R), inputs of all training samples or None, and which of these were recorded."""
    z, u, valid = visited
    rows = even_rows(len(z), _JUDGED)
    drives = field(z[rows], None if u is None else u[valid][rows].double()) @ kept["c"][:, 0]
    away = (drives - drives.mean(0)).flatten(1)
    axes = torch.linalg.svd(away, full_matrices=False)[2][:3]
    effective = min(effective_size(away @ axis) for axis in axes)
    conditional = kept["mean"], kept["root"], kept["prior"]
    return posterior_of_draws(
        fit.activation, field, prior.gauge, conditional, kept["c"].flatten(0, 1), kept["q"], effective
    )
