"""Kernels against their definitions: covariances, parity, and one answer from matrix, pairs and diagonal."""

import pytest
import torch

from connector.connectivity.nu.kernels import KERNELS, kernel, kernel_diagonal, kernel_pairs


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("family", [f for f in KERNELS if f != "none"])
@pytest.mark.parametrize("odd", [True, False])
def test_kernels_are_covariances_of_the_stated_parity(family, odd):
    x, y = _randn(40, 3), _randn(7, 3, seed=1)
    k = kernel(x, x, family, 0.7, odd)
    assert torch.allclose(k, k.T)
    assert torch.linalg.eigvalsh(k).min() > -1e-9
    assert torch.allclose(k.diagonal(), kernel_diagonal(x, family, 0.7, odd), atol=1e-12)
    opposite = kernel(-x, y, family, 0.7, odd)
    assert torch.allclose(opposite, -kernel(x, y, family, 0.7, odd)) == odd


def test_arcsine_kernel_is_the_covariance_of_error_function_units():
    x = _randn(2, 2)
    w = _randn(400_000, 3, seed=1)
    features = torch.erf(torch.cat([torch.ones(2, 1).double(), x / 0.8], 1) @ w.T)
    expected = features @ features.T / features.shape[1]
    assert torch.allclose(kernel(x, x, "arcsine", 0.8, odd=False), expected, atol=0.01)


@pytest.mark.parametrize("family", [f for f in KERNELS if f != "none"])
@pytest.mark.parametrize("odd", [True, False])
def test_kernel_of_pairs_is_the_diagonal_of_the_kernel(family, odd):
    x, y = _randn(9, 3), _randn(9, 3, seed=1)
    full = kernel(x, y, family, 0.7, odd)
    assert torch.allclose(kernel_pairs(x, y, family, 0.7, odd), full.diagonal())
