"""The options a user may type: their names, types and admissible ranges. Defaults stand in conf/, once.

A composed configuration is checked here, before anything is read or trained, so that an unknown key or a value of
the wrong kind is refused even where Hydra lets it pass (keys added with ``+``, keys inside experiment files).
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from connector.errors import UserError

MAX_GIGABYTES = 16.0  # of a simulation; as data.max_gigabytes of files
STAGES = ("lrrnn", "loadings", "outputs")


def _check(condition: bool, option: str, expected: str, value: Any, remedy: str = "") -> None:
    if not condition:
        raise UserError(f"{option} {expected}", repr(value), remedy)


def _positive(options: Any, prefix: str, names: str) -> None:
    for name in names.split():
        value = getattr(options, name)
        if value is not None:
            _check(value > 0, f"{prefix}.{name}", "greater than 0", value)


def _not_negative(options: Any, prefix: str, names: str) -> None:
    for name in names.split():
        value = getattr(options, name)
        if value is not None:
            _check(value >= 0, f"{prefix}.{name}", "of 0 or more", value)


def _at_most(options: Any, prefix: str, limits: dict[str, int]) -> None:
    """Sizes beyond which no machine has the memory, or no run an end."""
    for name, limit in limits.items():
        value = getattr(options, name)
        if value is not None:
            _check(value <= limit, f"{prefix}.{name}", f"of at most {limit}", value)


def _one_of(options: Any, prefix: str, name: str, choices: tuple) -> None:
    value = getattr(options, name)
    _check(value in choices, f"{prefix}.{name}", f"among {', '.join(map(str, choices))}", value)


@dataclass
class DataOptions:
    """What every data set has. ``fold`` k of ``n_folds``: test trials are fold k, validation trials the next one."""

    source: str = MISSING
    name: str = MISSING
    fold: int = MISSING
    n_folds: int = MISSING
    fold_seed: int = MISSING

    def check(self) -> None:
        _check(self.n_folds >= 3, "data.n_folds", "of 3 or more (training, validation, test)", self.n_folds)
        _check(self.fold_seed >= 0, "data.fold_seed", "of 0 or more", self.fold_seed)
        _check(1 <= self.fold <= self.n_folds, "data.fold", f"from 1 to data.n_folds = {self.n_folds}", self.fold)


@dataclass
class AttractorData(DataOptions):
    teachers: str | None = None  # newer than runs that are read back
    n_neurons: int = MISSING
    n_grid: int = MISSING
    extent: float = MISSING
    n_steps: int = MISSING
    process_noise: float = MISSING
    observation: str = MISSING
    observation_noise: float = MISSING
    recorded_fraction: float = MISSING
    exact_moments: bool = MISSING
    stride: int = MISSING
    bin_s: float = MISSING
    rate_scale_hz: float = MISSING

    def check(self) -> None:
        super().check()
        _positive(self, "data", "n_neurons n_grid extent stride bin_s rate_scale_hz")
        _check(self.n_steps >= 2, "data.n_steps", "of 2 or more", self.n_steps)
        _not_negative(self, "data", "process_noise observation_noise")
        _check(
            self.stride <= self.n_steps // 2,
            "data.stride",
            f"of at most data.n_steps / 2 = {self.n_steps // 2}",
            self.stride,
        )
        gigabytes = 4e-9 * self.n_grid**2 * self.n_steps * self.n_neurons
        _check(
            gigabytes <= MAX_GIGABYTES,
            "data.n_grid^2 * data.n_steps * data.n_neurons",
            f"of at most {MAX_GIGABYTES:g} GB",
            f"{gigabytes:.3g} GB",
        )
        _one_of(self, "data", "observation", ("rates", "spikes"))
        _check(0 < self.recorded_fraction <= 1, "data.recorded_fraction", "in (0, 1]", self.recorded_fraction)


@dataclass
class FileData(DataOptions):
    path: str = MISSING

    def check(self) -> None:
        super().check()
        _check(bool(self.path), "data.path", "naming a file", self.path)

    def reading(self) -> dict[str, Any]:
        """The options of the format's reader, by their names there."""
        names = [f.name for f in fields(self) if f.name not in {g.name for g in fields(FileData)}]
        return {"tau_s" if name == "tau" else name: getattr(self, name) for name in names}


@dataclass
class NpzData(FileData):
    activation: str | None = MISSING
    alpha: float | None = MISSING
    tau: float = MISSING
    bin_s: float = MISSING
    range_tolerance: float = MISSING
    max_gigabytes: float = MISSING

    def check(self) -> None:
        super().check()
        if self.alpha is not None:
            _check(0 < self.alpha <= 1, "data.alpha", "in (0, 1]", self.alpha)
        _positive(self, "data", "tau bin_s max_gigabytes")
        _not_negative(self, "data", "range_tolerance")


@dataclass
class RatData(FileData):
    tau: float = MISSING
    brain_areas: list[str] | None = MISSING
    min_rate_hz: float = MISSING
    include_photostimulated: bool = MISSING
    include_stereo_click: bool = MISSING
    click_adaptation: bool = MISSING
    adaptation_phi: float = MISSING
    adaptation_rate_hz: float = MISSING
    across_sides: bool = MISSING
    max_gigabytes: float = MISSING

    def check(self) -> None:
        super().check()
        _positive(self, "data", "tau adaptation_rate_hz max_gigabytes")
        _not_negative(self, "data", "min_rate_hz adaptation_phi")


@dataclass
class NwbData(FileData):
    bin_s: float | None = MISSING
    tau: float | None = MISSING
    activation: str | None = MISSING
    align: str | None = MISSING
    start_s: float = MISSING
    stop_s: float | None = MISSING
    until: str | None = MISSING
    inputs: list[str] | None = MISSING
    event_times: str = MISSING
    choices: str | None = MISSING
    choice_values: list[Any] | None = MISSING
    evidence: str | None = MISSING
    click_difference: str | None = MISSING
    baseline_hz: str | None = MISSING
    trial_times: str | None = MISSING
    units: Any = MISSING
    trials: Any = MISSING
    min_rate_hz: float | None = MISSING
    max_gigabytes: float = MISSING

    def check(self) -> None:
        super().check()
        _positive(self, "data", "bin_s tau max_gigabytes")
        _not_negative(self, "data", "min_rate_hz")
        _one_of(self, "data", "event_times", ("session", "align"))
        for name in ("units", "trials"):
            value = getattr(self, name)
            _check(value is None or isinstance(value, dict), f"data.{name}", "as {COLUMN:VALUE}", value)
        if self.stop_s is not None:
            _check(self.stop_s > self.start_s, "data.stop_s", f"after data.start_s = {self.start_s:g}", self.stop_s)
        if self.choice_values is not None:
            _check(len(self.choice_values) == 2, "data.choice_values", "as [LEFT,RIGHT]", self.choice_values)


@dataclass
class NlbData(FileData):
    group: str | None = MISSING
    split: str = MISSING
    heldout: bool | None = MISSING
    bin_s: float = MISSING
    rebin: int = MISSING
    tau: float = MISSING
    activation: str | None = MISSING
    max_gigabytes: float = MISSING

    def check(self) -> None:
        super().check()
        _positive(self, "data", "bin_s rebin tau max_gigabytes")
        _one_of(self, "data", "split", ("train", "eval", "all"))


DATA_TYPES = {"attractor": AttractorData, "npz": NpzData, "rat": RatData, "nwb": NwbData, "nlb": NlbData}


@dataclass
class LowRankRNNOptions:
    name: str = MISSING
    rank: int = MISSING
    bias: bool | None = MISSING
    init: str = MISSING
    init_std: float = MISSING
    max_epochs: int | None = MISSING
    learning_rate: float | None = MISSING
    batch_size: int | None = MISSING
    weight_penalty: float = MISSING
    n_units: int = MISSING
    rollout_weight: float = MISSING
    baseline: str = MISSING
    inference: str = MISSING
    b_penalty: float = MISSING

    def check(self) -> None:
        _check(1 <= self.rank <= 20, "lrrnn.rank", "from 1 to 20", self.rank)
        _one_of(self, "lrrnn", "init", ("closed_form", "random"))
        _one_of(self, "lrrnn", "baseline", ("local", "standard"))
        _one_of(self, "lrrnn", "inference", ("auto", "encoder", "smoother"))
        _positive(self, "lrrnn", "init_std max_epochs learning_rate batch_size n_units")
        _not_negative(self, "lrrnn", "weight_penalty rollout_weight b_penalty")
        _at_most(self, "lrrnn", {"n_units": 2**14})


@dataclass
class FlowOptions:
    hidden_width: int = MISSING
    hidden_layers: int = MISSING
    base: str = MISSING
    precondition: bool = MISSING
    steps: int = MISSING

    def check(self) -> None:
        _positive(self, "connectivity.flow", "hidden_width hidden_layers steps")
        _at_most(self, "connectivity.flow", {"hidden_width": 2**14, "hidden_layers": 100, "steps": 10_000})
        _one_of(self, "connectivity.flow", "base", ("auto", "normal", "student_t"))


@dataclass
class ConnectivityOptions:
    name: str = MISSING
    estimator: str = MISSING
    pool: str = MISSING
    regularizer: float | None = MISSING
    regularizer_published: float | None = MISSING
    recorded_fraction: float | None = MISSING
    max_states: int = MISSING
    sigma: float = MISSING
    outputs: str = MISSING
    projection_regularizer: float | None = MISSING
    flow: FlowOptions = MISSING
    early_stopping: bool = MISSING
    match_moments: bool = MISSING
    match_drive: bool = MISSING
    loadings_epochs: int = MISSING
    loadings_epoch_size: int | None = MISSING
    loadings_batch_size: int = MISSING
    loadings_paths: int = MISSING
    loadings_learning_rate: float = MISSING
    outputs_epochs: int = MISSING
    outputs_batch_size: int = MISSING
    outputs_learning_rate: float = MISSING
    outputs_loadings: int = MISSING
    weight_decay: float = MISSING
    ema_decay: float | None = MISSING
    cosine: bool = MISSING

    def check(self) -> None:
        _one_of(self, "connectivity", "estimator", ("trajectories", "gaussian_process", "ridge"))
        _one_of(self, "connectivity", "pool", ("recorded", "flow"))
        _one_of(self, "connectivity", "outputs", ("conditional_mean", "flow"))
        _positive(
            self,
            "connectivity",
            "regularizer regularizer_published max_states sigma projection_regularizer loadings_epochs "
            "loadings_epoch_size loadings_batch_size loadings_learning_rate outputs_epochs outputs_batch_size "
            "outputs_learning_rate outputs_loadings",
        )
        _not_negative(self, "connectivity", "weight_decay loadings_paths")
        _at_most(self, "connectivity", {"loadings_paths": 10**7, "outputs_loadings": 10**7, "max_states": 10**6})
        if self.regularizer is not None and self.regularizer_published is not None:
            raise UserError(
                "one of connectivity.regularizer and connectivity.regularizer_published",
                "both",
                "they are two spellings of one number: leave one out",
            )
        if self.recorded_fraction is not None:
            fraction = self.recorded_fraction
            _check(0 < fraction <= 1, "connectivity.recorded_fraction", "in (0, 1]", fraction)
        if self.ema_decay is not None:
            _check(0 <= self.ema_decay < 1, "connectivity.ema_decay", "in [0, 1)", self.ema_decay)


@dataclass
class TrainerOptions:
    name: str = MISSING
    accelerator: str = MISSING
    devices: Any = MISSING
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    progress: bool = MISSING
    threads: int | None = MISSING

    def check(self) -> None:
        _positive(self, "trainer", "num_nodes threads")
        _at_most(self, "trainer", {"threads": 1024})


@dataclass
class LoggerOptions:
    name: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    mode: str = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    save_dir: str = MISSING

    def check(self) -> None:
        _one_of(self, "logger", "name", ("csv", "wandb"))
        _one_of(self, "logger", "mode", ("auto", "online", "offline", "disabled"))


@dataclass
class Options:
    """The whole configuration; ``data`` is one of DATA_TYPES."""

    experiment_name: str = MISSING
    seed: int = MISSING
    stages: Any = MISSING
    force: bool = MISSING
    report: bool = MISSING
    data: Any = MISSING
    lrrnn: LowRankRNNOptions = MISSING
    connectivity: ConnectivityOptions = MISSING
    trainer: TrainerOptions = MISSING
    logger: LoggerOptions = MISSING

    def check(self) -> None:
        _check(0 <= self.seed < 2**31, "seed", "from 0 to 2147483647", self.seed)
        if self.stages != "auto":
            named = list(self.stages) if isinstance(self.stages, (list, tuple)) else [self.stages]
            for stage in named:
                _check(stage in STAGES, "stages", f"'auto' or a list among {', '.join(STAGES)}", stage)
            _check(len(named) > 0, "stages", "with at least one stage", self.stages)
            self.stages = [stage for stage in STAGES if stage in named]


def _known_keys(schema: type, prefix: str = "") -> list[str]:
    keys = []
    for name, kind in get_type_hints(schema).items():
        keys.append(prefix + name)
        if is_dataclass(kind):
            keys += _known_keys(kind, f"{prefix}{name}.")
    return keys


def _check_numbers(options: Any, prefix: str = "") -> None:
    """No option means infinity, and none a number of more than 31 bits."""
    for f in fields(options):
        value, name = getattr(options, f.name), prefix + f.name
        if is_dataclass(value):
            _check_numbers(value, f"{name}.")
        elif isinstance(value, float):
            _check(math.isfinite(value), name, "a finite number", value)
        elif isinstance(value, int):
            _check(abs(value) < 2**31, name, "from -2147483647 to 2147483647", value)


def _check_ranges(options: Any) -> None:
    for f in fields(options):
        value = getattr(options, f.name)
        if is_dataclass(value):
            _check_ranges(value)
    if hasattr(options, "check"):
        options.check()


# Groups of options that are chosen by name and are no part of the options themselves.
_GROUPS = ("experiment", "hydra/launcher", "hydra/sweeper", "hydra.run.dir", "hydra.sweep.dir")


def _suggest(key: str, schema_keys: list[str]) -> str:
    schema_keys = [*schema_keys, *_GROUPS]
    if key in schema_keys:
        return "this is an option of other data sets: choose one that has it with data=NAME, or leave the option out"
    near = difflib.get_close_matches(key, schema_keys, n=1) or [
        k
        for k in schema_keys
        if k.split(".")[-1]
        in difflib.get_close_matches(key.split(".")[-1], [s.split(".")[-1] for s in schema_keys], n=1)
    ]
    return f"the nearest is {near[0]}" if near else "see `python train.py --help` and conf/ for the options there are"


def unknown_option(key: str, keys: list[str] | None = None) -> UserError:
    """The message for an option that does not exist; ``keys`` that do default to those of every data set."""
    if keys is None:
        keys = _known_keys(Options) + [k for kind in DATA_TYPES.values() for k in _known_keys(kind, "data.")]
    return UserError("an option that exists", key, _suggest(key, keys))


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list, as in [a,b]"}


def _kind_of(key: str, schema: type) -> str:
    """What an option of ``schema`` holds, in words; empty where that has no short name."""
    hint: Any = schema
    for name in key.split("."):
        hint = get_type_hints(hint).get(name) if is_dataclass(hint) else None
    kinds = [list] if get_origin(hint) is list else [get_origin(x) or x for x in get_args(hint) or (hint,)]
    words = [_KINDS.get(kind, "") for kind in kinds if kind is not NoneType]
    if len(words) != 1 or not words[0]:
        return ""
    return words[0] + (" or null" if NoneType in kinds else "")


def _refuse(error: OmegaConfBaseException, keys: list[str], schema: type) -> UserError:
    """The message for what OmegaConf refused of options that ``schema`` types."""
    key = getattr(error, "full_key", None) or str(getattr(error, "key", "") or "")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return unknown_option(key, keys)
    kind = _kind_of(key.removeprefix("data.") if issubclass(schema, DataOptions) else key, schema)
    if kind:
        value = getattr(error, "value", None)
        got = "null" if value is None else repr(value)
        return UserError(f"{kind} as {key}", got, f"give one with {key}=VALUE, or leave the option out")
    first_line = str(error).splitlines()[0]
    return UserError(f"a valid value of {key}" if key else "a valid configuration", first_line)


def checked_data(plain: dict[str, Any]) -> DataOptions:
    """The options of a data set, typed and in their ranges; ``source`` among them names it.

    Raises:
        UserError: an unknown key, a missing or ill-typed value, a value out of range.
    """
    source = plain.get("source") if isinstance(plain, dict) else plain
    if not isinstance(source, str) or source not in DATA_TYPES:
        raise UserError(f"data.source among {', '.join(DATA_TYPES)}", repr(source), "choose a data set with data=NAME")
    data_type = DATA_TYPES[source]
    try:
        # Nested, so that errors name their key as the user types it.
        merged = OmegaConf.merge(OmegaConf.structured({"data": data_type}), {"data": plain})
        options = OmegaConf.to_object(merged)["data"]
    except OmegaConfBaseException as error:
        raise _refuse(error, _known_keys(data_type, "data."), data_type) from error
    _check_numbers(options, "data.")
    options.check()
    return options


def checked(config: DictConfig) -> Options:
    """The composed configuration as typed options.

    Raises:
        UserError: an unknown key, a missing or ill-typed value, a value out of range.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"a value for {missing[0]}", "none", f"give one with {missing[0]}=VALUE")
        data = checked_data(plain.pop("data"))
        rest = OmegaConf.merge(OmegaConf.structured(Options), plain)
        rest.data = None
        options = OmegaConf.to_object(rest)
        options.data = data
    except OmegaConfBaseException as error:
        raise _refuse(error, _known_keys(Options), Options) from error
    _check_numbers(options)
    _check_ranges(options)
    return options
