"""Tables of NWB files: their columns, of any kind, read whole, rows chosen by them, and the units among them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.nwb_options import SESSION
from connector.data.preprocessing import as_text as text
from connector.errors import UserError
from connector.files import check_size, limited_memory
from connector.report.numbers import counted

_TABLES = ("units", "electrodes")
_SMALL_GB = 0.001  # columns smaller than this are read whatever data.max_gigabytes, which is about the counts
# Columns that labs write a unit's place in, and those that hold the id of its electrode where no region does.
_PLACES = ("location", "brain_area", "brain_region", "region", "area", "structure", "ecephys_structure_acronym")
_ELECTRODE_IDS = ("peak_channel_id", "electrode_id", "channel_id", "maximum_amplitude_channel", "max_electrode")
_COMPARED = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "!=": operator.ne}


class Table:
    """A table of an NWB file with errors that name the columns there are."""

    def __init__(self, path: Path, nwb, name: str, max_gigabytes: float):
        self.path, self.nwb, self.name, self.max_gigabytes = path, nwb, name, max_gigabytes
        intervals = interval_tables(nwb)
        of_rows = intervals if name not in _TABLES else {name: units_of(nwb) if name == "units" else nwb.electrodes}
        self.table = of_rows.get(name)
        if self.table is None or len(self.table) == 0:
            there = [x for x in _TABLES if getattr(nwb, x, None) is not None] + list(intervals)
            usable = [x for x in intervals if x != name and x != "invalid_times" and len(intervals[x])]
            remedy = ", or ".join(f"data.table={x}" for x in usable)
            remedy = f"read the rows of another table as trials, {remedy}; or cut" if remedy else "cut"
            raise UserError(
                f"an NWB file with a table of {name}",
                f"{path.name}, whose {name} are {'absent' if self.table is None else 'empty'} "
                f"(tables: {', '.join(there) or 'none'})",
                f"{remedy} the whole recording into pieces, data.piece_s=2; what is there: python -m connector look {path}"
                if name not in _TABLES
                else "",
            )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> list[str]:
        """Names of the columns; a table of events has a start_time, and a stop_time where it has durations."""
        return [*self.table.colnames, *self._of_events]

    @property
    def _of_events(self) -> Sequence[str]:
        names = self.table.colnames
        if "timestamp" not in names or "start_time" in names:
            return []
        return ["start_time"] + ["stop_time"] * ("duration" in names)

    def has(self, column: str) -> bool:
        """Whether there is such a column, or, by NAME/NUMBER, such an entry of the rows of one, counted from 0."""
        name, _, number = column.rpartition("/")
        by_id = column == "id" and hasattr(self.table, "id")
        return by_id or column in self.columns or (name in self.columns and number.isdecimal())

    def rows(self, column: str, what: str = "") -> list | np.ndarray:
        """A column: an array with one value or row for each row of the table, or a list of arrays where it is ragged.

        Raises:
            UserError: no such column; names those there are.
        """
        if column == "id" and self.has(column) and column not in self.columns:
            return np.asarray(self.table.id[:])
        if column in self._of_events:
            return self.numbers("timestamp") + (self.numbers("duration") if column == "stop_time" else 0)
        whole_column, _, number = column.rpartition("/")
        if column not in self.columns and self.has(column):
            return _entry(self.rows(whole_column), int(number), f"the {self.name} column {whole_column}")
        if column not in self.columns:
            raise UserError(
                f"a column of the {self.name} table" + (f" with {what}" if what else ""),
                f"{column!r} in {self.path.name}",
                f"there are: {', '.join(self.columns)}",
            )
        value = self.table[column]
        if isinstance(getattr(getattr(getattr(value, "target", value), "data", None), "dtype", None), list):
            got = f"{column!r}, which holds references to other parts of the file"
            raise UserError(f"a column of {self.name} of numbers or texts", got)
        if hasattr(value, "target"):  # ragged: an index into the data of all rows
            if hasattr(value.target, "target"):
                raise UserError(
                    f"a column of {self.name} of values or lists", f"{column!r}, which holds lists of lists"
                )
            ends = np.asarray(whole(value.data, self.max_gigabytes), dtype=np.int64)
            data = whole(value.target.data, self.max_gigabytes)
            starts = np.r_[0, ends[:-1]]
            if (ends < starts).any() or ends[-1] > len(data):
                raise UserError(
                    f"a column of {self.name} whose rows follow one another",
                    f"{column!r} in {self.path.name}, whose index is damaged",
                )
            return [np.asarray(data[a:b]) for a, b in zip(starts, ends)]
        plain = hasattr(value, "data") and not hasattr(value, "elements")
        data = whole(value.data if plain else value, self.max_gigabytes)
        if isinstance(data, list) and any(np.ndim(x) for x in data):
            return data
        array = np.asarray(data)
        named = (
            array.dtype == object and array.ndim == 1 and all(isinstance(getattr(x, "name", None), str) for x in array)
        )
        return np.array([x.name for x in array]) if named else array  # objects of NWB, as groups of electrodes

    def numbers(self, column: str) -> np.ndarray:
        """A column of one number in each row, (rows,) float."""
        value = self.rows(column)
        array = None if isinstance(value, list) else value
        if array is None or array.ndim != 1 or array.dtype.kind not in "biuf":
            kind = "lists" if array is None or array.ndim != 1 else "text"
            raise UserError(f"a column of {self.name} with one number in each row", f"{column!r}, which holds {kind}")
        return array.astype(float)

    def is_boolean(self, column: str) -> bool:
        return getattr(self.rows(column), "dtype", np.dtype(float)).kind == "b"


class Session(Table):
    """The whole session as a table of one row: from ``first_s`` to ``last_s``."""

    def __init__(self, path: Path, nwb, first_s: float, last_s: float, max_gigabytes: float):
        self.path, self.nwb, self.name, self.max_gigabytes = path, nwb, SESSION, max_gigabytes
        self.table = {"start_time": np.array([first_s]), "stop_time": np.array([last_s])}

    def __len__(self) -> int:
        return 1

    _of_events = ()

    @property
    def columns(self) -> list[str]:
        return list(self.table)


def _entry(rows: list | np.ndarray, number: int, what: str) -> np.ndarray:
    """The entry of that number of each row, NaN or an empty text where a list is too short."""
    if isinstance(rows, np.ndarray) and (rows.ndim < 2 or number >= rows.shape[1]):
        raise UserError(f"{what} with {number + 1} entries or more in each row", f"shape {rows.shape}")
    if isinstance(rows, np.ndarray):
        return rows[:, number]
    there = [row[number] if len(row) > number else None for row in rows]
    texts = any(isinstance(x, (str, bytes)) for x in there)
    return np.array([("" if texts else np.nan) if x is None else x for x in there])


def interval_tables(nwb) -> dict[str, Any]:
    """The tables of time intervals of a file by their names, trials first: those of NWB, of events, others with a start_time."""
    found = {x: getattr(nwb, x, None) for x in ("trials", "epochs", "invalid_times")}
    found |= dict(nwb.intervals or {})
    for item in nwb.objects.values():
        timed = {"start_time", "timestamp"} & set(getattr(item, "colnames", None) or ())
        if timed and not any(item is x for x in found.values()):
            found.setdefault(item.name, item)
    return {x: table for x, table in found.items() if table is not None}


def units_of(nwb) -> Any:
    """The units table at its own place in NWB, else the largest anywhere; None where there is none."""
    import pynwb

    found = [x for x in nwb.objects.values() if isinstance(x, pynwb.misc.Units) and len(x)]
    return nwb.units if nwb.units is not None else max(found, key=len, default=None)


def whole(data, max_gigabytes: float):
    """All of a column or series; refused where the size that the file declares is too large."""
    if getattr(data, "shape", None) is not None and getattr(data, "dtype", None) is not None:
        size = 1e-9 * math.prod(data.shape) * np.dtype(data.dtype).itemsize
        if size > _SMALL_GB:
            check_size(size, max_gigabytes, "raise data.max_gigabytes if the memory is there")
    with limited_memory(max_gigabytes):
        return data[:]


def matching(rows: list | np.ndarray, wanted: Any, what: str) -> np.ndarray:
    """Which rows hold one of the values wanted, or a list with one of them; numbers compare as numbers, all else as text.

    A text such as ">0.9" stands for all numbers that it holds for.
    """
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if isinstance(rows, list) or rows.ndim != 1:
        sizes = [len(row) for row in rows]
        flat = np.concatenate([np.ravel(row) for row in rows]) if len(rows) else np.zeros(0)
        if isinstance(rows, np.ndarray) and rows.ndim > 2:
            raise UserError(f"{what} with one value, or a list, in each row", f"shape {rows.shape}")
        held = matching(flat, wanted, what)
        return np.array([part.any() for part in np.split(held, np.cumsum(sizes)[:-1])], dtype=bool)
    if rows.dtype.kind in "biuf":
        bounds = [_bound(value) for value in wanted]
        if all(bounds):
            return np.logical_or.reduce([compare(rows.astype(float), number) for compare, number in bounds])
        found = rows.astype(float)
        try:
            keys = [float(value) for value in wanted]
        except (TypeError, ValueError):
            keys = [np.nan]
    else:
        found, keys = np.array([text(value) for value in rows]), [str(value) for value in wanted]
    unknown = [value for value, key in zip(wanted, keys) if not (found == key).any()]
    if unknown:
        values = list(dict.fromkeys(f"{x:g}" if isinstance(x, float) else x for x in found.tolist()))
        listed = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
        raise UserError(f"values of the {what} among {listed}", ", ".join(map(str, unknown)))
    return np.isin(found, keys)


def _bound(value: Any) -> tuple[Callable[[Any, float], Any], float] | None:
    """Of "<0.5" the comparison and the number."""
    sign = next((x for x in _COMPARED if isinstance(value, str) and value.strip().startswith(x)), None)
    try:
        return None if sign is None else (_COMPARED[sign], float(value.strip()[len(sign) :]))
    except ValueError:
        return None


def unit_values(cells: Table, column: str) -> list | np.ndarray:
    """A units column, or, by each unit's first electrode, one of the electrodes table or the location of its group.

    A unit's electrode is the first of its ``electrodes``, or the one whose id it has, as in ``peak_channel_id``.
    """
    if cells.has(column):
        return cells.rows(column)
    electrodes = cells.nwb.electrodes
    of_electrodes = [] if electrodes is None else list(electrodes.colnames)
    place = _electrode_rows(cells) if column in of_electrodes else None
    if place is not None:
        values = Table(cells.path, cells.nwb, "electrodes", cells.max_gigabytes).rows(column)
        if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf" and (place >= 0).all():
            return values[place]
        return np.array([text(values[row]) if row >= 0 else "" for row in place])
    if column == "location" and "electrode_group" in cells.columns:
        return np.array([text(group.location) for group in cells.table["electrode_group"][:]])
    there = cells.columns + [x for x in of_electrodes if x not in cells.columns]
    raise UserError(
        f"a column of the {cells.name} table", f"{column!r} in {cells.path.name}", f"there are: {', '.join(there)}"
    )


def _electrode_rows(cells: Table) -> np.ndarray | None:
    """(units,) the row of the electrodes table of each unit, -1 for none; None where the file does not say."""
    if "electrodes" in cells.columns:
        index = cells.table["electrodes"]
        ends = np.asarray(index.data[:], dtype=np.int64)
        if not hasattr(index, "target"):
            return ends
        region, starts = np.asarray(index.target.data[:], dtype=np.int64), np.r_[0, ends[:-1]]
        return np.array([region[a] if b > a else -1 for a, b in zip(starts, ends)], dtype=np.int64)
    ids = {int(x): row for row, x in enumerate(cells.nwb.electrodes.id[:])}
    for column in _ELECTRODE_IDS:
        if (
            column in cells.columns
            and isinstance(values := cells.rows(column), np.ndarray)
            and values.dtype.kind in "iuf"
        ):
            rows = np.array([ids.get(int(x), -1) if np.isfinite(x) else -1 for x in values.ravel()], dtype=np.int64)
            if len(rows) == len(cells) and (rows >= 0).any():
                return rows
    return None


def filtered_rows(cells: Table, wanted: dict[str, Any], notes: list[str]) -> np.ndarray:
    """Numbers of the units, or of the rows of another table of channels, with the values wanted in their columns."""
    keep = np.ones(len(cells), dtype=bool)
    for column, values in wanted.items():
        keep &= matching(unit_values(cells, column), values, f"{cells.name} column {column}")
    if not keep.any():
        raise UserError("units that data.units keeps", f"none of {len(keep)}", "loosen data.units")
    if not keep.all():
        what = "units" if cells.name == "units" else f"rows of {cells.name}"
        notes.append(f"{int((~keep).sum())} of {len(keep)} {what} left out by data.units")
    return keep.nonzero()[0]


def active_units(rates: np.ndarray, min_rate_hz: float | None, notes: list[str]) -> np.ndarray:
    """Which units, of mean rates in Hz, fire enough in the trials, (units,) bool."""
    active = rates > 0 if min_rate_hz is None else rates >= min_rate_hz
    if not active.any() or not rates.any():
        raise UserError(
            "units that fire in the trials" + (f" at {min_rate_hz:g} Hz or more" if min_rate_hz else ""),
            f"a highest mean rate of {rates.max():.2g} Hz",
            "lower data.min_rate_hz" if rates.any() else "check data.align and the window",
        )
    if not active.all():
        below = "silent in the trials" if not min_rate_hz else f"below {min_rate_hz:g} Hz"
        notes.append(f"{counted(int((~active).sum()), 'unit')} {below} left out")
    elif (rates == 0).any():
        notes.append(f"{counted(int((rates == 0).sum()), 'unit')} without spikes in the trials")
    return active


def unit_places(cells: Table, kept: np.ndarray) -> list[str]:
    """Where each unit was recorded; empty where the file does not say."""
    for column in _PLACES:
        try:
            places = [text(x).strip() for x in np.asarray(unit_values(cells, column))[kept]]
        except UserError:
            continue
        if any(places):
            return places
    return []


def unit_names(cells: Table, kept: np.ndarray, places: list[str]) -> tuple[str, ...]:
    if "unit_name" in cells.columns:
        return tuple(text(value) for value in np.asarray(cells.rows("unit_name"))[kept])
    ids = np.asarray(cells.table.id[:])[kept]
    return tuple(f"{place} {number}" for place, number in zip(places or ["unit"] * len(kept), ids))
