"""A time axis beside a continuous recording tells gaps, and what trials' times count from."""

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.errors import UserError

STEPS, NEURONS, BIN_S = 400, 5, 0.02
AXES = {"axes": ["time", "neuron"], "bin_s": BIN_S}


@pytest.fixture
def trace():
    return np.tanh(np.cumsum(np.random.default_rng(3).normal(size=(STEPS, NEURONS)), 0) / 4)


def load(folder, *, activity="x", more=None, **arrays):
    np.savez(folder / "a.npz", **arrays)
    return load_arrays(folder / "a.npz", activity=activity, **AXES, **(more or {}))


def pieces(trace, first, n):
    return np.stack([trace[a : a + n] for a in first])


@pytest.mark.parametrize("name", ["t", "time", "times", "timestamps"])
@pytest.mark.parametrize("unit", [1.0, 1000.0, "sample"])
def test_no_piece_lies_across_a_gap_in_the_axis(tmp_path, trace, name, unit):
    """10 samples are missing, which the 400 do not show."""
    number = np.arange(STEPS) + 10 * (np.arange(STEPS) >= 110)
    at = number if unit == "sample" else unit * (100.0 + BIN_S * number)
    got = load(tmp_path, x=trace, more={"piece_s": 1}, **{name: at})
    first = [0, 50, 110, 160, 210, 260, 310]
    assert got.stretches[:, 1].tolist() == first
    np.testing.assert_allclose(got.activity, pieces(trace, first, 50), atol=1e-6)
    np.testing.assert_allclose(got.trial_times_s, BIN_S * (number[first]))
    assert any(f"1 gap in {name}: no trial lies across" in note for note in got.notes)
    without = load(tmp_path, x=trace, more={"piece_s": 1, "time_axis": False}, **{name: at})
    assert without.stretches[:, 1].tolist() == list(range(0, 400, 50))


@pytest.mark.parametrize("unit", [1.0, 0.001])
def test_times_of_trials_are_on_the_clock_of_the_axis(tmp_path, trace, unit):
    number = np.arange(STEPS) + 25 * (np.arange(STEPS) >= 210)
    inputs = np.arange(STEPS) * 1.0
    starts = 3.0 + BIN_S * np.array([10, 60, 190, 215, 240, 300])
    arrays = {"x": trace, "t": (3.0 + BIN_S * number) / unit, "on": starts / unit, "u": inputs}
    more = {"trial_starts": "on", "stop_s": 0.6, "trial_unit_s": unit, "inputs": "u", "input_axes": ["time"]}
    got = load(tmp_path, more=more, **arrays)
    first = [10, 60, 215, 275]  # 190 runs into the gap, 215 lies within it
    np.testing.assert_allclose(got.activity, pieces(trace, first, 30), atol=1e-6)
    np.testing.assert_allclose(got.inputs[:, :, 0], pieces(inputs[:, None], first, 30)[:, :, 0])
    assert any("on the clock of t, whose first sample is at 3 s" in note for note in got.notes)
    assert any("2 of 6 trials left out" in note for note in got.notes)


def test_what_counted_from_the_first_sample_does_so_still(tmp_path, trace):
    """Numbers of samples, axes from zero on, middles of bins, and where there is no axis."""
    first = np.array([0, 33, 61, 300])
    seconds = {"trial_starts": "on", "stop_s": 0.6}
    samples = seconds | {"trial_unit_s": BIN_S}
    for at, starts, more in (
        (BIN_S * np.arange(STEPS), BIN_S * first, seconds),
        (BIN_S * (np.arange(STEPS) + 0.5), BIN_S * first, seconds),
        (BIN_S * (np.arange(STEPS, dtype=np.float32) + 0.5), BIN_S * first, seconds),
        (1 + np.arange(STEPS), BIN_S * first, seconds),
        (7.0 + BIN_S * np.arange(STEPS), first, samples),
        (7.0 + BIN_S * np.arange(STEPS), BIN_S * first, seconds | {"time_axis": False}),
        (7.0 + BIN_S * np.arange(STEPS - 1), BIN_S * first, seconds),
        (np.sin(np.arange(STEPS)), BIN_S * first, seconds),
    ):
        got = load(tmp_path, x=trace, t=at, on=starts, more=more)
        np.testing.assert_allclose(got.activity, pieces(trace, first, 30), atol=1e-6)


def test_the_interval_of_the_axis_places_trials_where_bin_s_was_rounded(tmp_path, trace):
    at, first = 0.0201 * np.arange(STEPS), np.array([10, 200, 360])
    got = load(tmp_path, x=trace, t=at, on=at[first], more={"trial_starts": "on", "stop_s": 0.6})
    np.testing.assert_allclose(got.activity, pieces(trace, first, 30), atol=1e-6)


def test_the_axis_is_found_in_the_group_of_the_activity_or_named(tmp_path, trace):
    number = np.arange(STEPS) + 10 * (np.arange(STEPS) >= 110)
    held = {"s": {"x": trace, "time": BIN_S * number}, "time": np.arange(STEPS), "clock": BIN_S * number}
    savemat(tmp_path / "a.mat", held)
    savemat(tmp_path / "flat.mat", held["s"])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["s/x"], file["s/time"], file["time"], file["clock"] = (
            trace,
            BIN_S * number,
            np.arange(STEPS),
            BIN_S * number,
        )
    np.save(tmp_path / "x.npy", trace)
    np.save(tmp_path / "clock.npy", BIN_S * number)
    header = ",".join(["time", *(f"cell{i}" for i in range(NEURONS))])
    np.savetxt(tmp_path / "a.csv", np.c_[BIN_S * number, trace], delimiter=",", header=header, comments="")
    both = [tmp_path / "x.npy", tmp_path / "clock.npy"]
    columns = {"axes": ["neuron", "time"], "bin_s": BIN_S}
    for path, key, more in (
        (tmp_path / "a.mat", "s.x", AXES),
        (tmp_path / "flat.mat", "x", AXES),
        (tmp_path / "a.h5", "s/x", AXES),
        (tmp_path / "a.h5", "s/x", AXES | {"time_axis": "clock"}),
        (both, "x", AXES | {"time_axis": "clock"}),
        (tmp_path / "a.csv", "cell*", columns),
    ):
        got = load_arrays(path, activity=key, piece_s=1, **more)
        assert got.stretches[:, 1].tolist() == [0, 50, 110, 160, 210, 260, 310], path


@pytest.mark.parametrize(
    ("at", "more", "words"),
    [
        (0.03 * np.arange(STEPS), {}, r"the steps of t, 0\.03; got 0\.02 s\.\nSet data\.bin_s=0\.03"),
        (BIN_S * np.cumsum(1 + (np.arange(STEPS) % 4 == 0)), {}, "99 steps of more than 1.5 times that"),
        (np.arange(9), {"time_axis": "t"}, "an ascending time for each of 400 samples"),
        (np.zeros(STEPS), {"time_axis": "t"}, "an ascending time for each of 400 samples"),
        (np.arange(9), {"time_axis": "t", "piece_s": None}, r"data\.piece_s or data\.trial_starts"),
        (np.arange(9), {"time_axis": True}, "a KEY, null or false"),
        (90.0 + BIN_S * np.arange(STEPS), {"piece_s": None, "trial_starts": "on", "stop_s": 1}, r"by t from 90 to 97\.98 s"),
    ],
)  # fmt: skip
def test_an_axis_that_does_not_go_with_the_recording_is_refused(tmp_path, trace, at, more, words):
    with pytest.raises(UserError, match=words) as refused:
        load(tmp_path, x=trace, t=at, on=[1.0, 2.0, 3.0], more={"piece_s": 1} | more)
    assert len(str(refused.value).splitlines()) <= 2
