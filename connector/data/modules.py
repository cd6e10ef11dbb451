"""LightningDataModules: batches straight from memory, recordings split into folds of trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from connector.data.attractors import Teacher, teacher
from connector.data.folds import Fold, fold_of, names_of, overlapping, without_constant
from connector.data.indicator import without_indicator
from connector.data.input_filter import with_inputs
from connector.data.preprocessing import are_counts, mean_rates_hz, repeated_trials, silent_ends, silent_spells
from connector.data.readers import reader, source_of
from connector.data.recorded import out_of_range
from connector.data.simulation import simulate_recording
from connector.dynamics import Network
from connector.errors import UserError
from connector.files import paths_of
from connector.memo import once
from connector.report.numbers import counted
from connector.types import DataSizes, Recording, TrialBatch
from connector.units import RateScale

_SLOWEST_HZ, _FASTEST_HZ = 0.1, 2000.0  # of the busiest of many neurons: beyond, bins are in other units


class InMemoryBatches:
    """Batches of tensors that are in memory, by indexing: no worker, no collating, no cost per item.

    The order is a function of (seed, epoch) alone, so that a resumed run sees the batches of an uninterrupted one.
    Each of ``world_size`` processes gets every world_size-th item of that order. Where the items do not divide
    evenly, the first ones are seen twice, so that all processes have the same number of batches.

    Args:
        data: a tensor, or a tuple / NamedTuple of tensors and Nones with one first axis; batches have its type.
        batch_size: items of a batch in each process; the last batch may be smaller.
        shuffle: a fresh order each epoch; otherwise the items' own order.
        seed: of the order.
        epoch: a function that tells the current epoch; without it, :meth:`set_epoch` does.
        rank, world_size: which share of the items this process sees.
        epoch_size: items of an epoch over all processes, at most, when shuffled; None: all of them.

    Raises:
        UserError: no item, unequal lengths, a batch size below 1.
    """

    def __init__(
        self,
        data: Tensor | tuple,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        epoch_size: int | None = None,
    ):
        tensors = [x for x in (data if isinstance(data, tuple) else (data,)) if x is not None]
        sizes = {len(x) for x in tensors}
        if len(sizes) != 1 or sizes == {0}:
            raise UserError("tensors of one length, not empty", f"lengths {sorted(sizes)}")
        if batch_size < 1:
            raise UserError("a batch size of at least 1", str(batch_size))
        if not 0 <= rank < world_size:
            raise UserError(f"a rank from 0 to {world_size - 1}", str(rank))
        self.data, self.batch_size, self.shuffle, self.seed = data, int(batch_size), shuffle, int(seed)
        self.rank, self.world_size = rank, world_size
        self.n_items = sizes.pop()
        self.epoch_items = self.n_items if epoch_size is None or not shuffle else min(epoch_size, self.n_items)
        self._epoch_now, self._epoch = epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration has, where no ``epoch`` function was given."""
        self._epoch = int(epoch)

    @property
    def items_per_rank(self) -> int:
        return math.ceil(self.epoch_items / self.world_size)

    def __len__(self) -> int:
        """Batches of one epoch in this process."""
        return math.ceil(self.items_per_rank / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The items this process sees in that epoch, in order, (items_per_rank,) int64."""
        if self.shuffle:
            # One whole number from the pair, without collisions between neighbouring seeds and epochs.
            mixed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
            order = torch.randperm(self.n_items, generator=torch.Generator().manual_seed(mixed))[: self.epoch_items]
        else:
            order = torch.arange(self.n_items)
        missing = self.items_per_rank * self.world_size - len(order)
        while missing > 0:  # more processes than items: go round more than once
            order = torch.cat([order, order[:missing]])
            missing = self.items_per_rank * self.world_size - len(order)
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[Any]:
        # A generator: the epoch is asked for with the first batch. Lightning makes its iterator before it has read from the
        # checkpoint at which epoch a resumed training goes on.
        order = self.order(self._epoch if self._epoch_now is None else int(self._epoch_now()))
        for i in range(0, len(order), self.batch_size):
            yield self._take(order[i : i + self.batch_size])

    def _take(self, index: Tensor) -> Any:
        if isinstance(self.data, Tensor):
            return self.data[index.to(self.data.device)]
        parts = [None if x is None else x[index.to(x.device)] for x in self.data]
        return type(self.data)(*parts) if hasattr(self.data, "_fields") else tuple(parts)


class _MemoryDataModule(LightningDataModule):
    """What all data modules here share: batches that know the trainer's epoch, process and number of processes."""

    batch_size: int
    eval_batch_size: int
    seed: int
    epoch_size: int | None = None

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _batches(self, data: Tensor | tuple, shuffle: bool) -> InMemoryBatches:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return InMemoryBatches(
            data,
            self.batch_size if shuffle else self.eval_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            epoch=self._epoch,
            rank=rank,
            world_size=world_size,
            epoch_size=self.epoch_size,
        )


class TensorDataModule(_MemoryDataModule):
    """Tensors in memory, for flows: training and validation batches, tuples of tensors; tests see the validation rows,
    predictions every row in the order given.

    Args:
        rows: a tensor, or a tuple of tensors (and Nones) with one first axis.
        validation: the like; or the fraction of ``rows`` held out, chosen at random by ``seed`` (the training rows
            themselves where that is not one row); None for no validation.
        batch_size: items of a training batch in each process.
        seed: of the order of training batches, and of the rows held out.
        eval_batch_size: items of another batch.
        epoch_size: items of a training epoch, at most; a fresh choice each time. None: all.
    """

    def __init__(
        self,
        rows: Tensor | tuple,
        validation: Tensor | tuple | float | None = 0.1,
        batch_size: int = 512,
        seed: int = 0,
        eval_batch_size: int = 4096,
        epoch_size: int | None = None,
    ):
        super().__init__()
        self.batch_size, self.seed, self.eval_batch_size = batch_size, seed, eval_batch_size
        self.rows, self.epoch_size = rows if isinstance(rows, tuple) else (rows,), epoch_size
        for x in self.rows:
            if not isinstance(x, Tensor | None):
                raise UserError("rows as tensors", type(x).__name__, "torch.as_tensor(ROWS) makes one of an array")
        self.train, self.validation = self.rows, validation
        if isinstance(validation, Tensor):
            self.validation = (validation,)
        elif isinstance(validation, (int, float)):
            if not 0 <= validation < 1:
                raise UserError("a fraction of rows for validation in [0, 1)", str(validation))
            n_rows = len(next(x for x in self.rows if x is not None))
            order, held_out = (
                torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed)),
                int(validation * n_rows),
            )
            self.train, self.validation = (
                tuple(None if x is None else x[part] for x in self.rows)
                for part in (order[held_out:], order[: held_out or n_rows])
            )

    def train_dataloader(self) -> InMemoryBatches:
        return self._batches(self.train, shuffle=True)

    def val_dataloader(self) -> InMemoryBatches | list:
        return [] if self.validation is None else self._batches(self.validation, shuffle=False)

    def test_dataloader(self) -> InMemoryBatches | list:
        return self.val_dataloader()

    def predict_dataloader(self) -> InMemoryBatches:
        return self._batches(self.rows, shuffle=False)


class RecordingDataModule(_MemoryDataModule):
    """A recording, its trials split by fold, as batches of trials. Subclasses say where the recording comes from.

    Args:
        rank: R of the model to be fitted (``sizes`` carries it to the model); None: that of known latents, or to be chosen.
        fold_number, n_folds, fold_seed: see :func:`connector.data.folds.fold`.
        batch_size: training trials of a batch in each process; ``eval_batch_size``: for validation and test.
        seed: of the order of training batches.
        has_bias: whether neurons have a bias; None: as in the true loadings where these are known, otherwise yes.

    Attributes (after :meth:`setup`):
        recording: Recording, all trials; without the neurons that are constant in the training trials.
        left_out: names of those.
        fold: Fold.
        sizes: DataSizes.
        teacher: Teacher or None; truth: the whole true Network or None.
        baseline: (trials, time, K_obs) or None, all trials: what to add inside the softplus. Set it before fitting.
    """

    def __init__(
        self,
        *,
        rank: int | None = 2,
        fold_number: int = 1,
        n_folds: int = 5,
        fold_seed: int = 17,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        seed: int = 0,
        has_bias: bool | None = None,
    ):
        super().__init__()
        if rank is not None and rank < 1:
            raise UserError("a rank of at least 1", str(rank))
        self.rank, self.fold_number, self.n_folds, self.fold_seed = rank, fold_number, n_folds, fold_seed
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self._has_bias = has_bias
        self.recording: Recording | None = None
        self._given: Recording | None = None  # with its inputs as they were read
        self._recorded: Recording | None = None  # with rates in their own units
        self.left_out: tuple[str, ...] = ()
        self.fold: Fold | None = None
        self.sizes: DataSizes | None = None
        self.teacher: Teacher | None = None
        self.truth: Network | None = None
        self.baseline: Tensor | None = None

    def load(self) -> Recording:
        """Reads or simulates the recording (and may set ``teacher`` and ``truth``)."""
        raise NotImplementedError

    def prepared(self, recording: Recording, fold: Fold) -> Recording:
        """Prepare a recording, once it is known which trials may be used."""
        return recording

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits, the first time it is called."""
        if self.recording is not None:
            return
        recording = self.load()
        self.fold = fold_of(recording, self.fold_number, self.n_folds, self.fold_seed)
        recording = self.prepared(recording, self.fold)
        if recording.stretches is not None:
            sizes = [len(part) for part in (self.fold.train, self.fold.validation, self.fold.test)]
            what = "trials, some of which overlap," if overlapping(recording) else "pieces"
            said = "{} for training, validation and test: {}, {} and {}; in no set: {}"
            note = said.format(what, *sizes, recording.n_trials - sum(sizes))
            recording = replace(recording, notes=(*recording.notes, note))
        # Of a file with latents and loadings all neurons are known, whatever their activity.
        if recording.latents is None or recording.loadings is None or self.teacher is not None:
            recording, self.left_out = without_constant(recording, self.fold.train)
        if self.teacher is None:
            recording = replace(recording, notes=(*recording.notes, *_doubts(recording)))
        has_bias = self._has_bias
        if has_bias is None:
            known = recording.loadings
            has_bias = known is None or known.has_bias
        self.sizes = DataSizes(
            n_neurons=recording.n_neurons,
            rank=self.rank if self.rank or recording.latents is None else recording.latents.shape[2],
            n_inputs=recording.n_inputs,
            has_bias=has_bias,
            alpha=recording.alpha,
            activation=recording.activation,
            kind=recording.kind,
            n_steps=recording.n_steps,
        )
        self.recording = recording

    @property
    def recorded(self) -> Recording:
        """The recording with rates in their own units, and inputs as they were given."""
        return self.recording if self._recorded is None else self._recorded

    def take_scale(self, scale: RateScale | None) -> None:
        """Bring the rates into units of phi by ``scale`` from now on; None leaves them unchanged."""
        if scale is None:
            return
        self._recorded = self.recorded
        self.recording, self._given = self._recorded.on_scale(scale), None

    def take_inputs(self, kind: str) -> None:
        """From now on, give the inputs as a network of this ``kind`` takes them (:mod:`connector.data.input_filter`), in the
        recording, its sizes and all batches."""
        if self._given is None:
            self._given = self.recording
        self.recording = with_inputs(self._given, kind)
        self.sizes = replace(self.sizes, n_inputs=self.recording.n_inputs)

    def batch(self, index: Tensor) -> TrialBatch:
        """The trials of that index, (B,) int64, as one batch."""
        recording, baseline = self.recording, self.baseline
        if baseline is not None and baseline.shape != recording.activity.shape:
            raise UserError(
                f"a baseline of the activity's shape {tuple(recording.activity.shape)}", str(tuple(baseline.shape))
            )
        return TrialBatch.of(recording, index, baseline)

    def train_dataloader(self) -> InMemoryBatches:
        return self._batches(self.batch(self.fold.train), shuffle=True)

    def val_dataloader(self) -> InMemoryBatches:
        return self._batches(self.batch(self.fold.validation), shuffle=False)

    def test_dataloader(self) -> InMemoryBatches:
        return self._batches(self.batch(self.fold.test), shuffle=False)

    def predict_dataloader(self) -> InMemoryBatches:
        """All trials in their order."""
        return self._batches(self.batch(torch.arange(self.recording.n_trials)), shuffle=False)


class AttractorDataModule(RecordingDataModule):
    """A recording simulated from a teacher network.

    Args:
        name: of the teacher.
        teacher_options: options of the teacher, such as {"alpha": 0.2}.
        simulation: keyword arguments of :func:`connector.data.simulation.simulate_recording`, without the seed.
        data_seed: seed of the simulation; the recording is a function of it and of the options above.
        fold_options: keyword arguments of RecordingDataModule.
    """

    def __init__(
        self,
        name: str = "quadstable",
        *,
        teacher_options: dict | None = None,
        simulation: dict | None = None,
        data_seed: int = 0,
        **fold_options,
    ):
        super().__init__(**fold_options)
        self.teacher = teacher(name, **(teacher_options or {}))
        self.simulation, self.data_seed = dict(simulation or {}), data_seed

    def load(self) -> Recording:
        recording, self.truth = simulate_recording(self.teacher, seed=self.data_seed, **self.simulation)
        return recording


class FileDataModule(RecordingDataModule):
    """A recording read from a file.

    Args:
        path: of the file, or a list of files where the reader takes several.
        source: its format, a key of :data:`connector.data.readers.READERS`; "auto": by its content.
        reading: options of the reader.
        indicator_decay_s: of a slow indicator behind which rates are (:mod:`connector.data.indicator`), seconds; None: none.
        fold_options: keyword arguments of RecordingDataModule; ``rank`` also serves to read `MBD` of an npz file.
    """

    def __init__(self, path: str | list[str], source: str = "auto", *, reading: dict | None = None,
        indicator_decay_s: float | None = None, **fold_options,
    ):  # fmt: skip
        super().__init__(**fold_options)
        self.path, self.source, self.reading = path, source, dict(reading or {})
        self.indicator_decay_s = indicator_decay_s
        self.read_at: list[tuple[int, ...]] | None = None  # how the files stood, by which jobs share what is read

    def load(self) -> Recording:
        of_format = reader(source_of(paths_of(self.path)[0]) if self.source == "auto" else self.source)
        reading = {**({"rank": self.rank} if of_format.takes_rank else {}), **self.reading}
        if self.read_at is None:
            recording = of_format.load(self.path, **reading)
        else:
            key = ("reading", [str(path.resolve()) for path in paths_of(self.path)], self.read_at, self.source, reading)
            recording = once(key, lambda: of_format.load(self.path, **reading))
        self.truth = _known_network(recording)
        return recording

    def prepared(self, recording: Recording, fold: Fold) -> Recording:
        if self.indicator_decay_s is None:
            return recording
        if recording.bin_s is None:  # of rates, whose time has no unit but alpha
            recording = replace(recording, bin_s=self.reading.get("bin_s"))
        found = without_indicator(recording, self.indicator_decay_s, fold.train)
        rates, tolerance = found.activity[found.mask], self.reading.get("range_tolerance", 0.3)
        return replace(found, out_of_range=out_of_range(rates.numpy(), found.activation, tolerance))


def _doubts(recording: Recording) -> list[str]:
    """What in a file's activity may be no activity of its own, in sentences."""
    said, activity, lengths = [], recording.activity.numpy(), recording.lengths.numpy()
    if recording.kind == "spikes":
        order = (
            slice(None) if recording.trial_times_s is None else recording.trial_times_s.numpy().argsort(kind="stable")
        )
        lost = silent_spells(activity.sum(1)[order], lengths[order])
        if len(lost):
            said.append(
                f"{counted(len(lost), 'neuron')} ({names_of(recording, lost)}) without spikes in successive trials where 30 or more are "
                "expected. This is read as silence; leave out what was lost or not recorded there"
            )
        said += [
            f"in {counted(number, 'trial')} no neuron fires in the {end} samples, where 30 spikes or more are expected. This is read as silence; "
            "shorten these trials if the samples were not recorded"
            for number, end in zip(silent_ends(activity, lengths), ("first", "last"))
            if number
        ]
        if recording.bin_s is not None:
            busiest = float(mean_rates_hz(recording.activity, recording.lengths, recording.bin_s).max())
            if not _SLOWEST_HZ <= busiest <= _FASTEST_HZ:
                said.append(
                    f"the busiest neuron fires at {busiest:.2g} Hz: check that data.bin_s, the width of bins, and spike times are in seconds"
                )
    elif activity.max() > 1 and are_counts(activity):
        said.append(
            f"rates are whole numbers from 0 to {int(activity.max())}. If they are spike counts, save them under the key "
            "`spikes` of an npz, or set data.kind=spikes"
        )
    repeated = repeated_trials(activity, lengths)
    if repeated:
        said.append(
            f"{repeated} of {recording.n_trials} trials are exact copies of another. Test trials among them are known from training; "
            "leave the copies out"
        )
    return said


def _known_network(recording: Recording) -> Network | None:
    """The true network where a file holds both loadings and output weights."""
    if recording.loadings is None or recording.n is None:
        return None
    known = recording.loadings
    return Network(known.m, recording.n, known.b, known.d, alpha=recording.alpha, activation=recording.activation)
