"""The measures of one method's result on one public set, each beside its null."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from connector.analysis.distances import dissimilarity
from connector.analysis.fields import drive_at, field_error
from connector.analysis.method_scores import (
    Matched,
    cycle_consistency,
    interval_coverage,
    match,
    rate_r2,
    state_r2,
)
from connector.dynamics import activation
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.numerics import even_rows, least_squares
from connector.score.models import LinearModel, Model, NetworkModel, Result, first_states, simulated
from connector.score.sets import N_STARTS, PublicSet, from_visited
from connector.types import Loadings

N_FIRST = 5  # samples of each trial that are shown to a method; all others it has to predict
_MAX_NEURONS = 200  # from whose first samples the first state is found
_MAX_TRIALS = 120  # of those that are learned from, whose states the affine maps are fitted to
_MAX_STATES = 4000

# Measure -> (title, what it means, its null). Where a null is a value of a method's own, it is computed.
MEANINGS = {
    "rate_r2": (
        "rate R²",
        f"variance of test trials' rates that is predicted from their first {N_FIRST} samples and the inputs",
        "rates that stay as they are at the last of these samples; 0 is the training mean",
    ),
    "state_r2": (
        "state R²",
        "variance of the predicted states that an affine function of the true states explains",
        "true states of other trials",
    ),
    "cycle_consistency": (
        "cycle consistency",
        "variance of the predicted states that can be read back from the predicted rates with 5 % noise",
        "predicted rates of other trials",
    ),
    "time_scale_error": (
        "time-scale error",
        "|log ratio| of the slowest time constant at attractors that were found, or of a cycle's period; median",
        "the neurons' own time constant",
    ),
    "attractors_found": ("attractors found", "true attractors that the dynamics have", "n shuffled over neurons"),
    "attractors_false": ("attractors false", "attractors that the true network has not", "n shuffled over neurons"),
    "dissimilarity": (
        "D",
        "Sinkhorn divergence of the loadings + squared error of n, smaller is better",
        "n shuffled over neurons",
    ),
    "field_error": (
        "field error",
        "rms error of the vector field at test states over its rms",
        "n shuffled over neurons",
    ),
    "coverage": ("coverage", "true nu within their 95 % intervals", "intervals of other neurons"),
}


@dataclass(frozen=True)
class Score:
    """A measure with the same measure of a null; None: it has none here. ``note``: what belongs beside the number."""

    value: float
    null: float | None = None
    note: str = ""


def scores(model: Model, public: PublicSet, interval: tuple[Tensor, Tensor] | None = None) -> dict[str, Score]:
    """All measures that a model has on a set; what is not defined for it is left out.

    Args:
        model: of one of the classes in :mod:`connector.score.models`; with a teacher in the coordinates of its states.
        interval: low, high (K, R) of nu at the network's neurons.
    """
    found = _of_trials(model, public)
    found |= _of_attractors(model, public)
    if public.teacher is not None and isinstance(model, NetworkModel):
        found |= of_connectivity(model, public, interval)
    return found


def _paths(model: Model, public: PublicSet, trials: Tensor) -> tuple[Tensor, Tensor]:
    """States (n, T, R) and rates (n, T, K) of some trials, predicted from their first samples and the inputs."""
    shown, steps = public.rates[trials][:, :N_FIRST], public.rates.shape[1]
    u = None if public.inputs is None else model.taken(public.inputs[trials])
    few = even_rows(shown.shape[2], _MAX_NEURONS)
    z = simulated(model, first_states(model.part(few), shown[..., few], u), u, steps)
    return z, torch.stack([model.rates(z[:, t], None if u is None else u[:, t]) for t in range(steps)], 1)


def _of_trials(model: Model, public: PublicSet) -> dict[str, Score]:
    learned = public.learned[even_rows(len(public.learned), _MAX_TRIALS)]
    (z, rates), (z_test, rates_test) = (_paths(model, public, trials) for trials in (learned, public.fold.test))
    wanted = public.rates[public.fold.test]
    mean = public.rates[public.fold.train].double().mean((0, 1))
    held = wanted[:, N_FIRST - 1 : N_FIRST].double().expand(-1, wanted.shape[1] - N_FIRST, -1)
    rest = wanted[:, N_FIRST:]
    found = {"rate_r2": Score(rate_r2(rest, rates_test[:, N_FIRST:], mean), rate_r2(rest, held, mean))}
    states = z, z_test
    if public.states is not None:
        true = public.states[learned], public.states[public.fold.test]
        others = tuple(x.roll(1, 0) for x in true)
        found["state_r2"] = Score(state_r2(true, states), state_r2(others, states))
    pair = rates, rates_test
    others = rates.roll(1, 0), rates_test.roll(1, 0)
    found["cycle_consistency"] = Score(cycle_consistency(states, pair), cycle_consistency(states, others))
    return found


def _of_attractors(model: Model, public: PublicSet) -> dict[str, Score]:
    if not public.settling:
        return {}
    trials = public.learned[even_rows(len(public.learned), N_STARTS)]
    z = _paths(model, public, trials)[0]
    size = float(public.rates[public.fold.train].double().flatten(0, 1).var(0).mean().sqrt())

    def matched(of: Model) -> list[Matched]:
        return [
            match(true, from_visited(partial(of.settling, u), z), size) for u, true in zip(public.held, public.settling)
        ]

    own = matched(model)
    null = matched(model.shuffled()) if isinstance(model, NetworkModel) else None
    total = sum(one.true for one in own)
    found = {
        "attractors_found": Score(sum(one.found for one in own), _sum(null, "found"), f"of {total}"),
        "attractors_false": Score(sum(one.false for one in own), _sum(null, "false")),
    }
    errors = [error for one in own for error in one.errors]
    if errors:
        true = [abs(math.log(float(tau))) for one in public.settling for tau in one.slowest]
        found["time_scale_error"] = Score(statistics.median(errors), statistics.median(true) if true else None)
    return found


def _sum(of: list[Matched] | None, what: str) -> float | None:
    return None if of is None else sum(getattr(one, what) for one in of)


def of_connectivity(model: NetworkModel, public: PublicSet, interval) -> dict[str, Score]:
    network, shuffled, truth = model.network, model.shuffled().network, public.teacher
    z = public.states[public.fold.test].flatten(0, 1).double()
    z = z[even_rows(len(z), _MAX_STATES)]
    y = drive_at(public.network, z, None)
    distance, of_null = dissimilarity(truth, network), dissimilarity(truth, shuffled)
    parts = f"{distance.sinkhorn:.3g} + {distance.squared_error:.3g}; of fresh true loadings {distance.floor:.2g}"
    found = {
        "dissimilarity": Score(distance.total, of_null.total, parts),
        "field_error": Score(field_error(network, z, None, y), field_error(shuffled, z, None, y)),
    }
    if interval is not None:
        nu = truth.conditional_mean(network.loadings)
        order = torch.randperm(len(nu), generator=torch.Generator().manual_seed(0))
        low, high = interval
        found["coverage"] = Score(interval_coverage(low, high, nu), interval_coverage(low[order], high[order], nu))
    return found


def model_of(result: Result, public: PublicSet) -> tuple[Model, str]:
    """What a file holds as a model of the set's recorded neurons, and how these are read.

    A network's coordinates are those of the set's states where it has ``latents`` (least squares on the trials that may be learned
    from), and presumed to be them where not. The recorded neurons' loadings are those given as MBD, else fitted to latents, else
    the true ones of a teacher, else the network's own.

    Raises:
        UserError: sizes that do not go with the set's, or no way to read the recorded neurons.
    """
    k, n_inputs = public.rates.shape[2], 0 if public.inputs is None else public.inputs.shape[2]
    if result.linear is not None:
        linear = result.linear
        if len(linear.readout) != k or (linear.b is not None and linear.b.shape[1] != n_inputs):
            raise UserError(
                f"C of {k} neurons and B of {n_inputs} inputs, as in {public.name}", f"C {tuple(linear.readout.shape)}"
            )
        return linear, "linear readout"
    network, rank = result.network, result.network.rank
    taken = n_inputs * (2 if result.kind == "both" else 1)
    if network.b is not None and network.b.shape[1] != taken:
        raise UserError(f"b of {taken} {result.kind} inputs, as in {public.name}", f"{network.b.shape[1]}")
    readout, how = _readout(result, public, taken)
    model = NetworkModel(network, readout, result.kind, result.gain, result.offset)
    if result.latents is not None and public.teacher is not None:
        lengths = torch.full((len(public.rates),), public.rates.shape[1])
        gauge = Gauge.fit(result.latents, public.states, lengths, public.learned)
        how += ", coordinates by least squares"
        model = replace(model, network=gauge.network(network), readout=gauge.loadings(readout))
    if public.teacher is not None and rank != public.teacher.rank:
        raise UserError(f"rank {public.teacher.rank}, that of {public.name}", f"rank {rank}")
    return model, how


def _readout(result: Result, public: PublicSet, taken: int) -> tuple[Loadings, str]:
    network, k = result.network, public.rates.shape[2]
    rank = network.rank
    if result.own is not None:
        width = result.own.shape[1] if result.own.ndim == 2 else 0
        if len(result.own) != k or width not in (rank, rank + taken, rank + taken + 1):
            raise UserError(
                f"MBD ({k}, {rank + taken} or {rank + taken + 1}) for {public.name}", str(tuple(result.own.shape))
            )
        b = result.own[:, rank : rank + taken] if taken and width > rank else None
        return Loadings(result.own[:, :rank], b, result.own[:, -1] if width > rank + taken else None), "loadings MBD"
    if result.latents is not None:
        return _fitted(result, public), "loadings fitted to latents"
    if public.loadings is not None:
        return public.loadings, "true loadings"
    if network.n_neurons == k:
        return network.loadings, "the network's own neurons"
    raise UserError(
        f"the {k} recorded neurons' loadings (MBD), or latents to fit them to",
        f"neither, and a network of {network.n_neurons} neurons",
    )


def _fitted(result: Result, public: PublicSet) -> Loadings:
    """Weighted least squares of phi^-1(rates) on the given latents and inputs."""
    expected = (*public.rates.shape[:2], result.network.rank)
    if tuple(result.latents.shape) != expected:
        raise UserError(
            f"latents of shape {expected}, of all trials of {public.name}", str(tuple(result.latents.shape))
        )
    model = NetworkModel(result.network, result.network.loadings, result.kind)
    trials, phi = public.learned, activation(result.network.activation)
    parts = [result.latents[trials].flatten(0, 1)]
    if public.inputs is not None:
        parts.append(model.taken(public.inputs[trials]).flatten(0, 1))
    bias = public.teacher is None
    x = torch.cat([*parts, *([torch.ones_like(parts[0][:, :1])] if bias else [])], 1)
    rows = even_rows(len(x), 20_000)
    rates = public.rates[trials].flatten(0, 1)[rows].double().clamp(phi.low + 1e-4, phi.high - 1e-4)
    h = phi.inverse(rates)
    weight = phi.derivative(h)
    found = torch.stack([least_squares(x[rows] * w[:, None], (y * w)[:, None])[:, 0] for w, y in zip(weight.T, h.T)])
    rank = parts[0].shape[1]
    n_inputs = x.shape[1] - rank - bias
    return Loadings(
        found[:, :rank], found[:, rank : rank + n_inputs] if n_inputs else None, found[:, -1] if bias else None
    )


__all__ = ["MEANINGS", "N_FIRST", "LinearModel", "Score", "model_of", "scores"]
