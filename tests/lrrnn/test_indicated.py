"""Behind a slow indicator: loadings off by as much as their errors say, and a field as good as noise allows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rate_networks import drive_error, make_network, record, unexplained

from connector.data.folds import Fold
from connector.data.indicator import with_indicator, without_indicator
from connector.dynamics import activation
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.indicated import behind_indicator
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.shooting import Field, Segments, linearise

DECAY_S, BIN_S = 0.5, 1 / 30


def test_traces_give_loadings_with_their_errors_and_the_field():
    network = make_network(k=80)
    rates = record(network, trials=40, steps=50)
    g = torch.Generator().manual_seed(4)
    trace = with_indicator(rates.activity.double(), math.exp(-BIN_S / DECAY_S))
    trace = trace + 0.05 * torch.randn(trace.shape, generator=g)
    trials = torch.arange(40)
    recording = without_indicator(replace(rates, activity=trace.float(), bin_s=BIN_S), DECAY_S, trials)
    model = RateModel(80, 2)
    model.initialise(recording)
    plain = fitted_dynamics(model, recording, Fold(trials[:32], trials[32:36], trials[36:]))
    found = behind_indicator(plain, recording)
    off = []
    for fit in (plain, found):
        gauge = Gauge.fit(fit.latents.z, recording.latents, recording.lengths)
        moved = fit.moved(gauge)
        errors = (moved.loadings.m - network.m) / moved.loadings_covariance.diagonal(dim1=1, dim2=2).sqrt()
        off.append((drive_error(fit, gauge, network, recording), unexplained(moved.loadings.m, network.m), errors))
    assert off[1][0] < 0.7 * off[0][0]
    assert off[1][1] < 0.2 * off[0][1]
    assert 0.7 < off[1][2].square().mean().sqrt() < 1.5 < off[0][2].square().mean().sqrt()
    held = trials[36:]
    gauge = Gauge.fit(found.latents.z, recording.latents, recording.lengths)
    assert unexplained(gauge.latents(found.latents.z[held]).flatten(0, 1), recording.latents[held].flatten(0, 1)) < 1e-3


def test_sensitivities_behind_an_indicator_are_those_of_differences():
    g = torch.Generator().manual_seed(0)
    network = make_network(k=30)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    z = network.simulate(normal(3, 2), 12)
    eye = torch.eye(2).double().expand(3, 12, 2, 2)
    segments = Segments(z, torch.ones(3, 12, dtype=torch.bool), None, z + 0.1 * normal(3, 12, 2), eye, 0.8)
    field, c = Field(activation("tanh"), network.loadings, normal(30, 4) / 30, 0.1), 0.5 * normal(4, 2)
    start = segments.starts()
    assert start.shape == (3, 4)
    found, step, direction = linearise(field, c, segments, start), 1e-5, normal(3, 4)

    def squares(size):
        return linearise(field, c, segments, start + size * direction).squares

    slope = (squares(step) - squares(-step)) / (2 * step)
    assert slope == pytest.approx(-2 * float((found.own_gradient * direction).sum()), rel=1e-4)
