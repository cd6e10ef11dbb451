"""A guess of which arrays of a file are spike times, of their units, and of trials in them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from connector.data.entries import Entry
from connector.data.guessing_common import (
    FASTEST_HZ,
    NOT_ACTIVITY,
    RATE,
    long_axes,
    name_of,
    of_trials,
    paces,
    quoted,
    size_of,
    step_of,
    unit_stated,
)
from connector.data.settings import seconds
from connector.data.stated import role_of

_TIMES = re.compile(r"time|^ts$|^t$|stamp|^spikes?$|_ts$|^st$|^spk|^spike_?(ind|sample|frame)|^sample_?ind", re.I)
_OF_NEURONS = re.compile(r"cluster|unit|neuron|cell|^ids?$|^clu|template|^spike_?label", re.I)
_RATES = re.compile(r"(^|_)rates?$|firing|activ|dff|df_f|fluor", re.I)
_STARTS = re.compile(r"start|onset|_on$|on_times?$|trial_times?|^go|cue|align", re.I)
_STOPS = re.compile(r"stop|(^|_)ends?(_|$)|end_?times?$|offset|_off$", re.I)
_PAIRS = re.compile(r"interval|trials?$|epochs?$|start_?stop|on_?off", re.I)
_FEWEST_SPIKES = 50
_FAR = 1000  # times smaller: seconds beside samples
_LONGEST_MS = 30_000  # of a trial whose spike times are whole numbers
_SORTED_HZ = 30_000  # of a raw recording, where no array tells
_WORDS = {"1": "seconds", "0.001": "milliseconds", "1e-06": "microseconds", "samples": "samples"}
_FEWEST_OF_EACH = 5  # spikes of a neuron on average, where the columns of one array are times and neurons
ITEMS = re.compile(r"(.*block\d+)_values$")  # of a table of pandas; the names of the columns are beside it


def of_spike_times(found: Sequence[Entry]) -> tuple[list[str], str]:
    """Of lists of times by unit, or of a vector of times with the unit of each."""
    for entry in found:
        name = name_of(entry)
        few = size_of(entry) < _FEWEST_SPIKES
        ends = any(entry.key == f"{e.key}_index" for e in found)
        if few or entry.low >= entry.high or ends or any(paces(entry, e) for e in found):
            continue
        lists = entry.ascending and _of_vectors(entry)
        two = lists and len(entry.lists) == 2 and min(entry.lists) > 1 and len(entry.shapes) == math.prod(entry.lists)
        of_units = lists and _OF_NEURONS.search(name)
        if not (_TIMES.search(name) or of_units or (two and not NOT_ACTIVITY.search(name))):
            continue
        alone = not entry.lists and len(long_axes(entry)) == 1
        beside = [
            e for e in found if alone and e is not entry and not e.lists and size_of(e) == size_of(entry) and e.counts
        ]
        indexed = any(name_of(e) == "keys" for e in found)  # as pynapple's groups are
        of_each = [e for e in beside if _OF_NEURONS.search(name_of(e)) or (indexed and name_of(e) == "index")]
        of_each.sort(key=lambda e: "template" in name_of(e).lower())
        same = [e for e in found if alone and not e.lists and not e.whole and size_of(e) == size_of(entry)]
        if any(_RATES.search(name_of(e)) for e in same):
            continue  # a table with a row for each trial, time and neuron
        if not (lists or of_each or (alone and any(e.key == f"{entry.key}_index" for e in found))):
            continue
        starts, of_windows = _windows(entry, found)
        if two and (not starts or long_axes(starts)[0] in entry.lists):
            return _of_units_and_trials(entry, found)
        options = [f"data.spike_times={quoted(entry.key)}"]
        options += [f"data.spike_neurons={quoted(of_each[0].key)}"] if of_each else []
        unit, said = _unit_of_spikes(entry, found)
        options += [f"data.spike_unit_s={unit}"] if unit else []
        if len(entry.lists) > 1:
            options, said = [*options, "data.axes=[neuron]"], f"{said}, each list as a neuron"
        of_trial = [e for e in beside if of_each and re.search("trial", name_of(e), re.I)]
        if of_trial:
            return [*options, f"data.spike_trials={quoted(of_trial[0].key)}"], said
        if starts:
            return options + of_windows, said + (", trials as 1 s long" if "data.stop_s=1" in of_windows else "")
        return [*options, "data.bin_s=0.05", "data.piece_s=2"], said
    return [], ""


def _unit_of_spikes(entry: Entry, found: Sequence[Entry]) -> tuple[str, str]:
    """Seconds per unit of spike times, as the option takes them, "" for seconds; and where that is from."""
    unit, source = unit_stated(entry, found)
    if unit == "samples" or (entry.whole and not unit):
        rates = [(entry.key, x) for name, x in entry.stated.items() if RATE.search(name) and isinstance(x, float)]
        rates += [(e.key, e.low) for e in found if not e.lists and size_of(e) == 1 and RATE.search(name_of(e))]
        fast = [(key, hz) for key, hz in rates if FASTEST_HZ < hz < math.inf]
        if fast:
            return f"1/{fast[0][1]:.10g}", f"times are taken as samples at {fast[0][1]:.10g} Hz, from {fast[0][0]}"
        return f"1/{_SORTED_HZ}", "times that are whole numbers are taken as samples at 30 kHz"
    if not unit:
        return "", "times are taken as seconds"
    return ("" if unit == "1" else unit), f"times are taken as {_WORDS[unit]}, from {source}"


def _windows(entry: Entry, found: Sequence[Entry]) -> tuple[Entry | None, list[str]]:
    """The array with the trials' times in the session, if there is one, and its options beside those of the spike times."""
    pairs = [e for e in found if _PAIRS.search(name_of(e)) and len(long_axes(e)) == 2 and long_axes(e)[1] == 2]
    starts = [e for e in found if e is not entry and not e.lists and len(long_axes(e)) == 1 and e.low < e.high]
    starts = [e for e in starts if _STARTS.search(name_of(e)) and math.prod(e.shape) >= 3]
    if pairs and pairs[0].low < pairs[0].high:
        chosen, one = pairs[0], pairs[0].one
        options = [
            f"data.trial_{what}={quoted(f'{chosen.key}/{one + i}')}" for i, what in enumerate(("starts", "stops"))
        ]
    elif starts:
        chosen = starts[0]
        stops = _stops(chosen, found)
        end = f"data.trial_stops={quoted(stops.key)}" if stops else "data.stop_s=1"
        options = [f"data.trial_starts={quoted(chosen.key)}", end]
    else:
        return None, []
    unit, own = _unit_of_spikes(entry, found)[0], unit_stated(chosen, found)[0]
    if own:
        own = _unit_of_spikes(chosen, found)[0]
        return chosen, options + ([f"data.trial_unit_s={own or 1}"] if own != unit else [])
    far = entry.whole and (not chosen.whole or _FAR * chosen.high < entry.high)
    far |= unit != "" and chosen.high < 2 * entry.high * seconds(unit, "")
    return chosen, options + (["data.trial_unit_s=1"] if far else [])


def _stops(starts: Entry, found: Sequence[Entry]) -> Entry | None:
    """The times at which trials end, given those at which they start: as many and later, of the name that is the most alike."""
    later = []
    for e in found:
        as_many = not e.lists and e.first is not None and starts.first is not None and e.first.size == starts.first.size
        if as_many and _STOPS.search(name_of(e)) and not _STARTS.fullmatch(name_of(e)):
            lasting = e.first.ravel().astype(float) - starts.first.ravel().astype(float)
            later += [e] if (lasting[np.isfinite(lasting)] > 0).all() else []
    return max(later, key=lambda e: sum(itertools.accumulate(map(str.__eq__, e.key, starts.key), min)), default=None)


def _of_units_and_trials(entry: Entry, found: Sequence[Entry]) -> tuple[list[str], str]:
    """Of a list of times for each unit in each trial: trials are what other arrays have one value for each of, else the more."""
    others = [e for e in found if e is not entry]
    matched = [any(math.prod(e.shape) == n for e in others) for n in entry.lists]
    trial = max((0, 1), key=lambda i: (matched[i], entry.lists[i]))
    axes = ["neuron", "neuron"]
    axes[trial] = "trial"
    options = [f"data.spike_times={quoted(entry.key)}", f"data.axes=[{','.join(axes)}]"]
    stated = unit_stated(entry, found)[0]
    unit, said = "", "seconds"
    if stated:
        unit, said = _unit_of_spikes(entry, found)[0], _WORDS[stated]
    elif entry.whole:
        unit, said = ("0.001", "milliseconds") if entry.high < _LONGEST_MS else ("1/30000", "samples at 30 kHz")
    options += [f"data.spike_unit_s={unit}"] if unit else []
    options += of_trials(others, entry.lists[trial], but="lengths")
    sizes = f"{entry.lists[1 - trial]} neurons and {entry.lists[trial]} trials"
    return options, f"the lists of {entry.key} are taken as of {sizes}, times as {said} in the trial: check data.axes"


def _of_vectors(entry: Entry) -> bool:
    """Whether an entry is lists of vectors of different lengths, or of ascending ones whose steps are uneven."""
    vectors = all(sum(n > 1 for n in shape) <= 1 for shape in entry.shapes)
    uneven = entry.ascending and entry.first is not None and entry.first.size > 2 and not step_of(entry)
    return bool(entry.lists) and vectors and (uneven or len(set(map(math.prod, entry.shapes))) > 1)


def with_columns(found: Sequence[Entry]) -> list[Entry]:
    """The arrays, and in place of those whose columns are spike times and neurons, or are named as such, these columns."""
    words = {e.key: e.words for e in found}
    tables = [(e, words.get(f"{of[1]}_items", [])) for e in found if not e.lists and (of := ITEMS.fullmatch(e.key))]
    of_events = {e.key.rpartition("/")[0] for e, names in tables if {"neuron", "trial"} & set(map(role_of, names))}
    named = {e.key: names for e, names in tables if e.key.rpartition("/")[0] in of_events}
    parts: list[Entry] = []
    for e in found:
        names = named.get(e.key) or _columns_of_spikes(e)
        fits = names and e.first is not None and e.first.ndim == 2 and e.first.shape[1] == len(names)
        for i, name in enumerate(names) if fits else ():
            parts.append(Entry(f"{e.key}/{e.one + i}", one=e.one, stated=e.stated, name=name))
            parts[-1].see(e.first[:, i])
        parts += [] if fits else [e]
    return parts


def _columns_of_spikes(entry: Entry) -> list[str]:
    """Names of the two columns of an array (spikes, 2) of ascending times and the neuron of each; none of another array."""
    x = entry.first
    if (
        x is None
        or entry.lists
        or x.ndim != 2
        or x.shape[1] != 2
        or len(x) < _FEWEST_SPIKES
        or not np.isfinite(x).all()
    ):
        return []
    for times, units, names in ((x[:, 0], x[:, 1], ["times", "unit"]), (x[:, 1], x[:, 0], ["unit", "times"])):
        few = 2 <= len(np.unique(units)) <= len(units) / _FEWEST_OF_EACH < len(np.unique(times))
        if few and (units == np.round(units)).all() and units.min() >= 0:
            order = np.argsort(units, kind="stable")
            steps, same = np.diff(times[order].astype(float)), np.diff(units[order]) == 0
            if (steps[same] >= 0).all() and (steps[same] > 0).any():
                return names
    return []
