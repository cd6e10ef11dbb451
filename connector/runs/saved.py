"""A finished run read back: its options, measures, latents, connectivity and network."""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from connector.connectivity.distribution import ConnectivityDistribution
from connector.data.input_filter import filtered_inputs
from connector.dynamics import Network
from connector.errors import UserError
from connector.files import check_yaml, require_file, unreadable
from connector.lrrnn.handover import FittedDynamics
from connector.runs.options import STAGES
from connector.runs.store import RunStore, load_network
from connector.types import Latents, Loadings


def _read_config(path: Path) -> DictConfig:
    require_file(path)
    try:
        check_yaml(path.read_text(encoding="utf-8"), path.name)
        config = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise unreadable(path, "the options of a run, in YAML", error) from error
    if not isinstance(config, DictConfig):
        raise UserError(f"the options of a run in {path}", "YAML without keys")
    return config


class Run:
    """A finished run, read back: ``config``, ``metrics``, ``latents``, ``loadings``, ``connectivity``, ``network``."""

    def __init__(self, path: str | Path):
        if not isinstance(path, (str, os.PathLike)):
            raise UserError(
                "the path of a run directory", type(path).__name__, "`python train.py` says where the run lies"
            )
        if not str(path):
            raise UserError("the path of a run directory", "an empty one", "`python train.py` says where the run lies")
        self.path = Path(path)
        self.store = RunStore(self.path)
        there = False
        with contextlib.suppress(OSError, ValueError):  # too long a name, a null character
            there = (self.path / "config.yaml").exists()
        if not there:
            raise UserError(
                f"a run directory with config.yaml in {self.path}",
                "a directory without it" if os.path.isdir(self.path) else "no such directory",
                "make a run with `python train.py`; it says where the run lies",
            )
        self.config = _read_config(self.path / "config.yaml")

    def __repr__(self) -> str:
        finished = self.store.stages()
        stages = [stage for stage in STAGES if stage in finished]
        done = f"stages done: {', '.join(stages)}" if stages else "no stage done"
        return f"Run({self.path}: {self.config.get('experiment_name', '?')}, {done})"

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The numbers of metrics.json by their keys; docs/metrics.md explains each."""
        return self.store.metrics()

    @cached_property
    def stage_inputs(self) -> FittedDynamics:
        """Everything that the low-rank RNN handed over: latents, loadings with their uncertainty, the trials of each part."""
        return self.store.read_stage_inputs()

    @property
    def latents(self) -> Latents:
        """Latent states of all trials: ``z`` (trials, time, R), ``lengths``, ``inputs``."""
        return self.stage_inputs.latents

    def network_inputs(self, u: Tensor) -> Tensor:
        """Convert inputs u (trials, time, U), given as in the recording, into those that the run's networks take
        (:func:`connector.data.input_filter.filtered_inputs`). ``latents.inputs`` are the recording's, converted."""
        return filtered_inputs(u, self.latents.alpha, self.latents.input_kind)

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
        return inputs.network

    @cached_property
    def connectivity(self) -> ConnectivityDistribution:
        """The learned distribution of connectivity; raises UserError where the stages that learn it did not run."""
        if not self.store.connectivity_file.exists():
            raise UserError(
                f"a learned connectivity distribution in {self.path}",
                "none",
                "run the stages loadings and outputs (stages=auto runs all)",
            )
        distribution, seed = self.store.read_connectivity(), self.config.get("seed", 0)
        if not isinstance(seed, int):
            raise UserError(f"a whole number as the seed in {self.path / 'config.yaml'}", repr(seed))
        distribution.run_seed = seed
        return distribution

    @cached_property
    def network(self) -> Network:
        """The sampled network saved in network.npz."""
        return load_network(self.store.whole(self.path / "network.npz"))


def load_run(path: str | Path) -> Run:
    """Read a run directory back.

    Raises:
        UserError: the directory is not a run directory.
    """
    return Run(path)
