"""Spikes that are enough for the closed form: its trajectories are kept, unless states carry noise of their own."""

import json

import numpy as np
import pytest
import torch
from commands import typed
from rate_networks import make_network


@pytest.mark.parametrize("noise", [0.0, 0.08])
def test_the_dynamics_are_sampled_where_states_carry_noise_of_their_own(tmp_path, noise):
    g = torch.Generator().manual_seed(0)
    net = make_network("softplus", k=60, has_bias=True)
    z, states = 1.5 * torch.randn(60, 2, generator=g, dtype=torch.float64), []
    for _ in range(30):
        states.append(z)
        z = net.step(z) + noise * torch.randn(60, 2, generator=g, dtype=torch.float64)
    spikes = torch.poisson(0.6 * net.rates(torch.stack(states, 1)), generator=g)
    np.savez(tmp_path / "a.npz", spikes=spikes.numpy())
    options = ["data=npz", f"data.path={tmp_path / 'a.npz'}", f"hydra.run.dir={tmp_path / 'run'}", "stages=[lrrnn]"]
    done = typed(*options, "data.bin_s=0.01", "lrrnn.posterior_sweeps=6", "trainer.threads=1", "trainer.progress=false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("sampled beside the closed form: the states carry noise" in done.stdout) == (noise > 0)
    assert ("lrrnn/posterior_ess" in json.loads((tmp_path / "run" / "metrics.json").read_text())) == (noise > 0)
