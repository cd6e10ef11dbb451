"""nu of neurons whose loadings lie in a few tight types: n = S m and a deviation of each neuron's own."""

import pytest
import torch

from connector.analysis.fields import drive_gain
from connector.connectivity.nu.trajectories import fit_trajectories
from connector.dynamics import Network
from connector.types import Latents, Loadings

CENTRES = torch.tensor([[1.5, 0.5], [-1.2, 1.0], [0.3, -1.6], [-0.8, -0.7], [1.4, -1.2]]).double()
S = torch.tensor([[1.6, -0.3], [0.3, 1.6]]).double()


def fitted(sizes, spread, fraction, seed=0, activation="tanh"):
    """Gain of nu at the recorded loadings, share of types and dimensions whose 95 % interval holds nu, error of nu."""
    g = torch.Generator().manual_seed(seed)
    count = torch.tensor(sizes)
    m = CENTRES[: len(sizes)].repeat_interleave(count, 0)
    m = m + spread * torch.randn(m.shape, generator=g, dtype=torch.float64)
    nu = m @ S.T
    net = Network(
        m, nu + 0.3 * torch.randn(m.shape, generator=g, dtype=torch.float64), alpha=0.1, activation=activation
    )
    z = net.simulate(4.8 * torch.rand(40, 2, generator=g, dtype=torch.float64) - 2.4, 50)
    latents = Latents(z, torch.full((40,), 50), 0.1)
    model = fit_trajectories(latents, Loadings(m), activation=activation, recorded_fraction=fraction)
    assert model.summary["converged"]
    assert not model.summary["warnings"]
    (low, high), estimate, last = model.interval(m), model.mean(m), count.cumsum(0) - 1
    gain, _ = drive_gain(Network(m, estimate, alpha=0.1, activation=activation), latents)
    held = ((low <= nu) & (nu <= high))[last].double().mean()
    return gain, float(held), float((estimate - nu).square().sum() / nu.square().sum())


@pytest.mark.parametrize(
    ("sizes", "spread", "fraction"),
    [
        ((25, 25, 25, 25), 0.1, None),  # of a network of unknown size: a smoothed distribution stands for it
        ((50, 30, 19, 1), 0.0, None),
        ((25, 25, 25, 25), 0.0, 1.0),  # a field of four functions, which leaves no residual to take the noise from
        ((50, 50, 50, 50), 0.03, None),
    ],
)
def test_nu_has_its_size_and_intervals_hold_it(sizes, spread, fraction):
    gain, held, error = fitted(sizes, spread, fraction)
    assert gain == pytest.approx(1, abs=0.03)
    assert held >= 0.75
    assert error < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [None, 1.0])
@pytest.mark.parametrize("spread", [0.1, 0.03, 0.0])
def test_intervals_cover_types_of_any_number_and_size(spread, fraction):
    held = []
    for sizes in (
        (34, 33, 33),
        (25,) * 4,
        (20,) * 5,
        (50, 30, 19, 1),
        (60, 25, 10, 5),
        (400, 300, 200, 100),
        (200,) * 5,
    ):
        for seed in range(4):
            gain, share, error = fitted(sizes, spread, fraction, seed)
            assert gain == pytest.approx(1, abs=0.05)
            assert error < 0.01
            held.append(share)
    assert sum(held) / len(held) > 0.9
