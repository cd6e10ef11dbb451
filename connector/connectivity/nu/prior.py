"""The prior of the drive's coefficients under a Gaussian process for nu, and the posterior given a quadratic likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.evidence import Amplitudes, maximise_posterior
from connector.connectivity.nu.kernels import kernel_diagonal, kernel_pairs, linear_features, project_kernel
from connector.connectivity.nu.population import Pool, pool_share
from connector.numerics import inverse_root

_COMPONENTS = 32  # of the posterior mixture, at most


@dataclass
class Likelihood:
    """exp(-(c - peak)^T h (c - peak) / 2 + b^T (c - peak)) of the whitened-gauge coefficients c (pR,)."""

    h: Tensor
    b: Tensor
    c: Tensor
    covariance: Tensor  # (R, R) of the samples' noise, where it is alike for all
    dispersion: float  # variance of the whitened residuals
    autocorrelation: float  # of the residuals, lag 1
    converged: bool
    n_samples: int
    n_dropped: int  # segments


class Prior:
    """Cov(c'_q) = sum_k amplitude_k part_k, the same for every dimension q: linear, curved, white; one per kernel."""

    def __init__(self, pool: Pool, v: Tensor, odd: bool, gauge: Tensor, max_centres: int, generator):
        self.pool, self.v, self.odd = pool, v, odd
        stacked = pool.points.stack()
        self.location = torch.zeros_like(stacked[0]) if odd else stacked.mean(0)
        self.whitening = inverse_root(stacked - self.location)
        self.gauge = gauge
        self.x = (stacked - self.location) @ self.whitening
        self.subset = pool.size > max_centres
        self.centres = self.x
        if self.subset:
            pick = torch.randperm(pool.size, generator=generator)[: max(1, max_centres // 4)].to(v.device)
            self.centres = self.x[pick]
        self.weighted = v * pool.weights()[:, None]
        features = linear_features(self.x, odd)
        self.linear_weights = features.T @ self.weighted  # (P, p)
        scatter = self._scatter(features.square().sum(1), lambda a, b: (a * b).sum(-1) + (0.0 if odd else 1.0))
        straight = self.linear_weights.T @ self.linear_weights
        self.linear = straight + scatter - self._between(straight)
        self.white = self._white()

    def curved(self, family: str, width: float) -> tuple[Tensor, Tensor]:
        """Projection (centres, p) with Cov(g(l), c) = k(l, centres) projection; and the part (p, p)."""
        projection, part = project_kernel(self.x, self.centres, self.subset, self.weighted, family, width, self.odd)
        if family == "none":
            return projection, part
        scatter = self._scatter(
            kernel_diagonal(self.x, family, width, self.odd), lambda a, b: kernel_pairs(a, b, family, width, self.odd)
        )
        return projection, part + scatter - self._between(part)

    def _others(self) -> float:
        """Weight of Cov(g v) over a fresh loading: others' draws, (Q/K)^2 K_u / Q, and the sampling error of the
        recorded, which stand for their distribution, (Q/K)^2 K_u^2 / (K_r Q): together Q (1 - f) / K_r."""
        return self.pool.size * (1 - self.pool.fraction) / self.pool.n_recorded

    def _between(self, part: Tensor) -> Tensor:
        return part * (self._others() / self.pool.size)

    def _scatter(self, diagonal: Tensor, pairs) -> Tensor:
        """E over g of sum_q g_q^2 v_q v_q^T for fresh loadings, and of the covariance of g v within clouds."""
        pool, v = self.pool, self.v
        total = self._others() * (v * diagonal[:, None]).T @ v
        if pool.cloud > 1:
            j, seen = pool.cloud, pool.n_recorded * pool.cloud
            x, vi = self.x[:seen].view(-1, j, self.x.shape[1]), v[:seen].view(-1, j, v.shape[1])
            k = pairs(x[:, :, None], x[:, None, :])  # (K, j, j)
            mixed = torch.diag_embed(k.diagonal(dim1=1, dim2=2)) / j - k / j**2
            total = total + pool.inflation * pool_share(pool) ** 2 * torch.einsum("kip,kiq->pq", vi, mixed @ vi)
        return total

    def _white(self) -> Tensor:
        pool = self.pool
        eye = torch.eye(self.v.shape[1]).to(self.v)
        if pool.fraction == 0:  # size of the network unknown: as if it were the recorded neurons; the amplitude is free
            return eye * pool.size / pool.n_recorded
        seen = self.v[: pool.n_recorded * pool.cloud]
        share = pool_share(pool)
        return share**2 / pool.cloud * seen.T @ seen + share * (1 - pool.fraction) * eye


def informative(likelihood_h, likelihood_b, c, prior: Tensor, rank: int, most: int) -> tuple[Tensor, Tensor]:
    """W (N, pR) and d (N,) with d = W c + N(0, I): the data, in the directions they tell most about, against ``prior``.

    Those with a signal of less than 1e-3 noise variances are dropped.
    """
    scale = torch.kron(torch.linalg.cholesky(prior).contiguous(), torch.eye(rank).to(prior))
    values, vectors = torch.linalg.eigh(scale.T @ likelihood_h @ scale)
    keep = values > 1e-3
    keep[: max(0, len(values) - most)] = False
    keep[-1] = True
    values, vectors = values[keep].clamp_min(1e-12).sqrt(), vectors[:, keep]
    w = torch.linalg.solve_triangular(scale.T, vectors * values, upper=True).T
    return w, w @ c + vectors.T @ (scale.T @ likelihood_b) / values


def in_data(w: Tensor, part: Tensor, rank: int) -> Tensor:
    """W (part x I_R) W^T."""
    w3 = w.view(len(w), -1, rank)
    return sum(w3[:, :, q] @ part @ w3[:, :, q].T for q in range(rank))


class Posterior:
    """Amplitudes of all kernels at once, then a mixture of draws about their modes."""

    def __init__(self, prior: Prior, grid, likelihood: Likelihood, reference: Tensor, most: int, noise_width: float):
        self.prior, self.grid = prior, grid
        rank = len(prior.gauge)
        self.w, d = informative(likelihood.h, likelihood.b, likelihood.c, reference, rank, most)
        self.d = d[:, None]
        eye = torch.eye(len(d)).to(d)
        self.projections, curved = [], []
        for family, width in grid:
            projection, part = prior.curved(family, width)
            self.projections.append(projection)
            curved.append(in_data(self.w, part, rank))
        linear, white = (in_data(self.w, part, rank) for part in (prior.linear, prior.white))
        rest = [part.expand(len(grid), *part.shape) for part in (linear, white, eye)]
        self.parts = torch.stack([rest[0], torch.stack(curved), rest[1], rest[2]], dim=1)
        self.centre, self.width = _hyper_prior(likelihood.c.view(-1, rank), prior.pool.size, grid, noise_width)
        self.found = maximise_posterior(self.parts, self.d, self.centre, self.width)

    def mixture(self, draws: int, generator: torch.Generator) -> list[tuple[int, Tensor, float]]:
        """(kernel's number, log amplitudes (4,), weight) of each component, families equally likely beforehand."""
        found: Amplitudes = self.found
        sizes = [sum(f == other for other, _ in self.grid) for f, _ in self.grid]
        score = found.evidence - torch.tensor(sizes).to(found.evidence).log()
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
        weight = torch.softmax(log_weight.reshape(-1), 0)
        order = weight.argsort(descending=True)[:_COMPONENTS]
        order = order[weight[order] > 0.002 * weight[order[0]]]
        total = float(weight[order].sum())
        theta = theta.reshape(-1, 4)
        per = max(1, draws)
        return [(int(kept[i // per]), theta[i], float(weight[i]) / total) for i in order.tolist()]

    def _value(self, i: int, theta: Tensor) -> Tensor:
        """Log posterior (draws,) of log amplitudes theta (draws, 4) of kernel i."""
        factor, failed = torch.linalg.cholesky_ex(torch.einsum("dk,kij->dij", theta.exp(), self.parts[i]))
        solved = torch.linalg.solve_triangular(factor, self.d.expand(len(theta), *self.d.shape), upper=False)
        value = -0.5 * solved.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        width = torch.where(self.width[i] > 0, self.width[i], torch.full_like(self.width[i], math.inf))
        value = value - 0.5 * (((theta - self.centre[i]) / width) ** 2).sum(1)
        return value.masked_fill((failed > 0) | value.isnan(), -math.inf)


def _hyper_prior(c: Tensor, pool_size: int, grid, noise_width: float) -> tuple[Tensor, Tensor]:
    """Normal priors (kernels, 4) of the log amplitudes: wide, about the size of n that the leading modes show."""
    leading = (c[:3].square().sum() / (pool_size * c.shape[1])).clamp_min(1e-30)
    centre = torch.stack([leading, leading, leading / 3, torch.ones_like(leading)]).log()
    width = torch.tensor([2.0, 2.0, 2.0, noise_width]).to(c)
    centre, width = centre.expand(len(grid), 4).clone(), width.expand(len(grid), 4).clone()
    for i, (family, _) in enumerate(grid):
        if family == "none":
            width[i, 1] = 0.0  # its part is zero: nothing to fit
    return centre, width
