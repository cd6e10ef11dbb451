"""Recordings without trials, cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from connector.data.preprocessing import recorded_lengths
from connector.data.time_axis import TimeAxis
from connector.errors import UserError
from connector.files import check_size
from connector.report.numbers import counted


def runs(recorded: np.ndarray, gaps: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Begin and end of each run of samples, by (time,) bool; ``gaps``: (time,) bool, whether a gap lies before a sample."""
    state = np.r_[0, recorded if gaps is None else np.where(recorded, 1 + np.cumsum(gaps), 0), 0]
    edges = np.diff(state) != 0
    begin, end = np.flatnonzero(edges & (state[1:] > 0)), np.flatnonzero(edges & (state[:-1] > 0))
    return [(int(a), int(b)) for a, b in zip(begin, end)]


def samples_of(piece_s: float, gap_s: float | None, bin_s: float) -> tuple[int, int]:
    """Samples of a piece, and of the gap between pieces of training, validation and test, where None is a piece."""
    n = round(piece_s / bin_s)
    return n, n if gap_s is None else int(np.ceil(gap_s / bin_s - 1e-9))


def stretches_in(
    there: np.ndarray, n: int, bin_s: float, piece_s: float, remedy: str = "", gaps: np.ndarray | None = None
) -> np.ndarray:
    """Pieces of n samples (pieces, 2), the recording and the first sample of each, by (recordings, time) bool: what was recorded.
    No piece lies across ``gaps`` (:func:`runs`).

    Raises:
        UserError: no recording is as long as a piece.
    """
    whole = [(i, a, b) for i, row in enumerate(there) for a, b in runs(row, gaps)]
    found = [(i, a + n * j) for i, a, b in whole for j in range((b - a) // max(n, 1))]
    require_pieces(found, n, max((b - a for _, a, b in whole), default=0), bin_s, piece_s, remedy)
    return np.array(found, dtype=np.int64)


def require_pieces(found: Sequence, n: int, longest: int, bin_s: float, piece_s: float, remedy: str = "") -> None:
    """Raises UserError where there is no piece, or each is a single sample; ``longest``: samples of the longest stretch."""
    if n < 2 or not len(found):
        raise UserError(
            f"data.piece_s of 2 to {longest} samples of {bin_s:g} s, as long as the recording at most",
            f"{piece_s:g} s",
            remedy,
        )


def with_spikes(counts: np.ndarray, notes: list[str]) -> np.ndarray:
    """(pieces,) bool: which of the pieces (pieces, time, K) were recorded, as far as spikes tell."""
    empty = recorded_lengths(counts.sum(2), np.full(len(counts), counts.shape[1])) == 0
    if empty.any() and not empty.all():
        notes.append(
            f"{counted(int(empty.sum()), 'piece')} left out: no neuron fires, so they were probably not recorded"
        )
        return ~empty
    return np.ones(len(counts), dtype=bool)


def told(n: int, gap: int, bin_s: float, n_recordings: int, n_pieces: int, n_left: int) -> list[str]:
    """What a piece is, and what the sets are, in words."""
    of = "one recording" if n_recordings == 1 else f"{n_recordings} recordings"
    return [
        f"trials are {n_pieces} successive pieces of {n * bin_s:g} s ({n} samples) of {of}, cut without regard to events; {n_left} samples "
        "are in no piece",
        f"training, validation and test pieces are blocks of the recording, at least {gap * bin_s:g} s apart; pieces between them are in no "
        "set",
    ]


def cut(
    values: dict[str, np.ndarray], bin_s: float | None, options: Any, clock: TimeAxis | None, notes: list[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Arrays over time in pieces of equal length, one behind the other; samples that are NaN in all neurons are in none.

    Args:
        values: ``rates`` or ``spikes`` (recordings, time, K), ``externalinputs`` (recordings, time, U), ``lengths`` and ``times``
            (recordings,), by the keys of an npz. bin_s: seconds between samples. options: with piece_s, gap_s between pieces of
            training, validation and test (None: a piece), max_gigabytes. clock: of the one recording, where the file tells it.

    Returns:
        the arrays (pieces, time, ...) with ``lengths`` and ``times`` (pieces,); of each piece (pieces, 2) its recording and first
        sample there; samples of the gap.

    Raises:
        UserError: no bin width, or no recording as long as a piece.
    """
    if bin_s is None:
        raise UserError("data.bin_s, the seconds between samples, with data.piece_s", "none")
    kind = "rates" if "rates" in values else "spikes"
    activity = values[kind]
    n_recordings, steps, width = activity.shape
    ends = values.get("lengths", np.full(n_recordings, steps))
    there = np.arange(steps) < ends[:, None]
    if activity.dtype.kind == "f":
        there &= ~np.isnan(activity).all(2)
    n, gap = samples_of(options.piece_s, options.gap_s, bin_s)
    gaps = None if clock is None else clock.gaps
    stretches = stretches_in(there, n, bin_s, options.piece_s, gaps=gaps)
    channels = values["externalinputs"].shape[2] if "externalinputs" in values else 0
    size = 8e-9 * len(stretches) * n * (width + channels)
    check_size(size, options.max_gigabytes, "raise data.max_gigabytes if the memory is there")
    at = stretches[:, :1], stretches[:, 1:] + np.arange(n)
    pieces = {key: values[key][at] for key in (kind, "externalinputs") if key in values}
    if kind == "spikes":
        recorded = with_spikes(np.nan_to_num(pieces[kind]), notes)
        pieces, stretches = {key: x[recorded] for key, x in pieces.items()}, stretches[recorded]
    pieces["lengths"] = np.full(len(stretches), n, dtype=np.int64)
    start = values.get("times", np.zeros(1) if n_recordings == 1 else None)
    if start is not None:
        since = bin_s * np.arange(steps) if clock is None else clock.at - clock.at[0]
        pieces["times"] = start[stretches[:, 0]] + since[stretches[:, 1]]
    notes += told(n, gap, bin_s, n_recordings, len(stretches), int(there.sum()) - n * len(stretches))
    return pieces, stretches, gap
