"""The sets of the scoreboard: what is observed, the split of trials, and the truth, in one file each."""

from __future__ import annotations

from pathlib import Path

import task_teachers as teachers
import torch

from connector.data.folds import fold
from connector.score.sets import NAMED, PublicSet, named_set, read_set, settling_of, write_set

ATTRACTORS = tuple(name for name in NAMED if name != "heavy_tailed")
TASKS = tuple(teachers.TASKS)
FALSE = {"false_25": 25, "false_50": 50}  # neurons observed of 500
SIMULATED = (*ATTRACTORS, *TASKS, *FALSE)
RANKS = {name: 2 for name in (*ATTRACTORS, *FALSE)} | {name: recipe.rank for name, recipe in teachers.TASKS.items()}
_TRIALS, _PIECE = 300, 100


def task_set(name: str, seed: int = 0, iterations: int | None = None, trials: int = _TRIALS) -> PublicSet:
    """A network trained on a task, its rates on fresh trials, its potentials h as true states."""
    recipe = teachers.TASKS[name]
    network = teachers.learn(recipe, seed, iterations=iterations)
    u = recipe.task(trials, torch.Generator().manual_seed(seed + 5000))[0]
    rates = network.run(u)
    w, b, d = (network.parameters[key].double() for key in "WBd")
    states = rates.double().clamp(-1 + 1e-7, 1 - 1e-7).atanh()
    held = tuple(torch.tensor(one, dtype=torch.float64) for one in recipe.held)
    settling = tuple(
        settling_of(lambda h, at=b @ one + d: h.tanh() @ w.T + at - h, states, torch.tanh, teachers.ALPHA)
        for one in held
    )
    parts = fold(trials)
    return PublicSet(name, rates, u, parts, teachers.ALPHA, "tanh", states.float(), held, settling)


def false_set(name: str, steps: int = _TRIALS * _PIECE, n_neurons: int = 500) -> PublicSet:
    """A noise-driven network without attractors but the origin, of which few neurons are observed, in pieces of 100 steps."""
    network = teachers.non_normal(FALSE[name], n_neurons, steps)
    pieces = network.rates.unflatten(0, (-1, _PIECE))
    states = pieces.atanh() @ network.n  # the two signals that drive the network, and their ...
    shown = pieces.atanh() @ network.m
    starts = network.rates[::50].atanh()[:, None]
    truth = settling_of(network.field, starts, lambda h: h[:, network.observed].tanh(), network.alpha)
    observed = pieces[..., network.observed].float()
    both = torch.cat([shown, states], -1).float()  # ... sums along m, which the recorded neurons show
    return PublicSet(
        name, observed, None, fold(len(pieces)), network.alpha, "tanh", both, (torch.zeros(0).double(),), (truth,)
    )


def public_set(name: str, directory: Path) -> PublicSet:
    """The set of that name, made once and kept in ``directory``."""
    if name in ATTRACTORS:
        return named_set(name)
    path = set_file(name, directory)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_set(path, task_set(name) if name in TASKS else false_set(name))
    return read_set(path)


def set_file(name: str, directory: Path) -> Path:
    return directory / "sets" / f"{name}.npz"
