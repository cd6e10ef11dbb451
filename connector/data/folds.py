"""The k-fold rotation of trials into training, validation and test trials."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.model_selection import KFold
from torch import Tensor

from connector.errors import UserError


@dataclass(frozen=True)
class Fold:
    """Trial numbers of the three sets, (n,) int64 each, ascending; together they are all trials, once."""

    train: Tensor
    validation: Tensor
    test: Tensor


def fold(n_trials: int, k: int = 1, n_folds: int = 5, seed: int = 17) -> Fold:
    """Test trials are fold k, validation trials fold k mod n_folds + 1, training trials all others.

    The folds are those of scikit-learn's KFold(n_folds, shuffle=True, random_state=seed), numbered from 1.

    Args:
        n_trials: number of trials.
        k: 1 .. n_folds.
        n_folds: at least 3.
        seed: of the shuffle.

    Raises:
        UserError: k out of range, or fewer trials than folds.
    """
    if n_folds < 3:
        raise UserError("at least 3 folds (training, validation, test)", str(n_folds))
    if not 1 <= k <= n_folds:
        raise UserError(f"a fold from 1 to {n_folds}", str(k))
    if n_trials < n_folds:
        raise UserError(
            f"at least as many trials as folds ({n_folds})", f"{n_trials} trials", "lower data.n_folds (3 at least)"
        )
    rotation = KFold(n_folds, shuffle=True, random_state=seed).split(range(n_trials))
    parts = [torch.from_numpy(test).to(torch.int64) for _, test in rotation]
    test, validation = parts[k - 1], parts[k % n_folds]
    rest = torch.ones(n_trials, dtype=torch.bool)
    rest[test] = False
    rest[validation] = False
    return Fold(train=rest.nonzero()[:, 0], validation=validation, test=test)
