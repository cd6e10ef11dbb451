"""Jobs trained together end where they would have ended alone; one that cannot be trained spoils no other."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from commands import train, typed
from flow_jobs import job
from pytorch_lightning.callbacks import Callback

from connector.files import read_npz
from connector.launch import job as job_of_command
from connector.launch.flow_ensemble import kind, train_as_one
from connector.runs.naming import register_resolvers
from connector.stages import checkpoints
from connector.stages.flows import FlowModule, train_flow
from connector.stages.results import Results
from connector.stages.training import fit

register_resolvers()


@pytest.mark.parametrize(
    "settings", [{"keep": "last"}, {"keep": "best", "context_dim": 2}, {"ema": None}, {"base": "student_t"}]
)
def test_flows_trained_as_one_end_where_each_ends_alone(tmp_path, settings):
    epochs = (5, 12, 9)  # some end before the others
    jobs = [job(tmp_path, seed, n, **settings) for seed, n in enumerate(epochs)]
    assert len({kind(j) for j in jobs}) == 1
    for j, together in zip(jobs, train_as_one(jobs)):
        alone = job(tmp_path / f"{j.epochs}", j.module.seed, j.epochs, **settings)
        metrics = train_flow(alone)
        assert together.val_loss == pytest.approx(metrics["outputs/val_loss"], rel=1e-5)
        for one, other in zip(j.module.flow.parameters(), alone.module.flow.parameters()):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        with (tmp_path / f"{j.epochs}" / "logs" / "outputs.csv").open() as handle:
            expected = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
        assert [row.keys() for row in together.rows] == [row.keys() for row in expected]
        for row, other in zip(together.rows, expected):
            assert row == pytest.approx(other, rel=1e-4)


def test_flows_of_other_shapes_or_settings_are_of_another_kind(tmp_path):
    first = kind(job(tmp_path, 0, 5))
    assert kind(job(tmp_path, 1, 7)) == first
    assert kind(job(tmp_path, 0, 5, width=9)) != first
    assert kind(job(tmp_path, 0, 5, ema=0.5)) != first
    slower = job(tmp_path, 0, 5)
    slower.module.learning_rate *= 2
    assert kind(slower) != first
    other = job(tmp_path, 0, 5)
    other.module.__class__ = type("Other", (FlowModule,), {})  # draws its batches in its own way
    assert kind(other) != kind(dataclasses.replace(other)) != first


class Fails(Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 6:
            raise OSError("the disk is full")


def test_what_was_interrupted_alone_does_not_come_back_over_what_was_trained_together(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY_S", 0.0)
    alone = job(tmp_path, 0, 9)
    alone.context.callbacks = [Fails()]
    with pytest.raises(OSError, match="full"):
        train_flow(alone)
    left = tmp_path / "checkpoints" / "outputs-mark"
    assert list(left.glob("last-*.ckpt"))
    first, second = job(tmp_path, 0, 9), job(tmp_path, 1, 9)
    train_as_one([first, second])
    weights = {name: value.clone() for name, value in first.module.state_dict().items()}
    fit(first.context, "outputs", first.module, first.data, "mark", 0, "outputs/val_loss")
    assert not left.exists()
    saved = torch.load(tmp_path / "checkpoints" / "outputs.ckpt", weights_only=True)["state_dict"]
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, weights[name])
        assert torch.equal(saved[name], value)


SMALL = [
    "data.n_neurons=150", "data.n_grid=6", "data.n_steps=40", "connectivity.loadings_epochs=10", "report=false",
    "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=1024", "connectivity.early_stopping=false",
    "trainer.threads=1", "trainer.progress=false",
]  # fmt: skip


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])  # the second also logs to W&B
def test_a_sweep_in_one_process_leaves_the_runs_of_its_jobs(
    tmp_path, experiments_importable, few_measures, monkeypatch, n_jobs
):
    logged = SMALL
    if n_jobs == 1:  # of the measures, the one that is compared below
        monkeypatch.setattr(Results, "measures", lambda results: {"distance": results._against_teacher})
        monkeypatch.setattr(job_of_command, "measures_of_fit", lambda *_: {})
    else:
        logged = (*SMALL, "logger=wandb", "logger.mode=offline", f"logger.save_dir={tmp_path}")
    sweep = ("-m", *logged, "hydra/launcher=ensemble", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    run = typed if n_jobs == 1 else train  # workers are to end with their process
    done = run(
        *sweep, f"hydra.launcher.n_jobs={n_jobs}", "seed=1,2", "data.fold=1,9"
    )  # there is no ninth of five folds
    assert done.returncode == 1, done.stderr
    assert "loadings: 2 flows trained as one" in done.stdout
    assert "outputs: 2 flows trained as one" in done.stdout
    assert "reused" not in done.stdout  # jobs of a sweep have a line each
    with (tmp_path / "sweep" / "jobs.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    logs = [Path(row["directory"], "train.log").read_text() for row in rows if row["state"] == "done"]
    assert [log.count("reused") for log in logs] == [3, 3]  # each job finds its three stages
    assert [row["state"].split(":")[0] for row in rows] == ["done", "mistake (2)", "done", "mistake (2)"]
    again = typed(*sweep, "seed=1,2", "data.fold=1,9")
    assert again.stdout.count("finished earlier") == 2
    assert "trained as one" not in again.stdout
    with (tmp_path / "sweep" / "jobs.csv").open() as handle:
        assert list(csv.DictReader(handle)) == rows
    directory = Path(rows[0]["directory"])
    assert not (directory / "report.html").exists()
    alone = tmp_path / "alone"
    assert run(*logged, "seed=1", "data.fold=1", f"hydra.run.dir={alone}").returncode == 0
    assert (alone / "latents.npz").read_bytes() == (directory / "latents.npz").read_bytes()
    assert {p.name for p in (alone / "checkpoints").iterdir()} == {
        p.name for p in (directory / "checkpoints").iterdir()
    }
    one, other = (read_npz(d / "network.npz") for d in (alone, directory))
    for key in ("m", "n"):
        assert abs(one[key] - other[key]).max() < 1e-4 * abs(one[key]).max()
    metrics, expected = (json.loads((d / "metrics.json").read_text()) for d in (directory, alone))
    assert metrics.keys() == expected.keys()
    assert metrics["connectivity/dissimilarity"] == pytest.approx(expected["connectivity/dissimilarity"], rel=1e-3)
    if n_jobs > 1:
        check_curves(tmp_path, alone, directory)


def test_stages_that_members_would_train_alike_are_trained_once(tmp_path, no_measures, monkeypatch):
    trained = []

    def noted(context, data, mark, whole=job_of_command.train_lrrnn):
        trained.append(context.store.path.name)
        return whole(context, data, mark)

    monkeypatch.setattr(job_of_command, "train_lrrnn", noted)
    sweep = ("-m", *SMALL, "hydra/launcher=ensemble", f"hydra.sweep.dir={tmp_path / 'sweep'}", "data.fold=1")
    done = typed(*sweep, "connectivity.outputs_loadings=512,1024", "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert len(trained) == 2  # one for each seed
    assert "loadings: 2 flows trained as one" in done.stdout
    assert "outputs: 2 flows trained as one" in done.stdout
    with (tmp_path / "sweep" / "jobs.csv").open() as handle:
        few, many = (Path(row["directory"]) for row in csv.DictReader(handle) if "seed=1" in row["overrides"])
    for name in ("latents.npz", "checkpoints/loadings_flow.pt", "logs/loadings.csv"):
        assert (few / name).read_bytes() == (many / name).read_bytes()
    assert (few / "checkpoints/connectivity.pt").read_bytes() != (many / "checkpoints/connectivity.pt").read_bytes()
    alone = tmp_path / "alone"
    assert (
        typed(
            *SMALL, "data.fold=1", "connectivity.outputs_loadings=1024", "seed=1", f"hydra.run.dir={alone}"
        ).returncode
        == 0
    )
    ours, theirs = (json.loads((d / "metrics.json").read_text()) for d in (many, alone))
    assert ours.keys() - theirs.keys() <= {"timing/lrrnn_seconds"} >= theirs.keys() - ours.keys()
    assert ours["loadings/val_loss"] == pytest.approx(theirs["loadings/val_loss"], rel=1e-4)


@pytest.mark.parametrize("n_jobs", ["0", "abc"])
def test_a_number_of_jobs_that_is_none_is_refused(tmp_path, n_jobs):
    refused = typed("-m", "hydra/launcher=ensemble", f"hydra.launcher.n_jobs={n_jobs}", f"hydra.sweep.dir={tmp_path}")
    assert refused.returncode == 2
    assert f"got {n_jobs}" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def check_curves(logs, alone, directory):
    """The W&B run of each has the learning curves of the flows, the same ones."""
    from launchers import offline_logs, read_offline

    runs = {run.directory: run for run in map(read_offline, offline_logs(logs))}
    assert len(runs) == 3
    for stage in ("loadings", "outputs"):
        curves = [
            [
                {key: value for key, value in row.items() if key.startswith(stage)}
                for row in runs[str(of)].history
                if any(key.startswith(stage) and key.endswith("_loss") for key in row)
            ]
            for of in (alone, directory)
        ]
        assert len(curves[0]) == len(curves[1]) > 2
        for expected, row in zip(*curves):
            assert row == pytest.approx(expected, rel=1e-4)
