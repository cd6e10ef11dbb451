"""A model of spikes with its paths integrated out: likelihoods against integration on a grid, and what scores are made of."""

import math

import pytest
import torch
from torch.testing import assert_close

from connector.lrrnn.spikes.state_space import SpikeStateSpace
from connector.types import TrialBatch

ALPHA = 0.2


def model_of(neurons=12, from_states=False, inputs=0, noise=0.3, start=0.9):
    """Of rank 1; noise: sd of a step; start: sd of first states."""
    g = torch.Generator().manual_seed(3)
    model = SpikeStateSpace(neurons, 1, inputs, ALPHA, 0.6, 20, "tanh", "encoder" if from_states else "prior")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
        model.rnn.n.mul_(3.0)
        model.bias.mul_(0.5)
        model.noise_factor.fill_(noise / math.sqrt(ALPHA))
        model.start_factor.fill_(start)
        model.start_mean.fill_(0.4)
    return model


def batch_of(model, trials=3, steps=2, inputs=0):
    g = torch.Generator().manual_seed(4)
    u = torch.randn(trials, steps, inputs, generator=g) if inputs else None
    mask = torch.ones(trials, steps, dtype=torch.bool)
    offset = 0.3 * torch.randn(trials, steps, len(model.readout), generator=g)
    counts = torch.poisson(torch.full_like(offset, 0.7), generator=g)
    return TrialBatch(counts, mask, torch.arange(trials), u, offset)


def on_grid(model, batch, seen=slice(None)):
    """log p(spikes) of trials of two bins by integration over z[0] and z[1], and the expected counts of all neurons then."""
    z = torch.linspace(-6, 6, 801, dtype=torch.float64)
    given, step = model._given(), float(z[1] - z[0])
    p = given.p

    def rates(t, trial):
        u = () if batch.inputs is None else (batch.inputs[trial, t].double().expand(len(z), -1),)
        x = torch.cat([z[:, None], *u], 1) @ p.loadings[:, :-1].T + p.loadings[:, -1] + batch.baseline[trial, t]
        return math.exp(p.log_scale) * torch.nn.functional.softplus(x)

    likelihoods, expected = [], torch.empty_like(batch.activity).double()
    for trial in range(len(batch.mask)):
        r = [rates(t, trial) for t in (0, 1)]
        nats = [(batch.activity[trial, t] * x.log() - x)[:, seen].sum(1) for t, x in enumerate(r)]
        u = None if batch.inputs is None else batch.inputs[trial, :1].double().expand(len(z), -1)
        mean = (1 - ALPHA) * z + ALPHA * (given.field(z[:, None], u) @ p.c)[:, 0]
        first = torch.distributions.Normal(p.start_mean, p.start_covariance[0].sqrt()).log_prob(z)
        then = torch.distributions.Normal(mean[:, None], p.q[0].sqrt()).log_prob(z[None])
        joint = (first + nats[0])[:, None] + then + nats[1][None]
        likelihoods.append(torch.logsumexp(joint.flatten(), 0) + 2 * math.log(step))
        weight = (joint - joint.max()).exp()
        for t, x in enumerate(r):
            own = weight.sum(1 - t)
            expected[trial, t] = (own[:, None] * x).sum(0) / own.sum()
    return torch.stack(likelihoods), expected


@pytest.mark.parametrize("inputs", [0, 2])
def test_likelihood_is_that_of_integration_over_paths(inputs):
    model = model_of(inputs=inputs)
    batch = batch_of(model, inputs=inputs)
    truth, _ = on_grid(model, batch)
    found = model.marginal_log_likelihood(batch, 400, torch.Generator().manual_seed(1))
    assert_close(found.double(), truth, rtol=0, atol=0.02)


def test_counts_of_hidden_neurons_are_expected_given_the_others():
    model = model_of()
    batch = batch_of(model)
    seen = torch.arange(12) < 8
    _, truth = on_grid(model, batch, seen)
    found = model.posterior_counts(batch, seen, 3000, torch.Generator().manual_seed(1))
    assert_close(found.double(), truth, rtol=0.05, atol=0.01)
    other = batch._replace(activity=torch.where(seen, batch.activity, 7 * batch.activity + 1))
    again = model.posterior_counts(other, seen, 3, torch.Generator().manual_seed(1))
    assert_close(again, model.posterior_counts(batch, seen, 3, torch.Generator().manual_seed(1)))


def test_rollout_starts_from_the_mean_or_from_what_counts_say_of_the_first_state():
    batch = batch_of(model_of(), steps=6)
    plain, from_states = model_of(), model_of(from_states=True)
    z = plain.infer(batch, rollout=True)
    with torch.no_grad():
        assert_close(z, plain.rnn.simulate(plain.start_mean.expand(3, -1), 6), rtol=1e-4, atol=1e-5)
    states = from_states.infer(batch)
    assert_close(from_states.infer(batch, rollout=True)[:, 0], states[:, 0])
    assert not torch.allclose(states[:, 0], z[:, 0])
    seen = torch.arange(12) < 8
    for model in (plain, from_states):
        rates = model.rollout_counts(batch, seen=seen)
        other = batch._replace(activity=torch.where(seen, batch.activity, 5 * batch.activity + 1))
        assert_close(model.rollout_counts(other, seen=seen), rates)
    assert not torch.allclose(from_states.rollout_counts(other), from_states.rollout_counts(batch))


@pytest.mark.parametrize("from_states", [False, True])
def test_noise_free_limit_of_averaged_runs(from_states):
    """With little noise of the states and a sharp first state, averaged runs are the noise-free one."""
    model = model_of(from_states=from_states, noise=0.01, start=0.01)
    batch = batch_of(model, steps=5)
    found = model.rollout_counts(batch, 20, torch.Generator().manual_seed(2))
    assert_close(found, model.rollout_counts(batch), rtol=0.05, atol=0.01)


def test_padding_and_pieces_change_nothing(monkeypatch):
    model = model_of(inputs=1, from_states=True)
    batch = batch_of(model, steps=5, inputs=1)
    short = TrialBatch(*(None if x is None else (x[:, :3] if x.ndim > 1 else x) for x in batch))
    mask = batch.mask.clone()
    mask[:, 3:] = False
    padded = batch._replace(mask=mask, activity=batch.activity * mask[..., None])
    assert_close(model.infer(padded)[:, :3], model.infer(short), rtol=0, atol=1e-5)
    assert float(model.infer(padded)[:, 3:].abs().max()) == 0
    likelihoods = (model.marginal_log_likelihood(x, 300, torch.Generator().manual_seed(1)) for x in (padded, short))
    assert_close(*likelihoods, rtol=0, atol=0.03)
    assert_close(model.rollout_counts(padded)[:, :3], model.rollout_counts(short), rtol=1e-4, atol=1e-5)
    whole = model.infer(batch)
    monkeypatch.setattr("connector.lrrnn.spikes.state_space.pieces", lambda n, _: [slice(i, i + 1) for i in range(n)])
    assert_close(model.infer(batch), whole, rtol=0, atol=1e-5)  # sums over neurons are in single precision


def test_scores_of_dynamics_that_run_away_are_numbers():
    model = model_of()
    batch = batch_of(model, steps=60)
    with torch.no_grad():
        model.rnn.activation = "softplus"
        model.rnn.n.mul_(300.0)
    assert float(model.infer(batch, rollout=True).abs().max()) > 1e6
    assert torch.isfinite(model.infer(batch)).all()
    assert torch.isfinite(model.marginal_log_likelihood(batch, 4, torch.Generator().manual_seed(1))).all()
