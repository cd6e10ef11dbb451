"""The conditional mean of the output weights, nu(m, b, d) = E[n | m, b, d], from latent trajectories.

The drive of a large network, F(z, u) = E[nu(m, b, d) phi(m.z + b.u + d)], is a linear image of nu. Seen at T states
through a pool of K loadings it reads y = X n + noise with X = phi(Z M^T + U B^T + d) / K. Two estimators of nu:

* ``ridge``: minimise (1/T) ||y - X n||^2 + (lambda / K) ||n||^2, the published maximum entropy step. Its dual form
  gives nu at any loading: nu(l) = (1/T) sum_t phi(l.(z_t, u_t, 1)) c_t with (K/T X X^T + lambda) c = y.
* ``gaussian_process``: n_i = g(l_i) + e_i with g a Gaussian process over loadings and e_i each neuron's own deviation.
  Kernels are the sum of a linear one and one of several families; amplitudes by maximum a posteriori, families and
  widths weighted by their (Laplace) evidence. nu = E[g | y], with a posterior variance.

Both work in the leading singular vectors of X (a few dozen), so that no matrix of the size K x K or T x T is kept.
Everything is float64.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from connector.dynamics import activation as get_activation
from connector.dynamics import potentials
from connector.errors import UserError
from connector.types import Loadings

KERNELS = ("none", "arcsine", "additive", "rbf", "matern32")
WIDTHS = (0.2, 0.4, 0.8, 1.6, 3.2)
ESTIMATORS = ("gaussian_process", "ridge")
_CHUNK = 4_000_000  # entries of a matrix built at a time: 32 MB
_OFFSET_TURNS, _OFFSET_CUTOFF = 5, 1e-4
_VALIDATION_ENTRIES = 10_000_000  # held-out states times loadings, at most, by which the regularizer is chosen: 80 MB
_CANDIDATES = tuple(10 ** (0.5 * e) for e in range(2, -27, -1))  # of lambda, for the choice by validation


# ---------------------------------------------------------------------------------------------------------------
# The fitted objects


class ConditionalMean(nn.Module):
    """nu at any loading. Made by :func:`fit_conditional_mean`; rebuilt from :meth:`state` by :func:`from_state`.

    Attributes:
        rank, n_inputs, has_bias: the columns of a stacked loading (m, b, d).
        summary: what was chosen and found, plain values: estimator, lambda, noise, determined modes, evidence ...
    """

    estimator = ""
    kinds: ClassVar[dict[str, type[ConditionalMean]]] = {}  # by the name of the estimator, for from_state

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.estimator:
            ConditionalMean.kinds[cls.estimator] = cls

    def __init__(self, values: dict, tensors: dict[str, Tensor]):
        super().__init__()
        self.values = values
        self.rank, self.n_inputs, self.has_bias = values["rank"], values["n_inputs"], values["has_bias"]
        self.summary: dict = values["summary"]
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @property
    def determined_modes(self) -> float:
        """sum_j g_j / (g_j + lambda) over the eigenvalues g_j of K/T X X^T: how many numbers the data fix."""
        return self.summary["determined_modes"]

    def forward(self, stacked: Tensor) -> Tensor:
        """nu (K, R) at stacked loadings (K, R + U + bias), in their dtype."""
        self._check(stacked)
        rows = max(1, _CHUNK // self._width())
        parts = [self._mean(part.double()) for part in stacked.split(rows)]
        return torch.cat(parts).to(stacked.dtype) if parts else stacked.new_zeros(0, self.rank)

    def quick(self, stacked: Tensor, tolerance: float = 1e-4) -> Tensor:
        """nu as :meth:`forward` has it, in single precision, which takes a third of the time.

        Some rows are computed in both precisions: where they differ by more than ``tolerance`` of nu's root mean
        square, all are computed in double precision.
        """
        self._check(stacked)
        single = copy.deepcopy(self).float()
        some = stacked[:: max(1, len(stacked) // 64)]
        exact = self(some).double()
        error = (single._mean(some.float()).double() - exact).square().mean()
        if not error <= tolerance**2 * exact.square().mean():
            return self(stacked)
        rows = max(1, _CHUNK // self._width())
        return torch.cat([single._mean(part.float()) for part in stacked.split(rows)]).to(stacked.dtype)

    def variance(self, stacked: Tensor) -> Tensor:
        """Posterior variance of nu (K, R) at stacked loadings."""
        self._check(stacked)
        rows = max(1, _CHUNK // self._width())
        parts = [self._variance(part.double()) for part in stacked.split(rows)]
        return torch.cat(parts).to(stacked.dtype) if parts else stacked.new_zeros(0, self.rank)

    def state(self) -> dict:
        """Plain values and tensors from which :func:`from_state` rebuilds the estimate."""
        return {"estimator": self.estimator, "values": self.values, "tensors": dict(self.named_buffers())}

    def _mean(self, stacked: Tensor) -> Tensor:
        raise NotImplementedError

    def _variance(self, stacked: Tensor) -> Tensor:
        raise NotImplementedError

    def _width(self) -> int:
        raise NotImplementedError

    def _check(self, stacked: Tensor) -> None:
        columns = self.rank + self.n_inputs + int(self.has_bias)
        if stacked.ndim != 2 or stacked.shape[1] != columns:
            raise UserError(f"stacked loadings (m, b, d) of {columns} columns", str(tuple(stacked.shape)))


class RidgeMean(ConditionalMean):
    """nu(l) = (1/T) sum_t phi(m.z_t + b.u_t + d) c_t."""

    estimator = "ridge"

    def _mean(self, stacked: Tensor) -> Tensor:
        loadings = Loadings.unstack(stacked, self.rank, self.n_inputs, self.has_bias)
        u = self.u if self.n_inputs else None
        phi = get_activation(self.values["activation"])
        return phi(potentials(loadings, self.z, u)).T @ self.c / len(self.z)

    def _variance(self, stacked: Tensor) -> Tensor:
        raise UserError(
            "an estimator with a posterior (estimator gaussian_process)",
            "the published ridge, which makes no statement about its error",
            "fit with estimator gaussian_process",
        )

    def _width(self) -> int:
        return len(self.z)


class GaussianProcessMean(ConditionalMean):
    """Mixture, weighted by evidence, of Gaussian process posteriors that differ in kernel family and width."""

    estimator = "gaussian_process"

    @property
    def spread(self) -> Tensor:
        """(R, R) covariance of n around nu in the fitted population, as far as y shows it."""
        return (self.weights * self.amplitudes[:, 2]).sum() * self.gauge @ self.gauge

    def _of_components(self, stacked: Tensor, linear: Tensor, curved: Tensor):
        """Of each component i: its number, the features (K, P), and features linear_i + k(., centres) curved_i."""
        x, odd = (stacked - self.location) @ self.whitening, self.values["odd"]
        features = linear_features(x, odd)
        for i, (family, width) in enumerate(self.values["components"]):
            value = features @ linear[i]
            if family != "none":
                value = value + kernel(x, self.centres, family, width, odd) @ curved[i]
            yield i, x, features, value

    def _mean(self, stacked: Tensor) -> Tensor:
        found = self._of_components(stacked, self.linear_coefficients, self.coefficients)
        return sum(self.weights[i] * mean for i, _, _, mean in found) @ self.gauge

    def _variance(self, stacked: Tensor) -> Tensor:
        linear = torch.cat([self.linear_coefficients, self.linear_factors], dim=2)
        curved = torch.cat([self.coefficients, self.factors], dim=2)
        rank, parts = len(self.gauge), []
        for i, x, features, value in self._of_components(stacked, linear, curved):
            family, width = self.values["components"][i]
            prior = self.amplitudes[i, 0] * features.square().sum(1)
            if family != "none":
                prior = prior + self.amplitudes[i, 1] * kernel_diagonal(x, family, width, self.values["odd"])
            left = (prior - value[:, rank:].square().sum(1)).clamp_min(0)
            parts.append((self.weights[i], value[:, :rank] @ self.gauge, left))
        centre = sum(w * mean for w, mean, _ in parts)
        scale = self.gauge.square().sum(0)
        return sum(w * (v[:, None] * scale + (mean - centre) ** 2) for w, mean, v in parts)

    def _width(self) -> int:
        return len(self.centres) * 4  # kernels need a few temporaries of this size


def from_state(state: dict) -> ConditionalMean:
    """Rebuild what :meth:`ConditionalMean.state` described; the module that defines its class must be imported."""
    return ConditionalMean.kinds[state["estimator"]](state["values"], state["tensors"])


# ---------------------------------------------------------------------------------------------------------------
# Kernels over whitened loadings. ``odd``: k(x, x') = -k(-x, x'); else a constant is among the features.


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


# ---------------------------------------------------------------------------------------------------------------
# The observed drive in the leading modes of X


@dataclass
class _Modes:
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


def _design(phi, pool: Loadings, z: Tensor, u: Tensor | None) -> Tensor:
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
            _design(phi, pool, z[i : i + step], None if u is None else u[i : i + step]) @ right
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


def _modes(phi, pool: Loadings, z: Tensor, u: Tensor | None, y: Tensor, cutoff: float, max_modes: int) -> _Modes:
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
    return _Modes(v, singular, coefficients / singular[:, None], residual, total, len(z), left)


def _more_states(modes: _Modes, phi, pool: Loadings, z: Tensor, u: Tensor | None, y: Tensor) -> _Modes:
    """The same modes with ``a`` and the noise taken from more states: noise in y averages out."""
    basis = times_design(phi, pool, z, u, modes.v)
    values, rotation = torch.linalg.eigh(basis.T @ basis)
    values, rotation = values.flip(0).clamp_min(1e-300), rotation.flip(1)
    singular = values.sqrt()
    coefficients = (basis @ rotation / singular).T @ y
    total = float(y.square().sum())
    dof = max(1, len(z) - len(singular)) * y.shape[1]
    residual = max(total - float(coefficients.square().sum()), 1e-14 * total) / dof
    return _Modes(modes.v @ rotation, singular, coefficients / singular[:, None], residual, total, len(z))


# ---------------------------------------------------------------------------------------------------------------
# Amplitudes and evidence, for all kernels at once


@dataclass
class Amplitudes:
    """Of each of B kernels: log amplitudes (B, 4) of linear, curved, white and noise; Cholesky factor (B, p, p) of the
    covariance of ``a``; weights (B, p, R) = covariance^-1 a; log evidence (B,); precision (B, 4, 4) of the log
    amplitudes (Fisher information plus prior; ones on the diagonal of fixed ones); log posterior (B,) at the mode."""

    log_amplitudes: Tensor
    cholesky: Tensor
    weights: Tensor
    evidence: Tensor
    precision: Tensor
    value: Tensor


def maximise_posterior(parts: Tensor, a: Tensor, centre: Tensor, width: Tensor, steps: int = 60) -> Amplitudes:
    """Fisher scoring for the log amplitudes of Cov(a) = sum_k exp(theta_k) parts_k, all B models at once.

    Args:
        parts: (B, 4, p, p) positive semi-definite parts.
        a: (p, R), R independent draws.
        centre, width: (B, 4) Gaussian prior of theta; a width of 0 keeps theta at its centre.
    """
    n_models, p = len(parts), len(a)
    rank = a.shape[1]
    free = (width > 0).to(a)
    precision = torch.where(width > 0, width.clamp_min(1e-9) ** -2, torch.zeros_like(width))
    theta = centre.clone()
    damping = torch.full((n_models,), 1e-2, dtype=a.dtype, device=a.device)

    def evaluate(theta):
        covariance = torch.einsum("bk,bkij->bij", theta.exp(), parts)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        diagonal *= 1 + 1e-13  # of the size of rounding
        factor, failed = torch.linalg.cholesky_ex(covariance)
        solved = torch.cholesky_solve(a.expand(n_models, p, rank), factor)
        value = -0.5 * (a * solved).sum((1, 2)) - rank * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        value = value - 0.5 * (precision * (theta - centre) ** 2).sum(1)
        return value.masked_fill((failed > 0) | value.isnan(), -math.inf), factor, solved

    value, factor, solved = evaluate(theta)
    for _ in range(steps):
        scaled = theta.exp()[:, :, None, None] * parts
        moved = torch.einsum("bij,bkjl->bkil", torch.cholesky_inverse(factor), scaled)
        fit = torch.einsum("bir,bkij,bjr->bk", solved, scaled, solved)
        gradient = free * (0.5 * fit - 0.5 * rank * torch.einsum("bkii->bk", moved) - precision * (theta - centre))
        fisher = 0.5 * rank * torch.einsum("bkij,blji->bkl", moved, moved)
        fisher = fisher * free[:, :, None] * free[:, None] + torch.diag_embed(precision + (1 - free))
        damped = fisher + torch.diag_embed(damping[:, None] * fisher.diagonal(dim1=1, dim2=2))
        step = torch.linalg.solve(damped, gradient).clamp(-2, 2)
        trial = evaluate(theta + step)
        better = trial[0] >= value
        gain = torch.where(better, trial[0] - value, torch.zeros_like(value))
        theta = torch.where(better[:, None], theta + step, theta)
        value = torch.where(better, trial[0], value)
        factor = torch.where(better[:, None, None], trial[1], factor)
        solved = torch.where(better[:, None, None], trial[2], solved)
        damping = torch.where(better, damping / 5, damping * 10).clamp(1e-6, 1e6)
        if bool(((better & (gain < 1e-3)) | (damping > 1e3)).all()):
            break
    # Laplace: integral over theta under its prior, up to constants shared by all models
    width = torch.where(width > 0, width, torch.ones_like(width))
    evidence = value - 0.5 * torch.linalg.slogdet(fisher).logabsdet - width.log().sum(1)
    return Amplitudes(theta, factor, solved, evidence, fisher, value)


# ---------------------------------------------------------------------------------------------------------------
# Fitting


def fit_conditional_mean(
    z: Tensor,
    u: Tensor | None,
    y: Tensor,
    pool: Loadings,
    *,
    activation: str,
    estimator: str = "gaussian_process",
    regularizer: float | str | None = None,
    regularizer_published: float | None = None,
    alpha: float | None = None,
    validation: tuple[Tensor, Tensor | None, Tensor] | None = None,
    target_r2: float = 0.96,
    own_deviations: bool = True,
    families: tuple[str, ...] = KERNELS,
    widths: tuple[float, ...] = WIDTHS,
    average: bool = True,
    max_states: int = 2000,
    max_noisy_states: int = 20000,
    mode_cutoff: float = 1e-4,
    max_modes: int = 300,
    max_centres: int = 2000,
    pseudo_loadings: int | str = 0,
    jitter: float | None = None,
    seed: int = 0,
) -> ConditionalMean:
    """Estimate nu(m, b, d) = E[n | m, b, d] from states, inputs and the drive they meet.

    Args:
        z: (T, R) states. u: (T, U) inputs or None. y: (T, R) recurrent drive (z[t+1] - (1 - alpha) z[t]) / alpha.
        pool: loadings of the recorded neurons (best), or draws from a model of them.
        activation: name of phi.
        estimator: "gaussian_process" or "ridge".
        regularizer: lambda of the ridge objective above. For the Gaussian process it sets the noise variance to
            lambda T / K times the prior variance of n. None: by evidence (ridge: white prior). "validation": the
            largest that still explains ``target_r2`` of the drive at the validation states, else the one that
            explains most.
        regularizer_published: the published spelling, reg of alpha^2 ||y - X n||^2 + reg ||n||^2, that is
            lambda = reg K / (alpha^2 T) with T the number of states given; needs ``alpha`` and excludes
            ``regularizer``.
        validation: (z, u, y) held out, for "validation".
        own_deviations: Gaussian process only. True: the pool's neurons themselves make up the network that produced y,
            so that each adds its own deviation from nu. False: the pool only stands for p(m, b, d).
        families, widths: kernels tried. average: weight them by evidence, or take the best one.
        max_states: states (drawn at random) from which the modes are found; fewer with very many neurons.
            max_noisy_states: states used where y turns out to be noisy.
        mode_cutoff, max_modes: modes of X with a singular value above ``mode_cutoff`` times the first, at most so many.
        max_centres: with more neurons the Gaussian process is represented on a subset of a quarter of this size.
        pseudo_loadings: number of jittered copies of the pool's loadings to add, or "auto": none from 200 neurons on,
            else enough for 1000 in all. jitter: their sd in units of the loadings' sd; default by Silverman's rule.
        seed: of the subsets and the jitter.

    Raises:
        UserError: shapes or options that do not fit.
    """
    z, u, y, pool = _checked(z, u, y, pool, estimator, families)
    phi = get_activation(activation)
    generator = torch.Generator().manual_seed(seed)
    if regularizer_published is not None:
        regularizer = published_to_lambda(regularizer, regularizer_published, alpha, pool.n_neurons, len(z))
    _check_regularizer(regularizer, validation)
    pool = extend_pool(pool, pseudo_loadings, jitter, generator)

    order = torch.randperm(len(z), generator=generator).to(z.device)
    budget = max(500, min(max_states, 80_000_000 // pool.n_neurons))
    few = order[:budget]
    data = z[few], None if u is None else u[few], y[few]
    modes = _modes(phi, pool, *data, mode_cutoff, max_modes)
    common = {
        "rank": pool.rank,
        "n_inputs": pool.n_inputs,
        "has_bias": pool.has_bias,
        "activation": activation,
    }
    if estimator == "ridge":
        return _fit_ridge(modes, phi, pool, data, common, regularizer, validation, target_r2)

    noisy = modes.residual * y.shape[1] * modes.n_states > 1e-5 * modes.total
    many = order[: max(budget, min(max_noisy_states, 80_000_000 // pool.n_neurons))]
    if noisy and len(many) > len(few):
        modes = _more_states(modes, phi, pool, z[many], None if u is None else u[many], y[many])
    odd = phi.odd and not pool.has_bias and pool.n_inputs == 0
    problem = _GaussianProcess(phi, pool, modes, odd, families, widths, own_deviations, max_centres, generator)
    if regularizer == "validation":
        return _by_validation(
            lambda value: problem.solve(value, average, common), _CANDIDATES, phi, pool, validation, target_r2
        )
    return problem.solve(regularizer, average, common)


def drive_offset(
    z: Tensor, u: Tensor | None, y: Tensor, pool: Loadings, *, activation: str, max_states: int = 2000, seed: int = 0
) -> Tensor:
    """The constant c for which a drive y + c is the most plausible one of a network of these neurons.

    Neurons with a bias read z + c as well as z (their bias becomes d - m.c), but then the drive has to supply c besides,
    and rates of many neurons make up nearly any constant. So the trajectories leave the origin of the latents open; nu
    depends on it. Here c has a flat prior and n that of the Gaussian process: with y = X n - c, generalised least squares
    for c, in turns with the amplitudes of Cov(X n), by the kernel of the largest evidence.

    Args:
        z, u, y, pool, activation: as for :func:`fit_conditional_mean`. max_states: states used, drawn with ``seed``.

    Returns:
        (R,) in units of the latents, float64.

    Raises:
        UserError: as :func:`fit_conditional_mean`.
    """
    z, u, y, pool = _checked(z, u, y, pool, "gaussian_process", ())
    phi = get_activation(activation)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.randperm(len(z), generator=generator).to(z.device)[:max_states]
    z, u, y = z[keep], None if u is None else u[keep], y[keep]
    ones, c = torch.ones_like(y[:, :1]), torch.zeros_like(y[0])
    for _ in range(_OFFSET_TURNS):
        modes = _modes(phi, pool, z, u, y + c, _OFFSET_CUTOFF, 300)
        problem = _GaussianProcess(phi, pool, modes, False, KERNELS, (0.8,), True, 2000, generator)
        found = maximise_posterior(problem.parts, problem.a, problem.centre, problem.width)
        best = int(found.evidence.argmax())
        constant = modes.left.T @ ones  # (p, 1)
        inside = torch.cholesky_solve(constant / modes.singular[:, None], found.cholesky[best])
        # The noise of the amplitudes is that of n' = n gauge^-1.
        noise = found.log_amplitudes[best, 3].exp()
        outside = (ones - modes.left @ constant) / noise
        information = (inside * constant / modes.singular[:, None]).sum() + (outside * ones).sum()
        drive = problem.a.T @ inside + (torch.linalg.inv(problem.gauge).T @ (y + c).T) @ outside
        move = -(problem.gauge.T @ (drive / information))[:, 0]
        c = c + move
        if float(move.norm()) < 1e-3 * float(y.std(0).norm()):
            break
    return c


def published_to_lambda(regularizer, published: float, alpha: float | None, n_neurons: int, n_states: int) -> float:
    """lambda = reg K / (alpha^2 T): the same minimiser in the spelling that does not depend on K and T."""
    if regularizer is not None:
        raise UserError("one of regularizer and regularizer_published", "both", "leave one out")
    if alpha is None:
        raise UserError("alpha with regularizer_published", "none")
    return published * n_neurons / (alpha**2 * n_states)


def _checked(z, u, y, pool, estimator, families):
    if estimator not in ESTIMATORS:
        raise UserError(f"an estimator among {', '.join(ESTIMATORS)}", repr(estimator))
    for family in families:
        if family not in KERNELS:
            raise UserError(f"kernel families among {', '.join(KERNELS)}", repr(family))
    if z.ndim != 2 or z.shape[1] != pool.rank:
        raise UserError(f"states of shape (T, {pool.rank}), as the loadings have it", str(tuple(z.shape)))
    if y.shape != z.shape:
        raise UserError(f"a drive of the shape of the states, {tuple(z.shape)}", str(tuple(y.shape)))
    if (0 if u is None else u.shape[-1]) != pool.n_inputs:
        raise UserError(
            f"{pool.n_inputs} inputs, as the loadings have them", "none" if u is None else str(tuple(u.shape))
        )
    if len(z) < 2:
        raise UserError("at least two states", str(len(z)))
    if not bool(torch.isfinite(y).all() and torch.isfinite(z).all()):
        raise UserError("finite states and drive", "NaN or infinite entries")
    return z.double(), None if u is None else u.double(), y.double(), pool.map(lambda x: x.double())


def _check_regularizer(regularizer, validation) -> None:
    if regularizer == "validation":
        if validation is None:
            raise UserError("held-out (z, u, y) for the choice of the regularizer by validation", "none")
    elif regularizer is not None and not (isinstance(regularizer, int | float) and regularizer > 0):
        raise UserError("a positive regularizer, None (by evidence) or 'validation'", repr(regularizer))


def extend_pool(pool: Loadings, extra: int | str, jitter: float | None, generator: torch.Generator) -> Loadings:
    """Jittered copies smooth the empirical distribution of few loadings; mean and covariance are kept."""
    k = pool.n_neurons
    if extra == "auto":
        extra = 0 if k >= 200 else 1000 - k
    if not extra:
        return pool
    stacked = pool.stack()
    dim = stacked.shape[1]
    if jitter is None:
        jitter = (4 / (dim + 2)) ** (1 / (dim + 4)) * k ** (-1 / (dim + 4))
    mean = stacked.mean(0)
    centred = stacked - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / k)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    pick = torch.arange(extra) % k  # every neuron gets the same number of copies, up to one
    noise = torch.randn(extra, dim, generator=generator, dtype=stacked.dtype).to(stacked) @ root
    copies = mean + (centred[pick] + jitter * noise) / math.sqrt(1 + jitter**2)
    return Loadings.unstack(torch.cat([stacked, copies]), pool.rank, pool.n_inputs, pool.has_bias)


def _by_validation(solve, candidates, phi, pool: Loadings, validation, target_r2) -> ConditionalMean:
    """The first candidate, from the largest down, whose nu explains ``target_r2`` of the drive at held-out states, else the
    one that explains most: R^2 about the drive's mean, worst dimension, if each neuron of the pool has n = nu."""
    most = max(500, _VALIDATION_ENTRIES // pool.n_neurons)
    z, u, y = (None if x is None else x[:: -(-len(x) // most)].double() for x in validation)
    design, total = _design(phi, pool, z, u), (y - y.mean(0)).square().sum(0)
    best, best_r2 = None, -math.inf
    for value in candidates:
        model = solve(value)
        r2 = float((1 - (y - design @ model.quick(pool.stack())).square().sum(0) / total).min())
        if r2 > best_r2:
            best, best_r2 = model, r2
        if r2 >= target_r2:
            break
    best.summary["validation_r2"] = best_r2
    return best


def _determined(modes: _Modes, n_neurons: int, lam: float) -> float:
    g = modes.singular**2 * n_neurons / modes.n_states
    return float((g / (g + lam)).sum())


def _fit_ridge(modes, phi, pool, data, common, regularizer, validation, target_r2) -> ConditionalMean:
    z, u, _ = data
    g = modes.singular**2 * pool.n_neurons / modes.n_states
    scores = modes.singular[:, None] * modes.a  # P^T y

    def solve(lam: float) -> RidgeMean:
        c = modes.left @ (scores / (g + lam)[:, None])
        summary = {
            "estimator": "ridge",
            "lambda": lam,
            "n_modes": len(g),
            "determined_modes": _determined(modes, pool.n_neurons, lam),
        }
        tensors = {"z": z, "c": c} | ({} if u is None else {"u": u})
        return RidgeMean({**common, "summary": summary}, tensors)

    if regularizer == "validation":
        return _by_validation(solve, _CANDIDATES, phi, pool, validation, target_r2)
    if regularizer is not None:
        return solve(float(regularizer))
    # white prior n ~ N(0, v), noise s: lambda = s K / (T v), both by evidence
    noise = torch.diag(modes.singular**-2)
    parts = torch.stack([torch.eye(len(g), dtype=g.dtype, device=g.device), noise])[None]
    start = torch.stack([modes.a.square().mean(), torch.tensor(modes.residual).to(g)]).log()[None]
    found = maximise_posterior(parts, modes.a, start, torch.tensor([[6.0, 1.0]]).to(g))
    white, variance = found.log_amplitudes[0].exp()
    model = solve(float(variance / white) * pool.n_neurons / modes.n_states)
    model.summary["evidence"] = float(found.evidence[0])
    return model


class _GaussianProcess:
    """The parts of the covariance of the modes' coefficients, made once; solved for any regularizer."""

    def __init__(self, phi, pool, modes, odd, families, widths, own_deviations, max_centres, generator):
        self.pool, self.modes, self.odd = pool, modes, odd
        stacked = pool.stack()
        self.location = torch.zeros_like(stacked[0]) if odd else stacked.mean(0)
        self.whitening = inverse_root(stacked - self.location)
        m = pool.m - self.location[: pool.rank]
        self.gauge = inverse_root(m)  # n = n' gauge: the prior of n' is isotropic where cov(m) = I
        self.a = modes.a @ torch.linalg.inv(self.gauge)
        x = (stacked - self.location) @ self.whitening
        self.grid = [(f, w) for f in families for w in (widths if f != "none" else (1.0,))]
        self._represent(x, max_centres, generator)
        p, b = self.a.shape[0], len(self.grid)
        self.linear = linear_features(x, odd).T @ modes.v  # (P, p)
        white = torch.eye(p, dtype=x.dtype, device=x.device)
        noise = torch.diag(modes.singular**-2)
        self.projections, curved = [], []
        for family, width in self.grid:
            projection, covariance = project_kernel(x, self.centres, self.subset, modes.v, family, width, odd)
            self.projections.append(projection)
            curved.append(covariance)
        parts = (self.linear.T @ self.linear, torch.stack(curved), white, noise)
        self.parts = torch.stack([part.expand(b, p, p) for part in parts], dim=1)
        self._prior(own_deviations)

    def _represent(self, x: Tensor, max_centres: int, generator) -> None:
        if len(x) <= max_centres:
            self.centres, self.subset = x, False
        else:
            pick = torch.randperm(len(x), generator=generator)[: max(1, max_centres // 4)].to(x.device)
            self.centres, self.subset = x[pick], True

    def _prior(self, own_deviations: bool) -> None:
        """Log-normal priors of the amplitudes, around scales read off the leading modes and the residual."""
        k, rank = self.pool.n_neurons, self.a.shape[1]
        leading = self.a[:3].square().sum().clamp_min(1e-300) / (k * rank)
        residual = self.modes.residual * float(torch.linalg.inv(self.gauge).square().mean() * rank)
        centre = torch.tensor([leading, leading, leading / 3, max(residual, 1e-300)]).to(self.a).log()
        width = torch.tensor([2.0, 2.0, 2.0, 1.0]).to(self.a)
        if not own_deviations:
            centre[2], width[2] = centre[0] - math.log(1e8), 0.0
        b = len(self.grid)
        self.centre, self.width = centre.expand(b, 4).clone(), width.expand(b, 4).clone()
        for i, (family, _) in enumerate(self.grid):
            if family == "none":
                self.width[i, 1] = 0.0  # its part is zero: nothing to fit

    def _prior_variances(self) -> Tensor:
        """Mean variance of n over the pool per unit amplitude of the linear, curved and white part, (B, 3)."""
        linear = float(linear_features(self.centres, self.odd).square().sum(1).mean())
        curved = [
            0.0 if f == "none" else float(kernel_diagonal(self.centres, f, w, self.odd).mean()) for f, w in self.grid
        ]
        return torch.tensor([[linear, c, 1.0] for c in curved]).to(self.a)

    def solve(self, regularizer: float | None, average: bool, common: dict) -> GaussianProcessMean:
        ratio = self.pool.n_neurons / self.modes.n_states  # lambda = ratio * noise / prior variance
        if regularizer is None:
            found = maximise_posterior(self.parts, self.a, self.centre, self.width)
        else:
            # the noise is tied to the prior variance of n, which is linear in the amplitudes
            shares = self._prior_variances() * regularizer / ratio  # (B, 3)
            parts = self.parts.clone()
            parts[:, :3] += shares[:, :, None, None] * self.parts[:, 3:]
            parts[:, 3] = 0
            width = self.width.clone()
            width[:, 3] = 0
            found = maximise_posterior(parts, self.a, self.centre, width)
            found.log_amplitudes[:, 3] = (shares * found.log_amplitudes[:, :3].exp()).sum(1).log()
        weights = self._weights(found.evidence, average)
        keep = weights > 0
        return self._assemble(found, weights, keep, ratio, common)

    def _weights(self, evidence: Tensor, average: bool) -> Tensor:
        """Posterior weights of the kernels, families equally likely beforehand; negligible ones are dropped."""
        sizes = [sum(f == other for other, _ in self.grid) for f, _ in self.grid]
        score = evidence - torch.tensor(sizes).to(evidence).log()
        weights = torch.softmax(score, 0)
        if not average:
            weights = torch.zeros_like(weights).index_fill_(0, score.argmax(), 1.0)
        weights = torch.where(weights > 0.01 * weights.max(), weights, torch.zeros_like(weights))
        return weights / weights.sum()

    def _assemble(self, found: Amplitudes, weights, keep, ratio, common) -> GaussianProcessMean:
        index = keep.nonzero()[:, 0]
        amplitudes, weight = found.log_amplitudes[index].exp(), weights[index]
        tensors = {k: [] for k in ("coefficients", "factors", "linear_coefficients", "linear_factors")}
        for row, i in enumerate(index.tolist()):
            if self.grid[i][0] == "none":
                amplitudes[row, 1] = 0.0
            for prefix, source, amplitude in (
                ("", self.projections[i], amplitudes[row, 1]),
                ("linear_", self.linear, amplitudes[row, 0]),
            ):
                root = torch.linalg.solve_triangular(found.cholesky[i], source.T, upper=False).T
                tensors[prefix + "coefficients"].append(amplitude * source @ found.weights[i])
                tensors[prefix + "factors"].append(amplitude * root)
        best = int(weight.argmax())
        family, width = self.grid[int(index[best])]
        prior = (self._prior_variances()[index] * amplitudes[:, :3]).sum(1)
        lam = float((weight * ratio * amplitudes[:, 3] / prior).sum())
        summary = {
            "estimator": "gaussian_process",
            "kernel": family,
            "width": width,
            "kernel_weight": float(weight[best]),
            "n_kernels": len(index),
            "evidence": float(torch.logsumexp(found.evidence, 0)),
            "amplitude_linear": float((weight * amplitudes[:, 0]).sum()),
            "amplitude_curved": float((weight * amplitudes[:, 1]).sum()),
            "own_variance": float((weight * amplitudes[:, 2]).sum() * self.gauge.square().sum() / self.gauge.shape[0]),
            "noise_variance": float((weight * amplitudes[:, 3]).sum()),
            "lambda": lam,
            "n_modes": self.a.shape[0],
            "determined_modes": _determined(self.modes, self.pool.n_neurons, lam),
            "function_modes": self._function_modes(found, weights),
            "odd": self.odd,
        }
        values = {
            **common,
            "odd": self.odd,
            "components": [[f, float(w)] for f, w in (self.grid[i] for i in index.tolist())],
            "summary": summary,
        }
        tensors = {name: torch.stack(parts) for name, parts in tensors.items()}
        tensors |= {"location": self.location, "whitening": self.whitening, "gauge": self.gauge}
        tensors |= {"centres": self.centres, "amplitudes": amplitudes, "weights": weight}
        return GaussianProcessMean(values, {name: tensor.clone() for name, tensor in tensors.items()})

    def _function_modes(self, found: Amplitudes, weights: Tensor) -> float:
        """Degrees of freedom that the data determine in nu itself: tr(Cov(g) Cov(a)^-1), averaged over kernels."""
        amplitudes = found.log_amplitudes.exp()
        function = torch.einsum("bk,bkij->bij", amplitudes[:, :2], self.parts[:, :2])
        share = torch.cholesky_solve(function, found.cholesky).diagonal(dim1=1, dim2=2).sum(1)
        return float((weights * share).sum())


def inverse_root(x: Tensor) -> Tensor:
    """Symmetric (x^T x / N)^(-1/2); directions in which x does not vary are left alone."""
    moments = x.T @ x / len(x)
    scale = moments.diagonal().sqrt()
    scale = torch.where(scale > 1e-9 * scale.max().clamp_min(1e-300), scale, torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(moments)
    floor = 1e-10 * values[-1].clamp_min(1e-300)
    return (vectors * torch.where(values > floor, values, torch.ones_like(values)).rsqrt()) @ vectors.T
