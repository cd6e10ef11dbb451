"""How many latent dimensions? The smallest number with which held-out rates are predicted as well as with any.

Nothing here knows of the dynamics: the states of a sample are read from half of the neurons, and the other half is predicted
from them (:mod:`connector.analysis.readout_checks`). A dimension too many fits noise, and the error grows again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from connector.analysis.readout_checks import NEGLIGIBLE, Readout, ReadoutSamples, trial_error
from connector.data.folds import Fold
from connector.errors import UserError, require
from connector.types import Recording

MOST = 12
N_FOLDS = 3
_PATIENCE = 2  # ranks tried beyond the last that helps
_MORE_NEURONS = 4  # times the rank, for half of them to show the states


@dataclass(frozen=True)
class RankChoice:
    """Result of :func:`choose_rank`.

    Attributes:
        rank: the smallest whose held-out error exceeds the least by no more than one standard error of the difference, or by
            half a percent of the variance that the best explains.
        best: the rank of least error.
        errors: of ranks 1, 2, ...: held-out squared error over the rates' variance.
        excess, excess_errors: its difference from the least, sample by sample, and the standard error over trials.
    """

    rank: int
    best: int
    errors: tuple[float, ...]
    excess: tuple[float, ...]
    excess_errors: tuple[float, ...]


def choose_rank(
    recording: Recording,
    trials: Tensor,
    has_bias: bool = True,
    tried: Callable[[int], None] | None = None,
    most: int = MOST,
) -> RankChoice:
    """The rank by cross-validation with the one-standard-error rule, from rates.

    Args:
        recording: rates; its subsets of 100 neurons and 800 samples serve for each fit.
        trials: (n,) int64, those that may be looked at.
        has_bias: whether neurons have a bias.
        tried: called with each rank before it is fitted.
        most: rank at which to end, if the error has not ceased to fall before.

    Raises:
        UserError: spikes; fewer than three trials, eight neurons or two samples in a trial.
    """
    require(recording.kind == "rates", "rates, to choose a rank for", recording.kind, "give lrrnn.rank as a number")
    require(len(trials) >= N_FOLDS, f"{N_FOLDS} trials or more, to choose a rank by", len(trials), "give lrrnn.rank")
    most = min(most, recording.n_neurons // _MORE_NEURONS)
    require(
        most > 1, f"{2 * _MORE_NEURONS} neurons or more, to choose a rank by", recording.n_neurons, "give lrrnn.rank"
    )
    part = recording.trials(trials)
    mixed = torch.randperm(len(trials), generator=torch.Generator().manual_seed(0))
    samples = []
    for held in mixed.chunk(N_FOLDS):
        train = mixed[~torch.isin(mixed, held)]
        samples.append(ReadoutSamples(part, Fold(train.sort().values, held.sort().values, held.sort().values)))
    require(all(len(one.held) for one in samples), "two samples or more in a trial", "one")
    trial = torch.cat([one.trial for one in samples])
    variance = sum(one.variance for one in samples) / N_FOLDS
    errors: list[Tensor] = []
    while len(errors) < most:
        rank = len(errors) + 1
        if tried is not None:
            tried(rank)
        found = None
        with contextlib.suppress(torch.linalg.LinAlgError, UserError):
            readout = Readout(rank, recording.activation, has_bias)
            found = torch.cat([one.fit(readout).errors for one in samples])
        if found is None or not bool(found.isfinite().all()):
            break
        errors.append(found)
        if rank > _PATIENCE and _gained(errors) <= NEGLIGIBLE * (variance - _least(errors)):
            break
    require(bool(errors), "rates that one latent dimension can be fitted to", "none", "give lrrnn.rank")
    return _chosen(torch.stack(errors), trial, variance)


def _gained(errors: list[Tensor]) -> float:
    """What the last ranks have lowered the error by."""
    return _least(errors[:-_PATIENCE]) - _least(errors[-_PATIENCE:])


def _least(errors: list[Tensor]) -> float:
    return min(float(x.mean()) for x in errors)


def _chosen(errors: Tensor, trial: Tensor, variance: float) -> RankChoice:
    """By errors (ranks, S) of samples of some trials (S,)."""
    mean = errors.mean(1)
    best = int(mean.argmin())
    excess = errors - errors[best]
    doubt = [trial_error(x, trial) for x in excess]
    enough = NEGLIGIBLE * (variance - float(mean[best]))
    rank = next(i for i, x in enumerate(excess.mean(1).tolist()) if x <= max(doubt[i], enough))
    shares = [tuple((x / variance).tolist()) for x in (mean, excess.mean(1))]
    return RankChoice(rank + 1, best + 1, *shares, tuple(x / variance for x in doubt))
