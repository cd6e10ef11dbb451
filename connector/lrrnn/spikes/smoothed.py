"""Spikes of many neurons: the low-rank RNN in closed form.

Where a bin holds enough spikes, each bin says by itself where the latent state is, and
:class:`connector.lrrnn.rate_model.RateModel` with Poisson counts finds loadings, latents and dynamics without gradient
descent. Its units are the recorded neurons with softplus(m.z + b.u + d). As a state space it is scored like a trained
:class:`connector.lrrnn.spikes.model.SpikeModel`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from connector.lrrnn.rate_model import RateModel
from connector.lrrnn.spikes.baselines import Baseline
from connector.lrrnn.spikes.fixed_model import FixedModel
from connector.lrrnn.spikes.state_space import SpikeStateSpace
from connector.types import Recording, TrialBatch

# Spikes per bin of all neurons together, for each latent dimension, from which on the closed form is chosen by itself. In
# simulations with 42 spikes a bin (rank 2) latents and loadings were off by what their stated errors say; with 16, the
# loadings by several times that. With 31 bands of the vector field were too narrow by a third: below FEW_SPIKES the
# dynamics are sampled in any case.
ENOUGH_SPIKES, FEW_SPIKES = 15.0, 20.0


def spikes_per_bin(recording: Recording) -> float:
    """Mean number of spikes of all neurons together in a recorded bin."""
    return float(recording.activity[recording.mask].sum(-1).mean())


def as_rates(recording: Recording, scale: float) -> Recording:
    """Counts over their scale as rates of softplus neurons."""
    return replace(recording, activity=recording.activity / scale, kind="rates", activation="softplus", bin_s=None)


def offset_of(baseline: Baseline, recording: Recording, train: Tensor) -> Tensor | None:
    """(trials, time, K): the baseline about its mean over training samples, which belongs to the bias; None where constant."""
    return None if baseline.kind == "constant" else baseline.argument - mean_baseline(baseline, recording, train)


def mean_baseline(baseline: Baseline, recording: Recording, train: Tensor) -> Tensor:
    """(K,): mean of the baseline over training samples, in units of the softplus's argument."""
    return baseline.argument[train][recording.mask[train]].mean(0)


class SmoothedSpikeModel(SpikeStateSpace):
    """A state space made of a closed form.

    Args:
        fitted: the closed form, on counts over ``baseline.scale``.
        recording: the spike counts; train: its training trials, whose smoothed first states give the prior of z[0].
        baseline: fitted on the same trials.
    """

    def __init__(self, fitted: RateModel, recording: Recording, train: Tensor, baseline: Baseline):
        rnn, scale = fitted.rnn, baseline.scale
        super().__init__(recording.n_neurons, rnn.rank, rnn.n_inputs, rnn.alpha, scale, rnn.n_units, rnn.activation)
        with torch.no_grad():
            self.baseline_mean.copy_(mean_baseline(baseline, recording, train))
            self.rnn.set_network(rnn.network())
            self.readout.copy_(rnn.m)
            self.bias.copy_(rnn.d - self.baseline_mean)
            factor = torch.linalg.cholesky(fitted.process_covariance / rnn.alpha)
            self.noise_factor.copy_(factor)
            batch = TrialBatch.of(recording, train, baseline.argument)
            counts = batch._replace(activity=batch.activity / scale, baseline=batch.baseline - self.baseline_mean)
            first = fitted.posterior(counts).z[:, 0]
            self.start_mean.copy_(first.mean(0))
            spread = torch.cov(first.T).reshape(rnn.rank, rnn.rank)
            spread = spread + 1e-4 * spread.diagonal().mean() * torch.eye(rnn.rank, dtype=spread.dtype)
            self.start_factor.copy_(torch.linalg.cholesky(spread))

    def _given(self) -> FixedModel:
        """With the neurons' own input weights."""
        given = super()._given()
        if self.rnn.n_inputs:
            given.p.loadings[:, self.rank : -1] = self.rnn.b.detach().double()
        return given
