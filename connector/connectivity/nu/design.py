"""What a pool of neurons can drive: the design X = phi(Z M^T + U B^T + d) / K in its leading modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.population import Pool
from connector.dynamics import Activation, potentials
from connector.errors import UserError
from connector.types import Loadings

_CHUNK = 4_000_000  # entries of a matrix built at a time: 32 MB


@dataclass
class Modes:
    """y = X n + noise seen through X = P S V^T, modes in descending order.

    V (K, p) orthonormal; singular (p,); a (p, R) = S^-1 P^T y, so that a = V^T n + noise / S;
    residual (1,) variance of y outside the modes; total, the sum of squares of y; left (T, p) = P, where kept.
    """

    v: Tensor
    singular: Tensor
    a: Tensor
    residual: float
    total: float
    n_states: int
    left: Tensor | None = None


def design_matrix(phi, pool: Loadings, z: Tensor, u: Tensor | None) -> Tensor:
    return phi(potentials(pool, z, u)) / pool.n_neurons


def _gram(phi, pool: Loadings, z: Tensor, u: Tensor | None) -> tuple[Tensor, bool]:
    """X^T X (K, K) if there are fewer neurons than states, else X X^T (T, T); and which."""
    n_states, n_neurons = len(z), pool.n_neurons
    by_neurons = n_neurons <= n_states
    size = min(n_states, n_neurons)
    gram = z.new_zeros(size, size)
    step = max(1, _CHUNK // size)
    for start in range(0, max(n_states, n_neurons), step):
        rows = slice(start, start + step)
        if by_neurons:
            part = phi(potentials(pool, z[rows], None if u is None else u[rows]))
        else:
            part = phi(potentials(pool.map(lambda x, r=rows: x[r]), z, u)).T
        gram.addmm_(part.T, part)
    return gram / n_neurons**2, by_neurons


def times_design(phi, pool: Loadings, z: Tensor, u: Tensor | None, right: Tensor) -> Tensor:
    """X right, (T, columns), in chunks of states."""
    step = max(1, _CHUNK // pool.n_neurons)
    return torch.cat(
        [
            design_matrix(phi, pool, z[i : i + step], None if u is None else u[i : i + step]) @ right
            for i in range(0, len(z), step)
        ]
    )


def design_times(phi, pool: Loadings, z: Tensor, u: Tensor | None, left: Tensor) -> Tensor:
    """X^T left, (K, columns), in chunks of neurons."""
    step = max(1, _CHUNK // len(z))
    parts = []
    for i in range(0, pool.n_neurons, step):
        part = phi(potentials(pool.map(lambda x, i=i: x[i : i + step]), z, u))
        parts.append(part.T @ left / pool.n_neurons)
    return torch.cat(parts)


def observed_modes(phi, pool: Loadings, z: Tensor, u: Tensor | None, y: Tensor, cutoff: float, max_modes: int) -> Modes:
    gram, by_neurons = _gram(phi, pool, z, u)
    values, vectors = torch.linalg.eigh(gram)
    keep = values > cutoff**2 * values[-1]
    keep[: max(0, len(values) - max_modes)] = False
    singular, vectors = values[keep].flip(0).sqrt(), vectors[:, keep].flip(1)
    if by_neurons:
        v = vectors
        left = times_design(phi, pool, z, u, v) / singular
    else:
        left = vectors
        v = design_times(phi, pool, z, u, left) / singular
    coefficients = left.T @ y
    total = float(y.square().sum())
    dof = max(1, len(z) - len(singular)) * y.shape[1]
    residual = max(total - float(coefficients.square().sum()), 1e-14 * total) / dof
    return Modes(v, singular, coefficients / singular[:, None], residual, total, len(z), left)


def more_states(modes: Modes, phi, pool: Loadings, z: Tensor, u: Tensor | None, y: Tensor) -> Modes:
    """The same modes with ``a`` and the noise taken from more states: noise in y averages out."""
    basis = times_design(phi, pool, z, u, modes.v)
    values, rotation = torch.linalg.eigh(basis.T @ basis)
    values, rotation = values.flip(0).clamp_min(1e-300), rotation.flip(1)
    singular = values.sqrt()
    coefficients = (basis @ rotation / singular).T @ y
    total = float(y.square().sum())
    dof = max(1, len(z) - len(singular)) * y.shape[1]
    residual = max(total - float(coefficients.square().sum()), 1e-14 * total) / dof
    return Modes(modes.v @ rotation, singular, coefficients / singular[:, None], residual, total, len(z))


@dataclass
class Basis:
    """B(z, u) = phi(potentials of a few anchor neurons) @ mixing (anchors, p); v (Q, p) as in the module's text."""

    phi: Activation
    anchors: Loadings
    mixing: Tensor
    v: Tensor

    def __call__(self, z: Tensor, u: Tensor | None) -> Tensor:
        return self.phi(potentials(self.anchors, z, u)) @ self.mixing


def build_basis(phi, pool: Pool, z: Tensor, u: Tensor | None, cutoff: float, max_modes: int, generator) -> Basis:
    """Singular functions over the states z (T, R), carried by pivoted columns of X (an interpolative decomposition).

    All functions phi(l_q.(z, u, 1)) lie, within 1e-6 of the largest, in the span of a few dozen of them. With X = Q R,
    Q from those columns, the singular values of X are those of R.
    """
    points = pool.points
    subset = torch.randperm(pool.size, generator=generator)[:4000].to(z.device)
    few = points.map(lambda x: x[subset])
    residual = phi(potentials(few, z, u)) / pool.size  # (T, subset)
    columns = residual.clone()
    norms = columns.square().sum(0)
    first = float(norms.max())
    q: list[Tensor] = []
    picked: list[int] = []
    for _ in range(min(300, *columns.shape)):
        j = int(norms.argmax())
        direction = columns[:, j]
        if q:
            basis = torch.stack(q, dim=1)
            for _ in range(2):  # twice is enough for orthogonality to rounding
                direction = direction - basis @ (basis.T @ direction)
        length = float(direction.norm())
        if length**2 <= 1e-12 * first or first == 0:
            break
        direction = direction / length
        q.append(direction)
        picked.append(j)
        norms = (norms - (direction @ columns) ** 2).clamp_min(0)
        norms[j] = 0
    if not q:
        raise UserError("neurons whose rates vary over the states", "rates that are zero at every state")
    q = torch.stack(q, dim=1)
    r = design_times(phi, points, z, u, q).T  # (anchors, Q)
    anchors = points.map(lambda x: x[subset[picked]])
    values, vectors = torch.linalg.eigh(r @ r.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    keep = (values > cutoff**2 * values[0]).nonzero()[:, 0][:max_modes]
    singular, vectors = values[keep].sqrt(), vectors[:, keep]
    mixing = torch.linalg.solve(r[:, subset[picked]], vectors * singular) / pool.size
    return Basis(phi, anchors, mixing, r.T @ vectors / singular)
