"""What W&B refuses, of options or of its variables in the environment, is said in two lines and ends with exit code 2."""

import os

import pytest

from connector.errors import UserError
from connector.launch.wandb_run import WandbRun
from connector.runs.options import LoggerOptions

OPTIONS = {
    "project": ("a/b#c", "cannot contain characters"),
    "project ": ("x" * 200, "exceeded 128"),
    "tags": (["x" * 100], "Tags must be between 1 and 64"),
    "tags ": ([""], "Tags must be between 1 and 64"),
    "mode": ("online", "no API key"),
}
VARIABLES = {
    "WANDB_MODE": ("junk", "mode: Input should be"),
    "WANDB_BASE_URL": ("junk", "base_url: Input should be a valid URL"),
    "WANDB_SILENT": ("junk", "silent: Input should be a valid boolean"),
    "WANDB_INIT_TIMEOUT": ("soon", "init_timeout: Input should be a valid number"),
}


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr("connector.launch.wandb_run._has_account", lambda: False)


def begin(tmp_path, **options):
    given = {"name": "wandb", "project": "p", "entity": None, "mode": "offline", "group": None, "tags": []}
    logger = LoggerOptions(**given | {"save_dir": str(tmp_path / "wandb")} | options)
    return WandbRun(logger, name="n", group="g", job_type="t" * 100, config={}, directory=tmp_path)


def said_in_two_lines(error):
    first, second = str(error.value).splitlines()
    assert len(first) < 400
    assert "logger" in second
    return first


@pytest.mark.parametrize("name", OPTIONS)
def test_options(tmp_path, name):
    value, said = OPTIONS[name]
    with pytest.raises(UserError) as error:
        begin(tmp_path, **{name.strip(): value})
    assert said in said_in_two_lines(error)


@pytest.mark.parametrize("name", VARIABLES)
def test_variables(tmp_path, monkeypatch, name):
    value, said = VARIABLES[name]
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("wandb.sdk.wandb_setup._singleton", None)  # the environment is read once a process
    with pytest.raises(UserError) as error:
        begin(tmp_path, mode="auto")
    assert said in said_in_two_lines(error)
    assert name in str(error.value)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"logger\.save_dir=DIR"):
        begin(tmp_path, save_dir=str(tmp_path / "file" / "wandb"))
