"""Objects of the user's own, named by ``_target_``: callbacks, loggers, arguments of Lightning's Trainer.

They are imported when a job runs, from the installed packages or the working directory, and made anew for each stage.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from connector.declarations import STAGES_OF_A_RUN
from connector.errors import UserError
from connector.runs.options import Options, OtherLogger
from connector.stages.training import Additions


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _located(node: Any, name: str) -> Any:
    """The class or function that a node's ``_target_`` names; raises UserError where it cannot be imported."""
    if os.getcwd() not in sys.path:  # of a command that is installed it is not there
        sys.path.append(os.getcwd())
    try:
        with _silent(logging.getLogger("hydra._internal.utils")):  # prints what is said below
            return get_object(str(node["_target_"]))
    except Exception as error:  # whatever the user's module raises when it is imported
        reason = str(error.__cause__ or error).splitlines()[0]
        expected = f"{name}._target_ naming a class or function that can be imported"
        raise UserError(expected, f"{node['_target_']} ({reason})", "write it as MODULE.CLASS") from error


def _made(node: Any, name: str) -> Any:
    """What a node of the configuration names, or the node itself where it names nothing.

    Raises:
        UserError: a target that cannot be imported, or not be called with what stands beside it.
    """
    if isinstance(node, Mapping) and "_target_" in node:
        _located(node, name)
    try:
        return instantiate(OmegaConf.create({"node": node}), _convert_="all")["node"]
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        target = f"{name}._target_={node['_target_']}" if isinstance(node, Mapping) and "_target_" in node else name
        raise UserError(f"{target} that can be made of what stands there", reason) from error


def additions(options: Options) -> Additions:
    """stage -> callbacks of the user's own, and the arguments under ``trainer.extra``.

    Raises:
        UserError: one that cannot be made, or that is no callback of Lightning.
    """

    def of_stage(stage: str) -> tuple[list[Callback], dict[str, Any]]:
        own = []
        for name, node in options.callbacks.items():
            if not isinstance(node, dict) or "_target_" not in node:
                raise UserError(f"callbacks.{name}._target_=MODULE.CLASS", repr(node))
            chosen = node.get("stages", STAGES_OF_A_RUN)
            if stage in ([chosen] if isinstance(chosen, str) else chosen):
                callback = _made({k: v for k, v in node.items() if k != "stages"}, f"callbacks.{name}")
                if not isinstance(callback, Callback):
                    raise UserError(f"a callback of Lightning as callbacks.{name}", type(callback).__name__)
                own.append(callback)
        return own, {name: _made(value, f"trainer.extra.{name}") for name, value in options.trainer.extra.items()}

    for stage in STAGES_OF_A_RUN:  # before anything is read
        of_stage(stage)
    if isinstance(options.logger, OtherLogger):
        _located(options.logger.arguments, "logger")
    return of_stage


class UsersLogger:
    """A logger of Lightning's kind in the place of the W&B run: curves of all stages, the options, the final metrics.

    Args:
        options: ``_target_`` and arguments; a ``save_dir`` that is not given is ``directory``.
        config: the whole configuration, logged as hyperparameters.
    """

    def __init__(self, options: OtherLogger, directory: Path, config: Mapping[str, Any]):
        node = dict(options.arguments)
        if "save_dir" in inspect.signature(_located(node, "logger")).parameters:
            node.setdefault("save_dir", str(directory))
        self.logger = _made(node, "logger")
        if not isinstance(self.logger, Logger):
            raise UserError("a logger of Lightning as logger._target_", type(self.logger).__name__)
        self.logger.log_hyperparams(dict(config))
        # Modules have their own, which differ between the stages under one name.
        self.logger.log_hyperparams = lambda *_, **__: None

    def for_stage(self, stage: str) -> Logger:
        return self.logger

    def log_results(self, metrics: Mapping[str, float], *_: Any, **__: Any) -> None:
        self.logger.log_metrics(dict(metrics))

    def log_data(self, *_: Any, **__: Any) -> None:
        """Nothing, as :meth:`log_artifact`: the run directory holds them."""

    log_artifact = log_end = log_data

    def finish(self, exit_code: int) -> None:
        self.logger.finalize("failed" if exit_code else "success")
