"""Rates whose states carry noise of their own: the noise is told from errors of reading, and the drive is found beside both."""

from dataclasses import replace

import pytest
import torch
from rate_networks import make_network

from connector.connectivity.nu.field import sampled_basis
from connector.data.folds import Fold
from connector.dynamics import simulate
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.noisy_states import process_noise, sample_field
from connector.types import Latents

READING = 0.1


def fitted(own=0.1, stated=READING, trials=80, steps=50, has_bias=False):
    """The true network as a fit of itself, with readings of its states, and the states."""
    net, g = make_network(k=80, has_bias=has_bias), torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    z = simulate(lambda z, _: net.step(z) + own * noise(*z.shape), 2 * noise(trials, 2), steps)
    readings = z + READING * noise(*z.shape)
    covariance = (stated**2 * torch.eye(2, dtype=torch.float64)).expand(trials, steps, 2, 2)
    latents = Latents(readings, torch.full((trials,), steps), net.alpha)
    parts = [torch.arange(i, trials, 4) for i in range(4)]
    fold = Fold(torch.cat(parts[:2]).sort().values, parts[2], parts[3])
    return net, z, FittedDynamics(latents, net.loadings, fold, "tanh", readings=(readings, covariance), n=net.n)


@pytest.mark.parametrize("stated", [READING, 0.5 * READING])
def test_noise_of_the_states_is_told_from_errors_of_reading(stated):
    _, _, fit = fitted(0.1, stated)
    found = process_noise(fit)
    assert found.dispersion == pytest.approx((READING / stated) ** 2, rel=0.2)
    torch.testing.assert_close(found.q, 0.01 * torch.eye(2, dtype=torch.float64), rtol=0, atol=2e-3)
    assert process_noise(fitted(0.0, stated)[2]) is None
    assert process_noise(replace(fit, readings=None)) is None


@pytest.mark.parametrize("stated", [READING, 0.5 * READING])
def test_drive_and_noise_are_found_whatever_the_readings_are_said_to_be_worth(stated):
    net, z, fit = fitted(0.1, stated, has_bias=True)
    found = sample_field(fit, process_noise(fit), sampled_basis("tanh", net.alpha, 0), sweeps=40)
    states = z[:, ::10].reshape(-1, 2)
    truth, drives = net.drive(states) - states, found.field.drives(states) - states
    error = float((drives.mean(0) - truth).norm() / truth.norm())
    expected = float(((drives - drives.mean(0)).square().sum((1, 2)).mean() / truth.square().sum()).sqrt())
    assert error < 0.15
    assert 0.4 < error / expected < 2
    assert found.field.noise.diagonal().sqrt().mean() == pytest.approx(0.1, rel=0.1)
    train = fit.fold.train
    assert (found.latents.z[train] - z[train]).std() < 0.8 * READING
    held = torch.ones(len(z), dtype=torch.bool).index_fill(0, train, False)
    assert torch.equal(found.latents.z[held], fit.latents.z[held])


def test_one_seed_gives_one_result_and_trials_may_come_in_any_order():
    net, _, fit = fitted(trials=24)
    q, basis = process_noise(fit), sampled_basis("tanh", net.alpha, 0)
    one, again = (sample_field(fit, q, basis, sweeps=6, seed=3).field for _ in range(2))
    assert torch.equal(one.draws, again.draws)
