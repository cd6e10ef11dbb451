"""Training of a flow, by itself or as one stage of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from connector.connectivity.flow import Flow
from connector.data.modules import TensorDataModule
from connector.stages.training import ExponentialMovingAverage, StageContext, StageModule, fit


class FlowModule(StageModule):
    """Flow matching on rows x, or on pairs (x, context).

    Args:
        stage: "loadings" or "outputs": prefix of the logged metrics.
        flow: constructor arguments of :class:`connector.connectivity.flow.Flow`.
        noise_std: sd of fresh normal noise added to x in every step (the spread of n around its conditional mean).
        paths: a step draws at least so many paths, repeating the rows of a smaller batch: more base points and times
            for each row cost less than more steps.
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
        paths: int = 0,
    ):
        super().__init__(stage, seed, learning_rate, weight_decay, cosine)
        self.save_hyperparameters()
        self.flow = Flow(**flow)
        self.noise_std, self.paths = noise_std, paths

    def losses(self, batch: Sequence[Tensor], step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return self.flow.loss(*self.drawn(batch, step, training)), {}

    def drawn(
        self, batch: Sequence[Tensor], step: int, training: bool
    ) -> tuple[Tensor, Tensor | None, torch.Generator]:
        """Data, context and the random numbers of :meth:`connector.connectivity.flow.Flow.loss` in this step."""
        generator = self.generator(step)
        x, context = batch[0], (batch[1] if len(batch) > 1 else None)
        repeats = max(1, self.paths // len(x)) if training else 1
        if repeats > 1:
            x, context = x.repeat(repeats, 1), None if context is None else context.repeat(repeats, 1)
        if self.noise_std > 0:
            x = x + self.noise_std * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x, context, generator


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
class FlowJob:
    """A flow ready to be trained, and what to do when it is: one stage of one run.

    Attributes:
        keep: weights of the "best" validation or of the "last" step.
        finish: writes the stage's results; called once the module has its weights, on the first rank.
        metrics: of the stage so far.
    """

    stage: str
    context: StageContext
    mark: str
    module: FlowModule
    data: TensorDataModule
    epochs: int
    keep: str
    finish: Callable[[], None]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def ema_decay(self) -> float | None:
        return self.context.options.connectivity.ema_decay


def train_flow(job: FlowJob) -> dict[str, float]:
    """Train it by itself and finish the stage; its metrics."""
    monitor, averaging = f"{job.stage}/val_loss", job.ema_decay
    callbacks = [ExponentialMovingAverage(averaging)] if averaging else []
    trainer = fit(
        job.context, job.stage, job.module, job.data, job.mark, job.epochs, monitor, callbacks=callbacks, keep=job.keep
    )
    if trainer.is_global_zero:
        job.finish()
    trainer.strategy.barrier()
    return job.metrics | {monitor: float(trainer.checkpoint_callback.best_model_score)}
