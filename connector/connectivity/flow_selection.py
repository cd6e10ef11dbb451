"""Which base density a flow should start from, and how long to train it: both by the likelihood of rows held out."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from connector.connectivity.flow import Flow
from connector.connectivity.flow_stack import FlowStack
from connector.errors import UserError
from connector.numerics import warming_rate

_PARTS = 10  # of the cross-validation of the base
_ERRORS = 2.0  # standard errors by which another base, or a longer trial, has to be better
_STRETCHES = (480, 960)  # steps of a trial; the second stretch where the likelihood still rises in the first
_INTERVAL, _EARLY = 30, 240  # steps between two scores, up to so many; twice as many later
_FEWEST, _FALLEN = 120, 0.5  # steps of a trial that ends at a maximum, and the part of them up to which that is
_LAST_QUARTER = 0.75  # a maximum after it cannot be told from a likelihood that still rises
_PER_STEP = 1.25  # steps of a training whose learning rate decays, for each of a trial that was not long enough
_MOST_HELD_OUT = 500  # rows that are scored: more only cost time
# A training goes on from the trial, at this part of its length from no start, for this further part: with a rate that decays
# from the trial's, it ends with the likelihood of a training of full length. Shapes that took the trial's second stretch lost
# 0.005 nats a row by it (crescents); they are trained from no start. So are few rows, of which a trial that goes on learns the
# rows (five clusters in four dimensions: 240 rows lost 0.06 nats by it, 800 none).
_BEGUN, _LEFT, _MANY = 0.5, 0.5, 800
_SMOOTHING = 0.98  # of the weights over steps; short, since the trial is short
# Fewer steps of the integrator would call sharp densities better than they are.
_ACCURATE: dict[str, Any] = {"method": "midpoint", "steps": 16}


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


class Begun(NamedTuple):
    """A flow in training: the state of its velocity, and the scale (D, D) of the space in which it runs."""

    velocity: dict[str, Tensor]
    scale: Tensor


class Stopping(NamedTuple):
    """How long to train, and what rows held out say of the density that was found on the way.

    Attributes:
        steps: to train from no start, at least 1.
        log_likelihood: mean of the rows held out, where it was highest, in nats.
        over_normal, over_kernels: by how much that is above a normal density with the moments of the other rows, and
            above :func:`kernel_log_density`: the nulls of the density's shape, and of its having learned one.
        begun: the trial's flow part of the way there, from which a training goes on; None where it has no start.
    """

    steps: int
    log_likelihood: float
    over_normal: float
    over_kernels: float
    begun: Begun | None = None

    @property
    def steps_left(self) -> int:
        """To train: from ``begun``, where there is one."""
        return self.steps if self.begun is None else max(1, round(_LEFT * self.steps))


def best_stopping(
    x: Tensor,
    arguments: dict,
    *,
    most: int = 1200,
    learning_rate: float = 5e-3,
    paths: int = 1024,
    held_out: float = 0.2,
    seed: int = 0,
) -> Stopping:
    """When to stop: a trial flow is trained on part of the rows and the rest is scored on the way.

    The trial ends after 480 steps if the likelihood has passed its maximum, or rises no longer by more than twice the
    standard error of the gain, unless a kernel density is better by as much; else it goes on to 960. So long trainings are
    for shapes that need them, such as several rings, clusters or crescents, and that many rows show. Where neither a step
    is better than the untrained flow by a standard error, as with few rows of one Gaussian, nor a kernel density by two,
    there is one step of training: the flow stays close to its base density.

    Args:
        x: (N, D) rows; at least 10.
        arguments: of :class:`connector.connectivity.flow.Flow`.
        most: steps of the training, at most; the trial takes four fifths of it at most.
        learning_rate: of Adam, constant; paths: at least so many in each step, by repeating rows, and at most so many rows.
        held_out: fraction of the rows that is scored.

    Raises:
        UserError: fewer than 10 rows.
    """
    return Trial(x, arguments, most, learning_rate, paths, held_out, seed).run()


class Trial:
    """The trial of :func:`best_stopping`, which takes the same arguments: a flow, the rows that it is trained on and scored by,
    and its scores so far."""

    def __init__(
        self,
        x: Tensor,
        arguments: dict,
        most: int = 1200,
        learning_rate: float = 5e-3,
        paths: int = 1024,
        held_out: float = 0.2,
        seed: int = 0,
    ):
        _check(x)
        self.most, self.learning_rate, self.n_paths = most, learning_rate, paths
        self.generator = torch.Generator(device=x.device).manual_seed(seed)
        order = torch.randperm(len(x), generator=self.generator, device=x.device)
        n_held_out = min(_MOST_HELD_OUT, max(2, round(held_out * len(x))))
        self.test, self.train = x[order[:n_held_out]], x[order[n_held_out:]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow = Flow(**arguments).to(x.device).fit_scaler(self.train)
        self.kernels = kernel_log_density(self.train, self.test)
        most_of_trial = max(1, round(most / _PER_STEP))
        self.stretches = [min(steps, most_of_trial) for steps in _STRETCHES]
        self.scores: dict[int, Tensor] = {}
        self.passed: dict[int, dict[str, Tensor]] = {}

    @property
    def kind(self) -> tuple:
        """Trials whose kinds are equal can run as one."""
        of_base = ("base", "dof", "standardise")  # no part of the velocity
        shape = tuple(value for key, value in self.flow.arguments().items() if key not in of_base)
        return (shape, len(self.train), len(self.test), self.learning_rate, self.n_paths, str(self.train.device))

    def rows(self) -> Tensor:
        """Those of the next step."""
        few = torch.randperm(len(self.train), generator=self.generator, device=self.train.device)[: self.n_paths]
        return self.train[few].repeat(max(1, self.n_paths // len(self.train)), 1)

    def is_scored(self, step: int) -> bool:
        return step % (_INTERVAL if step <= _EARLY else 2 * _INTERVAL) == 0 or step in self.stretches

    def ends(self, step: int, score: Tensor, velocity: dict[str, Tensor]) -> bool:
        """Note the log-likelihoods of the rows held out and the state of the velocity; whether the trial is over.

        It also is where the likelihood has surely fallen from a maximum that kernels do not better.
        """
        self.scores[step], self.passed[step] = score, velocity
        if step in self.stretches:
            return step == self.stretches[-1] or not (self._missed() or _still_rises(self.scores))
        best = _best(self.scores)
        fallen = step >= _FEWEST and best <= _FALLEN * step and _surely_above(self.scores[best] - score, _ERRORS)
        return fallen and not self._missed()

    def _missed(self) -> bool:
        """Whether a kernel density is surely better than the best that was found."""
        return _surely_above(self.kernels - self.scores[_best(self.scores)], _ERRORS)

    def stopping(self) -> Stopping:
        scores, step, best = self.scores, max(self.scores), _best(self.scores)
        learned = _surely_above(scores[best] - scores[0], 1.0)
        passed = best <= _LAST_QUARTER * step if learned else not self._missed()
        best = best if learned else 0  # of densities within a standard error the simplest
        plain = Flow(self.flow.dim, hidden_width=1, hidden_layers=1).to(self.train).fit_scaler(self.train)
        steps = max(1, best) if passed else min(self.most, round(_PER_STEP * step))
        goes_on = step <= self.stretches[0] and len(self.train) >= _MANY
        begun = min(self.passed, key=lambda at: abs(at - _BEGUN * steps))
        return Stopping(
            steps,
            float(scores[best].mean()),
            float((scores[best] - plain.log_prob_of_base(self.test)).mean()),
            float((scores[best] - self.kernels).mean()),
            Begun(self.passed[begun], self.flow.scale) if begun and goes_on else None,
        )

    def run(self) -> Stopping:
        flow, averaged = self.flow, copy.deepcopy(self.flow).requires_grad_(False)
        optimizer = torch.optim.Adam(flow.parameters(), lr=self.learning_rate, fused=True)
        self.ends(0, averaged.log_prob(self.test, **_ACCURATE), _copied(flow.velocity))
        for step in itertools.count(1):
            loss = flow.loss(self.rows(), generator=self.generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch._foreach_lerp_(
                list(averaged.parameters()), [p.detach() for p in flow.parameters()], 1 - warming_rate(_SMOOTHING, step)
            )
            if self.is_scored(step):
                score = averaged.log_prob(self.test, **_ACCURATE)
                if self.ends(step, score, _copied(flow.velocity)):
                    break
        return self.stopping()


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def run_as_one(trials: Sequence[Trial]) -> list[Stopping]:
    """What trials of one :attr:`Trial.kind` say, up to rounding, from one batched computation."""
    stack = FlowStack([trial.flow for trial in trials], trials[0].learning_rate)
    for step in itertools.count():
        here = [trials[member] for member in stack.members]
        if step:
            drawn = [trial.flow.draw_paths(trial.rows(), generator=trial.generator) for trial in here]
            places, times, _, targets = zip(*drawn)
            stack.step(stack.errors(torch.stack(places), torch.stack(times), None, torch.stack(targets)))
            stack.average(warming_rate(_SMOOTHING, step))
        if not any(trial.is_scored(step) for trial in here):
            continue
        scores = stack.log_prob(torch.stack([trial.test for trial in here]), **_ACCURATE)
        # One whose stretches differ, by ``most``, keeps to its own steps.
        left = [
            row
            for row, trial in enumerate(here)
            if not (trial.is_scored(step) and trial.ends(step, scores[row], stack.weights_of(row)))
        ]
        if not left:
            return [trial.stopping() for trial in trials]
        if len(left) < len(here):
            stack.keep(left)
    raise AssertionError


def _still_rises(scores: dict[int, Tensor]) -> bool:
    """Whether the log-likelihoods of rows, by step, are highest near the end, and surely higher than half way there."""
    # Without the untrained flow: a shape far from its base may first become less likely, and more likely after a while.
    best, last = _best({at: score for at, score in scores.items() if at}), max(scores)
    half_way = min(scores, key=lambda at: abs(at - last / 2))
    return best > _LAST_QUARTER * last and _surely_above(scores[best] - scores[half_way], _ERRORS)


def _best(scores: dict[int, Tensor]) -> int:
    return max(scores, key=lambda at: float(scores[at].mean()))


def _surely_above(gain: Tensor, errors: float) -> bool:
    """Whether the mean of gains (N,) is above zero by so many of its standard errors."""
    return float(gain.mean()) > errors * float(gain.std()) / len(gain) ** 0.5


def kernel_log_density(train: Tensor, test: Tensor, most: int = 500) -> Tensor:
    """Log density (N,) at rows test (N, D) of normal kernels about rows train (K, D), in nats per unit volume.

    The kernels have the covariance of ``train`` up to a width, the one at which rows of ``train`` (at most ``most``) are most
    likely under the kernels of all others (leave-one-out likelihood, Habbema et al. 1974).
    """
    scaler = Flow(train.shape[1], hidden_width=1, hidden_layers=1).to(train).fit_scaler(train)
    known, asked = (scaler.standardised(x).double() for x in (train, test))
    count, dim = known.shape
    own = torch.cdist(known[:most], known).square()
    own.fill_diagonal_(math.inf)

    def density(squares: Tensor, width: Tensor, kernels: int) -> Tensor:
        logs = torch.logsumexp(-0.5 * squares / width**2, dim=1)
        return logs - math.log(kernels) - dim * (width.log() + 0.5 * math.log(2 * math.pi))

    widths = torch.logspace(-2, 0.2, 23, dtype=known.dtype, device=known.device)
    width = max(widths, key=lambda w: float(density(own, w, count - 1).mean()))
    log_scale = torch.linalg.slogdet(scaler.scale.double()).logabsdet
    return density(torch.cdist(asked, known).square(), width, count) - log_scale


def _check(x: Tensor) -> None:
    if len(x) < 10:
        raise UserError("10 rows or more to hold some out", str(len(x)))
