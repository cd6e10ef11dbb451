"""Distances, field errors and attractors against closed-form answers and known teachers."""

import math
from dataclasses import replace

import pytest
import torch

from connector.analysis import measures
from connector.data.attractors import teacher
from connector.dynamics import Network
from connector.errors import UserError
from connector.numerics import least_squares

SYSTEMS = ("quadstable", "bistable", "limit_cycle", "ring")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def random_network(k=60, rank=2, n_inputs=0, seed=0, activation="tanh"):
    stacked = normal(k, 2 * rank + n_inputs + 1, seed=seed)
    return Network(
        m=stacked[:, :rank],
        n=stacked[:, rank : 2 * rank],
        b=stacked[:, 2 * rank : 2 * rank + n_inputs] if n_inputs else None,
        d=stacked[:, -1],
        activation=activation,
    )


@pytest.fixture(scope="module")
def references():
    return {name: measures.reference_attractors(teacher(name)) for name in SYSTEMS}


# --- distances ---


def test_sinkhorn_of_equal_clouds_is_zero():
    x = normal(300, 2)
    assert measures.sinkhorn_divergence(x, x[torch.randperm(300, generator=generator())]) < 1e-5


@pytest.mark.parametrize("shift", [(0.5, 0.0, 0.0), (1.0, -2.0, 0.5), (100.0, 0.0, 3.0)])
def test_sinkhorn_of_a_shifted_cloud_is_half_the_squared_shift(shift):
    x, shift = normal(300, 3), torch.tensor(shift, dtype=torch.float64)
    expected = float(shift.square().sum()) / 2
    assert measures.sinkhorn_divergence(x, x + shift) == pytest.approx(expected, rel=2e-3)


def test_sinkhorn_of_scaled_gaussians_follows_the_closed_form():
    # W2^2 / 2 between N(0, s^2 I) and N(0, I) in D dimensions is D (s - 1)^2 / 2.
    x = normal(1500, 1)
    assert measures.sinkhorn_divergence(2 * x, x) == pytest.approx(0.5 * float(x.square().mean()), rel=0.02)


@pytest.mark.parametrize("sizes", [(300, 300), (200, 350)])
def test_sinkhorn_is_that_of_geomloss(sizes):
    geomloss = pytest.importorskip("geomloss")
    x, y = normal(sizes[0], 3), 0.3 + 1.4 * normal(sizes[1], 3, seed=1)
    reference = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.05, backend="tensorized")(x, y)
    assert measures.sinkhorn_divergence(x, y) == pytest.approx(float(reference), rel=1e-4)


def test_sinkhorn_thins_large_clouds_and_refuses_other_dimensions():
    x = normal(3000, 2)
    thinned = measures.sinkhorn_divergence(x, x + 1, max_points=300, generator=generator(3))
    assert thinned == pytest.approx(1.0, abs=0.35)
    with pytest.raises(UserError, match="dimension"):
        measures.sinkhorn_divergence(x, normal(10, 3))


@pytest.mark.parametrize("name", SYSTEMS)
def test_squared_error_of_the_teachers_own_nu_is_zero(name):
    truth = teacher(name)
    net = truth.sample(200, generator())
    own = replace(net, n=truth.conditional_mean(net.loadings))
    assert measures.squared_error(truth.conditional_mean, own) == 0
    moved = replace(own, n=own.n + torch.tensor([0.3, -0.1]))
    assert measures.squared_error(truth.conditional_mean, moved) == pytest.approx((0.09 + 0.01) / 2, rel=1e-6)


def test_dissimilarity_of_a_true_sample_is_the_floor_and_of_a_shifted_one_is_not():
    truth = teacher("ring")
    net = truth.sample(400, generator(9))
    net = replace(net, n=truth.conditional_mean(net.loadings))
    same = measures.dissimilarity(truth, net, n_draws=4)
    assert same.squared_error == 0
    assert same.total == same.sinkhorn == pytest.approx(same.floor, abs=0.01)
    assert 0 < same.floor < 0.05
    moved = measures.dissimilarity(truth, replace(net, m=net.m + 1.0), n_draws=2)
    assert moved.sinkhorn == pytest.approx(1.0, abs=0.15)
    # nu = S m with S = 1.6 I: at loadings shifted by one, nu has moved by 1.6 in each dimension
    assert moved.squared_error == pytest.approx(1.6**2, rel=1e-6)
    assert measures.dissimilarity(truth, net, n_draws=4) == same


def test_valente_dissimilarity_sees_scale_free_shape_and_ignores_n_outside_the_column_space():
    net = teacher("quadstable").sample(300, generator(1))
    assert measures.valente_dissimilarity(net, net) == pytest.approx(0, abs=1e-12)
    assert measures.valente_dissimilarity(net, replace(net, n=3 * net.n)) == pytest.approx(0, abs=1e-12)
    outside = normal(300, 2, seed=5)
    outside = outside - net.m @ least_squares(net.m, outside)
    assert measures.valente_dissimilarity(net, replace(net, n=net.n + outside)) == pytest.approx(0, abs=1e-10)
    heavy = teacher("heavy_tailed").sample(200, generator(1))
    assert measures.valente_dissimilarity(net, heavy) > 0.05
    assert measures.valente_dissimilarity(net, net, max_entries=20_000) == pytest.approx(0, abs=1e-12)


def test_entries_and_tail_quantiles():
    net = random_network(50)
    entries = measures.connectivity_entries(net)
    assert torch.allclose(entries.reshape(50, 50), net.connectivity * 50)
    sampled = measures.connectivity_entries(net, max_entries=1000)
    assert sampled.shape == (1000,)
    assert bool(torch.isin(sampled.round(decimals=9), entries.round(decimals=9)).all())
    # the product of two standard normals has a Bessel density; the median of its magnitude is 0.3652
    big = Network(m=normal(3000, 1), n=normal(3000, 1, seed=1))
    assert float(measures.tail_quantiles(big, [0.5])[0]) == pytest.approx(0.3652, rel=0.05)
    light, heavy = (teacher(name).sample(2000, generator()) for name in ("ring", "heavy_tailed"))
    ratio = [float(q[-1] / q[0]) for q in (measures.tail_quantiles(light), measures.tail_quantiles(heavy))]
    assert ratio[1] > 5 * ratio[0]


# --- fields ---


@pytest.mark.parametrize(("n_inputs", "activation"), [(0, "tanh"), (2, "softplus")])
def test_field_error_is_zero_for_the_same_network_and_relative_otherwise(n_inputs, activation, monkeypatch):
    net = random_network(rank=3, n_inputs=n_inputs, activation=activation)
    z = normal(500, 3, seed=1)
    u = normal(500, n_inputs, seed=2) if n_inputs else None
    y = net.drive(z, u)
    assert measures.field_error(net, z, u, y) == 0
    assert torch.equal(measures.drift_r2(net, z, u, y), torch.ones(3, dtype=torch.float64))
    # an error of 10 % of the field's rms in a random direction
    field = y - z
    noise = normal(500, 3, seed=3)
    noise *= 0.1 * field.square().sum(1).mean().sqrt() / noise.square().sum(1).mean().sqrt()
    assert measures.field_error(net, z, u, y + noise) == pytest.approx(0.1, rel=0.05)
    # y = z: no field at all would be infinitely wrong; the zero drive of a field -z has error |y| / |y - z|
    silent = replace(net, n=torch.zeros_like(net.n))
    expected = math.sqrt(float(y.square().sum() / field.square().sum()))
    assert measures.field_error(silent, z, u, y) == pytest.approx(expected)
    monkeypatch.setattr(measures, "_CHUNK_ENTRIES", 60 * 7)  # many pieces, the same answer
    assert measures.field_error(net, z, u, y) == pytest.approx(0, abs=1e-14)


def test_drift_r2_of_a_constant_offset():
    net, z = random_network(), normal(400, 2, seed=1)
    y = net.drive(z)
    offset = (y - z).std(0, unbiased=False)
    assert torch.allclose(measures.drift_r2(net, z, None, y + offset), torch.zeros(2, dtype=torch.float64), atol=1e-9)


def test_contributions_add_up_to_the_drive():
    net, z, u = random_network(n_inputs=1), normal(40, 2), normal(40, 1)
    labels = torch.arange(60) % 3
    parts = measures.contributions(net, labels, z, u)
    assert parts.shape == (3, 40, 2)
    assert torch.allclose(parts.sum(0), net.drive(z, u))
    difference = measures.normalised_difference(parts[0], parts[1])
    assert difference.abs().max() <= 1
    assert torch.equal(measures.normalised_difference(parts[0], 0 * parts[0]), torch.ones(40, dtype=torch.float64))
    assert torch.equal(measures.normalised_difference(0 * z, 0 * z), torch.zeros(40, dtype=torch.float64))
    with pytest.raises(UserError, match="60"):
        measures.contributions(net, labels[:5], z, u)


def test_silencing_the_same_groups_of_the_same_network_changes_nothing_and_others_do():
    truth = teacher("quadstable")
    net, labels = truth.sample_with_components(400, generator())
    z = 2 * normal(200, 2, seed=4)
    same = measures.compare_silencing(net, labels, net, labels, z)
    assert same.field_error == [0.0] * 4
    assert same.stable_points == same.stable_points_reference
    swapped = measures.compare_silencing(net, labels, net, labels.flip(0), z)
    assert min(swapped.field_error) > 0.05


# --- attractors ---


def test_mean_field_attractors_of_the_teachers(references):
    assert references["quadstable"].points.shape == (4, 2)
    assert references["bistable"].points.shape == (2, 2)
    assert torch.allclose(references["bistable"].points.sum(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    for name in SYSTEMS:
        assert references[name].kind == teacher(name).attractor_kind
        assert (references[name].eigenvalues.real < 0).all()
    # S = g I + w rotation: at the radius where the growth of the Euler map stops, f(r) g = 1, the state turns at the
    # rate f(r) w = w / g: one turn takes 2 pi g / w time constants
    cycle = references["limit_cycle"]
    assert cycle.period == pytest.approx(2 * math.pi * 1.6 / 0.8, rel=0.05)
    # the ring's radius solves 1.6 E[x tanh(r x)] = r
    x = normal(400_000)
    radius = references["ring"].amplitude
    assert 1.6 * float((x * torch.tanh(radius * x)).mean()) == pytest.approx(radius, rel=0.01)


@pytest.mark.parametrize("name", SYSTEMS)
def test_large_networks_keep_their_own_attractors_only(name, references):
    net = teacher(name).sample(3000, generator(2))
    kept = {other: measures.attractors_kept(net, references[other]) for other in SYSTEMS}
    assert kept == {other: other == name for other in SYSTEMS}


def test_attractors_that_moved_or_changed_speed_are_not_kept(references):
    def turned(angle):
        c, s = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        truth = teacher("quadstable")
        return lambda z: truth.vector_field(z @ rotation) @ rotation.T

    assert measures.attractors_kept(turned(0.1), references["quadstable"])
    assert not measures.attractors_kept(turned(math.pi / 4), references["quadstable"])
    cycle = teacher("limit_cycle")
    assert not measures.attractors_kept(lambda z: 0.5 * cycle.vector_field(z), references["limit_cycle"])
    ring = teacher("ring")
    assert not measures.attractors_kept(lambda z: 2 * ring.vector_field(z / 2 * 3), references["ring"])


def test_known_fields_in_one_and_three_dimensions():
    double_well = measures.find_attractors(lambda z: z - z**3, rank=1)
    assert double_well.kind == "fixed_points"
    assert sorted(double_well.points.flatten().tolist()) == pytest.approx([-1, 1])
    assert double_well.eigenvalues.real.flatten().tolist() == pytest.approx([-2, -2], abs=1e-4)

    def cycle_in_three(z):
        radius2 = z[:, :2].square().sum(1, keepdim=True)
        planar = (1 - radius2) * z[:, :2] + 0.7 * torch.stack([-z[:, 1], z[:, 0]], dim=1)
        return torch.cat([planar, -z[:, 2:]], dim=1)

    found = measures.find_attractors(cycle_in_three, rank=3, alpha=0.02)
    assert found.kind == "limit_cycle"
    assert found.period == pytest.approx(2 * math.pi / 0.7, rel=0.02)
    assert found.amplitude == pytest.approx(1, rel=0.05)

    def eight_points(z):
        angle, radius = torch.atan2(z[:, 1], z[:, 0]), z.norm(dim=1)
        along = -torch.sin(8 * angle) / 4
        direction = z / radius[:, None]
        return direction * (1 - radius[:, None]) + along[:, None] * torch.stack([-direction[:, 1], direction[:, 0]], 1)

    found = measures.find_attractors(eight_points)
    assert found.kind == "fixed_points"
    assert len(found.points) == 8
    assert measures.find_attractors(lambda z: z).kind == "none"
    assert str(found) == "8 stable fixed points"


def test_states_that_are_at_rest_or_on_one_orbit_are_followed_no_further():
    evaluated = []

    def counted(field):
        def of(z):
            evaluated.append(len(z))
            return field(z)

        return of

    wells = measures.find_attractors(counted(lambda z: torch.stack([z[:, 0] - z[:, 0] ** 3, -z[:, 1]], dim=1)))
    assert len(wells.points) == 2
    assert sum(evaluated) < 42 * 200  # 20 tau of all starts; the settling of 30 tau more never begins
    evaluated.clear()

    def turning(z):
        outward = (1 - z.square().sum(1, keepdim=True)) * z
        return outward + 0.3 * torch.stack([-z[:, 1], z[:, 0]], dim=1)

    slow = measures.find_attractors(counted(turning))
    assert slow.kind == "limit_cycle"
    assert slow.period == pytest.approx(2 * math.pi / 0.3, rel=0.05)
    assert sum(evaluated) < 1.3 * 42 * 500  # not far from 50 tau of all, though a period alone takes 21


def test_a_constant_input_moves_the_fixed_points():
    net = Network(m=torch.zeros(1, 2), n=torch.zeros(1, 2), b=torch.ones(1, 1), activation="tanh")
    net = replace(net, n=torch.tensor([[2.0, 0.0]]))
    found = measures.find_attractors(net, u=torch.tensor([0.5]))
    assert found.points.flatten().tolist() == pytest.approx([2 * math.tanh(0.5), 0.0], abs=1e-6)


def test_a_reference_without_attractors_is_refused():
    with pytest.raises(UserError, match="settles"):
        measures.attractors_kept(lambda z: -z, measures.find_attractors(lambda z: z))


def test_distance_of_n_is_the_error_of_nu_plus_the_spread_of_n_about_it():
    m = normal(100_000, 2, seed=1)
    nu = 2 * m
    n = nu + 0.5 * normal(100_000, 2, seed=2)
    error, explained = measures.distance_of_n(n, nu)
    assert error == pytest.approx(0.25, rel=0.02)
    assert explained == pytest.approx(4 / 4.25, abs=0.003)
    assert measures.distance_of_n(n, nu + 1)[0] == pytest.approx(1.25, rel=0.02)
    assert measures.distance_of_n(nu, nu) == (0, 1)
