"""Kernels against their definitions: covariances, parity, and one answer from matrix, pairs and diagonal."""

import pytest
import torch

from connector.connectivity.nu.kernels import KERNELS, kernel, kernel_diagonal, kernel_pairs, tried_families


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


@pytest.mark.parametrize("family", [name for name in KERNELS if name != "none"])
@pytest.mark.parametrize("width", [0.2, 3.2])
def test_copies_of_a_loading_but_for_rounding_leave_a_covariance_that_can_be_factorised(family, width):
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(60, 4, generator=g, dtype=torch.float64)
    x = torch.cat([x, x[:30] + 1e-14 * torch.randn(30, 4, generator=g, dtype=torch.float64)])
    k = kernel(x, x, family, width, odd=False)
    torch.linalg.cholesky(k + 1e-9 * k.diagonal().mean() * torch.eye(len(k)).to(k))


@pytest.mark.parametrize("family", [f for f in KERNELS if f != "none"])
@pytest.mark.parametrize("odd", [True, False])
def test_kernel_of_pairs_is_the_diagonal_of_the_kernel(family, odd):
    x, y = _randn(9, 3), _randn(9, 3, seed=1)
    full = kernel(x, y, family, 0.7, odd)
    assert torch.allclose(kernel_pairs(x, y, family, 0.7, odd), full.diagonal())


@pytest.mark.parametrize("family", [f for f in KERNELS if f != "none"])
@pytest.mark.parametrize("odd", [True, False])
def test_random_features_have_the_kernel_as_their_covariance(family, odd):
    x, g = _randn(6, 3), torch.Generator().manual_seed(2)
    features = KERNELS[family].features(3, 200_000, 0.7, odd, g)
    if features is None:
        pytest.skip(f"{family} has no random functions of its own: its draws go through the centres")
    features = features(x)
    products = features[:, None] * features[None]
    error = (products.mean(2) - kernel(x, x, family, 0.7, odd)) / (products.std(2) / 200_000**0.5)
    assert error.abs().max() < 4.5
    if odd:
        again = KERNELS[family].features(3, 50, 0.7, odd, g)
        assert torch.allclose(again(-x), -again(x))


@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
def test_rough_kernels_follow_their_definitions(width):
    x, y = _randn(5, 3), _randn(4, 3, seed=1)
    near, far = torch.cdist(x / width, y / width), torch.cdist(x / width, -y / width)
    assert torch.allclose(kernel(x, y, "matern12", width, odd=False), torch.exp(-near))
    assert torch.allclose(kernel(x, y, "matern12", width, odd=True), 0.5 * (torch.exp(-near) - torch.exp(-far)))
    matern, mirrored = ((1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r) for r in (near, far))
    assert torch.allclose(kernel(x, y, "slope32", width, odd=False), (x @ y.T + 1) / 4 * matern)
    assert torch.allclose(kernel(x, y, "slope32", width, odd=True), x @ y.T / 3 * 0.5 * (matern + mirrored))


def test_rough_families_stand_in_for_the_smooth_one():
    assert set(tried_families()) == set(KERNELS) - {"rbf"}
