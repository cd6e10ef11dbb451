"""Measures of models of spike counts: bits per spike, PSTHs and their prediction, choice from the latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from connector.baselines import Baseline, fit_baseline
from connector.errors import UserError
from connector.spikes import SpikeModel, last_states, trial_batch
from connector.types import Recording


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
    time = torch.arange(x.shape[1], dtype=torch.float64)
    lag = time[:, None] - time
    kernel = torch.where(lag >= 0, torch.exp(-0.5 * (lag / sd_bins) ** 2), 0.0)
    weight = valid.double() @ kernel.T
    total = torch.einsum("ts,csk->ctk", kernel, torch.where(valid[..., None], x.double(), 0.0))
    return torch.where(weight[..., None] > 0, total / weight.clamp_min(1e-12)[..., None], 0.0)


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
    n_conditions = int(conditions.max()) + 1 if n_conditions is None else n_conditions
    member = torch.stack([(conditions == c).double() for c in range(n_conditions)])
    trials = member @ mask.double()
    valid = trials > 0
    total = torch.einsum("cn,ntk->ctk", member, torch.where(mask[..., None], counts.double(), 0.0))
    mean = total / trials.clamp_min(1)[..., None]
    return smooth_causal(mean, valid, smooth_sd_bins), trials, valid


def psth_r2(
    observed: Tensor,
    predicted: Tensor,
    mask: Tensor,
    conditions: Tensor,
    *,
    smooth_sd_bins: float = 10.0,
) -> tuple[float, Tensor]:
    """How well PSTHs are predicted: per neuron 1 - SS_res / SS_tot over time and conditions, and the median.

    Both PSTHs are smoothed by the same causal Gaussian (0.1 s: 10 bins of 10 ms), normalised at the edges; SS_tot is
    about the mean pooled over time and conditions. Bins without a trial in a condition do not count. Pool the test
    trials of all folds before calling, where there are several.

    Args:
        observed: (trials, time, K) counts; predicted: expected counts of the same trials.
        mask: (trials, time).
        conditions: (trials,) int64, 0, 1; negative = left out.

    Returns:
        median over neurons that vary, R^2 of each neuron (K,), NaN where the observed PSTH does not vary.

    Raises:
        UserError: where no neuron varies.
    """
    options = {"smooth_sd_bins": smooth_sd_bins, "n_conditions": int(conditions.max()) + 1}
    truth, _, valid = psths(observed, mask, conditions, **options)
    guess, _, _ = psths(predicted, mask, conditions, **options)
    truth, guess = truth[valid], guess[valid]
    total = ((truth - truth.mean(0)) ** 2).sum(0)
    r2 = torch.where(total > 0, 1 - ((truth - guess) ** 2).sum(0) / total, torch.nan)
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
    scores = scores.double()
    positive, negative = scores[labels == 1], scores[labels == 0]
    if len(positive) == 0 or len(negative) == 0:
        raise UserError("trials of both choices", f"{len(negative)} left, {len(positive)} right")
    difference = positive[:, None] - negative
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def fit_choice_axis(states: Tensor, choices: Tensor, penalty: float = 1e-3) -> Tensor:
    """Weights (R,) of a logistic regression of the choice on standardised states, mapped back; Newton's method.

    Args:
        states: (N, R). choices: (N,) 0, 1 or NaN (left out).
        penalty: precision, per trial, of a normal prior on the standardised weights.
    """
    known = (choices == 0) | (choices == 1)
    x, y = states[known].double(), choices[known].double()
    if len(y) == 0 or y.min() == y.max():
        raise UserError("training trials of both choices", f"{int((y == 0).sum())} left, {int((y == 1).sum())} right")
    centre, size = x.mean(0), x.std(0).clamp_min(1e-9)
    design = torch.cat([(x - centre) / size, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    precision = torch.full((design.shape[1],), penalty * len(x), dtype=torch.float64)
    precision[-1] = 1e-6
    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(design @ weights)
        gradient = design.T @ (p - y) + precision * weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + torch.diag(precision)
        move = torch.linalg.solve(curvature, gradient)
        weights = weights - move * torch.clamp(2.0 / move.norm().clamp_min(1e-12), max=1.0)
        if move.norm() < 1e-9:
            break
    return weights[:-1] / size


def choice_auc(train_states: Tensor, train_choices: Tensor, test_states: Tensor, test_choices: Tensor) -> float:
    """AUC of the choice read from the final latent state z(T) of test trials along an axis fitted on training trials.

    Args:
        train_states, test_states: (N, R). Choices: (N,) 0 left, 1 right, NaN left out.
    """
    axis = fit_choice_axis(train_states, train_choices)
    return auc(test_states.double() @ axis, test_choices)


def _both(choices: Tensor | None, index: Tensor) -> bool:
    return choices is not None and bool((choices[index] == 0).any() and (choices[index] == 1).any())


@torch.no_grad()
def score_spike_model(
    model: SpikeModel,
    recording: Recording,
    train: Tensor,
    test: Tensor,
    baseline: Baseline,
    *,
    n_samples: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """All scores of a fitted model on test trials; what is not defined (no choices, no evidence) is left out.

    Args:
        train: trials the null rates and the choice axis come from; test: trials scored.
        baseline: of the recording; the scores hold for it and are comparable on equal baselines only.
        n_samples: samples of the importance-weighted bound, and of the noise-averaged rollout.

    Returns:
        bits_per_spike (importance-weighted bound on the marginal likelihood), bits_per_spike_prior (noise-free
        rollout), psth_r2_evidence, psth_r2_choice (noise-averaged rollout, by the sign of the evidence and by choice),
        psth_r2_evidence_noise_free, choice_auc (posterior z(T)), choice_auc_prior (rollout z(T)),
        click_difference_auc. PSTH R^2 of one fold's trials is limited by the noise of their own PSTHs: pool
        ``rollout_counts`` of all folds' test trials for :func:`psth_r2` to compare models.
    """
    batch = trial_batch(recording, test, baseline)
    generator = torch.Generator().manual_seed(seed)

    def bits(log_likelihood: Tensor) -> float:
        return bits_per_spike(log_likelihood, batch.activity, batch.mask, baseline.null_counts)

    scores = {
        "bits_per_spike": bits(model.marginal_log_likelihood(batch, n_samples, generator)),
        "bits_per_spike_prior": bits(model.rollout_log_likelihood(batch)),
    }
    averaged = model.rollout_counts(batch, n_samples, generator)
    smooth = {} if recording.bin_s is None else {"smooth_sd_bins": 0.1 / recording.bin_s}
    conditions = {
        "evidence": None if recording.evidence is None else sign_conditions(recording.evidence[test]),
        "choice": None if recording.choices is None else choice_conditions(recording.choices[test]),
    }
    for name, condition in conditions.items():
        if condition is None or not ((condition == 0).any() and (condition == 1).any()):
            continue
        scores[f"psth_r2_{name}"] = psth_r2(batch.activity, averaged, batch.mask, condition, **smooth)[0]
        if name == "evidence":
            plain = model.rollout_counts(batch)
            scores["psth_r2_evidence_noise_free"] = psth_r2(batch.activity, plain, batch.mask, condition, **smooth)[0]
    if _both(recording.choices, train) and _both(recording.choices, test):
        fitted = trial_batch(recording, train, baseline)
        for name, rollout in (("choice_auc", False), ("choice_auc_prior", True)):
            ends = [last_states(model.infer(b, rollout), b.mask.sum(1)) for b in (fitted, batch)]
            scores[name] = choice_auc(ends[0], recording.choices[train], ends[1], recording.choices[test])
        if recording.click_difference is not None:
            scores["click_difference_auc"] = auc(recording.click_difference[test], recording.choices[test])
    return scores


def null_bits(recording: Recording, train: Tensor, test: Tensor, **options) -> dict[str, float]:
    """Bits per spike of the baselines alone, {"standard": ..., "local": ...}, fitted on training trials.

    ``options`` go to :func:`connector.baselines.fit_baseline`. A local baseline that is not to be had (no trial
    times) is left out.
    """
    found = {}
    counts, mask = recording.activity[test], recording.mask[test]
    for kind in ("standard", "local"):
        baseline = fit_baseline(recording, train, kind, **options)
        if baseline.kind == kind:
            likelihood = poisson_log_likelihood(baseline.expected_counts()[test], counts, mask)
            found[kind] = bits_per_spike(likelihood, counts, mask, baseline.null_counts)
    return found
