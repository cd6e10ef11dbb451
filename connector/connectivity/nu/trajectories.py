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

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from connector.connectivity.nu.assembly import assemble, summary
from connector.connectivity.nu.design import Design, build_field
from connector.connectivity.nu.evidence import amplitude_prior, maximise_posterior
from connector.connectivity.nu.kernels import WIDTHS, check_families, kernel_grid, tried_families
from connector.connectivity.nu.mean import TrajectoryMean
from connector.connectivity.nu.population import Pool, build_pool
from connector.connectivity.nu.prior import Posterior, Prior, Quadratic, in_data, informative
from connector.dynamics import Activation
from connector.dynamics import activation as get_activation
from connector.errors import require
from connector.numerics import inverse_root, least_squares
from connector.shooting import Field, Segments, Shot, Weighting, shoot
from connector.types import Latents, Loadings

_LEFT_BY_SMOOTHING = 0.3  # of the readings' standard error
_TAME = 1e12  # information per segment about a coefficient, in units of the prior's, beyond which a simulation ran away
_CLEAN, _ROUNDING = 1e-5, 1e-7  # noise of the states' spread at first, where none is seen; and at least, at the end
_NOISY = 0.05  # noise of a sample over the states' spread, from which single samples are no good first states
_NEGLIGIBLE = 1e-3  # misfit below this share of the states' spread is truncation of the basis, not worth a warning
_STATE_ENTRIES = 40_000_000  # states times points of the pool of which the basis is made: 320 MB


@dataclass(frozen=True)
class TrajectorySettings:
    """How :func:`fit_trajectories` goes about it; the defaults suit most data.

    Attributes:
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
    """

    families: tuple[str, ...] = field(default_factory=tried_families)
    widths: tuple[float, ...] = WIDTHS
    draws: int = 8
    width_factor: float = 1.0
    noise_width: float = 0.0
    segment: int = 50
    max_samples: int = 20_000
    max_states: int = 1000
    mode_cutoff: float = 1e-4
    max_modes: int | None = None
    max_directions: int = 160
    max_centres: int = 900
    pseudo_loadings: int | str = "auto"
    seed: int = 0

    def __post_init__(self):
        check_families(self.families)
        require(self.draws >= 1, "draws at least 1", self.draws)


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
    decay: float | None = None,
    settings: TrajectorySettings | None = None,
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
        decay: k of an indicator behind which the states are ``observed``, f[t] = k f[t-1] + (1 - k) z[t]; None: none.

    Raises:
        UserError: shapes or options that do not fit.
    """
    settings, phi = settings or TrajectorySettings(), get_activation(activation)
    _check_data(latents, loadings, loadings_covariance, observed)
    alpha, fraction = _check_rates(latents.alpha, stride, native_alpha, recorded_fraction)
    generator = torch.Generator().manual_seed(settings.seed)
    loadings = loadings.map(lambda x: x.to(latents.z.device).double())
    if loadings_covariance is not None:
        loadings_covariance = loadings_covariance.to(latents.z.device).double()
    pool = build_pool(loadings, loadings_covariance, fraction, settings.pseudo_loadings, generator)
    odd = phi.odd and not loadings.has_bias and loadings.n_inputs == 0
    gauge = inverse_root(loadings.m if odd else loadings.m - loadings.m.mean(0))
    full = _cut(latents, settings.segment, settings.max_samples, generator, observed)
    dynamics, v = _field_over(full, phi, pool, (alpha, stride), settings, generator)
    prior = Prior(pool, v, odd, gauge, settings.max_centres, generator)

    noise = difference_noise(latents)
    if observed is not None:  # the median over the samples
        noise = observed[1][latents.mask].diagonal(dim1=1, dim2=2).double().median(0).values.clamp_min(0).sqrt()
    spread = full.z[full.mask].std(0, unbiased=False).clamp_min(1e-12)
    # Smoothing leaves a part of the noise in the guide, whose differences the start is made from.
    guess = torch.maximum(noise if observed is None else _LEFT_BY_SMOOTHING * noise, _CLEAN * spread) ** 2
    c, reference = _start(dynamics, prior, full, guess.mean(), generator)
    short = _cut(latents, 8, 2400, generator, observed)
    few = _cut(latents, settings.segment, min(6000, settings.max_samples), generator, observed)
    full, few = replace(full, decay=decay), replace(few, decay=decay)
    short = short if decay is None else few  # pieces shorter than the indicator lasts say nothing
    noisy = float((noise / spread).max()) > 1e-4
    stages = [(short, 3), (few, 4)] + ([(full, 4)] if noisy and len(full.z) > len(few.z) else [])
    fitted = _shoot_in_stages(dynamics, stages, c, 4 * reference, gauge, torch.diag(guess), spread)

    grid = kernel_grid(settings.families, settings.widths)
    posterior = Posterior(prior, grid, fitted.likelihood, reference, settings.max_directions, settings.noise_width)
    components = posterior.mixture(settings.draws, generator)
    model = assemble(posterior, components, dynamics, loadings, activation, settings.width_factor)
    model.summary.update(summary(model, posterior, components, loadings))
    model.summary.update(fitted.summary(noise, spread, observed is not None))
    return model


def _field_over(
    segments: Segments,
    phi: Activation,
    pool: Pool,
    time_step: tuple[float, int],
    settings: TrajectorySettings,
    generator: torch.Generator,
) -> tuple[Field, Tensor]:
    """What :func:`build_field` makes of ``pool`` at some of the states; time_step: alpha and stride."""
    z, u = segments.z[segments.mask], None if segments.u is None else segments.u[segments.mask]
    most = min(settings.max_states, max(200, _STATE_ENTRIES // pool.size))
    pick = torch.randperm(len(z), generator=generator)[:most].to(z.device)
    # less memory per sample where there are many modes: forward sensitivities are R x pR for each segment
    max_modes = settings.max_modes or max(1, 320 // z.shape[1])
    design = Design(phi, pool.points, z[pick], None if u is None else u[pick])
    return build_field(design, *time_step, settings.mode_cutoff, max_modes, generator)


def _roots(covariance: Tensor) -> Tensor:
    """L (..., R, R) with L L^T = covariance^-1."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.transpose(-1, -2)))
    return vectors * values.clamp_min(1e-300).rsqrt()[..., None, :]


def _cut(
    latents: Latents, length: int, budget: int, generator: torch.Generator, seen: tuple[Tensor, Tensor] | None = None
) -> Segments:
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
        return Segments(z, mask, u)
    observations, covariance = (x[trial[:, None], at].double() for x in seen)
    covariance[~mask] = torch.eye(z.shape[-1]).to(covariance)  # beyond a trial's end there is none
    return Segments(z, mask, u, observations, _roots(covariance))


@dataclass(frozen=True)
class _Fitted:
    """Where Gauss-Newton steps ended.

    Attributes:
        likelihood: of the coefficients c' in the whitened gauge.
        sd: (R,) of the samples' noise, where it is alike for all. dispersion: variance of the whitened residuals.
        autocorrelation: of the residuals, lag 1.
    """

    likelihood: Quadratic
    sd: Tensor
    dispersion: float
    autocorrelation: float
    shot: Shot

    def summary(self, noise: Tensor, spread: Tensor, stated: bool) -> dict:
        """noise, spread: (R,) of the samples. ``stated``: each sample's noise was given, and is judged by the dispersion."""
        residual_sd = self.dispersion**0.5 * noise if stated else self.sd
        return {
            "noise_sd": residual_sd.tolist(),
            "difference_noise_sd": noise.tolist(),
            "residual_autocorrelation": self.autocorrelation,
            "n_samples": int(self.shot.segments.mask.sum()),
            "n_dropped_segments": self.shot.n_dropped,
            "converged": self.shot.converged,
            "warnings": _warnings(self.autocorrelation, residual_sd, noise, spread),
        }


def _shoot_in_stages(
    dynamics: Field,
    stages: list[tuple[Segments, int]],
    c: Tensor,
    prior: Tensor,
    gauge: Tensor,
    covariance: Tensor,
    spread: Tensor,
) -> _Fitted:
    """Gauss-Newton on the segments of each stage in turn, with its number of steps.

    Args:
        c: (pR,) start, c = c' gauge. prior: (p, p) covariance of c' in each dimension.
        covariance: (R, R) first guess of the samples' noise, where they have none of their own.
        spread: (R,) sd of the states. Noise below ``_ROUNDING`` of it is rounding, all that a field of few modes may leave.
    """
    p, rank = len(prior), len(gauge)
    precision = torch.kron(*(torch.linalg.inv(x).contiguous() for x in (prior, gauge @ gauge)))
    for segments, steps in stages:
        relative = (covariance.diagonal() / spread**2).min()
        least, sharper = float(_ROUNDING**2 / relative), max(1.0, float(_CLEAN**2 / relative))
        if segments.root is not None:
            least, sharper = 0.0, 1.0
        weighting = Weighting(precision, sharper * _TAME * float(precision.diagonal().max()), least)
        noisy = segments.decay is None and float((covariance.diagonal() / spread**2).max()) > _NOISY**2
        shot = shoot(dynamics, segments.whitened(covariance), c, weighting, steps, noisy=noisy)
        c, found = shot.c, shot.found
        residuals = found.residuals.reshape(-1, rank)
        covariance = residuals.T @ residuals * rank / weighting.dof(found)
        covariance = covariance + (1e-6 * covariance.diagonal().mean() + 1e-30) * torch.eye(rank).to(c)
        covariance = covariance + torch.diag((_ROUNDING**2 * spread**2 - covariance.diagonal()).clamp_min(0))
    rho = _autocorrelation(found.whitened, shot.segments.mask)
    # Where residuals are correlated there are fewer independent ones than samples.
    share = (1 - min(rho, 0.95)) / (1 + min(rho, 0.95)) if rho > 0.1 else 1.0
    lift = torch.kron(torch.eye(p).to(gauge), gauge)  # c = lift^T c'
    h, b = lift @ found.h @ lift.T * (share / weighting.variance), lift @ found.b * (share / weighting.variance)
    in_gauge = (c.view(p, rank) @ torch.linalg.inv(gauge)).reshape(-1)
    return _Fitted(Quadratic(h, b, in_gauge), covariance.diagonal().sqrt(), weighting.variance, rho, shot)


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


def _start(
    dynamics: Field, prior: Prior, segments: Segments, noise: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """First c (pR,) by regression on differences, and a reference covariance (p, p) of c' with fitted amplitudes, c = c' gauge.

    Over a stride the drive is taken as constant: z[t+s] = a z[t] + (1 - a) F with a = (1 - alpha)^s. noise: variance of
    the samples, alike in all dimensions, which will do here.
    """
    both = segments.mask[:, 1:] & segments.mask[:, :-1]
    a = (1 - dynamics.alpha) ** dynamics.stride
    y = (segments.z[:, 1:] - a * segments.z[:, :-1])[both] / (1 - a)
    z = segments.z[:, :-1][both]
    u = None if segments.u is None else segments.u[:, :-1][both]
    pick = torch.randperm(len(z), generator=generator)[:6000].to(z.device)
    b = dynamics(z[pick], None if u is None else u[pick])
    rank, inverse_gauge = len(prior.gauge), torch.linalg.inv(prior.gauge)
    targets = y[pick] @ inverse_gauge
    # At least a percent of the drive, for what differences get wrong.
    variance = noise * (1 + a**2) / (1 - a) ** 2 * float(inverse_gauge.square().sum() / rank)
    variance = variance + 1e-4 * targets.square().mean()
    gram, scores = b.T @ b / variance, b.T @ targets / variance
    lead = least_squares(b[:, :3], targets).square().sum() / (prior.pool.size * rank)
    _, curved = prior.curved("arcsine", 0.8)
    jitter = 1e-9 * torch.eye(len(gram)).to(gram)
    reference = prior.linear + curved + 0.3 * prior.white
    reference = lead * (reference + jitter * reference.diagonal().mean())
    h, scores_in = torch.kron(gram.contiguous(), torch.eye(rank).to(gram)), scores.reshape(-1)
    w, d = informative(Quadratic(h, scores_in, torch.zeros_like(scores_in)), reference, rank, 60)
    parts = [in_data(w, part, rank) for part in (prior.linear, curved, prior.white)]
    parts = torch.stack([*parts, torch.eye(len(d)).to(d)])[None]
    hyper = amplitude_prior(lead, torch.ones_like(lead), 1.0, [("arcsine", 0.8)])
    found = maximise_posterior(parts, d[:, None], *hyper)
    amplitudes = found.log_amplitudes[0].exp()
    # never narrower than a tenth of the size of n: this prior is only there to keep the fit in bounds
    amplitudes[:3] = torch.maximum(amplitudes[:3], 0.1 * lead)
    reference = amplitudes[0] * prior.linear + amplitudes[1] * curved + amplitudes[2] * prior.white
    reference = reference + jitter * reference.diagonal().mean()
    c = torch.linalg.solve(gram + torch.linalg.inv(reference), scores)
    return (c @ prior.gauge).reshape(-1), reference


def _warnings(rho: float, residual_sd: Tensor, noise: Tensor, spread: Tensor) -> list[str]:
    """Sentences on signs of misfit; rho: autocorrelation of the residuals."""
    found = []
    visible = float((residual_sd / spread).max()) > _NEGLIGIBLE
    if visible and rho > 0.2:
        found.append(
            f"Residuals of successive samples are correlated ({rho:.2f}). The states carry noise of their own, or the noise was "
            "smoothed before. The intervals are too narrow. What to do: replace smoothed rates by unsmoothed ones, or by counts under "
            "`spikes`; otherwise read the intervals as a lower bound of the uncertainty."
        )
    ratio = float((residual_sd / noise.clamp_min(1e-12 * spread)).max())
    if visible and ratio > 1.5:
        found.append(
            f"Trajectories miss the samples by {ratio:.1f} times the noise between neighbouring samples. The network's step, "
            "nonlinearity, inputs or loadings may differ from those assumed. What to do: check data.alpha, data.activation, the "
            "inputs and lrrnn.rank."
        )
    return found


def _check_data(
    latents: Latents, loadings: Loadings, covariance: Tensor | None, observed: tuple[Tensor, Tensor] | None
) -> None:
    z, fits, stacked = latents.z, latents.z.ndim == 3 and latents.rank == loadings.rank, loadings.stack()
    require(fits, f"latents of shape (trials, time, {loadings.rank}), as the loadings have it", tuple(z.shape))
    got = 0 if latents.inputs is None else latents.inputs.shape[-1]
    require(got == loadings.n_inputs, f"{loadings.n_inputs} inputs, as the loadings have them", got)
    lengths = tuple(latents.lengths.shape)
    require(lengths == z.shape[:1], f"a length for each of {len(z)} trials", lengths)
    require(bool((latents.lengths >= 2).any()), "a trial of at least two samples", "none")
    if covariance is not None:
        expected, got = (*stacked.shape, stacked.shape[1]), tuple(covariance.shape)
        require(got == expected, f"loadings_covariance of shape {expected}", got)
    valid, bad = latents.mask, "NaN or infinite entries"
    require(bool(torch.isfinite(z[valid]).all() and torch.isfinite(stacked).all()), "finite latents and loadings", bad)
    if observed is not None:
        expected, got = (tuple(z.shape), (*z.shape, z.shape[-1])), tuple(tuple(x.shape) for x in observed)
        require(got == expected, "observed states {} and their covariances {}".format(*expected), got)
        finite = all(bool(torch.isfinite(x[valid]).all()) for x in observed)
        require(finite, "finite observed states and covariances", bad)


def _check_rates(
    sample_alpha: float, stride: int, native_alpha: float | None, fraction: float | None
) -> tuple[float, float]:
    """The network's own Euler step, and the recorded share of it, 0 where unknown."""
    require(isinstance(stride, int) and stride >= 1, "stride a whole number of at least 1", repr(stride))
    alpha = sample_alpha / stride if native_alpha is None else float(native_alpha)
    require(0 < alpha <= 1, "native_alpha in (0, 1]", alpha)
    known = fraction is None or 0 < fraction <= 1
    require(known, "recorded_fraction in (0, 1], or None where unknown", fraction)
    return alpha, fraction or 0.0
