"""What the counts say about the field's coefficients c with the latent paths integrated out, by Laplace's method.

    log p(y | c) ~ log p(y, zh) - log det C,        zh(c) the most likely paths, C C^T the curvature about them

Its gradient and its information lead the sampler's joint moves of coefficients and paths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from connector.lrrnn.spikes.paths import Counts, Parameters, step_errors, step_of, values_along
from connector.lrrnn.spikes.tridiagonal import Factor
from connector.shooting import Field

_TRIALS = 64  # eliminated side by side


def gradient(counts: Counts, field: Field, p: Parameters, mode: Tensor, factor: Factor) -> Tensor:
    """d log p(y | c) / dc (p, R), about the most likely paths (B, T, R) and their curvature there.

    The curvature's share is alpha sum_t grad B(z_t) Cov(z_t, e_t) Q^-1, with e_t the error of step t.
    """
    rows = counts.rows(mode)
    values = list(values_along(field, rows, counts.u, True))
    following, jacobian = step_of(field, p.c, rows, values)
    precision = torch.linalg.inv(p.q)
    rank = len(precision)
    pair = counts.mask[:, 1:, None, None]
    own, next_ = factor.covariances()
    a = counts.padded(jacobian)[:, :-1]
    with_error = (next_ - own[:, :-1] @ a.mT) * pair
    padded = torch.zeros(*counts.mask.shape, rank, rank, dtype=torch.float64)
    padded[:, :-1] = with_error @ precision
    pull, padded = _pull(counts, mode, following, precision).float(), counts.rows(padded).flatten(1).float()
    m = field.neurons.m
    by_value = sum((value.T @ pull[at]).double() for at, value, _ in values)
    by_slope = sum((slope.T @ padded[at]).double() for at, _, slope in values)
    through_slope = (m.double()[:, :, None] * by_slope.view(-1, rank, rank)).sum(1)
    return field.alpha * field.mixing.T @ (by_value + through_slope)


def gradient_of_path(counts: Counts, field: Field, p: Parameters, z: Tensor) -> Tensor:
    """d log p(paths | c) / dc (p, R). Over paths z (B, T, R) from their posterior its mean is d log p(y | c) / dc, exactly
    (Fisher's identity)."""
    rows = counts.rows(z)
    values = list(values_along(field, rows, counts.u, False))
    following, _ = step_of(field, p.c, rows, values)
    pull = _pull(counts, z, following, torch.linalg.inv(p.q)).float()
    return field.alpha * field.mixing.T @ sum((value.T @ pull[at]).double() for at, value, _ in values)


def _pull(counts: Counts, z: Tensor, following: Tensor, precision: Tensor) -> Tensor:
    """Q^-1 times the error (V, R) of the step from each sample, zero at a trial's last."""
    found = torch.zeros_like(z)
    found[:, :-1] = step_errors(counts, z, counts.padded(following)) @ precision
    return counts.rows(found)


def information(counts: Counts, field: Field, p: Parameters, mode: Tensor, factor: Factor) -> Tensor:
    """Of c with the paths eliminated, (pR, pR); c is flattened as (mode, dimension)."""
    rows = counts.rows(mode)
    _, jacobian = step_of(field, p.c, rows, values_along(field, rows, counts.u, True))
    precision, rank, size = torch.linalg.inv(p.q), len(p.q), field.mixing.shape[1]
    jacobian = counts.padded(jacobian)
    u = None if counts.u is None else counts.padded(counts.u)
    gram = torch.zeros(size, size, dtype=torch.float64)
    lost = torch.zeros(size * rank, size * rank, dtype=torch.float64)
    for first in range(0, len(mode), _TRIALS):
        at = slice(first, first + _TRIALS)
        mask = counts.mask[at]
        pair = mask[:, 1:]
        z = mode[at][:, :-1]
        basis = torch.zeros(*pair.shape, size, dtype=torch.float64)
        basis[pair] = field(z[pair], None if u is None else u[at][:, :-1][pair])
        flat = basis.flatten(0, 1)
        gram += flat.T @ flat
        weighted = field.alpha * precision
        cross = torch.zeros(*mask.shape, rank, size, rank, dtype=torch.float64)  # d2 / dz dc, of the energy
        cross[:, 1:] -= torch.einsum("ir,btj->btijr", weighted, basis)
        cross[:, :-1] += torch.einsum("btki,kr,btj->btijr", jacobian[at][:, :-1], weighted, basis)
        white = factor.of(at).forward(cross.flatten(3))
        white = white.reshape(-1, size * rank)
        lost += white.T @ white
    full = torch.kron(field.alpha**2 * gram, precision.contiguous())
    found = full - lost
    return 0.5 * (found + found.T)
