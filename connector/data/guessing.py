"""A guess of the options of ``data=arrays`` that read a recording from the arrays of a file, by their names, sizes and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from connector.data.entries import Entry

_ACTIVITY = re.compile(
    r"spik|count|rate|activ|firing|dff|df_f|trace|neur|fluor|calcium|psth|^f$|^x$|^y$|data|bins", re.I
)
_NOT_ACTIVITY = re.compile(
    r"time|label|weight|mask|iscell|stim|input|choice|angle|target|position|length|interval|lfp|_index$|neu$", re.I
)
_TIMES = re.compile(r"time|^ts$|^t$|stamp|^spikes?$|_ts$|^st$", re.I)
_OF_NEURONS = re.compile(r"cluster|unit|neuron|cell|^ids?$|^clu|template", re.I)
_STARTS = re.compile(r"start|onset|_on$|trial_times?|^go|cue|align", re.I)
_PAIRS = re.compile(r"interval|trials?$|epochs?$|start_?stop|on_?off", re.I)
_OF_TRIALS = {
    "choices": "choice|decision|response",
    "lengths": "length|n_?bins|n_?samples",
    "conditions": "condition|label|target|stim",
}
_MASK = re.compile(r"iscell|is_cell|good|mask|keep|kept|valid|select", re.I)
_FEWEST_SPIKES = 50
_RATE = re.compile(r"^(fs|fps|frame_?rate|sampling_?rate|sample_?rate|sr)$", re.I)


def guess(found: Sequence[Entry]) -> tuple[list[str], str]:
    """Options of ``data=arrays``, none where nothing looks like activity; and what is doubtful about them, or ""."""
    spikes, doubt = _of_spike_times(found)
    if spikes:
        return spikes, doubt
    plausible = [e for e in found if e.first is not None and _may_be_activity(e)]
    plausible = [e for e in plausible if not _NOT_ACTIVITY.search(_last(e.key))] or plausible
    if not plausible:
        return [], ""
    chosen = max(
        plausible, key=lambda e: (bool(_ACTIVITY.search(_last(e.key))), len(_axes_of(e)), math.prod(map(abs, e.shape)))
    )
    sizes, others = _axes_of(chosen), [e for e in found if e is not chosen]
    axes = _guessed_axes(chosen, sizes, others)
    kind = "spikes" if chosen.counts else "rates"
    options = [f"data.activity={chosen.key}", f"data.axes=[{','.join(axes)}]", f"data.kind={kind}"]
    if kind == "rates":
        options.append(f"data.activation={'tanh' if -1 <= chosen.low < 0 and chosen.high <= 1 else 'softplus'}")
    neurons = sizes[axes.index("neuron")]
    for e in others:
        if (
            _MASK.search(_last(e.key))
            and 0 <= e.low <= e.high <= 1
            and _axes_of(e)[:1] == (neurons,)
            and len(_axes_of(e)) < 3
        ):
            options.append(f"data.neurons={e.key}" + (f"/{e.one}" if len(_axes_of(e)) == 2 else ""))
            break
    if "trial" not in axes:
        return options + _pieces(found), _of_one_bin(chosen, sizes, others)
    trials = sizes[axes.index("trial")]
    for what, names in _OF_TRIALS.items():
        beside = [e for e in others if math.prod(e.shape) == trials and re.search(names, _last(e.key), re.I)]
        options += [f"data.{what}={beside[0].key}"] if beside else []
    return options, ""


def _may_be_activity(entry: Entry) -> bool:
    sizes = _axes_of(entry)
    return 2 <= len(sizes) <= 3 and math.prod(map(abs, sizes)) > 20 and min(map(abs, sizes)) < 10**5


def _of_spike_times(found: Sequence[Entry]) -> tuple[list[str], str]:
    """Of lists of times by unit, or of a vector of times with the unit of each."""
    for entry in found:
        name = _last(entry.key)
        ascending = entry.first is not None and entry.first.size > 1 and bool((np.diff(entry.first.ravel()) >= 0).all())
        few = sum(map(math.prod, entry.shapes)) < _FEWEST_SPIKES
        if few or entry.low >= entry.high or name.endswith("_index") or not _TIMES.search(name):
            continue
        lists = (
            bool(entry.lists)
            and _axes_of(entry)[-1:] == (-1,)
            and len(_axes_of(entry)) == len([n for n in entry.lists if n != 1]) + 1
        )
        alone = not entry.lists and len(_axes_of(entry)) == 1
        of_each = [
            e
            for e in found
            if alone and e is not entry and e.shapes == entry.shapes and e.counts and _OF_NEURONS.search(_last(e.key))
        ]
        if not ((lists and ascending) or of_each or (alone and any(e.key == f"{entry.key}_index" for e in found))):
            continue
        options = [f"data.spike_times={entry.key}"] + ([f"data.spike_neurons={of_each[0].key}"] if of_each else [])
        options += ["data.spike_unit_s=1/30000"] if entry.whole else []
        said = (
            "times that are whole numbers are taken as samples at 30 kHz"
            if entry.whole
            else "times are taken as seconds"
        )
        said += ", each list as a neuron" if len([n for n in entry.lists if n != 1]) > 1 else ""
        of_trial = [e for e in found if of_each and e.shapes == entry.shapes and re.search("trial", _last(e.key), re.I)]
        if of_trial:
            return [*options, f"data.spike_trials={of_trial[0].key}"], said
        starts = [e for e in found if e is not entry and not e.lists and len(_axes_of(e)) == 1 and e.low < e.high]
        starts = [e for e in starts if _STARTS.search(_last(e.key)) and math.prod(e.shape) >= 3]
        pairs = [e for e in found if _PAIRS.search(_last(e.key)) and len(_axes_of(e)) == 2 and _axes_of(e)[1] == 2]
        if pairs and pairs[0].low < pairs[0].high:
            key, one = pairs[0].key, pairs[0].one
            unit = ["data.trial_unit_s=1"] if entry.whole else []
            return [*options, f"data.trial_starts={key}/{one}", f"data.trial_stops={key}/{one + 1}", *unit], said
        if starts:
            unit = ["data.trial_unit_s=1"] if entry.whole else []
            return [
                *options,
                f"data.trial_starts={starts[0].key}",
                "data.stop_s=1",
                *unit,
            ], f"{said}, trials as 1 s long"
        return [*options, "data.bin_s=0.05", "data.piece_s=2"], said
    return [], ""


def _pieces(found: Sequence[Entry]) -> list[str]:
    """Of a recording without trials: the seconds between samples, where a rate is among the arrays."""
    rate = next((e.low for e in found if _RATE.search(_last(e.key)) and e.low == e.high > 0), None)
    bin_s = 0.01 if rate is None else float(f"{1 / rate:.4g}")
    return [f"data.bin_s={bin_s:g}", f"data.piece_s={max(2.0, 50 * bin_s):g}", f"data.tau={max(0.1, 3 * bin_s):g}"]


def _of_one_bin(chosen: Entry, sizes: tuple[int, ...], others: Sequence[Entry]) -> str:
    """What is doubtful of two axes: that they are those of one recording, and what its samples are apart."""
    for n in sizes:
        beside = [e for e in others if math.prod(e.shape) == n > 1]
        if beside:
            return (
                f"{beside[0].key} has one value for each of the {n} entries of an axis of {chosen.key}: if these are trials of one bin each, "
                "they show no dynamics"
            )
    return "set data.bin_s to the seconds between samples"


def _last(key: str) -> str:
    """The last name of a key."""
    names = [part for part in key.split("/") if part.strip("*")]
    return names[-1] if names else key


def _axes_of(entry: Entry) -> tuple[int, ...]:
    """Sizes of the axes longer than 1."""
    return tuple(n for n in entry.shape if n != 1)


def _guessed_axes(entry: Entry, sizes: tuple[int, ...], others: Sequence[Entry]) -> list[str]:
    """Names of the axes: time where sizes differ or successive samples are alike; trials where other arrays have one value
    for each."""
    x = entry.first.squeeze()
    in_lists = len(sizes) - x.ndim
    alike = [-math.inf] * in_lists + [_likeness(x, axis) for axis in range(x.ndim)]
    time = sizes.index(-1) if -1 in sizes else int(np.argmax(alike))
    names = ["neuron"] * len(sizes)
    names[time] = "time"
    if len(sizes) == 3:
        rest = [i for i in range(3) if i != time]
        matched = {n: any(math.prod(e.shape) == n for e in others) for n in sizes}
        names[rest[0] if in_lists else max(rest, key=lambda i: (matched[sizes[i]], -i))] = "trial"
    return names


def _likeness(x: np.ndarray, axis: int) -> float:
    """Correlation of neighbours along an axis, over at most about a million numbers."""
    x = np.moveaxis(x, axis, 0)
    x = x[: max(3, 1_000_000 // max(1, x[0].size))] if x.ndim else x
    x = np.nan_to_num(x.astype(float)).reshape(len(x), -1)[:, :100_000]
    x = x - x.mean(0)
    spread = float(np.square(x).sum())
    return float((x[1:] * x[:-1]).sum() / spread) if spread > 0 and len(x) > 2 else 0.0
