"""Does a probability of .9 for a number of attractors mean nine in ten? Simulated rates, counted in draws and in the truth.

    python experiments/attractor_probabilities.py --datasets 200 --out attractor_probabilities.json

Each data set draws a kind of network (of experiments/coverage.py), 4 to 64 trials, their length and the noise of the latents,
from hardly any to as large as the states' own spread. The posterior of the vector field is drawn from, stable fixed points in
the visited region are counted in each draw, and in the recorded network itself. The table has, for every probability that a
number of stable points was given (each data set: every number that a draw had), how often it was the true number; and for the
most probable number of each data set. Networks settle within binomial limits where the posterior is calibrated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")  # data sets run side by side

import torch
from coverage import ALPHA, KINDS, collect, pick, randn
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from connector.analysis.attractor_probabilities import count_attractors
from connector.analysis.fixed_points import count_fixed_points
from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.trajectories import fit_trajectories
from connector.dynamics import Network
from connector.types import Latents, Loadings

EDGES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
N_DRAWS = 100
NAMES = tuple(name for name in KINDS if name not in ("softplus_bias_input", "rank_three"))


@dataclass(frozen=True)
class Task:
    kind: str
    seed: int


def run(task: Task) -> dict:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(task.seed)
    population = KINDS[task.kind](g)
    rows, n = population.sample(pick(g, (100, 300, 1000)), g)
    shape = (population.rank, population.n_inputs, population.has_bias)
    loadings = Loadings.unstack(rows, *shape)
    network = Network(loadings.m, n, loadings.b, loadings.d, alpha=ALPHA, activation=population.activation)
    trials, steps, noise = pick(g, (4, 8, 16, 64)), pick(g, (20, 50, 100)), pick(g, (0.02, 0.1, 0.3, 0.6))
    z = network.simulate(1.5 * randn(g, trials, population.rank), steps)
    z = z + noise * randn(g, *z.shape)
    latents = Latents(z, torch.full((trials,), steps), ALPHA)
    model = fit_trajectories(latents, loadings, activation=population.activation)
    found = count_attractors(Draws(model, N_DRAWS, seed=1), latents.samples().z)
    own = count_fixed_points(network.drive, torch.eye(population.rank).double(), found.region)
    counts = Counter(found.stable.tolist())
    return {
        "kind": task.kind,
        "seed": task.seed,
        "noise": noise,
        "trials": trials,
        "steps": steps,
        "truth": int(own.counts()[0]),
        "checked": float(found.points.checked.double().mean()),
        "probabilities": {str(number): count / N_DRAWS for number, count in counts.items()},
        "summary": model.summary,
    }


def in_bins(pairs: list[tuple[float, bool]]) -> list[dict]:
    """Of pairs (probability, whether it came true): in each bin of the probability, how often it did, and 95 % limits of
    that number if each probability is right at the bin's mean."""
    found = []
    for low, high in itertools.pairwise(EDGES):
        inside = [(p, true) for p, true in pairs if low < p <= high]
        if not inside:
            continue
        mean, count = sum(p for p, _ in inside) / len(inside), len(inside)
        limits = [int(x) for x in binom.interval(0.95, count, mean)]
        found.append({"from": low, "to": high, "cases": count, "predicted": mean * count,
                      "true": sum(true for _, true in inside), "limits": limits})  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=600_000, help="of the first data set")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="attractor_probabilities.json")
    arguments = parser.parse_args()
    console = Console(width=120)
    tasks = [Task(NAMES[i % len(NAMES)], arguments.seed + i) for i in range(arguments.datasets)]
    results = collect(run, tasks, arguments.workers, console)
    every, best = [], []
    for result in results:
        of = [(p, int(number) == result["truth"]) for number, p in result["probabilities"].items()]
        every += of
        best.append(max(of))
    tables = {"every number that a draw had": in_bins(every), "the most probable number": in_bins(best)}
    for title, rows in tables.items():
        table = Table(title=title)
        for head in ("probability", "cases", "predicted to be true", "true", "95 % limits"):
            table.add_column(head)
        for row in rows:
            cells = (
                f"{row['from']:g} to {row['to']:g}",
                str(row["cases"]),
                f"{row['predicted']:.1f}",
                str(row["true"]),
            )
            table.add_row(*cells, "{} to {}".format(*row["limits"]))
        console.print(table)
    console.print(f"true number most probable in {sum(true for _, true in best)} of {len(best)}")
    with open(arguments.out, "w") as file:
        json.dump({"tables": tables, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
