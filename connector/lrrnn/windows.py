"""Training on windows of trials that grow: a curriculum for dynamics that a first fit misses.

Over many steps the errors of a poor fit grow until their gradients say nothing of its weights. Over a few steps they say much,
since each window starts from the recorded activity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from connector.types import TrialBatch

LENGTHS = 4, 8, 16, 32, 64, 128  # samples of the windows, one after the other
_GROWING, _COOLING = 0.5, 0.6  # shares of the training after which windows are the longest, and rates begin to fall
_WARM = 0.01  # share of the training in which rates rise
_SHORT = 8  # samples: gradients of longer windows are steeper, and rates fall in proportion


def window_length(progress: float) -> int:
    """Samples of a window after a share ``progress`` of the training."""
    return LENGTHS[min(int(progress / _GROWING * (len(LENGTHS) - 1)), len(LENGTHS) - 1)]


def rate_factor(progress: float) -> float:
    """What the learning rate is multiplied by then."""
    cooled = min(1.0, (1 - progress) / (1 - _COOLING))
    return min(1.0, (progress + 1e-3) / _WARM) * cooled * min(1.0, _SHORT / window_length(progress))


def random_windows(batch: TrialBatch, length: int, generator: torch.Generator) -> TrialBatch:
    """A window of ``length`` samples of each trial, (B, length, ...), anywhere within what was recorded of it.

    A trial with fewer samples is taken whole; its mask says where it ends. No window is longer than the longest trial.
    """
    lengths, length = batch.mask.sum(1), min(length, batch.mask.shape[1])
    span = (lengths - length).clamp_min(0) + 1
    first = torch.rand(len(span), generator=generator, device=generator.device).to(span.device) * span
    index = first.long()[:, None] + torch.arange(length, device=span.device)
    index = index.clamp_max(batch.mask.shape[1] - 1)

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[torch.arange(len(x), device=x.device)[:, None], index]

    return TrialBatch(cut(batch.activity), cut(batch.mask), batch.index, cut(batch.inputs), cut(batch.baseline))
