"""A run that stands finished: known by its options, its data's checksum and the code, before torch is imported or data read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from connector import __version__
from connector.errors import UserError
from connector.files import content_checksum
from connector.launch.ranks import RANKS
from connector.report.glossary import METRICS
from connector.runs.options import STAGES, Options
from connector.runs.store import RESULTS, RunStore, fingerprint


def stage_files(store: RunStore) -> dict[str, list[Path]]:
    return {
        "lrrnn": [store.latents_file],
        "loadings": [store.loadings_flow_file],
        "outputs": [store.connectivity_file],
    }


def stands_whole(store: RunStore, requested: Collection[str], marks: Mapping[str, str], report: bool) -> bool:
    """Whether all that a job of these stages would write is there, whole; ``marks``: fingerprints of stages and results."""
    held = {*requested, *(stage for stage in STAGES if stage in store.stages())}
    files = stage_files(store)
    if not store.has_config() or not all(store.is_current(stage, marks[stage], files[stage]) for stage in held):
        return False
    last = [store.path / "metrics.json"]
    last += [store.path / "network.npz"] * ("outputs" in requested)
    last += [store.path / "report.html"] * ("outputs" in requested and report)
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
    for name in ("force", "logger"):  # neither changes what is there in the end
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
        if not stands_whole(store, known["requested"], known["marks"], options.report.draw):
            return None
        metrics = store.metrics()
        tell(Console(), store, metrics, alone)
        return metrics
    return None


def tell(console: Console, store: RunStore, metrics: Mapping[str, float], alone: bool) -> None:
    """That nothing is left to do; where the job is ``alone``, also its cautions and measures."""
    remedy = "force=true runs it anew; without its report.html, results are made again"
    console.print(f"finished earlier with these options, nothing to do ({remedy})", highlight=False)
    if alone:
        for line in store.stages()[RESULTS].get("cautions", ()):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        show(console, metrics, store)


def show(console: Console, metrics: Mapping[str, float], store: RunStore) -> None:
    """The closing table: what was reached, and where the report lies."""
    columns = "measure", Column("value", justify="right"), Column("unit", style="dim")
    table = Table(*columns, show_edge=False, pad_edge=False)
    for key in METRICS:
        if key in metrics:
            label, unit = METRICS[key].label, METRICS[key].unit
            table.add_row(label, f"{metrics[key]:.4g}", unit)
    console.print(table)
    report = store.path / "report.html"
    if report.name in store.stages()[RESULTS]["drawn"]:
        console.print(f"Report: {report}", soft_wrap=True, highlight=False, markup=False)


def objective(metrics: Mapping[str, float]) -> float | None:
    """What an optimizing sweeper minimises: the dissimilarity to a known teacher, else the projected field error."""
    return metrics.get("connectivity/dissimilarity", metrics.get("dynamics/field_error_projected"))
