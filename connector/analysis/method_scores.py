"""Scores of any method's result beside a known truth: predicted rates, latent states, and where the dynamics settle.

The three shares of variance are those of the Computation-through-Dynamics Benchmark (Versteeg et al. 2025), with three changes, so
that one number stands for one method: nothing of a test trial is seen but its first samples; directions of the latent states count
alike, whatever coordinates a method has chosen (the benchmark weighs them by their variance there); and rates stand where the
benchmark has log rates, since rates of a tanh network take both signs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from connector.analysis.explained import variance_explained
from connector.numerics import even_rows, least_squares, ridge, whitening_of

NOISE = 0.05  # of the rates' rms sd: what is added to them before latents are read back
TOLERANCE = 0.25  # how near a point must be to a true one, of the distance from that one to its neighbour
_LONE = 2.0  # that distance where there is no neighbour, in rms sd of the rates
_MAX_SAMPLES = 8000


def rate_r2(observed: Tensor, predicted: Tensor, mean: Tensor) -> float:
    """Share of the variance of the rates that predictions explain: 1 - SS_res / SS_tot over all neurons together.

    Args:
        observed, predicted: (..., K) rates of test trials; mean: (K,) of training trials, about which SS_tot is taken.
    """
    wanted = observed.flatten(0, -2)
    given = torch.nan_to_num(predicted.flatten(0, -2).double(), nan=1e6).clamp(-1e6, 1e6)
    return variance_explained(wanted, given, mean.double())


def state_r2(true: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor]) -> float:
    """Share of the variance of a method's states that an affine function of the true ones explains, mean over directions.

    A state that follows dynamics of its own, which the network does not have, lowers it. The affine map is fitted to training
    trials and scored on test trials; directions are those in which the method's training states have unit variance.

    Args:
        true: of training and of test trials, (..., S) each; states: the method's, (..., R) each.
    """
    train, test = (_with_constant(x) for x in true)
    wanted = _whitened(*states)
    rows = even_rows(len(train), _MAX_SAMPLES)
    return _mean_r2(wanted[1], test @ least_squares(train[rows], wanted[0][rows]))


def cycle_consistency(
    states: tuple[Tensor, Tensor], rates: tuple[Tensor, Tensor], noise: float = NOISE, seed: int = 0
) -> float:
    """Share of the variance of a method's states that can be read back from the rates that it predicts, mean over directions.

    States that the rates do not show lower it. An affine map from rates to states is fitted to training trials, by the ridge
    that is best where rates have that noise, and scored on test trials with noise added to the rates.

    Args:
        states: the method's, of training and of test trials, (..., R) each; rates: (..., K) that it predicts there.
        noise: sd of what is added to each rate, relative to the rms sd of the rates over neurons.
    """
    wanted = _whitened(*states)
    train, test = (x.flatten(0, -2).double() for x in rates)
    mean = train.mean(0)
    train, test = train - mean, test - mean
    sd = noise * float(train.square().mean().sqrt())
    rows = even_rows(len(train), _MAX_SAMPLES)
    back = ridge(train[rows], wanted[0][rows], max(len(rows) * sd**2, 1e-12))
    generator = torch.Generator().manual_seed(seed)
    shown = test + sd * torch.randn(test.shape, generator=generator, dtype=torch.float64)
    return _mean_r2(wanted[1], shown @ back)


def _with_constant(x: Tensor) -> Tensor:
    flat = x.flatten(0, -2).double()
    return torch.cat([flat, torch.ones_like(flat[:, :1])], 1)


def _whitened(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the coordinates in which the training states have mean zero and unit covariance, (N, R) each."""
    train, test = (x.flatten(0, -2).double() for x in (train, test))
    mean = train.mean(0)
    root = whitening_of(train - mean)
    return (train - mean) @ root, (test - mean) @ root


def _mean_r2(wanted: Tensor, given: Tensor) -> float:
    """Mean over columns of 1 - SS_res / SS_tot about zero, the training mean."""
    return float((1 - (wanted - given).square().sum(0) / wanted.square().sum(0)).mean())


@dataclass(frozen=True)
class Settling:
    """Where a system settles under one constant input, told in rates of the recorded neurons.

    Attributes:
        kind: of :class:`connector.analysis.attractors.Attractors`.
        points: (F, K) rates at the stable fixed points. slowest: (F,) time constant of the slowest direction there, tau.
        orbit: (S, K) rates along a cycle or a ring; or None. period: of a cycle, tau; or None.
    """

    kind: str
    points: Tensor
    slowest: Tensor
    orbit: Tensor | None = None
    period: float | None = None

    @property
    def number(self) -> int:
        """Attractors: stable points, and a cycle or a ring as one more."""
        return len(self.points) + (self.orbit is not None)


@dataclass(frozen=True)
class Matched:
    """Attractors of a method beside the true ones: true, found and false ones; errors: |log ratio| of the time constants of points
    that were found, or of the periods of a cycle."""

    true: int
    found: int
    false: int
    errors: tuple[float, ...]


def match(true: Settling, own: Settling, size: float) -> Matched:
    """Which of the true attractors a method's system has, and how many that the true one has not.

    A stable point is found where one of the method's own lies nearer to it than :data:`TOLERANCE` of the distance to the
    nearest other true point, each to one. A cycle is found where the method's system has one whose period differs by a factor of
    less than 1 + TOLERANCE; a ring where states stay on one that lies within TOLERANCE of its radius.

    Args:
        size: rms sd of the rates over neurons; distances of rates are rms over neurons, in units of it.
    """
    root = max(true.points.shape[1], 1) ** 0.5 * size
    found, errors, of_own = 0, [], 0
    if len(true.points) and len(own.points):
        apart = torch.cdist(true.points.double(), own.points.double()) / root
        between = torch.cdist(true.points.double(), true.points.double()).fill_diagonal_(math.inf) / root
        reach = TOLERANCE * between.min(1).values.clamp_max(_LONE)
        cost = torch.where(apart < reach[:, None], apart, 1e6 + apart)
        for row, column in zip(*linear_sum_assignment(cost.numpy())):
            if apart[row, column] < reach[row]:
                found += 1
                errors.append(abs(math.log(float(own.slowest[column]) / float(true.slowest[row]))))
        of_own = found
    if true.orbit is not None and own.orbit is not None and _same_orbit(true, own):
        found, of_own = found + 1, of_own + 1
        if true.period is not None:
            errors.append(abs(math.log(own.period / true.period)))
    return Matched(true.number, found, own.number - of_own, tuple(errors))


def _same_orbit(true: Settling, own: Settling) -> bool:
    if (true.period is None) != (own.period is None):
        return False
    if true.period is not None:
        return abs(math.log(own.period / true.period)) < math.log1p(TOLERANCE)
    a, b = true.orbit.double(), own.orbit.double()
    radius = (a - a.mean(0)).square().sum(1).mean().sqrt()
    apart = torch.cdist(a, b)
    return bool(torch.maximum(apart.min(1).values.mean(), apart.min(0).values.mean()) < TOLERANCE * radius)


def interval_coverage(low: Tensor, high: Tensor, nu: Tensor) -> float:
    """Share of the numbers nu (K, R) that lie in their intervals."""
    return float(((nu >= low) & (nu <= high)).double().mean())
