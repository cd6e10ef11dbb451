"""The LightningModule of the low-rank RNN in a Trainer of the user's own, for rates and for spikes."""

import pytest
import pytorch_lightning as pl
import torch
from rate_networks import make_network, record

from connector.data.attractors import teacher
from connector.data.modules import RecordingDataModule
from connector.data.simulation import simulate_recording
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.stages.lrrnn_module import LowRankRNNModule, Prediction

SMALL = {"n_units": 16, "encoder_hidden": 8}


class Given(RecordingDataModule):
    def __init__(self, recording, **options):
        super().__init__(batch_size=8, eval_batch_size=5, **options)
        self.given = recording

    def load(self):
        return self.given


def rates() -> tuple[Given, LowRankRNNModule]:
    data = Given(record(make_network(k=20, n_inputs=1, has_bias=True), trials=24, steps=20, ragged=True, noise=0.1))
    data.setup()
    module = LowRankRNNModule(
        "rates", {"n_neurons": 20, "rank": 2, "n_inputs": 1, "has_bias": True}, learning_rate=1e-2
    )
    module.model.initialise(data.recording.trials(data.fold.train))
    with torch.no_grad():
        module.model.rnn.n.mul_(0.7)  # there is something to gain
    return data, module


def spikes(**options) -> tuple[Given, LowRankRNNModule]:
    """Without inputs: rollouts start from the encoder."""
    recording, _ = simulate_recording(
        teacher("limit_cycle"), n_neurons=20, n_grid=5, n_steps=20, observation="spikes", rate_scale_hz=50.0
    )
    data = Given(recording)
    data.setup()
    baseline = fit_baseline(recording, data.fold.train, "constant")
    data.baseline = baseline.argument
    model = {"n_neurons": 20, "rank": 2, "alpha": recording.alpha, "scale": baseline.scale} | SMALL | options
    module = LowRankRNNModule("spikes", model, learning_rate=1e-2, one_cycle=True)
    module.model.initialise(recording, data.fold.train, baseline)
    return data, module


@pytest.mark.parametrize("make", [rates, spikes])
def test_a_trainer_of_the_users_own_fits_validates_tests_predicts_and_loads(make, tmp_path):
    pl.seed_everything(0, verbose=False)
    data, module = make()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = trainer.validate(module, datamodule=data, verbose=False)[0]["lrrnn/val_loss"]
    trainer.fit(module, datamodule=data)
    assert trainer.validate(module, datamodule=data, verbose=False)[0]["lrrnn/val_loss"] < before
    assert set(trainer.test(module, datamodule=data, verbose=False)[0]) >= {"lrrnn/test_loss"}
    batches = trainer.predict(module, datamodule=data)
    assert all(isinstance(batch, Prediction) for batch in batches)
    index, latents, activity = (torch.cat(parts) for parts in zip(*batches))
    recording = data.recording
    assert index.tolist() == list(range(recording.n_trials))
    assert latents.shape == (*recording.activity.shape[:2], 2)
    assert not latents[~recording.mask].any()
    for found in batches:
        batch = data.batch(found.index)
        torch.testing.assert_close(found.latents, module.model.infer(batch))
        with torch.no_grad():
            torch.testing.assert_close(found.activity, module.model.expected_activity(batch, found.latents))
    residual = (activity - recording.activity)[recording.mask]
    assert residual.square().mean() < recording.activity[recording.mask].square().mean()

    again = LowRankRNNModule.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert type(again.model) is type(module.model)
    torch.testing.assert_close(again.state_dict(), module.state_dict())


def test_options_of_spikes_stand_among_plain_values_as_in_the_first_release():
    _, module = spikes(rollout_weight=0.5, rollout_fraction=0.2, warmup_fraction=0.1, init_seed=4)
    assert module.hparams["model"]["rollout_weight"] == 0.5
    model = module.model
    assert (model.options.rollout_weight, model.options.init_seed) == (0.5, 4)
    assert model.rollout_fraction == 0  # rollouts start from the encoder, which has to train from the first epoch on
