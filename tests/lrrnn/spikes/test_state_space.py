"""A model of spikes with its paths integrated out: likelihoods against integration on a grid, and what scores are made of."""

import math

import pytest
import torch
from torch.testing import assert_close

from connector.analysis.spike_scores import groups_of_neurons, predicted_from_others
from connector.lrrnn.spikes.paths import log_target
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


def test_averaged_runs_have_the_mean_of_the_model():
    """From the prior: expected counts of two bins by integration over z[0] and the step's noise."""
    model = model_of(noise=0.5)
    batch = batch_of(model)
    given = model._given()
    z = torch.linspace(-6, 6, 801, dtype=torch.float64)
    first = torch.distributions.Normal(0.4, 0.9).log_prob(z).softmax(0)
    mean = (1 - ALPHA) * z + ALPHA * (given.field(z[:, None], None) @ given.p.c)[:, 0]
    then = first @ torch.distributions.Normal(mean[:, None], 0.5).log_prob(z[None]).softmax(1)
    rates = given.expected(batch._replace(baseline=None), z[None, :, None])[0]
    plain = batch._replace(baseline=None)
    found = model.rollout_counts(plain, 20000, torch.Generator().manual_seed(2)).double()
    assert_close(found[0], torch.stack([first @ rates, then @ rates]), rtol=0.03, atol=0)


@pytest.mark.parametrize("n_samples", [0, 5])
def test_rollouts_that_start_from_spikes_are_predicted_from_other_neurons(n_samples):
    model = model_of(from_states=True)
    batch = batch_of(model, steps=6)
    before = predicted_from_others(model, batch, n_paths=1, n_rollouts=n_samples).averaged
    for hidden in groups_of_neurons(12):
        activity = batch.activity.clone()
        activity[..., hidden] = 9.0
        changed = batch._replace(activity=activity)
        after = predicted_from_others(model, changed, n_paths=1, n_rollouts=n_samples).averaged
        assert torch.equal(after[..., hidden], before[..., hidden])
        assert not torch.allclose(after, before)


def test_paths_are_the_most_likely_ones_also_where_states_hardly_move_by_chance():
    """Along a limit cycle, noise of the states small: from a rollout that begins near the unstable origin it is a long way."""
    g = torch.Generator().manual_seed(5)
    model = SpikeStateSpace(60, 2, 0, 0.1, 1.0, 200, "tanh", "prior")
    turn = torch.tensor([[1.7, -0.5], [0.5, 1.7]])
    with torch.no_grad():
        m = torch.randn(200, 2, generator=g)
        model.rnn.m.copy_(m)
        model.rnn.d.zero_()
        model.rnn.n.copy_(m @ turn.T)
        model.readout.copy_(torch.randn(60, 2, generator=g))
        model.bias.fill_(-1.0)
        model.start_mean.copy_(torch.tensor([0.2, 0.0]))
        model.start_factor.copy_(0.8 * torch.eye(2))
        model.noise_factor.copy_(0.005 / 0.1**0.5 * torch.eye(2))
        first = model.start_mean + 0.8 * torch.randn(10, 2, generator=g)
        z = model.rnn.simulate(first, 200)
        counts = torch.poisson(torch.nn.functional.softplus(z @ model.readout.T + model.bias), generator=g)
    batch = TrialBatch(counts, torch.ones(10, 200, dtype=torch.bool), torch.arange(10))
    paths = model._given().paths(batch)
    at_truth, at_mode = (log_target(paths.counts, model._given().field, paths.p, x) for x in (z.double(), paths.mode))
    assert (at_mode > at_truth).all()
    assert float((paths.mode - z).square().mean().sqrt()) < 0.15


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
    assert_close(model.infer(batch), whole, rtol=0, atol=5e-3)  # steps end where the last trial has settled


def test_scores_of_dynamics_that_run_away_are_numbers():
    model = model_of()
    batch = batch_of(model, steps=60)
    with torch.no_grad():
        model.rnn.activation = "softplus"
        model.rnn.n.mul_(300.0)
    assert float(model.infer(batch, rollout=True).abs().max()) > 1e6
    assert torch.isfinite(model.infer(batch)).all()
    assert torch.isfinite(model.marginal_log_likelihood(batch, 4, torch.Generator().manual_seed(1))).all()
