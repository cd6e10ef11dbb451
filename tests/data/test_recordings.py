"""Files of every kind, good and bad: what is read is exact, what cannot be read is refused with a reason."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from matlab73 import write_matlab73
from scipy.io import loadmat, savemat

from connector.data.clicks import load_rat
from connector.data.nlb import load_nlb
from connector.data.npz import load_npz
from connector.data.nwb import load_nwb
from connector.data.nwb_export import export_nwb, same_recording
from connector.data.preprocessing import adapt_clicks
from connector.data.readers import read_recording, recognise_format, source_of
from connector.errors import UserError

DATA = Path(os.environ.get("CONNECTOR_DATA", ROOT.parent / "shared" / "data"))
SESSIONS = DATA / "rat_frontal_cortex"

TRIALS, STEPS, NEURONS = 6, 9, 4


def _rates(seed: int = 0) -> np.ndarray:
    return np.tanh(np.random.default_rng(seed).normal(size=(TRIALS, STEPS, NEURONS)))


def _spikes(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.7, size=(TRIALS, STEPS, NEURONS))


def _save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


# --- npz: what is read --------------------------------------------------------------------------------------------


def test_rates_alone(tmp_path):
    recording = load_npz(_save(tmp_path / "mine.npz", rates=_rates()))
    assert (recording.kind, recording.activation, recording.alpha, recording.name) == ("rates", "tanh", 0.1, "mine")
    assert recording.activity.dtype == torch.float32
    assert np.array_equal(recording.activity.numpy(), _rates().astype(np.float32))
    assert recording.lengths.tolist() == [STEPS] * TRIALS
    assert recording.latents is recording.loadings is recording.n is recording.inputs is None


def test_the_authors_convention(tmp_path):
    rng = np.random.default_rng(1)
    mbd, n = rng.normal(size=(NEURONS, 2 + 3 + 1)), rng.normal(size=(NEURONS, 2))
    latents, inputs = rng.normal(size=(TRIALS, STEPS, 2)), rng.normal(size=(TRIALS, STEPS, 3))
    h = latents @ mbd[:, :2].T + inputs @ mbd[:, 2:5].T + mbd[:, 5]
    path = _save(
        tmp_path / "a.npz",
        rates=np.tanh(h),
        potentials=h,
        latents=latents,
        MBD=mbd,
        N=n,
        externalinputs=inputs,
        lengths=np.full(TRIALS, STEPS),
    )
    recording = load_npz(path, alpha=0.2)
    known = recording.loadings
    assert recording.alpha == 0.2
    assert recording.n_inputs == 3
    assert torch.equal(known.stack(), torch.from_numpy(mbd))
    assert (known.rank, known.n_inputs, known.has_bias) == (2, 3, True)
    assert torch.equal(recording.n, torch.from_numpy(n))
    assert torch.equal(recording.latents, torch.from_numpy(latents))
    assert recording.notes == ()
    # Rates of another nonlinearity are told from the potentials.
    wrong = _save(tmp_path / "b.npz", rates=np.tanh(h), potentials=-h)
    assert any("correlate" in note for note in load_npz(wrong).notes)


@pytest.mark.parametrize(
    ("width", "inputs", "expected"),
    [
        (2, 0, (0, False)),
        (3, 0, (0, True)),
        (2, 2, (0, False)),
        (4, 2, (2, False)),
        (5, 2, (2, True)),
        (3, 1, (1, False)),
    ],
)
def test_mbd_is_split_by_rank_and_inputs(tmp_path, width, inputs, expected):
    rng = np.random.default_rng(2)
    arrays = {
        "rates": _rates(),
        "latents": rng.normal(size=(TRIALS, STEPS, 2)),
        "MBD": rng.normal(size=(NEURONS, width)),
    }
    if inputs:
        arrays["externalinputs"] = rng.normal(size=(TRIALS, STEPS, inputs))
    known = load_npz(_save(tmp_path / "a.npz", **arrays)).loadings
    assert known.rank == 2
    assert (known.n_inputs, known.has_bias) == expected
    assert np.array_equal(known.stack().numpy(), arrays["MBD"])


def test_mbd_takes_its_rank_from_n_or_from_the_caller(tmp_path):
    mbd = np.random.default_rng(0).normal(size=(NEURONS, 3))
    path = _save(tmp_path / "a.npz", rates=_rates(), MBD=mbd)
    assert load_npz(path, rank=3).loadings.has_bias is False
    assert load_npz(path, rank=2).loadings.has_bias is True
    with pytest.raises(UserError, match="latents"):
        load_npz(path)
    assert load_npz(_save(tmp_path / "b.npz", rates=_rates(), MBD=mbd, N=mbd[:, :2])).loadings.has_bias is True


def test_columns_of_zeros_are_absent(tmp_path):
    mbd = np.random.default_rng(0).normal(size=(NEURONS, 4))
    mbd[:, 3] = 0
    latents, zeros = np.random.default_rng(1).normal(size=(TRIALS, STEPS, 2)), np.zeros((TRIALS, STEPS, 1))
    path = _save(tmp_path / "a.npz", rates=_rates(), MBD=mbd, latents=latents, externalinputs=zeros)
    recording = load_npz(path)
    assert recording.inputs is None
    assert np.array_equal(recording.loadings.stack().numpy(), mbd[:, :2])
    assert len(recording.notes) == 2


def test_choices_of_more_than_two_values_are_none_and_counted(tmp_path):
    path = _save(tmp_path / "a.npz", spikes=_spikes(), choices=np.arange(TRIALS, dtype=float))
    recording = load_npz(path)
    assert recording.choices.nan_to_num(-1).tolist() == [0, 1, *[-1] * (TRIALS - 2)]
    (said,) = [note for note in recording.notes if "choices" in note]
    assert f"{TRIALS - 2} of {TRIALS} trials" in said
    assert "such as 2" in said
    assert "1 left and 1 right" in said


def test_findrs_convention(tmp_path):
    spikes = _spikes().astype(float)
    lengths = np.array([9, 4, 7, 9, 2, 8])
    for trial, length in enumerate(lengths):
        spikes[trial, length:] = np.nan
    inputs = np.where(np.isnan(spikes[:, :, :2]), np.nan, 1.0)
    choices, times = np.array([0, 1, 1, 0, 1, 0]), 10.0 * np.arange(TRIALS)
    arrays = {"spikes": spikes, "externalinputs": inputs, "choices": choices, "times": times}
    recording = load_npz(_save(tmp_path / "a.npz", lengths=lengths, **arrays), tau_s=0.2, bin_s=0.02)
    assert (recording.kind, recording.activation, recording.bin_s) == ("spikes", "softplus", 0.02)
    assert recording.alpha == pytest.approx(0.1)
    assert recording.lengths.tolist() == lengths.tolist()
    assert torch.isfinite(recording.activity).all()
    assert float(recording.activity.sum()) == np.nansum(spikes)
    assert float(recording.inputs.sum()) == np.nansum(inputs)
    assert recording.choices.tolist() == choices.tolist()
    assert recording.trial_times_s.tolist() == times.tolist()
    # The same file without lengths: they are read off the NaN.
    inferred = load_npz(_save(tmp_path / "b.npz", **arrays))
    assert inferred.lengths.tolist() == lengths.tolist()
    assert torch.equal(inferred.activity, recording.activity)
    assert any("inferred" in note for note in inferred.notes)


def test_padding_changes_nothing(tmp_path):
    rates, lengths = _rates(), np.array([5, 6, 7, 8, 9, 2])
    plain = load_npz(_save(tmp_path / "a.npz", rates=rates, lengths=lengths))
    rubbish = rates.copy()
    for trial, length in enumerate(lengths):
        rubbish[trial, length:] = [1e9, -1e9, np.nan, np.inf]
    assert torch.equal(load_npz(_save(tmp_path / "b.npz", rates=rubbish, lengths=lengths)).activity, plain.activity)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, bool])
def test_counts_of_any_type(tmp_path, dtype):
    recording = load_npz(_save(tmp_path / "a.npz", spikes=_spikes().astype(dtype)))
    assert np.array_equal(recording.activity.numpy(), _spikes().astype(dtype).astype(np.float32))


def test_noisy_and_saturated_rates_pass(tmp_path):
    noisy = np.sign(_rates()) + 0.3 * np.random.default_rng(0).normal(size=(TRIALS, STEPS, NEURONS))
    assert load_npz(_save(tmp_path / "a.npz", rates=noisy)).n_neurons == NEURONS
    saturated = np.sign(_rates()).astype(np.float32)
    assert float(load_npz(_save(tmp_path / "b.npz", rates=saturated)).activity.abs().min()) == 1
    with pytest.raises(UserError, match="range of tanh"):
        load_npz(_save(tmp_path / "c.npz", rates=20 * np.abs(noisy)))
    assert load_npz(tmp_path / "c.npz", activation="softplus").activation == "softplus"
    assert load_npz(tmp_path / "c.npz", range_tolerance=100).activation == "tanh"


# --- npz: what is refused -----------------------------------------------------------------------------------------


def _with(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(float)
    changed[1, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"activity": _rates()}, "`rates` or `spikes`.*activity"),
        ({}, "nothing"),
        ({"rates": _rates(), "spikes": _spikes()}, "both"),
        ({"rates": _rates()[0]}, r"axes \(trials, time, neurons\).*\(9, 4\)"),
        ({"rates": _rates()[None]}, "axes"),
        ({"rates": np.zeros((0, 5, 3))}, "not empty"),
        ({"rates": _rates().astype(complex)}, "real numbers"),
        ({"rates": np.full((2, 3, 4), "x")}, "real numbers"),
        ({"rates": _with(_rates(), np.nan)}, "1 NaN"),
        ({"rates": _with(_rates(), np.inf)}, "1 NaN or infinite"),
        ({"rates": np.full((6, 9, 4), 0.5)}, "never varies"),
        ({"rates": np.full((6, 9, 4), np.nan)}, "NaN only"),
        ({"rates": 30 * np.abs(_rates())}, "data.activation"),
        ({"rates": _with(_rates(), 1e6)}, "range"),
        ({"spikes": _spikes() - 1}, "smallest value of -1"),
        ({"spikes": _rates()**2}, "fractions"),
        ({"rates": _rates(), "lengths": np.array([9, 9, 9])}, "6 trials"),
        ({"rates": _rates(), "lengths": np.array([9, 9, 9, 9, 9, 10])}, "2 to 9"),
        ({"rates": _rates(), "lengths": np.array([9, 9, 9, 9, 9, 1])}, "2 to 9"),
        ({"rates": _rates(), "lengths": np.full(6, 8.5)}, "whole numbers"),
        ({"rates": _rates(), "externalinputs": np.ones((6, 8, 2))}, "externalinputs of shape"),
        ({"rates": _rates(), "externalinputs": _with(np.ones((6, 9, 4)), np.nan)}, "finite values in inputs"),
        ({"rates": _rates(), "latents": np.ones((5, 9, 2))}, "latents of shape"),
        ({"rates": _rates(), "latents": np.ones((6, 9, 2)), "MBD": np.ones((4, 5))}, "2 or 3 columns"),
        ({"rates": _rates(), "latents": np.ones((6, 9, 2)), "MBD": np.ones((3, 2))}, "4 recorded neurons"),
        ({"rates": _rates(), "N": np.full((4, 2), np.nan)}, "finite values in N"),
        ({"rates": _rates(), "latents": np.ones((6, 9, 2)), "N": np.ones((4, 3))}, "rank 2"),
        ({"rates": _rates(), "potentials": np.ones((6, 9, 2))}, "potentials"),
        ({"rates": _rates(), "choices": np.ones(5)}, "choices"),
        ({"rates": _rates(), "times": np.ones(5)}, "times"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_recording(tmp_path, arrays, words):
    path = _save(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=f"(?s){words}"):
        load_npz(path)


class _Trap:
    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_pickles_are_never_opened(tmp_path):
    trap = _Trap()
    trap.place = tmp_path / "sprung"
    ragged = np.empty(2, dtype=object)
    ragged[:] = [trap, np.ones((3, 4))]
    path = _save(tmp_path / "a.npz", rates=ragged)
    with pytest.raises(UserError, match="object array"):
        load_npz(path)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(trap))
    with pytest.raises(UserError, match="unknown format"):
        load_npz(tmp_path / "b.npz")
    assert not trap.place.exists()


def test_a_small_file_with_huge_arrays_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, rates=np.zeros((1000, 100, 100), dtype=np.float32))
    assert path.stat().st_size < 1e6
    with pytest.raises(UserError, match=r"0\.01 GB"):
        load_npz(path, max_gigabytes=0.01)
    # A header that announces more than the file holds.
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive, archive.open("rates.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**5, 10)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(UserError, match="header"):
        load_npz(tmp_path / "liar.npz")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_npz(tmp_path, share):
    whole = _save(tmp_path / "a.npz", rates=_rates()).read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError):
        load_npz(tmp_path / "b.npz")


def test_damaged_npz(tmp_path):
    content = bytearray(_save(tmp_path / "a.npz", rates=_rates()).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_npz(tmp_path / "b.npz")


READERS = {"npz": load_npz, "rat": load_rat, "nwb": load_nwb, "nlb": load_nlb}


def files_of_every_format(folder: Path) -> dict[str, Path]:
    """By format: one file each, under names that say something else."""
    import h5py

    paths = {
        name: folder / f"{i}.npz"
        for i, name in enumerate(
            ("npz", "npy", "matlab5", "matlab73", "nwb", "nwb1", "nlb", "hdf5", "lfs", "html", "empty", "unknown")
        )
    }
    _save(folder / "a.npz", rates=_rates()).rename(paths["npz"])
    np.save(folder / "b.npy", _rates())
    (folder / "b.npy").rename(paths["npy"])
    savemat(folder / "c.mat", {"x": 1.0})
    (folder / "c.mat").rename(paths["matlab5"])
    write_matlab73(paths["matlab73"], {"x": np.float64(1)})
    with h5py.File(paths["nwb"], "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
    for name, key in (("nwb1", "nwb_version"), ("nlb", "mc_maze/train_spikes_heldin"), ("hdf5", "x")):
        with h5py.File(paths[name], "w") as file:
            file[key] = np.zeros(3)
    paths["lfs"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    paths["html"].write_text("\n<!DOCTYPE html><html></html>")
    paths["empty"].write_bytes(b"")
    paths["unknown"].write_text("rates")
    return paths


def test_formats_are_recognised_by_content(tmp_path):
    paths = files_of_every_format(tmp_path)
    for name, path in paths.items():
        assert recognise_format(path) == name
    assert read_recording(paths["npz"], alpha=0.3).alpha == 0.3
    assert read_recording(paths["npz"], "npz").n_trials == TRIALS
    with pytest.raises(UserError, match="options"):
        read_recording(paths["npz"], alhpa=0.3)
    with pytest.raises(UserError, match="a format among"):
        read_recording(paths["npz"], "mat")
    for reader in READERS.values():
        for absent in (tmp_path / "absent.npz", tmp_path):
            with pytest.raises(UserError, match="a file to read"):
                reader(absent)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_another_format_is_refused_with_the_data_set_that_reads_it(tmp_path, reader):
    words = {
        "npz": "data=npz", "npy": "savez", "matlab5": "data=rat", "matlab73": "data=rat", "nwb": "data=nwb",
        "nwb1": "NWB 2", "nlb": "data=nlb", "hdf5": "data=npz", "lfs": "git lfs pull", "html": "download",
        "empty": "again", "unknown": "data=npz",
    }  # fmt: skip
    own = {"npz": {"npz"}, "rat": {"matlab5", "matlab73"}, "nwb": {"nwb"}, "nlb": {"nlb"}}[reader]
    for name, path in files_of_every_format(tmp_path).items():
        with pytest.raises(UserError) as refused:
            READERS[reader](path) if reader != "npz" or name != "npz" else load_npz(path, rank=0, alpha=2)
        assert len(str(refused.value).splitlines()) <= 2
        if name not in own:
            assert words[name].lower() in str(refused.value).lower(), name
            assert path.name in str(refused.value)


def test_truncated_hdf5_is_refused_whatever_it_was(tmp_path):
    import h5py

    with h5py.File(tmp_path / "whole", "w") as file:
        file["train_spikes_heldin"] = np.ones((4, 5, 3))
    whole = (tmp_path / "whole").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="whole"):
            load_nlb(tmp_path / "cut")


# --- sessions of the clicks task ----------------------------------------------------------------------------------


def _cells(items: list) -> np.ndarray:
    cells = np.empty((len(items), 1), dtype=object)
    cells[:, 0] = items
    return cells


def _session(path: Path, version: str = "cells", **changes) -> Path:
    """Three trials of two neurons, written as the public sessions are: v5 "cells", "v7.3 cells" or "v7.3 structs"."""
    clicks = [
        {"L": np.array([0.0, 0.015]), "R": np.array([0.0, 0.031, 0.05])},
        {"L": 0, "R": np.array([0.0, 0.02])},  # one click alone is a number
        {"L": np.array([0.0, 0.01]), "R": 0},
    ]
    lengths, areas = [6, 4, 5], ["mPFC", "dStr"]
    counts = [np.arange(2 * steps, dtype=np.uint8).reshape(2, steps) % 3 for steps in lengths]
    counts[0][0, 0] = 200  # twice this overflows a byte
    trials = [
        {
            "choice": np.uint8(i % 2),
            "clicktimes": clicks[i],
            "gamma": [np.int16(-4), np.float64(1.5), np.int16(3)][i],
            "stereoclick_time_s": 100.5 * (i + 1),
            "ntimesteps": np.uint8(lengths[i]),
            "photostimulus_incline_on_s": -0.1 if i == 1 else np.nan,
            "baseline_hz": np.array([[5.0 + i], [7.0]]),
            "spiketrains": _cells([row[None] for row in counts[i]]),
        }
        for i in range(3)
    ]
    neurons = [{"brainarea": area, "neuronindex": i + 3} for i, area in enumerate(areas)]
    content = {"trials": _cells(trials), "neurons": _cells(neurons)} | changes
    content = {key: value for key, value in content.items() if value is not None}
    if version == "cells":
        savemat(path, content)
        return path
    if version == "v7.3 structs":
        content = {key: list(value.ravel()) for key, value in content.items()}
    return write_matlab73(path, content)


def test_a_session_by_hand(tmp_path):
    recording = load_rat(_session(tmp_path / "s.mat"), include_photostimulated=True, adaptation_phi=0.2)
    assert (recording.kind, recording.activation, recording.bin_s) == ("spikes", "softplus", 0.01)
    assert recording.alpha == pytest.approx(0.1)
    assert recording.activity.shape == (3, 6, 2)
    assert recording.lengths.tolist() == [6, 4, 5]
    assert recording.activity[0, :, 0].tolist() == [200, 1, 2, 0, 1, 2]
    assert recording.activity[1, :, 1].tolist() == [1, 2, 0, 1, 0, 0]
    assert recording.choices.tolist() == [0, 1, 0]
    assert recording.evidence.tolist() == [-4, 1.5, 3]
    assert recording.click_difference.tolist() == [1, 1, -1]
    assert recording.trial_times_s.tolist() == [100.5, 201.0, 301.5]
    assert recording.baseline_hz.tolist() == [[5, 7], [6, 7], [7, 7]]
    assert recording.neuron_names == ("mPFC 3", "dStr 4")
    # The stereo click is no input, yet adapts those that follow.
    magnitude = adapt_clicks(np.array([0.0, 0.015, 0.031, 0.05]), 0.2, 100.0)
    assert recording.inputs[0, :, 0].tolist() == pytest.approx([0, magnitude[1], 0, 0, 0, 0])
    assert recording.inputs[0, :, 1].tolist() == pytest.approx([0, 0, 0, magnitude[2], 0, magnitude[3]])
    assert recording.inputs[1, :, 0].tolist() == [0] * 6


@pytest.mark.parametrize("version", ["v7.3 cells", "v7.3 structs"])
def test_sessions_saved_as_v73_are_the_same(tmp_path, version):
    one = load_rat(_session(tmp_path / "s.mat"), include_photostimulated=True)
    path = _session(tmp_path / "t.mat", version)
    assert recognise_format(path) == "matlab73"
    assert source_of(path) == "rat"
    other = load_rat(path, include_photostimulated=True, name="s")
    assert same_recording(one, other) == []
    assert one.notes == other.notes


def test_the_summary_of_a_session(tmp_path):
    path = _session(tmp_path / "s.mat")
    said = "\n".join(load_rat(path).notes)
    for words in (
        "2 trials of 5 to 6 bins of 10 ms; 1 mPFC, 1 dStr", "1 of 3 trials with optogenetic stimulation left out",
        "0 % of the choices to the right", "within and across sides (to 0.001 of their strength, recovery 100 per s)",
        "the stereo click is no input", "right minus left -1 to 1",
    ):  # fmt: skip
        assert words in said, said
    said = "\n".join(
        load_rat(
            path, include_photostimulated=True, include_stereo_click=True, across_sides=False, brain_areas="dStr"
        ).notes
    )
    for words in (
        "3 trials", "; 1 dStr", "1 of 3 trials with optogenetic stimulation, kept", "33 % of the choices", "an input",
        "within each side", "1 neurons outside dStr left out",
    ):  # fmt: skip
        assert words in said, said
    assert "clicks of magnitude 1" in "\n".join(load_rat(path, click_adaptation=False).notes)


def test_options_of_sessions(tmp_path):
    path = _session(tmp_path / "s.mat")
    default = load_rat(path)
    assert default.n_trials == 2  # the stimulated trial is left out
    assert any("1 of 3 trials" in note for note in default.notes)
    plain = load_rat(path, click_adaptation=False, include_stereo_click=True)
    assert plain.inputs[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert plain.inputs[0, :, 1].tolist() == [1, 0, 0, 1, 0, 1]
    assert load_rat(path, brain_areas=["dStr"]).neuron_names == ("dStr 4",)
    assert load_rat(path, min_rate_hz=200).neuron_names == ("mPFC 3",)
    within = load_rat(path, across_sides=False)
    assert within.inputs[0, 3, 1] > default.inputs[0, 3, 1]
    assert load_rat(path, tau_s=0.05).alpha == pytest.approx(0.2)
    assert read_recording(path).n_trials == 2
    for wrong in ({"brain_areas": ["FOF"]}, {"min_rate_hz": 1e6}, {"tau_s": 0.001}):
        with pytest.raises(UserError):
            load_rat(path, **wrong)


def test_files_that_are_no_session(tmp_path):
    for i, changes in enumerate(
        ({"trials": None}, {"trials": np.ones(4)}, {"neurons": _cells([{"name": "a"}])}, {"neurons": _cells([])})
    ):
        with pytest.raises(UserError):
            load_rat(_session(tmp_path / f"{i}.mat", **changes))
    lacking = _cells([{"choice": 1.0}])
    with pytest.raises(UserError, match="clicktimes"):
        load_rat(_session(tmp_path / "lacking.mat", trials=lacking))
    for field, wrong, words in (
        ("choice", "left", "numbers in the field choice"),
        ("clicktimes", {"L": 0.0}, "L and R"),
        ("clicktimes", 3.0, "L and R"),
        ("baseline_hz", np.ones(3), "baseline_hz with one rate for each of 2 neurons"),
        ("ntimesteps", 7, "spike trains of 7 bins"),
        ("spiketrains", np.ones((2, 6)), "spike trains of 6 bins"),
    ):
        path = _session(tmp_path / "s.mat")
        trials = [dict(zip(t.dtype.names, t.item())) for t in loadmat(path)["trials"].ravel()]
        trials[0][field] = wrong
        with pytest.raises(UserError, match=words):
            load_rat(_session(tmp_path / "wrong.mat", trials=_cells(trials)))
    areas = _cells([{"brainarea": 1.0}, {"brainarea": 2.0}])
    with pytest.raises(UserError, match="brainarea as characters"):
        load_rat(_session(tmp_path / "areas.mat", neurons=areas))
    whole = _session(tmp_path / "s.mat").read_bytes()
    for cut in (60, 130, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.mat").write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load_rat(tmp_path / "cut.mat")


needs_sessions = pytest.mark.skipif(not SESSIONS.is_dir(), reason=f"no public rat sessions in {SESSIONS}")


@needs_sessions
@pytest.mark.parametrize(
    ("name", "trials", "neurons"),
    [("T176_2018_05_03", 664, 76), ("T176_2018_06_14", 658, 132), ("T274_2020_12_10", 276, 4)],
)
def test_public_sessions(name, trials, neurons):
    recording = load_rat(SESSIONS / f"{name}.mat")
    assert (recording.n_trials, recording.n_neurons) == (trials, neurons)
    assert int(recording.lengths.min()) >= 16
    assert int(recording.lengths.max()) <= 100
    assert not recording.activity[~recording.mask].any()
    assert not recording.inputs[~recording.mask].any()
    # Rats choose by the clicks, and the clicks follow the rates.
    pairs = torch.stack([recording.click_difference, recording.evidence, recording.choices])
    assert torch.corrcoef(pairs)[0, 1:].min() > 0.6
    # Firing before and during the trial goes together across neurons.
    rates = recording.activity.sum((0, 1)) / recording.lengths.sum() / recording.bin_s
    assert torch.corrcoef(torch.stack([rates, recording.baseline_hz.mean(0)]))[0, 1] > 0.7
    assert float(recording.inputs.max()) <= 2


@needs_sessions
def test_a_public_session_exported_to_nwb_comes_back_exactly(tmp_path):
    pytest.importorskip("pynwb", reason="writing NWB needs the extra `nwb`")
    recording = load_rat(SESSIONS / "T176_2018_05_03.mat")
    export_nwb(recording, tmp_path / "a.nwb")
    assert same_recording(recording, read_recording(tmp_path / "a.nwb")) == []
    assert recording.activity.sum() == 292291


@needs_sessions
def test_stimulated_trials_can_be_kept():
    kept = load_rat(SESSIONS / "T274_2020_12_10.mat", include_photostimulated=True)
    assert kept.n_trials == 424


# --- hostile files ------------------------------------------------------------------------------------------------


def test_a_name_twice_and_headers_that_are_no_headers_are_refused(tmp_path):
    path = _save(tmp_path / "a.npz", rates=_rates())
    with zipfile.ZipFile(path) as archive:
        member = archive.read("rates.npy")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("rates.npy", member)
    with pytest.raises(UserError, match="rates twice"):
        load_npz(path)
    for text in (b"{" * 118, b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3, 4), }".ljust(118)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rates.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text)
        with pytest.raises(UserError, match="cannot be read"):
            load_npz(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    for path in (tmp_path / "pipe.npz", tmp_path / "loop.npz", tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path):
        with pytest.raises(UserError, match="a file"):
            read_recording(path)


def test_counts_of_a_session_that_are_none_are_refused(tmp_path):
    for value in (-1.0, 0.5, np.nan):
        path = _session(tmp_path / "a.mat")
        content = loadmat(path)
        content["trials"][0, 0]["spiketrains"][0, 0][0, 0] = content["trials"][0, 0]["spiketrains"][0, 0][0, 0] + value
        savemat(path, {key: content[key] for key in ("trials", "neurons")})
        with pytest.raises(UserError, match="whole numbers"):
            load_rat(path)
