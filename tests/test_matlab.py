"""MATLAB files of both kinds hold the same values; the v7.3 ones are written here in the layout that MATLAB writes."""

import h5py
import numpy as np
import pytest
from matlab73 import HEADER, write_matlab73
from scipy.io import savemat

from connector.data.formats import recognise_format
from connector.data.matlab import read_matlab
from connector.errors import UserError


def cells(*items, shape=None) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape or (len(items), 1), order="F")


CONTENT = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "number": np.float64(7.5),
    "bytes": np.array([[250, 3]], dtype=np.uint8),
    "yes": np.array([[True, False]]),
    "word": "dmFC",
    "nothing": np.zeros((0, 0)),
    "cell": cells("mPFC", np.array([[1.0, 2.0]]), cells(np.float64(1), "b"), shape=(3, 1)),
    "square": cells(np.float64(1), np.float64(2), np.float64(3), np.float64(4), shape=(2, 2)),
    "record": {"L": np.array([[0.0, 0.1]]), "R": np.zeros((0, 0)), "deep": {"x": np.float64(3)}},
}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, str):
        return a == b
    return np.array_equal(a, b) and np.shape(a) == np.shape(b)


EXPECTED = {
    "matrix": [[0, 1, 2], [3, 4, 5]],
    "number": [[7.5]],
    "bytes": [[250, 3]],
    "yes": [[1, 0]],
    "word": "dmFC",
    "nothing": np.zeros((0, 0)),
    "cell": ["mPFC", np.array([[1.0, 2.0]]), [np.array([[1.0]]), "b"]],
    "square": [np.array([[x]]) for x in (1.0, 2.0, 3.0, 4.0)],  # column by column, as MATLAB counts
    "record": {"L": np.array([[0, 0.1]]), "R": np.zeros((0, 0)), "deep": {"x": np.array([[3.0]])}},
}


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_values_of_every_kind(tmp_path, version):
    path = tmp_path / "a.mat"
    if version == "v5":
        savemat(path, CONTENT)
    else:
        write_matlab73(path, CONTENT)
    assert recognise_format(path) == {"v5": "matlab5", "v7.3": "matlab73"}[version]
    read = read_matlab(path, (*CONTENT, "absent"))
    assert read.keys() == CONTENT.keys()
    for name, expected in EXPECTED.items():
        expected = np.array(expected) if name in ("matrix", "number", "bytes", "yes") else expected
        assert same(expected, read[name]), (name, read[name])


def test_struct_arrays(tmp_path):
    records = [{"x": np.float64(i), "word": "ab"[i]} for i in range(2)]
    expected = [{"x": np.array([[float(i)]]), "word": "ab"[i]} for i in range(2)]
    path = write_matlab73(tmp_path / "a.mat", {"records": records})
    assert same(read_matlab(path, ("records",))["records"], expected)
    array = np.array([(np.float64(i), "ab"[i]) for i in range(2)], dtype=[("x", object), ("word", object)])
    savemat(tmp_path / "b.mat", {"records": array})
    assert same(read_matlab(tmp_path / "b.mat", ("records",))["records"], expected)


def test_the_first_releases_called_their_hdf5_version_7_0(tmp_path):
    path = write_matlab73(tmp_path / "a.mat", {"x": np.float64(2)})
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.0")
    assert recognise_format(path) == "matlab73"
    assert read_matlab(path, ("x",))["x"].item() == 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_truncated_v73(tmp_path, share):
    whole = write_matlab73(tmp_path / "a.mat", CONTENT).read_bytes()
    (tmp_path / "b.mat").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="cannot be read"):
        read_matlab(tmp_path / "b.mat", tuple(CONTENT))


def test_references_in_a_circle_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        cell = file.create_dataset("x", (1, 1), dtype=h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
        cell[0, 0] = cell.ref
    with open(tmp_path / "a.mat", "r+b") as file:
        file.write(HEADER)
    with pytest.raises(UserError, match="cannot be read"):
        read_matlab(tmp_path / "a.mat", ("x",))
