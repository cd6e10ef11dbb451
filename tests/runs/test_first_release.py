"""Runs of the first release load in this one. tests/fixtures/run_v1 was made by the software itself, by
tests/fixtures/make_run_v1.sh: it is never made anew; a later format gets a fixture beside it."""

import shutil

import pytest
import torch
from commands import ROOT, train

from connector import load_run
from connector.errors import UserError
from connector.files import file_checksum, read_npz
from connector.runs.store import MANIFEST_FORMAT, RunStore, load_network
from connector.sample import main as sample
from connector.stages.flows import FlowModule
from connector.stages.lrrnn_module import LowRankRNNModule

RUN = ROOT / "tests" / "fixtures" / "run_v1"
COMMAND = (RUN.parent / "make_run_v1.sh").read_text().split("train.py", 1)[1].replace("\\\n", " ").split()


def test_its_files_are_as_they_were_written():
    manifest = RunStore(RUN).manifest()
    assert manifest["format"] == 1 <= MANIFEST_FORMAT
    files = {file: checksum for record in manifest["stages"].values() for file, checksum in record["files"].items()}
    assert len(files) == 8
    assert all(file_checksum(RUN / file) == checksum for file, checksum in files.items())
    assert sum(path.stat().st_size for path in RUN.rglob("*") if path.is_file()) < 250_000


def test_it_loads_and_gives_the_network_that_it_gave():
    run = load_run(RUN)
    assert run.latents.z.shape == (16, 20, 2)
    assert run.loadings.n_neurons == 10
    assert 0 < run.metrics["dynamics/field_error"] < 1
    assert run.connectivity.log_prob(run.connectivity.sample(5, sigma=1.0)).shape == (5,)
    nu = run.connectivity.conditional_mean(run.network.loadings)
    torch.testing.assert_close(nu, run.network.n.to(nu), rtol=1e-5, atol=1e-6)
    again = run.connectivity.sample(n_neurons=1000, sigma=0.0, seed=int(run.config.seed))
    torch.testing.assert_close(again.m, run.network.m.to(again.m), rtol=1e-3, atol=1e-4)


def test_a_seed_that_is_none_is_refused(tmp_path):
    damaged = shutil.copytree(RUN, tmp_path / "run")
    config = damaged / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 1", "\nseed: null"))
    with pytest.raises(UserError, match="whole number as the seed in"):
        _ = load_run(damaged).connectivity


def test_networks_are_sampled_from_it_on_the_command_line(tmp_path):
    sample([str(RUN), "--neurons", "7", "--sigma", "1", "--out", str(tmp_path / "net.npz")])
    assert load_network(tmp_path / "net.npz").n_neurons == 7
    assert read_npz(tmp_path / "net.npz")["sigma"] == 1


@pytest.mark.parametrize(
    ("stage", "module"), [("lrrnn", LowRankRNNModule), ("loadings", FlowModule), ("outputs", FlowModule)]
)
def test_the_checkpoints_of_its_stages_load_by_themselves(stage, module):
    loaded = module.load_from_checkpoint(RUN / "checkpoints" / f"{stage}.ckpt", map_location="cpu", weights_only=True)
    assert loaded.stage == stage
    assert all(torch.isfinite(weight).all() for weight in loaded.parameters())


@pytest.mark.slow
def test_its_command_goes_on_in_its_directory(tmp_path):
    """Stages whose fingerprints are still those of today are reused, others are trained anew; never a refusal."""
    copy = shutil.copytree(RUN, tmp_path / "run")
    options = [option for option in COMMAND if not option.startswith("hydra.run.dir")]
    done = train(*options, f"hydra.run.dir={copy}")
    assert done.returncode == 0, done.stderr
    assert load_run(copy).network.n_neurons == 1000
