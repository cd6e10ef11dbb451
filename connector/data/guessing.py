"""A guess of the options of ``data=arrays`` that read a recording from the arrays of a file, by their names, sizes and numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from connector.data.entries import Entry
from connector.data.layout import BLOCK, EXACT, common_factor
from connector.data.settings import seconds
from connector.data.stated import role_of, unit_of, unit_of_name

_ACTIVITY = re.compile(r"spik|count|rate|activ|firing|dff|df_f|trace|neur|fluor|calcium|psth|^[cfxy]$|data|bins", re.I)
_NOT_ACTIVITY = re.compile(
    r"time|label|weight|mask|iscell|stim|input|choice|angle|target|position|length|interval|lfp|_index$|neu$", re.I
)
_TIMES = re.compile(r"time|^ts$|^t$|stamp|^spikes?$|_ts$|^st$|^spk|^spike_?(ind|sample|frame)|^sample_?ind", re.I)
_OF_NEURONS = re.compile(r"cluster|unit|neuron|cell|^ids?$|^clu|template|^spike_?label", re.I)
_STARTS = re.compile(r"start|onset|_on$|on_times?$|trial_times?|^go|cue|align", re.I)
_STOPS = re.compile(r"stop|(^|_)ends?(_|$)|end_?times?$|offset|_off$", re.I)
_PAIRS = re.compile(r"interval|trials?$|epochs?$|start_?stop|on_?off", re.I)
_OF_TRIALS = {
    "choices": "choice|decision|response",
    "lengths": "length|n_?bins|n_?samples",
    "conditions": "condition|label|target|stim",
}
_NEURON_EACH = re.compile(
    r"^(unit|neuron|cell|roi|channel|cluster)s?(_?(id|index|name|number|type|label|class|group|info|x|y|pos\w*|coord\w*))?s?$"
    r"|^is_?cell|depth|region|brain_?area|quality|^snr$",
    re.I,
)
_MASK = re.compile(r"iscell|is_cell|good|mask|keep|kept|valid|select", re.I)
_ACCEPTED = re.compile(r"^idx_components$|^accepted|^good_?(ids?|idx|cells|units|neurons)$", re.I)
_FEWEST_SPIKES = 50
_FRAMES = re.compile(r"^(fr|fps|(frame|imaging|volume)_?(rate|freq\w*))(_?hz)?$", re.I)
_PERIOD = re.compile(r"^(dt|frame_?(period|interval)|bin_?(size|width)|bin(?=_))(_?s|_?sec|_?ms)?$", re.I)
_AXIS = re.compile(r"^t|time|stamp|bin|_m?s$|^axis1$|^index$", re.I)
_RATE = re.compile(r"^((\w+_)?fs|sr|sampl(e|ing)_?(rate|freq\w*))(_?hz)?$", re.I)
_FAR = 1000  # times smaller: seconds beside samples
_LONGEST_MS = 30_000  # of a trial whose spike times are whole numbers
_FASTEST_HZ = 1000  # of samples of activity; beyond it the rate is that of a raw recording
_SORTED_HZ = 30_000  # of a raw recording, where no array tells
_WORDS = {"1": "seconds", "0.001": "milliseconds", "1e-06": "microseconds", "samples": "samples"}
_MOST_KINDS = 100  # of conditions
_FEWEST_OF_EACH = 5  # spikes of a neuron on average, where the columns of one array are times and neurons
_ITEMS = re.compile(r"(.*block\d+)_values$")  # of a table of pandas; the names of the columns are beside it
_HIGH = 20  # on average, of counts that are never 0
_TAU_S = 0.1  # as data.tau is by default
_EVEN = 0.1  # sd of the steps of a time axis, relative to their mean
_PLAIN = re.compile(r"(\.{0,2}/)?(?!(null|true|false|inf|nan)$)[a-z_][\w/.:*+@%-]*", re.I | re.A)


def quoted(value: object) -> str:
    """A KEY or a path as Hydra reads it back: in double quotes where it is more than a plain word."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else '"' + re.sub(r'(\\*)("|$)', _escaped, text) + '"'


def _escaped(found: re.Match) -> str:
    """Backslashes before a quote, or at the end, twice; the quote behind one."""
    return 2 * found[1] + (r"\"" if found[2] else "")


def guess(found: Sequence[Entry]) -> tuple[list[str], str]:
    """Options of ``data=arrays``, none where nothing looks like activity; and what is doubtful about them, or ""."""
    found = _with_columns(found)
    spikes, doubt = _of_spike_times(found)
    if spikes:
        return spikes, doubt
    plausible = [e for e in found if e.first is not None and _may_be_activity(e)]
    plausible = [e for e in plausible if not _NOT_ACTIVITY.search(_name(e))] or plausible
    if not plausible:
        return [], ""
    chosen = max(plausible, key=_rank)
    sizes, others = _axes_of(chosen), [e for e in found if e is not chosen]
    axes = _guessed_axes(chosen, sizes, others)
    not_counts = _not_counts(chosen) if chosen.counts else ""
    kind = "spikes" if chosen.counts and not not_counts else "rates"
    options = [f"data.activity={quoted(chosen.key)}", f"data.axes=[{','.join(axes)}]", f"data.kind={kind}"]
    if kind == "rates":
        options.append(f"data.activation={'tanh' if -1 <= chosen.low < 0 and chosen.high <= 1 else 'softplus'}")
    options += _neurons(others, sizes[axes.index("neuron")])
    n_time = sizes[axes.index("time")]
    bin_s, source = _seconds_between(chosen, n_time, others)
    said = [not_counts] if not_counts else []
    if "trial" not in axes:
        said += [_of_one_bin(chosen, n_time, others), source or "set data.bin_s to the seconds between samples"]
        return options + _pieces(bin_s or 0.01), "; ".join(filter(None, said))
    options += _of_trials(others, sizes[axes.index("trial")])
    if bin_s:
        steps, _, tau = _pieces(bin_s)
        options += [steps, tau] if bin_s > _TAU_S else [steps]
        said = [*(said or ["check axes and kind"]), source]
    if any("choice_values" in option for option in options):
        said = [*(said or ["check axes and kind"]), "the first of data.choice_values is taken as left"]
    return options, "; ".join(said)


def _rank(entry: Entry) -> tuple:
    """Among arrays that may be activity, the greater the likelier."""
    name = _name(entry)
    by_name = bool(_ACTIVITY.search(name))
    return by_name, len(_axes_of(entry)), math.prod(map(abs, entry.shape)), bool(re.search("dff|df_f", name, re.I))


def _may_be_activity(entry: Entry) -> bool:
    sizes = _axes_of(entry)
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
        sizes = _axes_of(e)
        if _MASK.search(_name(e)) and 0 <= e.low <= e.high <= 1 and sizes[:1] == (number,) and len(sizes) < 3:
            return [f"data.neurons={quoted(f'{e.key}/{e.one}' if len(sizes) == 2 else e.key)}"]
    for e in others:
        numbers = _ACCEPTED.search(_name(e)) and e.whole and e.first is not None and not e.lists
        if numbers and e.one <= e.low <= e.high < number + e.one and len(np.unique(e.first)) == e.first.size:
            return [f"data.neurons={quoted(e.key)}"]
    return []


def _of_trials(others: Sequence[Entry], trials: int, but: str = "") -> list[str]:
    """Options for what there is one value of in each trial, ``but`` one."""
    options = []
    for what, names in _OF_TRIALS.items():
        beside = [e for e in others if math.prod(e.shape) == trials and re.search(names, _name(e), re.I)]
        told = [
            (e, _choice_values(e) if what == "choices" else []) for e in beside if what != "conditions" or _kinds(e)
        ]
        fits = [[f"data.{what}={quoted(e.key)}", *more] for e, more in told if more is not None and what != but]
        options += fits[0] if fits else []
    return options


def _choice_values(entry: Entry) -> list[str] | None:
    """The option that names the two values of choices, where they are not 0 and 1, or left and right; None of what has not two."""
    if entry.words:
        words = sorted(word for word in entry.words if word.lower() not in ("nan", "none", "null"))
        if len(words) != 2 or {word.lower() for word in words} in ({"left", "right"}, {"false", "true"}):
            return [] if len(words) == 2 else None
        return [f"data.choice_values=[{','.join(map(quoted, words))}]"]
    pair = (entry.low, entry.high)
    if not entry.whole or entry.first is None or not entry.low < entry.high:
        return None
    different = pair if entry.lists else np.unique(entry.first[np.isfinite(entry.first)])
    if pair == (0, 1):
        return []
    two = pair[1] - pair[0] == 1 or pair == (-1, 1) or (len(different) == 2 and not entry.lists)
    return [f"data.choice_values=[{pair[0]:g},{pair[1]:g}]"] if two else None


def _kinds(entry: Entry) -> bool:
    """Whether an array may be labels of conditions: few, and they return where they are no whole numbers."""
    if entry.first is None or entry.lists:
        return True
    number = len(np.unique(entry.first))
    return number <= _MOST_KINDS and (entry.whole or 2 * number <= entry.first.size)


def _with_columns(found: Sequence[Entry]) -> list[Entry]:
    """The arrays, and in place of those whose columns are spike times and neurons, or are named as such, these columns."""
    words = {e.key: e.words for e in found}
    tables = [(e, words.get(f"{of[1]}_items", [])) for e in found if not e.lists and (of := _ITEMS.fullmatch(e.key))]
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


def _of_spike_times(found: Sequence[Entry]) -> tuple[list[str], str]:
    """Of lists of times by unit, or of a vector of times with the unit of each."""
    for entry in found:
        name = _name(entry)
        few = _size(entry) < _FEWEST_SPIKES
        ends = any(entry.key == f"{e.key}_index" for e in found)
        if few or entry.low >= entry.high or ends or any(_paces(entry, e) for e in found):
            continue
        lists = entry.ascending and _of_vectors(entry)
        two = lists and len(entry.lists) == 2 and min(entry.lists) > 1 and len(entry.shapes) == math.prod(entry.lists)
        of_units = lists and _OF_NEURONS.search(name)
        if not (_TIMES.search(name) or of_units or (two and not _NOT_ACTIVITY.search(name))):
            continue
        alone = not entry.lists and len(_axes_of(entry)) == 1
        beside = [
            e for e in found if alone and e is not entry and not e.lists and _size(e) == _size(entry) and e.counts
        ]
        indexed = any(_name(e) == "keys" for e in found)  # as pynapple's groups are
        of_each = [e for e in beside if _OF_NEURONS.search(_name(e)) or (indexed and _name(e) == "index")]
        of_each.sort(key=lambda e: "template" in _name(e).lower())
        if not (lists or of_each or (alone and any(e.key == f"{entry.key}_index" for e in found))):
            continue
        starts, of_windows = _windows(entry, found)
        if two and (not starts or _axes_of(starts)[0] in entry.lists):
            return _of_units_and_trials(entry, found)
        options = [f"data.spike_times={quoted(entry.key)}"]
        options += [f"data.spike_neurons={quoted(of_each[0].key)}"] if of_each else []
        unit, said = _unit_of_spikes(entry, found)
        options += [f"data.spike_unit_s={unit}"] if unit else []
        if len(entry.lists) > 1:
            options, said = [*options, "data.axes=[neuron]"], f"{said}, each list as a neuron"
        of_trial = [e for e in beside if of_each and re.search("trial", _name(e), re.I)]
        if of_trial:
            return [*options, f"data.spike_trials={quoted(of_trial[0].key)}"], said
        if starts:
            return options + of_windows, said + (", trials as 1 s long" if "data.stop_s=1" in of_windows else "")
        return [*options, "data.bin_s=0.05", "data.piece_s=2"], said
    return [], ""


def _unit_of_spikes(entry: Entry, found: Sequence[Entry]) -> tuple[str, str]:
    """Seconds per unit of spike times, as the option takes them, "" for seconds; and where that is from."""
    unit, source = _unit(entry, found)
    if unit == "samples" or (entry.whole and not unit):
        rates = [(entry.key, x) for name, x in entry.stated.items() if _RATE.search(name) and isinstance(x, float)]
        rates += [(e.key, e.low) for e in found if not e.lists and _size(e) == 1 and _RATE.search(_name(e))]
        fast = [(key, hz) for key, hz in rates if _FASTEST_HZ < hz < math.inf]
        if fast:
            return f"1/{fast[0][1]:.10g}", f"times are taken as samples at {fast[0][1]:.10g} Hz, from {fast[0][0]}"
        return f"1/{_SORTED_HZ}", "times that are whole numbers are taken as samples at 30 kHz"
    if not unit:
        return "", "times are taken as seconds"
    return ("" if unit == "1" else unit), f"times are taken as {_WORDS[unit]}, from {source}"


def _unit(entry: Entry, found: Sequence[Entry]) -> tuple[str, str]:
    """Seconds per unit that the file states of times, as an option takes them, or samples; and where; "" and "" where it does not."""
    told = [
        (str(x), f"the attribute {name} of {entry.key}") for name, x in entry.stated.items() if "unit" in name.lower()
    ]
    beside = re.compile(re.escape(entry.key) + "_?units?|(.*[:/])?times?_?units?", re.I)
    told += [(e.words[0], e.key) for e in found if len(e.words) == 1 and beside.fullmatch(e.key)]
    named = [(unit_of(text), source) for text, source in told]
    named.append((unit_of_name(_name(entry)), f"the name {_name(entry)}"))
    return next(((unit, source) for unit, source in named if unit), ("", ""))


def _windows(entry: Entry, found: Sequence[Entry]) -> tuple[Entry | None, list[str]]:
    """The array with the trials' times in the session, if there is one, and its options beside those of the spike times."""
    pairs = [e for e in found if _PAIRS.search(_name(e)) and len(_axes_of(e)) == 2 and _axes_of(e)[1] == 2]
    starts = [e for e in found if e is not entry and not e.lists and len(_axes_of(e)) == 1 and e.low < e.high]
    starts = [e for e in starts if _STARTS.search(_name(e)) and math.prod(e.shape) >= 3]
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
    unit, own = _unit_of_spikes(entry, found)[0], _unit(chosen, found)[0]
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
        if as_many and _STOPS.search(_name(e)) and not _STARTS.fullmatch(_name(e)):
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
    stated = _unit(entry, found)[0]
    unit, said = "", "seconds"
    if stated:
        unit, said = _unit_of_spikes(entry, found)[0], _WORDS[stated]
    elif entry.whole:
        unit, said = ("0.001", "milliseconds") if entry.high < _LONGEST_MS else ("1/30000", "samples at 30 kHz")
    options += [f"data.spike_unit_s={unit}"] if unit else []
    options += _of_trials(others, entry.lists[trial], but="lengths")
    sizes = f"{entry.lists[1 - trial]} neurons and {entry.lists[trial]} trials"
    return options, f"the lists of {entry.key} are taken as of {sizes}, times as {said} in the trial: check data.axes"


def _of_vectors(entry: Entry) -> bool:
    """Whether an entry is lists of vectors of different lengths, or of ascending ones whose steps are uneven."""
    vectors = all(sum(n > 1 for n in shape) <= 1 for shape in entry.shapes)
    uneven = entry.ascending and entry.first is not None and entry.first.size > 2 and not _step(entry)
    return bool(entry.lists) and vectors and (uneven or len(set(map(math.prod, entry.shapes))) > 1)


def _paces(entry: Entry, other: Entry) -> bool:
    """Whether an entry is the time axis of another: evenly spaced, and list by list as long as one axis of it."""
    if entry is other or entry.lists != other.lists or len(entry.shapes) != len(other.shapes) or not _step(entry):
        return False
    lengths = [math.prod(shape) for shape in entry.shapes]
    return any(list(sizes) == lengths for sizes in zip(*other.shapes))


def _step(entry: Entry) -> float:
    """Between the numbers of an evenly spaced ascending vector; 0 for another array."""
    x = np.empty(0) if entry.first is None else entry.first.ravel().astype(float)
    steps = np.diff(x)
    even = len(x) > 2 and steps.min() > 0 and steps.std() <= _EVEN * steps.mean()
    return float(np.median(steps)) if even else 0.0


def _seconds_between(chosen: Entry, n_time: int, others: Sequence[Entry]) -> tuple[float, str]:
    """Seconds between samples and where they are from, of the likeliest of the arrays that tell; 0 and "" where none does."""

    def along_time(e: Entry) -> bool:
        if n_time == -1:
            return _paces(e, chosen)
        return e.lists in ((), chosen.lists) and {math.prod(shape) for shape in e.shapes} == {n_time}

    def by(e: Entry, step: float) -> float:
        unit = _unit(e, others)[0]
        return _seconds(_name(e), step, e.whole) if unit in ("", "samples") else step * float(unit)

    single = [e for e in others if not e.lists and _size(e) == 1 and 0 < e.low < math.inf]
    stated = {name: x for name, x in chosen.stated.items() if isinstance(x, float) and 0 < x < math.inf}
    where = f"of {chosen.key}"
    told = [(f"{name} {where}", 1 / x) for name, x in stated.items() if _FRAMES.search(name)]
    told += [
        (f"{name} {where}", _seconds(name, x, x.is_integer())) for name, x in stated.items() if _PERIOD.search(name)
    ]
    told += [(e.key, 1 / e.low) for e in single if _FRAMES.search(_name(e))]
    told += [(e.key, by(e, e.low)) for e in single if _PERIOD.search(_name(e))]
    told += [(e.key, by(e, _step(e))) for e in others if _AXIS.search(_name(e)) and along_time(e)]
    slow = {name: x for name, x in stated.items() if (_RATE.search(name) or name == "rate") and x <= _FASTEST_HZ}
    told += [(f"{name} {where}", 1 / x) for name, x in slow.items()]
    told += [(e.key, 1 / e.low) for e in single if _RATE.search(_name(e)) and e.low <= _FASTEST_HZ]
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


def _size(entry: Entry) -> int:
    """Of numbers in all arrays."""
    return sum(map(math.prod, entry.shapes))


def _name(entry: Entry) -> str:
    """The last name of a key, without the file's; of a name with dots what is behind them."""
    key = entry.name or entry.key
    names = [part for part in re.split(r"[/.]", key.rpartition(":")[2].replace("%d", "*")) if part.strip("*")]
    return names[-1] if names else key


def _axes_of(entry: Entry) -> tuple[int, ...]:
    """Sizes of the axes longer than 1."""
    return tuple(n for n in entry.shape if n != 1)


def _guessed_axes(entry: Entry, sizes: tuple[int, ...], others: Sequence[Entry]) -> list[str]:
    """Names of the axes: those that the file tells; time where sizes differ, or a time axis is as long, or successive samples are
    alike; trials where other arrays have one value for each, but none that belongs to neurons."""
    names = _told_axes(entry, sizes)
    x = entry.first.squeeze()
    in_lists = len(sizes) - x.ndim
    of_neurons = {math.prod(e.shape) for e in others if _NEURON_EACH.search(_name(e))}
    of_others = {math.prod(e.shape) for e in others if not _NEURON_EACH.search(_name(e))}
    if "time" not in names:
        alike = [-math.inf] * in_lists + [_likeness(x, axis) for axis in range(x.ndim)]
        timed = [e for e in others if role_of(_name(e)) == "time" and not e.lists and _step(e)]
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


def _likeness(x: np.ndarray, axis: int) -> float:
    """Correlation of neighbours along an axis, over at most about a million numbers."""
    x = np.moveaxis(x, axis, 0)
    x = x[: max(3, 1_000_000 // max(1, x[0].size))] if x.ndim else x
    x = np.nan_to_num(x.astype(float)).reshape(len(x), -1)[:, :100_000]
    x = x - x.mean(0)
    spread = float(np.square(x).sum())
    return float((x[1:] * x[:-1]).sum() / spread) if spread > 0 and len(x) > 2 else 0.0
