"""A stage's fingerprint holds the options that are declared to change it, by value; runs of version 0.1 are recognised."""

import copy
import itertools
import shutil
from dataclasses import is_dataclass

import pytest
from commands import CONF, ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector.declarations import STAGES_OF_A_RUN, changing, declared
from connector.launch.job import run
from connector.launch.planning import build_data, plan
from connector.runs.fingerprints import WATCHING, earlier_marks, recognise, stage_marks
from connector.runs.naming import register_resolvers, run_directory
from connector.runs.options import DATA_TYPES, checked
from connector.runs.store import RunStore

register_resolvers()

SOURCES = {"attractor": "quadstable", **{name: name for name in DATA_TYPES if name != "attractor"}}
OLD_RUN = ROOT / "tests" / "fixtures" / "run_v1"


def options_of(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("train", [*overrides, "experiment_name=test"]))


def marks_of(options, given_latents=False):
    """With hardware that is there as it is asked for, and files whose content is their name."""
    names = ("accelerator", "devices", "num_nodes", "precision", "strategy")
    machine = {name: getattr(options.trainer, name) for name in names}
    source = [getattr(options.data, name, None) for name in ("path", "teachers")]
    source += [options.seed] if options.data.source == "attractor" else []
    return stage_marks(options, source, machine, given_latents)


def other(value, option):
    """A value that differs."""
    if option.choices:
        return next(choice for choice in option.choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return {"a": 1} if isinstance(value, dict) else ["a"] if isinstance(value, list) else f"{value}x"


def holder_of(options, name):
    """The dataclass that holds an option, and the option's name in it."""
    *path, last = name.split(".")
    for part in path:
        options = getattr(options, part)
    return options, last


def every_option():
    """(source of the data, name, declaration) of each option of each group."""
    for source, group in SOURCES.items():
        base = options_of(f"data={group}", *(["data.path=x"] if source != "attractor" else []))
        groups = {"data": base.data} | ({} if source != "attractor" else {
            name: getattr(base, name) for name in ("lrrnn", "connectivity", "trainer", "logger")
        })  # fmt: skip
        entries = [entry for name, held in groups.items() for entry in declared(type(held), f"{name}.")]
        if source == "attractor":
            entries += [entry for entry in declared(type(base)) if "." not in entry[0]]
        for name, option, _ in entries:
            yield source, name, option, base


def test_each_option_changes_the_fingerprints_of_the_stages_that_it_is_declared_to_change():
    seen = 0
    for source, name, option, base in every_option():
        changed = copy.deepcopy(base)
        holder, last = holder_of(changed, name)
        before = getattr(holder, last)
        assert not is_dataclass(before)
        setattr(holder, last, other(before, option))
        stages = [stage for stage in STAGES_OF_A_RUN if changing(base, stage) != changing(changed, stage)]
        assert set(stages) == set(option.stages), name
        marks, after = marks_of(base), marks_of(changed)
        first = min((STAGES_OF_A_RUN.index(stage) for stage in option.stages), default=99)
        first = 0 if name == "seed" else first  # of a simulation, too
        expected = [stage for stage in marks if STAGES_OF_A_RUN.index(stage) >= first]
        assert [stage for stage in marks if marks[stage] != after[stage]] == expected, (source, name)
        seen += 1
    assert seen > 120


def test_what_is_declared_to_change_nothing_changes_no_number(tmp_path):
    small = ["data.n_neurons=20", "data.n_grid=4", "data.n_steps=20", "stages=[lrrnn]", "trainer.threads=1"]
    labels = ["lrrnn.name=other", "trainer.name=other", "logger.tags=[a]", "trainer.progress=false", "force=true"]
    for directory, overrides in (("one", []), ("two", labels)):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [*small, *overrides, f"experiment_name={directory}"])
        run(checked(config), config, tmp_path / directory)
    one, two = RunStore(tmp_path / "one").stages(), RunStore(tmp_path / "two").stages()
    assert one["lrrnn"]["fingerprint"] == two["lrrnn"]["fingerprint"]
    assert one["lrrnn"]["files"] == two["lrrnn"]["files"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["connectivity.sigma=1"], ["connectivity.sigma=1.0"]),
        (["connectivity.regularizer=1e-4"], ["connectivity.regularizer=0.0001"]),
        (["data=nwb", "data.path=x", "data.units={good:1}"], ["data=nwb", "data.path=x", "data.units={good:1.0}"]),
        (["lrrnn.bias=true"], ["lrrnn.bias=True"]),
        (["+trainer.limit_train_batches=1"], ["+trainer.limit_train_batches=1.0"]),
    ],
)
def test_two_spellings_of_a_value_are_one_setting(one, other):
    first, second = options_of(*one), options_of(*other)
    choices = {"experiment": None, "data": first.data.name}
    assert run_directory(choices, one) == run_directory(choices, other)
    if "limit" not in one[0]:  # of which Lightning takes 1.0 for all batches
        assert marks_of(first) == marks_of(second)


def test_arguments_of_lightning_count_where_they_change_numbers():
    base = options_of()
    assert marks_of(base) != marks_of(options_of("+trainer.limit_train_batches=2"))
    assert marks_of(base) != marks_of(options_of("+callbacks.mine._target_=x"))
    for name in WATCHING:
        assert marks_of(base) == marks_of(options_of(f"+trainer.{name}=true"))


def test_number_of_processes_and_precision_count():
    found = [stage_marks(options_of(), 1, machine, False)["lrrnn"] for machine in ({"processes": 1}, {"processes": 2})]
    assert found[0] != found[1]


def test_given_latents_depend_on_the_rank_by_which_they_are_read_and_on_nothing_of_the_training():
    npz = ["data=npz", "data.path=x"]
    given = [marks_of(options_of(*npz, *more), True) for more in ([], ["lrrnn.rank=3"], ["lrrnn.n_units=3"])]
    assert given[0]["lrrnn"] == given[2]["lrrnn"] != given[1]["lrrnn"]


def test_a_run_of_version_0_1_is_recognised_and_not_trained_anew(tmp_path):
    store = RunStore(shutil.copytree(OLD_RUN, tmp_path / "run"))
    options = checked(OmegaConf.load(OLD_RUN / "config.yaml"))
    data = build_data(options)
    data.setup()
    schedule = plan(options, data)
    recorded = {stage: record["fingerprint"] for stage, record in store.stages().items()}
    assert all(recorded[stage] == schedule.earlier[stage] for stage in ("lrrnn", "loadings", "outputs"))
    recognise(store, options, schedule.marks, schedule.earlier)
    renewed = {stage: record["fingerprint"] for stage, record in store.stages().items()}
    assert all(renewed[stage] == schedule.marks[stage] for stage in ("lrrnn", "loadings", "outputs"))


@pytest.mark.parametrize("change", [{"precision": "64-true"}, {"devices": 2}, {"extra": {"limit_train_batches": 2}}])
def test_a_run_of_version_0_1_on_other_hardware_is_another(tmp_path, change):
    store = RunStore(shutil.copytree(OLD_RUN, tmp_path / "run"))
    options = checked(OmegaConf.load(OLD_RUN / "config.yaml"))
    for name, value in change.items():
        setattr(options.trainer, name, value)
    before = copy.deepcopy(store.stages())
    marks = dict.fromkeys(("lrrnn", "loadings", "outputs"), "new")
    recognise(store, options, marks, earlier_marks(options, options.seed, False))
    assert store.stages() == before


def test_no_two_stages_share_a_fingerprint():
    marks = marks_of(options_of())
    assert all(marks[a] != marks[b] for a, b in itertools.combinations(marks, 2))
