"""What is read off a trained spike model: loadings, states of single bins, what the connectivity stages need."""

from __future__ import annotations

import torch
from torch import Tensor

from connector.data.folds import Fold
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.latents import read_states
from connector.lrrnn.observation import Observation
from connector.lrrnn.spikes.baselines import Baseline, poisson_regression
from connector.lrrnn.spikes.state_space import SpikeStateSpace
from connector.types import Latents, Loadings, Recording, TrialBatch


def refit_loadings(
    model: SpikeStateSpace,
    recording: Recording,
    train: Tensor,
    baseline: Baseline,
    *,
    m_penalty: float = 1e-2,
    b_penalty: float = 10.0,
    d_penalty: float = 1e-2,
) -> tuple[Loadings, Tensor]:
    """m, b, d of the recorded neurons by penalised Poisson regression on latents and inputs, with their covariance.

    The count is Poisson(scale * softplus(m.z + b.u + d' + baseline)) at the most likely latents of training
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


@torch.no_grad()
def fitted_dynamics(
    model: SpikeStateSpace, recording: Recording, fold: Fold, baseline: Baseline, **penalties: float
) -> FittedDynamics:
    """What a fitted model hands over, float64: most likely latents of all trials, and loadings (:func:`refit_loadings`).

    ``readings`` are those of :func:`read_counts`, however little single bins say: the drive of the fitted latent network
    has errors that nothing tells.
    """
    batch = TrialBatch.of(recording, None, baseline.argument)
    latents = Latents.of(recording, model.infer(batch).double())
    loadings, covariance = refit_loadings(model, recording, fold.train, baseline, **penalties)
    readings = read_counts(batch, latents.z, loadings, model.scale, model.baseline_mean)
    return FittedDynamics(latents, loadings, fold, recording.activation, covariance, readings)


def read_counts(
    batch: TrialBatch, guide: Tensor, loadings: Loadings, scale: float, baseline_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """What the spikes of each bin say of the state by themselves: :func:`connector.lrrnn.latents.read_states` of counts.

    Args:
        batch: counts, inputs and baseline of some trials; guide: (B, time, R) latents.
        loadings: of the neurons, d being at the mean baseline; scale: expected count where softplus is 1.
        baseline_mean: (K,) mean baseline, contained in both d and the batch's baseline.
    """
    offset = None if batch.baseline is None else batch.baseline - baseline_mean
    inputs = None if loadings.b is None else batch.inputs
    observation = Observation.of("softplus", "poisson", scale)
    return read_states(
        batch.activity / scale, batch.mask, guide.double(), loadings, observation, inputs=inputs, offset=offset
    )
