"""Fixed points of many fields at once: against fields whose zeros are known, and against a far denser search."""

import math

import pytest
import torch

from connector.analysis.fixed_points import Region, count_fixed_points
from connector.errors import UserError


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _box(rank, extent=2.0, n=4000, seed=0):
    g = torch.Generator().manual_seed(seed)
    return extent * (2 * torch.rand(n, rank, generator=g, dtype=torch.float64) - 1)


def _products(roots):
    """Basis and coefficients whose field is dz_d = prod_k (root_k - z_d) (an odd number of roots), turned by a rotation."""
    rank, order = roots.shape
    turn = torch.linalg.qr(_randn(rank, rank, seed=3)).Q

    def basis(z):
        x = z @ turn
        value = torch.stack(
            [torch.stack([roots[d, k] - x[:, d] for k in range(order)]).prod(0) for d in range(rank)], 1
        )
        return torch.cat([z, value @ turn.T], 1)

    eye = torch.eye(rank).double()
    return basis, torch.cat([eye, eye]), turn


@pytest.mark.parametrize(("rank", "order"), [(1, 5), (2, 3), (2, 5), (3, 3)])
def test_all_roots_of_a_product_are_found(rank, order):
    roots = torch.linspace(-1.2, 1.2, order).double() + 0.1 * _randn(rank, order, seed=rank)
    basis, c, turn = _products(roots)
    found = count_fixed_points(basis, c, Region.of(_box(rank, 2.2)))
    true = torch.cartesian_prod(*roots).view(-1, rank) @ turn.T
    assert len(found.points) == order**rank
    assert float(torch.cdist(true, found.points).amin(1).max()) < 1e-6
    assert int(found.counts()[0]) == ((order + 1) // 2) ** rank  # stable where the product falls: every other root
    assert bool(found.checked.all())


def test_points_outside_what_was_visited_do_not_count():
    basis, c, turn = _products(torch.tensor([[-1.0, 0.0, 1.0]] * 2).double())
    states = _box(2, 2.2) @ turn.T
    half = states[states @ turn[:, 0] > 0.5]
    found = count_fixed_points(basis, c, Region.of(half))
    assert len(found.points) == 3
    assert int(found.counts()[0]) == 2


def _random_fields(rank, n, seed, width=1.0):
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(rank, 60, generator=g, dtype=torch.float64) / width
    phase = 2 * math.pi * torch.rand(60, generator=g, dtype=torch.float64)
    c = 1.5 * torch.randn(n, 60, rank, generator=g, dtype=torch.float64) / math.sqrt(30)

    def basis(z):
        return torch.cos(z @ weights + phase)

    return basis, c


@pytest.mark.parametrize(
    ("rank", "n", "finer"),
    [
        (2, 30, 120),
        pytest.param(1, 2000, 4096, marks=pytest.mark.slow),
        pytest.param(2, 400, 160, marks=pytest.mark.slow),
        pytest.param(3, 40, 40, marks=pytest.mark.slow),
    ],
)
def test_counts_agree_with_a_far_finer_grid(rank, n, finer):
    """The miss rate: at most 1 field in 200 is counted wrong."""
    basis, c = _random_fields(rank, n, seed=rank)
    states = _box(rank)
    region = Region.of(states)
    found = count_fixed_points(basis, c, region)
    reference = count_fixed_points(basis, c, Region.of(states, finer))
    # of one region: points near the border belong to the cells of one grid and not of the other
    interior = [points.points.abs().amax(1) < 1.9 for points in (found, reference)]
    counts = [torch.bincount(p.field[i], minlength=n) for p, i in zip((found, reference), interior)]
    assert float(counts[1].double().mean()) > 0.5
    assert int((counts[0] != counts[1]).sum()) <= n // 200
    assert float(found.checked.double().mean()) > 0.9


def test_eigenvalues_tell_what_nearby_states_do():
    basis, c, _ = _products(torch.tensor([[-1.0, 0.0, 1.0]] * 2).double())
    found = count_fixed_points(basis, c, Region.of(_box(2, 1.7)))
    # d/dx of -x (x - 1) (x + 1) is 1 at 0 and -2 at +-1
    values = found.eigenvalues.real.sort(1).values.round(decimals=3)
    expected = {(-2.0, -2.0): 4, (-2.0, 1.0): 4, (1.0, 1.0): 1}
    for pair, count in expected.items():
        assert int((values == torch.tensor(pair).double()).all(1).sum()) == count


def test_states_of_too_many_dimensions_are_refused():
    with pytest.raises(UserError, match="R of 1 to 3"):
        Region.of(_randn(50, 4))
