"""Recordings in NWB files (Neurodata Without Borders 2): units and trials read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from connector.data.formats import require_format
from connector.data.preprocessing import bin_events, mean_rates_hz
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, check_size, limited_memory, refusing_damage, unreadable
from connector.types import Loadings, Recording, span

EVENT_TIMES = ("session", "align")
# Where an exported file says how it is to be read.
NOTED = "connector_reading"
# Times are compared after rounding to nanoseconds, so that events on a bin's edge fall into the bin that begins there
# although session times carry rounding errors.
_DECIMALS = 9
SHORTEST_BIN_S = 1e-6
_SMALL_GB = 0.001  # columns smaller than this are read whatever data.max_gigabytes, which is about the counts


def load_nwb(
    path: str | os.PathLike,
    *,
    bin_s: float | None = None,
    tau_s: float | None = None,
    activation: str | None = None,
    align: str | None = None,
    start_s: float = 0.0,
    stop_s: float | None = None,
    until: str | None = None,
    inputs: Sequence[str] | None = None,
    event_times: str = "session",
    choices: str | None = None,
    choice_values: Sequence[Any] | None = None,
    evidence: str | None = None,
    click_difference: str | None = None,
    baseline_hz: str | None = None,
    trial_times: str | None = None,
    units: dict[str, Any] | None = None,
    trials: dict[str, Any] | None = None,
    min_rate_hz: float | None = None,
    max_gigabytes: float = MAX_GIGABYTES,
    name: str | None = None,
) -> Recording:
    """Spike counts from the units and trials tables of an NWB file.

    A trial's bins begin ``start_s`` after its event ``align``; only bins that fit wholly before its end are taken. What
    is None stands for the default given below, or, in a file of :func:`export_nwb`, for what that file was written with.

    Args:
        path: the file.
        bin_s: bin width, seconds; None: 0.01.
        tau_s: time constant, seconds (None: 0.1); alpha = bin_s / tau_s.
        activation: phi of the neurons; None: softplus.
        align: trials column with the time of the event that trials are aligned to; None: start_time. Trials without
            that event (NaN) are left out.
        start_s: start of the window, seconds from the event; may be negative.
        stop_s: end of the window, seconds from the event.
        until: trials column with the time at which each trial ends; None: stop_time where ``stop_s`` is not given.
            Where both are given, trials end at the earlier.
        inputs: names of external inputs, in this order. A trials column with a list of event times in each trial counts
            the events in each bin; one with a number in each trial is an input constant in the trial; a time series of
            the file is averaged in each bin (bins without a sample have the last one before).
        event_times: "session": event times in trials columns are times in the session, as is usual; "align": seconds
            from the event ``align``.
        choices: trials column with choices: 0 / 1, false / true or left / right; NaN or other words: no choice.
        choice_values: the two values of that column that mean left and right, where they are others.
        evidence: trials column with the signed strength of the evidence for right.
        click_difference: trials column with right minus left clicks.
        baseline_hz: trials column with each unit's firing rate before the trial, Hz.
        trial_times: trials column with the trials' times in the session, for slow drift; None: those of ``align``.
        units: {column: value or list of values}: units with one of these values in that column are kept. Columns of the
            electrodes table, and the ``location`` of the electrode group, stand for the unit's first electrode.
        trials: {column: value or list of values}: trials kept.
        min_rate_hz: units firing less on average in the trials are left out; None: those silent throughout; 0: none.
        max_gigabytes: largest size of the counts in memory.
        name: of the recording; None: the file's.

    Returns:
        Recording of kind "spikes"; inputs are float32, ``trial_times_s`` seconds in the session.

    Raises:
        UserError: another format, a file that is cut short, columns that do not exist (the message names those that
            do), or options that leave no trial or no unit.
    """
    path = Path(path)
    require_format(path, "nwb")
    if event_times not in EVENT_TIMES:
        raise UserError(f"data.event_times among {', '.join(EVENT_TIMES)}", repr(event_times))
    with _opened(path, max_gigabytes) as nwb:
        noted = _noted_reading(path, nwb)

        def chosen(key: str, given: Any, default: Any = None) -> Any:
            return given if given is not None else noted.get(key, default)

        unchanged = bin_s is None and align is None and start_s == 0
        bin_s, alpha = _time_step(noted, bin_s, tau_s)
        activation = chosen("activation", activation, "softplus")
        activation_named(activation)
        event = chosen("align", align, "start_time")
        table, notes = _Table(path, nwb, "trials", max_gigabytes), []
        kept, begin, lengths, aligned = _windows(
            table,
            event,
            start_s,
            stop_s,
            chosen("until", until, "stop_time" if stop_s is None else None),
            trials or {},
            bin_s,
            notes,
        )
        grid = _Grid(begin, lengths, bin_s)
        if unchanged and stop_s is None and until is None:  # padding past the longest trial, too
            grid.n_steps = max(grid.n_steps, int(noted.get("n_steps", 0)))
        cells = _Table(path, nwb, "units", max_gigabytes)
        chosen_units = _filter_units(cells, nwb, units or {}, notes)
        _check_memory(grid, len(chosen_units), max_gigabytes)
        counts = np.zeros((grid.n_trials, grid.n_steps, len(chosen_units)), dtype=np.float32)
        trains = cells.rows("spike_times", "the spike times of sorted units")
        for k, unit in enumerate(chosen_units):
            counts[:, :, k] = grid.counts(np.sort(np.asarray(trains[unit], dtype=float)))
        activity, lengths = torch.from_numpy(counts), torch.from_numpy(lengths)
        rates = mean_rates_hz(activity, lengths, bin_s)
        active = _active(rates, chosen("min_rate_hz", min_rate_hz), notes)
        kept_units = chosen_units[active]

        parts = [
            _input(path, nwb, table, name, grid, kept, aligned if event_times == "align" else np.zeros(len(begin)))
            for name in chosen("inputs", inputs, [])
        ]
        stacked = np.concatenate([values for values, _ in parts], axis=2) if parts else None
        names = tuple(label for _, labels in parts for label in labels)
        if inputs is None and parts and "input_names" in noted:
            names = tuple(noted["input_names"])
        times = chosen("trial_times", trial_times, event)
        of_trials = {
            key: _per_trial(table, chosen(key, column), kept)
            for key, column in (("evidence", evidence), ("click_difference", click_difference))
        }
        _describe(notes, grid, len(kept_units), float(rates[active].mean()), cells, nwb, kept_units)
        latents, loadings, n = None, None, None
        if "latents" in noted or "loadings" in noted:
            if unchanged:
                latents, loadings, n = _truth(nwb, cells, noted, grid, kept_units)
            else:
                notes.append("true latents and loadings left out: they belong to the bins the file was written with")
        return Recording(
            activity=activity[:, :, torch.from_numpy(active)],
            kind="spikes",
            lengths=lengths,
            alpha=alpha,
            activation=activation,
            inputs=None if stacked is None else torch.from_numpy(stacked.astype(np.float32)),
            input_names=names,
            bin_s=bin_s,
            latents=latents,
            loadings=loadings,
            n=n,
            choices=_choices(table, choices, choice_values, kept)
            if choices is not None
            else _per_trial(table, noted.get("choices"), kept),
            trial_times_s=_per_trial(table, times, kept),
            baseline_hz=_baseline(table, chosen("baseline_hz", baseline_hz), kept, kept_units, len(cells)),
            neuron_names=() if noted and "unit_name" not in cells.columns else _unit_names(cells, nwb, kept_units),
            name=name or path.stem,
            notes=tuple(notes),
            **of_trials,
        )


def load_pynwb():
    try:
        import pynwb
    except ImportError as error:
        raise UserError(
            "the package pynwb, which reads and writes NWB files",
            "no such package in this environment",
            "install it: python -m pip install pynwb (the extra `nwb`)",
        ) from error
    return pynwb


@contextlib.contextmanager
def _opened(path: Path, max_gigabytes: float) -> Iterator[Any]:
    pynwb = load_pynwb()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # pynwb warns of every namespace that it has in another version
        try:
            with limited_memory(max_gigabytes):
                nwb = stack.enter_context(pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True)).read()
        except Exception as error:  # hdmf has no common class for what a damaged or foreign file makes it raise
            raise unreadable(path, "an NWB file that is whole and that pynwb can read", error) from error
        # h5py at data that are cut off; and hdmf reads columns of any kind, so that what is done with them fails in any way.
        with refusing_damage(path, "an NWB file that is whole"):
            yield nwb


def _noted_reading(path: Path, nwb) -> dict[str, Any]:
    """How a file of :func:`export_nwb` is to be read; empty for other files."""
    if not nwb.scratch or NOTED not in nwb.scratch:
        return {}
    text = nwb.scratch[NOTED].data
    try:
        noted = json.loads(text if isinstance(text, str) else np.asarray(text).item())
        noted = {**noted, "bin_s": float(noted["bin_s"]), "alpha": float(noted["alpha"])}
        if not (noted["bin_s"] > 0 and 0 < noted["alpha"] <= 1):
            raise ValueError(f"bin_s {noted['bin_s']:g}, alpha {noted['alpha']:g}")
        return noted
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(
            path, f"an NWB file whose scratch entry {NOTED} is JSON with bin_s and alpha", error
        ) from error


def _time_step(noted: dict[str, Any], bin_s: float | None, tau_s: float | None) -> tuple[float, float]:
    """Bin width, seconds, and alpha; an exported file keeps its time constant where only the bin is given."""
    if bin_s is None and tau_s is None and noted:
        return noted["bin_s"], noted["alpha"]
    if tau_s is None:
        tau_s = noted["bin_s"] / noted["alpha"] if noted else 0.1
    if bin_s is None:
        bin_s = noted.get("bin_s", 0.01)
    if not SHORTEST_BIN_S <= bin_s <= tau_s:
        raise UserError(
            "a bin of at least a microsecond and at most the time constant",
            f"data.bin_s {bin_s:g} s, data.tau {tau_s:g} s",
        )
    return float(bin_s), float(bin_s / tau_s)


class _Table:
    """A table of an NWB file with errors that name the columns there are."""

    def __init__(self, path: Path, nwb, name: str, max_gigabytes: float):
        self.path, self.name, self.table = path, name, getattr(nwb, name)
        self.max_gigabytes = max_gigabytes
        if self.table is None or len(self.table) == 0:
            others = [x for x in ("trials", "units", "electrodes") if getattr(nwb, x, None) is not None]
            others += [x for x in (nwb.intervals or {}) if x not in others]
            raise UserError(
                f"an NWB file with a table of {name}",
                f"{path.name}, whose {name} are {'absent' if self.table is None else 'empty'} "
                f"(tables: {', '.join(others) or 'none'})",
            )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> list[str]:
        return list(self.table.colnames)

    def rows(self, column: str, what: str = "") -> list | np.ndarray:
        """A column: an array with one value or row for each row of the table, or a list of arrays where it is ragged.

        Raises:
            UserError: no such column; names those there are.
        """
        if column not in self.columns:
            raise UserError(
                f"a column of the {self.name} table" + (f" with {what}" if what else ""),
                f"{column!r} in {self.path.name}",
                f"there are: {', '.join(self.columns)}",
            )
        value = self.table[column]
        if hasattr(value, "target"):  # ragged: an index into the data of all rows
            if hasattr(value.target, "target"):
                raise UserError(f"a {self.name} column of values or lists", f"{column!r}, which holds lists of lists")
            ends = np.asarray(_whole(value.data, self.max_gigabytes), dtype=np.int64)
            data = _whole(value.target.data, self.max_gigabytes)
            starts = np.r_[0, ends[:-1]]
            if (ends < starts).any() or ends[-1] > len(data):
                raise UserError(
                    f"a {self.name} column whose rows follow one another",
                    f"{column!r} in {self.path.name}, whose index is damaged",
                )
            return [np.asarray(data[a:b]) for a, b in zip(starts, ends)]
        plain = hasattr(value, "data") and not hasattr(value, "elements")
        data = _whole(value.data if plain else value, self.max_gigabytes)
        return data if isinstance(data, list) else np.asarray(data)

    def numbers(self, column: str) -> np.ndarray:
        """A column of one number in each row, (rows,) float."""
        value = self.rows(column)
        array = None if isinstance(value, list) else value
        if array is None or array.ndim != 1 or array.dtype.kind not in "biuf":
            kind = "lists" if array is None or array.ndim != 1 else "text"
            raise UserError(f"a {self.name} column with one number in each row", f"{column!r}, which holds {kind}")
        return array.astype(float)


def _whole(data, max_gigabytes: float):
    """All of a column or series; refused where the size that the file declares is too large."""
    if getattr(data, "shape", None) is not None and getattr(data, "dtype", None) is not None:
        size = 1e-9 * math.prod(data.shape) * np.dtype(data.dtype).itemsize
        if size > _SMALL_GB:
            check_size(size, max_gigabytes, "raise data.max_gigabytes if the memory is there")
    with limited_memory(max_gigabytes):
        return data[:]


class _Grid:
    """The bins of all trials: trial i has bins [begin[i] + j bin_s, begin[i] + (j + 1) bin_s), j < lengths[i]."""

    def __init__(self, begin: np.ndarray, lengths: np.ndarray, bin_s: float):
        self.begin, self.lengths, self.bin_s = begin, lengths, bin_s
        self.n_trials, self.n_steps = len(begin), int(lengths.max())

    def places(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For ascending times in the session: which of them lie in a trial, and the bin (trial * n_steps + step).

        Where trials overlap, a time comes up once for each.
        """
        low = np.searchsorted(times_s, self.begin - self.bin_s)
        high = np.searchsorted(times_s, self.begin + (self.lengths + 1) * self.bin_s)
        n = np.maximum(high - low, 0)
        trial = np.repeat(np.arange(self.n_trials), n)
        which = np.arange(len(trial)) - np.repeat(np.cumsum(n) - n - low, n)
        relative = np.round(times_s[which] - self.begin[trial], _DECIMALS)
        step = np.floor(relative / self.bin_s + 1e-9).astype(np.int64)
        inside = (step >= 0) & (step < self.lengths[trial])
        return which[inside], trial[inside] * self.n_steps + step[inside]

    def counts(self, times_s: np.ndarray) -> np.ndarray:
        """(trials, steps) number of events in each bin; ascending times."""
        place = self.places(times_s)[1]
        return np.bincount(place, minlength=self.n_trials * self.n_steps).reshape(self.n_trials, self.n_steps)

    def averages(self, times_s: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(trials, steps, channels) mean of the samples in each bin, or the last sample before it, else NaN.

        Args:
            times_s: (samples,) ascending; values: (samples, channels).
        """
        which, place = self.places(times_s)
        size = self.n_trials * self.n_steps
        number = np.bincount(place, minlength=size)
        sums = np.stack([np.bincount(place, weights=x[which], minlength=size) for x in values.T], axis=1)
        begins = (self.begin[:, None] + np.arange(self.n_steps) * self.bin_s).ravel()
        before = np.searchsorted(times_s, begins + 10.0**-_DECIMALS, side="right") - 1
        held = np.where(before[:, None] >= 0, values[np.maximum(before, 0)], np.nan)
        mean = np.where(number[:, None] > 0, sums / np.maximum(number, 1)[:, None], held)
        return mean.reshape(self.n_trials, self.n_steps, -1)

    @property
    def inside(self) -> np.ndarray:
        return np.arange(self.n_steps)[None, :] < self.lengths[:, None]


def _windows(
    table: _Table,
    align: str,
    start_s: float,
    stop_s: float | None,
    until: str | None,
    wanted: dict[str, Any],
    bin_s: float,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the trials kept, where their bins begin in the session, how many there are, the times of ``align``."""
    if stop_s is not None and not stop_s > start_s:
        raise UserError("data.stop_s after data.start_s", f"{stop_s:g} s and {start_s:g} s")
    event = table.numbers(align)
    ends = np.full(len(event), np.inf)
    if stop_s is not None:
        ends = event + stop_s
    if until is not None:
        column = table.numbers(until)
        ends = np.where(np.isnan(column), np.nan, np.minimum(ends, column))
    keep = np.ones(len(event), dtype=bool)
    for column, values in wanted.items():
        keep &= _matches(table.rows(column), values, f"trials column {column}")
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} trials left out by data.trials")
    timed = np.isfinite(event) & np.isfinite(ends)
    if (keep & ~timed).any():
        columns = align if until is None else f"{align} or {until}"
        notes.append(f"{int((keep & ~timed).sum())} trials without {columns} left out")
    keep &= timed
    span = np.where(timed, np.round(ends - event - start_s, _DECIMALS), 0.0)
    lengths = np.floor(span / bin_s + 1e-6).astype(np.int64)
    short = keep & (lengths < 2)
    if short.any():
        notes.append(f"{int(short.sum())} trials shorter than 2 bins left out")
    keep &= lengths >= 2
    if not keep.any():
        raise UserError(
            "trials of at least 2 bins in the window",
            f"none of {len(keep)} ({'; '.join(notes)})",
            "check data.align, data.start_s, data.stop_s, data.until, data.trials and data.bin_s",
        )
    kept = keep.nonzero()[0]
    begin, lengths = event[kept] + start_s, lengths[kept]
    order = np.argsort(begin, kind="stable")
    overlaps = int((begin[order][1:] < (begin + (lengths - 1e-6) * bin_s)[order][:-1]).sum())
    if overlaps:
        notes.append(f"{overlaps} trials begin before the one before them has ended: spikes there count in both")
    return kept, begin, lengths, event[kept]


def _matches(rows: list | np.ndarray, wanted: Any, what: str) -> np.ndarray:
    """Which rows hold one of the values wanted; numbers compare as numbers, all else as text."""
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if isinstance(rows, list) or rows.ndim != 1:
        raise UserError(f"{what} with one value in each row", "lists")
    if rows.dtype.kind in "biuf":
        found = rows.astype(float)
        try:
            keys = [float(value) for value in wanted]
        except (TypeError, ValueError):
            keys = [np.nan]
    else:
        found, keys = np.array([_text(value) for value in rows]), [str(value) for value in wanted]
    unknown = [value for value, key in zip(wanted, keys) if not (found == key).any()]
    if unknown:
        values = list(dict.fromkeys(f"{x:g}" if isinstance(x, float) else x for x in found.tolist()))
        listed = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
        raise UserError(f"values of the {what} among {listed}", ", ".join(map(str, unknown)))
    return np.isin(found, keys)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _unit_values(cells: _Table, nwb, column: str) -> list | np.ndarray:
    """A units column, or, by each unit's first electrode, one of the electrodes table or the location of its group."""
    if column in cells.columns:
        return cells.rows(column)
    of_electrodes = [] if nwb.electrodes is None else list(nwb.electrodes.colnames)
    if column in of_electrodes and "electrodes" in cells.columns:
        index = cells.table["electrodes"]
        ends = np.asarray(index.data[:], dtype=np.int64)
        if hasattr(index, "target"):
            region, starts = np.asarray(index.target.data[:], dtype=np.int64), np.r_[0, ends[:-1]]
        else:
            region, starts, ends = ends, np.arange(len(ends)), np.arange(len(ends)) + 1
        values = _Table(cells.path, nwb, "electrodes", cells.max_gigabytes).rows(column)
        return np.array([_text(values[region[a]]) if b > a else "" for a, b in zip(starts, ends)])
    if column == "location" and "electrode_group" in cells.columns:
        return np.array([str(group.location) for group in cells.table["electrode_group"][:]])
    there = cells.columns + [x for x in of_electrodes if x not in cells.columns and "electrodes" in cells.columns]
    raise UserError("a column of the units table", f"{column!r} in {cells.path.name}", f"there are: {', '.join(there)}")


def _filter_units(cells: _Table, nwb, wanted: dict[str, Any], notes: list[str]) -> np.ndarray:
    keep = np.ones(len(cells), dtype=bool)
    for column, values in wanted.items():
        keep &= _matches(_unit_values(cells, nwb, column), values, f"units column {column}")
    if not keep.any():
        raise UserError("units that data.units keeps", f"none of {len(keep)}", "loosen data.units")
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(keep)} units left out by data.units")
    return keep.nonzero()[0]


def _active(rates_hz: Tensor, min_rate_hz: float | None, notes: list[str]) -> np.ndarray:
    rates = rates_hz.numpy()
    active = rates > 0 if min_rate_hz is None else rates >= min_rate_hz
    if not active.any() or not rates.any():
        raise UserError(
            "units that fire in the trials" + (f" at {min_rate_hz:g} Hz or more" if min_rate_hz else ""),
            f"a highest mean rate of {rates.max():.2g} Hz",
            "lower data.min_rate_hz" if rates.any() else "check data.align and the window",
        )
    if not active.all():
        below = "silent in the trials" if not min_rate_hz else f"below {min_rate_hz:g} Hz"
        notes.append(f"{int((~active).sum())} units {below} left out")
    elif (rates == 0).any():
        notes.append(f"{int((rates == 0).sum())} units never fire in the trials")
    return active


def _check_memory(grid: _Grid, n_units: int, max_gigabytes: float) -> None:
    check_size(
        4e-9 * grid.n_trials * grid.n_steps * n_units,
        max_gigabytes,
        f"the longest trial has {grid.n_steps} bins: set data.stop_s, widen data.bin_s, or raise data.max_gigabytes",
    )


def _describe(
    notes: list[str], grid: _Grid, n_units: int, rate_hz: float, cells: _Table, nwb, kept: np.ndarray
) -> None:
    with contextlib.suppress(UserError):
        places = [_text(x) for x in np.asarray(_unit_values(cells, nwb, "location"))[kept]]
        counted = ", ".join(f"{places.count(place)} {place}" for place in dict.fromkeys(places))
        notes.insert(0, f"units: {counted}")
    notes.insert(
        0,
        f"{grid.n_trials} trials of {span(grid.lengths)} bins of {1000 * grid.bin_s:g} ms; "
        f"{n_units} units, mean rate in trials {rate_hz:.2g} Hz",
    )


def _unit_names(cells: _Table, nwb, kept: np.ndarray) -> tuple[str, ...]:
    if "unit_name" in cells.columns:
        return tuple(_text(value) for value in np.asarray(cells.rows("unit_name"))[kept])
    ids = np.asarray(cells.table.id[:])[kept]
    try:
        places = [_text(x) for x in np.asarray(_unit_values(cells, nwb, "location"))[kept]]
    except UserError:
        places = ["unit"] * len(kept)
    return tuple(f"{place} {number}" for place, number in zip(places, ids))


def _per_trial(table: _Table, column: str | None, kept: np.ndarray) -> Tensor | None:
    return None if column is None else torch.from_numpy(table.numbers(column)[kept])


def _choices(table: _Table, column: str, values: Sequence[Any] | None, kept: np.ndarray) -> Tensor:
    """0 left, 1 right, NaN none, (trials,)."""
    rows = table.rows(column)
    if isinstance(rows, list) or rows.ndim != 1:
        raise UserError("a trials column with one choice in each trial", f"{column!r}, which holds lists")
    rows = rows[kept]
    if values is not None and len(values) != 2:
        raise UserError("data.choice_values as a list of two, what means left and what right", str(list(values)))
    if rows.dtype.kind not in "biuf":
        rows = np.array([_text(value).strip().lower() for value in rows])
        left, right = (str(v).strip().lower() for v in values) if values is not None else ("left", "right")
    else:
        try:
            left, right = (float(v) for v in values) if values is not None else (0.0, 1.0)
        except (TypeError, ValueError) as error:
            raise UserError(f"data.choice_values as numbers, as in {column!r}", str(list(values))) from error
    choices = np.where(rows == left, 0.0, np.where(rows == right, 1.0, np.nan))
    # Numbers other than these two are no choice where the user named the two, and a misunderstanding where not.
    numeric = rows.dtype.kind in "biuf"
    strange = numeric and values is None and (np.isnan(choices) & np.isfinite(rows.astype(float))).any()
    if np.isnan(choices).all() or strange:
        found = [f"{float(x):g}" if numeric else str(x) for x in np.unique(rows)]
        raise UserError(
            f"choices {left} and {right} in the trials column {column!r}",
            ", ".join(found[:6]) + (", ..." if len(found) > 6 else ""),
            "say which values mean left and right: data.choice_values=[LEFT,RIGHT]",
        )
    return torch.from_numpy(choices)


def _baseline(
    table: _Table, column: str | None, kept: np.ndarray, kept_units: np.ndarray, n_units: int
) -> Tensor | None:
    if column is None:
        return None
    rows = table.rows(column)
    if isinstance(rows, list) and {len(row) for row in rows} == {n_units}:
        rows = np.stack(rows)
    if isinstance(rows, list) or rows.shape != (len(table), n_units) or rows.dtype.kind not in "iuf":
        raise UserError(
            f"a trials column with a rate for each of {n_units} units in each trial", f"{column!r}, which has not"
        )
    return torch.from_numpy(np.ascontiguousarray(rows[kept][:, kept_units]))


def _time_series(nwb) -> dict[str, list]:
    pynwb = load_pynwb()
    series: dict[str, list] = {}
    for item in nwb.objects.values():
        if isinstance(item, pynwb.TimeSeries):
            series.setdefault(item.name, []).append(item)
    return series


def _input(
    path: Path, nwb, table: _Table, name: str, grid: _Grid, kept: np.ndarray, origin_s: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """An external input (trials, steps, channels), zero past a trial's end, and the channels' names."""
    if name in table.columns:
        values = _column_input(table, name, grid, kept, origin_s)[:, :, None]
    else:
        series = _time_series(nwb)
        if name not in series:
            raise UserError(
                "a trials column or a time series for data.inputs",
                f"{name!r} in {path.name}",
                f"columns: {', '.join(table.columns)}; time series: {', '.join(series) or 'none'}",
            )
        if len(series[name]) > 1:
            raise UserError(f"one time series {name!r}", f"{len(series[name])} of that name in {path.name}")
        values = _series_input(series[name][0], grid, table.max_gigabytes)
    inside = grid.inside
    bad = int((~np.isfinite(values[inside])).any(1).sum())
    if bad:
        raise UserError(
            f"finite values of the input {name!r} in all trials",
            f"{int((~np.isfinite(values) & inside[:, :, None]).any((1, 2)).sum())} trials without, or in part",
            "leave those trials out with data.trials",
        )
    values[~inside] = 0
    channels = values.shape[2]
    return values, [name] if channels == 1 else [f"{name} {i + 1}" for i in range(channels)]


def _column_input(table: _Table, name: str, grid: _Grid, kept: np.ndarray, origin_s: np.ndarray) -> np.ndarray:
    rows = table.rows(name)
    if not isinstance(rows, list) and rows.ndim == 1:
        return np.repeat(table.numbers(name)[kept][:, None], grid.n_steps, axis=1)
    binned = np.zeros((grid.n_trials, grid.n_steps))
    for i, trial in enumerate(kept):
        times = np.asarray(rows[trial])
        if times.size and times.dtype.kind not in "iuf":
            raise UserError("event times, numbers", f"text in the trials column {name!r}")
        times = times.astype(float).ravel()
        relative = np.round(times[np.isfinite(times)] + origin_s[i] - grid.begin[i], _DECIMALS)
        binned[i, : grid.lengths[i]] = bin_events(relative, int(grid.lengths[i]), grid.bin_s)
    return binned


def _series_input(series, grid: _Grid, max_gigabytes: float) -> np.ndarray:
    values = np.asarray(_whole(series.data, max_gigabytes))
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or not len(values):
        raise UserError(
            f"a time series {series.name!r} of numbers, (samples,) or (samples, channels)", str(values.shape)
        )
    values = values.astype(float).reshape(len(values), -1) * series.conversion + series.offset
    if series.timestamps is not None:
        times = np.asarray(_whole(series.timestamps, max_gigabytes), dtype=float)
    else:
        times = series.starting_time + np.arange(len(values)) / series.rate
    order = np.argsort(times, kind="stable")
    return grid.averages(times[order], values[order])


def _truth(
    nwb, cells: _Table, noted: dict[str, Any], grid: _Grid, kept_units: np.ndarray
) -> tuple[Tensor | None, Loadings | None, Tensor | None]:
    """True latents, loadings and output weights of an exported simulation."""
    latents, columns = None, {}
    if "latents" in noted:
        series = _time_series(nwb)[noted["latents"]][0]
        values = grid.averages(np.asarray(series.timestamps[:]), np.asarray(series.data[:], dtype=float))
        values[~grid.inside] = 0
        latents = torch.from_numpy(values.astype(np.asarray(series.data[:1]).dtype))
    for key in noted.get("loadings", ()):
        columns[key] = torch.from_numpy(np.asarray(cells.rows(f"true_{key}"))[kept_units])
    n = columns.pop("n", None)
    return latents, Loadings(**columns) if columns else None, n
