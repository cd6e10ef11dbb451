"""MATLAB files, v5 and v7.3, as plain Python values; nothing in them is ever executed."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.formats import require_format
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, check_size, unreadable

# zlib packs no tighter than this.
_TIGHTEST = 1032
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
        if 1e-9 * _TIGHTEST * path.stat().st_size > max_gigabytes:
            check_size(_unpacked_gb(path, max_gigabytes), max_gigabytes, _TOO_LARGE)
        content = loadmat(path, variable_names=list(names))
        return {name: _from_v5(content[name]) for name in names if name in content}
    except UserError:
        raise
    # A truncated or damaged file surfaces from scipy's parser as any of these, or as an error of its own.
    except Exception as error:
        raise unreadable(path, "a MATLAB v5 file that is whole", error) from error


def _unpacked_gb(path: Path, enough: float) -> float:
    """Size of the variables of a v5 file once unpacked, GB, or a size above ``enough``; nothing of it is kept."""
    with open(path, "rb") as file:
        order = "<" if file.read(128)[126:] == b"IM" else ">"
        total = 0
        while len(tag := file.read(8)) == 8 and 1e-9 * total <= enough:
            kind, size = struct.unpack(f"{order}II", tag)
            if kind != 15:  # not packed
                total += size
                file.seek(size, 1)
                continue
            packed, rest = zlib.decompressobj(), size
            while rest > 0 and 1e-9 * total <= enough and (block := file.read(min(rest, 1 << 20))):
                rest -= len(block)
                while block and 1e-9 * total <= enough:
                    total += len(packed.decompress(block, 1 << 24))
                    block = packed.unconsumed_tail
            file.seek(max(rest, 0), 1)
    return 1e-9 * total


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
        with h5py.File(path, "r") as file:
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
