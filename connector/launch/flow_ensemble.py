"""Many flows of one shape trained as one batched computation.

The velocities of all flows are evaluated by one call, while each keeps its own data, random numbers, length of training and
weights: it ends where it would have ended alone, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from connector.connectivity.flow_stack import FlowStack
from connector.data.modules import InMemoryBatches
from connector.numerics import warming_rate
from connector.stages.flows import FlowJob, FlowModule
from connector.stages.training import validation_interval


@dataclass
class Trained:
    """What became of one flow: its best validation loss, and the rows of its learning curves."""

    val_loss: float = math.inf
    rows: list[dict[str, float]] = field(default_factory=list)


def kind(job: FlowJob) -> tuple:
    """Jobs whose kinds are equal can train as one."""
    module, data, trainer = job.module, job.data, job.context.options.trainer
    of_base = ("base", "dof", "standardise")  # no part of the velocity
    shape = tuple(value for key, value in module.flow.arguments().items() if key not in of_base)
    sizes = (len(data.train[0]), data.batch_size, data.epoch_size, module.paths)
    training = (module.learning_rate, module.weight_decay, module.cosine, job.ema_decay, trainer.accelerator)
    # A module with another way to draw its batches, as the published third step has, trains alone, and so does one in a
    # precision that Lightning sees to.
    alone = None if type(module) is FlowModule and trainer.precision == "32-true" else id(job)
    return (job.stage, job.keep, shape, sizes, training, alone)


def train_as_one(jobs: Sequence[FlowJob], progress: Callable[[int], None] | None = None) -> list[Trained]:
    """Train the flows of jobs of one :func:`kind`; their modules hold their weights afterwards.

    Args:
        progress: told of each epoch, from 1, that has ended.
    """
    wanted = jobs[0].context.options.trainer.accelerator
    on_gpu = wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    modules, epochs, stage = [job.module.to(device) for job in jobs], [job.epochs for job in jobs], jobs[0].stage
    decay, keep_best = jobs[0].ema_decay, jobs[0].keep == "best"
    batches, held_out = [], []
    for data in (job.data for job in jobs):
        train, validation = (tuple(x.to(device) for x in part) for part in (data.train, data.validation))
        batches.append(InMemoryBatches(train, data.batch_size, seed=data.seed, epoch_size=data.epoch_size))
        held_out.append(InMemoryBatches(validation, data.eval_batch_size, shuffle=False))
    found, best = [Trained() for _ in jobs], {}
    stack = FlowStack([module.flow for module in modules], modules[0].learning_rate, modules[0].weight_decay)
    steps = len(batches[0])
    for epoch in range(max(epochs)):
        remaining = [row for row, e in enumerate(stack.members) if epochs[e] > epoch]
        if len(remaining) < len(stack.members):
            stack.keep(remaining)
        for e in stack.members:
            batches[e].set_epoch(epoch)
        losses = torch.zeros(len(stack.members), device=device)
        for number, parts in enumerate(zip(*(batches[e] for e in stack.members))):
            step = epoch * steps + number
            drawn = [modules[e].flow.draw_paths(*modules[e].drawn(p, step, True)) for e, p in zip(stack.members, parts)]
            places, times, contexts, targets = (None if x[0] is None else torch.stack(x) for x in zip(*drawn))
            errors = stack.errors(places, times, contexts, targets)
            rates = torch.tensor([_rate(step / (epochs[e] * steps), modules[e].cosine) for e in stack.members])
            stack.step(errors, rates)
            stack.average(warming_rate(decay, step) if decay and step else 0.0)
            losses += errors.detach()
        for row, (e, loss) in enumerate(zip(stack.members, losses.tolist())):
            record = {"epoch": epoch + 1, "step": (epoch + 1) * steps}
            record[f"{stage}/train_loss"] = loss / steps
            if (epoch + 1) % validation_interval(epochs[e]) == 0:
                weights = stack.averages_of(row)
                value = _validation_loss(modules[e], held_out[e], weights)
                record[f"{stage}/val_loss"] = value
                if value < found[e].val_loss:
                    found[e].val_loss = value
                    if keep_best:
                        best[e] = weights
            if epoch + 1 == epochs[e] and not (keep_best and e in best):
                best[e] = stack.averages_of(row)
            found[e].rows.append(record)
        if progress is not None:
            progress(epoch + 1)
    for e, module in enumerate(modules):
        module.flow.velocity.load_state_dict(best[e])
        module.cpu()
    return found


def _rate(progress: float, cosine: bool) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1.0


@torch.no_grad()
def _validation_loss(module: FlowModule, batches: InMemoryBatches, weights: dict[str, Tensor]) -> float:
    """Mean over the validation rows, as Lightning takes it over batches; the module's own weights are at hand for this."""
    module.flow.velocity.load_state_dict(weights)
    total, n_rows = 0.0, 0
    for number, batch in enumerate(batches):
        loss, _ = module.losses(batch, -1 - number, False)
        total, n_rows = total + float(loss) * len(batch[0]), n_rows + len(batch[0])
    return total / n_rows
