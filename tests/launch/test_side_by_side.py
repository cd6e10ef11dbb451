"""Calls in processes of their own: the loss of one spoils no other, and none outlives who started them."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from calls import gone, is_there, killed, left, number
from commands import ROOT, train

from connector.errors import RunFailure
from connector.launch.side_by_side import number_of, side_by_side


def test_a_lost_process_costs_its_call_and_no_other():
    calls = [partial(number, 0), partial(killed, 1), partial(number, 2), partial(left, 3), partial(number, 4)]
    found = side_by_side(2, calls)
    assert [found[i][0] for i in (0, 2, 4)] == [0, 2, 4]
    assert os.getpid() not in {found[i][1] for i in (0, 2, 4)}
    for i, ended in ((1, "signal 9"), (3, "exit code 3")):
        assert isinstance(found[i], RunFailure)
        assert f"job {i + 1} stopped: its process ended before it had done ({ended}); other jobs continue" in str(
            found[i]
        )
        assert len(str(found[i]).splitlines()) == 2
    assert not any(is_there(found[i][1]) for i in (0, 2, 4))


def test_jobs_are_counted_as_joblib_counts_them():
    assert number_of(3) == 3
    assert number_of(-1) >= 1
    assert number_of(-10_000) == 1


PARENT = """
import sys
from functools import partial
from connector.launch.side_by_side import side_by_side
from calls import waits
if __name__ == "__main__":
    side_by_side(2, [waits, waits])
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_killed_parent_leaves_no_process(tmp_path, how):
    script = tmp_path / "parent.py"
    code = "from connector import interruption; interruption.install()" if how == "SIGTERM" else ""
    script.write_text(code + PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(getattr(signal, how))
        assert all(gone(pid) for pid in workers)


SMALL = [
    "data.n_neurons=60", "data.n_grid=5", "data.n_steps=20", "lrrnn.max_epochs=1", "trainer.threads=1", "stages=lrrnn",
    "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
]  # fmt: skip
OWN = """
import os
from pytorch_lightning.callbacks import Callback

class Kill(Callback):
    def __init__(self, seed):
        self.seed = seed

    def setup(self, trainer, module, stage):
        if module.seed == self.seed:
            os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_killed_job(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    command = ["-m", *SMALL, "seed=1,2,3", f"hydra.sweep.dir={tmp_path / 's'}"]
    killing = ["callbacks.kill._target_=mine.Kill", "callbacks.kill.seed=2"]
    done = train(*command, *killing, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Sweep: 2 of 3 jobs done" in done.stdout
    assert done.stderr.startswith("Error executing job with overrides: [")
    assert ("Error: job 2 stopped: its process ended before it had done (signal 9)") in done.stderr
    assert "configuration" not in done.stderr
