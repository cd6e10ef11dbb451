"""What a file itself states of an array: names of its axes, and units of time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KEPT = re.compile(r"unit|^dt$|bin_?(size|width)|rate|freq|period|^fs$|^sr$|^PSEUDOATOM$", re.I)  # among attributes
_ROLES = {
    "time": r"t|times?|time_?(bins?|stamps?|points?|steps?|s|ms|axis)|samples?|bins?|frames?|steps?",
    "neuron": r"(neuron|unit|cell|roi|channel|cluster|component)(_?(ids?|index|names?|number))?s?",
    "trial": r"(trial|event|repeat|repetition|presentation)(_?(ids?|index|number))?s?",
}
_UNITS = {
    "1": r"s|secs?|seconds?",
    "0.001": r"ms|msecs?|millisecs?|milliseconds?",
    "1e-06": r"us|usecs?|\u00b5s|\u03bcs|microsecs?|microseconds?",
    "samples": r"samples?|ticks?",
}


def role_of(name: str) -> str:
    """time, neuron or trial, which the name of an axis means; "" for another."""
    return next((role for role, names in _ROLES.items() if re.fullmatch(names, name, re.I)), "")


def unit_of(text: str) -> str:
    """Seconds per unit that a text such as ms or "milliseconds since ..." names, as an option takes them; samples; or ""."""
    first = re.split(r"[\s(]", text.strip(), maxsplit=1)[0]
    return next((unit for unit, names in _UNITS.items() if re.fullmatch(names, first, re.I)), "")


def unit_of_name(name: str) -> str:
    """The unit with which the name of an array ends, such as onset_ms; ""."""
    end = re.search(r"(?:_|(?<=[a-z])(?=[A-Z]))([A-Za-z]?[a-z\u00b5\u03bc]+|[A-Z]+)$", name)
    return unit_of(end[1]) if end else ""


def axes_of_dataset(item: Any) -> tuple[str, ...]:
    """Names of the axes of an HDF5 dataset, by its dimension scales (as netCDF has them) or labels, "" for one without."""
    try:
        return tuple(dim[0].name.rpartition("/")[2] if len(dim) else dim.label for dim in item.dims)
    except (KeyError, OSError, RuntimeError, ValueError, AttributeError):  # scales that are no longer there
        return ()


def attributes_of(item: Any) -> dict[str, Any]:
    """Numbers and texts among the attributes of an HDF5 dataset, its group and its file that tell of units, rates and bins."""
    found = {}
    for holder in (item.file, item.parent, item):
        names = [name for name in holder.attrs if _KEPT.search(name)]
        for name in names if holder is item else [name for name in names if "unit" not in name.lower()]:
            value = _single(holder.attrs, name)
            found |= {} if value is None else {name: value}
    return found


def _single(attributes: Mapping[str, Any], name: str) -> float | str | None:
    """A number or text; None for anything else."""
    try:
        value = attributes[name]
    except (OSError, RuntimeError, TypeError, ValueError):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str):
        return value
    kind, size = getattr(getattr(value, "dtype", None), "kind", ""), getattr(value, "size", 0)
    return float(value.reshape(-1)[0]) if kind and kind in "iuf" and size == 1 else None
