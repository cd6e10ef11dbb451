"""NWB files of other labs, as they lie on a disk; tests skip where they are not there."""

import os
from pathlib import Path

import pytest
from commands import ROOT

from connector.data.nwb import load_nwb
from connector.data.nwb_listing import described_nwb
from connector.errors import UserError

pytest.importorskip("pynwb", reason="reading NWB needs the extra `nwb`")
FOREIGN = Path(os.environ.get("CONNECTOR_DATA", ROOT.parent / "shared" / "data")) / "foreign"
MOUSE = FOREIGN / "A8604-211122.nwb"
pytestmark = pytest.mark.skipif(not MOUSE.is_file(), reason=f"no {MOUSE}")


def test_a_mouse_that_moves_freely_without_trials():
    lines, command = described_nwb(MOUSE, 1.0)
    assert any("0.028133 to 1087.35" in line for line in lines)
    assert command.splitlines()[0].endswith("data.bin_s=0.05 data.piece_s=2")
    with pytest.raises(UserError, match=r"whose trials are absent(?s:.*)data.table=epochs(?s:.*)data.piece_s=2"):
        load_nwb(MOUSE)
    whole = load_nwb(MOUSE, bin_s=0.05, piece_s=2)
    assert whole.activity.shape == (543, 40, 3)
    assert whole.activity.sum() == 21_330  # of 21,354 spikes, all but those of the last 1.3 s
    awake = load_nwb(MOUSE, bin_s=0.05, piece_s=2, table="epochs", trials={"tags": "wake"}, units={"id": [191, 206]})
    assert awake.activity.shape == (543, 40, 2)
