"""Which stages of a run are due, which stand finished and are reused, and what each is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connector import __version__
from connector.data.attractors import load_teachers
from connector.data.modules import AttractorDataModule, FileDataModule, RecordingDataModule
from connector.data.simulation import SimulationOptions
from connector.errors import UserError
from connector.files import file_checksum
from connector.runs import provenance
from connector.runs.fingerprints import earlier_marks, recognise, stage_marks
from connector.runs.options import STAGES, AttractorData, DataOptions, Options
from connector.runs.store import RunStore, fingerprint
from connector.stages.training import check_trainer


def build_data(options: Options) -> RecordingDataModule:
    """The data module that the options name, not yet read.

    Raises:
        UserError: the file is absent.
    """
    return data_module(options.data, options.seed, options.lrrnn.rank, options.lrrnn.bias)


def data_module(data: DataOptions, seed: int, rank: int, has_bias: bool | None) -> RecordingDataModule:
    """As :func:`build_data`, of the options that it depends on."""
    common = {"rank": rank, "fold_number": data.fold, "n_folds": data.n_folds, "fold_seed": data.fold_seed}
    common |= {"seed": seed, "has_bias": has_bias}
    if isinstance(data, AttractorData):
        if data.teachers is not None:
            load_teachers(data.teachers)
        return AttractorDataModule(data.name, simulation=data.part(SimulationOptions), data_seed=seed, **common)
    if not Path(data.path).is_file():
        got = f"a directory, {data.path}" if Path(data.path).is_dir() else data.path
        raise UserError("data.path naming a file that exists", got)
    return FileDataModule(data.path, data.source, reading=data.reading(), **common)


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
    source = file_checksum(path) if path else options.seed
    if teachers is not None:  # a simulation is a function of the seed, and of the file that its teacher stands in
        source = (options.seed, file_checksum(teachers))
    if path:
        about = {"path": str(Path(path).resolve()), "sha256": source}
    else:
        about = {"seed": options.seed, "sha256": provenance.tensor_checksum(data.recording.activity)}
    if data.left_out:  # version 0.1 kept constant neurons
        source = (source, data.left_out)
    marks = stage_marks(options, source, machine or check_trainer(options.trainer), given_latents)
    earlier = {} if data.left_out else earlier_marks(options, source, given_latents)
    return Plan(requested, marks, given_latents, about, earlier)


def stage_files(store: RunStore) -> dict[str, list[Path]]:
    return {
        "lrrnn": [store.latents_file],
        "loadings": [store.loadings_flow_file],
        "outputs": [store.connectivity_file],
    }


def artifacts(store: RunStore, stage: str) -> list[Path]:
    """All that a stage may have written for others to read."""
    of_stage = {"lrrnn": [store.path / "responses.npz"]}
    return [*stage_files(store)[stage], store.checkpoints / f"{stage}.ckpt", *of_stage.get(stage, [])]


def sources(store: RunStore, stage: str) -> list[Path]:
    """The hand-overs of the stages before, from which a stage is made."""
    return [file for earlier in STAGES[: STAGES.index(stage)] for file in stage_files(store)[earlier]]


def note_invocation(store: RunStore, options: Options, schedule: Plan) -> None:
    """Note what the stages that follow are made with; before config.yaml is that of this job."""
    recognise(store, options, schedule.marks, schedule.earlier)
    made_with = {"connector": __version__, "versions": provenance.versions(), "git": provenance.git_state()}
    store.note_invocation({"command": provenance.command(), **made_with, "data": schedule.data})


def is_current(store: RunStore, stage: str, schedule: Plan) -> bool:
    """Whether the stage stands finished in the run directory, as it is planned."""
    return store.is_current(stage, schedule.marks[stage], stage_files(store)[stage])


def require_current(store: RunStore, stage: str, schedule: Plan) -> None:
    """Refuse to run later stages on what this one left: raises UserError where it is not as planned."""
    later = [s for s in schedule.requested if STAGES.index(s) > STAGES.index(stage)]
    if later and not is_current(store, stage, schedule):
        damaged = store.damaged(stage, stage_files(store)[stage])
        of_others = "results of other options" if stage in store.stages() else "none"
        raise UserError(
            f"finished results of stage {stage} for these options in {store.path}, to run {later[0]} on",
            f"a damaged {damaged[0].name} (its checksum differs)" if damaged else of_others,
            f"add {stage} to `stages`, or leave `stages=auto`",
        )


def results_mark(options: Options, schedule: Plan) -> str:
    """Of the results: the stages that they are of, and what else they depend on."""
    return fingerprint(schedule.marks, schedule.requested, options.report, options.seed, __version__)


def is_finished(store: RunStore, options: Options, schedule: Plan) -> bool:
    stages = all(is_current(store, stage, schedule) for stage in schedule.requested)
    return stages and store.is_current("results", results_mark(options, schedule), [store.path / "metrics.json"])
