"""A search over options with Optuna: trials are asked for, run as jobs of a sweep, and told of.

The study's file keeps them, so that a study that was interrupted goes on with the trials that it had begun. A trial is one
job, or one for each fold (``over``), whose mean is its value. A trial that is far behind the others is pruned: after a fold,
here; within a job, by :class:`connector.launch.pruning.Reports`.

Optuna belongs to the extra `sweep` and is imported only where a study runs.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from connector.errors import Pruned, UserError
from connector.launch.sweep import RECORDS, expect_jobs, sweep_id
from connector.report.numbers import counted, format_number

_SAMPLERS, _PRUNERS = ("tpe", "random"), ("none", "median", "percentile")


def imported() -> ModuleType:
    """Optuna; raises UserError where it is not installed, or too old."""
    try:
        import optuna
    except ImportError:
        remedy = "install the extra: pip install 'lowrank-connector[sweep]'"
        raise UserError("the package optuna, for hydra/sweeper=study", "none", remedy) from None
    if int(optuna.__version__.split(".")[0]) < 4:
        raise UserError("optuna 4 or newer", optuna.__version__, "pip install --upgrade optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Search:
    """What a study's command line comes to.

    Attributes:
        fixed: overrides that all jobs have.
        space: option -> Optuna's distribution of it.
        steps: overrides of the jobs of a trial, one after the other.
    """

    fixed: list[str]
    space: dict[str, Any]
    steps: list[list[str]]


def search_of(overrides: Sequence[Override], over: Sequence[str]) -> Search:
    """Options with several values are searched, but for those named in ``over``.

    Raises:
        UserError: a sweep that no distribution expresses, an option of ``over`` without values, or nothing to search.
    """
    fixed, space, values = [], {}, {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(f"{key}={override.get_value_element_as_str()}")
        elif key in over:
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            space[key] = _distribution(override)
    missing = [key for key in over if key not in values]
    if missing:
        got = f"hydra.sweeper.over={missing[0]} without values"
        raise UserError("values of each option that a study averages over", got, f"add {missing[0]}=1,2,3")
    if not space:
        remedy = "add one, such as 'connectivity.regularizer=tag(log, interval(1e-4, 1))'"
        raise UserError("an option for the study to search", "none with several values", remedy)
    return Search(fixed, space, [list(step) for step in itertools.product(*values.values())])


def _distribution(override: Override) -> Any:
    of, value = imported().distributions, override.value()
    log = "log" in value.tags
    if isinstance(value, IntervalSweep):
        kind = of.IntDistribution if isinstance(value.start, int) else of.FloatDistribution
        return _made(override, kind, value.start, value.end, log=log)
    found = list(override.sweep_iterator())
    if isinstance(value, RangeSweep) and len(found) > 1 and not value.shuffle:
        kind = of.IntDistribution if all(isinstance(x, int) for x in found) else of.FloatDistribution
        return _made(override, kind, min(found), max(found), log=log, step=None if log else abs(found[1] - found[0]))
    return _made(override, of.CategoricalDistribution, list(override.sweep_string_iterator()))


def _made(override: Override, kind: Any, *arguments: Any, step: float | None = None, **more: Any) -> Any:
    try:
        return kind(*arguments, **more, **({} if step is None else {"step": step}))
    except ValueError as error:
        raise UserError("values that a study can search", f"{override.input_line} ({error})") from error


def pruner_of(settings: Mapping[str, Any]) -> Any:
    """Optuna's pruner that the options name."""
    of = imported().pruners
    if settings["prune"] == "none":
        return of.NopPruner()
    percentile = 50.0 if settings["prune"] == "median" else float(settings["percentile"])
    return of.PercentilePruner(percentile, int(settings["after_trials"]), n_warmup_steps=int(settings["after_steps"]))


class StudyFile:
    """A study in its file, and what it says of a trial's value so far. Steps count from 1.

    Raises:
        UserError: a file that this version of Optuna cannot read.
    """

    def __init__(self, settings: Mapping[str, Any]):
        optuna = imported()
        from sqlalchemy.exc import SQLAlchemyError

        name, url = str(settings["study_name"]), str(settings["storage"])
        try:
            self.storage = optuna.storages.RDBStorage(url)
            self.study = optuna.create_study(
                study_name=name, storage=self.storage, load_if_exists=True, pruner=pruner_of(settings)
            )
        except (RuntimeError, SQLAlchemyError, ValueError) as error:  # another version's tables; no database
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            remedy = f"choose another hydra.sweep.dir, or run: optuna storage upgrade --storage {url}"
            raise UserError("a study file of this version of Optuna", f"{url} ({reason})", remedy) from error

    def identity(self, number: int) -> int:
        of_study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(of_study, number)

    def is_behind(self, number: int, step: int, value: float) -> bool:
        """Note a trial's value after a step; whether to prune it."""
        identity = self.identity(number)
        self.storage.set_trial_intermediate_value(identity, step, value)
        return self.study.pruner.prune(self.study, self.storage.get_trial(identity))


@dataclass
class Trial:
    """One that is under way: its number, the options that were chosen, and the values of its jobs so far."""

    number: int
    params: Mapping[str, Any]
    values: list[float] = field(default_factory=list)


class Study(StudyFile):
    """The trials of a sweep.

    Args:
        directory: of the sweep; a trial that a sweep there has begun, which is no longer under way, is taken up again.
    """

    def __init__(self, settings: Mapping[str, Any], search: Search, directory: Path):
        super().__init__(settings)
        self.settings, self.search = settings, search
        self._states = imported().trial.TrialState
        self._left = []
        for trial in self.study.get_trials(deepcopy=False, states=(self._states.RUNNING,)):
            if (directory / RECORDS / trial.user_attrs.get("sweep", "none")).exists():  # of another that is under way
                continue
            if trial.distributions == search.space:
                self._left.append(Trial(trial.number, trial.params))
            else:
                self.study.tell(trial.number, state=self._states.FAIL)

    @property
    def due(self) -> int:
        """Trials that are missing, those that are taken up again included."""
        begun = len(self.study.get_trials(deepcopy=False)) - len(self._left)
        return max(0, int(self.settings["n_trials"]) - begun)

    def begin(self) -> Trial | None:
        """The next trial; None where the study has all of its trials."""
        if not self.due:
            return None
        if self._left:
            trial = self._left.pop(0)
        else:
            self.study.sampler = self._sampler()
            asked = self.study.ask(self.search.space)
            trial = Trial(asked.number, asked.params)
        self.storage.set_trial_user_attr(self.identity(trial.number), "sweep", sweep_id())
        return trial

    def _sampler(self) -> Any:
        """Anew for each trial: its choices are a function of the seed and of the trials before, whenever those were run."""
        of, n_trials = imported().samplers, len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([int(self.settings["seed"]), n_trials]).generate_state(1)[0])
        if self.settings["sampler"] == "random":
            return of.RandomSampler(seed)
        with warnings.catch_warnings(action="ignore"):  # the liar, for trials side by side, is called experimental
            return of.TPESampler(seed=seed, constant_liar=int(self.settings["n_jobs"]) > 1)

    def overrides(self, trial: Trial) -> list[str]:
        """Of a trial's next job."""
        chosen = [f"{key}={value}" for key, value in trial.params.items()]
        watched = [] if self.settings["monitor"] is None else [f"hydra.sweeper.trial={trial.number}"]
        return [*self.search.fixed, *chosen, *self.search.steps[len(trial.values)], *watched]

    def take(self, trial: Trial, value: Any) -> bool:
        """What a job returned, or raised; whether its trial goes on."""
        if isinstance(value, BaseException) or value is None or not math.isfinite(value):
            state = self._states.PRUNED if isinstance(value, Pruned) else self._states.FAIL
            self.study.tell(trial.number, state=state)
            return False
        trial.values.append(value)
        mean, step, steps = fmean(trial.values), len(trial.values), self.search.steps
        if step == len(steps):
            self.study.tell(trial.number, mean)
            return False
        if not self.is_behind(trial.number, step, mean):
            return True
        self.study.tell(trial.number, state=self._states.PRUNED)
        where = f"job {step} of {len(steps)} ({' '.join(steps[step - 1])})"
        print(
            f"Trial {trial.number} is pruned after {where}: mean {format_number(mean)} is behind other trials",
            flush=True,
        )
        return False

    def summary(self) -> str:
        """How the study stands, in one or two lines."""
        trials = self.study.get_trials(deepcopy=False)
        names = {self._states.COMPLETE: "done", self._states.PRUNED: "pruned", self._states.FAIL: "failed"}
        numbers = {name: sum(trial.state == state for trial in trials) for state, name in names.items()}
        said = ", ".join(f"{number} {name}" for name, number in numbers.items() if number)
        lines = [f"Study: {counted(len(trials), 'trial')}, {said or 'none ended'}"]
        if numbers["done"]:
            best = self.study.best_trial
            chosen = " ".join(f"{key}={value}" for key, value in best.params.items())
            lines.append(f"Best value {format_number(best.value)}, of trial {best.number}: {chosen}")
        return "\n".join(lines)


def _checked(settings: Mapping[str, Any], launcher: Any) -> None:
    for name, known in (("sampler", _SAMPLERS), ("prune", _PRUNERS)):
        if settings[name] not in known:
            raise UserError(f"hydra.sweeper.{name} among {', '.join(known)}", repr(settings[name]))
    for name in ("n_trials", "n_jobs", "after_trials", "after_steps"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UserError(f"a whole number from 1 as hydra.sweeper.{name}", repr(settings[name]))
    if not 0 <= settings["percentile"] <= 100:
        raise UserError("hydra.sweeper.percentile from 0 to 100", repr(settings["percentile"]))
    monitor = settings["monitor"]
    if settings["prune"] != "none" and monitor is None and not settings["over"]:
        remedy = "add hydra.sweeper.over=[data.fold] with data.fold=1,2,3,4,5, or hydra.sweeper.monitor=lrrnn/val_loss"
        raise UserError(f"values to prune by with hydra.sweeper.prune={settings['prune']}", "none", remedy)
    if monitor is not None and settings["over"]:
        remedy = "leave out hydra.sweeper.monitor to prune after folds"
        raise UserError("one kind of value to prune by", "hydra.sweeper.monitor and hydra.sweeper.over", remedy)
    if monitor is not None and "Ensemble" in type(launcher).__name__:
        remedy = "use another launcher, or prune after folds by hydra.sweeper.over"
        raise UserError("trials that train by themselves with hydra.sweeper.monitor", "hydra/launcher=ensemble", remedy)


def run_study(config: DictConfig, launcher: Any, loader: Any, arguments: Sequence[str]) -> None:
    """Run the trials that a study lacks.

    Raises:
        UserError: options of the study that cannot be meant, or a file that cannot be read.
    """
    settings = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    _checked(settings, launcher)
    typed = [*(f"{key}={value}" for key, value in (settings["params"] or {}).items()), *arguments]
    search = search_of(OverridesParser.create(config_loader=loader).parse_overrides(typed), settings["over"])
    directory = Path(str(config.hydra.sweep.dir))
    study = Study(settings, search, directory.resolve())
    OmegaConf.save(config, directory / "multirun.yaml")
    certain = settings["prune"] == "none" or settings["monitor"] is not None
    expect_jobs(study.due * len(search.steps) if certain else None)
    under_way: list[Trial] = []
    n_launched = 0
    while True:
        while len(under_way) < settings["n_jobs"] and (trial := study.begin()):
            under_way.append(trial)
        if not under_way:
            break
        jobs = launcher.launch([study.overrides(trial) for trial in under_way], initial_job_idx=n_launched)
        n_launched += len(jobs)
        # The property return_value raises what the job raised, and prints.
        under_way = [trial for trial, job in zip(under_way, jobs) if study.take(trial, job._return_value)]
    print(study.summary(), flush=True)
