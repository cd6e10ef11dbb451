"""The arrays of a file, and a guess of the command that reads a recording from them: connector look FILE"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from connector.data.listing import described
from connector.data.readers import recognise_format, source_of
from connector.errors import exit_code
from connector.files import MAX_GIGABYTES


def _look(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="connector look",
        description="List the arrays of npz, npy, MATLAB and HDF5 files, or the tables and time series of an NWB file, with shape, type "
        "and range. Suggest the command that reads a recording from them. Nothing is written.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--max-gigabytes", type=float, default=MAX_GIGABYTES, help="largest size of arrays in memory")
    given = parser.parse_args(arguments)
    formats = [recognise_format(path) for path in given.files]
    if formats == ["nwb"]:
        from connector.data.nwb_listing import described_nwb

        lines, command = described_nwb(given.files[0], given.max_gigabytes)
    else:
        lines, command = described(given.files, given.max_gigabytes)
    print("\n".join(lines) or "no arrays")
    if formats == ["nlb"]:
        print(f"\ndata={source_of(given.files[0])} may read this file by itself.")
    if command:
        print(f"\n{command}")


def main(arguments: Sequence[str] | None = None) -> int:
    """List as the command line says; returns the exit code, 2 for mistakes the user can mend."""
    return exit_code(_look, arguments)


if __name__ == "__main__":
    sys.exit(main())
