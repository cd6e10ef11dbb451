"""Where a network or a vector field settles, and whether an inferred one has the attractors of a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from connector.analysis.distances import Truth
from connector.dynamics import Network, activation, leading_fixed_points, potentials, simulate
from connector.errors import UserError
from connector.numerics import CACHED

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attractors:
    """Where a dynamical system settles, seen from a set of starts. Times in units of tau.

    Attributes:
        kind: "fixed_points", "limit_cycle", "ring", "mixed" (some starts settle, some keep moving) or "none"
            (states that diverge, or move on without a period that was seen).
        points: (F, R) stable fixed points that starts flow to (empty for a ring, whose points are a continuum).
        eigenvalues: (F, R) complex, of the Jacobian there, units 1 / tau.
        orbit: (S, R) one turn of the cycle, or the ring's points; or None.
        period: of the cycle; or None.
        amplitude: rms distance of the cycle or the ring from its centre; or None.
        drift: rms angle, in radians, by which states move along a ring during ``duration``; or None.
        starts: (P, R) the starts used.
    """

    kind: str
    points: Tensor
    eigenvalues: Tensor
    orbit: Tensor | None
    period: float | None
    amplitude: float | None
    drift: float | None
    starts: Tensor

    def __str__(self) -> str:
        if self.kind == "fixed_points":
            return f"{len(self.points)} stable fixed point{'s' * (len(self.points) != 1)}"
        if self.kind == "limit_cycle":
            return f"a limit cycle, period {self.period:.3g} tau, amplitude {self.amplitude:.3g}"
        if self.kind == "ring":
            return f"a ring of slow states, radius {self.amplitude:.3g}"
        return "fixed points beside moving states" if self.kind == "mixed" else "no attractor"


def default_starts(rank: int, extent: float = 2.4, n_outer: int = 36, seed: int = 0) -> Tensor:
    """Starts at distance ``extent`` in all directions and a few near the centre, (P, rank), float64."""
    if rank == 1:
        return torch.linspace(-extent, extent, n_outer, dtype=torch.float64)[:, None]
    if rank == 2:
        # Turned a little, so that no start lies on an axis of symmetry, where saddles would catch it.
        angle = torch.arange(n_outer, dtype=torch.float64) / n_outer * 2 * torch.pi + 0.04
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    else:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(n_outer * (rank - 1), rank, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm(dim=1, keepdim=True)
    return extent * torch.cat([direction, 0.25 * direction[:: max(1, n_outer // 6)]])


def find_attractors(
    system: Network | Field,
    starts: Tensor | None = None,
    *,
    u: Tensor | None = None,
    alpha: float | None = None,
    rank: int = 2,
    extent: float | None = None,
    duration: float = 10.0,
    settle: float = 120.0,
) -> Attractors:
    """Follow the flow from many starts and report where it settles.

    1. Ring: after ``duration`` the states lie around a circle that they neither leave nor move along, see
       :func:`_as_ring`. It comes first because in a network of finite size a ring always breaks into fixed points
       in the end; over ``duration``, say a trial's length, it is one.
    2. States that have come to rest are polished by Newton's method to stable fixed points.
    3. States that keep moving and return with one period form a limit cycle.

    Args:
        system: a Network or a vector field dz/dt, (P, R) -> (P, R) in units 1 / tau.
        starts: (P, R); default_starts(rank, extent) when absent.
        u: (U,) constant input to a network; none when absent.
        alpha: Euler step; the network's own, 0.1 for a field.
        rank: of a field given without starts.
        extent: scale of the region of interest; from the starts, or 2.4.
        duration: time over which a ring must keep a state, tau.
        settle: time after which most systems have settled, tau; a quarter of it is tried first, slow ones get five
            times as much.
    """
    if isinstance(system, Network):
        rank, alpha = system.rank, alpha or system.alpha
        # Single precision halves the cost of the long simulation; fixed points are polished in double precision.
        coarse, fine = (network_field(system, u, dtype) for dtype in (torch.float32, torch.float64))
    else:
        coarse = fine = system
    starts = (default_starts(rank, extent or _EXTENT) if starts is None else starts).double()
    if isinstance(system, Network):  # refuses starts and inputs of another width
        system.vector_field(starts[:1], None if u is None else u.expand(1, -1))
    extent = extent or float(starts.norm(dim=1).max())
    alpha = alpha or 0.1

    def run(z0: Tensor, time: float) -> Tensor:
        with torch.no_grad():
            return simulate(lambda z, _: z + alpha * coarse(z), z0, max(2, round(time / alpha)))

    empty = starts.new_zeros(0, starts.shape[1])
    nothing = Attractors("none", empty, empty.to(torch.complex128), None, None, None, None, starts)
    path = run(starts, duration)
    early, rest = path[:, -1], _resting_points(fine, _second_half(path), _AT_A_POINT * extent, extent)
    path, moving = early[:, None].expand(-1, path.shape[1], -1).clone(), ~rest.resting
    if moving.any():
        path[moving] = run(early[moving], duration)
    if rest.resting.any():
        nearest = torch.cdist(early[rest.resting], rest.points).argmin(1)
        path[rest.resting] = rest.points[nearest][:, None]
    later, rest = path[:, -1], _resting_points(fine, _second_half(path), _AT_A_POINT * extent, extent)
    # So few points are no ring, see _as_ring.
    if rest.resting.all() and len(rest.points) <= _FEWER_THAN_A_RING:
        return replace(nothing, kind="fixed_points", points=rest.points, eigenvalues=rest.eigenvalues)
    if not torch.isfinite(later).all() or later.norm(dim=-1).max() > 1e3 * extent:
        return nothing
    ring = _as_ring(early.double(), later.double(), extent)
    if ring is not None:
        amplitude, drift = ring
        return replace(nothing, kind="ring", orbit=later.double(), amplitude=amplitude, drift=drift)
    times = [part * settle for part in (0.25, 0.5, 0.75, 1, 2, 5)]
    return _followed(nothing, later, run, fine, times, alpha, extent)


def _followed(
    found: Attractors,
    states: Tensor,
    run: Callable[[Tensor, float], Tensor],
    fine: Field,
    times: Sequence[float],
    alpha: float,
    extent: float,
) -> Attractors:
    """Fixed points and cycle that the states (P, R) come to, looked at after each of ``times`` (tau) from here on.

    What is at rest is not followed on; where nothing is, one of all states on one orbit stands for them.
    """
    path = states[:, None]
    for time in times:
        path = torch.cat([path, run(path[:, -1], time - (path.shape[1] - 1) * alpha)[:, 1:]], dim=1)
        tail = _second_half(path)
        rest = _resting_points(fine, tail, 0.1 * extent, extent)
        found, moving = _with_points(found, rest, 0.02 * extent), ~rest.resting
        if not moving.any():
            return replace(found, kind="fixed_points")
        cycle = _as_cycle(tail[moving], alpha)
        if cycle is not None:
            orbit, period, amplitude = cycle
            kind = "mixed" if len(found.points) else "limit_cycle"
            return replace(found, kind=kind, orbit=orbit, period=period, amplitude=amplitude)
        path = path[moving] if len(found.points) else path[_apart(tail, _AT_A_POINT * extent)]
    return replace(found, kind="mixed" if len(found.points) else "none")


# A state this near to a stable fixed point, of the extent, is taken to be at it; one this near to where another has
# passed, to go where that one went.
_AT_A_POINT = 0.02
_EXTENT = 2.4  # of the region of interest, where states are of unit size
_FEWER_THAN_A_RING = 4  # points: states at so many occupy eight of the ring's 24 sectors at most


def _second_half(path: Tensor) -> Tensor:
    return path[:, path.shape[1] // 2 :].double()


def _with_points(found: Attractors, rest: _Rest, merge_distance: float) -> Attractors:
    """The attractors with the points that further states came to."""
    new = rest.points
    if len(found.points) and len(new):
        fresh = torch.cdist(new, found.points).min(dim=1).values > merge_distance
        rest = rest._replace(points=new[fresh], eigenvalues=rest.eigenvalues[fresh])
    points, eigenvalues = torch.cat([found.points, rest.points]), torch.cat([found.eigenvalues, rest.eigenvalues])
    order = eigenvalues.real.max(dim=1).values.argsort()
    return replace(found, points=points[order], eigenvalues=eigenvalues[order])


def _apart(tail: Tensor, distance: float) -> list[int]:
    """Which of the paths (P, S, R) to follow: not those that end where one that is followed has passed."""
    followed: list[int] = []
    for number, end in enumerate(tail[:, -1]):
        if all((tail[other] - end).norm(dim=1).min() > distance for other in followed):
            followed.append(number)
    return followed


def network_field(network: Network, u: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Field:
    """A network's vector field at a constant input u (U,), computed in ``dtype``: the fewest operations, no checks.

    tanh(h) = 2 sigmoid(2 h) - 1, and a sigmoid is computed several times faster.
    """
    cast = replace(network, **{k: getattr(network, k).to(dtype) for k in "mnbd" if getattr(network, k) is not None})
    odd = network.activation == "tanh"
    phi, scale = (torch.sigmoid_, 2.0) if odd else (activation(network.activation).function, 1.0)
    constant = None if u is None else u.to(dtype)
    # One latent dimension after the other: products with so few columns are faster.
    m, n = (scale * cast.m).T.contiguous(), (scale / cast.n_neurons * cast.n).T.contiguous().T
    origin = cast.m.new_zeros(1, cast.rank)
    offset = scale * potentials(cast.loadings, origin, None if constant is None else constant[None])[0]
    rest = -n.sum(0) / scale if odd else n.new_zeros(network.rank)

    most = max(1, CACHED // network.n_neurons)

    def at_once(at: Tensor) -> Tensor:
        return torch.addmm(rest, phi(torch.addmm(offset, at, m)), n).sub_(at)

    def field(z: Tensor) -> Tensor:
        at = z.to(dtype)
        found = at_once(at) if len(at) <= most else torch.cat([at_once(part) for part in at.split(most)])
        return found.to(z.dtype)

    return field


def _plane_angles(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angle and distance from the centre in the plane of the two leading components, and the distance off it."""
    centred = states - states.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    inside = centred @ basis.T
    off = (centred - inside @ basis).norm(dim=1)
    return torch.atan2(inside[:, 1], inside[:, 0]), inside.norm(dim=1), off


def _as_ring(early: Tensor, late: Tensor, extent: float) -> tuple[float, float] | None:
    """Amplitude and drift of the ring on which the states (P, R) lie at two times; None where it is no ring.

    A ring is: distances from the centre within 30 % of their mean; no side of it empty (largest gap between
    neighbouring angles at most 90 degrees) and at least 10 of 24 sectors occupied, which up to nine fixed points
    cannot do; and it is slow: between the two times states moved along it by less than 0.35 radians (20 degrees) rms.
    """
    if early.shape[1] < 2 or len(early) < 24:
        return None
    both = torch.cat([early, late])
    angle, radius, off = _plane_angles(both)
    mean = radius.mean()
    if mean < 4e-4 * extent or (radius / mean - 1).abs().max() > 0.3 or off.max() > 0.3 * mean:
        return None
    before, after = angle.chunk(2)
    moved = torch.remainder(after - before + torch.pi, 2 * torch.pi) - torch.pi
    order = after.sort().values
    gaps = torch.cat([order[1:] - order[:-1], order[:1] + 2 * torch.pi - order[-1:]])
    sectors = torch.unique(((after + torch.pi) / (2 * torch.pi) * 24).long().clamp_max(23))
    drift = moved.square().mean().sqrt()
    if gaps.max() > torch.pi / 2 or len(sectors) < 10 or drift > 0.35:
        return None
    return float(radius.square().mean().sqrt()), float(drift)


class _Rest(NamedTuple):
    """Stable fixed points (F, R) that states have come to, their eigenvalues, and which states (P,) rest at one."""

    points: Tensor
    eigenvalues: Tensor
    resting: Tensor


def _resting_points(fine: Field, tail: Tensor, near: float, extent: float) -> _Rest:
    """Stable fixed points that the tails (P, S, R) have come to rest at, no farther than ``near`` in the end."""
    last = tail[:, -1]
    empty = last.new_zeros(0, last.shape[1])
    still = (tail - tail[:, -1:]).norm(dim=-1).max(dim=1).values < 0.05 * extent
    ends: list[Tensor] = []
    for candidate in last[still]:
        if all((candidate - p).norm() > 0.02 * extent for p in ends):
            ends.append(candidate)
    if not ends:
        return _Rest(empty, empty.to(torch.complex128), still)
    with torch.no_grad():
        scale = extent / _EXTENT
        points, eigenvalues = leading_fixed_points(
            fine, torch.stack(ends), relax_steps=0, merge_distance=0.02 * _EXTENT, scale=scale
        )
    stable = (eigenvalues.real < 0).all(1)
    points, eigenvalues = points[stable], eigenvalues[stable]
    if len(points) == 0:
        return _Rest(empty, empty.to(torch.complex128), torch.zeros_like(still))
    # A state may linger near a saddle, or creep along a slow direction: at rest means that a stable point is near.
    distance = torch.cdist(last[still], points)
    resting = still.clone()
    resting[still] = distance.min(dim=1).values < near
    reached = (distance < near).any(0)
    return _Rest(points[reached], eigenvalues[reached], resting)


def _as_cycle(tail: Tensor, alpha: float) -> tuple[Tensor, float, float] | None:
    """One turn, period (tau) and amplitude of the cycle that the tails (P, S, R) are on; None without a period."""
    periods, orbits = [], []
    for path in tail:
        velocity = path[1] - path[0]
        height = (path - path.mean(0)) @ velocity
        up = torch.nonzero((height[:-1] < 0) & (height[1:] >= 0)).flatten()
        if len(up) < 3:
            continue
        crossing = up + height[up] / (height[up] - height[up + 1])
        turns = crossing[1:] - crossing[:-1]
        if turns.std() > 0.05 * turns.mean():
            continue
        periods.append(float(turns.mean()) * alpha)
        orbits.append(path[up[-2] : up[-1] + 1])
    if not periods or len(periods) < 0.9 * len(tail):
        return None
    index = sorted(range(len(periods)), key=periods.__getitem__)[len(periods) // 2]
    orbit = orbits[index]
    amplitude = (orbit - orbit.mean(0)).square().sum(1).mean().sqrt()
    return orbit, periods[index], float(amplitude)


def reference_attractors(reference: Truth | Network, extent: float = 2.4, **options) -> Attractors:
    """The attractors of a teacher's mean field, or of a network; compute once, use for many comparisons."""
    if isinstance(reference, Network):
        return find_attractors(reference, extent=extent, **options)
    return find_attractors(reference.vector_field, alpha=reference.alpha, rank=reference.rank, extent=extent, **options)


def attractors_kept(
    network: Network | Field, reference: Truth | Network | Attractors, tolerance: float = 0.25, **options
) -> bool:
    """Test whether a network has the attractors of the reference.

    - Fixed points: as many stable ones, each matched to a different true one and closer to it than ``tolerance``
      of the distance from that one to its neighbour (a lone point: of the distance of the farthest start).
    - Limit cycle: a cycle, with period and amplitude within ``tolerance`` of the reference's.
    - Ring: a ring over the trial's duration (see :func:`find_attractors`), its radius within ``tolerance``.
      Networks of finite size break a ring into fixed points; what counts is that within the duration of a trial
      states stay at the right distance from the centre, all the way round, and hardly move along it.

    Args:
        network: a Network, or a vector field.
        reference: teacher, network, or the result of :func:`reference_attractors`.
        tolerance: relative.
        options: of :func:`find_attractors`.

    Raises:
        UserError: the reference has no attractor to compare with.
    """
    if not isinstance(reference, Attractors):
        reference = reference_attractors(reference, **options)
    if reference.kind in ("none", "mixed"):
        raise UserError("a reference that settles on fixed points, a cycle or a ring", str(reference))
    found = find_attractors(network, reference.starts, **{k: v for k, v in options.items() if k != "extent"})
    if found.kind != reference.kind:
        return False
    if reference.kind == "fixed_points":
        return _points_match(found.points, reference, tolerance)
    if abs(found.amplitude / reference.amplitude - 1) > tolerance:
        return False
    return reference.kind == "ring" or abs(found.period / reference.period - 1) <= tolerance


def _points_match(points: Tensor, reference: Attractors, tolerance: float) -> bool:
    true = reference.points
    if len(points) != len(true):
        return False
    distance = torch.cdist(points.double(), true.double())
    row, column = linear_sum_assignment(distance.numpy())
    matched = distance[row, column]
    if len(true) == 1:
        scale = reference.starts.norm(dim=1).max().expand(1)
    else:
        scale = torch.cdist(true, true).fill_diagonal_(float("inf")).min(dim=1).values[column]
    return bool((matched < tolerance * scale).all())
