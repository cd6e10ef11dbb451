"""conf/sweep/*.yaml: every job that W&B would start has options that exist, and its measure is one that runs have."""

import itertools
import shlex

import pytest
import yaml
from commands import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from connector.errors import UserError
from connector.report.glossary import METRICS
from connector.runs.naming import register_resolvers, run_directory
from connector.runs.options import checked

FILES = sorted((ROOT / "conf" / "sweep").glob("*.yaml"))


def command(sweep, chosen):
    """The command line of one job, as the agent of a W&B sweep fills in its parts."""
    arguments = [f"{key}={value}" for key, value in chosen.items()]
    filled = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": [sweep["program"]]}
    filled["${args_no_hyphens}"] = arguments
    return [word for part in sweep["command"] for word in filled.get(part, [part])]


def values_of(sweep):
    return {key: given.get("values", [given.get("value")]) for key, given in sweep["parameters"].items()}


def jobs(sweep):
    """All combinations of a grid."""
    values = values_of(sweep)
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


def some_jobs(sweep):
    """Jobs that together have every value of every parameter."""
    values = values_of(sweep)
    n = max(map(len, values.values()))
    return [{key: given[min(i, len(given) - 1)] for key, given in values.items()} for i in range(n)]


def options_of(overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return checked(compose("train", overrides=[*overrides, "experiment_name=test"]))


def test_there_are_sweeps():
    assert {"regularizer_width", "seeds", "rank_folds"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_jobs_of_a_sweep_compose(file):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["method"] == "grid"
    assert (ROOT / sweep["program"]).is_file()
    for chosen in some_jobs(sweep):
        words = shlex.split(shlex.join(command(sweep, chosen)))
        assert words[:3] == ["/usr/bin/env", "python", "train.py"]
        assert not any("$" in word for word in words)
        options = options_of(words[3:])
        assert options.logger.name == "wandb"
        for key, value in chosen.items():
            if key in ("experiment", "data"):  # groups
                assert options.data.name == value
                continue
            found = options
            for part in key.split("."):
                found = getattr(found, part)
            assert found == value, key


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_jobs_of_a_sweep_have_directories_of_their_own(file):
    sweep = yaml.safe_load(file.read_text())
    found = []
    for chosen in jobs(sweep):
        overrides = command(sweep, chosen)[3:]
        choices = {"experiment": chosen.get("experiment"), "data": chosen.get("data", "quadstable")}
        found.append(run_directory(choices, overrides))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_measure_of_a_sweep_is_known_and_goes_the_better_way(file):
    metric = yaml.safe_load(file.read_text())["metric"]
    assert METRICS[metric["name"]].direction == {"minimize": "lower", "maximize": "higher"}[metric["goal"]]


def test_a_misspelt_parameter_would_be_found():
    with pytest.raises((UserError, ConfigCompositionException)):
        options_of(["logger=wandb", "connectivity.flow.hiden_width=32"])
