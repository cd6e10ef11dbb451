"""Files of other labs, as they lie on a disk; tests skip where they are not there."""

import os
from pathlib import Path

import pytest
from commands import ROOT

from connector.data.arrays import load_arrays
from connector.data.folds import fold_of
from connector.errors import UserError

FOREIGN = Path(os.environ.get("CONNECTOR_DATA", ROOT.parent / "shared" / "data")) / "foreign"
pytestmark = pytest.mark.skipif(not FOREIGN.is_dir(), reason=f"no files of other labs in {FOREIGN}")


def test_calcium_of_the_cells_that_a_mask_keeps():
    paths = [FOREIGN / "F.npy", FOREIGN / "iscell.npy"]
    options = {"activity": "F", "axes": ["neuron", "time"], "neurons": "iscell/0", "activation": "relu"}
    recording = load_arrays(paths, bin_s=1 / 30, tau=0.5, piece_s=2, **options)
    assert recording.activity.shape == (33, 60, 20)
    assert [len(x) for x in (fold_of(recording).train, fold_of(recording).test)] == [18, 7]
    assert "rms excess" in load_arrays(paths, **options | {"activation": "tanh"}).out_of_range


def test_spike_times_in_cells_within_cells():
    recording = load_arrays(
        FOREIGN / "wmaze_spikes.mat", spike_times="spikes/1/1/*/*/time", bin_s=0.1, stop_s=664, piece_s=2
    )
    assert recording.activity.shape == (299, 20, 35)


def test_one_bin_a_trial():
    for axes, words in ((["trial", "neuron"], "shows no dynamics"), (None, "its 2 axes in their order")):
        with pytest.raises(UserError, match=words):
            load_arrays(FOREIGN / "sample_dat.mat", activity="spike_counts", axes=axes)
    with pytest.raises(UserError, match="targ_angs has one value for each of the 974"):
        load_arrays(FOREIGN / "sample_dat.mat")
