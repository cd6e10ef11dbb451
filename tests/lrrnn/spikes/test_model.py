"""The spike model: its fused gradients, its bounds and its gauge against independent computations."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from connector.analysis.spike_scores import (
    bits_per_spike,
    groups_of_neurons,
    poisson_log_likelihood,
    predicted_from_others,
)
from connector.data.attractors import teacher
from connector.data.folds import Fold
from connector.data.simulation import simulate_recording
from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.rate_model import RateModel
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.lrrnn.spikes.encoder import Encoder, PathPosterior
from connector.lrrnn.spikes.model import SpikeModel, SpikeOptions
from connector.lrrnn.spikes.readout import fitted_dynamics, read_counts, refit_loadings
from connector.lrrnn.spikes.scan import PoissonNats, Scan, run_pair
from connector.lrrnn.spikes.smoothed import SmoothedSpikeModel, as_rates
from connector.numerics import least_squares
from connector.types import Loadings, Recording, TrialBatch, last_states


def driven_recording(n_trials=160, n_steps=50, n_neurons=12, seed=0, gain=3.0):
    """An integrator of two inputs, observed as Poisson spikes of ragged trials, with evidence and choices."""
    generator = torch.Generator().manual_seed(seed)
    evidence = torch.randint(0, 2, (n_trials,), generator=generator) * 2.0 - 1.0
    chance = torch.sigmoid(torch.stack([-evidence, evidence], 1) * 1.0) * 0.3
    inputs = torch.bernoulli(chance[:, None].expand(-1, n_steps, -1), generator=generator)
    z = torch.zeros(n_trials, n_steps, 1)
    for t in range(n_steps - 1):
        z[:, t + 1] = 0.97 * z[:, t] + 0.1 * (inputs[:, t, 1:] - inputs[:, t, :1])
    m = gain * torch.randn(n_neurons, 1, generator=generator)
    lengths = torch.randint(n_steps // 2, n_steps + 1, (n_trials,), generator=generator)
    mask = torch.arange(n_steps) < lengths[:, None]
    counts = torch.poisson(0.1 * F.softplus(z @ m.T + 0.5), generator=generator) * mask[..., None]
    choices = (last_states(z, lengths)[:, 0] > 0).float()
    return Recording(
        activity=counts, kind="spikes", lengths=lengths, alpha=0.1, activation="softplus", inputs=inputs, bin_s=0.01,
        choices=choices, evidence=evidence, latents=z, loadings=Loadings(m),
    )  # fmt: skip


def fitted(recording, train, rank=1, epochs=0, kind="constant", lr=1e-2, batch_size=32, **options):
    torch.manual_seed(0)
    baseline = fit_baseline(recording, train, kind)
    options = {"n_units": 32, "encoder_hidden": 16, **options}
    model = SpikeModel(
        recording.n_neurons, rank, recording.n_inputs, recording.alpha, baseline.scale, SpikeOptions(**options)
    )
    model.initialise(recording, train, baseline)
    optimizer = torch.optim.Adam(model.parameter_groups(lr))
    generator = torch.Generator().manual_seed(0)
    everything = TrialBatch.of(recording, train, baseline.argument)
    steps = max(1, epochs * -(-len(train) // batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], steps)
    done = 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(train), generator=generator).split(batch_size):
            batch = type(everything)(*(None if x is None else x[chosen] for x in everything))
            loss, _ = model.loss(batch, done / steps, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), model.GRADIENT_CLIP)
            optimizer.step()
            schedule.step()
            done += 1
    return model, baseline


@pytest.fixture(scope="module")
def small():
    recording = driven_recording(40, 30, 6)
    model, baseline = fitted(recording, torch.arange(30), rank=2)
    with torch.no_grad():  # away from the symmetric start
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    return recording, model, baseline


@pytest.mark.parametrize("unit", ["tanh", "sigmoid", "softplus"])
def test_fused_scan_equals_equation_one_and_its_gradient(unit):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    z0, extra, u = normal(3, 4, 2), normal(9, 3, 4, 2), normal(4, 9, 2)
    m, n, b, d = normal(8, 2), normal(8, 2), normal(8, 2), normal(8)
    weight = torch.randn(10, 3, 4, 2, generator=generator, dtype=torch.float64)
    fused = Scan.apply(z0, extra, u.transpose(0, 1), Loadings(m, b, d).stack(), n, 0.2, unit)
    network = Network(m, n, b, d, 0.2, unit)
    states = [z0]
    for t in range(9):
        states.append(network.step(states[-1], u[:, t]) + extra[t])
    plain = torch.stack(states)
    torch.testing.assert_close(fused, plain)
    leaves = (z0, extra, u, m, n, b, d)
    for a, c in zip(
        torch.autograd.grad((fused * weight).sum(), leaves), torch.autograd.grad((plain * weight).sum(), leaves)
    ):
        torch.testing.assert_close(a, c)


def test_pair_of_grus_equals_torch_and_its_gradient():
    torch.manual_seed(0)
    grus = tuple(torch.nn.GRU(3, 5).double() for _ in range(2))
    x = torch.randn(7, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 2, 4, 5, dtype=torch.float64)
    fused = run_pair(grus, x)
    plain = torch.stack([gru(x[:, i])[0] for i, gru in enumerate(grus)], 1)
    torch.testing.assert_close(fused, plain)
    leaves = [x, *(p for gru in grus for p in gru.parameters())]
    for a, b in zip(
        torch.autograd.grad((fused * weight).sum(), leaves), torch.autograd.grad((plain * weight).sum(), leaves)
    ):
        torch.testing.assert_close(a, b)


def test_fused_likelihood_equals_torch_distributions_and_its_gradient():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 7, 2, generator=generator, dtype=torch.float64).requires_grad_()
    c = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    offset = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    counts = torch.randint(0, 4, (7, 5), generator=generator).double()
    fused = PoissonNats.apply(z, c, offset, counts, 0.3)
    rate = 0.3 * F.softplus(z @ c.T + offset)
    known = torch.distributions.Poisson(rate).log_prob(counts.expand_as(rate)) + torch.lgamma(counts + 1)
    known = (known - counts * math.log(0.3)).sum(-1)
    torch.testing.assert_close(fused, known)
    weight = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((fused * weight).sum(), (z, c, offset)),
        torch.autograd.grad((known * weight).sum(), (z, c, offset)),
    ):
        torch.testing.assert_close(a, b)


def test_divergence_equals_torch_distributions():
    generator = torch.Generator().manual_seed(2)
    alpha = 0.3
    posterior = PathPosterior(*(torch.randn(*s, generator=generator) for s in [(4, 2), (4, 2), (6, 4, 2)]))
    normal = torch.distributions.Normal
    start = torch.distributions.kl_divergence(
        normal(posterior.mean, posterior.log_sd.exp()), normal(torch.zeros(4, 2), torch.ones(4, 2))
    ).sum(-1)
    sd = torch.full((6, 4, 2), alpha**0.5)
    steps = torch.distributions.kl_divergence(
        normal(alpha * posterior.correction, sd), normal(torch.zeros(6, 4, 2), sd)
    ).sum((0, 2))
    torch.testing.assert_close(posterior.divergence(alpha), start + steps)


def test_paths_follow_the_encoders_posterior(small):
    """First states, and what each step adds to equation (1) and its correction, in units of the stated spread: standard normal."""
    recording, model, baseline = small
    batch = TrialBatch.of(recording, torch.arange(30, 36), baseline.argument)
    with torch.no_grad():
        posterior = model.encode(batch)
        z = model.paths(batch, posterior, 200, torch.Generator().manual_seed(0)).posterior  # (time, S, B, R)
        first = torch.linalg.solve(model.start_factor, (z[0] - model.start_mean)[..., None])[..., 0]
        scores = [(first - posterior.mean) / posterior.log_sd.exp()]
        for t in range(len(z) - 1):
            step = torch.stack([model.rnn.step(one, batch.inputs[:, t]) for one in z[t]])
            added = torch.linalg.solve(model.noise_factor, (z[t + 1] - step)[..., None])[..., 0]
            scores.append((added - model.alpha * posterior.correction[t]) / model.alpha**0.5)
        for score in (scores[0], torch.stack(scores[1:])):
            rows = score.reshape(-1, 2)
            assert rows.mean(0).abs().max() < 4 / len(rows) ** 0.5
            torch.testing.assert_close(torch.cov(rows.T), torch.eye(2), rtol=0, atol=6 / len(rows) ** 0.5)


def test_rollout_is_equation_one_from_the_prior_mean(small):
    recording, model, baseline = small
    batch = TrialBatch.of(recording, torch.arange(5), baseline.argument)
    z = model.infer(batch, rollout=True)
    with torch.no_grad():
        plain = model.rnn.simulate(model.start_mean.expand(5, -1), recording.n_steps, batch.inputs)
    torch.testing.assert_close(z, plain * batch.mask[..., None], rtol=1e-4, atol=1e-5)


def test_more_samples_tighten_the_bound_and_it_stays_above_the_elbo(small):
    recording, model, baseline = small
    batch = TrialBatch.of(recording, None, baseline.argument)
    bounds = {
        n: float(model.marginal_log_likelihood(batch, n, torch.Generator().manual_seed(n)).sum()) for n in (1, 8, 128)
    }
    assert bounds[1] < bounds[8] < bounds[128]


def test_padding_changes_nothing(small):
    recording, model, baseline = small
    batch = TrialBatch.of(recording, torch.arange(8), baseline.argument)
    dirty = batch._replace(
        activity=torch.where(batch.mask[..., None], batch.activity, 5.0),
        inputs=torch.where(batch.mask[..., None], batch.inputs, -3.0),
        baseline=torch.where(batch.mask[..., None], batch.baseline, 9.0),
    )
    longer = batch._replace(
        activity=F.pad(batch.activity, (0, 0, 0, 6)),
        mask=F.pad(batch.mask, (0, 6)),
        inputs=F.pad(batch.inputs, (0, 0, 0, 6)),
        baseline=F.pad(batch.baseline, (0, 0, 0, 6)),
    )
    z = model.infer(batch)
    assert (z[~batch.mask] == 0).all()
    torch.testing.assert_close(model.infer(dirty), z)
    torch.testing.assert_close(model.infer(longer)[:, : z.shape[1]], z, rtol=1e-4, atol=1e-5)
    # The prediction of recorded samples too.
    rates = model.rollout_counts(batch)
    torch.testing.assert_close(model.rollout_counts(longer)[:, : z.shape[1]], rates, rtol=1e-4, atol=1e-5)
    again = model.rollout_counts(batch._replace(inputs=dirty.inputs))
    torch.testing.assert_close(again[batch.mask], rates[batch.mask])


def test_encoder_reads_a_trial_backwards_from_its_own_end():
    torch.manual_seed(0)
    encoder = Encoder(3, 2, hidden=8, window=4)
    features = torch.randn(1, 20, 3)
    alone = encoder(features, torch.ones(1, 20, dtype=torch.bool))
    batch = torch.cat([F.pad(features, (0, 0, 0, 12)), torch.randn(1, 32, 3)])
    mask = torch.arange(32) < torch.tensor([20, 32])[:, None]
    together = encoder(batch * mask[..., None], mask)
    torch.testing.assert_close(together.mean[0], alone.mean[0])
    torch.testing.assert_close(together.correction[:19, 0], alone.correction[:, 0])
    assert (together.correction[19:, 0] == 0).all()
    # The last samples reach the initial state through the backward direction.
    features[0, 19] += 5
    assert not torch.allclose(encoder(features, torch.ones(1, 20, dtype=torch.bool)).mean, alone.mean)


def test_gauge_is_whitened_signed_and_leaves_every_likelihood(small):
    recording, source, baseline = small
    model = SpikeModel.of(n_neurons=6, rank=2, n_inputs=2, scale=source.scale, n_units=32, encoder_hidden=16)
    model.load_state_dict(source.state_dict())
    train = torch.arange(30)
    batch = TrialBatch.of(recording, train, baseline.argument)
    before = model.marginal_log_likelihood(batch, 2000, torch.Generator().manual_seed(0))
    z = model.infer(batch)
    a = model.fix_gauge(batch, recording.choices[train])
    after = model.marginal_log_likelihood(batch, 2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(after, before, rtol=0, atol=0.15)  # other draws in other coordinates
    new = model.infer(batch)
    # Up to where the search for the most likely path stops, which rounding decides.
    torch.testing.assert_close(new, z @ a.float().T, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(new[batch.mask].T), torch.eye(2), atol=2e-3, rtol=0)
    ends, choices = last_states(new, batch.mask.sum(1)), recording.choices[train]
    assert (ends[choices == 1].mean(0) > ends[choices == 0].mean(0)).all()
    # Once in the gauge, always in the gauge, from wherever one comes.
    again = model.fix_gauge(batch, choices)
    torch.testing.assert_close(again, torch.eye(2, dtype=torch.float64), atol=5e-3, rtol=0)


def test_schedule_starts_with_the_rollout_alone_then_warms_the_divergence_up(small):
    recording, model, baseline = small
    batch = TrialBatch.of(recording, torch.arange(8), baseline.argument)
    _, parts = model.loss(batch, 0.1)
    assert set(parts) == {"rollout_nats"}
    values = {}
    for progress in (0.34, 0.43, 0.6, 1.0):
        loss, parts = model.loss(batch, progress, torch.Generator().manual_seed(0))
        values[progress] = (float(loss.detach()), float(parts["divergence"]))
    divergence = values[1.0][1]
    warm = (0.43 - 1 / 3) / (2 / 3 * 0.3)
    assert values[0.6][0] == pytest.approx(values[1.0][0], abs=1e-5)
    assert values[1.0][0] - values[0.43][0] == pytest.approx((1 - warm) * divergence, rel=1e-2)


def test_all_parameters_learn(small):
    recording, model, baseline = small
    loss, _ = model.loss(TrialBatch.of(recording, None, baseline.argument), 1.0, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    assert [n for n, g in zip(names, gradients) if not g.abs().max() > 0] == []
    grouped = [p for group in model.parameter_groups(1e-2) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}


def test_start_follows_the_inputs_before_any_training():
    recording = driven_recording()
    train = torch.arange(120)
    truth = recording.latents[recording.mask][:, 0]
    unlabelled = replace(recording, evidence=None, choices=None)
    for shown in (recording, unlabelled):  # conditions help, the inputs' own effect suffices
        model, baseline = fitted(shown, train)
        z = model.infer(TrialBatch.of(shown, None, baseline.argument), rollout=True)[recording.mask][:, 0]
        assert torch.corrcoef(torch.stack([z, truth]))[0, 1].abs() > 0.93


def test_a_driven_integrator_is_recovered_from_spikes():
    recording = driven_recording(n_trials=260, n_neurons=20)
    train, test = torch.arange(200), torch.arange(200, 260)
    model, baseline = fitted(recording, train, epochs=15)
    batch = TrialBatch.of(recording, test, baseline.argument)
    truth = recording.latents[test][batch.mask][:, 0]
    for rollout in (False, True):
        z = model.infer(batch, rollout)[batch.mask][:, 0]
        assert torch.corrcoef(torch.stack([z, truth]))[0, 1].abs() > 0.95
    model.fix_gauge(TrialBatch.of(recording, train, baseline.argument), recording.choices[train])
    found = fitted_dynamics(model, recording, Fold(train, torch.arange(0), test), baseline)
    latents, loadings, covariance = found.latents, found.loadings, found.loadings_covariance
    assert latents.drive is None  # a fitted drive has errors that nothing tells: each bin is read with its own
    assert found.readings[0].shape == latents.z.shape
    assert covariance.shape == (20, 4, 4)
    # The refit loadings are the true ones up to the scale of z.
    both = torch.stack([loadings.m[:, 0].float(), recording.loadings.m[:, 0]])
    assert torch.corrcoef(both)[0, 1] > 0.95


def test_refit_recovers_loadings_where_the_latents_are_exact():
    recording = driven_recording(n_trials=400, n_neurons=8, gain=2.0)
    train = torch.arange(400)
    model, baseline = fitted(recording, train)
    z = model.infer(TrialBatch.of(recording, train, baseline.argument))
    generator = torch.Generator().manual_seed(1)
    m, d = torch.randn(8, 1, generator=generator), 0.5 + 0.3 * torch.randn(8, generator=generator)
    size = z[recording.mask].std()
    rate = 0.1 * F.softplus(z / size @ m.T + d)
    counts = torch.poisson(rate, generator=generator) * recording.mask[..., None]
    again = Recording(
        activity=counts, kind="spikes", lengths=recording.lengths, alpha=0.1, activation="softplus",
        inputs=recording.inputs, bin_s=0.01,
    )  # fmt: skip
    fresh = fit_baseline(again, train, "constant")
    model.baseline_mean.copy_(fresh.argument[recording.mask].mean(0))
    stub = TrialBatch.of(recording, train, baseline.argument)
    latents = model.infer(stub)
    model.infer = lambda batch, rollout=False: latents  # the regression is tested, not the encoder
    loadings, covariance = refit_loadings(model, again, train, fresh)
    sd = torch.diagonal(covariance, dim1=1, dim2=2).sqrt()
    truth = torch.cat([m / size, torch.zeros(8, 2), d[:, None]], 1)
    scores = (loadings.stack() - truth) / sd
    # b is shrunk towards its true value zero; m and d are read off the spikes.
    assert float((scores[:, [0, 3]] ** 2).mean()) < 2.0
    assert (scores.abs() < 4.5).all()
    assert sd[:, 0].mean() < 0.2 * (m / size).abs().mean()


def test_scores_are_the_gradient_of_the_likelihood_at_the_rollout(small):
    recording, model, baseline = small
    batch = TrialBatch.of(recording, torch.arange(8), baseline.argument)
    assert model.reads_scores
    z = model.infer(batch, rollout=True)
    z = torch.where(batch.mask[..., None], z, 0.0).requires_grad_()
    rate = model.expected_activity(batch, z)
    nats = batch.activity * rate.log() - rate
    known = torch.autograd.grad((nats * batch.mask[..., None]).sum(), z)[0]
    torch.testing.assert_close(model.score(batch)[batch.mask], known[batch.mask], rtol=1e-4, atol=1e-5)


def constant_states(n_trials, n_neurons, n_steps=40, gain=1.5):
    """Counts of neurons that read a state z ~ N(0, 1), constant in each trial; and the rates at a grid of states.

    Returns:
        recording, the grid (G,), expected counts per bin at each of its states (G, K).
    """
    generator = torch.Generator().manual_seed(0)
    m = gain * torch.randn(n_neurons, generator=generator, dtype=torch.float64)
    z = torch.randn(n_trials, generator=generator, dtype=torch.float64)
    grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
    rate, rates = (0.1 * F.softplus(x[:, None] * m) for x in (z, grid))
    counts = torch.poisson(rate.float()[:, None].expand(-1, n_steps, -1), generator=generator)
    lengths = torch.full((n_trials,), n_steps)
    recording = Recording(
        activity=counts, kind="spikes", lengths=lengths, alpha=0.1, activation="softplus", bin_s=0.01
    )  # fmt: skip
    return recording, grid, rates


@pytest.mark.slow
def test_hidden_neurons_are_predicted_from_the_others_as_well_as_they_can_be():
    """The best prediction, E[rate | spikes of the others] under the true parameters, by quadrature over z."""
    recording, grid, rates = constant_states(n_trials=260, n_neurons=30)
    train, test = torch.arange(200), torch.arange(200, 260)
    model, baseline = fitted(recording, train, epochs=15)
    batch = TrialBatch.of(recording, test, baseline.argument)
    total = batch.activity.double().sum(1)
    nats = torch.xlogy(total[:, None], rates) - recording.n_steps * rates  # (trials, grid, K)
    best = torch.empty_like(total)
    for hidden in groups_of_neurons(30):
        others = torch.ones(30, dtype=torch.bool)
        others[hidden] = False
        weights = torch.softmax(nats[..., others].sum(2) - 0.5 * grid**2, 1)
        best[:, hidden] = weights @ rates[:, hidden]

    def bits(expected):
        likelihood = poisson_log_likelihood(expected, batch.activity, batch.mask)
        return bits_per_spike(likelihood, batch.activity, batch.mask, baseline.null_counts)

    ideal = bits(best[:, None])
    assert ideal > 0.2
    assert 0.93 * ideal < bits(predicted_from_others(model, batch).co_smoothed) < 1.01 * ideal


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_hidden_neurons_own_spikes_do_not_influence_its_prediction(with_inputs, small):
    recording, model, baseline = small
    if not with_inputs:  # rollouts from what the trial's spikes say of z[0]
        recording, _, _ = constant_states(40, 6)
        model, baseline = fitted(recording, torch.arange(30), rank=1)
    batch = TrialBatch.of(recording, torch.arange(30, 36), baseline.argument)
    before = predicted_from_others(model, batch, n_groups=3, n_paths=4).co_smoothed
    groups = groups_of_neurons(6, 3)
    assert sorted(torch.cat(groups).tolist()) == list(range(6))
    for hidden in groups:
        changed = batch.activity.clone()
        changed[..., hidden] = 7.0
        after = predicted_from_others(model, batch._replace(activity=changed), n_groups=3, n_paths=4).co_smoothed
        assert torch.equal(after[..., hidden], before[..., hidden])
        others = [k for k in range(6) if k not in hidden]
        assert not torch.allclose(after[..., others], before[..., others])


def test_the_smoother_predicts_hidden_neurons_from_the_others_alone():
    recording, _ = simulate_recording(
        teacher("limit_cycle"), n_neurons=400, n_grid=6, n_steps=40, observation="spikes", rate_scale_hz=50.0
    )
    train, test = torch.arange(30), torch.arange(30, 36)
    baseline = fit_baseline(recording, train, "constant")
    closed = RateModel(400, 2, has_bias=True, activation="softplus", count_scale=baseline.scale)
    closed.initialise(as_rates(recording, baseline.scale).trials(train))
    model = SmoothedSpikeModel(closed, recording, train, baseline)
    batch = TrialBatch.of(recording, test, baseline.argument)
    before = predicted_from_others(model, batch, n_paths=4).co_smoothed
    hidden = groups_of_neurons(400)[2]
    changed = batch.activity.clone()
    changed[..., hidden] = 7.0
    after = predicted_from_others(model, batch._replace(activity=changed), n_paths=4).co_smoothed
    assert torch.equal(after[..., hidden], before[..., hidden])
    assert not torch.allclose(after, before)
    assert torch.isfinite(before).all()
    # A fifth hidden of many costs little: states are read from the other four.
    seen_all = model.posterior_counts(batch, n_samples=4)
    spread = seen_all[batch.mask].std(0).mean()
    assert (before - seen_all)[batch.mask].square().mean().sqrt() < 0.2 * spread


def test_autonomous_dynamics_are_recovered_without_inputs():
    recording, network = simulate_recording(
        teacher("limit_cycle"), n_neurons=1000, n_grid=12, n_steps=60, observation="spikes", recorded_fraction=0.1
    )
    order = torch.randperm(recording.n_trials, generator=torch.Generator().manual_seed(0))
    train, test = order[:115], order[115:]
    model, baseline = fitted(recording, train, rank=2, epochs=8)
    batch = TrialBatch.of(recording, test, baseline.argument)
    z, truth = model.infer(batch).double().flatten(0, 1), recording.latents[test].flatten(0, 1)
    design = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    gauge = least_squares(design, truth)
    error = ((design @ gauge - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()
    assert error < 0.03
    field = model.rnn.network().double().vector_field(z).detach() @ gauge[:2]
    known = network.vector_field(truth)
    assert ((field - known) ** 2).sum() / (known**2).sum() < 0.1


def test_few_neurons_without_choices_or_evidence():
    recording = driven_recording(n_trials=50, n_neurons=4)
    bare = Recording(
        activity=recording.activity, kind="spikes", lengths=recording.lengths, alpha=0.1, activation="softplus",
        bin_s=0.01,
    )  # fmt: skip
    model, baseline = fitted(bare, torch.arange(40), rank=2, epochs=2)
    batch = TrialBatch.of(bare, torch.arange(40, 50), baseline.argument)
    assert torch.isfinite(model.marginal_log_likelihood(batch, 4, torch.Generator().manual_seed(0))).all()
    model.fix_gauge(TrialBatch.of(bare, torch.arange(40), baseline.argument))
    found = fitted_dynamics(model, bare, Fold(torch.arange(40), torch.arange(0), torch.arange(40, 50)), baseline)
    assert found.loadings.b is None
    assert torch.isfinite(found.readings[0]).all()


def test_inference_is_deterministic_and_chunks_do_not_matter(small, monkeypatch):
    recording, model, baseline = small
    batch = TrialBatch.of(recording, None, baseline.argument)
    whole = model.infer(batch)
    monkeypatch.setattr("connector.lrrnn.spikes.state_space.pieces", lambda n, _: [slice(i, i + 1) for i in range(n)])
    torch.testing.assert_close(model.infer(batch), whole, rtol=0, atol=0.05)  # of a posterior sd near 1


def test_mistakes_are_named(small):
    recording, _, baseline = small
    with pytest.raises(UserError, match="as many neurons as the rank"):
        SpikeModel(6, 7, 2, scale=baseline.scale).initialise(recording, torch.arange(30), baseline)
    with pytest.raises(UserError, match="a recording of 5 neurons"):
        SpikeModel(5, 1, 2, scale=baseline.scale).initialise(recording, torch.arange(30), baseline)
    with pytest.raises(UserError, match="count scale"):
        SpikeModel(6, 1, 2, scale=0.7).initialise(recording, torch.arange(30), baseline)
    with pytest.raises(UserError, match="rollout_start"):
        SpikeModel(6, 1, 2, options=SpikeOptions(rollout_start="middle"))


def test_states_read_from_single_bins_err_as_stated():
    """At the true states as the guide, squared errors in units of their covariance average the dimension."""
    g = torch.Generator().manual_seed(3)
    z = torch.randn(20, 30, 2, generator=g, dtype=torch.float64)
    loadings = Loadings(torch.randn(400, 2, generator=g).double(), None, 0.5 * torch.randn(400, generator=g).double())
    baseline = 0.3 * torch.randn(20, 30, 400, generator=g)
    rate = torch.nn.functional.softplus(z @ loadings.m.T + loadings.d + baseline - 0.1)
    counts = torch.poisson(0.5 * rate, generator=g).float()
    mask = torch.arange(30) < torch.randint(10, 31, (20, 1), generator=g)
    batch = TrialBatch(counts, mask, torch.arange(20), None, baseline)
    states, spread = read_counts(batch, z, loadings, 0.5, torch.full((400,), 0.1))
    error = (states - z)[mask]
    assert abs(float((error * torch.linalg.solve(spread[mask], error)).sum(1).mean()) - 2) < 0.2
    assert not states[~mask].any()


def test_long_recordings_are_passed_fewer_times():
    assert [SpikeModel.epochs_for(n) for n in (1, 20_000, 65_000, 100_000, 10**8)] == [60, 60, 20, 13, 10]
