"""The k-fold rotation of trials into training, validation and test trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from connector.errors import UserError
from connector.types import Recording

# A neuron whose rates span less than this share of their own size, and of the median neuron's span, is constant: rounding.
_CONSTANT = 1e-6
_FEW_OVERLAP = (
    0.1  # share of the trials that begin within another: as many are left out rather than all folds made blocks
)
_NAMED = 10  # neurons left out that are named one by one


@dataclass(frozen=True)
class Fold:
    """Trial numbers of the three sets, (n,) int64 each, ascending; together they are all trials, once, but for pieces of
    continuous recordings between the sets."""

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
    if n_trials < 3:
        raise UserError(
            "3 trials or more (for training, validation and test)",
            f"{n_trials} trial{'s' if n_trials > 1 else ''}",
            f"cut long trials into n pieces of T samples, n at least {n_folds}: in an npz each array over time by "
            "x[0, :n * T].reshape(n, T, -1); data=arrays and data=nwb do it by data.piece_s",
        )
    if n_trials < n_folds:
        remedy = f"choose data.n_folds={n_trials}" + (" or fewer, 3 at least" if n_trials > 3 else "")
        raise UserError(f"at least as many trials as folds ({n_folds})", f"{n_trials} trials", remedy)
    shuffled = np.random.RandomState(seed).permutation(n_trials)  # scikit-learn's: its import takes a second
    parts = [torch.from_numpy(np.sort(part)).to(torch.int64) for part in np.array_split(shuffled, n_folds)]
    test, validation = parts[k - 1], parts[k % n_folds]
    rest = torch.ones(n_trials, dtype=torch.bool)
    rest[test] = False
    rest[validation] = False
    return Fold(train=rest.nonzero()[:, 0], validation=validation, test=test)


def fold_of(recording: Recording, k: int = 1, n_folds: int = 5, seed: int = 17) -> Fold:
    """As :func:`fold`; of pieces of continuous recordings the folds are blocks of neighbours, in the order of the recording, and
    so they are of trials most of which overlap.

    Pieces of validation with fewer than ``recording.gap`` samples between them and a test piece are in no set, and so are
    training pieces so near to one of validation or test: no set has samples next to another's. Of trials that overlap (their gap
    is 0) no set has samples of another's.

    Raises:
        UserError: as of fold, or a set is empty.
    """
    whole = fold(recording.n_trials, k, n_folds, seed)
    if recording.stretches is None:
        return whole
    place, lengths = recording.stretches.numpy(), recording.lengths.numpy()
    order = np.lexsort((place[:, 1], place[:, 0]))
    if 0 < overlapping(recording) < _FEW_OVERLAP:
        test, validation, train = (part.numpy() for part in (whole.test, whole.validation, whole.train))
    else:
        blocks = np.array_split(order, n_folds)
        test, validation = blocks[k - 1], blocks[k % n_folds]
        train = np.setdiff1d(order, np.concatenate([test, validation]))

    def apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Those of some pieces that are as far from all others as they have to be."""
        near = np.zeros(len(some), dtype=bool)
        for other in others:
            same = place[some, 0] == place[other, 0]
            begin, end = place[some, 1], place[some, 1] + lengths[some]
            between = np.maximum(begin - place[other, 1] - lengths[other], place[other, 1] - end)
            near |= same & (between < recording.gap)
        return some[~near]

    validation = apart(validation, test)
    train = apart(train, np.concatenate([test, validation]))
    if not (len(train) and len(validation)):
        raise UserError(
            f"pieces for training, validation and test with {recording.gap} samples between these sets",
            f"{recording.n_trials} pieces, too few",
            "shorten data.gap_s or data.piece_s",
        )
    return Fold(*(torch.from_numpy(np.sort(part)).to(torch.int64) for part in (train, validation, test)))


def overlapping(recording: Recording) -> float:
    """The share of trials that begin before the one before them in the same recording has ended."""
    place, lengths = recording.stretches.numpy(), recording.lengths.numpy()
    order = np.lexsort((place[:, 1], place[:, 0]))
    (of, begin), ends = place[order].T, (place[:, 1] + lengths)[order]
    return float(((of[1:] == of[:-1]) & (begin[1:] < ends[:-1])).mean())


def varying(recording: Recording, trials: Tensor) -> Tensor:
    """(K,) True for neurons whose activity varies in some trials, (n,) int64: it alone tells of their loadings."""
    ends = recording.activity.shape[1]
    if bool((recording.lengths[trials] == ends).all()):
        low, high = (
            recording.activity.amin(1)[trials].amin(0).double(),
            recording.activity.amax(1)[trials].amax(0).double(),
        )
    else:  # beyond a trial's end nothing was seen
        seen = recording.activity[trials][recording.mask[trials]]
        low, high = seen.amin(0).double(), seen.amax(0).double()
    span = high - low
    return span > _CONSTANT * torch.maximum(torch.maximum(low.abs(), high.abs()), span.median())


def without_constant(recording: Recording, train: Tensor) -> tuple[Recording, tuple[str, ...]]:
    """The recording without the neurons that are constant in the training trials, or silent there; and their names.

    Nothing that is fitted can say how such a neuron reads the latent state: its loadings would be those of the prior, and
    among the sampled neurons as many would be as silent.

    Raises:
        UserError: no neuron varies in the training trials.
    """
    keep = varying(recording, train)
    if keep.all():
        return recording, ()
    if not keep.any():
        raise UserError(
            f"neurons whose {recording.kind} vary in the {len(train)} training trials",
            "none",
            "choose another data.fold",
        )
    away = (~keep).nonzero()[:, 0].tolist()
    constant = "constant" if recording.kind == "rates" else "silent or constant"
    note = (
        f"{len(away)} of {recording.n_neurons} neurons are {constant} in the training trials and left out "
        f"({names_of(recording, away)})"
    )
    cut = recording.neurons(keep.nonzero()[:, 0])
    return replace(cut, notes=(*recording.notes, note)), tuple(recording.names[i] for i in away)


def names_of(recording: Recording, neurons: Iterable[int]) -> str:
    """The names of some neurons, or their numbers, for a sentence; of many the first."""
    neurons = list(neurons)
    said = ", ".join(recording.names[i] for i in neurons[:_NAMED]) + (", ..." if len(neurons) > _NAMED else "")
    return said if recording.neuron_names else f"{said}, counted from 0"
