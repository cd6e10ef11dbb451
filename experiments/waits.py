"""How long people wait: CPU seconds and memory of the commands that they type, each run several times.

    python experiments/waits.py --page docs/benchmarks.md                  what takes seconds
    python experiments/waits.py --cases rat --recording SESSION.mat        a fold of a recording
    python experiments/waits.py --cases sweep joblib ensemble              16 seeds in three ways (half an hour)
    python experiments/waits.py --code ../earlier --out runs/earlier.json  the commands of another checkout
    python experiments/waits.py --beside earlier=runs/earlier.json         their CPU seconds in a column of the table

CPU seconds are user plus system time of the command and of what it starts. Each number is a median, with the smallest and
the largest beside. Run it alone on a machine: a busy one takes up to twice the seconds. Each case is written when it is measured; cases
that the file has from the same machine, commit and options stay in it, and in the table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmark import machine, machine_line, progress_of
from marked_pages import markdown_table, rewrite
from rich.console import Console

from connector.errors import UserError, exit_code
from connector.files import read_json, write_json
from connector.runs.provenance import git_state

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("lrrnn", "loadings", "outputs", "results")
_DONE = re.compile(r"^(\w+): done in [\d.]+ s \(([\d.]+) s of CPU time\)", re.MULTILINE)
_LOAD = "import sys, connector; connector.load_run(sys.argv[1]).connectivity"


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        what: in words. arguments: of train.py. code: of ``python -c`` in place of train.py. after: the case whose run it finds
            finished; None: it begins in an empty directory. status: that it ends with. costly: left out unless it is named.
    """

    what: str
    arguments: tuple[str, ...] = ()
    code: str | None = None
    after: str | None = None
    status: int = 0
    costly: bool = False


_SWEEP = ("-m", "seed=range(1,{last})", "report=false", "trainer.threads=1")
CASES = {
    "default": Case("default run", ("seed=1", "trainer.threads=1")),
    "repeated": Case("the same run again, finished", ("seed=1", "trainer.threads=1"), after="default"),
    "load": Case("`load_run(...).connectivity`", code=_LOAD, after="default"),
    "spikes": Case("spikes of 500 neurons", ("data.observation=spikes", "data.n_neurons=500", "seed=1", "trainer.threads=1")),
    "help": Case("`--help`", ("--help",)),
    "refused": Case("a refused option", ("lrrnn.rnak=2",), status=2),
    "missing": Case("a missing file", ("data=npz", "data.path=missing.npz"), status=2),
    "rat": Case("rat session, one fold", ("experiment=rat", "data.path={recording}", "trainer.threads=1"), costly=True),
    "sweep": Case("{seeds} seeds, one after the other", _SWEEP, costly=True),
    "joblib": Case("{seeds} seeds, two at a time", (*_SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), costly=True),
    "ensemble": Case("{seeds} seeds as an ensemble", (*_SWEEP, "hydra/launcher=ensemble"), costly=True),
}  # fmt: skip


@dataclass
class Wait:
    """Of one case: CPU and elapsed seconds of each run, those of its stages, and peaks of memory in GiB."""

    name: str
    what: str
    cpu_s: list[float] = field(default_factory=list)
    elapsed_s: list[float] = field(default_factory=list)
    peak_gib: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)


def run_once(case: Case, found: Wait, code: Path, directory: Path, words: dict[str, str], extra: Sequence[str]) -> None:
    """Run the command of a case in a checkout and note what it took; ``words`` fill the braces of its arguments.

    Raises:
        RuntimeError: it ended otherwise than it should.
    """
    if case.code is not None:
        command = [sys.executable, "-c", case.code, str(directory)]
    else:
        where = "hydra.sweep.dir" if "-m" in case.arguments else "hydra.run.dir"
        arguments = [x.format(**words) for x in case.arguments]
        command = [sys.executable, "train.py", *arguments, *(() if case.status or "--help" in arguments else extra)]
        command += [] if "--help" in arguments else [f"{where}={directory}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=code, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode != case.status:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, not {case.status}:\n{text[-2000:]}")
    found.cpu_s.append(used.ru_utime + used.ru_stime)
    found.elapsed_s.append(elapsed)
    found.peak_gib.append(used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20))
    if "-m" not in case.arguments:
        for stage, seconds in _DONE.findall(text):
            found.stages.setdefault(stage, []).append(float(seconds))


def measure(
    names: Sequence[str],
    code: Path,
    repeats: int,
    words: dict[str, str],
    extra: Sequence[str],
    start: Callable[[str], None],
) -> Iterator[Wait]:
    """Each case ``repeats`` times, in the order of :data:`CASES`; ``start`` is told of each run."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in (n for n in CASES if n in names):
            case, wait = CASES[name], Wait(name, CASES[name].what.format(**words))
            directory = Path(scratch) / (case.after or name)
            if case.after is not None and not directory.exists():
                start(f"{wait.what}: a first run")
                run_once(CASES[case.after], Wait("", ""), code, directory, words, extra)
            for number in range(repeats):
                start(f"{wait.what}, {number + 1} of {repeats}")
                if case.after is None:
                    shutil.rmtree(directory, ignore_errors=True)
                run_once(case, wait, code, directory, words, extra)
            yield wait


def _spread(values: Sequence[float], digits: int = 1) -> str:
    median = f"{statistics.median(values):.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(waits: Sequence[Wait], beside: Mapping[str, Sequence[Wait]] | None = None) -> str:
    """``beside``: other measurements of the same cases, of which CPU seconds are shown."""
    others = {name: {wait.name: wait for wait in found} for name, found in (beside or {}).items()}
    heads = ["command", "runs", "CPU s", *(f"CPU s, {name}" for name in others), "elapsed s", "peak GiB"]
    heads += [f"{stage}, CPU s" for stage in STAGES]
    rows = []
    for wait in waits:
        digits = 2 if statistics.median(wait.cpu_s) < 5 else 1
        stages = [_spread(wait.stages[stage]) if stage in wait.stages else "" for stage in STAGES]
        before = [_spread(found[wait.name].cpu_s, digits) if wait.name in found else "" for found in others.values()]
        sizes = [_spread(wait.cpu_s, digits), *before, _spread(wait.elapsed_s, digits), f"{max(wait.peak_gib):.1f}"]
        rows.append([wait.what, str(len(wait.cpu_s)), *sizes, *stages])
    return markdown_table(heads, rows)


def read(path: Path) -> tuple[dict[str, Any], list[Wait]]:
    """Machine, code and options of a file that this script wrote, and the waits; nothing where there is no file.

    Raises:
        UserError: another file.
    """
    found = read_json(path)
    if not found:
        return {}, []
    try:
        return {name: found.get(name) for name in ("machine", "code", "options")}, [Wait(**x) for x in found["waits"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"a file that waits.py wrote in {path}", "another one", "choose another --out or --beside"
        ) from error


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: all that take less than two minutes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recording", type=Path, help="a session of the rat data, for the case rat")
    parser.add_argument("--seeds", type=int, default=16, help="of the sweeps")
    parser.add_argument("--code", type=Path, default=ROOT, help="a checkout whose train.py is run")
    parser.add_argument("--options", nargs="*", default=[], help="further options of train.py")
    parser.add_argument("--out", type=Path, default=Path("runs/waits.json"))
    parser.add_argument(
        "--beside", nargs="+", default=[], metavar="NAME=FILE", help="earlier measurements of the same cases"
    )
    parser.add_argument("--page", type=Path, help="a page whose table of waits to replace")
    found = parser.parse_args(arguments)
    found.cases = found.cases or [name for name, case in CASES.items() if not case.costly]
    if "rat" in found.cases and (found.recording is None or not found.recording.exists()):
        parser.error("--recording FILE, a session of the rat data that exists, for the case rat")
    found.beside = dict(text.partition("=")[::2] for text in found.beside)
    if missing := [name for name, path in found.beside.items() if not path or not Path(path).exists()]:
        parser.error(f"--beside NAME=FILE, a file that waits.py wrote, for {missing[0]}")
    if min(found.repeats, found.seeds) < 1:
        parser.error("--repeats and --seeds of 1 or more")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    asked = parse(arguments)
    console, of = Console(), machine(1)
    recording = "" if asked.recording is None else str(asked.recording.resolve())
    words = {"recording": recording, "seeds": str(asked.seeds), "last": str(asked.seeds + 1)}
    first = {CASES[name].after for name in asked.cases} - {None, *asked.cases}
    code = git_state(asked.code.resolve())
    state = {"machine": of, "code": code, "options": asked.options}
    last, waits = read(asked.out)
    known = code is not None and not code["changed"]  # else the same words may stand for other code
    found = {wait.name: wait for wait in waits} if known and last == state else {}
    beside = {name: read(Path(path))[1] for name, path in asked.beside.items()}
    with progress_of(console, len(asked.cases) * asked.repeats + len(first)) as start:
        for wait in measure(asked.cases, asked.code.resolve(), asked.repeats, words, asked.options, start):
            found[wait.name] = wait
            waits = [found[name] for name in CASES if name in found]
            write_json(asked.out, state | {"waits": [asdict(wait) for wait in waits]})
    told = table(waits, beside)
    console.print(machine_line(of), told, sep="\n\n", soft_wrap=True, highlight=False, markup=False)
    if asked.page is not None:
        rewrite(asked.page, "waits", f"Measured on: {machine_line(of)}.\n\n{told}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
