"""Writes MATLAB v7.3 files, in the layout that MATLAB gives them, for tests of their reader."""

import itertools
from pathlib import Path

import h5py
import numpy as np

HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Wed Nov 25 12:00:00 2026 HDF5 schema 1.00 ."
_numbers = itertools.count()


def cells(items: list, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A cell array of the items, by default a column."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape or (len(items), 1), order="F")


def write_matlab73(path: Path, variables: dict) -> Path:
    """A v7.3 file: dicts become structs, lists of dicts struct arrays, other lists and object arrays cells.

    As MATLAB does it: a user block of 512 bytes with the header, axes reversed, the class in an attribute, cells and
    the fields of struct arrays (these without a class) as references into #refs#, sizes in place of empty values.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        refs.create_dataset("a", data=np.zeros(2, dtype=np.uint64))  # MATLAB's "canonical empty"
        for name, value in variables.items():
            _write(refs, file, name, value)
    with open(path, "r+b") as file:
        file.write(HEADER.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


def _reference(refs, value):
    name = f"x{next(_numbers)}"
    _write(refs, refs, name, value)
    return refs[name].ref


def _write(refs, parent, name, value):
    if isinstance(value, dict):
        group = parent.create_group(name)
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for key, item in value.items():
            _write(refs, group, key, item)
        return
    if isinstance(value, list):  # a struct array
        group = parent.create_group(name)
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for key in value[0]:
            cells = np.array([[_reference(refs, record[key])] for record in value], dtype=h5py.ref_dtype)
            group.create_dataset(key, data=cells, dtype=h5py.ref_dtype)
        return
    if isinstance(value, str):
        data, kind = np.array([[ord(c)] for c in value], dtype=np.uint16).reshape(-1, 1), "char"
    else:
        data = np.asarray(value)
        data = data.reshape(1, -1) if data.ndim < 2 else data
        kind = {"f8": "double", "f4": "single", "b1": "logical"}.get(data.dtype.str[1:], data.dtype.name)
        if data.dtype == object:
            data = np.array([[_reference(refs, x) for x in column] for column in data.T], dtype=h5py.ref_dtype)
            data, kind = data.reshape(np.shape(value)[::-1]), "cell"
        else:
            data = data.T.astype(np.uint8) if kind == "logical" else data.T
    if data.size == 0:
        sizes = np.zeros(2, dtype=np.uint64) if isinstance(value, str) else np.array(data.T.shape, dtype=np.uint64)
        item = parent.create_dataset(name, data=sizes)
        item.attrs["MATLAB_empty"] = np.uint8(1)
    else:
        item = parent.create_dataset(name, data=data, dtype=h5py.ref_dtype if kind == "cell" else None)
    item.attrs["MATLAB_class"] = np.bytes_(kind)
    if kind in ("char", "logical"):
        item.attrs["MATLAB_int_decode"] = np.int32(2 if kind == "char" else 1)
