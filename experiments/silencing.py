"""Do the bands of predicted effects of silencing hold the true effects? Simulated networks, a part of their neurons silenced.

    python experiments/silencing.py --datasets 36 --out silencing.json
    python experiments/silencing.py --datasets 36 --even

Each data set draws a kind of network (of experiments/coverage.py), its noise and the visited states. From each of 60 draws of
the posterior a network of the recorded neurons is made: n = nu + the spread that the fit found, projected on the drive of the
draw. In each, and in the true network, three groups are silenced: random neurons, those of strong loadings, and those of one
quadrant of the loadings, which stands for a cell type. The effect is the mean change of the state after some time along an
axis. The table has the share of true effects inside the band that holds 90 % of the drawn ones.

With --even the nu of each true network has an even part, of which the activity says nothing: a square, an absolute value, or a
constant, of .3 to 1.5 times the size of n. Draws then have one as well. Only networks of tanh neurons without bias are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # data sets run side by side

import torch
from coverage import ALPHA, KINDS, collect, pick, randn
from rich.console import Console
from rich.table import Table
from torch import Tensor

from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.trajectories import fit_trajectories
from connector.connectivity.projection import project
from connector.dynamics import Network
from connector.numerics import even_rows, symmetric_root
from connector.types import Latents, Loadings, States

N_DRAWS, LEVEL = 60, 0.9
STEPS, N_STARTS, N_STATES = 30, 6, 1000
PROJECTION = 1e-6
NAMES = tuple(name for name in KINDS if name not in ("softplus_bias_input", "rank_one"))


@dataclass(frozen=True)
class Task:
    kind: str
    seed: int
    even: bool = False


def even_part(m: Tensor, g: torch.Generator) -> Tensor:
    """An even function of loadings (K, R) -> (K, R), of mean square 1."""
    along = m @ torch.nn.functional.normalize(randn(g, m.shape[1], 1), dim=0)
    value = pick(g, (torch.square, torch.abs, torch.ones_like))(along) @ randn(g, 1, m.shape[1])
    return value / value.square().mean().sqrt()


def groups_of(m: Tensor, g: torch.Generator) -> dict[str, Tensor]:
    """Name -> (K,) whether a neuron is silenced."""
    strength, size = m.norm(dim=1), len(m)
    return {
        "random": torch.rand(size, generator=g) < pick(g, (0.1, 0.3, 0.5)),
        "strong loadings": strength > strength.quantile(pick(g, (0.7, 0.9))),
        "cell type": (m[:, 0] > 0) & (m[:, 1] > 0),
    }


def effect(network: Network, silenced: Tensor, starts: Tensor, axes: Tensor) -> Tensor:
    """Mean change (A,) of the states (P, R) after ``STEPS`` along axes (R, A) where a group (K,) is silenced."""
    ends = [net.simulate(starts, STEPS)[:, -1] for net in (network, network.silence(silenced))]
    return (ends[1] - ends[0]).mean(0) @ axes


def run(task: Task) -> list[dict]:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(task.seed)
    population = KINDS[task.kind](g)
    rows, n = population.sample(pick(g, (100, 300)), g)
    loadings = Loadings.unstack(rows, population.rank, 0, population.has_bias)
    if task.even:
        n = n + float(n.square().mean().sqrt()) * pick(g, (0.3, 0.6, 1.0, 1.5)) * even_part(loadings.m, g)
    network = Network(loadings.m, n, None, loadings.d, alpha=ALPHA, activation=population.activation)
    trials, noise = pick(g, (20, 60)), pick(g, (0.01, 0.03, 0.1))
    z = network.simulate(1.5 * randn(g, trials, population.rank), 60)
    latents = Latents(z + noise * randn(g, *z.shape), torch.full((trials,), 60), ALPHA)
    model = fit_trajectories(latents, loadings, activation=population.activation)
    draws, states = Draws(model, N_DRAWS, seed=1, even_part=task.even), latents.samples().z
    states = states[even_rows(len(states), N_STATES)]
    drive, nu, spread = draws.drive(states), draws(rows), symmetric_root(model.spread)
    networks = [
        project(replace(network, n=nu[i] + randn(g, *n.shape) @ spread), States(states, None, drive[i]), PROJECTION)
        for i in range(N_DRAWS)
    ]
    starts, axes = z[:N_STARTS, 5], torch.linalg.qr(randn(g, population.rank, population.rank)).Q
    found = []
    for name, silenced in groups_of(loadings.m, g).items():
        true = effect(network, silenced, starts, axes)
        drawn = torch.stack([effect(net, silenced, starts, axes) for net in networks])
        tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=drawn.dtype)
        # So placed, the truth lies within the ends of this many draws with the level's probability, if it is one more draw.
        low, high = torch.quantile(drawn, (tails * (N_DRAWS + 1) - 1) / (N_DRAWS - 1), dim=0)
        found.append({
            "kind": task.kind, "seed": task.seed, "group": name,
            "inside": float(((low <= true) & (true <= high)).double().mean()),
            "size": float(true.abs().mean()), "width": float((high - low).mean()),
            "error": float((drawn.mean(0) - true).abs().mean()),
        })  # fmt: skip
    return found


def _only_odd_acts(kind: str) -> bool:
    population = KINDS[kind](torch.Generator().manual_seed(0))
    return population.activation == "tanh" and not population.has_bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=36)
    parser.add_argument("--seed", type=int, default=650_000, help="of the first data set")
    parser.add_argument("--even", action="store_true", help="networks and draws whose nu has an even part")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="silencing.json")
    arguments = parser.parse_args()
    console = Console(width=120)
    names = [name for name in NAMES if not arguments.even or _only_odd_acts(name)]
    tasks = [Task(names[i % len(names)], arguments.seed + i, arguments.even) for i in range(arguments.datasets)]
    results = [case for cases in collect(run, tasks, arguments.workers, console) for case in cases]
    table = Table(title=f"true effects inside the {LEVEL:.0%} band of the drawn ones")
    for head in ("silenced", "cases", "inside", "effect, median", "error, median", "width of the band, median"):
        table.add_column(head)
    for name in dict.fromkeys([*(r["group"] for r in results), "all"]):
        of = [r for r in results if name in (r["group"], "all")]
        middle = [f"{statistics.median(r[key] for r in of):.3f}" for key in ("size", "error", "width")]
        table.add_row(name, str(len(of)), f"{statistics.fmean(r['inside'] for r in of):.3f}", *middle)
    console.print(table)
    with open(arguments.out, "w") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
