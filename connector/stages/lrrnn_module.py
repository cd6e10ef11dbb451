"""The LightningModule of the stage ``lrrnn``, and what it predicts of trials."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from connector.lrrnn.rate_model import RateModel
from connector.lrrnn.spikes.model import SpikeModel
from connector.lrrnn.windows import random_windows, rate_factor, window_length
from connector.stages.training import StageModule
from connector.types import TrialBatch


class Prediction(NamedTuple):
    """What the model infers of some trials.

    Attributes:
        index: (B,) numbers of the trials.
        latents: (B, time, R) given each trial's activity, posterior means for rates, most likely paths for spikes; zero past its end.
        activity: (B, time, K_obs) expected there: rates, or spike counts per bin.
    """

    index: Tensor
    latents: Tensor
    activity: Tensor


class LowRankRNNModule(StageModule):
    """A low-rank RNN fitted to rates or spikes; for the stage, or any Trainer of Lightning.

        data.setup()
        module = LowRankRNNModule("rates", {"n_neurons": data.sizes.n_neurons, "rank": 2})
        module.model.initialise(data.recording.trials(data.fold.train))
        trainer.fit(module, datamodule=data)
        predictions = trainer.predict(module, datamodule=data)  # a list of Prediction, all trials in their order

    ``data`` is a :class:`connector.data.modules.RecordingDataModule`; for spikes its ``baseline`` is set before.

    Args:
        kind: "rates" (:class:`connector.lrrnn.rate_model.RateModel`) or "spikes"
            (:class:`connector.lrrnn.spikes.model.SpikeModel`).
        model: arguments of that model, plain values (of :meth:`SpikeModel.of`).
        one_cycle: one-cycle schedule (spikes) instead of a constant learning rate.
        windows: trained on windows of trials that grow (rates; :mod:`connector.lrrnn.windows`), with the schedule that goes
            with them and each parameter tensor at ``learning_rate`` times its rms.
    """

    def __init__(
        self,
        kind: str,
        model: dict,
        seed: int = 0,
        learning_rate: float = 1e-3,
        one_cycle: bool = False,
        windows: bool = False,
    ):
        super().__init__("lrrnn", seed, learning_rate, cosine=False)
        self.save_hyperparameters()
        self.model = RateModel(**model) if kind == "rates" else SpikeModel.of(**model)
        self.one_cycle, self.windows = one_cycle, windows

    def losses(self, batch: TrialBatch, step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        # Recurrences over hundreds of steps lose too much in half precision, whatever the trainer's.
        with torch.autocast(self.device.type, enabled=False):
            return self._losses(batch, step, training)

    def _losses(self, batch: TrialBatch, step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if not training:
            return self.model.validation_loss(batch)
        progress, generator = self.progress_of_training(), self.generator(step)
        if self.windows:
            # Reading states from more than the first sample costs as much as the rollouts.
            return self.model.loss(random_windows(batch, window_length(progress), generator), start_samples=1)
        return self.model.loss(batch, progress, generator)

    def predict_step(self, batch: TrialBatch, batch_index: int) -> Prediction:
        z = self.model.infer(batch)
        return Prediction(batch.index, z, self.model.expected_activity(batch, z))

    def configure_optimizers(self):
        lr, groups = self.learning_rate, self.model.parameter_groups(self.learning_rate)
        if self.windows:  # the same pace in all units
            tensors = [p for group in groups for p in group["params"]]
            groups = [{"params": [p], "lr": lr * float(p.detach().square().mean().sqrt())} for p in tensors]
        optimizer = torch.optim.Adam(groups, lr=lr, fused=self.may_be_fused)
        if not (self.one_cycle or self.windows):
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        if self.windows:
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step / steps))
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
