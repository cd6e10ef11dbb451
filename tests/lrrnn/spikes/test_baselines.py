"""Baselines against closed forms and simulated drifts."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from connector.errors import UserError
from connector.lrrnn.spikes.baselines import Baseline, fit_baseline, local_factor, poisson_regression, raised_cosines
from connector.types import Recording


def recording_of(rate, seed=0, lengths=None, **more):
    """Poisson counts of expected counts per bin ``rate`` (trials, time, K)."""
    counts = torch.poisson(rate.float(), generator=torch.Generator().manual_seed(seed))
    trials, steps, _ = rate.shape
    lengths = torch.full((trials,), steps) if lengths is None else lengths
    counts = counts * (torch.arange(steps) < lengths[:, None])[..., None]
    return Recording(
        activity=counts, kind="spikes", lengths=lengths, alpha=0.1, activation="softplus", bin_s=0.01, **more
    )


def drifting(trials=300, steps=60, neurons=6, seed=0):
    """Counts with drift across the session (also seen in the rates before trials) and a course within the trial."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 3600, trials, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(neurons, generator=generator, dtype=torch.float64)
    hz = 12 + 8 * torch.sin(times[:, None] / 900 + phase)  # (trials, K)
    t = torch.arange(steps, dtype=torch.float64)
    course = 0.8 * torch.sin(t / 15)[:, None] * torch.linspace(-1, 1, neurons, dtype=torch.float64)
    argument = torch.log(torch.expm1(hz / 10))[:, None] + course
    before = hz + 1.5 * torch.randn(trials, neurons, generator=generator)
    recording = recording_of(0.1 * F.softplus(argument), seed, trial_times_s=times, baseline_hz=before.float())
    return recording, 0.1 * F.softplus(argument)


def test_regression_finds_the_intercept_in_closed_form():
    counts = torch.poisson(torch.full((500, 3), 0.7), generator=torch.Generator().manual_seed(1))
    fit = poisson_regression(torch.ones(500, 1), counts, penalty=0.0, scale=0.5)
    mean = counts.double().mean(0)
    torch.testing.assert_close(0.5 * F.softplus(fit.coefficients[:, 0]), mean, rtol=1e-6, atol=1e-8)
    # Fisher information of a mean mu of N counts is N / mu; the chain rule brings it to the argument.
    slope = 0.5 * torch.sigmoid(fit.coefficients[:, 0])
    torch.testing.assert_close(fit.covariance[:, 0, 0], mean / (500 * slope**2), rtol=1e-5, atol=0)


def test_regression_gradient_vanishes_and_covariance_covers():
    generator = torch.Generator().manual_seed(2)
    design = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    truth = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    offset = 0.3 * torch.randn(4000, 200, generator=generator, dtype=torch.float64)
    counts = torch.poisson(0.4 * F.softplus(design @ truth.T + offset), generator=generator)
    fit = poisson_regression(design, counts, offset=offset, penalty=0.5, scale=0.4)
    w = fit.coefficients.clone().requires_grad_()
    rate = 0.4 * F.softplus(design @ w.T + offset)
    (rate - counts * rate.log()).sum().add(0.25 * (w**2).sum()).backward()
    assert w.grad.abs().max() < 1e-3 * len(design) ** 0.5
    standard = (fit.coefficients - truth) / torch.diagonal(fit.covariance, dim1=1, dim2=2).sqrt()
    assert 0.8 < float((standard**2).mean()) < 1.2  # 600 z-scores: sd of this mean .06


def test_regression_survives_a_silent_neuron():
    fit = poisson_regression(torch.ones(200, 1), torch.zeros(200, 2), penalty=1e-2, scale=0.1)
    assert torch.isfinite(fit.coefficients).all()
    assert (F.softplus(fit.coefficients) < 0.05).all()


def test_raised_cosines_sum_to_one():
    x = torch.linspace(-2, 5, 101)
    torch.testing.assert_close(raised_cosines(x, 7, -2.0, 5.0).sum(-1), torch.ones(101, dtype=torch.float64))


def test_constant_is_the_mean_rate():
    recording, _ = drifting(40, 20, 3)
    train = torch.arange(0, 40, 2)
    baseline = fit_baseline(recording, train, "constant")
    mean = recording.activity[train].mean((0, 1))
    torch.testing.assert_close(baseline.expected_counts()[0, 0], mean, rtol=0.01, atol=1e-4)
    torch.testing.assert_close(baseline.null_counts, mean, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("before_trials", [True, False])
def test_standard_recovers_drift_and_course_on_held_out_trials(before_trials):
    recording, truth = drifting()
    if not before_trials:
        recording = recording_of(truth, trial_times_s=recording.trial_times_s)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    train, test = order[:220], order[220:]
    baseline = fit_baseline(recording, train, "standard")
    guess = baseline.expected_counts().double()[test]
    unexplained = ((guess - truth[test]) ** 2).sum() / ((truth[test] - truth[train].mean((0, 1))) ** 2).sum()
    assert unexplained < (0.06 if before_trials else 0.12)


def test_baselines_see_training_trials_only():
    recording, _ = drifting(60, 20, 3)
    train = torch.arange(0, 60, 2)
    test = torch.arange(1, 60, 2)
    changed = recording.activity.clone()
    changed[test] = 5.0
    altered = recording.baseline_hz.clone()
    altered[test] = 99.0
    other = Recording(
        activity=changed, kind="spikes", lengths=recording.lengths, alpha=0.1, activation="softplus", bin_s=0.01,
        trial_times_s=recording.trial_times_s, baseline_hz=altered,
    )  # fmt: skip
    for kind in ("constant", "standard", "local"):
        a, b = (fit_baseline(r, train, kind).argument for r in (recording, other))
        torch.testing.assert_close(a, b)


def test_drift_is_the_baseline_without_the_course_that_trials_share():
    recording, train = drifting(60, 20, 3)[0], torch.arange(50)
    constant, standard = (fit_baseline(recording, train, kind) for kind in ("constant", "standard"))
    torch.testing.assert_close(constant.drift[:, None].expand_as(constant.argument), constant.argument)
    course = (standard.argument - standard.drift[:, None])[recording.lengths == recording.n_steps]
    torch.testing.assert_close(course, course[:1].expand_as(course), rtol=0, atol=1e-4)


def test_local_factor_leaves_the_trial_itself_out_and_follows_its_neighbours():
    recording, _ = drifting(60, 20, 3)
    train = torch.arange(60)
    counts = recording.activity.double().sum(1)
    predicted = counts.mean(0).expand(60, -1)
    before = local_factor(counts, predicted, train, 8.0, 40.0)
    more = counts.clone()
    more[30] += 100
    after = local_factor(more, predicted, train, 8.0, 40.0)
    torch.testing.assert_close(after[30], before[30])
    assert (after[29] > before[29] + 0.1).all()
    by_hand = sum(math.exp(-0.5 * ((30 - j) / 8) ** 2) * counts[j] for j in range(60) if j != 30) + 40
    expected = sum(math.exp(-0.5 * ((30 - j) / 8) ** 2) * predicted[j] for j in range(60) if j != 30) + 40
    torch.testing.assert_close(before[30], by_hand / expected)


@pytest.mark.parametrize("kind", ["standard", "local"])
def test_the_order_of_trials_in_the_file_changes_nothing(kind):
    recording, _ = drifting(60, 20, 3)
    train, order = torch.arange(0, 60, 2), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    plain = fit_baseline(recording, train, kind).argument
    places = torch.argsort(order)[train].sort().values
    shuffled = fit_baseline(recording.trials(order), places, kind).argument
    torch.testing.assert_close(shuffled, plain[order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "local"])
@pytest.mark.parametrize(("unit", "start"), [(1e3, 0.0), (1 / 3600, 0.0), (1.0, 1.6e9)])
def test_times_of_trials_in_any_unit_and_from_any_moment_give_one_baseline(kind, unit, start):
    """Milliseconds, hours, and seconds since 1970."""
    recording, _ = drifting(60, 20, 3)
    train = torch.arange(0, 60, 2)
    other = replace(recording, trial_times_s=unit * recording.trial_times_s + start)
    plain, moved = (fit_baseline(x, train, kind).argument for x in (recording, other))
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("times", [[3.0] * 60, [math.nan] + [1.0] * 59, [math.inf, *range(59)]])
def test_times_that_tell_no_drift_are_as_good_as_none(times):
    recording, _ = drifting(60, 20, 3)
    train = torch.arange(0, 60, 2)
    none = fit_baseline(replace(recording, trial_times_s=None), train)
    same = fit_baseline(replace(recording, trial_times_s=torch.tensor(times, dtype=torch.float64)), train)
    assert same.description == none.description
    assert torch.equal(same.argument, none.argument)
    # Training trials of one time among others of another: their mean is all that they tell.
    two = torch.zeros(60, dtype=torch.float64)
    two[1::2] = 9.0
    assert torch.isfinite(fit_baseline(replace(recording, trial_times_s=two), train, "standard").argument).all()


def test_local_catches_a_jump_that_drift_misses():
    trials, steps = 200, 50
    jump = torch.where((torch.arange(trials) // 25) % 2 == 0, 0.05, 0.35)
    truth = jump[:, None, None].expand(trials, steps, 3)
    recording = recording_of(truth, trial_times_s=torch.arange(trials) * 5.0)
    test = torch.arange(3, trials, 5)
    train = torch.tensor([i for i in range(trials) if i % 5 != 3])
    error = {}
    for kind in ("standard", "local"):
        guess = fit_baseline(recording, train, kind, n_drift=4).expected_counts()[test]
        error[kind] = float((guess - truth[test]).square().mean())
    assert error["local"] < 0.5 * error["standard"]


def test_without_trial_times_there_is_a_course_only_and_it_says_so():
    _, truth = drifting(80, 30, 3)
    recording = recording_of(truth)
    baseline = fit_baseline(recording, torch.arange(60), "local")
    assert baseline.kind == "standard"
    assert "drift" not in baseline.description
    assert baseline.description.startswith("standard (local needs the times of trials")
    assert fit_baseline(recording, torch.arange(60), "standard").description.startswith("standard: ")
    assert (baseline.argument[0] == baseline.argument[70]).all()


def test_ragged_trials_padding_changes_nothing():
    _, truth = drifting(80, 30, 3)
    lengths = torch.randint(10, 31, (80,), generator=torch.Generator().manual_seed(3))
    lengths[0] = 30
    recording = recording_of(truth, lengths=lengths, trial_times_s=torch.arange(80) * 5.0)
    longer = Recording(
        activity=F.pad(recording.activity, (0, 0, 0, 7)), kind="spikes", lengths=lengths, alpha=0.1,
        activation="softplus", bin_s=0.01, trial_times_s=recording.trial_times_s,
    )  # fmt: skip
    for kind in ("constant", "standard", "local"):
        a, b = (fit_baseline(r, torch.arange(60), kind).argument for r in (recording, longer))
        torch.testing.assert_close(a, b[:, :30])
        assert (b[~longer.mask] == 0).all()


def test_mistakes_are_named():
    recording, _ = drifting(20, 10, 2)
    with pytest.raises(UserError, match="a baseline among"):
        fit_baseline(recording, torch.arange(20), "nearby")
    silent = recording_of(torch.zeros(10, 10, 2))
    with pytest.raises(UserError, match="spikes in the training trials"):
        fit_baseline(silent, torch.arange(10))
    assert isinstance(fit_baseline(recording, torch.arange(20)), Baseline)
