"""npz files, good and bad: what is read is exact, what cannot be read is refused with a reason."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from connector.data.npz import load_npz
from connector.data.recorded import require_in_range
from connector.errors import UserError

TRIALS, STEPS, NEURONS = 6, 9, 4


def _rates(seed: int = 0) -> np.ndarray:
    return np.tanh(np.random.default_rng(seed).normal(size=(TRIALS, STEPS, NEURONS)))


def _spikes(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.7, size=(TRIALS, STEPS, NEURONS))


def _save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


# --- npz: what is read --------------------------------------------------------------------------------------------


def test_rates_alone(tmp_path):
    recording = load_npz(_save(tmp_path / "mine.npz", rates=_rates()))
    assert (recording.kind, recording.activation, recording.alpha, recording.name) == ("rates", "tanh", 0.1, "mine")
    assert recording.activity.dtype == torch.float32
    assert np.array_equal(recording.activity.numpy(), _rates().astype(np.float32))
    assert recording.lengths.tolist() == [STEPS] * TRIALS
    assert recording.latents is recording.loadings is recording.n is recording.inputs is None


def test_the_authors_convention(tmp_path):
    rng = np.random.default_rng(1)
    mbd, n = rng.normal(size=(NEURONS, 2 + 3 + 1)), rng.normal(size=(NEURONS, 2))
    latents, inputs = rng.normal(size=(TRIALS, STEPS, 2)), rng.normal(size=(TRIALS, STEPS, 3))
    h = latents @ mbd[:, :2].T + inputs @ mbd[:, 2:5].T + mbd[:, 5]
    path = _save(
        tmp_path / "a.npz",
        rates=np.tanh(h),
        potentials=h,
        latents=latents,
        MBD=mbd,
        N=n,
        externalinputs=inputs,
        lengths=np.full(TRIALS, STEPS),
    )
    recording = load_npz(path, alpha=0.2)
    known = recording.loadings
    assert recording.alpha == 0.2
    assert recording.n_inputs == 3
    assert torch.equal(known.stack(), torch.from_numpy(mbd))
    assert (known.rank, known.n_inputs, known.has_bias) == (2, 3, True)
    assert torch.equal(recording.n, torch.from_numpy(n))
    assert torch.equal(recording.latents, torch.from_numpy(latents))
    assert recording.notes == ()
    # Rates of another nonlinearity are told from the potentials.
    wrong = _save(tmp_path / "b.npz", rates=np.tanh(h), potentials=-h)
    assert any("correlate" in note for note in load_npz(wrong).notes)


@pytest.mark.parametrize(
    ("width", "inputs", "expected"),
    [
        (2, 0, (0, False)),
        (3, 0, (0, True)),
        (2, 2, (0, False)),
        (4, 2, (2, False)),
        (5, 2, (2, True)),
        (3, 1, (1, False)),
    ],
)
def test_mbd_is_split_by_rank_and_inputs(tmp_path, width, inputs, expected):
    rng = np.random.default_rng(2)
    arrays = {
        "rates": _rates(),
        "latents": rng.normal(size=(TRIALS, STEPS, 2)),
        "MBD": rng.normal(size=(NEURONS, width)),
    }
    if inputs:
        arrays["externalinputs"] = rng.normal(size=(TRIALS, STEPS, inputs))
    known = load_npz(_save(tmp_path / "a.npz", **arrays)).loadings
    assert known.rank == 2
    assert (known.n_inputs, known.has_bias) == expected
    assert np.array_equal(known.stack().numpy(), arrays["MBD"])


def test_mbd_takes_its_rank_from_n_or_from_the_caller(tmp_path):
    mbd = np.random.default_rng(0).normal(size=(NEURONS, 3))
    path = _save(tmp_path / "a.npz", rates=_rates(), MBD=mbd)
    assert load_npz(path, rank=3).loadings.has_bias is False
    assert load_npz(path, rank=2).loadings.has_bias is True
    with pytest.raises(UserError, match="latents"):
        load_npz(path)
    assert load_npz(_save(tmp_path / "b.npz", rates=_rates(), MBD=mbd, N=mbd[:, :2])).loadings.has_bias is True


def test_columns_of_zeros_are_absent(tmp_path):
    mbd = np.random.default_rng(0).normal(size=(NEURONS, 4))
    mbd[:, 3] = 0
    latents, zeros = np.random.default_rng(1).normal(size=(TRIALS, STEPS, 2)), np.zeros((TRIALS, STEPS, 1))
    path = _save(tmp_path / "a.npz", rates=_rates(), MBD=mbd, latents=latents, externalinputs=zeros)
    recording = load_npz(path)
    assert recording.inputs is None
    assert np.array_equal(recording.loadings.stack().numpy(), mbd[:, :2])
    assert len(recording.notes) == 2


def test_choices_coded_otherwise_are_refused_until_the_user_names_the_two(tmp_path):
    for choices, coded, expected in (
        (np.array([1, 2, 2, 1, 1, 2]), [1, 2], [0, 1, 1, 0, 0, 1]),
        (np.array([-1, 1, 0, 1, 1, -1]), [-1, 1], [0, 1, -1, 1, 1, 0]),
        (np.array([0, 1, 2, 1, 1, 0]), [0, 1], [0, 1, -1, 1, 1, 0]),
        (np.array([1.0, 0, np.nan, 1, 1, 9]), [1, 0], [0, 1, -1, 0, 0, -1]),
        (np.array(["a", "b", "b", "a", "", "b"]), ["a", "b"], [0, 1, 1, 0, -1, 1]),
    ):
        path = _save(tmp_path / "a.npz", spikes=_spikes(), choices=choices)
        with pytest.raises(UserError, match=r"`choices`(?s:.*)data.choice_values=\[LEFT,RIGHT\]"):
            load_npz(path)
        assert load_npz(path, choice_values=coded).choices.nan_to_num(-1).tolist() == expected
    with pytest.raises(UserError, match="list of two"):
        load_npz(path, choice_values=["a"])
    words = _save(
        tmp_path / "b.npz", spikes=_spikes(), choices=np.array(["Left", "right", "", "left", "none", "right"])
    )
    assert load_npz(words).choices.nan_to_num(-1).tolist() == [0, 1, -1, 0, -1, 1]


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path):
    others = dict.fromkeys(("inputs", "choice", "Lengths", "targets", "W", "test_rates"), np.zeros(TRIALS))
    notes = load_npz(_save(tmp_path / "a.npz", rates=_rates(), **others)).notes
    said = "Lengths (did you mean lengths?), W, choice (did you mean choices?), inputs (did you mean externalinputs?), targets, test_rates"
    assert f"keys not used: {said}" in notes


@pytest.mark.parametrize("times", [np.zeros(6), [0, 5, np.nan, 15, 20, 25], [0, 5, np.inf, 15, 20, 25]])
def test_times_that_tell_no_drift_are_not_used_and_named(tmp_path, times):
    recording = load_npz(_save(tmp_path / "a.npz", spikes=_spikes(), times=np.array(times)))
    assert recording.trial_times_s is None
    assert any(note.startswith("times not used") for note in recording.notes)


def test_padding_with_zeros_is_no_silence(tmp_path):
    rng = np.random.default_rng(0)
    lengths = np.array([60, 35, 48, 60, 30, 52])
    inside = (np.arange(60) < lengths[:, None])[:, :, None]
    for key, values in (("spikes", rng.poisson(0.5, size=(6, 60, 8))), ("rates", np.tanh(rng.normal(size=(6, 60, 8))))):
        path = _save(tmp_path / f"{key}.npz", **{key: values * inside})
        found = load_npz(path)
        ends = lengths - found.lengths.numpy()
        assert (ends >= 0).all()  # but for samples that are silent by chance
        assert ends.max() <= 1
        assert any("taken as padding" in note for note in found.notes)
        given = load_npz(_save(tmp_path / "given.npz", **{key: values * inside, "lengths": np.full(6, 60)}))
        assert given.lengths.tolist() == [60] * 6
        with pytest.raises(UserError, match=r"1 trials of zeros throughout(?s:.*)lengths"):
            load_npz(_save(tmp_path / "empty.npz", **{key: values * (np.arange(6) != 2)[:, None, None]}))
    relu = load_npz(path, activation="relu", range_tolerance=9)  # its neurons may all be silent
    assert relu.lengths.tolist() == [60] * 6
    assert any("taken as activity" in note for note in relu.notes)
    # Few spikes, or a population that pauses as long again and again, say nothing.
    sparse = rng.poisson(0.02, size=(6, 60, 8)) * inside
    assert load_npz(_save(tmp_path / "a.npz", spikes=sparse)).lengths.tolist() == [60] * 6
    pausing = rng.poisson(0.5, size=(6, 60, 8)) * (np.arange(60) % 20 < 10)[:, None]
    assert load_npz(_save(tmp_path / "b.npz", spikes=pausing)).lengths.tolist() == [60] * 6


def test_findrs_convention(tmp_path):
    spikes = _spikes().astype(float)
    lengths = np.array([9, 4, 7, 9, 2, 8])
    for trial, length in enumerate(lengths):
        spikes[trial, length:] = np.nan
    inputs = np.where(np.isnan(spikes[:, :, :2]), np.nan, 1.0)
    choices, times = np.array([0, 1, 1, 0, 1, 0]), 10.0 * np.arange(TRIALS)
    arrays = {"spikes": spikes, "externalinputs": inputs, "choices": choices, "times": times}
    recording = load_npz(_save(tmp_path / "a.npz", lengths=lengths, **arrays), tau_s=0.2, bin_s=0.02)
    assert (recording.kind, recording.activation, recording.bin_s) == ("spikes", "softplus", 0.02)
    assert recording.alpha == pytest.approx(0.1)
    assert recording.lengths.tolist() == lengths.tolist()
    assert torch.isfinite(recording.activity).all()
    assert float(recording.activity.sum()) == np.nansum(spikes)
    assert float(recording.inputs.sum()) == np.nansum(inputs)
    assert recording.choices.tolist() == choices.tolist()
    assert recording.trial_times_s.tolist() == times.tolist()
    # The same file without lengths: they are read off the NaN.
    inferred = load_npz(_save(tmp_path / "b.npz", **arrays))
    assert inferred.lengths.tolist() == lengths.tolist()
    assert torch.equal(inferred.activity, recording.activity)
    assert any("inferred" in note for note in inferred.notes)


def test_padding_changes_nothing(tmp_path):
    rates, lengths = _rates(), np.array([5, 6, 7, 8, 9, 2])
    plain = load_npz(_save(tmp_path / "a.npz", rates=rates, lengths=lengths))
    rubbish = rates.copy()
    for trial, length in enumerate(lengths):
        rubbish[trial, length:] = [1e9, -1e9, np.nan, np.inf]
    assert torch.equal(load_npz(_save(tmp_path / "b.npz", rates=rubbish, lengths=lengths)).activity, plain.activity)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, bool])
def test_counts_of_any_type(tmp_path, dtype):
    recording = load_npz(_save(tmp_path / "a.npz", spikes=_spikes().astype(dtype)))
    assert np.array_equal(recording.activity.numpy(), _spikes().astype(dtype).astype(np.float32))


def test_noisy_and_saturated_rates_pass(tmp_path):
    noisy = np.sign(_rates()) + 0.3 * np.random.default_rng(0).normal(size=(TRIALS, STEPS, NEURONS))
    assert load_npz(_save(tmp_path / "a.npz", rates=noisy)).n_neurons == NEURONS
    saturated = np.sign(_rates()).astype(np.float32)
    assert float(load_npz(_save(tmp_path / "b.npz", rates=saturated)).activity.abs().min()) == 1
    far = load_npz(_save(tmp_path / "c.npz", rates=20 * np.abs(noisy)))
    with pytest.raises(UserError, match=r"range of tanh(?s:.*)lrrnn.scale=auto"):
        require_in_range(far)
    assert not load_npz(tmp_path / "c.npz", activation="softplus").out_of_range
    assert not load_npz(tmp_path / "c.npz", range_tolerance=100).out_of_range


def _with(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(float)
    changed[1, 2, 3] = value
    return changed


@pytest.mark.parametrize("rates", [30 * np.abs(_rates()), _with(_rates(), 1e6), 1e-12 * _rates()])
def test_rates_out_of_the_range_are_refused_where_they_may_have_no_scale(tmp_path, rates):
    with pytest.raises(UserError, match=r"in the range of tanh(?s:.*)lrrnn.scale=auto"):
        require_in_range(load_npz(_save(tmp_path / "a.npz", rates=rates)))


def test_calcium_is_no_tanh(tmp_path):
    """Transients that decay: mostly near 0, up to 4.9. Mean square alone says nothing against tanh."""
    rng = np.random.default_rng(0)
    starts = rng.uniform(size=(20, 80, 12)) < 0.02
    dff = np.zeros(starts.shape)
    for t in range(80):
        dff[:, t] = (0.8 * dff[:, t - 1] if t else 0) + starts[:, t]
    dff += 0.03 * rng.normal(size=dff.shape)
    for peak in (1.8, 3.0, 4.9):
        path = _save(tmp_path / "a.npz", rates=dff * peak / dff.max())
        with pytest.raises(UserError, match=r"range of tanh(?s:.*)relu or softplus"):
            require_in_range(load_npz(path))
        assert not load_npz(path, activation="relu").out_of_range
        assert not load_npz(path, range_tolerance=2).out_of_range
    assert not load_npz(_save(tmp_path / "b.npz", rates=dff / dff.max())).out_of_range


# --- npz: what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"activity": _rates()}, "`rates` or `spikes`.*activity"),
        ({}, "nothing"),
        ({"rates": _rates(), "spikes": _spikes()}, "both"),
        ({"rates": _rates()[0]}, r"axes \(trials, time, neurons\).*\(9, 4\)"),
        ({"rates": _rates()[None]}, "axes"),
        ({"rates": np.zeros((0, 5, 3))}, "not empty"),
        ({"rates": _rates().astype(complex)}, "real numbers"),
        ({"rates": np.full((2, 3, 4), "x")}, "real numbers"),
        ({"rates": _with(_rates(), np.nan)}, "1 NaN"),
        ({"rates": _with(_rates(), np.inf)}, "1 NaN or infinite"),
        ({"rates": np.full((6, 9, 4), 0.5)}, "never varies"),
        ({"rates": np.full((6, 9, 4), np.nan)}, "NaN only"),
        ({"spikes": _spikes() - 1}, "smallest value of -1"),
        ({"spikes": _rates()**2}, "fractions"),
        ({"rates": _rates(), "lengths": np.array([9, 9, 9])}, "6 trials"),
        ({"rates": _rates(), "lengths": np.array([9, 9, 9, 9, 9, 10])}, "2 to 9"),
        ({"rates": _rates(), "lengths": np.array([9, 9, 9, 9, 9, 1])}, "2 to 9"),
        ({"rates": _rates(), "lengths": np.full(6, 8.5)}, "whole numbers"),
        ({"rates": _rates(), "externalinputs": np.ones((6, 8, 2))}, "externalinputs of shape"),
        ({"rates": _rates(), "externalinputs": _with(np.ones((6, 9, 4)), np.nan)}, "finite values in inputs"),
        ({"rates": _rates(), "latents": np.ones((5, 9, 2))}, "latents of shape"),
        ({"rates": _rates(), "latents": np.ones((6, 9, 2)), "MBD": np.ones((4, 5))}, "2 or 3 columns"),
        ({"rates": _rates(), "latents": np.ones((6, 9, 2)), "MBD": np.ones((3, 2))}, "4 recorded neurons"),
        ({"rates": _rates(), "N": np.full((4, 2), np.nan)}, "finite values in N"),
        ({"rates": _rates(), "latents": np.ones((6, 9, 2)), "N": np.ones((4, 3))}, "rank 2"),
        ({"rates": _rates(), "potentials": np.ones((6, 9, 2))}, "potentials"),
        ({"rates": _rates(), "choices": np.ones(5)}, "choices"),
        ({"rates": _rates(), "times": np.ones(5)}, "times"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_recording(tmp_path, arrays, words):
    path = _save(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=f"(?s){words}"):
        load_npz(path)


class _Trap:
    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_pickles_are_never_opened(tmp_path):
    trap = _Trap()
    trap.place = tmp_path / "sprung"
    ragged = np.empty(2, dtype=object)
    ragged[:] = [trap, np.ones((3, 4))]
    path = _save(tmp_path / "a.npz", rates=ragged)
    with pytest.raises(UserError, match="object array"):
        load_npz(path)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(trap))
    with pytest.raises(UserError, match="unknown format"):
        load_npz(tmp_path / "b.npz")
    assert not trap.place.exists()


def test_a_small_file_with_huge_arrays_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, rates=np.zeros((1000, 100, 100), dtype=np.float32))
    assert path.stat().st_size < 1e6
    with pytest.raises(UserError, match=r"0\.01 GB"):
        load_npz(path, max_gigabytes=0.01)
    # A header that announces more than the file holds.
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive, archive.open("rates.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**5, 10)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(UserError, match="header"):
        load_npz(tmp_path / "liar.npz")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_npz(tmp_path, share):
    whole = _save(tmp_path / "a.npz", rates=_rates()).read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError):
        load_npz(tmp_path / "b.npz")


def test_damaged_npz(tmp_path):
    content = bytearray(_save(tmp_path / "a.npz", rates=_rates()).read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_npz(tmp_path / "b.npz")


def test_a_name_twice_and_headers_that_are_no_headers_are_refused(tmp_path):
    path = _save(tmp_path / "a.npz", rates=_rates())
    with zipfile.ZipFile(path) as archive:
        member = archive.read("rates.npy")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("rates.npy", member)
    with pytest.raises(UserError, match="rates twice"):
        load_npz(path)
    for text in (b"{" * 118, b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3, 4), }".ljust(118)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rates.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text)
        with pytest.raises(UserError, match="cannot be read"):
            load_npz(path)


@pytest.mark.parametrize("more", [{}, {"lengths": np.ones(40)}])
def test_one_sample_a_trial_is_told_what_to_do_and_that_works(tmp_path, more):
    x = np.tanh(np.random.default_rng(0).normal(size=(40, 1, 3)))
    np.savez(tmp_path / "a.npz", rates=x, **more)
    with pytest.raises(
        UserError, match=r"at least 2 samples in a trial; got 1 in each of 40\.\n.*x\.reshape\(n, T, K\)"
    ):
        load_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", rates=x.reshape(4, 10, 3))
    assert load_npz(tmp_path / "a.npz").lengths.tolist() == [10] * 4


@pytest.mark.parametrize("fill", ["last", -1.0])
def test_rates_held_or_filled_at_the_trials_ends_are_padding(tmp_path, fill):
    rates, lengths = np.repeat(_rates(), 4, axis=1)[:, ::4][:, [*range(STEPS)] * 3], np.array([27, 10, 12, 27, 20, 15])
    for row, length in zip(rates, lengths):
        row[length:] = row[length - 1] if fill == "last" else fill
    recording = load_npz(_save(tmp_path / "a.npz", rates=rates))
    assert recording.lengths.tolist() == lengths.tolist()
    assert any("every neuron stays the same at the end of 4 trials" in note for note in recording.notes)


@pytest.mark.parametrize("inputs", [False, True])
def test_trials_at_rest_throughout_or_while_inputs_change_are_activity(tmp_path, inputs):
    rates, arrays = _rates(), {}
    rates[:2] = rates[:2, :1]
    if inputs:
        rates[2:, 1:] = rates[2:, :1]
        arrays = {"externalinputs": np.random.default_rng(0).normal(size=(TRIALS, STEPS, 1))}
    recording = load_npz(_save(tmp_path / "a.npz", rates=rates, **arrays))
    assert recording.lengths.tolist() == [STEPS] * TRIALS


def test_neurons_that_are_nan_while_others_are_not_are_named(tmp_path):
    rates = _rates()
    rates[2:, :, 3] = np.nan
    with pytest.raises(UserError, match=r"36 NaN .* in neurons 3 alone(?s:.*)eave out these neurons"):
        load_npz(_save(tmp_path / "a.npz", rates=rates))


def test_rates_that_are_nothing_of_the_range_are_refused_and_no_warning_is_printed(tmp_path, recwarn):
    with pytest.raises(UserError, match=r"rates from 1e-15 to 1e.15; got .*e-31(?s:.*)escale the rates"):
        load_npz(_save(tmp_path / "a.npz", rates=1e-30 * _rates()))
    for scale in (1e-30, 1e30):
        with pytest.raises(UserError, match=r"[Rr]escale the rates"):
            load_npz(_save(tmp_path / "b.npz", rates=scale * abs(_rates())), activation="relu")
    assert load_npz(_save(tmp_path / "b.npz", rates=1e-9 * abs(_rates())), activation="relu").n_neurons == NEURONS
    rates = _rates()
    rates[:, -3:, 1] = np.inf
    with pytest.raises(UserError, match="finite rates"):
        load_npz(_save(tmp_path / "c.npz", rates=rates))
    assert not recwarn.list
