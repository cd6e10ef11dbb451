"""Recordings from arrays of any npz, npy, MATLAB v5 / v7.3, HDF5 or csv file: which array is what, the options say."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.beside import cut_inputs, input_keys, inputs_of, kept_of
from connector.data.contents import FORMATS, Contents
from connector.data.layout import AXES, BLOCK, check_axes, common_factor, laid_out, numbers, one_each, wrong_axes
from connector.data.pieces import cut
from connector.data.preprocessing import begun_at
from connector.data.readers import Reader
from connector.data.sample_trials import by_trial, require_one_row_each
from connector.data.settings import data_option, memory_option, require_two, seconds, settled
from connector.data.sources import Sources
from connector.data.spike_times import count_spikes, given_numbers, split_by_ends
from connector.data.time_axis import NAMES, time_axis
from connector.data.trial_windows import samples_about, times_of_trials, windows, within_recording
from connector.declarations import require
from connector.errors import UserError
from connector.files import paths_of
from connector.report.numbers import counted

if TYPE_CHECKING:
    from connector.types import Recording

_BIN_S = 0.01
_MOST_COUNTS = 20  # spikes in a bin, on average, of neurons that never pause
_FEW_VALUES = 3  # zero and some more, which may be multiples of a number by chance
_PER_TRIAL = ("lengths", "choices", "times", "conditions")
_BESIDE = ("trials", "neurons", "spike_neurons", "spike_trials", "trial_starts", "trial_stops", "sample_trials")


@dataclass
class ArraysOptions:
    """Which arrays of a file are what: the options of ``data=arrays`` and keywords of :func:`load_arrays`.

    A KEY names an array: names of groups, structs and fields joined by ``/`` or ``.``; ``*`` for all members (of cells,
    of a group), ``trial*`` for those whose names begin so, ``trial%d`` for those that are ``trial`` and a number; a
    number for one cell or one column, from 0, in MATLAB's files from 1. With several files ``FILE:KEY``.
    """

    activity: str | None = data_option("KEY of rates or spike counts; null: list the arrays of the file", default=None)
    kind: str = data_option(
        "what the activity is; auto: spikes if all numbers are whole and none is negative, else rates",
        choices=("auto", "rates", "spikes"), default="auto",
    )  # fmt: skip
    axes: list[str] | None = data_option(
        "axes of the activity in their order, among trial (twice for conditions and their repeats), time, neuron; "
        "for lists of arrays, the axes of the list come first; null: [trial,time,neuron]",
        default=None,
    )
    neurons: Any = data_option(
        "neurons to keep: KEY of a mask or of their numbers, or a list of numbers, counted as in keys; null: all",
        default=None,
    )
    spike_times: str | None = data_option(
        "KEY of spike times to count in bins, in place of activity: one vector of all spikes, or a list for "
        "each neuron (cells, groups, rows with NaN behind). With data.axes=[trial,neuron]: a list for each "
        "trial and neuron",
        default=None,
    )
    spike_neurons: str | None = data_option("KEY of the neuron of each spike, if times are one vector", default=None)
    spike_trials: str | None = data_option(
        "KEY of the trial of each spike; times then count from zero in each trial", default=None
    )
    spike_unit_s: Any = data_option("seconds per unit of spike times, such as 0.001 or 1/30000", default=1.0)
    trial_starts: Any = data_option(
        "KEY (or a list) of the trials' times, if spike times or samples count through the session", default=None
    )
    trial_stops: Any = data_option("KEY (or a list) of the times at which trials end", default=None)
    trial_unit_s: Any = data_option("seconds per unit of these times; null: as spike_unit_s", default=None)
    start_s: float | None = data_option(
        "start of the bins, from the trial's time; without trials, on the clock of the spikes; null: 0, or "
        "the first spike",
        unit="s", default=None,
    )  # fmt: skip
    stop_s: float | None = data_option(
        "end of the bins, counted in the same way; null: trial_stops, or the last spike", unit="s", default=None
    )
    trials: Any = data_option(
        "trials to keep: KEY of a mask or of their numbers, or a list of numbers; null: all", default=None
    )
    inputs: Any = data_option(
        "KEY of external inputs, or a list of KEYs, whose channels are put side by side", default=None
    )
    input_axes: list[str] | None = data_option(
        "axes of the inputs, among trial, time, input; inputs are constant along an axis that is not named; "
        "null: as data.axes, with input for neuron",
        default=None,
    )
    conditions: str | None = data_option("KEY of a label for each trial, number or text", default=None)
    condition_inputs: bool = data_option(
        "true: one input for each condition, 1 in its trials and 0 in others", default=False
    )
    choices: str | None = data_option("KEY of choices: 0 / 1, false / true or left / right", default=None)
    choice_values: list[Any] | None = data_option(
        "the two values of the choices that mean left and right, if they are others, such as [-1,1]; any "
        "other value: no choice",
        default=None,
    )
    lengths: str | None = data_option(
        "KEY of the number of samples of each trial; null: up to the NaN at its end", default=None
    )
    sample_trials: str | None = data_option(
        "KEY of the trial of each sample, if trials follow one another along the time axis, such as the column trial of a table",
        default=None,
    )
    times: str | None = data_option("KEY of the trials' times in the session, for slow drift", unit="s", default=None)
    piece_s: float | None = data_option(
        "cut recordings without trials, or long trials, into pieces of this length; null: no",
        unit="s",
        above=0,
        default=None,
    )
    gap_s: float | None = data_option(
        "least time between training, validation and test pieces, which form blocks of the recording; null: "
        "one piece",
        unit="s", at_least=0, default=None,
    )  # fmt: skip
    time_axis: Any = data_option(
        "KEY of the time of each sample of a continuous recording, which tells gaps and what data.trial_starts counts from; "
        "null: t, time, times or timestamps beside the activity, if as long; false: none",
        default=None,
    )
    bin_s: float | None = data_option(
        "time between samples; null: 0.01 for spikes, no unit for rates", unit="s", above=0, default=None
    )
    tau: float = data_option("time constant of the network; alpha = bin_s / tau", unit="s", above=0, default=0.1)
    alpha: float | None = data_option(
        "time step in units of the time constant, dt / tau; null: bin_s / tau, or 0.1 for rates without bin_s",
        above=0,
        at_most=1,
        default=None,
    )
    activation: str | None = data_option(
        "nonlinearity phi of the neurons; null: tanh for rates, softplus for spikes", default=None
    )
    range_tolerance: float = data_option(
        "how far noisy rates may leave the range of phi: rms excess relative to half the range", at_least=0, default=0.3
    )
    max_gigabytes: float = memory_option("largest size of the arrays in memory")

    def check(self) -> None:
        require_two(self.choice_values)
        for name, known in (("axes", AXES), ("input_axes", ("trial", "time", "input"))):
            if getattr(self, name) is not None:
                check_axes(getattr(self, name), known, f"data.{name}")
        text_or_list = "a KEY, or a list"
        for name in ("inputs", "neurons", "trials"):
            value = getattr(self, name)
            require(value is None or isinstance(value, (str, list, tuple)), f"data.{name}", text_or_list, value)
        known = self.time_axis is None or self.time_axis is False or isinstance(self.time_axis, str)
        require(known, "data.time_axis", "a KEY, null or false", self.time_axis)
        continuous = self.activity is not None and (self.piece_s is not None or self.trial_starts is not None)
        alone = continuous or not isinstance(self.time_axis, str)
        require(alone, "data.time_axis", "with data.activity, and data.piece_s or data.trial_starts", self.time_axis)
        require(
            self.conditions is not None or not self.condition_inputs,
            "data.condition_inputs",
            "with data.conditions",
            True,
        )
        if self.spike_times is None:
            for name in ("spike_neurons", "spike_trials"):
                require(getattr(self, name) is None, f"data.{name}", "with data.spike_times", getattr(self, name))
            for name in ("trial_stops", "start_s", "stop_s"):
                about = self.trial_starts is not None or getattr(self, name) is None
                require(about, f"data.{name}", "with data.trial_starts, or data.spike_times", getattr(self, name))
            timed = self.trial_starts is None or self.bin_s is not None
            require(timed, "data.bin_s", "the seconds between samples, for data.trial_starts", "none")
            for name in ("lengths", "times", "piece_s"):
                alone = self.trial_starts is None or getattr(self, name) is None
                require(alone, f"data.{name}", "without data.trial_starts", getattr(self, name))
        else:
            require(self.activity is None, "data.spike_times", "in place of data.activity", self.spike_times)
            require(self.lengths is None, "data.lengths", "with data.activity, not with data.spike_times", self.lengths)
        for name in ("spike_times", "trial_starts", "lengths"):
            alone = self.sample_trials is None or getattr(self, name) is None
            require(alone, "data.sample_trials", f"without data.{name}", self.sample_trials)
        require(self.piece_s is not None or self.gap_s is None, "data.gap_s", "with data.piece_s", self.gap_s)
        for name in ("choices", "conditions"):
            alone = self.piece_s is None or getattr(self, name) is None
            require(alone, f"data.{name}", "with whole trials, without data.piece_s", getattr(self, name))
        seconds(self.spike_unit_s, "data.spike_unit_s")
        if self.start_s is not None and self.stop_s is not None:
            require(self.stop_s > self.start_s, "data.stop_s", f"after data.start_s = {self.start_s:g}", self.stop_s)
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
    arrays, whose trials may be of different lengths. Without ``lengths``, a trial ends where
    every neuron is NaN, or where more zeros follow than silence explains.

    Args:
        path: the file, or a list of files.
        options: which arrays are what; None: the defaults of :class:`ArraysOptions`.
        name: of the recording; None: the first file's.
        keywords: options by their names, ``tau`` also as ``tau_s``.

    Raises:
        UserError: another format, damage, a key that is absent, arrays that cannot be a recording; without ``activity``, the
            arrays that there are and a guess of the options.
    """
    options = settled(ArraysOptions, options, keywords)
    paths = paths_of(path)
    require_activity(paths, options)
    raw = _read(paths, options)
    notes: list[str] = []
    name = name or paths[0].stem
    if options.spike_times is not None:
        return _of_spike_times(raw, options, name, notes)
    activity, lengths = _activity(raw, options)
    if options.axes is None:
        notes.append(f"axes taken as {', '.join(AXES)} (data.axes): {', '.join(map(str, activity.shape))}")
    if lengths is not None and "lengths" in raw:
        raise UserError("lengths of trials given once", "data.lengths and arrays of different lengths")
    n_trials, counted_from, times, trial_names = len(activity), raw["counted_from"], None, ()
    if "trial_starts" in raw:
        n_trials = len(raw["trial_starts"])
        activity, lengths, times, options = _about_trials(activity, raw, options, notes)
    elif "sample_trials" in raw:
        activity, lengths, trial_names, options = by_trial(activity, raw, options, notes)
        n_trials = len(activity)
    rows, _ = kept_of(raw.get("trials", options.trials), n_trials, counted_from, notes, trial_names, what="trials")
    kept, names = kept_of(raw.get("neurons", options.neurons), activity.shape[2], counted_from, notes)
    rows = _long_enough(rows, lengths, notes)
    activity = _without_filler(activity[rows][:, :, kept], options.kind, notes)
    kind = _kind(activity, None if lengths is None else lengths[rows], options.kind, notes)
    values = {kind: activity} | {k: x[rows] for k, x in (("lengths", lengths), ("times", times)) if x is not None}
    bin_s = options.bin_s if options.bin_s is not None or kind == "rates" else _BIN_S
    return _finished(values, raw, options, bin_s, name, notes, neuron_names=names, rows=rows, n_trials=n_trials)


def _about_trials(
    activity: np.ndarray, raw: dict[str, Any], options: ArraysOptions, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, ArraysOptions]:
    """Of a continuous recording (1, time, neurons): windows about the trials' times (trials, time, neurons), their lengths, of which
    0 are those of trials that were not recorded, and times in s; options whose inputs are such windows as well."""
    require(
        len(activity) == 1,
        "data.trial_starts",
        "with one continuous recording, whose data.axes are without trial",
        options.axes,
    )
    told = ~np.isnan(activity[0]).all(1) if activity.dtype.kind == "f" else np.ones(activity.shape[1], bool)
    clock = time_axis(raw["time_axes"], len(told), options, options.bin_s, notes)
    bins, first = within_recording(windows(raw, options, options.bin_s, notes), told, clock, notes)
    n_trials = len(raw["trial_starts"])

    def cut(x: np.ndarray) -> np.ndarray:
        """Of all trials of the file; those that are not in ``bins`` are empty."""
        found = samples_about(x, first, bins.lengths, options.max_gigabytes)
        if len(found) == n_trials:
            return found
        whole = np.zeros((n_trials, *found.shape[1:]), found.dtype)
        whole[bins.rows] = found
        return whole

    options = cut_inputs(raw["inputs"], options, activity.shape[:2], cut)
    lengths, times = np.zeros(n_trials, np.int64), np.zeros(n_trials)
    lengths[bins.rows], times[bins.rows] = bins.lengths, bins.event_s
    return cut(activity[0]), lengths, times, options


def _long_enough(rows: np.ndarray, lengths: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """Those of the trials ``rows`` that have the two samples of a step; tells of others, as empty cells are."""
    long = np.ones(len(rows), bool) if lengths is None else lengths[rows] >= 2
    if not long.any():
        raise UserError("trials of at least 2 samples", f"none of {len(rows)}")
    if not long.all():
        notes.append(f"{int((~long).sum())} of {len(rows)} trials left out: they have fewer than 2 samples")
    return rows[long]


def _of_spike_times(raw: dict[str, Any], options: ArraysOptions, name: str, notes: list[str]) -> Recording:
    bin_s = _BIN_S if options.bin_s is None else options.bin_s
    counted_from = raw["counted_from"]
    found = count_spikes(raw, options, counted_from["activity"], bin_s, notes)
    rows, n_trials = np.arange(found.n_file) if found.rows is None else found.rows, found.n_file
    chosen = raw.get("trials", options.trials)
    wanted, _ = kept_of(chosen, n_trials, counted_from, notes, found.trial_names, what="trials")
    some = np.isin(rows, wanted)
    if not some.any():
        raise UserError("data.trials with some of the trials that were recorded", "none")
    values = {"spikes": found.counts, "times": found.times_s, "lengths": found.lengths}
    values = {key: x if some.all() else x[some] for key, x in values.items() if x is not None}
    return _finished(
        values, raw, options, bin_s, name, notes, neuron_names=found.names, rows=rows[some], n_trials=n_trials
    )


def _finished(
    values: dict[str, np.ndarray], raw: dict[str, Any], options: ArraysOptions, bin_s: float | None, name: str, notes: list[str],
    *, neuron_names: tuple[str, ...], rows: np.ndarray, n_trials: int,
) -> Recording:  # fmt: skip
    """The Recording of activity, by the keys of an npz, of those trials ``rows`` of ``n_trials`` that are kept, and of what
    the file has beside it of all of them."""
    from connector.data.recorded import RecordedArrays, recording_of, tensor

    of_trials = {x: one_each(raw[x], n_trials, f"data.{x}", getattr(options, x)) for x in _PER_TRIAL if x in raw}
    kind = "rates" if "rates" in values else "spikes"
    values |= {what: x[rows] for what, x in of_trials.items()}
    steps = values[kind].shape[1]
    lengths = np.broadcast_to(values.get("lengths", steps), len(rows))
    labels = values.pop("conditions", None)
    inputs, input_names = inputs_of(raw, labels, lengths, (n_trials, steps), rows, options, notes)
    values |= {} if inputs is None else {"externalinputs": inputs}
    more: dict[str, Any] = {"neuron_names": neuron_names}
    if options.piece_s is not None:
        one = bin_s is not None and n_trials == 1
        require(
            one or not isinstance(options.time_axis, str), "data.time_axis", "with one recording", options.time_axis
        )
        clock = time_axis(raw.get("time_axes", {}), steps, options, bin_s, notes) if one else None
        values, stretches, more["gap"] = cut(values, bin_s, options, clock, notes)
        more["stretches"] = tensor(stretches)
    elif "lengths" not in values:
        values |= _begun(values, kind, notes)
    values[kind] = np.require(values[kind], requirements=["W", "O"])
    return recording_of(RecordedArrays(values, notes, options.activation), options, bin_s, name, input_names, **more)


def _begun(values: dict[str, np.ndarray], kind: str, notes: list[str]) -> dict[str, np.ndarray]:
    """Activity and inputs of trials that are padded with NaN at the front, from the first sample on."""
    activity = values[kind]
    first = (~np.isnan(activity).all(2)).argmax(1) if activity.dtype.kind == "f" else np.zeros(1)
    if not first.any():
        return {}
    notes.append(
        f"{counted(int((first > 0).sum()), 'trial')} padded with NaN at the front moved to begin at the first sample"
    )
    return {key: begun_at(values[key], first) for key in (kind, "externalinputs") if key in values}


def require_activity(path: Any, options: ArraysOptions) -> None:
    """Raises UserError, with the arrays that there are and a guess of the command, where no option names the activity."""
    if options.activity is None and options.spike_times is None:
        from connector.data.listing import told

        told(paths_of(path), options.max_gigabytes)


def _read(paths: list[Path], options: ArraysOptions) -> dict[str, Any]:
    """What the options name, by option; under ``counted_from``, by option, the number of the first trial or neuron in it."""
    raw: dict[str, Any] = {}
    with Sources(paths, options.max_gigabytes) as sources:
        key = options.activity if options.spike_times is None else options.spike_times
        main, file = sources.value(str(key))
        raw["activity" if options.spike_times is None else "spike_times"] = main
        counted_from = {"activity": file.one}
        if options.spike_times is None:
            require_one_row_each(file, main, options)
        for what in (*_PER_TRIAL, *_BESIDE):
            named = getattr(options, what)
            if isinstance(named, str):
                raw[what], beside = sources.value(named)
                counted_from[what] = beside.one
        raw["time_axes"] = _time_axes(sources, file, options)
        raw["inputs"] = {named: sources.value(named)[0] for named in input_keys(options)}
        ids = _names_of_units(file, str(key)) if options.spike_times is not None else []
        if ids and all(x.isdecimal() for x in ids):
            raw["neuron_names"] = ids
        if options.spike_times is not None and options.spike_neurons is None and isinstance(main, np.ndarray):
            with contextlib.suppress(UserError):  # a table of ragged columns, as NWB has them
                raw["spike_times"] = split_by_ends(main.ravel(), sources.value(f"{key}_index")[0], str(key))
    for what in ("trial_starts", "trial_stops"):
        typed = given_numbers(getattr(options, what), f"data.{what}")
        raw |= {} if typed is None else {what: typed}
        raw |= {what: times_of_trials(raw[what], f"data.{what}")} if what in raw else {}
    return raw | {"counted_from": counted_from}


def _time_axes(sources: Sources, file: Contents, options: ArraysOptions) -> dict[str, Any]:
    """What may be the time axis of a continuous recording, by its key."""
    if isinstance(options.time_axis, str):
        return {options.time_axis: sources.value(options.time_axis)[0]}
    continuous = options.piece_s is not None or options.trial_starts is not None
    if options.activity is None or not continuous or options.time_axis is False:
        return {}
    beside = file.beside(str(options.activity).rpartition(":")[2], NAMES)
    others = [str(x).replace(".", "/") for x in (options.trial_starts, options.trial_stops, options.times)]
    return {key: x for key, x in beside.items() if key not in others}


def _names_of_units(file: Contents, key: str) -> list[str]:
    """What the one `*` or `%d` of a KEY stands for in a group."""
    for rest in (key, key.rpartition(":")[2]) if key.count("*") + key.count("%d") == 1 else ():
        with contextlib.suppress(UserError):
            return file.members(rest)
    return []


def _activity(raw: dict[str, Any], options: ArraysOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """(trials, time, neurons) and the trials' lengths, or None."""
    value, where = raw["activity"], options.activity
    axes = list(options.axes or AXES)
    if isinstance(value, np.ndarray):
        numbers(value, str(where))
    if options.axes is None and isinstance(value, np.ndarray) and value.ndim != 3:
        raise wrong_axes(where, value.shape, axes)
    if not {"time", "neuron"} <= set(axes):
        got = f"[{','.join(axes)}] of {where}" + (f", shape {value.shape}" if isinstance(value, np.ndarray) else "")
        one_bin = "one bin a trial shows no dynamics: give counts in successive bins of each trial, [trial,time,neuron]"
        raise UserError("data.axes with time and neuron (and trial, where there are trials)", got, one_bin)
    found, lengths = laid_out(value, axes, where, options.max_gigabytes)
    if not found.size:
        raise UserError(f"numbers in {where}", f"trials, samples and neurons {found.shape}")
    return found, lengths


def _without_filler(activity: np.ndarray, kind: str, notes: list[str]) -> np.ndarray:
    """Counts (trials, time, neurons) whose trials are filled up with one negative number, with NaN in its place."""
    low = activity.min(initial=0)
    if kind == "rates" or not low < 0 or not (activity == np.round(activity)).all():
        return activity
    filled = np.logical_and.accumulate((activity == low).all(2)[:, ::-1], axis=1)[:, ::-1]
    if filled.all() or activity[~filled].min() < 0:
        return activity
    notes.append(f"{low:g} in every neuron at the end of {int(filled.any(1).sum())} trials: taken as padding")
    return np.where(filled[..., None], np.nan, activity.astype(float))


def _kind(activity: np.ndarray, lengths: np.ndarray | None, kind: str, notes: list[str]) -> str:
    """``kind``, or what the numbers (trials, time, neurons) are up to the trials' lengths (None: all)."""
    if kind != "auto":
        return kind
    if lengths is not None and (lengths < activity.shape[1]).any():
        activity = activity[np.arange(activity.shape[1]) < lengths[:, None]]
    with np.errstate(invalid="ignore"):
        seen = activity[~np.isnan(activity)] if activity.dtype.kind == "f" else activity.reshape(-1)
        whole = seen.size > 0 and seen.min() >= 0 and bool((seen == np.round(seen)).all())
    if whole and seen.min() > 0 and seen.mean() > _MOST_COUNTS:
        got = f"whole numbers from {seen.min():g} to {seen.max():g}, none of them 0"
        raise UserError(
            "data.kind, as these numbers may be spike counts or rates", got, "set data.kind=rates or spikes"
        )
    step = common_factor(seen) if whole else 1
    if step > 1 and len(np.unique(seen[:BLOCK])) > _FEW_VALUES:
        got = f"whole numbers that are all multiples of {step}"
        remedy = "set data.kind=rates, if they are counts over the width of a bin, or spikes"
        raise UserError("data.kind, as these numbers may be rates", got, remedy)
    notes.append(
        "all numbers are whole: read as spike counts (if they are rates, set data.kind=rates)"
        if whole
        else "read as rates (if they are spike counts, set data.kind=spikes)"
    )
    return "spikes" if whole else "rates"


READER = Reader(ArraysOptions, load_arrays, formats=FORMATS, refuses=require_activity, several=True)
