"""What files of arrays hold, whatever their format: npz, npy, MATLAB v5 and v7.3, HDF5, tables of text. Arrays are found by their keys.

A key is made of names joined by `/` or `.`: groups, structs, fields. `*` stands for all members, `trial*` for those whose
names begin so, `trial%d` for `trial` with a number behind it; a number is the cell, or the column of an array, of that number.
Nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.matlab import INTERNAL, V73, Cells, read_matlab
from connector.data.readers import require_format
from connector.data.text_table import read_table
from connector.errors import UserError
from connector.files import array_headers, check_size, limited_memory, read_arrays, read_npy, refusing_damage

FORMATS = ("npz", "npy", "matlab5", "matlab73", "hdf5", "nwb", "nlb", "nwb1", "table")
_TOO_LARGE = "raise data.max_gigabytes if the memory is there"
_NAMED = 12  # keys that a message names
_WILD = re.compile(r"(\*|%d)")


@cache
def absent() -> np.ndarray:
    """In place of what a key names in an empty cell: this object, and no other empty array."""
    return np.zeros(0)


@dataclass(frozen=True)
class Leaf:
    """An array that is not read yet; ``dataset``: where it is, in HDF5."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Any]
    dataset: Any = None


class _Variables(Mapping):
    """The variables of a MATLAB v5 file, each read when it is asked for."""

    def __init__(self, path: Path, max_gigabytes: float):
        self.path, self.max_gigabytes, self.held, self.whole = path, max_gigabytes, {}, False

    def __getitem__(self, name: str) -> Any:
        if name not in self.held and not self.whole:
            self.held |= read_matlab(self.path, (name,), self.max_gigabytes)
        return self.held[name]

    def hold(self, names: Sequence[str]) -> None:
        """Read these, those that there are, in one go."""
        if not self.whole:
            self.held |= read_matlab(self.path, tuple(names), self.max_gigabytes)

    def __iter__(self) -> Iterator[str]:
        if not self.whole:
            self.held, self.whole = read_matlab(self.path, None, self.max_gigabytes), True
        return iter(self.held)

    def __len__(self) -> int:
        return len(list(iter(self)))


class _Group(Mapping):
    """A group of an HDF5 file; of a MATLAB v7.3 file a struct."""

    def __init__(self, group: Any, max_gigabytes: float, v73: V73 | None):
        self.group, self.max_gigabytes, self.v73 = group, max_gigabytes, v73

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.group if isinstance(name, str) and name not in INTERNAL)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in set(iter(self))

    def __getitem__(self, name: str) -> Any:
        import h5py

        item = self.group[name]
        if isinstance(item, h5py.Group):
            struct = self.v73 is None or not ("MATLAB_sparse" in item.attrs or self.v73.is_struct_array(item))
            return _Group(item, self.max_gigabytes, self.v73) if struct else self.v73.value(item)
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return None
        if self.v73 is not None:
            numbers = self.v73.is_numbers(item)
            return Leaf(item.shape[::-1], item.dtype, lambda: self.v73.value(item)) if numbers else self.v73.value(item)
        if h5py.check_ref_dtype(item.dtype) is not None:
            return None
        return Leaf(item.shape, item.dtype, lambda: self.read(item), item)

    def read(self, item: Any) -> Any:
        import h5py

        check_size(1e-9 * math.prod(item.shape) * item.dtype.itemsize, self.max_gigabytes, _TOO_LARGE)
        _require_filters(item)
        if h5py.check_string_dtype(item.dtype) is not None:
            return np.asarray(item.asstr(errors="replace")[()], dtype=str)
        value = np.asarray(item[()])
        if h5py.check_vlen_dtype(item.dtype) is not None:
            return nested(value)
        return _unpacked(value, item.attrs, "_NCProperties" in item.file.attrs)


def _require_filters(item: Any) -> None:
    """Refuses a data set that is packed by a filter which is not installed; those of hdf5plugin are, where that is."""
    import h5py

    made = item.id.get_create_plist()
    for i in range(made.get_nfilters()):
        number, _, _, name = made.get_filter(i)
        if not h5py.h5z.filter_avail(number):
            with contextlib.suppress(ImportError):
                importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(number):
            packer = name.decode(errors="replace") or f"filter {number}"
            remedy = "install hdf5plugin, or save the file again with gzip"
            raise UserError(f"{item.name} packed by a filter that is installed", packer, remedy)


def nested(value: np.ndarray) -> list:
    """The arrays in an array of objects, as lists in lists."""
    return [nested(x) for x in value] if value.ndim > 1 else list(value)


# What netCDF leaves in place of numbers that were never written, by their kind and size, where a file names no other.
_UNWRITTEN = {"f4": 15 * 2.0**119, "f8": 15 * 2.0**119, "i2": 1 - 2**15, "i4": 1 - 2**31, "i8": 2 - 2**63}


def _unpacked(value: np.ndarray, attributes: Mapping[str, Any], netcdf: bool) -> np.ndarray:
    """Numbers as netCDF packs them: ``value * scale_factor + add_offset``, and NaN where they are ``_FillValue`` or
    ``missing_value``, or were never written. Whole numbers may be so by chance in a file that is not netCDF."""
    names = ("scale_factor", "add_offset", "_FillValue", "missing_value")
    packed = {name: attributes[name] for name in names if name in attributes}
    unwritten = _UNWRITTEN.get(value.dtype.str[1:]) if "_FillValue" not in packed else None
    if unwritten is not None and (netcdf or value.dtype.kind == "f"):
        packed["_FillValue"] = unwritten
    if not packed or value.dtype.kind not in "iuf":
        return value
    filled = np.isin(value, [x for name in names[2:] for x in np.ravel(packed.get(name, []))])
    if names[0] in packed or names[1] in packed:
        value = value * np.asarray(packed.get("scale_factor", 1)) + np.asarray(packed.get("add_offset", 0))
    return np.where(filled, np.nan, value) if filled.any() else value


class Contents:
    """The arrays of one open file.

    Attributes:
        root: name -> a nested mapping, a list (:class:`Cells`), an array, a :class:`Leaf`, a text, or None for what is
            no array. one: the number of the first cell or column in keys: 1 in MATLAB's files, else 0.
    """

    def __init__(self, path: Path, root: Mapping, format: str):
        self.path, self.root, self.format = path, root, format
        self.one = int(format.startswith("matlab"))

    def value(self, key: str) -> Any:
        """What a key names: an array of numbers or texts, or a list of such, nested where the key has several `*`.

        Raises:
            UserError: no such key; what is there is no array.
        """
        return self._plain(self._walk(self.root, key.strip("/"), ""), key)

    def _plain(self, node: Any, key: str) -> Any:
        if node is absent():
            return node
        node = node.read() if isinstance(node, Leaf) else node
        if isinstance(node, Mapping):
            return [self._plain(node[name], f"{key}/{name}") for name in natural(node)]
        if isinstance(node, list):
            held = [self._plain(x, key) for x in node]
            return Cells(held, node.shape) if isinstance(node, Cells) else held
        if node is None or np.asarray(node).dtype.kind not in "biufcSU":
            got = "an object, a table or a sparse matrix" if node is None else str(np.asarray(node).dtype)
            remedy = "in MATLAB, save full(x) of a sparse matrix, and the columns of a table" if node is None else ""
            raise UserError(f"an array of numbers or texts as {key} in {self.path.name}", got, remedy)
        return np.asarray(node)

    def _walk(self, node: Any, rest: str, place: str) -> Any:
        if not rest:
            return node
        node = node.read() if isinstance(node, Leaf) else node
        head, tail = _split(rest)
        if isinstance(node, Mapping):
            return self._member(node, rest, place)
        if isinstance(node, list):
            if head.isdecimal():
                if not self.one <= int(head) < len(node) + self.one:
                    raise self._absent(rest, place, [f"{self.one} to {len(node) - 1 + self.one}"])
                return self._walk(node[int(head) - self.one], tail, f"{place}/{head}")
            places = [f"{place}/{i + self.one}" for i in range(len(node))]
            return self._each(node, tail if head == "*" else rest, places)
        if isinstance(node, np.ndarray) and node.dtype.names and head in node.dtype.names:
            return self._walk(node[head], tail, f"{place}/{head}")
        if isinstance(node, np.ndarray) and node.ndim and head.isdecimal():
            if not self.one <= int(head) < node.shape[-1] + self.one:
                raise self._absent(rest, place, [f"columns {self.one} to {node.shape[-1] - 1 + self.one}"])
            return self._walk(node[..., int(head) - self.one], tail, f"{place}/{head}")
        raise self._absent(rest, place, list(getattr(getattr(node, "dtype", None), "names", None) or []))

    def _member(self, node: Mapping, rest: str, place: str) -> Any:
        """Of a group or struct; names may themselves hold `/` or `.`."""
        for end in _ends(rest):
            if rest[:end] in node:
                return self._walk(node[rest[:end]], rest[end + 1 :], f"{place}/{rest[:end]}")
            names = fitting(node, rest[:end])
            if names:
                return self._each(
                    [node[name] for name in names], rest[end + 1 :], [f"{place}/{name}" for name in names]
                )
        raise self._absent(rest, place, natural(node) or ["nothing"])

    def _each(self, items: list, rest: str, places: Sequence[str]) -> list:
        """What the rest of a key names in each of the items, which are at these places. Cells that are empty have nothing there: :func:`absent` keeps their
        place, so that the numbers of the others stay."""
        found = [absent() if rest and _is_empty(x) else self._walk(x, rest, at) for x, at in zip(items, places)]
        return Cells(found, items.shape) if isinstance(items, Cells) else found

    def members(self, key: str) -> list[str]:
        """The names that the first `*` or `%d` of a key stands for, of a group or struct; none of a list, or where there is neither."""
        key = key.strip("/")
        first = _WILD.search(key)
        for place in [0, *(m.end() for m in re.finditer(r"[/.]", key[: first.start()]))] if first else ():
            with contextlib.suppress(UserError):
                node = self._walk(self.root, key[:place].rstrip("/."), "")
                ends = _ends(key[place:]) if isinstance(node, Mapping) else ()
                names = next(filter(None, (fitting(node, key[place:][:end]) for end in ends)), [])
                if names:
                    return names
        return []

    def beside(self, key: str, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors with these names in the group or struct that holds what a key names, by their keys."""
        head = re.match(r"(?:.*[/.])?", key.strip("/"))[0].rstrip("/.")
        node = None
        if not _WILD.search(head):
            with contextlib.suppress(UserError):
                node = self._walk(self.root, head, "")
        if isinstance(node, _Variables):
            node.hold(names)
            node = node.held
        found = {}
        for name in names if isinstance(node, Mapping) else ():
            item = node.get(name)
            vector = isinstance(item, (Leaf, np.ndarray)) and sum(n > 1 for n in item.shape) == 1
            if vector and item.dtype.kind in "iuf":
                found[f"{head}/{name}".strip("/").replace(".", "/")] = self._plain(item, name)
        return found

    def _absent(self, rest: str, place: str, names: list[str]) -> UserError:
        there = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        where = f"{self.path.name}:{place.strip('/')}" if place else self.path.name
        return UserError(
            f"{rest} in {where}", "no such key", f"there: {there}" if there else "an array has no more parts"
        )


def fitting(names: Iterable[str], pattern: str) -> list[str]:
    """Those of the names for which a pattern with `*`, anything, or `%d`, digits, stands; none where it has neither."""
    parts = _WILD.split(pattern)
    if len(parts) == 1:
        return []
    wild = {"*": ".*", "%d": r"\d+"}
    whole = re.compile("".join(wild.get(part, re.escape(part)) for part in parts), re.DOTALL)
    return [name for name in natural(names) if whole.fullmatch(name)]


def _ends(key: str) -> tuple[int, ...]:
    """Where the first name of a key may end, the longest name first."""
    return len(key), *reversed([m.start() for m in re.finditer(r"[/.]", key)])


def _split(key: str) -> tuple[str, str]:
    first = re.match(r"([^/.]*)[/.]?(.*)", key, re.DOTALL)
    return first[1], first[2]


def _is_empty(node: Any) -> bool:
    return node is None or (
        node.size == 0 if isinstance(node, np.ndarray) else isinstance(node, (list, str)) and not node
    )


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order in which people count: trial2 before trial10."""
    return sorted(names, key=lambda name: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", name)])


@contextlib.contextmanager
def opened(path: str | Path, max_gigabytes: float) -> Iterator[Contents]:
    """The contents of a file.

    Raises:
        UserError: another format; a file that is cut short or damaged, where that shows or while it is read.
    """
    path = Path(path)
    format = require_format(path, *FORMATS)
    if format in ("npz", "npy"):
        headers = array_headers(path)

        def reading(name: str) -> Callable[[], np.ndarray]:
            if format == "npy":
                return lambda: read_npy(path, max_gigabytes)
            return lambda: read_arrays(path, (name,), max_gigabytes)[0][name]

        yield Contents(path, {name: Leaf(*header, reading(name)) for name, header in headers.items()}, format)
    elif format == "table":
        yield Contents(path, read_table(path, max_gigabytes), format)
    elif format == "matlab5":
        yield Contents(path, _Variables(path, max_gigabytes), format)
    else:
        import h5py

        whole = refusing_damage(path, "an HDF5 file that is whole")
        # Twice: what is read is copied where MATLAB's axes or texts are made of it.
        with whole, limited_memory(2 * max_gigabytes), h5py.File(path, "r") as file:
            v73 = V73(file, max_gigabytes) if format == "matlab73" else None
            yield Contents(path, _Group(file, max_gigabytes, v73), format)
