"""Options are composed, listed and refused sooner: files are read once, by libyaml, sources are not copied for each group,
and numpy is imported when it is used.

Imported for what it puts into Hydra, OmegaConf and the modules that Python knows.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf
from omegaconf.basecontainer import get_yaml_loader

from connector.runs.naming import conf_directory

_load, _get_mode, _get_group_options = OmegaConf.load, Hydra.get_mode, ConfigLoaderImpl.get_group_options
# Text of a file of options -> what it holds: Hydra reads the same files several times for a run, and for each job of a sweep.
_held: dict[str, Any] = {}


def _loader() -> type:
    """OmegaConf's rules of YAML, on libyaml's parser where PyYAML has it: a tenth of the time."""
    rules = get_yaml_loader()
    if not yaml.__with_libyaml__ or issubclass(rules, yaml.cyaml.CParser):  # the second: OmegaConf 2.4
        return rules

    class Loader(yaml.cyaml.CParser, rules):
        def __init__(self, stream: Any):
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return Loader


_Loader = _loader()


def _load_checked(file: Any) -> Any:
    """OmegaConf.load, by which Hydra reads each file of options, after a look at what its aliases come to."""
    if not (hasattr(file, "seekable") and file.seekable()):
        return _load(file)
    from connector.files import YAML_MOST, check_yaml

    text = file.read(YAML_MOST + 1)
    if text not in _held:
        check_yaml(text, str(getattr(file, "name", "a file of options")))
        held = yaml.load(text, Loader=_Loader)
        if not isinstance(held, dict | list | str | None):
            raise OSError(f"Invalid loaded object type: {type(held).__name__}")  # as OmegaConf says it
        _held[text] = {} if held is None else held
    return OmegaConf.create(_held[text])


def _sets_mode(arguments: list[str]) -> bool:
    """Whether ``hydra.mode`` may be typed, or stand in a file of options: false alarms only cost time."""
    elsewhere = ("--config", "-cp", "-cn", "-cd")  # files of one's own
    typed = " ".join(arguments)
    if any(a.startswith(elsewhere) for a in arguments) or re.search(r"hydra.*\bmode\b|searchpath", typed):
        return True
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in conf_directory().rglob("*.yaml"))
    return any(re.search(r"\bmode\b", text) and "hydra" in text for text in texts)


def _mode(hydra: Hydra, *given: Any, **more: Any) -> Any:
    """Hydra.get_mode, which composes all options to look at ``hydra.mode``: only where that may be set."""
    return _get_mode(hydra, *given, **more) if _sets_mode(sys.argv[1:]) else None


def _group_options(
    loader: ConfigLoaderImpl,
    group_name: str,
    results_filter: ObjectType | None = ObjectType.CONFIG,
    config_name: str | None = None,
    overrides: list[str] | None = None,
) -> list[str]:
    """ConfigLoaderImpl.get_group_options, which copies all sources for each group, in case overrides add to them."""
    if config_name is not None or overrides:
        return _get_group_options(loader, group_name, results_filter, config_name, overrides)
    return loader.repository.get_group_options(group_name, results_filter)


class _Late(ModuleType):
    """Stands for a package that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


OmegaConf.load = staticmethod(_load_checked)
Hydra.get_mode = _mode
ConfigLoaderImpl.get_group_options = _group_options
# Readers of files declare options beside their code with numpy; what a user mistypes is answered without.
sys.modules.setdefault("numpy", _Late("numpy"))
