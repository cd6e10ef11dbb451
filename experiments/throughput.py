"""Steps per second and time to target of every stage that trains by gradient descent, on CPU and on GPU.

    python experiments/throughput.py                        on the CPU, and on the GPU where there is one
    python experiments/throughput.py --devices cpu gpu --threads 8 --out runs/throughput.json

Stages as in a real run, on the simulated quadstable network: the low-rank RNN on rates with the published settings and on
spikes (a few epochs of each), the flows of the loadings and of n with the default ones (whole). Seconds are those of the clock
from the first step on, validations and checkpoints included; CPU seconds beside them tell how busy the machine was
otherwise. The target of a stage is a validation loss within 1 % of the best that every device reached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from benchmark import composed, machine, machine_line, quiet
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from connector.files import write_json, write_text
from connector.launch.job import run_stages
from connector.launch.planning import build_data, plan
from connector.launch.wandb_run import NoRun
from connector.runs.store import RunStore
from connector.stages.training import StageContext, clock

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


def measure(case: str, device: str, threads: int) -> Throughput:
    """Train the stage of a case on a device ("cpu" or "gpu"), after the stages that it builds on."""
    stage, overrides, epochs = CASES[case]
    overrides = [*overrides, f"trainer={device}", f"trainer.threads={threads}", "trainer.progress=false"]
    options = composed(*overrides, *([] if epochs is None else [f"lrrnn.max_epochs={epochs}"]))
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--devices", nargs="+", choices=("cpu", "gpu"), default=None)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/throughput.json"), help="the markdown goes beside it")
    chosen = parser.parse_args(arguments)
    there = ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]
    if set(chosen.devices or there) - set(there):
        print(
            "Error: expected a machine with a GPU that torch sees for --devices gpu; got one without", file=sys.stderr
        )
        return 2
    quiet(chosen.threads)
    measured = []
    for case in chosen.cases:
        for device in chosen.devices or there:
            measured.append(measure(case, device, chosen.threads))
            print(f"{case}, {device}: {measured[-1].steps} steps in {measured[-1].seconds:.1f} s", flush=True)
    set_targets(measured)
    about = machine_line(machine(chosen.threads))
    if torch.cuda.is_available():
        about += f"; {torch.cuda.get_device_name()}"
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, {"machine": about, "measured": [asdict(one) for one in measured]})
    write_text(chosen.out.with_suffix(".md"), f"{about}\n\n{table(measured)}\n")
    print(f"\n{about}\n\n{table(measured)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
