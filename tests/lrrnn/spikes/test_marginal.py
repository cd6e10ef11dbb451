from dataclasses import replace

import torch
from torch.testing import assert_close

from connector.lrrnn.spikes import marginal
from connector.lrrnn.spikes.paths import climbed, curvature, most_likely, newton
from tests.lrrnn.spikes.test_paths import exact_target, small


def laplace(counts, field, p, known):
    """log p(y | c), the counts to second order about ``known``."""
    mode, _ = most_likely(counts, field, p, known[0], 12, known=known)
    _, factor, target = newton(counts, field, p, mode, known)
    return float((target - factor.log_det).sum()), mode, factor


def test_gradient_is_that_of_the_evidence():
    counts, field, p, z = small()
    p = replace(p, c=0.3 * p.c)
    mode = climbed(counts, field, p, z, 25)
    known = mode, curvature(counts, p, mode[counts.mask])
    _, mode, factor = laplace(counts, field, p, known)
    found = marginal.gradient(counts, field, p, mode, factor)
    step, expected = 1e-3, torch.zeros_like(p.c)
    for i in range(p.c.shape[0]):
        for j in range(p.c.shape[1]):
            move = torch.zeros_like(p.c)
            move[i, j] = step
            ahead, behind = (laplace(counts, field, replace(p, c=p.c + s * move), known)[0] for s in (1, -1))
            expected[i, j] = (ahead - behind) / (2 * step)
    # what the curvature changes with the mode is left out
    assert_close(found, expected, rtol=0.05, atol=0.03 * float(expected.abs().max()))


def test_information_is_that_with_the_paths_eliminated():
    counts, field, p, z = small()
    _, factor, _ = newton(counts, field, p, z)
    found = marginal.information(counts, field, p, z, factor)
    # Gauss-Newton: residuals of all steps, counts and first states, as functions of paths and coefficients
    inside = counts.mask[..., None].expand_as(z)
    precision = torch.linalg.cholesky(torch.linalg.inv(p.q))
    seen = counts.padded(curvature(counts, p, z[counts.mask]).information)
    seen[:, 0] += torch.linalg.inv(p.start_covariance)
    pair = counts.mask[:, 1:]

    def residuals(rows, c):
        paths = torch.zeros_like(z).masked_scatter(inside, rows)
        u = counts.padded(counts.u)[:, :-1]
        drive = field(paths[:, :-1].reshape(-1, 2), u.reshape(-1, 1)) @ c
        step = 0.9 * paths[:, :-1] + 0.1 * drive.view_as(paths[:, :-1])
        return ((paths[:, 1:] - step) @ precision)[pair].reshape(-1)

    a, b = torch.autograd.functional.jacobian(residuals, (z[inside], p.c))
    b = b.flatten(1)
    hzz = a.T @ a + torch.block_diag(*seen[counts.mask])
    hzc, hcc = a.T @ b, b.T @ b
    assert_close(found, hcc - hzc.T @ torch.linalg.solve(hzz, hzc), rtol=1e-4, atol=1e-4 * float(hcc.abs().max()))


def test_gradient_of_a_path_is_that_of_its_density():
    counts, field, p, z = small()
    c = p.c.clone().requires_grad_()
    exact_target(counts, field, replace(p, c=c), z).sum().backward()
    assert_close(marginal.gradient_of_path(counts, field, p, z), c.grad, rtol=1e-4, atol=1e-4)
