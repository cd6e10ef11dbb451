"""What an NWB file says of the subject and the session, beside the recording."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from connector.declarations import check, option, require
from connector.errors import UserError

_SPECIES = {
    "rat": "Rattus norvegicus", "mouse": "Mus musculus", "human": "Homo sapiens", "monkey": "Macaca mulatta",
    "macaque": "Macaca mulatta", "zebrafish": "Danio rerio", "fly": "Drosophila melanogaster", "worm": "Caenorhabditis elegans",
    "ferret": "Mustela putorius furo", "zebra finch": "Taeniopygia guttata",
}  # fmt: skip
_UNKNOWN_AGE = "P0D/"  # archives want an age: from 0 days on
_AGE = re.compile(r"P(?!$)(\d+(\.\d+)?[YMWD])+(/(P(\d+(\.\d+)?[YMWD])+)?)?")


@dataclass
class NwbSession:
    """Subject and session as an NWB file names them; what is not given is written as unknown, or not at all.

    Raises:
        UserError: by ``check()``, for what archives do not take.
    """

    subject_id: str = option("name of the subject", stages=(), default="unknown")
    species: str | None = option(
        "in Latin, as Rattus norvegicus, or in English: rat, mouse, human, macaque", stages=(), default=None
    )
    sex: str = option("M, F, O or U for unknown", stages=(), choices=("M", "F", "O", "U"), default="U")
    age: str | None = option("at the session, as P90D, P12W or P3Y; a range as P90D/P120D", stages=(), default=None)
    strain: str | None = option("of the subject", stages=(), default=None)
    genotype: str | None = option("of the subject", stages=(), default=None)
    session_id: str | None = option("name of the session", stages=(), default=None)
    session_start: Any = option("when the session began, as 2018-05-03T10:30+00:00", stages=(), default=None)
    description: str = option("of the session", stages=(), default="")
    experiment: str | None = option("description of the experiment", stages=(), default=None)
    experimenter: tuple[str, ...] = option("names of experimenters, as 'Last, First'", stages=(), default=())
    institution: str | None = option("where the session was recorded", stages=(), default=None)
    lab: str | None = option("the laboratory", stages=(), default=None)
    keywords: tuple[str, ...] = option("keywords", stages=(), default=())

    def check(self) -> None:
        for name in ("subject_id", "session_id"):
            value = getattr(self, name)
            fits = value is None or (str(value).strip() != "" and "/" not in str(value))
            require(fits, f"--{name.replace('_', '-')}", "of some letters, without /", value)
        require(self.age is None or bool(_AGE.fullmatch(self.age)), "--age", "as P90D, P12W or P3Y", self.age)
        start = self.session_start
        require(start is None or isinstance(start, datetime), "--session-start", "as a time", start)
        if start is not None and start.tzinfo is None:
            self.session_start = start = start.replace(tzinfo=UTC)
        past = start is None or start <= datetime.now(UTC)
        require(past, "--session-start", "in the past", None if start is None else start.isoformat())

    def of_file(self) -> dict[str, Any]:
        """Keywords of ``pynwb.NWBFile``, but for those that need the recording."""
        check(self, "--")
        found = {
            "session_start_time": self.session_start or datetime(1970, 1, 1, tzinfo=UTC),
            "session_id": self.session_id,
            "experiment_description": self.experiment,
            "experimenter": list(self.experimenter) or None,
            "institution": self.institution,
            "lab": self.lab,
            "keywords": list(self.keywords) or None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def of_subject(self) -> dict[str, Any]:
        """Keywords of ``pynwb.file.Subject``."""
        species = None if self.species is None else _SPECIES.get(self.species.strip().lower(), self.species)
        found = {
            "subject_id": self.subject_id,
            "species": species,
            "sex": self.sex,
            "age": self.age or _UNKNOWN_AGE,
            "description": "nothing is known of the subject's age" if self.age is None else None,
            "strain": self.strain,
            "genotype": self.genotype,
        }
        return {key: value for key, value in found.items() if value is not None}


def time_of(text: str) -> datetime:
    """A time that was typed, as ISO 8601 has it.

    Raises:
        UserError: no time.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError("--session-start as 2018-05-03T10:30+00:00", repr(text)) from error
