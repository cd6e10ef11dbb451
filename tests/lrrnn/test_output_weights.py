"""Output weights: ridge against the gradient of the stated objective."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from connector.lrrnn.output_weights import Evidence, ridge_output_weights


def test_ridge_solves_the_stated_problem_in_both_shapes():
    g = torch.Generator().manual_seed(6)
    for t, k in ((60, 15), (15, 60)):
        x, y, lam = torch.randn(t, k, generator=g).double(), torch.randn(t, 2, generator=g).double(), 0.03
        n, _ = ridge_output_weights(x, y, lam)
        # gradient of (1/T) ||Y - X N / K||^2 + (lambda / K) ||N||^2
        gradient = -2 / (t * k) * x.T @ (y - x @ n / k) + 2 * lam / k * n
        assert gradient.abs().max() < 1e-12


def test_what_rounding_hides_says_nothing_of_the_prior():
    """The last direction's information is below zero by rounding: what it seems to point to does not count."""
    c, values = torch.tensor([0.5, -0.5, 0.3]).double(), torch.tensor([1e7, 1e3, -1.5]).double()
    found = [
        SimpleNamespace(h=values.diag(), b=torch.tensor([1e6, 1e3, pull]).double(), squares=4e3, free=4e3)
        for pull in (0.0, 1e9)
    ]
    learnt = [Evidence(1.0, 3, c) for _ in found]
    for evidence, of in zip(learnt, found, strict=True):
        evidence.learn(of, c)
    assert 0 < learnt[0].shrinkage < math.inf
    assert learnt[1].shrinkage == learnt[0].shrinkage
