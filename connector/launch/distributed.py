"""Distributed launches under Hydra: what the processes that Lightning starts should run, and what they leave behind.

Lightning starts the other ranks of a node by running the command line again. In a sweep that command line is the
whole sweep, so that every rank would start it anew. Here the other ranks run one job: the configuration's name, the
options of this very job, its absolute run directory, single-run mode.

The processes of a job end together: another rank ends with the first (:func:`connector.interruption.end_with`), and where
another rank is lost the first says so and fails, while it waits for them to join as well as later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from connector import interruption
from connector.errors import RunFailure, end_state, process_end
from connector.runs.naming import conf_directory

_SCRIPT = conf_directory().parent / "train.py"
# Of a checkout the script, which runs without installing; else the installed package, whatever the directory holds.
ENTRY = [str(_SCRIPT)] if _SCRIPT.exists() else ["-P", "-m", "connector"]
_RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
_LOOK_EVERY_S = 0.2
_GRACE_S = 5.0


def job_command(local_rank: int) -> tuple[Sequence[str], str]:
    """The command line and working directory of another rank of the job that is running."""
    hydra = HydraConfig.get()
    command = [sys.executable, *ENTRY, "--config-name", hydra.job.config_name]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            command += ["--config-dir", source.path]
    command += list(hydra.overrides.task)
    output = str(Path(hydra.runtime.output_dir).resolve()).replace("\\", "\\\\").replace("'", "\\'")
    command += [
        f"hydra.run.dir='{output}'",
        "hydra.mode=RUN",
        "hydra.output_subdir=null",
        f"hydra.job.name=rank_{local_rank}",
    ]
    return command, hydra.runtime.cwd


def devices_of_job(accelerator: str, devices: Any, job_number: int | None) -> Any:
    """``trainer.devices`` of a job of a sweep: with one GPU a job and several visible, jobs side by side take turns.

    Args:
        job_number: of the job in its sweep, from 0; None outside sweeps.
    """
    visible = torch.cuda.device_count() if accelerator in ("gpu", "auto") else 0
    return [job_number % visible] if devices == 1 and visible > 1 and job_number is not None else devices


def install_job_command() -> None:
    """Make both Lightning packages start other ranks with :func:`job_command`, and watch them as is done here."""
    import lightning_fabric.strategies.launchers.subprocess_script as fabric
    import pytorch_lightning.strategies.launchers.subprocess_script as lightning

    for module in (fabric, lightning):
        if not hasattr(module, "_hydra_subprocess_cmd"):  # pragma: no cover
            raise RuntimeError(f"{module.__name__} no longer starts ranks through _hydra_subprocess_cmd")
        module._hydra_subprocess_cmd = job_command
    launcher = lightning._SubprocessScriptLauncher
    if not hasattr(launcher._call_children_scripts, "of_connector"):
        launcher._call_children_scripts = _starting(launcher._call_children_scripts)
    lightning._launch_process_observer = watch  # Lightning's own kills this process without a word


def _starting(start: Callable[[Any], None]) -> Callable[[Any], None]:
    """Lightning's start of the other ranks, and then a wait in which the loss of one is seen."""

    def started(launcher: Any) -> None:
        with tempfile.TemporaryDirectory() as ready:
            os.environ |= {interruption.PARENT: str(os.getpid()), interruption.READY: ready}
            try:
                start(launcher)
            finally:
                for name in (interruption.PARENT, interruption.READY):
                    os.environ.pop(name, None)
            try:
                _wait_until_ready(launcher.procs, Path(ready))
            except BaseException:
                _end(launcher.procs)
                raise

    started.of_connector = True
    return started


def _wait_until_ready(processes: Sequence[subprocess.Popen], ready: Path) -> None:
    for rank, process in enumerate(processes, 1):
        while not (ready / str(rank)).exists():
            if process.poll() is not None:
                raise _lost(rank, process, "before it had joined")
            time.sleep(_LOOK_EVERY_S)


def _lost(rank: int, process: subprocess.Popen, when: str) -> RunFailure:
    remedy = "the same command resumes from the last checkpoint; memory may have run out, if nothing else ended it"
    return RunFailure(
        "training",
        f"process {process.pid}, rank {rank} of the job, ended {when} ({process_end(process.returncode)})",
        remedy,
    )


class _Watch(threading.Thread):
    """Sees to it that the loss of another rank ends this process's training, too.

    Where it waits for the lost one, gloo fails by itself; else the failure is raised in the main thread; where that sits
    in a call of C, this process is ended.
    """

    def __init__(self, processes: Sequence[subprocess.Popen]):
        super().__init__(daemon=True, name="watches the other ranks")
        self.processes, self.over, self.failure = processes, threading.Event(), None

    def run(self) -> None:
        while not self.over.wait(_LOOK_EVERY_S):
            lost = [(rank, p) for rank, p in enumerate(self.processes, 1) if p.poll()]
            if lost:
                self.failure = _lost(*lost[0], "early")
                return self._end_training()

    def _end_training(self) -> None:
        _end(self.processes)
        if self.over.wait(_GRACE_S):
            return
        main = ctypes.c_ulong(threading.main_thread().ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(RankLost))
        if not self.over.wait(_GRACE_S):
            print(f"Error: {self.failure}", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                _note(end_state(self.failure))
            os._exit(1)


class RankLost(Exception):
    """Raised in the main thread when another rank is lost."""


_watch: _Watch | None = None
_note: Callable[[str], None] = str  # how the run directory is told what ended the job


def watch(processes: Sequence[subprocess.Popen]) -> None:
    """Watch the other ranks of a job, until :func:`leave_process_group`."""
    global _watch
    _watch = _Watch(processes)
    _watch.start()


def tell(note: Callable[[str], None]) -> None:
    """Have ``note`` called with what ended the job, where this process is ended by the loss of another."""
    global _note
    _note = note


def stop_watching() -> None:
    """The stages are trained: the other ranks are no longer needed."""
    if _watch is not None:
        _watch.over.set()


def lost_rank() -> RunFailure | None:
    """Why the training failed, where that is the loss of another rank; from now on it is for the caller to end the job."""
    if _watch is None or _watch.over.is_set():
        return None
    if _watch.failure is None:  # gloo may be quicker than the watch
        _watch.join(3 * _LOOK_EVERY_S)
    if _watch.failure is not None:
        _watch.over.set()
    return _watch.failure


def _end(processes: Sequence[subprocess.Popen], within_s: float = 0.0) -> None:
    """Wait for processes, kill those that are there after so many seconds."""
    until = time.monotonic() + within_s
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def leave_process_group(before: dict[str, str | None], failed: bool = False) -> None:
    """Undo what a distributed job left in this process, and its other processes, so that the next job starts clean.

    Args:
        before: the rank variables as :func:`rank_variables` saw them before the job.
        failed: the others wait for this process, in vain.
    """
    global _watch
    left, _watch = _watch, None
    if left is not None:
        left.over.set()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if left is not None:
        _end(left.processes, 0.0 if failed else _GRACE_S)


def wait_for_all_ranks() -> None:
    """Return when all ranks of a distributed job are here; at once where there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def rank_variables() -> dict[str, str | None]:
    """The environment variables by which ranks find each other, as they are now."""
    return {name: os.environ.get(name) for name in _RANK_VARIABLES}
