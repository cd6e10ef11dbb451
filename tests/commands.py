"""The command line as a user types it, at sizes that a test can wait for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
SMALL = [
    "data.n_neurons=200", "data.n_grid=8", "data.n_steps=60", "connectivity.loadings_epochs=40",
    "connectivity.outputs_epochs=4", "connectivity.outputs_loadings=2048", "lrrnn.max_epochs=1",
    "trainer.threads=1",  # one thread: sums in one order, whatever else the machine does
]  # fmt: skip


def train(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
    )
