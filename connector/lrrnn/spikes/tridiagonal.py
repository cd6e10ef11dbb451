"""Roots of symmetric block-tridiagonal matrices, many side by side: precisions of latent paths.

    H[t, t] = D[t],    H[t + 1, t] = E[t],    H = C C^T

C is the Cholesky factor of H with its blocks in another order (cyclic reduction): those at even t come first, of which none
touches another, and what is left of the odd ones is tridiagonal again and treated alike. So a step of Python works on half of all
blocks of all matrices, and log T steps follow one another in place of T.

Arrays lead with the component, a number of each block and matrix (T, B) behind it, in the order of :func:`components_first`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """What is eliminated at once, the blocks at even t of those that are left.

    Attributes:
        inverse: (R, R, even, B) L^-1 of D = L L^T of each.
        before: (R, R, odd, B) H L^-T of each odd block and the even one before it; after: (R, R, odd or odd - 1, B) of it and the
            even one after it, where there is one.
    """

    inverse: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def of(self, matrices: slice) -> Level:
        """Of some of the matrices."""
        return Level(*(x[..., matrices] for x in (self.inverse, self.before, self.after)))


@dataclass(frozen=True)
class Factor:
    """C of B matrices with T blocks R x R each, level after level, and log_det (B,) of C."""

    levels: list[Level]
    log_det: Tensor

    def of(self, matrices: slice) -> Factor:
        """Of some of the matrices."""
        return Factor([level.of(matrices) for level in self.levels], self.log_det[matrices])

    def forward(self, g: Tensor) -> Tensor:
        """C^-1 g; g (B, T, R, N), N right-hand sides."""
        return torch.stack([self._applied(g[..., i], self._forward) for i in range(g.shape[3])], 3)

    def backward(self, y: Tensor) -> Tensor:
        """C^-T y; y (B, T, R). Of standard normal y: a draw of the Gaussian of precision H."""
        return self._applied(y, self._backward)

    def solve(self, g: Tensor) -> Tensor:
        """H^-1 g; g (B, T, R)."""
        return self._applied(g, self._forward, self._backward)

    def transposed_times(self, x: Tensor) -> Tensor:
        """C^T x, the inverse of :meth:`backward`; x (B, T, R)."""
        return self._applied(x, self._transposed_times)

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Blocks (t, t) (B, T, R, R) and (t, t + 1) (B, T - 1, R, R) of H^-1."""
        own, following = _covariances(self.levels)
        return matrices_first(own), matrices_first(following)

    @staticmethod
    def _applied(x: Tensor, *moves: Callable[[np.ndarray], None]) -> Tensor:
        """``x`` after moves in place."""
        found = components_first(x)
        for move in moves:
            move(found)
        return matrices_first(found)

    def _forward(self, x: np.ndarray) -> None:
        for level in self.levels:
            even, odd = x[:, ::2], x[:, 1::2]
            even[...] = _times(level.inverse, even)
            odd -= _times(level.before, even[:, : odd.shape[1]])
            odd[:, : level.after.shape[2]] -= _times(level.after, even[:, 1:])
            x = odd

    def _backward(self, x: np.ndarray, depth: int = 0) -> None:
        if depth == len(self.levels):
            return
        level, even, odd = self.levels[depth], x[:, ::2], x[:, 1::2]
        self._backward(odd, depth + 1)
        even[:, : odd.shape[1]] -= _transposed(level.before, odd)
        even[:, 1:] -= _transposed(level.after, odd[:, : level.after.shape[2]])
        even[...] = _transposed(level.inverse, even)

    def _transposed_times(self, x: np.ndarray) -> None:
        for level in self.levels:
            even, odd = x[:, ::2], x[:, 1::2]
            for i in range(len(x) - 1, -1, -1):  # L^T v = x by substitution: L^-T is upper triangular
                for j in range(i + 1, len(x)):
                    even[i] -= level.inverse[j, i] * even[j]
                even[i] /= level.inverse[i, i]
            even[:, : odd.shape[1]] += _transposed(level.before, odd)
            even[:, 1:] += _transposed(level.after, odd[:, : level.after.shape[2]])
            x = odd


def factorise(diagonal: np.ndarray, below: np.ndarray) -> Factor:
    """diagonal (R, R, T, B) blocks D, below (R, R, T - 1, B) blocks E; float64."""
    levels, log_det = [], 0.0
    while diagonal.shape[2]:
        inverse, size = _inverse_root(diagonal[:, :, ::2])
        log_det = log_det + size.sum(0)
        odd = diagonal.shape[2] // 2
        before = np.einsum("ikab,jkab->ijab", below[:, :, ::2], inverse[:, :, :odd])
        after = np.einsum("kiab,jkab->ijab", below[:, :, 1::2], inverse[:, :, 1:])
        levels.append(Level(inverse, before, after))
        diagonal = diagonal[:, :, 1::2] - np.einsum("ikab,jkab->ijab", before, before)
        diagonal[:, :, : after.shape[2]] -= np.einsum("ikab,jkab->ijab", after, after)
        below = -np.einsum("ikab,jkab->ijab", before[:, :, 1:], after[:, :, : max(0, odd - 1)])
    return Factor(levels, torch.from_numpy(log_det))


def _inverse_root(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L^-1 of block = L L^T (R, R, ...), and the log determinant of L."""
    rank = len(block)
    out, rows = np.zeros(block.shape), []
    size = np.ones(block.shape[2:])
    for i in range(rank):
        row: list[np.ndarray] = []
        for j in range(i):
            value = block[i, j].copy()
            for k in range(j):
                value -= row[k] * rows[j][k]
            row.append(value * out[j, j])
        value = block[i, i].copy()
        for entry in row:
            value -= entry * entry
        row.append(np.sqrt(np.maximum(value, 1e-12 * np.abs(block[i, i]) + 1e-300)))
        out[i, i] = 1 / row[i]
        size *= row[i]
        rows.append(row)
    for j in range(rank):
        for i in range(j + 1, rank):
            total = rows[i][j] * out[j, j]
            for k in range(j + 1, i):
                total += rows[i][k] * out[k, j]
            out[i, j] = -total * out[i, i]
    return out, np.log(size)


def _covariances(levels: list[Level]) -> tuple[np.ndarray, np.ndarray]:
    """Blocks (t, t) (R, R, T, B) and (t, t + 1) (R, R, T - 1, B) of the inverse.

    An even block is L^-T e less the two gains times its neighbours, which gives its covariances with these, and its own.
    """
    level = levels[0]
    own = np.empty((*level.inverse.shape[:2], level.inverse.shape[2] + level.before.shape[2], level.inverse.shape[3]))
    own[:, :, ::2] = np.einsum("kiab,kjab->ijab", level.inverse, level.inverse)
    following = np.empty((*own.shape[:2], own.shape[2] - 1, own.shape[3]))
    if len(levels) == 1:
        return own, following
    odd, between = _covariances(levels[1:])
    own[:, :, 1::2] = odd
    right, left = level.before.shape[2], level.after.shape[2]  # even blocks with an odd one after, and before them
    to_right = np.einsum("kiab,jkab->ijab", level.inverse[:, :, :right], level.before)
    to_left = np.einsum("kiab,jkab->ijab", level.inverse[:, :, 1:], level.after)
    with_right = -np.einsum("ikab,kjab->ijab", to_right, odd)
    with_left = -np.einsum("ikab,kjab->ijab", to_left, odd[:, :, :left])
    # Blocks with both neighbours: these covary.
    both = right - 1
    with_right[:, :, 1:] -= np.einsum("ikab,kjab->ijab", to_left[:, :, :both], between)
    with_left[:, :, :both] -= np.einsum("ikab,jkab->ijab", to_right[:, :, 1:], between)
    even = own[:, :, ::2]
    even[:, :, :right] -= np.einsum("ikab,jkab->ijab", with_right, to_right)
    even[:, :, 1:] -= np.einsum("ikab,jkab->ijab", with_left, to_left)
    following[:, :, ::2] = with_right
    following[:, :, 1::2] = with_left.swapaxes(0, 1)
    return own, following


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(R, R, T, B) (R, T, B) -> (R, T, B)."""
    return np.einsum("ijab,jab->iab", matrix, vector)


def _transposed(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.einsum("jiab,jab->iab", matrix, vector)


def components_first(x: Tensor) -> np.ndarray:
    """A copy: (B, T, ...) -> (..., T, B)."""
    return np.array(x.permute(*range(2, x.ndim), 1, 0).numpy(), order="C")


def matrices_first(x: np.ndarray) -> Tensor:
    """A copy: (..., T, B) -> (B, T, ...)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(-1, -2, *range(x.ndim - 2))))
