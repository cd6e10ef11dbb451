"""What an NWB file holds: its tables, their columns with ranges, its time series; and a guess of the command that reads it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.entries import Entry
from connector.data.nwb_file import opened
from connector.data.nwb_options import NwbOptions
from connector.data.nwb_series import all_series, channel_table, times_of
from connector.data.nwb_tables import Table, interval_tables, units_of
from connector.data.nwb_trials import regular_interval
from connector.errors import UserError

_LINES = 80
_MOST_BYTES = 50_000_000  # of a column that is read to tell its range
_MOST_NUMBERS = 2_000_000  # of a series
_SHORTEST_S = 0.2  # of its rows
_FEWEST_TRIALS, _FEWEST_ROWS = 5, 20  # rows of trials, and of another table that may be trials
_CHOICE = re.compile(r"choice|response|decision|lick_?side|chosen", re.I)
_PIECES = ["data.bin_s=0.05", "data.piece_s=2"]


@dataclass
class _Series:
    """A time series in words; ``low``, ``high``: of the samples looked at; ``step_s``: between them, 0 where irregular;
    ``counts``: whole numbers from 0 on that the file calls counts or spikes."""

    path: str
    kind: str
    shape: tuple[int, ...]
    low: float = math.nan
    high: float = math.nan
    step_s: float = 0.0
    counts: bool = False
    row: tuple[str, str, str, str] = ("", "", "", "")


def described_nwb(path: Path, max_gigabytes: float) -> tuple[list[str], str]:
    """Lines on the tables of a file, their columns, its series; the command guessed and what to think of it, in lines.

    Raises:
        UserError: a file that cannot be read.
    """
    with opened(path, max_gigabytes) as nwb:
        return _described(path, nwb, max_gigabytes)


def require_activity(path: Path, nwb: Any, options: NwbOptions) -> None:
    """Raises UserError, with what the file holds and a guess of the command, where it has no units and no series is named."""
    units = units_of(nwb)
    if units is not None and len(units) and "spike_times" in units.colnames:
        return
    lines, command = _described(path, nwb, options.max_gigabytes)
    table = "\n".join(f"  {line}" for line in lines)
    raise UserError(
        "an NWB file with a table of units with spike times, or data.series naming a time series of activity",
        f"{path.name}, without such units",
        f"Tables and series of {path.name}:\n{table or '  none'}\n{command or 'No series has several channels.'}",
    )


def _described(path: Path, nwb: Any, max_gigabytes: float) -> tuple[list[str], str]:
    named: dict[str, Any] = {"units": units_of(nwb), "electrodes": nwb.electrodes, **interval_tables(nwb)}
    tables = {name: [] for name, table in named.items() if table is not None}
    rows: list[tuple[str, str, str, str]] = []
    for name in tables:
        if not len(named[name]):
            rows.append((name, "0 rows", "", ""))
            continue
        table = Table(path, nwb, name, max_gigabytes)
        tables[name] = [_column(table, column) for column in table.table.colnames]
        rows.append((name, f"{len(table)} rows", "", ""))
        rows += [(f"  {row[0]}", *row[1:]) for row in (entry.row for entry in tables[name])]
    series = [_series(key, x, max_gigabytes) for key, x in all_series(nwb).items()]
    rows += [("time series", "", "", "")] * bool(series) + [(f"  {x.row[0]}", *x.row[1:]) for x in series]
    left, rows = len(rows) - _LINES, rows[:_LINES]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = ["  ".join([x.ljust(n) for x, n in zip(row, widths)] + [row[3]]).rstrip() for row in rows]
    lines += [f"... and {left} more"] if left > 0 else []
    options, doubt = _guess(tables, {name: len(x) for name, x in named.items() if x is not None}, series)
    if not doubt:
        return lines, ""
    command = shlex.join(["python", "train.py", "data=nwb", f"data.path={path}", *options])
    return lines, f"{command}\nThis is a guess: {doubt}."


def _column(table: Table, column: str) -> Entry:
    """A column of a table: of lists all that they hold together."""
    entry, data = Entry(column), table.table[column]
    target = data
    while hasattr(target, "target"):
        target = target.target
    held = getattr(target, "data", None)
    size = math.prod(getattr(held, "shape", (0,))) * getattr(getattr(held, "dtype", None), "itemsize", 1)
    if size > _MOST_BYTES:
        entry.shapes, entry.unread = [tuple(held.shape)], "not looked at"
        return entry
    try:
        rows = table.rows(column)
        flat = np.concatenate([np.ravel(x) for x in rows]) if isinstance(rows, list) and rows else np.asarray(rows)
        if flat.dtype.kind == "O" and all(isinstance(x, (str, bytes)) for x in flat.ravel()[:1]):
            flat = np.array([x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in flat.ravel()])
    except (UserError, ValueError, TypeError, AttributeError):
        entry.unread = "lists of lists" if hasattr(getattr(data, "target", None), "target") else "no numbers or texts"
        return entry
    if flat.dtype.kind not in "biufSU":
        entry.unread = "references to other parts of the file"
        return entry
    entry.see(flat)
    if isinstance(rows, list):
        entry.lists, entry.shapes = (len(rows),), [(n,) for n in map(len, rows)] or [(0,)]
    return entry


def _series(key: str, series: Any, max_gigabytes: float) -> _Series:
    data, found = series.data, _Series(key, type(series).__name__, ())
    shape = tuple(getattr(data, "shape", None) or np.shape(data))
    place = channel_table(series)[1]
    if len(shape) == 2 and series.timestamps is None and len(place) == shape[0] != shape[1]:
        shape, found.kind = shape[::-1], f"{found.kind}, (channels, samples) in the file"
    found.shape = tuple(n for i, n in enumerate(shape) if i == 0 or n != 1)
    when, scaled = "", ""
    try:
        times = times_of(series, {}, shape[0] if shape else 0, max_gigabytes)
        known = times[np.isfinite(times)]
        found.step_s = regular_interval(known[: min(len(known), 10_000)]) if len(known) > 1 else 0.0
        every = f"every {found.step_s:.4g} s" if found.step_s else "at irregular times"
        when = f"{every}, {known.min():.6g} to {known.max():.6g} s" if len(known) else "without times"
        if len(shape) in (1, 2) and math.prod(shape):
            some = np.asarray(data[: max(1, _MOST_NUMBERS // max(1, math.prod(np.shape(data)[1:])))])
            if some.dtype.kind in "biuf":
                some = some * (series.conversion or 1.0) + (series.offset or 0.0)
                found.low, found.high = float(np.nanmin(some)), float(np.nanmax(some))
                scaled = f"{found.low:.4g} to {found.high:.4g} {series.unit or ''}".rstrip()
                said = re.search(r"spike|count", f"{key} {series.unit}", re.IGNORECASE)
                found.counts = bool(said) and found.low >= 0 and bool((some == np.round(some)).all())
    except (UserError, ValueError, TypeError, OSError):
        scaled = scaled or "no numbers"
    sizes = " x ".join(map(str, found.shape))
    found.row = (key, sizes, found.kind, "; ".join(x for x in (when, scaled) if x))
    return found


# --- a guess -----------------------------------------------------------------------------------------------------------


def _guess(tables: dict[str, list[Entry]], sizes: dict[str, int], series: Sequence[_Series]) -> tuple[list[str], str]:
    """Options of ``data=nwb``, and what is doubtful about them; nothing where nothing looks like activity."""
    spikes = any(entry.key == "spike_times" for entry in tables.get("units", ()))
    options, doubt = ([], "") if spikes else _activity(series)
    if not spikes and not options:
        return [], ""
    usable = [
        x
        for x in tables
        if x not in ("units", "electrodes", "invalid_times") and _may_be_trials(tables[x], sizes[x], x)
    ]
    if not usable:
        pieces = (_PIECES if spikes else _PIECES[1:]) + ["data.table=session"] * (sizes.get("trials", 0) > 0)
        return options + pieces, doubt or "the recording has no trials and is cut into pieces"
    table = "trials" if "trials" in usable else max(usable, key=lambda x: sizes[x])
    options += [] if table == "trials" else [f"data.table={table}"]
    for entry in tables[table]:
        said = _values(entry) if _CHOICE.search(entry.key) and not entry.lists else None
        if said is not None:
            options += [f"data.choices={entry.key}", *said]
            break
    return options, doubt or f"each row of {table} is a trial, from start_time to stop_time"


def _may_be_trials(columns: list[Entry], n_rows: int, name: str) -> bool:
    """Whether a table has enough rows, and these are long enough."""
    ends = {entry.key: entry.first for entry in columns if entry.key in ("start_time", "stop_time")}
    fewest = _FEWEST_TRIALS if name == "trials" else _FEWEST_ROWS
    if n_rows < fewest or len(ends) < 2 or any(x is None for x in ends.values()):
        return False
    lasting = (ends["stop_time"] - ends["start_time"]).astype(float)
    return not (lasting < _SHORTEST_S).sum() > len(lasting) / 2


def _values(entry: Entry) -> list[str] | None:
    """``choice_values`` of a column that seems to hold choices; None for another."""
    words = [word.lower() for word in entry.words]
    if entry.words:
        if {"left", "right"} <= set(words):
            return []
        return [f"data.choice_values=[{','.join(entry.words)}]"] if len(words) == 2 else None
    if not entry.whole or not entry.low < entry.high:
        return None
    if (entry.low, entry.high) == (0, 1):
        return []
    pair = (entry.low, entry.high) in ((-1, 1), (1, 2))
    return [f"data.choice_values=[{entry.low:g},{entry.high:g}]"] if pair else None


def _activity(series: Sequence[_Series]) -> tuple[list[str], str]:
    """``series`` that are most likely activity, and what is doubtful about them."""
    wide = [x for x in series if len(x.shape) == 2 and x.shape[1] > 1 and math.isfinite(x.low) and x.low < x.high]
    wide = [x for x in wide if x.kind not in ("SpatialSeries", "ElectricalSeries")] or wide
    if not wide:
        return [], ""

    def rank(x: _Series) -> tuple:
        imaged, name = x.kind == "RoiResponseSeries", x.path.lower()
        return imaged, *(bool(re.search(y, name)) for y in (r"df|d_?over", "fluor|roi", "^(?!.*neurop)")), x.shape[1]

    best = max(wide, key=rank)
    alike = [x for x in wide if re.sub(r"\d+", "#", x.path) == re.sub(r"\d+", "#", best.path)]
    names = best.path if len(alike) == 1 else f"[{','.join(x.path for x in alike)}]"
    options = [f"data.series={names}"]
    if not best.step_s:
        options.append("data.bin_s=0.1")
    elif best.counts:
        options.append("data.kind=spikes")
    return options, "check that the series is activity of neurons"
