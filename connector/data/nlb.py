"""Recordings of the Neural Latents Benchmark: the HDF5 tensors that its tools write."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from connector.data.preprocessing import begun_at, recorded_lengths, require_counts
from connector.data.readers import Reader, require_format
from connector.data.settings import data_option, memory_option, settled
from connector.declarations import require
from connector.errors import UserError
from connector.files import check_size, limited_memory, refusing_damage
from connector.report.numbers import counted

if TYPE_CHECKING:
    from connector.types import Recording

_TOLD = {"heldin": "held-in", "heldout": "held-out"}


@dataclass
class NlbOptions:
    """How a benchmark file is read: the options of ``data=nlb`` and keywords of :func:`load_nlb`."""

    group: str | None = data_option("the data set, if the file holds several; null: the only one", default=None)
    split: str = data_option(
        "trials to use; all: training trials first", choices=("train", "eval", "all"), default="train"
    )
    heldout: bool | None = data_option(
        "true: join the held-out neurons to the held-in ones, after them; null: if the file has them", default=None
    )
    bin_s: float = data_option(
        "width of the file's bins, which the file does not state", unit="s", above=0, default=0.005
    )
    rebin: int = data_option(
        "sum this many bins to one; bins left over at a trial's end are dropped", at_least=1, default=1
    )
    tau: float = data_option(
        "time constant of the network; alpha = rebin * bin_s / tau", unit="s", above=0, default=0.1
    )
    activation: str | None = data_option("nonlinearity phi of the neurons; null: softplus", default=None)
    max_gigabytes: float = memory_option("largest size of the counts in memory")

    def check(self) -> None:
        bin_s = self.rebin * self.bin_s
        remedy = "lower data.rebin, or raise data.tau"
        most = f"of at most the time constant, {self.tau:g} s"
        require(bin_s <= self.tau, "data.rebin * data.bin_s", most, bin_s, remedy)


def load_nlb(
    path: str | os.PathLike, options: NlbOptions | None = None, *, name: str | None = None, **keywords
) -> Recording:
    """Spike counts from a file of the Neural Latents Benchmark.

    Keys: ``train_spikes_heldin``, ``train_spikes_heldout``, ``eval_spikes_heldin``, ``eval_spikes_heldout``, each
    (trials, time, neurons), at the top of the file or in groups named after data sets. Others (behaviour, forward
    prediction, condition averages) are not used and named in the notes. Bins that are NaN in all neurons lie outside a
    trial: trials padded at the end end there, trials padded at the front are moved to begin at the first sample.

    Args:
        path: the file.
        options: how to read it; None: the defaults of :class:`NlbOptions`.
        name: of the recording; None: the file's (and the group's).
        keywords: options by their names, ``tau`` also as ``tau_s``.

    Raises:
        UserError: another format, a file that is cut short, keys that are absent, arrays that are no spike counts.
    """
    import torch

    from connector.dynamics import activation as activation_named
    from connector.types import Recording, span

    path = Path(path)
    require_format(path, "nlb")
    options = settled(NlbOptions, options, keywords)
    activation = activation_named(options.activation or "softplus").name
    parts, names, notes, group = _read_parts(path, options)
    counts, lengths = _moved_to_the_start(np.concatenate(parts), notes)
    if options.rebin > 1:
        counts, lengths = _rebinned(counts, lengths, options.rebin, notes)
    if lengths.min() < 2:
        raise UserError(
            "trials of at least 2 bins", f"{int((lengths < 2).sum())} shorter ones", "lower data.rebin if it is set"
        )
    inside = counts[np.arange(counts.shape[1])[None, :] < lengths[:, None]]
    require_counts(inside)
    if not inside.any():
        raise UserError("spikes", "none in the whole file")
    recorded = recorded_lengths(counts.sum(2), lengths)
    empty = int((recorded < 2).sum())
    if empty:
        raise UserError("spikes in every trial", f"{empty} trials of zeros throughout", "leave them out of the file")
    if (recorded < lengths).any():
        padded = int((recorded < lengths).sum())
        notes.append(f"every neuron is zero at the end of {padded} trials: taken as padding, {span(recorded)} bins")
        counts, lengths = counts[:, : recorded.max()], recorded
    silent = int((inside.sum(0) == 0).sum())
    if silent:
        notes.append(f"{silent} of {counts.shape[2]} neurons never fire")
    bin_s = options.rebin * options.bin_s
    notes.append(f"mean rate {float(inside.mean()) / bin_s:.2g} Hz (bins of {1000 * options.bin_s:g} ms in the file)")
    return Recording(
        activity=torch.from_numpy(counts),
        kind="spikes",
        lengths=torch.from_numpy(lengths),
        alpha=bin_s / options.tau,
        activation=activation,
        bin_s=bin_s,
        neuron_names=names,
        name=name or (f"{path.stem} {group}" if group else path.stem),
        notes=tuple(notes),
    )


def _read_parts(path: Path, options: NlbOptions) -> tuple[list[np.ndarray], tuple[str, ...], list[str], str]:
    """Counts (trials, time, K) of each split, the neurons' names, notes, and the group ("" for the top)."""
    import h5py

    splits = ["train", "eval"] if options.split == "all" else [options.split]
    whole = refusing_damage(path, "a Neural Latents Benchmark file that is whole")
    # Four times: counts may be of double precision in the file, and are joined.
    with whole, limited_memory(4 * options.max_gigabytes), h5py.File(path, "r") as file:
        group = _which_group(path, file, options.group)
        tensors = file[group] if group else file
        keys = [key for key in tensors if isinstance(tensors[key], h5py.Dataset)]
        # h5py gives a name that is no text as bytes.
        keys = [key if isinstance(key, str) else key.decode(errors="replace") for key in keys]
        kinds = _which_neurons(path, keys, splits, options.heldout)
        used = [[f"{s}_spikes_{kind}" for kind in kinds] for s in splits]
        _check_shapes(tensors, used)
        size = 4e-9 * sum(math.prod(tensors[key].shape) for row in used for key in row)
        check_size(size, options.max_gigabytes, "raise data.max_gigabytes if the memory is there")
        parts = [np.concatenate([tensors[key][()].astype(np.float32) for key in row], axis=2) for row in used]
        widths = [tensors[key].shape[2] for key in used[0]]
    names = tuple(f"{_TOLD[kind]} {i + 1}" for kind, width in zip(kinds, widths) for i in range(width))
    notes = [
        f"{' and '.join(f'{len(part)} {s}' for s, part in zip(splits, parts))} trials; "
        + ", ".join(f"{width} {_TOLD[kind]} neurons" for kind, width in zip(kinds, widths))
    ]
    ignored = sorted(set(keys) - {key for row in used for key in row})
    if ignored:
        notes.append(f"keys not used: {', '.join(ignored)}")
    return parts, names, notes, group


def _which_neurons(path: Path, keys: list[str], splits: list[str], heldout: bool | None) -> list[str]:
    """Whether held-in neurons alone are read, or held-out ones, too."""
    lacking = {kind: [s for s in splits if f"{s}_spikes_{kind}" not in keys] for kind in _TOLD}
    remedies = {
        "heldin": "choose trials that the file has with data.split (train, eval, all)",
        "heldout": "leave the held-out neurons out: data.heldout=false",
    }
    for kind in _TOLD if heldout else ["heldin"]:
        if lacking[kind]:
            absent = " and ".join(f"{s}_spikes_{kind}" for s in lacking[kind])
            there = f"{', '.join(keys) or 'nothing'} in {path.name}"
            raise UserError(f"the key {absent}", there, remedies[kind])
    join = not lacking["heldout"] if heldout is None else heldout
    return ["heldin", "heldout"] if join else ["heldin"]


def _which_group(path: Path, file, group: str | None) -> str:
    import h5py

    def holds_spikes(item) -> bool:
        return any("spikes_heldin" in key for key in item if isinstance(key, str))

    found = [key for key in file if isinstance(file[key], h5py.Group) and holds_spikes(file[key])]
    if group is not None:
        if group not in found:
            raise UserError(f"data.group among {', '.join(found) or '(none: the file has no groups)'}", repr(group))
        return group
    if holds_spikes(file):
        return ""
    if len(found) > 1:
        raise UserError("one data set", f"{', '.join(found)} in {path.name}", "choose one with data.group=NAME")
    return found[0]


def _check_shapes(tensors, used: list[list[str]]) -> None:
    for key in [key for row in used for key in row]:
        if tensors[key].ndim != 3 or 0 in tensors[key].shape or tensors[key].dtype.kind not in "biuf":
            raise UserError(f"{key} as numbers of shape (trials, time, neurons)", f"shape {tensors[key].shape}")
    for row in used:
        if len({tensors[key].shape[:2] for key in row}) > 1:
            raise UserError(
                f"{' and '.join(row)} of the same trials and bins",
                f"shapes {', '.join(str(tensors[key].shape) for key in row)}",
            )
    for first, other in zip(used[0], used[-1]):
        if tensors[first].shape[1:] != tensors[other].shape[1:]:
            raise UserError(
                f"{first} and {other} of the same bins and neurons",
                f"shapes {tensors[first].shape} and {tensors[other].shape}",
                "take one of them: data.split=train or data.split=eval",
            )


def _moved_to_the_start(counts: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Counts with the bins outside a trial zero and behind it, and the trials' lengths."""
    missing = np.isnan(counts)
    recorded = ~missing.all(axis=2)
    if missing[recorded].any():
        raise UserError("counts for all neurons in each bin of a trial", f"{int(missing[recorded].sum())} NaN entries")
    lengths, first = recorded.sum(1).astype(np.int64), recorded.argmax(1)
    place = np.arange(counts.shape[1])
    gaps = recorded != ((place >= first[:, None]) & (place < (first + lengths)[:, None]))
    if gaps.any() or lengths.min() == 0:
        raise UserError(
            "trials without gaps",
            f"{int((gaps.any(1) | (lengths == 0)).sum())} trials that are NaN within or throughout",
            "leave them out of the file",
        )
    if first.any():
        notes.append(
            f"{counted(int((first > 0).sum()), 'trial')} padded with NaN at the front moved to begin at the first sample"
        )
        counts = begun_at(counts, first)
    counts[place[None, :] >= lengths[:, None]] = 0
    return counts[:, : lengths.max()], lengths


def _rebinned(counts: np.ndarray, lengths: np.ndarray, rebin: int, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of ``rebin`` bins; those left over at a trial's end are dropped."""
    over = lengths % rebin
    if over.any():
        notes.append(f"up to {int(over.max())} bins at the trials' ends, too few for one of {rebin}, dropped")
    lengths = lengths // rebin
    steps = max(int(lengths.max()), 1)
    if counts.shape[1] < steps * rebin:
        raise UserError("trials of at least 2 bins", f"{counts.shape[1]} bins in all", "lower data.rebin")
    counts = counts[:, : steps * rebin].reshape(len(counts), steps, rebin, counts.shape[2]).sum(2)
    counts[np.arange(steps)[None, :] >= lengths[:, None]] = 0
    return counts, lengths


READER = Reader(NlbOptions, load_nlb, formats=("nlb",))
