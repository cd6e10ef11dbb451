"""Generative nulls of spike counts: what slow drift and mean responses explain, without a latent state.

    drift                  expected count = drift of the neuron's rate across the session
    drift_psth             ... times the neuron's mean course within a trial
    drift_evidence_psth    ... times its course given the sign of the evidence

All are fitted on training trials. A course is the smoothed ratio of observed to expected spikes at each time, with
pseudo-spikes that pull it to 1 where there are few; the width of the smoothing and the number of pseudo-spikes, shared by
all neurons, are those that predict left-out training trials best. A model whose single trials are worth fitting beats them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from connector.analysis.spike_scores import bits_per_spike, poisson_log_likelihood, sign_conditions
from connector.lrrnn.spikes.baselines import fit_baseline, local_factor, session_drift, session_times
from connector.memo import remembered
from connector.numerics import gaussian_window
from connector.types import Recording

NULLS = ("drift", "drift_psth", "drift_evidence_psth")
# Tried for each course: standard deviation of the smoothing, in bins; pseudo-spikes of each neuron.
_WIDTHS = (1.5, 3.0, 6.0, 10.0, 16.0, 30.0)
_PSEUDO_SPIKES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_PARTS = 5  # of the training trials, each left out once


def _sums(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Sums over the trials of each group: values (N, time, K), groups (N,) -> (n_groups, time, K); -1 belongs to none."""
    member = torch.stack([(groups == g).double() for g in range(n_groups)])
    return torch.einsum("gn,ntk->gtk", member, values)


def _ratio(observed: Tensor, expected: Tensor, width: float, pseudo_spikes: float) -> Tensor:
    """(observed + p) / (expected + p), both smoothed along time (..., time, K) under a Gaussian window of peak 1."""
    window = gaussian_window(observed.shape[-2], width)
    return (window @ observed + pseudo_spikes) / (window @ expected + pseudo_spikes)


def fit_course(counts: Tensor, expected: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Factor on ``expected`` at each time for each group of trials, (n_groups, time, K).

    Args:
        counts, expected: (N, time, K) of the training trials, zero past each trial's end.
        groups: (N,) int64, 0 .. n_groups - 1; negative: belongs to none.
    """
    part = torch.arange(len(counts)) % _PARTS
    pairs = torch.where(groups < 0, -1, groups * _PARTS + part)
    y, e = (_sums(x, pairs, n_groups * _PARTS).unflatten(0, (n_groups, _PARTS)) for x in (counts, expected))
    y_all, e_all = y.sum(1), e.sum(1)

    def left_out(settings: tuple[float, float]) -> float:
        """Poisson log-likelihood of each part under the factor of the others: it needs the sums alone."""
        factor = _ratio(y_all[:, None] - y, e_all[:, None] - e, *settings)
        return float((torch.xlogy(y, factor) - e * factor).sum())

    return _ratio(y_all, e_all, *max(itertools.product(_WIDTHS, _PSEUDO_SPIKES), key=left_out))


@remembered
def null_counts(recording: Recording, train: Tensor, kind: str = "local", **options) -> dict[str, Tensor]:
    """Expected counts per bin of all trials under each null that can be had, name -> (trials, time, K) float64.

    Args:
        recording: spike counts.
        train: (n,) int64 numbers of the training trials.
        kind: "standard", or "local": each null is multiplied, trial by trial, by the factor of
            :func:`connector.lrrnn.spikes.baselines.local_factor` that its own prediction leaves in neighbouring training trials.
        options: ``n_drift``, ``local_sd_trials``, ``local_pseudo_count`` of :func:`connector.lrrnn.spikes.baselines.fit_baseline`.

    Returns:
        Without trial times there is no "drift" (the other nulls then start from the mean rate), and "local" is
        "standard"; without evidence, or evidence of one sign, no "drift_evidence_psth".
    """
    train = torch.as_tensor(train, dtype=torch.int64)
    mask = recording.mask[..., None]
    counts = recording.activity.double() * mask
    drift = session_drift(recording, train, options.get("n_drift", 10))
    mean = fit_baseline(recording, train, "constant").null_counts.double()
    rate = (mean.expand(recording.n_trials, -1) if drift is None else drift)[:, None].expand_as(counts) * mask
    course = fit_course(counts[train], rate[train], torch.zeros(len(train), dtype=torch.int64), 1)
    found = {} if drift is None else {"drift": rate}
    found["drift_psth"] = rate * course
    if recording.evidence is not None:
        groups = sign_conditions(recording.evidence)
        if all((groups[train] == g).any() for g in (0, 1)):
            course = fit_course(counts[train], found["drift_psth"][train], groups[train], 2)
            factor = torch.cat([course, torch.ones_like(course[:1])])[groups]  # the last one: no evidence
            found["drift_evidence_psth"] = found["drift_psth"] * factor
    times = session_times(recording)
    if kind == "local" and times is not None:
        sd, pseudo = options.get("local_sd_trials", 8.0), options.get("local_pseudo_count", 40.0)
        found = {
            name: expected * local_factor(counts.sum(1), expected.sum(1), train, sd, pseudo, times)[:, None]
            for name, expected in found.items()
        }
    return found


def null_bits(recording: Recording, test: Tensor, expected: Tensor, mean_counts: Tensor) -> float:
    """Bits per spike of ``expected`` (trials, time, K) on test trials over ``mean_counts`` (K,) of training trials."""
    counts, mask = recording.activity[test], recording.mask[test]
    return bits_per_spike(poisson_log_likelihood(expected[test], counts, mask), counts, mask, mean_counts)


def gains_over_nulls(
    log_likelihoods: Mapping[str, Tensor], recording: Recording, test: Tensor, nulls: Mapping[str, Tensor], mean: Tensor
) -> dict[str, float]:
    """What predictions of test trials gain over the best null, bits per spike, with standard errors.

    The null is the one of the mean rates and ``nulls`` that predicts these trials best, the same for all predictions. The
    standard error is that of the sum over trials of paired differences.

    Args:
        log_likelihoods: name -> (test,) nats of each trial, less log(y!).
        nulls: name -> expected counts of all trials; mean: (K,) mean counts per bin of training trials.

    Returns:
        NAME_gain and NAME_gain_error of each.
    """
    counts, mask = recording.activity[test], recording.mask[test]
    spikes = float((counts.double() * mask[..., None]).sum()) * math.log(2)
    of_nulls = [poisson_log_likelihood(x, counts, mask) for x in (mean, *(null[test] for null in nulls.values()))]
    best = max(of_nulls, key=lambda nats: float(nats.sum()))
    found = {}
    for name, nats in log_likelihoods.items():
        gain = (nats.double() - best) / spikes
        found[f"{name}_gain"] = float(gain.sum())
        if len(gain) > 1:
            found[f"{name}_gain_error"] = float(gain.std() * len(gain) ** 0.5)
    return found
