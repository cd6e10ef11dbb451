"""A generative model of single trials of spike counts, and what is computed with any posterior over its latent paths.

    z[0]   ~ N(mu, S S^T)
    z[t+1] = z[t] + alpha (-z[t] + F(z[t], u[t])) + sqrt(alpha) L eps[t],        eps ~ N(0, I)
    y[t,k] ~ Poisson(scale * softplus(C_k . z[t] + d_k + baseline[t,k]))

F is the drive of a low-rank RNN with units of its own (equation 1 of :mod:`connector.dynamics`); C, d read the
recorded neurons off its latent state.

Training draws paths from an encoder's posterior. Latents and predictions of a finished model come from the mode and curvature of each
trial's path (Laplace), likelihoods from importance sampling about it: nothing there is learned, so nothing can fail on other trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connector.dynamics import activation
from connector.errors import UserError
from connector.lrrnn.module import LowRankRNN
from connector.lrrnn.spikes.encoder import PathPosterior
from connector.lrrnn.spikes.fixed_model import FixedModel
from connector.lrrnn.spikes.paths import Parameters
from connector.lrrnn.spikes.scan import PoissonNats, Scan
from connector.numerics import pieces
from connector.shooting import Field
from connector.types import Loadings, TrialBatch

_LEAST_VARIANCE = 1e-6  # of noise and first states, over the mean variance of first states: Newton steps divide by it


class Paths(NamedTuple):
    """Latent paths of a batch, time first: posterior (time, S, B, R) or None, rollout (time, B, R)."""

    posterior: Tensor | None
    rollout: Tensor


class SpikeStateSpace(nn.Module):
    """The generative model above.

    Args:
        n_neurons: K_obs, recorded neurons.
        rank: R.
        n_inputs: U.
        alpha: Euler step in units of the time constant.
        scale: expected count per bin where softplus is 1 (:func:`connector.lrrnn.spikes.baselines.count_scale`).
        n_units: units of the latent network; unit_activation: their nonlinearity.
        rollout_start: "prior" (from the prior's mean: the trial is predicted from its inputs alone) or "encoder"
            (from what the trial's spikes say of z[0]: for recordings without inputs); "auto": "prior" if there are inputs.

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
        generator: torch.Generator | None = None,
    ) -> Paths:
        """``n_samples`` paths from an encoder's posterior, and the noise-free rollout, in one scan; without posterior the rollout
        alone."""
        trials, steps = batch.mask.shape
        rank = self.rank
        start = self.start_mean.expand(1, trials, rank)
        extra = start.new_zeros(steps - 1, 1, trials, rank)
        if posterior is not None:
            eps0 = _normal((n_samples, trials, rank), generator, start)
            eps = _normal((steps - 1, n_samples, trials, rank), generator, start)
            white = posterior.mean + torch.exp(posterior.log_sd) * eps0
            z0 = self.start_mean + white @ self.start_factor.T
            if self.rollout_start == "encoder":
                start = (self.start_mean + posterior.mean @ self.start_factor.T)[None]
            push = self.alpha * posterior.correction[:, None] + math.sqrt(self.alpha) * eps
            start = torch.cat([z0, start])
            extra = torch.cat([push @ self.noise_factor.T, extra], 1)
        states = self._scan(start, extra, batch.inputs)
        return Paths(states[:, :-1] if posterior is not None else None, states[:, -1])

    def _nats(self, batch: TrialBatch, z: Tensor) -> Tensor:
        """Log-likelihood of each recorded sample (S, N) at z (time, S, B, R), less counts * log(scale)."""
        inside = batch.mask.T.flatten().nonzero()[:, 0]
        trials = len(batch.mask)
        z = z.transpose(0, 1).flatten(1, 2)[:, inside]
        step, trial = inside // trials, inside % trials
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline[trial, step]
        counts = batch.activity[trial, step]
        return PoissonNats.apply(z, self.readout, offset.expand(len(inside), -1), counts, self.scale)

    def expected_activity(self, batch: TrialBatch, z: Tensor) -> Tensor:
        """Expected counts per bin (B, time, K_obs) at latents z (B, time, R)."""
        offset = self.bias if batch.baseline is None else self.bias + batch.baseline
        return self.scale * F.softplus(z @ self.readout.T + offset)

    def loadings(self) -> Loadings:
        """How the recorded neurons read the latents: m = C, d = bias + mean baseline, no b (see refit_loadings)."""
        return Loadings(self.readout.detach().clone(), None, (self.bias + self.baseline_mean).detach().clone())

    # -- with the paths integrated out ---------------------------------------------------------------------------------

    @torch.no_grad()
    def infer(self, batch: TrialBatch, rollout: bool = False) -> Tensor:
        """Latents (B, time, R), zero past a trial's end: the most likely path given the trial's spikes, or the noise-free
        rollout."""

        def states(given: FixedModel, piece: TrialBatch) -> Tensor:
            z = given.rollout(piece, given.starts(piece)) if rollout else given.paths(piece).mode
            return torch.where(piece.mask[..., None], z, 0.0)

        return self._in_pieces(batch, states)

    @torch.no_grad()
    def rollout_counts(
        self,
        batch: TrialBatch,
        n_samples: int = 0,
        generator: torch.Generator | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Expected counts (B, time, K_obs) given the inputs: noise-free, or averaged over ``n_samples`` noisy runs.

        ``seen``: (K_obs,) False for neurons whose spikes do not count where rollouts start from what spikes say; None: all do.
        """

        def expected(given: FixedModel, piece: TrialBatch) -> Tensor:
            return given.mean_of_rollouts(piece, given.starts(piece, seen), n_samples, generator)

        return self._in_pieces(batch, expected)

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
            seen: (K_obs,) False for neurons whose spikes do not count; None: all do.
            n_samples: paths that expected counts are averaged over.
        """

        def averaged(given: FixedModel, piece: TrialBatch) -> Tensor:
            return given.mean_on_paths(piece, given.paths(piece, seen), n_samples, generator)

        return self._in_pieces(batch, averaged)

    @torch.no_grad()
    def hidden_counts(
        self, batch: TrialBatch, hidden: Tensor, n_paths: int, n_rollouts: int | None = None, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Expected counts (B, time, H) of hidden neurons, by their numbers (H,), given the inputs and the spikes of all others:
        averaged over ``n_paths`` as :meth:`posterior_counts`; unless ``n_rollouts`` is None also as :meth:`rollout_counts`,
        noise-free and averaged over so many.

        The most likely paths, which take most of the time, are sought once for all of them.
        """
        seen = torch.ones(batch.activity.shape[2], dtype=torch.bool)
        seen[hidden] = False
        drawn, noise = (torch.Generator().manual_seed(seed) for _ in range(2))

        def predicted(given: FixedModel, piece: TrialBatch) -> Tensor:
            paths = given.paths(piece, seen)
            found = [given.mean_on_paths(piece, paths, n_paths, drawn, hidden)]
            start = paths if given.from_states else None
            for n in () if n_rollouts is None else (0, n_rollouts):
                found.append(given.mean_of_rollouts(piece, start, n, noise, hidden))
            return torch.stack(found, 1)

        return self._in_pieces(batch, predicted).unbind(1)

    @torch.no_grad()
    def marginal_log_likelihood(
        self, batch: TrialBatch, n_samples: int = 32, generator: torch.Generator | None = None
    ) -> Tensor:
        """Importance-weighted lower bound on log p(spikes) of each trial, (B,), less the sum of log(y!)."""

        def bound(given: FixedModel, piece: TrialBatch) -> Tensor:
            paths = given.paths(piece)
            weights = [given.log_weights(paths, generator) for _ in range(n_samples)]
            return torch.logsumexp(torch.stack(weights), 0) - math.log(n_samples)

        return self._in_pieces(batch, bound)

    def _in_pieces(self, batch: TrialBatch, function: Callable[[FixedModel, TrialBatch], Tensor]) -> Tensor:
        """``function`` of some trials at a time, (B, ...), so that memory stays within bounds; in float64 on the CPU."""
        given, home = self._given(), self.readout
        batch = TrialBatch(*(None if x is None else x.cpu() for x in batch))
        width = batch.mask.shape[1] * max(len(self.readout), self.rnn.n_units)
        found = [function(given, batch.take(at)) for at in pieces(len(batch.mask), width)]
        return torch.cat(found).to(home)

    def _given(self) -> FixedModel:
        rnn, rank = self.rnn, self.rank
        m, b, d, n, readout, bias, mean, start, noise = (
            None if x is None else x.detach().double().cpu()
            for x in (
                rnn.m, rnn.b if rnn.n_inputs else None, rnn.d, rnn.n, self.readout, self.bias, self.start_mean,
                self.start_factor, self.noise_factor,
            )
        )  # fmt: skip
        eye = torch.eye(rank, dtype=torch.float64)
        spread = start @ start.T
        least = _LEAST_VARIANCE * spread.diagonal().mean() * eye
        p = Parameters(
            loadings=torch.cat([readout, readout.new_zeros(len(readout), rnn.n_inputs), bias[:, None]], 1),
            log_scale=math.log(self.scale),
            c=eye,
            q=self.alpha * noise @ noise.T + least,
            start_mean=mean,
            start_covariance=spread + least,
        )
        field = Field(activation(rnn.activation), Loadings(m, b, d), n / rnn.n_units, rnn.alpha)
        return FixedModel(field, p, self.rollout_start == "encoder")


def _normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
