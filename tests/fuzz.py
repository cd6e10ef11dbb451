"""Bad files and mistaken options, thousands of them, all from one seed; prints a table of what became of them.

    python tests/fuzz.py                                        2000 files, 300 command lines in-process, 25 for real
    python tests/fuzz.py --files 0 --options 300 --real 25 --seed 7
    python tests/fuzz.py --only 1234                            one case again, with its traceback

Each file that a reader of Connector takes is written small and whole, then damaged. What may become of it: what the reader
promises (checked: finite, of one shape), or UserError. What may not: another exception, a crash, more than 20 s, more than
MEMORY_GB of memory (readers are asked to keep their arrays within LIMIT_GB), an unpickled object, a file left behind.
Command lines end with exit code 0, or 2 and one or two lines. Cases run in a process that is forked for many of them and has
a limit on its memory, so that even a crash costs one case only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import pickle
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from matlab73 import write_matlab73
from rich.console import Console
from rich.table import Table
from scipy.io import savemat

import connector.launch.job
import connector.launch.planning
from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.flow import Flow
from connector.connectivity.nu.regression import MeanSettings, fit_conditional_mean
from connector.data.clicks import load_rat
from connector.data.folds import fold
from connector.data.nlb import load_nlb
from connector.data.npz import load_npz
from connector.data.nwb import load_nwb
from connector.dynamics import ACTIVATIONS, Network
from connector.errors import UserError
from connector.export import main as export_main
from connector.launch import command_line
from connector.lrrnn.handover import FittedDynamics
from connector.runs import options as options_schema
from connector.runs.saved import load_run
from connector.runs.store import RunStore, load_network, write_network
from connector.sample import main as sample_main
from connector.stages.training import check_trainer
from connector.types import Latents, Recording, valid_mask

ROOT = Path(__file__).resolve().parent.parent

SECONDS = 20
LIMIT_GB = 0.02  # asked of the readers: data.max_gigabytes
MEMORY_GB = 0.5  # what a case may add to the process: pynwb alone takes a tenth of a gigabyte the first time
TRIALS, STEPS, NEURONS = 6, 9, 4


class Hang(BaseException):
    """More than SECONDS; no Exception, so that no reader takes it for damage."""


class Broken(Exception):
    """A reader gave back what it must not."""


# --- whole files --------------------------------------------------------------------------------------------------


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


def cells(items: list) -> np.ndarray:
    array = np.empty((len(items), 1), dtype=object)
    array[:, 0] = items
    return array


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
    with pynwb.NWBHDF5IO(str(path), "w") as file:
        file.write(nwb)


NWB_OPTIONS = [
    {},
    {"inputs": ["clicks", "contrast", "running"], "choices": "choice", "align": "go_time"},
    {"until": "stop_time", "start_s": -0.05, "baseline_hz": "before", "evidence": "contrast", "bin_s": 0.02},
    {"units": {"quality": "good", "location": "V1"}, "trials": {"choice": ["left"]}, "trial_times": "go_time"},
    {"inputs": ["clicks"], "event_times": "align", "stop_s": 0.2, "min_rate_hz": 0.1},
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


def write_whole(folder: Path) -> None:
    """One whole file for each reader, under its name."""
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", **own_arrays(rng))
    np.savez_compressed(folder / "findr.npz", **findr_arrays(rng))
    savemat(folder / "rat.mat", session(rng), do_compression=True)
    write_matlab73(folder / "rat73.mat", session(rng))
    write_h5(folder / "nlb.h5", nlb_arrays(rng))
    write_nwb(folder / "planted.nwb", rng)
    assert export_quietly([str(folder / "findr.npz"), "--out", str(folder / "exported.nwb")]) == 0
    learned, network = distribution(rng)
    write_network(folder / "network.npz", network, 1.0)
    learned.loadings_flow.save(folder / "flow.pt")
    learned.save(folder / "connectivity.pt")
    write_run(folder / "run", rng)
    (folder / "mine.yaml").write_text(MINE)


# --- readers, and what they promise -------------------------------------------------------------------------------


def promise(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


def finite(*tensors) -> bool:
    return all(x is None or bool(torch.isfinite(x).all()) for x in tensors)


def check_recording(r: Recording) -> None:
    trials, steps, neurons = r.activity.shape
    promise(r.activity.dtype == torch.float32 and r.lengths.dtype == torch.int64, "dtypes of a Recording")
    promise(finite(r.activity, r.inputs, r.latents, r.n), "finite arrays")
    outside = ~valid_mask(r.lengths, steps)
    promise(not bool(r.activity[outside].any()), "zeros past a trial's end")
    if r.kind == "spikes":
        promise(bool((r.activity >= 0).all() and (r.activity == r.activity.round()).all()), "counts")
        promise(r.bin_s is None or 0 < r.bin_s < math.inf, "bin_s")
    promise(0 < r.alpha <= 1 and r.activation in ACTIVATIONS, "alpha and activation")
    promise(len(r.neuron_names) in (0, neurons), "neuron_names")
    promise(r.inputs is None or len(r.input_names) == r.n_inputs, "input_names")
    promise(r.baseline_hz is None or tuple(r.baseline_hz.shape) == (trials, neurons), "shape of baseline_hz")
    promise(r.loadings is None or r.loadings.n_neurons == neurons, "loadings of the neurons")
    promise(r.loadings is None or finite(r.loadings.m, r.loadings.b, r.loadings.d), "finite loadings")
    promise(r.n is None or r.n.shape[0] == neurons, "n of the neurons")
    for x in (r.choices, r.evidence, r.click_difference, r.trial_times_s):
        promise(x is None or (x.is_floating_point() and x.shape == (trials,)), "one float for each trial")


def check_network(network: Network) -> None:
    k, rank = network.m.shape
    promise(network.n.shape == (k, rank), "n of the shape of m")
    promise(network.b is None or (network.b.ndim == 2 and len(network.b) == k), "b of the neurons")
    promise(network.d is None or network.d.shape == (k,), "d of the neurons")
    promise(finite(network.m, network.n, network.b, network.d), "finite loadings and weights")
    promise(network.m.is_floating_point() and network.n.is_floating_point(), "floating point")
    promise(0 < network.alpha <= 1 and network.activation in ACTIVATIONS, "alpha and activation")


def export_quietly(arguments: list[str]) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = export_main(arguments)
    return refused_in_lines(code, said.getvalue())


def refused_in_lines(code: int, said: str, longest: int = 2) -> int:
    """An exit code that a command may end with; raises UserError for a refusal."""
    if code == 2:
        promise(0 < len(said.strip().splitlines()) <= longest and "Traceback" not in said, f"a short message: {said!r}")
        raise UserError("", said)
    promise(code == 0, f"exit code 0 or 2, not {code}: {said[-300:]}")
    return code


def read_recording_file(load: Callable, **options) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: check_recording(load(path, max_gigabytes=LIMIT_GB, **options))


def read_nwb(path: Path, rng: np.random.Generator) -> None:
    options = NWB_OPTIONS[rng.integers(len(NWB_OPTIONS))] if "planted" in path.name else {}
    check_recording(load_nwb(path, max_gigabytes=LIMIT_GB, **options))


def read_flow(path: Path, rng: np.random.Generator) -> None:
    flow = Flow.load(path)
    promise(finite(flow.sample(5, generator=torch.Generator().manual_seed(0))), "finite samples")


def read_connectivity(path: Path, rng: np.random.Generator) -> None:
    check_network(ConnectivityDistribution.load(path).sample(5, sigma=1.0))


def read_run(path: Path, rng: np.random.Generator) -> None:
    run = load_run(path)
    promise(isinstance(run.metrics, dict) and all(isinstance(x, float) for x in run.metrics.values()), "metrics")
    promise(isinstance(run.store.stages(), dict), "stages")
    run.config.get("seed")
    check_network(run.network)
    latents = run.latents
    promise(finite(latents.z, latents.inputs, latents.drive), "finite latents")
    promise(latents.z.ndim == 3 and latents.lengths.shape == latents.z.shape[:1], "latents of one shape")
    check_network(run.fitted_network)
    check_network(run.connectivity.sample(5))


def export_recording(path: Path, rng: np.random.Generator) -> None:
    out = path.with_name("out.nwb")
    try:
        export_quietly([str(path), "--out", str(out), f"data.max_gigabytes={LIMIT_GB}"])
    finally:
        out.unlink(missing_ok=True)


def sample_run(path: Path, rng: np.random.Generator) -> None:
    out = path.with_name("out.npz")
    arguments = [str(path), "--neurons", "7", "--out", str(out)]
    arguments += [["--project"], ["--sigma", "1"], []][rng.integers(3)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = sample_main(arguments)
    try:
        refused_in_lines(code, said.getvalue())
        check_network(load_network(out))
    finally:
        out.unlink(missing_ok=True)


def read_user_yaml(path: Path, rng: np.random.Generator) -> None:
    folder, user = path.parent / "conf" / "experiment", os.geteuid()
    os.seteuid(os.getuid())
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, ValueError):
        path.rename(folder / "mine.yaml")
    os.seteuid(user)
    try:
        command(["--config-dir", str(path.parent / "conf"), "experiment=mine", "trainer.threads=1"])
    finally:
        os.seteuid(os.getuid())
        shutil.rmtree(path.parent / "conf")


@dataclass(frozen=True)
class Reader:
    """``whole``: names of whole files; ``write``: from arrays, for damage to their content; ``inner``: files of a folder."""

    whole: tuple[str, ...]
    read: Callable[[Path, np.random.Generator], None]
    content: Callable[[np.random.Generator], dict] | None = None
    write: Callable[[Path, dict], None] | None = None
    hdf5: bool = False


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


READERS = {
    "npz": Reader(("own.npz",), read_recording_file(load_npz), own_arrays, write_npz_with_pickles),
    "npz FINDR": Reader(("findr.npz",), read_recording_file(load_npz), findr_arrays, write_npz_with_pickles),
    "rat v5": Reader(("rat.mat",), read_recording_file(load_rat), session, savemat),
    "rat v7.3": Reader(("rat73.mat",), read_recording_file(load_rat), session, write_matlab73, hdf5=True),
    "nwb": Reader(("planted.nwb", "exported.nwb"), read_nwb, hdf5=True),
    "nlb": Reader(("nlb.h5",), read_recording_file(load_nlb), nlb_arrays, write_h5, hdf5=True),
    "network": Reader(
        ("network.npz",), lambda path, rng: check_network(load_network(path)), network_arrays, write_npz_with_pickles
    ),
    "flow": Reader(("flow.pt",), read_flow),
    "connectivity": Reader(("connectivity.pt",), read_connectivity),
    "run": Reader(("run",), read_run),
    "export": Reader(("own.npz", "findr.npz", "rat.mat", "rat73.mat", "exported.nwb", "nlb.h5"), export_recording),
    "sample": Reader(("run",), sample_run),
    "user's yaml": Reader(("mine.yaml",), read_user_yaml),
}


# --- damage -------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it leaves a file that tells."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def truncated(data: bytes, rng) -> bytes:
    return data[: int(rng.integers(0, max(len(data), 1)))]


def flipped(data: bytes, rng) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, len(data), size=int(rng.choice([1, 2, 5, 20, 100]))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def scrambled(data: bytes, rng) -> bytes:
    """A stretch of random bytes, zeros, or of another place in the file; or more bytes behind the end."""
    start = int(rng.integers(0, len(data)))
    size = int(rng.choice([4, 16, 256, 4096]))
    new = [rng.bytes(size), bytes(size), data[: min(size, 64)] * (size // 64 + 1), b"\xff" * size][rng.integers(4)]
    return data + new if rng.random() < 0.1 else data[:start] + new + data[start + len(new) :]


def foreign(data: bytes, rng, folder: Path, marker: Path) -> bytes:
    """Something else under the name: random bytes behind a true head, text, a pickle, another reader's file."""
    others = [folder / name for name in ("own.npz", "rat.mat", "rat73.mat", "nlb.h5", "planted.nwb", "flow.pt")]
    return [
        lambda: b"",
        lambda: rng.bytes(int(rng.integers(1, 5000))),
        lambda: data[: int(rng.choice([4, 8, 128, 512]))] + rng.bytes(3000),
        lambda: b"trial,neuron,rate\n0,1,2.5\n",
        lambda: b"<!doctype html><html></html>",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        lambda: pickle.dumps({"rates": Payload(marker)}),
        lambda: torch_pickle({"arguments": Payload(marker), "state": {}, "loadings_flow": 1, "mean": 2}),
        lambda: others[rng.integers(len(others))].read_bytes(),
        lambda: others[rng.integers(len(others))].read_bytes(),
        lambda: "räte: [ünïcödé, \u202e]\n".encode("latin-1", "replace"),
    ][rng.integers(11)]()


def torch_pickle(value) -> bytes:
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def misplaced(path: Path, rng, source: Path) -> Path:
    """No file, or none that can be read, at the place."""
    kind = rng.integers(8)
    if kind == 0:
        return path.with_name("äbsent " + path.name)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to("/dev/zero")
    elif kind == 4:
        path.symlink_to(path)
    elif kind == 5:
        return path.with_name("x" * 300)
    elif kind == 6:
        return path.with_name("a\0b")
    else:
        path.write_bytes(source.read_bytes())
        path.chmod(0)
    return path


def other_dtype(x: np.ndarray, rng, marker: Path):
    try:
        return [
            lambda: x.astype(str),
            lambda: x.astype("S8"),
            lambda: x.astype(complex) + 1j,
            lambda: x.astype(bool),
            lambda: np.array([Payload(marker), *x.ravel()[1:].tolist()], dtype=object),
            lambda: x.astype(object),
            lambda: x.astype("int64").astype("datetime64[s]"),
            lambda: x.astype(np.float16),
            lambda: x.astype(np.longdouble),
            lambda: x.astype(">f8"),
            lambda: x.astype(np.int8),
            lambda: np.full(x.shape, 2**63 + 5, dtype=np.uint64),
            lambda: np.zeros(x.shape, dtype=[("a", float), ("b", "i4")]),
        ][rng.integers(13)]()
    except (ValueError, TypeError):
        return np.array("text")


def other_shape(x: np.ndarray, rng, marker: Path):
    return [
        lambda: x[:0] if x.ndim else x,
        lambda: x[..., :0] if x.ndim else x,
        lambda: x[:, :0] if x.ndim > 1 else x,
        lambda: x[None],
        lambda: x[..., None],
        lambda: x.ravel()[0] if x.size else x,
        lambda: x.T,
        lambda: x.ravel(),
        lambda: np.concatenate([x, x]) if x.ndim else np.array([x, x]),
        lambda: x[:1] if x.ndim else x,
        lambda: x[..., :1] if x.ndim else x,
        lambda: x[:, :1] if x.ndim > 1 else x,
        lambda: cells([x[: i + 1] for i in range(3)]) if x.ndim else cells([x, x]),  # ragged
    ][rng.integers(13)]()


def other_values(x: np.ndarray, rng, marker: Path):
    if x.dtype.kind not in "biuf":
        return np.array("strange")
    bad = x.astype(float).copy() if rng.random() < 0.8 else x.copy()
    whole = rng.random() < 0.3
    where = np.ones(bad.shape, bool) if whole else rng.random(bad.shape) < rng.choice([0.02, 0.2])
    values = [np.nan, np.inf, -np.inf, -1, 0.5, 1e308, -1e308, 0, 300, 1e-320, 2**40, 1e12]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad[where] = np.asarray(values[rng.integers(len(values))]).astype(bad.dtype)
    return bad


def leaves(content, path=()) -> Iterator[tuple]:
    """Places of the numbers in nested content."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, (*path, key))
    elif isinstance(content, np.ndarray) and content.dtype == object:
        for i, value in enumerate(content.flat):
            yield from leaves(value, (*path, i))
    else:
        yield path


def at(content, place):
    return content.flat[place] if isinstance(content, np.ndarray) else content[place]


def put(content, path: tuple, change: Callable) -> None:
    for place in path[:-1]:
        content = at(content, place)
    new = change(at(content, path[-1]))
    if isinstance(content, np.ndarray):
        content.flat[path[-1]] = new
    else:
        content[path[-1]] = new


def other_keys(content: dict, rng) -> dict:
    names = sorted(content)
    name = names[rng.integers(len(names))]
    return [
        lambda: {k: v for k, v in content.items() if k != name},
        lambda: {f"{k}é世" if k == name else k: v for k, v in content.items()},
        lambda: content | {"räten ☃": np.ones(3), "x" * 200: np.zeros(2)},
        lambda: {k.upper(): v for k, v in content.items()},
        lambda: {name: content[name]},
        lambda: content | {k: content[name] for k in names},
        lambda: {},
    ][rng.integers(7)]()


def declared_npz(path: Path, content: dict, rng) -> None:
    """Sizes in headers that are not those of the data, bombs, members twice."""
    names = sorted(content)
    name = names[rng.integers(len(names))]
    write_npz_with_pickles(path, {k: v for k, v in content.items() if k != name})
    shape = [(10**12,), (10**6, 10**6, 3), (2**62, 4), (-1, 4), (10**4, 10**4, 100)][rng.integers(5)]
    header = f"{{'descr': '<f8', 'fortran_order': {bool(rng.integers(2))}, 'shape': {shape}, }}"
    kind = rng.integers(8)
    if kind == 0:
        header = ["{'descr': __import__('os').getcwd(), 'shape': (1,)}", "{" * 500, "[]", "{'descr': '<f8'}"][
            rng.integers(4)
        ]
    text = header.encode().ljust(118) + b"\n"
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    if kind == 1:
        head = b"\x93NUMPY\x02\x00" + (2**31 - 1).to_bytes(4, "little") + text
    if kind == 2:
        head = b"\x93NUMPY\x07\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if kind in (3, 4):  # a bomb: 100 MB of zeros in some kB
            shape = (TRIALS, STEPS, 240_000)
            held = io.BytesIO()
            np.lib.format.write_array_header_1_0(held, {"descr": "<f8", "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(held.getvalue())
                for _ in range(TRIALS):
                    member.write(bytes(8 * STEPS * 240_000))
        else:
            archive.writestr(f"{name}.npy", head + bytes(64))
        if kind == 5:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(f"{names[0]}.npy", head + bytes(8))
                archive.writestr(f"../{names[0]}.npy", head)
    if kind in (4, 6, 7):  # the directory of the archive lies about sizes, compression or encryption
        data = bytearray(path.read_bytes())
        for found in list(re.finditer(b"PK\x01\x02", data))[-2:]:
            where = found.start()
            place, size = [(24, 4), (20, 4), (10, 2), (8, 2), (42, 4)][rng.integers(5)]
            data[where + place : where + place + size] = [rng.bytes(size), b"\x01".ljust(size, b"\0")][rng.integers(2)]
        path.write_bytes(data)


def declared_matlab5(path: Path, content: dict, rng) -> None:
    if rng.random() < 0.5:  # a bomb
        key = ("trials", "neurons")[rng.integers(2)]
        if key == "trials":
            content[key].flat[0]["spiketrains"] = cells([np.zeros((1, 4_000_000), np.uint8) for _ in range(10)])
        else:
            content[key] = np.zeros((4000, 5000))
        savemat(path, content, do_compression=True)
        return
    savemat(path, content)
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):  # a size of an element or of a dimension
        place = 128 + 4 * int(rng.integers(1, (len(data) - 128) // 4))
        data[place : place + 4] = int(rng.choice([2**31 - 1, 2**32 - 1, 10**6, 65536])).to_bytes(4, "little")
    path.write_bytes(data)


def references_to(file: h5py.File, name: str) -> list[tuple[str, str]]:
    """Objects and their attributes that refer to the object of that name."""
    found = []

    def look(where, item):
        for key, value in item.attrs.items():
            with contextlib.suppress(ValueError):  # to an object that a round before has removed
                if isinstance(value, h5py.Reference) and value and file[value].name == f"/{name}":
                    found.append((where, key))

    file.visititems(look)
    return found


def hurt_hdf5(path: Path, rng, kind: str, marker: Path) -> None:
    """Damage with HDF5's own means: data sets of other content, links to nowhere, sizes that are only declared."""
    with h5py.File(path, "r+") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        useful = [x for x in found if re.search(r"units|trials|spikes|running|refs|scratch|electrodes", x)] or found
        for _ in range(int(rng.integers(1, 4))):
            name = useful[rng.integers(len(useful))]
            try:
                if not isinstance(file[name], h5py.Dataset):
                    continue
            except (KeyError, RuntimeError, OSError):  # a link to nowhere, of a round before
                continue
            item = file[name]
            attributes, old = dict(item.attrs.items()), item[()] if item.size is None or item.size < 10**7 else 0.0
            shape = item.shape or (1,)
            numbers = isinstance(old, (np.ndarray, np.generic)) and np.asarray(old).dtype.kind in "biuf"
            if kind == "values" and numbers and np.ndim(old):  # in its place, so that references to it hold
                with contextlib.suppress(TypeError, ValueError, OverflowError):
                    item[...] = other_values(old, rng, marker)
                continue
            pointing = references_to(file, name)
            del file[name]
            new = None
            if kind == "dtype" and numbers:
                new = other_dtype(np.asarray(old), rng, marker)
            elif kind == "shape" and numbers:
                new = other_shape(np.asarray(old), rng, marker)
            if new is not None:
                new = np.asarray(new)
                try:
                    file[name] = new.astype("S") if new.dtype.kind in "UOMm" else new
                except (TypeError, ValueError):
                    file[name] = h5py.Empty("f8")
            elif kind == "declared":
                choice = rng.integers(4)
                huge = [(10**12, *shape[1:]), (10**6,) * len(shape), tuple(10**5 for _ in shape), (2**40,) * 2]
                huge = huge[rng.integers(4)]
                if choice < 3:
                    dtype = np.asarray(old).dtype if numbers else np.dtype("f8")
                    file.create_dataset(name, shape=huge, dtype=dtype, chunks=tuple(min(x, 64) for x in huge))
                else:  # really there, packed
                    packed = np.zeros((12_000_000, *shape[1:])[:1] + (1,) * (len(shape) - 1))
                    file.create_dataset(name, data=packed, compression="gzip", compression_opts=1)
            else:
                instead = [
                    lambda name=name: file.create_group(name),
                    lambda name=name: file.__setitem__(name, h5py.SoftLink("/nowhere")),
                    lambda name=name: file.__setitem__(name, h5py.SoftLink("/" + name)),
                    lambda name=name: file.__setitem__(name, h5py.ExternalLink("/etc/hostname", "/x")),
                    lambda name=name: file.__setitem__(name, h5py.Empty("f8")),
                    lambda name=name: file.__setitem__(name, "text"),
                    lambda name=name: file.create_dataset(name, (3,), dtype=h5py.vlen_dtype(float)),
                    lambda name=name: file.create_dataset(name, (3,), dtype=h5py.ref_dtype),
                    lambda name=name: file.create_dataset(name, (4,), "u1", external=[("/etc/hostname", 0, 4)]),
                    lambda: None,
                    lambda name=name, old=old: file.__setitem__(name + "é世", old),
                ]
                with contextlib.suppress(ValueError):  # the name is taken, by a round before
                    instead[rng.integers(len(instead))]()
            if new is not None or kind == "declared":
                for where, key in pointing:
                    with contextlib.suppress(KeyError):
                        file[where].attrs[key] = file[name].ref
            if rng.random() < 0.8:
                with contextlib.suppress(Exception):
                    for key, value in attributes.items():
                        file[name].attrs[key] = value


def hurt_saved(path: Path, rng, kind: str, marker: Path) -> None:
    """Another value somewhere in what torch saved."""
    saved = torch.load(path, weights_only=True)
    places = []

    def walk(item, place=()):
        if isinstance(item, dict):
            for key in item:
                places.append((item, key))
                walk(item[key])
        elif isinstance(item, list):
            for i in range(len(item)):
                places.append((item, i))
                walk(item[i])

    walk(saved)
    for _ in range(int(rng.integers(1, 3))):
        holder, key = places[rng.integers(len(places))]
        old = holder.get(key) if isinstance(holder, dict) else holder[key]
        if kind == "keys" and isinstance(holder, dict):
            holder.pop(key, None)
            if rng.random() < 0.3:
                holder["é世"] = old
        elif isinstance(old, torch.Tensor) and kind != "declared":
            change = {"dtype": other_dtype, "shape": other_shape}.get(kind, other_values)
            new = np.asarray(change(old.numpy(), rng, marker))
            held = new.dtype.kind in "biufc" and new.itemsize <= 8 and new.dtype.isnative
            holder[key] = torch.from_numpy(new.copy()) if held else "text"
        elif kind == "declared":
            huge = [10**9, 2**62, torch.zeros(1).expand(10**12), torch.zeros(1).expand(10**6, 10**6), 1e300]
            holder[key] = huge[rng.integers(len(huge))]
        else:
            values = [None, "text", -1, 0, 3, 1.5, math.nan, math.inf, [], {}, [1, 2], True, 10**30, torch.zeros(2)]
            holder[key] = values[rng.integers(len(values))]
    torch.save(saved, path)


YAML_LINES = [
    "seed: abc", "seed: [1", "seed: .nan", "seed: 1e999", "seed: 99999999999999999999999", "seed: -1", "seed:", "nope: 3",
    "lrrnn: 3", "lrrnn: [1, 2]", "lrrnn: null", "lrrnn: {rank: two}", "lrrnn: {rnak: 2}", "lrrnn: {rank: 1e9}",
    "data: {n_neurons: 0}", "data: {n_neurons: -5}", "data: {n_neurons: .inf}", "data: {n_grid: 99999999}", "data: null",
    "data: text", "data: {fold: 2.5}", "data: {name: nope}", "connectivity: {flow: 3}", "connectivity: {flow: {nope: 1}}",
    "connectivity: {sigma: .nan}", "connectivity: {sigma: ''}", "connectivity: {flow: {base: gamma}}",
    "connectivity: {regularizer: 1, regularizer_published: 1}", "trainer: {accelerator: abacus}", "trainer: {devices: -3}",
    "logger: {tags: text}", "logger: {tags: {a: 1}}", "experiment_name: ${nope}", "experiment_name: ${oc.env:NOPE_NOPE}",
    "experiment_name: ${run_name:}", "experiment_name: [1]", "experiment_name: ${nope:1}", "experiment_name: '${'",
    "seed: ${seed}", "a: &a [1]\nseed: *a", "seed: *b", "seed: !!python/object/apply:os.getcwd []", "seed: 2\nseed: 3",
    "- a\n- b", "'", "\t", "{", "? [1]\n: 2", "1: 2", "hydra: {run: {dir: 3}}", "hydra: 3", "defaults: 3", "defaults: [nope]",
    "defaults:\n  - override /data: nope", "defaults:\n  - override /nope: x", "defaults:\n  - 3", "stages: []", "stages: 3",
    "stages: [nope]", "stages: {a: 1}", "force: maybe", "data: {<<: {n_neurons: x}}", "\x00", "seed: 2026-01-01", "? ", "é: 世",
    "data: {n_neurons: 0x7fffffffffffffffff}", "data: {bin_s: 1e-320}", "data: {observation: spikes, rate_scale_hz: 1e300}",
]  # fmt: skip


def hurt_yaml(rng, kind: str) -> str:
    lines = MINE.splitlines()
    count = int(rng.integers(1, 3))
    chosen = [YAML_LINES[i] for i in rng.integers(0, len(YAML_LINES), size=count)]
    if kind == "keys":
        del lines[rng.integers(len(lines))]
    top = [line.partition(":")[0] for line in chosen]
    if rng.random() < 0.7:  # in place of what stands there, else twice in the file
        kept, inside = [], False
        for line in lines:
            inside = line[:1] in (" ", "-") and inside if line[:1] in (" ", "-") else line.partition(":")[0] in top
            if not inside:
                kept.append(line)
        lines = kept
    return "\n".join([*lines, *chosen]) + "\n"


BYTES = {"truncated": truncated, "flipped": flipped, "scrambled": scrambled}
CONTENT = {"dtype": other_dtype, "shape": other_shape, "values": other_values}
KINDS = (*BYTES, "foreign", "misplaced", *CONTENT, "keys", "declared", "whole")


def damaged(reader: str, kind: str, whole: Path, folder: Path, rng: np.random.Generator) -> Path:
    """The damaged file, written to ``folder``."""
    how = READERS[reader]
    name = how.whole[rng.integers(len(how.whole))]
    source, path, marker = whole / name, folder / name, folder / "unpickled"
    if source.is_dir():
        shutil.copytree(source, path)
        inner = RUN_FILES[rng.integers(len(RUN_FILES))]
        path, source = path / inner, source / inner
    if kind == "misplaced":
        path.unlink(missing_ok=True)
        moved = misplaced(path, rng, source)
        return folder / name if (whole / name).is_dir() else moved
    data = source.read_bytes()
    suffix = path.suffix
    arrays, write = how.content, how.write
    if suffix == ".npz" and arrays is None:
        loaded = dict(np.load(source, allow_pickle=False))
        arrays, write = lambda rng: loaded, write_npz_with_pickles

    def by_bytes() -> None:
        path.write_bytes(list(BYTES.values())[rng.integers(3)](data, rng))

    if kind in BYTES:
        path.write_bytes(BYTES[kind](data, rng))
    elif kind == "foreign":
        path.write_bytes(foreign(data, rng, whole, marker))
    elif kind == "whole":
        path.write_bytes(data)
    elif suffix == ".yaml" and path.parent.name != "run":
        path.write_text(hurt_yaml(rng, kind))
    elif suffix == ".pt":
        path.write_bytes(data)
        hurt_saved(path, rng, kind, marker)
    elif suffix == ".npz" and kind == "declared":
        declared_npz(path, arrays(rng), rng)
    elif suffix == ".mat" and name == "rat.mat" and kind == "declared":
        declared_matlab5(path, session(rng), rng)
    elif (
        suffix in (".h5", ".nwb", ".mat")
        and h5py.is_hdf5(source)
        and (arrays is None or rng.random() < 0.5 or kind == "declared")
    ):
        path.write_bytes(data)
        hurt_hdf5(path, rng, kind, marker)
    elif arrays is not None:
        content = arrays(rng)
        if kind == "keys":
            content = other_keys(content, rng)
        elif kind in CONTENT:
            places = list(leaves(content))
            for _ in range(int(rng.integers(1, 3))):
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    change = lambda x: CONTENT[kind](np.asarray(x), rng, marker)  # noqa: E731
                    put(content, places[rng.integers(len(places))], change)
        try:
            write(path, content)
        except Exception:  # content that the format cannot hold
            by_bytes()
    else:
        by_bytes()
    return folder / name


# --- command lines ------------------------------------------------------------------------------------------------


def rehearsal(options, *_) -> float:
    """connector.launch.job.run up to the first stage: all that the options can spoil before anything is trained."""
    connector.launch.job.quiet()
    check_trainer(options.trainer)
    data = connector.launch.planning.build_data(options)
    data.setup()
    connector.launch.planning.plan(options, data)
    return 0.0


def command(arguments: list[str]) -> int:
    """train.py in this process, its run rehearsed; a refusal raises UserError."""
    before, run = sys.argv, connector.launch.job.run
    sys.argv = ["train.py", *arguments]
    connector.launch.job.run = rehearsal
    GlobalHydra.instance().clear()
    command_line._raised.clear()
    command_line._directories.clear()
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = command_line.main()
            except SystemExit as left:  # argparse, at flags that do not exist
                code = left.code
    finally:
        sys.argv, connector.launch.job.run = before, run
    sweep = "-m" in arguments or "--multirun" in arguments
    if sweep and code == 1 and "Traceback" not in out.getvalue():
        code = 2  # as documented: a sweep ends with 1 where a job was refused
    return refused_in_lines(code, out.getvalue(), longest=60 if sweep else 40 if "usage:" in out.getvalue() else 2)


SMALL = ["data.n_neurons=20", "data.n_grid=4", "data.n_steps=12"]
TINY = [
    "connectivity.loadings_epochs=2", "connectivity.outputs_epochs=1", "connectivity.outputs_loadings=256",
    "lrrnn.max_epochs=1", "stages=[lrrnn]",
]  # fmt: skip


def option_types() -> list[tuple[str, object, str]]:
    """(name, type, data set that has it) of every option of the schema."""
    found = []

    def walk(schema, prefix, source):
        for name, kind in typing.get_type_hints(schema).items():
            if is_dataclass(kind):
                walk(kind, f"{prefix}{name}.", source)
            elif prefix + name != "data":
                found.append((prefix + name, kind, source))

    walk(options_schema.Options, "", "attractor")
    for source, schema in options_schema.DATA_TYPES.items():
        walk(schema, "data.", source)
    return found


# Not for every type is there a value that must be refused: text may be any text.
_SURELY_BAD = {
    int: ["abc", "1.5", "nan", "inf", "[]", "{a:1}", "''", "1e400", "-99999999999999999999999", "true?", "2 3"],
    float: ["fast", "nan", "inf", "-inf", "[1]", "{a:1}", "''", "1e999", "1,5x"],
    bool: ["maybe", "[]", "nan", "2.5", "''"],
    str: ["[1]", "{a:1}"],
    list: ["{a:1}", "3.5", "true"],
}
_ODD = ["null", "-1", "0", "1", "1e-320", "1e308", "99999999999", "9223372036854775808", "''", "'   '", "[]", "{}", "${nope}",
        "${seed}", "${oc.env:NOPE}", "text", "é世", "true", "[null]", "'a/b'", "-0.0", "1e5", "[1,[2]]", "\\${x}"]  # fmt: skip
_SYNTAX = [
    ["seed="], ["=3"], ["seed"], ["~seed"], ["+x=1"], ["++x=1"], ["~nope"], ["~lrrnn"], ["~data"], ["seed=1,2"], ["data=nope"],
    ["lrrnn=nope"], ["nope=default"], ["data=[npz,nwb]"], ["experiment=nope"], ["experiment=a/b"], ["data=npz"], ["+data=npz"],
    ["lrrnn.rank=3", "lrrnn.rank=x"], ["seed=3", "seed=4"], ["+seed=3"], ["lrrnn.rank.x=3"], ["+lrrnn.flow.x=1"], ["seed=[1"],
    ["seed={"], ["seed='"], ["seed=${"], ["seed=${nope:1}"], ["a b c"], [""], ["\x01"], ["--nope"], ["-x"], ["--config-dir"],
    ["--config-dir=/nope"], ["--config-name=nope"], ["--config-path=nope"], ["hydra.run.dir=/dev/null/x"], ["hydra.run.dir="],
    ["hydra.run.dir=[1]"], ["hydra/launcher=nope"], ["hydra.nope=3"], ["hydra.mode=NOPE"], ["hydra.verbose=nope"],
    ["-m", "seed=1,x"], ["-m", "seed=range(1,3)"], ["-m", "lrrnn.rank=0,1"], ["-m", "seed="], ["-m", "seed=choice("],
    ["-m", "seed=range(1,3,0)"], ["-m", "hydra/sweeper=nope"], ["-m", "data=npz,nope"], ["hydra.sweep.dir=3"],
    ["data=npz", "data.path=/dev/zero"], ["data=npz", "data.path=."], ["data=npz", "data.path=''"], ["data=npz", "data.path=null"],
    ["data=nwb", "data.path=nope.nwb"], ["data=rat", "data.path=${data.path}"], ["experiment_name=''"], ["experiment_name=a/../b"],
    ["logger=wandb", "logger.mode=nope"], ["trainer=gpu", "trainer.devices=99"], ["trainer=ddp", "trainer.devices=0"],
    ["trainer.precision=3"], ["trainer.strategy=nope"], ["trainer.accelerator=abacus"], ["trainer.threads=0"],
    ["trainer.threads=-2"], ["trainer.num_nodes=0"], ["trainer.devices=[0,0]"], ["trainer.devices=x"], ["trainer.devices=null"],
    ["data.n_neurons=999999999999"], ["data.n_grid=100000"], ["data.n_steps=999999999"], ["connectivity.flow.hidden_width=99999999"],
    ["connectivity.flow.hidden_layers=99999999"], ["lrrnn.n_units=999999999999"], ["data.stride=999"], ["data.recorded_fraction=1e-9"],
    ["data.n_folds=999"], ["data.fold_seed=-1"], ["data.extent=1e300"], ["data.process_noise=1e300"], ["data.name=nope"],
    ["data.observation=spikes", "data.rate_scale_hz=1e300"], ["data.bin_s=1e300", "data.observation=spikes"],
]  # fmt: skip
BASES = {
    "attractor": SMALL,
    "npz": ["data=npz", "data.path={whole}/own.npz"],
    "rat": ["data=rat", "data.path={whole}/rat.mat"],
    "nwb": ["data=nwb", "data.path={whole}/planted.nwb"],
    "nlb": ["data=nlb", "data.path={whole}/nlb.h5"],
}


def _kinds_of(hint) -> list:
    plain = [x for x in typing.get_args(hint) if x is not type(None)] if typing.get_args(hint) else [hint]
    if typing.get_origin(hint) is list:
        return [list]
    return [list if typing.get_origin(x) is list else x for x in plain]


def mistaken(index: int, rng: np.random.Generator) -> tuple[list[str], bool]:
    """A command line, and whether it must be refused. The first ones give every option a value of the wrong kind."""
    types = option_types()
    if index < len(types) or rng.random() < 0.5:
        name, hint, source = types[index % len(types)] if index < len(types) else types[rng.integers(len(types))]
        bad = _SURELY_BAD.get(_kinds_of(hint)[0])
        sure = bad is not None and (index < len(types) or rng.random() < 0.5)
        values = bad if sure else _ODD
        value = values[rng.integers(len(values))]
        prefix = name != "data.source"
        base = [x for x in BASES[source] if not x.startswith(f"{name}=")] if prefix else BASES[source]
        return [*base, f"{name}={value}"], sure
    given = list(_SYNTAX[rng.integers(len(_SYNTAX))])
    own = any(x.startswith(("data=", "+data=", "~data")) for x in given)
    keys = {x.partition("=")[0] for x in given}
    if not own:
        given = [*given[:1], *[x for x in SMALL if x.partition("=")[0] not in keys], *given[1:]]
    if rng.random() < 0.3:
        name, _, source = types[rng.integers(len(types))]
        if source == "attractor" and not own:
            given.append(f"{name}={_ODD[rng.integers(len(_ODD))]}")
    return given, False


# --- cases and their outcome --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """``group``, ``kind``: the row and column of the table; ``became``: read, refused or failed; ``why``: of a failure."""

    number: int
    group: str
    kind: str
    became: str
    why: str = ""
    seconds: float = 0.0
    memory_gb: float = 0.0


def _status_gb(key: str) -> float:
    line = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line[1]) / 1e6


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _tree(folder: Path) -> set[str]:
    return {str(x.relative_to(folder)) for x in folder.rglob("*")}


def plan_of(number: int, seed: int) -> tuple[str, str, np.random.Generator]:
    """The reader and the kind of damage of a case, and the generator of the rest."""
    rng = np.random.default_rng([seed, 0, number])
    readers = list(READERS)
    reader = readers[number % len(readers)]
    return reader, KINDS[rng.integers(len(KINDS) - 1)] if number >= len(readers) else "whole", rng


def one_file(number: int, seed: int, whole: Path, folder: Path) -> Outcome:
    reader, kind, rng = plan_of(number, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = damaged(reader, kind, whole, folder, rng)
    except Exception as error:
        return Outcome(number, reader, kind, "failed", f"in the making: {type(error).__name__}: {error}"[:300])
    before = _tree(folder)
    unreadable = False
    with contextlib.suppress(OSError, ValueError):
        unreadable = path.is_file() and not path.stat().st_mode & 0o400

    def act() -> None:
        if unreadable and os.geteuid() == 0:  # to root, every file is readable
            os.seteuid(65534)
        try:
            READERS[reader].read(path, rng)
        finally:
            os.seteuid(os.getuid())

    outcome = judged(number, reader, kind, act)
    left = _tree(folder) - before
    if outcome.became != "failed" and left:
        return Outcome(number, reader, kind, "failed", f"left behind: {', '.join(sorted(left))[:100]}")
    if outcome.became == "refused" and kind == "whole":
        return Outcome(number, reader, kind, "failed", f"a whole file refused: {outcome.why}")
    return outcome


def one_command(number: int, seed: int, whole: Path, folder: Path, real: bool = False) -> Outcome:
    rng = np.random.default_rng([seed, 1, number])
    arguments, sure = mistaken(10**6 if real else number, rng)
    arguments = [x.replace("{whole}", str(whole)) for x in arguments]
    said = " ".join(arguments).replace(str(whole), "")

    def act() -> None:
        os.chdir(folder)
        if not real:
            command(arguments)
            return
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *[x.replace("\0", "") for x in arguments], *tiny(arguments)],
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        code = done.returncode
        if "-m" in arguments and code == 1 and "Traceback" not in done.stderr:
            code = 2
        refused_in_lines(code, done.stderr, longest=60 if "-m" in arguments or "usage:" in done.stderr else 2)

    group = "train.py" if real else "command lines"
    outcome = judged(number, group, "wrong kind" if sure else "odd", act, seconds=240 if real else SECONDS)
    os.chdir(ROOT)
    if outcome.became == "failed":
        return Outcome(number, group, outcome.kind, "failed", f"{said}: {outcome.why}", outcome.seconds)
    if sure and outcome.became == "read":
        return Outcome(number, group, outcome.kind, "failed", f"{said}: accepted")
    left = sorted(_tree(folder))
    if outcome.became == "refused" and left and "-m" not in arguments:
        return Outcome(number, group, outcome.kind, "failed", f"{said}: left behind {', '.join(left)[:100]}")
    return outcome


def tiny(arguments: list[str]) -> list[str]:
    given = {x.partition("=")[0] for x in arguments}
    return [x for x in (*TINY, "trainer.threads=1") if x.partition("=")[0] not in given and "--" not in "".join(given)]


def judged(number: int, group: str, kind: str, act: Callable[[], None], seconds: int = SECONDS) -> Outcome:
    """What becomes of one case."""
    resident = _status_gb("VmRSS")
    _forget_peak()
    started, why = time.monotonic(), ""
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act()
        became = "read"
    except UserError as error:
        became, why = "refused", str(error)
    except Hang:
        became, why = "failed", f"more than {seconds} s"
    except BaseException as error:
        became, why = "failed", f"{type(error).__name__}: {error}"[:300]
        if os.environ.get("FUZZ_TRACEBACK"):
            traceback.print_exc()
    finally:
        signal.alarm(0)
    took, memory = time.monotonic() - started, _status_gb("VmHWM") - resident
    if became == "refused" and (len(why.strip().splitlines()) > 60 or not why.strip()):
        became, why = "failed", f"a message of no use: {why[:100]!r}"
    # Without sizes of their own, command lines simulate the thousand neurons of the default.
    if became != "failed" and memory > (MEMORY_GB if group != "user's yaml" else 2.0):
        became, why = "failed", f"{memory:.2f} GB of memory"
    return Outcome(number, group, kind, became, why, took, memory)


def _work(cases: list[tuple[Callable, int]], seed: int, whole: Path, out: int) -> None:
    """In the forked process: the cases one after the other, each one's outcome as a line of JSON."""

    def hang(signum, frame):
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    torch.set_num_threads(1)
    space = int((_status_gb("VmSize") + 2.0) * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for function, number in cases:
        folder = Path(tempfile.mkdtemp(dir=whole.parent))
        folder.chmod(0o755)
        marker = folder / "unpickled"
        outcome = function(number, seed, whole, folder)
        if marker.exists():
            outcome = Outcome(number, outcome.group, outcome.kind, "failed", "an object was unpickled")
        os.chdir(ROOT)
        shutil.rmtree(folder, ignore_errors=True)
        os.write(out, (json.dumps(vars(outcome)) + "\n").encode())


def outcomes(cases: list[tuple[Callable, int]], seed: int, patience: int = 60) -> Iterator[Outcome]:
    """Outcomes of all cases, in order; a process that dies or falls silent costs the case it was at."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as held:
        Path(held).chmod(0o755)
        whole = Path(held) / "whole"
        whole.mkdir()
        write_whole(whole)
        place = 0
        while place < len(cases):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(read)
                code = 1
                try:
                    _work(cases[place:], seed, whole, write)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            os.close(write)
            rest, silent = b"", False
            while True:
                ready, _, _ = select.select([read], [], [], patience)
                silent = not ready
                block = os.read(read, 65536) if ready else b""
                if not block:
                    break
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    yield Outcome(**json.loads(line))
                    place += 1
            os.close(read)
            if silent:
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if place < len(cases):
                function, number = cases[place]
                why = f"silent for {patience} s" if silent else f"the process died (status {status})"
                group, kind = plan_of(number, seed)[:2] if function is one_file else ("command lines", "odd")
                yield Outcome(number, group, kind, "failed", why)
                place += 1


def real_command(number: int, seed: int, whole: Path, folder: Path) -> Outcome:
    return one_command(number, seed, whole, folder, real=True)


def _cell(some: list[Outcome]) -> str:
    became = Counter(x.became for x in some)
    return "" if not some else "/".join(str(became[x]) for x in ("read", "refused", "failed"))


def show(done: list[Outcome], console: Console) -> None:
    """Read / refused / failed, by reader and kind of damage; then each failure."""
    kinds = list(dict.fromkeys([*(k for k in KINDS if any(x.kind == k for x in done)), *(x.kind for x in done)]))
    table = Table("read/refused/failed", *kinds, "all", "slowest, s", "most, GB", title=None, pad_edge=False)
    for group in [*dict.fromkeys(x.group for x in done), None]:
        rows = [x for x in done if group in (None, x.group)]
        table.add_row(
            group or "all", *(_cell([x for x in rows if x.kind == kind]) for kind in kinds), _cell(rows),
            f"{max(x.seconds for x in rows):.1f}", f"{max(x.memory_gb for x in rows):.2f}",
        )  # fmt: skip
    console.print(table)
    for x in done:
        if x.became == "failed":
            print(f"{x.group}, case {x.number} ({x.kind}): {' '.join(x.why.split())[:400]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--options", type=int, default=300, help="command lines in this process")
    parser.add_argument("--real", type=int, default=25, help="command lines through python train.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case by its number: a file's; with --files 0 a command line's")
    given = parser.parse_args(arguments)
    cases = [(one_file, i) for i in range(given.files)] + [(one_command, i) for i in range(given.options)]
    cases += [(real_command, i) for i in range(given.real)]
    if given.only is not None:
        os.environ["FUZZ_TRACEBACK"] = "1"
        function = one_file if given.files else one_command if given.options else real_command
        cases = [(function, given.only)]
    started = time.monotonic()
    done = list(outcomes(cases, given.seed, patience=300 if given.real else 60))
    show(done, Console(width=200))
    failed = sum(x.became == "failed" for x in done)
    print(f"{len(done)} cases in {time.monotonic() - started:.0f} s: {failed} failed (seed {given.seed})")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
