"""Finding the runs that a figure draws from and, for those that are missing, the commands that make them.

A run of an experiment lies in ``RUNS/EXPERIMENT/OPTIONS`` (``default`` without options), or as one job of a sweep in
``RUNS/sweeps/DATE/EXPERIMENT,OPTIONS``. Runs that differ in their seed alone are repetitions of one another.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor

from connector import figures
from connector.data.attractors import Teacher
from connector.data.folds import Fold
from connector.dynamics import Network
from connector.errors import UserError, exit_code
from connector.launch.planning import data_module
from connector.lrrnn.spikes.baselines import Baseline, fit_baseline
from connector.lrrnn.spikes.model import SpikeModel
from connector.runs.naming import run_directory
from connector.runs.options import AttractorData, checked_data
from connector.runs.saved import Run
from connector.stages.lrrnn_module import LowRankRNNModule
from connector.types import Recording, TrialBatch

SYSTEMS = ("quadstable", "bistable", "limit_cycle", "ring")
LINT = ("lrrnn=published",)
LINT_HELP = (
    "directory of a run whose fitted low-rank RNN is drawn by itself (default: the run with lrrnn=published, that is LINT, "
    "trained by gradient descent; a run with other options shows the closed form, and the figure says so)"
)


def arguments_of(doc: str, options: bool = True) -> argparse.ArgumentParser:
    """The parser that the scripts share; ``doc`` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where the runs lie (default: runs)")
    parser.add_argument("--out", default="figures", metavar="DIR", help="where figures go (default: figures)")
    if options:
        parser.add_argument(
            "--options",
            nargs="*",
            default=[],
            metavar="KEY=VALUE",
            help="options the runs were made with, such as connectivity=published lrrnn=published (default: none)",
        )
    return parser


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A run that a figure needs: of this experiment, made with these options.

    Attributes:
        fit_only: the fitted low-rank RNN is enough, no distribution of connectivity is needed.
    """

    experiment: str
    options: tuple[str, ...] = ()
    fit_only: bool = False

    def directory(self, runs: Path) -> Path:
        return runs / run_directory({"experiment": self.experiment}, self.options)

    def command(self, runs: Path) -> str:
        """The command that makes it, where this script will find it."""
        words = ["python", "train.py", f"experiment={self.experiment}", *self.options]
        if self.fit_only:
            words.append("stages=[lrrnn]")
            if (self.directory(runs) / "latents.npz").exists():  # of a version that did not keep n
                words.append("force=true")
        if runs != Path("runs"):
            # Quoted for Hydra, whose grammar stumbles over the = in such paths.
            words.append(f'hydra.run.dir="{self.directory(runs)}"')
        return shlex.join(words)

    def found(self, runs: Path) -> list[Path]:
        """Finished runs, one for each seed; a run of its own counts before one of a sweep, new sweeps before old."""
        wanted = set(self.options)
        best: dict[str, Path] = {}
        of_sweeps = sorted((runs / "sweeps").glob(f"*/{self.experiment},*"), reverse=True)
        for path in [*sorted((runs / self.experiment).glob("*")), *of_sweeps]:
            name = path.name.removeprefix(f"{self.experiment},")
            parts = set() if name == "default" else set(name.split(","))
            seeds = {part for part in parts if part.startswith("seed=")}
            if parts - seeds == wanted and self._finished(path):
                best.setdefault(",".join(seeds), path)
        return [best[key] for key in sorted(best)]

    def _finished(self, path: Path) -> bool:
        if not (path / "config.yaml").exists():
            return False
        if self.fit_only:
            file = path / "latents.npz"
            if not file.exists():
                return False
            with np.load(file) as arrays:
                return "n" in arrays.files
        return all((path / name).exists() for name in ("checkpoints/connectivity.pt", "network.npz", "metrics.json"))


class MissingRuns(Exception):
    """Runs that a figure needs and that are not there; the message holds the commands that make them."""


def require(runs: str | Path, *wanted: Wanted | Sequence[Wanted]) -> list[list[AttractorRun]]:
    """The runs found for each of ``wanted``, at least one each; a sequence of alternatives takes the first found.

    Raises:
        MissingRuns: with the command of every one that is missing.
    """
    runs, found, missing = Path(runs), [], []
    for entry in wanted:
        alternatives = [entry] if isinstance(entry, Wanted) else list(entry)
        paths = next((paths for one in alternatives if (paths := one.found(runs))), [])
        found.append(paths)
        if not paths:
            missing.append(alternatives[0].command(runs))
    if missing:
        missing = list(dict.fromkeys(missing))
        plural = "s are" if len(missing) > 1 else " is"
        raise MissingRuns(f"{len(missing)} run{plural} missing in {runs}. To make:\n" + "\n".join(missing))
    return [[AttractorRun(path) for path in paths] for paths in found]


def finish(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Run a script's main: exit code 0, or 2 with a message for missing runs and for mistakes the user can mend."""
    # Very many small operations: more threads cost more than they bring, most of all on a busy machine.
    torch.set_num_threads(1)
    try:
        return exit_code(main, arguments)
    except MissingRuns as missing:
        print(missing, file=sys.stderr)
        return 2


class AttractorRun(Run):
    """A run on simulated data: what was learned, and beside it the truth, simulated again from the run's options."""

    @cached_property
    def _data(self):
        config = self.config
        if config.data.source != "attractor":
            raise UserError("a run on simulated data, whose truth is known", str(self.path))
        try:
            # The options of the data alone: those of training may have changed since the run.
            merged = OmegaConf.merge(OmegaConf.structured(AttractorData), config.data)
            options = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            file, got = self.path / "config.yaml", str(error).splitlines()[0]
            remedy = "another version wrote it; the command that made the run makes it anew"
            raise UserError(f"data options of this version in {file}", got, remedy) from error
        return data_module(options, config.seed, config.lrrnn.rank, config.lrrnn.bias)

    @property
    def teacher(self) -> Teacher:
        return self._data.teacher

    @cached_property
    def truth(self) -> Network:
        """The simulated network, all K neurons."""
        self._data.setup()
        return self._data.truth

    @cached_property
    def true_types(self) -> Tensor:
        """(K,) component of the teacher that each neuron of ``truth`` was drawn from."""
        generator = torch.Generator().manual_seed(self._data.data_seed)
        exact = self._data.simulation.get("exact_moments", True)
        again, labels = self.teacher.sample_with_components(self.truth.n_neurons, generator, exact)
        assert torch.equal(again.m, self.truth.m), "the simulation draws its network first"
        return labels

    @property
    def sigma(self) -> float:
        """The spread of n around nu that the run's figures show: a choice."""
        return float(self.config.connectivity.sigma)

    @property
    def is_published(self) -> bool:
        """n is drawn through the flow of n, as the published recipe does."""
        return self.connectivity.outputs == "flow"

    def sample(self, n_neurons: int = 1000, sigma: float = 0.0, project: bool = False, seed: int = 0) -> Network:
        """A network of the inferred distribution; at sigma 0 the published recipe's n comes from its flow as well."""
        outputs = "flow" if self.is_published else None
        return self.connectivity.sample(n_neurons, sigma, project, seed, outputs=outputs)

    def infinite(self, n_neurons: int = 20_000) -> Network:
        """A network that stands for infinitely many neurons, n = nu."""
        if self.is_published:
            return self.sample(n_neurons)
        return self.connectivity.quadrature()

    def held_out(self, n_states: int = 4000) -> Tensor:
        """(T, R) latent states of test trials, evenly spread."""
        z = self.latents.trials(self.stage_inputs.fold.test).samples()[0]
        return z[torch.linspace(0, len(z) - 1, min(n_states, len(z))).long()]

    @property
    def label(self) -> str:
        """What the low-rank RNN fit was, for titles: LINT only where it was trained as published."""
        options = self.config.lrrnn
        if options.init == "random":
            return f"LINT, {options.max_epochs} epochs"
        return "low-rank RNN, closed form"

    @property
    def fit(self) -> str:
        """How the low-rank RNN was fitted, for captions."""
        if self.config.lrrnn.init == "random":
            return "the low-rank RNN trained by gradient descent from random weights (LINT, Valente et al. 2022)"
        return "the low-rank RNN fitted in closed form, not LINT (lrrnn=published is)"

    def caution(self, error: float) -> str:
        """A sentence about a fit whose own field has the relative error ``error`` from the network it was fitted to."""
        loss = self.store.stages()["lrrnn"]["metrics"].get("lrrnn/val_loss", float("nan"))
        said = f"{self.label}: validation loss {loss:.2g}, error of its field {error:.2g}."
        if error > 0.5:
            said += " It has not learned the dynamics (too few epochs?): what is drawn of it is no example of LINT."
        return said


class SpikeRun(Run):
    """A run on recorded spikes: what was learned, the recording itself, and the fitted model of single trials."""

    @cached_property
    def _data(self):
        plain = OmegaConf.to_container(self.config.data)
        config = self.config
        data = data_module(checked_data(plain), config.seed, config.lrrnn.rank, config.lrrnn.bias)
        data.setup()
        if data.recording.kind != "spikes":
            raise UserError("a run on spike counts", f"{data.recording.kind} in {self.path}")
        return data

    @property
    def recording(self) -> Recording:
        return self._data.recording

    @property
    def fold(self) -> Fold:
        return self.stage_inputs.fold

    @cached_property
    def baseline(self) -> Baseline:
        return fit_baseline(self.recording, self.fold.train, self.config.lrrnn.baseline)

    @cached_property
    def model(self) -> SpikeModel:
        """The fitted model, in the gauge of the run's latents."""
        return fitted_model(self, self.recording, self.baseline)


def fitted_model(run: Run, recording: Recording, baseline: Baseline) -> SpikeModel:
    """The low-rank RNN that the stage ``lrrnn`` of ``run`` fitted to ``recording``, in the gauge of its latents.

    Raises:
        UserError: no checkpoint, or one of another model than the encoder's.
    """
    file = run.store.whole(run.store.checkpoints / "lrrnn.ckpt")
    if not file.exists():
        raise UserError(f"the fitted low-rank RNN {file}", "no such file", "run the stage lrrnn again with force=true")
    model = LowRankRNNModule.load_from_checkpoint(file, map_location="cpu", weights_only=True).model.eval()
    if not isinstance(model, SpikeModel):
        raise UserError("a model of single trials of spikes (lrrnn.inference=encoder)", "another one", "train it anew")
    train = run.stage_inputs.fold.train
    # Training ends in any gauge; the run's latents are in a reproducible one.
    model.fix_gauge(
        TrialBatch.of(recording, train, baseline.argument),
        None if recording.choices is None else recording.choices[train],
    )
    return model.requires_grad_(False)


def spike_run(arguments: argparse.Namespace) -> SpikeRun:
    """The run on rat recordings that ``arguments`` (of :func:`recording_arguments`) name, or the only one there is.

    Raises:
        MissingRuns: with the command that makes it; UserError: several runs to choose from.
    """
    if arguments.run is not None:
        return SpikeRun(arguments.run)
    runs, options = Path(arguments.runs), tuple(arguments.options)
    path = arguments.data or "T176_2018_05_03.mat"
    wanted = Wanted("rat", (f"data.path={path}", *options))
    found = [wanted.directory(runs)] if arguments.data or options else sorted((runs / "rat").glob("*"))
    found = [directory for directory in found if wanted._finished(directory)]
    if not found:
        raise MissingRuns(f"1 run is missing in {runs}. To make:\n{wanted.command(runs)}")
    if len(found) > 1:
        names = ", ".join(str(directory) for directory in found)
        raise UserError("one run on rat recordings", names, "choose with --run DIRECTORY")
    return SpikeRun(found[0])


def recording_arguments(doc: str) -> argparse.ArgumentParser:
    """The parser of scripts that draw from a run on a rat recording."""
    parser = arguments_of(doc)
    parser.add_argument("--run", metavar="DIR", help="the run's directory, wherever it lies")
    parser.add_argument("--data", metavar="FILE", help="data.path of the run, as it was typed")
    return parser


# --- figures --------------------------------------------------------------------------------------------------------


def styled():
    """The style of all figures, for a ``with`` statement."""
    return matplotlib.rc_context(figures.STYLE)


def save(figure: Figure, out: str | Path, name: str, console: Console) -> None:
    """Write NAME.png and NAME.pdf into ``out``."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        figure.savefig(out / f"{name}.{suffix}", metadata=metadata)
    console.print(f"{out / name}.png, .pdf", soft_wrap=True, highlight=False)


def note(figure: Figure, text: str) -> None:
    """Sentences under a figure: what it cannot show."""
    text = textwrap.fill(text, int(14.2 * figure.get_figwidth()))
    figure.supxlabel(text, fontsize=8, color=figures.MUTED, x=0.01, ha="left")
