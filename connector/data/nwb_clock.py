"""The clock of an NWB file: which of its times are seconds of the session.

Tools write times in milliseconds or samples, and times that count from each trial's start. Where the file says enough they
are read as they are meant; else they are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from connector.data.nwb_tables import Table
from connector.errors import UserError
from connector.report.numbers import counted

ENOUGH_SPIKES, _ENOUGH_ROWS = 20, 5  # to tell from them what clock they are on
SLOW_HZ, FAR = 0.5, 5.0  # no unit fires faster, spikes reach so many times farther than the trials: no seconds
_LONG_S, _MANY = 200.0, 10  # trials as long, and as many, with units as slow: no seconds either


@dataclass
class Clock:
    """When the rows of a table of trials begin, and the times in its other columns, in seconds of the session.

    Attributes:
        units_s: column -> seconds per unit of its times, 1 where it is not named; from_start: columns whose times count
            from their row's start_time; notes: told of what is read otherwise than as seconds of the session.
        event_times: what times in other columns than start_time and stop_time count from: "session", "trial" (start_time),
            or "auto", which recognises the two.
        start, following: (rows,) when a row begins, and the next one does.
    """

    table: Table
    units_s: dict[str, float]
    from_start: list[str]
    notes: list[str]
    event_times: str = "auto"
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
            raise UserError(f"a column of {self.table.name} with times", f"{column!r}, which holds true and false")
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
                f"{counted(int(astray.sum()), 'trial')} whose {column} lies far outside them, such as {value[astray][0]:g} s, left out"
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
        ends = column == "stop_time"
        if column in self.from_start or (self.event_times == "trial" and not ends):
            return True, np.zeros(len(value), dtype=bool)
        if self.event_times == "session" and not ends:
            return False, np.zeros(len(value), dtype=bool)
        start, following = self.start[row], self.following[row]
        length = following - start
        known = np.isfinite(value) & np.isfinite(length)
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
            f"if they count from start_time, set data.from_start=[{column}]; if they are not in seconds, "
            f"data.time_units={{{column}:SECONDS}}; if they are right, data.event_times=session; if some trials lack the event, leave "
            "those out with data.trials",
        )

    def is_event(self, column: str, value: np.ndarray) -> bool:
        """Whether numbers (rows,) in a column are each the time of an event, as far as is said or seen; else constants."""
        if column in self.from_start:
            return True
        length = self.following - self.start
        known = np.isfinite(value) & np.isfinite(length)
        if self.event_times == "trial":  # whole numbers may be codes of something else
            inside = bool(((value >= 0) & (value <= length))[known].all())
            return inside and not np.array_equal(value[known], np.round(value[known]))
        return self._within(value)

    def _within(self, value: np.ndarray) -> bool:
        """Whether numbers (rows,) are times of the session for all that they show: each lies within its own row."""
        known = np.isfinite(value) & np.isfinite(self.following)
        inside = (value >= self.start) & (value < self.following)
        return bool(known.sum() >= _ENOUGH_ROWS and inside[known].all() and np.ptp(self.start[known]) > 0)

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


def spike_span(cells: Table, units: np.ndarray, units_s: dict[str, float]) -> tuple[float, float]:
    """First and last second of a recording: of the units' obs_intervals where these are not open, else of their spikes."""

    def range_of(column: str, scale_s: float) -> tuple[float, float]:
        rows = cells.rows(column, "the spike times of sorted units")
        times = np.concatenate([np.ravel(np.asarray(rows[unit], dtype=float)) for unit in units]) * scale_s
        times = times[np.isfinite(times)]
        return (float(times.min()), float(times.max())) if len(times) else (np.nan, np.nan)

    first, last = range_of("spike_times", units_s.get("spike_times", 1.0))
    if np.isnan(first):
        raise UserError("spike times of the units", "none")
    if "obs_intervals" in cells.columns:
        begin, end = range_of("obs_intervals", units_s.get("obs_intervals", 1.0))
        first = begin if 0 <= first - begin <= last - first else first
        last = end if 0 <= end - last <= last - first else last
    return first, last


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
            f"{n_runs} runs in {unit}: a trial without spikes cannot be found",
            "leave that unit out with data.units, or save spike times in seconds of the session",
        )
    return times + clock.start[trial]


def _check_clock(trains: list[np.ndarray], clock: Clock, back: int) -> None:
    times = np.concatenate(trains) if trains else np.zeros(0)
    start = clock.start[np.isfinite(clock.start)]
    if len(times) < ENOUGH_SPIKES:
        return
    first, last = float(times.min()), float(times.max())
    length = (clock.following - clock.start)[np.isfinite(clock.following - clock.start)]
    got = f"spike_times {first:g} to {last:g}, start_time {start.min():g} to {start.max():g}"
    expected = "spike_times of units and start_time of trials on one clock, in seconds of the session"
    other_unit = (
        "if spike_times are in milliseconds: data.time_units={spike_times:0.001}; if in samples: 1 / sampling rate"
    )
    of_trials = "; if times of trials have another unit: {start_time:0.001,stop_time:0.001}"
    if np.array_equal(times, np.round(times)):
        raise UserError(expected, f"{got}, all spike_times whole numbers", other_unit)
    if len(start) < 2:
        return
    unreached = (clock.following <= first) | (clock.start >= last)
    if 2 * unreached.sum() > len(start):
        if back and np.abs(times).max() <= 1.5 * length.max():
            said = f"{got}, going back {back} times, as seconds from each trial's start do"
            remedy = "if they follow trial by trial, set data.spike_times=trial"
            raise UserError(expected, said, f"{remedy}; else save them in seconds of the session")
        remedy = f"{other_unit}{of_trials}; if they count from each trial's start: save them in seconds of the session"
        raise UserError(expected, f"{got}, {int(unreached.sum())} trials without any", remedy)
    busiest = max(len(t) for t in trains) / max(last - first, 1e-9)
    far = last - start.min() > FAR * (np.nanmax(clock.following) - start.min())
    lengthy = len(start) >= _MANY and np.median(length) >= _LONG_S
    if busiest < SLOW_HZ and (far or lengthy):
        raise UserError(expected, f"{got}, no unit above {busiest:.2g} spikes a second", other_unit + of_trials)
    if back and (np.diff(start) < 0).any() and back <= 2 * (np.diff(start) < 0).sum():
        said = f"{got}, both going back, as in files of several sessions"
        raise UserError(expected, said, "save each session in a file of its own")
