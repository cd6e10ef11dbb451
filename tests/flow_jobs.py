"""One training of a small flow, as a run makes it."""

from copy import deepcopy
from functools import cache

import torch
from commands import CONF
from hydra import compose, initialize_config_dir
from rich.console import Console

from connector.data.modules import TensorDataModule
from connector.launch.wandb_run import NoRun
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.runs.store import RunStore
from connector.stages.flows import FlowJob, FlowModule
from connector.stages.training import StageContext

register_resolvers()


@cache
def default_options():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("train", ["trainer.progress=false", "experiment_name=test"]))


def job(directory, seed, epochs, keep="last", context_dim=0, ema=0.9, base="normal", width=8):
    options = deepcopy(default_options())
    options.seed, options.connectivity.ema_decay = seed, ema
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(90, 2, generator=generator) + torch.randn(1, 2, generator=generator)
    given = (rows.flip(1),) if context_dim else ()
    torch.manual_seed(seed)
    flow = {"dim": 2, "context_dim": context_dim, "hidden_width": width, "base": base}
    module = FlowModule("outputs", flow, seed, noise_std=0.1 * context_dim, paths=64)
    module.flow.fit_scaler(rows, *given)
    data = TensorDataModule((rows, *given), (rows[:20], *(x[:20] for x in given)), 32, seed)
    context = StageContext(options, RunStore(directory), NoRun(), Console(quiet=True), lambda line: None)
    return FlowJob("outputs", context, "mark", module, data, epochs, keep, lambda: None)
