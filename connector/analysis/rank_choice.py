"""How many latent dimensions? The smallest number with which held-out activity is predicted as well as with any.

Nothing here knows of the dynamics: the states of a sample are read from half of the neurons, and the other half is predicted
from them: rates by :mod:`connector.analysis.readout_checks`, counts of a time constant by
:mod:`connector.lrrnn.spikes.factors`. A dimension too many fits noise, and the error grows again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from connector.analysis.readout_checks import NEGLIGIBLE, Gain, Readout, ReadoutSamples, trial_error
from connector.data.folds import Fold
from connector.errors import UserError, require
from connector.lrrnn.spikes.baselines import Baseline
from connector.lrrnn.spikes.factors import CountBlocks, fit_factors, held_out_loss
from connector.memo import remembered
from connector.types import Recording

MOST = 12
N_FOLDS = 3
N_BLOCKS = 1500  # of spikes, to which each fit is made
_PATIENCE = 2  # ranks tried beyond the last that helps
_MORE_NEURONS = 4  # times the rank, for half of them to show the states


@dataclass(frozen=True)
class RankChoice:
    """Result of :func:`choose_rank`.

    Attributes:
        rank: the smallest whose held-out error exceeds the least by no more than one standard error of the difference, or by
            half a percent of what the best explains.
        best: the rank of least error.
        errors: of ranks 1, 2, ...: held-out squared error over the rates' variance; of spikes what the latent dimensions add,
            in bits per spike, taken negative.
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
    baseline: Baseline | None = None,
) -> RankChoice:
    """The rank by cross-validation with the one-standard-error rule.

    Args:
        recording: its subsets of 100 neurons and 800 samples of rates, or 1500 blocks of spikes, serve for each fit.
        trials: (n,) int64, those that may be looked at.
        has_bias: whether neurons have a bias; of spikes they always have.
        tried: called with each rank before it is fitted.
        most: rank at which to end, if the error has not ceased to fall before.
        baseline: of spikes.

    Raises:
        UserError: fewer than three trials, eight neurons or two samples in a trial; activity that one dimension cannot be
            fitted to.
    """
    require(len(trials) >= N_FOLDS, f"{N_FOLDS} trials or more, to choose a rank by", len(trials), "give lrrnn.rank")
    most = min(most, recording.n_neurons // _MORE_NEURONS)
    require(
        most > 1, f"{2 * _MORE_NEURONS} neurons or more, to choose a rank by", recording.n_neurons, "give lrrnn.rank"
    )
    folds = _of_rates(recording, trials, has_bias) if baseline is None else _of_counts(recording, trials, baseline)
    errors: list[Tensor] = []
    while len(errors) < most:
        rank = len(errors) + 1
        if tried is not None:
            tried(rank)
        found = None
        with contextlib.suppress(torch.linalg.LinAlgError, UserError):
            found = folds.errors(rank)
        if found is None or not bool(found.isfinite().all()):
            break
        errors.append(found)
        if rank > _PATIENCE and _gained(errors) <= NEGLIGIBLE * (folds.without - _least(errors)):
            break
    require(bool(errors), f"{recording.kind} that one latent dimension can be fitted to", "none", "give lrrnn.rank")
    return _chosen(torch.stack(errors), folds.trial, folds.without, folds.unit)


class _Folds(NamedTuple):
    """Held-out errors (S,) by rank, the trial of each, what the error is without latent states, and in which unit to give it."""

    errors: Callable[[int], Tensor]
    trial: Tensor
    without: float
    unit: float


def _parts(trials: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Training and held-out trials of each fold."""
    mixed = trials[torch.randperm(len(trials), generator=torch.Generator().manual_seed(0))]
    for held in mixed.chunk(N_FOLDS):
        yield mixed[~torch.isin(mixed, held)].sort().values, held.sort().values


def _of_rates(recording: Recording, trials: Tensor, has_bias: bool) -> _Folds:
    samples = [ReadoutSamples(recording, Fold(train, held, held)) for train, held in _parts(trials)]
    require(all(len(one.held) for one in samples), "two samples or more in a trial", "one")
    variance = sum(one.variance for one in samples) / N_FOLDS

    def errors(rank: int) -> Tensor:
        readout = Readout(rank, recording.activation, has_bias)
        return torch.cat([one.fit(readout).errors for one in samples])

    return _Folds(errors, torch.cat([one.trial for one in samples]), variance, variance)


@remembered
def rank_checks(recording: Recording, fold: Fold, rank: int, baseline: Baseline) -> dict[str, float]:
    """Whether one more latent dimension helps to foretell spikes of held-out neurons in held-out trials, and the last one does: the
    metrics ``lrrnn/check_rank`` and ``lrrnn/check_fewer``, shares of what the latent dimensions add to the log-likelihood, and the
    causes ``rank`` and ``fewer``. Nothing where neurons or blocks are few, or nothing is added.

    Args:
        rank: of the fit that is checked. baseline: of the spikes.
    """
    if recording.n_neurons < _MORE_NEURONS * (rank + 1):
        return {}
    blocks = CountBlocks.of(recording, baseline, block_of(recording))
    train, held = (blocks.take(x, N_BLOCKS) for x in (fold.train, torch.cat([fold.validation, fold.test])))
    n_trials = len(held.trial.unique())
    if n_trials < N_FOLDS:
        return {}
    try:
        ranks = {r: held_out_loss(held, fit_factors(train, r)) for r in {0, rank - 1, rank, rank + 1}}
    except torch.linalg.LinAlgError:
        return {}
    added = float((ranks[0] - ranks[rank]).mean())
    if not 0 < added < math.inf:
        return {}

    def gain(lower: int) -> Gain:
        better = (ranks[lower] - ranks[lower + 1]) / added
        return Gain(float(better.mean()), trial_error(better, held.trial), n_trials)

    more, last = gain(rank), gain(rank - 1)
    found = {"lrrnn/check_rank": more.share, "lrrnn/check_rank_error": more.error}
    if more.clear:
        found["lrrnn/cause_rank"] = 1.0
    if rank > 1:
        found |= {"lrrnn/check_fewer": last.share, "lrrnn/check_fewer_error": last.error}
        if last.idle:
            found["lrrnn/cause_fewer"] = 1.0
    return found


def _of_counts(recording: Recording, trials: Tensor, baseline: Baseline) -> _Folds:
    blocks = CountBlocks.of(recording, baseline, block_of(recording))
    parts = [(blocks.take(train, N_BLOCKS), blocks.take(held, N_BLOCKS // 2)) for train, held in _parts(trials)]
    require(all(len(held.trial) for _, held in parts), "trials as long as the time constant", "shorter ones")

    def errors(rank: int) -> Tensor:
        return torch.cat([held_out_loss(held, fit_factors(train, rank)) for train, held in parts])

    bits = math.log(2) * torch.cat([held.counts for _, held in parts]).sum(1).mean()
    without = errors(0)
    return _Folds(lambda rank: errors(rank) - without, torch.cat([held.trial for _, held in parts]), 0.0, float(bits))


def block_of(recording: Recording) -> int:
    """Bins of a time constant, or of half a trial where that is shorter."""
    return max(1, min(round(1 / recording.alpha), int(recording.lengths.median()) // 2))


def _gained(errors: list[Tensor]) -> float:
    """What the last ranks have lowered the error by."""
    return _least(errors[:-_PATIENCE]) - _least(errors[-_PATIENCE:])


def _least(errors: list[Tensor]) -> float:
    return min(float(x.mean()) for x in errors)


def _chosen(errors: Tensor, trial: Tensor, without: float, unit: float | None = None) -> RankChoice:
    """By errors (ranks, S) of samples of some trials (S,), told in a unit, by default that ``without`` latent states."""
    mean = errors.mean(1)
    best = int(mean.argmin())
    excess = errors - errors[best]
    doubt = [trial_error(x, trial) for x in excess]
    enough = NEGLIGIBLE * (without - float(mean[best]))
    unit = without if unit is None else unit
    rank = next(i for i, x in enumerate(excess.mean(1).tolist()) if x <= max(doubt[i], enough))
    told = [tuple((x / unit).tolist()) for x in (mean, excess.mean(1))]
    return RankChoice(rank + 1, best + 1, *told, tuple(x / unit for x in doubt))
