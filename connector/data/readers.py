"""Recordings read from files. The format is recognised by content; nothing that could execute code is ever loaded."""

from __future__ import annotations

import os
from pathlib import Path

from connector.data.clicks import load_rat
from connector.data.formats import require_format
from connector.data.nlb import load_nlb
from connector.data.npz import load_npz
from connector.data.nwb import load_nwb
from connector.errors import UserError
from connector.types import Recording


def read_recording(path: str | os.PathLike, format: str = "auto", **options) -> Recording:
    """A recording from a file of any format that is known.

    Args:
        path: the file.
        format: "auto" (by content), "npz", "rat", "nwb" or "nlb".
        options: of load_npz, load_rat, load_nwb or load_nlb.

    Raises:
        UserError: a file that no reader understands, or what the reader raises.
    """
    readers = {"npz": load_npz, "rat": load_rat, "nwb": load_nwb, "nlb": load_nlb}
    if format == "auto":
        format = source_of(path)
    if format not in readers:
        raise UserError(f"a format among auto, {', '.join(readers)}", repr(format))
    try:
        return readers[format](path, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UserError(f"options that the {format} reader has", str(error)) from error
        raise


def source_of(path: str | os.PathLike) -> str:
    """Which ``data=`` reads a file: "npz", "rat", "nwb" or "nlb", by its content.

    Raises:
        UserError: none does.
    """
    sources = {"npz": "npz", "matlab5": "rat", "matlab73": "rat", "nwb": "nwb", "nlb": "nlb"}
    return sources[require_format(Path(path), *sources)]
