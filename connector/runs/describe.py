"""The options in words, from their declarations: for `--help`, and docs/options.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from connector.declarations import Option, declared, kind_in_words
from connector.runs.lrrnn_options import LowRankRNNOptions
from connector.runs.naming import conf_directory
from connector.runs.options import (
    DATA_TYPES,
    ConnectivityOptions,
    LoggerOptions,
    Options,
    TrainerOptions,
)

_GROUPS = {
    "lrrnn": LowRankRNNOptions,
    "connectivity": ConnectivityOptions,
    "trainer": TrainerOptions,
    "logger": LoggerOptions,
}
_DEFAULTS = {"lrrnn": "default", "connectivity": "default", "trainer": "cpu", "logger": "csv"}
_WIDTH, _VALUES = 118, 42
_PAGE = """# Options

Type any option as `NAME=VALUE`. Or put it into a file of `experiment/` that begins with `# @package _global_`; typed values take
precedence. `python train.py --help` shows the values with which a command would run. Defaults are those of `conf/`.

The column *changes* names the stages whose numbers an option changes first. A finished stage is reused if the options that change it,
and the stages before it, stay the same. Options are compared by value, not by spelling: `1` and `1.0` are the same. The number of
threads, the machine and library versions change the rounding of sums. `manifest.json` records them; they cause no new training.

This page is made from the declarations in the code by `python docs/generate.py`.
"""


def _own_options() -> Iterator[tuple[str, Option, Any]]:
    yield from (entry for entry in declared(Options) if "." not in entry[0])


def _of_data(source: str) -> list[tuple[str, Option, Any]]:
    """What the recording is, how it is read or simulated, how its trials are divided."""
    first, last = (
        ("data.source", "data.name", "data.path", "data.teachers"),
        ("data.fold", "data.n_folds", "data.fold_seed"),
    )
    return sorted(declared(DATA_TYPES[source], "data."), key=lambda entry: (entry[0] not in first) + (entry[0] in last))


def _about(option: Option, kind: Any) -> str:
    """Range and unit in brackets, and of a list that it is one; empty where the value says it all."""
    range_ = re.sub(r"^(of|in|among) ", "", option.range) or (kind_in_words(kind) if "list" in str(kind) else "")
    said = ", ".join(part for part in (range_, option.unit) if part)
    return f" [{said}]" if said else ""


def _shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, (list, dict)):
        plain = (
            [_shown(x) for x in value] if isinstance(value, list) else [f"{k}:{_shown(v)}" for k, v in value.items()]
        )
        return ("[{}]" if isinstance(value, list) else "{{{}}}").format(",".join(plain))
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return f"{value:.10g}" if isinstance(value, (int, float)) else str(value)


def option_table(config: DictConfig) -> str:
    """Each option of a composed configuration with its value, meaning, range and unit, by groups: for --help."""
    plain = OmegaConf.to_container(config, resolve=False)
    source = (plain.get("data") or {}).get("source")
    tables = {"": list(_own_options())}
    if source in DATA_TYPES:
        tables["data"] = _of_data(source)
    tables |= {name: list(declared(schema, f"{name}.")) for name, schema in _GROUPS.items()}
    lines = []
    for group, entries in tables.items():
        chosen = plain.get(group) if isinstance(plain.get(group), Mapping) else {}
        lines += ["", f"-- {group}: {chosen.get('name', '')} --" if group else "-- of the run --"]
        for name, option, kind in entries:
            value = plain
            for part in name.split("."):
                value = value.get(part, "") if isinstance(value, Mapping) else ""
            value = "" if isinstance(value, str) and value.startswith("${") else _shown(value)
            head = f"{name} = {value}"
            text = textwrap.wrap(option.meaning + _about(option, kind), _WIDTH - _VALUES - 1)
            lines += [head] if len(head) > _VALUES else []
            lines += [f"{'' if i or len(head) > _VALUES else head:<{_VALUES}} {part}" for i, part in enumerate(text)]
    return "\n".join(lines).strip()


def _table(entries: Iterable[tuple[str, Option, Any]], defaults: Mapping[str, Any]) -> list[str]:
    lines = ["| option, default | meaning | changes |", "|---|---|---|"]
    for name, option, kind in entries:
        value = defaults
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        default = "" if isinstance(value, str) and value.startswith(("${", "???")) else f"<br>`{_shown(value)}`"
        about = _about(option, kind).replace("[", "\\[")  # no link of Markdown
        cells = (f"`{name}`{default}", option.meaning + about, ", ".join(option.stages) or "nothing")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def options_page() -> str:
    """docs/options.md."""

    def read(path: Path) -> dict[str, Any]:
        return OmegaConf.to_container(OmegaConf.load(path))

    conf, said = conf_directory(), [_PAGE]
    folds = read(conf / "folds.yaml")
    said += ["## Of the run", "", *_table(_own_options(), read(conf / "train.yaml"))]
    for source in DATA_TYPES:
        said += ["", f"## data, source {source}", ""]
        said += _table(_of_data(source), {"data": {**folds, **read(conf / "data" / f"{source}.yaml")}})
    for group, schema in _GROUPS.items():
        said += ["", f"## {group}", ""]
        said += _table(declared(schema, f"{group}."), {group: read(conf / group / f"{_DEFAULTS[group]}.yaml")})
    return "\n".join(said) + "\n"
