"""Filtered inputs against the network that filters them, and against the closed form of a constant input."""

import pytest
import torch
from rate_networks import make_network, record, record_filtered

from connector.data.input_filter import filtered_inputs, with_inputs
from connector.errors import UserError
from connector.types import valid_mask


def test_a_network_that_filters_its_inputs_is_equation_1_with_filtered_inputs():
    net = make_network(n_inputs=2, has_bias=True)
    recording = record_filtered(net)
    v = filtered_inputs(recording.inputs.double(), net.alpha)
    z = net.simulate(torch.zeros(recording.n_trials, 2).double(), recording.n_steps, v)
    torch.testing.assert_close(net.rates(z, v).float(), recording.activity, rtol=0, atol=1e-6)
    at_once = net.rates(net.simulate(z[:, 0], recording.n_steps, recording.inputs.double()), recording.inputs.double())
    assert float((at_once - recording.activity).abs().max()) > 0.1


def test_a_constant_input_is_approached_exponentially_and_kept_under_both():
    u, alpha = torch.full((1, 60, 1), 3.0), 0.2
    v = filtered_inputs(u, alpha)
    torch.testing.assert_close(v[0, :, 0], 3 * (1 - (1 - alpha) ** torch.arange(60.0)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(filtered_inputs(u, alpha, "both"), torch.cat([u, v], -1))
    assert filtered_inputs(u, alpha, "instant") is u


def test_inputs_of_a_recording_are_replaced_once_and_nothing_past_a_trials_end_counts():
    recording = record(make_network(n_inputs=1), trials=12, ragged=True)
    dirty = recording.inputs.clone()
    dirty[~valid_mask(recording.lengths, recording.n_steps)] = torch.nan
    both = with_inputs(type(recording)(**vars(recording) | {"inputs": dirty}), "both")
    torch.testing.assert_close(both.inputs, with_inputs(recording, "both").inputs)
    assert (both.n_inputs, both.input_kind) == (2, "both")
    assert both.input_names == ("input 1", "input 1, filtered")
    assert with_inputs(both, "both") is both
    for refused in (lambda: with_inputs(both, "filtered"), lambda: filtered_inputs(dirty, 0.1, "later")):
        with pytest.raises(UserError):
            refused()
