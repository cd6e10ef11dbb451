"""Draws of covariances given what they are of."""

from __future__ import annotations

import torch
from torch import Tensor


def hyper_of(loadings: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean and precision of the loadings' normal distribution, given them."""
    k, width = loadings.shape
    mean = loadings.mean(0)
    centred = loadings - mean
    scatter = centred.T @ centred + 0.1 * torch.eye(width, dtype=torch.float64)
    cov = inverse_wishart(scatter, k + width + 1, g)
    mean = mean + torch.linalg.cholesky(cov / k) @ torch.randn(width, generator=g, dtype=torch.float64)
    return mean, torch.linalg.inv(cov)


def inverse_wishart(scatter: Tensor, dof: float, g: torch.Generator) -> Tensor:
    """A draw of covariance ~ |C|^-((dof + R + 1) / 2) exp(-tr(scatter C^-1) / 2), by Bartlett's decomposition."""
    rank = len(scatter)
    root = torch.linalg.cholesky(torch.linalg.inv(scatter))
    a = torch.zeros(rank, rank, dtype=torch.float64)
    for i in range(rank):
        half = torch.tensor((dof - i) / 2, dtype=torch.float64)
        a[i, i] = (2 * torch._standard_gamma(half, generator=g)).sqrt()
        a[i, :i] = torch.randn(i, generator=g, dtype=torch.float64)
    half = root @ a
    return torch.linalg.inv(half @ half.T)
