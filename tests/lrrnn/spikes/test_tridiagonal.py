import pytest
import torch

from connector.lrrnn.spikes.tridiagonal import factorise, time_first


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 6])
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
    factor, root = factorise(time_first(diagonal), time_first(below)), torch.linalg.cholesky(dense)
    x = torch.randn(many, steps, rank, generator=generator, dtype=torch.float64)
    column = x.reshape(many, size, 1)
    torch.testing.assert_close(factor.solve(x).reshape(many, size, 1), torch.linalg.solve(dense, column))
    torch.testing.assert_close(factor.transposed_times(x).reshape(many, size, 1), root.mT @ column)
    torch.testing.assert_close(factor.backward(factor.transposed_times(x)), x)
    torch.testing.assert_close(factor.log_det, 0.5 * torch.linalg.slogdet(dense)[1])
