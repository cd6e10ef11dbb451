"""Spike times as labs keep them, binned: lists of events (time, neuron, trial), and lists of times for each neuron."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from connector.data.beside import kept_of, label
from connector.data.contents import absent
from connector.data.layout import axes_of_lists, depth_of, flattened, grid_of, numbers, one_each
from connector.data.nwb_clock import ENOUGH_SPIKES, FAR, SLOW_HZ
from connector.data.nwb_observed import only_recorded
from connector.data.nwb_trials import TrialBins
from connector.data.settings import seconds
from connector.data.trial_windows import UNITS, whole_bins, windows
from connector.errors import UserError
from connector.files import check_size

_SEVERAL = 5  # trials
_NEARLY_ALL = 0.95  # of the trials
_FEW_SPIKES = 4  # in a trial
_OF_TRIALS = "data.spike_trials, or trial among data.axes"


@dataclass(frozen=True)
class Events:
    """Spikes of all neurons.

    Attributes:
        times: (n,) seconds; neurons: (n,) numbers from 0; trials: (n,) numbers or texts of the trials that the times count from,
            or None for times of one recording.
        names: of the neurons; named: by the file, not by their order. n_trials: where it is known; rows: which of the n_file
            trials of the file these are, None for all.
    """

    times: np.ndarray
    neurons: np.ndarray
    trials: np.ndarray | None
    names: tuple[str, ...]
    n_trials: int | None = None
    named: bool = False
    rows: np.ndarray | None = None
    n_file: int = 0


@dataclass(frozen=True)
class Counted:
    """Counts (trials, steps, neurons) float32; lengths (trials,) or None where they are to be told from the counts; start of
    each trial in the session (trials,), s, or None; which of the n_file trials of the file these are, or None for all; names of
    neurons, and of trials where the file has them."""

    counts: np.ndarray
    lengths: np.ndarray | None
    times_s: np.ndarray | None
    rows: np.ndarray | None
    names: tuple[str, ...]
    n_file: int
    trial_names: tuple[str, ...] = ()


def count_spikes(raw: Mapping[str, Any], options: Any, one: int, bin_s: float, notes: list[str]) -> Counted:
    """Spikes counted in the bins of trials.

    Times count from each trial's zero where events have trials; else trials are windows about ``trial_starts``, or the whole
    is one recording, from its first spike to its last unless ``start_s`` and ``stop_s`` say so.

    Args:
        raw: what the options of :class:`connector.data.arrays.ArraysOptions` name. one: number of the first cell or column.

    Raises:
        UserError: arrays that do not go together, no spike or no bin in the windows, too many bins.
    """
    events = _chosen(_events(raw, options, one, notes), raw.get("neurons", options.neurons), raw["counted_from"], notes)
    if not len(events.times):
        raise UserError(f"spike times in {options.spike_times}", "none")
    rows, starts, named = events.rows, None, ()
    if raw.get("trial_starts") is not None:
        if events.trials is not None:
            raise UserError(f"trials given once: data.trial_starts, or {_OF_TRIALS}", "both")
        bins = windows(raw, options, bin_s, notes)
        _check_clock(events, bins)
        rows, starts = bins.rows, bins.event_s
    elif events.trials is not None:
        events, bins, named = _side_by_side(events, raw, options, one, bin_s, notes)
    else:
        bins = _whole(events, options, bin_s, notes)
        starts = bins.event_s
    counts = _counts(events, bins, options.max_gigabytes)
    if not counts.any():
        raise UserError(
            f"spikes in the {bins.n_trials} trials",
            f"none; spike times {events.times.min():g} to {events.times.max():g} s, trials {bins.begin.min():g} to "
            f"{(bins.begin + bins.lengths * bin_s).max():g} s",
            "check that both are in seconds; data.spike_unit_s and data.trial_unit_s set other units",
        )
    lengths: np.ndarray | None = bins.lengths
    n_file = bins.n_trials if rows is None else events.n_file
    if raw.get("trial_starts") is not None:
        n_file = len(raw["trial_starts"])
        counts, bins = only_recorded(counts, bins, notes, UNITS)
        rows, starts, lengths = bins.rows, bins.event_s, bins.lengths
    elif events.trials is not None and options.stop_s is None:
        lengths = None  # a trial's end is where its spikes end
    return Counted(counts, lengths, starts, rows, events.names, n_file, named)


def _events(raw: Mapping[str, Any], options: Any, one: int, notes: list[str]) -> Events:
    """What the options say of spikes, as one list of events."""
    value, where, unit = raw["spike_times"], options.spike_times, seconds(options.spike_unit_s, "data.spike_unit_s")
    if "spike_neurons" in raw:
        times = numbers(one_each(value, None, "", where), where).astype(float)
        ids = one_each(raw["spike_neurons"], len(times), "data.spike_neurons", options.spike_neurons, "spikes")
        trials = None
        if "spike_trials" in raw:
            trials = one_each(raw["spike_trials"], len(times), "data.spike_trials", options.spike_trials, "spikes")
        kept = np.isfinite(times)
        for labels in (ids, trials):
            kept &= ~np.isnan(labels) if labels is not None and labels.dtype.kind == "f" else True
        names, neurons = np.unique(ids[kept], return_inverse=True)
        said = tuple(map(label, names.tolist()))
        return Events(unit * times[kept], neurons.ravel(), None if trials is None else trials[kept], said, named=True)
    if isinstance(value, np.ndarray) and value.squeeze().ndim < 2 and options.axes is None:
        raise UserError(
            f"the neuron of each of the {value.size} spikes of {where}", "none", "name it: data.spike_neurons=KEY"
        )
    axes = list(options.axes or ["neuron"])
    if options.axes is None and depth_of(value) > max(1, str(where).count("*")):
        raise UserError(
            f"data.axes of the lists of times in {where}, which are nested {depth_of(value)} deep", "none",
            "set data.axes=[trial,neuron] or [neuron,trial]; [neuron] takes each list as a neuron",
        )  # fmt: skip
    if sorted(axes) not in (["neuron"], ["neuron", "trial"]):
        raise UserError("data.axes of lists of spike times as [neuron], [trial,neuron] or [neuron,trial]", str(axes))
    if isinstance(value, np.ndarray):  # a row of times each, NaN or zeros behind them
        value = _without_zeros(_without_negative(value, where, notes), where, notes)
        value = [list(x) for x in value] if len(axes) == 2 else list(value)
    found = _of_lists(value, axes, raw.get("neuron_names", ()), where, one, notes)
    return replace(found, times=unit * found.times)


def _at_the_end(x: np.ndarray) -> np.ndarray:
    """Where x (..., n) is True from there to the end of its row."""
    return np.logical_and.accumulate(x[..., ::-1], axis=-1)[..., ::-1]


def _without_negative(rows: np.ndarray, where: str, notes: list[str]) -> np.ndarray:
    """Rows of times, NaN where one negative number fills them up, the lowest of all, behind later times."""
    rows = numbers(rows, where).astype(float)
    low = rows.min(initial=0, where=np.isfinite(rows))
    filled = _at_the_end(rows == low)
    times = np.where(filled, np.nan, rows)
    # Times that ascend do not end with their lowest, and others do not with several that are the same.
    number, ascend = np.isfinite(times).sum(-1), ~(np.diff(times, axis=-1) < 0).any(-1)
    padded = filled.any(-1) & (((number > 1) & ascend) | ((number > 0) & (filled.sum(-1) > 1)))
    if not low < 0 or not padded.any():
        return rows
    notes.append(f"{low:g} behind the times in {int(filled.any(-1).sum())} rows of {where}: taken as padding")
    return times


def _without_zeros(rows: np.ndarray, where: str, notes: list[str]) -> np.ndarray:
    """Rows of ascending times, NaN where zeros fill them up behind a later time."""
    filled = _at_the_end(rows == 0)
    behind = (rows > 0).any(-1, keepdims=True)  # one zero behind such times is not a time
    padded = filled & (behind | ((rows != 0).any(-1, keepdims=True) & (filled.sum(-1, keepdims=True) > 1)))
    if not padded.any():
        return rows
    filled &= behind | (filled.sum(-1, keepdims=True) > 1)
    notes.append(f"zeros behind the times in {int(filled.any(-1).sum())} rows of {where}: taken as padding")
    return np.where(filled, np.nan, rows)


def _of_lists(
    value: list, axes: Sequence[str], member_names: Sequence[str], where: str, one: int, notes: list[str]
) -> Events:
    """Of a list of times for each neuron, or trial and neuron. Neurons and trials whose cells are all empty are left out."""
    if len(axes) == 1:
        lists = flattened(value)
        grid = np.empty((len(lists), 1), dtype=object)
        grid[:, 0] = lists
    else:
        grid = axes_of_lists(grid_of(value, where), axes, ("neuron", "trial"), where)
    missing = np.array([x is absent() for x in grid.ravel()], dtype=bool).reshape(grid.shape)
    present, shown = (np.flatnonzero(~missing.all(axis)) for axis in (1, 0))
    names = np.array(member_names if len(member_names) == len(grid) else [str(k + one) for k in range(len(grid))])
    named = len(present) < len(grid) or len(member_names) == len(grid)
    if len(present) < len(grid):
        notes.append(
            f"{len(grid) - len(present)} empty cells of {where} left out; neurons have the numbers of their cells"
        )
    grid = grid[present][:, shown]
    flat = [numbers(x, where).ravel().astype(float) for x in grid.ravel()]
    sizes = [len(x) for x in flat]
    times = np.concatenate(flat) if flat else np.zeros(0)
    neurons, trials = (np.repeat(index.ravel(), sizes)[np.isfinite(times)] for index in np.indices(grid.shape))
    of_trials = (trials, grid.shape[1]) if "trial" in axes else (None, None)
    rows = None
    if "trial" in axes and len(shown) < missing.shape[1]:
        rows = shown
        notes.append(f"{missing.shape[1] - len(shown)} trials whose cells are empty left out")
    names_said = tuple(names[present].tolist())
    return Events(
        times[np.isfinite(times)], neurons, of_trials[0], names_said, of_trials[1], named, rows, missing.shape[1]
    )


def _chosen(events: Events, chosen: Any, counted_from: Mapping[str, int], notes: list[str]) -> Events:
    """Those of the neurons that ``data.neurons`` names."""
    ids = events.names if events.named else ()
    kept, names = kept_of(chosen, len(events.names), counted_from, notes, ids)
    place = np.full(len(events.names), -1)
    place[kept] = np.arange(len(kept))
    inside = place[events.neurons] >= 0
    trials = None if events.trials is None else events.trials[inside]
    names = names or events.names
    return replace(
        events, times=events.times[inside], neurons=place[events.neurons[inside]], trials=trials, names=names
    )


def _check_clock(events: Events, bins: TrialBins) -> None:
    """Refuses spike times in another unit than those of the trials, and trials that all lie within one of them."""
    first, last, begin = float(events.times.min()), float(events.times.max()), float(bins.begin.min())
    end = float((bins.begin + bins.lengths * bins.bin_s).max())
    busiest = float(np.bincount(events.neurons).max()) / max(last - first, 1e-9)
    if len(events.times) >= ENOUGH_SPIKES and busiest < SLOW_HZ and last - begin > FAR * (end - begin):
        raise UserError(
            "spike times and times of trials on one clock",
            f"spikes {first:g} to {last:g} s, no neuron above {busiest:.2g} Hz, trials {begin:g} to {end:g} s",
            UNITS,
        )

    apart = float(bins.begin.max()) - float(bins.begin.min())
    if bins.n_trials >= _SEVERAL and apart < end - begin - apart and last - first > FAR * (end - begin):
        raise UserError(
            "trials one after the other",
            f"{bins.n_trials} trials that begin within {apart:.3g} s, in a recording of {last - first:.4g} s",
            "say what the unit of the trials' times is: data.trial_unit_s",
        )


def _whole(events: Events, options: Any, bin_s: float, notes: list[str]) -> TrialBins:
    """One recording without trials."""
    first = float(events.times.min()) if options.start_s is None else options.start_s
    last = float(events.times.max()) if options.stop_s is None else options.stop_s
    lengths = whole_bins(np.array([last - first]), bin_s)
    if lengths[0] < 2:
        raise UserError(f"a recording of at least 2 bins of {bin_s:g} s", f"{first:g} to {last:g} s")
    if options.start_s is None or options.stop_s is None:
        notes.append(
            f"the recording is taken to last from {first:g} to {last:g} s, from the first to the last spike; data.start_s and data.stop_s set other limits"
        )
    return TrialBins(np.zeros(1, dtype=int), np.array([first]), np.array([first]), lengths, bin_s)


def _check_from_zero(events: Events, options: Any) -> None:
    """Refuses times of the session in place of times that count from each trial's zero: nearly every trial begins behind the
    middle of the one before it."""
    order = np.lexsort((events.times, events.trials))
    times, of_trial = events.times[order], np.asarray(events.trials)[order]
    edges = np.r_[0, np.flatnonzero(of_trial[1:] != of_trial[:-1]) + 1, len(times)]
    first, middle = times[edges[:-1]], times[(edges[:-1] + edges[1:] - 1) // 2]
    rank = np.argsort(first)
    after = first[rank][1:] > middle[rank][:-1]
    # Of a few spikes the first is the middle, and trials in the order of these follow one another whatever their clock.
    few = len(first) < _SEVERAL or len(times) < max(ENOUGH_SPIKES, _FEW_SPIKES * len(first))
    if few or after.mean() < _NEARLY_ALL:
        return
    remedy = "subtract the start of its trial from each time"
    if options.spike_trials is not None:
        remedy = f"replace data.spike_trials by data.trial_starts=KEY and data.stop_s=SECONDS, or {remedy}"
    raise UserError(
        f"times in {options.spike_times} that count from zero in each trial",
        f"times of the session, {times.min():g} to {times.max():g} s, one trial after the other",
        remedy,
    )


def _side_by_side(
    events: Events, raw: Mapping[str, Any], options: Any, one: int, bin_s: float, notes: list[str]
) -> tuple[Events, TrialBins, tuple[str, ...]]:
    """Trials whose times all count from zero, laid one behind the other on one clock; and their names, where they have any."""
    assert events.trials is not None
    _check_from_zero(events, options)
    n_trials, labels, named = events.n_trials, events.trials, ()
    beside = [
        np.size(raw[what]) for what in ("choices", "times", "conditions") if isinstance(raw.get(what), np.ndarray)
    ]
    whole = labels.dtype.kind in "iuf" and bool((labels == np.round(labels)).all())
    if n_trials is None and beside and whole and labels.min() >= one and labels.max() < beside[0] + one:
        if labels.min() > one:  # counted from another number, or without a spike in the first trial
            got = f"{labels.min():g} to {labels.max():g} for {beside[0]} trials"
            raise UserError(
                f"data.spike_trials that count trials from {one}", got, "leave trials without spikes out of all arrays"
            )
        n_trials, trial = beside[0], labels.astype(np.int64) - one
    elif n_trials is None:
        different, trial = np.unique(labels, return_inverse=True)
        n_trials, named = len(different), tuple(map(label, different.tolist()))
        missing = int(labels.max() - labels.min()) + 1 - n_trials if whole else 0
        if missing:
            notes.append(f"{missing} trials without a spike, by the numbers of the others, are not among the trials")
    else:
        trial = labels
    low = min(0.0, float(events.times.min()))
    start = bin_s * math.floor(low / bin_s + 1e-9) if options.start_s is None else options.start_s
    stop = float(events.times.max()) + bin_s if options.stop_s is None else options.stop_s
    lengths = np.repeat(whole_bins(np.array([stop - start]), bin_s), n_trials)
    if lengths[0] < 2:
        raise UserError(
            f"trials of at least 2 bins of {bin_s:g} s", f"{start:g} to {stop:g} s", "see data.bin_s, data.spike_unit_s"
        )
    inside = (events.times >= start) & (events.times < start + lengths[0] * bin_s)
    apart = (lengths[0] + 2) * bin_s
    times = events.times[inside] - start + apart * trial[inside]
    begin = apart * np.arange(n_trials)
    laid = replace(events, times=times, neurons=events.neurons[inside], trials=trial[inside], n_trials=n_trials)
    return laid, TrialBins(np.arange(n_trials), begin, begin, lengths, bin_s), named


def _counts(events: Events, bins: TrialBins, max_gigabytes: float) -> np.ndarray:
    """(trials, steps, neurons) float32."""
    size = 4e-9 * bins.n_trials * bins.n_steps * len(events.names)
    check_size(
        size, max_gigabytes, f"the longest trial has {bins.n_steps} bins: widen data.bin_s, or see data.spike_unit_s"
    )
    counts = np.zeros((bins.n_trials, bins.n_steps, len(events.names)), dtype=np.float32)
    order = np.lexsort((events.times, events.neurons))
    ends = np.searchsorted(events.neurons[order], np.arange(1, len(events.names)))
    for k, of_neuron in enumerate(np.split(order, ends)):
        counts[:, :, k] = bins.counts(events.times[of_neuron])
    return counts


def split_by_ends(times: np.ndarray, ends: np.ndarray, where: str) -> list[np.ndarray]:
    """Times of all neurons as a list for each, by where each one's end (HDF5's tables of ragged columns, as NWB's)."""
    whole = ends.dtype.kind in "iu" and ends.ndim == 1 and len(ends) > 0
    if not whole or (np.diff(ends.astype(np.int64)) < 0).any() or int(ends[-1]) != len(times):
        raise UserError(f"{where}_index with the ends of the neurons' times, the last {len(times)}", f"{ends[:4]}...")
    return np.split(times, ends[:-1].astype(np.int64))


def given_numbers(value: Any, option: str) -> np.ndarray | None:
    """A list of numbers that was typed; None for a KEY."""
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, Sequence) or not all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
    ):
        raise UserError(f"{option} as a KEY or a list of numbers", repr(value))
    return np.array(value, dtype=float)
