"""The command line, run for real on small sizes: files, exit codes, reuse, repeatability."""

import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import NETWORKS, ROOT, SMALL, typed

from connector import load_run
from connector.files import file_checksum, read_npz
from connector.report.numbers import percent, probability, rough
from connector.sample import main as sample


def test_a_run_leaves_the_files_and_metrics_of_the_contract(finished):
    directory, done = finished
    for name in ("config.yaml", "metrics.json", "network.npz", "latents.npz", "report.html", "train.log"):
        assert (directory / name).stat().st_size > 0, name
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {
        "lrrnn.ckpt", "loadings.ckpt", "outputs.ckpt", "loadings_flow.pt", "connectivity.pt",
    }  # fmt: skip
    metrics = json.loads((directory / "metrics.json").read_text())
    for key in (
        "connectivity/sinkhorn", "connectivity/squared_error", "connectivity/dissimilarity", "dynamics/attractors_kept",
        "dynamics/field_error", "dynamics/field_error_projected", "dynamics/drive_gain", "dynamics/drive_gain_sd",
        "loadings/outside_support", "lrrnn/rates_r2", "lrrnn/rates_r2_pca", "lrrnn/val_loss", "timing/lrrnn_seconds",
        "timing/loadings_seconds", "timing/outputs_seconds",
    ):  # fmt: skip
        assert np.isfinite(metrics[key]), key
    assert metrics["connectivity/dissimilarity"] == pytest.approx(
        metrics["connectivity/sinkhorn"] + metrics["connectivity/squared_error"]
    )
    assert str(directory / "report.html") in done.stdout
    seconds = re.search(r"^results: done in (\d+\.\d) s \(\d+\.\d s of CPU time\)$", done.stdout, re.MULTILINE)
    assert float(seconds[1]) > 0
    assert metrics["timing/results_seconds"] == pytest.approx(float(seconds[1]), abs=0.051)


def test_the_report_opens_with_what_was_fitted_and_what_it_supports(finished):
    directory, _ = finished
    page = html.unescape((directory / "report.html").read_text())
    metrics = json.loads((directory / "metrics.json").read_text())
    assert "<h1>Connectivity of quadstable</h1>" in page
    verdict = page[page.index('class="verdict') : page.index("<nav")]
    said = re.findall(r"<dd>(.*?)</dd>", verdict)
    assert 3 <= len(said) <= 6
    assert "network fitted to the rates of 200 neurons" in said[0]
    assert f"an error of {percent(metrics['dynamics/field_error'])} of" in said[1]
    found = f"{metrics['dynamics/stable_points']:g} stable fixed points (probability "
    assert f"{found}{probability(metrics['dynamics/stable_points_probability'])}" in said[1]
    assert f"about {rough(metrics['connectivity/determined_modes'])} independent weighted sums" in said[2]
    kept = round(NETWORKS * metrics["dynamics/attractors_kept"])
    assert f"{kept} of {NETWORKS} projected networks keep the true attractors" in verdict
    network = load_run(directory).network  # at sigma 0: nu itself
    spread = float((network.n - network.n.mean(0)).square().mean().sqrt())
    assert f"sigma = 1 is a choice, {percent(1 / spread)} of the spread" in verdict
    assert page.count(f"sigma = 1 is a choice, {percent(1 / spread)} of the spread") == 2  # and with the figure


def test_python_says_what_the_report_says_and_shows_it_in_a_line(finished):
    directory, _ = finished
    page = html.unescape((directory / "report.html").read_text())
    run = load_run(directory)
    for sentence in run.connectivity.diagnose().sentences():
        assert sentence in page
    assert run.connectivity.diagnose(seed=0).sentences() != run.connectivity.diagnose().sentences()  # the run's is 1
    assert repr(run) == f"Run({directory}: quadstable, stages done: lrrnn, loadings, outputs)"


def test_the_saved_network_is_the_conditional_mean_at_its_loadings(finished):
    run = load_run(finished[0])
    nu = run.connectivity.conditional_mean(run.network.loadings)
    np.testing.assert_allclose(run.network.n, nu, atol=1e-9)
    again = run.connectivity.sample(n_neurons=1000, sigma=0.0, seed=int(run.config.seed))
    assert (again.m == run.network.m).all()


def test_the_manifest_names_the_files_of_each_stage_and_what_they_were_made_with(finished):
    directory, _ = finished
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["state"] == "done"
    (made_with,) = manifest["invocations"]
    assert {"torch", "numpy", "python", "hydra-core"} <= made_with["versions"].keys()
    assert "data.n_neurons=200" in made_with["command"]
    assert len(made_with["data"]["sha256"]) == 64
    files = {file: checksum for record in manifest["stages"].values() for file, checksum in record["files"].items()}
    assert files.keys() == {
        "latents.npz", "checkpoints/lrrnn.ckpt", "checkpoints/loadings_flow.pt", "checkpoints/loadings.ckpt",
        "checkpoints/connectivity.pt", "checkpoints/outputs.ckpt", "metrics.json", "network.npz",
    }  # fmt: skip
    assert all(file_checksum(directory / file) == checksum for file, checksum in files.items())


def test_a_damaged_hand_over_is_made_anew_and_never_built_on(finished, no_measures, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    flow = copy / "checkpoints" / "loadings_flow.pt"
    content = bytearray(flow.read_bytes())
    content[-1000] ^= 1
    flow.write_bytes(content)
    refused = typed(*SMALL, "report=false", "stages=[outputs]", "force=true", f"hydra.run.dir={copy}")
    assert refused.returncode == 2
    assert "a damaged loadings_flow.pt" in refused.stderr
    done = typed(*SMALL, "report=false", f"hydra.run.dir={copy}")
    assert done.returncode == 0, done.stderr
    assert "loadings: loadings_flow.pt is not what the stage wrote" in done.stdout
    assert done.stdout.count("reused") == 2
    assert flow.read_bytes() == (finished[0] / "checkpoints" / "loadings_flow.pt").read_bytes()
    assert (copy / "network.npz").read_bytes() == (finished[0] / "network.npz").read_bytes()


def test_a_reader_of_help_that_leaves_early_is_no_error():
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


def test_the_same_command_finds_all_done_and_says_the_same(finished):
    directory, first = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    done = typed(*SMALL, f"hydra.run.dir={directory}")
    assert done.returncode == 0, done.stderr
    assert "finished earlier" in done.stdout
    of_results = re.search(r"^results: done in .*\n", first.stdout, re.MULTILINE)
    assert done.stdout.endswith(first.stdout[of_results.end() :])  # cautions, measures, where the report lies
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before


def test_a_run_repeats_from_its_own_directory(finished, no_measures, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "network.npz").unlink()
    done = typed("--config-dir", finished[0], "--config-name", "config", f"hydra.run.dir={copy}", "report=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reused, its options and inputs are unchanged") == 3  # no option was lost
    assert (copy / "network.npz").read_bytes() == (finished[0] / "network.npz").read_bytes()


def test_one_seed_gives_one_network(finished, no_measures, tmp_path):
    done = typed(*SMALL, "report=false", f"hydra.run.dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    names = ("latents.npz", "network.npz")  # in the order in which they are made
    differing = [n for n in names if (tmp_path / "two" / n).read_bytes() != (finished[0] / n).read_bytes()]
    assert not differing


def test_sampling_from_the_command_line(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "net.npz"
    assert sample([str(finished[0]), "--neurons", "37", "--out", str(out)]) == 0
    written = read_npz(out)
    assert written["n"].shape == (37, 2)
    assert written["sigma"] == 0
    assert (written["n"] == load_run(finished[0]).connectivity.sample(37).n.numpy()).all()  # Python's defaults
    monkeypatch.chdir(tmp_path)
    assert sample([str(finished[0])]) == 0
    assert read_npz(tmp_path / "sampled.npz")["n"].shape == (1000, 2)
    capsys.readouterr()
    assert sample([str(finished[0])]) == 2  # never over an earlier one
    assert "--out" in capsys.readouterr().err


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def mistakes(tmp_path):
    rates = np.tanh(np.random.default_rng(0).normal(size=(12, 8, 5)))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(npz(tmp_path / "whole.npz", rates=rates).read_bytes()[:200])
    nan = rates.copy()
    nan[0, 0, 0] = np.nan
    return {
        "absent": tmp_path / "absent.npz",
        "truncated": broken,
        "wrong keys": npz(tmp_path / "keys.npz", activity=rates),
        "NaN": npz(tmp_path / "nan.npz", rates=nan),
        "shape": npz(tmp_path / "shape.npz", rates=rates[0]),
        "inputs": npz(tmp_path / "inputs.npz", rates=rates, externalinputs=np.zeros((3, 8, 1))),
    }


@pytest.mark.parametrize("case", ["absent", "truncated", "wrong keys", "NaN", "shape", "inputs"])
def test_a_wrong_file_ends_with_2_a_short_message_and_nothing_left_behind(case, tmp_path):
    path = mistakes(tmp_path)[case]
    done = typed("data=npz", f"data.path={path}", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3
    assert not list((tmp_path / "runs").rglob("*.*")) if (tmp_path / "runs").exists() else True


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("lrrnn.rnak=3", "got lrrnn.rnak.\nThe nearest is lrrnn.rank."),
        ("+lrr=3", "got lrr."),
        ("expriment=quadstable", "got expriment.\nThe nearest is experiment."),
        ("hydra/laucher=joblib", "The nearest is hydra/launcher."),
        ("seed=abc", "abc"),
        ("data=nothing", "expected data among"),
        ("lrrnn.rank=-1", "got -1."),
        (
            "experiment=nope",
            "expected experiment among bistable, heavy_tailed, limit_cycle, quadstable, rat, ring; got 'nope'",
        ),
        ("experiment=quadstabel", "got 'quadstabel'.\nThe nearest is experiment=quadstable."),
        ("hydra/launcher=joblb", "The nearest is hydra/launcher=joblib."),
    ],
)
def test_a_wrong_option_ends_with_2_and_a_short_message(option, words, tmp_path):
    done = typed(option, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Could not find" not in done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    ("yaml", "option", "words"),
    [
        ("seed: [1", "seed=1", "mine.yaml"),
        ("\x00", "seed=1", "control characters are not allowed"),
        ("# @package _global_\nstages: [lrrnn]", "trainer.accelerator=abacus", "trainer.accelerator=abacus"),
    ],
)
def test_a_damaged_file_of_options_or_a_machine_that_is_not_there_ends_with_2(yaml, option, words, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(yaml)
    done = typed("--config-dir", tmp_path / "conf", "experiment=mine", option, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
