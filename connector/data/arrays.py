"""Recordings from arrays of any npz, npy, MATLAB v5 / v7.3 or HDF5 file: which array is what, the options say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.contents import FORMATS
from connector.data.layout import AXES, check_axes, laid_out, one_each, wrong_axes
from connector.data.readers import Reader
from connector.data.settings import data_option, memory_option, require_two, settled
from connector.data.sources import Sources
from connector.declarations import require
from connector.errors import UserError
from connector.files import check_size, paths_of

if TYPE_CHECKING:
    from connector.types import Recording

_MOST_CONDITIONS = 100
_PER_TRIAL = ("lengths", "choices", "times", "conditions")


@dataclass
class ArraysOptions:
    """Which arrays of a file are what: the options of ``data=arrays`` and keywords of :func:`load_arrays`.

    A KEY names an array: names of groups, structs and fields joined by ``/`` or ``.``; ``*`` for all members (of cells,
    of a group), ``trial*`` for those whose names begin so; a number for one cell or one column, from 0, in MATLAB's
    files from 1. With several files ``FILE:KEY``.
    """

    activity: str | None = data_option("KEY of rates or spike counts; null: the arrays there are told", default=None)
    kind: str = data_option(
        "what the activity is; auto: spikes where all numbers are whole and none is negative, else rates",
        choices=("auto", "rates", "spikes"), default="auto",
    )  # fmt: skip
    axes: list[str] | None = data_option(
        "the axes of the activity in their order, among trial, time, neuron; of lists of arrays first those of the lists; null: "
        "[trial,time,neuron]",
        default=None,
    )
    neurons: Any = data_option(
        "neurons kept: KEY of a mask, or of their numbers; or a list of numbers; counted as in keys; null: all",
        default=None,
    )
    inputs: Any = data_option("KEY of external inputs, or a list of KEYs, their channels side by side", default=None)
    input_axes: list[str] | None = data_option(
        "axes of the inputs, among trial, time, input; along one that is not named they are constant; null: as data.axes, input "
        "for neuron",
        default=None,
    )
    conditions: str | None = data_option("KEY of a label for each trial, numbers or texts", default=None)
    condition_inputs: bool = data_option("an input for each condition, 1 in its trials and 0 in others", default=False)
    choices: str | None = data_option("KEY of choices: 0 / 1, false / true or left / right", default=None)
    choice_values: list[Any] | None = data_option(
        "the two values of the choices that mean left and right, where they are others, as [-1,1]", default=None
    )
    lengths: str | None = data_option("KEY of the samples of each trial; null: up to the NaN at its end", default=None)
    times: str | None = data_option("KEY of the trials' times in the session, for slow drift", unit="s", default=None)
    bin_s: float | None = data_option(
        "time between samples; null: 0.01 for spikes, without a unit for rates", unit="s", above=0, default=None
    )
    tau: float = data_option("time constant; alpha = bin_s / tau", unit="s", above=0, default=0.1)
    alpha: float | None = data_option(
        "dt / tau; null: bin_s / tau, 0.1 for rates without bin_s", above=0, at_most=1, default=None
    )
    activation: str | None = data_option("phi of the neurons; null: tanh for rates, softplus for spikes", default=None)
    range_tolerance: float = data_option(
        "largest rms excess of rates over the activation's range, relative to half the range", at_least=0, default=0.3
    )
    max_gigabytes: float = memory_option("largest size of the arrays in memory")

    def check(self) -> None:
        require_two(self.choice_values)
        for name, known in (("axes", AXES), ("input_axes", ("trial", "time", "input"))):
            if getattr(self, name) is not None:
                check_axes(getattr(self, name), known, f"data.{name}")
        text_or_list = "a KEY, or a list"
        for name in ("inputs", "neurons"):
            value = getattr(self, name)
            require(value is None or isinstance(value, (str, list, tuple)), f"data.{name}", text_or_list, value)
        require(
            self.conditions is not None or not self.condition_inputs,
            "data.condition_inputs",
            "with data.conditions",
            True,
        )
        if self.bin_s is not None and self.alpha is None:
            require(
                self.bin_s <= self.tau,
                "data.bin_s",
                f"of at most the time constant data.tau = {self.tau:g} s",
                self.bin_s,
            )


def load_arrays(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    options: ArraysOptions | None = None,
    *,
    name: str | None = None,
    **keywords,
) -> Recording:
    """A recording from arrays of one file, or of several.

    The activity may be an array with the axes in any order, or lists (MATLAB's cells, groups, names with a number each) of
    arrays, whose trials may be of different lengths. Samples at a trial's end in which every neuron is NaN, or zero where
    that cannot be activity, are taken as past its end, unless ``lengths`` says so.

    Args:
        path: the file, or a list of files.
        options: which arrays are what; None: the defaults of :class:`ArraysOptions`.
        name: of the recording; None: the first file's.
        keywords: options by their names, ``tau`` also as ``tau_s``.

    Raises:
        UserError: another format, damage, a key that is absent, arrays that cannot be a recording; without ``activity``, the
            arrays that there are and a guess of the options.
    """
    from connector.data.recorded import RecordedArrays, recording_of

    options = settled(ArraysOptions, options, keywords)
    paths = paths_of(path)
    require_activity(paths, options)
    raw, one = _read(paths, options)
    notes: list[str] = []
    activity, lengths = _activity(raw, options)
    if lengths is not None and "lengths" in raw:
        raise UserError("trials whose lengths are said once", "data.lengths and arrays of different lengths")
    kept, names = _kept_neurons(raw.get("neurons", options.neurons), activity.shape[2], one, notes)
    activity = activity[:, :, kept]
    kind = _kind(activity, options.kind, notes)
    values = {kind: np.require(activity, requirements=["W", "O"])}
    trials, steps, _ = activity.shape
    values |= {
        what: one_each(raw[what], trials, f"data.{what}", getattr(options, what)) for what in _PER_TRIAL if what in raw
    }
    values |= {} if lengths is None else {"lengths": lengths}
    labels = values.pop("conditions", None)
    inputs, input_names = _inputs(raw, labels, (trials, steps), options, notes)
    values |= {} if inputs is None else {"externalinputs": inputs}
    bin_s = options.bin_s if options.bin_s is not None or kind == "rates" else 0.01
    arrays = RecordedArrays(values, notes, options.activation)
    return recording_of(arrays, options, bin_s, name or paths[0].stem, input_names, neuron_names=names)


def require_activity(path: Any, options: ArraysOptions) -> None:
    """Raises UserError, with the arrays that there are and a guess of the command, where no option names the activity."""
    if options.activity is None:
        from connector.data.listing import told

        told(paths_of(path), options.max_gigabytes)


def _read(paths: list[Path], options: ArraysOptions) -> tuple[dict[str, Any], int]:
    """What the options name, by option, and the number of the first cell or column in keys."""
    raw, one = {}, 0
    with Sources(paths, options.max_gigabytes) as sources:
        raw["activity"], file = sources.value(options.activity)
        one = file.one
        for what in (*_PER_TRIAL, "neurons"):
            key = getattr(options, what)
            if isinstance(key, str):
                raw[what] = sources.value(key)[0]
        raw["inputs"] = {key: sources.value(key)[0] for key in input_keys(options)}
    return raw, one


def input_keys(options: ArraysOptions) -> list[str]:
    """KEYs of the inputs."""
    return [options.inputs] if isinstance(options.inputs, str) else [str(key) for key in options.inputs or []]


def _activity(raw: dict[str, Any], options: ArraysOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """(trials, time, neurons) and the trials' lengths, or None."""
    value, where = raw["activity"], options.activity
    axes = list(options.axes or AXES)
    if options.axes is None and isinstance(value, np.ndarray) and value.ndim != 3:
        raise wrong_axes(where, value.shape, axes)
    if not {"time", "neuron"} <= set(axes):
        got = f"[{','.join(axes)}] of {where}" + (f", shape {value.shape}" if isinstance(value, np.ndarray) else "")
        one_bin = "one bin a trial shows no dynamics: give counts in successive bins of each trial, [trial,time,neuron]"
        raise UserError("data.axes with time and neuron (and trial, where there are trials)", got, one_bin)
    return laid_out(value, axes, where, options.max_gigabytes)


def _kept_neurons(value: Any, number: int, one: int, notes: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers of the neurons kept, (n,) from 0, and their names; none where all are."""
    if value is None:
        return np.arange(number), ()
    chosen = (
        np.asarray(value)
        if isinstance(value, (list, tuple)) and not any(isinstance(x, (list, np.ndarray)) for x in value)
        else one_each(value, None, "", "")
    )
    mask = chosen.size == number and chosen.dtype.kind in "biuf" and bool(np.isin(chosen, (0, 1)).all())
    if mask:
        kept = np.flatnonzero(chosen)
    else:
        whole = chosen.dtype.kind in "iuf" and np.array_equal(chosen, np.round(chosen))
        last = number - 1 + one
        fits = (
            whole
            and chosen.size
            and chosen.min() >= one
            and chosen.max() <= last
            and len(np.unique(chosen)) == chosen.size
        )
        expected = f"data.neurons as a mask of {number} neurons, or different numbers from {one} to {last}"
        require_fits(fits, expected, f"{chosen.dtype} of shape {chosen.shape}")
        kept = chosen.ravel().astype(int) - one
    require_fits(len(kept) > 0, "data.neurons that keeps some", "none kept")
    notes.append(f"{len(kept)} of {number} neurons kept (data.neurons)")
    return kept, tuple(str(i + one) for i in kept)


def require_fits(condition: Any, expected: str, got: str) -> None:
    """Raises UserError unless the condition holds."""
    if not condition:
        raise UserError(expected, got)


def _kind(activity: np.ndarray, kind: str, notes: list[str]) -> str:
    if kind != "auto":
        return kind
    with np.errstate(invalid="ignore"):
        seen = activity[~np.isnan(activity)] if activity.dtype.kind == "f" else activity
        whole = seen.size > 0 and seen.min() >= 0 and bool((seen == np.round(seen)).all())
    notes.append(
        "all numbers are whole: read as spike counts; if not, data.kind=rates"
        if whole
        else "read as rates; if not, data.kind=spikes"
    )
    return "spikes" if whole else "rates"


def _inputs(
    raw: dict[str, Any], labels: np.ndarray | None, shape: tuple[int, int], options: ArraysOptions, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Inputs (trials, time, U) and their names."""
    found, names = [], []
    for key, value in raw["inputs"].items():
        x = _one_input(key, value, shape, options)
        found.append(x)
        names += [key] if x.shape[2] == 1 else [f"{key} {i + 1}" for i in range(x.shape[2])]
    if labels is not None:
        kinds, of_trial = _conditions(labels, options.conditions, notes)
        if options.condition_inputs:
            of_each = (of_trial[:, None] == np.arange(len(kinds))).astype(float)
            found.append(np.broadcast_to(of_each[:, None], (*shape, len(kinds))))
            names += [f"{options.conditions} {kind}" for kind in kinds]
    if not found:
        return None, ()
    check_size(
        8e-9 * shape[0] * shape[1] * len(names),
        options.max_gigabytes,
        "raise data.max_gigabytes if the memory is there",
    )
    return np.concatenate(found, axis=2).astype(float), tuple(names)


def _one_input(key: str, value: Any, shape: tuple[int, int], options: ArraysOptions) -> np.ndarray:
    """(trials, time, channels) of one key."""
    axes = options.input_axes
    if axes is None:
        axes = ["input" if axis == "neuron" else axis for axis in options.axes or AXES]
        if isinstance(value, np.ndarray) and value.ndim == len(axes) - 1:
            axes.remove("input")
    x, _ = laid_out(value, axes, key, options.max_gigabytes, last="input")
    for axis, name in enumerate(("trial", "time")):
        if x.shape[axis] != (shape[axis] if name in axes else 1):
            raise UserError(
                f"data.inputs {key} like the activity, {shape[0]} trials of {shape[1]} samples",
                f"shape {x.shape} (trials, time, inputs)",
                "name the axes that it has, in their order: data.input_axes=[trial,time,input]",
            )
    return np.broadcast_to(x, (*shape, x.shape[2]))


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
    kinds = [
        x.decode(errors="replace") if isinstance(x, bytes) else f"{x:g}" if different.dtype.kind in "iuf" else str(x)
        for x in different
    ]
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


READER = Reader(ArraysOptions, load_arrays, formats=FORMATS, refuses=require_activity, several=True)
