"""The conditional mean nu(m, b, d) = E[n | m, b, d] with calibrated intervals, from whole latent trajectories.

Differences of successive samples lie about the drive when the samples are noisy or many steps apart. Here the network's
own equation is run instead, at its own step, and compared with the samples (equation (1), noise-free between samples):

    z[t+1] = (1 - alpha) z[t] + alpha B(z[t], u[t]) c,      sample = z[t] + noise

1. Basis. B has as columns the leading singular functions of phi(m_q.z + b_q.u + d_q) / Q over a pool of Q loadings,
   so that phi(m_q.z + ..) / Q = B v_q and a network of K neurons has c = (Q / K) sum_i n_i v(loading of i).
2. Likelihood. Gauss-Newton for c over segments of trajectories, each with a free initial state, which is eliminated.
   Noise variance from the residuals. The result is a quadratic: precision H and a peak.
3. Prior. n_i = g(loading_i) + own deviation of variance s; g a Gaussian process, linear plus one of several kernels.
   A neuron that was not recorded is a fresh draw from the loadings' distribution, with the same g. A neuron whose
   loading is known up to an error is a draw from a cloud of loadings. Given g both add to Cov(c) the covariance of
   g(l) v(l) over the draw, and the recorded sample stands for that distribution up to its own sampling error.
4. Posterior. Mixture over kernels, widths and amplitudes (draws about the mode, weighted by importance and evidence).

Under an odd phi without bias and input g is odd: the estimand is the mean of n folded over the sign of m,
[p(m) nu(m) - p(-m) nu(-m)] / [p(m) + p(-m)], and no interval can be had for the rest. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.design import Basis, build_basis
from connector.connectivity.nu.evidence import maximise_posterior
from connector.connectivity.nu.kernels import KERNELS, WIDTHS
from connector.connectivity.nu.mean import TrajectoryMean
from connector.connectivity.nu.population import build_pool
from connector.connectivity.nu.prior import Likelihood, Posterior, Prior, in_data, informative
from connector.dynamics import activation as get_activation
from connector.dynamics import potentials
from connector.errors import UserError
from connector.numerics import inverse_root, least_squares
from connector.types import Latents, Loadings

_LEFT_BY_SMOOTHING = 0.3  # of the readings' standard error
_TAME = 1e12  # information per sample about a coefficient, in units of the prior's, beyond which a simulation ran away
_NEGLIGIBLE = 1e-3  # misfit below this share of the states' spread is truncation of the basis, not worth a warning


@dataclass
class _Segments:
    """z (S, L, R) states, mask (S, L) True where there is one, u (S, L, U) in force from each sample on, or None.

    seen (S, L, R): what the trajectories are compared with, where it is not z itself; root (S, L, R, R): (seen - state)
    @ root has independent entries of variance 1, as far as the noise of each sample is known beforehand.
    """

    z: Tensor
    mask: Tensor
    u: Tensor | None
    seen: Tensor | None = None
    root: Tensor | None = None

    def pick(self, keep: Tensor) -> _Segments:
        parts = (self.z, self.mask, self.u, self.seen, self.root)
        return _Segments(*(None if x is None else x[keep] for x in parts))

    def whitening(self, covariance: Tensor) -> Tensor:
        """(S, L, R, R) roots of each sample's information; ``covariance`` (R, R) is that of all samples alike, where
        they have none of their own."""
        if self.root is not None:
            return self.root
        return torch.linalg.cholesky(torch.linalg.inv(covariance)).expand(*self.z.shape, self.z.shape[-1])


def _roots(covariance: Tensor) -> Tensor:
    """L (..., R, R) with L L^T = covariance^-1."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.transpose(-1, -2)))
    return vectors * values.clamp_min(1e-300).rsqrt()[..., None, :]


def _cut(
    latents: Latents, length: int, budget: int, generator: torch.Generator, seen: tuple[Tensor, Tensor] | None = None
) -> _Segments:
    """Pieces of at most ``length`` samples, about equal within a trial, ``budget`` samples in all.

    Too many pieces: three quarters of those kept move most (they say most about the field), the rest are random.
    """
    lengths = latents.lengths.to(latents.z.device)
    trials = (lengths >= 2).nonzero()[:, 0]
    n = lengths[trials]
    count = (n + length - 1) // length
    piece = torch.repeat_interleave(torch.arange(len(trials), device=n.device), count)
    order = torch.arange(len(piece), device=n.device) - (count.cumsum(0) - count)[piece]
    start, end = order * n[piece] // count[piece], (order + 1) * n[piece] // count[piece]
    trial = trials[piece]
    allowed = max(2, budget // length)
    if len(trial) > allowed:
        moved = (latents.z[trial, end - 1] - latents.z[trial, start]).norm(dim=1)
        rank = moved.argsort(descending=True)
        n_moving = 3 * allowed // 4
        rest = rank[n_moving:]
        chance = rest[torch.randperm(len(rest), generator=generator).to(rest.device)[: allowed - n_moving]]
        keep = torch.cat([rank[:n_moving], chance]).sort().values
        start, end, trial = start[keep], end[keep], trial[keep]
    steps = torch.arange(int((end - start).max()), device=n.device)
    at = torch.minimum(start[:, None] + steps, end[:, None] - 1)
    mask = steps < (end - start)[:, None]
    z = latents.z[trial[:, None], at].double()
    u = None if latents.inputs is None else latents.inputs[trial[:, None], at].double()
    if seen is None:
        return _Segments(z, mask, u)
    observations, covariance = (x[trial[:, None], at].double() for x in seen)
    covariance[~mask] = torch.eye(z.shape[-1]).to(covariance)  # beyond a trial's end there is none
    return _Segments(z, mask, u, observations, _roots(covariance))


@dataclass
class _Linearised:
    """Residuals (S, L, R) at some c and initial states, and the quadratic they make, initial states eliminated.

    whitened (S, L, R): the residuals times each sample's root.
    h (pR, pR) and b (pR,): information and gradient for c, flattened as (mode, dimension); per unit noise variance.
    cross (S, pR, R), own_inverse (S, R, R), own_gradient (S, R): what the initial states' update needs.
    squares: weighted sum of squares.
    """

    residuals: Tensor
    whitened: Tensor
    h: Tensor
    b: Tensor
    cross: Tensor
    own_inverse: Tensor
    own_gradient: Tensor
    squares: float


def _linearise(
    basis: Basis, c: Tensor, segments: _Segments, z0: Tensor, alpha: float, stride: int, root: Tensor
) -> _Linearised:
    """Simulate all segments with c (p, R) from z0 (S, R), with forward sensitivities to both.

    root (S, L, R, R): residual @ root of a sample has independent entries of equal variance.
    """
    s, length, rank = segments.z.shape
    p = len(c)
    w = basis.mixing @ c  # (anchors, R)
    slope_weights = (w[:, :, None] * basis.anchors.m[:, None, :]).reshape(len(w), rank * rank)
    eye = torch.eye(rank).to(c)
    z = z0
    by_c = c.new_zeros(s, rank, p * rank)
    by_start = eye.expand(s, rank, rank)
    mask = segments.mask.to(c)
    reach = 5 * segments.z.abs().amax((0, 1)) + 1e-12
    h, b = c.new_zeros(p * rank, p * rank), c.new_zeros(p * rank)
    cross, own, own_gradient = c.new_zeros(s, p * rank, rank), c.new_zeros(s, rank, rank), c.new_zeros(s, rank)
    seen = segments.z if segments.seen is None else segments.seen
    residuals, whitened = [], []
    for t in range(length):
        valid = mask[:, t, None]
        residual = (seen[:, t] - z) * valid
        weighted = (residual[:, None] @ root[:, t])[:, 0]
        residuals.append(residual)
        whitened.append(weighted)
        turned = root[:, t].transpose(1, 2) * valid[:, :, None]
        start_w = turned @ by_start
        own += start_w.transpose(1, 2) @ start_w
        own_gradient += torch.einsum("sij,si->sj", start_w, weighted)
        if t > 0:
            c_w = turned @ by_c
            flat = c_w.reshape(s * rank, p * rank)
            h.addmm_(flat.T, flat)
            b += flat.T @ weighted.reshape(-1)
            cross += c_w.transpose(1, 2) @ start_w
        if t == length - 1:
            break
        u = None if segments.u is None else segments.u[:, t]
        for _ in range(stride):
            potential = potentials(basis.anchors, z, u)
            rate = basis.phi(potential)
            slope = (basis.phi.derivative(potential) @ slope_weights).view(s, rank, rank)
            move = (1 - alpha) * eye + alpha * slope
            by_c = move @ by_c
            by_c.view(s, rank, p, rank).diagonal(dim1=1, dim2=3).add_(alpha * (rate @ basis.mixing)[:, :, None])
            by_start = move @ by_start
            z = ((1 - alpha) * z + alpha * (rate @ w)).clamp(-reach, reach)
    own_inverse = torch.linalg.inv(own + 1e-12 * own.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye)
    factor = torch.linalg.cholesky(0.5 * (own_inverse + own_inverse.transpose(1, 2)))
    half = (cross @ factor).permute(1, 0, 2).reshape(p * rank, s * rank)
    h = h - half @ half.T
    b = b - half @ (factor.transpose(1, 2) @ own_gradient[:, :, None]).reshape(-1)
    residuals, whitened = torch.stack(residuals, 1), torch.stack(whitened, 1)
    squares = float(whitened.square().sum())
    return _Linearised(residuals, whitened, 0.5 * (h + h.T), b, cross, own_inverse, own_gradient, squares)


class _GaussNewton:
    """Fits c (p, R) and the segments' initial states; n = n' gauge, and c = c' gauge with the prior on c'."""

    def __init__(self, basis, gauge, prior, alpha, stride):
        self.basis, self.gauge, self.alpha, self.stride = basis, gauge, alpha, stride
        p, rank = basis.v.shape[1], len(gauge)
        self.shape = (p, rank)
        self.precision = torch.kron(torch.linalg.inv(prior).contiguous(), torch.eye(rank).to(prior))
        self.limit = _TAME * float(self.precision.diagonal().max())
        self.lift = torch.kron(torch.eye(p).to(gauge), gauge)  # c = lift^T c'

    def run(self, c: Tensor, stages: list[tuple[_Segments, int]], covariance: Tensor) -> Likelihood:
        """stages: segments and the largest number of steps on them, in turn. covariance (R, R): first guess of noise.

        The last segments' linearisation at the last c is returned.
        """
        last = len(stages) - 1
        for number, (segments, steps) in enumerate(stages):
            root = segments.whitening(covariance)
            z0 = segments.z[:, 0]
            found = self._at(c, segments, z0, root)
            for _ in range(20):  # segments not seen before can send a fit to a few of them off; leak alone is stable
                if self._is_tame(found):
                    break
                c = 0.5 * c
                found = self._at(c, segments, z0, root)
            n_dropped = 0
            floor = _NEGLIGIBLE * segments.z[segments.mask].std(0) @ root[segments.mask]
            floor = float(floor.square().sum(-1).median())
            variance, effective = self._variance(found, segments, 1.0)
            converged = False
            for step in range(steps + (number == last)):
                information = found.h / variance + self.precision
                gradient = found.b / variance - self.precision @ c
                move = torch.cholesky_solve(gradient[:, None], _factor(information))[:, 0]
                decrement = float(move @ gradient)
                small = decrement < 0.02 * max(1.0, effective)
                if step == steps or (small and step > 0):
                    converged = small
                    break
                c, z0, found, better = self._step(c, z0, found, move, segments, root, variance)
                if not better:
                    break
                variance, effective = self._variance(found, segments, variance)
                keep = _regular(found.whitened, segments.mask, floor)
                if not bool(keep.all()):
                    segments, z0, root = segments.pick(keep), z0[keep], root[keep]
                    n_dropped = n_dropped + int((~keep).sum()) if number == last else 0
                    found = self._at(c, segments, z0, root)
                    variance, effective = self._variance(found, segments, variance)
            covariance = self._covariance(found, segments, effective)
        rho = _autocorrelation(found.whitened, segments.mask)
        return Likelihood(
            found.h / variance,
            found.b / variance,
            c,
            covariance,
            variance,
            rho,
            converged,
            int(segments.mask.sum()),
            n_dropped,
        )

    def _at(self, c, segments, z0, root) -> _Linearised:
        native = (self.lift.T @ c).view(self.shape)
        found = _linearise(self.basis, native, segments, z0, self.alpha, self.stride, root)
        found.h = self.lift @ found.h @ self.lift.T
        found.b = self.lift @ found.b
        return found

    def _is_tame(self, found: _Linearised) -> bool:
        """Whether trajectories stay where their linearisation says something: else rounding outweighs the prior."""
        if not bool(torch.isfinite(found.h).all()) or not float(found.h.abs().max()) < self.limit * len(found.cross):
            return False
        return _ridged_factor(found.h + self.precision) is not None

    def _step(self, c, z0, found, move, segments, root, variance):
        """Along ``move``, as far as the penalised sum of squares falls; else stay."""
        before = found.squares / variance + float(c @ self.precision @ c)
        flat = self.lift.T @ move
        change = found.own_gradient - torch.einsum("spr,p->sr", found.cross, flat)
        move0 = torch.einsum("sij,sj->si", found.own_inverse, change)
        share = 1.0
        for _ in range(4):
            trial, trial0 = c + share * move, z0 + share * move0
            new = self._at(trial, segments, trial0, root)
            after = new.squares / variance + float(trial @ self.precision @ trial)
            if after <= before + 1e-9 * abs(before) and self._is_tame(new):
                return trial, trial0, new, True
            share *= 0.3
        return c, z0, found, False

    def _dof(self, segments: _Segments, effective: float) -> float:
        s, _, rank = segments.z.shape
        n = float(segments.mask.sum()) * rank - s * rank
        return max(n - effective, 0.1 * n, 1.0)

    def _variance(self, found: _Linearised, segments: _Segments, variance: float) -> tuple[float, float]:
        """Noise variance (in units of the assumed one) from the residuals, and the effective number of coefficients."""
        effective = 0.0
        for _ in range(3):
            factor = _factor(found.h / variance + self.precision)
            effective = len(found.h) - float(torch.cholesky_solve(self.precision, factor).diagonal().sum())
            variance = max(found.squares / self._dof(segments, effective), 1e-30)
        return variance, effective

    def _covariance(self, found: _Linearised, segments: _Segments, effective: float) -> Tensor:
        r = found.residuals.reshape(-1, self.shape[1])
        covariance = r.T @ r * self.shape[1] / self._dof(segments, effective)
        eye = torch.eye(len(covariance)).to(r)
        return covariance + (1e-6 * covariance.diagonal().mean() + 1e-30) * eye


def _factor(information: Tensor) -> Tensor:
    """Cholesky factor of a sum of squares and a prior's precision.

    Raises:
        UserError: where there is none, even with a small ridge.
    """
    factor = _ridged_factor(information)
    if factor is None:
        raise UserError(
            "trajectories that stay near where they were seen", "a fit that ran away", "check the time step alpha"
        )
    return factor


def _ridged_factor(information: Tensor) -> Tensor | None:
    """Cholesky factor, with the smallest ridge that makes the matrix positive; None where no small one does.

    Eliminating the initial states subtracts nearly equal numbers: where trajectories run away their rounding can outweigh
    the prior.
    """
    factor, failed = torch.linalg.cholesky_ex(information)
    ridge = 1e-15 * information.diagonal().abs().max() * torch.eye(len(information)).to(information)
    while failed and float(ridge[0, 0]) < 1e-6 * float(information.diagonal().abs().max()):
        ridge = 10 * ridge
        factor, failed = torch.linalg.cholesky_ex(information + ridge)
    return None if failed or not bool(torch.isfinite(factor).all()) else factor


def _regular(r: Tensor, mask: Tensor, floor: float) -> Tensor:
    """(S,) False for segments whose mean square exceeds 16 medians: a sample's noise put their initial state on the
    wrong side of a boundary between basins. All True if that would be more than a tenth, which is another matter."""
    squares = r.square().sum((1, 2)) / mask.sum(1)
    keep = squares <= torch.maximum(16 * squares.median(), torch.full_like(squares, floor)[0])
    return keep if float(keep.double().mean()) >= 0.9 else torch.ones_like(keep)


def _autocorrelation(r: Tensor, mask: Tensor) -> float:
    pair = (mask[:, 1:] & mask[:, :-1])[:, :, None]
    product = (r[:, 1:] * r[:, :-1] * pair).sum()
    return float(product / (0.5 * ((r[:, 1:] ** 2 + r[:, :-1] ** 2) * pair).sum()).clamp_min(1e-300))


def difference_noise(latents: Latents, max_samples: int = 200_000) -> Tensor:
    """(R,) sd of white noise on the samples, from the median squared 4th difference along the trials.

    A smooth course of the states hardly contributes; where trials have fewer than 5 samples, the result is zero.
    """
    steps = latents.z.shape[1]
    n_trials = max(1, max_samples // steps)
    z, lengths = latents.z[:n_trials].double(), latents.lengths[:n_trials].to(latents.z.device)
    if steps < 5:
        return z.new_zeros(latents.rank)
    fourth = z[:, 4:] - 4 * z[:, 3:-1] + 6 * z[:, 2:-2] - 4 * z[:, 1:-3] + z[:, :-4]
    keep = torch.arange(steps - 4, device=z.device) < (lengths - 4)[:, None]
    if not bool(keep.any()):
        return z.new_zeros(latents.rank)
    # 70 = 1 + 16 + 36 + 16 + 1; the median of chi^2 with one degree of freedom is .4549
    return (fourth[keep].square().median(0).values / (0.4549 * 70)).sqrt()


def fit_trajectories(
    latents: Latents,
    loadings: Loadings,
    *,
    activation: str,
    stride: int = 1,
    native_alpha: float | None = None,
    recorded_fraction: float | None = 1.0,
    loadings_covariance: Tensor | None = None,
    observed: tuple[Tensor, Tensor] | None = None,
    families: tuple[str, ...] = KERNELS,
    widths: tuple[float, ...] = WIDTHS,
    draws: int = 8,
    width_factor: float = 1.0,
    noise_width: float = 0.0,
    segment: int = 50,
    max_samples: int = 20_000,
    max_states: int = 1000,
    mode_cutoff: float = 1e-4,
    max_modes: int | None = None,
    max_directions: int = 160,
    max_centres: int = 900,
    pseudo_loadings: int | str = "auto",
    seed: int = 0,
) -> TrajectoryMean:
    """Estimate nu(m, b, d) = E[n | m, b, d] with intervals, from sampled latent trajectories.

    Args:
        latents: z (trials, time, R), lengths, inputs (trials, time, U) in force from each sample to the next.
            ``drive`` is not used.
        loadings: of the recorded neurons, K of them, in the gauge of the latents.
        activation: name of phi.
        stride: native Euler steps between recorded samples.
        native_alpha: Euler step of the network itself, in time constants; None: ``latents.alpha / stride``.
        recorded_fraction: recorded neurons over all neurons of the network, in (0, 1]; None: unknown, taken as a very
            large network.
        loadings_covariance: (K, P, P) covariance of the error of each stacked loading (m, b, d); None: no error.
        observed: what the trajectories are compared with, where it is not the latents themselves, which then only guide
            the linearisation: (trials, time, R) readings of the states with errors that are independent between
            samples, and the covariance (trials, time, R, R) of each. Samples that say little, as where all neurons
            saturate, so count little.
        families, widths: kernels of the prior. draws: of amplitudes per kernel; 1 takes their mode.
        width_factor: widths of the intervals in units of the posterior's.
        noise_width: sd of the log of the noise variance about the residuals' value; 0 trusts the residuals.
        segment: samples per segment. max_samples: samples used at most; max_states: states that span the basis.
        mode_cutoff, max_modes: modes of the basis above this share of the first, at most so many
            (default 320 / R).
        max_directions: combinations of coefficients kept for the choice of the prior.
        max_centres: with a larger pool the Gaussian process is represented on a quarter of this number.
        pseudo_loadings: jittered copies added to the pool; "auto": to 1000 in all below 200 recorded of more neurons.
        seed: of subsets, copies and draws.

    Raises:
        UserError: shapes or options that do not fit.
    """
    phi = get_activation(activation)
    alpha = _check(latents, loadings, stride, native_alpha, recorded_fraction, loadings_covariance, families, draws)
    _check_observed(observed, latents)
    generator = torch.Generator().manual_seed(seed)
    loadings = loadings.map(lambda x: x.to(latents.z.device).double())
    if loadings_covariance is not None:
        loadings_covariance = loadings_covariance.to(latents.z.device).double()
    pool = build_pool(loadings, loadings_covariance, recorded_fraction or 0.0, pseudo_loadings, generator)
    odd = phi.odd and not loadings.has_bias and loadings.n_inputs == 0
    gauge = inverse_root(loadings.m if odd else loadings.m - loadings.m.mean(0))
    rank = latents.rank

    # less memory per sample where there are many modes: forward sensitivities are R x pR for each segment
    full = _cut(latents, segment, max_samples, generator, observed)
    states, inputs = _states(full, min(max_states, max(200, 40_000_000 // pool.size)), generator)
    basis = build_basis(phi, pool, states, inputs, mode_cutoff, max_modes or max(1, 320 // rank), generator)
    prior = Prior(pool, basis.v, odd, gauge, max_centres, generator)

    noise = difference_noise(latents) if observed is None else _median_sd(observed[1], latents.mask)
    spread = full.z[full.mask].std(0, unbiased=False).clamp_min(1e-12)
    # Smoothing leaves a part of the noise in the guide, whose differences the start is made from.
    guess = torch.diag(torch.maximum(noise if observed is None else _LEFT_BY_SMOOTHING * noise, 1e-5 * spread) ** 2)
    c, reference = _start(basis, prior, full, alpha, stride, guess, generator)
    short = _cut(latents, 8, 2400, generator, observed)
    few = _cut(latents, segment, min(6000, max_samples), generator, observed)
    noisy = float((noise / spread).max()) > 1e-4
    stages = [(short, 3), (few, 4)] + ([(full, 4)] if noisy and len(full.z) > len(few.z) else [])
    solver = _GaussNewton(basis, gauge, 4 * reference, alpha, stride)
    likelihood = solver.run(c, stages, guess)
    if likelihood.autocorrelation > 0.1:  # fewer independent residuals than samples
        rho = min(likelihood.autocorrelation, 0.95)
        likelihood.h = likelihood.h * ((1 - rho) / (1 + rho))
        likelihood.b = likelihood.b * ((1 - rho) / (1 + rho))

    grid = [(f, float(w)) for f in families for w in (widths if f != "none" else (1.0,))]
    posterior = Posterior(prior, grid, likelihood, reference, max_directions, noise_width)
    components = posterior.mixture(draws, generator)
    model = _assemble(posterior, components, loadings, activation, odd, width_factor)
    _summarise(model, posterior, components, likelihood, loadings, noise, spread, observed is not None)
    return model


def _median_sd(covariance: Tensor, mask: Tensor) -> Tensor:
    """(R,) median over the samples of the standard deviation of their errors."""
    return covariance[mask].diagonal(dim1=1, dim2=2).double().median(0).values.clamp_min(0).sqrt()


def _states(segments: _Segments, most: int, generator) -> tuple[Tensor, Tensor | None]:
    z = segments.z[segments.mask]
    pick = torch.randperm(len(z), generator=generator)[:most].to(z.device)
    return z[pick], None if segments.u is None else segments.u[segments.mask][pick]


def _start(basis, prior: Prior, segments, alpha, stride, noise: Tensor, generator) -> tuple[Tensor, Tensor]:
    """First c' (pR,) by regression on differences, and a reference covariance (p, p) of c' with fitted amplitudes.

    Over a stride the drive is taken as constant: z[t+s] = a z[t] + (1 - a) F with a = (1 - alpha)^s.
    """
    both = segments.mask[:, 1:] & segments.mask[:, :-1]
    a = (1 - alpha) ** stride
    y = (segments.z[:, 1:] - a * segments.z[:, :-1])[both] / (1 - a)
    z = segments.z[:, :-1][both]
    u = None if segments.u is None else segments.u[:, :-1][both]
    pick = torch.randperm(len(z), generator=generator)[:6000].to(z.device)
    b = basis(z[pick], None if u is None else u[pick])
    rank = len(prior.gauge)
    targets = y[pick] @ torch.linalg.inv(prior.gauge)
    # alike noise in all dimensions will do here; at least a percent of the drive, for what differences get wrong
    variance = noise.diagonal().mean() * (1 + a**2) / (1 - a) ** 2 * float(_inverse_scale(prior.gauge))
    variance = variance + 1e-4 * targets.square().mean()
    gram, scores = b.T @ b / variance, b.T @ targets / variance
    lead = least_squares(b[:, :3], targets).square().sum() / (prior.pool.size * rank)
    _, curved = prior.curved("arcsine", 0.8)
    jitter = 1e-9 * torch.eye(len(gram)).to(gram)
    reference = prior.linear + curved + 0.3 * prior.white
    reference = lead * (reference + jitter * reference.diagonal().mean())
    eye = torch.eye(rank).to(gram)
    w, d = informative(
        torch.kron(gram.contiguous(), eye), scores.reshape(-1), scores.new_zeros(scores.numel()), reference, rank, 60
    )
    parts = [in_data(w, part, rank) for part in (prior.linear, curved, prior.white)]
    parts = torch.stack([*parts, torch.eye(len(d)).to(d)])[None]
    centre = torch.stack([lead, lead, lead / 3, torch.ones_like(lead)]).log()[None]
    found = maximise_posterior(parts, d[:, None], centre, torch.tensor([[2.0, 2.0, 2.0, 1.0]]).to(d))
    amplitudes = found.log_amplitudes[0].exp()
    # never narrower than a tenth of the size of n: this prior is only there to keep the fit in bounds
    amplitudes[:3] = torch.maximum(amplitudes[:3], 0.1 * lead)
    reference = amplitudes[0] * prior.linear + amplitudes[1] * curved + amplitudes[2] * prior.white
    reference = reference + jitter * reference.diagonal().mean()
    c = torch.linalg.solve(gram + torch.linalg.inv(reference), scores)
    return c.reshape(-1), reference


def _inverse_scale(gauge: Tensor) -> Tensor:
    """Mean square by which gauge^-1 stretches a vector."""
    return torch.linalg.inv(gauge).square().sum() / len(gauge)


def _assemble(posterior: Posterior, components, loadings, activation, odd, width_factor) -> TrajectoryMean:
    prior, w, rank = posterior.prior, posterior.w, len(posterior.prior.gauge)
    used = sorted({i for i, _, _ in components})
    w3 = w.view(len(w), -1, rank)
    by_output = torch.einsum("npq,qr->rnp", w3, prior.gauge)
    coefficients, roots, amplitudes = [], [], []
    for i, theta, _ in components:
        size = theta.exp()
        if posterior.grid[i][0] == "none":
            size = size * torch.tensor([1.0, 0.0, 1.0, 1.0]).to(size)
        factor = torch.linalg.cholesky(torch.einsum("k,kij->ij", size, posterior.parts[i]))
        coefficients.append((w.T @ torch.cholesky_solve(posterior.d, factor)).view(-1, rank))
        roots.append(torch.linalg.solve_triangular(factor, by_output, upper=False))
        amplitudes.append(size[:3])
    values = {
        "rank": loadings.rank,
        "n_inputs": loadings.n_inputs,
        "has_bias": loadings.has_bias,
        "activation": activation,
        "odd": odd,
        "estimand": "folded" if odd else "mean",
        "width_factor": float(width_factor),
        "kernels": [list(posterior.grid[i]) for i in used],
        "summary": {},
    }
    tensors = {
        "location": prior.location,
        "whitening": prior.whitening,
        "gauge": prior.gauge,
        "centres": prior.centres,
        "linear_weights": prior.linear_weights,
        "projections": torch.stack([posterior.projections[i] for i in used]),
        "kernel_index": torch.tensor([used.index(i) for i, _, _ in components]),
        "weights": torch.tensor([weight for _, _, weight in components], dtype=torch.float64),
        "amplitudes": torch.stack(amplitudes),
        "coefficients": torch.stack(coefficients),
        "roots": torch.stack(roots),
    }
    return TrajectoryMean(values, {name: tensor.to(w.device).clone() for name, tensor in tensors.items()})


def _summarise(
    model, posterior: Posterior, components, likelihood: Likelihood, loadings, noise, spread, stated: bool
) -> None:
    """``stated``: each sample's noise was given, and is judged by the dispersion of the whitened residuals."""
    rows = loadings.stack()[:500]
    mean, variance = model.mean(rows), model.variance(rows)
    error = float(variance.sum() / (variance.sum() + mean.square().sum()).clamp_min(1e-300))
    best = components[0][0]
    determined = function = 0.0
    for i, log_amplitudes, weight in components:
        parts = log_amplitudes.exp()[:, None, None] * posterior.parts[i]
        inverse = torch.linalg.inv(parts.sum(0))
        determined += weight * float(len(inverse) - (inverse * parts[3]).sum())
        function += weight * float((inverse * (parts[0] + parts[1])).sum())
    rank = model.rank
    residual_sd = likelihood.dispersion**0.5 * noise if stated else likelihood.covariance.diagonal().sqrt()
    family, width = posterior.grid[best]
    by_kernel = [sum(w for i, _, w in components if i == j) for j in range(len(posterior.grid))]
    own = (model.weights * model.amplitudes[:, 2]).sum() * model.gauge.square().sum() / rank
    model.summary.update(
        {
            "estimator": "trajectories",
            "estimand": model.estimand,
            "kernel": family,
            "width": width,
            "kernel_weight": max(by_kernel),
            "n_kernels": sum(w > 0 for w in by_kernel),
            "n_components": len(components),
            "evidence": float(torch.logsumexp(posterior.found.evidence, 0)),
            "own_variance": float(own),
            "noise_sd": [float(v) for v in residual_sd],
            "difference_noise_sd": [float(v) for v in noise],
            "residual_autocorrelation": likelihood.autocorrelation,
            "n_samples": likelihood.n_samples,
            "n_dropped_segments": likelihood.n_dropped,
            "n_modes": posterior.prior.v.shape[1],
            "determined_modes": determined / rank,
            "function_modes": function / rank,
            "predicted_error": error,
            "converged": likelihood.converged,
            "odd": model.values["odd"],
        }
    )
    model.summary["warnings"] = _warnings(model.summary, residual_sd, noise, spread)


def _warnings(summary: dict, residual_sd: Tensor, noise: Tensor, spread: Tensor) -> list[str]:
    """Sentences on signs of misfit."""
    found = []
    visible = float((residual_sd / spread).max()) > _NEGLIGIBLE
    rho = summary["residual_autocorrelation"]
    if visible and rho > 0.2:
        found.append(
            f"Residuals of successive samples are correlated ({rho:.2f}): the states carry noise of their own, or the "
            "noise was smoothed before; intervals are too narrow."
        )
    ratio = float((residual_sd / noise.clamp_min(1e-12 * spread)).max())
    if visible and ratio > 1.5:
        found.append(
            f"Trajectories miss the samples by {ratio:.1f} times the noise between neighbouring samples: the network's "
            "step, nonlinearity, inputs or loadings may be other than assumed."
        )
    return found


def _check_observed(observed, latents: Latents) -> None:
    if observed is None:
        return
    shape = tuple(latents.z.shape)
    got = tuple(tuple(x.shape) for x in observed)
    if got != (shape, (*shape, shape[-1])):
        raise UserError(f"observed states {shape} and their covariances {(*shape, shape[-1])}", str(got))
    if not all(bool(torch.isfinite(x[latents.mask]).all()) for x in observed):
        raise UserError("finite observed states and covariances", "NaN or infinite entries")


def _check(latents, loadings, stride, native_alpha, fraction, covariance, families, draws) -> float:
    if latents.z.ndim != 3 or latents.rank != loadings.rank:
        raise UserError(
            f"latents of shape (trials, time, {loadings.rank}), as the loadings have it", str(tuple(latents.z.shape))
        )
    got = 0 if latents.inputs is None else latents.inputs.shape[-1]
    if got != loadings.n_inputs:
        raise UserError(f"{loadings.n_inputs} inputs, as the loadings have them", str(got))
    if latents.lengths.shape != latents.z.shape[:1]:
        raise UserError(f"a length for each of {len(latents.z)} trials", str(tuple(latents.lengths.shape)))
    if not bool((latents.lengths >= 2).any()):
        raise UserError("a trial of at least two samples", "none")
    if not isinstance(stride, int) or stride < 1:
        raise UserError("stride a whole number of at least 1", repr(stride))
    alpha = latents.alpha / stride if native_alpha is None else float(native_alpha)
    if not 0 < alpha <= 1:
        raise UserError("native_alpha in (0, 1]", repr(alpha))
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError("recorded_fraction in (0, 1], or None where unknown", repr(fraction))
    if draws < 1:
        raise UserError("draws at least 1", repr(draws))
    for family in families:
        if family not in KERNELS:
            raise UserError(f"kernel families among {', '.join(KERNELS)}", repr(family))
    stacked = loadings.stack()
    if covariance is not None and covariance.shape != (*stacked.shape, stacked.shape[1]):
        raise UserError(
            f"loadings_covariance of shape {(*stacked.shape, stacked.shape[1])}", str(tuple(covariance.shape))
        )
    valid = latents.mask
    if not bool(torch.isfinite(latents.z[valid]).all() and torch.isfinite(stacked).all()):
        raise UserError("finite latents and loadings", "NaN or infinite entries")
    return alpha
