"""The clock of an NWB file: which of its times are seconds of the session, and when its units were observed.

Tools write times in milliseconds or samples, times that count from each trial's start, and units that were observed for
a part of the session only. Where the file says enough they are read as they are meant; else they are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from connector.data.nwb_tables import Table, whole
from connector.data.nwb_trials import TrialBins
from connector.data.preprocessing import recorded_lengths
from connector.errors import UserError

_ENOUGH_SPIKES = 20  # to tell from them what clock they are on
_SLOW_HZ, _FAR = 0.5, 5.0  # no unit fires faster, spikes reach so many times farther than the trials: no seconds
_LONG_S, _MANY = 200.0, 10  # trials as long, and as many, with units as slow: no seconds either
_TOLERATED = 0.1  # of a bin, that may be unobserved


@dataclass
class Clock:
    """When the rows of a table of trials begin, and the times in its other columns, in seconds of the session.

    Attributes:
        units_s: column -> seconds per unit of its times, 1 where it is not named; from_start: columns whose times count
            from their row's start_time; notes: told of what is read otherwise than as seconds of the session.
        start, following: (rows,) when a row begins, and the next one does.
    """

    table: Table
    units_s: dict[str, float]
    from_start: list[str]
    notes: list[str]
    start: np.ndarray = field(init=False)
    following: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.as_written("start_time")
        begins = np.unique(self.start[np.isfinite(self.start)])
        gap = float(np.median(np.diff(begins))) if len(begins) > 1 else np.inf
        place = np.searchsorted(begins, self.start, side="right")
        self.following = np.append(begins, np.nan)[np.minimum(place, len(begins))]
        self.following = np.where(place < len(begins), self.following, self.start + gap)

    def as_written(self, column: str) -> np.ndarray:
        """(rows,) the times of a column, in seconds, whatever they count from."""
        if np.asarray(self.table.numbers(column)).size and self.table.is_boolean(column):
            raise UserError(f"a {self.table.name} column with times", f"{column!r}, which holds true and false")
        return self.table.numbers(column) * self.units_s.get(column, 1.0)

    def times(self, column: str) -> np.ndarray:
        """(rows,) NaN where there is none, or one that cannot belong to its row."""
        value = self.as_written(column)
        if column == "start_time":
            return value
        relative, astray = self.counting(column, value, np.arange(len(value)))
        if relative:
            return self.start + value
        if astray.any() and column != "stop_time":
            self.notes.append(
                f"{int(astray.sum())} trials whose {column} lies far outside them, such as {value[astray][0]:g} s, left out"
            )
            value[astray] = np.nan
        return value

    def counting(self, column: str, value: np.ndarray, row: np.ndarray) -> tuple[bool, np.ndarray]:
        """Whether times count from the start_time of their rows, not in the session; which lie far outside them, if not.

        Args:
            value, row: (times,) each, and the row that it belongs to.

        Raises:
            UserError: most lie far outside, and do not seem to count from the start.
        """
        if column in self.from_start:
            return True, np.zeros(len(value), dtype=bool)
        start, following = self.start[row], self.following[row]
        length = following - start
        known = np.isfinite(value) & np.isfinite(length)
        ends = column == "stop_time"
        outside = value < start if ends else (value < start - length) | (value > following + length)
        astray = known & outside
        if 2 * astray.sum() <= known.sum():
            return False, astray
        found = value[known]
        within = bool(((found >= 0) & (found <= length[known])).all() and found.any())
        # Whole numbers in a column of events may be codes of something else.
        if within and (ends or not np.array_equal(found, np.round(found))):
            self.notes.append(f"{column} is read as seconds from each trial's start_time, where all of its times lie")
            return True, astray
        raise UserError(
            f"times of the {self.table.name} column {column!r} within their trials, in seconds of the session",
            f"{int(astray.sum())} of {len(found)} far outside ({_range(found)}; start_time {_range(self.start)})",
            f"do they count from start_time, data.from_start=[{column}]; are they no seconds, "
            f"data.time_units={{{column}:SECONDS}}; do some trials lack the event, leave those out with data.trials",
        )

    def check_starts(self, column: str) -> None:
        """Refuses trials of which all begin at one time."""
        begins = self.start[np.isfinite(self.start)]
        if column == "start_time" and len(begins) > 1 and np.ptp(begins) == 0:
            raise UserError(
                f"{self.table.name} that begin at different times of the session, in start_time",
                f"{len(begins)} that all begin at {begins[0]:g} s",
                "name a column with times in the session, data.align=COLUMN, or mend the file",
            )


def _range(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    return f"{values.min():g} to {values.max():g}" if len(values) else "none"


def spike_trains(cells: Table, units: np.ndarray, clock: Clock, counted: str, notes: list[str]) -> list[np.ndarray]:
    """Ascending spike times of some units, seconds of the session.

    Args:
        counted: "session", or "trial": each unit's times count from the start_time of the trial they fell in, one trial
            after the other; where they go back, the next trial begins.

    Raises:
        UserError: times on another clock than that of the trials, or in another unit.
    """
    rows, scale = cells.rows("spike_times", "the spike times of sorted units"), clock.units_s.get("spike_times")
    trains = [np.asarray(rows[unit], dtype=float) for unit in units]
    lost = sum(int((~np.isfinite(times)).sum()) for times in trains)
    if lost:
        notes.append(f"{lost} spike times that are NaN or infinite left out")
    trains = [times[np.isfinite(times)] * (1.0 if scale is None else scale) for times in trains]
    if counted == "trial":
        return [np.sort(_in_session(times, clock, f"unit {number}")) for times, number in zip(trains, units)]
    back = [int((np.diff(times) < 0).sum()) for times in trains]
    if scale is None:
        _check_clock(trains, clock, max(back, default=0))
    if any(back):
        notes.append(f"spike times of {np.count_nonzero(back)} units are not in order: sorted")
    return [np.sort(times) for times in trains]


def _in_session(times: np.ndarray, clock: Clock, unit: str) -> np.ndarray:
    """Times from each trial's start, laid on the session's clock; exact, since no trial is missing where all are told apart."""
    trial = np.r_[0, np.cumsum(np.diff(times) < 0)] if len(times) else np.zeros(0, dtype=int)
    n_runs = int(trial[-1]) + 1 if len(times) else 0
    if n_runs != len(clock.start):
        raise UserError(
            f"spike times that go back where a new trial begins, {len(clock.start)} runs of them in each unit",
            f"{n_runs} runs in {unit}: a trial without spikes cannot be told",
            "leave that unit out with data.units, or save spike times in seconds of the session",
        )
    return times + clock.start[trial]


def _check_clock(trains: list[np.ndarray], clock: Clock, back: int) -> None:
    times = np.concatenate(trains) if trains else np.zeros(0)
    start = clock.start[np.isfinite(clock.start)]
    if len(times) < _ENOUGH_SPIKES or len(start) < 2:
        return
    first, last = float(times.min()), float(times.max())
    length = (clock.following - clock.start)[np.isfinite(clock.following - clock.start)]
    got = f"spike_times {first:g} to {last:g}, start_time {start.min():g} to {start.max():g}"
    expected = "spike_times of units and start_time of trials on one clock, in seconds of the session"
    other_unit = "in milliseconds: data.time_units={spike_times:0.001}; in samples: 1 / sampling rate"
    of_trials = "; where it is the trials, {start_time:0.001,stop_time:0.001}"
    if np.array_equal(times, np.round(times)):
        raise UserError(expected, f"{got}, all spike_times whole numbers", other_unit)
    unreached = (clock.following <= first) | (clock.start >= last)
    if 2 * unreached.sum() > len(start):
        if back and np.abs(times).max() <= 1.5 * length.max():
            said = f"{got}, going back {back} times: seconds from each trial's start, it seems"
            remedy = "where they follow trial by trial, data.spike_times=trial reads them"
            raise UserError(expected, said, f"{remedy}; else save them in seconds of the session")
        remedy = f"{other_unit}{of_trials}; from each trial's start: save them in seconds of the session"
        raise UserError(expected, f"{got}, {int(unreached.sum())} trials without any", remedy)
    busiest = max(len(t) for t in trains) / max(last - first, 1e-9)
    far = last - start.min() > _FAR * (np.nanmax(clock.following) - start.min())
    lengthy = len(start) >= _MANY and np.median(length) >= _LONG_S
    if busiest < _SLOW_HZ and (far or lengthy):
        raise UserError(expected, f"{got}, no unit above {busiest:.2g} spikes a second", other_unit + of_trials)
    if back and (np.diff(start) < 0).any() and back <= 2 * (np.diff(start) < 0).sum():
        said = f"{got}, both going back: several sessions in one file, it seems"
        raise UserError(expected, said, "save each session in a file of its own")


# --- what was observed ------------------------------------------------------------------------------------------------


def observed(cells: Table, units: np.ndarray, bins: TrialBins, clock: Clock, *, trials_only: bool) -> np.ndarray:
    """(trials, units) whether a unit was observed throughout the bins of a trial, by obs_intervals and invalid_times.

    Args:
        trials_only: nothing is known outside the trials of the table, where units have no obs_intervals.
    """
    begin, end = bins.begin, bins.begin + bins.lengths * bins.bin_s
    slack = _TOLERATED * bins.bin_s
    seen = np.ones((len(begin), len(units)), dtype=bool)
    intervals = None
    if "obs_intervals" in cells.columns:
        intervals = cells.rows("obs_intervals")
    elif trials_only:
        intervals = [np.stack([clock.start, clock.as_written("stop_time")], axis=1)] * len(cells)
    for k, unit in enumerate(units if intervals is not None else ()):
        spans = np.asarray(intervals[unit], dtype=float)
        if spans.size and (spans.ndim != 2 or spans.shape[1] != 2):
            raise UserError("obs_intervals of the units table as pairs, start and stop", f"shape {spans.shape}")
        if spans.size:  # a unit without any is one of which nothing is said
            seen[:, k] = _covered(spans * clock.units_s.get("obs_intervals", 1.0), begin, end, slack)
    invalid = getattr(cells.nwb, "invalid_times", None)
    if invalid is not None and len(invalid):
        for a, b in zip(
            *(np.asarray(whole(invalid[x].data, cells.max_gigabytes)) for x in ("start_time", "stop_time"))
        ):
            seen &= ~((begin < b - slack) & (end > a + slack))[:, None]
    return seen


def _covered(spans: np.ndarray, begin: np.ndarray, end: np.ndarray, slack: float) -> np.ndarray:
    """Which of [begin, end] lie within one of the spans, joined where no more than ``slack`` is between them."""
    spans = spans[np.isfinite(spans).all(1)]
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if not len(spans):
        return np.zeros(len(begin), dtype=bool)
    until = np.maximum.accumulate(spans[:, 1])
    first = np.r_[True, spans[1:, 0] > until[:-1] + slack]
    starts, stops = spans[first, 0], until[np.r_[first[1:], True]]
    place = np.searchsorted(starts, begin + slack, side="right") - 1
    return (place >= 0) & (stops[np.maximum(place, 0)] >= end - slack)


def most_observed(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials and units, bool each, such that each unit was observed in each trial: as many pairs of them as can be had with
    the units taken in the order of how often they were observed; of equals, more units."""
    order = np.argsort(-seen.sum(0), kind="stable")
    common = np.logical_and.accumulate(seen[:, order], axis=1)
    pairs = common.sum(0) * np.arange(1, len(order) + 1)
    last = len(order) - 1 - int(np.argmax(pairs[::-1]))
    units = np.zeros(len(order), dtype=bool)
    units[order[: last + 1]] = True
    return common[:, last], units


def only_observed(
    cells: Table, units: np.ndarray, bins: TrialBins, clock: Clock, notes: list[str], *, trials_only: bool
) -> tuple[TrialBins, np.ndarray]:
    """The trials and units of :func:`most_observed`; says what was left out.

    Raises:
        UserError: none is left.
    """
    seen = observed(cells, units, bins, clock, trials_only=trials_only)
    trials, of_units = most_observed(seen)
    if not trials.any():
        raise UserError(
            "trials in which units were observed throughout, by obs_intervals of the units and invalid_times",
            f"none of {len(trials)} ({'; '.join(notes)})" if notes else f"none of {len(trials)}",
            "narrow the window with data.start_s and data.stop_s; are these intervals wrong, data.unobserved=ignore",
        )
    if not of_units.all():
        notes.append(f"{int((~of_units).sum())} units left out, observed in too few of the trials (obs_intervals)")
    if not trials.all():
        notes.append(
            f"{int((~trials).sum())} trials left out, not observed throughout in all units kept (obs_intervals, invalid_times)"
        )
    return bins.take(trials), units[of_units]


def only_recorded(counts: np.ndarray, bins: TrialBins, notes: list[str]) -> tuple[np.ndarray, TrialBins]:
    """Counts (trials, steps, units) and bins without the trials that hold no spike of any unit where others hold too many
    for chance: the recording had ended, or paused.

    Raises:
        UserError: more than half of the trials are such.
    """
    empty = recorded_lengths(counts.sum(2), bins.lengths) == 0
    if not empty.any():
        return counts, bins
    if 2 * empty.sum() > len(empty):
        raise UserError(
            "spikes in most trials", f"none of any unit in {int(empty.sum())} of {len(empty)}",
            "do spike_times and the trials' times go together? see data.time_units, data.spike_times, data.from_start",
        )  # fmt: skip
    held = counts[~empty].sum() / (~empty).sum()
    notes.append(
        f"{int(empty.sum())} trials without a spike of any unit left out, where others hold {held:.0f}: not recorded, it seems"
    )
    bins = bins.take(~empty)
    return counts[~empty][:, : bins.n_steps], bins
