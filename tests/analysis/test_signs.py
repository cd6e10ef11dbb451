"""Signs of trouble: each is measured where it is known."""

import math

import pytest
import torch

from connector.analysis import signs
from connector.dynamics import Network
from connector.report.cautions import LIMITS, OUTSIDE_SUPPORT
from connector.types import Latents, Loadings


def test_neurons_at_the_limits_of_the_activation_are_saturated():
    z = torch.linspace(-1, 1, 101)[:, None]
    steep = Loadings(torch.tensor([[1e-3], [1e6]]))
    assert signs.saturated_share(steep, z, "tanh") == pytest.approx(0.5, abs=0.01)
    # relu is flat where a neuron is silent.
    assert signs.saturated_share(Loadings(torch.ones(1, 1)), z, "relu") == pytest.approx(0.5, abs=0.02)
    # softplus' slope is below .01 where h < log(.01 / .99); the input moves all neurons there.
    silenced = Loadings(torch.zeros(3, 1), b=torch.ones(3, 1))
    assert signs.saturated_share(silenced, z, "softplus", u=torch.full((101, 1), -4.7)) == 1.0
    assert signs.saturated_share(silenced, z, "softplus", u=torch.full((101, 1), -4.5)) == 0.0


def linear(gain):
    """A network whose states grow by 1 + 0.1 (gain - 1) a step, by relu neurons of both signs."""
    m = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    return Network(m, 4 * gain * m, alpha=0.1, activation="relu")


def test_states_that_run_away_have_left_the_region_and_those_that_decay_have_not():
    generator = torch.Generator().manual_seed(0)
    visited = torch.randn(500, 2, generator=generator)
    trials = Latents(torch.randn(20, 60, 2, generator=generator).double(), torch.full((20,), 60), 0.1)
    assert signs.left_share(linear(0.5), visited, trials) == 0.0
    assert signs.left_share(linear(3.0), visited, trials) == 1.0
    assert signs.left_share(linear(1e200), visited, trials) == 1.0  # overflows to infinity
    # A trial counts as long as it lasts only.
    short = Latents(trials.z, torch.ones(20, dtype=torch.int64), 0.1)
    assert signs.left_share(linear(3.0), visited, short) == 0.0


def test_samples_far_from_all_data_are_outside_whatever_the_units():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.01])
    assert signs.outside_share(rows, rows) == 0.0
    far = torch.full((30, 3), 50.0) * torch.tensor([1.0, 100.0, 0.01])
    assert signs.outside_share(torch.cat([rows[:70], far]), rows) == pytest.approx(0.3)
    assert signs.outside_share(torch.full((4, 3), math.nan), rows) == 1.0
    more = torch.randn(5000, 3, generator=generator)
    assert signs.outside_share(torch.randn(1000, 3, generator=generator), more) < LIMITS[OUTSIDE_SUPPORT]


def test_a_neuron_recorded_twice_is_as_lonely_as_before():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 2, generator=generator)
    samples = torch.randn(500, 2, generator=generator)
    share = signs.outside_share(samples, rows)
    assert share < LIMITS[OUTSIDE_SUPPORT]
    assert signs.outside_share(samples, rows.repeat(2, 1)) == share
    nearly = torch.cat([rows, rows + 1e-4 * torch.randn(100, 2, generator=generator)])
    assert signs.outside_share(samples, nearly) == pytest.approx(share, abs=0.01)
    types = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert signs.outside_share(types.repeat(10, 1) + 1e-3, types.repeat(30, 1)) == 0.0
    assert signs.outside_share(torch.full((5, 2), 40.0), types.repeat(30, 1)) == 1.0


def test_columns_in_which_neurons_are_alike_say_nothing():
    same = torch.tensor([[0.7, -2.0]]).repeat(20, 1)
    assert signs.outside_share(same + 1e-4, same) == 0.0
    varied = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    constant = torch.full((300, 1), 3.0)
    assert signs.outside_share(torch.cat([varied, constant + 1e-4], 1), torch.cat([varied, constant], 1)) == 0.0


def test_networks_with_numbers_that_are_none_are_seen():
    network = linear(1.0)
    assert signs.is_finite(network)
    assert not signs.is_finite(Network(network.m, network.n * math.nan, alpha=0.1, activation="relu"))
