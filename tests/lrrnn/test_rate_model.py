"""Training through the dynamics, from the closed form, and what the model hands over."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from draws import normal
from rate_networks import make_network, record, unexplained

from connector.data.attractors import teacher
from connector.data.folds import Fold
from connector.data.simulation import simulate_recording
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.rate_model import RateModel, fitted_dynamics, lasting_misfit, of_rollouts
from connector.runs.store import RunStore
from connector.stages.outputs import _from_trajectories
from connector.types import Latents, TrialBatch


def test_rate_model_starts_at_the_closed_form_and_infers_held_out_trials():
    recording, _ = simulate_recording(teacher("quadstable"), n_neurons=200, n_grid=12, n_steps=60, seed=3)
    train, held_out = recording.trials(torch.arange(0, 144, 2)), recording.trials(torch.arange(1, 144, 2))
    model = RateModel(200, 2)
    model.initialise(train)
    batch = TrialBatch.of(held_out)
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


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_nothing_of_training_trials_depends_on_others(noise):
    """Whatever the test trials hold: latents, noise levels, readings and covariances of training trials stay."""
    recording = record(make_network(k=40), trials=12, steps=30)
    recording = replace(recording, activity=recording.activity + noise * normal(*recording.activity.shape).float())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    part, found = Fold(order[:8], order[8:10], order[10:]), []
    for other in (
        recording.activity[part.test],
        torch.tanh(normal(*recording.activity[part.test].shape, seed=1)).float(),
    ):
        activity = recording.activity.clone()
        activity[part.test] = other
        model = RateModel(recording.n_neurons, 2)
        model.initialise(recording.trials(part.train))
        found.append(fitted_dynamics(model, replace(recording, activity=activity), part))
        assert (found[-1].readings is not None) == (noise > 0)
    first, second = found
    assert torch.equal(first.latents.z[part.train], second.latents.z[part.train])
    if noise:
        assert all(torch.equal(a[part.train], b[part.train]) for a, b in zip(first.readings, second.readings))
    assert torch.equal(first.loadings_covariance, second.loadings_covariance)
    assert not torch.equal(first.latents.z[part.test], second.latents.z[part.test])


def test_weight_penalty_is_the_sum_of_parameter_norms():
    recording = record(make_network(), trials=10)
    model = RateModel(200, 2, init="random", weight_penalty=1e-5)
    assert model.initialise(recording) is None
    assert float(model.rnn.m.detach().std()) == pytest.approx(2.0, rel=0.15)
    batch = TrialBatch.of(recording)
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
        batch = TrialBatch.of(recording)
        disturbed = batch._replace(activity=torch.where(batch.mask[..., None], batch.activity, torch.tensor(7.0)))
        assert float(model.loss(batch)[0]) == pytest.approx(float(model.loss(disturbed)[0]), rel=1e-6)


def test_gradient_training_mends_a_damaged_network():
    recording = record(make_network(), trials=40)
    model = RateModel(200, 2)
    model.initialise(recording)
    with torch.no_grad():
        model.rnn.n.mul_(0.7)
    batch, losses = TrialBatch.of(recording), []
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
    found = fitted_dynamics(model, recording, Fold(torch.arange(100), torch.arange(0), torch.arange(0)))
    found = found.moved(Gauge.fit(found.latents.z, recording.latents, recording.lengths))

    def mean_square(error, covariance):
        return float((error * torch.linalg.solve(covariance, error)).sum(-1).mean())

    states, spread = found.readings
    assert abs(mean_square(states - recording.latents, spread) - 2) < 0.15
    error = found.loadings.m - recording.loadings.m
    assert abs(mean_square(error, found.loadings_covariance) - 2) < 0.6


@pytest.mark.parametrize(("slow", "least", "most"), [(0.0, -0.06, 0.06), (0.9, 0.5, 1.0)])
def test_errors_of_a_step_that_last_are_told_from_noise_of_the_states(slow, least, most):
    net, g = make_network(n_inputs=1), torch.Generator().manual_seed(3)
    recording = record(net, trials=60)
    z, push = [recording.latents[:, 0]], torch.zeros(60, 2).double()
    for t in range(recording.n_steps - 1):
        push = slow * push + 0.05 * torch.randn(60, 2, generator=g).double()
        z.append(net.step(z[-1], recording.inputs[:, t].double()) + push)
    latents = Latents.of(recording, torch.stack(z, 1))
    fit = FittedDynamics(
        latents, net.loadings, Fold(torch.arange(40), torch.arange(0), torch.arange(0)), "tanh", n=net.n
    )
    assert least < lasting_misfit(fit) < most


def test_rollouts_handed_on_are_the_networks_own(tmp_path):
    recording = record(make_network(n_inputs=1, rank=3), trials=40)
    model = RateModel(200, 2, 1)
    model.initialise(recording)
    split = Fold(torch.arange(30), torch.arange(30, 35), torch.arange(35, 40))
    smoothed = fitted_dynamics(model, recording, split)
    found = of_rollouts(model, recording, smoothed)
    errors = []
    for fit in (smoothed, found):
        z, u, y = fit.latents.samples()
        errors.append(float((fit.network.drive(z, u) - y).abs().max()))
    assert errors[1] < 1e-4 < errors[0]
    assert found.readings is None
    assert not smoothed.rollouts
    store = RunStore(tmp_path)
    store.write_stage_inputs(found)
    again = store.read_stage_inputs()
    assert again.rollouts
    # What the fit misses is in no interval: no sign is told.
    options = SimpleNamespace(data=None, connectivity=SimpleNamespace(recorded_fraction=None, max_states=300), seed=0)
    summary = _from_trajectories(options, again).summary
    assert summary["unbacked"]
    assert any("trajectories of the fitted network" in said for said in summary["warnings"])
