"""Trials of NWB files: their bins, and what is counted and averaged in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from connector.data.nwb_clock import Clock
from connector.data.nwb_tables import matching
from connector.errors import UserError
from connector.report.numbers import counted

# Times are compared after rounding to nanoseconds, so that events on a bin's edge fall into the bin that begins there
# although session times carry rounding errors.
DECIMALS = 9
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
        stretches: of pieces (pieces, 2): 0, as all are of one session, and the first sample there; else None.
    """

    def __init__(
        self, rows: np.ndarray, event_s: np.ndarray, begin: np.ndarray, lengths: np.ndarray, bin_s: float,
        stretches: np.ndarray | None = None,
    ):  # fmt: skip
        self.rows, self.event_s = rows, event_s
        self.begin, self.lengths, self.bin_s, self.stretches = begin, lengths, bin_s, stretches
        self.n_trials, self.n_steps = len(begin), int(lengths.max())

    def take(self, keep: np.ndarray) -> TrialBins:
        """Some of the trials, by (trials,) bool."""
        of_trials = (x[keep] for x in (self.rows, self.event_s, self.begin, self.lengths))
        return TrialBins(*of_trials, self.bin_s, None if self.stretches is None else self.stretches[keep])

    def moved(self, begin: np.ndarray) -> TrialBins:
        """The same trials with bins from other times on, (trials,)."""
        return TrialBins(self.rows, self.event_s, begin, self.lengths, self.bin_s, self.stretches)

    def places(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For ascending times in the session: which of them lie in a trial, and the bin (trial * n_steps + step).

        Where trials overlap, a time comes up once for each.
        """
        low = np.searchsorted(times_s, self.begin - self.bin_s)
        high = np.searchsorted(times_s, self.begin + (self.lengths + 1) * self.bin_s)
        n = np.maximum(high - low, 0)
        trial = np.repeat(np.arange(self.n_trials), n)
        which = np.arange(len(trial)) - np.repeat(np.cumsum(n) - n - low, n)
        relative = np.round(times_s[which] - self.begin[trial], DECIMALS)
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
        before = np.searchsorted(times_s, begins + 10.0**-DECIMALS, side="right") - 1
        usual = regular_interval(times_s)
        pause = (_GAP * usual if usual else float(np.diff(times_s).max(initial=0.0))) + 2 * self.bin_s
        held = begins - times_s[np.maximum(before, 0)] <= (pause if usual else np.inf)
        known = (before >= 0) & (begins <= times_s[-1] + pause) & held
        last = np.where(known[:, None], values[np.maximum(before, 0)], np.nan)
        mean = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], last)
        return mean.reshape(self.n_trials, self.n_steps, -1)

    @property
    def overlaps(self) -> int:
        """How many trials begin before the one before them has ended."""
        order = np.argsort(self.begin, kind="stable")
        ends = self.begin + (self.lengths - 1e-6) * self.bin_s
        return int((self.begin[order][1:] < ends[order][:-1]).sum())

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
        notes.append(f"{counted(int((keep & ~timed).sum()), 'trial')} without {columns} left out")
    keep &= timed
    span = np.where(timed, np.round(ends - event - start_s, DECIMALS), 0.0)
    lengths = np.floor(span / bin_s + 1e-6).astype(np.int64)
    short = keep & (lengths < 2)
    if short.any():
        notes.append(f"{counted(int(short.sum()), 'trial')} shorter than 2 bins left out")
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
    bins = TrialBins(kept, event[kept], begin, lengths, bin_s)
    if bins.overlaps:
        notes.append(f"{counted(bins.overlaps, 'trial')} overlapping the previous one: spikes there count in both")
    return bins


def regular_interval(times: np.ndarray) -> float:
    """Between ascending times that come at regular intervals, but for some; else 0."""
    apart = np.diff(times)
    usual = float(np.median(apart)) if len(apart) >= _ENOUGH else 0.0
    return usual if np.mean(np.abs(apart - usual) <= 0.5 * usual) > _MOST else 0.0
