"""Arrays within cells, structs and groups, spread over files, and what belongs to trials and neurons beside them."""

import h5py
import numpy as np
import pytest
import torch
from matlab73 import cells, write_matlab73
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.data.modules import FileDataModule
from connector.errors import UserError
from connector.files import content_checksum, linked_files

LENGTHS = (9, 14, 7, 11, 8, 12)
NEURONS = 4


@pytest.fixture
def trials():
    """Trials (time, neuron) of different lengths in (-1, 1)."""
    draw = np.random.default_rng(5)
    return [np.tanh(np.cumsum(draw.normal(size=(n, NEURONS)), 0) / 3) for n in LENGTHS]


def write(version, path, arrays):
    if version == "v5":
        savemat(path, arrays)
        return path
    return write_matlab73(path, arrays)


def holds(recording, trials):
    """Whether a recording is these trials."""
    each = zip(recording.activity, recording.lengths.tolist(), trials, strict=True)
    return all(n == len(x) and np.allclose(a[:n], x, atol=1e-6) and not a[n:].any() for a, n, x in each)


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_cells_and_structs_of_trials_of_different_lengths(tmp_path, trials, version):
    by_trial = cells([x.T for x in trials], (1, len(trials)))
    # {trial, neuron}, a vector each
    by_both = np.empty((len(trials), NEURONS), dtype=object)
    for i, x in enumerate(trials):
        for k in range(NEURONS):
            by_both[i, k] = x[:, k]
    # {neuron}{trial}
    nested = cells([cells([x[:, k] for x in trials]) for k in range(NEURONS)])
    structs = [{"fr": x, "id": float(i)} for i, x in enumerate(trials)]
    records = np.array([(s["fr"], s["id"]) for s in structs], dtype=[("fr", object), ("id", object)])
    struct_array = structs if version == "v7.3" else records
    of_structs = cells(structs)
    arrays = {"a": by_trial, "s": {"b": by_both}, "nested": nested, "t": struct_array, "c": of_structs}
    path = write(version, tmp_path / "x.mat", arrays)
    for key, axes in {
        "a": ["trial", "neuron", "time"],
        "s.b": ["trial", "neuron", "time"],
        "s/b": ["trial", "neuron", "time"],
        "nested": ["neuron", "trial", "time"],
        "t.fr": ["trial", "time", "neuron"],
        "c.fr": ["trial", "time", "neuron"],
        "c/*/fr": ["trial", "time", "neuron"],
    }.items():
        assert holds(load_arrays(path, activity=key, axes=axes), trials), key
    with pytest.raises(UserError, match=r"fr in x\.mat:s; got no such key") as refused:
        load_arrays(path, activity="s.fr")
    assert "there: b" in str(refused.value).lower()
    with pytest.raises(UserError, match="differ in the number of samples of a trial alone"):
        load_arrays(path, activity="a", axes=["neuron", "trial", "time"])


def test_one_cell_and_one_column_are_counted_as_the_file_counts(tmp_path, trials):
    three = np.stack([x[:7] for x in trials])
    savemat(tmp_path / "x.mat", {"c": cells([three, 1 - three])})
    np.savez(tmp_path / "x.npz", both=np.stack([three, 0.5 * three], axis=-1))
    assert holds(load_arrays(tmp_path / "x.mat", activity="c/1"), three)
    assert holds(load_arrays(tmp_path / "x.npz", activity="both/0"), three)
    with pytest.raises(UserError, match="columns 0 to 1"):
        load_arrays(tmp_path / "x.npz", activity="both/2")
    with pytest.raises(UserError, match="1 to 2"):
        load_arrays(tmp_path / "x.mat", activity="c/0")


def test_groups_and_names_with_numbers_are_lists_in_the_order_in_which_people_count(tmp_path, trials):
    twelve = trials + trials
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i, x in enumerate(twelve):
            file[f"trial_{i}/dff.raw"] = x
            file[f"all/{i}"] = x
    np.savez(tmp_path / "x.npz", **{f"trial{i}": x for i, x in enumerate(twelve)}, other=np.arange(3))
    for path, key in (("x.h5", "trial_*/dff.raw"), ("x.h5", "all"), ("x.h5", "all/*"), ("x.npz", "trial*")):
        assert holds(load_arrays(tmp_path / path, activity=key), twelve), key


def test_several_files_and_a_mask_of_neurons(tmp_path, trials):
    three = np.stack([x[:7] for x in trials])
    mask = np.array([[1, 0.9], [0, 0.1], [1, 0.8], [0, 0.3]])
    np.save(tmp_path / "F.npy", three)
    np.save(tmp_path / "iscell.npy", mask)
    np.savez(tmp_path / "b.npz", choice=np.arange(6) % 2, F=three[::-1], kept=np.array([3, 1]))
    paths = [tmp_path / name for name in ("F.npy", "iscell.npy", "b.npz")]
    got = load_arrays(paths, activity="F.npy:F", neurons="iscell/0", choices="choice")
    assert holds(got, three[:, :, [0, 2]])
    assert (got.name, got.neuron_names, got.choices.tolist()) == ("F", ("0", "2"), [0.0, 1.0] * 3)
    assert holds(load_arrays(paths, activity="b:F", neurons="b:kept"), three[::-1][:, :, [3, 1]])
    assert holds(load_arrays(paths, activity="b:F", neurons=[2]), three[::-1][:, :, [2]])
    with pytest.raises(UserError, match="2 that have it"):
        load_arrays(paths, activity="F")
    with pytest.raises(UserError, match="rates in one of"):
        load_arrays(paths, activity="rates")
    with pytest.raises(UserError, match="KEY/NUMBER"):
        load_arrays(paths, activity="b:F", neurons="iscell")
    for wrong in ([4], [0, 0], [0.5]):
        with pytest.raises(UserError, match="a mask of 4 neurons, or different numbers from 0 to 3"):
            load_arrays(paths, activity="b:F", neurons=wrong)
    with pytest.raises(UserError, match="keeps some"):
        load_arrays(paths, activity="b:F", neurons=[0, 0, 0, 0])
    data = FileDataModule([str(x) for x in paths], "arrays", reading={"activity": "b:F"})
    data.setup()
    assert data.recording.n_trials == 6


def test_the_checksum_is_of_all_files(tmp_path):
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path in paths:
        np.save(path, np.arange(3))
    before = content_checksum(paths)
    assert linked_files(paths) == [paths[1].resolve()]
    np.save(paths[1], np.arange(4))
    assert content_checksum(paths) != before
    np.save(paths[1], np.arange(3))
    assert content_checksum(paths) == before


@pytest.mark.parametrize("format", ["npz", "h5", "v5", "v7.3"])
def test_a_label_of_each_trial_is_an_input_that_is_one_in_its_trials(tmp_path, trials, format):
    three, labels = np.stack([x[:7] for x in trials]), ["go", "stop", "go", "go", "stop", "no"]
    arrays = {"x": three, "label": np.array(labels), "angle": np.array([0, 90, 0, 45, 90, np.nan])}
    path = tmp_path / "x"
    if format == "npz":
        path = tmp_path / "x.npz"
        np.savez(path, **arrays)
    elif format == "h5":
        with h5py.File(path, "w") as file:
            for name, value in arrays.items():
                file[name] = value.astype(h5py.string_dtype()) if name == "label" else value
    else:
        write(format, path, arrays | {"label": cells(labels)})
    got = load_arrays(path, activity="x", conditions="label", condition_inputs=True)
    assert got.input_names == ("label go", "label no", "label stop")
    expected = torch.tensor([[x == kind for kind in ("go", "no", "stop")] for x in labels]).float()
    assert torch.equal(got.inputs, expected[:, None].expand(6, 7, 3))
    assert "conditions (label): 3 of go, 1 of no, 2 of stop" in got.notes
    angles = load_arrays(path, activity="x", conditions="angle", condition_inputs=True)
    assert angles.input_names == ("angle 0", "angle 45", "angle 90")
    assert not angles.inputs[5].any()
    assert load_arrays(path, activity="x", conditions="label").inputs is None


def test_fields_of_a_structured_array_are_its_columns(tmp_path, trials):
    three = np.stack([x[:7] for x in trials])
    table = np.array([(1, b"L"), (0, b"R")] * 3, dtype=[("n", int), ("side", "S1")])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["table"] = three, table
    got = load_arrays(tmp_path / "x.h5", activity="x", choices="table.side", choice_values=["L", "R"])
    assert got.choices.tolist() == [0.0, 1.0] * 3


def test_a_cell_without_a_field_is_left_out_and_an_empty_cell_is_kept(tmp_path):
    """As in files with a cell for each electrode, of which most recorded nothing."""
    draw = np.random.default_rng(0)
    x = [draw.poisson(2.0, size=(5, 8)) for _ in range(3)]
    held = cells([cells([{"n": x[0]}, np.zeros((0, 0))]), np.zeros((0, 0)), cells([{"n": x[1]}, {"n": x[2]}])])
    savemat(tmp_path / "x.mat", {"c": held})
    with pytest.raises(UserError, match="in 2 levels of lists"):
        load_arrays(tmp_path / "x.mat", activity="c/*/*/n", axes=["neuron", "trial", "time"])
    assert load_arrays(tmp_path / "x.mat", activity="c/3/n", axes=["neuron", "trial", "time"]).activity.shape == (
        5,
        8,
        2,
    )


def test_a_mask_of_trials_goes_through_all_that_belongs_to_them(tmp_path, trials):
    draw = np.random.default_rng(1)
    correct, choice, when = np.array([1, 0, 1, 1, 0, 1]), np.array([0, 1, 1, 0, 0, 1]), 3.0 * np.arange(6)
    inputs = [draw.normal(size=len(x)) for x in trials]
    of_three = {"correct": correct, "choice": choice, "when": when, "cue": cells(["a", "b", "a", "c", "b", "c"])}
    savemat(tmp_path / "x.mat", {"x": cells(trials), "u": cells(inputs)} | of_three)
    keys = {"inputs": "u", "input_axes": ["trial", "time"], "choices": "choice", "times": "when"}
    got = load_arrays(tmp_path / "x.mat", activity="x", trials="correct", **keys)
    kept = [0, 2, 3, 5]
    assert holds(got, [trials[i] for i in kept])
    assert holds(got.trials(torch.arange(4)), [trials[i] for i in kept])
    assert (got.choices.tolist(), got.trial_times_s.tolist()) == (choice[kept].tolist(), when[kept].tolist())
    assert all(np.allclose(u[: LENGTHS[i], 0], inputs[i]) for u, i in zip(got.inputs, kept))
    some = load_arrays(tmp_path / "x.mat", activity="x", trials=[6, 1], conditions="cue", condition_inputs=True)
    assert holds(some, [trials[5], trials[0]])
    assert some.input_names == ("cue a", "cue c")
    with pytest.raises(UserError, match="a mask of 6 trials, or different numbers from 1 to 6"):
        load_arrays(tmp_path / "x.mat", activity="x", trials=[0])


def test_trials_padded_with_nan_at_the_front_begin_at_their_first_sample(tmp_path, trials):
    padded = np.full((6, 15, NEURONS), np.nan)
    inputs = np.zeros((6, 15, 1))
    for row, u, x in zip(padded, inputs, trials):
        row[15 - len(x) :] = x
        u[15 - len(x) :, 0] = np.arange(1, len(x) + 1)
    np.savez(tmp_path / "x.npz", x=padded, u=inputs)
    got = load_arrays(tmp_path / "x.npz", activity="x", inputs="u")
    assert holds(got, trials)
    assert all(u[: len(x), 0].tolist() == [*range(1, len(x) + 1)] for u, x in zip(got.inputs, trials))
    assert any("6 trials padded with NaN at the front" in note for note in got.notes)
