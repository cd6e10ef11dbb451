"""A network of residual blocks, for many layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from connector.connectivity.networks.velocity import FIRST_LAYER_GAIN, Velocity, linear, silu


class Residual(Velocity):
    """h + W silu(h) in each of ``hidden_layers`` blocks (He et al. 2016, pre-activation), between two affine maps.

    Blocks and the last map start at zero: an untrained flow is its base density, and however many blocks there are, the
    network learns at first as one with a single hidden layer.
    """

    def build(self, hidden_width: int, hidden_layers: int) -> None:
        self.first, self.last = nn.Linear(self.n_features, hidden_width), nn.Linear(hidden_width, self.dim)
        self.blocks = nn.ModuleList(nn.Linear(hidden_width, hidden_width) for _ in range(hidden_layers))
        with torch.no_grad():
            for p in [*self.blocks.parameters(), *self.last.parameters()]:
                p.zero_()
            for p in self.first.parameters():
                p.mul_(FIRST_LAYER_GAIN if self.precondition else 1.0)

    def carry(self, h: Tensor, tangents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h, tangents = linear(self.first, h, tangents)
        for block in self.blocks:
            change, of_tangents = linear(block, *silu(h, tangents))
            h, tangents = h + change, None if tangents is None else tangents + of_tangents
        return linear(self.last, *silu(h, tangents))
