"""The origin of the latents of neurons with a bias: a choice that leaves every rate as it is."""

import pytest
import torch

from connector.data.folds import Fold
from connector.dynamics import Network, potentials
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.stages.lrrnn import origin_distance, with_plausible_origin
from connector.types import Latents, Loadings


def test_moving_the_origin_leaves_rates_and_gives_latents_from_anywhere_the_same_place():
    g = torch.Generator().manual_seed(0)
    m, d = (torch.randn(300, k, generator=g, dtype=torch.float64) for k in (2, 1))
    network = Network(m, 0.8 * m, None, d[:, 0], alpha=0.1, activation="softplus")
    z0 = 4 * torch.rand(30, 2, generator=g, dtype=torch.float64) - 2
    z = network.simulate(z0, 40)[:, :40]
    fold = Fold(torch.arange(24), torch.arange(24, 27), torch.arange(27, 30))
    places = []
    for shift in (torch.zeros(2).double(), torch.tensor([1.5, -1.0]).double()):
        loadings = Loadings(m, None, d[:, 0] - m @ shift)
        given = FittedDynamics(Latents(z + shift, torch.full((30,), 40), 0.1), loadings, fold, "softplus")
        found = with_plausible_origin(given)
        torch.testing.assert_close(
            potentials(found.loadings, found.latents.z), potentials(loadings, given.latents.z), atol=1e-10, rtol=0
        )
        places.append(found.latents.z)
    torch.testing.assert_close(places[0], places[1], atol=0.03, rtol=0)


@pytest.mark.parametrize("activation", ["softplus", "tanh"])
def test_given_latents_tell_by_how_much_they_were_moved(activation):
    """In any gauge: the move is counted in standard deviations of the states."""
    g = torch.Generator().manual_seed(0)
    m, d = (torch.randn(80, k, generator=g, dtype=torch.float64) for k in (2, 1))
    network = Network(
        m, (0.8 if activation == "softplus" else 1.6) * m, None, d[:, 0], alpha=0.1, activation=activation
    )
    z = network.simulate(4 * torch.rand(20, 2, generator=g, dtype=torch.float64) - 2, 40)
    fold = Fold(torch.arange(16), torch.arange(16, 18), torch.arange(18, 20))
    given = FittedDynamics(Latents(z, torch.full((20,), z.shape[1]), 0.1), network.loadings, fold, activation)
    states = given.latents.trials(fold.train).samples().z
    root = torch.linalg.cholesky(torch.cov(states.T, correction=0))
    assert origin_distance(given) < 0.1
    for matrix in (torch.eye(2).double(), torch.tensor([[20.0, 10.0], [-0.5, 0.3]]).double()):
        moved = given.moved(Gauge(matrix, matrix @ root @ torch.tensor([3.0, -4.0]).double()))
        assert origin_distance(moved) == pytest.approx(5, abs=0.2)
