"""Measures of models of spike counts: bits per spike, PSTHs and their prediction, choice from the latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from connector.errors import UserError
from connector.lrrnn.spikes.baselines import Baseline
from connector.lrrnn.spikes.state_space import SpikeStateSpace
from connector.numerics import gaussian_window
from connector.types import Recording, TrialBatch, last_states


def poisson_log_likelihood(expected: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """Poisson log-likelihood of each trial less the sum of log(y!), (trials,) float64.

    Args:
        expected: expected counts per bin, broadcastable to (trials, time, K); positive where counts are.
        counts: (trials, time, K).
        mask: (trials, time) True where a sample was recorded.
    """
    counts = counts.double()
    expected = expected.double().expand_as(counts)
    nats = torch.xlogy(counts, expected) - expected
    return torch.where(mask[..., None], nats, 0.0).sum((1, 2))


def bits_per_spike(log_likelihood: Tensor, counts: Tensor, mask: Tensor, null_counts: Tensor) -> float:
    """(log L_model - log L_null) / (ln 2 x number of spikes).

    Args:
        log_likelihood: of the trials under the model, in nats, less the sum of log(y!); any shape, it is summed.
        counts: (trials, time, K); mask: (trials, time).
        null_counts: (K,) mean count per bin of each neuron over the *training* trials: the null model.

    Raises:
        UserError: if there is no spike.
    """
    spikes = float((counts.double() * mask[..., None]).sum())
    if spikes == 0:
        raise UserError("at least one spike in the trials scored", "none")
    null = poisson_log_likelihood(null_counts, counts, mask)
    return float((log_likelihood.double().sum() - null.sum()) / (math.log(2) * spikes))


def smooth_causal(x: Tensor, valid: Tensor, sd_bins: float) -> Tensor:
    """Causal Gaussian smoothing along time, normalised at edges and gaps.

    Args:
        x: (conditions, time, K).
        valid: (conditions, time) False where there is no value.
        sd_bins: sd of the half Gaussian, in bins: sample t averages samples s <= t with weight exp(-(t-s)^2 / 2 sd^2).

    Returns:
        (conditions, time, K), zero where no sample up to t is valid.
    """
    kernel = gaussian_window(x.shape[1], sd_bins).tril()
    weight = valid.double() @ kernel.T
    total = torch.einsum("ts,csk->ctk", kernel, torch.where(valid[..., None], x.double(), 0.0))
    return torch.where(weight[..., None] > 0, total / weight.clamp_min(1e-12)[..., None], 0.0)


class ResponseSums(NamedTuple):
    """Counts of trials summed by condition: what PSTHs of several folds' test trials are pooled from, by addition.

    Attributes:
        counts: (C, time, K) float64, counts per bin, observed or expected, summed over the trials that still last.
        trials: (C, time) float64, how many those are.
    """

    counts: Tensor
    trials: Tensor

    @classmethod
    def of(cls, counts: Tensor, mask: Tensor, conditions: Tensor, n_conditions: int | None = None) -> ResponseSums:
        """
        Args:
            counts: (trials, time, K) counts per bin, observed or expected; mask: (trials, time).
            conditions: (trials,) int64, 0, 1, ...; negative = left out.
            n_conditions: default: the largest condition + 1.
        """
        n_conditions = int(conditions.max()) + 1 if n_conditions is None else n_conditions
        member = torch.stack([(conditions == c).double() for c in range(n_conditions)])
        total = torch.einsum("cn,ntk->ctk", member, torch.where(mask[..., None], counts.double(), 0.0))
        return cls(total, member @ mask.double())

    def psths(self, smooth_sd_bins: float = 10.0) -> Tensor:
        """(C, time, K): mean counts per bin, smoothed by a causal Gaussian of this sd in bins; 0 with no trial so far."""
        mean = self.counts / self.trials.clamp_min(1)[..., None]
        return smooth_causal(mean, self.trials > 0, smooth_sd_bins)


def psths(
    counts: Tensor, mask: Tensor, conditions: Tensor, *, smooth_sd_bins: float = 10.0, n_conditions: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Peri-stimulus time histograms: mean over the trials of a condition that still last, smoothed causally.

    Args:
        counts: (trials, time, K) counts per bin, observed or expected.
        mask: (trials, time).
        conditions: (trials,) int64, 0, 1, ...; negative = left out.
        smooth_sd_bins: sd of the causal Gaussian, in bins.
        n_conditions: default: the largest condition + 1.

    Returns:
        psth (C, time, K) counts per bin, number of trials (C, time), number of trials valid: (C, time) bool.
    """
    sums = ResponseSums.of(counts, mask, conditions, n_conditions)
    return sums.psths(smooth_sd_bins), sums.trials, sums.trials > 0


def psth_r2(
    observed: Tensor,
    predicted: Tensor,
    mask: Tensor,
    conditions: Tensor,
    mean_counts: Tensor,
    *,
    smooth_sd_bins: float = 10.0,
) -> tuple[float, Tensor]:
    """How well PSTHs are predicted: :func:`psth_r2_of_sums` of these trials.

    Args:
        observed: (trials, time, K) counts; predicted: expected counts of the same trials.
        mask: (trials, time).
        conditions: (trials,) int64, 0, 1; negative = left out.
        mean_counts: (K,) mean count per bin of each neuron over the *training* trials: the null model.

    Returns:
        median over neurons that vary, R^2 of each neuron (K,), NaN where the observed PSTH does not vary.

    Raises:
        UserError: where no neuron varies.
    """
    n_conditions = int(conditions.max()) + 1
    mean = mean_counts.expand_as(observed)
    sums = (ResponseSums.of(counts, mask, conditions, n_conditions) for counts in (observed, predicted, mean))
    return psth_r2_of_sums(*sums, smooth_sd_bins=smooth_sd_bins)


def psth_r2_of_sums(
    observed: ResponseSums, predicted: ResponseSums, mean: ResponseSums, *, smooth_sd_bins: float = 10.0
) -> tuple[float, Tensor]:
    """Per neuron R^2 = 1 - SS_res / SS_tot of its PSTHs over time and conditions, and the median over neurons.

        SS_res = sum over c, t of (P_c(t) - Q_c(t))^2,    SS_tot = sum over c, t of (P_c(t) - N_c(t))^2

    P is the observed, Q the predicted PSTH, N that of the neuron's mean count over training trials (a constant; the mean of
    P would be an oracle), all smoothed by the same causal Gaussian (0.1 s: 10 bins of 10 ms), normalised at the edges. Bins
    without a trial in a condition do not count. Sums of several folds' test trials are added before, so that P has less
    noise, which no model can predict.

    Returns and raises: as :func:`psth_r2`.
    """
    valid = observed.trials > 0
    truth, guess, null = (sums.psths(smooth_sd_bins)[valid] for sums in (observed, predicted, mean))
    total = ((truth - null) ** 2).sum(0)
    varies = ((truth - truth.mean(0)) ** 2).sum(0) > 0
    r2 = torch.where(varies, 1 - ((truth - guess) ** 2).sum(0) / total, torch.nan)
    if torch.isnan(r2).all():
        raise UserError("a neuron whose PSTH varies", "none", "check that the trials scored hold spikes")
    return float(torch.nanquantile(r2, 0.5)), r2


def sign_conditions(value: Tensor) -> Tensor:
    """0 for negative, 1 for positive, -1 (left out) for zero and NaN: evidence or click difference to conditions."""
    return torch.where(value > 0, 1, torch.where(value < 0, 0, -1))


def choice_conditions(choices: Tensor) -> Tensor:
    """0 left, 1 right, -1 (left out) for NaN."""
    return torch.where(choices == 1, 1, torch.where(choices == 0, 0, -1))


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve, exactly: P(score of a positive > score of a negative) + half P(equal).

    Args:
        scores: (N,). labels: (N,) 0, 1, or NaN (left out).

    Raises:
        UserError: where a class is missing.
    """
    from sklearn.metrics import roc_auc_score  # scikit-learn's import takes a second: of those alone who use it

    _require_both(labels, "trials")
    known = (labels == 0) | (labels == 1)
    return float(roc_auc_score(labels[known].numpy(), scores[known].double().nan_to_num().numpy()))


def _require_both(choices: Tensor, trials: str) -> None:
    left, right = int((choices == 0).sum()), int((choices == 1).sum())
    if left == 0 or right == 0:
        raise UserError(f"{trials} of both choices", f"{left} left, {right} right")


def fit_choice_axis(states: Tensor, choices: Tensor, penalty: float = 1e-3) -> tuple[Tensor, float]:
    """Weights (R,) and offset of a logistic regression of the choice on the states, standardised.

    Args:
        states: (N, R). choices: (N,) 0, 1 or NaN (left out).
        penalty: precision, per trial, of a normal prior on the standardised weights.

    Raises:
        UserError: where a choice is missing.
    """
    from sklearn.linear_model import LogisticRegression

    _require_both(choices, "training trials")
    known = (choices == 0) | (choices == 1)
    x, y = states[known].double(), choices[known].numpy()
    if not torch.isfinite(x).all():  # of a model that has diverged
        return torch.full((x.shape[1],), torch.nan, dtype=torch.float64), math.nan
    centre, size = x.mean(0), x.std(0).clamp_min(1e-9)
    model = LogisticRegression(C=1 / (penalty * len(x)), solver="newton-cholesky", tol=1e-12)
    model.fit(((x - centre) / size).numpy(), y)
    axis = torch.from_numpy(model.coef_[0]) / size
    return axis, float(model.intercept_[0] - centre @ axis)


def choice_log_odds(train_states: Tensor, train_choices: Tensor, states: Tensor) -> Tensor:
    """Log odds of a right choice, (N,), at states (N, R), by a logistic regression fitted on training trials.

    Whatever the gauge of the states, so that log odds of several folds can be pooled.
    """
    axis, offset = fit_choice_axis(train_states, train_choices)
    return states.double() @ axis + offset


def groups_of_neurons(n_neurons: int, n_groups: int = 5, seed: int = 0) -> list[Tensor]:
    """The neurons in random groups of equal size (up to one), each (size,) int64; fewer groups than asked for of so few."""
    order = torch.randperm(n_neurons, generator=torch.Generator().manual_seed(seed))
    return list(order.tensor_split(min(n_groups, n_neurons)))


class FromOthers(NamedTuple):
    """Expected counts (B, time, K) of each neuron given the inputs and the spikes of *other* neurons, see :func:`predicted_from_others`.

    Attributes:
        co_smoothed: averaged over paths drawn given the others' spikes; NaN of a single neuron.
        rollout, averaged: of rollouts from where the others say that a trial starts, noise-free and averaged over noisy ones.
    """

    co_smoothed: Tensor
    rollout: Tensor
    averaged: Tensor


@torch.no_grad()
def predicted_from_others(
    model: SpikeStateSpace,
    batch: TrialBatch,
    *,
    n_groups: int = 5,
    n_paths: int = 16,
    n_rollouts: int = 0,
    seed: int = 0,
) -> FromOthers:
    """Each neuron predicted by the others.

    A fifth of the neurons (a random group of ``n_groups``) is hidden and predicted; then the next group is. Nothing is trained anew:
    a hidden neuron's loadings are those fitted on training trials, where it was seen, and its baseline is of training trials too,
    so of the trials predicted here its own spikes tell nothing. A rollout that started from what all spikes of a trial say would
    partly predict the spikes that it was read from; where a model's rollouts start from its prior, no spikes count in them. A
    single neuron has rollouts from where its own spikes say.

    Args:
        n_paths, n_rollouts: numbers that counts are averaged over; 0 rollouts: ``averaged`` is the noise-free one.
    """
    n_neurons, found = batch.activity.shape[2], [torch.full_like(batch.activity, math.nan) for _ in FromOthers._fields]
    alone = model.rollout_start == "prior" or n_neurons == 1
    if alone:
        found[1:] = (model.rollout_counts(batch, n, torch.Generator().manual_seed(seed)) for n in (0, n_rollouts))
    for hidden in groups_of_neurons(n_neurons, n_groups, seed) if n_neurons > 1 else ():
        predicted = model.hidden_counts(batch, hidden, n_paths, None if alone else n_rollouts, seed)
        for of_all, of_hidden in zip(found, predicted):
            of_all[..., hidden] = of_hidden
    return FromOthers(*found)


def _both(choices: Tensor | None, index: Tensor) -> bool:
    return choices is not None and bool((choices[index] == 0).any() and (choices[index] == 1).any())


class SpikeScores(NamedTuple):
    """Measures of a spike model on test trials, and what they are pooled from over folds.

    Attributes:
        measures: name -> value, see :func:`score_spike_model`.
        expected: (test, time, K) expected counts of the noise-averaged rollout.
        choice_log_odds: (test,) log odds of a right choice at the most likely z(T), or None without choices.
        log_likelihoods: measure in bits per spike -> (test,) nats of each trial behind it.
    """

    measures: dict[str, float]
    expected: Tensor
    choice_log_odds: Tensor | None
    log_likelihoods: Mapping[str, Tensor] = {}


@torch.no_grad()
def score_spike_model(
    model: SpikeStateSpace,
    recording: Recording,
    train: Tensor,
    test: Tensor,
    baseline: Baseline,
    *,
    n_samples: int = 32,
    seed: int = 0,
) -> SpikeScores:
    """All scores of a fitted model on test trials; what is not defined (no choices, no evidence) is left out.

    Args:
        train: trials the null rates and the choice axis come from; test: trials scored.
        baseline: of the recording; the scores hold for it and are comparable on equal baselines only.
        n_samples: samples of the importance-weighted bound, and of the noise-averaged rollout.

    Returns:
        measures bits_per_spike (importance-weighted bound on the marginal likelihood), bits_per_spike_prior (noise-free
        rollout), co_smoothing (bits per spike of neurons predicted from the others, both by
        :func:`predicted_from_others`; not with a single neuron), psth_r2_evidence, psth_r2_choice (noise-averaged rollout, by the sign of the evidence and by
        choice), psth_r2_evidence_noise_free, choice_auc (z(T) of the most likely path), choice_auc_prior (rollout z(T)),
        click_difference_auc. PSTH R^2 of one fold's trials is limited by the noise of their own PSTHs: to compare
        models, pool the test trials of all folds (``experiments/folds.py``).
    """
    batch = TrialBatch.of(recording, test, baseline.argument)
    generator = torch.Generator().manual_seed(seed)
    from_others = predicted_from_others(model, batch, n_rollouts=n_samples, seed=seed)
    nats = {
        "bits_per_spike": model.marginal_log_likelihood(batch, n_samples, generator),
        "bits_per_spike_prior": poisson_log_likelihood(from_others.rollout, batch.activity, batch.mask),
    }
    if recording.n_neurons > 1:
        nats["co_smoothing"] = poisson_log_likelihood(from_others.co_smoothed, batch.activity, batch.mask)
    scores = {name: bits_per_spike(x, batch.activity, batch.mask, baseline.null_counts) for name, x in nats.items()}
    smooth = smoothing_of(recording)
    for name, conditions in response_conditions(recording, test).items():
        scores[f"psth_r2_{name}"] = psth_r2(
            batch.activity, from_others.averaged, batch.mask, conditions, baseline.null_counts, **smooth
        )[0]
        if name == "evidence":
            scores["psth_r2_evidence_noise_free"] = psth_r2(
                batch.activity, from_others.rollout, batch.mask, conditions, baseline.null_counts, **smooth
            )[0]
    log_odds = None
    if _both(recording.choices, train) and _both(recording.choices, test):
        fitted, choices = TrialBatch.of(recording, train, baseline.argument), recording.choices
        for name, rollout in (("choice_auc_prior", True), ("choice_auc", False)):
            ends = [last_states(model.infer(b, rollout), b.mask.sum(1)) for b in (fitted, batch)]
            log_odds = choice_log_odds(ends[0], choices[train], ends[1])
            scores[name] = auc(log_odds, choices[test])
        if recording.click_difference is not None:
            scores["click_difference_auc"] = auc(recording.click_difference[test], choices[test])
    return SpikeScores(scores, from_others.averaged, log_odds, nats)


def smoothing_of(recording: Recording) -> dict[str, float]:
    """The sd of the causal Gaussian of PSTHs, in bins of the recording: 0.1 s, or 10 bins where they have no width."""
    return {"smooth_sd_bins": 10.0 if recording.bin_s is None else 0.1 / recording.bin_s}


def response_conditions(recording: Recording, trials: Tensor) -> dict[str, Tensor]:
    """Conditions of PSTHs, "evidence" (its sign) and "choice" -> (trials,), where both sides occur in these trials."""
    found = {}
    if recording.evidence is not None:
        found["evidence"] = sign_conditions(recording.evidence[trials])
    if recording.choices is not None:
        found["choice"] = choice_conditions(recording.choices[trials])
    return {name: c for name, c in found.items() if (c == 0).any() and (c == 1).any()}
