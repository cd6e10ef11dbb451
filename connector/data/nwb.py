"""Recordings in NWB files (Neurodata Without Borders 2): units and trials read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.nwb_clock import spike_span, spike_trains
from connector.data.nwb_file import opened
from connector.data.nwb_inputs import baseline_rates, choices_of, per_trial, trial_inputs, trial_times, with_inputs
from connector.data.nwb_listing import require_activity
from connector.data.nwb_observed import only_observed, only_recorded
from connector.data.nwb_options import NwbOptions
from connector.data.nwb_pieces import clock_of, more_of_pieces, pieces_of_spikes, rows_of, table_of, told_of
from connector.data.nwb_rates import recording_of_series
from connector.data.nwb_series import series_named
from connector.data.nwb_tables import Table, active_units, filtered_rows, unit_names, unit_places
from connector.data.nwb_trials import TrialBins
from connector.data.pieces import with_spikes
from connector.data.preprocessing import mean_rates_hz
from connector.data.readers import Reader, require_format
from connector.data.recorded import tensor
from connector.data.settings import settled
from connector.errors import UserError
from connector.files import check_size, unreadable

if TYPE_CHECKING:
    from torch import Tensor

    from connector.types import Loadings, Recording

# Where an exported file says how it is to be read.
NOTED = "connector_reading"
SHORTEST_BIN_S = 1e-6


def load_nwb(
    path: str | os.PathLike, options: NwbOptions | None = None, *, name: str | None = None, **keywords
) -> Recording:
    """Spike counts from the units and trials tables of an NWB file.

    Args:
        path: the file.
        options: how to read it; None: the defaults of :class:`NwbOptions`.
        name: of the recording; None: the file's.
        keywords: options by their names, ``tau`` also as ``tau_s``.

    Returns:
        Recording of kind "spikes"; inputs are float32, ``trial_times_s`` seconds in the session.

    Raises:
        UserError: another format, a file that is cut short, columns that do not exist (the message names those that
            do), or options that leave no trial or no unit.
    """
    path = Path(path)
    require_format(path, "nwb")
    options = settled(NwbOptions, options, keywords)
    with opened(path, options.max_gigabytes) as nwb:
        return _recording(path, nwb, options, name or path.stem)


def _recording(path: Path, nwb, given: NwbOptions, name: str) -> Recording:
    notes: list[str] = []
    if given.series is not None:
        return recording_of_series(path, nwb, given, name, notes)
    return _of_spikes(path, nwb, given, name, notes)


def _of_spikes(path: Path, nwb, given: NwbOptions, name: str, notes: list[str]) -> Recording:
    import torch

    from connector.dynamics import activation as activation_named
    from connector.types import Recording

    noted = _noted_reading(path, nwb)
    if given.piece_s is not None:  # the trials are others
        noted = {key: noted[key] for key in ("bin_s", "alpha", "activation") if key in noted}
    options, alpha = _completed(given, noted)
    activation_named(options.activation)
    require_activity(path, nwb, options)
    cells = Table(path, nwb, "units", options.max_gigabytes)
    if nwb.units is None:
        notes.append(f"units: those of {cells.table.parent.name}/{cells.table.name}")
    units = filtered_rows(cells, options.units or {}, notes)
    table = table_of(path, nwb, options, lambda: spike_span(cells, units, options.scales_s), notes)
    clock = clock_of(table, cells, options, notes)
    bins, gap = rows_of(clock, options, options.bin_s, notes), 0
    if options.piece_s is not None:
        bins, gap = pieces_of_spikes(bins, cells, units, clock, options, notes)
        bins = with_inputs(clock, options, bins, notes)
    if options.unobserved == "leave_out":
        bins, units = only_observed(cells, units, bins, clock, notes, trials_only=bool(noted))
    unchanged = given.bin_s is None and given.align is None and given.start_s == 0
    if unchanged and given.stop_s is None and given.until is None:  # padding past the longest trial, too
        bins.n_steps = max(bins.n_steps, int(noted.get("n_steps", 0)))
    counts = _counts(cells, spike_trains(cells, units, clock, options.spike_times, notes), bins)
    counts, bins = _recorded(counts, bins, options, notes, noted)
    activity, lengths = torch.from_numpy(counts), torch.from_numpy(bins.lengths)
    rates = mean_rates_hz(activity, lengths, bins.bin_s).numpy()
    active = active_units(rates, options.min_rate_hz, notes)
    units = units[active]
    inputs, input_names = trial_inputs(clock, options, bins, notes)
    if given.inputs is None and inputs is not None and "input_names" in noted:
        input_names = tuple(noted["input_names"])
    places = unit_places(cells, units)
    rate = f"units, mean rate in trials {float(rates[active].mean()):.2g} Hz"
    notes[:0] = told_of(bins, rate, len(units), places)
    latents, loadings, n = _truth(cells, noted, bins, units, unchanged, notes)
    choices, baseline = per_trial(table, noted.get("choices"), bins) if given.choices is None else None, None
    if given.choices is not None:
        choices = choices_of(table, given.choices, given.choice_values, bins.rows)
    if options.baseline_hz is not None:
        baseline = torch.from_numpy(baseline_rates(table, options.baseline_hz, bins.rows, units, len(cells)))
    return Recording(
        activity=activity[:, :, torch.from_numpy(active)],
        kind="spikes",
        lengths=lengths,
        alpha=alpha,
        activation=options.activation,
        inputs=tensor(inputs, np.float32),
        input_names=input_names,
        bin_s=bins.bin_s,
        latents=latents,
        loadings=loadings,
        n=n,
        choices=tensor(choices),
        evidence=tensor(per_trial(table, options.evidence, bins)),
        click_difference=tensor(per_trial(table, options.click_difference, bins)),
        trial_times_s=tensor(trial_times(clock, options.trial_times, options.align, bins, notes)),
        baseline_hz=baseline,
        neuron_names=() if noted and "unit_name" not in cells.columns else unit_names(cells, units, places),
        name=name,
        **(more_of_pieces(bins, gap) or _noted_pieces(table, noted, bins, notes)),
        notes=tuple(notes),
    )


def _recorded(
    counts: np.ndarray, bins: TrialBins, options: NwbOptions, notes: list[str], noted: dict[str, Any]
) -> tuple[np.ndarray, TrialBins]:
    """Without trials, or pieces, in which nothing was recorded, as far as spikes tell."""
    if noted or options.unobserved != "leave_out":
        return counts, bins
    if bins.stretches is None:
        return only_recorded(counts, bins, notes)
    recorded = with_spikes(counts, notes)
    return (counts, bins) if recorded.all() else (counts[recorded], bins.take(recorded))


def _noted_reading(path: Path, nwb) -> dict[str, Any]:
    """How a file of :func:`export_nwb` is to be read; empty for other files."""
    if not nwb.scratch or NOTED not in nwb.scratch:
        return {}
    text = nwb.scratch[NOTED].data
    try:
        noted = json.loads(text if isinstance(text, str) else np.asarray(text).item())
        noted = {**noted, "bin_s": float(noted["bin_s"]), "alpha": float(noted["alpha"])}
        if not (noted["bin_s"] > 0 and 0 < noted["alpha"] <= 1):
            raise ValueError(f"bin_s {noted['bin_s']:g}, alpha {noted['alpha']:g}")
        return noted
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(
            path, f"an NWB file whose scratch entry {NOTED} is JSON with bin_s and alpha", error
        ) from error


def _completed(given: NwbOptions, noted: dict[str, Any]) -> tuple[NwbOptions, float]:
    """The options with what the file was written with, or the default, for null; and alpha.

    An exported file keeps its time constant where only the bin is given.
    """
    bin_s, tau = given.bin_s, given.tau
    if bin_s is None and tau is None and noted:
        bin_s, alpha = noted["bin_s"], noted["alpha"]
    else:
        if tau is None:
            tau = noted["bin_s"] / noted["alpha"] if noted else 0.1
        if bin_s is None:
            bin_s = noted.get("bin_s", 0.01)
        if not SHORTEST_BIN_S <= bin_s <= tau:
            raise UserError(
                "a bin of at least a microsecond and at most the time constant",
                f"data.bin_s {bin_s:g} s, data.tau {tau:g} s",
            )
        alpha = bin_s / tau
    align = noted.get("align", "start_time") if given.align is None else given.align
    defaults = {
        "activation": "softplus",
        "align": align,
        "until": None,
        "inputs": [],
        "trial_times": align,
        **dict.fromkeys(("evidence", "click_difference", "baseline_hz", "min_rate_hz")),
    }
    filled = {key: noted.get(key, default) for key, default in defaults.items() if getattr(given, key) is None}
    return replace(given, **filled, bin_s=float(bin_s)), float(alpha)


def _counts(cells: Table, trains: list[np.ndarray], bins: TrialBins) -> np.ndarray:
    """(trials, steps, units) float32; trains: ascending times of each unit."""
    check_size(
        4e-9 * bins.n_trials * bins.n_steps * len(trains),
        cells.max_gigabytes,
        f"the longest trial has {bins.n_steps} bins: set data.stop_s, widen data.bin_s, or raise data.max_gigabytes",
    )
    counts = np.zeros((bins.n_trials, bins.n_steps, len(trains)), dtype=np.float32)
    for k, times in enumerate(trains):
        counts[:, :, k] = bins.counts(times)
    return counts


def _noted_pieces(table: Table, noted: dict[str, Any], bins: TrialBins, notes: list[str]) -> dict[str, Any]:
    """What a Recording has of pieces in an exported file whose trials are such, in the bins that are read."""
    if "stretches" not in noted:
        return {}
    stretches = np.asarray(table.rows(noted["stretches"]), dtype=np.int64)[bins.rows]
    ratio = noted["bin_s"] / bins.bin_s
    stretches[:, 1] = np.floor(stretches[:, 1] * ratio + 1e-6)
    gap = int(np.ceil(noted["gap"] * ratio - 1e-6))
    notes.append(
        f"trials are pieces of a continuous recording, cut without regard to events when the file was written; training, validation "
        f"and test pieces are at least {gap * bins.bin_s:g} s apart"
    )
    return {"stretches": tensor(stretches), "gap": gap}


def _truth(
    cells: Table, noted: dict[str, Any], bins: TrialBins, units: np.ndarray, unchanged: bool, notes: list[str]
) -> tuple[Tensor | None, Loadings | None, Tensor | None]:
    """True latents, loadings and output weights of an exported simulation; none where bins are not those it was written with."""
    import torch

    from connector.types import Loadings

    if not unchanged and ("latents" in noted or "loadings" in noted):
        notes.append("true latents and loadings left out: they belong to the bins the file was written with")
        return None, None, None
    latents, columns = None, {}
    if "latents" in noted:
        (series,) = series_named(cells.nwb, noted["latents"]).values()
        values = bins.averages(np.asarray(series.timestamps[:]), np.asarray(series.data[:], dtype=float))
        values[~bins.inside] = 0
        latents = torch.from_numpy(values.astype(np.asarray(series.data[:1]).dtype))
    for key in noted.get("loadings", ()):
        columns[key] = torch.from_numpy(np.asarray(cells.rows(f"true_{key}"))[units])
    n = columns.pop("n", None)
    return latents, Loadings(**columns) if columns else None, n


READER = Reader(NwbOptions, load_nwb, formats=("nwb",))
