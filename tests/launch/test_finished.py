"""A finished run is known without reading its data or importing torch, and only while nothing differs."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import CONF, ROOT, SMALL, typed
from hydra import compose, initialize_config_dir
from rich.console import Console

from connector.launch import finished as known
from connector.launch import job
from connector.report.glossary import METRICS, SHORT
from connector.runs.options import ReportOptions, checked
from connector.runs.store import RunStore


def options_of(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("train", ["experiment_name=quadstable", *SMALL, *overrides]))


class Planned(Exception):
    pass


@pytest.fixture
def no_job(monkeypatch):
    """A command that does not know the run as finished comes to its job, which raises."""

    def run(*_, **__):
        raise Planned

    monkeypatch.setattr(job, "run", run)


def test_the_same_command_is_answered_without_a_job_and_without_torch(finished, no_job):
    directory, first = finished
    again = typed(*SMALL, f"hydra.run.dir={directory}")
    assert again.returncode == 0, again.stderr
    assert "finished earlier with these options, nothing to do" in again.stdout
    table = first.stdout[first.stdout.index("measure ") :]
    assert again.stdout.endswith(table)
    arguments = ["train.py", *SMALL, f"hydra.run.dir={directory}"]
    code = f"import sys; sys.argv = {arguments!r}; from connector.__main__ import main; assert main() == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


@pytest.mark.parametrize(
    "damage", ["network.npz", "latents.npz", "config.yaml", "checkpoints/connectivity.pt", "metrics.json"]
)
def test_a_damaged_file_is_seen(finished, damage):
    directory, _ = finished
    options = options_of()
    assert known.answered(options, directory, alone=False) is not None
    file = directory / damage
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert known.answered(options, directory, alone=False) is None
    file.write_bytes(whole)
    (directory / "report.html").rename(directory / "aside")
    assert known.answered(options, directory, alone=False) is None
    (directory / "aside").rename(directory / "report.html")
    assert known.answered(options, directory, alone=False) is not None


def test_figures_in_a_format_that_was_not_drawn_are_still_to_be_made(finished):
    store = RunStore(finished[0])
    noted = store.stages()["results"]["job"]

    def stands(*formats, draw=True):
        return known.stands_whole(store, noted["requested"], noted["marks"], ReportOptions(draw, list(formats)))

    assert stands("png")
    assert not stands("png", "pdf")
    assert stands("png", "pdf", draw=False)


@pytest.mark.parametrize(
    "other", ["seed=2", "force=true", "data.n_steps=61", "stages=[lrrnn]", "trainer.precision=64-true", "logger=wandb",
              "trainer=gpu", "+trainer.max_steps=3", "connectivity.sigma=0.5"],
)  # fmt: skip
def test_other_options_are_planned(finished, no_job, other):
    directory, _ = finished
    done = typed(*SMALL, other, f"hydra.run.dir={directory}")
    assert done.returncode == 1
    assert "Planned" in done.stderr


def test_changed_code_ranks_and_a_missing_directory_are_planned(finished, monkeypatch, tmp_path):
    directory, _ = finished
    options = options_of()
    assert known.answered(options, tmp_path / "none", alone=True) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert known.answered(options, directory, alone=True) is None
    monkeypatch.delenv("LOCAL_RANK")
    assert known.answered(options, directory, alone=True) is not None
    monkeypatch.setattr(known, "_code", lambda: "other")
    assert known.answered(options, directory, alone=True) is None


def test_a_run_that_stands_after_the_code_has_changed_is_known_from_then_on(finished, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(finished[0], directory)
    options = options_of()
    monkeypatch.setattr(known, "_code", lambda: "other")
    assert known.answered(options, directory, alone=True) is None
    assert "nothing to do" in typed(*SMALL, f"hydra.run.dir={directory}").stdout
    assert known.answered(options, directory, alone=True) is not None
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}
    assert "nothing to do" in typed(*SMALL, f"hydra.run.dir={directory}").stdout
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}


def test_a_changed_data_file_is_planned(tmp_path, no_measures):
    rng = np.random.default_rng(0)
    path, directory = tmp_path / "a.npz", tmp_path / "run"
    rates = np.tanh(rng.normal(size=(12, 30, 2)).cumsum(1) @ rng.normal(size=(2, 20)) / 5)
    np.savez(path, rates=rates)
    command = ["data=npz", f"data.path={path}", "stages=[lrrnn]", "trainer.threads=1", f"hydra.run.dir={directory}"]
    assert typed(*command).returncode == 0
    mark = RunStore(directory).stages()["lrrnn"]["fingerprint"]
    assert "nothing to do" in typed(*command).stdout
    rates[3, 4, 5] += 1e-3
    np.savez(path, rates=rates)
    done = typed(*command)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" not in done.stdout
    assert RunStore(directory).stages()["lrrnn"]["fingerprint"] != mark


def screen(store, metrics, **how):
    console = Console(file=io.StringIO(), width=80)
    known.show(console, metrics, store, **how)
    return console.file.getvalue()


def test_a_run_ends_with_one_screen_and_with_all_measures_where_asked_for(finished):
    store = RunStore(finished[0])
    metrics = store.metrics()
    short, long = screen(store, metrics), screen(store, metrics, verbose=True)
    assert len(short.splitlines()) <= 24
    assert 6 <= short.count("│") / 2 <= 8
    assert "Error of the vector field" in short
    assert "verbose=true" in short
    assert long.count("│") / 2 >= len(set(METRICS) & set(metrics))
    for said in (short, long):
        assert f"Report: {finished[0] / 'report.html'}" in said.replace("\n", "")


def test_cautions_stand_with_what_to_do_and_are_counted_in_a_line(tmp_path):
    store = RunStore(tmp_path)
    cautions = ["Warning: It is [so]. What to do: mend it."]
    store.finish_stage("results", "mark", 1.0, {}, files=[], drawn=[], cautions=cautions)
    said = screen(store, {"dynamics/field_error": 0.01234, "lrrnn/val_loss": 2.0})
    assert "Warning: It is [so].\n  What to do: Mend it.\n" in said
    assert "0.0123 " in said
    line = known.in_a_line({"dynamics/field_error": 0.01234, "lrrnn/val_loss": 2.0}, cautions)
    assert line == "field error 0.0123, val loss 2, 1 caution"
    assert known.in_a_line({}, []) == ""


def test_every_short_name_is_of_a_measure():
    assert set(SHORT) <= set(METRICS)
    assert all(len(name) <= 46 for name in SHORT.values())
