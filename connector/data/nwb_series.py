"""Time series of NWB files: found by name or path, and their samples laid into the bins of trials as activity."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from connector.data.contents import natural
from connector.data.nwb_options import NwbOptions
from connector.data.nwb_tables import Table, filtered_rows, whole
from connector.data.nwb_trials import TrialBins
from connector.data.preprocessing import as_text as text
from connector.errors import UserError

_MOST, _ALIKE = (
    0.7,
    0.25,
)  # of the intervals, at least, are the usual one, but for this share of it, where samples are regular
_NEAR = 0.75  # of an interval that a sample may be off
_PAUSE, _LONG_PAUSE = 1.5, 10.0  # intervals between neighbouring samples that are a gap; where they are irregular
_OWN = 0.02  # a bin as wide as the interval between samples but for this share is that interval
_NAMED = 12
_NO_PREFIX = "processing/"


@dataclass(frozen=True)
class Samples:
    """Samples of some channels.

    Attributes:
        times: (samples,) ascending, seconds of the session; values: (samples, channels), none of them NaN throughout.
        step_s: seconds between neighbours, the median; regular: whether most are so far apart.
        names: of the channels.
    """

    times: np.ndarray
    values: np.ndarray
    step_s: float
    regular: bool
    names: tuple[str, ...]

    def take(self, keep: np.ndarray) -> Samples:
        """Some of the samples, by (samples,) bool."""
        return replace(self, times=self.times[keep], values=self.values[keep])


def all_series(nwb) -> dict[str, Any]:
    """The time series of a file by their paths, as ``acquisition/running`` or ``ophys/Fluorescence/plane0``."""
    import pynwb

    places = {}
    for place in ("acquisition", "stimulus", "stimulus_template", "analysis", "scratch"):
        places |= {id(item): place for item in (getattr(nwb, place, None) or {}).values()}
    found: dict[str, Any] = {}
    for item in nwb.objects.values():
        if isinstance(item, pynwb.TimeSeries):
            parts, node = [], item
            while node is not None and node is not nwb:
                parts.append(node.name)
                parts += [places[id(node)]] if id(node) in places else []
                node = node.parent
            found.setdefault("/".join(reversed(parts)), item)
    return {path: found[path] for path in natural(found)}


def series_named(nwb, wanted: str) -> dict[str, Any]:
    """The series of that path, of that end of a path, or, with ``*``, of all paths that it stands for.

    Raises:
        UserError: none, or several without ``*``.
    """
    found, pattern = all_series(nwb), wanted.strip("/").removeprefix(_NO_PREFIX)
    chosen = {path: found[path] for path in found if path == pattern}
    chosen = chosen or {path: x for path, x in found.items() if fnmatch.fnmatchcase(f"/{path}", f"*/{pattern}")}
    if len(chosen) == 1 or (chosen and "*" in pattern):
        return chosen
    there = list(chosen or found)
    listed = ", ".join(there[:_NAMED]) + (", ..." if len(there) > _NAMED else "")
    if chosen:
        raise UserError(f"one time series {wanted!r}", f"{len(chosen)} of that name", f"name its path: {listed}")
    raise UserError(
        "a time series of the file", repr(wanted), f"there are: {listed}" if there else "the file has no time series"
    )


def times_of(series, units_s: dict[str, float], n_samples: int, max_gigabytes: float) -> np.ndarray:
    """(samples,) when each sample was taken, as the file says, seconds."""
    if series.timestamps is not None:
        times = np.asarray(whole(series.timestamps, max_gigabytes), dtype=float).ravel()
    elif series.rate:
        times = (series.starting_time or 0.0) + np.arange(n_samples) / series.rate
    else:
        raise UserError(f"a time series {series.name!r} with timestamps or a rate", "neither")
    return times * units_s.get(series.name, 1.0)


def samples_of(
    path: Path, nwb, names: Sequence[str], options: NwbOptions, units_s: dict[str, float], notes: list[str]
) -> Samples:
    """The samples of one series, or of several side by side, which are brought to the times of the slowest.

    Args:
        options: with the values wanted in the columns of the ROIs or electrodes, ``units``. units_s: seconds per unit of times.

    Raises:
        UserError: no such series, no numbers, no times.
    """
    chosen = {path: x for name in names for path, x in series_named(nwb, name).items()}
    label = len(chosen) > 1
    parts = [_one_series(x, key, path, nwb, options, units_s, label, notes) for key, x in chosen.items()]
    first = max(parts, key=lambda part: part.step_s)
    if len(parts) == 1:
        return first
    aligned = [part.values if part is first else at_times(part, first.times) for part in parts]
    values = np.concatenate(aligned, axis=1)
    there = ~np.isnan(values).all(1)
    named = tuple(name for part in parts for name in part.names)
    return Samples(first.times[there], values[there], first.step_s, first.regular, named)


def _one_series(
    series, key: str, path: Path, nwb, options: NwbOptions, units_s: dict[str, float], label: bool, notes: list[str]
) -> Samples:
    values = np.asarray(whole(series.data, options.max_gigabytes))
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or not values.size:
        got = f"{values.dtype} of shape {values.shape}"
        raise UserError(f"a time series {key} of numbers, (samples,) or (samples, channels)", got)
    values = values.reshape(len(values), -1)
    region, place = channel_table(series)
    n_times = len(values) if series.timestamps is None else len(series.timestamps)
    if len(values) != n_times == values.shape[1] or (series.timestamps is None and _lies_across(values, place)):
        notes.append(f"{key} is (channels, samples), {values.shape}, in the file: transposed")
        values = values.T
    times = times_of(series, units_s, len(values), options.max_gigabytes)
    if len(times) != len(values):
        raise UserError(f"a time for each of the {len(values)} samples of {key}", f"{len(times)} times")
    values = scaled(series, values)
    names = _channel_names(series, key, region, place, values.shape[1], label)
    if options.units:
        if region is None or len(place) != values.shape[1]:
            got = f"{key}, whose {values.shape[1]} channels are in none"
            raise UserError("data.units with a time series whose channels are rows of a table", got)
        rows = filtered_rows(_Region(path, nwb, region, options.max_gigabytes), options.units, notes)
        kept = np.isin(place, rows).nonzero()[0]
        values, names = values[:, kept], tuple(names[k] for k in kept)
    there = np.isfinite(times) & ~np.isnan(values).all(1)
    times, values = times[there], values[there]
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        notes.append(f"samples of {key} are not in the order of their times: sorted")
    if len(times) < 2 or not np.ptp(times) > 0 or not values.shape[1]:
        raise UserError(f"a time series {key} with samples at different times", f"{len(times)} that are known")
    step_s = float(np.median(np.diff(np.unique(times))))
    regular = bool(np.mean(np.abs(np.diff(times) / step_s - 1) < _ALIKE) > _MOST)
    return Samples(times, values, step_s, regular, names)


class _Region(Table):
    """The table that channels are rows of."""

    def __init__(self, path: Path, nwb, table: Any, max_gigabytes: float):
        self.path, self.nwb, self.max_gigabytes = path, nwb, max_gigabytes
        self.name, self.table = table.name, table


def channel_table(series) -> tuple[Any, np.ndarray]:
    """The table whose rows are the channels of a series, its ROIs or electrodes, and the row of each; None and nothing."""
    region = getattr(series, "rois", None) or getattr(series, "electrodes", None)
    if region is None:
        return None, np.zeros(0, dtype=np.int64)
    return region.table, np.asarray(region.data[:], dtype=np.int64)


def _lies_across(values: np.ndarray, place: np.ndarray) -> bool:
    """Whether channels come first, as suite2p once wrote them."""
    return len(place) == len(values) and len(place) != values.shape[1]


def _channel_names(series, path: str, region, place: np.ndarray, number: int, several: bool) -> tuple[str, ...]:
    label = f"{path.split('/')[-1]} " if several else ""
    if region is None or len(place) != number:
        if number == 1:
            return (series.name,)
        return tuple(f"{label or f'{series.name} '}{i}" for i in range(number))
    ids = np.asarray(region.id[:])[place]
    what = "roi" if hasattr(series, "rois") else "channel"
    places = [""] * number
    if "location" in region.colnames:
        places = [text(x) for x in np.asarray(region["location"].data[:])[place]]
    return tuple(f"{label}{where or what} {number}" for where, number in zip(places, ids))


def scaled(series, values: np.ndarray) -> np.ndarray:
    """In the unit that the file names: data x conversion (x that of each channel) + offset."""
    values = values.astype(np.float32 if values.dtype == np.float32 else float, copy=False)
    each = getattr(series, "channel_conversion", None)
    if each is not None and np.size(each) == values.shape[1]:
        values = values * np.asarray(each[:], dtype=values.dtype)
    if (series.conversion or 1.0) != 1.0 or (series.offset or 0.0) != 0.0:
        values = values * values.dtype.type(series.conversion or 1.0) + values.dtype.type(series.offset or 0.0)
    return values


def at_times(samples: Samples, times: np.ndarray) -> np.ndarray:
    """(times, channels) values between samples, linear; NaN before the first, after the last, and in a gap."""
    after = np.clip(np.searchsorted(samples.times, times), 1, len(samples.times) - 1)
    before = after - 1
    apart = samples.times[after] - samples.times[before]
    share = (times - samples.times[before]) / np.where(apart > 0, apart, 1.0)
    outside = np.maximum(-share, share - 1) * apart > _NEAR * samples.step_s
    share = np.clip(share, 0, 1)
    at_one = (share < 1e-6) | (share > 1 - 1e-6)  # next to a gap a sample is there
    gap = (apart > pause_s(samples)) & ~at_one
    values = (1 - share)[:, None] * samples.values[before] + share[:, None] * samples.values[after]
    values = np.where((share > 1 - 1e-6)[:, None], samples.values[after], values)
    values = np.where((share < 1e-6)[:, None], samples.values[before], values)
    values[outside | gap] = np.nan
    return values


def pause_s(samples: Samples) -> float:
    """How far neighbouring samples are apart where something is missing between them."""
    return (_PAUSE if samples.regular else _LONG_PAUSE) * samples.step_s


def bin_of(samples: Samples, bin_s: float | None, notes: list[str]) -> float:
    """Seconds of a bin: as given, or the interval between samples.

    Raises:
        UserError: samples at irregular times, and no bin width.
    """
    step = samples.step_s
    if bin_s is None and not samples.regular:
        got = f"samples at irregular times, {step:.3g} s apart in the median"
        raise UserError("data.bin_s, seconds, for a time series", got, f"set data.bin_s={max(step, 0.01):.2g} or wider")
    if bin_s is None or (samples.regular and abs(bin_s / step - 1) <= _OWN):
        notes.append(f"samples as they are, {step:.6g} s apart")
        return step
    wide = bin_s > 1.5 * step
    notes.append(
        f"samples {step:.4g} s apart {'averaged in' if wide else 'brought, linearly, to the middles of'} bins of {bin_s:g} s"
    )
    return bin_s


def begun_at_samples(bins: TrialBins, samples: Samples) -> TrialBins:
    """The bins moved by half an interval at most, so that a sample lies in the middle of each, where they are as wide."""
    if bins.bin_s != samples.step_s:
        return bins
    after = np.clip(np.searchsorted(samples.times, bins.begin), 1, len(samples.times) - 1)
    low, high = samples.times[after - 1], samples.times[after]
    nearest = np.where(bins.begin - low < high - bins.begin, low, high)
    near = np.abs(nearest - bins.begin) <= _NEAR * samples.step_s
    return bins.moved(np.where(near, nearest - samples.step_s / 2, bins.begin))


def activity_in(bins: TrialBins, samples: Samples) -> np.ndarray:
    """(trials, steps, channels) activity in each bin; NaN where none was recorded, zero past a trial's end.

    Bins wider than the interval between samples hold the mean of theirs, others the value in their middle.
    """
    middles = bins.begin[:, None] + (np.arange(bins.n_steps) + 0.5) * bins.bin_s
    if bins.bin_s == samples.step_s:
        values = _neighbours(samples, middles[:, 0], bins.n_steps)
    else:
        values = at_times(samples, middles.ravel()).reshape(*middles.shape, -1)
        if bins.bin_s > 1.5 * samples.step_s:
            values = _means(bins, samples, values)
    values[~bins.inside] = 0
    return values


def _neighbours(samples: Samples, begin: np.ndarray, n: int) -> np.ndarray:
    """(trials, n, channels) the sample next to each time and those that follow it; NaN behind a gap."""
    after = np.clip(np.searchsorted(samples.times, begin), 1, len(samples.times) - 1)
    first = after - (begin - samples.times[after - 1] < samples.times[after] - begin)
    run = np.r_[0, np.cumsum(np.diff(samples.times) > pause_s(samples))]
    near = np.abs(samples.times[first] - begin) <= _NEAR * samples.step_s
    index = first[:, None] + np.arange(n)
    there = near[:, None] & (index < len(run))
    index = np.minimum(index, len(run) - 1)
    values = samples.values[index]
    values[~(there & (run[index] == run[first][:, None]))] = np.nan
    return values


def _means(bins: TrialBins, samples: Samples, otherwise: np.ndarray) -> np.ndarray:
    """Means of the samples in each bin; bins without one, or with fewer than half of those expected, as ``otherwise``."""
    which, place = bins.places(samples.times)
    size = bins.n_trials * bins.n_steps
    number = np.bincount(place, minlength=size)
    sums = np.stack([np.bincount(place, weights=x[which], minlength=size) for x in samples.values.T], axis=1)
    mean = (sums / np.maximum(number, 1)[:, None]).astype(otherwise.dtype).reshape(otherwise.shape)
    enough = number >= (0.5 * bins.bin_s / samples.step_s if samples.regular else 1)
    return np.where(enough.reshape(*otherwise.shape[:2], 1), mean, otherwise)


def stretches_of_samples(
    begin_s: np.ndarray, end_s: np.ndarray, samples: Samples, n: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Pieces of n neighbouring samples within each row, which lasts from ``begin_s`` to ``end_s``, (rows,).

    Returns:
        the row of each and its first sample in the session (pieces, 2), by its time; when each begins (pieces,), s; samples in all
        rows; of the longest stretch.
    """
    found, begin, number, longest = [], [], 0, 0
    for row, (a, b) in enumerate(zip(begin_s, end_s)):
        low, high = np.searchsorted(samples.times, [a - 1e-9, b - 1e-9])
        times = samples.times[low:high]
        apart = np.flatnonzero(np.diff(times) > pause_s(samples)) + 1
        number += len(times)
        for first, last in zip(np.r_[0, apart], np.r_[apart, len(times)]):
            longest = max(longest, int(last - first))
            starts = n * np.arange((last - first) // max(n, 1))
            found += [(row, in_session(times[first], samples.step_s) + start) for start in starts]
            begin += list(times[first + starts] - samples.step_s / 2)
    return np.array(found, dtype=np.int64).reshape(-1, 2), np.array(begin), number, longest


def in_session(time_s: float, step_s: float) -> int:
    """The number of steps from the begin of the session; rounded so that half a step, which samples are off bins, is no limit."""
    return int(np.floor(time_s / step_s + 0.31))


def recorded_steps(rows: TrialBins, samples: Samples) -> np.ndarray:
    """(rows, steps) whether activity is known in a bin."""
    one = Samples(samples.times, np.ones((len(samples.times), 1)), samples.step_s, samples.regular, ("",))
    return rows.inside & ~np.isnan(activity_in(rows, one)[:, :, 0])
