"""What passes between the parts: recorded activity, latent states, the neurons' loadings. All frozen, all checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from connector.errors import UserError, require
from connector.units import RateScale, Shown

KINDS = ("rates", "spikes")


def require_points(x: object, width: int, what: str, *, ndim: int | None = None) -> None:
    """Raises UserError unless x is a tensor whose last axis has ``width`` entries, with ``ndim`` axes where that is given."""
    shape = f"(number, {width})" if ndim == 2 else f"({width},)" if ndim == 1 else f"(..., {width})"
    got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    fits = isinstance(x, Tensor) and x.ndim >= 1 and x.shape[-1] == width and ndim in (None, x.ndim)
    require(fits, f"{what}, a tensor of shape {shape}", got)


def require_finite_points(x: Tensor, what: str) -> None:
    """Raises UserError where an entry is NaN or infinite."""
    bad = int((~torch.isfinite(x)).sum())
    require(bad == 0, f"{what} that are finite", f"{bad} NaN or infinite entries in a tensor of shape {tuple(x.shape)}")


def require_whole(value: object, at_least: int, what: str) -> None:
    """Raises UserError unless value is a whole number of at least so much."""
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= at_least
    require(fits, f"{what}, a whole number of {at_least} or more", repr(value))


def span(lengths: Tensor | np.ndarray) -> str:
    """The lengths of trials in words: 60, or 16 to 100."""
    low, high = int(lengths.min()), int(lengths.max())
    return str(high) if low == high else f"{low} to {high}"


def valid_mask(lengths: Tensor, n_steps: int) -> Tensor:
    """Boolean mask of the recorded samples of ragged trials, shape (trials, n_steps)."""
    return torch.arange(n_steps, device=lengths.device)[None, :] < lengths[:, None]


def last_states(z: Tensor, lengths: Tensor) -> Tensor:
    """State at the last recorded sample of each trial: z (trials, time, R) -> (trials, R)."""
    return z[torch.arange(len(z)), lengths - 1]


@dataclass(frozen=True)
class Loadings:
    """How each neuron reads the latent state: its potential is ``m.z + b.u + d``.

    Attributes:
        m: (K, R) loading on the latents.
        b: (K, U) input weight, or None without inputs.
        d: (K,) bias, or None without a bias.
    """

    m: Tensor
    b: Tensor | None = None
    d: Tensor | None = None

    def __post_init__(self) -> None:
        require(self.m.ndim == 2, "m of shape (neurons, rank)", tuple(self.m.shape))
        if self.b is not None:
            require(
                self.b.ndim == 2 and self.b.shape[0] == self.m.shape[0],
                f"b of shape ({self.m.shape[0]}, inputs)",
                tuple(self.b.shape),
            )
        if self.d is not None:
            require(self.d.shape == self.m.shape[:1], f"d of shape ({self.m.shape[0]},)", tuple(self.d.shape))

    @property
    def n_neurons(self) -> int:
        return self.m.shape[0]

    @property
    def rank(self) -> int:
        return self.m.shape[1]

    @property
    def n_inputs(self) -> int:
        return 0 if self.b is None else self.b.shape[1]

    @property
    def has_bias(self) -> bool:
        return self.d is not None

    @property
    def layout(self) -> tuple[int, int, bool]:
        """Rank, number of inputs, whether there is a bias: what :meth:`unstack` needs."""
        return self.rank, self.n_inputs, self.has_bias

    def stack(self) -> Tensor:
        """The columns m, b, d side by side (those that exist), shape (K, R + U + 1)."""
        parts = [self.m]
        if self.b is not None:
            parts.append(self.b)
        if self.d is not None:
            parts.append(self.d[:, None])
        return torch.cat(parts, dim=1)

    @staticmethod
    def unstack(stacked: Tensor, rank: int, n_inputs: int = 0, has_bias: bool = False) -> Loadings:
        """The inverse of :meth:`stack`; ``stacked`` has shape (K, rank + n_inputs + has_bias)."""
        width = rank + n_inputs + int(has_bias)
        require(
            stacked.ndim == 2 and stacked.shape[1] == width,
            f"loadings of {width} columns (rank {rank}, inputs {n_inputs}, bias {has_bias})",
            tuple(stacked.shape),
        )
        return Loadings(
            m=stacked[:, :rank],
            b=stacked[:, rank : rank + n_inputs] if n_inputs else None,
            d=stacked[:, -1] if has_bias else None,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Loadings:
        """The same loadings with ``function`` applied to each tensor (a cast, an index, a move)."""
        return Loadings(*(None if x is None else function(x) for x in (self.m, self.b, self.d)))


@dataclass(frozen=True)
class TrainedNetwork:
    """A network trained on a task, dh/dt = -h + W phi(h) + B u + d in units of 1 / tau, and what the trials ask of it.

    Attributes:
        w: (K, K); b: (K, U); d: (K,), float64.
        neurons: (K_obs,) int64, the recorded ones.
        held: (C, U) constant inputs under which it is looked at; visited: (S, K) rates of all its neurons at some samples, from
            the drive of which it is looked at. float64.
        outputs: (trials, time, O) of its linear readout, or None; targets: of the same shape, or None.
        scored: (trials, time, O) bool, where the targets count; or None.
        filters: whether its neurons filter inputs, as in the equation above, or take them at once, as a torch.nn.RNN does.
        noiseless: whether the recorded rates are those that the weights give without noise.
    """

    w: Tensor
    b: Tensor
    d: Tensor
    neurons: Tensor
    held: Tensor
    visited: Tensor
    outputs: Tensor | None = None
    targets: Tensor | None = None
    scored: Tensor | None = None
    filters: bool = True
    noiseless: bool = False

    def trials(self, index: Tensor) -> TrainedNetwork:
        """With outputs and targets of some trials."""
        names = ("outputs", "targets", "scored")
        return replace(self, **{k: getattr(self, k)[index] for k in names if getattr(self, k) is not None})


@dataclass(frozen=True)
class Recording:
    """Activity of a recorded population, trial by trial, with all that is known about it.

    Attributes:
        activity: (trials, time, K_obs) float32; rates in the range of ``activation``, or spike counts per bin.
            With ``scale`` rates in units of phi, as it makes them from the recorded ones.
            Samples at or past a trial's length are zero.
        kind: "rates" or "spikes".
        lengths: (trials,) int64, number of recorded samples of each trial.
        alpha: Euler step in units of the time constant, dt / tau.
        activation: tanh, relu, softplus or sigmoid: the nonlinearity of the neurons.
        inputs: (trials, time, U) external input in force during the step from sample t to t + 1; or None.
        input_names: U names, for axes.
        input_kind: whether ``inputs`` are as they were given, "instant", or as :mod:`connector.data.input_filter` makes them.
        bin_s: seconds between samples; None if alpha is the only unit of time.
        latents: (trials, time, R) true latents, where known.
        loadings: true loadings of the recorded neurons, where known.
        n: (K_obs, R) true output weights, where known.
        choices: (trials,) float, 0 left / 1 right, NaN for no choice; or None.
        evidence: (trials,) float, signed strength of the evidence for right (clicks: log ratio of rates); or None.
        click_difference: (trials,) float, right minus left clicks heard; or None.
        trial_times_s: (trials,) float, start of each trial in the session, seconds; or None.
        baseline_hz: (trials, K_obs) float, firing rate before each trial, Hz; or None.
        stretches: of trials that are pieces of continuous recordings, (trials, 2) int64: which recording, and the piece's
            first sample there; or None. gap: samples there between pieces of training, validation and test, at least.
        neuron_names: K_obs names (with the brain area where known), or empty.
        trained: the network that produced the activity, if it was trained on a task and its weights are known.
        name: its name in titles.
        notes: lines for the session summary (what was dropped and why).
        scale: how recorded rates were brought into units of phi; None: they are unchanged.
        shown: the traces of an indicator, if rates were deconvolved from one (:mod:`connector.data.indicator`); their errors last for several samples.
        out_of_range: what the report says about recorded rates outside the range of ``activation``; empty if there are none.
    """

    activity: Tensor
    kind: str
    lengths: Tensor
    alpha: float
    activation: str
    inputs: Tensor | None = None
    input_names: tuple[str, ...] = ()
    input_kind: str = "instant"
    bin_s: float | None = None
    latents: Tensor | None = None
    loadings: Loadings | None = None
    n: Tensor | None = None
    choices: Tensor | None = None
    evidence: Tensor | None = None
    click_difference: Tensor | None = None
    trial_times_s: Tensor | None = None
    baseline_hz: Tensor | None = None
    stretches: Tensor | None = None
    gap: int = 0
    neuron_names: tuple[str, ...] = ()
    trained: TrainedNetwork | None = None
    name: str = "recording"
    notes: tuple[str, ...] = field(default=())
    scale: RateScale | None = None
    out_of_range: str = ""
    shown: Shown | None = None

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"kind one of {', '.join(KINDS)}", self.kind)
        require(
            self.activity.ndim == 3,
            f"{self.kind} of shape (trials, time, neurons)",
            tuple(self.activity.shape),
        )
        trials, steps, neurons = self.activity.shape
        require(trials > 0 and steps > 1 and neurons > 0, "activity that is not empty", (trials, steps, neurons))
        require(0 < self.alpha <= 1, "alpha = dt / tau in (0, 1]", self.alpha)
        require(
            self.lengths.shape == (trials,),
            f"one length for each of {trials} trials",
            tuple(self.lengths.shape),
        )
        require(
            bool((self.lengths >= 2).all() and (self.lengths <= steps).all()),
            f"trial lengths between 2 and {steps} samples",
            f"{int(self.lengths.min())} to {int(self.lengths.max())}",
        )
        for name in ("inputs", "latents"):
            value = getattr(self, name)
            require(
                value is None or (value.ndim == 3 and value.shape[:2] == (trials, steps)),
                f"{name} of shape ({trials}, {steps}, channels), like the activity",
                None if value is None else tuple(value.shape),
            )
        for name in ("choices", "evidence", "click_difference", "trial_times_s"):
            value = getattr(self, name)
            require(
                value is None or value.shape == (trials,),
                f"{name} with one value for each of {trials} trials",
                None if value is None else tuple(value.shape),
            )
        for name in ("activity", "inputs", "latents"):
            value = getattr(self, name)
            # A finite sum has finite terms: one fast pass, where looking at each takes copies, and double precision ten times as long.
            if value is None or math.isfinite(value.sum()):
                continue
            if not torch.isfinite(value[self.mask]).all():
                bad = int((~torch.isfinite(value[self.mask])).sum())
                raise UserError(
                    f"finite values in {name}",
                    f"{bad} NaN or infinite entries within the trials' lengths",
                    "mend the file, or set `lengths` so that missing samples lie past a trial's end",
                )

    @property
    def n_trials(self) -> int:
        return self.activity.shape[0]

    @property
    def n_steps(self) -> int:
        return self.activity.shape[1]

    @property
    def n_neurons(self) -> int:
        return self.activity.shape[2]

    @property
    def n_inputs(self) -> int:
        return 0 if self.inputs is None else self.inputs.shape[2]

    @property
    def mask(self) -> Tensor:
        """(trials, time) True where a sample was recorded."""
        return valid_mask(self.lengths, self.n_steps)

    def trials(self, index: Tensor) -> Recording:
        """The recording restricted to some trials, in the order given."""
        per_trial = [
            "activity",
            "lengths",
            "inputs",
            "latents",
            "choices",
            "evidence",
            "click_difference",
            "trial_times_s",
            "baseline_hz",
            "stretches",
        ]
        cut = {name: getattr(self, name)[index] for name in per_trial if getattr(self, name) is not None}
        if self.shown is not None:
            cut["shown"] = self.shown.part(index, slice(None))
        return replace(self, trained=None if self.trained is None else self.trained.trials(index), **cut)

    def on_scale(self, scale: RateScale) -> Recording:
        """Recorded rates in units of phi, zero past a trial's end."""
        activity, shown = torch.where(self.mask[..., None], scale.own(self.activity), 0.0), self.shown
        if shown is not None:
            trace = torch.where(self.mask[..., None], scale.own(shown.trace), 0.0)
            shown = Shown(shown.decay, trace, scale.own(shown.start), shown.noise / scale.gain)
        return replace(self, activity=activity, scale=scale, shown=shown)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K neurons; numbers from 0 if they have none."""
        return self.neuron_names or tuple(str(i) for i in range(self.n_neurons))

    def neurons(self, index: Tensor) -> Recording:
        """The recording restricted to some neurons, (n,) int64; they keep their :attr:`names`."""
        return replace(
            self,
            activity=self.activity[:, :, index],
            loadings=None if self.loadings is None else self.loadings.map(lambda x: x[index]),
            n=None if self.n is None else self.n[index],
            baseline_hz=None if self.baseline_hz is None else self.baseline_hz[:, index],
            neuron_names=tuple(self.names[i] for i in index.tolist()),
            scale=None if self.scale is None else self.scale.neurons(index),
            shown=None if self.shown is None else self.shown.part(slice(None), index),
            trained=None if self.trained is None else replace(self.trained, neurons=self.trained.neurons[index]),
        )


class States(NamedTuple):
    """States visited, z (T, R), with the inputs there, u (T, U) or None, and the drive there, y (T, R)."""

    z: Tensor
    u: Tensor | None
    y: Tensor

    def take(self, index: Tensor) -> States:
        return States(*(None if x is None else x[index.to(x.device)] for x in self))

    def spread(self, most: int) -> States:
        """``most`` of them at most, evenly spread."""
        return self.take(torch.linspace(0, len(self.z) - 1, min(most, len(self.z))).long())

    def choice(self, most: int, seed: int) -> States:
        """``most`` of them at random; all, as they are, where there are no more."""
        order = torch.randperm(len(self.z), generator=torch.Generator().manual_seed(seed))
        return self if len(self.z) <= most else self.take(order[:most])

    def double(self) -> States:
        return States(*(None if x is None else x.double() for x in self))


@dataclass(frozen=True)
class Latents:
    """Latent states along the recorded trials, and where the dynamics send them.

    Attributes:
        z: (trials, time, R) latent states; samples past a trial's end are zero.
        lengths: (trials,) int64.
        alpha: Euler step in units of the time constant.
        inputs: (trials, time, U) or None, as the network takes them; input_kind: of :class:`Recording`.
        drive: (trials, time, R) or None: the recurrent drive F(z, u) = (z[t+1] - (1 - alpha) z[t]) / alpha of a
            fitted model at each state, where a model supplies it; None means: take it from successive states.
    """

    z: Tensor
    lengths: Tensor
    alpha: float
    inputs: Tensor | None = None
    drive: Tensor | None = None
    input_kind: str = "instant"

    @classmethod
    def of(cls, recording: Recording, z: Tensor, drive: Tensor | None = None) -> Latents:
        """States z of all trials of a recording, with its inputs in float64."""
        inputs = None if recording.inputs is None else recording.inputs.double()
        return cls(z, recording.lengths, recording.alpha, inputs, drive, recording.input_kind)

    @property
    def rank(self) -> int:
        return self.z.shape[-1]

    @property
    def mask(self) -> Tensor:
        return valid_mask(self.lengths, self.z.shape[1])

    def trials(self, index: Tensor) -> Latents:
        cut = {f.name: getattr(self, f.name)[index] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **cut)

    def samples(self) -> States:
        """Every step that has a successor, trials run together; y = (z[t+1] - (1 - alpha) z[t]) / alpha, or ``drive``
        where given."""
        steps = self.z.shape[1]
        keep = valid_mask(self.lengths - 1, steps - 1)
        z = self.z[:, :-1]
        if self.drive is None:
            y = (self.z[:, 1:] - (1 - self.alpha) * z) / self.alpha
        else:
            y = self.drive[:, :-1]
        u = None if self.inputs is None else self.inputs[:, :-1][keep]
        return States(z[keep], u, y[keep])


@dataclass(frozen=True)
class DataSizes:
    """The sizes and constants that models need from data: small enough to stand in every checkpoint."""

    n_neurons: int
    rank: int
    n_inputs: int
    has_bias: bool
    alpha: float
    activation: str
    kind: str
    n_steps: int


class TrialBatch(NamedTuple):
    """Some trials of a recording, ready for a loss.

    Attributes:
        activity: (B, time, K_obs) rates or spike counts; zero past a trial's length.
        mask: (B, time) True where a sample was recorded.
        index: (B,) int64, the trials' numbers in the recording.
        inputs: (B, time, U) or None.
        baseline: (B, time, K_obs) or None: for spikes, what drift across the session and the course within a trial
            add to the argument of the softplus.
    """

    activity: Tensor
    mask: Tensor
    index: Tensor
    inputs: Tensor | None = None
    baseline: Tensor | None = None

    @classmethod
    def of(cls, recording: Recording, index: Tensor | None = None, baseline: Tensor | None = None) -> TrialBatch:
        """Trials ``index`` (B,) of a recording, all by default, with their part of a baseline (trials, time, K_obs)."""
        index = torch.arange(recording.n_trials) if index is None else torch.as_tensor(index, dtype=torch.int64)
        whole = (recording.activity, recording.mask, torch.arange(recording.n_trials), recording.inputs, baseline)
        return cls(*whole).take(index)

    def take(self, index: Tensor | slice) -> TrialBatch:
        """Some trials of the batch."""
        return TrialBatch(*(None if x is None else x[index] for x in self))
