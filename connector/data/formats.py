"""Which format a file has, by its content and not by its name, and what to say where it is another than expected."""

from __future__ import annotations

import os
from pathlib import Path

from connector.errors import UserError
from connector.files import require_file, unreadable

FORMAT_NAMES = {
    "npz": "an npz file",
    "matlab5": "a MATLAB v5 file",
    "matlab73": "a MATLAB v7.3 file",
    "nwb": "an NWB file",
    "nwb1": "an NWB 1 file",
    "nlb": "a Neural Latents Benchmark file",
    "hdf5": "an HDF5 file",
    "npy": "a single .npy array",
    "lfs": "a Git LFS pointer instead of the data",
    "html": "a web page",
    "empty": "an empty file",
    "unknown": "a file of unknown format",
}
_MATLAB_REMEDY = "use data=rat for a session of the Poisson-clicks task; otherwise save the arrays with numpy.savez"
_REMEDIES = {
    "npz": "use data=npz",
    "matlab5": _MATLAB_REMEDY,
    "matlab73": _MATLAB_REMEDY,
    "nwb": "use data=nwb",
    "nwb1": "convert it to NWB 2 and use data=nwb",
    "nlb": "use data=nlb",
    "npy": "name the arrays: numpy.savez(FILE, rates=...) and use data=npz",
    "lfs": "fetch the file itself: git lfs pull",
    "html": "download the file itself (on GitHub: Download raw file)",
    "empty": "copy or download the file again",
}


def recognise_format(path: str | os.PathLike) -> str:
    """What a file is by its first bytes and, for HDF5, its keys: a key of FORMAT_NAMES.

    Raises:
        UserError: no such file, a directory, no permission to read, HDF5 that is cut short.
    """
    path = require_file(path, "check data.path; paths are relative to where you start")
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        return "empty"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    hdf5 = b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520])
    # The first releases that wrote HDF5 still called it "MATLAB 7.0" in the header.
    if head.startswith(b"MATLAB 7.3") or (hdf5 and head.startswith(b"MATLAB")):
        return "matlab73"
    if head.startswith(b"MATLAB 5.0"):
        return "matlab5"
    if hdf5:
        return _recognise_hdf5(path)
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    return "html" if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")) else "unknown"


def _recognise_hdf5(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "nwb_version" in file.attrs:
                return "nwb"
            names = set(file.keys())
            if "nwb_version" in names:
                return "nwb1"
            for group in [file[name] for name in names]:
                if isinstance(group, h5py.Group):
                    names |= set(group.keys())
            # h5py gives a name that is no text as bytes.
            return "nlb" if any("spikes_heldin" in name for name in names if isinstance(name, str)) else "hdf5"
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises on damage depends on the place of it
        raise unreadable(path, "an HDF5 file that is whole", error) from error


def require_format(path: Path, *wanted: str) -> str:
    """The file's format where it is among those ``wanted``.

    Raises:
        UserError: it is another; says which ``data=`` reads it.
    """
    found = recognise_format(path)
    if found in wanted:
        return found
    remedy = _REMEDIES.get(found, "save the arrays with numpy.savez(FILE, rates=...) and use data=npz")
    raise UserError(" or ".join(FORMAT_NAMES[name] for name in wanted), f"{path.name}, {FORMAT_NAMES[found]}", remedy)
