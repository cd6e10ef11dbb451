"""Splits of a population in two: candidates, the axis that tells their sides apart, positions along it."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, ward
from scipy.cluster.vq import kmeans2

_STARTS, _SWEEPS, _K_MEANS_SWEEPS = 3, 25, 15
_SMALLEST = 0.05  # share of the neurons on the smaller side
_N_FOLDS = 10


def whiten(x: np.ndarray) -> np.ndarray:
    """x (n, P) with mean zero and covariance one; directions without variance are left out."""
    size = x.std(0)
    x = (x - x.mean(0)) / np.where(size > 0, size, 1)
    values, vectors = np.linalg.eigh(np.atleast_2d(x.T @ x) / len(x))
    keep = values > 1e-10 * values.max()
    return x @ vectors[:, keep] / np.sqrt(values[keep])


def whiten_robustly(x: np.ndarray, sweeps: int = 30) -> np.ndarray:
    """x (n, P) with the scatter of a multivariate t of 3 degrees of freedom made one, which outliers hardly move.

    Directions without variance are left out.
    """
    x = whiten(x)
    dim = x.shape[1]
    centre, scatter = np.median(x, axis=0), np.eye(dim)
    for _ in range(sweeps):
        away = x - centre
        weight = (3 + dim) / (3 + (away @ np.linalg.inv(scatter) * away).sum(1))
        centre = weight @ x / weight.sum()
        away = x - centre
        scatter = (weight[:, None] * away).T @ away / len(x)
    values, vectors = np.linalg.eigh(scatter)
    return (x - centre) @ vectors / np.sqrt(values)


def kurtosis_axes(x: np.ndarray) -> np.ndarray:
    """x (n, P), whitened, turned to the axes along which its fourth moments differ most (Cardoso 1989).

    They do not depend on the coordinates in which the population was given, and two groups lie along one of them.
    """
    clipped = np.clip(x, -3, 3)
    values, vectors = np.linalg.eigh(clipped.T @ clipped / len(x))
    clipped = clipped @ vectors / np.sqrt(values)
    size = np.minimum((clipped**2).sum(1, keepdims=True), 9 * x.shape[1])
    _, turn = np.linalg.eigh((clipped * size).T @ clipped / len(x))
    turned = x @ (vectors @ turn)
    skew = np.clip(turned, -3, 3)
    return turned * np.where((skew**3).mean(0) < 0, -1.0, 1.0)


def canonical(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The population in coordinates and an order of its own: the same for any order and invertible map of its rows.

    Returns:
        (n, P') whitened points, and the row of x that each of them is.
    """
    points = kurtosis_axes(whiten_robustly(x))
    order = np.argsort(points[:, 0], kind="stable")
    return points[order], order


def candidate_splits(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ways to split a population in two, (C, n) boolean, no side smaller than 5 % or three neurons.

    Each cluster of k-means and of Ward's tree, two to four of them, against the rest, the pairings of four, and the
    halves along each kurtosis axis; and where a mixture of two Gaussians of one covariance takes each of these.
    """
    n, found = len(x), []
    tree = ward(x)
    for k in (2, 3, 4):
        starts = [_k_means(x, kmeans2(x, k, iter=1, minit="++", rng=rng, missing="warn")) for _ in range(_STARTS)]
        by_means = min(starts, key=lambda fit: ((x - fit[0][fit[1]]) ** 2).sum())[1]
        for label in (fcluster(tree, k, "maxclust") - 1, by_means):
            found += [label == c for c in range(k if k > 2 else 1)]
            if k == 4:
                found += [(label == 0) | (label == c) for c in (1, 2, 3)]
    found += list((x > x.mean(0)).T)
    sides = np.array(found)
    sides = np.concatenate([sides, _as_mixtures(x, sides)])
    sides = np.unique(np.where(sides[:, :1], ~sides, sides), axis=0)
    size = sides.sum(1)
    smallest = max(3, _SMALLEST * n)
    return sides[(size >= smallest) & (size <= n - smallest)]


def _k_means(x: np.ndarray, begun: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Centres (k, P) and labels (n,) after 15 sweeps of k-means, from those after one; fewer where nothing changes."""
    centres, label = begun
    for _ in range(_K_MEANS_SWEEPS - 1):
        before, label = label, ((centres**2).sum(1) / 2 - x @ centres.T).argmin(1)
        if (label == before).all():
            break
        member = label == np.arange(len(centres))[:, None]
        size = member.sum(1, keepdims=True)
        centres = np.where(size > 0, member.astype(float) @ x / np.maximum(size, 1), centres)
    return centres, label


def axes(x: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear discriminants of several splits.

    Args:
        x: (n, P); sides: (C, n), boolean or shares.

    Returns:
        (C, P) axes w, along which the sides have variance one; (C,) midpoints between their means; (C, P, P)
        covariances within the sides.
    """
    share = sides.astype(float)
    size, rest = share.sum(1, keepdims=True), (1 - share).sum(1, keepdims=True)
    upper, lower = share @ x / np.maximum(size, 1e-9), (1 - share) @ x / np.maximum(rest, 1e-9)
    between = (
        size[..., None] * upper[:, :, None] * upper[:, None] + rest[..., None] * lower[:, :, None] * lower[:, None]
    )
    within = (x.T @ x - between) / (len(x) - 2) + 1e-9 * np.eye(x.shape[1])
    apart = upper - lower
    w = np.linalg.solve(within, apart[..., None])[..., 0]
    w = w / np.sqrt(np.maximum((w * apart).sum(1, keepdims=True), 1e-300))
    return w, (w * (upper + lower)).sum(1) / 2, within


def _as_mixtures(x: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The sides after expectation and maximisation of two Gaussians of one covariance, started at each split."""
    share = sides.astype(float)
    for _ in range(_SWEEPS):
        w, middle, _ = axes(x, share)
        size = np.maximum(share.sum(1, keepdims=True), 1e-9)
        rest = np.maximum((1 - share).sum(1, keepdims=True), 1e-9)
        apart = (w * (share @ x / size - (1 - share) @ x / rest)).sum(1, keepdims=True)
        odds = apart * (w @ x.T - middle[:, None]) + np.log(np.maximum(size, 1) / np.maximum(rest, 1))
        share = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    return share > 0.5


def cross_fitted_score(x: np.ndarray, side: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Position (n,) of each point along the axis that tells the sides apart, fitted without its tenth of the points."""
    fold = rng.permutation(len(x)) % _N_FOLDS
    score = np.empty(len(x))
    for f in range(_N_FOLDS):
        out = fold == f
        w, middle, _ = axes(x[~out], side[None, ~out])
        score[out] = x[out] @ w[0] - middle[0]
    return score
