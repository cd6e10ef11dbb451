"""How often do the posterior intervals of nu hold the truth? Simulated networks, fitted, compared at fresh loadings.

    python experiments/coverage.py --datasets 234 --workers 2 --out coverage.json

Each data set draws a kind of network, its size, the share of neurons recorded, the noise of the latents, the states
visited and the stride. The table gives, for the intervals of 50, 80 and 95 %, the share of held-out loadings (and
dimensions of nu) whose true nu lies inside, the same at the recorded neurons' loadings; how many data sets have less than
80 % of the loadings inside the 95 % intervals, beside how many the posteriors themselves predict (docs/calibration.md); and
the normalised squared error |estimate - nu|^2 / |nu|^2.
Settings of the estimator were chosen on seeds from 900000 on; seeds below that serve for reports. The kinds in UNSEEN
and KEPT took no part in any choice.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # data sets run side by side

import torch
from marked_pages import markdown_table, rewrite
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from scipy.stats import kstest
from torch import Tensor

from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.data.folds import Fold
from connector.dynamics import Network, potentials
from connector.dynamics import activation as get_activation
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.report.determined import OPEN
from connector.types import Latents, Loadings, Recording

LEVELS = (0.5, 0.8, 0.95)
ALPHA = 0.1
RATE_NOISE = 0.3
COUNT_SCALE = 0.1  # expected spikes in a bin where softplus is 1: 10 Hz, bins of 10 ms
READOUT_OFFSET = 1.0  # of spikes of networks without a bias: neurons without input fire at 13 Hz


@dataclass
class Population:
    """p(l, n): a mixture of Gaussians (or one Student t) over stacked loadings (m, b, d), and n given l.

    weights (C,), means (C, P), sds (C,): of the components of p(l). dof: of the Student t, 0 for normal.
    function: l (K, P) -> nu (K, R); or n_means (C, R): n depends on l through the component only.
    """

    rank: int
    weights: Tensor
    means: Tensor
    sds: Tensor
    function: Callable[[Tensor], Tensor] | None = None
    n_means: Tensor | None = None
    spread: float = 0.5
    dof: int = 0
    activation: str = "tanh"
    n_inputs: int = 0
    has_bias: bool = False

    def sample(self, k: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        component = torch.multinomial(self.weights, k, replacement=True, generator=g)
        x = randn(g, k, self.means.shape[1])
        if self.dof:
            x = x / (randn(g, k, self.dof).square().mean(1, keepdim=True)).sqrt()
        rows = self.means[component] + self.sds[component][:, None] * x
        mean = self.n_means[component] if self.function is None else self.function(rows)
        return rows, mean + self.spread * randn(g, k, self.rank)

    def log_parts(self, rows: Tensor) -> Tensor:
        """log of p(component, l) up to a constant, (K, C)."""
        dim = rows.shape[1]
        squared = ((rows[:, None] - self.means) / self.sds[:, None]).square().sum(2)
        if self.dof:
            shape = -0.5 * (self.dof + dim) * torch.log1p(squared / self.dof)
        else:
            shape = -0.5 * squared
        return shape - dim * self.sds.log() + self.weights.log()

    def nu(self, rows: Tensor) -> Tensor:
        if self.function is not None:
            return self.function(rows)
        return torch.softmax(self.log_parts(rows), 1) @ self.n_means

    def estimand(self, rows: Tensor) -> Tensor:
        """What the dynamics show of nu: its mean folded over the sign of m where phi is odd, without bias or input."""
        if not get_activation(self.activation).odd or self.has_bias or self.n_inputs:
            return self.nu(rows)
        ratio = torch.logsumexp(self.log_parts(rows), 1) - torch.logsumexp(self.log_parts(-rows), 1)
        share = torch.sigmoid(ratio)[:, None]
        return share * self.nu(rows) - (1 - share) * self.nu(-rows)


def randn(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def uniform(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=g))


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def gaussian(g: torch.Generator, function, rank: int = 2, dim: int | None = None, **options) -> Population:
    dim = rank if dim is None else dim
    one = torch.ones(1, dtype=torch.float64)
    return Population(rank, one, torch.zeros(1, dim).double(), one, function, **options)


def linear(s: Tensor):
    return lambda rows: rows[:, : s.shape[1]] @ s.T


def turn(angle: float) -> Tensor:
    return matrix([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def ring(g):
    return gaussian(g, linear(uniform(g, 1.2, 2.0) * torch.eye(2).double()), spread=uniform(g, 0.2, 1.2))


def limit_cycle(g):
    return gaussian(g, linear(uniform(g, 1.4, 2.2) * turn(uniform(g, 0.2, 0.8))), spread=uniform(g, 0.2, 1.2))


def bistable(g):
    s = matrix([[1.2, 0.8], [0.0, 1.6]]) * uniform(g, 0.9, 1.2)
    return gaussian(g, linear(turn(uniform(g, 0, 6)) @ s @ turn(uniform(g, 0, 0.5))), spread=uniform(g, 0.2, 1.2))


def any_linear(g):
    return gaussian(g, linear(1.2 * randn(g, 2, 2)), spread=uniform(g, 0.2, 1.2))


def _quad(g, weights):
    signs = matrix([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    sds = 0.5 * torch.ones(4).double()
    return Population(2, weights, 0.87 * signs, sds, n_means=uniform(g, 2.0, 2.6) * signs, spread=0.5)


def quadstable(g):
    return _quad(g, torch.full((4,), 0.25).double())


def unequal_mixture(g):
    weights = 0.1 + torch.rand(4, generator=g, dtype=torch.float64)
    return _quad(g, weights / weights.sum())


def hopfield(g):
    pairs = 3 + int(torch.randint(2, (1,), generator=g))
    angles = torch.arange(2 * pairs).double() * math.pi / pairs + uniform(g, 0, 3)
    ways = torch.stack([angles.cos(), angles.sin()], 1)
    weights = torch.full((2 * pairs,), 0.5 / pairs).double()
    sds = 0.25 * torch.ones(2 * pairs).double()
    return Population(2, weights, 1.3 * ways, sds, n_means=uniform(g, 2.0, 3.0) * ways, spread=0.4)


def heavy_tailed(g):
    s = matrix([[1.6, 0.0], [0.0, 0.8]])
    return gaussian(g, linear(turn(uniform(g, 0, 3)) @ s), dof=3 + int(torch.randint(3, (1,), generator=g)), spread=0.5)


def rank_one(g):
    gain, bend = uniform(g, 1.2, 2.5), uniform(g, 0, 1)
    return gaussian(g, lambda rows: gain * rows + bend * torch.tanh(2 * rows), rank=1, spread=uniform(g, 0.2, 1))


def rank_three(g):
    return gaussian(g, linear(1.3 * torch.eye(3).double() + 0.5 * randn(g, 3, 3)), rank=3, spread=0.5)


def tanh_nu(g):
    gain, width, s = uniform(g, 1.5, 3), uniform(g, 0.4, 1), turn(uniform(g, -0.5, 0.5))
    return gaussian(g, lambda rows: gain * torch.tanh(rows @ s.T / width), spread=uniform(g, 0.2, 1))


def quadratic_odd_nu(g):
    s, bend = 1.2 * turn(uniform(g, -0.5, 0.5)), uniform(g, 0.2, 0.8)
    return gaussian(g, lambda rows: rows @ s.T + bend * rows * rows.abs(), spread=uniform(g, 0.2, 1))


def softplus_bias_input(g):
    s, curve = randn(g, 2, 4), randn(g, 2, 4)
    s[:, :2] += torch.eye(2)

    def function(rows):
        return rows @ s.T + 0.5 * torch.tanh(rows @ curve.T)

    return gaussian(g, function, dim=4, activation="softplus", n_inputs=1, has_bias=True, spread=0.5)


def gated_spiral(g):
    """Unseen: neurons of small and of large loading turn the state in opposite senses."""
    near, far = 2.0 * turn(uniform(g, 0.3, 0.9)), 2.0 * turn(-uniform(g, 0.3, 0.9))

    def function(rows):
        gate = torch.sigmoid(4 * (rows.square().sum(1, keepdim=True) - 1.5))
        return (1 - gate) * rows @ near.T + gate * rows @ far.T

    return gaussian(g, function, spread=0.5)


def circle(g):
    """Unseen: loadings on a ring, nu with three and five lobes."""
    angles = torch.arange(12).double() * math.pi / 6
    means = 1.4 * torch.stack([angles.cos(), angles.sin()], 1)
    lobes = 1 + 2 * int(torch.randint(1, 3, (1,), generator=g))

    def function(rows):
        angle = torch.atan2(rows[:, 1], rows[:, 0])
        return 1.6 * rows + 0.8 * torch.stack([(lobes * angle).cos(), (lobes * angle).sin()], 1)

    return Population(2, torch.full((12,), 1 / 12).double(), means, 0.3 * torch.ones(12).double(), function)


def sigmoid_clusters(g):
    """Unseen: sigmoid neurons with a bias in three clusters."""
    means = torch.cat([1.5 * randn(g, 3, 2), 0.5 * randn(g, 3, 1)], 1)
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    sds = 0.6 * torch.ones(3).double()
    return Population(
        2, weights, means, sds, n_means=2.5 * randn(g, 3, 2), activation="sigmoid", has_bias=True, spread=0.4
    )


def step_nu(g):
    """Kept: nu jumps where one direction of the loadings changes its sign, beside a linear part."""
    direction, height = turn(uniform(g, 0, 6))[0], 0.8 + 1.2 * torch.rand(2, generator=g, dtype=torch.float64)

    def function(rows):
        return 1.3 * rows + torch.sign(rows @ direction)[:, None] * height

    return gaussian(g, function, spread=uniform(g, 0.2, 1))


def wave_nu(g):
    """Kept: nu waves across uniform-like loadings of neurons with a bias."""
    means = torch.cat([1.2 * randn(g, 6, 2), 0.4 * randn(g, 6, 1)], 1)
    way, phase = turn(uniform(g, 0, 6)) * uniform(g, 1.0, 2.0), uniform(g, 0, 3)

    def function(rows):
        return 0.8 * rows[:, :2] + 1.5 * torch.sin(rows[:, :2] @ way + phase)

    weights, sds = torch.full((6,), 1 / 6).double(), 0.7 * torch.ones(6).double()
    return Population(2, weights, means, sds, function, has_bias=True, spread=0.4)


def bump_softplus(g):
    """Kept: softplus neurons with a bias; those near one loading drive strongly, the others linearly."""
    centre, s = randn(g, 3), 0.7 * turn(uniform(g, -0.5, 0.5))
    height, width = 2.0 * randn(g, 2), uniform(g, 0.4, 1.0)

    def function(rows):
        near = torch.exp(-0.5 * (rows - centre).square().sum(1, keepdim=True) / width**2)
        return rows[:, :2] @ s.T + near * height

    return gaussian(g, function, dim=3, activation="softplus", has_bias=True, spread=uniform(g, 0.2, 0.8))


def heavy_cubic(g):
    """Kept: heavy-tailed loadings, nu of which a cube saturates."""
    s = 1.4 * turn(uniform(g, -0.6, 0.6))

    def function(rows):
        x = rows @ s.T
        return x + 0.6 * x**3 / (1 + x.square().sum(1, keepdim=True))

    return gaussian(g, function, dof=4, spread=0.5)


KINDS = {
    f.__name__: f
    for f in (
        ring,
        limit_cycle,
        bistable,
        any_linear,
        quadstable,
        unequal_mixture,
        hopfield,
        heavy_tailed,
        rank_one,
        rank_three,
        tanh_nu,
        quadratic_odd_nu,
        softplus_bias_input,
    )
}
UNSEEN = {f.__name__: f for f in (gated_spiral, circle, sigmoid_clusters)}
KEPT = {f.__name__: f for f in (step_nu, wave_nu, bump_softplus, heavy_cubic)}
N_FRESH, N_DRAWS = 200, 200  # loadings at which, and joint draws by which, an estimate is judged
LOW = 0.8  # coverage at level .95 below which a data set counts as one that the intervals failed


@dataclass(frozen=True)
class Task:
    kind: str
    seed: int
    loadings_noise: float = 0.0
    propagate: bool = True
    rate_noise: float | None = None
    spikes: bool = False
    options: tuple[tuple[str, object], ...] = ()


def pick(g: torch.Generator, values: tuple):
    return values[int(torch.randint(len(values), (1,), generator=g))]


def simulate(population: Population, network: Network, visited: str, noise: float, stride: int, g) -> Latents:
    rank = population.rank
    n_steps = 100
    if visited == "grid":
        axis = torch.linspace(-2.4, 2.4, {1: 40, 2: 20, 3: 7}[rank], dtype=torch.float64)
        z0 = torch.cartesian_prod(*[axis] * rank).reshape(-1, rank)
    elif visited == "twenty":
        z0 = 4.8 * torch.rand(20, rank, generator=g, dtype=torch.float64) - 2.4
    else:
        end = network.simulate(randn(g, 1, rank), 300, torch.zeros(300, population.n_inputs))[0, -1]
        z0 = end + 0.5 * randn(g, 60, rank)
    u = None
    held = 3 * 5  # steps for which an input stays: whole recorded intervals at any stride here
    if population.n_inputs:
        u = randn(g, len(z0), n_steps // held + 1, population.n_inputs).repeat_interleave(held, 1)[:, :n_steps]
    z = network.simulate(z0, n_steps, u)
    samples = n_steps // stride
    z = z[:, : samples * stride : stride]
    z = z + noise * randn(g, *z.shape)
    if u is not None:
        u = u[:, : samples * stride : stride]
    return Latents(z, torch.full((len(z),), samples), ALPHA * stride, u)


def infer(latents: Latents, rows: Tensor, population: Population, task: Task, shape, g: torch.Generator):
    """Latents, loadings and their covariances as the lrRNN stage finds them in noisy rates or spikes, in the true gauge.

    Spikes are Poisson counts of softplus neurons, whatever phi of the network; their offset is the bias of a network that
    has one.
    """
    every = Loadings.unstack(rows, *shape)
    rank, n_inputs, has_bias = shape
    h, trials = potentials(every, latents.z, latents.inputs), torch.arange(len(latents.z))
    if task.spikes:
        activation, has_bias = "softplus", True
        h = h if shape[2] else h + READOUT_OFFSET
        activity = torch.poisson(COUNT_SCALE * get_activation(activation)(h), generator=g) / COUNT_SCALE
    else:
        activation = population.activation
        rates = get_activation(activation)(h)
        activity = rates + task.rate_noise * randn(g, *rates.shape)
    recording = Recording(activity.float(), "rates", latents.lengths, latents.alpha, activation, inputs=latents.inputs)
    count_scale = COUNT_SCALE if task.spikes else None
    model = RateModel(len(rows), rank, n_inputs, has_bias, latents.alpha, activation, count_scale=count_scale)
    model.initialise(recording)
    found = fitted_dynamics(model, recording, Fold(trials, trials[:0], trials[:0]))
    found = found.moved(Gauge.fit(found.latents.z, latents.z, latents.lengths, affine=has_bias))
    if has_bias and not shape[2]:  # the offset of the spikes is no bias of the network
        found = found.without_bias()
    return replace(latents, z=found.latents.z), found.loadings.stack(), found.loadings_covariance, found.readings


def judged(model, joint: Draws, rows: Tensor, truth: Tensor, errors: Tensor | None = None) -> dict:
    """Intervals and joint draws of nu at rows (K, P), known up to ``errors`` (K, P, P), beside the true nu (K, R).

    predicted_low: the share of joint draws that the 95 % intervals would hold in less than ``LOW`` of the loadings.
    ranks: of the truth among the draws, in (0, 1): by its distance from the estimate, and along a random direction.
    """
    inside, estimate = {}, model.mean(rows)
    for level in LEVELS:
        low, high = model.interval(rows, level) if errors is None else model.interval(rows, level, errors)
        inside[str(level)] = float(((low <= truth) & (truth <= high)).double().mean())
    claimed = (low > 0) | (high < 0)
    draws = joint(rows)
    held = ((low <= draws) & (draws <= high)).double().mean((1, 2))
    scale = (draws - estimate).square().mean(0).sqrt().clamp_min(1e-12)
    direction = randn(torch.Generator().manual_seed(0), *truth.shape) / scale
    statistics_of = [
        lambda nu: ((nu - estimate) / scale).square().sum((-2, -1)),
        lambda nu: (nu * direction).sum((-2, -1)),
    ]
    return {
        "inside": inside,
        "error": float((estimate - truth).square().sum() / truth.square().sum()),
        "width": float((high - low).median() / truth.square().mean().sqrt()),
        "claimed": int(claimed.sum()),
        "wrong": int((claimed & (truth * (low + high) < 0)).sum()),
        "predicted_low": float((held < LOW).double().mean()),
        "ranks": [float(((of(draws) < of(truth)).sum() + 0.5) / (N_DRAWS + 1)) for of in statistics_of],
    }


def attempted(task: Task) -> dict:
    """:func:`run`, or what a refused fit said."""
    try:
        return run(task)
    except UserError as error:
        return {"refused": str(error), "kind": task.kind, "seed": task.seed}


def run(task: Task) -> dict:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(task.seed)
    population = (KINDS | UNSEEN | KEPT)[task.kind](g)
    k = pick(g, (1000,) if task.spikes else (300, 1000))
    fraction, noise = pick(g, (1.0, 0.5, 0.3 if task.spikes else 0.1)), pick(g, (0.0, 0.01, 0.03))
    visited, stride = pick(g, ("grid", "twenty", "near")), pick(g, (1, 3))
    rows, n = population.sample(k, g)
    shape = (population.rank, population.n_inputs, population.has_bias)
    every = Loadings.unstack(rows, *shape)
    network = Network(every.m, n, every.b, every.d, alpha=ALPHA, activation=population.activation)
    latents = simulate(population, network, visited, noise, stride, g)
    recorded = rows[: round(fraction * k)]
    true_rows = recorded
    covariance = readings = None
    start = time.process_time()
    if task.rate_noise is not None or task.spikes:
        latents, recorded, covariance, readings = infer(latents, recorded, population, task, shape, g)
    inference_seconds = time.process_time() - start
    if task.loadings_noise:
        recorded = recorded + task.loadings_noise * randn(g, *recorded.shape)
        if task.propagate:
            covariance = task.loadings_noise**2 * torch.eye(rows.shape[1]).double().expand(len(recorded), -1, -1)
    start = time.process_time()
    model = fit_trajectories(
        latents,
        Loadings.unstack(recorded, *shape),
        activation=population.activation,
        stride=stride,
        recorded_fraction=fraction,
        loadings_covariance=covariance,
        observed=readings,
        settings=TrajectorySettings(**dict(task.options)),
    )
    seconds = time.process_time() - start
    fresh, _ = population.sample(N_FRESH, g)
    some, joint = slice(0, None, max(1, len(recorded) // N_FRESH)), Draws(model, N_DRAWS, seed=1)
    errors = None if covariance is None else covariance[some]
    return {
        **judged(model, joint, fresh, population.estimand(fresh)),
        "recorded": judged(model, joint, recorded[some], population.estimand(true_rows[some]), errors),
        "kind": task.kind,
        "seed": task.seed,
        "loadings_noise": task.loadings_noise,
        "propagated": covariance is not None,
        "rate_noise": task.rate_noise,
        "spikes": task.spikes,
        "inference_seconds": inference_seconds,
        "n_neurons": k,
        "recorded_fraction": fraction,
        "noise": noise,
        "visited": visited,
        "stride": stride,
        "predicted_error": model.predicted_error,
        "seconds": seconds,
        "summary": model.summary,
    }


def collect(run: Callable[[object], dict], tasks: list, workers: int, console: Console) -> list[dict]:
    """``run`` of every task, in order, in ``workers`` processes under a progress bar; ``run`` is a module's function."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(tasks))
        results = []
        if workers <= 1:
            for task in tasks:
                results.append(run(task))
                progress.advance(bar)
            return results
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for result in pool.imap(run, tasks):
                results.append(result)
                progress.advance(bar)
        return results


def summarise(results: list[dict]) -> dict:
    """Means over data sets; at fresh loadings, and at ``recorded`` ones known up to their errors where they have any."""
    found = {"n": len(results)}
    for where, of in (("", results), ("recorded_", [r["recorded"] for r in results])):
        found |= {where + level: statistics.fmean(r["inside"][level] for r in of) for level in map(str, LEVELS)}
        found[f"{where}low"] = sum(r["inside"]["0.95"] < LOW for r in of)
        found[f"{where}predicted_low"] = sum(r["predicted_low"] for r in of)
        found[f"{where}claimed"], found[f"{where}wrong"] = (sum(r[k] for r in of) for k in ("claimed", "wrong"))
    errors = [r["error"] for r in results]
    return found | {
        "median_error": statistics.median(errors),
        "mean_error": statistics.fmean(errors),
        "median_width": statistics.median(r["width"] for r in results),
        "ranks": [[r["ranks"][i] for r in results] for i in range(2)],
        "median_seconds": statistics.median(r["seconds"] for r in results),
        "max_seconds": max(r["seconds"] for r in results),
    }


HEADS = (
    "",
    "sets",
    "50 %",
    "80 %",
    "95 %",
    "below 80 %: sets (predicted)",
    "recorded: 50 %",
    "80 %",
    "95 %",
    "below 80 %: sets",
    "signs wrong / claimed",
    "error, median",
    "ranks, p",
    "CPU s",
)


def cells(name: str, row: dict) -> list[str]:
    """A row of the table under ``HEADS``; ranks, p: of Kolmogorov and Smirnov's test that the ranks are uniform."""
    coverage = [[f"{row[where + level]:.3f}" for level in map(str, LEVELS)] for where in ("", "recorded_")]
    uniform = " ".join(f"{kstest(ranks, 'uniform').pvalue:.2f}" for ranks in row["ranks"])
    return [
        name,
        str(row["n"]),
        *coverage[0],
        f"{row['low']} ({row['predicted_low']:.1f})",
        *coverage[1],
        str(row["recorded_low"]),
        f"{row['wrong']} / {row['claimed']}",
        f"{row['median_error']:.4f}",
        uniform,
        f"{row['median_seconds']:.1f}",
    ]


def show(title: str, groups: dict[str, list[dict]], console: Console) -> dict:
    table = Table(title=title)
    for head in HEADS:
        table.add_column(head)
    found = {}
    for name, results in groups.items():
        if results:
            found[name] = summarise(results)
            table.add_row(*cells(name, found[name]))
    console.print(table)
    return found


def write_page(page: Path, tables: dict) -> None:
    """Put the table of all kinds, below the command that made it, on a page."""
    command = " ".join(["python experiments/coverage.py", *(x for x in sys.argv[1:] if not x.startswith("/"))])
    rows = [cells(name, row) for name, row in tables.items()]
    rewrite(page, "rates", f"`{command}`\n\n{markdown_table(HEADS, rows)}")


def by(results: list[dict], key: str) -> dict[str, list[dict]]:
    values = sorted({r[key] for r in results}, key=str)
    return {f"{key} {value}": [r for r in results if r[key] == value] for value in values}


def _is_cautioned(summary: dict) -> bool:
    """Whether the report of such a fit cautions its reader."""
    return bool(summary["warnings"]) or not summary["converged"] or summary["predicted_error"] > OPEN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=234, help="of the known kinds, evenly")
    parser.add_argument("--unseen", type=int, default=54, help="data sets of the kinds kept out of all choices")
    parser.add_argument(
        "--uncertain",
        type=int,
        default=0,
        help="data sets with errors of sd .05 and .2 in the loadings, each with and without their covariance given",
    )
    parser.add_argument(
        "--inferred",
        type=int,
        default=0,
        help="data sets whose latents and loadings are inferred from rates with noise of sd .3",
    )
    parser.add_argument(
        "--spikes",
        type=int,
        default=0,
        help="data sets whose latents and loadings are inferred from Poisson spikes (300 to 1000 neurons)",
    )
    parser.add_argument("--kept", type=int, default=0, help="data sets of the kinds that no choice has seen")
    parser.add_argument("--page", type=Path, help="Markdown file whose table of all kinds to replace")
    parser.add_argument("--seed", type=int, default=0, help="of the first data set")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="coverage.json")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of fit_trajectories")
    arguments = parser.parse_args()
    options = tuple((name, json.loads(value)) for name, value in (o.split("=", 1) for o in arguments.option))

    def tasks(kinds, count, first):
        names = list(kinds)
        return [Task(names[i % len(names)], first + i, options=options) for i in range(count)]

    groups = {
        "known kinds": tasks(KINDS, arguments.datasets, arguments.seed),
        "unseen kinds": tasks(UNSEEN, arguments.unseen, arguments.seed + 100_000),
        "kept kinds": tasks(KEPT, arguments.kept, arguments.seed + 500_000),
    }
    uncertain = tasks(KINDS, arguments.uncertain, arguments.seed + 200_000)
    for noise in (0.05, 0.2):
        for propagate in (True, False):
            groups[f"errors of sd {noise} in the loadings, {'propagated' if propagate else 'ignored'}"] = [
                replace(task, loadings_noise=noise, propagate=propagate) for task in uncertain
            ]
    inferred = tasks(KINDS, arguments.inferred, arguments.seed + 300_000)
    groups["inferred from rates with noise of sd .3"] = [replace(task, rate_noise=RATE_NOISE) for task in inferred]
    spikes = tasks(KINDS, arguments.spikes, arguments.seed + 400_000)
    groups["inferred from Poisson spikes"] = [replace(task, spikes=True) for task in spikes]
    console = Console(width=180)
    results = iter(collect(attempted, [task for of in groups.values() for task in of], arguments.workers, console))
    found = {name: [next(results) for _ in of] for name, of in groups.items() if of}
    for refused in [r for of in found.values() for r in of if "refused" in r]:
        console.print(f"left out, the fit was refused: {refused['kind']}, seed {refused['seed']}: {refused['refused']}")
    found = {name: [r for r in of if "refused" not in r] for name, of in found.items()}
    exact = [r for name in ("known kinds", "unseen kinds", "kept kinds") for r in found.get(name, [])]
    tables = show("coverage of the intervals of nu", found, console)
    conditions = {}
    for key in ("kind", "n_neurons", "recorded_fraction", "noise", "visited", "stride"):
        conditions |= by(exact, key)
    of_kinds = show("by condition, latents and loadings known", conditions, console)
    warned = [r for r in exact if _is_cautioned(r["summary"])]
    quiet = [r for r in exact if not _is_cautioned(r["summary"])]
    of_cautions = show("by cautions of the report", {"no caution": quiet, "a caution": warned}, console)
    with open(arguments.out, "w") as file:
        json.dump({"tables": tables | of_kinds | of_cautions, "results": found}, file, indent=1)
    if arguments.page:
        write_page(arguments.page, tables | {name: x for name, x in of_kinds.items() if name.startswith("kind ")})


if __name__ == "__main__":
    main()
