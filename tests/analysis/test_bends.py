import numpy as np
import pytest
from scipy.spatial.distance import cdist

from connector.analysis.bends import _distance_covariance


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_the_distance_covariance_is_that_of_its_definition(bend):
    """V^2 = mean of A_ij B_ij, centred distances of the coordinates and of the ranks (Szekely, Rizzo and Bakirov 2007, eq. 2.9)."""
    rng = np.random.default_rng(0)
    halves, statistics = [], 0.0
    for n in (70, 45):
        rank = np.linspace(-1.7, 1.7, n)
        v = rng.standard_normal((n, 3)) + bend * np.abs(rank)[:, None]
        ranks = np.stack([rank, *(rng.permutation(rank) for _ in range(199))])
        halves.append((v - v.mean(0), ranks))
        centred = [
            d - d.mean(0) - d.mean(1)[:, None] + d.mean()
            for d in (cdist(v, v), *(cdist(r[:, None], r[:, None]) for r in ranks))
        ]
        statistics = statistics + np.array(
            [(centred[0] * of_rank).sum() / n for of_rank in centred[1 : 1 + len(ranks) // 2]]
        )
    expected = (statistics >= statistics[0]).mean()
    assert _distance_covariance(halves, 1.0) == pytest.approx(expected)
