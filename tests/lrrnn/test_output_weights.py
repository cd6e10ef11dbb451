"""Output weights: ridge against the gradient of the stated objective."""

from __future__ import annotations

import torch

from connector.lrrnn.output_weights import ridge_output_weights


def test_ridge_solves_the_stated_problem_in_both_shapes():
    g = torch.Generator().manual_seed(6)
    for t, k in ((60, 15), (15, 60)):
        x, y, lam = torch.randn(t, k, generator=g).double(), torch.randn(t, 2, generator=g).double(), 0.03
        n, _ = ridge_output_weights(x, y, lam)
        # gradient of (1/T) ||Y - X N / K||^2 + (lambda / K) ||N||^2
        gradient = -2 / (t * k) * x.T @ (y - x @ n / k) + 2 * lam / k * n
        assert gradient.abs().max() < 1e-12
