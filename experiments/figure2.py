"""Figure 2: which connectivities give one and the same dynamics, and which of them are inferred. System: quadstable.

    python experiments/figure2.py

A    flow field of the teacher's mean field, with trajectories of held-out trials.
B-D  admissible connectivities: all share p(m) and nu(m) = E[n | m] with the teacher and so, for many neurons, its
     dynamics. B the teacher's own n; C0 nu alone; C1 Gaussian spread about nu (maximum entropy); D a bimodal spread.
     Each with the error of its flow field, for the 1000 neurons drawn and for a very large network.
E    the fitted low-rank RNN by itself: as published (LINT), or in closed form where --lint names such a run.
F    Connector. Colours in E and F are 4-means clusters: k-means always returns four, so colours are no evidence.
G    marginal p(n).
H    likelihood of Gaussian mixtures on (m, n), each beside its null: single populations simulated anew with the same
     nu. The test for cell types, on the loadings alone, gives the p-values.

Needs a run of quadstable and the fit of one with lrrnn=published (--lint takes another run's fit in its place).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from panels import densities, letter, limits_of, mixture_curve, scatter
from rich.console import Console
from rich.table import Table
from saved_runs import LINT, LINT_HELP, AttractorRun, Wanted, arguments_of, finish, note, require, save, styled
from torch import Tensor

from connector.analysis.attractors import attractors_kept, reference_attractors
from connector.analysis.cell_types import (
    COMPONENTS,
    assign_cell_types,
    cell_type_test,
    cluster_centres,
    features,
    mixture_likelihood,
    null_mixture_likelihood,
)
from connector.analysis.fields import field_error
from connector.data.simulation import grid_of_states
from connector.dynamics import Network, leading_fixed_points
from connector.figures.fields import draw_flow_field, flow_handles, kinds_of_fixed_points
from connector.figures.style import ACCENT, GROUPS, INFERRED, TRUE
from connector.stages.results import N_STATES_LARGE

N_TYPES = 4
N_LARGE = 100_000  # neurons of the network whose field error is the distribution's own
BIMODAL = 2.0  # the two modes of n lie this far on either side of nu


def admissible(run: AttractorRun) -> dict[str, Network]:
    """Networks of the recorded network's loadings whose n differ in everything but nu."""
    return {name: redraw(run, run.truth, name) for name in ("teacher's own", "sigma = 0", "Gaussian", "bimodal")}


def redraw(run: AttractorRun, network: Network, name: str, seed: int = 0) -> Network:
    """``network`` with n drawn anew about the true nu, in the way called ``name``; "teacher's own" is left alone."""
    if name == "teacher's own":
        return network
    generator = torch.Generator().manual_seed(seed)
    nu = run.teacher.conditional_mean(network.loadings)
    normal = torch.randn(nu.shape, generator=generator, dtype=nu.dtype)
    if name == "Gaussian":
        return replace(network, n=nu + run.sigma * normal)
    if name == "bimodal":
        sign = torch.randint(2, nu.shape, generator=generator) * 2 - 1
        return replace(network, n=nu + BIMODAL * sign + 0.3 * normal)
    return replace(network, n=nu)


def large_error(run: AttractorRun, name: str, z: Tensor, y: Tensor) -> float:
    """Field error of a network of ``N_LARGE`` neurons of that kind."""
    network = run.teacher.sample(N_LARGE, torch.Generator().manual_seed(0), exact_moments=True)
    return field_error(redraw(run, network, name), z, None, y)


def clusters(network: Network, reference: Network, types: Tensor) -> Tensor:
    """4-means labels on (m, n), numbered as the types of the true network that they lie nearest to."""
    centres = cluster_centres(features(reference.loadings, reference.n), types)
    return assign_cell_types(features(network.loadings, network.n), len(centres), "kmeans", reference=centres)


def measure(run: AttractorRun, lint: AttractorRun, arguments) -> dict:
    """All that the figure and the table show."""
    z, z_large = run.held_out(2000), run.held_out(N_STATES_LARGE)
    y, y_large = run.teacher.drive(z), run.teacher.drive(z_large)
    attractors = reference_attractors(run.teacher)
    fit, inferred = lint.fitted_network, run.sample(1000, run.sigma, project=True, seed=int(run.config.seed))
    rows = {}
    for name, network in admissible(run).items():
        rows[name] = (network, large_error(run, name, z_large, y_large))
    rows[lint.label] = (fit, None)
    # As dynamics/field_error_mean_field of the run has it.
    rows["Connector"] = (inferred, field_error(run.infinite(), z_large, None, y_large))
    found = {
        "z": z,
        "rows": {
            name: {
                "network": network,
                "error": field_error(network, z, None, y),
                "recorded": field_error(network, z, None, run.truth.drive(z)),
                "large": large,
                "kept": attractors_kept(network, attractors),
            }
            for name, (network, large) in rows.items()
        },
        "types": {
            "truth": run.true_types,
            "lint": clusters(fit, run.truth, run.true_types),
            "connector": clusters(inferred, run.truth, run.true_types),
        },
    }
    of_curves = {
        "truth": (run.truth, run.teacher.conditional_mean, run.truth.loadings),
        lint.label: (fit, run.connectivity.conditional_mean, lint.loadings),
        # The test is made on the recorded neurons: of a distribution as many can be drawn as one pleases.
        "Connector": (inferred, run.connectivity.conditional_mean, run.loadings),
    }
    found["curves"] = {}
    for name, (network, nu, loadings) in of_curves.items():
        curve = mixture_likelihood(features(network.loadings, network.n), COMPONENTS)
        null = null_mixture_likelihood(network.loadings, network.n, nu, arguments.null_draws, COMPONENTS)
        test = cell_type_test(loadings, n_bootstrap=arguments.bootstrap)
        found["curves"][name] = (curve, null, test)
    return found


def show(found: dict, lint: AttractorRun, console: Console) -> None:
    table = Table(title="Figure 2: connectivities and the error of their flow fields (relative rms, held-out states)")
    heads = (
        "connectivity",
        "K",
        "of mean field",
        "same, K very large",
        "of recorded network",
        "4 attractors",
        "sd of n",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "connectivity" else "right")
    for name, row in found["rows"].items():
        network, large = row["network"], row["large"]
        cells = [f"{network.n_neurons}", f"{row['error']:.3g}", "-" if large is None else f"{large:.3g}"]
        cells.append(f"{row['recorded']:.3g}")
        table.add_row(name, *cells, "kept" if row["kept"] else "lost", f"{float(network.n.std(0).mean()):.2f}")
    console.print(table)
    table = Table(title="Cell types: mixtures on (m, n), and the test on the loadings alone")
    for head in ("neurons", "largest bend at k", "of its null", "gain of k = 4 over 1", "of its null", "p of the test"):
        table.add_column(head, justify="left" if head == "neurons" else "right")
    for name, (curve, null, test) in found["curves"].items():
        four = list(COMPONENTS).index(N_TYPES)
        bends = {curve._replace(mean=one).elbow for one in null}
        gains = null[:, four] - null[:, 0]
        table.add_row(
            name,
            str(curve.elbow),
            ", ".join(map(str, sorted(bends))),
            f"{float(curve.mean[four] - curve.mean[0]):.2f} nats",
            f"{float(gains.min()):.2f} to {float(gains.max()):.2f}",
            f"{test.p_value:.2g}",
        )
    console.print(table)
    console.print(
        "Dynamics determine p(m) and nu. The spread of n about nu is not determined: sigma is a stated choice.\n"
        + lint.caution(found["rows"][lint.label]["recorded"])
    )


class Panel(NamedTuple):
    """A scatter of m against n: the row of the table that it draws, its title, and each neuron's colour (K,)."""

    row: str
    title: str
    labels: Tensor


def draw(run: AttractorRun, lint: AttractorRun, found: dict) -> Figure:
    rows, types = found["rows"], found["types"]
    figure = Figure(figsize=(13.5, 9.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.02])
    panels = {
        "B": Panel("teacher's own", "Teacher's own $p(m, n)$", types["truth"]),
        "C₀": Panel("sigma = 0", r"$\nu(m)$ alone, $\sigma$ = 0", types["truth"]),
        "C₁": Panel("Gaussian", rf"$\nu(m)$ + Gaussian, $\sigma$ = {run.sigma:g}", types["truth"]),
        "D": Panel("bimodal", rf"$\nu(m)$ $\pm$ {BIMODAL:g}, bimodal", types["truth"]),
        "E": Panel(lint.label, lint.label, types["lint"]),
        "F": Panel("Connector", rf"Connector, $\sigma$ = {run.sigma:g}", types["connector"]),
    }
    networks = [rows[panel.row]["network"] for panel in panels.values() if panel.row != lint.label]
    limits = (limits_of(*(net.m for net in networks)), limits_of(*(net.n for net in networks)))
    draw_teacher(top, run, {key: panels[key] for key in ("B", "C₀", "C₁", "D")}, rows, limits)
    axes = bottom.subplots(2, 6)
    # A fit that is not finished can have weights of another size: it has its own axes.
    fit = lint.fitted_network
    for column, (key, own) in enumerate({"E": (limits_of(fit.m), limits_of(fit.n)), "F": limits}.items()):
        draw_panel(axes[:, column], key, panels[key], rows, own, "{recorded:.1g} (recorded net)")
    names = {"true": "teacher's own", lint.label: lint.label, panels["F"].title: "Connector"}
    draw_densities(axes[:, 2], {name: rows[row]["network"].n for name, row in names.items()}, limits[1])
    draw_curves(bottom, axes[:, 3:], found["curves"])
    note(
        figure,
        "All of B to D have the teacher's dynamics: data fix p(m) and the mean of n given m (C₀), not its spread. A field "
        "error is the rms difference from the teacher's mean field, relative to it, for the 1000 neurons drawn "
        f"and for {N_LARGE:,} in place of infinitely many (E, F: from the recorded network, which "
        f"they were fitted to). E: {lint.fit}. The spread in F is the stated sigma. Colours: true types in B to D, 4-means "
        "clusters in E and F, numbered as the true types that they lie nearest to (k-means always finds four). In H a bend "
        "of the curve is no evidence where the null bends as well; what counts is the test on the loadings of the recorded "
        "neurons. " + lint.caution(rows[lint.label]["recorded"]),
    )
    return figure


def draw_panel(axes, key: str, panel: Panel, rows: dict, limits: tuple, error: str) -> None:
    """m against n of each dimension; ``error``: the field error under the title, with names of columns of the table."""
    row = rows[panel.row]
    said = f"field error {error.format(**row)}"
    scatter(axes, row["network"], labels=panel.labels, limits=limits, title=panel.title, subtitle=said)
    letter(axes[0], key)


def draw_teacher(figure, run: AttractorRun, panels: dict[str, Panel], rows: dict, limits: tuple) -> None:
    """The teacher's flow field, and connectivities that all have it."""
    axes = figure.subplots(2, 6)
    for axis in axes[:, :2].flat:
        axis.remove()
    field = figure.add_subplot(axes[0, 0].get_gridspec()[:, :2])
    states, paths = run.latents.z.flatten(0, 1), run.latents.z[run.stage_inputs.fold.test]
    points = leading_fixed_points(run.teacher.vector_field, grid_of_states(9, 2.4))
    draw_flow_field(
        field, run.teacher.vector_field, states, trajectories=paths, fixed_points=points, max_trajectories=12
    )
    field.set(title="Teacher: flow field, trajectories", xlabel="latent $z_1$", ylabel="latent $z_2$")
    letter(field, "A")
    for column, (key, panel) in enumerate(panels.items(), start=2):
        draw_panel(axes[:, column], key, panel, rows, limits, "{error:.2g}; K → ∞: {large:.1g}")
    types = [
        Line2D([], [], linestyle="none", marker="o", color=GROUPS[c], markersize=5, label=f"type {c + 1}")
        for c in range(N_TYPES)
    ]
    handles = flow_handles(kinds_of_fixed_points(points[1]), paths=True)
    figure.legend(handles=handles, loc="outside lower left", ncols=5, columnspacing=1.2)
    figure.legend(handles=types, loc="outside lower right", ncols=N_TYPES)


def draw_densities(axes, n: dict[str, Tensor], limits) -> None:
    """p(n) of each dimension, of the teacher, of the fit by itself and of Connector."""
    styles = ({"color": TRUE, "linewidth": 2.4, "alpha": 0.6}, {"color": ACCENT}, {"color": INFERRED})
    for i, axis in enumerate(axes):
        densities(axis, {name: x[:, i] for name, x in n.items()}, dict(zip(n, styles)), limits)
        axis.set_xlabel(f"output weight $n_{{{i + 1}}}$\n(latent units)")
        axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
        axis.legend(fontsize=6.5, loc="upper left", handlelength=1.2)
    axes[0].set_title("$p(n)$")
    letter(axes[0], "G")


def draw_curves(figure, axes, curves: dict) -> None:
    """Likelihoods of mixtures, with their nulls, in place of ``axes``."""
    grid = axes[0, 0].get_gridspec()
    for axis in axes.flat:
        axis.remove()
    first = grid.ncols - axes.shape[1]
    for column, (name, (curve, null, test)) in enumerate(curves.items(), start=first):
        axis = figure.add_subplot(grid[:, column])
        mixture_curve(axis, curve, null, f"{name}\n$p$ = {test.p_value:.2g} on loadings")
        if column == first:
            letter(axis, "H")
            figure.legend(*axis.get_legend_handles_labels(), loc="outside lower right", ncols=3)
        else:
            axis.set_ylabel("")


def main(arguments=None) -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--lint", metavar="RUN", help=LINT_HELP)
    parser.add_argument("--null-draws", type=int, default=4, help="populations simulated for each null of H")
    parser.add_argument("--bootstrap", type=int, default=99, help="populations simulated for each test of cell types")
    arguments = parser.parse_args(arguments)
    console = Console(width=120)
    run, lint = runs_of("quadstable", arguments)
    found = measure(run, lint, arguments)
    show(found, lint, console)
    with styled():
        save(draw(run, lint, found), arguments.out, "figure2", console)


def runs_of(experiment: str, arguments) -> tuple[AttractorRun, AttractorRun]:
    """The run of Connector, and the one whose fitted low-rank RNN is drawn by itself."""
    wanted = [Wanted(experiment, tuple(arguments.options))]
    if arguments.lint is None:
        both = Wanted(experiment, ("connectivity=published", *LINT), fit_only=True)
        wanted.append((Wanted(experiment, LINT, fit_only=True), both))
    found = require(arguments.runs, *wanted)
    return found[0][0], found[1][0] if arguments.lint is None else AttractorRun(Path(arguments.lint))


if __name__ == "__main__":
    raise SystemExit(finish(main))
