"""Windows of trials are pieces of them, and training on windows finds what a poor start misses."""

import numpy as np
import pytorch_lightning as pl
import torch
from commands import typed
from rate_networks import make_network, record

from connector.data.modules import RecordingDataModule
from connector.lrrnn.starts import power_about_means
from connector.lrrnn.windows import LENGTHS, random_windows, rate_factor, window_length
from connector.runs.saved import load_run
from connector.stages import lrrnn_rates
from connector.stages.lrrnn_module import LowRankRNNModule
from connector.types import TrialBatch


def numbered(trials=6, steps=20):
    """Activity and inputs that name their trial and sample."""
    number = torch.arange(trials * steps, dtype=torch.float32).reshape(trials, steps, 1)
    lengths = torch.tensor([20, 20, 15, 9, 5, 3])
    mask = torch.arange(steps) < lengths[:, None]
    return TrialBatch(number * mask[..., None], mask, torch.arange(trials), -number, 2 * number), lengths


def test_windows_are_pieces_of_what_was_recorded_and_short_trials_stay_whole():
    batch, lengths = numbered()
    generator = torch.Generator().manual_seed(0)
    firsts = set()
    for _ in range(200):
        cut = random_windows(batch, 8, generator)
        assert cut.activity.shape == (6, 8, 1)
        assert torch.equal(cut.mask.sum(1), lengths.clamp_max(8))
        first = -cut.inputs[:, 0, 0].long() - 20 * torch.arange(6)
        firsts.update((trial, int(x)) for trial, x in enumerate(first))
        for trial in range(6):
            kept = slice(int(first[trial]), int(first[trial]) + int(cut.mask[trial].sum()))
            assert torch.equal(cut.activity[trial, cut.mask[trial]], batch.activity[trial, kept])
            assert torch.equal(cut.baseline[trial, cut.mask[trial]], batch.baseline[trial, kept])
    # all places where a window fits, and no other
    assert firsts == {(trial, x) for trial, n in enumerate(lengths.tolist()) for x in range(max(n - 8, 0) + 1)}


def test_windows_as_long_as_the_longest_trial_are_the_trials():
    batch, _ = numbered()
    whole = random_windows(batch, 128, torch.Generator().manual_seed(0))
    for before, after in zip(batch, whole):
        assert torch.equal(before, after)


def test_windows_grow_and_rates_fall():
    lengths = [window_length(x / 100) for x in range(101)]
    assert lengths == sorted(lengths)
    assert set(lengths) == set(LENGTHS)
    assert rate_factor(0.0) < rate_factor(0.05) == 1.0
    assert rate_factor(1.0) == 0.0 < rate_factor(0.99) < rate_factor(0.6)


def test_training_on_windows_recovers_dynamics_from_a_start_that_misses_them(tmp_path):
    """A network with two memories, started at a fifth of its output weights: the first rollouts forget, the last do not."""
    recording = record(make_network(k=60, n_inputs=1, has_bias=True), trials=60, steps=60)

    class Given(RecordingDataModule):
        def load(self):
            return recording

    data = Given(batch_size=32)
    data.setup()
    arguments = {"n_neurons": 60, "rank": 2, "n_inputs": 1, "has_bias": True, "alpha": recording.alpha}
    module = LowRankRNNModule("rates", arguments, learning_rate=0.02, windows=True)
    module.model.initialise(recording.trials(data.fold.train))
    with torch.no_grad():
        module.model.rnn.n.mul_(0.2)
    power, held = power_about_means(recording, data.fold), TrialBatch.of(recording, data.fold.validation)
    before = float(module.model.validation_loss(held)[0])
    pl.Trainer(
        accelerator="cpu", max_epochs=100, logger=False, default_root_dir=tmp_path, gradient_clip_val=0.06 * power,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    ).fit(module, datamodule=data)  # fmt: skip
    after = float(module.model.validation_loss(held)[0])
    assert before > 0.2 * power
    assert after < 0.02 * before


def test_a_run_on_a_gated_network_is_trained_on_windows_and_gains(tmp_path, monkeypatch):
    """The input moves the states by its product with them, which no input weight does."""
    net, g = make_network(k=20, n_inputs=1), torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 40, 1, generator=g, dtype=torch.float64)
    z = [torch.randn(60, 2, generator=g, dtype=torch.float64)]
    for t in range(39):
        z.append(0.9 * z[-1] + 0.3 * z[-1].flip(1) * inputs[:, t])
    rates = torch.tanh(torch.stack(z, 1) @ net.m.T)
    np.savez(tmp_path / "gated.npz", rates=rates.numpy(), externalinputs=inputs.numpy())
    for name, value in (("_WINDOWS_STEPS", 60), ("_LEAST_GAIN", 0.01), ("_MISSES_MUCH", 0.01)):
        monkeypatch.setattr(lrrnn_rates, name, value)
    typed(
        "data=npz", f"data.path={tmp_path / 'gated.npz'}", "data.alpha=1", "lrrnn.rank=2", "stages=[lrrnn]", "lrrnn.posterior_sweeps=0",
        f"hydra.run.dir={tmp_path / 'run'}", "trainer.progress=false",
    )  # fmt: skip
    log = (tmp_path / "run" / "train.log").read_text()
    assert "training on windows" in log
    assert "after training, inputs" in log
    assert load_run(tmp_path / "run").metrics["lrrnn/rollout_r2"] > 0
