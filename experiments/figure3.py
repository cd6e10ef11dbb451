"""Figure 3: what is left of the dynamics when one cell type is silenced. System: quadstable.

    python experiments/figure3.py

Rows: the true network; the fitted low-rank RNN by itself, as published (LINT) or, where --lint names such a run, in closed
form; a network sampled by Connector. Columns: intact, then
each of the four cell types silenced in turn. In the true network the types are the ones neurons were drawn from; in the
others they are 4-means clusters on (m, n), numbered as the true types they lie nearest to.

The table compares each with the teacher's mean field under the same silencing: relative rms error of the field on the
visited states, number of stable fixed points, and how far these lie from the true ones. Two references stand beside:
"fresh truth", 1000 other neurons of the teacher silenced by their true types, is what finite size alone gives; "random
neurons", as many neurons of the true network silenced whatever their type, is what a wrong grouping gives.

Needs a run of quadstable and the fit of one with lrrnn=published (--lint takes another run's fit in its place).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from figure2 import N_TYPES, clusters, runs_of
from matplotlib.figure import Figure
from panels import letter
from rich.console import Console
from rich.table import Table
from saved_runs import LINT_HELP, AttractorRun, arguments_of, finish, note, save, styled
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from connector.analysis.cell_types import assign_cell_types, cluster_centres, features
from connector.analysis.fields import field_error
from connector.data.simulation import grid_of_states
from connector.dynamics import Network
from connector.figures.fields import draw_flow_field, flow_handles
from connector.figures.style import GROUPS
from connector.report.numbers import percent

N_REFERENCE = 20_000  # neurons of the network that stands for the teacher's mean field

STARTS = grid_of_states(9, 2.4)  # from which fixed points are looked for


@dataclass
class Silenced:
    """One network with one type silenced, compared with the reference.

    Attributes:
        field_error: relative rms. points: stable fixed points. displacement: mean distance of matched stable points
            (as many as the smaller number), in units of the latents; NaN where one side has none.
    """

    field_error: float
    points: int
    displacement: float


def stable_points(network: Network, starts: Tensor) -> Tensor:
    """(F, R) stable fixed points that the flow leads to from ``starts`` (P, R)."""
    points, eigenvalues = network.fixed_points(starts)
    return points[(eigenvalues.real < 0).all(1)]


def displacement(points: Tensor, reference: Tensor) -> float:
    """Mean distance between stable points (F, R) and their nearest counterparts under one-to-one matching."""
    if len(points) == 0 or len(reference) == 0:
        return math.nan
    distance = torch.cdist(points.double(), reference.double())
    row, column = linear_sum_assignment(distance.numpy())
    return float(distance[row, column].mean())


class Comparison:
    """The teacher's mean field with each type silenced, and networks measured against it.

    Args:
        run: gives the teacher.
        z: (T, R) visited states.
    """

    def __init__(self, run: AttractorRun, z: Tensor):
        self.z = z
        generator = torch.Generator().manual_seed(0)
        network, types = run.teacher.sample_with_components(N_REFERENCE, generator, exact_moments=True)
        silenced = [network.silence(types == c) for c in range(N_TYPES)]
        self.drives = [net.drive(z) for net in silenced]
        self.points = [stable_points(net, grid_of_states(5, 2.4)) for net in silenced]

    def __call__(self, network: Network, types: Tensor) -> list[Silenced]:
        """One entry for each type; ``types`` (K,) of the network's neurons."""
        measured = []
        for c in range(N_TYPES):
            net = network.silence(types == c)
            points = stable_points(net, STARTS)
            error = field_error(net, self.z, None, self.drives[c])
            measured.append(Silenced(error, len(points), displacement(points, self.points[c])))
        return measured


def labels_of(network: Network, run: AttractorRun, on: str) -> Tensor:
    """4-means labels of a network's neurons, on (m, n) or on the loadings alone, numbered as the true types."""
    if on == "all":
        return clusters(network, run.truth, run.true_types)
    centres = cluster_centres(features(run.truth.loadings), run.true_types)
    return assign_cell_types(features(network.loadings), N_TYPES, "kmeans", reference=centres)


def measure(run: AttractorRun, lint: AttractorRun, samples: int, on: str) -> dict:
    """Networks and types for the drawing, and the measurements: name -> list (repetitions) of lists (types)."""
    z = run.held_out(1500)
    compare = Comparison(run, z)
    fit = lint.fitted_network
    drawn = {"true network": (run.truth, run.true_types), lint.label: (fit, labels_of(fit, run, on))}
    measured = {name: [compare(*pair)] for name, pair in drawn.items()}
    measured["Connector"] = []
    for seed in range(samples):
        network = run.sample(1000, run.sigma, project=True, seed=seed)
        pair = network, labels_of(network, run, on)
        drawn.setdefault("Connector", pair)
        measured["Connector"].append(compare(*pair))
    measured["fresh truth"], measured["random neurons"] = [], []
    for seed in range(samples):
        generator = torch.Generator().manual_seed(seed)
        measured["fresh truth"].append(compare(*run.teacher.sample_with_components(1000, generator)))
        shuffled = run.true_types[torch.randperm(len(run.true_types), generator=generator)]
        measured["random neurons"].append(compare(run.truth, shuffled))
    caution = lint.caution(field_error(fit, z, None, run.truth.drive(z)))
    return {
        "z": z,
        "caution": caution,
        "fit": lint.fit,
        "drawn": drawn,
        "measured": measured,
        "true_points": [len(points) for points in compare.points],
    }


def mean_of(repetitions: list[list[Silenced]], type_: int, name: str) -> float:
    values = [getattr(one[type_], name) for one in repetitions]
    values = [value for value in values if not math.isnan(value)]
    return statistics.fmean(values) if values else math.nan


def show(found: dict, console: Console) -> None:
    table = Table(title="Figure 3: one cell type silenced, against the teacher's mean field under the same silencing")
    table.add_column("network")
    for c in range(N_TYPES):
        table.add_column(f"type {c + 1}", justify="right")
    table.add_column("mean", justify="right")
    for title, name, form in (
        ("field error", "field_error", ".3f"),
        ("stable fixed points", "points", ".1f"),
        ("displacement of fixed points (latent units)", "displacement", ".2f"),
    ):
        table.add_section()
        table.add_row(f"[bold]{title}")
        if name == "points":
            true = found["true_points"]
            table.add_row("mean field", *(f"{value:.1f}" for value in true), f"{statistics.fmean(true):.1f}")
        for network, repetitions in found["measured"].items():
            values = [mean_of(repetitions, c, name) for c in range(N_TYPES)]
            text = f"{network} (mean of {len(repetitions)})" if len(repetitions) > 1 else network
            table.add_row(text, *(f"{value:{form}}" for value in values), f"{statistics.fmean(values):{form}}")
    console.print(table)
    console.print(found["caution"], highlight=False)


def draw(run: AttractorRun, found: dict) -> Figure:
    states = run.latents.z.flatten(0, 1)
    figure = Figure(figsize=(12.4, 8.6), layout="compressed")
    axes = figure.subplots(3, N_TYPES + 1, sharex=True, sharey=True)
    cap = None
    for row, (name, (network, types)) in enumerate(found["drawn"].items()):
        for column in range(N_TYPES + 1):
            axis, net = axes[row, column], network
            if column:
                net = network.silence(types == column - 1)
            cap = draw_flow_field(axis, net, states, fixed_points=net.fixed_points(STARTS), speed_cap=cap, n_grid=50)
            if column == 0:
                axis.set_title(f"{name}: intact", fontsize=9)
                axis.set_ylabel("latent $z_2$")
                letter(axis, "ABC"[row])
            else:
                share = float((types == column - 1).double().mean())
                error = mean_of([found["measured"][name][0]], column - 1, "field_error")
                title = f"without type {column} ({percent(share)}), error {error:.2f}"
                axis.set_title(title, fontsize=8.5, color=GROUPS[column - 1])
            if row == 2:
                axis.set_xlabel("latent $z_1$")
    figure.legend(handles=flow_handles(), loc="outside upper right", ncols=4)
    note(
        figure,
        "Error: rms difference from the teacher's mean field under the same silencing, relative to that field. "
        f"B: {found['fit']}. Types of A are the true ones, those of B and C 4-means clusters; the spread of n about its mean, which data do not "
        "determine, helps to decide which neurons a cluster on (m, n) holds. " + found["caution"],
    )
    return figure


def main(arguments=None) -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--lint", metavar="RUN", help=LINT_HELP)
    parser.add_argument("--samples", type=int, default=5, help="networks sampled by Connector, and of each reference")
    parser.add_argument(
        "--clusters-on", choices=("all", "loadings"), default="all", help="cluster (m, n), as published, or m alone"
    )
    arguments = parser.parse_args(arguments)
    console = Console(width=120)
    run, lint = runs_of("quadstable", arguments)
    found = measure(run, lint, arguments.samples, arguments.clusters_on)
    show(found, console)
    with styled():
        save(draw(run, found), arguments.out, "figure3", console)


if __name__ == "__main__":
    raise SystemExit(finish(main))
