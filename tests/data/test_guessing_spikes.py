"""Spike times are found by their names, forms and units, as other software and labs write them."""

import h5py
import numpy as np
import pytest
from guesses import guessed, read, smooth

from connector.data.listing import described


@pytest.fixture
def draw():
    return np.random.default_rng(7)


def spikes_of(draw, n_units=6, seconds=60.0, n=900):
    """Times, ascending, s, and the unit of each."""
    return np.sort(draw.uniform(0, seconds, n)), draw.integers(0, n_units, n)


def same_counts(got, times, units, starts, lasting, bin_s=0.01):
    """Checks the counts of a recording in trials against those of times in seconds."""
    for k in range(got.n_neurons):
        of_unit = times[units == np.unique(units)[k]]
        for trial, start in enumerate(starts):
            edges = start + bin_s * np.arange(round(lasting / bin_s) + 1)
            wanted = np.histogram(of_unit, edges)[0].sum()
            assert abs(got.activity[trial, :, k].sum() - wanted) <= 1, (k, trial)


@pytest.mark.parametrize("form", ["group", "sorting", "events", "reversed", "by unit", "fields", "table"])
def test_times_and_units_of_spikes_in_the_forms_of_other_software(tmp_path, draw, form):
    times, units = spikes_of(draw)
    starts = 2.0 * np.arange(29)
    path = tmp_path / "spikes.npz"
    if form == "group":  # of pynapple, with the support of its times
        np.savez(path, t=times, index=units, keys=np.arange(6), start=[0.0], end=[60.0], type=["TsGroup"])
    elif form == "sorting":  # of spikeinterface
        beside = {"unit_ids": np.arange(6), "num_segment": [1], "sampling_frequency": [24_000.0]}
        np.savez(path, spike_indexes_seg0=np.round(24_000 * times).astype(int), spike_labels_seg0=units, **beside)
    elif form in ("events", "reversed", "by unit"):
        order = np.argsort(units, kind="stable") if form == "by unit" else np.arange(len(times))
        columns = [times[order], units[order]][:: -1 if form == "reversed" else 1]
        np.savez(path, spikes=np.stack(columns, 1))
    else:
        table = np.rec.fromarrays([times, units], names="time,unit")
        path = tmp_path / "spikes.h5"
        with h5py.File(path, "w") as file:
            file["a/ev"] = table
        if form == "fields":
            path = tmp_path / "ev.npy"
            np.save(path, table)
    np.savez(tmp_path / "trials.npz", start=starts, end=starts + 0.5)
    options, said = guessed(path, tmp_path / "trials.npz")
    assert (options["trial_starts"], options["trial_stops"]) == ("trials:start", "trials:end")
    assert ("24000 Hz, from spikes:sampling_frequency" in said) == (form == "sorting")
    got = read(options)
    assert got.activity.shape == (29, 50, 6)
    same_counts(got, times, units, starts, 0.5)
    assert {"group": "t", "table": "a/ev/time", "fields": "ev/time"}.get(form, "spi") in guessed(path)[0]["spike_times"]


def test_two_neurons_are_not_times_and_units(tmp_path, draw):
    for x in (
        draw.poisson(1.0, (400, 2)),
        smooth(draw, 2, 400).T,
        np.stack([np.arange(400.0), draw.uniform(size=400)], 1),
    ):
        np.savez(tmp_path / "a.npz", activity=x)
        assert guessed(tmp_path / "a.npz")[0]["axes"] == ["time", "neuron"]


@pytest.mark.parametrize("where", ["name", "camel", "beside", "attribute", "samples", "nothing"])
def test_the_unit_of_spike_times_is_the_one_that_the_file_states(tmp_path, draw, where):
    times, units = spikes_of(draw)
    starts, ms = 2.0 * np.arange(29), 1000 * times
    name = {"name": "spike_times_ms", "camel": "spikeTimesMs"}.get(where, "spike_times")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file[name], file["unit"] = (times if where == "nothing" else ms), units
        file["trial_start"], file["trial_stop"] = starts, starts + 0.5
        if where == "beside":
            file["spike_times_units"] = "ms"
        elif where == "attribute":
            file[name].attrs["units"] = "milliseconds"
        elif where == "samples":
            del file[name]
            file[name] = np.round(20_000 * times)
            file[name].attrs["unit"], file.attrs["sampling_rate"] = "samples", 20_000
    options, said = guessed(tmp_path / "s.h5")
    assert options.get("spike_unit_s") == {"samples": "1/20000", "nothing": None}.get(where, 0.001)
    assert "seconds" in said if where == "nothing" else "milliseconds, from" in said or "at 20000 Hz, from" in said
    assert ("trial_unit_s" in options) == (where != "nothing")
    same_counts(read(options), times, units, starts, 0.5)


def test_trials_have_units_of_their_own(tmp_path, draw):
    times, units = spikes_of(draw)
    starts = 2.0 * np.arange(29)
    cases = [
        ({"trial_start": 1000 * starts}, 1000),
        ({"trial_start_ms": 1000 * starts}, 1),
        ({"trial_start_s": starts}, 1000),
    ]
    for beside, scale in cases:
        name = "spike_times" if scale == 1 else "spike_times_ms"
        np.savez(tmp_path / "s.npz", **{name: scale * times}, unit=units, **beside)
        got = read(guessed(tmp_path / "s.npz")[0])
        assert got.activity.shape == (29, 100, 6)
        same_counts(got, times, units, starts, 1.0)


def test_columns_of_a_table_of_pandas_have_the_names_beside_them(tmp_path, draw):
    times, units = spikes_of(draw, seconds=0.5)
    trials = draw.integers(1, 21, 900)
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["df/block0_items"], file["df/block0_values"] = [b"trial", b"neuron"], np.stack([trials, units], 1)
        file["df/block1_items"], file["df/block1_values"] = [b"time_ms"], 1000 * times[:, None]
    lines, _ = described([tmp_path / "p.h5"], 1.0)
    assert "trial, neuron" in lines[0]
    got = read(guessed(tmp_path / "p.h5")[0])
    assert (got.n_trials, got.n_neurons, got.activity.sum()) == (20, 6, 900)
    assert got.activity.sum((1, 2)).tolist() == np.bincount(trials)[1:].tolist()


def test_rates_in_a_row_for_each_trial_time_and_neuron_are_no_spikes(tmp_path, draw):
    trial, time, neuron = (x.ravel() for x in np.indices((6, 20, 5)))
    np.savez(tmp_path / "t.npz", trial=trial, time=0.02 * time, neuron=neuron, rate=draw.normal(size=600))
    assert described([tmp_path / "t.npz"], 1.0)[1] == ""
    np.savez(tmp_path / "t.npz", trial=trial, time=0.02 * time, neuron=neuron, amplitude=draw.normal(size=600))
    assert guessed(tmp_path / "t.npz")[0]["spike_trials"] == "trial"
