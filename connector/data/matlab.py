"""MATLAB files, v5 and v7.3, as plain Python values; nothing in them is ever executed."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from connector.data.readers import require_format
from connector.files import MAX_GIGABYTES, check_size, limited_memory, refusing_damage

_TOO_LARGE = "raise data.max_gigabytes if the memory is there"
# Groups of a v7.3 file that are no variables: what cells refer to, and objects.
INTERNAL = ("#refs#", "#subsystem#")


class Cells(list):
    """A cell array or struct array in MATLAB's order, the first axis fastest; ``shape``: its sizes."""

    def __init__(self, items: Iterable[Any], shape: tuple[int, ...]):
        super().__init__(items)
        self.shape = tuple(shape)


def read_matlab(path: Path, names: tuple[str, ...] | None, max_gigabytes: float = MAX_GIGABYTES) -> dict[str, Any]:
    """Variables of a MATLAB file.

    Args:
        path: a v5 (also -v6, -v7) or a v7.3 (HDF5) file.
        names: the variables wanted; those the file lacks are left out. None: all.
        max_gigabytes: largest size of the unpacked content.

    Returns:
        by name: numbers (and logicals) as arrays with MATLAB's axes, a row of characters as str (several rows as a list of str), a
        cell array as a list in MATLAB's order (:class:`Cells`), a struct as a dict, a struct array (other than 1 x 1) as a list of
        dicts; None for sparse matrices, objects (string, datetime, table ...) and functions.

    Raises:
        UserError: another format, a file that is cut short or damaged, or too large once unpacked.
    """
    if require_format(path, "matlab5", "matlab73") == "matlab5":
        return _read_v5(path, names, max_gigabytes)
    return _read_v73(path, names, max_gigabytes)


def _read_v5(path: Path, names: tuple[str, ...] | None, max_gigabytes: float) -> dict[str, Any]:
    with refusing_damage(path, "a MATLAB v5 file that is whole"), open(path, "rb") as file:
        order = "<" if file.read(128)[126:] == b"IM" else ">"
        variables = (_V5(data, order).variable(names) for data in _elements(file, order, max_gigabytes))
        return {name: value for name, value in variables if name is not None}


def _elements(file, order: str, max_gigabytes: float) -> Iterator[bytes]:
    """The elements of a v5 file, tags included, unpacked; what they take together is held to the limit."""
    unpacked = 0
    while len(tag := file.read(8)) == 8:
        kind, size = struct.unpack(f"{order}II", tag)
        if kind != 15:
            unpacked += size
            check_size(1e-9 * unpacked, max_gigabytes, _TOO_LARGE)
            yield tag + file.read(size)
            continue
        packed, parts, rest = zlib.decompressobj(), [], size
        while rest > 0 and (block := file.read(min(rest, 1 << 20))):
            rest -= len(block)
            while block:
                parts.append(packed.decompress(block, 1 << 24))
                unpacked += len(parts[-1])
                check_size(1e-9 * unpacked, max_gigabytes, _TOO_LARGE)
                block = packed.unconsumed_tail
        yield b"".join(parts)


class _V5:
    """One element of a v5 file: a tag with type and size, then the data; those of arrays hold further elements.

    No size is followed that the data do not hold. Layout: MathWorks, MAT-File Format, "Level 5 MAT-File Format".
    """

    _NUMBERS: ClassVar = dict(
        zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"])
    )
    _TEXTS: ClassVar = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
    _INT, _UINT, _MATRIX = 5, 6, 14  # types of elements
    _CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)  # classes of arrays
    _OBJECT, _DEEPEST = 17, 64

    def __init__(self, data: bytes, order: str):
        self.data, self.order, self.place = data, order, 0

    def next(self, stop: int, kind: int | None = None) -> tuple[int, int, int]:
        """Type, begin and end of the data of the element at ``place``, which moves on to the one after it."""
        if self.place + 8 > stop:
            raise ValueError("cut short")
        found, size = struct.unpack_from(f"{self.order}II", self.data, self.place)
        if found >> 16:  # up to four bytes, within the tag
            found, size = found & 0xFFFF, found >> 16
            begin, following = self.place + 4, self.place + 8
        else:
            begin, following = self.place + 8, self.place + 8 + size + -size % 8
        if begin + size > min(following, stop):
            raise ValueError("a size that the file does not hold")
        if kind not in (None, found):
            raise ValueError(f"an element of type {found} instead of {kind}")
        self.place = following
        return found, begin, begin + size

    def variable(self, names: tuple[str, ...] | None) -> tuple[str | None, Any]:
        """Name and value; None where it is none of ``names`` (None: of all)."""
        kind, begin, end = self.next(len(self.data))
        self.place = begin
        return self.array(end, names=names) if kind == self._MATRIX else (None, None)

    def array(self, stop: int, depth: int = 0, names: tuple[str, ...] | None = None) -> tuple[str | None, Any]:
        """Name and value of the array whose flags stand at ``place``."""
        if self.place == stop:
            return None, np.zeros((0, 0))
        if depth > self._DEEPEST:
            raise ValueError("arrays nested too deeply")
        flags = self.numbers(stop, 2, self._UINT)[0]
        if flags & 0xFF == self._OBJECT:
            return None, None  # of MATLAB's newer classes, string and table among them; it has no sizes
        _, begin, end = self.next(stop, self._INT)
        shape = tuple(np.frombuffer(self.data[begin:end], f"{self.order}i4").tolist())
        _, begin, end = self.next(stop)
        name = self.data[begin:end].decode("latin-1")
        if names is not None and name not in names:
            return None, None
        if len(shape) < 2 or min(shape) < 0:
            raise ValueError(f"an array of shape {shape}")
        of_class, count = flags & 0xFF, math.prod(shape)
        if of_class in self._NUMERIC:
            value = self.numbers(stop, count).reshape(shape, order="F")
            if flags & 0x800:
                value = value + 1j * self.numbers(stop, count).reshape(shape, order="F")
            return name, value
        if of_class == self._CHAR:
            return name, self.text(stop, shape)
        if of_class == self._CELL:
            return name, Cells(self.arrays(stop, count, depth), shape)
        if of_class == self._STRUCT:
            width = int(self.numbers(stop, 1, self._INT)[0])
            _, begin, end = self.next(stop)
            if width < 1 or (end - begin) % width:
                raise ValueError("damaged names of fields")
            fields = [self.data[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(begin, end, width)]
            values = self.arrays(stop, count * len(fields), depth)
            records = [dict(zip(fields, values[i * len(fields) :])) for i in range(count)]
            return name, records[0] if count == 1 else Cells(records, shape)
        return name, None  # sparse matrices, objects and functions have no place in a session

    def arrays(self, stop: int, count: int, depth: int) -> list:
        if 8 * count > stop - self.place:
            raise ValueError("fewer elements than the sizes say")
        values = []
        for _ in range(count):
            _, begin, end = self.next(stop, self._MATRIX)
            following, self.place = self.place, begin
            values.append(self.array(end, depth + 1)[1])
            self.place = following
        return values

    def numbers(self, stop: int, count: int, kind: int | None = None) -> np.ndarray:
        kind, begin, end = self.next(stop, kind)
        dtype = np.dtype(self.order + self._NUMBERS.get(kind, "u1"))
        if end - begin != count * dtype.itemsize:
            raise ValueError("numbers of another count than the sizes say")
        return np.frombuffer(self.data, dtype, count, begin)

    def text(self, stop: int, shape: tuple[int, ...]) -> str | list[str]:
        kind, begin, end = self.next(stop)
        codec = self._TEXTS.get(kind, "latin-1")
        if codec in ("utf-16", "utf-32"):
            codec += {"<": "-le", ">": "-be"}[self.order]
        characters = list(self.data[begin:end].decode(codec))
        if len(characters) != math.prod(shape):
            raise ValueError("characters of another count than the sizes say")
        if not characters:
            return ""
        letters = np.array(characters, dtype="U1").reshape((-1, shape[-1]), order="F")
        rows = ["".join(row) for row in letters]  # along the last axis
        return rows[0] if len(rows) == 1 else rows


def _read_v73(path: Path, names: tuple[str, ...] | None, max_gigabytes: float) -> dict[str, Any]:
    import h5py

    whole = refusing_damage(path, "a MATLAB v7.3 file that is whole")
    # Twice: what is read is copied where MATLAB's axes or characters are made of it.
    with whole, limited_memory(2 * max_gigabytes), h5py.File(path, "r") as file:
        reader = V73(file, max_gigabytes)
        names = tuple(name for name in file if name not in INTERNAL) if names is None else names
        return {name: reader.value(file[name]) for name in names if name in file}


class V73:
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
            if "MATLAB_sparse" in item.attrs:
                return None
            members = dict(item.items())
            if self.is_struct_array(item):
                columns = {name: [self.referred(ref) for ref in self.data(x).ravel()] for name, x in members.items()}
                count = min(map(len, columns.values()))
                records = [{name: column[i] for name, column in columns.items()} for i in range(count)]
                return Cells(records, next(iter(members.values())).shape[::-1])
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
            return Cells((self.referred(ref) for ref in data.ravel()), data.shape[::-1])
        if data.dtype == np.uint32 and "MATLAB_object_decode" in item.attrs:
            return None  # the numbers say where in the file the object lies
        if data.dtype == np.uint16 and _class(item) == "char":
            rows = ["".join(map(chr, row)) for row in np.atleast_2d(data.T)]
            return rows[0] if len(rows) == 1 else rows
        return data.T

    @staticmethod
    def is_struct_array(group) -> bool:
        members = list(group.values())
        return bool(members) and all(_is_references(x) and "MATLAB_class" not in x.attrs for x in members)

    @staticmethod
    def is_numbers(item) -> bool:
        """Whether a data set is an array of numbers that is not empty; MATLAB's sizes are then its shape reversed."""
        plain = item.dtype.kind in "biuf" and not (item.ndim == 1 and "MATLAB_empty" in item.attrs)
        return plain and "MATLAB_object_decode" not in item.attrs and _class(item) != "char"

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
