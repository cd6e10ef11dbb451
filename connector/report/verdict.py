"""The verdict of a report: at most six points, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connector.report import nulls
from connector.report.cautions import Said, parted
from connector.report.numbers import counted
from connector.report.opening import Findings, headline, more


@dataclass(frozen=True)
class Verdict:
    """What a report says first.

    Attributes:
        level: "good", "caution", "warning" or "none": whether any check objects, and whether anything was found.
        word: the level in words, so that it does not depend on a colour.
        lines: (subject, what is said of it), six at most.
        cautions: of the run in their parts, what is wrong first.
        more: what else was found.
    """

    level: str
    word: str
    lines: Sequence[tuple[str, str]]
    cautions: Sequence[Said] = ()
    more: Sequence[str] = ()


_WORDS = {
    "good": "All checks passed",
    "caution": "Read with care: see the cautions",
    "warning": "Read the warnings before the results",
    "none": "No finding: see the warnings",
}


def verdict(found: Findings, cautions: Sequence[str]) -> Verdict:
    """The verdict on a run.

    Args:
        found: what the report speaks of; cautions: of the run, each "Caution: ..." or "Warning: ...".
    """
    parts = sorted(map(parted, cautions), key=lambda said: said.word != "Warning")
    if nulls.nothing_found(found.metrics) is not None:
        level = "none"
    elif any(said.word == "Warning" for said in parts):
        level = "warning"
    else:
        level = "caution" if parts else "good"
    return Verdict(level, _WORDS[level], [*headline(found), ("Beware", _beware(parts))], parts, more(found))


def _beware(cautions: Sequence[Said]) -> str:
    if not cautions:
        return "No check of the fit raised a caution; all intervals and probabilities still assume that the model is right."
    counts = [
        f"the {word.lower()}" if number == 1 else f"the {counted(number, word.lower())}"
        for word in ("Warning", "Caution")
        if (number := sum(said.word == word for said in cautions))
    ]
    them = "it qualifies" if len(cautions) == 1 else "they qualify"
    return f"Read {' and '.join(counts)} below: {them} the sentences above."
