"""The tilt of the loadings' density: means met, density and draws that agree, nothing done where nothing is to do."""

import pytest
import torch

from connector.dynamics import activation, potentials
from connector.tilt import DriveTilt, fit_drive_tilt
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
