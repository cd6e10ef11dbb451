"""Loadings that stand for a population: the recorded neurons, those whose loadings are uncertain, those not recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from connector.connectivity.student_t import quadrature
from connector.numerics import covariance_root, inverse_root, power_of_two, whitening_of
from connector.types import Loadings

_HALVINGS, _BY_CHANCE = 10, 3.0  # of the smoothing that is the rule's; gain of log likelihood that is no evidence


@dataclass
class Pool:
    """Points that stand for the loadings: ``cloud`` of them for each recorded neuron in turn, then jittered copies.

    points (Q, P) stacked; fraction: recorded share of the network, 0 if unknown (a very large network). inflation: of the
    scatter within clouds, for the sampling error of the distribution that shrinks the estimates. population: of the true
    loadings, where the recorded ones are known up to an error.
    """

    points: Loadings
    n_recorded: int
    cloud: int
    fraction: float
    inflation: float = 1.0
    population: Population | None = None

    @property
    def size(self) -> int:
        return self.points.n_neurons

    @property
    def share(self) -> float:
        """Q / K: points of the pool per neuron of the network."""
        return self.size * self.fraction / self.n_recorded

    def weights(self) -> Tensor:
        """(Q,) w with E[c | g] = sum_q w_q g(l_q) v_q: a recorded neuron stands for itself, the rest for all others."""
        w = torch.full((self.size,), 1 - self.fraction).to(self.points.m)
        seen = self.n_recorded * self.cloud
        w[:seen] += self.fraction * self.size / seen
        return w


def build_pool(
    loadings: Loadings,
    covariance: Tensor | None,
    fraction: float,
    pseudo: int | str,
    generator: torch.Generator,
) -> Pool:
    """Of recorded neurons, with the covariance (K, P, P) of each loading's error where there is any, and ``pseudo`` jittered
    copies ("auto": to 1000 in all below 200 recorded of more neurons)."""
    stacked = loadings.stack()
    k, dim = stacked.shape
    shape = (loadings.rank, loadings.n_inputs, loadings.has_bias)
    cloud, inflation, population = 1, 1.0, None
    points = stacked
    if covariance is not None:
        population = deconvolve(stacked, covariance, generator)
        points, cloud = clouds(stacked, covariance, population).flatten(0, 1), 2 * dim
        # With l ~ N(0, P), known up to an error of variance S, a second moment estimated from the same neurons has
        # ((P + S) / P)^2 times the variance that it would have were P known.
        total, errors = stacked.var(0, unbiased=False), covariance.diagonal(dim1=1, dim2=2).mean(0)
        varies = total > 1e-12 * stacked.square().mean(0)
        inflation = float((total / (total - errors).clamp_min(0.1 * total))[varies].mean()) ** 2
    extra = 0 if pseudo == "auto" and fraction == 1 else pseudo
    centres = Loadings.unstack(points.view(k, cloud, dim).mean(1), *shape)
    points = torch.cat([points, extend_pool(centres, extra, None).stack()[k:]])
    return Pool(Loadings.unstack(points, *shape), k, cloud, fraction, inflation, population)


def extend_pool(pool: Loadings, extra: int | str, jitter: float | None) -> Loadings:
    """Jittered copies smooth the empirical distribution of few loadings; mean and covariance are kept.

    About each neuron they lie at the same points, so that the order of the neurons does not matter.

    Args:
        extra: how many at least; "auto": none from 200 neurons on, else enough for 1000 in all.
        jitter: their sd in units of the loadings' sd; None: :func:`bandwidth`.
    """
    k = pool.n_neurons
    if extra == "auto":
        extra = 0 if k >= 200 else 1000 - k
    if not extra:
        return pool
    stacked = pool.stack()
    dim = stacked.shape[1]
    mean = stacked.mean(0)
    centred = stacked - mean
    if jitter is None:
        jitter = bandwidth(centred @ whitening_of(centred))
    root = covariance_root(centred.T @ centred / k).T
    about = normal_points(max(-(-extra // k), 2 * dim), dim).to(stacked) @ root
    copies = mean + (centred + jitter * about[:, None]).flatten(0, 1) / math.sqrt(1 + jitter**2)
    return Loadings.unstack(torch.cat([stacked, copies]), pool.rank, pool.n_inputs, pool.has_bias)


def normal_points(count: int, dim: int) -> Tensor:
    """(2 ceil(count / 2), dim) points in opposite pairs, of mean 0 and unit covariance, spread as a normal density's mass."""
    half = quadrature(-(-count // 2), dim, math.inf)
    points = torch.cat([half, -half])
    return points @ inverse_root(points)


def bandwidth(x: Tensor) -> float:
    """Sd of the normal density about each row of x (K, P), of unit covariance, that stands for the rows' density.

    Silverman's rule, which is that of one normal population. A part of it where the rows lie in tight groups, which that
    would smear into each other: where leave-one-out predicts the rows better, by more than chance makes it. A tenth of the
    density stays as the rule has it, so that a neuron far from all others does not decide.
    """
    k, dim = x.shape
    rule = (4 / (dim + 2)) ** (1 / (dim + 4)) * k ** (-1 / (dim + 4))
    squared = torch.cdist(x, x).square()
    squared.fill_diagonal_(math.inf)
    sds = torch.tensor([rule / 2**i for i in range(_HALVINGS + 1)]).to(x)
    density = torch.stack([torch.logsumexp(-0.5 * squared / sd**2, 1) - dim * sd.log() for sd in sds])
    scores = torch.logaddexp(density + math.log(0.9), density[0] + math.log(0.1)).sum(1)
    best = int(scores.argmax())
    return float(sds[best if scores[best] - scores[0] > _BY_CHANCE else 0])


class Population(NamedTuple):
    """Mixture of normals that true loadings follow: weights (C,), means (C, P), spreads (C, P, P)."""

    weights: Tensor
    means: Tensor
    spreads: Tensor


def _units(variance: Tensor) -> Tensor:
    """(P,) powers of two near the sd of columns a thousand times apart or more, among which the small ones would pass for
    constant; else ones."""
    size = variance.clamp_min(0).sqrt()
    varying = size > 0
    if not varying.any() or float(size.max() / size[varying].min()) < 1e3:
        return torch.ones_like(size)
    return power_of_two(size)


def clouds(stacked: Tensor, covariance: Tensor, population: Population | None) -> Tensor:
    """Sigma points (K, 2P, P) of each true loading given its estimate (K, P) and its error's covariance (K, P, P).

    The estimates scatter more than the true loadings do. Under the population of the true ones each loading has a
    posterior, of which mean and covariance are kept; without one the points lie about the estimate.
    """
    dim, found = stacked.shape[1], []
    variance = (covariance if population is None else population.spreads).diagonal(dim1=1, dim2=2).mean(0)
    units = _units(variance)
    square = units[:, None] * units
    if population is not None:
        population = Population(population.weights, population.means / units, population.spreads / square)
    for rows, errors in zip((stacked / units).split(20_000), (covariance / square).split(20_000)):
        middle, left = rows, errors
        if population is not None:
            share, mean, spread, _ = _true_loading(rows, errors, *population)
            middle = (share[:, :, None] * mean).sum(1)
            away = mean - middle[:, None]
            between = torch.einsum("kc,kci,kcj->kij", share, away, away)
            left = (share[:, :, None, None] * spread).sum(1) + between
        values, vectors = torch.linalg.eigh(0.5 * (left + left.transpose(1, 2)))
        root = vectors * (dim * values.clamp_min(0)).sqrt()[:, None, :]  # columns: sqrt(P) times the principal axes
        arms = root.transpose(1, 2)
        found.append(torch.cat([middle[:, None] + arms, middle[:, None] - arms], dim=1))
    return torch.cat(found) * units


def _true_loading(rows: Tensor, errors: Tensor, weights: Tensor, means: Tensor, spreads: Tensor):
    """Of each row (K, P) and component: its probability (K, C), the true loading's mean (K, C, P) and covariance
    (K, C, P, P) given the row; and the rows' log-likelihood (K,)."""
    total = spreads + errors[:, None]
    factor = torch.linalg.cholesky(total)
    away = rows[:, None] - means
    scaled = torch.linalg.solve_triangular(factor, away[..., None], upper=False)
    log_p = -0.5 * scaled.square().sum((2, 3)) - factor.diagonal(dim1=2, dim2=3).log().sum(2) + weights.log()
    gain = torch.cholesky_solve(spreads.expand_as(total), factor).transpose(2, 3)
    mean = means + (gain @ away[..., None])[..., 0]
    return torch.softmax(log_p, 1), mean, spreads - gain @ spreads, torch.logsumexp(log_p, 1)


def deconvolve(stacked: Tensor, covariance: Tensor, generator: torch.Generator, steps: int = 40) -> Population:
    """Mixture of normals behind noisy rows by expectation-maximisation; number of components by BIC."""
    pick = torch.randperm(len(stacked), generator=generator)[:2000].to(stacked.device)
    units = _units(stacked.var(0, unbiased=False))
    square = units[:, None] * units
    found = _deconvolve(stacked[pick] / units, covariance[pick] / square, generator, steps)
    return Population(found.weights, found.means * units, found.spreads * square)


def _deconvolve(rows: Tensor, errors: Tensor, generator: torch.Generator, steps: int) -> Population:
    """Of columns in comparable units."""
    k, dim = rows.shape
    mean = rows.mean(0)
    overall = (rows - mean).T @ (rows - mean) / k
    floor = 1e-3 * torch.linalg.eigvalsh(overall)[-1].clamp_min(1e-12)
    eye = torch.eye(dim).to(rows)
    best, best_score = None, -math.inf
    for count in (1, 2, 4, 8):
        if count > 1 and k < 20 * count * dim:
            break
        chosen = [int(torch.randint(k, (1,), generator=generator))]
        for _ in range(count - 1):  # spread out, as k-means++ does
            nearest = torch.cdist(rows, rows[chosen]).amin(1).square().cpu()
            chosen.append(int(torch.multinomial(nearest + 1e-12, 1, generator=generator)))
        means = mean[None] if count == 1 else rows[chosen]
        weights = torch.full((count,), 1 / count).to(rows)
        spreads = (overall / count ** (2 / dim) + floor * eye).expand(count, dim, dim)
        for _ in range(steps):
            share, true, left, log_p = _true_loading(rows, errors, weights, means, spreads)
            size = share.sum(0) + 1e-9
            weights = size / size.sum()
            means = (share[:, :, None] * true).sum(0) / size[:, None]
            away = true - means
            scatter = torch.einsum("kc,kci,kcj->cij", share, away, away)
            spreads = (scatter + torch.einsum("kc,kcij->cij", share, left)) / size[:, None, None] + floor * eye
        free = count * (1 + dim + dim * (dim + 1) / 2)
        score = float(log_p.sum()) - 0.5 * free * math.log(k)
        if score > best_score:
            best, best_score = Population(weights, means, spreads), score
    return best
