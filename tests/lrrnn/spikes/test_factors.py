"""Factors of counts: those that made them, and what is invariant."""

import pytest
import torch
from torch.nn.functional import softplus

from connector.lrrnn.spikes.baselines import fit_baseline, poisson_regression
from connector.lrrnn.spikes.factors import CountBlocks, factors_of, fit_factors, held_out_loss
from connector.types import Recording

K, TRIALS, STEPS, WIDTH = 30, 60, 20, 5


@pytest.fixture(scope="module")
def made():
    """Blocks of counts, and the factors (S, 2) and loadings (K, 2) that made them."""
    g = torch.Generator().manual_seed(0)
    x, m = torch.randn(TRIALS, STEPS // WIDTH, 2, generator=g).double(), torch.randn(K, 2, generator=g).double()
    u = torch.randn(TRIALS, STEPS, 1, generator=g).double()
    potential = x.repeat_interleave(WIDTH, 1) @ m.T + 0.5 * u + 1.0
    counts = torch.poisson((2 * softplus(potential)).float(), generator=g)
    lengths = torch.full((TRIALS,), STEPS)
    recording = Recording(counts, "spikes", lengths, 0.2, "softplus", inputs=u.float())
    blocks = CountBlocks.of(recording, fit_baseline(recording, torch.arange(TRIALS), "constant"), WIDTH)
    return recording, blocks, x.reshape(-1, 2), m


def test_blocks_hold_all_spikes_and_none_of_what_was_not_recorded(made):
    recording, blocks, *_ = made
    assert torch.equal(blocks.counts.sum(0), recording.activity.double().sum((0, 1)))
    short = Recording(recording.activity[:, :13], "spikes", torch.full((TRIALS,), 13), 0.2, "softplus")
    part = CountBlocks.of(short, fit_baseline(short, torch.arange(TRIALS), "constant"), WIDTH)
    assert len(part.counts) == 2 * TRIALS
    assert torch.equal(part.counts, blocks.counts.view(TRIALS, 4, K)[:, :2].reshape(-1, K))


def test_factors_and_loadings_that_made_the_counts_are_found(made):
    _, blocks, x, m = made
    theta = fit_factors(blocks, 2)
    found = factors_of(blocks, theta)
    for estimate, truth in ((found, x), (theta[:, :2], m)):
        design = torch.cat([estimate, torch.ones(len(estimate), 1).double()], 1)
        left = truth - design @ torch.linalg.lstsq(design, truth).solution
        assert float(left.square().sum() / truth.square().sum()) < 0.05


def test_without_factors_it_is_a_poisson_regression(made):
    _, blocks, *_ = made
    direct = poisson_regression(blocks.known, blocks.counts, offset=blocks.offset, penalty=0.01, scale=blocks.scale)
    assert torch.allclose(fit_factors(blocks, 0), direct.coefficients)


def test_held_out_neurons_are_foretold_best_with_as_many_factors_as_there_are(made):
    _, blocks, *_ = made
    train, held = (blocks.take(torch.arange(a, b), 10**6) for a, b in ((0, 40), (40, 60)))
    loss = [float(held_out_loss(held, fit_factors(train, rank)).mean()) for rank in range(5)]
    assert min(range(5), key=loss.__getitem__) == 2
    order = torch.randperm(K // 2, generator=torch.Generator().manual_seed(1)) * 2  # halves stay what they are
    order = torch.stack([order, order + 1], 1).reshape(-1)
    moved = held_out_loss(held.neurons(order), fit_factors(train.neurons(order), 2)).mean()
    assert float(moved) == pytest.approx(loss[2], rel=1e-6)
