"""Where the training of a spike model starts: readout, effect of the inputs and first states, from training trials."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.lrrnn.module import LowRankRNN
from connector.numerics import gaussian_window
from connector.types import Recording


@dataclass(frozen=True)
class InputStart:
    """readout: (K, R); first: (conditions or trials, R) states at the first sample; effect: (R, U) of a unit of input."""

    readout: Tensor
    first: Tensor
    effect: Tensor


@dataclass(frozen=True)
class TrialStart:
    """Principal axes of smoothed trials, evident = centre + axes * size @ state.

    Attributes:
        axes: (K, R); size: (R,); centre: (K,).
        first: (trials, R) states at the first sample.
        states, moved: (N, R) states that have a successor, and the way there.
    """

    axes: Tensor
    size: Tensor
    centre: Tensor
    first: Tensor
    states: Tensor
    moved: Tensor

    @property
    def readout(self) -> Tensor:
        return self.axes * self.size


def from_inputs(part: Recording, evident: Tensor, rank: int) -> InputStart:
    """Readout along what conditions or inputs explain; the inputs' effect by regression of single trials.

    Args:
        part: the training trials; evident: (trials, time, K) what is left of their counts to be explained.
    """
    mask, conditions = part.mask, _conditions(part)
    inputs = part.inputs.double() * mask[..., None]
    total = _accumulated(inputs, 0.0)
    if conditions is not None:
        member = F.one_hot(conditions).double().T  # (conditions, trials)
        trials = member @ mask.double()
        mean = torch.einsum("cn,ntk->ctk", member, evident) / trials.clamp_min(1)[..., None]
        explained, weight = smoothed(mean, trials, sd=8.0)
    else:  # what leaky sums of the inputs, of three time constants, predict linearly
        sums = torch.cat([total] + [_accumulated(inputs, k) for k in (0.03, 0.1)], -1)
        explained, weight = sums @ _regress(sums, evident, mask), mask.double()
    enough = weight > 0.2 * weight.max()
    flat = (explained * weight.sqrt()[..., None])[enough]
    axes = torch.linalg.svd(flat.T @ flat)[2][:rank].T
    scores = explained @ axes
    size = scores[enough].std(0) / 0.7
    size = torch.maximum(size, 0.05 * size.max()).clamp_min(1e-6)
    effect = _regress(total, evident @ axes / size, mask).T
    return InputStart(axes * size, scores[:, 0] / size, effect)


def from_trials(evident: Tensor, mask: Tensor, rank: int, sd: float) -> TrialStart:
    """Readout along the principal axes of trials smoothed by a Gaussian of ``sd`` samples; evident: (trials, time, K)."""
    smooth, _ = smoothed(evident, mask.double(), sd)
    flat = smooth[mask]
    centre = flat.mean(0)
    _, _, vh = torch.linalg.svd((flat - centre).T @ (flat - centre))
    axes = vh[:rank].T
    size = ((flat - centre) @ axes).std(0).clamp_min(1e-6)
    scores = (smooth - centre) @ axes / size
    following = mask[:, 1:]
    moved = (scores[:, 1:] - scores[:, :-1])[following]
    return TrialStart(axes, size, centre, scores[:, 0], scores[:, :-1][following], moved)


def set_units(rnn: LowRankRNN, gain: Tensor | None, seed: int) -> None:
    """Random features m, d; b = m B for ``gain`` B (R, U) or small; n by ridge, so that F(z, u) is near z + B u."""
    generator = torch.Generator().manual_seed(seed)
    units, rank = rnn.n_units, rnn.rank
    m = torch.randn(units, rank, generator=generator, dtype=torch.float64)
    d = 0.5 * torch.randn(units, generator=generator, dtype=torch.float64)
    rnn.m.copy_(m)
    rnn.d.copy_(d)
    if rnn.n_inputs:
        random = 0.1 * torch.randn(units, rnn.n_inputs, generator=generator, dtype=torch.float64)
        rnn.b.copy_(random if gain is None else m @ gain)
    z = 1.5 * torch.randn(2000, rank, generator=generator, dtype=torch.float64)
    set_output_weights(rnn, z, z, 1e-6)


def set_output_weights(rnn: LowRankRNN, z: Tensor, target: Tensor, penalty: float) -> None:
    """n by ridge, so that F(z, 0) is near ``target`` (N, R); penalty per data point."""
    x = rnn.network().double().rates(z) / rnn.n_units
    gram = x.T @ x / len(x) + penalty * torch.eye(rnn.n_units, dtype=torch.float64)
    rnn.n.copy_(torch.linalg.solve(gram, x.T @ target / len(x)))


def block_sd(x: Tensor, mask: Tensor, window: int) -> Tensor:
    """Standard deviation (C,) of the sums of x (B, time, C) over blocks of ``window`` samples, of blocks all recorded."""
    whole = _block_sums(mask[..., None].long(), window)[..., 0] == window
    return _block_sums(x, window)[whole].std(0)


def _block_sums(x: Tensor, window: int) -> Tensor:
    """Sums of ``window`` successive samples, (B, time // window, C); an incomplete last block is dropped."""
    steps = x.shape[1] // window * window
    return x[:, :steps].unflatten(1, (-1, window)).sum(2)


def smoothed(x: Tensor, weight: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    """Gaussian smoothing along time with weights (0 = missing): x (B, time, K), weight (B, time); sd in samples."""
    window = gaussian_window(x.shape[1], sd)
    total = weight @ window
    smooth = torch.einsum("st,btk->bsk", window, x * weight[..., None])
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
