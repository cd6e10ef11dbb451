"""Files whose times are on other clocks, or whose units were observed in part: read as they are meant, or refused.

One session is written as many tools would write it. Read with what its times mean, each file has the counts of the plain
one; without that it has them, too, where the file says enough, and is refused where it does not.
"""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from connector.data import nwb
from connector.data.nwb import load_nwb
from connector.data.nwb_export import export_nwb
from connector.data.nwb_observed import most_observed
from connector.data.settings import settled
from connector.errors import UserError
from connector.types import Recording

pynwb = pytest.importorskip("pynwb", reason="reading NWB needs the extra `nwb`")

from hdmf.common import VectorData, VectorIndex  # noqa: E402

TRIALS, UNITS, HZ = 20, 4, 30
ONSET = 2.0 * np.arange(TRIALS) + 1.03
END = ONSET[-1] + 2
CUE = 0.31 + 0.01 * np.arange(TRIALS)


def trains():
    rng = np.random.default_rng(0)
    return [np.sort(rng.uniform(0, END, rng.poisson(HZ * END))) for _ in range(UNITS)]


def within(times, start, length=1.0):
    return times[(times >= start) & (times < start + length)] - start


def load(file, **options):
    """As load_nwb reads a file that lies on a disk."""
    return nwb._recording(Path("made.nwb"), file, settled(nwb.NwbOptions, None, options), "made")


def session(spikes=None, start=ONSET, stop=None, invalid=(), observed=None, series=None, table="trials", **columns):
    """The session with some of its parts written otherwise; ``columns``: of the trials, lists of times where ragged."""
    file = pynwb.NWBFile("made", "made", datetime(2026, 1, 1, tzinfo=UTC))
    for k, times in enumerate(trains() if spikes is None else spikes):
        file.add_unit(
            spike_times=times, **({} if observed is None else {"obs_intervals": np.array(observed[k], float)})
        )
    stop = start + 1.0 if stop is None else stop
    columns = {"start_time": start, "stop_time": stop, **columns}
    parts = []
    for name, values in columns.items():
        data = np.concatenate(values) if isinstance(values, list) else values
        parts.append(VectorData(name=name, description="x", data=data))
        if isinstance(values, list):
            ends = np.cumsum([len(x) for x in values])
            parts.append(VectorIndex(name=f"{name}_index", target=parts[-1], data=ends))
    rows = pynwb.epoch.TimeIntervals(name=table, description="x", columns=parts, id=list(range(len(start))))
    if table == "trials":
        file.trials = rows
    else:
        file.add_time_intervals(rows)
    for a, b in invalid:
        file.add_invalid_time_interval(start_time=a, stop_time=b)
    if series is not None:
        file.add_acquisition(series)
    return file


@pytest.fixture(scope="module")
def plain():
    return session(cue=ONSET + CUE, clicks=list(ONSET[:, None] + [0.2, 0.6]))


@pytest.fixture(scope="module")
def counts(plain):
    """Of the plain file, by hand."""
    found = np.zeros((TRIALS, 100, UNITS))
    for k, times in enumerate(trains()):
        for i, start in enumerate(ONSET):
            found[i, :, k] = np.histogram(within(times, start), bins=0.01 * np.arange(101))[0]
    assert np.array_equal(load(plain).activity.numpy(), found)
    return torch.from_numpy(found).float()


RELATIVE = [np.concatenate([within(times, start) for start in ONSET]) for times in trains()]
FROM_START = "seconds from each trial's start_time"
MILLISECONDS = {"time_units": {"spike_times": 0.001}}
SAMPLES = {"time_units": {"spike_times": 1 / 30000}}
TRIALS_MS = {"time_units": {"start_time": 0.001, "stop_time": 0.001}}


@pytest.mark.parametrize(
    ("written", "options", "refused"),
    [
        ({"spikes": [1000 * t for t in trains()]}, MILLISECONDS, ["no unit above", "data.time_units={spike_times:0.001"]),
        ({"spikes": [1000 * t + 9e6 for t in trains()], "start": ONSET + 9e3}, MILLISECONDS, ["spike_times"]),
        ({"spikes": [np.round(30000 * t) for t in trains()]}, SAMPLES, ["whole numbers", "1 / sampling rate"]),
        ({"start": 1000 * ONSET, "stop": 1000 * ONSET + 1000}, TRIALS_MS, ["start_time:0.001"]),
        ({"start": 1000 * ONSET - 1000, "stop": 1000 * ONSET}, None, ["start_time"]),
        ({"spikes": [1000 * t for t in trains()], "start": 1000 * ONSET, "stop": 1000 * ONSET + 1000},
         {"time_units": {"spike_times": 0.001, "start_time": 0.001, "stop_time": 0.001}}, ["spike_times"]),
        ({"spikes": RELATIVE}, {"spike_times": "trial"}, ["data.spike_times=trial", "going back 19 times"]),
        ({"spikes": [np.sort(t) for t in RELATIVE]}, None, ["trials without any", "from each trial's start"]),
        ({"start": 0 * ONSET}, None, ["all begin at 0 s", "data.align"]),
        ({"start": ONSET + 500}, None, ["20 trials without any"]),
    ],
)  # fmt: skip
def test_spikes_and_trials_on_two_clocks_are_refused_and_read_with_the_option_named(counts, written, options, refused):
    path = session(**written)
    with pytest.raises(UserError) as found:
        load(path)
    assert all(word in str(found.value) for word in refused), found.value
    assert len(str(found.value).splitlines()) <= 2
    if options is not None:
        found = load(path, **options).activity
        assert found.shape == counts.shape
        # times of samples are rounded: a spike in a thousand falls into the next bin
        assert float((found - counts).abs().sum()) <= 0.005 * float(counts.sum())


def test_units_whose_trials_cannot_be_told_apart_are_named():
    sparse = [*RELATIVE[:3], RELATIVE[3][:50]]
    with pytest.raises(UserError, match=r"20 runs(?s:.*)in unit 3(?s:.*)data.units"):
        load(session(spikes=sparse), spike_times="trial")


def test_spikes_out_of_order_are_sorted_and_sessions_run_together_are_not(counts):
    rng = np.random.default_rng(1)
    shuffled = load(session(spikes=[rng.permutation(t) for t in trains()]))
    assert torch.equal(shuffled.activity, counts)
    assert any("not in order: sorted" in note for note in shuffled.notes)
    twice = {"spikes": [np.r_[t, t] for t in trains()], "start": np.r_[ONSET, ONSET]}
    with pytest.raises(UserError, match="several sessions"):
        load(session(**twice))
    padded = load(session(spikes=[np.r_[t, np.nan] for t in trains()]))
    assert torch.equal(padded.activity, counts)
    assert any("4 spike times that are NaN" in note for note in padded.notes)


@pytest.mark.parametrize("after", ["cue", "go"])
def test_events_from_the_trials_start_are_read_as_such(plain, after):
    right = load(plain, align="cue", until="stop_time", inputs=["clicks"])
    assert right.inputs.sum() == TRIALS  # the click at .6 s; that at .2 s was before
    path = session(**{after: CUE, "clicks": [np.array([0.2, 0.6])] * TRIALS})
    for options in ({}, {"from_start": [after, "clicks"]}):
        found = load(path, align=after, until="stop_time", inputs=["clicks"], **options)
        assert torch.equal(found.activity, right.activity)
        assert torch.equal(found.inputs, right.inputs)
        assert torch.allclose(found.trial_times_s, right.trial_times_s)
        assert any(FROM_START in note for note in found.notes) == (not options)
    ended = load(path, until=after)  # the end of a trial, too
    assert ended.lengths.tolist() == [int(x) for x in np.floor(CUE / 0.01 + 1e-6)]


def test_a_stop_time_that_is_a_duration_is_read_as_one(counts):
    found = load(session(stop=np.ones(TRIALS)))
    assert torch.equal(found.activity, counts)
    assert any("stop_time is read as" in note for note in found.notes)


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"cue": 1000 * CUE}, {"align": "cue"}, ["'cue'", "data.from_start=[cue]", "data.time_units={cue:SECONDS}"]),
        ({"cue": 1.7e9 + ONSET}, {"align": "cue"}, ["'cue'", "20 of 20 far outside"]),
        ({"cue": np.arange(TRIALS) % 2 + 1.0}, {"align": "cue"}, ["'cue'", "far outside"]),  # codes of a block
        ({"hit": np.arange(TRIALS) % 2 == 0}, {"align": "hit"}, ["'hit'", "true and false"]),
        ({"stop": np.full(TRIALS, np.nan)}, {}, ["stop_time", "data.stop_s=SECONDS"]),
        ({"stop": ONSET}, {}, ["stop_time", "data.stop_s=SECONDS"]),
        ({"stop": np.full(TRIALS, np.inf)}, {}, ["stop_time", "data.stop_s=SECONDS"]),
        ({"cue": np.full(TRIALS, np.nan)}, {"align": "cue"}, ["o trial has a time in cue", "data.align=COLUMN"]),
        ({"clicks": [np.array([200.0, 600.0])] * TRIALS}, {"inputs": ["clicks"]}, ["'clicks'", "data.from_start"]),
        ({"clicks": list(ONSET[:, None] + [1.2])}, {"inputs": ["clicks"]}, ["'clicks'", "20 of them, all outside"]),
        ({"clicks": list(ONSET[:, None] + [0.2])}, {"inputs": ["clicks"], "event_times": "align"}, ["all outside"]),
        ({}, {"time_units": {"spike_time": 0.001}}, ["data.time_units", "spike_time"]),
        ({}, {"time_units": {"spike_times": 0}}, ["data.time_units of spike_times", "such as 0.001 or 1/30000"]),
        ({}, {"from_start": ["cue"]}, ["data.from_start", "cue"]),
    ],
)
def test_times_that_can_mean_anything_are_refused_with_column_and_option(columns, options, words):
    with pytest.raises(UserError) as found:
        load(session(**columns), **options)
    assert all(word in str(found.value) for word in words), found.value
    assert len(str(found.value).splitlines()) <= 2


def test_a_trial_without_its_event_is_left_out_however_the_file_says_so():
    for none in (np.nan, -1.0, 0.0, 1e6):
        cue = ONSET + CUE
        cue[[3, 8]] = none
        found = load(session(cue=cue), align="cue", stop_s=0.3)
        assert found.n_trials == TRIALS - 2
        assert any("2 trials whose" in note or "2 trials without" in note for note in found.notes), found.notes


# --- what was observed ------------------------------------------------------------------------------------------------


def test_unobserved_is_not_silent(counts):
    half, whole = [[0, ONSET[10] - 0.5]], [[0, END]]
    spikes = [t[t < half[0][1]] if k < 2 else t for k, t in enumerate(trains())]
    path = session(spikes=spikes, observed=[half, half, whole, whole])
    found = load(path)
    assert torch.equal(found.activity, counts[:10])
    assert any("10 trials left out: not observed" in note for note in found.notes)
    assert load(path, unobserved="ignore").activity[10:, :, :2].sum() == 0
    # Two units that were observed in three trials cost the others less than seventeen trials would.
    few = [[0, ONSET[3] - 0.5]]
    found = load(session(observed=[few, whole, few, whole]))
    assert torch.equal(found.activity, counts[:, :, [1, 3]])
    assert any("2 units left out" in note for note in found.notes)
    # The gap of a sample between two intervals is none; one of two bins is.
    for gap, n_trials in ((1 / 30000, TRIALS), (0.02, TRIALS - 1)):
        pieces = [[0, ONSET[5] + 0.4], [ONSET[5] + 0.4 + gap, END]]
        path = session(observed=[pieces, whole, whole, whole])
        assert load(path).n_trials == n_trials
    with pytest.raises(UserError, match=r"obs_intervals(?s:.*)data.unobserved=ignore"):
        load(session(observed=[[[0, 0.5]]] * UNITS))


def test_intervals_of_observation_are_on_the_clock_of_the_times_beside_them(counts):
    half, whole = [[0, ONSET[10] - 0.5]], [[0, END]]
    spikes = [t[t < half[0][1]] if k < 1 else t for k, t in enumerate(trains())]
    observed = [half, whole, whole, whole]
    in_ms = {"observed": [1000 * np.array(x) for x in observed]}
    for written in ({"observed": observed}, in_ms):
        found = load(session(spikes=[1000 * t for t in spikes], **written), **MILLISECONDS)
        assert torch.equal(found.activity, counts[:, :, 1:])
    path = session(spikes=spikes, **in_ms)
    with pytest.raises(UserError, match=r"obs_intervals in seconds(?s:.*)data.time_units=.obs_intervals:0.001"):
        load(path)
    assert torch.equal(load(path, time_units={"obs_intervals": 0.001}).activity, counts[:, :, 1:])
    # One interval for all, however long or open, leaves nothing out.
    for end in (1e9, np.inf):
        assert torch.equal(load(session(observed=[[[0, end]]] * UNITS)).activity, counts)
    open_end = [[[ONSET[3], np.inf]], [[0.0, np.inf]], [[0.0, np.inf]], [[0.0, np.inf]]]
    assert torch.equal(
        load(session(observed=open_end), trials={"stop_time": (ONSET[5:] + 1).tolist()}).activity, counts[5:]
    )
    in_ms = {"spikes": [1000 * t for t in trains()], "start": 1000 * ONSET, "stop": 1000 * ONSET + 1000}
    units = {"spike_times": 0.001, "start_time": 0.001, "stop_time": 0.001}
    found = load(session(invalid=[(1000 * ONSET[2], 1000 * ONSET[4] - 1)], **in_ms), time_units=units)
    assert torch.equal(found.activity, counts[[i for i in range(TRIALS) if i not in (2, 3)]])
    with pytest.raises(UserError, match=r"invalid_times in seconds(?s:.*)invalid_times:0.001"):
        load(session(invalid=[(1e6, 2e6)]))


def test_trials_in_invalid_times_are_left_out(counts):
    path = session(invalid=[(ONSET[2] + 0.5, ONSET[4] + 0.1), (ONSET[7] + 1.1, ONSET[8] - 0.1)])
    found = load(path)
    assert torch.equal(found.activity, counts[[i for i in range(TRIALS) if i not in (2, 3, 4)]])
    assert any("3 trials left out" in note for note in found.notes)


def test_pieces_lie_in_what_was_observed_each_from_where_it_begins():
    whole, parts = [[0.0, END]], [[0.0, 11.0], [15.5, END]]
    options = {"table": "session", "piece_s": 2, "bin_s": 0.05}
    found = load(session(observed=[parts, parts, parts, parts], invalid=[(20.0, 21.3)]), **options)
    begins = np.r_[np.arange(0, 10, 2.0), [15.5, 17.5], np.arange(21.3, END - 2, 2)]
    assert np.allclose(found.trial_times_s, begins)
    counted = np.stack(
        [[np.histogram(within(t, a, 2.0), bins=0.05 * np.arange(41))[0] for t in trains()] for a in begins]
    )
    assert np.array_equal(found.activity, counted.transpose(0, 2, 1))
    # A unit that was observed in a few of the pieces is left out; what is in no interval is ignored where that is asked for.
    some = load(session(observed=[whole, whole, whole, [[0.0, 5.0]]]), **options)
    assert (some.n_neurons, some.n_trials) == (3, int(END // 2))
    assert load(session(observed=[parts] * 4), unobserved="ignore", **options).n_trials == int(END // 2)


def test_spikes_in_samples_are_refused_without_trials_too():
    file = session(spikes=[np.round(30000 * t) for t in trains()])
    options = {"table": "session", "piece_s": 2, "bin_s": 0.05}
    with pytest.raises(UserError, match=r"whole numbers(?s:.*)1 / sampling rate"):
        load(file, **options)
    with pytest.raises(UserError, match=r"at most 1e\+06 pieces(?s:.*)data.time_units"):
        load(file, **options | {"piece_s": 0.1, "tau": 1.0})
    found = load(file, time_units={"spike_times": "1/30000"}, **options)
    assert found.n_trials == int((max(t[-1] for t in trains()) - min(t[0] for t in trains())) // 2)


def test_trials_after_the_end_of_a_recording_and_in_its_pauses_are_left_out(counts):
    missing = (5, 6, 16, 17, 18, 19)
    kept = [i for i in range(TRIALS) if i not in missing]
    spikes = [t[(t < ONSET[15] + 1.5) & ~((t > ONSET[5] - 0.5) & (t < ONSET[7] - 0.5))] for t in trains()]
    found = load(session(spikes=spikes))
    assert torch.equal(found.activity, counts[kept])
    assert any("6 trials left out: no unit fires" in note for note in found.notes)
    # Units that seldom fire, or a population that falls silent again and again, may be silent in a trial.
    sparse = [t[::40] for t in spikes]
    assert load(session(spikes=sparse)).n_trials == TRIALS
    bursts = [t[(t % 1.0 < 0.2) & ~((t > ONSET[5] - 0.5) & (t < ONSET[7] - 0.5))] for t in trains()]
    assert load(session(spikes=bursts)).n_trials == TRIALS


def test_the_most_is_kept_of_what_was_observed():
    seen = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)
    trials, units = most_observed(seen)
    assert trials.tolist() == [True, True, True, False]
    assert units.tolist() == [True, True, False]
    assert [x.all() for x in most_observed(np.ones((3, 2), dtype=bool))] == [True, True]
    assert not most_observed(np.zeros((3, 2), dtype=bool))[0].any()


def test_nothing_is_known_outside_the_trials_of_an_exported_file(tmp_path):
    rng = np.random.default_rng(2)
    activity = torch.from_numpy(rng.poisson(0.5, size=(10, 40, 6)).astype(np.float32))
    recording = Recording(activity, "spikes", torch.full((10,), 40), 0.1, "softplus", bin_s=0.01,
                          trial_times_s=2.0 * torch.arange(10, dtype=torch.float64))  # fmt: skip
    export_nwb(recording, tmp_path / "a.nwb")
    assert torch.equal(load_nwb(tmp_path / "a.nwb", start_s=0.1).activity, activity[:, 10:])
    with pytest.raises(UserError, match="observed throughout"):
        load_nwb(tmp_path / "a.nwb", start_s=-0.2, stop_s=0.4)


def test_a_series_that_ended_is_not_held_for_ever(counts):
    def running(seconds):
        ramp = np.arange(int(seconds * 20), dtype=float)
        return pynwb.TimeSeries(name="running", data=ramp, unit="cm/s", rate=20.0)

    found = load(session(series=running(END)), inputs=["running"])
    assert torch.equal(found.activity, counts)
    with pytest.raises(UserError, match=r"'running' in all trials(?s:.*)10 trials without"):
        load(session(series=running(ONSET[10] - 0.2)), inputs=["running"])


def test_a_series_in_other_units_or_with_a_gap_does_not_stand_still(counts):
    t = np.arange(0, END, 0.05)

    def running(times, unit=1.0):
        return pynwb.TimeSeries(name="running", data=np.sin(times), unit="cm/s", timestamps=unit * times)

    right = load(session(series=running(t)), inputs=["running"])
    for unit in (1e3, 1e6):
        with pytest.raises(UserError, match=r"'running' with several samples(?s:.*)data.time_units=.running:0.001"):
            load(session(series=running(t, unit)), inputs=["running"])
    read = load(session(series=running(t, 1e3)), inputs=["running"], time_units={"running": 0.001})
    assert torch.equal(read.inputs, right.inputs)
    gap = t[(t < ONSET[5]) | (t > ONSET[9] - 0.2)]
    with pytest.raises(UserError, match=r"'running' in all trials(?s:.*)4 trials without"):
        load(session(series=running(gap)), inputs=["running"])
    # A series of steps, each of which holds until the next, has no gaps.
    at = ONSET - np.random.default_rng(0).uniform(0, 1, TRIALS)
    steps = pynwb.TimeSeries(name="running", data=np.arange(TRIALS + 1), unit="x", timestamps=np.r_[0, at])
    found = load(session(series=steps), inputs=["running"])
    assert found.inputs[:, 50, 0].tolist() == [*range(1, TRIALS + 1)]


def test_a_column_of_times_is_one_event_in_each_trial_and_a_column_of_numbers_is_none(counts):
    found = load(session(cue=ONSET + CUE, level=CUE), inputs=["cue", "level"])
    assert found.inputs[:, :, 0].nonzero()[:, 1].tolist() == [int(100 * x + 1e-6) for x in CUE]
    assert torch.equal(found.inputs[:, :, 1], torch.from_numpy(CUE).float()[:, None].expand(-1, 100))
    assert [note for note in found.notes if "one event" in note and "cue" in note]


def test_any_table_of_intervals_can_hold_the_trials(counts):
    path = session(table="stimulus_presentations")
    with pytest.raises(UserError, match=r"table of trials(?s:.*)data.table=stimulus_presentations"):
        load(path)
    assert torch.equal(load(path, table="stimulus_presentations").activity, counts)
    with pytest.raises(UserError, match="stimuli are absent"):
        load(path, table="stimuli")
