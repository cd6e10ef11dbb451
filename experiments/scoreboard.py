"""Connector beside what else could be used: the same files, the same trials, the same measures.

    python experiments/scoreboard.py                                 all sets and methods; the same command goes on where it ended
    python experiments/scoreboard.py --rat SESSION.mat               with a recorded session (docs/data.md says which)
    python experiments/scoreboard.py --sets flipflop3 --methods ours LDS
    python experiments/scoreboard.py --page docs/scoreboard.md       draw and table the rows that are there, and run what is missing

Each pair of set and method runs in a process of its own and leaves a row in OUT/rows, which is not made again (--force makes it
again). OUT/sets has the sets, OUT/results what `connector score FILE --on SET` reads. A set is simulated or trained here; where the
session is absent its rows are left out, saying so.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmark import in_own_process, machine, machine_line
from scoreboard_page import write_page
from scoreboard_sets import ATTRACTORS, RANKS, SIMULATED, public_set, set_file

from connector.files import read_json, write_json

METHODS = ("PCA + ridge", "LDS", "ours", "published")
RAT = "rat session"


def make_set(name: str, out: Path) -> None:
    """The set's file, and beside it the CPU seconds that it took."""
    started = time.process_time()
    public_set(name, out)
    write_json(set_file(name, out).with_suffix(".json"), {"spent_s": time.process_time() - started})


def run_pair(name: str, method: str, out: Path) -> dict:
    """One method on one simulated set, in this process: its rows."""
    import scoreboard_methods

    started = time.process_time()
    public = public_set(name, out)
    path = None if name in ATTRACTORS else set_file(name, out)
    trained = scoreboard_methods.METHODS[method][1](public, path, RANKS[name])
    scoreboard_methods.save(out, name, trained)
    return rows_of(trained, time.process_time() - started)


def run_session(method: str, path: Path) -> dict:
    """One method on the recorded session, in this process: its rows."""
    import scoreboard_rat

    started = time.process_time()
    name = "ours, fit" if method == "ours" else method
    return rows_of(scoreboard_rat.run(name, path), time.process_time() - started)


def rows_of(trained: dict, spent_s: float) -> dict:
    """Rows as they are written: numbers and words alone."""
    rows = {}
    for method, one in trained.items():
        rows[method] = {
            "scores": {key: vars(value) for key, value in one.scores.items()},
            "cpu_s": one.cost.cpu_s, "peak_gib": one.cost.peak_gib, "whole_s": one.whole_s, "cut": one.cut,
        }  # fmt: skip
    return {"rows": rows, "spent_s": spent_s}


def file_of(name: str, method: str, out: Path) -> Path:
    return out / "rows" / f"{name} {method}.json".replace(" ", "_").replace("+", "and")


def run_missing(sets: Sequence[str], methods: Sequence[str], out: Path, rat: Path | None, force: bool) -> list[str]:
    """Rows that are not there yet, a file each; sentences on what failed."""
    pairs = [(name, method) for method in methods for name in sets]
    if rat is not None:
        pairs += [(RAT, method) for method in methods if method != "published"]
    failed = []
    for i, (name, method) in enumerate(pairs):
        place = file_of(name, method, out)
        if place.exists() and not force:
            continue
        print(f"[{i + 1}/{len(pairs)}] {name}, {method}", flush=True)
        try:
            if name == RAT:
                found = in_own_process(run_session, method, rat)
            else:
                if name not in ATTRACTORS and not set_file(name, out).exists():
                    in_own_process(make_set, name, out)
                found = in_own_process(run_pair, name, method, out)
        except (MemoryError, RuntimeError, ValueError) as error:  # one method on one set: the others go on
            failed.append(f"{name}, {method}: {str(error).splitlines()[0]}")
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"set": name, "method": method, "machine": machine(1), **found})
    return failed


def rows_there(out: Path) -> list[dict]:
    """All rows in the directory, flat: set, method, scores, cost."""
    rows = []
    for file in sorted((out / "rows").glob("*.json")):
        content = read_json(file)
        rows += [{"set": content["set"], "method": method, **row} for method, row in content["rows"].items()]
    return rows


def spent_s(out: Path) -> float:
    """CPU seconds that all rows took together, sets and scores included."""
    files = [*(out / "rows").glob("*.json"), *(out / "sets").glob("*.json")]
    return sum(content["spent_s"] for content in map(read_json, files))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SIMULATED), choices=SIMULATED)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rat", type=Path, help="a session of the Poisson-clicks task, a MATLAB file")
    parser.add_argument("--out", type=Path, default=Path("runs/scoreboard"))
    parser.add_argument("--page", type=Path, help="rewrite the tables of this page, and its figure beside it")
    parser.add_argument("--force", action="store_true", help="make rows again that are there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, draw, write; 1 where something did not finish, 2 where the session is not there."""
    given = parse(argv)
    if given.rat is not None and not given.rat.is_file():
        print(
            f"Error: expected a session of the Poisson-clicks task in {given.rat}; got no such file.\nLeave --rat out to go on without it.",
            file=sys.stderr,
        )
        return 2
    if given.rat is None and not any((given.out / "rows").glob(f"{RAT.replace(' ', '_')}*")):
        print("The recorded session is left out: no --rat SESSION.mat was given.", flush=True)
    failed = run_missing(given.sets, given.methods, given.out, given.rat, given.force)
    rows = rows_there(given.out)
    about = machine_line(machine(1))
    page = given.page or given.out / "scoreboard.md"
    text = write_page(page, rows, about, spent_s(given.out))
    print(text)
    print("\n".join([*(f"Did not finish: {line}" for line in failed), f"Written: {page}"]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
