"""Newton terms against automatic differentiation of the loss, for every noise."""

import pytest
import torch

from connector.errors import UserError
from connector.lrrnn.observation import Observation, value_and_slope

CASES = [
    ("tanh", "gaussian"),
    ("sigmoid", "gaussian"),
    ("softplus", "gaussian"),
    ("relu", "gaussian"),
    ("tanh", "two_valued"),
    ("sigmoid", "two_valued"),
    ("softplus", "poisson"),
]


def activity(observation, h, generator):
    mean = observation.phi(h)
    if observation.noise == "gaussian":
        return mean + 0.3 * torch.randn(h.shape, generator=generator, dtype=h.dtype)
    if observation.noise == "poisson":
        return torch.poisson(observation.scale * mean, generator=generator) / observation.scale
    low, high = observation.phi.low, observation.phi.high
    up = torch.rand(h.shape, generator=generator, dtype=h.dtype) < (mean - low) / (high - low)
    return torch.where(up, high, low).to(h)


@pytest.mark.parametrize(("activation", "noise"), CASES)
def test_score_is_minus_half_the_gradient_of_the_loss(activation, noise):
    observation = Observation.of(activation, noise, scale=0.3)
    h = torch.linspace(-2.0, 2.0, 41, dtype=torch.float64).requires_grad_()
    y = activity(observation, h.detach(), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(observation.loss(y, h).sum(), h)
    score, _, residual = observation.newton_terms(y, h.detach())
    assert torch.allclose(score, -0.5 * gradient, atol=1e-10)
    assert torch.allclose(residual, y - observation.phi(h.detach()))


@pytest.mark.parametrize(("activation", "noise"), [case for case in CASES if case[1] != "gaussian"])
def test_weight_is_the_variance_of_the_score(activation, noise):
    """Fisher information, so that inverse normal matrices are covariances as they stand."""
    observation = Observation.of(activation, noise, scale=2.0)
    h = torch.tensor([-1.0, 0.0, 0.7], dtype=torch.float64).expand(200_000, 3)
    y = activity(observation, h, torch.Generator().manual_seed(1))
    score, weight, _ = observation.newton_terms(y, h)
    assert torch.allclose(score.mean(0), torch.zeros(3).double(), atol=0.02)
    assert torch.allclose(score.var(0), weight.mean(0), rtol=0.02)


def test_slopes_are_derivatives():
    for name in ("tanh", "sigmoid", "softplus", "relu"):
        phi = Observation.of(name).phi
        h = torch.linspace(-5, 5, 50, dtype=torch.float64)
        value, slope = value_and_slope(phi, h)
        assert torch.allclose(value, phi(h))
        assert torch.allclose(slope, phi.derivative(h), atol=1e-12)


def test_counts_need_a_rate_that_cannot_be_negative():
    with pytest.raises(UserError, match="non-negative"):
        Observation.of("tanh", "poisson")
    with pytest.raises(UserError, match="gaussian"):
        Observation.of("tanh", "gamma")
