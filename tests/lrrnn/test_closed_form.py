"""The closed form against teachers whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rate_networks import drive_error, make_network, record, unexplained

from connector.dynamics import Network
from connector.errors import UserError
from connector.lrrnn.closed_form import fit_rates_closed_form
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.rate_model import RateModel
from connector.types import Recording, valid_mask


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus", "sigmoid"])
@pytest.mark.parametrize(("n_inputs", "has_bias", "rank"), [(0, False, 2), (1, True, 2), (2, False, 3)])
def test_clean_rates_give_back_the_teacher(activation, n_inputs, has_bias, rank):
    net = make_network(activation, rank=rank, n_inputs=n_inputs, has_bias=has_bias)
    recording = record(net, ragged=True)
    fit = fit_rates_closed_form(recording, rank, has_bias=has_bias)
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths, affine=has_bias)
    mask = recording.mask
    assert unexplained(gauge.latents(fit.latents.z)[mask], recording.latents[mask]) < 1e-8
    # a relu neuron silenced by every input leaves its input weight open, so b is compared through the rates
    assert unexplained(gauge.loadings(fit.loadings).m, net.m) < 1e-4
    residual = (fit.network.rates(fit.latents.z, recording.inputs) - recording.activity)[mask]
    assert float(residual.abs().max()) < 1e-3
    assert drive_error(fit, gauge, net, recording) < 2e-3


def test_gauge_of_the_closed_form_is_the_stated_one():
    recording = record(make_network("sigmoid", has_bias=True), ragged=True)
    fit = fit_rates_closed_form(recording, 2, has_bias=True)
    z, m = fit.latents.z[recording.mask], fit.loadings.m
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(2).double(), rtol=0, atol=1e-4)
    gram = m.T @ m
    assert abs(float(gram[0, 1])) < 1e-3 * float(gram[1, 1])
    assert gram[0, 0] >= gram[1, 1]
    assert (m.gather(0, m.abs().argmax(0, keepdim=True)) > 0).all()


def test_padding_changes_nothing():
    net = make_network(n_inputs=1, has_bias=True)
    recording = record(net, ragged=True, noise=0.1)
    g = torch.Generator().manual_seed(8)

    def padded(x):
        extra = torch.zeros(x.shape[0], 7, *x.shape[2:], dtype=x.dtype)
        out = torch.cat([x, extra], dim=1)
        beyond = ~valid_mask(recording.lengths, out.shape[1])
        out[beyond] = 5 * torch.rand(out[beyond].shape, generator=g, dtype=x.dtype)
        return out

    longer = Recording(
        activity=padded(recording.activity),
        kind="rates",
        lengths=recording.lengths,
        alpha=recording.alpha,
        activation="tanh",
        inputs=padded(recording.inputs),
    )
    a, b = (fit_rates_closed_form(r, 2, has_bias=True) for r in (recording, longer))
    torch.testing.assert_close(a.loadings.stack(), b.loadings.stack(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.latents.z[recording.mask], b.latents.z[longer.mask], rtol=1e-4, atol=1e-4)


def test_noisy_rates_loadings_dynamics_and_stated_uncertainty():
    net = make_network(k=300)
    recording = record(net, noise=0.3, trials=150)
    fit = fit_rates_closed_form(recording, 2)
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
    mask = recording.mask
    smooth = unexplained(gauge.latents(fit.latents.z)[mask], recording.latents[mask])
    sample_wise = unexplained(gauge.latents(fit.readings[0])[mask], recording.latents[mask])
    assert smooth < 0.1 * sample_wise
    assert drive_error(fit, gauge, net, recording) < 0.02
    assert fit.residual_sd == pytest.approx(0.3, rel=0.01)
    assert fit.misfit == pytest.approx(1.0, abs=0.1)
    error = gauge.loadings(fit.loadings).m - net.m
    sd = gauge.loadings_covariance(fit.loadings_covariance).diagonal(dim1=1, dim2=2).sqrt()
    normalised = error / sd
    assert float(normalised.square().mean().sqrt()) == pytest.approx(1.0, abs=0.15)
    assert float((normalised.abs() < 1.96).double().mean()) == pytest.approx(0.95, abs=0.03)


def test_two_valued_observations_passed_as_rates():
    net = make_network(k=300)
    recording = record(net, two_valued=True, trials=150)
    fit = fit_rates_closed_form(recording, 2)
    assert fit.observation.noise == "two_valued"
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
    error = gauge.loadings(fit.loadings).m - net.m
    sd = gauge.loadings_covariance(fit.loadings_covariance).diagonal(dim1=1, dim2=2).sqrt()
    assert unexplained(gauge.loadings(fit.loadings).m, net.m) < 3e-3
    assert float((error / sd).square().mean().sqrt()) == pytest.approx(1.0, abs=0.2)
    assert drive_error(fit, gauge, net, recording) < 0.03


def test_process_noise_is_told_from_observation_noise():
    net, g = make_network(k=300), torch.Generator().manual_seed(9)
    z = [4 * torch.rand(100, 2, generator=g).double() - 2]
    for _ in range(49):
        z.append(net.step(z[-1]) + 0.03 * torch.randn(100, 2, generator=g))
    z = torch.stack(z, dim=1)
    rates = net.rates(z) + 0.1 * torch.randn(100, 50, 300, generator=g)
    recording = Recording(rates.float(), "rates", torch.full((100,), 50), 0.1, "tanh")
    fit = fit_rates_closed_form(recording, 2)
    gauge = Gauge.fit(fit.latents.z, z, recording.lengths)
    q = gauge.matrix @ fit.process_covariance @ gauge.matrix.T
    torch.testing.assert_close(q.diagonal().sqrt(), torch.full((2,), 0.03).double(), rtol=0.15, atol=0)
    # the posterior is calibrated: normalised squared error has mean R
    error = gauge.latents(fit.latents.z) - z
    spread = gauge.matrix @ fit.latents_covariance @ gauge.matrix.T
    scaled = torch.einsum("nti,ntij,ntj->nt", error, torch.linalg.inv(spread), error).mean()
    assert float(scaled) == pytest.approx(2.0, abs=0.4)


def test_saturated_float32_rates_do_no_harm():
    net = make_network()
    net = Network(4 * net.m, net.n, alpha=0.1)
    recording = record(net)
    assert float((recording.activity.abs() == 1).double().mean()) > 1e-3
    fit = fit_rates_closed_form(recording, 2)
    gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
    assert unexplained(gauge.loadings(fit.loadings).m, net.m) < 1e-8


def test_refusals():
    recording = record(make_network(), trials=10)
    with pytest.raises(UserError):
        fit_rates_closed_form(recording, 0)
    with pytest.raises(UserError):
        RateModel(10, 2, init="lucky")


@pytest.mark.parametrize("unit", [2.0**-30, 1e-9, 1e6])
def test_the_unit_of_the_inputs_changes_nothing_but_b(unit):
    """Of few samples too, where floors and damping bind."""
    net = make_network(k=40, n_inputs=1, seed=2)
    recording = record(net, trials=15, steps=25, noise=0.1)
    one, other = (fit_rates_closed_form(replace(recording, inputs=x * recording.inputs), 2) for x in (1.0, unit))
    torch.testing.assert_close(other.loadings.m, one.loadings.m, rtol=0, atol=1e-5)
    torch.testing.assert_close(unit * other.loadings.b, one.loadings.b, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.n, one.n, rtol=1e-3, atol=1e-3)
    scale = torch.tensor([1.0, 1.0, unit], dtype=torch.float64)
    spread = scale[:, None] * other.loadings_covariance * scale
    torch.testing.assert_close(spread, one.loadings_covariance, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(other.latents.inputs, unit * one.latents.inputs)
