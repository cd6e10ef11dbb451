"""What errors of the loadings can make of one population: neurons moved back to where their precision class may lie.

A fitted loading is the true one plus an error, so a gap that is seen through the errors is, if anything, deeper without
them. Errors make gaps only where they differ between neurons: if those in the middle are the ones that are badly known,
they scatter, and the others seem to lie on two sides of nothing; if the prior pulls those of which nothing is known to
one place, they seem to be a group. Neurons of about the same precision share a population, and its moments tell how far
its neurons scatter by error alone.
"""

from __future__ import annotations

import numpy as np

_SURELY = 2.0  # standard errors by which the share that errors explain is taken larger than it is found
_FARTHEST = 4.0  # errors are drawn with at most so many times the variance of the class: farther out is as little known
_ALIKE = 0.35  # bandwidth in log(error): neurons whose errors differ by less than a third are of one class
_PRIOR_NEURONS = 1.0  # weight of the whole population in the moments of a class


def without_errors(x: np.ndarray, covariance: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Positions of the neurons such that each class of precision scatters as it does without errors.

    Neurons are of one class the more, the more alike their errors are (a Gaussian weight of the log of their size). Let q be
    the share of the class's variance along some direction that a neuron's error explains. Loadings come in two readings.
    Where they are the true ones plus errors (least squares), distances from the mean of the class shrink by sqrt(1 - q), or
    to nearly nothing for q of 1 or more: the class gets the variance of its true loadings (constrained empirical Bayes,
    Louis 1984); q is taken two standard errors larger, since a class that is left too wide does not fill a gap that is none.
    Where they are posterior means (few data and a prior), the true ones scatter more: errors are drawn and added, with a
    share q of their variance, all of it from q = 1 on (but at most four times that of the class). Either reading leaves well-known neurons where they are.

    Args:
        x: (K, P) fitted loadings; covariance: (K, P, P) of their errors.
        rng: of the draws of the second reading; None: the first.

    Returns:
        (K, P') in coordinates in which x has mean zero and covariance one; directions without variance are left out.
    """
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x.T, bias=True)))
    keep = values > 1e-10 * values.max()
    white = vectors[:, keep] / np.sqrt(values[keep])
    x, errors = (x - x.mean(0)) @ white, white.T @ covariance @ white
    size = 0.5 * np.log(np.trace(errors, axis1=1, axis2=2) + 1e-12)
    weight = np.exp(-0.5 * ((size[:, None] - size) / _ALIKE) ** 2)
    total = weight.sum(1) + _PRIOR_NEURONS
    dim, mean = x.shape[1], weight @ x / total[:, None]
    second = (weight @ (x[:, :, None] * x[:, None]).reshape(len(x), -1)).reshape(-1, dim, dim)
    scatter = (second + _PRIOR_NEURONS * np.eye(dim)) / total[:, None, None] - mean[:, :, None] * mean[:, None]
    root = np.linalg.cholesky(scatter)
    inverse = np.linalg.inv(root)
    share, along = np.linalg.eigh(inverse @ errors @ inverse.transpose(0, 2, 1))
    share = np.clip(share, 0, _FARTHEST)
    position = (along.transpose(0, 2, 1) @ inverse @ (x - mean)[:, :, None])[:, :, 0]
    if rng is None:
        surely = share * (1 + _SURELY * np.sqrt(2 / total))[:, None]  # of a variance from so many neurons
        position = position * np.sqrt(np.clip(1 - surely, 1e-4, None))
    else:
        position = position + rng.normal(size=position.shape) * np.sqrt(share * np.clip(share, 0, 1))
    return mean + (root @ along @ position[:, :, None])[:, :, 0]
