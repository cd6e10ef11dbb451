"""Tables of text beside other files, and by themselves."""

import numpy as np
import pytest
import torch

from connector.data.arrays import load_arrays
from connector.data.readers import recognise_format
from connector.data.text_table import read_table
from connector.errors import UserError

DRAW = np.random.default_rng(2)


def test_columns_are_numbers_or_texts_and_empty_fields_are_no_values(tmp_path):
    (tmp_path / "t.csv").write_text('\ufeffstart,cue,note\r\n0.5,left,\r\n,right,"a, b"\r\nNA,,c\r\n', encoding="utf-8")
    found = read_table(tmp_path / "t.csv", 1.0)
    np.testing.assert_array_equal(found["start"], [0.5, np.nan, np.nan])
    assert found["cue"].tolist() == ["left", "right", ""]
    assert found["note"].tolist() == ["", "a, b", "c"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_traces_without_names_are_one_array(tmp_path, delimiter):
    x = DRAW.normal(size=(60, 4))
    np.savetxt(tmp_path / "F.txt", x, delimiter=delimiter)
    assert recognise_format(tmp_path / "F.txt") == "table"
    recording = load_arrays(tmp_path / "F.txt", activity="F", axes=["time", "neuron"], piece_s=0.1, bin_s=0.01)
    torch.testing.assert_close(recording.activity.flatten(0, 1), torch.as_tensor(x, dtype=torch.float32))


def test_traces_with_names_are_columns_and_trials_may_be_a_table_beside(tmp_path):
    x = DRAW.normal(size=(400, 3))
    header = "time,cell 1,cell 2,cell 10"
    np.savetxt(tmp_path / "F.csv", np.c_[np.arange(400) * 0.05, x], delimiter=",", header=header, comments="")
    rows = "".join(f"{i}\t{side}\n" for i, side in zip(range(0, 18, 2), ("left", "right", "") * 3))
    (tmp_path / "trials.tsv").write_text("onset_s\tchoice\n" + rows)
    recording = load_arrays(
        [tmp_path / "F.csv", tmp_path / "trials.tsv"], activity="cell*", axes=["neuron", "time"], bin_s=0.05,
        trial_starts="onset_s", stop_s=1, choices="trials:choice",
    )  # fmt: skip
    torch.testing.assert_close(
        recording.activity, torch.as_tensor([x[i : i + 20] for i in range(0, 360, 40)], dtype=torch.float32)
    )
    np.testing.assert_array_equal(recording.choices, [0, 1, np.nan] * 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3\n", "1 in row 3"),
        ("a,b\n", "rows below"),
        ("a,a\n1,2\n", "a more than once"),
        ("a,b\n1,\x00\n", "unknown format"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        load_arrays(tmp_path / "t.csv", activity="a")


def test_prose_is_no_table(tmp_path):
    (tmp_path / "readme.txt").write_text("Recorded in June, by hand.\nNothing else.\n")
    assert recognise_format(tmp_path / "readme.txt") == "unknown"
