"""Signs that a fit, a flow or a sampled network is not to be trusted, as shares; connector.report.cautions says them."""

from __future__ import annotations

import torch
from torch import Tensor

from connector.dynamics import Network, activation, potentials
from connector.numerics import even_rows
from connector.types import Latents, Loadings

# Derivative of phi, relative to its largest: below it a neuron hardly answers to the state.
_FLAT = 0.01
# Distance from the centre of the visited states, in units of the farthest of them, beyond which a state has left.
_FAR = 1.5
_MAX_ROWS = 2000
_SAME, _CONSTANT = 0.1, 1e-9  # of the distance between neighbours; of a column's largest entry


def saturated_share(loadings: Loadings, z: Tensor, activation_name: str, u: Tensor | None = None) -> float:
    """Share of (state, neuron) pairs at which phi is flat: its derivative is below 1 % of the largest.

    Args:
        z: states (T, R); u: inputs (T, U) or None.
    """
    h = potentials(loadings, z, u)
    slope = activation(activation_name).derivative(h)
    steepest = float(activation(activation_name).derivative(torch.linspace(-20, 20, 401, dtype=h.dtype)).max())
    return float((slope < _FLAT * steepest).double().mean())


def left_share(network: Network, visited: Tensor, trials: Latents) -> float:
    """Share of trials in which the network, started where they start, leaves the region of the visited states.

    The region is the ellipsoid, of the visited states' mean and covariance, that reaches one and a half times as far as the
    farthest of them. A state that is not finite has left.

    Args:
        visited: (T, R) states that the network was inferred from; trials: initial states, inputs and lengths.
    """
    centre = visited.double().mean(0)
    spread = torch.cov(visited.double().T).reshape(visited.shape[1], -1)
    factor = torch.linalg.cholesky(spread + 1e-9 * spread.diagonal().mean() * torch.eye(len(spread)).double())

    def distance(z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, (z - centre).flatten(0, -2).T, upper=False).norm(dim=0)

    farthest = distance(visited.double()).max()
    z = network.double().simulate(trials.z[:, 0].double(), trials.z.shape[1], _double(trials.inputs))
    far = ~(distance(z).reshape(z.shape[:2]) <= _FAR * farthest)  # true also where the distance is NaN
    return float((far & trials.mask).any(1).double().mean())


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def outside_share(samples: Tensor, rows: Tensor) -> float:
    """Share of samples (N, P) whose nearest data row is farther than any data row's is, twice over.

    Distances are between columns scaled to unit variance of the data (K, P), but for constant ones; of many data rows a part
    is looked at, evenly spread. Rows that are the same but for a tenth of the usual distance between neighbours, K^(-1/P),
    count once: a neuron is no less lonely for being recorded twice.
    """
    data, samples = rows.double(), samples.double()
    scale = data.std(0, unbiased=False)
    scale = torch.where(scale > _CONSTANT * data.abs().amax(0), scale, torch.inf)
    data = data[even_rows(len(data), _MAX_ROWS)] / scale
    own = torch.cdist(data, data)
    twice = (own < _SAME * len(data) ** (-1 / data.shape[1])).tril(-1).any(1)
    own = own[~twice][:, ~twice].fill_diagonal_(torch.inf)
    nearest = torch.cdist(samples / scale, data).min(1).values
    return float((~(nearest <= 2 * own.min(1).values.max())).double().mean())


def is_finite(network: Network) -> bool:
    parts = (network.m, network.n, network.b, network.d)
    return all(bool(torch.isfinite(part).all()) for part in parts if part is not None)
