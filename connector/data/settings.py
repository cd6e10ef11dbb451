"""Options of readers and of the simulation: declared once, given as an instance or as keywords."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

from connector import errors
from connector.declarations import check, option, require
from connector.files import MAX_GIGABYTES

T = TypeVar("T")

data_option = partial(option, stages=("data",))
memory_option = partial(option, stages=(), unit="GB", above=0, default=MAX_GIGABYTES)
# Keywords of the Python functions whose option has another name on the command line.
KEYWORDS = {"tau_s": "tau", "noise_std": "process_noise", "observation_noise_std": "observation_noise"}


def require_two(values: list[Any] | None) -> None:
    """Raises UserError for ``data.choice_values`` that are not two, or two lists that have a value in common or none."""
    sides = [list(x) if isinstance(x, (list, tuple)) else [x] for x in values or ()]
    fits = values is None or (len(sides) == 2 and all(sides) and not any(x in sides[1] for x in sides[0]))
    require(fits, "data.choice_values", "as a list of two, [LEFT,RIGHT], or of two lists, [[A,B],[C,D]]", values)


def seconds(value: Any, option: str) -> float:
    """A number of seconds that may be typed as a fraction, 1/30000.

    Raises:
        UserError: no positive number.
    """
    try:
        found = float(Fraction(str(value).replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        found = math.nan
    errors.require(
        0 < found < math.inf and not isinstance(value, bool),
        f"{option} as seconds, such as 0.001 or 1/30000",
        repr(value),
    )
    return found


def settled(schema: type[T], options: T | None, keywords: dict[str, Any]) -> T:
    """The options given, changed by the keywords, within their ranges; without options the defaults.

    Raises:
        TypeError: a keyword that is no option.
        UserError: a value out of its range.
    """
    changes = {KEYWORDS.get(name, name): value for name, value in keywords.items()}
    options = schema(**changes) if options is None else replace(options, **changes)  # type: ignore[type-var]
    check(options, "data.")
    return options
