"""A run that cannot go on says in two lines where it stopped, what is kept and what to do; a stopped one goes on."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import ROOT, typed
from pytorch_lightning.callbacks import Callback
from test_interruption import Interrupts, best_flow, flow, results

from connector import interruption
from connector.errors import RunFailure, UserError, end_state, explain, numerical_failure
from connector.files import write_npz
from connector.lrrnn.handover import FittedDynamics
from connector.runs.store import RunStore
from connector.stages import checkpoints


def told(error, tmp_path, stage="loadings"):
    said = explain(error, stage, tmp_path)
    assert isinstance(said, RunFailure)
    assert len(str(said).splitlines()) == 2
    return str(said)


def test_each_kind_of_failure_has_its_words_and_mistakes_stay_mistakes(tmp_path):
    mistake = UserError("a", "b")
    assert explain(mistake, "lrrnn", tmp_path) is mistake
    assert "loadings stopped: no space is left" in told(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert "connectivity.loadings_batch_size" in told(MemoryError(), tmp_path)
    of_torch = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")
    assert "memory is exhausted" in told(of_torch, tmp_path)
    assert "larger connectivity.regularizer" in told(np.linalg.LinAlgError("Singular matrix"), tmp_path, "outputs")
    other = told(KeyError("something"), tmp_path)
    assert "KeyError" in other
    assert "train.log has the traceback" in other
    with pytest.raises(torch.linalg.LinAlgError) as singular:
        torch.linalg.cholesky(-torch.eye(2))
    assert "cannot be solved" in told(singular.value, tmp_path)


def test_a_full_disk_is_known_behind_the_errors_that_follow_it(tmp_path):
    with pytest.raises(ValueError, match="closing") as found:  # noqa: PT012
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise ValueError("closing a half-written archive")  # noqa: B904
    assert "no space is left" in told(found.value, tmp_path)


def test_a_file_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    path = tmp_path / "a.npz"
    write_npz(path, {"a": np.zeros(3)})
    before, child = path.read_bytes(), os.fork()
    if child == 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_npz(path, {"a": np.random.default_rng(0).normal(size=100_000)})
        except BaseException as error:
            os._exit(17 if "no space" in str(explain(error, "lrrnn", tmp_path)) else 18)
        os._exit(19)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_in_a_sweep_is_told_in_its_own_words():
    failure = numerical_failure("lrrnn", "the training loss is nan", "step 3 (epoch 1)")
    assert end_state(failure) == "failed (1): lrrnn stopped at step 3 (epoch 1): the training loss is nan."


class Diverges(Callback):
    """The weights become infinite after a step of epoch 3."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.current_epoch == 3:
            next(module.parameters()).grad.fill_(math.inf)


def test_a_training_that_diverges_names_step_and_last_good_state(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(RunFailure, match="outputs stopped at step") as found:
        flow(tmp_path, Diverges())
    assert "(epoch 4)" in found.value.where
    (last,) = (tmp_path / "checkpoints" / "outputs-mark").glob("last-*.ckpt")
    assert str(last) in found.value.kept
    assert last.name.startswith("last-00003-")
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for name, value in state.items() if "velocity" in name)
    assert not (tmp_path / "checkpoints" / "outputs.ckpt").exists()


def test_hand_overs_that_are_not_finite_are_not_written(tmp_path):
    z = torch.full((2, 3, 1), math.nan)
    inputs = FittedDynamics(
        SimpleNamespace(z=z, drive=None), SimpleNamespace(m=torch.ones(2, 1), b=None, d=None), None, "tanh"
    )
    with pytest.raises(RunFailure, match="not finite"):
        RunStore(tmp_path).write_stage_inputs(inputs)


class Terminated(Callback):
    """SIGTERM in the middle of epoch 2."""

    def on_train_batch_start(self, trainer, module, batch, number):
        if trainer.current_epoch == 2 and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def handled(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(interruption, "_asked_at", None)
    interruption.install()
    yield
    signal.signal(signal.SIGTERM, before)
    interruption._installed = False


def test_sigterm_finishes_the_epoch_keeps_it_and_leaves_with_143(tmp_path, handled, monkeypatch):
    metrics, _ = best_flow(tmp_path / "through", Interrupts())
    with pytest.raises(SystemExit) as left:
        best_flow(tmp_path / "stopped", Terminated())
    assert left.value.code == 143
    monkeypatch.setattr(interruption, "_asked_at", None)  # a new process
    watch = Interrupts()
    again, _ = best_flow(tmp_path / "stopped", watch)
    assert watch.trained == [3, 4]
    assert again == metrics
    assert results(tmp_path / "stopped") == results(tmp_path / "through")


def test_an_epoch_that_takes_too_long_is_left_where_it_is(tmp_path, handled, monkeypatch):
    monkeypatch.setattr(interruption, "GRACE_S", -1.0)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(SystemExit) as left:
        best_flow(tmp_path, Terminated())
    assert left.value.code == 143
    watch = Interrupts()
    monkeypatch.setattr(interruption, "_asked_at", None)
    best_flow(tmp_path, watch)
    assert watch.trained == [2, 3, 4]


def test_outside_of_training_sigterm_leaves_at_once(handled):
    with pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143


class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_that_comes_while_an_object_is_deleted_is_answered_after_it(handled):
    Dying()
    with pytest.raises(SystemExit) as left:
        time.sleep(5)
    assert left.value.code == 143


def test_what_is_said_to_be_kept_of_an_interrupted_run_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY_S", 0.0)
    assert "starts from the beginning" in interruption.goes_on(tmp_path / "nowhere")
    store = RunStore(tmp_path)
    store.note_invocation({})
    assert "starts from the beginning" in interruption.goes_on(tmp_path)
    store.finish_stage("lrrnn", "mark", 1.0, {})
    store.finish_stage("loadings", "mark", 1.0, {})
    assert interruption.goes_on(tmp_path).endswith("resumes from what is finished (lrrnn, loadings)")
    with pytest.raises(KeyError, match="interrupted"):
        best_flow(tmp_path, Interrupts(3))
    assert interruption.goes_on(tmp_path).endswith("resumes from the last checkpoint of the stage outputs")


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [(signal.SIGINT, 130, "Ctrl-C"), pytest.param(signal.SIGTERM, 143, "SIGTERM", marks=pytest.mark.slow)],
)
def test_an_interrupted_command_leaves_one_line_and_no_traceback(tmp_path, sent, code, word):
    """Stopped in its first stage, before any checkpoint is written."""
    small = [
        "data.n_neurons=40",
        "data.n_grid=5",
        "data.n_steps=20",
        "data.observation=spikes",
        "lrrnn.max_epochs=100000",
    ]
    more = ["lrrnn.inference=encoder", "trainer.threads=1", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "train.py"), *small, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            while "lrrnn: baseline" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(sent)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()  # nothing where it has ended; else it would train on, and this test wait for it
    assert process.returncode == code
    assert len(said.strip().splitlines()) == 1
    log = (tmp_path / "run" / "train.log").read_text()
    assert "Traceback" not in log + said
    assert f"the job ended early ({word}); " in log.splitlines()[-1]
    # What is said is what is there: a checkpoint that SIGTERM, during training, has time to write; or nothing.
    kept = list((tmp_path / "run" / "checkpoints").glob("*/last-*.ckpt"))
    assert ("from the last checkpoint of the stage lrrnn" if kept else "starts from the beginning") in said
    assert interruption.goes_on(tmp_path / "run") in log.splitlines()[-1]
    assert RunStore(tmp_path / "run").manifest()["state"] in log.splitlines()[-1]


def test_the_command_line_says_in_two_lines_that_training_diverged(tmp_path):
    small = ["data.n_neurons=40", "data.n_grid=5", "data.n_steps=20", "report=false", "trainer.progress=false"]
    wild = ["connectivity.loadings_learning_rate=1e30", "connectivity.early_stopping=false", "trainer.threads=1"]
    done = typed(*small, *wild, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: loadings stopped at ")
    assert "connectivity.loadings_learning_rate" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()
    state = RunStore(tmp_path / "run").manifest()["state"]
    assert state == f"failed (1): {done.stderr.splitlines()[0].removeprefix('Error: ')}"
    assert RunStore(tmp_path / "run").read_stage_inputs().latents.rank == 2  # what was finished is there
