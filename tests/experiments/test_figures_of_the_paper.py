"""The scripts in experiments/: what they draw from small runs, what they say where a run is missing."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from hydra import compose, initialize_config_dir

import connector.launch.job
from connector import ConnectivityDistribution, figures, load_run
from connector.analysis.fields import field_error
from connector.data.simulation import grid_of_states
from connector.dynamics import leading_fixed_points
from connector.errors import UserError
from connector.lrrnn.gauge import Gauge
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.runs.store import write_network
from connector.types import Loadings, TrialBatch

SMALL = [
    "data.n_neurons=150", "data.n_grid=6", "data.n_steps=30", "connectivity.loadings_epochs=20",
    "connectivity.outputs_epochs=5", "connectivity.outputs_loadings=512", "lrrnn.max_epochs=1",
    "connectivity.max_states=1000", "connectivity.early_stopping=false",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("experiments_importable")


def script(name):
    return importlib.import_module(name)


def only_the_network(options, store, data, metrics, lines, progress, beside):
    """In place of a run's results, which the scripts do not read but for the sampled network."""
    network = ConnectivityDistribution.load(store.connectivity_file).sample(1000, seed=options.seed)
    write_network(store.path / "network.npz", network, 0.0)
    return {}, {}, []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Small runs of three systems, where runs with the default options would lie."""
    directory, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    patch.setattr(connector.launch.job, "summarise", only_the_network)
    register_resolvers()
    for system in ("quadstable", "ring", "heavy_tailed"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            overrides = [*SMALL, "trainer.threads=1", f"experiment={system}", f"experiment_name={system}"]
            config = compose("train", overrides=overrides)
        connector.launch.job.run(checked(config), config, directory / system / "default")
    patch.undo()
    return directory


@pytest.fixture(scope="module")
def spike_run(tmp_path_factory):
    """A small run on spikes of a leaky integrator of two inputs, whose choices follow its final state."""
    directory, patch = tmp_path_factory.mktemp("spikes"), pytest.MonkeyPatch()
    patch.setattr(connector.launch.job, "summarise", only_the_network)
    rng = np.random.default_rng(0)
    trials, steps, neurons = 60, 40, 64
    evidence = rng.choice([-1.0, 1.0], trials)
    chance = 0.15 * (1 + 0.8 * np.stack([-evidence, evidence], 1))
    inputs = (rng.random((trials, steps, 2)) < chance[:, None]).astype(float)
    z = np.zeros((trials, steps, 2))
    for t in range(steps - 1):
        push = inputs[:, t, 1] - inputs[:, t, 0]
        z[:, t + 1] = 0.95 * z[:, t] + 0.15 * push[:, None] * [1.0, 0.3] + 0.05 * rng.normal(size=(trials, 2))
    lengths = rng.integers(steps // 2, steps + 1, trials)
    rates = np.log1p(np.exp(z @ (2 * rng.normal(size=(2, neurons))) + rng.normal(size=neurons)))
    choices = (z[np.arange(trials), lengths - 1, 0] > 0).astype(float)
    spikes = rng.poisson(0.2 * rates) * (np.arange(steps) < lengths[:, None])[..., None]
    np.savez(directory / "clicks.npz", spikes=spikes, externalinputs=inputs, lengths=lengths, choices=choices,
             times=np.arange(trials) * 2.0)  # fmt: skip
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["data=npz", f"data.path={directory / 'clicks.npz'}", "experiment_name=clicks", "lrrnn.max_epochs=2",
                     "lrrnn.inference=encoder", "connectivity.loadings_epochs=20", "connectivity.outputs_epochs=2",
                     "connectivity.outputs_loadings=512", "connectivity.max_states=800",
                     "connectivity.regularizer=0.01", "lrrnn.posterior_sweeps=12", "trainer.threads=1"]  # fmt: skip
        config = compose("train", overrides=overrides)
    connector.launch.job.run(checked(config), config, directory / "run")
    patch.undo()
    return directory / "run"


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
    for name, value in (("COMPONENTS", (1, 2)), ("N_NEURONS", 300), ("N_STATES", 60), ("N_SEEDS", 2)):
        monkeypatch.setattr(script("figure5"), name, value)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_supplementary(runs, tmp_path, capsys):
    assert drawn("supplementary", runs, tmp_path, "--null-draws", 1, "--bootstrap", 9) == 0
    check_figure(tmp_path, "supplementary")
    assert "Ring" in capsys.readouterr().out


def test_heavy_tails_names_the_run_to_draw_beside(runs, tmp_path, capsys):
    assert drawn("heavy_tails", runs, tmp_path, "--samples", 2) == 0
    check_figure(tmp_path, "heavy_tails")
    assert "connectivity.flow.base=normal" in capsys.readouterr().out


@pytest.mark.slow
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


@pytest.mark.slow
def test_figure_5_and_the_power_of_its_measures(spike_run, tmp_path, capsys):
    nowhere, power = tmp_path / "nowhere", tmp_path / "attractor_power.json"
    sets = ("--run", spike_run, "--data-sets", 1, "--epochs", 1)
    assert drawn("attractor_power", nowhere, tmp_path, *sets) == 0
    first = power.read_bytes()
    assert {one["kind"] for one in json.loads(first)["data_sets"]} == set(script("attractor_power").KINDS)
    assert "95 % interval" in capsys.readouterr().out
    # Finished data sets are not made again.
    assert drawn("attractor_power", nowhere, tmp_path, *sets) == 0
    assert power.read_bytes() == first
    assert "data set 1 of 1" not in capsys.readouterr().out
    few = ("--networks", 2, "--random", 3, "--null-draws", 1, "--bootstrap", 9, "--types", 3)
    assert drawn("figure5", nowhere, tmp_path, "--run", spike_run, *few) == 0
    check_figure(tmp_path, "figure5")
    check_figure(tmp_path, "figure5_predictions")
    said = " ".join(capsys.readouterr().out.split())
    for words in ("the test on the loadings of the 64 recorded neurons", "what states do later is extrapolation", "3 (",
                  "Power, trials x 1, 1 epochs", "Robust: all but 5 %", "P(side of the evidence)"):  # fmt: skip
        assert words in said


@pytest.mark.slow
def test_how_often_the_test_for_cell_types_fires_on_refitted_simulations(spike_run, tmp_path, capsys):
    few = ("--run", spike_run, "--data-sets", 1, "--epochs", 1)
    for _ in range(2):  # the second time nothing is left to do
        assert drawn("cell_types_refitted", tmp_path / "nowhere", tmp_path, *few) == 0
    said = capsys.readouterr().out
    assert said.count("seed 0: p = ") == 1
    assert "without cell types, refitted loadings: the test fires in" in said
    one = json.loads((tmp_path / "cell_types_refitted.json").read_text())["data_sets"]
    assert len(one) == 1
    assert 0 < one[0]["p"] <= 1


@pytest.mark.parametrize("n_types", [1, 2, 3])
def test_drawn_loadings_have_the_moments_of_the_recorded_ones_and_types_that_differ(n_types):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    recorded = Loadings.unstack(torch.randn(6000, 4, generator=generator, dtype=torch.float64) @ mixing + 1, 2, 1, True)
    drawn_, types = script("cell_types_refitted").draw_loadings(recorded, n_types, generator)
    x, y = recorded.stack(), drawn_.stack()
    scale = x.var(0).mean()
    torch.testing.assert_close(y.mean(0), x.mean(0), rtol=0, atol=0.05 * float(scale.sqrt()))
    torch.testing.assert_close(torch.cov(y.T), torch.cov(x.T), rtol=0, atol=0.1 * float(scale))
    assert torch.bincount(types).tolist() == [6000 // n_types] * n_types
    if n_types > 1:
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(y.T)), (y - y.mean(0)).T, upper=False)
        centres = torch.stack([white.T[types == c].mean(0) for c in range(n_types)])
        assert float(torch.pdist(centres).min()) > 1.0  # in standard deviations over all neurons


def test_the_fitted_spike_model_is_in_the_gauge_of_the_latents(spike_run):
    run = script("saved_runs").SpikeRun(spike_run)
    # No turn, stretch or shift brings the sampled states of the training trials nearer to the model's.
    train = run.fold.train
    batch = TrialBatch.of(run.recording, train, run.baseline.argument)
    inside = run.latents.mask[train]
    gauge = Gauge.nearest(run.latents.z[train][inside], run.model.infer(batch)[inside])
    torch.testing.assert_close(gauge.matrix, torch.eye(2).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(gauge.shift, torch.zeros(2).double(), rtol=0, atol=1e-3)


def test_truths_have_the_points_they_are_named_after(spike_run):
    power = script("attractor_power")
    run = script("saved_runs").SpikeRun(spike_run)
    for seed, kind in enumerate(power.KINDS):
        generator = torch.Generator().manual_seed(seed)
        truth = power.draw_truth(kind, run, generator)
        starts = torch.randn(40, 2, generator=generator, dtype=torch.float64)
        points, eigenvalues = leading_fixed_points(truth.field, starts)
        stable = points[(eigenvalues.real < 0).all(1)]
        assert len(stable) == seed + 1
        if kind == "two attractors":
            assert sorted((stable @ truth.axis).tolist()) == pytest.approx([-truth.width, truth.width], rel=1e-3)
        else:
            assert float(-truth.tau_s / eigenvalues.real.max()) == pytest.approx(truth.time_s, rel=1e-4)
        session = power.simulate_session(run.recording, run.model, run.baseline, truth, 3, generator)
        assert session.n_trials == 3 * run.recording.n_trials
        assert torch.equal(session.lengths[::3], run.recording.lengths)
        assert float(session.activity[~session.mask].sum()) == 0
        # the noise-free states spread as far as the fitted ones
        start = torch.zeros(run.recording.n_trials, 2, dtype=torch.float64)
        x = truth.run(start, run.recording.inputs.double())[run.recording.mask] @ truth.axis
        fitted = run.model.infer(TrialBatch.of(run.recording, None, run.baseline.argument), rollout=True)[
            run.recording.mask
        ]
        assert float(x.std()) == pytest.approx(
            float(torch.linalg.eigvalsh(torch.cov(fitted.double().T))[-1].sqrt()), rel=1e-3
        )


def test_what_data_sets_say():
    power = script("attractor_power")
    sets = [{"kind": kind, "separation_true": true, "separation": value, "points": points}
            for kind, true, value, points in (("one slow point", 0.1, 0.2, 1), ("one slow point", 0.3, 0.5, 1),
                                              ("two attractors", 0.9, 0.4, 1), ("two attractors", 1.1, 0.8, 2))]  # fmt: skip
    assert power.told_apart([0.2, 0.5], [0.4, 0.8]) == (3, 4)
    assert power.boundary(sets) == pytest.approx(0.6)
    said = " ".join(power.verdict(sets, 0.45))
    assert "in 3 of 4 pairs" in said
    assert "0.60, puts 3 of 4" in said
    assert "two attractors 1 of 2" in said
    assert "it is not shown that the separation tells the two kinds apart" in said
    clear = [{**one, "separation": one["separation_true"]} for one in 4 * sets]
    assert "tells the two kinds apart more often than chance" in " ".join(power.verdict(clear))
    assert "As small as the recording's 0.45: one slow point 1 of 2" in said
    assert power.wilson(8, 10) == "8 of 10 (95 % interval 0.49 to 0.94)"
    assert "Both kinds" in power.verdict(sets[:2])[0]


def test_the_run_on_recordings_is_found_or_asked_for(spike_run, tmp_path, capsys):
    assert drawn("figure5", tmp_path / "runs", tmp_path) == 2
    assert "python train.py experiment=rat data.path=T176_2018_05_03.mat" in capsys.readouterr().err
    assert drawn("attractor_power", tmp_path / "runs", tmp_path, "--data", "a/b.mat") == 2
    assert "data.path=a/b.mat" in capsys.readouterr().err
    saved = script("saved_runs")
    for name in ("a", "b"):
        (tmp_path / "runs" / "rat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "rat" / f"data.path={name}.mat").symlink_to(spike_run)
    parser = saved.recording_arguments("")
    at = ["--runs", str(tmp_path / "runs")]
    assert saved.spike_run(parser.parse_args([*at, "--data", "b.mat"])).path.name == "data.path=b.mat"
    with pytest.raises(UserError, match="--run DIRECTORY"):
        saved.spike_run(parser.parse_args(at))


@pytest.mark.parametrize("name", ["figure2", "figure3", "figure4", "figure5", "attractor_power", "cell_types_refitted",
                                  "supplementary",
                                  "heavy_tails"])  # fmt: skip
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
