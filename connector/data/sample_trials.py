"""Trials that follow one another along the time axis, as in tables with a row for each trial and time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from connector.data.beside import cut_inputs, label
from connector.data.contents import Contents
from connector.data.guessing_common import quoted
from connector.data.layout import one_each
from connector.declarations import require
from connector.errors import UserError
from connector.files import check_size
from connector.report.numbers import counted

_NUMBER = r"([ _.-]?(id|ids|number|num|no|nr|index|idx))?$"
_TRIAL, _NEURON = (re.compile(f"^({name})s?{_NUMBER}", re.I) for name in ("trial", "neuron|unit|cell|roi|cluster"))
_TIME = re.compile(r"^t(ime.*)?$", re.I)
_PER_TRIAL = ("choices", "conditions", "times", "trials")


def require_one_row_each(file: Contents, main: Any, options: Any) -> None:
    """Raises UserError for activity in the columns ``main`` of a table of text whose rows are not successive samples: trials, or
    neurons, stand below one another, and no option says so."""
    if file.format != "table" or options.trial_starts is not None or "trial" in (options.axes or ()):
        return
    trial, neuron = (_changing(file.root, name) for name in (_TRIAL, _NEURON))
    single = main[0] if isinstance(main, list) and len(main) == 1 else main
    name = next((key for key, x in file.root.items() if x is single), None)
    if neuron and name not in (None, neuron) and file.root[name].ndim == 1:
        index = [trial] if trial else []
        index += [key for key in file.root if _TIME.match(key) and key != trial][:1] or ["time"]
        pivot = f"pandas.read_csv(FILE).pivot(index={index}, columns={neuron!r}, values={name!r})"
        got = f"rows of several neurons, by the column {neuron}"
        raise UserError(f"a column for each neuron in {file.path.name}", got, f"save {pivot}.to_csv(NEW)")
    if trial and options.sample_trials is None:
        remedy = f"set data.sample_trials={quoted(trial)}" + (" in place of data.piece_s" if options.piece_s else "")
        raise UserError(f"the trial of each row of {file.path.name}", f"a column {trial}, but no option for it", remedy)


def _changing(columns: Mapping[str, np.ndarray], name: re.Pattern) -> str | None:
    """The first column of such a name that has several values, some of them in several rows."""
    named = [key for key, x in columns.items() if name.match(key) and x.ndim == 1]
    return next((key for key in named if 1 < len(np.unique(columns[key])) < len(columns[key])), None)


def by_trial(
    activity: np.ndarray, raw: dict[str, Any], options: Any, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], Any]:
    """Of samples (1, time, neurons) of successive trials: (trials, time, neurons), padded with zeros, the trials' lengths and names,
    and the options for inputs in ``raw`` that are cut in the same way. Labels with a value for each sample get one for each trial.

    Raises:
        UserError: activity that has trials, a trial whose samples are apart, labels that change within a trial.
    """
    key, n_samples = options.sample_trials, activity.shape[1]
    alone = len(activity) == 1
    require(alone, "data.sample_trials", "with data.axes without trial", options.axes)
    labels = one_each(raw["sample_trials"], n_samples, "data.sample_trials", key, "samples")
    samples, lengths = _samples_of(labels, key, notes)
    at = np.cumsum(lengths) - lengths
    inside = np.arange(lengths.max()) < lengths[:, None]

    def cut(x: np.ndarray) -> np.ndarray:
        """(trials, time, channels) of (samples, channels)."""
        check_size(8e-9 * inside.size * x.shape[1], options.max_gigabytes, "raise data.max_gigabytes")
        found = np.zeros((*inside.shape, x.shape[1]), x.dtype)
        found[inside] = x[samples]
        return found

    for what in _PER_TRIAL:
        value = raw.get(what)
        if isinstance(value, np.ndarray) and value.size == n_samples:
            raw[what] = _one_value(value.reshape(-1)[samples], at, lengths, what)
    options = cut_inputs(raw["inputs"], options, activity.shape[:2], cut)
    notes.append(f"{counted(len(lengths), 'trial')} of {lengths.min()} to {lengths.max()} samples, by {key}")
    return cut(activity[0]), lengths, tuple(map(label, labels[samples][at].tolist())), options


def _samples_of(labels: np.ndarray, key: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples that are in trials, trial by trial, and the lengths of the trials in the order of their first samples."""
    missing = labels == "" if labels.dtype.kind == "U" else np.isnan(labels) if labels.dtype.kind == "f" else None
    samples = np.arange(len(labels)) if missing is None else np.flatnonzero(~missing)
    if len(samples) < 2:
        raise UserError(f"the trial of each sample in {key}", f"{len(samples)} of {len(labels)}")
    if len(samples) < len(labels):
        notes.append(f"{len(labels) - len(samples)} samples left out: {key} has no trial for them")
    labels = labels[samples]
    n_runs = 1 + int((labels[1:] != labels[:-1]).sum())
    _, first, trial, lengths = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    # Rows sorted by time have all trials in turns. Where whole stretches return, numbers may count anew in each session.
    if len(first) < n_runs <= len(labels) / 2:
        got = f"{len(first)} trials in {n_runs} stretches"
        raise UserError(f"the samples of each trial together in {key}", got, "give each trial a number of its own")
    order = np.argsort(first)
    return samples[np.argsort(first[trial.reshape(-1)], kind="stable")], lengths[order].astype(np.int64)


def _one_value(x: np.ndarray, at: np.ndarray, lengths: np.ndarray, what: str) -> np.ndarray:
    """The first value of each trial, of labels (samples,) that are the same in all of it."""
    first = x[at]
    of_trial = np.repeat(first, lengths)
    same = (x == of_trial) | ((x != x) & (of_trial != of_trial))
    if what != "times" and not same.all():
        raise UserError(f"data.{what} with one value in each trial", f"several in {int((~same).sum())} samples")
    return first
