"""The W&B run of a job, offline: one run for all stages, nested configuration, tables, lineage, exit code, resumption."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from commands import typed

from connector import load_run
from connector.launch import job, sweep
from connector.launch.wandb_run import ID_FILE, WandbRun
from connector.report.page import TableData
from connector.runs.options import LoggerOptions

TINY = [
    "data.n_neurons=60", "data.n_grid=5", "data.n_steps=30", "connectivity.loadings_epochs=4",
    "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=256", "stages=[lrrnn,loadings]",
]  # fmt: skip


def logs(folder: Path) -> list[Path]:
    """Transaction logs of the offline runs below ``folder``, in the order of their start."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)


def records(folder: Path, number: int = 0) -> list[dict]:
    """What stands in one of them."""
    log = logs(folder)[number]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def of_type(found: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.fixture
def options(tmp_path):
    return LoggerOptions("wandb", "connector", None, "offline", None, ["mine"], str(tmp_path))


@pytest.fixture(autouse=True)
def _away_from_home(tmp_path_factory, monkeypatch):
    aside = str(tmp_path_factory.mktemp("wandb_home"))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, aside)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)


def begun(options, tmp_path, **more):
    given = {"name": "a", "group": "g", "job_type": "ring", "config": {"seed": 3}, "directory": tmp_path / "run"}
    return WandbRun(options, **{**given, **more})


def tables(log: Path) -> dict[str, dict]:
    """Tables that a run logged, by name."""
    files = (log.parent / "files" / "media" / "table").rglob("*.table.json")
    return {path.name.rsplit("_", 2)[0]: json.loads(path.read_text()) for path in files}


def test_command_line_run_is_one_wandb_run_and_goes_on_in_it(tmp_path):
    command = [*TINY, "logger=wandb", "logger.mode=offline", f"logger.save_dir={tmp_path}"]
    command += [f"hydra.run.dir={tmp_path}/run", "trainer.threads=1"]
    done = typed(*command)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert of_type(found, "exit")[0].get("exit_code", 0) == 0
    text = json.dumps(found)
    for key in ("lrrnn/val_loss", "loadings/val_loss", "loadings/step", "loadings/epoch", "loadings/learning_rate"):
        assert key in text
    about = of_type(found, "run")[0]
    given = about["config"]["update"]
    assert {"data", "lrrnn", "connectivity", "seed", "run_directory"} <= set(given)
    assert given["connectivity"]["flow"]["hidden_width"] == 64  # nested as in Hydra
    assert not of_type(found, "config")  # no module adds its own arguments beside them
    run = load_run(tmp_path / "run")
    assert len(run.metrics) > 3
    assert summary_of(found) | run.metrics == summary_of(found)  # the numbers of metrics.json under their names

    of_neurons = tables(logs(tmp_path)[0])["neurons"]
    column = [row[of_neurons["columns"].index("m_1")] for row in of_neurons["data"]]
    assert column == pytest.approx(run.loadings.m[:, 0].tolist())
    assert of_neurons["data"][0][0] == "0"
    of_modes = tables(logs(tmp_path)[0])["modes"]
    shares = [row[of_modes["columns"].index("share")] for row in of_modes["data"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-3)  # rank 2: few modes hold it all

    made = {artifact["type"]: artifact for artifact in of_type(found, "artifact")}
    made.pop("run_table")  # W&B's own, of the tables
    lineage = {kind: (a.get("user_created", False), a.get("use_after_commit", False)) for kind, a in made.items()}
    assert lineage == {"dataset": (True, True), "lrrnn": (False, True)}  # given and used; made and used
    assert json.loads(made["lrrnn"]["metadata"])["made_from"] == ["data-quadstable"]

    again = typed(*command, "stages=[lrrnn]")
    assert again.returncode == 0, again.stderr
    assert of_type(records(tmp_path, 1), "run")[0]["run_id"] == about["run_id"]


def summary_of(found: list[dict]) -> dict:
    """The last value of each key of the summary."""
    summary = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    return summary


@pytest.mark.parametrize("exit_code", [0, 1])
def test_exit_code_group_tags_and_summary(options, tmp_path, exit_code):
    run = begun(options, tmp_path)
    for step, value in enumerate((0.5, 0.25, 0.75)):
        run.for_stage("loadings").log_metrics({"loadings/val_loss": value, "epoch": 1}, step=step)
    table = TableData(("neuron", "m"), [["a", 0.5]])
    run.log_results({"connectivity/dissimilarity": 0.25, "loadings/val_loss": 0.3}, {}, {"neurons": table})
    run.finish(exit_code)
    run.finish(1 - exit_code)  # too late
    found = records(tmp_path)
    assert of_type(found, "exit")[0].get("exit_code", 0) == exit_code
    about = of_type(found, "run")[0]
    assert (about["run_group"], about["job_type"], sorted(about["tags"])) == ("g", "ring", ["mine", "ring"])
    assert summary_of(found)["connectivity/dissimilarity"] == 0.25
    assert summary_of(found)["loadings/val_loss"] == 0.3
    assert tables(logs(tmp_path)[0])["neurons"]["data"] == [["a", 0.5]]


def test_summaries_keep_the_better_end_of_each_measure(options, tmp_path):
    begun(options, tmp_path).finish(0)
    defined = {metric.get("name"): metric for metric in of_type(records(tmp_path), "metric")}
    assert defined["connectivity/dissimilarity"]["summary"] == {"min": True}
    assert defined["lrrnn/bits_per_spike"]["summary"] == {"max": True}
    assert defined["lrrnn/val_loss"]["summary"] == {"min": True}
    assert defined["lrrnn/val_loss"]["step_metric"] == "lrrnn/step"
    assert "connectivity/entropy" not in defined  # neither end is better


def test_lineage_from_data_set_over_lrrnn_to_connectivity(options, tmp_path):
    recording, latents, network = (tmp_path / name for name in ("my rec.npz", "latents.npz", "network.npz"))
    for path in (recording, latents, network):
        path.write_bytes(path.name.encode())
    run = begun(options, tmp_path)
    run.log_data({"path": str(recording), "fold": 1}, "my rec")
    run.log_artifact("lrrnn", [latents, tmp_path / "absent.ckpt"], ["dataset"], used=True)
    run.log_artifact("connectivity", [network], ["dataset", "lrrnn"])
    run.log_artifact("none", [tmp_path / "absent.ckpt"], [])
    run.finish(0)
    made = {artifact["type"]: artifact for artifact in of_type(records(tmp_path), "artifact")}
    assert set(made) == {"dataset", "lrrnn", "connectivity"}
    assert made["dataset"]["name"] == "data-my-rec"
    name = made["lrrnn"]["name"]
    assert json.loads(made["connectivity"]["metadata"])["made_from"] == ["data-my-rec", name]
    flags = {kind: (a.get("user_created", False), a.get("use_after_commit", False)) for kind, a in made.items()}
    assert flags == {"dataset": (True, True), "lrrnn": (False, True), "connectivity": (False, False)}
    assert json.loads(made["dataset"]["metadata"])["sha256"] == hashlib.sha256(b"my rec.npz").hexdigest()
    assert recording.as_uri() in json.dumps(made["dataset"])  # a reference: the recording is not copied


def test_one_directory_is_one_run_until_it_is_forced(options, tmp_path):
    ids = []
    for anew in (False, False, True, False):
        run = begun(options, tmp_path, anew=anew)
        ids.append(run.run.id)
        run.finish(0)
    assert ids[0] == ids[1] != ids[2] == ids[3]
    other = begun(options, tmp_path, directory=tmp_path / "other")
    other.finish(0)
    assert other.run.id not in ids
    assert len({path.parent.parent for path in logs(tmp_path)}) == 1  # one W&B directory for all


def test_ids_left_in_the_environment_and_copied_directories_merge_no_runs(options, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "leftover")
    monkeypatch.setenv("WANDB_RESUME", "must")
    wandb.teardown()  # the environment is read once in a process

    def id_of(name, **more):
        run = begun(options, tmp_path, directory=tmp_path / name, **more)
        run.finish(0)
        return run.run.id

    first, other = id_of("run"), id_of("other")
    assert len({first, other, "leftover"}) == 3
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert id_of("copy") not in (first, other)
    assert id_of("run") == first
    (tmp_path / "run").rename(tmp_path / "moved")
    assert id_of("moved") == first
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ID_FILE).write_text(f"{first}\n")  # as earlier versions wrote it
    assert id_of("old") == first
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")  # an agent's, of which each job of a sweep is not the run
    assert id_of("of_sweep", of_sweep=True) not in (first, other, "leftover")
    wandb.teardown()


def test_the_agent_of_a_sweep_chooses_the_id(options, tmp_path, monkeypatch):
    begun(options, tmp_path).finish(0)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    wandb.teardown()  # the environment is read once in a process
    run = begun(options, tmp_path)
    run.finish(0)
    wandb.teardown()
    assert run.run.id == "chosen"


def test_disabled_logs_nothing(options, tmp_path):
    options.mode = "disabled"
    run = begun(options, tmp_path)
    run.log_data({"name": "ring"}, "ring")
    run.for_stage("loadings").log_metrics({"loadings/val_loss": 0.5}, step=1)
    run.log_results({"connectivity/dissimilarity": 0.25}, {}, {"t": TableData(("a",), [[1]])})
    (tmp_path / "network.npz").write_bytes(b"x")
    run.log_artifact("connectivity", [tmp_path / "network.npz"], ["dataset"])
    run.finish(0)
    assert not logs(tmp_path)
    assert not (tmp_path / "run" / ID_FILE).exists()
    assert run.where == "W&B, disabled"


def test_wandb_logs_an_artifact_that_is_used_by_a_private_function():
    import inspect

    import wandb

    assert {"is_user_created", "use_after_commit"} <= inspect.signature(wandb.Run._log_artifact).parameters.keys()


def test_the_run_of_a_sweeps_job_is_named_after_what_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_swept", {"seed": "3", "lrrnn.rank": "2"})
    options = SimpleNamespace(
        logger=LoggerOptions("wandb", "connector", None, "offline", None, [], str(tmp_path)),
        experiment_name="quadstable", data=SimpleNamespace(name="quadstable"),
    )  # fmt: skip
    store = SimpleNamespace(path=tmp_path / "quadstable,seed=3,lrrnn.rank=2,data.n_neurons=60")
    given = SimpleNamespace(options=options, store=store, sweep_name="s", config={"seed": 3})
    job._logger(given, anew=False).finish(0)
    about = of_type(records(tmp_path), "run")[0]
    assert about["display_name"] == "quadstable seed=3 lrrnn.rank=2"
    assert about["config"]["update"]["swept"] == {"seed": "3", "lrrnn.rank": "2"}
    alone = SimpleNamespace(**{**vars(given), "sweep_name": None})
    job._logger(alone, anew=True).finish(0)
    about = of_type(records(tmp_path, 1), "run")[0]
    assert "swept" not in about["config"]["update"]
