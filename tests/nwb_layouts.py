"""Miniature NWB files in the layouts that labs upload, of activity that is known: what they hold is told by their makers."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pynwb
from hdmf.common import DynamicTable, VectorData

TRIALS, UNITS, HZ = 30, 8, 20.0
STARTS = 5.0 + 3.0 * np.arange(TRIALS)
END = float(STARTS[-1] + 3.0)


def write(path: Path, file) -> Path:
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def blank():
    return pynwb.NWBFile("a session", "made", datetime(2026, 1, 1, tzinfo=UTC))


def trains(seed=0, start=0.0, end=END):
    """Ascending spike times of each unit, s."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.uniform(start, end, rng.poisson(HZ * (end - start)))) for _ in range(UNITS)]


def add_units(file, spikes, columns=None, **more):
    """Units with columns of values, one for each, as ``quality=[...]``."""
    for name in columns or {}:
        file.add_unit_column(name, "of the unit")
    for k, times in enumerate(spikes):
        file.add_unit(spike_times=times, **{name: x[k] for name, x in {**(columns or {}), **more}.items()})


def add_rows(table, columns, starts=STARTS, stops=None, ragged=()):
    for name in columns:
        table.add_column(name, "of the row", index=name in ragged)
    for i, start in enumerate(starts):
        stop = start + 2.0 if stops is None else stops[i]
        table.add_row(start_time=start, stop_time=stop, **{name: x[i] for name, x in columns.items()})


def allen():
    """Allen Institute, Neuropixels: a table of presentations for each stimulus, units by the id of their channel, regions of
    channels as text, several qualities of units, no trials."""
    file, rng = blank(), np.random.default_rng(1)
    probe = file.create_electrode_group("probeA", "x", "x", file.create_device("probeA"))
    for name in ("probe_vertical_position", "valid_data"):
        file.add_electrode_column(name, "x")
    for k in range(20):
        file.add_electrode(
            id=850 + 2 * k, group=probe, location=("VISp", "CA1", "LGd", "void")[k // 5], probe_vertical_position=20 * k,
            valid_data=k != 3,
        )  # fmt: skip
    columns = {
        "peak_channel_id": [850 + 4 * k for k in range(UNITS)],
        "presence_ratio": [0.99, 0.5, 0.97, 0.99, 0.96, 0.99, 0.99, np.nan],
        "isi_violations": 0.1 * np.arange(UNITS),
        "quality": ["good"] * 6 + ["noise"] * 2,
    }
    add_units(file, trains(1), columns, waveform_mean=[rng.normal(size=(10, 4)) for _ in range(UNITS)])
    for name, label, values in (
        ("drifting_gratings", "orientation", [0.0, 45.0, 90.0]),
        ("natural_scenes", "frame", [0.0, 1.0, 2.0, -1.0]),
    ):
        table = pynwb.epoch.TimeIntervals(name=f"{name}_presentations", description="x")
        columns = {
            "stimulus_name": [name] * TRIALS,
            "stimulus_block": [2.0] * TRIALS,
            label: [values[i % len(values)] for i in range(TRIALS)],
            "contrast": [0.8] * TRIALS,
            "color": ["null"] * TRIALS,
            "size": [np.array([250.0, 250.0])] * TRIALS,
            "tags": [["stimulus_time_interval", str(i)] for i in range(TRIALS)],
        }
        add_rows(table, columns, ragged=("tags",))
        file.add_time_intervals(table)
    running = pynwb.TimeSeries(
        name="running_speed", data=rng.normal(size=2000), unit="cm/s", timestamps=np.linspace(0, END, 2000)
    )
    file.create_processing_module("running", "x").add(running)
    invalid = {"start_time": STARTS[4] + 0.5, "stop_time": STARTS[5] + 0.5}
    file.add_invalid_time_interval(**invalid, tags=["EcephysProbe", "probeA"])
    return file


def ibl():
    """International Brain Laboratory: choices -1, 0, 1, contrasts that are NaN on the other side, times of events in the session,
    units with a label between 0 and 1 and regions as text."""
    file, rng = blank(), np.random.default_rng(2)
    columns = {
        "label": [1.0, 1 / 3, 1.0, 2 / 3, 1.0, 1.0, 0.0, 1.0],
        "firing_rate": [HZ] * UNITS,
        "beryl_location": ["MOs", "MOs", "ACAd", "root", "MOs", "CP", "void", "CP"],
    }
    add_units(file, trains(2), columns)
    right = rng.uniform(size=TRIALS) < 0.5
    contrast = rng.choice([0.0625, 0.25, 1.0], TRIALS)
    columns = {
        "stimOn_times": STARTS + 0.3 + 0.01 * np.arange(TRIALS),
        "goCue_times": STARTS + 0.31 + 0.01 * np.arange(TRIALS),
        "firstMovement_times": np.where(np.arange(TRIALS) == 3, np.nan, STARTS + 0.9),
        "choice": np.where(np.arange(TRIALS) == 7, 0, np.where(right, -1, 1)).astype(float),
        "contrastLeft": np.where(right, np.nan, contrast),
        "contrastRight": np.where(right, contrast, np.nan),
        "probabilityLeft": np.repeat([0.5, 0.2, 0.8], TRIALS // 3),
    }
    add_rows_of_trials(file, columns)
    wheel = pynwb.behavior.SpatialSeries(
        name="wheel_position", data=rng.normal(size=900).cumsum(), unit="rad", timestamps=np.linspace(0, END, 900),
        reference_frame="x",
    )  # fmt: skip
    file.create_processing_module("behavior", "x").add(pynwb.behavior.Position(spatial_series=wheel))
    return file


def add_rows_of_trials(file, columns, stops=None, ragged=()):
    file.trials = pynwb.epoch.TimeIntervals(name="trials", description="trials")
    add_rows(file.trials, columns, stops=stops, ragged=ragged)


def svoboda():
    """Svoboda lab: trials with columns of text, times from the trial's start, units of a part of the trials, obs_intervals."""
    file = blank()
    group = file.create_electrode_group("silicon", "x", "left ALM", file.create_device("probe"))
    spikes = trains(3)
    whole = np.stack([STARTS, STARTS + 2.5], axis=1)
    for k in range(UNITS):
        seen = whole if k else whole[:20]  # the first unit was lost after 20 trials
        within = np.concatenate([spikes[k][(spikes[k] >= a) & (spikes[k] < b)] for a, b in seen])
        file.add_unit(spike_times=within, obs_intervals=seen, electrode_group=group)
    kinds = ["left", "right", "RightEarly", "left", "right", "lick left no stim"]
    columns = {
        "trial_type": [kinds[i % 6] for i in range(TRIALS)],
        "response": ["correct", "incorrect", "early lick"] * (TRIALS // 3),
        "pole_in": [0.42 + 0.001 * i for i in range(TRIALS)],
        "cue_time": [1.01 + 0.001 * i for i in range(TRIALS)],
        "lick_times": [np.array([1.2, 1.3]) for _ in range(TRIALS)],
        "task_protocol": [np.bytes_(b"delayed")] * TRIALS,
    }
    add_rows_of_trials(file, columns, stops=STARTS + 2.5, ragged=("lick_times",))
    return file


def churchland():
    """Churchland and Shenoy labs: reaching, hand position as a series in a behaviour module, units without electrodes, a vector
    in each trial, trials that succeeded."""
    file, rng = blank(), np.random.default_rng(4)
    add_units(file, trains(4), {"electrode": np.arange(UNITS) // 2})
    angle = 2 * np.pi * (np.arange(TRIALS) % 8) / 8
    columns = {
        "target_pos": list(np.stack([100 * np.cos(angle), 100 * np.sin(angle)], axis=1)),
        "go_cue_time": STARTS + 0.5,
        "move_begins_time": STARTS + 0.8,
        "task_success": np.arange(TRIALS) % 5 > 0,
        "maze_id": np.arange(TRIALS) % 3,
    }
    add_rows_of_trials(file, columns)
    hand = pynwb.behavior.SpatialSeries(
        name="Hand", data=rng.normal(size=(int(100 * END), 2)).cumsum(0), unit="mm", rate=100.0, reference_frame="x",
        conversion=0.001,
    )  # fmt: skip
    module = file.create_processing_module("behavior", "x")
    module.add(pynwb.behavior.Position(spatial_series=hand))
    cursor = pynwb.behavior.SpatialSeries(
        name="Cursor", data=rng.normal(size=(int(100 * END), 2)), unit="mm", rate=100.0, reference_frame="x"
    )
    module.add(pynwb.behavior.Position(name="CursorPosition", spatial_series=cursor))
    return file


def buzsaki():
    """Buzsaki lab: states of sleep as a table of intervals in a module, epochs with tags, no trials, LFP beside, cell types."""
    file, rng = blank(), np.random.default_rng(5)
    group = file.create_electrode_group("shank0", "x", "CA1", file.create_device("probe"))
    for _ in range(4):
        file.add_electrode(group=group, location="unknown")
    add_units(
        file,
        trains(5),
        {"cell_type": ["pyramidal cell"] * 5 + ["narrow interneuron"] * 3},
        electrode_group=[group] * UNITS,
    )
    file.add_epoch(start_time=0.0, stop_time=40.0, tags=["sleep", "pre"])
    file.add_epoch(start_time=40.0, stop_time=END, tags=["wake"])
    states = pynwb.epoch.TimeIntervals(name="states", description="x")
    ends = [0.0, 20.0, 25.0, 50.0, 60.0, END]
    add_rows(states, {"label": ["NREM", "REM", "NREM", "WAKE", "NREM"]}, starts=ends[:-1], stops=ends[1:])
    module = file.create_processing_module("behavior", "x")
    module.add(states)
    region = file.create_electrode_table_region(region=[0, 1, 2, 3], description="x")
    lfp = pynwb.ecephys.ElectricalSeries(name="lfp", data=rng.normal(size=(500, 4)), electrodes=region, rate=5.0)
    file.create_processing_module("ecephys", "x").add(pynwb.ecephys.LFP(electrical_series=lfp))
    return file


def others():
    """A table of trials that is a plain table in a module, with units, too, in a module of their own."""
    file = blank()
    module = file.create_processing_module("behavior", "x")
    columns = [
        VectorData(name="start_time", description="x", data=STARTS),
        VectorData(name="stop_time", description="x", data=STARTS + 2.0),
        VectorData(name="correct", description="x", data=np.arange(TRIALS) % 2),
    ]
    module.add(DynamicTable(name="task", description="x", columns=columns))
    units = pynwb.misc.Units(name="sorted_units", description="x")
    for times in trains(6):
        units.add_unit(spike_times=times)
    file.create_processing_module("ecephys", "x").add(units)
    return file


def events():
    """Events as series in a behaviour module, intervals as a series of on and off, a table of events, and no trials but it."""
    file, rng = blank(), np.random.default_rng(7)
    add_units(file, trains(7))
    module = file.create_processing_module("behavior", "x")
    licks = np.sort(rng.uniform(0, END, 300))
    container = pynwb.behavior.BehavioralEvents()
    container.create_timeseries(name="licks", data=np.ones(300), unit="n.a.", timestamps=licks)
    container.create_timeseries(name="rewards", data=rng.uniform(size=30), unit="ul", timestamps=STARTS + 0.5)
    module.add(container)
    on_off = pynwb.misc.IntervalSeries(name="light", data=np.tile([1, -1], TRIALS).astype(np.int8), timestamps=np.ravel(
        np.stack([STARTS + 0.2, STARTS + 0.7], axis=1)))  # fmt: skip
    module.add(pynwb.behavior.BehavioralEpochs(interval_series=on_off))
    table = file.create_events_table(name="tones", description="x")
    table.add_column(name="pitch", description="kHz")
    for i, start in enumerate(STARTS):
        table.add_row(timestamp=start + 0.1, pitch=(4.0, 8.0)[i % 2])
    return file


def nlb():
    """Neural Latents Benchmark: units held out, observed in the trials of one split alone, lists of lists in the trials, kinematics."""
    file, rng = blank(), np.random.default_rng(8)
    group = file.create_electrode_group("M1", "x", "M1", file.create_device("array"))
    for _ in range(UNITS):
        file.add_electrode(group=group, location="M1")
    file.add_unit_column("heldout", "x")
    spikes = trains(8)
    for k in range(UNITS):
        seen = np.stack([STARTS, STARTS + 2.0], axis=1)[: TRIALS if k < 6 else 24]
        within = np.concatenate([spikes[k][(spikes[k] >= a) & (spikes[k] < b)] for a, b in seen])
        file.add_unit(spike_times=within, obs_intervals=seen, heldout=k >= 6, electrodes=[k])
    for name, index in (("target_pos", 2), ("move_onset_time", False), ("success", False), ("split", False)):
        file.add_trial_column(name, "x", index=index)
    for i, start in enumerate(STARTS):
        file.add_trial(
            start_time=start, stop_time=start + 2.0, target_pos=[[1, 2], [3, 4]], move_onset_time=start + 0.7 if i < 24 else np.nan,
            success=True, split=("train", "val")[i % 2] if i < 24 else "test",
        )  # fmt: skip
    hand = np.concatenate([np.stack([np.arange(200.0), np.arange(200.0)], axis=1) for _ in STARTS])
    when = np.concatenate([start + np.arange(200) / 100 for start in STARTS])
    file.create_processing_module("behavior", "x").add(
        pynwb.TimeSeries(name="hand_pos", data=hand, unit="mm", timestamps=when)
    )
    noise = rng.normal(size=(100, 96))
    file.add_acquisition(pynwb.TimeSeries(name="broadband", data=noise, unit="V", rate=1.0))
    return file


def human():
    """Human single neurons: few units from clusters, trials with texts and numbers as texts, times that lack, markers as a series."""
    file = blank()
    add_units(file, trains(9), {"clusterID_orig": np.arange(UNITS), "waveforms_isolation_distance": [np.nan] * UNITS})
    columns = {
        "stimCategory": np.arange(TRIALS) % 5 + 1,
        "category_name": ["houses", "landscapes", "mobility", "phones", "smallAnimal"] * (TRIALS // 5),
        "response_value": ["NA" if i < 10 else str(31 + i % 6) for i in range(TRIALS)],
        "stim_on_time": STARTS + 0.1,
        "response_time": [np.nan if i < 10 else STARTS[i] + 1.5 for i in range(TRIALS)],
        "stim_phase": ["learn" if i < 10 else "recog" for i in range(TRIALS)],
    }
    add_rows_of_trials(file, columns)
    marks = pynwb.misc.AnnotationSeries(
        name="events", data=["61", "66"] * TRIALS, timestamps=np.sort(np.r_[STARTS, STARTS + 1])
    )
    file.add_acquisition(marks)
    return file
