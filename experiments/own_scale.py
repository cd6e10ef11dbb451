"""What do gains, offsets and a slow indicator cost? The same teachers with and without them, fitted, compared to the truth.

    python experiments/own_scale.py --datasets 26 --workers 2 --out own_scale.json

Rates of a part of each network's neurons, with noise of a tenth of their standard deviation, are fitted as they are; with a gain
(log-normal, sd .5) and an offset (sd 2) of each neuron drawn at random; behind an indicator that decays in .5 s at 30 samples
a second; and with all of these. The table gives the ratio of errors to those of the rates as they are, median and quartiles over
teachers, and the share of teachers below 1.5: of nu at fresh loadings (root mean square), of the mean field that nu gives on the
states visited, and of the field of the fitted low-rank RNN itself. Of relu a gain is the length of a loading, so that its teacher
has offsets alone. The kinds in UNSEEN and KEPT took no part in any choice; the seeds of reports lie below 900000.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # data sets run side by side

import torch
from coverage import KEPT, KINDS, UNSEEN, Population, collect, gaussian, randn, turn, uniform
from rich.console import Console
from rich.table import Table
from torch import Tensor

from connector.connectivity.nu.trajectories import fit_trajectories
from connector.data.folds import Fold
from connector.data.indicator import with_indicator, without_indicator
from connector.dynamics import Network, potentials
from connector.dynamics import activation as get_activation
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.indicated import behind_indicator
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.lrrnn.scales import on_own_scale
from connector.types import Latents, Loadings, Recording

ALPHA, BIN_S, DECAY_S = 0.1, 1 / 30, 0.5
NEURONS, RECORDED, TRIALS, STEPS = 300, 200, 60, 60
NOISE, SD_GAIN, SD_OFFSET = 0.1, 0.5, 2.0
ENOUGH = 1.5
WAYS = ("scale", "indicator", "both")
MEASURES = {"nu": "nu", "field": "mean field of nu", "own_field": "field of the fitted RNN"}


def relu_bias(g):
    s = 1.2 * turn(uniform(g, -0.5, 0.5))
    return gaussian(g, lambda rows: rows[:, :2] @ s.T, dim=3, activation="relu", has_bias=True, spread=0.5)


def softplus_bias(g):
    s = 1.2 * turn(uniform(g, -0.5, 0.5))
    return gaussian(g, lambda rows: rows[:, :2] @ s.T, dim=3, activation="softplus", has_bias=True, spread=0.5)


def tanh_bias(g):
    s = 1.6 * turn(uniform(g, -0.5, 0.5))
    return gaussian(g, lambda rows: rows[:, :2] @ s.T, dim=3, has_bias=True, spread=0.5)


OWN = {f.__name__: f for f in (relu_bias, softplus_bias, tanh_bias)}
TUNED = ("quadstable", "limit_cycle", "rank_one", "rank_three", "tanh_nu", "softplus_bias_input", *OWN)
FRESH = ("gated_spiral", "circle", "sigmoid_clusters", *KEPT)


@dataclass(frozen=True)
class Task:
    kind: str
    seed: int


@dataclass(frozen=True)
class Case:
    """A network of a population with its states, and the stacked loadings of those of its neurons that are recorded."""

    population: Population
    network: Network
    latents: Latents
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int, bool]:
        return self.population.rank, self.population.n_inputs, self.population.has_bias


def simulated(kind: str, g: torch.Generator) -> Case:
    population = (KINDS | UNSEEN | KEPT | OWN)[kind](g)
    rows, n = population.sample(NEURONS, g)
    every = Loadings.unstack(rows, population.rank, population.n_inputs, population.has_bias)
    network = Network(every.m, n, every.b, every.d, alpha=ALPHA, activation=population.activation)
    z0 = 4.8 * torch.rand(TRIALS, population.rank, generator=g, dtype=torch.float64) - 2.4
    u = None
    if population.n_inputs:
        u = randn(g, TRIALS, STEPS // 15 + 1, population.n_inputs).repeat_interleave(15, 1)[:, :STEPS]
    z = network.simulate(z0, STEPS, u)
    return Case(population, network, Latents(z, torch.full((TRIALS,), STEPS), ALPHA, u), rows[:RECORDED])


def errors(case: Case, recording: Recording) -> dict[str, float]:
    """Of nu and of the field, from a recording in units of phi."""
    (rank, n_inputs, has_bias), population = case.shape, case.population
    late = STEPS - recording.n_steps  # behind an indicator a trial begins later
    inputs = None if case.latents.inputs is None else case.latents.inputs[:, late:]
    latents = replace(case.latents, z=case.latents.z[:, late:], lengths=recording.lengths, inputs=inputs)
    model = RateModel(RECORDED, rank, n_inputs, has_bias, ALPHA, population.activation)
    model.initialise(recording)
    trials = torch.arange(TRIALS)
    fit = fitted_dynamics(model, recording, Fold(trials, trials[:0], trials[:0]))
    fit = fit if recording.shown is None else behind_indicator(fit, recording)
    fit = fit.moved(Gauge.fit(fit.latents.z, latents.z, latents.lengths, affine=has_bias))
    mean = fit_trajectories(
        replace(latents, z=fit.latents.z),
        fit.loadings,
        activation=population.activation,
        recorded_fraction=RECORDED / NEURONS,
        loadings_covariance=fit.loadings_covariance,
        observed=fit.readings,
        decay=fit.decay,
    )
    g = torch.Generator().manual_seed(1)
    fresh, _ = population.sample(4000, g)
    truth, found = population.estimand(fresh), mean.mean(fresh)
    z, u = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (latents.z, latents.inputs))
    some = torch.randperm(len(z), generator=g)[:400]
    z, u = z[some], None if u is None else u[some]
    phi = get_activation(population.activation)(potentials(Loadings.unstack(fresh, *case.shape), z, u)) / len(fresh)
    field, own = case.network.drive(z, u) - z, fit.network.double().drive(z, u) - z
    return {
        "nu": float((found - truth).norm() / truth.norm()),
        "field": float((phi @ (found - truth)).norm() / (phi @ truth - z).norm()),
        "own_field": float((own - field).norm() / field.norm()),
    }


def run(task: Task) -> dict:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(task.seed)
    case = simulated(task.kind, g)
    (rank, _, has_bias), phi = case.shape, case.population.activation
    rates = get_activation(phi)(
        potentials(Loadings.unstack(case.rows, *case.shape), case.latents.z, case.latents.inputs)
    )
    noise = NOISE * float(rates.std()) * randn(g, *rates.shape)
    gain, offset = (SD_GAIN * randn(g, RECORDED)).exp(), SD_OFFSET * randn(g, RECORDED)
    gain = torch.ones_like(gain) if phi == "relu" else gain
    inputs = None if case.latents.inputs is None else case.latents.inputs.float()

    def recorded(activity: Tensor) -> Recording:
        return Recording(
            activity.float(), "rates", case.latents.lengths, ALPHA, phi, inputs=inputs, bin_s=BIN_S
        )  # fmt: skip

    def behind(x: Tensor) -> Recording:
        shown = with_indicator(x, math.exp(-BIN_S / DECAY_S)) + noise
        return without_indicator(recorded(shown), DECAY_S, torch.arange(TRIALS))

    def scaled(recording: Recording) -> Recording:
        scale = on_own_scale(recording, rank, has_bias, "both")
        return recording.on_scale(replace(scale, gain=gain) if phi == "relu" else scale)  # in units of the truth

    start, found = time.process_time(), {"kind": task.kind, "seed": task.seed}
    own = gain * rates + offset
    ways = {
        "plain": lambda: recorded(rates + noise),
        "scale": lambda: scaled(recorded(own + noise)),
        "indicator": lambda: behind(rates),
        "both": lambda: scaled(behind(own)),
    }
    for name, way in ways.items():
        try:
            found[name] = errors(case, way())
        except (UserError, torch.linalg.LinAlgError) as error:
            found[name] = {"refused": str(error)}
    return found | {"seconds": time.process_time() - start}


def ratios(rows: list[dict], way: str, measure: str) -> Tensor:
    pairs = [(row[way], row["plain"]) for row in rows if measure in row[way] and measure in row["plain"]]
    return torch.tensor([after[measure] / before[measure] for after, before in pairs], dtype=torch.float64)


def table(rows: list[dict], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in (
        "beside the rates as they are",
        "error of",
        "median ratio",
        "quartiles",
        f"below {ENOUGH:g}",
        "teachers",
    ):
        shown.add_column(name, justify="left" if name in ("error of",) else "right", no_wrap=True)
    words = {"scale": "gains and offsets", "indicator": "indicator", "both": "gains, offsets, indicator"}
    for way in WAYS:
        for measure, what in MEASURES.items():
            found = ratios(rows, way, measure)
            if not len(found):
                continue
            low, middle, high = torch.quantile(found, torch.tensor([0.25, 0.5, 0.75], dtype=found.dtype)).tolist()
            share = f"{float((found <= ENOUGH).double().mean()):.2f}"
            shown.add_row(words[way], what, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", share, str(len(found)))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=26)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join((*TUNED, *FRESH)), help="names of teachers, joined by commas")
    parser.add_argument("--out", help="a json file for the rows")
    parsed = parser.parse_args()
    console, kinds = Console(width=120), parsed.kinds.split(",")
    tasks = [Task(kinds[i % len(kinds)], parsed.first_seed + i) for i in range(parsed.datasets)]
    rows = collect(run, tasks, parsed.workers, console)
    if parsed.out:
        with open(parsed.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    for names, title in ((TUNED, "teachers looked at while this was made"), (FRESH, "teachers kept back")):
        some = [row for row in rows if row["kind"] in names]
        if some:
            console.print(table(some, f"{len(some)} {title}"))
    console.print(f"{sum(row['seconds'] for row in rows) / len(rows):.0f} CPU s a teacher, four fits each")


if __name__ == "__main__":
    main()
