"""Numbers of trials and neurons stay those of the file, and units, kinds and axes that were mistaken are refused."""

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.errors import UserError

DRAW = np.random.default_rng(3)
RATES = np.tanh(DRAW.normal(size=(12, 9, 5)))  # trials, time, neurons


def cells(items):
    held = np.empty(len(items), dtype=object)
    held[:] = items
    return held


def structs(values, field, missing):
    return cells([np.zeros((0, 0)) if i in missing else {field: x} for i, x in enumerate(values)])


def holds(recording, rates):
    torch.testing.assert_close(recording.activity, torch.as_tensor(np.asarray(rates), dtype=torch.float32))
    return True


def test_an_empty_cell_keeps_the_numbers_of_the_others(tmp_path):
    trials, choices = structs([x.T for x in RATES], "rate", {4}), structs(np.arange(12) % 2, "choice", {7})
    savemat(tmp_path / "x.mat", {"tr": trials, "be": choices})
    keys = {"activity": "tr.rate", "axes": ["trial", "neuron", "time"]}
    assert holds(load_arrays(tmp_path / "x.mat", trials=[1, 10], **keys), RATES[[0, 9]])
    recording = load_arrays(tmp_path / "x.mat", choices="be.choice", **keys)
    kept = [i for i in range(12) if i != 4]
    assert holds(recording, RATES[kept])
    expected = [np.nan if i == 7 else i % 2 for i in kept]
    np.testing.assert_array_equal(recording.choices, expected)
    assert any("1 of 12 trials left out" in note for note in recording.notes)


def test_a_unit_whose_cell_is_empty_is_left_out_and_counted(tmp_path):
    times = [np.sort(DRAW.uniform(0, 30, 200 + 10 * j)) for j in range(6)]
    savemat(tmp_path / "u.mat", {"u": structs(times, "ts", {3})})
    keys = {"spike_times": "u.ts", "bin_s": 0.05, "start_s": 0, "stop_s": 30, "piece_s": 2}
    recording = load_arrays(tmp_path / "u.mat", **keys)
    assert recording.neuron_names == ("1", "2", "3", "5", "6")
    recording = load_arrays(tmp_path / "u.mat", neurons=[2, 5], **keys)
    assert recording.activity.sum((0, 1)).tolist() == [210, 240]
    with pytest.raises(UserError, match="different numbers among"):
        load_arrays(tmp_path / "u.mat", neurons=[4], **keys)


def test_numbers_count_as_in_the_file_that_holds_them(tmp_path):
    wanted = np.array([2, 3, 5])
    np.save(tmp_path / "act.npy", RATES)
    savemat(tmp_path / "good.mat", {"good": wanted, "one": 3})
    savemat(tmp_path / "sess.mat", {"rate": RATES, "good": wanted})
    np.save(tmp_path / "cells.npy", np.array([2, 4]))
    files = [tmp_path / "act.npy", tmp_path / "good.mat"]
    assert holds(load_arrays(files, activity="act", trials="good"), RATES[wanted - 1])
    assert holds(load_arrays(files, activity="act", trials="one", kind="rates"), RATES[[2]])
    both = load_arrays([tmp_path / "sess.mat", tmp_path / "cells.npy"], activity="rate", neurons="cells", trials="good")
    assert holds(both, RATES[wanted - 1][:, :, [2, 4]])
    assert both.neuron_names == ("3", "5")


def test_units_named_by_numbers_are_chosen_by_their_names(tmp_path):
    ids = [3, 7, 12, 40]
    with h5py.File(tmp_path / "u.h5", "w") as file:
        for i in ids:
            file[f"units/{i}/spike_times"] = np.sort(DRAW.uniform(0, 40, 100 + i))
        file["vlen"] = np.zeros(0)
        kind = h5py.vlen_dtype(float)
        grid = file.create_dataset("grid", (4, 3), dtype=kind)
        for i in range(4):
            for j in range(3):
                grid[i, j] = np.sort(DRAW.uniform(0, 1, 1 + 2 * i + j))
    keys = {"bin_s": 0.05, "piece_s": 2, "start_s": 0, "stop_s": 40}
    recording = load_arrays(tmp_path / "u.h5", spike_times="units/*/spike_times", neurons=[7, 40], **keys)
    assert recording.neuron_names == ("7", "40")
    assert recording.activity.sum((0, 1)).tolist() == [107, 140]
    recording = load_arrays(tmp_path / "u.h5", spike_times="grid", axes=["trial", "neuron"], stop_s=1, bin_s=0.1)
    assert recording.activity.sum(1).tolist() == [[1 + 2 * i + j for j in range(3)] for i in range(4)]
    with pytest.raises(UserError, match="nested 2 deep"):
        load_arrays(tmp_path / "u.h5", spike_times="grid", bin_s=0.1)


def test_trials_of_events_are_chosen_by_their_labels(tmp_path):
    trial = np.repeat([1, 2, 3, 5], [30, 20, 40, 25])
    np.savez(tmp_path / "e.npz", t=DRAW.uniform(0, 1, len(trial)), trial=trial, unit=DRAW.integers(0, 3, len(trial)))
    keys = {"spike_times": "t", "spike_neurons": "unit", "spike_trials": "trial", "stop_s": 1, "bin_s": 0.1}
    recording = load_arrays(tmp_path / "e.npz", trials=[5, 2], **keys)
    assert sorted(recording.activity.sum((1, 2)).tolist()) == [20, 25]
    assert any(note.startswith("1 trials without a spike") for note in recording.notes)


def test_trials_in_another_unit_and_tables_of_them_are_refused(tmp_path):
    times = np.sort(DRAW.uniform(0, 1200, 20_000))
    starts = np.arange(1.0, 1180, 6)
    np.savez(
        tmp_path / "s.npz", t=np.round(30_000 * times), unit=DRAW.integers(0, 40, len(times)), starts=starts,
        table=np.stack([starts, starts + 3], 1), long=np.full(len(starts), 3.0),
    )  # fmt: skip
    keys = {"spike_times": "t", "spike_neurons": "unit", "spike_unit_s": "1/30000"}
    with pytest.raises(UserError, match=r"data\.trial_unit_s"):
        load_arrays(tmp_path / "s.npz", trial_starts="starts", stop_s=1, **keys)
    with pytest.raises(UserError, match="KEY/NUMBER"):
        load_arrays(tmp_path / "s.npz", trial_starts="table", trial_unit_s=1, stop_s=1, **keys)
    with pytest.raises(UserError, match="not durations"):
        load_arrays(tmp_path / "s.npz", trial_starts="starts", trial_stops="long", trial_unit_s=1, **keys)
    assert (
        load_arrays(tmp_path / "s.npz", trial_starts="table/0", trial_stops="table/1", trial_unit_s=1, **keys).n_trials
        == 197
    )


def test_zeros_behind_the_times_of_a_row_are_no_spikes(tmp_path):
    rows = np.zeros((4, 90))
    for j, row in enumerate(rows):
        row[: 50 + 10 * j] = np.sort(DRAW.uniform(0, 30, 50 + 10 * j))
    np.save(tmp_path / "rows.npy", rows)
    recording = load_arrays(tmp_path / "rows.npy", spike_times="rows", bin_s=0.05, start_s=0, stop_s=30, piece_s=2)
    assert recording.activity.sum((0, 1)).tolist() == [50, 60, 70, 80]


def test_multiples_of_a_number_are_not_taken_for_counts(tmp_path):
    counts = DRAW.poisson(0.7, size=(20, 30, 6))
    np.savez(tmp_path / "r.npz", rate=counts / 0.01, counts=counts)
    with pytest.raises(UserError, match=r"multiples of 100"):
        load_arrays(tmp_path / "r.npz", activity="rate", bin_s=0.01)
    assert load_arrays(tmp_path / "r.npz", activity="rate", bin_s=0.01, kind="rates", activation="relu").kind == "rates"
    assert load_arrays(tmp_path / "r.npz", activity="counts", bin_s=0.01).kind == "spikes"


def test_arrays_that_have_trials_each_are_joined(tmp_path):
    np.savez(tmp_path / "x.npz", train=RATES[:8, :, :], valid=RATES[8:, :7, :])
    recording = load_arrays(tmp_path / "x.npz", activity="*")
    assert recording.lengths.tolist() == [9] * 8 + [7] * 4
    torch.testing.assert_close(recording.activity[8:, :7], torch.as_tensor(RATES[8:, :7], dtype=torch.float32))
    np.savez(tmp_path / "x.npz", train=RATES, valid=RATES[..., :4])
    with pytest.raises(UserError, match="one number of neurons"):
        load_arrays(tmp_path / "x.npz", activity="*")


def test_trials_are_windows_of_a_continuous_recording(tmp_path):
    trace, input_, choice = DRAW.normal(size=(5, 400)), DRAW.normal(size=400), np.arange(10) % 2
    onset = np.array([3, 40, 80, 120, 160, 200, 240, 280, 320, 395])  # frames; the last window reaches beyond the end
    np.savez(tmp_path / "f.npz", F=trace, u=input_, onset=onset, choice=choice, stop=onset + 12)
    keys = {"activity": "F", "axes": ["neuron", "time"], "trial_starts": "onset", "bin_s": 0.05, "trial_unit_s": 0.05}
    recording = load_arrays(tmp_path / "f.npz", stop_s=0.5, start_s=-0.1, inputs="u", choices="choice", **keys)
    assert holds(recording, [trace[:, t - 2 : t + 10].T for t in onset[:-1]])
    torch.testing.assert_close(
        recording.inputs[..., 0],
        torch.as_tensor(np.array([input_[t - 2 : t + 10] for t in onset[:-1]]), dtype=torch.float32),
    )
    np.testing.assert_array_equal(recording.choices, choice[:-1])
    assert any("1 of 10 trials left out" in note for note in recording.notes)
    recording = load_arrays(tmp_path / "f.npz", trial_stops="stop", trials=[0, 3], **keys)
    assert holds(recording, [trace[:, t : t + 12].T for t in onset[[0, 3]]])
    with pytest.raises(UserError, match=r"data\.trial_unit_s"):
        load_arrays(tmp_path / "f.npz", stop_s=0.5, **keys | {"trial_unit_s": None})
    with pytest.raises(UserError, match=r"data\.bin_s"):
        load_arrays(tmp_path / "f.npz", stop_s=0.5, **keys | {"bin_s": None})


def test_an_array_without_samples_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 0, 6)))
    with pytest.raises(UserError, match=r"numbers in x; got trials, samples and neurons \(5, 0, 6\)"):
        load_arrays(tmp_path / "x.npz", activity="x")


def test_axes_of_length_one_are_no_axes_of_arrays_that_are_joined(tmp_path):
    savemat(tmp_path / "c.mat", {"c": cells([RATES[None, :, :, k] for k in range(5)])})  # 1 x trials x time
    assert holds(load_arrays(tmp_path / "c.mat", activity="c", axes=["neuron", "trial", "time"]), RATES)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        for i, x in enumerate(RATES):
            file[f"trial{i}"] = x[..., None]
    assert holds(load_arrays(tmp_path / "t.h5", activity="trial*"), RATES)


def test_rows_of_zeros_alone_are_padding_where_others_are_padded(tmp_path):
    times = np.zeros((10, 3, 8))
    times[:, 0, :3], times[:, 1, :2] = [0.1, 0.4, 0.6], [-0.3, -0.1]
    np.save(tmp_path / "z.npy", times)
    keys = {"axes": ["trial", "neuron"], "bin_s": 0.1, "start_s": -0.5, "stop_s": 1.0}
    recording = load_arrays(tmp_path / "z.npy", spike_times="z", **keys)
    assert recording.activity.sum((0, 1)).tolist() == [30, 20, 0]


def test_what_fills_short_windows_up_says_nothing_of_the_kind(tmp_path):
    light = DRAW.integers(100, 200, size=(4, 300))
    np.savez(tmp_path / "f.npz", F=light, on=np.arange(0.0, 250, 50), off=np.array([10.0, 70, 110, 190, 230]))
    keys = {"axes": ["neuron", "time"], "bin_s": 1.0, "tau": 2.0, "trial_starts": "on", "trial_stops": "off"}
    with pytest.raises(UserError, match=r"data\.kind"):
        load_arrays(tmp_path / "f.npz", activity="F", **keys)


@pytest.mark.parametrize("first", [0, 2])
def test_empty_cells_wherever_they_stand(tmp_path, first):
    spikes = [[np.sort(DRAW.uniform(0, 1, 5 + i + 2 * k)) for k in range(3)] for i in range(6)]
    trials = cells([np.zeros((0, 0)) if i == first else {"t": cells(x)} for i, x in enumerate(spikes)])
    starts = structs(np.arange(6.0), "on", {first})
    units = structs([np.sort(DRAW.uniform(0, 6, 60 + k)) for k in range(4)], "ts", {first})
    good = structs([1.0, 1, 1, 0], "good", {first})
    savemat(tmp_path / "x.mat", {"tr": trials, "be": starts, "u": units, "q": good})
    recording = load_arrays(tmp_path / "x.mat", spike_times="tr/*/t", axes=["trial", "neuron"], stop_s=1, bin_s=0.1)
    kept = [i for i in range(6) if i != first]
    assert recording.activity.sum(1).tolist() == [[5 + i + 2 * k for k in range(3)] for i in kept]
    keys = {"spike_times": "u/*/ts", "trial_starts": "be/*/on", "stop_s": 0.5, "bin_s": 0.1}
    recording = load_arrays(tmp_path / "x.mat", neurons="q/*/good", **keys)
    assert recording.n_trials == 5
    assert recording.neuron_names == tuple(str(k + 1) for k in range(3) if k != first)


def test_what_cannot_be_told_of_trials_is_refused(tmp_path):
    trial = np.repeat(np.arange(1, 20), 10)
    pairs = cells([np.array([i, i + 0.5]) for i in range(8)])
    savemat(
        tmp_path / "x.mat",
        {"t": DRAW.uniform(0, 1, len(trial)), "trial": trial, "unit": DRAW.integers(0, 3, len(trial)), "mask": np.arange(20) % 2, "on": pairs},
    )  # fmt: skip
    keys = {"spike_times": "t", "spike_neurons": "unit", "bin_s": 0.1, "stop_s": 1}
    for trials in ("mask", [1, 2, 40]):
        with pytest.raises(UserError, match=r"data\.trials as a mask of 19"):
            load_arrays(tmp_path / "x.mat", spike_trials="trial", trials=trials, **keys)
    with pytest.raises(UserError, match="one time for each trial"):
        load_arrays(tmp_path / "x.mat", trial_starts="on", **keys)


@pytest.mark.parametrize("high", [True, 1, 1.0, 5])
def test_a_signal_that_is_on_or_off_is_no_list_of_times(tmp_path, high):
    trace = np.tanh(DRAW.normal(size=(600, 4)))
    on = np.zeros(600, dtype=type(high))
    on[::50] = high
    np.savez(tmp_path / "a.npz", F=trace, ttl=on, starts=[0.0, 1.0], late=[0.0, 5.0, 10.0, 15.0, 20.0])
    keys = {"activity": "F", "axes": ["time", "neuron"], "bin_s": 0.1, "stop_s": 0.5}
    for name in ("trial_starts", "trial_stops"):
        given = {"trial_starts": "late"} | {name: "ttl"}
        with pytest.raises(
            UserError, match=rf"data\.{name} with the time of each trial; got 600 values that are 0 or"
        ) as no:
            load_arrays(tmp_path / "a.npz", **keys, **given)
        assert len(str(no.value).splitlines()) == 2
    assert load_arrays(tmp_path / "a.npz", trial_starts="starts", **keys).n_trials == 2
    assert load_arrays(tmp_path / "a.npz", trial_starts="late", **keys).n_trials == 5
