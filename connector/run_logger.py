"""Weights & Biases: one run a job for all its stages, finished with the right exit code whatever happens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from connector.config import STAGES, LoggerOptions


def _has_account() -> bool:
    """True where an API key is set up, so that logging online can work."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.Api().api_key)
    except Exception:  # the call raises where there is no key; which error depends on the version
        return False


class StageLogger(WandbLogger):
    """Writes one stage's metrics against that stage's own step axis."""

    def __init__(self, stage: str, run: Any):
        super().__init__(experiment=run, log_model=False)
        self.stage = stage

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's configuration is Hydra's, nested, and holds all that a module was given."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        self.experiment.log({**values, f"{self.stage}/step": step})


class WandbRun:
    """The W&B run of a job.

    Args:
        options: the logger's options; name: of the run; group: of the sweep or experiment; job_type: the data set.
        config: the resolved configuration, nested as in Hydra.
        directory: the run directory, named in the W&B configuration so that each finds the other.
    """

    def __init__(self, options: LoggerOptions, *, name: str, group: str, job_type: str, config: dict, directory: Path):
        mode = options.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        Path(options.save_dir).mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=name,
            group=options.group or group,
            job_type=job_type,
            tags=sorted({*options.tags, job_type}),
            dir=options.save_dir,
            mode=mode,
            config={**config, "run_directory": str(directory)},
            settings=wandb.Settings(silent=True),
            reinit="finish_previous",
        )
        self.where = f"W&B, {mode}"
        if mode == "offline":
            self.where += f": {Path(self.run.dir).parent} (send it with `wandb sync`)"
        elif mode == "online":
            self.where += f": {self.run.url}"
        for stage in STAGES:
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.run.define_metric(f"{stage}/val_loss", step_metric=f"{stage}/step", summary="min")

    def for_stage(self, stage: str) -> StageLogger:
        return StageLogger(stage, self.run)

    def log_results(self, metrics: Mapping[str, float], figures: Mapping[str, Path], files: Mapping[str, Path]) -> None:
        """Final metrics into the summary, figures as images, files as one artifact each."""
        self.run.summary.update(dict(metrics))
        self.run.log({f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items()})
        for kind, path in files.items():
            artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
            artifact.add_file(str(path))
            self.run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)


class NoRun:
    """Stands where no W&B run is wanted, and on all ranks but the first."""

    def for_stage(self, stage: str) -> bool:
        return False

    def log_results(self, *_: Any, **__: Any) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        pass
