"""The main experiment's teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from connector.data.attractors import (
    ALPHA,
    Teacher,
    gauss_hermite,
    generator_or_fixed,
    joint_normal,
    loadings_matrix,
    register_teacher,
)
from connector.dynamics import Network
from connector.types import Loadings


@register_teacher("quadstable")
class QuadStable(Teacher):
    """Four stable fixed points: an equal mixture of four Gaussians, one for each pair of signs.

    Given its component (s1, s2), a neuron has m ~ N(``m_mean`` s, ``variance`` I) and, independently,
    n ~ N(``n_mean`` s, ``variance`` I). So nu(m) is the responsibility-weighted mean of the four n-means; the mixture
    factorises over the two axes, which makes it n_mean tanh(m_mean m / variance) in each.

    Args:
        alpha: Euler step dt / tau.
    """

    def __init__(
        self,
        alpha: float = ALPHA,
        m_mean: float = 0.87,
        n_mean: float = 2.31,
        variance: float = 0.25,
        name: str = "quadstable",
    ):
        super().__init__(name, attractor_kind="fixed_points", n_attractors=4, alpha=alpha)
        signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
        self.m_means, self.n_means, self.variance = m_mean * signs, n_mean * signs, float(variance)

    def sample_with_components(
        self, n_neurons: int, generator: torch.Generator | None = None, exact_moments: bool = False
    ) -> tuple[Network, Tensor]:
        generator = generator_or_fixed(generator)
        labels = (torch.arange(n_neurons) % 4)[torch.randperm(n_neurons, generator=generator)]
        x = torch.empty(n_neurons, 4, dtype=torch.float64)
        for component in range(4):
            members = labels == component
            x[members] = joint_normal(int(members.sum()), 4, generator, exact_moments)
        x *= math.sqrt(self.variance)
        return self._network(self.m_means[labels] + x[:, :2], self.n_means[labels] + x[:, 2:]), labels

    def _component_log_prob(self, m: Tensor) -> Tensor:
        """log of p(component, m), (K, 4)."""
        squared = (m[:, None] - self.m_means.to(m)).square().sum(2)
        return -squared / (2 * self.variance) - math.log(2 * math.pi * self.variance) - math.log(4)

    def conditional_mean(self, loadings: Loadings | Tensor) -> Tensor:
        m = loadings_matrix(loadings)
        return torch.softmax(self._component_log_prob(m), dim=1) @ self.n_means.to(m)

    def log_prob(self, loadings: Loadings | Tensor) -> Tensor:
        return torch.logsumexp(self._component_log_prob(loadings_matrix(loadings)), dim=1)

    def components(self, loadings: Loadings | Tensor) -> Tensor:
        return self._component_log_prob(loadings_matrix(loadings)).argmax(1)

    def drive(self, z: Tensor) -> Tensor:
        x, weight = (v.to(z) for v in gauss_hermite())
        mean = z @ self.m_means.to(z).T  # (..., 4): mean potential of each component
        sd = math.sqrt(self.variance) * z.norm(dim=-1, keepdim=True)
        rate = (torch.tanh(mean[..., None] + sd[..., None] * x) * weight).sum(-1)
        return rate @ self.n_means.to(z) / 4
