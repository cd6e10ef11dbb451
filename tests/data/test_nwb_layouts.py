"""NWB files in the layouts that labs upload: each is read, by options alone, as what it was made from."""

import re
import shlex

import h5py
import numpy as np
import pytest

from connector.data.folds import fold_of
from connector.data.nwb import load_nwb
from connector.data.nwb_listing import described_nwb
from connector.errors import UserError

pytest.importorskip("pynwb", reason="reading NWB needs the extra `nwb`")

import nwb_layouts as made
from nwb_layouts import STARTS, TRIALS, UNITS

pytestmark = [
    pytest.mark.filterwarnings("ignore:The linked table"),  # hdmf, of units without a region of electrodes
    pytest.mark.filterwarnings("ignore:.* is deprecated. Use an EventsTable"),  # as labs have them
]
LAYOUTS = ("allen", "ibl", "svoboda", "churchland", "buzsaki", "others", "events", "nlb", "human")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {name: made.write(folder / f"{name}.nwb", getattr(made, name)()) for name in LAYOUTS}


def counts(trains, begins, length, bin_s):
    """(trials, bins, units) by hand."""
    edges = bin_s * np.arange(round(length / bin_s) + 1)
    return np.stack([np.stack([np.histogram(t - a, edges)[0] for t in trains], axis=1) for a in begins])


def said(recording):
    return "\n".join(recording.notes)


def test_allen_presentations_of_a_stimulus_units_by_quality_and_by_the_place_of_their_channel(files):
    units = {"quality": "good", "presence_ratio": ">0.95", "isi_violations": "<0.45", "location": ["VISp", "CA1"]}
    found = load_nwb(
        files["allen"], table="drifting_gratings_presentations", units=units, conditions="orientation",
        condition_inputs=True, bin_s=0.05,
    )  # fmt: skip
    kept = [i for i in range(TRIALS) if i not in (4, 5)]  # invalid_times
    trains = made.trains(1)
    assert np.array_equal(found.activity, counts([trains[k] for k in (0, 2, 3, 4)], STARTS[kept], 2.0, 0.05))
    assert found.neuron_names == ("VISp 0", "VISp 2", "CA1 3", "CA1 4")
    assert found.input_names == ("orientation 0", "orientation 45", "orientation 90")
    assert np.array_equal(found.inputs[:, 0].argmax(1), np.array(kept) % 3)
    assert np.array_equal(found.inputs[:, 0], found.inputs[:, -1])
    assert "conditions (orientation): 10 of 0, 9 of 45, 9 of 90" in said(found)
    scenes = load_nwb(
        files["allen"], table="natural_scenes_presentations", trials={"frame": ">=0", "tags": ["1", "2", "9"]}
    )
    assert scenes.trial_times_s.tolist() == STARTS[[1, 2, 9]].tolist()
    valid = load_nwb(files["allen"], table="natural_scenes_presentations", units={"valid_data": True, "id": [0, 1, 2]})
    assert valid.n_neurons == 3
    with pytest.raises(
        UserError, match=r"a table of trials(?s:.*)data.table=drifting_gratings_presentations(?s:.*)data.piece_s"
    ):
        load_nwb(files["allen"])


def test_regions_are_text_or_bytes(files, tmp_path):
    path = tmp_path / "a.nwb"
    path.write_bytes(files["allen"].read_bytes())
    key = "general/extracellular_ephys/electrodes/location"
    with h5py.File(path, "r+") as file:
        old, kept = file[key].asstr()[()], dict(file[key].attrs)
        del file[key]
        file[key] = np.array([x.encode() for x in old], dtype="S8")
        file[key].attrs.update(kept)
    options = {"table": "natural_scenes_presentations", "units": {"location": "VISp"}}
    one, other = (load_nwb(x, **options) for x in (files["allen"], path))
    assert one.neuron_names == other.neuron_names == ("VISp 0", "VISp 1", "VISp 2")
    assert np.array_equal(one.activity, other.activity)


def test_ibl_choices_of_three_values_contrasts_that_are_nan_and_regions(files):
    options = {"choices": "choice", "choice_values": [1, -1], "align": "stimOn_times", "start_s": -0.1, "stop_s": 0.4}
    inputs = ["contrastLeft", "contrastRight", "goCue_times", "wheel_position"]
    with pytest.raises(UserError, match=r"input 'contrastLeft'(?s:.*)data.absent_inputs=zero"):
        load_nwb(files["ibl"], inputs=inputs, **options)
    found = load_nwb(
        files["ibl"],
        inputs=inputs,
        absent_inputs="zero",
        units={"label": ">0.5", "beryl_location": ["MOs", "CP"]},
        **options,
    )
    assert found.neuron_names == ("unit 0", "unit 4", "unit 5", "unit 7")
    onsets = STARTS + 0.3 + 0.01 * np.arange(TRIALS)
    assert np.array_equal(found.activity, counts([made.trains(2)[k] for k in (0, 4, 5, 7)], onsets - 0.1, 0.5, 0.01))
    left, right, go, _ = found.inputs.unbind(2)
    assert ((left[:, 0] > 0) ^ (right[:, 0] > 0)).all()
    side = np.where(left[:, 0] > 0, 0.0, 1.0)
    side[7] = np.nan
    assert np.array_equal(found.choices, side, equal_nan=True)
    assert np.array_equal(go.sum(1), np.ones(TRIALS))
    assert np.array_equal(go.argmax(1), np.full(TRIALS, 11))
    moved = load_nwb(files["ibl"], align="firstMovement_times", stop_s=0.5)
    assert moved.n_trials == TRIALS - 1


def test_svoboda_times_from_the_start_of_trials_texts_as_choices_and_units_that_were_lost(files):
    grouped = {"choices": "trial_type", "choice_values": [["left", "lick left no stim"], ["right", "RightEarly"]]}
    found = load_nwb(files["svoboda"], align="cue_time", stop_s=0.5, inputs=["lick_times"], **grouped)
    assert "cue_time is read as seconds from each trial's start_time" in said(found)
    assert "lick_times is read as seconds from each trial's start_time" in said(found)
    cue = STARTS + 1.01 + 0.001 * np.arange(TRIALS)
    assert np.array_equal(found.activity, counts(made.trains(3)[1:], cue, 0.5, 0.01))  # the unit that was lost left out
    assert np.array_equal(found.choices, np.tile([0, 1, 1, 0, 1, 0], TRIALS // 6))
    assert found.neuron_names[0] == "left ALM 1"
    assert found.inputs[0, :, 0].nonzero().ravel().tolist() == [19, 29]
    # Said, they are the same; and so are numbers, one in each trial, that are the times of an event.
    options = {"align": "cue_time", "stop_s": 0.5, "start_s": -0.7}
    again = load_nwb(files["svoboda"], inputs=["lick_times", "pole_in"], event_times="trial", **options)
    assert np.array_equal(again.activity[:, 70:], found.activity)
    assert np.array_equal(again.inputs[:, 70:, 0], found.inputs[:, :, 0])
    assert again.inputs[:, :, 1].nonzero()[:, 1].unique().tolist() == [11]
    with pytest.raises(UserError, match="obs_intervals in seconds of the session"):
        load_nwb(files["svoboda"], event_times="session", **options)
    protocol = load_nwb(files["svoboda"], trials={"task_protocol": "delayed", "response": ["correct", "incorrect"]})
    assert protocol.n_trials == 20


def test_churchland_events_in_the_session_series_in_a_module_and_vectors_of_a_trial(files):
    options = {
        "align": "move_begins_time",
        "start_s": -0.3,
        "stop_s": 0.6,
        "trials": {"task_success": True},
        "bin_s": 0.02,
    }
    found = load_nwb(files["churchland"], inputs=["Hand", "target_pos/1"], conditions="maze_id", **options)
    kept = np.arange(TRIALS) % 5 > 0
    assert np.array_equal(found.activity, counts(made.trains(4), STARTS[kept] + 0.5, 0.9, 0.02))
    assert found.input_names == ("Hand 1", "Hand 2", "target_pos/1")
    angle = 2 * np.pi * (np.arange(TRIALS) % 8) / 8
    assert np.allclose(found.inputs[:, 0, 2], 100 * np.sin(angle)[kept], atol=1e-5)
    assert float(found.inputs[:, :, :2].abs().max()) < 1  # in metres
    rates = load_nwb(
        files["churchland"], series="Cursor", activation="relu", range_tolerance=9.0, bin_s=0.05, stop_s=0.5
    )
    assert (rates.kind, rates.n_neurons, rates.lengths.tolist()) == ("rates", 2, [10] * TRIALS)


def test_buzsaki_the_whole_session_and_states_of_sleep_cut_into_pieces(files):
    whole = load_nwb(files["buzsaki"], piece_s=2, bin_s=0.05, units={"cell_type": "pyramidal cell"})
    first = min(t[0] for t in made.trains(5)[:5])
    begins = first + 2.0 * np.arange(47)
    assert np.array_equal(whole.activity, counts(made.trains(5)[:5], begins, 2.0, 0.05))
    assert np.allclose(whole.trial_times_s, begins)
    assert "no table of trials: the session from" in said(whole)
    nrem = load_nwb(
        files["buzsaki"],
        table="states",
        trials={"label": "NREM"},
        piece_s=2,
        bin_s=0.05,
        conditions="label",
        units={"location": "CA1"},
    )
    begins = np.r_[np.arange(0.0, 20, 2), np.arange(25.0, 48.5, 2), np.arange(60.0, 93.5, 2)]
    assert np.array_equal(nrem.activity, counts(made.trains(5), begins, 2.0, 0.05))
    assert nrem.stretches[[0, 10, 22]].tolist() == [[0, 0], [0, 500], [0, 1200]]  # one session, in bins of 50 ms
    every = load_nwb(
        files["buzsaki"], table="states", piece_s=2, gap_s=1, bin_s=0.05
    )  # states follow each other without a gap
    fold = fold_of(every)
    begin = every.trial_times_s
    for some, others in ((fold.train, fold.test), (fold.train, fold.validation), (fold.validation, fold.test)):
        assert float((begin[some][:, None] - begin[others]).abs().min()) >= 3 - 1e-6  # a piece and the gap
    assert "of 3 recordings" in said(nrem)
    epochs = load_nwb(files["buzsaki"], table="epochs", trials={"tags": "wake"}, piece_s=5, bin_s=0.05)
    assert epochs.trial_times_s.tolist() == np.arange(40.0, 90.5, 5).tolist()


def test_tables_of_trials_and_of_units_in_modules(files):
    found = load_nwb(files["others"], table="task", choices="correct")
    assert np.array_equal(found.activity, counts(made.trains(6), STARTS, 2.0, 0.01))
    assert np.array_equal(found.choices, np.arange(TRIALS) % 2)


def test_events_are_counted_wherever_they_stand_and_what_is_switched_on_is_on(files):
    found = load_nwb(
        files["events"], table="tones", start_s=-0.1, stop_s=0.9, inputs=["licks", "rewards", "light", "tones"],
        conditions="pitch",
    )  # fmt: skip
    assert np.array_equal(found.activity, counts(made.trains(7), STARTS, 1.0, 0.01))
    licks, rewards, light, tones = found.inputs.unbind(2)
    when = (
        made.pynwb.NWBHDF5IO(str(files["events"]), "r")
        .read()
        .processing["behavior"]["BehavioralEvents"]["licks"]
        .timestamps[:]
    )
    assert np.array_equal(licks, counts([when], STARTS, 1.0, 0.01)[:, :, 0])
    assert rewards.nonzero()[:, 1].tolist() == [50] * TRIALS
    assert np.array_equal(light, np.tile((np.arange(100) >= 20) & (np.arange(100) < 70), (TRIALS, 1)))
    assert tones.nonzero()[:, 1].tolist() == [10] * TRIALS
    assert "15 of 4, 15 of 8" in said(found)


def test_nlb_units_held_out_are_observed_in_a_part_and_series_have_gaps_between_trials(files):
    found = load_nwb(
        files["nlb"],
        trials={"split": ["train", "val"]},
        align="move_onset_time",
        start_s=-0.2,
        stop_s=0.6,
        inputs=["hand_pos"],
    )
    assert np.array_equal(found.activity, counts(made.trains(8), STARTS[:24] + 0.5, 0.8, 0.01))
    assert np.array_equal(found.inputs[:, :, 1], np.tile(np.arange(50.0, 130.0), (24, 1)))
    held_in = load_nwb(files["nlb"], units={"heldout": False})
    assert (held_in.n_trials, held_in.n_neurons) == (TRIALS, 6)
    pieces = load_nwb(
        files["nlb"], units={"heldout": False}, table="session", piece_s=1
    )  # of the trials: no more was observed
    begins = np.ravel(np.stack([STARTS, STARTS + 1.0], axis=1))
    assert np.array_equal(pieces.activity, counts(made.trains(8)[:6], begins, 1.0, 0.01))
    rates = load_nwb(files["nlb"], series="hand_pos", activation="relu", piece_s=0.5)
    assert rates.n_trials == 4 * TRIALS
    with pytest.raises(UserError, match=r"'target_pos'(?s:.*)lists of lists"):
        load_nwb(files["nlb"], conditions="target_pos")


def test_human_trials_with_times_that_lack_and_numbers_as_texts(files):
    found = load_nwb(
        files["human"], align="stim_on_time", stop_s=1.0, conditions="category_name", trials={"stim_phase": "recog"},
        choices="response_value", choice_values=[["31", "32", "33"], ["34", "35", "36"]],
    )  # fmt: skip
    assert np.array_equal(found.activity, counts(made.trains(9), STARTS[10:] + 0.1, 1.0, 0.01))
    assert np.array_equal(found.choices, (np.arange(10, TRIALS) % 6) // 3)
    assert load_nwb(files["human"], align="response_time", start_s=-1, stop_s=0.0).n_trials == 20
    with pytest.raises(UserError, match="time series acquisition/events of numbers"):
        load_nwb(files["human"], series="events")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_command_that_is_guessed_reads_the_file(files, name):
    lines, command = described_nwb(files[name], 1.0)
    typed = dict(word.removeprefix("data.").split("=", 1) for word in shlex.split(command.splitlines()[0])[3:])
    assert typed.pop("path") == str(files[name])
    options = {key: float(x) if re.fullmatch(r"[\d.]+", x) else x for key, x in typed.items()}
    if "choice_values" in options:
        options["choice_values"] = [float(x) for x in options["choice_values"].strip("[]").split(",")]
    assert load_nwb(files[name], **options).n_neurons == UNITS - (name == "svoboda")
    assert any(line.split()[:3] == ["units", "8", "rows"] for line in lines)
