"""Distances between connectivities against closed-form answers."""

from dataclasses import replace

import pytest
import torch
from draws import generator, normal, random_network

from connector.analysis import distances
from connector.data.attractors import teacher
from connector.dynamics import Network
from connector.errors import UserError
from connector.numerics import least_squares

SYSTEMS = ("quadstable", "bistable", "limit_cycle", "ring")


def test_sinkhorn_of_equal_clouds_is_zero():
    x = normal(300, 2)
    assert distances.sinkhorn_divergence(x, x[torch.randperm(300, generator=generator())]) < 1e-5


@pytest.mark.parametrize("shift", [(0.5, 0.0, 0.0), (1.0, -2.0, 0.5), (100.0, 0.0, 3.0)])
def test_sinkhorn_of_a_shifted_cloud_is_half_the_squared_shift(shift):
    x, shift = normal(300, 3), torch.tensor(shift, dtype=torch.float64)
    expected = float(shift.square().sum()) / 2
    assert distances.sinkhorn_divergence(x, x + shift) == pytest.approx(expected, rel=2e-3)


def test_sinkhorn_of_scaled_gaussians_follows_the_closed_form():
    # W2^2 / 2 between N(0, s^2 I) and N(0, I) in D dimensions is D (s - 1)^2 / 2.
    x = normal(1500, 1)
    assert distances.sinkhorn_divergence(2 * x, x) == pytest.approx(0.5 * float(x.square().mean()), rel=0.02)


@pytest.mark.parametrize("sizes", [(300, 300), (200, 350)])
def test_sinkhorn_is_that_of_geomloss(sizes):
    geomloss = pytest.importorskip("geomloss")
    x, y = normal(sizes[0], 3), 0.3 + 1.4 * normal(sizes[1], 3, seed=1)
    reference = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.05, backend="tensorized")(x, y)
    assert distances.sinkhorn_divergence(x, y) == pytest.approx(float(reference), rel=1e-4)


def test_sinkhorn_thins_large_clouds_and_refuses_other_dimensions():
    x = normal(3000, 2)
    thinned = distances.sinkhorn_divergence(x, x + 1, max_points=300, generator=generator(3))
    assert thinned == pytest.approx(1.0, abs=0.35)
    with pytest.raises(UserError, match="dimension"):
        distances.sinkhorn_divergence(x, normal(10, 3))


@pytest.mark.parametrize("name", SYSTEMS)
def test_squared_error_of_the_teachers_own_nu_is_zero(name):
    truth = teacher(name)
    net = truth.sample(200, generator())
    own = replace(net, n=truth.conditional_mean(net.loadings))
    assert distances.squared_error(truth.conditional_mean, own) == 0
    moved = replace(own, n=own.n + torch.tensor([0.3, -0.1]))
    assert distances.squared_error(truth.conditional_mean, moved) == pytest.approx((0.09 + 0.01) / 2, rel=1e-6)


def test_dissimilarity_of_a_true_sample_is_the_floor_and_of_a_shifted_one_is_not():
    truth = teacher("ring")
    net = truth.sample(400, generator(9))
    net = replace(net, n=truth.conditional_mean(net.loadings))
    same = distances.dissimilarity(truth, net, n_draws=4)
    assert same.squared_error == 0
    assert same.total == same.sinkhorn == pytest.approx(same.floor, abs=0.01)
    assert 0 < same.floor < 0.05
    moved = distances.dissimilarity(truth, replace(net, m=net.m + 1.0), n_draws=2)
    assert moved.sinkhorn == pytest.approx(1.0, abs=0.15)
    # nu = S m with S = 1.6 I: at loadings shifted by one, nu has moved by 1.6 in each dimension
    assert moved.squared_error == pytest.approx(1.6**2, rel=1e-6)
    assert distances.dissimilarity(truth, net, n_draws=4) == same


def test_valente_dissimilarity_sees_scale_free_shape_and_ignores_n_outside_the_column_space():
    net = teacher("quadstable").sample(300, generator(1))
    assert distances.valente_dissimilarity(net, net) == pytest.approx(0, abs=1e-12)
    assert distances.valente_dissimilarity(net, replace(net, n=3 * net.n)) == pytest.approx(0, abs=1e-12)
    outside = normal(300, 2, seed=5)
    outside = outside - net.m @ least_squares(net.m, outside)
    assert distances.valente_dissimilarity(net, replace(net, n=net.n + outside)) == pytest.approx(0, abs=1e-10)
    heavy = teacher("heavy_tailed").sample(200, generator(1))
    assert distances.valente_dissimilarity(net, heavy) > 0.05
    assert distances.valente_dissimilarity(net, net, max_entries=20_000) == pytest.approx(0, abs=1e-12)


def test_entries_and_tail_quantiles():
    net = random_network(50)
    entries = distances.connectivity_entries(net)
    assert torch.allclose(entries.reshape(50, 50), net.connectivity * 50)
    sampled = distances.connectivity_entries(net, max_entries=1000)
    assert sampled.shape == (1000,)
    assert bool(torch.isin(sampled.round(decimals=9), entries.round(decimals=9)).all())
    # the product of two standard normals has a Bessel density; the median of its magnitude is 0.3652
    big = Network(m=normal(3000, 1), n=normal(3000, 1, seed=1))
    assert float(distances.tail_quantiles(big, [0.5])[0]) == pytest.approx(0.3652, rel=0.05)
    light, heavy = (teacher(name).sample(2000, generator()) for name in ("ring", "heavy_tailed"))
    ratio = [float(q[-1] / q[0]) for q in (distances.tail_quantiles(light), distances.tail_quantiles(heavy))]
    assert ratio[1] > 5 * ratio[0]


def test_distance_of_n_is_the_error_of_nu_plus_the_spread_of_n_about_it():
    m = normal(100_000, 2, seed=1)
    nu = 2 * m
    n = nu + 0.5 * normal(100_000, 2, seed=2)
    error, explained = distances.distance_of_n(n, nu)
    assert error == pytest.approx(0.25, rel=0.02)
    assert explained == pytest.approx(4 / 4.25, abs=0.003)
    assert distances.distance_of_n(n, nu + 1)[0] == pytest.approx(1.25, rel=0.02)
    assert distances.distance_of_n(nu, nu) == (0, 1)
