"""A low-rank RNN fitted to spike counts: the generative model of :mod:`connector.lrrnn.spikes.state_space` and its encoder.

The encoder, a bidirectional GRU on what the spikes say beyond the noise-free rollout, and on the inputs, gives the mean
and spread of z[0] and a correction e[t] of the drift, z[t+1] += alpha L e[t], under the same noise, so that the
Kullback-Leibler divergence of a step is alpha |e[t]|^2 / 2. Training minimises

    - (evidence lower bound) - rollout_weight * (log-likelihood of the noise-free rollout),

so that one model explains single trials and is driven by its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.errors import UserError
from connector.lrrnn.spikes import start
from connector.lrrnn.spikes.baselines import Baseline
from connector.lrrnn.spikes.encoder import Encoder, PathPosterior
from connector.lrrnn.spikes.scan import RATE_FLOOR
from connector.lrrnn.spikes.state_space import SpikeStateSpace
from connector.types import Recording, TrialBatch, last_states


@dataclass(frozen=True)
class SpikeOptions:
    """How a spike model is built and trained.

    Attributes:
        n_units: units of the latent network.
        unit_activation: their nonlinearity.
        encoder_hidden, encoder_window: width of the GRU; bins summed before it (4 bins of 10 ms).
        rollout_weight: weight of the noise-free rollout's log-likelihood beside the bound.
        rollout_fraction: share of training, at its start, with the rollout alone.
        warmup_fraction: share of the rest over which the weight of the divergence grows from 0 to 1.
        rollout_start: as in :class:`SpikeStateSpace`.
        init_seed: seed of the latent units.
    """

    n_units: int = 128
    unit_activation: str = "tanh"
    encoder_hidden: int = 64
    encoder_window: int = 4
    rollout_weight: float = 1.0
    rollout_fraction: float = 1 / 3
    warmup_fraction: float = 0.3
    rollout_start: str = "auto"
    init_seed: int = 0


class SpikeModel(SpikeStateSpace):
    """See the module's docstring. Fit a baseline, ``initialise`` on training trials, then train.

    Args:
        n_neurons, rank, n_inputs, alpha, scale: as in :class:`SpikeStateSpace`.
        options: of the latent network, the encoder and the objective.

    Attributes:
        count_sd: (K_obs,), input_sd: (U,), score_map: (R, R): what brings the encoder's features to about unit size.
    """

    # Adam with a one-cycle schedule; chosen on validation trials of a rat recording.
    LEARNING_RATE, ENCODER_LEARNING_RATE_RATIO = 1e-2, 0.6
    BATCH_SIZE, MAX_EPOCHS, GRADIENT_CLIP = 32, 60, 1.0
    # Bins that pass in a training. Of an hour at 30 Hz, 15 epochs predict spikes as well as 60 (.121 and .119 bits per spike).
    MOST_PASSED, LEAST_EPOCHS = 1_300_000, 10

    @classmethod
    def epochs_for(cls, n_bins: int) -> int:
        """Epochs for training trials of so many bins: :attr:`MAX_EPOCHS`, of long recordings fewer."""
        return min(cls.MAX_EPOCHS, max(cls.LEAST_EPOCHS, cls.MOST_PASSED // max(1, n_bins)))

    def __init__(
        self,
        n_neurons: int,
        rank: int = 2,
        n_inputs: int = 0,
        alpha: float = 0.1,
        scale: float = 0.1,
        options: SpikeOptions | None = None,
    ):
        options = options or SpikeOptions()
        super().__init__(
            n_neurons, rank, n_inputs, alpha, scale, options.n_units, options.unit_activation, options.rollout_start
        )
        self.options = options
        from_encoder = self.rollout_start == "encoder"
        # Such a rollout needs the encoder from the first epoch on.
        self.rollout_fraction = 0.0 if from_encoder else options.rollout_fraction
        width = rank if self.reads_scores else n_neurons
        self.encoder = Encoder(width + n_inputs, rank, options.encoder_hidden, options.encoder_window)
        self.register_buffer("count_sd", torch.ones(n_neurons))
        self.register_buffer("input_sd", torch.ones(n_inputs))
        self.register_buffer("score_map", torch.eye(rank))

    @classmethod
    def of(cls, **values: Any) -> SpikeModel:
        """From plain values, those of the options among them: as they stand in checkpoints."""
        options = {f.name: values.pop(f.name) for f in fields(SpikeOptions) if f.name in values}
        return cls(**values, options=SpikeOptions(**options))

    @property
    def reads_scores(self) -> bool:
        """Whether the encoder reads the likelihood's gradient at the rollout instead of single neurons."""
        return self.rollout_start == "prior"

    def encode(self, batch: TrialBatch) -> PathPosterior:
        """The encoder on what the spikes say beyond what is expected anyway, and on the inputs.

        Where rollouts start from the prior it reads :meth:`score` along the noise-free rollout: R numbers a bin that hold,
        to first order, all that the spikes say of the state there. It generalises to other trials better than one that
        reads every neuron. Otherwise it reads each neuron's count less what the baseline expects, over ``count_sd``.
        """
        if self.reads_scores:
            features = self.score(batch) @ self.score_map
        else:
            offset = self.bias.detach() if batch.baseline is None else batch.baseline
            features = (batch.activity - self.scale * F.softplus(offset)) / self.count_sd
        if batch.inputs is not None and self.rnn.n_inputs:
            features = torch.cat([features, batch.inputs / self.input_sd], -1)
        return self.encoder(features * batch.mask[..., None], batch.mask)

    @torch.no_grad()
    def score(self, batch: TrialBatch) -> Tensor:
        """Gradient of each bin's log-likelihood with respect to its state at the noise-free rollout: (B, time, R).

        No gradient flows back from it.
        """
        z = self.paths(batch, None).rollout.transpose(0, 1)
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline
        x = z @ self.readout.T + offset
        rate = F.softplus(x).clamp_min(RATE_FLOOR)
        slope = torch.expm1(-rate).neg_().mul_(batch.activity / rate - self.scale)  # sigmoid(x) = 1 - exp(-softplus(x))
        return slope @ self.readout

    def loss(
        self, batch: TrialBatch, progress: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training objective in nats per recorded sample of time (all neurons together).

        Args:
            progress: share of training done, in [0, 1]; drives the schedule.
            generator: of the posterior samples.

        Returns:
            the loss and its parts: "rollout_nats", "bound_nats" and "divergence" (the latter two once the encoder
            trains), each per recorded sample.
        """
        samples = batch.mask.sum()
        if progress < self.rollout_fraction:
            paths = self.paths(batch, None)
            rollout = self._nats(batch, paths.rollout[:, None]).sum() / samples
            return -rollout, {"rollout_nats": rollout.detach()}
        warm = (progress - self.rollout_fraction) / ((1 - self.rollout_fraction) * self.options.warmup_fraction + 1e-12)
        return self._objective(batch, min(1.0, warm), 1, generator)

    def _objective(
        self, batch: TrialBatch, divergence_weight: float, n_samples: int, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        samples = batch.mask.sum()
        posterior = self.encode(batch)
        paths = self.paths(batch, posterior, n_samples, generator=generator)
        nats = self._nats(batch, torch.cat([paths.posterior, paths.rollout[:, None]], 1))
        expected = nats[:-1].sum() / (n_samples * samples)
        rollout = nats[-1].sum() / samples
        divergence = posterior.divergence(self.alpha).sum() / samples
        loss = -expected + divergence_weight * divergence - self.options.rollout_weight * rollout
        parts = {"rollout_nats": rollout, "bound_nats": expected - divergence, "divergence": divergence}
        return loss, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def validation_loss(self, batch: TrialBatch, n_samples: int = 4, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective with the whole divergence and fixed random numbers: what checkpoints are chosen by."""
        generator = torch.Generator(device=batch.mask.device).manual_seed(seed)
        return self._objective(batch, 1.0, n_samples, generator)

    def parameter_groups(self, lr: float = LEARNING_RATE) -> list[dict]:
        """Groups for Adam; their "lr" are also the ``max_lr`` of a one-cycle schedule."""
        encoder = list(self.encoder.parameters())
        held = {id(p) for p in encoder}
        rest = [p for p in self.parameters() if id(p) not in held]
        return [{"params": rest, "lr": lr}, {"params": encoder, "lr": lr * self.ENCODER_LEARNING_RATE_RATIO}]

    @torch.no_grad()
    def initialise(self, recording: Recording, train: Tensor, baseline: Baseline) -> SpikeModel:
        """Data-driven start, from training trials only; a random start ignores weak inputs.

        The readout starts at the leading principal components of what the baseline leaves unexplained: of PSTHs by
        evidence (else by click difference or choice, else of what sums of the inputs predict; without inputs: of
        smoothed trials), with each neuron weighed by its Fisher information. n cancels the leak (F(z, u) = z + B u
        on the states in question) and b = m B, where B is the effect of the summed inputs on single trials. Without
        inputs n is fitted to the smoothed trials' increments instead, the prior of a trial's start is as broad as
        the smoothed starts, and the encoder begins as their linear estimate.

        Args:
            recording: spike counts of all trials.
            train: (n,) numbers of the training trials.
            baseline: fitted on the same trials.

        Raises:
            UserError: where the recording has other sizes than the model, or fewer neurons than the rank.
        """
        self._check(recording, baseline)
        train = torch.as_tensor(train, dtype=torch.int64)
        part, argument = recording.trials(train), baseline.argument[train].double()
        mask, counts, window = part.mask, part.activity.double(), self.encoder.window
        self.baseline_mean.copy_(argument[mask].mean(0))
        expected = self.scale * F.softplus(argument)
        # One block's expected variance, plus a little, so that silent neurons are not blown up.
        self.count_sd.copy_((window * baseline.null_counts).sqrt() + 0.1)
        if self.rnn.n_inputs:
            self.input_sd.copy_(start.block_sd(part.inputs, mask, window) + 1e-3)
        self.bias.zero_()
        slope = self.scale * torch.sigmoid(argument)
        information = (slope**2 / expected)[mask].mean(0)  # Fisher information of one bin about the argument
        evident = (counts - expected) / slope[mask].mean(0) * information.sqrt() * mask[..., None]
        if self.rnn.n_inputs:
            found = start.from_inputs(part, evident, self.rank)
            self.start_mean.copy_(found.first.mean(0))
            start.set_units(self.rnn, found.effect / self.alpha, self.options.init_seed)
        else:
            per_feature = information.sqrt() * self.count_sd / slope[mask].mean(0)
            found = start.from_trials(evident, mask, self.rank, self.encoder.start_sd)
            self._begin_with(found, per_feature)
        self.readout.copy_(found.readout).div_(information.sqrt()[:, None])
        self.bias.div_(information.sqrt())
        if self.reads_scores:  # one block's sum of independent scores
            size = self.score(TrialBatch.of(recording, train, baseline.argument))[mask].std(0) * window**0.5
            self.score_map.copy_(torch.diag(1 / (size + 1e-6)))
        return self

    def _begin_with(self, found: start.TrialStart, per_feature: Tensor) -> None:
        """Dynamics, prior of z[0] and encoder from smoothed trials.

        ``per_feature`` (K,): what one unit of the encoder's feature of a neuron is in units of the smoothed trials.
        """
        start.set_units(self.rnn, None, self.options.init_seed)
        # Large penalty: smoothed trials underestimate speeds and their noise is in z too; training does the rest.
        start.set_output_weights(self.rnn, found.states, found.states + found.moved / self.alpha, 1e-5)
        self.bias.copy_(found.centre)
        self.start_mean.copy_(found.first.mean(0))
        spread = torch.cov(found.first.T, correction=int(len(found.first) > 1)).reshape(self.rank, self.rank)
        factor = torch.linalg.cholesky(spread + 1e-2 * torch.eye(self.rank, dtype=torch.float64))
        self.start_factor.copy_(factor)
        # The encoder begins with the same linear estimate of z[0], in units of the prior.
        decoder = torch.linalg.solve_triangular(factor, (found.axes / found.size).T * per_feature, upper=False)
        self.encoder.linear_start.weight[:, : len(decoder.T)] = decoder.float()
        shift = self.start_mean.double() + (found.centre @ found.axes) / found.size
        shift = torch.linalg.solve_triangular(factor, shift[:, None], upper=False)[:, 0]
        self.encoder.start.bias[: self.rank] = -shift.float()
        self.noise_factor.mul_(0.2)

    def _check(self, recording: Recording, baseline: Baseline) -> None:
        mine = (self.readout.shape[0], self.rnn.n_inputs)
        theirs = (recording.n_neurons, recording.n_inputs)
        if mine != theirs:
            raise UserError(f"a recording of {mine[0]} neurons and {mine[1]} inputs", f"{theirs[0]} and {theirs[1]}")
        if abs(baseline.scale - self.scale) > 1e-9 * self.scale:
            raise UserError(f"a baseline of count scale {self.scale:g}", f"{baseline.scale:g}")
        if self.rank > recording.n_neurons:
            raise UserError(
                f"at least as many neurons as the rank, {self.rank}",
                f"{recording.n_neurons} neurons in '{recording.name}'",
                "lower lrrnn.rank, or record more neurons",
            )

    @torch.no_grad()
    def fix_gauge(self, batch: TrialBatch, choices: Tensor | None = None) -> Tensor:
        """Bring the latents into a reproducible gauge; likelihoods stay as they are, every parameter follows.

        Axes: the principal axes of what the latents do to the recorded neurons (of C z), so that they do not depend
        on the gauge the training ended in; scale: unit variance along each; signs: the mean state at the end of
        trials with choice 1 lies above that with choice 0, or, without choices, the largest loading is positive.

        Args:
            batch: the trials that define it (training trials).
            choices: (B,) 0, 1 or NaN, or None.

        Returns:
            A (R, R): new latents are A times the old ones.
        """
        z = self.infer(batch)
        samples = z[batch.mask].double()
        root = torch.linalg.cholesky(torch.cov(samples.T).reshape(self.rank, self.rank) + 1e-9 * torch.eye(self.rank))
        _, _, vh = torch.linalg.svd(self.readout.double() @ root, full_matrices=False)
        a = vh @ torch.linalg.inv(root)
        end = last_states(z, batch.mask.sum(1)).double() @ a.T
        sign = torch.zeros(self.rank, dtype=torch.float64)
        if choices is not None and (choices == 1).any() and (choices == 0).any():
            sign = (end[choices == 1].mean(0) - end[choices == 0].mean(0)).sign()
        columns = self.readout.double() @ torch.linalg.inv(a)
        largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))[0].sign()
        a = torch.where(sign == 0, largest, sign)[:, None] * a
        inverse = torch.linalg.inv(a)
        for parameter, left in ((self.rnn.m, None), (self.readout, None), (self.rnn.n, a), (self.start_mean, a)):
            value = parameter.double()
            parameter.copy_(value @ inverse if left is None else value @ left.T)
        for parameter in (self.start_factor, self.noise_factor, self.score_map):  # scores move by the inverse of a
            parameter.copy_(a @ parameter.double())
        return a
