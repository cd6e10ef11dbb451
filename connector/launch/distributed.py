"""Distributed launches under Hydra: what the processes that Lightning starts should run, and what they leave behind.

Lightning starts the other ranks of a node by running the command line again. In a sweep that command line is the
whole sweep, so that every rank would start it anew. Here the other ranks run one job: the configuration's name, the
options of this very job, its absolute run directory, single-run mode.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from connector.runs.naming import conf_directory

_SCRIPT = conf_directory().parent / "train.py"
# Of a checkout the script, which runs without installing; else the installed package, whatever the directory holds.
ENTRY = [str(_SCRIPT)] if _SCRIPT.exists() else ["-P", "-m", "connector"]
_RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


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
    """Make both Lightning packages start other ranks with :func:`job_command`."""
    import lightning_fabric.strategies.launchers.subprocess_script as fabric
    import pytorch_lightning.strategies.launchers.subprocess_script as lightning

    for module in (fabric, lightning):
        if not hasattr(module, "_hydra_subprocess_cmd"):  # pragma: no cover
            raise RuntimeError(f"{module.__name__} no longer starts ranks through _hydra_subprocess_cmd")
        module._hydra_subprocess_cmd = job_command


def leave_process_group(before: dict[str, str | None]) -> None:
    """Undo what a distributed job left in this process, so that the next job of a sweep starts clean.

    Args:
        before: the rank variables as :func:`rank_variables` saw them before the job.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def wait_for_all_ranks() -> None:
    """Return when all ranks of a distributed job are here; at once where there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def rank_variables() -> dict[str, str | None]:
    """The environment variables by which ranks find each other, as they are now."""
    return {name: os.environ.get(name) for name in _RANK_VARIABLES}
