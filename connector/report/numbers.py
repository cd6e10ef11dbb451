"""Numbers as a person writes them."""

from __future__ import annotations

import math


def format_number(value: object) -> str:
    """A number as a person writes it; anything else as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return "not defined"
    if isinstance(value, int) or (isinstance(value, float) and 1e3 <= abs(value) < 1e5):
        return f"{value:,.0f}".replace(",", "\u202f")  # narrow space, no line break
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.0f}" if value == round(value) else f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10^{int(exponent)}"


def rough(value: float) -> str:
    """A number that is uncertain, to two significant digits: 0.0144 -> 0.014, 1.02 -> 1, 1234 -> 1 200."""
    if not math.isfinite(value):
        return "not defined"
    return format_number(float(f"{value:.1e}"))


def probability(share: float) -> str:
    """A probability found by counting draws: two decimals, never 0 or 1."""
    return "> 0.99" if share > 0.995 else ("< 0.01" if share < 0.005 else f"{share:.2f}")


def percent(share: float) -> str:
    """A share as a person says it, to three digits at most; never rounded to all, nor down to nothing, where it is not."""
    value = round(100 * share, 9) + 0.0  # no minus before zero
    if 0 < abs(value) < 0.1:
        return "less than 0.1 %" if value > 0 else f"{value:.1g} %"
    if 100 < value < 100.5:
        return "just over 100 %"
    for digits in range(0 if abs(value) >= 10 or value == round(value) else 1, 2):
        said = f"{value:.{digits}f}"
        if float(said) != 100 or value == 100:
            return f"{said} %"
    return "more than 99.9 %"


def multiple(share: float) -> str:
    """A share, or from two on a factor, before what it is a share of: "28 % of", "48 times"."""
    return f"{percent(share)} of" if share < 2 else f"{rough(share)} times"


def counted(number: int, noun: str) -> str:
    """1 neuron, 2 neurons."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
