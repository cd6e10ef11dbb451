"""The stage ``outputs``: the conditional mean nu = E[n | m, b, d], the flow of n, and what holds both to the recorded drive."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor

from connector.analysis.fields import drift_r2
from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.drive_matching import (
    SHIFT_REGULARIZER,
    DriveTilt,
    OutputShift,
    fit_drive_tilt,
    fit_output_shift,
)
from connector.connectivity.flow import Flow
from connector.connectivity.nu.design import Design
from connector.connectivity.nu.field import fit_field
from connector.connectivity.nu.mean import ConditionalMean
from connector.connectivity.nu.regression import MeanSettings, fit_conditional_mean, published_to_lambda
from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.data.modules import TensorDataModule
from connector.dynamics import activation, potentials
from connector.errors import numerical_failure
from connector.lrrnn.handover import FittedDynamics
from connector.numerics import inverse_root, ridge
from connector.report.numbers import multiple, percent
from connector.runs.options import Options
from connector.stages.flows import FlowJob, FlowModule, RidgeOutputsModule, network_arguments
from connector.stages.training import StageContext
from connector.types import Loadings, States

_READABLE = 0.2  # error of single readings, of the states' variance: noisier ones were not among the recordings checked
_OF_NOISY_STATES = (
    "The states carry noise of their own. In 34 simulated recordings of that kind intervals of 80 and 95 % held the vector field at 75 "
    "and 93 % of the states. Intervals of nu have not been checked there, so signs are not stated. What to do: rely on the vector field "
    "and its attractors, not on nu."
)
_NOTICEABLE_ERROR = 1e-6  # variance of a loading's error over the loadings' variance
_TILT_POINTS, _TILT_STATES = 8192, 400  # of the flow, in the means that its tilt sets; and states at which
PROJECTION_REGULARIZER = 1e-5  # of sampled networks where the recorded drive is known
_KEPT_DRIFT, _PROJECTED_NEURONS = 0.98, 1000
_REFERENCE_STATES = 4000  # at most, at which a projected network has the recorded drive


def estimate_conditional_mean(options: Options, inputs: FittedDynamics, flow: Flow) -> ConditionalMean:
    """nu = E[n | m, b, d] from the training trials, on the pool of loadings that the options name."""
    connectivity = options.connectivity
    if connectivity.estimator == "trajectories" and connectivity.regularizer is None:
        if inputs.field is not None:
            return _from_field(options, inputs)
        if inputs.latents.drive is None:
            return _from_trajectories(options, inputs)
    z, u, y = inputs.latents.trials(inputs.fold.train).samples()
    pool = inputs.loadings if connectivity.pool == "recorded" else _loadings_from(flow, options, inputs.loadings)
    # A drive that comes from a fitted model is free of noise, so evidence cannot set the regulariser: validation does.
    of_model = inputs.latents.drive is not None
    regularizer, published = connectivity.regularizer, connectivity.regularizer_published
    if published is not None:
        regularizer = published_to_lambda(published, inputs.latents.alpha, pool.n_neurons, len(z))
    elif of_model and regularizer is None:
        regularizer = "validation"
    return fit_conditional_mean(
        z,
        u,
        y,
        pool,
        activation=inputs.activation,
        estimator="ridge" if connectivity.estimator == "ridge" else "gaussian_process",
        regularizer=regularizer,
        validation=inputs.latents.trials(inputs.fold.validation).samples() if regularizer == "validation" else None,
        own_deviations=connectivity.pool == "recorded" and not of_model,
        settings=MeanSettings(
            pseudo_loadings="auto" if of_model else 0, max_states=connectivity.max_states, seed=options.seed
        ),
    )


def _noticeable_errors(inputs: FittedDynamics) -> Tensor | None:
    """Covariance of the loadings' errors; None where they are far below the spread of the loadings: they only cost time.

    Without the columns whose errors exceed their spread: of those nothing is known that errors could spoil.
    """
    covariance = inputs.loadings_covariance
    if covariance is None:
        return None
    error = covariance.diagonal(dim1=1, dim2=2).mean(0) / inputs.loadings.stack().double().var(0).clamp_min(1e-300)
    known = (error < 1).to(covariance)
    return covariance * known[:, None] * known if float((error * known).max()) > _NOTICEABLE_ERROR else None


def _recorded_fraction(options: Options) -> float | None:
    fraction = options.connectivity.recorded_fraction
    return getattr(options.data, "recorded_fraction", None) if fraction is None else fraction


def _from_field(options: Options, inputs: FittedDynamics) -> ConditionalMean:
    """The estimate from the sampled posterior of the drive, with the uncertainty of the loadings."""
    z, u, _ = inputs.latents.trials(inputs.fold.train).samples()
    found = fit_field(
        inputs.field,
        z,
        u,
        inputs.loadings,
        activation=inputs.activation,
        alpha=inputs.latents.alpha,
        recorded_fraction=_recorded_fraction(options),
        loadings_covariance=_noticeable_errors(inputs),
        settings=TrajectorySettings(seed=options.seed),
    )
    if inputs.n is not None:  # of rates, whose states carry noise of their own
        found.summary.update(warnings=[*found.summary["warnings"], _OF_NOISY_STATES], unbacked=True)
    return found


def _from_trajectories(options: Options, inputs: FittedDynamics) -> ConditionalMean:
    """The estimate from whole trajectories, with the uncertainty of latents and loadings that the lrRNN stage found."""
    latents = inputs.latents.trials(inputs.fold.train)
    readings = None if inputs.readings is None else tuple(x[inputs.fold.train] for x in inputs.readings)
    found = fit_trajectories(
        latents,
        inputs.loadings,
        activation=inputs.activation,
        stride=getattr(options.data, "stride", 1),
        recorded_fraction=_recorded_fraction(options),
        loadings_covariance=_noticeable_errors(inputs),
        observed=readings,
        decay=inputs.decay,
        settings=TrajectorySettings(max_samples=5 * options.connectivity.max_states, seed=options.seed),
    )
    warned = ""
    error = 0.0 if readings is None else _reading_error(latents.z[latents.mask], readings[1][latents.mask])
    if error > _READABLE:
        warned = (
            f"A latent state read from a single sample has an error variance of {multiple(error)} its own variance in some direction. "
            f"Intervals of nu have not been checked beyond {percent(_READABLE)}, so signs are not stated. What to do: record more "
            "neurons, or lower lrrnn.rank."
        )
    elif inputs.rollouts:
        warned = (
            "The latent states are trajectories of the fitted network, which misses a part of the activity. Intervals of nu do not "
            "include what it misses, so signs are not stated. What to do: read nu as that of the fitted network; a higher lrrnn.rank "
            "misses less."
        )
    if warned:
        found.summary.update(warnings=[*found.summary["warnings"], warned], unbacked=True)
    return found


def _reading_error(z: Tensor, covariance: Tensor) -> float:
    """Variance of the error of states (N, R) read from samples, over the states' own, along the direction where it is largest."""
    unit = inverse_root(z - z.mean(0))
    return float(torch.linalg.eigvalsh(unit.T @ covariance.mean(0) @ unit)[-1])


def _loadings_from(flow: Flow, options: Options, like: Loadings) -> Loadings:
    generator = torch.Generator().manual_seed(options.seed)
    rows = flow.sample(
        options.connectivity.outputs_loadings, steps=options.connectivity.flow.steps, generator=generator
    )
    return Loadings.unstack(rows.double(), *like.layout)


def published_ridge(options: Options, inputs: FittedDynamics, max_states: int = 2000) -> Callable[[Tensor], Tensor]:
    """The published third step's solver: stacked loadings (K, P) -> the ridge solution n (K, R) on them.

    Minimises (1/T) ||Y - X N / K||^2 + lambda (1/K) ||N||^2 in its dual form, on a random ``max_states`` of the
    training states (both terms are averages, so that fewer states mean the same lambda).
    """
    connectivity, layout = options.connectivity, inputs.loadings.layout
    states = inputs.latents.trials(inputs.fold.train).samples()
    z, u, y = states.choice(max_states, options.seed)
    phi = activation(inputs.activation)

    def solve(rows: Tensor) -> Tensor:
        lam = connectivity.regularizer
        if lam is None:
            published = connectivity.regularizer_published or 1e-4
            lam = published_to_lambda(published, inputs.latents.alpha, len(rows), len(states.z))
        x = phi(potentials(Loadings.unstack(rows.double(), *layout), z, u)) / len(rows)
        return ridge(x, y, lam * len(z) / len(rows))

    return solve


def drive_of_mean(options: Options, inputs: FittedDynamics, mean: ConditionalMean, states: States) -> States:
    """These states with the drive that sampled networks shall have. Successive latents would show it with their noise.

    The one that latents come with, where there is one. Else, of a network recorded whole, that of its neurons with n = nu,
    without the own deviations of n from nu; of others that of the fitted low-rank RNN: the recorded neurons are a sample of those
    that drive, and with n = nu miss the drive by what chance has in it.
    """
    if inputs.latents.drive is not None:
        return states
    if inputs.n is not None and _recorded_fraction(options) != 1:
        return states._replace(y=inputs.network.double().drive(states.z.double(), states.u))
    loadings = inputs.loadings.map(Tensor.double)
    y = Design(activation(inputs.activation), loadings, states.z, states.u).times(mean(loadings.stack()))
    return states._replace(y=y)


def rate_power(inputs: FittedDynamics, n_states: int = 400) -> float:
    """What a penalty on n is multiplied by, so that it weighs the same whatever the unit of the rates: 1 where phi has a scale
    of its own, and the rates' mean square where it has none (relu)."""
    if inputs.activation != "relu":
        return 1.0
    z, u, _ = inputs.latents.trials(inputs.fold.train).samples().spread(n_states)
    return float(activation(inputs.activation)(potentials(inputs.loadings, z, u)).square().mean())


def match_drive(
    options: Options, inputs: FittedDynamics, flow: Flow, mean: ConditionalMean, visited: States, reference: States
) -> tuple[DriveTilt | None, OutputShift | None]:
    """What holds sampled networks to the recorded drive (:mod:`connector.connectivity.drive_matching`): of the loadings,
    and of n given them.

    Tails heavier than a normal density's leave no tilt: the weights grow exponentially in nu.

    Args:
        visited: states of the training trials; reference: these with the drive that sampled networks shall have.
    """
    if not options.connectivity.match_drive:
        return None, None
    rows = flow.sample(base=flow.base_quadrature(_TILT_POINTS, options.seed), steps=options.connectivity.flow.steps)
    nu, rows, loadings = mean.quick(rows).double(), rows.double(), inputs.loadings
    fixed = {"activation": inputs.activation, "shape": loadings.layout}
    tilt = None
    if flow.base == "normal":
        drive = drive_of_mean(options, inputs, mean, visited.spread(_TILT_STATES))
        tilt = fit_drive_tilt(rows, nu, *drive, n_neurons=loadings.n_neurons, **fixed)
    weights = None if tilt is None else tilt.log_weight(rows, nu).exp()
    lam = SHIFT_REGULARIZER * rate_power(inputs)
    return tilt, fit_output_shift(rows, nu, *reference, weights=weights, regularizer=lam, **fixed)


def assemble(
    options: Options, inputs: FittedDynamics, loadings_flow: Flow, mean: ConditionalMean, outputs_flow: Flow
) -> ConnectivityDistribution:
    """The distribution from its parts, held to the drive of the training trials.

    That is what successive latents show where these are known, and :func:`drive_of_mean` where each is uncertain.
    """
    connectivity = options.connectivity
    visited = inputs.latents.trials(inputs.fold.train).samples()
    reference = visited if inputs.readings is None else drive_of_mean(options, inputs, mean, visited)
    tilt, shift = match_drive(options, inputs, loadings_flow, mean, visited, reference)
    return ConnectivityDistribution(
        loadings_flow,
        mean,
        alpha=inputs.latents.alpha,
        activation=inputs.activation,
        tilt=tilt,
        shift=shift,
        outputs_flow=outputs_flow,
        # The published flow of n is trained on ridge solutions without spread.
        sigma=0.0 if connectivity.outputs == "flow" else connectivity.sigma,
        outputs=connectivity.outputs,
        reference=reference.choice(_REFERENCE_STATES, options.seed),
        projection_regularizer=connectivity.projection_regularizer or PROJECTION_REGULARIZER * rate_power(inputs),
        flow_steps=connectivity.flow.steps,
    )


def choose_projection_regularizer(distribution: ConnectivityDistribution, inputs: FittedDynamics, seed: int) -> float:
    """The largest lambda at which a projected network explains ``_KEPT_DRIFT`` of the drift of validation trials in every
    latent dimension; else the best of those tried.

    Drift that is small beside what cancels in it (of a fitted model, driven by inputs) needs a smaller lambda, hence a larger
    change of n, than the drive of a network that is seen whole.
    """
    z, u, y = inputs.latents.trials(inputs.fold.validation).samples()
    mean = (y.double() - z.double()).mean(0)  # of what this chooses by, not of what is scored
    net = distribution.sample(_PROJECTED_NEURONS, sigma=distribution.sigma, seed=seed)
    found = {}
    for power in range(0, 6):
        distribution.projection_regularizer = regularizer = PROJECTION_REGULARIZER * 10.0**-power
        found[regularizer] = float(drift_r2(distribution.project(net), z, u, y, mean).min())
        if found[regularizer] >= _KEPT_DRIFT:
            return regularizer
    return max(found, key=found.get)


def prepare_outputs(context: StageContext, inputs: FittedDynamics, mark: str) -> FlowJob:
    """Stage ``outputs``: the conditional mean nu and the flow of n, written with all else to connectivity.pt."""
    options, connectivity, store = context.options, context.options.connectivity, context.store
    loadings_flow = store.read_loadings_flow()
    mean = estimate_conditional_mean(options, inputs, loadings_flow.requires_grad_(False))
    generator = torch.Generator().manual_seed(options.seed + 1)
    rows = loadings_flow.sample(connectivity.outputs_loadings, steps=connectivity.flow.steps, generator=generator)
    nu = mean.quick(rows)
    if not torch.isfinite(nu).all():
        raise numerical_failure("outputs", "the conditional mean of n is not finite at some loadings")
    through_flow = connectivity.outputs == "flow"
    spread = 0.0 if through_flow else connectivity.sigma
    flow = {"dim": nu.shape[1], "context_dim": rows.shape[1]} | network_arguments(connectivity.flow)
    pl.seed_everything(options.seed, verbose=False)
    module = (RidgeOutputsModule if through_flow else FlowModule)(
        "outputs",
        flow,
        seed=options.seed,
        learning_rate=connectivity.outputs_learning_rate,
        weight_decay=connectivity.weight_decay,
        cosine=connectivity.cosine,
        noise_std=spread,
    )
    module.flow.fit_scaler(nu + spread * torch.randn(nu.shape, generator=generator), rows)
    if through_flow:
        solve = published_ridge(options, inputs)
        module.attach(loadings_flow, solve, connectivity.outputs_loadings, connectivity.flow.steps)
    data = TensorDataModule((nu, rows), batch_size=connectivity.outputs_batch_size, seed=options.seed)

    def finish() -> None:
        distribution = assemble(options, inputs, loadings_flow, mean, module.flow.eval())
        of_model = inputs.latents.drive is not None or inputs.rollouts
        if connectivity.projection_regularizer is None and of_model:
            chosen = choose_projection_regularizer(distribution, inputs, options.seed)
            distribution.projection_regularizer = chosen
            context.say(
                f"outputs: projection with lambda {chosen:.0e}, the largest that keeps the drift of validation trials"
            )
        store.write_module(store.connectivity_file, distribution.save)

    return FlowJob("outputs", context, mark, module, data, connectivity.outputs_epochs, "best", finish)
