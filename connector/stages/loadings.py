"""The stage ``loadings``: the flow of the recorded neurons' loadings (m, b, d)."""

from __future__ import annotations

import pytorch_lightning as pl

from connector.connectivity.flow_selection import BaseChoice, best_stopping, choose_base
from connector.data.modules import TensorDataModule
from connector.lrrnn.handover import FittedDynamics
from connector.stages.flows import FlowJob, FlowModule, network_arguments
from connector.stages.training import StageContext

_FEWEST_TO_HOLD_OUT = 40  # neurons; with fewer a held-out likelihood says little


def prepare_loadings(context: StageContext, inputs: FittedDynamics, mark: str) -> FlowJob:
    """Stage ``loadings``: the flow of the recorded neurons' loadings, written to loadings_flow.pt.

    With ``early_stopping`` a short trial on part of the neurons says how long to train; then every neuron trains: to
    hold some out for good costs more than watching a noisy held-out loss gains. The loss watched here is that of the
    training rows with random numbers that stay the same.
    """
    options, connectivity = context.options, context.options.connectivity
    rows = inputs.loadings.stack().float()
    enough = len(rows) >= _FEWEST_TO_HOLD_OUT
    base, epochs, metrics = connectivity.flow.base, connectivity.loadings_epochs, {}
    if base == "auto":
        choice = choose_base(rows, options.seed) if enough else BaseChoice("normal", 0.0, 0.0)
        base = choice.base
        metrics["loadings/tail_advantage"] = choice.advantage
    flow = {"dim": rows.shape[1], "base": base} | network_arguments(connectivity.flow)
    if connectivity.early_stopping and enough:
        rate = connectivity.loadings_learning_rate
        stopping = best_stopping(rows, flow, most=epochs, learning_rate=rate, seed=options.seed)
        metrics["loadings/log_likelihood"] = stopping.log_likelihood
        metrics["loadings/gain_over_normal"] = stopping.over_normal
        metrics["loadings/gain_over_kernels"] = stopping.over_kernels
        epochs = stopping.steps
    context.say(f"loadings: {base.replace('_', '-')} base, {epochs} epochs")
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
