"""Runs that are killed at random moments, again and again, against runs that are not: do they end in the same bytes?

    python experiments/interruptions.py                  # 50 kills over two experiments, then three full disks
    python experiments/interruptions.py --kills 6 --chains 2 --experiments rates --no-full-disk
    python experiments/interruptions.py --kills 0 --no-full-disk --processes ddp joblib     # 20 kills of each

Each experiment runs once uninterrupted. Then the same command is started in a fresh directory and killed at a random moment
of its work (four in five times by SIGKILL, else by SIGTERM), started again, killed again, and at last left to end: a chain.
 Printed are the kills by stage, and whether network.npz and latents.npz of each chain are
those of the uninterrupted run, byte for byte. For the full disk the run directory lies on a small file system in memory
(mount, as root) or, where that cannot be had, files are limited in size (RLIMIT_FSIZE): the run has to say so in two
lines, keep what it had, and go on when there is room.

With --processes a training on two devices (ddp) and a sweep of two jobs side by side (joblib) are killed: the process that
was started or one of those that it started, drawn by chance, at a moment drawn over the time of an uninterrupted run. No
process may be left after 15 s, and the end is compared as above. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from connector.data.attractors import teacher
from connector.data.simulation import simulate_recording
from connector.errors import UserError, exit_code
from connector.files import write_npz
from connector.runs.store import RunStore

ENTRY = Path(__file__).resolve().parent.parent / "train.py"
# Small, yet training takes a few seconds in each stage: epochs are many, networks and recordings are not.
_COMMON = [
    "data=npz", "connectivity.early_stopping=false", "connectivity.outputs_loadings=2048", "report=false",
    "connectivity.loadings_epochs=400", "connectivity.outputs_epochs=60", "trainer.threads=1", "trainer.progress=false",
]  # fmt: skip
EXPERIMENTS = {
    "rates": ["lrrnn.max_epochs=20", "lrrnn.batch_size=4", *_COMMON],
    "spikes": [
        "lrrnn.inference=encoder", "lrrnn.max_epochs=25", "lrrnn.batch_size=8", "lrrnn.n_units=32", "connectivity.estimator=ridge",
        "connectivity.regularizer=1e-6", *_COMMON,
    ],
}  # fmt: skip
_RECORDINGS = {
    "rates": ("quadstable", {"n_neurons": 80, "n_grid": 6, "n_steps": 30, "observation_noise_std": 0.1}),
    "spikes": ("bistable", {"n_neurons": 30, "n_grid": 6, "n_steps": 30, "observation": "spikes"}),
}
COMPARED = ("latents.npz", "network.npz")
STAGES = ("lrrnn", "loadings", "outputs", "results")
_STAGE = re.compile(r"INFO (lrrnn|loadings|outputs|results): (.*)")
_TICK = os.sysconf("SC_CLK_TCK")


def recording(name: str, directory: Path) -> list[str]:
    """Simulate the recording of an experiment to a file; the options that read it."""
    system, size = _RECORDINGS[name]
    simulated, _ = simulate_recording(teacher(system), seed=1, **size)
    path = directory / f"{name}.npz"
    write_npz(path, {name: simulated.activity})
    return [*EXPERIMENTS[name], f"data.path={path}"]


def state_of(pid: int) -> list[str] | None:
    """What the system says of a process, behind its name in /proc/PID/stat; None where it has ended."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return fields
    return None


class Started:
    """The real command, in a process of its own."""

    def __init__(self, options: Sequence[str], directory: Path, limit_bytes: int | None = None, sweep: bool = False):
        command = [sys.executable, str(ENTRY), *options, f"hydra.{'sweep' if sweep else 'run'}.dir={directory}"]
        self.log, self.directory = directory / "train.log", directory
        self.lines_before = len(self.lines())
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=None if limit_bytes is None else lambda: _limit_files(limit_bytes),
        )  # fmt: skip

    def lines(self) -> list[str]:
        """What the run has logged, all its processes together."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def cpu_seconds(self) -> float | None:
        """User and system time of the process so far; None where it has ended."""
        fields = state_of(self.process.pid)
        return None if fields is None else (int(fields[11]) + int(fields[12])) / _TICK

    def wait_for_stage(self, stage: str) -> float | None:
        """CPU time when the stage, or a later one, begins; None where the process ended first."""
        while (spent := self.cpu_seconds()) is not None:
            lines = self.lines()[self.lines_before :]
            if lines and STAGES.index(stage) <= (*STAGES, "end").index(stage_of(lines)):
                return spent
            time.sleep(0.02)
        return None

    def end(self) -> tuple[int, str]:
        """Wait: exit code and what was said on stderr."""
        said = self.process.communicate()[1]
        return self.process.returncode, said


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have started."""
    states = {int(folder.name): state_of(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    parents = {child: int(fields[1]) for child, fields in states.items() if fields is not None}
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def left_over(pids: Sequence[int], within_s: float = 15.0) -> list[int]:
    """Those of the processes that are still there after so many seconds."""
    until, left = time.monotonic() + within_s, list(pids)
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = [pid for pid in left if state_of(pid) is not None]
    return left


PROCESSES = {
    "ddp": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
    "joblib": ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2"],
}
_FEW_EPOCHS = ["connectivity.loadings_epochs=100", "connectivity.outputs_epochs=15", "lrrnn.max_epochs=8"]


def runs_in(kind: str, directory: Path) -> list[Path]:
    """Directories of the runs of a command, in the order of their names."""
    return [directory] if kind == "ddp" else sorted(path.parent for path in directory.glob("*/config.yaml"))


def processes_killed(kind: str, base: Path, n_kills: int, draw: random.Random) -> tuple[Counter, list[str]]:
    """Kill a command of several processes so often, go on after each kill, compare each end; kills by process, what differs."""
    options = [*PROCESSES[kind], *recording("rates", base), *_FEW_EPOCHS]
    reference, began = base / kind / "uninterrupted", time.monotonic()
    code, said = Started(options, reference, sweep=kind == "joblib").end()
    seconds = time.monotonic() - began
    if code != 0:
        raise UserError("a command that ends well when it is left alone", f"exit code {code}: {said[-500:]}")
    kills, wrong, number = Counter(), [], 0
    while kills.total() < n_kills:
        directory, number, ended = base / kind / f"chain-{number}", number + 1, False
        while not ended:
            started, moment = Started(options, directory, sweep=kind == "joblib"), draw.uniform(0.0, seconds)
            if kills.total() < n_kills:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.process.wait(moment)
            else:
                started.process.wait()
            below = descendants(started.process.pid)
            if started.process.poll() is None:
                victim = draw.choice([started.process.pid, *below])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                who = "first" if victim == started.process.pid else "other"
                kills[who] += 1
                print(f"  {kind}: killed the {who} process after {moment:.1f} of {seconds:.1f} s", flush=True)
            code, said = started.end()
            wrong += [f"chain {number}: process {pid} left" for pid in left_over(below)]
            if code not in (0, 1, -9) or "Traceback" in said:
                wrong.append(f"chain {number}: exit code {code}: {said.strip()[-300:]}")
            ended = code == 0
        pairs = list(zip(runs_in(kind, directory), runs_in(kind, reference), strict=True))
        differing = [f"chain {number}: {name}" for pair in pairs for name in differences(*pair)]
        wrong += differing
        print(f"{kind} {number - 1}: {differing or 'same bytes'}", flush=True)
    return kills, wrong


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def stage_of(lines: Sequence[str]) -> str:
    """The stage at work, by the log of one process."""
    stage = STAGES[0]
    for line in lines:
        found = _STAGE.search(line)
        if found:
            ended = found[2].startswith(("done", "reused"))
            stage = (*STAGES, "end")[STAGES.index(found[1]) + ended]
    return stage


@dataclass
class Chain:
    """One run with its kills: (signal, stage, exit code) each, and whether it ended as the uninterrupted one."""

    kills: list[tuple[str, str, int]]
    differing: list[str]


def uninterrupted(options: Sequence[str], directory: Path) -> dict[str, float]:
    """Run to the end; CPU seconds of each stage."""
    code, said = Started(options, directory).end()
    if code != 0:
        raise UserError("a run that ends well when it is left alone", f"exit code {code}: {said[-500:]}")
    return {stage: record["cpu_seconds"] for stage, record in RunStore(directory).stages().items()}


def moment_of(position: float, work: dict[str, float]) -> tuple[str, float]:
    """Stage, and CPU seconds within it, at ``position`` CPU seconds of the work of all stages."""
    for stage in STAGES:
        if position < work[stage]:
            return stage, position
        position -= work[stage]
    return STAGES[-1], work[STAGES[-1]]


def differences(directory: Path, reference: Path) -> list[str]:
    """Files that are not as those of the uninterrupted run, byte for byte, and what was left half-written."""
    differing = [name for name in COMPARED if (directory / name).read_bytes() != (reference / name).read_bytes()]
    return differing + [str(path.relative_to(directory)) for path in directory.rglob("*.part")]


def chain(
    options: Sequence[str], directory: Path, reference: Path, n_kills: int, work: dict[str, float], draw: random.Random
) -> Chain:
    """Start, kill and start again, ``n_kills`` times, then let it end and compare.

    Kills fall at moments drawn evenly over the work of an uninterrupted run, one after the other: each process goes on where
    the last was killed, until the next moment (the results, which are not trained, begin anew each time).
    """
    moments = sorted(draw.uniform(0.0, sum(work.values())) for _ in range(n_kills))
    kills, spent_before = [], Counter()
    for position in moments:
        how = signal.SIGKILL if draw.random() < 0.8 else signal.SIGTERM
        stage, offset = moment_of(position, work)
        started = Started(options, directory)
        at_work = started.wait_for_stage(stage)
        due = offset - (spent_before[stage] if stage != "results" else 0.0)
        while at_work is not None and (spent := started.cpu_seconds()) is not None and spent - at_work < due:
            time.sleep(0.01)
            spent_before[stage] = max(spent_before[stage], offset - due + spent - at_work)
        if started.process.poll() is not None:
            code, said = started.end()
            if code != 0:
                return Chain(kills, [f"exit code {code}: {said.strip()[-300:]}"])
            continue  # faster than the uninterrupted run: it is compared below
        killed_in = stage_of(started.lines()[started.lines_before :])
        started.process.send_signal(how)
        kills.append((how.name, killed_in, started.end()[0]))
        print(f"  {how.name} in {killed_in}", flush=True)
    code, said = Started(options, directory).end()
    return Chain(
        kills, differences(directory, reference) if code == 0 else [f"exit code {code}: {said.strip()[-300:]}"]
    )


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[bool]:
    """A file system of ``size`` bytes at ``directory``; yields False where it may not be mounted."""
    directory.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True
    ).returncode == 0  # fmt: skip
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(directory)], check=True)


def full_disk(options: Sequence[str], base: Path, reference: Path, stage: str) -> list[str]:
    """Fill the disk while ``stage`` is due, see how the run ends, make room, let it go on; what was wrong."""
    directory, wrong = base / f"disk-{stage}", []
    with small_disk(directory, 200 << 20) as mounted:
        run, filler = directory / "run", directory / "filler"
        if stage == "loadings":
            Started([*options, "stages=[lrrnn]"], run).end()
        if stage == "results":
            shutil.copytree(reference, run)
            for name in ("network.npz", "metrics.json"):
                (run / name).unlink()
        run.mkdir(parents=True, exist_ok=True)
        kept = {p: p.read_bytes() for p in run.rglob("*") if p.suffix in (".npz", ".ckpt", ".pt")}
        if mounted:
            room = {"lrrnn": 20_000, "loadings": 30_000, "results": 24_000}[stage]
            free = shutil.disk_usage(directory).free
            filler.write_bytes(b"\0" * (free - room))
            code, said = Started(options, run).end()
        else:
            code, said = Started(options, run, limit_bytes=8_000).end()
        if code != 1:
            wrong.append(f"exit code {code}")
        if "no space" not in said or "Traceback" in said or len(said.strip().splitlines()) > 2:
            wrong.append(f"said: {said.strip()[-400:]}")
        print(f"    {said.strip()}")
        wrong += [f"{path.name} changed" for path, content in kept.items() if path.read_bytes() != content]
        wrong += [f"{path.name} left" for path in run.rglob("*.part")]
        filler.unlink(missing_ok=True)
        code, said = Started(options, run).end()
        if code != 0:
            wrong.append(f"with room again: exit code {code}: {said.strip()[-300:]}")
        else:
            wrong += [
                f"{name} differs" for name in COMPARED if (run / name).read_bytes() != (reference / name).read_bytes()
            ]
    shutil.rmtree(directory)
    return wrong


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all; 0: none")
    parser.add_argument("--chains", type=int, default=6, help="runs that the kills are divided among")
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--processes", nargs="*", choices=list(PROCESSES), default=[], help="several at a time")
    parser.add_argument("--process-kills", type=int, default=20, help="of each of --processes")
    parser.add_argument("--full-disk", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--directory", type=Path, default=Path("runs/interruptions"), help="emptied before")
    given = parser.parse_args(arguments)
    if given.kills and not len(given.experiments) <= given.chains <= given.kills:
        raise UserError(
            "a chain for each experiment and a kill for each chain", f"{given.chains} chains, {given.kills} kills"
        )
    draw, failed = random.Random(given.seed), 0
    base = given.directory.resolve()
    shutil.rmtree(base, ignore_errors=True)
    options, work, done = {}, {}, []
    for name in given.experiments if given.kills or given.full_disk else []:
        options[name] = recording(name, base)
        work[name] = uninterrupted(options[name], base / name / "uninterrupted")
        seconds = ", ".join(f"{stage} {work[name][stage]:.1f}" for stage in STAGES)
        print(f"{name}: CPU s of an uninterrupted run: {seconds}", flush=True)
    for number in range(given.chains if given.kills else 0):
        name = given.experiments[number % len(given.experiments)]
        n_kills = given.kills // given.chains + (number < given.kills % given.chains)
        directory, reference = base / name / f"chain-{number}", base / name / "uninterrupted"
        found = chain(options[name], directory, reference, n_kills, work[name], draw)
        done.append((name, found))
        failed += bool(found.differing)
        kills = ", ".join(f"{how} in {stage} ({code})" for how, stage, code in found.kills)
        print(f"{name} {number}: {kills}: {found.differing or 'same bytes'}", flush=True)
        if not found.differing:
            shutil.rmtree(directory)
    stages = (*STAGES, "end")
    print(
        f"\n{'kills in':<12}" + "".join(f"{stage:>10}" for stage in stages) + f"{'SIGTERM':>10}{'chains':>8}{'same':>6}"
    )
    for name in given.experiments:
        of = [found for which, found in done if which == name]
        counted = Counter(stage for found in of for _, stage, _ in found.kills)
        soft = sum(how == "SIGTERM" for found in of for how, _, _ in found.kills)
        same = sum(not found.differing for found in of)
        print(f"{name:<12}" + "".join(f"{counted[stage]:>10}" for stage in stages) + f"{soft:>10}{len(of):>8}{same:>6}")
    for kind in given.processes:
        found, wrong = processes_killed(kind, base, given.process_kills, draw)
        print(
            f"{kind}: {found['first']} kills of the first process, {found['other']} of others: {wrong or 'same bytes'}"
        )
        failed += len(wrong)
    if given.full_disk:
        name = given.experiments[0]
        for stage in ("lrrnn", "loadings", "results"):
            wrong = full_disk(options[name], base, base / name / "uninterrupted", stage)
            print(
                f"full disk in {stage}: {wrong or 'said so, kept what it had, went on when there was room'}", flush=True
            )
            failed += bool(wrong)
    if failed:
        print(f"{failed} did not end as the uninterrupted run", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(exit_code(main))
