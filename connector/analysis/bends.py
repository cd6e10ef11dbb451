"""Do two halves of a population bend? A bent population shows a gap along a line where none is within it.

A ring or an arc that is projected on a line has two humps. What tells it from two groups: within each half the other
coordinates depend on how far a neuron lies from the boundary, and points stay dense on a way around.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from connector.analysis.splits import axes, whiten

N_PERMUTATIONS = 399  # half of them for the distance covariance, which takes longest
_RIDGE = 0.02
_ENOUGH_FOR_ANY = 100  # neurons
_RADII = (0.4, 0.5)  # of standard deviations, at 300 neurons and fewer


def bend_p_value(
    across: np.ndarray,
    distance: np.ndarray,
    side: np.ndarray,
    rng: np.random.Generator,
    n_permutations: int = N_PERMUTATIONS,
    exact: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, np.ndarray]:
    """Do the coordinates beside the split depend on the distance from it, within each half? By permutation.

    Three statistics: how well the coordinates' means follow the distance in one half, how well their products do in
    both alike (a waist), and, from 100 neurons on, the distance covariance (Szekely, Rizzo and Bakirov 2007), which
    sees any dependence.

    Args:
        across: (n, P - 1) coordinates uncorrelated with the split's axis within the halves.
        distance: (n,) from the boundary.
        side: (n,) boolean.
        rng: of the n_permutations.
        exact: p-values below the first may be returned too large, though below it, and those above the second too
            small, though above it. That leaves out most of the distance covariance where nothing depends on it.

    Returns:
        The smaller of twice the least p-value of the first two and that of the third; directions (3, P - 1) in which
        the means of either half, and both halves' products, bend most.
    """
    halves = []
    for at in (side, ~side):
        v, order = across[at], np.argsort(np.argsort(distance[at]))
        v = v - np.median(v, axis=0)
        v = np.clip(v / (1.4826 * np.median(np.abs(v), axis=0) + 1e-12), -3, 3)
        rank = (order - order.mean()) / (order.std() + 1e-12)
        ranks = np.stack([rank] + [rng.permutation(rank) for _ in range(n_permutations)])
        halves.append((v - v.mean(0), ranks))
    upper = np.triu_indices(across.shape[1])
    means, cross, gram, linear = [], 0.0, 0.0, []
    for v, ranks in halves:
        products = v[:, upper[0]] * v[:, upper[1]]
        products = products - products.mean(0)
        slope = ranks @ v
        solved = np.linalg.solve(_ridged(v.T @ v), slope.T).T
        means.append((slope * solved).sum(1) / len(v))
        linear.append(solved[0])
        cross, gram = cross + ranks @ products, gram + products.T @ products
    of_products = np.linalg.solve(_ridged(gram), cross.T).T
    statistics = np.stack([np.maximum(*means), (cross * of_products).sum(1)])
    p = ((statistics >= statistics[:, :1] - 1e-12).sum(1) / (1 + n_permutations)).min()
    waist = np.zeros((across.shape[1],) * 2)
    waist[upper] = of_products[0]
    values, vectors = np.linalg.eigh(waist + waist.T)
    directions = np.stack([*linear, vectors[:, np.abs(values).argmax()]])
    p = 2 * p
    if len(across) >= _ENOUGH_FOR_ANY and p > exact[0]:
        p = min(p, _distance_covariance(halves, exact[1]))
    return float(min(1.0, p)), directions


def _ridged(gram: np.ndarray) -> np.ndarray:
    return gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)) + 1e-12 * np.eye(len(gram))


def _distance_covariance(halves: list, most: float, n_max: int = 200) -> float:
    """p-value of the distance covariance of coordinates and rank, summed over the halves (thinned to n_max).

    By the first half of the permutations, or by as many as it takes to know that it is above ``most``. Distances are centred in rows
    and columns, so that |a - b| of the ranks is -2 min(a, b) beside them; single precision decides as double does.
    """
    parts = []
    for v, ranks in halves:
        keep = np.arange(0, len(v), max(1, -(-len(v) // n_max)))
        distances = cdist(v[keep], v[keep])
        centred = distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()
        weights = (-2 / len(keep) * centred).astype(np.float32)
        parts.append((weights, ranks[: len(ranks) // 2, keep].astype(np.float32), np.empty_like(weights)))
    n_drawn, reached, own = len(parts[0][1]), 0, None
    for drawn in range(n_drawn):
        found = 0.0
        for weights, ranks, lower in parts:
            found += float(np.vdot(weights, np.minimum.outer(ranks[drawn], ranks[drawn], out=lower)))
        own = found if own is None else own
        reached += found >= own
        if reached > most * n_drawn:
            break
    return float(reached / n_drawn)


def valley_depth(x: np.ndarray, side: np.ndarray) -> float:
    """How empty the boundary between two sides is, against the emptier side, in standard deviations of counts.

    Counted are the neurons in discs around neurons near the boundary, slid onto it, and in discs around those of either
    side. If points are dense on any way through the boundary, the fullest of its discs is as full as those of the sides.
    The boundary is the emptiest line between the sides' means; the radius the one with the least depth.

    Args:
        x: (n, 2) coordinates; side: (n,) boolean.

    Returns:
        sqrt(2) (sqrt(typical count of the emptier side) - sqrt(fullest disc of the boundary)), 3/8 added to either count
        (Anscombe 1948); typical is the upper quartile.
    """
    x = whiten(x)
    axis = axes(x, side[None])[0][0]
    axis = axis / np.linalg.norm(axis)
    u = x @ axis
    means = np.sort([u[side].mean(), u[~side].mean()])
    lines = means[0] + (means[1] - means[0]) * np.linspace(0.2, 0.8, 25)
    counts = (np.abs(u[:, None] - lines) <= 0.2).sum(0)
    cut = lines[counts == counts.min()].mean()
    upper, between, found = u > cut, cdist(x, x), []
    for radius in np.array(_RADII) * min(1.0, (300 / len(x)) ** 0.125):
        near = np.abs(u - cut) <= radius
        slid = x[near] - (u[near] - cut)[:, None] * axis
        fullest = (cdist(slid, x) <= radius).sum(1).max(initial=0)
        around = (between <= radius).sum(1) - 1
        typical = min(np.quantile(around[upper], 0.75), np.quantile(around[~upper], 0.75))
        found.append(np.sqrt(2) * (np.sqrt(typical + 0.375) - np.sqrt(fullest + 0.375)))
    return float(min(found))
