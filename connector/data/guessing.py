"""A guess of the options of ``data=arrays`` that read a recording from the arrays of a file, by their names, sizes and numbers."""

from __future__ import annotations

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
from connector.data.guessing_spikes import ITEMS, of_spike_times, with_columns
from connector.data.layout import BLOCK, EXACT, common_factor
from connector.data.stated import role_of

_ACTIVITY = re.compile(r"spik|count|rate|activ|firing|dff|df_f|trace|neur|fluor|calcium|psth|^[cfxy]$|data|bins", re.I)
_NEURON_EACH = re.compile(
    r"^(unit|neuron|cell|roi|channel|cluster)s?(_?(id|index|name|number|type|label|class|group|info|x|y|pos\w*|coord\w*))?s?$"
    r"|^is_?cell|depth|region|brain_?area|quality|^snr$",
    re.I,
)
_MASK = re.compile(r"iscell|is_cell|good|mask|keep|kept|valid|select", re.I)
_ACCEPTED = re.compile(r"^idx_components$|^accepted|^good_?(ids?|idx|cells|units|neurons)$", re.I)
_FRAMES = re.compile(r"^(fr|fps|(frame|imaging|volume)_?(rate|freq\w*))(_?hz)?$", re.I)
_PERIOD = re.compile(r"^(dt|frame_?(period|interval)|bin_?(size|width)|bin(?=_))(_?s|_?sec|_?ms)?$", re.I)
_AXIS = re.compile(r"^t|time|stamp|bin|_m?s$|^axis1$|^index$", re.I)
_HIGH = 20  # on average, of counts that are never 0
_TAU_S = 0.1  # as data.tau is by default


def guess(found: Sequence[Entry]) -> tuple[list[str], str]:
    """Options of ``data=arrays``, none where nothing looks like activity; and what is doubtful about them, or ""."""
    found = with_columns(found)
    spikes, doubt = of_spike_times(found)
    if spikes:
        return spikes, doubt
    plausible = [e for e in found if e.first is not None and _may_be_activity(e)]
    plausible = [e for e in plausible if not NOT_ACTIVITY.search(name_of(e))] or plausible
    if not plausible:
        return [], ""
    chosen = max(plausible, key=_rank)
    sizes, others = long_axes(chosen), [e for e in found if e is not chosen]
    axes = _guessed_axes(chosen, sizes, others)
    not_counts = _not_counts(chosen) if chosen.counts else ""
    kind = "spikes" if chosen.counts and not not_counts else "rates"
    options = [f"data.activity={quoted(chosen.key)}", f"data.axes=[{','.join(axes)}]", f"data.kind={kind}"]
    if kind == "rates":
        options.append(f"data.activation={'tanh' if -1 <= chosen.low < 0 and chosen.high <= 1 else 'softplus'}")
    options += _neurons(others, sizes[axes.index("neuron")]) or (
        _but_times(chosen, others) if axes[-1] == "neuron" else []
    )
    n_time = sizes[axes.index("time")]
    bin_s, source = _seconds_between(chosen, n_time, others)
    said = [not_counts] if not_counts else []
    by_trial = _of_sample_trials(n_time, others) if "trial" not in axes else []
    if by_trial:
        return options + by_trial, "; ".join([*said, "check axes, kind and data.bin_s"])
    if "trial" not in axes:
        said += [_of_one_bin(chosen, n_time, others), source or "set data.bin_s to the seconds between samples"]
        return options + _pieces(bin_s or 0.01), "; ".join(filter(None, said))
    options += of_trials(others, sizes[axes.index("trial")])
    if bin_s:
        options += _steps(bin_s)
        said = [*(said or ["check axes and kind"]), source]
    if any("choice_values" in option for option in options):
        said = [*(said or ["check axes and kind"]), "the first of data.choice_values is taken as left"]
    return options, "; ".join(said)


def _rank(entry: Entry) -> tuple:
    """Among arrays that may be activity, the greater the likelier."""
    name = name_of(entry)
    by_name = bool(_ACTIVITY.search(name))
    return by_name, len(long_axes(entry)), math.prod(map(abs, entry.shape)), bool(re.search("dff|df_f", name, re.I))


def _may_be_activity(entry: Entry) -> bool:
    sizes = long_axes(entry)
    return 2 <= len(sizes) <= 3 and math.prod(map(abs, sizes)) > 20 and min(map(abs, sizes)) < 10**5


def _not_counts(entry: Entry) -> str:
    """Why whole numbers are more likely rates or fluorescence than counts, or ""."""
    x = entry.first.reshape(-1)[:BLOCK]
    x = x[np.isfinite(x) & (np.abs(x.astype(float)) < EXACT)].astype(np.int64)
    if not x.size:
        return ""
    if entry.low > 0 and x.mean() > _HIGH:
        return f"{entry.key} has whole numbers without a 0, taken as rates: set data.kind=spikes if they are counts"
    divisor = common_factor(x)
    if divisor < 2 or len(np.unique(x[x > 0])) < 3:
        return ""
    return f"{entry.key} has multiples of {divisor}, taken as rates: set data.kind=spikes if they are counts"


def _neurons(others: Sequence[Entry], number: int) -> list[str]:
    """The option for a mask of the neurons, or for numbers of those that are kept."""
    for e in others:
        sizes = long_axes(e)
        if _MASK.search(name_of(e)) and 0 <= e.low <= e.high <= 1 and sizes[:1] == (number,) and len(sizes) < 3:
            return [f"data.neurons={quoted(f'{e.key}/{e.one}' if len(sizes) == 2 else e.key)}"]
    for e in others:
        numbers = _ACCEPTED.search(name_of(e)) and e.whole and e.first is not None and not e.lists
        if numbers and e.one <= e.low <= e.high < number + e.one and len(np.unique(e.first)) == e.first.size:
            return [f"data.neurons={quoted(e.key)}"]
    return []


def _seconds_between(chosen: Entry, n_time: int, others: Sequence[Entry]) -> tuple[float, str]:
    """Seconds between samples and where they are from, of the likeliest of the arrays that tell; 0 and "" where none does."""

    def along_time(e: Entry) -> bool:
        if n_time == -1:
            return paces(e, chosen)
        return e.lists in ((), chosen.lists) and {math.prod(shape) for shape in e.shapes} == {n_time}

    def by(e: Entry, step: float) -> float:
        unit = unit_stated(e, others)[0]
        return _seconds(name_of(e), step, e.whole) if unit in ("", "samples") else step * float(unit)

    single = [e for e in others if not e.lists and size_of(e) == 1 and 0 < e.low < math.inf]
    stated = {name: x for name, x in chosen.stated.items() if isinstance(x, float) and 0 < x < math.inf}
    where = f"of {chosen.key}"
    told = [(f"{name} {where}", 1 / x) for name, x in stated.items() if _FRAMES.search(name)]
    told += [
        (f"{name} {where}", _seconds(name, x, x.is_integer())) for name, x in stated.items() if _PERIOD.search(name)
    ]
    told += [(e.key, 1 / e.low) for e in single if _FRAMES.search(name_of(e))]
    told += [(e.key, by(e, e.low)) for e in single if _PERIOD.search(name_of(e))]
    told += [(e.key, by(e, step_of(e))) for e in others if _AXIS.search(name_of(e)) and along_time(e)]
    slow = {name: x for name, x in stated.items() if (RATE.search(name) or name == "rate") and x <= FASTEST_HZ}
    told += [(f"{name} {where}", 1 / x) for name, x in slow.items()]
    told += [(e.key, 1 / e.low) for e in single if RATE.search(name_of(e)) and e.low <= FASTEST_HZ]
    return next(((float(f"{x:.4g}"), f"data.bin_s is from {source}") for source, x in told if x), (0.0, ""))


def _seconds(name: str, step: float, whole: bool) -> float:
    """A step of time in seconds: large ones are milliseconds; 0 for 1, which may be either, or no time at all."""
    unit = re.search(r"(_s|_?sec|_?ms)$", name, re.I)
    if unit:
        return step / 1000 if unit[0].lower().endswith("ms") else step
    if step == 1:
        return 0.0
    return step / 1000 if step > 5 or (step >= 2 and whole) else step


def _pieces(bin_s: float) -> list[str]:
    """Options of a recording without trials, given the seconds between samples."""
    return [f"data.bin_s={bin_s:g}", f"data.piece_s={max(2.0, 50 * bin_s):g}", f"data.tau={max(_TAU_S, 3 * bin_s):g}"]


def _steps(bin_s: float) -> list[str]:
    """Options of trials, given the seconds between samples."""
    steps, _, tau = _pieces(bin_s)
    return [steps, tau] if bin_s > _TAU_S else [steps]


def _of_sample_trials(n_time: int, others: Sequence[Entry]) -> list[str]:
    """Options of samples whose trial another array tells, as in tables with a row for each trial and time; none of others."""
    of_samples = [e for e in others if e.first is not None and e.first.size == n_time]
    trials = [e for e in of_samples if role_of(name_of(e)) == "trial" and 1 < len(np.unique(e.first)) <= n_time / 2]
    if not trials:
        return []
    times = [e for e in of_samples if role_of(name_of(e)) == "time"]
    steps = [(name_of(e), float(np.median(np.diff(e.first.ravel().astype(float)))), e.whole) for e in times]
    bin_s = next((float(f"{_seconds(*x):.4g}") for x in steps if x[1] > 0 and _seconds(*x)), 0.0)
    options = [f"data.sample_trials={quoted(trials[0].key)}", *of_trials(others, n_time, but="lengths")]
    return options + (_steps(bin_s) if bin_s else [])


def _of_one_bin(chosen: Entry, n_time: int, others: Sequence[Entry]) -> str:
    """What is doubtful of two axes where the samples have labels, whose values return: they may be trials."""
    for e in others:
        returns = e.words or (e.first is not None and 2 * len(np.unique(e.first)) <= n_time)
        if returns and math.prod(e.shape) == n_time > 1:
            return (
                f"{e.key} has one value for each of the {n_time} entries of an axis of {chosen.key}: if these are trials of one bin each, "
                "they show no dynamics"
            )
    return ""


def _guessed_axes(entry: Entry, sizes: tuple[int, ...], others: Sequence[Entry]) -> list[str]:
    """Names of the axes: those that the file tells; time where sizes differ, or a time axis is as long, or successive samples are
    alike; trials where other arrays have one value for each, but none that belongs to neurons."""
    names = _told_axes(entry, sizes)
    x = entry.first.squeeze()
    in_lists = len(sizes) - x.ndim
    of_neurons = {math.prod(e.shape) for e in others if _NEURON_EACH.search(name_of(e))}
    of_others = {math.prod(e.shape) for e in others if not _NEURON_EACH.search(name_of(e))}
    if "time" not in names:
        alike = [-math.inf] * in_lists + [_likeness(x, axis) for axis in range(x.ndim)]
        timed = [e for e in others if role_of(name_of(e)) == "time" and not e.lists and step_of(e)]
        steady = {e.first.size for e in timed} - {math.prod(e.shape) for e in others if e not in timed}
        unknown = [i for i, name in enumerate(names) if not name and i >= min(in_lists, len(sizes) - 1)]
        free = [i for i in unknown if sizes[i] not in of_neurons - of_others] or unknown
        paced = [i for i in free if sizes[i] in steady]
        likely = paced if len(paced) == 1 else free
        names[sizes.index(-1) if -1 in sizes else max(likely, key=lambda i: (alike[i], -i))] = "time"
    rest = [i for i, name in enumerate(names) if not name]
    if len(sizes) == 3 and "trial" not in names:
        belong = {n: (n in of_others) - (n in of_neurons) for n in sizes}
        trial = rest[0] if in_lists or "neuron" in names else max(rest, key=lambda i: (belong[sizes[i]], -i))
        names[trial] = "trial"
    return [name or "neuron" for name in names]


def _told_axes(entry: Entry, sizes: tuple[int, ...]) -> list[str]:
    """What the names mean that a file has for the axes longer than 1, "" for unknown ones; only where they can be those of activity."""
    shape = entry.shape[len(entry.lists) :]
    roles = [""] * len(entry.lists) + [role_of(name) for name in entry.axes]
    found = [role for role, n in zip(roles, entry.shape) if n != 1]
    known = [role for role in found if role]
    missing = {"time", "neuron", *(["trial"] if len(sizes) == 3 else [])} - set(known)
    fits = len(entry.axes) == len(shape) and len(set(known)) == len(known) and len(missing) == len(found) - len(known)
    return found if fits else [""] * len(sizes)


def _but_times(chosen: Entry, others: Sequence[Entry]) -> list[str]:
    """The option for the neurons among the columns of a table of pandas, if other columns are called time, trial and the like."""
    table = ITEMS.fullmatch(chosen.key)
    names = next((e.words for e in others if table and e.key == f"{table[1]}_items"), [])
    other = {i for i, name in enumerate(names) if role_of(name)}
    kept = [str(i + chosen.one) for i in range(chosen.shape[-1]) if i not in other]
    return [f"data.neurons=[{','.join(kept)}]"] if other and kept else []


def _likeness(x: np.ndarray, axis: int) -> float:
    """Correlation of neighbours along an axis, over at most about a million numbers."""
    x = np.moveaxis(x, axis, 0)
    x = x[: max(3, 1_000_000 // max(1, x[0].size))] if x.ndim else x
    x = np.nan_to_num(x.astype(float)).reshape(len(x), -1)[:, :100_000]
    x = x - x.mean(0)
    spread = float(np.square(x).sum())
    return float((x[1:] * x[:-1]).sum() / spread) if spread > 0 and len(x) > 2 else 0.0
