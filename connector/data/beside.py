"""What arrays hold beside the activity: which neurons are kept, external inputs, labels of trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from connector.data.layout import AXES, laid_out, one_each
from connector.data.preprocessing import as_text
from connector.errors import UserError, require
from connector.files import check_size

_MOST_CONDITIONS = 100


def label(x: Any) -> str:
    """A number or text of a label in words."""
    if isinstance(x, (bytes, str)):
        return as_text(x)
    return str(int(x)) if float(x).is_integer() else f"{x:.15g}"


def kept_of(
    value: Any,
    number: int,
    counted_from: Mapping[str, int],
    notes: list[str],
    ids: Sequence[str] = (),
    what: str = "neurons",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the neurons (or trials) kept, (n,) from 0, and their names; none where all are.

    Args:
        value: a mask, or numbers or names of neurons; None: all. number: of the neurons. counted_from: by option the number of the
            first of them in its value, and under ``activity`` in names. ids: names, where the file has names; a mask may then
            be of all names from the first number on. what: of the option.

    Raises:
        UserError: none of these, or none is kept.
    """
    if value is None:
        return np.arange(number), ()
    if isinstance(value, np.ndarray) and sum(n > 1 for n in value.shape) > 1:
        raise UserError(f"data.{what} with one value for each", f"shape {value.shape}", "name one column: KEY/NUMBER")
    chosen = one_each([np.asarray(x) for x in value] if isinstance(value, (list, tuple)) else value, None, "", "")
    if chosen.dtype.kind == "f" and np.isin(chosen[~np.isnan(chosen)], (0, 1)).all():
        chosen = np.nan_to_num(chosen)  # a mask without a value where a cell is empty
    of_two = chosen.dtype.kind in "biuf" and bool(np.isin(chosen, (0, 1)).all())
    one = counted_from.get(what, counted_from["activity"])
    named = ids or tuple(str(i + one) for i in range(number))
    if of_two and chosen.size == number:
        kept = np.flatnonzero(chosen)
    else:
        # Names of trials may count from any number: a mask of more than there are says nothing of them.
        loose = bool(ids) and what == "neurons"
        wanted = (np.flatnonzero(chosen) + one) if of_two and chosen.size > number and loose else chosen
        words = [label(x) for x in wanted.tolist()]
        kept = np.array([named.index(x) for x in words if x in named], dtype=int)
        known = len(kept) == len(words) or (loose and len(kept) > 0)
        there = "among those of the file" if ids else f"from {one} to {number - 1 + one}"
        expected = f"data.{what} as a mask of {number} {what}, or different numbers {there}"
        require(
            known and len(set(words)) == len(words),
            expected,
            ", ".join(words[:6]) + (", ..." if len(words) > 6 else ""),
        )
    require(len(kept) > 0, f"data.{what} that keeps some", "none kept")
    notes.append(f"{len(kept)} of {number} {what} kept (data.{what})")
    return kept, tuple(ids[i] if ids else str(i + counted_from["activity"]) for i in kept)


def input_keys(options: Any) -> list[str]:
    """KEYs of the inputs."""
    return [options.inputs] if isinstance(options.inputs, str) else [str(key) for key in options.inputs or []]


def cut_inputs(inputs: dict[str, Any], options: Any, shape: tuple[int, int], cut: Callable) -> Any:
    """Inputs by KEY, of one value for each sample of the activity (1, time), cut into trials as the activity is, unless they have
    trials already; returns the options whose inputs are such.

    Args:
        shape: (1, time) of the activity. cut: from (time, channels) to (trials, time, channels).
    """
    if not inputs or "trial" in (options.input_axes or ()):
        return options
    given = options.input_axes or ["input" if axis == "neuron" else axis for axis in options.axes or AXES]
    for key, value in inputs.items():
        of_key = [axis for axis in given if axis != "input"] if np.ndim(value) == len(given) - 1 else given
        x = laid_out(value, of_key, key, options.max_gigabytes, last="input")[0]
        if x.shape[:2] != shape:
            raise UserError(f"data.inputs {key} with the {shape[1]} samples of the activity", f"shape {x.shape[1:]}")
        inputs[key] = cut(x[0])
    return replace(options, axes=None, input_axes=["trial", "time", "input"])


def inputs_of(
    raw: dict[str, Any], labels: np.ndarray | None, lengths: np.ndarray, shape: tuple[int, int], rows: np.ndarray, options: Any,
    notes: list[str],
) -> tuple[np.ndarray | None, tuple[str, ...]]:  # fmt: skip
    """Inputs (kept trials, time, U) and their names.

    Args:
        raw: ``inputs``, by KEY. labels: of the trials kept, or None. lengths: their samples. shape: trials of the file, samples
            of the longest. rows: the trials kept.
    """
    found, names = [], []
    for key, value in raw["inputs"].items():
        x, own = _one_input(key, value, shape, options)
        if own is not None and not np.array_equal(np.broadcast_to(own, shape[:1])[rows], lengths):
            raise UserError(f"data.inputs {key} with as many samples as the activity in each trial", "other lengths")
        found.append(x[rows])
        names += [key] if x.shape[2] == 1 else [f"{key} {i + 1}" for i in range(x.shape[2])]
    if labels is not None:
        of_each, kinds = inputs_of_conditions(labels, options.conditions, shape[1], notes)
        if options.condition_inputs:
            found.append(of_each)
            names += kinds
    if not found:
        return None, ()
    size = 8e-9 * len(rows) * shape[1] * len(names)
    check_size(size, options.max_gigabytes, "raise data.max_gigabytes if the memory is there")
    return np.concatenate(found, axis=2).astype(float), tuple(names)


def _one_input(key: str, value: Any, shape: tuple[int, int], options: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(trials, time, channels) of one key, and the trials' lengths where they differ."""
    axes = options.input_axes
    if axes is None:
        axes = ["input" if axis == "neuron" else axis for axis in options.axes or AXES]
        if isinstance(value, np.ndarray) and value.ndim == len(axes) - 1:
            axes.remove("input")
    x, own = laid_out(value, axes, key, options.max_gigabytes, last="input")
    for axis, name in enumerate(("trial", "time")):
        if x.shape[axis] != (shape[axis] if name in axes else 1):
            raise UserError(
                f"data.inputs {key} like the activity, {shape[0]} trials of {shape[1]} samples",
                f"shape {x.shape} (trials, time, inputs)",
                "name the axes that it has, in their order: data.input_axes=[trial,time,input]",
            )
    return np.broadcast_to(x, (*shape, x.shape[2])), own


def inputs_of_conditions(labels: np.ndarray, key: str, n_steps: int, notes: list[str]) -> tuple[np.ndarray, list[str]]:
    """An input for each condition (trials, time, conditions), 1 in its trials and 0 in others, and their names; tells of them."""
    kinds, of_trial = _conditions(labels, key, notes)
    of_each = (of_trial[:, None] == np.arange(len(kinds))).astype(float)
    inputs = np.broadcast_to(of_each[:, None], (len(labels), n_steps, len(kinds)))
    return inputs, [f"{key} {kind}" for kind in kinds]


def _conditions(labels: np.ndarray, key: str | None, notes: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of the conditions, and the number of each trial's, -1 for NaN or an empty text."""
    none = (
        np.isnan(labels)
        if labels.dtype.kind == "f"
        else (labels == "" if labels.dtype.kind == "U" else np.zeros(len(labels), bool))
    )
    different, of_trial = np.unique(labels[~none], return_inverse=True)
    numbers = np.full(len(labels), -1)
    numbers[~none] = of_trial
    kinds = [label(x) for x in different]
    if not 1 <= len(kinds) <= _MOST_CONDITIONS:
        raise UserError(
            f"conditions of 1 to {_MOST_CONDITIONS} kinds in {key}", f"{len(kinds)} in {len(labels)} trials"
        )
    counts = Counter(numbers.tolist())
    said = ", ".join(f"{counts[i]} of {kind}" for i, kind in enumerate(kinds[:10])) + (
        ", ..." if len(kinds) > 10 else ""
    )
    notes.append(f"conditions ({key}): {said}" + (f"; {counts[-1]} trials of none" if counts[-1] else ""))
    return kinds, numbers
