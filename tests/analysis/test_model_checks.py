"""Checks of the model: recordings in which one thing is other than is assumed, and the closed forms of the statistics."""

from dataclasses import replace

import pytest
import torch
from rate_networks import make_network, record
from scipy.ndimage import gaussian_filter1d

from connector.analysis import model_checks
from connector.analysis.model_checks import check_model, checks_of, is_clear
from connector.analysis.readout_checks import DRIFT, check_readout
from connector.analysis.step_checks import innovations, smoothed, time_step_evidence
from connector.connectivity.nu.regression import log_evidence
from connector.data.folds import fold
from connector.dynamics import ACTIVATIONS
from connector.errors import UserError
from connector.lrrnn.handover import FittedDynamics
from connector.report.causes import of_causes
from connector.report.glossary import METRICS
from connector.types import Latents

TRIALS, STEPS = 60, 30


def true_fit(recording, net):
    """The states and loadings that made the recording, as if a fit had found them."""
    latents = Latents.of(recording, recording.latents.double())
    return FittedDynamics(latents, net.loadings, fold(TRIALS), recording.activation)


def noisy(recording, sd=0.2, seed=5):
    noise = sd * torch.randn(recording.activity.shape, generator=torch.Generator().manual_seed(seed))
    return replace(recording, activity=recording.activity + noise)


@pytest.fixture(scope="module")
def net():
    return make_network(k=60)


@pytest.fixture(scope="module")
def recording(net):
    return record(net, TRIALS, STEPS)


def test_nothing_is_named_where_the_model_holds(net, recording):
    for given in (recording, noisy(recording)):
        found = check_model(given, true_fit(given, net))
        assert found.causes == ()
        assert found.metrics().keys() <= METRICS.keys()
        assert of_causes(found.metrics()) == []


def test_a_missing_dimension_is_told_from_an_input_that_is_not_recorded():
    parts = fold(TRIALS)
    net = make_network(k=60, rank=3)
    of_rank = noisy(record(net, TRIALS, STEPS), 0.1)
    fit = true_fit(of_rank, net)
    lower = replace(
        fit, latents=replace(fit.latents, z=fit.latents.z[..., :2]), loadings=replace(net.loadings, m=net.m[:, :2])
    )
    found = check_model(of_rank, lower)
    assert found.causes == ("rank",)
    assert "raise it by 1" in of_causes(found.metrics())[0]
    driven = make_network(k=60, n_inputs=1)
    of_input = noisy(record(driven, TRIALS, STEPS), 0.1)
    hidden = replace(of_input, inputs=None, loadings=None)
    fit = replace(true_fit(hidden, driven), loadings=replace(driven.loadings, b=None), fold=parts)
    found = check_model(hidden, fit)
    assert found.causes == ("input",)
    assert "add it to the inputs" in of_causes(found.metrics())[0]


def test_another_activation_is_named(net):
    other = make_network("softplus", k=60, has_bias=True)
    made = replace(noisy(record(other, TRIALS, STEPS), 0.1), activation="relu")
    found = check_readout(made, fold(TRIALS), 2, True)
    assert found.adopted == ("softplus",)
    assert found.gains["softplus"].clear
    assert not found.gains[DRIFT].clear


def test_loadings_that_change_over_the_session_are_named(net, recording):
    g = torch.Generator().manual_seed(3)
    change = 0.6 * torch.randn(net.m.shape, generator=g, dtype=torch.float64)
    session = torch.linspace(-1, 1, TRIALS, dtype=torch.float64)[:, None, None]
    rates = torch.tanh(recording.latents @ net.m.T + session * (recording.latents @ change.T))
    drifting = noisy(replace(recording, activity=rates.float()))
    assert check_readout(drifting, fold(TRIALS), 2, False).adopted == (DRIFT,)
    # The order is that of the trials' times: in another one the same rates show no drift that lasts.
    shuffled = torch.randperm(TRIALS, generator=g).double()
    assert DRIFT not in check_readout(replace(drifting, trial_times_s=shuffled), fold(TRIALS), 2, False).adopted


def test_smoothed_rates_are_told_from_what_neurons_share(net, recording):
    rates = noisy(recording, 0.4).activity
    smooth = replace(recording, activity=torch.from_numpy(gaussian_filter1d(rates.numpy(), 2.0, axis=1)))
    found = check_readout(smooth, fold(TRIALS), 2, False).fitted
    assert found.correlation > 0.85  # exp(-1 / 16) = .94 of white noise under a Gaussian of sd 2
    assert found.filled > 0.6
    few = TRIALS // 5  # too few to ask for what is missing
    missing = noisy(record(make_network(k=60, rank=5), few, STEPS), 0.05)
    shared = check_readout(missing, fold(few), 1, False).fitted
    assert shared.correlation > 0.1
    assert shared.filled < 0.3


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_time_step_is_found_back(net, recording, factor):
    latents = Latents.of(recording, recording.latents.double())
    wrong = replace(latents, alpha=latents.alpha / factor)
    found = time_step_evidence(wrong, net.loadings, "tanh")
    assert max(found, key=found.get) == factor
    assert found[1.0] == 0.0
    assert found[factor] > 10


def test_evidence_does_not_depend_on_the_units_of_the_latents(net, recording):
    z = recording.latents[:, :-1].reshape(-1, 2)
    following = recording.latents[:, 1:].reshape(-1, 2)
    alphas = [0.05, 0.1, 0.2]
    one = log_evidence(z, None, following, net.loadings, activation="tanh", alphas=alphas)
    scaled = replace(net.loadings, m=net.m / 7)
    other = log_evidence(7 * z, None, 7 * following, scaled, activation="tanh", alphas=alphas)
    differences = [[x - found[1] for x in found] for found in (one, other)]
    assert differences[0] == pytest.approx(differences[1], abs=0.2)
    assert max(zip(one, alphas))[1] == net.alpha


def test_innovations_are_the_variance_of_the_process_noise(net):
    g = torch.Generator().manual_seed(2)
    z = [4 * torch.rand(TRIALS, 2, generator=g, dtype=torch.float64) - 2]
    for _ in range(59):
        z.append(net.step(z[-1], None) + 0.1 * torch.randn(TRIALS, 2, generator=g, dtype=torch.float64))
    z, lengths = torch.stack(z, 1), torch.full((TRIALS,), 60)
    variance = 0.01 / torch.linalg.eigvalsh(torch.cov(z.reshape(-1, 2).T))[0]
    errors = 0.15**2 * torch.eye(2, dtype=torch.float64).expand(TRIALS, 60, 2, 2)
    seen = z + 0.15 * torch.randn(z.shape, generator=g, dtype=torch.float64)
    for states, covariance in ((z, None), (seen, errors)):
        found = innovations(Latents(states, lengths, net.alpha), net.loadings, "tanh", covariance)
        assert found.variance == pytest.approx(float(variance), rel=0.35)
        assert found.error < 0.2 * found.variance
    still = net.simulate(z[:, 0], 60)
    found = innovations(Latents(still, lengths, net.alpha), net.loadings, "tanh")
    assert found.variance < 1e-4


def test_errors_larger_than_stated_are_no_process_noise(net):
    g = torch.Generator().manual_seed(2)
    z = net.simulate(4 * torch.rand(TRIALS, 2, generator=g, dtype=torch.float64) - 2, 60)
    lengths, seen = torch.full((TRIALS,), 60), z + 0.15 * torch.randn(z.shape, generator=g, dtype=torch.float64)
    stated = (0.15**2 / 3) * torch.eye(2, dtype=torch.float64).expand(TRIALS, 60, 2, 2)
    assert not is_clear(innovations(Latents(seen, lengths, net.alpha), net.loadings, "tanh", stated))


def test_smoothing_leaves_cubics_and_takes_the_noise_it_should():
    t = torch.linspace(-1, 1, 40, dtype=torch.float64)
    cubic = torch.stack([t**3 - t, 0.5 * t**2], 1).expand(20, 40, 2).clone()
    lengths = torch.full((20,), 40)
    assert torch.equal(smoothed(cubic, lengths, None), cubic)
    errors = 0.01 * torch.eye(2, dtype=torch.float64).expand(20, 40, 2, 2)
    torch.testing.assert_close(smoothed(cubic, lengths, errors), cubic)
    noise = 0.1 * torch.randn(cubic.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = smoothed(cubic + noise, lengths, errors) - cubic
    assert float(left[:, 7:-7].square().mean()) == pytest.approx(0.01 * 0.167, rel=0.15)  # centre weight of 15, cubic
    fast = torch.sin(0.7 * torch.arange(40, dtype=torch.float64))[None, :, None].expand(20, 40, 2)
    assert float((smoothed(fast, lengths, errors) - fast)[:, 7:-7].abs().max()) < 0.05  # the window gives way
    assert float((smoothed(fast, lengths, 100 * errors) - fast)[:, 7:-7].abs().max()) > 0.3  # it may be noise


def test_what_cannot_be_checked_is_left_out(net, recording):
    fit = true_fit(recording, net)
    assert checks_of(replace(recording, kind="spikes"), fit) == {}
    two_valued = replace(recording, activity=recording.activity.sign())
    assert checks_of(two_valued, fit) == {}
    few = replace(recording, activity=recording.activity[..., :8], loadings=None)
    with pytest.raises(UserError, match="12 or more"):
        check_readout(few, fold(TRIALS), 2, False)


def test_every_activation_has_a_name_in_the_glossary():
    for name in ACTIVATIONS:
        assert f"lrrnn/check_activation_{name}" in METRICS
        assert f"lrrnn/cause_activation_{name}" in METRICS


def test_one_training_trial_or_very_long_ones_end_no_run(net, recording, monkeypatch):
    monkeypatch.setattr(model_checks, "_MOST_SAMPLES", 1)  # as if each trial were longer
    assert check_model(recording, true_fit(recording, net)).innovations.variance < 1e-3
    fit = true_fit(recording, net)
    one = replace(fit, fold=replace(fit.fold, train=fit.fold.train[:1]))
    with pytest.raises(UserError, match="two trials or more"):
        innovations(fit.latents.trials(torch.arange(1)), net.loadings, "tanh")
    assert checks_of(recording, one) == {}
