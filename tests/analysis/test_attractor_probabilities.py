"""Attractors counted in draws of the vector field, on networks whose number of stable points is known."""

import pytest
import torch

from connector.analysis.attractor_probabilities import MOTION, count_attractors
from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.data.attractors import teacher
from connector.data.simulation import grid_of_states
from connector.types import Latents

FAST = TrajectorySettings(families=("none", "arcsine"), widths=(0.8,), draws=2)


def _counts(name, noise, n_grid=6, steps=60, extent=2.4, seed=0):
    net = teacher(name).sample(300, torch.Generator().manual_seed(seed), exact_moments=True)
    z = net.simulate(grid_of_states(n_grid, extent, 2), steps)
    z = z + noise * torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    latents = Latents(z, torch.full((len(z),), steps), net.alpha)
    model = fit_trajectories(latents, net.loadings, activation="tanh", settings=FAST)
    return count_attractors(Draws(model, 40, seed=2), latents.samples().z)


@pytest.mark.parametrize(
    ("name", "kind"), [("quadstable", "4 stable fixed points"), ("bistable", "2 stable fixed points")]
)
def test_well_seen_networks_have_their_number_for_certain(name, kind):
    found = _counts(name, 0.01)
    assert found.probabilities[kind] > 0.9
    assert found.metrics()["dynamics/stable_points"] == int(kind[0])
    assert found.probability(2) > 0.9


def test_a_cycle_is_lasting_motion():
    assert _counts("limit_cycle", 0.01).probabilities[MOTION] > 0.9


def test_few_noisy_trials_leave_the_number_open():
    probabilities = _counts("quadstable", 0.6, n_grid=2, steps=20).probabilities
    assert max(probabilities.values()) < 0.95
    assert sum(probabilities.values()) == pytest.approx(1)
