import torch
from torch.testing import assert_close

from connector.lrrnn.spikes.coefficients import CoefficientPrior


def test_density_and_precision_are_those_of_the_normal_distribution():
    """c = x gauge with independent columns of x: a matrix normal distribution."""
    g = torch.Generator().manual_seed(0)
    roots = torch.randn(1, 3, 4, 4, generator=g, dtype=torch.float64)
    gauge = torch.tensor([[1.5, 0.3], [0.3, 0.7]], dtype=torch.float64)
    free = torch.ones(1, 3, dtype=torch.float64)
    prior = CoefficientPrior(roots @ roots.mT, torch.zeros(1).double(), 0 * free, free, gauge)
    theta = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    covariance = torch.kron(prior.covariance(0, theta), gauge.T @ gauge)
    exact = torch.distributions.MultivariateNormal(torch.zeros(8).double(), covariance)
    c, other = torch.randn(2, 4, 2, generator=g, dtype=torch.float64)
    difference = exact.log_prob(c.reshape(-1)) - exact.log_prob(other.reshape(-1))
    found = prior.log_prior(c, 0, theta) - prior.log_prior(other, 0, theta)
    assert_close(torch.tensor(found).double(), difference)
    assert_close(prior.precision(0, theta) @ covariance, torch.eye(8).double())
