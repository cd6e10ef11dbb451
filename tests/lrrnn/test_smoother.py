"""The smoother against the joint Gaussian of a linear network."""

from __future__ import annotations

import torch

from connector.dynamics import Network
from connector.lrrnn.smoother import smooth_latents


def test_smoother_equals_the_exact_posterior_of_a_linear_network():
    """Joint Gaussian of one trajectory of a linear(ised) network, conditioned in one go."""
    k, steps, rank = 400, 6, 2
    g = torch.Generator().manual_seed(7)
    # tiny potentials make tanh linear: z[t+1] = a z[t] with a known
    m = 1e-4 * torch.randn(k, rank, generator=g).double()
    n = torch.randn(k, rank, generator=g).double() * 5e3
    net = Network(m, n, alpha=0.1)
    a = 0.9 * torch.eye(rank).double() + 0.1 * n.T @ m / k
    q, information = torch.diag(torch.tensor([0.02, 0.05]).double()), torch.rand(1, steps, rank, generator=g).double()
    information = torch.diag_embed(20 * information)
    information[0, 2] = 0  # a missing sample
    z = torch.randn(1, steps, rank, generator=g).double()
    mean, covariance, _ = smooth_latents(z, information, net, torch.tensor([steps]), process_covariance=q)
    precision = torch.zeros(steps * rank, steps * rank).double()
    precision[:rank, :rank] += torch.eye(rank) / 100
    for t in range(steps):
        at = slice(t * rank, (t + 1) * rank)
        precision[at, at] += information[0, t]
        if t:
            step = torch.zeros(rank, steps * rank).double()
            step[:, at], step[:, (t - 1) * rank : t * rank] = torch.eye(rank).double(), -a
            precision += step.T @ torch.linalg.inv(q) @ step
    pull = torch.einsum("tij,tj->ti", information[0], z[0]).reshape(-1)
    expected = torch.linalg.solve(precision, pull).reshape(steps, rank)
    torch.testing.assert_close(mean[0], expected, rtol=1e-4, atol=1e-5)
    spread = torch.linalg.inv(precision)
    for t in range(steps):
        block = spread[t * rank : (t + 1) * rank, t * rank : (t + 1) * rank]
        torch.testing.assert_close(covariance[0, t], block, rtol=1e-4, atol=1e-7)
