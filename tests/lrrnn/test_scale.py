"""Gains and offsets of rates on a scale of their own: recovered, of no consequence for loadings, and in their errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rate_networks import make_network, record, unexplained

from connector.lrrnn.closed_form import fit_rates_closed_form
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.scales import fit_scale, on_own_scale
from connector.units import RateScale


def rescaled(recording, gain, offset, noise=0.0, seed=9):
    g = torch.Generator().manual_seed(seed)
    rates = gain * recording.activity + offset + noise * torch.randn(recording.activity.shape, generator=g)
    return replace(recording, activity=(rates * recording.mask[..., None]).float())


def drawn(k, seed=5):
    g = torch.Generator().manual_seed(seed)
    return (0.5 * torch.randn(k, generator=g)).exp().double(), 2 * torch.randn(k, generator=g).double()


@pytest.mark.parametrize(("activation", "has_bias"), [("tanh", False), ("tanh", True), ("sigmoid", True)])
def test_clean_rates_give_their_gains_and_offsets(activation, has_bias):
    network = make_network(activation, k=60, has_bias=has_bias)
    gain, offset = drawn(60)
    recording = rescaled(record(network, trials=40, steps=40), gain, offset)
    scale = fit_scale(recording, 2, has_bias, "both").scale()
    curved = network.m.norm(dim=1) > 0.5
    assert curved.sum() > 40
    assert (scale.gain / gain).log()[curved].abs().median() < 2e-3
    assert ((scale.offset - offset) / gain)[curved].abs().median() < 2e-3


def test_units_of_the_rates_are_of_no_consequence():
    recording = record(make_network("tanh", k=60), trials=40, steps=40, noise=0.1)
    gain, offset = drawn(60)
    once, twice = (on_own_scale(x, 2, False, "both", 1) for x in (recording, rescaled(recording, gain, offset)))
    told = once.errors[:, 0] < 0.1
    assert told.sum() > 40
    assert torch.allclose((once.gain * gain / twice.gain)[told], torch.ones(int(told.sum())).double(), rtol=0.02)
    assert torch.allclose(once.weight[told], twice.weight[told], rtol=0.1)


def test_loadings_are_off_by_as_much_as_their_errors_say():
    network, (gain, offset) = make_network("tanh", k=100), drawn(100)
    recording = rescaled(record(network, trials=40, steps=40), gain, offset, noise=0.2)
    scale = on_own_scale(recording, 2, False, "both", 1)
    own = recording.on_scale(scale)
    fit = fit_rates_closed_form(own, 2)
    moved = fit.moved(Gauge.fit(fit.latents.z, own.latents, own.lengths))
    assert unexplained(moved.loadings.m, network.m) < 0.03
    errors = (moved.loadings.m - network.m) / moved.loadings_covariance.diagonal(dim1=1, dim2=2).sqrt()
    alone = fit_rates_closed_form(replace(own, scale=replace(scale, kind="none")), 2)
    assert 0.5 < errors.square().mean().sqrt() < 1.6
    # Errors that know nothing of the gains are too small: where neurons are curved little, many times.
    wider = fit.loadings_covariance.diagonal(dim1=1, dim2=2).sum(1) / alone.loadings_covariance.diagonal(
        dim1=1, dim2=2
    ).sum(1)
    assert wider.median() > 1.5
    weak = network.m.norm(dim=1) < 0.7
    assert wider[weak].median() > wider[~weak].median()


def test_of_relu_offsets_are_fitted_and_gains_are_units():
    network = make_network("relu", k=60, has_bias=True)
    _, offset = drawn(60)
    recording = rescaled(record(network, trials=40, steps=40), 3.0, offset)
    scale = fit_scale(recording, 2, True, "both").scale()
    assert not scale.gains
    assert scale.gain.unique().numel() == 1
    silent = (recording.activity - offset).float()[recording.mask].amin(0) < 1e-6
    assert silent.sum() > 40
    assert (scale.offset - offset)[silent].abs().median() < 1e-2


def test_noisy_neurons_weigh_less():
    recording = record(make_network("tanh", k=60), trials=40, steps=40)
    g = torch.Generator().manual_seed(3)
    sd = torch.where(torch.arange(60) % 2 == 0, 0.1, 0.25)
    noisy = replace(recording, activity=recording.activity + sd * torch.randn(recording.activity.shape, generator=g))
    scale = fit_scale(noisy, 2, False, "offset").scale()
    quiet = torch.arange(60) % 2 == 0
    assert 5.5 < scale.weight[quiet].median() / scale.weight[~quiet].median() < 7
    mask = recording.mask
    weighted, alike = (fit_rates_closed_form(x, 2) for x in (noisy.on_scale(scale), noisy))
    off = []
    for fit in (weighted, alike):
        gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
        off.append(unexplained(gauge.latents(fit.latents.z)[mask], recording.latents[mask]))
    assert off[0] < 0.5 * off[1]


def test_a_scale_takes_rates_there_and_back():
    gain, offset = drawn(5)
    scale = RateScale("both", gain, offset, torch.ones(5).double(), 1.0, torch.zeros(5, 2).double())
    rates = torch.randn(3, 4, 5)
    assert torch.allclose(scale.recorded(scale.own(rates)), rates, atol=1e-5)
    some = scale.neurons(torch.tensor([1, 3]))
    assert torch.equal(some.gain, gain[[1, 3]])
    assert some.errors.shape == (2, 2)
