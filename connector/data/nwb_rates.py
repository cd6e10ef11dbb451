"""Time series of NWB files as recordings of rates: calcium imaging, filtered spikes, any series with a channel for each neuron."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.data.nwb_inputs import choices_of, per_trial, trial_inputs, trial_times, with_inputs
from connector.data.nwb_observed import invalid_spans, most_observed
from connector.data.nwb_options import NwbOptions
from connector.data.nwb_pieces import clock_of, more_of_pieces, pieces_of_series, rows_of, table_of, told_of
from connector.data.nwb_series import Samples, activity_in, begun_at_samples, bin_of, samples_of
from connector.data.nwb_trials import TrialBins
from connector.data.recorded import RecordedArrays, recording_of, tensor
from connector.errors import UserError
from connector.files import check_size
from connector.report.numbers import counted

if TYPE_CHECKING:
    from connector.types import Recording

_TAU_S, _FEWEST_BINS = 0.1, 3.0  # of a time constant that is not given: no fewer bins than so many


def recording_of_series(path: Path, nwb, options: NwbOptions, name: str, notes: list[str]) -> Recording:
    """A recording of the time series that ``options.series`` names, of kind "rates", or of counts, ``options.kind``.

    Bins are as wide as samples are apart, unless ``bin_s`` says otherwise. Samples of which none is known in any channel, those
    in invalid_times and those that are missing are unobserved: trials that hold such are left out, pieces lie between them.

    Raises:
        UserError: no such series, or of none but text; no trial in which it was recorded.
    """
    names = [options.series] if isinstance(options.series, str) else list(options.series)
    samples = samples_of(path, nwb, names, options, options.scales_s, notes)
    bin_s = bin_of(samples, options.bin_s, notes)
    if options.kind == "spikes" and bin_s != samples.step_s:
        raise UserError(
            "data.bin_s of counts as the time between samples", f"{bin_s:g} s, samples {samples.step_s:g} s apart"
        )
    tau = max(_TAU_S, _FEWEST_BINS * bin_s) if options.tau is None else options.tau
    if bin_s > tau:
        raise UserError("a bin of at most the time constant", f"bins of {bin_s:g} s, data.tau {tau:g} s")
    if options.tau is None and tau > _TAU_S:
        notes.append(f"time constant taken as {tau:g} s, {_FEWEST_BINS:g} bins; data.tau sets another")
    half = samples.step_s / 2
    table = table_of(path, nwb, options, lambda: (samples.times[0] - half, samples.times[-1] + half), notes)
    clock = clock_of(table, None, options, notes)
    bins, gap = rows_of(clock, options, bin_s, notes), 0
    if options.unobserved == "leave_out":
        samples = _valid(samples, invalid_spans(table, clock, bins.begin + bins.lengths * bin_s), notes)
    if options.piece_s is None:
        bins = begun_at_samples(bins, samples)
    else:
        bins, gap = pieces_of_series(bins, samples, clock, options, notes)
        bins = with_inputs(clock, options, bins, notes)
    activity, bins, channels = _observed(bins, samples, options.max_gigabytes, notes)
    neurons = tuple(samples.names[k] for k in channels)
    notes[:0] = told_of(bins, f"channels of {', '.join(names)}, as {options.kind}", len(neurons), [])
    inputs, input_names = trial_inputs(clock, options, bins, notes)
    align = options.align or "start_time"
    values = {
        options.kind: activity,
        "lengths": bins.lengths,
        "externalinputs": inputs,
        "choices": None if options.choices is None else choices_of(table, options.choices, options.choice_values, bins.rows),
        "times": trial_times(clock, options.trial_times or align, align, bins, notes),
    }  # fmt: skip
    values = {key: value for key, value in values.items() if value is not None}
    read = SimpleNamespace(**{**vars(options), "alpha": None, "tau": tau, "choice_values": None})
    more: dict[str, Any] = more_of_pieces(bins, gap)
    more |= {key: tensor(per_trial(table, getattr(options, key), bins)) for key in ("evidence", "click_difference")}
    return recording_of(
        RecordedArrays(values, notes, options.activation), read, bin_s, name, input_names, neuron_names=neurons, **more
    )


def _valid(samples: Samples, invalid: np.ndarray, notes: list[str]) -> Samples:
    """Those outside of spans (spans, 2)."""
    away = np.zeros(len(samples.times), dtype=bool)
    for a, b in invalid:
        away |= (samples.times >= a) & (samples.times < b)
    if not away.any():
        return samples
    notes.append(f"{counted(int(away.sum()), 'sample')} in invalid_times left out")
    if away.all():
        raise UserError("samples outside of invalid_times", "none", "if these are wrong, set data.unobserved=ignore")
    return samples.take(~away)


def _observed(
    bins: TrialBins, samples: Samples, max_gigabytes: float, notes: list[str]
) -> tuple[np.ndarray, TrialBins, np.ndarray]:
    """Activity (trials, steps, channels) of those trials and channels that were recorded throughout, and which these are."""
    check_size(
        1e-9 * samples.values.itemsize * 2 * bins.n_trials * bins.n_steps * len(samples.names),
        max_gigabytes,
        f"the longest trial has {bins.n_steps} bins: widen data.bin_s, or choose channels by data.units",
    )
    activity = activity_in(bins, samples)
    seen = ~np.isnan(activity).any(1)  # past a trial's end are zeros
    trials, of_channels = most_observed(seen)
    if not trials.any():
        first, last = samples.times[[0, -1]]
        raise UserError(
            "trials in which the series was recorded throughout",
            f"none of {bins.n_trials}; samples from {first:g} to {last:g} s, trials from {bins.begin.min():g} to "
            f"{(bins.begin + bins.lengths * bins.bin_s).max():g} s",
            "check that both are in seconds (data.time_units); narrow the window with data.start_s, data.stop_s",
        )
    if not of_channels.all():
        notes.append(f"{counted(int((~of_channels).sum()), 'channel')} left out: NaN in too many trials")
    if not trials.all():
        what = "trial" if bins.stretches is None else "piece"
        notes.append(f"{counted(int((~trials).sum()), what)} left out: not recorded throughout in all channels kept")
    if not (trials.all() and of_channels.all()):
        activity = activity[trials][:, :, of_channels]
        bins = bins.take(trials)
    return activity[:, : bins.n_steps], bins, of_channels.nonzero()[0]
