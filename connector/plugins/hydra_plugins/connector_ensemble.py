"""Hydra launcher `ensemble`: the jobs of a sweep in this process, their flows trained as one batched computation.

Hydra looks for plugins in packages of the name hydra_plugins along the path, which train.py extends to this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from omegaconf import open_dict


class EnsembleLauncher(BasicLauncher):
    """Trains the stages of all jobs together, then runs each job, which finds its stages finished."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports plugins for every command line, --help among them: torch only where it is needed.
        from rich.console import Console

        from connector.config import checked
        from connector.ensemble import train_together

        jobs, kept = [], [list(overrides) for overrides in job_overrides]
        for number, overrides in enumerate(kept):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = initial_job_idx + number
            directory = Path(str(config.hydra.sweep.dir)).resolve() / str(config.hydra.sweep.subdir)
            plain = config.copy()
            with open_dict(plain):
                del plain["hydra"]
            try:
                options = checked(plain)
            except Exception:  # said by the job itself
                continue
            jobs.append((options, directory))
            if options.force:  # trained anew here, once
                overrides.append("force=false")
        train_together(jobs, Console())
        return super().launch(kept, initial_job_idx)
