"""Checkpoints of a training that is under way: the best state and the last, from which an interrupted run goes on."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from connector import interruption
from connector.errors import numerical_failure
from connector.files import file_checksum, move_into_place, read_saved

CHECKPOINT_EVERY_S = 1.0
_DIGITS = 16  # of a checksum in a file's name


class StageCheckpoints(Checkpoint):
    """Checkpoints of a training under way: its state after the last epoch, and after the best one by ``monitor``.

    Each file is named after its content (sha256), so that one that is not whole is never read; a new one is on the disk
    before the one that it replaces is removed. Epochs shorter than ``every_s`` are not each worth a file: a resumed training
    repeats at most so many seconds, and ends where an uninterrupted one ends.

    Args:
        directory: for the files, made when needed.
        monitor: the metric, the lower the better; compared in epochs that were validated.
        length: epochs of the training; a state of another length, which an earlier version may have found, is none of this one.
        every_s: the last state is written if so many seconds have passed since it was written last, and at the end;
            None: CHECKPOINT_EVERY_S.

    Attributes:
        best_model_score: lowest value of ``monitor`` so far, a tensor, or None.
        best: file of the best state, or None; last: file of the last one, or None.
        ever_validated: whether a validation has run since this training began or went on.
    """

    def __init__(self, directory: Path, monitor: str, length: int, every_s: float | None = None):
        self.directory, self.monitor, self.length = Path(directory), monitor, length
        self.every_s = CHECKPOINT_EVERY_S if every_s is None else every_s
        self.best_model_score: Tensor | None = None
        self.best: Path | None = None
        self.last: Path | None = None
        self._validated = self.ever_validated = False
        self._written = -math.inf

    def written(self) -> list[Path]:
        """Files of last states, the newest first, whole or not."""
        return sorted(self.directory.glob("last-*.ckpt"), key=_epoch_of, reverse=True)

    def resumable(self) -> Path | None:
        """The newest state of this training that is whole, as is the best one that it names; None where there is none."""
        for path in self.written():
            if _is_whole(path):
                found = read_saved(path, "a checkpoint")["callbacks"][self.state_key]
                whole = found["best"] is None or _is_whole(self.directory / found["best"])
                if whole and found.get("length") == self.length:
                    return path
        return None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._written = time.monotonic()
        interruption.training_starts()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # Ranks of a distributed job leave together, at the end of an epoch.
        if interruption.grace_is_over() and trainer.world_size == 1:
            interruption.leave()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = self.ever_validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor) if self._validated else None
        self._validated = False
        if value is not None and (self.best_model_score is None or value < self.best_model_score):
            self.best_model_score = value.detach().cpu().clone()
            self.best = self._write(trainer, "best")
        # Besides the epochs a callback may end it, or an argument of Lightning's Trainer: max_steps, max_time.
        of_steps = trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps
        ends = trainer.current_epoch + 1 >= trainer.max_epochs or trainer.should_stop or of_steps
        stops = trainer.strategy.reduce_boolean_decision(interruption.stop_asked(), all=False)
        # One process decides for all: their clocks differ.
        if trainer.strategy.broadcast(stops or ends or time.monotonic() - self._written >= self.every_s):
            _require_finite(pl_module, self.last)
            self.last = self._write(trainer, "last")
            self._written = time.monotonic()
            if trainer.is_global_zero:
                self._remove_all_but({self.best, self.last})
        if stops:
            interruption.leave()

    def _write(self, trainer: pl.Trainer, kind: str) -> Path:
        aside, name = self.directory / f".{kind}.part", None
        try:
            trainer.save_checkpoint(aside)
            if trainer.is_global_zero:
                name = f"{kind}-{trainer.current_epoch + 1:05d}-{file_checksum(aside)[:_DIGITS]}.ckpt"
                move_into_place(aside, self.directory / name)
        finally:
            if trainer.is_global_zero:
                aside.unlink(missing_ok=True)
        return self.directory / trainer.strategy.broadcast(name)

    def _remove_all_but(self, kept: set[Path | None]) -> None:
        for path in self.directory.glob("*-*-*.ckpt"):
            if path not in kept and path.name.startswith(("best-", "last-")):
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        best = None if self.best is None else self.best.name
        return {"score": self.best_model_score, "best": best, "length": self.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_model_score = state_dict["score"]
        self.best = None if state_dict["best"] is None else self.directory / state_dict["best"]


def _require_finite(module: pl.LightningModule, last: Path | None) -> None:
    """No state with numbers that are not finite is kept: a training that resumed from it could only fail."""
    if not all(bool(torch.isfinite(weight).all()) for weight in module.parameters()):
        kept = "no state of this training was kept" if last is None else f"the last good state is {last}"
        raise numerical_failure(module.stage, "weights are not finite", f"epoch {module.current_epoch + 1}", kept)


def _epoch_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _is_whole(path: Path) -> bool:
    return path.is_file() and file_checksum(path)[:_DIGITS] == path.stem.split("-")[-1]
