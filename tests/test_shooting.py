"""Multiple shooting: sensitivities against autograd, and what keeps a fit from running away."""

import math
from dataclasses import replace

import pytest
import torch

from connector.dynamics import activation
from connector.errors import UserError
from connector.shooting import Field, Linearised, Segments, Weighting, likely_starts, linearise, positive_factor
from connector.types import Loadings


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _small_problem():
    neurons = Loadings(_randn(30, 2), 0.5 * _randn(30, 1, seed=1), 0.3 * _randn(30, seed=2))
    mixing = torch.linalg.qr(_randn(30, 12, seed=8)).Q / 30
    mask = torch.arange(7) < torch.tensor([7, 5, 2])[:, None]
    segments = Segments(_randn(3, 7, 2, seed=3), mask, _randn(3, 7, 1, seed=4))
    return Field(activation("softplus"), neurons, mixing, alpha=0.2, stride=3), segments


def test_linearisation_is_that_of_autograd():
    """h and b are the Schur complement and gradient of the squared residuals with respect to (c, initial states)."""
    field, segments = _small_problem()
    alpha, stride, root = field.alpha, field.stride, torch.tensor([[1.3, 0.0], [0.4, 0.8]]).double()
    p = field.mixing.shape[1]
    c, z0 = 3 * _randn(p, 2, seed=7), segments.z[:, 0] + 0.1

    def residuals(c, z0):
        z, parts = z0, []
        for t in range(7):
            parts.append((segments.z[:, t] - z) @ root * segments.mask[:, t, None])
            for _ in range(stride):
                z = (1 - alpha) * z + alpha * field(z, segments.u[:, t]) @ c
        return torch.stack(parts, 1).reshape(-1)

    by_c, by_z0 = torch.autograd.functional.jacobian(residuals, (c, z0))
    a, b = by_c.reshape(-1, 2 * p), by_z0.reshape(-1, 6)
    r = residuals(c, z0)
    gain = a.T @ b @ torch.linalg.inv(b.T @ b)
    found = linearise(field, c, replace(segments, root=root.expand(*segments.z.shape, 2)), z0)
    assert math.isclose(found.squares, float(r @ r), rel_tol=1e-9)
    assert torch.allclose(found.h, a.T @ a - gain @ (b.T @ a), rtol=1e-6, atol=1e-9 * float((a.T @ a).max()))
    assert torch.allclose(found.b, -(a.T @ r - gain @ (b.T @ r)), rtol=1e-6, atol=1e-8)


def test_information_that_rounding_left_indefinite_is_factored_and_nonsense_refused():
    turn = torch.linalg.qr(_randn(5, 5))[0]
    information = turn @ torch.diag(torch.tensor([1e14, 1e9, 1.0, 1.0, -1e-2]).double()) @ turn.T
    assert int(torch.linalg.cholesky_ex(information).info) > 0
    factor = positive_factor(information)
    torch.testing.assert_close(factor @ factor.T, information, rtol=1e-9, atol=10.0)
    with pytest.raises(UserError, match="ran away"):
        positive_factor(-information)


def test_a_fit_that_rounding_would_make_indefinite_is_not_tame():
    """Trajectories that run away leave a matrix whose rounding outweighs the prior: such a step is not taken."""
    weighting = Weighting(1e-3 * torch.eye(2).double(), limit=1e9)

    def found(h):
        nothing, h = torch.zeros(1, 2, 1).double(), torch.tensor(h).double()
        return Linearised(nothing, nothing, 1.0, h, torch.zeros(2), nothing, nothing, nothing, 1.0)

    assert weighting.is_tame(found([[2.0, 0.0], [0.0, 1.0]]))
    assert not weighting.is_tame(found([[1e4, 0.0], [0.0, -1.0]]))  # as rounding leaves it
    assert not weighting.is_tame(found([[math.inf, 0.0], [0.0, 1.0]]))
    assert not weighting.is_tame(found([[1e13, 0.0], [0.0, 1.0]]))


def test_first_states_are_those_whose_trajectory_was_seen():
    """dz = 3 tanh(z) - z has points at 0 and about +-3: a first sample of the wrong sign is seen through, a right one is kept."""
    field = Field(activation("tanh"), Loadings(torch.ones(1, 1).double()), torch.ones(1, 1).double(), alpha=0.1)
    c, starts = torch.tensor([[3.0]]).double(), torch.tensor([0.1, -0.1, 2.0, -2.0]).double()
    path = [starts[:, None]]
    for _ in range(29):
        path.append(0.9 * path[-1] + 0.1 * 3 * path[-1].tanh())
    z = torch.stack(path, 1)
    z[0, 0], z[1, 0] = -0.5, 0.5  # noise, which the other samples contradict
    mask = torch.arange(30) < torch.tensor([30, 25, 30, 6])[:, None]
    segments = Segments(z, mask, root=torch.eye(1).double().expand(4, 30, 1, 1))
    found = likely_starts(field, c, segments)[:, 0]
    assert (found[:2].sign() == starts[:2].sign()).all()
    assert torch.equal(found[2:], starts[2:])
