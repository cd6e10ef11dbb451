"""Linear dynamics fitted to rates: a linear dynamical system by expectation maximisation, and principal components with ridge.

    z[t+1] = A z[t] + B u[t] + c + N(0, Q),  y[t] = C z[t] + e + N(0, diag(S)),  z[0] ~ N(m0, V0)

Trials have one length, so that one Kalman gain serves all of them. Public libraries were looked at first: those that are maintained
and permissive bring a second framework for arrays (dynamax: jax) or have no inputs (pykalman); this is small enough to be checked
against the joint Gaussian of all samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from connector.numerics import least_squares, ridge
from connector.score.models import LinearModel

_FLOOR = 1e-5  # of a neuron's variance: the least noise of its rates
_STATE_FLOOR = 1e-7  # of the states' mean variance: the least noise of a step


@dataclass
class LinearSystem:
    """Parameters, float64: a (R, R), b (R, U + 1) with c as its last column, q (R, R), readout (K, R), e (K,), s (K,) variances,
    first (R,) and spread (R, R) of the first state."""

    a: Tensor
    b: Tensor
    q: Tensor
    readout: Tensor
    e: Tensor
    s: Tensor
    first: Tensor
    spread: Tensor

    def model(self, alpha: float) -> LinearModel:
        inputs = self.b[:, :-1]
        return LinearModel(self.a, inputs if inputs.shape[1] else None, self.b[:, -1], self.readout, self.e, alpha)


def with_one(u: Tensor | None, like: Tensor) -> Tensor:
    """Inputs (N, T, U) with a constant 1 beside them, (N, T, U + 1) float64."""
    one = torch.ones(*like.shape[:2], 1, dtype=torch.float64)
    return one if u is None else torch.cat([u.double(), one], -1)


def components(y: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (K,), axes (K, R) and scores (N, T, R) of the leading principal components of rates (N, T, K)."""
    flat = y.flatten(0, 1).double()
    mean = flat.mean(0)
    axes = torch.linalg.eigh(torch.cov((flat - mean).T).reshape(len(mean), -1)).eigenvectors[:, -rank:].flip(1)
    return mean, axes, (y.double() - mean) @ axes


def pca_ridge(y: Tensor, u: Tensor | None, rank: int, alpha: float, penalty: float = 1e-4) -> LinearModel:
    """Principal components of rates (N, T, K), and the ridge regression of each sample's on the last one's and its inputs.

    penalty: of the regression, relative to the mean square of its regressors.
    """
    mean, axes, z = components(y, rank)
    x = torch.cat([z, with_one(u, y)], -1)[:, :-1].flatten(0, 1)
    found = ridge(x, z[:, 1:].flatten(0, 1), penalty * len(x) * float(x.square().mean())).T
    b = found[:, rank:-1]
    return LinearModel(found[:, :rank], b if b.shape[1] else None, found[:, -1], axes, mean, alpha)


@dataclass
class Smoothed:
    """Posterior of the states: mean (N, T, R), covariance (T, R, R), of successive ones (T - 1, R, R): Cov(z[t+1], z[t]); the
    log likelihood of all trials."""

    mean: Tensor
    covariance: Tensor
    lagged: Tensor
    log_likelihood: float


def moments_of(y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of rates (N, T, K) and of their squares over all samples, (K,) each."""
    flat = y.flatten(0, 1).double()
    return flat.sum(0), flat.square().sum(0)


def smooth(system: LinearSystem, y: Tensor, v: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Smoothed:
    """Kalman filter and Rauch-Tung-Striebel smoother of rates y (N, T, K) under inputs v (N, T, U + 1).

    moments: of y (:func:`moments_of`), where they are known.
    """
    n, steps, k = y.shape
    weighed = system.readout / system.s[:, None]
    precision = system.readout.T @ weighed
    y = y.double()
    seen = y @ weighed - system.e @ weighed
    sums, squared = moments or moments_of(y)
    error = ((squared - 2 * system.e * sums + n * steps * system.e.square()) / system.s).sum()
    constant = k * math.log(2 * math.pi) + float(system.s.log().sum())
    eye, driven = torch.eye(len(system.a), dtype=torch.float64), v @ system.b.T
    mean, spread = system.first.expand(n, -1), system.spread
    means, spreads, ahead, total = [], [], [], -0.5 * float(error)
    for t in range(steps):
        inverse = torch.linalg.inv(spread)
        posterior = torch.linalg.inv(inverse + precision)
        posterior = (posterior + posterior.T) / 2
        updated = (mean @ inverse + seen[:, t]) @ posterior
        gap = ((mean @ inverse) * mean).sum(1) - ((mean @ inverse + seen[:, t]) * updated).sum(1)
        total += -0.5 * float(gap.sum()) - 0.5 * n * (constant + float(torch.logdet(eye + spread @ precision)))
        means.append(updated)
        spreads.append(posterior)
        mean = updated @ system.a.T + driven[:, t]
        spread = system.a @ posterior @ system.a.T + system.q
        ahead.append((mean, spread))
    lagged = []
    for t in range(steps - 2, -1, -1):
        following, predicted = ahead[t]
        gain = torch.linalg.solve(predicted, system.a @ spreads[t]).T
        lagged.append(spreads[t + 1] @ gain.T)
        means[t] = means[t] + (means[t + 1] - following) @ gain.T
        spreads[t] = spreads[t] + gain @ (spreads[t + 1] - predicted) @ gain.T
    return Smoothed(torch.stack(means, 1), torch.stack(spreads), torch.stack(lagged[::-1]), total)


def updated(posterior: Smoothed, y: Tensor, v: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> LinearSystem:
    """The parameters that maximise the expected log density; moments: of y, where they are known."""
    z, n, steps = posterior.mean, len(y), y.shape[1]
    rank = z.shape[2]
    x = torch.cat([z, v], -1)[:, :-1].flatten(0, 1)
    following = z[:, 1:].flatten(0, 1)
    gram, cross = x.T @ x, following.T @ x
    gram[:rank, :rank] += n * posterior.covariance[:-1].sum(0)
    cross[:, :rank] += n * posterior.lagged.sum(0)
    gram.diagonal().add_(1e-10 * gram.diagonal().mean())
    both = torch.linalg.solve(gram, cross.T).T
    second = following.T @ following + n * posterior.covariance[1:].sum(0)
    q = (second - both @ cross.T - cross @ both.T + both @ gram @ both.T) / (n * (steps - 1))
    floor = _STATE_FLOOR * float(z.flatten(0, 1).var(0).mean())
    q = (q + q.T) / 2 + floor * torch.eye(rank, dtype=torch.float64)
    flat, rates, count = z.flatten(0, 1), y.double().flatten(0, 1), n * steps
    sums, squared = moments or moments_of(y)
    centre, mean = flat.mean(0), sums / count
    spread = (flat - centre).T @ (flat - centre) + n * posterior.covariance.sum(0)
    with_rates = (flat - centre).T @ rates
    readout = torch.linalg.solve(spread, with_rates).T
    variance = squared / count - mean.square()
    # the mean of (y - e - C z)^2 over samples and over the posterior of z, at the best C
    residual = variance - (readout * with_rates.T).sum(1) / count
    s = torch.maximum(residual, _FLOOR * variance + 1e-12)
    e = mean - readout @ centre
    first = z[:, 0].mean(0)
    apart = z[:, 0] - first
    of_first = apart.T @ apart / n + posterior.covariance[0] + floor * torch.eye(rank, dtype=torch.float64)
    return LinearSystem(both[:, :rank], both[:, rank:], q, readout, e, s, first, of_first)


def started(y: Tensor, v: Tensor, rank: int) -> LinearSystem:
    """From principal components: their regression on one another, and what it leaves."""
    mean, axes, z = components(y, rank)
    x = torch.cat([z, v], -1)[:, :-1].flatten(0, 1)
    both = least_squares(x, z[:, 1:].flatten(0, 1)).T
    left = z[:, 1:].flatten(0, 1) - x @ both.T
    eye, size = torch.eye(rank, dtype=torch.float64), float(z.flatten(0, 1).var(0).mean())
    residual = (y.double() - mean - z @ axes.T).flatten(0, 1).var(0)
    s = torch.maximum(residual, 1e-3 * y.flatten(0, 1).double().var(0) + 1e-12)
    q = left.T @ left / len(left) + 1e-4 * size * eye
    return LinearSystem(
        both[:, :rank], both[:, rank:], q, axes, mean, s, z[:, 0].mean(0), z[:, 0].T.cov() + 1e-4 * size * eye
    )


def fit_linear_system(
    y: Tensor, u: Tensor | None, rank: int, iterations: int = 60, tolerance: float = 1e-6
) -> tuple[LinearSystem, list[float]]:
    """Expectation maximisation from principal components; the system and the log likelihood a sample after each iteration.

    Args:
        y: (N, T, K) rates; u: (N, T, U) inputs in force from a sample to the next, or None. tolerance: gain of the log likelihood
            a sample, relative to its size, below which it stops.
    """
    y = y.double()
    v, moments = with_one(u, y), moments_of(y)
    system, course = started(y, v, rank), []
    for _ in range(iterations):
        posterior = smooth(system, y, v, moments)
        course.append(posterior.log_likelihood / (y.shape[0] * y.shape[1]))
        if len(course) > 2 and course[-1] - course[-2] < tolerance * abs(course[-1]):
            break
        system = updated(posterior, y, v, moments)
    return system, course
