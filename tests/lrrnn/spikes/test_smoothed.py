"""The closed form for spikes of many neurons: recovered teachers, honest error bars, and its scores as a state space."""

import pytest
import torch

from connector.analysis.spike_scores import poisson_log_likelihood
from connector.data.attractors import teacher
from connector.data.folds import Fold
from connector.data.simulation import simulate_recording
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.lrrnn.spikes.smoothed import SmoothedSpikeModel, as_rates, offset_of, spikes_per_bin
from connector.types import TrialBatch


@pytest.fixture(scope="module")
def fitted():
    recording, _ = simulate_recording(
        teacher("quadstable"), n_neurons=150, n_grid=10, n_steps=60, observation="spikes", rate_scale_hz=60.0, seed=3
    )
    train = torch.arange(0, 100, 2)
    baseline = fit_baseline(recording, train, "constant", rate_scale_hz=60.0)
    rates = as_rates(recording, baseline.scale)
    model = RateModel(150, 2, 0, True, recording.alpha, "softplus", count_scale=baseline.scale)
    solved = model.initialise(rates.trials(train))
    return recording, train, baseline, rates, model, solved


def test_latents_and_loadings_are_off_by_what_their_covariances_say(fitted):
    recording, train, _, rates, model, solved = fitted
    assert spikes_per_bin(recording) > 100
    assert solved.misfit == pytest.approx(1.0, abs=0.1)
    found = fitted_dynamics(model, rates, Fold(train, torch.arange(0), torch.arange(0)))
    found = found.moved(Gauge.fit(found.latents.z, recording.latents, recording.lengths, train, affine=True))
    z = found.latents.z[recording.mask] - recording.latents[recording.mask]
    assert float(z.square().mean().sqrt()) < 0.08 * float(recording.latents.std())
    readings, covariance = found.readings
    error = readings[recording.mask] - recording.latents[recording.mask]
    scaled = torch.einsum("ni,nij,nj->n", error, torch.linalg.inv(covariance[recording.mask]), error)
    assert float(scaled.mean()) == pytest.approx(2.0, abs=0.1)
    loadings = found.loadings
    error = loadings.m - recording.loadings.m
    spread = found.loadings_covariance[:, :2, :2]
    scaled = torch.einsum("ki,kij,kj->k", error, torch.linalg.inv(spread), error)
    assert float(scaled.mean()) == pytest.approx(2.0, abs=0.6)  # 150 neurons: sd .16, and the latents' own errors
    assert float((loadings.d - 1.0).square().mean().sqrt()) < 0.1  # the simulation's offset of all neurons


def test_a_known_offset_of_the_potentials_changes_nothing_but_the_bias(fitted):
    recording, train, _, rates, model, _ = fitted
    offset = torch.zeros_like(rates.activity) + torch.linspace(-0.5, 0.5, 150)
    shifted = RateModel(150, 2, 0, True, recording.alpha, "softplus", count_scale=model.count_scale)
    shifted.initialise(rates.trials(train), offset[train])
    assert torch.allclose(shifted.rnn.m, model.rnn.m, atol=0.01)  # priors and the basis of the drive move it a little
    assert torch.allclose(shifted.rnn.d + torch.linspace(-0.5, 0.5, 150), model.rnn.d, atol=0.02)


def test_its_paths_are_the_smoothed_ones_and_padding_changes_nothing(fitted):
    recording, train, baseline, rates, model, _ = fitted
    stand_in = SmoothedSpikeModel(model, recording, train, baseline)
    index = torch.arange(1, 9, 2)
    batch = TrialBatch.of(recording, index, baseline.argument)
    z = stand_in.infer(batch)
    smoothed = fitted_dynamics(model, rates, Fold(train, torch.arange(0), torch.arange(0))).latents.z[index]
    assert torch.allclose(z.double(), smoothed, atol=0.05)  # which take each bin's likelihood for a Gaussian
    padded = batch._replace(
        activity=torch.nn.functional.pad(batch.activity, (0, 0, 0, 7)),
        mask=torch.nn.functional.pad(batch.mask, (0, 7)),
        baseline=torch.nn.functional.pad(batch.baseline, (0, 0, 0, 7)),
    )
    assert torch.allclose(stand_in.infer(padded)[:, :60], z, atol=1e-3)
    free = poisson_log_likelihood(stand_in.rollout_counts(batch), batch.activity, batch.mask)
    bound = stand_in.marginal_log_likelihood(batch, 16, torch.Generator().manual_seed(0))
    truth = (batch.activity * (batch.activity.mean((0, 1)) + 1e-9).log() - batch.activity.mean((0, 1))).sum((1, 2))
    assert (bound > truth).all()
    assert (free > truth).all()


def test_a_constant_baseline_is_no_offset(fitted):
    recording, train, baseline, _, _, _ = fitted
    assert offset_of(baseline, recording, train) is None
