"""Which stages of a run are due, which stand finished and are reused, and what each is made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from connector import __version__
from connector.data.attractors import load_teachers
from connector.data.modules import AttractorDataModule, FileDataModule, RecordingDataModule
from connector.data.simulation import SimulationOptions
from connector.errors import UserError
from connector.files import content_checksum, file_checksum, linked_files, paths_of
from connector.launch.finished import stage_files, stands_whole
from connector.runs import provenance
from connector.runs.fingerprints import earlier_marks, recognise, stage_marks
from connector.runs.options import STAGES, AttractorData, DataOptions, Options
from connector.runs.store import RESULTS, RunStore, fingerprint
from connector.stages.drawing import FIGURES
from connector.stages.training import check_trainer


def build_data(options: Options) -> RecordingDataModule:
    """The data module that the options name, not yet read.

    Raises:
        UserError: the file is absent.
    """
    return data_module(options.data, options.seed, options.lrrnn.fixed_rank, options.lrrnn.bias)


def data_module(data: DataOptions, seed: int, rank: int | None, has_bias: bool | None) -> RecordingDataModule:
    """As :func:`build_data`, of the options that it depends on."""
    common = {"rank": rank, "fold_number": data.fold, "n_folds": data.n_folds, "fold_seed": data.fold_seed}
    common |= {"seed": seed, "has_bias": has_bias}
    if isinstance(data, AttractorData):
        if data.teachers is not None:
            load_teachers(data.teachers)
        return AttractorDataModule(data.name, simulation=data.part(SimulationOptions), data_seed=seed, **common)
    for path in paths_of(data.path):
        if not path.is_file():
            got = f"a directory, {path}" if path.is_dir() else str(path)
            raise UserError("data.path naming a file that exists", got)
    module = FileDataModule(
        data.path, data.source, reading=data.reading(), indicator_decay_s=data.indicator_decay_s, **common
    )
    module.read_at = _state_of(data.path, linked_files(data.path))
    return module


def _state_of(path: str | list[str], linked: Sequence[Path]) -> list[tuple[int, int, int]]:
    """By which a change of a file, or of those that it is linked to, is seen without reading them."""
    found = [os.stat(file) for file in (paths_of(path)[0], *linked)]
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in found]


def _require_unchanged(data: RecordingDataModule, path: str | list[str], linked: Sequence[Path]) -> None:
    """Refuse a file that was written to since it was read, so that what was read is not what its checksum says."""
    before = data.read_at if isinstance(data, FileDataModule) else None
    if before is not None and before != _state_of(path, linked):
        remedy = "start again when it is whole"
        raise UserError("a file that stays as it is while it is read", f"{path}, which has changed", remedy)


@dataclass(frozen=True)
class Plan:
    """Which stages are due, and the fingerprint of each: what it would compute, from what.

    ``data`` says what the recording was: path and SHA-256 of a file, or seed and SHA-256 of simulated activity.
    ``earlier``: the fingerprints that version 0.1 gave the stages.
    """

    requested: tuple[str, ...]
    marks: dict[str, str]
    given_latents: bool
    data: dict[str, Any]
    earlier: dict[str, str]


def plan(options: Options, data: RecordingDataModule, machine: Mapping[str, Any] | None = None) -> Plan:
    """Decide the stages from ``stages``, the data and the options that each stage depends on.

    Args:
        machine: of :func:`connector.stages.training.check_trainer`, where the caller has asked; None: asked here.
    """
    given = data.teacher is None and data.recording.latents is not None and data.recording.loadings is not None
    requested = STAGES if options.stages == "auto" else tuple(options.stages)
    given_latents = given and ("lrrnn" not in requested or options.stages == "auto")
    if given_latents:
        requested = tuple(stage for stage in requested if stage != "lrrnn")
    path, teachers = getattr(options.data, "path", None), getattr(options.data, "teachers", None)
    if path:
        linked = linked_files(path)
        source = content_checksum(path, linked)
        about = {"path": str(paths_of(path)[0].resolve()), "sha256": source}
        about |= {"linked": [str(file) for file in linked]} if linked else {}
        _require_unchanged(data, path, linked)
    else:  # a simulation is a function of the seed, and of what its teacher's file, and all that it reads, come to
        source, simulated = options.seed, provenance.tensor_checksum(data.recording.activity)
        about = {"seed": options.seed, "sha256": simulated}
        if teachers is not None:
            source = (options.seed, file_checksum(teachers), simulated)
    if data.left_out:  # version 0.1 kept constant neurons
        source = (source, data.left_out)
    counted = options
    if data.recording.kind == "rates":  # nothing is sampled, whatever the number of sweeps
        counted = replace(options, lrrnn=replace(options.lrrnn, posterior_sweeps=0))
    if data.recording.inputs is None or (data.recording.kind == "spikes" and options.lrrnn.inputs == "auto"):
        counted = replace(counted, lrrnn=replace(counted.lrrnn, inputs="instant"))
    marks = stage_marks(counted, source, machine or check_trainer(options.trainer), given_latents)
    earlier = {} if data.left_out else earlier_marks(counted, source, given_latents)
    return Plan(requested, marks, given_latents, about, earlier)


def artifacts(store: RunStore, stage: str) -> list[Path]:
    """All that a stage may have written for others to read."""
    of_stage = {"lrrnn": [store.path / "responses.npz"]}
    return [*stage_files(store)[stage], store.checkpoints / f"{stage}.ckpt", *of_stage.get(stage, [])]


def sources(store: RunStore, stage: str) -> list[Path]:
    """The hand-overs of the stages before, from which a stage is made."""
    return [file for earlier in STAGES[: STAGES.index(stage)] for file in stage_files(store)[earlier]]


def of_other_options(store: RunStore, options: Options, schedule: Plan) -> list[str]:
    """Stages that the directory holds of other options than these: a job that begins removes them, and their results."""
    recognise(store, options, schedule.marks, schedule.earlier)  # goes by the config.yaml of an earlier job
    return [stage for stage in store.stale(all_marks(options, schedule)) if stage in STAGES]


def begin(
    store: RunStore, options: Options, schedule: Plan, config: str | None = None, name: str | None = None
) -> None:
    """Make the run directory that of this job (:meth:`RunStore.begin`), and note what the stages that follow are made with.

    Args:
        config: text of config.yaml, where it is known; name: of :func:`connector.runs.naming.stands_for`.
    """
    of_other_options(store, options, schedule)
    store.begin(all_marks(options, schedule), config, FIGURES, name)
    made_with = {"connector": __version__, "versions": provenance.versions(), "git": provenance.git_state()}
    store.note_invocation({"command": provenance.command(), **made_with, "data": schedule.data})


def is_current(store: RunStore, stage: str, schedule: Plan) -> bool:
    """Whether the stage stands finished in the run directory, as it is planned."""
    return store.is_current(stage, schedule.marks[stage], stage_files(store)[stage])


def require_earlier(store: RunStore, schedule: Plan) -> None:
    """As :func:`require_current`, of all stages that are not to run themselves."""
    for stage in STAGES:
        if stage not in schedule.requested and not (stage == "lrrnn" and schedule.given_latents):
            require_current(store, stage, schedule)


def drop_orphans(store: RunStore, stage: str, schedule: Plan) -> None:
    """Forget later stages that were made from what this one has now written anew, where they are not to be trained anew."""
    for later in STAGES[STAGES.index(stage) + 1 :]:
        if later in store.stages() and later not in schedule.requested and not is_current(store, later, schedule):
            store.forget_stage(later)


def require_current(store: RunStore, stage: str, schedule: Plan) -> None:
    """Refuse to run later stages on what this one left: raises UserError where it is not as planned."""
    later = [s for s in schedule.requested if STAGES.index(s) > STAGES.index(stage)]
    if later and not is_current(store, stage, schedule):
        damaged, lost = store.damaged(stage, stage_files(store)[stage]), store.lost(stage)
        got = "results of other options" if stage in store.stages() else "none"
        if damaged or (lost and stage not in store.stale(schedule.marks)):
            got = f"a damaged {damaged[0].name} (its checksum differs)" if damaged else f"no {lost[0].name} any more"
        raise UserError(
            f"finished results of stage {stage} for these options in {store.path}, to run {later[0]} on",
            got,
            f"add {stage} to `stages`, or leave `stages=auto`",
        )


def all_marks(options: Options, schedule: Plan) -> dict[str, str]:
    """Fingerprints of the stages and of the results: these depend on the stages, the seed, and how they are measured."""
    stages = {stage: schedule.marks[stage] for stage in STAGES}
    return stages | {RESULTS: fingerprint(schedule.marks, options.seed, __version__)}


def is_finished(store: RunStore, options: Options, schedule: Plan) -> bool:
    """Whether nothing is left to do for this job: all that it would write is there, whole."""
    return stands_whole(store, schedule.requested, all_marks(options, schedule), options.report)
