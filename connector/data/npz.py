"""Recordings in npz files, in this project's convention or in FINDR's."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from connector.data.formats import require_format
from connector.data.preprocessing import range_excess
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, read_arrays
from connector.types import Loadings, Recording

NPZ_KEYS = (
    "rates",
    "spikes",
    "potentials",
    "latents",
    "MBD",
    "N",
    "externalinputs",
    "lengths",
    "choices",
    "times",
)


def load_npz(
    path: str | os.PathLike,
    *,
    activation: str | None = None,
    alpha: float | None = None,
    tau_s: float = 0.1,
    bin_s: float = 0.01,
    rank: int | None = None,
    range_tolerance: float = 0.3,
    max_gigabytes: float = MAX_GIGABYTES,
    name: str | None = None,
) -> Recording:
    """A recording from an npz file, in this project's convention or in FINDR's.

    Keys: ``rates`` or ``spikes`` (trials, time, K), and optionally ``potentials`` (trials, time, K), ``latents``
    (trials, time, R), ``MBD`` (K, R + U + 1 | R + U | R: the loadings m, b, d side by side), ``N`` (K, R),
    ``externalinputs`` (trials, time, U), ``lengths`` (trials,), ``choices`` (trials,), ``times`` (trials,) seconds.
    Others are ignored and named in the notes. Samples at or past a trial's length are ignored, NaN or not; without
    ``lengths``, samples at a trial's end in which every neuron is NaN are taken as past its end.

    Args:
        path: the file.
        activation: phi of the neurons; None: tanh for rates, softplus for spikes.
        alpha: dt / tau; None: 0.1 for rates, bin_s / tau_s for spikes.
        tau_s: time constant, seconds, for spikes.
        bin_s: bin width, seconds, for spikes.
        rank: R, used where ``MBD`` comes without ``latents`` and ``N``.
        range_tolerance: largest excess of the rates over the range of phi, see
            :func:`connector.data.preprocessing.range_excess`.
        max_gigabytes: largest size of the unpacked arrays.
        name: of the recording; None: the file's.

    Raises:
        UserError: a file that is no npz, too large, truncated, or arrays that cannot be a recording.
    """
    path = Path(path)
    require_format(path, "npz")
    values, ignored = read_arrays(path, NPZ_KEYS, max_gigabytes)
    arrays = _Arrays(path.name, values, tuple(ignored))
    notes = []
    if ignored:
        notes.append(f"keys not used: {', '.join(ignored)}")
    kind = _which_activity(path, arrays)
    activity = _numbers(arrays, kind, ("trials", "time", "neurons"))
    lengths = _lengths(arrays, kind, activity, notes)
    keep = np.arange(activity.shape[1])[None, :] < lengths[:, None]
    if not keep.all():
        activity[~keep] = 0
    activation = activation or ("tanh" if kind == "rates" else "softplus")
    activation_named(activation)
    _check_activity(kind, activity, keep, activation, range_tolerance, notes)

    per_step = {}
    for key in ("externalinputs", "latents", "potentials"):
        per_step[key] = value = _numbers(arrays, key, ("trials", "time", "channels"))
        if value is not None:
            if value.shape[:2] != activity.shape[:2]:
                raise UserError(
                    f"{key} of shape {(*activity.shape[:2], value.shape[2])}, like {kind}", str(value.shape)
                )
            value[~keep] = 0
    _compare_potentials(per_step["potentials"], activity, keep, kind, activation, notes)
    inputs, latents = per_step["externalinputs"], per_step["latents"]
    if latents is not None and latents.shape[2] == 0:
        latents = None
    n_inputs = 0 if inputs is None else inputs.shape[2]
    loadings, n = _known_connectivity(arrays, activity.shape[2], n_inputs, latents, rank)
    if inputs is not None and not np.any(inputs):
        if n_inputs:
            notes.append("externalinputs are zero throughout: treated as absent")
        inputs, loadings = None, None if loadings is None else Loadings(loadings.m, None, loadings.d)
    if loadings is not None and loadings.d is not None and not bool(loadings.d.any()):
        notes.append("the biases in MBD are all zero: treated as absent")
        loadings = Loadings(loadings.m, loadings.b, None)
    if alpha is None:
        alpha = 0.1 if kind == "rates" else bin_s / tau_s
    return Recording(
        activity=torch.from_numpy(activity.astype(np.float32, copy=False)),
        kind=kind,
        lengths=torch.from_numpy(lengths),
        alpha=float(alpha),
        activation=activation,
        inputs=None if inputs is None else torch.from_numpy(inputs.astype(np.float32)),
        input_names=() if inputs is None else tuple(f"input {i + 1}" for i in range(inputs.shape[2])),
        bin_s=bin_s if kind == "spikes" else None,
        latents=None if latents is None else torch.from_numpy(latents),
        loadings=loadings,
        n=n,
        choices=_choices(arrays, len(activity), notes),
        trial_times_s=_trial_times(arrays, activity.shape, notes),
        name=name or path.stem,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Arrays:
    """The arrays of an npz that have a meaning here, and the names of those that have none."""

    file: str
    values: dict[str, np.ndarray]
    ignored: tuple[str, ...]

    def get(self, key: str) -> np.ndarray | None:
        return self.values.get(key)


def _which_activity(path: Path, arrays: _Arrays) -> str:
    present = [key for key in ("rates", "spikes") if arrays.get(key) is not None]
    if len(present) == 2:
        raise UserError(
            "either rates or spikes", f"both in {path.name}", "keep the one to be fitted and save the file again"
        )
    if not present:
        found = ", ".join(sorted(arrays.values) + sorted(arrays.ignored)) or "nothing"
        raise UserError(
            "the key `rates` or `spikes`",
            f"{found} in {path.name}",
            "save it with numpy.savez(FILE, rates=...), axes (trials, time, neurons)",
        )
    return present[0]


def _numbers(arrays: _Arrays, key: str, axes: tuple[str, ...]) -> np.ndarray | None:
    """An array with the axes given as float64 (float32 stays float32), or None."""
    value = arrays.get(key)
    if value is None:
        return None
    if value.dtype.kind not in "biuf":
        raise UserError(f"{key} as real numbers", f"{value.dtype}")
    if value.ndim != len(axes):
        remedy = "for a single trial save it as x[None]" if value.ndim == 2 and len(axes) == 3 else ""
        raise UserError(f"{key} with the axes ({', '.join(axes)})", f"shape {value.shape}", remedy)
    if key in ("rates", "spikes") and 0 in value.shape:
        raise UserError(f"{key} that are not empty", f"shape {value.shape}")
    return value.astype(np.float32 if value.dtype == np.float32 else np.float64, copy=False)


def _lengths(arrays: _Arrays, kind: str, activity: np.ndarray, notes: list[str]) -> np.ndarray:
    trials, steps, _ = activity.shape
    given = _per_trial(arrays, "lengths", trials)
    if given is not None:
        lengths = given.numpy()
        if not np.array_equal(lengths, np.round(lengths)) or lengths.min() < 2 or lengths.max() > steps:
            raise UserError(
                f"lengths as whole numbers from 2 to {steps}", f"values from {lengths.min():g} to {lengths.max():g}"
            )
        return lengths.astype(np.int64)
    recorded = np.ones((trials, steps), dtype=bool)
    recorded[np.isnan(activity[:, :, 0])] = False  # only where the first neuron is NaN can all be
    recorded[~recorded] = ~np.isnan(activity[~recorded]).all(axis=1)
    lengths = steps - np.argmax(recorded[:, ::-1], axis=1)
    lengths[~recorded.any(axis=1)] = 0
    if lengths.min() < 2:
        raise UserError(
            f"{kind} with at least 2 samples in every trial",
            f"{int((lengths < 2).sum())} trials of NaN only (or but one sample)",
            "leave those trials out",
        )
    if lengths.min() < steps:
        notes.append(f"lengths inferred from NaN at the trials' ends: {lengths.min()} to {lengths.max()} samples")
    return lengths.astype(np.int64)


def _check_activity(
    kind: str, activity: np.ndarray, keep: np.ndarray, activation: str, tolerance: float, notes: list[str]
) -> None:
    values = activity.reshape(-1, activity.shape[2]) if keep.all() else activity[keep]
    low, high = values.min(axis=0), values.max(axis=0)  # NaN and infinities reach one of them
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = int((~np.isfinite(values)).sum())
        raise UserError(
            f"finite {kind}",
            f"{bad} NaN or infinite entries within the trials' lengths",
            "mend the file, or give `lengths` so that missing samples lie past a trial's end",
        )
    if np.array_equal(low, high):
        raise UserError(f"{kind} that vary", "activity that never varies", "check what was saved under this key")
    if kind == "spikes":
        if low.min() < 0:
            raise UserError("spike counts of 0 or more", f"a smallest value of {low.min():g}")
        if not np.array_equal(values, np.round(values)):
            raise UserError(
                "spike counts per bin, whole numbers",
                "fractions",
                "save firing rates under the key `rates`, counts before smoothing under `spikes`",
            )
    else:
        excess = range_excess(torch.from_numpy(values), activation)
        if excess > tolerance:
            phi = activation_named(activation)
            raise UserError(
                f"rates in the range of {activation}, ({phi.low:g}, {phi.high:g}), but for noise",
                f"values from {low.min():g} to {high.max():g} (excess {excess:.2g}, tolerated {tolerance:g})",
                "set data.activation to the neurons' nonlinearity, rescale the rates, or raise data.range_tolerance",
            )
    constant = int((low == high).sum())
    if constant:
        notes.append(f"{constant} of {len(low)} neurons never vary")


def _per_trial(arrays: _Arrays, key: str, trials: int) -> Tensor | None:
    value = arrays.get(key)
    if value is None:
        return None
    if value.dtype.kind not in "biuf":
        raise UserError(f"{key} as real numbers", f"{value.dtype}")
    if value.size != trials or value.ndim > 2:
        raise UserError(f"{key} with one value for each of {trials} trials", f"shape {value.shape}")
    return torch.from_numpy(value.reshape(trials).astype(np.float64))


def _choices(arrays: _Arrays, trials: int, notes: list[str]) -> Tensor | None:
    choices = _per_trial(arrays, "choices", trials)
    if choices is None:
        return None
    left, right, none = choices == 0, choices == 1, torch.isnan(choices)
    others = ~(left | right | none)
    if others.any():
        notes.append(
            f"choices of {int(others.sum())} of {trials} trials are neither 0 (left) nor 1 (right), such as "
            f"{float(choices[others][0]):g}: taken as no choice, which leaves {int(left.sum())} left and {int(right.sum())} right"
        )
    return choices.masked_fill(others, math.nan)


def _trial_times(arrays: _Arrays, shape: tuple[int, ...], notes: list[str]) -> Tensor | None:
    value = arrays.get("times")
    if value is None or value.size == shape[0]:
        return _per_trial(arrays, "times", shape[0])
    if value.size == shape[1]:
        notes.append("times has one value per sample, not per trial: not used")
        return None
    raise UserError(f"times with one value for each of {shape[0]} trials", f"shape {value.shape}")


def _compare_potentials(
    potentials: np.ndarray | None, activity: np.ndarray, keep: np.ndarray, kind: str, activation: str, notes: list[str]
) -> None:
    """Potentials are not fitted; they tell whether the activation declared is the one the rates were made with."""
    if potentials is None or kind != "rates":
        return
    if potentials.shape != activity.shape:
        raise UserError(f"potentials of the shape of rates, {activity.shape}", str(potentials.shape))
    implied = activation_named(activation)(torch.from_numpy(potentials[keep]).double()).numpy()
    explained = np.corrcoef(implied.ravel(), activity[keep].ravel())[0, 1]
    if not explained > 0.5:
        notes.append(f"rates and {activation}(potentials) correlate by {explained:.2f} only: is the activation right?")


def _known_connectivity(
    arrays: _Arrays, n_neurons: int, n_inputs: int, latents: np.ndarray | None, rank: int | None
) -> tuple[Loadings | None, Tensor | None]:
    """MBD split into m, b, d by the rank and the number of inputs, and N."""
    stacked, n = _numbers(arrays, "MBD", ("neurons", "columns")), _numbers(arrays, "N", ("neurons", "rank"))
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
    n = None if n is None else torch.from_numpy(n).double()
    if stacked is None:
        return None, n
    width = stacked.shape[1]
    if rank is None:
        raise UserError(
            "MBD together with `latents` or `N`, which tell its rank", f"MBD of shape {stacked.shape} alone"
        )
    if width == rank + n_inputs + 1:
        layout = (n_inputs, True)
    elif width == rank + n_inputs:
        layout = (n_inputs, False)
    elif width == rank:
        layout = (0, False)
    else:
        options = sorted({rank, rank + n_inputs, rank + n_inputs + 1})
        raise UserError(
            f"MBD with {', '.join(map(str, options[:-1]))} or {options[-1]} columns (rank {rank}, {n_inputs} inputs)",
            f"shape {stacked.shape}",
            "MBD holds m, b, d side by side; give `externalinputs` and `latents` that go with it",
        )
    return Loadings.unstack(torch.from_numpy(stacked).double(), rank, *layout), n
