"""Files of the user through the command line: sweeps over sessions, export and the same fit again, exit codes."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from commands import ROOT, typed
from omegaconf import OmegaConf
from sessions import QUICK, session

from connector.data.clicks import load_rat
from connector.export import main as export
from connector.files import read_npz


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    paths = [session(folder / f"{name}.mat", seed) for seed, name in enumerate(("A", "B"))]
    done = typed("-m", "experiment=rat", "data.path=A.mat,B.mat", *QUICK, "hydra.sweep.dir=sweep", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, paths, done


def test_sessions_swept_over_have_a_run_directory_each(swept):
    folder, paths, _ = swept
    runs = sorted(path for path in (folder / "sweep").iterdir() if path.is_dir())
    assert [run.name.split("data.path=")[1].split(",")[0] for run in runs] == ["A.mat", "B.mat"]
    for run, path in zip(runs, paths):
        assert OmegaConf.load(run / "config.yaml").data.path == str(path)  # the same run from any directory
        recording = load_rat(path)
        assert read_npz(run / "latents.npz")["lengths"].tolist() == recording.lengths.tolist()
        assert np.isfinite(json.loads((run / "metrics.json").read_text())["lrrnn/val_loss"])
        for note in recording.notes:  # the summary of each session
            assert note in (run / "train.log").read_text()
    assert (runs[0] / "latents.npz").read_bytes() != (runs[1] / "latents.npz").read_bytes()


@pytest.mark.slow
def test_an_exported_session_gives_the_same_fit(swept, tmp_path):
    pytest.importorskip("pynwb", reason="writing NWB needs the extra `nwb`")
    folder, (path, _), _ = swept
    command = [sys.executable, "-m", "connector.export", path, "--out", tmp_path / "A.nwb"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spikes = int(load_rat(path).activity.sum())
    assert f"40 trials, 5 units, {spikes} spikes; reads back the same" in done.stdout
    done = typed("data=nwb", f"data.path={tmp_path / 'A.nwb'}", *QUICK, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    (first,) = (run for run in (folder / "sweep").iterdir() if "A.mat" in run.name)
    assert (tmp_path / "run" / "latents.npz").read_bytes() == (first / "latents.npz").read_bytes()
    one, other = (json.loads((run / "metrics.json").read_text()) for run in (first, tmp_path / "run"))
    for metrics in (one, other):
        metrics.pop("timing/lrrnn_seconds")
    assert one == other


def test_export_takes_the_options_of_the_reader(tmp_path, capsys):
    load_nwb = pytest.importorskip("connector.data.nwb").load_nwb
    pytest.importorskip("pynwb", reason="writing NWB needs the extra `nwb`")
    path, out = session(tmp_path / "s.mat", 3), tmp_path / "s.nwb"
    assert export([str(path), "--out", str(out), "data.brain_areas=[mPFC]", "data.tau=0.05"]) == 0
    recording = load_nwb(out)
    assert recording.neuron_names == ("mPFC 0", "mPFC 2", "mPFC 4")
    assert recording.alpha == pytest.approx(0.2)
    assert export([str(out), "--out", str(tmp_path / "t.nwb"), "data.trials={choices: 1}"]) == 0
    assert load_nwb(tmp_path / "t.nwb").n_trials == int((recording.choices == 1).sum())
    capsys.readouterr()
    np.savez(tmp_path / "rates.npz", rates=np.tanh(np.random.default_rng(0).normal(size=(6, 5, 3))))
    for arguments, words in (
        ([path, "data.brain_area=[mPFC]"], "data.brain_areas"),
        ([path, "seed=3"], "data.OPTION=VALUE"),
        ([path, "data.tau=fast"], "data.tau"),
        ([path, "data.tau=-1"], "data.tau"),
        ([path, "data.brain_areas=[FOF]"], "mPFC, dmFC"),
        ([tmp_path / "absent.mat"], "no file"),
        ([tmp_path / "rates.npz"], "firing rates"),
        ([out], "another file"),
        ([out, "--force"], "another file"),
        ([path], "--force replaces it"),
    ):
        to = out if "file" in words or "force" in words else tmp_path / "u.nwb"
        assert export([*map(str, arguments), "--out", str(to)]) == 2, arguments
        said = capsys.readouterr().err
        assert words in said
        assert len(said.strip().splitlines()) <= 2
    assert load_nwb(out).n_neurons == 3
    assert export([str(path), "--out", str(out), "--force"]) == 0
    assert load_nwb(out).n_neurons == 5


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        ("experiment=rat", "npz", "data=npz"),
        ("data=nwb", "truncated", "whole"),
        ("data=nlb", "mat", "data=rat"),
    ],
)
def test_a_wrong_file_ends_with_2_and_says_what_to_do(option, kind, words, tmp_path):
    path = tmp_path / "file"
    if kind == "npz":
        np.savez(tmp_path / "file.npz", rates=np.ones((3, 4, 5)))
        (tmp_path / "file.npz").rename(path)
    elif kind == "mat":
        session(tmp_path / "file.mat", 0).rename(path)
    else:
        with h5py.File(path, "w") as file:
            file["train_spikes_heldin" if kind == "nlb" else "x"] = np.zeros((50, 60, 3))
            if kind != "nlb":
                file.attrs["nwb_version"] = "2.8.0"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    done = typed(option, f"data.path={path}", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    assert "expected" in done.stderr
    assert "got" in done.stderr
    assert words in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.*"))


def test_neural_latents_file_from_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "mc.h5", "w") as file:
        for key, width in (("train_spikes_heldin", 4), ("train_spikes_heldout", 2)):
            file[key] = rng.poisson(0.3, size=(30, 40, width)).astype(np.float32)
    done = typed("data=nlb", "data.path=mc.h5", "data.rebin=2", *QUICK, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spike counts of 6 neurons, 30 trials of 20 samples of 10 ms" in done.stdout
    assert set(read_npz(tmp_path / "run" / "latents.npz")["lengths"].tolist()) == {20}
