"""Loadings that stand for a population: copies keep its moments, clouds find what errors hide."""

import torch

from connector.connectivity.nu.population import bandwidth, clouds, deconvolve, extend_pool
from connector.types import Loadings


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pseudo_loadings_keep_mean_and_covariance():
    pool = Loadings(_randn(60, 2) @ torch.tensor([[1.0, 0.5], [0.0, 2.0]]).double() + 1)
    extended = extend_pool(pool, 600, None)
    assert torch.equal(extended.m[:60], pool.m)
    assert torch.allclose(extended.m.mean(0), pool.m.mean(0))
    assert torch.allclose(extended.m.T.cov(correction=0), pool.m.T.cov(correction=0))


def test_copies_are_the_same_whatever_the_order_of_the_neurons():
    m = _randn(30, 2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    copies, others = (extend_pool(Loadings(x), 95, None).m[30:].view(-1, 30, 2) for x in (m, m[order]))
    assert torch.allclose(copies[:, order], others)


def test_copies_lie_within_tight_groups_and_as_silverman_has_it_in_one_population():
    assert bandwidth(_randn(64, 2)) == 64 ** (-1 / 6)  # (4 / (P + 2))^(1 / (P + 4)) is 1
    centres = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]).double().repeat_interleave(16, 0)
    assert bandwidth(centres + 0.05 * _randn(64, 2)) < 0.1
    alone = torch.cat([centres[:-16] + 0.05 * _randn(48, 2), centres[-1:]])  # nothing near it speaks for its own group
    assert bandwidth(alone) < 0.1
    assert bandwidth(centres) < 0.01


def test_deconvolution_finds_the_clusters_behind_the_errors():
    g = torch.Generator().manual_seed(0)
    true = torch.cat([_randn(600, 2) * 0.2 + 1, _randn(600, 2, seed=1) * 0.2 - 1])
    errors = (0.6 * torch.rand(1200, 1, 1, generator=g, dtype=torch.float64)) ** 2 * torch.eye(2).double()
    seen = true + errors[:, :1, 0].sqrt() * _randn(1200, 2, seed=2)
    points = clouds(seen, errors, deconvolve(seen, errors, g))
    assert float((points.mean(1) - true).square().mean()) < 0.5 * float((seen - true).square().mean())
    # each cloud's covariance is the loading's remaining uncertainty, and all clouds together scatter as the truth does
    scaled = (points.mean(1) - true).square().mean() / points.var(1, unbiased=False).mean()
    assert 0.8 < float(scaled) < 1.25
    assert torch.allclose(points.reshape(-1, 2).T.cov(), true.T.cov(), rtol=0.1, atol=0.02)
