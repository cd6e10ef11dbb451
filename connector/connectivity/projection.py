"""The smallest change of output weights that gives a network the drive observed at some states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from connector.dynamics import Network, activation, potentials
from connector.numerics import even_rows, leading_modes, pieces, ridge
from connector.types import Loadings, States

_STATES_TELL = 6  # times as many states as directions
_CHUNK = 400_000  # entries of a matrix built at a time: 3 MB, which stays in a processor's cache


def project(net: Network, states: States, regularizer: float) -> Network:
    """The network whose n minimises (1/T) ||y - X n'||^2 + (lambda / K) ||n' - n||^2, X = phi(h) / K, float64.

    Finite networks miss the drive of the infinite one by chance. The change n' - n is the smallest in the sense of least
    squares, so that it is spread over all neurons.

    Args:
        states: T states and inputs, and the drive y (T, R) observed there, float64.
        regularizer: lambda, above 0.
    """
    net = net.double()
    phi, loadings, k = activation(net.activation), net.loadings, net.n_neurons
    z, u, missing = states
    basis = state_basis(loadings, z, u, net.activation)
    if basis is not None:
        missing = basis.T @ missing
    # Made at once: parts kept between the large temporaries would leave holes in memory as large as these.
    x = net.n.new_empty(len(missing), k)
    for rows in pieces(k, len(z), _CHUNK):
        part = phi(potentials(loadings.map(lambda v, r=rows: v[r]), z, u)) / k
        x[:, rows] = part if basis is None else basis.T @ part
        missing = missing - x[:, rows] @ net.n[rows]
    return replace(net, n=net.n + ridge(x, missing, regularizer * len(z) / k))


def project_alike(nets: Sequence[Network], states: States, regularizer: float) -> list[Network]:
    """:func:`project` of networks whose loadings are drawn from one distribution, in a tenth of the time.

    One basis of phi over the states serves all networks, and a few states tell a neuron's part in each of its directions:
    those of a QR decomposition with pivoting (Drmac and Gugercin 2016), and others that are evenly spread.
    """
    from scipy.linalg import qr  # here: a run is read back without waiting for scipy

    z, u, y = states
    nets = [net.double() for net in nets]
    phi, layout = activation(nets[0].activation), nets[0].loadings.layout
    together = Loadings.unstack(torch.cat([net.loadings.stack() for net in nets]), *layout)
    basis = state_basis(together, z, u, nets[0].activation)
    if basis is None or len(z) <= _STATES_TELL * basis.shape[1]:
        return [project(net, states, regularizer) for net in nets]
    pivots = torch.from_numpy(qr(basis.T.numpy(), mode="r", pivoting=True)[1][: basis.shape[1]]).long()
    some = torch.cat([pivots, even_rows(len(z), (_STATES_TELL - 1) * basis.shape[1])]).unique()
    told, found = torch.linalg.pinv(basis[some]), []
    for net in nets:
        x = told @ phi(potentials(net.loadings, z[some], None if u is None else u[some])) / net.n_neurons
        missing = basis.T @ y - x @ net.n
        found.append(replace(net, n=net.n + ridge(x, missing, regularizer * len(z) / net.n_neurons)))
    return found


def state_basis(
    loadings: Loadings, z: Tensor, u: Tensor | None, name: str, n_few: int = 300, n_direct: int = 2000
) -> Tensor | None:
    """Orthonormal (T, q) that spans phi(h) over the states, from a part of the neurons; None: solve directly.

    phi(m.z + b.u + d) is a smooth family of functions of the state: a few hundred neurons span it for all. Where
    ``n_few`` of them show fewer than half as many dimensions, they do; else ``n_direct``, of larger networks.

    Args:
        z: (T, R); u: (T, U) or None. name: of phi.
    """
    for size in (n_few, n_direct):
        if loadings.n_neurons <= size:
            return None
        some = loadings.map(lambda v, size=size: v[:: loadings.n_neurons // size][:size])
        x = activation(name)(potentials(some, z, u))
        tall = len(x) > len(x.T)
        values, vectors = leading_modes(x.T @ x if tall else x @ x.T, 1e-13)
        if size == n_direct or len(values) <= size // 2:
            return torch.linalg.qr(x @ (vectors / values.sqrt())).Q if tall else vectors
    return None
