"""Rates on a scale of their own, from the file to the hand-over."""

from __future__ import annotations

import json

import numpy as np
import torch
from commands import typed
from rate_networks import make_network, record

from connector.runs.store import RunStore


def test_rates_of_any_scale_are_fitted_said_and_taken_up_again(tmp_path):
    recording = record(make_network(k=40), trials=30, steps=30, noise=0.05)
    g = torch.Generator().manual_seed(0)
    gain, offset = (0.5 * torch.randn(40, generator=g)).exp(), 3 * torch.randn(40, generator=g)
    np.savez(tmp_path / "a.npz", rates=(gain * recording.activity + offset).numpy())
    command = [
        "data=npz",
        f"data.path={tmp_path / 'a.npz'}",
        "stages=[lrrnn]",
        "hydra.run.dir=run",
        "trainer.threads=1",
    ]
    command += ["report=false"]
    done = typed(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "each neuron has a gain and an offset" in (tmp_path / "run" / "train.log").read_text()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["lrrnn/rollout_r2"] > 0.95
    assert metrics["lrrnn/scale_gains"] == 1
    fit = RunStore(tmp_path / "run").read_stage_inputs()
    assert (fit.scale.gain / gain.double()).log().abs().median() < 0.05
    assert ((fit.scale.offset - offset) / gain).abs().median() < 0.05
    again = typed(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["lrrnn/rates_r2"] == metrics["lrrnn/rates_r2"]
    refused = typed(*command, "lrrnn.scale=none", cwd=tmp_path)
    assert refused.returncode == 2
    assert "lrrnn.scale=auto" in refused.stderr
