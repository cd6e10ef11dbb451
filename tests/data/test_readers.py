"""The format of a file is recognised by its content, and what no reader takes is refused with the data set that does."""

import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import ROOT
from matlab73 import write_matlab73
from scipy.io import savemat

from connector.data import readers
from connector.data.clicks import load_rat
from connector.data.nlb import load_nlb
from connector.data.npz import load_npz
from connector.data.nwb import load_nwb
from connector.data.readers import READERS as READERS_KNOWN
from connector.data.readers import read_recording, recognise_format
from connector.errors import UserError

TRIALS, STEPS, NEURONS = 6, 9, 4


def _rates() -> np.ndarray:
    return np.tanh(np.random.default_rng(0).normal(size=(TRIALS, STEPS, NEURONS)))


READERS = {"npz": load_npz, "rat": load_rat, "nwb": load_nwb, "nlb": load_nlb}


def files_of_every_format(folder: Path) -> dict[str, Path]:
    """By format: one file each, under names that say something else."""
    import h5py

    paths = {
        name: folder / f"{i}.npz"
        for i, name in enumerate(
            (
                "npz",
                "torch",
                "npy",
                "matlab5",
                "matlab73",
                "nwb",
                "nwb1",
                "nlb",
                "hdf5",
                "lfs",
                "html",
                "empty",
                "unknown",
            )
        )
    }
    np.savez(folder / "a.npz", rates=_rates())
    (folder / "a.npz").rename(paths["npz"])
    torch.save({"W": torch.eye(3)}, paths["torch"])
    np.save(folder / "b.npy", _rates())
    (folder / "b.npy").rename(paths["npy"])
    savemat(folder / "c.mat", {"x": 1.0})
    (folder / "c.mat").rename(paths["matlab5"])
    write_matlab73(paths["matlab73"], {"x": np.float64(1)})
    with h5py.File(paths["nwb"], "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
    for name, key in (("nwb1", "nwb_version"), ("nlb", "mc_maze/train_spikes_heldin"), ("hdf5", "x")):
        with h5py.File(paths[name], "w") as file:
            file[key] = np.zeros(3)
    paths["lfs"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    paths["html"].write_text("\n<!DOCTYPE html><html></html>")
    paths["empty"].write_bytes(b"")
    paths["unknown"].write_text("rates")
    return paths


def test_formats_are_recognised_by_content(tmp_path):
    paths = files_of_every_format(tmp_path)
    for name, path in paths.items():
        assert recognise_format(path) == name
    assert read_recording(paths["npz"], alpha=0.3).alpha == 0.3
    assert read_recording(paths["npz"], "npz").n_trials == TRIALS
    with pytest.raises(UserError, match="options"):
        read_recording(paths["npz"], alhpa=0.3)
    with pytest.raises(UserError, match="a format among"):
        read_recording(paths["npz"], "mat")
    for reader in READERS.values():
        for absent in (tmp_path / "absent.npz", tmp_path):
            with pytest.raises(UserError, match="a file to read"):
                reader(absent)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_another_format_is_refused_with_the_data_set_that_reads_it(tmp_path, reader):
    words = {
        "npz": "data=npz", "torch": "data=rnn", "npy": "data=arrays", "matlab5": "data=rat", "matlab73": "data=rat", "nwb": "data=nwb",
        "nwb1": "NWB 2", "nlb": "data=nlb", "hdf5": "data=arrays", "lfs": "git lfs pull", "html": "download",
        "empty": "again", "unknown": "data=npz",
    }  # fmt: skip
    own = {"npz": {"npz"}, "rat": {"matlab5", "matlab73"}, "nwb": {"nwb"}, "nlb": {"nlb"}}[reader]
    for name, path in files_of_every_format(tmp_path).items():
        with pytest.raises(UserError) as refused:
            READERS[reader](path) if reader != "npz" or name != "npz" else load_npz(path, rank=0, alpha=2)
        assert len(str(refused.value).splitlines()) <= 2
        if name not in own:
            assert words[name].lower() in str(refused.value).lower(), name
            assert path.name in str(refused.value)


def test_truncated_hdf5_is_refused_whatever_it_was(tmp_path):
    import h5py

    with h5py.File(tmp_path / "whole", "w") as file:
        file["train_spikes_heldin"] = np.ones((4, 5, 3))
    whole = (tmp_path / "whole").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="whole"):
            load_nlb(tmp_path / "cut")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    for path in (tmp_path / "pipe.npz", tmp_path / "loop.npz", tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path):
        with pytest.raises(UserError, match="a file"):
            read_recording(path)


def test_options_of_all_formats_are_known_without_torch():
    code = "import sys, connector.runs.options; assert not {'torch', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_reader_that_cannot_look_at_a_file_does_not_know_it(tmp_path, monkeypatch):
    of_text = SimpleNamespace(recognises=lambda path: path.read_text(encoding="utf-8").startswith("rates"))
    monkeypatch.setattr(readers, "reader", lambda name: of_text)
    (tmp_path / "bytes").write_bytes(bytes(range(128, 256)))
    assert readers.recognise_format(tmp_path / "bytes") == "unknown"


def test_a_format_that_is_registered_is_recognised_read_and_named(tmp_path, monkeypatch):
    """As CONTRIBUTING says: a module with options, a function and READER, and its name in READERS."""
    written = types.ModuleType("connector.data.csv_rates")
    code = """
import dataclasses
from connector.data.readers import Reader, require_format
from connector.data.settings import data_option, settled

@dataclasses.dataclass
class CsvOptions:
    alpha: float = data_option("dt / tau", above=0, at_most=1, default=0.1)

def load_csv(path, options=None, *, name=None, **keywords):
    import torch
    from connector.types import Recording
    options = settled(CsvOptions, options, keywords)
    require_format(path, "csv")
    rows = [[float(x) for x in line.split(",")] for line in path.read_text().splitlines()[1:]]
    rates = torch.tensor(rows)[None]
    return Recording(rates, "rates", torch.tensor([len(rows)]), options.alpha, "tanh", name=name or path.stem)

READER = Reader(CsvOptions, load_csv, recognises=lambda path: path.read_bytes().startswith(b"rates,"))
"""
    exec(code, vars(written))
    monkeypatch.setitem(sys.modules, written.__name__, written)
    monkeypatch.setitem(READERS_KNOWN, "csv", written.__name__)
    path = tmp_path / "mine.txt"
    path.write_text("rates,\n0.1,0.2\n0.3,-0.4\n")
    assert read_recording(path, alpha=0.5).alpha == 0.5
    with pytest.raises(UserError, match=r"greater than 0|above 0 and at most 1"):
        read_recording(path, "csv", alpha=2)
    with pytest.raises(UserError, match=r"mine\.txt, a file of the format csv\.\nUse data=csv"):
        load_npz(path)
