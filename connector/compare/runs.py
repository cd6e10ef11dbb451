"""Finding runs by their files: a run is done where its last job came to its end."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from connector.errors import UserError
from connector.files import read_yaml
from connector.runs.options import STAGES
from connector.runs.store import DONE, RUNNING, RunStore
from connector.stages.curves import read_learning_curves

_SKIPPED = {"wandb", "checkpoints", "figures", "logs", "node_modules"}  # hold no runs, but much else
_LOG_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (.*)", re.MULTILINE)
_OVERRIDE = re.compile(r"(?:^| )[+~]*([\w./@-]+)=(\S*)")
_LOG_TAIL = 200_000  # bytes of train.log that are read


@dataclass(frozen=True)
class FoundRun:
    """A run directory as its files tell.

    Attributes:
        path: the directory.
        options: flat, ``group.key`` -> value.
        metrics: of metrics.json; empty where the run is not done.
        problem: why it is not done; "" where it is.
    """

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @cached_property
    def curves(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """stage -> metric without its stage -> (epochs, values), of the stages that this run trained."""
        found = {}
        for stage in STAGES:
            # Without its loss the stage was not trained: a file that lies there is of other options.
            if f"{stage}/val_loss" in self.metrics:
                read = read_learning_curves(self.path / "logs" / f"{stage}.csv")
                found[stage] = {key.removeprefix(f"{stage}/"): curve for key, curve in read.items()}
        return {stage: curves for stage, curves in found.items() if curves}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as ``group.key`` -> value; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _last_logged(path: Path) -> str:
    """What the last record of a train.log says; "" where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - _LOG_TAIL))
        found = _LOG_RECORD.findall(handle.read().decode("utf-8", "replace"))
    return found[-1] if found else ""


def _is_stale(path: Path, stages: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, float]) -> bool:
    """Whether a later job has trained a stage anew since metrics.json was written, and has not come to its end."""
    if not any((path / name).exists() for name in ("manifest.json", "stages.json")):
        return False
    missing = any(f"timing/{stage}_seconds" in metrics and stage not in stages for stage in STAGES)
    return missing or any(
        metrics.get(key) != value
        for stage, record in stages.items()
        for key, value in [
            *record.get("metrics", {}).items(),
            *([(f"timing/{stage}_seconds", record["seconds"])] if record.get("seconds") else []),
        ]
        if isinstance(value, int | float) and abs(value) < float("inf")  # metrics.json leaves out what is undefined
    )


def read_run(path: Path) -> FoundRun:
    """The run in a directory, done or not."""
    store, options, metrics = RunStore(path), {}, {}
    last = _last_logged(path / "train.log")
    cut_short = "still running, or killed" + (f"; train.log ends with: {last}" if last else "")
    try:
        manifest = store.manifest()
        # Runs of version 0.1.0 say in their log alone that they ended early.
        problem = manifest.get("state") or (last if last.startswith("the job ended early") else DONE)
        options = _read_options(path / "config.yaml")
        metrics = store.metrics()
    except UserError as error:
        return FoundRun(path, options, problem=str(error).splitlines()[0])
    if problem == RUNNING:
        problem = cut_short
    elif problem == DONE and not options:
        problem = f"no config.yaml: {cut_short}"
    elif problem == DONE and not store.has_config():
        problem = "config.yaml is not as the job wrote it"
    elif problem == DONE and not (path / "metrics.json").exists():
        problem = f"no metrics.json: {cut_short}"
    elif problem == DONE and _is_stale(path, manifest["stages"], metrics):
        problem = f"metrics.json is of an earlier run than its stages: {cut_short}"
    return FoundRun(path, options, metrics) if problem == DONE else FoundRun(path, options, problem=problem)


def _read_options(path: Path) -> dict[str, Any]:
    """The options of config.yaml, flat; empty where there is no such file."""
    options = read_yaml(path) if path.exists() else {}
    if not isinstance(options, dict):
        raise UserError(f"the options of a run in {path}", "YAML without keys")
    return flatten(options)


def _below(root: Path) -> Iterator[tuple[Path, FoundRun | None]]:
    """Run directories in or below ``root``, and with what is told of them jobs of sweeps that left no directory."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        path, there = Path(folder), set(files)
        if path.resolve() in seen:  # links may lead in circles
            below.clear()
            continue
        seen.add(path.resolve())
        if "jobs.csv" in there:
            yield from _refused_jobs(path / "jobs.csv")
        if "train.log" in there or {"config.yaml", "metrics.json"} <= there:
            yield path, None
            below.clear()  # a run holds no runs
        below[:] = sorted(name for name in below if name not in _SKIPPED and not name.startswith("."))


def _refused_jobs(file: Path) -> Iterator[tuple[Path, FoundRun]]:
    """Jobs whose options were refused, so that they left no directory: the sweep's jobs.csv tells of them."""
    with file.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            path = Path(row.get("directory") or "")
            if row.get("state", "done") != "done" and not path.exists():
                yield path, FoundRun(path, problem=row["state"])


def swept_options(runs: Iterable[FoundRun]) -> list[str]:
    """Keys, as they were typed, of the options that the sweeps of some runs vary, by the jobs.csv beside the runs."""
    found: dict[str, None] = {}
    for file in dict.fromkeys(run.path.parent / "jobs.csv" for run in runs):
        if file.is_file():
            values: dict[str, set[str]] = {}
            with file.open(newline="", encoding="utf-8") as handle:
                for row in csv.DictReader(handle):
                    for key, value in _OVERRIDE.findall(row.get("overrides") or ""):
                        values.setdefault(key, set()).add(value)
            found |= dict.fromkeys(key for key, several in values.items() if len(several) > 1)
    return list(found)


def find_runs(directories: Sequence[str | Path]) -> list[FoundRun]:
    """All runs in or below the directories, each once.

    Raises:
        UserError: a directory does not exist, or there is no run in any.
    """
    runs: dict[Path, FoundRun | None] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise UserError("a directory with runs", f"{directory}, which is none", "runs lie in runs/ by default")
        for path, job in _below(directory):
            runs.setdefault(path.resolve(), job)
    if not runs:
        where = ", ".join(map(str, directories))
        raise UserError(
            f"run directories (config.yaml and metrics.json) in or below {where}",
            "none",
            "make runs with `python train.py`; each says where it lies",
        )
    return [read_run(path) if job is None else job for path, job in runs.items()]
