"""Click adaptation, binning, the open range of phi."""

import math

import numpy as np
import pytest
import torch

from connector.data.preprocessing import (
    adapt_clicks,
    adapt_stereo_clicks,
    bin_events,
    choices_from,
    mean_rates_hz,
    pad_trials,
    range_excess,
    recorded_lengths,
    repeated_trials,
    silent_ends,
    silent_spells,
)
from connector.data.settings import require_two
from connector.errors import UserError


def test_adaptation_of_three_clicks_by_hand():
    phi, rate = 0.2, 50.0
    second = 1 - (1 - 0.2 * 1.0) * math.exp(-50 * 0.01)
    third = 1 - (1 - 0.2 * second) * math.exp(-50 * 0.03)
    assert adapt_clicks(np.array([0.1, 0.11, 0.14]), phi, rate) == pytest.approx([1.0, second, third])


def test_adaptation_solves_its_differential_equation():
    times = np.array([0.0, 0.004, 0.013, 0.05])
    phi, rate, dt = 0.3, 100.0, 1e-6
    gain, met, step = 1.0, [], 0
    for time in times:
        while step * dt < time - dt / 2:
            gain += dt * rate * (1 - gain)
            step += 1
        met.append(gain)
        gain *= phi
    assert adapt_clicks(times, phi, rate) == pytest.approx(met, abs=1e-4)


def test_no_adaptation_and_long_intervals_leave_magnitude_one():
    times = np.array([0.0, 0.001, 0.5])
    assert adapt_clicks(times, phi=1.0).tolist() == [1, 1, 1]
    assert adapt_clicks(times, phi=0.0)[2] == pytest.approx(1)
    assert adapt_clicks(times, phi=0.0)[1] == pytest.approx(1 - math.exp(-0.1))
    assert len(adapt_clicks(np.array([]))) == 0
    with pytest.raises(UserError):
        adapt_clicks(times, recovery_hz=0.0)


def test_adaptation_across_sides():
    left, right = np.array([0.0, 0.02]), np.array([0.0, 0.01])
    across = adapt_stereo_clicks(left, right, 0.1, 100.0)
    merged = adapt_clicks(np.array([0.0, 0.01, 0.02]), 0.1, 100.0)
    assert across[0] == pytest.approx([1, merged[2]])  # the stereo click is one event
    assert across[1] == pytest.approx([1, merged[1]])
    within = adapt_stereo_clicks(left, right, 0.1, 100.0, across_sides=False)
    assert within[0] == pytest.approx(adapt_clicks(left, 0.1, 100.0))
    assert within[0][1] > across[0][1]  # the right click in between no longer counts


def test_binning():
    # 0.29 / 0.01 is 28.999999999999996 in floating point: an event on an edge begins its bin.
    counts = bin_events(np.array([0.0, 0.005, 0.29, 0.3, 0.299, -0.001]), 30, 0.01)
    assert counts.shape == (30,)
    assert counts[0] == 2
    assert counts[29] == 2  # 0.29 and 0.299; 0.3 lies past the end
    assert counts.sum() == 4
    assert bin_events(np.array([0.01, 0.012]), 3, 0.01, np.array([0.5, 0.25])).tolist() == [0, 0.75, 0]


def test_padding_and_rates():
    padded, lengths = pad_trials([np.full((2, 3), 2, dtype=np.uint8), np.ones((4, 3), dtype=np.uint8)])
    assert padded.dtype == np.float32
    assert lengths.tolist() == [2, 4]
    assert padded[0].sum() == 12
    assert padded[0, 2:].sum() == 0
    # 2 x 2 + 4 x 1 spikes in 6 samples of 0.1 s; samples past the end count for nothing.
    assert mean_rates_hz(torch.from_numpy(padded), torch.from_numpy(lengths), 0.1).tolist() == pytest.approx(
        [8 / 0.6] * 3
    )


def test_range_excess_separates_noise_from_the_wrong_scale():
    generator = torch.Generator().manual_seed(0)
    saturated = torch.ones(20_000)
    noisy = saturated + 0.3 * torch.randn(20_000, generator=generator)
    assert range_excess(saturated, "tanh") == 0
    assert range_excess(noisy, "tanh") == pytest.approx(0.3 / math.sqrt(2), rel=0.03)
    z_scored = torch.randn(20_000, generator=generator)
    assert range_excess(z_scored, "tanh") == pytest.approx(0.39, abs=0.01)
    assert range_excess(z_scored, "relu") == pytest.approx(math.sqrt(0.5), rel=0.03)
    assert range_excess(10 * torch.rand(1000, generator=generator), "softplus") == 0
    assert range_excess(10 * torch.rand(1000, generator=generator), "sigmoid") > 5


def test_a_neuron_lost_for_part_of_the_session_is_told_from_a_silent_one():
    counts = np.random.default_rng(0).poisson([4, 4, 4, 0.1, 4, 0.3], size=(100, 6))
    counts[60:, 0] = 0  # lost
    counts[:20, 1] = counts[30:50, 2] = 0  # found late; lost for a while
    counts[::2, 4] = 0  # fires in every other trial
    lengths = np.full(100, 50)
    assert silent_spells(counts, lengths).tolist() == [0, 1, 2]
    assert silent_spells(counts[np.random.default_rng(1).permutation(100)], lengths).tolist() == []
    assert silent_spells(np.zeros((5, 2), int), lengths[:5]).tolist() == []


def test_trials_that_are_another_one_are_counted():
    counts = np.random.default_rng(0).poisson(1.0, size=(9, 20, 5)).astype(np.float32)
    lengths = np.full(9, 18)
    counts[4], counts[7] = counts[2], counts[2]
    counts[4, 18:] = 0  # past the end
    counts[5] = counts[6] = 0  # silent, which is no copy
    assert repeated_trials(counts, lengths) == 2


def test_ends_of_trials_without_any_spike_are_told_from_silence():
    counts = np.random.default_rng(0).poisson(0.3, size=(12, 60, 8))
    lengths = np.full(12, 60)
    lengths[:4] = 50
    counts[:4, 50:] = 0
    assert silent_ends(counts, lengths) == (0, 0)
    counts[[1, 6, 7], :25] = 0
    counts[2, 30:] = counts[11, 35:] = 0
    assert silent_ends(counts, lengths) == (3, 2)
    assert silent_ends(counts[:, :, :1], lengths) == (0, 0)  # one neuron may be silent as long


@pytest.mark.parametrize("rate", [0.8, 4.0])
def test_short_padding_is_found_where_many_trials_are_padded(rate):
    """Down to the longest silence between spikes, and to few spikes expected; nothing of silence where few are padded."""
    draw = np.random.default_rng(2)
    counts, steps = draw.poisson(rate, size=(200, 120)), np.full(200, 120)
    whole = counts.copy()
    lengths = draw.integers(60, 121, 200)
    counts[np.arange(120) >= lengths[:, None]] = 0
    last = np.array([np.flatnonzero(x)[-1] + 1 for x in counts])
    longest = max(int(np.diff(np.flatnonzero(x)).max()) - 1 for x in counts)
    told = (120 - last > longest) & (rate * (120 - last) > 5.5)
    found = recorded_lengths(counts, steps)
    assert told.mean() > 0.7
    assert np.array_equal(found[told], last[told])
    assert (found[120 - last <= longest] == 120).all()
    few = np.where(np.arange(200)[:, None] < 30, counts, whole)
    assert (recorded_lengths(few, steps)[30:] == 120).all()


def test_several_values_may_mean_a_side():
    words = np.array([b"Left", b"lick right", b"none", b"RIGHT"])
    assert np.array_equal(
        choices_from(words, ["left", ["right", "lick right"]], "x"), [0, 1, np.nan, 1], equal_nan=True
    )
    assert np.array_equal(
        choices_from(np.array([1, 2, 3, 4, 5]), [[1, 2], [3, 4]], "x"), [0, 0, 1, 1, np.nan], equal_nan=True
    )
    assert choices_from(np.array(["True", "False"]), None, "x").tolist() == [1, 0]
    with pytest.raises(UserError, match=r"choices a/b and c in x(?s:.*)several as"):
        choices_from(np.array(["d"]), [["a", "b"], "c"], "x")


@pytest.mark.parametrize(
    ("values", "coded"),
    [(["left", "right", "left"], ["lft", "right"]), ([1, 2, 2], [1, 3]), (["Left", "R", ""], None)],
    ids=["text", "number", "default"],
)
def test_a_side_that_no_trial_has_beside_other_values_is_taken_for_a_misspelling(values, coded):
    with pytest.raises(UserError, match=r"choices .* in x(?s:.*)data\.choice_values="):
        choices_from(np.array(values), coded, "x")


@pytest.mark.parametrize(
    ("values", "coded"), [(["left", "", "nan"], None), ([1.0, 1.0, np.nan], [1, 2])], ids=["text", "number"]
)
def test_a_session_of_one_choice_is_read(values, coded):
    assert np.unique(choices_from(np.array(values), coded, "x"), equal_nan=True).tolist()[0] == 0
    for wrong in ([[1, 2], [2, 3]], [[], [1]], [1, 2, 3]):
        with pytest.raises(UserError, match="list of two"):
            require_two(wrong)
