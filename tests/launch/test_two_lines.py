"""Accidents of every kind end with the right exit code and at most two lines, never with a traceback."""

import os
import subprocess
import sys

import pytest
from commands import CONF, ROOT, typed
from hydra import compose, initialize_config_dir

from connector.errors import UserError
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.stages.training import check_trainer

register_resolvers()


def options_of(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("train", [*overrides, "experiment_name=test"]))


def refused(done, *words, code=2):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ")
    assert 0 < len(done.stderr.strip().splitlines()) <= 2
    for word in words:
        assert word in done.stderr, done.stderr


def test_several_computers_need_to_be_told_of_each_other(monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "SLURM_NTASKS", "SLURM_JOB_NAME", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    for more in ([], ["trainer=ddp"], ["trainer.devices=2"], ["+trainer.accumulate_grad_batches=1"]):
        with pytest.raises(UserError, match="would wait for the others"):
            check_trainer(options_of("trainer.num_nodes=2", *more).trainer)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("NODE_RANK", "0")
    assert check_trainer(options_of("trainer.num_nodes=2").trainer)["processes"] == 2
