"""Whether rates have a scale of their own: told from noise, and of which kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rate_networks import make_network, record

from connector.analysis.scale_choice import choose_scale
from connector.data.folds import fold


def scaled(recording, sd_gain, sd_offset, seed=5):
    g, k = torch.Generator().manual_seed(seed), recording.n_neurons
    gain, offset = (sd_gain * torch.randn(k, generator=g)).exp(), sd_offset * torch.randn(k, generator=g)
    return replace(recording, activity=(gain * recording.activity + offset) * recording.mask[..., None])


@pytest.mark.parametrize(
    ("sd_gain", "sd_offset", "noise", "kind"),
    [
        (0.0, 0.0, 0.3, "none"),
        (0.0, 0.0, 0.0, "none"),
        pytest.param(0.0, 1.0, 0.1, "offset", marks=pytest.mark.slow),
        pytest.param(0.5, 0.0, 0.1, "gain", marks=pytest.mark.slow),
        (0.5, 1.0, 0.1, "both"),
    ],
)
def test_the_simplest_scale_that_held_out_rates_ask_for(sd_gain, sd_offset, noise, kind):
    recording = scaled(record(make_network(k=50), trials=40, steps=30, noise=noise), sd_gain, sd_offset)
    found = choose_scale(recording, fold(40), 2, False)
    assert found.kind == kind
    assert found.better is None


@pytest.mark.slow
def test_another_activation_is_told_of():
    recording = scaled(record(make_network("relu", k=50, has_bias=True), trials=40, steps=30, noise=0.05), 0.3, 1.0)
    found = choose_scale(replace(recording, activation="tanh", out_of_range="values to 9"), fold(40), 2, True)
    assert found.kind != "none"
    assert found.better == "relu"
