"""The rotation of folds."""

import pytest
import torch
from sklearn.model_selection import KFold

from connector.data.folds import fold
from connector.errors import UserError


@pytest.mark.parametrize(("n_trials", "n_folds"), [(400, 5), (23, 4), (3, 3)])
def test_folds_partition_and_rotate(n_trials, n_folds):
    folds = [fold(n_trials, k, n_folds) for k in range(1, n_folds + 1)]
    for k, each in enumerate(folds):
        together = torch.cat([each.train, each.validation, each.test])
        assert sorted(together.tolist()) == list(range(n_trials))
        assert torch.equal(each.validation, folds[(k + 1) % n_folds].test)
        assert all(len(part) for part in (each.train, each.validation, each.test))
    tested = torch.cat([each.test for each in folds])
    assert sorted(tested.tolist()) == list(range(n_trials))


def test_folds_are_those_of_scikit_learn_and_depend_on_the_seed():
    expected = [test for _, test in KFold(5, shuffle=True, random_state=17).split(range(101))]
    assert fold(101, 3).test.tolist() == expected[2].tolist()
    assert fold(101, 3, seed=17).test.tolist() == fold(101, 3).test.tolist() != fold(101, 3, seed=18).test.tolist()


@pytest.mark.parametrize("arguments", [(4, 1, 5), (100, 0, 5), (100, 6, 5), (100, 1, 2)])
def test_impossible_folds_are_refused(arguments):
    with pytest.raises(UserError):
        fold(*arguments)
