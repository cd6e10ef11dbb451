"""Several processes: equal results, and which device a job of a sweep trains on."""

import inspect
from pathlib import Path

import pytest
import torch
from commands import train, typed

from connector import load_run
from connector.errors import UserError
from connector.files import read_npz
from connector.launch import distributed, job
from connector.launch.distributed import devices_of_job
from connector.runs.store import RunStore
from connector.stages.training import is_child_rank

SMALL = [
    "experiment=limit_cycle", "data.n_neurons=100", "data.n_grid=6", "data.n_steps=40", "report=false",
    "connectivity.loadings_epochs=150", "connectivity.early_stopping=false", "connectivity.outputs_epochs=3",
    "connectivity.outputs_loadings=4096", "trainer.threads=1", "trainer.progress=false",
]  # fmt: skip
# The same effective batch: each of two processes takes half.
HALVES = [
    "connectivity.loadings_batch_size=512", "connectivity.loadings_paths=512", "connectivity.outputs_batch_size=512",
    "lrrnn.batch_size=8", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
]  # fmt: skip


def trained(directory, *arguments):
    done = train(*SMALL, *arguments, f"hydra.run.dir={directory}")
    assert done.returncode == 0, done.stdout + done.stderr
    return load_run(directory)


@torch.no_grad()
def test_two_processes_reach_the_flow_of_loadings_that_one_reaches(tmp_path):
    found = []
    for name, more in (("one", []), ("two", HALVES)):
        run = typed if name == "one" else train
        done = run(
            *SMALL,
            *more,
            "connectivity.loadings_epochs=60",
            "stages=[lrrnn,loadings]",
            f"hydra.run.dir={tmp_path / name}",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        store = RunStore(tmp_path / name)
        rows = torch.from_numpy(read_npz(store.latents_file)["m"]).repeat(200, 1).float()
        flow, generator = store.read_loadings_flow(), torch.Generator().manual_seed(2)
        found.append((rows, float(flow.loss(rows, generator=generator))))
    assert (found[0][0] == found[1][0]).all()
    assert found[0][1] == pytest.approx(found[1][1], rel=0.02)


@pytest.mark.slow
@torch.no_grad()
def test_two_processes_reach_what_one_reaches(tmp_path):
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two", *HALVES)
    assert (one.loadings.m == two.loadings.m).all()
    # The processes divide the validation rows and draw noise of their own: compare on the same rows and numbers.
    rows = one.loadings.stack().repeat(200, 1)
    n = one.connectivity.conditional_mean(rows)
    n = (n + torch.randn(n.shape, generator=torch.Generator().manual_seed(1), dtype=n.dtype)).float()
    found = []
    for run in (one, two):
        flows, generator = run.connectivity, torch.Generator().manual_seed(2)
        first = flows.loadings_flow.loss(rows.float(), generator=generator)
        found.append([float(first), float(flows.outputs_flow.loss(n, rows.float(), generator=generator))])
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.slow
def test_two_processes_train_a_low_rank_rnn_as_one_does(tmp_path):
    low_rank = ("lrrnn=published", "lrrnn.max_epochs=5", "stages=[lrrnn]")
    runs = trained(tmp_path / "a", *low_rank, "lrrnn.batch_size=16"), trained(tmp_path / "b", *low_rank, *HALVES)
    first, second = (run.metrics["lrrnn/val_loss"] for run in runs)
    assert first == pytest.approx(second, rel=0.02)


TWO_DEVICES = [
    "-m", "seed=1,2", "trainer.accelerator=cpu", "trainer.devices=2", "data.n_neurons=20", "data.n_grid=4", "data.n_steps=20",
    "stages=[lrrnn]", "lrrnn.max_epochs=1", "lrrnn.posterior_sweeps=0", "report=false", "trainer.threads=1",
    "trainer.progress=false", "hydra.sweep.dir=sweep",
]  # fmt: skip


def test_two_devices_without_a_strategy_run_the_job_again_and_not_its_sweep(tmp_path, monkeypatch):
    commands = []

    def seen():
        commands.append(distributed.job_command(1)[0])
        raise UserError("no more than the command of the other process", "it")

    monkeypatch.setattr(distributed, "install_job_command", seen)
    monkeypatch.setattr(job, "_run", lambda _: pytest.fail("Lightning would start the sweep again"))
    typed(*TWO_DEVICES, cwd=tmp_path)
    assert len(commands) == 2
    for seed, command in enumerate(commands, 1):
        assert {f"seed={seed}", "trainer.devices=2", "hydra.mode=RUN"} <= set(command)
        assert not {"-m", "--multirun", "seed=1,2"} & set(command)
        directory = next(x for x in command if x.startswith("hydra.run.dir=")).partition("=")[2].strip("'")
        assert Path(directory).parent == tmp_path / "sweep"
        assert f"seed={seed}" in directory


@pytest.mark.slow
def test_a_sweep_on_two_devices_without_a_strategy_runs_each_job_once(tmp_path):
    done = train(*TWO_DEVICES, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("[1/2] seed=1", "[2/2] seed=2", "Sweep: 2 of 2 jobs done"):
        assert done.stdout.count(said) == 1
    assert len([*tmp_path.glob("sweep/*/latents.npz")]) == 2


def test_jobs_side_by_side_take_turns_on_the_visible_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [devices_of_job("gpu", 1, number) for number in range(4)] == [[0], [1], [2], [0]]
    assert devices_of_job("auto", 1, 1) == [1]
    assert devices_of_job("gpu", 2, 1) == 2  # a job that asks for several gets these
    assert devices_of_job("cpu", 1, 1) == 1
    assert devices_of_job("gpu", 1, None) == 1  # no sweep
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices_of_job("gpu", 1, 1) == 1


@pytest.mark.parametrize("name", ["LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"])
def test_all_processes_but_the_first_know_that_they_are_not(monkeypatch, name):
    monkeypatch.setenv(name, "0")
    assert not is_child_rank()
    monkeypatch.setenv(name, "1")
    assert is_child_rank()


def test_lightning_starts_ranks_by_the_private_function_that_is_replaced():
    import lightning_fabric.strategies.launchers.subprocess_script as fabric
    import pytorch_lightning.strategies.launchers.subprocess_script as lightning

    for module in (fabric, lightning):
        assert callable(module._hydra_subprocess_cmd)
        assert "_hydra_subprocess_cmd(local_rank" in inspect.getsource(module._SubprocessScriptLauncher)
