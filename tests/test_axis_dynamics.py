"""The likelihood along an axis: against the Kalman filter, and one stable point told from two where both are plain to see."""

import math

import pytest
import torch

from connector.axis_dynamics import AxisData, fit_axis, forward
from connector.errors import UserError


def readings(drift, n_trials=120, steps=20, dt=0.05, sigma=0.5, noise=0.3, push=(-0.15, 0.15), seed=0):
    """Paths x under clicks and noise, seen through Gaussian readings of sd ``noise``."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(n_trials, generator=generator, dtype=torch.float64)

    inputs = torch.bernoulli(torch.full((n_trials, steps, 2), 0.3, dtype=torch.float64), generator=generator)
    push = torch.tensor(push, dtype=torch.float64)
    x = [0.2 * normal()]
    for t in range(steps - 1):
        x.append(x[-1] + dt * drift(x[-1]) + inputs[:, t] @ push + sigma * math.sqrt(dt) * normal())
    x = torch.stack(x, 1)
    y = x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    grid = torch.linspace(-2, 2, 81, dtype=torch.float64)
    lengths = torch.randint(steps // 2, steps + 1, (n_trials,), generator=generator)
    inside = torch.arange(steps) < lengths[:, None]
    log_emission = -0.5 * ((y[..., None] - grid) / noise) ** 2 - math.log(noise * math.sqrt(2 * math.pi))
    axis = torch.tensor([1.0], dtype=torch.float64)
    return AxisData(grid, axis, log_emission * inside[..., None], inputs, lengths, dt, push, sigma**2), y


def kalman(data, y, rate, sigma, start, noise):
    """Log-likelihood and last filtered mean of each trial of the linear model."""
    totals, ends = [], []
    for trial, length in enumerate(data.steps.tolist()):
        mean, variance, total = start[0], start[1] ** 2, 0.0
        for t in range(length):
            spread = variance + noise**2
            error = float(y[trial, t]) - mean
            total += -0.5 * error**2 / spread - 0.5 * math.log(2 * math.pi * spread)
            mean, variance = mean + variance / spread * error, variance * noise**2 / spread
            filtered = mean
            decay = 1 + data.dt_s * rate
            mean = decay * mean + float(data.inputs[trial, t] @ data.push)
            variance = decay**2 * variance + sigma**2 * data.dt_s
        totals.append(total)
        ends.append(filtered)
    return torch.tensor([totals, ends], dtype=torch.float64)


def test_forward_algorithm_equals_the_kalman_filter_where_the_drift_is_linear():
    data, y = readings(lambda x: -1.3 * x, n_trials=30)
    number = torch.tensor
    total, ends = forward(data, (0.0, -1.3, 0.0), data.push, number(0.5), (number(0.0), number(0.2)))
    known = kalman(data, y, -1.3, 0.5, (0.0, 0.2), 0.3)
    # The grid and the interpolation of shifts add a little variance.
    torch.testing.assert_close(total, known[0], rtol=0, atol=0.03)
    torch.testing.assert_close(ends, known[1], rtol=0, atol=0.01)


@pytest.mark.parametrize(("kind", "drift"), [("one", lambda x: -3.0 * x), ("two", lambda x: 3.0 * x - 3.0 * x**3)])
def test_the_kind_that_made_the_paths_is_the_likelier_and_its_drift_comes_back(kind, drift):
    data, _ = readings(drift, seed=1)
    fits = {name: fit_axis(data, name) for name in ("one", "two")}
    other = fits["two" if kind == "one" else "one"]
    assert fits[kind].log_likelihood > other.log_likelihood + 3
    x = torch.linspace(-0.6, 0.6, 21, dtype=torch.float64)
    error = (fits[kind].drift(x) - drift(x)).square().mean().sqrt()
    assert float(error) < 0.5 * float(drift(x).square().mean().sqrt())
    torch.testing.assert_close(fits[kind].push, data.push, rtol=0.25, atol=0)


def test_two_has_two_stable_points_and_one_has_one():
    data, _ = readings(lambda x: 0.0 * x, n_trials=40, steps=10)
    for kind, stable in (("one", 1), ("two", 2)):
        fit = fit_axis(data, kind, steps=5)
        values = fit.drift(torch.linspace(-20, 20, 40001, dtype=torch.float64))
        assert int(((values[:-1] > 0) & (values[1:] <= 0)).sum()) == stable
    with pytest.raises(UserError, match="one, two"):
        fit_axis(data, "three")
