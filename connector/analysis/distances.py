"""How near an inferred connectivity is to a known one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.numerics import least_squares
from connector.types import Loadings

# Numbers held at once in a row of the transport's soft minimum.
_PIECE_ENTRIES = 1_000_000


class Truth(Protocol):
    """What a teacher must offer to be compared with: neurons, nu = E[n | m, b, d], and its mean-field dynamics."""

    rank: int
    alpha: float

    def sample(self, n_neurons: int, generator: torch.Generator | None = None) -> Network: ...

    def conditional_mean(self, loadings: Loadings) -> Tensor: ...

    def vector_field(self, z: Tensor) -> Tensor: ...


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
