"""The encoder of the spike model: a bidirectional GRU, and the posterior over latent paths that it answers with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from connector.lrrnn.spikes.scan import run_pair
from connector.numerics import gaussian


class PathPosterior(NamedTuple):
    """The encoder's answer, in the model's own whitened coordinates (standard normal under the prior).

    Attributes:
        mean, log_sd: (B, R) of the initial state.
        correction: (time - 1, B, R) drift correction of each step, zero past a trial's end.
    """

    mean: Tensor
    log_sd: Tensor
    correction: Tensor

    def divergence(self, alpha: float) -> Tensor:
        """Kullback-Leibler divergence from the prior on the path of each trial, (B,), in closed form."""
        start = 0.5 * (self.mean**2 + torch.exp(2 * self.log_sd) - 1 - 2 * self.log_sd).sum(-1)
        return start + 0.5 * alpha * (self.correction**2).sum((0, 2))


class Encoder(nn.Module):
    """Bidirectional GRU on sums of ``window`` bins; padding is never read, so it changes nothing.

    Args:
        n_features: features per bin.
        rank: R.
        hidden: width of each direction.
        window: bins per sum.
        start_sd: sd, in bins, of the half Gaussian that averages features for a linear share of the initial state.
    """

    def __init__(self, n_features: int, rank: int, hidden: int = 64, window: int = 4, start_sd: float = 5.0):
        super().__init__()
        self.window, self.rank, self.start_sd = window, rank, float(start_sd)
        self.linear_start = nn.Linear(n_features, rank, bias=False)
        nn.init.zeros_(self.linear_start.weight)
        self.forward_gru = nn.GRU(n_features + 1, hidden, batch_first=True)
        self.backward_gru = nn.GRU(n_features + 1, hidden, batch_first=True)
        self.start = nn.Linear(2 * hidden, 2 * rank)
        self.correction = nn.Linear(2 * hidden, rank)
        with torch.no_grad():  # begin near the prior
            for head in (self.start, self.correction):
                head.weight.mul_(0.1)
                head.bias.zero_()

    def forward(self, features: Tensor, mask: Tensor) -> PathPosterior:
        """features (B, time, n_features), zero where mask (B, time) is False."""
        trials, steps, width = features.shape
        blocks = -(-steps // self.window)
        padded = features.new_zeros(trials, blocks * self.window, width + 1)
        padded[:, :steps, :width] = features
        padded[:, :steps, width] = mask.to(features.dtype) / self.window
        sums = padded.view(trials, blocks, self.window, width + 1).sum(2)
        # Each trial is turned round within its own length: padding comes last in both directions.
        length = -(-mask.sum(1) // self.window)
        position = torch.arange(blocks, device=mask.device)
        turned = torch.where(position < length[:, None], length[:, None] - 1 - position, position)[..., None]
        backwards = sums.gather(1, turned.expand(-1, -1, width + 1))
        states = run_pair((self.forward_gru, self.backward_gru), torch.stack([sums, backwards]).permute(2, 0, 1, 3))
        ahead, behind = states.permute(1, 2, 0, 3)
        both = torch.cat([ahead, behind.gather(1, turned.expand(-1, -1, behind.shape[-1]))], -1)
        mean, log_sd = self.start(both[:, 0]).chunk(2, -1)
        early = gaussian(torch.arange(steps, device=mask.device), self.start_sd) * mask
        early = torch.einsum("bt,btf->bf", early / early.sum(1, keepdim=True), features)
        mean = mean + self.linear_start(early)
        correction = self.correction(both).repeat_interleave(self.window, 1)[:, : steps - 1]
        correction = correction * mask[:, 1:, None]
        return PathPosterior(mean, log_sd.clamp(-5, 2), correction.transpose(0, 1))
