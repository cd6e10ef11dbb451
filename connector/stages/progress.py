"""A line of progress a stage, in a terminal; the time that its epochs take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REFRESH_S = 0.2


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


@contextmanager
def sampling_progress(console: Console | None) -> Iterator[Callable[[int, int], None]]:
    """A bar over the sweeps of a sampler, which calls what this gives with the number of each sweep and how many there are."""
    with StepProgress("lrrnn, sampling", console) as progress:

        def shown(done: int, of: int) -> None:
            progress.expect(of)
            progress.start(f"sweep {done + 1}")

        yield shown


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
