"""Hydra launcher `joblib`: the jobs of a sweep side by side on this machine, in the place of joblib's own.

joblib's ends all jobs when the process of one is killed, and leaves its processes where it is killed itself. Where it is
installed its options are known to Hydra under that name; :mod:`connector.launch.sweep` then puts this launcher in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_NODE = {"_target_": "hydra_plugins.connector_side_by_side.SideBySideLauncher", "n_jobs": -1}
ConfigStore.instance().store(group="hydra/launcher", name="joblib", node=_NODE, provider="connector")


class SideBySideLauncher(Launcher):
    """Runs jobs in processes of their own.

    Args:
        n_jobs: at a time; -1: one on each core.
        of_joblib: what else joblib's launcher takes; without meaning here.
    """

    def __init__(self, n_jobs: int = -1, **of_joblib: Any):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from connector import interruption
        from connector.errors import UserError
        from connector.launch.side_by_side import number_of, side_by_side, sweep_job

        if not isinstance(self.n_jobs, int) or self.n_jobs == 0:
            expected = "a number of jobs from 1, or -1 for one on each core, as hydra.launcher.n_jobs"
            raise CompactHydraException(str(UserError(expected, str(self.n_jobs))))
        interruption.imported()
        state, context, function = Singleton.get_state(), self.hydra_context, self.task_function
        calls = [
            partial(sweep_job, context, self.config, function, state, initial_job_idx + number, list(overrides))
            for number, overrides in enumerate(job_overrides)
        ]
        found = side_by_side(number_of(self.n_jobs), calls)
        return [
            job
            if isinstance(job, JobReturn)
            else JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=job)
            for job, overrides in zip(found, job_overrides)
        ]
