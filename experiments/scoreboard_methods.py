"""The methods of the scoreboard: each learns from the same trials of a set, and leaves a model that `connector score` reads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytorch_lightning as pl
from benchmark import Cost, composed, cost_of, epochs_of, quiet
from linear_models import fit_linear_system, pca_ridge
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from torch import Tensor

from connector.connectivity.distribution import ConnectivityDistribution
from connector.files import write_npz
from connector.launch.job import run_stages
from connector.launch.planning import build_data, plan
from connector.launch.wandb_run import NoRun
from connector.lrrnn.handover import FittedDynamics
from connector.runs.store import RunStore
from connector.score.models import LinearModel, NetworkModel
from connector.score.results import Score, of_connectivity, scores
from connector.score.sets import PublicSet
from connector.stages.training import StageContext

N_NEURONS = 1000
PUBLISHED = ("connectivity=published", "lrrnn=published")
# CPU seconds of each stage of the published recipe, after which it stops at the end of an epoch.
LIMITS = {"lrrnn": 12.0, "loadings": 4.0, "outputs": 4.0}


@dataclass
class Trained:
    """A method's model on a set and what it took.

    Attributes:
        scores: by their keys in :data:`connector.score.results.MEANINGS`. cost: of learning, not of scoring.
        whole_s: CPU seconds of the whole recipe, extrapolated where it was cut short; else those measured.
        cut: stage -> (epochs run, epochs of the recipe), where fewer were run.
        arrays: of the file that `connector score` reads.
    """

    scores: dict[str, Score]
    cost: Cost
    whole_s: float
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    arrays: dict = field(default_factory=dict)


class CpuLimit(Callback):
    """Ends a stage at the end of the epoch in which its CPU seconds are used up."""

    def __init__(self, seconds: float):
        self.seconds, self.epochs, self.spent = seconds, 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epochs, self.spent = self.epochs + 1, time.process_time() - self._started
        if self.spent > self.seconds:
            trainer.should_stop = True


def options_for(public: PublicSet, path: Path | None, rank: int, extra: tuple[str, ...] = ()):
    """Options of train.py for a set: an experiment of the package, or a file of rates."""
    if path is None:
        return composed(f"experiment={public.name}", "trainer.progress=false", *extra)
    return composed(
        "data=npz",
        f"data.path={path}",
        f"data.alpha={public.alpha:g}",
        f"lrrnn.rank={rank}",
        "trainer.progress=false",
        *extra,
    )


@dataclass
class _Part:
    """A stage that was run: its cost, and its epochs, where a limit was set on them."""

    cost: Cost
    limit: CpuLimit | None
    epochs: int | None

    @property
    def cut(self) -> bool:
        return self.limit is not None and 0 < self.limit.epochs < (self.epochs or 0)

    @property
    def whole_s(self) -> float:
        if not self.cut:
            return self.cost.cpu_s
        return self.cost.cpu_s + (self.epochs - self.limit.epochs) * self.limit.spent / self.limit.epochs


def run_parts(options, directory: str, limits: dict[str, float] | None) -> tuple[dict[str, _Part], RunStore]:
    """The stages of a run, one after another, in this process."""
    data = build_data(options)
    data.setup()
    schedule, store, parts = plan(options, data), RunStore(directory), {}
    for stage in schedule.requested:
        limit = None if limits is None else CpuLimit(limits[stage])
        callbacks = [] if limit is None else [limit]
        context = StageContext(options, store, NoRun(), Console(quiet=True), lambda line: None, callbacks)
        _, cost = cost_of(
            lambda context=context, stage=stage: run_stages(context, data, replace(schedule, requested=(stage,)))
        )
        parts[stage] = _Part(cost, limit, None if limits is None else epochs_of(options)[stage])
    return parts, store


def model_of_fit(fit: FittedDynamics) -> NetworkModel:
    """The fitted low-rank RNN, its units the recorded neurons."""
    scale = fit.scale
    gain, offset = (None, None) if scale is None else (scale.gain.double(), scale.offset.double())
    return NetworkModel(fit.network.double(), _double(fit.loadings), fit.latents.input_kind, gain, offset)


def _double(loadings):
    return type(loadings)(*(None if x is None else x.double() for x in (loadings.m, loadings.b, loadings.d)))


def arrays_of(model: NetworkModel | LinearModel, interval: tuple[Tensor, Tensor] | None = None) -> dict:
    """The arrays of a model under the names that `connector score` reads."""
    if isinstance(model, LinearModel):
        found = {"A": model.a, "B": model.b, "c": model.c, "C": model.readout, "e": model.e, "alpha": model.alpha}
    else:
        net = model.network
        found = {"m": net.m, "n": net.n, "b": net.b, "d": net.d, "alpha": net.alpha, "activation": net.activation}
        found |= {"input_kind": model.kind, "MBD": model.readout.stack(), "gain": model.gain, "offset": model.offset}
        if interval is not None:
            found |= {"n_low": interval[0], "n_high": interval[1]}
    return {key: value for key, value in found.items() if value is not None}


def _together(costs: list[Cost]) -> Cost:
    return Cost(sum(c.cpu_s for c in costs), max(c.peak_gib for c in costs), costs[0].before_gib)


def low_rank(
    public: PublicSet, path: Path | None, rank: int, published: bool = False, limits: dict[str, float] | None = None
) -> dict[str, Trained]:
    """The fitted low-rank RNN, and a network of 1000 neurons sampled from the connectivity that is learned from it.

    Ours: the defaults. Published: a random start, Adam, the authors' settings, each stage for so many CPU seconds; its first stage is
    LINT, and the only one where no distribution of connectivity is known that it could be compared with. Sampled networks have n = nu (sigma 0) and are projected, so that they restore the fitted field, as the package
    recommends; the published one is not. D and coverage are of the network before that.
    """
    quiet(1)
    limits = (limits or LIMITS) if published else None
    whole = not published or public.teacher is not None
    extra = () if whole else ("stages=[lrrnn]",)
    options = options_for(public, path, rank, (*PUBLISHED, *extra) if published else ())
    names = ("LINT", "published") if published else ("ours, fit", "ours, sampled")
    with tempfile.TemporaryDirectory() as directory:
        parts, store = run_parts(options, directory, limits)
        fit, distribution = store.read_stage_inputs(), store.read_connectivity() if whole else None
    cut = {stage: (part.limit.epochs, part.epochs) for stage, part in parts.items() if part.cut}
    first = parts["lrrnn"]
    fitted = model_of_fit(fit)
    found = {
        names[0]: Trained(
            scores(fitted, public),
            first.cost,
            first.whole_s,
            {k: v for k, v in cut.items() if k == "lrrnn"},
            arrays_of(fitted),
        )
    }
    if distribution is not None:
        measured, arrays = of_sampled(public, fitted, distribution, published)
        cost, seconds = _together([part.cost for part in parts.values()]), sum(part.whole_s for part in parts.values())
        found[names[1]] = Trained(measured, cost, seconds, cut, arrays)
    return found


def of_sampled(
    public: PublicSet, fitted: NetworkModel, distribution: ConnectivityDistribution, published: bool
) -> tuple[dict[str, Score], dict]:
    """Scores and arrays of a network sampled from a connectivity, which reads like the fit."""
    outputs = "flow" if published else "conditional_mean"
    unprojected = distribution.sample(N_NEURONS, sigma=0.0, seed=1, outputs=outputs).double()
    network = unprojected if published else distribution.sample(N_NEURONS, sigma=0.0, project=True, seed=1).double()
    interval = None
    if not published:
        diagnosis = distribution.diagnose(unprojected.loadings)
        interval = diagnosis.low.double(), diagnosis.high.double()
    measured = scores(replace(fitted, network=network), public)
    before = replace(fitted, network=unprojected)
    if public.teacher is not None and not published:
        of_mean = of_connectivity(before, public, interval)
        measured |= {key: value for key, value in of_mean.items() if key != "field_error"}
    return measured, arrays_of(before, interval)


def linear(public: PublicSet, path: Path | None, rank: int, kind: str) -> dict[str, Trained]:
    """Linear dynamics of the same rank: "LDS" by expectation maximisation, or "PCA + ridge"."""
    quiet(1)
    y, u = public.rates[public.learned], None if public.inputs is None else public.inputs[public.learned]

    def work() -> LinearModel:
        if kind == "LDS":
            return fit_linear_system(y, u, rank)[0].model(public.alpha)
        return pca_ridge(y, u, rank, public.alpha)

    model, cost = cost_of(work)
    return {kind: Trained(scores(model, public), cost, cost.cpu_s, {}, arrays_of(model))}


# What is run -> (the rows that it gives, how).
METHODS: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, Trained]]]] = {
    "ours": (("ours, fit", "ours, sampled"), low_rank),
    "published": (("LINT", "published"), lambda *of: low_rank(*of, published=True)),
    "LDS": (("LDS",), lambda *of: linear(*of, kind="LDS")),
    "PCA + ridge": (("PCA + ridge",), lambda *of: linear(*of, kind="PCA + ridge")),
}


def save(directory: Path, name: str, trained: dict[str, Trained]) -> None:
    """The files that `connector score` reads, one each."""
    for method, one in trained.items():
        place = directory / "results" / name / (method.replace(", ", "_").replace(" + ", "_").lower() + ".npz")
        place.parent.mkdir(parents=True, exist_ok=True)
        write_npz(place, one.arrays)
