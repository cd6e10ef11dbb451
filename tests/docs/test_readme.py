"""What the README says of options, files and defaults is what the configuration and the code have."""

import ast
import inspect
import re
import shlex

import pytest
import torch
from commands import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector import ConnectivityDistribution, Network
from connector.data.folds import Fold
from connector.files import read_npz
from connector.lrrnn.field_posterior import FieldPosterior
from connector.lrrnn.handover import FittedDynamics
from connector.runs.naming import register_resolvers
from connector.runs.store import RunStore, write_network
from connector.sample import build_parser
from connector.types import Latents, Loadings

register_resolvers()

README, FILES = (ROOT / "README.md").read_text(), (ROOT / "docs" / "files.md").read_text()
GROUPS = ("experiment", "data", "lrrnn", "connectivity", "trainer", "logger", "hydra/launcher", "hydra/sweeper")
# Their defaults are functions of the options or of the time; the table says which.
IN_WORDS = {"hydra.run.dir", "hydra.sweep.dir"}


def table(head, text=README):
    """Rows of the table whose head begins so: lists of cells."""
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


OPTIONS = {row[0].strip("`"): row[1:] for row in table("option | default | meaning | unit")}


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=[*overrides, "experiment_name=test"], return_hydra_config=True)


@pytest.fixture(scope="module")
def configurations():
    """The default configuration and that of recordings in files, whose options it lacks."""
    return [composed(), composed("data=npz", "data.path=x.npz"), composed("data=rat", "data.path=x.mat")]


def test_the_readme_is_of_one_screen_and_has_ten_options_with_a_meaning():
    assert len(README.splitlines()) <= 150
    assert len(OPTIONS) == 10
    for name, cells in OPTIONS.items():
        assert len(cells) == 3, name
        assert len(cells[1]) > 5, name


@pytest.mark.parametrize("name", OPTIONS)
def test_options_exist_and_have_the_defaults_of_the_table(name, configurations):
    default = OPTIONS[name][0]
    if name in GROUPS:
        chosen = configurations[0].hydra.runtime.choices[name]
        assert default == ("null" if chosen is None else str(chosen))
        return
    config = next(c for c in configurations if _has(c, name))
    if name in IN_WORDS:
        return
    if name == "data.path":
        raw = OmegaConf.load(ROOT / "conf" / "data" / "npz.yaml")
        assert OmegaConf.is_missing(raw, "path")
        assert default == "required"
        return
    assert OmegaConf.create(f"x: {default}").x == OmegaConf.select(config, name)


def _has(config, name):
    parent, _, key = name.rpartition(".")
    return key in (OmegaConf.select(config, parent) if parent else config)


@pytest.mark.parametrize("data", ["npz", "rat", "attractor"])
def test_options_said_of_one_data_set_are_of_that_one(data, configurations):
    config = configurations[{"attractor": 0, "npz": 1, "rat": 2}[data]]
    for name, (_, meaning, _) in OPTIONS.items():
        if f"`{data}`" in meaning and name.startswith("data."):
            assert _has(config, name)
        if "simulated network" in meaning and data == "attractor" and name.startswith("data."):
            assert _has(config, name)


def documented(file):
    return {key for row in table(f"`{file}` | shape | content", FILES) for key in re.findall(r"`(\w+)`", row[0])}


def test_keys_of_the_files_are_those_written(tmp_path):
    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float64)

    latents = Latents(zeros(4, 3, 2), torch.full((4,), 3), 0.1, zeros(4, 3, 1), zeros(4, 3, 2))
    loadings = Loadings(zeros(5, 2), zeros(5, 1), zeros(5))
    fold = Fold(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3]))
    readings = zeros(4, 3, 2), zeros(4, 3, 2, 2)
    store, p = RunStore(tmp_path), zeros(3, 2)
    field = FieldPosterior(
        "tanh", loadings, zeros(5, 3), p, zeros(6, 6), zeros(6), p[None], zeros(2), zeros(2, 2), zeros(1)
    )
    store.write_stage_inputs(
        FittedDynamics(latents, loadings, fold, "tanh", zeros(5, 4, 4), readings, zeros(5, 2), field, True)
    )
    assert set(read_npz(store.latents_file)) == documented("latents.npz")
    write_network(tmp_path / "network.npz", Network(zeros(5, 2), zeros(5, 2)), 0.0)
    assert set(read_npz(tmp_path / "network.npz")) == documented("network.npz")


def test_the_two_ways_to_sample_have_the_same_defaults_and_the_readme_shows_the_same_network():
    python = {n: p.default for n, p in inspect.signature(ConnectivityDistribution.sample).parameters.items()}
    bare = build_parser().parse_args(["run", "--out", "x"])
    assert (bare.neurons, bare.sigma, bare.project, bare.seed) == (
        python["n_neurons"], python["sigma"], python["project"], python["seed"],
    )  # fmt: skip
    call = ast.parse(re.search(r"run\.connectivity\.sample\(.*\)", README)[0]).body[0].value
    shown = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    line = re.search(r"python -m connector\.sample (.*)", README)[1]
    typed = build_parser().parse_args(shlex.split(line))
    assert shown == {
        "n_neurons": typed.neurons, "sigma": typed.sigma, "project": typed.project, "seed": typed.seed,
    }  # fmt: skip


def test_the_shares_of_the_readme_are_those_of_the_tables_of_calibration():
    page = (ROOT / "docs" / "calibration.md").read_text()
    nu = re.search(r"^\| all three \|(?:[^|]*\|){3} (\S+) \|", page, re.MULTILINE)[1]
    field = re.search(r"^\| all \|(?:[^|]*\|){2} \S+/\S+/(\S+) \|", page, re.MULTILINE)[1]
    for share, anchor in ((nu, ""), (field, "#from-spikes")):
        assert f"[{100 * float(share):.0f} % of cases](docs/calibration.md{anchor})" in README
