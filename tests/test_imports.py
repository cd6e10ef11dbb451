"""Imports go one way, and the frameworks stay at the rim: what the science needs loads without them."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "connector"

# A module may import only from those above it.
ORDER = [
    "errors", "failures", "interruption", "run_lock", "provenance", "files", "least_squares", "config", "run_directory", "types", "dynamics",
    "data.attractors", "data.preprocessing", "data.formats", "data.matlab", "data.nlb", "data.nwb", "data.recordings",
    "data.folds", "data.modules", "export",
    "observation", "activity_samples", "output_weights", "gauge", "latents", "smoother", "closed_form", "lrrnn", "rate_model",
    "baselines", "fused", "spikes", "spike_smoother", "flow", "flow_selection", "conditional_mean", "trajectory_likelihood", "diagnosis", "tilt", "connectivity",
    "measures", "watch", "spike_measures", "spike_nulls", "clusters", "predictions", "figures", "report", "summary",
    "store", "sample", "callbacks", "run_logger", "training", "lrrnn_stage", "connectivity_stages", "flow_ensemble", "results",
    "launch", "sweep", "run", "ensemble",
    "plugins.hydra_plugins.connector_ensemble",
]  # fmt: skip
AT_THE_RIM = {
    "pytorch_lightning": {
        "data.modules",
        "training",
        "lrrnn_stage",
        "connectivity_stages",
        "callbacks",
        "run_logger",
        "launch",
    },
    "lightning_fabric": {"launch"},
    "hydra": {"launch", "sweep", "plugins.hydra_plugins.connector_ensemble"},
    "wandb": {"run_logger"},
}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            if node.module == "connector":
                yield from (f"connector.{alias.name}" for alias in node.names)


def test_every_module_has_its_place_in_the_order():
    assert {name for name, _ in modules()} == set(ORDER)


def test_modules_import_only_from_those_above_them():
    wrong = []
    for name, path in modules():
        for target in imported(path):
            inner = target.removeprefix("connector.")
            if target.startswith("connector.") and inner in ORDER and ORDER.index(inner) >= ORDER.index(name):
                wrong.append(f"{name} imports {inner}")
    assert not wrong


def test_frameworks_are_imported_at_the_rim_only():
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imported(path)
        for framework, allowed in AT_THE_RIM.items()
        if target.split(".")[0] == framework and name not in allowed
    ]
    assert not wrong


def test_what_the_command_line_needs_for_help_loads_without_torch():
    code = "import sys, connector.launch.sweep, connector.runs.naming; assert 'torch' not in sys.modules; import connector; connector.load_run"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
