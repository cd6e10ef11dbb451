"""Rates behind a slow indicator: c[t] = k c[t-1] + (1 - k) r[t] with k = exp(-dt / decay), and noise on c.

The inverse, r[t] = (c[t] - k c[t-1]) / (1 - k), is exact, and makes noise larger by about 1.4 / (1 - k). So what neurons have in
common is deconvolved, in the principal components that stand out of the noise, each by penalised least squares: the smoothest
path, in its first or second differences, whose indicator passes through the trace. Which differences, and how smooth, is
decided by the restricted likelihood. Without noise that comes to the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from connector.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from connector.types import Recording

_ORDERS = (1, 2)
_PENALTIES = (-10.0, 8.0, 73)  # powers of ten that are tried, the first and the last, and how many
_MOST_STEPS = 2000  # of a trial: beyond, it is cut into pieces
_MOST_LENGTHS = 8  # different lengths of training trials by which penalties are chosen
_MOST_COMPONENTS = 60
_STANDS_OUT = 1.05  # times the largest variance that noise alone gives a component
_LEAST_NOISE = 1e-6  # standard deviation of noise over that of the trace


def with_indicator(rates: Tensor, decay: float) -> Tensor:
    """What an indicator shows of rates (..., time, K) that were constant before.

    Args:
        decay: k, the factor by which the indicator falls in a sample.
    """
    import torch

    shown = [rates[..., 0, :]]
    for t in range(1, rates.shape[-2]):
        shown.append(decay * shown[-1] + (1 - decay) * rates[..., t, :])
    return torch.stack(shown, -2)


def without_indicator(recording: Recording, decay_s: float, train: Tensor) -> Recording:
    """The recording with rates in place of what an indicator shows of them; each trial begins a sample later.

    The first sample holds what was before the trial, and so says nothing of the rate.

    Args:
        recording: of kind rates, with ``bin_s``; decay_s: time constant of the indicator, seconds.
        train: (n,) int64, trials from which components and penalties are taken.

    Raises:
        UserError: spikes; time without a unit; trials that are too short or too long.
    """
    import torch

    from connector.units import Shown

    if recording.kind != "rates" or recording.bin_s is None:
        got = recording.kind if recording.kind != "rates" else "rates without a time between samples, data.bin_s"
        raise UserError("rates with data.bin_s, for data.indicator_decay_s", got)
    shortest = int(recording.lengths.min())
    if shortest < 4 or recording.n_steps > _MOST_STEPS:
        got = f"{shortest} to {recording.n_steps}"
        raise UserError(
            f"trials of 4 to {_MOST_STEPS} samples for data.indicator_decay_s", got, "data.piece_s cuts them"
        )
    longest = recording.n_steps * recording.bin_s
    if decay_s > longest:
        raise UserError(
            f"a decay within the trials of {longest:g} s", f"{decay_s:g} s", "give data.indicator_decay_s in seconds"
        )
    decay, y = math.exp(-recording.bin_s / decay_s), recording.activity.double()
    mean, sd, axes = _components(y[train], recording.mask[train])
    scores = ((y - mean) / sd) @ axes
    chosen = _smoothness(scores[train], recording.lengths[train], decay)
    found = torch.zeros_like(scores[:, 1:])
    for length, some in _by_length(recording.lengths):
        for order in _ORDERS:
            columns = (chosen[0] == order).nonzero()[:, 0]
            inverse, values, vectors = _penalty(length, decay, order)
            shrunk = torch.einsum("ts,btq->bsq", vectors, scores[some, :length][:, :, columns])
            shrunk = shrunk / (1 + values[:, None] * chosen[1][columns])
            found[some[:, None], : length - 1, columns] = torch.einsum("rt,ts,bsq->bqr", inverse, vectors, shrunk)
    rates = torch.where(recording.mask[:, 1:, None], mean + sd * (found @ axes.T), 0.0)
    cut = {x: getattr(recording, x)[:, 1:] for x in ("inputs", "latents") if getattr(recording, x) is not None}
    if recording.stretches is not None:
        cut["stretches"] = recording.stretches + torch.tensor([0, 1])
    note = (
        f"rates deconvolved from an indicator that decays in {decay_s:g} s, in {axes.shape[1]} components that the "
        "neurons share; each trial begins one sample later"
    )
    shown = Shown(decay, y[:, 1:], _starts(y, rates, recording.mask, decay), sd)
    rates, notes = rates.to(recording.activity), (*recording.notes, note)
    return replace(recording, activity=rates, lengths=recording.lengths - 1, notes=notes, shown=shown, **cut)


def _starts(y: Tensor, rates: Tensor, mask: Tensor, decay: float) -> Tensor:
    """What is shown at the first of the samples y (trials, time, K), by least squares from those that follow: (trials, K)."""
    import torch

    nothing = torch.zeros_like(y[:, :1])
    left = (y - with_indicator(torch.cat([nothing, rates], 1), decay)) * mask[..., None]
    falls = decay ** torch.arange(y.shape[1], dtype=y.dtype) * mask
    return torch.einsum("btk,bt->bk", left, falls) / falls.square().sum(1, keepdim=True)


def _components(y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (K,), standard deviation of noise (K,) and principal components (K, q) of traces (trials, time, K) in its units."""
    import torch

    seen = y[mask]
    rough = y[:, 3:] - 3 * y[:, 2:-1] + 3 * y[:, 1:-2] - y[:, :-3]
    noise = (rough[mask[:, 3:]].square().mean(0) / 20).sqrt()
    mean, sd = seen.mean(0), torch.maximum(noise, _LEAST_NOISE * seen.std(0)).clamp_min(1e-300)
    flat = (seen - mean) / sd
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    edge = (1 + (flat.shape[1] / len(flat)) ** 0.5) ** 2
    q = int((values > _STANDS_OUT * edge).sum())
    return mean, sd, vectors.flip(1)[:, : min(max(q, 1), _MOST_COMPONENTS)]


def _by_length(lengths: Tensor) -> Iterator[tuple[int, Tensor]]:
    for length in lengths.unique().tolist():
        yield length, (lengths == length).nonzero()[:, 0]


def _penalty(n_steps: int, decay: float, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of an indicator (T - 1, T), and eigenvalues (T,) and vectors of the squared differences of what it gives."""
    import torch

    at = torch.arange(n_steps - 1)
    inverse = torch.zeros(n_steps - 1, n_steps, dtype=torch.float64)
    inverse[at, at + 1], inverse[at, at] = 1 / (1 - decay), -decay / (1 - decay)
    rough = inverse.diff(n=order, dim=0)
    values, vectors = torch.linalg.eigh(rough.T @ rough)
    values[: order + 1] = 0  # what has no such differences, and the state before the trial
    return inverse, values.clamp_min(0), vectors


def _smoothness(scores: Tensor, lengths: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Order (q,) of the differences that are penalised and penalty (q,) of each component of (trials, time, q), by restricted
    likelihood; the scores' noise has variance 1."""
    import torch

    penalties = torch.logspace(*_PENALTIES, dtype=torch.float64)
    groups = sorted(_by_length(lengths), key=lambda group: -len(group[1]))[:_MOST_LENGTHS]
    surprise = torch.zeros(len(_ORDERS), len(penalties), scores.shape[2], dtype=torch.float64)
    for length, some in groups:
        for i, order in enumerate(_ORDERS):
            _, values, vectors = _penalty(length, decay, order)
            power = torch.einsum("ts,btq->bsq", vectors, scores[some, :length]).square().sum(0)
            free, loads = power[: order + 1] / len(some), penalties[:, None] * values[order + 1 :]
            surprise[i] += (loads / (1 + loads)) @ power[order + 1 :]
            # What is not penalised has a prior as wide as it was found.
            surprise[i] += len(some) * (torch.log1p(1 / loads).sum(1)[:, None] + torch.log1p(free).sum(0))
    best = surprise.flatten(0, 1).argmin(0)
    return torch.tensor(_ORDERS)[best // len(penalties)], penalties[best % len(penalties)]
