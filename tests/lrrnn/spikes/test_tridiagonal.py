import pytest
import torch
from torch.testing import assert_close

from connector.lrrnn.spikes.tridiagonal import components_first, factorise


def elimination(steps):
    """Of cyclic reduction: every second one, then every second one of the others, and so on."""
    order, left = [], list(range(steps))
    while left:
        order, left = order + left[::2], left[1::2]
    return order


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 13, 16])
def test_factor_is_that_of_the_dense_matrix(rank, steps):
    generator = torch.Generator().manual_seed(rank)
    many, size = 4, steps * rank
    diagonal = torch.randn(many, steps, rank, rank, generator=generator, dtype=torch.float64)
    diagonal = diagonal @ diagonal.mT + 8 * torch.eye(rank, dtype=torch.float64)
    below = torch.randn(many, steps - 1, rank, rank, generator=generator, dtype=torch.float64)
    dense = torch.zeros(many, size, size, dtype=torch.float64)
    for t in range(steps):
        at, before = slice(t * rank, (t + 1) * rank), slice((t - 1) * rank, t * rank)
        dense[:, at, at] = diagonal[:, t]
        if t:
            dense[:, at, before], dense[:, before, at] = below[:, t - 1], below[:, t - 1].mT
    factor = factorise(components_first(diagonal), components_first(below))
    x = torch.randn(many, steps, rank, generator=generator, dtype=torch.float64)
    column = x.reshape(many, size, 1)
    assert_close(factor.solve(x).reshape(many, size, 1), torch.linalg.solve(dense, column))
    # C is the Cholesky factor of the blocks in the order of their elimination.
    order = elimination(steps)
    rows = torch.tensor([t * rank + r for t in order for r in range(rank)])
    root = torch.linalg.cholesky(dense[:, rows][:, :, rows])
    assert_close(factor.transposed_times(x)[:, order].reshape(many, size, 1), root.mT @ column[:, rows])
    right = torch.stack([x, x.flip(0)], 3)
    solved = torch.linalg.solve_triangular(root, right[:, order].reshape(many, size, 2), upper=False)
    assert_close(factor.forward(right)[:, order].reshape(many, size, 2), solved)
    assert_close(factor.backward(factor.transposed_times(x)), x)
    assert_close(factor.log_det, 0.5 * torch.linalg.slogdet(dense)[1])
    assert_close(factor.of(slice(1, 3)).solve(x[1:3]), factor.solve(x)[1:3])


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 13, 16])
def test_covariances_are_blocks_of_the_inverse(steps):
    generator, rank, many = torch.Generator().manual_seed(steps), 2, 3
    root = torch.randn(many, steps, rank, rank, generator=generator, dtype=torch.float64)
    diagonal = root @ root.mT + 8 * torch.eye(rank, dtype=torch.float64)
    below = torch.randn(many, steps - 1, rank, rank, generator=generator, dtype=torch.float64)
    dense = torch.block_diag(*diagonal[0])
    for t in range(1, steps):
        at, before = slice(t * rank, (t + 1) * rank), slice((t - 1) * rank, t * rank)
        dense[at, before], dense[before, at] = below[0, t - 1], below[0, t - 1].mT
    inverse = torch.linalg.inv(dense).view(steps, rank, steps, rank).transpose(1, 2)
    own, following = factorise(components_first(diagonal), components_first(below)).covariances()
    assert own.shape == (many, steps, rank, rank)
    assert following.shape == (many, steps - 1, rank, rank)
    assert_close(own[0], torch.stack([inverse[t, t] for t in range(steps)]))
    for t in range(steps - 1):
        assert_close(following[0, t], inverse[t, t + 1])
