"""What there is to tell of each array of a file: key, shape, type, range."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from connector.data.contents import Contents, Leaf, fitting, natural
from connector.data.matlab import Cells
from connector.data.preprocessing import as_text
from connector.data.stated import attributes_of, axes_of_dataset

_LETTERS = 24  # of a text
_DEEPEST = 16
_HIDDEN = ("specifications",)  # of NWB: the text of its schema
_INDEX = "_i_"  # of PyTables: how a table is searched
_PICKLED = "PSEUDOATOM"  # the attribute of PyTables' lists of objects and texts
_MOST_VISITED = 20_000  # arrays
_MOST_BYTES = 500_000_000  # that are read to tell ranges
_ALIKE = 4  # names that differ in their numbers only are one line from so many on


@dataclass
class Entry:
    """The array of a key, or all arrays of a key with `*` or `%d`.

    Attributes:
        lists: sizes of the lists that hold the arrays, outermost first. one: number of the first column in keys. first: the
            first array that was read. ascending: whether no number of any array is smaller than the one before it.
        axes: names of the axes of an array, in files that name them. stated: attributes that tell of units, rates and bins.
        name: of a column, which its key does not tell.
    """

    key: str
    lists: tuple[int, ...] = ()
    one: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    type: str = ""
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    ascending: bool = True
    words: list[str] = field(default_factory=list)
    first: np.ndarray | None = None
    unread: str = ""
    axes: tuple[str, ...] = ()
    stated: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the lists and of the arrays; -1 where these differ."""
        return self.lists + tuple(n[0] if len(set(n)) == 1 else -1 for n in zip(*self.shapes))

    @property
    def counts(self) -> bool:
        """Whether all numbers are whole and none is negative."""
        return self.whole and self.low >= 0 and not self.words

    def see(self, x: Any) -> None:
        """Add an array to what is told; ``x``: as :class:`Leaf` where it is not to be read."""
        if x is None:
            self.unread = "no array: an object, a table, a sparse matrix or a reference"
            return
        x = x if isinstance(x, Leaf) else np.asarray(x)
        same = not self.shapes or len(self.shapes[0]) == len(x.shape)
        self.shapes.append(tuple(x.shape) if same else self.shapes[0])
        self.type = (
            "text"
            if x.dtype.kind in "SU"
            else x.dtype.name
            if x.dtype.names is None
            else "fields " + ", ".join(x.dtype.names)
        )
        if x.dtype.hasobject and not isinstance(x, np.ndarray):
            self.unread = "objects, which would be unpickled: not read"
        elif isinstance(x, Leaf):
            self.unread = "not looked at"
        elif x.dtype.kind in "SU":
            first = np.sort(np.unique(x, return_index=True)[1])[:4]  # in the order of the file
            words = [" ".join(as_text(w).split())[:_LETTERS] for w in x.reshape(-1)[first]]
            self.words += [w for w in words if w and w not in self.words][: 4 - len(self.words)]
        elif x.dtype.kind in "biuf" and x.size:
            self.first = x if self.first is None else self.first
            finite = x[np.isfinite(x)] if x.dtype.kind == "f" else x
            if finite.size:
                self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
                self.whole &= bool((finite == np.round(finite)).all())
                flat = finite.ravel()
                self.ascending = self.ascending and bool((flat[1:] >= flat[:-1]).all())
            if finite.size < x.size:
                self.unread = "NaN or infinite among them"

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Key, shape, type, range in words."""
        sizes = [f"{min(n)}..{max(n)}" if len(set(n)) > 1 else str(n[0]) for n in zip(*self.shapes)]
        shape = " x ".join(sizes) or ("one" if self.shapes else "")
        if self.lists:
            shape = f"{' x '.join(map(str, self.lists))} of ({shape})"
        if self.words:
            told = ", ".join(self.words)
        elif self.low <= self.high:
            told = f"{self.low:g} to {self.high:g}" + (", whole numbers" if self.whole else "")
        else:
            told = ""
        return self.key, shape, self.type, "; ".join(x for x in (told, self.unread) if x)


def entries(contents: Contents) -> list[Entry]:
    """All arrays of a file, those of a list, or of names with a number each, as one."""
    found: dict[str, Entry] = {}
    read = 0
    for number, (key, lists, node) in enumerate(_visited(contents.root, "", (), 0)):
        if number >= _MOST_VISITED:
            break
        if not isinstance(node, Leaf):
            found.setdefault(key, Entry(key, lists, contents.one)).see(node)
            continue
        read += math.prod(node.shape) * node.dtype.itemsize
        pickled = node.dtype.hasobject and contents.format in ("npz", "npy")
        value = node if pickled or read > _MOST_BYTES else node.read()
        stated = {} if node.dataset is None else attributes_of(node.dataset)
        for part, sizes, x in _parts(None if _PICKLED in stated else value, key, lists):
            entry = found.setdefault(part, Entry(part, sizes, contents.one, stated=stated))
            if node.dataset is not None and not entry.shapes:
                entry.axes = axes_of_dataset(node.dataset)
            entry.see(x)
    return list(found.values())


def _parts(value: Any, key: str, lists: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """(key, sizes of lists, array) of what one array holds: HDF5's vectors of different lengths, the fields of a table, or itself."""
    if isinstance(value, list) and value:
        yield from _visited(value, key, lists, 0)
    elif isinstance(value, np.ndarray) and value.dtype.names:
        for name in value.dtype.names:
            yield from _parts(value[name], f"{key}/{name}", lists)
    else:
        yield key, lists, value


def _patterns(names: list[str]) -> dict[str, tuple[str, int]]:
    """Of names that differ in their numbers only, if they are many: a pattern that stands for these and no others, and how many."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"\d+", "%d", name), []).append(name)
    found = {}
    for digits, members in alike.items():
        if len(members) >= _ALIKE and digits != members[0]:
            star = digits.replace("%d", "*")
            found |= dict.fromkeys(members, (star if fitting(names, star) == members else digits, len(members)))
    return found


def _visited(node: Any, key: str, lists: tuple[int, ...], depth: int) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """(key, sizes of lists, array) of all that hangs from a node."""
    if depth > _DEEPEST:
        return
    if isinstance(node, Mapping):
        names = [name for name in natural(node) if (depth or name not in _HIDDEN) and not name.startswith(_INDEX)]
        patterns = _patterns(names)
        for name in names:
            part, many = patterns.get(name, (name, 0))
            sizes = (*lists, many) if many else lists
            try:
                member = node[name]
            except (KeyError, OSError, RuntimeError):  # a link to nowhere
                continue
            yield from _visited(member, f"{key}/{part}" if key else part, sizes, depth + 1)
    elif isinstance(node, list):
        sizes = [n for n in node.shape if n != 1] if isinstance(node, Cells) else []
        sizes = sizes if len(sizes) > 1 and math.prod(sizes) == len(node) else [len(node)]
        for x in node:
            nested = isinstance(x, (Mapping, list))
            empty = isinstance(x, np.ndarray) and x.size == 0
            if nested or not empty or not any(isinstance(y, (Mapping, list)) for y in node):
                yield from _visited(x, f"{key}/*" if nested else key, (*lists, *sizes), depth + 1)
    else:
        yield key, lists, node
