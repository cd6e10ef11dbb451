"""nu from a posterior of the drive: the same prior and mixture as for trajectories, the likelihood as it was sampled.

    F(z, u) = B(z, u) c of a :class:`connector.lrrnn.field_posterior.FieldPosterior`, B'(z, u) x of the pool's own basis

c = T x + t, where T is the least-squares map of one basis on the other over the visited states.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from connector.connectivity.nu.assembly import assemble, summary
from connector.connectivity.nu.design import Design, build_field
from connector.connectivity.nu.evidence import amplitude_prior
from connector.connectivity.nu.kernels import KERNELS, kernel_grid
from connector.connectivity.nu.mean import TrajectoryMean
from connector.connectivity.nu.population import build_pool
from connector.connectivity.nu.prior import Posterior, Prior, Quadratic
from connector.connectivity.nu.trajectories import TrajectorySettings
from connector.dynamics import Activation, potentials
from connector.dynamics import activation as get_activation
from connector.lrrnn.field_posterior import ENOUGH_DRAWS, FieldPosterior
from connector.lrrnn.spikes.coefficients import CoefficientPrior
from connector.lrrnn.spikes.sampler import MakeBasis
from connector.numerics import inverse_root, least_squares, random_rows
from connector.shooting import Field
from connector.types import Loadings

_STATES = 1500  # over which a basis is built
_SAMPLED_FAMILIES = ("none", "arcsine", "additive", "matern32")
_SAMPLED_WIDTHS = (0.4, 0.8, 1.6, 3.2)
_SAMPLED_MODES = 120  # of the sampler's basis times R, at most
_OPEN = 0.1  # expected squared error of nu over its mean square, above which no sign is stated
_BACKED = 0.5  # of the drive's size that the recorded neurons may miss with n = nu
_CARRIED = 1e-7  # square of a function, against the largest, that the neurons that carry the sampler's basis may leave


def sampled_basis(activation: str, alpha: float, seed: int) -> MakeBasis:
    """What :class:`connector.lrrnn.spikes.sampler.PathSampler` builds its field with, from loadings and visited states."""

    def build(loadings: Loadings, z: Tensor, u: Tensor | None) -> tuple[Field, CoefficientPrior]:
        generator = torch.Generator().manual_seed(seed)
        pool = build_pool(loadings, None, 0.0, "auto", generator)
        pick = random_rows(len(z), _STATES, seed)
        z, u = z[pick], None if u is None else u[pick]
        modes = max(8, _SAMPLED_MODES // z.shape[1])
        design = Design(get_activation(activation), pool.points, z, u)
        field, v = build_field(design, alpha, 1, 1e-4, modes, generator, carried=_CARRIED)
        gauge = inverse_root(loadings.m - loadings.m.mean(0))
        prior = Prior(pool, v, False, gauge, 900, generator)
        grid = kernel_grid(_SAMPLED_FAMILIES, _SAMPLED_WIDTHS)
        parts = torch.stack([torch.stack([prior.linear, prior.curved(*kind)[1], prior.white]) for kind in grid])
        # Leaks that the drive cancels (F = z) tell the size of n.
        leading = least_squares(field(z, u)[:, :3], z) @ torch.linalg.inv(gauge)
        size = (leading.square().sum() / (pool.size * z.shape[1])).clamp_min(1e-30)
        centre, width = amplitude_prior(size, torch.ones_like(size), 0.0, grid)
        shares = torch.tensor([sum(f == other for other, _ in grid) for f, _ in grid], dtype=torch.float64)
        return field, CoefficientPrior(parts, -shares.log(), centre[:, :3], width[:, :3], gauge)

    return build


def fit_field(
    posterior: FieldPosterior,
    z: Tensor,
    u: Tensor | None,
    loadings: Loadings,
    *,
    activation: str,
    alpha: float,
    recorded_fraction: float | None = None,
    loadings_covariance: Tensor | None = None,
    settings: TrajectorySettings | None = None,
) -> TrajectoryMean:
    """nu(m, b, d) = E[n | m, b, d] with intervals, from what is known of the drive.

    Args:
        posterior: of the drive, in the gauge of states and loadings.
        z (N, R), u (N, U): visited states and inputs, over which the drive is known.
        loadings: of the recorded neurons, (K, ...); loadings_covariance: (K, P, P) of their errors, or None.
        activation: name of phi of the network; alpha: Euler step of the network in time constants.
        recorded_fraction: recorded share of the network; None: unknown, taken as very large.
    """
    settings, phi = settings or TrajectorySettings(), get_activation(activation)
    # Spikes say little about nu. Smooth families would turn a law that holds on average into signs of single neurons.
    settings = replace(
        settings, families=tuple(name for name in settings.families if KERNELS[name].rough) or settings.families
    )
    generator = torch.Generator().manual_seed(settings.seed)
    loadings, rank = loadings.map(Tensor.double), loadings.rank
    pool = build_pool(
        loadings,
        None if loadings_covariance is None else loadings_covariance.double(),
        recorded_fraction or 0.0,
        settings.pseudo_loadings,
        generator,
    )
    odd = phi.odd and not loadings.has_bias and loadings.n_inputs == 0
    gauge = inverse_root(loadings.m if odd else loadings.m - loadings.m.mean(0))
    pick = random_rows(len(z), settings.max_states, settings.seed)
    z, u = z[pick].double(), None if u is None else u[pick].double()
    modes = settings.max_modes or max(1, 320 // rank)
    field, v = build_field(Design(phi, pool.points, z, u), alpha, 1, settings.mode_cutoff, modes, generator)
    prior = Prior(pool, v, odd, gauge, settings.max_centres, generator)
    likelihood = _in_basis(posterior, field, gauge, z, u)
    leading = likelihood.c.view(-1, rank)[:3].square().sum() / (pool.size * rank)
    reference = 4 * leading.clamp_min(1e-30) * (prior.linear + prior.curved("arcsine", 0.8)[1] + 0.3 * prior.white)
    reference = reference + 1e-9 * reference.diagonal().mean() * torch.eye(len(reference)).to(reference)
    grid = kernel_grid(settings.families, settings.widths)
    found = Posterior(prior, grid, likelihood, reference, settings.max_directions, 0.0)
    components = found.mixture(settings.draws, generator)
    model = assemble(found, components, field, loadings, activation, settings.width_factor)
    model.summary.update(summary(model, found, components, loadings))
    effective = float(posterior.effective)
    few = effective < ENOUGH_DRAWS
    warned = [_too_few(effective)] if few else []
    missed = _missed(model, posterior, loadings, z, u, phi)
    if missed > _BACKED:
        warned.append(
            f"With n = nu the recorded neurons miss the drive by {100 * missed:.0f} % of its size. nu is so steep in the "
            "loadings that it rests on neurons that were not recorded, so none of its signs is stated. What to do: do not interpret "
            "nu; a lower lrrnn.rank or more neurons may help."
        )
    # The size of nu is one for all intervals, and the prior's where little of nu is known: their errors go together.
    told = model.summary["predicted_error"] <= _OPEN
    about = {"warnings": warned, "unbacked": few or missed > _BACKED, "signs_told": told}
    model.summary.update({"estimator": "field_posterior", **about})
    return model


def _missed(
    model: TrajectoryMean, posterior: FieldPosterior, loadings: Loadings, z: Tensor, u: Tensor | None, phi: Activation
) -> float:
    """How far the drive of nu at the recorded loadings is from the posterior's, relative to its spread over the states."""
    drive = posterior.drive(z, u)
    own = phi(potentials(loadings, z, u)) @ model.mean(loadings.stack()) / loadings.n_neurons
    return float((own - drive).norm() / (drive - drive.mean(0)).norm().clamp_min(1e-300))


def _too_few(effective: float) -> str:
    """What to say of a posterior of which few draws are independent."""
    return (
        f"The posterior of the dynamics rests on {effective:.2g} independent draws ({ENOUGH_DRAWS} are needed). Its bands are too "
        "narrow by an unknown amount, so the report states neither signs of nu nor attractors. What to do: raise "
        "lrrnn.posterior_sweeps, or lower lrrnn.rank."
    )


def _in_basis(posterior: FieldPosterior, field: Field, gauge: Tensor, z: Tensor, u: Tensor | None) -> Quadratic:
    """The posterior's likelihood as one of x' with the drive B'(z, u) x' gauge."""
    old, new = posterior.basis(z, u), field(z, u)
    towards = least_squares(old, torch.cat([new, torch.ones_like(z[:, :1])], 1))  # (p, p' + 1)
    map_, constant = towards[:, :-1], towards[:, -1:] * posterior.constant
    # Where x' starts does not matter to the quadratic but for rounding.
    target = (posterior.drive(z, u)) @ torch.linalg.inv(gauge)
    x = least_squares(new, target)
    lift = torch.kron(map_.contiguous(), gauge.T.contiguous())
    off = lift @ x.reshape(-1) - (posterior.mean + constant).reshape(-1)
    h = lift.T @ posterior.precision @ lift
    return Quadratic(0.5 * (h + h.T), lift.T @ (posterior.gradient - posterior.precision @ off), x.reshape(-1))
