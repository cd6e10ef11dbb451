"""Units of NWB files: chosen by their columns and by their rates, named by where they were recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from connector.data.nwb_tables import Table, matching, text
from connector.errors import UserError


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
        return [text(x) for x in np.asarray(unit_values(cells, "location"))[kept]]
    except UserError:
        return []


def unit_names(cells: Table, kept: np.ndarray, places: list[str]) -> tuple[str, ...]:
    if "unit_name" in cells.columns:
        return tuple(text(value) for value in np.asarray(cells.rows("unit_name"))[kept])
    ids = np.asarray(cells.table.id[:])[kept]
    return tuple(f"{place} {number}" for place, number in zip(places or ["unit"] * len(kept), ids))
