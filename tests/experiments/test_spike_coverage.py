"""Coverage of the sampled vector field on fresh data sets of spikes, within what chance allows.

    python -m pytest -m slow tests/experiments/test_spike_coverage.py     # more than an hour of CPU

How many data sets may miss is what their own posteriors predict: the bands of one data set share a few errors.
"""

import json
import statistics
import sys
from pathlib import Path

import pytest
from scipy.stats import binom, kstest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import spike_coverage


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decision"])
def test_a_data_set_is_measured_once_and_kept(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spike_coverage, "STEPS", 20)
    monkeypatch.setattr(spike_coverage, "uniform", lambda g, low, high: low if high > 12 else 0.5 * (low + high))
    out = tmp_path / "found.json"
    arguments = ["--datasets", "1", "--kinds", kind, "--sweeps", "5", "--out", str(out)]
    spike_coverage.main(arguments)
    found = json.loads(out.read_text())[0]
    assert all(0 <= share <= 1 for key in ("field_inside", "nu_inside") for share in found[key])
    assert found["signs_wrong"] <= found["signs_claimed"]
    monkeypatch.setattr(spike_coverage, "run", lambda *_: 1 / 0)
    spike_coverage.main(arguments)
    assert "decision" in capsys.readouterr().out


@pytest.fixture(scope="module")
def fresh():
    kinds, forms = list(spike_coverage.KINDS), list(spike_coverage.FORMS)
    return [spike_coverage.run(kinds[i % len(kinds)], forms[i % len(forms)], 9600 + i, sweeps=110) for i in range(40)]


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_coverage_of_fresh_data_sets_is_nominal(fresh):
    for level, (low, high) in enumerate([(0.42, 0.61), (0.72, 0.88), (0.9, 0.99)]):
        assert low < statistics.fmean(one["field_inside"][level] for one in fresh) < high
    predicted = statistics.fmean(one["field_below_predicted"] for one in fresh)
    missed = sum(one["field_inside"][-1] < 0.8 for one in fresh)
    assert missed <= binom.ppf(0.999, len(fresh), max(predicted, 0.02))
    assert kstest([one["field_rank"] for one in fresh], "uniform").pvalue > 0.001


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_what_is_claimed_of_fresh_data_sets_is_right(fresh):
    claimed, wrong = (sum(one[key] for one in fresh) for key in ("signs_claimed", "signs_wrong"))
    assert wrong <= 0.02 * claimed
    sure = 0.8 * spike_coverage.COUNTED
    right = sum(one["stable_points_drawn"].get(str(one["stable_points"]), 0) >= sure for one in fresh)
    assert right >= binom.ppf(0.001, len(fresh), 0.9)
