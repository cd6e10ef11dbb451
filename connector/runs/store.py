"""A run directory: what is written there, and what is read back.

    config.yaml            the resolved options
    manifest.json          format; how the last job ended; per stage the fingerprint of its inputs and options, seconds,
                           metrics, checksums of its files; per invocation the command, versions, state of the code,
                           checksum of the data
    latents.npz            latent states, inputs, drive, the recorded neurons' loadings, the trials of each fold
    checkpoints/           one checkpoint a stage; loadings_flow.pt and connectivity.pt, which load on their own
    network.npz            a sampled network;  metrics.json, figures/, report.html, train.log, logs/

What a stage has written is read only while its checksum is the one in the manifest, and while it is of the options in
config.yaml. Before these are replaced, what was made with others loses its record, and then its files
(:meth:`RunStore.begin`): a process may be killed at any moment, and none finds there what config.yaml does not describe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.errors import UserError, numerical_failure
from connector.files import (
    atomic,
    file_checksum,
    paths_of,
    read_json,
    read_npz,
    refusing_damage,
    write_json,
    write_npz,
    write_text,
)

if TYPE_CHECKING:  # imported where they are read: what stands in a directory is told without waiting for torch
    from connector.connectivity.distribution import ConnectivityDistribution
    from connector.connectivity.flow import Flow
    from connector.dynamics import Network
    from connector.lrrnn.handover import FittedDynamics

# Part of every fingerprint: raise it when a stage computes something else from the same options.
FORMAT = 2
# Of manifest.json and the files that it speaks of: raise it when earlier versions cannot read them any more.
MANIFEST_FORMAT = 1
RUNNING, DONE = "running", "done"
RESULTS = "results"  # the last of a job: what is measured and drawn of its stages
_CHECKPOINT = re.compile(r"(best|last)-\d+-[0-9a-f]{16}\.ckpt|\.(best|last)\.part")
_LEFTOVER = re.compile(r"\..+\.\d+\.part|\.(lrrnn|loadings|outputs)\.ckpt\.part")

FORMATS = ("png", "pdf", "svg")  # of figures
_RESULTS_FILES = ("metrics.json", "network.npz", "report.html")
_WRITTEN = ("latents.npz", "responses.npz", *_RESULTS_FILES)
_OPTIONS = ("seed", "stages", "data", "lrrnn", "connectivity", "trainer")  # keys of every config.yaml


def _is_config(path: Path) -> bool:
    """Whether a file is the config.yaml of a run, by its keys."""
    with contextlib.suppress(OSError, ValueError):
        keys = {line.split(":")[0] for line in path.read_text(encoding="utf-8").splitlines()}
        return keys.issuperset(_OPTIONS)
    return False


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


def remove_checkpoints(directory: Path) -> None:
    """Of a training that is finished, or begins anew: what it wrote, and its directory where nothing else lies in it."""
    for file in directory.glob("*"):
        if _CHECKPOINT.fullmatch(file.name):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


class RunStore:
    """The files of one run directory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.latents_file = self.path / "latents.npz"
        self.loadings_flow_file = self.checkpoints / "loadings_flow.pt"
        self.connectivity_file = self.checkpoints / "connectivity.pt"

    def remove_leftovers(self) -> None:
        """Remove what processes that were killed had written aside. For who holds the directory's lock."""
        for directory in (self.path, self.checkpoints, self.figures, self.path / "logs"):
            for part in directory.glob(".*.part"):
                if _LEFTOVER.fullmatch(part.name):
                    part.unlink(missing_ok=True)

    def is_there(self) -> bool:
        """Whether the directory is still the one that a job began to write to."""
        return (self.path / "manifest.json").exists()

    # -- stages -----------------------------------------------------------------------------------------------
    def manifest(self) -> dict[str, Any]:
        """manifest.json with all its parts; empty ones where there is none.

        Raises:
            UserError: it is damaged, or of a later format.
        """
        path, earlier = self.path / "manifest.json", self.path / "stages.json"
        found = {"format": MANIFEST_FORMAT, "invocations": [], "stages": {}}
        # Versions before the manifest kept the records of stages by themselves, without checksums.
        found |= read_json(path) if path.exists() else {"stages": read_json(earlier)}
        with refusing_damage(path, f"{path.name} with the records of a run's stages"):
            if not isinstance(found["format"], int) or not isinstance(found["invocations"], list):
                raise ValueError("no format, or no list of invocations")
            if not isinstance(found["stages"], dict) or not all(isinstance(x, dict) for x in found["stages"].values()):
                raise ValueError("no records of stages")
            if not isinstance(found.get("state", ""), str):
                raise ValueError("a state that is no text")
        if found["format"] > MANIFEST_FORMAT:
            raise UserError(
                f"a run directory of format {MANIFEST_FORMAT} or earlier in {self.path}",
                f"format {found['format']}",
                "read it with the version of Connector that wrote it, or a later one",
            )
        return found

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_json(self.path / "manifest.json", manifest)
        (self.path / "stages.json").unlink(missing_ok=True)  # of an earlier version, now in the manifest

    def note_invocation(self, invocation: Mapping[str, Any]) -> None:
        """Note with what the stages that follow are made, unless the last invocation was the same."""
        manifest = self.manifest()
        if manifest["invocations"][-1:] != [dict(invocation)]:
            manifest["invocations"].append(dict(invocation))
            self._write_manifest(manifest)

    def note_state(self, state: str) -> None:
        """Note how the last job in this directory stands: RUNNING until it ends, then DONE or what ended it. A job that is
        killed leaves RUNNING; versions before this one noted nothing."""
        self._write_manifest(self.manifest() | {"state": state})

    def stages(self) -> dict[str, dict]:
        """stage -> its record: fingerprint, seconds, cpu_seconds, metrics, files and made_from (path in the directory ->
        SHA-256)."""
        return self.manifest()["stages"]

    def is_current(self, stage: str, mark: str, files: list[Path]) -> bool:
        """True where the stage was finished with this fingerprint, and all its files and those it was made from are there
        as they were."""
        record = self.stages().get(stage, {})
        if record.get("fingerprint") != mark or not all(f.exists() for f in files):
            return False
        known = record.get("files", {}) | record.get("drawn", {}) | record.get("made_from", {})
        return known == self._checksums(self.path / name for name in known)

    def stale(self, marks: Mapping[str, str]) -> list[str]:
        """Stages, and the results, that stand finished under other fingerprints than these, in the order of ``marks``."""
        records = self.stages()
        return [s for s in (*marks, *records) if s in records and records.pop(s).get("fingerprint") != marks.get(s)]

    def begin(self, marks: Mapping[str, str], config: str | None, figures: Iterable[str], name: str | None) -> None:
        """A job begins: what the directory holds of other options goes, then config.yaml is replaced.

        Args:
            marks: fingerprints of the stages and the results of this job.
            config: text of config.yaml; None: not known yet, there is none until it is.
            figures: names of what may be drawn; name: what the directory's name stands for, where it was made from options.
        """
        manifest, stale = self.manifest(), self.stale(marks)
        for stage in stale:
            del manifest["stages"][stage]
        manifest |= {"state": RUNNING, "planned": dict(marks)} | ({} if name is None else {"name": name})
        manifest["figures"] = sorted({*manifest.get("figures", []), *figures})
        if config is not None:
            manifest["config"] = hashlib.sha256(config.encode()).hexdigest()
        self._write_manifest(manifest)
        for stage in {*marks} - {*manifest["stages"]}:
            self._remove_files(stage, manifest)
        if config is not None:
            write_text(self.path / "config.yaml", config)
        elif stale:
            (self.path / "config.yaml").unlink(missing_ok=True)

    def require_own(self, data: str | Path | Sequence[str] | None = None) -> None:
        """Refuses a directory in which files of others lie under the names of a run's, and data files that the run would
        write to: raises UserError before anything is replaced."""
        files = [self.path / name for name in _WRITTEN] + [self.path / "config.yaml"]
        remedy = "choose another directory with hydra.run.dir=DIR"
        for path in () if data is None else paths_of(data):
            same = [file.name for file in files if file.exists() and file.samefile(path)]
            if same:
                raise UserError(
                    "a data file that the run does not write to", f"{same[0]} in its directory {self.path}", remedy
                )
        if any((self.path / name).exists() for name in ("manifest.json", "stages.json")):
            return
        there = [file.name for file in files if file.exists()]
        if there and not _is_config(self.path / "config.yaml"):
            raise UserError(
                "a directory of runs, or one without files under the names that a run writes",
                f"{self.path} with {', '.join(there)} of something else",
                remedy,
            )

    def has_config(self) -> bool:
        """Whether config.yaml is there as the last job wrote it."""
        file, known = self.path / "config.yaml", self.manifest().get("config")
        return file.exists() and known in (None, file_checksum(file))

    def _remove_files(self, stage: str, manifest: Mapping[str, Any]) -> None:
        """All that a stage, or the results, may have written, but checkpoints to go on from."""
        logs = self.path / "logs"
        files = {
            "lrrnn": [self.latents_file, self.path / "responses.npz"],
            "loadings": [self.loadings_flow_file],
            "outputs": [self.connectivity_file],
            RESULTS: [self.path / name for name in _RESULTS_FILES],
        }.get(stage, [])
        if stage == RESULTS:
            files += [self.figures / f"{name}.{ending}" for name in manifest.get("figures", []) for ending in FORMATS]
        else:
            files += [self.checkpoints / f"{stage}.ckpt", logs / f"{stage}.csv", logs / f"{stage}.unlogged"]
        for file in files:
            file.unlink(missing_ok=True)

    def damaged(self, stage: str, files: list[Path]) -> list[Path]:
        """Those of the files that are there, but not as the stage wrote them; see also :meth:`lost`."""
        known = self.stages().get(stage, {}).get("files", {})
        found = self._checksums(f for f in files if f.relative_to(self.path).as_posix() in known)
        return [self.path / name for name, checksum in found.items() if checksum != known[name]]

    def lost(self, stage: str) -> list[Path]:
        """Files that the stage wrote and that are no longer there."""
        record = self.stages().get(stage, {})
        files = [self.path / name for name in (*record.get("files", {}), *record.get("drawn", {}))]
        return [file for file in files if not file.exists()]

    def _checksums(self, files: Iterable[Path]) -> dict[str, str]:
        """Path in the directory -> SHA-256, of those that are there."""
        return {f.relative_to(self.path).as_posix(): file_checksum(f) for f in files if f.exists()}

    def whole(self, file: Path) -> Path:
        """A file of a finished stage, before it is read.

        Raises:
            UserError: its content is not what the stage wrote, or what that was made from is no longer there.
        """
        manifest, name = self.manifest(), file.relative_to(self.path).as_posix()
        if not self.has_config() and (self.path / "config.yaml").exists():
            got = "other content: the results beside it need not be of these options"
            raise UserError(
                f"config.yaml in {self.path} as the job wrote it", got, "run the command that made the run again"
            )
        records = {stage: record for stage, record in manifest["stages"].items() if name in record.get("files", {})}
        again = "run the command that made the run: it makes the file again"
        if "planned" in manifest and file.exists() and not records:
            got = "one that no finished stage wrote: the run has not come so far, or was stopped"
            raise UserError(f"{file.name} of a finished stage in {self.path}", got, again)
        for stage, record in records.items():
            if self.damaged(stage, [file]):
                raise UserError(
                    f"{file.name} in {self.path} as the stage {stage} wrote it",
                    "other content (its checksum is not the one in manifest.json)",
                    f"copy it from where it is whole, or {again}",
                )
            made_from = record.get("made_from", {})
            found = self._checksums(self.path / source for source in made_from)
            changed = [source for source, checksum in made_from.items() if found.get(source, checksum) != checksum]
            if changed:
                raise UserError(
                    f"{file.name} in {self.path} made from the {changed[0]} beside it",
                    "one made from an earlier one, of other options or of another training",
                    "run the command that made the run with stages=auto: what does not fit is made again",
                )
        return file

    def finish_stage(
        self,
        stage: str,
        mark: str,
        seconds: float,
        metrics: Mapping[str, float],
        cpu_seconds: float = 0.0,
        files: Iterable[Path] = (),
        made_from: Iterable[Path] = (),
        *,
        drawn: Iterable[Path] = (),
        cautions: Iterable[str] = (),
        job: Mapping[str, Any] | None = None,
    ) -> None:
        """Note a stage as finished.

        Args:
            seconds: of the clock; cpu_seconds: of this process, all threads together.
            files: what it wrote; made_from: what it read; drawn: report and figures. Those that are not there are passed
                over.
            cautions: of the results, for a reader; job: what the finished job is known by.
        """
        manifest = self.manifest()
        manifest["stages"][stage] = {
            "fingerprint": mark,
            "invocation": max(0, len(manifest["invocations"]) - 1),
            "seconds": round(float(seconds), 3),
            "cpu_seconds": round(float(cpu_seconds), 3),
            "metrics": dict(metrics),
            "files": self._checksums(files),
            "made_from": self._checksums(made_from),
        }
        if stage == RESULTS:
            manifest["stages"][stage] |= {"drawn": self._checksums(drawn), "cautions": list(cautions), "job": job}
            manifest["state"] = DONE
        self._write_manifest(manifest)
        for path in self.checkpoints.glob(f"{stage}-*"):
            if path == self.unfinished(stage, mark) or re.fullmatch(rf"{stage}-[0-9a-f]{{16}}", path.name):
                remove_checkpoints(path)

    def note_job(self, job: Mapping[str, Any]) -> None:
        """What the finished job is known by, where that has changed."""
        manifest = self.manifest()
        if manifest["stages"][RESULTS].get("job") != job:
            manifest["stages"][RESULTS]["job"] = dict(job)
            self._write_manifest(manifest)

    def unfinished(self, stage: str, mark: str) -> Path:
        """Directory of the checkpoints of a training that is under way; it is there until the stage is finished."""
        return self.checkpoints / f"{stage}-{mark}"

    def renew_fingerprint(self, stage: str, earlier: str, mark: str) -> None:
        """A stage that stands under an earlier form of its fingerprint stands under that of today."""
        manifest = self.manifest()
        if manifest["stages"].get(stage, {}).get("fingerprint") == earlier:
            manifest["stages"][stage]["fingerprint"] = mark
            self._write_manifest(manifest)

    def forget_stage(self, stage: str) -> None:
        """Before it is trained anew: it and the results of this directory are no more."""
        manifest = self.manifest()
        known = [manifest["stages"].pop(name, None) for name in (stage, RESULTS)]
        if any(record is not None for record in known):
            self._write_manifest(manifest | {"state": RUNNING})
        for name in (stage, RESULTS):
            self._remove_files(name, manifest)

    # -- hand-over ----------------------------------------------------------------------------------------------
    def write_stage_inputs(self, fit: FittedDynamics) -> None:
        """Raises RunFailure where numbers are not finite."""
        try:
            arrays = fit.arrays()
        except ValueError as error:
            raise numerical_failure("lrrnn", "latents or loadings are not finite") from error
        write_npz(self.latents_file, arrays)

    def read_stage_inputs(self) -> FittedDynamics:
        from connector.lrrnn.handover import FittedDynamics

        if not self.latents_file.exists():
            raise UserError(
                f"{self.latents_file.name} from the lrrnn stage in {self.path}",
                "no such file",
                "add lrrnn to `stages`, or leave `stages=auto`",
            )
        arrays = read_npz(self.whole(self.latents_file))
        with refusing_damage(self.latents_file, f"the hand-over of the lrrnn stage in {self.latents_file}"):
            return FittedDynamics.of_arrays(arrays)

    def read_loadings_flow(self) -> Flow:
        from connector.connectivity.flow import Flow

        return Flow.load(self.whole(self.loadings_flow_file))

    def read_connectivity(self) -> ConnectivityDistribution:
        from connector.connectivity.distribution import ConnectivityDistribution

        return ConnectivityDistribution.load(self.whole(self.connectivity_file))

    def write_module(self, path: Path, save: Callable[[Path], None]) -> None:
        with atomic(path) as aside:
            save(aside)

    # -- results --------------------------------------------------------------------------------------------------
    def metrics(self) -> dict[str, float]:
        """What the run reached, of metrics.json; empty where it did not come so far."""
        file = self.path / "metrics.json"
        with refusing_damage(file, f"{file.name} with a number for each measure"):
            return {key: float(value) for key, value in read_json(file).items()}

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        finite = {k: float(v) for k, v in metrics.items() if v is not None and np.isfinite(float(v))}
        write_json(self.path / "metrics.json", finite)


def write_network(path: Path, network: Network, sigma: float, input_kind: str = "instant") -> None:
    """An npz with m, b, d, n, alpha, activation, sigma, input_kind (of :mod:`connector.data.input_filter`); (K, 0) and (K,)
    zeros where b, d are absent."""
    m = network.m
    b = m.new_zeros(len(m), 0) if network.b is None else network.b
    d = m.new_zeros(len(m)) if network.d is None else network.d
    about = {"alpha": network.alpha, "activation": network.activation, "sigma": sigma, "input_kind": input_kind}
    write_npz(path, {"m": m, "b": b, "d": d, "n": network.n, **about})


def load_network(path: str | Path) -> Network:
    """The Network saved as an npz with m, n and optionally b, d, alpha, activation."""
    import torch

    from connector.dynamics import Network
    from connector.lrrnn.handover import require_finite

    path = Path(path)
    arrays = read_npz(path)
    missing = [key for key in ("m", "n") if key not in arrays]
    if missing:
        raise UserError(f"the arrays m and n in {path}", f"no {missing[0]}")
    with refusing_damage(path, "an npz with the network's m (neurons, rank) and n, b, d to match"):
        b, d = arrays.get("b"), arrays.get("d")
        network = Network(
            m=torch.from_numpy(arrays["m"]),
            n=torch.from_numpy(arrays["n"]),
            b=torch.from_numpy(b) if b is not None and b.shape[1] else None,
            d=torch.from_numpy(d) if d is not None and np.any(d) else None,
            alpha=float(arrays.get("alpha", 0.1)),
            activation=str(arrays.get("activation", "tanh")),
        )
        require_finite(network.m, network.n, network.b, network.d)
        if not 0 < network.alpha <= 1 or network.m.numel() == 0:
            raise ValueError(f"{network.n_neurons} neurons of rank {network.rank}, alpha {network.alpha:g}")
    return network
