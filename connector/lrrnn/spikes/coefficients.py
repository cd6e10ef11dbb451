"""The prior of a field's coefficients with which paths are sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CoefficientPrior:
    """c = x gauge with Cov(x) = sum_k exp(theta_k) parts[f, k] in every dimension; f is one of F kernels.

    Attributes:
        parts: (F, 3, p, p) linear, curved, white. log_weights: (F,) prior of the kernels.
        centre, width: (F, 3) normal prior of theta; a width of 0 keeps theta there.
        gauge: (R, R).
    """

    parts: Tensor
    log_weights: Tensor
    centre: Tensor
    width: Tensor
    gauge: Tensor

    def covariance(self, f: int, theta: Tensor) -> Tensor:
        """Cov(x) (p, p)."""
        cov = torch.einsum("k,kij->ij", theta.exp(), self.parts[f])
        return cov + 1e-9 * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype)

    def log_density(self, f: int, theta: Tensor) -> float:
        """Of kernel and log amplitudes, up to a constant."""
        free = self.width[f] > 0
        off = (theta - self.centre[f])[free] / self.width[f][free]
        return float(self.log_weights[f] - 0.5 * off.square().sum())

    def log_prior(self, c: Tensor, f: int, theta: Tensor) -> float:
        """Log density of c (p, R), up to a constant of f and theta."""
        x = c @ torch.linalg.inv(self.gauge)
        return -0.5 * float((x * torch.cholesky_solve(x, torch.linalg.cholesky(self.covariance(f, theta)))).sum())

    def precision(self, f: int, theta: Tensor) -> Tensor:
        """Of c, flattened as (mode, dimension), (pR, pR)."""
        of_gauge = torch.linalg.inv(self.gauge @ self.gauge)
        return torch.kron(torch.linalg.inv(self.covariance(f, theta)).contiguous(), of_gauge.contiguous())
