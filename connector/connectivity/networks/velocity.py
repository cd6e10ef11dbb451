"""What all velocity networks of a flow share: v(x, t, context), its time features and its exact divergence."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FREQUENCIES = (1.0, 2.0, 3.0)  # of the time features, in half turns over [0, 1]
FIRST_LAYER_GAIN = 2.0  # of preconditioned networks, see connector.connectivity.networks.mlp.MLP


class Velocity(nn.Module):
    """v(x, t, context), learned by the network that a subclass builds.

    With ``precondition`` the velocity is v = s'(t) / s(t) x + f(x / s(t), t, context), s(t)^2 = (1 - t)^2 + t^2: the
    first term is the exact velocity of standard normal data, the argument of f has unit variance at all times and time
    enters with its Fourier features, so that f has to learn only what sets the data apart from a normal.
    Without it s = 1: v = f(x, t, context).

    In the scaled coordinate y = x / s(t) the flow is dy/dt = f(y, t) / s(t), which is what is integrated: y = x at
    both ends, and the linear term costs no integration error.

    Computes in the dtype of ``x``, whatever that of its weights, so that a float32 network has a float64 density.

    A subclass makes its layers in :meth:`build` and applies them in :meth:`carry`, with :func:`linear` and :func:`silu`.

    Args:
        dim: D, columns of x. context_dim: C. hidden_width, hidden_layers: as the subclass takes them.
    """

    def __init__(self, dim: int, context_dim: int, hidden_width: int, hidden_layers: int, precondition: bool):
        super().__init__()
        self.dim, self.precondition = dim, precondition
        self.n_features = dim + (1 + 2 * len(_FREQUENCIES) if precondition else 1) + context_dim
        self.build(hidden_width, hidden_layers)

    def build(self, hidden_width: int, hidden_layers: int) -> None:
        """Make the layers, from ``n_features`` columns to ``dim``."""
        raise NotImplementedError

    def carry(self, h: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """f (B, D) of the features h (B, n_features), y in their first D columns.

        ``tangents`` (1, D, n_features), where given, are derivatives of h along the D axes of y; they are carried forward
        beside the values to those of f, (B or 1, D, D). That is exact, costs one matrix product per layer, and is free of
        autograd, so that it also runs in inference mode.
        """
        raise NotImplementedError

    def scale(self, t: Tensor) -> Tensor:
        """s(t), of the shape of t."""
        return ((1 - t) ** 2 + t**2).sqrt() if self.precondition else torch.ones_like(t)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Velocity (B, D) at x (B, D), t (B,) or scalar, context (B, C) or None."""
        t = t.to(x.dtype).reshape(-1, 1)
        if not self.precondition:
            return self.learned(x, t, context)
        scale = self.scale(t)
        return (2 * t - 1) / scale**2 * x + self.learned(x / scale, t, context)

    def learned(self, y: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """f (B, D) at scaled y (B, D)."""
        return self.carry(self._features(y, t, context), None)[0]

    def learned_with_divergence(self, y: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f (B, D) and sum_j df_j / dy_j (B,)."""
        axes = torch.eye(self.dim, self.n_features, dtype=y.dtype, device=y.device)
        h, tangents = self.carry(self._features(y, t, context), axes[None])
        return h, tangents.diagonal(dim1=1, dim2=2).sum(-1).expand(len(y))

    def _features(self, y: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        t = t.to(y.dtype).reshape(-1, 1)
        times = [t]
        if self.precondition:
            angles = math.pi * t * torch.tensor(_FREQUENCIES, dtype=y.dtype, device=y.device)
            times += [angles.sin(), angles.cos()]
        return torch.cat([y, *(x.expand(len(y), -1) for x in times), *([] if context is None else [context])], dim=1)


def linear(layer: nn.Linear, h: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The layer in the dtype of h (B, width), and the derivatives (B or 1, D, width) carried through it."""
    weight = layer.weight.to(h.dtype)
    return F.linear(h, weight, layer.bias.to(h.dtype)), None if tangents is None else tangents @ weight.T


def silu(h: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """h sigmoid(h), and the derivatives (B or 1, D, width) carried through it."""
    if tangents is None:
        return F.silu(h), None
    gate = torch.sigmoid(h)
    return h * gate, tangents * (gate * (1 + h * (1 - gate)))[:, None]
