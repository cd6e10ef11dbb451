"""Spike times in every layout become the counts that they were drawn from."""

import h5py
import numpy as np
import pytest
import torch
from matlab73 import cells, write_matlab73
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.errors import UserError

TRIALS, STEPS, NEURONS, BIN_S = 8, 20, 5, 0.02


@pytest.fixture
def spikes():
    """Counts (trials, steps, neurons), and an event for each spike: trial, neuron, seconds from the trial's start."""
    draw = np.random.default_rng(2)
    counts = draw.poisson(0.7, size=(TRIALS, STEPS, NEURONS))
    trial, step, neuron = np.repeat(np.argwhere(counts), counts[counts > 0], axis=0).T
    times = BIN_S * (step + draw.uniform(0.01, 0.99, len(step)))
    order = draw.permutation(len(times))
    return counts, trial[order], neuron[order], times[order]


def load(path, **options):
    return load_arrays(path, bin_s=BIN_S, **options)


def holds(recording, counts):
    return torch.equal(recording.activity, torch.from_numpy(counts).float()) and recording.bin_s == BIN_S


def test_three_vectors_of_events(tmp_path, spikes):
    counts, trial, neuron, times = spikes
    ids = np.array([7, 3, 12, 100, 2000000])
    np.savez(
        tmp_path / "a.npz",
        t=(1000 * times).astype(np.float32),
        cluster=ids[neuron],
        trial=trial + 5,
        choice=np.arange(8) % 2,
    )
    keys = {"spike_times": "t", "spike_neurons": "cluster", "spike_trials": "trial", "spike_unit_s": 0.001}
    got = load(tmp_path / "a.npz", stop_s=STEPS * BIN_S, choices="choice", **keys)
    order = np.argsort(ids)
    assert holds(got, counts[:, :, order])
    assert got.neuron_names == ("3", "7", "12", "100", "2000000")
    assert holds(load(tmp_path / "a.npz", stop_s=0.3, start_s=0.1, **keys), counts[:, 5:15, order])
    assert holds(load(tmp_path / "a.npz", stop_s=0.4, neurons=[12, 3], **keys), counts[:, :, [2, 1]])
    mask = np.isin(np.arange(101), [3, 100])
    np.savez(tmp_path / "b.npz", good=mask)
    both = [tmp_path / "a.npz", tmp_path / "b.npz"]
    assert holds(load(both, stop_s=0.4, neurons="good", **keys), counts[:, :, [1, 3]])


def test_a_trial_without_spikes_is_one_where_what_belongs_to_trials_says_so(tmp_path, spikes):
    counts, trial, neuron, times = spikes
    there = trial != 3
    few = np.where(np.arange(TRIALS)[:, None, None] == 3, 0, counts)[:, :, :1]
    one = there & (neuron == 0)
    np.savez(tmp_path / "a.npz", t=times[one], n=neuron[one], trial=trial[one], when=10.0 * np.arange(TRIALS))
    keys = {"spike_times": "t", "spike_neurons": "n", "spike_trials": "trial", "stop_s": STEPS * BIN_S}
    assert holds(load(tmp_path / "a.npz", times="when", **keys), few)
    assert holds(load(tmp_path / "a.npz", **keys), few[[0, 1, 2, 4, 5, 6, 7]])


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_cells_of_times_by_neuron_and_trial(tmp_path, spikes, version):
    counts, trial, neuron, times = spikes
    grid = np.empty((TRIALS, NEURONS), dtype=object)
    for i in range(TRIALS):
        for k in range(NEURONS):
            grid[i, k] = np.sort(times[(trial == i) & (neuron == k)])[:, None]
    nested = cells([cells(list(grid[:, k])) for k in range(NEURONS)], (1, NEURONS))
    arrays = {"grid": grid, "nested": nested}
    path = tmp_path / "a.mat"
    savemat(path, arrays) if version == "v5" else write_matlab73(path, arrays)
    for key, axes in (("grid", ["trial", "neuron"]), ("nested", ["neuron", "trial"])):
        assert holds(load(path, spike_times=key, axes=axes, stop_s=0.4), counts), key
    with pytest.raises(UserError, match=r"\[neuron\], \[trial,neuron\] or"):
        load(path, spike_times="grid", axes=["trial", "time"])


def session_times(trial, times):
    return 3.0 + 1.7 * trial + times


def test_times_in_the_session_are_cut_at_the_trials(tmp_path, spikes):
    """As Neuropixels sorters write them: samples and clusters, and trials in seconds; and the same as lists by unit."""
    counts, trial, neuron, times = spikes
    at = session_times(trial, times)
    order = np.argsort(at)
    starts = session_times(np.arange(TRIALS), 0.0)
    stops = starts + 0.4 - 0.02 * np.arange(TRIALS)
    folder = tmp_path
    np.save(folder / "spike_times.npy", np.round(30000 * at[order]).astype(np.uint64)[:, None])
    np.save(folder / "spike_clusters.npy", neuron[order].astype(np.int32))
    np.save(folder / "intervals.npy", np.stack([starts, stops], 1))
    paths = [folder / f"{name}.npy" for name in ("spike_times", "spike_clusters", "intervals")]
    keys = {"spike_times": "spike_times", "spike_neurons": "spike_clusters", "spike_unit_s": "1/30000"}
    got = load(paths, trial_starts="intervals/0", stop_s=0.4, trial_unit_s=1, **keys)
    assert holds(got, counts)
    assert torch.allclose(got.trial_times_s, torch.from_numpy(starts))
    until = load(paths, trial_starts="intervals/0", trial_stops="intervals/1", trial_unit_s=1, **keys)
    assert until.lengths.tolist() == [STEPS - i for i in range(TRIALS)]
    cut = counts.copy()
    for i in range(TRIALS):
        cut[i, STEPS - i :] = 0
    assert holds(until, cut)
    with pytest.raises(UserError, match=r"data\.trial_unit_s"):
        load(paths, trial_starts="intervals/0", stop_s=0.4, **keys)
    by_unit = [np.sort(at[neuron == k]) for k in range(NEURONS)]
    padded = np.full((NEURONS, max(map(len, by_unit))), np.nan)
    for row, x in zip(padded, by_unit):
        row[: len(x)] = x
    with h5py.File(folder / "a.h5", "w") as file:
        file["units/spike_times"], file["units/spike_times_index"] = (
            np.concatenate(by_unit),
            np.cumsum([len(x) for x in by_unit]),
        )
        file["padded"], file["start"] = padded, starts
        for k, x in enumerate(by_unit):
            file[f"unit_{k}/times"] = x
    for key in ("units/spike_times", "padded", "unit_*/times"):
        assert holds(load(folder / "a.h5", spike_times=key, trial_starts="start", stop_s=0.4), counts), key
    typed = load(folder / "a.h5", spike_times="padded", trial_starts=starts.tolist(), stop_s=0.4)
    assert holds(typed, counts)


def test_trials_after_the_recording_had_ended_are_not_silent_ones(tmp_path, spikes):
    counts, trial, neuron, times = spikes
    at = session_times(trial, times)
    starts = session_times(np.arange(TRIALS + 2), 0.0)
    starts[2] = np.nan
    np.savez(tmp_path / "a.npz", t=at, n=neuron, start=starts, choice=np.arange(TRIALS + 2) % 2)
    got = load(
        tmp_path / "a.npz", spike_times="t", spike_neurons="n", trial_starts="start", stop_s=0.4, choices="choice"
    )
    kept = [0, 1, 3, 4, 5, 6, 7]
    assert holds(got, counts[kept])
    keys = {"spike_times": "t", "spike_neurons": "n", "trial_starts": "start", "stop_s": 0.4, "choices": "choice"}
    some = load(tmp_path / "a.npz", trials=[2, 3, 6, 9], **keys)
    assert holds(some, counts[[3, 6]])
    assert some.choices.tolist() == [1, 0]
    assert got.choices.tolist() == [i % 2 for i in kept]
    assert sum("left out" in note for note in got.notes) == 2


@pytest.mark.parametrize("before", [0.0, -1.5])
def test_times_of_the_session_beside_the_trial_of_each_spike_are_refused(tmp_path, spikes, before):
    """Also where windows of trials overlap, as those do that begin before their events."""
    _, trial, neuron, times = spikes
    at = 1.7 * trial + times * (1.0 if before == 0 else 5) + before
    np.savez(tmp_path / "a.npz", t=at, n=neuron, trial=trial, start=1.7 * np.arange(TRIALS))
    keys = {"spike_times": "t", "spike_neurons": "n"}
    with pytest.raises(
        UserError, match=r"one trial after the other\.\nReplace data\.spike_trials by data\.trial_starts"
    ) as no:
        load(tmp_path / "a.npz", spike_trials="trial", **keys)
    assert len(str(no.value).splitlines()) == 2
    grid = np.full((TRIALS, NEURONS, 30), np.nan)
    for i, k in np.ndindex(TRIALS, NEURONS):
        x = np.sort(at[(trial == i) & (neuron == k)])
        grid[i, k, : len(x)] = x
    np.save(tmp_path / "grid.npy", grid)
    with pytest.raises(UserError, match=r"one trial after the other\.\nSubtract the start of its trial"):
        load(tmp_path / "grid.npy", spike_times="grid", axes=["trial", "neuron"])


def test_trials_of_a_spike_or_two_are_read(tmp_path):
    draw, trial = np.random.default_rng(5), np.r_[np.arange(40), np.arange(40)]
    np.savez(tmp_path / "a.npz", t=draw.random(80), n=np.arange(80) % 3, trial=trial)
    got = load(tmp_path / "a.npz", spike_times="t", spike_neurons="n", spike_trials="trial")
    assert got.activity.sum((1, 2)).tolist() == [2] * 40


@pytest.mark.parametrize("padding", [-1.0, -999.0])
@pytest.mark.parametrize("axes", [("trial", "neuron"), ("neuron", "trial"), ("neuron",)])
def test_rows_of_times_with_a_negative_number_behind_them(tmp_path, spikes, axes, padding):
    counts, trial, neuron, times = spikes
    counts[0, :, 1] = 0  # a row of padding alone
    there = ~((trial == 0) & (neuron == 1))
    trial, neuron, times = trial[there], neuron[there], times[there] - 0.1  # times before the event are no padding
    rows = np.full((TRIALS, NEURONS, 40), padding)
    for i, k in np.ndindex(TRIALS, NEURONS):
        x = np.sort(times[(trial == i) & (neuron == k)])
        rows[i, k, : len(x)] = x
    rows = rows[2] if len(axes) == 1 else rows if axes[0] == "trial" else rows.transpose(1, 0, 2)
    np.save(tmp_path / "a.npy", rows)
    got = load(tmp_path / "a.npy", spike_times="a", axes=list(axes), start_s=-0.1, stop_s=0.3)
    assert holds(got, counts[2:3] if len(axes) == 1 else counts)
    assert any(f"{padding:g} behind the times in" in note for note in got.notes)


def test_times_that_are_all_before_the_event_are_no_padding(tmp_path):
    rows = np.array([[-0.3, -0.5, np.nan], [-0.1, 0.2, 0.3], [-0.2, np.nan, np.nan]])
    np.save(tmp_path / "a.npy", rows)
    got = load(tmp_path / "a.npy", spike_times="a", start_s=-0.6, stop_s=0.4)
    assert got.activity.sum() == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spike_times": "t"}, "the neuron of each of the"),
        ({"spike_times": "t", "spike_neurons": "few"}, "one value for each of"),
        ({"spike_times": "t", "spike_neurons": "n", "spike_unit_s": "fast"}, "0.001 or 1/30000"),
        ({"spike_times": "t", "spike_neurons": "n", "spike_unit_s": 0}, "0.001 or 1/30000"),
        ({"spike_times": "t", "spike_neurons": "n", "trial_starts": [0, "x"]}, "a KEY or a list of numbers"),
        ({"spike_times": "t", "spike_neurons": "n", "trial_starts": [0.0]}, "the end of each trial"),
        ({"spike_times": "t", "activity": "t"}, "in place of"),
        ({"activity": "t", "spike_trials": "n"}, r"with data\.spike_times"),
        ({"spike_times": "t", "spike_neurons": "n", "trial_starts": [90.0], "stop_s": 1}, "data.spike_unit_s and"),
        ({"spike_times": "t", "spike_neurons": "n", "spike_trials": "n", "trial_starts": [0.0]}, "given once"),
        ({"spike_times": "t", "spike_neurons": "n", "spike_unit_s": 1e9}, "what their units are"),
        ({"spike_times": "t", "spike_neurons": "n", "start_s": 2, "stop_s": 1}, r"after data\.start_s = 2"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_two_lines(tmp_path, spikes, options, words):
    _, _, neuron, times = spikes
    np.savez(tmp_path / "a.npz", t=times, n=neuron, few=neuron[:3])
    with pytest.raises(UserError, match=words) as refused:
        load(tmp_path / "a.npz", **options)
    assert len(str(refused.value).splitlines()) <= 2
