"""Latents from sample-wise estimates and the dynamics: an iterated Rauch-Tung-Striebel smoother that learns its noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.dynamics import Network, potentials, value_and_slope
from connector.dynamics import activation as activation_named
from connector.lrrnn.latents import _PRIOR_SD
from connector.lrrnn.samples import CHUNK_ELEMENTS
from connector.numerics import symmetric_root
from connector.types import valid_mask

# Factors tried on the covariance of process noise in every iteration of the smoother.
_Q_SCALES = (1e-3, 1e-1, 0.3, 1.0, 3.0)
_Q_FLOOR = 1e-12  # smallest variance of process noise


def smooth_latents(
    z: Tensor,
    information: Tensor,
    network: Network,
    lengths: Tensor,
    inputs: Tensor | None = None,
    process_covariance: Tensor | None = None,
    iterations: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents from sample-wise estimates and the network's dynamics: an iterated Rauch-Tung-Striebel smoother.

    Model: z[t+1] = step(z[t], u[t]) + N(0, Q); the estimate z[t] has the Fisher information given. The step is
    linearised about the last iterate; all trials run side by side, time is the only loop.

    Args:
        z: (trials, time, R) sample-wise estimates; information: (trials, time, R, R), zero where nothing was seen.
        lengths: (trials,); inputs: (trials, time, U) or None.
        process_covariance: Q (R, R); None estimates it, at first from the moments of the one-step errors and then by
            maximum likelihood along the iterations.

    Returns:
        smoothed z (trials, time, R), posterior covariances (trials, time, R, R), Q. Float64.
    """
    network, z, information = network.double(), z.double(), information.double()
    u = None if inputs is None else inputs.double()
    valid = valid_mask(lengths, z.shape[1])
    pairs = (valid[:, 1:] & valid[:, :-1])[..., None]
    learn, q, reference = process_covariance is None, process_covariance, z
    for _ in range(iterations):
        following, jacobian = linearised_step(network, reference, u, valid)
        if q is None:
            q = moment_covariance(z, information, following, jacobian, pairs[..., 0])
        # Expectation maximisation alone would need very many steps where Q is near zero: scale by the likelihood.
        tried = torch.tensor(_Q_SCALES if learn else (1.0,)).to(q)[:, None, None] * q
        forward, likely = kalman_filter(z, information, following, jacobian, reference, tried)
        chosen = max(range(len(tried)), key=likely.__getitem__)
        mean, covariance, lagged = _smooth_back(forward.of(chosen), jacobian)
        q = tried[chosen]
        if learn:
            moved = torch.einsum("ntij,ntj->nti", jacobian[:, :-1], mean[:, :-1] - reference[:, :-1])
            error = torch.where(pairs, mean[:, 1:] - following[:, :-1] - moved, 0.0)
            a = jacobian[:, :-1]
            spread = covariance[:, 1:] - a @ lagged - (a @ lagged).mT + a @ covariance[:, :-1] @ a.mT
            total = torch.einsum("nti,ntj->ij", error, error) + (spread * pairs[..., None]).sum((0, 1))
            q = symmetric_root(total / pairs.sum(), _Q_FLOOR, power=1)
        settled = float((mean - reference)[valid].abs().max()) < 1e-7
        reference = torch.where(valid[..., None], mean, 0.0)
        if settled:
            break
    return reference, covariance, q


def linearised_step(network: Network, z: Tensor, u: Tensor | None, valid: Tensor) -> tuple[Tensor, Tensor]:
    """step(z, u) (trials, time, R) and its Jacobian (trials, time, R, R); the identity where nothing was recorded."""
    phi, rank, k = activation_named(network.activation), network.rank, network.n_neurons
    following = z.clone()
    jacobian = torch.eye(rank, dtype=z.dtype, device=z.device).repeat(*z.shape[:2], 1, 1)
    rows = valid.reshape(-1).nonzero()[:, 0]
    flat_z, flat_u = z.reshape(-1, rank), None if u is None else u.reshape(-1, u.shape[-1])
    low = network.loadings.map(lambda x: x.float())
    n, pairs = network.n.float() / k, (network.n[:, :, None] * network.m[:, None, :]).flatten(1).float() / k
    drive, slopes = z.new_empty(len(rows), rank), z.new_empty(len(rows), rank * rank)
    size = max(1, CHUNK_ELEMENTS // k)
    for start in range(0, len(rows), size):
        at = slice(start, start + size)
        h = potentials(low, flat_z[rows[at]].float(), None if flat_u is None else flat_u[rows[at]].float())
        value, slope = value_and_slope(phi, h)
        drive[at], slopes[at] = (value @ n).double(), (slope @ pairs).double()
    keep, alpha = valid.reshape(-1), network.alpha
    following.view(-1, rank)[keep] = (1 - alpha) * flat_z[rows] + alpha * drive
    eye = torch.eye(rank, dtype=z.dtype, device=z.device)
    jacobian.view(-1, rank, rank)[keep] = (1 - alpha) * eye + alpha * slopes.reshape(-1, rank, rank)
    return following, jacobian


def moment_covariance(z: Tensor, information: Tensor, following: Tensor, jacobian: Tensor, pairs: Tensor) -> Tensor:
    """Q from the one-step errors of the estimates, less what the estimates' own noise contributes to them."""
    error = (z[:, 1:] - following[:, :-1])[pairs]
    noise = torch.linalg.pinv(information, hermitian=True)
    a = jacobian[:, :-1][pairs]
    own = noise[:, 1:][pairs] + a @ noise[:, :-1][pairs] @ a.mT
    total = error.T @ error / len(error)
    return symmetric_root(total - own.mean(0), max(_Q_FLOOR, 1e-2 * float(total.diagonal().mean())), power=1)


@dataclass(frozen=True)
class Filtered:
    """Means (..., trials, R) and covariances (..., trials, R, R) after and before each sample, time first."""

    filtered: list[tuple[Tensor, Tensor]]
    predicted: list[tuple[Tensor, Tensor]]

    def of(self, i: int) -> Filtered:
        """Those of one among several Q."""
        parts = ([(mean[i], covariance[i]) for mean, covariance in part] for part in (self.filtered, self.predicted))
        return Filtered(*parts)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def kalman_filter(
    z: Tensor, information: Tensor, following: Tensor, jacobian: Tensor, reference: Tensor, q: Tensor
) -> tuple[Filtered, list[float]]:
    """Kalman filters of the linearised model with each Q of q (Q, R, R), side by side, and their log likelihoods up to a
    constant; an estimate without information leaves the prediction as it is."""
    trials, steps, rank = z.shape
    eye = torch.eye(rank, dtype=z.dtype, device=z.device)
    mean = z.new_zeros(len(q), trials, rank)
    covariance = (_PRIOR_SD**2 * eye).expand(len(q), trials, rank, rank)
    filtered, predicted, total = [], [], z.new_zeros(len(q))
    for t in range(steps):
        if t:
            a = jacobian[:, t - 1]
            mean = following[:, t - 1] + times(a, mean - reference[:, t - 1])
            covariance = a @ covariance @ a.mT + q[:, None]
            predicted.append((mean, covariance))
        mixing = eye + covariance @ information[:, t]
        factor, pivots = torch.linalg.lu_factor(mixing)
        seen = torch.linalg.lu_solve(factor, pivots, covariance)
        covariance = (seen + seen.mT) / 2
        error = z[:, t] - mean
        pull = times(information[:, t], error)
        move = times(covariance, pull)
        # S^-1 = L - L P' L with the information L and the filtered covariance P'; det S = det(1 + P L) / det L
        log_det = factor.diagonal(dim1=-2, dim2=-1).abs().log().sum((1, 2))
        total = total + (pull * (move - error)).sum((1, 2)) - log_det
        mean = mean + move
        filtered.append((mean, covariance))
    return Filtered(filtered, predicted), (0.5 * total).tolist()


def _smooth_back(forward: Filtered, jacobian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smoothed means, covariances, and Cov(z[t], z[t+1]) (trials, time - 1, R, R)."""
    mean, covariance = forward.filtered[-1]
    means, covariances, lagged = [mean], [covariance], []
    for t in range(len(forward.predicted) - 1, -1, -1):
        (at, spread), (ahead, ahead_spread) = forward.filtered[t], forward.predicted[t]
        gain = torch.linalg.solve(ahead_spread, jacobian[:, t] @ spread).mT
        lagged.append(gain @ covariances[-1])
        means.append(at + times(gain, means[-1] - ahead))
        covariances.append(spread + gain @ (covariances[-1] - ahead_spread) @ gain.mT)
    return tuple(torch.stack(x[::-1], dim=1) for x in (means, covariances, lagged))
