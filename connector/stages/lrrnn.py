"""The stage ``lrrnn``: fits the low-rank RNN to rates or spikes and hands over latents and loadings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from connector.analysis.explained import variance_explained
from connector.analysis.rank_choice import choose_rank, rank_checks
from connector.connectivity.nu.field import sampled_basis
from connector.connectivity.nu.regression import drive_offset
from connector.data.input_filter import with_inputs
from connector.data.modules import RecordingDataModule
from connector.data.recorded import require_in_range
from connector.errors import UserError, numerical_failure
from connector.lrrnn.closed_form import bias_supported
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.indicated import behind_indicator
from connector.lrrnn.rate_model import RateModel, lasting_misfit, of_rollouts
from connector.lrrnn.rate_model import fitted_dynamics as fitted_to_rates
from connector.lrrnn.spikes.baselines import Baseline, fit_baseline, session_times
from connector.lrrnn.spikes.model import SpikeModel
from connector.lrrnn.spikes.posterior import Start, sample_posterior, sampled_trials
from connector.lrrnn.spikes.readout import fitted_dynamics as fitted_to_spikes
from connector.lrrnn.spikes.smoothed import ENOUGH_SPIKES, SmoothedSpikeModel, as_rates, offset_of, spikes_per_bin
from connector.lrrnn.starts import Start as QuickStart
from connector.lrrnn.starts import best_inputs, clearly_better, power_about_means, quick_start, trial_errors
from connector.numerics import whitening_of
from connector.report.cautions import LEAST_SEEN, POSTERIOR_SEEN
from connector.report.glossary import NO_TIMES, TAKEN
from connector.stages.own_noise import noise_in_sd, say_draws, with_own_noise
from connector.stages.progress import StepProgress, sampling_progress
from connector.stages.responses import score_on_test_trials
from connector.stages.scaling import has_bias_of, refit_scale, take_scale
from connector.stages.training import StageContext, StageModule, fit, is_child_rank, one_thread
from connector.types import DataSizes, Latents, Recording, TrialBatch

# Fine-tuning from the closed form: small steps, since there is little left to gain.
_RATES_LEARNING_RATE, _RATES_BATCH_SIZE, _RATES_MAX_EPOCHS = 1e-4, 50, 2
# It is left out where the noise-free trajectories explain validation trials as well as free latents do, but for this
# fraction of the noise or of the power.
_NOTHING_TO_GAIN = {"noise": 0.02, "power": 1e-5}
_EXPLAINS_LITTLE = (
    0.5  # of the variance about the neurons' means: where the closed form leaves as much, another start is tried
)
# Rollouts are handed on in place of latents where they foretell rates so well but not perfectly, and errors of a step last.
_LEAST_ROLLOUT, _PERFECT_ROLLOUT, _LASTS = 0.8, 0.9999, 0.05
_TRIALS_OF_POWER = 20  # training trials whose mean square stands for the power
_WORST_MISFIT = 2.0  # of the closed form to spikes; 1 where its trajectories explain all but the counts' own noise


class Prediction(NamedTuple):
    """What the model infers of some trials.

    Attributes:
        index: (B,) numbers of the trials.
        latents: (B, time, R) posterior means given each trial's activity, zero past its end.
        activity: (B, time, K_obs) expected there: rates, or spike counts per bin.
    """

    index: Tensor
    latents: Tensor
    activity: Tensor


class LowRankRNNModule(StageModule):
    """A low-rank RNN fitted to rates or spikes; for the stage, or any Trainer of Lightning.

        data.setup()
        module = LowRankRNNModule("rates", {"n_neurons": data.sizes.n_neurons, "rank": 2})
        module.model.initialise(data.recording.trials(data.fold.train))
        trainer.fit(module, datamodule=data)
        predictions = trainer.predict(module, datamodule=data)  # a list of Prediction, all trials in their order

    ``data`` is a :class:`connector.data.modules.RecordingDataModule`; for spikes its ``baseline`` is set before.

    Args:
        kind: "rates" (:class:`connector.lrrnn.rate_model.RateModel`) or "spikes"
            (:class:`connector.lrrnn.spikes.model.SpikeModel`).
        model: arguments of that model, plain values (of :meth:`SpikeModel.of`).
        one_cycle: one-cycle schedule (spikes) instead of a constant learning rate.
    """

    def __init__(self, kind: str, model: dict, seed: int = 0, learning_rate: float = 1e-3, one_cycle: bool = False):
        super().__init__("lrrnn", seed, learning_rate, cosine=False)
        self.save_hyperparameters()
        self.model = RateModel(**model) if kind == "rates" else SpikeModel.of(**model)
        self.one_cycle = one_cycle

    def losses(self, batch: TrialBatch, step: int, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if not training:
            return self.model.validation_loss(batch)
        return self.model.loss(batch, self.progress_of_training(), self.generator(step))

    def predict_step(self, batch: TrialBatch, batch_index: int) -> Prediction:
        z = self.model.infer(batch)
        return Prediction(batch.index, z, self.model.expected_activity(batch, z))

    def configure_optimizers(self):
        groups = self.model.parameter_groups(self.learning_rate)
        optimizer = torch.optim.Adam(groups, lr=self.learning_rate, fused=True)
        if not self.one_cycle:
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def given_stage_inputs(data: RecordingDataModule) -> FittedDynamics:
    """The hand-over of a recording that carries its latents and loadings."""
    recording = data.recording
    require_in_range(recording)
    latents = Latents.of(recording, recording.latents.double() * recording.mask[..., None])
    return FittedDynamics(latents, recording.loadings.map(Tensor.double), data.fold, recording.activation)


def train_lrrnn(context: StageContext, data: RecordingDataModule, mark: str) -> dict[str, float]:
    """Stage ``lrrnn``: fit the low-rank RNN to the activity; hand over latents and the recorded neurons' loadings.

    Raises:
        UserError: another rank than that of known latents, with stages to follow, where truth and estimate are compared.
    """
    truth, stages = data.recording.latents, context.options.stages
    with one_thread(context.options):
        chosen = take_scale(context, data) | choose_rank_of(context, data)
        if context.options.lrrnn.rank == "auto":
            chosen |= refit_scale(context, data)
    rank = data.sizes.rank
    comparable = truth is not None and truth.shape[2] == rank
    if truth is not None and not comparable and (stages == "auto" or set(stages) != {"lrrnn"}):
        raise UserError(
            f"the rank of the known latents, {truth.shape[2]}, which connectivity is compared with",
            f"lrrnn.rank={rank}",
            "fit another rank by itself, with stages=[lrrnn]",
        )
    fitted = _train_on_rates if data.sizes.kind == "rates" else _train_on_spikes
    found, metrics = fitted(context, data, mark)
    metrics |= chosen
    if comparable:
        found, more = in_true_gauge(found, data.recording)
        metrics |= more
    elif found.loadings.has_bias and found.latents.drive is None:
        found = with_plausible_origin(found)
        context.say(
            "lrrnn: neurons have a bias, which leaves the origin of the latents open; put where n is most plausible"
        )
    if not is_child_rank():
        if data.sizes.kind == "rates":
            found, more = with_own_noise(context, found)
            metrics |= more
        context.store.write_stage_inputs(found)
    return metrics


def choose_rank_of(context: StageContext, data: RecordingDataModule) -> dict[str, float]:
    """For ``lrrnn.rank=auto``: the rank into the sizes of the data, and what it was chosen by."""
    options, recording, fold = context.options, data.recording, data.fold
    if options.lrrnn.rank != "auto":
        return {}
    if data.sizes.rank is not None:
        context.say(f"lrrnn: rank {data.sizes.rank}, that of the known latents")
        return {}
    # Inputs that enter in another way than is assumed look like further dimensions.
    open_kind = options.lrrnn.inputs == "auto" and recording.inputs is not None and recording.kind == "rates"
    kinds = ("instant", "filtered") if open_kind else (options.lrrnn.inputs.replace("auto", "instant"),)
    allowed, bias = torch.cat([fold.train, fold.validation]).sort().values, options.lrrnn.bias is not False
    with StepProgress("lrrnn, rank", context.console if options.trainer.progress else None) as progress:

        def tried(rank: int) -> None:
            progress.start(f"rank {rank}")

        baseline = None if recording.kind == "rates" else fit_baseline(recording, allowed, options.lrrnn.baseline)
        choices = [choose_rank(with_inputs(recording, kind), allowed, bias, tried, baseline=baseline) for kind in kinds]
    found = min(choices, key=lambda choice: choice.rank)
    data.sizes = replace(data.sizes, rank=found.rank)
    what, sign = ("squared error of held-out rates over their variance", 1.0)
    if recording.kind == "spikes":
        what, sign = ("bits per spike of held-out neurons over those from inputs and baseline", -1.0)
    scores = ", ".join(f"{sign * x:.3g}" for x in found.errors)
    context.say(
        f"lrrnn: rank {found.rank}, the smallest within one standard error of the best, {found.best} ({what}, at rank 1, 2, ...: "
        f"{scores})"
    )
    return {"lrrnn/rank_chosen": found.rank, "lrrnn/rank_of_least_error": found.best}


def in_true_gauge(fit: FittedDynamics, recording: Recording) -> tuple[FittedDynamics, dict[str, float]]:
    """The fit in the gauge of the known latents, found on training trials, and how well the two agree."""
    latents, truth, train = fit.latents, recording.latents.double(), fit.fold.train
    moved = fit.moved(Gauge.fit(latents.z, truth, latents.lengths, train, affine=fit.loadings.has_bias))
    if recording.loadings is not None and recording.loadings.d is None and moved.loadings.d is not None:
        moved = moved.without_bias()  # spikes are read out with an offset of their own
    mask = latents.mask.clone()
    mask[train] = False
    mean = truth[train][latents.mask[train]].mean(0)
    metrics = {"lrrnn/latents_r2": variance_explained(truth[mask], moved.latents.z[mask], mean)}
    if recording.loadings is not None:
        m = recording.loadings.m.double()
        metrics["lrrnn/loadings_r2"] = variance_explained(m, moved.loadings.m, m.mean(0))
    return moved, metrics


def with_plausible_origin(fit: FittedDynamics) -> FittedDynamics:
    """The fit, whose loadings have a bias, about the origin for which n is the most plausible: data leave it open
    (:func:`drive_offset`)."""
    shift = drive_offset(*fit.latents.trials(fit.fold.train).samples(), fit.loadings, activation=fit.activation)
    return fit.moved(Gauge(torch.eye(len(shift), dtype=shift.dtype), shift))


def origin_distance(fit: FittedDynamics, max_states: int = 500) -> float:
    """How far the latents' origin lies from the one for which n is the most plausible (:func:`drive_offset`), in standard
    deviations of the states; for loadings with a bias."""
    states = fit.latents.trials(fit.fold.train).samples()
    shift = drive_offset(*states, fit.loadings, activation=fit.activation, max_states=max_states)
    return float((shift @ whitening_of(states.z.double() - states.z.double().mean(0))).norm())


def _arguments(sizes: DataSizes) -> dict[str, Any]:
    """What every model is told of the data."""
    return {name: getattr(sizes, name) for name in ("n_neurons", "rank", "n_inputs", "alpha")}


def _rate_arguments(sizes: DataSizes, has_bias: bool | None) -> dict[str, Any]:
    return _arguments(sizes) | {"has_bias": has_bias, "activation": sizes.activation}


def _take_inputs(context: StageContext, data: RecordingDataModule, has_bias: bool | None) -> QuickStart | None:
    """Have the recording's inputs enter as the options say, or as validation trials ask for; the start that was tried then."""
    kind = context.options.lrrnn.inputs
    data.take_inputs("instant" if kind == "auto" else kind)
    if data.recording.inputs is None or kind != "auto":
        return None
    found = best_inputs(data.recording, data.fold, _rate_arguments(data.sizes, has_bias))
    if not found:
        return None
    kind, power = list(found)[-1], power_about_means(data.recording, data.fold)
    data.take_inputs(kind)
    scores = ", ".join(f"{name} {1 - start.loss / power:.3g}" for name, start in found.items())
    context.say(f"lrrnn: inputs {TAKEN[kind]} (R² of validation rollouts: {scores})")
    return found[kind]


def _better_start(
    context: StageContext, data: RecordingDataModule, model: RateModel, loss: float, quick: QuickStart | None
) -> float:
    """Of the closed form in ``model`` and a quick start, which is made where the first explains little, the better one by
    validation; its loss. One that explains nothing is told of."""
    recording, fold, power = data.recording, data.fold, power_about_means(data.recording, data.fold)
    if quick is None and not loss < _EXPLAINS_LITTLE * power:
        arguments = _rate_arguments(data.sizes, model.rnn.has_bias)
        quick = quick_start(recording, fold, arguments, recording.input_kind)
    if quick is not None and clearly_better(quick.errors, trial_errors(model, recording, fold), power):
        model.load_state_dict(quick.model.state_dict())
        context.say(
            f"lrrnn: the start without simulated trajectories is better (validation loss {quick.loss:.3g}, not {loss:.3g})"
        )
        loss = _validation_loss(model, data)
    if not loss < power:
        context.say(
            f"lrrnn: no start explains validation trials better than the neurons' mean rates (loss {loss:.3g}, {power:.3g}); "
            "check data.alpha, data.activation, lrrnn.rank and the inputs"
        )
    return loss


def _train_on_rates(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[FittedDynamics, dict[str, float]]:
    options, choice = context.options, context.options.lrrnn
    has_bias = has_bias_of(context, data)
    quick = _take_inputs(context, data, has_bias)
    sizes, recording = data.sizes, data.recording
    if has_bias is None:
        train = recording.trials(data.fold.train)
        has_bias = bias_supported(train, sizes.rank) if quick is None else quick.model.rnn.has_bias
        context.say(f"lrrnn: {'with' if has_bias else 'without'} a bias in each neuron, as the rates ask for")
    arguments = _rate_arguments(sizes, has_bias) | {
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
    if solved:
        before = _better_start(context, data, module.model, before, quick)
    idle = solved and _nothing_to_gain(module.model, data, before)
    epochs = choice.max_epochs or (0 if idle else _RATES_MAX_EPOCHS)
    metrics = _fit_unless_worse(context, module, data, mark, epochs, before)
    loss = _validation_loss(module.model, data, part=data.fold.test)
    metrics["lrrnn/rollout_r2"] = 1 - loss / power_about_means(recording, data.fold, data.fold.test)
    found = fitted_to_rates(module.model, recording, data.fold)
    if recording.shown is not None:
        return _behind_indicator(context, module.model, recording, found), metrics
    if recording.inputs is None:
        return found, metrics
    foretold = 1 - metrics["lrrnn/val_loss"] / power_about_means(recording, data.fold)
    if _LEAST_ROLLOUT < foretold < _PERFECT_ROLLOUT:
        metrics["lrrnn/lasting_misfit"] = lasting = lasting_misfit(found)
        if lasting > _LASTS:
            found = of_rollouts(module.model, recording, found)
            context.say(
                f"lrrnn: what the fit misses lasts (correlation {lasting:.2g} from step to step); its rollouts are handed on"
            )
    return found, metrics


def _behind_indicator(
    context: StageContext, model: RateModel, recording: Recording, fit: FittedDynamics
) -> FittedDynamics:
    """The fit finished on what the indicator shows; where it runs away, the rollouts of the fit to deconvolved rates."""
    try:
        return behind_indicator(fit, recording)
    except (UserError, torch.linalg.LinAlgError):
        context.say(
            "lrrnn: no trajectories pass near what the indicator shows; rollouts of the fit to deconvolved rates are handed on"
        )
        return of_rollouts(model, recording, fit)


def _validation_loss(
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
        context.say(f"lrrnn: the closed form leaves nothing to gain by training (validation loss {before:.3g})")
        return {"lrrnn/val_loss": before}
    after = float(trainer.checkpoint_callback.best_model_score)
    if not after < before:
        module.load_state_dict(start)
        context.say(f"lrrnn: kept the start, which no epoch improved (validation loss {before:.3g})")
    return {"lrrnn/val_loss": min(before, after)}


def _train_on_spikes(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[FittedDynamics, dict[str, float]]:
    options, choice = context.options, context.options.lrrnn
    data.take_inputs("instant" if choice.inputs == "auto" else choice.inputs)
    sizes, recording, fold = data.sizes, data.recording, data.fold
    if _smoother_chosen(choice.inference, recording, sizes.rank):
        found = _solve_spikes(context, data, mark)
        if found is not None:
            return found
    with one_thread(options):
        model, baseline, loss = fit_spike_model(context, data, mark)
        scores = {"lrrnn/val_loss": loss} | score_on_test_trials(context, model, recording, fold, baseline)
        scores |= rank_checks(recording, fold, sizes.rank, baseline)
        if choice.posterior_sweeps and not is_child_rank():
            found, mixing = _sample_dynamics(context, data, model, baseline)
            scores |= mixing
            if mixing[POSTERIOR_SEEN] >= LEAST_SEEN:
                return found, scores
            context.say("lrrnn: the spikes do not show all latent dimensions; the sampled dynamics are thrown away")
        return fitted_to_spikes(model, recording, fold, baseline, b_penalty=choice.b_penalty), scores


def _sample_dynamics(
    context: StageContext, data: RecordingDataModule, model: SpikeModel, baseline: Baseline
) -> tuple[FittedDynamics, dict[str, float]]:
    """The posterior of the dynamics given the training trials' counts, and how well it was sampled."""
    options, recording, fold = context.options, data.recording, data.fold
    sweeps, seed = options.lrrnn.posterior_sweeps, options.seed
    some, of = len(sampled_trials(recording, fold)), len(fold.train)
    part = "" if some == of else f", in {some} of {of} training trials"
    context.say(f"lrrnn: sampling the posterior of the dynamics, {sweeps} sweeps{part}")
    basis = sampled_basis(recording.activation, recording.alpha, seed)
    with sampling_progress(context.console if options.trainer.progress else None) as shown:
        start = Start.of_counts(recording, fold, data.sizes.rank, baseline)
        try:
            found, mixing = sample_posterior(
                start,
                recording,
                fold,
                basis,
                sweeps=sweeps,
                seed=seed,
                progress=shown,
            )
        except torch.linalg.LinAlgError:
            what = "sampling the dynamics met a covariance that is singular: some latent dimension is not seen in the spikes"
            raise numerical_failure("lrrnn", f"{what}; lower lrrnn.rank, or set lrrnn.posterior_sweeps=0") from None
    say_draws(context, mixing.ess)
    # The model's gauge is the reproducible one, with signs by the choices; scripts compare the two.
    guide = model.infer(TrialBatch.of(recording, None, baseline.argument))
    found = found.moved(
        Gauge.nearest(*(z[fold.train][recording.mask[fold.train]].double() for z in (found.latents.z, guide)))
    )
    return found, {
        "lrrnn/posterior_ess": mixing.ess,
        "lrrnn/posterior_halves": mixing.halves,
        "lrrnn/posterior_accepted": mixing.accepted,
        POSTERIOR_SEEN: mixing.seen,
        "lrrnn/process_noise": noise_in_sd(found.field.noise, found),
    }


def fit_spike_model(context: StageContext, data: RecordingDataModule, mark: str) -> tuple[SpikeModel, Baseline, float]:
    """Train the model of single trials of spikes; in a reproducible gauge, with its baseline and validation loss."""
    options, sizes, recording, fold = context.options, data.sizes, data.recording, data.fold
    choice = options.lrrnn
    baseline = fit_baseline(recording, fold.train, choice.baseline)
    context.say(f"lrrnn: baseline {baseline.description}")
    data.baseline = baseline.argument
    pl.seed_everything(options.seed, verbose=False)
    arguments = _arguments(sizes) | {
        "n_units": choice.n_units,
        "scale": baseline.scale,
        "rollout_weight": choice.rollout_weight,
        "init_seed": options.seed,
    }
    learning_rate = choice.learning_rate or SpikeModel.LEARNING_RATE
    module = LowRankRNNModule("spikes", arguments, options.seed, learning_rate, one_cycle=True)
    module.model.initialise(recording, fold.train, baseline)
    data.batch_size = choice.batch_size or SpikeModel.BATCH_SIZE
    epochs = choice.max_epochs or SpikeModel.epochs_for(int(recording.lengths[fold.train].sum()))
    trainer = fit(context, "lrrnn", module, data, mark, epochs, "lrrnn/val_loss", clip=SpikeModel.GRADIENT_CLIP)
    choices = None if recording.choices is None else recording.choices[fold.train]
    module.model.fix_gauge(TrialBatch.of(recording, fold.train, baseline.argument), choices)
    return module.model, baseline, float(trainer.checkpoint_callback.best_model_score)


def _smoother_chosen(inference: str, recording: Recording, rank: int) -> bool:
    return inference == "smoother" or (inference == "auto" and spikes_per_bin(recording) > ENOUGH_SPIKES * rank)


def _solve_spikes(
    context: StageContext, data: RecordingDataModule, mark: str
) -> tuple[FittedDynamics, dict[str, float]] | None:
    """The closed form for spikes of many neurons; None where its dynamics do not explain them and another way is open."""
    options, sizes, recording, fold = context.options, data.sizes, data.recording, data.fold
    # What the latents do is seen here bin by bin: without a session's drift there is nothing else for a baseline to hold.
    kind = "constant" if session_times(recording) is None else options.lrrnn.baseline
    baseline = fit_baseline(recording, fold.train, kind)
    why = "" if kind == options.lrrnn.baseline else f" ({options.lrrnn.baseline} {NO_TIMES})"
    context.say(
        f"lrrnn: {spikes_per_bin(recording):.0f} spikes a bin, enough for the closed form; baseline {baseline.description}{why}"
    )
    pl.seed_everything(options.seed, verbose=False)
    arguments = _arguments(sizes) | {"has_bias": True, "activation": "softplus", "count_scale": baseline.scale}
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
    found = fitted_to_rates(module.model, rates, fold, offset)
    model = SmoothedSpikeModel(module.model, recording, fold.train, baseline)
    metrics |= score_on_test_trials(context, model, recording, fold, baseline)
    return replace(found, activation=recording.activation, n=None), metrics
