"""Draws from the posterior of nu = E[n | m, b, d], each a function of the loadings, and of the drive that goes with it.

A draw picks a component of the mixture (kernel, amplitudes), then draws jointly from its Gaussian process g and the
drive's coefficients c, given the data d = W c + noise. Matheron's rule does so at any loading (Wilson et al. 2020,
"Efficiently sampling functions from Gaussian process posteriors"): with g', c' and d' = W c' + noise drawn from the prior,

    g(l) = g'(l) + Cov(g(l), d) Cov(d)^-1 (d - d'),     c = c' + Cov(c, d) Cov(d)^-1 (d - d').

g' is a sum of random features of the kernel, of its own for each draw, so that its covariance over draws is the kernel's.

Where g is odd because nothing else acts, an even part can be added to each draw. It is the prior's alone, and a guess even there: as
large as the draw's odd part in mean square, and as rough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from connector.connectivity.nu.kernels import KERNELS, kernel, linear_features
from connector.connectivity.nu.mean import ConditionalMean, TrajectoryMean
from connector.connectivity.nu.prior import in_data
from connector.dynamics import activation
from connector.errors import UserError, require
from connector.numerics import covariance_root, pieces
from connector.shooting import Field
from connector.types import Loadings, require_whole

_FEATURES = 512  # of each draw of a Gaussian process
_BESIDE_LINEAR = "arcsine", 0.8  # family and width of an even part beside an odd one that has no curvature


def has_draws(model: ConditionalMean) -> bool:
    """Whether an estimate of nu holds what draws are made of: one of trajectories, and not of an older version."""
    return isinstance(model, TrajectoryMean) and hasattr(model, "data_weights")


@dataclass(frozen=True)
class _Draw:
    """One draw in the whitened gauge: the prior's function as linear (L, R) and features with weights (F, R), and the
    update (p, R) that conditions it, with the amplitudes of the linear and the curved part; and an even function of whitened
    loadings that is added to them, or None."""

    kernel: int
    linear: Tensor
    features: Callable[[Tensor], Tensor] | None
    weights: Tensor
    update: Tensor
    amplitudes: Tensor
    even: Callable[[Tensor], Tensor] | None = None


class Draws:
    """n draws of nu and of the drive's coefficients, from a fit by :func:`fit_trajectories` or one of the same posterior.

    Attributes:
        model: the posterior. coefficients: (n, p, R) of the drive B(z, u) c.
    """

    def __init__(self, model: TrajectoryMean, n: int, seed: int = 0, even_part: bool = False):
        """``even_part``: see the module's text; without effect where all of nu acts.

        Raises:
            UserError: n below 1; an estimate without what draws are made of.
        """
        require_whole(n, 1, "n")
        require_whole(seed, -(2**63), "seed")
        if not has_draws(model):
            raise UserError(
                "a posterior with draws (connectivity.estimator=trajectories)",
                f"the estimator {model.estimator}" if not isinstance(model, TrajectoryMean) else "an older fit",
                "run the stage outputs again: stages=[outputs] force=true",
            )
        self.model = model
        generator = torch.Generator().manual_seed(seed)
        at = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(n)) / n
        weights = model.weights.cpu()
        chosen = torch.searchsorted(weights.cumsum(0) / weights.sum(), at).clamp_max(len(weights) - 1)
        solver, self._draws, coefficients = _Conditioning(model), [], []
        for j in chosen[torch.randperm(n, generator=generator)].tolist():
            draw, c = solver.draw(j, generator)
            self._draws.append(draw)
            coefficients.append(c)
        self.coefficients = torch.stack(coefficients)
        if model.values["width_factor"] != 1:
            middle = solver.mean_coefficients()
            self.coefficients = middle + model.values["width_factor"] * (self.coefficients - middle)
        if even_part and model.values["odd"]:  # drawn last, so that the odd parts are those of draws without
            self._draws = [replace(draw, even=self._even_beside(draw, generator)) for draw in self._draws]
        layout = (model.rank, model.n_inputs, model.has_bias)
        phi = activation(model.values["activation"])
        self._field = Field(phi, Loadings.unstack(model.anchors, *layout), model.mixing, 1.0)

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, i: int) -> Callable[[Tensor], Tensor]:
        """The i-th draw, a function of stacked loadings (K, R + U + bias) with values (K, R)."""
        draw = self._draws[i]
        return lambda rows: self._evaluate(rows, [draw])[0]

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """nu (n, K, R) of all draws at stacked loadings (K, R + U + bias), float64; jointly over loadings."""
        return self._evaluate(rows, self._draws)

    @torch.no_grad()
    def basis(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """B(z, u) (T, p), float64: the drive of draw i at states z (T, R) and inputs u (T, U) is B @ coefficients[i]."""
        u = None if u is None or not self.model.n_inputs else u.double()
        if u is None and self.model.n_inputs:
            u = z.new_zeros(len(z), self.model.n_inputs, dtype=torch.float64)
        return self._field(z.double(), u)

    def drive(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """The recorded network's drive (n, T, R) in all draws at states z (T, R), inputs u (T, U)."""
        return self.basis(z, u) @ self.coefficients

    def vector_field(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """dz/dt = -z + drive in units of 1 / tau, (n, T, R)."""
        return self.drive(z, u) - z.double()

    def _evaluate(self, rows: Tensor, draws: list[_Draw]) -> Tensor:
        model = self.model
        columns = model.rank + model.n_inputs + int(model.has_bias)
        fits = rows.ndim == 2 and rows.shape[1] == columns
        require(fits, f"stacked loadings (m, b, d) of {columns} columns", tuple(rows.shape))
        rows = rows.double()
        parts = pieces(max(1, len(rows)), max(4 * len(model.centres), _FEATURES, len(draws) * model.rank))
        found = torch.cat([self._piece(rows[at], draws) for at in parts], dim=1)
        factor = model.values["width_factor"]
        if factor != 1:
            middle = model.mean(rows)
            found = middle + factor * (found - middle)
        if draws[0].even is None:
            return found
        x = model._whitened(rows)[0]
        return found + torch.stack([draw.even(x) @ model.gauge for draw in draws])

    def _piece(self, rows: Tensor, draws: list[_Draw]) -> Tensor:
        x, curved = self.model._whitened(rows)[0], {}
        return torch.stack([self._odd(draw, x, curved) @ self.model.gauge for draw in draws])

    def _odd(self, draw: _Draw, x: Tensor, curved: dict[int, Tensor]) -> Tensor:
        """All but the even part, (N, R) in the whitened gauge at whitened loadings x; ``curved``: of kernels, which draws at the
        same x share."""
        model, odd = self.model, self.model.values["odd"]
        family, width = model.values["kernels"][draw.kernel]
        features = linear_features(x, odd)
        value = features @ (draw.linear + draw.amplitudes[0] * model.linear_weights @ draw.update)
        if draw.features is not None:
            if draw.kernel not in curved:
                curved[draw.kernel] = kernel(x, model.centres, family, width, odd) @ model.projections[draw.kernel]
            value = value + draw.features(x) @ draw.weights
            value = value + draw.amplitudes[1] * curved[draw.kernel] @ draw.update
        return value

    def _even_beside(self, draw: _Draw, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """A random even function, whitened loadings (N, P) -> (N, R), with the mean square of this draw."""
        model = self.model

        def random(family: str, width: float) -> Callable[[Tensor], Tensor] | None:
            return KERNELS[family].features(model.centres.shape[1], _FEATURES, width, False, generator)

        features = random(*model.values["kernels"][draw.kernel]) or random(*_BESIDE_LINEAR)

        def even(x: Tensor) -> Tensor:
            return 0.5 * (features(x) + features(-x))

        odd = self._odd(draw, model.centres, {})
        size = (odd.square().mean() / even(model.centres).square().sum(1).mean()).sqrt()
        weights = size * torch.randn(_FEATURES, model.rank, generator=generator, dtype=torch.float64).to(odd)
        return lambda x: even(x) @ weights


class _Component(NamedTuple):
    """Of the mixture: a root (p, p) of the covariance of c' that functions at the centres do not carry, Cov(c') (p, p) and
    a Cholesky factor (N, N) of Cov(d)."""

    rest: Tensor
    covariance: Tensor
    factor: Tensor


class _Conditioning:
    """Draws of (g, c) given the data, a component of the mixture at a time."""

    def __init__(self, model: TrajectoryMean):
        self.model, self.rank = model, model.rank
        self._kernels: dict[int, tuple[Tensor, Tensor]] = {}
        self._components: dict[int, _Component] = {}

    def of_kernel(self, i: int) -> tuple[Tensor, Tensor]:
        """:meth:`_of_kernel`, computed once."""
        if i not in self._kernels:
            self._kernels[i] = self._of_kernel(i)
        return self._kernels[i]

    def of_component(self, j: int) -> _Component:
        if j not in self._components:
            self._components[j] = self._of_component(j)
        return self._components[j]

    def _of_kernel(self, i: int) -> tuple[Tensor, Tensor]:
        """Of kernel i: at the centres (C, C); and what it adds to Cov(c') beyond the functions there, (p, p)."""
        model, projection = self.model, self.model.projections[i]
        family, width = model.values["kernels"][i]
        own = kernel(model.centres, model.centres, family, width, model.values["odd"])
        return own, model.curved_parts[i] - projection.T @ own @ projection

    def _of_component(self, j: int) -> _Component:
        model, size, i = self.model, self.model.amplitudes[j], int(self.model.kernel_index[j])
        straight = model.linear_weights.T @ model.linear_weights
        rest = size[0] * (model.linear_part - straight) + size[1] * self.of_kernel(i)[1] + size[2] * model.white_part
        covariance = size[0] * model.linear_part + size[1] * model.curved_parts[i] + size[2] * model.white_part
        of_data = in_data(model.data_weights, covariance, self.rank)
        of_data.diagonal().add_(model.noise[j])
        return _Component(covariance_root(rest), covariance, torch.linalg.cholesky(of_data))

    def mean_coefficients(self) -> Tensor:
        """(p, R) posterior mean of c over the mixture."""
        of = [self.of_component(j).covariance @ c for j, c in enumerate(self.model.coefficients)]
        return torch.einsum("j,jpr->pr", self.model.weights, torch.stack(of)) @ self.model.gauge

    def draw(self, j: int, generator: torch.Generator) -> tuple[_Draw, Tensor]:
        """A draw of component j: of nu, and of c (p, R)."""
        model, rank, odd = self.model, self.rank, self.model.values["odd"]
        i, size, device = int(model.kernel_index[j]), model.amplitudes[j], model.gauge.device
        component = self.of_component(j)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

        linear = size[0].sqrt() * normal(len(model.linear_weights), rank)
        c = model.linear_weights.T @ linear + component.rest @ normal(len(component.rest), rank)
        family, width = model.values["kernels"][i]
        features, weights = None, linear[:0]
        if family != "none":
            features = KERNELS[family].features(model.centres.shape[1], _FEATURES, width, odd, generator)
            if features is None:
                features = _through_centres(model.centres, self.of_kernel(i)[0], family, width, odd)
            at_centres = features(model.centres)
            weights = (size[1] / at_centres.shape[1]).sqrt() * normal(at_centres.shape[1], rank)
            c = c + model.projections[i].T @ (at_centres @ weights)
        seen = model.data_weights @ c.reshape(-1) + model.noise[j].sqrt() * normal(len(model.data))
        solved = torch.cholesky_solve((model.data - seen)[:, None], component.factor)
        update = (model.data_weights.T @ solved).view(-1, rank)
        return _Draw(i, linear, features, weights, update, size), (c + component.covariance @ update) @ model.gauge


def _through_centres(centres: Tensor, own: Tensor, family: str, width: float, odd: bool) -> Callable[[Tensor], Tensor]:
    """Functions in the span of the kernel at the centres, for a kernel without random features."""
    values, vectors = torch.linalg.eigh(own)
    keep = values > 1e-9 * values[-1]
    root = vectors[:, keep] * values[keep].rsqrt() * math.sqrt(int(keep.sum()))
    return lambda x: kernel(x, centres, family, width, odd) @ root
