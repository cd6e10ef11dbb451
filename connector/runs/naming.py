"""Where runs have their configuration from, and the name of a run's directory, made from the options that change its
result: same command, same directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from omegaconf import OmegaConf

# These act on the same run: what is trained, how fast, where it is logged.
_WITHOUT_EFFECT = re.compile(r"^(stages|force|report|verbose|logger|trainer|hydra)([./=@]|$)")
_MAX_LENGTH = 80
_DIGITS = (6, 16, 64)  # of the hash: as few as tell the directory from those of other jobs
# A value, or an element of a list or of a mapping, that is a number or a constant.
_SCALAR = re.compile(
    r"(?<![^\s,\[\]{}:])(?:true|false|null|[+-]?(?!0\d)(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?![^\s,\[\]{}])", re.I
)


def conf_directory() -> Path:
    """The folder conf/ of the configuration: in the installed package, or at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def _by_value(text: str) -> str:
    """An override whose numbers and constants are spelt in one way: sigma=1.0 and sigma=1 are one setting."""
    key, equals, value = text.partition("=")
    return key + equals + _SCALAR.sub(lambda found: _spelling(found[0]), value)


def _spelling(scalar: str) -> str:
    if scalar.lower() in ("true", "false", "null"):
        return scalar.lower()
    number = float(scalar)
    if number == 0 or 1e-3 <= abs(number) < 1e15:
        return str(int(number)) if number.is_integer() else repr(number)
    return f"{Decimal(repr(number)).normalize():e}"


def without_effect(option: str) -> bool:
    """Whether an option leaves a run's results as they are."""
    return _WITHOUT_EFFECT.match(option) is not None


def run_name(choices: Mapping[str, str | None]) -> str:
    """The experiment's name, or the data set's where no experiment is chosen."""
    experiment = choices.get("experiment")
    return str(experiment) if experiment not in (None, "null") else str(choices["data"])


def _kept(name: str, overrides: Sequence[str], swept: Sequence[str] = ()) -> list[str]:
    """The overrides that tell runs of one name apart, numbers in one spelling: what is swept first, then all else in order."""
    first, kept = [], []
    for override in overrides:
        bare = override.lstrip("+~")
        key, _, value = bare.partition("=")
        if key == "experiment" or (key == "data" and value == name):  # the name itself
            continue
        if key in swept:
            first.append((swept.index(key), _by_value(override)))
        elif not without_effect(bare):
            kept.append(_by_value(override))
    return [override for _, override in sorted(first)] + sorted(kept)


def stands_for(choices: Mapping[str, str | None], overrides: Sequence[str]) -> str:
    """What the name of a run directory stands for, whole: a hash of the experiment and the options that change the result.

    A name holds a short hash at most; the directory notes this one, so that no other job takes it for its own.
    """
    name = run_name(choices)
    return hashlib.sha256("\n".join([name, *_kept(name, overrides)]).encode(errors="surrogateescape")).hexdigest()


def run_directory(
    choices: Mapping[str, str | None],
    overrides: Sequence[str],
    separator: str = "/",
    swept: Sequence[str] = (),
    root: str | None = None,
) -> str:
    """NAME/OVERRIDES.

    Args:
        choices: Hydra's choice for each config group.
        overrides: the options typed, ``key=value``.
        separator: between the two parts (sweeps put them into one directory name).
        swept: keys of the options that a sweep varies: they come first, and are named whether they change results or not.
        root: where the directory will lie; None: what lies there is not looked at.

    Returns:
        OVERRIDES holds the options that change the result, sorted, numbers in one spelling, in characters safe in a path;
        followed by 6 hex digits of their hash where it was shortened or where a value holds a path (more, where another
        job has that name already); ``default`` where there are none.
    """
    name = run_name(choices)
    kept = _kept(name, overrides, swept)
    if not kept:
        return f"{name}{separator}default"
    text = ",".join(re.sub(r"=(.*/)", "=", override) for override in kept)
    safe = re.sub(r"[^A-Za-z0-9=._,+-]", "-", text)
    has_path = any("/" in override for override in kept)
    if not has_path and len(safe) <= _MAX_LENGTH and safe == text:
        return f"{name}{separator}{safe}"
    digest, own = (
        hashlib.sha256("\n".join(sorted(kept)).encode(errors="surrogateescape")).hexdigest(),
        stands_for(choices, overrides),
    )
    names = [f"{name}{separator}{safe[:_MAX_LENGTH]}-{digest[:digits]}" for digits in _DIGITS]
    return next((n for n in names if root is None or _noted(Path(root, n)) in (None, own)), names[-1])


def _noted(directory: Path) -> str | None:
    """What the name of a run directory stands for, as a job has noted it; None where none has."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((directory / "manifest.json").read_text(encoding="utf-8")).get("name")
    return None


def register_resolvers() -> None:
    """Make the names available to conf/train.yaml."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("run_directory", lambda c, o: run_directory(c, o, root="runs"), replace=True)
    OmegaConf.register_new_resolver(
        "sweep_directory",
        lambda choices, overrides, swept="", root=None: run_directory(choices, overrides, ",", swept.split(), root),
        replace=True,
    )
