"""Compare finished runs without an account: a table in the terminal, csv files, and one HTML page.

    connector compare runs/sweeps/2026-11-24_10-00-00
    connector compare runs/ring runs/bistable --by dynamics/field_error

DIR is a run directory, the directory of a sweep, or any directory above them. Runs are found by their files. Runs that
differ only in seed and data.fold are repetitions of one setting. Each setting gets the mean of every measure and a 95 %
t interval of that mean over its repetitions. Options without effect on results (stages, force, logger, trainer) do not
separate settings. Only options that differ are shown, those that a sweep varied first. Where connectivity=published
changes many options, its name stands for them (comparison.csv has all).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from connector.compare.page import Link, Page, Row, option_text, render, with_half
from connector.compare.runs import FoundRun, find_runs
from connector.compare.settings import (
    ABSENT,
    LEVEL,
    REPETITION,
    Comparison,
    Estimate,
    about,
    compare,
    shown,
    spelling,
    typed,
)  # fmt: skip
from connector.files import csv_text, write_text
from connector.terminal import shortest, wide_console

_SHOWN = 4  # measures in the terminal


def sentences(comparison: Comparison) -> list[str]:
    """What the numbers are, in plain words."""
    metric = about(comparison.by)
    n_runs, n_settings = len(comparison.runs), len(comparison.settings)
    better = f"{metric.direction} is better" if metric.direction else "lowest first (neither direction is better)"
    unit = f" [{metric.unit}]" if metric.unit else ""
    said = [
        f"{n_runs} {'run' if n_runs == 1 else 'runs'} of {n_settings} {'setting' if n_settings == 1 else 'settings'}, "
        f"ordered by {comparison.by}: {metric.label}{unit}, {better}."
    ]
    if any(len(setting.runs) > 1 for setting in comparison.settings):
        said.append(
            f"Values are means over runs that differ only in {' and '.join(comparison.repeated)}, ± half the "
            f"{100 * LEVEL:g} % t interval of the mean."
        )
        if "data.fold" in comparison.repeated:
            said.append("Folds share training trials, so intervals over folds are somewhat too narrow.")
    if n_settings > 1 and any(len(setting.runs) == 1 for setting in comparison.settings):
        said.append("A setting with a single run has no interval; its place may be chance.")
    names = {spelling(run.options.get("data.name")) for run in comparison.runs}
    if len(names) > 1:
        said.append("The runs use several data sets, so their order also reflects how hard each data set is.")
    if comparison.superseded:
        said.append(
            f"{len(comparison.superseded)} older runs are left out: a newer run has the same options, seed and fold."
        )
    return said


def estimate_text(estimate: Estimate | None) -> str:
    """An estimate as a person writes it: mean ± half the interval."""
    if estimate is None:
        return ""
    return with_half(estimate.mean, None if estimate.high is None else estimate.high - estimate.mean)


def print_table(comparison: Comparison, console: Console) -> None:
    """The table, best first, and below it what is not done."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", justify="right")
    columns = [typed(key) for key in comparison.shown] or ["experiment"]
    for name in columns:
        table.add_column(escape(name), overflow="fold")
    table.add_column("runs", justify="right")
    metrics = comparison.main_metrics[:_SHOWN]
    for key in metrics:
        arrow = {"lower": " ↓", "higher": " ↑"}.get(about(key).direction, "")
        table.add_column(escape(key.replace("/", "/\n", 1).replace("_", " ") + arrow), justify="right")
    for place, setting in enumerate(comparison.settings, 1):
        options = (setting.options[key] for key in comparison.shown)
        cells = [option_text(x) if isinstance(x, float) else shown(x) for x in options] or [comparison.name(setting)]
        values = [estimate_text(setting.estimates.get(key)) for key in metrics]
        table.add_row(str(place), *map(escape, cells), str(len(setting.runs)), *values)
    for line in sentences(comparison):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    if comparison.not_done:
        console.print(f"Not done: {len(comparison.not_done)}", highlight=False)
        for run in comparison.not_done:
            said = f"  {shortest(run.path)}: {run.problem}"
            console.print(said, soft_wrap=True, highlight=False, markup=False)


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
    return csv_text(header, rows)


def runs_csv(comparison: Comparison) -> str:
    """A row for each run, also those that are not done."""
    options = list(dict.fromkeys([*comparison.options, *REPETITION]))
    rows = []
    places = [(place, run) for place, setting in enumerate(comparison.settings, 1) for run in setting.runs]
    for place, run in [*places, *(("", run) for run in comparison.not_done)]:
        values = [shown(run.options.get(key, ABSENT)) for key in options]
        metrics = [run.metrics.get(key, "") for key in comparison.metrics]
        rows.append([place, str(run.path), run.problem or "done", *values, *metrics])
    return csv_text(["place", "directory", "state", *options, *comparison.metrics], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Find, compare, print, write."""
    parser = argparse.ArgumentParser(
        prog="connector compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run, sweep, or a directory above them")
    parser.add_argument("--by", metavar="METRIC", help="key of metrics.json that puts the settings in order")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="where files go (default: comparison)")
    given = parser.parse_args(arguments)
    comparison = compare(find_runs(given.directories), given.by)
    out = Path(given.out)
    console = wide_console()
    print_table(comparison, console)
    write_text(out / "comparison.csv", settings_csv(comparison))
    write_text(out / "comparison_runs.csv", runs_csv(comparison))
    write_text(out / "comparison.html", render(page_of(comparison, out)))
    files = ", ".join(shortest(out / name) for name in ("comparison.html", "comparison.csv", "comparison_runs.csv"))
    console.print(files, soft_wrap=True, highlight=False, markup=False)


def page_of(comparison: Comparison, out: Path) -> Page:
    """What the page shows, its links relative to the directory ``out`` that it is written into."""

    def link(run: FoundRun) -> Link:
        words = [f"{key.split('.')[-1]} {shown(run.options[key])}" for key in comparison.repeated if key in run.options]
        report = run.path / "report.html"
        target = Path(os.path.relpath(report, out.resolve())).as_posix() if report.exists() else ""
        return Link(", ".join(words) or "report", target, shortest(run.path))

    rows = [
        Row(
            name=comparison.name(setting),
            options={typed(key): setting.options[key] for key in comparison.shown},
            estimates=setting.estimates,
            links=[link(run) for run in setting.runs],
            curves=[run.curves for run in setting.runs],
        )
        for setting in comparison.settings
    ]
    return Page(
        lines=sentences(comparison),
        rows=rows,
        options=[typed(key) for key in comparison.shown],
        metrics={key: about(key) for key in comparison.metrics},
        main=comparison.main_metrics[:_SHOWN],
        by=comparison.by,
        leading=comparison.n_swept or 4,
        not_done=[(shortest(run.path), run.problem) for run in comparison.not_done]
        + [
            (shortest(old.path), f"left out for a newer run of the same options: {shortest(new.path)}")
            for old, new in comparison.superseded
        ],
    )
