import zlib

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from connector.analysis.blur import without_errors
from connector.analysis.gaps import depths, widest_gap
from connector.analysis.separated_groups import detectable_separation, separated_groups, verdict_of
from connector.analysis.splits import _k_means, whiten
from connector.errors import UserError


def two(distance, n=300, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    side = rng.uniform(size=n) < share
    x[:, 0] += distance * side
    return torch.from_numpy(x), torch.from_numpy(side)


def ring(n=300, seed=0):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(n, 2)))


def test_two_groups_are_found_with_their_members():
    x, side = two(6, n=150)
    found = separated_groups(x)
    assert (found.verdict, found.n_groups) == ("separated groups", 2)
    assert found.stability > 0.8
    agreement = float((found.labels.bool() == side).double().mean())
    assert max(agreement, 1 - agreement) > 0.99


def test_four_groups_are_counted():
    rng = np.random.default_rng(1)
    x = 0.3 * rng.normal(size=(240, 2)) + 0.87 * np.sign(rng.normal(size=(240, 2)))
    found = separated_groups(torch.from_numpy(x))
    assert found.n_groups == 4
    assert torch.bincount(found.labels).min() > 36


@pytest.mark.parametrize("shape", ["gauss", "ring", "gamma", "uniform"])
def test_single_populations_show_no_groups(shape):
    rng = np.random.default_rng(2)
    x = {
        "gauss": lambda: torch.from_numpy(rng.normal(size=(300, 3))),
        "ring": ring,
        "gamma": lambda: torch.from_numpy(rng.gamma(1.0, size=(300, 2))),
        "uniform": lambda: torch.from_numpy(rng.uniform(size=(300, 2))),
    }[shape]()
    found = separated_groups(x, count=False)
    assert (found.verdict, found.n_groups, found.stability) == ("not shown", 1, None)


def test_neither_coordinates_nor_order_nor_copies_matter():
    x, _ = two(5, seed=3)
    plain = separated_groups(x, count=False)
    turned = separated_groups(3 * x @ torch.tensor([[1.0, 0.4], [-2.0, 0.7]]).double() + 5, count=False)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = separated_groups(x[order], count=False)
    copied = separated_groups(torch.cat([x, x[:100]]), count=False)
    for other in (turned, shuffled, copied):
        assert other.p_value == pytest.approx(plain.p_value)
    same = shuffled.labels == plain.labels[order]
    assert bool(same.all()) or not bool(same.any())


def test_gaps_within_the_errors_do_not_count():
    x, _ = two(5, seed=4)
    assert (
        separated_groups(x, 1e-4 * torch.eye(2).double().expand(300, 2, 2), count=False).verdict == "separated groups"
    )
    assert separated_groups(x, 25 * torch.eye(2).double().expand(300, 2, 2), count=False).verdict == "not shown"


def known_badly_in_the_middle(n=150, seed=0):
    """A square, the neurons of its middle with large errors: they scatter, and leave a gap."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-(3**0.5), 3**0.5, size=(n, 2))
    size = np.where(np.abs(t[:, :1]) < 0.4, 1.5, 0.05)
    covariance = (size**2)[..., None] * np.eye(2)
    return torch.from_numpy(t + size * rng.normal(size=t.shape)), torch.from_numpy(covariance)


def test_a_gap_that_errors_made_does_not_count():
    x, covariance = known_badly_in_the_middle(n=300)
    assert separated_groups(x, count=False).verdict == "separated groups"
    assert separated_groups(x, covariance, count=False).verdict == "not shown"


def test_a_gap_that_is_seen_through_errors_counts():
    """Errors of half a standard deviation blur; they are in the fitted loadings once and are not added again."""
    x, side = two(4.5, n=300, seed=3)
    rng = np.random.default_rng(5)
    size = torch.from_numpy(rng.uniform(0.5, 0.9, size=(300, 1)))
    x = x + size * torch.from_numpy(rng.normal(size=(300, 2)))
    found = separated_groups(x, size[..., None] ** 2 * torch.eye(2).double(), count=False)
    assert found.verdict == "separated groups"
    agreement = float((found.labels.bool() == side).double().mean())
    assert max(agreement, 1 - agreement) > 0.93


def test_a_few_neurons_of_which_nothing_is_known_hide_no_groups():
    x, _ = two(6, n=150, seed=4)
    covariance = 0.01 * torch.eye(2).double().repeat(150, 1, 1)
    covariance[::40] = 1e8 * torch.eye(2).double()
    assert separated_groups(x, covariance, count=False).verdict == "separated groups"


def test_a_few_neurons_very_far_from_all_others_are_no_group():
    x, _ = two(0, n=100, seed=1)
    x[:4] *= 1e4
    assert separated_groups(x, count=False).verdict == "not shown"


def test_separation_that_would_show_is_told_where_it_was_measured():
    assert detectable_separation(99) is None
    assert detectable_separation(100) > detectable_separation(200) > detectable_separation(300)
    assert detectable_separation(5000) == detectable_separation(300)


def test_sides_that_lie_crosswise_are_no_split():
    """Their axis is chance, and along it four groups may look separated as well; the split of two pairs is what is found."""
    rng = np.random.default_rng([6061, 1000, 2, zlib.crc32(b"quadstable")])
    x = 0.5 * rng.normal(size=(1000, 2)) + 0.87 * rng.choice([-1, 1], size=(1000, 2))
    found = separated_groups(torch.from_numpy(x), count=False, seed=6061)
    assert found.verdict == "separated groups"


def test_neither_coordinates_nor_the_place_of_errors_matter():
    x, covariance = known_badly_in_the_middle(n=120)
    turn = torch.tensor([[1.0, 0.4], [-2.0, 0.7]]).double()
    plain, turned = (
        without_errors(a.numpy(), c.numpy()) for a, c in ((x, covariance), (x @ turn + 5, turn.T @ covariance @ turn))
    )
    assert np.allclose(plain @ plain.T, turned @ turned.T)


def test_a_class_of_one_precision_keeps_its_shape_and_loses_the_variance_of_errors():
    x, _ = two(4, n=400, seed=1)
    white = (x - x.mean(0)) / x.std(0, unbiased=False)
    share = 0.3
    errors = np.cov(white.numpy().T, bias=True) * share
    found = without_errors(white.numpy(), np.broadcast_to(errors, (400, 2, 2)))
    left = 1 - share * (1 + 2 * (2 / 401) ** 0.5)
    assert np.allclose(found.T @ found / 400, left * np.eye(2), atol=1e-6)
    drawn = without_errors(white.numpy(), np.broadcast_to(errors, (400, 2, 2)), np.random.default_rng(0))
    assert np.allclose(drawn.T @ drawn / 400, (1 + share**2) * np.eye(2), atol=0.1)


def test_well_known_loadings_stay():
    x, _ = two(4, n=200, seed=1)
    found = without_errors(x.numpy(), 1e-8 * np.broadcast_to(np.eye(2), (200, 2, 2)))
    assert np.allclose(cdist(found, found), cdist(*[whiten(x.numpy())] * 2), atol=1e-3)


def test_few_neurons_are_suggestive_at_most_and_too_few_are_refused():
    assert [verdict_of(0.01, n) for n in (59, 60)] == ["suggestive", "separated groups"]
    assert verdict_of(0.06, 500) == "not shown"
    with pytest.raises(UserError, match="25 or more neurons"):
        separated_groups(torch.randn(20, 2))
    with pytest.raises(UserError, match="covariance"):
        separated_groups(torch.randn(80, 2), torch.eye(2).expand(3, 2, 2))


@pytest.mark.slow
def test_size_and_power_are_within_binomial_limits():
    """60 fresh populations each, level .05: at most 8 false findings (binomial limit); power .9 at 4 sd, 300 neurons."""
    rng = np.random.default_rng(77)
    shapes = {
        "gauss": lambda: rng.normal(size=(200, 2)),
        "uniform": lambda: rng.uniform(size=(200, 2)),
        "ring": lambda: ring(200, int(rng.integers(1 << 30))).numpy(),
        "gamma": lambda: rng.gamma(0.7, size=(200, 2)),
        "laplace": lambda: rng.laplace(size=(200, 3)),
    }
    for name, draw in shapes.items():
        fired = sum(separated_groups(torch.from_numpy(draw()), count=False).p_value <= 0.05 for _ in range(60))
        assert fired <= 8, name
    found = sum(separated_groups(two(4, seed=i)[0], count=False).p_value <= 0.05 for i in range(60))
    assert found >= 49


@pytest.mark.slow
def test_size_with_errors_that_differ_is_within_binomial_limits():
    """60 fresh populations, level .05: at most 8 false findings, of whom errors alone make most look separated."""
    sets = [known_badly_in_the_middle(n=200, seed=i) for i in range(60)]
    assert sum(separated_groups(x, count=False).p_value <= 0.05 for x, _ in sets) > 30
    assert sum(separated_groups(*one, count=False).p_value <= 0.05 for one in sets) <= 8


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
def test_k_means_that_stops_when_nothing_changes_is_that_of_fifteen_sweeps(k):
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(40 + 10 * seed, 1 + seed % 4))
        whole, begun = (
            kmeans2(x, k, iter=sweeps, minit="++", rng=np.random.default_rng(seed), missing="warn")
            for sweeps in (15, 1)
        )
        centres, label = _k_means(x, begun)
        np.testing.assert_array_equal(label, whole[1])
        np.testing.assert_allclose(centres, whole[0], atol=1e-12)


def test_a_gap_is_as_deep_as_the_lower_of_its_banks_is_denser():
    x = np.concatenate([np.linspace(0, 1, 50), np.linspace(3, 4, 50)])
    # windows of 5 points: 5/49 wide within a half; the widest across the gap spans it and four steps
    assert depths(x[None])[0, 0] == pytest.approx(np.sqrt(5) * np.log((2 + 4 / 49) / (5 / 49)), rel=1e-4)
    assert 1 < widest_gap(x) < 3
