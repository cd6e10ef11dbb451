"""The stage ``lrrnn`` on rates: the start, its inputs, and training where it gains something."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from connector.data.modules import RecordingDataModule
from connector.errors import UserError
from connector.lrrnn.closed_form import bias_supported
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.indicated import behind_indicator
from connector.lrrnn.rate_model import RateModel, fitted_dynamics, lasting_misfit, of_rollouts
from connector.lrrnn.spikes.model import SpikeModel
from connector.lrrnn.starts import (
    Start,
    best_inputs,
    clearly_better,
    power_about_means,
    predictable_errors,
    quick_start,
    trial_errors,
)
from connector.report.glossary import TAKEN
from connector.runs.store import fingerprint
from connector.stages.lrrnn_module import LowRankRNNModule
from connector.stages.scaling import has_bias_of
from connector.stages.training import StageContext, fit
from connector.types import DataSizes, Recording

# Fine-tuning from the closed form: small steps, since there is little left to gain.
_LEARNING_RATE, _BATCH_SIZE, _MAX_EPOCHS = 1e-4, 50, 2
# It is left out where the noise-free trajectories explain validation trials as well as free latents do, but for this
# fraction of the noise or of the power.
_NOTHING_TO_GAIN = {"noise": 0.02, "power": 1e-5}
_EXPLAINS_LITTLE = (
    0.5  # of the variance about the neurons' means: where the closed form leaves as much, another start is tried
)
# Rollouts are handed on in place of latents where they foretell rates so well but not perfectly, and errors of a step last.
_LEAST_ROLLOUT, _PERFECT_ROLLOUT, _LASTS = 0.8, 0.9999, 0.05
# Training on windows that grow: where the start's rollouts miss so much of the power beside the noise.
_MISSES_MUCH = 0.1
# Learning rate in units of each tensor's rms, windows in a batch, steps; the norm of gradients is at most so much of the power.
_WINDOWS_LEARNING_RATE, _WINDOWS, _WINDOWS_STEPS, _STEEPEST = 0.02, 64, 3000, 0.06
# The share of a step's errors that has to be predictable (noise of the states is not), and the share of what was missed that
# the training has to find.
_PREDICTABLE, _LEAST_GAIN = 0.2, 0.2
_TRIALS_OF_POWER = 20  # training trials whose mean square stands for the power


def model_arguments(sizes: DataSizes) -> dict[str, Any]:
    """What every model is told of the data."""
    return {name: getattr(sizes, name) for name in ("n_neurons", "rank", "n_inputs", "alpha")}


def _rate_arguments(sizes: DataSizes, has_bias: bool | None) -> dict[str, Any]:
    return model_arguments(sizes) | {"has_bias": has_bias, "activation": sizes.activation}


def _take_inputs(context: StageContext, data: RecordingDataModule, has_bias: bool | None) -> dict[str, Start]:
    """Have the recording's inputs enter as the options say, or as validation trials ask for; the starts that were tried then,
    the best last."""
    kind = context.options.lrrnn.inputs
    data.take_inputs("instant" if kind == "auto" else kind)
    if data.recording.inputs is None or kind != "auto":
        return {}
    found = best_inputs(data.recording, data.fold, _rate_arguments(data.sizes, has_bias))
    if found:
        kind, power = list(found)[-1], power_about_means(data.recording, data.fold)
        data.take_inputs(kind)
        scores = ", ".join(f"{name} {1 - start.loss / power:.3g}" for name, start in found.items())
        context.say(f"lrrnn: inputs {TAKEN[kind]} (R² of validation rollouts: {scores})")
    return found


def _better_start(
    context: StageContext, data: RecordingDataModule, model: RateModel, loss: float, power: float, quick: Start | None
) -> float:
    """Of the closed form in ``model`` and a quick start, which is made where the first explains little, the better one by
    validation; its loss. One that explains nothing is told of."""
    recording, fold = data.recording, data.fold
    if quick is None and not loss < _EXPLAINS_LITTLE * power:
        arguments = _rate_arguments(data.sizes, model.rnn.has_bias)
        quick = quick_start(recording, fold, arguments, recording.input_kind)
    if quick is not None and clearly_better(quick.errors, trial_errors(model, recording, fold), power):
        model.load_state_dict(quick.model.state_dict())
        context.say(
            f"lrrnn: the start without simulated trajectories is better (validation loss {quick.loss:.3g}, not {loss:.3g})"
        )
        loss = validation_loss(model, data)
    if not loss < power:
        context.say(
            f"lrrnn: no start explains validation trials better than the neurons' mean rates (loss {loss:.3g}, {power:.3g}); "
            "check data.alpha, data.activation, lrrnn.rank and the inputs"
        )
    return loss


def train_on_rates(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[FittedDynamics, dict[str, float]]:
    """Fit the low-rank RNN to rates; what it hands over, and measures of the fit."""
    choice, has_bias = context.options.lrrnn, has_bias_of(context, data)
    tried = _take_inputs(context, data, has_bias)
    quick = list(tried.values())[-1] if tried else None
    if has_bias is None:
        train = data.recording.trials(data.fold.train)
        has_bias = bias_supported(train, data.sizes.rank) if quick is None else quick.model.rnn.has_bias
        context.say(
            f"lrrnn: {'with' if has_bias else 'without'} a bias in each neuron, which the rates {'need' if has_bias else 'do not need'}"
        )
    module = _module(context, data, has_bias, choice.learning_rate or _LEARNING_RATE)
    closed_form = module.model.initialise(data.recording.trials(data.fold.train))
    solved = closed_form is not None
    data.batch_size = choice.batch_size or _BATCH_SIZE
    before, power = validation_loss(module.model, data), power_about_means(data.recording, data.fold)
    if solved:
        before = _better_start(context, data, module.model, before, power, quick)
    metrics = None
    if (
        solved
        and choice.max_epochs is choice.learning_rate is None
        and _misses_dynamics(module.model, data, before, power)
    ):
        module, metrics = _train_on_windows(context, data, module, mark, before, power, tried.get("both"))
    if metrics is None:
        # A step down the gradient of trajectories that run away leads nowhere.
        lost = solved and not before < power
        idle = lost or (solved and _nothing_to_gain(module.model, data, before))
        epochs = choice.max_epochs or (0 if idle else _MAX_EPOCHS)
        if not epochs:
            why = "has trajectories that miss the rates, and training on them was left out"
            why = why if lost else "leaves nothing to gain by training"
            context.say(f"lrrnn: the closed form {why} (validation loss {before:.3g})")
        metrics = _fit_unless_worse(context, module, data, mark, epochs, before)
    recording = data.recording
    loss = validation_loss(module.model, data, part=data.fold.test)
    metrics["lrrnn/rollout_r2"] = 1 - loss / power_about_means(recording, data.fold, data.fold.test)
    found = fitted_dynamics(module.model, recording, data.fold, solved=closed_form)
    if recording.shown is not None:
        return _behind_indicator(context, module.model, recording, found), metrics
    if recording.inputs is None:
        return found, metrics
    foretold = 1 - metrics["lrrnn/val_loss"] / power
    if _LEAST_ROLLOUT < foretold < _PERFECT_ROLLOUT:
        metrics["lrrnn/lasting_misfit"] = lasting = lasting_misfit(found)
        noiseless = recording.trained is not None and recording.trained.noiseless
        if noiseless or lasting > _LASTS:
            found = of_rollouts(module.model, recording, found)
            why = (
                "the network's rates hold no noise, so that errors of the fit are due to its rank"
                if noiseless
                else f"errors of the fit persist from step to step (correlation {lasting:.2g})"
            )
            context.say(f"lrrnn: {why}; later stages use its rollouts")
    return found, metrics


def _module(
    context: StageContext, data: RecordingDataModule, has_bias: bool, learning_rate: float, windows: bool = False
) -> LowRankRNNModule:
    choice = context.options.lrrnn
    arguments = _rate_arguments(data.sizes, has_bias) | {
        "init": choice.init,
        "init_std": choice.init_std,
        "weight_penalty": choice.weight_penalty,
    }
    pl.seed_everything(context.options.seed, verbose=False)
    return LowRankRNNModule("rates", arguments, context.options.seed, learning_rate, windows=windows)


def _misses_dynamics(model: RateModel, data: RecordingDataModule, loss: float, power: float) -> bool:
    """Whether rollouts of the start miss much of the validation trials, and noise of the states is not why."""
    recording, fold = data.recording, data.fold
    if recording.shown is not None or not math.isfinite(loss):
        return False
    missed = loss - float(model.residual_variance)
    if missed <= _MISSES_MUCH * power:
        return False
    return predictable_errors(model, recording, fold) > _PREDICTABLE


def _train_on_windows(
    context: StageContext,
    data: RecordingDataModule,
    start: LowRankRNNModule,
    mark: str,
    before: float,
    power: float,
    both: Start | None,
) -> tuple[LowRankRNNModule, dict[str, float] | None]:
    """Train on windows of trials that grow; the start and None where that is no better by validation.

    Args:
        both: a start whose inputs enter both ways, where that is open: what a poor start says of them does not count.
    """
    kind, batch_size = data.recording.input_kind, data.batch_size
    if both is not None:
        data.take_inputs("both")
    data.batch_size = context.options.lrrnn.batch_size or _WINDOWS
    model = start.model if both is None else both.model
    module = _module(context, data, model.rnn.has_bias, _WINDOWS_LEARNING_RATE, windows=True)
    module.model.load_state_dict(model.state_dict())
    module.model.scale = model.scale
    steps = math.ceil(len(data.fold.train) / data.batch_size)
    context.say(
        f"lrrnn: trajectories of the start miss the rates (validation loss {before:.3g}); training on windows that grow"
    )
    epochs, noise = math.ceil(_WINDOWS_STEPS / steps), float(start.model.residual_variance)
    own_mark = fingerprint(mark, "windows")  # its checkpoints are those of another model
    trainer = fit(context, "lrrnn", module, data, own_mark, epochs, "lrrnn/val_loss", clip=_STEEPEST * power)
    after = float(trainer.checkpoint_callback.best_model_score)
    if after - noise < (1 - _LEAST_GAIN) * (before - noise):
        context.say(f"lrrnn: validation loss {after:.3g} after training, inputs {TAKEN[data.recording.input_kind]}")
        return module, {"lrrnn/val_loss": after}
    data.take_inputs(kind)
    data.batch_size = batch_size
    context.say(f"lrrnn: this gains too little (validation loss {after:.3g}); kept the start")
    return start, None


def _behind_indicator(
    context: StageContext, model: RateModel, recording: Recording, fit: FittedDynamics
) -> FittedDynamics:
    """The fit finished on what the indicator shows; where it runs away, the rollouts of the fit to deconvolved rates."""
    try:
        return behind_indicator(fit, recording)
    except (UserError, torch.linalg.LinAlgError):
        context.say(
            "lrrnn: no trajectories pass near what the indicator shows; later stages use rollouts of the fit to deconvolved rates"
        )
        return of_rollouts(model, recording, fit)


def validation_loss(
    model: RateModel, data: RecordingDataModule, rates: Recording | None = None, part: Tensor | None = None
) -> float:
    """``rates``: the recording as the model sees it, where that is not as it was made; ``part``: other trials."""
    batch = data.batch(data.fold.validation if part is None else part)
    if rates is not None:
        batch = batch._replace(activity=rates.activity[data.fold.validation])
    with torch.no_grad():
        return float(model.validation_loss(batch)[0])


def _nothing_to_gain(model: RateModel, data: RecordingDataModule, validation_loss: float) -> bool:
    noise = float(model.residual_variance)
    batch = data.batch(data.fold.train[:_TRIALS_OF_POWER])
    power = float(batch.activity[batch.mask].square().mean())
    return validation_loss - noise <= max(_NOTHING_TO_GAIN["noise"] * noise, _NOTHING_TO_GAIN["power"] * power)


def _fit_unless_worse(
    context: StageContext, module: LowRankRNNModule, data: RecordingDataModule, mark: str, epochs: int, before: float
) -> dict[str, float]:
    """Train; where no epoch's validation beats the start's, ``before``, return to the start. No epochs: it is kept."""
    start = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = fit(context, "lrrnn", module, data, mark, epochs, "lrrnn/val_loss", clip=SpikeModel.GRADIENT_CLIP)
    if not epochs:
        return {"lrrnn/val_loss": before}
    after = float(trainer.checkpoint_callback.best_model_score)
    if not after < before:
        module.load_state_dict(start)
        context.say(f"lrrnn: kept the start; no epoch improved on it (validation loss {before:.3g})")
    return {"lrrnn/val_loss": min(before, after)}
