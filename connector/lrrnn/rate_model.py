"""A low-rank RNN fitted to recorded rates, or counts, through its dynamics (LINT: Valente, Pillow, Ostojic 2022).

It starts from the closed form (:mod:`connector.lrrnn.closed_form`), which on clean rates leaves nothing to gain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from connector.data.folds import Fold
from connector.dynamics import potentials
from connector.errors import UserError
from connector.lrrnn.closed_form import ClosedFormFit, check_rates, fit_rates_closed_form
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.latents import inverse_of_normal, least_squares_latents, read_states
from connector.lrrnn.loadings import loadings_covariance
from connector.lrrnn.module import LowRankRNN
from connector.lrrnn.observation import Observation
from connector.lrrnn.samples import ActivitySamples
from connector.lrrnn.smoother import smooth_latents
from connector.lrrnn.start import with_noise_seen
from connector.types import Latents, Loadings, Recording, TrialBatch
from connector.units import RateScale


@dataclass(frozen=True)
class StatePosterior:
    """Latents of some trials given their activity.

    Attributes:
        z: (trials, time, R), zero past a trial's end; covariance: (trials, time, R, R); float64.
    """

    z: Tensor
    covariance: Tensor


class LeastSquares(NamedTuple):
    """z (trials, time, R); normal (trials, time, R, R); error: as :func:`least_squares_latents` returns them."""

    z: Tensor
    normal: Tensor
    error: float


class RateModel(nn.Module):
    """A low-rank RNN fitted to recorded rates, or to counts over their scale, through its dynamics.

    The recorded neurons are the units of the network. Rates of a scale of their own are in units of phi here, and each neuron
    counts by its weight. A trial's initial state is read out of its first samples
    through the loadings (least squares, then smoothed with the dynamics), so held-out trials need no parameters
    of their own; it is recomputed for every batch and carries no gradient.

    Args:
        n_neurons: K; rank: R; n_inputs: U; has_bias, alpha, activation: as in :class:`LowRankRNN`.
        init: "closed_form" (:func:`fit_rates_closed_form`) or "random" (normal, ``init_std``), used by
            :meth:`initialise`.
        init_std: standard deviation of the random start; 2 as published for LINT.
        weight_penalty: times the sum of the parameter tensors' norms is added to the training loss. Published: 1e-5.
            Zero by default: beside a closed-form start it only biases, since the loss there is below it.
        start_samples: samples at a trial's start that its initial state is read from.
        count_scale: expected count where phi is 1, for Poisson counts: activity is counts / count_scale then. None: rates
            (with Gaussian noise, or two-valued where all lie at the ends of the range of phi).

    Raises:
        UserError: for an unknown start, and whatever LowRankRNN raises.
    """

    def __init__(
        self,
        n_neurons: int,
        rank: int,
        n_inputs: int = 0,
        has_bias: bool = False,
        alpha: float = 0.1,
        activation: str = "tanh",
        *,
        init: str = "closed_form",
        init_std: float = 2.0,
        weight_penalty: float = 0.0,
        start_samples: int = 10,
        count_scale: float | None = None,
    ):
        super().__init__()
        if init not in ("closed_form", "random"):
            raise UserError("init closed_form or random", repr(init))
        if start_samples < 1:
            raise UserError("at least one sample to read the initial state from", str(start_samples))
        self.rnn = LowRankRNN(n_neurons, rank, n_inputs, has_bias, alpha, activation, init_std)
        self.init, self.weight_penalty, self.start_samples = init, float(weight_penalty), start_samples
        self.count_scale, self.scale = count_scale, None
        width = rank + n_inputs + int(has_bias)
        self.register_buffer("residual_variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("process_covariance", torch.eye(rank, dtype=torch.float64))
        self.register_buffer("loadings_covariance", torch.zeros(n_neurons, width, width, dtype=torch.float64))
        self.register_buffer("two_valued", torch.zeros((), dtype=torch.bool))

    @property
    def observation(self) -> Observation:
        """phi and the noise about it."""
        if self.count_scale is not None:
            return Observation.of(self.rnn.activation, "poisson", self.count_scale)
        size = float(self.rnn.m.detach().double().square().sum(1).mean().sqrt())  # the latents are of unit size
        return Observation.of(self.rnn.activation, "two_valued" if bool(self.two_valued) else "gaussian", size=size)

    def initialise(self, recording: Recording, offset: Tensor | None = None) -> ClosedFormFit | None:
        """Start from training trials: parameters by the closed form, unless the start is random; noise levels.

        Args:
            offset: (trials, time, K), a known part of the neurons' potentials that is no part of the network.

        Returns:
            the closed form, or None for a random start.
        """
        if self.init == "random":
            check_rates(recording, self.rnn.rank)
            self.scale = recording.scale
            self.calibrate(recording, offset=offset)
            return None
        observation = None if self.count_scale is None else self.observation
        fit = fit_rates_closed_form(recording, self.rnn.rank, self.rnn.has_bias, observation=observation, offset=offset)
        self.start_from(fit, recording.scale)
        return fit

    @torch.no_grad()
    def start_from(self, fit: ClosedFormFit, scale: RateScale | None = None) -> None:
        """Take parameters and noise levels from a closed form of this rank, with these inputs and bias, to rates of that scale."""
        self.scale = scale
        self.rnn.set_network(fit.network)
        self.two_valued.fill_(fit.observation.noise == "two_valued")
        self.residual_variance.fill_(fit.residual_sd**2)
        self.process_covariance.copy_(fit.process_covariance)
        self.loadings_covariance.copy_(fit.loadings_covariance)

    @torch.no_grad()
    def calibrate(self, recording: Recording, found: LeastSquares | None = None, offset: Tensor | None = None) -> None:
        """Re-estimate noise levels and the loadings' covariance for the present parameters; after training.

        Args:
            found: :meth:`least_squares` of the recording, where it is at hand.
            offset: as in :meth:`initialise`.
        """
        loadings = self.loadings()
        samples = ActivitySamples.of(recording.activity, recording.mask, recording.inputs, offset, self.scale)
        if self.count_scale is None:
            self.two_valued.fill_(with_noise_seen(samples, self.observation).noise == "two_valued")
        if found is None:
            found = self.least_squares(recording.activity, recording.mask, recording.inputs, offset)
        self.residual_variance.fill_(found.error)
        z = found.z
        if self.is_noisy(found, recording.mask):
            z, _, q = smooth_latents(
                z, found.normal / self.dispersion, self.rnn.network(), recording.lengths, recording.inputs
            )
            self.process_covariance.copy_(q)
        x = samples.design(z.reshape(-1, self.rnn.rank)[samples.rows], self.rnn.has_bias)
        theta = loadings.stack().double()
        covariance = loadings_covariance(samples, x, theta, self.observation, self.dispersion)
        self.loadings_covariance.copy_(covariance)

    @property
    def dispersion(self) -> float:
        """Variance that one unit of weight in the normal equations stands for."""
        observation = self.observation
        return observation.dispersion(max(float(self.residual_variance), 1e-14 * observation.unit**2))

    def loadings(self) -> Loadings:
        """Loadings of the recorded neurons, detached."""
        return self.rnn.loadings().map(Tensor.detach)

    def parameter_groups(self, lr: float) -> list[dict]:
        """One group for the optimizer."""
        return [{"params": list(self.rnn.parameters()), "lr": lr}]

    def initial_states(self, batch: TrialBatch, samples: int | None = None) -> Tensor:
        """States at the first sample (B, R), float32, without gradient; read from the first ``samples``, by default
        ``start_samples``."""
        cut = slice(0, min(samples or self.start_samples, batch.activity.shape[1]))
        u, offset = (None if x is None else x[:, cut] for x in (batch.inputs, batch.baseline))
        mask = batch.mask[:, cut]
        found = self.least_squares(batch.activity[:, cut], mask, u, offset)
        return self.posterior_from(found, mask, u).z[:, 0].to(self.rnn.m.dtype)

    def rollout(self, batch: TrialBatch, start_samples: int | None = None) -> Tensor:
        """Trajectories of the network from the initial states, (B, time, R); gradients flow into the parameters."""
        states = self.initial_states(batch, start_samples)
        return self.rnn.simulate(states, batch.activity.shape[1], batch.inputs)

    def validation_loss(self, batch: TrialBatch, start_samples: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the rates along the noise-free rollout, over recorded samples and neurons.

        Of counts, twice the mean negative log likelihood up to a constant.
        """
        loss = self._errors(batch, start_samples).sum() / (batch.mask.sum() * batch.activity.shape[-1])
        return loss, {"mean_squared_error" if self.count_scale is None else "deviance": loss.detach()}

    @torch.no_grad()
    def trial_errors(self, batch: TrialBatch) -> Tensor:
        """What :meth:`validation_loss` is the mean of, as the mean over the samples and neurons of each trial: (B,)."""
        return self._errors(batch).sum((1, 2)) / (batch.mask.sum(1) * batch.activity.shape[-1])

    def _errors(self, batch: TrialBatch, start_samples: int | None = None) -> Tensor:
        h = self._potentials(batch, self.rollout(batch, start_samples))
        observation = self.observation if self.count_scale is not None else self.observation.with_noise("gaussian")
        errors = observation.loss(batch.activity, h) * batch.mask[..., None]
        return errors if self.scale is None else errors * self.scale.weight.to(errors)

    def _potentials(self, batch: TrialBatch, z: Tensor) -> Tensor:
        h = potentials(self.rnn.loadings(), z, batch.inputs)
        return h if batch.baseline is None else h + batch.baseline

    def expected_activity(self, batch: TrialBatch, z: Tensor) -> Tensor:
        """phi at latents z (B, time, R): rates, or counts over their scale, (B, time, K)."""
        return self.observation.phi(self._potentials(batch, z.to(self.rnn.m.dtype)))

    def loss(
        self,
        batch: TrialBatch,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
        start_samples: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training objective: the error of :meth:`validation_loss` plus the weight penalty.

        ``progress`` and ``generator`` belong to the common interface; nothing here depends on them.
        """
        loss, parts = self.validation_loss(batch, start_samples)
        if self.weight_penalty:
            penalty = self.weight_penalty * sum(p.norm() for p in self.rnn.parameters())
            loss, parts = loss + penalty, parts | {"weight_penalty": penalty.detach()}
        return loss, parts

    @torch.no_grad()
    def infer(self, data: TrialBatch | Recording, method: str = "smooth") -> Tensor:
        """Latents (trials, time, R), float64, of any trials.

        Args:
            method: "smooth", the posterior mean given activity and dynamics; "least_squares", each sample on its own,
                with errors independent between samples; "rollout", the noise-free trajectory.
        """
        if method == "rollout":
            batch = _as_batch(data)
            return self.rollout(batch).double() * batch.mask[..., None]
        return self.posterior(data, method).z

    @torch.no_grad()
    def posterior(self, data: TrialBatch | Recording, method: str = "smooth") -> StatePosterior:
        """Latents with their covariance; ``method`` is "smooth" or "least_squares"."""
        if method not in ("smooth", "least_squares"):
            raise UserError("a method among smooth, least_squares, rollout", repr(method))
        batch = _as_batch(data)
        found = self.least_squares(batch.activity, batch.mask, batch.inputs, batch.baseline)
        return self.posterior_from(found, batch.mask, batch.inputs, smooth=method == "smooth")

    @torch.no_grad()
    def least_squares(
        self,
        activity: Tensor,
        mask: Tensor,
        inputs: Tensor | None,
        offset: Tensor | None = None,
        start: Tensor | None = None,
    ) -> LeastSquares:
        """Sample-wise latents of some trials; see :func:`least_squares_latents`."""
        return LeastSquares(
            *least_squares_latents(activity, mask, self.loadings(), self.observation, inputs, offset, self.scale, start)
        )

    def has_loadings_of(self, fit: ClosedFormFit) -> bool:
        """Whether the loadings are those of a closed form still, up to their precision."""
        own, known = self.loadings().stack(), fit.loadings.stack()
        return own.shape == known.shape and torch.equal(own, known.to(own))

    def is_noisy(self, found: LeastSquares, mask: Tensor) -> bool:
        """Whether the sample-wise latents' standard error exceeds 1e-4 of their size: else smoothing is idle."""
        variance = (
            inverse_of_normal(found.normal[mask], self.observation.unit).diagonal(dim1=-2, dim2=-1).mean()
            * self.dispersion
        )
        return bool(variance > 1e-8 * found.z[mask].square().mean())

    @torch.no_grad()
    def posterior_from(
        self, found: LeastSquares, mask: Tensor, inputs: Tensor | None, smooth: bool = True
    ) -> StatePosterior:
        """Latents with their covariance from the sample-wise ones; ``smooth``: with the dynamics, where these help."""
        covariance = torch.where(
            mask[..., None, None], inverse_of_normal(found.normal, self.observation.unit) * self.dispersion, 0.0
        )
        if not smooth or mask.shape[1] < 2 or not self.is_noisy(found, mask):
            return StatePosterior(found.z, covariance)
        z, covariance, _ = smooth_latents(
            found.z, found.normal / self.dispersion, self.rnn.network(), mask.sum(1), inputs, self.process_covariance
        )
        return StatePosterior(z, covariance)


def fitted_dynamics(
    model: RateModel,
    recording: Recording,
    fold: Fold,
    offset: Tensor | None = None,
    solved: ClosedFormFit | None = None,
) -> FittedDynamics:
    """What a fitted model hands over, float64; noise levels are re-estimated on the training trials first.

    Latents are smoothed by the fitted dynamics. ``readings`` are those of :func:`read_states`; there are none where the
    rates are so clean that the latents are known. ``offset``: as in :meth:`RateModel.initialise`, of all trials.
    ``solved``: the closed form of the training trials that the model started from; where it has kept the loadings, the latents
    of these trials are known but for rounding.
    """
    mask, train = recording.mask, fold.train
    rest = torch.ones(recording.n_trials, dtype=torch.bool).index_fill_(0, train, False).nonzero()[:, 0]
    parts = [train, rest] if len(rest) else [train]
    found = []  # the dear part, once; part by part, so that nothing of training trials depends on others
    starts = [solved.readings[0] if solved is not None and model.has_loadings_of(solved) else None, None]
    for part, start in zip(parts, starts):
        inputs, known = (None if x is None else x[part] for x in (recording.inputs, offset))
        found.append(model.least_squares(recording.activity[part], mask[part], inputs, known, start))
    model.calibrate(recording.trials(train), found[0], None if offset is None else offset[train])
    order, noisy = torch.cat(parts).argsort(), model.is_noisy(found[0], mask[train])
    z, normal = (torch.cat([getattr(x, name) for x in found])[order] for name in ("z", "normal"))
    whole = LeastSquares(z, normal, found[0].error)
    posterior = model.posterior_from(whole, mask, recording.inputs, smooth=noisy)
    z = posterior.z * mask[..., None]
    loadings = model.loadings().map(Tensor.double)
    readings = None
    if noisy:
        readings = read_states(
            recording.activity,
            mask,
            z,
            loadings,
            model.observation,
            model.dispersion,
            recording.inputs,
            offset,
            scale=model.scale,
        )
    n, spread = model.rnn.n.detach().double(), model.loadings_covariance
    latents, phi = Latents.of(recording, z), recording.activation
    return FittedDynamics(latents, loadings, fold, phi, spread, readings, n, scale=model.scale)


def lasting_misfit(fit: FittedDynamics) -> float:
    """Correlation between neighbouring errors of one step, z[t+1] less the fitted network's step from z[t], of training trials.

    Noise of the states leaves 0 and errors of reading less; a rank that is too low leaves errors that last.

    Args:
        fit: with ``n``.
    """
    latents = fit.latents.trials(fit.fold.train)
    z = latents.z if fit.readings is None else fit.readings[0][fit.fold.train]
    u = None if latents.inputs is None else latents.inputs[:, :-1]
    pairs = (latents.mask[:, 1:] & latents.mask[:, :-1])[..., None]
    error = torch.where(pairs, z[:, 1:] - fit.network.step(z[:, :-1], u), 0.0)
    return float((error[:, 1:] * error[:, :-1]).sum() / error.square().sum().clamp_min(1e-300))


def of_rollouts(model: RateModel, recording: Recording, fit: FittedDynamics) -> FittedDynamics:
    """The same fit with the network's own noise-free trajectories for latents, and hence no readings: its misfit, which has a
    pattern that an estimate of the connectivity would take for signal, is left behind."""
    z = model.infer(recording, "rollout")
    return replace(fit, latents=replace(fit.latents, z=z), readings=None, rollouts=True)


def _as_batch(data: TrialBatch | Recording) -> TrialBatch:
    return data if isinstance(data, TrialBatch) else TrialBatch.of(data)
