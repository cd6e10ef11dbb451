"""Hydra sweeper `study`: a search over options with Optuna, whose trials are jobs of a launcher.

Hydra imports this file for every command line; Optuna is imported only where a study runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Asks for trials, launches their jobs and tells the study of their values; conf/hydra/sweeper/study.yaml has the options."""

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        from connector.errors import UserError
        from connector.launch.study import run_study
        from connector.launch.sweep import Refused

        try:
            run_study(self.config, self.launcher, self.hydra_context.config_loader, arguments)
        except UserError as error:  # of the study itself: those of jobs do not leave their launcher
            raise Refused(error) from error
