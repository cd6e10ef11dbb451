"""What a result costs: the default recipe beside the published one, and how the cost grows with the size of the data.

    python experiments/benchmark.py --page docs/benchmarks.md    what `make bench` runs
    python experiments/benchmark.py --full                       the published recipe whole (most of an hour of CPU)
    python experiments/benchmark.py --experiments ring --parts recipes

Recipes. Both are composed from conf/ and run through the stages of a real run, on the same data. CPU seconds are user
plus system time of the process during its stages, not wall time; simulating the data and measuring the result are not
in them. Of the published recipe only a few epochs of each stage are run, and the rest is extrapolated:

    outside the epochs + warm-up + (epochs - warm-up) * training of one + validations * validation and checkpoint of one

Growth. Latents follow the mean field of a linear nu (1.6 times the loading; infinitely many neurons), with a little
noise; sizes vary one at a time. The slope is that of log CPU seconds over log size. Every part runs in a process of its
own, whose peak of resident memory is taken once the data are there (they are part of it).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import logging
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from marked_pages import rewrite
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.flow import Flow
from connector.connectivity.nu.regression import MeanSettings, fit_conditional_mean
from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.data.attractors import teacher
from connector.data.folds import fold
from connector.errors import UserError
from connector.files import write_json, write_text
from connector.lrrnn.closed_form import fit_rates_closed_form
from connector.lrrnn.handover import FittedDynamics
from connector.numerics import least_squares
from connector.runs.naming import conf_directory, register_resolvers
from connector.runs.options import STAGES, Options, checked
from connector.runs.store import RunStore
from connector.types import Latents, Loadings, Recording

CONF = conf_directory()
EXPERIMENTS = ("quadstable", "bistable", "limit_cycle", "ring")
RECIPES = {"default": (), "published": ("connectivity=published", "lrrnn=published")}
# Cited, not measured here: D of the checkpoints that the authors of the published method released.
CITED = {"quadstable": 0.136, "bistable": 0.149, "limit_cycle": 0.180, "ring": 0.112}
CITATION = "cited: released checkpoints of the authors"
EPOCHS_OPTION = {
    "lrrnn": "lrrnn.max_epochs",
    "loadings": "connectivity.loadings_epochs",
    "outputs": "connectivity.outputs_epochs",
}
LIMIT_GIB = 4.0
N_STEPS, ALPHA, GAIN, NOISE = 100, 0.1, 1.6, 0.01  # of the latents whose size grows; noise: sd on each latent
# Loaded once for all the small parts; not run, so that no thread has started when they fork.
_PRELOAD = ["torch", "connector.launch.job", "connector.stages.results"]


# ---------------------------------------------------------------------------------------------------------------
# Measuring a process


def peak_memory() -> float:
    """Largest resident memory of this process so far, GiB."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:
        # Not ru_maxrss: that begins with the memory of the process this one was started from.
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def forget_peak() -> None:
    """Set the peak back to what is resident now, where the system can."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")


@dataclass
class Cost:
    """cpu_s: user and system seconds; peak_gib: largest resident memory meanwhile, before_gib: that at the start."""

    cpu_s: float
    peak_gib: float
    before_gib: float


def cost_of(work: Callable[[], object]) -> tuple[object, Cost]:
    """The result of ``work`` and what it took."""
    forget_peak()
    before, started = peak_memory(), time.process_time()
    result = work()
    return result, Cost(time.process_time() - started, peak_memory(), before)


def in_own_process(function: Callable, *arguments, fresh: bool = False):
    """``function(*arguments)`` in a process of its own; ``fresh``: one that loads its libraries itself.

    Raises:
        MemoryError: the process was killed, most likely for want of memory.
    """
    quick = "forkserver" in multiprocessing.get_all_start_methods() and not fresh
    context = multiprocessing.get_context("forkserver" if quick else "spawn")
    if quick:
        context.set_forkserver_preload(_PRELOAD)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError("the process was killed") from error


def quiet(threads: int) -> None:
    """Set up a measuring process: its threads, and no chatter of Lightning between the tables."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def machine(threads: int) -> dict:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as info:
        model = next(line for line in info if line.startswith("model name")).split(":", 1)[1].strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def machine_line(of: dict) -> str:
    threads = f"{of['threads']} thread{'s' if of['threads'] > 1 else ''}"
    return f"{of['cpu']}, {of['cores']} cores, {threads}; Python {of['python']}, torch {of['torch']}"


# ---------------------------------------------------------------------------------------------------------------
# Arithmetic


@dataclass
class StageCost:
    """CPU seconds of one stage.

    Attributes:
        measured_s: as run. epochs: run, after ``warmup`` more; n_epochs: of the recipe; n_validations: in these.
        epoch_s: training of one epoch, mean; validation_s: validation, checkpoint and log of one epoch, mean.
        outside_s: before the first epoch and after the last.
        total_s: of the whole stage, extrapolated where fewer epochs were run.
    """

    stage: str
    measured_s: float
    warmup: int
    epochs: int
    n_epochs: int
    n_validations: int
    epoch_s: float
    validation_s: float
    outside_s: float
    total_s: float


def stage_cost(
    stage: str,
    measured_s: float,
    training: Sequence[float],
    after: Sequence[float],
    n_epochs: int | None = None,
    n_validations: int = 0,
    warmup: int = 1,
) -> StageCost:
    """The cost of a stage of ``n_epochs`` from that of the first few; None: all were run, if any (a fit in closed form has
    none).

    Args:
        training, after: CPU seconds of each epoch that was run: its training; validation, checkpoint and log. Each of
            them must have been validated.
        n_validations: in the whole stage. warmup: first epochs to leave out of the means.

    Raises:
        ValueError: no epoch is left beside the warm-up.
    """
    warmup = warmup if n_epochs is not None else 0
    epochs = len(training) - warmup
    if (epochs < 1 and n_epochs is not None) or len(after) != len(training):
        raise ValueError(f"{len(training)} epochs leave none beside {warmup} of warm-up")
    epoch_s, validation_s = (statistics.fmean(spent[warmup:] or [0.0]) for spent in (training, after))
    outside_s = measured_s - math.fsum(training) - math.fsum(after)
    total = measured_s
    if n_epochs is not None:
        total = outside_s + math.fsum(training[:warmup]) + (n_epochs - warmup) * epoch_s + n_validations * validation_s
    whole = n_epochs if n_epochs is not None else epochs
    return StageCost(stage, measured_s, warmup, epochs, whole, n_validations, epoch_s, validation_s, outside_s, total)


def log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log value over log size; 1 where the cost is proportional to the size."""
    x, y = [math.log(v) for v in sizes], [math.log(v) for v in values]
    return statistics.linear_regression(x, y).slope


# ---------------------------------------------------------------------------------------------------------------
# The recipes


@dataclass
class RecipeCost:
    """One recipe on one data set.

    Attributes:
        metrics: of the run, flat, as in its metrics.json; empty where it was not run to its end.
        stages: what each stage took. cpu_s: their sum. peak_gib: of the process, data and libraries included.
        extrapolated: whether only a few epochs were run.
    """

    experiment: str
    recipe: str
    metrics: dict[str, float]
    stages: list[StageCost]
    cpu_s: float
    peak_gib: float
    extrapolated: bool


def composed(*overrides: str) -> Options:
    """The options that ``python train.py OVERRIDES`` would have."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("train", overrides=[*overrides, "experiment_name=benchmark"]))


@lru_cache
def defaults() -> Options:
    """The options without any override; not to be changed."""
    return composed()


def few_epochs(epochs: Sequence[int], warmup: int) -> list[str]:
    """Overrides by which each stage is trained for its number of ``epochs`` and the warm-up."""
    return [f"{EPOCHS_OPTION[stage]}={n + warmup}" for stage, n in zip(STAGES, epochs)]


def epochs_of(options: Options) -> dict[str, int]:
    """Epochs of each stage, where the options say so."""
    connectivity = options.connectivity
    return {
        "lrrnn": options.lrrnn.max_epochs,
        "loadings": connectivity.loadings_epochs,
        "outputs": connectivity.outputs_epochs,
    }


def run_recipe(
    experiment: str, recipe: str, extra: Sequence[str], epochs: Sequence[int] | None, warmup: int, threads: int
) -> RecipeCost:
    """Run a recipe's stages in this process; ``epochs`` of each stage only (and the warm-up), or all of them (None)."""
    from connector.launch.job import run_stages
    from connector.launch.planning import build_data, plan
    from connector.launch.wandb_run import NoRun
    from connector.stages.progress import Stopwatch
    from connector.stages.results import Results
    from connector.stages.training import StageContext, validation_interval

    quiet(threads)
    overrides = [f"experiment={experiment}", *RECIPES[recipe], *extra]
    whole = composed(*overrides)
    options = composed(*overrides, *([] if epochs is None else few_epochs(epochs, warmup)))
    with tempfile.TemporaryDirectory() as directory:
        data = build_data(options)
        data.setup()
        schedule, store, stopwatch = plan(options, data), RunStore(directory), Stopwatch()
        context = StageContext(options, store, NoRun(), Console(quiet=True), lambda line: None, [stopwatch])
        stages = []

        def train() -> None:
            for stage in schedule.requested:
                started = time.process_time()
                run_stages(context, data, replace(schedule, requested=(stage,)))
                seconds = time.process_time() - started
                n = None if epochs is None else epochs_of(whole)[stage]
                validations = 0 if n is None else n // validation_interval(n)
                clocks = stopwatch.training.get(stage, []), stopwatch.after.get(stage, [])
                stages.append(stage_cost(stage, seconds, *clocks, n, validations, warmup))

        _, cost = cost_of(train)
        metrics = {} if epochs is not None else Results(options, store, data).metrics()
    total = math.fsum(stage.total_s for stage in stages)
    return RecipeCost(experiment, recipe, metrics, stages, total, cost.peak_gib, epochs is not None)


# ---------------------------------------------------------------------------------------------------------------
# Growth: the latents, rates and loadings that grow


@dataclass(frozen=True)
class Size:
    """n_states: samples of the latents, all trials together; n_neurons: K recorded; rank: R."""

    n_states: int
    n_neurons: int
    rank: int = 2


def simulated(size: Size, seed: int = 0) -> tuple[Latents, Loadings]:
    """Latents (trials, 100, R) of a network of infinitely many neurons, nu(m) = 1.6 m, and K loadings, m ~ N(0, I)."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    off = torch.arange(1, 64, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))  # E over N(0, 1)
    weights = vectors[0].square()

    def drive(z: Tensor) -> Tensor:
        """E[1.6 m tanh(m.z)] = 1.6 z E[tanh'(|z| x)], x ~ N(0, 1)."""
        slope = 1 - torch.tanh(z.norm(dim=-1, keepdim=True) * nodes) ** 2
        return GAIN * z * (slope @ weights)[:, None]

    z = [4.8 * torch.rand(max(5, size.n_states // N_STEPS), size.rank, **options) - 2.4]
    for _ in range(N_STEPS - 1):
        z.append((1 - ALPHA) * z[-1] + ALPHA * drive(z[-1]))
    z = torch.stack(z, dim=1)
    z += NOISE * torch.randn(z.shape, **options)
    loadings = Loadings(torch.randn(size.n_neurons, size.rank, **options))
    return Latents(z, torch.full((len(z),), N_STEPS), ALPHA), loadings


def nu_error(model, rank: int) -> float:
    """|estimate - nu|^2 / |nu|^2 at 500 fresh loadings."""
    rows = torch.randn(500, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return float((model(rows) - GAIN * rows).square().sum() / (GAIN * rows).square().sum())


def grow_trajectories(size: Size) -> tuple[Cost, float]:
    """fit_trajectories as the stage calls it on a recording whose share of the network is unknown."""
    options = defaults()
    latents, loadings = simulated(size)
    most = 5 * options.connectivity.max_states
    model, cost = cost_of(
        lambda: fit_trajectories(
            latents,
            loadings,
            activation="tanh",
            recorded_fraction=None,
            settings=TrajectorySettings(max_samples=most),
        )
    )
    return cost, nu_error(model, size.rank)


def grow_closed_form(size: Size) -> tuple[Cost, float]:
    """fit_conditional_mean as the stage calls it with estimator=gaussian_process."""
    options = defaults()
    latents, loadings = simulated(size)
    most = options.connectivity.max_states
    model, cost = cost_of(
        lambda: fit_conditional_mean(
            *latents.samples(), loadings, activation="tanh", settings=MeanSettings(max_states=most)
        )
    )
    return cost, nu_error(model, size.rank)


def grow_rates(size: Size) -> tuple[Cost, float]:
    """fit_rates_closed_form on the rates of all K neurons, and the error of the loadings in the gauge of the truth."""
    latents, loadings = simulated(size)
    activity = torch.empty(*latents.z.shape[:2], size.n_neurons)
    for z, out in zip(latents.z, activity):  # trial by trial: the rates are to be the only large array
        torch.tanh(z.float() @ loadings.m.float().T, out=out)
    recording = Recording(activity, "rates", latents.lengths, ALPHA, "tanh")
    fit, cost = cost_of(lambda: fit_rates_closed_form(recording, size.rank))
    found = fit.loadings.m @ least_squares(fit.loadings.m, loadings.m)
    return cost, float((found - loadings.m).square().sum() / loadings.m.square().sum())


def clustered_inputs(n_neurons: int) -> FittedDynamics:
    """Few latents, and K loadings of the teacher quadstable."""
    latents, _ = simulated(Size(10_000, 1))
    m = teacher("quadstable").sample(n_neurons, torch.Generator().manual_seed(0)).m
    return FittedDynamics(latents, Loadings(m), fold(len(latents.z)), "tanh")


def grow_loadings_flow(size: Size) -> tuple[Cost, float]:
    """The stage that trains the flow of the loadings, and its sample's mean squared radius against the neurons'."""
    from connector.launch.wandb_run import NoRun
    from connector.stages.flows import train_flow
    from connector.stages.loadings import prepare_loadings
    from connector.stages.training import StageContext

    options = defaults()
    inputs = clustered_inputs(size.n_neurons)
    with tempfile.TemporaryDirectory() as directory:
        store = RunStore(directory)
        store.checkpoints.mkdir(parents=True)
        context = StageContext(options, store, NoRun(), Console(quiet=True), lambda line: None)
        _, cost = cost_of(lambda: train_flow(prepare_loadings(context, inputs, "benchmark")))
        rows = Flow.load(store.loadings_flow_file).sample(20_000, generator=torch.Generator().manual_seed(0))
    true = inputs.loadings.m.square().mean()
    return cost, abs(float(rows.square().mean() / true) - 1)


def distribution() -> ConnectivityDistribution:
    """A distribution of the default sizes whose flows are untrained: that does not change the cost of sampling."""
    options = defaults()
    inputs = clustered_inputs(1000)
    torch.manual_seed(0)
    from connector.stages.flows import network_arguments

    flow = options.connectivity.flow
    shape = network_arguments(flow)
    rank = inputs.loadings.rank
    loadings_flow = Flow(rank, **shape).fit_scaler(inputs.loadings.m.float())
    mean = fit_trajectories(inputs.latents, inputs.loadings, activation="tanh", recorded_fraction=None)
    return ConnectivityDistribution(
        loadings_flow,
        mean,
        alpha=ALPHA,
        activation="tanh",
        outputs_flow=Flow(rank, rank, **shape),
        reference=inputs.latents.trials(inputs.fold.train).samples().choice(4000, seed=0),
        flow_steps=flow.steps,
    )


def grow_sampling(size: Size) -> tuple[Cost, float]:
    """ConnectivityDistribution.sample of K neurons with a spread of n."""
    source = distribution()
    net, cost = cost_of(lambda: source.sample(size.n_neurons, sigma=1.0))
    return cost, float(net.n_neurons != size.n_neurons)


def grow_projection(size: Size) -> tuple[Cost, float]:
    """ConnectivityDistribution.project of K neurons, and how far the drive still is from the observed one."""
    source = distribution()
    net = source.sample(size.n_neurons, sigma=1.0)
    projected, cost = cost_of(lambda: source.project(net))
    z, y = source.reference_z[:500], source.reference_y[:500]
    return cost, float((projected.drive(z) - y).square().sum() / y.square().sum())


# name -> (what it is, what its error is, the function)
WORK = {
    "trajectories": ("estimate of nu from trajectories", "nu", grow_trajectories),
    "closed_form": ("estimate of nu, quick closed form", "nu", grow_closed_form),
    "rates": ("loadings from rates, closed form", "loadings", grow_rates),
    "loadings_flow": ("flow of the loadings (stage)", "mean square", grow_loadings_flow),
    "sampling": ("sampling a network", "size", grow_sampling),
    "projection": ("projecting a network", "drive", grow_projection),
}
AXES = {"n_states": "states T", "n_neurons": "neurons K", "rank": "rank R"}


@dataclass
class Growth:
    """One kind of work over one axis.

    Attributes:
        axis: "n_states", "n_neurons" or "rank". sizes: along it. base: of the other axes.
        costs, errors: one for each size; None where the work did not finish, ``failures`` says why.
        slope: of log CPU seconds over log size; None with fewer than two sizes.
    """

    work: str
    axis: str
    sizes: list[int]
    base: Size
    costs: list[Cost | None] = field(default_factory=list)
    errors: list[float | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def slope(self) -> float | None:
        found = [(size, cost.cpu_s) for size, cost in zip(self.sizes, self.costs) if cost is not None]
        return log_slope(*zip(*found)) if len(found) > 1 else None

    @property
    def within_limit(self) -> bool:
        return all(cost is not None and cost.peak_gib <= LIMIT_GIB for cost in self.costs)


def grow(work: str, size: Size, threads: int) -> tuple[Cost, float]:
    """One point, in this process."""
    quiet(threads)
    return WORK[work][2](size)


def growth_plan(args: argparse.Namespace) -> list[Growth]:
    base = Size(args.states[0], args.neurons[0])
    rates = Size(args.rates_states[0], args.rates_neurons[0])
    plan = []
    for work in ("trajectories", "closed_form"):
        plan += [Growth(work, "n_states", args.states, base), Growth(work, "n_neurons", args.neurons, base)]
        plan.append(Growth(work, "rank", args.ranks, base))
    plan += [
        Growth("rates", "n_states", args.rates_states, rates),
        Growth("rates", "n_neurons", args.rates_neurons, rates),
    ]
    plan += [Growth(work, "n_neurons", args.neurons, base) for work in ("loadings_flow", "sampling", "projection")]
    return [g for g in plan if g.sizes]


def measure_growth(plan: list[Growth], threads: int, start: Callable[[str], None]) -> None:
    """Fill in costs and errors; a point that several axes share is measured once."""
    known: dict[tuple[str, Size], tuple[Cost, float] | str] = {}
    for growth in plan:
        for size in growth.sizes:
            at = replace(growth.base, **{growth.axis: size})
            start(f"{WORK[growth.work][0]}, {AXES[growth.axis]} = {size:,}")
            if (growth.work, at) not in known:
                try:
                    known[growth.work, at] = in_own_process(grow, growth.work, at, threads)
                except (MemoryError, RuntimeError, UserError) as error:
                    known[growth.work, at] = str(error).splitlines()[0]
            found = known[growth.work, at]
            if isinstance(found, str):
                growth.failures.append(f"{WORK[growth.work][0]}, {AXES[growth.axis]} = {size:,}: {found}")
                found = None, None
            growth.costs.append(found[0])
            growth.errors.append(found[1])


# ---------------------------------------------------------------------------------------------------------------
# Tables: rows of text, for the terminal and for markdown alike


@dataclass
class TextTable:
    title: str
    columns: list[str]
    rows: list[list[str]]

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i < 2 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ["---" if i < 2 else "---:" for i in range(len(self.columns))]
        lines = [" | ".join(row) for row in (self.columns, rule, *self.rows)]
        return "\n".join([f"{self.title}\n", *(f"| {line} |" for line in lines)])


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def how(cost: RecipeCost) -> str:
    if not cost.extrapolated:
        return "measured"
    return "extrapolated from " + ", ".join(f"{stage.epochs}" for stage in cost.stages) + " epochs"


def recipe_table(costs: list[RecipeCost]) -> TextTable:
    columns = ["experiment", "recipe", "D", "Sinkhorn + squared error", "field error", "CPU s", "peak GiB", "how"]
    rows = []
    for experiment in dict.fromkeys(cost.experiment for cost in costs):
        for cost in (c for c in costs if c.experiment == experiment):
            value = cost.metrics.get
            parts = [value(f"connectivity/{name}") for name in ("sinkhorn", "squared_error")]
            both = "" if None in parts else f"{parts[0]:.3g} + {parts[1]:.3g}"
            row = [experiment, cost.recipe, number(value("connectivity/dissimilarity")), both]
            row += [number(value("dynamics/field_error")), seconds(cost.cpu_s), f"{cost.peak_gib:.2f}", how(cost)]
            rows.append(row)
        if experiment in CITED:
            rows.append([experiment, "published", f"{CITED[experiment]:.3f}", "", "", "", "", CITATION])
    return TextTable("Recipes: error and cost (D: lower is better)", columns, rows)


def stage_table(costs: list[RecipeCost]) -> TextTable:
    columns = ["experiment", "recipe, stage", "epochs run", "s an epoch", "s a validation", "s outside epochs"]
    columns += ["epochs", "CPU s"]
    rows = []
    for cost in costs:
        for stage in cost.stages:
            run = f"{stage.warmup} + {stage.epochs}" if cost.extrapolated else f"{stage.epochs}"
            row = [cost.experiment, f"{cost.recipe}, {stage.stage}", run, number(stage.epoch_s, 2)]
            row += [number(stage.validation_s, 2) if cost.extrapolated else "", seconds(stage.outside_s)]
            rows.append([*row, f"{stage.n_epochs}", seconds(stage.total_s) + " *" * cost.extrapolated])
    title = "Stages in CPU seconds (*: extrapolated from the epochs run after the warm-up)"
    return TextTable(title, columns, rows)


def ratios(costs: list[RecipeCost]) -> list[str]:
    """CPU of the published recipe over that of the default one, a sentence for each experiment."""
    said = []
    by_name = {(cost.experiment, cost.recipe): cost for cost in costs}
    for experiment in dict.fromkeys(cost.experiment for cost in costs):
        own, published = (by_name.get((experiment, recipe)) for recipe in RECIPES)
        if own and published:
            ratio = published.cpu_s / own.cpu_s
            said.append(
                f"{experiment}: the published recipe takes {ratio:.0f} times the CPU seconds of the default one "
                f"({how(published)})."
            )
    return said


def growth_table(growths: list[Growth]) -> TextTable:
    columns = ["work", "grows with", "sizes", "CPU s", "slope", "peak GiB", "error of"]
    rows = []
    for g in growths:
        base = [f"{AXES[axis][-1]} = {value:,}" for axis, value in asdict(g.base).items() if axis != g.axis]
        if g.work in ("loadings_flow", "sampling", "projection"):
            base = []
        label = AXES[g.axis] + (f" ({', '.join(base)})" if base else "")
        shown = [number(error, 2) for error in g.errors if error is not None]
        cells = [" / ".join("failed" if c is None else seconds(c.cpu_s) for c in g.costs)]
        cells += [number(g.slope, 2), " / ".join("" if c is None else f"{c.peak_gib:.2f}" for c in g.costs)]
        error = "" if g.work == "sampling" else f"{WORK[g.work][1]}: {' / '.join(shown)}"
        rows.append([WORK[g.work][0], label, " / ".join(f"{size:,}" for size in g.sizes), *cells, error])
    title = "Growth: CPU seconds and peak memory at each size; slope of log CPU seconds over log size"
    return TextTable(title, columns, rows)


def growth_lines(growths: list[Growth]) -> list[str]:
    """Sentences on what took much memory or did not finish."""
    beyond = [g for g in growths if not g.within_limit]
    lines = [f"Beyond {LIMIT_GIB:g} GiB: {WORK[g.work][0]} with {AXES[g.axis]}." for g in beyond]
    lines += [f"Did not finish: {failure}" for g in growths for failure in g.failures]
    return lines if beyond else [*lines, f"Every part stayed within {LIMIT_GIB:g} GiB."]


def write_page(page: Path, of: dict, costs: list[RecipeCost], growths: list[Growth]) -> None:
    """Replace what a page says of recipes and of growth, each with the machine that it was measured on.

    Raises:
        UserError: the page has no marks for them.
    """
    about = f"Measured on: {machine_line(of)}."
    if costs:
        rewrite(
            page,
            "recipes",
            "\n\n".join([about, recipe_table(costs).markdown(), stage_table(costs).markdown(), *ratios(costs)]),
        )
    if growths:
        rewrite(page, "growth", "\n\n".join([about, growth_table(growths).markdown(), *growth_lines(growths)]))


# ---------------------------------------------------------------------------------------------------------------
# The command line


@contextlib.contextmanager
def progress_of(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over the parts; the function it yields names the part that begins. Without a terminal, one line each."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, begun = bar.add_task("", total=total), 0

        def start(description: str) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, description=description, completed=begun - 1)
            if not console.is_terminal:
                console.print(f"[{begun}/{total}] {description}", markup=False, highlight=False)

        yield start


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def sizes(text: str) -> int:
        return int(float(text))

    def growing(name: str, default: list[int], text: str) -> None:
        parser.add_argument(name, type=sizes, nargs="*", default=default, help=text)

    parser.add_argument("--experiments", nargs="+", default=["quadstable"], choices=EXPERIMENTS)
    parser.add_argument("--parts", nargs="+", default=["recipes", "growth"], choices=("recipes", "growth"))
    parser.add_argument("--full", action="store_true", help="run the published recipe whole instead of extrapolating")
    parser.add_argument(
        "--epochs", type=int, nargs=3, default=[3, 10, 30], metavar="N",
        help="of lrrnn, loadings, outputs in the published recipe, after the warm-up",
    )  # fmt: skip
    parser.add_argument("--warmup", type=int, default=1, help="epochs before those")
    parser.add_argument("--overrides", nargs="*", default=[], help="options of train.py, for both recipes")
    growing(
        "--states",
        [10_000, 100_000, 1_000_000, 10_000_000],
        "T of the estimates of nu; the first is the base of the others",
    )
    growing("--neurons", [1000, 10_000, 100_000], "K of the estimates of nu, the flow and sampling")
    growing("--ranks", [1, 2, 3, 4], "R of the estimates of nu")
    growing("--rates-states", [10_000, 30_000, 100_000], "T of the loadings from rates")
    growing("--rates-neurons", [1000, 3000, 10_000], "K of the loadings from rates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"), help="the markdown goes beside it")
    parser.add_argument("--page", type=Path, help="a page whose tables of recipes and of growth to replace")
    args = parser.parse_args(argv)
    if min(args.epochs) < 1 or args.warmup < 0 or args.threads < 1:
        parser.error("--epochs and --threads of 1 or more, --warmup of 0 or more")
    if not all((args.states, args.neurons, args.rates_states, args.rates_neurons)):
        parser.error("at least one size each of --states, --neurons, --rates-states and --rates-neurons")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where something did not finish."""
    args = parse(argv)
    console = Console()
    if not console.is_terminal:  # a log has no width of its own
        console.width = 150
    of = machine(args.threads)
    console.print(machine_line(of), highlight=False)
    wanted = [(e, r) for e in args.experiments for r in RECIPES] if "recipes" in args.parts else []
    growths = growth_plan(args) if "growth" in args.parts else []
    costs = []
    with progress_of(console, len(wanted) + sum(len(g.sizes) for g in growths)) as start:
        for experiment, recipe in wanted:
            few = None if recipe == "default" or args.full else args.epochs
            start(f"{experiment}, {recipe} recipe" + ("" if few is None else ", a few epochs of each stage"))
            arguments = (experiment, recipe, args.overrides, few, args.warmup, args.threads)
            costs.append(in_own_process(run_recipe, *arguments, fresh=True))
        measure_growth(growths, args.threads, start)

    tables = [recipe_table(costs), stage_table(costs)] if costs else []
    lines = ratios(costs)
    if growths:
        tables.append(growth_table(growths))
        lines += growth_lines(growths)
    console.print(*[table.rich() for table in tables], *lines, sep="\n", highlight=False)
    write_json(
        args.out,
        {
            "machine": of,
            "recipes": [asdict(cost) for cost in costs],
            "cited_dissimilarity": {name: CITED[name] for name in args.experiments if name in CITED},
            "growth": [{**asdict(g), "slope": g.slope} for g in growths],
        },
    )
    text = [f"{machine_line(of)}.", *(table.markdown() for table in tables), "\n\n".join(lines)]
    write_text(args.out.with_suffix(".md"), "\n\n".join(text) + "\n")
    if args.page is not None:
        write_page(args.page, of, costs, growths)
    console.print(f"Written: {args.out}, {args.out.with_suffix('.md')}", soft_wrap=True, highlight=False)
    return int(any(g.failures for g in growths))


if __name__ == "__main__":
    sys.exit(main())
