"""Hydra launcher `ensemble`: the jobs of a sweep in this process, their flows trained as one batched computation.

Hydra looks for plugins in packages of the name hydra_plugins along the path, which train.py extends to this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException


def _without_hydra(config: DictConfig) -> DictConfig:
    """A job's own options, resolved: some are functions of Hydra's choices for this job."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        own = config.copy()
        with open_dict(own):
            del own["hydra"]
        return OmegaConf.create(OmegaConf.to_container(own, resolve=True))
    finally:
        HydraConfig.instance().cfg = before


class EnsembleLauncher(BasicLauncher):
    """Trains the stages of all jobs together, then runs each job, which finds its stages finished."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports plugins for every command line, --help among them: torch only where it is needed.
        from rich.console import Console

        from connector.config import checked
        from connector.ensemble import train_together
        from connector.errors import UserError

        jobs, kept = [], [list(overrides) for overrides in job_overrides]
        for number, overrides in enumerate(kept):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = initial_job_idx + number
            directory = Path(str(config.hydra.sweep.dir)).resolve() / str(config.hydra.sweep.subdir)
            try:
                options = checked(_without_hydra(config))
            except (UserError, OmegaConfBaseException):  # said by the job itself
                continue
            jobs.append((options, directory))
            if options.force:  # trained anew here, once
                overrides.append("force=false")
        train_together(jobs, Console())
        return super().launch(kept, initial_job_idx)
