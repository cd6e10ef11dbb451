"""The command that `connector look` guesses, and what it reads."""

import shlex

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser

from connector.data.arrays import load_arrays
from connector.data.listing import described


def smooth(draw, *shape):
    """(..., time), successive samples alike."""
    return np.cumsum(draw.normal(size=shape), axis=-1)


def guessed(*paths):
    """Options of the command guessed, as Hydra reads them; what is said to be doubtful."""
    command, said = described(paths, 1.0)[1].split("\n")
    found = [OverridesParser.create().parse_override(word) for word in shlex.split(command)[3:]]
    options = {x.key_or_group.removeprefix("data."): x.value() for x in found}
    plain = {k: v if isinstance(v, (int, float)) else list(map(str, v)) if isinstance(v, list) else str(v) for k, v in options.items()}  # fmt: skip
    return plain, said


def read(options):
    """What a command guessed reads."""
    return load_arrays(options["path"], **{key: value for key, value in options.items() if key != "path"})
