"""Kernels over whitened loadings, a class a family. ``odd``: k(x, x') = -k(-x, x'); else a constant is among the features.

A further family is a class with :meth:`Kernel.of`, or a :class:`Stationary` with its profile, under :func:`register_kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from connector.errors import require
from connector.numerics import pieces, whitening_of

WIDTHS = (0.2, 0.4, 0.8, 1.6, 3.2)
KERNELS: dict[str, Kernel] = {}


def register_kernel(name: str, tried: bool = True) -> Callable[[type[Kernel]], type[Kernel]]:
    """Class decorator: the family's name in options, settings and saved runs; ``tried``: by every fit that names none."""

    def register(family: type[Kernel]) -> type[Kernel]:
        KERNELS[name] = family()
        KERNELS[name].tried = tried
        return family

    return register


def tried_families() -> tuple[str, ...]:
    """The families that a fit averages over where none are named."""
    return tuple(name for name, family in KERNELS.items() if family.tried)


class Kernel:
    """Covariance of unit order between loadings in units of the width, from their inner product and squared norms.

    Matrix, matching pairs and diagonal all come from :meth:`of`; draws of functions from :meth:`features`.
    ``rough``: what its functions do at some loadings says little of what they do at others.
    """

    tried, rough = True, False

    def of(self, xy: Tensor, xx: Tensor, yy: Tensor, odd: bool) -> Tensor:
        """k from x.y, x.x and y.y, which broadcast; ``odd``: of functions g(-x) = -g(x)."""
        raise NotImplementedError

    def matrix(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        x, y = x / width, y / width
        return self.of(x @ y.T, x.square().sum(1)[:, None], y.square().sum(1)[None], odd)

    def pairs(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        x, y = x / width, y / width
        return self.of((x * y).sum(-1), x.square().sum(-1), y.square().sum(-1), odd)

    def features(self, dim: int, count: int, width: float, odd: bool, generator: torch.Generator) -> Features | None:
        """Random functions f, (N, dim) -> (N, count), with E[f(x) f(y)] = k(x, y) for each; None where there are none."""
        return None


@register_kernel("none")
class Nothing(Kernel):
    """No curved part: nu is linear in the loadings."""

    def of(self, xy: Tensor, xx: Tensor, yy: Tensor, odd: bool) -> Tensor:
        return torch.zeros_like(xy)


class Linear(Kernel):
    """Of functions linear in the loadings, with a constant unless ``odd``."""

    def of(self, xy: Tensor, xx: Tensor, yy: Tensor, odd: bool) -> Tensor:
        return xy if odd else xy + 1


@register_kernel("arcsine")
class Arcsine(Kernel):
    """Of an infinitely wide network of error functions (Williams 1998), which see a constant unless ``odd``."""

    def of(self, xy: Tensor, xx: Tensor, yy: Tensor, odd: bool) -> Tensor:
        constant = 0.0 if odd else 1.0
        scale = [(2 / (1 + 2 * (constant + norm))).sqrt() for norm in (xx, yy)]
        return (2 / math.pi) * torch.asin((constant + xy) * scale[0] * scale[1])

    def features(self, dim: int, count: int, width: float, odd: bool, generator: torch.Generator) -> Features:
        weights, offset = _normal(generator, dim, count) / width, _normal(generator, count)
        return Features(torch.erf, weights, torch.zeros_like(offset) if odd else offset)


@register_kernel("additive")
class Additive(Arcsine):
    """Mean of arcsine kernels, one on each column."""

    def matrix(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        """:meth:`of` column by column, each point scaled before the products: large matrices are gone through less often."""
        constant = 0.0 if odd else 1.0
        scaled = []
        for v in (x / width, y / width):
            scale = (2 / (1 + 2 * (constant + v.square()))).sqrt()
            scaled.append((v * scale, scale))
        (a, sa), (b, sb) = scaled
        total = 0.0
        for j in range(x.shape[1]):
            product = torch.outer(a[:, j], b[:, j])
            total = total + torch.asin(product if odd else torch.addr(product, sa[:, j], sb[:, j]))
        return (2 / math.pi / x.shape[1]) * total

    def pairs(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        x, y = x / width, y / width
        return self.of(x * y, x.square(), y.square(), odd).mean(-1)

    def features(self, dim: int, count: int, width: float, odd: bool, generator: torch.Generator) -> Features:
        found = super().features(dim, count, width, odd, generator)
        return found._replace(weights=found.weights * _one_of(dim, count, generator))


class Stationary(Kernel):
    """A function of the distance; ``odd``: its odd part."""

    def profile(self, squared: Tensor) -> Tensor:
        """k at squared distances, 1 at zero."""
        raise NotImplementedError

    def of(self, xy: Tensor, xx: Tensor, yy: Tensor, odd: bool) -> Tensor:
        near = self.profile(xx + yy - 2 * xy)
        return 0.5 * (near - self.profile(xx + yy + 2 * xy)) if odd else near


class Matern(Stationary):
    """Of smoothness ``dof`` / 2, infinitely smooth where that is infinite: its spectral density is a Student t density (Rasmussen and Williams 2006, eq. 4.15)."""

    dof = math.inf

    def features(self, dim: int, count: int, width: float, odd: bool, generator: torch.Generator) -> Features:
        """E[2 cos(a + c) cos(b + c)] = E cos(a - b) over a uniform phase c; without, E[sin a sin b] is its odd part."""
        weights = _normal(generator, dim, count) / width
        if math.isfinite(self.dof):
            weights = weights / _normal(generator, int(self.dof), count).square().mean(0).sqrt()
        if odd:
            return Features(torch.sin, weights, weights.new_zeros(count))
        phase = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        return Features(torch.cos, weights, phase, torch.tensor(math.sqrt(2)).double().expand(count))


@register_kernel("rbf", tried=False)  # so smooth that its intervals missed nu with kinks; for what was saved with it
class SquaredExponential(Matern):
    def profile(self, squared: Tensor) -> Tensor:
        return torch.exp(-0.5 * squared)


@register_kernel("matern32")
class Matern32(Matern):
    dof, rough = 3, True

    def profile(self, squared: Tensor) -> Tensor:
        distance = (3 * squared.clamp_min(0)).sqrt()
        return (1 + distance) * torch.exp(-distance)


@register_kernel("matern12")
class Matern12(Matern):
    """Of functions without a slope."""

    dof, rough = 1, True

    # From the differences: from inner products the distance of copies would be the root of what is rounded.
    def matrix(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        near = self._near(x, y, width)
        return 0.5 * (near - self._near(-x, y, width)) if odd else near

    def pairs(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        near = torch.exp(-(x - y).norm(dim=-1) / width)
        return 0.5 * (near - torch.exp(-(x + y).norm(dim=-1) / width)) if odd else near

    def _near(self, x: Tensor, y: Tensor, width: float) -> Tensor:
        return torch.exp(-torch.cdist(x / width, y / width, compute_mode="donot_use_mm_for_euclid_dist"))


@register_kernel("slope32")
class Slope32(Matern32):
    """Of linear functions whose slope changes with the loading: (x.y + 1) / (P + 1) times a Matern 3/2 kernel; ``odd``:
    x.y / P times its even part. The slope's loadings are in units of their own spread whatever the width."""

    def _slope(self, xy: Tensor, dim: int, odd: bool) -> Tensor:
        return xy / dim if odd else (xy + 1) / (dim + 1)

    def of(self, xy: Tensor, xx: Tensor, yy: Tensor, odd: bool) -> Tensor:
        near = self.profile(xx + yy - 2 * xy)
        return 0.5 * (near + self.profile(xx + yy + 2 * xy)) if odd else near

    def matrix(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        return self._slope(x @ y.T, x.shape[1], odd) * super().matrix(x, y, width, odd)

    def pairs(self, x: Tensor, y: Tensor, width: float, odd: bool) -> Tensor:
        return self._slope((x * y).sum(-1), x.shape[-1], odd) * super().pairs(x, y, width, odd)

    def features(self, dim: int, count: int, width: float, odd: bool, generator: torch.Generator) -> Features:
        found = super().features(dim, count, width, odd, generator)
        slope = _one_of(dim if odd else dim + 1, count, generator)
        found = found._replace(slope=slope[:dim], constant=None if odd else slope[dim])
        return found._replace(function=torch.cos) if odd else found


class Features(NamedTuple):
    """f(x) = factor * (x slope + constant) * function(x weights + offset), (N, P) -> (N, count); what is None is left out.

    weights, slope (P, count); offset, factor, constant (count,).
    """

    function: Callable[[Tensor], Tensor]
    weights: Tensor
    offset: Tensor
    factor: Tensor | None = None
    slope: Tensor | None = None
    constant: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        value = self.function(torch.addmm(self.offset, x, self.weights))
        if self.factor is not None:
            value = value * self.factor
        if self.slope is not None:
            value = value * (x @ self.slope if self.constant is None else torch.addmm(self.constant, x, self.slope))
        return value


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _one_of(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """(dim, count) with a single one in each column, anywhere."""
    return torch.eye(dim).double()[:, torch.randint(dim, (count,), generator=generator)]


def linear_features(x: Tensor, odd: bool) -> Tensor:
    return x if odd else torch.cat([torch.ones_like(x[:, :1]), x], dim=1)


def kernel(x: Tensor, y: Tensor, family: str, width: float, odd: bool) -> Tensor:
    """Covariance (N, M) between whitened loadings x (N, P) and y (M, P).

    Args:
        family: a name in ``KERNELS``.
        width: in units of the loadings' standard deviations.
        odd: whether functions are odd.
    """
    return KERNELS[family].matrix(x, y, width, odd)


def kernel_pairs(x: Tensor, y: Tensor, family: str, width: float, odd: bool) -> Tensor:
    """k(x, y) of matching rows of x and y (..., P), broadcast: shape (...). Arguments as in :func:`kernel`."""
    return KERNELS[family].pairs(x, y, width, odd)


def kernel_diagonal(x: Tensor, family: str, width: float, odd: bool) -> Tensor:
    """k(x, x) for each row of x (N, P): shape (N,)."""
    return kernel_pairs(x, x, family, width, odd)


def check_families(families: tuple[str, ...]) -> None:
    """Raises UserError for a name that is not in ``KERNELS``."""
    for family in families:
        require(family in KERNELS, f"kernel families among {', '.join(KERNELS)}", repr(family))


def kernel_grid(families: tuple[str, ...], widths: tuple[float, ...]) -> list[tuple[str, float]]:
    """All families at all widths; "none" has no width."""
    return [(f, float(w)) for f in families for w in (widths if f != "none" else (1.0,))]


@dataclass(frozen=True)
class WhitenedPool:
    """Loadings of unit covariance, on which Gaussian processes live.

    Attributes:
        location (P,), whitening (P, P): x = (stacked - location) @ whitening, (K, P). odd: functions of x are odd.
        centres: (C, P) points that carry the curved part: all of x, or a subset where they are many.
    """

    location: Tensor
    whitening: Tensor
    x: Tensor
    centres: Tensor
    odd: bool

    @staticmethod
    def of(stacked: Tensor, odd: bool, max_centres: int, generator: torch.Generator) -> WhitenedPool:
        """With more than ``max_centres`` loadings a quarter of that number, drawn at random, are the centres."""
        location = torch.zeros_like(stacked[0]) if odd else stacked.mean(0)
        whitening = whitening_of(stacked - location)
        x = centres = (stacked - location) @ whitening
        if len(x) > max_centres:
            pick = torch.randperm(len(x), generator=generator)[: max(1, max_centres // 4)].to(x.device)
            centres = x[pick]
        return WhitenedPool(location, whitening, x, centres, odd)

    @property
    def features(self) -> Tensor:
        return linear_features(self.x, self.odd)

    def projected(self, v: Tensor, family: str, width: float) -> tuple[Tensor, Tensor]:
        """P (C, p) with Cov(g(l), v^T g(x)) = k(l, centres) P for the curved part g, and Cov(v^T g(x)) (p, p).

        Where centres are a subset, g is replaced in both by its best prediction from them. v: (K, p).
        """
        x, centres, odd = self.x, self.centres, self.odd
        if family == "none":
            return v.new_zeros(len(centres), v.shape[1]), v.new_zeros(v.shape[1], v.shape[1])
        cross = sum(kernel(centres, x[at], family, width, odd) @ v[at] for at in pieces(len(x), 4 * len(centres)))
        projection = v
        if len(centres) < len(x):
            own = kernel(centres, centres, family, width, odd)
            own.diagonal().add_(1e-9 * own.diagonal().mean())
            projection = torch.cholesky_solve(cross, torch.linalg.cholesky(own))
        covariance = projection.T @ cross
        return projection, 0.5 * (covariance + covariance.T)
