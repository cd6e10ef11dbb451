"""The W&B dashboard is built without an account, and speaks of measures, options and tables that runs have."""

import importlib.util
import json
import sys

import pytest
from commands import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from connector.report.glossary import METRICS
from connector.runs.naming import register_resolvers


@pytest.fixture(scope="module")
def dashboard(experiments_importable):
    import dashboard

    return dashboard


@pytest.fixture
def written(dashboard, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="the extra wandb is not installed")
    assert dashboard.run(["--json", str(tmp_path / "out.json"), "--project", "mine"]) == 0
    return json.loads((tmp_path / "out.json").read_text())


def panels(written):
    sections = written["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_axes_are_options_of_the_configuration_and_measures_of_runs(written):
    assert written["project"] == "mine"
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=["experiment_name=test"])
    (parallel,) = panels(written)["Comparison"]
    options, measures = [], []
    for column in parallel["config"]["columns"]:
        kind, _, key = column["accessor"].partition(":")
        # W&B keeps nested options as group.value.key.
        {"config": options, "summary": measures}[kind].append(key.replace(".value", "", 1))
    for key in options:
        parent, _, name = key.rpartition(".")
        assert name in (OmegaConf.select(config, parent) if parent else config), key
    assert set(measures) <= set(METRICS)
    assert len(options) > 2
    assert len(measures) > 2


def test_charts_have_the_reports_titles_and_units(written):
    for section in ("Measures", "Time"):
        for panel in panels(written)[section]:
            (accessor,) = panel["config"]["metrics"]
            metric = METRICS[accessor.removeprefix("summary_metrics.")]
            assert panel["config"]["chartTitle"] == f"{metric.label} [{metric.unit}]"


def test_learning_curves_run_over_their_own_stages_epochs(written):
    curves = [panel["config"] for panel in panels(written)["Learning curves"]]
    assert {curve["xAxis"] for curve in curves} == {"lrrnn/epoch", "loadings/epoch", "outputs/epoch"}
    for curve in curves:
        assert curve["metrics"][0].split("/")[0] == curve["xAxis"].split("/")[0]


def test_panels_do_not_lie_on_one_another(written):
    for found in panels(written).values():
        corners = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in found]
        assert len(set(corners)) == len(corners)


def test_without_the_package_or_an_account_it_says_what_to_do(dashboard, monkeypatch, capsys):
    if importlib.util.find_spec("wandb_workspaces"):
        assert dashboard.run([]) == 2
        assert "--json FILE" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert dashboard.run(["--entity", "me"]) == 2
    assert "[wandb]" in capsys.readouterr().err
