import math

import pytest
import torch

from connector.dynamics import activation
from connector.lrrnn.spikes.paths import Counts, Parameters, climbed, curvature, log_target, nats, newton
from connector.shooting import Field
from connector.types import Loadings

RANK, NEURONS, STEPS = 2, 12, 7


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(inputs=True, offset=True):
    """Counts of ragged trials, a field, parameters and paths."""
    lengths = torch.tensor([STEPS, 4, 1])
    mask = torch.arange(STEPS) < lengths[:, None]
    n_inputs = 1 if inputs else 0
    activity = torch.poisson(torch.full((3, STEPS, NEURONS), 0.6), generator=torch.Generator().manual_seed(0))
    counts = Counts.of(
        activity,
        mask,
        normal(1, 3, STEPS, 1) if inputs else None,
        0.3 * normal(2, 3, STEPS, NEURONS) if offset else None,
    )
    neurons = Loadings(normal(3, 9, RANK), normal(4, 9, 1) if inputs else None, normal(5, 9))
    field = Field(activation("softplus"), neurons, normal(6, 9, 5) / 9, 0.1)
    q = torch.tensor([[0.05, 0.01], [0.01, 0.03]], dtype=torch.float64)
    p = Parameters(
        0.5 * normal(7, NEURONS, RANK + n_inputs + 1),
        math.log(0.7),
        normal(8, 5, RANK),
        q,
        normal(9, RANK),
        torch.eye(RANK).double(),
    )
    return counts, field, p, normal(10, 3, STEPS, RANK) * mask[..., None]


def exact_target(counts, field, p, z):
    """The same by a loop over trials and samples, differentiable, in double precision."""
    total, row = [], 0
    rate = torch.distributions.Poisson
    for trial in range(len(z)):
        value = torch.distributions.MultivariateNormal(p.start_mean, p.start_covariance).log_prob(z[trial, 0])
        for t in range(int(counts.mask[trial].sum())):
            u = None if counts.u is None else counts.u[row]
            stacked = torch.cat([z[trial, t], *([] if u is None else [u]), torch.ones(1, dtype=torch.float64)])
            x = p.loadings @ stacked + (0 if counts.offset is None else counts.offset[row].double())
            y = counts.y[row].double()
            value = (
                value
                + (
                    rate(math.exp(p.log_scale) * torch.nn.functional.softplus(x)).log_prob(y) + torch.lgamma(y + 1)
                ).sum()
            )
            if t:
                before = None if counts.u is None else counts.u[row - 1 : row]
                drive = field(z[trial, t - 1 : t], before)[0] @ p.c
                step = 0.9 * z[trial, t - 1] + 0.1 * drive
                value = value + torch.distributions.MultivariateNormal(step, p.q).log_prob(z[trial, t])
            row += 1
        constants = RANK / 2 * math.log(2 * math.pi) * int(counts.mask[trial].sum())
        total.append(value + constants)
    return torch.stack(total)


@pytest.mark.parametrize("inputs", [True, False])
def test_target_and_its_gradient_are_those_of_the_model(inputs):
    counts, field, p, z = small(inputs, offset=inputs)
    z = z.requires_grad_()
    expected = exact_target(counts, field, p, z)
    torch.testing.assert_close(log_target(counts, field, p, z.detach()), expected.detach(), rtol=1e-5, atol=1e-4)
    gradient = torch.autograd.grad(expected.sum(), z)[0]
    move, factor, target = newton(counts, field, p, z.detach())
    torch.testing.assert_close(target, expected.detach(), rtol=1e-5, atol=1e-4)
    # H move = gradient, with H applied through its factor
    back = factor.transposed_times(move)
    along = (gradient * move).sum((1, 2))
    torch.testing.assert_close(back.square().sum((1, 2)), along, rtol=1e-3, atol=1e-4)


def test_information_is_the_expected_curvature():
    counts, _, p, z = small()
    rows = z[counts.mask]
    found = curvature(counts, p, rows)
    torch.testing.assert_close(found.nats, nats(counts, p, rows), rtol=1e-5, atol=1e-5)
    # at counts equal to their expectation the curvature is the Fisher information
    step = 1e-3
    exact = counts.__class__(counts.mask, torch.zeros_like(counts.y), counts.u, counts.offset)
    x = torch.cat([rows, counts.u], 1) @ p.loadings[:, :-1].T + p.loadings[:, -1] + counts.offset.double()
    exact.y.copy_(math.exp(p.log_scale) * torch.nn.functional.softplus(x))
    for i in range(RANK):
        along = torch.zeros(RANK, dtype=torch.float64)
        along[i] = step
        ahead, behind = curvature(exact, p, rows + along), curvature(exact, p, rows - along)
        slope = -(ahead.score - behind.score) / (2 * step)
        torch.testing.assert_close(slope, found.information[:, i], rtol=0.02, atol=0.02)


def test_newton_steps_end_where_the_gradient_is_zero():
    counts, field, p, z = small()
    mode = climbed(counts, field, p, z, 25)
    mode = mode.requires_grad_()
    gradient = torch.autograd.grad(exact_target(counts, field, p, mode).sum(), mode)[0]
    assert float(gradient.abs().max()) < 2e-2
    assert bool((mode[~counts.mask] == 0).all())
