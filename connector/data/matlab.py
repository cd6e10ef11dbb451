"""MATLAB files, v5 and v7.3, as plain Python values; nothing in them is ever executed."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from connector.data.readers import require_format
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, check_size, limited_memory, unreadable

_TOO_LARGE = "raise data.max_gigabytes if the memory is there"


def read_matlab(path: Path, names: tuple[str, ...], max_gigabytes: float = MAX_GIGABYTES) -> dict[str, Any]:
    """Variables of a MATLAB file.

    Args:
        path: a v5 (also -v6, -v7) or a v7.3 (HDF5) file.
        names: the variables wanted; those the file lacks are left out.
        max_gigabytes: largest size of the unpacked content.

    Returns:
        by name: numbers (and logicals) as arrays with MATLAB's axes, a row of characters as str (several rows as a list of str), a
        cell array as a list in MATLAB's order, a struct as a dict, a struct array (other than 1 x 1) as a list of dicts.

    Raises:
        UserError: another format, a file that is cut short or damaged, or too large once unpacked.
    """
    if require_format(path, "matlab5", "matlab73") == "matlab5":
        return _read_v5(path, names, max_gigabytes)
    return _read_v73(path, names, max_gigabytes)


def _read_v5(path: Path, names: tuple[str, ...], max_gigabytes: float) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with open(path, "rb") as file:
            _check_v5(file, names, max_gigabytes)
        content = loadmat(path, variable_names=list(names))
        return {name: _from_v5(content[name]) for name in names if name in content}
    except UserError:
        raise
    # A truncated or damaged file surfaces from scipy's parser as errors of many classes.
    except Exception as error:
        raise unreadable(path, "a MATLAB v5 file that is whole", error) from error


def _check_v5(file, names: tuple[str, ...], max_gigabytes: float) -> None:
    """Refuse sizes in the headers that are not those of the data: scipy's parser, which is compiled, trusts them.

    Raises:
        ValueError, struct.error, zlib.error: a damaged variable among ``names``.
        UserError: variables that are too large once unpacked.
    """
    order = "<" if file.read(128)[126:] == b"IM" else ">"
    unpacked = 0
    while len(tag := file.read(8)) == 8:
        kind, size = struct.unpack(f"{order}II", tag)
        if kind == 15:
            packed, parts, rest = zlib.decompressobj(), [], size
            while rest > 0 and (block := file.read(min(rest, 1 << 20))):
                rest -= len(block)
                while block:
                    parts.append(packed.decompress(block, 1 << 24))
                    unpacked += len(parts[-1])
                    check_size(1e-9 * unpacked, max_gigabytes, _TOO_LARGE)
                    block = packed.unconsumed_tail
            data = b"".join(parts)
        else:
            unpacked += size
            check_size(1e-9 * unpacked, max_gigabytes, _TOO_LARGE)
            data = tag + file.read(size)
        elements = _V5Elements(data, order)
        kind, begin, end, _ = elements.tag(0, len(data))
        if kind == 14:
            elements.check(begin, end, names)


class _V5Elements:
    """The elements of one variable: a tag with type and size, then the data; those of arrays hold further elements."""

    _SIZES: ClassVar = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}
    _CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
    _DEEPEST = 64

    def __init__(self, data: bytes, order: str):
        self.data, self.words = data, struct.Struct(f"{order}II")
        self.order = order

    def tag(self, place: int, stop: int) -> tuple[int, int, int, int]:
        """Type, begin and end of an element's data, and where the next one begins."""
        if place + 8 > stop:
            raise ValueError("cut short")
        kind, size = self.words.unpack_from(self.data, place)
        if kind >> 16:  # up to four bytes, within the tag
            kind, size = kind & 0xFFFF, kind >> 16
            begin, following = place + 4, place + 8
        else:
            begin, following = place + 8, place + 8 + size + -size % 8
        if begin + size > min(following, stop):
            raise ValueError("a size that the file does not hold")
        return kind, begin, begin + size, following

    def check(self, place: int, stop: int, names: tuple[str, ...] | None = None, depth: int = 0) -> None:
        """An array from its flags on; with ``names``, only if its name is among them."""
        if place == stop:
            return
        if depth > self._DEEPEST:
            raise ValueError("arrays nested too deeply")
        kind, begin, end, place = self.tag(place, stop)
        if kind != 6 or end - begin != 8:
            raise ValueError("an array without flags")
        flags = self.words.unpack_from(self.data, begin)[0]
        kind, begin, end, place = self.tag(place, stop)
        if kind != 5 or end - begin < 8 or (end - begin) % 4:
            raise ValueError("an array without sizes")
        shape = struct.unpack_from(f"{self.order}{(end - begin) // 4}i", self.data, begin)
        _, begin, end, place = self.tag(place, stop)
        if names is not None and self.data[begin:end].decode("latin-1") not in names:
            return
        if min(shape) < 0:
            raise ValueError("negative sizes")
        count, array_class = math.prod(shape), flags & 0xFF
        if array_class in self._NUMBERS:
            for _ in range(2 if flags & 0x800 else 1):  # complex: a second part
                kind, begin, end, place = self.tag(place, stop)
                if end - begin != count * self._SIZES.get(kind, -1):
                    raise ValueError("numbers of another count than the sizes say")
        elif array_class == self._CHAR:
            kind, begin, end, place = self.tag(place, stop)
            if kind not in self._SIZES or count > end - begin:
                raise ValueError("characters of another count than the sizes say")
        elif array_class in (self._CELL, self._STRUCT):
            if array_class == self._STRUCT:
                kind, begin, end, place = self.tag(place, stop)
                length = struct.unpack_from(f"{self.order}i", self.data, begin)[0] if end - begin == 4 else 0
                kind, begin, end, place = self.tag(place, stop)
                if length < 1 or (end - begin) % length:
                    raise ValueError("damaged names of fields")
                count *= (end - begin) // length
            if 8 * count > stop - place:
                raise ValueError("fewer elements than the sizes say")
            for _ in range(count):
                kind, begin, end, place = self.tag(place, stop)
                if kind != 14:
                    raise ValueError("an element that is no array")
                self.check(begin, end, None, depth + 1)
        # Others (sparse matrices, objects, functions) have no place in a session.


def _from_v5(value: np.ndarray) -> Any:
    if value.dtype.names:
        records = [
            {name: _from_v5(np.asarray(record[name])) for name in value.dtype.names} for record in value.ravel("F")
        ]
        return records[0] if len(records) == 1 else records
    if value.dtype == object:
        return [_from_v5(np.asarray(item)) for item in value.ravel("F")]
    if value.dtype.kind == "U":
        rows = [str(row) for row in value.ravel("F")]
        return rows[0] if len(rows) == 1 else rows or ""
    return value


def _read_v73(path: Path, names: tuple[str, ...], max_gigabytes: float) -> dict[str, Any]:
    import h5py

    # MemoryError: where the machine has less than max_gigabytes.
    damage = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError, MemoryError)
    try:
        # Twice: what is read is copied where MATLAB's axes or characters are made of it.
        with limited_memory(2 * max_gigabytes), h5py.File(path, "r") as file:
            reader = _V73(file, max_gigabytes)
            return {name: reader.value(file[name]) for name in names if name in file}
    except damage as error:
        raise unreadable(path, "a MATLAB v7.3 file that is whole", error) from error


class _V73:
    """HDF5 objects as MATLAB wrote them.

    A struct is a group. Cells are object references into the group #refs#; so are the fields of a struct array, which
    differ from a cell in that their data set carries no class. HDF5 counts axes in C order, MATLAB in Fortran order.
    What is read is added up, so that neither a size that is only declared nor references to one array from many places
    take more memory than ``max_gigabytes``.
    """

    def __init__(self, file, max_gigabytes: float):
        self.file, self.max_gigabytes, self.gigabytes = file, max_gigabytes, 0.0

    def value(self, item) -> Any:
        import h5py

        if isinstance(item, h5py.Group):
            members = dict(item.items())
            if members and all(_is_references(x) and "MATLAB_class" not in x.attrs for x in members.values()):
                columns = {name: [self.referred(ref) for ref in self.data(x).ravel()] for name, x in members.items()}
                count = min(map(len, columns.values()))
                return [{name: column[i] for name, column in columns.items()} for i in range(count)]
            return {name: self.value(x) for name, x in members.items()}
        data = self.data(item)
        # Attributes are slow to read and a session holds tens of thousands of arrays: look only where they can matter.
        if data.ndim == 1 and "MATLAB_empty" in item.attrs:  # the data are then the sizes, of which one is zero
            kind = _class(item)
            if kind in ("cell", "struct"):
                return []
            if kind == "char":
                return ""
            sizes = tuple(int(size) for size in data)
            if math.prod(sizes):
                raise ValueError(f"an empty array of {sizes}")
            return np.zeros(sizes)
        if h5py.check_ref_dtype(data.dtype) is h5py.Reference:
            return [self.referred(ref) for ref in data.ravel()]
        if data.dtype == np.uint16 and _class(item) == "char":
            rows = ["".join(map(chr, row)) for row in np.atleast_2d(data.T)]
            return rows[0] if len(rows) == 1 else rows
        return data.T

    def data(self, item) -> np.ndarray:
        if item.shape is None:
            raise ValueError(f"{item.name} has no data")
        # Besides the numbers, an array takes about a hundred bytes.
        self.gigabytes += 1e-9 * (math.prod(item.shape) * item.dtype.itemsize + 100)
        check_size(self.gigabytes, self.max_gigabytes, _TOO_LARGE)
        return np.asarray(item[()])

    def referred(self, reference) -> Any:
        return self.value(self.file[reference]) if reference else np.zeros((0, 0))


def _class(item) -> str:
    kind = item.attrs.get("MATLAB_class", b"")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _is_references(item) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and h5py.check_ref_dtype(item.dtype) is h5py.Reference
