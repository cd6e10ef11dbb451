"""The trainable low-rank RNN takes the steps of equation (1), and gradients reach it."""

from __future__ import annotations

import pytest
import torch
from rate_networks import make_network

from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.module import LowRankRNN


def test_low_rank_rnn_takes_euler_steps_of_the_full_network():
    rnn = LowRankRNN(40, 3, n_inputs=2, has_bias=True, alpha=0.2, activation="softplus").double()
    g = torch.Generator().manual_seed(0)
    z, u = torch.randn(5, 3, generator=g).double(), torch.randn(5, 2, generator=g).double()
    rates = torch.nn.functional.softplus(z @ rnn.m.T + u @ rnn.b.T + rnn.d)
    expected = z + 0.2 * (-z + rates @ rnn.n / 40)
    torch.testing.assert_close(rnn.step(z, u), expected)
    torch.testing.assert_close(rnn.vector_field(z, u), (expected - z) / 0.2)
    path = rnn.simulate(z, 3, u[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(path[:, 2], rnn.step(expected, u))


def test_gradients_reach_every_parameter_and_match_finite_differences():
    rnn = LowRankRNN(6, 2, n_inputs=1, has_bias=True).double()
    z0, u = torch.randn(3, 2).double(), torch.randn(3, 5, 1).double()

    def loss(m, n, b, d):
        return Network(m, n, b, d, 0.1, "tanh").simulate(z0, 5, u).square().sum()

    assert torch.autograd.gradcheck(loss, (rnn.m, rnn.n, rnn.b, rnn.d))
    rnn.simulate(z0, 5, u).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in rnn.parameters())


def test_set_network_round_trip_and_refusals():
    net = make_network(n_inputs=1, has_bias=True)
    rnn = LowRankRNN(200, 2, 1, True).set_network(net)
    torch.testing.assert_close(rnn.network().double().connectivity, net.connectivity, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError):
        LowRankRNN(200, 2, 0, True).set_network(net)
    with pytest.raises(UserError):
        LowRankRNN(10, 2, activation="cosine")
    with pytest.raises(UserError):
        LowRankRNN(10, 0)
