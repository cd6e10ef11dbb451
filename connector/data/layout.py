"""Arrays of any order of axes, and lists of arrays, as (trials, time, channels)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from connector.data.matlab import Cells
from connector.errors import UserError
from connector.files import check_size

AXES = ("trial", "time", "neuron")
BLOCK, EXACT = 1_000_000, 2**53  # numbers looked at together; beyond it not all whole numbers are told apart
_LISTS_ONLY = "check the order of data.axes (those of the list come first); trials of different lengths have to be a list of arrays"


def check_axes(axes: Sequence[str], known: Sequence[str], option: str) -> None:
    """Raises UserError for names of axes that are not among ``known``, each once, trial perhaps twice."""
    names = list(axes) if isinstance(axes, (list, tuple)) else []
    if names.count("trial") == 2:
        names.remove("trial")
    if not names or not set(names) <= set(known) or len(set(names)) < len(names):
        raise UserError(
            f"{option} as a list of some of {', '.join(known)}, in the order of the array's axes", f"{axes}"
        )


def _levels(value: Any) -> list[tuple[int, ...]]:
    """Sizes of the lists that hold arrays: of each list its length, of a cell array with rows and columns both."""
    found = []
    while isinstance(value, list):
        sizes = [n for n in value.shape if n != 1] if isinstance(value, Cells) else []
        sizes = sizes if len(sizes) > 1 and math.prod(sizes) == len(value) else [len(value)]
        found.append(tuple(sizes))
        value = next((x for x in value if isinstance(x, list) and x), value[0] if value else None)
    return found


def depth_of(value: Any) -> int:
    """How many axes the lists have that hold the arrays."""
    return sum(map(len, _levels(value)))


def grid_of(value: Any, where: str) -> np.ndarray:
    """The arrays of nested lists, as an array of objects with an axis for each level of lists."""
    return _leaves(value, _levels(value), where)


def axes_of_lists(grid: np.ndarray, axes: Sequence[str], wanted: Sequence[str], where: str) -> np.ndarray:
    """Such an array with its axes in another order; raises UserError where it has not as many as are named."""
    if grid.ndim != len(axes):
        raise UserError(f"lists in {where} with the axes ({', '.join(axes)})", f"nested {grid.ndim} deep")
    return grid.transpose([list(axes).index(name) for name in wanted])


def _leaves(value: Any, levels: list[tuple[int, ...]], where: str) -> np.ndarray:
    """The arrays of nested lists, as an array of objects with an axis for each level."""
    grid = np.empty([n for sizes in levels for n in sizes], dtype=object)

    def fill(part: Any, rest: list[tuple[int, ...]], at: tuple[int, ...]) -> None:
        if not rest:
            grid[at] = part
            return
        if isinstance(part, np.ndarray) and not part.size:  # an empty cell in place of a list
            for below in np.ndindex(grid[at].shape):
                grid[at][below] = part
            return
        if not isinstance(part, list) or len(part) != math.prod(rest[0]):
            got = len(part) if isinstance(part, list) else "an array"
            raise UserError(f"lists of {math.prod(rest[0])} in every part of {where}", f"{got} in one")
        for i, x in enumerate(part):  # MATLAB's order: the first axis is the fastest
            fill(x, rest[1:], at + np.unravel_index(i, rest[0], order="F"))

    fill(value, levels, ())
    return grid


def _fitted(x: np.ndarray, n_axes: int, where: str, axes: Sequence[str], last: str, n_levels: int = 0) -> np.ndarray:
    """An array with axes of length 1 taken away, as MATLAB adds them."""
    if x.ndim > n_axes:
        for axis in reversed(range(x.ndim)):
            if x.ndim > n_axes and x.shape[axis] == 1:
                x = x.squeeze(axis)
    if x.ndim != n_axes:
        raise wrong_axes(where, x.shape, axes, last, n_levels)
    return x


def wrong_axes(
    where: str, shape: tuple[int, ...], axes: Sequence[str], last: str = "neuron", n_levels: int = 0
) -> UserError:
    """Of an array, in so many levels of lists, that has not the axes named."""
    option, number = "data.axes" if last == "neuron" else "data.input_axes", n_levels + len(shape)
    like = {1: "time", 2: f"{last},time" if last == "neuron" else "trial,time"}.get(number, f"trial,time,{last}")
    like = f"trial,{like}" if number == 4 and not n_levels else like  # such as conditions and their repeats
    what = f"its {number} axes in their order" if not n_levels else "the axes of the list and then those of its arrays"
    got = f"shape {shape}" + (f" in {n_levels} level{'s' * (n_levels > 1)} of lists" if n_levels else "")
    return UserError(f"{where} with the axes ({', '.join(axes)})", got, f"name {what}, as {option}=[{like}]")


def laid_out(
    value: Any, axes: Sequence[str], where: str, max_gigabytes: float, last: str = "neuron"
) -> tuple[np.ndarray, np.ndarray | None]:
    """An array, or nested lists of arrays, with the axes named in any order, as (trials, time, channels).

    The outermost axes named are those of the lists. Trials of different lengths are padded with zeros. An axis that is not
    named has length 1.

    Args:
        value: numbers; axes: some of trial (perhaps twice: the second changes fastest), time and ``last``, one for each list level and axis of the arrays; where: the
            key, for messages. Arrays of a list that have all axes each are joined, their trials one after the other.

    Returns:
        array (trials, time, channels), float64 or as it was, and lengths (trials,) int64, or None where all are equal.

    Raises:
        UserError: another number of axes, lists whose arrays do not fit together, no numbers, too large.
    """
    levels = _levels(value)
    if not levels:
        return _ordered(_fitted(numbers(value, where), len(axes), where, axes, last), axes, last), None
    n_levels = sum(map(len, levels))
    grid = _leaves(value, levels, where)
    if not grid.size:
        raise UserError(f"arrays in {where}", "an empty list")
    if n_levels > len(axes):
        raise UserError(
            f"{where} with the axes ({', '.join(axes)})", f"lists nested {n_levels} deep", "name an axis for each"
        )
    inner = list(axes[n_levels:])
    found = [numbers(x, where) for x in grid.ravel()]
    filled = [x for x in found if x.size]
    if n_levels == 1 and "trial" in axes and _have_all(filled, axes):
        return _joined([_ordered(x, axes, last) for x in filled], where, max_gigabytes)
    like = filled[0] if filled else found[0]
    if "trial" in axes[:n_levels]:  # an empty cell is a trial without samples
        sizes = zip(inner, _fitted(like, len(inner), where, axes, last, n_levels).shape)
        none = np.full([0 if name == "time" else n for name, n in sizes], np.nan)
        none = none.astype(like.dtype) if "time" in inner else none
        found = [x if x.size else none for x in found]
    parts = [_fitted(x, len(inner), where, axes, last, n_levels) for x in found]
    longest = np.max([x.shape for x in parts], axis=0) if inner else ()
    size = 8e-9 * len(parts) * math.prod(longest)
    check_size(size, max_gigabytes, "raise data.max_gigabytes if the memory is there, or leave long trials out")
    if len({x.shape for x in parts}) == 1:
        return _ordered(np.stack(parts).reshape(*grid.shape, *parts[0].shape), axes, last), None
    ragged = [name for i, name in enumerate(inner) if len({x.shape[i] for x in parts}) > 1]
    if ragged != ["time"] or "trial" not in axes[:n_levels]:
        counts = Counter(x.shape for x in parts).most_common()
        shapes = ", ".join(map(str, dict.fromkeys([*(shape for shape, _ in counts[:3]), counts[-1][0]])))
        raise UserError(
            f"arrays in {where} that differ in the number of samples of a trial alone", f"shapes {shapes}", _LISTS_ONLY
        )
    at = inner.index("time")
    samples = np.reshape([x.shape[at] for x in parts], grid.shape)
    others = tuple(i for i, name in enumerate(axes[:n_levels]) if name != "trial")
    if others and (samples.min(others) != samples.max(others)).any():
        raise UserError(f"arrays of one length in each trial of {where}", "neurons that differ within a trial")
    padded = np.zeros((len(parts), *longest), dtype=np.result_type(*parts))
    for row, x in zip(padded, parts):
        row[tuple(slice(n) for n in x.shape)] = x
    lengths = (samples.max(others) if others else samples).ravel()
    lengths = np.repeat(lengths, longest[inner.index("trial")]) if "trial" in inner else lengths
    return _ordered(padded.reshape(*grid.shape, *longest), axes, last), lengths.astype(np.int64)


def _have_all(parts: list[np.ndarray], axes: Sequence[str]) -> bool:
    """Whether each of several arrays has all the axes named, not counting those of length 1 that MATLAB adds."""
    as_many = len(parts) > 1 and all(x.ndim == len(axes) for x in parts)
    return as_many and any(sum(n > 1 for n in x.shape) == len(axes) for x in parts)


def _joined(parts: list[np.ndarray], where: str, max_gigabytes: float) -> tuple[np.ndarray, np.ndarray | None]:
    """The trials of several arrays (trials, time, channels), one after the other, and their lengths where these differ."""
    channels = {x.shape[2] for x in parts}
    if len(channels) > 1:
        raise UserError(f"arrays of one number of neurons in {where}", ", ".join(map(str, sorted(channels))))
    sizes, steps = [len(x) for x in parts], [x.shape[1] for x in parts]
    check_size(
        8e-9 * sum(sizes) * max(steps) * channels.pop(),
        max_gigabytes,
        "raise data.max_gigabytes if the memory is there",
    )
    if len(set(steps)) == 1:
        return np.concatenate(parts), None
    padded = [np.pad(x, ((0, 0), (0, max(steps) - x.shape[1]), (0, 0))) for x in parts]
    return np.concatenate(padded), np.repeat(steps, sizes).astype(np.int64)


def _ordered(x: np.ndarray, axes: Sequence[str], last: str) -> np.ndarray:
    """(trials, time, channels) of an array with the axes named; those that are not have length 1."""
    wanted = ("trial", "time", last)
    if list(axes).count("trial") == 2:
        x = np.moveaxis(x, [i for i, name in enumerate(axes) if name == "trial"], [0, 1])
        x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        axes = ["trial", *(name for name in axes if name != "trial")]
    x = np.transpose(x, [list(axes).index(name) for name in wanted if name in axes])
    return np.expand_dims(x, [i for i, name in enumerate(wanted) if name not in axes])


def numbers(value: Any, where: str) -> np.ndarray:
    """Raises UserError for what is no array of real numbers."""
    if isinstance(value, list):
        raise UserError(f"{where} as arrays nested equally deep", "lists and arrays side by side")
    if value.dtype.kind not in "biuf":
        got = "complex numbers" if value.dtype.kind == "c" else "texts"
        raise UserError(f"{where} as real numbers", got)
    return value


def common_factor(x: np.ndarray) -> int:
    """The greatest whole number of which all of x (n,), whole numbers of 0 or more, are multiples; 0 of zeros alone."""
    step = 0
    for block in range(0, len(x), BLOCK):
        part = x[block : block + BLOCK]
        step = math.gcd(step, int(np.gcd.reduce(part[part < EXACT].astype(np.int64))))
        if step == 1:
            break
    return step


def one_each(value: Any, number: int | None, what: str, where: str, of: str = "trials") -> np.ndarray:
    """One number or text for each of ``number`` trials (None: of any number), or other things, (number,); NaN, or an empty text, for
    an empty cell of a list with one value in the others.

    Raises:
        UserError: another number of them.
    """
    if isinstance(value, list):
        parts = [np.ravel(x) for x in flattened(value)]
        sizes = {len(x) for x in parts}
        if sizes == {0, 1}:
            none = np.array([""] if any(x.dtype.kind in "SU" for x in parts) else [np.nan])
            parts = [x if len(x) else none for x in parts]
        elif len(parts) == number and sizes != {1}:
            raise UserError(
                f"{what} with one value for each of {number} trials", f"{sorted(sizes)} in parts of {where}"
            )
        flat = list(itertools.chain.from_iterable(parts))
        texts = any(isinstance(x, str) for x in flat)
        value = np.array([str(x) for x in flat] if texts else flat)
    if number is not None and value.size != number:
        raise UserError(f"{what} with one value for each of {number} {of}", f"shape {value.shape} of {where}")
    return value.reshape(-1)


def flattened(value: Any) -> list[np.ndarray]:
    """The arrays of nested lists in their order, of MATLAB's cells the first axis fastest."""
    return [y for x in value for y in flattened(x)] if isinstance(value, list) else [value]
