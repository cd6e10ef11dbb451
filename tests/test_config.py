"""The real configuration files compose and pass the check; what is wrong is refused in a line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector.config import DATA_TYPES, checked
from connector.errors import UserError
from connector.run_directory import register_resolvers

register_resolvers()

CONF = Path(__file__).resolve().parent.parent / "conf"
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
        (["lrrnn.learning_rate=fast"], ["lrrnn.learning_rate", "fast"]),
        (["lrrnn.rank=0"], ["lrrnn.rank", "0"]),
        (["data.fold=6"], ["data.fold", "5", "6"]),
        (["stages=[lrn]"], ["stages", "lrn"]),
        (["data=npz"], ["data.path"]),
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


def test_a_typo_inside_a_file_of_the_user_is_refused():
    config = composed()
    OmegaConf.set_struct(config, False)
    config.lrrnn.rnak = 2
    with pytest.raises(UserError, match="rnak"):
        checked(config)


def test_stages_are_put_in_order_and_may_be_a_single_name():
    assert checked(composed("stages=[outputs,loadings]")).stages == ["loadings", "outputs"]
    assert checked(composed("stages=outputs")).stages == ["outputs"]
