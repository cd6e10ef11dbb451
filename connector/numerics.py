"""Linear algebra: least squares, ridge, modes and roots of matrices, and rows taken at random or in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 4_000_000  # entries of a float64 matrix built at a time: 32 MB
_LARGE = 400  # rows of a matrix whose first eigenvectors are found for less than all of them
CACHED = 1 << 18  # of one that is built, read once and dropped: 2 MB, which stay in a processor's cache


def pieces(n_rows: int, row_entries: int, entries: int = CHUNK) -> Iterator[slice]:
    """Slices of ``n_rows`` rows, each of at most ``entries`` entries and at least one row."""
    step = max(1, entries // max(1, row_entries))
    return (slice(start, start + step) for start in range(0, n_rows, step))


def random_rows(n_rows: int, size: int, seed: int = 0) -> Tensor:
    """At most ``size`` of ``n_rows`` rows in ascending order, always the same ones."""
    if n_rows <= size:
        return torch.arange(n_rows)
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def even_rows(n_rows: int, size: int) -> Tensor:
    """At most ``size`` of ``n_rows`` rows, evenly spread from the first to the last."""
    return torch.linspace(0, n_rows - 1, min(size, n_rows)).long()


def gaussian(lag: Tensor, sd: float) -> Tensor:
    """exp(-lag^2 / 2 sd^2), elementwise: 1 at its peak, so that sums under it count."""
    return torch.exp(-0.5 * (lag / sd) ** 2)


def gaussian_window(n: int, sd: float) -> Tensor:
    """exp(-(t - s)^2 / 2 sd^2) of samples t, s = 0 .. n - 1, (n, n), float64."""
    time = torch.arange(n, dtype=torch.float64)
    return gaussian(time[:, None] - time, sd)


def least_squares(design: Tensor, targets: Tensor) -> Tensor:
    """x of smallest norm among those that minimise ||design x - targets||, by a singular value decomposition.

    torch's own default on a CPU, LAPACK's ``gelsy``, is called with column pivots that nobody has set: about one call
    in ten differs in its last digits, and two runs of one seed with it. On a GPU torch has no solver for designs short
    of full rank. So this one is ``gelsd``, and on the CPU, where the few columns of our designs cost little.

    Args:
        design: (..., T, P), of any rank.
        targets: (..., T, Q).

    Returns:
        (..., P, Q), on the device of ``targets``.
    """
    solution = torch.linalg.lstsq(design.cpu(), targets.cpu(), driver="gelsd").solution
    return solution.to(targets.device)


def ridge(design: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """x (P, Q) that minimises ||design x - targets||^2 + penalty ||x||^2, by the smaller Gram matrix of design (T, P)."""
    tall = design.shape[0] >= design.shape[1]
    gram = design.T @ design if tall else design @ design.T
    gram.diagonal().add_(penalty)
    factor = torch.linalg.cholesky(gram)
    if tall:
        return torch.cholesky_solve(design.T @ targets, factor)
    return design.T @ torch.cholesky_solve(targets, factor)


def symmetric_root(matrix: Tensor, floor: float = 0.0, power: float = 0.5) -> Tensor:
    """Symmetric power (..., P, P), by default the root, of symmetric matrices; eigenvalues are raised to ``floor`` first.

    The power 1 gives the nearest matrix whose eigenvalues are not below ``floor``.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(floor)[..., None, :] ** power) @ vectors.mT


def inverse_root(x: Tensor) -> Tensor:
    """Symmetric (x^T x / N)^(-1/2); directions in which x does not vary are left alone."""
    moments = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(moments)
    floor = 1e-10 * values[-1].clamp_min(1e-300)
    return (vectors * torch.where(values > floor, values, torch.ones_like(values)).rsqrt()) @ vectors.T


def whitening_of(x: Tensor) -> Tensor:
    """W (P, P) of x W with unit second moments: :func:`inverse_root`, after columns in units a thousand times apart were
    brought to unit size, among which the small ones would pass for constant."""
    size = x.square().mean(0).sqrt()
    varying = size > 1e-12 * size.max()
    if not varying.any() or float(size.max() / size[varying].min()) < 1e3:
        return inverse_root(x)
    scale = torch.where(varying, size, 1.0)
    return inverse_root(x / scale) / scale[:, None]


def power_of_two(size: Tensor) -> Tensor:
    """The power of two nearest to each size (in logarithms), by which dividing loses no digit; 1 for a size of 0."""
    return torch.where(size > 0, 2.0 ** size.clamp_min(1e-300).log2().round(), 1.0)


def leading_modes(gram: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues (q,) above ``cutoff`` of the largest, falling, and eigenvectors (P, q) of a symmetric matrix (P, P)."""
    values, vectors = torch.linalg.eigh(gram)
    keep = values > cutoff * values[-1]
    return values[keep].flip(0), vectors[:, keep].flip(1)


def leading_vectors(gram: Tensor, number: int) -> Tensor:
    """Eigenvectors (P, number) of the largest eigenvalues, falling, of a symmetric matrix (P, P)."""
    if len(gram) >= _LARGE:
        values, vectors = (x[..., -number:] for x in _leading(gram, min(len(gram), number + 8)))
        if float((gram @ vectors - vectors * values).norm()) < 1e-8 * float(values[-1]):
            return vectors.flip(1)
    return torch.linalg.eigh(gram).eigenvectors[:, -number:].flip(1)


def _leading(gram: Tensor, width: int, sweeps: int = 4) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (width,), rising, and their eigenvectors (P, width), by subspace iteration (Halko et al. 2011): exact
    where the next eigenvalue is far below, in a tenth of the time of all eigenvectors."""
    block = torch.randn(len(gram), width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(gram)
    for _ in range(sweeps):
        block = torch.linalg.qr(gram @ block).Q
    values, turn = torch.linalg.eigh(block.mT @ gram @ block)
    return values, block @ turn


def sum_of_trials(x: Tensor, trials: Tensor | None = None) -> Tensor:
    """(K,) float64: the sum of x (trials, time, K) over time and over some trials, (n,) int64, or all. Only sums over time are taken
    in the precision of x, where torch adds pairwise: a tenth of the time of a sum in double precision."""
    of_each = x.sum(1)
    return (of_each if trials is None else of_each[trials]).double().sum(0)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of rows x (N, D)."""
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / max(len(x) - 1, 1)


def covariance_root(covariance: Tensor) -> Tensor:
    """A (D, D) with A A^T = covariance; constant columns and directions without variance get a negligible scale.

    Each column is scaled by itself first, so that the floor does not depend on the columns' units.
    """
    spread = column_spread(covariance)
    values, vectors = torch.linalg.eigh(covariance / spread[:, None] / spread[None])
    return spread[:, None] * (vectors * values.clamp_min(1e-8).sqrt()) @ vectors.T


def column_spread(covariance: Tensor) -> Tensor:
    """Standard deviations (D,); for constant columns the largest of them, 1 where all are constant."""
    spread = covariance.diagonal().clamp_min(0).sqrt()
    largest = spread.max()
    return torch.where(spread > 1e-12 * largest, spread, torch.where(largest > 0, largest, 1.0))


def warming_rate(decay: float, n_averaged: float) -> float:
    """The fraction of averaged weights that stays in their next update."""
    return min(decay, (1.0 + n_averaged) / (10.0 + n_averaged))
