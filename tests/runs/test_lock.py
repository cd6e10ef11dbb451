"""One process on a run directory: a second one is refused, and a killed one leaves nothing that holds others back."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT, typed
from hydra import compose, initialize_config_dir
from rich.console import Console

from connector.errors import UserError
from connector.launch.ensemble import train_together
from connector.runs.lock import LOCK_FILE, locked
from connector.runs.options import checked
from connector.runs.store import RunStore

HOLD = "import sys; from pathlib import Path; from connector.runs.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def refused(path):
    with pytest.raises(UserError) as found, locked(path):
        pass
    return str(found.value)


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_ends(tmp_path, holder):
    said = refused(tmp_path)
    assert f"process {holder.pid} on" in said
    assert "hydra.run.dir" in said
    assert len(said.splitlines()) == 2
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()  # it could not tidy up
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_opened_the_file_of_an_earlier_holder_does_not_get_in_beside_the_next(tmp_path, monkeypatch):
    first = locked(tmp_path)
    first.__enter__()
    take = fcntl.flock
    entered = []

    def late(handle, how):  # between opening and locking, the first leaves and another enters
        if not entered:
            entered.append(locked(tmp_path))
            monkeypatch.setattr(fcntl, "flock", take)
            first.__exit__(None, None, None)
            entered[0].__enter__()
        return take(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert "in use by process" in refused(tmp_path)
    entered[0].__exit__(None, None, None)


def test_the_command_line_refuses_a_directory_in_use(tmp_path, holder):
    done = typed("data.n_neurons=20", "data.n_grid=4", "data.n_steps=20", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert f"in use by process {holder.pid}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_jobs_trained_together_take_the_locks_too(tmp_path, holder, capsys):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        options = checked(compose("train", ["data.n_neurons=20", "data.n_grid=4", "experiment_name=test"]))
    train_together([(options, tmp_path)], Console(width=300))
    assert f"in use by process {holder.pid}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    store = RunStore(tmp_path)
    store.checkpoints.mkdir()
    left = [tmp_path / ".latents.npz.123.part", store.checkpoints / ".loadings.ckpt.part"]
    kept = [tmp_path / "latents.npz", store.checkpoints / "loadings.ckpt"]
    for path in (*left, *kept):
        path.write_text("")
    store.remove_leftovers()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
