"""Recordings read from files. The format is recognised by content; nothing that could execute code is ever loaded."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from connector.data.formats import require_format
from connector.data.matlab import read_matlab
from connector.data.nlb import load_nlb
from connector.data.nwb import load_nwb
from connector.data.preprocessing import adapt_stereo_clicks, bin_events, mean_rates_hz, pad_trials, range_excess
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, check_size, read_arrays
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


def read_recording(path: str | os.PathLike, format: str = "auto", **options) -> Recording:
    """A recording from a file of any format that is known.

    Args:
        path: the file.
        format: "auto" (by content), "npz", "rat", "nwb" or "nlb".
        options: of load_npz, load_rat, load_nwb or load_nlb.

    Raises:
        UserError: a file that no reader understands, or what the reader raises.
    """
    readers = {"npz": load_npz, "rat": load_rat, "nwb": load_nwb, "nlb": load_nlb}
    if format == "auto":
        format = source_of(path)
    if format not in readers:
        raise UserError(f"a format among auto, {', '.join(readers)}", repr(format))
    try:
        return readers[format](path, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise UserError(f"options that the {format} reader has", str(error)) from error
        raise


def source_of(path: str | os.PathLike) -> str:
    """Which ``data=`` reads a file: "npz", "rat", "nwb" or "nlb", by its content.

    Raises:
        UserError: none does.
    """
    sources = {"npz": "npz", "matlab5": "rat", "matlab73": "rat", "nwb": "nwb", "nlb": "nlb"}
    return sources[require_format(Path(path), *sources)]


# --- npz ---------------------------------------------------------------------------------------------------------


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


# --- sessions of the Poisson-clicks task -------------------------------------------------------------------------

_RAT_BIN_S = 0.01
_RAT_FIELDS = (
    "choice",
    "clicktimes",
    "gamma",
    "stereoclick_time_s",
    "ntimesteps",
    "photostimulus_incline_on_s",
    "baseline_hz",
    "spiketrains",
)


def load_rat(
    path: str | os.PathLike,
    *,
    tau_s: float = 0.1,
    brain_areas: list[str] | tuple[str, ...] | None = None,
    min_rate_hz: float = 0.0,
    include_photostimulated: bool = False,
    include_stereo_click: bool = False,
    click_adaptation: bool = True,
    adaptation_phi: float = 1e-3,
    adaptation_rate_hz: float = 100.0,
    across_sides: bool = True,
    max_gigabytes: float = MAX_GIGABYTES,
    name: str | None = None,
) -> Recording:
    """A session of rats doing the Poisson-clicks task (Luo, Kim et al. 2025; MATLAB v5 or v7.3 files).

    Counts in bins of 10 ms from the stereo click to the end of the trial. Inputs (trials, time, 2), left and right:
    the summed magnitude of the clicks in each bin, which acts from that sample to the next. ``evidence`` is the log
    ratio of right to left click rate, ``click_difference`` the clicks right minus left up to the trial's end.

    Args:
        path: the file.
        tau_s: time constant, seconds; alpha = 0.01 s / tau_s.
        brain_areas: areas whose neurons are kept; None keeps all.
        min_rate_hz: neurons firing less on average in the trials kept are left out; those silent throughout always.
        include_photostimulated: keep trials with optogenetic stimulation.
        include_stereo_click: the click on both sides that starts each trial counts as an input. It adapts later
            clicks in either case.
        click_adaptation: clicks lose strength shortly after others; otherwise each has magnitude 1.
        adaptation_phi, adaptation_rate_hz, across_sides: see
            :func:`connector.data.preprocessing.adapt_stereo_clicks`.
        max_gigabytes: largest size of the unpacked file and of the counts in memory.
        name: of the recording; None: the file's.

    Raises:
        UserError: a file that is no such session, or options that leave no trial or no neuron.
    """
    path = Path(path)
    if not tau_s >= _RAT_BIN_S:
        raise UserError(f"a time constant of at least one bin, {_RAT_BIN_S} s", f"{tau_s} s", "raise data.tau")
    trials, areas, neuron_names = _read_session(path, max_gigabytes)
    total = len(trials)
    notes = []
    stimulated = np.array([np.isfinite(_scalar(t, "photostimulus_incline_on_s")) for t in trials])
    if stimulated.any() and not include_photostimulated:
        trials = [t for t, s in zip(trials, stimulated) if not s]
        notes.append(f"{int(stimulated.sum())} of {total} trials with optogenetic stimulation left out")
    elif stimulated.any():
        notes.append(f"{int(stimulated.sum())} of {total} trials with optogenetic stimulation, kept")
    if not trials:
        raise UserError(
            "trials without optogenetic stimulation", f"none among {total}", "set data.include_photostimulated=true"
        )

    counted = [_counts(t, len(areas), path) for t in trials]
    size = 4e-9 * len(counted) * max(map(len, counted)) * len(areas)
    check_size(size, max_gigabytes, "raise data.max_gigabytes if the memory is there, or leave long trials out")
    counts, lengths = pad_trials(counted)
    activity, lengths = torch.from_numpy(counts), torch.from_numpy(lengths)
    rates = mean_rates_hz(activity, lengths, _RAT_BIN_S)
    kept = _choose_neurons(rates, areas, brain_areas, min_rate_hz, notes)
    adaptation = (adaptation_phi, adaptation_rate_hz, across_sides) if click_adaptation else None
    inputs, difference = _click_inputs(trials, lengths.tolist(), counts.shape[1], adaptation, include_stereo_click)
    baseline = _baseline(trials, len(areas), path)

    def scalars(field: str) -> Tensor:
        return torch.tensor([_scalar(t, field) for t in trials], dtype=torch.float64)

    choices = scalars("choice")
    summary = ", ".join(f"{count} {area}" for area, count in Counter(areas[i] for i in kept.tolist()).items())
    notes.insert(0, f"{len(trials)} trials of {int(lengths.min())} to {int(lengths.max())} bins of 10 ms; {summary}")
    notes.append(f"mean rate in trials {float(rates[kept].mean()):.2g} Hz; {_chosen(choices)}")
    notes.append(_clicks_note(difference, len(trials), adaptation, include_stereo_click))
    return Recording(
        activity=activity[:, :, kept],
        kind="spikes",
        lengths=lengths,
        alpha=_RAT_BIN_S / tau_s,
        activation="softplus",
        inputs=inputs,
        input_names=("left clicks", "right clicks"),
        bin_s=_RAT_BIN_S,
        choices=choices,
        evidence=scalars("gamma"),
        click_difference=difference,
        trial_times_s=scalars("stereoclick_time_s"),
        baseline_hz=torch.from_numpy(baseline)[:, kept],
        neuron_names=tuple(neuron_names[i] for i in kept.tolist()),
        name=name or path.stem,
        notes=tuple(notes),
    )


def _chosen(choices: Tensor) -> str:
    made = choices[torch.isfinite(choices)]
    return (
        f"{100 * float((made == 1).double().mean()):.0f} % of the choices to the right" if len(made) else "no choices"
    )


def _clicks_note(difference: Tensor, n_trials: int, adaptation: tuple | None, include_stereo_click: bool) -> str:
    if adaptation is None:
        how = "clicks of magnitude 1"
    else:
        phi, rate_hz, across_sides = adaptation
        sides = "within and across sides" if across_sides else "within each side"
        how = f"clicks adapted {sides} (to {phi:g} of their strength, recovery {rate_hz:g} per s)"
    stereo = "an input" if include_stereo_click else "no input"
    spread = f"right minus left {int(difference.min())} to {int(difference.max())}"
    return f"{how}; the stereo click is {stereo}; {spread}"


def _baseline(trials: list[dict], n_neurons: int, path: Path) -> np.ndarray:
    """(trials, K) firing rate before each trial, Hz."""
    rows = [_flat(t, "baseline_hz").astype(np.float32) for t in trials]
    if any(len(row) != n_neurons for row in rows):
        raise UserError(
            f"baseline_hz with one rate for each of {n_neurons} neurons in every trial",
            f"a trial in {path.name} with {next(len(row) for row in rows if len(row) != n_neurons)}",
        )
    return np.stack(rows)


def _read_session(path: Path, max_gigabytes: float) -> tuple[list[dict], list[str], list[str]]:
    """Trials (by field), each neuron's brain area, each neuron's name."""
    content = read_matlab(path, ("trials", "neurons"), max_gigabytes)
    missing = [key for key in ("trials", "neurons") if key not in content]
    if missing:
        raise UserError(
            "a session with the variables `trials` and `neurons`",
            f"{path.name} without {' and '.join(missing)}",
            "for other data save the arrays with numpy.savez and use data=npz",
        )
    trials, neurons = _records(content["trials"]), _records(content["neurons"])
    if not trials or not neurons:
        raise UserError("a session with trials and neurons", f"{len(trials)} trials, {len(neurons)} neurons")
    for what, records, wanted in (("trials", trials, _RAT_FIELDS), ("neurons", neurons, ("brainarea",))):
        absent = [field for field in wanted if not all(field in record for record in records)]
        if absent:
            raise UserError(
                f"{what} with the fields {', '.join(wanted)}",
                f"{path.name}, some or all of whose {what} lack {', '.join(absent)}",
            )
    if not all(isinstance(t["clicktimes"], dict) and {"L", "R"} <= set(t["clicktimes"]) for t in trials):
        raise UserError("clicktimes with the fields L and R", f"other fields in {path.name}")
    areas = [n["brainarea"] for n in neurons]
    if not all(isinstance(area, str) for area in areas):
        raise UserError("brainarea as characters (MATLAB's char)", f"another class in {path.name}")
    numbers = [_scalar(n, "neuronindex") if "neuronindex" in n else i for i, n in enumerate(neurons)]
    if not np.isfinite(numbers).all():
        raise UserError(f"a number as the neuronindex of every neuron in {path}", "NaN or infinity")
    numbers = [int(number) for number in numbers]
    return trials, areas, [f"{area} {number}" for area, number in zip(areas, numbers)]


def _records(value) -> list[dict]:
    """A struct, a struct array or a cell array of structs as a list of records."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _flat(record: dict, field: str) -> np.ndarray:
    """The numbers of a MATLAB field, (n,) float."""
    try:
        return np.asarray(record[field], dtype=float).ravel()
    except (TypeError, ValueError) as error:
        raise UserError(f"numbers in the field {field}", "text, cells or a struct") from error


def _scalar(record: dict, field: str) -> float:
    """The one number of a MATLAB field; NaN where the field is empty."""
    flat = _flat(record, field)
    return float(flat[0]) if len(flat) else math.nan


def _counts(trial: dict, n_neurons: int, path: Path) -> np.ndarray:
    """(time, K) spike counts of one trial; stored as bytes, cast before any arithmetic."""
    stored = trial["spiketrains"]
    trains = [_flat({"spiketrains": x}, "spiketrains") for x in (stored if isinstance(stored, list) else [stored])]
    steps = _scalar(trial, "ntimesteps")
    if len(trains) != n_neurons or any(len(x) != steps for x in trains):
        raise UserError(
            f"spike trains of {steps:g} bins for each of {n_neurons} neurons in every trial",
            f"a trial in {path.name} with {len(trains)} spike trains of {sorted({len(x) for x in trains})} bins",
        )
    counts = np.stack(trains, axis=1)
    if not (np.isfinite(counts).all() and (counts >= 0).all() and np.array_equal(counts, np.round(counts))):
        raise UserError(
            "spike counts, whole numbers of 0 or more", f"others in a trial of {path.name}", "copy the file again"
        )
    with np.errstate(over="ignore"):
        return counts.astype(np.float32)


def _choose_neurons(
    rates_hz: Tensor, areas: list[str], wanted: list[str] | tuple[str, ...] | None, min_rate_hz: float, notes: list[str]
) -> Tensor:
    """Numbers of the neurons to keep, (kept,) int64."""
    keep = torch.ones(len(areas), dtype=torch.bool)
    if wanted is not None:
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        unknown = [area for area in wanted if area not in areas]
        if unknown:
            raise UserError(f"brain areas among {', '.join(dict.fromkeys(areas))}", ", ".join(unknown))
        keep = torch.tensor([area in wanted for area in areas])
        if not keep.all():
            notes.append(f"{int((~keep).sum())} neurons outside {', '.join(wanted)} left out")
    active = (rates_hz >= min_rate_hz) & (rates_hz > 0)
    if (keep & ~active).any():
        threshold = f"below {min_rate_hz:g} Hz or silent" if min_rate_hz > 0 else "silent"
        notes.append(f"{int((keep & ~active).sum())} neurons {threshold} left out")
    keep &= active
    if not keep.any():
        raise UserError(
            f"neurons that fire at {min_rate_hz:g} Hz or more",
            f"a highest mean rate of {float(rates_hz.max()):.2g} Hz",
            "lower data.min_rate_hz",
        )
    return keep.nonzero()[:, 0]


def _click_inputs(
    trials: list, lengths: list[int], n_steps: int, adaptation: tuple | None, include_stereo_click: bool
) -> tuple[Tensor, Tensor]:
    """Inputs (trials, n_steps, 2) and the clicks right minus left of each trial."""
    inputs = np.zeros((len(trials), n_steps, 2), dtype=np.float32)
    difference = np.zeros(len(trials))
    for i, (trial, length) in enumerate(zip(trials, lengths)):
        clicks = trial["clicktimes"]
        # One click alone is stored as a number, not as a list; none at all as an empty array.
        times = [np.sort(_flat(clicks, side)) for side in ("L", "R")]
        if adaptation is None:
            magnitudes = [np.ones(len(x)) for x in times]
        else:
            phi, rate_hz, across_sides = adaptation
            magnitudes = list(adapt_stereo_clicks(*times, phi, rate_hz, across_sides))
        if not include_stereo_click and min(map(len, times)) and times[0][0] == times[1][0]:
            times, magnitudes = [x[1:] for x in times], [x[1:] for x in magnitudes]
        heard = [int((x < length * _RAT_BIN_S).sum()) for x in times]
        difference[i] = heard[1] - heard[0]
        for side in (0, 1):
            inputs[i, :length, side] = bin_events(times[side], length, _RAT_BIN_S, magnitudes[side])
    return torch.from_numpy(inputs), torch.from_numpy(difference)
