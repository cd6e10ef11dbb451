"""Kernels over whitened loadings. ``odd``: k(x, x') = -k(-x, x'); else a constant is among the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KERNELS = ("none", "arcsine", "additive", "rbf", "matern32")
WIDTHS = (0.2, 0.4, 0.8, 1.6, 3.2)
_CHUNK = 4_000_000  # entries of a matrix built at a time: 32 MB


def linear_features(x: Tensor, odd: bool) -> Tensor:
    return x if odd else torch.cat([torch.ones_like(x[:, :1]), x], dim=1)


def _arcsine_rows(x: Tensor, odd: bool) -> Tensor:
    """Rows (..., P or P + 1) whose inner products are the arguments of the arcsine in :func:`_arcsine`."""
    if not odd:
        x = torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
    return x * (2 / (1 + 2 * x.square().sum(-1, keepdim=True))).sqrt()


def _arcsine(inner: Tensor) -> Tensor:
    """Covariance of an infinitely wide network of error functions (Williams 1998), of :func:`_arcsine_rows`."""
    return (2 / math.pi) * torch.asin(inner)


def _stationary(squared: Tensor, family: str) -> Tensor:
    if family == "rbf":
        return torch.exp(-0.5 * squared)
    distance = (3 * squared.clamp_min(0)).sqrt()
    return (1 + distance) * torch.exp(-distance)


def kernel(x: Tensor, y: Tensor, family: str, width: float, odd: bool) -> Tensor:
    """Covariance (N, M) of unit order between whitened loadings x (N, P) and y (M, P).

    Args:
        family: "arcsine"; "additive" (a mean of arcsine kernels, one on each column); "rbf"; "matern32".
        width: in units of the loadings' standard deviations.
        odd: whether functions are odd; otherwise the arcsine kernels see a constant beside the loadings.
    """
    x, y = x / width, y / width
    if family == "additive":
        columns = [(_arcsine_rows(x[:, j, None], odd), _arcsine_rows(y[:, j, None], odd)) for j in range(x.shape[1])]
        return sum(_arcsine(a @ b.T) for a, b in columns) / len(columns)
    if family == "arcsine":
        return _arcsine(_arcsine_rows(x, odd) @ _arcsine_rows(y, odd).T)
    inner, xx, yy = x @ y.T, x.square().sum(1)[:, None], y.square().sum(1)[None]
    if not odd:
        return _stationary(xx + yy - 2 * inner, family)
    return 0.5 * (_stationary(xx + yy - 2 * inner, family) - _stationary(xx + yy + 2 * inner, family))


def kernel_pairs(x: Tensor, y: Tensor, family: str, width: float, odd: bool) -> Tensor:
    """k(x, y) of matching rows of x and y (..., P), broadcast: shape (...). Arguments as in :func:`kernel`."""
    x, y = x / width, y / width
    if family == "additive":
        return _arcsine((_arcsine_rows(x[..., None], odd) * _arcsine_rows(y[..., None], odd)).sum(-1)).mean(-1)
    if family == "arcsine":
        return _arcsine((_arcsine_rows(x, odd) * _arcsine_rows(y, odd)).sum(-1))
    near = _stationary((x - y).square().sum(-1), family)
    return 0.5 * (near - _stationary((x + y).square().sum(-1), family)) if odd else near


def kernel_diagonal(x: Tensor, family: str, width: float, odd: bool) -> Tensor:
    """k(x, x) for each row of x (N, P): shape (N,)."""
    x = x / width
    if family == "additive":
        return _arcsine(_arcsine_rows(x[..., None], odd).square().sum(-1)).mean(1)
    if family == "arcsine":
        return _arcsine(_arcsine_rows(x, odd).square().sum(1))
    own = x.square().sum(1)
    if not odd:
        return torch.ones_like(own)
    return 0.5 * (1 - _stationary(4 * own, family))


def project_kernel(
    x: Tensor, centres: Tensor, subset: bool, v: Tensor, family: str, width: float, odd: bool
) -> tuple[Tensor, Tensor]:
    """P (centres, p) such that Cov(g(l), v^T g(x)) = k(l, centres) P for the curved part g, and Cov(v^T g(x)) (p, p).

    Args:
        x: (K, P) whitened loadings. v: (K, p) weights of g(x).
        centres: (C, P). subset: whether they are fewer than x: then g is replaced by its best prediction from the
            centres, in both alike; else they are x itself.
        family, width, odd: see :func:`kernel`.
    """
    if family == "none":
        return v.new_zeros(len(centres), v.shape[1]), v.new_zeros(v.shape[1], v.shape[1])
    rows = max(1, _CHUNK // (4 * len(centres)))
    cross = sum(kernel(centres, x[i : i + rows], family, width, odd) @ v[i : i + rows] for i in range(0, len(x), rows))
    projection = v
    if subset:
        own = kernel(centres, centres, family, width, odd)
        own.diagonal().add_(1e-9 * own.diagonal().mean())
        projection = torch.cholesky_solve(cross, torch.linalg.cholesky(own))
    covariance = projection.T @ cross
    return projection, 0.5 * (covariance + covariance.T)
