"""Lightning callbacks: a progress line a stage, learning curves that survive a resumed run."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, WeightAveraging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from connector import interruption
from connector.failures import numerical_failure
from connector.files import read_saved
from connector.runs.store import file_checksum, move_into_place, write_text

_REFRESH_S = 0.2
CHECKPOINT_EVERY_S = 1.0
_DIGITS = 16  # of a checksum in a file's name


def stage_progress(console: Console, unit: str = "epochs") -> Progress:
    """The progress bar of a stage: epochs or other steps, time, and the monitored loss or the step at hand."""
    return Progress(
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


class StageProgress(Callback):
    """One line of progress for a stage in a terminal; nothing where output is not a terminal.

    Args:
        stage: what to call it; monitor: the metric to show.
    """

    def __init__(self, stage: str, monitor: str, console: Console):
        self.stage, self.monitor, self.console = stage, monitor, console
        self._bar: Progress | None = None
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = stage_progress(self.console)
            self._task = self._bar.add_task(self.stage, total=trainer.max_epochs, note="")
            self._bar.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is None or time.monotonic() - self._last < _REFRESH_S:
            return
        self._last = time.monotonic()
        value = trainer.callback_metrics.get(self.monitor)
        shown = "" if value is None else f"{self.monitor.split('/')[-1].replace('_', ' ')} {float(value):.4g}"
        self._bar.update(self._task, completed=trainer.current_epoch + 1, note=shown)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()


class StepProgress:
    """One line of progress for work in named steps, as :class:`StageProgress` shows for epochs; a context manager.

    Args:
        name: what to call the work; console: where to show it, nothing where that is None or not a terminal.
    """

    def __init__(self, name: str, console: Console | None):
        self._bar = None
        self._started = False
        if console is not None and console.is_terminal:
            self._bar = stage_progress(console, unit="steps")
            self._task = self._bar.add_task(name, total=None, note="")

    def __enter__(self) -> StepProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, n_steps: int) -> None:
        """How many steps there are in all, as soon as it is known."""
        if self._bar is not None:
            self._bar.update(self._task, total=n_steps)

    def start(self, step: str) -> None:
        """The step before is done, this one begins."""
        if self._bar is not None:
            self._bar.update(self._task, advance=int(self._started), note=step, refresh=True)
        self._started = True


class StageCheckpoints(Checkpoint):
    """Checkpoints of a training under way: its state after the last epoch, and after the best one by ``monitor``.

    Each file is named after its content (sha256), so that one that is not whole is never read; a new one is on the disk
    before the one that it replaces is removed. Epochs shorter than ``every_s`` are not each worth a file: a resumed training
    repeats at most so many seconds, and ends where an uninterrupted one ends.

    Args:
        directory: for the files, made when needed.
        monitor: the metric, the lower the better; compared in epochs that were validated.
        every_s: the last state is written if so many seconds have passed since it was written last, and at the end;
            None: CHECKPOINT_EVERY_S.

    Attributes:
        best_model_score: lowest value of ``monitor`` so far, a tensor, or None.
        best: file of the best state, or None; last: file of the last one, or None.
    """

    def __init__(self, directory: Path, monitor: str, every_s: float | None = None):
        self.directory, self.monitor = Path(directory), monitor
        self.every_s = CHECKPOINT_EVERY_S if every_s is None else every_s
        self.best_model_score: Tensor | None = None
        self.best: Path | None = None
        self.last: Path | None = None
        self._validated = False
        self._written = -math.inf

    def written(self) -> list[Path]:
        """Files of last states, the newest first, whole or not."""
        return sorted(self.directory.glob("last-*.ckpt"), key=_epoch_of, reverse=True)

    def resumable(self) -> Path | None:
        """The newest state that is whole, as is the best one that it names; None where there is none."""
        for path in self.written():
            if _is_whole(path):
                best = read_saved(path, "a checkpoint")["callbacks"][self.state_key]["best"]
                if best is None or _is_whole(self.directory / best):
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
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor) if self._validated else None
        self._validated = False
        if value is not None and (self.best_model_score is None or value < self.best_model_score):
            self.best_model_score = value.detach().cpu().clone()
            self.best = self._write(trainer, "best")
        ends = trainer.current_epoch + 1 >= trainer.max_epochs
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
        for path in self.directory.iterdir():
            if path not in kept:
                path.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.best_model_score, "best": None if self.best is None else self.best.name}

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
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


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


class Stopwatch(Callback):
    """CPU seconds (user and system, all threads of this process) of the epochs of each stage.

    Attributes:
        training: stage -> seconds of each epoch up to its last training batch.
        after: stage -> seconds from there to the next epoch: validation and checkpoint where they are due, the log.
    """

    def __init__(self):
        self.training: dict[str, list[float]] = {}
        self.after: dict[str, list[float]] = {}
        self._started = self._last_batch = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.process_time()
        self._close(pl_module.stage, now)
        self._started = self._last_batch = now

    def on_train_batch_end(self, *_: Any) -> None:
        self._last_batch = time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close(pl_module.stage, time.process_time())

    def _close(self, stage: str, now: float) -> None:
        """Book the epoch that was open."""
        if self._last_batch > self._started:
            self.training.setdefault(stage, []).append(self._last_batch - self._started)
            self.after.setdefault(stage, []).append(now - self._last_batch)
        self._started = self._last_batch = now


class ExponentialMovingAverage(WeightAveraging):
    """Weights averaged over steps with rate min(decay, (1 + step) / (10 + step)), so that a short training averages
    over its own end and not over its start. Buffers (the standardisation) are constants and stay as they are."""

    def __init__(self, decay: float):
        super().__init__(use_buffers=False, multi_avg_fn=warming_average(decay))


def warming_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The update of averaged weights by current ones, given how many updates there were."""

    def average(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        rate = min(decay, (1.0 + float(n_averaged)) / (10.0 + float(n_averaged)))
        torch._foreach_lerp_(averaged, current, 1 - rate)

    return average
