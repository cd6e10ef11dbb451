"""Tables of text, as csv and tsv files: trials, units, or traces in columns."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TextIO

import numpy as np

from connector.errors import UserError
from connector.files import check_size

_DELIMITERS = "\t;,"  # commas last: they may be decimal commas between the others
_BLANKS = " "  # stands for any number of blanks
_ENDINGS = (".csv", ".tsv")
_NONE = ("", "na", "nan", "n/a", "null", "none")
_TRUTH = {"true": 1.0, "false": 0.0} | dict.fromkeys(_NONE, math.nan)
_BYTES_IN_MEMORY = 20  # for each of the file, while it is read
_LONGEST_LINE = 2**24  # of which a file of unknown kind is looked at
# Fewest numbers in a first line that are no chance: 0, 1, 2 ... above decimals, above counts, and steps of time.
_FEWEST_NUMBERED, _FEWEST_ABOVE_COUNTS, _FEWEST_TIMES = 3, 6, 8


def is_table(path: Path, head: bytes) -> bool:
    """Whether a file that begins with ``head`` is text whose first two lines have as many fields, more than one or numbers unless
    its name ends in csv or tsv."""
    encoding = _encoding(head)
    try:
        text = head.decode(encoding, errors="ignore" if len(head) >= 1024 else "strict")
    except UnicodeDecodeError:
        return False
    if any(ord(c) < 32 and c not in "\t\r\n" for c in text) or "\ufffd" in text:
        return False
    with open(path, encoding=encoding, errors="ignore") as file:
        lines = _begin(file, _LONGEST_LINE)[1]
    if path.suffix.lower() in _ENDINGS:
        return len(lines) == 2 or bool(lines and _delimiter(lines))
    if len(lines) < 2:
        return False
    delimiter = _delimiter(lines)
    if delimiter in ("", _BLANKS):
        return bool(delimiter) or all(_is_number(line) for line in lines)
    return len({_bare(line).count(delimiter) for line in lines}) == 1


def _encoding(head: bytes) -> str:
    return "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _begin(file: TextIO, limit: int = -1) -> tuple[str, list[str]]:
    """The last of the lines with a # at the front, without it, or ""; and the first two lines below that are not empty."""
    comment, lines = "", []
    while len(lines) < 2 and (line := file.readline(limit)):
        if line.startswith("#") and not lines:
            comment = line.lstrip("# \t")
        elif line.strip():
            lines.append(line)
    return comment, lines


def _bare(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _delimiter(lines: Sequence[str]) -> str:
    """What stands between the fields of the first lines, as often in each; "" where nothing does."""
    bare = [_bare(line) for line in lines]
    for delimiter in _DELIMITERS:
        if len({line.count(delimiter) for line in bare}) == 1 and delimiter in bare[0].strip("\r\n"):
            return delimiter
    found = max(_DELIMITERS, key=bare[0].count)
    if found in bare[0]:
        return found
    fields = [line.split() for line in lines]
    alike = len({len(x) for x in fields}) == 1 and len(fields[0]) > 1
    return _BLANKS if alike and all(map(_is_number, fields[-1])) else ""


def _fields(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    return map(str.split, lines) if delimiter == _BLANKS else csv.reader(lines, delimiter=delimiter or ",")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_table(path: Path, max_gigabytes: float) -> dict[str, np.ndarray]:
    """Columns by their names in the first line, numbers (NaN where a field is empty, 0 and 1 for false and true) or texts.

    Numbers without such a line are one array (rows, columns) under the file's name; so are columns whose names are numbers. These
    names are under ``time`` if they ascend evenly, else under ``columns``, unless they are 0, 1, 2 ... or 1, 2, 3 ... A first
    column without a name is ``index``, left out where it numbers the rows.

    Raises:
        UserError: rows of different lengths, no row, a line of units below the names, or too large.
    """
    check_size(
        1e-9 * _BYTES_IN_MEMORY * path.stat().st_size, max_gigabytes, "raise data.max_gigabytes if the memory is there"
    )
    comment, rows, delimiter = _rows(path)
    sizes = Counter(map(len, rows))
    if len(sizes) > 1:
        line = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        got = f"{len(rows[line])} in row {line + 1}, {len(rows[0])} in the first"
        raise UserError(f"rows of one number of fields in {path.name}", got)
    decimal = "," if delimiter == ";" else "."
    # numpy.savetxt writes the names behind a #; another comment has names below, or another number of fields.
    if rows and len(comment) == len(rows[0]) and not _are_names(rows, decimal):
        names, body = comment, rows
    else:
        names, body, comment = rows[0] if rows else [""], rows[1:], []
    columns = [_column(column, decimal) for column in zip(*body)]
    first = _column(names, decimal)
    numbers = all(x.dtype.kind == "f" for x in (first, *columns))
    if numbers and not comment and not (body and _above(names, first, columns, decimal)):
        return {path.stem: np.vstack([first, *([np.stack(columns, 1)] if columns else [])])}
    if not body:
        raise UserError(f"rows below the names of columns in {path.name}", "none")
    _refuse_units(path, body, decimal)
    return _named(path, names, columns, decimal)


def _rows(path: Path) -> tuple[list[str], list[list[str]], str]:
    """Fields of the comment above the table, fields of its lines, and what stands between them.

    Raises:
        UserError: no text, or not whole.
    """
    try:
        with open(path, "rb") as head:
            encoding = _encoding(head.read(2))
        with open(path, encoding=encoding, newline="") as file:
            comment, first = _begin(file)
            delimiter = _delimiter(first) if first else ""
            rows = [row for row in _fields(itertools.chain(first, file), delimiter) if any(x.strip() for x in row)]
            return next(_fields([comment], delimiter), []), rows, delimiter
    except (UnicodeError, csv.Error) as error:
        raise UserError("a table of text that is whole", f"{path.name}, {error}", "save it as csv in UTF-8") from error


def _named(path: Path, names: Sequence[str], columns: Sequence[np.ndarray], decimal: str) -> dict[str, np.ndarray]:
    """Columns by their names, those whose names are numbers as one array; the first without a name, as pandas and R write the names
    of rows, only where it says more than their numbers."""
    names = [name.strip() for name in names]
    if names[0] in ("", "Unnamed: 0") and len(names) > 1:
        if _numbered(columns[0]):
            names, columns = names[1:], columns[1:]
        elif "index" not in names:
            names[0] = "index"
    names = [name or f"column {i + 1}" for i, name in enumerate(names)]
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise UserError(f"different names of columns in {path.name}", f"{', '.join(repeated[:6])} more than once")
    numbers = {i: float(x) for i, x in enumerate(x.replace(decimal, ".") for x in names) if _is_number(x)}
    if not numbers or path.stem in names or any(columns[i].dtype.kind != "f" for i in numbers):
        return dict(zip(names, columns))
    found = {name: x for i, (name, x) in enumerate(zip(names, columns)) if i not in numbers}
    header = np.array(list(numbers.values()))
    if not _numbered(header):
        even = _evenly([names[i] for i in numbers], decimal) and "time" not in (*found, path.stem)
        found.setdefault("time" if even else "columns", header)
    return found | {path.stem: np.stack([columns[i] for i in numbers], 1)}


def _are_names(rows: Sequence[Sequence[str]], decimal: str) -> bool:
    """Whether the first line has no number and the second has."""
    numbers = [any(_column([x], decimal).dtype.kind == "f" for x in row) for row in rows[:2]]
    return numbers == [False, True]


def _refuse_units(path: Path, body: Sequence[Sequence[str]], decimal: str) -> None:
    """Raises UserError for a line without any number above columns of numbers."""
    units = [x.strip() for x in body[0]]
    if len(body) < 3 or any(_column([x], decimal).dtype.kind == "f" and x.lower() not in _NONE for x in units):
        return
    below = [_column(column, decimal) for column in zip(*body[1:])]
    if any(x and col.dtype.kind == "f" and not np.isnan(col).all() for x, col in zip(units, below)):
        got = f"a line of texts: {', '.join(units[:4])}"
        remedy = "delete this line, or a second line of names; say units by options such as data.bin_s"
        raise UserError(f"values below the names of columns in {path.name}", got, remedy)


def _above(names: Sequence[str], first: np.ndarray, columns: Sequence[np.ndarray], decimal: str) -> bool:
    """Whether the numbers ``first`` of the first line, written as ``names``, are names of the columns below, and no row of data."""
    index = bool(np.isnan(first[0])) and len(first) > 1
    header, next_row = first[index:], [str(x[0]) for x in columns[index:]]
    n = len(header)
    if not np.isfinite(header).all() or len(np.unique(header)) < n or _evenly(next_row, "."):
        return False
    if index and len(columns[0]) > 2 and _numbered(columns[0]):
        return True
    if _numbered(header) and all(x.strip().isdecimal() for x in names[index:]):
        counts = all((x == np.round(x))[~np.isnan(x)].all() for x in columns[index:])
        return n >= (_FEWEST_ABOVE_COUNTS if counts else _FEWEST_NUMBERED)
    return n >= _FEWEST_TIMES and _evenly(names[index:], decimal)


def _numbered(x: np.ndarray) -> bool:
    """Whether x (n,) is 0, 1, 2 ... or 1, 2, 3 ..."""
    return x.dtype.kind == "f" and x[0] in (0, 1) and bool((x == x[0] + np.arange(len(x))).all())


def _evenly(fields: Sequence[str], decimal: str) -> bool:
    """Whether three numbers or more ascend by one step, as exactly as they are written."""
    x = _column(fields, decimal)
    if len(x) < 3 or x.dtype.kind != "f" or not np.isfinite(x).all() or x[-1] <= x[0]:
        return False
    written = [Decimal(field.strip().replace(decimal, ".")).as_tuple().exponent for field in fields]
    last_digit = 10.0 ** min(int(exponent) for exponent in written)
    step = (x[-1] - x[0]) / (len(x) - 1)
    off = np.abs(x - x[0] - step * np.arange(len(x))).max()
    return bool(off <= min(last_digit, 0.2 * step) + 1e-9 * step + 1e-12 * np.abs(x).max())


def _column(fields: Sequence[str], decimal: str = ".") -> np.ndarray:
    """(rows,) float64, or texts where a field is neither a number nor empty; false and true as 0 and 1, unless beside others."""
    fields = tuple(x.strip() for x in fields)
    low = [x.lower() for x in fields]
    try:
        return np.array([np.nan if x in _NONE else float(x.replace(decimal, ".")) for x in low])
    except ValueError:
        truth = [_TRUTH.get(x) for x in low]
        return np.array(fields) if None in truth else np.array(truth, dtype=float)
