"""The hand-over in other latent coordinates, and as the named arrays of latents.npz."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rate_networks import make_network, record
from torch.testing import assert_close

from connector.data.folds import fold
from connector.dynamics import potentials
from connector.errors import UserError
from connector.lrrnn.closed_form import fit_rates_closed_form
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.types import Latents

TURN = torch.tensor([[1.2, 0.4], [-0.5, 0.7]], dtype=torch.float64)


def handed_over(has_bias=True, model_drive=False) -> FittedDynamics:
    """All that can be known of softplus neurons with an input, ragged trials; ``model_drive``: its drive stands beside it."""
    net = make_network("softplus", n_inputs=1, has_bias=has_bias)
    recording = record(net, trials=20, ragged=True)
    g = torch.Generator().manual_seed(2)
    z = recording.latents
    spread, width = torch.randn(*z.shape, 2, generator=g).double(), net.loadings.stack().shape[1]
    root = torch.randn(net.n_neurons, width, width, generator=g).double()
    drive = net.drive(z, recording.inputs) * recording.mask[..., None] if model_drive else None
    readings = (z + 0.1 * torch.randn(*z.shape, generator=g), spread @ spread.mT)
    latents = Latents.of(recording, z, drive)
    return FittedDynamics(latents, net.loadings, fold(20), "softplus", root @ root.mT, readings, net.n)


def assert_same(a: FittedDynamics, b: FittedDynamics, atol: float = 1e-9) -> None:
    mask = a.latents.mask
    for (name, x), y in zip(a.arrays().items(), b.arrays().values()):
        assert (x is None) == (y is None), name
        if isinstance(x, torch.Tensor):
            if x.shape[:2] == mask.shape and x.is_floating_point():
                x, y = x[mask], y[mask]
            assert_close(x, y, rtol=1e-7, atol=atol, msg=name)
        elif x is not None:
            assert x == y, name


@pytest.mark.parametrize("model_drive", [False, True])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, -1.0)])
def test_moving_leaves_every_rate_and_every_drive(shift, model_drive):
    fit, gauge = handed_over(model_drive=model_drive), Gauge(TURN, torch.tensor(shift).double())
    moved = fit.moved(gauge)
    mask, u = fit.latents.mask, fit.latents.inputs
    h = potentials(fit.loadings, fit.latents.z, u)[mask]
    assert_close(potentials(moved.loadings, moved.latents.z, u)[mask], h)
    assert_close(moved.latents.samples()[2], gauge.latents(fit.latents.samples()[2]))
    z, inputs, y = moved.latents.samples()
    if not model_drive:  # the recorded dynamics are those of the network, which n reproduces in either gauge
        assert_close(moved.network.drive(z, inputs), y, rtol=0, atol=2e-4)
    assert not moved.latents.z[~mask].any()
    # a reading errs as it did: its distance in units of its covariance stays
    distances = []
    for found in (fit, moved):
        error, covariance = (found.readings[0] - found.latents.z)[mask], found.readings[1][mask]
        distances.append((error * torch.linalg.solve(covariance, error)).sum(-1))
    assert_close(distances[1], distances[0], rtol=1e-6, atol=1e-6)
    # the variance of a potential stays
    x = torch.cat([fit.latents.z[mask], u[mask], torch.ones(len(h), 1).double()], 1)
    x_moved = torch.cat([moved.latents.z[mask], x[:, 2:]], 1)
    variances = [
        torch.einsum("tp,kpq,tq->tk", a, c, a)
        for a, c in ((x, fit.loadings_covariance), (x_moved, moved.loadings_covariance))
    ]
    assert_close(variances[1], variances[0])


@pytest.mark.parametrize("model_drive", [False, True])
def test_the_inverse_undoes_it(model_drive):
    fit, gauge = handed_over(model_drive=model_drive), Gauge(TURN, torch.tensor([0.5, -1.0]).double())
    assert_same(fit.moved(gauge).moved(gauge.inverse), fit, atol=1e-5)
    with pytest.raises(UserError, match="loadings with a bias"):
        handed_over(has_bias=False).moved(gauge)


def test_a_closed_form_moves_its_own_covariances_along():
    recording = record(make_network(), noise=0.1, trials=30)
    fit, gauge = fit_rates_closed_form(recording, 2), Gauge(TURN, torch.zeros(2).double())
    moved = fit.moved(gauge)
    assert moved.misfit == fit.misfit
    assert_close(moved.process_covariance, TURN @ fit.process_covariance @ TURN.T)
    assert_close(moved.latents_covariance, TURN @ fit.latents_covariance @ TURN.T)


def test_arrays_give_the_hand_over_back():
    fit = handed_over(model_drive=True)

    def there_and_back(given: FittedDynamics) -> FittedDynamics:
        arrays = {k: np.asarray(v) for k, v in given.arrays().items() if v is not None}
        return FittedDynamics.of_arrays(arrays)

    assert_same(there_and_back(fit), fit, atol=0)
    bare = replace(fit.without_bias(), loadings_covariance=None, readings=None, n=None)
    assert_same(there_and_back(bare), bare, atol=0)
    wrong = replace(fit, n=fit.n[1:])
    with pytest.raises(ValueError, match="n of shape"):
        there_and_back(wrong)
    with pytest.raises(ValueError, match="not finite"):
        replace(fit, n=fit.n * torch.nan).arrays()
