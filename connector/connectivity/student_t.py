"""The elliptical Student-t: density, draws, quasi-random points and its fit; with infinite degrees of freedom, the normal.

Squares are squared Mahalanobis distances; points are in units in which location is 0 and scatter is the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from connector.numerics import moments

_SETTLED = 1e-10  # change of the scatter in a sweep, of its size, that ends a fit


def log_density(squares: Tensor, dim: int, dof: Tensor) -> Tensor:
    """Log density in ``dim`` dimensions at points of these squares, of any shape."""
    if torch.isinf(dof):
        return -0.5 * (squares + dim * math.log(2 * math.pi))
    return _log_constant(dof, dim) - 0.5 * (dof + dim) * torch.log1p(squares / dof)


def _log_constant(dof: Tensor, dim: int) -> Tensor:
    half = 0.5 * (dof + dim)
    return torch.lgamma(half) - torch.lgamma(0.5 * dof) - 0.5 * dim * torch.log(dof * math.pi)


def draws(n: int, dim: int, dof: float, **options) -> Tensor:
    """(n, dim) draws. ``options``: generator, dtype and device of torch.randn."""
    x = torch.randn(n, dim, **options)
    return x if math.isinf(dof) else x / _chi_square_over_dof(n, dof, options).sqrt()[:, None]


def _chi_square_over_dof(n: int, dof: float, options: dict) -> Tensor:
    """(n,) draws of chi-square(dof) / dof by Marsaglia and Tsang's method (2000): torch's own takes no generator."""
    shape = dof / 2
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    drawn = torch.empty(0, **{k: v for k, v in options.items() if k != "generator"})
    while len(drawn) < n:
        missing = n - len(drawn) + 16
        normal = torch.randn(missing, **options)
        uniform = torch.rand(missing, **options)
        v = (1 + c * normal) ** 3
        positive = v.clamp_min(1e-30)
        accept = (v > 0) & (uniform.log() < 0.5 * normal**2 + d - d * v + d * positive.log())
        drawn = torch.cat([drawn, d * v[accept]])
    return drawn[:n] / shape


def quadrature(n: int, dim: int, dof: float, seed: int = 0) -> Tensor:
    """(n, dim) scrambled Sobol points carried to the density, float64: averages over them converge faster than over draws."""
    normal = math.isinf(dof)
    engine = torch.quasirandom.SobolEngine(dim + int(not normal), scramble=True, seed=seed)
    u = engine.draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    x = torch.special.ndtri(u[:, :dim])
    if normal:
        return x
    from scipy.special import gammaincinv  # here: a run is read back without waiting for scipy

    chi_squared = 2 * gammaincinv(dof / 2, u[:, -1].numpy())
    return x / torch.from_numpy(chi_squared / dof).sqrt()[:, None]


def mahalanobis(x: Tensor, location: Tensor, scatter: Tensor) -> Tensor:
    """Squares (N,) of points (N, D)."""
    centred = x - location
    return (torch.linalg.solve(scatter, centred.T).T * centred).sum(1)


def fit_student_t(x: Tensor, dof: float | None = None, sweeps: int = 60) -> tuple[Tensor, Tensor, float]:
    """Elliptical Student-t of highest likelihood for x (N, D): location (D,), scatter (D, D), degrees of freedom.

    Expectation maximisation for location and scatter; the degrees of freedom, unless given, are the best of a fine
    grid from 2.1 to 100 at every sweep (Liu and Rubin 1995). Of infinitely many it is the normal. It ends where the scatter has
    settled, at most after so many ``sweeps``.
    """
    x = x.double()
    location, scatter = moments(x)
    if dof is not None and math.isinf(dof):
        return location, scatter * ((len(x) - 1) / len(x)), dof
    dim = x.shape[1]
    grid = torch.logspace(math.log10(2.1), 2, 80, dtype=x.dtype, device=x.device)
    constants = _log_constant(grid, dim)
    ridge = 1e-10 * scatter.diagonal().mean().clamp_min(1e-30) * torch.eye(dim, dtype=x.dtype, device=x.device)
    current = torch.tensor(dof or 5.0, dtype=x.dtype, device=x.device)
    for _ in range(sweeps):
        squares = mahalanobis(x, location, scatter + ridge)
        if dof is None:
            fit = constants - 0.5 * (grid + dim) * torch.log1p(squares[:, None] / grid).mean(0)
            current = grid[fit.argmax()]
        weights = (current + dim) / (current + squares)
        location = (weights[:, None] * x).sum(0) / weights.sum()
        centred, before = x - location, scatter
        scatter = (weights[:, None] * centred).T @ centred / len(x)
        if float((scatter - before).abs().max()) < _SETTLED * float(scatter.diagonal().max()):
            break
    return location, scatter, float(current)
