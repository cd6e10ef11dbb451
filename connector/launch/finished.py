"""A run that stands finished: known by its options, its data's checksum and the code, before torch is imported or data read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from connector import __version__
from connector.errors import UserError
from connector.files import content_checksum
from connector.launch.ranks import RANKS
from connector.report.cautions import parted
from connector.report.glossary import MAIN_METRICS, METRICS, SHORT
from connector.report.numbers import counted, format_number
from connector.runs.options import STAGES, Options, ReportOptions
from connector.runs.store import RESULTS, RunStore, fingerprint

_SHOWN, _IN_A_LINE = 8, 3  # measures at the end of a run, and of a job of a sweep
_passed: set[Path] = set()


def stage_files(store: RunStore) -> dict[str, list[Path]]:
    return {
        "lrrnn": [store.latents_file],
        "loadings": [store.loadings_flow_file],
        "outputs": [store.connectivity_file],
    }


def stands_whole(store: RunStore, requested: Collection[str], marks: Mapping[str, str], report: ReportOptions) -> bool:
    """Whether all that a job of these stages would write is there, whole; ``marks``: fingerprints of stages and results."""
    drawing = "outputs" in requested and report.draw
    held = {*requested, *(stage for stage in STAGES if stage in store.stages())}
    files = stage_files(store)
    if not store.has_config() or not all(store.is_current(stage, marks[stage], files[stage]) for stage in held):
        return False
    last = [store.path / "metrics.json"]
    last += [store.path / "network.npz"] * ("outputs" in requested)
    last += [store.path / "report.html"] * drawing
    drawn = {Path(name).suffix for name in store.stages().get(RESULTS, {}).get("drawn", {})}
    if drawing and not {f".{ending}" for ending in report.formats} <= drawn:
        return False
    return store.is_current(RESULTS, marks[RESULTS], last)


@lru_cache
def _code() -> str:
    """Changes with every change of the package's files."""
    here = Path(__file__).resolve().parents[1]
    files = sorted(file for kind in ("py", "toml") for file in here.rglob(f"*.{kind}"))
    return fingerprint([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _key(options: Options, checksum: str | None) -> str | None:
    """Equal where nothing differs that a job's plan is made from; None where the machine, or code of the user's, has a say.

    Args:
        checksum: of the data file's content; None for a simulation.
    """
    trainer = options.trainer
    usual = (trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.strategy) == ("cpu", 1, 1, "auto")
    own = trainer.extra or options.callbacks or getattr(options.data, "teachers", None) is not None
    if not usual or own or any(os.environ.get(name) for name in RANKS):
        return None
    given = asdict(options)
    for name in ("force", "logger", "verbose"):  # none changes what is there in the end
        del given[name]
    return fingerprint(given, checksum, __version__, _code())


def note(
    options: Options, requested: Collection[str], marks: Mapping[str, str], checksum: str | None
) -> dict[str, Any] | None:
    """What :func:`answered` knows a finished job by, for manifest.json; None where it cannot know it."""
    key = _key(options, checksum)
    return None if key is None else {"key": key, "requested": list(requested), "marks": dict(marks)}


def may_pass(options: Options, alone: bool) -> bool:
    """Whether a job that stands finished is passed over; ``alone``: no job of a sweep."""
    # A job by itself that logs to W&B does so though it has finished: the log may be why it is started again.
    return not options.force and (not alone or options.logger.name == "csv")


def answered(options: Options, directory: Path, alone: bool) -> dict[str, float] | None:
    """Say so, and return the metrics, where this very job stands finished and whole; None: it has to be planned.

    Args:
        alone: no job of a sweep.
    """
    if not may_pass(options, alone):
        return None
    store, path = RunStore(directory), getattr(options.data, "path", None)
    with contextlib.suppress(UserError, OSError, ValueError, KeyError, TypeError):  # the long way says what is wrong
        known = store.stages()[RESULTS]["job"]
        if known["key"] != _key(options, None if path is None else content_checksum(path)):
            return None
        if not stands_whole(store, known["requested"], known["marks"], options.report):
            return None
        metrics = store.metrics()
        tell(Console(), store, metrics, alone, options.verbose)
        return metrics
    return None


def tell(console: Console, store: RunStore, metrics: Mapping[str, float], alone: bool, verbose: bool = False) -> None:
    """That nothing is left to do; where the job is ``alone``, also its measures and cautions."""
    _passed.add(store.path.resolve())
    if alone or verbose:
        remedy = "force=true runs it again; delete report.html to make its results again"
        console.print(f"finished earlier with these options, nothing to do ({remedy})", highlight=False)
        show(console, metrics, store, verbose)


def begins(directory: Path) -> None:
    """Of a job that this process runs: it is not passed over."""
    _passed.discard(directory.resolve())


def was_passed(directory: Path) -> bool:
    """Whether this process found the run finished, and passed over it."""
    return directory.resolve() in _passed


def show(console: Console, metrics: Mapping[str, float], store: RunStore, verbose: bool = False) -> None:
    """The last screen of a run: what was reached, the cautions, and where the report lies.

    Args:
        verbose: all measures, under their full names.
    """
    names = {key: metric.label for key, metric in METRICS.items()} if verbose else SHORT
    shown = [key for key in names if key in metrics]
    shown = shown if verbose else shown[:_SHOWN]
    values = [format_number(metrics[key]) for key in shown]
    table = Table(
        Column("measure", no_wrap=not verbose),
        Column("value", justify="right", no_wrap=True, min_width=max([7, *map(len, values)])),
        Column("unit", style="dim", no_wrap=not verbose, overflow="ellipsis", max_width=None if verbose else 20),
        show_edge=False,
        pad_edge=False,
    )
    for key, value in zip(shown, values):
        table.add_row(names[key], value, METRICS[key].unit)
    console.print(table)
    cautions = map(parted, store.stages()[RESULTS].get("cautions", ()))
    for said in sorted(cautions, key=lambda said: said.word != "Warning"):
        console.print(
            Text.assemble((f"{said.word}: ", "bold yellow"), said.wrong),
            highlight=False,
            soft_wrap=not console.is_terminal,
        )
        if said.remedy:
            console.print(
                Text.assemble(("  What to do: ", "bold"), said.remedy),
                highlight=False,
                soft_wrap=not console.is_terminal,
            )
    more = (
        ""
        if verbose or len(shown) + len(metrics.keys() - names.keys()) <= _SHOWN
        else "; verbose=true prints all measures"
    )
    report = store.path / "report.html"
    if report.name in store.stages()[RESULTS]["drawn"]:
        console.print(f"Report: {report}{more}", soft_wrap=True, highlight=False, markup=False)
    elif more:
        console.print(
            f"All measures: {store.path / 'metrics.json'}{more}", soft_wrap=True, highlight=False, markup=False
        )


def in_a_line(metrics: Mapping[str, float], cautions: Sequence[str]) -> str:
    """What a job of a sweep reached: its main measures, and how many cautions it has."""
    said = [
        f"{key.split('/')[1].replace('_', ' ')} {format_number(metrics[key])}" for key in MAIN_METRICS if key in metrics
    ][:_IN_A_LINE]
    return ", ".join([*said, *([counted(len(cautions), "caution")] if cautions else [])])


def objective(metrics: Mapping[str, float]) -> float | None:
    """What an optimizing sweeper minimises: the dissimilarity to a known teacher, else the projected field error."""
    return metrics.get("connectivity/dissimilarity", metrics.get("dynamics/field_error_projected"))
