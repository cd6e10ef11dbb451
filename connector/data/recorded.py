"""From arrays of a file to a Recording: what the arrays have to be, and what of them lies past a trial's end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.preprocessing import choices_from, recorded_lengths, usable_times
from connector.errors import UserError
from connector.report.numbers import counted

if TYPE_CHECKING:
    from torch import Tensor

    from connector.types import Recording

_FARTHEST = 1e15  # rates are no larger, and the largest no smaller than its inverse
_LEAST_SHARE = 1e-5  # of the size of a number: single precision has 6e-8
_LEAST_SPAN = 1e-9  # of the activation's range: beyond single precision


def recording_of(
    arrays: RecordedArrays, options: Any, bin_s: float | None, name: str, input_names: tuple[str, ...] = (), **more: Any
) -> Recording:
    """The Recording of such arrays, without a known truth.

    Args:
        options: with activation, alpha, tau, range_tolerance, choice_values. bin_s: seconds between samples, or None.
        input_names: of the inputs; none: numbers. more: further attributes of the Recording.

    Raises:
        UserError: activity that is not finite, or never varies; arrays of other shapes.
    """
    from connector.dynamics import activation as activation_named
    from connector.types import Recording

    kind = arrays.kind
    activation = options.activation or ("tanh" if kind == "rates" else "softplus")
    activation_named(activation)
    found = arrays.check_activity(activation, options.range_tolerance)
    inputs = arrays.per_step("externalinputs")
    if inputs is not None:
        _require_resolved(inputs[arrays.keep], "externalinputs", "subtract their means, or leave them out")
    arrays.compare_potentials(activation)
    if inputs is not None and not np.any(inputs):
        if inputs.shape[2]:
            arrays.notes.append("externalinputs are zero throughout: treated as absent")
        inputs = None
    alpha = (0.1 if bin_s is None else bin_s / options.tau) if options.alpha is None else options.alpha
    names = () if inputs is None else input_names or tuple(f"input {i + 1}" for i in range(inputs.shape[2]))
    return Recording(
        activity=tensor(arrays.activity, np.float32),
        kind=kind,
        lengths=tensor(arrays.lengths),
        alpha=float(alpha),
        activation=activation,
        inputs=tensor(inputs, np.float32),
        input_names=names,
        bin_s=bin_s,
        choices=tensor(arrays.choices(options.choice_values)),
        trial_times_s=tensor(arrays.trial_times()),
        name=name,
        notes=tuple(arrays.notes),
        out_of_range=found,
        **more,
    )


def tensor(value: np.ndarray | None, *dtype: type) -> Tensor | None:
    """As a tensor, of the type given; None stays None."""
    from torch import from_numpy

    return None if value is None else from_numpy(value.astype(*dtype, copy=False) if dtype else value)


class RecordedArrays:
    """Arrays that have a meaning here, by the keys of an npz, checked, and notes on what was made of them.

    Args:
        values: ``rates`` or ``spikes`` (trials, time, K), ``externalinputs`` (trials, time, U), ``lengths``, ``choices``, ``times``
            (trials,), ``potentials``, ``latents``; they may be changed. notes: lines that are added to. activation: of the options.

    Attributes:
        kind: rates or spikes; activity: (trials, time, K), zero past a trial's end.
        lengths: (trials,) int64; keep: (trials, time), the samples recorded.
    """

    def __init__(self, values: dict[str, np.ndarray], notes: list[str], activation: str | None = None):
        self.values, self.notes = values, notes
        self.kind = "rates" if "rates" in values else "spikes"
        self.activity = self.numbers(self.kind, ("trials", "time", "neurons"))
        if 0 in self.activity.shape:
            raise UserError(f"{self.kind} that are not empty", f"shape {self.activity.shape}")
        self.lengths = self._lengths(activation)
        self.keep = np.arange(self.activity.shape[1])[None, :] < self.lengths[:, None]
        if not self.keep.all():
            self.activity[~self.keep] = 0

    def _real(self, key: str) -> np.ndarray | None:
        value = self.values.get(key)
        if value is not None and value.dtype.kind not in "biuf":
            raise UserError(f"{key} as real numbers", f"{value.dtype}")
        return value

    def numbers(self, key: str, axes: tuple[str, ...]) -> np.ndarray | None:
        """An array with the axes given as float64 (float32 stays float32), or None."""
        value = self._real(key)
        if value is None:
            return None
        if value.ndim != len(axes):
            remedy = "for a single trial save it as x[None]" if value.ndim == 2 and len(axes) == 3 else ""
            raise UserError(f"{key} with the axes ({', '.join(axes)})", f"shape {value.shape}", remedy)
        return value.astype(np.float32 if value.dtype == np.float32 else np.float64, copy=False)

    def per_trial(self, key: str, *, text: bool = False) -> np.ndarray | None:
        """(trials,) float64; ``text``: or texts."""
        value, trials = self.values.get(key), len(self.activity)
        of_text = text and value is not None and value.dtype.kind in "SU"
        if value is None or (not of_text and self._real(key) is None):
            return None
        if value.size != trials or value.ndim > 2:
            raise UserError(f"{key} with one value for each of {trials} trials", f"shape {value.shape}")
        return value.reshape(trials) if of_text else value.reshape(trials).astype(np.float64)

    def per_step(self, key: str) -> np.ndarray | None:
        """(trials, time, channels), zero past a trial's end."""
        value, shape = self.numbers(key, ("trials", "time", "channels")), self.activity.shape[:2]
        if value is not None:
            if value.shape[:2] != shape:
                raise UserError(f"{key} of shape {(*shape, value.shape[2])}, like {self.kind}", str(value.shape))
            value[~self.keep] = 0
        return value

    def _lengths(self, activation: str | None) -> np.ndarray:
        trials, steps, _ = self.activity.shape
        if steps < 2:
            remedy = "the axes are (trials, time, neurons): successive samples of one trial belong together, as in x.reshape(n, T, K)"
            raise UserError(f"{self.kind} with at least 2 samples in a trial", f"1 in each of {trials}", remedy)
        lengths = self.per_trial("lengths")
        if lengths is not None:
            if not np.array_equal(lengths, np.round(lengths)) or lengths.min() < 2 or lengths.max() > steps:
                raise UserError(
                    f"lengths as whole numbers from 2 to {steps}", f"values from {lengths.min():g} to {lengths.max():g}"
                )
            return lengths.astype(np.int64)
        recorded = np.ones((trials, steps), dtype=bool)
        recorded[np.isnan(self.activity[:, :, 0])] = False  # only where the first neuron is NaN can all be
        recorded[~recorded] = ~np.isnan(self.activity[~recorded]).all(axis=1)
        lengths = steps - np.argmax(recorded[:, ::-1], axis=1)
        lengths[~recorded.any(axis=1)] = 0
        if lengths.min() < 2:
            raise UserError(
                f"{self.kind} with at least 2 samples in every trial",
                f"{int((lengths < 2).sum())} trials of NaN only (or with one other sample)",
                "leave those trials out (data=arrays does, by data.trials)",
            )
        if lengths.min() < steps:
            self.notes.append(
                f"lengths inferred from NaN at the trials' ends: {lengths.min()} to {lengths.max()} samples"
            )
        return self._without_padding(lengths.astype(np.int64), activation)

    def _without_padding(self, lengths: np.ndarray, activation: str | None) -> np.ndarray:
        """Lengths less the samples at a trial's end in which every neuron is zero, where that cannot be activity."""
        inside = np.arange(self.activity.shape[1])[None, :] < lengths[:, None]
        if self.kind == "spikes":
            recorded = recorded_lengths(np.where(inside, np.nan_to_num(self.activity).sum(2), 0), lengths)
        else:
            recorded = recorded_lengths((inside & (self.activity != 0).any(2)) * 1.0, lengths, sure=2)
        padded = recorded < lengths
        if not padded.any():
            return self._without_repeated(lengths) if self.kind == "rates" else lengths
        if (recorded < 2).any():
            raise UserError(
                f"{self.kind} in every trial",
                f"{int((recorded < 2).sum())} trials of zeros throughout",
                "leave trials out that were not recorded; give `lengths` if they were",
            )
        said = f"every neuron is zero at the end of {int(padded.sum())} trials"
        if self.kind == "rates" and activation == "relu":
            self.notes.append(f"{said}: taken as activity; give `lengths` if it is padding")
            return lengths
        self.notes.append(
            f"{said}: taken as padding, {recorded.min()} to {recorded.max()} samples; give `lengths` if not"
        )
        return recorded

    def _without_repeated(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths less the samples at a trial's end in which every neuron stays the same to the last digit."""
        moved, driven = _changes(self.activity), self.values.get("externalinputs")
        if driven is not None and driven.ndim == 3 and driven.shape[:2] == moved.shape:
            moved |= _changes(driven)
        inside = np.arange(moved.shape[1])[None, :] < lengths[:, None]
        recorded = recorded_lengths((inside & moved) * 1.0, lengths, sure=2)
        ends = self.activity[np.arange(len(lengths)), recorded - 1]
        filled = (np.ptp(ends, axis=1) == 0) & (ends.shape[1] > 1)  # by one value of all neurons, not by their last
        recorded = np.where(recorded == 1, lengths, recorded - (filled & (recorded < lengths)))
        repeated = recorded < lengths
        if not repeated.any() or (recorded < 2).any():
            return lengths
        self.notes.append(
            f"every neuron stays the same at the end of {counted(int(repeated.sum()), 'trial')}: taken as padding, {recorded.min()} to "
            f"{recorded.max()} samples; give `lengths` if not"
        )
        return recorded

    def check_activity(self, activation: str, tolerance: float) -> str:
        """Refuses activity that is not finite, or never varies. What is said of rates that do not go with the activation."""
        kind = self.kind
        values = self.activity.reshape(-1, self.activity.shape[2]) if self.keep.all() else self.activity[self.keep]
        low, high = values.min(axis=0), values.max(axis=0)  # NaN and infinities reach one of them
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad = ~np.isfinite(values)
            where = bad.any(0).nonzero()[0]
            of = (
                f", in neurons {', '.join(map(str, where))} alone (counted from 0)"
                if 2 * len(where) <= min(20, bad.shape[1])
                else ""
            )
            raise UserError(
                f"finite {kind}",
                f"{int(bad.sum())} NaN or infinite entries within the trials' lengths{of}",
                "leave out these neurons (data=arrays does, by data.neurons), or mend the file"
                if of
                else "mend the file, or give `lengths` so that missing samples lie past a trial's end",
            )
        if np.array_equal(low, high):
            raise UserError(f"{kind} that vary", "activity that never varies", "check what was saved under this key")
        if kind == "spikes":
            _check_counts(values, low)
            return ""
        return out_of_range(values, activation, tolerance)

    def choices(self, coded: list[Any] | None) -> np.ndarray | None:
        """0 left, 1 right, NaN none."""
        choices = self.per_trial("choices", text=True)
        return None if choices is None else choices_from(choices, coded, "`choices`")

    def trial_times(self) -> np.ndarray | None:
        value, (trials, steps, _) = self.values.get("times"), self.activity.shape
        if value is None or value.size == trials:
            return usable_times(self.per_trial("times"), "times", self.notes)
        if value.size == steps:
            self.notes.append("times has one value per sample, not per trial: not used")
            return None
        raise UserError(f"times with one value for each of {trials} trials", f"shape {value.shape}")

    def compare_potentials(self, activation: str) -> None:
        """Potentials are not fitted; they tell whether the activation declared is the one the rates were made with."""
        import torch

        from connector.dynamics import activation as activation_named

        potentials = self.per_step("potentials")
        if potentials is None or self.kind != "rates":
            return
        if potentials.shape != self.activity.shape:
            raise UserError(f"potentials of the shape of rates, {self.activity.shape}", str(potentials.shape))
        implied = activation_named(activation)(torch.from_numpy(potentials[self.keep]).double()).numpy()
        explained = np.corrcoef(implied.ravel(), self.activity[self.keep].ravel())[0, 1]
        if not explained > 0.5:
            self.notes.append(
                f"rates and {activation}(potentials) correlate by {explained:.2f} only: check data.activation"
            )


def _require_resolved(values: np.ndarray, what: str, remedy: str) -> None:
    """Refuses columns (samples, K) that vary by so little of their size that single precision would lose it."""
    size = np.abs(values).max(axis=0)
    share = np.ptp(values, axis=0)[size > 0] / size[size > 0]
    lost = (share > 1e-12) & (share < _LEAST_SHARE)  # below is rounding
    if 2 * int(lost.sum()) > (len(lost) if what == "rates" else 0):
        raise UserError(
            f"{what} that vary by {_LEAST_SHARE:g} of their size or more", f"{share[lost].min():.2g}", remedy
        )


def _changes(x: np.ndarray) -> np.ndarray:
    """(trials, time) whether any channel of x (trials, time, channels) is another than a sample before; the first is."""
    changed = (x[:, 1:] != x[:, :-1]).any(2)
    return np.concatenate([np.ones_like(changed[:, :1]), changed], axis=1)


def _check_counts(values: np.ndarray, low: np.ndarray) -> None:
    if low.min() < 0:
        raise UserError("spike counts of 0 or more", f"a smallest value of {low.min():g}")
    if not np.array_equal(values, np.round(values)):
        remedy = "save firing rates under the key `rates`, counts before smoothing under `spikes`"
        raise UserError("spike counts per bin, whole numbers", "fractions", remedy)


def out_of_range(values: np.ndarray, activation: str, tolerance: float) -> str:
    """What is said of rates (samples, K) that do not go with the range of the activation; empty where they do."""
    import torch

    from connector.data.preprocessing import goes_with, range_excess
    from connector.dynamics import activation as activation_named

    rates, phi = torch.from_numpy(values), activation_named(activation)
    largest = float(np.abs(values).max())
    if not 1 / _FARTHEST < largest < _FARTHEST:  # whose squares single precision does not hold
        raise UserError(
            f"rates from {1 / _FARTHEST:g} to {_FARTHEST:g}", f"a largest of {largest:.2g}", "rescale the rates"
        )
    _require_resolved(values, "rates", "subtract what they have in common, or check what was saved under this key")
    if np.ptp(values) < _LEAST_SPAN * (phi.high - phi.low) < float("inf"):
        return f"a span of {np.ptp(values):.2g}, almost nothing of its range"
    if goes_with(rates, activation, tolerance):
        return ""
    excess = range_excess(rates, activation)
    return f"values from {values.min():g} to {values.max():g} (rms excess {excess:.2g}, tolerated {tolerance:g})"


def require_in_range(recording: Recording, scale_tried: bool = False) -> None:
    """Raises UserError where recorded rates do not go with the range of the activation.

    Args:
        scale_tried: held-out trials have asked for no scale of their own.
    """
    from connector.dynamics import activation as activation_named

    phi = activation_named(recording.activation)
    if recording.out_of_range and recording.scale is None:
        scale = (
            "no scale of the neurons' own explains held-out trials better"
            if scale_tried
            else "give each neuron a gain and an offset, lrrnn.scale=auto (dF/F, z-scores)"
        )
        raise UserError(
            f"rates in the range of {phi.name}, ({phi.low:g}, {phi.high:g}), apart from noise",
            recording.out_of_range,
            f"{scale}; set data.activation to the neurons' nonlinearity (relu or softplus where rates have no upper bound); "
            "for noise raise data.range_tolerance",
        )
