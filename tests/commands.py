"""The command line as a user types it, at sizes that a test can wait for."""

import contextlib
import io
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from connector import interruption
from connector.analysis.distances import dissimilarity
from connector.launch import command_line
from connector.stages import results

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
SMALL = [
    "data.n_neurons=200", "data.n_grid=8", "data.n_steps=60", "connectivity.loadings_epochs=40",
    "connectivity.outputs_epochs=4", "connectivity.outputs_loadings=2048", "lrrnn.max_epochs=1", "lrrnn.posterior_sweeps=4",
    "trainer.threads=1",  # one thread: sums in one order, whatever else the machine does
]  # fmt: skip


NETWORKS = 2


def measure_little(patch):
    """Fewer networks, neurons, states and draws of the truth than users get, for what a run in this process measures and draws."""
    sizes = {"N_NETWORKS": NETWORKS, "N_POSTERIOR": 10, "N_DRAWN": 4000, "N_STATES_LARGE": 200, "_N_DRAWS": 2}
    for name, value in sizes.items():
        patch.setattr(results, name, value)
    patch.setattr(results, "dissimilarity", partial(dissimilarity, n_draws=1))


def train(*arguments, cwd=ROOT, timeout=280):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def typed(*arguments, cwd=ROOT):
    """The same in this process, without waiting for imports: where neither a process's end nor its threads are tested."""
    out, err = io.StringIO(), io.StringIO()
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    GlobalHydra.instance().clear()
    command_line._raised.clear()
    command_line._directories.clear()
    argv = patch.object(sys, "argv", ["train.py", *map(str, arguments)])
    try:
        with argv, contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command_line.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
        interruption._installed = False
        torch.set_num_threads(threads)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
