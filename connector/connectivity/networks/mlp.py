"""A perceptron."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from connector.connectivity.networks.velocity import FIRST_LAYER_GAIN, Velocity, linear, silu


class MLP(Velocity):
    """Layers of SiLU units; with 0 layers f is affine.

    With ``precondition`` the first layer starts at twice the usual size: nearly linear units leave a symmetric mixture at
    the normal for many hundreds of steps, a plateau from which single coordinates may never escape.
    """

    def build(self, hidden_width: int, hidden_layers: int) -> None:
        widths = [self.n_features, *[hidden_width] * hidden_layers, self.dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        if self.precondition and hidden_layers:
            with torch.no_grad():
                for p in self.layers[0].parameters():
                    p.mul_(FIRST_LAYER_GAIN)

    def carry(self, h: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for i, layer in enumerate(self.layers):
            h, tangents = linear(layer, *(silu(h, tangents) if i else (h, tangents)))
        return h, tangents
