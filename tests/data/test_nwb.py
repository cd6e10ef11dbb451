"""NWB files: planted events come out in the bins they were planted in, and what is exported comes back exactly."""

import sys
from dataclasses import replace
from datetime import UTC, datetime

import h5py
import numpy as np
import pytest
import torch

from connector.data.attractors import teacher
from connector.data.npz import load_npz
from connector.data.nwb import load_nwb
from connector.data.nwb_export import export_nwb, same_recording
from connector.data.nwb_session import NwbSession
from connector.data.simulation import simulate_recording
from connector.errors import UserError
from connector.types import Recording

pynwb = pytest.importorskip("pynwb", reason="reading NWB needs the extra `nwb`")

START = np.array([100.0, 101.0, 102.5, 104.0])
STOP = np.array([100.5, 101.35, 102.9, 104.005])
GO = np.array([100.1, 101.1, np.nan, 104.0])
# By unit: (trial, seconds after the trial's start) of each spike.
SPIKES = [
    [(0, 0.0), (0, 0.005), (0, 0.01), (0, 0.499), (0, 0.5), (1, 0.07), (1, 0.07), (2, 0.399)],
    [(0, 0.0999), (0, 0.1), (1, -0.02), (1, 0.349), (1, 0.36)],
    [(3, 0.002)],
]
LEFT = [[100.02, 100.021, 100.3], [], [102.5], [104.0]]
SERIES_HZ = 40


def nwb_file():
    nwb = pynwb.NWBFile("planted", "planted", datetime(2026, 1, 1, tzinfo=UTC))
    device = nwb.create_device("probe")
    shanks = [nwb.create_electrode_group(f"shank{i}", "x", area, device) for i, area in enumerate(("V1", "CA1"))]
    nwb.add_electrode_column("depth", "layer")
    for i in range(4):
        nwb.add_electrode(group=shanks[i // 2], location=("V1", "CA1")[i // 2], depth=f"L{i}")
    nwb.add_unit_column("quality", "of the sorting")
    for i, planted in enumerate(SPIKES):
        times = np.sort([START[trial] + offset for trial, offset in planted])
        nwb.add_unit(
            spike_times=times, quality=("good", "mua", "good")[i], electrodes=[(0, 2, 3)[i], 1],
            electrode_group=shanks[(0, 1, 1)[i]],
        )  # fmt: skip
    for name, index in (
        ("go_time", False), ("choice", False), ("rewarded", False), ("signed_choice", False), ("coherence", False),
        ("block", False), ("left_clicks", True), ("relative_clicks", True), ("bouts", 2),
    ):  # fmt: skip
        nwb.add_trial_column(name, "x", index=index)
    for i in range(4):
        nwb.add_trial(
            start_time=START[i],
            stop_time=STOP[i],
            go_time=GO[i],
            choice=("left", "right", "no response", "Right")[i],
            rewarded=(True, False, False, True)[i],
            signed_choice=(-1, 1, 0, 1)[i],
            coherence=(0.5, -0.25, 0.0, np.nan)[i],
            block=(1, 1, 2, 2)[i],
            left_clicks=LEFT[i],
            relative_clicks=list(np.array(LEFT[i]) - START[i]),
            bouts=[[1.0], [2.0, 3.0]],
        )
    ramp = np.arange(10 * SERIES_HZ, dtype=float)
    nwb.add_acquisition(
        pynwb.TimeSeries(
            name="running", data=ramp, unit="cm/s", rate=float(SERIES_HZ), starting_time=99.0, conversion=0.5
        )
    )
    nwb.add_stimulus(
        pynwb.TimeSeries(
            name="late", data=np.ones((5, 2)), unit="x", timestamps=np.array([101.0, 101.2, 102, 103, 104])
        )
    )
    return nwb


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("nwb") / "planted.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb_file())
    return path


def planted(unit: int, trial: int, start: float, length: int, bin_s: float) -> list[int]:
    """Counts by hand, in exact decimal arithmetic."""
    counts = [0] * length
    for where, offset in SPIKES[unit]:
        microseconds = round((START[where] + offset - START[trial] - start) * 1e6)
        place = microseconds // round(bin_s * 1e6)
        if 0 <= place < length:
            counts[place] += 1
    return counts


def test_planted_spikes_lie_in_their_bins(path):
    recording = load_nwb(path)
    assert (recording.kind, recording.activation, recording.bin_s, recording.name) == (
        "spikes", "softplus", 0.01, "planted",
    )  # fmt: skip
    assert recording.alpha == pytest.approx(0.1)
    # The last trial lasts half a bin: it is left out, and with it the third unit, which fires nowhere else.
    assert recording.lengths.tolist() == [50, 35, 40]
    assert recording.neuron_names == ("V1 0", "CA1 1")
    for trial, length in enumerate((50, 35, 40)):
        for unit in range(2):
            expected = planted(unit, trial, 0.0, length, 0.01)
            assert recording.activity[trial, :length, unit].tolist() == expected, (trial, unit)
    # By hand, once more: on a bin's edge a spike belongs to the bin that begins there; at the trial's end to none.
    assert recording.activity[0, :3, 0].tolist() == [2, 1, 0]
    assert recording.activity[0, 9:11, 1].tolist() == [1, 1]
    assert recording.activity[0, 49, 0] == 1
    assert recording.activity[1, 7, 0] == 2
    assert recording.activity.sum() == 7 + 3
    assert recording.trial_times_s.tolist() == START[:3].tolist()
    assert recording.inputs is recording.choices is recording.evidence is recording.baseline_hz is None
    said = "\n".join(recording.notes)
    for words in ("3 trials of 35 to 50 bins", "1 V1, 1 CA1", "1 trial shorter than 2 bins", "1 unit silent"):
        assert words in said, said


def test_edges_of_bins_hold_late_in_a_session_where_times_are_rounded(tmp_path):
    bins = np.arange(50)
    starts = 3_123_456.7 + 1.3 * np.arange(200)
    nwb = pynwb.NWBFile("late", "late", datetime(2026, 1, 1, tzinfo=UTC))
    nwb.add_trial_column("clicks", "x", index=True)
    for start in starts:
        nwb.add_trial(start_time=start, stop_time=start + 0.5, clicks=start + 0.01 * bins)
    nwb.add_unit(spike_times=np.concatenate([start + 0.01 * bins for start in starts]))
    with pynwb.NWBHDF5IO(str(tmp_path / "late.nwb"), "w") as io:
        io.write(nwb)
    recording = load_nwb(tmp_path / "late.nwb", inputs=["clicks"])
    assert recording.lengths.tolist() == [50] * 200
    assert (recording.activity == 1).all()  # one spike at the start of every bin
    assert (recording.inputs == 1).all()


def test_another_event_and_window(path):
    recording = load_nwb(path, align="go_time", start_s=-0.05, stop_s=0.2, bin_s=0.025, tau_s=0.05)
    assert recording.lengths.tolist() == [10, 10, 10]  # the third trial has no such event
    assert recording.trial_times_s.tolist() == [100.1, 101.1, 104.0]
    assert recording.alpha == pytest.approx(0.5)
    assert recording.neuron_names == ("V1 0", "CA1 1", "CA1 2")
    for row, (trial, event) in enumerate(((0, 0.1), (1, 0.1), (3, 0.0))):
        for unit in range(3):
            assert recording.activity[row, :, unit].tolist() == planted(unit, trial, event - 0.05, 10, 0.025)
    assert any("1 trial without go_time left out" in note for note in recording.notes)


def test_trials_end_at_the_earlier_of_the_window_and_a_column(path):
    assert load_nwb(path, stop_s=0.375, until="stop_time").lengths.tolist() == [37, 35, 37]
    assert load_nwb(path, start_s=0.1).lengths.tolist() == [40, 25, 30]
    assert load_nwb(path, stop_s=0.375).lengths.tolist() == [37, 37, 37, 37]
    overlapping = load_nwb(path, start_s=-1.0, stop_s=0.5)
    assert any("1 trial overlapping the previous one" in note for note in overlapping.notes)
    # The first trial's spikes count in the second trial's window too.
    assert overlapping.activity[1, :60, 0].sum() == 5
    begin = overlapping.stretches[:, 1]
    assert overlapping.gap == 0
    assert begin.tolist() == [9900, 10000, 10150, 10300]


def test_event_columns_constants_and_time_series_as_inputs(path):
    names = ["left_clicks", "coherence", "running"]
    recording = load_nwb(path, inputs=names)
    assert recording.input_names == tuple(names)
    clicks, coherence, running = recording.inputs.unbind(2)
    assert clicks[0].nonzero().ravel().tolist() == [2, 30]
    assert clicks[0, [2, 30]].tolist() == [2, 1]
    assert clicks[1].sum() == 0
    assert clicks[2].tolist()[:2] == [1, 0]
    assert coherence[0].unique().tolist() == [0.5]
    assert coherence[1, :35].unique().tolist() == [-0.25]
    assert coherence[1, 35:].unique().tolist() == [0]  # past the trial's end
    # 40 samples a second, bins of 10 ms: a bin has the sample that lies in it, else the last one before.
    sample = SERIES_HZ + np.ceil(np.arange(1, 51) * 0.01 * SERIES_HZ - 1e-9) - 1
    assert running[0].tolist() == (0.5 * sample).tolist()
    # In bins of 50 ms two samples are averaged.
    wide = load_nwb(path, inputs=["running"], bin_s=0.05).inputs[0, :, 0]
    assert wide.tolist() == [0.5 * ((100 - 99) * SERIES_HZ + 2 * i + 0.5) for i in range(10)]
    relative = load_nwb(path, inputs=["relative_clicks"], event_times="align")
    assert torch.equal(relative.inputs[:, :, 0], clicks)
    shifted = load_nwb(path, inputs=["relative_clicks"], event_times="align", start_s=-0.02)
    assert shifted.inputs[0, :, 0].nonzero().ravel().tolist() == [4, 32]
    two = load_nwb(path, inputs=["late"], trials={"block": 2})
    assert two.input_names == ("late 1", "late 2")
    assert two.inputs.unique().tolist() == [1]


def test_choices_and_other_columns(path):
    recording = load_nwb(path, choices="choice", evidence="coherence", click_difference="signed_choice")
    assert recording.choices[:2].tolist() == [0, 1]
    assert recording.choices[2].isnan()
    assert recording.evidence.tolist() == [0.5, -0.25, 0]
    assert recording.click_difference.tolist() == [-1, 1, 0]
    assert load_nwb(path, choices="rewarded").choices.tolist() == [1, 0, 0]
    signed = load_nwb(path, choices="signed_choice", choice_values=[-1, 1]).choices
    assert signed[:2].tolist() == [0, 1]
    assert signed[2].isnan()
    words = load_nwb(path, choices="choice", choice_values=["no response", "left"]).choices
    assert words[[0, 2]].tolist() == [1, 0]
    assert load_nwb(path, trial_times="block").trial_times_s.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"units": {"quality": "good"}}, ("V1 0",)),
        ({"units": {"quality": ["good", "mua"]}}, ("V1 0", "CA1 1")),
        ({"units": {"location": "CA1"}}, ("CA1 1",)),
        ({"units": {"depth": ["L0", "L3"]}}, ("V1 0",)),
        ({"units": {"electrode_group": "shank1"}}, ("CA1 1",)),
        ({"units": {"depth": "L2", "quality": "mua"}}, ("CA1 1",)),
        ({"min_rate_hz": 3.0}, ("V1 0",)),  # 8 spikes at most in 1.25 s, against 3
        ({"min_rate_hz": 0.0}, ("V1 0", "CA1 1", "CA1 2")),
        ({"trials": {"block": 2}, "stop_s": 0.4}, ("V1 0", "CA1 2")),
    ],
)
def test_filters_of_units(path, options, names):
    assert load_nwb(path, **options).neuron_names == names


def test_filters_of_trials(path):
    assert load_nwb(path, trials={"block": 1}).trial_times_s.tolist() == START[:2].tolist()
    assert load_nwb(path, trials={"choice": ["left", "no response"]}).trial_times_s.tolist() == START[[0, 2]].tolist()
    both = load_nwb(path, trials={"rewarded": True, "block": [1, 2]}, stop_s=0.3)
    assert both.trial_times_s.tolist() == START[[0, 3]].tolist()
    assert any("2 of 4 trials left out by data.trials" in note for note in both.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"align": "cue"}, ["'cue'", "start_time, stop_time, go_time, choice", "left_clicks"]),
        ({"align": "choice"}, ["one number", "'choice'", "text"]),
        ({"align": "left_clicks"}, ["one number", "lists"]),
        ({"until": "cue"}, ["'cue'", "stop_time"]),
        ({"stop_s": -1.0}, ["data.stop_s after data.start_s"]),
        ({"start_s": 5.0}, ["at least 2 bins", "4 trials shorter"]),
        ({"inputs": ["clicks"]}, ["'clicks'", "left_clicks", "running", "late"]),
        ({"inputs": ["choice"]}, ["one number", "'choice'"]),
        ({"inputs": ["bouts"]}, ["'bouts'", "lists of lists"]),
        ({"inputs": ["late"]}, ["'late'", "1 trials", "data.trials"]),
        ({"inputs": ["coherence"], "stop_s": 0.1}, ["'coherence'", "1 trials"]),
        ({"event_times": "start"}, ["data.event_times", "auto, session, trial, align"]),
        ({"choices": "signed_choice"}, ["-1, 0, 1", "data.choice_values"]),
        ({"choices": "choice", "choice_values": ["l", "r"]}, ["l and r", "left", "data.choice_values"]),
        ({"choices": "choice", "choice_values": ["l"]}, ["list of two"]),
        ({"choices": "signed_choice", "choice_values": ["l", "r"]}, ["numbers"]),
        ({"evidence": "choice"}, ["one number", "'choice'"]),
        ({"baseline_hz": "coherence"}, ["rate for each of 3 units"]),
        ({"units": {"area": "V1"}}, ["'area'", "spike_times, electrodes", "quality", "depth"]),
        ({"units": {"quality": "best"}}, ["good, mua", "best"]),
        ({"units": {"quality": "good", "location": "CA1", "depth": "L2"}}, ["data.units", "none of 3"]),
        ({"trials": {"block": 3}}, ["block", "1, 2", "3"]),
        ({"trials": {"block": "one"}}, ["1, 2", "one"]),
        ({"trials": {"block": 2, "choice": "left"}}, ["at least 2 bins", "4 of 4 trials left out"]),
        ({"trials": {"session": 3}}, ["'session'", "block"]),
        ({"min_rate_hz": 99.0}, ["99 Hz or more", "data.min_rate_hz"]),
        ({"bin_s": 0.2}, ["time constant", "0.2"]),
        ({"bin_s": 1e-9}, ["microsecond"]),
        ({"activation": "exp"}, ["exp"]),
        ({"max_gigabytes": 1e-9}, ["data.max_gigabytes", "data.stop_s"]),
    ],
)
def test_mistakes_name_what_there_is(path, options, words):
    with pytest.raises(UserError) as refused:
        load_nwb(path, **options)
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2


def test_without_pynwb_the_message_says_what_to_install(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    for action in (lambda: load_nwb(path), lambda: export_nwb(a_recording(), tmp_path / "a.nwb")):
        with pytest.raises(UserError, match=r"pynwb(?s:.*)pip install"):
            action()


def test_files_without_the_tables_or_cut_short(tmp_path, path):
    nwb = pynwb.NWBFile("empty", "empty", datetime(2026, 1, 1, tzinfo=UTC))
    nwb.add_epoch(0.0, 1.0, "baseline")
    with pynwb.NWBHDF5IO(str(tmp_path / "empty.nwb"), "w") as io:
        io.write(nwb)
    with pytest.raises(
        UserError, match=r"units with spike times, or data.series(?s:.*)epochs  *1 rows(?s:.*)stop_time"
    ):
        load_nwb(tmp_path / "empty.nwb")
    nwb = pynwb.NWBFile("no units", "no units", datetime(2026, 1, 1, tzinfo=UTC))
    nwb.add_trial(0.0, 1.0)
    with pynwb.NWBHDF5IO(str(tmp_path / "units.nwb"), "w") as io:
        io.write(nwb)
    with pytest.raises(UserError, match=r"units with spike times(?s:.*)trials  *1 rows"):
        load_nwb(tmp_path / "units.nwb")
    whole = path.read_bytes()
    for share in (0.05, 0.5, 0.99):
        (tmp_path / "cut.nwb").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="whole"):
            load_nwb(tmp_path / "cut.nwb")


# --- export and back ----------------------------------------------------------------------------------------------


def a_recording(seed: int = 0, **changes) -> Recording:
    """Ragged trials with every field that spikes can have; one neuron is silent, one bin holds 200 spikes."""
    rng = np.random.default_rng(seed)
    trials, steps, neurons = 7, 12, 4
    lengths = torch.from_numpy(rng.integers(2, steps + 1, size=trials))
    assert lengths.max() < steps  # padded past the longest trial
    mask = (torch.arange(steps)[None] < lengths[:, None])[:, :, None]
    counts = torch.from_numpy(rng.poisson(0.8, size=(trials, steps, neurons)).astype(np.float32)) * mask
    counts[:, :, 2] = 0
    counts[0, 0, 0] = 200
    fields = {
        "activity": counts,
        "kind": "spikes",
        "lengths": lengths,
        "alpha": 0.01 / 0.3,
        "activation": "softplus",
        "inputs": torch.from_numpy(rng.normal(size=(trials, steps, 2)).astype(np.float32)) * mask,
        "input_names": ("left clicks", "right/left: ratio"),
        "bin_s": 0.01,
        "choices": torch.tensor([0, 1, np.nan, 1, 0, 1, 1], dtype=torch.float64),
        "evidence": torch.from_numpy(rng.normal(size=trials)),
        "click_difference": torch.from_numpy(rng.integers(-9, 9, size=trials).astype(float)),
        "trial_times_s": torch.from_numpy(3810.349089 + np.cumsum(rng.uniform(0.2, 20, size=trials))),
        "baseline_hz": torch.from_numpy(rng.gamma(2.0, size=(trials, neurons)).astype(np.float32)),
        "neuron_names": ("mPFC 3", "mPFC 4", "dmFC 1", "dmFC 7"),
        "name": "mine",
    }
    return Recording(**(fields | changes))


BARE = {
    key: None for key in ("inputs", "choices", "evidence", "click_difference", "trial_times_s", "baseline_hz")
} | {"input_names": (), "neuron_names": ()}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        BARE,
        {"trial_times_s": torch.tensor([0.0] * 6 + [0.01], dtype=torch.float64)},  # trials that overlap
        {"trial_times_s": torch.arange(7.0, dtype=torch.float64) * 1e9},  # no clock for nanoseconds
        {"trial_times_s": torch.arange(7.0, dtype=torch.float64).flip(0)},  # not in the order of the session
        {"trial_times_s": 0.12 * torch.arange(7.0, dtype=torch.float64)},  # one right after the other
        {"choices": torch.full((7,), np.nan, dtype=torch.float64)},
        {"choices": torch.tensor([-1.0, 1, 1, -1, 1, 0, 0], dtype=torch.float64)},
        {"input_names": ("x", "x")},
        {"input_names": ()},
        {"input_names": ("", "start_time")},
        {"bin_s": 0.0013, "alpha": 0.7, "activation": "tanh"},
        {"bin_s": 1 / 30, "alpha": 1.0},
    ],
    ids=lambda changes: ",".join(changes) or "all fields",
)
def test_an_exported_recording_comes_back_exactly(tmp_path, changes):
    recording = a_recording(**changes)
    export_nwb(recording, tmp_path / "a.nwb")
    back = load_nwb(tmp_path / "a.nwb")
    assert same_recording(recording, back) == []
    assert back.activity.dtype == recording.activity.dtype == torch.float32
    assert len(list(tmp_path.iterdir())) == 1  # nothing else is left behind


def test_pieces_are_exported_as_pieces(tmp_path):
    first = torch.tensor([[0, 12 * i] for i in range(7)])
    recording = a_recording(stretches=first, gap=5, trial_times_s=0.12 * torch.arange(7.0, dtype=torch.float64))
    export_nwb(recording, tmp_path / "a.nwb")
    back = load_nwb(tmp_path / "a.nwb")
    assert same_recording(recording, back) == []
    assert (back.stretches.tolist(), back.gap) == (first.tolist(), 5)
    wide = load_nwb(tmp_path / "a.nwb", bin_s=0.02, trials={"choices": 1})
    kept = (recording.choices == 1) & (recording.lengths >= 4)
    assert (wide.stretches.tolist(), wide.gap) == ([[0, x // 2] for x in first[kept][:, 1].tolist()], 3)
    assert same_recording(recording, replace(back, gap=4)) == ["gap"]


def test_same_recording_tells_what_differs():
    one = a_recording()
    assert same_recording(one, replace(one, name="other", notes=("x",))) == []
    counts = one.activity.clone()
    counts[0, 0, 1] += 1
    for key, value in (
        ("activity", counts), ("inputs", None), ("inputs", one.inputs + 1e-6), ("evidence", one.evidence + 1e-12),
        ("alpha", one.alpha + 1e-9), ("neuron_names", ()), ("choices", one.choices.nan_to_num(0)),
    ):  # fmt: skip
        assert same_recording(one, replace(one, **{key: value})) == [key]


def test_options_act_on_an_exported_file(tmp_path):
    recording = a_recording()
    export_nwb(recording, tmp_path / "a.nwb")
    some = load_nwb(tmp_path / "a.nwb", units={"unit_name": ["mPFC 4", "dmFC 7"]}, trials={"choices": 1})
    expected = recording.trials((recording.choices == 1).nonzero()[:, 0])
    assert torch.equal(some.activity, expected.activity[:, :, [1, 3]])
    assert torch.equal(some.baseline_hz, expected.baseline_hz[:, [1, 3]])
    assert torch.equal(some.inputs, expected.inputs)
    assert load_nwb(tmp_path / "a.nwb", min_rate_hz=0.1).neuron_names == ("mPFC 3", "mPFC 4", "dmFC 7")
    assert load_nwb(tmp_path / "a.nwb", inputs=[]).inputs is None
    assert load_nwb(tmp_path / "a.nwb", tau_s=0.1).alpha == pytest.approx(0.1)
    # Bins twice as wide: spikes add up, inputs are averaged, the time constant stays.
    wide = load_nwb(tmp_path / "a.nwb", bin_s=0.02)
    assert wide.alpha == pytest.approx(2 * recording.alpha)
    for trial, length in enumerate(wide.lengths.tolist()):
        pairs = recording.activity[trial, : 2 * length].unflatten(0, (length, 2))
        assert torch.equal(wide.activity[trial, :length], pairs.sum(1))
        means = recording.inputs[trial, : 2 * length].unflatten(0, (length, 2)).mean(1)
        torch.testing.assert_close(wide.inputs[trial, :length], means)


def test_a_simulation_comes_back_with_its_truth(tmp_path):
    recording, _ = simulate_recording(
        teacher("quadstable"), n_neurons=30, n_grid=3, n_steps=20, observation="spikes", recorded_fraction=0.5, seed=3
    )
    recording = replace(recording, neuron_names=tuple(f"neuron {i}" for i in range(15)))
    export_nwb(recording, tmp_path / "a.nwb")
    back = load_nwb(tmp_path / "a.nwb")
    assert same_recording(recording, back) == []
    assert back.latents.dtype == torch.float64
    assert torch.equal(back.loadings.m, recording.loadings.m)
    assert torch.equal(back.n, recording.n)
    wide = load_nwb(tmp_path / "a.nwb", bin_s=0.02)
    assert wide.latents is wide.loadings is wide.n is None
    assert any("true latents" in note for note in wide.notes)
    one = load_nwb(tmp_path / "a.nwb", units={"unit_name": "neuron 4"})
    assert torch.equal(one.loadings.m, recording.loadings.m[[4]])


def test_other_tools_read_an_exported_file(tmp_path):
    recording = a_recording()
    export_nwb(recording, tmp_path / "a.nwb", session_start=datetime(2020, 5, 3, tzinfo=UTC), description="d")
    with pynwb.NWBHDF5IO(str(tmp_path / "a.nwb"), "r") as io:
        assert pynwb.validate(io=io) == []
    with pynwb.NWBHDF5IO(str(tmp_path / "a.nwb"), "r") as io:
        nwb = io.read()
        assert nwb.session_start_time.year == 2020
        trials, units = nwb.trials.to_dataframe(), nwb.units.to_dataframe()
        assert trials.start_time.tolist() == recording.trial_times_s.tolist()
        np.testing.assert_allclose(trials.stop_time - trials.start_time, recording.lengths * 0.01, atol=1e-9)
        for k in range(4):
            times = units.spike_times.iloc[k]
            assert len(times) == recording.activity[:, :, k].sum()
            assert np.all(np.diff(times) > 0)
        first = nwb.stimulus["left clicks"]
        assert np.array_equal(np.sort(first.data[:]), np.sort(recording.inputs[:, :, 0][recording.mask].numpy()))


def test_an_exported_file_names_subject_and_session_as_archives_ask_for_them(tmp_path):
    start = datetime(2018, 5, 3, 10, 30, tzinfo=UTC)
    session = NwbSession(
        subject_id="T176", species="rat", sex="M", age="P90D", session_start=start, experimenter=("Luo, T.",),
        institution="Princeton", keywords=("decision",), session_id="a",
    )  # fmt: skip
    export_nwb(a_recording(), tmp_path / "a.nwb", session=session)
    assert same_recording(a_recording(), load_nwb(tmp_path / "a.nwb")) == []
    with pynwb.NWBHDF5IO(str(tmp_path / "a.nwb"), "r") as io:
        nwb = io.read()
        about = (nwb.subject.subject_id, nwb.subject.species, nwb.subject.sex, nwb.subject.age, nwb.session_id)
        assert about == ("T176", "Rattus norvegicus", "M", "P90D", "a")
        assert (nwb.session_start_time, nwb.institution, tuple(nwb.experimenter)) == (start, "Princeton", ("Luo, T.",))
        assert nwb.units.resolution == 0.01  # a bin: where in it a spike was is not known
    export_nwb(a_recording(), tmp_path / "b.nwb")  # of whom nothing is known
    with pynwb.NWBHDF5IO(str(tmp_path / "b.nwb"), "r") as io:
        nwb = io.read()
        assert (nwb.subject.subject_id, nwb.subject.species, nwb.subject.sex, nwb.subject.age) == (
            "unknown",
            None,
            "U",
            "P0D/",
        )
        assert "not known" in nwb.session_description
    for wrong, words in (
        ({"sex": "male"}, "--sex among M, F, O, U"),
        ({"age": "90 days"}, "--age as P90D"),
        ({"age": "P"}, "--age as P90D"),
        ({"subject_id": "a/b"}, "--subject-id of some letters"),
        ({"session_start": datetime(2100, 1, 1)}, "--session-start in the past"),
    ):
        with pytest.raises(UserError, match=words):
            export_nwb(a_recording(), tmp_path / "c.nwb", session=NwbSession(**wrong))
    assert not (tmp_path / "c.nwb").exists()


@pytest.mark.parametrize("text", ["not JSON", "[1]", '{"bin_s": 0.01}', '{"bin_s": 0.01, "alpha": 0}'])
def test_a_damaged_note_of_how_to_read_the_file_is_refused(tmp_path, text):
    export_nwb(a_recording(), tmp_path / "a.nwb")
    with h5py.File(tmp_path / "a.nwb", "r+") as file:
        file["scratch/connector_reading"][()] = text
    with pytest.raises(UserError, match="scratch entry connector_reading"):
        load_nwb(tmp_path / "a.nwb")


def test_what_cannot_be_exported(tmp_path):
    rates = np.tanh(np.random.default_rng(0).normal(size=(6, 5, 3)))
    np.savez(tmp_path / "r.npz", rates=rates)
    with pytest.raises(UserError, match="firing rates"):
        export_nwb(load_npz(tmp_path / "r.npz"), tmp_path / "a.nwb")
    with pytest.raises(UserError, match="without a bin width"):
        export_nwb(a_recording(bin_s=None), tmp_path / "a.nwb")
    with pytest.raises(UserError, match="whole numbers"):
        export_nwb(a_recording(activity=a_recording().activity / 2), tmp_path / "a.nwb")
    with pytest.raises(UserError, match="no folder"):
        export_nwb(a_recording(), tmp_path / "absent" / "a.nwb")
    assert not (tmp_path / "a.nwb").exists()


def test_sizes_that_are_only_declared_are_refused(path, tmp_path):
    hurt = tmp_path / "a.nwb"
    hurt.write_bytes(path.read_bytes())
    with h5py.File(hurt, "r+") as file:
        old = file["units/spike_times"]
        kept, index = dict(old.attrs), file["units/spike_times_index"]
        del file["units/spike_times"]
        new = file.create_dataset("units/spike_times", shape=(10**12,), dtype="f8", chunks=(1024,))
        for key, value in kept.items():
            new.attrs[key] = value
        index.attrs["target"] = new.ref
    with pytest.raises(UserError, match="8e\\+03 GB"):
        load_nwb(hurt)
    recording = load_nwb(path)
    many = replace(recording, activity=recording.activity * 1e12)
    with pytest.raises(UserError, match="hardly"):
        export_nwb(many, tmp_path / "b.nwb")
    assert [x.name for x in tmp_path.iterdir()] == ["a.nwb"]
