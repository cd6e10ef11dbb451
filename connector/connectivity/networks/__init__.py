"""Networks that a flow's velocity is learned by: name -> class, in the module of this folder that has the name.

A further one is a module here, with a subclass of :class:`connector.connectivity.networks.velocity.Velocity`, and a line
below; ``connectivity.flow.network`` then chooses it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

NETWORKS = {
    "mlp": "MLP",
    "residual": "Residual",
}


def network_class(name: str) -> Any:
    """The class of the network called ``name``; raises KeyError for another name."""
    return getattr(import_module(f"{__name__}.{name}"), NETWORKS[name])
