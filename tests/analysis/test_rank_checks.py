"""Whether a rank too low or too high is told from spikes."""

import pytest
import torch
from test_rank_choice import spikes_of

from connector.analysis import rank_choice
from connector.analysis.rank_choice import rank_checks
from connector.data.folds import fold
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.report.causes import of_causes


@pytest.mark.parametrize(("rank", "cause"), [(1, "rank"), (2, None), (3, "fewer")])
def test_a_rank_too_low_or_too_high_is_named(monkeypatch, rank, cause):
    monkeypatch.setattr(rank_choice, "N_BLOCKS", 500)
    recording = spikes_of(2, 40, 100, seed=3)
    found = rank_checks(recording, fold(100), rank, fit_baseline(recording, fold(100).train, "constant"))
    assert [key for key in found if "cause" in key] == ([] if cause is None else [f"lrrnn/cause_{cause}"])
    said = of_causes(found | {"lrrnn/bits_per_spike": 0.1})
    assert len(said) == (cause is not None)
    assert all("held-out neurons" in one for one in said)


def test_few_neurons_or_trials_are_not_judged():
    recording = spikes_of(1, 6, 12)
    baseline = fit_baseline(recording, torch.arange(12), "constant")
    assert rank_checks(recording, fold(12), 1, baseline) == {}
