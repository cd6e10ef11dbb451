"""How near an inferred connectivity is to a known one, how well a network's dynamics match, what its attractors are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from connector.dynamics import Network, leading_fixed_points, simulate
from connector.errors import UserError
from connector.numerics import least_squares
from connector.types import Loadings

Field = Callable[[Tensor], Tensor]

# Numbers held at once while a field is evaluated: states x neurons.
_CHUNK_ENTRIES = 4_000_000
_PIECE_ENTRIES = 1_000_000


class Truth(Protocol):
    """What a teacher must offer to be compared with: neurons, nu = E[n | m, b, d], and its mean-field dynamics."""

    rank: int
    alpha: float

    def sample(self, n_neurons: int, generator: torch.Generator | None = None) -> Network: ...

    def conditional_mean(self, loadings: Loadings) -> Tensor: ...

    def vector_field(self, z: Tensor) -> Tensor: ...


# --- distances between connectivities -------------------------------------------------------------------------------


def sinkhorn_divergence(
    x: Tensor, y: Tensor, blur: float = 0.05, max_points: int = 5000, generator: torch.Generator | None = None
) -> float:
    """Sinkhorn divergence between two clouds of equally weighted points, cost |x - y|^2 / 2.

    An entropic optimal-transport distance without bias: 0 for equal clouds, |shift|^2 / 2 for a shifted copy.

    Args:
        x (P, D), y (Q, D): the clouds, for instance true and inferred loadings.
        blur: length below which differences are smoothed over (the root of the entropic temperature).
        max_points: larger clouds are thinned to so many random points (memory grows with its square: 100 MB for 5000).
        generator: of the thinning; a fixed one when absent.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UserError("two clouds of the same dimension", f"{tuple(x.shape)} and {tuple(y.shape)}")
    generator = generator or torch.Generator().manual_seed(0)
    x, y = (_thin(cloud.detach(), max_points, generator) for cloud in (x, y))
    # Single precision is enough (it moves the result by 1e-7) and three times as fast, once the clouds are centred.
    centre = y.double().mean(0)
    x, y = ((cloud.double() - centre).float() for cloud in (x, y))
    together = torch.cat([x, y])
    diameter = float((together.max(0).values - together.min(0).values).norm())
    own = sum(_transport_cost(cloud, None, blur, diameter) for cloud in (x, y)) / 2
    return max(_transport_cost(x, y, blur, diameter) - own, 0.0)


def _transport_cost(x: Tensor, y: Tensor | None, blur: float, diameter: float) -> float:
    """Entropic transport cost OT(x, y) at temperature blur^2, uniform weights, cost |x - y|^2 / 2; y None: OT(x, x).

    Sinkhorn's iterations in the logarithmic domain, both dual potentials updated together by half a step, while the
    temperature falls from diameter^2 by a factor of four at a time (Feydy et al. 2019). One iteration at each
    temperature, as GeomLoss does by default, does not reach the fixed point: differences of these costs are of use,
    and comparable with others of this schedule, not the costs.
    """
    rows = [_half_squares(x, x if y is None else y)]
    if y is not None:
        rows.append(rows[0].T.contiguous())
    temperatures = [diameter**2]
    while temperatures[-1] > blur**2:
        temperatures.append(max(temperatures[-1] / 4, blur**2))

    def updated(potentials: list[Tensor], temperature: float) -> list[Tensor]:
        return [_softmin(cost, of_other, temperature) for cost, of_other in zip(rows, reversed(potentials))]

    potentials = updated([x.new_zeros(cost.shape[1]) for cost in reversed(rows)], temperatures[0])
    for temperature in temperatures:
        potentials = [(old + new) / 2 for old, new in zip(potentials, updated(potentials, temperature))]
    potentials = updated(potentials, blur**2)
    return sum(float(potential.mean(dtype=torch.float64)) for potential in potentials) * (2 if y is None else 1)


def _half_squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().div_(2)


def _softmin(cost: Tensor, potential: Tensor, temperature: float) -> Tensor:
    """-temperature log mean_j exp((potential_j - cost_ij) / temperature), (P,), in pieces that fit in memory."""
    parts, exponent = [], potential / temperature - math.log(len(potential))
    for part in cost.split(max(1, _PIECE_ENTRIES // len(potential))):
        part = torch.add(exponent, part, alpha=-1 / temperature)
        top = part.amax(1, keepdim=True)
        # What is below e^-80 adds nothing, and numbers too small for normal precision are slow to compute.
        parts.append(part.sub_(top).clamp_min_(-80).exp_().sum(1).log_().add_(top[:, 0]))
    return torch.cat(parts).mul_(-temperature)


def _thin(cloud: Tensor, max_points: int, generator: torch.Generator) -> Tensor:
    if len(cloud) <= max_points:
        return cloud
    return cloud[torch.randperm(len(cloud), generator=generator)[:max_points].to(cloud.device)]


def squared_error(conditional_mean: Callable[[Loadings], Tensor], network: Network) -> float:
    """Mean over neurons and dimensions of (nu_true(loading) - n)^2 at the network's own loadings.

    Args:
        conditional_mean: the true nu, Loadings -> (K, R).
        network: inferred; its n should be the inferred conditional mean (sigma = 0), else the spread adds in.
    """
    with torch.no_grad():
        return float((conditional_mean(network.loadings) - network.n).double().square().mean())


class Dissimilarity(NamedTuple):
    """Distance of an inferred connectivity from the true one; smaller is better.

    Attributes:
        sinkhorn: between true and inferred loadings (mean over fresh draws of the truth).
        squared_error: of n given the loading.
        floor: what ``sinkhorn`` comes to when the inferred loadings are themselves fresh true ones.
        sinkhorn_std: standard deviation of the Sinkhorn term over the draws.
    """

    sinkhorn: float
    squared_error: float
    floor: float
    sinkhorn_std: float

    @property
    def total(self) -> float:
        """The dissimilarity D: Sinkhorn divergence plus squared error."""
        return self.sinkhorn + self.squared_error


def dissimilarity(
    truth: Truth, network: Network, n_draws: int = 5, seed: int = 0, blur: float = 0.05, max_points: int = 2000
) -> Dissimilarity:
    """D(true, inferred) = Sinkhorn divergence of the loadings + mean squared error of n (see the two functions).

    One draw of 1000 true neurons makes the Sinkhorn term vary by about .003, as much as there is left to measure:
    it is averaged over ``n_draws`` fresh draws of the size of the network.

    Args:
        truth: the teacher.
        network: inferred, n being the inferred conditional mean (sigma = 0).
        n_draws: fresh samples of true neurons.
        seed: of the draws.
        blur: see :func:`sinkhorn_divergence`.
        max_points: larger networks are thinned to so many neurons for the Sinkhorn term.
    """
    generator = torch.Generator().manual_seed(seed)
    inferred = network.loadings.stack()
    size = min(len(inferred), max_points)
    draws = [truth.sample(size, generator).loadings.stack() for _ in range(n_draws + 1)]
    divergence = partial(sinkhorn_divergence, blur=blur, max_points=max_points, generator=generator)
    against = torch.tensor([divergence(draw, inferred) for draw in draws[:-1]])
    floor = torch.tensor([divergence(one, other) for one, other in pairwise(draws)])
    return Dissimilarity(
        sinkhorn=float(against.mean()),
        squared_error=squared_error(truth.conditional_mean, network),
        floor=float(floor.mean()),
        sinkhorn_std=float(against.std()) if n_draws > 1 else 0.0,
    )


def distance_of_n(n: Tensor, nu: Tensor) -> tuple[float, float]:
    """How far output weights n of some neurons are from an estimate nu of their mean at the same loadings.

    n = true nu + spread of its own, so that the mean square is the error of nu plus the variance of that spread.

    Args:
        n, nu: (K, R).

    Returns:
        mean square of nu - n over neurons and dimensions, in squared units of n; share of the variance of n over neurons
        that nu explains, in the worst dimension.
    """
    n = n.double()
    squared = (nu.double() - n).square()
    return float(squared.mean()), float((1 - squared.sum(0) / (n - n.mean(0)).square().sum(0)).min())


def valente_dissimilarity(true: Network, inferred: Network, max_entries: int = 4_000_000, seed: int = 0) -> float:
    """1 - correlation between the sorted entries of two connectivity matrices (Valente et al. 2022).

    n is first projected onto the column space of m, which removes what the dynamics of a network without input and
    bias cannot show; then J = M N_par^T. It compares distributions of single weights, blind to how they are arranged.

    Args:
        true, inferred: of any size each.
        max_entries: above so many entries K^2, random pairs of neurons stand for all.
        seed: of those pairs.
    """
    entries = []
    for network in (true, inferred):
        net = network.double()
        projected = net.m @ least_squares(net.m, net.n)
        entries.append(connectivity_entries(replace(net, n=projected), max_entries, seed).sort().values)
    a, b = entries
    if len(a) != len(b):
        common = torch.linspace(0, 1, min(len(a), len(b)), dtype=torch.float64)
        a, b = (x[(common * (len(x) - 1)).round().long()] for x in (a, b))
    return float(1 - torch.corrcoef(torch.stack([a, b]))[0, 1])


def connectivity_entries(network: Network, max_entries: int = 1_000_000, seed: int = 0) -> Tensor:
    """Entries m_i.n_j of the connectivity without its 1/K, so that networks of different size compare.

    Returns:
        all K^2 entries where they are no more than ``max_entries``, else so many at random pairs (i, j); float64.
    """
    m, n = network.m.double(), network.n.double()
    k = len(m)
    if k * k <= max_entries:
        return (m @ n.T).flatten()
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.randint(k, (2, max_entries), generator=generator).to(m.device)
    return (m[i] * n[j]).sum(1)


TAIL_PROBABILITIES = (0.5, 0.9, 0.99, 0.999, 0.9999)


def tail_quantiles(
    network: Network, probabilities: Sequence[float] = TAIL_PROBABILITIES, n_pairs: int = 1_000_000, seed: int = 0
) -> Tensor:
    """Quantiles of |m_i.n_j| over pairs of neurons, (len(probabilities),): how heavy the tails of J are."""
    magnitude = connectivity_entries(network, n_pairs, seed).abs().sort().values
    position = torch.tensor(probabilities, dtype=torch.float64) * (len(magnitude) - 1)
    return magnitude[position.round().long()]


# --- dynamics -------------------------------------------------------------------------------------------------------


def drive_at(network, z: Tensor, u: Tensor | None) -> Tensor:
    """The network's recurrent drive at many states, in pieces that fit in memory. (T, R)"""
    size = max(1, _CHUNK_ENTRIES // getattr(network, "n_neurons", 1000))
    inputs = [None] * len(z.split(size)) if u is None else u.split(size)
    with torch.no_grad():
        return torch.cat([network.drive(part, v).double() for part, v in zip(z.split(size), inputs)])


def field_error(network, z: Tensor, u: Tensor | None, y: Tensor) -> float:
    """Relative rms error of a network's vector field at visited states; 0 is perfect, 1 no better than no field.

    sqrt( mean |F_network - y|^2 / mean |y - z|^2 ): both fields are -z + drive, so their difference is the drives'.

    Args:
        network: anything with ``drive(z, u)``.
        z (T, R), u (T, U) or None, y (T, R): states, inputs and observed drive, as ``Latents.samples()`` gives them.
    """
    return relative_field_error(drive_at(network, z.double(), u), z, y)


def relative_field_error(drive: Tensor, z: Tensor, y: Tensor) -> float:
    """:func:`field_error` of a drive (T, R) that is known at the states already."""
    y, z = y.double(), z.double()
    return float(((drive - y).square().sum(1).mean() / (y - z).square().sum(1).mean()).sqrt())


def drift_r2(network, z: Tensor, u: Tensor | None, y: Tensor) -> Tensor:
    """R^2 of each dimension of the vector field at visited states, (R,); 1 is perfect. Arguments of field_error."""
    y, z = y.double(), z.double()
    residual = (drive_at(network, z, u) - y).square().mean(0)
    return 1 - residual / (y - z).var(0, unbiased=False)


def contributions(network: Network, labels: Tensor, z: Tensor, u: Tensor | None = None) -> Tensor:
    """What each group of neurons adds to the drive: F_c = (1/K) sum over group c of n_i phi_i, so sum_c F_c = F.

    Args:
        labels: (K,) integers 0..C-1.
        z (T, R), u (T, U) or None.

    Returns:
        (C, T, R)
    """
    if labels.shape != (network.n_neurons,):
        raise UserError(f"one label for each of {network.n_neurons} neurons", str(tuple(labels.shape)))
    groups = range(int(labels.max()) + 1)
    return torch.stack([drive_at(network.silence(labels != c), z, u) for c in groups])


def normalised_difference(first: Tensor, second: Tensor) -> Tensor:
    """(|F_A| - |F_B|) / (|F_A| + |F_B|) of two contributions (T, R), in [-1, 1]; 0 where both vanish. Shape (T,)."""
    a, b = first.norm(dim=-1), second.norm(dim=-1)
    total = a + b
    return torch.where(total > 0, (a - b) / total.clamp_min(torch.finfo(total.dtype).tiny), torch.zeros_like(total))


class Silencing(NamedTuple):
    """Effect of silencing matched groups of neurons in two networks; one entry per group.

    Attributes:
        field_error: relative rms difference of the two silenced vector fields on the visited states.
        stable_points_reference, stable_points: stable fixed points left in each.
    """

    field_error: list[float]
    stable_points_reference: list[int]
    stable_points: list[int]


def compare_silencing(
    reference: Network, reference_labels: Tensor, network: Network, labels: Tensor, z: Tensor, u: Tensor | None = None
) -> Silencing:
    """Silences group c in both networks, for each c, and compares what is left. Labels must be matched beforehand.

    Args:
        reference_labels (K_ref,), labels (K,): integers 0..C-1 with the same meaning in both.
        z (T, R), u: visited states, at which the fields are compared; a sample of z serves as starts.
    """
    starts = _thin(z, 60, torch.Generator().manual_seed(0))
    result = Silencing([], [], [])
    for c in range(int(max(reference_labels.max(), labels.max())) + 1):
        pair = reference.silence(reference_labels == c), network.silence(labels == c)
        result.field_error.append(field_error(pair[1], z, u, drive_at(pair[0], z, u)))
        found = [len(find_attractors(net, starts).points) for net in pair]
        result.stable_points_reference.append(found[0])
        result.stable_points.append(found[1])
    return result


# --- attractors -----------------------------------------------------------------------------------------------------


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
    """Follows the flow from many starts and says where it settles.

    1. Ring: after ``duration`` the states lie around a circle that they neither leave nor move along, see
       :func:`_as_ring`. It comes first because in a network of finite size a ring always breaks into fixed points
       in the end; over ``duration``, say a trial's length, it is one.
    2. States that have come to rest are polished by Newton's method to stable fixed points.
    3. States that move on and come back with one period make a limit cycle.

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
        coarse, fine = _network_field(system, u, torch.float32), _network_field(system, u, torch.float64)
    else:
        coarse = fine = system
    starts = (default_starts(rank, extent or 2.4) if starts is None else starts).double()
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
    ring = _as_ring(early.double(), later.double())
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


def _network_field(network: Network, u: Tensor | None, dtype: torch.dtype) -> Field:
    cast = replace(network, **{k: getattr(network, k).to(dtype) for k in "mnbd" if getattr(network, k) is not None})
    offset = 0.0
    if network.activation == "tanh":
        # tanh(h) = 2 sigmoid(2 h) - 1, and a sigmoid is computed several times faster.
        offset = cast.n.mean(0)
        cast = replace(
            cast, activation="sigmoid", **{k: 2 * v for k, v in vars(cast).items() if k in "mnbd" and v is not None}
        )
    return lambda z: (cast.vector_field(z, None if u is None else u.to(dtype).expand(len(z), -1)) - offset).to(z.dtype)


def _plane_angles(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angle and distance from the centre in the plane of the two leading components, and the distance off it."""
    centred = states - states.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    inside = centred @ basis.T
    off = (centred - inside @ basis).norm(dim=1)
    return torch.atan2(inside[:, 1], inside[:, 0]), inside.norm(dim=1), off


def _as_ring(early: Tensor, late: Tensor) -> tuple[float, float] | None:
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
    if mean < 1e-3 or (radius / mean - 1).abs().max() > 0.3 or off.max() > 0.3 * mean:
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
        points, eigenvalues = leading_fixed_points(fine, torch.stack(ends), relax_steps=0, merge_distance=0.02 * extent)
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
    """Does a network have the attractors of the reference?

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
