"""Shares of variance explained, about baselines that know nothing of the trials scored: means over training trials."""

from __future__ import annotations

import torch
from torch import Tensor

from connector.dynamics import activation, potentials
from connector.lrrnn.handover import FittedDynamics
from connector.numerics import least_squares, sum_of_trials
from connector.types import Latents

_CLEAR = 0.5  # principal components that explain as much do so for a reason
_SAMPLES_OF_CHANCE = 4000
_SPARE_AXES = 8  # beside those that are looked for, which speed the others up
_PART, _PASSES_OF_PART = 20, 8  # one sample in so many, from which axes are near those of all


def variance_explained(observed: Tensor, predicted: Tensor, mean: Tensor) -> float:
    """1 - SS_res / SS_tot of all columns together, SS_tot about ``mean``; 0 is no better than that mean, below 0 worse.

    Args:
        observed, predicted: (T, K); mean: (K,) of training samples. The mean of ``observed`` itself would be an oracle.
    """
    observed = observed.double()
    return 1 - float((observed - predicted).square().sum() / (observed - mean).square().sum())


def principal_components(train: Tensor, observed: Tensor, rank: int) -> Tensor:
    """``observed`` (T, K) as seen through the ``rank`` principal components of ``train`` (S, K): the best that a linear
    model of that rank without dynamics can say of the training samples. (T, K) float64; axes in the precision of ``train``."""
    mean = sum_of_trials(train[None]) / len(train)
    axes = leading_axes(train - mean.to(train), rank).double()
    return mean + (observed.double() - mean) @ axes @ axes.T


def leading_axes(x: Tensor, rank: int, most: int = 20) -> Tensor:
    """(K, rank) orthonormal: the principal axes of x (S, K) of mean zero, in its precision.

    Of many neurons by subspace iteration, which takes a few passes over x where the axes stand out; where the variance that
    they hold has not settled to twelve digits after ``most`` (six in single precision), and of few neurons, from all of the
    covariance.
    """
    size, held = rank + _SPARE_AXES, x.new_zeros(())
    settled = 1e-12 if x.dtype == torch.float64 else 1e-6
    if x.shape[1] > 10 * size:
        axes = torch.randn(x.shape[1], size, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        few = x[::_PART].contiguous() if len(x) > 10 * _PART * size else x[:0]
        for _ in range(_PASSES_OF_PART * bool(len(few))):
            axes = ((few @ torch.linalg.qr(axes).Q).T @ few).T
        for _ in range(most):
            reached = x @ torch.linalg.qr(axes).Q
            axes, before = (reached.T @ x).T, held  # ten times sooner than x.T @ reached
            held = torch.linalg.eigvalsh(reached.T @ reached)[-rank:].sum()
            if (held - before).abs() <= settled * held:
                found, turn = torch.linalg.qr(axes)
                return found @ torch.linalg.svd(turn).U[:, :rank]
    return torch.linalg.eigh(x.T @ x).eigenvectors[:, -rank:]


def by_chance(train: Tensor, observed: Tensor, rank: int, draws: int = 3) -> float:
    """What :func:`principal_components` explain of neurons that have nothing in common: of the same rates, each neuron's
    moved round in time by a random amount of its own; the most of some draws, from 4000 samples at most.

    Args:
        train: (S, K); observed: (T, K), samples of trials in their order.
    """
    generator, explained = torch.Generator().manual_seed(0), []
    train, observed = (x[:_SAMPLES_OF_CHANCE].double() for x in (train, observed))
    for _ in range(draws):
        moved = []
        for x in (train, observed):
            by = torch.randint(len(x), (x.shape[1],), generator=generator)
            moved.append(x.gather(0, (torch.arange(len(x))[:, None] + by) % len(x)))
        explained.append(variance_explained(moved[1], principal_components(*moved, rank), moved[0].mean(0)))
    return max(explained)


def rates_explained(inputs: FittedDynamics, activity: Tensor, *, given: bool = False) -> dict[str, float]:
    """Share of the variance of test trials' rates that latents and loadings explain, and principal components of the same
    rank, each given the activity of the trials that it is scored on.

    Args:
        activity: (trials, time, K_obs) rates of all trials.
        given: latents and loadings were not fitted to these rates, and may not belong to them.

    Returns:
        ``lrrnn/rates_r2``, ``lrrnn/rates_r2_pca``; where the latter is small also ``lrrnn/rates_r2_null``
        (:func:`by_chance`); where they were given also ``lrrnn/rates_r2_linear``, of the linear
        function of the same states and inputs that explains the training trials best.
    """
    latents, rank, fold = inputs.latents, inputs.latents.rank, inputs.fold
    test = latents.trials(fold.test)
    fitted = activation(inputs.activation)(potentials(inputs.loadings, test.z, test.inputs))[test.mask].double()
    train, observed = (_recorded(activity, latents.mask, trials) for trials in (fold.train, fold.test))
    observed = observed.double()
    mean = sum_of_trials(train[None]) / len(train)
    found = {
        "lrrnn/rates_r2": variance_explained(observed, fitted, mean),
        "lrrnn/rates_r2_pca": variance_explained(observed, principal_components(train, observed, rank), mean),
    }
    if found["lrrnn/rates_r2_pca"] < max(_CLEAR, 4 * rank / len(mean)):
        found["lrrnn/rates_r2_null"] = by_chance(train, observed, rank)
    if given:
        states = [_with_constant(latents.trials(part)) for part in (fold.train, fold.test)]
        predicted = states[1] @ least_squares(states[0], train.double())
        found["lrrnn/rates_r2_linear"] = variance_explained(observed, predicted, mean)
    return found


def _recorded(activity: Tensor, mask: Tensor, trials: Tensor) -> Tensor:
    """(T, K) of some trials, without their padding: copied once, as large as all rates may be."""
    trial, time = mask[trials].nonzero().T
    return activity.flatten(0, 1)[trials[trial] * mask.shape[1] + time]


def _with_constant(latents: Latents) -> Tensor:
    """States, inputs and 1 side by side at the recorded samples, (T, R + U + 1) float64."""
    parts = [latents.z, *([] if latents.inputs is None else [latents.inputs]), torch.ones_like(latents.z[..., :1])]
    return torch.cat([part[latents.mask].double() for part in parts], 1)
