"""The stage ``lrrnn``: fits the low-rank RNN to rates or spikes and hands over latents and loadings."""

from __future__ import annotations

from dataclasses import replace

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
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.rate_model import fitted_dynamics
from connector.lrrnn.spikes.baselines import Baseline, fit_baseline, session_times
from connector.lrrnn.spikes.model import SpikeModel
from connector.lrrnn.spikes.posterior import Start, sample_posterior, sampled_trials
from connector.lrrnn.spikes.readout import fitted_dynamics as fitted_to_spikes
from connector.lrrnn.spikes.sampler import LEAST_NOISE
from connector.lrrnn.spikes.smoothed import (
    ENOUGH_SPIKES,
    FEW_SPIKES,
    SmoothedSpikeModel,
    as_rates,
    offset_of,
    spikes_per_bin,
)
from connector.numerics import whitening_of
from connector.report.cautions import LEAST_SEEN, POSTERIOR_SEEN
from connector.report.glossary import NO_TIMES
from connector.stages.lrrnn_module import LowRankRNNModule
from connector.stages.lrrnn_rates import model_arguments, train_on_rates, validation_loss
from connector.stages.own_noise import noise_in_sd, say_draws, with_own_noise
from connector.stages.progress import StepProgress, sampling_progress
from connector.stages.responses import score_on_test_trials
from connector.stages.scaling import refit_scale, take_scale
from connector.stages.training import StageContext, fit, is_child_rank, one_thread
from connector.types import Latents, Recording, TrialBatch

_WORST_MISFIT = 2.0  # of the closed form to spikes; 1 where its trajectories explain all but the counts' own noise


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
    fitted = train_on_rates if data.sizes.kind == "rates" else _train_on_spikes
    found, metrics = fitted(context, data, mark)
    metrics |= chosen
    if comparable:
        found, more = in_true_gauge(found, data.recording)
        metrics |= more
    elif found.loadings.has_bias and found.latents.drive is None:
        found = with_plausible_origin(found)
        context.say("lrrnn: with a bias the origin of the latents is arbitrary; chosen where n is most plausible")
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
            guide = model.infer(TrialBatch.of(recording, None, baseline.argument))
            found, mixing = _sample_dynamics(context, data, guide, baseline)
            scores |= mixing
            if found is not None:
                return found, scores
        return fitted_to_spikes(model, recording, fold, baseline, b_penalty=choice.b_penalty), scores


def _sample_dynamics(
    context: StageContext, data: RecordingDataModule, guide: Tensor, baseline: Baseline
) -> tuple[FittedDynamics | None, dict[str, float]]:
    """The posterior of the dynamics given the training trials' counts, and how well it was sampled; None where the spikes do not
    show all latent dimensions.

    Args:
        guide: (trials, time, R) latents of the fit. Its gauge is the reproducible one, with signs by the choices; scripts compare
            the two.
    """
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
    found = found.moved(
        Gauge.nearest(*(z[fold.train][recording.mask[fold.train]].double() for z in (found.latents.z, guide)))
    )
    metrics = {
        "lrrnn/posterior_ess": mixing.ess,
        "lrrnn/posterior_halves": mixing.halves,
        "lrrnn/posterior_accepted": mixing.accepted,
        POSTERIOR_SEEN: mixing.seen,
        "lrrnn/process_noise": noise_in_sd(found.field.noise, found),
    }
    if mixing.seen >= LEAST_SEEN:
        return found, metrics
    context.say("lrrnn: the spikes do not show all latent dimensions; the sampled dynamics are discarded")
    return None, metrics


def fit_spike_model(context: StageContext, data: RecordingDataModule, mark: str) -> tuple[SpikeModel, Baseline, float]:
    """Train the model of single trials of spikes; in a reproducible gauge, with its baseline and validation loss."""
    options, sizes, recording, fold = context.options, data.sizes, data.recording, data.fold
    choice = options.lrrnn
    baseline = fit_baseline(recording, fold.train, choice.baseline)
    context.say(f"lrrnn: baseline {baseline.description}")
    data.baseline = baseline.argument
    pl.seed_everything(options.seed, verbose=False)
    arguments = model_arguments(sizes) | {
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
    arguments = model_arguments(sizes) | {"has_bias": True, "activation": "softplus", "count_scale": baseline.scale}
    module = LowRankRNNModule("rates", arguments, options.seed)
    rates, offset = as_rates(recording, baseline.scale), offset_of(baseline, recording, fold.train)
    solved = module.model.initialise(rates.trials(fold.train), None if offset is None else offset[fold.train])
    if not (solved.misfit is not None and solved.misfit < _WORST_MISFIT) and options.lrrnn.inference == "auto":
        context.say(
            f"lrrnn: no trajectories of a low-rank RNN pass near the counts (misfit {solved.misfit:.3g}); training"
        )
        return None
    data.baseline = offset
    metrics = {"lrrnn/val_loss": validation_loss(module.model, data, rates)}
    fit(context, "lrrnn", module, data, mark, 0, "lrrnn/val_loss")
    found = fitted_dynamics(module.model, rates, fold, offset)
    model = SmoothedSpikeModel(module.model, recording, fold.train, baseline)
    metrics |= score_on_test_trials(context, model, recording, fold, baseline)
    found = replace(found, activation=recording.activation)
    noise = noise_in_sd(module.model.process_covariance, found)
    few = spikes_per_bin(recording) < FEW_SPIKES * sizes.rank
    if (noise > LEAST_NOISE or few) and options.lrrnn.posterior_sweeps and not is_child_rank():
        why = "its errors are larger than stated at so few spikes a bin"
        if noise > LEAST_NOISE:
            why = f"the states carry noise of their own, {noise:.2g} sd a step, which its trajectories leave out"
        context.say(f"lrrnn: the dynamics are sampled beside the closed form: {why}")
        own = options.lrrnn.baseline
        drifting = baseline if kind == own else fit_baseline(recording, fold.train, own)
        with one_thread(options):
            sampled, mixing = _sample_dynamics(context, data, found.latents.z, drifting)
        metrics |= mixing
        if sampled is not None:
            return sampled, metrics
    return replace(found, n=None), metrics
