"""A generative model of single trials of spike counts, and what is computed with any posterior over its latent paths.

    z[0]   ~ N(mu, S S^T)
    z[t+1] = z[t] + alpha (-z[t] + F(z[t], u[t])) + sqrt(alpha) L eps[t],        eps ~ N(0, I)
    y[t,k] ~ Poisson(scale * softplus(C_k . z[t] + d_k + baseline[t,k]))

F is the drive of a low-rank RNN with units of its own (equation 1 of :mod:`connector.dynamics`); C, d read the
recorded neurons off its latent state.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connector.errors import UserError
from connector.lrrnn.module import LowRankRNN
from connector.lrrnn.spikes.encoder import PathPosterior
from connector.lrrnn.spikes.scan import PoissonNats, Scan
from connector.types import Loadings, TrialBatch

_CHUNK_NUMBERS = 1.5e7  # numbers in the largest tensor when trained models are evaluated


class Paths(NamedTuple):
    """Latent paths of a batch, time first: posterior (time, S, B, R) or None, rollout (time, B, R)."""

    posterior: Tensor | None
    rollout: Tensor


class SpikeStateSpace(nn.Module):
    """The generative model above; a subclass says how trials are inverted (:meth:`posterior`).

    Args:
        n_neurons: K_obs, recorded neurons.
        rank: R.
        n_inputs: U.
        alpha: Euler step in units of the time constant.
        scale: expected count per bin where softplus is 1 (:func:`connector.lrrnn.spikes.baselines.count_scale`).
        n_units: units of the latent network; unit_activation: their nonlinearity.
        rollout_start: "prior" (from the prior's mean: the trial is predicted from its inputs alone) or "encoder"
            (from the posterior's z[0]: for recordings without inputs); "auto": "prior" if there are inputs.

    Attributes:
        rnn: the latent network, a LowRankRNN.
        readout: (K_obs, R) C; bias: (K_obs,) d.
        start_mean: (R,) mu; start_factor: (R, R) S; noise_factor: (R, R) L.
        baseline_mean: (K_obs,) mean baseline of the training trials: what ``loadings`` adds to the bias.
    """

    def __init__(
        self,
        n_neurons: int,
        rank: int,
        n_inputs: int,
        alpha: float,
        scale: float,
        n_units: int,
        unit_activation: str,
        rollout_start: str = "auto",
    ):
        super().__init__()
        if rollout_start not in ("auto", "prior", "encoder"):
            raise UserError("rollout_start auto, prior or encoder", repr(rollout_start))
        if not scale > 0 or n_neurons < 1:
            raise UserError("a positive count scale and at least one neuron", f"{scale}, {n_neurons} neurons")
        self.scale = float(scale)
        self.rollout_start = rollout_start if rollout_start != "auto" else ("prior" if n_inputs else "encoder")
        self.rnn = LowRankRNN(n_units, rank, n_inputs, True, alpha, unit_activation)
        self.readout = nn.Parameter(torch.zeros(n_neurons, rank))
        self.bias = nn.Parameter(torch.zeros(n_neurons))
        self.start_mean = nn.Parameter(torch.zeros(rank))
        self.start_factor = nn.Parameter(0.3 * torch.eye(rank))
        self.noise_factor = nn.Parameter(torch.eye(rank))
        self.register_buffer("baseline_mean", torch.zeros(n_neurons))

    @property
    def rank(self) -> int:
        return self.rnn.rank

    @property
    def alpha(self) -> float:
        return self.rnn.alpha

    def posterior(self, batch: TrialBatch, seen: Tensor | None = None) -> PathPosterior:
        """The posterior over the latent paths of these trials; no gradient flows.

        Args:
            seen: (K_obs,) False for neurons whose spikes are kept from it; None: it sees all.
        """
        raise NotImplementedError

    def _scan(self, z0: Tensor, extra: Tensor, inputs: Tensor | None) -> Tensor:
        """z0 (S, B, R), extra (time - 1, S, B, R), inputs (B, time, U) -> (time, S, B, R)."""
        rnn = self.rnn
        driven = rnn.n_inputs and inputs is not None
        u = inputs[:, : len(extra)].transpose(0, 1) if driven else None
        loadings = Loadings(rnn.m, rnn.b if driven else None, rnn.d).stack()
        return Scan.apply(z0, extra, u, loadings, rnn.n, self.alpha, rnn.activation)

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
            posterior: of :meth:`posterior`, or None for the rollout alone.
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

    def expected_activity(self, batch: TrialBatch, z: Tensor) -> Tensor:
        """Expected counts per bin (B, time, K_obs) at latents z (B, time, R)."""
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline
        return self.scale * F.softplus(z @ self.readout.T + offset)

    def loadings(self) -> Loadings:
        """How the recorded neurons read the latents: m = C, d = bias + mean baseline, no b (see refit_loadings)."""
        return Loadings(self.readout.detach().clone(), None, (self.bias + self.baseline_mean).detach().clone())

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
            return self.expected_activity(batch, self.infer(batch, rollout=True))

        def averaged(piece: TrialBatch) -> Tensor:
            trials, steps = piece.mask.shape
            zero = torch.zeros(trials, self.rank, device=piece.mask.device)
            still = zero.expand(steps - 1, -1, -1)
            start = self.posterior(piece) if self.rollout_start == "encoder" else PathPosterior(zero, zero, still)
            prior = PathPosterior(start.mean, start.log_sd, still)
            return self._mean_counts(piece, prior, n_samples, generator)

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

        return self._in_chunks(
            batch, n_samples, lambda piece: self._mean_counts(piece, self.posterior(piece, seen), n_samples, generator)
        )

    def _mean_counts(
        self, batch: TrialBatch, posterior: PathPosterior, n_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        paths, _ = self.paths(batch, posterior, n_samples, generator=generator)
        return sum(self.expected_activity(batch, z.transpose(0, 1)) for z in paths.posterior.unbind(1)) / n_samples

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


def _normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
