"""Continuous recordings in pieces: what they hold, and that no set has samples next to another's."""

import h5py
import numpy as np
import pytest
import torch

from connector.data.arrays import load_arrays
from connector.data.folds import fold_of
from connector.data.modules import FileDataModule
from connector.errors import UserError
from connector.types import Recording

NEURONS = 4


@pytest.fixture
def trace():
    """(neurons, time), 3 minutes at 10 Hz."""
    return np.tanh(np.cumsum(np.random.default_rng(3).normal(size=(NEURONS, 1803)), 1) / 20)


def save(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


def load(path, **options):
    return load_arrays(path, axes=["neuron", "time"], activity="x", bin_s=0.1, tau=0.5, **options)


@pytest.mark.parametrize("axes", [["neuron", "time"], ["time", "neuron"]])
def test_pieces_side_by_side_are_the_recording(tmp_path, trace, axes):
    inputs = np.arange(1803.0)
    path = save(tmp_path, x=trace if axes[0] == "neuron" else trace.T, u=inputs)
    got = load_arrays(path, activity="x", axes=axes, inputs="u", bin_s=0.1, tau=0.5, piece_s=2)
    assert got.activity.shape == (90, 20, NEURONS)
    assert np.allclose(got.activity.reshape(-1, NEURONS), trace.T[:1800], atol=1e-6)
    assert np.array_equal(got.inputs.reshape(-1), inputs[:1800])
    assert np.allclose(got.trial_times_s, 2.0 * np.arange(90))
    assert got.stretches.tolist() == [[0, 20 * i] for i in range(90)]
    assert got.gap == 20
    assert any("trials are 90 successive pieces of 2 s (20 samples) of one recording" in note for note in got.notes)
    assert any("3 samples are in no piece" in note for note in got.notes)


def test_samples_that_are_nan_in_all_neurons_are_in_no_piece(tmp_path, trace):
    trace[:, 105:131] = np.nan
    got = load(save(tmp_path, x=trace), piece_s=2)
    first = got.stretches[:, 1].tolist()
    assert first == [*range(0, 100, 20), *range(131, 1791, 20)]
    assert np.allclose(got.activity, np.stack([trace[:, a : a + 20].T for a in first]), atol=1e-6)
    trace[0, 500] = np.nan
    with pytest.raises(UserError, match="1 NaN or infinite entries within"):
        load(save(tmp_path, x=trace), piece_s=2)


def test_trials_are_cut_each_by_itself(tmp_path):
    draw = np.random.default_rng(1)
    x = np.tanh(draw.normal(size=(3, 50, NEURONS)))
    path = save(tmp_path, x=x, n=np.array([50, 44, 8]), when=np.array([0.0, 100.0, 200.0]))
    got = load_arrays(path, activity="x", lengths="n", times="when", piece_s=1.5, gap_s=0, bin_s=0.1, tau=1)
    assert got.stretches.tolist() == [[0, 0], [0, 15], [0, 30], [1, 0], [1, 15]]
    assert np.allclose(got.activity[4], x[1, 15:30], atol=1e-6)
    assert np.allclose(got.trial_times_s, [0, 1.5, 3, 100, 101.5])


def test_spike_times_without_trials(tmp_path):
    draw = np.random.default_rng(0)
    counts = draw.poisson(1.0, size=(600, NEURONS))
    counts[200:400] = 0  # the recording paused
    step, unit = np.repeat(np.argwhere(counts), counts[counts > 0], axis=0).T
    times = 40.0 + 0.1 * (step + draw.uniform(0.05, 0.95, len(step)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k in range(NEURONS):
            file[f"{k}/t"] = np.sort(times[unit == k])
    got = load_arrays(tmp_path / "a.h5", spike_times="*/t", start_s=40, stop_s=100, bin_s=0.1, tau=0.5, piece_s=2)
    kept = np.r_[0:10, 20:30]
    assert np.array_equal(got.activity, counts.reshape(30, 20, NEURONS)[kept])
    assert np.allclose(got.trial_times_s, 40 + 2.0 * kept)
    assert any("10 pieces left out: no neuron fires" in note for note in got.notes)


def distances(recording, some, others):
    """Samples between pieces of the same recording, of each pair."""
    place, lengths = recording.stretches, recording.lengths
    found = []
    for a in some.tolist():
        for b in others.tolist():
            if place[a, 0] == place[b, 0]:
                ends = (place[a, 1] - place[b, 1] - lengths[b], place[b, 1] - place[a, 1] - lengths[a])
                found.append(int(max(ends)))
    return found


@pytest.mark.parametrize("gap", [0, 1, 20, 47])
@pytest.mark.parametrize("n_recordings", [1, 3])
def test_folds_are_blocks_with_gaps_and_every_piece_is_tested_once(gap, n_recordings):
    places = [[i, 20 * j + 3 * i] for i in range(n_recordings) for j in range(40)]
    order = np.random.default_rng(0).permutation(len(places))
    stretches = torch.tensor(places)[order]
    number = len(places)
    recording = Recording(
        torch.rand(number, 20, 2), "rates", torch.full((number,), 20), 0.1, "tanh", stretches=stretches, gap=gap
    )
    tested = []
    for k in range(1, 6):
        fold = fold_of(recording, k)
        sets = (fold.train, fold.validation, fold.test)
        tested += fold.test.tolist()
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert min(distances(recording, sets[one], sets[other]), default=gap) >= gap
        rank = np.argsort(np.lexsort((stretches[:, 1], stretches[:, 0])))
        assert np.ptp(rank[fold.test]) == len(fold.test) - 1  # neighbours
        together = torch.cat(sets)
        assert len(together.unique()) == len(together) >= number - 4 * (1 + gap // 20)
        assert len(together) == number if gap == 0 else len(together) < number
    assert sorted(tested) == list(range(number))


def test_a_gap_that_leaves_nothing_is_refused(tmp_path, trace):
    path = save(tmp_path, x=trace)
    module = FileDataModule(
        str(path),
        "arrays",
        reading={"activity": "x", "axes": ["neuron", "time"], "bin_s": 0.1, "tau": 0.5, "piece_s": 2.0, "gap_s": 100.0},
    )
    with pytest.raises(UserError, match=r"data\.gap_s or data\.piece_s"):
        module.setup()
    module.reading["gap_s"] = 4.0
    module.setup()
    assert "pieces for training, validation and test: 52, 16 and 18; in no set: 4" in module.recording.notes
    for options, words in (
        ({"piece_s": 0.1}, "of 2 to 1803 samples"),
        ({"piece_s": 500}, "of 2 to 1803 samples"),
        ({"gap_s": 1}, r"with data\.piece_s"),
        ({"piece_s": 2, "choices": "x"}, r"without data\.piece_s"),
    ):
        with pytest.raises(UserError, match=words):
            load(path, **options)
    with pytest.raises(UserError, match=r"data\.bin_s, the seconds between samples"):
        load_arrays(path, activity="x", axes=["neuron", "time"], piece_s=2)


def test_without_pieces_one_recording_is_one_trial_and_the_remedy_is_named(tmp_path, trace):
    path = save(tmp_path, x=trace)
    recording = load(path)
    assert recording.activity.shape == (1, 1803, NEURONS)
    with pytest.raises(UserError, match=r"data\.piece_s"):
        fold_of(recording)
    cut = load(path, piece_s=2)
    assert torch.equal(cut.trials(torch.tensor([3, 5])).stretches, torch.tensor([[0, 60], [0, 100]]))
