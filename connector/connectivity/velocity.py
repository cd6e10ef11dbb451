"""Velocity networks of a flow: v(x, t, context) and its exact divergence."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FREQUENCIES = (1.0, 2.0, 3.0)  # of the time features, in half turns over [0, 1]
_FIRST_LAYER_GAIN = 2.0


class Velocity(nn.Module):
    """v(x, t, context): a perceptron with SiLU layers that also returns its exact divergence.

    With ``precondition`` the velocity is v = s'(t) / s(t) x + f(x / s(t), t, context), s(t)^2 = (1 - t)^2 + t^2: the
    first term is the exact velocity of standard normal data, the argument of f has unit variance at all times and time
    enters with its Fourier features, so that f has to learn only what sets the data apart from a normal. The first
    layer starts at twice the usual size: nearly linear units leave a symmetric mixture at the normal for many hundreds
    of steps, a plateau from which single coordinates may never escape.
    Without it s = 1: v = f(x, t, context), a plain perceptron.

    In the scaled coordinate y = x / s(t) the flow is dy/dt = f(y, t) / s(t), which is what is integrated: y = x at
    both ends, and the linear term costs no integration error.

    Computes in the dtype of ``x``, whatever that of its weights, so that a float32 network has a float64 density.

    Args:
        dim: D, columns of x. context_dim: C. hidden_width, hidden_layers: with 0 layers f is affine.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_width: int = 64,
        hidden_layers: int = 2,
        precondition: bool = True,
    ):
        super().__init__()
        self.dim, self.precondition = dim, precondition
        n_times = 1 + 2 * len(_FREQUENCIES) if precondition else 1
        widths = [dim + n_times + context_dim, *[hidden_width] * hidden_layers, dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        if precondition and hidden_layers:
            with torch.no_grad():
                for p in self.layers[0].parameters():
                    p.mul_(_FIRST_LAYER_GAIN)

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
        h = self._inputs(y, t, context)
        for i, layer in enumerate(self.layers):
            h = F.linear(F.silu(h) if i else h, layer.weight.to(y.dtype), layer.bias.to(y.dtype))
        return h

    def learned_with_divergence(self, y: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f (B, D) and sum_j df_j / dy_j (B,).

        Derivatives along the D axes are carried forward through the layers beside the values: exact, one matrix
        product per layer, and free of autograd, so that it also runs in inference mode.
        """
        h, tangents = self._inputs(y, t, context), None
        for i, layer in enumerate(self.layers):
            weight = layer.weight.to(y.dtype)
            if i == 0:
                tangents = weight[:, : self.dim].T[None]  # (1, D, width)
            else:
                gate = torch.sigmoid(h)
                slope = gate * (1 + h * (1 - gate))
                tangents = (tangents * slope[:, None]) @ weight.T
                h = h * gate
            h = F.linear(h, weight, layer.bias.to(y.dtype))
        return h, tangents.diagonal(dim1=1, dim2=2).sum(-1).expand(len(y))

    def _inputs(self, y: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        t = t.to(y.dtype).reshape(-1, 1)
        times = [t]
        if self.precondition:
            angles = math.pi * t * torch.tensor(_FREQUENCIES, dtype=y.dtype, device=y.device)
            times += [angles.sin(), angles.cos()]
        return torch.cat([y, *(x.expand(len(y), -1) for x in times), *([] if context is None else [context])], dim=1)
