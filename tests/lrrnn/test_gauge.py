"""A change of latent coordinates leaves rates and dynamics as they are."""

from __future__ import annotations

import pytest
import torch
from rate_networks import make_network

from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.types import Loadings


def test_linear_gauge_leaves_rates_and_dynamics():
    net = make_network(n_inputs=1)
    g = torch.Generator().manual_seed(3)
    z, u = torch.randn(30, 2, generator=g).double(), torch.randn(30, 1, generator=g).double()
    gauge = Gauge(torch.tensor([[1.0, 2.0], [-0.5, 0.7]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    moved = gauge.network(net)
    torch.testing.assert_close(moved.rates(gauge.latents(z), u), net.rates(z, u))
    torch.testing.assert_close(moved.step(gauge.latents(z), u), gauge.latents(net.step(z, u)))


def test_affine_gauge_leaves_rates_and_on_the_states_the_dynamics():
    net = make_network("softplus", has_bias=True)
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(3)).double()
    gauge = Gauge(torch.tensor([[1.0, 0.4], [-0.5, 0.7]]).double(), torch.tensor([0.5, -1.0]).double())
    moved = gauge.network(net, z)
    torch.testing.assert_close(moved.rates(gauge.latents(z)), net.rates(z))
    torch.testing.assert_close(moved.step(gauge.latents(z)), gauge.latents(net.step(z)), rtol=0, atol=2e-5)
    with pytest.raises(UserError):
        gauge.network(net)
    with pytest.raises(UserError):
        gauge.loadings(Loadings(net.m))


def test_gauge_fit_finds_the_map_from_training_trials_only():
    g = torch.Generator().manual_seed(4)
    z, matrix, shift = torch.randn(6, 9, 2, generator=g).double(), torch.randn(2, 2).double(), torch.randn(2).double()
    truth = z @ matrix.T + shift
    truth[3:] = 99.0
    lengths = torch.tensor([9, 4, 7, 9, 9, 9])
    truth[1, 4:] = -99.0
    gauge = Gauge.fit(z, truth, lengths, torch.tensor([0, 1, 2]), affine=True)
    torch.testing.assert_close(gauge.matrix, matrix)
    torch.testing.assert_close(gauge.shift, shift)
    with pytest.raises(UserError):
        Gauge.fit(torch.zeros_like(z), truth, lengths)


def test_gauge_moves_covariances_as_it_moves_loadings():
    g = torch.Generator().manual_seed(5)
    draws = torch.randn(200000, 4, generator=g).double() @ torch.randn(4, 4, generator=g).double()
    gauge = Gauge(torch.tensor([[1.0, 0.4], [-0.5, 0.7]]).double(), torch.tensor([0.5, -1.0]).double())
    moved = gauge.loadings(Loadings.unstack(draws, 2, 1, True)).stack()
    torch.testing.assert_close(gauge.loadings_covariance(draws.T.cov()[None], 1)[0], moved.T.cov())


def test_nearest_gauge_has_the_mean_and_covariance_of_the_other_and_finds_a_turn():
    g = torch.Generator().manual_seed(0)
    other = torch.randn(400, 2, generator=g, dtype=torch.float64) @ torch.tensor([[2.0, 0.3], [0.1, 0.6]]).double() + 1
    a = torch.tensor([[0.4, -1.0], [0.7, 0.2]], dtype=torch.float64)
    gauge = Gauge.nearest(other @ a.T - 3, other)
    torch.testing.assert_close(gauge.latents(other @ a.T - 3), other, rtol=1e-4, atol=1e-4)
    unrelated = torch.randn(400, 2, generator=g, dtype=torch.float64)
    moved = Gauge.nearest(unrelated, other).latents(unrelated)
    torch.testing.assert_close(moved.mean(0), other.mean(0))
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(other.T), rtol=1e-3, atol=1e-3)
