"""The options a user may type: their names, types and admissible ranges. Defaults stand in conf/, once.

A composed configuration is checked here, before anything is read or trained, so that an unknown key or a value of
the wrong kind is refused even where Hydra lets it pass (keys added with ``+``, keys inside experiment files).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from connector.connectivity.networks import NETWORKS
from connector.data.readers import READERS, formats_of, reader, require_format
from connector.data.simulation import SimulationOptions
from connector.declarations import LARGEST, STAGES_OF_A_RUN, check, kind_in_words, option, require
from connector.errors import UserError
from connector.files import paths_of
from connector.runs.lrrnn_options import LABEL, LowRankRNNOptions
from connector.runs.store import FORMATS

MAX_GIGABYTES = 16.0  # of a simulation; as data.max_gigabytes of files
STAGES = ("lrrnn", "loadings", "outputs")
# Options of the trainer of which a fingerprint holds what they come to on the machine.
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision")


_DATA = ("data",)


@dataclass
class DataOptions:
    """What every data set has."""

    source: str = option("attractor (a simulated network), or the format of a file", stages=_DATA)
    name: str = option("name of the data set; for simulations the name of the teacher", stages=_DATA)
    fold: int = option(
        "this part of the trials is the test set; the next part (after the last one, the first) is the validation set",
        stages=_DATA,
    )
    n_folds: int = option("parts into which the trials are divided", stages=_DATA, at_least=3)
    fold_seed: int = option("seed of the shuffle that assigns trials to parts", stages=_DATA, at_least=0)

    def check(self) -> None:
        require(1 <= self.fold <= self.n_folds, "data.fold", f"from 1 to data.n_folds = {self.n_folds}", self.fold)

    def part(self, schema: type) -> dict[str, Any]:
        """Those of the options that ``schema`` declares."""
        return {f.name: getattr(self, f.name) for f in fields(schema)}


@dataclass
class AttractorData(DataOptions, SimulationOptions):
    """A teacher network with known connectivity, simulated."""

    teachers: str | None = option(
        "Python file that registers your own teachers, which data.name can then choose", stages=_DATA, before=None
    )

    def check(self) -> None:
        DataOptions.check(self)
        SimulationOptions.check(self)
        gigabytes = 4e-9 * self.n_grid**2 * self.n_steps * self.n_neurons
        sizes, most = "data.n_grid^2 * data.n_steps * data.n_neurons", f"of at most {MAX_GIGABYTES:g} GB"
        require(gigabytes <= MAX_GIGABYTES, sizes, most, f"{gigabytes:.3g} GB")


@dataclass
class FileData(DataOptions):
    """A recording in a file; the options of its format are those that its reader declares."""

    path: Any = option("the file; for arrays and networks also a list of files", stages=_DATA)
    indicator_decay_s: float | None = option(
        "decay time of a slow indicator, as in calcium imaging, which filtered the rates; needs data.bin_s; "
        "null: none",
        unit="s", stages=_DATA, above=0, before=None,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        several = reader(self.source).several and isinstance(self.path, list) and self.path
        texts = all(isinstance(path, str) and path for path in (self.path if several else [self.path]))
        require(texts, "data.path", "naming a file", self.path)

    def require_file(self) -> None:
        """Raises UserError where a file is not there, or of another format, and for what else the reader sees; needs no torch."""
        for path in paths_of(self.path):
            require_format(path, *formats_of(self.source))
        of_format = reader(self.source)
        of_format.refuses(self.path, of_format.options(**self.reading()))

    def reading(self) -> dict[str, Any]:
        """The options of the format's reader."""
        return self.part(reader(self.source).options)


@cache
def _data_of_file(source: str) -> type[FileData]:
    own = reader(source).options

    def check(self: Any) -> None:
        FileData.check(self)
        if hasattr(own, "check"):
            own.check(self)

    about = {"__doc__": own.__doc__, "__module__": __name__, "check": check}
    return make_dataclass(own.__name__.replace("Options", "Data"), [], bases=(FileData, own), namespace=about)


class _DataTypes(Mapping[str, type]):
    """Source -> dataclass of its options, made when it is asked for: the readers of all formats take a while to import."""

    def __getitem__(self, source: str) -> type:
        return _data_of_file(source) if source in READERS else {"attractor": AttractorData}[source]

    def __iter__(self) -> Iterator[str]:
        return iter(("attractor", *READERS))

    def __len__(self) -> int:
        return 1 + len(READERS)


DATA_TYPES = _DataTypes()


_LRRNN, _LOADINGS, _OUTPUTS = ("lrrnn",), ("loadings",), ("outputs",)
_FLOWS = _LOADINGS + _OUTPUTS
_TRAINED = _LRRNN + _FLOWS


# Groups that a run cannot be without, GROUP=[] takes one away; and a file of each.
_USUAL = {"lrrnn": "default", "connectivity": "default", "trainer": "cpu", "logger": "csv"}


@dataclass
class FlowOptions:
    """The flows of the loadings and of n."""

    network: str = option("network that learns the velocity", stages=_FLOWS, choices=tuple(NETWORKS), before="mlp")
    hidden_width: int = option("units in each hidden layer", stages=_FLOWS, at_least=1, at_most=2**14)
    hidden_layers: int = option("number of hidden layers", stages=_FLOWS, at_least=1, at_most=100)
    base: str = option(
        "base density of the loadings' flow; auto: the one with the higher held-out likelihood",
        stages=_LOADINGS, choices=("auto", "normal", "student_t"),
    )  # fmt: skip
    precondition: bool = option("true: the velocity starts from that of normal data", stages=_FLOWS)
    steps: int = option("midpoint steps of the sampler", stages=_FLOWS, at_least=1, at_most=10_000)


@dataclass
class ConnectivityOptions:
    """The maximum-entropy distribution of connectivity."""

    name: str = option(LABEL, stages=())
    estimator: str = option(
        "how nu = E[n | m, b, d] is estimated: trajectories (likelihood of whole trajectories, calibrated "
        "intervals), gaussian_process (fast closed form on differences, tuned by evidence) or ridge (as "
        "published). If `regularizer` is given, gaussian_process replaces trajectories; if the dynamics were "
        "sampled (spikes), their draws are used",
        stages=_OUTPUTS, choices=("trajectories", "gaussian_process", "ridge"),
    )  # fmt: skip
    pool: str = option(
        "loadings on which the estimator works: the recorded neurons', or samples of the flow",
        stages=_OUTPUTS, choices=("recorded", "flow"),
    )  # fmt: skip
    regularizer: float | None = option(
        "lambda of the ridge, or noise-to-signal of the Gaussian process; null: found from the data",
        stages=_OUTPUTS,
        above=0,
    )
    regularizer_published: float | None = option(
        "the same in the published code's units: lambda * alpha^2 * T / K", stages=_OUTPUTS, above=0
    )
    recorded_fraction: float | None = option(
        "recorded neurons as a share of the whole network; null: as simulated, else taken as very small",
        stages=_OUTPUTS, above=0, at_most=1,
    )  # fmt: skip
    max_states: int = option(
        "largest number of latent states used to estimate nu", stages=_OUTPUTS, at_least=1, at_most=10**6
    )
    sigma: float = option(
        "standard deviation of n about nu, in the flow of n and in samples that state it: a choice",
        stages=_OUTPUTS,
        above=0,
    )
    outputs: str = option(
        "how n is drawn: from N(nu, sigma^2) (conditional_mean), or through the learned flow (flow)",
        stages=_OUTPUTS, choices=("conditional_mean", "flow"),
    )  # fmt: skip
    projection_regularizer: float | None = option(
        "lambda of the projection of sampled networks; null: 1e-5, for spikes found on validation trials",
        stages=_OUTPUTS, above=0,
    )  # fmt: skip
    flow: FlowOptions = MISSING
    early_stopping: bool = option(
        "true: the loadings' flow keeps the weights with the highest likelihood of held-out neurons", stages=_LOADINGS
    )
    match_moments: bool = option(
        "true: the loadings' flow (normal base) gets the neurons' mean and covariance", stages=_LOADINGS
    )
    match_drive: bool = option(
        "true: the flow (normal base) is tilted and n shifted slightly, so that sampled networks have the "
        "recorded drive",
        stages=_OUTPUTS,
    )
    loadings_epochs: int = option(
        "largest number of epochs of the loadings' flow", stages=_LOADINGS, unit="epochs", at_least=1
    )
    loadings_epoch_size: int | None = option(
        "largest number of neurons in an epoch, chosen again each time; null: all",
        stages=_LOADINGS,
        unit="neurons",
        at_least=1,
    )
    loadings_batch_size: int = option("batch size of the loadings' flow", stages=_LOADINGS, unit="neurons", at_least=1)
    loadings_paths: int = option(
        "least number of paths in a step: a smaller batch is repeated with fresh noise and times",
        stages=_LOADINGS, at_least=0, at_most=10**7,
    )  # fmt: skip
    loadings_learning_rate: float = option("learning rate of the loadings' flow", stages=_LOADINGS, above=0)
    outputs_epochs: int = option("epochs of the flow of n", stages=_OUTPUTS, unit="epochs", at_least=1)
    outputs_batch_size: int = option("batch size of the flow of n", stages=_OUTPUTS, unit="neurons", at_least=1)
    outputs_learning_rate: float = option("learning rate of the flow of n", stages=_OUTPUTS, above=0)
    outputs_loadings: int = option(
        "number of loadings drawn from their flow to train the flow of n", stages=_OUTPUTS, at_least=1, at_most=10**7
    )
    weight_decay: float = option("weight decay of both flows", stages=_FLOWS, at_least=0)
    ema_decay: float | None = option(
        "decay of the exponential moving average of the flows' weights; null: none", stages=_FLOWS, at_least=0, below=1
    )
    cosine: bool = option("true: cosine decay of the flows' learning rates", stages=_FLOWS)

    def check(self) -> None:
        if self.regularizer is not None and self.regularizer_published is not None:
            raise UserError(
                "one of connectivity.regularizer and connectivity.regularizer_published",
                "both",
                "they are two spellings of one number: leave one out",
            )


@dataclass
class TrainerOptions:
    """Where and how stages are trained. Whatever else Lightning's Trainer takes stands in ``extra``."""

    name: str = option(LABEL, stages=())
    accelerator: str = option("cpu, gpu, auto, or another accelerator of Lightning", stages=_TRAINED)
    devices: Any = option("number of devices, a list of devices such as [0,2], or auto", stages=_TRAINED)
    num_nodes: int = option("number of computers", stages=_TRAINED, at_least=1)
    strategy: str = option("strategy of Lightning, such as ddp", stages=_TRAINED)
    precision: str = option("precision of Lightning, such as 32-true, 16-mixed or 64-true", stages=_TRAINED)
    progress: bool = option("progress bars on a terminal", stages=())
    threads: int | None = option(
        "CPU threads of each process; null: as many as cores, one where steps are small. Changes numbers by "
        "rounding only, as another machine does",
        stages=(), at_least=1, at_most=1024,
    )  # fmt: skip
    extra: dict[str, Any] = option(
        "any other argument of Lightning's Trainer: trainer.extra.NAME=VALUE, or +trainer.NAME=VALUE",
        stages=_TRAINED, before={},
    )  # fmt: skip


@dataclass
class LoggerOptions:
    """Where learning curves and results go besides the run directory."""

    name: str = option("csv (only files in the run directory) or wandb", stages=(), choices=("csv", "wandb"))
    project: str = option("W&B project", stages=())
    entity: str | None = option("W&B user or team; null: the account's default", stages=())
    mode: str = option(
        "mode of W&B; auto: online if an account is set up, else offline",
        stages=(), choices=("auto", "online", "offline", "disabled"),
    )  # fmt: skip
    group: str | None = option("W&B group; null: the name of the sweep's directory, or of the experiment", stages=())
    tags: list[str] = option("W&B tags", stages=())
    save_dir: str = option("one W&B directory for all runs, so that local viewers show them together", stages=())


@dataclass
class OtherLogger:
    """A logger of the user's choice, ``logger._target_`` and what it is called with."""

    arguments: dict[str, Any] = field(default_factory=dict)
    name: str = "other"


@dataclass
class ReportOptions:
    """What a run draws. ``report=false`` is short for ``report.draw=false``."""

    draw: bool = option(
        "false (short: report=false): measure only; the same command with true draws figures and writes report.html later",
        stages=("results",),
    )
    formats: list[str] = option(
        f"formats of the figures' files, a list among {', '.join(FORMATS)}; png is always written",
        stages=("results",),
        before=["png"],
    )

    def check(self) -> None:
        for name in self.formats:
            require(name in FORMATS, "report.formats", f"a list among {', '.join(FORMATS)}", name)
        self.formats = [name for name in FORMATS if name in ("png", *self.formats)]


@dataclass
class Options:
    """The whole configuration; ``data`` is one of DATA_TYPES."""

    experiment_name: str = option(
        "name of the experiment or of the data set; names the run directory, the W&B run and the report", stages=()
    )
    seed: int = option(
        "seed of all random numbers, including the simulation", stages=STAGES_OF_A_RUN[1:], at_least=0, at_most=LARGEST
    )
    stages: Any = option(
        "stages to run, a list among lrrnn, loadings, outputs; auto: all, but without lrrnn if the file has "
        "latents and MBD",
        stages=("results",),
    )
    force: bool = option("true: train every stage again, even if it is finished", stages=())
    report: ReportOptions = MISSING
    verbose: bool = option(
        "true: print all measures at the end of a run, and of each job of a sweep what train.log has",
        stages=(),
        before=False,
    )
    data: Any = MISSING
    lrrnn: LowRankRNNOptions = MISSING
    connectivity: ConnectivityOptions = MISSING
    trainer: TrainerOptions = MISSING
    logger: Any = MISSING
    callbacks: dict[str, Any] = option(
        "your own Lightning callbacks, used in the training of every stage: "
        "callbacks.NAME._target_=MODULE.CLASS",
        stages=_TRAINED, before={},
    )  # fmt: skip

    def check(self) -> None:
        if self.stages != "auto":
            named = list(self.stages) if isinstance(self.stages, (list, tuple)) else [self.stages]
            for stage in named:
                require(stage in STAGES, "stages", f"'auto' or a list among {', '.join(STAGES)}", stage)
            require(len(named) > 0, "stages", "with at least one stage", self.stages)
            self.stages = [stage for stage in STAGES if stage in named]


def _kinds(schema: type, prefix: str = "") -> dict[str, Any]:
    """name as typed -> type of each option of a schema; of its groups, too."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        found[prefix + name] = kind
        if is_dataclass(kind):
            found |= _kinds(kind, f"{prefix}{name}.")
    return found


def known_kinds(*data_types: type) -> dict[str, Any]:
    """name as typed -> type of every option, with those of the data sets given."""
    found = _kinds(Options) | _kinds(LoggerOptions, "logger.")
    for data_type in data_types:
        found |= _kinds(data_type, "data.")
    return found


# Groups of options that are chosen by name and are no part of the options themselves.
_GROUPS = ("experiment", "debug", "hydra/launcher", "hydra/sweeper", "hydra.run.dir", "hydra.sweep.dir")


# What users of other Hydra projects type, and what it is called here.
_ELSEWHERE = {
    "model": "the trained parts are the groups lrrnn and connectivity",
    "ckpt_path": "to resume, run the same command again",
    "hparams_search": "a search is hydra/sweeper=study",
    "tags": "tags of W&B are logger.tags=[a,b]",
}


def _suggest(key: str, known: Iterable[str]) -> str:
    known = [*known, *_GROUPS]
    group = key.partition(".")[0]
    if group in _ELSEWHERE:
        return _ELSEWHERE[group]
    if group in ("experiment", "debug"):
        return f"the files of {group}/ begin with the line `# @package _global_`"
    if key in known:
        return "this is an option of other data sets: choose one that has it with data=NAME, or leave the option out"
    near = difflib.get_close_matches(key, known, n=1) or [
        k
        for k in known
        if k.split(".")[-1] in difflib.get_close_matches(key.split(".")[-1], [s.split(".")[-1] for s in known], n=1)
    ]
    return f"the nearest is {near[0]}" if near else "see `python train.py --help` and conf/ for the options there are"


def unknown_option(key: str, known: Iterable[str] | None = None) -> UserError:
    """The message for an option that does not exist; those ``known`` default to those of every data set."""
    known = known_kinds(*DATA_TYPES.values()) if known is None else known
    return UserError("an option that exists", key, _suggest(key, known))


def _refuse(error: OmegaConfBaseException, known: Mapping[str, Any]) -> UserError:
    """The message for what OmegaConf refused, of options that have the types ``known``."""
    key = getattr(error, "full_key", None) or str(getattr(error, "key", "") or "")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return unknown_option(key, known)
    kind = kind_in_words(known[key]) if key in known else ""
    if kind:
        value = getattr(error, "value", None)
        got = "null" if value is None else repr(value)
        return UserError(f"{kind} as {key}", got, f"give one with {key}=VALUE, or leave the option out")
    first_line = str(error).splitlines()[0]
    return UserError(f"a valid value of {key}" if key else "a valid configuration", first_line)


def _typed(schema: type, plain: Any, group: str) -> Any:
    """The options of one group as its dataclass, in their ranges."""
    known = _kinds(schema, f"{group}.")
    try:
        # Nested, so that errors name their key as the user types it.
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured({group: schema}), {group: plain}))[group]
    except OmegaConfBaseException as error:
        raise _refuse(error, known) from error
    check(options, f"{group}.")
    return options


def checked_data(plain: dict[str, Any] | None) -> DataOptions:
    """The options of a data set, typed and in their ranges; ``source`` among them names it.

    Raises:
        UserError: an unknown key, a missing or ill-typed value, a value out of range.
    """
    source = plain.get("source") if isinstance(plain, dict) else plain
    if not isinstance(source, str) or source not in DATA_TYPES:
        raise UserError(f"data.source among {', '.join(DATA_TYPES)}", repr(source), "choose a data set with data=NAME")
    return _typed(DATA_TYPES[source], plain, "data")


def _checked_logger(plain: Any) -> LoggerOptions | OtherLogger:
    """W&B's options, or those of the logger that ``_target_`` names: beside it only what the group `csv` does not have."""
    if not isinstance(plain, dict) or "_target_" not in plain:
        return _typed(LoggerOptions, plain, "logger")
    ours = {f.name for f in fields(LoggerOptions)}
    return OtherLogger(plain if not ours <= set(plain) else {k: v for k, v in plain.items() if k not in ours})


def _with_extra(trainer: Any) -> Any:
    """What the group `trainer` does not declare is for Lightning's Trainer, which knows its arguments."""
    if not isinstance(trainer, dict) or not isinstance(trainer.get("extra") or {}, dict):
        return trainer
    ours = {f.name for f in fields(TrainerOptions)}
    rest = {key: value for key, value in trainer.items() if key not in ours}
    return {**{k: v for k, v in trainer.items() if k in ours}, "extra": {**(trainer.get("extra") or {}), **rest}}


def literal(plain: Any) -> Any:
    """Resolved options whose texts OmegaConf takes as they are, whatever ``${`` they hold: the name of a file may."""
    if isinstance(plain, dict):
        return {key: literal(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [literal(value) for value in plain]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", plain) if isinstance(plain, str) else plain


def checked(config: DictConfig) -> Options:
    """The composed configuration as typed options.

    Raises:
        UserError: an unknown key, a missing or ill-typed value, a value out of range.
    """
    try:
        plain = literal(OmegaConf.to_container(config, resolve=True))
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"a value for {missing[0]}", "none", f"give one with {missing[0]}=VALUE")
        for group, usual in _USUAL.items():
            if plain.get(group) is None:
                raise UserError(f"a file of the group {group}, such as {group}={usual}", "none")
        plain["trainer"] = _with_extra(plain["trainer"])
        if not isinstance(plain.get("report"), dict):
            plain["report"] = {"draw": plain.get("report")}
        plain["callbacks"] = plain.get("callbacks") or {}
        data, logger = checked_data(plain.pop("data", None)), _checked_logger(plain.pop("logger"))
        rest = OmegaConf.merge(OmegaConf.structured(Options), plain)
        rest.data = rest.logger = None
        options = OmegaConf.to_object(rest)
    except OmegaConfBaseException as error:
        raise _refuse(error, known_kinds()) from error
    check(options)
    options.data, options.logger = data, logger
    return options
