"""What is interrupted, at whatever epoch, ends where an uninterrupted training ends: bit for bit."""

import pytest
import torch
from commands import ROOT
from flow_jobs import job
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from connector.launch.planning import build_data
from connector.launch.wandb_run import NoRun
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.runs.store import RunStore
from connector.stages import checkpoints
from connector.stages.flows import train_flow
from connector.stages.lrrnn import train_lrrnn
from connector.stages.training import StageContext

register_resolvers()


class Interrupts(Callback):
    """In the middle of an epoch, by number from 0; counts the epochs that were trained."""

    def __init__(self, epoch=None):
        self.epoch, self.trained = epoch, []

    def on_train_batch_start(self, trainer, module, batch, number):
        if number == 0:
            self.trained.append(trainer.current_epoch)
        if trainer.current_epoch == self.epoch and number == 1:
            raise KeyError("interrupted")


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY_S", 0.0)


def context(directory, watch, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        options = checked(compose("train", ["trainer.progress=false", "experiment_name=test", *overrides]))
    said = []
    return StageContext(options, RunStore(directory), NoRun(), Console(quiet=True), said.append, [watch]), said


def rates(directory, watch):
    options = ["data.n_neurons=30", "data.n_grid=6", "data.n_steps=20", "data.observation_noise=0.1"]
    options += ["lrrnn.max_epochs=5", "lrrnn.batch_size=8", "lrrnn.learning_rate=0.01"]
    return lrrnn(directory, watch, options)


def spikes(directory, watch):
    options = ["data.n_neurons=20", "data.n_grid=6", "data.n_steps=20", "data.observation=spikes"]
    options += ["lrrnn.max_epochs=5", "lrrnn.batch_size=8", "lrrnn.n_units=16", "lrrnn.inference=encoder"]
    return lrrnn(directory, watch, options)


def lrrnn(directory, watch, overrides):
    here, said = context(directory, watch, *overrides)
    data = build_data(here.options)
    data.setup()
    return train_lrrnn(here, data, "mark"), said


def flow(directory, watch, epochs=5, **settings):
    training = job(directory, 3, epochs, **settings)
    training.context.callbacks = [watch]
    said = []
    training.context.say = said.append
    return train_flow(training), said


def best_flow(directory, watch):
    return flow(directory, watch, keep="best", context_dim=2)


def results(directory):
    """Everything that the later stages read, and the weights."""
    found = {path.name: path.read_bytes() for path in directory.glob("*.npz")}
    for path in (directory / "checkpoints").glob("*.ckpt"):
        for name, value in torch.load(path, weights_only=True)["state_dict"].items():
            found[f"{path.name} {name}"] = value.numpy().tobytes()
    found["curves"] = next((directory / "logs").glob("*.csv")).read_text()
    return found


@pytest.mark.parametrize("training", [rates, pytest.param(spikes, marks=pytest.mark.slow), flow, best_flow])
def test_a_training_interrupted_in_any_epoch_ends_where_it_would_have_ended(training, tmp_path):
    watch = Interrupts()
    metrics, _ = training(tmp_path / "through", watch)
    assert watch.trained == [0, 1, 2, 3, 4]
    expected = results(tmp_path / "through")
    assert len(expected) > 2
    for epoch in (2, 4):
        directory = tmp_path / str(epoch)
        with pytest.raises(KeyError, match="interrupted"):
            training(directory, Interrupts(epoch))
        again = Interrupts()
        resumed, said = training(directory, again)
        assert any("resuming" in line for line in said)
        assert again.trained == list(range(epoch, 5))
        assert resumed == metrics
        assert results(directory) == expected
    # It ended, but was killed before the stage was noted as finished: nothing is trained again.
    after = Interrupts()
    finished, _ = training(directory, after)
    assert after.trained == []
    assert finished == metrics
    assert results(directory) == expected


def test_damaged_checkpoints_are_never_read(tmp_path):
    metrics, _ = best_flow(tmp_path / "through", Interrupts())
    for kind in ("last", "best"):
        directory = tmp_path / kind
        with pytest.raises(KeyError, match="interrupted"):
            best_flow(directory, Interrupts(3))
        (file,) = (directory / "checkpoints" / "outputs-mark").glob(f"{kind}-*.ckpt")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        watch = Interrupts()
        again, said = best_flow(directory, watch)
        assert any("damaged" in line and "again" in line for line in said)
        assert watch.trained == [0, 1, 2, 3, 4]
        assert again == metrics


@pytest.mark.parametrize("epochs", [2, 7])
def test_a_training_of_another_length_is_not_gone_on_from(epochs, tmp_path):
    """How long a flow is trained is found from the loadings, by an earlier version otherwise than by this one."""
    metrics, _ = flow(tmp_path / "through", Interrupts(), epochs)
    with pytest.raises(KeyError, match="interrupted"):
        flow(tmp_path / "again", Interrupts(4))
    watch = Interrupts()
    again, said = flow(tmp_path / "again", watch, epochs)
    assert any("earlier version" in line for line in said)
    assert watch.trained == list(range(epochs))
    assert again == metrics


def test_a_finished_stage_leaves_no_checkpoints_of_its_training(tmp_path):
    flow(tmp_path, Interrupts())
    assert (tmp_path / "checkpoints" / "outputs-mark").exists()
    RunStore(tmp_path).finish_stage("outputs", "mark", 1.0, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["outputs.ckpt"]
