"""Latent paths of single trials of spikes where everything else is known: most likely ones, draws with weights, simulations.

Draws come from the Gaussian of the mode and curvature of :mod:`connector.lrrnn.spikes.paths` (Laplace). Weighted by the density of path
and counts over that of the draw they integrate the path out (importance sampling). Of long trials one weight outgrows all others: they serve
likelihoods, while predictions are averages over draws as they are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.lrrnn.spikes.paths import LEAST_RATE, Counts, Parameters, climbed, log_target, newton
from connector.lrrnn.spikes.tridiagonal import Factor
from connector.shooting import Field
from connector.types import TrialBatch

# Of Gauss-Newton, from the rollout to the most likely path: few are needed with much noise of the states, many with little.
_MOST_STEPS = 80
_SETTLED = 0.0001  # nats of a trial that a step gains, below which it is its last
_FAR = 1e6  # times mean and sd of first states: a rollout that goes there is no path to start from


class TrialPaths(NamedTuple):
    """Of some trials: their counts, what is known beside them, the most likely paths (B, time, R), the curvature's factor there."""

    counts: Counts
    p: Parameters
    mode: Tensor
    factor: Factor


class FixedModel(NamedTuple):
    """A model of which all but the paths is known; float64.

    Attributes:
        field: of the drive; p: all else. A batch's baseline is added to the potentials that they give.
        from_states: whether rollouts start from what a trial's spikes say of its first state; else from the mean of first states.
    """

    field: Field
    p: Parameters
    from_states: bool

    def inputs(self, batch: TrialBatch) -> Tensor | None:
        """(B, time, U), zero where there are none; None for a network without."""
        b = self.field.neurons.b
        if b is None:
            return None
        return b.new_zeros(*batch.mask.shape, b.shape[1]) if batch.inputs is None else batch.inputs.double()

    def run(self, batch: TrialBatch, first: Tensor, pushes: Tensor | None = None) -> Tensor:
        """States (B, time, R) from the first (B, R), with pushes (B, time, R) after each sample but the last."""
        z, alpha, u = [first], self.field.alpha, self.inputs(batch)
        for t in range(batch.mask.shape[1] - 1):
            drive = self.field(z[-1], None if u is None else u[:, t]) @ self.p.c
            z.append((1 - alpha) * z[-1] + alpha * drive + (0.0 if pushes is None else pushes[:, t]))
        return torch.stack(z, 1)

    def rollout(self, batch: TrialBatch, paths: TrialPaths | None) -> Tensor:
        """Noise-free states (B, time, R) from where the most likely paths start, from the mean of first states where None."""
        mean = self.p.start_mean.expand(len(batch.mask), -1)
        return self.run(batch, mean if paths is None else paths.mode[:, 0])

    def starts(self, batch: TrialBatch, seen: Tensor | None = None) -> TrialPaths | None:
        """Where rollouts start: the paths given the neurons ``seen``, as in :meth:`paths`; None: from the mean of first states."""
        return self.paths(batch, seen) if self.from_states else None

    def expected(self, batch: TrialBatch, z: Tensor, neurons: Tensor | None = None) -> Tensor:
        """Counts (B, time, K_obs) at states z (B, time, R); ``neurons``: numbers of those that are asked for, None: of all."""
        u, loadings, baseline = self.inputs(batch), self.p.loadings, batch.baseline
        if neurons is not None:
            loadings, baseline = loadings[neurons], None if baseline is None else baseline[..., neurons]
        x = torch.cat([z] if u is None else [z, u], 2) @ loadings[:, :-1].T + loadings[:, -1]
        x = x if baseline is None else x + baseline
        return math.exp(self.p.log_scale) * F.softplus(x).clamp_min(LEAST_RATE)

    def mean_on_paths(
        self,
        batch: TrialBatch,
        paths: TrialPaths,
        n_samples: int,
        generator: torch.Generator | None,
        neurons: Tensor | None = None,
    ) -> Tensor:
        """Counts as :meth:`expected` has them, averaged over paths that are drawn."""
        draws = (self.draw(paths, generator) for _ in range(n_samples))
        return sum(self.expected(batch, z, neurons) for z in draws) / n_samples

    def mean_of_rollouts(
        self,
        batch: TrialBatch,
        paths: TrialPaths | None,
        n_samples: int,
        generator: torch.Generator | None,
        neurons: Tensor | None = None,
    ) -> Tensor:
        """Counts as :meth:`expected` has them, averaged over noisy runs from where paths start, from the first states where None;
        of the noise-free run where ``n_samples`` is 0."""
        if n_samples == 0:
            return self.expected(batch, self.rollout(batch, paths), neurons)
        mean = self.p.start_mean.expand(len(batch.mask), -1)
        spread, noise = (torch.linalg.cholesky(x) for x in (self.p.start_covariance, self.p.q))
        total = 0.0
        for _ in range(n_samples):
            if paths is None:
                first = mean + normal(mean.shape, generator) @ spread.T
            else:
                first = self.draw(paths, generator)[:, 0]
            pushes = normal((*batch.mask.shape, len(noise)), generator) @ noise.T
            total = total + self.expected(batch, self.run(batch, first, pushes), neurons)
        return total / n_samples

    def paths(self, batch: TrialBatch, seen: Tensor | None = None) -> TrialPaths:
        """``seen``: (K_obs,) False for neurons whose spikes do not count; None: all do."""
        seen = torch.ones(batch.activity.shape[2], dtype=torch.bool) if seen is None else seen
        offset = None if batch.baseline is None else batch.baseline[..., seen]
        counts = Counts.of(batch.activity[..., seen], batch.mask, self.inputs(batch), offset)
        p = replace(self.p, loadings=self.p.loadings[seen])
        start = self.run(batch, p.start_mean.expand(len(batch.mask), -1))
        far = _FAR * (p.start_mean.abs() + p.start_covariance.diagonal().sqrt())
        inside = batch.mask[..., None]
        near = ((start.abs() < far) | ~inside).all(2).all(1)  # of dynamics that run away not even a number may be left
        mode = torch.where(inside, torch.where(near[:, None, None], start, p.start_mean), 0.0)
        mode = climbed(counts, self.field, p, mode, _MOST_STEPS, _SETTLED)
        return TrialPaths(counts, p, mode, newton(counts, self.field, p, mode)[1])

    def draw(self, paths: TrialPaths, generator: torch.Generator | None) -> Tensor:
        """Paths (B, time, R)."""
        return paths.mode + paths.factor.backward(self._white(paths, generator))

    def log_weights(self, paths: TrialPaths, generator: torch.Generator | None) -> Tensor:
        """(B,) of a draw: log p(path, spikes), less the sum of log(y!), less the log density of the draw."""
        counts, p, mode, factor = paths
        white = self._white(paths, generator)
        z = mode + factor.backward(white)
        return log_target(counts, self.field, p, z) + 0.5 * white.square().sum((1, 2)) - factor.log_det

    def _white(self, paths: TrialPaths, generator: torch.Generator | None) -> Tensor:
        return normal(paths.mode.shape, generator) * paths.counts.mask[..., None]


def normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
