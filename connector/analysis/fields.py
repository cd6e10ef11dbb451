"""How well a network's vector field matches an observed one, and which neurons make it."""

from __future__ import annotations

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.numerics import CHUNK, pieces


def drive_at(network, z: Tensor, u: Tensor | None) -> Tensor:
    """The network's recurrent drive at many states, in pieces that fit in memory. (T, R)"""
    parts = pieces(len(z), getattr(network, "n_neurons", 1000), CHUNK)
    with torch.no_grad():
        return torch.cat([network.drive(z[part], None if u is None else u[part]).double() for part in parts])


def field_error(network, z: Tensor, u: Tensor | None, y: Tensor) -> float:
    """Relative rms error of a network's vector field at visited states; 0 is perfect, 1 no better than no field.

    sqrt( mean |F_network - y|^2 / mean |y - z|^2 ): both fields are -z + drive, so their difference is the drives'.

    Args:
        network: anything with ``drive(z, u)``.
        z (T, R), u (T, U) or None, y (T, R): states, inputs and observed drive, as ``Latents.samples()`` gives them.
    """
    return relative_field_error(drive_at(network, z.double(), u), z, y)


def relative_field_error(drive: Tensor, z: Tensor, y: Tensor) -> float:
    """:func:`field_error` of a drive (T, R) that is known at the states already."""
    y, z = y.double(), z.double()
    return float(((drive - y).square().sum(1).mean() / (y - z).square().sum(1).mean()).sqrt())


def drift_r2(network, z: Tensor, u: Tensor | None, y: Tensor) -> Tensor:
    """R^2 of each dimension of the vector field at visited states, (R,); 1 is perfect. Arguments of field_error."""
    y, z = y.double(), z.double()
    residual = (drive_at(network, z, u) - y).square().mean(0)
    return 1 - residual / (y - z).var(0, unbiased=False)


def contributions(network: Network, labels: Tensor, z: Tensor, u: Tensor | None = None) -> Tensor:
    """What each group of neurons adds to the drive: F_c = (1/K) sum over group c of n_i phi_i, so sum_c F_c = F.

    Args:
        labels: (K,) integers 0..C-1.
        z (T, R), u (T, U) or None.

    Returns:
        (C, T, R)
    """
    if labels.shape != (network.n_neurons,):
        raise UserError(f"one label for each of {network.n_neurons} neurons", str(tuple(labels.shape)))
    groups = range(int(labels.max()) + 1)
    return torch.stack([drive_at(network.silence(labels != c), z, u) for c in groups])


def normalised_difference(first: Tensor, second: Tensor) -> Tensor:
    """(|F_A| - |F_B|) / (|F_A| + |F_B|) of two contributions (T, R), in [-1, 1]; 0 where both vanish. Shape (T,)."""
    a, b = first.norm(dim=-1), second.norm(dim=-1)
    total = a + b
    return torch.where(total > 0, (a - b) / total.clamp_min(torch.finfo(total.dtype).tiny), torch.zeros_like(total))
