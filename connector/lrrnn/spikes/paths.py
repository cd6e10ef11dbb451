"""Latent paths given spike counts and the dynamics: their most likely course, the curvature about it, and exact draws.

    z[0]   ~ N(mu, S),      z[t+1] = (1 - alpha) z[t] + alpha B(z[t], u[t]) c + N(0, Q)
    y[t,k] ~ Poisson(s softplus(m_k.z[t] + b_k.u[t] + d_k + offset[t,k]))

Sums over neurons are in single precision, in pieces that stay in the cache; everything else is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from connector.dynamics import value_and_slope
from connector.lrrnn.spikes.tridiagonal import Factor, components_first, factorise, matrices_first
from connector.shooting import Field

_PIECE = 1 << 17  # numbers in a temporary
LEAST_RATE = 1e-7
_LEAST_SHARE = 1 / 64  # of a step
_ROUNDING = 1e-7  # of a target, whose sums over neurons are in single precision


@dataclass(frozen=True)
class Counts:
    """Spikes of some trials, their recorded samples in one row each (V rows, trial after trial).

    Attributes:
        mask: (B, T). y: (V, K) float32. u: (V, U) float64 or None. offset: (V, K) float32 or None.
    """

    mask: Tensor
    y: Tensor
    u: Tensor | None
    offset: Tensor | None

    @cached_property
    def pieces(self) -> list[slice]:
        """Of the rows, such that numbers for all neurons stay in the cache."""
        size = max(1, _PIECE // self.y.shape[1])
        return [slice(i, i + size) for i in range(0, len(self.y), size)]

    @cached_property
    def spikes(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each piece, where counts are not zero: row within the piece, neuron, count."""
        found = []
        for at in self.pieces:
            row, neuron = self.y[at].nonzero(as_tuple=True)
            found.append((row, neuron, self.y[at][row, neuron]))
        return found

    @staticmethod
    def of(activity: Tensor, mask: Tensor, u: Tensor | None = None, offset: Tensor | None = None) -> Counts:
        """From padded arrays (B, T, ...)."""
        return Counts(
            mask,
            activity[mask].float(),
            None if u is None else u[mask].double(),
            None if offset is None else offset[mask].float(),
        )

    def of_trials(self, chosen: Tensor) -> Counts:
        """Of some trials, chosen (B,) True."""
        rows = self.rows(chosen[:, None].expand_as(self.mask))
        y, u, offset = (None if x is None else x[rows] for x in (self.y, self.u, self.offset))
        return Counts(self.mask[chosen], y, u, offset)

    @cached_property
    def _whole(self) -> bool:
        return bool(self.mask.all())

    @cached_property
    def _places(self) -> Tensor:
        """(V,) of the rows among all B T places: a mask would be searched each time."""
        return self.mask.flatten().nonzero()[:, 0]

    def rows(self, padded: Tensor) -> Tensor:
        """(B, T, ...) -> (V, ...), a view where all trials are of one length."""
        flat = padded.flatten(0, 1)
        return flat if self._whole else flat.index_select(0, self._places)

    def padded(self, rows: Tensor) -> Tensor:
        """(V, ...) -> (B, T, ...), zero past a trial's end; a view where all trials are of one length."""
        if self._whole:
            return rows.view(*self.mask.shape, *rows.shape[1:])
        out = rows.new_zeros((self.mask.numel(), *rows.shape[1:]))
        return out.index_copy_(0, self._places, rows).view(*self.mask.shape, *rows.shape[1:])

    def per_trial(self, rows: Tensor) -> Tensor:
        """Sums (B,) of numbers (V,)."""
        return self.padded(rows).sum(1)

    @property
    def n_transitions(self) -> int:
        return int(self.mask.sum()) - len(self.mask)


@dataclass(frozen=True)
class Parameters:
    """All but the paths.

    Attributes:
        loadings: (K, R + U + 1) columns m, b, d, float64. log_scale: log s.
        c: (p, R). q: (R, R) covariance of a step's noise. start_mean (R,), start_covariance (R, R).
    """

    loadings: Tensor
    log_scale: float
    c: Tensor
    q: Tensor
    start_mean: Tensor
    start_covariance: Tensor


@dataclass(frozen=True)
class Curvature:
    """What the counts say about each sample's state: nats (V,), score (V, R), information (V, R, R)."""

    nats: Tensor
    score: Tensor
    information: Tensor


def potentials_of(loadings: Tensor, z: Tensor, counts: Counts, at: slice) -> Tensor:
    """m.z + b.u + d + offset (rows, K) float32 of some rows; z (V, R)."""
    parts = [z[at]] if counts.u is None else [z[at], counts.u[at]]
    x = torch.cat(parts, 1).float() @ loadings[:, :-1].float().T
    x += loadings[:, -1].float()
    if counts.offset is not None:
        x += counts.offset[at]
    return x


def _log_terms(counts: Counts, at: int, value: Tensor, p: Parameters) -> Tensor:
    """Poisson log likelihood of each row of a piece, less log y!; value: softplus (rows, K)."""
    row, neuron, y = counts.spikes[at]
    total = value.sum(1).mul_(-math.exp(p.log_scale))
    return total.index_add_(0, row, y * (value[row, neuron].log() + p.log_scale))


def nats(counts: Counts, p: Parameters, z: Tensor) -> Tensor:
    """Poisson log likelihood (V,) less the sum of log y!; z (V, R)."""
    found = []
    for i, at in enumerate(counts.pieces):
        value = F.softplus(potentials_of(p.loadings, z, counts, at)).clamp_min_(LEAST_RATE)
        found.append(_log_terms(counts, i, value, p))
    return torch.cat(found).double()


def curvature(counts: Counts, p: Parameters, z: Tensor) -> Curvature:
    """:func:`nats` with its gradient by the states and the Fisher information about them."""
    rank, scale = z.shape[1], math.exp(p.log_scale)
    m = p.loadings[:, :rank].float()
    squares = (m[:, :, None] * m[:, None, :]).flatten(1)
    values, scores, information = [], [], []
    for i, at in enumerate(counts.pieces):
        x = potentials_of(p.loadings, z, counts, at)
        value = F.softplus(x).clamp_min_(LEAST_RATE)
        values.append(_log_terms(counts, i, value, p))
        slope = x.sigmoid_()
        row, neuron, y = counts.spikes[i]
        information.append((scale * slope.square() / value) @ squares)
        seen = y * slope[row, neuron] / value[row, neuron]
        slope.mul_(-scale)
        slope[row, neuron] += seen
        scores.append(slope @ m)
    information = torch.cat(information).double().view(-1, rank, rank)
    return Curvature(torch.cat(values).double(), torch.cat(scores).double(), information)


Values = Iterable[tuple[slice, Tensor, Tensor | None]]


def values_along(field: Field, z: Tensor, u: Tensor | None, slopes: bool) -> Values:
    """phi of the field's neurons at states z (V, R) and, on demand, its slope: of some rows at a time, (rows, neurons) float32."""
    neurons = field.neurons
    columns = (neurons.m, neurons.b, None if neurons.d is None else neurons.d[:, None])
    weights = torch.cat([x.float() for x in columns if x is not None], 1).T
    size = max(1, _PIECE // weights.shape[1])
    for i in range(0, len(z), size):
        at = slice(i, i + size)
        parts = [z[at], None if neurons.b is None else u[at], None if neurons.d is None else z.new_ones(len(z[at]), 1)]
        h = torch.cat([x for x in parts if x is not None], 1).float() @ weights
        yield (at, *value_and_slope(field.phi, h)) if slopes else (at, field.phi(h), None)


def step_of(field: Field, c: Tensor, z: Tensor, values: Values) -> tuple[Tensor, Tensor | None]:
    """Next states (V, R) without noise and, where ``values`` at z have slopes, their derivatives by the states (V, R, R)."""
    rank, alpha = z.shape[1], field.alpha
    weights = field.mixing @ c
    pairs = (weights[:, :, None] * field.neurons.m[:, None, :]).flatten(1).float()
    weights, drive, jacobian = weights.float(), [], []
    for _, value, slope in values:
        drive.append(value @ weights)
        if slope is not None:
            jacobian.append(slope @ pairs)
    following = (1 - alpha) * z + alpha * torch.cat(drive).double()
    if not jacobian:
        return following, None
    eye = torch.eye(rank, dtype=torch.float64)
    return following, (1 - alpha) * eye + alpha * torch.cat(jacobian).double().view(-1, rank, rank)


def log_target(counts: Counts, field: Field, p: Parameters, z: Tensor) -> Tensor:
    """log p(y, paths) of each trial (B,), up to constants; z (B, T, R)."""
    rows = counts.rows(z)
    following, _ = step_of(field, p.c, rows, values_along(field, rows, counts.u, False))
    error = step_errors(counts, z, counts.padded(following))
    return counts.per_trial(nats(counts, p, rows)) + _log_prior(counts, p, z, error)


def step_errors(counts: Counts, z: Tensor, following: Tensor) -> Tensor:
    """z[t + 1] less what followed from z[t] (B, T - 1, R), zero past a trial's end."""
    pair = counts.mask[:, 1:, None]
    return torch.where(pair, z[:, 1:] - following[:, :-1], 0.0)


def _log_prior(counts: Counts, p: Parameters, z: Tensor, error: Tensor) -> Tensor:
    steps = counts.mask.sum(1) - 1
    precision = torch.linalg.inv(p.q)
    first = z[:, 0] - p.start_mean
    own = torch.linalg.inv(p.start_covariance)
    value = -0.5 * torch.einsum("bti,ij,btj->b", error, precision, error) - 0.5 * steps * torch.logdet(p.q)
    return value - 0.5 * torch.einsum("bi,ij,bj->b", first, own, first) - 0.5 * torch.logdet(p.start_covariance)


def newton(
    counts: Counts, field: Field, p: Parameters, z: Tensor, known: tuple[Tensor, Curvature] | None = None
) -> tuple[Tensor, Factor, Tensor]:
    """Gauss-Newton step (B, T, R) of the paths from z, the factor of the curvature there, and the target (B,) there.

    known: paths (B, T, R) and what the counts say there; they are then taken to say so, to second order, at z as well.
    """
    mask, rows = counts.mask, counts.rows(z)
    seen = curvature(counts, p, rows) if known is None else _carried_over(known[1], rows - counts.rows(known[0]))
    following, jacobian = step_of(field, p.c, rows, values_along(field, rows, counts.u, True))
    error = step_errors(counts, z, counts.padded(following))
    precision, own = torch.linalg.inv(p.q), torch.linalg.inv(p.start_covariance)
    pull, first = components_first(error @ precision), ((z[:, 0] - p.start_mean) @ own).T.numpy()
    inside = components_first(mask)
    pair = inside[1:]
    a = components_first(counts.padded(jacobian))[:, :, :-1] * pair
    weighted = np.einsum("ik,kjtb->ijtb", precision.numpy(), a)  # Q^-1 A
    diagonal = components_first(counts.padded(seen.information))
    diagonal[:, :, 0] += own.numpy()[..., None]
    diagonal[:, :, 1:] += pair * precision.numpy()[..., None, None]
    diagonal[:, :, :-1] += np.einsum("kitb,kjtb->ijtb", a, weighted)  # A^T Q^-1 A
    diagonal[:, :, ~inside] = np.eye(len(precision))[..., None]
    gradient = components_first(counts.padded(seen.score))
    gradient[:, 0] -= first
    gradient[:, 1:] -= pull
    gradient[:, :-1] += np.einsum("kitb,ktb->itb", a, pull)
    factor = factorise(diagonal, -weighted)
    target = counts.per_trial(seen.nats) + _log_prior(counts, p, z, error)
    return factor.solve(matrices_first(gradient * inside)), factor, target


def _carried_over(seen: Curvature, away: Tensor) -> Curvature:
    """To states that lie ``away`` (V, R), by the quadratic."""
    pull = (seen.information * away[:, None, :]).sum(-1)
    return Curvature(seen.nats + ((seen.score - 0.5 * pull) * away).sum(1), seen.score - pull, seen.information)


def most_likely(
    counts: Counts, field: Field, p: Parameters, z: Tensor, steps: int, known: tuple[Tensor, Curvature] | None = None
) -> tuple[Tensor, Factor]:
    """Paths after some Gauss-Newton steps from near the mode, and the factor of the curvature one step before.

    known: as in :func:`newton`.
    """
    factor = None
    for _ in range(steps):
        move, factor, _ = newton(counts, field, p, z, known)
        z = z + move
    return z, factor


def climbed(counts: Counts, field: Field, p: Parameters, z: Tensor, steps: int, settled: float = 0.0) -> Tensor:
    """Most likely paths (B, T, R), from far away as well: at most so many Gauss-Newton steps, each halved where it lowers a trial's
    target.

    A trial whose target a step raises by no more than ``settled`` nats takes no further one; once half of all are such, only the
    others are followed.
    """
    best, move, share = z, torch.zeros_like(z), z.new_ones(len(z))
    reached = torch.full_like(share, -math.inf)
    for step in range(steps + 1):
        tried = best + share[:, None, None] * move
        ahead, _, target = newton(counts, field, p, tried)
        risen = target - reached
        better = risen >= -_ROUNDING * target.abs()
        taken = better[:, None, None]
        best, move = torch.where(taken, tried, best), torch.where(taken, ahead, move)
        reached, share = torch.where(better, target, reached), torch.where(better, 1.0, 0.5 * share)
        done = (better & (risen <= settled)) | (share < _LEAST_SHARE)
        if bool(done.all()):
            break
        if 2 * int(done.sum()) >= len(done):
            left = ~done
            steps_left = steps - step
            best[left] = climbed(counts.of_trials(left), field, p, best[left], steps_left, settled)
            break
    return best
