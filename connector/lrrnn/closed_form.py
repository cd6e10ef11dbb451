"""A low-rank RNN from recorded rates, or counts, without gradient descent: loadings, latents and output weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.latents import DAMPING, inverse_of_normal, latents_of, limited_solve, update_latents
from connector.lrrnn.observation import Observation
from connector.lrrnn.output_weights import (
    SEGMENT_SAMPLES,
    SHOOT_MODES,
    Segments,
    fit_dynamics_by_ridge,
    fit_trajectory_weights,
    rate_modes,
)
from connector.lrrnn.samples import ActivitySamples, outer, random_rows, subset_size
from connector.lrrnn.smoother import linearised_step, moment_covariance, smooth_latents
from connector.numerics import least_squares
from connector.types import Latents, Loadings, Recording

# Ridge parameter of the start for them.
_NOISY_START = 1e-4


def _column_precision(theta: Tensor, moment: Tensor, dispersion: float) -> Tensor:
    """Prior precision (P,) of the stacked loadings, in units of the weights: each column's robust spread.

    It binds a neuron that the data leave open in a direction, for instance one that every input saturates.
    """
    spread = 1.48 * theta.abs().median(0).values
    return dispersion / torch.maximum(spread, moment.diagonal().clamp_min(1e-12).rsqrt()).square() + 1e-10


def _loading_equations(
    samples: ActivitySamples,
    x: Tensor,
    theta: Tensor,
    observation: Observation,
    matching: bool = False,
    neurons: Tensor | None = None,
    seen_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal matrices (K, P, P), scores (K, P) and losses (K,) of the stacked loadings, given x = [z, u, 1] (S, P).

    The loss is that of the observation, summed over samples (matching steps on the way to a squared error ignore it).

    Args:
        neurons: the columns of the activity that theta belongs to, where they are not all.
        seen_only: relu neurons inform on their loadings only where they were seen active.
    """
    width, n_neurons, low = x.shape[1], theta.shape[0], samples.activity.dtype
    normal, score = x.new_zeros(n_neurons, width * width), x.new_zeros(n_neurons, width)
    loss, theta_low = x.new_zeros(n_neurons), theta.to(low).T
    for at, y in samples.pieces():
        piece = x[at].to(low)
        y, h = y if neurons is None else y[:, neurons], samples.with_offset(piece @ theta_low, at, neurons)
        s, w, _ = observation.newton_terms(y, h, matching)
        if seen_only and observation.phi.name == "relu":
            w = w * (y > 0)
        normal += (w.T @ outer(piece)).double()
        score += (s.T @ piece).double()
        loss += observation.loss(y, h).sum(0).double()
    return normal.reshape(n_neurons, width, width), score, loss


def _update_loadings(
    samples: ActivitySamples,
    x: Tensor,
    theta: Tensor,
    observation: Observation,
    dispersion: float,
    matching: bool = False,
) -> Tensor:
    """One damped Newton step for the stacked loadings of all neurons."""
    normal, score, _ = _loading_equations(samples, x, theta, observation, matching)
    moment = x.T @ x
    precision = _column_precision(theta, moment / len(x), dispersion)
    damped = normal + torch.diag(precision) + DAMPING * moment
    return theta + limited_solve(damped, score - precision * theta, moment / len(x))


def loadings_covariance(
    samples: ActivitySamples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float
) -> Tensor:
    """Laplace covariance (K, P, P) of the stacked loadings given the latents in x: dispersion (X^T W X + prior)^-1.

    The dispersion is at least what rounding in the type of the activity leaves.
    """
    power = float(samples.activity[samples.rows[random_rows(len(samples), 200)]].square().mean())
    dispersion = max(dispersion, power * (20 * torch.finfo(samples.activity.dtype).eps) ** 2)
    normal, _, _ = _loading_equations(samples, x, theta, observation, seen_only=True)
    precision = _column_precision(theta, x.T @ x / len(x), dispersion)
    return torch.linalg.inv(normal + torch.diag(precision)) * dispersion


def _converged_loadings(
    samples: ActivitySamples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float, passes: int = 30
) -> Tensor:
    """Loadings of all neurons given the design x (S, P): Levenberg-Marquardt, each neuron with its own damping.

    After a first pass over all neurons only those that still move, or were refused a step, are taken up again.
    """
    moment, theta = x.T @ x, theta.clone()
    scale = moment / len(x)
    precision = _column_precision(theta, scale, dispersion)
    step, damping = torch.zeros_like(theta), theta.new_full((len(theta),), 1e-9)
    best = theta.new_full((len(theta),), float("inf"))
    equations = [theta.new_zeros(len(theta), theta.shape[1], theta.shape[1]), torch.zeros_like(theta)]
    moving = torch.arange(len(theta), device=theta.device)
    for _ in range(passes):
        trial = theta[moving] + step[moving]
        some = None if len(moving) == len(theta) else moving
        normal, score, loss = _loading_equations(samples, x, trial, observation, neurons=some)
        loss = loss + (precision * trial.square()).sum(1)
        better = loss < best[moving]
        up = moving[better]
        theta[up], best[up] = trial[better], loss[better]
        equations[0][up], equations[1][up] = (
            normal[better] + torch.diag(precision),
            score[better] - precision * trial[better],
        )
        damping[moving] *= torch.where(better, 0.1, 30.0).to(theta)
        lifted = equations[0][moving] + damping[moving, None, None].clamp_min(1e-9) * moment
        step[moving] = limited_solve(lifted, equations[1][moving], scale)
        change = torch.einsum("kp,pq,kq->k", step[moving], scale, step[moving])
        moving = moving[(change > 1e-6) & (damping[moving] < 1e3)]
        if not len(moving):
            break
    small = torch.einsum("kp,pq,kq->k", step, scale, step) <= 1e-6
    return torch.where(small[:, None], theta + step, theta)


def _denoised(y: Tensor) -> tuple[Tensor, float]:
    """The part of y (S, K) in singular modes that stand out of white noise, and the rms of the rest.

    Threshold: the median singular value times the factor that is optimal for unknown white noise (Gavish, Donoho
    2014), in its cubic approximation.
    """
    wide = y.shape[0] < y.shape[1]
    tall = y.T if wide else y
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    singular = values.clamp_min(0).sqrt()
    beta = tall.shape[1] / tall.shape[0]
    cut = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * singular.median()
    basis = vectors[:, singular > cut]
    kept = basis @ (basis.T @ y) if wide else (y @ basis) @ basis.T
    return kept, float((y - kept).square().mean().sqrt())


def _principal_start(
    samples: ActivitySamples, rank: int, has_bias: bool, observation: Observation
) -> tuple[Tensor, Tensor]:
    """Latents (S, R) with unit second moment and stacked loadings (K, P) from the principal components of phi^-1."""
    y = samples.activity[samples.rows].double()
    kept, noise = _denoised(y)
    spread = observation.spread(y)
    margin = spread * min(max(0.2 * noise / max(spread, 1e-12), 1e-6), 0.05)
    full = observation.phi.inverse(observation.inside(kept, margin))
    if samples.offset is not None:
        full = full - samples.offset[samples.rows]
    h, columns = full, samples.offset_columns(torch.float64, has_bias)
    if columns:
        known = torch.cat(columns, dim=1)
        h = h - known @ least_squares(known, h)
    gram = h @ h.T if len(h) < h.shape[1] else h.T @ h
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
    z = vectors if len(h) < h.shape[1] else h @ vectors
    z = z / z.square().mean(0).sqrt().clamp_min(1e-12)
    x = samples.design(z, has_bias)
    return z, least_squares(x, full).T.contiguous()


def with_noise_seen(samples: ActivitySamples, observation: Observation) -> Observation:
    """Of rates: two-valued noise where nearly all lie at the two ends of phi's range, else Gaussian noise."""
    phi = observation.phi
    if observation.noise == "poisson":
        return observation
    if phi.high == float("inf"):
        return observation.with_noise("gaussian")
    y = samples.activity[samples.rows[random_rows(len(samples), 200)]]
    margin = 1e-4 * (phi.high - phi.low)
    at_ends = ((y - phi.low).abs() < margin) | ((y - phi.high).abs() < margin)
    return observation.with_noise("two_valued" if at_ends.double().mean() > 0.98 else "gaussian")


def _joint_step(
    samples: ActivitySamples, z: Tensor, theta: Tensor, observation: Observation, has_bias: bool, damping: float
) -> tuple[Tensor, Tensor]:
    """Moves of latents (S, R) and stacked loadings (K, P) by one Gauss-Newton step for both at once.

    Alternation converges slowly where the two trade off (relu, softplus). The latents are eliminated sample by sample;
    what remains for the loadings is solved by conjugate gradients, preconditioned by each neuron's own block.
    ``damping`` is relative to the diagonal blocks (Levenberg-Marquardt).
    """
    low, rank, width = samples.activity.dtype, z.shape[1], theta.shape[1]
    x, m = samples.design(z, has_bias).to(low), theta[:, :rank].to(low)
    h = samples.with_offset(x @ theta.to(low).T, slice(None))
    s, w, _ = observation.newton_terms(samples.activity[samples.rows], h)

    def block(normal: Tensor, size: int) -> Tensor:
        normal = normal.double().reshape(-1, size, size)
        eye = torch.eye(size, dtype=normal.dtype, device=normal.device)
        return normal + (damping * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-10) * eye

    of_z, of_theta = block(w @ outer(m), rank), block(w.T @ outer(x), width)
    inverse_z, inverse_theta = torch.linalg.inv(of_z), torch.linalg.inv(of_theta)
    extra = of_theta - (w.T @ outer(x)).double().reshape(-1, width, width)

    def eliminated(weighted: Tensor) -> Tensor:
        """The latents' answer to a weighted change of potentials (S, K)."""
        return torch.einsum("srq,sq->sr", inverse_z, (weighted @ m).double())

    def schur(direction: Tensor) -> Tensor:
        weighted = w * (x @ direction.to(low).T)
        back = w * (eliminated(weighted).to(low) @ m.T)
        return ((weighted - back).T @ x).double() + torch.einsum("kpq,kq->kp", extra, direction)

    residual = ((s - w * (eliminated(s).to(low) @ m.T)).T @ x).double()
    move = _conjugate_gradients(schur, residual, lambda r: torch.einsum("kpq,kq->kp", inverse_theta, r))
    return eliminated(s - w * (x @ move.to(low).T)), move


def _conjugate_gradients(
    operator: Callable, right: Tensor, precondition: Callable, iterations: int = 60, tolerance: float = 1e-3
) -> Tensor:
    """Solution of operator(x) = right for a positive semidefinite operator, to a relative residual."""
    x, residual = torch.zeros_like(right), right
    conditioned = precondition(residual)
    direction, power = conditioned, float((residual * conditioned).sum())
    goal = tolerance**2 * power
    for _ in range(iterations):
        image = operator(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0 or power <= goal:
            break
        x, residual = x + power / curvature * direction, residual - power / curvature * image
        conditioned = precondition(residual)
        power, before = float((residual * conditioned).sum()), power
        direction = conditioned + power / before * direction
    return x


def _mean_loss(samples: ActivitySamples, z: Tensor, theta: Tensor, observation: Observation, has_bias: bool) -> float:
    """Mean squared residual, or twice the mean negative log likelihood up to a constant."""
    h = samples.with_offset(
        samples.design(z, has_bias).to(samples.activity.dtype) @ theta.to(samples.activity.dtype).T, slice(None)
    )
    return float(observation.loss(samples.activity[samples.rows], h).mean())


def _start_fit(
    samples: ActivitySamples, rank: int, has_bias: bool, observation: Observation, joint_steps: int = 25
) -> tuple[Tensor, Tensor]:
    """Latents (S, R) and stacked loadings (K, P) of some samples.

    Alternating Newton steps on the convex matching loss bring them near; damped joint Gauss-Newton steps on the
    squared error (two-valued data and counts: on the log likelihood) finish. They end when a step gains less than a
    ten-thousandth, or at float32 rounding.
    """
    z, theta = _principal_start(samples, rank, has_bias, observation)
    relu, exact = observation.phi.name == "relu", observation.noise == "gaussian"
    for sweep in range(8 if relu else 4):
        matching = sweep < (6 if relu else 2)
        z, _, error = update_latents(samples, z, theta, observation, int(matching), int(not matching))
        x, dispersion = samples.design(z, has_bias), observation.dispersion(error)
        theta = _update_loadings(samples, x, theta, observation, dispersion, matching)
    power = float(samples.activity[samples.rows].square().mean())
    damping, error = 1e-4, _mean_loss(samples, z, theta, observation, has_bias)
    for _ in range(joint_steps):
        if exact and error < 1e-13 * power:
            break
        z_move, move = _joint_step(samples, z, theta, observation, has_bias, damping)
        trial = _mean_loss(samples, z + z_move, theta + move, observation, has_bias)
        if trial < error:
            gained, error = (error - trial) / abs(error), trial
            z, theta, damping = z + z_move, theta + move, max(damping / 10, 1e-9)
            if gained < 1e-4:
                break
        else:
            damping *= 10
            if damping > 1:
                break
    return z, theta


@dataclass(frozen=True)
class ClosedFormFit:
    """A network fitted to rates without gradient descent; all float64.

    Gauge: latents have unit second moment about zero (about their mean, which is zero, where there is a bias) over all
    recorded samples, the columns of m are orthogonal, longest first, and the largest entry of each is positive.

    Attributes:
        latents: smoothed latents with their inputs.
        latents_covariance: (trials, time, R, R) posterior covariance of the latents given loadings and dynamics.
        least_squares: (trials, time, R) sample-wise latents, whose errors are independent from sample to sample.
        least_squares_covariance: (trials, time, R, R) covariance of those errors.
        loadings: of the recorded neurons.
        loadings_covariance: (K, P, P), P = R + U + 1 in the order m, b, d: sigma^2 (X^T W X)^-1 given the latents.
        n: (K, R) ridge output weights; regularizer: the lambda they were found with.
        residual_sd: standard deviation of rates about phi(h).
        process_covariance: (R, R) covariance of one step's error beside the fitted dynamics.
        observation: phi and the noise that the activity was found to have.
        misfit: mean squared normalised residual of the simulated segments: about 1 where dynamics are deterministic,
            more where phi, alpha or rank are wrong or the dynamics noisy. None where the rates are clean.
    """

    latents: Latents
    latents_covariance: Tensor
    least_squares: Tensor
    least_squares_covariance: Tensor
    loadings: Loadings
    loadings_covariance: Tensor
    n: Tensor
    regularizer: float
    residual_sd: float
    process_covariance: Tensor
    observation: Observation
    misfit: float | None

    @property
    def network(self) -> Network:
        """The fitted network, float64."""
        loadings = self.loadings
        return Network(loadings.m, self.n, loadings.b, loadings.d, self.latents.alpha, self.observation.phi.name)


def check_rates(recording: Recording, rank: int) -> None:
    if recording.kind != "rates":
        raise UserError("rates", recording.kind, "use the spike model for spike counts")
    if not 1 <= rank <= min(recording.n_neurons, int(recording.lengths.sum())):
        raise UserError(f"a rank between 1 and the {recording.n_neurons} neurons", str(rank))


def bias_supported(recording: Recording, rank: int, seed: int = 0) -> bool:
    """Whether rates ask for a bias d in each neuron, by the Bayesian information criterion of fits with and without.

    Both fits see the same subset of samples and know nothing of the dynamics. A bias that the data do not ask for is
    not harmless: latents are then known up to a shift only, and an odd nonlinearity cannot drive them to it.
    """
    check_rates(recording, rank)
    samples = ActivitySamples.of(recording.activity, recording.mask, recording.inputs)
    observation = with_noise_seen(samples, Observation.of(recording.activation))
    few = samples.subset(random_rows(len(samples), subset_size(samples), seed))
    n_observed, n_neurons = len(few) * recording.n_neurons, recording.n_neurons
    rounding = 1e-12 * float(few.activity[few.rows].square().mean())
    errors = [
        max(_mean_loss(few, *_start_fit(few, rank, bias, observation), observation, bias), rounding)
        for bias in (False, True)
    ]
    gain = errors[0] - errors[1] if observation.informative else math.log(errors[0] / errors[1])
    return n_observed * gain > (n_neurons - rank) * math.log(n_observed)


def _standardise(
    samples: ActivitySamples, z: Tensor, theta: Tensor, normal: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (S, R), stacked loadings and information in the gauge that ClosedFormFit states."""
    rank, n_inputs = z.shape[1], 0 if samples.inputs is None else samples.inputs.shape[1]
    mean = z.mean(0) if has_bias else torch.zeros_like(z[0])
    values, vectors = torch.linalg.eigh((z - mean).T @ (z - mean) / len(z))
    if not float(values[0]) > 1e-14 * float(values[-1]):
        raise UserError(
            f"activity that varies in {rank} latent dimensions", "fewer", "lower the rank of the low-rank RNN"
        )
    root = vectors * values.sqrt()
    m = theta[:, :rank] @ root
    turn = torch.linalg.eigh(m.T @ m).eigenvectors.flip(1)
    m = m @ turn
    turn = turn * m.gather(0, m.abs().argmax(0, keepdim=True)).sign()
    gauge = Gauge(turn.T @ (vectors / values.sqrt()).T, torch.zeros_like(mean))
    gauge = replace(gauge, shift=-gauge.matrix @ mean)
    moved = gauge.loadings(Loadings.unstack(theta, rank, n_inputs, has_bias))
    back = torch.linalg.inv(gauge.matrix)
    return gauge.latents(z), moved.stack(), back.T @ normal @ back


def _without_inputs(
    samples: ActivitySamples, z: Tensor, theta: Tensor, jump: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Latents less C u with C moved into b; C by least squares on the inputs where not given."""
    if samples.inputs is None:
        return z, theta
    rank, u = z.shape[1], samples.inputs[samples.rows].double()
    if jump is None:
        jump = least_squares(u, z).T
    theta = theta.clone()
    theta[:, rank : rank + u.shape[1]] += theta[:, :rank] @ jump
    return z - u @ jump.T, theta


class _RateFit:
    """The steps of :func:`fit_rates_closed_form` on all samples, with the state they pass on."""

    def __init__(
        self,
        recording: Recording,
        rank: int,
        has_bias: bool,
        regularizer: float | None,
        observation: Observation | None,
        offset: Tensor | None,
    ):
        self.recording, self.rank, self.has_bias, self.regularizer = recording, rank, has_bias, regularizer
        self.mask = recording.mask
        self.samples = ActivitySamples.of(recording.activity, self.mask, recording.inputs, offset)
        self.observation = with_noise_seen(self.samples, observation or Observation.of(recording.activation))
        self.phi = self.observation.phi
        self.misfit: float | None = None

    def start(self, seed: int) -> None:
        samples, observation = self.samples, self.observation
        few = samples.subset(random_rows(len(samples), subset_size(samples), seed))
        _, self.theta = _start_fit(few, self.rank, self.has_bias, observation)
        self.z, self.normal, error = latents_of(samples, self.theta, self.rank, observation)
        before, rounding = float("inf"), 1e-12 * float(few.activity[few.rows].square().mean())
        while rounding < error < 0.5 * before:  # else the subset has settled all neurons
            x, dispersion = samples.design(self.z, self.has_bias), observation.dispersion(error)
            self.theta = _converged_loadings(samples, x, self.theta, observation, dispersion)
            before = error
            self.z, self.normal, error = update_latents(samples, self.z, self.theta, observation, 0, 3)
        self.set_noise(error)
        self.z, self.theta = _without_inputs(samples, self.z, self.theta)
        self.standardise()

    def refit_loadings(self, z: Tensor) -> None:
        """Loadings given latents z, then one Newton pass for the sample-wise latents given them."""
        samples, observation = self.samples, self.observation
        x = samples.design(z, self.has_bias)
        self.theta = _converged_loadings(samples, x, self.theta, observation, self.dispersion)
        self.z, self.normal, error = update_latents(samples, self.z, self.theta, observation, 0, 1)
        self.set_noise(error)

    def set_noise(self, error: float) -> None:
        """Variance of the rates about phi(h) from their mean squared residual, corrected for what was fitted."""
        observed, (k, p) = len(self.samples) * len(self.theta), self.theta.shape
        self.variance = error * observed / max(observed - k * p - len(self.samples) * self.rank, 1)
        self.dispersion = self.observation.dispersion(self.variance)

    def standardise(self) -> None:
        self.z, self.theta, self.normal = _standardise(self.samples, self.z, self.theta, self.normal, self.has_bias)

    def grid(self, rows: Tensor) -> Tensor:
        """Values of samples (S, ...) laid out as (trials, time, ...), zero where masked."""
        out = rows.new_zeros(self.mask.numel(), *rows.shape[1:])
        out[self.samples.rows] = rows
        return out.reshape(*self.mask.shape, *rows.shape[1:])

    def fit_dynamics(self, z: Tensor) -> None:
        """Output weights from latents z (S, R) in the gauge of self.theta."""
        alpha = self.recording.alpha
        regularizer = self.regularizer
        if regularizer is None and self.noisy:
            regularizer = _NOISY_START  # cross-validation would fit the noise that differences share with the states
        self.dynamics = fit_dynamics_by_ridge(
            self.samples, self.grid(z), self.theta, self.mask, alpha, self.phi, regularizer
        )

    @property
    def noisy(self) -> bool:
        """Whether the sample-wise latents' standard error exceeds 1e-4 of their size."""
        return self.dispersion * float(inverse_of_normal(self.normal).diagonal(dim1=-2, dim2=-1).mean()) > 1e-8

    def shoot(self, iterations: int) -> None:
        """Output weights from trajectories, starting from those at hand."""
        has_bias, few = self.has_bias, random_rows(len(self.samples), subset_size(self.samples))
        x = self.samples.subset(few).design(self.z[few], has_bias)
        basis = rate_modes(self.phi(x @ self.theta.T), SHOOT_MODES)
        information = self.grid(self.normal) / self.dispersion
        segments = Segments.cut(self.grid(self.z), information, self.recording.inputs, SEGMENT_SAMPLES)
        n, regularizer, self.misfit = fit_trajectory_weights(segments, self.network(), basis, iterations)
        self.dynamics = replace(self.dynamics, n=n, regularizer=regularizer)

    def network(self) -> Network:
        split = Loadings.unstack(self.theta, self.rank, self.recording.n_inputs, self.has_bias)
        return Network(split.m, self.dynamics.n, split.b, split.d, self.recording.alpha, self.phi.name)

    def smooth(self) -> tuple[Tensor, Tensor, Tensor]:
        information = self.grid(self.normal) / self.dispersion
        return smooth_latents(
            self.grid(self.z), information, self.network(), self.recording.lengths, self.recording.inputs
        )


def fit_rates_closed_form(
    recording: Recording,
    rank: int,
    has_bias: bool = False,
    regularizer: float | None = None,
    smooth: bool | None = None,
    seed: int = 0,
    observation: Observation | None = None,
    offset: Tensor | None = None,
) -> ClosedFormFit:
    """Latents, loadings and output weights from recorded rates, or from counts over their scale.

    On a subset of samples: principal components of phi^-1 of the denoised rates, then alternating Newton steps for
    latents and loadings. Then on all samples: latents, loadings, and output weights by ridge. Where noise leaves the
    latents uncertain, output weights come from simulated trajectories (Gauss-Newton on segments), latents are
    smoothed with the fitted dynamics, and loadings and output weights are refitted. The work grows linearly with
    samples and with neurons; memory beside the activity is bounded by chunks, but for latents and loadings.

    Args:
        recording: rates with their mask, inputs, alpha and activation.
        rank: R; has_bias: whether neurons have a bias d.
        regularizer: lambda of the ridge for n; None: generalised cross-validation (trajectories: the evidence).
        smooth: None: where the sample-wise latents' standard error exceeds 1e-4 of their size.
        seed: chooses the subset of samples.
        observation: phi and the noise about it; None: the recording's activation, two-valued noise where all rates lie at
            the ends of its range, else Gaussian noise.
        offset: (trials, time, K), a known part of the neurons' potentials that is no part of the network.

    Raises:
        UserError: for spikes, or a rank that the recording cannot support.
    """
    check_rates(recording, rank)
    fit = _RateFit(recording, rank, has_bias, regularizer, observation, offset)
    fit.start(seed)
    fit.fit_dynamics(fit.z)
    if fit.dynamics.jump is not None:
        fit.z, fit.theta = _without_inputs(fit.samples, fit.z, fit.theta, fit.dynamics.jump)
        fit.standardise()
        fit.fit_dynamics(fit.z)
    smooth = fit.noisy if smooth is None else smooth
    if smooth:
        fit.shoot(8)
        fit.refit_loadings(fit.smooth()[0].reshape(-1, rank)[fit.samples.rows])
        fit.shoot(3)
    return _finished(fit, smooth)


def _finished(fit: _RateFit, smooth: bool) -> ClosedFormFit:
    recording = fit.recording
    spread = fit.grid(inverse_of_normal(fit.normal) * fit.dispersion)
    if smooth:
        z, covariance, process = fit.smooth()
    else:
        z, covariance = fit.grid(fit.z), spread
        following, jacobian = linearised_step(fit.network(), z, double(recording.inputs), fit.mask)
        pairs = fit.mask[:, 1:] & fit.mask[:, :-1]
        process = moment_covariance(z, fit.grid(fit.normal) / fit.dispersion, following, jacobian, pairs)
    x = fit.samples.design(z.reshape(-1, fit.rank)[fit.samples.rows], fit.has_bias)
    if smooth:
        fit.theta = _converged_loadings(fit.samples, x, fit.theta, fit.observation, fit.dispersion)
    spread_of_loadings = loadings_covariance(fit.samples, x, fit.theta, fit.observation, fit.dispersion)
    return ClosedFormFit(
        latents=Latents(z, recording.lengths, recording.alpha, recording.inputs),
        latents_covariance=covariance,
        least_squares=fit.grid(fit.z),
        least_squares_covariance=spread,
        loadings=fit.network().loadings,
        loadings_covariance=spread_of_loadings,
        n=fit.dynamics.n,
        regularizer=fit.dynamics.regularizer,
        residual_sd=fit.variance**0.5,
        process_covariance=process,
        observation=fit.observation,
        misfit=fit.misfit,
    )


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()
