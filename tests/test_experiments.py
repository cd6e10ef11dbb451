"""The scripts in experiments/: what they draw from small runs, what they say where a run is missing."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import connector.run
from connector import ConnectivityDistribution, figures, load_run
from connector.config import checked
from connector.data.attractors import grid_of_states
from connector.measures import field_error
from connector.run_directory import register_resolvers
from connector.store import write_network

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "data.n_neurons=150", "data.n_grid=6", "data.n_steps=30", "connectivity.loadings_epochs=20",
    "connectivity.outputs_epochs=5", "connectivity.outputs_loadings=512", "lrrnn.max_epochs=1",
    "connectivity.max_states=1000",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable():
    sys.path.insert(0, str(ROOT / "experiments"))
    threads = torch.get_num_threads()
    yield
    sys.path.remove(str(ROOT / "experiments"))
    torch.set_num_threads(threads)


def script(name):
    return importlib.import_module(name)


def only_the_network(options, store, data, metrics, lines, progress):
    """In place of a run's results, which the scripts do not read but for the sampled network."""
    network = ConnectivityDistribution.load(store.connectivity_file).sample(1000, seed=options.seed)
    write_network(store.path / "network.npz", network, 0.0)
    return {}, {}, []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Small runs of three systems, where runs with the default options would lie."""
    directory, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    patch.setattr(connector.run, "summarise", only_the_network)
    register_resolvers()
    for system in ("quadstable", "ring", "heavy_tailed"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            overrides = [*SMALL, "trainer.threads=1", f"experiment={system}", f"experiment_name={system}"]
            config = compose("train", overrides=overrides)
        connector.run.run(checked(config), config, directory / system / "default")
    patch.undo()
    return directory


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Fewer systems, neurons, mixtures and pixels than the scripts have by themselves."""
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)
    monkeypatch.setattr(script("figure2"), "COMPONENTS", (1, 2, 4))
    monkeypatch.setattr(script("figure2"), "N_LARGE", 2000)
    monkeypatch.setattr(script("figure3"), "N_REFERENCE", 1000)
    monkeypatch.setattr(script("figure3"), "STARTS", grid_of_states(3, 2.4))
    monkeypatch.setattr(script("figure4"), "SYSTEMS", ("quadstable", "ring"))
    monkeypatch.setattr(script("figure4"), "NAMES", ("quadstable", "ring"))
    monkeypatch.setattr(script("supplementary"), "COMPONENTS", (1, 2))
    monkeypatch.setattr(script("supplementary"), "SYSTEMS", {"ring": "Ring"})


def drawn(name, runs, out, *more):
    """Run a script's main; returns its exit code."""
    module = script(name)
    return script("saved_runs").finish(module.main, ["--runs", str(runs), "--out", str(out), *map(str, more)])


def check_figure(out, name):
    for suffix in ("png", "pdf"):
        assert (out / f"{name}.{suffix}").stat().st_size > 4_000


def of(runs, system):
    return runs / system / "default"


def test_a_run_keeps_the_fitted_low_rank_rnn(runs):
    run = load_run(of(runs, "quadstable"))
    z, u, y = run.latents.samples()
    assert field_error(run.fitted_network, z, u, y) < 0.05
    torch.testing.assert_close(run.fitted_network.m, run.loadings.m)


def test_figures_2_and_3(runs, tmp_path, capsys):
    lint = of(runs, "quadstable")
    assert drawn("figure2", runs, tmp_path, "--lint", lint, "--null-draws", 1, "--bootstrap", 9) == 0
    assert drawn("figure3", runs, tmp_path, "--lint", lint, "--samples", 1) == 0
    check_figure(tmp_path, "figure2")
    check_figure(tmp_path, "figure3")
    said = capsys.readouterr().out
    for word in ("bimodal", "p of the test", "random neurons", "stable fixed points", "stated choice"):
        assert word in said


def test_figure_4(runs, tmp_path, capsys):
    assert drawn("figure4", runs, tmp_path, "--samples", 1) == 0
    check_figure(tmp_path, "figure4")
    assert "rows and" in capsys.readouterr().out


def test_supplementary(runs, tmp_path, capsys):
    assert drawn("supplementary", runs, tmp_path, "--null-draws", 1, "--bootstrap", 9) == 0
    check_figure(tmp_path, "supplementary")
    assert "Ring" in capsys.readouterr().out


def test_heavy_tails_names_the_run_to_draw_beside(runs, tmp_path, capsys):
    assert drawn("heavy_tails", runs, tmp_path, "--samples", 2) == 0
    check_figure(tmp_path, "heavy_tails")
    assert "connectivity.flow.base=normal" in capsys.readouterr().out


def test_identifiability(tmp_path, monkeypatch):
    module = script("identifiability")
    monkeypatch.setattr(module, "VARIED", {"noise": (0.01, 0.1), "fraction": (0.2, 1.0)})
    monkeypatch.setattr(module, "N_NEURONS", 100)
    assert script("saved_runs").finish(module.main, ["--out", str(tmp_path), "--datasets", "1", "--workers", "1"]) == 0
    check_figure(tmp_path, "identifiability")
    with open(tmp_path / "identifiability.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["factor"] for row in rows} == {"noise", "fraction"}
    assert all(float(row["lower"]) <= float(row["median"]) <= float(row["upper"]) for row in rows)


@pytest.mark.parametrize("name", ["figure2", "figure3", "figure4", "supplementary", "heavy_tails"])
def test_a_missing_run_ends_with_2_and_the_command_that_makes_it(name, tmp_path, capsys):
    assert drawn(name, tmp_path / "runs", tmp_path / "figures") == 2
    said = capsys.readouterr().err
    assert "python train.py experiment=" in said
    assert "Traceback" not in said
    assert not (tmp_path / "figures").exists()


def test_commands_for_missing_runs():
    saved = script("saved_runs")
    plain = saved.Wanted("ring")
    assert plain.command(Path("runs")) == "python train.py experiment=ring"
    assert plain.directory(Path("runs")) == Path("runs/ring/default")
    published = saved.Wanted("ring", ("connectivity=published", "lrrnn=published"))
    assert published.directory(Path("runs")) == Path("runs/ring/connectivity=published,lrrnn=published")
    elsewhere = saved.Wanted("ring", saved.LINT, fit_only=True).command(Path("other"))
    assert elsewhere.endswith("'stages=[lrrnn]' 'hydra.run.dir=\"other/ring/lrrnn=published\"'")


def test_repetitions_differ_in_their_seed_alone(runs, tmp_path):
    saved = script("saved_runs")
    for name in ("ring/default", "ring/seed=2", "ring/lrrnn=published,seed=2", "sweeps/new/ring,seed=2",
                 "sweeps/new/ring,seed=3"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(of(runs, "ring"))
    found = [str(path.relative_to(tmp_path)) for path in saved.Wanted("ring").found(tmp_path)]
    assert found == ["ring/default", "ring/seed=2", "sweeps/new/ring,seed=3"]
    assert saved.Wanted("ring", saved.LINT).found(tmp_path) == [tmp_path / "ring/lrrnn=published,seed=2"]


def test_smallest_on_the_diagonal():
    smallest_on_diagonal = script("figure4").smallest_on_diagonal
    good = torch.tensor([[1.0, 2.0, 3.0], [4.0, 1.0, 6.0], [7.0, 8.0, 1.0]])
    assert smallest_on_diagonal(good) == ([True] * 3, [True] * 3)
    row_wrong = torch.tensor([[1.0, 0.5, 3.0], [4.0, 0.2, 6.0], [7.0, 8.0, 1.0]])
    assert smallest_on_diagonal(row_wrong) == ([False, True, True], [True, True, True])
    tie = torch.tensor([[1.0, 1.0], [2.0, 0.5]])
    assert smallest_on_diagonal(tie) == ([False, True], [True, True])
