"""A teacher with heavy-tailed connectivity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from connector.data.attractors import (
    ALPHA,
    IsotropicLinear,
    generator_or_fixed,
    loadings_matrix,
    normal,
    register_teacher,
)
from connector.dynamics import Network
from connector.errors import UserError
from connector.types import Loadings


@register_teacher("heavy_tailed")
class HeavyTailed(IsotropicLinear):
    """Two stable fixed points from Student-t neurons: a few neurons with very large weights.

    m is a multivariate Student t (scale 1, ``dof`` degrees of freedom, covariance dof / (dof - 2) I) and
    n = S m + ``noise_scale`` times an independent one, so that the entries m_i.n_j / K of the connectivity are
    heavy-tailed too (a product of two such variables has no more moments than each of them).
    p(m) is isotropic, so the state turns under S alone: with S = diag(1.6, 0.8) all states off the second axis end at
    (+-r, 0), where the slow transverse eigenvalue is 0.8 / 1.6 - 1 = -0.5 per tau exactly, and two saddles lie on
    the second axis.

    Args:
        dof: whole number of degrees of freedom, at least 3 (finite covariance).
        noise_scale: scale of the part of n that m does not determine.
        S: (2, 2) regression of n on m.
        alpha: Euler step dt / tau.
    """

    def __init__(
        self,
        dof: int = 3,
        noise_scale: float = 0.5,
        S=((1.6, 0.0), (0.0, 0.8)),
        alpha: float = ALPHA,
        name: str = "heavy_tailed",
    ):
        if dof != int(dof) or dof < 3:
            raise UserError("dof a whole number of at least 3 (so that the covariance is finite)", str(dof))
        self.dof, self.noise_scale = int(dof), float(noise_scale)
        super().__init__(name, S, slope=dof / (dof - 2), alpha=alpha)

    def sample_with_components(
        self, n_neurons: int, generator: torch.Generator | None = None, exact_moments: bool = False
    ) -> tuple[Network, Tensor]:
        generator = generator_or_fixed(generator)
        m = _student_t(n_neurons, 2, self.dof, generator)
        n = self.conditional_mean(m) + self.noise_scale * _student_t(n_neurons, 2, self.dof, generator)
        return self._network(m, n), torch.zeros(n_neurons, dtype=torch.int64)

    def log_prob(self, loadings: Loadings | Tensor) -> Tensor:
        m = loadings_matrix(loadings)
        v = self.dof
        constant = math.lgamma((v + 2) / 2) - math.lgamma(v / 2) - math.log(v * math.pi)
        return constant - (v + 2) / 2 * torch.log1p(m.square().sum(1) / v)

    def _marginal(self) -> tuple[Tensor, Tensor]:
        # With x = sqrt(v) tan(a) the density of x becomes proportional to cos(a)^(v - 1) on (-pi/2, pi/2).
        order = 4000
        angle = (torch.arange(order, dtype=torch.float64) + 0.5) / order * math.pi - math.pi / 2
        weight = torch.cos(angle) ** (self.dof - 1)
        return math.sqrt(self.dof) * torch.tan(angle), weight / weight.sum()


def _student_t(n: int, dim: int, dof: int, generator: torch.Generator) -> Tensor:
    """n draws of the standard multivariate Student t with integer degrees of freedom, (n, dim)."""
    chi_squared = normal((n, dof), generator).square().sum(1, keepdim=True)
    return normal((n, dim), generator) / (chi_squared / dof).sqrt()
