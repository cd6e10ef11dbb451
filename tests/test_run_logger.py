"""The W&B run of a job, offline: one run for all stages, nested configuration, files, exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from connector.config import LoggerOptions
from connector.run_logger import WandbRun

TINY = [
    "data.n_neurons=60", "data.n_grid=5", "data.n_steps=30", "connectivity.loadings_epochs=4",
    "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=256", "stages=[lrrnn,loadings]",
]  # fmt: skip


def records(folder: Path) -> list[dict]:
    """What stands in the transaction log of the one offline run below ``folder``."""
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def of_type(found: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.fixture
def options(tmp_path):
    return LoggerOptions("wandb", "connector", None, "offline", None, ["mine"], str(tmp_path))


def test_command_line_run_is_one_wandb_run(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    command = [sys.executable, "train.py", *TINY, "logger=wandb", "logger.mode=offline", f"logger.save_dir={tmp_path}"]
    command += [f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert of_type(found, "exit")[0]["exit_code"] == 0
    text = json.dumps(found)
    for key in ("lrrnn/val_loss", "loadings/val_loss", "loadings/step"):
        assert key in text
    given = set(of_type(found, "run")[0]["config"]["update"])
    assert {"data", "lrrnn", "connectivity", "seed", "run_directory"} <= given
    assert not of_type(found, "config")  # no module adds its own arguments beside them


@pytest.mark.parametrize("exit_code", [0, 1])
def test_exit_code_group_and_tags(options, tmp_path, exit_code):
    run = WandbRun(options, name="a", group="g", job_type="ring", config={"seed": 3}, directory=tmp_path / "run")
    run.for_stage("loadings").log_metrics({"loadings/val_loss": 0.5, "epoch": 1}, step=7)
    (tmp_path / "network.npz").write_bytes(b"x")
    run.log_results({"connectivity/dissimilarity": 0.25}, {}, {"network": tmp_path / "network.npz"})
    run.finish(exit_code)
    found = records(tmp_path)
    assert of_type(found, "exit")[0].get("exit_code", 0) == exit_code
    about = of_type(found, "run")[0]
    assert (about["run_group"], about["job_type"], sorted(about["tags"])) == ("g", "ring", ["mine", "ring"])
    assert len(of_type(found, "artifact")) == 1
    assert "0.25" in json.dumps(found)
