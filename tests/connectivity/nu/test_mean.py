"""The fitted estimate: quantiles of a mixture."""

import math

import torch

from connector.connectivity.nu.mean import _mixture_quantile


def test_quantiles_of_a_mixture():
    means, sds = torch.tensor([-3.0, 0.0, 4.0]).double(), torch.tensor([0.5, 1.0, 0.1]).double()
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    x = _mixture_quantile(means[:, None], sds[:, None], weights, 0.6)
    assert math.isclose(float((weights * torch.special.ndtr((x - means) / sds)).sum()), 0.6, abs_tol=1e-6)
