"""Signs of trouble: each is measured where it is known, and said once where it is too large."""

import math

import pytest
import torch

from connector.analysis import signs as watch
from connector.dynamics import Network
from connector.report.glossary import METRICS
from connector.types import Latents, Loadings


def test_neurons_at_the_limits_of_the_activation_are_saturated():
    z = torch.linspace(-1, 1, 101)[:, None]
    steep = Loadings(torch.tensor([[1e-3], [1e6]]))
    assert watch.saturated_share(steep, z, "tanh") == pytest.approx(0.5, abs=0.01)
    # relu is flat where a neuron is silent.
    assert watch.saturated_share(Loadings(torch.ones(1, 1)), z, "relu") == pytest.approx(0.5, abs=0.02)
    # softplus' slope is below .01 where h < log(.01 / .99); the input moves all neurons there.
    silenced = Loadings(torch.zeros(3, 1), b=torch.ones(3, 1))
    assert watch.saturated_share(silenced, z, "softplus", u=torch.full((101, 1), -4.7)) == 1.0
    assert watch.saturated_share(silenced, z, "softplus", u=torch.full((101, 1), -4.5)) == 0.0


def linear(gain):
    """A network whose states grow by 1 + 0.1 (gain - 1) a step, by relu neurons of both signs."""
    m = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    return Network(m, 4 * gain * m, alpha=0.1, activation="relu")


def test_states_that_run_away_have_left_the_region_and_those_that_decay_have_not():
    generator = torch.Generator().manual_seed(0)
    visited = torch.randn(500, 2, generator=generator)
    trials = Latents(torch.randn(20, 60, 2, generator=generator).double(), torch.full((20,), 60), 0.1)
    assert watch.left_share(linear(0.5), visited, trials) == 0.0
    assert watch.left_share(linear(3.0), visited, trials) == 1.0
    assert watch.left_share(linear(1e200), visited, trials) == 1.0  # overflows to infinity
    # A trial counts as long as it lasts only.
    short = Latents(trials.z, torch.ones(20, dtype=torch.int64), 0.1)
    assert watch.left_share(linear(3.0), visited, short) == 0.0


def test_samples_far_from_all_data_are_outside_whatever_the_units():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.01])
    assert watch.outside_share(rows, rows) == 0.0
    far = torch.full((30, 3), 50.0) * torch.tensor([1.0, 100.0, 0.01])
    assert watch.outside_share(torch.cat([rows[:70], far]), rows) == pytest.approx(0.3)
    assert watch.outside_share(torch.full((4, 3), math.nan), rows) == 1.0
    more = torch.randn(5000, 3, generator=generator)
    assert watch.outside_share(torch.randn(1000, 3, generator=generator), more) < watch.LIMITS[watch.OUTSIDE_SUPPORT]


@pytest.mark.parametrize(
    ("metrics", "options", "words"),
    [
        ({watch.SATURATED: 0.6}, {}, "60 % of the neurons"),
        ({watch.LEFT_REGION: 0.2}, {}, "in 20 % of the test trials"),
        ({watch.OUTSIDE_SUPPORT: 0.07}, {}, "7 % of the sampled loadings"),
        ({}, {"explained": -0.1}, "no better than each neuron's mean"),
        ({}, {"finite": False}, "not finite"),
        ({"lrrnn/bits_per_spike": -0.01}, {}, "each neuron's mean rate"),
        ({"lrrnn/bits_per_spike": 0.01, "lrrnn/bits_per_spike_null_drift": 0.02}, {}, "drift across the session"),
        ({"dynamics/field_error": 1.2}, {}, "field of zero"),
    ],
)
def test_each_sign_has_one_sentence(metrics, options, words):
    (said,) = watch.sentences(metrics, **options)
    assert words in said


def test_a_good_run_is_not_warned_of():
    good = {watch.SATURATED: 0.2, watch.LEFT_REGION: 0.0, watch.OUTSIDE_SUPPORT: 0.01, "dynamics/field_error": 0.02}
    good |= {"lrrnn/bits_per_spike": 0.09, "lrrnn/bits_per_spike_null_drift": 0.03}
    assert watch.sentences(good, explained=0.9) == []
    assert {watch.SATURATED, watch.LEFT_REGION, watch.OUTSIDE_SUPPORT} <= METRICS.keys()


def test_networks_with_numbers_that_are_none_are_seen():
    network = linear(1.0)
    assert watch.is_finite(network)
    assert not watch.is_finite(Network(network.m, network.n * math.nan, alpha=0.1, activation="relu"))
