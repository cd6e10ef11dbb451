"""NWB files opened."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connector.errors import UserError
from connector.files import limited_memory, refusing_damage, unreadable


def load_pynwb():
    try:
        import pynwb
    except ImportError as error:
        raise UserError(
            "the package pynwb, which reads and writes NWB files",
            "no such package in this environment",
            "install it: python -m pip install pynwb (the extra `nwb`)",
        ) from error
    return pynwb


@contextlib.contextmanager
def opened(path: Path, max_gigabytes: float) -> Iterator[Any]:
    pynwb = load_pynwb()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # pynwb warns of every namespace that it has in another version
        try:
            with limited_memory(max_gigabytes):
                nwb = stack.enter_context(pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True)).read()
        except Exception as error:  # hdmf has no common class for what a damaged or foreign file makes it raise
            raise unreadable(path, "an NWB file that is whole and that pynwb can read", error) from error
        # h5py at data that are cut off; and hdmf reads columns of any kind, so that what is done with them fails in any way.
        with refusing_damage(path, "an NWB file that is whole"):
            yield nwb
