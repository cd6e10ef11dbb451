"""Amplitudes of the parts of a covariance by maximum a posteriori, and their evidence, for all kernels at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def amplitude_prior(leading: Tensor, noise: Tensor, noise_width: float, grid) -> tuple[Tensor, Tensor]:
    """Normal priors of the log amplitudes of linear, curved, white part and noise: centre and width, (kernels, 4).

    Args:
        leading: mean square of n that the leading modes show. noise: the noise's likely variance.
        grid: (family, width) of each kernel; the curved part of "none" is kept as it is, being zero.
    """
    centre = torch.stack([leading, leading, leading / 3, noise.to(leading)]).log().expand(len(grid), 4).clone()
    width = torch.tensor([2.0, 2.0, 2.0, noise_width]).to(leading).expand(len(grid), 4).clone()
    width[[family == "none" for family, _ in grid], 1] = 0.0
    return centre, width


def log_weights(evidence: Tensor, grid) -> Tensor:
    """Log posterior weights (kernels,) up to a constant: families are equally likely beforehand, and so are their widths."""
    sizes = [sum(f == other for other, _ in grid) for f, _ in grid]
    return evidence - torch.tensor(sizes).to(evidence).log()


@dataclass
class Amplitudes:
    """Of each of B kernels: log amplitudes (B, 4) of linear, curved, white and noise; Cholesky factor (B, p, p) of the
    covariance of ``a``; weights (B, p, R) = covariance^-1 a; log evidence (B,); precision (B, 4, 4) of the log
    amplitudes (Fisher information plus prior; ones on the diagonal of fixed ones); log posterior (B,) at the mode."""

    log_amplitudes: Tensor
    cholesky: Tensor
    weights: Tensor
    evidence: Tensor
    precision: Tensor
    value: Tensor


def maximise_posterior(parts: Tensor, a: Tensor, centre: Tensor, width: Tensor, steps: int = 60) -> Amplitudes:
    """Fisher scoring for the log amplitudes of Cov(a) = sum_k exp(theta_k) parts_k, all B models at once.

    Args:
        parts: (B, 4, p, p) positive semi-definite parts.
        a: (p, R), R independent draws.
        centre, width: (B, 4) Gaussian prior of theta; a width of 0 keeps theta at its centre.
    """
    n_models, p = len(parts), len(a)
    rank = a.shape[1]
    free = (width > 0).to(a)
    precision = torch.where(width > 0, width.clamp_min(1e-9) ** -2, torch.zeros_like(width))
    theta = centre.clone()
    damping = torch.full((n_models,), 1e-2, dtype=a.dtype, device=a.device)

    def evaluate(theta, which, parts):
        covariance = torch.einsum("bk,bkij->bij", theta.exp(), parts)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        diagonal *= 1 + 1e-13  # of the size of rounding
        factor, failed = torch.linalg.cholesky_ex(covariance)
        solved = torch.cholesky_solve(a.expand(len(which), p, rank), factor)
        value = -0.5 * (a * solved).sum((1, 2)) - rank * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        value = value - 0.5 * (precision[which] * (theta - centre[which]) ** 2).sum(1)
        return value.masked_fill((failed > 0) | value.isnan(), -math.inf), factor, solved

    moving, own = torch.arange(n_models, device=a.device), parts
    value, factor, solved = evaluate(theta, moving, own)
    fisher = torch.zeros(*centre.shape, centre.shape[1]).to(a)
    for _ in range(steps):
        here, bound = theta[moving], precision[moving]
        scaled, on = here.exp()[:, :, None, None] * own, free[moving]
        moved = torch.einsum("bij,bkjl->bkil", torch.cholesky_inverse(factor[moving]), scaled)
        fit = torch.einsum("bir,bkij,bjr->bk", solved[moving], scaled, solved[moving])
        pull = bound * (here - centre[moving])
        gradient = on * (0.5 * fit - 0.5 * rank * torch.einsum("bkii->bk", moved) - pull)
        information = 0.5 * rank * torch.einsum("bkij,blji->bkl", moved, moved)
        information = information * on[:, :, None] * on[:, None] + torch.diag_embed(bound + (1 - on))
        fisher[moving] = information
        lifted = damping[moving, None] * information.diagonal(dim1=1, dim2=2)
        here = here + torch.linalg.solve(information + torch.diag_embed(lifted), gradient).clamp(-2, 2)
        trial = evaluate(here, moving, own)
        better = trial[0] >= value[moving]
        small = trial[0] - value[moving] < 1e-5
        up = moving[better]
        theta[up] = here[better]
        value[up], factor[up], solved[up] = (x[better] for x in trial)
        damping[moving] = torch.where(better, damping[moving] / 5, damping[moving] * 10).clamp(1e-6, 1e6)
        left = ~((better & small) | (damping[moving] > 1e3))
        if not bool(left.any()):
            break
        if not bool(left.all()):  # one that needs many steps leaves the others where they are
            moving, own = moving[left], own[left]
    # Laplace: integral over theta under its prior, up to constants shared by all models
    width = torch.where(width > 0, width, torch.ones_like(width))
    evidence = value - 0.5 * torch.linalg.slogdet(fisher).logabsdet - width.log().sum(1)
    return Amplitudes(theta, factor, solved, evidence, fisher, value)
