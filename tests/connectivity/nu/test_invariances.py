"""Units and gauges: what leaves the model as it is leaves nu, its intervals and the vector field as they are.

The table of activations and scales: pytest -m slow -s tests/connectivity/nu/test_invariances.py
"""

from dataclasses import replace

import pytest
import torch
from draws import normal

from connector.analysis.attractors import find_attractors
from connector.analysis.fields import drive_at, relative_field_error
from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.data.attractors import teacher
from connector.data.folds import fold
from connector.dynamics import Network
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.numerics import whitening_of
from connector.types import Latents, Recording

S = torch.tensor([[1.6, -0.3], [0.3, 1.6]]).double()
GAIN = {"tanh": 1, "relu": 1, "softplus": 2, "sigmoid": 4}
FAST = TrajectorySettings(families=("none", "arcsine"), widths=(0.8,), draws=1)


def driven(activation, n_inputs=0, k=60, trials=15, steps=40):
    """A network with n = S m and a deviation of each neuron's own, its states (trials, steps, 2), its inputs."""
    m, has_bias = normal(k, 2), activation == "softplus"
    n = GAIN[activation] * (m @ S.T) + 0.3 * normal(k, 2, seed=1)
    b = normal(k, n_inputs, seed=2) if n_inputs else None
    net = Network(m, n, b, normal(k, seed=3) if has_bias else None, alpha=0.1, activation=activation)
    u = 0.3 * normal(trials, steps, n_inputs, seed=4).cumsum(1) if n_inputs else None
    return net, net.simulate(1.5 * normal(trials, 2, seed=5), steps, u), u


def judged(net, z, u, loadings, model, gauge, rates=1.0):
    """Field error, squared error of nu, and predicted error of nu, in the gauge and units of ``net``."""
    nu = rates * model(loadings.stack()) @ gauge.inverse.matrix.T
    true = GAIN[net.activation] * (net.m @ S.T)
    states, inputs = z.flatten(0, 1), None if u is None else u.flatten(0, 1)
    error = relative_field_error(drive_at(replace(net, n=nu), states, inputs), states, net.drive(states, inputs))
    return error, float((nu - true).square().sum() / true.square().sum()), model.predicted_error


def from_latents(
    net, z, u, *, latents=1.0, inputs=1.0, rates=1.0, matrix=None, neurons=None, trials=None, fraction=1.0
):
    """Of known latents and loadings, in other units, gauge and order."""
    gauge = Gauge(latents * (torch.eye(2).double() if matrix is None else matrix), torch.zeros(2).double())
    neurons = torch.arange(len(net.m)) if neurons is None else neurons
    trials = torch.arange(len(z)) if trials is None else trials
    loadings = gauge.loadings(net.loadings).map(lambda x: rates * x[neurons])
    u_seen = None if u is None else inputs * u
    if u is not None:
        loadings = replace(loadings, b=loadings.b / inputs)
    lengths = torch.full((len(z),), z.shape[1])
    seen = Latents(gauge.latents(z), lengths, net.alpha, u_seen).trials(trials)
    model = fit_trajectories(seen, loadings, activation=net.activation, recorded_fraction=fraction, settings=FAST)
    back = neurons.argsort()
    return judged(net, z, u, loadings.map(lambda x: x[back]), model, gauge, rates)


def from_rates(net, z, u, *, rates=1.0, inputs=1.0, noise=0.0, settings=FAST):
    """Of rates and inputs in other units, by the low-rank RNN, in the gauge of the true latents."""
    activity = rates * (net.rates(z, u) + noise * normal(*z.shape[:2], len(net.m), seed=6))
    lengths, split = torch.full((len(z),), z.shape[1]), fold(len(z), 1, 5, 17)
    u_seen = None if u is None else (inputs * u).float()
    recording = Recording(activity.float(), "rates", lengths, net.alpha, net.activation, inputs=u_seen)
    has_bias = net.d is not None
    model = RateModel(len(net.m), 2, 0 if u is None else u.shape[2], has_bias, net.alpha, net.activation)
    model.initialise(recording.trials(split.train))
    found = fitted_dynamics(model, recording, split)
    gauge = Gauge.fit(found.latents.z, z, lengths, split.train, affine=has_bias)
    found = found.moved(gauge)
    nu = fit_trajectories(
        found.latents.trials(split.train),
        found.loadings,
        activation=net.activation,
        loadings_covariance=found.loadings_covariance if noise else None,
        observed=None if found.readings is None else tuple(x[split.train] for x in found.readings),
        settings=settings,
    )
    return judged(net, z, u, found.loadings, nu, Gauge(torch.eye(2).double(), torch.zeros(2).double()), rates)


def same(found, expected, tolerance=0.05):
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("scale", [1e3])
def test_rates_of_relu_in_any_unit(scale):
    net, z, u = driven("relu")
    same(from_rates(net, z, u, rates=scale), from_rates(net, z, u))


def test_inputs_of_rates_in_any_unit():
    """Currents in amperes, say."""
    net, z, u = driven("tanh", n_inputs=1)
    same(from_rates(net, z, u, inputs=1e-9, noise=0.05), from_rates(net, z, u, noise=0.05), 0.01)


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_latents_in_any_unit_and_neurons_and_trials_in_any_order(activation):
    net, z, u = driven(activation)
    orders = [torch.randperm(size, generator=torch.Generator().manual_seed(0)) for size in (len(net.m), len(z))]
    same(
        from_latents(net, z, u, latents=1e3, neurons=orders[0], trials=orders[1], fraction=None),
        from_latents(net, z, u, fraction=None),
    )


def test_inputs_in_any_unit():
    net, z, u = driven("tanh", n_inputs=1)
    same(from_latents(net, z, u, inputs=1e3, latents=1e-3), from_latents(net, z, u))


def test_latents_in_any_linear_gauge():
    net, z, u = driven("tanh")
    other = from_latents(net, z, u, matrix=torch.tensor([[2.0, 1.0], [-0.5, 0.3]]).double())
    same(other[:2], from_latents(net, z, u)[:2])  # sums of squares over dimensions are another thing there


@pytest.mark.slow
def test_in_any_gauge_the_default_kernels_keep_the_field_and_intervals_that_hold_nu():
    """One of them sees the axes of the latents (`additive`), which another gauge turns: nu is then another estimate, here of
    functions along the axes with an error 2.3 times as large, and its intervals have to say so."""
    net, _, _ = driven("tanh")
    true = torch.stack([2 * torch.tanh(2 * net.m[:, 0]), 1.5 * torch.erf(1.5 * net.m[:, 1])], 1)
    net = replace(net, n=true + 0.3 * normal(*net.m.shape, seed=1))
    z, fields = net.simulate(1.5 * normal(15, 2, seed=5), 40), []
    for matrix in ([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [-0.5, 0.3]], [[0.6, -0.8], [0.8, 0.6]]):
        gauge = Gauge(torch.tensor(matrix).double(), torch.zeros(2).double())
        seen, loadings = Latents(gauge.latents(z), torch.full((15,), z.shape[1]), 0.1), gauge.loadings(net.loadings)
        model = fit_trajectories(
            seen, loadings, activation="tanh", recorded_fraction=None, settings=TrajectorySettings(draws=1)
        )
        low, high = model.interval(loadings.m)
        held = ((low <= gauge.latents(true)) & (gauge.latents(true) <= high)).double().mean()
        assert float(held) > 0.9
        fields.append(judged(net, z, None, loadings, model, gauge)[0])
    assert max(fields) < 1.1 * min(fields)


def test_columns_in_units_far_apart_are_whitened():
    x = normal(200, 3) @ torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]]).double()
    for units in ([1.0, 1.0, 1.0], [1e3, 1e-3, 1.0], [1e8, 1.0, 1e-2]):
        white = x * torch.tensor(units).double()
        white = white @ whitening_of(white)
        assert torch.allclose(white.T @ white / 200, torch.eye(3).double(), atol=1e-6)
    constant = torch.cat([x, torch.zeros(200, 1).double()], 1)
    assert torch.isfinite(whitening_of(1e6 * constant)).all()


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_attractors_of_states_in_any_unit(unit):
    source = teacher("quadstable")
    field = lambda z: unit * source.vector_field(z / unit)  # noqa: E731
    found, expected = find_attractors(field, extent=2.4 * unit), find_attractors(source.vector_field)
    assert str(found) == str(expected) == "4 stable fixed points"
    assert float(torch.cdist(found.points / unit, expected.points).min(1).values.max()) < 1e-6


SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 20.0, 100.0, 1e3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "what", "options"),
    [
        *((a, "latents", {"fraction": f}) for a in GAIN for f in (1.0, None)),
        *((a, "inputs", {}) for a in GAIN),
        ("relu", "rates", {}),
        ("relu", "rates", {"noise": 0.05}),
    ],
)
def test_table_of_activations_and_scales(activation, what, options):
    fit = from_rates if what == "rates" else from_latents
    net, z, u = driven(activation, n_inputs=int(what == "inputs"), k=100, trials=30, steps=50)
    found = {scale: fit(net, z, u, **{what: scale}, **options) for scale in SCALES}
    for scale, (field, squared, predicted) in found.items():
        print(
            f"{activation:9} {what:8} {scale:<6g} {options} field {field:.4f} nu {squared:.5f} predicted {predicted:.5f}"
        )
    for row in found.values():
        same(row[:2], found[1.0][:2])
