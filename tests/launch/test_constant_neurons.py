"""Neurons that say nothing in the training trials change nothing: all numbers are those of the recording without them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import typed

from connector.data.folds import fold
from connector.data.modules import FileDataModule

QUICK = [
    "stages=[lrrnn]", "report=false", "trainer.threads=1", "trainer.progress=false", "lrrnn.max_epochs=1", "lrrnn.n_units=16",
    "data.n_folds=3",
]  # fmt: skip
TRIALS, STEPS = 15, 20


def activity(kind):
    """Ten neurons that read a slow rotation; rates, or counts of a few spikes a bin."""
    rng = np.random.default_rng(1)
    phase = rng.uniform(0, 2 * np.pi, size=(TRIALS, 1)) + 0.15 * np.arange(STEPS)
    h = np.stack([np.cos(phase), np.sin(phase)], axis=-1) @ rng.normal(size=(2, 10))
    return np.tanh(h) if kind == "rates" else rng.poisson(np.log1p(np.exp(h)))


def files(kind):
    """The activity with and without three more neurons: zero, constant (of counts: zero), silent in the training trials."""
    x = activity(kind)
    more = np.ones((TRIALS, STEPS, 3), dtype=x.dtype) * np.array([0, kind == "rates", 0])
    later = np.setdiff1d(np.arange(TRIALS), fold(TRIALS, 1, 3).train.numpy())
    more[later[:, None], 5:10, 2] = 1  # active, but never where the fit sees it
    return {"with": np.concatenate([x[..., :4], more, x[..., 4:]], axis=-1), "without": x}


def test_each_fold_leaves_out_the_neurons_that_are_silent_in_its_own_training_trials(tmp_path):
    for name, array in files("spikes").items():
        np.savez(tmp_path / f"{name}.npz", spikes=array)
    for k, left_out in ((1, ("4", "5", "6")), (2, ("4", "5")), (3, ("4", "5"))):
        both = [FileDataModule(str(tmp_path / f"{name}.npz"), fold_number=k, n_folds=3) for name in ("with", "without")]
        for data in both:
            data.setup()
        assert both[0].left_out == left_out
        assert both[0].recording.n_neurons == 13 - len(left_out) == both[0].sizes.n_neurons
        assert both[0].recording.neuron_names[4] == ("6" if k > 1 else "7")
        assert (k > 1) or torch.equal(both[0].recording.activity, both[1].recording.activity)


@pytest.mark.parametrize("kind", ["rates", pytest.param("spikes", marks=pytest.mark.slow)])
def test_neurons_silent_in_the_training_trials_leave_every_number(tmp_path, kind):
    found = []
    for name, array in files(kind).items():
        np.savez(tmp_path / f"{name}.npz", **{kind: array})
        run = tmp_path / name
        done = typed("data=npz", f"data.path={tmp_path / name}.npz", *QUICK, f"hydra.run.dir={run}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        metrics = json.loads((run / "metrics.json").read_text())
        found.append(({k: v for k, v in metrics.items() if "timing" not in k}, (run / "latents.npz").read_bytes()))
        said = "3 of 13 neurons are" in done.stdout
        assert said == (name == "with")
    assert found[0] == found[1]


def test_folds_are_pooled_over_the_neurons_that_all_have(experiments_importable):
    from folds import shared_neurons

    def run(*names):
        return SimpleNamespace(responses={"neurons": np.array(names), "observed": np.zeros((1, 2, len(names)))})

    columns = shared_neurons([run("a", "b", "c", "d"), run("d", "b", "a"), run("b", "c", "a", "d")])
    assert [own.tolist() for own in columns] == [[0, 1, 3], [2, 1, 0], [2, 0, 3]]
    older = [SimpleNamespace(responses={"observed": np.zeros((1, 2, 3))}) for _ in range(2)]
    assert [own.tolist() for own in shared_neurons(older)] == [[0, 1, 2], [0, 1, 2]]
