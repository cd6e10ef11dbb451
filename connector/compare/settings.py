"""Settings: runs that differ in nothing but seed and data.fold, with the mean and interval of every measure."""

from __future__ import annotations

import difflib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.special import stdtrit

from connector.compare.runs import FoundRun, swept_options
from connector.declarations import by_value, declared
from connector.errors import UserError
from connector.report.glossary import MAIN_METRICS, METRICS, Metric
from connector.runs.fingerprints import WATCHING
from connector.runs.naming import without_effect
from connector.runs.options import TrainerOptions

LEVEL = 0.95
REPETITION = ("seed", "data.fold")
ABSENT = ""  # of an option that another data set has
# Named as the user types them: the group lrrnn=published, not its key lrrnn.name.
_GROUPS = {f"{group}.name": group for group in ("data", "lrrnn", "connectivity")}
_OF_TRAINER = {f"trainer.{name}" for name, about, _ in declared(TrainerOptions) if about.stages and name != "extra"}
# The better direction of measures of which METRICS says none, or that it does not know.
_BY_NAME = (
    (re.compile(r"^timing/|_(loss|error|seconds|dissimilarity)$"), "lower"),
    (re.compile(r"_r2(_|$)|_auc(_|$)|bits_per_spike|log_likelihood|loadings/gain_over"), "higher"),
)


class Estimate(NamedTuple):
    """Mean of a measure over ``n`` runs with its t interval; ``low`` and ``high`` are None for a single run."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean and its t interval: mean plus or minus t_(n - 1) s / sqrt(n)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, len(values))


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seed and data.fold alone.

    Attributes:
        options: the differing options with this setting's values.
        runs: by seed and fold; estimates: of every measure that one of them has.
    """

    options: Mapping[str, Any]
    runs: tuple[FoundRun, ...]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Settings, best first.

    Attributes:
        settings: see Setting; by: the measure that orders them.
        options: all options in which settings differ; shown: those of them that say it all, those that a sweep varied first,
            ``n_swept`` of them.
        repeated: the options among REPETITION that differ between runs.
        not_done: unfinished and failed runs; superseded: (older run, newer one of the same options, seed and fold).
    """

    settings: tuple[Setting, ...]
    by: str
    options: tuple[str, ...]
    shown: tuple[str, ...]
    repeated: tuple[str, ...]
    not_done: tuple[FoundRun, ...]
    superseded: tuple[tuple[FoundRun, FoundRun], ...]
    n_swept: int = 0

    @property
    def runs(self) -> list[FoundRun]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def metrics(self) -> list[str]:
        """All measures: those that matter most first, then as the report has them, then the rest."""
        found = {key for setting in self.settings for key in setting.estimates}
        order = [self.by, *MAIN_METRICS, *METRICS, *sorted(found)]
        return [key for key in dict.fromkeys(order) if key in found]

    @property
    def main_metrics(self) -> list[str]:
        return [key for key in self.metrics if key == self.by or key in MAIN_METRICS]

    def name(self, setting: Setting) -> str:
        """A setting in words: its differing options, or where there are none what was run."""
        said = [f"{typed(key)}={shown(setting.options[key])}" for key in self.shown if setting.options[key] != ABSENT]
        return " ".join(said) or str(setting.runs[0].options.get("experiment_name", setting.runs[0].path.name))


def typed(option: str) -> str:
    """An option as it is typed on the command line."""
    return _GROUPS.get(option, option)


def shown(value: Any) -> str:
    """An option's value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str).replace('"', "")


def about(key: str) -> Metric:
    """What is known of a measure, with the better direction where its name tells."""
    metric = METRICS.get(key, Metric(key, "", ""))
    if metric.direction:
        return metric
    return metric._replace(direction=next((way for name, way in _BY_NAME if name.search(key)), ""))


def spelling(value: Any) -> str:
    """One text for one value, however it was typed: 1 and 1.0 are one number."""
    return json.dumps(by_value(value), sort_keys=True, default=str)


def _spelt(run: FoundRun, options: Sequence[str]) -> tuple[str, ...]:
    return tuple(spelling(run.options.get(name, ABSENT)) for name in options)


def _changes_results(key: str) -> bool:
    """By its declaration, where the option is the trainer's, as in the fingerprints of stages."""
    if key.startswith("trainer."):
        return key in _OF_TRAINER or (key.startswith("trainer.extra.") and key.split(".")[2] not in WATCHING)
    return key != "experiment_name" and not without_effect(key)  # the name is a label


def differing_options(runs: Sequence[FoundRun]) -> list[str]:
    """Options that change results and that do not have one value in all runs, in the order of the configuration."""
    keys = list(dict.fromkeys(key for run in runs for key in run.options))
    keys = [key for key in keys if _changes_results(key)]
    return [key for key in keys if len({_spelt(run, [key]) for run in runs}) > 1]


def telling_options(runs: Sequence[FoundRun], options: Sequence[str]) -> list[str]:
    """Of options that differ those that say it all: a group's name stands for what the group's choice changes."""

    def depends(key: str, other: str) -> bool:
        pairs = {_spelt(run, (other, key)) for run in runs}
        return len(pairs) == len({first for first, _ in pairs})

    kept = []
    for key in options:
        name = f"{key.split('.')[0]}.name"
        if key == name or name not in options or not depends(key, name):
            kept.append(key)
    return kept


def _choose_metric(runs: Sequence[FoundRun], by: str | None) -> str:
    found = sorted({key for run in runs for key in run.metrics})
    if by is not None:
        if by not in found:
            near = difflib.get_close_matches(by, found, n=1) or [key for key in found if key.endswith(f"/{by}")]
            remedy = f"the nearest is --by {near[0]}" if near else "metrics.json of a run lists what there is"
            raise UserError("--by with a measure of these runs", by, remedy)
        return by
    everywhere = [key for key in MAIN_METRICS if all(key in run.metrics for run in runs)]
    somewhere = [key for key in MAIN_METRICS if any(key in run.metrics for run in runs)]
    return next(iter([*everywhere, *somewhere, *found]))


def compare(found: Sequence[FoundRun], by: str | None = None) -> Comparison:
    """Settings of the runs that are done, ordered by the measure ``by``.

    Raises:
        UserError: no run is done, or none has the measure.
    """
    not_done = tuple(run for run in found if run.problem)
    done = [run for run in found if not run.problem]
    if not any(run.metrics for run in done):
        reasons = "; ".join(f"{run.path.name}: {run.problem or 'no measures'}" for run in found[:3])
        raise UserError("runs that are done", f"{len(found)} that are not ({reasons})", "let them run to their end")
    options = differing_options(done)
    of_settings = [key for key in options if key not in REPETITION]
    newest: dict[tuple, FoundRun] = {}
    superseded = []
    # The same options, seed and fold once more are no repetition: counted twice they would narrow the interval.
    for run in sorted(done, key=lambda run: (run.path / "metrics.json").stat().st_mtime_ns):
        key = _spelt(run, options)
        if key in newest:
            superseded.append((newest[key], run))
        newest[key] = run
    runs = list(newest.values())
    grouped: dict[tuple, list[FoundRun]] = {}
    for run in runs:
        grouped.setdefault(_spelt(run, of_settings), []).append(run)
    settings = []
    for members in grouped.values():
        members.sort(key=lambda run: [_sortable(run.options.get(key)) for key in REPETITION])
        keys = list(dict.fromkeys(key for run in members for key in run.metrics))
        estimates = {key: mean_interval([run.metrics[key] for run in members if key in run.metrics]) for key in keys}
        values = {name: members[0].options.get(name, ABSENT) for name in of_settings}
        settings.append(Setting(values, tuple(members), estimates))
    by = _choose_metric(runs, by)
    sign = -1.0 if about(by).direction == "higher" else 1.0

    def place(setting: Setting) -> tuple:
        value = setting.estimates.get(by)
        ties = [_sortable(value) for value in setting.options.values()]
        return value is None, sign * value.mean if value is not None else 0.0, ties

    swept = swept_options(runs)
    telling = telling_options(runs, of_settings)
    leading = [key for key in telling if typed(key) in swept]
    return Comparison(
        tuple(sorted(settings, key=place)),
        by,
        tuple(of_settings),
        (*leading, *(key for key in telling if key not in leading)),
        tuple(key for key in REPETITION if key in options),
        not_done,
        tuple(superseded),
        len(leading),
    )


def _sortable(value: Any) -> tuple[bool, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return False, float(value), ""
    return True, 0.0, spelling(value)
