"""Multiple shooting of equation (1): output weights whose simulated trajectories pass nearest to what was seen.

Trials are cut into segments, each with a free initial state. Within a segment the states follow, without noise,

    z[t+1] = (1 - alpha) z[t] + alpha B(z[t], u[t]) c

with p functions B of state and input in place of single neurons. Gauss-Newton steps move the coefficients c (p, R) and the
initial states; these are eliminated from the equations. Noise variance and prior are the caller's. All is float64 but for
phi, which is computed in the precision of the neurons' loadings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Activation, potentials, simulate, value_and_slope
from connector.errors import UserError
from connector.numerics import pieces
from connector.types import Loadings

_CHUNK = 1 << 19  # segments times neurons simulated at a time: temporaries stay in the cache
_REACH = 5  # simulated states are kept within so many times the largest seen
_NEGLIGIBLE = 1e-3  # a misfit below this share of the states' spread tells no segment from the others
_TRIALS = 4  # lengths tried for a step


@dataclass(frozen=True)
class Field:
    """The drive B(z, u) c with B = phi(potentials of some neurons) @ mixing (a call gives B), and the time step.

    Attributes:
        neurons: loadings of those that carry B; phi is computed in their precision.
        mixing: (neurons, p) float64.
        alpha: Euler step of the network in time constants; stride: steps between samples.
    """

    phi: Activation
    neurons: Loadings
    mixing: Tensor
    alpha: float
    stride: int = 1

    def __call__(self, z: Tensor, u: Tensor | None) -> Tensor:
        return self.phi(potentials(self.neurons, z, u)) @ self.mixing


@dataclass(frozen=True)
class Segments:
    """Pieces of trials run side by side, S of them, at most L samples each.

    Attributes:
        z: (S, L, R) states; a segment's simulation starts near its first.
        mask: (S, L) True where there is a sample.
        u: (S, L, U) in force from each sample on, or None.
        seen: (S, L, R) what trajectories are compared with, where it is not z itself.
        decay: k of an indicator behind which states are seen, f[t] = k f[t-1] + (1 - k) z[t] with a first f of its own; None: none.
        root: (S, L, R, R); (seen - state) @ root has independent entries of equal variance. None: not known yet.
    """

    z: Tensor
    mask: Tensor
    u: Tensor | None = None
    seen: Tensor | None = None
    root: Tensor | None = None
    decay: float | None = None

    def pick(self, rows: Tensor | slice) -> Segments:
        parts = (self.z, self.mask, self.u, self.seen, self.root)
        return Segments(*(None if x is None else x[rows] for x in parts), self.decay)

    def starts(self) -> Tensor:
        """(S, R) first states; with an indicator (S, 2 R), beside what it shows then."""
        return self.z[:, 0] if self.decay is None else torch.cat([self.z[:, 0], self.seen[:, 0]], 1)

    @property
    def reach(self) -> Tensor:
        """(R,) how far simulated states may go."""
        return _REACH * self.z.abs().amax((0, 1)) + 1e-12

    def whitened(self, covariance: Tensor) -> Segments:
        """With the noise ``covariance`` (R, R) in every sample, where samples have none of their own."""
        if self.root is not None:
            return self
        root = torch.linalg.cholesky(torch.linalg.inv(covariance))
        return replace(self, root=root.expand(*self.z.shape, self.z.shape[-1]))


@dataclass(frozen=True)
class Linearised:
    """Residuals at some c and initial states, and the quadratic they make, initial states eliminated.

    Attributes:
        residuals, whitened: (S, L, R), the second times each sample's root; squares: sum of squares of the second.
        h, b: (pR, pR), (pR,) information and gradient for c, flattened as (mode, dimension), per unit noise variance.
        cross, own_factor, own_gradient: (S, pR, R), (S, R, R), (S, R), of which the initial states' moves are made.
        free: numbers seen beyond those that fix the initial states.
    """

    residuals: Tensor
    whitened: Tensor
    squares: float
    h: Tensor
    b: Tensor
    cross: Tensor
    own_factor: Tensor
    own_gradient: Tensor
    free: float

    def start_move(self, move: Tensor) -> Tensor:
        """Moves (S, R) of the initial states beside ``move`` (pR,) of c."""
        change = self.own_gradient - torch.einsum("spr,p->sr", self.cross, move)
        return torch.cholesky_solve(change[..., None], self.own_factor)[..., 0]


def _simulated(field: Field, c: Tensor, segments: Segments, z0: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """At each sample: states (S, R), their derivatives by c (S, R, pR) and by the initial states (S, R, R)."""
    (s, length, rank), p, alpha = segments.z.shape, len(c), field.alpha
    low, weights = field.neurons.m.dtype, field.mixing @ c
    pairs = (weights[:, :, None] * field.neurons.m[:, None, :]).flatten(1).to(low)
    mixing, weights = field.mixing.to(low), weights.to(low)
    eye = torch.eye(rank).to(c)
    z, by_c, by_start = z0, c.new_zeros(s, rank, p * rank), eye.expand(s, rank, rank)
    reach = segments.reach
    yield z, by_c, by_start
    for t in range(length - 1):
        u = None if segments.u is None else segments.u[:, t].to(low)
        for _ in range(field.stride):
            value, slope = value_and_slope(field.phi, potentials(field.neurons, z.to(low), u))
            jacobian = (1 - alpha) * eye + alpha * (slope @ pairs).to(c).view(s, rank, rank)
            by_c = jacobian @ by_c
            drive = alpha * (value @ mixing).to(c)
            by_c.view(s, rank, p, rank).diagonal(dim1=1, dim2=3).add_(drive[:, :, None])
            by_start = jacobian @ by_start
            z = ((1 - alpha) * z + alpha * (value @ weights).to(c)).clamp(-reach, reach)
        yield z, by_c, by_start


def _shown(field: Field, c: Tensor, segments: Segments, start: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """As :func:`_simulated`, of what an indicator shows of the states, where they are behind one; start as of ``starts``."""
    rank, k = segments.z.shape[2], segments.decay
    states = _simulated(field, c, segments, start[:, :rank])
    if k is None:
        yield from states
        return
    shown, by_c = start[:, rank:], c.new_zeros(())
    by_start = torch.cat([c.new_zeros(rank, rank), torch.eye(rank).to(c)], 1).expand(len(start), rank, 2 * rank)
    for t, (z, z_by_c, z_by_start) in enumerate(states):
        if t:
            shown, by_c = k * shown + (1 - k) * z, k * by_c + (1 - k) * z_by_c
            by_start = k * by_start + (1 - k) * torch.nn.functional.pad(z_by_start, (0, rank))
        yield shown, by_c.expand_as(z_by_c), by_start


def _moments(field: Field, c: Tensor, segments: Segments, z0: Tensor) -> tuple[Tensor, ...]:
    """Residuals, whitened residuals, h and b before the elimination, cross, and own blocks and gradients."""
    (s, _, rank), size, n_start = segments.z.shape, c.numel(), z0.shape[1]
    seen = segments.z if segments.seen is None else segments.seen
    h, b = c.new_zeros(size, size), c.new_zeros(size)
    cross, own = c.new_zeros(s, size, n_start), c.new_zeros(s, n_start, n_start)
    own_gradient = c.new_zeros(s, n_start)
    residuals, whitened = torch.zeros_like(segments.z), torch.zeros_like(segments.z)
    for t, (z, by_c, by_start) in enumerate(_shown(field, c, segments, z0)):
        valid, root = segments.mask[:, t, None].to(c), segments.root[:, t]
        residuals[:, t] = (seen[:, t] - z) * valid
        whitened[:, t] = weighted = (residuals[:, t, None] @ root)[:, 0]
        turned = root.mT * valid[:, :, None]
        start_w, c_w = turned @ by_start, turned @ by_c
        flat = c_w.reshape(s * rank, size)
        h.addmm_(flat.T, flat)
        b += flat.T @ weighted.reshape(-1)
        cross += c_w.mT @ start_w
        own += start_w.mT @ start_w
        own_gradient += torch.einsum("sij,si->sj", start_w, weighted)
    return residuals, whitened, h, b, cross, own, own_gradient


def linearise(field: Field, c: Tensor, segments: Segments, z0: Tensor) -> Linearised:
    """Simulate all segments with c (p, R) from z0 (S, R), with forward sensitivities to both.

    Args:
        segments: with roots.
    """
    rank, n_start = c.shape[1], z0.shape[1]
    parts = [_moments(field, c, segments.pick(at), z0[at]) for at in pieces(len(z0), field.neurons.n_neurons, _CHUNK)]
    residuals, whitened, h, b, cross, own, own_gradient = zip(*parts)
    residuals, whitened, cross, own, own_gradient = map(torch.cat, (residuals, whitened, cross, own, own_gradient))
    # A direction of an initial state that a segment leaves open must not end the fit.
    ridge = 1e-12 * own.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(n_start).to(c)
    own_factor = torch.linalg.cholesky_ex(own + ridge)[0]
    solved = torch.linalg.solve_triangular(own_factor, torch.cat([cross.mT, own_gradient[..., None]], 2), upper=False)
    half = solved.flatten(0, 1)  # (S R, pR + 1)
    h, b = sum(h) - half[:, :-1].T @ half[:, :-1], sum(b) - half[:, :-1].T @ half[:, -1]
    free = float(segments.mask.sum()) * rank - z0.numel()
    squares = float(whitened.square().sum())
    return Linearised(residuals, whitened, squares, 0.5 * (h + h.T), b, cross, own_factor, own_gradient, free)


_AVERAGED = (2, 4, 8, 16)  # samples


def likely_starts(field: Field, c: Tensor, segments: Segments) -> Tensor:
    """First states (S, R) from which trajectories pass nearest to what was seen, among each segment's first state and means of
    its first 2, 4, 8 and 16: noise on one sample can put it on the wrong side of a boundary between basins.

    Args:
        c: (p, R). segments: with roots, and without an indicator.
    """
    z, mask = segments.z, segments.mask
    total, count = (z * mask[..., None]).cumsum(1), mask.cumsum(1)
    ends = [0, *(n - 1 for n in _AVERAGED if n <= z.shape[1])]
    tried = torch.stack([total[:, at] / count[:, at, None] for at in ends], 1)  # (S, tried, R)
    seen = z if segments.seen is None else segments.seen
    low, reach = field.neurons.m.dtype, segments.reach
    mixing, found = (field.mixing @ c).to(low), []

    def step(state: Tensor, u: Tensor | None) -> Tensor:
        for _ in range(field.stride):
            drive = field.phi(potentials(field.neurons, state.to(low), u)) @ mixing
            state = ((1 - field.alpha) * state + field.alpha * drive.to(c)).clamp(-reach, reach)
        return state

    for at in pieces(len(z), len(ends) * field.neurons.n_neurons, _CHUNK):
        u = None if segments.u is None else segments.u[at, None].to(low)
        path = simulate(step, tried[at], z.shape[1], u)  # (S, tried, L, R)
        away = ((seen[at, None] - path)[..., None, :] @ segments.root[at, None])[..., 0, :]
        found.append((away.square().sum(3) * mask[at, None]).sum(2))
    best = torch.cat(found).argmin(1)
    return tried[torch.arange(len(z), device=z.device), best]


class Weighting:
    """Noise of the samples and prior of c, as a fit goes on.

    Attributes:
        precision: (pR, pR) of the prior of c, whose mean is zero.
        limit: information per segment about a coefficient, beyond which a simulation ran away.
        least: variance below which residuals are rounding.
        variance: of the whitened residuals.
        effective: number of combinations of c that the data determine.
    """

    def __init__(self, precision: Tensor, limit: float = math.inf, least: float = 1e-30):
        self.precision, self.limit, self.least = precision, limit, max(least, 1e-30)
        self.variance, self.effective = 1.0, 0.0

    def learn(self, found: Linearised, c: Tensor) -> None:
        """Noise variance from the residuals, with as many degrees of freedom as coefficients are determined."""
        for _ in range(3):
            factor = positive_factor(found.h / self.variance + self.precision)
            determined = torch.cholesky_solve(self.precision, factor).diagonal().sum()
            self.effective = len(found.h) - float(determined)
            self.variance = max(found.squares / self.dof(found), self.least)

    def dof(self, found: Linearised) -> float:
        return max(found.free - self.effective, 0.1 * found.free, 1.0)

    def objective(self, found: Linearised, c: Tensor) -> float:
        return found.squares / self.variance + float(c @ self.precision @ c)

    def is_tame(self, found: Linearised) -> bool:
        """Whether trajectories stay where their linearisation says something: else rounding outweighs the prior."""
        if not float(found.h.abs().max()) < self.limit * len(found.cross):
            return False
        try:
            positive_factor(found.h + self.precision)
        except UserError:
            return False
        return True


@dataclass(frozen=True)
class Shot:
    """Where Gauss-Newton steps ended: c (p, R) flattened, the linearisation there, the segments kept and their starts."""

    c: Tensor
    found: Linearised
    segments: Segments
    converged: bool
    n_dropped: int
    z0: Tensor


def shoot(
    field: Field,
    segments: Segments,
    c: Tensor,
    weighting: Weighting,
    steps: int,
    *,
    shrink: float = 0.3,
    least_gain: float = 0.0,
    least_decrement: float = 0.02,
    drop_outliers: bool = True,
    noisy: bool = False,
) -> Shot:
    """Gauss-Newton for c (pR,) and the segments' initial states, from the segments' first states.

    Args:
        weighting: noise and prior; it learns from the residuals after each step.
        steps: at most. shrink: factor by which a step that does not help is shortened.
        least_gain: a step that lowers the objective by less than this share of it is the last.
        least_decrement: a step that would lower it by less than this, per determined coefficient, is not taken.
        drop_outliers: leave out segments that lie far off all others.
        noisy: initial states start from :func:`likely_starts`.

    Raises:
        UserError: where trajectories run away whatever c.
    """
    p, n_dropped, converged = field.mixing.shape[1], 0, False

    def at(c: Tensor, segments: Segments, z0: Tensor) -> Linearised:
        return linearise(field, c.view(p, -1), segments, z0)

    z0 = likely_starts(field, c.view(p, -1), segments) if noisy else segments.starts()
    found = at(c, segments, z0)
    for _ in range(20):  # a start from elsewhere can send some segments off; leak alone is stable
        if weighting.is_tame(found):
            break
        c = 0.5 * c
        found = at(c, segments, z0)
    weighting.learn(found, c)
    for step in range(steps + 1):
        gradient = found.b / weighting.variance - weighting.precision @ c
        factor = positive_factor(found.h / weighting.variance + weighting.precision)
        move = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        small = float(move @ gradient) < least_decrement * max(1.0, weighting.effective)
        if step == steps or (small and step > 0):
            converged = small
            break
        before, move0, share = weighting.objective(found, c), found.start_move(move), 1.0
        for _ in range(_TRIALS):
            trial, trial0 = c + share * move, z0 + share * move0
            new = at(trial, segments, trial0)
            after = weighting.objective(new, trial)
            if after <= before + 1e-9 * abs(before) and weighting.is_tame(new):
                break
            share *= shrink
        else:
            break
        c, z0, found = trial, trial0, new
        if before - after < least_gain * before:
            converged = True
            break
        weighting.learn(found, c)
        keep = _regular(found.whitened, segments) if drop_outliers else segments.mask[:, 0]
        if not bool(keep.all()):
            n_dropped += int((~keep).sum())
            segments, z0 = segments.pick(keep), z0[keep]
            found = at(c, segments, z0)
            weighting.learn(found, c)
    return Shot(c, found, segments, converged, n_dropped, z0)


def positive_factor(information: Tensor) -> Tensor:
    """Cholesky factor of a sum of squares and a prior's precision, with the smallest ridge that makes the matrix positive.

    Eliminating the initial states subtracts nearly equal numbers: where trajectories run away their rounding can outweigh
    the prior.

    Raises:
        UserError: where no small ridge does, or the matrix is not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(information)
    ridge, largest = 1e-15, information.diagonal().abs().max()
    while failed and ridge < 1e-6:
        ridge = 10 * ridge
        factor, failed = torch.linalg.cholesky_ex(information + ridge * largest * torch.eye(len(factor)).to(factor))
    if failed or not bool(torch.isfinite(factor).all()):
        raise UserError(
            "trajectories that stay near where they were seen", "a fit that ran away", "check the time step alpha"
        )
    return factor


def _regular(whitened: Tensor, segments: Segments) -> Tensor:
    """(S,) False for segments whose mean square exceeds 16 medians: a sample's noise put their initial state on the
    wrong side of a boundary between basins. All True if that would be more than a tenth, which is another matter."""
    spread, root = segments.z[segments.mask].std(0), segments.root[segments.mask]
    floor = (_NEGLIGIBLE * spread @ root).square().sum(-1).median()
    squares = whitened.square().sum((1, 2)) / segments.mask.sum(1)
    keep = squares <= torch.maximum(16 * squares.median(), floor)
    return keep if float(keep.double().mean()) >= 0.9 else torch.ones_like(keep)
