"""What jobs of one process share: kept by content, never out of date, bounded in memory."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from commands import typed

from connector import memo
from connector.data import modules


@dataclass(frozen=True)
class Given:
    x: torch.Tensor
    name: str = "a"


@pytest.fixture
def calls():
    memo.share(10_000)
    made = []

    @memo.remembered
    def double(given, *, times=2):
        made.append(times)
        return {"found": times * given.x}

    double.made = made
    yield double
    memo.share(0)


def test_equal_content_is_computed_once_and_other_content_anew(calls):
    x = torch.arange(4.0)
    first = calls(Given(x))
    first["found"].zero_()  # a caller's copy is its own
    assert torch.equal(calls(Given(x.clone()), times=2)["found"], 2 * x)
    assert len(calls.made) == 1
    for other in (Given(x.double()), Given(x.reshape(2, 2)), Given(x, "b"), Given(x + 1)):
        assert torch.equal(calls(other)["found"], 2 * other.x)
    calls(Given(x), times=3)
    assert len(calls.made) == 6
    x += 1  # changed in place
    assert torch.equal(calls(Given(x))["found"], 2 * x)


def test_memory_is_bounded_and_the_oldest_goes_first(calls):
    parts = [Given(torch.full((1000,), float(n))) for n in range(4)]  # 4 kB each, two fit
    for part in (*parts, parts[3], parts[2], parts[0]):
        calls(part)
    assert sum(size for _, size in memo._kept.values()) <= 10_000
    assert len(calls.made) == 5  # all four, and the first again
    calls(Given(torch.zeros(5000)))
    assert len(memo._kept) == 0  # what is larger than all that is allowed is not kept
    memo.share(0)
    calls(parts[0])
    assert len(memo._kept) == 0


def test_what_has_no_key_is_computed_each_time(calls):
    for _ in range(2):
        assert memo.once(object(), lambda: calls.made.append("made")) is None
    assert calls.made == ["made"] * 2


def test_jobs_of_a_sweep_read_a_file_once_until_it_changes(tmp_path, monkeypatch):
    def written(seed):
        rates = np.tanh(np.random.default_rng(seed).standard_normal((10, 12, 6)).cumsum(1) / 3)
        np.savez(tmp_path / "A.npz", rates=rates)

    whole = modules.FileDataModule.load
    loads = []

    def load(module):
        before = len(memo._kept)
        recording = whole(module)
        loads.append((float(recording.activity.sum()), len(memo._kept) > before))
        return recording

    monkeypatch.setattr(modules.FileDataModule, "load", load)
    sweep = [
        "-m",
        "data=npz",
        f"data.path={tmp_path / 'A.npz'}",
        "stages=[lrrnn]",
        "lrrnn.rank=1",
        "trainer.threads=1",
        "data.n_folds=3",
    ]
    for seed in (1, 2):
        written(seed)
        done = typed(*sweep, "data.fold=1,2", f"hydra.sweep.dir={tmp_path / str(seed)}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [anew for _, anew in loads] == [True, False] * 2
    sums = [total for total, _ in loads]
    assert len(set(sums[:2])) == len(set(sums[2:])) == 1
    assert sums[0] != sums[2]
