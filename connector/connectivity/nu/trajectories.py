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

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.mean import (
    KERNELS,
    WIDTHS,
    Amplitudes,
    ConditionalMean,
    design_times,
    extend_pool,
    inverse_root,
    kernel,
    kernel_diagonal,
    kernel_pairs,
    linear_features,
    maximise_posterior,
    project_kernel,
)
from connector.dynamics import Activation, potentials
from connector.dynamics import activation as get_activation
from connector.errors import UserError
from connector.numerics import least_squares
from connector.types import Latents, Loadings

_CHUNK = 4_000_000  # entries of a matrix built at a time: 32 MB
_COMPONENTS = 32  # of the posterior mixture, at most
_LEFT_BY_SMOOTHING = 0.3  # of the readings' standard error
_TAME = 1e12  # information per sample about a coefficient, in units of the prior's, beyond which a simulation ran away
_NEGLIGIBLE = 1e-3  # misfit below this share of the states' spread is truncation of the basis, not worth a warning


# ---------------------------------------------------------------------------------------------------------------
# The fitted object


class TrajectoryMean(ConditionalMean):
    """nu at any loading with posterior intervals. Made by :func:`fit_trajectories`.

    Attributes:
        estimand: "folded" (odd phi, no bias, no input: see the module's text) or "mean".
        predicted_error: expected normalised squared error of nu over the recorded neurons' loadings.
        summary: plain values, among them noise_sd (of the samples), residual_autocorrelation, kernel, determined_modes
            and ``warnings``, sentences about signs that the model does not fit.
    """

    estimator = "trajectories"

    @property
    def estimand(self) -> str:
        return self.values["estimand"]

    @property
    def predicted_error(self) -> float:
        return self.summary["predicted_error"]

    @property
    def spread(self) -> Tensor:
        """(R, R) covariance of n around nu in the network, as far as its dynamics show it."""
        return (self.weights * self.amplitudes[:, 2]).sum() * self.gauge @ self.gauge

    def mean(self, rows: Tensor) -> Tensor:
        """nu (K, R) at stacked loadings (K, R + U + bias), in their dtype."""
        return self(rows)

    def interval(self, rows: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central posterior intervals of nu.

        Args:
            rows: (K, R + U + bias) stacked loadings.
            level: probability, in (0, 1).

        Returns:
            low, high: (K, R) each, in the dtype of ``rows``.

        Raises:
            UserError: a level outside (0, 1), or rows of another width.
        """
        if not 0 < level < 1:
            raise UserError("a level between 0 and 1", repr(level))
        self._check(rows)
        low, high = [rows.new_zeros(0, self.rank)], [rows.new_zeros(0, self.rank)]
        for part in rows.split(max(1, _CHUNK // self._width())):
            means, variances = self._components(part.double())
            middle = (self.weights[:, None, None] * means).sum(0)
            tail = (1 - level) / 2
            for side, probability in ((low, tail), (high, 1 - tail)):
                quantile = _mixture_quantile(means, variances.sqrt(), self.weights, probability)
                side.append((middle + self.values["width_factor"] * (quantile - middle)).to(rows.dtype))
        return torch.cat(low), torch.cat(high)

    def _components(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (components, K, R) of nu."""
        x = (stacked - self.location) @ self.whitening
        odd = self.values["odd"]
        features = linear_features(x, odd)
        straight, straight_prior = features @ self.linear_weights, features.square().sum(1)
        scale = self.gauge.square().sum(0)
        means, variances = [], []
        for i, (family, width) in enumerate(self.values["kernels"]):
            if family != "none":
                curved = kernel(x, self.centres, family, width, odd) @ self.projections[i]
                curved_prior = kernel_diagonal(x, family, width, odd)
            for j in (self.kernel_index == i).nonzero()[:, 0].tolist():
                cross, prior = self.amplitudes[j, 0] * straight, self.amplitudes[j, 0] * straight_prior
                if family != "none":
                    cross = cross + self.amplitudes[j, 1] * curved
                    prior = prior + self.amplitudes[j, 1] * curved_prior
                means.append((j, cross @ self.coefficients[j] @ self.gauge))
                explained = torch.stack([(cross @ root.T).square().sum(1) for root in self.roots[j]], dim=1)
                variances.append((j, (prior[:, None] * scale - explained).clamp_min(0)))
        means.sort(key=lambda item: item[0])
        variances.sort(key=lambda item: item[0])
        return torch.stack([m for _, m in means]), torch.stack([v for _, v in variances])

    def _mean(self, stacked: Tensor) -> Tensor:
        """The weighted mean of :meth:`_components`, summed over the components before the loadings come in."""
        x, odd = (stacked - self.location) @ self.whitening, self.values["odd"]
        shares = self.weights[:, None] * self.amplitudes  # (components, 3)
        mean = linear_features(x, odd) @ (self.linear_weights @ torch.tensordot(shares[:, 0], self.coefficients, 1))
        for i, (family, width) in enumerate(self.values["kernels"]):
            if family != "none":
                here = self.kernel_index == i
                curved = self.projections[i] @ torch.tensordot(shares[here, 1], self.coefficients[here], 1)
                mean = mean + kernel(x, self.centres, family, width, odd) @ curved
        return mean @ self.gauge

    def _variance(self, stacked: Tensor) -> Tensor:
        means, variances = self._components(stacked)
        weight = self.weights[:, None, None]
        centre = (weight * means).sum(0)
        return self.values["width_factor"] ** 2 * (weight * (variances + (means - centre) ** 2)).sum(0)

    def _width(self) -> int:
        return max(4 * len(self.centres), 8 * len(self.weights) * self.rank)


def _mixture_quantile(means: Tensor, sds: Tensor, weights: Tensor, probability: float) -> Tensor:
    """Quantile of normal mixtures by bisection: means, sds (C, ...), weights (C,)."""
    low, high = (means - 8 * sds).amin(0), (means + 8 * sds).amax(0)
    sds = sds.clamp_min(1e-300)
    weights = weights.view(-1, *[1] * (means.ndim - 1))
    for _ in range(36):
        middle = 0.5 * (low + high)
        below = (weights * torch.special.ndtr((middle - means) / sds)).sum(0) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


# ---------------------------------------------------------------------------------------------------------------
# What is known of the network's loadings


@dataclass
class _Pool:
    """Points that stand for the loadings: ``cloud`` of them for each recorded neuron in turn, then jittered copies.

    points (Q, P) stacked; fraction: recorded share of the network, 0 if unknown (a very large network). inflation: of the
    scatter within clouds, for the sampling error of the distribution that shrinks the estimates.
    """

    points: Loadings
    n_recorded: int
    cloud: int
    fraction: float
    inflation: float = 1.0

    @property
    def size(self) -> int:
        return self.points.n_neurons

    def weights(self) -> Tensor:
        """(Q,) w with E[c | g] = sum_q w_q g(l_q) v_q: a recorded neuron stands for itself, the rest for all others."""
        w = torch.full((self.size,), 1 - self.fraction).to(self.points.m)
        seen = self.n_recorded * self.cloud
        w[:seen] += self.fraction * self.size / seen
        return w


def _pool_share(pool: _Pool) -> float:
    """Q / K: points of the pool per neuron of the network."""
    return pool.size * pool.fraction / pool.n_recorded


def _build_pool(loadings, covariance, fraction, pseudo, generator) -> _Pool:
    stacked = loadings.stack()
    k, dim = stacked.shape
    shape = (loadings.rank, loadings.n_inputs, loadings.has_bias)
    cloud, inflation = 1, 1.0
    points = stacked
    if covariance is not None:
        points, cloud = _clouds(stacked, covariance, generator)
        # With l ~ N(0, P), known up to an error of variance S, a second moment estimated from the same neurons has
        # ((P + S) / P)^2 times the variance that it would have were P known.
        total, errors = stacked.var(0, unbiased=False), covariance.diagonal(dim1=1, dim2=2).mean(0)
        varies = total > 1e-12 * total.max()
        inflation = float((total / (total - errors).clamp_min(0.1 * total))[varies].mean()) ** 2
    extra = 0
    if pseudo == "auto":
        extra = 0 if k >= 200 or fraction == 1 else 1000 - k
    elif pseudo:
        extra = int(pseudo)
    if extra:
        centres = points.view(k, cloud, dim).mean(1)
        copies = extend_pool(Loadings.unstack(centres, *shape), extra, None, generator).stack()[k:]
        points = torch.cat([points, copies])
    return _Pool(Loadings.unstack(points, *shape), k, cloud, fraction, inflation)


def _clouds(stacked: Tensor, covariance: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """Sigma points (K 2P, P) of each true loading given its estimate, and their number per neuron.

    The estimates scatter more than the true loadings do. A mixture of normals for the true ones, fitted to the
    estimates with their errors' covariances, gives each loading's posterior, of which mean and covariance are kept.
    """
    dim = stacked.shape[1]
    weights, means, spreads = _deconvolve(stacked, covariance, generator)
    centre, left = [], []
    for rows, errors in zip(stacked.split(20_000), covariance.split(20_000)):
        share, mean, spread, _ = _true_loading(rows, errors, weights, means, spreads)
        middle = (share[:, :, None] * mean).sum(1)
        away = mean - middle[:, None]
        between = torch.einsum("kc,kci,kcj->kij", share, away, away)
        centre.append(middle)
        left.append((share[:, :, None, None] * spread).sum(1) + between)
    centre, left = torch.cat(centre), torch.cat(left)
    values, vectors = torch.linalg.eigh(0.5 * (left + left.transpose(1, 2)))
    root = vectors * (dim * values.clamp_min(0)).sqrt()[:, None, :]  # columns: sqrt(P) times the principal axes
    arms = root.transpose(1, 2)
    return torch.cat([centre[:, None] + arms, centre[:, None] - arms], dim=1).reshape(-1, dim), 2 * dim


def _true_loading(rows: Tensor, errors: Tensor, weights: Tensor, means: Tensor, spreads: Tensor):
    """Of each row (K, P) and component: its probability (K, C), the true loading's mean (K, C, P) and covariance
    (K, C, P, P) given the row; and the rows' log-likelihood (K,)."""
    total = spreads + errors[:, None]
    factor = torch.linalg.cholesky(total)
    away = rows[:, None] - means
    scaled = torch.linalg.solve_triangular(factor, away[..., None], upper=False)
    log_p = -0.5 * scaled.square().sum((2, 3)) - factor.diagonal(dim1=2, dim2=3).log().sum(2) + weights.log()
    gain = torch.cholesky_solve(spreads.expand_as(total), factor).transpose(2, 3)
    mean = means + (gain @ away[..., None])[..., 0]
    return torch.softmax(log_p, 1), mean, spreads - gain @ spreads, torch.logsumexp(log_p, 1)


def _deconvolve(stacked: Tensor, covariance: Tensor, generator: torch.Generator, steps: int = 40):
    """Mixture of normals behind noisy rows by expectation-maximisation; number of components by BIC."""
    pick = torch.randperm(len(stacked), generator=generator)[:2000].to(stacked.device)
    rows, errors = stacked[pick], covariance[pick]
    k, dim = rows.shape
    mean = rows.mean(0)
    overall = (rows - mean).T @ (rows - mean) / k
    floor = 1e-3 * torch.linalg.eigvalsh(overall)[-1].clamp_min(1e-12)
    eye = torch.eye(dim).to(rows)
    best, best_score = None, -math.inf
    for count in (1, 2, 4, 8):
        if count > 1 and k < 20 * count * dim:
            break
        chosen = [int(torch.randint(k, (1,), generator=generator))]
        for _ in range(count - 1):  # spread out, as k-means++ does
            nearest = torch.cdist(rows, rows[chosen]).amin(1).square().cpu()
            chosen.append(int(torch.multinomial(nearest + 1e-12, 1, generator=generator)))
        means = mean[None] if count == 1 else rows[chosen]
        weights = torch.full((count,), 1 / count).to(rows)
        spreads = (overall / count ** (2 / dim) + floor * eye).expand(count, dim, dim)
        for _ in range(steps):
            share, true, left, log_p = _true_loading(rows, errors, weights, means, spreads)
            size = share.sum(0) + 1e-9
            weights = size / size.sum()
            means = (share[:, :, None] * true).sum(0) / size[:, None]
            away = true - means
            scatter = torch.einsum("kc,kci,kcj->cij", share, away, away)
            spreads = (scatter + torch.einsum("kc,kcij->cij", share, left)) / size[:, None, None] + floor * eye
        free = count * (1 + dim + dim * (dim + 1) / 2)
        score = float(log_p.sum()) - 0.5 * free * math.log(k)
        if score > best_score:
            best, best_score = (weights, means, spreads), score
    return best


# ---------------------------------------------------------------------------------------------------------------
# The basis of the drive


@dataclass
class _Basis:
    """B(z, u) = phi(potentials of a few anchor neurons) @ mixing (anchors, p); v (Q, p) as in the module's text."""

    phi: Activation
    anchors: Loadings
    mixing: Tensor
    v: Tensor

    def __call__(self, z: Tensor, u: Tensor | None) -> Tensor:
        return self.phi(potentials(self.anchors, z, u)) @ self.mixing


def _build_basis(phi, pool: _Pool, z: Tensor, u: Tensor | None, cutoff: float, max_modes: int, generator) -> _Basis:
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
    return _Basis(phi, anchors, mixing, r.T @ vectors / singular)


# ---------------------------------------------------------------------------------------------------------------
# Segments of trajectories and their likelihood


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
    basis: _Basis, c: Tensor, segments: _Segments, z0: Tensor, alpha: float, stride: int, root: Tensor
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


@dataclass
class _Likelihood:
    """exp(-(c - peak)^T h (c - peak) / 2 + b^T (c - peak)) of the whitened-gauge coefficients c (pR,)."""

    h: Tensor
    b: Tensor
    c: Tensor
    covariance: Tensor  # (R, R) of the samples' noise, where it is alike for all
    dispersion: float  # variance of the whitened residuals
    autocorrelation: float  # of the residuals, lag 1
    converged: bool
    n_samples: int
    n_dropped: int  # segments


class _GaussNewton:
    """Fits c (p, R) and the segments' initial states; n = n' gauge, and c = c' gauge with the prior on c'."""

    def __init__(self, basis, gauge, prior, alpha, stride):
        self.basis, self.gauge, self.alpha, self.stride = basis, gauge, alpha, stride
        p, rank = basis.v.shape[1], len(gauge)
        self.shape = (p, rank)
        self.precision = torch.kron(torch.linalg.inv(prior).contiguous(), torch.eye(rank).to(prior))
        self.limit = _TAME * float(self.precision.diagonal().max())
        self.lift = torch.kron(torch.eye(p).to(gauge), gauge)  # c = lift^T c'

    def run(self, c: Tensor, stages: list[tuple[_Segments, int]], covariance: Tensor) -> _Likelihood:
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
        return _Likelihood(
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


# ---------------------------------------------------------------------------------------------------------------
# The prior of c, and the posterior mixture


class _Prior:
    """Cov(c'_q) = sum_k amplitude_k part_k, the same for every dimension q: linear, curved, white; one per kernel."""

    def __init__(self, pool: _Pool, v: Tensor, odd: bool, gauge: Tensor, max_centres: int, generator):
        self.pool, self.v, self.odd = pool, v, odd
        stacked = pool.points.stack()
        self.location = torch.zeros_like(stacked[0]) if odd else stacked.mean(0)
        self.whitening = inverse_root(stacked - self.location)
        self.gauge = gauge
        self.x = (stacked - self.location) @ self.whitening
        self.subset = pool.size > max_centres
        self.centres = self.x
        if self.subset:
            pick = torch.randperm(pool.size, generator=generator)[: max(1, max_centres // 4)].to(v.device)
            self.centres = self.x[pick]
        self.weighted = v * pool.weights()[:, None]
        features = linear_features(self.x, odd)
        self.linear_weights = features.T @ self.weighted  # (P, p)
        scatter = self._scatter(features.square().sum(1), lambda a, b: (a * b).sum(-1) + (0.0 if odd else 1.0))
        straight = self.linear_weights.T @ self.linear_weights
        self.linear = straight + scatter - self._between(straight)
        self.white = self._white()

    def curved(self, family: str, width: float) -> tuple[Tensor, Tensor]:
        """Projection (centres, p) with Cov(g(l), c) = k(l, centres) projection; and the part (p, p)."""
        projection, part = project_kernel(self.x, self.centres, self.subset, self.weighted, family, width, self.odd)
        if family == "none":
            return projection, part
        scatter = self._scatter(
            kernel_diagonal(self.x, family, width, self.odd), lambda a, b: kernel_pairs(a, b, family, width, self.odd)
        )
        return projection, part + scatter - self._between(part)

    def _others(self) -> float:
        """Weight of Cov(g v) over a fresh loading: others' draws, (Q/K)^2 K_u / Q, and the sampling error of the
        recorded, which stand for their distribution, (Q/K)^2 K_u^2 / (K_r Q): together Q (1 - f) / K_r."""
        return self.pool.size * (1 - self.pool.fraction) / self.pool.n_recorded

    def _between(self, part: Tensor) -> Tensor:
        return part * (self._others() / self.pool.size)

    def _scatter(self, diagonal: Tensor, pairs) -> Tensor:
        """E over g of sum_q g_q^2 v_q v_q^T for fresh loadings, and of the covariance of g v within clouds."""
        pool, v = self.pool, self.v
        total = self._others() * (v * diagonal[:, None]).T @ v
        if pool.cloud > 1:
            j, seen = pool.cloud, pool.n_recorded * pool.cloud
            x, vi = self.x[:seen].view(-1, j, self.x.shape[1]), v[:seen].view(-1, j, v.shape[1])
            k = pairs(x[:, :, None], x[:, None, :])  # (K, j, j)
            mixed = torch.diag_embed(k.diagonal(dim1=1, dim2=2)) / j - k / j**2
            total = total + pool.inflation * _pool_share(pool) ** 2 * torch.einsum("kip,kiq->pq", vi, mixed @ vi)
        return total

    def _white(self) -> Tensor:
        pool = self.pool
        eye = torch.eye(self.v.shape[1]).to(self.v)
        if pool.fraction == 0:  # size of the network unknown: as if it were the recorded neurons; the amplitude is free
            return eye * pool.size / pool.n_recorded
        seen = self.v[: pool.n_recorded * pool.cloud]
        share = _pool_share(pool)
        return share**2 / pool.cloud * seen.T @ seen + share * (1 - pool.fraction) * eye


def _informative(likelihood_h, likelihood_b, c, prior: Tensor, rank: int, most: int) -> tuple[Tensor, Tensor]:
    """W (N, pR) and d (N,) with d = W c + N(0, I): the data, in the directions they tell most about, against ``prior``.

    Those with a signal of less than 1e-3 noise variances are dropped.
    """
    scale = torch.kron(torch.linalg.cholesky(prior).contiguous(), torch.eye(rank).to(prior))
    values, vectors = torch.linalg.eigh(scale.T @ likelihood_h @ scale)
    keep = values > 1e-3
    keep[: max(0, len(values) - most)] = False
    keep[-1] = True
    values, vectors = values[keep].clamp_min(1e-12).sqrt(), vectors[:, keep]
    w = torch.linalg.solve_triangular(scale.T, vectors * values, upper=True).T
    return w, w @ c + vectors.T @ (scale.T @ likelihood_b) / values


def _in_data(w: Tensor, part: Tensor, rank: int) -> Tensor:
    """W (part x I_R) W^T."""
    w3 = w.view(len(w), -1, rank)
    return sum(w3[:, :, q] @ part @ w3[:, :, q].T for q in range(rank))


class _Posterior:
    """Amplitudes of all kernels at once, then a mixture of draws about their modes."""

    def __init__(self, prior: _Prior, grid, likelihood: _Likelihood, reference: Tensor, most: int, noise_width: float):
        self.prior, self.grid = prior, grid
        rank = len(prior.gauge)
        self.w, d = _informative(likelihood.h, likelihood.b, likelihood.c, reference, rank, most)
        self.d = d[:, None]
        eye = torch.eye(len(d)).to(d)
        self.projections, curved = [], []
        for family, width in grid:
            projection, part = prior.curved(family, width)
            self.projections.append(projection)
            curved.append(_in_data(self.w, part, rank))
        linear, white = (_in_data(self.w, part, rank) for part in (prior.linear, prior.white))
        rest = [part.expand(len(grid), *part.shape) for part in (linear, white, eye)]
        self.parts = torch.stack([rest[0], torch.stack(curved), rest[1], rest[2]], dim=1)
        self.centre, self.width = _hyper_prior(likelihood.c.view(-1, rank), prior.pool.size, grid, noise_width)
        self.found = maximise_posterior(self.parts, self.d, self.centre, self.width)

    def mixture(self, draws: int, generator: torch.Generator) -> list[tuple[int, Tensor, float]]:
        """(kernel's number, log amplitudes (4,), weight) of each component, families equally likely beforehand."""
        found: Amplitudes = self.found
        sizes = [sum(f == other for other, _ in self.grid) for f, _ in self.grid]
        score = found.evidence - torch.tensor(sizes).to(found.evidence).log()
        kept = (score > score.max() - math.log(200)).nonzero()[:, 0]
        free = (self.width[kept] > 0).to(self.d)
        theta, log_weight = found.log_amplitudes[kept][:, None], score[kept][:, None]
        if draws > 1:
            noise = torch.randn(len(kept), (draws + 1) // 2, 4, generator=generator, dtype=torch.float64).to(self.d)
            noise = torch.cat([noise, -noise], dim=1)[:, :draws] * free[:, None]
            root = torch.linalg.cholesky(torch.linalg.inv(found.precision[kept]))
            theta = theta + noise @ root.transpose(1, 2)
            value = torch.stack([self._value(i, t) for i, t in zip(kept.tolist(), theta)])
            ratio = value - found.value[kept][:, None] + 0.5 * noise.square().sum(2)
            # the mean ratio corrects the Laplace evidence; bounded, so that no single draw decides
            log_weight = log_weight + ratio.clamp(-20, 2) - math.log(draws)
        weight = torch.softmax(log_weight.reshape(-1), 0)
        order = weight.argsort(descending=True)[:_COMPONENTS]
        order = order[weight[order] > 0.002 * weight[order[0]]]
        total = float(weight[order].sum())
        theta = theta.reshape(-1, 4)
        per = max(1, draws)
        return [(int(kept[i // per]), theta[i], float(weight[i]) / total) for i in order.tolist()]

    def _value(self, i: int, theta: Tensor) -> Tensor:
        """Log posterior (draws,) of log amplitudes theta (draws, 4) of kernel i."""
        factor, failed = torch.linalg.cholesky_ex(torch.einsum("dk,kij->dij", theta.exp(), self.parts[i]))
        solved = torch.linalg.solve_triangular(factor, self.d.expand(len(theta), *self.d.shape), upper=False)
        value = -0.5 * solved.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        width = torch.where(self.width[i] > 0, self.width[i], torch.full_like(self.width[i], math.inf))
        value = value - 0.5 * (((theta - self.centre[i]) / width) ** 2).sum(1)
        return value.masked_fill((failed > 0) | value.isnan(), -math.inf)


def _hyper_prior(c: Tensor, pool_size: int, grid, noise_width: float) -> tuple[Tensor, Tensor]:
    """Normal priors (kernels, 4) of the log amplitudes: wide, about the size of n that the leading modes show."""
    leading = (c[:3].square().sum() / (pool_size * c.shape[1])).clamp_min(1e-30)
    centre = torch.stack([leading, leading, leading / 3, torch.ones_like(leading)]).log()
    width = torch.tensor([2.0, 2.0, 2.0, noise_width]).to(c)
    centre, width = centre.expand(len(grid), 4).clone(), width.expand(len(grid), 4).clone()
    for i, (family, _) in enumerate(grid):
        if family == "none":
            width[i, 1] = 0.0  # its part is zero: nothing to fit
    return centre, width


# ---------------------------------------------------------------------------------------------------------------
# Fitting


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
    pool = _build_pool(loadings, loadings_covariance, recorded_fraction or 0.0, pseudo_loadings, generator)
    odd = phi.odd and not loadings.has_bias and loadings.n_inputs == 0
    gauge = inverse_root(loadings.m if odd else loadings.m - loadings.m.mean(0))
    rank = latents.rank

    # less memory per sample where there are many modes: forward sensitivities are R x pR for each segment
    full = _cut(latents, segment, max_samples, generator, observed)
    states, inputs = _states(full, min(max_states, max(200, 40_000_000 // pool.size)), generator)
    basis = _build_basis(phi, pool, states, inputs, mode_cutoff, max_modes or max(1, 320 // rank), generator)
    prior = _Prior(pool, basis.v, odd, gauge, max_centres, generator)

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
    posterior = _Posterior(prior, grid, likelihood, reference, max_directions, noise_width)
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


def _start(basis, prior: _Prior, segments, alpha, stride, noise: Tensor, generator) -> tuple[Tensor, Tensor]:
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
    w, d = _informative(
        torch.kron(gram.contiguous(), eye), scores.reshape(-1), scores.new_zeros(scores.numel()), reference, rank, 60
    )
    parts = [_in_data(w, part, rank) for part in (prior.linear, curved, prior.white)]
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


def _assemble(posterior: _Posterior, components, loadings, activation, odd, width_factor) -> TrajectoryMean:
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
    model, posterior: _Posterior, components, likelihood: _Likelihood, loadings, noise, spread, stated: bool
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
