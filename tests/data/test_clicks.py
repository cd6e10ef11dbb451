"""Sessions of the Poisson-clicks task: read by hand, from all versions of MATLAB's files, and from the public ones."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT
from matlab73 import cells, write_matlab73
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from connector.data.clicks import load_rat
from connector.data.nwb_export import export_nwb, same_recording
from connector.data.preprocessing import adapt_clicks
from connector.data.readers import read_recording, recognise_format, source_of
from connector.errors import UserError

DATA = Path(os.environ.get("CONNECTOR_DATA", ROOT.parent / "shared" / "data"))
SESSIONS = DATA / "rat_frontal_cortex"


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
            "spiketrains": cells([row[None] for row in counts[i]]),
        }
        for i in range(3)
    ]
    neurons = [{"brainarea": area, "neuronindex": i + 3} for i, area in enumerate(areas)]
    content = {"trials": cells(trials), "neurons": cells(neurons)} | changes
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
        "0 of 2 choices to the right", "within and across sides (to 0.001 of their strength, recovery 100 per s)",
        "the stereo click is no input", "right minus left -1 to 1",
    ):  # fmt: skip
        assert words in said, said
    said = "\n".join(
        load_rat(
            path, include_photostimulated=True, include_stereo_click=True, across_sides=False, brain_areas="dStr"
        ).notes
    )
    for words in (
        "3 trials", "; 1 dStr", "1 of 3 trials with optogenetic stimulation, kept", "1 of 3 choices", "an input",
        "within each side", "1 neuron outside dStr left out",
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


def _edited(path: Path, version: str = "cells", *, after=(), **edits) -> Path:
    """A session with fields of its trials replaced, each by what a function makes of it; ``after``: further cells of trials."""
    trials = [dict(zip(t.dtype.names, t.item())) for t in loadmat(_session(path))["trials"].ravel()]
    trials = [trial | {"clicktimes": {side: trial["clicktimes"][side].item() for side in "LR"}} for trial in trials]
    trials = [trial | {field: edit(trial[field]) for field, edit in edits.items()} for trial in trials]
    return _session(path, version, trials=cells([*trials, *after]))


def _clicks(edit):
    return lambda of: {side: edit(of[side].astype(float)) for side in "LR"}


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"choice": csc_matrix}, r"field choice; got a sparse(?s:.*)ave full\(x\)"),
        ({"clicktimes": _clicks(csc_matrix)}, "field L; got a sparse"),
        ({"gamma": lambda x: x + 2j}, "field gamma; got complex"),
        ({"gamma": lambda x: np.arange(2.0)}, "one number in the field gamma; got 2"),
        ({"gamma": lambda x: cells([np.ones(2), np.ones(3)])}, "numbers in the field gamma; got text, cells"),
        ({"clicktimes": _clicks(lambda x: x + 100)}, "8 of 8 clicks before it or after(?s:.*)stereoclick_time_s"),
        ({"clicktimes": _clicks(lambda x: 1000 * x)}, "4 of 4 clicks(?s:.*)divide by 1000"),
        ({"clicktimes": _clicks(lambda x: x - 1)}, "8 of 8 clicks before it"),
    ],
)
def test_fields_that_would_be_read_as_something_else_are_refused(tmp_path, edits, words):
    with pytest.raises(UserError, match=words):
        load_rat(_edited(tmp_path / "s.mat", **edits))


@pytest.mark.parametrize("field", ["choice", "stereoclick_time_s", "gamma"])
def test_objects_of_v73_files_are_no_numbers(tmp_path, field):
    """A datetime or categorical is stored as six numbers that say where it lies in the file."""
    path = _session(tmp_path / "s.mat", "v7.3 cells")
    with h5py.File(path, "r+") as file:
        for trial in (x for x in file["#refs#"].values() if isinstance(x, h5py.Group) and field in x):
            del trial[field]
            trial[field] = np.array([[0xDD000000], [2], [1], [1], [1], [1]], dtype=np.uint32)
            trial[field].attrs["MATLAB_object_decode"] = np.int32(3)
    with pytest.raises(UserError, match=f"field {field}; got a sparse matrix or an object"):
        load_rat(path)


@pytest.mark.parametrize("version", ["cells", "v7.3 cells"])
def test_padding_of_clicks_and_empty_cells_change_nothing(tmp_path, version):
    plain = load_rat(_session(tmp_path / "s.mat"), include_photostimulated=True)
    padded = _clicks(lambda x: np.append(x, np.nan))
    path = _edited(tmp_path / "s.mat", version, clicktimes=padded, after=[np.zeros((0, 0))])
    read = load_rat(path, include_photostimulated=True)
    assert same_recording(plain, read) == []
    assert any("1 of 4 cells of trials without a struct left out" in note for note in read.notes)
    stimulated = _edited(tmp_path / "s.mat", version, photostimulus_incline_on_s=lambda x: np.array([np.nan, 0.2]))
    with pytest.raises(UserError, match="3 of 3 trials with optogenetic"):
        load_rat(stimulated)


def test_files_that_are_no_session(tmp_path):
    for i, changes in enumerate(
        ({"trials": None}, {"trials": np.ones(4)}, {"neurons": cells([{"name": "a"}])}, {"neurons": cells([])})
    ):
        with pytest.raises(UserError):
            load_rat(_session(tmp_path / f"{i}.mat", **changes))
    lacking = cells([{"choice": 1.0}])
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
            load_rat(_session(tmp_path / "wrong.mat", trials=cells(trials)))
    areas = cells([{"brainarea": 1.0}, {"brainarea": 2.0}])
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


def test_counts_of_a_session_that_are_none_are_refused(tmp_path):
    for value in (-1.0, 0.5, np.nan):
        path = _session(tmp_path / "a.mat")
        content = loadmat(path)
        content["trials"][0, 0]["spiketrains"][0, 0][0, 0] = content["trials"][0, 0]["spiketrains"][0, 0][0, 0] + value
        savemat(path, {key: content[key] for key in ("trials", "neurons")})
        with pytest.raises(UserError, match="whole numbers"):
            load_rat(path)
