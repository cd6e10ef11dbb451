"""MATLAB files, v5 and v7.3, as plain Python values; nothing in them is ever executed."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.formats import require_format, unreadable


def read_matlab(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Variables of a MATLAB file.

    Args:
        path: a v5 (also -v6, -v7) or a v7.3 (HDF5) file.
        names: the variables wanted; those the file lacks are left out.

    Returns:
        by name: numbers (and logicals) as arrays with MATLAB's axes, a row of characters as str (several rows as a list of str), a
        cell array as a list in MATLAB's order, a struct as a dict, a struct array (other than 1 x 1) as a list of dicts.

    Raises:
        UserError: another format, or a file that is cut short or damaged.
    """
    if require_format(path, "matlab5", "matlab73") == "matlab5":
        return _read_v5(path, names)
    return _read_v73(path, names)


def _read_v5(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=list(names))
    # A truncated or damaged file surfaces from scipy's parser as any of these.
    except (MatReadError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zlib.error) as error:
        raise unreadable(path, "a MATLAB v5 file that is whole", error) from error
    return {name: _from_v5(content[name]) for name in names if name in content}


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


def _read_v73(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return {name: _from_v73(file, file[name]) for name in names if name in file}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise unreadable(path, "a MATLAB v7.3 file that is whole", error) from error


def _from_v73(file, item) -> Any:
    """One HDF5 object as MATLAB wrote it.

    A struct is a group. Cells are object references into the group #refs#; so are the fields of a struct array, which
    differ from a cell in that their data set carries no class. HDF5 counts axes in C order, MATLAB in Fortran order.
    """
    import h5py

    if isinstance(item, h5py.Group):
        members = dict(item.items())
        if members and all(_is_references(x) and "MATLAB_class" not in x.attrs for x in members.values()):
            columns = {name: [_referred(file, ref) for ref in x[()].ravel()] for name, x in members.items()}
            count = min(map(len, columns.values()))
            return [{name: column[i] for name, column in columns.items()} for i in range(count)]
        return {name: _from_v73(file, x) for name, x in members.items()}
    data = item[()]
    # Attributes are slow to read and a session holds tens of thousands of arrays: look only where they can matter.
    if data.ndim == 1 and "MATLAB_empty" in item.attrs:  # the data are then the sizes, of which one is zero
        kind = _class(item)
        if kind in ("cell", "struct"):
            return []
        return "" if kind == "char" else np.zeros(tuple(int(size) for size in data))
    if h5py.check_ref_dtype(data.dtype) is h5py.Reference:
        return [_referred(file, ref) for ref in data.ravel()]
    if data.dtype == np.uint16 and _class(item) == "char":
        rows = ["".join(map(chr, row)) for row in np.atleast_2d(data.T)]
        return rows[0] if len(rows) == 1 else rows
    return data.T


def _class(item) -> str:
    kind = item.attrs.get("MATLAB_class", b"")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _is_references(item) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and h5py.check_ref_dtype(item.dtype) is h5py.Reference


def _referred(file, reference) -> Any:
    return _from_v73(file, file[reference]) if reference else np.zeros((0, 0))
