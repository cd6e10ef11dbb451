"""Trials that follow one another along the time axis: tables with a row for each trial and time."""

import numpy as np
import pytest
import torch

from connector.data.arrays import load_arrays
from connector.errors import UserError

DRAW = np.random.default_rng(5)
LENGTHS = [5, 7, 6, 5]
TRIALS = [DRAW.normal(size=(n, 3)) for n in LENGTHS]
KEYS = {"activity": "n*", "axes": ["neuron", "time"], "bin_s": 0.01}


def _rows(labels=(1, 2, 3, 5)):
    """(trial, time, 3 neurons, stimulus, cue) of each sample."""
    parts = [
        np.c_[np.full(len(x), label), 0.01 * np.arange(len(x)), x, 10 * x[:, :1], np.full(len(x), i % 2)]
        for i, (label, x) in enumerate(zip(labels, TRIALS))
    ]
    return np.concatenate(parts)


def _write(path, rows, names="trial,time,n0,n1,n2,stim,cue"):
    np.savetxt(path, rows, delimiter=",", header=names, comments="")
    return path


def _expected(x=TRIALS):
    padded = np.zeros((len(x), max(map(len, x)), 3))
    for row, part in zip(padded, x):
        row[: len(part)] = part
    return torch.as_tensor(padded, dtype=torch.float32)


def _same(recording, x=TRIALS):
    assert recording.lengths.tolist() == [len(part) for part in x]
    torch.testing.assert_close(recording.activity[:, : max(map(len, x))], _expected(x))


@pytest.mark.parametrize("order", ["trial", "time"])
def test_rows_are_grouped_by_their_trial(tmp_path, order):
    rows = _rows()
    rows = rows if order == "trial" else rows[np.lexsort((rows[:, 0], rows[:, 1]))]
    path = _write(tmp_path / "a.csv", rows)
    recording = load_arrays(path, sample_trials="trial", inputs="stim", choices="cue", conditions="cue", **KEYS)
    _same(recording)
    torch.testing.assert_close(recording.inputs[..., 0], 10 * recording.activity[..., 0])
    assert recording.choices.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("trials", "kept"), [([2, 5], [1, 3]), ("cue", [1, 3]), ([True, False, False, True], [0, 3])])
def test_trials_are_kept_by_their_names_or_a_mask(tmp_path, trials, kept):
    recording = load_arrays(_write(tmp_path / "a.csv", _rows()), sample_trials="trial", trials=trials, **KEYS)
    _same(recording, [TRIALS[i] for i in kept])


def test_arrays_of_other_files_have_trials_along_time_too(tmp_path):
    rows = _rows()
    names = np.repeat(["c", "a", "", "b"], LENGTHS)
    np.savez(tmp_path / "a.npz", r=rows[:, 2:5], name=names)
    keys = {"activity": "r", "axes": ["time", "neuron"], "sample_trials": "name"}
    recording = load_arrays(tmp_path / "a.npz", **keys)
    _same(recording, [TRIALS[0], TRIALS[1], TRIALS[3]])
    assert any("6 samples left out" in note for note in recording.notes)
    pieces = load_arrays(tmp_path / "a.npz", bin_s=0.01, piece_s=0.04, **keys)  # none goes beyond a trial
    torch.testing.assert_close(pieces.activity, _expected([TRIALS[0][:4], TRIALS[1][:4], TRIALS[3][:4]]))


@pytest.mark.parametrize("name", ["trial", "Trial", "trial_id", "TrialNumber", "trial no", "trials"])
@pytest.mark.parametrize("more", [{}, {"piece_s": 0.04}])
def test_a_column_of_trials_is_not_ignored(tmp_path, name, more):
    path = _write(tmp_path / "a.csv", _rows(), f"{name},time,n0,n1,n2,stim,cue")
    with pytest.raises(UserError, match=rf"sample_trials=\"?{name}") as error:
        load_arrays(path, **more, **KEYS)
    assert len(str(error.value).splitlines()) == 2
    _same(load_arrays(path, sample_trials=name, **KEYS))


@pytest.mark.parametrize(
    ("labels", "names"),
    [((1, 1, 1, 1), "trial,time,n0,n1,n2,stim,cue"), ((1, 2, 3, 4), "trial_time,time,n0,n1,n2,stim,cue")],
)
def test_other_columns_are_no_trials(tmp_path, labels, names):
    load_arrays(_write(tmp_path / "a.csv", _rows(labels), names), piece_s=0.05, **KEYS)


def test_the_activity_may_be_one_column_called_unit(tmp_path):
    path = _write(tmp_path / "a.csv", np.c_[0.01 * np.arange(40), np.arange(40) % 3], "time,unit")
    recording = load_arrays(path, activity="unit*", axes=["neuron", "time"], bin_s=0.01, piece_s=0.1)
    assert recording.activity.shape == (4, 10, 1)


def test_rows_of_single_neurons_are_refused_and_the_advice_works(tmp_path):
    pandas = pytest.importorskip("pandas")
    wide = pandas.DataFrame(_rows()[:, :5], columns=["trial", "time", 0, 1, 2])
    table = wide.melt(["trial", "time"], var_name="unit", value_name="n").sort_values(["trial", "time"])
    table.to_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"pivot\(index=\['trial', 'time'\], columns='unit', values='n'\)"):
        load_arrays(tmp_path / "a.csv", activity="n", axes=["time"])
    with pytest.raises(UserError, match=r"column for each neuron.*\n.*values='n'"):
        load_arrays(tmp_path / "a.csv", sample_trials="trial", **KEYS)
    pivoted = pandas.read_csv(tmp_path / "a.csv").pivot(index=["trial", "time"], columns="unit", values="n")
    pivoted.to_csv(tmp_path / "b.csv")
    _same(load_arrays(tmp_path / "b.csv", activity="b", axes=["time", "neuron"], sample_trials="trial"))


@pytest.mark.parametrize(
    ("labels", "keys", "words"),
    [
        ((1, 2, 1, 2), {}, "2 trials in 4 stretches"),
        ((1, 2, 3, 4), {"conditions": "time"}, r"data\.conditions with one value in each trial"),
        ((1, 2, 3, 4), {"trial_starts": [0.0]}, r"without data\.trial_starts"),
        ((1, 2, 3, 4), {"lengths": "cue"}, r"without data\.lengths"),
        ((np.nan,) * 4, {}, "0 of 23"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, labels, keys, words):
    with pytest.raises(UserError, match=words):
        load_arrays(_write(tmp_path / "a.csv", _rows(labels)), sample_trials="trial", **keys, **KEYS)


def test_activity_with_trials_has_no_trial_of_each_sample(tmp_path):
    np.savez(tmp_path / "a.npz", r=DRAW.normal(size=(4, 6, 3)), name=np.arange(6))
    with pytest.raises(UserError, match=r"data\.sample_trials with data\.axes without trial"):
        load_arrays(tmp_path / "a.npz", activity="r", sample_trials="name")
