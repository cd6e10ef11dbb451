"""Attractors against closed-form answers and known teachers."""

import math
from dataclasses import replace

import pytest
import torch
from draws import generator, normal

from connector.analysis import attractors
from connector.data.attractors import teacher
from connector.dynamics import Network
from connector.errors import UserError

SYSTEMS = ("quadstable", "bistable", "limit_cycle", "ring")


@pytest.fixture(scope="module")
def references():
    return {name: attractors.reference_attractors(teacher(name)) for name in SYSTEMS}


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus", "sigmoid"])
@pytest.mark.parametrize("columns", [(0, False), (2, True)])
def test_the_quick_field_of_a_network_is_its_vector_field(activation, columns):
    n_inputs, bias = columns
    b = normal(50, n_inputs, seed=2) if n_inputs else None
    network = Network(
        normal(50, 3), normal(50, 3, seed=1), b, normal(50, seed=3) if bias else None, activation=activation
    )
    z, u = normal(20, 3, seed=4), normal(2, seed=5)
    expected = network.double().vector_field(z.double(), u.double().expand(20, -1) if n_inputs else None)
    for given, wanted in ((u, expected), (None, network.double().vector_field(z.double()))):
        field = attractors.network_field(network, given)
        torch.testing.assert_close(field(z.double()), wanted, rtol=1e-12, atol=1e-13)
    single = attractors.network_field(network, u, torch.float32)(z.double())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-5)


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
    kept = {other: attractors.attractors_kept(net, references[other]) for other in SYSTEMS}
    assert kept == {other: other == name for other in SYSTEMS}


def test_attractors_that_moved_or_changed_speed_are_not_kept(references):
    def turned(angle):
        c, s = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        truth = teacher("quadstable")
        return lambda z: truth.vector_field(z @ rotation) @ rotation.T

    assert attractors.attractors_kept(turned(0.1), references["quadstable"])
    assert not attractors.attractors_kept(turned(math.pi / 4), references["quadstable"])
    cycle = teacher("limit_cycle")
    assert not attractors.attractors_kept(lambda z: 0.5 * cycle.vector_field(z), references["limit_cycle"])
    ring = teacher("ring")
    assert not attractors.attractors_kept(lambda z: 2 * ring.vector_field(z / 2 * 3), references["ring"])


def test_known_fields_in_one_and_three_dimensions():
    double_well = attractors.find_attractors(lambda z: z - z**3, rank=1)
    assert double_well.kind == "fixed_points"
    assert sorted(double_well.points.flatten().tolist()) == pytest.approx([-1, 1])
    assert double_well.eigenvalues.real.flatten().tolist() == pytest.approx([-2, -2], abs=1e-4)

    def cycle_in_three(z):
        radius2 = z[:, :2].square().sum(1, keepdim=True)
        planar = (1 - radius2) * z[:, :2] + 0.7 * torch.stack([-z[:, 1], z[:, 0]], dim=1)
        return torch.cat([planar, -z[:, 2:]], dim=1)

    found = attractors.find_attractors(cycle_in_three, rank=3, alpha=0.02)
    assert found.kind == "limit_cycle"
    assert found.period == pytest.approx(2 * math.pi / 0.7, rel=0.02)
    assert found.amplitude == pytest.approx(1, rel=0.05)

    def eight_points(z):
        angle, radius = torch.atan2(z[:, 1], z[:, 0]), z.norm(dim=1)
        along = -torch.sin(8 * angle) / 4
        direction = z / radius[:, None]
        return direction * (1 - radius[:, None]) + along[:, None] * torch.stack([-direction[:, 1], direction[:, 0]], 1)

    found = attractors.find_attractors(eight_points)
    assert found.kind == "fixed_points"
    assert len(found.points) == 8
    assert attractors.find_attractors(lambda z: z).kind == "none"
    assert str(found) == "8 stable fixed points"


def test_states_that_are_at_rest_or_on_one_orbit_are_followed_no_further():
    evaluated = []

    def counted(field):
        def of(z):
            evaluated.append(len(z))
            return field(z)

        return of

    wells = attractors.find_attractors(counted(lambda z: torch.stack([z[:, 0] - z[:, 0] ** 3, -z[:, 1]], dim=1)))
    assert len(wells.points) == 2
    assert sum(evaluated) < 42 * 200  # 20 tau of all starts; the settling of 30 tau more never begins
    evaluated.clear()

    def turning(z):
        outward = (1 - z.square().sum(1, keepdim=True)) * z
        return outward + 0.3 * torch.stack([-z[:, 1], z[:, 0]], dim=1)

    slow = attractors.find_attractors(counted(turning))
    assert slow.kind == "limit_cycle"
    assert slow.period == pytest.approx(2 * math.pi / 0.3, rel=0.05)
    assert sum(evaluated) < 1.3 * 42 * 500  # not far from 50 tau of all, though a period alone takes 21


def test_a_constant_input_moves_the_fixed_points():
    net = Network(m=torch.zeros(1, 2), n=torch.zeros(1, 2), b=torch.ones(1, 1), activation="tanh")
    net = replace(net, n=torch.tensor([[2.0, 0.0]]))
    found = attractors.find_attractors(net, u=torch.tensor([0.5]))
    assert found.points.flatten().tolist() == pytest.approx([2 * math.tanh(0.5), 0.0], abs=1e-6)


def test_a_reference_without_attractors_is_refused():
    with pytest.raises(UserError, match="settles"):
        attractors.attractors_kept(lambda z: -z, attractors.find_attractors(lambda z: z))
