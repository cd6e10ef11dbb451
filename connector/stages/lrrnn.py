"""The stage ``lrrnn``: fits the low-rank RNN to rates or spikes and hands over latents and loadings."""

from __future__ import annotations

from dataclasses import replace

import pytorch_lightning as pl
import torch
from torch import Tensor

from connector.connectivity.nu.regression import drive_offset
from connector.data.folds import Fold
from connector.data.modules import RecordingDataModule
from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.closed_form import bias_supported, double
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.rate_model import RateModel
from connector.lrrnn.rate_model import connectivity_inputs as rate_inputs
from connector.lrrnn.spikes.baselines import NO_TIMES, Baseline, fit_baseline
from connector.lrrnn.spikes.model import SpikeModel
from connector.lrrnn.spikes.readout import connectivity_inputs as spike_inputs
from connector.lrrnn.spikes.smoothed import ENOUGH_SPIKES, SmoothedSpikeModel, as_rates, offset_of, spikes_per_bin
from connector.runs.store import StageInputs
from connector.stages.responses import score_on_test_trials
from connector.stages.training import StageContext, StageModule, fit, is_child_rank, one_thread
from connector.types import Latents, Recording, TrialBatch

# Fine-tuning from the closed form: small steps, since there is little left to gain.
_RATES_LEARNING_RATE, _RATES_BATCH_SIZE, _RATES_MAX_EPOCHS = 1e-4, 50, 2
# It is left out where the noise-free trajectories explain validation trials as well as free latents do, but for this
# fraction of the noise or of the power.
_NOTHING_TO_GAIN = {"noise": 0.02, "power": 1e-5}
_TRIALS_OF_POWER = 20  # training trials whose mean square stands for the power
_WORST_MISFIT = 2.0  # of the closed form to spikes; 1 where its trajectories explain all but the counts' own noise


class LowRankRNNModule(StageModule):
    """A low-rank RNN fitted to rates or spikes.

    Args:
        kind: "rates" (:class:`connector.lrrnn.rate_model.RateModel`) or "spikes" (:class:`connector.lrrnn.spikes.model.SpikeModel`).
        model: constructor arguments of that model.
        one_cycle: one-cycle schedule (spikes) instead of a constant learning rate.
    """

    def __init__(self, kind: str, model: dict, seed: int = 0, learning_rate: float = 1e-3, one_cycle: bool = False):
        super().__init__("lrrnn", seed, learning_rate, cosine=False)
        self.save_hyperparameters()
        self.model = RateModel(**model) if kind == "rates" else SpikeModel(**model)
        self.one_cycle = one_cycle

    def losses(self, batch: TrialBatch, step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if not training:
            return self.model.validation_loss(batch)
        return self.model.loss(batch, self.progress_of_training(), self.generator(step))

    def configure_optimizers(self):
        groups = self.model.parameter_groups(self.learning_rate)
        optimizer = torch.optim.Adam(groups, lr=self.learning_rate, fused=True)
        if not self.one_cycle:
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def given_stage_inputs(data: RecordingDataModule) -> StageInputs:
    """The hand-over of a recording that carries its latents and loadings."""
    recording = data.recording
    latents = Latents(
        recording.latents.double() * recording.mask[..., None],
        recording.lengths,
        recording.alpha,
        double(recording.inputs),
    )
    return StageInputs(latents, recording.loadings.map(Tensor.double), data.fold, recording.activation)


def train_lrrnn(context: StageContext, data: RecordingDataModule, mark: str) -> dict[str, float]:
    """Stage ``lrrnn``: fit the low-rank RNN to the activity; hand over latents and the recorded neurons' loadings.

    Raises:
        UserError: another rank than that of known latents, with stages to follow, where truth and estimate are compared.
    """
    truth, rank, stages = data.recording.latents, data.sizes.rank, context.options.stages
    comparable = truth is not None and truth.shape[2] == rank
    if truth is not None and not comparable and (stages == "auto" or set(stages) != {"lrrnn"}):
        raise UserError(
            f"the rank of the known latents, {truth.shape[2]}, which connectivity is compared with",
            f"lrrnn.rank={rank}",
            "fit another rank by itself, with stages=[lrrnn]",
        )
    fitted = _train_on_rates if data.sizes.kind == "rates" else _train_on_spikes
    inputs, metrics = fitted(context, data, mark)
    if comparable:
        inputs, more = in_true_gauge(inputs, data)
        metrics |= more
    elif inputs.loadings.has_bias and inputs.latents.drive is None:
        inputs = with_plausible_origin(inputs)
        context.say(
            "lrrnn: neurons have a bias, which leaves the origin of the latents open; put where n is most plausible"
        )
    if not is_child_rank():
        context.store.write_stage_inputs(inputs)
    return metrics


def in_true_gauge(inputs: StageInputs, data: RecordingDataModule) -> tuple[StageInputs, dict[str, float]]:
    """Latents and loadings in the gauge of the known latents, fitted on training trials, and how well they agree."""
    recording, train = data.recording, data.fold.train
    latents, truth = inputs.latents, data.recording.latents.double()
    gauge = Gauge.fit(latents.z, truth, latents.lengths, train, affine=inputs.loadings.has_bias)
    moved = _moved(inputs, gauge)
    if recording.loadings is not None and recording.loadings.d is None and moved.loadings.d is not None:
        # Spikes are read out with an offset of their own, which is no bias of the network.
        covariance = moved.loadings_covariance
        moved = replace(
            moved,
            loadings=replace(moved.loadings, d=None),
            loadings_covariance=None if covariance is None else covariance[:, :-1, :-1],
        )
    mask = latents.mask.clone()
    mask[train] = False
    held_out = moved.latents.z[mask], truth[mask]
    error = (held_out[0] - held_out[1]).square().sum() / (held_out[1] - held_out[1].mean(0)).square().sum()
    metrics = {"lrrnn/latents_r2": 1 - float(error)}
    if recording.loadings is not None:
        known = recording.loadings.m.double()
        residual = (moved.loadings.m - known).square().sum() / (known - known.mean(0)).square().sum()
        metrics["lrrnn/loadings_r2"] = 1 - float(residual)
    return moved, metrics


def _moved(inputs: StageInputs, gauge: Gauge) -> StageInputs:
    """Everything that is handed over, in other coordinates of the latents."""
    latents, covariance = inputs.latents, inputs.loadings_covariance
    if covariance is not None:
        covariance = gauge.loadings_covariance(covariance, inputs.loadings.n_inputs)
    z = gauge.latents(latents.z) * latents.mask[..., None]
    return replace(
        inputs,
        latents=replace(latents, z=z, drive=None if latents.drive is None else gauge.latents(latents.drive)),
        loadings=gauge.loadings(inputs.loadings),
        loadings_covariance=covariance,
        readings=None if inputs.readings is None else gauge.readings(*inputs.readings),
        n=None if inputs.n is None else _moved_output_weights(gauge, inputs),
    )


def with_plausible_origin(inputs: StageInputs) -> StageInputs:
    """Latents and loadings, which have a bias, about the origin for which n is the most plausible: the fit leaves it open
    (:func:`drive_offset`)."""
    z, u, y = inputs.latents.trials(inputs.fold.train).samples()
    shift = drive_offset(z, u, y, inputs.loadings, activation=inputs.activation)
    return _moved(inputs, Gauge(torch.eye(len(shift), dtype=shift.dtype), shift))


def _moved_output_weights(gauge: Gauge, inputs: StageInputs) -> Tensor:
    loadings, latents = inputs.loadings, inputs.latents
    network = Network(loadings.m, inputs.n, loadings.b, loadings.d, latents.alpha, inputs.activation)
    z, u, _ = latents.samples()
    return gauge.network(network, z, u).n


def _train_on_rates(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[StageInputs, dict[str, float]]:
    options, sizes, recording = context.options, data.sizes, data.recording
    choice, has_bias = options.lrrnn, sizes.has_bias
    if choice.bias is None and recording.loadings is None:
        has_bias = bias_supported(recording.trials(data.fold.train), sizes.rank)
        context.say(f"lrrnn: {'with' if has_bias else 'without'} a bias in each neuron, as the rates ask for")
    arguments = {
        "n_neurons": sizes.n_neurons,
        "rank": sizes.rank,
        "n_inputs": sizes.n_inputs,
        "has_bias": has_bias,
        "alpha": sizes.alpha,
        "activation": sizes.activation,
        "init": choice.init,
        "init_std": choice.init_std,
        "weight_penalty": choice.weight_penalty,
    }
    pl.seed_everything(options.seed, verbose=False)
    learning_rate = choice.learning_rate or _RATES_LEARNING_RATE
    module = LowRankRNNModule("rates", arguments, options.seed, learning_rate)
    solved = module.model.initialise(recording.trials(data.fold.train)) is not None
    data.batch_size = choice.batch_size or _RATES_BATCH_SIZE
    before = _validation_loss(module.model, data)
    idle = solved and _nothing_to_gain(module.model, data, before)
    epochs = choice.max_epochs or (0 if idle else _RATES_MAX_EPOCHS)
    metrics = _fit_unless_worse(context, module, data, mark, epochs, before)
    latents, loadings, covariance, readings = rate_inputs(module.model, recording, data.fold.train)
    n = module.model.rnn.network().n.detach().double()
    return StageInputs(latents, loadings, data.fold, recording.activation, covariance, readings, n), metrics


def _validation_loss(model: RateModel, data: RecordingDataModule, rates: Recording | None = None) -> float:
    """``rates``: the recording as the model sees it, where that is not as it was made."""
    batch = data.batch(data.fold.validation)
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
        context.say(f"lrrnn: the closed form leaves nothing to gain by training (validation loss {before:.3g})")
        return {"lrrnn/val_loss": before}
    after = float(trainer.checkpoint_callback.best_model_score)
    if not after < before:
        module.load_state_dict(start)
        context.say(f"lrrnn: kept the start, which no epoch improved (validation loss {before:.3g})")
    return {"lrrnn/val_loss": min(before, after)}


def _train_on_spikes(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[StageInputs, dict[str, float]]:
    options, sizes, recording, fold = context.options, data.sizes, data.recording, data.fold
    choice = options.lrrnn
    if _smoother_chosen(choice.inference, recording, sizes.rank):
        found = _solve_spikes(context, data, mark)
        if found is not None:
            return found
    with one_thread(options):
        model, baseline, loss = fit_spike_model(context, data, mark)
        latents, loadings, covariance, readings = spike_inputs(
            model, recording, fold.train, baseline, b_penalty=choice.b_penalty
        )
        scores = score_on_test_trials(context, model, recording, fold, baseline)
    if readings is None:
        context.say(
            "lrrnn: single bins say little of the latent states; connectivity is estimated from the fitted drive"
        )
    metrics = {"lrrnn/val_loss": loss} | scores
    return StageInputs(latents, loadings, fold, recording.activation, covariance, readings), metrics


def fit_spike_model(context: StageContext, data: RecordingDataModule, mark: str) -> tuple[SpikeModel, Baseline, float]:
    """Train the model of single trials of spikes; in a reproducible gauge, with its baseline and validation loss."""
    options, sizes, recording, fold = context.options, data.sizes, data.recording, data.fold
    choice = options.lrrnn
    baseline = fit_baseline(recording, fold.train, choice.baseline)
    context.say(f"lrrnn: baseline {baseline.description}")
    data.baseline = baseline.argument
    pl.seed_everything(options.seed, verbose=False)
    arguments = {
        "n_neurons": sizes.n_neurons,
        "rank": sizes.rank,
        "n_inputs": sizes.n_inputs,
        "alpha": sizes.alpha,
        "n_units": choice.n_units,
        "scale": baseline.scale,
        "rollout_weight": choice.rollout_weight,
        "init_seed": options.seed,
    }
    learning_rate = choice.learning_rate or SpikeModel.LEARNING_RATE
    module = LowRankRNNModule("spikes", arguments, options.seed, learning_rate, one_cycle=True)
    module.model.initialise(recording, fold.train, baseline)
    data.batch_size = choice.batch_size or SpikeModel.BATCH_SIZE
    epochs = choice.max_epochs or SpikeModel.MAX_EPOCHS
    trainer = fit(context, "lrrnn", module, data, mark, epochs, "lrrnn/val_loss", clip=SpikeModel.GRADIENT_CLIP)
    module.model.fix_gauge(TrialBatch.of(recording, fold.train, baseline.argument), _train_choices(recording, fold))
    return module.model, baseline, float(trainer.checkpoint_callback.best_model_score)


def _smoother_chosen(inference: str, recording: Recording, rank: int) -> bool:
    return inference == "smoother" or (inference == "auto" and spikes_per_bin(recording) > ENOUGH_SPIKES * rank)


def _solve_spikes(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[StageInputs, dict[str, float]] | None:
    """The closed form for spikes of many neurons; None where its dynamics do not explain them and another way is open."""
    options, sizes, recording, fold = context.options, data.sizes, data.recording, data.fold
    # What the latents do is seen here bin by bin: without a session's drift there is nothing else for a baseline to hold.
    kind = "constant" if recording.trial_times_s is None else options.lrrnn.baseline
    baseline = fit_baseline(recording, fold.train, kind)
    why = "" if kind == options.lrrnn.baseline else f" ({options.lrrnn.baseline} {NO_TIMES})"
    context.say(
        f"lrrnn: {spikes_per_bin(recording):.0f} spikes a bin, enough for the closed form; baseline {baseline.description}{why}"
    )
    pl.seed_everything(options.seed, verbose=False)
    arguments = {
        "n_neurons": sizes.n_neurons,
        "rank": sizes.rank,
        "n_inputs": sizes.n_inputs,
        "has_bias": True,
        "alpha": sizes.alpha,
        "activation": "softplus",
        "count_scale": baseline.scale,
    }
    module = LowRankRNNModule("rates", arguments, options.seed)
    rates, offset = as_rates(recording, baseline.scale), offset_of(baseline, recording, fold.train)
    solved = module.model.initialise(rates.trials(fold.train), None if offset is None else offset[fold.train])
    if not (solved.misfit is not None and solved.misfit < _WORST_MISFIT) and options.lrrnn.inference == "auto":
        context.say(
            f"lrrnn: no trajectories of a low-rank RNN pass near the counts (misfit {solved.misfit:.3g}); training"
        )
        return None
    data.baseline = offset
    metrics = {"lrrnn/val_loss": _validation_loss(module.model, data, rates)}
    fit(context, "lrrnn", module, data, mark, 0, "lrrnn/val_loss")
    latents, loadings, covariance, readings = rate_inputs(module.model, rates, fold.train, offset)
    model = SmoothedSpikeModel(module.model, recording, fold.train, baseline)
    metrics |= score_on_test_trials(context, model, recording, fold, baseline)
    return StageInputs(latents, loadings, fold, recording.activation, covariance, readings), metrics


def _train_choices(recording: Recording, fold: Fold) -> Tensor | None:
    return None if recording.choices is None else recording.choices[fold.train]
