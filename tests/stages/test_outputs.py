"""The drive that sampled networks are held to, where each latent state is uncertain."""

from types import SimpleNamespace

import pytest
import torch
from rate_networks import make_network, record

from connector.data.folds import Fold
from connector.lrrnn.handover import FittedDynamics
from connector.stages.outputs import drive_of_mean
from connector.types import Latents


def options(fraction):
    return SimpleNamespace(connectivity=SimpleNamespace(recorded_fraction=fraction), data=SimpleNamespace())


@pytest.mark.parametrize("fraction", [0.2, None, 1.0])
def test_of_a_part_of_the_network_it_is_the_fits_and_of_the_whole_that_of_nu(fraction):
    net = make_network(k=60, has_bias=True)
    recording = record(net, trials=6)
    latents = Latents.of(recording, recording.latents)
    spread = torch.eye(2, dtype=torch.float64).expand(*latents.z.shape, 2)
    fold = Fold(torch.arange(4), torch.arange(4, 5), torch.arange(5, 6))
    fit = FittedDynamics(latents, net.loadings, fold, "tanh", readings=(latents.z, spread), n=net.n)
    states = latents.samples()
    found = drive_of_mean(options(fraction), fit, lambda rows: torch.ones(len(rows), 2).double(), states).y
    wanted = net.drive(states.z) if fraction != 1.0 else net.rates(states.z).mean(1, keepdim=True).expand(-1, 2)
    torch.testing.assert_close(found, wanted)
