"""What a run directory says of itself is true at every instant, whatever came before."""

import contextlib
import os
import shutil

import numpy as np
import pytest
import torch
from commands import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector import interruption, load_run
from connector.compare.runs import read_run
from connector.errors import UserError
from connector.files import content_checksum, file_checksum, linked_files
from connector.launch import job as job_module
from connector.launch.finished import was_passed
from connector.launch.job import run
from connector.launch.planning import begin, build_data, plan
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.runs.store import RunStore, write_network

register_resolvers()
TINY = [
    "data.n_neurons=30", "data.n_grid=4", "data.n_steps=20", "connectivity.loadings_epochs=2",
    "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=64", "connectivity.max_states=100",
    "connectivity.flow.hidden_width=8", "connectivity.flow.hidden_layers=1", "connectivity.early_stopping=false",
    "trainer.threads=1", "trainer.progress=false", "report=false",
]  # fmt: skip


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*TINY, *overrides, "experiment_name=test"])


def ran(directory, *overrides, sweep=None):
    config = composed(*overrides)
    return run(checked(config), config, directory, sweep)


@pytest.fixture(autouse=True)
def little_measured(monkeypatch):
    monkeypatch.setattr(job_module, "summarise", measured)


def measured(options, store, *_):
    """In the place of all measures: a small network, and one number of it."""
    network = store.read_connectivity().sample(1000, seed=options.seed)
    write_network(store.path / "network.npz", network, 0.0)
    return {"dynamics/field_error": float(network.n.square().mean()), "connectivity/dissimilarity": 0.5}, {}, []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with seed 1."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job_module, "summarise", measured)
        ran(directory)
    return directory


@pytest.fixture
def directory(whole, tmp_path):
    """A copy of it, with a report and a figure as if they had been drawn, and what the user has put there."""
    copy = shutil.copytree(whole, tmp_path / "run")
    store = RunStore(copy)
    store.figures.mkdir()
    drawn = [copy / "report.html", store.figures / "rates.png"]
    for file in (*drawn, store.figures / "mine.png"):
        file.write_text("drawn")
    record = store.stages()["results"]
    files = [copy / name for name in record["files"]]
    store.finish_stage("results", record["fingerprint"], 0.0, {}, files=files, drawn=drawn)
    return copy


def test_another_seed_leaves_nothing_of_the_first(directory, capsys):
    before = {path.name for path in directory.rglob("*")}
    assert {"network.npz", "connectivity.pt", "report.html", "rates.png"} <= before
    ran(directory, "seed=2", "stages=[lrrnn]")
    said = capsys.readouterr().out
    assert "lrrnn, loadings, outputs: removed, made with other options" in said
    assert "Report" not in said
    after = load_run(directory)
    assert not any(key.startswith(("connectivity/", "dynamics/", "loadings/", "outputs/")) for key in after.metrics)
    assert after.metrics["lrrnn/val_loss"] > 0
    assert after.config.seed == 2
    names = {path.name for path in directory.rglob("*")}
    assert not names & {
        "network.npz",
        "connectivity.pt",
        "loadings_flow.pt",
        "report.html",
        "rates.png",
        "loadings.ckpt",
    }
    assert "mine.png" in names  # the user's own
    with pytest.raises(UserError):
        _ = after.connectivity


def test_the_same_options_keep_report_and_figures_although_none_are_drawn(directory, capsys):
    ran(directory)
    assert (directory / "report.html").exists()
    assert (directory / "figures" / "rates.png").exists()
    assert f"Report: {directory / 'report.html'}" in capsys.readouterr().out


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


def dying(act, left):
    """``act``, which kills in the place of the call after so many as stand in ``left``, a list of one number."""

    def acted(*arguments, **more):
        left[0] -= 1
        if left[0] == -1:
            raise Killed
        return act(*arguments, **more)

    return acted


def states_when_killed(directory, *overrides):
    """Kill a job at each of the writes and removals by which it begins; yields after each."""
    config = composed(*overrides)
    options = checked(config)
    data = build_data(options)
    data.setup()
    schedule, text = plan(options, data), OmegaConf.to_yaml(config, resolve=True)
    saved = shutil.copytree(directory, directory.with_name("saved"))
    for moment in range(100):
        shutil.rmtree(directory)
        shutil.copytree(saved, directory)
        left = [moment]
        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(os, "replace", dying(os.replace, left))
            patched.setattr(type(directory), "unlink", dying(type(directory).unlink, left))
            begin(RunStore(directory), options, schedule, text)
        yield
        if left[0] >= 0:
            return


def test_killed_at_any_moment_of_its_beginning_no_result_is_taken_for_that_of_other_options(directory):
    first = load_run(directory)
    numbers, latents = first.metrics["lrrnn/val_loss"], first.latents.z
    seeds = set()
    for _ in states_when_killed(directory, "seed=2"):
        left = load_run(directory)
        seeds.add(left.config.seed)
        for name, read in (
            ("latents", lambda run: run.latents.z), ("network", lambda run: run.network), ("flows", lambda run: run.connectivity),
        ):  # fmt: skip
            try:
                found = read(left)
            except (UserError, FileNotFoundError):
                continue
            assert left.config.seed == 1, name
            assert name != "latents" or bool((found == latents).all())
        if left.config.seed == 2:
            assert not {"metrics.json", "network.npz", "latents.npz", "report.html"} & {
                p.name for p in directory.iterdir()
            }
        else:
            assert left.metrics.get("lrrnn/val_loss", numbers) == numbers
    assert seeds == {1, 2}


def test_a_refused_job_leaves_the_directory_as_it_was(directory):
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="results of other options"):
        ran(directory, "seed=2", "stages=[outputs]")
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before
    assert RunStore(directory).manifest()["state"] == "done"


@pytest.mark.parametrize(
    "lost",
    [
        "network.npz",
        "config.yaml",
        "figures/rates.png",
        pytest.param("report.html", marks=pytest.mark.slow),
        pytest.param("metrics.json", marks=pytest.mark.slow),
    ],
)
def test_a_lost_file_of_a_finished_job_is_made_again(directory, lost, capsys):
    assert ran(directory, sweep="sweep") is not None
    assert capsys.readouterr().out == ""  # a job of a sweep has one line, which its callback prints
    assert was_passed(directory)
    assert ran(directory, "verbose=true", sweep="sweep") is not None
    assert "nothing to do" in capsys.readouterr().out
    (directory / lost).unlink()
    ran(directory, "verbose=true", sweep="sweep")
    assert not was_passed(directory)
    said = capsys.readouterr().out
    assert "nothing to do" not in said
    assert said.count("reused") == 3
    drawn = lost in ("report.html", "figures/rates.png")  # with report=false none is drawn
    assert (directory / lost).exists() != drawn
    if lost == "network.npz":
        assert load_run(directory).network.n_neurons == 1000


@pytest.mark.parametrize("lost", ["checkpoints/lrrnn.ckpt", "checkpoints/connectivity.pt"])
def test_a_lost_file_of_a_finished_stage_is_made_again_byte_for_byte(directory, lost, capsys):
    whole = (directory / lost).read_bytes()
    (directory / lost).unlink()
    ran(directory, "verbose=true", sweep="sweep")
    assert (directory / lost).read_bytes() == whole
    assert f"{lost.split('/')[1]} is no longer there; training again" in capsys.readouterr().out


def test_a_stage_trained_anew_to_other_numbers_drops_what_was_made_from_it(directory):
    store = RunStore(directory)
    arrays = dict(np.load(directory / "latents.npz"))
    record = store.stages()["lrrnn"]
    np.savez(directory / "latents.npz", **(arrays | {"m": 1.01 * arrays["m"]}))
    files = [directory / name for name in record["files"]]
    store.finish_stage("lrrnn", record["fingerprint"], 1.0, record["metrics"], files=files)
    with pytest.raises(UserError, match=r"connectivity\.pt.* made from the latents\.npz beside it"):
        _ = load_run(directory).connectivity
    ran(directory, "stages=[lrrnn]")
    assert not any(key.startswith(("connectivity/", "outputs/")) for key in load_run(directory).metrics)


def test_a_users_own_folders_and_files_stay(directory):
    mine = [
        "checkpoints/lrrnn-mybackup/last-00001-0123456789abcdef.ckpt", "checkpoints/lrrnn-0123456789abcdef/note.txt",
        "checkpoints/outputs-final.ckpt", "figures/mine.png", ".notes.part", "checkpoints/.mine.part", "logs/mine.csv",
    ]  # fmt: skip
    for name in mine:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("mine")
    ran(directory, "seed=2", "force=true")
    assert [name for name in mine if not (directory / name).exists()] == []


def test_only_the_checkpoints_of_the_run_itself_are_said_to_be_gone_on_from(directory):
    (directory / "checkpoints" / "outputs-mybackup").mkdir()
    (directory / "checkpoints" / "outputs-mybackup" / "last-00001-0123456789abcdef.ckpt").touch()
    said = interruption.goes_on(directory)
    assert said.endswith("resumes from what is finished (lrrnn, loadings, outputs)")
    planned = RunStore(directory).manifest()["planned"]["outputs"]
    own = RunStore(directory).unfinished("outputs", planned)
    own.mkdir()
    (own / "last-00001-0123456789abcdef.ckpt").touch()
    assert interruption.goes_on(directory).endswith("last checkpoint of the stage outputs")


# --- data that change unseen ------------------------------------------------------------------------------------------


def linked(directory, kind):
    """A Neural Latents Benchmark file whose spikes lie in another file; both."""
    h5py = pytest.importorskip("h5py")
    spikes = np.random.default_rng(0).poisson(1.0, (12, 10, 5)).astype(float)
    main, other = directory / "main.h5", directory / "parts" / "other.h5"
    other.parent.mkdir(exist_ok=True)
    with h5py.File(other, "w") as file:
        file["spikes"] = spikes
    with h5py.File(main, "w") as file:
        if kind == "external link":
            file["train_spikes_heldin"] = h5py.ExternalLink("parts/other.h5", "/spikes")
        elif kind == "link of a link":
            with h5py.File(directory / "between.h5", "w") as between:
                between["spikes"] = h5py.ExternalLink("parts/other.h5", "/spikes")
            file["train_spikes_heldin"] = h5py.ExternalLink("between.h5", "/spikes")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(spikes.shape, dtype=float)
            layout[...] = h5py.VirtualSource(str(other), "spikes", spikes.shape)
            file.create_virtual_dataset("train_spikes_heldin", layout)
        elif kind == "outside":
            other.write_bytes(spikes.tobytes())
            file.create_dataset("train_spikes_heldin", spikes.shape, float, external=[(str(other), 0, spikes.nbytes)])
    return main, other


@pytest.mark.parametrize("kind", ["external link", "link of a link", "virtual", "outside"])
def test_data_behind_a_link_are_part_of_the_fingerprint(tmp_path, kind):
    main, other = linked(tmp_path, kind)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = checked(compose("train", ["data=nlb", f"data.path={main}", "experiment_name=test"]))

    def planned():
        data = build_data(options)
        data.setup()
        return plan(options, data)

    first = planned()
    assert planned().marks == first.marks
    content = bytearray(other.read_bytes())
    index = content.rindex(np.float64(1.0).tobytes())
    content[index : index + 8] = np.float64(2.0).tobytes()
    other.write_bytes(content)
    assert planned().marks["data"] != first.marks["data"]
    assert first.data["linked"][-1] == str(other)


def test_files_without_links_keep_their_fingerprints(tmp_path):
    np.savez(tmp_path / "a.npz", rates=np.zeros(3))
    assert content_checksum(tmp_path / "a.npz") == file_checksum(tmp_path / "a.npz")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.zeros(3)
        file["again"] = h5py.SoftLink("/x")
        file["gone"] = h5py.ExternalLink("nowhere.h5", "/x")
    assert content_checksum(tmp_path / "b.h5") == file_checksum(tmp_path / "b.h5")
    (tmp_path / "c.h5").write_bytes((tmp_path / "b.h5").read_bytes()[:600])  # damaged: its reader says so
    assert linked_files(tmp_path / "c.h5") == []


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "rates.npz"
    np.savez(path, rates=np.tanh(np.random.default_rng(0).normal(size=(12, 30, 20))))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = checked(compose("train", ["data=npz", f"data.path={path}", "experiment_name=test"]))
    data = build_data(options)
    data.setup()
    plan(options, data)
    np.savez(path, rates=np.tanh(np.random.default_rng(1).normal(size=(12, 30, 20))))
    with pytest.raises(UserError, match="which has changed"):
        plan(options, data)


@pytest.mark.parametrize("name", ["latents.npz", "config.yaml", "metrics.json", "report.html"])
def test_files_of_others_under_the_names_of_a_run_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} of something else(?s:.*)hydra.run.dir"):
        ran(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} <= {name, "train.log", ".lock"}


@pytest.mark.parametrize("begun", [False, True])
def test_a_data_file_in_the_run_directory_is_not_written_over(tmp_path, whole, begun):
    directory = tmp_path / "run"
    if begun:  # a run's own latents as data of a run in the same place
        shutil.copytree(whole, directory)
    else:
        directory.mkdir()
        np.savez(directory / "latents.npz", rates=np.tanh(np.random.default_rng(0).normal(size=(6, 9, 4))))
    before = file_checksum(directory / "latents.npz")
    config = compose_file(directory / "latents.npz")
    with pytest.raises(
        UserError, match="a data file that the run does not write to; got latents.npz" if not begun else "."
    ):
        run(checked(config), config, directory, None)
    assert file_checksum(directory / "latents.npz") == before


def compose_file(path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["data=npz", f"data.path={path}", "trainer.progress=false", "experiment_name=test"])


def test_results_beside_options_that_were_edited_are_not_read(tmp_path, whole):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    file = directory / "config.yaml"
    file.write_text(file.read_text().replace("seed: 1", "seed: 7", 1))
    edited = load_run(directory)
    for what in ("latents", "connectivity", "network"):
        with pytest.raises(UserError, match=r"config.yaml in .* as the job wrote it"):
            getattr(edited, what)
    assert read_run(directory).problem == "config.yaml is not as the job wrote it"
    ran(directory)
    assert torch.equal(load_run(directory).network.n, load_run(whole).network.n)
    assert not read_run(directory).problem
