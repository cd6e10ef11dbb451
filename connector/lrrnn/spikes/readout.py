"""What is read off a trained spike model: loadings, states of single bins, what the connectivity stages need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from connector.lrrnn.latents import read_states
from connector.lrrnn.observation import Observation
from connector.lrrnn.spikes.baselines import Baseline, poisson_regression
from connector.lrrnn.spikes.model import SpikeModel
from connector.types import Latents, Loadings, Recording, TrialBatch

# Largest standard deviation of the states read from single bins, relative to the spread of the latents, at which
# trajectories are compared with them. Above, single trials are known through the model's own noise process only.
INFORMATIVE = 0.6


def refit_loadings(
    model: SpikeModel,
    recording: Recording,
    train: Tensor,
    baseline: Baseline,
    *,
    m_penalty: float = 1e-2,
    b_penalty: float = 10.0,
    d_penalty: float = 1e-2,
) -> tuple[Loadings, Tensor]:
    """m, b, d of the recorded neurons by penalised Poisson regression on latents and inputs, with their covariance.

    The count is Poisson(scale * softplus(m.z + b.u + d' + baseline)) at the posterior-mean latents of training
    trials. Spikes hardly constrain b, an effect of single inputs beyond the latent state: its penalty was chosen for
    the conditioning of what is built on the loadings, and b is no finding.

    Returns:
        Loadings, where d = d' + mean baseline is the neuron's operating point, and the Laplace covariance of each
        neuron's (m, b, d), (K, P, P) float64, columns in the order of ``Loadings.stack``.
    """
    train = torch.as_tensor(train, dtype=torch.int64)
    batch = TrialBatch.of(recording, train, baseline.argument)
    inside = batch.mask
    z = model.infer(batch)[inside].double()
    parts = [z] if not model.rnn.n_inputs else [z, batch.inputs[inside].double()]
    parts.append(torch.ones(len(z), 1, dtype=torch.float64))
    penalty = [m_penalty] * model.rank + [b_penalty] * model.rnn.n_inputs + [d_penalty]
    fit = poisson_regression(
        torch.cat(parts, 1),
        batch.activity[inside],
        offset=batch.baseline[inside],
        penalty=torch.tensor(penalty, dtype=torch.float64),
        scale=model.scale,
    )
    loadings = Loadings.unstack(fit.coefficients, model.rank, model.rnn.n_inputs, has_bias=True)
    return Loadings(loadings.m, loadings.b, loadings.d + model.baseline_mean.double()), fit.covariance


class ConnectivityInputs(NamedTuple):
    """What a fit to spikes hands to the estimate of the connectivity.

    Attributes:
        latents: posterior means of all trials, float64. Their ``drive`` is the fitted latent network's F(z, u) there,
            unless there are ``readings``.
        loadings: of the recorded neurons, as they are read: softplus(m.z + b.u + d); loadings_covariance: (K, P, P).
        readings: states read from each bin on its own with their covariances, see :func:`read_counts`; None where the
            bins say too little for that (:data:`INFORMATIVE`).
    """

    latents: Latents
    loadings: Loadings
    loadings_covariance: Tensor
    readings: tuple[Tensor, Tensor] | None


@torch.no_grad()
def connectivity_inputs(
    model: SpikeModel, recording: Recording, train: Tensor, baseline: Baseline, **penalties: float
) -> ConnectivityInputs:
    """What the connectivity stages need of a fitted model."""
    batch = TrialBatch.of(recording, None, baseline.argument)
    z = model.infer(batch).double()
    inputs = None if not model.rnn.n_inputs else recording.inputs.double()
    loadings, covariance = refit_loadings(model, recording, train, baseline, **penalties)
    readings = read_counts(batch, z, loadings, model.scale, model.baseline_mean)
    spread = z[batch.mask].std(0)
    error = readings[1][batch.mask].diagonal(dim1=1, dim2=2).median(0).values.sqrt()
    if float((error / spread).max()) < INFORMATIVE:
        return ConnectivityInputs(
            Latents(z, recording.lengths, model.alpha, inputs), loadings, covariance, readings
        )  # fmt: skip
    drive = model.rnn.network().double().drive(z, inputs) * batch.mask[..., None]
    return ConnectivityInputs(
        Latents(z, recording.lengths, model.alpha, inputs, drive), loadings, covariance, None
    )  # fmt: skip


def read_counts(
    batch: TrialBatch, guide: Tensor, loadings: Loadings, scale: float, baseline_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """What the spikes of each bin say of the state by themselves: :func:`connector.lrrnn.latents.read_states` of counts.

    Args:
        batch: counts, inputs and baseline of some trials; guide: (B, time, R) posterior means.
        loadings: of the neurons, d being at the mean baseline; scale: expected count where softplus is 1.
        baseline_mean: (K,) mean baseline, contained in both d and the batch's baseline.
    """
    offset = None if batch.baseline is None else batch.baseline - baseline_mean
    inputs = None if loadings.b is None else batch.inputs
    observation = Observation.of("softplus", "poisson", scale)
    return read_states(
        batch.activity / scale, batch.mask, guide.double(), loadings, observation, inputs=inputs, offset=offset
    )
