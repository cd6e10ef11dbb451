"""The posterior of a spike model's dynamics, from the counts themselves: run, judged, and handed over.

:class:`connector.lrrnn.spikes.sampler.PathSampler` starts from components of the smoothed counts and draws on training trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from connector.data.folds import Fold
from connector.lrrnn.field_posterior import ENOUGH_DRAWS, posterior_of_draws
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.latents import read_states
from connector.lrrnn.observation import Observation
from connector.lrrnn.spikes.baselines import Baseline, poisson_regression
from connector.lrrnn.spikes.paths import Counts, climbed
from connector.lrrnn.spikes.sampler import Draws, MakeBasis, PathSampler
from connector.lrrnn.spikes.start import smoothed
from connector.numerics import even_rows, least_squares
from connector.report.cautions import LEAST_SEEN
from connector.types import Latents, Loadings, Recording

BURN = 0.4  # share of the sweeps that are not kept
_LONGER = 2
_PLENTY, _LOOK = (
    2,
    22,
)  # times ENOUGH_DRAWS, after which the longer sampling ends, and its kept sweeps between two looks
_FIRST_LOOK = 15  # sweeps that are kept, after which those go on that may show all dimensions
_KEPT_DRAWS = 200
# Of the training trials in which paths are drawn, bins times (neurons + 150), the cost of a bin that neurons do not share. With
# more, time grows faster than bands narrow.
MOST_WORK, _OF_A_BIN = 15_000_000, 150
_SMOOTHING, _LEAST_VARIANCE = 5.0, 0.02  # bins; of counts, so that silent neurons do not stand out
_PENALTY = 0.1  # precision of the prior of the first loadings
_STEPS = 10  # of Gauss-Newton, to the paths of trials that were not sampled
_JUDGED_STATES, _JUDGED_AXES = 200, 5


@dataclass(frozen=True)
class Mixing:
    """How well the draws stand for the posterior.

    Attributes:
        ess: effective sample size of the worst of the field's leading axes.
        halves: largest difference of the means over the first and second half, in posterior sds.
        accepted: share of trials' paths accepted in a sweep.
        seen: variance of the mean paths over that of drawn ones, along the direction where it is least. What the counts
            show is near 1; a direction of which they show nothing has no mean course.
    """

    ess: float
    halves: float
    accepted: float
    seen: float


@dataclass(frozen=True)
class Start:
    """Where sampling begins: a fit, or a guess.

    Attributes:
        z: (trials, time, R) latents of all trials. loadings: of the recorded neurons, d at the mean baseline.
        scale: expected count where softplus is 1. offset: (trials, time, K) baseline about its mean, or None.
    """

    z: Tensor
    loadings: Loadings
    scale: float
    offset: Tensor | None

    @staticmethod
    def of_counts(recording: Recording, fold: Fold, rank: int, baseline: Baseline) -> Start:
        """Principal components of smoothed counts, and loadings by Poisson regression on them.

        Of the baseline only what drifts from trial to trial: a course that all trials share may be the dynamics' own.
        """
        mask, train = recording.mask, torch.as_tensor(fold.train, dtype=torch.int64)
        drift = baseline.drift.double()
        expected = baseline.scale * softplus(drift)[:, None]
        evident = (recording.activity.double() - expected) / (expected + _LEAST_VARIANCE).sqrt()
        smooth, _ = smoothed(evident * mask[..., None], mask.double(), _SMOOTHING)
        rows = smooth[train][mask[train]]
        centre = rows.mean(0)
        axes = torch.linalg.eigh((rows - centre).T @ (rows - centre))[1][:, -rank:].flip(1)
        z = (smooth - centre) @ axes / ((rows - centre) @ axes).std(0).clamp_min(1e-9) * mask[..., None]
        drift = drift - drift[train].mean(0)
        inside = mask[train]
        parts = [z[train], *([] if recording.inputs is None else [recording.inputs[train].double()])]
        design = torch.cat([*parts, torch.ones(*inside.shape, 1, dtype=torch.float64)], 2)[inside]
        counts = recording.activity[train][inside]

        def regressed(drift: Tensor) -> Tensor:
            offset = drift[train][:, None].expand(-1, mask.shape[1], -1)[inside]
            fit = poisson_regression(design, counts, offset=offset, penalty=_PENALTY, scale=baseline.scale)
            return fit.coefficients

        rows, varies = regressed(drift), bool(drift.abs().max() > 1e-6)
        if varies:
            drift = _beside(drift, rows)
            rows = regressed(drift)
        n_inputs = 0 if recording.inputs is None else recording.inputs.shape[2]
        loadings = Loadings.unstack(rows, rank, n_inputs, has_bias=True)
        offset = (drift[:, None] * mask[..., None]).float() if varies else None
        return Start(z, loadings, baseline.scale, offset)


def _beside(drift: Tensor, loadings: Tensor) -> Tensor:
    """Drift (trials, K) without what could as well be a shift of the states or inputs; loadings (K, P), d last.

    Taken from the counts of some trials, the drift holds m.z averaged over these: without this the states of each trial
    would be seen less their mean over its neighbours.
    """
    d = loadings[:, -1]
    columns, expected = loadings[:, :-1], softplus(d).clamp_min(_LEAST_VARIANCE)
    weight = torch.sigmoid(d).square() / expected  # information of a count about its potential
    weighted = columns * weight[:, None]
    return drift - drift @ weighted @ torch.linalg.solve(weighted.T @ columns, columns.T)


def sample_posterior(
    start: Start,
    recording: Recording,
    fold: Fold,
    make_basis: MakeBasis,
    *,
    sweeps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[FittedDynamics, Mixing]:
    """Latents of all trials, loadings with their covariance, and the posterior of the drive; float64.

    Latents of training trials are posterior means; of the others the most likely paths under the posterior means of all
    else. Of training trials with more than :data:`MOST_WORK` allows some are sampled, evenly over their order, and the rest
    count among the others. In their gauge the sampled trials' drawn paths have mean zero and unit covariance, turned towards the start's.

    Args:
        make_basis: of the field, with the prior of its coefficients.
        sweeps: of the sampler, of which the first :data:`BURN` are not kept. Where fewer than :data:`ENOUGH_DRAWS` of the
            kept ones are independent they count as burn-in, and up to :data:`_LONGER` times as many follow: no more once
            as many are kept as before, and :data:`_PLENTY` times :data:`ENOUGH_DRAWS` are independent.
        progress: called with the number of each sweep, and how many there are to be.
    """
    train = sampled_trials(recording, fold)
    inputs = None if start.loadings.b is None else recording.inputs

    def counts_of(trials: Tensor) -> Counts:
        of = (None if x is None else x[trials] for x in (inputs, start.offset))
        return Counts.of(recording.activity[trials], recording.mask[trials], *of)

    loadings = start.loadings.stack().double()
    sampler = PathSampler(counts_of(train), make_basis, loadings, math.log(start.scale), start.z[train].double(), seed)
    burn = int(BURN * sweeps)
    draws = sampler.run(sweeps, burn, lambda i: progress(i, sweeps), lambda draws: _hopeless(sampler, draws))
    mixing = judge(sampler, draws)
    if mixing.ess < ENOUGH_DRAWS <= len(draws.q) and mixing.seen >= LEAST_SEEN:
        more = _LONGER * sweeps
        least = sweeps - burn
        draws = sampler.run(
            more, burn, lambda i: progress(sweeps + i, sweeps + more), lambda draws: _plenty(sampler, draws, least)
        )
        mixing = judge(sampler, draws)
    paths = _all_paths(sampler, draws, start.z.double(), train, recording.mask, counts_of)
    return _packed(sampler, draws, paths, (recording, start.offset), fold, mixing), mixing


def sampled_trials(recording: Recording, fold: Fold) -> Tensor:
    """(n,) the training trials that are sampled."""
    train = torch.as_tensor(fold.train, dtype=torch.int64)
    share = MOST_WORK / (float(recording.lengths[train].sum()) * (recording.n_neurons + _OF_A_BIN))
    return train if share >= 1 else train[even_rows(len(train), max(2, int(share * len(train))))]


def _all_paths(
    sampler: PathSampler, draws: Draws, guide: Tensor, train: Tensor, mask: Tensor, counts_of: Callable
) -> Tensor:
    """Posterior means of the training trials, most likely paths of the others; (trials, time, R)."""
    inside = mask[train]
    design = torch.cat([guide[train][inside], torch.ones(int(inside.sum()), 1, dtype=torch.float64)], 1)
    move = least_squares(design, draws.paths[inside])
    paths = (guide @ move[:-1] + move[-1]) * mask[..., None]
    others = torch.ones(len(guide), dtype=torch.bool)
    others[train] = False
    others = others.nonzero()[:, 0]
    if len(others):
        typical = replace(
            sampler.p,
            loadings=torch.stack(draws.loadings).mean(0),
            log_scale=float(torch.tensor(draws.log_scale).mean()),
            c=torch.stack(draws.c).mean(0),
            q=torch.stack(draws.q).mean(0),
        )
        found = climbed(counts_of(others), sampler.field, typical, paths[others], _STEPS)
        paths[others] = found * mask[others][..., None]
    paths[train] = draws.paths
    return paths


def _packed(
    sampler: PathSampler, draws: Draws, paths: Tensor, seen: tuple[Recording, Tensor | None], fold: Fold, mixing: Mixing
) -> FittedDynamics:
    """``seen``: the recording, and the baseline about its mean."""
    recording, offset = seen
    drawn, c, rank = torch.stack(draws.loadings), torch.stack(draws.c), sampler.rank
    centred = drawn - drawn.mean(0)
    spread = torch.einsum("dki,dkj->kij", centred, centred) / max(1, len(drawn) - 1)
    posterior = posterior_of_draws(
        recording.activation,
        sampler.field,
        sampler.prior.gauge,
        tuple(torch.stack(x) for x in (draws.mean, draws.root, draws.prior)),
        c[even_rows(len(c), _KEPT_DRAWS)],
        torch.stack(draws.q),
        mixing.ess,
    )
    loadings = Loadings.unstack(drawn.mean(0), rank, sampler.n_inputs, has_bias=True)
    latents, scale = (
        posterior.along(Latents.of(recording, paths)),
        math.exp(sum(draws.log_scale) / len(draws.log_scale)),
    )
    readings = read_states(
        recording.activity / scale,
        latents.mask,
        paths,
        loadings,
        Observation.of("softplus", "poisson", scale),
        inputs=None if loadings.b is None else recording.inputs,
        offset=offset,
    )
    return FittedDynamics(latents, loadings, fold, recording.activation, spread, readings, field=posterior)


def judge(sampler: PathSampler, draws: Draws) -> Mixing:
    """Effective sample sizes and agreement of halves, over the kept sweeps."""
    rows = sampler.counts.rows(sampler.z)
    pick = even_rows(len(rows), _JUDGED_STATES)
    basis = sampler.field(rows[pick], None if sampler.counts.u is None else sampler.counts.u[pick])
    fields, means = (
        torch.stack([(basis @ c.view(-1, sampler.rank)).reshape(-1) for c in x]) for x in (draws.c, draws.mean)
    )
    axes = torch.linalg.svd(fields - fields.mean(0), full_matrices=False)[2][:_JUDGED_AXES]
    sizes, halves = [], []
    for axis in axes:
        total, series = (fields @ axis).var(), means @ axis
        # what is drawn independently about the means adds to the variance and not to the error of the whole
        sizes.append(float(total / series.var().clamp_min(1e-300 + 1e-9 * total)) * effective_size(series))
        halves.append(_halves(series) * float((series.var() / total).sqrt()))
    return Mixing(
        min(sizes), max(halves), sum(draws.accepted) / len(draws.accepted), _seen(sampler, draws, draws.paths)
    )


def _hopeless(sampler: PathSampler, draws: Draws) -> bool:
    """Whether the first sweeps that are kept show that the counts say too little of some dimension: nothing will come of them."""
    return len(draws.q) == _FIRST_LOOK and _seen(sampler, draws, draws.paths / _FIRST_LOOK) < LEAST_SEEN / 2


def _plenty(sampler: PathSampler, draws: Draws, least: int) -> bool:
    """Whether so many sweeps as ``least`` or more, which are kept, need no others."""
    kept = len(draws.q)
    return kept >= least and kept % _LOOK == 0 and judge(sampler, sampler.finished(draws)).ess >= _PLENTY * ENOUGH_DRAWS


def _seen(sampler: PathSampler, draws: Draws, paths: Tensor) -> float:
    """:attr:`Mixing.seen` by the mean ``paths``; drawn ones have unit covariance, of which a mean over n keeps 1 / n where nothing
    is seen."""
    mean_paths = sampler.counts.rows(paths)
    least = float(torch.linalg.eigvalsh(torch.cov(mean_paths.T).reshape(sampler.rank, sampler.rank))[0])
    left = 1 / max(2.0, sum(draws.accepted))
    return (least - left) / (1 - left)


def effective_size(x: Tensor) -> float:
    """Number of independent draws that would give the mean of the series x (n,) its precision (Geyer 1992)."""
    n = len(x)
    centred = x - x.mean()
    variance = float(centred.square().mean())
    if n < 4 or variance <= 0:
        return float(n)
    total = 1.0
    for lag in range(1, n - 2, 2):
        pair = [float((centred[k:] * centred[: n - k]).sum()) / n / variance for k in (lag, lag + 1)]
        if sum(pair) <= 0:
            break
        total += 2 * sum(pair)
    return n / max(total, 1e-3)


def _halves(x: Tensor) -> float:
    half = len(x) // 2
    return float((x[:half].mean() - x[half:].mean()).abs() / x.std().clamp_min(1e-300))
