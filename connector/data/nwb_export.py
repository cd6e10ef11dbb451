"""Recordings of spikes written as NWB files (Neurodata Without Borders 2) that are read back exactly."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from connector.data.nwb import NOTED, SHORTEST_BIN_S
from connector.data.nwb_file import load_pynwb
from connector.data.nwb_session import NwbSession
from connector.data.preprocessing import require_counts
from connector.errors import UserError
from connector.files import MAX_GIGABYTES, atomic, check_size
from connector.types import Loadings, Recording, valid_mask


def export_nwb(
    recording: Recording,
    path: str | os.PathLike,
    *,
    session: NwbSession | None = None,
    session_start: datetime | None = None,
    description: str = "",
    max_gigabytes: float = MAX_GIGABYTES,
) -> None:
    """Write a recording of spike counts as an NWB file that :func:`load_nwb` reads back exactly, without any option.

    Spikes are spread evenly within their bin. Trials stand at their times in the session; where these are unknown or
    overlap, trials follow each other with a second between them, and the times known stand in the column
    ``session_time``. Inputs (and true latents) are time series with one sample in the middle of each bin; choices,
    evidence, click difference and baseline rates are columns of the trials table. An entry in the scratch group tells
    the reader bin width, alpha, activation and which columns are which. A file of that name is replaced.

    Args:
        recording: of kind "spikes", with a bin width.
        path: the file to write.
        session: what is known of subject and session, for other users of the file; None: nothing.
        session_start: when the session started; None: as ``session`` has it, else unknown (written as 1970-01-01).
        description: of the session, likewise.
        max_gigabytes: largest size of the spike times.

    Raises:
        UserError: rates, counts without a bin width or that are no counts, or a place that cannot be written to.
    """
    pynwb, path = load_pynwb(), Path(path)
    _check_exportable(recording, max_gigabytes)
    if not path.parent.is_dir():
        raise UserError("a folder to write the NWB file to", f"no folder {path.parent}")
    start, known = _session_clock(recording)
    session = session or NwbSession()
    session = replace(
        session, session_start=session_start or session.session_start, description=description or session.description
    )
    unknown = "" if session.session_start is not None else "The session's date is not known. "
    nwb = pynwb.NWBFile(
        session_description=session.description or f"{unknown}Spike counts of {recording.name}, exported by Connector.",
        identifier=f"{recording.name} {uuid4()}",  # archives want it different in all files
        notes="\n".join(recording.notes) or None,
        **session.of_file(),
    )
    nwb.subject = pynwb.file.Subject(**session.of_subject())
    noted = {key: getattr(recording, key) for key in ("bin_s", "n_steps", "alpha", "activation")}
    noted |= {"align": "start_time", "until": "stop_time", "min_rate_hz": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hdmf's remarks about names and chunks are no news to the user
        _add_trials(nwb, recording, start, known, noted)
        _add_units(nwb, recording, start, noted)
        _add_series(nwb, recording, start, noted)
        nwb.add_scratch(
            json.dumps(noted, sort_keys=True),
            name=NOTED,
            description="JSON: how Connector reads this file back (data=nwb, without further options)",
        )
        try:
            with atomic(path) as aside, pynwb.NWBHDF5IO(str(aside), "w") as io:
                io.write(nwb)
        except OSError as error:
            raise UserError("a place to write the NWB file to", f"{path} ({error})") from error


def _check_exportable(recording: Recording, max_gigabytes: float) -> None:
    if recording.kind != "spikes" or recording.bin_s is None:
        what = "firing rates" if recording.kind == "rates" else "counts without a bin width"
        raise UserError("a recording of spike counts with a bin width in seconds", what, "NWB holds spike times")
    counts = recording.activity.numpy()
    require_counts(counts)
    spikes = float(counts.sum(dtype=np.float64))
    check_size(8e-9 * spikes, max_gigabytes, f"counts of {spikes:.3g} spikes in all are hardly those of a recording")
    if not recording.bin_s >= 10 * SHORTEST_BIN_S:
        raise UserError(f"bins of at least {10 * SHORTEST_BIN_S:g} s", f"{recording.bin_s:g} s")


def _session_clock(recording: Recording) -> tuple[np.ndarray, bool]:
    """Where each trial starts on the file's clock, seconds, and whether that is its time in the session."""
    spans = recording.lengths.numpy() * recording.bin_s
    if recording.trial_times_s is not None:
        times = recording.trial_times_s.double().numpy()
        order = np.argsort(times, kind="stable")
        apart = times[order][1:] - (times + spans)[order][:-1]
        # Beyond 1e7 s a double no longer resolves the nanoseconds that the reader rounds to.
        if np.isfinite(times).all() and (apart > -1e-9).all() and np.abs(times).max() < 1e7:
            return times, True
    return np.concatenate([[0.0], np.cumsum(spans + 1.0)[:-1]]), False


def _add_trials(nwb, recording: Recording, start: np.ndarray, known: bool, noted: dict[str, Any]) -> None:
    from hdmf.common import VectorData
    from pynwb.epoch import TimeIntervals

    columns = [
        ("start_time", "start of the trial, s", start),
        ("stop_time", "end of the trial's last bin, s", start + recording.lengths.numpy() * recording.bin_s),
    ]
    noted["trial_times"] = "start_time" if known else None
    if recording.trial_times_s is not None and not known:
        columns.append(("session_time", "time of the trial in the session, s", recording.trial_times_s.numpy()))
        noted["trial_times"] = "session_time"
    for key, meaning in (
        ("choices", "0 left, 1 right, NaN none"),
        ("evidence", "signed strength of the evidence for right"),
        ("click_difference", "right minus left clicks"),
        ("baseline_hz", "firing rate of each unit before the trial, Hz"),
    ):
        if getattr(recording, key) is not None:
            columns.append((key, meaning, getattr(recording, key).numpy()))
            noted[key] = key
    if recording.stretches is not None:
        columns.append(("stretch", "recording that a piece is cut from, its first sample", recording.stretches.numpy()))
        noted["stretches"], noted["gap"] = "stretch", int(recording.gap)
    data = [VectorData(name=name, description=meaning, data=values) for name, meaning, values in columns]
    nwb.trials = TimeIntervals(name="trials", description="trials", columns=data, id=list(range(len(start))))


def _add_units(nwb, recording: Recording, start: np.ndarray, noted: dict[str, Any]) -> None:
    from hdmf.common import VectorData, VectorIndex
    from pynwb.misc import Units

    trains = []
    for neuron in range(recording.n_neurons):
        counts = recording.activity[:, :, neuron].numpy().astype(np.int64)
        counts[~recording.mask.numpy()] = 0
        trial, step = counts.nonzero()
        number = counts[trial, step]
        place = np.repeat(np.arange(len(number)), number)
        within = np.arange(len(place)) - np.repeat(np.cumsum(number) - number, number)
        offset = step[place] + (within + 0.5) / number[place]
        trains.append(np.sort(start[trial[place]] + offset * recording.bin_s))
    times = VectorData(name="spike_times", description="spike times, s", data=np.concatenate(trains))
    data = [
        times,
        VectorIndex(name="spike_times_index", target=times, data=np.cumsum([len(x) for x in trains])),
    ]
    observed = np.stack([start, start + recording.lengths.numpy() * recording.bin_s], axis=1)
    observed = observed[np.argsort(start, kind="stable")]
    intervals = VectorData(
        name="obs_intervals", description="the trials, s: no more is known", data=np.tile(observed, (len(trains), 1))
    )
    ends = len(observed) * np.arange(1, len(trains) + 1)
    data += [intervals, VectorIndex(name="obs_intervals_index", target=intervals, data=ends)]
    if len(recording.neuron_names) == recording.n_neurons:
        data.append(VectorData(name="unit_name", description="name", data=list(recording.neuron_names)))
    known = {} if recording.loadings is None else {key: getattr(recording.loadings, key) for key in ("m", "b", "d")}
    known = {key: value for key, value in (known | {"n": recording.n}).items() if value is not None}
    for key, value in known.items():
        data.append(VectorData(name=f"true_{key}", description=f"{key} of the simulated neuron", data=value.numpy()))
    if known:
        noted["loadings"] = sorted(known)
    nwb.units = Units(
        name="units",
        description="spikes within the trials, spread evenly within their bins; none are known outside the trials",
        columns=data,
        id=list(range(recording.n_neurons)),
        resolution=recording.bin_s,  # within their bins times are made up
    )


def _add_series(nwb, recording: Recording, start: np.ndarray, noted: dict[str, Any]) -> None:
    from pynwb import TimeSeries

    if recording.inputs is None and recording.latents is None:
        return
    mask = valid_mask(recording.lengths, recording.n_steps).numpy()
    middle = (start[:, None] + (np.arange(recording.n_steps) + 0.5) * recording.bin_s)[mask]
    order = np.argsort(middle, kind="stable")
    clock: Any = middle[order]
    if recording.inputs is not None:
        names = recording.input_names
        if len(names) != recording.n_inputs:
            names = tuple(f"input {i + 1}" for i in range(recording.n_inputs))
        noted["input_names"], noted["inputs"] = list(recording.input_names), []
        for i, name in enumerate(names):
            safe = name.replace("/", "-").replace(":", "-")
            if not safe or safe in noted["inputs"] or safe in noted.values():
                safe = f"input {i + 1}"
            series = TimeSeries(
                name=safe,
                description=f"external input: {name}, one sample for each bin",
                data=recording.inputs[:, :, i].numpy()[mask][order],
                unit="a.u.",
                timestamps=clock,
            )
            nwb.add_stimulus(series)
            noted["inputs"].append(safe)
            clock = series  # the series share one set of timestamps
    if recording.latents is not None:
        module = nwb.create_processing_module("simulation", "what is known of a simulated recording")
        module.add(
            TimeSeries(
                name="true_latents",
                description="latent states of the simulated network, one sample for each bin",
                data=recording.latents.numpy()[mask][order],
                unit="a.u.",
                timestamps=clock,
            )
        )
        noted["latents"] = "true_latents"


def same_recording(one: Recording, other: Recording) -> list[str]:
    """Names of the fields in which two recordings differ, apart from name and notes: empty where all values are equal."""
    different = []
    for key in (
        "activity", "kind", "lengths", "alpha", "activation", "inputs", "input_names", "bin_s", "latents", "loadings",
        "n", "choices", "evidence", "click_difference", "trial_times_s", "baseline_hz", "neuron_names", "stretches", "gap",
    ):  # fmt: skip
        a, b = getattr(one, key), getattr(other, key)
        if isinstance(a, Loadings) and isinstance(b, Loadings):
            a, b = a.stack(), b.stack()
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            equal = a.shape == b.shape and bool(torch.equal(a.nan_to_num(-9e9), b.nan_to_num(-9e9)))
        else:
            equal = type(a) is type(b) and a == b
        if not equal:
            different.append(key)
    return different
