"""Which base density a flow should start from, and how long to train it: both by the likelihood of rows held out."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from connector.connectivity.flow import Flow
from connector.errors import UserError

_PARTS = 10  # of the cross-validation of the base
_ERRORS = 2.0  # standard errors by which another base has to be better
_EVALUATIONS = 16
_SMOOTHING = 0.98  # of the weights over steps; short, since the trial is short


class BaseChoice(NamedTuple):
    """Held-out log-likelihood of an elliptical Student-t over a normal: mean per row in nats, its standard error."""

    base: str
    advantage: float
    error: float


def choose_base(x: Tensor, seed: int = 0) -> BaseChoice:
    """ "student_t" for rows x (N, D) with heavy tails, else "normal".

    Cross-validated: each row is scored under a normal and under an elliptical Student-t fitted to nine tenths of the
    rows without it. Tails that a normal base cannot reach show in this ratio, whatever shape the flow gives the bulk.
    """
    _check(x)
    parts = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device) % _PARTS
    x, difference = x.double(), []
    for part in range(_PARTS):
        train, test = x[parts != part], x[parts == part]
        normal, student = (
            Flow(x.shape[1], hidden_width=1, hidden_layers=1, base=base).to(x).fit_scaler(train)
            for base in ("normal", "student_t")
        )
        difference.append(student.log_prob_of_base(test) - normal.log_prob_of_base(test))
    difference = torch.cat(difference).detach()
    advantage, error = float(difference.mean()), float(difference.std() / len(difference) ** 0.5)
    return BaseChoice("student_t" if advantage > _ERRORS * error else "normal", advantage, error)


class Stopping(NamedTuple):
    """Steps after which the held-out log-likelihood was highest (None: it still rose at the end), and its value."""

    steps: int | None
    log_likelihood: float


def best_stopping(
    x: Tensor,
    arguments: dict,
    *,
    steps: int = 480,
    learning_rate: float = 5e-3,
    paths: int = 1024,
    held_out: float = 0.2,
    seed: int = 0,
) -> Stopping:
    """When to stop: a trial flow is trained on part of the rows and the rest is scored on the way.

    Args:
        x: (N, D) rows; at least 10.
        arguments: of :class:`connector.connectivity.flow.Flow`.
        steps: of the trial; learning_rate: of Adam, constant; paths: at least so many in each step, by repeating
            rows, and at most so many rows.
        held_out: fraction of the rows that is scored.

    Raises:
        UserError: fewer than 10 rows.
    """
    _check(x)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    order = torch.randperm(len(x), generator=generator, device=x.device)
    n_held_out = max(2, round(held_out * len(x)))
    test, train = x[order[:n_held_out]], x[order[n_held_out:]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = Flow(**arguments).to(x.device).fit_scaler(train)
    averaged = copy.deepcopy(flow).requires_grad_(False)
    optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate)
    repeats, best = max(1, paths // len(train)), Stopping(0, -float("inf"))
    for step in range(1, steps + 1):
        few = torch.randperm(len(train), generator=generator, device=x.device)[:paths]
        loss = flow.loss(train[few].repeat(repeats, 1), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate = min(_SMOOTHING, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(averaged.parameters()), [p.detach() for p in flow.parameters()], 1 - rate)
        if step % max(1, steps // _EVALUATIONS) == 0:
            score = float(averaged.log_prob(test, method="midpoint", steps=8).mean())
            if score > best.log_likelihood:
                best = Stopping(step, score)
    # A maximum in the last quarter cannot be told from a likelihood that still rises.
    return best._replace(steps=None) if best.steps > 0.75 * steps else best


def _check(x: Tensor) -> None:
    if len(x) < 10:
        raise UserError("10 rows or more to hold some out", str(len(x)))
