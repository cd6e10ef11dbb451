"""Rates behind a slow indicator: found again, exactly without noise, and with noise far better than by the inverse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rate_networks import make_network, record

from connector.data.indicator import with_indicator, without_indicator
from connector.data.modules import FileDataModule
from connector.errors import UserError

DECAY_S, BIN_S = 0.5, 1 / 30
K = math.exp(-BIN_S / DECAY_S)


def shown(noise=0.0, ragged=False, **options):
    """Rates, and the recording of what an indicator shows of them."""
    rates = record(make_network(k=60, **options), trials=30, steps=40, ragged=ragged)
    g = torch.Generator().manual_seed(2)
    trace = with_indicator(rates.activity.double(), K)
    trace = trace + noise * torch.randn(trace.shape, generator=g)
    return rates, replace(rates, activity=(trace * rates.mask[..., None]).float(), bin_s=BIN_S)


def test_a_constant_is_shown_as_it_is_and_a_step_decays_in_its_time():
    assert torch.equal(with_indicator(torch.ones(2, 5, 3), K), torch.ones(2, 5, 3))
    step = torch.zeros(1, 16, 1)
    step[0, 1:] = 1
    assert float(with_indicator(step, K)[0, 15, 0]) == pytest.approx(1 - math.exp(-15 * BIN_S / DECAY_S), rel=1e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_without_noise_rates_are_found_again(ragged):
    rates, trace = shown(ragged=ragged)
    found = without_indicator(trace, DECAY_S, torch.arange(20))
    assert torch.equal(found.lengths, rates.lengths - 1)
    assert torch.equal(found.latents, rates.latents[:, 1:])
    error = (found.activity - rates.activity[:, 1:])[found.mask]
    assert error.square().mean().sqrt() < 2e-3
    assert not found.activity[~found.mask].any()


def test_noise_is_not_made_larger():
    rates, trace = shown(noise=0.05)
    found = without_indicator(trace, DECAY_S, torch.arange(20))
    inverse = (trace.activity[:, 1:] - K * trace.activity[:, :-1]) / (1 - K)
    errors = [float((x - rates.activity[:, 1:]).square().mean().sqrt()) for x in (found.activity, inverse)]
    assert errors[1] > 0.9  # .05 * 1.4 / (1 - k)
    assert errors[0] < 0.05
    others = without_indicator(trace.trials(torch.arange(20)), DECAY_S, torch.arange(20))
    assert torch.allclose(found.activity[:20], others.activity, atol=1e-5)  # nothing of them hangs on held-out trials


def test_inputs_go_with_their_samples():
    rates, trace = shown(n_inputs=1)
    found = without_indicator(trace, DECAY_S, torch.arange(20))
    assert torch.equal(found.inputs, rates.inputs[:, 1:])


def test_traces_without_a_unit_of_time_or_too_short_are_refused():
    _, trace = shown()
    with pytest.raises(UserError, match=r"data\.bin_s"):
        without_indicator(replace(trace, bin_s=None), DECAY_S, torch.arange(20))
    short = replace(trace, activity=trace.activity[:, :3], latents=None, lengths=trace.lengths.clamp_max(3))
    with pytest.raises(UserError, match="4 to 2000 samples"):
        without_indicator(short, DECAY_S, torch.arange(20))
    with pytest.raises(UserError, match="got 500 s"):
        without_indicator(trace, 500.0, torch.arange(20))


def test_a_file_is_read_behind_an_indicator(tmp_path):
    rates, trace = shown(noise=0.02)
    np.savez(tmp_path / "a.npz", rates=trace.activity.numpy())
    module = FileDataModule(str(tmp_path / "a.npz"), reading={"bin_s": BIN_S}, indicator_decay_s=DECAY_S)
    module.setup()
    found = module.recording
    assert found.shown.decay == pytest.approx(K)
    assert found.n_steps == rates.n_steps - 1
    assert (found.activity - rates.activity[:, 1:]).square().mean().sqrt() < 0.05
    assert not found.out_of_range
    assert any("decays in 0.5 s" in note for note in found.notes)
