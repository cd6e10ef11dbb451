"""The arrays of files in a table, and a guess of the command that reads a recording from them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from connector.data.entries import Entry, entries
from connector.data.guessing import guess
from connector.data.guessing_common import quoted
from connector.data.sources import Sources
from connector.errors import UserError

_LINES = 60  # of arrays in a table


def described(paths: Sequence[Path], max_gigabytes: float) -> tuple[list[str], str]:
    """Lines of a table of the arrays of the files; the command guessed and what to think of it, in lines, or "".

    Raises:
        UserError: a file that cannot be read.
    """
    found: list[Entry] = []
    stems = [path.stem for path in paths]
    with Sources(paths, max_gigabytes) as sources:
        for file in sources.files:
            of_file = entries(file)
            label = file.path.stem if stems.count(file.path.stem) == 1 else file.path
            for entry in of_file:
                entry.key = f"{label}:{entry.key}" if len(paths) > 1 else entry.key
            found += of_file
    rows = [entry.row for entry in found[:_LINES]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = ["  ".join([x.ljust(n) for x, n in zip(row, widths)] + [row[3]]).rstrip() for row in rows]
    lines += [f"... and {len(found) - _LINES} more"] if len(found) > _LINES else []
    options, doubt = guess(found)
    named = ",".join(map(quoted, paths))
    path = f"data.path=[{named}]" if len(paths) > 1 else f"data.path={named}"
    if not options:
        return lines, ""
    command = shlex.join(["python", "train.py", "data=arrays", path, *options])
    return lines, f"{command}\nThis is a guess: {doubt or 'check axes and kind'}."


def told(paths: Sequence[Path], max_gigabytes: float) -> NoReturn:
    """Raises UserError with the arrays there, where none is named as the activity."""
    lines, command = described(paths, max_gigabytes)
    table = "\n".join(f"  {line}" for line in lines)
    names = ", ".join(path.name for path in paths)
    nothing = "None looks like activity over time: if one is, name it with data.activity=KEY data.axes=[...]"
    if "unpickled" in table:
        nothing = (
            "Objects are not read: save each array under a name of its own, numpy.savez(FILE, **{f'trial{i}': x ...})"
        )
    remedy = f"arrays of {names}:\n{table or '  none'}\n{command or nothing}"
    raise UserError("data.activity naming the array of rates or spike counts", "none", remedy)
