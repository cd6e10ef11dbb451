"""Nulls of spike counts against planted drifts and courses, and against what they may not see."""

import math
from dataclasses import replace

import pytest
import torch

from connector.analysis.spike_nulls import NULLS, fit_course, null_bits, null_counts
from connector.analysis.spike_scores import bits_per_spike, poisson_log_likelihood
from connector.types import Recording

TRAIN, TEST = torch.arange(0, 600, 2), torch.arange(1, 600, 2)


def planted(evidence_gain, trials=600, steps=60, neurons=8, seed=0, ragged=True):
    """Counts whose rates are drift x course x course by evidence, exactly what the largest null can say; and the rates."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 3600, trials, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(neurons, generator=generator, dtype=torch.float64)
    drift = 0.2 * (1 + 0.5 * torch.sin(times[:, None] / 900 + phase))
    t = torch.arange(steps, dtype=torch.float64)
    course = torch.exp(0.6 * torch.sin(t[:, None] / 15 + phase))
    evidence = torch.randint(0, 2, (trials,), generator=generator) * 2.0 - 1.0
    evidence[:40] = 0.0
    ramp = torch.exp(evidence_gain * (t / steps)[:, None] * torch.cos(phase))  # (time, K)
    sided = torch.where(evidence[:, None, None] > 0, ramp, 1 / ramp)
    rate = drift[:, None] * course * torch.where(evidence[:, None, None] == 0, 1.0, sided)
    lengths = torch.randint(30, steps + 1, (trials,), generator=generator) if ragged else torch.full((trials,), steps)
    counts = torch.poisson(rate.float(), generator=generator) * (t < lengths[:, None])[..., None]
    recording = Recording(
        activity=counts, kind="spikes", lengths=lengths, alpha=0.1, activation="softplus", bin_s=0.01,
        trial_times_s=times, evidence=evidence,
    )  # fmt: skip
    return recording, rate


def bits(recording, expected):
    return null_bits(recording, TEST, expected, recording.activity[TRAIN].sum((0, 1)) / recording.mask[TRAIN].sum())


@pytest.mark.parametrize("kind", ["standard", "local"])
def test_each_null_reaches_the_true_rates_that_it_can_say_and_no_more(kind):
    recording, rate = planted(0.8)
    found = {name: bits(recording, x) for name, x in null_counts(recording, TRAIN, kind).items()}
    assert set(found) == set(NULLS)
    best = bits(recording, rate)  # no model beats the true rates but by chance
    assert 0.01 < found["drift"] < found["drift_psth"] - 0.02 < found["drift_evidence_psth"] - 0.04
    assert found["drift_evidence_psth"] == pytest.approx(best, abs=0.08 * best)
    assert found["drift_evidence_psth"] < best
    # Drift alone: what the truth says of a trial when the course is averaged out.
    flat = rate.mean(1, keepdim=True).expand_as(rate)
    assert found["drift"] <= bits(recording, flat)


def test_evidence_without_effect_gains_nothing():
    recording, _ = planted(0.0)
    found = {name: bits(recording, x) for name, x in null_counts(recording, TRAIN, "standard").items()}
    assert found["drift_evidence_psth"] == pytest.approx(found["drift_psth"], abs=1e-3)


def test_a_planted_course_is_found_and_noise_is_smoothed_away():
    generator = torch.Generator().manual_seed(1)
    expected = torch.full((400, 50, 3), 0.3, dtype=torch.float64)
    t = torch.arange(50, dtype=torch.float64)
    truth = torch.stack([torch.exp(torch.sin(t / 8)), torch.ones(50).double(), torch.exp(-t / 30)], 1)
    counts = torch.poisson((expected * truth).float(), generator=generator).double()
    groups = torch.arange(400) % 2
    factor = fit_course(counts, expected, groups, 2)
    raw = torch.stack([counts[groups == g].mean(0) / 0.3 for g in (0, 1)])
    assert (factor - truth).square().mean() < 0.4 * (raw - truth).square().mean()
    noise = torch.poisson(expected.float(), generator=generator).double()
    assert (fit_course(noise, expected, groups, 2) - 1).abs().max() < 0.12  # the raw ratio has an sd of .13
    left_out = torch.where(groups == 1, -1, groups)
    torch.testing.assert_close(
        fit_course(counts, expected, left_out, 1), fit_course(torch.where(groups[:, None, None] == 1, 99.0, counts), expected, left_out, 1)
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["standard", "local"])
def test_nulls_see_training_trials_only(kind):
    recording, _ = planted(0.5)
    changed = recording.activity.clone()
    changed[TEST] = 4.0 * recording.mask[TEST][..., None]
    before, after = (null_counts(r, TRAIN, kind) for r in (recording, replace(recording, activity=changed)))
    for name in NULLS:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


def test_local_nulls_follow_what_drift_misses():
    recording, rate = planted(0.0)
    jump = torch.where((torch.arange(600) // 30) % 2 == 0, 0.5, 1.5)[:, None, None]
    counts = torch.poisson((rate * jump).float(), generator=torch.Generator().manual_seed(2))
    recording = replace(recording, activity=counts * recording.mask[..., None])
    found = {kind: null_counts(recording, TRAIN, kind) for kind in ("standard", "local")}
    for name in NULLS:
        assert bits(recording, found["local"][name]) > bits(recording, found["standard"][name]) + 0.02


def test_what_a_recording_lacks_is_left_out():
    recording, _ = planted(0.5)
    bare = replace(recording, trial_times_s=None, evidence=None)
    assert set(null_counts(bare, TRAIN, "local")) == {"drift_psth"}
    one_sided = replace(recording, evidence=recording.evidence.abs())
    assert set(null_counts(one_sided, TRAIN)) == {"drift", "drift_psth"}
    # Trials without evidence are predicted by the course of all trials.
    found = null_counts(recording, TRAIN, "standard")
    torch.testing.assert_close(found["drift_evidence_psth"][:40], found["drift_psth"][:40])
    assert (found["drift_evidence_psth"][40:] - found["drift_psth"][40:]).abs().max() > 0.02


def test_padding_changes_nothing():
    recording, _ = planted(0.5)
    longer = replace(recording, activity=torch.nn.functional.pad(recording.activity, (0, 0, 0, 9)))
    for kind in ("standard", "local"):
        a, b = (null_counts(r, TRAIN, kind) for r in (recording, longer))
        for name in NULLS:
            torch.testing.assert_close(b[name][:, :60], a[name])


def test_bits_are_over_the_mean_rate():
    recording, rate = planted(0.3)
    mean = recording.activity[TRAIN].sum((0, 1)) / recording.mask[TRAIN].sum()
    assert null_bits(recording, TEST, mean.expand_as(rate), mean) == 0
    counts, mask = recording.activity[TEST], recording.mask[TEST]
    by_hand = bits_per_spike(poisson_log_likelihood(rate[TEST], counts, mask), counts, mask, mean)
    assert null_bits(recording, TEST, rate, mean) == by_hand
