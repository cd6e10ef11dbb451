"""Training of a flow, by itself or as one stage of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from connector.connectivity.flow import Flow
from connector.data.modules import TensorDataModule
from connector.runs.options import FlowOptions
from connector.stages.training import ExponentialMovingAverage, StageContext, StageModule, fit


class FlowModule(StageModule):
    """Flow matching on rows x (B, D), or on pairs (x, context), batches as of :class:`TensorDataModule`.

    Tests log the loss and the mean log-likelihood, predictions are the log density (B,) of each row in nats.
    A flow that has no location and scale yet (:meth:`connector.connectivity.flow.Flow.fit_scaler`) takes them from the
    training rows where the data are a TensorDataModule.

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

    def setup(self, stage: str) -> None:
        rows = getattr(self.trainer.datamodule, "train", None)
        if stage == "fit" and isinstance(rows, tuple) and self.flow.is_unscaled:
            self.flow.fit_scaler(*self.drawn(rows, 0, training=False)[:2])

    def losses(self, batch: Tensor | Sequence[Tensor], step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return self.flow.loss(*self.drawn(batch, step, training)), {}

    def drawn(
        self, batch: Tensor | Sequence[Tensor], step: int, training: bool
    ) -> tuple[Tensor, Tensor | None, torch.Generator]:
        """Data, context and the random numbers of :meth:`connector.connectivity.flow.Flow.loss` in this step."""
        generator, (x, context) = self.generator(step), _pair(batch)
        repeats = max(1, self.paths // len(x)) if training else 1
        if repeats > 1:
            x, context = x.repeat(repeats, 1), None if context is None else context.repeat(repeats, 1)
        if self.noise_std > 0:
            x = x + self.noise_std * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x, context, generator

    def test_step(self, batch: Tensor | Sequence[Tensor], batch_index: int) -> None:
        self.evaluate(batch, batch_index, "test", log_likelihood=self.predict_step(batch, batch_index).mean())

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_index: int) -> Tensor:
        return self.flow.log_prob(*_pair(batch))


def _pair(batch: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """x and its context, or None, of a batch that is x alone or holds either."""
    parts = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    return parts[0], parts[1] if len(parts) > 1 else None


class RidgeOutputsModule(FlowModule):
    """The published third step: at each training step fresh loadings from their flow, a ridge solve, a flow step.

    The batch is ignored but for its length (it sets the number of steps an epoch); loadings come from
    ``loadings_flow`` and n from ``solve``, both set before training and no part of the checkpoint.
    """

    def attach(self, loadings_flow: Flow, solve: Callable[[Tensor], Tensor], n_loadings: int, steps: int) -> None:
        self._source = (loadings_flow, solve, n_loadings, steps)

    def losses(self, batch: Tensor | Sequence[Tensor], step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if not training:
            return super().losses(batch, step, training)
        flow, solve, n_loadings, steps = self._source
        with torch.no_grad():
            loadings = flow.sample(n_loadings, steps=steps, generator=self.generator(step))
            n = solve(loadings)
        return self.flow.loss(n.to(loadings.dtype), loadings, generator=self.generator(step + 1)), {}


def network_arguments(options: FlowOptions) -> dict[str, Any]:
    """What the options say of the velocity network, as arguments of :class:`connector.connectivity.flow.Flow`."""
    return {name: getattr(options, name) for name in ("network", "hidden_width", "hidden_layers", "precondition")}


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
