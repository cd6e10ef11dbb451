"""Compare finished runs without an account: a table in the terminal, csv files, and one HTML page.

    python experiments/compare.py runs/sweeps/2026-11-24_10-00-00
    python experiments/compare.py runs/ring runs/bistable --by dynamics/field_error

DIR is a run directory, the directory of a sweep, or any directory above them: runs are found by their files. Runs that
differ in nothing but seed and data.fold are repetitions of one setting; each setting gets the mean of every measure and
a 95 % t interval of that mean over its repetitions. Options that have no effect on results (stages, force, logger,
trainer) tell no settings apart. Only options that differ are shown; where connectivity=published changes many at once,
its name stands for them (comparison.csv has all).
"""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import comparison_page
import yaml
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from connector.errors import UserError, exit_code
from connector.files import write_text
from connector.report.glossary import METRICS, Metric
from connector.runs.naming import without_effect
from connector.runs.options import STAGES
from connector.runs.store import RunStore
from connector.stages.curves import read_learning_curves

LEVEL = 0.95
# Of these the first that every run has puts the settings in order: what is known of the truth before the fit alone.
MAIN_METRICS = (
    "connectivity/dissimilarity",
    "lrrnn/bits_per_spike",
    "dynamics/field_error",
    "dynamics/attractors_kept",
    "dynamics/field_error_projected",
    "lrrnn/bits_per_spike_prior",
    "lrrnn/val_loss",
)
REPETITION = ("seed", "data.fold")
# Named as the user types them: the group lrrnn=published, not its key lrrnn.name.
_GROUPS = {f"{group}.name": group for group in ("data", "lrrnn", "connectivity")}
_SHOWN = 4  # measures in the terminal
_ABSENT = ""  # of an option that another data set has
_SKIPPED = {"wandb", "checkpoints", "figures", "logs", "node_modules"}  # hold no runs, but much else
_LOG_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (.*)")
_ENDED_EARLY = "the job ended early"
_LOG_TAIL = 200_000  # bytes of train.log that are read
# The better direction of measures of which METRICS says none, or that it does not know.
_BY_NAME = (
    (re.compile(r"^timing/|_(loss|error|seconds|dissimilarity)$"), "lower"),
    (re.compile(r"_r2(_|$)|_auc(_|$)|bits_per_spike|log_likelihood"), "higher"),
)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is several times faster


# --- finding runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundRun:
    """A run directory as its files tell.

    Attributes:
        path: the directory.
        options: flat, ``group.key`` -> value.
        metrics: of metrics.json; empty where the run is not done.
        problem: why it is not done; "" where it is.
    """

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @cached_property
    def curves(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """stage -> metric without its stage -> (epochs, values), of the stages that this run trained."""
        found = {}
        for stage in STAGES:
            # Without its loss the stage was not trained: a file that lies there is of other options.
            if f"{stage}/val_loss" in self.metrics:
                read = read_learning_curves(self.path / "logs" / f"{stage}.csv")
                found[stage] = {key.removeprefix(f"{stage}/"): curve for key, curve in read.items()}
        return {stage: curves for stage, curves in found.items() if curves}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as ``group.key`` -> value; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _log_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - _LOG_TAIL))
        return handle.read().decode("utf-8", "replace").splitlines()


def ended_early(lines: Sequence[str]) -> str:
    """What ended the last job that a train.log tells of, in a line; "" where it did not end early."""
    records = [i for i, line in enumerate(lines) if _LOG_RECORD.match(line)]
    last = _LOG_RECORD.match(lines[records[-1]])[1] if records else ""
    if not last.startswith(_ENDED_EARLY):
        return ""
    # The exception stands below its traceback, whose lines are indented; a message may have several lines.
    after = lines[records[-1] + 1 :]
    heads = [i for i, line in enumerate(after) if line.startswith("Traceback ")]
    if heads:
        said = [line for line in after[heads[-1] + 1 :] if line and not line.startswith(" ")]
        if said:
            return re.sub(r"^connector\.(errors\.RunFailure: |errors\.|failures\.RunFailure: )", "", said[0])
    return last


def _is_stale(path: Path, metrics: Mapping[str, float]) -> bool:
    """Whether a later job has trained a stage anew since metrics.json was written, and has not come to its end."""
    if not any((path / name).exists() for name in ("manifest.json", "stages.json")):
        return False
    stages = RunStore(path).stages()
    missing = any(f"timing/{stage}_seconds" in metrics and stage not in stages for stage in STAGES)
    return missing or any(
        metrics.get(key) != value
        for stage, record in stages.items()
        for key, value in [
            *record.get("metrics", {}).items(),
            *([(f"timing/{stage}_seconds", record["seconds"])] if record.get("seconds") else []),
        ]
        if isinstance(value, int | float) and abs(value) < float("inf")  # metrics.json leaves out what is undefined
    )


def read_run(path: Path) -> FoundRun:
    """The run in a directory, done or not."""
    lines = _log_lines(path / "train.log")
    records = [found[1] for line in lines if (found := _LOG_RECORD.match(line))]
    so_far = f"; train.log ends with: {records[-1]}" if records else ""
    early = ended_early(lines)
    try:
        options = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), _Loader)
        options = flatten(options)
    except FileNotFoundError:
        return FoundRun(path, problem=early or f"no config.yaml{so_far}")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return FoundRun(path, problem=f"config.yaml cannot be read: {reason}")
    if early:
        return FoundRun(path, options, problem=early)
    file = path / "metrics.json"
    if not file.exists():
        return FoundRun(path, options, problem=f"no metrics.json: still running, or killed{so_far}")
    try:
        metrics = {key: float(value) for key, value in json.loads(file.read_text()).items()}
        stale = _is_stale(path, metrics)
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        return FoundRun(path, options, problem=f"metrics.json or manifest.json cannot be read: {error}")
    if stale:
        problem = f"metrics.json is of an earlier run than its stages: still running, or killed{so_far}"
        return FoundRun(path, options, problem=problem)
    return FoundRun(path, options, metrics)


def _below(root: Path) -> Iterator[tuple[Path, FoundRun | None]]:
    """Run directories in or below ``root``, and with what is told of them jobs of sweeps that left no directory."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        path, there = Path(folder), set(files)
        if path.resolve() in seen:  # links may lead in circles
            below.clear()
            continue
        seen.add(path.resolve())
        if "jobs.csv" in there:
            yield from _refused_jobs(path / "jobs.csv")
        if "train.log" in there or {"config.yaml", "metrics.json"} <= there:
            yield path, None
            below.clear()  # a run holds no runs
        below[:] = sorted(name for name in below if name not in _SKIPPED and not name.startswith("."))


def _refused_jobs(file: Path) -> Iterator[tuple[Path, FoundRun]]:
    """Jobs whose options were refused, so that they left no directory: the sweep's jobs.csv tells of them."""
    with file.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            path = Path(row.get("directory") or "")
            if row.get("state", "done") != "done" and not path.exists():
                yield path, FoundRun(path, problem=row["state"])


def find_runs(directories: Sequence[str | Path]) -> list[FoundRun]:
    """All runs in or below the directories, each once.

    Raises:
        UserError: a directory does not exist, or there is no run in any.
    """
    runs: dict[Path, FoundRun | None] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise UserError("a directory with runs", f"{directory}, which is none", "runs lie in runs/ by default")
        for path, job in _below(directory):
            runs.setdefault(path.resolve(), job)
    if not runs:
        where = ", ".join(map(str, directories))
        raise UserError(
            f"run directories (config.yaml and metrics.json) in or below {where}",
            "none",
            "make runs with `python train.py`; each says where it lies",
        )
    return [read_run(path) if job is None else job for path, job in runs.items()]


# --- settings -------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """Mean of a measure over ``n`` runs with its t interval; ``low`` and ``high`` are None for a single run."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean and its t interval: mean plus or minus t_(n - 1) s / sqrt(n)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, len(values))


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seed and data.fold alone.

    Attributes:
        options: the differing options with this setting's values.
        runs: by seed and fold; estimates: of every measure that one of them has.
    """

    options: Mapping[str, Any]
    runs: tuple[FoundRun, ...]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Settings, best first.

    Attributes:
        settings: see Setting; by: the measure that orders them.
        options: all options in which settings differ; shown: those of them that say it all.
        repeated: the options among REPETITION that differ between runs.
        not_done: unfinished and failed runs; superseded: (older run, newer one of the same options, seed and fold).
    """

    settings: tuple[Setting, ...]
    by: str
    options: tuple[str, ...]
    shown: tuple[str, ...]
    repeated: tuple[str, ...]
    not_done: tuple[FoundRun, ...]
    superseded: tuple[tuple[FoundRun, FoundRun], ...]

    @property
    def runs(self) -> list[FoundRun]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def metrics(self) -> list[str]:
        """All measures: those that matter most first, then as the report has them, then the rest."""
        found = {key for setting in self.settings for key in setting.estimates}
        order = [self.by, *MAIN_METRICS, *METRICS, *sorted(found)]
        return [key for key in dict.fromkeys(order) if key in found]

    @property
    def main_metrics(self) -> list[str]:
        return [key for key in self.metrics if key == self.by or key in MAIN_METRICS]

    def name(self, setting: Setting) -> str:
        """A setting in words: its differing options, or where there are none what was run."""
        said = [f"{typed(key)}={shown(setting.options[key])}" for key in self.shown if setting.options[key] != _ABSENT]
        return " ".join(said) or str(setting.runs[0].options.get("experiment_name", setting.runs[0].path.name))


def typed(option: str) -> str:
    """An option as it is typed on the command line."""
    return _GROUPS.get(option, option)


def shown(value: Any) -> str:
    """An option's value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str).replace('"', "")


def about(key: str) -> Metric:
    """What is known of a measure, with the better direction where its name tells."""
    metric = METRICS.get(key, Metric(key, "", ""))
    if metric.direction:
        return metric
    return metric._replace(direction=next((way for name, way in _BY_NAME if name.search(key)), ""))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def differing_options(runs: Sequence[FoundRun]) -> list[str]:
    """Options that change results and that do not have one value in all runs, in the order of the configuration."""
    keys = list(dict.fromkeys(key for run in runs for key in run.options))
    return [
        key
        for key in keys
        if key != "experiment_name"  # a label
        and not without_effect(key)
        and len({_canonical(run.options.get(key, _ABSENT)) for run in runs}) > 1
    ]


def telling_options(runs: Sequence[FoundRun], options: Sequence[str]) -> list[str]:
    """Of options that differ those that say it all: a group's name stands for what the group's choice changes."""

    def depends(key: str, other: str) -> bool:
        pairs = {tuple(_canonical(run.options.get(name, _ABSENT)) for name in (other, key)) for run in runs}
        return len(pairs) == len({first for first, _ in pairs})

    kept = []
    for key in options:
        name = f"{key.split('.')[0]}.name"
        if key == name or name not in options or not depends(key, name):
            kept.append(key)
    return kept


def _choose_metric(runs: Sequence[FoundRun], by: str | None) -> str:
    found = sorted({key for run in runs for key in run.metrics})
    if by is not None:
        if by not in found:
            near = difflib.get_close_matches(by, found, n=1) or [key for key in found if key.endswith(f"/{by}")]
            remedy = f"the nearest is --by {near[0]}" if near else "metrics.json of a run lists what there is"
            raise UserError("--by with a measure of these runs", by, remedy)
        return by
    everywhere = [key for key in MAIN_METRICS if all(key in run.metrics for run in runs)]
    somewhere = [key for key in MAIN_METRICS if any(key in run.metrics for run in runs)]
    return next(iter([*everywhere, *somewhere, *found]))


def compare(found: Sequence[FoundRun], by: str | None = None) -> Comparison:
    """Settings of the runs that are done, ordered by the measure ``by``.

    Raises:
        UserError: no run is done, or none has the measure.
    """
    not_done = tuple(run for run in found if run.problem)
    done = [run for run in found if not run.problem]
    if not any(run.metrics for run in done):
        reasons = "; ".join(f"{run.path.name}: {run.problem or 'no measures'}" for run in found[:3])
        raise UserError("runs that are done", f"{len(found)} that are not ({reasons})", "let them run to their end")
    options = differing_options(done)
    of_settings = [key for key in options if key not in REPETITION]
    newest: dict[tuple, FoundRun] = {}
    superseded = []
    # The same options, seed and fold once more are no repetition: counted twice they would narrow the interval.
    for run in sorted(done, key=lambda run: (run.path / "metrics.json").stat().st_mtime_ns):
        key = tuple(_canonical(run.options.get(name, _ABSENT)) for name in options)
        if key in newest:
            superseded.append((newest[key], run))
        newest[key] = run
    runs = list(newest.values())
    grouped: dict[tuple, list[FoundRun]] = {}
    for run in runs:
        grouped.setdefault(tuple(_canonical(run.options.get(name, _ABSENT)) for name in of_settings), []).append(run)
    settings = []
    for members in grouped.values():
        members.sort(key=lambda run: [_sortable(run.options.get(key)) for key in REPETITION])
        keys = list(dict.fromkeys(key for run in members for key in run.metrics))
        estimates = {key: mean_interval([run.metrics[key] for run in members if key in run.metrics]) for key in keys}
        values = {name: members[0].options.get(name, _ABSENT) for name in of_settings}
        settings.append(Setting(values, tuple(members), estimates))
    by = _choose_metric(runs, by)
    sign = -1.0 if about(by).direction == "higher" else 1.0

    def place(setting: Setting) -> tuple:
        value = setting.estimates.get(by)
        ties = [_sortable(value) for value in setting.options.values()]
        return value is None, sign * value.mean if value is not None else 0.0, ties

    return Comparison(
        tuple(sorted(settings, key=place)),
        by,
        tuple(of_settings),
        tuple(telling_options(runs, of_settings)),
        tuple(key for key in REPETITION if key in options),
        not_done,
        tuple(superseded),
    )


def _sortable(value: Any) -> tuple[bool, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return False, float(value), ""
    return True, 0.0, _canonical(value)


# --- what is said and written ---------------------------------------------------------------------------------------


def path_shown(path: Path) -> str:
    """A path as short as it can be and still be found from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def sentences(comparison: Comparison) -> list[str]:
    """What the numbers are, in plain words."""
    metric = about(comparison.by)
    n_runs, n_settings = len(comparison.runs), len(comparison.settings)
    better = f"{metric.direction} is better" if metric.direction else "lowest first; neither direction is better"
    unit = f" [{metric.unit}]" if metric.unit else ""
    said = [
        f"{n_runs} {'run' if n_runs == 1 else 'runs'} of {n_settings} {'setting' if n_settings == 1 else 'settings'}, "
        f"in the order of {comparison.by}: {metric.label}{unit}, {better}."
    ]
    if any(len(setting.runs) > 1 for setting in comparison.settings):
        said.append(
            f"Values are means over runs that differ in {' and '.join(comparison.repeated)} alone, ± half the "
            f"{100 * LEVEL:g} % t interval of the mean."
        )
        if "data.fold" in comparison.repeated:
            said.append("Folds share training trials, so that over folds the intervals are somewhat too narrow.")
    if n_settings > 1 and any(len(setting.runs) == 1 for setting in comparison.settings):
        said.append("A setting with a single run has no interval: its place may be chance.")
    names = {_canonical(run.options.get("data.name")) for run in comparison.runs}
    if len(names) > 1:
        said.append("The runs are of several data sets: an order across them says how hard each is, too.")
    if comparison.superseded:
        said.append(
            f"{len(comparison.superseded)} older runs of the same options, seed and fold as a newer one are left out."
        )
    return said


def estimate_text(estimate: Estimate | None) -> str:
    """An estimate as a person writes it: mean ± half the interval."""
    if estimate is None:
        return ""
    return comparison_page.with_half(estimate.mean, None if estimate.high is None else estimate.high - estimate.mean)


def print_table(comparison: Comparison, console: Console) -> None:
    """The table, best first, and below it what is not done."""

    def plain(text: str) -> str:
        return text.replace("[", "\\[")  # else brackets are read as markup

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", justify="right")
    columns = [typed(key) for key in comparison.shown] or ["experiment"]
    for name in columns:
        table.add_column(plain(name), overflow="fold")
    table.add_column("runs", justify="right")
    metrics = comparison.main_metrics[:_SHOWN]
    for key in metrics:
        arrow = {"lower": " ↓", "higher": " ↑"}.get(about(key).direction, "")
        table.add_column(plain(key.replace("/", "/\n", 1).replace("_", " ") + arrow), justify="right")
    for place, setting in enumerate(comparison.settings, 1):
        cells = [shown(setting.options[key]) for key in comparison.shown] or [comparison.name(setting)]
        values = [estimate_text(setting.estimates.get(key)) for key in metrics]
        table.add_row(str(place), *map(plain, cells), str(len(setting.runs)), *values)
    for line in sentences(comparison):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    if comparison.not_done:
        console.print(f"Not done: {len(comparison.not_done)}", highlight=False)
        for run in comparison.not_done:
            said = f"  {path_shown(run.path)}: {run.problem}"
            console.print(said, soft_wrap=True, highlight=False, markup=False)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def settings_csv(comparison: Comparison) -> str:
    """A row for each setting: all differing options; of every measure mean, interval and number of runs."""
    header = ["place", "runs", *comparison.options]
    for key in comparison.metrics:
        header += [key, f"{key} low", f"{key} high", f"{key} runs"]
    rows = []
    for place, setting in enumerate(comparison.settings, 1):
        row = [place, len(setting.runs), *(shown(setting.options[key]) for key in comparison.options)]
        for key in comparison.metrics:
            estimate = setting.estimates.get(key)
            row += ["", "", "", 0] if estimate is None else ["" if value is None else value for value in estimate]
        rows.append(row)
    return _csv(header, rows)


def runs_csv(comparison: Comparison) -> str:
    """A row for each run, also those that are not done."""
    options = list(dict.fromkeys([*comparison.options, *REPETITION]))
    rows = []
    places = [(place, run) for place, setting in enumerate(comparison.settings, 1) for run in setting.runs]
    for place, run in [*places, *(("", run) for run in comparison.not_done)]:
        values = [shown(run.options.get(key, _ABSENT)) for key in options]
        metrics = [run.metrics.get(key, "") for key in comparison.metrics]
        rows.append([place, str(run.path), run.problem or "done", *values, *metrics])
    return _csv(["place", "directory", "state", *options, *comparison.metrics], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Find, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run, sweep, or a directory above them")
    parser.add_argument("--by", metavar="METRIC", help="key of metrics.json that puts the settings in order")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="where files go (default: comparison)")
    given = parser.parse_args(arguments)
    comparison = compare(find_runs(given.directories), given.by)
    out = Path(given.out)
    console = Console()
    if not console.is_terminal:  # a log file has no right margin
        console = Console(width=250)
    print_table(comparison, console)
    write_text(out / "comparison.csv", settings_csv(comparison))
    write_text(out / "comparison_runs.csv", runs_csv(comparison))
    write_text(out / "comparison.html", comparison_page.render(page_of(comparison, out)))
    files = ", ".join(path_shown(out / name) for name in ("comparison.html", "comparison.csv", "comparison_runs.csv"))
    console.print(files, soft_wrap=True, highlight=False, markup=False)


def page_of(comparison: Comparison, out: Path) -> comparison_page.Page:
    """What the page shows, its links relative to the directory ``out`` that it is written into."""

    def link(run: FoundRun) -> comparison_page.Link:
        words = [f"{key.split('.')[-1]} {shown(run.options[key])}" for key in comparison.repeated if key in run.options]
        report = run.path / "report.html"
        target = Path(os.path.relpath(report, out.resolve())).as_posix() if report.exists() else ""
        return comparison_page.Link(", ".join(words) or "report", target, path_shown(run.path))

    rows = [
        comparison_page.Row(
            name=comparison.name(setting),
            options={typed(key): setting.options[key] for key in comparison.shown},
            estimates=setting.estimates,
            links=[link(run) for run in setting.runs],
            curves=[run.curves for run in setting.runs],
        )
        for setting in comparison.settings
    ]
    return comparison_page.Page(
        lines=sentences(comparison),
        rows=rows,
        options=[typed(key) for key in comparison.shown],
        metrics={key: about(key) for key in comparison.metrics},
        main=comparison.main_metrics[:_SHOWN],
        by=comparison.by,
        not_done=[(path_shown(run.path), run.problem) for run in comparison.not_done]
        + [
            (path_shown(old.path), f"left out for a newer run of the same options: {path_shown(new.path)}")
            for old, new in comparison.superseded
        ],
    )


def run(arguments: Sequence[str] | None = None) -> int:
    return exit_code(main, arguments)


if __name__ == "__main__":
    sys.exit(run())
