"""Hydra launcher `ensemble`: the jobs of a sweep in this process, their flows trained as one batched computation.

Hydra looks for plugins in packages of the name hydra_plugins along the path, which train.py extends to this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
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


def _checked_side_by_side(n_jobs: int) -> type[Launcher] | None:
    """The launcher of jobs side by side, or None for one job at a time; n_jobs is refused before any job is reached."""
    from connector.errors import UserError

    if not isinstance(n_jobs, int) or (n_jobs < 1 and n_jobs != -1):
        expected = "a number of jobs from 1, or -1 for one on each core, as hydra.launcher.n_jobs"
        raise CompactHydraException(str(UserError(expected, str(n_jobs))))
    if n_jobs == 1:
        return None
    from hydra_plugins.connector_side_by_side import SideBySideLauncher

    return SideBySideLauncher


class EnsembleLauncher(BasicLauncher):
    """Trains the stages of all jobs together, then runs each job, which finds its stages finished.

    Args:
        n_jobs: jobs that run side by side then, in processes of their own; 1: one after the other, in this process.
    """

    def __init__(self, n_jobs: int = 1):
        super().__init__()
        self.n_jobs = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra imports plugins for every command line, --help among them: torch only where it is needed.
        from rich.console import Console

        from connector import interruption
        from connector.errors import UserError
        from connector.launch.ensemble import train_together
        from connector.runs.options import checked

        interruption.imported()
        launcher_of_jobs = _checked_side_by_side(self.n_jobs)
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
        read = train_together(jobs, Console())
        if launcher_of_jobs is None:
            run = self.task_function
            self.task_function = lambda config: run(
                config, read.pop(Path(HydraConfig.get().runtime.output_dir).resolve(), None)
            )
            return super().launch(kept, initial_job_idx)
        side_by_side = launcher_of_jobs(n_jobs=self.n_jobs)
        side_by_side.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
        return side_by_side.launch(kept, initial_job_idx)
