"""Figure 4: dissimilarity between true and inferred connectivity, four systems against four, by two measures.

    python experiments/figure4.py

Rows: the true system; columns: the system whose data the connectivity was inferred from. D is ours (Sinkhorn divergence of
the loadings + squared error of n given the loading), the other that of Valente et al. 2022 (sorted entries of J). A
measure that tells connectivities apart is smallest on the diagonal, in every row and column. The two panels on the right
show the same for perfect inference, fresh neurons of the truth with n = nu: what the sampling of neurons alone gives, and
how far apart the systems are.

Means over all seeds found (`python train.py -m experiment=quadstable,bistable,limit_cycle,ring seed=1,2,3`) and over
--samples networks sampled from each. Needs a run of each system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from saved_runs import SYSTEMS, AttractorRun, Wanted, arguments_of, finish, note, require, save, styled
from torch import Tensor

from connector.analysis.distances import sinkhorn_divergence, squared_error, valente_dissimilarity
from connector.data.attractors import Teacher
from connector.dynamics import Network
from connector.figures.weights import dissimilarity_matrices

NAMES = ("quadstable", "bistable", "limit cycle", "ring")
MEASURES = ("D", "Valente et al.")


def smallest_on_diagonal(matrix: Tensor) -> tuple[list[bool], list[bool]]:
    """Of a square matrix, for each row and for each column: is its smallest value the one on the diagonal alone?"""
    away = matrix + torch.diag(torch.full((len(matrix),), float("inf"), dtype=matrix.dtype))
    diagonal = matrix.diagonal()
    return (diagonal < away.amin(1)).tolist(), (diagonal < away.amin(0)).tolist()


def both(teacher: Teacher, true: Network, inferred: Network) -> tuple[float, float]:
    """D and Valente's dissimilarity of one inferred network (sigma = 0) from one fresh network of a system."""
    loadings = true.loadings.stack(), inferred.loadings.stack()
    ours = sinkhorn_divergence(*loadings) + squared_error(teacher.conditional_mean, inferred)
    return ours, valente_dissimilarity(true, inferred, max_entries=250_000)


def matrices(
    teachers: list[Teacher], networks: list[list[Network]], advance: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (2 measures, true, inferred) over each system's networks.

    Args:
        advance: called after each pair of systems.
    """
    means = torch.zeros(2, len(teachers), len(teachers), dtype=torch.float64)
    stds = torch.zeros_like(means)
    for row, teacher in enumerate(teachers):
        for column, several in enumerate(networks):
            values = []
            for seed, inferred in enumerate(several):
                true = teacher.sample(inferred.n_neurons, torch.Generator().manual_seed(1000 + 100 * row + seed))
                values.append(both(teacher, true, inferred))
            values = torch.tensor(values, dtype=torch.float64)
            means[:, row, column] = values.mean(0)
            stds[:, row, column] = values.std(0) if len(values) > 1 else 0.0
            advance()
    return means, stds


def fresh(teacher: Teacher, count: int) -> list[Network]:
    """Networks of the truth itself, n = nu: perfect inference."""
    # Three of the teachers turn the same random numbers into the same loadings: each system has its own seeds.
    first = 100 * SYSTEMS.index(teacher.name)
    drawn = [teacher.sample(1000, torch.Generator().manual_seed(first + seed)) for seed in range(count)]
    return [replace(network, n=teacher.conditional_mean(network.loadings)) for network in drawn]


def show(title: str, means: Tensor, stds: Tensor, console: Console) -> None:
    for index, measure in enumerate(MEASURES):
        table = Table(title=f"{title}: {measure} (mean ± sd)")
        table.add_column("true \\ inferred")
        for name in NAMES:
            table.add_column(name, justify="right")
        for row, name in enumerate(NAMES):
            cells = [f"{float(means[index, row, c]):.3g} ± {float(stds[index, row, c]):.1g}" for c in range(len(NAMES))]
            table.add_row(name, *cells)
        console.print(table)
        rows, columns = smallest_on_diagonal(means[index])
        console.print(
            f"{measure}: smallest on the diagonal in {sum(rows)} of {len(rows)} rows and {sum(columns)} of "
            f"{len(columns)} columns: {'yes' if all(rows + columns) else 'NO'}",
            highlight=False,
        )


def draw(inferred: Tensor, perfect: Tensor, n_runs: list[int], samples: int) -> Figure:
    panels = {
        "D (squared weights)": inferred[0],
        "Valente et al. (1 − correlation)": inferred[1],
        "D, perfect inference": perfect[0],
        "Valente, perfect inference": perfect[1],
    }
    figure = dissimilarity_matrices(panels, NAMES, NAMES)
    seeds = f"{min(n_runs)}" if min(n_runs) == max(n_runs) else f"{min(n_runs)} to {max(n_runs)}"
    note(
        figure,
        f"Means over {seeds} run{'' if max(n_runs) == 1 else 's'} of each system and {samples} sampled network{'' if samples == 1 else 's'} of 1000 neurons each. Bold: smallest of "
        "its row and column. Perfect inference: fresh true neurons with n = nu. Neither measure sees the spread of n "
        "about nu, which data do not determine; D is taken at sigma = 0.",
    )
    return figure


def main(arguments=None) -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--samples", type=int, default=3, help="networks sampled from each run")
    arguments = parser.parse_args(arguments)
    console = Console(width=120)
    found: list[list[AttractorRun]] = require(
        arguments.runs, *(Wanted(name, tuple(arguments.options)) for name in SYSTEMS)
    )
    teachers = [runs[0].teacher for runs in found]
    networks = [
        [run.sample(1000, seed=100 * i + s) for run in runs for s in range(arguments.samples)]
        for i, runs in enumerate(found)
    ]
    perfectly = [fresh(teacher, arguments.samples) for teacher in teachers]
    columns = (TextColumn("pairs of systems"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=2 * len(teachers) ** 2)
        inferred, spread = matrices(teachers, networks, lambda: progress.advance(bar))
        perfect, spread_perfect = matrices(teachers, perfectly, lambda: progress.advance(bar))
    show("inferred", inferred, spread, console)
    show("perfect inference", perfect, spread_perfect, console)
    diagonal = np.round(inferred[0].diagonal().numpy() / perfect[0].diagonal().numpy(), 2)
    console.print(f"D on the diagonal over that of perfect inference: {', '.join(map(str, diagonal))}", highlight=False)
    with styled():
        figure = draw(inferred, perfect, [len(runs) for runs in found], arguments.samples)
        save(figure, arguments.out, "figure4", console)


if __name__ == "__main__":
    raise SystemExit(finish(main))
