"""One whole file for each reader of Connector, small: what tests/fuzz.py damages."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import torch
from matlab73 import cells, write_matlab73
from scipy.io import savemat

from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.flow import Flow
from connector.connectivity.nu.regression import MeanSettings, fit_conditional_mean
from connector.data.folds import fold
from connector.data.npz import load_npz
from connector.data.nwb_export import export_nwb
from connector.dynamics import Network
from connector.lrrnn.handover import FittedDynamics
from connector.runs.store import RunStore, write_network
from connector.types import Latents

TRIALS, STEPS, NEURONS = 6, 9, 4
RUN_FILES = (
    "config.yaml",
    "metrics.json",
    "manifest.json",
    "latents.npz",
    "network.npz",
    "checkpoints/connectivity.pt",
)


def network_arrays(rng: np.random.Generator) -> dict:
    return {
        "m": rng.normal(size=(20, 2)), "b": rng.normal(size=(20, 1)), "d": rng.normal(size=20),
        "n": rng.normal(size=(20, 2)), "alpha": np.float64(0.1), "activation": np.array("tanh"), "sigma": np.float64(0),
    }  # fmt: skip


def write_npz_with_pickles(path: Path, arrays: dict) -> None:
    """As numpy.savez, but of any name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in arrays.items():
            held = io.BytesIO()
            np.lib.format.write_array(held, np.asanyarray(value), allow_pickle=True)
            archive.writestr(f"{name}.npy", held.getvalue())


def own_arrays(rng: np.random.Generator) -> dict:
    z, u = rng.normal(size=(TRIALS, STEPS, 2)), rng.normal(size=(TRIALS, STEPS, 1))
    mbd, n = rng.normal(size=(NEURONS, 4)), rng.normal(size=(NEURONS, 2))
    h = z @ mbd[:, :2].T + u @ mbd[:, 2:3].T + mbd[:, 3]
    return {
        "rates": np.tanh(h), "potentials": h, "latents": z, "externalinputs": u, "MBD": mbd, "N": n,
        "lengths": rng.integers(2, STEPS + 1, TRIALS), "choices": rng.integers(0, 2, TRIALS).astype(float),
        "times": np.sort(rng.uniform(0, 100, TRIALS)),
    }  # fmt: skip


def findr_arrays(rng: np.random.Generator) -> dict:
    return {
        "spikes": rng.poisson(0.7, size=(TRIALS, STEPS, NEURONS)).astype(float),
        "externalinputs": rng.poisson(0.3, size=(TRIALS, STEPS, 2)).astype(float),
        "lengths": rng.integers(2, STEPS + 1, TRIALS).astype(float), "times": np.arange(TRIALS) * 2.0,
        "choices": rng.integers(0, 2, TRIALS).astype(bool),
    }  # fmt: skip


def session(rng: np.random.Generator) -> dict:
    """A session of the Poisson-clicks task as MATLAB holds it."""
    trials = []
    for i in range(TRIALS):
        steps = int(rng.integers(5, 12))
        clicks = [np.r_[0, np.sort(rng.uniform(0.001, steps / 100, 3))] for _ in range(2)]
        trials.append({
            "choice": np.uint8(i % 2), "clicktimes": {"L": clicks[0], "R": clicks[1]}, "gamma": np.int16(3 - i),
            "stereoclick_time_s": 100.25 + 7.3 * i, "ntimesteps": np.uint8(steps), "photostimulus_incline_on_s": np.nan,
            "baseline_hz": rng.uniform(1, 9, size=(3, 1)),
            "spiketrains": cells([rng.poisson(0.5, size=(1, steps)).astype(np.uint8) for _ in range(3)]),
        })  # fmt: skip
    neurons = [{"brainarea": ("mPFC", "dmFC")[k % 2], "neuronindex": k} for k in range(3)]
    return {"trials": cells(trials), "neurons": cells(neurons)}


def other_arrays(rng: np.random.Generator) -> dict:
    """Arrays as other labs save them: axes in another order, structs, cells of trials of different lengths, labels."""
    trials = [rng.normal(size=(int(n), NEURONS)) for n in rng.integers(3, STEPS, TRIALS)]
    return {
        "fr": np.tanh(rng.normal(size=(NEURONS, STEPS, TRIALS))), "stim": rng.normal(size=(STEPS, TRIALS)),
        "session": {"n": rng.integers(2, STEPS + 1, TRIALS), "choice": rng.integers(1, 3, TRIALS)},
        "trials": cells(trials), "label": cells(["go", "stop"] * (TRIALS // 2)), "good": np.array([True, True, False, True]),
        "t": rng.uniform(0, 12, 400), "unit": rng.integers(0, 3, 400), "start": 2.0 * np.arange(TRIALS), "long": rng.poisson(1, (3, 97)),
    }  # fmt: skip


def flat_arrays(rng: np.random.Generator) -> dict:
    """The same, without structs and cells."""
    held = other_arrays(rng)
    trials = {f"trial{i}": x for i, x in enumerate(held.pop("trials").ravel())}
    return held | held.pop("session") | {"label": np.array(["go", "stop"] * (TRIALS // 2))} | trials


ARRAYS_OPTIONS = [
    {},
    {"activity": "long", "axes": ["neuron", "time"], "trial_starts": "start", "stop_s": 1.5, "bin_s": 0.1},
    {"activity": "fr", "axes": ["neuron", "time", "trial"], "inputs": "stim", "neurons": "good"},
    {
        "activity": "fr",
        "axes": ["neuron", "time", "trial"],
        "lengths": "*n",
        "choices": "*choice",
        "choice_values": [1, 2],
    },
    {"activity": "tri*", "axes": ["trial", "time", "neuron"], "activation": "relu", "range_tolerance": 2.0},
    {"activity": "fr", "axes": ["neuron", "time", "trial"], "conditions": "label", "condition_inputs": True},
    {"spike_times": "t", "spike_neurons": "unit", "trial_starts": "start", "stop_s": 0.5, "bin_s": 0.05},
    {"spike_times": "t", "spike_neurons": "unit", "bin_s": 0.05, "piece_s": 0.5},
    {"activity": "long", "axes": ["neuron", "time"], "bin_s": 0.05, "piece_s": 0.4},
]


def write_flat_h5(path: Path, arrays: dict) -> None:
    write_h5(path, {name: x.astype("S") if np.asarray(x).dtype.kind == "U" else x for name, x in arrays.items()})


def nlb_arrays(rng: np.random.Generator) -> dict:
    return {
        f"{split}_spikes_{kind}": rng.poisson(0.8, size=(TRIALS, STEPS, width)).astype(np.float32)
        for split in ("train", "eval")
        for kind, width in (("heldin", 3), ("heldout", 2))
    }


def write_nwb(path: Path, rng: np.random.Generator) -> None:
    import pynwb

    nwb = pynwb.NWBFile("fuzz", "fuzz", datetime(2026, 1, 1, tzinfo=UTC))
    shank = nwb.create_electrode_group("shank", "x", "V1", nwb.create_device("probe"))
    for _ in range(3):
        nwb.add_electrode(group=shank, location="V1")
    nwb.add_unit_column("quality", "of the sorting")
    for i in range(3):
        spikes = np.sort(rng.uniform(0, 12, size=120))
        nwb.add_unit(spike_times=spikes, quality=("good", "mua")[i % 2], electrodes=[i], electrode_group=shank)
    for name, index in (("go_time", False), ("choice", False), ("contrast", False), ("clicks", True), ("before", True)):
        nwb.add_trial_column(name, "x", index=index)
    for i in range(TRIALS):
        nwb.add_trial(
            start_time=2.0 * i, stop_time=2 * i + 0.3, go_time=2 * i + 0.1, choice=("left", "right")[i % 2],
            contrast=0.1 * i, clicks=[2 * i + 0.05, 2 * i + 0.2][: i + 1], before=[1.0, 2.0, 3.0],
        )  # fmt: skip
    ramp = pynwb.TimeSeries(name="running", data=np.arange(200.0), unit="cm/s", rate=20.0, starting_time=-1.0)
    nwb.add_acquisition(ramp)
    trace = rng.uniform(size=(300, 4))
    seconds = np.r_[0:150, 170:320] / 25.0
    module = nwb.create_processing_module("ophys", "x")
    module.add(pynwb.TimeSeries(name="dff", data=trace, unit="x", timestamps=seconds, conversion=0.5))
    nwb.add_epoch(start_time=0.0, stop_time=6.0, tags=["sleep", "pre"])
    nwb.add_epoch(start_time=6.0, stop_time=12.0, tags=["wake"])
    with pynwb.NWBHDF5IO(str(path), "w") as file:
        file.write(nwb)


NWB_OPTIONS = [
    {},
    {"inputs": ["clicks", "contrast", "running"], "choices": "choice", "align": "go_time"},
    {"until": "stop_time", "start_s": -0.05, "baseline_hz": "before", "evidence": "contrast", "bin_s": 0.02},
    {"units": {"quality": "good", "location": "V1"}, "trials": {"choice": ["left"]}, "trial_times": "go_time"},
    {"inputs": ["clicks"], "event_times": "align", "stop_s": 0.2, "min_rate_hz": 0.1},
    {"series": "ophys/dff", "activation": "relu", "conditions": "choice", "condition_inputs": True},
    {
        "series": ["dff"],
        "activation": "relu",
        "table": "session",
        "piece_s": 1.0,
        "inputs": ["running"],
        "bin_s": 0.1,
        "tau": 0.3,
    },
    {"table": "epochs", "trials": {"tags": "wake"}, "piece_s": 1.0, "conditions": "tags", "units": {"id": ">=1"}},
    {"piece_s": 0.1, "inputs": ["clicks/0"], "event_times": "session", "absent_inputs": "zero"},
]


def write_h5(path: Path, arrays: dict) -> None:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value


def distribution(rng: np.random.Generator) -> tuple[ConnectivityDistribution, Network]:
    m, n, d = (torch.from_numpy(rng.normal(size=size)) for size in ((60, 2), (60, 2), (60,)))
    network = Network(m, n, None, d, alpha=0.1, activation="tanh")
    z = torch.from_numpy(rng.normal(size=(80, 2)))
    mean = fit_conditional_mean(
        z, None, network.drive(z), network.loadings, activation="tanh", settings=MeanSettings(("none",))
    )
    flow = Flow(3, hidden_width=8, hidden_layers=1).double().fit_scaler(network.loadings.stack())
    outputs = Flow(2, 3, hidden_width=8, hidden_layers=1).double()
    reference = (z, None, network.drive(z))
    learned = ConnectivityDistribution(
        flow, mean, alpha=0.1, activation="tanh", outputs_flow=outputs, reference=reference
    )
    return learned, network


def write_run(folder: Path, rng: np.random.Generator) -> None:
    """A run directory without the training."""
    store = RunStore(folder)
    learned, network = distribution(rng)
    z = torch.from_numpy(rng.normal(size=(TRIALS, STEPS, 2)))
    latents = Latents(z, torch.full((TRIALS,), STEPS), 0.1)
    store.write_stage_inputs(FittedDynamics(latents, network.loadings, fold(TRIALS, 1, 3, 17), "tanh", n=network.n))
    store.finish_stage("lrrnn", "0123456789abcdef", 1.5, {"lrrnn/val_loss": 0.25})
    store.write_metrics({"dynamics/field_error": 0.1})
    write_network(folder / "network.npz", network, 0.0)
    (folder / "config.yaml").write_text("seed: 1\nlrrnn:\n  rank: 2\ndata:\n  name: quadstable\n")
    store.write_module(store.connectivity_file, learned.save)


MINE = """# @package _global_
defaults:
  - override /data: bistable
seed: 3
data:
  n_neurons: 30
  n_grid: 4
  n_steps: 12
lrrnn:
  rank: 2
connectivity:
  flow:
    hidden_width: 16
"""


def rnn_arrays(rng: np.random.Generator) -> dict:
    return {
        "W": rng.normal(size=(NEURONS, NEURONS)), "B": rng.normal(size=(NEURONS, 2)), "d": rng.normal(size=NEURONS),
        "alpha": np.float64(0.2), "externalinputs": rng.normal(size=(TRIALS, STEPS, 2)),
    }  # fmt: skip


def write_whole(folder: Path) -> None:
    """One whole file for each reader, under its name."""
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", **own_arrays(rng))
    np.savez_compressed(folder / "findr.npz", **findr_arrays(rng))
    np.savez(folder / "rnn.npz", **rnn_arrays(rng))
    torch.save({name: torch.as_tensor(value) for name, value in rnn_arrays(rng).items()}, folder / "rnn.pt")
    savemat(folder / "rat.mat", session(rng), do_compression=True)
    write_matlab73(folder / "rat73.mat", session(rng))
    write_h5(folder / "nlb.h5", nlb_arrays(rng))
    savemat(folder / "arrays.mat", other_arrays(rng), do_compression=True)
    rows = [
        f"{t:.4f},{unit},{('a', 'b')[unit % 2]}"
        for t, unit in zip(np.sort(rng.uniform(0, 12, 400)), rng.integers(0, 3, 400))
    ]
    (folder / "events.csv").write_text("\n".join(["t,unit,area", *rows]))
    write_matlab73(folder / "arrays73.mat", other_arrays(rng))
    write_flat_h5(folder / "arrays.h5", flat_arrays(rng))
    np.savez(folder / "arrays.npz", **flat_arrays(rng))
    write_nwb(folder / "planted.nwb", rng)
    export_nwb(load_npz(folder / "findr.npz"), folder / "exported.nwb")
    learned, network = distribution(rng)
    write_network(folder / "network.npz", network, 1.0)
    learned.loadings_flow.save(folder / "flow.pt")
    learned.save(folder / "connectivity.pt")
    write_run(folder / "run", rng)
    (folder / "mine.yaml").write_text(MINE)
