"""Does a sweep survive being killed, under every launcher? Starts one, kills it half-way, starts it again, and compares
each run's metrics.json with what its W&B runs, logged offline, say.

    python experiments/launchers.py --out launchers                # 2 experiments x 2 seeds, two processes a job
    python experiments/launchers.py --out launchers --launchers basic,joblib --devices 1

For each launcher: as soon as a first job has finished, everything the sweep has started is killed. Started again, the
sweep must run the other jobs and leave the finished ones as they are, and end with one run directory and one W&B run a
job, each W&B run's summary being its directory's metrics. Exit code 1 where it does not. Small sizes: what is tested
are launchers, not fits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from connector.errors import UserError
from connector.runs.store import RunStore

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"],
    "ensemble": ["hydra/launcher=ensemble"],
}
SMALL = [
    "data.n_neurons=100", "data.n_grid=6", "data.n_steps=40", "connectivity.loadings_epochs=10",
    "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=512", "connectivity.early_stopping=false",
    "trainer.threads=1", "trainer.progress=false", "report=false", "logger=wandb", "logger.mode=offline",
]  # fmt: skip


class OfflineRun(NamedTuple):
    """What one log of an offline W&B run says; a run that was interrupted and went on has several of one ``id``."""

    id: str
    name: str
    directory: str
    exit_code: int | None  # None: the log ends without
    history: list[dict]
    summary: dict


def read_offline(log: Path) -> OfflineRun:
    """Reads a transaction log (run-ID.wandb) by W&B's own reader, as far as it is whole."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    about, exit_code, history, summary = {}, None, [], {}
    for line in lines:
        record = json.loads(line) if line.startswith("{") else {}
        kind = record.get("type")
        if kind == "run":
            about = record["run"]
        elif kind == "exit":
            exit_code = record["exit"].get("exit_code", 0)
        elif kind == "history":
            history.append(record["history"]["item"])
        elif kind == "summary":
            summary |= record["summary"].get("update", {})
    directory = about.get("config", {}).get("update", {}).get("run_directory", "")
    return OfflineRun(about.get("run_id", ""), about.get("display_name", ""), directory, exit_code, history, summary)


def offline_logs(folder: Path) -> list[Path]:
    """Logs of offline runs in a W&B directory, in the order of their start."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name)


def finished(sweep: Path) -> dict[str, float]:
    """Run directories of a sweep whose results are complete -> when their metrics were written."""
    found = {}
    for metrics in sweep.glob("*/metrics.json"):
        with contextlib.suppress(UserError, OSError, ValueError):  # being written
            if "results" in RunStore(metrics.parent).stages():
                found[metrics.parent.name] = metrics.stat().st_mtime
    return found


def _descendants(pid: int) -> list[int]:
    """Processes that a process has started, and theirs (Linux)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def kill_when_one_is_finished(process: subprocess.Popen, sweep: Path, limit_s: float = 3600) -> None:
    """SIGKILL to everything that the sweep has started, as soon as one of its jobs has finished."""
    started = time.monotonic()
    while not finished(sweep):
        if process.poll() is not None or time.monotonic() - started > limit_s:
            raise SystemExit(f"{sweep.name} ended, or took over {limit_s:g} s, before a first job had finished")
        time.sleep(0.2)
    for pid in [*_descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def problems_of(sweep: Path, n_jobs: int, before: dict[str, float], logs_before: Sequence[Path]) -> list[str]:
    """What is not as it should be after the second start; empty where all is well."""
    said = []
    after, logs = finished(sweep), [read_offline(log) for log in offline_logs(sweep)]
    if len(after) != n_jobs:
        said.append(f"{len(after)} finished runs instead of {n_jobs}")
    if any(after.get(name) != written for name, written in before.items()):
        said.append("a job that had finished ran again")
    new = [read_offline(log) for log in offline_logs(sweep) if log not in logs_before]
    again = {Path(run.directory).name for run in new} & set(before)
    if again:
        said.append(f"a finished job was logged again: {', '.join(sorted(again))}")
    ids = {run.id for run in logs}
    if len(ids) != n_jobs:
        said.append(f"{len(ids)} W&B runs instead of {n_jobs}")
    for directory in (sweep / name for name in after):
        metrics = json.loads((directory / "metrics.json").read_text())
        of_it = [run for run in logs if Path(run.directory) == directory]
        if not of_it or of_it[-1].exit_code != 0:
            said.append(f"{directory.name}: its W&B run has not ended with exit code 0")
            continue
        logged = {key: value for key, value in of_it[-1].summary.items() if key in metrics}
        wrong = [key for key in metrics if key not in logged or abs(logged[key] - metrics[key]) > 1e-9]
        if wrong:
            said.append(f"{directory.name}: other values in W&B: {', '.join(wrong)}")
        if len({run.id for run in of_it}) != 1:
            said.append(f"{directory.name}: several W&B runs")
    return said


def check(launcher: str, out: Path, options: Sequence[str], n_jobs: int) -> list[str]:
    """Sweep, kill, sweep again; what is not as it should be."""
    sweep = out.resolve() / launcher
    command = [sys.executable, "train.py", "-m", *LAUNCHERS[launcher], *SMALL, *options]
    command += [f"hydra.sweep.dir={sweep}", f"logger.save_dir={sweep}"]
    sweep.mkdir(parents=True)
    with (sweep / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        kill_when_one_is_finished(first, sweep)
    before, logs = finished(sweep), offline_logs(sweep)
    print(f"{launcher}: killed with {len(before)} of {n_jobs} jobs finished", flush=True)
    started = time.monotonic()
    with (sweep / "second.log").open("w") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
    said = problems_of(sweep, n_jobs, before, logs)
    if code != 0:
        said.append(f"exit code {code}, see {sweep / 'second.log'}")
    after = finished(sweep)
    passed_over = sum(after.get(name) == written for name, written in before.items())
    runs = [read_offline(log) for log in offline_logs(sweep)]
    print(
        f"{launcher}: started again, {len(after)} runs, {len({run.id for run in runs})} W&B runs in {len(runs)} "
        f"logs, {passed_over} of them left as they were, {time.monotonic() - started:.0f} s: "
        + ("; ".join(said) or "all metrics read back from W&B are those of metrics.json"),
        flush=True,
    )
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a directory that does not exist")
    parser.add_argument(
        "--launchers", default="basic,joblib,submitit_local", help="comma-separated, of these and ensemble"
    )
    parser.add_argument("--experiments", default="quadstable,ring")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--devices", type=int, default=2, help="processes of each job (1: no ddp)")
    chosen = parser.parse_args(arguments)
    options = [f"experiment={chosen.experiments}", f"seed={chosen.seeds}"]
    if chosen.devices > 1:
        options += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={chosen.devices}"]
    n_jobs = len(chosen.experiments.split(",")) * len(chosen.seeds.split(","))
    unknown = set(chosen.launchers.split(",")) - LAUNCHERS.keys()
    if unknown or chosen.out.exists():
        print(f"Error: launchers among {', '.join(LAUNCHERS)}, and an --out that does not exist", file=sys.stderr)
        return 2
    said = [
        problem for launcher in chosen.launchers.split(",") for problem in check(launcher, chosen.out, options, n_jobs)
    ]
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
