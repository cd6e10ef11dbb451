"""Which connectivity does a neural computation require, and which is guesswork?

from connector import load_run
run = load_run("runs/quadstable/default")
network = run.connectivity.sample(n_neurons=5000)
"""

from __future__ import annotations

from connector import moved

TYPE_CHECKING = False  # typing's own, without importing it: a command is to be ready for Ctrl-C soon
if TYPE_CHECKING:
    from typing import Any

    from connector.connectivity.distribution import ConnectivityDistribution
    from connector.connectivity.flow import Flow
    from connector.dynamics import Network
    from connector.errors import UserError
    from connector.lrrnn.module import LowRankRNN
    from connector.runs.saved import load_run
    from connector.types import Latents, Loadings, Recording

__version__ = "0.1.0"

__all__ = [
    "ConnectivityDistribution",
    "Flow",
    "Latents",
    "Loadings",
    "LowRankRNN",
    "Network",
    "Recording",
    "UserError",
    "load_run",
]

# Imported when they are asked for: the command line answers --help without waiting for torch.
_HOMES = {
    "ConnectivityDistribution": "connectivity.distribution",
    "Network": "dynamics",
    "UserError": "errors",
    "Flow": "connectivity.flow",
    "LowRankRNN": "lrrnn.module",
    "load_run": "runs.saved",
    "Latents": "types",
    "Loadings": "types",
    "Recording": "types",
}

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"connector.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
