"""Sessions of rats doing the Poisson-clicks task, as MATLAB files."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from connector.data.matlab import read_matlab
from connector.data.preprocessing import adapt_stereo_clicks, bin_events, mean_rates_hz, pad_trials
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, check_size
from connector.types import Recording

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
