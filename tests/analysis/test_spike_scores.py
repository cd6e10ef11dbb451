"""Measures of spike models against analytic values and hand cases."""

import math

import pytest
import torch

from connector.analysis.spike_scores import (
    auc,
    bits_per_spike,
    choice_log_odds,
    fit_choice_axis,
    poisson_log_likelihood,
    psth_r2,
    psths,
    sign_conditions,
    smooth_causal,
)
from connector.errors import UserError


def test_bits_of_the_true_rates_equal_the_analytic_value():
    """E[bits] = sum rate log2(rate / mean) / sum rate for a mean-rate null."""
    generator = torch.Generator().manual_seed(0)
    rate = torch.exp(0.7 * torch.randn(200, 100, 5, generator=generator) - 1.5)
    counts = torch.poisson(rate, generator=generator)
    mask = torch.ones(200, 100, dtype=torch.bool)
    null = rate.mean((0, 1))
    analytic = float((rate * torch.log2(rate / null)).sum() / rate.sum())
    measured = bits_per_spike(poisson_log_likelihood(rate, counts, mask), counts, mask, null)
    assert measured == pytest.approx(analytic, rel=0.02)  # about 28 000 spikes
    assert bits_per_spike(poisson_log_likelihood(null, counts, mask), counts, mask, null) == 0


def test_log_likelihood_agrees_with_torch_distributions():
    rate = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(1)) + 0.1
    counts = torch.randint(0, 4, (3, 4, 2), generator=torch.Generator().manual_seed(2)).float()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    known = torch.distributions.Poisson(rate).log_prob(counts) + torch.lgamma(counts + 1)
    expected = (known * mask[..., None]).sum((1, 2))
    torch.testing.assert_close(poisson_log_likelihood(rate, counts, mask).float(), expected)


def test_padding_changes_nothing():
    generator = torch.Generator().manual_seed(3)
    counts = torch.poisson(torch.full((20, 30, 3), 0.5), generator=generator)
    guess = 0.1 + torch.rand(20, 30, 3, generator=generator)
    lengths = torch.randint(5, 31, (20,), generator=generator)
    mask = torch.arange(30) < lengths[:, None]
    dirty_counts = torch.cat([torch.where(mask[..., None], counts, 7.0), torch.full((20, 9, 3), 9.0)], 1)
    dirty_guess = torch.cat([torch.where(mask[..., None], guess, 0.0), torch.full((20, 9, 3), torch.nan)], 1)
    dirty_mask = torch.arange(39) < lengths[:, None]
    conditions = torch.arange(20) % 2
    null = torch.full((3,), 0.5)
    clean = poisson_log_likelihood(guess, counts, mask)
    dirty = poisson_log_likelihood(dirty_guess, dirty_counts, dirty_mask)
    torch.testing.assert_close(clean, dirty)
    assert bits_per_spike(clean, counts, mask, null) == pytest.approx(
        bits_per_spike(dirty, dirty_counts, dirty_mask, null)
    )
    a = psth_r2(counts, guess, mask, conditions, counts.mean((0, 1)))[0]
    b = psth_r2(dirty_counts, dirty_guess, dirty_mask, conditions, counts.mean((0, 1)))[0]
    assert a == pytest.approx(b, abs=1e-9)


def test_causal_smoothing_keeps_constants_and_never_looks_ahead():
    x = torch.full((1, 20, 1), 3.0)
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[0, 5:8] = False
    x[0, 5:8] = 1e6
    torch.testing.assert_close(smooth_causal(x, valid, 4.0), torch.full((1, 20, 1), 3.0, dtype=torch.float64))
    impulse = torch.zeros(1, 20, 1)
    impulse[0, 10] = 1.0
    out = smooth_causal(impulse, torch.ones(1, 20, dtype=torch.bool), 4.0)[0, :, 0]
    assert (out[:10] == 0).all()
    kernel = torch.exp(-0.5 * (torch.arange(20.0).double() / 4) ** 2)
    torch.testing.assert_close(out[12], kernel[2] / kernel[:13].sum())


def test_psth_r2_by_hand():
    generator = torch.Generator().manual_seed(4)
    counts = torch.poisson(torch.rand(40, 15, 4, generator=generator), generator=generator)
    mask = torch.ones(40, 15, dtype=torch.bool)
    conditions = torch.arange(40) % 2
    truth, _, _ = psths(counts, mask, conditions)
    mean = truth.mean((0, 1))
    median, each = psth_r2(counts, counts, mask, conditions, mean)
    assert median == 1
    assert (each == 1).all()
    # The mean of other trials explains nothing, however far these are from it.
    for known in (mean, mean + 0.3):
        flat = psth_r2(counts, known.expand(40, 15, -1), mask, conditions, known)[1]
        torch.testing.assert_close(flat, torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0)
    # An error added to all bins alike costs its square over the variance.
    shifted = psth_r2(counts, counts + 0.1, mask, conditions, mean)[1]
    variance = ((truth - mean) ** 2).mean((0, 1))
    torch.testing.assert_close(shifted, 1 - 0.01 / variance, rtol=1e-5, atol=1e-6)


def test_psths_average_trials_that_still_last_and_skip_those_left_out():
    counts = torch.zeros(4, 3, 1)
    counts[0], counts[1], counts[2], counts[3] = 1.0, 3.0, 5.0, 100.0
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    mean, trials, valid = psths(counts, mask, torch.tensor([0, 0, 1, -1]), smooth_sd_bins=1e-3)
    assert mean[0, :, 0].tolist() == [2, 2, 1]
    assert mean[1, :, 0].tolist() == [5, 5, 5]
    assert trials.tolist() == [[2, 2, 1], [1, 1, 1]]
    assert valid.all()


def test_auc_by_hand_with_ties_and_missing_choices():
    labels = torch.tensor([0, 0, 1, 1, torch.nan])
    assert auc(torch.tensor([1.0, 2.0, 3.0, 4.0, -9.0]), labels) == 1.0
    assert auc(torch.tensor([4.0, 3.0, 2.0, 1.0, 9.0]), labels) == 0.0
    assert auc(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0]), labels) == 0.5
    assert auc(torch.tensor([1.0, 2.0, 2.0, 3.0, 0.0]), labels) == 3.5 / 4
    with pytest.raises(UserError, match="both choices"):
        auc(torch.ones(3), torch.ones(3))


def test_choice_axis_of_gaussian_classes_reaches_the_analytic_auc():
    generator = torch.Generator().manual_seed(5)
    labels = (torch.rand(6000, generator=generator) < 0.5).float()
    direction = torch.tensor([1.0, -0.5])
    states = torch.randn(6000, 2, generator=generator) * torch.tensor([1.0, 3.0]) + labels[:, None] * direction
    separation = math.sqrt(1.0**2 + (0.5 / 3) ** 2)
    analytic = 0.5 * (1 + math.erf(separation / math.sqrt(2) / math.sqrt(2)))
    log_odds = choice_log_odds(states[:3000], labels[:3000], states[3000:])
    assert auc(log_odds, labels[3000:]) == pytest.approx(analytic, abs=0.02)
    axis, _ = fit_choice_axis(states, labels)
    assert float(axis[1] / axis[0]) == pytest.approx(-0.5 / 9, abs=0.03)


def test_a_separable_choice_has_a_finite_axis():
    states = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    assert torch.isfinite(fit_choice_axis(states, torch.tensor([0.0, 0, 1, 1]))[0]).all()


def test_sign_conditions_leave_out_zero_and_nan():
    assert sign_conditions(torch.tensor([-2.0, 0.0, 3.0, torch.nan])).tolist() == [0, -1, 1, -1]
