"""Hydra launcher `joblib`: the jobs of a sweep side by side on this machine, in the place of joblib's own.

joblib's ends all jobs when the process of one is killed, and leaves its processes where it is killed itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class SideBySideLauncher(Launcher):
    """Runs jobs in processes of their own.

    Args:
        n_jobs: at a time; -1: one on each core.
    """

    def __init__(self, n_jobs: int = -1):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from connector import interruption
        from connector.errors import UserError
        from connector.launch.side_by_side import number_of, side_by_side

        if not isinstance(self.n_jobs, int) or self.n_jobs == 0:
            expected = "a number of jobs from 1, or -1 for one on each core, as hydra.launcher.n_jobs"
            raise CompactHydraException(str(UserError(expected, str(self.n_jobs))))
        interruption.imported()
        state, context, function = Singleton.get_state(), self.hydra_context, self.task_function
        calls = [
            partial(_run, context, self.config, function, state, initial_job_idx + number, list(overrides))
            for number, overrides in enumerate(job_overrides)
        ]
        found = side_by_side(number_of(self.n_jobs), calls)
        lost = partial(JobReturn, status=JobStatus.FAILED)
        return [job if isinstance(job, JobReturn) else lost(_return_value=job) for job in found]


def _run(
    context: HydraContext,
    config: DictConfig,
    function: TaskFunction,
    state: dict[Any, Any],
    number: int,
    overrides: list,
) -> JobReturn:
    """One job, in its own process."""
    setup_globals()
    Singleton.set_state(state)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(job)
    return run_job(
        hydra_context=context,
        config=job,
        task_function=function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
