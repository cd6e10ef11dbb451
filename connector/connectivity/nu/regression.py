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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from connector.connectivity.nu.design import Design, Modes, observed_modes
from connector.connectivity.nu.evidence import Amplitudes, amplitude_prior, log_weights, maximise_posterior
from connector.connectivity.nu.kernels import (
    WIDTHS,
    WhitenedPool,
    check_families,
    kernel_diagonal,
    kernel_grid,
    linear_features,
    tried_families,
)
from connector.connectivity.nu.mean import ConditionalMean, GaussianProcessMean, RidgeMean
from connector.connectivity.nu.population import extend_pool
from connector.dynamics import activation as get_activation
from connector.errors import require
from connector.numerics import inverse_root
from connector.types import Loadings

ESTIMATORS = ("gaussian_process", "ridge")
_OFFSET_TURNS, _OFFSET_CUTOFF = 5, 1e-4
_EVIDENCE_FAMILIES, _EVIDENCE_CUTOFF = ("none", "arcsine", "matern32"), 1e-3
_STATE_ENTRIES = 80_000_000  # states times loadings of which modes are found, at most: 640 MB
_VALIDATION_ENTRIES = 10_000_000  # held-out states times loadings, at most, by which the regularizer is chosen: 80 MB
_CANDIDATES = tuple(10 ** (0.5 * e) for e in range(2, -27, -1))  # of lambda, for the choice by validation


@dataclass(frozen=True)
class MeanSettings:
    """How :func:`fit_conditional_mean` goes about it; the defaults suit most data.

    Attributes:
        families, widths: kernels tried. average: weight them by evidence, or take the best one.
        max_states: states (drawn at random) from which the modes are found; fewer with very many neurons.
            max_noisy_states: states used where y turns out to be noisy.
        mode_cutoff, max_modes: modes of X with a singular value above ``mode_cutoff`` times the first, at most so many.
        max_centres: with more neurons the Gaussian process is represented on a subset of a quarter of this size.
        pseudo_loadings: number of jittered copies of the pool's loadings to add, or "auto": none from 200 neurons on,
            else enough for 1000 in all. jitter: their sd in units of the loadings' sd; default by Silverman's rule.
        target_r2: of the drive at the validation states, for the regularizer "validation".
        seed: of the subsets and the jitter.
    """

    families: tuple[str, ...] = field(default_factory=tried_families)
    widths: tuple[float, ...] = WIDTHS
    average: bool = True
    max_states: int = 2000
    max_noisy_states: int = 20000
    mode_cutoff: float = 1e-4
    max_modes: int = 300
    max_centres: int = 2000
    pseudo_loadings: int | str = 0
    jitter: float | None = None
    target_r2: float = 0.96
    seed: int = 0

    def __post_init__(self):
        check_families(self.families)


def fit_conditional_mean(
    z: Tensor,
    u: Tensor | None,
    y: Tensor,
    pool: Loadings,
    *,
    activation: str,
    estimator: str = "gaussian_process",
    regularizer: float | str | None = None,
    validation: tuple[Tensor, Tensor | None, Tensor] | None = None,
    own_deviations: bool = True,
    settings: MeanSettings | None = None,
) -> ConditionalMean:
    """Estimate nu(m, b, d) = E[n | m, b, d] from states, inputs and the drive they meet.

    Args:
        z: (T, R) states. u: (T, U) inputs or None. y: (T, R) recurrent drive (z[t+1] - (1 - alpha) z[t]) / alpha.
        pool: loadings of the recorded neurons (best), or draws from a model of them.
        activation: name of phi.
        estimator: "gaussian_process" or "ridge".
        regularizer: lambda of the ridge objective above (:func:`published_to_lambda` gives it from the published
            spelling). For the Gaussian process it sets the noise variance to lambda T / K times the prior variance of
            n. None: by evidence (ridge: white prior). "validation": the largest that still explains ``target_r2`` of
            the drive at the validation states, else the one that explains most.
        validation: (z, u, y) held out, for "validation".
        own_deviations: Gaussian process only. True: the pool's neurons themselves make up the network that produced y,
            so that each adds its own deviation from nu. False: the pool only stands for p(m, b, d).

    Raises:
        UserError: shapes or options that do not fit.
    """
    settings = settings or MeanSettings()
    require(estimator in ESTIMATORS, f"an estimator among {', '.join(ESTIMATORS)}", repr(estimator))
    if regularizer == "validation":
        held_out = validation is not None
        require(held_out, "held-out (z, u, y) for the choice of the regularizer by validation", "none")
    elif regularizer is not None:
        fits = isinstance(regularizer, int | float) and regularizer > 0
        require(fits, "a positive regularizer, None (by evidence) or 'validation'", repr(regularizer))
    design, y = _checked(z, u, y, pool, activation)
    generator = torch.Generator().manual_seed(settings.seed)
    pool = extend_pool(design.pool, settings.pseudo_loadings, settings.jitter)

    def seen_at(rows: Tensor) -> Design:
        return Design(design.phi, pool, design.z[rows], None if u is None else design.u[rows])

    order = torch.randperm(len(z), generator=generator).to(z.device)
    budget = max(500, min(settings.max_states, _STATE_ENTRIES // pool.n_neurons))
    few = order[:budget]
    modes = observed_modes(seen_at(few), y[few], settings.mode_cutoff, settings.max_modes)
    common = {"rank": pool.rank, "n_inputs": pool.n_inputs, "has_bias": pool.has_bias, "activation": activation}
    if estimator == "ridge":
        solve = _ridge_solver(modes, seen_at(few), common)
    else:
        noisy = modes.residual * y.shape[1] * modes.n_states > 1e-5 * modes.total
        many = order[: max(budget, min(settings.max_noisy_states, _STATE_ENTRIES // pool.n_neurons))]
        if noisy and len(many) > len(few):
            modes = modes.of_more_states(seen_at(many), y[many])
        odd = design.phi.odd and not pool.has_bias and pool.n_inputs == 0
        grid = kernel_grid(settings.families, settings.widths)
        whitened = WhitenedPool.of(pool.stack(), odd, settings.max_centres, generator)
        problem = _GaussianProcess(pool, modes, whitened, grid, own_deviations)

        def solve(value: float | None) -> GaussianProcessMean:
            return problem.solve(value, settings.average, common)

    if regularizer == "validation":
        return _by_validation(solve, design.phi, pool, validation, settings.target_r2)
    return solve(None if regularizer is None else float(regularizer))


def log_evidence(
    z: Tensor, u: Tensor | None, following: Tensor, pool: Loadings, *, activation: str, alphas: Sequence[float]
) -> list[float]:
    """log p(following | z, u, alpha) of some time steps up to a constant that they share, n having the Gaussian process prior.

    With y = (following - (1 - alpha) z) / alpha, p(following) = p(y) alpha^(-T R). All is in the coefficients of the modes
    that the pool can drive; the noise beyond these is taken to be the same for all.

    Args:
        z, u, pool, activation: as for :func:`fit_conditional_mean`. following: (T, R) the states one sample later.
        alphas: time steps, each in (0, 1].

    Raises:
        UserError: as :func:`fit_conditional_mean`.
    """
    design, following = _checked(z, u, following, pool, activation)
    pool, grid, found = design.pool, kernel_grid(_EVIDENCE_FAMILIES, (0.8,)), []
    odd = design.phi.odd and not pool.has_bias and pool.n_inputs == 0
    whitened = WhitenedPool.of(pool.stack(), odd, 400, torch.Generator().manual_seed(0))
    seen = observed_modes(design, following - design.z, _EVIDENCE_CUTOFF, 150)
    for alpha in alphas:
        y = (following - (1 - alpha) * design.z) / alpha
        modes = replace(Modes.of(seen.v, seen.singular, seen.left, y), residual=seen.residual / alpha**2)
        problem = _GaussianProcess(pool, modes, whitened, grid, own_deviations=True)
        amplitudes = maximise_posterior(problem.parts, problem.a, problem.centre, problem.width)
        found.append(float(torch.logsumexp(amplitudes.evidence, 0)) - modes.a.numel() * math.log(alpha))
    return found


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
    design, y = _checked(z, u, y, pool, activation)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.randperm(len(z), generator=generator).to(z.device)[:max_states]
    y, pool = y[keep], design.pool
    design = replace(design, z=design.z[keep], u=None if u is None else design.u[keep])
    grid = kernel_grid(tried_families(), (0.8,))
    ones, c = torch.ones_like(y[:, :1]), torch.zeros_like(y[0])
    for _ in range(_OFFSET_TURNS):
        modes = observed_modes(design, y + c, _OFFSET_CUTOFF, 300)
        whitened = WhitenedPool.of(pool.stack(), False, 2000, generator)
        problem = _GaussianProcess(pool, modes, whitened, grid, own_deviations=True)
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


def published_to_lambda(published: float, alpha: float, n_neurons: int, n_states: int) -> float:
    """lambda = reg K / (alpha^2 T), of the published objective alpha^2 ||y - X n||^2 + reg ||n||^2.

    It has the same minimiser, in the spelling that does not depend on K neurons and T states.
    """
    return published * n_neurons / (alpha**2 * n_states)


def _checked(z: Tensor, u: Tensor | None, y: Tensor, pool: Loadings, activation: str) -> tuple[Design, Tensor]:
    """The design and the drive in float64, if they fit together."""
    fits, shape = z.ndim == 2 and z.shape[1] == pool.rank, tuple(z.shape)
    require(fits, f"states of shape (T, {pool.rank}), as the loadings have it", shape)
    require(y.shape == z.shape, f"a drive of the shape of the states, {shape}", tuple(y.shape))
    n_inputs, got = (0, "none") if u is None else (u.shape[-1], tuple(u.shape))
    require(n_inputs == pool.n_inputs, f"{pool.n_inputs} inputs, as the loadings have them", got)
    require(len(z) >= 2, "at least two states", len(z))
    finite = bool(torch.isfinite(y).all() and torch.isfinite(z).all())
    require(finite, "finite states and drive", "NaN or infinite entries")
    u = None if u is None else u.double()
    return Design(get_activation(activation), pool.map(Tensor.double), z.double(), u), y.double()


def _by_validation(
    solve: Callable[[float], ConditionalMean], phi, pool: Loadings, validation, target_r2: float
) -> ConditionalMean:
    """The first candidate, from the largest down, whose nu explains ``target_r2`` of the drive at held-out states, else the
    one that explains most: R^2 about the drive's mean, worst dimension, if each neuron of the pool has n = nu."""
    most = max(500, _VALIDATION_ENTRIES // pool.n_neurons)
    z, u, y = (None if x is None else x[:: -(-len(x) // most)].double() for x in validation)
    x, total = Design(phi, pool, z, u).rates() / pool.n_neurons, (y - y.mean(0)).square().sum(0)
    best, best_r2 = None, -math.inf
    for value in _CANDIDATES:
        model = solve(value)
        r2 = float((1 - (y - x @ model.quick(pool.stack())).square().sum(0) / total).min())
        if r2 > best_r2:
            best, best_r2 = model, r2
        if r2 >= target_r2:
            break
    best.summary["validation_r2"] = best_r2
    return best


def _ridge_solver(modes: Modes, design: Design, common: dict) -> Callable[[float | None], RidgeMean]:
    """The solution for any lambda; None: by evidence, under a white prior n ~ N(0, v) and noise s, lambda = s K / (T v)."""
    ratio = design.pool.n_neurons / modes.n_states
    g = modes.singular**2 * ratio
    scores = modes.singular[:, None] * modes.a  # P^T y

    def solve(lam: float | None) -> RidgeMean:
        summary = {"estimator": "ridge"}
        if lam is None:
            noise = torch.diag(modes.singular**-2)
            parts = torch.stack([torch.eye(len(g)).to(g), noise])[None]
            start = torch.stack([modes.a.square().mean(), torch.tensor(modes.residual).to(g)]).log()[None]
            found = maximise_posterior(parts, modes.a, start, torch.tensor([[6.0, 1.0]]).to(g))
            white, variance = found.log_amplitudes[0].exp()
            lam, summary["evidence"] = float(variance / white) * ratio, float(found.evidence[0])
        determined = modes.determined(design.pool.n_neurons, lam)
        summary |= {"lambda": lam, "n_modes": len(g), "determined_modes": determined}
        c = modes.left @ (scores / (g + lam)[:, None])
        tensors = {"z": design.z, "c": c} | ({} if design.u is None else {"u": design.u})
        return RidgeMean({**common, "summary": summary}, tensors)

    return solve


class _GaussianProcess:
    """The parts of the covariance of the modes' coefficients, made once; solved for any regularizer."""

    def __init__(self, pool: Loadings, modes: Modes, whitened: WhitenedPool, grid, own_deviations: bool):
        self.pool, self.modes, self.whitened, self.grid = pool, modes, whitened, grid
        self.gauge = inverse_root(pool.m - whitened.location[: pool.rank])
        self.a = modes.a @ torch.linalg.inv(self.gauge)  # n = n' gauge: the prior of n' is isotropic where cov(m) = I
        self.linear = whitened.features.T @ modes.v  # (P, p)
        found = [whitened.projected(modes.v, *kernel) for kernel in grid]
        self.projections, curved = [p for p, _ in found], torch.stack([part for _, part in found])
        white, noise = torch.eye(len(self.a)).to(self.a), torch.diag(modes.singular**-2)
        parts = (self.linear.T @ self.linear, curved, white, noise)
        self.parts = torch.stack([part.expand_as(curved) for part in parts], dim=1)
        # Log-normal priors of the amplitudes, around scales read off the leading modes and the residual.
        leading = self.a[:3].square().sum().clamp_min(1e-300) / (pool.n_neurons * pool.rank)
        residual = modes.residual * float(torch.linalg.inv(self.gauge).square().mean() * pool.rank)
        self.centre, self.width = amplitude_prior(
            leading, torch.tensor(max(residual, 1e-300), dtype=torch.float64), 1.0, grid
        )
        if not own_deviations:
            self.centre[:, 2], self.width[:, 2] = self.centre[:, 0] - math.log(1e8), 0.0

    def _prior_variances(self) -> Tensor:
        """Mean variance of n over the pool per unit amplitude of the linear, curved and white part, (B, 3)."""
        centres, odd = self.whitened.centres, self.whitened.odd
        linear = float(linear_features(centres, odd).square().sum(1).mean())
        curved = [float(kernel_diagonal(centres, *kernel, odd).mean()) for kernel in self.grid]
        return torch.tensor([[linear, c, 1.0] for c in curved]).to(self.a)

    def solve(self, regularizer: float | None, average: bool, common: dict) -> GaussianProcessMean:
        if regularizer is None:
            found = maximise_posterior(self.parts, self.a, self.centre, self.width)
        else:
            # the noise is tied to the prior variance of n, which is linear in the amplitudes
            shares = self._prior_variances() * regularizer * self.modes.n_states / self.pool.n_neurons  # (B, 3)
            parts, width = self.parts.clone(), self.width.clone()
            parts[:, :3] += shares[:, :, None, None] * self.parts[:, 3:]
            parts[:, 3], width[:, 3] = 0, 0
            found = maximise_posterior(parts, self.a, self.centre, width)
            found.log_amplitudes[:, 3] = (shares * found.log_amplitudes[:, :3].exp()).sum(1).log()
        return self._assemble(found, self._weights(found.evidence, average), common)

    def _weights(self, evidence: Tensor, average: bool) -> Tensor:
        """Posterior weights of the kernels; negligible ones are dropped."""
        score = log_weights(evidence, self.grid)
        weights = torch.softmax(score, 0)
        if not average:
            weights = torch.zeros_like(weights).index_fill_(0, score.argmax(), 1.0)
        weights = torch.where(weights > 0.01 * weights.max(), weights, torch.zeros_like(weights))
        return weights / weights.sum()

    def _assemble(self, found: Amplitudes, weights: Tensor, common: dict) -> GaussianProcessMean:
        index = weights.nonzero()[:, 0]
        amplitudes, weight = found.log_amplitudes[index].exp(), weights[index]
        amplitudes[[self.grid[i][0] == "none" for i in index.tolist()], 1] = 0.0
        tensors = {k: [] for k in ("coefficients", "factors", "linear_coefficients", "linear_factors")}
        for row, i in enumerate(index.tolist()):
            for prefix, source, amplitude in (
                ("", self.projections[i], amplitudes[row, 1]),
                ("linear_", self.linear, amplitudes[row, 0]),
            ):
                root = torch.linalg.solve_triangular(found.cholesky[i], source.T, upper=False).T
                tensors[prefix + "coefficients"].append(amplitude * source @ found.weights[i])
                tensors[prefix + "factors"].append(amplitude * root)
        tensors = {name: torch.stack(parts) for name, parts in tensors.items()}
        where = self.whitened
        tensors |= {"location": where.location, "whitening": where.whitening, "centres": where.centres}
        tensors |= {"gauge": self.gauge, "amplitudes": amplitudes, "weights": weight}
        values = {
            **common,
            "odd": where.odd,
            "components": [list(self.grid[i]) for i in index.tolist()],
            "summary": self._summary(found, weights, amplitudes),
        }
        return GaussianProcessMean(values, {name: tensor.clone() for name, tensor in tensors.items()})

    def _summary(self, found: Amplitudes, weights: Tensor, amplitudes: Tensor) -> dict:
        index = weights.nonzero()[:, 0]
        weight, best = weights[index], int(weights.argmax())
        linear, curved, own, noise = (float(x) for x in weight @ amplitudes)
        prior = (self._prior_variances()[index] * amplitudes[:, :3]).sum(1)
        ratio = self.pool.n_neurons / self.modes.n_states  # lambda = ratio * noise / prior variance
        lam = float((weight * ratio * amplitudes[:, 3] / prior).sum())
        return {
            "estimator": "gaussian_process",
            "kernel": self.grid[best][0],
            "width": self.grid[best][1],
            "kernel_weight": float(weights[best]),
            "n_kernels": len(index),
            "evidence": float(torch.logsumexp(found.evidence, 0)),
            "amplitude_linear": linear,
            "amplitude_curved": curved,
            "own_variance": own * float(self.gauge.square().sum()) / len(self.gauge),
            "noise_variance": noise,
            "lambda": lam,
            "n_modes": len(self.a),
            "determined_modes": self.modes.determined(self.pool.n_neurons, lam),
            "function_modes": self._function_modes(found, weights),
            "odd": self.whitened.odd,
        }

    def _function_modes(self, found: Amplitudes, weights: Tensor) -> float:
        """Degrees of freedom that the data determine in nu itself: tr(Cov(g) Cov(a)^-1), averaged over kernels."""
        amplitudes = found.log_amplitudes.exp()
        function = torch.einsum("bk,bkij->bij", amplitudes[:, :2], self.parts[:, :2])
        share = torch.cholesky_solve(function, found.cholesky).diagonal(dim1=1, dim2=2).sum(1)
        return float((weights * share).sum())
