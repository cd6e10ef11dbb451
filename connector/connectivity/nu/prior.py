"""The prior of the drive's coefficients under a Gaussian process for nu, and the posterior given a quadratic likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.evidence import amplitude_prior, log_weights, maximise_posterior
from connector.connectivity.nu.kernels import KERNELS, Kernel, Linear, WhitenedPool
from connector.connectivity.nu.population import Pool

_COMPONENTS = 128  # of the posterior mixture, at most: all that count on most data


@dataclass(frozen=True)
class Quadratic:
    """Log likelihood -(x - c)^T h (x - c) / 2 + b^T (x - c) of coefficients x (pR,), flattened as (mode, dimension)."""

    h: Tensor
    b: Tensor
    c: Tensor


class Prior:
    """Cov(c'_q) = sum_k amplitude_k part_k, the same for every dimension q: linear, curved, white; one per kernel."""

    def __init__(self, pool: Pool, v: Tensor, odd: bool, gauge: Tensor, max_centres: int, generator):
        self.pool, self.v, self.gauge = pool, v, gauge
        self.whitened = WhitenedPool.of(pool.points.stack(), odd, max_centres, generator)
        self.weighted = v * pool.weights()[:, None]
        self.linear_weights = self.whitened.features.T @ self.weighted  # (P, p)
        straight = self.linear_weights.T @ self.linear_weights
        self.linear = straight + self._scatter(Linear(), 1.0) - self._between(straight)
        self.white = self._white()

    def curved(self, family: str, width: float) -> tuple[Tensor, Tensor]:
        """Projection (centres, p) with Cov(g(l), c) = k(l, centres) projection; and the part (p, p)."""
        projection, part = self.whitened.projected(self.weighted, family, width)
        if family == "none":
            return projection, part
        return projection, part + self._scatter(KERNELS[family], width) - self._between(part)

    def _others(self) -> float:
        """Weight of Cov(g v) over a fresh loading: others' draws, (Q/K)^2 K_u / Q, and the sampling error of the
        recorded, which stand for their distribution, (Q/K)^2 K_u^2 / (K_r Q): together Q (1 - f) / K_r."""
        return self.pool.size * (1 - self.pool.fraction) / self.pool.n_recorded

    def _between(self, part: Tensor) -> Tensor:
        return part * (self._others() / self.pool.size)

    def _scatter(self, kernel: Kernel, width: float) -> Tensor:
        """E over g of sum_q g_q^2 v_q v_q^T for fresh loadings, and of the covariance of g v within clouds."""
        pool, v, x, odd = self.pool, self.v, self.whitened.x, self.whitened.odd
        total = self._others() * (v * kernel.pairs(x, x, width, odd)[:, None]).T @ v
        if pool.cloud > 1:
            j, seen = pool.cloud, pool.n_recorded * pool.cloud
            x, vi = x[:seen].view(-1, j, x.shape[1]), v[:seen].view(-1, j, v.shape[1])
            k = kernel.pairs(x[:, :, None], x[:, None, :], width, odd)  # (K, j, j)
            mixed = torch.diag_embed(k.diagonal(dim1=1, dim2=2)) / j - k / j**2
            total = total + pool.inflation * pool.share**2 * torch.einsum("kip,kiq->pq", vi, mixed @ vi)
        return total

    def _white(self) -> Tensor:
        pool = self.pool
        eye = torch.eye(self.v.shape[1]).to(self.v)
        if pool.fraction == 0:  # size of the network unknown: as if it were the recorded neurons; the amplitude is free
            return eye * pool.size / pool.n_recorded
        seen = self.v[: pool.n_recorded * pool.cloud]
        return pool.share**2 / pool.cloud * seen.T @ seen + pool.share * (1 - pool.fraction) * eye


def informative(likelihood: Quadratic, prior: Tensor, rank: int, most: int) -> tuple[Tensor, Tensor]:
    """W (N, pR) and d (N,) with d = W c + N(0, I): the data, in the directions they tell most about, against ``prior``.

    Those with a signal of less than 1e-3 noise variances are dropped. prior: (p, p), in each of the ``rank`` dimensions.
    """
    scale = torch.kron(torch.linalg.cholesky(prior).contiguous(), torch.eye(rank).to(prior))
    values, vectors = torch.linalg.eigh(scale.T @ likelihood.h @ scale)
    keep = values > 1e-3
    keep[: max(0, len(values) - most)] = False
    keep[-1] = True
    values, vectors = values[keep].clamp_min(1e-12).sqrt(), vectors[:, keep]
    w = torch.linalg.solve_triangular(scale.T, vectors * values, upper=True).T
    return w, w @ likelihood.c + vectors.T @ (scale.T @ likelihood.b) / values


def in_data(w: Tensor, part: Tensor, rank: int) -> Tensor:
    """W (part x I_R) W^T."""
    w3 = w.view(len(w), -1, rank)
    return sum(w3[:, :, q] @ part @ w3[:, :, q].T for q in range(rank))


class Posterior:
    """Amplitudes of all kernels at once, then a mixture of draws about their modes."""

    def __init__(self, prior: Prior, grid, likelihood: Quadratic, reference: Tensor, most: int, noise_width: float):
        self.prior, self.grid = prior, grid
        rank, points = len(prior.gauge), prior.pool.size
        self.w, d = informative(likelihood, reference, rank, most)
        self.d = d[:, None]
        found = [prior.curved(family, width) for family, width in grid]
        self.projections, self.curved = [projection for projection, _ in found], [part for _, part in found]
        curved = torch.stack([in_data(self.w, part, rank) for part in self.curved])
        linear, white = (in_data(self.w, part, rank) for part in (prior.linear, prior.white))
        parts = (linear, curved, white, torch.eye(len(d)).to(d))
        self.parts = torch.stack([part.expand_as(curved) for part in parts], dim=1)
        leading = (likelihood.c.view(-1, rank)[:3].square().sum() / (points * rank)).clamp_min(1e-30)
        self.centre, self.width = amplitude_prior(leading, torch.ones_like(leading), noise_width, grid)
        self.found = maximise_posterior(self.parts, self.d, self.centre, self.width)

    def mixture(self, draws: int, generator: torch.Generator) -> list[tuple[int, Tensor, float]]:
        """(kernel's number, log amplitudes (4,), weight) of each component."""
        found, score = self.found, log_weights(self.found.evidence, self.grid)
        kept = (score > score.max() - math.log(200)).nonzero()[:, 0]
        free = (self.width[kept] > 0).to(self.d)
        theta, log_weight = found.log_amplitudes[kept][:, None], score[kept][:, None]
        if draws > 1:
            noise = torch.randn(len(kept), (draws + 1) // 2, 4, generator=generator, dtype=torch.float64).to(self.d)
            noise = torch.cat([noise, -noise], dim=1)[:, :draws] * free[:, None]
            root = torch.linalg.cholesky(torch.linalg.inv(found.precision[kept]))
            theta = theta + noise @ root.transpose(1, 2)
            value = torch.stack([self._value(i, t) for i, t in zip(kept.tolist(), theta)])
            ratio = value - found.value[kept][:, None] + 0.5 * noise.square().sum(2)
            # the mean ratio corrects the Laplace evidence; bounded, so that no single draw decides
            log_weight = log_weight + ratio.clamp(-20, 2) - math.log(draws)
        theta, per = theta.reshape(-1, 4), max(1, draws)
        chosen, weight = _thinned(torch.softmax(log_weight.reshape(-1), 0), _COMPONENTS, generator)
        return [(int(kept[i // per]), theta[i], w) for i, w in zip(chosen.tolist(), weight.tolist())]

    def _value(self, i: int, theta: Tensor) -> Tensor:
        """Log posterior (draws,) of log amplitudes theta (draws, 4) of kernel i."""
        factor, failed = torch.linalg.cholesky_ex(torch.einsum("dk,kij->dij", theta.exp(), self.parts[i]))
        solved = torch.linalg.solve_triangular(factor, self.d.expand(len(theta), *self.d.shape), upper=False)
        value = -0.5 * solved.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        width = torch.where(self.width[i] > 0, self.width[i], torch.full_like(self.width[i], math.inf))
        value = value - 0.5 * (((theta - self.centre[i]) / width) ** 2).sum(1)
        return value.masked_fill((failed > 0) | value.isnan(), -math.inf)


def _thinned(weight: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices and weights, heaviest first, of at most ``most`` components that stand for all: those of more than 0.002 of
    the heaviest, and of too many a systematic sample, in which no kernel is favoured."""
    order = weight.argsort(descending=True)
    order = order[weight[order] > 0.002 * weight[order[0]]]
    share = weight[order] / weight[order].sum()
    if len(order) > most:
        start = float(torch.rand(1, generator=generator, dtype=torch.float64))
        at = (torch.arange(most).to(share) + start) / most
        picked = torch.searchsorted(share.cumsum(0), at).clamp_max(len(order) - 1)
        picked, count = picked.unique(return_counts=True)
        order, share = order[picked], count.to(share) / most
    return order, share
