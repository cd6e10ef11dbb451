"""Runs that differ in their fold alone: finding them wherever they lie, and the commands that make those missing.

Each run of ``python train.py -m experiment=rat data.path=FILE data.fold=1,2,3,4,5`` tests on trials of its own; together
they test on every trial once. Runs belong together where all options of the data and of the low-rank RNN, and the seed,
are the same but the fold.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector.compare.runs import flatten
from connector.files import read_npz, read_yaml
from connector.runs.naming import conf_directory, register_resolvers

EXAMPLE = "python train.py -m data=npz data.path=FILE data.fold=1,2,3,4,5 'stages=[lrrnn]'    # npz: or nwb, nlb, rat, as the file is"
_FIT_ONLY = "stages=[lrrnn]"


@dataclass(frozen=True)
class FoldRun:
    """A finished run.

    Attributes:
        path: its directory; config: config.yaml as plain values; metrics: metrics.json.
    """

    path: Path
    config: dict[str, Any]
    metrics: dict[str, float]

    @property
    def fold(self) -> int:
        return int(self.config["data"]["fold"])

    @cached_property
    def responses(self) -> dict[str, np.ndarray]:
        """responses.npz of a run on spikes; empty where there is none."""
        file = self.path / "responses.npz"
        return read_npz(file) if file.exists() else {}

    def options(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """What decides the fit of the low-rank RNN, flat; without the fold and the keys ``without``."""
        parts = {name: self.config[name] for name in ("data", "lrrnn", "seed")}
        flat = flatten(parts)
        return {key: value for key, value in flat.items() if key != "data.fold" and key not in without}


def find_runs(directories: Sequence[str | Path], usable: Callable[[FoldRun], bool]) -> list[FoldRun]:
    """Usable runs in and below some directories, the newest first."""
    files = {file for directory in directories for file in Path(directory).rglob("config.yaml")}
    found = []
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        metrics = file.with_name("metrics.json")
        config = read_yaml(file)
        if metrics.exists() and isinstance(config, dict) and "fold" in (config.get("data") or {}) and "lrrnn" in config:
            run = FoldRun(file.parent, config, json.loads(metrics.read_text()))
            if usable(run):
                found.append(run)
    return found


@dataclass(frozen=True)
class FoldGroup:
    """Runs alike but for their fold: fold -> run, in order; of two runs of a fold the newer one."""

    runs: dict[int, FoldRun]

    @property
    def first(self) -> FoldRun:
        return next(iter(self.runs.values()))

    @property
    def n_folds(self) -> int:
        return int(self.first.config["data"]["n_folds"])

    @property
    def missing(self) -> list[int]:
        return [k for k in range(1, self.n_folds + 1) if k not in self.runs]

    def command(self, folds: Sequence[int], directory: str | Path | None = None, force: bool = False) -> str:
        """The command that makes runs of these folds.

        Args:
            directory: of the sweep, where it is not the one that training chooses.
            force: runs are there, but of a version that did not keep what is needed.
        """
        numbers = ",".join(map(str, folds))
        words = ["python", "train.py", "-m", *overrides_of(self.first), f"data.fold={numbers}", _FIT_ONLY]
        if force:
            words.append("force=true")
        if directory is not None:
            words.append(f"hydra.sweep.dir={_typed(str(directory))}")
        return shlex.join(words)


def grouped(runs: Sequence[FoldRun], without: Sequence[str] = ()) -> list[dict[str, FoldGroup]]:
    """Runs that belong together.

    Args:
        runs: the newest first.
        without: options, beside the fold, in which runs of a set may differ, such as ``lrrnn.rank``.

    Returns:
        for each set of runs alike in all else: the values of ``without``, as text -> the runs with them by fold.
    """
    sets: dict[str, dict[str, dict[int, FoldRun]]] = {}
    for run in runs:
        alike = sets.setdefault(json.dumps(run.options(without), sort_keys=True), {})
        options = run.options()
        of_fold = alike.setdefault(",".join(str(options[key]) for key in without), {})
        of_fold.setdefault(run.fold, run)
    return [{value: FoldGroup(dict(sorted(f.items()))) for value, f in alike.items()} for alike in sets.values()]


def _typed(value: Any) -> str:
    """A value as it is typed on the command line of Hydra."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{_typed(v)}' for k, v in value.items())}}}"
    text = str(value)
    plain = not isinstance(value, str) or re.fullmatch(r"[\w./+-]+", text)
    return text if plain else '"' + text.replace('"', '\\"') + '"'


def overrides_of(run: FoldRun) -> list[str]:
    """The options that make such a run, but for its fold: its groups, and what differs from their values."""
    register_resolvers()
    name, source = str(run.config["experiment_name"]), run.config["data"]["name"]
    words = (
        [f"experiment={name}"] if (conf_directory() / "experiment" / f"{name}.yaml").exists() else [f"data={source}"]
    )
    if run.config["lrrnn"]["name"] != "default":
        words.append(f"lrrnn={run.config['lrrnn']['name']}")
    options = run.options()
    path = [f"data.path={_typed(options['data.path'])}"] if "data.path" in options else []
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        composed = compose("train", [*words, *path, f"experiment_name={name}"])
    plain = OmegaConf.to_container(composed, resolve=True)
    default = flatten({name: plain[name] for name in ("data", "lrrnn", "seed")})
    changed = [f"{k}={_typed(v)}" for k, v in options.items() if k != "data.path" and default.get(k) != v]
    return [*words, *path, *changed]


def differing(groups: Sequence[FoldGroup]) -> list[str]:
    """For each of several groups the options that tell it from the others, as text; empty for one."""
    options = [group.first.options() for group in groups]
    keys = sorted({key for each in options for key in each})
    told = [key for key in keys if len({json.dumps(each.get(key)) for each in options}) > 1]
    return [", ".join(f"{key}={_typed(each[key])}" for key in told if key in each) for each in options]
