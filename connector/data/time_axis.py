"""The time axis beside a continuous recording: when each sample was taken, where a gap lies, what trials' times count from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from connector.data.settings import seconds
from connector.errors import UserError
from connector.report.numbers import counted

NAMES = ("t", "time", "times", "timestamps")
_GAP, _MOST_GAPS = (
    1.5,
    0.1,
)  # usual steps of a gap; the share of steps that are gaps, from which on samples are irregular
_CLOSE = 0.01  # two steps of time are the same but for this share
_NEAR = 0.75  # of a step that a sample may be off
_UNITS_S = (1.0, 1e-3, 1e-6, 1e-9, 60.0)  # seconds, milli-, micro- and nanoseconds, minutes
_RESOLVED = 0.05  # of a step: the rounding of times that tell steps apart


@dataclass(frozen=True)
class TimeAxis:
    """When the samples of a continuous recording were taken.

    Attributes:
        key: its name; at: (samples,) ascending, s, on the clock of the trials' times; step_s: seconds between neighbours.
        gaps: (samples,) bool, whether samples are missing before one.
    """

    key: str
    at: np.ndarray
    step_s: float
    gaps: np.ndarray

    def first(self, times: np.ndarray) -> np.ndarray:
        """The sample at each time, -1 where there is none; of two as near the later, whose bin begins at that time."""
        place = np.minimum(np.searchsorted(self.at, times - 0.499 * self.step_s), len(self.at) - 1)
        return np.where(np.abs(self.at[place] - times) <= _NEAR * self.step_s, place, -1)


def time_axis(
    found: Mapping[str, Any], n_samples: int, options: Any, bin_s: float, notes: list[str]
) -> TimeAxis | None:
    """The axis of a recording of so many samples; None where the file has none.

    Args:
        found: what there is under a name of a time axis, or the one that the option ``data.time_axis`` names.

    Raises:
        UserError: the option names something else; steps that contradict ``bin_s``, or are irregular.
    """
    axes = {key: x for key, x in found.items() if _is_axis(x, n_samples)}
    if not axes:
        if isinstance(options.time_axis, str):
            expected = f"data.time_axis with an ascending time for each of {n_samples} samples"
            raise UserError(expected, f"shape {np.shape(found[options.time_axis])} of {options.time_axis}")
        return None
    key, x = next((key, x.ravel().astype(float)) for key, x in axes.items())
    steps = np.diff(x)
    gaps = np.r_[False, are_gaps(steps)]
    step = float(steps[~gaps[1:]].mean())
    if gaps.mean() > _MOST_GAPS:
        got = f"{counted(int(gaps.sum()), 'step')} of more than {_GAP:g} times that"
        remedy = "bring them to regular times, or set data.time_axis=false to read them as regular"
        raise UserError(f"samples {step:.4g} apart in {key}", got, remedy)
    unit = _unit_of(key, step, bin_s, bool((x == np.round(x)).all()))
    if gaps.any():
        notes.append(f"{counted(int(gaps.sum()), 'gap')} in {key}: no trial lies across (data.time_axis)")
    # Sample numbers, and times that begin within a sample of zero, count from the first sample.
    at = unit * (x - x[0] if step == 1 or abs(x[0]) < _NEAR * step else x)
    if options.trial_starts is not None:
        counted_in = options.spike_unit_s if options.trial_unit_s is None else options.trial_unit_s
        numbers = _same(seconds(counted_in, "data.trial_unit_s"), bin_s)
        if numbers and not _same(unit, bin_s):  # numbers of samples, beside an axis in seconds
            at = bin_s * np.arange(n_samples)
        elif at[0] != 0:
            notes.append(
                f"times of trials are on the clock of {key}, whose first sample is at {at[0]:g} s (data.time_axis=false: they count from "
                "the first sample)"
            )
    return TimeAxis(key, at, bin_s, gaps)


def are_gaps(steps: np.ndarray) -> np.ndarray:
    """Which steps of a time axis (n,) are longer than the usual one by so much that samples are missing."""
    return steps > _GAP * np.median(steps)


def _is_axis(x: Any, n_samples: int) -> bool:
    """Whether something is a vector of so many times that ascend, precise enough to tell its steps."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iuf" or x.size != n_samples or max(x.shape) != x.size:
        return False
    times = x.ravel().astype(float)
    steps = np.diff(times)
    if x.size < 3 or not np.isfinite(times).all() or steps.min() <= 0:
        return False
    rounding = float(np.spacing(np.abs(x).max())) if x.dtype.kind == "f" else 0.0
    return rounding <= _RESOLVED * float(np.median(steps))


def _same(a: float, b: float) -> bool:
    return abs(a / b - 1) <= _CLOSE


def _unit_of(key: str, step: float, bin_s: float, whole: bool) -> float:
    """Seconds of 1 in an axis with such steps; whole numbers may be of any clock.

    Raises:
        UserError: ``bin_s`` is another step.
    """
    unit = next((u for u in _UNITS_S if _same(u * step, bin_s)), None)
    if unit is None and not whole:
        remedy = f"set data.bin_s={step:.4g}, if {key} is in seconds, or data.time_axis=false"
        raise UserError(f"data.bin_s that goes with the steps of {key}, {step:.4g}", f"{bin_s:g} s", remedy)
    return bin_s / step if unit is None else unit
