"""The stage ``loadings``: the flow of the recorded neurons' loadings (m, b, d)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from connector.connectivity.flow_selection import BaseChoice, Stopping, Trial, choose_base
from connector.data.modules import TensorDataModule
from connector.lrrnn.handover import FittedDynamics
from connector.report.numbers import counted
from connector.runs.options import Options
from connector.stages.flows import FlowJob, FlowModule, network_arguments
from connector.stages.training import StageContext

_FEWEST_TO_HOLD_OUT = 40  # neurons; with fewer a held-out likelihood says little


@dataclass
class Beginning:
    """What is decided before the flow is trained.

    Attributes:
        rows: (K, P) loadings; flow: arguments of the flow of their density.
        trial: that says how long to train it; None: the options do.
        metrics: so far.
    """

    rows: Tensor
    flow: dict[str, Any]
    trial: Trial | None
    metrics: dict[str, float]


def begin_loadings(options: Options, inputs: FittedDynamics) -> Beginning:
    """The flow's base density, and the trial that is to be run."""
    connectivity, rows, metrics = options.connectivity, inputs.loadings.stack().float(), {}
    enough, base = len(rows) >= _FEWEST_TO_HOLD_OUT, connectivity.flow.base
    if base == "auto":
        choice = choose_base(rows, options.seed) if enough else BaseChoice("normal", 0.0, 0.0)
        base = choice.base
        metrics["loadings/tail_advantage"] = choice.advantage
    flow = {"dim": rows.shape[1], "base": base} | network_arguments(connectivity.flow)
    trial = None
    if connectivity.early_stopping and enough:
        most, rate = connectivity.loadings_epochs, connectivity.loadings_learning_rate
        trial = Trial(rows, flow, most=most, learning_rate=rate, seed=options.seed)
    return Beginning(rows, flow, trial, metrics)


def prepare_loadings(
    context: StageContext,
    inputs: FittedDynamics,
    mark: str,
    begun: Beginning | None = None,
    stopping: Stopping | None = None,
) -> FlowJob:
    """Stage ``loadings``: the flow of the recorded neurons' loadings, written to loadings_flow.pt.

    With ``early_stopping`` a short trial on part of the neurons says how long to train; then every neuron trains, from where
    the trial was part of the way there: to hold some out for good costs more than watching a noisy held-out loss gains. The loss watched here is that of the
    training rows with random numbers that stay the same.

    Args:
        begun: of :func:`begin_loadings`, and ``stopping``, what its trial said, where an ensemble has run it.
    """
    options, connectivity = context.options, context.options.connectivity
    begun = begun or begin_loadings(options, inputs)
    rows, flow, metrics, epochs = begun.rows, begun.flow, begun.metrics, connectivity.loadings_epochs
    begun_flow = None
    if begun.trial is not None:
        stopping = stopping or begun.trial.run()
        metrics["loadings/log_likelihood"] = stopping.log_likelihood
        metrics["loadings/gain_over_normal"] = stopping.over_normal
        metrics["loadings/gain_over_kernels"] = stopping.over_kernels
        epochs, begun_flow = stopping.steps_left, stopping.begun
    base = flow["base"]
    context.say(f"loadings: {base.replace('_', '-')} base, {counted(epochs, 'epoch')}")
    pl.seed_everything(options.seed, verbose=False)
    module = FlowModule(
        "loadings",
        flow,
        seed=options.seed,
        learning_rate=connectivity.loadings_learning_rate,
        weight_decay=connectivity.weight_decay,
        cosine=connectivity.cosine,
        paths=connectivity.loadings_paths,
    )
    module.flow.fit_scaler(rows)
    if begun_flow is not None:
        module.flow.go_on_from(*begun_flow)
    data = TensorDataModule(
        (rows,), (rows,), connectivity.loadings_batch_size, options.seed, epoch_size=connectivity.loadings_epoch_size
    )

    def finish() -> None:
        # Moments of heavy tails rest on a few neurons: nothing to hold a density to.
        if connectivity.match_moments and base == "normal":
            module.flow.match_moments(rows, connectivity.flow.steps)
        context.store.write_module(context.store.loadings_flow_file, module.flow.eval().save)

    # The loss of the training rows has no minimum worth picking.
    return FlowJob("loadings", context, mark, module, data, epochs, "last", finish, metrics)
