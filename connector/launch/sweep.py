"""What a sweep says: a line before each job, at the end one table of all jobs, and the same as jobs.csv.

A Hydra callback (conf/train.yaml names it). Jobs may run in processes of their own, as the joblib launcher has them:
each leaves a small record in the sweep's directory when it starts and when it ends, and the process that started the
sweep reads the records, and the metrics from the jobs' directories.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from connector.errors import end_state
from connector.report.glossary import MAIN_METRICS
from connector.terminal import shortest, wide_console

_SHOWN = 5  # main measures in the table; jobs.csv holds all
_RECORDS = ".jobs"
_NOT_ENDED = "ended early"  # interrupted or killed: whatever left no word of how it ended

_open: SweepReport | None = None  # of the sweep that this process started


def count_jobs(overrides: list[str]) -> int | None:
    """Jobs that Hydra's own sweeper makes of these overrides; None where that cannot be told beforehand."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        return math.prod(len(list(o.sweep_string_iterator())) for o in parsed if o.is_sweep_override())
    except Exception:  # glob() needs the configuration's files; a count is not worth an error
        return None


def _expected_jobs(config: DictConfig) -> int | None:
    trials = OmegaConf.select(config, "hydra.sweeper.n_trials")  # Optuna
    if trials is not None:
        return int(trials)
    if "basic_sweeper" not in str(OmegaConf.select(config, "hydra.sweeper._target_")):
        return None
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return count_jobs([f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task))


class SweepReport(Callback):
    """Header lines and the closing table of a sweep; nothing in a single run."""

    def __init__(self):
        self.directory: Path | None = None
        self.n_jobs: int | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global _open
        self.directory = Path(str(config.hydra.sweep.dir)).resolve()
        self.n_jobs = _expected_jobs(config)
        self.directory.mkdir(parents=True, exist_ok=True)  # a study's database is opened before the first job
        shutil.rmtree(self.directory / _RECORDS, ignore_errors=True)  # of an earlier sweep that was killed
        _open = self

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or self.directory is None:
            return
        number, directory = int(config.hydra.job.num) + 1, Path(config.hydra.runtime.output_dir)
        overrides = list(config.hydra.overrides.task)
        total = "" if self.n_jobs is None else f"/{self.n_jobs}"
        print(f"[{number}{total}] {' '.join(overrides) or 'no overrides'} -> {shortest(directory)}", flush=True)
        from connector.files import write_json  # here and below: --help answers without waiting for torch

        record = {"job": number, "overrides": overrides, "directory": str(directory), "state": _NOT_ENDED}
        write_json(self._record(number), record)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or self.directory is None:
            return
        from connector.files import write_json

        file = self._record(int(config.hydra.job.num) + 1)
        # The property return_value raises what the job raised, and prints.
        value = job_return._return_value
        error = value if isinstance(value, BaseException) else None
        write_json(file, json.loads(file.read_text()) | {"state": end_state(error)})

    def _record(self, number: int) -> Path:
        return self.directory / _RECORDS / f"{number:05d}.json"

    def jobs(self) -> list[dict[str, Any]]:
        """The records of the jobs so far, each with the metrics in its directory."""
        from connector.runs.store import RunStore

        found = []
        for file in sorted((self.directory / _RECORDS).glob("*.json")):
            job = json.loads(file.read_text())
            # A job that failed may stand where an earlier one had finished: those metrics are not its own.
            job["metrics"] = RunStore(job["directory"]).metrics() if job["state"] == "done" else {}
            found.append(job)
        return found


def sweep_directory() -> Path | None:
    """Of the sweep that this process started, while it is open."""
    return None if _open is None else _open.directory


def abandon_sweep() -> None:
    """Leave nothing of a sweep whose first job has not begun."""
    if _open is not None and _open.directory is not None:
        shutil.rmtree(_open.directory / _RECORDS, ignore_errors=True)
        for path in (*_open.directory.glob("*"), _open.directory):
            with contextlib.suppress(OSError):  # what is not empty stays
                path.rmdir()


def close_sweep(console: Console | None = None) -> bool:
    """Print and write the table of the sweep that this process started, if there is one and it is still open.

    Returns:
        whether any job of it failed.

    For the command line to call: Hydra calls its callbacks' on_multirun_end only where every job ended well.
    """
    global _open
    sweep, _open = _open, None
    if sweep is None:
        return False
    from connector.files import csv_text, write_text

    jobs = sweep.jobs()
    shutil.rmtree(sweep.directory / _RECORDS, ignore_errors=True)
    if not jobs:
        return False
    measures = sorted({key for job in jobs for key in job["metrics"]})
    rows = [
        [job["job"], " ".join(job["overrides"]), job["directory"], job["state"]]
        + [job["metrics"].get(key, "") for key in measures]
        for job in jobs
    ]
    write_text(sweep.directory / "jobs.csv", csv_text(["job", "overrides", "directory", "state", *measures], rows))
    console = console or wide_console()
    shared = shared_overrides(jobs)
    if shared:
        console.print(f"All jobs: {' '.join(shared)}", soft_wrap=True, highlight=False, markup=False)
    console.print(_table(jobs, shared))
    done = sum(job["state"] == "done" for job in jobs)
    line = f"Sweep: {done} of {len(jobs)} jobs done"
    if sweep.n_jobs is not None and sweep.n_jobs > len(jobs):
        line += f", {sweep.n_jobs - len(jobs)} never started"
    console.print(f"{line}; {shortest(sweep.directory / 'jobs.csv')}", soft_wrap=True, highlight=False, markup=False)
    return done < len(jobs)


def shared_overrides(jobs: list[dict[str, Any]]) -> list[str]:
    """Overrides that all of several jobs have, which tell none of them from another."""
    if len(jobs) < 2:
        return []
    return [override for override in jobs[0]["overrides"] if all(override in job["overrides"] for job in jobs)]


def _table(jobs: list[dict[str, Any]], shared: list[str]) -> Table:
    shown = [key for key in MAIN_METRICS if any(key in job["metrics"] for job in jobs)][:_SHOWN]
    measures = [Column(key.split("/")[1].replace("_", " "), justify="right") for key in shown]
    table = Table(
        Column("job", justify="right"), Column("overrides", overflow="fold"), *measures,
        Column("state", overflow="fold"), show_edge=False, pad_edge=False,
    )  # fmt: skip
    for job in jobs:
        values = [f"{job['metrics'][key]:.4g}" if key in job["metrics"] else "" for key in shown]
        own = " ".join(override for override in job["overrides"] if override not in shared)
        text = [escape(cell) for cell in (own, job["state"])]
        table.add_row(str(job["job"]), text[0], *values, text[1])
    return table
