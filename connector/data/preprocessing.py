"""From raw events and rates to what models expect: binning, padding, click adaptation, the range of phi, checks of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from connector.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def range_excess(rates: Tensor, activation: str) -> float:
    """How far rates lie outside the range of phi: root mean square distance over all entries, relative to half the
    range (tanh, sigmoid) or to the standard deviation of the rates (relu, softplus).

    Gaussian noise of standard deviation s on fully saturated tanh neurons gives s / sqrt(2); z-scored activity
    declared as tanh gives 0.39 and as relu 0.71.
    """
    from connector.dynamics import activation as activation_named

    phi = activation_named(activation)
    below, above = rates[rates < phi.low].double(), rates[rates > phi.high].double()
    total = float((phi.low - below).square().sum() + (above - phi.high).square().sum())
    bounded = phi.high < float("inf")
    scale = (phi.high - phi.low) / 2 if bounded else max(float(rates.std()), 1e-12)
    return math.sqrt(total / rates.numel()) / scale


# Relative to a tolerated rms of noise beyond the range: the farthest of very many noisy values, and how far rates may be
# beyond the top of a range whose bottom they never reach.
_FARTHEST, _LOPSIDED = 8.0, 1.7


def goes_with(rates: Tensor, activation: str, tolerance: float) -> bool:
    """Whether rates can be those of neurons with this phi, but for noise: not where :func:`range_excess` exceeds the
    tolerance, where single values lie farther out than such noise reaches, or where rates rise beyond the top of a range
    whose bottom they never come near (dF/F as tanh)."""
    from connector.dynamics import activation as activation_named

    phi = activation_named(activation)
    low, high = float(rates.min()), float(rates.max())
    bounded = phi.high < float("inf")
    half = (phi.high - phi.low) / 2 if bounded else max(float(rates.std()), 1e-12)
    outside = max(phi.low - low, high - phi.high) / half
    lopsided = bounded and min(high - phi.high, low - phi.low) > _LOPSIDED * tolerance * half
    return range_excess(rates, activation) <= tolerance and outside <= _FARTHEST * tolerance and not lopsided


def adapt_clicks(times_s: np.ndarray, phi: float = 1e-3, recovery_hz: float = 100.0) -> np.ndarray:
    """Effective magnitude of each click of one adapting channel (Brunton et al. 2013).

    The channel's gain C relaxes to 1, dC/dt = recovery_hz (1 - C), and each click multiplies it by phi. A click's
    magnitude is the gain it meets: 1 for the first, then

        C[i] = 1 - (1 - phi C[i-1]) exp(-recovery_hz (t[i] - t[i-1])).

    Clicks at the same time are one event: they share a magnitude.

    Args:
        times_s: (clicks,) ascending, seconds.
        phi: factor on the gain at each click; 1 is no adaptation, 0 full depression.
        recovery_hz: rate of recovery, per second.

    Returns:
        (clicks,) magnitudes.
    """
    times_s = np.asarray(times_s, dtype=float)
    if not phi >= 0 or not recovery_hz > 0:
        raise UserError("click adaptation with phi >= 0 and a recovery rate > 0", f"phi {phi}, rate {recovery_hz}")
    distinct, event = np.unique(times_s, return_inverse=True)
    decay = np.exp(-recovery_hz * np.diff(distinct))
    magnitude = np.ones(len(distinct))
    for i in range(1, len(distinct)):
        magnitude[i] = 1 - (1 - phi * magnitude[i - 1]) * decay[i - 1]
    return magnitude[event]


def adapt_stereo_clicks(
    left_s: np.ndarray,
    right_s: np.ndarray,
    phi: float = 1e-3,
    recovery_hz: float = 100.0,
    across_sides: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of the clicks on both sides, see :func:`adapt_clicks`.

    Args:
        left_s, right_s: (clicks,) ascending, seconds.
        across_sides: one adapting channel hears both sides; otherwise each side has its own.

    Returns:
        magnitudes of the left and of the right clicks.
    """
    left_s, right_s = np.asarray(left_s, dtype=float), np.asarray(right_s, dtype=float)
    if not across_sides:
        return adapt_clicks(left_s, phi, recovery_hz), adapt_clicks(right_s, phi, recovery_hz)
    both = adapt_clicks(np.concatenate([left_s, right_s]), phi, recovery_hz)
    return both[: len(left_s)], both[len(left_s) :]


def bin_events(times_s: np.ndarray, n_bins: int, bin_s: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Sum of the weights (or number) of the events in each bin [i bin_s, (i + 1) bin_s), (n_bins,) float.

    Events before 0 or past the last bin are left out.
    """
    # An event on a bin's edge belongs to the bin that begins there, whatever the rounding of the division.
    place = np.floor(np.asarray(times_s, dtype=float) / bin_s + 1e-9).astype(int)
    inside = (place >= 0) & (place < n_bins)
    weights = np.ones(len(place)) if weights is None else np.asarray(weights, dtype=float)
    return np.bincount(place[inside], weights=weights[inside], minlength=n_bins)


def are_counts(values: np.ndarray) -> bool:
    """Whether all values are whole numbers of 0 or more, as spike counts are."""
    return bool(values.min() >= 0 and np.isfinite(values.max()) and np.array_equal(values, np.round(values)))


def require_counts(values: np.ndarray) -> None:
    """Raises UserError for values that are no spike counts."""
    if not are_counts(values):
        raise UserError("spike counts, whole numbers of 0 or more", f"values from {values.min():g} to {values.max():g}")


def pad_trials(trials: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ragged trials (time_i, channels) as one array (trials, longest, channels), zero past a trial's end.

    Returns:
        the array, float32, and the lengths, (trials,) int64.
    """
    lengths = np.array([len(x) for x in trials], dtype=np.int64)
    padded = np.zeros((len(trials), int(lengths.max()), trials[0].shape[1]), dtype=np.float32)
    for row, x in zip(padded, trials):
        row[: len(x)] = x
    return padded, lengths


def begun_at(x: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Arrays (trials, time, channels) whose trials begin at the samples ``first`` (trials,); what was before is behind them."""
    order = (np.arange(x.shape[1]) + first[:, None]) % x.shape[1]
    return np.take_along_axis(x, order[:, :, None], axis=1)


_SURE = 30.0  # spikes expected in a silence that is none: chance would be exp(-30)
_OFTEN = 0.25  # of the trials: padding in so many is how the file was written


def recorded_lengths(pooled: np.ndarray, lengths: np.ndarray, sure: float = _SURE) -> np.ndarray:
    """Samples of each trial up to the end of its recording, as far as the activity tells: silence is not the same as
    nothing recorded.

    A trial's last samples without a spike of any neuron are taken as not recorded where ``sure`` or more would be expected
    there at the mean rate, and where they are more than three times as many as the longest such silence between spikes. Where
    that is so in a quarter of the trials, files are padded: in the others a sixth of ``sure`` is enough, and more than the longest
    silence.

    Args:
        pooled: (trials, time) spikes of all neurons together, zero past a trial's end; lengths: (trials,).

    Returns:
        (trials,) int64; 0 for a trial that was not recorded at all.
    """
    active = pooled > 0
    last = np.where(active.any(1), active.shape[1] - np.argmax(active[:, ::-1], axis=1), 0)
    trial, step = active.nonzero()
    between = np.diff(step)[np.diff(trial) == 0] - 1
    longest = int(between.max(initial=0))
    silent = lengths - last
    rate = pooled.sum() / max(int(last.sum()), 1)
    padded = (silent * rate >= sure) & (silent > 3 * longest)
    if padded.mean() >= _OFTEN:
        padded |= (silent * rate >= sure / 6) & (silent > longest)
    return np.where(padded, last, lengths).astype(np.int64)


def silent_spells(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Neurons that fire no spike in successive trials where ``_SURE`` or more are expected at the rate of their other trials:
    lost or not recorded then, perhaps.

    Such a spell is more than five times as long as the neuron's next longest one.

    Args:
        counts: (trials, K) spikes of each trial, in the order of the session; lengths: (trials,) samples.

    Returns:
        (n,) numbers of the neurons.
    """
    found, samples = [], np.r_[0, np.cumsum(lengths)]
    for k in (counts == 0).any(0).nonzero()[0]:
        fired = np.r_[-1, counts[:, k].nonzero()[0], len(counts)]
        spells = samples[fired[1:]] - samples[fired[:-1] + 1]
        longest = int(spells.argmax())
        rate = counts[:, k].sum() / max(samples[-1] - spells[longest], 1)
        if rate * spells[longest] >= _SURE and spells[longest] > 5 * np.delete(spells, longest).max(initial=0):
            found.append(k)
    return np.array(found, dtype=np.int64)


def silent_ends(counts: np.ndarray, lengths: np.ndarray) -> tuple[int, int]:
    """Number of trials in whose first, and in whose last samples no neuron fires, though ``_SURE`` spikes or more are
    expected there (:func:`recorded_lengths`); counts (trials, time, K), lengths (trials,)."""
    pooled, place = counts.sum(2), np.arange(counts.shape[1])
    back = np.take_along_axis(pooled, (lengths[:, None] - 1 - place) % counts.shape[1], axis=1)
    ends = (np.where(place < lengths[:, None], x, 0) for x in (back, pooled))
    first, last = (int((recorded_lengths(x, lengths) < lengths).sum()) for x in ends)
    return first, last


def repeated_trials(activity: np.ndarray, lengths: np.ndarray) -> int:
    """Number of trials (trials, time, K) that are another one to the last digit, but those of fewer than ``_SURE`` numbers
    other than 0."""
    trials = [x[:n].tobytes() for x, n in zip(activity, lengths) if np.count_nonzero(x) >= _SURE]
    return len(trials) - len(set(trials))


def usable_times(times: np.ndarray | None, name: str, notes: list[str]) -> np.ndarray | None:
    """Times of trials in the session, or None, with a note, where slow drift cannot be told from them."""
    if times is None:
        return None
    unknown = int((~np.isfinite(times)).sum())
    if not unknown and (len(times) < 2 or np.ptp(times) > 0):
        return times
    why = f"NaN or infinite in {unknown} of {len(times)} trials" if unknown else f"{times[0]:g} in all trials"
    notes.append(f"{name} not used, {why}: without times of the trials, drift across the session is not modelled")
    return None


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


NO_CHOICE = ("", "nan", "none", "null")  # texts of trials without a choice


def choices_from(values: np.ndarray, coded: Sequence[Any] | None, where: str) -> np.ndarray:
    """Choices, 0 left, 1 right, NaN none, (trials,).

    Args:
        values: (trials,) numbers or texts; coded: the two that mean left and right, or a list of such for a side, others are no
            choice. None: 0 / 1, false / true or left / right, and other numbers are refused; where: what holds them, for
            messages.
    """
    numeric, sides = values.dtype.kind in "biuf", [_several(v) for v in coded or ()]
    if numeric:
        try:
            left, right = ([float(v) for v in side] for side in sides or [[0], [1]])
        except (TypeError, ValueError) as error:
            raise UserError(f"data.choice_values as numbers, as in {where}", str(list(coded or ()))) from error
        values = values.astype(float)
    else:
        values = np.array([as_text(value).strip().lower() for value in values])
        left, right = (
            [str(v).strip().lower() for v in side] for side in sides or [["left", "false"], ["right", "true"]]
        )
    choices = np.where(np.isin(values, left), 0.0, np.where(np.isin(values, right), 1.0, np.nan))
    unsaid = np.isnan(choices) if not numeric else np.isnan(choices) & ~np.isnan(values)
    # Numbers other than these two are no choice where the user named the two, and a misunderstanding where not. A side that no
    # trial has beside other values is a misspelling.
    other = unsaid if numeric else unsaid & ~np.isin(values, NO_CHOICE)
    one_side = other.any() and not ((choices == 0).any() and (choices == 1).any())
    if (unsaid.any() and numeric and coded is None) or (unsaid.any() and np.isnan(choices).all()) or one_side:
        found = [f"{x:g}" if numeric else str(x) for x in np.unique(values)]
        said = ["/".join(f"{v:g}" if numeric else v for v in side) for side in (left, right)]
        raise UserError(
            f"choices {said[0]} and {said[1]} in {where}",
            ", ".join(found[:6]) + (", ..." if len(found) > 6 else ""),
            "say which values mean left and right: data.choice_values=[LEFT,RIGHT], several as [[A,B],[C,D]]",
        )
    return choices


def as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def mean_rates_hz(counts: Tensor, lengths: Tensor, bin_s: float) -> Tensor:
    """Mean firing rate of each neuron over the recorded samples, (K,), Hz; counts (trials, time, K), zero past ends."""
    return counts.double().sum((0, 1)) / (float(lengths.sum()) * bin_s)
