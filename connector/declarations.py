"""Options declared once: what each means, its unit and range, and the stages whose numbers it changes.

An option is a field of a dataclass; its default stands in conf/ (and, for what Python calls take, in its declaration).
From the declaration come the check of what a user typed, `python train.py --help`, docs/options.md and the fingerprint of
each stage.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from connector import errors

# In the order in which they run. What changes a stage changes those after it, through what they are made from.
STAGES_OF_A_RUN = ("data", "lrrnn", "loadings", "outputs", "results")
LARGEST = 2**31 - 1  # of any number
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list, as in [a,b]"}
_NEVER_WITHOUT = object()


@dataclass(frozen=True)
class Option:
    """What :func:`option` declares.

    Attributes:
        before: what runs did that are older than the option; they are read back with it, and at that value the option
            is no part of a fingerprint.
    """

    meaning: str
    stages: tuple[str, ...]
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    before: Any = _NEVER_WITHOUT

    @property
    def is_newer(self) -> bool:
        """Whether there are runs that do not have it."""
        return self.before is not _NEVER_WITHOUT

    @property
    def range(self) -> str:
        """The admissible values in words; empty where any of the type will do."""
        choices, numbers = ", ".join(self.choices), self._numbers
        if choices and numbers:
            return f"{numbers}, or {choices}"
        return f"among {choices}" if choices else numbers

    @property
    def _numbers(self) -> str:
        low, high = (self.at_least, self.above), (self.at_most, self.below)
        if low == high == (None, None):
            return ""
        if high == (None, None):
            return f"greater than {self.above:.10g}" if self.at_least is None else f"of {self.at_least:.10g} or more"
        if low == (None, None):
            return f"below {self.below:.10g}" if self.at_most is None else f"of at most {self.at_most:.10g}"
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:.10g} to {self.at_most:.10g}"
        low = f"above {self.above:.10g}" if self.at_least is None else f"of {self.at_least:.10g} or more"
        return f"{low} and {f'below {self.below:.10g}' if self.at_most is None else f'at most {self.at_most:.10g}'}"

    def admits(self, value: Any) -> bool:
        """Whether a value lies in the range; null always does."""
        if value is None or (self.choices and value in self.choices):
            return True
        bounds = (self.at_least, self.above, self.at_most, self.below)
        if self.choices and (isinstance(value, str) or bounds == (None, None, None, None)):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def option(
    meaning: str,
    *,
    stages: tuple[str, ...],
    unit: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    default: Any = MISSING,
    before: Any = _NEVER_WITHOUT,
) -> Any:
    """A field of a dataclass of options.

    Args:
        meaning: one line for --help; what null means stands here.
        stages: those whose numbers it changes first, among STAGES_OF_A_RUN; () for none.
        unit: such as "s" or "Hz".
        at_least, above, at_most, below: the range; choices: the admissible texts.
        default: where functions of Python take the options, too; conf/ says the same.
        before: for an option that older runs do not have: what they did.
    """
    assert set(stages) <= set(STAGES_OF_A_RUN), stages
    about = Option(meaning, tuple(stages), unit, at_least, above, at_most, below, tuple(choices), before)
    if before is _NEVER_WITHOUT:
        return field(default=default, metadata={"option": about})
    return field(default_factory=lambda: copy.deepcopy(before), metadata={"option": about})


def require(condition: bool, name: str, expected: str, value: Any, remedy: str = "") -> None:
    """Raises UserError where the option of that name does not hold what is expected."""
    errors.require(condition, f"{name} {expected}", repr(value), remedy)


def declared(schema: type, prefix: str = "") -> Iterator[tuple[str, Option, Any]]:
    """(name as typed, declaration, type) of each option of a dataclass and of those nested in it."""
    hints = get_type_hints(schema)
    for f in fields(schema):
        if "option" in f.metadata:
            yield prefix + f.name, f.metadata["option"], hints[f.name]
        elif is_dataclass(hints[f.name]):
            yield from declared(hints[f.name], f"{prefix}{f.name}.")


def kind_in_words(hint: Any) -> str:
    """What an option of that type holds; empty where that has no short name."""
    kinds = [list] if get_origin(hint) is list else [get_origin(x) or x for x in get_args(hint) or (hint,)]
    words = [_KINDS.get(kind, "") for kind in kinds if kind is not NoneType]
    if not all(words):
        return ""
    return " or ".join(words + ["null"] * (NoneType in kinds))


def check(options: Any, prefix: str = "") -> None:
    """Hold typed options to their declarations: numbers finite and of at most 31 bits, ranges, choices; then to their
    own ``check()``, where they have one, for what joins several options.

    Raises:
        UserError: naming the first option that is out of range.
    """
    for f in fields(options):
        value, name = getattr(options, f.name), prefix + f.name
        if is_dataclass(value):
            check(value, f"{name}.")
            continue
        if isinstance(value, float):
            require(math.isfinite(value), name, "a finite number", value)
        elif isinstance(value, int):
            require(abs(value) <= LARGEST, name, f"from -{LARGEST} to {LARGEST}", value)
        if "option" in f.metadata:
            about: Option = f.metadata["option"]
            require(about.admits(value), name, about.range, value)
    if hasattr(options, "check"):
        options.check()


def changing(options: Any, stage: str) -> dict[str, Any]:
    """The options that change a stage's numbers, by name, in a form that does not depend on how they were typed: for its
    fingerprint."""
    found: dict[str, Any] = {}
    for f in fields(options):
        value = getattr(options, f.name)
        if "option" in f.metadata:
            about: Option = f.metadata["option"]
            if stage in about.stages and value != about.before:
                found[f.name] = by_value(value)
        elif is_dataclass(value):
            nested = changing(value, stage)
            found |= {f"{f.name}.{name}": x for name, x in nested.items()}
    return found


def by_value(value: Any) -> Any:
    """Numbers as numbers, however they are spelt: 1 and 1.0 are one."""
    if isinstance(value, dict):
        return {str(key): by_value(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [by_value(x) for x in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
