"""The trials of an NWB file: rows of a table of intervals, or pieces of them, or of the whole session where no table is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.nwb_clock import Clock
from connector.data.nwb_observed import observed_spans
from connector.data.nwb_options import SESSION, NwbOptions
from connector.data.nwb_series import Samples, all_series, in_session, recorded_steps, stretches_of_samples
from connector.data.nwb_tables import Session, Table, interval_tables
from connector.data.nwb_trials import TrialBins, Window, trial_bins
from connector.data.pieces import require_pieces, samples_of, stretches_in, told
from connector.errors import UserError

_MOST_PIECES = 10**6


def table_of(path: Path, nwb, options: NwbOptions, span: Callable[[], tuple[float, float]], notes: list[str]) -> Table:
    """The table whose rows are the trials; with ``piece_s`` the session where it is asked for, or where there are no trials.

    Args:
        span: first and last second that was recorded.
    """
    trials = interval_tables(nwb).get("trials")
    without = options.table == "trials" and (trials is None or not len(trials))
    if options.piece_s is None or not (options.table == SESSION or without):
        if options.piece_s is not None:
            notes.append(f"rows of {options.table} are cut into pieces; data.table=session cuts the whole session")
        return Table(path, nwb, options.table, options.max_gigabytes)
    first, last = span()
    first = options.start_s or first
    last = last if options.stop_s is None else options.stop_s
    if not last > first:
        raise UserError("data.stop_s after the begin of the recording", f"{last:g} s, begin {first:g} s")
    why = "no table of trials: " if without else ""
    notes.append(
        f"{why}the session from {first:.6g} to {last:.6g} s is one recording; data.start_s and data.stop_s narrow it"
    )
    return Session(path, nwb, first, last, options.max_gigabytes)


def clock_of(table: Table, cells: Table | None, options: NwbOptions, notes: list[str]) -> Clock:
    """The clock of the table's times and of the others that the options name."""
    units_s = options.scales_s
    of_cells = [] if cells is None else cells.columns
    series = [x.name for x in all_series(table.nwb).values()] if units_s else []
    known = [*table.columns, *of_cells, "invalid_times", *series]
    for name, columns in (("time_units", units_s), ("from_start", options.from_start)):
        unknown = ", ".join(column for column in columns if column not in known and not table.has(column))
        if unknown:
            raise UserError(f"columns for data.{name} among {', '.join(known)}", unknown)
    event_times = "auto" if options.event_times == "align" else options.event_times
    if isinstance(table, Session):  # which has its times in seconds
        units_s = {column: unit for column, unit in units_s.items() if column not in table.columns}
    return Clock(table, units_s, list(options.from_start), notes, event_times)


def _longer(clock: Clock) -> str:
    """What to do where rows are shorter than a piece."""
    name = clock.table.name
    return "" if name == SESSION else f"these are rows of {name}: data.table=session cuts the whole session"


def rows_of(clock: Clock, options: NwbOptions, bin_s: float, notes: list[str]) -> TrialBins:
    """The bins of the table's rows."""
    until = "stop_time" if options.until is None and options.stop_s is None else options.until
    window = Window(options.align or "start_time", options.start_s, options.stop_s, until, bin_s)
    if isinstance(clock.table, Session):
        named = [x for x in (options.align, options.until) if x not in (None, "start_time", "stop_time")]
        if named:
            raise UserError(
                "data.align and data.until with a table of trials", f"{named[0]!r}, of the session cut into pieces"
            )
        window = Window("start_time", 0.0, None, "stop_time", bin_s)
    return trial_bins(clock, window, options.trials or {}, notes)


def pieces_of_spikes(
    rows: TrialBins, cells: Table, units: np.ndarray, clock: Clock, options: NwbOptions, notes: list[str]
) -> tuple[TrialBins, int]:
    """Pieces of the rows, of bins in which some of the units were observed; and the bins between sets of pieces."""
    n, gap = samples_of(options.piece_s, options.gap_s, rows.bin_s)
    spans = np.array([[-np.inf, np.inf]])
    if options.unobserved == "leave_out":
        spans = observed_spans(cells, units, rows, clock)
    if rows.lengths.sum() > _MOST_PIECES * n:
        got = f"{rows.lengths.sum() * rows.bin_s:.3g} s"
        remedy = "in samples, data.time_units={spike_times:1/30000}; or lengthen data.piece_s"
        raise UserError(f"a recording of at most {_MOST_PIECES:g} pieces of {options.piece_s:g} s", got, remedy)
    stretches, begin, n_bins, longest = stretches_of_spans(rows, spans, n)
    require_pieces(stretches, n, longest, rows.bin_s, options.piece_s, _longer(clock))
    notes += told(n, gap, rows.bin_s, rows.n_trials, len(stretches), n_bins - n * len(stretches))
    return _cut(rows, stretches, begin, n), gap


def stretches_of_spans(rows: TrialBins, spans: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Pieces of n bins, one behind the other within each span (spans, 2) that was observed of a row.

    Returns:
        the row of each and its first bin in the session (pieces, 2); when each begins (pieces,), s; bins in all spans; of the longest.
    """
    found, begin, number, longest = [], [], 0, 0
    for row, (a, b) in enumerate(zip(rows.begin, rows.begin + rows.lengths * rows.bin_s)):
        for low, high in spans[(spans[:, 0] < b) & (spans[:, 1] > a)]:
            low, high = max(low, a), min(high, b)
            bins = int((high - low) / rows.bin_s + 1e-6)
            number, longest = number + bins, max(longest, bins)
            starts = n * np.arange(bins // max(n, 1))
            found += [(row, in_session(low, rows.bin_s) + start) for start in starts]
            begin += list(low + rows.bin_s * starts)
    return np.array(found, dtype=np.int64).reshape(-1, 2), np.array(begin), number, longest


def pieces_of_series(
    rows: TrialBins, samples: Samples, clock: Clock, options: NwbOptions, notes: list[str]
) -> tuple[TrialBins, int]:
    """Pieces of the rows, of neighbouring samples; gaps between samples are in none."""
    if rows.bin_s != samples.step_s:
        there = recorded_steps(rows, samples)
        n, gap = samples_of(options.piece_s, options.gap_s, rows.bin_s)
        stretches = stretches_in(there, n, rows.bin_s, options.piece_s, _longer(clock))
        notes += told(n, gap, rows.bin_s, rows.n_trials, len(stretches), int(there.sum()) - n * len(stretches))
        begin = rows.begin[stretches[:, 0]] + stretches[:, 1] * rows.bin_s
        stretches[:, 1] += [in_session(x, rows.bin_s) for x in rows.begin[stretches[:, 0]]]
        return _cut(rows, stretches, begin, n), gap
    n, gap = samples_of(options.piece_s, options.gap_s, rows.bin_s)
    ends = rows.begin + rows.lengths * rows.bin_s
    if isinstance(clock.table, Session):  # whose samples, by their clock, may be more than its bins
        ends = clock.as_written("stop_time")
    stretches, begin, n_samples, longest = stretches_of_samples(rows.begin, ends, samples, n)
    require_pieces(stretches, n, longest, rows.bin_s, options.piece_s, _longer(clock))
    notes += told(n, gap, rows.bin_s, rows.n_trials, len(stretches), n_samples - n * len(stretches))
    return _cut(rows, stretches, begin, n), gap


def _cut(rows: TrialBins, stretches: np.ndarray, begin: np.ndarray, n: int) -> TrialBins:
    """Pieces of one recording, the session, whichever rows they are cut from: rows may follow each other without a gap."""
    of, lengths = stretches[:, 0], np.full(len(stretches), n, dtype=np.int64)
    one = np.stack([np.zeros_like(of), stretches[:, 1]], axis=1)
    return TrialBins(rows.rows[of], rows.event_s[of], begin, lengths, rows.bin_s, one)


def told_of(bins: TrialBins, what: str, n_channels: int, places: list[str]) -> list[str]:
    """Trials and neurons in words. Args: what: of the neurons, in words."""
    from connector.types import span

    said = f"{bins.n_trials} trials of {span(bins.lengths)} bins of {1000 * bins.bin_s:g} ms; {n_channels} {what}"
    counted = ", ".join(f"{places.count(place)} {place}" for place in dict.fromkeys(places))
    return [said, f"units: {counted}"] if places else [said]


def more_of_pieces(bins: TrialBins, gap: int) -> dict[str, Any]:
    """Attributes of a Recording of pieces, or of trials that overlap, which have samples in common as well."""
    from connector.data.recorded import tensor

    if bins.stretches is not None:
        return {"stretches": tensor(bins.stretches), "gap": gap}
    if not bins.overlaps:
        return {}
    first = np.floor(bins.begin / bins.bin_s + 1e-6).astype(np.int64)
    return {"stretches": tensor(np.stack([np.zeros_like(first), first], axis=1)), "gap": 0}
