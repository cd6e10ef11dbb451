"""Latents of single samples against the states that gave the rates."""

from __future__ import annotations

import pytest
import torch
from rate_networks import make_network, record

from connector.lrrnn.latents import least_squares_latents
from connector.lrrnn.observation import Observation


def test_sample_wise_latents_are_exact_on_clean_rates_and_efficient_on_noisy_ones():
    net = make_network(n_inputs=1, has_bias=True)
    clean = record(net, trials=20)
    z, _, error = least_squares_latents(clean.activity, clean.mask, net.loadings, Observation.of("tanh"), clean.inputs)
    assert float((z - clean.latents).abs().max()) < 1e-5
    assert error < 1e-12
    noisy = record(net, trials=60, noise=0.2)
    z, information, error = least_squares_latents(
        noisy.activity, noisy.mask, net.loadings, Observation.of("tanh"), noisy.inputs
    )
    scaled = torch.einsum("ntij,nti,ntj->nt", information, z - noisy.latents, z - noisy.latents) / 0.04
    assert float(scaled.mean()) == pytest.approx(2.0, abs=0.15)  # chi square with R degrees of freedom
    assert error == pytest.approx(0.04 * (1 - 2 / 200), rel=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_latents_sought_from_near_by_are_those_sought_from_no_start(noise):
    net = make_network(n_inputs=1, has_bias=True)
    seen = record(net, trials=20, noise=noise)
    given = (seen.activity, seen.mask, net.loadings, Observation.of("tanh"), seen.inputs)
    z, information, error = least_squares_latents(*given)
    again, same, rest = least_squares_latents(*given, start=z + 1e-3)
    error_bars = noise * torch.linalg.inv(information[seen.mask]).diagonal(dim1=1, dim2=2).amax().sqrt()
    assert float((again - z).abs().max()) < max(1e-5, 0.1 * float(error_bars))
    assert float((same - information).abs().max()) < 0.01 * float(information.max())
    assert rest == pytest.approx(error, rel=1e-3, abs=1e-12)
