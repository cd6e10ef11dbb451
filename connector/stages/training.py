"""Training one stage: what the LightningModules share, their Trainer, checkpoints that an interrupted run resumes."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from threadpoolctl import threadpool_limits
from torch import Tensor

from connector import interruption
from connector.errors import UserError, numerical_failure
from connector.files import atomic, move_into_place, read_saved, write_saved
from connector.numerics import warming_rate
from connector.runs.options import HARDWARE, Options, TrainerOptions
from connector.runs.store import RunStore, remove_checkpoints
from connector.stages.checkpoints import StageCheckpoints
from connector.stages.curves import LearningCurves
from connector.stages.progress import StageProgress

_VALIDATIONS = 30  # over a training, so that watching costs little
_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """Random numbers that are a function of (seed, step, rank), so that a resumed training draws the same ones."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) * 257 + rank)


class StageModule(pl.LightningModule):
    """What the stages share: losses averaged over an epoch and logged once, noise that is a function of the step."""

    def __init__(self, stage: str, seed: int, learning_rate: float, weight_decay: float = 0.0, cosine: bool = True):
        super().__init__()
        self.stage, self.seed, self.learning_rate = stage, seed, learning_rate
        self.weight_decay, self.cosine = weight_decay, cosine
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def generator(self, step: int) -> torch.Generator:
        return step_generator(self.seed, step, self.global_rank, self.device)

    def progress_of_training(self) -> float:
        """Fraction of the steps already taken, in [0, 1]."""
        return min(1.0, self.global_step / max(1, self.trainer.estimated_stepping_batches))

    def losses(self, batch, step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what else to log of it."""
        raise NotImplementedError

    def training_step(self, batch, batch_index: int) -> Tensor:
        loss, extra = self.losses(batch, self.global_step, training=True)
        # On a GPU to look at each value would wait for it; there the epoch's mean tells.
        if loss.device.type == "cpu":
            self._require_finite(loss)
        # self.log in every step costs more than these small models; sum here, log once an epoch.
        for name, value in {"loss": loss.detach(), **extra}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        # With the last batch and not in on_train_epoch_end: callbacks' hook of that name runs before the module's, so
        # that they would find the epoch before.
        if self.trainer.is_last_batch:
            self._require_finite(self._sums["loss"])
            means = {f"{self.stage}/train_{name}": value / self._count for name, value in self._sums.items()}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=self.trainer.world_size > 1)
            self._sums, self._count = {}, 0
        return loss

    def _require_finite(self, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            where = f"step {self.global_step + 1} (epoch {self.current_epoch + 1})"
            last = getattr(self.trainer.checkpoint_callback, "last", None)
            kept = "no state of this training was kept" if last is None else f"the last good state is {last}"
            raise numerical_failure(self.stage, f"the training loss is {value}", where, kept)

    def validation_step(self, batch, batch_index: int) -> None:
        self.evaluate(batch, batch_index, "val")

    def test_step(self, batch, batch_index: int) -> None:
        self.evaluate(batch, batch_index, "test")

    def evaluate(self, batch, batch_index: int, split: str, **more: Tensor) -> None:
        """Logs the losses of a batch, and ``more``, as means over the items of the split."""
        loss, extra = self.losses(batch, -1 - batch_index, training=False)
        values = {f"{self.stage}/{split}_{name}": value for name, value in {"loss": loss, **extra, **more}.items()}
        size = len(batch) if isinstance(batch, Tensor) else len(batch[0])
        self.log_dict(values, batch_size=size, sync_dist=self.trainer.world_size > 1)

    def parameter_groups(self) -> Any:
        return self.parameters()

    @property
    def may_be_fused(self) -> bool:
        """Whether the optimizer's steps may be: in mixed precision Lightning clips no gradients of such a one."""
        return "mixed" not in str(self.trainer.precision)

    def configure_optimizers(self):
        settings = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": self.may_be_fused}
        optimizer = torch.optim.AdamW(self.parameter_groups(), **settings)
        steps = self.trainer.estimated_stepping_batches if self.cosine else math.inf
        if math.isinf(steps):  # no end of the training to decay to
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ExponentialMovingAverage(WeightAveraging):
    """Weights averaged over steps with rate min(decay, (1 + step) / (10 + step)), so that a short training averages
    over its own end and not over its start. Buffers (the standardisation) are constants and stay as they are."""

    def __init__(self, decay: float):
        super().__init__(use_buffers=False, multi_avg_fn=warming_average(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # copied before the module is converted, to double precision for example
            trainer.precision_plugin.convert_module(self._average_model)


def warming_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The update of averaged weights by current ones, given how many updates there were."""

    def average(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, 1 - warming_rate(decay, float(n_averaged)))

    return average


# stage -> the user's own callbacks, and arguments of Lightning's Trainer
Additions = Callable[[str], tuple[list[Callback], dict[str, Any]]]


@dataclass
class StageContext:
    """What every stage needs to know of the run it belongs to; ``callbacks`` watch the training of all stages.

    ``additions``: None: the arguments of ``trainer.extra`` alone.
    """

    options: Options
    store: RunStore
    logger: Any
    console: Console
    say: Callable[[str], None]
    callbacks: Sequence[Callback] = ()
    additions: Additions | None = None


def is_child_rank() -> bool:
    """True in every process of a distributed job but the first, whoever started it: Lightning, torchrun or SLURM."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")
    return any(int(os.environ.get(name) or 0) > 0 for name in ranks)


def clock() -> np.ndarray:
    """Seconds of the clock and of CPU time (this process, all threads), (2,): differences say what work has taken."""
    return np.array([time.monotonic(), time.process_time()])


@contextlib.contextmanager
def one_thread(options: Options) -> Iterator[None]:
    """One CPU thread within the block, for torch and for NumPy, unless ``trainer.threads`` says how many.

    For steps too small to share: threads that wait for each other cost CPU time, and more time as well where another job
    uses a processor. With two threads the flow of the loadings of 1000 neurons took 20 s for 11 s, the test for groups 10 s for
    2 s, the training of the spike model of 76 neurons 57 s for 49 s.
    """
    if options.trainer.threads is not None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def validation_interval(max_epochs: int) -> int:
    """A stage of so many epochs is validated after every so many of them."""
    return max(1, max_epochs // _VALIDATIONS)


# Arguments of Lightning's Trainer that each stage sets by itself, and the option that decides.
_ELSEWHERE = {
    "max_epochs": "lrrnn.max_epochs, connectivity.loadings_epochs and connectivity.outputs_epochs",
    "logger": "logger=csv, logger=wandb or logger._target_",
    "callbacks": "callbacks.NAME._target_=MODULE.CLASS",
    "enable_progress_bar": "trainer.progress",
    "default_root_dir": "hydra.run.dir",
    "enable_checkpointing": "force=true (a run always keeps checkpoints, to resume from)",
    "barebones": "trainer.extra.fast_dev_run (a stage cannot do without its checkpoint)",
    "use_distributed_sampler": "trainer.devices (batches are divided among processes already)",
} | dict.fromkeys(HARDWARE, "")


def misplaced_argument(name: str) -> UserError | None:
    """Why a name is none of the arguments of Lightning's Trainer under ``trainer.extra``; None where it is one."""
    known = set(inspect.signature(pl.Trainer).parameters) - set(_ELSEWHERE)
    if name in known:
        return None
    ours = [f.name for f in fields(TrainerOptions)]
    near = (
        name if name in _ELSEWHERE else next(iter(difflib.get_close_matches(name, [*known, *_ELSEWHERE, *ours], 1)), "")
    )
    remedy = "see the arguments of Lightning's Trainer, and `python train.py --help`"
    if near in known:
        remedy = f"the nearest is trainer.extra.{near}"
    elif near in ours:
        remedy = f"the nearest is trainer.{near}"
    elif near:
        remedy = f"what Lightning calls {near} is set by {_ELSEWHERE[near]}"
    return UserError("an option of the trainer that exists", f"trainer.{name}", remedy)


def check_trainer(options: TrainerOptions) -> dict[str, Any]:
    """Refuse what Lightning cannot offer on this machine before anything is read or trained.

    Returns:
        what the options come to on this machine and changes numbers: kind of accelerator, number of processes, precision,
        and the strategy where it is more than copies of one model.

    Raises:
        UserError: no such accelerator, strategy, precision or argument, or devices that are not there.
    """
    for error in filter(None, map(misplaced_argument, options.extra)):
        raise error
    if re.search("spawn|fork|notebook", str(options.strategy)):
        remedy = "use trainer=ddp, whose processes are started by the command line"
        raise UserError("a strategy whose training this process sees", f"trainer.strategy={options.strategy}", remedy)
    hardware = {name: getattr(options, name) for name in HARDWARE}
    extra = {name: value for name, value in options.extra.items() if not isinstance(value, (dict, list))}
    try:
        trainer = pl.Trainer(**hardware, **extra, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except Exception as error:  # Lightning has no common class for what it refuses
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        given = {**hardware, **extra}
        named = [name for name, value in given.items() if f"`{name}`" in reason or f"'{value}'" in reason]
        given = ", ".join(f"trainer.{name}={given[name]}" for name in named[:1] or given)
        raise UserError("trainer options that this machine can meet", f"{given} ({reason})") from error
    _require_other_nodes(options, trainer)
    strategy = type(trainer.strategy).__name__
    return {
        "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "strategy": "" if strategy in ("SingleDeviceStrategy", "DDPStrategy") else strategy,
    }


def _require_other_nodes(options: TrainerOptions, trainer: pl.Trainer) -> None:
    """Refuse to wait for computers that nothing has told of this one: neither a cluster nor the variables of Lightning's own way."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    told = "MASTER_ADDR" in os.environ and {"NODE_RANK", "GROUP_RANK"} & set(os.environ)
    if (
        options.num_nodes > 1
        and type(environment) is LightningEnvironment
        and not told
        and "plugins" not in options.extra
    ):
        raise UserError(
            f"trainer.num_nodes={options.num_nodes} under SLURM, torchrun or with MASTER_ADDR, MASTER_PORT and NODE_RANK set",
            "none of these, so that this computer would wait for the others",
            "start the job on each computer with one of them, or leave out trainer.num_nodes",
        )


class PlainCheckpointFiles(TorchCheckpointIO):
    """Writes where it is told to: Lightning's own way would first fill the system's temporary directory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_saved(checkpoint, path)


def _trainer(
    context: StageContext, stage: str, max_epochs: int, clip: float | None, callbacks: Sequence[Callback]
) -> pl.Trainer:
    """Lightning's Trainer of a stage: what the stage asks for, changed by what the user does."""
    options, store = context.options.trainer, context.store
    own, extra = ([], dict(options.extra)) if context.additions is None else context.additions(stage)
    if extra.get("profiler") in _PROFILERS:  # else its table goes to a log that is silenced
        extra["profiler"] = _PROFILERS[extra["profiler"]](store.path / "logs", f"profile_{stage}")
        context.say(f"{stage}: profiled; the table goes to {store.path / 'logs'}")
    arguments = {
        **{name: getattr(options, name) for name in HARDWARE},
        "max_epochs": max_epochs,
        "check_val_every_n_epoch": validation_interval(1 if {"max_steps", "max_time"} & set(extra) else max_epochs),
        "num_sanity_val_steps": 0,
        "gradient_clip_val": clip,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        **extra,
        "plugins": [PlainCheckpointFiles(), *(extra.get("plugins") or [])],
    }
    logger = context.logger.for_stage(stage)
    return pl.Trainer(
        **arguments,
        logger=logger,
        callbacks=[*callbacks, *getattr(logger, "callbacks", ()), *own],
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=store.path,
    )


def fit(
    context: StageContext,
    stage: str,
    module: StageModule,
    data: pl.LightningDataModule,
    mark: str,
    max_epochs: int,
    monitor: str,
    *,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    keep: str = "best",
) -> pl.Trainer:
    """Train one stage's module; on return it holds the weights of the best validation, or the last (``keep``).

    A training that was interrupted resumes from its last checkpoint, found by the stage's fingerprint ``mark``, and ends
    where it would have ended. Its checkpoints stay until the stage is finished (:meth:`RunStore.finish_stage`). With
    ``max_epochs`` 0 the module stays as it is and is written as the stage's checkpoint, whatever was interrupted before.
    """
    checkpoints = StageCheckpoints(context.store.unfinished(stage, mark), monitor, max_epochs)
    curves = LearningCurves(context.store.path / "logs" / f"{stage}.csv")
    # First: the Trainer's checkpoint_callback is this one, whatever the user adds.
    watch = [checkpoints, *callbacks, *context.callbacks, curves]
    if context.options.trainer.progress:
        watch.append(StageProgress(stage, monitor, context.console))
    trainer = _trainer(context, stage, max_epochs, clip, watch)
    resume = checkpoints.resumable() if max_epochs else None
    if resume is not None:
        checkpoints.last = resume
        context.say(f"{stage}: resuming an interrupted training")
    elif max_epochs and checkpoints.written():
        reason = "the checkpoints of an interrupted training are damaged, or of an earlier version"
        context.say(f"{stage}: {reason}; training starts again")
    interruption.say_ready()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        remedy = "change callbacks or trainer.extra, or choose logger=csv where there is no logger"
        raise UserError("callbacks and options of the trainer that fit together", reason, remedy) from error
    except SystemExit as left:
        # Lightning turns Ctrl-C into exit code 1 after its own clean-up.
        if trainer.interrupted and left.code == 1:
            raise KeyboardInterrupt from left
        raise
    finally:
        interruption.training_ends()
    _keep_weights(context, module, data, trainer, keep if max_epochs else "start")
    if max_epochs and trainer.is_global_zero:
        curves.write()
    trainer.strategy.barrier()
    return trainer


def _keep_weights(
    context: StageContext, module: StageModule, data: pl.LightningDataModule, trainer: pl.Trainer, keep: str
) -> None:
    """The stage's checkpoint: the "best" state of the training, its "last" one, or the "start" where there was none."""
    checkpoints: StageCheckpoints = trainer.checkpoint_callback
    stage, final = module.stage, context.store.checkpoints / f"{module.stage}.ckpt"
    if keep == "start":
        part = final.with_name(f".{final.name}.part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            move_into_place(part, final)
            remove_checkpoints(checkpoints.directory)
        return
    if checkpoints.best is None and not checkpoints.ever_validated:  # ended within the first epochs, by max_steps
        score = {k: v for found in trainer.validate(module, data, verbose=False) for k, v in found.items()}
        if checkpoints.monitor not in score:
            raise UserError(f"a validation of the stage {stage}", "none", "leave out trainer.extra.limit_val_batches=0")
        checkpoints.best, checkpoints.best_model_score = checkpoints.last, torch.tensor(score[checkpoints.monitor])
    if checkpoints.best is None:
        raise numerical_failure(stage, "the validation loss was not finite after any epoch")
    kept = checkpoints.last if keep == "last" else checkpoints.best
    # From the file, as the run that resumes after the last epoch has it: callbacks may have changed the weights at the end.
    module.load_state_dict(read_saved(kept, "a checkpoint")["state_dict"])
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        with atomic(final) as aside:
            shutil.copyfile(kept, aside)
