"""Shares of variance explained: nothing is told of the trials scored but what was fitted before."""

import pytest
import torch
from draws import normal

from connector.analysis.explained import (
    by_chance,
    leading_axes,
    principal_components,
    rates_explained,
    variance_explained,
)
from connector.analysis.spike_nulls import gains_over_nulls
from connector.analysis.spike_scores import bits_per_spike, poisson_log_likelihood
from connector.data.folds import Fold
from connector.lrrnn.handover import FittedDynamics
from connector.report.cautions import of_signs
from connector.types import Latents, Loadings, Recording


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_mean_of_the_training_trials_explains_nothing_of_others(shift):
    observed, mean = normal(30, 4) + shift, normal(4, seed=1)
    assert variance_explained(observed, mean.expand(30, -1), mean) == 0
    assert variance_explained(observed, observed, mean) == 1
    assert variance_explained(observed, 2 * mean - observed, mean) == pytest.approx(-3)


def test_principal_components_of_a_plane_explain_it_and_nothing_beside():
    axes = torch.linalg.qr(normal(6, 6))[0]
    train = normal(400, 2, seed=1) @ axes[:2] * 3 + 0.7
    observed = normal(50, 2, seed=2) @ axes[:2]
    found = principal_components(train, observed + 0.7, 2)
    torch.testing.assert_close(found, observed + 0.7)
    beside = 0.7 + normal(50, 4, seed=3) @ axes[2:]
    torch.testing.assert_close(principal_components(train, beside, 2) - train.mean(0), (0.7 - train.mean(0)).expand(50, -1), atol=1e-9, rtol=0)  # fmt: skip


def test_chance_is_what_neurons_with_nothing_in_common_share():
    """Slow neurons share much of few samples by chance, white ones R / K."""
    white, slow, common = normal(2000, 20), normal(100, 20, seed=1).repeat_interleave(20, 0), normal(2000, 1, seed=2)
    for x in (white, slow):
        train, test = x[:1000], x[1000:]
        alone = variance_explained(test, principal_components(train, test, 2), train.mean(0))
        shared = test + common[1000:]
        together = variance_explained(shared, principal_components(train + common[:1000], shared, 2), train.mean(0))
        chance = by_chance(train, test, 2)
        assert alone < 1.2 * chance < 0.2
        assert together > 2 * by_chance(train + common[:1000], shared, 2)
    assert chance == pytest.approx(alone, rel=0.3)


def test_rates_are_scored_on_test_trials_about_the_mean_of_training_trials():
    """Trials that differ by offsets, as few trials do: about their own mean a fit that has nothing wrong looks useless."""
    z, offset = normal(6, 20, 1), 0.4 * normal(6, 1, 5, seed=1)
    m = normal(5, 1, seed=2)
    rates = torch.tanh(z @ m.T) + offset
    part = Fold(train=torch.arange(4), validation=torch.tensor([4]), test=torch.tensor([5]))
    inputs = FittedDynamics(Latents(z, torch.full((6,), 20), 0.1), Loadings(m), part, "tanh")
    found = rates_explained(inputs, rates)
    mean, test = rates[:4].mean((0, 1)), rates[5]
    by_hand = 1 - float((test - torch.tanh(z[5] @ m.T)).square().sum() / (test - mean).square().sum())
    assert found["lrrnn/rates_r2"] == pytest.approx(by_hand)
    own = 1 - float((test - torch.tanh(z[5] @ m.T)).square().sum() / (test - test.mean(0)).square().sum())
    assert found["lrrnn/rates_r2"] > own
    # The rates of other trials in the test trial's place change nothing but what is scored.
    assert rates_explained(inputs, rates[[0, 1, 2, 3, 4, 4]]) != found


def test_given_loadings_are_scored_beside_the_best_linear_reading_of_given_latents():
    z, m, u, b = normal(20, 15, 2), normal(30, 2, seed=1), normal(20, 15, 1, seed=2), normal(30, 1, seed=3)
    part = Fold(train=torch.arange(16), validation=torch.arange(16, 18), test=torch.arange(18, 20))
    rates = torch.tanh(z @ m.T + u @ b.T)
    found = {}
    for name, order, factor in (("right", torch.arange(30), 1), ("permuted", torch.arange(30).flip(0), 1), ("units", torch.arange(30), 5)):  # fmt: skip
        loadings = Loadings(factor * m[order], b[order])
        inputs = FittedDynamics(Latents(z, torch.full((20,), 15), 0.1, u), loadings, part, "tanh")
        found[name] = rates_explained(inputs, rates, given=True)
    assert found["right"]["lrrnn/rates_r2"] == pytest.approx(1)
    reading = found["right"]["lrrnn/rates_r2_linear"]  # it knows the inputs, as principal components of rank 2 do not
    assert found["right"]["lrrnn/rates_r2_pca"] < reading < 1
    for name in ("permuted", "units"):
        assert found[name]["lrrnn/rates_r2_linear"] == pytest.approx(reading)
        assert len(of_signs(found[name])) == 1
    assert of_signs(found["right"]) == []
    assert "lrrnn/rates_r2_linear" not in rates_explained(inputs, rates)


def test_gains_are_over_the_best_null_with_their_standard_error():
    generator = torch.Generator().manual_seed(0)
    rate = 0.2 + torch.rand(300, 1, 4, generator=generator).expand(-1, 10, -1)
    counts = torch.poisson(rate, generator=generator)
    recording = Recording(counts, "spikes", torch.full((300,), 10), 0.1, "softplus", bin_s=0.01)
    mask, mean = recording.mask, counts.mean((0, 1))
    nats = {name: poisson_log_likelihood(x, counts, mask) for name, x in (("a", rate), ("b", mean), ("c", 1.3 * mean))}
    test = torch.arange(300)
    nulls = {"drift_psth": 2 * mean.expand_as(counts)}  # worse than the mean rate
    found = gains_over_nulls(nats, recording, test, nulls, mean)
    assert found["a_gain"] == pytest.approx(bits_per_spike(nats["a"], counts, mask, mean), rel=1e-6)
    assert found["a_gain"] > 5 * found["a_gain_error"]
    assert found["b_gain"] == found["b_gain_error"] == 0
    assert found["c_gain"] < -2 * found["c_gain_error"]
    assert gains_over_nulls(nats, recording, test, {"drift_psth": rate}, mean)["a_gain"] == 0
    # the error is that of a sum over trials: over samples of 300 of these trials the gain varies by as much
    draws = torch.randint(300, (400, 300), generator=generator)
    gains = ((nats["a"] - nats["b"])[draws].sum(1) / (counts.sum() * 0.6931)).std()
    assert found["a_gain_error"] == pytest.approx(float(gains), rel=0.15)


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_the_leading_axes_are_those_of_the_whole_covariance(noise):
    x = normal(800, 3) @ normal(3, 150, seed=1) + noise * normal(800, 150, seed=2)
    axes, whole = leading_axes(x, 2), torch.linalg.eigh(x.T @ x).eigenvectors[:, -2:]
    assert (axes @ axes.T - whole @ whole.T).abs().max() < 1e-6
    assert (x @ axes).square().sum() == pytest.approx(float((x @ whole).square().sum()), rel=1e-11)
    assert leading_axes(torch.zeros(5, 150, dtype=torch.float64), 2).shape == (150, 2)
