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
        "bin width; null: 0.01, of series the time between samples", unit="s", above=0, default=None
    )
    tau: float | None = data_option(
        "time constant; null: 0.1, or 3 bins where bins of series are wider; alpha = bin_s / tau",
        unit="s",
        above=0,
        default=None,
    )
    activation: str | None = data_option("phi of the neurons; null: softplus, of series tanh", default=None)
    series: Any = data_option(
        "in place of spikes, time series whose channels are the neurons, of rates: NAME or the end of its path, MODULE/CONTAINER/NAME, * "
        "for any part; or a list of such, side by side",
        before=None,
    )
    kind: str = data_option(
        "what a series holds: rates, or counts of spikes in successive bins",
        choices=("rates", "spikes"),
        before="rates",
    )
    table: str = data_option(
        "table of time intervals whose rows are the trials: trials, epochs, stimulus presentations, any other; session: the whole "
        "session, as where a file has no trials",
        before="trials",
    )
    align: str | None = data_option(
        "trials column with the time of the event that time is counted from; null: start_time", default=None
    )
    start_s: float = data_option("start of the window from that event; may be negative", unit="s", default=0.0)
    stop_s: float | None = data_option("end of the window from that event", unit="s", default=None)
    piece_s: float | None = data_option(
        "cut the trials of the table, or the session of a file without trials, into pieces of so many seconds; null: no",
        unit="s", above=0, before=None,
    )  # fmt: skip
    gap_s: float | None = data_option(
        "between pieces of training, validation and test, which are blocks of the recording; null: a piece",
        unit="s", at_least=0, before=None,
    )  # fmt: skip
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
    absent_inputs: str = data_option(
        "inputs from columns that are NaN in a trial: refuse, or zero where NaN says that there was none, as of contrasts",
        choices=("refuse", "zero"), before="refuse",
    )  # fmt: skip
    conditions: str | None = data_option("trials column with a label of each trial, numbers or texts", before=None)
    condition_inputs: bool = data_option("an input for each condition, 1 in its trials and 0 in others", before=False)
    event_times: str = data_option(
        "times in columns of events are seconds in the session, or from the trial's start_time (trial), which auto tells from where "
        "they lie; align: those of the inputs from the event align",
        choices=("auto", "session", "trial", "align"), default="auto",
    )  # fmt: skip
    from_start: list[str] = data_option(
        "columns of events, of some that differ in it, whose times count from the trial's start_time, as [cue]",
        before=[],
    )
    spike_times: str = data_option(
        "spike times are seconds in the session, or from the start_time of the trial they fell in, where they go back with "
        "each new trial",
        choices=("session", "trial"), before="session",
    )  # fmt: skip
    time_units: Any = data_option(
        "seconds per unit of times that are not in seconds, by column or time series, as {spike_times:1/30000,start_time:0.001}; "
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
        "the two values of that column that mean left and right, where they are others, as [-1,1]; several for a side as "
        "[[1,2],[3,4]]",
        default=None,
    )
    evidence: str | None = data_option("trials column with the signed strength of the evidence for right", default=None)
    click_difference: str | None = data_option("trials column with right minus left clicks", default=None)
    baseline_hz: str | None = data_option("trials column with each unit's rate before the trial, Hz", default=None)
    trial_times: str | None = data_option(
        "trials column with the trials' times in the session, for slow drift; null: those of align", default=None
    )
    units: Any = data_option(
        "units kept, by their columns, as {quality:good,location:[mPFC,dmFC],snr:'>2'}; columns of the electrodes table, and the "
        "location of the electrode group, stand for the unit's first electrode; with series by the columns of its ROIs or electrodes",
        default=None,
    )
    trials: Any = data_option("trials kept, by their columns, as {outcome:[hit,miss],reaction_time:'<1'}", default=None)
    min_rate_hz: float | None = data_option(
        "units firing less on average in the trials are left out; null: those silent throughout; 0: none",
        unit="Hz", at_least=0, default=None,
    )  # fmt: skip
    range_tolerance: float = data_option(
        "largest rms excess of rates over the activation's range, relative to half the range", at_least=0, before=0.3
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
