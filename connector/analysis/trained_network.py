"""A trained network beside its low-rank fit: which part of its weights acts, where both settle, whether samples do the task."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from connector.analysis.attractors import find_attractors
from connector.analysis.explained import variance_explained
from connector.dynamics import Network, activation
from connector.lrrnn.handover import FittedDynamics
from connector.numerics import even_rows, ridge
from connector.types import Recording, TrainedNetwork

_DRIVE = 0.99  # share of the variance of the drive that what is said to act gives
_N_SAMPLES = 20_000
_N_STARTS = 48
_SETTLE = 60.0  # tau
_READOUT_PENALTY = 1e-6  # of the mean square of a rate
_EQUAL = 1e-6  # of the range of the targets


class ActingPart(NamedTuple):
    """Which part of the weights W acts on the visited states.

    Attributes:
        dimensions: of the drive W r, that hold 99 % of its variance.
        directions: principal directions of the rates that give 99 % of that variance.
        weights: share of the sum of squared weights along these directions. The rest of W is spare: without it the drive of
            the visited states would stay, but for 1 % of its variance and a constant. Weights without structure have
            ``directions`` / K' there.
        drive, matrix: (K,) cumulated shares, by dimension: of the variance of the drive, and of the squared weights.
    """

    dimensions: int
    directions: int
    weights: float
    drive: Tensor
    matrix: Tensor


def acting_part(w: Tensor, rates: Tensor) -> ActingPart:
    """Which part of w (K, K') acts on the rates (S, K') of the neurons that it weighs."""
    w, centred = w.double(), rates.double() - rates.double().mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred / len(rates))
    weights = (w @ directions).square().sum(0)
    given = values.clamp_min(0) * weights  # principal components are uncorrelated: each adds its own variance
    order = given.argsort(descending=True)
    n_acting = _enough(given[order], _DRIVE)
    drive = torch.linalg.svdvals(w @ (directions * values.clamp_min(0).sqrt())).square()
    matrix = torch.linalg.svdvals(w).square()
    return ActingPart(
        dimensions=_enough(drive, _DRIVE),
        directions=n_acting,
        weights=float(weights[order[:n_acting]].sum() / weights.sum()),
        drive=(drive / drive.sum()).cumsum(0),
        matrix=(matrix / matrix.sum()).cumsum(0),
    )


def _enough(parts: Tensor, share: float) -> int:
    """How many of the parts, in their order, make up a share of their sum."""
    return int((parts.cumsum(0) < share * parts.sum()).sum()) + 1


class StablePoints(NamedTuple):
    """Stable fixed points under one constant input, of the trained network and of its low-rank fit.

    Attributes:
        u: (U,) the input.
        network: (F, K_obs) rates at those of the network; fitted: (F', K_obs) of the fit.
        matched: (min(F, F'),) distance of each pair that belongs together: rms difference of the rates over their rms sd.
        slowest: time constant of the network's slowest direction at its points, tau; 0 without a point.
    """

    u: Tensor
    network: Tensor
    fitted: Tensor
    matched: Tensor
    slowest: float


def stable_points(recording: Recording, fit: FittedDynamics) -> list[StablePoints]:
    """Where network and fit settle under each held input, from the drive at some visited states."""
    index, trained = fit.fold.train, recording.trained
    mask, phi = recording.mask[index], activation(fit.activation)
    rows = even_rows(int(mask.sum()), _N_STARTS)
    latents, net = fit.latents.trials(index), fit.network.double()
    z, v = latents.z[mask][rows].double(), None if latents.inputs is None else latents.inputs[mask][rows]
    starts_of_fit, size = net.drive(z, v), float(recording.activity[index][mask].double().var(0).mean().sqrt())
    weighed = trained.visited @ trained.w.T
    found = []
    for u in trained.held:
        as_taken = None if net.b is None else torch.cat([u, u]) if fit.latents.input_kind == "both" else u
        constant = trained.b @ u + trained.d
        own = find_attractors(
            lambda h, constant=constant: phi(h) @ trained.w.T + constant - h,
            weighed + constant,
            alpha=fit.latents.alpha,
            settle=_SETTLE,
        )
        fitted = find_attractors(net, starts_of_fit, u=as_taken, settle=_SETTLE).points
        rates, slow = phi(own.points)[:, trained.neurons], own.eigenvalues.real.flatten()
        of_fit = net.rates(fitted, None if as_taken is None else as_taken.expand(len(fitted), -1))
        apart = torch.cdist(rates, of_fit) / rates.shape[1] ** 0.5 / size
        pairs = linear_sum_assignment(apart.numpy())
        slowest = -1 / float(slow.max()) if len(slow) else 0.0
        found.append(StablePoints(u, rates, of_fit, apart[pairs[0], pairs[1]], slowest))
    return found


class BesideNetwork:
    """A fit beside the trained network that it is of; what measures and figures share is computed once."""

    def __init__(self, recording: Recording, fit: FittedDynamics):
        self.recording, self.fit = recording, fit

    @cached_property
    def rates(self) -> Tensor:
        """(S, K_obs) of the training trials."""
        train = self.fit.fold.train
        return self.recording.activity[train][self.recording.mask[train]]

    @cached_property
    def part(self) -> ActingPart:
        """:func:`acting_part` of the recorded neurons' weights."""
        trained, rows = self.recording.trained, even_rows(len(self.rates), _N_SAMPLES)
        return acting_part(trained.w[:, trained.neurons], self.rates[rows])

    @cached_property
    def points(self) -> list[StablePoints]:
        """:func:`stable_points`; none where the fit has no dynamics."""
        return [] if self.fit.n is None else stable_points(self.recording, self.fit)

    def measures(self) -> dict[str, float]:
        """What a run says of the fit, which has dynamics, beside the network: ``lrrnn/trained_...``."""
        found = {
            "lrrnn/trained_acting_dimensions": self.part.dimensions,
            "lrrnn/trained_acting_weights": self.part.weights,
            "lrrnn/trained_acting_by_chance": self.part.directions / self.rates.shape[1],
            "lrrnn/trained_stable_points": sum(len(of_input.network) for of_input in self.points),
            "lrrnn/trained_stable_points_of_fit": sum(len(of_input.fitted) for of_input in self.points),
        }
        matched = torch.cat([of_input.matched for of_input in self.points])
        if len(matched):
            found["lrrnn/trained_stable_points_apart"] = float(matched.max())
            found["lrrnn/trained_slowest"] = max(of_input.slowest for of_input in self.points)
        return found


def outputs_of(network: Network, trained: TrainedNetwork, fit: FittedDynamics) -> Tensor:
    """What a network sampled from the fit's connectivity gives on the test trials, (test, time, O) float64: simulated from
    each trial's first state under its inputs, and read by the linear readout that gives the trained network's own outputs at
    the states of the training trials best."""
    network, train, test = network.double(), fit.latents.trials(fit.fold.train), fit.latents.trials(fit.fold.test)
    z, u = train.z[train.mask].double(), None if train.inputs is None else train.inputs[train.mask]
    rows = even_rows(len(z), _N_SAMPLES)
    rates = _with_constant(network.rates(z[rows], None if u is None else u[rows]))
    wanted = trained.outputs[fit.fold.train][train.mask][rows].double()
    weights = ridge(rates, wanted, _READOUT_PENALTY * len(rates) * float(rates.square().mean()))
    path = network.simulate(test.z[:, 0].double(), test.z.shape[1], test.inputs)
    return _with_constant(network.rates(path, test.inputs)) @ weights


def _with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def task_measures(given: Tensor, recording: Recording, fit: FittedDynamics) -> dict[str, float]:
    """Of the outputs that a sampled network gives (:func:`outputs_of`): ``dynamics/task_r2``: share of the variance of the trained
    network's outputs that the sampled network's explain on test trials, and ``dynamics/task_fit_r2``, that of the fit's own; with
    targets also ``dynamics/task``, ``dynamics/task_fit`` and ``dynamics/task_trained``, :func:`task_score` of each."""
    index, trained = fit.fold.test, recording.trained
    own, mask = trained.outputs[index].double(), recording.mask[index]
    mean = trained.outputs[fit.fold.train][recording.mask[fit.fold.train]].double().mean(0)
    outputs = {"task": given} | ({} if fit.n is None else {"task_fit": outputs_of(fit.network, trained, fit)})
    found = {f"dynamics/{name}_r2": variance_explained(own[mask], of[mask], mean) for name, of in outputs.items()}
    if trained.targets is not None:
        scored = mask[..., None].expand_as(own)
        scored = scored if trained.scored is None else scored & trained.scored[index]
        targets = trained.targets[index].double()
        if scored.any():
            for name, of in (outputs | {"task_trained": own}).items():
                found[f"dynamics/{name}"] = task_score(of, targets, scored)
    return found


def task_score(outputs: Tensor, targets: Tensor, scored: Tensor) -> float:
    """Share of the scored samples on the right side of the middle, where targets take two values; else the share of their
    mean square about zero that the outputs explain.

    Args:
        outputs, targets: (trials, time, O); scored: of the same shape, bool.
    """
    given, wanted = outputs[scored], targets[scored]
    low, high = wanted.min(), wanted.max()
    if high > low and bool(
        (((wanted - low) < _EQUAL * (high - low)) | ((high - wanted) < _EQUAL * (high - low))).all()
    ):
        middle = (low + high) / 2
        return float(((given > middle) == (wanted > middle)).double().mean())
    return float(1 - (given - wanted).square().sum() / wanted.square().sum())
