"""Sessions of rats doing the Poisson-clicks task, as MATLAB files."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.matlab import read_matlab
from connector.data.preprocessing import (
    adapt_stereo_clicks,
    bin_events,
    choices_from,
    mean_rates_hz,
    pad_trials,
    require_counts,
    usable_times,
)
from connector.data.readers import Reader
from connector.data.settings import data_option, memory_option, require_two, settled
from connector.declarations import require
from connector.errors import UserError
from connector.files import check_size
from connector.report.numbers import counted

if TYPE_CHECKING:
    from connector.types import Recording

_BIN_S = 0.01
_FIELDS = (
    "choice", "clicktimes", "gamma", "stereoclick_time_s", "ntimesteps", "photostimulus_incline_on_s", "baseline_hz",
    "spiketrains",
)  # fmt: skip


@dataclass
class RatOptions:
    """How a session is read: the options of ``data=rat`` and keywords of :func:`load_rat`."""

    tau: float = data_option("time constant of the network; alpha = 0.01 s / tau", unit="s", above=0, default=0.1)
    brain_areas: list[str] | None = data_option(
        "brain areas whose neurons are kept, such as [mPFC,dmFC]; null: all", default=None
    )
    min_rate_hz: float = data_option(
        "leave out neurons that fire less on average in the kept trials; silent neurons are always left out",
        unit="Hz", at_least=0, default=0.0,
    )  # fmt: skip
    include_photostimulated: bool = data_option("true: keep trials with optogenetic stimulation", default=False)
    include_stereo_click: bool = data_option(
        "true: the click on both sides that starts each trial is an input; it adapts later clicks in either case",
        default=False,
    )
    click_adaptation: bool = data_option(
        "true: clicks lose strength after recent ones; false: each click has magnitude 1", default=True
    )
    adaptation_phi: float = data_option(
        "factor on the strength at each click (1: no adaptation)", at_least=0, default=1e-3
    )
    adaptation_rate_hz: float = data_option("recovery rate of the strength", unit="per second", above=0, default=100.0)
    across_sides: bool = data_option(
        "true: clicks weaken those of both sides; false: only those of their own side", default=True
    )
    choice_values: list[Any] | None = data_option(
        "the two values of choice that mean left and right, if they are not 0 and 1; any other value: no choice",
        before=None,
    )
    max_gigabytes: float = memory_option("largest size of the unpacked file and of the counts in memory")

    def check(self) -> None:
        require_two(self.choice_values)
        require(self.tau >= _BIN_S, "data.tau", f"of at least one bin, {_BIN_S} s", self.tau)


def load_rat(
    path: str | os.PathLike, options: RatOptions | None = None, *, name: str | None = None, **keywords
) -> Recording:
    """A session of rats doing the Poisson-clicks task (Luo, Kim et al. 2025; MATLAB v5 or v7.3 files).

    Counts in bins of 10 ms from the stereo click to the end of the trial. Inputs (trials, time, 2), left and right:
    the summed magnitude of the clicks in each bin, which acts from that sample to the next. ``evidence`` is the log
    ratio of right to left click rate, ``click_difference`` the clicks right minus left up to the trial's end.

    Args:
        path: the file.
        options: how to read it; None: the defaults of :class:`RatOptions`.
        name: of the recording; None: the file's.
        keywords: options by their names, ``tau`` also as ``tau_s``; adaptation as in
            :func:`connector.data.preprocessing.adapt_stereo_clicks`.

    Raises:
        UserError: the file is not a session of this task, or the options leave no trial or no neuron.
    """
    import torch

    from connector.types import Recording

    options = settled(RatOptions, options, keywords)
    path, notes = Path(path), []
    trials, areas, neuron_names = _read_session(path, options.max_gigabytes, notes)
    trials = _choose_trials(trials, options.include_photostimulated, notes)
    counted = [_counts(t, len(areas), path) for t in trials]
    size = 4e-9 * len(counted) * max(map(len, counted)) * len(areas)
    check_size(size, options.max_gigabytes, "raise data.max_gigabytes if the memory is there, or leave long trials out")
    counts, lengths = (torch.from_numpy(x) for x in pad_trials(counted))
    rates = mean_rates_hz(counts, lengths, _BIN_S).numpy()
    kept = _choose_neurons(rates, areas, options, notes)
    inputs, difference = _click_inputs(trials, lengths.tolist(), counts.shape[1], options)
    baseline = _baseline(trials, len(areas), path)
    choices, evidence, times = (
        np.array([_scalar(t, field) for t in trials]) for field in ("choice", "gamma", "stereoclick_time_s")
    )
    choices = choices_from(choices, options.choice_values, "the field choice")
    times = usable_times(times, "stereoclick_time_s", notes)
    summary = ", ".join(f"{count} {area}" for area, count in Counter(areas[i] for i in kept).items())
    notes.insert(0, f"{len(trials)} trials of {int(lengths.min())} to {int(lengths.max())} bins of 10 ms; {summary}")
    notes.append(f"mean rate in trials {float(rates[kept].mean()):.2g} Hz; {_chosen(choices)}")
    notes.append(_clicks_note(difference, options))
    return Recording(
        activity=counts[:, :, torch.from_numpy(kept)],
        kind="spikes",
        lengths=lengths,
        alpha=_BIN_S / options.tau,
        activation="softplus",
        inputs=torch.from_numpy(inputs),
        input_names=("left clicks", "right clicks"),
        bin_s=_BIN_S,
        choices=torch.from_numpy(choices),
        evidence=torch.from_numpy(evidence),
        click_difference=torch.from_numpy(difference),
        trial_times_s=None if times is None else torch.from_numpy(times),
        baseline_hz=torch.from_numpy(baseline)[:, torch.from_numpy(kept)],
        neuron_names=tuple(neuron_names[i] for i in kept),
        name=name or path.stem,
        notes=tuple(notes),
    )


def _choose_trials(trials: list[dict], include_photostimulated: bool, notes: list[str]) -> list[dict]:
    stimulated = [bool(np.isfinite(_flat(t, "photostimulus_incline_on_s")).any()) for t in trials]
    said = f"{sum(stimulated)} of {len(trials)} trials with optogenetic stimulation"
    if include_photostimulated or not any(stimulated):
        notes += [f"{said}, kept"] if any(stimulated) else []
        return trials
    if all(stimulated):
        raise UserError("trials without optogenetic stimulation", said, "set data.include_photostimulated=true")
    notes.append(f"{said} left out")
    return [t for t, left_out in zip(trials, stimulated) if not left_out]


def _chosen(choices: np.ndarray) -> str:
    made = choices[np.isfinite(choices)]
    return f"{int((made == 1).sum())} of {len(made)} choices to the right" if len(made) else "no choices"


def _clicks_note(difference: np.ndarray, options: RatOptions) -> str:
    how = "clicks of magnitude 1"
    if options.click_adaptation:
        sides = "within and across sides" if options.across_sides else "within each side"
        how = (
            f"clicks adapted {sides} (to {options.adaptation_phi:g} of their strength, "
            f"recovery {options.adaptation_rate_hz:g} per s)"
        )
    stereo = "an input" if options.include_stereo_click else "no input"
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


def _read_session(path: Path, max_gigabytes: float, notes: list[str]) -> tuple[list[dict], list[str], list[str]]:
    """Trials (by field), each neuron's brain area, each neuron's name."""
    content = read_matlab(path, ("trials", "neurons"), max_gigabytes)
    missing = [key for key in ("trials", "neurons") if key not in content]
    if missing:
        raise UserError(
            "a session with the variables `trials` and `neurons`",
            f"{path.name} without {' and '.join(missing)}",
            "for other data use data=arrays; `connector look FILE` lists what is there",
        )
    trials, neurons = (_records(content[what], what, notes) for what in ("trials", "neurons"))
    if not trials or not neurons:
        raise UserError("a session with trials and neurons", f"{len(trials)} trials, {len(neurons)} neurons")
    for what, records, wanted in (("trials", trials, _FIELDS), ("neurons", neurons, ("brainarea",))):
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


def _records(value, what: str, notes: list[str]) -> list[dict]:
    """A struct, a struct array or a cell array of structs as a list of records."""
    items = value if isinstance(value, list) else [value]
    records = [item for item in items if isinstance(item, dict)]
    if records and len(records) < len(items):
        notes.append(f"{len(items) - len(records)} of {len(items)} cells of {what} without a struct left out")
    return records


def _flat(record: dict, field: str) -> np.ndarray:
    """The numbers of a MATLAB field, (n,) float."""
    value = record[field]
    try:
        if value is None or np.iscomplexobj(value):
            got = "complex numbers" if value is not None else "a sparse matrix or an object"
            raise UserError(
                f"plain numbers in the field {field}", got, "save full(x), real(x) or, of times, seconds(x)"
            )
        return np.asarray(value, dtype=float).ravel()
    except (TypeError, ValueError) as error:
        raise UserError(f"numbers in the field {field}", "text, cells or a struct") from error


def _scalar(record: dict, field: str) -> float:
    """The one number of a MATLAB field; NaN where the field is empty."""
    flat = _flat(record, field)
    if len(flat) > 1:
        raise UserError(f"one number in the field {field}", f"{len(flat)} of them")
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
    require_counts(counts)
    with np.errstate(over="ignore"):
        return counts.astype(np.float32)


def _choose_neurons(rates_hz: np.ndarray, areas: list[str], options: RatOptions, notes: list[str]) -> np.ndarray:
    """Numbers of the neurons to keep, (kept,) int64."""
    keep, lowest = np.ones(len(areas), dtype=bool), options.min_rate_hz
    if options.brain_areas is not None:
        wanted = [options.brain_areas] if isinstance(options.brain_areas, str) else list(options.brain_areas)
        unknown = [area for area in wanted if area not in areas]
        if unknown:
            raise UserError(f"brain areas among {', '.join(dict.fromkeys(areas))}", ", ".join(unknown))
        keep = np.isin(areas, wanted)
        if not keep.all():
            notes.append(f"{counted(int((~keep).sum()), 'neuron')} outside {', '.join(wanted)} left out")
    active = (rates_hz >= lowest) & (rates_hz > 0)
    if (keep & ~active).any():
        threshold = f"below {lowest:g} Hz or silent" if lowest > 0 else "silent"
        notes.append(f"{counted(int((keep & ~active).sum()), 'neuron')} {threshold} left out")
    keep &= active
    if not keep.any():
        raise UserError(
            f"neurons that fire at {lowest:g} Hz or more",
            f"a highest mean rate of {rates_hz.max():.2g} Hz",
            "lower data.min_rate_hz",
        )
    return keep.nonzero()[0]


def _click_inputs(trials: list, lengths: list[int], n_steps: int, options: RatOptions) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (trials, n_steps, 2) and the clicks right minus left of each trial."""
    inputs = np.zeros((len(trials), n_steps, 2), dtype=np.float32)
    difference = np.zeros(len(trials))
    # One click alone is stored as a number, not as a list; none at all as an empty array, or as NaN.
    sides = [[np.sort(x[~np.isnan(x)]) for x in (_flat(t["clicktimes"], side) for side in "LR")] for t in trials]
    _require_own_clock(sides, lengths)
    for i, (times, length) in enumerate(zip(sides, lengths)):
        magnitudes = [np.ones(len(x)) for x in times]
        if options.click_adaptation:
            settings = options.adaptation_phi, options.adaptation_rate_hz, options.across_sides
            magnitudes = list(adapt_stereo_clicks(*times, *settings))
        if not options.include_stereo_click and min(map(len, times)) and times[0][0] == times[1][0]:
            times, magnitudes = [x[1:] for x in times], [x[1:] for x in magnitudes]
        heard = [int((x < length * _BIN_S).sum()) for x in times]
        difference[i] = heard[1] - heard[0]
        for side in (0, 1):
            inputs[i, :length, side] = bin_events(times[side], length, _BIN_S, magnitudes[side])
    return inputs, difference


def _require_own_clock(sides: list[list[np.ndarray]], lengths: list[int]) -> None:
    """Raises UserError where most clicks lie outside their trials: they would be no input at all. A click at 0 tells
    nothing of the clock."""
    after = [(x[x != 0], length * _BIN_S) for trial, length in zip(sides, lengths) for x in trial]
    within, total = sum(int(((x > 0) & (x < end)).sum()) for x, end in after), sum(len(x) for x, _ in after)
    if 2 * within < total:
        raise UserError(
            "clicktimes in seconds from the start of their trial",
            f"{total - within} of {total} clicks before it or after the trial's end",
            "subtract stereoclick_time_s if they are on the session's clock; divide by 1000 if they are in milliseconds",
        )


READER = Reader(RatOptions, load_rat, formats=("matlab5", "matlab73"))
