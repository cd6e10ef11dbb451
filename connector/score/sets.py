"""Public sets: activity, the split of its trials, and the truth behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from connector.analysis.attractors import Attractors, find_attractors, reference_attractors
from connector.analysis.method_scores import Settling
from connector.data.attractors import MODULES, Teacher, teacher
from connector.data.folds import Fold, fold
from connector.data.simulation import simulate_recording
from connector.dynamics import Network
from connector.errors import UserError
from connector.files import read_npz, refusing_damage, write_npz
from connector.numerics import even_rows
from connector.types import Loadings

NAMED = tuple(MODULES)
_SEED = 1  # of the default run, whose recording this is
N_STARTS, SETTLE = 48, 60.0  # states, tau


@dataclass(frozen=True)
class PublicSet:
    """What a method is scored on.

    Attributes:
        name: what to call it. rates: (trials, time, K) of the recorded neurons. inputs: (trials, time, U) as given, or None.
        fold: trials that methods may learn from (training and validation), and test trials.
        alpha: Euler step of the network that made the rates, tau; activation: its phi.
        states: (trials, time, S) true states, or None where they are not told.
        held: constant inputs (U,) under which the network settles as ``settling`` says, one each; an empty one without inputs.
        teacher, network, loadings: of a teacher of the package, its network, and the recorded neurons' loadings in the
            coordinates of ``states``; else None.
    """

    name: str
    rates: Tensor
    inputs: Tensor | None
    fold: Fold
    alpha: float
    activation: str
    states: Tensor | None = None
    held: tuple[Tensor, ...] = ()
    settling: tuple[Settling, ...] = ()
    teacher: Teacher | None = None
    network: Network | None = None
    loadings: Loadings | None = None

    @property
    def learned(self) -> Tensor:
        """(n,) trials that a method may learn from."""
        return torch.cat([self.fold.train, self.fold.validation]).sort().values


def settled(found: Attractors, rates, alpha: float) -> Settling:
    """Attractors in the words of :class:`Settling`; ``rates``: states (..., S) -> rates (..., K).

    Time constants are those of the discrete steps, -alpha / log|1 + alpha lambda|, so that they compare with those of a linear
    map from one sample to the next.
    """
    factors = (1 + alpha * found.eigenvalues).abs()
    slowest = -alpha / factors.amax(1).clamp(1e-9, 1 - 1e-9).log() if len(factors) else factors.new_zeros(0)
    orbit = None
    if found.orbit is not None:
        orbit = rates(found.orbit[even_rows(len(found.orbit), 200)])
    return Settling(found.kind, rates(found.points), slowest, orbit, found.period)


def named_set(name: str) -> PublicSet:
    """The recording of ``python train.py experiment=NAME`` with its defaults.

    Raises:
        UserError: no teacher of that name.
    """
    source = teacher(name)
    recording, network = simulate_recording(source, seed=_SEED)
    rates = partial(_rates_at, Network(recording.loadings.m, recording.n, alpha=source.alpha))
    settling = ()
    if source.attractor_kind != "none":
        settling = (settled(reference_attractors(source), rates, source.alpha),)
    return PublicSet(
        name=name,
        rates=recording.activity,
        inputs=None,
        fold=fold(recording.n_trials),
        alpha=recording.alpha,
        activation=recording.activation,
        states=recording.latents,
        held=(torch.zeros(0, dtype=torch.float64),) * len(settling),
        settling=settling,
        teacher=source,
        network=network,
        loadings=recording.loadings,
    )


def _rates_at(network: Network, z: Tensor) -> Tensor:
    return network.double().rates(z.double())


def settling_of(field, visited: Tensor, rates, alpha: float) -> Settling:
    """Where a vector field, states (P, S) -> (P, S) in units 1 / tau, settles from states (N, T, S) that trials visit."""
    return from_visited(
        lambda starts: settled(find_attractors(field, starts, alpha=alpha, settle=SETTLE), rates, alpha), visited
    )


def from_visited(settles: Callable[[Tensor], Settling], visited: Tensor) -> Settling:
    """A ring, where states stay on one from the ends of trials (N, T, S) on; else where states from all along them settle."""
    ends = visited[even_rows(len(visited), N_STARTS), -1]
    found = settles(ends)
    if found.kind == "ring":
        return found
    states = visited.flatten(0, 1)
    return settles(states[even_rows(len(states), N_STARTS)])


def write_set(path: Path, public: PublicSet) -> None:
    """A set without a teacher as an npz that :func:`read_set` reads and `data=npz` fits (keys rates, externalinputs)."""
    arrays = {
        "rates": public.rates, "externalinputs": public.inputs, "alpha": public.alpha, "activation": public.activation,
        "true_states": public.states, "train": public.fold.train, "validation": public.fold.validation,
        "test": public.fold.test, "held": torch.stack(public.held) if public.held else None,
    }  # fmt: skip
    for i, one in enumerate(public.settling):
        parts = {
            "kind": one.kind,
            "points": one.points,
            "slowest": one.slowest,
            "orbit": one.orbit,
            "period": one.period,
        }
        arrays |= {f"settling{i}_{key}": value for key, value in parts.items()}
    write_npz(path, {key: value for key, value in arrays.items() if value is not None})


def read_set(path: Path) -> PublicSet:
    """The set that a file holds.

    Raises:
        UserError: no such file, or one that is no set.
    """
    arrays = read_npz(path)
    missing = [key for key in ("rates", "train", "validation", "test", "alpha") if key not in arrays]
    if missing:
        remedy = f"`python experiments/scoreboard.py` writes sets; {', '.join(NAMED)} need no file"
        raise UserError(
            f"a public set in {path}, with rates, alpha and the trials train, validation, test",
            f"no {missing[0]}",
            remedy,
        )
    with refusing_damage(Path(path), "a public set"):
        x = {key: torch.from_numpy(value) for key, value in arrays.items() if value.ndim and value.dtype.kind in "fiu"}
        held = tuple(x["held"].double()) if "held" in x else ()
        fields = {"inputs": x.get("externalinputs"), "states": x.get("true_states"), "held": held}
        parts = Fold(*(x[key].long() for key in ("train", "validation", "test")))
        settling = tuple(_settling(arrays, x, i) for i in range(len(held)))
        activation = str(arrays.get("activation", "tanh"))
        public = PublicSet(Path(path).stem, x["rates"], fold=parts, alpha=float(arrays["alpha"]), activation=activation,
                           settling=settling, **fields)  # fmt: skip
        for part in (parts.train, parts.validation, parts.test):
            if part.ndim != 1 or not len(part) or int(part.min()) < 0 or int(part.max()) >= len(public.rates):
                raise ValueError("the trials are not numbers of the rates' trials")
        if public.rates.ndim != 3 or not np.isfinite(arrays["rates"]).all():
            raise ValueError("rates that are not finite numbers (trials, time, neurons)")
    return public


def _settling(arrays: dict[str, np.ndarray], tensors: dict[str, Tensor], i: int) -> Settling:
    period = arrays.get(f"settling{i}_period")
    return Settling(
        str(arrays[f"settling{i}_kind"]),
        tensors[f"settling{i}_points"],
        tensors[f"settling{i}_slowest"],
        tensors.get(f"settling{i}_orbit"),
        None if period is None else float(period),
    )
