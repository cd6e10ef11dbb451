"""What a sweep says: a line for each job when it ends, at the end one table of all jobs, and the same as jobs.csv.

A Hydra callback (conf/train.yaml names it). Jobs may run in processes of their own, as the joblib launcher has them:
each leaves a small record in the sweep's directory when it starts and when it ends, and the process that started the
sweep reads the records, and the metrics from the jobs' directories. Several sweeps may share a directory, one after the
other or at a time: each keeps its records to itself, and jobs.csv has the jobs of all. What a sweep that was killed has
left, the next one there puts into jobs.csv.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from connector import memo
from connector.errors import PRUNED, UserError, end_state, unwritable
from connector.report.glossary import MAIN_METRICS
from connector.report.numbers import format_number
from connector.runs.lock import locked
from connector.terminal import shortest, wide_console

_SHOWN = 5  # main measures in the table; jobs.csv holds all
RECORDS = ".jobs"
_MOST_SHARED_GB = 4.0
_NOT_ENDED = "ended early"  # interrupted or killed: whatever left no word of how it ended

_open: SweepReport | None = None  # of the sweep that this process started
_swept: dict[str, str] = {}  # by the job that this process runs
_alive = contextlib.ExitStack()  # holds the lock of its records, by which others know that it is under way


class Refused(BaseException):
    """A sweep that cannot be meant. No Exception: Hydra turns what a callback raises into a warning and goes on.

    Attributes:
        error: the UserError, or failure, to end with.
    """

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


def sweep_id() -> str:
    """Of the sweep that this process started; its records lie in a directory of that name while it is under way."""
    return "" if _open is None else _open.id


def expect_jobs(number: int | None) -> None:
    """How many jobs the sweep that this process started will have, where its sweeper knows; None: that is open."""
    if _open is not None:
        _open.n_jobs = number


def share_memory() -> None:
    """Let the jobs of this process keep more for one another, where the machine has it."""
    from connector.files import memory_left_gb

    memo.share(int(1e9 * min(_MOST_SHARED_GB, memory_left_gb() / 4)))


def swept_here() -> dict[str, str]:
    """The options that the sweep varies, with the values of the job that this process runs."""
    return dict(_swept)


def _parsed(overrides: list[str]) -> list[Any]:
    """Overrides as Hydra's own sweeper reads them; glob() asks for the configuration's files."""
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None
    return OverridesParser.create(config_loader=loader).parse_overrides(overrides)


def count_jobs(overrides: list[str]) -> int | None:
    """Jobs that Hydra's own sweeper makes of these overrides; None where that cannot be told beforehand."""
    try:
        return math.prod(len(list(o.sweep_string_iterator())) for o in _parsed(overrides) if o.is_sweep_override())
    except Exception:  # said by the sweeper; a count is not worth an error
        return None


def _typed(config: DictConfig) -> list[str]:
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)


def swept_keys(overrides: list[str]) -> list[str]:
    """Keys of the options that a sweep varies, in the order in which they were typed."""
    with contextlib.suppress(Exception):
        return list(
            dict.fromkeys(o.get_key_element().lstrip("+~") for o in _parsed(overrides) if o.is_sweep_override())
        )
    return []


def _expected_jobs(config: DictConfig) -> int | None:
    trials = OmegaConf.select(config, "hydra.sweeper.n_trials")  # Optuna
    if trials is not None:
        return int(trials)
    if "basic_sweeper" not in str(OmegaConf.select(config, "hydra.sweeper._target_")):
        return None
    return count_jobs(_typed(config))


def optimizes(sweeper: Any) -> bool:
    """Whether a sweeper, by its ``_target_``, chooses its jobs by the value that the earlier ones have returned."""
    return any(name in str(sweeper).lower() for name in ("optuna", "nevergrad", "ax_sweeper", "study"))


def _require_sense(config: DictConfig, subdirectory: str, n_jobs: int | None) -> None:
    """Raises Refused where nothing would be run, or all of it for nothing."""
    if n_jobs == 0:
        empty = [key for key in swept_keys(_typed(config)) or ["hydra.sweeper.n_trials"]]
        got = f"none: there is no value for {' or '.join(empty)}"
        remedy = (
            "range() leaves out its end, glob() looks for names of configuration files; --cfg job shows what is typed"
        )
        raise Refused(UserError("a sweep of one job or more", got, remedy))
    if n_jobs is not None and n_jobs > 1 and "${" not in subdirectory:
        got = f"hydra.sweep.subdir={subdirectory} for all {n_jobs}"
        raise Refused(UserError("a directory for each job of a sweep", got, "leave out hydra.sweep.subdir"))
    stages = config.get("stages", "auto")
    if optimizes(OmegaConf.select(config, "hydra.sweeper._target_")) and stages != "auto" and "outputs" not in stages:
        remedy = "leave out `stages`: what a study minimises is measured of the connectivity"
        raise Refused(UserError("the stage outputs in a study", f"stages={stages}", remedy))


def _claimed(directory: Path) -> Path:
    """A directory that no other sweep has, made: the one of the date and time, or numbered where two began in a second."""
    for number in itertools.count(1):
        path = directory if number == 1 else directory.with_name(f"{directory.name}_{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError


def _change(config: DictConfig, key: str, value: str) -> None:
    """An option of Hydra's, for this process and for the jobs, which compose their configuration anew."""
    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config, key, value)
        config.hydra.overrides.hydra.append(f"{key}='{value}'")


class SweepReport(Callback):
    """Header lines and the closing table of a sweep; nothing in a single run."""

    def __init__(self):
        self.directory: Path | None = None
        self.n_jobs: int | None = None
        self.id = ""
        self._started, self._swept = 0.0, []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            self._begin(config)
        except OSError as error:
            told = unwritable(error, "hydra.sweep.dir=DIR")
            if told is None:
                raise
            raise Refused(told) from error

    def _begin(self, config: DictConfig) -> None:
        global _open
        settings = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        self.n_jobs = _expected_jobs(config)
        _require_sense(config, str(settings.get("subdir", "${}")), self.n_jobs)
        if "JoblibLauncher" in str(OmegaConf.select(config, "hydra.launcher._target_")):
            _change(config, "hydra.launcher._target_", "hydra_plugins.connector_side_by_side.SideBySideLauncher")
        chosen = Path(str(config.hydra.sweep.dir))
        if "${now:" in str(settings["dir"]):
            claimed = _claimed(chosen)
            if claimed != chosen:
                _change(config, "hydra.sweep.dir", str(claimed))
        self._swept = swept_keys(_typed(config))
        swept = " ".join(key for key in self._swept if re.fullmatch(r"[\w./@-]+", key))
        if swept and "sweep_directory:" in str(settings.get("subdir")):
            arguments = f'${{hydra.runtime.choices}},${{hydra.overrides.task}},"{swept}",${{hydra.sweep.dir}}'
            _change(config, "hydra.sweep.subdir", f"${{sweep_directory:{arguments}}}")
        self.directory = Path(str(config.hydra.sweep.dir)).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)  # a study's database is opened before the first job
        self.id = f"{time.time_ns():x}-{os.getpid()}"
        records = self.directory / RECORDS / self.id
        records.mkdir(parents=True)
        memo.share()
        _alive.enter_context(locked(records))
        _put_aside(self.directory / "multirun.yaml")  # of an earlier sweep here: the sweeper writes its own
        _gather(self.directory)
        _open = self

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or self.directory is None:
            return
        number, directory = int(config.hydra.job.num) + 1, Path(config.hydra.runtime.output_dir)
        overrides = list(config.hydra.overrides.task)
        self._started = time.monotonic()
        _swept.clear()
        _swept.update(self._own(overrides))
        if _open is self:  # processes beside this one have memory of their own
            share_memory()
        if config.get("verbose"):
            print(self._head(number, overrides, directory), flush=True)
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
        record = json.loads(file.read_text()) | {"state": end_state(error)}
        write_json(file, record)
        directory = Path(record["directory"])
        head = self._head(record["job"], record["overrides"], directory)
        seconds = time.monotonic() - self._started
        print(f"{head}: {_reached(record['state'], directory, seconds)}", flush=True)

    def _head(self, number: int, overrides: list[str], directory: Path) -> str:
        total = "" if self.n_jobs is None else f"/{self.n_jobs}"
        own = [f"{key}={value}" for key, value in self._own(overrides).items()]
        return f"[{number}{total}] {' '.join(own or overrides) or 'no overrides'} -> {shortest(directory)}"

    def _own(self, overrides: list[str]) -> dict[str, str]:
        """Those that the sweep varies, key -> value as typed."""
        parts = (override.partition("=") for override in overrides)
        return {key.lstrip("+~"): value for key, _, value in parts if key.lstrip("+~") in self._swept}

    def _record(self, number: int) -> Path:
        return self.directory / RECORDS / self.id / f"{number:05d}.json"

    def jobs(self) -> list[dict[str, Any]]:
        """The records of the jobs so far, each with the metrics in its directory."""
        return _jobs_of(self.directory / RECORDS / self.id)


def _jobs_of(records: Path) -> list[dict[str, Any]]:
    from connector.runs.store import RunStore

    found = []
    for file in sorted(records.glob("*.json")):
        try:
            job = json.loads(file.read_text())
            # A job that failed may stand where an earlier one had finished: those metrics are not its own.
            job["metrics"] = RunStore(job["directory"]).metrics() if job["state"] == "done" else {}
        except (OSError, ValueError, KeyError, TypeError, UserError):  # a damaged record, or directory, tells nothing
            continue
        found.append(job)
    return found


def _reached(state: str, directory: Path, seconds: float) -> str:
    """How a job ended, in a line: its seconds, main measures and cautions."""
    if state != "done":
        return state
    from connector.launch.finished import in_a_line, was_passed
    from connector.runs.store import RESULTS, RunStore

    how = "finished earlier" if was_passed(directory) else f"done in {seconds:.0f} s"
    try:
        store = RunStore(directory)
        reached = in_a_line(store.metrics(), store.stages().get(RESULTS, {}).get("cautions", ()))
    except (OSError, ValueError, KeyError, UserError):  # a damaged directory tells nothing
        reached = ""
    return f"{how}; {reached}" if reached else how


def _gather(directory: Path) -> None:
    """Put the records of sweeps that were killed in this directory into jobs.csv, and remove them."""
    for records in [*(directory / RECORDS).iterdir(), directory / RECORDS]:
        if any(records.glob("*.json")):
            with contextlib.suppress(UserError), locked(records):  # held by a sweep that is under way
                _add_to_table(directory, _jobs_of(records))
                for file in records.glob("*.json"):
                    file.unlink(missing_ok=True)
        if records.name != RECORDS:
            with contextlib.suppress(OSError):
                records.rmdir()


def _put_aside(file: Path) -> None:
    if file.exists():
        numbered = (file.with_name(f"{file.stem}.{number}{file.suffix}") for number in itertools.count(1))
        file.rename(next(path for path in numbered if not path.exists()))


def _add_to_table(directory: Path, jobs: list[dict[str, Any]]) -> None:
    """jobs.csv: these jobs first, numbered as they were said; then those of other sweeps in other directories."""
    from filelock import FileLock

    from connector.files import csv_text, write_text

    file, about = directory / "jobs.csv", ["job", "overrides", "directory", "state"]
    rows = [
        {
            "job": job["job"],
            "overrides": " ".join(job["overrides"]),
            "directory": job["directory"],
            "state": job["state"],
        }
        | job["metrics"]
        for job in jobs
    ]
    own = {row["directory"] for row in rows}
    with FileLock(directory / RECORDS / ".table", timeout=60):
        earlier = []
        if file.exists():
            with file.open(newline="", encoding="utf-8") as handle:
                earlier = [row for row in csv.DictReader(handle) if row.get("directory") not in own]
        last = max((int(row["job"]) for row in rows), default=0)
        rows += [row | {"job": last + number} for number, row in enumerate(earlier, 1)]
        measures = sorted({key for row in rows for key in row if key is not None} - {*about})
        header = [*about, *measures]
        write_text(file, csv_text(header, [[row.get(key, "") for key in header] for row in rows]))


def sweep_directory() -> Path | None:
    """Of the sweep that this process started, while it is open."""
    return None if _open is None else _open.directory


def _remove_records(sweep: SweepReport) -> None:
    """Those of this sweep; others in the same directory may be under way."""
    records = sweep.directory / RECORDS
    shutil.rmtree(records / sweep.id, ignore_errors=True)
    with contextlib.suppress(OSError):
        (records / ".table").unlink(missing_ok=True)
        records.rmdir()


def abandon_sweep() -> None:
    """Leave nothing of a sweep whose first job has not begun."""
    if _open is not None and _open.directory is not None:
        _remove_records(_open)
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
    jobs = sweep.jobs()
    if jobs:
        _add_to_table(sweep.directory, jobs)
    memo.share(0)
    _alive.close()
    _remove_records(sweep)
    with contextlib.suppress(OSError):  # an empty one
        sweep.directory.rmdir()
    if not jobs:
        return False
    console = console or wide_console()
    shared = shared_overrides(jobs)
    if shared:
        console.print(f"All jobs: {' '.join(shared)}", soft_wrap=True, highlight=False, markup=False)
    console.print(_table(jobs, shared))
    done, pruned = (sum(job["state"].startswith(state) for job in jobs) for state in ("done", PRUNED))
    line = f"Sweep: {done} of {len(jobs)} jobs done" + (f", {pruned} pruned" if pruned else "")
    if sweep.n_jobs is not None and sweep.n_jobs > len(jobs):
        line += f", {sweep.n_jobs - len(jobs)} never started"
    console.print(f"{line}; {shortest(sweep.directory / 'jobs.csv')}", soft_wrap=True, highlight=False, markup=False)
    return done + pruned < len(jobs)


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
        values = [format_number(job["metrics"][key]) if key in job["metrics"] else "" for key in shown]
        own = " ".join(override for override in job["overrides"] if override not in shared)
        text = [escape(cell) for cell in (own, job["state"])]
        table.add_row(str(job["job"]), text[0], *values, text[1])
    return table
