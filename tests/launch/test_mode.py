"""Hydra composes all options a first time for `hydra.mode` alone: only where that may be set."""

import inspect

import pytest
from commands import CONF, typed
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from connector.launch import composing

ONE_WORD = "# @package _global_\nhydra: {mode: MULTIRUN}\n"


def test_a_refused_option_is_said_after_one_composition(tmp_path, monkeypatch):
    composed, load = [], ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *given, **more: composed.append(1) or load(*given, **more)
    )
    assert typed("seed=abc", cwd=tmp_path).returncode == 2
    assert len(composed) == 1


@pytest.mark.parametrize("where", ["typed", "in a file"])
def test_a_sweep_may_be_asked_for_by_the_mode(where, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(ONE_WORD)
    mode = ["hydra.mode=MULTIRUN"] if where == "typed" else ["--config-dir", tmp_path, "experiment=mine"]
    done = typed(*mode, "seed=-1,-2", f"hydra.sweep.dir={tmp_path / 's'}", cwd=tmp_path)  # refused, each job by itself
    assert "Sweep: 0 of 2 jobs done" in done.stdout, done.stderr


def test_files_beside_the_defaults_are_looked_at(tmp_path, monkeypatch):
    assert not composing._sets_mode(["seed=1", "logger=wandb", "logger.mode=offline", "lrrnn.rank=3"])
    assert composing._sets_mode(["+hydra.mode=RUN"])
    assert composing._sets_mode(["hydra.searchpath=[file://x]"])
    monkeypatch.setattr(composing, "conf_directory", lambda: tmp_path)
    (tmp_path / "mine.yaml").write_text((CONF / "logger" / "wandb.yaml").read_text())
    assert not composing._sets_mode([])
    (tmp_path / "mine.yaml").write_text(ONE_WORD)
    assert composing._sets_mode([])


def test_hydra_asks_for_the_mode_by_the_private_function_that_is_replaced():
    from hydra._internal import utils

    assert list(inspect.signature(composing._get_mode).parameters) == ["self", "config_name", "overrides"]
    assert "hydra.get_mode(config_name=config_name, overrides=overrides)" in inspect.getsource(utils._run_hydra)


def test_files_of_options_and_groups_are_read_as_hydra_reads_them():
    for path in sorted(CONF.rglob("*.yaml")):
        with open(path, encoding="utf-8") as file, open(path, encoding="utf-8") as again:
            assert repr(OmegaConf.load(file)) == repr(composing._load(again)), path
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for group in ("", "data", "hydra", "hydra/launcher"):
            for kind in (ObjectType.CONFIG, ObjectType.GROUP):
                theirs = composing._get_group_options(loader, group, kind)
                assert loader.get_group_options(group, kind) == theirs, group
