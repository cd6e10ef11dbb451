"""Finding runs by their files: a run is done where its last job came to its end."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from connector.errors import UserError
from connector.runs.options import STAGES
from connector.runs.store import RunStore
from connector.stages.curves import read_learning_curves

_SKIPPED = {"wandb", "checkpoints", "figures", "logs", "node_modules"}  # hold no runs, but much else
_LOG_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (.*)")
_ENDED_EARLY = "the job ended early"
_LOG_TAIL = 200_000  # bytes of train.log that are read
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is several times faster


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


def _log_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - _LOG_TAIL))
        return handle.read().decode("utf-8", "replace").splitlines()


def ended_early(lines: Sequence[str]) -> str:
    """What ended the last job that a train.log tells of, in a line; "" where it did not end early."""
    records = [i for i, line in enumerate(lines) if _LOG_RECORD.match(line)]
    last = _LOG_RECORD.match(lines[records[-1]])[1] if records else ""
    if not last.startswith(_ENDED_EARLY):
        return ""
    # The exception stands below its traceback, whose lines are indented; a message may have several lines.
    after = lines[records[-1] + 1 :]
    heads = [i for i, line in enumerate(after) if line.startswith("Traceback ")]
    if heads:
        said = [line for line in after[heads[-1] + 1 :] if line and not line.startswith(" ")]
        if said:
            return re.sub(r"^connector\.(errors\.RunFailure: |errors\.|failures\.RunFailure: )", "", said[0])
    return last


def _is_stale(path: Path, metrics: Mapping[str, float]) -> bool:
    """Whether a later job has trained a stage anew since metrics.json was written, and has not come to its end."""
    if not any((path / name).exists() for name in ("manifest.json", "stages.json")):
        return False
    stages = RunStore(path).stages()
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
    lines = _log_lines(path / "train.log")
    records = [found[1] for line in lines if (found := _LOG_RECORD.match(line))]
    so_far = f"; train.log ends with: {records[-1]}" if records else ""
    early = ended_early(lines)
    try:
        options = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), _Loader)
        options = flatten(options)
    except FileNotFoundError:
        return FoundRun(path, problem=early or f"no config.yaml{so_far}")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return FoundRun(path, problem=f"config.yaml cannot be read: {reason}")
    if early:
        return FoundRun(path, options, problem=early)
    file = path / "metrics.json"
    if not file.exists():
        return FoundRun(path, options, problem=f"no metrics.json: still running, or killed{so_far}")
    try:
        metrics = {key: float(value) for key, value in json.loads(file.read_text()).items()}
        stale = _is_stale(path, metrics)
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        return FoundRun(path, options, problem=f"metrics.json or manifest.json cannot be read: {error}")
    if stale:
        problem = f"metrics.json is of an earlier run than its stages: still running, or killed{so_far}"
        return FoundRun(path, options, problem=problem)
    return FoundRun(path, options, metrics)


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
