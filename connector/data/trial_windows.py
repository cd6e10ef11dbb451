"""Trials as windows about times in the session, for spike times and for continuous activity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from connector.data.beside import label
from connector.data.layout import flattened, numbers, one_each
from connector.data.nwb_trials import TrialBins
from connector.data.settings import seconds
from connector.data.time_axis import TimeAxis
from connector.errors import UserError
from connector.files import check_size

UNITS = "say what their units are: data.spike_unit_s, data.trial_unit_s"
_MOST_BINS = 10**8  # of a trial
_FEW = 4  # times of trials, of which all but one may be the same


def whole_bins(span: np.ndarray, bin_s: float) -> np.ndarray:
    """Whole bins that fit into so many seconds."""
    bins = np.floor(np.round(span, 9) / bin_s + 1e-6)
    if bins.max(initial=0) > _MOST_BINS:
        got = f"{bins.max() * bin_s:.3g} s"
        raise UserError(f"trials of at most {_MOST_BINS:g} bins of {bin_s:g} s", got, UNITS)
    return bins.astype(np.int64)


def times_of_trials(value: Any, what: str) -> np.ndarray:
    """(n,) float64: one time for each trial; ``what``: the option.

    Raises:
        UserError: a table of several columns, or no numbers; a signal that is on or off.
    """
    parts = [value] if isinstance(value, np.ndarray) else flattened(value)
    wide = next((x for x in parts if (sum(n > 1 for n in x.shape) > 1 if len(parts) == 1 else x.size > 1)), None)
    if wide is not None:
        raise UserError(f"{what} with one time for each trial", f"shape {wide.shape}", "name one column: KEY/NUMBER")
    found = numbers(one_each(value, None, what, what), what)
    values = np.unique(found[~np.isnan(found)]) if found.dtype.kind == "f" else np.unique(found)
    on_or_off = len(found) > _FEW and len(values) == 2 and values[0] == 0
    if len(values) and (found.dtype.kind == "b" or on_or_off):
        raise UserError(
            f"{what} with the time of each trial",
            f"{len(found)} values that are {label(values[0])} or {label(values[-1])}, as of a signal that is on or off",
            "save the times at which it turns on: time[1:][numpy.diff(signal.astype(int)) > 0]",
        )
    return found.astype(float)


def windows(raw: Mapping[str, Any], options: Any, bin_s: float, notes: list[str]) -> TrialBins:
    """Trials about their times in the session, as the options of :class:`connector.data.arrays.ArraysOptions` say.

    ``raw``: what they name, with times of trials as :func:`times_of_trials` gives them.

    Raises:
        UserError: times that are none of trials, or no trial of two bins.
    """
    unit = seconds(options.spike_unit_s if options.trial_unit_s is None else options.trial_unit_s, "data.trial_unit_s")
    starts = unit * raw["trial_starts"]
    ends = np.full(len(starts), np.inf) if options.stop_s is None else starts + options.stop_s
    if raw.get("trial_stops") is not None:
        stops = unit * one_each(raw["trial_stops"], len(starts), "data.trial_stops", "data.trial_stops")
        with np.errstate(invalid="ignore"):
            early = (stops < starts)[np.isfinite(stops + starts)]
        if 2 * early.sum() > len(early):
            raise UserError(
                "data.trial_stops after data.trial_starts", f"before them in {int(early.sum())} trials",
                "give times, not durations; for trials of one length, data.stop_s",
            )  # fmt: skip
        ends = np.minimum(ends, stops)
    if not np.isfinite(ends[np.isfinite(starts)]).any():
        raise UserError(
            "the end of each trial", "none", "give data.trial_stops=KEY, or data.stop_s seconds after the start"
        )
    begin = starts + (options.start_s or 0.0)
    timed = np.isfinite(begin) & np.isfinite(ends)
    lengths = whole_bins(np.where(timed, ends - begin, 0.0), bin_s)
    kept = (lengths >= 2).nonzero()[0]
    if len(kept) < len(starts):
        notes.append(
            f"{len(starts) - len(kept)} of {len(starts)} trials left out: they have no times, or are shorter than 2 bins"
        )
    if not len(kept):
        raise UserError(
            f"trials of at least 2 bins of {bin_s:g} s", f"none of {len(starts)}", "see data.bin_s, data.trial_unit_s"
        )
    return TrialBins(kept, starts[kept], begin[kept], lengths[kept], bin_s)


def within_recording(
    bins: TrialBins, told: np.ndarray, clock: TimeAxis | None, notes: list[str]
) -> tuple[TrialBins, np.ndarray]:
    """The windows that lie within a continuous recording, and the first sample of each; tells of others.

    Args:
        told: (samples,) bool, ``bin_s`` apart: where anything was recorded. clock: when, where the file says so; None: from 0 on.

    Raises:
        UserError: most lie outside.
    """
    n_samples = len(told)
    first = np.round(bins.begin / bins.bin_s).astype(np.int64) if clock is None else clock.first(bins.begin)
    inside = (first >= 0) & (first + bins.lengths <= n_samples)
    missing, at = np.r_[0, np.cumsum(~told)], np.clip(first, 0, n_samples)
    end = np.minimum(at + bins.lengths, n_samples)
    inside &= missing[end] == missing[at]
    if clock is not None:
        gaps = np.cumsum(clock.gaps)
        inside &= gaps[np.maximum(end - 1, 0)] == gaps[np.minimum(at, n_samples - 1)]
    if 2 * inside.sum() < len(inside):
        got = f"{int((~inside).sum())} of {len(inside)} outside; they begin from {bins.begin.min():.4g} to {bins.begin.max():.4g} s"
        if clock is not None:
            expected = f"trials within the recording, by {clock.key} from {clock.at[0]:.4g} to {clock.at[-1]:.4g} s"
            raise UserError(expected, got, "see data.trial_unit_s; data.time_axis=false counts from the first sample")
        raise UserError(
            f"trials within the {n_samples} samples of {bins.bin_s:g} s, {n_samples * bins.bin_s:.4g} s", got,
            "see data.bin_s, and data.trial_unit_s for times in other units (in samples: the same as data.bin_s)",
        )  # fmt: skip
    if not inside.all():
        notes.append(
            f"{int((~inside).sum())} of {len(inside)} trials left out: they reach beyond the recording, or into a pause"
        )
    return bins.take(inside), first[inside]


def samples_about(x: np.ndarray, first: np.ndarray, lengths: np.ndarray, max_gigabytes: float) -> np.ndarray:
    """Windows (trials, time, channels) of x (samples, channels), zero behind a window's end.

    Args:
        first, lengths: (trials,) samples.
    """
    longest = int(lengths.max())
    check_size(1e-9 * len(first) * longest * x[:1].nbytes, max_gigabytes, "see data.stop_s, data.bin_s")
    steps = np.arange(longest)
    found = x[np.minimum(first[:, None] + steps, len(x) - 1)]
    found[steps >= lengths[:, None]] = 0
    return found
