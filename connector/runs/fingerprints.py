"""The fingerprint of each stage: a hash of the options that change its numbers and of what it is made from.

A finished stage is reused where its fingerprint is the one of today. Which options change a stage is declared with each
of them (:mod:`connector.declarations`); they count by value, not by spelling. Threads, machine and versions of libraries
change the rounding of sums: they are noted in manifest.json and are no part of a fingerprint.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from connector.declarations import changing, declared
from connector.errors import UserError
from connector.files import read_yaml
from connector.runs.options import HARDWARE, Options
from connector.runs.store import RunStore, fingerprint

# Arguments of Lightning's Trainer that watch a training and do not change it.
WATCHING = (
    "profiler", "log_every_n_steps", "detect_anomaly", "enable_progress_bar", "enable_model_summary", "fast_dev_run",
    "limit_test_batches", "limit_predict_batches",
)  # fmt: skip
_FILES = ("data.path", "data.teachers")  # of these their content counts


def stage_marks(options: Options, source: Any, machine: Mapping[str, Any], given_latents: bool) -> dict[str, str]:
    """stage -> fingerprint of what it would compute, for the data and the three stages that are trained.

    Args:
        source: what the recording is made from: checksum of a file, seed of a simulation.
        machine: of :func:`connector.stages.training.machine`.
        given_latents: the file carries latents and loadings, which are taken as they are.
    """
    marks = {"data": fingerprint(_changing(options, "data"), source)}
    for stage, before in (("lrrnn", "data"), ("loadings", "lrrnn"), ("outputs", "loadings")):
        made_with = {**_changing(options, stage), "machine": dict(machine)}
        if stage == "lrrnn" and given_latents:
            made_with = {"given": True, "rank": options.lrrnn.rank, "seed": options.seed}
        marks[stage] = fingerprint(marks[before], made_with)
    return marks


def _changing(options: Options, stage: str) -> dict[str, Any]:
    found = changing(options, stage)
    extra = found.pop("trainer.extra", {})
    found |= {f"trainer.extra.{name}": value for name, value in extra.items() if name not in WATCHING}
    return {k: v for k, v in found.items() if k not in _FILES and k.removeprefix("trainer.") not in HARDWARE}


# -- runs of earlier versions ------------------------------------------------------------------------------------------


def earlier_marks(options: Options, source: Any, given_latents: bool) -> dict[str, str]:
    """The fingerprints that version 0.1 gave the same options; empty where it did not have one of them."""
    parts = {name: asdict(getattr(options, name)) for name in ("data", "lrrnn", "connectivity")}
    for name, part in parts.items():
        for path, about, _ in declared(type(getattr(options, name))):
            *groups, last = path.split(".")
            holder = functools.reduce(lambda held, group: held[group], groups, part)
            if about.is_newer and last != "teachers" and holder.pop(last) != about.before:
                return {}
    if options.trainer.extra or options.callbacks:
        return {}
    data, connectivity = parts["data"], parts["connectivity"]
    for file in ("path", "teachers"):
        data.pop(file, None)
    of_loadings = {key: connectivity.pop(key) for key in list(connectivity) if key.startswith("loadings_")}
    names = ("flow", "weight_decay", "ema_decay", "cosine", "early_stopping", "match_moments")
    shared = {name: connectivity[name] for name in names}
    marks = {"data": fingerprint(data, source)}
    marks["lrrnn"] = fingerprint(marks["data"], "given" if given_latents else parts["lrrnn"], options.seed)
    marks["loadings"] = fingerprint(marks["lrrnn"], of_loadings, shared)
    marks["outputs"] = fingerprint(marks["loadings"], connectivity)
    return marks


def recognise(store: RunStore, options: Options, marks: Mapping[str, str], earlier: Mapping[str, str]) -> None:
    """Give stages of a run directory that version 0.1 finished with these options the fingerprints of today.

    Its fingerprints did not hold the hardware: the trainer of the run's config.yaml has to be the one of today.
    """
    config = store.path / "config.yaml"
    if not config.exists() or not earlier:
        return
    try:
        trainer = dict(read_yaml(config)["trainer"])
    except (UserError, ValueError, KeyError, TypeError):
        return
    if all(str(trainer.get(name)) == str(getattr(options.trainer, name)) for name in HARDWARE):
        for stage in ("lrrnn", "loadings", "outputs"):
            store.renew_fingerprint(stage, earlier[stage], marks[stage])
