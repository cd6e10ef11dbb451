"""Errors of vector fields, and what groups of neurons add to them, against known answers."""

import math
from dataclasses import replace

import pytest
import torch
from draws import normal, random_network

from connector.analysis import fields
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.types import Latents


@pytest.mark.parametrize(("n_inputs", "activation"), [(0, "tanh"), (2, "softplus")])
def test_field_error_is_zero_for_the_same_network_and_relative_otherwise(n_inputs, activation, monkeypatch):
    net = random_network(rank=3, n_inputs=n_inputs, activation=activation)
    z = normal(500, 3, seed=1)
    u = normal(500, n_inputs, seed=2) if n_inputs else None
    y = net.drive(z, u)
    assert fields.field_error(net, z, u, y) == 0
    assert torch.equal(fields.drift_r2(net, z, u, y, (y - z).mean(0)), torch.ones(3, dtype=torch.float64))
    # an error of 10 % of the field's rms in a random direction
    field = y - z
    noise = normal(500, 3, seed=3)
    noise *= 0.1 * field.square().sum(1).mean().sqrt() / noise.square().sum(1).mean().sqrt()
    assert fields.field_error(net, z, u, y + noise) == pytest.approx(0.1, rel=0.05)
    # y = z: no field at all would be infinitely wrong; the zero drive of a field -z has error |y| / |y - z|
    silent = replace(net, n=torch.zeros_like(net.n))
    expected = math.sqrt(float(y.square().sum() / field.square().sum()))
    assert fields.field_error(silent, z, u, y) == pytest.approx(expected)
    monkeypatch.setattr(fields, "CHUNK", 60 * 7)  # many pieces, the same answer
    assert fields.field_error(net, z, u, y) == pytest.approx(0, abs=1e-14)


def test_drift_r2_of_a_constant_offset():
    net, z = random_network(), normal(400, 2, seed=1)
    y = net.drive(z)
    offset, mean = (y - z).std(0, unbiased=False), (y - z).mean(0)
    zero = torch.zeros(2, dtype=torch.float64)
    assert torch.allclose(fields.drift_r2(net, z, None, y + offset, mean + offset), zero, atol=1e-9)
    # A field that is the training states' mean scores 0, wherever the test states lie.
    still = replace(net, n=torch.zeros_like(net.n))
    for shift in (0.0, 3.0):
        assert torch.allclose(fields.drift_r2(still, z - z, None, y - z + shift, -zero), zero, atol=1e-9)


def test_contributions_add_up_to_the_drive():
    net, z, u = random_network(n_inputs=1), normal(40, 2), normal(40, 1)
    labels = torch.arange(60) % 3
    parts = fields.contributions(net, labels, z, u)
    assert parts.shape == (3, 40, 2)
    assert torch.allclose(parts.sum(0), net.drive(z, u))
    difference = fields.normalised_difference(parts[0], parts[1])
    assert difference.abs().max() <= 1
    assert torch.equal(fields.normalised_difference(parts[0], 0 * parts[0]), torch.ones(40, dtype=torch.float64))
    assert torch.equal(fields.normalised_difference(0 * z, 0 * z), torch.zeros(40, dtype=torch.float64))
    with pytest.raises(UserError, match="60"):
        fields.contributions(net, labels[:5], z, u)


def _trials(n_inputs=0, steps=40, noise=0.0, alpha=0.1):
    """A network that turns and holds its states, and latents along 60 trials."""
    net = replace(random_network(200, n_inputs=n_inputs), alpha=alpha)
    net = replace(net, n=4 * net.m @ torch.tensor([[1.0, 0.4], [-0.4, 1.0]]).double())
    u = normal(60, steps, n_inputs, seed=7) if n_inputs else None
    z = net.simulate(2 * normal(60, 2, seed=5), steps, u)
    return net, Latents(z + noise * normal(*z.shape, seed=6), torch.full((60,), steps), alpha, u)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_drive_gain_is_the_factor_of_n_with_noise_as_without(noise):
    net, latents = _trials(noise=noise)
    for factor in (1.0, 2.6, 0.0):
        gain, sd = fields.drive_gain(replace(net, n=factor * net.n), latents)
        assert gain == pytest.approx(factor, abs=0.05 * factor if noise else 1e-9)
        assert sd < 0.02 * max(factor, 1e-9)


def test_drive_gain_says_what_draws_of_n_leave_open():
    net, latents = _trials(noise=0.1)
    gain, error = fields.drive_gain(net, latents)
    assert fields.drive_gain(net, latents, [net.n, net.n]) == (gain, pytest.approx(error))
    drawn = fields.drive_gain(net, latents, [0.5 * net.n, 1.5 * net.n])
    assert drawn == (gain, pytest.approx((error**2 + (0.5 * gain) ** 2) ** 0.5))


def test_drive_gain_says_what_noise_leaves_open():
    gains = [fields.drive_gain(net, latents) for net, latents in (_trials(noise=0.5), _trials(noise=0.1))]
    assert gains[0][1] > 3 * gains[1][1]


def test_drive_gain_of_one_trial_does_not_know_its_error():
    net, latents = _trials(noise=0.1)
    one = latents.trials(torch.tensor([0]))
    for drawn in ((), (net.n, 1.1 * net.n)):
        gain, sd = fields.drive_gain(net, one, drawn)
        assert gain == pytest.approx(1, abs=0.2)
        assert math.isnan(sd)


def test_drive_gain_holds_for_short_trials_and_inputs_that_change_with_each_sample():
    net, short = _trials(steps=2)
    assert fields.drive_gain(replace(net, n=1.5 * net.n), short)[0] == pytest.approx(1.5)
    driven, latents = _trials(n_inputs=1, alpha=1.0)
    assert fields.drive_gain(replace(driven, n=0.5 * driven.n), latents)[0] == pytest.approx(0.5)


def test_drive_gain_is_the_same_in_any_linear_gauge():
    net, latents = _trials()
    other = replace(net, n=net.n + 2 * normal(200, 2, seed=8))
    gauge = Gauge(torch.tensor([[300.0, 20.0], [0.0, 0.01]]).double(), torch.zeros(2).double())
    expected = fields.drive_gain(other, latents)[0]
    assert abs(expected - 1) > 0.01
    moved = replace(latents, z=gauge.latents(latents.z))
    assert fields.drive_gain(gauge.network(other), moved)[0] == pytest.approx(expected, rel=1e-6)
