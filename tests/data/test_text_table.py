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


def _csv(path, names, x, index=None, delimiter=","):
    """A table as pandas writes it."""
    rows = [[str(value) for value in row] for row in x.tolist()]
    if index is not None:
        names, rows = ["", *names], [[str(i), *row] for i, row in zip(index, rows)]
    path.write_text("".join(delimiter.join(row) + "\n" for row in ([str(n) for n in names], *rows)))
    return read_table(path, 1.0)


X, COUNTS = DRAW.normal(size=(20, 8)), DRAW.poisson(0.4, size=(20, 8))
TIMES = [round(0.1 * i, 3) for i in range(-2, 6)]


@pytest.mark.parametrize(
    ("names", "x", "index", "more"),
    [
        (range(8), X, None, {}),
        (range(8), COUNTS, None, {}),
        (range(1, 9), X, None, {}),
        (range(3), X[:, :3], None, {}),
        (range(8), X, range(20), {}),
        (range(2), COUNTS[:, :2], range(1, 21), {}),
        ([12, 57, 93], X[:, :3], range(20), {"columns": [12, 57, 93]}),
        (range(8), X, np.arange(20) / 50, {"index": np.arange(20) / 50}),
        (TIMES, X, None, {"time": TIMES}),
        (TIMES, X, range(20), {"time": TIMES}),
        (TIMES, X, [f"cell {i}" for i in range(20)], {"time": TIMES, "index": [f"cell {i}" for i in range(20)]}),
    ],
)
def test_numbers_that_name_the_columns_are_no_samples(tmp_path, names, x, index, more):
    found = _csv(tmp_path / "a.csv", names, x, index)
    assert set(found) == {"a", *more}
    for key, value in (more | {"a": x}).items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize(
    "x",
    [
        np.array([[0, 1, 2], [1, 0, 0], [0, 0, 4]]),  # counts of three neurons, by chance
        np.arange(40).reshape(5, 8),
        np.outer(np.arange(1, 4), np.arange(8)),
        np.linspace(0, 1, 40).reshape(5, 8),
        np.r_[[[0.0, 1, 2, 3]], X[:, :4]],  # as floats are written, unlike names
        np.r_[[np.sort(X[0])], X],
        np.r_[[0.01 * np.arange(8) + 1e-5 * np.arange(8) ** 2], X],  # nearly a line
        np.r_[[[0.1, 0.2, 0.3]], X[:, :3]],
    ],
)
def test_a_first_row_of_data_is_kept(tmp_path, x):
    (tmp_path / "a.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in x.tolist()))
    np.testing.assert_array_equal(read_table(tmp_path / "a.csv", 1.0)["a"], x)
    np.savetxt(tmp_path / "b.csv", x, delimiter=",")
    np.testing.assert_array_equal(read_table(tmp_path / "b.csv", 1.0)["b"], x)


def test_a_first_column_without_a_name_is_an_index_unless_it_numbers_the_rows(tmp_path):
    assert list(_csv(tmp_path / "a.csv", ["n0", "n1"], X[:, :2], range(20))) == ["n0", "n1"]
    found = _csv(tmp_path / "a.csv", ["n0", "n1"], X[:, :2], range(5, 25))
    np.testing.assert_array_equal(found["index"], np.arange(5, 25))
    found = _csv(tmp_path / "a.csv", ["time", *range(8)], np.c_[np.arange(20) / 50, X])
    np.testing.assert_array_equal(found["time"], np.arange(20) / 50)
    np.testing.assert_array_equal(found["a"], X)


def test_a_pandas_table_is_read_without_its_names(tmp_path):
    _csv(tmp_path / "a.csv", range(8), X, range(20))
    recording = load_arrays(tmp_path / "a.csv", activity="a", axes=["time", "neuron"], piece_s=0.1, bin_s=0.01)
    torch.testing.assert_close(recording.activity.flatten(0, 1), torch.as_tensor(X, dtype=torch.float32))


def test_false_and_true_are_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("u0,good,cue\nFalse,TRUE,true\nTrue,,left\n")
    found = read_table(tmp_path / "a.csv", 1.0)
    np.testing.assert_array_equal(found["u0"], [0, 1])
    np.testing.assert_array_equal(found["good"], [1, np.nan])
    assert found["cue"].tolist() == ["true", "left"]


@pytest.mark.parametrize("names", [None, "c0;c1;c2", "0;1;2"])
def test_commas_between_semicolons_are_decimal(tmp_path, names):
    rows = "".join(";".join(str(value).replace(".", ",") for value in row) + "\n" for row in X[:, :3].tolist())
    (tmp_path / "a.csv").write_text(rows if names is None else f"{names}\n{rows}")
    found = read_table(tmp_path / "a.csv", 1.0)
    if names == "c0;c1;c2":
        assert list(found) == ["c0", "c1", "c2"]
        found = {"a": np.stack(list(found.values()), 1)}
    np.testing.assert_array_equal(found["a"], X[:, :3])


def test_semicolons_within_fields_do_not_split(tmp_path):
    (tmp_path / "a.csv").write_text('cue,"x;y"\na;b,1\n"c;d",2\n')
    assert {key: x.tolist() for key, x in read_table(tmp_path / "a.csv", 1.0).items()} == {
        "cue": ["a;b", "c;d"], "x;y": [1, 2]
    }  # fmt: skip


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("txt", " "), ("dat", "\t"), ("txt", "  ")])
@pytest.mark.parametrize("header", ["", "c0{0}c1{0}c2", "made by hand, in June\nc0{0}c1{0}c2", "by hand{0}in June"])
def test_what_savetxt_writes_is_read(tmp_path, ending, delimiter, header):
    path = tmp_path / f"a.{ending}"
    np.savetxt(path, X[:, :3], delimiter=delimiter, header=header.format(delimiter))
    assert recognise_format(path) == "table"
    found = read_table(path, 1.0)
    if "c0" in header:
        assert list(found) == ["c0", "c1", "c2"]
        found = {"a": np.stack(list(found.values()), 1)}
    np.testing.assert_array_equal(found["a"], X[:, :3])


def test_a_column_of_numbers_and_lines_longer_than_the_head_are_tables(tmp_path):
    wide = DRAW.normal(size=(3, 100))
    for name, x in (("times", np.arange(5) / 3), ("wide", wide)):
        np.savetxt(tmp_path / f"{name}.txt", x)
        assert recognise_format(tmp_path / f"{name}.txt") == "table"
        np.testing.assert_array_equal(read_table(tmp_path / f"{name}.txt", 1.0)[name].squeeze(), x)


def test_a_hash_before_the_first_name_is_no_part_of_it(tmp_path):
    (tmp_path / "a.csv").write_text("#id,cue\na,left\nb,right\n")
    assert list(read_table(tmp_path / "a.csv", 1.0)) == ["id", "cue"]
    (tmp_path / "a.csv").write_text("# by hand,in June\nid,rate\n1,2\n")
    assert list(read_table(tmp_path / "a.csv", 1.0)) == ["id", "rate"]


def test_utf_16_is_read_by_its_mark_and_other_bytes_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("rate,\u0394F\n1,2\n3,4\n", encoding="utf-16")
    assert recognise_format(path) == "table"
    np.testing.assert_array_equal(read_table(path, 1.0)["\u0394F"], [2, 4])
    path.write_bytes("rate,\u00b5V\n1,2\n3,4\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_table(path, 1.0)


def test_texts_with_numbers_beside_them_are_no_units(tmp_path):
    (tmp_path / "a.csv").write_text("onset,cue\n,left\n2,right\n3,left\n")
    assert read_table(tmp_path / "a.csv", 1.0)["cue"].tolist() == ["left", "right", "left"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3\n", "1 in row 3"),
        ("time,c0,n\ns,Hz,\n0,1,2\n1,2,3\n", "a line of texts: s, Hz.*\n?.*[Dd]elete this line"),
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
