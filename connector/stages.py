"""The three stages of a run and their LightningModules: lrrnn, loadings (flow of m, b, d), outputs (nu and flow of n).

Each stage has one LightningModule, one optimizer and its own Trainer, and hands over through files of the run directory
(:mod:`connector.store`), never through a live model. A stage whose options and inputs are unchanged is reused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from torch import Tensor

from connector.callbacks import ExponentialMovingAverage, LearningCurves, StageProgress
from connector.conditional_mean import ConditionalMean, fit_conditional_mean
from connector.config import Options
from connector.connectivity import ConnectivityDistribution
from connector.data.modules import RecordingDataModule, TensorDataModule
from connector.flow import Flow
from connector.store import RunStore, StageInputs, fingerprint
from connector.types import Loadings

_VALIDATION_FRACTION = 0.1  # of the neurons, held out to watch a flow
_VALIDATIONS = 40  # over a training, so that watching costs little


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
        # self.log in every step costs more than these small models; sum here, log once an epoch.
        for name, value in {"loss": loss.detach(), **extra}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        return loss

    def on_train_epoch_end(self) -> None:
        means = {f"{self.stage}/train_{name}": value / self._count for name, value in self._sums.items()}
        self.log_dict(means, sync_dist=self.trainer.world_size > 1)
        self._sums, self._count = {}, 0

    def validation_step(self, batch, batch_index: int) -> None:
        loss, extra = self.losses(batch, -1 - batch_index, training=False)
        size = len(batch[0])
        values = {"loss": loss, **extra}
        self.log_dict(
            {f"{self.stage}/val_{name}": value for name, value in values.items()},
            batch_size=size,
            sync_dist=self.trainer.world_size > 1,
        )

    def parameter_groups(self) -> Any:
        return self.parameters()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=self.learning_rate, weight_decay=self.weight_decay)
        if not self.cosine:
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class FlowModule(StageModule):
    """Flow matching on rows x, or on pairs (x, context).

    Args:
        stage: "loadings" or "outputs": prefix of the logged metrics.
        flow: constructor arguments of :class:`connector.flow.Flow`.
        noise_std: sd of fresh normal noise added to x in every step (the spread of n around its conditional mean).
    """

    def __init__(
        self,
        stage: str,
        flow: dict,
        seed: int = 0,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.0,
        cosine: bool = True,
        noise_std: float = 0.0,
    ):
        super().__init__(stage, seed, learning_rate, weight_decay, cosine)
        self.save_hyperparameters()
        self.flow = Flow(**flow)
        self.noise_std = noise_std

    def losses(self, batch: Sequence[Tensor], step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        generator = self.generator(step)
        x, context = batch[0], (batch[1] if len(batch) > 1 else None)
        if self.noise_std > 0:
            x = x + self.noise_std * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return self.flow.loss(x, context, generator=generator), {}


class RidgeOutputsModule(FlowModule):
    """The published third step: at each training step fresh loadings from their flow, a ridge solve, a flow step.

    The batch is ignored but for its length (it sets the number of steps an epoch); loadings come from
    ``loadings_flow`` and n from ``solve``, both set before training and no part of the checkpoint.
    """

    def attach(self, loadings_flow: Flow, solve: Callable[[Tensor], Tensor], n_loadings: int, steps: int) -> None:
        object.__setattr__(self, "_source", (loadings_flow, solve, n_loadings, steps))

    def losses(self, batch: Sequence[Tensor], step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if not training:
            return super().losses(batch, step, training)
        flow, solve, n_loadings, steps = self._source
        with torch.no_grad():
            loadings = flow.sample(n_loadings, steps=steps, generator=self.generator(step))
            n = solve(loadings)
        return self.flow.loss(n.to(loadings.dtype), loadings, generator=self.generator(step + 1)), {}


@dataclass
class StageContext:
    """What every stage needs to know of the run it belongs to."""

    options: Options
    store: RunStore
    logger: Any
    console: Console
    say: Callable[[str], None]


def _threads(options: Options) -> None:
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)


def fit(
    context: StageContext,
    stage: str,
    module: StageModule,
    data: pl.LightningDataModule,
    mark: str,
    max_epochs: int,
    monitor: str,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """Train one stage's module; on return it holds the weights of the best validation.

    A training that was interrupted goes on from its last checkpoint, found by the stage's fingerprint ``mark``.
    """
    options, store = context.options, context.store
    every = max(1, max_epochs // _VALIDATIONS)
    aside = store.checkpoints / f"{stage}-{mark}"
    best = ModelCheckpoint(
        dirpath=aside, filename="best", monitor=monitor, mode="min", save_last=True, every_n_epochs=every,
        enable_version_counter=False,
    )  # fmt: skip
    watch = [
        best,
        LearningCurves(store.path / "logs" / f"{stage}.csv"),
        StageProgress(stage, monitor, context.console),
    ]
    trainer = pl.Trainer(
        accelerator=options.trainer.accelerator,
        devices=options.trainer.devices,
        num_nodes=options.trainer.num_nodes,
        strategy=options.trainer.strategy,
        precision=options.trainer.precision,
        max_epochs=max_epochs,
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
        gradient_clip_val=clip,
        logger=context.logger.for_stage(stage),
        callbacks=[*callbacks, *watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=store.path,
        log_every_n_steps=1,
    )
    last = aside / "last.ckpt"
    resume = str(last) if last.exists() else None
    if resume:
        context.say(f"{stage}: going on from an earlier, interrupted training")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as left:
        # Lightning turns Ctrl-C into exit code 1 after its own clean-up.
        if trainer.interrupted and left.code == 1:
            raise KeyboardInterrupt from left
        raise
    state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        shutil.copyfile(best.best_model_path, store.checkpoints / f"{stage}.ckpt.part")
        (store.checkpoints / f"{stage}.ckpt.part").replace(store.checkpoints / f"{stage}.ckpt")
        shutil.rmtree(aside)
    trainer.strategy.barrier()
    return trainer


# -- loadings ---------------------------------------------------------------------------------------------------------


def split_rows(n_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation rows, at random; the validation rows repeat the training ones below ten rows."""
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    n_validation = int(_VALIDATION_FRACTION * n_rows)
    return (order[n_validation:], order[:n_validation]) if n_validation else (order, order)


def _flow_callbacks(options: Options) -> list[Callback]:
    decay = options.connectivity.ema_decay
    return [ExponentialMovingAverage(decay)] if decay else []


def train_loadings(context: StageContext, inputs: StageInputs, mark: str) -> dict[str, float]:
    """Stage ``loadings``: the flow of the recorded neurons' loadings, written to loadings_flow.pt."""
    options, connectivity = context.options, context.options.connectivity
    rows = inputs.loadings.stack().float()
    train, validation = split_rows(len(rows), options.seed)
    flow = {"dim": rows.shape[1], "hidden_width": connectivity.flow.hidden_width}
    flow |= {"hidden_layers": connectivity.flow.hidden_layers, "base": connectivity.flow.base}
    pl.seed_everything(options.seed, verbose=False)
    module = FlowModule(
        "loadings",
        flow,
        seed=options.seed,
        learning_rate=connectivity.loadings_learning_rate,
        weight_decay=connectivity.weight_decay,
        cosine=connectivity.cosine,
    )
    module.flow.fit_scaler(rows)
    data = TensorDataModule((rows[train],), (rows[validation],), connectivity.loadings_batch_size, options.seed)
    trainer = fit(
        context,
        "loadings",
        module,
        data,
        mark,
        connectivity.loadings_epochs,
        "loadings/val_loss",
        callbacks=_flow_callbacks(options),
    )
    if trainer.is_global_zero:
        context.store.write_module(context.store.loadings_flow_file, module.flow.eval().save)
    trainer.strategy.barrier()
    return {"loadings/val_loss": float(trainer.checkpoint_callback.best_model_score)}


# -- outputs ----------------------------------------------------------------------------------------------------------


def estimate_conditional_mean(options: Options, inputs: StageInputs, flow: Flow) -> ConditionalMean:
    """nu = E[n | m, b, d] from the training trials, on the pool of loadings that the options name."""
    connectivity = options.connectivity
    z, u, y = inputs.latents.trials(inputs.fold.train).samples()
    if connectivity.pool == "recorded":
        pool = inputs.loadings
    else:
        generator = torch.Generator().manual_seed(options.seed)
        rows = flow.sample(connectivity.outputs_loadings, steps=connectivity.flow.steps, generator=generator)
        like = inputs.loadings
        pool = Loadings.unstack(rows.double(), like.rank, like.n_inputs, like.has_bias)
    return fit_conditional_mean(
        z,
        u,
        y,
        pool,
        activation=inputs.activation,
        alpha=inputs.latents.alpha,
        estimator=connectivity.estimator,
        regularizer=connectivity.regularizer,
        regularizer_published=connectivity.regularizer_published,
        max_states=connectivity.max_states,
        seed=options.seed,
    )


def train_outputs(context: StageContext, inputs: StageInputs, mark: str) -> dict[str, float]:
    """Stage ``outputs``: the conditional mean nu and the flow of n, written with all else to connectivity.pt."""
    options, connectivity, store = context.options, context.options.connectivity, context.store
    loadings_flow = Flow.load(store.loadings_flow_file)
    mean = estimate_conditional_mean(options, inputs, loadings_flow)
    generator = torch.Generator().manual_seed(options.seed + 1)
    rows = loadings_flow.sample(connectivity.outputs_loadings, steps=connectivity.flow.steps, generator=generator)
    nu = mean(rows.double()).float()
    through_flow = connectivity.outputs == "flow"
    flow = {"dim": nu.shape[1], "context_dim": rows.shape[1], "hidden_width": connectivity.flow.hidden_width}
    flow |= {"hidden_layers": connectivity.flow.hidden_layers}
    pl.seed_everything(options.seed, verbose=False)
    module = (RidgeOutputsModule if through_flow else FlowModule)(
        "outputs",
        flow,
        seed=options.seed,
        learning_rate=connectivity.outputs_learning_rate,
        weight_decay=connectivity.weight_decay,
        cosine=connectivity.cosine,
        noise_std=0.0 if through_flow else connectivity.sigma,
    )
    spread = 0.0 if through_flow else connectivity.sigma
    module.flow.fit_scaler(nu + spread * torch.randn(nu.shape, generator=generator), rows)
    if through_flow:
        solve = fresh_ridge(options, inputs)
        module.attach(loadings_flow, solve, connectivity.outputs_loadings, connectivity.flow.steps)
    train, validation = split_rows(len(rows), options.seed)
    data = TensorDataModule(
        (nu[train], rows[train]), (nu[validation], rows[validation]), connectivity.outputs_batch_size, options.seed
    )
    trainer = fit(
        context,
        "outputs",
        module,
        data,
        mark,
        connectivity.outputs_epochs,
        "outputs/val_loss",
        callbacks=_flow_callbacks(options),
    )
    if trainer.is_global_zero:
        distribution = assemble(options, inputs, loadings_flow, mean, module.flow.eval())
        store.write_module(store.connectivity_file, distribution.save)
    trainer.strategy.barrier()
    return {"outputs/val_loss": float(trainer.checkpoint_callback.best_model_score)}
