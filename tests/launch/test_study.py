"""Studies: what is searched, trials that are pruned, and an interrupted study that ends as if it had not been."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from commands import typed
from hydra.core.override_parser.overrides_parser import OverridesParser

from connector.compare.runs import read_run
from connector.errors import UserError
from connector.launch import job as job_of_command
from connector.launch.study import imported, pruner_of, search_of
from connector.stages.results import Results

optuna = pytest.importorskip("optuna", minversion="4")

SEARCHED = "connectivity.regularizer=tag(log, interval(1e-4, 1))"


def search(*typed_overrides, over=()):
    return search_of(OverridesParser.create().parse_overrides(list(typed_overrides)), over)


def test_each_kind_of_sweep_has_its_distribution():
    of = imported().distributions
    found = search("a=tag(log, interval(1e-4, 1))", "b=choice(16, 32)", "c=range(1, 5)", "d=int(interval(1, 8))",
        "e=range(0, 1, 0.25)", "f=[1],[2]", "g=3", "h=tag(log, int(interval(1, 100)))")  # fmt: skip
    assert found.fixed == ["g=3"]
    assert found.steps == [[]]
    assert found.space == {
        "a": of.FloatDistribution(1e-4, 1.0, log=True),
        "b": of.CategoricalDistribution(["16", "32"]),
        "c": of.IntDistribution(1, 4),
        "d": of.IntDistribution(1, 8),
        "e": of.FloatDistribution(0.0, 0.75, step=0.25),
        "f": of.CategoricalDistribution(["[1]", "[2]"]),
        "h": of.IntDistribution(1, 100, log=True),
    }


def test_options_to_average_over_are_jobs_of_each_trial():
    found = search("a=interval(0, 1)", "data.fold=1,2", "seed=3,4", over=["data.fold", "seed"])
    assert list(found.space) == ["a"]
    assert found.steps == [["data.fold=1", "seed=3"], ["data.fold=1", "seed=4"], ["data.fold=2", "seed=3"], ["data.fold=2", "seed=4"]]  # fmt: skip
    for refused in (["a=interval(0, 1)", "seed=3"], ["seed=3,4"], ["seed=3,4", "a=interval(1, 0)"]):
        with pytest.raises(UserError):
            search(*refused, over=["seed"])


@pytest.mark.parametrize(("prune", "kept"), [("none", 8), ("median", 4), ("percentile", 2)])
def test_a_pruner_keeps_the_share_that_it_is_told(prune, kept):
    """Of a value between those of 8 trials that ended, it keeps what lies below their median, or their quartile."""
    settings = {"prune": prune, "percentile": 25.0, "after_trials": 5, "after_steps": 1}
    study = imported().create_study(pruner=pruner_of(settings))
    for value in range(8):
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, value)
    passed = 0
    for value in range(8):
        trial = study.ask()
        trial.report(value - 0.1, 1)
        passed += not trial.should_prune()
    assert passed == kept


@pytest.fixture
def stub(monkeypatch):
    """In the place of a run: a value that grows with the distance of the regulariser from 0.01, and with the fold."""
    ran = []

    def value_of(options, config, directory, *_, **__):
        ran.append((options.connectivity.regularizer, options.data.fold))
        if len(ran) in stops:
            raise stops.pop(len(ran))
        directory.mkdir(parents=True, exist_ok=True)
        return abs(math.log10(options.connectivity.regularizer) + 2) + 0.1 * options.data.fold

    stops = {}
    monkeypatch.setattr(job_of_command, "run", value_of)
    ran_and_stops = type("Stub", (), {"ran": ran, "stops": stops})
    return ran_and_stops


def trials(directory):
    study = optuna.load_study(study_name="connector", storage=f"sqlite:///{directory}/study.db")
    return [(trial.state.name, trial.params) for trial in study.trials]


def command(directory, n_trials, *more):
    return [
        "-m",
        "hydra/sweeper=study",
        f"hydra.sweep.dir={directory}",
        f"hydra.sweeper.n_trials={n_trials}",
        SEARCHED,
        *more,
    ]


def test_an_interrupted_study_ends_as_if_it_had_not_been(tmp_path, stub):
    whole = typed(*command(tmp_path / "whole", 7, "hydra.sweeper.sampler=random"), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "Study: 7 trials, 7 done" in whole.stdout
    expected = list(stub.ran)
    stub.ran.clear()
    stub.stops |= {3: KeyboardInterrupt(), 6: RuntimeError("made to fail")}  # the sixth job is the trial of number 4
    resumed = command(tmp_path / "parts", 7, "hydra.sweeper.sampler=random")
    assert typed(*resumed, cwd=tmp_path).returncode == 130
    assert [state for state, _ in trials(tmp_path / "parts")] == ["COMPLETE", "COMPLETE", "RUNNING"]
    second = typed(*resumed, cwd=tmp_path)
    assert second.returncode == 1
    assert "Sweep: 4 of 5 jobs done" in second.stdout
    assert stub.ran == [*expected[:3], *expected[2:]]  # the trial that was left is run again, the others are as planned
    states = [state for state, _ in trials(tmp_path / "parts")]
    assert states == ["COMPLETE"] * 4 + ["FAIL"] + ["COMPLETE"] * 2
    assert typed(*resumed, cwd=tmp_path).returncode == 0  # nothing is left to do
    assert len(stub.ran) == 8


def test_a_trial_that_is_behind_after_a_fold_is_pruned(tmp_path, stub):
    folds = [
        "hydra.sweeper.over=[data.fold]",
        "data.fold=1,2,3",
        "hydra.sweeper.prune=median",
        "hydra.sweeper.after_trials=2",
    ]
    done = typed(*command(tmp_path / "s", 12, *folds, "hydra.sweeper.n_jobs=2"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = optuna.load_study(study_name="connector", storage=f"sqlite:///{tmp_path / 's'}/study.db").trials
    states = [trial.state.name for trial in found]
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert len(found) == 12
    for trial in found:
        distance = abs(math.log10(trial.params["connectivity.regularizer"]) + 2)
        means = {step: pytest.approx(distance + 0.1 * (step + 1) / 2) for step in trial.intermediate_values}
        assert trial.intermediate_values == means
        if trial.state.name == "COMPLETE":
            assert trial.value == pytest.approx(distance + 0.2)
    jobs = sum(3 if state == "COMPLETE" else max(trial.intermediate_values) for state, trial in zip(states, found))
    assert len(stub.ran) == jobs
    assert done.stdout.count("is pruned after job") == states.count("PRUNED")


@pytest.mark.parametrize(
    "mistaken",
    [
        ["hydra.sweeper.prune=best"], ["hydra.sweeper.prune=median"], ["hydra.sweeper.n_jobs=0"],
        ["hydra.sweeper.over=[data.fold]"], ["hydra.sweeper.monitor=lrrnn/val_loss", "hydra/launcher=ensemble"],
        ["hydra.sweeper.storage=sqlite:////nowhere/study.db"],
    ],
)  # fmt: skip
def test_a_study_that_cannot_be_meant_is_refused_in_two_lines(tmp_path, stub, mistaken):
    done = typed(*command(tmp_path / "s", 3, *mistaken), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: expected ")
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not stub.ran


def test_a_job_whose_loss_is_behind_ends_as_pruned(tmp_path, few_measures, experiments_importable, monkeypatch):
    from launchers import offline_logs, read_offline

    monkeypatch.setattr(Results, "measures", lambda results: {"distance": results._against_teacher})
    monkeypatch.setattr(job_of_command, "measures_of_fit", lambda *_: {})
    small = ["data.n_neurons=150", "data.n_grid=6", "data.n_steps=40", "connectivity.loadings_epochs=10", "report=false",
        "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=1024", "connectivity.early_stopping=false",
        "trainer.threads=1", "trainer.progress=false"]  # fmt: skip
    watched = ["hydra.sweeper.monitor=loadings/val_loss", "hydra.sweeper.prune=median", "hydra.sweeper.after_trials=1"]
    directory = tmp_path / "s"
    study = ["-m", "hydra/sweeper=study", f"hydra.sweep.dir={directory}", "hydra.sweeper.n_trials=2", *watched, *small]
    drawn = ["hydra.sweeper.sampler=random", "hydra.sweeper.seed=5"]  # the first of the two values, then the second
    logged = ["logger=wandb", "logger.mode=offline", f"logger.save_dir={tmp_path}"]
    done = typed(*study, *drawn, *logged, "connectivity.loadings_learning_rate=choice(0.01, 1.0)")
    assert done.returncode == 0, done.stderr
    with (directory / "jobs.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [state for state, _ in trials(directory)] == ["COMPLETE", "PRUNED"]
    pruned, run = rows[1], Path(rows[1]["directory"])
    assert pruned["state"].startswith("pruned: loadings/val_loss ")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == pruned["state"] == read_run(run).problem  # as the comparison tells it
    assert list(manifest["stages"]) == ["lrrnn"]
    assert "Traceback" not in (run / "train.log").read_text()
    in_wandb = [read_offline(log) for log in offline_logs(tmp_path)][-1]
    assert in_wandb.summary["state"] == pruned["state"]
    assert in_wandb.exit_code == 0
    assert "Sweep: 1 of 2 jobs done, 1 pruned" in done.stdout


def test_optuna_is_imported_by_studies_alone():
    code = "import sys; import connector.launch.study, connector.launch.command_line; print('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
