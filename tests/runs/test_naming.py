"""The run directory's name is a function of the options that change the result."""

import json
import re

import pytest
from commands import ROOT

from connector.runs.naming import run_directory, run_name, stands_for

DEFAULT = {"experiment": None, "data": "quadstable"}


def test_name_is_the_experiment_or_else_the_data_set():
    assert run_name({"experiment": "rat", "data": "rat"}) == "rat"
    assert run_name({"experiment": None, "data": "npz"}) == "npz"


def test_no_option_and_naming_the_default_experiment_share_a_directory():
    assert run_directory(DEFAULT, []) == "quadstable/default"
    assert run_directory({"experiment": "quadstable", "data": "quadstable"}, ["experiment=quadstable"]) == (
        "quadstable/default"
    )


@pytest.mark.parametrize(
    "option",
    ["stages=[outputs]", "force=true", "logger=wandb", "logger.mode=offline", "trainer=ddp", "trainer.devices=2",
     "hydra.sweep.dir=x", "hydra/launcher=joblib", "+trainer.foo=1"],
)  # fmt: skip
def test_options_without_effect_on_the_result_do_not_show(option):
    assert run_directory(DEFAULT, [option, "seed=2"]) == "quadstable/seed=2"


def test_order_of_typing_does_not_matter():
    assert run_directory(DEFAULT, ["seed=2", "lrrnn.rank=3"]) == run_directory(DEFAULT, ["lrrnn.rank=3", "seed=2"])


def test_paths_are_shortened_to_their_name_and_told_apart_by_a_hash():
    choices = {"experiment": None, "data": "npz"}
    one = run_directory(choices, ["data=npz", "data.path=/here/a.npz"])
    other = run_directory(choices, ["data=npz", "data.path=/there/a.npz"])
    assert re.fullmatch(r"npz/data\.path=a\.npz-[0-9a-f]{6}", one)
    assert one != other


def test_long_and_unsafe_options_give_short_safe_names_that_differ():
    long = [f"data.n_neurons={n}" for n in range(100, 130)]
    name = run_directory(DEFAULT, long)
    assert len(name) < 110
    assert name != run_directory(DEFAULT, [*long, "seed=9"])
    assert re.fullmatch(r"[A-Za-z0-9=._,+/-]+", run_directory(DEFAULT, ["stages=[a]", "data.brain_areas=[m,d]"]))


def colliding():
    """Two jobs whose names share 80 characters and 6 hex digits."""
    long = [f"data.n_neurons={n}" for n in range(100, 110)]
    seen = {}
    for seed in range(10**6):
        options = [*long, f"seed={seed}"]
        name = run_directory(DEFAULT, options)
        if name in seen:
            return seen[name], options
        seen[name] = options
    raise AssertionError


def test_two_jobs_of_one_short_name_have_directories_of_their_own(tmp_path):
    one, other = colliding()
    assert run_directory(DEFAULT, one) == run_directory(DEFAULT, other)
    first = run_directory(DEFAULT, one, root=tmp_path)
    assert run_directory(DEFAULT, one) == first
    (tmp_path / first).mkdir(parents=True)
    (tmp_path / first / "manifest.json").write_text(json.dumps({"name": stands_for(DEFAULT, one)}))
    second = run_directory(DEFAULT, other, root=tmp_path)
    assert second != first
    assert re.search(r"-[0-9a-f]{16}$", second)
    assert run_directory(DEFAULT, [*one, "trainer.threads=1"], root=tmp_path) == first  # the same run
    (tmp_path / first / "manifest.json").write_text("{}")  # of an earlier version
    assert run_directory(DEFAULT, other, root=tmp_path) == first


def test_what_is_swept_comes_first():
    options = ["data.n_grid=4", "seed=2", "trainer.threads=1", "lrrnn.rank=3"]
    name = run_directory(DEFAULT, options, ",", ["seed", "trainer.threads"])
    assert name == "quadstable,seed=2,trainer.threads=1,data.n_grid=4,lrrnn.rank=3"


@pytest.mark.parametrize("group", ["experiment", "data"])
def test_a_swept_experiment_is_named_once(group):
    name = run_directory({group: "bistable"}, [f"{group}=bistable", "seed=2"], ",", [group, "seed"])
    assert name == "bistable,seed=2"


def test_figures_find_the_runs_of_a_sweep_of_experiments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from saved_runs import Wanted

    monkeypatch.setattr(Wanted, "_finished", lambda wanted, path: True)
    made = [
        run_directory({"experiment": "ring"}, ["experiment=ring", f"seed={seed}"], ",", ["experiment", "seed"])
        for seed in (1, 2)
    ]
    for name in [*made, "ring,seed=1,lrrnn.rank=3", "bistable,seed=1"]:
        (tmp_path / "sweeps" / "today" / name).mkdir(parents=True)
    assert [path.name for path in Wanted("ring").found(tmp_path)] == made
