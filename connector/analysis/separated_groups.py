"""Do the loadings form groups with a gap between them, on every way from one to the other?

Many single populations are not Gaussian: discs, rings, skewed or heavy-tailed ones. What only separate groups have is a
gap. The test looks for the split of the neurons with the deepest gap, measures that gap along axes fitted without the
neurons that are placed on them (:mod:`connector.analysis.gaps`), and asks whether points are dense on another way around
it (:mod:`connector.analysis.bends`). Where no gap is shown there may still be groups: few neurons hide them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from connector.analysis.bends import N_PERMUTATIONS, bend_p_value, valley_depth
from connector.analysis.blur import without_errors
from connector.analysis.cell_types import features
from connector.analysis.gaps import depths, gap_p_value, widest_gap
from connector.analysis.splits import axes, candidate_splits, canonical, cross_fitted_score
from connector.errors import UserError, require
from connector.types import Loadings

LEVEL = 0.05
FEW_NEURONS = 60  # below, single populations of some shapes fire too often: "suggestive" at most
# The split with the deepest gap is chosen among many, so gaps of single populations are deeper than those of uniform
# samples. The cube is the worst of the single shapes tried: the lowest twentieth of its p-values ends at .01 or above.
_SELECTION = 5.0
# How empty the boundary has to be, in standard deviations, by how surely the population bends: p-value of the bend up to,
# for 100 neurons. With more neurons bends show more surely, and chance alone should call fewer groups bent.
_EMPTY_ENOUGH = ((0.02, 1.6), (0.07, 0.6), (0.2, 0.1), (np.inf, -0.7))
# A gap that is measured once more with the errors taken out: so much larger may p be, so much fuller the boundary. The
# verdict on two groups then hardly changes by chance, and of squares whose middle is badly known few are called groups.
_AGAIN = (2.0, 0.5)
_TOLD = 0.8  # share of the neurons that a split's own axis has to place on their sides
_ATOM = 0.05  # share of equal values in a column from which they are an atom
_N_HALVES, _MAX_DEPTH, _MIN_NEURONS = 10, 3, 25

# Standard deviations between two Gaussian groups of equal size that are shown with probability .8, by number of neurons
# (experiments/cell_types.py --detectable --populations 100, two columns).
DETECTABLE = {100: 4.7, 300: 3.8}


@dataclass(frozen=True)
class SeparatedGroups:
    """Result of :func:`separated_groups`.

    Attributes:
        p_value: five times the gap's p-value, at most 1; 1 where points are dense on a way around the gap, or where it
            does not outlast the loadings' errors or the removal of atoms. A test at level .05; what is smaller is not
            calibrated.
        n_groups: groups shown, counted by splitting each side again; 1 where no gap is shown.
        stability: share of random half-samples that show as many groups; None for one group or uncounted ones. Half of the neurons show
            less, so a low share is no contradiction.
        labels: (K,) group of each neuron, 0 for the largest.
        score: (K,) position along the axis of the first split, in standard deviations within its sides.
        boundary: the middle of the deepest gap on that axis.
    """

    p_value: float
    n_groups: int
    stability: float | None
    labels: Tensor
    score: Tensor
    boundary: float

    @property
    def verdict(self) -> str:
        """As :func:`verdict_of` says."""
        return verdict_of(self.p_value, len(self.labels))

    def __str__(self) -> str:
        return f"{self.verdict} (p = {self.p_value:.2g})"


def verdict_of(p_value: float, n_neurons: int) -> str:
    """ "separated groups", "suggestive" (a gap, but fewer than 60 neurons) or "not shown"."""
    if p_value > LEVEL:
        return "not shown"
    return "separated groups" if n_neurons >= FEW_NEURONS else "suggestive"


def detectable_separation(n_neurons: int) -> float | None:
    """Standard deviations between two groups of equal size that so many well-known loadings show with probability .8.

    From what was measured (:data:`DETECTABLE`), on lines in log(neurons); with more neurons than measured less would do,
    with fewer it is not known.
    """
    if n_neurons < min(DETECTABLE):
        return None
    return float(np.interp(np.log(n_neurons), np.log(list(DETECTABLE)), list(DETECTABLE.values())))


def separated_groups(
    loadings: Loadings | Tensor,
    covariance: Tensor | None = None,
    *,
    count: bool = True,
    max_neurons: int = 1000,
    seed: int = 0,
) -> SeparatedGroups:
    """Test for groups of neurons with a gap of lower density on every path between them.

    Parts of one population that touch in a narrow place, as those of a dumbbell or a figure of eight do, are often called
    separated, and an S sometimes: with few neurons a thin bridge cannot be distinguished from a gap.

    Neither the order of the neurons nor an invertible linear map of the loadings, such as the gauge of the latents,
    changes the answer. Copies of a neuron count once. Where a column has an atom (equal values in 5 % of the neurons or
    more), the gap has to stand without it too.

    Errors of the loadings blur: a gap that is seen in the fitted loadings is, if anything, deeper in the true ones. What has
    to be excluded is that the errors made it, because they differ between neurons: the gap has to be found also where the
    scatter that errors explain is taken out of each class of precision (:mod:`connector.analysis.blur`).

    Args:
        loadings: Loadings or (K, P).
        covariance: (K, P, P) errors of the loadings, columns in the order m, b, d; None: as good as known.
        count: count the groups and their stability, which takes ten times as long as the verdict; else there are two.
        max_neurons: larger populations are thinned to this number; the others take the group of the nearest neuron.
        seed: of thinning, starts, folds, permutations and draws.

    Raises:
        UserError: fewer than 25 different neurons, or than ten for each column, or loadings that do not vary.
    """
    x = features(loadings) if isinstance(loadings, Loadings) else loadings.detach().double().cpu()
    if covariance is not None:
        shape = (*x.shape, x.shape[1])
        require(tuple(covariance.shape) == shape, f"a covariance of shape {shape}", tuple(covariance.shape))
    x = x.numpy()
    gap = _find(x, max_neurons, seed)
    p_value = min(1.0, _SELECTION * gap.p_value) if gap.points.shape[1] > 1 else gap.p_value
    nearest = KDTree(gap.points).query(gap.everyone)[1]
    if not gap.shown or not _outlasts(x, gap.side[nearest], covariance, max_neurons, seed):
        p_value = p_value if p_value > LEVEL else 1.0
        labels, stability = np.zeros(len(gap.points), dtype=int), None
    else:
        labels = _labels(gap, seed, depth=1 if count else _MAX_DEPTH + 1)
        halves = [_half(gap.points, seed + i) for i in range(_N_HALVES)] if count else []
        stability = float(np.mean([found == labels.max() + 1 for found in halves])) if count else None
    return SeparatedGroups(
        p_value=float(p_value),
        n_groups=int(labels.max()) + 1,
        stability=stability,
        labels=torch.from_numpy(labels[nearest]),
        score=torch.from_numpy(gap.score[nearest]),
        boundary=gap.boundary,
    )


class _Gap(NamedTuple):
    """The deepest gap of the points (n, P), whitened and different from each other, and whether it is shown.

    ``everyone`` are all neurons in the points' coordinates; ``side`` (n,) is the split, ``score`` (n,) the position along
    its axis.
    """

    p_value: float
    shown: bool
    side: np.ndarray
    score: np.ndarray
    boundary: float
    points: np.ndarray
    everyone: np.ndarray


def _find(x: np.ndarray, max_neurons: int, seed: int) -> _Gap:
    """The deepest gap in the rows of x (K, P)."""
    distinct, copy_of = np.unique(x, axis=0, return_inverse=True)
    enough = max(_MIN_NEURONS, 10 * x.shape[1])
    if x.shape[1] == 0 or len(distinct) < enough:
        raise UserError(f"{enough} or more neurons that differ in their loadings", f"{len(distinct)}")
    ordered, order = canonical(distinct)
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    rng = np.random.default_rng(seed)
    points = ordered[rng.permutation(len(ordered))[:max_neurons]]
    return _deepest(points, rng)._replace(everyone=ordered[place[copy_of.ravel()]])


def _deepest(x: np.ndarray, rng: np.random.Generator) -> _Gap:
    """The deepest gap among the candidate splits of x (n, P), whitened, in random order."""
    if x.shape[1] == 1:
        return _measured(x, x[:, 0] > widest_gap(x[:, 0]), rng)
    sides = candidate_splits(x, rng)
    if not len(sides):  # of a few neurons very far from all others
        sides = x[:, 0][None] > np.median(x[:, 0])
    w, middle, _ = axes(x, sides)
    # The axis of two sides that lie crosswise, as the diagonals of a square do, is chance: it turns with every fold.
    told = ((w @ x.T > middle[:, None]) == sides).mean(1)
    sides, w = sides[told >= min(_TOLD, told.max())], w[told >= min(_TOLD, told.max())]
    return _measured(x, sides[int(depths(np.sort(w @ x.T, axis=1)).mean(1).argmax())], rng)


def _measured(x: np.ndarray, side: np.ndarray, rng: np.random.Generator, again: bool = False) -> _Gap:
    """The gap of one split of x; again: of one that was shown, which chance alone may not hide."""
    factor, slack = _AGAIN if again else (1.0, 0.0)
    if x.shape[1] == 1:
        p = float(gap_p_value(x.T)[0])
        return _Gap(p, p <= factor * LEVEL, side, x[:, 0], widest_gap(x[:, 0]), x, x)
    score = cross_fitted_score(x, side, rng)
    p = float(gap_p_value(score[None])[0])
    shown = p <= factor * LEVEL / _SELECTION and _empty_enough(x, side, rng, slack)
    return _Gap(p, shown, side, score, widest_gap(score), x, x)


def _empty_enough(x: np.ndarray, side: np.ndarray, rng: np.random.Generator, slack: float = 0.0) -> bool:
    """Whether the boundary of a split is as empty as it has to be, the more so the more surely the population bends."""
    w, middle, within = (found[0] for found in axes(x, side[None]))
    values, vectors = np.linalg.eigh(within)
    spherical = vectors / np.sqrt(values)  # x @ spherical has covariance one within the sides
    along = vectors.T @ w * np.sqrt(values)
    beside = spherical @ np.linalg.svd(along[None])[2][1:].T
    position = x @ w - middle
    seen = (x @ beside, np.abs(position), position > 0, rng)
    unit = min(1.0, 100 / len(x))
    surely, not_at_all = (_EMPTY_ENOUGH[row][0] * unit for row in (0, -2))
    least = 2 / (1 + N_PERMUTATIONS)  # as small as so few permutations allow
    again = len(x) > 100
    p_bend, directions = bend_p_value(*seen, exact=(least if again else surely, not_at_all))
    if again and p_bend <= least:
        p_bend, directions = bend_p_value(*seen, n_permutations=5 * N_PERMUTATIONS, exact=(surely, not_at_all))
    # In a plane through the axis: with more dimensions balls that hold enough points reach across a gap.
    planes = directions if beside.shape[1] > 1 else np.ones((1, 1))
    depth = min(valley_depth(np.stack([position, x @ beside @ v], axis=1), side) for v in planes)
    return depth + slack > next(empty for limit, empty in _EMPTY_ENOUGH if p_bend <= limit * unit)


def _outlasts(x: np.ndarray, side: np.ndarray, covariance: Tensor | None, max_neurons: int, seed: int) -> bool:
    """Whether a gap is found without atoms too, and is there with the errors taken out, however the loadings were fitted."""
    plain = np.ones(len(x), dtype=bool)
    for column in x.T:
        _, value_of, count = np.unique(column, return_inverse=True, return_counts=True)
        if len(count) > 1:
            plain &= count[value_of] < max(3, _ATOM * len(x))
    if not plain.all() and not _shown(x[plain], max_neurons, seed):
        return False
    if covariance is None:
        return True
    errors, rng = covariance.detach().double().cpu().numpy(), np.random.default_rng(seed)
    some = np.unique(x, axis=0, return_index=True)[1]
    some = rng.permutation(some[canonical(x[some])[1]])[:max_neurons]
    # The same split, and not the deepest gap anew: what chance has in the search is no matter of the errors.
    readings = (without_errors(x[some], errors[some]), without_errors(x[some], errors[some], rng))
    return all(_measured(moved, side[some], np.random.default_rng(seed), again=True).shown for moved in readings)


def _shown(x: np.ndarray, max_neurons: int, seed: int) -> bool:
    try:
        return _find(x, max_neurons, seed).shown
    except UserError:  # too few are left
        return False


def _labels(gap: _Gap, seed: int, depth: int = 1) -> np.ndarray:
    """Group of each of a gap's points: its sides, each split again where it shows a gap itself; the largest is 0."""
    upper = gap.score > gap.boundary
    labels = upper.astype(int)
    for side in (upper, ~upper):
        if depth > _MAX_DEPTH or side.sum() < max(_MIN_NEURONS, 10 * gap.points.shape[1]):
            continue
        part = _find(gap.points[side], len(upper), seed)
        if part.shown:
            # Points in the order of their side, not of the part.
            again = _labels(part, seed, depth + 1)[KDTree(part.points).query(part.everyone)[1]]
            labels[side] = np.where(again > 0, labels.max() + again, labels[side])
    size = np.bincount(labels)
    return np.argsort(np.argsort(-size, kind="stable"), kind="stable")[labels]


def _half(points: np.ndarray, seed: int) -> int:
    """Number of groups that a random half of the points shows."""
    rng = np.random.default_rng(seed)
    half = points[rng.permutation(len(points))[: len(points) // 2]]
    if len(half) < max(_MIN_NEURONS, 10 * points.shape[1]):
        return 1
    gap = _find(half, len(half), seed)
    return int(_labels(gap, seed).max()) + 1 if gap.shown else 1
