"""The installed package: what the wheel holds, and the command `connector` from any directory."""

import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from commands import CONF, ROOT

from connector.__main__ import main
from connector.runs.naming import conf_directory
from connector.runs.provenance import command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_runs_by_itself_and_leaves_other_names_free(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    # The paper's authors publish the distribution `connector` with the modules train and utilities.
    assert PROJECT["project"]["name"] == "lowrank-connector"
    assert {name.split("/")[0] for name in names} == {"connector", "lowrank_connector-0.1.0.dist-info"}
    kept = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    assert {name.removeprefix("connector/conf/") for name in names if name.startswith("connector/conf/")} == kept
    written = [path for path in (ROOT / "connector").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in written} <= set(names)  # templates and py.typed among them
    code = """
import sys
from connector.runs.naming import conf_directory
print(conf_directory(), flush=True)
from connector.__main__ import main
sys.argv = ["connector", "--cfg", "hydra", "-p", "hydra.launcher", "hydra/launcher=ensemble"]
sys.exit(main())
"""
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site" / "connector" / "conf") in done.stdout
    assert "connector_ensemble.EnsembleLauncher" in done.stdout


def test_a_checkout_has_its_configuration_at_the_top():
    assert conf_directory() == CONF


@pytest.mark.parametrize("name", ["sample", "export", "compare", "look"])
def test_what_is_done_with_runs_is_a_word_behind_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["connector", name, "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert f"usage: connector {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entry", "typed"),
    [
        ("train.py", "python train.py seed=2"),
        ("/env/bin/connector", "connector seed=2"),
        ("/env/lib/connector/__main__.py", "python -m connector seed=2"),
    ],
)
def test_a_result_tells_the_command_as_it_was_typed(entry, typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", [entry, "seed=2"])
    assert command() == typed


def test_the_extra_dev_holds_the_dependency_groups():
    groups = PROJECT["dependency-groups"]
    named = [group["include-group"] for group in groups["dev"]]
    assert sorted(need for name in named for need in groups[name]) == sorted(
        PROJECT["project"]["optional-dependencies"]["dev"]
    )
