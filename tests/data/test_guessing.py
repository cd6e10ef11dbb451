"""The command that `connector look` suggests is the one that reads the file, and Hydra accepts it."""

import h5py
import numpy as np
import pytest
from guesses import guessed, read, smooth
from hydra.core.override_parser.overrides_parser import OverridesParser
from matlab73 import cells
from scipy.io import savemat

from connector.data.arrays import load_arrays
from connector.data.guessing_common import quoted
from connector.data.listing import described


@pytest.fixture
def draw():
    return np.random.default_rng(7)


def saved(folder, **arrays):
    """A npy file for each array."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.npy" for name in arrays]
    for path, x in zip(paths, arrays.values()):
        np.save(path, x)
    return paths


@pytest.mark.parametrize("name", ["stim_on", "trials.stimOn_times"])
def test_a_sorters_columns_of_samples_go_with_trial_starts_in_seconds(tmp_path, draw, name):
    samples = np.sort(draw.integers(0, 60 * 30_000, (3000, 1)), axis=0).astype(np.uint64)
    units = draw.integers(0, 6, 3000).astype(np.int32)
    starts = 2.0 * np.arange(29)  # whole numbers, but far smaller than the samples
    paths = saved(tmp_path, spike_templates=units[:, None], spike_times=samples, spike_clusters=units, **{name: starts})
    options, _ = guessed(*paths)
    options.pop("path")
    assert options == {
        "spike_times": "spike_times:spike_times", "spike_neurons": "spike_clusters:spike_clusters",
        "spike_unit_s": "1/30000", "trial_starts": f"{name}:{name}", "stop_s": 1, "trial_unit_s": 1,
    }  # fmt: skip
    assert load_arrays(paths, **options).activity.shape == (29, 100, 6)
    paths = saved(tmp_path, spike_times=samples, spike_clusters=units, stim_on=(starts * 30_000).astype(int))
    assert "trial_unit_s" not in guessed(*paths)[0]


def test_the_bins_times_of_a_struct_array_are_no_spike_times(tmp_path, draw):
    times = [np.arange(-50.0, -50 + 10 * n, 10) for n in (40, 55, 47, 61, 50)]
    data = [{"spikes": draw.poisson(1.0, (8, len(t))), "times": t} for t in times]
    savemat(tmp_path / "c.mat", {"Data": cells(data)})
    options, _ = guessed(tmp_path / "c.mat")
    assert (options["activity"], options["axes"]) == ("Data/*/spikes", ["trial", "neuron", "time"])
    assert options["bin_s"] == 0.01  # steps of 10, in ms
    assert read(options).lengths.tolist() == [40, 55, 47, 61, 50]
    uneven = [{"ts": np.sort(draw.uniform(0, 60, len(t))), "waveforms": draw.normal(size=(len(t), 32))} for t in times]
    savemat(tmp_path / "u.mat", {"unit": cells(uneven)})
    assert guessed(tmp_path / "u.mat")[0]["spike_times"] == "unit/*/ts"


def test_only_labels_of_samples_are_doubted_as_trials_of_one_bin(tmp_path, draw):
    traces = smooth(draw, 20, 900)
    beside = {"depth": draw.uniform(size=20), "group": np.arange(20) % 2, "when": np.cumsum(draw.uniform(size=900))}
    np.savez(tmp_path / "a.npz", F=traces, **beside)
    assert guessed(tmp_path / "a.npz")[1] == "This is a guess: set data.bin_s to the seconds between samples."
    np.savez(tmp_path / "b.npz", F=traces, angle=22.5 * (np.arange(900) % 8), **beside)
    assert "angle has one value for each of the 900" in guessed(tmp_path / "b.npz")[1]


@pytest.mark.parametrize(
    ("beside", "bin_s"),
    [
        ({"fr": 20.0, "fs": 30_000.0}, 0.05),
        ({"frame_rate": 20, "sampling_rate": 1000.0}, 0.05),
        ({"fs": 1000.0, "t": 3 + 0.04 * np.arange(5000)}, 0.04),
        ({"dt": 0.02}, 0.02),
        ({"dt": 20}, 0.02),
        ({"frame_period": 33.3}, 0.0333),
        ({"time_ms": np.arange(5000.0)}, 0.001),
        ({"t": np.arange(5000)}, None),  # numbers of samples
        ({"fr": np.arange(1.0, 4)}, None),
        ({"fr": 2.0}, 0.5),
    ],
)
def test_the_seconds_between_samples_are_those_that_the_file_tells(tmp_path, draw, beside, bin_s):
    for name, shape in (("one", (8, 5000)), ("trials", (3, 8, 5000))):
        np.savez(tmp_path / f"{name}.npz", dff=smooth(draw, *shape), **beside)
        options, said = guessed(tmp_path / f"{name}.npz")
        assert options.get("bin_s") == (bin_s or (0.01 if name == "one" else None))
        assert ("data.bin_s is from" in said) == (bin_s is not None)
        assert ("piece_s" in options) == (name == "one")
        assert read(options).n_trials > 1


def test_whole_numbers_that_are_rates_or_fluorescence_are_no_counts(tmp_path, draw):
    counts = draw.poisson(1.0, (8, 12, 50))
    cases = {
        "spikes": (counts, ""),
        "rates": (100 * counts, "multiples of 100"),
        "fluorescence": (counts + 400, "without a 0"),
        "high": (counts + 21 * (counts > 0), ""),  # as counts in wide bins
        "of_two": (5 * (counts > 0), ""),  # no unit is to be seen
    }
    for name, (x, words) in cases.items():
        np.savez(tmp_path / "a.npz", activity=x.astype(float))
        options, said = guessed(tmp_path / "a.npz")
        assert options["kind"] == ("rates" if words else "spikes"), name
        assert words in said
        assert ("set data.kind" in said) == bool(words)
        assert read(options).kind == options["kind"]


def test_files_of_one_name_are_told_apart_by_their_paths(tmp_path, draw):
    first, second = (saved(tmp_path / name, F=smooth(draw, n, 300))[0] for name, n in (("plane 0", 6), ("plane 1", 9)))
    lines, _ = described([first, second], 1.0)
    assert [line.split("  ")[0] for line in lines] == [f"{first}:F", f"{second}:F"]
    options, _ = guessed(first, second)
    assert options["activity"] == f"{second}:F"
    assert read(options).n_neurons == 9


def test_the_numbers_of_accepted_components_are_the_neurons(tmp_path, draw):
    for name in ("C", "F_dff"):
        with h5py.File(tmp_path / "c.hdf5", "w") as file:
            file[f"estimates/{name}"] = smooth(draw, 9, 400)
            file["estimates/f"] = smooth(draw, 2, 400)  # of the background
            file["estimates/idx_components"], file["estimates/idx_components_bad"] = [1, 4, 8], [0, 2, 3, 5, 6, 7]
            file["params/data/fr"] = 30
        options, _ = guessed(tmp_path / "c.hdf5")
        assert (options["activity"], options["bin_s"]) == (f"estimates/{name}", 0.03333)
        assert options["neurons"] == "estimates/idx_components"
        assert read(options).neuron_names == ("1", "4", "8")


def test_a_pattern_stands_for_the_arrays_counted_and_no_others(tmp_path, draw):
    cells = smooth(draw, 8, 600)
    for name, other in (
        ("c", "contrast"),
        ("roi", "roi_background"),
        ("cell.", "time"),
        ("", "time"),
        ("dF [", "dF [x]"),
    ):
        end = "]" if "[" in name else ""
        table = {"time": 0.02 * np.arange(600)} | {f"{name}{i}{end}": x for i, x in enumerate(cells)}
        table |= {other: np.arange(600) / 50}
        np.savez(tmp_path / "c.npz", **table)
        lines, _ = described([tmp_path / "c.npz"], 1.0)
        options, _ = guessed(tmp_path / "c.npz")
        assert any(line.startswith(f"{options['activity']} ") and "8 of (600)" in line for line in lines)
        assert options["activity"] == {"cell.": "cell.*"}.get(name, f"{name}%d{end}")
        np.testing.assert_allclose(np.concatenate(read(options).activity.numpy()), cells.T, rtol=1e-6)


def test_a_column_of_trials_in_a_table_is_guessed(tmp_path, draw):
    rates = smooth(draw, 12, 5, 40).transpose(0, 2, 1)
    table = {"trial": np.repeat(np.arange(1, 13), 40), "time": np.tile(20 * np.arange(40), 12)}
    table |= {f"n{i}": x for i, x in enumerate(rates.reshape(-1, 5).T)} | {"stim": np.repeat(np.arange(12) % 3, 40)}
    np.savetxt(
        tmp_path / "w.csv", np.stack(list(table.values()), 1), header=",".join(table), delimiter=",", comments=""
    )
    options, _ = guessed(tmp_path / "w.csv")
    assert (options["sample_trials"], options["conditions"], options["bin_s"]) == ("trial", "stim", 0.02)
    np.testing.assert_allclose(read(options).activity, rates, rtol=1e-6)


def test_groups_with_numbers_are_told_from_one_that_begins_alike(tmp_path, draw):
    rates = smooth(draw, 12, 8, 40)
    with h5py.File(tmp_path / "g.h5", "w") as file:
        for i, x in enumerate(rates):
            file[f"trial{i}/rates"] = x
        file["trial_info/stim"] = np.arange(12) % 2
    options, _ = guessed(tmp_path / "g.h5")
    assert options["activity"] == "trial%d/rates"
    np.testing.assert_allclose(read(options).activity.transpose(1, 2), rates, rtol=1e-6)


@pytest.mark.parametrize("name", ["unit", "spk", "st.", "unit.1."])
def test_lists_of_spike_times_by_names_with_a_number(tmp_path, draw, name):
    trains = {f"{name}{i}": np.sort(draw.uniform(0, 60, 200)) for i in (2, 3, 5, 8, 13)}
    beside = {"unit_ids": np.arange(5), "unit_depth": draw.uniform(size=5), "spk_fs": 30_000.0, "st": 0}
    np.savez(tmp_path / "u.npz", **trains, **beside)
    options, _ = guessed(tmp_path / "u.npz")
    got = read(options)
    assert (got.n_neurons, got.activity.sum()) == (5, pytest.approx(1000, abs=60))  # but what is behind the last piece


def test_vectors_of_different_lengths_in_hdf5_are_lists(tmp_path, draw):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        spikes = file.create_dataset("spike_times", (6,), dtype=h5py.vlen_dtype("f8"))
        trials = file.create_dataset("of_trial", (6, 5), dtype=h5py.vlen_dtype("f4"))
        for i in range(6):
            spikes[i] = np.sort(draw.uniform(0, 60, 90 * (i != 2)))
            for j in range(5):
                trials[i, j] = np.sort(draw.uniform(0, 1, 4 + j))
        lines, _ = described([tmp_path / "v.h5"], 1.0)
        assert ["6 x 5 of (4..8)" in lines[0], "6 of (0..90)" in lines[1]] == [True, True]
    options, _ = guessed(tmp_path / "v.h5")
    assert (
        read({"path": options["path"], "spike_times": "of_trial/*", "axes": ["neuron", "trial"]}).activity.sum() == 180
    )
    with h5py.File(tmp_path / "v.h5", "a") as file:
        del file["of_trial"]
    got = read(guessed(tmp_path / "v.h5")[0])
    assert (got.n_neurons, got.activity.sum()) == (6, pytest.approx(450, abs=30))


def of_axes(file, name, dims, x, sizes):
    """A dataset whose axes are named by scales, as netCDF's are; ``sizes`` is what there is of these."""
    file[name] = x
    for i, (dim, n) in enumerate(zip(dims, x.shape)):
        if dim not in sizes:
            file[dim], sizes[dim] = np.arange(float(n)), n
            file[dim].make_scale("This is a netCDF dimension but not a netCDF variable.")
        file[name].dims[i].attach_scale(file[dim])


@pytest.mark.parametrize("dims", ["time neuron trial", "neuron trial time", "unit event t", "roi repeat frame"])
def test_the_names_of_axes_in_a_netcdf_file_are_the_axes(tmp_path, draw, dims):
    order = [{"t": 1, "f": 1, "n": 2, "u": 2, "e": 0}.get(dim[:1], 2) for dim in dims.split()]
    order = [0 if dim in ("trial", "event", "repeat") else n for dim, n in zip(dims.split(), order)]
    counts = draw.poisson(1.0, (30, 20, 8))
    with h5py.File(tmp_path / "a.nc", "w") as file:
        sizes = {}
        of_axes(file, "rates", dims.split(), counts.transpose(order), sizes)
        of_axes(file, "stim", [dims.split()[order.index(0)]], np.arange(30) % 3, sizes)
    got = read(guessed(tmp_path / "a.nc")[0])
    np.testing.assert_array_equal(got.activity, counts)
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["rates"] = counts.transpose(order)
        for i, dim in enumerate(dims.split()):
            file["rates"].dims[i].label = dim
    np.testing.assert_array_equal(read(guessed(tmp_path / "l.h5")[0]).activity, counts)


def test_names_that_cannot_be_the_axes_of_activity_do_not_matter(tmp_path, draw):
    rates = smooth(draw, 30, 8, 20).transpose(0, 2, 1)
    for dims in (("trial", "trial", "neuron"), ("x", "y", "trial"), ("neuron", "x", "y"), ("x", "time", "z")):
        with h5py.File(tmp_path / "l.h5", "w") as file:
            file["rates"], file["stim"] = rates, np.arange(30) % 2
            for i, dim in enumerate(dims):
                file["rates"].dims[i].label = dim
        wanted = {"y": ["neuron", "time", "trial"], "x": ["trial", "time", "neuron"]}
        axes = guessed(tmp_path / "l.h5")[0]["axes"]
        assert axes == (wanted["x"] if dims[1] != "y" and dims[0] != "neuron" else axes)
        assert [dim for dim, axis in zip(dims, axes) if dim in ("neuron", "time") and dim != axis] == []


@pytest.mark.parametrize(
    "name", ["unit_id", "cell_type", "roi", "channels", "unitDepth", "brain_region", "cluster_ids"]
)
def test_one_value_for_each_neuron_does_not_make_it_the_trials(tmp_path, draw, name):
    spikes = draw.poisson(1.0, (40, 50, 12))
    values = draw.permutation(12) / (1 if "id" in name else 7)
    beside = [{name: values}, {name: values, "stim": np.arange(40) % 4}]
    for arrays in beside:
        np.savez(tmp_path / "u.npz", spikes=spikes.transpose(2, 1, 0), time=0.02 * np.arange(50), **arrays)
        np.testing.assert_array_equal(read(guessed(tmp_path / "u.npz")[0]).activity, spikes)


@pytest.mark.parametrize(
    ("n_units", "n_trials", "beside", "axes"),
    [(6, 30, None, "neuron trial"), (30, 6, None, "trial neuron"), (30, 6, 6, "neuron trial"), (6, 30, 30, "neuron trial")],
)  # fmt: skip
def test_cells_of_spike_times_by_unit_and_trial(tmp_path, draw, n_units, n_trials, beside, axes):
    trains = [np.sort(draw.uniform(0, 1, draw.integers(1, 9)))[None] for _ in range(n_units * n_trials)]
    trains[0], trains[5] = np.zeros((0, 0)), np.array([[0.5]])
    arrays = {} if beside is None else {"choice": draw.integers(0, 2, beside)}
    savemat(tmp_path / "s.mat", {"spk": cells(trains, (n_units, n_trials))} | arrays)
    options, said = guessed(tmp_path / "s.mat")
    assert (options["spike_times"], options["axes"]) == ("spk", axes.split())
    assert "check data.axes" in said
    assert ("choices" in options) == (beside is not None)
    got = read(options)
    assert got.n_trials == (n_trials if axes == "neuron trial" else n_units)
    assert got.activity.sum() == sum(x.size for x in trains)


def test_cells_by_probe_and_unit_are_neurons_where_trials_are_of_another_number(tmp_path, draw):
    trains = [np.sort(draw.uniform(0, 60, draw.integers(100, 200))) for _ in range(12)]
    for n, axes in ((29, ["neuron"]), (4, ["trial", "neuron"])):
        starts = np.arange(n, dtype=float)
        for beside in ({"stim_onset": starts}, {"trials": np.stack([starts, starts + 0.5], 1)}):
            savemat(tmp_path / "p.mat", {"spk": cells(trains, (4, 3))} | beside)
            options, _ = guessed(tmp_path / "p.mat")
            assert options.get("axes") == axes
            assert ("trial_starts" in options) == (n == 29)
            assert read(options).n_neurons == (12 if n == 29 else 3)


@pytest.mark.parametrize(
    "text",
    ["a b", " a", "a(b)", "a,b", "it's", 'say "x"', 'a\\"b', "b\\", "\u00e9", "null", "1", "1e3", "a=b", "[a]", "{a}", "#a", "-a"],
)  # fmt: skip
def test_hydra_reads_back_keys_of_any_letters(text):
    parse = OverridesParser.create().parse_override
    assert parse(f"data.activity={quoted(text)}").value() == text
    assert parse(f"data.path=[b,{quoted(text)}]").value()[1] == text


def test_plain_keys_stay_as_they_are_and_odd_ones_make_a_command_that_works(tmp_path, draw):
    parse = OverridesParser.create().parse_override
    for text in ("data/x.y", "trial*/x", "../a-b.npz", "/x/F.npy:F", "x"):
        assert quoted(text) == text == parse(f"data.activity={text}").value()
    path = tmp_path / "my file (1), 'new'.npz"
    trials = {'neural data (dF/F), "good"': smooth(draw, 7, 5, 40), "the choice": draw.integers(0, 2, 7)}
    np.savez(path, **trials)
    options, _ = guessed(path)
    assert options["path"] == str(path)
    got = read(options)
    assert (got.n_trials, got.activity.shape[2]) == (7, 5)
    assert got.choices is not None


def test_a_gap_in_the_time_axis_does_not_hide_the_interval(tmp_path, draw):
    at = 0.02 * (np.arange(600) + 5000 * (np.arange(600) >= 310))
    np.savez(tmp_path / "a.npz", d=np.tanh(smooth(draw, 6, 600).T / 9), t=at)
    options, said = guessed(tmp_path / "a.npz")
    assert (options["bin_s"], options["piece_s"]) == (0.02, 2)
    assert "data.bin_s is from t" in said
    assert read(options).stretches[:, 1].tolist() == [0, 100, 200, 310, 410]


@pytest.mark.parametrize(
    ("attributes", "bin_s"),
    [({"bin_size": 0.02}, 0.02), ({"bin_width": 20}, 0.02), ({"dt": 0.05}, 0.05), ({"rate": 25.0}, 0.04), ({"fs": 30_000}, None)],
)  # fmt: skip
def test_the_seconds_between_samples_are_those_of_attributes(tmp_path, draw, attributes, bin_s):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spikes/binned"] = draw.poisson(1.0, (20, 6, 40))
        file["spikes/binned"].attrs.update(attributes)
    options, said = guessed(tmp_path / "a.h5")
    assert options.get("bin_s") == bin_s
    assert (f"data.bin_s is from {next(iter(attributes))} of spikes/binned" in said) == (bin_s is not None)


def test_a_column_of_times_in_a_table_of_pandas_is_no_neuron(tmp_path, draw):
    cells = smooth(draw, 3, 400).T
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["df/block0_items"] = [b"time", b"b", b"a", b"c"]
        file["df/block0_values"] = np.hstack([np.arange(400)[:, None] / 50, cells])
    options, _ = guessed(tmp_path / "w.h5")
    assert options["neurons"] == ["1", "2", "3"]
    options["neurons"] = [1, 2, 3]  # as Hydra reads them
    np.testing.assert_allclose(np.concatenate(read(options).activity.numpy()), cells, rtol=1e-6)


def test_an_axis_whose_scale_is_gone_has_no_name(tmp_path, draw):
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["rates"], file["neuron"] = smooth(draw, 30, 8, 20).transpose(0, 2, 1), np.arange(20.0)
        file["neuron"].make_scale("neuron")
        file["rates"].dims[1].attach_scale(file["neuron"])
        file["rates"].attrs["units"], file["rates"].attrs["dt"] = h5py.Empty("S1"), np.nan
        del file["neuron"]
    assert guessed(tmp_path / "g.h5")[0]["axes"] == ["trial", "time", "neuron"]


@pytest.mark.parametrize(
    ("values", "given"),
    [
        (["L", "R"], ["L", "R"]), (["left", "right"], []), (["nogo", "go", "none"], ["go", "nogo"]), ([1, 2], ["1", "2"]), ([-1, 1], ["-1", "1"]),
        ([-1, 0, 1], ["-1", "1"]), ([0, 1], []), ([False, True], []), ([0.0, 1.0, np.nan], []), ([0.21, 0.34], None), ([1, 2, 3], None),
        (["a", "b", "c"], None),
    ],
)  # fmt: skip
def test_choices_have_two_values_which_are_named_where_need_be(tmp_path, draw, values, given):
    choices = np.array(values)[np.arange(24) % len(values)]
    np.savez(tmp_path / "c.npz", rates=smooth(draw, 24, 5, 40), response=choices)
    options, said = guessed(tmp_path / "c.npz")
    assert options.get("choice_values", []) == (given or [])
    assert ("taken as left" in said) == bool(given)
    got = read(options)
    if given is None:
        assert got.choices is None
    else:
        left, right = given or values[:2]
        sides = [{str(left): 0, str(right): 1}.get(str(x)) for x in choices.tolist()]
        assert [None if np.isnan(x) else int(x) for x in got.choices.tolist()] == sides


def test_reaction_times_are_no_conditions(tmp_path, draw):
    beside = {"stim_time": draw.uniform(size=30), "target_angle": np.arange(30) % 8 * 45.0}
    np.savez(tmp_path / "c.npz", rates=smooth(draw, 30, 5, 40), **beside)
    assert guessed(tmp_path / "c.npz")[0]["conditions"] == "target_angle"


def test_times_of_trials_are_no_time_axis(tmp_path, draw):
    spikes = np.random.default_rng(3).poisson(1 + np.sin(np.arange(20) / 3)[:, None] ** 2, (30, 20, 8))
    np.savez(tmp_path / "t.npz", spikes=spikes, choices=np.arange(30) % 2, times=5 * np.arange(30))
    np.testing.assert_array_equal(read(guessed(tmp_path / "t.npz")[0]).activity, spikes)
