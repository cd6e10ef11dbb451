"""Bad files and mistaken options, thousands of them, all from one seed; prints a table of what became of them.

    python tests/fuzz.py                                        2000 files, 300 command lines in-process, 25 for real
    python tests/fuzz.py --files 0 --options 300 --real 25 --seed 7
    python tests/fuzz.py --only 1234                            one case again, with its traceback

Each file that a reader of Connector takes is written small and whole, then damaged. What may become of it: what the reader
promises (checked: finite, of one shape), or UserError. What may not: another exception, a crash, more than 20 s of CPU
time, more than MEMORY_GB of memory (readers are asked to keep their arrays within LIMIT_GB), an unpickled object, a file left behind.
Command lines end with exit code 0, or 2 and one or two lines. Cases run in a process that is forked for many of them and has
a limit on its memory, so that even a crash costs one case only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from damage import KINDS, damaged
from hydra.core.global_hydra import GlobalHydra
from matlab73 import write_matlab73
from rich.console import Console
from rich.table import Table
from scipy.io import savemat
from whole_files import (
    ARRAYS_OPTIONS,
    NWB_OPTIONS,
    findr_arrays,
    flat_arrays,
    network_arrays,
    nlb_arrays,
    other_arrays,
    own_arrays,
    rnn_arrays,
    session,
    write_flat_h5,
    write_h5,
    write_npz_with_pickles,
    write_whole,
)

import connector.launch.job
import connector.launch.planning
from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.flow import Flow
from connector.data.arrays import load_arrays
from connector.data.clicks import load_rat
from connector.data.nlb import load_nlb
from connector.data.npz import load_npz
from connector.data.nwb import load_nwb
from connector.data.nwb_listing import described_nwb
from connector.data.rnn import load_rnn
from connector.dynamics import ACTIVATIONS, Network
from connector.errors import UserError
from connector.export import main as export_main
from connector.launch import command_line
from connector.runs import options as options_schema
from connector.runs.saved import load_run
from connector.runs.store import load_network
from connector.sample import main as sample_main
from connector.stages.training import check_trainer
from connector.types import Recording, valid_mask

ROOT = Path(__file__).resolve().parent.parent

SECONDS = 20
LIMIT_GB = 0.02  # asked of the readers: data.max_gigabytes
MEMORY_GB = 0.5  # what a case may add to the process: pynwb alone takes a tenth of a gigabyte the first time


class Hang(BaseException):
    """More than SECONDS of CPU time, or thrice that by the clock; no Exception, so that no reader takes it for damage."""


class Broken(Exception):
    """A reader gave back what it must not."""


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


def quietly(main: Callable, arguments: list[str]) -> int:
    """A script's main in this process; a refusal raises UserError."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(arguments)
    return refused_in_lines(code, said.getvalue())


def refused_in_lines(code: int, said: str, longest: int = 2) -> int:
    """An exit code that a command may end with; raises UserError for a refusal."""
    if code == 2:
        listed = "Arrays of " in said or "Tables and series of " in said
        longest = 90 if listed else longest  # what is in a file is told, a line each
        promise(0 < len(said.strip().splitlines()) <= longest and "Traceback" not in said, f"a short message: {said!r}")
        raise UserError("", said)
    promise(code == 0, f"exit code 0 or 2, not {code}: {said[-300:]}")
    return code


def read_recording_file(load: Callable, **options) -> Callable[[Path, np.random.Generator], None]:
    return lambda path, rng: check_recording(load(path, max_gigabytes=LIMIT_GB, **options))


def read_nwb(path: Path, rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        described_nwb(path, LIMIT_GB)
    options = NWB_OPTIONS[rng.integers(len(NWB_OPTIONS))] if "planted" in path.name else {}
    check_recording(load_nwb(path, max_gigabytes=LIMIT_GB, **options))


def read_arrays(path: Path, rng: np.random.Generator) -> None:
    number = int(rng.integers(len(ARRAYS_OPTIONS)))
    options = dict(ARRAYS_OPTIONS[number])
    if path.suffix == ".mat":
        nested = {
            "activity": {"tri*": "trials"},
            "lengths": {"*n": "session.n"},
            "choices": {"*choice": "session.choice"},
        }
        options |= {name: keys.get(options[name], options[name]) for name, keys in nested.items() if name in options}
    try:
        check_recording(load_arrays(path, max_gigabytes=LIMIT_GB, **options))
    except UserError:
        if number:  # without options the arrays are told
            raise


def read_events(path: Path, rng: np.random.Generator) -> None:
    options = {"spike_times": "t", "spike_neurons": "unit", "bin_s": 0.05, "piece_s": 1.0}
    check_recording(load_arrays(path, max_gigabytes=LIMIT_GB, **options))


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
        quietly(export_main, [str(path), "--out", str(out), f"data.max_gigabytes={LIMIT_GB}"])
    finally:
        out.unlink(missing_ok=True)


def sample_run(path: Path, rng: np.random.Generator) -> None:
    out = path.with_name("out.npz")
    arguments = [str(path), "--neurons", "7", "--out", str(out)]
    arguments += [["--project"], ["--sigma", "1"], []][rng.integers(3)]
    try:
        quietly(sample_main, arguments)
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


READERS = {
    "npz": Reader(("own.npz",), read_recording_file(load_npz), own_arrays, write_npz_with_pickles),
    "npz FINDR": Reader(("findr.npz",), read_recording_file(load_npz), findr_arrays, write_npz_with_pickles),
    "rnn": Reader(("rnn.npz",), read_recording_file(load_rnn), rnn_arrays, write_npz_with_pickles),
    "rnn torch": Reader(("rnn.pt",), read_recording_file(load_rnn)),
    "rat v5": Reader(("rat.mat",), read_recording_file(load_rat), session, savemat),
    "rat v7.3": Reader(("rat73.mat",), read_recording_file(load_rat), session, write_matlab73, hdf5=True),
    "nwb": Reader(("planted.nwb", "exported.nwb"), read_nwb, hdf5=True),
    "nlb": Reader(("nlb.h5",), read_recording_file(load_nlb), nlb_arrays, write_h5, hdf5=True),
    "arrays v5": Reader(("arrays.mat",), read_arrays, other_arrays, savemat),
    "arrays v7.3": Reader(("arrays73.mat",), read_arrays, other_arrays, write_matlab73, hdf5=True),
    "arrays hdf5": Reader(("arrays.h5",), read_arrays, flat_arrays, write_flat_h5, hdf5=True),
    "arrays npz": Reader(("arrays.npz",), read_arrays, flat_arrays, write_npz_with_pickles),
    "arrays csv": Reader(("events.csv",), read_events),
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


# --- command lines ------------------------------------------------------------------------------------------------


def rehearsal(options, *_, **__) -> float:
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
    kinds = options_schema.known_kinds()
    found = [(name, kind, "attractor") for name, kind in kinds.items() if name != "data" and not is_dataclass(kind)]
    for source, schema in options_schema.DATA_TYPES.items():
        found += [(f"data.{name}", kind, source) for name, kind in typing.get_type_hints(schema).items()]
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
    "rnn": ["data=rnn", "data.path={whole}/rnn.pt"],
    "nwb": ["data=nwb", "data.path={whole}/planted.nwb"],
    "nlb": ["data=nlb", "data.path={whole}/nlb.h5"],
    "arrays": ["data=arrays", "data.path={whole}/arrays.h5", "data.activity=fr", "data.axes=[neuron,time,trial]"],
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
            path = damaged(READERS[reader], kind, whole, folder, rng)
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
        return replace(outcome, became="failed", why=f"left behind: {', '.join(sorted(left))[:100]}")
    if outcome.became == "refused" and kind == "whole":
        return replace(outcome, became="failed", why=f"a whole file refused: {outcome.why}")
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
    left = sorted(_tree(folder))
    if outcome.became == "failed":
        return replace(outcome, why=f"{said}: {outcome.why}")
    if sure and outcome.became == "read":
        return replace(outcome, became="failed", why=f"{said}: accepted")
    if outcome.became == "refused" and left and "-m" not in arguments:
        return replace(outcome, became="failed", why=f"{said}: left behind {', '.join(left)[:100]}")
    return outcome


def tiny(arguments: list[str]) -> list[str]:
    given = {x.partition("=")[0] for x in arguments}
    return [x for x in (*TINY, "trainer.threads=1") if x.partition("=")[0] not in given and "--" not in "".join(given)]


def judged(number: int, group: str, kind: str, act: Callable[[], None], seconds: int = SECONDS) -> Outcome:
    """What becomes of one case."""
    resident = _status_gb("VmRSS")
    _forget_peak()
    started, why = time.monotonic(), ""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time: other work on the machine makes no case slow
    signal.alarm(3 * seconds)
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
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    took, memory = time.monotonic() - started, _status_gb("VmHWM") - resident
    if became == "refused" and (len(why.strip().splitlines()) > 90 or not why.strip()):
        became, why = "failed", f"a message of no use: {why[:100]!r}"
    # Without sizes of their own, command lines simulate the thousand neurons of the default.
    if became != "failed" and memory > (MEMORY_GB if group != "user's yaml" else 2.0):
        became, why = "failed", f"{memory:.2f} GB of memory"
    return Outcome(number, group, kind, became, why, took, memory)


def _work(cases: list[tuple[Callable, int]], seed: int, whole: Path, out) -> None:
    """In the forked process: the cases one after the other, each one's outcome sent out."""

    def hang(signum, frame):
        raise Hang

    for limit in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(limit, hang)
    torch.set_num_threads(1)
    space = int((_status_gb("VmSize") + 2.0) * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for function, number in cases:
        folder = Path(tempfile.mkdtemp(dir=whole.parent))
        folder.chmod(0o755)
        outcome = function(number, seed, whole, folder)
        if (folder / "unpickled").exists():
            outcome = replace(outcome, became="failed", why="an object was unpickled")
        os.chdir(ROOT)
        shutil.rmtree(folder, ignore_errors=True)
        out.send(outcome)


def outcomes(cases: list[tuple[Callable, int]], seed: int, patience: int = 90) -> Iterator[Outcome]:
    """Outcomes of all cases, in order; a process that dies or falls silent costs the case it was at."""
    processes = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as held:
        Path(held).chmod(0o755)
        whole = Path(held) / "whole"
        whole.mkdir()
        write_whole(whole)
        place = 0
        while place < len(cases):
            read, write = processes.Pipe(duplex=False)
            child = processes.Process(target=_work, args=(cases[place:], seed, whole, write))
            child.start()
            write.close()
            with contextlib.suppress(EOFError):  # the process has died
                while place < len(cases) and read.poll(patience):
                    yield read.recv()
                    place += 1
            silent = place < len(cases) and child.is_alive() and not read.poll(1)
            if silent:
                child.kill()
            child.join()
            if place < len(cases):
                function, number = cases[place]
                why = f"silent for {patience} s" if silent else f"the process died (status {child.exitcode})"
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
    done = list(outcomes(cases, given.seed, patience=300 if given.real else 90))
    show(done, Console(width=200))
    failed = sum(x.became == "failed" for x in done)
    print(f"{len(done)} cases in {time.monotonic() - started:.0f} s: {failed} failed (seed {given.seed})")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
