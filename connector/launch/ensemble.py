"""Several jobs trained in one process, their flows as one batched computation; each keeps its own run directory.

The stages are trained here and written to the jobs' directories; each job then runs as always, finds its stages
finished and goes on to its results, its log and its end state. A job that cannot be trained here, whatever the reason,
is left to fail or succeed by itself.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from connector.connectivity.flow_selection import Stopping, run_as_one
from connector.data.modules import RecordingDataModule
from connector.errors import UserError
from connector.files import atomic
from connector.launch.flow_ensemble import Trained, kind, train_as_one
from connector.launch.job import guarded, logging_to, quiet, run_stages, unlogged_curves
from connector.launch.planning import Plan, artifacts, begin, build_data, is_current, of_other_options, plan, sources
from connector.launch.sweep import share_memory
from connector.launch.wandb_run import ID_FILE, NoRun
from connector.runs.options import Options
from connector.runs.store import RunStore
from connector.stages.curves import write_learning_curves
from connector.stages.flows import FlowJob, train_flow
from connector.stages.loadings import Beginning, begin_loadings, prepare_loadings
from connector.stages.outputs import prepare_outputs
from connector.stages.progress import StepProgress
from connector.stages.training import StageContext, clock, fit

_PREPARE = {"loadings": prepare_loadings, "outputs": prepare_outputs}


class _Member:
    """One job on its way through the stages; ``locks`` keep its run directory until all are through."""

    def __init__(self, options: Options, directory: Path, locks: contextlib.ExitStack):
        self.options, self.directory = options, directory
        if options.trainer.extra or options.callbacks:
            raise UserError("training by itself with trainer.extra or callbacks", "an ensemble")
        self.data: RecordingDataModule = build_data(options)
        self.data.setup()
        self.schedule: Plan = plan(options, self.data)
        directory.mkdir(parents=True, exist_ok=True)
        locks.enter_context(guarded(directory))
        self.store = RunStore(directory)
        # The job itself, which finds its stages finished, goes on in the W&B run that it knows.
        if options.force or of_other_options(self.store, options, self.schedule):
            (directory / ID_FILE).unlink(missing_ok=True)
        begin(self.store, options, self.schedule)
        self.spent = np.zeros(2)  # on the stage in work, before its flow is trained

    def context(self, say) -> StageContext:
        return StageContext(self.options, self.store, NoRun(), Console(quiet=True), say)

    def run_first_stage(self, others: Iterable[_Member]) -> None:
        only = tuple(stage for stage in self.schedule.requested if stage == "lrrnn")
        first, due = replace(self.schedule, requested=only), self.due("lrrnn")
        if due:
            self._forget_curves("lrrnn")
            twin = self.twin("lrrnn", others)
            if twin is not None:
                self.take_over("lrrnn", twin)
                due = False
        with logging_to(self.directory) as say:
            run_stages(self.context(say), self.data, first)
        if due:
            self._note_curves("lrrnn")

    def due(self, stage: str) -> bool:
        if stage not in self.schedule.requested:
            return False
        return self.options.force or not is_current(self.store, stage, self.schedule)

    def take_over(self, stage: str, twin: _Member) -> None:
        """A stage that another member has finished with the same fingerprint: what it wrote is what this one would write."""
        started = clock()
        self.store.forget_stage(stage)
        self._forget_curves(stage)
        curves = unlogged_curves(twin.store, stage).with_suffix(".csv")
        for file in [*artifacts(twin.store, stage), curves]:
            if file.exists():
                with atomic(self.directory / file.relative_to(twin.directory)) as aside:
                    shutil.copyfile(file, aside)
        with logging_to(self.directory) as say:
            say(f"{stage}: that of {twin.directory.name}, whose data and options of this stage are the same")
        self._note_curves(stage)
        metrics, mark = twin.store.stages()[stage]["metrics"], self.schedule.marks[stage]
        files, made_from = artifacts(self.store, stage), sources(self.store, stage)
        seconds, cpu_seconds = clock() - started
        self.store.finish_stage(stage, mark, seconds, metrics, cpu_seconds, files, made_from)

    def twin(self, stage: str, others: Iterable[_Member]) -> _Member | None:
        """One of the others that has finished the same stage of the same data."""
        mark = self.schedule.marks[stage]
        same = (m for m in others if m is not self and not m.options.force and m.schedule.marks[stage] == mark)
        return None if self.options.force else next((m for m in same if is_current(m.store, stage, m.schedule)), None)

    def begin_loadings(self) -> Beginning:
        started = clock()
        begun = begin_loadings(self.options, self.store.read_stage_inputs())
        self.spent = clock() - started
        return begun

    def prepare(self, stage: str, *decided: Any) -> FlowJob:
        """``decided``: what the stage takes further of that which was found for all members at once."""
        started = clock()
        with logging_to(self.directory) as say:
            self.store.forget_stage(stage)
            self._forget_curves(stage)
            inputs, mark = self.store.read_stage_inputs(), self.schedule.marks[stage]
            job = _PREPARE[stage](self.context(say), inputs, mark, *decided)
        self.spent = self.spent + clock() - started
        return job

    def train_alone(self, job: FlowJob) -> None:
        started = clock()
        metrics = train_flow(job)
        self._close(job, metrics, self.spent + clock() - started)

    def finish(self, job: FlowJob, trained: Trained, shared: np.ndarray) -> None:
        started = clock()
        write_learning_curves(self.directory / "logs" / f"{job.stage}.csv", trained.rows)
        # No epochs more: this writes the stage's checkpoint.
        fit(job.context, job.stage, job.module, job.data, job.mark, 0, f"{job.stage}/val_loss")
        job.finish()
        metrics = job.metrics | {f"{job.stage}/val_loss": trained.val_loss}
        self._close(job, metrics, self.spent + shared + clock() - started)

    def _close(self, job: FlowJob, metrics: dict[str, float], spent: np.ndarray) -> None:
        seconds, cpu_seconds = spent
        self._note_curves(job.stage)
        files, made_from = artifacts(self.store, job.stage), sources(self.store, job.stage)
        self.store.finish_stage(job.stage, job.mark, seconds, metrics, cpu_seconds, files, made_from)
        self.spent = np.zeros(2)

    def _forget_curves(self, stage: str) -> None:
        unlogged_curves(self.store, stage).with_suffix(".csv").unlink(missing_ok=True)

    def _note_curves(self, stage: str) -> None:
        """Where there are learning curves, the job will log them to its W&B run."""
        note = unlogged_curves(self.store, stage)
        if note.with_suffix(".csv").exists():
            note.touch()


def train_together(jobs: Sequence[tuple[Options, Path]], console: Console) -> dict[Path, RecordingDataModule]:
    """Train the stages of several jobs, given by options and run directory, before they run one by one.

    Returns:
        by run directory, the data that were read for each job trained here.
    """
    quiet()
    share_memory()
    members: list[_Member] = []
    with contextlib.ExitStack() as locks:
        for options, directory in jobs:
            if options.trainer.threads is not None:
                torch.set_num_threads(options.trainer.threads)
            with _left_alone_on_error(console, directory):
                member = _Member(options, directory, locks)
                member.run_first_stage(members)
                members.append(member)
        for stage in _PREPARE:
            groups: dict[tuple, list[tuple[_Member, FlowJob]]] = {}
            waiting = [m for m in members if m.due(stage)]
            due = _of_each_kind(waiting, stage)
            decided = _decided(due, members, console) if stage == "loadings" else {}
            for member in [m for m in due if m in members]:
                with _left_alone_on_error(console, member.directory, members, member):
                    job = member.prepare(stage, *decided.get(member, ()))
                    groups.setdefault(kind(job), []).append((member, job))
            for group in groups.values():
                _train_group(stage, group, members, console)
            for member in [m for m in waiting if m in members and m not in due]:
                with _left_alone_on_error(console, member.directory, members, member):
                    twin = member.twin(stage, members)
                    member.train_alone(member.prepare(stage)) if twin is None else member.take_over(stage, twin)
    return {member.directory.resolve(): member.data for member in members}


def _of_each_kind(members: list[_Member], stage: str) -> list[_Member]:
    """Those whose stage is to be trained: of several that would train the same one, the first."""
    found: dict[str, _Member] = {}
    for number, member in enumerate(members):
        mark = str(number) if member.options.force else member.schedule.marks[stage]
        found.setdefault(mark, member)
    return list(found.values())


def _decided(
    due: list[_Member], members: list[_Member], console: Console
) -> dict[_Member, tuple[Beginning, Stopping | None]]:
    """What is decided before the flows of loadings are trained; trials that say how long to train them run as one."""
    found, groups = {}, {}
    for member in due:
        with _left_alone_on_error(console, member.directory, members, member):
            begun = member.begin_loadings()
            found[member] = begun, None
            if begun.trial is not None:
                groups.setdefault(begun.trial.kind, []).append(member)
    for group in [group for group in groups.values() if len(group) > 1]:
        started = clock()
        trials = [found[member][0].trial for member in group]
        for member, stopping in zip(group, run_as_one(trials)):
            found[member] = found[member][0], stopping
        for member in group:
            member.spent = member.spent + (clock() - started) / len(group)
    return found


def _train_group(stage: str, group: list[tuple[_Member, FlowJob]], members: list[_Member], console: Console) -> None:
    if len(group) == 1:
        member, job = group[0]
        with _left_alone_on_error(console, member.directory, members, member):
            member.train_alone(job)
        return
    started = clock()
    with StepProgress(f"{stage}: {len(group)} flows", console if group[0][0].options.trainer.progress else None) as bar:
        bar.expect(max(job.epochs for _, job in group))
        trained = train_as_one([job for _, job in group], lambda epoch: bar.start(f"epoch {epoch}"))
    spent = clock() - started
    console.print(f"{stage}: {len(group)} flows trained as one in {spent[0]:.1f} s", highlight=False)
    for (member, job), result in zip(group, trained):
        with _left_alone_on_error(console, member.directory, members, member):
            member.finish(job, result, spent / len(group))


@contextlib.contextmanager
def _left_alone_on_error(
    console: Console, directory: Path, members: list[_Member] | None = None, member: _Member | None = None
) -> Iterator[None]:
    """What goes wrong here is said in a line, and the member leaves the others: its job meets the error again."""
    try:
        yield
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        console.print(f"{directory.name} is left to run alone: {line}", highlight=False, markup=False, soft_wrap=True)
        if member is not None:
            members.remove(member)
