"""What a pool of neurons can drive: the design X = phi(Z M^T + U B^T + d) / K and its leading modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.dynamics import Activation, potentials
from connector.errors import UserError
from connector.numerics import leading_modes, pieces
from connector.shooting import Field
from connector.types import Loadings


@dataclass(frozen=True)
class Design:
    """X (T, K) of T states z (T, R) and inputs u (T, U), seen through K loadings; built a piece at a time."""

    phi: Activation
    pool: Loadings
    z: Tensor
    u: Tensor | None

    def rates(self, states: slice | Tensor = slice(None), neurons: slice | Tensor = slice(None)) -> Tensor:
        """K X of some states and neurons."""
        u = None if self.u is None else self.u[states]
        return self.phi(potentials(self.pool.map(lambda x: x[neurons]), self.z[states], u))

    def times(self, right: Tensor) -> Tensor:
        """X right, (T, columns)."""
        k = self.pool.n_neurons
        return torch.cat([self.rates(at) / k @ right for at in pieces(len(self.z), k)])

    def transposed_times(self, left: Tensor) -> Tensor:
        """X^T left, (K, columns)."""
        k = self.pool.n_neurons
        return torch.cat([self.rates(neurons=at).T @ left / k for at in pieces(k, len(self.z))])

    def gram(self) -> Tensor:
        """X^T X (K, K) if there are fewer neurons than states or as many, else X X^T (T, T)."""
        t, k = len(self.z), self.pool.n_neurons
        size = min(t, k)
        gram = self.z.new_zeros(size, size)
        for at in pieces(max(t, k), size):
            part = self.rates(at) if k <= t else self.rates(neurons=at).T
            gram.addmm_(part.T, part)
        return gram / k**2


@dataclass(frozen=True)
class Modes:
    """y = X n + noise seen through X = P S V^T, modes in descending order.

    V (K, p) orthonormal; singular (p,); a (p, R) = S^-1 P^T y, so that a = V^T n + noise / S; left (T, p) = P;
    residual: variance of y outside the modes; total: the sum of squares of y.
    """

    v: Tensor
    singular: Tensor
    left: Tensor
    a: Tensor
    residual: float
    total: float

    @staticmethod
    def of(v: Tensor, singular: Tensor, left: Tensor, y: Tensor) -> Modes:
        coefficients, total = left.T @ y, float(y.square().sum())
        dof = max(1, len(y) - len(singular)) * y.shape[1]
        residual = max(total - float(coefficients.square().sum()), 1e-14 * total) / dof
        return Modes(v, singular, left, coefficients / singular[:, None], residual, total)

    @property
    def n_states(self) -> int:
        return len(self.left)

    def of_more_states(self, design: Design, y: Tensor) -> Modes:
        """The same modes with ``a`` and the noise taken from more states: noise in y averages out."""
        basis = design.times(self.v)
        values, rotation = torch.linalg.eigh(basis.T @ basis)
        singular, rotation = values.flip(0).clamp_min(1e-300).sqrt(), rotation.flip(1)
        return Modes.of(self.v @ rotation, singular, basis @ rotation / singular, y)

    def determined(self, n_neurons: int, lam: float) -> float:
        """sum_j g_j / (g_j + lambda) over the eigenvalues g_j of K/T X X^T."""
        g = self.singular**2 * n_neurons / self.n_states
        return float((g / (g + lam)).sum())


def observed_modes(design: Design, y: Tensor, cutoff: float, max_modes: int) -> Modes:
    """Modes with a singular value above ``cutoff`` times the first, at most so many."""
    values, vectors = (x[..., :max_modes] for x in leading_modes(design.gram(), cutoff**2))
    singular = values.sqrt()
    if len(vectors) == design.pool.n_neurons:
        return Modes.of(vectors, singular, design.times(vectors) / singular, y)
    return Modes.of(design.transposed_times(vectors) / singular, singular, vectors, y)


def _pivots(columns: Tensor, most: int = 300, tolerance: float = 1e-12) -> tuple[Tensor, list[int]]:
    """Orthonormal (T, q), in the span of the picked columns of (T, K), that leaves no column's square above ``tolerance``
    of the largest; and which were picked."""
    norms = columns.square().sum(0)
    first = float(norms.max())
    q, picked = columns[:, :0], []
    for _ in range(min(most, *columns.shape)):
        j = int(norms.argmax())
        direction = columns[:, j]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            direction = direction - q @ (q.T @ direction)
        length = float(direction.norm())
        if length**2 <= tolerance * first or first == 0:
            break
        q = torch.cat([q, direction[:, None] / length], 1)
        picked.append(j)
        norms = (norms - (q[:, -1] @ columns) ** 2).clamp_min(0)
        norms[j] = 0
    return q, picked


def build_field(
    design: Design,
    alpha: float,
    stride: int,
    cutoff: float,
    max_modes: int,
    generator: torch.Generator,
    carried: float = 1e-12,
) -> tuple[Field, Tensor]:
    """Singular functions B over the design's states, carried by pivoted columns of X (an interpolative decomposition), and
    v (K, p) with phi(h_q) / K = B v_q for each of the pool's K neurons.

    All functions phi(l_q.(z, u, 1)) lie, within 1e-6 of the largest, in the span of a few dozen of them. With X = Q R,
    Q from those columns, the singular values of X are those of R. ``carried``: square of a function, against the largest,
    that those columns may leave; fewer columns cost less in every evaluation.

    Raises:
        UserError: where no rate is above zero.
    """
    size = design.pool.n_neurons
    subset = torch.randperm(size, generator=generator)[:4000].to(design.z.device)
    q, picked = _pivots(design.rates(neurons=subset) / size, tolerance=carried)
    if not picked:
        raise UserError("neurons whose rates vary over the states", "rates that are zero at every state")
    r, anchors = design.transposed_times(q).T, subset[picked]  # r (anchors, Q)
    values, vectors = (x[..., :max_modes] for x in leading_modes(r @ r.T, cutoff**2))
    singular = values.sqrt()
    mixing = torch.linalg.solve(r[:, anchors], vectors * singular) / size
    field = Field(design.phi, design.pool.map(lambda x: x[anchors]), mixing, alpha, stride)
    return field, r.T @ vectors / singular
