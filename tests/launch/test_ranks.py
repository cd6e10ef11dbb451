"""Ranks that nothing has launched are refused; processes of one job end together, and the loss of one is said."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from calls import gone, is_there
from commands import ROOT, typed

from connector import interruption
from connector.errors import RunFailure, UserError
from connector.launch import distributed
from connector.launch.ranks import require_launched, require_numbers
from connector.runs.options import TrainerOptions
from connector.stages.training import check_trainer

LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "WORLD_SIZE", "MASTER_ADDR",
             "MASTER_PORT", "SLURM_NTASKS")  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "processes", "named"),
    [
        ({"RANK": "1"}, 1, "RANK=1"),
        ({"LOCAL_RANK": "2"}, 1, "LOCAL_RANK=2"),
        ({"SLURM_PROCID": "3"}, 1, "SLURM_PROCID=3"),
        ({"JSM_NAMESPACE_RANK": "1"}, 1, "JSM_NAMESPACE_RANK=1"),
        (LAUNCHED, 1, "LOCAL_RANK=1"),
        ({"RANK": "1"}, 2, "RANK=1 alone"),
        ({"NODE_RANK": "1"}, 2, "NODE_RANK=1 alone"),
        ({"LOCAL_RANK": "0"}, 2, "LOCAL_RANK=0 without MASTER_ADDR, MASTER_PORT, WORLD_SIZE"),
        (LAUNCHED | {"WORLD_SIZE": "4"}, 2, "WORLD_SIZE=4"),
        ({}, 1, None),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "0"}, 1, None),
        ({}, 2, None),
        (LAUNCHED, 2, None),
        (LAUNCHED | {"RANK": "1"}, 2, None),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 2, None),
        ({"NODE_RANK": "1", "MASTER_ADDR": "node1"}, 4, None),
    ],
)
def test_ranks_that_no_launcher_gave_are_refused(monkeypatch, environment, processes, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if named is None:
        return require_launched(processes)
    with pytest.raises(UserError) as refused:
        require_launched(processes)
    assert f"got {named}" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize("value", ["one", "-1", "1.5", "²"])
def test_a_rank_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("SLURM_PROCID", value)
    with pytest.raises(UserError, match="a whole number as SLURM_PROCID"):
        require_numbers()


def test_the_command_with_a_rank_left_in_the_environment_says_so_and_ends_with_2(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    done = typed("data.n_neurons=20", "data.n_grid=4", "data.n_steps=20", cwd=tmp_path)
    assert done.returncode == 2
    assert "expected no rank in the environment of a job of one process; got RANK=1." in done.stderr
    assert "unset RANK" in done.stderr.lower().replace("unset rank", "unset RANK")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_find_unused_parameters_true_spawn"])
def test_strategies_whose_training_stays_in_other_processes_are_refused(strategy):
    options = TrainerOptions(
        name="x", accelerator="cpu", devices=2, num_nodes=1, strategy=strategy, precision="32-true", progress=False, threads=1
    )  # fmt: skip
    with pytest.raises(UserError, match=f"trainer.strategy={strategy}"):
        check_trainer(options)


# --- several processes ------------------------------------------------------------------------------------------------

BELONGS = """
import os, subprocess, sys, time
child = "import os, time; from connector import interruption; interruption.belong_to_parent(); print(os.getpid(), flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child], env=os.environ | {"CONNECTOR_PARENT": str(os.getpid())})
time.sleep(60)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are looked up in /proc")
def test_a_process_that_belongs_to_another_ends_with_it(tmp_path):
    with subprocess.Popen([sys.executable, "-c", BELONGS], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_there(child)
        parent.kill()
    assert gone(child)


def test_ranks_are_started_as_belonging_to_the_first_and_the_command_heeds_it(monkeypatch):
    seen, ended = {}, []
    distributed._starting(lambda _: seen.update(os.environ))(SimpleNamespace(procs=[]))
    assert seen[interruption.PARENT] == str(os.getpid())
    assert interruption.PARENT not in os.environ
    monkeypatch.setenv(interruption.PARENT, "17")
    monkeypatch.setattr(interruption, "end_with", ended.append)
    typed("--cfg", "job")
    assert ended == [17]


def process(code):
    return subprocess.Popen([sys.executable, "-c", code])


def test_the_loss_of_a_rank_before_it_has_joined_is_said(tmp_path):
    ready, lost = process("import time; time.sleep(60)"), process("import os; os.kill(os.getpid(), 9)")
    (tmp_path / "1").touch()
    try:
        with pytest.raises(RunFailure) as failed:
            distributed._wait_until_ready([ready, lost], tmp_path)
    finally:
        ready.kill()
        ready.wait()
    assert f"process {lost.pid}, rank 2 of the job, ended before it had joined (signal 9)" in str(failed.value)
    assert len(str(failed.value).splitlines()) == 2


def test_a_rank_that_ends_well_before_it_has_joined_is_lost_too(tmp_path):
    with pytest.raises(RunFailure, match=r"before it had joined \(exit code 0\)"):
        distributed._wait_until_ready([process("")], tmp_path)


def works_on():
    for _ in range(3000):
        time.sleep(0.01)


def test_the_loss_of_a_rank_ends_the_training_of_the_first(monkeypatch):
    monkeypatch.setattr(distributed, "_GRACE_S", 0.3)
    other = process("import time; time.sleep(60)")
    distributed.watch([other])
    os.kill(other.pid, signal.SIGKILL)
    with pytest.raises(distributed.RankLost):
        works_on()
    assert f"process {other.pid}, rank 1 of the job, ended early (signal 9)" in str(distributed.lost_rank())
    assert distributed.lost_rank() is None  # once
    distributed.leave_process_group(distributed.rank_variables())


BLOCKED = """
import ctypes, subprocess, sys
from connector.launch import distributed
distributed._GRACE_S = 0.3
distributed.tell(lambda state: print("noted", state))
distributed.watch([subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])])
ctypes.CDLL(None).sleep(60)  # a call that Python cannot interrupt, as the rendezvous is
"""


@pytest.mark.slow
def test_a_first_rank_that_waits_in_vain_is_ended_with_a_word():
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "rank 1 of the job, ended early (signal 9)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert done.stdout.startswith("noted failed (1): training stopped")


def test_what_is_over_is_not_watched_and_no_process_is_left():
    other = process("import time; time.sleep(60)")
    distributed.watch([other])
    distributed.stop_watching()
    distributed.leave_process_group(distributed.rank_variables(), failed=True)
    assert other.poll() == -9
    assert distributed.lost_rank() is None
