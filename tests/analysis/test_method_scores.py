"""Scores of any method: identities, known linear maps, attractors planted by hand."""

import math

import pytest
import torch

from connector.analysis.method_scores import (
    Settling,
    cycle_consistency,
    interval_coverage,
    match,
    rate_r2,
    state_r2,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rates_predicted_exactly_have_one_and_the_training_mean_has_zero():
    rates = normal(5, 7, 3)
    mean = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    assert rate_r2(rates, rates, mean) == 1
    assert rate_r2(rates, mean.expand_as(rates), mean) == pytest.approx(0)
    # half of each deviation missed: a quarter of the variance is left
    assert rate_r2(rates, mean + (rates - mean) / 2, mean) == pytest.approx(0.75)


def test_predictions_that_run_away_are_scored():
    rates = normal(2, 3, 4)
    assert rate_r2(rates, torch.full_like(rates, math.inf), torch.zeros(4)) < -1e6


def test_states_that_are_an_affine_image_of_the_true_ones_have_one_in_any_coordinates():
    true = normal(40, 10, 3), normal(10, 10, 3, seed=1)
    matrix, shift = normal(3, 2, seed=2), normal(2, seed=3)
    states = tuple(x @ matrix + shift for x in true)
    assert state_r2(true, states) == pytest.approx(1)
    turned = tuple(x @ torch.diag(torch.tensor([1e3, 1.0], dtype=torch.float64)) - 5 for x in states)
    assert state_r2(true, turned) == pytest.approx(1)


def test_a_state_of_its_own_takes_its_share_whatever_its_size():
    true = normal(400, 10, 2), normal(100, 10, 2, seed=1)
    own = normal(400, 10, 1, seed=2), normal(100, 10, 1, seed=3)
    for size in (1.0, 1e-3):
        states = tuple(torch.cat([x, size * y], -1) for x, y in zip(true, own))
        assert state_r2(true, states) == pytest.approx(2 / 3, abs=0.01)


def test_states_are_read_back_as_far_as_the_rates_show_them():
    states = normal(200, 10, 2), normal(50, 10, 2, seed=1)
    readout = torch.linalg.qr(normal(20, 2, seed=2))[0].T
    rates = tuple(z @ readout for z in states)
    # noise in each rate: 5 % of the rms sd of the rates, which is (2 / 20)^.5; along each state the same
    left = 1 / (1 + 0.05**2 * 2 / 20)
    assert cycle_consistency(states, rates) == pytest.approx(left, abs=1e-4)
    hidden = tuple(z[..., :1] @ readout[:1] for z in states)  # rates that show the first state only
    assert cycle_consistency(states, hidden) == pytest.approx(0.5, abs=0.01)


def settling(points, slowest=None, **orbit):
    points = torch.tensor(points, dtype=torch.float64).reshape(-1, 4)
    return Settling("mixed", points, torch.tensor(slowest or [1.0] * len(points), dtype=torch.float64), **orbit)


CORNERS = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]


def test_points_planted_by_hand_are_found_and_others_are_false():
    true = settling(CORNERS, [2.0, 4.0, 8.0])
    assert match(true, true, 1.0) == (same := match(true, settling(CORNERS[::-1], [8.0, 4.0, 2.0]), 1.0))
    assert (same.true, same.found, same.false, same.errors) == (3, 3, 0, (0.0, 0.0, 0.0))
    near = [[1.1, 0, 0, 0], [0, 0.5, 0.5, 0]]  # .1 of a distance of root two; halfway between two
    found = match(true, settling(near, [4.0, 1.0]), 1.0)
    assert (found.true, found.found, found.false) == (3, 1, 1)
    assert found.errors == pytest.approx((math.log(2),))
    twice = match(true, settling([CORNERS[0], [1.01, 0, 0, 0]]), 1.0)
    assert (twice.found, twice.false) == (1, 1)


def test_a_lone_point_is_found_within_half_a_standard_deviation():
    true = settling([[0.0, 0, 0, 0]])
    assert match(true, settling([[0.4, 0.4, 0.4, 0.4]]), 1.0).found == 1
    assert match(true, settling([[0.6, 0.6, 0.6, 0.6]]), 1.0).found == 0
    assert match(true, settling([]), 1.0) == match(true, settling([], []), 1.0)


def circle(radius, n=40):
    angle = torch.arange(n, dtype=torch.float64) / n * 2 * torch.pi
    return torch.stack([radius * angle.cos(), radius * angle.sin(), 0 * angle, 0 * angle], 1)


def test_cycles_are_told_apart_by_their_period_and_rings_by_their_radius():
    cycle = settling([], orbit=circle(1.0), period=10.0)
    found = match(cycle, settling([], orbit=circle(1.0), period=11.0), 1.0)
    assert (found.true, found.found, found.false) == (1, 1, 0)
    assert found.errors == pytest.approx((math.log(1.1),))
    other = match(cycle, settling([], orbit=circle(1.0), period=14.0), 1.0)
    assert (other.found, other.false) == (0, 1)
    ring = settling([], orbit=circle(1.0))
    assert match(ring, settling([], orbit=circle(1.1)), 1.0).found == 1
    assert match(ring, settling([], orbit=circle(2.0)), 1.0).found == 0
    assert match(ring, cycle, 1.0).found == 0
    alone = match(settling([[0.0, 0, 0, 0]]), cycle, 1.0)
    assert (alone.true, alone.found, alone.false) == (1, 0, 1)


def test_coverage_counts_what_lies_inside():
    nu = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert interval_coverage(nu - 1, nu + 1, nu) == 1
    assert interval_coverage(nu - 1, torch.tensor([[1.0, 0.5], [1.5, 4.0]]), nu) == 0.5
