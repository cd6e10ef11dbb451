"""What of an NWB file was observed: not all units may have been throughout the session, and not observed is not silent."""

from __future__ import annotations

import numpy as np

from connector.data.nwb_clock import Clock
from connector.data.nwb_tables import Table, whole
from connector.data.nwb_trials import TrialBins
from connector.data.preprocessing import recorded_lengths
from connector.errors import UserError
from connector.report.numbers import counted

_FAR = 50.0  # times the trials' extent that seconds of one session do not reach
_TOLERATED = 0.1  # of a bin, that may be unobserved


def observed(cells: Table, units: np.ndarray, bins: TrialBins, clock: Clock, *, trials_only: bool) -> np.ndarray:
    """(trials, units) whether a unit was observed throughout the bins of a trial, by obs_intervals and invalid_times.

    Args:
        trials_only: nothing is known outside the trials of the table, where units have no obs_intervals.
    """
    begin, end = bins.begin, bins.begin + bins.lengths * bins.bin_s
    slack = _TOLERATED * bins.bin_s
    seen = np.ones((len(begin), len(units)), dtype=bool)
    spans_of = _spans_of(cells, units, clock, end)
    if trials_only and "obs_intervals" not in cells.columns:
        spans_of = [np.stack([clock.start, clock.as_written("stop_time")], axis=1)] * len(units)
    alike: dict[bytes, np.ndarray] = {}  # most units were observed at the same times
    for k, spans in enumerate(spans_of):
        if spans.size:  # a unit without any is one of which nothing is said
            key = spans.tobytes()
            alike[key] = alike[key] if key in alike else _covered(spans, begin, end, slack)
            seen[:, k] = alike[key]
    for a, b in invalid_spans(cells, clock, end):
        seen &= ~((begin < b - slack) & (end > a + slack))[:, None]
    return seen


def invalid_spans(cells: Table, clock: Clock, end: np.ndarray) -> np.ndarray:
    """(spans, 2) start and stop of the file's invalid_times, seconds; ``end``: of the trials (trials,)."""
    invalid = getattr(cells.nwb, "invalid_times", None)
    if invalid is None or not len(invalid):
        return np.zeros((0, 2))
    columns = [np.asarray(whole(invalid[x].data, cells.max_gigabytes)) for x in ("start_time", "stop_time")]
    spans = np.stack(columns, 1).astype(float) * clock.units_s.get(
        "invalid_times", clock.units_s.get("start_time", 1.0)
    )
    _check_unit("invalid_times", spans[:, 0], clock, end)
    return spans


def _spans_of(cells: Table, units: np.ndarray, clock: Clock, end: np.ndarray) -> list[np.ndarray]:
    """(spans, 2) of each unit when it was observed by its obs_intervals, seconds; none where the file has no such column."""
    if "obs_intervals" not in cells.columns:
        return []
    intervals = cells.rows("obs_intervals")
    spans_of = [np.asarray(intervals[unit], dtype=float) for unit in units]
    for spans in spans_of:
        if spans.size and (spans.ndim != 2 or spans.shape[1] != 2):
            raise UserError("obs_intervals of the units table as pairs, start and stop", f"shape {spans.shape}")
    of_units = np.concatenate([spans.ravel() for spans in spans_of])
    unit = clock.units_s.get("obs_intervals", 1.0)
    if _no_seconds("obs_intervals", of_units, clock, end):  # written like the spike times beside them
        unit = clock.units_s.get("spike_times", 1.0)
    if any(not np.array_equal(spans, spans_of[0]) for spans in spans_of):
        _check_unit("obs_intervals", unit * of_units, clock, end)
    return [unit * spans for spans in spans_of]


def observed_spans(cells: Table, units: np.ndarray, bins: TrialBins, clock: Clock) -> np.ndarray:
    """(spans, 2) when any of the units was observed, ascending and apart, seconds: all the time where nothing is said."""
    end = bins.begin + bins.lengths * bins.bin_s
    spans_of = _spans_of(cells, units, clock, end)
    spans = np.array([[-np.inf, np.inf]])
    if spans_of and all(spans.size for spans in spans_of):
        spans = _joined(np.concatenate(spans_of), _TOLERATED * bins.bin_s)
    for a, b in invalid_spans(cells, clock, end):
        before, after = spans[spans[:, 0] < a], spans[spans[:, 1] > b]
        before = np.stack([before[:, 0], np.minimum(before[:, 1], a)], axis=1)
        spans = np.concatenate([before, np.stack([np.maximum(after[:, 0], b), after[:, 1]], axis=1)])
    return spans


def _joined(spans: np.ndarray, slack: float) -> np.ndarray:
    """Spans (n, 2), ascending and apart, of which those are one that have no more than ``slack`` between them."""
    spans = spans[~np.isnan(spans).any(1)]  # an interval may be open
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if not len(spans):
        return spans
    until = np.maximum.accumulate(spans[:, 1])
    first = np.r_[True, spans[1:, 0] > until[:-1] + slack]
    return np.stack([spans[first, 0], until[np.r_[first[1:], True]]], axis=1)


def _no_seconds(name: str, times: np.ndarray, clock: Clock, end: np.ndarray) -> bool:
    """Whether times of intervals reach so much farther than the trials that they are no seconds, if nothing is said of them."""
    farthest, origin = times[np.isfinite(times)].max(initial=0.0), min(0.0, float(np.nanmin(clock.start)))
    return name not in clock.units_s and farthest - origin > _FAR * (float(end.max()) - origin)


def _check_unit(name: str, times: np.ndarray, clock: Clock, end: np.ndarray) -> None:
    """Refuses such times: milliseconds read as seconds would have all observed."""
    if _no_seconds(name, times, clock, end):
        raise UserError(
            f"{name} in seconds of the session, as the trials",
            f"times up to {times[np.isfinite(times)].max():g}, trials up to {end.max():g}",
            f"if they are in milliseconds, data.time_units={{{name}:0.001}}; if they are in seconds, data.time_units={{{name}:1}}",
        )


def _covered(spans: np.ndarray, begin: np.ndarray, end: np.ndarray, slack: float) -> np.ndarray:
    """Which of [begin, end] lie within one of the spans, joined where no more than ``slack`` is between them."""
    spans = _joined(spans, slack)
    if not len(spans):
        return np.zeros(len(begin), dtype=bool)
    starts, stops = spans.T
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
            "narrow the window with data.start_s and data.stop_s; if these intervals are wrong, set data.unobserved=ignore; if they "
            "are in milliseconds, data.time_units={invalid_times:0.001}",
        )
    if not of_units.all():
        notes.append(f"{counted(int((~of_units).sum()), 'unit')} left out: observed in too few trials (obs_intervals)")
    if not trials.all():
        notes.append(
            f"{counted(int((~trials).sum()), 'trial')} left out: not observed throughout in all units kept (obs_intervals, invalid_times)"
        )
    return bins.take(trials), units[of_units]


_ONE_CLOCK = (
    "check that spike_times and times of trials share a clock: data.time_units, data.spike_times, data.from_start"
)


def only_recorded(
    counts: np.ndarray, bins: TrialBins, notes: list[str], remedy: str = _ONE_CLOCK
) -> tuple[np.ndarray, TrialBins]:
    """Counts (trials, steps, units) and bins without the trials that hold no spike of any unit where others hold too many
    for chance: the recording had ended, or paused.

    ``remedy``: what to do where that is most of the trials.

    Raises:
        UserError: more than half of the trials are such.
    """
    empty = recorded_lengths(counts.sum(2), bins.lengths) == 0
    if not empty.any():
        return counts, bins
    if 2 * empty.sum() > len(empty):
        raise UserError(
            "spikes in most trials", f"none of any unit in {int(empty.sum())} of {len(empty)}", remedy,
        )  # fmt: skip
    held = counts[~empty].sum() / (~empty).sum()
    notes.append(
        f"{counted(int(empty.sum()), 'trial')} left out: no unit fires, while other trials hold {held:.0f} spikes, so they were probably not "
        "recorded"
    )
    bins = bins.take(~empty)
    return counts[~empty][:, : bins.n_steps], bins
