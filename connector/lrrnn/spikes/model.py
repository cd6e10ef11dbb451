"""A low-rank RNN fitted to spike counts: a generative model of single trials, and the encoder that inverts it.

    z[0]   ~ N(mu, S S^T)
    z[t+1] = z[t] + alpha (-z[t] + F(z[t], u[t])) + sqrt(alpha) L eps[t],        eps ~ N(0, I)
    y[t,k] ~ Poisson(scale * softplus(C_k . z[t] + d_k + baseline[t,k]))

F is the drive of a low-rank RNN with units of its own (equation 1 of :mod:`connector.dynamics`); C, d read the
recorded neurons off its latent state. The encoder, a bidirectional GRU on what the spikes say beyond the noise-free
rollout, and on the inputs, gives the mean and spread of z[0] and a correction e[t] of the drift,
z[t+1] += alpha L e[t], under the same noise, so that the Kullback-Leibler divergence of a step is
alpha |e[t]|^2 / 2. Training minimises

    - (evidence lower bound) - rollout_weight * (log-likelihood of the noise-free rollout),

so that one model explains single trials and is driven by its inputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connector.errors import UserError
from connector.lrrnn.module import LowRankRNN
from connector.lrrnn.spikes.baselines import Baseline
from connector.lrrnn.spikes.encoder import Encoder, PathPosterior
from connector.lrrnn.spikes.scan import RATE_FLOOR, PoissonNats, Scan
from connector.types import Loadings, Recording, TrialBatch, last_states

_CHUNK_NUMBERS = 1.5e7  # numbers in the largest tensor when trained models are evaluated


class Paths(NamedTuple):
    """Latent paths of a batch, time first: posterior (time, S, B, R) or None, rollout (time, B, R)."""

    posterior: Tensor | None
    rollout: Tensor


class SpikeModel(nn.Module):
    """See the module's docstring. Fit a baseline, ``initialise`` on training trials, then train.

    Args:
        n_neurons: K_obs, recorded neurons.
        rank: R.
        n_inputs: U.
        alpha: Euler step in units of the time constant.
        n_units: units of the latent network.
        unit_activation: their nonlinearity.
        scale: expected count per bin where softplus is 1 (:func:`connector.lrrnn.spikes.baselines.count_scale`).
        encoder_hidden, encoder_window: width of the GRU; bins summed before it (4 bins of 10 ms).
        rollout_weight: weight of the noise-free rollout's log-likelihood beside the bound.
        rollout_fraction: share of training, at its start, with the rollout alone.
        warmup_fraction: share of the rest over which the weight of the divergence grows from 0 to 1.
        rollout_start: "prior" (from the prior's mean: the trial is predicted from its inputs alone) or "encoder"
            (from the encoder's z[0]: for recordings without inputs); "auto": "prior" if there are inputs.
        refine_steps: gradient steps that bring each trial's posterior nearer its best bound when latents are inferred
            or likelihoods computed; None: 60 where rollouts start from the encoder (whose z[0] decides the whole
            trial), else none (there they gained nothing).
        init_seed: seed of the latent units.

    Attributes:
        rnn: the latent network, a LowRankRNN.
        readout: (K_obs, R) C; bias: (K_obs,) d.
        start_mean: (R,) mu; start_factor: (R, R) S; noise_factor: (R, R) L.
        baseline_mean: (K_obs,) mean baseline of the training trials: what ``loadings`` adds to the bias.
        count_sd: (K_obs,), input_sd: (U,), score_map: (R, R): what brings the encoder's features to about unit size.
    """

    # Adam with a one-cycle schedule; chosen on validation trials of a rat recording.
    LEARNING_RATE, ENCODER_LEARNING_RATE_RATIO = 1e-2, 0.6
    BATCH_SIZE, MAX_EPOCHS, GRADIENT_CLIP = 32, 60, 1.0

    def __init__(
        self,
        n_neurons: int,
        rank: int = 2,
        n_inputs: int = 0,
        alpha: float = 0.1,
        *,
        n_units: int = 128,
        unit_activation: str = "tanh",
        scale: float = 0.1,
        encoder_hidden: int = 64,
        encoder_window: int = 4,
        rollout_weight: float = 1.0,
        rollout_fraction: float = 1 / 3,
        warmup_fraction: float = 0.3,
        rollout_start: str = "auto",
        refine_steps: int | None = None,
        init_seed: int = 0,
    ):
        super().__init__()
        if rollout_start not in ("auto", "prior", "encoder"):
            raise UserError("rollout_start auto, prior or encoder", repr(rollout_start))
        if not scale > 0 or n_neurons < 1:
            raise UserError("a positive count scale and at least one neuron", f"{scale}, {n_neurons} neurons")
        self.scale, self.rollout_weight = float(scale), float(rollout_weight)
        self.rollout_fraction, self.warmup_fraction = float(rollout_fraction), float(warmup_fraction)
        self.rollout_start = rollout_start if rollout_start != "auto" else ("prior" if n_inputs else "encoder")
        if self.rollout_start == "encoder":  # such a rollout needs the encoder from the first epoch on
            self.rollout_fraction = 0.0
        default_steps = 60 if self.rollout_start == "encoder" else 0
        self.refine_steps = default_steps if refine_steps is None else int(refine_steps)
        self.init_seed = int(init_seed)
        self.rnn = LowRankRNN(n_units, rank, n_inputs, True, alpha, unit_activation)
        width = rank if self.reads_scores else n_neurons
        self.encoder = Encoder(width + n_inputs, rank, encoder_hidden, encoder_window)
        self.readout = nn.Parameter(torch.zeros(n_neurons, rank))
        self.bias = nn.Parameter(torch.zeros(n_neurons))
        self.start_mean = nn.Parameter(torch.zeros(rank))
        self.start_factor = nn.Parameter(0.3 * torch.eye(rank))
        self.noise_factor = nn.Parameter(torch.eye(rank))
        self.register_buffer("baseline_mean", torch.zeros(n_neurons))
        self.register_buffer("count_sd", torch.ones(n_neurons))
        self.register_buffer("input_sd", torch.ones(n_inputs))
        self.register_buffer("score_map", torch.eye(rank))

    @property
    def reads_scores(self) -> bool:
        """Whether the encoder reads the likelihood's gradient at the rollout instead of single neurons."""
        return self.rollout_start == "prior"

    @property
    def rank(self) -> int:
        return self.rnn.rank

    @property
    def alpha(self) -> float:
        return self.rnn.alpha

    # ---- the pieces of the objective

    def encode(self, batch: TrialBatch, seen: Tensor | None = None) -> PathPosterior:
        """The encoder on what the spikes say beyond what is expected anyway, and on the inputs.

        Where rollouts start from the prior it reads :meth:`score` along the noise-free rollout: R numbers a bin that hold,
        to first order, all that the spikes say of the state there. It generalises to other trials better than one that
        reads every neuron. Otherwise it reads each neuron's count less what the baseline expects, over ``count_sd``.

        Args:
            seen: (K_obs,) False for neurons whose spikes are kept from the encoder; None: it sees all. Such a neuron adds
                nothing, as if it had fired just what is expected: the encoder takes its absence for an uninformative
                count, and errs towards the prior.
        """
        if self.reads_scores:
            features = self.score(batch, seen) @ self.score_map
        else:
            offset = self.bias.detach() if batch.baseline is None else batch.baseline
            features = (batch.activity - self.scale * F.softplus(offset)) / self.count_sd
            if seen is not None:
                features = torch.where(seen, features, 0.0)
        if batch.inputs is not None and self.rnn.n_inputs:
            features = torch.cat([features, batch.inputs / self.input_sd], -1)
        return self.encoder(features * batch.mask[..., None], batch.mask)

    @torch.no_grad()
    def score(self, batch: TrialBatch, seen: Tensor | None = None) -> Tensor:
        """Gradient of each bin's log-likelihood with respect to its state at the noise-free rollout: (B, time, R).

        No gradient flows back from it. ``seen`` (K_obs,) False leaves a neuron out.
        """
        z = self.paths(batch, None)[0].rollout.transpose(0, 1)
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline
        x = z @ self.readout.T + offset
        rate = F.softplus(x).clamp_min(RATE_FLOOR)
        slope = torch.expm1(-rate).neg_().mul_(batch.activity / rate - self.scale)  # sigmoid(x) = 1 - exp(-softplus(x))
        if seen is not None:
            slope = torch.where(seen, slope, 0.0)
        return slope @ self.readout

    def posterior(self, batch: TrialBatch, seen: Tensor | None = None) -> PathPosterior:
        """The encoder's answer for these trials, refined by ``refine_steps``; no gradient flows.

        ``seen``: as in :meth:`encode`; the refinement uses the likelihood of these neurons alone.
        """
        with torch.no_grad():
            encoded = self.encode(batch, seen)
        return self.refine(batch, encoded, self.refine_steps, seen=seen) if self.refine_steps else encoded

    def refine(
        self,
        batch: TrialBatch,
        posterior: PathPosterior,
        steps: int = 60,
        lr: float = 0.1,
        n_samples: int = 2,
        seed: int = 0,
        seen: Tensor | None = None,
    ) -> PathPosterior:
        """Each trial's posterior brought nearer its best bound by gradient steps, the model held fixed.

        The encoder was fitted to training trials; this removes its error on others, and its share in every trial.

        Args:
            steps, lr: Adam steps on mean, log_sd and correction, and their first size (cosine decay).
            n_samples: fresh samples per step.
            seen: (K_obs,) False for neurons whose likelihood does not count; None: all count.
        """
        generator = torch.Generator(device=batch.mask.device).manual_seed(seed)
        free = [x.detach().clone().requires_grad_() for x in posterior]
        optimizer = torch.optim.Adam(free, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        recorded = batch.mask[:, 1:].T[..., None]
        with torch.enable_grad():
            for _ in range(steps):
                now = PathPosterior(free[0], free[1].clamp(-8, 2), free[2] * recorded)
                paths, _ = self.paths(batch, now, n_samples, generator=generator)
                nats, _ = self._nats(batch, paths.posterior, seen)
                bound = nats.sum() / n_samples - now.divergence(self.alpha).sum()
                gradients = torch.autograd.grad(-bound, free)
                for x, gradient in zip(free, gradients):
                    x.grad = gradient
                optimizer.step()
                schedule.step()
        return PathPosterior(free[0].detach(), free[1].detach().clamp(-8, 2), (free[2] * recorded).detach())

    def _scan(self, z0: Tensor, extra: Tensor, inputs: Tensor | None) -> Tensor:
        """z0 (S, B, R), extra (time - 1, S, B, R), inputs (B, time, U) -> (time, S, B, R)."""
        rnn = self.rnn
        driven = rnn.n_inputs and inputs is not None
        u = inputs[:, : len(extra)].transpose(0, 1) if driven else None
        return Scan.apply(z0, extra, u, rnn.m, rnn.b if driven else None, rnn.d, rnn.n, self.alpha, rnn.activation)

    def paths(
        self,
        batch: TrialBatch,
        posterior: PathPosterior | None,
        n_samples: int = 1,
        noise: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Paths, Tensor | None]:
        """PathPosterior samples and the noise-free rollout in one scan.

        Args:
            posterior: of :meth:`encode`, or None for the rollout alone.
            n_samples: S posterior samples.
            noise: factor on all random numbers; 0 gives the posterior's noise-free path.

        Returns:
            the paths; the log-weights log p(path) - log q(path) of the samples (S, B), None without posterior.
        """
        trials, steps = batch.mask.shape
        rank, weights = self.rank, None
        start = self.start_mean.expand(1, trials, rank)
        extra = start.new_zeros(steps - 1, 1, trials, rank)
        if posterior is not None:
            eps0 = noise * _normal((n_samples, trials, rank), generator, start)
            eps = noise * _normal((steps - 1, n_samples, trials, rank), generator, start)
            white = posterior.mean + torch.exp(posterior.log_sd) * eps0
            z0 = self.start_mean + white @ self.start_factor.T
            if self.rollout_start == "encoder":
                start = (self.start_mean + posterior.mean @ self.start_factor.T)[None]
            push = self.alpha * posterior.correction[:, None] + math.sqrt(self.alpha) * eps
            weights = -0.5 * (white**2 - eps0**2).sum(-1) + posterior.log_sd.sum(-1)
            e = posterior.correction[:, None]
            weights = weights - (0.5 * self.alpha * e**2 + math.sqrt(self.alpha) * e * eps).sum((0, 3))
            start = torch.cat([z0, start])
            extra = torch.cat([push @ self.noise_factor.T, extra], 1)
        states = self._scan(start, extra, batch.inputs)
        return Paths(states[:, :-1] if posterior is not None else None, states[:, -1]), weights

    def log_likelihood(self, batch: TrialBatch, z: Tensor) -> Tensor:
        """Poisson log-likelihood, less the sum of log(y!), of each trial: z (time, S, B, R) -> (S, B)."""
        nats, trial = self._nats(batch, z)
        counts = (batch.activity * batch.mask[..., None]).sum((1, 2))
        return (counts * math.log(self.scale)).repeat(len(nats), 1).index_add_(1, trial, nats)

    def _nats(self, batch: TrialBatch, z: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each recorded sample (S, N), less counts * log(scale), and the trial it belongs to (N,).

        ``seen`` (K_obs,) False leaves a neuron out.
        """
        inside = batch.mask.T.flatten().nonzero()[:, 0]
        trials = len(batch.mask)
        z = z.transpose(0, 1).flatten(1, 2)[:, inside]
        step, trial = inside // trials, inside % trials
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline[trial, step]
        offset, readout, counts = offset.expand(len(inside), -1), self.readout, batch.activity[trial, step]
        if seen is not None:
            offset, readout, counts = offset[:, seen], readout[seen], counts[:, seen]
        return PoissonNats.apply(z, readout, offset, counts, self.scale), trial

    # ---- what a training loop calls

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
            paths, _ = self.paths(batch, None)
            rollout = self._nats(batch, paths.rollout[:, None])[0].sum() / samples
            return -rollout, {"rollout_nats": rollout.detach()}
        warm = (progress - self.rollout_fraction) / ((1 - self.rollout_fraction) * self.warmup_fraction + 1e-12)
        return self._objective(batch, min(1.0, warm), 1, generator)

    def _objective(
        self, batch: TrialBatch, divergence_weight: float, n_samples: int, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        samples = batch.mask.sum()
        posterior = self.encode(batch)
        paths, _ = self.paths(batch, posterior, n_samples, generator=generator)
        nats, _ = self._nats(batch, torch.cat([paths.posterior, paths.rollout[:, None]], 1))
        expected = nats[:-1].sum() / (n_samples * samples)
        rollout = nats[-1].sum() / samples
        divergence = posterior.divergence(self.alpha).sum() / samples
        loss = -expected + divergence_weight * divergence - self.rollout_weight * rollout
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

    # ---- what is read off a trained model

    def _in_chunks(self, batch: TrialBatch, n_samples: int, function) -> Tensor:
        """``function`` of some trials at a time, (trials, ...), so that memory stays within bounds."""
        per_trial = max(1, n_samples) * batch.mask.shape[1] * max(self.readout.shape[0], self.rnn.n_units)
        size = max(1, int(_CHUNK_NUMBERS // per_trial))
        pieces = range(0, len(batch.mask), size)
        cut = (TrialBatch(*(None if x is None else x[i : i + size] for x in batch)) for i in pieces)
        return torch.cat([function(piece) for piece in cut])

    @torch.no_grad()
    def infer(self, batch: TrialBatch, rollout: bool = False) -> Tensor:
        """Latents (B, time, R), zero past a trial's end: the posterior's noise-free path, or the rollout's."""

        def states(piece: TrialBatch) -> Tensor:
            needed = not rollout or self.rollout_start == "encoder"
            paths, _ = self.paths(piece, self.posterior(piece) if needed else None, 1, noise=0.0)
            z = paths.rollout if rollout else paths.posterior[:, 0]
            return z.transpose(0, 1) * piece.mask[..., None]

        return self._in_chunks(batch, 2, states)

    @torch.no_grad()
    def rollout_counts(self, batch: TrialBatch, n_samples: int = 0, generator: torch.Generator | None = None) -> Tensor:
        """Expected counts (B, time, K_obs) given the inputs: noise-free, or averaged over ``n_samples`` noisy runs."""
        if n_samples == 0:
            return self.expected_counts(batch, self.infer(batch, rollout=True))

        def averaged(piece: TrialBatch) -> Tensor:
            trials, steps = piece.mask.shape
            zero = torch.zeros(trials, self.rank, device=piece.mask.device)
            still = zero.expand(steps - 1, -1, -1)
            start = self.posterior(piece) if self.rollout_start == "encoder" else PathPosterior(zero, zero, still)
            prior = PathPosterior(start.mean, start.log_sd, still)
            paths, _ = self.paths(piece, prior, n_samples, generator=generator)
            return sum(self.expected_counts(piece, z.transpose(0, 1)) for z in paths.posterior.unbind(1)) / n_samples

        return self._in_chunks(batch, n_samples, averaged)

    @torch.no_grad()
    def posterior_counts(
        self,
        batch: TrialBatch,
        seen: Tensor | None = None,
        n_samples: int = 32,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Expected counts (B, time, K_obs) of all neurons given the inputs and the spikes of the neurons seen.

        Args:
            seen: (K_obs,) as in :meth:`encode`; None: all.
            n_samples: samples of the posterior that expected counts are averaged over.
        """

        def averaged(piece: TrialBatch) -> Tensor:
            paths, _ = self.paths(piece, self.posterior(piece, seen), n_samples, generator=generator)
            return sum(self.expected_counts(piece, z.transpose(0, 1)) for z in paths.posterior.unbind(1)) / n_samples

        return self._in_chunks(batch, n_samples, averaged)

    def expected_counts(self, batch: TrialBatch, z: Tensor) -> Tensor:
        """Expected counts per bin (B, time, K_obs) at latents z (B, time, R)."""
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline
        return self.scale * F.softplus(z @ self.readout.T + offset)

    @torch.no_grad()
    def marginal_log_likelihood(
        self, batch: TrialBatch, n_samples: int = 32, generator: torch.Generator | None = None
    ) -> Tensor:
        """Importance-weighted lower bound on log p(spikes) of each trial, (B,), less the sum of log(y!)."""

        def bound(piece: TrialBatch) -> Tensor:
            paths, weights = self.paths(piece, self.posterior(piece), n_samples, generator=generator)
            total = self.log_likelihood(piece, paths.posterior) + weights
            return torch.logsumexp(total, 0) - math.log(n_samples)

        return self._in_chunks(batch, n_samples, bound)

    @torch.no_grad()
    def rollout_log_likelihood(self, batch: TrialBatch) -> Tensor:
        """Log-likelihood of the noise-free rollout, (B,), less the sum of log(y!)."""
        z = self.infer(batch, rollout=True)

        def likelihood(piece: TrialBatch) -> Tensor:
            return self.log_likelihood(piece, z[piece.index].transpose(0, 1)[:, None])[0]

        return self._in_chunks(batch._replace(index=torch.arange(len(z))), 1, likelihood)

    def loadings(self) -> Loadings:
        """How the recorded neurons read the latents: m = C, d = bias + mean baseline, no b (see refit_loadings)."""
        return Loadings(self.readout.detach().clone(), None, (self.bias + self.baseline_mean).detach().clone())

    # ---- start and gauge

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
        mask, counts = part.mask, part.activity.double()
        self.baseline_mean.copy_(argument[mask].mean(0))
        expected = self.scale * F.softplus(argument)
        # One block's expected variance, plus a little, so that silent neurons are not blown up.
        self.count_sd.copy_((self.encoder.window * baseline.null_counts).sqrt() + 0.1)
        if self.rnn.n_inputs:
            self.input_sd.copy_(
                _block_sums(part.inputs, self.encoder.window)[_blocks(mask, self.encoder.window)].std(0) + 1e-3
            )
        self.bias.zero_()
        slope = self.scale * torch.sigmoid(argument)
        information = (slope**2 / expected)[mask].mean(0)  # Fisher information of one bin about the argument
        evident = (counts - expected) / slope[mask].mean(0) * information.sqrt() * mask[..., None]
        if self.rnn.n_inputs:
            self._start_from_inputs(part, evident, mask, _conditions(part))
        else:
            self._start_from_trials(evident, mask, information.sqrt() * self.count_sd / slope[mask].mean(0))
        self.readout.div_(information.sqrt()[:, None])
        self.bias.div_(information.sqrt())
        if self.reads_scores:  # one block's sum of independent scores
            size = (
                self.score(TrialBatch.of(recording, train, baseline.argument))[mask].std(0) * self.encoder.window**0.5
            )
            self.score_map.copy_(torch.diag(1 / (size + 1e-6)))
        return self

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

    def _start_from_inputs(self, part: Recording, evident: Tensor, mask: Tensor, conditions: Tensor | None) -> None:
        """Readout along what conditions or inputs explain; the inputs' effect by regression of single trials."""
        total = _accumulated(part.inputs.double() * mask[..., None], 0.0)
        if conditions is not None:
            member = F.one_hot(conditions).double().T  # (conditions, trials)
            trials = member @ mask.double()
            mean = torch.einsum("cn,ntk->ctk", member, evident) / trials.clamp_min(1)[..., None]
            explained, weight = _smooth(mean, trials, sd=8.0)
        else:  # what leaky sums of the inputs, of three time constants, predict linearly
            sums = torch.cat(
                [total] + [_accumulated(part.inputs.double() * mask[..., None], k) for k in (0.03, 0.1)], -1
            )
            explained, weight = sums @ _regress(sums, evident, mask), mask.double()
        enough = weight > 0.2 * weight.max()
        flat = (explained * weight.sqrt()[..., None])[enough]
        axes = torch.linalg.svd(flat.T @ flat)[2][: self.rank].T
        scores = explained @ axes
        size = scores[enough].std(0) / 0.7
        size = torch.maximum(size, 0.05 * size.max()).clamp_min(1e-6)
        self.readout.copy_(axes * size)
        self._start_units(_regress(total, evident @ axes / size, mask).T / self.alpha)
        self.start_mean.copy_((scores[:, 0] / size).mean(0))

    def _start_from_trials(self, evident: Tensor, mask: Tensor, per_feature: Tensor) -> None:
        """``per_feature`` (K,): what one unit of the encoder's feature of a neuron is in ``evident``."""
        smooth, _ = _smooth(evident, mask.double(), self.encoder.start_sd)
        flat = smooth[mask]
        centre = flat.mean(0)
        _, _, vh = torch.linalg.svd((flat - centre).T @ (flat - centre))
        axes = vh[: self.rank].T
        size = ((flat - centre) @ axes).std(0).clamp_min(1e-6)
        scores = (smooth - centre) @ axes / size
        self.readout.copy_(axes * size)
        self.bias.copy_(centre)
        self._start_units(None)
        following = mask[:, 1:]
        z, moved = scores[:, :-1][following], (scores[:, 1:] - scores[:, :-1])[following]
        # Large penalty: smoothed trials underestimate speeds and their noise is in z too; training does the rest.
        self._solve_outputs(z, None, z + moved / self.alpha, 1e-5)
        first = scores[:, 0]
        self.start_mean.copy_(first.mean(0))
        spread = torch.cov(first.T).reshape(self.rank, self.rank) + 1e-2 * torch.eye(self.rank, dtype=torch.float64)
        factor = torch.linalg.cholesky(spread)
        self.start_factor.copy_(factor)
        # The encoder begins with the same linear estimate of z[0], in units of the prior.
        decoder = torch.linalg.solve_triangular(factor, (axes / size).T * per_feature, upper=False)
        self.encoder.linear_start.weight[:, : len(decoder.T)] = decoder.float()
        shift = self.start_mean.double() + (centre @ axes) / size
        self.encoder.start.bias[: self.rank] = -torch.linalg.solve_triangular(factor, shift[:, None], upper=False)[
            :, 0
        ].float()
        self.noise_factor.mul_(0.2)

    def _start_units(self, gain: Tensor | None) -> None:
        """Random features m, d; b = m B for ``gain`` B (R, U) or small; n by ridge, so that F(z, u) is near z + B u."""
        generator = torch.Generator().manual_seed(self.init_seed)
        rnn, units, rank = self.rnn, self.rnn.n_units, self.rank
        m = torch.randn(units, rank, generator=generator, dtype=torch.float64)
        d = 0.5 * torch.randn(units, generator=generator, dtype=torch.float64)
        rnn.m.copy_(m)
        rnn.d.copy_(d)
        if rnn.n_inputs:
            random = 0.1 * torch.randn(units, rnn.n_inputs, generator=generator, dtype=torch.float64)
            rnn.b.copy_(random if gain is None else m @ gain)
        z = 1.5 * torch.randn(2000, rank, generator=generator, dtype=torch.float64)
        self._solve_outputs(z, None, z, 1e-6)

    def _solve_outputs(self, z: Tensor, u: Tensor | None, target: Tensor, penalty: float) -> None:
        """n by ridge, so that F(z, u) is near ``target`` (N, R); penalty per data point."""
        network = self.rnn.network().double()
        x = network.rates(z, u) / self.rnn.n_units
        gram = x.T @ x / len(x) + penalty * torch.eye(self.rnn.n_units, dtype=torch.float64)
        self.rnn.n.copy_(torch.linalg.solve(gram, x.T @ target / len(x)))

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


def _normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _block_sums(x: Tensor, window: int) -> Tensor:
    """Sums of ``window`` successive samples, (B, time // window, C); an incomplete last block is dropped."""
    steps = x.shape[1] // window * window
    return x[:, :steps].unflatten(1, (-1, window)).sum(2)


def _blocks(mask: Tensor, window: int) -> Tensor:
    """(B, time // window) True where the whole block was recorded."""
    return _block_sums(mask[..., None].long(), window)[..., 0] == window


def _smooth(x: Tensor, weight: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    """Gaussian smoothing along time with weights (0 = missing): x (B, time, K), weight (B, time); sd in samples."""
    time = torch.arange(x.shape[1], dtype=x.dtype)
    kernel = torch.exp(-0.5 * ((time[:, None] - time) / sd) ** 2)
    total = weight @ kernel
    smooth = torch.einsum("st,btk->bsk", kernel, x * weight[..., None])
    return smooth / total.clamp_min(1e-9)[..., None], total


def _conditions(recording: Recording, n_bins: int = 6, most: int = 12) -> Tensor | None:
    """Condition of each trial, (trials,) int64, by evidence, click difference or choice; None where nothing varies."""
    for value in (recording.evidence, recording.click_difference, recording.choices):
        if value is None:
            continue
        value = value.double()
        finite = torch.isfinite(value)
        levels = value[finite].unique()
        if len(levels) < 2:
            continue
        if len(levels) > most:
            edges = torch.quantile(value[finite], torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)[1:-1])
        else:
            edges = (levels[1:] + levels[:-1]) / 2
        index = torch.bucketize(value.nan_to_num(float(value[finite].median())), edges)
        return torch.unique(index, return_inverse=True)[1]
    return None


def _accumulated(inputs: Tensor, leak: float) -> Tensor:
    """Sum of the inputs before each sample, forgotten at ``leak`` per step: (B, time, U) -> (B, time, U)."""
    lag = torch.arange(inputs.shape[1], dtype=inputs.dtype)
    lag = lag[:, None] - lag - 1
    kernel = torch.where(lag >= 0, torch.exp(-leak * lag.clamp_min(0)), 0.0)
    return torch.einsum("ts,bsu->btu", kernel, inputs)


def _regress(x: Tensor, y: Tensor, mask: Tensor, ridge: float = 1e-3) -> Tensor:
    """Weights (P, C) of y (B, time, C) on x (B, time, P), both as deviations from their mean over trials at each time.

    What all trials have in common at a time belongs to the baseline's course.
    """
    trials = mask.double().sum(0).clamp_min(1)
    x, y = ((v - (v * mask[..., None]).sum(0) / trials[:, None])[mask] for v in (x, y))
    gram = x.T @ x
    return torch.linalg.solve(gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)
