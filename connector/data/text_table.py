"""Tables of text, as csv and tsv files: trials, units, or traces in columns."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from connector.errors import UserError
from connector.files import check_size

_DELIMITERS = ",\t;"
_ENDINGS = (".csv", ".tsv")
_NONE = ("", "na", "nan", "n/a", "null", "none")
_BYTES_IN_MEMORY = 20  # for each of the file, while it is read


def is_table(path: Path, head: bytes) -> bool:
    """Whether a file that begins with ``head`` is text whose first two lines have as many fields, more than one unless its name ends
    in csv or tsv."""
    try:
        text = head.decode("utf-8-sig", errors="ignore" if len(head) >= 1024 else "strict")
    except UnicodeDecodeError:
        return False
    if any(ord(c) < 32 and c not in "\t\r\n" for c in text) or "\ufffd" in text:
        return False
    lines = [line for line in text.splitlines()[:3] if line.strip()][:2]
    delimiter = _delimiter(lines[0]) if lines else ""
    named = path.suffix.lower() in _ENDINGS
    if not delimiter:
        return named and len(lines) == 2
    return named or (len(lines) == 2 and len({line.count(delimiter) for line in lines}) == 1)


def _delimiter(line: str) -> str:
    found = max(_DELIMITERS, key=line.count)
    return found if found in line else ""


def read_table(path: Path, max_gigabytes: float) -> dict[str, np.ndarray]:
    """Columns by their names in the first line, numbers (NaN where a field is empty) or texts; numbers without such a line as
    one array (rows, columns), under the file's name.

    Raises:
        UserError: rows of different lengths, no row, or too large.
    """
    check_size(
        1e-9 * _BYTES_IN_MEMORY * path.stat().st_size, max_gigabytes, "raise data.max_gigabytes if the memory is there"
    )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = _delimiter(first) or ","
            rows = [
                row
                for row in csv.reader(itertools.chain([first], file), delimiter=delimiter)
                if any(x.strip() for x in row)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError("a table of text that is whole", f"{path.name}, {error}") from error
    sizes = Counter(map(len, rows))
    if len(sizes) > 1:
        line = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        got = f"{len(rows[line])} in row {line + 1}, {len(rows[0])} in the first"
        raise UserError(f"rows of one number of fields in {path.name}", got)
    columns = [_column(column) for column in zip(*rows[1:])]
    first = _column(tuple(rows[0])) if rows else np.array([""])
    if all(x.dtype.kind == "f" for x in (first, *columns)):
        return {path.stem: np.vstack([first, *([np.stack(columns, 1)] if columns else [])])}
    if len(rows) < 2:
        raise UserError(f"rows below the names of columns in {path.name}", "none")
    names = [name.strip() or f"column {i + 1}" for i, name in enumerate(rows[0])]
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise UserError(f"different names of columns in {path.name}", f"{', '.join(repeated[:6])} more than once")
    return dict(zip(names, columns))


def _column(fields: tuple[str, ...]) -> np.ndarray:
    """(rows,) float64, or texts where a field is neither a number nor empty."""
    fields = tuple(x.strip() for x in fields)
    try:
        return np.array([np.nan if x.lower() in _NONE else float(x) for x in fields])
    except ValueError:
        return np.array(fields)
