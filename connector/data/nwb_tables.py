"""Tables of NWB files: their columns, of any kind, read whole, rows chosen by them, and the units among them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.preprocessing import as_text as text
from connector.errors import UserError
from connector.files import check_size, limited_memory

_TABLES = ("units", "electrodes")
_SMALL_GB = 0.001  # columns smaller than this are read whatever data.max_gigabytes, which is about the counts


class Table:
    """A table of an NWB file with errors that name the columns there are."""

    def __init__(self, path: Path, nwb, name: str, max_gigabytes: float):
        self.path, self.nwb, self.name, self.max_gigabytes = path, nwb, name, max_gigabytes
        intervals = _interval_tables(nwb)
        of_rows = intervals if name not in _TABLES else {name: getattr(nwb, name)}
        self.table = of_rows.get(name)
        if self.table is None or len(self.table) == 0:
            there = [x for x in _TABLES if getattr(nwb, x, None) is not None] + list(intervals)
            usable = [x for x in intervals if x != name and x != "invalid_times" and len(intervals[x])]
            remedy = ", or ".join(f"data.table={x}" for x in usable)
            raise UserError(
                f"an NWB file with a table of {name}",
                f"{path.name}, whose {name} are {'absent' if self.table is None else 'empty'} "
                f"(tables: {', '.join(there) or 'none'})",
                f"read the rows of another table as trials: {remedy}" if remedy and name not in _TABLES else "",
            )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> list[str]:
        return list(self.table.colnames)

    def rows(self, column: str, what: str = "") -> list | np.ndarray:
        """A column: an array with one value or row for each row of the table, or a list of arrays where it is ragged.

        Raises:
            UserError: no such column; names those there are.
        """
        if column not in self.columns:
            raise UserError(
                f"a column of the {self.name} table" + (f" with {what}" if what else ""),
                f"{column!r} in {self.path.name}",
                f"there are: {', '.join(self.columns)}",
            )
        value = self.table[column]
        if hasattr(value, "target"):  # ragged: an index into the data of all rows
            if hasattr(value.target, "target"):
                raise UserError(f"a {self.name} column of values or lists", f"{column!r}, which holds lists of lists")
            ends = np.asarray(whole(value.data, self.max_gigabytes), dtype=np.int64)
            data = whole(value.target.data, self.max_gigabytes)
            starts = np.r_[0, ends[:-1]]
            if (ends < starts).any() or ends[-1] > len(data):
                raise UserError(
                    f"a {self.name} column whose rows follow one another",
                    f"{column!r} in {self.path.name}, whose index is damaged",
                )
            return [np.asarray(data[a:b]) for a, b in zip(starts, ends)]
        plain = hasattr(value, "data") and not hasattr(value, "elements")
        data = whole(value.data if plain else value, self.max_gigabytes)
        return data if isinstance(data, list) else np.asarray(data)

    def numbers(self, column: str) -> np.ndarray:
        """A column of one number in each row, (rows,) float."""
        value = self.rows(column)
        array = None if isinstance(value, list) else value
        if array is None or array.ndim != 1 or array.dtype.kind not in "biuf":
            kind = "lists" if array is None or array.ndim != 1 else "text"
            raise UserError(f"a {self.name} column with one number in each row", f"{column!r}, which holds {kind}")
        return array.astype(float)

    def is_boolean(self, column: str) -> bool:
        return getattr(self.rows(column), "dtype", np.dtype(float)).kind == "b"


def _interval_tables(nwb) -> dict[str, Any]:
    """The tables of time intervals of a file by their names, trials among them."""
    found = {x: getattr(nwb, x, None) for x in ("trials", "epochs", "invalid_times")}
    return {x: table for x, table in {**found, **(nwb.intervals or {})}.items() if table is not None}


def whole(data, max_gigabytes: float):
    """All of a column or series; refused where the size that the file declares is too large."""
    if getattr(data, "shape", None) is not None and getattr(data, "dtype", None) is not None:
        size = 1e-9 * math.prod(data.shape) * np.dtype(data.dtype).itemsize
        if size > _SMALL_GB:
            check_size(size, max_gigabytes, "raise data.max_gigabytes if the memory is there")
    with limited_memory(max_gigabytes):
        return data[:]


def matching(rows: list | np.ndarray, wanted: Any, what: str) -> np.ndarray:
    """Which rows hold one of the values wanted; numbers compare as numbers, all else as text."""
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if isinstance(rows, list) or rows.ndim != 1:
        raise UserError(f"{what} with one value in each row", "lists")
    if rows.dtype.kind in "biuf":
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


def unit_values(cells: Table, column: str) -> list | np.ndarray:
    """A units column, or, by each unit's first electrode, one of the electrodes table or the location of its group."""
    if column in cells.columns:
        return cells.rows(column)
    electrodes = cells.nwb.electrodes
    of_electrodes = [] if electrodes is None else list(electrodes.colnames)
    if column in of_electrodes and "electrodes" in cells.columns:
        index = cells.table["electrodes"]
        ends = np.asarray(index.data[:], dtype=np.int64)
        if hasattr(index, "target"):
            region, starts = np.asarray(index.target.data[:], dtype=np.int64), np.r_[0, ends[:-1]]
        else:
            region, starts, ends = ends, np.arange(len(ends)), np.arange(len(ends)) + 1
        values = Table(cells.path, cells.nwb, "electrodes", cells.max_gigabytes).rows(column)
        return np.array([text(values[region[a]]) if b > a else "" for a, b in zip(starts, ends)])
    if column == "location" and "electrode_group" in cells.columns:
        return np.array([str(group.location) for group in cells.table["electrode_group"][:]])
    there = cells.columns + [x for x in of_electrodes if x not in cells.columns and "electrodes" in cells.columns]
    raise UserError("a column of the units table", f"{column!r} in {cells.path.name}", f"there are: {', '.join(there)}")


def filtered_units(cells: Table, wanted: dict[str, Any], notes: list[str]) -> np.ndarray:
    """Numbers of the units with the values wanted in their columns."""
    keep = np.ones(len(cells), dtype=bool)
    for column, values in wanted.items():
        keep &= matching(unit_values(cells, column), values, f"units column {column}")
    if not keep.any():
        raise UserError("units that data.units keeps", f"none of {len(keep)}", "loosen data.units")
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} units left out by data.units")
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
        notes.append(f"{int((~active).sum())} units {below} left out")
    elif (rates == 0).any():
        notes.append(f"{int((rates == 0).sum())} units never fire in the trials")
    return active


def unit_places(cells: Table, kept: np.ndarray) -> list[str]:
    """Where each unit was recorded; empty where the file does not say."""
    try:
        places = [text(x) for x in np.asarray(unit_values(cells, "location"))[kept]]
    except UserError:
        return []
    return places if any(places) else []


def unit_names(cells: Table, kept: np.ndarray, places: list[str]) -> tuple[str, ...]:
    if "unit_name" in cells.columns:
        return tuple(text(value) for value in np.asarray(cells.rows("unit_name"))[kept])
    ids = np.asarray(cells.table.id[:])[kept]
    return tuple(f"{place} {number}" for place, number in zip(places or ["unit"] * len(kept), ids))
