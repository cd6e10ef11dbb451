"""Is there a gap in a sample of numbers? Spacings of many widths, against samples of the uniform distribution.

A density with one mode, however skewed or heavy-tailed, shows a valley between two peaks of its sample by chance. The
uniform distribution does so most often, since it has no mode to hold the sample together (Hartigan and Hartigan 1985).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SHARES = (0.05, 0.08, 0.12, 0.18, 0.25, 0.35)  # of the points that a window holds
_N_UNIFORM = 2999
_IN_CACHE = 100_000  # numbers of samples at a time


def depths(x: np.ndarray) -> np.ndarray:
    """How deep the deepest gap of each sample is, seen through windows of several widths.

    A window of k successive points has the density F = -log(its width). A gap is as deep as the lower of the highest
    windows on either side lies above it, times sqrt(k), since log-densities of k points scatter by 1 / sqrt(k).

    Args:
        x: (B, n) samples, each sorted.

    Returns:
        (B, len(SHARES)).
    """
    found = []
    for k in _sizes(x.shape[1]):
        width = _widths(x, k)
        left = np.minimum.accumulate(width, axis=1)
        right = np.minimum.accumulate(width[:, ::-1], axis=1)[:, ::-1]
        deepest = np.divide(width, np.maximum(left, right, out=left), out=left).max(1)
        found.append(np.sqrt(k) * np.log(deepest))
    return np.stack(found, axis=1)


def gap_p_value(x: np.ndarray) -> np.ndarray:
    """Share of uniform samples of as many points whose deepest gap is at least as deep, for each of the samples.

    Args:
        x: (B, n), in any order.

    Returns:
        (B,).
    """
    table, smallest = _uniform(_rounded(x.shape[1]))
    each = _p_values(table, depths(np.sort(x, axis=1))).min(1)
    return (1 + np.searchsorted(smallest, each, side="right")) / (1 + _N_UNIFORM)


def widest_gap(x: np.ndarray) -> float:
    """The middle of the deepest gap of one sample (n,), where its two sides are told apart."""
    x = np.sort(x)
    k = _sizes(len(x))[2]
    width = _widths(x[None], k)[0]
    left = np.minimum.accumulate(width)
    right = np.minimum.accumulate(width[::-1])[::-1]
    at = int((width / np.maximum(left, right)).argmax())
    return float((x[at] + x[at + k]) / 2)


def _sizes(n: int) -> list[int]:
    return [min(n - 1, max(4, round(share * n))) for share in SHARES]


def _widths(x: np.ndarray, k: int) -> np.ndarray:
    width = x[:, k:] - x[:, :-k]
    return np.add(width, 1e-6 * (x[:, -1:] - x[:, :1]) + 1e-300, out=width)


def _rounded(n: int) -> int:
    """n to two significant digits: the law of the depths varies slowly with n, and so few tables serve all."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return n // unit * unit


@lru_cache(maxsize=64)
def _uniform(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Depths of uniform samples, each column sorted (N, len(SHARES)); their smallest p-values, sorted (N,)."""
    rng = np.random.default_rng(n)
    batches = np.array_split(np.arange(_N_UNIFORM), max(1, _N_UNIFORM * n // _IN_CACHE))
    # Uniform order statistics are sums of exponential waiting times: no sorting.
    parts = []
    for batch in batches:
        waits = rng.exponential(size=(len(batch), n))
        parts.append(depths(np.cumsum(waits, axis=1)))
    found = np.concatenate(parts)
    table = np.sort(found, axis=0)
    return table, np.sort(_p_values(table, found).min(1))


def _p_values(table: np.ndarray, found: np.ndarray) -> np.ndarray:
    columns = zip(table.T, found.T, strict=True)
    return np.stack([(1 + len(t) - np.searchsorted(t, v)) / (1 + len(t)) for t, v in columns], axis=1)
