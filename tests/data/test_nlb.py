"""Files of the Neural Latents Benchmark: every count lands where its key, trial, bin and neuron say."""

import h5py
import numpy as np
import pytest
import torch

from connector.data.nlb import load_nlb
from connector.errors import UserError

TRIALS, STEPS, HELDIN, HELDOUT = 4, 10, 3, 2


def tensors(prefix: str, trials: int = TRIALS, seed: int = 0) -> dict[str, np.ndarray]:
    """As nlb_tools saves them: float32."""
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}_spikes_{kind}": rng.poisson(0.8, size=(trials, STEPS, width)).astype(np.float32)
        for kind, width in (("heldin", HELDIN), ("heldout", HELDOUT))
    }


def write(path, arrays: dict, group: str = ""):
    with h5py.File(path, "a") as file:
        for key, value in arrays.items():
            file[f"{group}/{key}" if group else key] = value
    return path


def test_training_trials_with_the_held_out_neurons_behind_the_held_in_ones(tmp_path):
    train, evaluation = tensors("train"), tensors("eval", 2, seed=1)
    extra = {
        "train_behavior": np.zeros((TRIALS, STEPS, 2)),
        "train_spikes_heldin_forward": np.ones((TRIALS, 4, HELDIN)),
    }
    path = write(tmp_path / "a.h5", train | evaluation | extra)
    recording = load_nlb(path)
    joined = np.concatenate([train["train_spikes_heldin"], train["train_spikes_heldout"]], axis=2)
    assert np.array_equal(recording.activity.numpy(), joined)
    assert (recording.kind, recording.bin_s, recording.activation) == ("spikes", 0.005, "softplus")
    assert recording.alpha == pytest.approx(0.05)
    assert recording.lengths.tolist() == [STEPS] * TRIALS
    assert recording.neuron_names == ("held-in 1", "held-in 2", "held-in 3", "held-out 1", "held-out 2")
    assert recording.choices is recording.trial_times_s is recording.inputs is None
    assert any("train_behavior, train_spikes_heldin_forward" in note for note in recording.notes)
    rate = joined.mean() / 0.005
    assert any(f"mean rate {rate:.2g} Hz" in note for note in recording.notes)

    apart = load_nlb(path, heldout=False)
    assert np.array_equal(apart.activity.numpy(), train["train_spikes_heldin"])
    later = load_nlb(path, split="eval")
    assert np.array_equal(later.activity[:, :, :HELDIN].numpy(), evaluation["eval_spikes_heldin"])
    every = load_nlb(path, split="all")
    assert torch.equal(every.activity, torch.cat([recording.activity, later.activity]))


def test_names_that_are_no_text_are_left_alone(tmp_path):
    path = write(tmp_path / "a.h5", tensors("train"))
    with h5py.File(path, "a") as file:
        file[b"\xff behaviour"] = np.zeros(3)
        file[b"z\xfe/\xff"] = np.zeros(3)
        file["train_behavior"] = np.zeros(3)
    (said,) = [note for note in load_nlb(path).notes if "not used" in note]
    assert "train_behavior" in said
    assert "\ufffd behaviour" in said


def test_without_held_out_neurons(tmp_path):
    evaluation = {"eval_spikes_heldin": tensors("eval")["eval_spikes_heldin"]}
    path = write(tmp_path / "a.h5", tensors("train") | evaluation)
    assert load_nlb(path, split="eval").n_neurons == HELDIN
    assert load_nlb(path, split="all").n_neurons == HELDIN  # both splits have the held-in ones only
    with pytest.raises(UserError, match=r"eval_spikes_heldout(?s:.*)data\.heldout=false"):
        load_nlb(path, split="eval", heldout=True)


@pytest.mark.parametrize("rebin", [2, 4])
def test_bins_are_summed(tmp_path, rebin):
    train = tensors("train")
    recording = load_nlb(write(tmp_path / "a.h5", train), rebin=rebin, bin_s=0.005, tau_s=0.05, heldout=False)
    counts = train["train_spikes_heldin"]
    steps = STEPS // rebin
    expected = np.stack([counts[:, i * rebin : (i + 1) * rebin].sum(1) for i in range(steps)], axis=1)
    assert np.array_equal(recording.activity.numpy(), expected)
    assert recording.bin_s == pytest.approx(0.005 * rebin)
    assert recording.alpha == pytest.approx(0.1 * rebin)
    assert any("too few" in note for note in recording.notes) == (STEPS % rebin > 0)


def test_ragged_trials_padded_at_the_end_or_at_the_front(tmp_path):
    counts = tensors("eval")["eval_spikes_heldin"]
    ends, fronts = counts.copy(), counts.copy()
    lengths = [10, 7, 2, 5]
    for trial, length in enumerate(lengths):
        ends[trial, length:] = np.nan
        fronts[trial, : STEPS - length] = np.nan
    one = load_nlb(write(tmp_path / "a.h5", {"eval_spikes_heldin": ends}), split="eval")
    other = load_nlb(write(tmp_path / "b.h5", {"eval_spikes_heldin": fronts}), split="eval")
    assert one.lengths.tolist() == other.lengths.tolist() == lengths
    for trial, length in enumerate(lengths):
        assert np.array_equal(one.activity[trial, :length].numpy(), counts[trial, :length])
        assert np.array_equal(other.activity[trial, :length].numpy(), counts[trial, STEPS - length :])
    assert not one.activity[~one.mask].any()
    assert not other.activity[~other.mask].any()
    assert any("3 trials padded with NaN at the front" in note for note in other.notes)
    half = load_nlb(tmp_path / "a.h5", split="eval", rebin=1, heldout=False).trials(torch.tensor([0, 1, 3]))
    assert half.lengths.tolist() == [10, 7, 5]
    with pytest.raises(UserError, match="1 shorter ones"):
        load_nlb(tmp_path / "a.h5", split="eval", rebin=2)
    write(tmp_path / "c.h5", {"eval_spikes_heldin": ends[[0, 1, 3]]})
    twos = load_nlb(tmp_path / "c.h5", split="eval", rebin=2)
    assert twos.lengths.tolist() == [5, 3, 2]
    assert np.array_equal(twos.activity[1, :3].numpy(), counts[1, :6].reshape(3, 2, HELDIN).sum(1))


def test_several_data_sets_in_groups(tmp_path):
    path = write(tmp_path / "a.h5", tensors("train"), "mc_maze")
    assert load_nlb(path).name == "a mc_maze"
    write(path, tensors("train", seed=5), "mc_rtt")
    with pytest.raises(UserError, match=r"mc_maze, mc_rtt(?s:.*)data\.group"):
        load_nlb(path)
    with pytest.raises(UserError, match=r"among mc_maze, mc_rtt; got 'area2'"):
        load_nlb(path, group="area2")
    second = load_nlb(path, group="mc_rtt", heldout=False)
    assert np.array_equal(second.activity.numpy(), tensors("train", seed=5)["train_spikes_heldin"])


GOOD = tensors("train")["train_spikes_heldin"]


def changed(index, value):
    array = GOOD.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"train_spikes_heldin": GOOD}, {"split": "eval"}, "eval_spikes_heldin.*train_spikes_heldin.*data.split"),
        ({"train_spikes_heldin": GOOD}, {"split": "test"}, "data.split among"),
        ({"train_spikes_heldin": GOOD[0]}, {}, "shape"),
        ({"train_spikes_heldin": changed((1, 2, 0), np.nan)}, {}, "1 NaN entries"),
        ({"train_spikes_heldin": changed((1, 2), np.nan)}, {}, "1 trials that are NaN"),
        ({"train_spikes_heldin": changed(2, np.nan)}, {}, "1 trials that are NaN"),
        ({"train_spikes_heldin": changed((1, 2, 0), 0.5)}, {}, "whole numbers"),
        ({"train_spikes_heldin": changed((1, 2, 0), -1)}, {}, "whole numbers"),
        ({"train_spikes_heldin": 0 * GOOD}, {}, "none in the whole file"),
        ({"train_spikes_heldin": GOOD, "train_spikes_heldout": GOOD[:, :5]}, {}, "same trials and bins"),
        ({"train_spikes_heldin": GOOD, "eval_spikes_heldin": GOOD[:, :5]}, {"split": "all"}, "data.split=train"),
        ({"train_spikes_heldin": GOOD}, {"rebin": 0}, "data.rebin"),
        ({"train_spikes_heldin": GOOD}, {"rebin": 40}, "time constant"),
        ({"train_spikes_heldin": GOOD}, {"rebin": 11}, "at least 2 bins"),
        ({"train_spikes_heldin": GOOD}, {"max_gigabytes": 1e-9}, "max_gigabytes"),
        ({"train_spikes_heldin": GOOD}, {"activation": "exp"}, "exp"),
        ({"train_spikes_heldin": GOOD}, {"group": "mc_maze"}, "no groups"),
    ],
)
def test_what_is_refused(tmp_path, arrays, options, words):
    with pytest.raises(UserError, match=f"(?s){words}") as refused:
        load_nlb(write(tmp_path / "a.h5", arrays), **options)
    assert len(str(refused.value).splitlines()) <= 2


def test_trials_padded_with_zeros_end_where_their_spikes_do(tmp_path):
    lengths = np.array([80, 30, 40, 80])
    counts = np.random.default_rng(0).poisson(0.5, size=(4, 80, 6)).astype(np.float32)
    counts[:, :, 0] = 1
    counts[np.arange(80)[None, :] >= lengths[:, None]] = 0
    recording = load_nlb(write(tmp_path / "a.h5", {"train_spikes_heldin": counts}))
    assert recording.lengths.tolist() == lengths.tolist()
    assert any("at the end of 2 trials: taken as padding, 30 to 80 bins" in note for note in recording.notes)
