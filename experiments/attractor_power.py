"""Could these trials tell two attractors from one slow point? Data sets simulated with either, fitted like the recording.

    python experiments/attractor_power.py --data-sets 5
    python experiments/attractor_power.py --data-sets 5 --trials 3

A truth keeps what was fitted to the recording (how neurons read the latents, noise, baseline; trials with their lengths
and inputs), but its dynamics without input are simple: one slow point (time constant drawn between .7 and 2 s) or two
attractors (at .7 to 1.3 times the spread of the latents), along the axis on which clicks act. Clicks act so strongly that
the noise-free latents spread as far as those fitted to the recording. Each data set is simulated anew, fitted by the same training, and measured like the recording:

separation   of left and right trials 2 s after their end, without input, relative to that at their end: how often it
             tells the two kinds apart;
points       stable fixed points without input: how often their number comes back, with its interval (Wilson).

--trials repeats every trial that many times, with fresh noise. Each finished data set is added to --out, and the same
command goes on where an interrupted one stopped. Figure 5 draws what it finds there.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from saved_runs import SpikeRun, finish, recording_arguments, spike_run
from scipy.stats import binomtest
from torch import Tensor

from connector.analysis.predictions import ChoiceReadout, decay_times, separation, stable_points
from connector.data.folds import Fold
from connector.data.modules import RecordingDataModule
from connector.dynamics import Network
from connector.errors import UserError
from connector.files import write_json
from connector.launch.job import quiet
from connector.launch.wandb_run import NoRun
from connector.lrrnn.spikes.baselines import Baseline
from connector.lrrnn.spikes.model import SpikeModel
from connector.runs.options import Options, checked
from connector.runs.store import RunStore
from connector.stages.lrrnn import fit_spike_model
from connector.stages.training import StageContext
from connector.types import Recording, TrialBatch, last_states

KINDS = ("one slow point", "two attractors")
AFTER_S = 2.0  # after trial end
_SLOW_S = (0.7, 2.0)  # time constant of the slow point
_GROWTH_S = (0.3, 0.8)  # time constant of growth between the two attractors
_WIDTH = (0.7, 1.3)  # distance of the attractors over that of left and right trials at their end
_ACROSS_S = 0.3  # time constant in all other directions
_GAIN = 2.0
_FIXED = 0.9575  # the fixed point of x = tanh(2 x)
REACH = 2.5  # fixed points count within so many times the range of the latents


# --- truths -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """Latent dynamics along the axis on which inputs act, and relaxation across it.

    Attributes:
        kind: of KINDS; axis: (R,), of length 1.
        time_s: time constant of the slow point, or of the growth between the attractors.
        width: half the distance of the attractors, latent units; 0 for one point.
        tau_s, alpha: time constant and Euler step of the network.
        push: (U,) effect of each input along the axis, latent units per tau.
        slope: of the log odds of choosing right on the position along the axis at trial end.
    """

    kind: str
    axis: Tensor
    time_s: float
    width: float
    tau_s: float
    alpha: float
    push: Tensor
    slope: float

    def field(self, z: Tensor) -> Tensor:
        """dz/dt without input at z (..., R), units 1 / tau."""
        x = (z @ self.axis)[..., None]
        across = -(self.tau_s / _ACROSS_S) * (z - x * self.axis)
        rate = self.tau_s / self.time_s
        if self.kind == KINDS[0]:
            return across - rate * x * self.axis
        c = self.width / _FIXED
        return across + rate / (_GAIN - 1) * (-x + c * torch.tanh(_GAIN * x / c)) * self.axis

    def run(self, start: Tensor, inputs: Tensor, noise: Tensor | None = None) -> Tensor:
        """States (B, time, R) from start (B, R) under inputs (B, time, U); noise (time, B, R) added in each step."""
        z = [start]
        for t in range(inputs.shape[1] - 1):
            drift = self.field(z[-1]) + (inputs[:, t] @ self.push)[:, None] * self.axis
            z.append(z[-1] + self.alpha * drift + (0.0 if noise is None else noise[t]))
        return torch.stack(z, 1)


@torch.no_grad()
def draw_truth(kind: str, run: SpikeRun, generator: torch.Generator) -> Truth:
    """A truth of that kind for the recording and the fit of ``run``."""
    recording, model, latents = run.recording, run.model, run.latents
    network, mask = model.rnn.network().double(), recording.mask
    if recording.n_inputs != 2:
        raise UserError("two inputs, to the left and to the right", str(recording.n_inputs))
    inputs = recording.inputs.double()
    # The axis: where a click on the right moves the state, less where one on the left does, on average.
    states = latents.z[mask][:: max(1, int(mask.sum()) // 500)]
    unit = torch.eye(2, dtype=torch.float64) * float(inputs[inputs > 0].mean())
    moved = [network.drive(states, one.expand(len(states), -1)).mean(0) for one in unit]
    axis = (moved[1] - moved[0]) / (moved[1] - moved[0]).norm()
    fitted = model.infer(TrialBatch.of(recording, None, run.baseline.argument), rollout=True).double()[mask]
    spread = float(torch.linalg.eigvalsh(torch.cov(fitted.T))[-1].sqrt())
    ends = last_states(latents.z, recording.lengths)
    slope = float(ChoiceReadout.fit(ends[run.fold.train], recording.choices[run.fold.train]).axis.norm())
    first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    low, high = _SLOW_S if kind == KINDS[0] else _GROWTH_S
    width = 0.0 if kind == KINDS[0] else spread * (_WIDTH[0] + second * (_WIDTH[1] - _WIDTH[0]))
    mean = inputs[mask].mean(0)
    balanced = torch.stack([-mean[1] / mean[0], torch.ones((), dtype=torch.float64)])  # no drift to either side
    tau_s = recording.bin_s / latents.alpha
    truth = Truth(kind, axis, low + first * (high - low), width, tau_s, latents.alpha, balanced, slope)
    start = torch.zeros(recording.n_trials, model.rank, dtype=torch.float64)
    weak, strong = 1e-3, 1e3
    for _ in range(30):  # the spread grows with the strength of the inputs
        gain = math.sqrt(weak * strong)
        x = replace(truth, push=gain * balanced).run(start, inputs)[mask] @ axis
        weak, strong = (gain, strong) if float(x.std()) < spread else (weak, gain)
    return replace(truth, push=gain * balanced)


@torch.no_grad()
def simulate_session(
    recording: Recording,
    model: SpikeModel,
    baseline: Baseline,
    truth: Truth,
    repeats: int,
    generator: torch.Generator,
) -> Recording:
    """A recording like ``recording``, each trial ``repeats`` times, with the dynamics of ``truth``.

    The noise, the spread of the states at trial start, readout and baseline are those of ``model``.
    """
    again = torch.arange(recording.n_trials).repeat_interleave(repeats)
    session = recording.trials(again)
    shape = (session.n_steps, session.n_trials, model.rank)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = math.sqrt(truth.alpha) * normal[1:] @ model.noise_factor.double().T
    z = truth.run(normal[0] @ model.start_factor.double().T, session.inputs.double(), noise)
    argument = z @ model.readout.double().T + model.bias.double() + baseline.argument[again].double()
    counts = torch.poisson(model.scale * F.softplus(argument), generator=generator) * session.mask[..., None]
    odds = truth.slope * last_states(z, session.lengths) @ truth.axis
    return replace(
        session,
        activity=counts.float(),
        choices=torch.bernoulli(torch.sigmoid(odds), generator=generator),
        latents=z * session.mask[..., None],
        name=truth.kind,
    )


# --- fits and measures --------------------------------------------------------------------------------------------------


class SimulatedSession(RecordingDataModule):
    """Folds and batches of a recording that is in memory."""

    def __init__(self, recording: Recording, **fold_options):
        super().__init__(**fold_options)
        self._given = recording

    def load(self) -> Recording:
        return self._given


def quick_options(run: SpikeRun, epochs: int | None, trials: int = 1) -> Options:
    """Those of the run, with as many steps of training whatever the number of trials, unless ``epochs`` are given."""
    plain = OmegaConf.create(OmegaConf.to_container(run.config, resolve=True))
    epochs = epochs or max(1, (run.config.lrrnn.max_epochs or SpikeModel.MAX_EPOCHS) // trials)
    return checked(OmegaConf.merge(plain, {"lrrnn": {"max_epochs": epochs}, "trainer": {"progress": False}}))


def refit(recording: Recording, options: Options) -> tuple[SpikeModel, Baseline, Fold]:
    """The model fitted as a run fits it, its baseline, and the fold."""
    data = SimulatedSession(
        replace(recording, latents=None),
        rank=options.lrrnn.rank,
        fold_number=options.data.fold,
        n_folds=options.data.n_folds,
        fold_seed=options.data.fold_seed,
        seed=options.seed,
    )
    data.setup()
    with tempfile.TemporaryDirectory() as directory:
        context = StageContext(options, RunStore(directory), NoRun(), Console(quiet=True), lambda line: None)
        model, baseline, _ = fit_spike_model(context, data, "power")
    return model.eval().requires_grad_(False), baseline, data.fold


def after_trials(
    step: Callable[[Tensor], Tensor], z: Tensor, recording: Recording, tau_s: float, alpha: float
) -> Tensor:
    """Separation (see :func:`connector.analysis.predictions.separation`) from trial end to AFTER_S later, one value per step."""
    steps = round(AFTER_S / (tau_s * alpha)) + 1
    return separation(step, last_states(z, recording.lengths), recording.choices, steps)


def found_points(network: Network, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Stable points without input near the latents z (trials, time, R), and their eigenvalues."""
    states = z[mask]
    starts = states[torch.linspace(0, len(states) - 1, 60).long()]
    return stable_points(network, starts, REACH * float(states.norm(dim=1).quantile(0.98)))


def measure(run: SpikeRun, kind: str, seed: int, repeats: int, options: Options) -> dict:
    """One data set: simulated, fitted, measured; plain numbers."""
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    recording, alpha, tau_s = run.recording, run.latents.alpha, run.recording.bin_s / run.latents.alpha
    truth = draw_truth(kind, run, generator)
    session = simulate_session(recording, run.model, run.baseline, truth, repeats, generator)
    model, baseline, _ = refit(session, options)
    z, network = model.infer(TrialBatch.of(session, None, baseline.argument)).double(), model.rnn.network().double()
    points, eigenvalues = found_points(network, z, session.mask)
    true = after_trials(lambda s: s + alpha * truth.field(s), session.latents, session, tau_s, alpha)
    fitted = after_trials(network.step, z, session, tau_s, alpha)
    return {
        "time_constant_s": truth.time_s,
        "separation_true": float(true[-1]),
        "separation": float(fitted[-1]),
        "curve": [round(float(x), 4) for x in fitted[:: max(1, len(fitted) // 40)]],
        "points": len(points),
        "decay_s": [round(float(t), 4) for t in decay_times(eigenvalues, tau_s)],
        "cpu_seconds": round(time.process_time() - began, 1),
    }


# --- summary ------------------------------------------------------------------------------------------------------------


def wilson(hits: int, count: int) -> str:
    """hits of count with the 95 % interval of the share."""
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return f"{hits} of {count} (95 % interval {interval.low:.2f} to {interval.high:.2f})"


def told_apart(one: list[float], two: list[float]) -> tuple[int, int]:
    """Pairs of data sets, one of each kind, in which that with two attractors keeps the larger separation; all pairs."""
    return sum(b > a for a in one for b in two), len(one) * len(two)


def boundary(sets: list[dict]) -> float:
    """Midway between the mean true separations of the two kinds: fixed by the truths, not by the fits."""
    true = {kind: [s["separation_true"] for s in sets if s["kind"] == kind] for kind in KINDS}
    means = [sum(values) / len(values) for values in true.values()]
    return sum(means) / 2


def verdict(sets: list[dict], value: float | None = None) -> list[str]:
    """What data sets of one size say, in plain sentences; ``value``: the separation of the recording itself."""
    by_kind = {kind: [s for s in sets if s["kind"] == kind] for kind in KINDS}
    if not all(by_kind.values()):
        return ["Both kinds of truth are needed before anything can be said."]
    ranges = {kind: [s["separation"] for s in of] for kind, of in by_kind.items()}
    larger, pairs = told_apart(*(ranges[kind] for kind in KINDS))
    limit = boundary(sets)
    right = sum((s["separation"] > limit) == (s["kind"] == KINDS[1]) for s in sets)
    said = [
        "Separation after refitting: "
        + "; ".join(f"{kind} {min(of):.2f} to {max(of):.2f} ({len(of)} data sets)" for kind, of in ranges.items())
        + f". The larger one is that of two attractors in {larger} of {pairs} pairs; the boundary midway between the "
        f"true values, {limit:.2f}, puts {wilson(right, len(sets))} on the right side.",
        "Number of stable points that comes back: "
        + "; ".join(
            f"{kind} {wilson(sum(s['points'] == i + 1 for s in by_kind[kind]), len(by_kind[kind]))}"
            for i, kind in enumerate(KINDS)
        )
        + ".",
    ]
    better = binomtest(right, len(sets)).proportion_ci(0.95, method="wilson").low > 0.5
    said.append(
        "So the separation tells the two kinds apart more often than chance."
        if better
        else "So it is not shown that the separation tells the two kinds apart, and from a recording like this neither "
        "attractors nor their absence can be concluded."
    )
    if value is not None:
        low = {kind: wilson(sum(x <= value for x in of), len(of)) for kind, of in ranges.items()}
        said.append(
            f"As small as the recording's {value:.2f}: "
            + "; ".join(f"{kind} {text}" for kind, text in low.items())
            + "."
        )
    return said


def read_sets(path: str | Path) -> list[dict]:
    """The finished data sets in a file of this script; none where there is no file."""
    path = Path(path)
    return json.loads(path.read_text())["data_sets"] if path.exists() else []


def groups_of(sets: list[dict]) -> dict[tuple[int, int], list[dict]]:
    """(trials, epochs) -> data sets."""
    groups: dict[tuple[int, int], list[dict]] = {}
    for one in sets:
        groups.setdefault((one["trials"], one["epochs"]), []).append(one)
    return dict(sorted(groups.items()))


def show(sets: list[dict], value: float, console: Console) -> None:
    table = Table(title=f"Separation of left and right trials {AFTER_S:g} s after trial end, relative to trial end")
    for head in ("truth", "trials", "epochs", "time constant, s", "true", "refitted", "stable points", "decay, s"):
        table.add_column(head, justify="left" if head == "truth" else "right")
    for (trials, epochs), group in groups_of(sets).items():
        for one in sorted(group, key=lambda s: (KINDS.index(s["kind"]), s["index"])):
            decay = ", ".join(f"{t:.2f}" for t in one["decay_s"]) or "-"
            table.add_row(one["kind"], f"x {trials}", str(epochs), f"{one['time_constant_s']:.2f}",
                          f"{one['separation_true']:.2f}", f"{one['separation']:.2f}", str(one["points"]), decay)  # fmt: skip
    console.print(table)
    for (trials, epochs), group in groups_of(sets).items():
        console.print(f"Trials x {trials}, {epochs} epochs:", style="bold")
        for line in verdict(group, value if trials == 1 else None):
            console.print(line, highlight=False)


def main(arguments=None) -> None:
    parser = recording_arguments(__doc__)
    parser.add_argument("--data-sets", type=int, default=5, help="of each kind (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first data set (default: 0)")
    parser.add_argument("--trials", type=int, default=1, metavar="FACTOR", help="times as many trials (default: 1)")
    parser.add_argument("--epochs", type=int, help="of each fit (default: those of the run, over FACTOR)")
    parser.add_argument("--json", metavar="FILE", help="results (default: attractor_power.json in --out)")
    arguments = parser.parse_args(arguments)
    if min(arguments.data_sets, arguments.trials) < 1:
        raise UserError("--data-sets and --trials of 1 or more", f"{arguments.data_sets}, {arguments.trials}")
    console = Console(width=120)
    run = spike_run(arguments)
    if run.recording.choices is None or run.recording.bin_s is None:
        raise UserError("a recording with choices and a bin width in seconds", run.recording.name)
    path = Path(arguments.json or Path(arguments.out) / "attractor_power.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    quiet()
    options = quick_options(run, arguments.epochs, arguments.trials)
    epochs = options.lrrnn.max_epochs
    sets = read_sets(path)
    name = run.recording.name
    finished = {(s["kind"], s["seed"], s["trials"], s["epochs"], s["recording"]) for s in sets}
    for index in range(arguments.data_sets):
        for kind in KINDS:
            # The two kinds of one index differ in their noise as well.
            seed = 2 * (arguments.seed + index) + KINDS.index(kind)
            if (kind, seed, arguments.trials, epochs, name) in finished:
                continue
            found = measure(run, kind, seed, arguments.trials, options)
            settings = {"kind": kind, "index": index, "seed": seed, "trials": arguments.trials, "epochs": epochs}
            sets.append({"recording": name, **settings, **found})
            write_json(path, {"data_sets": sets})
            console.print(
                f"{kind}, data set {index + 1} of {arguments.data_sets}: separation {found['separation']:.2f} (true "
                f"{found['separation_true']:.2f}), {found['points']} stable points, {found['cpu_seconds']:.0f} CPU s",
                highlight=False,
            )
    tau_s = run.recording.bin_s / run.latents.alpha
    network = run.model.rnn.network().double()
    value = float(after_trials(network.step, run.latents.z, run.recording, tau_s, run.latents.alpha)[-1])
    show([s for s in sets if s["recording"] == name], value, console)
    console.print(f"{path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    raise SystemExit(finish(main))
