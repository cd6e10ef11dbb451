"""A run directory: what is written there, and what is read back.

    config.yaml            the resolved options
    stages.json            per stage: the fingerprint of its inputs and options, seconds, metrics
    latents.npz            latent states, inputs, drive, the recorded neurons' loadings, the trials of each fold
    checkpoints/           one checkpoint a stage; loadings_flow.pt and connectivity.pt, which load on their own
    network.npz            a sampled network;  metrics.json, figures/, report.html, train.log, logs/

Every file is written aside and renamed, so that none is ever read half-written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from connector.connectivity import ConnectivityDistribution
from connector.data.folds import Fold
from connector.dynamics import Network
from connector.errors import UserError
from connector.types import Latents, Loadings

# Part of every fingerprint: raise it when a stage computes something else from the same options.
FORMAT = 2


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path aside of ``path`` to write to; it takes its place only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays (None left out), identical bytes for identical content."""
    with atomic(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in arrays.items():
            if value is None:
                continue
            array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            # A fixed date: np.savez stamps the time of writing, which makes equal results look different.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, array, allow_pickle=False)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _canonical(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    return value


def fingerprint(*parts: Any) -> str:
    """A hash of options and upstream fingerprints: equal where a stage would compute the same thing."""
    text = json.dumps([FORMAT, _canonical(parts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(handle)


def _sha256(handle) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class StageInputs:
    """What the connectivity stages start from: the hand-over of the lrRNN stage.

    Attributes:
        latents: of all trials; loadings: of the recorded neurons; fold: the trials of each part.
        activation: name of phi in the network whose connectivity is sought.
        loadings_covariance: (K_obs, P, P) uncertainty of each neuron's loadings given the latents, or None.
        readings: (trials, time, R) states read from each sample on its own, so that their errors are independent between
            samples, and the covariance (trials, time, R, R) of each; None: the latents are as good as known.
        n: (K_obs, R) output weights of the fitted low-rank RNN, where its units are the recorded neurons; or None. Nothing
            downstream builds on them: they show what the fit alone would say about the connectivity.
    """

    latents: Latents
    loadings: Loadings
    fold: Fold
    activation: str
    loadings_covariance: torch.Tensor | None = None
    readings: tuple[torch.Tensor, torch.Tensor] | None = None
    n: torch.Tensor | None = None


class RunStore:
    """The files of one run directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.latents_file = self.path / "latents.npz"
        self.loadings_flow_file = self.checkpoints / "loadings_flow.pt"
        self.connectivity_file = self.checkpoints / "connectivity.pt"

    # -- stages -----------------------------------------------------------------------------------------------
    def stages(self) -> dict[str, dict]:
        file = self.path / "stages.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def is_current(self, stage: str, mark: str, files: list[Path]) -> bool:
        """True where the stage was finished with this fingerprint and its files are there."""
        return self.stages().get(stage, {}).get("fingerprint") == mark and all(f.exists() for f in files)

    def finish_stage(
        self, stage: str, mark: str, seconds: float, metrics: Mapping[str, float], cpu_seconds: float = 0.0
    ) -> None:
        """``seconds``: of the clock; ``cpu_seconds``: of this process, all threads together."""
        done = self.stages()
        times = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}
        done[stage] = {"fingerprint": mark, **times, "metrics": dict(metrics)}
        write_json(self.path / "stages.json", done)

    def forget_stage(self, stage: str) -> None:
        done = self.stages()
        if done.pop(stage, None) is not None:
            write_json(self.path / "stages.json", done)

    # -- hand-over ----------------------------------------------------------------------------------------------
    def write_stage_inputs(self, inputs: StageInputs) -> None:
        latents, loadings, fold = inputs.latents, inputs.loadings, inputs.fold
        write_npz(
            self.latents_file,
            {
                "latents": latents.z,
                "lengths": latents.lengths,
                "externalinputs": latents.inputs,
                "drive": latents.drive,
                "alpha": latents.alpha,
                "m": loadings.m,
                "b": loadings.b,
                "d": loadings.d,
                "n": inputs.n,
                "loadings_covariance": inputs.loadings_covariance,
                "readings": None if inputs.readings is None else inputs.readings[0],
                "readings_covariance": None if inputs.readings is None else inputs.readings[1],
                "activation": inputs.activation,
                "train": fold.train,
                "validation": fold.validation,
                "test": fold.test,
            },
        )

    def read_stage_inputs(self) -> StageInputs:
        if not self.latents_file.exists():
            raise UserError(
                f"{self.latents_file.name} from the lrrnn stage in {self.path}",
                "no such file",
                "add lrrnn to `stages`, or leave `stages=auto`",
            )
        arrays = read_npz(self.latents_file)
        tensors = {k: torch.from_numpy(v) for k, v in arrays.items() if v.ndim > 0}
        return StageInputs(
            latents=Latents(
                z=tensors["latents"],
                lengths=tensors["lengths"],
                alpha=float(arrays["alpha"]),
                inputs=tensors.get("externalinputs"),
                drive=tensors.get("drive"),
            ),
            loadings=Loadings(tensors["m"], tensors.get("b"), tensors.get("d")),
            fold=Fold(tensors["train"], tensors["validation"], tensors["test"]),
            activation=str(arrays["activation"]),
            loadings_covariance=tensors.get("loadings_covariance"),
            readings=(tensors["readings"], tensors["readings_covariance"]) if "readings" in tensors else None,
            n=tensors.get("n"),
        )

    def write_module(self, path: Path, save: Callable[[Path], None]) -> None:
        with atomic(path) as aside:
            save(aside)

    def metrics(self) -> dict[str, float]:
        """Of metrics.json; none where there is no such file."""
        file = self.path / "metrics.json"
        return json.loads(file.read_text()) if file.exists() else {}

    # -- results --------------------------------------------------------------------------------------------------
    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        finite = {k: float(v) for k, v in metrics.items() if v is not None and np.isfinite(float(v))}
        write_json(self.path / "metrics.json", finite)


def write_network(path: Path, network: Network, sigma: float) -> None:
    """An npz with m, b, d, n, alpha, activation, sigma; (K, 0) and (K,) zeros where b, d are absent."""
    k = network.n_neurons
    write_npz(
        path,
        {
            "m": network.m,
            "b": network.b if network.b is not None else torch.zeros(k, 0, dtype=network.m.dtype),
            "d": network.d if network.d is not None else torch.zeros(k, dtype=network.m.dtype),
            "n": network.n,
            "alpha": network.alpha,
            "activation": network.activation,
            "sigma": sigma,
        },
    )


def load_network(path: str | Path) -> Network:
    """The Network saved as an npz with m, n and optionally b, d, alpha, activation."""
    try:
        arrays = read_npz(Path(path))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"an npz with a network in {path}", str(error)) from error
    missing = [key for key in ("m", "n") if key not in arrays]
    if missing:
        raise UserError(f"the arrays m and n in {path}", f"no {missing[0]}")
    b, d = arrays.get("b"), arrays.get("d")
    return Network(
        m=torch.from_numpy(arrays["m"]),
        n=torch.from_numpy(arrays["n"]),
        b=torch.from_numpy(b) if b is not None and b.shape[1] else None,
        d=torch.from_numpy(d) if d is not None and np.any(d) else None,
        alpha=float(arrays.get("alpha", 0.1)),
        activation=str(arrays.get("activation", "tanh")),
    )


class Run:
    """A finished run, read back: ``config``, ``metrics``, ``latents``, ``loadings``, ``connectivity``, ``network``."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.store = RunStore(self.path)
        if not (self.path / "config.yaml").exists():
            raise UserError(
                f"a run directory with config.yaml in {self.path}",
                "an incomplete run" if self.path.exists() else "no such directory",
                "make a run with `python train.py`; it says where the run lies",
            )
        self.config = OmegaConf.load(self.path / "config.yaml")

    @cached_property
    def metrics(self) -> dict[str, float]:
        return self.store.metrics()

    @cached_property
    def stage_inputs(self) -> StageInputs:
        return self.store.read_stage_inputs()

    @property
    def latents(self) -> Latents:
        return self.stage_inputs.latents

    @property
    def loadings(self) -> Loadings:
        """Loadings of the recorded neurons."""
        return self.stage_inputs.loadings

    @property
    def fitted_network(self) -> Network:
        """The fitted low-rank RNN itself, its units the recorded neurons, in the gauge of the latents."""
        inputs = self.stage_inputs
        if inputs.n is None:
            raise UserError(
                f"output weights of the fitted low-rank RNN in {self.store.latents_file}",
                "none: its units are not the recorded neurons, or an older version wrote the run",
                "run the stage lrrnn again with force=true",
            )
        loadings = inputs.loadings
        alpha = inputs.latents.alpha
        return Network(loadings.m, inputs.n, loadings.b, loadings.d, alpha=alpha, activation=inputs.activation)

    @cached_property
    def connectivity(self) -> ConnectivityDistribution:
        if not self.store.connectivity_file.exists():
            raise UserError(
                f"a learned connectivity distribution in {self.path}",
                "none",
                "run the stages loadings and outputs (stages=auto runs all)",
            )
        return ConnectivityDistribution.load(self.store.connectivity_file)

    @cached_property
    def network(self) -> Network:
        """The sampled network saved in network.npz."""
        return load_network(self.path / "network.npz")


def load_run(path: str | Path) -> Run:
    """Read a run directory back.

    Raises:
        UserError: the directory is no run directory.
    """
    return Run(path)
