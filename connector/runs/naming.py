"""Where runs have their configuration from, and the name of a run's directory, made from the options that change its
result: same command, same directory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from omegaconf import OmegaConf

# These act on the same run: what is trained, how fast, where it is logged.
_WITHOUT_EFFECT = re.compile(r"^(stages|force|report|logger|trainer|hydra)([./=@]|$)")
_MAX_LENGTH = 80
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


def run_directory(choices: Mapping[str, str | None], overrides: Sequence[str], separator: str = "/") -> str:
    """NAME/OVERRIDES.

    Args:
        choices: Hydra's choice for each config group.
        overrides: the options typed, ``key=value``.
        separator: between the two parts (sweeps put them into one directory name).

    Returns:
        OVERRIDES holds the options that change the result, sorted, numbers in one spelling, in characters safe in a path;
        followed by 6 hex digits of their hash where it was shortened or where a value holds a path; ``default`` where there
        are none.
    """
    name = run_name(choices)
    kept = []
    for override in overrides:
        bare = override.lstrip("+~")
        if without_effect(bare):
            continue
        key, _, value = bare.partition("=")
        if key == "experiment" or (key == "data" and value == name):
            continue
        kept.append(_by_value(override))
    if not kept:
        return f"{name}{separator}default"
    kept.sort()
    text = ",".join(re.sub(r"=(.*/)", "=", override) for override in kept)
    safe = re.sub(r"[^A-Za-z0-9=._,+-]", "-", text)
    has_path = any("/" in override for override in kept)
    if has_path or len(safe) > _MAX_LENGTH or safe != text:
        digits = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:6]
        safe = f"{safe[:_MAX_LENGTH]}-{digits}"
    return f"{name}{separator}{safe}"


def register_resolvers() -> None:
    """Make the names available to conf/train.yaml."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)
    OmegaConf.register_new_resolver("sweep_directory", lambda c, o: run_directory(c, o, ","), replace=True)
