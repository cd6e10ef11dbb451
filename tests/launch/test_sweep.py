"""A sweep says which job begins, and ends with a table of all jobs, also where some failed, in one process or many."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ROOT, train, typed
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from connector.errors import UserError, end_state
from connector.launch import sweep
from connector.launch.sweep import SweepReport, close_sweep, count_jobs
from connector.report.numbers import format_number
from connector.runs.lock import locked

SMALL = [
    "data.n_neurons=60", "data.n_grid=5", "data.n_steps=20", "lrrnn.max_epochs=1", "trainer.threads=1", "stages=lrrnn",
]  # fmt: skip


def swept(directory, *arguments):
    return ("-m", *SMALL, f"hydra.sweep.dir={directory}", *arguments)


def check(directory, done, seeds):
    for number, seed in enumerate(seeds, 1):
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"[{number}/{len(seeds)}] "))
        assert f"seed={seed}" in line
        assert re.search(rf" -> \S*quadstable,seed={seed},data\S*: (done in \d+ s; .*val loss \d|mistake)", line)
    assert done.stdout.count("] seed=") == len(seeds)
    with (directory / "jobs.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["job"] for row in rows] == [str(n) for n in range(1, len(seeds) + 1)]
    assert f"All jobs: {' '.join(SMALL)}" in done.stdout
    table = done.stdout[done.stdout.rindex("overrides") :]
    for row, seed in zip(rows, seeds):
        assert f"seed={seed}" in row["overrides"]
        if row["state"] == "done":
            metrics = json.loads((Path(row["directory"]) / "metrics.json").read_text())
            assert float(row["lrrnn/val_loss"]) == metrics["lrrnn/val_loss"]
            assert format_number(metrics["lrrnn/val_loss"]) in table
        assert row["state"] in table
    assert not (directory / ".jobs").exists()
    return [row["state"] for row in rows]


def test_a_sweep_with_a_failing_job_still_ends_with_the_table_of_all(tmp_path):
    done = typed(*swept(tmp_path / "sweep", "seed=1,-1"))
    assert done.returncode == 1, done.stdout + done.stderr
    states = check(tmp_path / "sweep", done, (1, -1))
    assert states[0] == "done"
    assert states[1].startswith("mistake (2): expected seed")
    assert "Sweep: 1 of 2 jobs done" in done.stdout


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_end_in_one_table(tmp_path):
    done = train(*swept(tmp_path / "sweep", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert check(tmp_path / "sweep", done, (1, 2)) == ["done", "done"]


# The command, but the fifth job of the process fails while it trains.
FAULTY = """
import runpy, sys
import connector.launch.job
whole, calls = connector.launch.job.run_stages, []
def faulty(*arguments):
    calls.append(arguments)
    if len(calls) == 5:
        raise RuntimeError("made to fail")
    return whole(*arguments)
connector.launch.job.run_stages = faulty
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_notes_a_failed_trial_goes_on_and_is_resumed(tmp_path):
    optuna = pytest.importorskip("optuna", minversion="4")
    directory = tmp_path / "study"
    options = [
        "-m", "hydra/sweeper=study", f"hydra.sweep.dir={directory}", "report=false", "trainer.threads=1",
        "trainer.progress=false", "data.n_neurons=100", "data.n_grid=6", "data.n_steps=40",
        "connectivity.loadings_epochs=10", "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=512",
        "connectivity.early_stopping=false", "connectivity.regularizer=tag(log, interval(1e-4, 1))",
        "connectivity.flow.hidden_width=choice(16,32)",
    ]  # fmt: skip

    def trials():
        found = optuna.load_study(study_name="connector", storage=f"sqlite:///{directory}/study.db").trials
        return [trial.state.name for trial in found]

    command = [sys.executable, "-c", FAULTY, *options, "hydra.sweeper.n_trials=12"]
    first = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert first.returncode == 1, first.stdout + first.stderr
    assert trials() == ["COMPLETE"] * 4 + ["FAIL"] + ["COMPLETE"] * 7
    assert "Sweep: 11 of 12 jobs done" in first.stdout
    with (directory / "jobs.csv").open(newline="") as handle:
        failed = [row for row in csv.DictReader(handle) if row["state"] != "done"]
    assert [row["state"] for row in failed] == ["failed (1): RuntimeError: made to fail"]
    assert "RuntimeError: made to fail" in (Path(failed[0]["directory"]) / "train.log").read_text()

    command = [sys.executable, "train.py", *options, "hydra.sweeper.n_trials=16"]
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert second.returncode == 0, second.stdout + second.stderr
    assert trials() == ["COMPLETE"] * 4 + ["FAIL"] + ["COMPLETE"] * 11
    assert "Sweep: 4 of 4 jobs done" in second.stdout


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["seed=1,2,3", "lrrnn.rank=2"], 3),
        (["seed=range(4)", "lrrnn.rank=choice(1,2)"], 8),
        ([], 1),
        (["a=glob(*)"], None),
    ],
)
def test_jobs_are_counted_before_they_run(overrides, count):
    assert count_jobs(overrides) == count


def test_end_states_hold_exit_code_and_first_line():
    assert end_state(None) == "done"
    assert end_state(UserError("a file", "none", "give one")) == "mistake (2): expected a file; got none."
    assert end_state(RuntimeError("out of memory\nmore")) == "failed (1): RuntimeError: out of memory"


def configuration(directory, number, mode=RunMode.MULTIRUN):
    return OmegaConf.create(
        {
            "hydra": {
                "mode": mode,
                "job": {"num": number},
                "runtime": {"output_dir": str(directory / f"job{number}")},
                "overrides": {"task": [f"seed={number}", "stages=[lrrnn]"]},
                "sweep": {"dir": str(directory)},
                "sweeper": {"n_trials": 4},
            }
        }
    )


def test_a_killed_job_is_told_apart_and_takes_no_metrics_of_an_earlier_run(tmp_path, capsys):
    report = SweepReport()
    report.on_multirun_start(configuration(tmp_path, 0))
    for number in (0, 1):
        config = configuration(tmp_path, number)
        (tmp_path / f"job{number}").mkdir()
        (tmp_path / f"job{number}" / "metrics.json").write_text('{"dynamics/field_error": 0.125}')
        report.on_job_start(config)
        if number == 0:
            report.on_job_end(config, SimpleNamespace(_return_value=0.5))
    (line,) = capsys.readouterr().out.splitlines()  # of the job that came to its end
    assert line.startswith("[1/4] seed=0 stages=[lrrnn] -> ")
    assert line.endswith("done in 0 s; field error 0.125")
    console = Console(file=io.StringIO(), width=200)
    close_sweep(console)
    close_sweep(console)  # once only
    said = console.file.getvalue()
    assert said.count("0.125") == 1
    assert said.count("ended early") == 1
    assert said.count("stages=[lrrnn]") == 1  # of all jobs
    assert said.count("seed=1") == 1
    assert "1 of 2 jobs done, 2 never started" in said


def test_a_single_run_says_and_writes_nothing(tmp_path, capsys):
    report = SweepReport()
    report.on_job_start(configuration(tmp_path, 0, RunMode.RUN))
    report.on_job_end(configuration(tmp_path, 0, RunMode.RUN), SimpleNamespace(_return_value=None))
    close_sweep()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    assert sweep._open is None


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("hydra/launcher=slurm", "max_num_timeout: 5"),
        ("hydra/launcher=ensemble", "connector_ensemble.EnsembleLauncher"),
        ("hydra/sweeper=study", "connector_study.StudySweeper"),
    ],
)
def test_the_ready_launchers_and_sweepers_compose(choice, expected):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = typed(choice, "--cfg", "hydra")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_hydra_keeps_what_a_job_raised_in_a_private_field():
    from hydra.core.utils import JobReturn

    assert "_return_value" in JobReturn.__dataclass_fields__


# --- the whole command, with a job that only leaves a number ----------------------------------------------------------


@pytest.fixture
def stub(monkeypatch):
    """In the place of a run: metrics.json with the seed; returns what jobs were run, by directory."""
    import connector.launch.job

    ran = []

    def leaves_a_number(options, config, directory, *_, **__):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metrics.json").write_text(json.dumps({"dynamics/field_error": float(options.seed)}))
        ran.append((directory, options.seed))
        return None if options.stages != "auto" else float(options.seed)

    monkeypatch.setattr(connector.launch.job, "run", leaves_a_number)
    return ran


def rows_of(directory):
    with (directory / "jobs.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_sweeps_that_begin_in_one_second_have_directories_of_their_own(tmp_path, stub, monkeypatch):
    import hydra.core.utils

    class Stopped(hydra.core.utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(hydra.core.utils, "datetime", Stopped)
    for _ in range(3):
        assert typed("-m", "seed=1,2", cwd=tmp_path).returncode == 0
    made = sorted((tmp_path / "runs" / "sweeps").iterdir())
    assert [path.name for path in made] == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]
    assert [len(rows_of(path)) for path in made] == [2, 2, 2]
    assert len({directory for directory, _ in stub}) == 6


def test_a_second_sweep_in_a_directory_keeps_what_the_first_has_noted(tmp_path, stub):
    where = f"hydra.sweep.dir={tmp_path / 's'}"
    assert typed("-m", "seed=1,2", where, cwd=tmp_path).returncode == 0
    first = (tmp_path / "s" / "multirun.yaml").read_text()
    assert typed("-m", "seed=2,3,4", where, cwd=tmp_path).returncode == 0
    assert [(row["job"], row["overrides"], row["dynamics/field_error"]) for row in rows_of(tmp_path / "s")] == [
        ("1", "seed=2", "2.0"), ("2", "seed=3", "3.0"), ("3", "seed=4", "4.0"), ("4", "seed=1", "1.0"),
    ]  # fmt: skip
    assert (tmp_path / "s" / "multirun.1.yaml").read_text() == first
    assert not (tmp_path / "s" / ".jobs").exists()


def test_two_sweeps_at_a_time_and_one_that_was_killed_all_stand_in_the_table(tmp_path, stub):
    directory = tmp_path / "s"
    other, killed = directory / ".jobs" / "other", directory / ".jobs" / "killed"
    for records, seed in ((other, 7), (killed, 8)):
        records.mkdir(parents=True)
        about = {
            "job": 1,
            "overrides": [f"seed={seed}"],
            "directory": str(directory / f"j{seed}"),
            "state": "ended early",
        }
        (records / "00001.json").write_text(json.dumps(about))
    with locked(other):
        assert typed("-m", "seed=1", f"hydra.sweep.dir={directory}", cwd=tmp_path).returncode == 0
        assert (other / "00001.json").exists()  # it is at work
    assert not killed.exists()
    assert [(row["overrides"], row["state"]) for row in rows_of(directory)] == [
        ("seed=1", "done"),
        ("seed=8", "ended early"),
    ]


@pytest.mark.parametrize(
    "swept",
    [
        "seed=range(1,1)",
        "experiment=glob(nothing*)",
        pytest.param("lrrnn.rank=range(3,2)", marks=pytest.mark.slow),
        pytest.param("seed=1,2 lrrnn.rank=range(1,1)", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_of_nothing_is_a_mistake(tmp_path, stub, swept):
    done = typed("-m", *swept.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: expected a sweep of one job or more; got none: there is no value for ")
    assert swept.split()[-1].split("=")[0] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert not (tmp_path / "runs").exists()


def test_a_glob_is_counted(tmp_path, stub):
    done = typed("-m", "experiment=glob(*cycle)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[1/1] experiment=limit_cycle" in done.stdout


def test_a_study_that_measures_nothing_is_refused_before_its_first_trial(tmp_path, stub):
    pytest.importorskip("optuna", minversion="4")
    study = ["-m", "hydra/sweeper=study", f"hydra.sweep.dir={tmp_path / 's'}", "hydra.sweeper.n_trials=3"]
    for stages in ("[lrrnn]", "[lrrnn,loadings]"):
        done = typed(*study, f"stages={stages}", "seed=choice(1,2)", cwd=tmp_path)
        assert (done.returncode, stub) == (2, [])
        assert done.stderr.startswith("Error: expected the stage outputs in a study; got stages=")
        assert not (tmp_path / "s").exists()


def test_jobs_that_would_share_a_directory_are_refused(tmp_path, stub):
    done = typed("-m", "seed=1,2", "hydra.sweep.subdir=all", cwd=tmp_path)
    assert (done.returncode, stub) == (2, [])
    assert "expected a directory for each job of a sweep" in done.stderr


def test_directories_of_jobs_begin_with_what_is_swept_whether_it_changes_results_or_not(tmp_path, stub):
    fixed = [
        f"{key}=7"
        for key in ("connectivity.loadings_epochs", "connectivity.outputs_epochs", "data.n_grid", "data.n_steps")
    ]
    done = typed("-m", *fixed, "seed=1,2", "trainer.threads=1,2", f"hydra.sweep.dir={tmp_path / 's'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [directory.name for directory, _ in stub]
    assert [name[: len("quadstable,seed=1,trainer.threads=1")] for name in names] == [
        f"quadstable,seed={seed},trainer.threads={threads}" for seed in (1, 2) for threads in (1, 2)
    ]
    assert len(set(names)) == 4
