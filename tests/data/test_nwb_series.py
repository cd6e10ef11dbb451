"""Time series of NWB files as activity: samples come out as they were written, gaps are unobserved, bins hold means."""

from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from connector.data import nwb
from connector.data.folds import fold_of
from connector.data.nwb import load_nwb
from connector.data.settings import settled
from connector.errors import UserError

pynwb = pytest.importorskip("pynwb", reason="reading NWB needs the extra `nwb`")


pytestmark = pytest.mark.filterwarnings("ignore:RoiResponseSeries")  # of data that are written across on purpose
HZ, SAMPLES, ROIS = 10.0, 600, 6
FIRST = 3.0
TIMES = FIRST + np.arange(SAMPLES) / HZ
STARTS = 4.03 + 5 * np.arange(10)


def traces():
    """Each ROI at each sample tells which it is: ROI + sample / 1000."""
    return np.arange(ROIS) + np.arange(SAMPLES)[:, None] / 1000


def empty(trials=True):
    file = pynwb.NWBFile("made", "made", datetime(2026, 1, 1, tzinfo=UTC))
    if trials:
        file.add_trial_column("outcome", "x")
        for i, start in enumerate(STARTS):
            file.add_trial(start_time=start, stop_time=start + 2.0, outcome=("hit", "miss")[i % 2])
    return file


def with_series(values=None, trials=True, module=None, kind=None, **clock):
    file = empty(trials)
    clock = clock or {"rate": HZ, "starting_time": FIRST}
    series = (kind or pynwb.TimeSeries)(name="dff", data=traces() if values is None else values, unit="a.u.", **clock)
    if module:
        file.create_processing_module(module, "x").add(series)
    else:
        file.add_acquisition(series)
    return file


def imaging(planes=1, across=False, **series):
    """As suite2p and CaImAn write: containers with a series for each plane, ROIs with columns."""
    file = empty()
    device = file.create_device("scope")
    channel = pynwb.ophys.OpticalChannel(name="green", description="x", emission_lambda=510.0)
    ophys = file.create_processing_module("ophys", "x")
    segmentation = pynwb.ophys.ImageSegmentation()
    ophys.add(segmentation)
    containers = {name: pynwb.ophys.Fluorescence(name=name) for name in ("Fluorescence", "Neuropil", "Deconvolved")}
    for container in containers.values():
        ophys.add(container)
    for k in range(planes):
        plane = file.create_imaging_plane(
            name=f"plane{k}", optical_channel=channel, description="x", device=device, excitation_lambda=920.0,
            indicator="GCaMP6f", location="V1", imaging_rate=HZ,
        )  # fmt: skip
        table = segmentation.create_plane_segmentation(name=f"rois{k}", description="x", imaging_plane=plane)
        table.add_column("iscell", "is it, and with what probability")
        for i in range(ROIS):
            table.add_roi(pixel_mask=[(i, i, 1.0)], iscell=[float(i % 3 > 0), 0.1 * i])
        for j, (name, container) in enumerate(containers.items()):
            region = table.create_roi_table_region(region=list(range(ROIS)), description="x")
            data = 100 * j + 10 * k + traces()
            container.create_roi_response_series(
                name=f"plane{k}" if name != "Neuropil" else f"Neuropil{k}", data=data.T if across else data, rois=region,
                unit="n.a.", **({"rate": HZ, "starting_time": FIRST + 0.02 * k} | series),
            )  # fmt: skip
    return file


def load(file, **options):
    """As load_nwb reads a file that lies on a disk."""
    options = {"activation": "relu", "tau": 1.0} | options
    return nwb._recording(Path("made.nwb"), file, settled(nwb.NwbOptions, None, options), "made")


def write(folder, file, changed=None):
    """The path of the file on the disk; ``changed``: data of some keys as pynwb would not write them."""
    path = folder / "a.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    with h5py.File(path, "r+") as opened:
        for key, data in (changed or {}).items():
            kept = dict(opened[key].attrs)
            del opened[key]
            opened[key] = data
            opened[key].attrs.update(kept)
    return path


def said(recording):
    return "\n".join(recording.notes)


def samples_of(recording):
    """Numbers of the samples that a recording of the traces consists of, (trials, time), by every neuron alike."""
    number = 1000 * (recording.activity - torch.arange(ROIS))
    assert torch.allclose(number, number[:, :, :1].expand_as(number), atol=2e-3)
    return number[:, :, 0].round().long()


def load_all(**options):
    return samples_of(load(with_series(), series="dff", **options))


def test_samples_come_as_they_are_from_the_one_nearest_to_each_trials_start():
    for file in (with_series(), with_series(timestamps=TIMES)):
        found = load(file, series="dff")
        assert (found.kind, found.activation, found.n_neurons, found.lengths.tolist()) == (
            "rates",
            "relu",
            ROIS,
            [20] * 10,
        )
        assert found.bin_s == pytest.approx(1 / HZ)
        first = np.round((STARTS - FIRST) * HZ).astype(int)
        assert np.array_equal(samples_of(found), first[:, None] + np.arange(20))
        assert np.array_equal(found.trial_times_s, STARTS)
        assert found.neuron_names[:2] == ("dff 0", "dff 1")
    for number in (0.1, 0.0995):  # a bin as wide as the samples are apart, as exactly as one types it
        assert torch.equal(load(file, series="dff", bin_s=number).activity, found.activity)
    hits = load(file, series="dff", trials={"outcome": "hit"}, stop_s=1.0, start_s=-0.5)
    assert np.array_equal(samples_of(hits), (first[::2, None] - 5) + np.arange(15))


def test_wider_bins_hold_means_and_narrower_ones_what_lies_between():
    wide = load(with_series(), series="dff", bin_s=0.5)
    begin = STARTS[:, None] + 0.5 * np.arange(4)
    expected = [
        [np.mean([i for i in range(SAMPLES) if a <= round(TIMES[i], 9) < a + 0.5]) for a in row] for row in begin
    ]
    assert torch.allclose(wide.activity[:, :, 2], torch.tensor(expected).float() / 1000 + 2, atol=1e-5)
    narrow = load(with_series(), series="dff", bin_s=0.02)
    middles = STARTS[:, None] + 0.02 * (np.arange(100) + 0.5)
    assert np.allclose(narrow.activity[:, :, 1], 1 + (middles - FIRST) * HZ / 1000, atol=1e-5)


def test_conversion_and_offset_are_applied_and_transposed_data_turned():
    file = with_series(values=traces().astype(np.float32))
    file.acquisition["dff"].fields["conversion"], file.acquisition["dff"].fields["offset"] = 0.5, 0.25
    assert torch.allclose(load(file, series="dff").activity, 0.5 * load(with_series(), series="dff").activity + 0.25)


def test_each_channel_has_its_own_conversion_whichever_are_kept():
    file = empty(trials=False)
    group = file.create_electrode_group("shank", "x", "CA1", file.create_device("probe"))
    for i in range(4):
        file.add_electrode(group=group, location=("CA1", "DG")[i % 2])
    region = file.create_electrode_table_region(region=[3, 1, 0, 2], description="x")
    whole = np.random.default_rng(0).integers(0, 1000, (SAMPLES, 4)).astype(np.int16)
    file.add_acquisition(
        pynwb.ecephys.ElectricalSeries(
            name="mua", data=whole, electrodes=region, rate=HZ, conversion=1e-3, channel_conversion=[1.0, 2.0, 3.0, 4.0]
        )
    )
    found = load(file, series="mua", piece_s=2, units={"location": "CA1"})
    assert found.neuron_names == ("CA1 0", "CA1 2")
    assert np.allclose(found.activity.reshape(-1, 2), 1e-3 * whole[:, 2:] * [3, 4])


def test_data_with_channels_first_are_turned(tmp_path):
    file = with_series(timestamps=TIMES)
    turned = write(tmp_path, file, {"acquisition/dff/data": traces().T})
    found = load_nwb(turned, series="dff", activation="relu", tau_s=1.0)
    assert torch.equal(found.activity, load(file, series="dff").activity)
    assert "transposed" in said(found)
    short = write(tmp_path, file, {"acquisition/dff/timestamps": TIMES[:-1]})
    with pytest.raises(UserError, match=r"a time for each of the 600 samples(?s:.*)599 times"):
        load_nwb(short, series="dff")


def test_a_gap_in_the_timestamps_is_unobserved():
    kept = np.r_[0:200, 260:SAMPLES]
    file = with_series(values=traces()[kept], timestamps=TIMES[kept])
    whole = load(with_series(), series="dff")
    for options in ({}, {"bin_s": 0.2}, {"bin_s": 0.05}):
        found, of_all = load(file, series="dff", **options), load(with_series(), series="dff", **options)
        there = [i for i, start in enumerate(STARTS) if start + 2 < TIMES[199] or start > TIMES[260]]
        assert torch.equal(found.activity, of_all.activity[there]), options
        assert "1 trial left out: not recorded" in said(found)
    # Samples that are NaN in all channels are as good as none, and so are invalid times.
    values = traces()
    values[200:260] = np.nan
    assert torch.equal(load(with_series(values=values), series="dff").activity, whole.activity[there])
    file = with_series()
    file.add_invalid_time_interval(start_time=TIMES[200], stop_time=TIMES[260])
    assert torch.equal(load(file, series="dff").activity, whole.activity[there])
    assert load(file, series="dff", unobserved="ignore").n_trials == 10
    # One channel that is NaN in most trials costs itself, one that is in a trial the trial.
    values = traces()
    values[:400, 3], values[75, 4] = np.nan, np.nan
    found = load(with_series(values=values), series="dff")
    assert torch.equal(found.activity, whole.activity[[0, *range(2, 10)]][:, :, [0, 1, 2, 4, 5]])
    assert "1 channel left out" in said(found)


def test_a_recording_without_trials_is_cut_into_pieces_between_gaps():
    kept = np.r_[0:205, 260:SAMPLES]
    for trials, table in ((False, "trials"), (True, "session")):
        file = with_series(values=traces()[kept], timestamps=TIMES[kept], trials=trials)
        found = load(file, series="dff", piece_s=2, table=table)
        first = np.r_[0:200:20, 260:600:20]
        assert np.array_equal(samples_of(found), first[:, None] + np.arange(20))
        assert np.allclose(found.trial_times_s, TIMES[first] - 0.05)
        assert "trials are 27 successive pieces of 2 s (20 samples) of one recording" in said(found)
        assert "5 samples are in no piece" in said(found)
        assert ("no table of trials" in said(found)) == (not trials)
        assert found.gap == 20
        fold = fold_of(found)
        assert min(abs(int(a) - int(b)) for a in fold.train for b in fold.test) > 1
        wide = load(file, series="dff", piece_s=2, table=table, bin_s=0.5, gap_s=0)
        assert wide.activity.shape == (27, 4, ROIS)
        assert wide.gap == 0
    of_trials = load(with_series(), series="dff", piece_s=0.9)  # two of each trial
    assert of_trials.stretches[:4, 1].tolist() == [41, 50, 91, 100]  # tenths of a second of the session
    assert "trials are 20 successive pieces of 0.9 s (9 samples) of 10 recordings" in said(of_trials)
    inside = load(with_series(trials=False), series="dff", piece_s=2, start_s=10.0, stop_s=30.0)
    assert samples_of(inside)[[0, -1], [0, -1]].tolist() == [70, 269]


def test_pieces_lie_where_an_input_was_recorded_too():
    file = with_series(trials=False)
    file.add_acquisition(pynwb.TimeSeries(name="run", data=np.arange(300.0), unit="x", rate=10.0, starting_time=13.0))
    found = load(file, series="dff", piece_s=2, inputs=["run"])
    first = samples_of(found)[:, 0]
    assert first.tolist() == list(range(100, 400, 20))
    assert torch.equal(found.inputs[:, :, 0], (first[:, None] - 100 + torch.arange(20)).float())
    assert "15 pieces left out: the input run was not recorded throughout" in said(found)
    with pytest.raises(UserError, match="input 'run' was recorded"):
        load(file, series="dff", piece_s=2, inputs=["run"], start_s=50.0)


def test_a_series_that_was_recorded_in_trials_alone_has_its_step():
    inside = np.concatenate(
        [np.flatnonzero((a - 0.05 <= TIMES) & (a + 0.92 > TIMES)) for a in STARTS]
    )  # ten samples of each
    found = load(with_series(values=traces()[inside], timestamps=TIMES[inside]), series="dff", stop_s=0.8)
    assert np.array_equal(samples_of(found), load_all(stop_s=0.8))


def test_a_clock_that_jitters_and_drifts_loses_no_sample():
    rng = np.random.default_rng(0)
    times = FIRST + np.cumsum(1 / HZ + 1e-4 + rng.uniform(-0.01, 0.01, SAMPLES))
    found = load(with_series(timestamps=times, trials=False), series="dff", piece_s=3)
    assert np.array_equal(samples_of(found).ravel(), np.arange(SAMPLES))


def test_a_series_is_named_by_its_name_or_the_end_of_its_path():
    file = imaging(planes=2)
    one = load(file, series="Fluorescence/plane1")
    assert torch.equal(one.activity, load(file, series="processing/ophys/Fluorescence/plane1").activity)
    assert one.neuron_names[:2] == ("roi 0", "roi 1")
    assert (
        one.activity[0, 0] - samples_of(load(file, series="Fluorescence/plane0"))[0, 0] / 1000
    ).round().tolist() == [*range(10, 16)]
    with pytest.raises(
        UserError, match=r"one time series 'plane0'(?s:.*)2 of that name(?s:.*)ophys/Deconvolved/plane0"
    ):
        load(file, series="plane0")
    with pytest.raises(UserError, match=r"There are: (?s:.*)ophys/Fluorescence/plane0, (?s:.*)Neuropil/Neuropil1"):
        load(file, series="dff")
    both = load(file, series="ophys/Fluorescence/plane*")
    assert torch.equal(both.activity, load(file, series=["Fluorescence/plane0", "Fluorescence/plane1"]).activity)
    assert both.n_neurons == 2 * ROIS
    assert both.neuron_names[::ROIS] == ("plane0 roi 0", "plane1 roi 0")
    # The second plane is scanned 20 ms later: its values are those between its samples.
    lag = both.activity[:, :, ROIS:] - 10 - both.activity[:, :, :ROIS]
    assert torch.allclose(lag, torch.full_like(lag, -0.02 * HZ / 1000), atol=1e-5)


def test_rois_are_chosen_by_columns_of_their_table_and_channels_first_is_turned():
    plain = load(imaging(), series="Fluorescence/plane0")
    cells = load(imaging(across=True), series="Fluorescence/plane0", units={"iscell/0": 1, "iscell/1": ">0.15"})
    assert torch.equal(cells.activity, plain.activity[:, :, [2, 4, 5]])
    assert cells.neuron_names == ("roi 2", "roi 4", "roi 5")
    assert "3 of 6 rows of rois0 left out by data.units" in said(cells)
    with pytest.raises(UserError, match=r"a column of the rois0 table(?s:.*)iscell"):
        load(imaging(), series="Fluorescence/plane0", units={"quality": "good"})
    with pytest.raises(UserError, match="whose channels are rows of a table"):
        load(with_series(), series="dff", units={"quality": "good"})


def test_series_in_milliseconds_are_read_with_the_unit_said():
    file = with_series(timestamps=1000 * TIMES)
    with pytest.raises(UserError, match=r"time constant"):
        load(file, series="dff")
    found = load(file, series="dff", time_units={"dff": 0.001})
    assert torch.equal(found.activity, load(with_series(), series="dff").activity)


def test_counts_in_successive_bins_are_read_as_spikes():
    counts = np.random.default_rng(0).poisson(1.0, size=(SAMPLES, 4))
    found = load(with_series(values=counts, trials=False), series="dff", kind="spikes", piece_s=2, activation=None)
    assert (found.kind, found.activation) == ("spikes", "softplus")
    assert np.array_equal(found.activity.reshape(-1, 4), counts)
    with pytest.raises(UserError, match="counts as the time between samples"):
        load(with_series(values=counts), series="dff", kind="spikes", bin_s=0.2)
    with pytest.raises(UserError, match="whole numbers"):
        load(with_series(), series="dff", kind="spikes")


def test_the_time_constant_is_no_shorter_than_three_bins_where_it_is_not_given():
    found = load(with_series(), series="dff", tau=None)
    assert found.alpha == pytest.approx(1 / 3)
    assert "time constant taken as 0.3 s" in said(found)


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        (with_series, {"min_rate_hz": 1.0}, ["data.min_rate_hz", "without data.series"]),
        (with_series, {"bin_s": 0.5, "tau": 0.1}, ["at most the time constant"]),
        (with_series, {"series": []}, ["data.series", "NAME"]),
        (lambda: with_series(values=np.full((SAMPLES, 2), "a")), {}, ["time series acquisition/dff of numbers"]),
        (lambda: with_series(values=np.zeros((SAMPLES, 2, 2))), {}, ["(samples,) or (samples, channels)", "(600, 2, 2)"]),
        (lambda: with_series(timestamps=TIMES - 1000), {}, ["recorded throughout", "none of 10", "data.time_units"]),
        (lambda: with_series(timestamps=FIRST + np.cumsum(np.random.default_rng(0).exponential(0.1, SAMPLES))), {},
         ["irregular times", "data.bin_s="]),
        (lambda: with_series(trials=False), {}, ["a table of trials", "data.piece_s=2"]),
        (lambda: with_series(trials=False), {"piece_s": 100}, ["of 2 to 600 samples"]),
        (with_series, {"piece_s": 100}, ["rows of trials: data.table=session"]),
        (with_series, {"table": "session", "piece_s": 1, "align": "go"}, ["data.align and data.until with a table of trials"]),
        (with_series, {"table": "session"}, ["data.table=session", "data.piece_s"]),
        (with_series, {"piece_s": 1, "choices": "outcome"}, ["data.choices", "without data.piece_s"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_two_lines(file, options, words):
    with pytest.raises(UserError) as refused:
        load(file(), **{"series": "dff"} | options)
    assert all(word in str(refused.value) for word in words), refused.value
    assert len(str(refused.value).splitlines()) <= 2


def test_a_file_on_the_disk_gives_the_same(tmp_path):
    path = write(tmp_path, imaging())
    found = load_nwb(path, series="Deconvolved/plane0", activation="relu", tau_s=1.0, units={"id": [1, 2]})
    assert torch.equal(found.activity, load(imaging(), series="Deconvolved/plane0").activity[:, :, 1:3])
    with pytest.raises(UserError) as refused:
        load_nwb(path)
    message = str(refused.value)
    for words in ("units with spike times", "ophys/Fluorescence/plane0", "600 x 6", "every 0.1 s", "outcome", "hit, miss",
                  "data.series=ophys/Fluorescence/plane0\nThis is a guess"):  # fmt: skip
        assert words in message, message


@pytest.mark.parametrize(
    ("unit", "whole", "counts"), [("counts", True, True), ("a.u.", True, False), ("counts", False, False)]
)
def test_a_series_of_counts_is_guessed_as_spikes(tmp_path, unit, whole, counts):
    """Whole numbers alone do not make counts: unscaled fluorescence is whole as well."""
    file = empty(trials=False)
    values = np.random.default_rng(0).poisson(0.6, (900, 5)) if whole else np.random.default_rng(0).random((900, 5))
    file.add_acquisition(pynwb.TimeSeries(name="binned", data=values, unit=unit, rate=50.0))
    with pytest.raises(UserError) as refused:
        load_nwb(write(tmp_path, file))
    assert ("data.kind=spikes" in str(refused.value)) == counts
