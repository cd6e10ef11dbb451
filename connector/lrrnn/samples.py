"""Recorded samples of ragged trials as rows, gone through in pieces that fit into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.lrrnn.observation import Observation
from connector.units import RateScale

# Elements of (samples x neurons) handled at once: temporaries stay in the cache and memory stays bounded.
CHUNK_ELEMENTS = 1 << 19
# Most samples, and about how many elements (samples x neurons), for steps that hold all of a subset in memory.
_SUBSET_SAMPLES = 2000
_SUBSET_ELEMENTS = 20_000_000


@dataclass(frozen=True)
class ActivitySamples:
    """Valid samples of ragged trials as rows; ``rows`` index the flattened (trials x time) axis."""

    activity: Tensor  # (trials * time, K)
    inputs: Tensor | None  # (trials * time, U)
    rows: Tensor  # (S,)
    offset: Tensor | None = None  # (trials * time, K), known part of the potential
    scale: RateScale | None = None  # of the K neurons, in whose units of phi the activity is

    @staticmethod
    def of(
        activity: Tensor,
        mask: Tensor,
        inputs: Tensor | None,
        offset: Tensor | None = None,
        scale: RateScale | None = None,
    ) -> ActivitySamples:
        flat, known = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (inputs, offset))
        rows = mask.reshape(-1).nonzero()[:, 0]
        return ActivitySamples(activity.reshape(-1, activity.shape[-1]), flat, rows, known, scale)

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, which: Tensor) -> ActivitySamples:
        return replace(self, rows=self.rows[which])

    def every(self, step: int) -> ActivitySamples:
        """The same samples of every ``step``-th neuron."""
        return replace(
            self,
            activity=self.activity[:, ::step],
            offset=None if self.offset is None else self.offset[:, ::step],
            scale=None if self.scale is None else self.scale.neurons(slice(None, None, step)),
        )

    def newton_terms(
        self, observation: Observation, y: Tensor, h: Tensor, matching: bool = False, neurons: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`Observation.newton_terms` of rows of the activity, of some neurons, each with its weight."""
        score, information, residual = observation.newton_terms(y, h, matching)
        if self.scale is None:
            return score, information, residual
        weight = self._weight(y, neurons)
        return score * weight, information * weight, residual * weight.sqrt()

    def loss(self, observation: Observation, y: Tensor, h: Tensor, neurons: Tensor | None = None) -> Tensor:
        """:meth:`Observation.loss`, each neuron's with its weight."""
        found = observation.loss(y, h)
        return found if self.scale is None else found * self._weight(y, neurons)

    def _weight(self, y: Tensor, neurons: Tensor | None) -> Tensor:
        weight = self.scale.weight.to(y)
        return weight if neurons is None else weight[neurons]

    def design(self, z: Tensor, has_bias: bool) -> Tensor:
        """[z, u, 1] of shape (S, P), the factors of the stacked loadings."""
        return torch.cat([z, *self.offset_columns(z.dtype, has_bias)], dim=1)

    def has_bias(self, theta: Tensor, rank: int) -> bool:
        """Whether stacked loadings (K, P) hold a bias."""
        return theta.shape[1] > rank + (0 if self.inputs is None else self.inputs.shape[1])

    def offset_columns(self, dtype: torch.dtype, has_bias: bool) -> list[Tensor]:
        columns = [] if self.inputs is None else [self.inputs[self.rows].to(dtype)]
        if has_bias:
            columns.append(self.activity.new_ones(len(self), 1, dtype=dtype))
        return columns

    def with_offset(self, h: Tensor, at: slice, neurons: Tensor | None = None) -> Tensor:
        """Potentials h (s, K), of some neurons, of a slice of the rows, with what is known of them added."""
        if self.offset is None:
            return h
        known = self.offset[self.rows[at]]
        return h + (known if neurons is None else known[:, neurons]).to(h.dtype)

    def grid(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Values of the samples (S, ...) laid out as the mask they come from, (trials, time, ...), zero where masked."""
        out = rows.new_zeros(mask.numel(), *rows.shape[1:])
        out[self.rows] = rows
        return out.reshape(*mask.shape, *rows.shape[1:])

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the S rows with their activity; of rows that follow each other a view, which nobody may change."""
        size = max(1, CHUNK_ELEMENTS // self.activity.shape[1])
        for start in range(0, len(self), size):
            at = slice(start, min(start + size, len(self)))
            rows = self.rows[at]
            follow = slice(int(rows[0]), int(rows[0]) + len(rows))
            together = bool((rows.diff() == 1).all())
            yield at, self.activity[follow if together else rows]


def subset_size(samples: ActivitySamples) -> int:
    """Samples on which loadings and latents are first found together and modes of the rates sought."""
    return max(200, min(_SUBSET_SAMPLES, _SUBSET_ELEMENTS // samples.activity.shape[1]))


def outer(x: Tensor) -> Tensor:
    """Products of all pairs of columns, (..., P) -> (..., P * P)."""
    return (x[..., :, None] * x[..., None, :]).flatten(-2)
