"""Scores of a spike model on test trials, and the responses that figures draw and folds are pooled from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from connector.analysis.spike_nulls import gains_over_nulls, null_bits, null_counts
from connector.analysis.spike_scores import (
    ResponseSums,
    SpikeScores,
    psths,
    response_conditions,
    score_spike_model,
    smoothing_of,
)
from connector.data.folds import Fold
from connector.files import write_npz
from connector.lrrnn.spikes.baselines import Baseline, fit_baseline
from connector.lrrnn.spikes.state_space import SpikeStateSpace
from connector.runs.store import RunStore
from connector.stages.training import StageContext, is_child_rank
from connector.types import Recording


def score_on_test_trials(
    context: StageContext, model: SpikeStateSpace, recording: Recording, fold: Fold, baseline: Baseline
) -> dict[str, float]:
    """Scores on test trials with the chosen baseline, and again with the other one, its name as the suffix."""
    other = fit_baseline(recording, fold.train, "standard" if baseline.kind == "local" else "local")
    metrics, scores, nulls = {}, {}, {}
    for used, suffix in ((baseline, ""), (other, f"_{other.kind}")):
        if suffix and other.kind == baseline.kind:  # no local baseline without trial times
            continue
        scores[suffix] = score_spike_model(model, recording, fold.train, fold.test, used, seed=context.options.seed)
        nulls[suffix] = null_counts(recording, fold.train, used.kind)
        found = dict(scores[suffix].measures)
        for name, expected in nulls[suffix].items():
            found[f"bits_per_spike_null_{name}"] = null_bits(recording, fold.test, expected, used.null_counts)
        if not suffix:
            found |= gains_over_nulls(scores[""].log_likelihoods, recording, fold.test, nulls[""], baseline.null_counts)
        metrics |= {f"lrrnn/{name}{suffix}": float(value) for name, value in found.items()}
    if not is_child_rank():
        write_responses(context.store, recording, fold, baseline, scores, nulls)
    return metrics


def write_responses(
    store: RunStore,
    recording: Recording,
    fold: Fold,
    baseline: Baseline,
    scores: Mapping[str, SpikeScores],
    nulls: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """responses.npz: what the model says of test trials, to be drawn, and to be pooled over folds.

    ``observed`` and ``model`` (C, time, K) are smoothed PSTHs by evidence (else choice, else all) in Hz, ``groups`` the C
    names, ``step`` the bin in s, ``smooth_sd_bins`` the sd of the smoothing. For pooling, by "evidence" and by "choice",
    where they are known, 0 left and 1 right: ``CONDITION_trials`` (2, time) trials that still last,
    ``CONDITION_observed``, ``CONDITION_modelSUFFIX``,
    ``CONDITION_null_NAMESUFFIX``, ``CONDITION_mean`` (2, time, K) counts summed over them, observed, of the noise-averaged
    rollout, of each null, of mean rates over training trials; SUFFIX is empty for the baseline of the fit (``baseline``,
    its name) and _NAME for the other. Per test trial (``trials``, numbers from 0): ``choices``, ``click_difference``, ``choice_log_oddsSUFFIX`` at the most likely z(T).
    ``spikes`` is their number of spikes; ``neurons`` the K names, since neurons silent in training trials are left out.

    Args:
        scores, nulls: suffix -> scores of the model, null -> expected counts of all trials.
    """
    test, first = fold.test, scores[""]
    counts, mask = recording.activity[test], recording.mask[test]
    known = response_conditions(recording, test)
    shown = next(iter(known), None)
    conditions = torch.zeros(len(test), dtype=torch.int64) if shown is None else known[shown]
    names = ("all trials",) if shown is None else (f"{shown} left", f"{shown} right")
    per_second = 1.0 if recording.bin_s is None else 1.0 / recording.bin_s
    smoothing = smoothing_of(recording)
    observed, predicted = (psths(x, mask, conditions, **smoothing)[0] for x in (counts, first.expected))
    arrays = {
        "observed": observed * per_second,
        "model": predicted * per_second,
        "groups": np.array(names),
        "step": recording.bin_s or 1.0,
        "smooth_sd_bins": smoothing["smooth_sd_bins"],
        "baseline": np.array(baseline.kind),
        "neurons": np.array(recording.names),
        "trials": test,
        "spikes": int((counts * mask[..., None]).sum()),
        "choices": None if recording.choices is None else recording.choices[test],
        "click_difference": None if recording.click_difference is None else recording.click_difference[test],
    }
    for suffix, found in scores.items():
        arrays[f"choice_log_odds{suffix}"] = found.choice_log_odds
    for condition, of_trials in known.items():
        sums = ResponseSums.of(counts, mask, of_trials)
        arrays |= {f"{condition}_trials": sums.trials.float(), f"{condition}_observed": sums.counts.float()}
        mean = ResponseSums.of(baseline.null_counts.expand_as(counts), mask, of_trials)
        arrays[f"{condition}_mean"] = mean.counts.float()
        for suffix, found in scores.items():
            expected = {"model": found.expected}
            expected |= {f"null_{name}": x[test] for name, x in nulls[suffix].items()}
            for name, x in expected.items():
                arrays[f"{condition}_{name}{suffix}"] = ResponseSums.of(x, mask, of_trials).counts.float()
    write_npz(store.path / "responses.npz", arrays)
