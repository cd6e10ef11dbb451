"""How well are the mean output weights nu identified, against what was recorded? Simulated networks, fitted directly.

    python experiments/identifiability.py                  # about 5 minutes on 2 cores
    python experiments/identifiability.py --datasets 4     # quicker, rougher

Four quantities are varied, each with the others at their reference (60 trajectories from within 2.4 of the origin, latent
noise of sd 0.01, all 1000 neurons recorded, every step recorded):

coverage   the radius around a resting state within which trajectories start: small, and one basin alone is seen
noise      sd of the noise on the latent states
fraction   share of the network's neurons that is recorded
stride     time between samples, in time constants

For each setting: the normalised squared error of nu, |estimate - nu|^2 / |nu|^2 (1 is what knowing nothing gives); the
error that the posterior itself predicts; the determined fraction, the share of loadings and dimensions whose 95 % interval
excludes zero; and the coverage of those intervals, which says whether the claims may be believed. Median and quartiles over
data sets, each a network of another kind. Writes identifiability.png, .pdf, .csv and .json.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # data sets run side by side

import numpy as np
import torch
from coverage import ALPHA, KINDS, Population, collect, randn
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table
from saved_runs import arguments_of, finish, note, save, styled

from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.dynamics import Network
from connector.figures.style import ACCENT, INFERRED, MUTED
from connector.types import Latents, Loadings

# Rank two and without input, so that one figure's axes serve all of them.
OF_RANK_TWO = ("quadstable", "bistable", "limit_cycle", "ring", "any_linear", "hopfield", "tanh_nu", "heavy_tailed")
REFERENCE = {"coverage": 2.4, "noise": 0.01, "fraction": 1.0, "stride": 1}
VARIED = {
    "coverage": (0.1, 0.3, 0.8, 2.4),
    "noise": (0.001, 0.01, 0.03, 0.1),
    "fraction": (0.05, 0.2, 0.5, 1.0),
    "stride": (1, 3, 6, 10),
}
AXES = {
    "coverage": "trajectories start within (latent units)",
    "noise": "noise of the latents (sd, latent units)",
    "fraction": "share of neurons recorded",
    "stride": r"time between samples ($\tau$)",
}
TITLES = {
    "coverage": "states visited",
    "noise": "noise",
    "fraction": "share recorded",
    "stride": "time step",
}
MEASURES = ("error", "predicted_error", "determined", "interval_coverage")
N_NEURONS, N_TRIALS, N_STEPS = 1000, 60, 100


@dataclass(frozen=True)
class Setting:
    """One data set: which quantity has which value, and the seed, which also chooses the kind of network."""

    factor: str
    value: float
    seed: int


def simulate(network: Network, radius: float, noise: float, stride: int, g: torch.Generator) -> Latents:
    """Noisy latents (N_TRIALS, samples, 2) from starts uniform in a disc around a resting state (or the origin)."""
    centre = torch.zeros(2, dtype=torch.float64)
    if radius < REFERENCE["coverage"]:
        centre = network.simulate(randn(g, 1, 2), 300)[0, -1]
    direction = randn(g, N_TRIALS, 2)
    direction = direction / direction.norm(dim=1, keepdim=True)
    z0 = centre + radius * torch.rand(N_TRIALS, 1, generator=g, dtype=torch.float64).sqrt() * direction
    samples = N_STEPS // stride
    z = network.simulate(z0, N_STEPS)[:, : samples * stride : stride]
    return Latents(z + noise * randn(g, *z.shape), torch.full((len(z),), samples), ALPHA * stride)


def run(setting: Setting) -> dict:
    """Simulate one data set, fit it, compare with the truth at fresh loadings."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(setting.seed)
    kind = OF_RANK_TWO[setting.seed % len(OF_RANK_TWO)]
    population: Population = KINDS[kind](g)
    chosen = REFERENCE | {setting.factor: setting.value}
    rows, n = population.sample(N_NEURONS, g)
    network = Network(rows, n, alpha=ALPHA, activation=population.activation)
    latents = simulate(network, chosen["coverage"], chosen["noise"], int(chosen["stride"]), g)
    recorded = Loadings(rows[: max(20, round(chosen["fraction"] * N_NEURONS))])
    model = fit_trajectories(
        latents,
        recorded,
        activation=population.activation,
        stride=int(chosen["stride"]),
        recorded_fraction=recorded.n_neurons / N_NEURONS,
        settings=TrajectorySettings(seed=setting.seed),
    )
    fresh, _ = population.sample(200, g)
    truth, estimate = population.estimand(fresh), model.mean(fresh)
    low, high = model.interval(fresh, 0.95)
    return {
        "factor": setting.factor,
        "value": setting.value,
        "seed": setting.seed,
        "kind": kind,
        "error": float((estimate - truth).square().sum() / truth.square().sum()),
        "predicted_error": model.predicted_error,
        "determined": float(((low > 0) | (high < 0)).double().mean()),
        "interval_coverage": float(((low <= truth) & (truth <= high)).double().mean()),
        "modes": float(model.determined_modes),
    }


def quartiles(results: list[dict]) -> list[dict]:
    """For each factor, value and measure: lower quartile, median, upper quartile over data sets."""
    rows = []
    for factor, values in VARIED.items():
        for value in values:
            group = [r for r in results if r["factor"] == factor and r["value"] == value]
            for measure in (*MEASURES, "modes"):
                low, middle, high = np.quantile([r[measure] for r in group], [0.25, 0.5, 0.75])
                row = {"factor": factor, "value": value, "measure": measure, "datasets": len(group)}
                rows.append(row | {"lower": float(low), "median": float(middle), "upper": float(high)})
    return rows


def show(rows: list[dict], console: Console) -> None:
    table = Table(title="Identifiability of nu: median (quartiles) over data sets")
    heads = ("quantity", "value", "error", "predicted error", "determined fraction", "coverage of 95 %", "modes")
    for head in heads:
        table.add_column(head)
    for factor, values in VARIED.items():
        table.add_section()
        for value in values:
            cells = []
            for measure in (*MEASURES, "modes"):
                one = next(r for r in rows if (r["factor"], r["value"], r["measure"]) == (factor, value, measure))
                cells.append(f"{one['median']:.2g} ({one['lower']:.2g} to {one['upper']:.2g})")
            table.add_row(factor, f"{value:g}", *cells)
    console.print(table)


def draw(rows: list[dict], datasets: int) -> Figure:
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, len(VARIED), sharey="row", sharex="col")
    lines = (
        (0, "error", INFERRED, "error of the estimate"),
        (0, "predicted_error", ACCENT, "error that the posterior expects (not measured)"),
        (1, "determined", INFERRED, "determined: 95 % interval excludes 0"),
        (1, "interval_coverage", ACCENT, "truth inside the 95 % interval"),
    )
    for column, (factor, values) in enumerate(VARIED.items()):
        scale = ALPHA if factor == "stride" else 1.0
        x = scale * np.array(values)
        for row, measure, colour, label in lines:
            axis = axes[row, column]
            chosen = [r for r in rows if r["factor"] == factor and r["measure"] == measure]
            low, middle, high = (np.array([r[key] for r in chosen]) for key in ("lower", "median", "upper"))
            axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(x, middle, color=colour, marker="o", markersize=4, label=label)
        axes[0, column].axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="knowing nothing (nu = 0)")
        axes[1, column].axhline(0.95, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), label="nominal 95 %")
        axes[0, column].set(yscale="log", xscale="log", title=TITLES[factor])
        axes[1, column].set(xlabel=AXES[factor], ylim=(0, 1.03))
        axes[1, column].set_xticks(x, [f"{v:g}" for v in x])
        axes[1, column].xaxis.set_minor_formatter(NullFormatter())
        for axis in axes[:, column]:
            axis.axvline(scale * REFERENCE[factor], color=MUTED, linewidth=0.8, linestyle=":")
    axes[0, 0].set_ylabel(r"squared error of $\nu$, $|\hat\nu - \nu|^2 / |\nu|^2$")
    axes[1, 0].set_ylabel("share of loadings")
    axes[0, 1].legend(fontsize=7)
    axes[1, 1].legend(fontsize=7)
    note(
        figure,
        f"Lines: medians, bands: quartiles over {datasets} data sets of {len(OF_RANK_TWO)} kinds of network for each value. "
        "Dotted: the reference, at which the other quantities are held. Where nu is odd by assumption (tanh, no bias, no "
        "input) an even part is invisible and not counted; the spread of n about nu is never determined.",
    )
    return figure


def main(arguments=None) -> None:
    parser = arguments_of(__doc__, options=False)
    parser.add_argument("--datasets", type=int, default=12, help="data sets for each value")
    parser.add_argument("--seed", type=int, default=0, help="of the first data set")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args(arguments)
    console = Console(width=150)
    seeds = range(arguments.seed, arguments.seed + arguments.datasets)
    settings = [Setting(factor, value, seed) for factor, values in VARIED.items() for value in values for seed in seeds]
    results = collect(run, settings, arguments.workers, console)
    rows = quartiles(results)
    show(rows, console)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "identifiability.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "identifiability.json").write_text(json.dumps({"quartiles": rows, "results": results}, indent=1))
    with styled():
        save(draw(rows, arguments.datasets), out, "identifiability", console)


if __name__ == "__main__":
    raise SystemExit(finish(main))
