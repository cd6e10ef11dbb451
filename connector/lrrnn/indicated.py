"""A fit to rates behind a slow indicator, finished on what the indicator shows: exact for noise that is independent there.

The trace is F[phi(h)], F the indicator's filter, and of states that move by dz from a path it moves by about phi' m.F[dz]. So
each sample of the traces is a reading of F[z], with independent errors, and the network's trajectories, filtered, are compared
with these readings by multiple shooting. The states are those trajectories; loadings are found by least squares on the traces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.data.indicator import with_indicator
from connector.dynamics import Activation, Network, potentials, value_and_slope
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.output_weights import SHOOT_MODES, Evidence, rate_modes
from connector.numerics import random_rows
from connector.shooting import Field, Segments, linearise, shoot
from connector.types import Loadings, Recording
from connector.units import RateScale, Shown

_PASSES, _STEPS, _START_STEPS = 8, 7, 4
_SETTLED = 1e-3  # change of the states in a pass, over their standard deviation
_WORST_MISFIT = 4.0  # of the traces, where 1 is their noise
_PIECE = 60  # samples of a segment
_SAMPLES = 1500  # from which modes are taken
_ENTRIES = 4_000_000  # of filtered slopes at a time


def behind_indicator(fit: FittedDynamics, recording: Recording) -> FittedDynamics:
    """The fit to deconvolved rates, with states, loadings and output weights by what the indicator shows.

    Args:
        fit: with ``n`` and its fold; recording: with ``shown``, in units of phi.

    Raises:
        UserError: trajectories that run away whatever the output weights.
    """
    phi, best = activation_named(fit.activation), None
    now = _Pass(fit.latents.z, fit.loadings, fit.loadings_covariance, fit.n, recording.shown)
    for _ in range(_PASSES):
        before, now = now.z, _passed(now, phi, recording, fit)
        best = now if best is None or now.misfit < best.misfit else best
        if float((now.z - before).square().mean().sqrt()) < _SETTLED * float(now.z.square().mean().sqrt()):
            break
    if not best.misfit < _WORST_MISFIT:
        raise UserError("trajectories that pass near what the indicator shows", f"a misfit of {best.misfit:.3g}")
    readings, information = _readings(best, phi, fit.latents.inputs, recording.mask)
    covariance = torch.linalg.inv(information + 1e-10 * torch.eye(information.shape[-1]).to(information))
    covariance = torch.where(recording.mask[..., None, None], covariance, 0.0)
    latents, read = replace(fit.latents, z=best.z), {"readings": (readings, covariance), "decay": best.shown.decay}
    return replace(fit, latents=latents, loadings=best.loadings, loadings_covariance=best.spread, n=best.n, **read)


@dataclass(frozen=True)
class _Pass:
    """States (trials, time, R), loadings with their covariances, output weights, and the traces with the starts that go with
    them; misfit: mean square of what is left of the training trials' traces, over their noise."""

    z: Tensor
    loadings: Loadings
    spread: Tensor | None
    n: Tensor
    shown: Shown
    misfit: float = math.inf


def _passed(now: _Pass, phi: Activation, recording: Recording, fit: FittedDynamics) -> _Pass:
    """Output weights, then states, then loadings, then starts, each given what was found before."""
    u, mask, train, k = fit.latents.inputs, recording.mask, fit.fold.train, len(now.n)
    seen = _cut(now.z, *_readings(now, phi, u, mask), u, mask, now.shown.decay)
    own = torch.zeros(len(mask), dtype=torch.bool)
    own[train] = True
    pieces = own.repeat_interleave(len(seen.z) // len(mask)) & seen.mask.any(1)
    network = Network(now.loadings.m, now.n, now.loadings.b, now.loadings.d, recording.alpha, fit.activation)
    field, c = _fitted_field(seen.pick(pieces), network, phi)
    n = k * field.mixing @ c
    z = _states(field, c, seen, replace(network, n=n)).reshape(len(mask), -1, now.z.shape[2])[:, : mask.shape[1]]
    z = torch.where(mask[..., None], z, 0.0)
    loadings, spread = _loadings(now.shown, phi, z, u, now.loadings, mask, train, recording.scale)
    rates = phi(potentials(loadings, z, u))
    shown = _started(now.shown, rates, mask)
    left = ((shown.trace - _shown_by(shown, rates)) / shown.noise)[train][mask[train]]
    return _Pass(z, loadings, spread, n, shown, float(left.square().mean()))


def _started(shown: Shown, rates: Tensor, mask: Tensor) -> Shown:
    """With the starts that go with these rates, by least squares."""
    left = (shown.trace - _shown_by(replace(shown, start=torch.zeros_like(shown.start)), rates)) * mask[..., None]
    falls = shown.decay ** torch.arange(1, mask.shape[1] + 1).to(rates) * mask
    return replace(shown, start=torch.einsum("btk,bt->bk", left, falls) / falls.square().sum(1, keepdim=True))


def _shown_by(shown: Shown, rates: Tensor) -> Tensor:
    """What the indicator shows of rates (trials, time, K) after its start."""
    return with_indicator(torch.cat([shown.start[:, None], rates], 1), shown.decay)[:, 1:]


def _readings(now: _Pass, phi: Activation, u: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Readings of the filtered states (trials, time, R), zero where masked, and their information (trials, time, R, R)."""
    shown, z, loadings = now.shown, now.z, now.loadings
    value, slope = value_and_slope(phi, potentials(loadings, z, u))
    weight, m = 1 / shown.noise.square(), loadings.m
    left = shown.trace - _shown_by(shown, value)
    information = torch.einsum("btk,kr,kq->btrq", slope.square() * weight, m, m)
    score = (slope * weight * left) @ m
    eye = 1e-9 * information.diagonal(dim1=2, dim2=3).mean() * torch.eye(m.shape[1]).to(m)
    moved = with_indicator(z, shown.decay) + torch.linalg.solve(information + eye, score[..., None])[..., 0]
    return torch.where(mask[..., None], moved, 0.0), torch.where(mask[..., None, None], information + eye, 0.0)


def _cut(z: Tensor, readings: Tensor, information: Tensor, u: Tensor | None, mask: Tensor, decay: float) -> Segments:
    """Pieces of all trials, as many of each, with the readings that their filtered states are compared with."""

    def split(x: Tensor) -> Tensor:
        x = torch.cat([x, x.new_zeros(len(x), -x.shape[1] % _PIECE, *x.shape[2:])], 1)
        return x.reshape(-1, _PIECE, *x.shape[2:])

    seen = split(mask)
    eye = torch.eye(z.shape[2]).to(z)
    root = torch.linalg.cholesky(torch.where(seen[..., None, None], split(information), eye))
    return Segments(split(z), seen, None if u is None else split(u), split(readings), root, decay)


def _fitted_field(segments: Segments, network: Network, phi: Activation) -> tuple[Field, Tensor]:
    """The drive in the leading modes of the rates, and its coefficients (p, R)."""
    z, u = segments.z[segments.mask], None if segments.u is None else segments.u[segments.mask]
    few = random_rows(len(z), _SAMPLES)
    rates = phi(potentials(network.loadings, z[few], None if u is None else u[few]))
    k = network.n_neurons
    basis = rate_modes(rates, SHOOT_MODES)
    field = Field(phi, network.loadings.map(lambda x: x.float()), basis / k**0.5, network.alpha)
    start = (basis.T @ network.n / k**0.5).reshape(-1)
    prior = Evidence(1.0 / max(float(network.n.square().mean()), 1e-300), len(start), start)
    rules = {"shrink": 0.5, "least_gain": 1e-4, "least_decrement": 0.0, "drop_outliers": False}
    shot = shoot(field, segments, start, prior, _STEPS, **rules)
    if not bool(torch.isfinite(shot.c).all()):
        raise UserError("trajectories that stay near where they were seen", "a fit that ran away")
    return field, shot.c.view(-1, network.rank)


def _states(field: Field, c: Tensor, segments: Segments, network: Network) -> Tensor:
    """States (S, L, R) of the network along all segments, from the starts that fit best."""
    start = segments.starts()
    found = linearise(field, c, segments, start)
    for _ in range(_START_STEPS):
        trial = start + found.start_move(torch.zeros_like(c).reshape(-1))
        new = linearise(field, c, segments, trial)
        better = new.whitened.square().sum((1, 2)) < found.whitened.square().sum((1, 2))
        if not bool(better.any()):
            break
        start = torch.where(better[:, None], trial, start)
        found = linearise(field, c, segments, start)
    rank = segments.z.shape[2]
    return network.simulate(start[:, :rank], segments.z.shape[1], segments.u)


def _loadings(
    shown: Shown, phi: Activation, z: Tensor, u: Tensor | None, loadings: Loadings, mask: Tensor, train: Tensor,
    scale: RateScale | None,
) -> tuple[Loadings, Tensor]:  # fmt: skip
    """Loadings by Gauss-Newton on the traces of training trials, and their covariance (K, P, P); starts are open."""
    x = torch.cat([z, *([] if u is None else [u]), *([torch.ones_like(z[..., :1])] if loadings.has_bias else [])], 2)[
        train
    ]
    part, inside = shown.part(train, slice(None)), mask[train][..., None]
    theta, covariance = loadings.stack().clone(), []
    falls = shown.decay ** torch.arange(1, x.shape[1] + 1).to(x)[None, :, None] * inside
    falls = falls / falls.square().sum(1, keepdim=True).sqrt()
    step = max(1, _ENTRIES // (x.shape[0] * x.shape[1] * x.shape[2]))
    for first in range(0, len(theta), step):
        some = slice(first, first + step)
        for _ in range(_START_STEPS):
            normal, score = _equations(part.part(slice(None), some), phi, x, theta[some], falls, inside, None)
            spread = theta.square().mean(0).clamp_min(1e-12)
            move = torch.linalg.solve(normal + torch.diag(1 / spread), score[..., None])[..., 0]
            theta[some] += move * (theta[some].norm(dim=1) / move.norm(dim=1).clamp_min(1e-300)).clamp_max(1.0)[:, None]
        fitted = None if scale is None else scale.neurons(some)
        normal, _ = _equations(part.part(slice(None), some), phi, x, theta[some], falls, inside, fitted)
        covariance.append(torch.linalg.inv(normal + torch.diag(1 / spread)))
    split = Loadings.unstack(theta, loadings.rank, loadings.n_inputs, loadings.has_bias)
    return split, torch.cat(covariance)


def _equations(
    shown: Shown, phi: Activation, x: Tensor, theta: Tensor, falls: Tensor, inside: Tensor, scale: RateScale | None
) -> tuple[Tensor, Tensor]:
    """Information (K, P, P), less what gains and offsets beside the loadings take away, and scores (K, P)."""
    value, slope = value_and_slope(phi, x @ theta.T)
    weight = 1 / shown.noise.square()

    def seen(rates: Tensor) -> Tensor:
        """Filtered from nothing, without what an open start takes."""
        nothing = torch.zeros_like(rates[:, :1])
        moved = with_indicator(torch.cat([nothing, rates], 1), shown.decay)[:, 1:] * inside
        return moved - falls * (moved * falls).sum(1, keepdim=True)

    left = (
        shown.trace - with_indicator(torch.cat([torch.zeros_like(value[:, :1]), value], 1), shown.decay)[:, 1:]
    ) * inside
    left = left - falls * (left * falls).sum(1, keepdim=True)
    columns = [seen(slope * x[..., i : i + 1]).flatten(0, 1) for i in range(x.shape[2])]
    design = torch.stack(columns, 2)  # (S, K, P)
    normal = torch.einsum("skp,skq->kpq", design, design) * weight[:, None, None]
    score = torch.einsum("skp,sk->kp", design, left.flatten(0, 1)) * weight[:, None]
    if scale is None:
        return normal, score
    extra = ([seen(value)] if scale.gains else []) + ([seen(torch.ones_like(value))] if scale.offsets else [])
    if not extra:
        return normal, score
    beside = torch.stack([column.flatten(0, 1) for column in extra], 2)
    own = torch.einsum("skp,skq->kpq", beside, beside) * weight[:, None, None]
    if scale.gains:
        own[:, 0, 0] += 1 / scale.spread**2
    mixed = torch.einsum("skp,skq->kpq", design, beside) * weight[:, None, None]
    return normal - mixed @ torch.linalg.pinv(own, hermitian=True) @ mixed.mT, score
