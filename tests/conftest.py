"""Before torch is imported: threads that wait without spinning, as train.py has it; else other work on the same cores
makes the tests several times slower."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def experiments_importable():
    """The scripts of experiments/ import one another by name; they may set the number of threads."""
    import torch

    folder, threads = str(Path(__file__).resolve().parent.parent / "experiments"), torch.get_num_threads()
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run of the main experiment: its directory, and what the command said. Copy it before changing it."""
    from test_train import SMALL, train

    directory = tmp_path_factory.mktemp("runs") / "one"
    done = train(*SMALL, f"hydra.run.dir={directory}")
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, done
