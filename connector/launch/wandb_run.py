"""Weights & Biases: one run a run directory for all its stages, finished with the right exit code whatever happens.

A run directory keeps the id of its W&B run, so that a job that goes on where an earlier one was interrupted, or that
adds a stage, goes on in the same W&B run; ``force=true`` begins a new one. Offline, each job writes a log of its own
under that id, and ``wandb sync`` joins them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from connector.errors import UserError, unwritable
from connector.files import file_checksum, write_text
from connector.report.glossary import METRICS
from connector.report.page import TableData
from connector.runs.options import STAGES, LoggerOptions

if TYPE_CHECKING:
    import wandb  # else imported where it is used: it takes half a second, and most runs do without

ID_FILE = "wandb_run_id.txt"
_LONGEST_TAG = 64  # characters


def _has_account() -> bool:
    """True where an API key is set up, so that logging online can work."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    try:
        return bool(wandb.Api().api_key)
    except Exception:  # the call raises where there is no key; which error depends on the version
        return False


def _place(directory: Path) -> str:
    """Which directory it is: its number on the disk, which a copy does not have, and its path, which a moved one has not."""
    return f"{directory.stat().st_ino} {directory.resolve()}"


def _known_id(directory: Path) -> str | None:
    """The id of the directory's W&B run; None where it has none, or is a copy of the one that has."""
    file = directory / ID_FILE
    if not file.exists():
        return None
    known, _, place = file.read_text(encoding="utf-8").strip().partition("\n")
    number, _, path = place.partition(" ")
    here, _, now = _place(directory).partition(" ")
    return known if not place or number == here or path == now else None


@contextlib.contextmanager
def _refused(options: LoggerOptions) -> Iterator[None]:
    """What W&B refuses of options and of its variables in the environment is a mistake, said in two lines."""
    import wandb

    try:
        yield
    except (wandb.errors.Error, ValueError, OSError) as error:
        if isinstance(error, OSError) and (told := unwritable(error, "logger.save_dir=DIR")):
            raise told from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = reason if len(reason) <= 200 else f"{reason[:110]}...{reason[-80:]}"
        if hasattr(error, "errors"):  # of pydantic, by which W&B checks its settings
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {str(first.get('input'))[:80]!r}"
        given = sorted(name for name in os.environ if name.startswith("WANDB_"))
        remedy = "see the options logger.*" + (f" and the variables {', '.join(given)}" if given else "")
        raise UserError("a run that W&B can begin", reason, f"{remedy}, or choose logger=csv") from error


def _artifact_name(text: str) -> str:
    """W&B takes letters, digits, dashes, underscores and dots."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:128]


class _LearningRate(Callback):
    """Logs the learning rate at the end of each epoch."""

    def __init__(self, logger: StageLogger):
        self.logger = logger

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        now = {f"{self.logger.stage}/learning_rate": rate, "epoch": trainer.current_epoch}
        self.logger.log_metrics(now, max(0, trainer.global_step - 1))


class StageLogger(WandbLogger):
    """Writes one stage's metrics against that stage's own axes of steps and epochs.

    Attributes:
        callbacks: for the Trainer of the stage.
    """

    def __init__(self, stage: str, run: Any):
        super().__init__(experiment=run, log_model=False)
        self.stage = stage
        self.callbacks = [_LearningRate(self)]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's configuration is Hydra's, nested, and holds all that a module was given."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        if "epoch" in metrics:
            values[f"{self.stage}/epoch"] = metrics["epoch"]
        self.experiment.log({**values, f"{self.stage}/step": step})


class WandbRun:
    """The W&B run of a job.

    Args:
        options: the logger's options; name: of the run; group: of the sweep or experiment; job_type: the data set.
        config: the resolved configuration, nested as in Hydra.
        directory: the run directory, named in the W&B configuration so that each finds the other.
        anew: begin a new W&B run even where the directory has one.
        of_sweep: the job is one of several that this command runs.
        swept: the options that the sweep varies, with this job's values; the field ``swept`` of the W&B configuration.
    """

    def __init__(
        self,
        options: LoggerOptions,
        *,
        name: str,
        group: str,
        job_type: str,
        config: dict,
        directory: Path,
        anew: bool = False,
        of_sweep: bool = False,
        swept: Mapping[str, str] | None = None,
    ):
        import wandb

        mode = options.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        if mode == "online" and not _has_account():
            remedy = "log in with `wandb login`, or choose logger.mode=offline"
            raise UserError("an account of W&B for logger.mode=online", "no API key", remedy)
        # An agent of a W&B sweep has chosen the id already, of one run. Whatever else stands in the environment is left over.
        of_agent = "WANDB_SWEEP_ID" in os.environ and not of_sweep
        with _refused(options):
            Path(options.save_dir).mkdir(parents=True, exist_ok=True)
            chosen = None if of_agent else (not anew and _known_id(directory)) or secrets.token_hex(4)
            self.run = wandb.init(
                id=chosen,
                resume=None if of_agent else "allow",
                project=options.project,
                entity=options.entity,
                name=name,
                group=options.group or group,
                job_type=job_type,
                tags=sorted({*options.tags, job_type[:_LONGEST_TAG]}),
                dir=options.save_dir,
                mode=mode,
                config={**config, "run_directory": str(directory), **({"swept": dict(swept)} if swept else {})},
                settings=wandb.Settings(silent=True),
                reinit="finish_previous",
            )
        self._disabled, self._closed = mode == "disabled", False
        if not self._disabled:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(directory / ID_FILE, f"{self.run.id}\n{_place(directory)}\n")
        self._artifacts: dict[str, wandb.Artifact] = {}
        self.where = f"W&B, {mode}"
        if mode == "offline":
            self.where += f": {Path(self.run.dir).parent} (send it with `wandb sync`)"
        elif mode == "online":
            self.where += f": {self.run.url}"
        for stage in STAGES:
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/epoch", step_metric=f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.run.define_metric(f"{stage}/train_loss", step_metric=f"{stage}/step", summary="min")
        for key, metric in METRICS.items():
            if metric.direction:
                stage = key.split("/")[0]
                best = {"lower": "min", "higher": "max"}[metric.direction]
                self.run.define_metric(key, step_metric=f"{stage}/step" if stage in STAGES else None, summary=best)

    def for_stage(self, stage: str) -> StageLogger:
        return StageLogger(stage, self.run)

    def log_curves(self, stage: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Learning curves of a stage that was trained without this run, as :meth:`for_stage` would have logged them.

        Args:
            rows: of :func:`connector.stages.curves.read_rows`.
        """
        logger = self.for_stage(stage)
        for row in rows:
            values = {key: value for key, value in row.items() if key not in ("epoch", "step")}
            validated = {key: value for key, value in values.items() if "/val_" in key}
            trained = {key: value for key, value in values.items() if key not in validated}
            for part in filter(None, (validated, trained)):
                # Lightning numbers what it logs at an epoch's end by the epoch, and by its last step, both from 0.
                logger.log_metrics({**part, "epoch": row["epoch"] - 1}, int(row["step"]) - 1)

    def log_results(
        self,
        metrics: Mapping[str, float],
        figures: Mapping[str, Path],
        tables: Mapping[str, TableData],
        cautions: Sequence[str] = (),
    ) -> None:
        """Final metrics into the summary, under their names in metrics.json, and the report's cautions beside them, a
        sentence a line; figures as images; tables as tables."""
        import wandb

        self.run.summary.update({**metrics, "cautions": "\n".join(cautions)})
        shown: dict[str, Any] = {f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items()}
        for name, table in tables.items():
            shown[f"tables/{name}"] = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        if shown:
            self.run.log(shown)

    def log_data(self, data: Mapping[str, Any], name: str) -> None:
        """The data set as an artifact that this run uses: of a file a reference and its checksum, no copy."""
        import wandb

        path = data.get("path")
        artifact = wandb.Artifact(_artifact_name(f"data-{name}"), type="dataset", metadata={"options": dict(data)})
        if path:
            file = Path(path).resolve()
            artifact.metadata["sha256"] = file_checksum(file)
            artifact.add_reference(file.as_uri(), name=file.name)
        else:
            with artifact.new_file("data.json") as handle:
                json.dump(dict(data), handle, sort_keys=True)
        self._log(artifact, "dataset", given=True, used=True)

    def log_artifact(self, kind: str, files: Sequence[Path], made_from: Sequence[str], used: bool = False) -> None:
        """Files that exist as one artifact of this run.

        Args:
            kind: its type; made_from: types of artifacts of this run that it came from.
            used: whether the run goes on to use it, so that it stands between data and result in the lineage.
        """
        import wandb

        there = [file for file in files if file.exists()]
        if not there:
            return
        sources = [self._artifacts[source].name for source in made_from if source in self._artifacts]
        artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind, metadata={"made_from": sources})
        for file in there:
            artifact.add_file(str(file))
        self._log(artifact, kind, used=used)

    def _log(self, artifact: wandb.Artifact, kind: str, *, given: bool = False, used: bool = False) -> None:
        self._artifacts[kind] = artifact
        if self._disabled:
            return
        # The public use_artifact refuses to work offline, and online waits for the upload; what it does itself works in
        # both: the use is noted with the artifact, and takes place when that has arrived.
        log = getattr(self.run, "_log_artifact", None)
        if log is None:
            self.run.log_artifact(artifact)
        else:
            log(artifact, is_user_created=given, use_after_commit=used)

    def log_end(self, state: str) -> None:
        """How a run without results ended, into the summary."""
        self.run.summary["state"] = state

    def finish(self, exit_code: int) -> None:
        """Close the run; once closed it stays as it is."""
        if not self._closed:
            self.run.finish(exit_code=exit_code)
            self._closed = True


class NoRun:
    """Stands where no W&B run is wanted, and on all ranks but the first."""

    def for_stage(self, stage: str) -> bool:
        return False

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    log_results = log_data = log_artifact = log_end = finish = _nothing
