"""The tilt of the loadings' density: means met, density and draws that agree, nothing done where nothing is to do."""

import pytest
import torch

from connector.connectivity.drive_matching import DriveTilt, OutputShift, fit_drive_tilt, fit_output_shift
from connector.dynamics import activation, potentials
from connector.types import Loadings


def _case(n_points=6000, seed=0):
    """Standard normal loadings with nu = 1.5 m + d, and states; the drive of the density sheared a little."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_points, 3, generator=g, dtype=torch.float64)
    z = 1.5 * torch.randn(300, 2, generator=g, dtype=torch.float64)

    def nu(x):
        return 1.5 * x[:, :2] + x[:, 2:]

    sheared = rows @ torch.tensor([[1.05, 0.03, 0.0], [0.0, 0.95, 0.0], [0.0, 0.05, 1.0]]).double()
    return rows, nu, z, sheared


def _drive(rows, n, z, weights=None):
    rates = activation("tanh")(potentials(Loadings.unstack(rows, 2, 0, True), z))
    return rates @ (n if weights is None else n * weights[:, None]) / len(rows)


def test_the_drive_asked_for_is_met():
    rows, nu, z, sheared = _case()
    target = _drive(sheared, nu(sheared), z)
    tilt = fit_drive_tilt(rows, nu(rows), z, None, target, activation="tanh", shape=(2, 0, True), n_neurons=10**6)
    weights = tilt.log_weight(rows, nu(rows)).exp()
    before = float((_drive(rows, nu(rows), z) - target).square().mean())
    after = float((_drive(rows, nu(rows), z, weights) - target).square().mean())
    assert after < 1e-2 * before
    assert float(weights.mean()) == pytest.approx(1, abs=1e-9)
    other = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9))  # unseen states
    there = _drive(sheared, nu(sheared), other)
    assert float((_drive(rows, nu(rows), other, weights) - there).square().mean()) < 0.05 * before


def test_nothing_is_tilted_where_the_drive_is_right():
    rows, nu, z, _ = _case()
    tilt = fit_drive_tilt(
        rows, nu(rows), z, None, _drive(rows, nu(rows), z), activation="tanh", shape=(2, 0, True), n_neurons=10**6
    )
    assert float(tilt.log_weight(rows, nu(rows)).abs().max()) < 1e-6


def test_a_drive_out_of_reach_leaves_no_tilt():
    rows, nu, z, _ = _case()
    target = 30 * _drive(rows, nu(rows), z)
    assert (
        fit_drive_tilt(rows, nu(rows), z, None, target, activation="tanh", shape=(2, 0, True), n_neurons=10**6) is None
    )


def test_weights_survive_their_state():
    rows, nu, z, sheared = _case()
    target = _drive(sheared, nu(sheared), z)
    tilt = fit_drive_tilt(rows, nu(rows), z, None, target, activation="tanh", shape=(2, 0, True), n_neurons=10**6)
    again = DriveTilt.rebuild(tilt.state())
    torch.testing.assert_close(again.log_weight(rows, nu(rows)), tilt.log_weight(rows, nu(rows)))


def test_the_shift_is_the_ridge_solution_on_the_points():
    """In its dual form: delta at the points = X^T (X W X^T / N + lambda T)^-1 (y - X W n / N), X = phi of all states."""
    rows, nu, z, sheared = _case(n_points=900)
    n, weights = nu(rows), torch.linspace(0.5, 1.5, 900).double()
    target = _drive(sheared, nu(sheared), z)
    fixed = {"activation": "tanh", "shape": (2, 0, True), "weights": weights}
    shift = fit_output_shift(rows, n, z, None, target, regularizer=1e-3, **fixed)
    x = activation("tanh")(potentials(Loadings.unstack(rows, 2, 0, True), z))
    gram = (x * weights) @ x.T / 900 + 1e-3 * len(z) * torch.eye(len(z)).double()
    expected = x.T @ torch.linalg.solve(gram, target - _drive(rows, n, z, weights))
    torch.testing.assert_close(shift(rows), expected, rtol=0, atol=2e-2 * float(expected.std()))
    # and a strong regularizer leaves nu alone
    assert float(fit_output_shift(rows, n, z, None, target, regularizer=1e6, **fixed)(rows).abs().max()) < 1e-5


def test_a_shift_meets_what_the_density_of_loadings_cannot():
    """Output weights that rotate: no weights of symmetric loadings give their drive."""
    rows, nu, z, _ = _case()
    rotated = nu(rows) + 0.1 * rows[:, [1, 0]] * torch.tensor([1.0, -1.0]).double()
    target = _drive(rows, rotated, z)
    fixed = {"activation": "tanh", "shape": (2, 0, True)}
    shift = fit_output_shift(rows, nu(rows), z, None, target, regularizer=1e-6, **fixed)
    other = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9))  # unseen states
    missed = (_drive(rows, nu(rows) + shift(rows), other) - _drive(rows, rotated, other)).square().mean()
    assert float(missed) < 1e-3 * float((_drive(rows, nu(rows), other) - _drive(rows, rotated, other)).square().mean())
    assert float(shift(rows).square().mean()) < 1.05 * float((rotated - nu(rows)).square().mean())  # the smallest
    again = OutputShift.rebuild(shift.state())
    assert torch.equal(again(rows), shift(rows))
