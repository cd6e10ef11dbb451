"""Recordings in NWB files (Neurodata Without Borders 2): units and trials read."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.nwb_clock import Clock, spike_trains
from connector.data.nwb_observed import only_observed, only_recorded
from connector.data.nwb_tables import Table, active_units, filtered_units, unit_names, unit_places
from connector.data.nwb_trials import (
    TrialBins,
    Window,
    baseline_rates,
    choices_of,
    time_series,
    trial_bins,
    trial_inputs,
)
from connector.data.preprocessing import mean_rates_hz, usable_times
from connector.data.readers import Reader, require_format
from connector.data.settings import data_option, memory_option, require_two, settled
from connector.declarations import require
from connector.errors import UserError
from connector.files import check_size, limited_memory, refusing_damage, unreadable

if TYPE_CHECKING:
    from torch import Tensor

    from connector.types import Loadings, Recording

# Where an exported file says how it is to be read.
NOTED = "connector_reading"
SHORTEST_BIN_S = 1e-6


@dataclass
class NwbOptions:
    """How an NWB file is read: the options of ``data=nwb`` and keywords of :func:`load_nwb`.

    Null stands for the default named, or, in a file of :func:`connector.data.nwb_export.export_nwb`, for what that file
    was written with. A trial's bins begin ``start_s`` after its event ``align``; only bins that fit wholly before its
    end are taken. Trials without that event (NaN) are left out.
    """

    bin_s: float | None = data_option("bin width; null: 0.01", unit="s", above=0, default=None)
    tau: float | None = data_option("time constant; null: 0.1; alpha = bin_s / tau", unit="s", above=0, default=None)
    activation: str | None = data_option("phi of the neurons; null: softplus", default=None)
    table: str = data_option("table of time intervals whose rows are the trials", before="trials")
    align: str | None = data_option(
        "trials column with the time of the event that time is counted from; null: start_time", default=None
    )
    start_s: float = data_option("start of the window from that event; may be negative", unit="s", default=0.0)
    stop_s: float | None = data_option("end of the window from that event", unit="s", default=None)
    until: str | None = data_option(
        "trials column with the time at which each trial ends, if not at stop_s before; null: stop_time, or none with stop_s",
        default=None,
    )
    inputs: list[str] | None = data_option(
        "external inputs, in this order: trials columns (event times, counted in each bin, or a number, constant in the "
        "trial; each within its own trial, event times) or time series (averaged in each bin; the last sample before it where "
        "a bin has none, but for gaps); null: none",
        default=None,
    )
    event_times: str = data_option(
        "event times in trials columns are seconds in the session, or from the event align",
        choices=("session", "align"), default="session",
    )  # fmt: skip
    from_start: list[str] = data_option(
        "trials columns whose times count from the trial's start_time, not in the session, as [cue]", before=[]
    )
    spike_times: str = data_option(
        "spike times are seconds in the session, or from the start_time of the trial they fell in, where they go back with "
        "each new trial",
        choices=("session", "trial"), before="session",
    )  # fmt: skip
    time_units: Any = data_option(
        "seconds per unit of times that are not in seconds, by column or time series, as {spike_times:0.001,start_time:0.001}; "
        "null: none",
        before=None,
    )
    unobserved: str = data_option(
        "trials and units that were not observed by obs_intervals of the units and invalid_times: leave_out (as few as can "
        "be), or ignore, which counts them as silent",
        choices=("leave_out", "ignore"), before="leave_out",
    )  # fmt: skip
    choices: str | None = data_option(
        "trials column with choices: 0 / 1, false / true or left / right; NaN or other words: no choice", default=None
    )
    choice_values: list[Any] | None = data_option(
        "the two values of that column that mean left and right, where they are others, as [-1,1]", default=None
    )
    evidence: str | None = data_option("trials column with the signed strength of the evidence for right", default=None)
    click_difference: str | None = data_option("trials column with right minus left clicks", default=None)
    baseline_hz: str | None = data_option("trials column with each unit's rate before the trial, Hz", default=None)
    trial_times: str | None = data_option(
        "trials column with the trials' times in the session, for slow drift; null: those of align", default=None
    )
    units: Any = data_option(
        "units kept, by their columns, as {quality:good,location:[mPFC,dmFC]}; columns of the electrodes table, and the "
        "location of the electrode group, stand for the unit's first electrode",
        default=None,
    )
    trials: Any = data_option("trials kept, by their columns, as {outcome:[hit,miss]}", default=None)
    min_rate_hz: float | None = data_option(
        "units firing less on average in the trials are left out; null: those silent throughout; 0: none",
        unit="Hz", at_least=0, default=None,
    )  # fmt: skip
    max_gigabytes: float = memory_option("largest size of the counts in memory")

    def check(self) -> None:
        for name in ("units", "trials", "time_units"):
            value = getattr(self, name)
            require(value is None or isinstance(value, dict), f"data.{name}", "as {COLUMN:VALUE}", value)
        for column, unit in (self.time_units or {}).items():
            number = isinstance(unit, (int, float)) and not isinstance(unit, bool) and 0 < unit < float("inf")
            require(number, f"data.time_units of {column}", "a number of seconds greater than 0", unit)
        require_two(self.choice_values)
        if self.stop_s is not None:
            require(self.stop_s > self.start_s, "data.stop_s", f"after data.start_s = {self.start_s:g}", self.stop_s)


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
    with _opened(path, options.max_gigabytes) as nwb:
        return _recording(path, nwb, options, name or path.stem)


def _recording(path: Path, nwb, given: NwbOptions, name: str) -> Recording:
    import torch

    from connector.dynamics import activation as activation_named
    from connector.types import Recording

    noted, notes = _noted_reading(path, nwb), []
    options, alpha = _completed(given, noted)
    activation_named(options.activation)
    table = Table(path, nwb, options.table, options.max_gigabytes)
    cells = Table(path, nwb, "units", options.max_gigabytes)
    clock = _clock(table, cells, options, notes)
    window = Window(options.align, options.start_s, options.stop_s, options.until, options.bin_s)
    bins = trial_bins(clock, window, options.trials or {}, notes)
    units = filtered_units(cells, options.units or {}, notes)
    if options.unobserved == "leave_out":
        bins, units = only_observed(cells, units, bins, clock, notes, trials_only=bool(noted))
    unchanged = given.bin_s is None and given.align is None and given.start_s == 0
    if unchanged and given.stop_s is None and given.until is None:  # padding past the longest trial, too
        bins.n_steps = max(bins.n_steps, int(noted.get("n_steps", 0)))
    counts = _counts(cells, spike_trains(cells, units, clock, options.spike_times, notes), bins)
    if not noted and options.unobserved == "leave_out":
        counts, bins = only_recorded(counts, bins, notes)
    activity, lengths = torch.from_numpy(counts), torch.from_numpy(bins.lengths)
    rates = mean_rates_hz(activity, lengths, bins.bin_s).numpy()
    active = active_units(rates, options.min_rate_hz, notes)
    units = units[active]
    inputs, input_names = trial_inputs(clock, options.inputs, bins, options.event_times == "align")
    if given.inputs is None and inputs is not None and "input_names" in noted:
        input_names = tuple(noted["input_names"])
    places = unit_places(cells, units)
    _describe(notes, bins, places, len(units), float(rates[active].mean()))
    latents, loadings, n = None, None, None
    if "latents" in noted or "loadings" in noted:
        if unchanged:
            latents, loadings, n = _truth(cells, noted, bins, units)
        else:
            notes.append("true latents and loadings left out: they belong to the bins the file was written with")

    def per_trial(column: str | None) -> Tensor | None:
        return None if column is None else torch.from_numpy(table.numbers(column)[bins.rows])

    choices, baseline = per_trial(noted.get("choices")) if given.choices is None else None, None
    if given.choices is not None:
        choices = torch.from_numpy(choices_of(table, given.choices, given.choice_values, bins.rows))
    if options.baseline_hz is not None:
        baseline = torch.from_numpy(baseline_rates(table, options.baseline_hz, bins.rows, units, len(cells)))
    return Recording(
        activity=activity[:, :, torch.from_numpy(active)],
        kind="spikes",
        lengths=lengths,
        alpha=alpha,
        activation=options.activation,
        inputs=None if inputs is None else torch.from_numpy(inputs.astype(np.float32)),
        input_names=input_names,
        bin_s=bins.bin_s,
        latents=latents,
        loadings=loadings,
        n=n,
        choices=choices,
        evidence=per_trial(options.evidence),
        click_difference=per_trial(options.click_difference),
        trial_times_s=_trial_times(clock, options, bins, notes),
        baseline_hz=baseline,
        neuron_names=() if noted and "unit_name" not in cells.columns else unit_names(cells, units, places),
        name=name,
        notes=tuple(notes),
    )


def load_pynwb():
    try:
        import pynwb
    except ImportError as error:
        raise UserError(
            "the package pynwb, which reads and writes NWB files",
            "no such package in this environment",
            "install it: python -m pip install pynwb (the extra `nwb`)",
        ) from error
    return pynwb


@contextlib.contextmanager
def _opened(path: Path, max_gigabytes: float) -> Iterator[Any]:
    pynwb = load_pynwb()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # pynwb warns of every namespace that it has in another version
        try:
            with limited_memory(max_gigabytes):
                nwb = stack.enter_context(pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True)).read()
        except Exception as error:  # hdmf has no common class for what a damaged or foreign file makes it raise
            raise unreadable(path, "an NWB file that is whole and that pynwb can read", error) from error
        # h5py at data that are cut off; and hdmf reads columns of any kind, so that what is done with them fails in any way.
        with refusing_damage(path, "an NWB file that is whole"):
            yield nwb


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
        "until": "stop_time" if given.stop_s is None else None,
        "inputs": [],
        "trial_times": align,
        **dict.fromkeys(("evidence", "click_difference", "baseline_hz", "min_rate_hz")),
    }
    filled = {key: noted.get(key, default) for key, default in defaults.items() if getattr(given, key) is None}
    return replace(given, **filled, bin_s=float(bin_s)), float(alpha)


def _clock(table: Table, cells: Table, options: NwbOptions, notes: list[str]) -> Clock:
    units_s = {str(column): float(unit) for column, unit in (options.time_units or {}).items()}
    known = [*table.columns, *cells.columns, "invalid_times", *(time_series(table.nwb) if units_s else ())]
    for name, columns in (("time_units", units_s), ("from_start", options.from_start)):
        unknown = ", ".join(column for column in columns if column not in known)
        if unknown:
            raise UserError(f"columns for data.{name} among {', '.join(known)}", unknown)
    return Clock(table, units_s, list(options.from_start), notes)


def _trial_times(clock: Clock, options: NwbOptions, bins: TrialBins, notes: list[str]) -> Tensor | None:
    import torch

    column = options.trial_times
    if column is None:
        return None
    # Those of the event are laid on the session's clock, where the column is not.
    times = bins.event_s if column == options.align else clock.as_written(column)[bins.rows]
    times = usable_times(times, f"the {clock.table.name} column {column}", notes)
    return None if times is None else torch.from_numpy(times)


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


def _describe(notes: list[str], bins: TrialBins, places: list[str], n_units: int, rate_hz: float) -> None:
    from connector.types import span

    said = (
        f"{bins.n_trials} trials of {span(bins.lengths)} bins of {1000 * bins.bin_s:g} ms; "
        f"{n_units} units, mean rate in trials {rate_hz:.2g} Hz"
    )
    counted = ", ".join(f"{places.count(place)} {place}" for place in dict.fromkeys(places))
    notes[:0] = [said, f"units: {counted}"] if places else [said]


def _truth(
    cells: Table, noted: dict[str, Any], bins: TrialBins, units: np.ndarray
) -> tuple[Tensor | None, Loadings | None, Tensor | None]:
    """True latents, loadings and output weights of an exported simulation."""
    import torch

    from connector.types import Loadings

    latents, columns = None, {}
    if "latents" in noted:
        series = time_series(cells.nwb)[noted["latents"]][0]
        values = bins.averages(np.asarray(series.timestamps[:]), np.asarray(series.data[:], dtype=float))
        values[~bins.inside] = 0
        latents = torch.from_numpy(values.astype(np.asarray(series.data[:1]).dtype))
    for key in noted.get("loadings", ()):
        columns[key] = torch.from_numpy(np.asarray(cells.rows(f"true_{key}"))[units])
    n = columns.pop("n", None)
    return latents, Loadings(**columns) if columns else None, n


READER = Reader(NwbOptions, load_nwb, formats=("nwb",))
