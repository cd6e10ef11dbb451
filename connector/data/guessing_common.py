"""What the guesses of how to read a file share: what is told of an array, and what there is of each trial."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from connector.data.entries import Entry
from connector.data.preprocessing import NO_CHOICE
from connector.data.stated import unit_of, unit_of_name
from connector.data.time_axis import are_gaps

RATE = re.compile(r"^((\w+_)?fs|sr|sampl(e|ing)_?(rate|freq\w*))(_?hz)?$", re.I)
FASTEST_HZ = 1000  # of samples of activity; beyond it the rate is that of a raw recording
NOT_ACTIVITY = re.compile(
    r"time|label|weight|mask|iscell|stim|input|choice|angle|target|position|length|interval|lfp|_index$|neu$", re.I
)
_PLAIN = re.compile(r"(\.{0,2}/)?(?!(null|true|false|inf|nan)$)[a-z_][\w/.:*+@%-]*", re.I | re.A)
_OF_TRIALS = {
    "choices": "choice|decision|response",
    "lengths": "length|n_?bins|n_?samples",
    "conditions": "condition|label|target|stim",
}
_MOST_KINDS = 100  # of conditions
_EVEN = 0.1  # sd of the steps of a time axis, relative to their mean


def quoted(value: object) -> str:
    """A KEY or a path as Hydra reads it back: in double quotes where it is more than a plain word."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else '"' + re.sub(r'(\\*)("|$)', _escaped, text) + '"'


def _escaped(found: re.Match) -> str:
    """Backslashes before a quote, or at the end, twice; the quote behind one."""
    return 2 * found[1] + (r"\"" if found[2] else "")


def of_trials(others: Sequence[Entry], trials: int, but: str = "") -> list[str]:
    """Options for what there is one value of in each trial, ``but`` one."""
    options = []
    for what, names in _OF_TRIALS.items():
        beside = [e for e in others if math.prod(e.shape) == trials and re.search(names, name_of(e), re.I)]
        told = [
            (e, _choice_values(e) if what == "choices" else []) for e in beside if what != "conditions" or _kinds(e)
        ]
        fits = [[f"data.{what}={quoted(e.key)}", *more] for e, more in told if more is not None and what != but]
        options += fits[0] if fits else []
    return options


def _choice_values(entry: Entry) -> list[str] | None:
    """The option that names the two values of choices, where they are not 0 and 1, or left and right; None of what has not two."""
    if entry.words:
        words = sorted(word for word in entry.words if word.lower() not in NO_CHOICE)
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


def unit_stated(entry: Entry, found: Sequence[Entry]) -> tuple[str, str]:
    """Seconds per unit that the file states of times, as an option takes them, or samples; and where; "" and "" where it does not."""
    told = [
        (str(x), f"the attribute {name} of {entry.key}") for name, x in entry.stated.items() if "unit" in name.lower()
    ]
    beside = re.compile(re.escape(entry.key) + "_?units?|(.*[:/])?times?_?units?", re.I)
    told += [(e.words[0], e.key) for e in found if len(e.words) == 1 and beside.fullmatch(e.key)]
    named = [(unit_of(text), source) for text, source in told]
    named.append((unit_of_name(name_of(entry)), f"the name {name_of(entry)}"))
    return next(((unit, source) for unit, source in named if unit), ("", ""))


def paces(entry: Entry, other: Entry) -> bool:
    """Whether an entry is the time axis of another: evenly spaced, and list by list as long as one axis of it."""
    if entry is other or entry.lists != other.lists or len(entry.shapes) != len(other.shapes) or not step_of(entry):
        return False
    lengths = [math.prod(shape) for shape in entry.shapes]
    return any(list(sizes) == lengths for sizes in zip(*other.shapes))


def step_of(entry: Entry) -> float:
    """Between the numbers of an evenly spaced ascending vector, but for a few gaps; 0 for another array."""
    x = np.empty(0) if entry.first is None else entry.first.ravel().astype(float)
    if len(x) < 3 or not (np.diff(x) > 0).all():
        return 0.0
    steps = np.diff(x)
    usual, gaps = float(np.median(steps)), are_gaps(steps)
    return usual if gaps.mean() <= _EVEN and steps[~gaps].std() <= _EVEN * usual else 0.0


def size_of(entry: Entry) -> int:
    """Of numbers in all arrays."""
    return sum(map(math.prod, entry.shapes))


def name_of(entry: Entry) -> str:
    """The last name of a key, without the file's; of a name with dots what is behind them."""
    key = entry.name or entry.key
    names = [part for part in re.split(r"[/.]", key.rpartition(":")[2].replace("%d", "*")) if part.strip("*")]
    return names[-1] if names else key


def long_axes(entry: Entry) -> tuple[int, ...]:
    """Sizes of the axes longer than 1."""
    return tuple(n for n in entry.shape if n != 1)
