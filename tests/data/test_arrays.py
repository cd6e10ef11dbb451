"""Arrays of any file, in any order of axes, become the recording that an npz of this project's own convention is."""

import itertools
import os
import re
import shlex
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT
from matlab73 import cells, write_matlab73
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.data.listing import described
from connector.data.npz import load_npz
from connector.data.readers import read_recording
from connector.errors import UserError
from connector.look import main as look

TRIALS, STEPS, NEURONS = 7, 23, 5
FORMATS = ("npz", "npy", "mat", "mat73", "h5")


@pytest.fixture
def draw():
    return np.random.default_rng(4)


def smooth(draw, *shape):
    """(trials, time, channels) in (-1, 1), successive samples alike."""
    return np.tanh(np.cumsum(draw.normal(size=shape), axis=1) / 3)


def write(folder, format, arrays):
    """A file that holds the arrays, nested ones in groups or structs; of a npy only the first."""
    path = folder / f"data.{format}"
    if format == "npz":
        np.savez(path, **{k: v for k, v in arrays.items() if not isinstance(v, dict)})
    elif format == "npy":
        np.save(path, next(iter(arrays.values())))
    elif format == "mat":
        savemat(path, arrays)
    elif format == "mat73":
        write_matlab73(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                for inner, x in value.items() if isinstance(value, dict) else [("", value)]:
                    file[f"{name}/{inner}".rstrip("/")] = x
    return path


def alike(a, b):
    """Whether two recordings are the same, but for names and notes."""
    tensors = ("activity", "lengths", "inputs", "choices", "trial_times_s")
    same = all((getattr(a, k) is None) == (getattr(b, k) is None) for k in tensors)
    held = [k for k in tensors if getattr(a, k) is not None]
    return same and all(torch.allclose(getattr(a, k), getattr(b, k), equal_nan=True) for k in held) and a.kind == b.kind


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_in_every_order_of_axes_is_the_recording_of_the_npz(tmp_path, draw, format):
    x = smooth(draw, TRIALS, STEPS, NEURONS)
    np.savez(tmp_path / "own.npz", rates=x)
    own = load_npz(tmp_path / "own.npz")
    names = np.array(["trial", "time", "neuron"])
    for order in itertools.permutations(range(3)):
        path = write(tmp_path, format, {"data": x.transpose(order)})
        got = load_arrays(path, activity="data", axes=names[list(order)].tolist())
        assert alike(got, own), order
    path = write(tmp_path, format, {"data": x.astype(np.float32)})
    assert torch.equal(load_arrays(path, activity="data").activity, own.activity)


@pytest.mark.parametrize("format", ["npz", "mat", "mat73", "h5"])
def test_inputs_choices_lengths_and_times_come_along(tmp_path, draw, format):
    counts, inputs = draw.poisson(1.0, size=(TRIALS, STEPS, NEURONS)), draw.normal(size=(TRIALS, STEPS, 2))
    more = {
        "lengths": draw.integers(5, STEPS + 1, TRIALS), "choices": draw.integers(0, 2, TRIALS), "times": 5.0 * np.arange(TRIALS),
    }  # fmt: skip
    np.savez(tmp_path / "own.npz", spikes=counts, externalinputs=inputs, **more)
    arrays = {"fr": counts.transpose(2, 0, 1), "stim": inputs.transpose(2, 0, 1), "chose": 2 * more["choices"] - 1}
    path = write(tmp_path, format, arrays | {"n_bins": more["lengths"], "when": more["times"]})
    keys = {"activity": "fr", "inputs": "stim", "choices": "chose", "lengths": "n_bins", "times": "when"}
    got = load_arrays(path, axes=["neuron", "trial", "time"], choice_values=[-1, 1], **keys)
    own = load_npz(tmp_path / "own.npz")
    assert alike(got, own)
    assert (got.bin_s, got.alpha, got.activation) == (own.bin_s, own.alpha, own.activation)
    assert got.input_names == ("stim 1", "stim 2")


def test_inputs_of_fewer_axes_are_constant_along_the_others(tmp_path, draw):
    x, one, course = smooth(draw, TRIALS, STEPS, NEURONS), draw.normal(size=TRIALS), draw.normal(size=(STEPS, 2))
    np.savez(tmp_path / "a.npz", x=x, one=one, course=course, each=draw.normal(size=(TRIALS, STEPS)))
    constant = load_arrays(tmp_path / "a.npz", activity="x", inputs="one", input_axes=["trial"]).inputs
    assert torch.allclose(constant, torch.tensor(one)[:, None, None].float().expand(TRIALS, STEPS, 1))
    same = load_arrays(tmp_path / "a.npz", activity="x", inputs="course", input_axes=["time", "input"]).inputs
    assert torch.allclose(same, torch.tensor(course).float().expand(TRIALS, STEPS, 2))
    both = load_arrays(tmp_path / "a.npz", activity="x", inputs=["each", "x"])
    assert both.inputs.shape == (TRIALS, STEPS, 1 + NEURONS)
    assert both.input_names[:2] == ("each", "x 1")


@pytest.mark.parametrize("format", ["npz", "mat", "h5"])
def test_conditions_and_their_repeats_are_trials(tmp_path, draw, format):
    """Four axes in any order; what is said of trials has both axes, or one value for each in the same order."""
    x, stimulus = smooth(draw, 12, STEPS, NEURONS), draw.normal(size=(12, STEPS))
    chose = draw.integers(0, 2, 12)
    np.savez(tmp_path / "own.npz", rates=x, externalinputs=stimulus[:, :, None], choices=chose)
    own = load_npz(tmp_path / "own.npz")
    names = np.array(["trial", "trial", "time", "neuron"])
    four, two = x.reshape(3, 4, STEPS, NEURONS), {"s": stimulus.reshape(3, 4, STEPS), "c": chose.reshape(3, 4)}
    for order in ((0, 1, 2, 3), (3, 0, 1, 2), (0, 2, 1, 3), (2, 0, 3, 1)):
        path = write(tmp_path, format, {"x": four.transpose(order), **two})
        keys = {"activity": "x", "axes": names[list(order)].tolist(), "choices": "c", "inputs": "s"}
        assert alike(load_arrays(path, input_axes=["trial", "trial", "time"], **keys), own), order
    with pytest.raises(UserError, match=r"name its 4 axes|data\.axes=\[trial,trial,time,neuron\]"):
        load_arrays(path, activity="x")
    for axes in (["trial", "trial", "trial", "time"], ["trial", "time", "time", "neuron"]):
        with pytest.raises(UserError, match="some of trial, time, neuron"):
            load_arrays(path, activity="x", axes=axes)


def test_lists_of_conditions_hold_repeats_of_their_own_length(tmp_path, draw):
    x, lengths = smooth(draw, 12, STEPS, NEURONS), np.repeat([20, STEPS, 9], 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(3):
            file[f"c{i}"] = x[4 * i : 4 * i + 4, : lengths[4 * i]]
            for j in range(4):
                file[f"n/{i}/{j}"] = x[4 * i + j, : lengths[4 * i]]
    for key in ("c*", "n/*/*"):
        got = load_arrays(tmp_path / "a.h5", activity=key, axes=["trial", "trial", "time", "neuron"])
        assert got.lengths.tolist() == lengths.tolist()
        for row, trial, n in zip(got.activity.numpy(), x, lengths):
            np.testing.assert_allclose(row[:n], trial[:n], rtol=1e-6)


def test_trials_padded_with_nan_end_there_and_one_value_everywhere_is_refused(tmp_path, draw):
    x = smooth(draw, TRIALS, STEPS, NEURONS)
    lengths = draw.integers(4, STEPS, TRIALS)
    for i, n in enumerate(lengths):
        x[i, n:] = np.nan
    np.save(tmp_path / "x.npy", x.transpose(2, 0, 1))
    got = load_arrays(tmp_path / "x.npy", activity="x", axes=["neuron", "trial", "time"])
    assert got.lengths.tolist() == lengths.tolist()
    np.save(tmp_path / "flat.npy", np.ones((TRIALS, STEPS, NEURONS)))
    with pytest.raises(UserError, match="vary"):
        load_arrays(tmp_path / "flat.npy", activity="flat")


def test_alpha_follows_from_the_bin_where_one_is_given(tmp_path, draw):
    np.savez(tmp_path / "a.npz", x=smooth(draw, TRIALS, STEPS, NEURONS))
    plain, binned = (load_arrays(tmp_path / "a.npz", activity="x", **k) for k in ({}, {"bin_s": 0.02, "tau_s": 0.05}))
    assert (plain.alpha, plain.bin_s) == (0.1, None)
    assert (binned.alpha, binned.bin_s) == (pytest.approx(0.4), 0.02)
    with pytest.raises(UserError, match=r"data\.bin_s of at most the time constant"):
        load_arrays(tmp_path / "a.npz", activity="x", bin_s=0.2)


def test_one_bin_a_trial_and_wrong_axes_are_refused_in_the_right_words(tmp_path, draw):
    savemat(tmp_path / "a.mat", {"counts": draw.poisson(3.0, size=(90, 12)), "angle": draw.integers(0, 8, (90, 1))})
    cases = {
        "one bin a trial shows no dynamics": {"axes": ["trial", "neuron"]},
        r"its 2 axes in their order, as data\.axes=\[neuron,time\]": {},
        r"some of trial, time, neuron": {"axes": ["trials", "neuron"]},
        "in the order of": {"axes": ["time", "time"]},
    }
    for words, axes in cases.items():
        with pytest.raises(UserError, match=f"(?i){words}") as refused:
            load_arrays(tmp_path / "a.mat", activity="counts", **axes)
        assert len(str(refused.value).splitlines()) <= 2
    lines, command = described([tmp_path / "a.mat"], 1.0)
    assert "90 x 12" in lines[1] + lines[0]
    assert "angle has one value for each of the 90" in command


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_key_all_arrays_are_told_with_a_command_that_works(tmp_path, draw, format, capsys):
    arrays = {
        "dff": smooth(draw, 40, 60, 12).transpose(2, 0, 1),
        "choice": draw.integers(0, 2, 40),
        "note": "of a session",
    }
    path = write(tmp_path, format, arrays)
    with pytest.raises(UserError) as refused:
        load_arrays(path)
    said = str(refused.value)
    key = "data" if format == "npy" else "dff"
    assert re.search(rf"  {key} +12 x 40 x 60 +float64 +-?[\d.]+ to [\d.]+", said)
    assert look([str(path)]) == 0
    shown = capsys.readouterr().out
    command = next(line for line in shown.splitlines() if line.startswith("python train.py"))
    assert command in said
    options = dict(word.removeprefix("data.").split("=", 1) for word in shlex.split(command)[3:])
    known = options["axes"] == "[neuron,trial,time]"  # by the choices: each trial has one
    assert known if format != "npy" else options["axes"].endswith(",time]")
    options = options | {"axes": options["axes"].strip("[]").split(",")}
    got = read_recording(options.pop("path"), "arrays", **options)
    assert got.activity.shape == ((40, 60, 12) if known else (12, 60, 40))
    assert (got.choices is None) == (format == "npy")


def test_the_listing_is_refused_before_torch_is_imported(tmp_path, draw):
    np.savez(tmp_path / "a.npz", x=smooth(draw, TRIALS, STEPS, NEURONS))
    code = """
import sys
from connector.errors import UserError
from connector.runs.options import checked_data
try:
    options = {"source": "arrays", "name": "arrays", "fold": 1, "n_folds": 5, "fold_seed": 17, "path": "a.npz"}
    checked_data(options).require_file()
except UserError as error:
    assert "data.activity=x" in str(error)
    assert "torch" not in sys.modules
    sys.exit(2)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2


def test_arrays_of_objects_are_not_unpickled_and_the_remedy_works(tmp_path, draw):
    trials = [smooth(draw, 1, n, 3)[0] for n in (9, 12, 7, 8)]
    np.savez(tmp_path / "a.npz", x=np.array(trials, dtype=object), y=np.arange(4))
    for act in (lambda: load_arrays(tmp_path / "a.npz", activity="x"), lambda: load_npz(tmp_path / "a.npz")):
        with pytest.raises(UserError) as refused:
            act()
        assert len(str(refused.value).splitlines()) <= 2
    with pytest.raises(UserError, match="objects, which would be unpickled"):
        load_arrays(tmp_path / "a.npz")
    with pytest.raises(UserError, match="as an array of numbers") as refused:
        load_arrays(tmp_path / "a.npz", activity="x")
    saved = re.search(r"numpy\.savez\(FILE, (.*)\),", str(refused.value))[1]
    np.savez(tmp_path / "b.npz", **eval(saved.removeprefix("**"), {"TRIALS": trials, "enumerate": enumerate}))
    got = load_arrays(tmp_path / "b.npz", activity="trial*")
    assert got.lengths.tolist() == [9, 12, 7, 8]
    assert all(torch.allclose(a[: len(x)], torch.tensor(x).float()) for a, x in zip(got.activity, trials))


def guessed(path):
    """Options of the command guessed, as load_arrays takes them."""
    paths = path if isinstance(path, list) else [path]
    command = described(paths, 1.0)[1].splitlines()[0]
    found = dict(word.removeprefix("data.").split("=", 1) for word in shlex.split(command)[4:])
    numbers = {"bin_s", "piece_s", "tau", "stop_s"} & set(found)
    found |= {name: float(found[name]) for name in numbers}
    return found | ({"axes": found["axes"].strip("[]").split(",")} if "axes" in found else {})


def test_guesses_of_continuous_recordings_and_spike_times_work(tmp_path, draw):
    trace = smooth(draw, 1, 900, 8)[0]
    np.save(tmp_path / "F.npy", 100 * (trace.T + 1))
    np.save(tmp_path / "iscell.npy", np.stack([np.arange(8) % 2, draw.uniform(size=8)], 1))
    paths = [tmp_path / "F.npy", tmp_path / "iscell.npy"]
    options = guessed(paths)
    assert (options["axes"], options["neurons"]) == (["neuron", "time"], "iscell:iscell/0")
    assert load_arrays(paths, **options).activity.shape == (4, 200, 4)
    savemat(tmp_path / "c.mat", {"dff": trace, "fs": 20.0})
    options = guessed(tmp_path / "c.mat")
    assert (options["bin_s"], options["axes"]) == (0.05, ["time", "neuron"])
    assert load_arrays(tmp_path / "c.mat", **options).activity.shape == (18, 50, 8)
    times, units = np.sort(draw.uniform(0, 60, 3000)), draw.integers(0, 6, 3000)
    np.savez(tmp_path / "e.npz", spike_times=times, spike_clusters=units, stim_onset=2.0 * np.arange(29))
    options = guessed(tmp_path / "e.npz")
    assert options == {
        "spike_times": "spike_times", "spike_neurons": "spike_clusters", "trial_starts": "stim_onset", "stop_s": 1.0,
    }  # fmt: skip
    assert load_arrays(tmp_path / "e.npz", **options).activity.shape == (29, 100, 6)
    starts = np.arange(1.0, 50.0, 3)
    savemat(tmp_path / "i.mat", {"ts": times, "cluster": units, "trials": np.stack([starts, starts + 0.8], 1)})
    options = guessed(tmp_path / "i.mat")
    assert (options["trial_starts"], options["trial_stops"]) == ("trials/1", "trials/2")
    assert load_arrays(tmp_path / "i.mat", **options).activity.shape == (17, 80, 6)
    by_unit = [times[units == k] for k in range(6)]
    savemat(tmp_path / "u.mat", {"unit": cells([{"ts": x} for x in by_unit])})
    with h5py.File(tmp_path / "n.h5", "w") as file:
        file["units/spike_times"] = np.concatenate(by_unit)
        file["units/spike_times_index"] = np.cumsum([len(x) for x in by_unit])
    for name in ("u.mat", "n.h5"):
        got = load_arrays(tmp_path / name, **guessed(tmp_path / name))
        assert got.activity.shape == (29, 40, 6), name
        assert got.activity.sum() == np.sum(times < times[0] + 58), name


def test_a_file_without_activity_is_told_without_a_guess(tmp_path):
    np.savez(tmp_path / "a.npz", name=np.array(["a", "b"]), x=np.arange(3))
    with pytest.raises(UserError, match="None looks like activity"):
        load_arrays(tmp_path / "a.npz")
