"""Trials of NWB files: their bins, what is counted and averaged in them, and what the trials table tells of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from connector.data.nwb_clock import Clock
from connector.data.nwb_tables import Table, matching, whole
from connector.data.preprocessing import bin_events, choices_from
from connector.errors import UserError

# Times are compared after rounding to nanoseconds, so that events on a bin's edge fall into the bin that begins there
# although session times carry rounding errors.
_DECIMALS = 9
_ENOUGH, _MOST, _GAP = (
    20,
    0.95,
    10.0,
)  # intervals between samples, the share of alike ones that is regular, those of a gap


@dataclass(frozen=True)
class Window:
    """From ``start_s`` after the event in the column ``align`` to ``stop_s`` after it or the time in the column
    ``until``, the earlier; None: only the other. Seconds."""

    align: str
    start_s: float
    stop_s: float | None
    until: str | None
    bin_s: float


class TrialBins:
    """The bins of all trials: trial i has bins [begin[i] + j bin_s, begin[i] + (j + 1) bin_s), j < lengths[i].

    Attributes:
        rows: (trials,) their rows in the trials table; event_s: when the event happened that they are aligned to.
        begin: (trials,) seconds in the session; lengths: (trials,) int64; bin_s: seconds.
        n_steps: bins of the longest trial; more where trials are padded further.
    """

    def __init__(self, rows: np.ndarray, event_s: np.ndarray, begin: np.ndarray, lengths: np.ndarray, bin_s: float):
        self.rows, self.event_s = rows, event_s
        self.begin, self.lengths, self.bin_s = begin, lengths, bin_s
        self.n_trials, self.n_steps = len(begin), int(lengths.max())

    def take(self, keep: np.ndarray) -> TrialBins:
        """Some of the trials, by (trials,) bool."""
        return TrialBins(self.rows[keep], self.event_s[keep], self.begin[keep], self.lengths[keep], self.bin_s)

    def places(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For ascending times in the session: which of them lie in a trial, and the bin (trial * n_steps + step).

        Where trials overlap, a time comes up once for each.
        """
        low = np.searchsorted(times_s, self.begin - self.bin_s)
        high = np.searchsorted(times_s, self.begin + (self.lengths + 1) * self.bin_s)
        n = np.maximum(high - low, 0)
        trial = np.repeat(np.arange(self.n_trials), n)
        which = np.arange(len(trial)) - np.repeat(np.cumsum(n) - n - low, n)
        relative = np.round(times_s[which] - self.begin[trial], _DECIMALS)
        step = np.floor(relative / self.bin_s + 1e-9).astype(np.int64)
        inside = (step >= 0) & (step < self.lengths[trial])
        return which[inside], trial[inside] * self.n_steps + step[inside]

    def counts(self, times_s: np.ndarray) -> np.ndarray:
        """(trials, steps) number of events in each bin; ascending times."""
        place = self.places(times_s)[1]
        return np.bincount(place, minlength=self.n_trials * self.n_steps).reshape(self.n_trials, self.n_steps)

    def averages(self, times_s: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(trials, steps, channels) mean of the samples in each bin, or the last sample before it, else NaN.

        After the last sample of all its value is held for as long as the longest pause between samples, not for ever. Where
        samples come at regular intervals, a pause of more than ten of them, at the end or before, holds nothing.

        Args:
            times_s: (samples,) ascending; values: (samples, channels).
        """
        which, place = self.places(times_s)
        size = self.n_trials * self.n_steps
        number = np.bincount(place, minlength=size)
        sums = np.stack([np.bincount(place, weights=x[which], minlength=size) for x in values.T], axis=1)
        begins = (self.begin[:, None] + np.arange(self.n_steps) * self.bin_s).ravel()
        before = np.searchsorted(times_s, begins + 10.0**-_DECIMALS, side="right") - 1
        usual = _interval(times_s)
        pause = (_GAP * usual if usual else float(np.diff(times_s).max(initial=0.0))) + 2 * self.bin_s
        held = begins - times_s[np.maximum(before, 0)] <= (pause if usual else np.inf)
        known = (before >= 0) & (begins <= times_s[-1] + pause) & held
        last = np.where(known[:, None], values[np.maximum(before, 0)], np.nan)
        mean = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], last)
        return mean.reshape(self.n_trials, self.n_steps, -1)

    @property
    def inside(self) -> np.ndarray:
        return np.arange(self.n_steps)[None, :] < self.lengths[:, None]


def trial_bins(clock: Clock, window: Window, wanted: dict[str, Any], notes: list[str]) -> TrialBins:
    """The bins of the trials with the values wanted in their columns."""
    align, until, start_s, bin_s = window.align, window.until, window.start_s, window.bin_s
    table = clock.table
    clock.check_starts(align)
    event = clock.times(align)
    ends = np.full(len(event), np.inf) if window.stop_s is None else event + window.stop_s
    if until is not None:
        column = clock.times(until)
        ends = np.where(np.isnan(column), np.nan, np.minimum(ends, column))
    keep = np.ones(len(event), dtype=bool)
    for column, values in wanted.items():
        keep &= matching(table.rows(column), values, f"{table.name} column {column}")
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} trials left out by data.trials")
    timed = np.isfinite(event) & np.isfinite(ends)
    if (keep & ~timed).any():
        columns = align if until is None else f"{align} or {until}"
        notes.append(f"{int((keep & ~timed).sum())} trials without {columns} left out")
    keep &= timed
    span = np.where(timed, np.round(ends - event - start_s, _DECIMALS), 0.0)
    lengths = np.floor(span / bin_s + 1e-6).astype(np.int64)
    short = keep & (lengths < 2)
    if short.any():
        notes.append(f"{int(short.sum())} trials shorter than 2 bins left out")
    keep &= lengths >= 2
    if not keep.any():
        remedy = "check data.align, data.start_s, data.stop_s, data.until, data.trials and data.bin_s"
        if not np.isfinite(event).any():
            remedy = f"no trial has a time in {align}: name another column, data.align=COLUMN"
        elif until is not None and window.stop_s is None and not (np.isfinite(ends) & (ends > event)).any():
            remedy = (
                f"no trial ends by {until}: set data.stop_s=SECONDS after {align}, or another column, data.until=COLUMN"
            )
        raise UserError("trials of at least 2 bins in the window", f"none of {len(keep)} ({'; '.join(notes)})", remedy)
    kept = keep.nonzero()[0]
    begin, lengths = event[kept] + start_s, lengths[kept]
    order = np.argsort(begin, kind="stable")
    overlaps = int((begin[order][1:] < (begin + (lengths - 1e-6) * bin_s)[order][:-1]).sum())
    if overlaps:
        notes.append(f"{overlaps} trials begin before the one before them has ended: spikes there count in both")
    return TrialBins(kept, event[kept], begin, lengths, bin_s)


def trial_inputs(
    clock: Clock, names: Sequence[str], bins: TrialBins, from_event: bool
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """External inputs (trials, steps, channels), zero past a trial's end, and the channels' names.

    Args:
        from_event: event times in columns count from the event that trials are aligned to, not in the session.
    """
    parts, labels = [], []
    for name in names:
        values = _input(clock, name, bins, from_event)
        channels = values.shape[2]
        parts.append(values)
        labels += [name] if channels == 1 else [f"{name} {i + 1}" for i in range(channels)]
    return np.concatenate(parts, axis=2) if parts else None, tuple(labels)


def time_series(nwb) -> dict[str, list]:
    """All time series of a file by their names."""
    import pynwb

    series: dict[str, list] = {}
    for item in nwb.objects.values():
        if isinstance(item, pynwb.TimeSeries):
            series.setdefault(item.name, []).append(item)
    return series


def _input(clock: Clock, name: str, bins: TrialBins, from_event: bool) -> np.ndarray:
    """An external input (trials, steps, channels), zero past a trial's end."""
    table = clock.table
    if name in table.columns:
        values = _column_input(clock, name, bins, from_event)[:, :, None]
    else:
        series = time_series(table.nwb)
        if name not in series:
            raise UserError(
                "a trials column or a time series for data.inputs",
                f"{name!r} in {table.path.name}",
                f"columns: {', '.join(table.columns)}; time series: {', '.join(series) or 'none'}",
            )
        if len(series[name]) > 1:
            raise UserError(f"one time series {name!r}", f"{len(series[name])} of that name in {table.path.name}")
        values = _series_input(series[name][0], bins, clock, table.max_gigabytes)
    unknown = (~np.isfinite(values) & bins.inside[:, :, None]).any((1, 2))
    if unknown.any():
        raise UserError(
            f"finite values of the input {name!r} in all trials",
            f"{int(unknown.sum())} trials without, or in part",
            "leave those trials out with data.trials",
        )
    values[~bins.inside] = 0
    return values


def _column_input(clock: Clock, name: str, bins: TrialBins, from_event: bool) -> np.ndarray:
    table = clock.table
    rows = table.rows(name)
    if not isinstance(rows, list) and rows.ndim == 1:
        numbers = table.numbers(name)
        if table.is_boolean(name) or not clock.within(numbers):
            return np.repeat(numbers[bins.rows][:, None], bins.n_steps, axis=1)
        clock.notes.append(f"{name} is read as the time of one event in each trial, where all of its values lie")
        rows = numbers[:, None]
    events = [np.asarray(rows[trial]) for trial in bins.rows]
    if any(times.size and times.dtype.kind not in "iuf" for times in events):
        raise UserError("event times, numbers", f"text in the {table.name} column {name!r}")
    events = [times.astype(float).ravel() * clock.units_s.get(name, 1.0) for times in events]
    origin = bins.event_s
    if not from_event:
        together = np.concatenate([np.zeros(0), *events])
        relative, _ = clock.counting(name, together, np.repeat(bins.rows, [len(times) for times in events]))
        origin = clock.start[bins.rows] if relative else np.zeros(bins.n_trials)
    binned = np.zeros((bins.n_trials, bins.n_steps))
    for i, times in enumerate(events):
        relative_s = np.round(times[np.isfinite(times)] + origin[i] - bins.begin[i], _DECIMALS)
        binned[i, : bins.lengths[i]] = bin_events(relative_s, int(bins.lengths[i]), bins.bin_s)
    if any(times.size for times in events) and not binned.any():
        raise UserError(
            f"events of the {table.name} column {name!r} within the trials",
            f"{sum(times.size for times in events)} of them, all outside",
            "check the window, data.event_times and data.from_start",
        )
    return binned


def _interval(times: np.ndarray) -> float:
    """Between ascending times that come at regular intervals, but for some; else 0."""
    apart = np.diff(times)
    usual = float(np.median(apart)) if len(apart) >= _ENOUGH else 0.0
    return usual if np.mean(np.abs(apart - usual) <= 0.5 * usual) > _MOST else 0.0


def _series_input(series, bins: TrialBins, clock: Clock, max_gigabytes: float) -> np.ndarray:
    values = np.asarray(whole(series.data, max_gigabytes))
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or not len(values):
        raise UserError(
            f"a time series {series.name!r} of numbers, (samples,) or (samples, channels)", str(values.shape)
        )
    values = values.astype(float).reshape(len(values), -1) * series.conversion + series.offset
    if series.timestamps is not None:
        times = np.asarray(whole(series.timestamps, max_gigabytes), dtype=float)
    else:
        times = series.starting_time + np.arange(len(values)) / series.rate
    times = times * clock.units_s.get(series.name, 1.0)
    known, length = np.isfinite(times), float(np.median(bins.lengths)) * bins.bin_s
    apart = _interval(np.sort(times[known]))
    if apart > length and series.name not in clock.units_s:  # so that it would stand still in each trial
        raise UserError(
            f"a time series {series.name!r} with several samples in a trial of {length:g} s, times in seconds of the session",
            f"samples {apart:g} apart",
            f"in milliseconds, data.time_units={{{series.name}:0.001}}; in seconds, data.time_units={{{series.name}:1}}",
        )
    if not known.any():
        raise UserError(f"a time series {series.name!r} with timestamps", "none that is a finite number")
    times, values = times[known], values[known]
    order = np.argsort(times, kind="stable")
    return bins.averages(times[order], values[order])


def choices_of(table: Table, column: str, values: Sequence[Any] | None, kept: np.ndarray) -> np.ndarray:
    """0 left, 1 right, NaN none, (trials,)."""
    rows = table.rows(column)
    if isinstance(rows, list) or rows.ndim != 1:
        raise UserError(f"a {table.name} column with one choice in each trial", f"{column!r}, which holds lists")
    return choices_from(rows[kept], values, f"the {table.name} column {column!r}")


def baseline_rates(table: Table, column: str, kept: np.ndarray, kept_units: np.ndarray, n_units: int) -> np.ndarray:
    """(trials, units) firing rate before each trial, Hz."""
    rows = table.rows(column)
    if isinstance(rows, list) and {len(row) for row in rows} == {n_units}:
        rows = np.stack(rows)
    if isinstance(rows, list) or rows.shape != (len(table), n_units) or rows.dtype.kind not in "iuf":
        raise UserError(
            f"a trials column with a rate for each of {n_units} units in each trial", f"{column!r}, which has not"
        )
    return np.ascontiguousarray(rows[kept][:, kept_units])
