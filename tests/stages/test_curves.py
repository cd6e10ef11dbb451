"""Learning curves hold each epoch's own values."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from connector.stages.curves import LearningCurves, read_learning_curves
from connector.stages.training import StageModule


class Counting(StageModule):
    """Its training loss is the number of the epoch, and its validation loss ten times that."""

    def __init__(self):
        super().__init__("lrrnn", seed=0, learning_rate=0.0)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def losses(self, batch, step, training):
        number = self.current_epoch + 1.0
        # Batches of one epoch differ, and of unequal length: the mean is over batches.
        value = number + (0.25 if training and batch[0][0, 0] > 0 else 0.0)
        return (value if training else 10 * number) + 0 * self.weight, {"part": torch.tensor(-number)}


def test_rows_hold_the_epochs_own_values_and_validation_only_where_it_ran(tmp_path):
    rows = torch.tensor([[1.0], [1.0], [-1.0]])
    path = tmp_path / "lrrnn.csv"
    watch = LearningCurves(path)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=5, check_val_every_n_epoch=2, num_sanity_val_steps=0, logger=False,
        callbacks=[watch], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Counting(), DataLoader(TensorDataset(rows), batch_size=2), DataLoader(TensorDataset(rows)))
    watch.write()
    curves = read_learning_curves(path)
    assert curves["lrrnn/train_loss"] == ([1, 2, 3, 4, 5], pytest.approx([e + 0.125 for e in (1, 2, 3, 4, 5)]))
    assert curves["lrrnn/train_part"] == ([1, 2, 3, 4, 5], [-1, -2, -3, -4, -5])
    assert curves["lrrnn/val_loss"] == ([2, 4], [20, 40])
