"""Supplementary figure: the bistable, limit cycle and ring systems.

    python experiments/supplementary.py

One row for each system: flow field of the teacher's mean field; flow field of the inferred distribution (infinitely many
neurons, n = nu); n against m of the true network and of a network sampled by Connector; marginal p(n); likelihood of
Gaussian mixtures on (m, n) beside its null, with the p-value of the test for cell types on the recorded neurons' loadings.
These systems have one population each, so the test should find nothing: they are the null of Figure 2's quadstable.

Needs a run of each system.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from panels import densities, letter, limits_of, mixture_curve, scatter
from rich.console import Console
from rich.table import Table
from saved_runs import AttractorRun, Wanted, arguments_of, finish, note, require, save, styled

from connector.analysis.attractors import attractors_kept, find_attractors, reference_attractors
from connector.analysis.cell_types import (
    COMPONENTS,
    cell_type_test,
    features,
    mixture_likelihood,
    null_mixture_likelihood,
)
from connector.analysis.fields import field_error
from connector.data.simulation import grid_of_states
from connector.dynamics import leading_fixed_points
from connector.figures.fields import draw_flow_field, flow_handles
from connector.figures.style import INFERRED, TRUE

SYSTEMS = {"bistable": "Bistable", "limit_cycle": "Limit cycle", "ring": "Ring"}


def measure(run: AttractorRun, arguments) -> dict:
    z = run.held_out(400)
    y = run.teacher.drive(z)
    reference = reference_attractors(run.teacher)
    network = run.sample(1000, run.sigma, project=True, seed=int(run.config.seed))
    infinite = run.infinite()
    x = features(network.loadings, network.n)
    return {
        "network": network,
        "infinite": infinite,
        "reference": reference,
        "found": find_attractors(network, reference.starts),
        "kept": attractors_kept(network, reference),
        "error": field_error(infinite, z, None, y),
        "projected": field_error(network, z, None, y),
        "recorded": field_error(run.truth, z, None, y),
        "curve": mixture_likelihood(x, COMPONENTS),
        "null": null_mixture_likelihood(
            network.loadings, network.n, run.connectivity.conditional_mean, arguments.null_draws, COMPONENTS
        ),
        "test": cell_type_test(run.loadings, n_bootstrap=arguments.bootstrap),
    }


def show(measured: dict[str, dict], console: Console) -> None:
    table = Table(title="Supplementary: field errors are relative to the teacher's mean field")
    heads = (
        "system",
        "error, K infinite",
        "error, K = 1000",
        "recorded network",
        "attractors",
        "kept",
        "bend at k",
        "p",
    )
    for head in heads:
        table.add_column(head)
    for name, found in measured.items():
        errors = [f"{found[key]:.3g}" for key in ("error", "projected", "recorded")]
        bend, p = str(found["curve"].elbow), f"{found['test'].p_value:.2g}"
        table.add_row(SYSTEMS[name], *errors, str(found["found"]), "yes" if found["kept"] else "no", bend, p)
    console.print(table)


def draw(runs: dict[str, AttractorRun], measured: dict[str, dict]) -> Figure:
    figure = Figure(figsize=(14.5, 0.6 + 4 * len(runs)), layout="constrained")
    blocks = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    for index, (block, (name, run)) in enumerate(zip(blocks, runs.items())):
        found, states = measured[name], run.latents.z.flatten(0, 1)
        axes = block.subplots(2, 6, width_ratios=[1.55, 1.55, 1, 1, 1, 1.2])
        grid = axes[0, 0].get_gridspec()
        for column in (0, 1, 5):
            for axis in axes[:, column]:
                axis.remove()
        cap = None
        paths = run.latents.z[run.stage_inputs.fold.test]
        starts = grid_of_states(9, 2.4)
        fields = {"teacher": run.teacher.vector_field, "inferred": found["infinite"].vector_field}
        for column, (title, field) in enumerate(fields.items()):
            axis = block.add_subplot(grid[:, column])
            points = None
            if found["reference"].kind != "ring":  # whose points are a continuum
                points = leading_fixed_points(field, starts[:: 1 if column == 0 else 4])
            cap = draw_flow_field(
                axis, field, states, trajectories=paths, fixed_points=points, speed_cap=cap, max_trajectories=12
            )
            axis.set(title=f"{SYSTEMS[name]}: {title}", xlabel="latent $z_1$", ylabel="latent $z_2$")
            if column == 0:
                letter(axis, "ABC"[index])
            else:
                axis.set_title(f"Inferred, field error {found['error']:.2g}")
        network = found["network"]
        limits = (limits_of(run.truth.m, network.m), limits_of(run.truth.n, network.n))
        scatter(axes[:, 2], run.truth, limits=limits, title="True network")
        scatter(axes[:, 3], network, limits=limits, title=rf"Connector, $\sigma$ = {run.sigma:g}")
        styles = {"true": {"color": TRUE, "linewidth": 2.4, "alpha": 0.6}, "Connector": {"color": INFERRED}}
        for i in range(2):
            densities(axes[i, 4], {"true": run.truth.n[:, i], "Connector": network.n[:, i]}, styles, limits[1])
            axes[i, 4].set_xlabel(f"output weight $n_{{{i + 1}}}$\n(latent units)")
        axes[0, 4].set_title("$p(n)$\n", fontsize=9)
        axes[0, 4].legend(fontsize=7, loc="upper left")
        axes[0, 4].set_ylim(0, 1.4 * axes[0, 4].get_ylim()[1])
        axis = block.add_subplot(grid[:, 5])
        mixture_curve(axis, found["curve"], found["null"], f"Mixtures; test: $p$ = {found['test'].p_value:.2g}")
        if index == len(runs) - 1:
            block.legend(handles=flow_handles(paths=True), loc="outside lower left", ncols=5)
            block.legend(*axis.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    note(
        figure,
        "Data determine p(m) and the mean of n given m. The spread of n about it, and so the width of p(n), is a stated choice (sigma). A mixture curve means nothing where it leaves "
        "its null (no types, shifted to the same start) by less than the sd over folds; p is of the test for cell types on "
        "the recorded neurons' loadings. In these systems there is one population, and p(m) is the same in all three: "
        "with one seed the loadings, and so p, are the same as well.",
    )
    return figure


def main(arguments=None) -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--null-draws", type=int, default=4, help="populations simulated for each null")
    parser.add_argument("--bootstrap", type=int, default=99, help="populations simulated for each test of cell types")
    arguments = parser.parse_args(arguments)
    console = Console(width=140)
    found = require(arguments.runs, *(Wanted(name, tuple(arguments.options)) for name in SYSTEMS))
    runs = {name: several[0] for name, several in zip(SYSTEMS, found)}
    measured = {name: measure(run, arguments) for name, run in runs.items()}
    show(measured, console)
    with styled():
        save(draw(runs, measured), arguments.out, "supplementary", console)


if __name__ == "__main__":
    raise SystemExit(finish(main))
