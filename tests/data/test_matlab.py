"""MATLAB files of both kinds hold the same values; the v7.3 ones are written here in the layout that MATLAB writes."""

import struct

import h5py
import numpy as np
import pytest
from matlab73 import HEADER, cells, write_matlab73
from scipy.io import savemat
from scipy.sparse import csc_matrix

from connector.data.matlab import read_matlab
from connector.data.readers import recognise_format
from connector.errors import UserError

CONTENT = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "number": np.float64(7.5),
    "bytes": np.array([[250, 3]], dtype=np.uint8),
    "yes": np.array([[True, False]]),
    "word": "dmFC",
    "nothing": np.zeros((0, 0)),
    "cell": cells(["mPFC", np.array([[1.0, 2.0]]), cells([np.float64(1), "b"])]),
    "square": cells([np.float64(i) for i in (1, 2, 3, 4)], (2, 2)),
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


def test_sizes_that_a_v5_file_does_not_hold_are_refused_before_the_parser_sees_them(tmp_path):
    """scipy's parser is compiled and trusts the headers: some of these end the process."""
    savemat(tmp_path / "a.mat", {"cell": CONTENT["cell"], "matrix": CONTENT["matrix"]})
    whole = (tmp_path / "a.mat").read_bytes()
    place = whole.index(np.array([5, 8, 3, 1], dtype="<i4").tobytes())  # the tag and the sizes of the cell, 3 x 1
    for sizes in ((2**31 - 1, 1), (-3, 1), (1000, 1000), (4, 1)):
        hurt = whole[: place + 8] + np.array(sizes, dtype="<i4").tobytes() + whole[place + 16 :]
        (tmp_path / "b.mat").write_bytes(hurt)
        with pytest.raises(UserError, match="cannot be read"):
            read_matlab(tmp_path / "b.mat", ("cell",))
        assert np.array_equal(read_matlab(tmp_path / "b.mat", ("matrix",))["matrix"], CONTENT["matrix"])
    nested = np.zeros((1, 1))
    for _ in range(100):
        nested = cells([nested])
    savemat(tmp_path / "c.mat", {"x": nested})
    with pytest.raises(UserError, match="nested"):
        read_matlab(tmp_path / "c.mat", ("x",))


def test_content_that_unpacks_to_more_than_allowed_is_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"x": np.zeros((1000, 2000))}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 50_000
    write_matlab73(tmp_path / "b.mat", {"x": np.zeros((2, 2))})
    with h5py.File(tmp_path / "b.mat", "r+") as file:
        del file["x"]
        file.create_dataset("x", shape=(10**6, 10**6), chunks=(64, 64))
        # One array from many places.
        file["y"] = np.zeros(10**5)
        file.create_dataset("cell", data=np.full((100, 1), file["y"].ref), dtype=h5py.ref_dtype)
    for name, variable in (("a.mat", "x"), ("b.mat", "x"), ("b.mat", "cell")):
        with pytest.raises(UserError, match=r"at most 0\.01 GB"):
            read_matlab(tmp_path / name, (variable,), max_gigabytes=0.01)
    assert read_matlab(tmp_path / "a.mat", ("x",))["x"].shape == (1000, 2000)


def test_objects_and_sparse_matrices_are_no_values_and_do_no_harm_to_those_beside_them(tmp_path):
    def element(kind, content):
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    savemat(tmp_path / "a.mat", {"x": np.arange(3.0), "y": csc_matrix(np.eye(2)), "z": {"y": csc_matrix(np.eye(2))}})
    whole = (tmp_path / "a.mat").read_bytes()
    # A string, as MATLAB's -v7 writes it: flags of class 17 and no sizes, then names and where the object lies.
    place = struct.pack("<IIII", 6, 8, 13, 0) + element(5, struct.pack("<ii", 6, 1)) + element(1, b"")
    place += element(6, struct.pack("<6I", 0xDD000000, 2, 1, 1, 1, 1))
    names = element(1, b"s") + element(1, b"MCOS") + element(1, b"string")
    string = element(14, struct.pack("<IIII", 6, 8, 17, 0) + names + element(14, place))
    (tmp_path / "a.mat").write_bytes(whole[:128] + string + whole[128:])
    found = read_matlab(tmp_path / "a.mat", ("s", "x", "y", "z"))
    assert (found["x"].tolist(), found["y"], found["z"]) == ([[0, 1, 2]], None, {"y": None})
    write_matlab73(tmp_path / "b.mat", {"y": {"data": np.ones(2), "ir": np.arange(2.0), "jc": np.arange(3.0)}})
    with h5py.File(tmp_path / "b.mat", "r+") as file:
        file["y"].attrs["MATLAB_sparse"] = np.uint64(2)
    assert read_matlab(tmp_path / "b.mat", ("y",)) == {"y": None}
