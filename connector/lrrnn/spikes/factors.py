"""Counts without dynamics: in each block of bins every neuron fires as a softplus of R latent factors says,

    counts ~ Poisson(count_scale * bins * softplus(m.x + b.u + d + baseline)),    x ~ N(0, 1).

Factors and loadings are fitted in turn, each by Fisher scoring. Held out are blocks of other trials: their factors are read from
half of the neurons, and the counts of the other half are predicted from them. So a factor too many fits noise and predicts worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.lrrnn.spikes.baselines import Baseline, poisson_regression
from connector.numerics import least_squares, random_rows
from connector.types import Recording

_ROUNDS, _STEPS = 12, 4  # of factors and loadings in turn; of Fisher scoring in each
_LOADINGS, _KNOWN = 0.1, 0.01  # precision of the loadings' prior, and of what is known
_RAREST = 1e-9  # expected counts whose logarithm is taken


@dataclass(frozen=True)
class CountBlocks:
    """Counts of blocks of successive bins within trials.

    Attributes:
        counts: (S, K) float64; scale: expected count where softplus is 1.
        known: (S, U + 1) mean input of each block, and 1; offset: (S, K) mean baseline.
        trial: (S,) int64.
    """

    counts: Tensor
    known: Tensor
    offset: Tensor
    trial: Tensor
    scale: float

    @classmethod
    def of(cls, recording: Recording, baseline: Baseline, width: int) -> CountBlocks:
        """Blocks of ``width`` bins that were recorded whole."""
        whole = _sums(recording.mask.long()[..., None], width)[..., 0] == width
        counts = _sums(recording.activity.double(), width)[whole]
        known = torch.ones(len(counts), 1, dtype=torch.float64)
        if recording.inputs is not None:
            known = torch.cat([_sums(recording.inputs.double(), width)[whole] / width, known], 1)
        offset = torch.zeros_like(counts)
        if baseline.argument is not None:
            offset = _sums(baseline.argument.double().expand_as(recording.activity), width)[whole] / width
        trial = torch.arange(recording.n_trials)[:, None].expand_as(whole)[whole]
        return cls(counts, known, offset, trial, baseline.scale * width)

    def take(self, trials: Tensor, most: int) -> CountBlocks:
        """Those of some trials, at most so many."""
        rows = torch.isin(self.trial, trials).nonzero()[:, 0]
        rows = rows[random_rows(len(rows), most)]
        return CountBlocks(self.counts[rows], self.known[rows], self.offset[rows], self.trial[rows], self.scale)

    def neurons(self, which: Tensor) -> CountBlocks:
        """The counts of some neurons."""
        return CountBlocks(self.counts[:, which], self.known, self.offset[:, which], self.trial, self.scale)


def _sums(x: Tensor, width: int) -> Tensor:
    """Of x (trials, time, C) over blocks: (trials, time // width, C)."""
    return x[:, : x.shape[1] // width * width].unflatten(1, (-1, width)).sum(2)


def fit_factors(blocks: CountBlocks, rank: int) -> Tensor:
    """Loadings theta (K, R + U + 1), of factors and of what is known; rank 0: of what is known alone."""
    y, known, more = blocks.counts, blocks.known, {"offset": blocks.offset, "scale": blocks.scale}
    theta = poisson_regression(known, y, penalty=_KNOWN, **more).coefficients
    if not rank:
        return theta
    mean = blocks.scale * F.softplus(known @ theta.T + blocks.offset)
    left = (y - mean) / mean.clamp_min(_RAREST).sqrt()
    x = left @ torch.linalg.eigh(left.T @ left).eigenvectors[:, -rank:]
    theta = torch.cat([theta.new_zeros(len(theta), rank), theta], 1)
    penalty = torch.tensor([_LOADINGS] * rank + [_KNOWN] * known.shape[1], dtype=torch.float64)
    for _ in range(_ROUNDS):
        x = x - known @ least_squares(known, x)
        x = x / x.square().mean(0).sqrt().clamp_min(1e-12)
        design = torch.cat([x, known], 1)
        theta = poisson_regression(design, y, penalty=penalty, start=theta, max_steps=_STEPS, **more).coefficients
        x = factors_of(blocks, theta, x, _STEPS)
    return theta


def factors_of(blocks: CountBlocks, theta: Tensor, start: Tensor | None = None, steps: int = 30) -> Tensor:
    """(S, R) the most probable factors of each block."""
    rank = theta.shape[1] - blocks.known.shape[1]
    offset = blocks.offset + blocks.known @ theta[:, rank:].T
    more = {"offset": offset.T, "scale": blocks.scale, "start": start, "max_steps": steps}
    return poisson_regression(theta[:, :rank], blocks.counts.T, penalty=1.0, **more).coefficients


def held_out_loss(blocks: CountBlocks, theta: Tensor) -> Tensor:
    """(S,) nats: negative log-likelihood of each half of the neurons given the other, without terms of the counts alone."""
    half, rank = torch.arange(len(theta)) % 2 == 0, theta.shape[1] - blocks.known.shape[1]
    loss = torch.zeros(len(blocks.counts), dtype=torch.float64)
    for seen in (half, ~half):
        x = factors_of(blocks.neurons(seen), theta[seen]) if rank else blocks.known[:, :0]
        other, of_other = blocks.neurons(~seen), theta[~seen]
        mean = other.scale * F.softplus(torch.cat([x, other.known], 1) @ of_other.T + other.offset)
        loss += (mean - other.counts * mean.clamp_min(_RAREST).log()).sum(1)
    return loss
