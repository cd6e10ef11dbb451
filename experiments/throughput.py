"""Steps per second and time to target of every stage that trains by gradient descent, on CPU and on GPU.

    python experiments/throughput.py                        on the CPU, and on the GPU where there is one
    python experiments/throughput.py --devices cpu gpu --threads 8 --out runs/throughput.json
    python experiments/throughput.py --all                  these, a data-parallel run on one device, and 1,000 fits as one; 8 minutes

Stages as in a real run, on the simulated quadstable network: the low-rank RNN on rates with the published settings and on
spikes (a few epochs of each), the flows of the loadings and of n with the default ones (whole). Seconds are those of the clock
from the first step on, validations and checkpoints included; CPU seconds beside them tell how busy the machine was
otherwise. The target of a stage is a validation loss within 1 % of the best that every device reached.

The fits that train as one are those of a sweep with `hydra/launcher=ensemble`, from the step on in which they are one computation:
the flows of the loadings and of n with seeds of their own, 1,000 each, on the recording, the low-rank RNN and the nu of one. What the
first stages take is measured by `make bench`. A stage that is not through in its share of the time is stopped after an epoch, and the
rest extrapolated from the epochs that were run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from benchmark import composed, in_own_process, machine, machine_line, quiet
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from connector.files import write_json, write_text
from connector.launch.flow_ensemble import train_as_one
from connector.launch.job import run_stages
from connector.launch.planning import build_data, plan
from connector.launch.wandb_run import NoRun
from connector.runs.store import RunStore
from connector.stages.flows import FlowJob
from connector.stages.loadings import prepare_loadings
from connector.stages.outputs import prepare_outputs
from connector.stages.training import StageContext, clock

BUDGET_S = 480.0  # clock seconds of --all
DDP = ["trainer=ddp", "trainer.devices=1"]  # on the GPU, where there is one
DDP_CASES = ("low-rank RNN, rates", "flow of the loadings")
SPIKES = ["data.observation=spikes", "data.n_neurons=100", "lrrnn.inference=encoder"]
# name -> stage, options and epochs of each (None: as many as the recipe has)
CASES = {
    "low-rank RNN, rates": ("lrrnn", ["lrrnn=published"], 4),
    "low-rank RNN, spikes": ("lrrnn", SPIKES, 4),
    "flow of the loadings": ("loadings", [], None),
    "flow of n": ("outputs", [], None),
}


@dataclass
class Throughput:
    """One stage on one device: steps taken, seconds of the clock and of CPU time, and the course of the validation loss.

    Attributes:
        course: (seconds from the first step, validation loss) after each epoch that was validated.
        to_target_s: seconds to the target; None where it was not reached.
    """

    case: str
    device: str
    steps: int
    seconds: float
    cpu_s: float
    course: list[tuple[float, float]]
    to_target_s: float | None = None


class Course(Callback):
    """Notes time, steps and validation loss at the end of each epoch."""

    def __init__(self):
        self.epochs: list[tuple[float, float, int, float | None]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = clock()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, cpu_s = clock() - self._started
        loss = trainer.callback_metrics.get(f"{module.stage}/val_loss")
        self.epochs.append((seconds, cpu_s, trainer.global_step, None if loss is None else float(loss)))


def measure(case: str, device: str, threads: int, extra: Sequence[str] = ()) -> Throughput:
    """Train the stage of a case on a device ("cpu", "gpu", or "ddp": data-parallel on one), after the stages that it builds on."""
    quiet(threads)
    stage, overrides, epochs = CASES[case]
    on = DDP if device == "ddp" else [f"trainer={device}"]
    overrides = [*overrides, *on, f"trainer.threads={threads}", "trainer.progress=false"]
    options = composed(*overrides, *([] if epochs is None else [f"lrrnn.max_epochs={epochs}"]), *extra)
    with tempfile.TemporaryDirectory() as directory:
        data = build_data(options)
        data.setup()
        schedule, course = plan(options, data), Course()
        context = StageContext(options, RunStore(directory), NoRun(), Console(quiet=True), lambda line: None)
        for name in schedule.requested[: schedule.requested.index(stage) + 1]:
            watched = replace(context, callbacks=[course] if name == stage else [])
            run_stages(watched, data, replace(schedule, requested=(name,)))
    seconds, cpu_s, steps, _ = course.epochs[-1]
    losses = [(at, loss) for at, _, _, loss in course.epochs if loss is not None]
    return Throughput(case, device, steps, float(seconds), float(cpu_s), losses)


def set_targets(measured: list[Throughput], within: float = 0.01) -> None:
    """Seconds of each to the loss that all devices of its case came to, but for 1 %."""
    for case in {one.case for one in measured}:
        same = [one for one in measured if one.case == case and one.course]
        worst = max((min(loss for _, loss in one.course) for one in same), default=None)
        for one in same:
            reached = [seconds for seconds, loss in one.course if loss <= worst + within * abs(worst)]
            one.to_target_s = reached[0] if reached else None


@dataclass
class Ensemble:
    """Flows of one stage trained as one.

    Attributes:
        seconds: of the clock for the epochs that were run; whole_s: for all of them.
    """

    stage: str
    device: str
    fits: int
    epochs: int
    of_epochs: int
    seconds: float
    cpu_s: float
    whole_s: float


class _TimeUp(Exception):
    pass


def copies(job: FlowJob, n: int) -> list[FlowJob]:
    """The job with n seeds: networks that start elsewhere, batches in another order; data shared."""
    found = []
    for seed in range(1, n + 1):
        one = replace(job, module=copy.deepcopy(job.module), data=copy.copy(job.data))
        one.module.seed = one.data.seed = seed
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in one.module.flow.velocity.parameters():
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
        found.append(one)
    return found


def ensemble(n: int, device: str, limit_s: float, threads: int, extra: Sequence[str] = ()) -> list[Ensemble]:
    """Train n fits of quadstable as one, each stage for ``limit_s`` clock seconds at most."""
    quiet(threads)
    options = composed(f"trainer={device}", f"trainer.threads={threads}", "trainer.progress=false", *extra)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        data = build_data(options)
        data.setup()
        schedule = plan(options, data)
        context = StageContext(options, RunStore(directory), NoRun(), Console(quiet=True), lambda line: None)
        for stage, prepare in (("lrrnn", None), ("loadings", prepare_loadings), ("outputs", prepare_outputs)):
            if prepare is not None:
                job = prepare(context, context.store.read_stage_inputs(), schedule.marks[stage])
                found.append(_trained_as_one(copies(job, n), device, limit_s))
            if stage != "outputs":  # what the next stage builds on, of one fit
                run_stages(context, data, replace(schedule, requested=(stage,)))
    return found


def _trained_as_one(jobs: list[FlowJob], device: str, limit_s: float) -> Ensemble:
    started, epochs = clock(), 0
    spent = started - started

    def watch(epoch: int) -> None:
        nonlocal epochs, spent
        epochs, spent = epoch, clock() - started
        if spent[0] > limit_s:
            raise _TimeUp

    with contextlib.suppress(_TimeUp):
        train_as_one(jobs, watch)
    seconds, cpu_s = (float(x) for x in spent)
    whole = seconds * jobs[0].epochs / epochs
    return Ensemble(jobs[0].stage, device, len(jobs), epochs, jobs[0].epochs, seconds, cpu_s, whole)


def ensemble_table(found: list[Ensemble]) -> str:
    lines = [
        "| as one | device | fits | epochs | seconds | all epochs, s | s a fit |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        numbers = (
            f"{one.epochs} of {one.of_epochs} | {one.seconds:.3g} | {one.whole_s:.3g} | {one.whole_s / one.fits:.2g}"
        )
        lines.append(f"| flows of {one.stage} | {one.device} | {one.fits:,} | {numbers} |")
    return "\n".join(lines)


def table(measured: list[Throughput]) -> str:
    lines = [
        "| stage | device | steps | steps per s | steps per CPU s | to target, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in measured:
        to_target = "" if one.to_target_s is None else f"{one.to_target_s:.2g}"
        rates = f"{one.steps / one.seconds:.3g} | {one.steps / one.cpu_s:.3g}"
        lines.append(f"| {one.case} | {one.device} | {one.steps} | {rates} | {to_target} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--devices", nargs="+", choices=("cpu", "gpu"), default=None)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument(
        "--all", action="store_true", help="also a data-parallel run on one device and many fits as one"
    )
    parser.add_argument("--fits", type=int, default=1000, help="that train as one, with --all")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="clock seconds for --all")
    parser.add_argument("--overrides", nargs="*", default=[], help="options of train.py")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/throughput.json"), help="the markdown goes beside it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 2 for a device that is not there."""
    chosen, started = parse(arguments), time.monotonic()
    there = ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]
    if set(chosen.devices or there) - set(there):
        print(
            "Error: expected a machine with a GPU that torch sees for --devices gpu; got one without", file=sys.stderr
        )
        return 2
    devices, best = chosen.devices or there, there[-1]
    measured, together = [], []
    wanted = [(case, device) for case in chosen.cases for device in devices]
    if chosen.all:
        wanted += [(case, "ddp") for case in DDP_CASES if case in chosen.cases]
    for case, device in wanted:
        # A process group, once joined, stays with its process.
        run = in_own_process if device == "ddp" else _here
        measured.append(run(measure, case, device, chosen.threads, chosen.overrides))
        print(f"{case}, {device}: {measured[-1].steps} steps in {measured[-1].seconds:.1f} s", flush=True)
    set_targets(measured)
    if chosen.all:
        # Half of the time that is left for each of two stages, less what preparing them takes.
        limit_s = max(1.0, 0.4 * (chosen.budget - (time.monotonic() - started)))
        together = ensemble(chosen.fits, best, limit_s, chosen.threads, chosen.overrides)
    about = machine_line(machine(chosen.threads))
    if torch.cuda.is_available():
        about += f"; {torch.cuda.get_device_name()}"
    text = "\n\n".join([f"{about}.", table(measured), *([ensemble_table(together)] if together else [])])
    if chosen.all:
        text += f"\n\nAll of it took {time.monotonic() - started:.0f} s."
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    parts = {"measured": [asdict(one) for one in measured], "together": [asdict(one) for one in together]}
    write_json(chosen.out, {"machine": about, **parts})
    write_text(chosen.out.with_suffix(".md"), text + "\n")
    print(f"\n{text}")
    return 0


def _here(function, *arguments):
    return function(*arguments)


if __name__ == "__main__":
    sys.exit(main())
