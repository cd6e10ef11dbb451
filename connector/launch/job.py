"""One job from its checked options to its report: data, the stages that are due, results, log."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from connector import interruption
from connector.data.modules import RecordingDataModule
from connector.errors import Pruned, RunFailure, UserError, end_state, explain
from connector.launch import distributed as launch
from connector.launch.finished import begins, may_pass, note, objective, show, stage_files, tell
from connector.launch.planning import (
    Plan,
    all_marks,
    artifacts,
    begin,
    build_data,
    drop_orphans,
    is_current,
    is_finished,
    of_other_options,
    plan,
    require_current,
    require_earlier,
    sources,
)  # fmt: skip
from connector.launch.ranks import require_launched
from connector.launch.sweep import swept_here
from connector.launch.targets import UsersLogger, additions
from connector.launch.wandb_run import NoRun, WandbRun
from connector.report.cautions import warnings_of
from connector.report.numbers import counted
from connector.runs.lock import locked
from connector.runs.options import STAGES, Options, OtherLogger, literal
from connector.runs.store import RESULTS, RunStore
from connector.stages.curves import read_rows
from connector.stages.flows import FlowJob, train_flow
from connector.stages.loadings import prepare_loadings
from connector.stages.lrrnn import given_stage_inputs, train_lrrnn
from connector.stages.outputs import prepare_outputs
from connector.stages.progress import StepProgress
from connector.stages.results import beside_network, measures_of_fit
from connector.stages.tables import result_tables
from connector.stages.training import Additions, StageContext, check_trainer, clock, is_child_rank, one_thread
from connector.stages.write_results import summarise
from connector.types import Recording, span

_log = logging.getLogger("connector")


def quiet() -> None:
    """Silence what Lightning says of itself, unless hydra.verbose asks for it, and its warnings that ask for nothing."""
    verbose = logging.getLogger().level == logging.DEBUG
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        if logging.getLogger(name).level != logging.DEBUG:
            logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.WARNING)
    for said in (
        "does not have many workers", "`isinstance\\(treespec, LeafSpec\\)`", "tensorboardX", "GPU available but not used",
        "exists and is not empty",  # checkpoint folders are ours and named after what they hold
    ):  # fmt: skip
        warnings.filterwarnings("ignore", f".*{said}.*")


class _LogFile(logging.FileHandler):
    """A log that cannot be written, on a full disk, stops no run and prints no traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # opening it, the first time
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written before cannot be now
            super().close()


@contextlib.contextmanager
def explained(stage: str, directory: Path) -> Iterator[None]:
    """What leaves the block is a mistake, or a failure that says in which stage it happened and what to do."""
    try:
        yield
    except Exception as error:
        told = launch.lost_rank() or explain(error, stage, directory)
        if told is error:
            raise
        raise told from error


@contextlib.contextmanager
def logging_to(directory: Path) -> Iterator[Callable[[str], None]]:
    """Yields what writes a line to the run's train.log."""
    handler = _LogFile(directory / "train.log", delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if _log.getEffectiveLevel() > logging.DEBUG:  # else hydra.verbose asks for all that is logged
        _log.setLevel(logging.INFO)
        _log.propagate = False  # a configuration of one's own may have Hydra print what is logged: each line twice
    _log.addHandler(handler)
    try:
        yield _log.info
    finally:
        _log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[None]:
    """The run directory for this process alone (other ranks of the same job write nothing), rid of half-written files."""
    if is_child_rank():
        yield
        return
    with locked(directory):
        RunStore(directory).remove_leftovers()
        yield


def unlogged_curves(store: RunStore, stage: str) -> Path:
    """A file that stands where a stage's learning curves have not gone to W&B: it was trained together with others."""
    return store.path / "logs" / f"{stage}.unlogged"


def _log_curves_of_reused(context: StageContext, stage: str) -> None:
    note = unlogged_curves(context.store, stage)
    if isinstance(context.logger, WandbRun) and note.exists():
        context.logger.log_curves(stage, read_rows(note.with_suffix(".csv")))
        note.unlink()


def run_stages(context: StageContext, data: RecordingDataModule, schedule: Plan) -> None:
    """Run what is due, reuse what is current; refuse to build on results of other options."""
    store, options = context.store, context.options
    if schedule.given_latents and not is_current(store, "lrrnn", schedule):
        context.say(
            "lrrnn: skipped, the file carries latents and MBD (add lrrnn to `stages` to fit it from the activity)"
        )
        if not is_child_rank():
            store.write_stage_inputs(given_stage_inputs(data))
            store.finish_stage("lrrnn", schedule.marks["lrrnn"], 0.0, {}, files=[store.latents_file])
    trainers = {
        "lrrnn": lambda mark: train_lrrnn(context, data, mark),
        "loadings": lambda mark: _flow_on_one_thread(context, prepare_loadings, mark),
        "outputs": lambda mark: _flow_on_one_thread(context, prepare_outputs, mark),
    }
    for stage in STAGES:
        if stage not in schedule.requested:
            require_current(store, stage, schedule)
            continue
        mark = schedule.marks[stage]
        if is_current(store, stage, schedule) and not options.force:
            context.say(f"{stage}: reused, its options and inputs are unchanged (force=true trains again)")
            _log_curves_of_reused(context, stage)
            continue
        if not options.force:
            for file in store.damaged(stage, stage_files(store)[stage]):
                context.say(f"{stage}: {file.name} is not what the stage wrote (its checksum differs); training again")
            for file in store.lost(stage):
                context.say(f"{stage}: {file.name} is no longer there; training again")
        started = clock()
        if not is_child_rank():
            store.forget_stage(stage)
        with explained(stage, store.path):
            there = store.is_there()
            metrics = trainers[stage](mark)
            if there and not is_child_rank() and not store.is_there():
                raise RunFailure(
                    stage, f"{store.path} was removed while it ran", "run the same command to make it again"
                )
        seconds, cpu_seconds = clock() - started
        if not is_child_rank():
            store.finish_stage(
                stage, mark, seconds, metrics, cpu_seconds, artifacts(store, stage), sources(store, stage)
            )
            drop_orphans(store, stage, schedule)
        launch.wait_for_all_ranks()  # the next stage reads what the first rank has written
        context.say(f"{stage}: done in {seconds:.1f} s ({cpu_seconds:.1f} s of CPU time)")
    if store.latents_file.exists() and data.recording.kind == "rates":
        data.take_scale(store.read_stage_inputs().scale)
    if data.recording.inputs is not None and store.latents_file.exists():
        data.take_inputs(store.read_stage_inputs().latents.input_kind)


def _flow_on_one_thread(context: StageContext, prepare: Callable[..., FlowJob], mark: str) -> dict[str, float]:
    """Prepare and train a flow: a second thread takes twice the CPU time, and with few neurons more time as well."""
    with one_thread(context.options):
        return train_flow(prepare(context, context.store.read_stage_inputs(), mark))


def all_metrics(store: RunStore, stages: Collection[str], results: dict[str, float]) -> dict[str, float]:
    """Results together with the metrics and seconds of some stages."""
    metrics = dict(results)
    for stage, record in store.stages().items():
        if stage not in stages:
            continue
        metrics |= record["metrics"]
        if record["seconds"] > 0:
            metrics[f"timing/{stage}_seconds"] = record["seconds"]
    return metrics


def describe(recording: Recording) -> list[str]:
    """The recording in a few lines: sizes, and what was dropped or assumed when it was read."""
    kind = "firing rates" if recording.kind == "rates" else "spike counts"
    line = f"{recording.name}: {kind} of {counted(recording.n_neurons, 'neuron')}, "
    line += f"{counted(recording.n_trials, 'trial')} of {span(recording.lengths)} samples"
    if recording.bin_s is not None:
        line += f" of {1000 * recording.bin_s:g} ms"
    given = recording.n_inputs // (2 if recording.input_kind == "both" else 1)
    taken = {"filtered": " (filtered)", "both": " (at once and filtered)"}.get(recording.input_kind, "")
    inputs = f", {counted(given, 'input')}{taken}" if given else ""
    notes = list(recording.notes)
    if recording.kind == "rates" and recording.choices is not None:
        notes.append("choices are read but not used: measures by choice need spikes")
    return [f"{line}{inputs}; {recording.activation}, alpha = {recording.alpha:g}", *notes]


def _logger(job: _Job, anew: bool) -> Any:
    options, directory = job.options, job.store.path
    if is_child_rank():
        return NoRun()
    if isinstance(options.logger, OtherLogger):
        return UsersLogger(options.logger, directory, job.config)
    if options.logger.name != "wandb":
        return NoRun()
    prefix = "" if directory.name.startswith(options.experiment_name) else f"{options.experiment_name},"
    swept = {} if job.sweep_name is None else swept_here()
    by_sweep = " ".join([options.experiment_name, *(f"{key}={value}" for key, value in swept.items())])
    return WandbRun(
        options.logger,
        name=by_sweep if swept else prefix + directory.name,
        group=job.sweep_name or options.experiment_name,
        job_type=options.data.name,
        config=job.config,
        directory=directory,
        anew=anew,
        of_sweep=job.sweep_name is not None,
        swept=swept,
    )


def whole_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration that means the same from any directory."""
    given = {name: config["data"][name] for name in ("path", "teachers") if config["data"].get(name)}
    files = {
        name: [str(Path(x).absolute()) for x in path] if isinstance(path, list) else str(Path(path).absolute())
        for name, path in given.items()
    }
    return config | {"data": config["data"] | files}


def run(
    options: Options,
    config: DictConfig,
    directory: Path,
    sweep_name: str | None = None,
    job_number: int | None = None,
    data: RecordingDataModule | None = None,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> float | None:
    """Run one job in ``directory``: by itself, or as number ``job_number`` of the sweep ``sweep_name``.

    Args:
        data: of the job, where an ensemble has read them; None: as the options name them.
        name: what the directory's name stands for, of :func:`connector.runs.naming.stands_for`; None: it was chosen freely.
        callbacks: of Lightning, for the trainings of all stages.

    Returns:
        the value an optimizing sweeper minimises: the dissimilarity to a known teacher, else the projected field error.

    Raises:
        UserError: a mistake the user can mend; nothing is written then, unless a stage had already finished.
        Pruned: one of the callbacks has ended the job.
    """
    quiet()
    if options.trainer.threads is not None:
        torch.set_num_threads(options.trainer.threads)
    console = Console(stderr=False, quiet=is_child_rank())
    trainer = options.trainer
    if trainer.strategy == "auto":
        trainer.devices = launch.devices_of_job(trainer.accelerator, trainer.devices, job_number)
    machine, own = check_trainer(options.trainer), additions(options)  # refuse before anything is read
    require_launched(machine["processes"])
    if machine["processes"] > 1:
        launch.install_job_command()
    _log.debug("fingerprints are made for this machine: %s", machine)
    with explained("data", directory):
        if data is None:
            data = build_data(options)
            data.setup()
        schedule = plan(options, data, machine)
    _log.debug("fingerprints: %s", schedule.marks)
    store, plain = RunStore(directory), whole_paths(OmegaConf.to_container(config, resolve=True))
    job = _Job(options, plain, store, data, schedule, own, console, sweep_name, name, callbacks)
    if options.trainer.extra.get("fast_dev_run"):
        return _try_out(job)
    alone = sweep_name is None
    if may_pass(options, alone) and is_finished(store, options, schedule):
        metrics = store.metrics()
        tell(console, store, metrics, alone, options.verbose)
        _note_known(store, _known(options, schedule))
        return objective(metrics)
    begins(directory)
    with contextlib.ExitStack() as held:
        with explained("start", directory):
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(guarded(directory))
        held.enter_context(logging_to(directory))
        return _run(job)


@dataclass(frozen=True)
class _Job:
    """What a job goes by, once its data are read and its stages planned.

    ``config``: the configuration, resolved; ``additions``: of :class:`StageContext`, what the user adds to each stage.
    """

    options: Options
    config: dict[str, Any]
    store: RunStore
    data: RecordingDataModule
    schedule: Plan
    additions: Additions
    console: Console
    sweep_name: str | None
    name: str | None
    callbacks: Sequence[Callback]

    def say(self, line: str) -> None:
        """To train.log, and to the terminal but for the jobs of a sweep, which have one line each."""
        _log.info(line)
        if self.sweep_name is None or self.options.verbose:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def _try_out(job: _Job) -> None:
    """Lightning's fast_dev_run: a few batches of every stage, in a directory that is thrown away."""
    schedule = job.schedule
    last = max(map(STAGES.index, schedule.requested), default=0)
    all_before = tuple(s for s in STAGES[: last + 1] if s != "lrrnn" or not schedule.given_latents)
    with tempfile.TemporaryDirectory() as scratch:
        context = StageContext(job.options, RunStore(scratch), NoRun(), job.console, job.say, additions=job.additions)
        run_stages(context, job.data, replace(schedule, requested=all_before))
    job.say(
        "fast_dev_run: every stage ran to its end with a batch or a few; nothing was kept, and nothing was measured"
    )


def _note_state(store: RunStore, state: str | None) -> None:
    """On the first rank; where the manifest cannot be written, on a full disk, it goes on saying that the job runs."""
    if state is not None and not is_child_rank():
        with contextlib.suppress(OSError, UserError):
            store.note_state(state)


def _known(options: Options, schedule: Plan) -> dict[str, Any] | None:
    """What a finished job is known by, before torch is imported."""
    of_file = schedule.data["sha256"] if "path" in schedule.data else None
    return note(options, schedule.requested, all_marks(options, schedule), of_file)


def _note_known(store: RunStore, known: Mapping[str, Any] | None) -> None:
    """Of a job that stands finished, by this version of the code too: it is known at once when it is asked for again."""
    if known is not None and not is_child_rank():
        with contextlib.suppress(OSError, UserError):
            store.note_job(known)


def _require_own_name(store: RunStore, name: str | None) -> None:
    """Refuse the directory of another job whose options give the same short name: raises UserError."""
    if name is not None and store.manifest().get("name", name) != name:
        got, remedy = f"{store.path}, which another job has", "start it once more, or choose one with hydra.run.dir=DIR"
        raise UserError("a directory that no other options have by name", got, remedy)


def _run(job: _Job) -> float | None:
    store, directory = job.store, job.store.path
    ranks, logger, begun, failed = launch.rank_variables(), NoRun(), is_child_rank(), True
    # A job that is refused leaves the directory as it was.
    _require_own_name(store, job.name)
    if not begun:
        store.require_own(getattr(job.options.data, "path", None))
    stale = [] if begun else of_other_options(store, job.options, job.schedule)
    require_earlier(store, job.schedule)
    try:
        with explained("start", directory):
            for line in describe(job.data.recording):
                job.say(line)
            logger = _logger(job, anew=job.options.force or bool(stale))
            if isinstance(logger, WandbRun):
                job.say(logger.where)
                # A simulation is a function of the seed, too.
                seed = {"seed": job.options.seed} if job.data.teacher is not None else {}
                logger.log_data(job.config["data"] | seed, job.options.data.name)
            context = StageContext(
                job.options, store, logger, job.console, job.say, callbacks=job.callbacks, additions=job.additions
            )
            if not is_child_rank():
                if stale:
                    job.say(f"{', '.join(stale)}: removed, made with other options")
                begin(
                    store, job.options, job.schedule, OmegaConf.to_yaml(OmegaConf.create(literal(job.config))), job.name
                )
                begun = True
                launch.tell(partial(_note_state, store))
        run_stages(context, job.data, job.schedule)
        launch.stop_watching()
        reached = None
        if not is_child_rank():
            with explained("results", directory):
                reached = objective(_results(job, logger))
        failed = False
        return reached
    except (KeyboardInterrupt, SystemExit) as left:
        said = f"the job ended early ({interruption.what(left)}); {interruption.goes_on(directory)}"
        _log.info(said)
        _note_state(store, said if begun else None)
        raise
    except Pruned as pruned:
        failed = False
        job.say(f"the job ended early: {end_state(pruned)}")
        _note_state(store, end_state(pruned))
        logger.log_end(end_state(pruned))
        raise
    except BaseException as error:
        _log.exception("the job ended early")
        _note_state(store, end_state(error) if begun else None)
        raise
    finally:
        logger.finish(exit_code=int(failed))
        launch.leave_process_group(ranks, failed)


def _results(job: _Job, logger: Any) -> dict[str, float]:
    """Measure, draw, log and show what the stages reached; the metrics of metrics.json."""
    options, store = job.options, job.store
    standing = [stage for stage in STAGES if is_current(store, stage, job.schedule)]  # asked once: it reads their files
    beside = beside_network(store, job.data.recording) if "lrrnn" in standing else None
    of_fit = measures_of_fit(store, job.data.recording, beside) if "lrrnn" in standing else {}
    metrics, figures, spent = all_metrics(store, standing, of_fit), {}, (0.0, 0.0)
    cautions = warnings_of(metrics)
    drawn = (
        [] if options.report.draw else [store.path / name for name in store.stages().get(RESULTS, {}).get("drawn", {})]
    )
    if len(standing) == len(STAGES):
        job.say("results: measuring sampled networks" + (", drawing figures" if options.report.draw else ""))
        started = clock()
        with (
            one_thread(options),
            StepProgress("results", job.console if options.trainer.progress else None) as progress,
        ):
            about = describe(job.data.recording)
            results, figures, cautions = summarise(options, store, job.data, metrics, about, progress, beside)
        spent = clock() - started
        job.say(f"results: done in {spent[0]:.1f} s ({spent[1]:.1f} s of CPU time)")
        metrics = all_metrics(store, standing, of_fit | results)
        metrics["timing/results_seconds"] = round(float(spent[0]), 3)
    for line in cautions:
        _log.info(line)
    store.write_metrics(metrics)
    tables = result_tables(options, store, job.data) if isinstance(logger, WandbRun) else {}
    logger.log_results(metrics, figures, tables, cautions)
    network = store.path / "network.npz"
    logger.log_artifact("lrrnn", [store.latents_file, store.checkpoints / "lrrnn.ckpt"], ["dataset"], used=True)
    if store.connectivity_file.exists():
        files = [store.connectivity_file, store.loadings_flow_file, network]
        logger.log_artifact("connectivity", files, ["dataset", "lrrnn"])
    # What is noted as finished is passed over when a sweep starts again: the W&B run has to be closed by then.
    logger.finish(exit_code=0)
    marks, files = all_marks(options, job.schedule), [store.path / "metrics.json", network]
    formats = options.report.formats
    drawn += [file.with_suffix(f".{ending}") for file in figures.values() for ending in formats]
    drawn += [store.path / "report.html"] if figures else []
    known = _known(options, job.schedule)
    store.finish_stage(
        RESULTS, marks[RESULTS], spent[0], {}, spent[1], files, drawn=drawn, cautions=cautions, job=known
    )
    if job.sweep_name is None or options.verbose:
        show(job.console, metrics, store, options.verbose)
    return metrics
