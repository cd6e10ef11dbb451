"""A low-rank RNN from recorded rates, or counts, without gradient descent: loadings, latents and output weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.latents import inverse_of_normal, latents_of, update_latents
from connector.lrrnn.loadings import converged_loadings, loadings_covariance
from connector.lrrnn.observation import Observation
from connector.lrrnn.output_weights import (
    SHOOT_MODES,
    cut_segments,
    fit_dynamics_by_ridge,
    fit_trajectory_weights,
    rate_modes,
)
from connector.lrrnn.samples import ActivitySamples, subset_size
from connector.lrrnn.smoother import linearised_step, moment_covariance, smooth_latents
from connector.lrrnn.start import mean_loss, start_fit, with_noise_seen
from connector.numerics import even_rows, least_squares, power_of_two, random_rows
from connector.types import Latents, Loadings, Recording

# Ridge parameter of the start for them.
_NOISY_START = 1e-4
# Segments times the operations that each costs in a step, at most: of high ranks an even choice of segments is simulated.
_SHOOT_WORK = 2e8


@dataclass(frozen=True, kw_only=True)
class ClosedFormFit(FittedDynamics):
    """A network fitted to rates without gradient descent; all float64.

    Gauge: latents have unit second moment about zero (about their mean, which is zero, where there is a bias) over all
    recorded samples, the columns of m are orthogonal, longest first, and the largest entry of each is positive.

    Attributes:
        latents: smoothed latents with their inputs; readings: the sample-wise ones.
        loadings_covariance: (K, P, P), P = R + U + 1 in the order m, b, d: sigma^2 (X^T W X)^-1 given the latents.
        latents_covariance: (trials, time, R, R) posterior covariance of the latents given loadings and dynamics.
        process_covariance: (R, R) covariance of one step's error beside the fitted dynamics.
        regularizer: the lambda that n (K, R) was found with.
        residual_sd: standard deviation of rates about phi(h).
        observation: phi and the noise that the activity was found to have.
        misfit: mean squared normalised residual of the simulated segments: about 1 where dynamics are deterministic,
            more where phi, alpha or rank are wrong or the dynamics noisy. None where the rates are clean.
    """

    latents_covariance: Tensor
    process_covariance: Tensor
    regularizer: float
    residual_sd: float
    observation: Observation
    misfit: float | None

    def moved(self, gauge: Gauge) -> ClosedFormFit:
        return replace(
            super().moved(gauge),
            latents_covariance=gauge.covariance(self.latents_covariance),
            process_covariance=gauge.covariance(self.process_covariance),
        )


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
    recording, _ = _in_own_units(recording)
    samples = ActivitySamples.of(recording.activity, recording.mask, recording.inputs, scale=recording.scale)
    observation = with_noise_seen(samples, Observation.of(recording.activation))
    few = samples.subset(random_rows(len(samples), subset_size(samples), seed))
    n_observed, n_neurons = len(few) * recording.n_neurons, recording.n_neurons
    rounding = 1e-12 * float(few.activity[few.rows].square().mean())
    errors = [
        max(mean_loss(few, *start_fit(few, rank, bias, observation), observation, bias), rounding)
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
            f"activity that varies in {rank} latent dimensions",
            "fewer",
            "lower lrrnn.rank" if rank > 1 else "do neurons have anything in common? noise alone has no dynamics",
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


def _in_own_units(recording: Recording) -> tuple[Recording, Tensor | None]:
    """The recording with each input divided by a power of two near its rms, and these (U,): floors and damping are then the
    same in every unit, and sums lose no digit by it."""
    if recording.inputs is None:
        return recording, None
    unit = power_of_two(recording.inputs[recording.mask].double().square().mean(0).sqrt())
    return replace(recording, inputs=recording.inputs / unit.to(recording.inputs)), unit


def _in_given_units(fit: ClosedFormFit, unit: Tensor) -> ClosedFormFit:
    """The inverse for what was fitted; unit (U,)."""
    loadings, latents, spread = fit.loadings, fit.latents, fit.loadings_covariance
    columns = torch.ones(spread.shape[1], dtype=unit.dtype, device=unit.device)
    columns[loadings.rank : loadings.rank + len(unit)] = unit
    return replace(
        fit,
        loadings=replace(loadings, b=loadings.b / unit),
        latents=replace(latents, inputs=latents.inputs * unit),
        loadings_covariance=spread / columns[:, None] / columns,
    )


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
        self.samples = ActivitySamples.of(recording.activity, self.mask, recording.inputs, offset, recording.scale)
        self.observation = with_noise_seen(self.samples, observation or Observation.of(recording.activation))
        self.phi = self.observation.phi
        self.misfit: float | None = None

    def start(self, seed: int) -> None:
        samples, observation = self.samples, self.observation
        few = samples.subset(random_rows(len(samples), subset_size(samples), seed))
        _, self.theta = start_fit(few, self.rank, self.has_bias, observation)
        self.z, self.normal, error = latents_of(samples, self.theta, self.rank, observation)
        before, rounding = float("inf"), 1e-12 * float(few.activity[few.rows].square().mean())
        while rounding < error < 0.5 * before:  # else the subset has settled all neurons
            x, dispersion = samples.design(self.z, self.has_bias), observation.dispersion(error)
            self.theta = converged_loadings(samples, x, self.theta, observation, dispersion)
            before = error
            self.z, self.normal, error = update_latents(samples, self.z, self.theta, observation, 0, 3)
        self.set_noise(error)
        self.z, self.theta = _without_inputs(samples, self.z, self.theta)
        self.standardise()

    def refit_loadings(self, z: Tensor) -> None:
        """Loadings given latents z, then one Newton pass for the sample-wise latents given them."""
        samples, observation = self.samples, self.observation
        x = samples.design(z, self.has_bias)
        self.theta = converged_loadings(samples, x, self.theta, observation, self.dispersion)
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
        return self.samples.grid(rows, self.mask)

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
        return (
            self.dispersion
            * float(inverse_of_normal(self.normal, self.observation.unit).diagonal(dim1=-2, dim2=-1).mean())
            > 1e-8
        )

    def shoot(self, steps: int) -> None:
        """Output weights from trajectories, starting from those at hand; these are kept where all trajectories run away."""
        has_bias, few = self.has_bias, random_rows(len(self.samples), subset_size(self.samples))
        x = self.samples.subset(few).design(self.z[few], has_bias)
        basis = rate_modes(self.phi(x @ self.theta.T), SHOOT_MODES)
        information = self.grid(self.normal) / self.dispersion
        segments = cut_segments(self.grid(self.z), information, self.recording.inputs)
        most = int(_SHOOT_WORK / (self.rank * (self.rank * basis.shape[1]) ** 2))
        segments = segments.pick(even_rows(len(segments.z), most))
        try:
            n, regularizer, self.misfit = fit_trajectory_weights(segments, self.network(), basis, steps)
        except UserError:
            self.misfit = math.inf
        else:
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
    recording, unit = _in_own_units(recording)
    fit = _RateFit(recording, rank, has_bias, regularizer, observation, offset)
    fit.start(seed)
    fit.fit_dynamics(fit.z)
    if fit.dynamics.jump is not None:
        fit.z, fit.theta = _without_inputs(fit.samples, fit.z, fit.theta, fit.dynamics.jump)
        fit.standardise()
        fit.fit_dynamics(fit.z)
    smooth = fit.noisy if smooth is None else smooth
    if smooth:
        fit.shoot(7)
        fit.refit_loadings(fit.smooth()[0].reshape(-1, rank)[fit.samples.rows])
        fit.shoot(2)
    found = _finished(fit, smooth)
    return found if unit is None else _in_given_units(found, unit)


def _finished(fit: _RateFit, smooth: bool) -> ClosedFormFit:
    recording = fit.recording
    spread = fit.grid(inverse_of_normal(fit.normal, fit.observation.unit) * fit.dispersion)
    if smooth:
        z, covariance, process = fit.smooth()
        latents = Latents.of(recording, z)
    else:
        z, covariance = fit.grid(fit.z), spread
        latents = Latents.of(recording, z)
        following, jacobian = linearised_step(fit.network(), z, latents.inputs, fit.mask)
        pairs = fit.mask[:, 1:] & fit.mask[:, :-1]
        process = moment_covariance(z, fit.grid(fit.normal) / fit.dispersion, following, jacobian, pairs)
    x = fit.samples.design(z.reshape(-1, fit.rank)[fit.samples.rows], fit.has_bias)
    if smooth:
        fit.theta = converged_loadings(fit.samples, x, fit.theta, fit.observation, fit.dispersion)
    return ClosedFormFit(
        latents=latents,
        loadings=fit.network().loadings,
        fold=None,
        activation=fit.phi.name,
        loadings_covariance=loadings_covariance(fit.samples, x, fit.theta, fit.observation, fit.dispersion),
        readings=(fit.grid(fit.z), spread),
        n=fit.dynamics.n,
        latents_covariance=covariance,
        process_covariance=process,
        regularizer=fit.dynamics.regularizer,
        residual_sd=fit.variance**0.5,
        observation=fit.observation,
        misfit=fit.misfit,
    )
