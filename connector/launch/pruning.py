"""Within a job of a study: its validation losses are reported, and a trial that is behind the others ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from connector.errors import Pruned, UserError
from connector.launch.study import StudyFile
from connector.report.numbers import format_number


class Reports(Callback):
    """Reports the monitored loss after each validation. Trainings of one stage are validated equally often, so that the
    number of the validation compares trials.

    Args:
        settings: of hydra/sweeper=study, with the job's ``trial`` and the ``monitor``.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.file, self.monitor, self.trial = StudyFile(settings), str(settings["monitor"]), int(settings["trial"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise UserError("one process for each job with hydra.sweeper.monitor", f"{trainer.world_size} processes")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises Pruned where the trial is behind."""
        value, epoch = trainer.callback_metrics.get(self.monitor), trainer.current_epoch + 1
        if value is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.file.is_behind(self.trial, epoch // trainer.check_val_every_n_epoch, float(value)):
            raise Pruned(f"{self.monitor} {format_number(float(value))} after epoch {epoch} is behind other trials")
