"""Modules of the first release under their old names: for one release, importing one warns and gives what it held."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's own, without importing it: this module is imported first of all, with the package
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# Old name -> where its contents are now. Only modules that the documentation named.
HOMES = {
    "connector.data.recordings": ("data.readers", "data.npz", "data.clicks"),
    "connector.clusters": ("analysis.cell_types",),
    "connector.diagnosis": ("connectivity.diagnosis",),
    "connector.flow": ("connectivity.flow",),
    "connector.measures": ("analysis.distances", "analysis.fields", "analysis.attractors"),
    "connector.store": ("runs.saved", "runs.store"),
    "connector.tilt": ("connectivity.drive_matching",),
}


def lazily(package: str, *homes: str) -> Callable[[str], Any]:
    """A module's `__getattr__` that looks a name up in the modules ``homes``, imported when first asked."""

    def getattr_of(name: str) -> Any:
        if not name.startswith("__"):
            from importlib import import_module

            for home in homes:
                module = import_module(f"connector.{home}")
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattr_of


class _Moved:
    """A finder and loader, as :mod:`importlib` asks for them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in HOMES:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        import warnings

        homes = HOMES[module.__name__]
        now = " and ".join(f"connector.{home}" for home in homes)
        warnings.warn(f"{module.__name__} is now {now}", FutureWarning, stacklevel=2)
        module.__getattr__ = lazily(module.__name__, *homes)  # type: ignore[method-assign]


def install() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
