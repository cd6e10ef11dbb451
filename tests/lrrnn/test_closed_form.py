"""The low-rank RNN and its fit to rates, against teachers whose answer is known."""

from __future__ import annotations

import pytest
import torch

from connector.data.attractors import teacher
from connector.data.simulation import simulate_recording
from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.closed_form import fit_rates_closed_form
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.latents import least_squares_latents
from connector.lrrnn.module import LowRankRNN
from connector.lrrnn.observation import Observation
from connector.lrrnn.output_weights import ridge_output_weights
from connector.lrrnn.rate_model import RateModel, connectivity_inputs
from connector.lrrnn.smoother import smooth_latents
from connector.types import Loadings, Recording, TrialBatch, valid_mask

GAIN = {"tanh": 1.0, "relu": 1.0, "softplus": 1.2, "sigmoid": 4.0}


def make_network(activation="tanh", k=200, rank=2, n_inputs=0, has_bias=False, seed=0) -> Network:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    m = normal(k, rank)
    turn = 1.6 * torch.eye(rank, dtype=torch.float64)
    if rank > 1:
        turn[0, 1], turn[1, 0] = -0.8, 0.8
    n = GAIN[activation] * (m @ turn.T) + 0.5 * normal(k, rank)
    b = 0.5 * normal(k, n_inputs) if n_inputs else None
    d = 0.5 * normal(k) if has_bias else None
    return Network(m, n, b, d, alpha=0.1, activation=activation)


def record(net: Network, trials=80, steps=50, noise=0.0, ragged=False, two_valued=False, seed=1) -> Recording:
    """Rates of a network from random states, under brief inputs where it has any."""
    g = torch.Generator().manual_seed(seed)
    z0 = 4 * torch.rand(trials, net.rank, generator=g, dtype=torch.float64) - 2
    u = None
    if net.b is not None:
        u = 2.0 * (torch.rand(trials, steps, net.b.shape[1], generator=g) < 0.1).double()
    z = net.simulate(z0, steps, u)
    rates = net.rates(z, u)
    if two_valued:
        rates = torch.where(torch.rand(rates.shape, generator=g) < (1 + rates) / 2, 1.0, -1.0)
    rates = rates + noise * torch.randn(rates.shape, generator=g)
    lengths = torch.full((trials,), steps)
    if ragged:
        lengths = torch.randint(steps // 2, steps + 1, (trials,), generator=g)
    mask = valid_mask(lengths, steps)[..., None]
    return Recording(
        activity=(rates * mask).float(),
        kind="rates",
        lengths=lengths,
        alpha=net.alpha,
        activation=net.activation,
        inputs=None if u is None else (u * mask).float(),
        latents=z * mask,
        loadings=net.loadings,
        n=net.n,
    )


def unexplained(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    return float((estimate - truth).square().sum() / (truth - truth.mean(0)).square().sum())


def drive_error(fit, gauge: Gauge, net: Network, recording: Recording) -> float:
    """Relative error of the drive at the true states, in the true gauge."""
    z = recording.latents[recording.mask]
    u = None if recording.inputs is None else recording.inputs[recording.mask].double()
    own = (z - gauge.shift) @ torch.linalg.inv(gauge.matrix).T
    inferred = fit.network.drive(own, u) @ gauge.matrix.T + gauge.shift
    truth = net.drive(z, u)
    return float((inferred - truth).norm() / truth.norm())


def as_batch(recording: Recording) -> TrialBatch:
    return TrialBatch(recording.activity, recording.mask, torch.arange(recording.n_trials), recording.inputs)


# ---- the module


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


# ---- gauge


def test_linear_gauge_leaves_rates_and_dynamics():
    net = make_network(n_inputs=1)
    g = torch.Generator().manual_seed(3)
    z, u = torch.randn(30, 2, generator=g).double(), torch.randn(30, 1, generator=g).double()
    gauge = Gauge(torch.tensor([[1.0, 2.0], [-0.5, 0.7]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    moved = gauge.network(net)
    torch.testing.assert_close(moved.rates(gauge.latents(z), u), net.rates(z, u))
    torch.testing.assert_close(moved.step(gauge.latents(z), u), gauge.latents(net.step(z, u)))


def test_affine_gauge_leaves_rates_and_on_the_states_the_dynamics():
    net = make_network("softplus", has_bias=True)
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(3)).double()
    gauge = Gauge(torch.tensor([[1.0, 0.4], [-0.5, 0.7]]).double(), torch.tensor([0.5, -1.0]).double())
    moved = gauge.network(net, z)
    torch.testing.assert_close(moved.rates(gauge.latents(z)), net.rates(z))
    torch.testing.assert_close(moved.step(gauge.latents(z)), gauge.latents(net.step(z)), rtol=0, atol=2e-5)
    with pytest.raises(UserError):
        gauge.network(net)
    with pytest.raises(UserError):
        gauge.loadings(Loadings(net.m))


def test_gauge_fit_finds_the_map_from_training_trials_only():
    g = torch.Generator().manual_seed(4)
    z, matrix, shift = torch.randn(6, 9, 2, generator=g).double(), torch.randn(2, 2).double(), torch.randn(2).double()
    truth = z @ matrix.T + shift
    truth[3:] = 99.0
    lengths = torch.tensor([9, 4, 7, 9, 9, 9])
    truth[1, 4:] = -99.0
    gauge = Gauge.fit(z, truth, lengths, torch.tensor([0, 1, 2]), affine=True)
    torch.testing.assert_close(gauge.matrix, matrix)
    torch.testing.assert_close(gauge.shift, shift)
    with pytest.raises(UserError):
        Gauge.fit(torch.zeros_like(z), truth, lengths)


def test_gauge_moves_covariances_as_it_moves_loadings():
    g = torch.Generator().manual_seed(5)
    draws = torch.randn(200000, 4, generator=g).double() @ torch.randn(4, 4, generator=g).double()
    gauge = Gauge(torch.tensor([[1.0, 0.4], [-0.5, 0.7]]).double(), torch.tensor([0.5, -1.0]).double())
    moved = gauge.loadings(Loadings.unstack(draws, 2, 1, True)).stack()
    torch.testing.assert_close(gauge.loadings_covariance(draws.T.cov()[None], 1)[0], moved.T.cov())


# ---- pieces of the closed form


def test_ridge_solves_the_stated_problem_in_both_shapes():
    g = torch.Generator().manual_seed(6)
    for t, k in ((60, 15), (15, 60)):
        x, y, lam = torch.randn(t, k, generator=g).double(), torch.randn(t, 2, generator=g).double(), 0.03
        n, _ = ridge_output_weights(x, y, lam)
        # gradient of (1/T) ||Y - X N / K||^2 + (lambda / K) ||N||^2
        gradient = -2 / (t * k) * x.T @ (y - x @ n / k) + 2 * lam / k * n
        assert gradient.abs().max() < 1e-12


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


def test_smoother_equals_the_exact_posterior_of_a_linear_network():
    """Joint Gaussian of one trajectory of a linear(ised) network, conditioned in one go."""
    k, steps, rank = 400, 6, 2
    g = torch.Generator().manual_seed(7)
    # tiny potentials make tanh linear: z[t+1] = a z[t] with a known
    m = 1e-4 * torch.randn(k, rank, generator=g).double()
    n = torch.randn(k, rank, generator=g).double() * 5e3
    net = Network(m, n, alpha=0.1)
    a = 0.9 * torch.eye(rank).double() + 0.1 * n.T @ m / k
    q, information = torch.diag(torch.tensor([0.02, 0.05]).double()), torch.rand(1, steps, rank, generator=g).double()
    information = torch.diag_embed(20 * information)
    information[0, 2] = 0  # a missing sample
    z = torch.randn(1, steps, rank, generator=g).double()
    mean, covariance, _ = smooth_latents(z, information, net, torch.tensor([steps]), process_covariance=q)
    precision = torch.zeros(steps * rank, steps * rank).double()
    precision[:rank, :rank] += torch.eye(rank) / 100
    for t in range(steps):
        at = slice(t * rank, (t + 1) * rank)
        precision[at, at] += information[0, t]
        if t:
            step = torch.zeros(rank, steps * rank).double()
            step[:, at], step[:, (t - 1) * rank : t * rank] = torch.eye(rank).double(), -a
            precision += step.T @ torch.linalg.inv(q) @ step
    pull = torch.einsum("tij,tj->ti", information[0], z[0]).reshape(-1)
    expected = torch.linalg.solve(precision, pull).reshape(steps, rank)
    torch.testing.assert_close(mean[0], expected, rtol=1e-4, atol=1e-5)
    spread = torch.linalg.inv(precision)
    for t in range(steps):
        block = spread[t * rank : (t + 1) * rank, t * rank : (t + 1) * rank]
        torch.testing.assert_close(covariance[0, t], block, rtol=1e-4, atol=1e-7)


# ---- closed form


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus", "sigmoid"])
@pytest.mark.parametrize(("n_inputs", "has_bias", "rank"), [(0, False, 2), (1, True, 2), (2, False, 3)])
def test_clean_rates_give_back_the_teacher(activation, n_inputs, has_bias, rank):
    net = make_network(activation, rank=rank, n_inputs=n_inputs, has_bias=has_bias)
    recording = record(net, ragged=True)
    fit = fit_rates_closed_form(recording, rank, has_bias=has_bias)
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths, affine=has_bias)
    mask = recording.mask
    assert unexplained(gauge.latents(fit.latents.z)[mask], recording.latents[mask]) < 1e-8
    # a relu neuron silenced by every input leaves its input weight open, so b is compared through the rates
    assert unexplained(gauge.loadings(fit.loadings).m, net.m) < 1e-4
    residual = (fit.network.rates(fit.latents.z, recording.inputs) - recording.activity)[mask]
    assert float(residual.abs().max()) < 1e-3
    assert drive_error(fit, gauge, net, recording) < 2e-3


def test_gauge_of_the_closed_form_is_the_stated_one():
    recording = record(make_network("sigmoid", has_bias=True), ragged=True)
    fit = fit_rates_closed_form(recording, 2, has_bias=True)
    z, m = fit.latents.z[recording.mask], fit.loadings.m
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(2).double(), rtol=0, atol=1e-4)
    gram = m.T @ m
    assert abs(float(gram[0, 1])) < 1e-3 * float(gram[1, 1])
    assert gram[0, 0] >= gram[1, 1]
    assert (m.gather(0, m.abs().argmax(0, keepdim=True)) > 0).all()


def test_padding_changes_nothing():
    net = make_network(n_inputs=1, has_bias=True)
    recording = record(net, ragged=True, noise=0.1)
    g = torch.Generator().manual_seed(8)

    def padded(x):
        extra = torch.zeros(x.shape[0], 7, *x.shape[2:], dtype=x.dtype)
        out = torch.cat([x, extra], dim=1)
        beyond = ~valid_mask(recording.lengths, out.shape[1])
        out[beyond] = 5 * torch.rand(out[beyond].shape, generator=g, dtype=x.dtype)
        return out

    longer = Recording(
        activity=padded(recording.activity),
        kind="rates",
        lengths=recording.lengths,
        alpha=recording.alpha,
        activation="tanh",
        inputs=padded(recording.inputs),
    )
    a, b = (fit_rates_closed_form(r, 2, has_bias=True) for r in (recording, longer))
    torch.testing.assert_close(a.loadings.stack(), b.loadings.stack(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.latents.z[recording.mask], b.latents.z[longer.mask], rtol=1e-4, atol=1e-4)


def test_noisy_rates_loadings_dynamics_and_stated_uncertainty():
    net = make_network(k=300)
    recording = record(net, noise=0.3, trials=150)
    fit = fit_rates_closed_form(recording, 2)
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
    mask = recording.mask
    smooth = unexplained(gauge.latents(fit.latents.z)[mask], recording.latents[mask])
    sample_wise = unexplained(gauge.latents(fit.least_squares)[mask], recording.latents[mask])
    assert smooth < 0.1 * sample_wise
    assert drive_error(fit, gauge, net, recording) < 0.02
    assert fit.residual_sd == pytest.approx(0.3, rel=0.01)
    assert fit.misfit == pytest.approx(1.0, abs=0.1)
    error = gauge.loadings(fit.loadings).m - net.m
    sd = gauge.loadings_covariance(fit.loadings_covariance).diagonal(dim1=1, dim2=2).sqrt()
    normalised = error / sd
    assert float(normalised.square().mean().sqrt()) == pytest.approx(1.0, abs=0.15)
    assert float((normalised.abs() < 1.96).double().mean()) == pytest.approx(0.95, abs=0.03)


def test_two_valued_observations_passed_as_rates():
    net = make_network(k=300)
    recording = record(net, two_valued=True, trials=150)
    fit = fit_rates_closed_form(recording, 2)
    assert fit.observation.noise == "two_valued"
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
    error = gauge.loadings(fit.loadings).m - net.m
    sd = gauge.loadings_covariance(fit.loadings_covariance).diagonal(dim1=1, dim2=2).sqrt()
    assert unexplained(gauge.loadings(fit.loadings).m, net.m) < 3e-3
    assert float((error / sd).square().mean().sqrt()) == pytest.approx(1.0, abs=0.2)
    assert drive_error(fit, gauge, net, recording) < 0.03


def test_process_noise_is_told_from_observation_noise():
    net, g = make_network(k=300), torch.Generator().manual_seed(9)
    z = [4 * torch.rand(100, 2, generator=g).double() - 2]
    for _ in range(49):
        z.append(net.step(z[-1]) + 0.03 * torch.randn(100, 2, generator=g))
    z = torch.stack(z, dim=1)
    rates = net.rates(z) + 0.1 * torch.randn(100, 50, 300, generator=g)
    recording = Recording(rates.float(), "rates", torch.full((100,), 50), 0.1, "tanh")
    fit = fit_rates_closed_form(recording, 2)
    gauge = Gauge.fit(fit.latents.z, z, recording.lengths)
    q = gauge.matrix @ fit.process_covariance @ gauge.matrix.T
    torch.testing.assert_close(q.diagonal().sqrt(), torch.full((2,), 0.03).double(), rtol=0.15, atol=0)
    # the posterior is calibrated: normalised squared error has mean R
    error = gauge.latents(fit.latents.z) - z
    spread = gauge.matrix @ fit.latents_covariance @ gauge.matrix.T
    scaled = torch.einsum("nti,ntij,ntj->nt", error, torch.linalg.inv(spread), error).mean()
    assert float(scaled) == pytest.approx(2.0, abs=0.4)


def test_saturated_float32_rates_do_no_harm():
    net = make_network()
    net = Network(4 * net.m, net.n, alpha=0.1)
    recording = record(net)
    assert float((recording.activity.abs() == 1).double().mean()) > 1e-3
    fit = fit_rates_closed_form(recording, 2)
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
    assert unexplained(gauge.loadings(fit.loadings).m, net.m) < 1e-8


def test_refusals():
    recording = record(make_network(), trials=10)
    with pytest.raises(UserError):
        fit_rates_closed_form(recording, 0)
    with pytest.raises(UserError):
        RateModel(10, 2, init="lucky")


# ---- training through the dynamics


def test_rate_model_starts_at_the_closed_form_and_infers_held_out_trials():
    recording, _ = simulate_recording(teacher("quadstable"), n_neurons=200, n_grid=12, n_steps=60, seed=3)
    train, held_out = recording.trials(torch.arange(0, 144, 2)), recording.trials(torch.arange(1, 144, 2))
    model = RateModel(200, 2)
    model.initialise(train)
    batch = as_batch(held_out)
    loss, parts = model.validation_loss(batch)
    assert float(loss.detach()) < 1e-6
    assert not parts["mean_squared_error"].requires_grad
    gauge = Gauge.fit(model.infer(train), train.latents, train.lengths)
    for method in ("smooth", "least_squares", "rollout"):
        z = gauge.latents(model.infer(held_out, method))
        assert unexplained(z.flatten(0, 1), held_out.latents.double().flatten(0, 1)) < 1e-5
    torch.testing.assert_close(model.infer(batch), model.infer(held_out))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_weight_penalty_is_the_sum_of_parameter_norms():
    recording = record(make_network(), trials=10)
    model = RateModel(200, 2, init="random", weight_penalty=1e-5)
    assert model.initialise(recording) is None
    assert float(model.rnn.m.detach().std()) == pytest.approx(2.0, rel=0.15)
    batch = as_batch(recording)
    with torch.no_grad():
        extra = model.loss(batch)[0] - model.validation_loss(batch)[0]
    norms = sum(float(p.detach().norm()) for p in model.parameters())
    assert float(extra) == pytest.approx(1e-5 * norms, rel=0.02)


def test_masked_samples_do_not_enter_the_loss():
    net = make_network(n_inputs=1)
    recording = record(net, trials=20, ragged=True)
    model = RateModel(200, 2, n_inputs=1)
    model.initialise(recording)
    with torch.no_grad():
        model.rnn.n.mul_(0.9)
        batch = as_batch(recording)
        disturbed = batch._replace(activity=torch.where(batch.mask[..., None], batch.activity, torch.tensor(7.0)))
        assert float(model.loss(batch)[0]) == pytest.approx(float(model.loss(disturbed)[0]), rel=1e-6)


def test_gradient_training_mends_a_damaged_network():
    recording = record(make_network(), trials=40)
    model = RateModel(200, 2)
    model.initialise(recording)
    with torch.no_grad():
        model.rnn.n.mul_(0.7)
    batch, losses = as_batch(recording), []
    optimizer = torch.optim.Adam(model.parameter_groups(1e-2))
    for _ in range(25):
        loss, _ = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_calibrate_finds_the_noise_and_survives_a_checkpoint():
    recording = record(make_network(k=100), noise=0.2, trials=60)
    model = RateModel(100, 2)
    model.initialise(recording)
    model.calibrate(recording)
    assert float(model.residual_variance) == pytest.approx(0.04, rel=0.05)
    again = RateModel(100, 2)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.infer(recording), model.infer(recording))


def test_errors_of_readings_and_loadings_have_the_stated_covariance():
    """Squared errors in units of their covariance average the number of dimensions, for states and for loadings."""
    recording, _ = simulate_recording(teacher("ring"), n_neurons=200, n_grid=10, observation_noise_std=0.3, seed=4)
    model = RateModel(200, 2)
    model.initialise(recording)
    found, loadings, covariance, (states, spread) = connectivity_inputs(model, recording, torch.arange(100))
    gauge = Gauge.fit(found.z, recording.latents, recording.lengths)

    def mean_square(error, covariance):
        return float((error * torch.linalg.solve(covariance, error)).sum(-1).mean())

    states, spread = gauge.readings(states, spread)
    assert abs(mean_square(states - recording.latents, spread) - 2) < 0.15
    error = gauge.loadings(loadings).m - recording.loadings.m
    assert abs(mean_square(error, gauge.loadings_covariance(covariance)) - 2) < 0.6
