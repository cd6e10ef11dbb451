"""How inputs enter and which start is kept, against networks of which both are known."""

import pytest
import torch
from rate_networks import make_network, record, record_filtered

from connector.data.folds import fold
from connector.lrrnn.rate_model import RateModel
from connector.lrrnn.starts import best_inputs, clearly_better, power_about_means, predictable_errors
from connector.types import Recording


def arguments(recording, rank=2, has_bias=None):
    sizes = {"n_neurons": recording.n_neurons, "rank": rank, "n_inputs": recording.n_inputs, "has_bias": has_bias}
    return sizes | {"alpha": recording.alpha, "activation": recording.activation}


@pytest.mark.parametrize(
    ("kind", "noise"), [("instant", 0), ("filtered", 0), ("both", 0), ("instant", 0.2), ("filtered", 0.2)]
)
def test_validation_trials_tell_how_inputs_enter(kind, noise):
    net = make_network(k=100, n_inputs=1, has_bias=True)
    recording = (
        record(net, noise=noise)
        if kind == "instant"
        else record_filtered(net, noise=noise, after_update=kind == "both")
    )
    split = fold(recording.n_trials)
    found = best_inputs(recording, split, arguments(recording))
    assert list(found)[-1] == kind
    power = power_about_means(recording, split)
    assert found[kind].loss - noise**2 < (0.001 if noise == 0 else 0.1) * power


def test_a_network_without_bias_from_rest_is_judged_without_one():
    net = make_network(k=40, n_inputs=1)
    recording = record_filtered(net, trials=40, steps=30)
    found = best_inputs(recording, fold(40), arguments(recording))
    assert list(found)[-1] == "filtered"
    assert found["filtered"].loss < 1e-6


@pytest.mark.parametrize("activation", ["relu", "softplus", "sigmoid"])
def test_inputs_that_act_at_once_stay_so_whatever_the_activation(activation):
    recording = record(make_network(activation, k=100, n_inputs=2), noise=0.05)
    assert list(best_inputs(recording, fold(recording.n_trials), arguments(recording)))[-1] == "instant"


def test_a_better_start_is_one_beyond_chance_and_beyond_rounding():
    g = torch.Generator().manual_seed(0)
    errors = 1 + 0.3 * torch.rand(50, generator=g).double()
    noise = 0.2 * torch.randn(50, generator=g).double()
    assert clearly_better(errors - 0.1, errors, 1.0)
    assert not clearly_better(errors - 0.005, errors, 1.0)  # half a percent
    assert not clearly_better(errors + noise - noise.mean() - 0.05, errors, 1.0)  # within the scatter over trials
    assert not clearly_better(1e-9 * errors, 2e-9 * errors, 1.0)
    assert clearly_better(errors, errors.clone().index_fill_(0, torch.tensor([3]), torch.inf), 1.0)


@pytest.mark.parametrize(("what", "low", "high"), [("noise", -0.05, 0.1), ("product", 0.9, 1.0)])
def test_errors_of_a_step_are_predictable_where_dynamics_are_missed_and_not_for_noise(what, low, high):
    """The true network, whose states carry noise of their own, or a part of the input that their sign gates."""
    net, g = make_network(k=40, n_inputs=1), torch.Generator().manual_seed(3)
    u = torch.randn(80, 30, 1, generator=g, dtype=torch.float64)
    z = [torch.randn(80, 2, generator=g, dtype=torch.float64)]
    for t in range(29):
        noise, product = torch.randn(80, 2, generator=g, dtype=torch.float64), z[-1] * u[:, t]
        z.append(net.step(z[-1], u[:, t]) + 0.2 * (noise if what == "noise" else product))
    rates = net.rates(torch.stack(z, 1), u).float()
    recording = Recording(rates, "rates", torch.full((80,), 30), net.alpha, "tanh", inputs=u.float())
    model = RateModel(40, 2, 1)
    model.rnn.set_network(net)
    assert low < predictable_errors(model, recording, fold(80)) < high
