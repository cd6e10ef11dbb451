"""Recordings of the Neural Latents Benchmark: the HDF5 tensors that its tools write."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch

from connector.data.formats import require_format
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, check_size, limited_memory, refusing_damage
from connector.types import Recording

SPLITS = ("train", "eval", "all")


def load_nlb(
    path: str | os.PathLike,
    *,
    group: str | None = None,
    split: str = "train",
    heldout: bool | None = None,
    bin_s: float = 0.005,
    rebin: int = 1,
    tau_s: float = 0.1,
    activation: str | None = None,
    max_gigabytes: float = MAX_GIGABYTES,
    name: str | None = None,
) -> Recording:
    """Spike counts from a file of the Neural Latents Benchmark.

    Keys: ``train_spikes_heldin``, ``train_spikes_heldout``, ``eval_spikes_heldin``, ``eval_spikes_heldout``, each
    (trials, time, neurons), at the top of the file or in groups named after data sets. Others (behaviour, forward
    prediction, condition averages) are not used and named in the notes. Bins that are NaN in all neurons lie outside a
    trial: trials padded at the end end there, trials padded at the front are moved to begin at the first sample.

    Args:
        path: the file.
        group: the data set, where the file holds several; None: the only one.
        split: "train", "eval", or "all" (training trials first).
        heldout: whether held-out neurons are joined to the held-in ones, behind them; None: where the file has them.
        bin_s: width of the file's bins, seconds; the file does not say it.
        rebin: so many bins are summed to one; bins left over at a trial's end are dropped.
        tau_s: time constant, seconds; alpha = rebin * bin_s / tau_s.
        activation: phi of the neurons; None: softplus.
        max_gigabytes: largest size of the counts in memory.
        name: of the recording; None: the file's (and the group's).

    Raises:
        UserError: another format, a file that is cut short, keys that are absent, arrays that are no spike counts.
    """
    path = Path(path)
    require_format(path, "nlb")
    if split not in SPLITS:
        raise UserError(f"data.split among {', '.join(SPLITS)}", repr(split))
    if rebin < 1:
        raise UserError("data.rebin of 1 or more", str(rebin))
    if not 0 < rebin * bin_s <= tau_s:
        raise UserError(
            "a bin of more than 0 s and at most the time constant",
            f"{rebin * bin_s:g} s and {tau_s:g} s",
            "lower data.rebin, or raise data.tau",
        )
    activation_named(activation or "softplus")
    parts, names, notes, group = _read_parts(path, group, split, heldout, max_gigabytes)
    counts, lengths = _moved_to_the_start(np.concatenate(parts), notes)
    if rebin > 1:
        counts, lengths = _rebinned(counts, lengths, rebin, notes)
    if lengths.min() < 2:
        raise UserError(
            "trials of at least 2 bins", f"{int((lengths < 2).sum())} shorter ones", "lower data.rebin if it is set"
        )
    inside = counts[np.arange(counts.shape[1])[None, :] < lengths[:, None]]
    if inside.min() < 0 or not np.array_equal(inside, np.round(inside)):
        raise UserError("spike counts, whole numbers of 0 or more", f"values from {inside.min():g} to {inside.max():g}")
    if not inside.any():
        raise UserError("spikes", "none in the whole file")
    silent = int((inside.sum(0) == 0).sum())
    if silent:
        notes.append(f"{silent} of {counts.shape[2]} neurons never fire")
    notes.append(f"mean rate {float(inside.mean()) / (rebin * bin_s):.2g} Hz (bins of {1000 * bin_s:g} ms in the file)")
    return Recording(
        activity=torch.from_numpy(counts),
        kind="spikes",
        lengths=torch.from_numpy(lengths),
        alpha=rebin * bin_s / tau_s,
        activation=activation or "softplus",
        bin_s=rebin * bin_s,
        neuron_names=names,
        name=name or (f"{path.stem} {group}" if group else path.stem),
        notes=tuple(notes),
    )


def _read_parts(
    path: Path, group: str | None, split: str, heldout: bool | None, max_gigabytes: float
) -> tuple[list[np.ndarray], tuple[str, ...], list[str], str]:
    """Counts (trials, time, K) of each split, the neurons' names, notes, and the group ("" for the top)."""
    import h5py

    splits = ["train", "eval"] if split == "all" else [split]
    whole = refusing_damage(path, "a Neural Latents Benchmark file that is whole")
    # Four times: counts may be of double precision in the file, and are joined.
    with whole, limited_memory(4 * max_gigabytes), h5py.File(path, "r") as file:
        group = _which_group(path, file, group)
        tensors = file[group] if group else file
        keys = [key for key in tensors if isinstance(tensors[key], h5py.Dataset)]
        # h5py gives a name that is no text as bytes.
        keys = [key if isinstance(key, str) else key.decode(errors="replace") for key in keys]
        absent = [f"{s}_spikes_heldin" for s in splits if f"{s}_spikes_heldin" not in keys]
        if absent:
            raise UserError(
                f"the key {' and '.join(absent)}",
                f"{', '.join(keys) or 'nothing'} in {path.name}",
                "choose trials that the file has with data.split (train, eval, all)",
            )
        with_heldout = [s for s in splits if f"{s}_spikes_heldout" in keys]
        if heldout and with_heldout != splits:
            raise UserError(
                f"the key {' and '.join(f'{s}_spikes_heldout' for s in splits if s not in with_heldout)}",
                f"{', '.join(keys)} in {path.name}",
                "leave the held-out neurons away: data.heldout=false",
            )
        join = with_heldout == splits if heldout is None else heldout
        kinds = ["heldin", "heldout"] if join else ["heldin"]
        used = [[f"{s}_spikes_{kind}" for kind in kinds] for s in splits]
        _check_shapes(tensors, used)
        size = 4e-9 * sum(math.prod(tensors[key].shape) for row in used for key in row)
        check_size(size, max_gigabytes, "raise data.max_gigabytes if the memory is there")
        parts = [np.concatenate([tensors[key][()].astype(np.float32) for key in row], axis=2) for row in used]
        widths = [tensors[key].shape[2] for key in used[0]]
    told = {"heldin": "held-in", "heldout": "held-out"}
    names = tuple(f"{told[kind]} {i + 1}" for kind, width in zip(kinds, widths) for i in range(width))
    notes = [
        f"{' and '.join(f'{len(part)} {s}' for s, part in zip(splits, parts))} trials; "
        + ", ".join(f"{width} {told[kind]} neurons" for kind, width in zip(kinds, widths))
    ]
    ignored = sorted(set(keys) - {key for row in used for key in row})
    if ignored:
        notes.append(f"keys not used: {', '.join(ignored)}")
    return parts, names, notes, group


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
        notes.append(f"{int((first > 0).sum())} trials padded with NaN at the front moved to begin at the first sample")
        order = (place[None, :] + first[:, None]) % counts.shape[1]
        counts = np.take_along_axis(counts, order[:, :, None], axis=1)
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
