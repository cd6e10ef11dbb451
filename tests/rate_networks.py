"""Networks with a known answer, the rates they give, and how far a fit to them is off."""

from __future__ import annotations

import torch

from connector.dynamics import Network, activation
from connector.lrrnn.gauge import Gauge
from connector.types import Recording, valid_mask

GAIN = {"tanh": 1.0, "relu": 1.0, "softplus": 1.2, "sigmoid": 4.0}


def make_network(activation="tanh", k=200, rank=2, n_inputs=0, has_bias=False, seed=0) -> Network:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    m = normal(k, rank)
    turn = 1.6 * torch.eye(rank, dtype=torch.float64)
    if rank > 1:
        turn[0, 1], turn[1, 0] = -0.8, 0.8
    n = GAIN[activation] * (m @ turn.T) + 0.5 * normal(k, rank)
    b = 0.5 * normal(k, n_inputs) if n_inputs else None
    d = 0.5 * normal(k) if has_bias else None
    return Network(m, n, b, d, alpha=0.1, activation=activation)


def record(net: Network, trials=80, steps=50, noise=0.0, ragged=False, two_valued=False, seed=1) -> Recording:
    """Rates of a network from random states, under brief inputs where it has any."""
    g = torch.Generator().manual_seed(seed)
    z0 = 4 * torch.rand(trials, net.rank, generator=g, dtype=torch.float64) - 2
    u = None
    if net.b is not None:
        u = 2.0 * (torch.rand(trials, steps, net.b.shape[1], generator=g) < 0.1).double()
    z = net.simulate(z0, steps, u)
    rates = net.rates(z, u)
    if two_valued:
        rates = torch.where(torch.rand(rates.shape, generator=g) < (1 + rates) / 2, 1.0, -1.0)
    rates = rates + noise * torch.randn(rates.shape, generator=g)
    lengths = torch.full((trials,), steps)
    if ragged:
        lengths = torch.randint(steps // 2, steps + 1, (trials,), generator=g)
    mask = valid_mask(lengths, steps)[..., None]
    return Recording(
        activity=(rates * mask).float(),
        kind="rates",
        lengths=lengths,
        alpha=net.alpha,
        activation=net.activation,
        inputs=None if u is None else (u * mask).float(),
        latents=z * mask,
        loadings=net.loadings,
        n=net.n,
    )


def record_filtered(net: Network, trials=60, steps=50, noise=0.0, after_update=False, seed=1) -> Recording:
    """Rates of a network whose neurons filter brief inputs, h' = -h + M N^T phi(h) / K + B u + d, from potentials that are zero
    but for d; ``after_update``: each sample is stored after the step that its input drives."""
    g = torch.Generator().manual_seed(seed)
    u = 2.0 * (torch.rand(trials, steps, net.b.shape[1], generator=g) < 0.1).double()
    d = torch.zeros(net.n_neurons).double() if net.d is None else net.d
    phi, h, stored = activation(net.activation), d.expand(trials, -1), []
    for t in range(steps):
        after = (1 - net.alpha) * h + net.alpha * (phi(h) @ net.n @ net.m.T / net.n_neurons + u[:, t] @ net.b.T + d)
        stored.append(phi(after if after_update else h))
        h = after
    rates = torch.stack(stored, 1)
    rates = rates + noise * torch.randn(rates.shape, generator=g)
    lengths = torch.full((trials,), steps)
    return Recording(rates.float(), "rates", lengths, net.alpha, net.activation, inputs=u.float())


def unexplained(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    return float((estimate - truth).square().sum() / (truth - truth.mean(0)).square().sum())


def drive_error(fit, gauge: Gauge, net: Network, recording: Recording) -> float:
    """Relative error of the drive at the true states, in the true gauge."""
    z = recording.latents[recording.mask]
    u = None if recording.inputs is None else recording.inputs[recording.mask].double()
    own = (z - gauge.shift) @ torch.linalg.inv(gauge.matrix).T
    inferred = fit.network.drive(own, u) @ gauge.matrix.T + gauge.shift
    truth = net.drive(z, u)
    return float((inferred - truth).norm() / truth.norm())
