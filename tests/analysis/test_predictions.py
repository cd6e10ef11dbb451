"""Predictions against closed-form and known cases: pure decay, bistable and single-point systems, an honest null."""

import math
from dataclasses import replace

import pytest
import torch
from draws import normal

from connector.analysis import predictions
from connector.analysis.attractors import find_attractors
from connector.analysis.cell_types import CellTypes
from connector.analysis.fields import contributions, normalised_difference
from connector.analysis.predictions import NO_EFFECT, ChoiceReadout, Effect, Readouts, Trials
from connector.data.attractors import teacher
from connector.dynamics import Network, simulate
from connector.errors import UserError
from connector.types import Loadings


def leaky(k=40, seed=0):
    """A network with inputs and biases whose drive is small: it follows its inputs and forgets them."""
    return Network(m=normal(k, 2, seed=seed), n=normal(k, 2, seed=seed + 1), b=normal(k, 2, seed=seed + 2),
                   d=normal(k, seed=seed + 3), alpha=0.1, activation="softplus")  # fmt: skip


@pytest.fixture(scope="module")
def trials():
    lengths = torch.randint(10, 21, (30,), generator=torch.Generator().manual_seed(5))
    clicks = (torch.rand(30, 20, 2, generator=torch.Generator().manual_seed(6)) < 0.3).double()
    return Trials(torch.tensor([0.5, -0.3]), clicks, lengths, normal(30, seed=7))


@pytest.fixture(scope="module")
def readouts():
    return Readouts(ChoiceReadout(torch.tensor([2.0, -1.0]).double(), 0.1), Loadings(normal(6, 2, seed=8), None, normal(6, seed=9)),
                    scale_hz=10.0)  # fmt: skip


def test_silencing_nothing_changes_nothing(trials, readouts):
    intact = predictions.respond(leaky(), trials, readouts)
    same = predictions.respond(leaky().silence(torch.zeros(40, dtype=torch.bool)), trials, readouts)
    assert predictions.effect(intact, same, trials) == pytest.approx(NO_EFFECT)


def test_silencing_all_leaves_pure_decay(trials, readouts):
    silent = leaky().silence(torch.ones(40, dtype=torch.bool))
    found = predictions.respond(silent, trials, readouts)
    decay = 0.9 ** torch.arange(found.z.shape[1]).double()
    torch.testing.assert_close(found.z, (decay[:, None] * trials.start).expand_as(found.z), rtol=1e-6, atol=1e-9)
    expected = readouts.choice(trials.start * 0.9 ** (trials.lengths - 1)[:, None].double())
    torch.testing.assert_close(found.right, expected, rtol=1e-5, atol=1e-7)
    # nothing tells the sides apart any more, but that their trials have other lengths
    assert predictions.effect(predictions.respond(leaky(), trials, readouts), found, trials).outside == 0
    same = replace(trials, lengths=torch.full_like(trials.lengths, 20))
    both = [predictions.respond(net, same, readouts) for net in (leaky(), silent)]
    torch.testing.assert_close(both[1].psths[0], both[1].psths[1])
    assert predictions.effect(*both, same).selectivity == pytest.approx(0, abs=1e-9)


def test_psths_are_rates_of_the_states_in_hz(trials, readouts):
    still = replace(trials, start=torch.zeros(2))
    found = predictions.respond(leaky().silence(torch.ones(40, dtype=torch.bool)), still, readouts)
    expected = 10 * torch.nn.functional.softplus(readouts.loadings.d)
    torch.testing.assert_close(found.psths, expected.expand_as(found.psths))
    moved = replace(readouts, loadings=replace(readouts.loadings, d=readouts.loadings.d + 1))
    other = predictions.respond(leaky().silence(torch.ones(40, dtype=torch.bool)), still, moved)
    step = 10 * torch.nn.functional.softplus(readouts.loadings.d + 1) - expected
    assert predictions.effect(found, other, still).rate_hz == pytest.approx(float(step.square().mean().sqrt()))


def test_a_network_without_bounds_is_said_to_leave(trials, readouts):
    wild = replace(leaky(), n=3000 * leaky().m.abs())
    found = predictions.respond(wild, trials, readouts)
    assert torch.isfinite(found.psths).all()
    assert predictions.effect(predictions.respond(leaky(), trials, readouts), found, trials).outside == 1


def test_states_inside_a_ring_that_trials_run_on_have_left_it(trials, readouts):
    angle = torch.linspace(0, 6.2, 30, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1).expand(len(trials.lengths), -1, -1)
    found = predictions.respond(leaky(), trials, readouts)
    lengths = torch.full((len(ring),), 30)
    intact, still = found._replace(z=ring), found._replace(z=0 * ring)
    assert predictions.effect(intact, intact, replace(trials, lengths=lengths)).outside == 0
    assert predictions.effect(intact, still, replace(trials, lengths=lengths)).outside == 1


def test_the_choice_readout_is_calibrated():
    ends = normal(4000, 2)
    truth = ChoiceReadout(torch.tensor([1.5, -0.5]).double(), 0.7)
    choices = torch.bernoulli(truth(ends), generator=torch.Generator().manual_seed(1))
    choices[:5] = torch.nan
    found = ChoiceReadout.fit(ends, choices)
    torch.testing.assert_close(found.axis, truth.axis, rtol=0.1, atol=0.1)
    assert found.offset == pytest.approx(0.7, abs=0.1)
    assert float(found(ends[5:]).mean()) == pytest.approx(float(choices[5:].mean()), abs=1e-6)


def test_sides_of_the_evidence():
    trials = Trials(torch.zeros(1), None, torch.full((4,), 2), torch.tensor([-3.0, 0.0, 2.0, torch.nan]))
    assert trials.sides.tolist() == [0, -1, 1, -1]


@pytest.mark.slow
@pytest.mark.parametrize(("repeats", "band"), [(3, 0.35), pytest.param(12, 0.25, marks=pytest.mark.slow)])
def test_random_labels_are_not_called_robust(trials, readouts, repeats, band):
    """Types that are random groups: p-values spread over (0, 1), and their effects lie in the null's band."""
    p_values, robust = [], 0
    for repeat in range(repeats):
        effects, random = [], []
        for i in range(6):
            labels = torch.randint(2, (40,), generator=torch.Generator().manual_seed(100 * repeat + i))
            found = predictions.silencing_effects(leaky(seed=10 * i), labels, trials, readouts, 12, seed=repeat)
            effects.append(found.types[0])
            random.append(found.random[0])
            assert int(found.sizes.sum()) == 40
        for column, name in enumerate(("right", "correct")):
            one = predictions.predict(torch.stack(effects)[:, column], torch.stack(random)[..., column])
            assert Effect._fields[column] == name
            p_values.append(one.p_value)
            robust += one.robust
    assert robust <= 2
    assert abs(sum(p_values) / len(p_values) - 0.5) < band


def test_a_group_that_carries_the_choice_is_found(trials, readouts):
    """Neurons 0..9 alone are driven by the inputs and drive the choice; silencing them differs from silencing any ten."""
    effects, random = [], []
    for i in range(5):
        net = leaky(k=60, seed=10 * i)
        n = 0.05 * net.n
        n[:10] = torch.tensor([40.0, -20.0]).double()
        labels = (torch.arange(60) >= 10).long()
        found = predictions.silencing_effects(replace(net, n=n), labels, trials, readouts, 15, seed=i)
        effects.append(found.types[0])
        random.append(found.random[0])
    column = Effect._fields.index("right")
    one = predictions.predict(torch.stack(effects)[:, column], torch.stack(random)[..., column])
    assert one.robust
    assert one.value < one.null_low <= one.null_high


def test_predictions_of_given_effects():
    random = normal(20, 30)
    far = predictions.predict(torch.full((20,), 5.0) + 0.1 * normal(20, seed=1), random)
    assert far.robust
    assert far.p_value < 0.01
    assert far.null_low < 0 < far.null_high
    split = predictions.predict(torch.tensor([-5.0, 5.0] * 10), random)
    assert not split.one_sign
    assert not split.robust
    left = predictions.predict(
        torch.full((20,), 5.0) + 0.1 * normal(20, seed=1), random, outside=torch.full((20,), 0.2)
    )
    assert left.one_sign
    assert not left.robust
    assert not left.beyond_random
    kept = predictions.predict(torch.full((20,), 1.0), 1 + random, no_effect=1.0)
    assert not kept.one_sign


# --- after the trials ---


def test_separation_tells_a_bistable_from_a_single_point_system():
    bistable = teacher("bistable")
    ends = normal(60, 2)
    points = find_attractors(bistable.vector_field, alpha=0.1).points.double()
    reached = simulate(lambda z, _: z + 0.1 * bistable.vector_field(z), ends, 3000)[:, -1].double()
    choices = torch.cdist(reached, points).argmin(1).double()
    # Two attractors: in the end each side sits on its own.
    kept = predictions.separation(lambda z: z + 0.1 * bistable.vector_field(z), ends, choices, 3000)
    start = (ends[choices == 1].mean(0) - ends[choices == 0].mean(0)).norm()
    assert kept[0] == 1
    assert float(kept[-1]) == pytest.approx(float((points[1] - points[0]).norm() / start), rel=1e-3)
    assert kept[200:].min() > 0.5
    # A single point: the distance decays as exp(-t / tau_slow), in closed form.
    slow = predictions.separation(lambda z: z * (1 - 0.1 / 14), ends, choices, 201)
    assert float(slow[-1]) == pytest.approx((1 - 0.1 / 14) ** 200)
    with pytest.raises(UserError, match="both choices"):
        predictions.separation(lambda z: z, ends, torch.ones(60), 3)


def test_separation_of_a_spiral_point_does_not_see_the_turning():
    turn = torch.tensor([[math.cos(0.1), -math.sin(0.1)], [math.sin(0.1), math.cos(0.1)]], dtype=torch.float64)
    found = predictions.separation(lambda z: 0.98 * z @ turn.T, normal(50, 2), (torch.arange(50) % 2).double(), 50)
    torch.testing.assert_close(found, 0.98 ** torch.arange(50).double())


def test_decay_times():
    eigenvalues = torch.tensor([[-0.5 + 0.3j, -0.5 - 0.3j], [-2.0 + 0j, -0.1 + 0j], [0.1 + 0j, -1 + 0j]])
    assert predictions.decay_times(eigenvalues, 0.1).tolist() == pytest.approx([0.2, 1.0, math.inf])


def test_stable_points_of_a_known_system():
    net = teacher("bistable").sample(3000, torch.Generator().manual_seed(0), exact_moments=True)
    points, eigenvalues = predictions.stable_points(net, normal(30, 2), reach=10.0)
    assert len(points) == 2
    assert bool((eigenvalues.real < 0).all())
    assert len(predictions.stable_points(net, normal(30, 2), reach=1e-3)[0]) == 0


# --- contributions and labels ---


def test_first_against_rest_is_the_normalised_difference_of_contributions():
    net, z, u = leaky(), normal(9, 2, seed=3), normal(9, 2, seed=4)
    labels = torch.arange(40) % 2
    parts = contributions(net, labels, z, u)
    found = predictions.first_against_rest(net, torch.stack([labels == 0, labels == 1]), z, u)
    torch.testing.assert_close(found[0], normalised_difference(parts[0], parts[1]))
    torch.testing.assert_close(found[1], -found[0])
    alone = replace(net, n=net.n * (labels == 0)[:, None])
    assert predictions.first_against_rest(alone, (labels == 0)[None], z).min() == pytest.approx(1.0)


def test_shuffles_keep_the_sizes_of_the_types():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    found = predictions.shuffles(labels, 50)
    assert torch.equal(found.sort(dim=1).values, labels.expand(50, -1))
    assert len(found.unique(dim=0)) > 10


def test_cell_types_label_other_populations_alike():
    centres = torch.tensor([[-3.0, 0.0], [3.0, 1.0]]).double()
    truth = (torch.arange(300) % 3 == 0).long()  # type 0 is the larger one
    types = CellTypes(centres[truth] + 0.3 * normal(300, 2), 2)
    torch.testing.assert_close(types.weights, torch.tensor([2 / 3, 1 / 3]).double(), atol=0.01, rtol=0)
    other = 1 - truth
    assert torch.equal(types.labels(centres[other] + 0.3 * normal(300, 2, seed=2)), other)
    with pytest.raises(UserError, match="two neurons"):
        CellTypes(normal(3, 2), 2)
