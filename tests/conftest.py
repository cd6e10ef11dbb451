"""Before torch is imported: threads that wait without spinning, as train.py has it; else other work on the same cores
makes the tests several times slower."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
# The same sums whichever process makes them, as runs of one seed are compared byte for byte.
os.environ.setdefault("MKL_CBWR", "AUTO")

import shutil
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session", autouse=True)
def interpolations_parsed_once():
    """OmegaConf parses `${...}` each time it is met, the same few in every command that is tested."""
    import omegaconf._utils
    import omegaconf.base
    from omegaconf.grammar_parser import parse

    once = lru_cache(maxsize=None)(parse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omegaconf._utils, "parse", once)
        patch.setattr(omegaconf.base, "parse", once)
        yield


@pytest.fixture(scope="module")
def experiments_importable():
    """The scripts of experiments/ import one another by name; they may set the number of threads."""
    import torch

    folder, threads = str(Path(__file__).resolve().parent.parent / "experiments"), torch.get_num_threads()
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    torch.set_num_threads(threads)


@pytest.fixture
def few_measures(monkeypatch):
    """For runs in this process of which a test reads no measure of sampled networks."""
    from commands import measure_little

    measure_little(monkeypatch)


@pytest.fixture
def no_measures(monkeypatch):
    """For runs in this process of which a test reads the stages and the sampled network alone."""
    from connector.launch import job
    from connector.stages.results import Results

    monkeypatch.setattr(Results, "measures", lambda results: {})
    monkeypatch.setattr(job, "measures_of_fit", lambda *_: {})


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run of the main experiment: a directory of this process's own, and what the command said.

    Where several processes test, the first one that needs it makes it; each gets a copy.
    """
    from commands import SMALL, measure_little, typed
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    said = shared.with_suffix(".txt")
    with FileLock(shared.with_suffix(".lock")):
        if not said.exists():
            with pytest.MonkeyPatch.context() as patch:
                measure_little(patch)
                done = typed(*SMALL, f"hydra.run.dir={shared}")
            assert done.returncode == 0, done.stdout + done.stderr
            said.write_text(done.stdout)
    directory = tmp_path_factory.mktemp("runs") / "one"
    shutil.copytree(shared, directory)
    return directory, SimpleNamespace(stdout=said.read_text().replace(str(shared), str(directory)))
