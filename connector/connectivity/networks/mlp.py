"""A perceptron."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from connector.connectivity.networks.velocity import Velocity, linear, silu

_FIRST_LAYER_GAIN = 2.0


class MLP(Velocity):
    """Layers of SiLU units; with 0 layers f is affine.

    With ``precondition`` the first layer starts at twice the usual size: nearly linear units leave a symmetric mixture at
    the normal for many hundreds of steps, a plateau from which single coordinates may never escape.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_width: int = 64,
        hidden_layers: int = 2,
        precondition: bool = True,
    ):
        super().__init__(dim, context_dim, precondition)
        widths = [self.n_features, *[hidden_width] * hidden_layers, dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        if precondition and hidden_layers:
            with torch.no_grad():
                for p in self.layers[0].parameters():
                    p.mul_(_FIRST_LAYER_GAIN)

    def carry(self, h: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for i, layer in enumerate(self.layers):
            h, tangents = linear(layer, *(silu(h, tangents) if i else (h, tangents)))
        return h, tangents
