"""Changes of latent coordinates: latents are determined up to an invertible linear map only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.output_weights import ridge_output_weights
from connector.lrrnn.samples import _SUBSET_SAMPLES
from connector.numerics import inverse_root, least_squares, random_rows
from connector.types import Loadings, valid_mask


@dataclass(frozen=True)
class Gauge:
    """A change of latent coordinates, z' = A z + c, that leaves all rates as they are.

    The loadings become m' = A^-T m and d' = d - m'.c; input weights b stay. Output weights become n' = A n. Without
    a shift the dynamics are the same exactly. A shift also adds c to the drive, which equation (1) has no constant
    for: it is absorbed into n by the smallest correction that supplies c on given states.

    Attributes:
        matrix: A (R, R), float64.
        shift: c (R,), zero for a linear gauge.
    """

    matrix: Tensor
    shift: Tensor

    @staticmethod
    def fit(z: Tensor, truth: Tensor, lengths: Tensor, train: Tensor | None = None, affine: bool = False) -> Gauge:
        """Least squares of one set of latents on another.

        Args:
            z: (trials, time, R) latents to be moved; truth: (trials, time, R) where they should go.
            lengths: (trials,) recorded samples of each trial.
            train: indices of the trials to fit on; None for all.
            affine: allow a shift; for models with a bias only, since no other model can absorb it.

        Raises:
            UserError: where shapes differ, or the latents do not span their space.
        """
        if z.shape != truth.shape:
            raise UserError(f"latents of the shape of the true ones, {tuple(truth.shape)}", str(tuple(z.shape)))
        if train is not None:
            z, truth, lengths = z[train], truth[train], lengths[train]
        mask = valid_mask(lengths, z.shape[1])
        x, y = z[mask].double(), truth[mask].double()
        if affine:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        solution = least_squares(x, y)
        matrix = solution[: z.shape[-1]].T
        shift = solution[-1] if affine else matrix.new_zeros(len(matrix))
        if not torch.linalg.cond(matrix) < 1e8:  # also for a zero matrix, whose condition is NaN
            raise UserError(
                "latents that are an invertible linear image of the true ones",
                "a singular map between them",
                "check the rank and that the trials visit more than one point",
            )
        return Gauge(matrix, shift)

    @staticmethod
    def nearest(z: Tensor, other: Tensor) -> Gauge:
        """To the mean and covariance of other states, turned so that they agree best; both (N, R). Never singular, however
        little the two have in common."""
        means, roots = zip(*((x.mean(0), inverse_root(x - x.mean(0))) for x in (z.double(), other.double())))
        u, _, vh = torch.linalg.svd(((other - means[1]) @ roots[1]).T @ ((z - means[0]) @ roots[0]))
        matrix = torch.linalg.inv(roots[1]) @ u @ vh @ roots[0]
        return Gauge(matrix, means[1] - matrix @ means[0])

    @property
    def inverse(self) -> Gauge:
        back = torch.linalg.inv(self.matrix)
        return Gauge(back, -back @ self.shift)

    def latents(self, z: Tensor) -> Tensor:
        """A z + c for z (..., R)."""
        return z @ self.matrix.T.to(z.dtype) + self.shift.to(z.dtype)

    def covariance(self, covariance: Tensor) -> Tensor:
        """Covariances (..., R, R) of states, moved along."""
        matrix = self.matrix.to(covariance.dtype)
        return matrix @ covariance @ matrix.T

    def loadings(self, loadings: Loadings) -> Loadings:
        """The loadings that read the new latents as the old ones were read; a shift needs a bias to go into."""
        inverse = torch.linalg.inv(self.matrix).to(loadings.m.dtype)
        m, d = loadings.m @ inverse, loadings.d
        if d is not None:
            d = d - m @ self.shift.to(m.dtype)
        elif self.shift.any():
            raise UserError("loadings with a bias for a gauge with a shift", "no bias", "fit a linear gauge")
        return Loadings(m, loadings.b, d)

    def loadings_covariance(self, covariance: Tensor, n_inputs: int = 0) -> Tensor:
        """Covariances (K, P, P) of stacked loadings (m, b, d), moved along."""
        rank, width = len(self.matrix), covariance.shape[-1]
        inverse = torch.linalg.inv(self.matrix).to(covariance.dtype)
        full = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
        full[:rank, :rank] = inverse.T
        if width > rank + n_inputs:
            full[-1, :rank] = -(inverse @ self.shift.to(covariance.dtype))
        return full @ covariance @ full.T

    def network(self, network: Network, z: Tensor | None = None, u: Tensor | None = None) -> Network:
        """The same network in the new coordinates.

        Args:
            z: states (..., R) in the *old* coordinates, needed with a shift only: n takes up the constant part of
                the drive there (minimum-norm correction, exact as far as the constant is in the span of the rates).
            u: inputs (..., U) at those states.
        """
        moved = self.loadings(network.loadings)
        n = network.n @ self.matrix.T.to(network.n.dtype)
        if self.shift.any():
            if z is None:
                raise UserError("visited states for a gauge with a shift", "none")
            n = n + _constant_drive(network, z, u) @ self.shift.to(n.dtype)[None, :]
        return replace(network, m=moved.m, d=moved.d, n=n)


def _constant_drive(network: Network, z: Tensor, u: Tensor | None) -> Tensor:
    """Output weights (K, 1) of least norm with (1/K) sum_i n_i phi_i = 1 on the states z."""
    states, inputs = z.reshape(-1, z.shape[-1]), None if u is None else u.reshape(-1, u.shape[-1])
    keep = random_rows(len(states), _SUBSET_SAMPLES)
    x = network.double().rates(states[keep].double(), None if inputs is None else inputs[keep].double())
    solution = ridge_output_weights(x, x.new_ones(len(x), 1), regularizer=1e-12)[0]
    return solution.to(network.n.dtype)
