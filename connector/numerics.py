"""Least squares that give one answer for one input, on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(design: Tensor, targets: Tensor) -> Tensor:
    """x of smallest norm among those that minimise ||design x - targets||, by a singular value decomposition.

    torch's own default on a CPU, LAPACK's ``gelsy``, is called with column pivots that nobody has set: about one call
    in ten differs in its last digits, and two runs of one seed with it. On a GPU torch has no solver for designs short
    of full rank. So this one is ``gelsd``, and on the CPU, where the few columns of our designs cost little.

    Args:
        design: (..., T, P), of any rank.
        targets: (..., T, Q).

    Returns:
        (..., P, Q), on the device of ``targets``.
    """
    solution = torch.linalg.lstsq(design.cpu(), targets.cpu(), driver="gelsd").solution
    return solution.to(targets.device)
