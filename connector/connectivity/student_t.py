"""The elliptical Student-t: draws, the constant of its density, and its fit by maximum likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / max(len(x) - 1, 1)


def chi_square_over_dof(n: int, dof: float, options: dict) -> Tensor:
    """(n,) draws of chi-square(dof) / dof by Marsaglia and Tsang's method (2000).

    Written out because torch's gamma sampler takes no generator.
    """
    shape = dof / 2
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    draws = torch.empty(0, **{k: v for k, v in options.items() if k != "generator"})
    while len(draws) < n:
        missing = n - len(draws) + 16
        normal = torch.randn(missing, **options)
        uniform = torch.rand(missing, **options)
        v = (1 + c * normal) ** 3
        positive = v.clamp_min(1e-30)
        accept = (v > 0) & (uniform.log() < 0.5 * normal**2 + d - d * v + d * positive.log())
        draws = torch.cat([draws, d * v[accept]])
    return draws[:n] / shape


def student_t_constant(dof: Tensor, dim: int) -> Tensor:
    half = 0.5 * (dof + dim)
    return torch.lgamma(half) - torch.lgamma(0.5 * dof) - 0.5 * dim * torch.log(dof * math.pi)


def fit_student_t(x: Tensor, dof: float | None = None, sweeps: int = 60) -> tuple[Tensor, Tensor, float]:
    """Elliptical Student-t of highest likelihood for x (N, D): location (D,), scatter (D, D), degrees of freedom.

    Expectation maximisation for location and scatter; the degrees of freedom, unless given, are the best of a fine
    grid from 2.1 to 100 at every sweep (Liu and Rubin 1995).
    """
    x = x.double()
    location, scatter = moments(x)
    dim = x.shape[1]
    grid = torch.logspace(math.log10(2.1), 2, 80, dtype=x.dtype, device=x.device)
    constants = student_t_constant(grid, dim)
    ridge = 1e-10 * scatter.diagonal().mean().clamp_min(1e-30)
    eye = torch.eye(dim, dtype=x.dtype, device=x.device)
    current = torch.tensor(dof or 5.0, dtype=x.dtype, device=x.device)
    for _ in range(sweeps):
        centred = x - location
        squares = (torch.linalg.solve(scatter + ridge * eye, centred.T).T * centred).sum(1)
        if dof is None:
            fit = constants - 0.5 * (grid + dim) * torch.log1p(squares[:, None] / grid).mean(0)
            current = grid[fit.argmax()]
        weights = (current + dim) / (current + squares)
        location = (weights[:, None] * x).sum(0) / weights.sum()
        centred = x - location
        scatter = (weights[:, None] * centred).T @ centred / len(x)
    return location, scatter, float(current)
