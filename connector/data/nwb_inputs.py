"""What the table of trials, and time series, of an NWB file tell of each trial: inputs, conditions, choices, rates before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from connector.data.beside import inputs_of_conditions
from connector.data.nwb_clock import Clock
from connector.data.nwb_options import NwbOptions
from connector.data.nwb_series import all_series, scaled, series_named, times_of
from connector.data.nwb_tables import Table, interval_tables, whole
from connector.data.nwb_trials import DECIMALS, TrialBins, regular_interval
from connector.data.preprocessing import as_text as text
from connector.data.preprocessing import bin_events, choices_from, usable_times
from connector.errors import UserError
from connector.report.numbers import counted


def trial_inputs(
    clock: Clock, options: NwbOptions, bins: TrialBins, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """External inputs (trials, steps, channels), zero past a trial's end, and the channels' names."""
    parts, labels = [], []
    for name in options.inputs or ():
        values = _input(clock, name, bins, options, notes)
        channels = values.shape[2]
        parts.append(values)
        labels += [name] if channels == 1 else [f"{name} {i + 1}" for i in range(channels)]
    if options.conditions is not None:
        of_trials = labels_of(clock.table, options.conditions)[bins.rows]
        values, kinds = inputs_of_conditions(of_trials, options.conditions, bins.n_steps, notes)
        if options.condition_inputs:
            parts.append(np.where(bins.inside[:, :, None], values, 0.0))
            labels += kinds
    return np.concatenate(parts, axis=2) if parts else None, tuple(labels)


def with_inputs(clock: Clock, options: NwbOptions, bins: TrialBins, notes: list[str]) -> TrialBins:
    """Pieces less those in which an input that is a time series was not recorded throughout."""
    for name in options.inputs or ():
        if not clock.table.has(name):
            unknown = unknown_in(_of_series(clock, name, bins), bins)
            if unknown.all():
                raise UserError(f"pieces in which the input {name!r} was recorded", f"none of {bins.n_trials}")
            if unknown.any():
                notes.append(
                    f"{counted(int(unknown.sum()), 'piece')} left out: the input {name} was not recorded throughout"
                )
                bins = bins.take(~unknown)
    return bins


def unknown_in(values: np.ndarray, bins: TrialBins) -> np.ndarray:
    """(trials,) whether an input (trials, steps, channels) is unknown somewhere in a trial."""
    return (~np.isfinite(values) & bins.inside[:, :, None]).any((1, 2))


def labels_of(table: Table, column: str) -> np.ndarray:
    """(rows,) a number or text for each row; of lists of texts, as tags, these joined."""
    rows = table.rows(column)
    if isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind in "biuf":
        return rows.astype(float) if rows.dtype.kind == "b" else rows
    if isinstance(rows, np.ndarray) and rows.ndim == 1:
        return np.array([text(x) for x in rows])
    if all(isinstance(x, (str, bytes)) for row in rows for x in np.ravel(row).tolist()):
        return np.array([", ".join(text(x) for x in np.ravel(row)) for row in rows])
    raise UserError(
        f"a column of {table.name} with one label in each row, or texts", f"{column!r}, which holds lists",
        f"name one entry of the lists: {column}/0",
    )  # fmt: skip


def _input(clock: Clock, name: str, bins: TrialBins, options: NwbOptions, notes: list[str]) -> np.ndarray:
    """An external input (trials, steps, channels), zero past a trial's end."""
    of_column = clock.table.has(name)
    if of_column:
        values = _column_input(clock, name, bins, options.event_times == "align")[:, :, None]
    else:
        values = _of_series(clock, name, bins)
    absent = np.isnan(values) & bins.inside[:, :, None]
    if of_column and options.absent_inputs == "zero" and absent.any():
        notes.append(f"{name} is NaN in {int(absent.any((1, 2)).sum())} trials: 0 there (data.absent_inputs=zero)")
        values[absent] = 0
    unknown = unknown_in(values, bins)
    if unknown.any():
        raise UserError(
            f"finite values of the input {name!r} in all trials",
            f"{int(unknown.sum())} trials without, or in part",
            "leave those trials out with data.trials"
            + ("; if NaN means no input, set data.absent_inputs=zero" if of_column else ", as by {start_time:'<600'}"),
        )
    values[~bins.inside] = 0
    return values


def _of_series(clock: Clock, name: str, bins: TrialBins) -> np.ndarray:
    """A time series in the bins (trials, steps, channels), NaN where it is not known."""
    table = clock.table
    events = {x: item for x, item in interval_tables(table.nwb).items() if "timestamp" in item.colnames}
    if name in events:
        times = Table(table.path, table.nwb, name, table.max_gigabytes).numbers("timestamp")
        return _events_in(times * clock.units_s.get(name, 1.0), name, bins, clock.notes)
    try:
        found = series_named(table.nwb, name)
    except UserError as error:
        raise UserError(
            "a trials column or a time series for data.inputs",
            f"{error.got} in {table.path.name}",
            error.remedy if error.remedy.startswith("name its path") else
            f"columns: {', '.join(table.columns)}; time series: {', '.join(all_series(table.nwb)) or 'none'}",
        ) from error  # fmt: skip
    parts = [_series_input(x, bins, clock, table.max_gigabytes) for x in found.values()]
    return np.concatenate(parts, axis=2)


def _events_in(times: np.ndarray, what: str, bins: TrialBins, notes: list[str]) -> np.ndarray:
    """(trials, steps, 1) number of events in each bin."""
    told = f"{what} holds events: counted in each bin"
    notes += [] if told in notes else [told]
    return bins.counts(np.sort(times[np.isfinite(times)]))[:, :, None].astype(float)


def _column_input(clock: Clock, name: str, bins: TrialBins, from_event: bool) -> np.ndarray:
    table = clock.table
    rows = table.rows(name)
    if not isinstance(rows, list) and rows.ndim == 1:
        if rows.dtype.kind not in "biuf":
            raise UserError(
                f"a column of {table.name} with one number in each row, or event times", f"{name!r}, which holds text",
                f"its labels become inputs by data.conditions={name} data.condition_inputs=true",
            )  # fmt: skip
        numbers = table.numbers(name)
        if table.is_boolean(name) or not clock.is_event(name, numbers * clock.units_s.get(name, 1.0)):
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
        relative_s = np.round(times[np.isfinite(times)] + origin[i] - bins.begin[i], DECIMALS)
        binned[i, : bins.lengths[i]] = bin_events(relative_s, int(bins.lengths[i]), bins.bin_s)
    if any(times.size for times in events) and not binned.any():
        raise UserError(
            f"events of the {table.name} column {name!r} within the trials",
            f"{sum(times.size for times in events)} of them, all outside",
            "check the window, data.event_times and data.from_start",
        )
    return binned


def _series_input(series, bins: TrialBins, clock: Clock, max_gigabytes: float) -> np.ndarray:
    values = np.asarray(whole(series.data, max_gigabytes))
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or not len(values):
        raise UserError(
            f"a time series {series.name!r} of numbers, (samples,) or (samples, channels)", str(values.shape)
        )
    values = scaled(series, values.reshape(len(values), -1).astype(float))
    times = times_of(series, clock.units_s, len(values), max_gigabytes)
    known, length = np.isfinite(times), float(np.median(bins.lengths)) * bins.bin_s
    if type(series).__name__ == "IntervalSeries":  # above 0 where an interval begins, below where it ends
        order = np.argsort(times[known], kind="stable")
        return _switched(times[known][order], values[known][order, 0] > 0, bins)
    ordered = np.sort(times[known])
    marks = len(ordered) > 0 and values.shape[1] == 1 and not np.ptp(values) and not regular_interval(ordered)
    if type(series.parent).__name__ == "BehavioralEvents" or marks:
        return _events_in(times, series.name, bins, clock.notes)
    apart = regular_interval(np.sort(times[known]))
    if apart > length and series.name not in clock.units_s:  # so that it would stand still in each trial
        raise UserError(
            f"a time series {series.name!r} with several samples in a trial of {length:g} s, times in seconds of the session",
            f"samples {apart:g} apart",
            f"if they are in milliseconds, data.time_units={{{series.name}:0.001}}; if they are in seconds, data.time_units={{{series.name}:1}}",
        )
    if not known.any():
        raise UserError(f"a time series {series.name!r} with timestamps", "none that is a finite number")
    times, values = times[known], values[known]
    order = np.argsort(times, kind="stable")
    return bins.averages(times[order], values[order])


def _switched(times: np.ndarray, on: np.ndarray, bins: TrialBins) -> np.ndarray:
    """(trials, steps, 1) 1 in bins that begin in an interval, 0 in others; times: when it is switched on or off."""
    begins = bins.begin[:, None] + np.arange(bins.n_steps) * bins.bin_s
    before = np.searchsorted(times, begins + 1e-9, side="right") - 1
    return np.where(before >= 0, on[np.maximum(before, 0)], False).astype(float)[:, :, None]


def trial_times(clock: Clock, column: str | None, align: str, bins: TrialBins, notes: list[str]) -> np.ndarray | None:
    """(trials,) times of the trials in the session, s: of a column, or of their events; of pieces, where they begin."""
    if bins.stretches is not None:
        return bins.begin
    if column is None:
        return None
    # Those of the event are laid on the session's clock, where the column is not.
    times = bins.event_s if column == align else clock.as_written(column)[bins.rows]
    return usable_times(times, f"the {clock.table.name} column {column}", notes)


def per_trial(table: Table, column: str | None, bins: TrialBins) -> np.ndarray | None:
    """(trials,) numbers of a column."""
    return None if column is None else table.numbers(column)[bins.rows]


def choices_of(table: Table, column: str, values: Sequence[Any] | None, kept: np.ndarray) -> np.ndarray:
    """0 left, 1 right, NaN none, (trials,)."""
    rows = table.rows(column)
    if isinstance(rows, list) or rows.ndim != 1:
        raise UserError(f"a column of {table.name} with one choice in each trial", f"{column!r}, which holds lists")
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
