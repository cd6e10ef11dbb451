"""Coverage of the intervals of nu on fresh data sets, within what chance allows.

    python -m pytest -m slow tests/experiments/test_coverage.py     # about 4 CPU minutes

How many data sets may miss is what their own posteriors predict: all intervals of one data set share a few errors.
"""

import statistics
import sys
from pathlib import Path

import pytest
from scipy.stats import binom, kstest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import coverage

FIRST_SEED = 800_000
N_SETS = 40


@pytest.fixture(scope="module")
def results():
    kinds = [*coverage.KINDS, *coverage.UNSEEN, *coverage.KEPT]
    return [coverage.run(coverage.Task(kinds[i % len(kinds)], FIRST_SEED + i)) for i in range(N_SETS)]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["fresh", "recorded"])
def test_coverage_of_fresh_data_sets_is_nominal(results, where):
    found = results if where == "fresh" else [r["recorded"] for r in results]
    for level, low, high in (("0.5", 0.4, 0.75), ("0.8", 0.7, 0.95), ("0.95", 0.9, 1.0)):
        assert low < statistics.fmean(r["inside"][level] for r in found) < high, level
    # the sum of independent trials of unequal probability varies less than a binomial one of their mean
    predicted = statistics.fmean(r["predicted_low"] for r in found)
    missed = sum(r["inside"]["0.95"] < coverage.LOW for r in found)
    assert missed <= binom.ppf(0.999, N_SETS, max(predicted, 0.02))


@pytest.mark.slow
def test_signs_that_are_claimed_are_right(results):
    claimed, wrong = (sum(r[key] for r in results) for key in ("claimed", "wrong"))
    assert claimed > 1000
    assert wrong <= 0.02 * claimed


@pytest.mark.slow
def test_truth_ranks_anywhere_among_joint_draws(results):
    for i in range(2):
        assert kstest([r["ranks"][i] for r in results], "uniform").pvalue > 0.001
