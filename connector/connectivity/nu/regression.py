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

import torch
from torch import Tensor

from connector.connectivity.nu.design import Modes, design_matrix, more_states, observed_modes
from connector.connectivity.nu.evidence import Amplitudes, maximise_posterior
from connector.connectivity.nu.kernels import KERNELS, WIDTHS, kernel_diagonal, linear_features, project_kernel
from connector.connectivity.nu.mean import ConditionalMean, GaussianProcessMean, RidgeMean
from connector.connectivity.nu.population import extend_pool
from connector.dynamics import activation as get_activation
from connector.errors import UserError
from connector.numerics import inverse_root
from connector.types import Loadings

ESTIMATORS = ("gaussian_process", "ridge")
_OFFSET_TURNS, _OFFSET_CUTOFF = 5, 1e-4
_VALIDATION_ENTRIES = 10_000_000  # held-out states times loadings, at most, by which the regularizer is chosen: 80 MB
_CANDIDATES = tuple(10 ** (0.5 * e) for e in range(2, -27, -1))  # of lambda, for the choice by validation


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
    modes = observed_modes(phi, pool, *data, mode_cutoff, max_modes)
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
        modes = more_states(modes, phi, pool, z[many], None if u is None else u[many], y[many])
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
        modes = observed_modes(phi, pool, z, u, y + c, _OFFSET_CUTOFF, 300)
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


def _by_validation(solve, candidates, phi, pool: Loadings, validation, target_r2) -> ConditionalMean:
    """The first candidate, from the largest down, whose nu explains ``target_r2`` of the drive at held-out states, else the
    one that explains most: R^2 about the drive's mean, worst dimension, if each neuron of the pool has n = nu."""
    most = max(500, _VALIDATION_ENTRIES // pool.n_neurons)
    z, u, y = (None if x is None else x[:: -(-len(x) // most)].double() for x in validation)
    design, total = design_matrix(phi, pool, z, u), (y - y.mean(0)).square().sum(0)
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


def _determined(modes: Modes, n_neurons: int, lam: float) -> float:
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
