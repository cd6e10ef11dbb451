"""Within the stage ``lrrnn``: rates whose states carry noise of their own."""

from __future__ import annotations

from torch import Tensor

from connector.connectivity.nu.field import sampled_basis
from connector.lrrnn.field_posterior import ENOUGH_DRAWS
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.noisy_states import process_noise, sample_field
from connector.stages.progress import sampling_progress
from connector.stages.training import StageContext


def with_own_noise(context: StageContext, found: FittedDynamics) -> tuple[FittedDynamics, dict[str, float]]:
    """The fit to rates with the sampled posterior of its drive, where states carry noise of their own: trajectories without
    it would leave them behind."""
    options, sweeps = context.options, context.options.lrrnn.posterior_sweeps
    noise = process_noise(found) if sweeps else None
    if noise is None:
        return found, {}
    size = noise_in_sd(noise.q, found)
    context.say(
        f"lrrnn: the states carry noise of their own, {size:.2g} sd a step; sampling the posterior of the dynamics"
    )
    basis = sampled_basis(found.activation, found.latents.alpha, options.seed)
    with sampling_progress(context.console if options.trainer.progress else None) as shown:
        found = sample_field(found, noise, basis, sweeps=sweeps, seed=options.seed, progress=shown)
    say_draws(context, float(found.field.effective))
    return found, {
        "lrrnn/posterior_ess": float(found.field.effective),
        "lrrnn/process_noise": noise_in_sd(found.field.noise, found),
    }


def say_draws(context: StageContext, effective: float) -> None:
    """Says how many of the draws of the dynamics are independent."""
    enough = effective >= ENOUGH_DRAWS
    few = "" if enough else f" ({ENOUGH_DRAWS} are needed, else bands are too narrow); raise lrrnn.posterior_sweeps"
    context.say(f"lrrnn: {effective:.2g} independent draws of the dynamics{few}")


def noise_in_sd(noise: Tensor, found: FittedDynamics) -> float:
    """Process noise (R, R) of a step, in standard deviations of the training trials' states, mean over the dimensions."""
    z = found.latents.trials(found.fold.train).samples().z.double()
    return float((noise.diagonal() / z.var(0)).sqrt().mean())
