"""Is each wrong assumption of the model called by its name? Simulated rates, each with one thing other than is assumed.

    python experiments/model_checks.py --repeats 10 --workers 2 --out model_checks.json
    python experiments/model_checks.py --kept --repeats 6          # kinds that took no part in any choice

Each recording draws one of the four attractor systems (of one thousand seeds, so with other loadings and weights each time),
its noise, and 30, 100 or 300 of its 500 neurons. The table has a row for each thing that is wrong and a column for each cause
that the report can name; the first row is of recordings as the model assumes them. Thresholds were chosen on seeds below
100; others serve for reports.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")  # recordings run side by side

import torch
from coverage import KEPT, KINDS, UNSEEN, collect, pick, randn
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from connector.analysis.model_checks import check_model
from connector.data.folds import fold
from connector.dynamics import ACTIVATIONS, Network, potentials
from connector.errors import UserError
from connector.lrrnn.closed_form import bias_supported
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.report.causes import ACTIVATION, activations_as_good
from connector.types import Loadings, Recording

N_NETWORK, ALPHA, TRIALS, STEPS = 500, 0.1, 120, 60
NOISES, NEURONS = (0.0, 0.1, 0.3, 0.8), (30, 100, 100, 300)  # sd of the noise over that of the rates; neurons recorded
SYSTEMS = ("ring", "limit_cycle", "bistable", "quadstable")
GAINS = {"sigmoid": 4.0, "softplus": 1.2, "relu": 1.5}  # of n, where a system of tanh neurons gets another activation
PROCESS_NOISE, DRIFT, SMOOTHING = (
    0.1,
    0.4,
    2.0,
)  # sd a step; sd of the loadings' change over half the session; sd in samples
OTHERS = {
    "power": lambda h: 0.3 * torch.nn.functional.softplus(h) ** 2,
    "erf": lambda h: torch.erf(0.886 * h),
    "linear": lambda h: h,
}
# What is wrong -> what the report should name, one of which is right.
WRONG = {
    "none": (),
    "time_step_double": ("time_step",),
    "time_step_half": ("time_step",),
    "phi_sigmoid_for_tanh": ("activation_sigmoid",),
    "phi_softplus_for_relu": ("activation_softplus",),
    "phi_relu_for_softplus": ("activation_relu",),
    "rank": ("rank",),
    "input": ("input",),
    "input_step": ("input",),
    "process_noise": ("process_noise",),
    "smoothing": ("smoothing",),
    "drift": ("drift",),
}
# Kept from all choices: other systems, activations that are not among those offered, two things at once.
KEPT_WRONG = {
    **WRONG,
    "phi_linear_for_tanh": (),
    "phi_erf_for_tanh": (),
    "phi_power_for_softplus": (),
    "drift+smoothing": ("drift", "smoothing"),
    "rank+smoothing": ("rank", "smoothing"),
    "rank+drift": ("rank", "drift"),
    "time_step_half+process_noise": ("time_step", "process_noise"),
}


@dataclass(frozen=True)
class Case:
    wrong: str
    system: str
    noise: float
    neurons: int
    seed: int
    recorded_input: bool = False


def cases(repeats: int, seed: int, kept: bool) -> Iterator[Case]:
    """Recordings of every kind, ``repeats`` of each, and four times as many with nothing wrong."""
    systems = (*KEPT, *UNSEEN) if kept else SYSTEMS
    for number, wrong in enumerate(KEPT_WRONG if kept else WRONG):
        for i in range(repeats * (4 if wrong == "none" else 1)):
            g = torch.Generator().manual_seed(1000 * number + seed + i)
            system = pick(g, tuple(name for name in systems if _fits(name, wrong)))
            if "rank" in wrong and not kept and i % 2:
                system = "rank_three"
            steps = wrong in ("none", "process_noise") or wrong.startswith("time_step")
            yield Case(
                wrong, system, pick(g, NOISES), pick(g, NEURONS), seed + i, steps and pick(g, (True, False, False))
            )


def _fits(system: str, wrong: str) -> bool:
    """Other activations are given to systems of tanh neurons without a bias."""
    population = (KINDS | UNSEEN | KEPT)[system](torch.Generator().manual_seed(0))
    return "phi_" not in wrong or (population.activation == "tanh" and not population.has_bias)


def simulate(case: Case) -> tuple[Recording, int]:
    """The recording as its user states it, and the rank asked for."""
    g, wrong = torch.Generator().manual_seed(case.seed), case.wrong.split("+")
    population = (KINDS | UNSEEN | KEPT)[case.system](g)
    phi, stated = population.activation, population.activation
    for name in wrong:
        if name.startswith("phi_"):
            phi, stated = name.removeprefix("phi_").split("_for_")
    own = phi if phi in ACTIVATIONS else stated
    gain = 1.0 if own == population.activation else GAINS[own]
    rows, n = population.sample(N_NETWORK, g)
    full = Loadings.unstack(rows, population.rank, population.n_inputs, population.has_bias)
    hidden = any(name.startswith("input") for name in wrong)
    b = randn(g, N_NETWORK, 1) if full.b is None and (hidden or case.recorded_input) else full.b
    network = Network(full.m, gain * n, b, full.d, ALPHA, own)
    u = None if b is None else _inputs("input_step" in wrong, g)
    z = _states(network, u, PROCESS_NOISE if "process_noise" in wrong else 0.0, g)
    chosen = torch.randperm(N_NETWORK, generator=g)[: case.neurons]
    h = potentials(network.loadings, z, u)[..., chosen]
    if "drift" in wrong:
        session = torch.linspace(-1, 1, TRIALS, dtype=torch.float64)[:, None, None]
        h = h + session * (z @ (DRIFT * randn(g, case.neurons, population.rank)).T)
    rates = (ACTIVATIONS[phi] if phi in ACTIVATIONS else OTHERS[phi])(h)
    rates = rates + case.noise * rates.std() * randn(g, *rates.shape)
    if "smoothing" in wrong:
        rates = torch.from_numpy(gaussian_filter1d(rates.numpy(), SMOOTHING, axis=1))
    alpha = ALPHA * (2 if "time_step_double" in wrong else 0.5 if "time_step_half" in wrong else 1)
    recording = Recording(
        activity=rates.float(),
        kind="rates",
        lengths=torch.full((TRIALS,), STEPS),
        alpha=alpha,
        activation=stated,
        inputs=None if u is None or hidden else u.float(),
    )
    return recording, population.rank - ("rank" in wrong)


def _inputs(steps: bool, g: torch.Generator) -> Tensor:
    """(trials, time, 1): a step of random size and time in each trial, or a smooth random course."""
    if steps:
        start, size = torch.randint(5, STEPS - 15, (TRIALS, 1), generator=g), randn(g, TRIALS, 1)
        t = torch.arange(STEPS)
        return (((t >= start) & (t < start + 15)) * size)[..., None]
    u = randn(g, TRIALS, STEPS, 1)
    for t in range(1, STEPS):
        u[:, t] = 0.8 * u[:, t - 1] + 0.6 * u[:, t]
    return u


def _states(network: Network, u: Tensor | None, noise: float, g: torch.Generator) -> Tensor:
    z = [1.5 * randn(g, TRIALS, network.rank)]
    for t in range(STEPS - 1):
        z.append(network.step(z[-1], None if u is None else u[:, t]) + noise * randn(g, TRIALS, network.rank))
    return torch.stack(z, 1)


def run(case: Case) -> dict:
    """Fit as the stage lrrnn does, and check."""
    torch.set_num_threads(1)
    recording, rank = simulate(case)
    parts = fold(TRIALS)
    train, started = recording.trials(parts.train), time.process_time()
    try:
        bias = bias_supported(train, rank)
        model = RateModel(recording.n_neurons, rank, recording.n_inputs, bias, recording.alpha, recording.activation)
        model.initialise(train)
        fitted, middle = fitted_dynamics(model, recording, parts), time.process_time()
        found = check_model(recording, fitted)
    except UserError as error:
        return vars(case) | {"found": ["refused"], "error": str(error)}
    seconds, metrics = (middle - started, time.process_time() - middle), found.metrics()
    named = list(found.causes)
    for cause in found.causes:  # the sentence names all activations that describe the rates as well
        if cause.startswith(ACTIVATION):
            named += [ACTIVATION + x for x in activations_as_good(metrics, cause.removeprefix(ACTIVATION))]
    return vars(case) | {"found": sorted(set(named)), "metrics": metrics, "seconds": seconds}


def is_right(found: list[str], wrong: tuple[str, ...]) -> bool:
    """All that is wrong is named and nothing else; of activations that cannot be told apart one has to be right."""
    activations = {x for x in found if x.startswith(ACTIVATION)}
    others = set(found) - activations
    right = {x for x in wrong if x.startswith(ACTIVATION)}
    return others == set(wrong) - right and (right <= activations if right else not activations)


def matrix(results: list[dict], wrong: dict[str, tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: how often which cause was named, by what is wrong, how often :func:`is_right`, how often nothing."""
    columns = sorted({cause for result in results for cause in result["found"]})
    rows = []
    for name, right in wrong.items():
        of = [result["found"] for result in results if result["wrong"] == name]
        counts = Counter(cause for found in of for cause in found)
        cells = [str(counts[c]) if counts[c] else "" for c in columns]
        exact = sum(is_right(found, right) for found in of)
        rows.append([name, str(len(of)), str(exact), *cells, str(sum(not found for found in of))])
    return ["what is wrong", "recordings", "right", *columns, "nothing named"], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="model_checks.json")
    arguments = parser.parse_args()
    console = Console(width=200)
    results = collect(run, list(cases(arguments.repeats, arguments.seed, arguments.kept)), arguments.workers, console)
    heads, rows = matrix(results, KEPT_WRONG if arguments.kept else WRONG)
    table = Table(title="causes named, by what is wrong")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    with open(arguments.out, "w") as file:
        json.dump({"heads": heads, "rows": rows, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
