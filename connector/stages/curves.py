"""Learning curves of a stage: kept in its checkpoints, written as csv, read back."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from connector.files import csv_text, write_text


class LearningCurves(Callback):
    """The epoch-wise metrics of a stage, in a csv file; part of the checkpoint, so that a resumed run has them whole.

    Args:
        path: of the csv file: columns epoch, step and one for each metric.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = {k: float(v) for k, v in trainer.callback_metrics.items() if math.isfinite(float(v))}
        if not self._validated:  # Lightning keeps the values of the last validation
            row = {k: v for k, v in row.items() if "/val_" not in k}
        self._validated = False
        if row:
            self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **row})

    def write(self) -> None:
        if self.rows:
            write_learning_curves(self.path, self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


def write_learning_curves(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Rows with epoch, step and metrics, where they have them, as a csv file."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_text(path, csv_text(columns, ([row.get(name, "") for name in columns] for row in rows)))


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of the file of :class:`LearningCurves`, each with epoch, step and the metrics it has."""
    if not path.exists():
        return []
    with path.open(newline="") as handle:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(handle)]


def read_learning_curves(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """metric -> (epochs, values) from the file of :class:`LearningCurves`; empty where there is none."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in read_rows(path):
        for key in row.keys() - {"epoch", "step"}:
            epochs, values = curves.setdefault(key, ([], []))
            epochs.append(row["epoch"])
            values.append(row[key])
    return curves
