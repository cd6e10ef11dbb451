"""The options of ``data=nwb``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from connector.data.settings import data_option, memory_option, require_two, seconds
from connector.declarations import require

SESSION = "session"  # the table of one row, from the first to the last that was recorded


@dataclass
class NwbOptions:
    """How an NWB file is read: the options of ``data=nwb`` and keywords of :func:`load_nwb`.

    Null stands for the default named, or, in a file of :func:`connector.data.nwb_export.export_nwb`, for what that file
    was written with. A trial's bins begin ``start_s`` after its event ``align``; only bins that fit wholly before its
    end are taken. Trials without that event (NaN) are left out.
    """

    bin_s: float | None = data_option(
        "bin width; null: 0.01, for series the time between samples", unit="s", above=0, default=None
    )
    tau: float | None = data_option(
        "time constant of the network; null: 0.1, or 3 bins if the bins of a series are wider; alpha = bin_s / tau",
        unit="s",
        above=0,
        default=None,
    )
    activation: str | None = data_option(
        "nonlinearity phi of the neurons; null: softplus, for series tanh", default=None
    )
    series: Any = data_option(
        "time series of rates to read instead of spikes, one channel for each neuron: NAME, or the end of its "
        "path, MODULE/CONTAINER/NAME, with * for any part. A list puts series side by side",
        before=None,
    )
    kind: str = data_option(
        "what a series holds: rates, or spike counts in successive bins",
        choices=("rates", "spikes"),
        before="rates",
    )
    table: str = data_option(
        "table of time intervals whose rows are the trials: trials, epochs, stimulus presentations or any "
        "other; session: the whole session",
        before="trials",
    )
    align: str | None = data_option(
        "trials column with the event from which time is counted; null: start_time", default=None
    )
    start_s: float = data_option("start of the window, from that event; may be negative", unit="s", default=0.0)
    stop_s: float | None = data_option("end of the window, from that event", unit="s", default=None)
    piece_s: float | None = data_option(
        "cut the trials, or the session of a file without trials, into pieces of this length; null: no",
        unit="s", above=0, before=None,
    )  # fmt: skip
    gap_s: float | None = data_option(
        "least time between training, validation and test pieces, which form blocks of the recording; null: "
        "one piece",
        unit="s", at_least=0, before=None,
    )  # fmt: skip
    until: str | None = data_option(
        "trials column with the time at which each trial ends, if it ends before stop_s; null: stop_time, or "
        "none with stop_s",
        default=None,
    )
    inputs: list[str] | None = data_option(
        "external inputs, in this order. Trials columns: event times are counted in each bin of their own "
        "trial, a number is constant in the trial. Time series: mean in each bin, or the last sample before "
        "it; gaps stay gaps. null: none",
        default=None,
    )
    absent_inputs: str = data_option(
        "input columns that are NaN in a trial: refuse, or zero if NaN means that there was no input, as for "
        "contrasts",
        choices=("refuse", "zero"), before="refuse",
    )  # fmt: skip
    conditions: str | None = data_option("trials column with a label of each trial, number or text", before=None)
    condition_inputs: bool = data_option(
        "true: one input for each condition, 1 in its trials and 0 in others", before=False
    )
    event_times: str = data_option(
        "what times in columns of events count from: session, trial (its start_time), align (the event, for "
        "inputs), or auto (session or trial, recognised by where the times lie)",
        choices=("auto", "session", "trial", "align"), default="auto",
    )  # fmt: skip
    from_start: list[str] = data_option(
        "columns of events whose times count from the trial's start_time, if columns differ, such as [cue]",
        before=[],
    )
    spike_times: str = data_option(
        "what spike times count from: session, or the start_time of the trial in which they fell (they then "
        "go back with each new trial)",
        choices=("session", "trial"), before="session",
    )  # fmt: skip
    time_units: Any = data_option(
        "seconds per unit of times that are not in seconds, by column or time series, such as "
        "{spike_times:1/30000,start_time:0.001}; null: none",
        before=None,
    )
    unobserved: str = data_option(
        "trials and units that were not observed, by obs_intervals of the units and invalid_times: leave_out "
        "(as few as possible), or ignore (count them as silent)",
        choices=("leave_out", "ignore"), before="leave_out",
    )  # fmt: skip
    choices: str | None = data_option(
        "trials column with choices: 0 / 1, false / true or left / right; NaN or other words: no choice", default=None
    )
    choice_values: list[Any] | None = data_option(
        "the two values of that column that mean left and right, if they are others, such as [-1,1]; several "
        "for each side: [[1,2],[3,4]]",
        default=None,
    )
    evidence: str | None = data_option("trials column with the signed strength of the evidence for right", default=None)
    click_difference: str | None = data_option("trials column with right minus left clicks", default=None)
    baseline_hz: str | None = data_option("trials column with each unit's rate before the trial, Hz", default=None)
    trial_times: str | None = data_option(
        "trials column with the trials' times in the session, for slow drift; null: those of align", default=None
    )
    units: Any = data_option(
        "units to keep, by their columns, such as {quality:good,location:[mPFC,dmFC],snr:'>2'}. Columns of "
        "the electrodes table, and the location of the electrode group, describe the unit's first electrode. "
        "With series: by the columns of its ROIs or electrodes",
        default=None,
    )
    trials: Any = data_option(
        "trials to keep, by their columns, such as {outcome:[hit,miss],reaction_time:'<1'}", default=None
    )
    min_rate_hz: float | None = data_option(
        "leave out units that fire less on average in the trials; null: silent units; 0: none",
        unit="Hz", at_least=0, default=None,
    )  # fmt: skip
    range_tolerance: float = data_option(
        "how far rates may leave the range of phi: rms excess relative to half the range", at_least=0, before=0.3
    )
    max_gigabytes: float = memory_option("largest size of the counts in memory")

    @property
    def scales_s(self) -> dict[str, float]:
        """Seconds per unit of times, by column or time series."""
        return {str(column): seconds(unit, "data.time_units") for column, unit in (self.time_units or {}).items()}

    def check(self) -> None:
        for name in ("units", "trials", "time_units"):
            value = getattr(self, name)
            require(value is None or isinstance(value, dict), f"data.{name}", "as {COLUMN:VALUE}", value)
        for column, unit in (self.time_units or {}).items():
            seconds(unit, f"data.time_units of {column}")
        require_two(self.choice_values)
        names = [self.series] if isinstance(self.series, str) else self.series
        several = names is None or (isinstance(names, list) and names and all(isinstance(x, str) and x for x in names))
        require(bool(several), "data.series", "as NAME, or a list of such", self.series)
        of_spikes = {"spike_times": "session", "baseline_hz": None, "min_rate_hz": None}
        require(names is not None or self.kind == "rates", "data.kind", "with data.series", self.kind)
        for name, usual in of_spikes.items():
            alone = names is None or getattr(self, name) == usual
            require(alone, f"data.{name}", "with spikes, without data.series", getattr(self, name))
        require(self.piece_s is not None or self.gap_s is None, "data.gap_s", "with data.piece_s", self.gap_s)
        require(
            self.piece_s is not None or self.table != SESSION, "data.table=session", "with data.piece_s", self.piece_s
        )
        for name in ("choices", "evidence", "click_difference", "baseline_hz"):
            alone = self.piece_s is None or getattr(self, name) is None
            require(alone, f"data.{name}", "with whole trials, without data.piece_s", getattr(self, name))
        require(
            self.conditions is not None or not self.condition_inputs,
            "data.condition_inputs",
            "with data.conditions",
            True,
        )
        if self.stop_s is not None:
            require(self.stop_s > self.start_s, "data.stop_s", f"after data.start_s = {self.start_s:g}", self.stop_s)
