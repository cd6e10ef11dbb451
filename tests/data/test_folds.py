"""The rotation of folds."""

import re

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold

from connector.data.folds import fold, fold_of, varying, without_constant
from connector.data.npz import load_npz
from connector.errors import UserError
from connector.types import Loadings, Recording


@pytest.mark.parametrize(("n_trials", "n_folds"), [(400, 5), (23, 4), (3, 3)])
def test_folds_partition_and_rotate(n_trials, n_folds):
    folds = [fold(n_trials, k, n_folds) for k in range(1, n_folds + 1)]
    for k, each in enumerate(folds):
        together = torch.cat([each.train, each.validation, each.test])
        assert sorted(together.tolist()) == list(range(n_trials))
        assert torch.equal(each.validation, folds[(k + 1) % n_folds].test)
        assert all(len(part) for part in (each.train, each.validation, each.test))
    tested = torch.cat([each.test for each in folds])
    assert sorted(tested.tolist()) == list(range(n_trials))


def test_folds_are_those_of_scikit_learn_and_depend_on_the_seed():
    expected = [test for _, test in KFold(5, shuffle=True, random_state=17).split(range(101))]
    assert fold(101, 3).test.tolist() == expected[2].tolist()
    assert fold(101, 3, seed=17).test.tolist() == fold(101, 3).test.tolist() != fold(101, 3, seed=18).test.tolist()


@pytest.mark.parametrize("arguments", [(4, 1, 5), (100, 0, 5), (100, 6, 5), (100, 1, 2)])
def test_impossible_folds_are_refused(arguments):
    with pytest.raises(UserError):
        fold(*arguments)


def test_the_remedy_for_too_few_trials_works():
    for n_trials in (3, 4):
        with pytest.raises(UserError, match=rf"choose data\.n_folds={n_trials}|Choose data\.n_folds={n_trials}"):
            fold(n_trials, 1, 5)
        assert len(fold(n_trials, 1, n_trials).train)
    for n_trials in (1, 2):  # no number of folds can help
        with pytest.raises(UserError, match="3 trials or more") as error:
            fold(n_trials, 1, 3)
        assert "n_folds" not in str(error.value)
        assert ".reshape(n, T, -1)" in str(error.value)


@pytest.mark.parametrize("kind", ["rates", "spikes"])
def test_the_cut_of_one_long_trial_that_the_message_names_works(tmp_path, kind):
    draw = np.random.default_rng(0)
    z = np.cumsum(draw.normal(size=(1, 103, 2)), 1)
    long = {"rates": np.tanh(z), "spikes": draw.poisson(1.0, (1, 103, 2))}[kind]
    arrays = {kind: long, "externalinputs": draw.normal(size=(1, 103, 1))}
    np.savez(tmp_path / "long.npz", **arrays)
    with pytest.raises(UserError, match="3 trials or more") as error:
        fold(len(load_npz(tmp_path / "long.npz").lengths))
    n = int(re.search(r"n at least (\d+)", str(error.value))[1])
    names = {"n": n, "T": 103 // n}
    cut = re.search(r"x\[.*?\)", str(error.value))[0]
    np.savez(tmp_path / "cut.npz", **{name: eval(cut, names | {"x": x}) for name, x in arrays.items()})
    recording = load_npz(tmp_path / "cut.npz")
    assert len(fold(len(recording.lengths)).train)
    seen, inputs = recording.activity.reshape(-1, 2), recording.inputs.reshape(-1, 1)
    assert np.allclose(seen, long[0, : n * names["T"]])
    assert np.allclose(inputs, arrays["externalinputs"][0, : n * names["T"]])


def recording(activity, kind="rates", **more):
    return Recording(activity, kind, torch.full((len(activity),), activity.shape[1]), 0.1, "tanh", **more)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_neurons_that_vary_in_the_training_trials_only_count(scale):
    """0 varies; 1 is zero, 2 constant, 3 constant but for rounding; 4 varies in test trials only, 5 in training ones only."""
    x = torch.randn(6, 20, 6, generator=torch.Generator().manual_seed(0)).tanh()
    train, test = torch.arange(4), torch.tensor([4, 5])
    x[..., 1], x[..., 2] = 0, 0.5
    x[..., 3] = 0.7 + 1e-8 * x[..., 3]
    x[train, :, 4] = x[test, :, 5] = 0.1
    assert varying(recording(scale * x), train).tolist() == [True, False, False, False, False, True]
    assert varying(recording(scale * x), test).tolist() == [True, False, False, False, True, False]


def test_a_faint_neuron_is_no_constant_one_and_what_lies_past_a_trials_end_does_not_count():
    x = torch.randn(6, 20, 3, generator=torch.Generator().manual_seed(0))
    x[..., 1] *= 1e-4
    x[:, :10, 2] = 0.0
    cut = Recording(x * (torch.arange(20) < 10)[:, None], "rates", torch.full((6,), 10), 0.1, "tanh")
    assert varying(cut, torch.arange(4)).tolist() == [True, True, False]


def test_what_is_left_out_is_named_and_all_that_belongs_to_a_neuron_goes_with_it():
    counts = torch.ones(5, 4, 3) * torch.tensor([0.0, 1.0, 2.0])
    counts[:, 0] = 0
    more = {"loadings": Loadings(torch.arange(3.0)[:, None]), "n": torch.arange(3.0)[:, None]}
    whole = recording(counts, "spikes", baseline_hz=torch.arange(15.0).reshape(5, 3), **more)
    cut, names = without_constant(whole, torch.arange(3))
    assert names == ("0",)
    assert cut.neuron_names == ("1", "2")
    assert "1 of 3 neurons are silent or constant in the training trials and left out (0, counted from 0)" in cut.notes
    assert torch.equal(cut.activity, counts[..., 1:])
    assert torch.equal(cut.loadings.m, torch.tensor([[1.0], [2.0]]))
    assert torch.equal(cut.n, torch.tensor([[1.0], [2.0]]))
    assert torch.equal(cut.baseline_hz, whole.baseline_hz[:, 1:])
    assert without_constant(cut, torch.arange(3)) == (cut, ())
    with pytest.raises(UserError, match="neurons whose spikes vary in the 2 training trials"):
        without_constant(recording(counts * (torch.arange(5) > 1)[:, None, None], "spikes"), torch.arange(2))


@pytest.mark.parametrize("hop", [10, 18, 20])
def test_sets_have_no_samples_in_common_where_trials_overlap(hop):
    """Sliding windows of 20 samples over one recording, 10 or 2 in common, or none; and a few trials that overlap."""
    begin = hop * torch.arange(60)
    if hop == 20:
        begin[7] -= 5
    windows = recording(torch.rand(60, 20, 3), stretches=torch.stack([torch.zeros_like(begin), begin], 1))
    parts = fold_of(windows)
    seen = [
        {int(t) for i in part for t in range(begin[i], begin[i] + 20)}
        for part in (parts.train, parts.validation, parts.test)
    ]
    assert all(not (a & b) for i, a in enumerate(seen) for b in seen[:i])
    assert len(parts.test) == 12
    assert len(parts.train) + len(parts.validation) >= 44
    if hop == 20:  # all other trials are dealt as ever
        assert torch.equal(parts.test, fold(60).test)
