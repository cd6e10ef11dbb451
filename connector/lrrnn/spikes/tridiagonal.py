"""Cholesky factors of symmetric block-tridiagonal matrices, many side by side: precisions of latent paths.

    H[t, t] = D[t],    H[t + 1, t] = E[t],    H = C C^T,    C[t, t] = L[t],    C[t + 1, t] = W[t]

Time is the only loop. A step has a few dozen operations on vectors of one number per matrix, of a few hundred entries: NumPy
spends less time than PyTorch on calling them, and much less than routines for batches of small matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """C of B matrices with blocks R x R: L^-1 (T, R, R, B), W (T - 1, R, R, B), log_det (B,) of C."""

    inverse: np.ndarray
    lower: np.ndarray
    log_det: Tensor

    def of(self, trials: slice) -> Factor:
        """Of some of the matrices."""
        return Factor(self.inverse[..., trials], self.lower[..., trials], self.log_det[trials])

    def forward(self, g: Tensor) -> Tensor:
        """C^-1 g; g (B, T, R, N), N right-hand sides."""
        return torch.from_numpy(self._forward(time_first(g))).movedim(-1, 0)

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Blocks (t, t) (B, T, R, R) and (t, t + 1) (B, T - 1, R, R) of H^-1."""
        own, following = np.empty_like(self.inverse), np.empty_like(self.lower)
        for t in range(len(own) - 1, -1, -1):
            root = self.inverse[t]  # L^-1
            own[t] = np.einsum("kib,kjb->ijb", root, root)
            if t + 1 < len(own):
                gain = np.einsum("kib,jkb->ijb", root, self.lower[t])  # L^-T W^T
                following[t] = -np.einsum("ikb,kjb->ijb", gain, own[t + 1])
                own[t] -= np.einsum("ikb,jkb->ijb", following[t], gain)
        return torch.from_numpy(own).movedim(-1, 0), torch.from_numpy(following).movedim(-1, 0)

    def _forward(self, g: np.ndarray) -> np.ndarray:
        found = np.empty_like(g)
        for t in range(len(g)):
            right = g[t] if t == 0 else g[t] - _times(self.lower[t - 1], found[t - 1])
            found[t] = _times(self.inverse[t], right)
        return found

    def _backward(self, y: np.ndarray) -> np.ndarray:
        found, last = np.empty_like(y), len(y) - 1
        for t in range(last, -1, -1):
            right = y[t] if t == last else y[t] - _transposed_times(self.lower[t], found[t + 1])
            found[t] = _transposed_times(self.inverse[t], right)
        return found

    def backward(self, y: Tensor) -> Tensor:
        """C^-T y; y (B, T, R). Of standard normal y: a draw of the Gaussian of precision H."""
        return _back(self._backward(time_first(y)))

    def solve(self, g: Tensor) -> Tensor:
        """H^-1 g; g (B, T, R)."""
        return _back(self._backward(self._forward(time_first(g))))

    def transposed_times(self, x: Tensor) -> Tensor:
        """C^T x, the inverse of :meth:`backward`; x (B, T, R)."""
        x = time_first(x)
        rank, out = x.shape[1], np.empty_like(x)
        for i in range(rank - 1, -1, -1):  # L^T v = x by substitution: L^-T is upper triangular
            total = x[:, i].copy()
            for j in range(i + 1, rank):
                total -= self.inverse[:, j, i] * out[:, j]
            out[:, i] = total / self.inverse[:, i, i]
        for i in range(rank):
            for j in range(rank):
                out[:-1, i] += self.lower[:, j, i] * x[1:, j]
        return _back(out)


def factorise(diagonal: np.ndarray, below: np.ndarray) -> Factor:
    """diagonal (T, R, R, B) blocks D, below (T - 1, R, R, B) blocks E; float64, in the order of :func:`time_first`."""
    steps, rank = len(diagonal), diagonal.shape[1]
    inverse, lower = np.zeros_like(diagonal), np.empty_like(below)
    log_det = np.zeros(diagonal.shape[-1])
    for t in range(steps):
        block = diagonal[t]
        if t:
            w, previous = lower[t - 1], inverse[t - 1]
            for i in range(rank):
                for j in range(rank):  # W = E L^-T
                    total = below[t - 1, i, 0] * previous[j, 0]
                    for k in range(1, j + 1):
                        total += below[t - 1, i, k] * previous[j, k]
                    w[i, j] = total
            block = block.copy()
            for i in range(rank):
                for j in range(i + 1):
                    for k in range(rank):
                        block[i, j] -= w[i, k] * w[j, k]
        log_det += _invert_factor(block, inverse[t])
    return Factor(inverse, lower, torch.from_numpy(log_det))


def _invert_factor(block: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes L^-1 of block = L L^T (R, R, B) into ``out``, zero above its diagonal; log determinant (B,) of L."""
    rank = len(block)
    rows: list[list[np.ndarray]] = []
    size = np.ones_like(block[0, 0])
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
        size = size * row[i]
        rows.append(row)
    for j in range(rank):
        for i in range(j + 1, rank):
            total = rows[i][j] * out[j, j]
            for k in range(j + 1, i):
                total += rows[i][k] * out[k, j]
            out[i, j] = -total * out[i, i]
    return np.log(size)


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(R, R, B) (R, [N,] B) -> (R, [N,] B)."""
    if vector.ndim == 3:
        matrix = matrix[:, :, None]
    out = matrix[:, 0] * vector[0]
    for j in range(1, len(vector)):
        out += matrix[:, j] * vector[j]
    return out


def _transposed_times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    out = matrix[0] * vector[0]
    for j in range(1, len(vector)):
        out += matrix[j] * vector[j]
    return out


def time_first(x: Tensor) -> np.ndarray:
    """A copy: (B, T, ...) -> (T, ..., B)."""
    return np.array(x.movedim(0, -1).numpy(), order="C")


def _back(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))
