"""The real configuration files compose and pass the check; what is wrong is refused in a line."""

import pytest
from commands import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector.data.readers import READERS, reader
from connector.data.simulation import SimulationOptions
from connector.errors import UserError
from connector.runs.naming import register_resolvers
from connector.runs.options import DATA_TYPES, checked, unknown_option

register_resolvers()

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[*overrides, "experiment_name=test"])
    return config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose_and_pass(experiment):
    options = checked(composed(f"experiment={experiment}", *(["data.path=x.mat"] if experiment == "rat" else [])))
    assert options.data.name == experiment
    assert isinstance(options.data, DATA_TYPES[options.data.source])


@pytest.mark.parametrize("source", READERS)
def test_options_of_files_are_those_of_their_reader_with_the_same_defaults(source):
    options = checked(composed(f"data={source}", "data.path=x")).data
    assert type(options) is DATA_TYPES[source]
    assert options.reading() == vars(reader(source).options())


def test_options_of_teachers_are_those_of_the_simulation_with_the_same_defaults():
    options = checked(composed()).data
    assert options.part(SimulationOptions) == vars(SimulationOptions())


def test_every_data_set_that_help_lists_is_one_and_divides_its_trials_alike():
    files = [OmegaConf.load(path) for path in (CONF / "data").glob("*.yaml")]
    inherited = [x for x in files if "source" not in x]
    assert all(list(x.defaults) == ["attractor", "_self_"] for x in inherited)
    own = [x for x in files if "source" in x]
    assert {x.source for x in own} == set(DATA_TYPES)
    assert all(list(x.defaults) == ["_self_", "/folds@_here_"] and "fold" not in x for x in own)


def test_options_that_hold_lists_and_columns():
    reading = checked(
        composed(
            "data=nwb", "data.path=x", "data.units={quality:'>0.9',location:[V1,CA1]}", "data.trials={block:[1,2]}",
            "data.inputs=[left_clicks,target/1]", "data.choice_values=[[-1,left side],[1,2]]", "data.stop_s=0.5", "data.start_s=-0.25",
            "data.series=[ophys/Fluorescence/plane*,b]", "data.time_units={b:1/30}",
        )
    ).data.reading()  # fmt: skip
    assert reading["units"] == {"quality": ">0.9", "location": ["V1", "CA1"]}
    assert reading["trials"] == {"block": [1, 2]}
    assert reading["inputs"] == ["left_clicks", "target/1"]
    assert reading["choice_values"] == [[-1, "left side"], [1, 2]]
    assert (reading["series"], reading["time_units"]) == (["ophys/Fluorescence/plane*", "b"], {"b": "1/30"})
    assert (reading["start_s"], reading["stop_s"]) == (-0.25, 0.5)


@pytest.mark.parametrize("group", ["lrrnn", "connectivity"])
def test_published_recipe_composes(group):
    assert getattr(checked(composed(f"{group}=published")), group).name == "published"


def test_no_option_equals_the_main_experiment():
    assert checked(composed()) == checked(composed("experiment=quadstable"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+lrr=3"], ["lrr", "lrrnn"]),
        (["+connectivity.flow.hidden_widht=3"], ["hidden_widht", "hidden_width"]),
        (["+data.n_neuron=3"], ["n_neuron", "n_neurons"]),
        (["seed=abc"], ["seed", "abc"]),
        (["seed=-1"], ["seed", "-1"]),
        (
            ["lrrnn.learning_rate=fast"],
            ["a number or null as lrrnn.learning_rate; got 'fast'", "lrrnn.learning_rate=VALUE"],
        ),
        (["data.n_neurons=abc"], ["a whole number as data.n_neurons; got 'abc'", "data.n_neurons=VALUE"]),
        (["trainer.threads=x"], ["a whole number or null as trainer.threads; got 'x'"]),
        (["data.exact_moments=maybe"], ["true or false as data.exact_moments; got 'maybe'"]),
        (["connectivity.flow.hidden_width=null"], ["a whole number as connectivity.flow.hidden_width; got null"]),
        (["logger.tags=3"], ["a list, as in [a,b] as logger.tags; got 3"]),
        (["connectivity.flow=3"], ["connectivity.flow", "3"]),
        (["lrrnn.rank=0"], ["lrrnn.rank", "from 1 to 20, or auto", "0"]),
        (["lrrnn.rank=two"], ["lrrnn.rank from 1 to 20, or auto", "two"]),
        (["lrrnn.rank=2.5"], ["a whole number or a text as lrrnn.rank", "2.5"]),
        (["data.fold=6"], ["data.fold", "5", "6"]),
        (["stages=[lrn]"], ["stages", "lrn"]),
        (["data=npz"], ["data.path"]),
        (["data.fold_seed=-1"], ["data.fold_seed", "-1"]),
        (["data.stride=60"], ["data.stride", "50", "60"]),
        (["data.n_neurons=999999999"], ["data.n_neurons", "GB"]),
        (["data.extent=inf"], ["data.extent", "finite", "inf"]),
        (["data=nwb", "data.path=x", "data.start_s=nan"], ["data.start_s", "finite", "nan"]),
        (["lrrnn.batch_size=99999999999"], ["lrrnn.batch_size", "99999999999"]),
        (["connectivity.flow.hidden_width=99999"], ["connectivity.flow.hidden_width", "16384"]),
        (["trainer.threads=0"], ["trainer.threads", "0"]),
        (["stages={a:1}"], ["stages", "lrrnn"]),
        (["data=nwb", "data.path=x", "data.start_s=1", "data.stop_s=0.5"], ["data.stop_s", "0.5"]),
        (["data=nwb", "data.path=x", "data.bin_s=0"], ["data.bin_s", "0"]),
        (["data=nwb", "data.path=x", "data.units=good"], ["data.units", "good", "{COLUMN:VALUE}"]),
        (["data=nwb", "data.path=x", "data.event_times=start"], ["data.event_times", "start"]),
        (["data=nwb", "data.path=x", "data.choice_values=[1]"], ["data.choice_values", "[1]"]),
        (["data=nlb", "data.path=x", "data.split=test"], ["data.split", "test"]),
        (["data=npz", "data.path=[x,y]"], ["data.path naming a file", "['x', 'y']"]),
        (["data=arrays", "data.path=[]"], ["data.path naming a file", "[]"]),
        (["data=arrays", "data.path={a:1}"], ["data.path naming a file", "{'a': 1}"]),
        (["data=arrays", "data.path=x", "data.axes=[trials,time]"], ["trial, time, neuron", "trials"]),
        (["data=arrays", "data.path=x", "data.spike_unit_s=fast"], ["data.spike_unit_s", "1/30000", "fast"]),
        (["data=arrays", "data.path=x", "data.condition_inputs=true"], ["data.condition_inputs", "data.conditions"]),
        (["data=nlb", "data.path=x", "data.rebin=0"], ["data.rebin", "0"]),
        (["data=nlb", "data.path=x", "+data.heldot=true"], ["data.heldot", "data.heldout"]),
        (["data.source=hdf"], ["data.source", "hdf"]),
        (["connectivity.regularizer=1", "connectivity.regularizer_published=1"], ["regularizer_published", "both"]),
    ],
)
def test_mistakes_are_refused_with_the_key_and_what_was_found(overrides, words):
    with pytest.raises(UserError) as refused:
        checked(composed(*overrides))
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize("data", [None, "text", [1]])
def test_no_data_set_at_all_in_a_file_of_the_user_is_refused(data):
    config = composed()
    OmegaConf.set_struct(config, False)
    config.data = data
    with pytest.raises(UserError, match=r"data\.source among"):
        checked(config)


def test_a_typo_inside_a_file_of_the_user_is_refused():
    config = composed()
    OmegaConf.set_struct(config, False)
    config.lrrnn.rnak = 2
    with pytest.raises(UserError, match="rnak"):
        checked(config)


def test_stages_are_put_in_order_and_may_be_a_single_name():
    assert checked(composed("stages=[outputs,loadings]")).stages == ["loadings", "outputs"]
    assert checked(composed("stages=outputs")).stages == ["outputs"]


def test_an_option_of_another_data_set_is_named_as_such():
    keys = ["data.path", "data.n_neurons"]
    with pytest.raises(UserError, match="other data sets"):
        raise unknown_option("data.n_neurons", keys)
    with pytest.raises(UserError, match=r"nearest is data\.n_neurons"):
        raise unknown_option("data.n_neuron", keys)


@pytest.mark.parametrize(("key", "said"), [("model", "lrrnn and connectivity"), ("ckpt_path", "same command")])
def test_options_of_other_hydra_projects_are_answered_with_what_they_are_called_here(key, said):
    assert said in str(unknown_option(key, []))
