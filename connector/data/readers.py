"""The formats of recordings: which one a file has, by its content and not by its name, and what reads it.

Nothing that could execute code is ever loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connector.errors import UserError
from connector.files import is_hdf5, paths_of, require_file, unreadable

if TYPE_CHECKING:
    from connector.types import Recording

# data=NAME: the module that declares the options of a format and reads it, in its READER. Imported when asked for.
READERS = {
    "npz": "connector.data.npz",
    "rat": "connector.data.clicks",
    "nwb": "connector.data.nwb",
    "nlb": "connector.data.nlb",
    "rnn": "connector.data.rnn",
    "arrays": "connector.data.arrays",  # last: of what others read, too
}


@dataclass(frozen=True)
class Reader:
    """What the module of a format gives.

    Attributes:
        options: dataclass of the options after ``data.``, each declared by ``data_option``.
        load: ``load(path, options, name=None)`` returns the Recording; raises UserError.
        formats: what :func:`recognise_format` calls the files that it reads; none: as the reader is called.
        recognises: whether a file is one, for a format that :func:`recognise_format` does not know otherwise.
        takes_rank: ``load`` has the keyword ``rank``, that of the model to be fitted.
        several: the path may be a list of files.
        refuses: ``refuses(path, options)`` raises UserError for what is seen without torch, before a run begins.
    """

    options: type
    load: Callable[..., Recording]
    formats: tuple[str, ...] = ()
    recognises: Callable[[Path], bool] = lambda path: False
    takes_rank: bool = False
    several: bool = False
    refuses: Callable[[Any, Any], None] = lambda path, options: None


def reader(name: str) -> Reader:
    """The reader of ``data=NAME``.

    Raises:
        UserError: there is none of that name.
    """
    if name not in READERS:
        raise UserError(f"a format among auto, {', '.join(READERS)}", repr(name))
    return import_module(READERS[name]).READER


def read_recording(path: str | os.PathLike | Sequence[str | os.PathLike], format: str = "auto", **options) -> Recording:
    """Read a recording from a file of any known format.

    Args:
        path: the file; of arrays and networks also a list of files.
        format: "auto" (by content), or a key of READERS: "npz", "rat", "nwb", "nlb", "rnn", "arrays".
        options: of load_npz, load_rat, load_nwb, load_nlb, load_rnn or load_arrays.

    Raises:
        UserError: no reader understands the file, or the reader raises it.
    """
    name = source_of(paths_of(path)[0]) if format == "auto" else format
    load = reader(name).load
    try:
        return load(path, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UserError(f"options that the {name} reader has", str(error)) from error
        raise


def formats_of(name: str) -> tuple[str, ...]:
    """What :func:`recognise_format` calls the files of ``data=NAME``."""
    return reader(name).formats or (name,)


def source_of(path: str | os.PathLike) -> str:
    """Which ``data=`` reads a file, by its content.

    Raises:
        UserError: none does.
    """
    sources = {format: name for name in reversed(READERS) for format in formats_of(name)}  # the first that reads it
    return sources[require_format(path, *sources)]


# What a file can be, and what to do where another was expected.
_MATLAB_REMEDY = "use data=rat for a session of the Poisson-clicks task, data=arrays for any other"
_FORMATS = {
    "npz": ("an npz file", "use data=npz"),
    "torch": (
        "a file of torch.save",
        "use data=rnn for the weights of a recurrent network, and save activity with numpy.savez(FILE, rates=r)",
    ),
    "matlab5": ("a MATLAB v5 file", _MATLAB_REMEDY),
    "matlab73": ("a MATLAB v7.3 file", _MATLAB_REMEDY),
    "nwb": ("an NWB file", "use data=nwb"),
    "nwb1": ("an NWB 1 file", "convert it to NWB 2 and use data=nwb"),
    "nlb": ("a Neural Latents Benchmark file", "use data=nlb"),
    "hdf5": ("an HDF5 file", "use data=arrays"),
    "npy": ("a single .npy array", "use data=arrays"),
    "table": ("a table of text", "use data=arrays"),
    "lfs": ("a Git LFS pointer instead of the data", "fetch the file itself: git lfs pull"),
    "html": ("a web page", "download the file itself (on GitHub: Download raw file)"),
    "empty": ("an empty file", "copy or download the file again"),
    "unknown": ("a file of unknown format", ""),
}


def recognise_format(path: str | os.PathLike) -> str:
    """What a file is by its first bytes and, for HDF5, its keys: npz, npy, matlab5, matlab73, nwb, nwb1, nlb, hdf5, table,
    lfs, html, empty, a format that its reader recognises, or unknown.

    Raises:
        UserError: no such file, a directory, no permission to read, HDF5 that is cut short.
    """
    path = require_file(path, "check data.path; paths are relative to where you start")
    found = _recognise(path)
    if found in ("hdf5", "table", "unknown"):
        found = next((name for name in READERS if _recognises(name, path)), found)
    return found


def _recognises(name: str, path: Path) -> bool:
    """What a reader cannot look at, such as bytes that are no text, is not its format."""
    try:
        return reader(name).recognises(path)
    except (ValueError, OSError, KeyError):
        return False


def _recognise(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(1024)
    hdf5 = is_hdf5(head)
    # The first releases that wrote HDF5 still called it "MATLAB 7.0" in the header.
    if head.startswith(b"MATLAB 7.3") or (hdf5 and head.startswith(b"MATLAB")):
        return "matlab73"
    if hdf5:
        return _recognise_hdf5(path)
    starts = {
        "npz": (b"PK\x03\x04", b"PK\x05\x06"),
        "npy": b"\x93NUMPY",
        "matlab5": b"MATLAB 5.0",
        "lfs": b"version https://git-lfs",
    }
    # The first file in an archive of torch.save.
    if head.startswith(b"PK\x03\x04") and b"/data.pkl" in head[30 : 30 + int.from_bytes(head[26:28], "little")]:
        return "torch"
    for name, start in starts.items():
        if head.startswith(start):
            return name
    if not head:
        return "empty"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    from connector.data.text_table import is_table  # here: few files are

    return "table" if is_table(path, head) else "unknown"


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


def require_format(path: str | os.PathLike, *wanted: str) -> str:
    """The file's format where it is among those ``wanted``.

    Raises:
        UserError: it is another; says which ``data=`` reads it.
    """
    found = recognise_format(path)
    if found in wanted:
        return found
    words = {name: (f"a file of the format {name}", f"use data={name}") for name in READERS} | _FORMATS
    what, remedy = words[found]
    remedy = (
        remedy or "save the arrays with numpy.savez(FILE, rates=...) and use data=npz, or data=arrays for other names"
    )
    expected = (
        " or ".join(words[name][0] for name in wanted)
        if len(wanted) < 4
        else "an npz, npy, MATLAB or HDF5 file, or a table of text"
    )
    raise UserError(expected, f"{Path(path).name}, {what}", remedy)
