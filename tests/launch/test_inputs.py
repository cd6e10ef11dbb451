"""How inputs enter, from the command line to what is read back of the run."""

import numpy as np
import pytest
import torch
from commands import typed
from rate_networks import make_network, record_filtered

from connector import load_run
from connector.data.input_filter import filtered_inputs

QUICK = ["data.alpha=0.1", "stages=[lrrnn]", "report=false", "trainer.threads=1", "trainer.progress=false"]


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """Rates of a network that filters its inputs, in a file."""
    path = tmp_path_factory.mktemp("driven") / "driven.npz"
    recording = record_filtered(make_network(k=40, n_inputs=1, has_bias=True), trials=30, steps=40)
    np.savez(path, rates=recording.activity.numpy(), externalinputs=recording.inputs.numpy())
    return path, recording


def test_filtered_inputs_are_found_said_and_read_back(driven, tmp_path):
    path, recording = driven
    command = ("data=npz", f"data.path={path}", *QUICK, f"hydra.run.dir={tmp_path / 'run'}")
    done = typed(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inputs pass the neurons' time constant" in done.stdout
    run = load_run(tmp_path / "run")
    assert run.latents.input_kind == "filtered"
    assert run.metrics["lrrnn/rollout_r2"] > 0.999
    u = recording.inputs.double()
    torch.testing.assert_close(run.network_inputs(u), filtered_inputs(u, 0.1))
    torch.testing.assert_close(run.latents.inputs, run.network_inputs(u), rtol=0, atol=1e-6)
    z = run.fitted_network.simulate(run.latents.z[:, 0], 40, run.network_inputs(u))
    foretold = run.fitted_network.rates(z, run.network_inputs(u))
    torch.testing.assert_close(foretold.float(), recording.activity, rtol=0, atol=0.02)
    again = typed(*command, "force=true")  # the stage made anew, from inputs as they were given
    assert again.returncode == 0, again.stdout + again.stderr
    assert load_run(tmp_path / "run").metrics["lrrnn/rollout_r2"] == run.metrics["lrrnn/rollout_r2"]


def test_the_option_decides(driven, tmp_path):
    done = typed("data=npz", f"data.path={driven[0]}", "lrrnn.inputs=both", *QUICK, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    latents = load_run(tmp_path / "run").latents
    assert (latents.input_kind, latents.inputs.shape[-1]) == ("both", 2)
