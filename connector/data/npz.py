"""Recordings in npz files, in this project's convention or in FINDR's."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.readers import Reader, require_format
from connector.data.recorded import RecordedArrays, recording_of, tensor
from connector.data.settings import data_option, memory_option, require_two, settled
from connector.errors import UserError
from connector.files import read_arrays

if TYPE_CHECKING:
    from connector.types import Loadings, Recording

_KEYS = (
    "rates", "spikes", "potentials", "latents", "MBD", "N", "externalinputs", "lengths", "choices", "times",
)  # fmt: skip


@dataclass
class NpzOptions:
    """How an npz file is read: the options of ``data=npz`` and keywords of :func:`load_npz`."""

    activation: str | None = data_option(
        "nonlinearity phi of the neurons; null: tanh for rates, softplus for spikes", default=None
    )
    alpha: float | None = data_option(
        "time step in units of the time constant, dt / tau; null: 0.1 for rates, bin_s / tau for spikes",
        above=0,
        at_most=1,
        default=None,
    )
    tau: float = data_option("time constant of the network, for spikes", unit="s", above=0, default=0.1)
    bin_s: float = data_option("bin width, for spikes", unit="s", above=0, default=0.01)
    range_tolerance: float = data_option(
        "how far noisy rates may leave the range of phi: rms excess relative to half the range", at_least=0, default=0.3
    )
    choice_values: list[Any] | None = data_option(
        "the two values of `choices` that mean left and right, if they are not 0 and 1, such as [-1,1]; any "
        "other value: no choice",
        before=None,
    )
    max_gigabytes: float = memory_option("largest size of the unpacked arrays")

    def check(self) -> None:
        require_two(self.choice_values)


def load_npz(
    path: str | os.PathLike,
    options: NpzOptions | None = None,
    *,
    rank: int | None = None,
    name: str | None = None,
    **keywords,
) -> Recording:
    """A recording from an npz file, in this project's convention or in FINDR's.

    Keys: ``rates`` or ``spikes`` (trials, time, K), and optionally ``potentials`` (trials, time, K), ``latents``
    (trials, time, R), ``MBD`` (K, R + U + 1 | R + U | R: the loadings m, b, d side by side), ``N`` (K, R),
    ``externalinputs`` (trials, time, U), ``lengths`` (trials,), ``choices`` (trials,), ``times`` (trials,) seconds.
    Other keys are ignored and named in the notes. Samples past a trial's length are ignored. Without ``lengths``, a trial
    ends where every neuron is NaN, or where more zeros follow than silence explains.

    Args:
        path: the file.
        options: how to read it; None: the defaults of :class:`NpzOptions`.
        rank: R, used where ``MBD`` comes without ``latents`` and ``N``.
        name: of the recording; None: the file's.
        keywords: options by their names, ``tau`` also as ``tau_s``.

    Raises:
        UserError: the file is not an npz, is too large or truncated, or its arrays cannot be a recording.
    """
    options = settled(NpzOptions, options, keywords)
    path = Path(path)
    require_format(path, "npz")
    arrays = _read(path, options)
    notes = arrays.notes
    spikes = arrays.kind == "spikes"
    recording = recording_of(arrays, options, options.bin_s if spikes else None, name or path.stem)
    latents, inputs = arrays.per_step("latents"), arrays.values.get("externalinputs")
    latents = None if latents is not None and latents.shape[2] == 0 else latents
    loadings, n = _known_connectivity(arrays, 0 if inputs is None else inputs.shape[2], latents, rank)
    if recording.inputs is None:
        loadings = _without(loadings, "b")
    if loadings is not None and loadings.d is not None and not bool(loadings.d.any()):
        notes.append("the biases in MBD are all zero: treated as absent")
        loadings = _without(loadings, "d")
    known = {"latents": tensor(latents), "loadings": loadings, "n": tensor(n, np.float64)}
    return replace(recording, **known, notes=tuple(notes))


def _perhaps(key: str, there: Container[str]) -> str:
    """A key without a meaning here, with the one that it resembles and that is not ``there``."""
    absent = [known for known in _KEYS if known not in there]
    meant = [known for known in absent if len(key) > 3 and key.lower() in known]
    meant = meant or get_close_matches(key, absent, n=1, cutoff=0.75)
    return f"{key} (did you mean {meant[0]}?)" if meant else key


def _read(path: Path, options: NpzOptions) -> RecordedArrays:
    values, ignored = read_arrays(path, _KEYS, options.max_gigabytes)
    present = [key for key in ("rates", "spikes") if key in values]
    if len(present) == 2:
        raise UserError(
            "either rates or spikes", f"both in {path.name}", "keep the one to be fitted and save the file again"
        )
    if not present:
        found = ", ".join(sorted(values) + sorted(ignored)) or "nothing"
        raise UserError(
            "the key `rates` or `spikes`",
            f"{found} in {path.name}",
            "arrays of other names are read by data=arrays data.activity=KEY; `connector look FILE` lists them",
        )
    notes = [f"keys not used: {', '.join(_perhaps(key, values) for key in ignored)}"] if ignored else []
    return RecordedArrays(values, notes, options.activation)


def _known_connectivity(
    arrays: RecordedArrays, n_inputs: int, latents: np.ndarray | None, rank: int | None
) -> tuple[Loadings | None, np.ndarray | None]:
    """MBD split into m, b, d by the rank and the number of inputs, and N."""
    import torch

    from connector.types import Loadings

    n_neurons = arrays.activity.shape[2]
    stacked, n = arrays.numbers("MBD", ("neurons", "columns")), arrays.numbers("N", ("neurons", "rank"))
    for key, value in (("MBD", stacked), ("N", n)):
        if value is None:
            continue
        if len(value) != n_neurons:
            raise UserError(f"{key} with one row for each of {n_neurons} recorded neurons", f"shape {value.shape}")
        if not np.isfinite(value).all():
            raise UserError(f"finite values in {key}", "NaN or infinite entries")
    if latents is not None:
        rank = latents.shape[2]
    elif n is not None:
        rank = n.shape[1]
    if n is not None and n.shape[1] != rank:
        raise UserError(f"N of shape ({n_neurons}, {rank}), rank {rank} as in latents", str(n.shape))
    if stacked is None:
        return None, n
    if rank is None:
        raise UserError(
            "MBD together with `latents` or `N`, which tell its rank", f"MBD of shape {stacked.shape} alone"
        )
    layouts = {rank + n_inputs + 1: (n_inputs, True), rank: (0, False), rank + n_inputs: (n_inputs, False)}
    width = stacked.shape[1]
    if width not in layouts:
        *some, last = sorted(layouts)
        raise UserError(
            f"MBD with {', '.join(map(str, some))} or {last} columns (rank {rank}, {n_inputs} inputs)",
            f"shape {stacked.shape}",
            "MBD holds m, b, d side by side; give `externalinputs` and `latents` that go with it",
        )
    return Loadings.unstack(torch.from_numpy(stacked).double(), rank, *layouts[width]), n


def _without(loadings: Loadings | None, part: str) -> Loadings | None:
    return None if loadings is None else replace(loadings, **{part: None})


READER = Reader(NpzOptions, load_npz, formats=("npz",), takes_rank=True)
