"""How well a network's vector field matches an observed one, and which neurons make it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.numerics import CACHED, CHUNK, even_rows, inverse_root, pieces
from connector.types import Latents

_LAG = 2  # samples between which errors of the drive are independent
_KEPT = 0.5  # correlation of the states over that lag, above which it is used
_MAX_STATES = 4000


def drive_at(network, z: Tensor, u: Tensor | None) -> Tensor:
    """The network's recurrent drive at many states, in pieces that stay in the cache. (T, R)"""
    parts = pieces(len(z), getattr(network, "n_neurons", 1000), CACHED)
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


def drift_r2(network, z: Tensor, u: Tensor | None, y: Tensor, mean: Tensor) -> Tensor:
    """R^2 of each dimension of the vector field at visited states, (R,); 1 is perfect, 0 no better than ``mean``.

    Args:
        network, z, u, y: as of :func:`field_error`; mean: (R,) of the field, y - z, over training states.
    """
    y, z = y.double(), z.double()
    residual = (drive_at(network, z, u) - y).square().mean(0)
    return 1 - residual / (y - z - mean).square().mean(0)


def drive_gain(network: Network, latents: Latents, drawn: Sequence[Tensor] = ()) -> tuple[float, float]:
    """Slope of a network's drive F on the drive y seen along trials, and its standard error over trials: 1 is right.

    sum (F[t] - mean).(y[s] - mean) / sum (y[t] - mean).(y[s] - mean), in units of the latents' covariance: the same in any
    affine gauge. Noise of the states is in y[t] ten times over and in F[t] as well; so y[s] stands two samples before,
    where states last so long. Of a single trial the error is not known: NaN.

    Args:
        network: in the gauge of the latents.
        drawn: of its n (K, R) from a posterior, one or several; the spread of their slopes is then part of the error.
    """
    last = latents.lengths - 1
    z, y = latents.z.double(), torch.zeros_like(latents.z, dtype=torch.float64)
    y[:, :-1][latents.mask[:, 1:]] = latents.samples().y.double()
    states = z[latents.mask]
    centre, root = states.mean(0), inverse_root(states - states.mean(0))

    def pairs(lag: int) -> tuple[Tensor, Tensor]:
        trial, time = (torch.arange(z.shape[1]) < (last - lag)[:, None]).nonzero().T
        keep = even_rows(len(trial), _MAX_STATES) if len(trial) else trial
        return trial[keep], time[keep]

    lag, (trial, time) = _LAG, pairs(_LAG)
    before, after = ((z[trial, time + s] - centre) @ root for s in (0, lag))
    if not len(trial) or not float((before * after).sum()) > _KEPT * float((before * before).sum()):
        lag, (trial, time) = 0, pairs(0)
    at = time + lag
    u = None if latents.inputs is None else latents.inputs[trial, at]
    drives = _drives(network, z[trial, at], u, [network.n, *drawn])
    seen, instrument, *drives = ((x - x.mean(0)) @ root for x in (y[trial, at], y[trial, time], *drives))
    below, above, *others = (z.new_zeros(len(z)).index_add_(0, trial, (x * instrument).sum(1)) for x in (seen, *drives))
    gain = float(above.sum() / below.sum())
    scatter = float((above - gain * below).square().sum().sqrt() / below.sum().abs())
    error = scatter if len(trial.unique()) > 1 else math.nan
    if not others:
        return gain, error
    slopes = [float(of.sum() / below.sum()) for of in others]
    return gain, math.hypot(error, math.dist(slopes, [gain] * len(slopes)) / math.sqrt(len(slopes)))


def _drives(network: Network, z: Tensor, u: Tensor | None, outputs: Sequence[Tensor]) -> Tensor:
    """The drives (D, T, R) that the network would have with each of D output weights (K, R); its rates are computed once."""
    parts, wide = pieces(len(z), network.n_neurons, CHUNK), torch.cat(list(outputs), 1) / network.n_neurons
    with torch.no_grad():
        found = torch.cat([network.rates(z[part], None if u is None else u[part]) @ wide for part in parts]).double()
    return found.unflatten(1, (len(outputs), -1)).movedim(1, 0)


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
