"""What arrays of other labs hold that could be read as something else: read as it is meant, or refused, never a wrong number."""

import importlib

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.data.contents import opened
from connector.data.npz import load_npz
from connector.errors import UserError

TRIALS, STEPS, NEURONS = 8, 30, 6


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.fixture
def rates(draw):
    return np.tanh(np.cumsum(draw.normal(size=(TRIALS, STEPS, NEURONS)), 1) / 3)


def cells(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def in_two_lines(words, act):
    with pytest.raises(UserError, match=words) as refused:
        act()
    assert len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize("most", [1, 9])
@pytest.mark.parametrize("filler", [-1, -99])
def test_counts_filled_up_with_a_negative_number_end_there(tmp_path, draw, most, filler):
    counts, lengths = draw.poisson(0.3, (TRIALS, STEPS, NEURONS)).clip(max=most), draw.integers(10, STEPS, TRIALS)
    counts[np.arange(STEPS) >= lengths[:, None]] = filler
    np.savez(tmp_path / "a.npz", x=counts)
    found = load_arrays(tmp_path / "a.npz", activity="x")
    assert (found.kind, found.lengths.tolist()) == ("spikes", lengths.tolist())
    assert found.activity.sum() == counts[counts > 0].sum()
    np.savez(tmp_path / "b.npz", x=np.sign(draw.normal(size=counts.shape)))  # two-valued rates
    assert load_arrays(tmp_path / "b.npz", activity="x").kind == "rates"


def test_large_whole_numbers_without_a_zero_are_no_counts_unless_it_is_said(tmp_path, rates):
    np.savez(tmp_path / "a.npz", x=(2000 + 500 * rates).astype("u2"))
    in_two_lines(
        r"(?s)1\d+ to 2\d+, none of them 0.*data.kind=rates", lambda: load_arrays(tmp_path / "a.npz", activity="x")
    )
    assert load_arrays(tmp_path / "a.npz", activity="x", kind="rates", activation="relu").kind == "rates"


def test_inputs_that_end_before_the_trial_are_not_zero_there(tmp_path, draw, rates):
    lengths = draw.integers(10, STEPS, TRIALS)
    lengths[2] = STEPS
    x, u = ([values[i, :n] for i, n in enumerate(lengths)] for values in (rates, rates[..., :1]))
    savemat(tmp_path / "a.mat", {"x": cells(x), "u": cells(u)})
    assert load_arrays(tmp_path / "a.mat", activity="x", inputs="u").inputs.shape == (TRIALS, STEPS, 1)
    u[0] = u[0][:-5]
    savemat(tmp_path / "a.mat", {"x": cells(x), "u": cells(u)})
    in_two_lines("as many samples as the activity", lambda: load_arrays(tmp_path / "a.mat", activity="x", inputs="u"))


def test_neurons_are_counted_as_the_file_does_that_names_them(tmp_path, rates):
    np.save(tmp_path / "x.npy", rates)
    savemat(tmp_path / "keep.mat", {"keep": np.array([1, 3, 5])})
    np.save(tmp_path / "zero.npy", np.array([0, 2, 4]))
    for other in ("keep.mat", "zero.npy"):
        found = load_arrays([tmp_path / "x.npy", tmp_path / other], activity="x", neurons=other.split(".")[0])
        assert np.allclose(found.activity, rates[..., [0, 2, 4]])


def test_a_cell_of_none_and_a_cell_of_two_are_not_one_value_each(tmp_path, rates):
    chosen = [np.array([[1.0]]), np.zeros((0, 0)), np.array([[0.0, 1.0]]), *[np.array([[0.0]])] * (TRIALS - 3)]
    savemat(tmp_path / "a.mat", {"x": cells(list(rates)), "c": cells(chosen)})
    in_two_lines("one value for each of 8 trials", lambda: load_arrays(tmp_path / "a.mat", activity="x", choices="c"))


def test_packed_numbers_of_netcdf_are_unpacked(tmp_path, rates):
    packed = np.round((rates + 1) * 1e4).astype("i2")
    packed[0, 20:] = -9999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("x", data=packed)
        data.attrs.update({"scale_factor": 1e-4, "add_offset": -1.0, "_FillValue": np.int16(-9999)})
    found = load_arrays(tmp_path / "a.h5", activity="x")
    assert (found.kind, found.lengths.tolist()) == ("rates", [20] + [STEPS] * (TRIALS - 1))
    assert np.allclose(found.activity[0, :20], rates[0, :20], atol=1e-4)


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "i4", "i8"])
@pytest.mark.parametrize("netcdf", [True, False])
def test_what_netcdf_never_wrote_is_missing(tmp_path, rates, kind, netcdf):
    """Of whole numbers only in a netCDF file; elsewhere they may be meant."""
    unwritten = {"f": 9.969209968386869e36, "i2": -32767, "i4": -2147483647, "i8": -9223372036854775806}
    x = (rates if kind[0] == "f" else 100 * rates).astype(kind)
    x[0, 20:] = unwritten[kind if kind[0] == "i" else "f"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=x)
        file.create_dataset("named", data=x).attrs["_FillValue"] = x.dtype.type(-20000)
        if netcdf:
            file.attrs["_NCProperties"] = "version=2,netcdf=4.9.2,hdf5=1.14.4"
    if kind[0] == "f" or netcdf:
        found = load_arrays(tmp_path / "a.h5", activity="x", kind="rates", range_tolerance=1e3)
        assert found.lengths.tolist() == [20] + [STEPS] * (TRIALS - 1)
        assert np.allclose(found.activity[0, :20], x[0, :20], rtol=1e-6)
    with opened(tmp_path / "a.h5", 1.0) as file:
        missing = np.isnan(file.value("x"))
        assert np.array_equal(file.value("named"), x)
    assert missing[0, 20:].all() == missing.any() == (kind[0] == "f" or netcdf)


def test_a_filter_that_is_not_installed_is_named(tmp_path, monkeypatch):
    """Where hdf5plugin is there, its import is all that it takes."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("g/x", data=np.random.default_rng(0).normal(size=(8, 30, 5)), compression="gzip")
    there = []
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: bool(there))
    in_two_lines(
        r"/g/x packed by a filter that is installed; got deflate\.\nInstall hdf5plugin, or save the file again with gzip",
        lambda: load_arrays(tmp_path / "a.h5", activity="g/x"),
    )
    import_module = importlib.import_module
    added = lambda name: there.append(name) if name == "hdf5plugin" else import_module(name)  # noqa: E731
    monkeypatch.setattr(importlib, "import_module", added)
    assert load_arrays(tmp_path / "a.h5", activity="g/x").n_trials == 8


def test_the_trial_that_lacks_an_array_is_named(tmp_path, rates):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i, x in enumerate(rates):
            file[f"s/trial_{i}/{'rates' if i != 6 else 'rate'}"] = x
            file[f"e/trial_{i}/rates"] = x
        del file["e/trial_6/rates"]
    keys = {"axes": ["trial", "time", "neuron"]}
    path = tmp_path / "a.h5"
    words = r"rates in a\.h5:s/trial_6; got no such key\.\nThere: rate\."
    in_two_lines(words, lambda: load_arrays(path, activity="s/*/rates", **keys))
    words = r"rates in a\.h5:e/trial_6; got no such key\.\nThere: nothing\."
    in_two_lines(words, lambda: load_arrays(path, activity="e/trial_*/rates", **keys))
    savemat(tmp_path / "a.mat", {"tr": cells([{"rates": x} if i != 6 else {"rate": x} for i, x in enumerate(rates)])})
    words = r"rates in a\.mat:tr/7; got no such key"
    in_two_lines(words, lambda: load_arrays(tmp_path / "a.mat", activity="tr.rates", **keys))


def test_labels_far_from_zero_have_names_of_their_own(tmp_path, rates):
    np.savez(tmp_path / "a.npz", x=rates, c=1_000_001 + np.arange(TRIALS) % 2)
    names = load_arrays(tmp_path / "a.npz", activity="x", conditions="c", condition_inputs=True).input_names
    assert names == ("c 1000001", "c 1000002")


def test_what_single_precision_would_lose_is_refused(tmp_path, rates):
    def load(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return load_npz(tmp_path / "a.npz", activation="relu" if "externalinputs" not in arrays else None)

    stamps = 1.7e9 + 0.01 * np.arange(TRIALS * STEPS).reshape(TRIALS, STEPS, 1)  # seconds since 1970
    in_two_lines(r"externalinputs that vary(?s:.*)ubtract", lambda: load(rates=rates, externalinputs=stamps))
    assert load(rates=rates, externalinputs=stamps - stamps.mean()).n_inputs == 1
    in_two_lines("rates that vary", lambda: load(rates=1e6 + rates))
    in_two_lines("rates that vary", lambda: load(rates=1e9 + rates))
    assert load(rates=1e3 + rates).n_neurons == NEURONS
    constant = np.concatenate([rates, 0.7 + 1e-16 * rates[..., :1]], 2)
    assert load(rates=constant, externalinputs=np.ones_like(stamps)).n_inputs == 1  # constants lose nothing


def events(draw, unit=1.0):
    starts = 2.0 * np.arange(TRIALS) + 1
    trains = [np.sort(draw.uniform(0, 2 * TRIALS + 1, 500)) for _ in range(4)]
    return {
        "t": unit * np.concatenate(trains), "n": np.repeat(np.arange(4), 500), "starts": starts, "stops": starts + 1,
    }  # fmt: skip


def test_spikes_and_trials_on_two_clocks_are_refused(tmp_path, draw):
    keys = {"spike_times": "t", "spike_neurons": "n", "trial_starts": "starts", "trial_stops": "stops"}
    arrays = events(draw, 1000)
    np.savez(tmp_path / "a.npz", **arrays)
    in_two_lines(r"one clock(?s:.*)data.spike_unit_s", lambda: load_arrays(tmp_path / "a.npz", **keys))
    found = load_arrays(tmp_path / "a.npz", **keys, spike_unit_s=0.001, trial_unit_s=1)
    expected = sum(((arrays["t"] >= 1000 * s) & (arrays["t"] < 1000 * (s + 1))).sum() for s in arrays["starts"])
    assert found.activity.sum() == expected


def test_trials_that_are_counted_from_another_number_move_no_spike(tmp_path, draw):
    trial = draw.integers(0, TRIALS - 1, 400)  # none in the last
    arrays = {"t": draw.uniform(0, 0.5, 400), "n": draw.integers(0, 3, 400), "c": np.arange(TRIALS) % 2}
    keys = {"spike_times": "t", "spike_neurons": "n", "spike_trials": "trial", "choices": "c", "stop_s": 0.5}
    np.savez(tmp_path / "a.npz", trial=trial + 1, **arrays)
    in_two_lines("count trials from 0", lambda: load_arrays(tmp_path / "a.npz", **keys))
    np.savez(tmp_path / "a.npz", trial=trial, **arrays)
    expected = np.bincount(trial, minlength=TRIALS).tolist()
    assert load_arrays(tmp_path / "a.npz", **keys).activity.sum((1, 2)).tolist() == expected
