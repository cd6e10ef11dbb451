"""Batches in memory: a pure function of (seed, epoch), shared fairly between processes, alone or under a Trainer."""

from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from connector.data.modules import (
    AttractorDataModule,
    FileDataModule,
    InMemoryBatches,
    TensorDataModule,
)
from connector.errors import UserError


class _Pair(NamedTuple):
    x: Tensor
    y: Tensor | None


def _items(loader: InMemoryBatches) -> list[int]:
    return torch.cat(list(loader)).tolist()


def test_every_item_once_in_an_order_of_seed_and_epoch():
    loader = InMemoryBatches(torch.arange(50), 8, seed=3)
    first = _items(loader)
    assert sorted(first) == list(range(50))
    assert first != list(range(50))
    assert [len(b) for b in loader] == [8] * 6 + [2]
    assert len(loader) == 7
    assert _items(loader) == first  # iterating leaves no trace
    loader.set_epoch(1)
    second = _items(loader)
    assert second != first
    assert _items(InMemoryBatches(torch.arange(50), 8, seed=3, epoch=lambda: 1)) == second
    assert _items(InMemoryBatches(torch.arange(50), 8, seed=4)) not in (first, second)
    assert _items(InMemoryBatches(torch.arange(50), 8, shuffle=False)) == list(range(50))


@pytest.mark.parametrize(("items", "world_size"), [(50, 2), (51, 4), (3, 5), (1, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_items(items, world_size, shuffle):
    shards = [
        InMemoryBatches(torch.arange(items), 4, shuffle=shuffle, seed=1, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert len({len(shard) for shard in shards}) == 1
    assert len({len(_items(shard)) for shard in shards}) == 1
    seen = sorted(item for shard in shards for item in _items(shard))
    assert set(seen) == set(range(items))
    assert len(seen) < items + world_size


def test_batches_have_the_type_of_the_data():
    x, y = torch.arange(10), torch.arange(10) ** 2
    for batch in InMemoryBatches(_Pair(x, y), 3):
        assert isinstance(batch, _Pair)
        assert torch.equal(batch.y, batch.x**2)
    assert next(iter(InMemoryBatches(_Pair(x, None), 3))).y is None
    assert type(next(iter(InMemoryBatches((x, y), 3)))) is tuple
    for wrong in ((torch.arange(3), torch.arange(4)), (None,), (torch.zeros(0),)):
        with pytest.raises(UserError):
            InMemoryBatches(wrong, 3)
    with pytest.raises(UserError):
        InMemoryBatches(x, 0)


class _Watcher(pl.LightningModule):
    """Notes what it is shown; trains one number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}
        self.validated: list[int] = []

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).extend(batch[0].long().tolist())
        return (self.weight - batch[0].float().mean()) ** 2

    def validation_step(self, batch, _):
        if not self.trainer.sanity_checking:
            self.validated.extend(batch[0].long().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def _trainer(tmp_path, epochs: int, **options) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


def test_trainer_sees_the_order_of_each_epoch_and_resumes_it(tmp_path):
    def data():
        return TensorDataModule((torch.arange(23),), (torch.arange(5),), batch_size=4, seed=9)

    through = _Watcher()
    _trainer(tmp_path, 4, enable_checkpointing=False).fit(through, datamodule=data())
    plain = InMemoryBatches(torch.arange(23), 4, seed=9)
    assert [through.seen[e] for e in range(4)] == [plain.order(e).tolist() for e in range(4)]
    assert through.validated == list(range(5)) * 4

    half = _trainer(tmp_path, 2, enable_checkpointing=False)
    half.fit(_Watcher(), datamodule=data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = _Watcher()
    _trainer(tmp_path, 4, enable_checkpointing=False).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "half.ckpt")
    assert sorted(resumed.seen) == [2, 3]
    assert resumed.seen[3] == through.seen[3]
    assert torch.equal(resumed.weight, through.weight)


def test_without_validation(tmp_path):
    watcher = _Watcher()
    data = TensorDataModule(torch.arange(6), None, batch_size=3)
    _trainer(tmp_path, 1, enable_checkpointing=False).fit(watcher, datamodule=data)
    assert sorted(watcher.seen[0]) == list(range(6))


def test_rows_that_are_no_tensors_are_refused():
    with pytest.raises(UserError, match="rows as tensors; got ndarray"):
        TensorDataModule(np.zeros((3, 2)))


def test_one_tensor_is_split_by_the_seed(tmp_path):
    data = TensorDataModule(torch.arange(40), batch_size=3, seed=5)
    train, held_out = data.train[0].tolist(), data.validation[0].tolist()
    assert len(held_out) == 4
    assert sorted(train + held_out) == list(range(40))
    assert train == TensorDataModule(torch.arange(40), seed=5).train[0].tolist()
    assert train != TensorDataModule(torch.arange(40), seed=6).train[0].tolist()
    pair = TensorDataModule((torch.arange(40), None, torch.arange(40)), 0.5, seed=5)
    assert pair.train[1] is None
    assert torch.equal(pair.validation[0], pair.validation[2])
    few = TensorDataModule(torch.arange(6))  # a tenth of which is not one row
    assert sorted(few.validation[0].tolist()) == sorted(few.train[0].tolist()) == list(range(6))
    assert [x for (batch,) in data.predict_dataloader() for x in batch.tolist()] == list(range(40))
    with pytest.raises(UserError, match="fraction"):
        TensorDataModule(torch.arange(6), 1.5)


def test_attractor_module():
    simulation = {"n_neurons": 30, "n_grid": 4, "n_steps": 6}
    data = AttractorDataModule("ring", simulation=simulation, data_seed=2, fold_number=2, batch_size=3, rank=2)
    data.setup("fit")
    before = data.recording
    data.setup("test")
    assert data.recording is before
    assert data.truth.n_neurons == 30
    assert data.teacher.name == "ring"
    assert (data.sizes.n_neurons, data.sizes.n_steps, data.sizes.kind) == (30, 6, "rates")
    assert (data.sizes.has_bias, data.sizes.n_inputs, data.sizes.alpha) == (False, 0, 0.1)
    seen = {}
    for part, loader in (
        ("train", data.train_dataloader()),
        ("validation", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        batches = list(loader)
        seen[part] = torch.cat([batch.index for batch in batches])
        for batch in batches:
            assert torch.equal(batch.activity, data.recording.activity[batch.index])
            assert batch.mask.all()
            assert batch.inputs is batch.baseline is None
        assert seen[part].sort().values.tolist() == getattr(data.fold, part).tolist()
    assert sorted(torch.cat(list(seen.values())).tolist()) == list(range(16))
    again = AttractorDataModule("ring", simulation=simulation, data_seed=2)
    again.setup()
    assert torch.equal(again.recording.activity, data.recording.activity)


def test_npz_module_with_inputs_ragged_trials_and_a_baseline(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, size=20)
    np.savez(
        tmp_path / "a.npz",
        spikes=rng.poisson(1.0, size=(20, 8, 5)),
        externalinputs=rng.normal(size=(20, 8, 2)),
        lengths=lengths,
        MBD=rng.normal(size=(5, 3 + 2)),
        N=rng.normal(size=(5, 3)),
    )
    data = FileDataModule(str(tmp_path / "a.npz"), reading={"tau_s": 0.05}, rank=3, batch_size=4)
    data.setup()
    assert data.sizes.alpha == pytest.approx(0.2)
    assert (data.sizes.n_inputs, data.sizes.rank, data.sizes.has_bias) == (2, 3, False)
    assert data.truth.rank == 3
    data.baseline = torch.arange(20.0)[:, None, None].expand(20, 8, 5)
    for batch in data.train_dataloader():
        assert batch.mask.sum(1).tolist() == lengths[batch.index.numpy()].tolist()
        assert torch.equal(batch.baseline[:, 0, 0], batch.index.float())
        assert torch.equal(batch.inputs, data.recording.inputs[batch.index])
    data.baseline = torch.zeros(20, 8, 4)
    with pytest.raises(UserError, match="baseline"):
        data.train_dataloader()
    forced = FileDataModule(str(tmp_path / "a.npz"), rank=3, has_bias=True)
    forced.setup()
    assert forced.sizes.has_bias


def test_fewer_trials_than_folds(tmp_path):
    np.savez(tmp_path / "a.npz", rates=np.tanh(np.random.default_rng(0).normal(size=(4, 8, 5))))
    with pytest.raises(UserError, match="4 trials"):
        FileDataModule(str(tmp_path / "a.npz")).setup()
    three = FileDataModule(str(tmp_path / "a.npz"), n_folds=3)
    three.setup()
    assert len(three.fold.train)


@pytest.mark.parametrize(("unit", "doubted"), [(1.0, False), (1e3, True), (1e-3, True)])
def test_bins_in_other_units_than_seconds_are_doubted_and_change_nothing_but_hertz(tmp_path, unit, doubted):
    """Bins and time constant in milliseconds, and in thousands of seconds: the model of counts has the same step."""
    np.savez(tmp_path / "a.npz", spikes=np.random.default_rng(0).poisson(0.1, size=(8, 50, 3)))
    data = FileDataModule(str(tmp_path / "a.npz"), reading={"bin_s": 0.01 * unit, "tau": 0.1 * unit})
    data.setup()
    assert data.recording.alpha == pytest.approx(0.1)
    assert any("check that data.bin_s" in note for note in data.recording.notes) == doubted


def test_lost_neurons_and_repeated_trials_of_a_file_are_named(tmp_path):
    counts = np.random.default_rng(0).poisson(0.3, size=(30, 40, 4))
    counts[12:, :, 2] = 0
    np.savez(tmp_path / "a.npz", spikes=np.concatenate([counts, counts[:2]]), times=np.r_[0:30, 40, 41])
    data = FileDataModule(str(tmp_path / "a.npz"))
    data.setup()
    said = " ".join(data.recording.notes)
    assert "1 neuron (2, counted from 0) without spikes" in said
    assert "2 of 32 trials are exact copies of another" in said
    np.savez(tmp_path / "a.npz", rates=counts)
    data = FileDataModule(str(tmp_path / "a.npz"), reading={"activation": "relu"})
    data.setup()
    assert any("rates are whole numbers" in note for note in data.recording.notes)
