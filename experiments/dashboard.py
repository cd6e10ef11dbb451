"""The project's dashboard at Weights & Biases: a saved view with the measures, learning curves, tables and figures of runs.

    python experiments/dashboard.py --entity ENTITY --project connector
    python experiments/dashboard.py --json dashboard.json          # what would be saved, without an account

Needs the extra `wandb` (wandb-workspaces) and, to save it, an account (`wandb login`). Runs are grouped by W&B group, which
is the sweep or the experiment. Once saved it is the project's like any other view, and may be changed there by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from connector.errors import UserError, exit_code
from connector.files import write_text
from connector.report.glossary import METRICS
from connector.runs.naming import conf_directory
from connector.runs.options import STAGES

CONF = conf_directory()
# Measures that runs are judged by, as far as they have them; each gets a chart of its own.
MEASURES = (
    "connectivity/dissimilarity",
    "dynamics/attractors_kept",
    "dynamics/field_error",
    "dynamics/field_error_projected",
    "lrrnn/bits_per_spike",
    "lrrnn/psth_r2_evidence",
)
OPTIONS = ("lrrnn.rank", "connectivity.regularizer", "connectivity.flow.hidden_width", "seed", "data.fold")
_LOGARITHMIC = {"connectivity.regularizer", "connectivity/dissimilarity", "dynamics/field_error"}
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 6  # of the grid of panels


def _libraries() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        remedy = "install it with: pip install --constraint constraints.txt --editable '.[wandb]'"
        raise UserError("the package wandb-workspaces", "none", remedy) from error
    return panels, workspaces


def title(key: str) -> str:
    """A measure's name and unit, as the report has them."""
    metric = METRICS[key]
    return f"{metric.label} [{metric.unit}]"


def build(entity: str, project: str, name: str = "Connector") -> Any:
    """The workspace, not saved anywhere."""
    panels, workspaces = _libraries()

    def placed(made: Sequence[Any]) -> list[Any]:
        for i, panel in enumerate(made):
            x, y = i % _COLUMNS * _WIDTH, i // _COLUMNS * _HEIGHT
            panel.layout = panels.Layout(x=x, y=y, w=_WIDTH, h=_HEIGHT)
        return list(made)

    def column(metric: Any, key: str) -> Any:
        return panels.ParallelCoordinatesPlotColumn(metric=metric, display_name=key, log=key in _LOGARITHMIC or None)

    axes = [column(panels.Config(key), key) for key in OPTIONS]
    axes += [column(panels.SummaryMetric(key), key) for key in MEASURES]
    parallel = panels.ParallelCoordinatesPlot(title="Options and measures", columns=axes)
    parallel.layout = panels.Layout(x=0, y=0, w=3 * _WIDTH, h=2 * _HEIGHT)
    bars = [panels.BarPlot(title=title(key), metrics=[panels.SummaryMetric(key)]) for key in MEASURES]
    curves = [
        panels.LinePlot(
            title=f"{stage}: {part} loss", x=f"{stage}/epoch", y=[f"{stage}/{loss}"], log_y=True,
            smoothing_type="none",
        )
        for stage in STAGES
        for part, loss in (("validation", "val_loss"), ("training", "train_loss"))
    ]  # fmt: skip
    curves += [
        panels.LinePlot(
            title=f"{stage}: learning rate", x=f"{stage}/epoch", y=[f"{stage}/learning_rate"], smoothing_type="none"
        )
        for stage in STAGES
    ]
    seconds = [
        panels.BarPlot(
            title=title(f"timing/{stage}_seconds"), metrics=[panels.SummaryMetric(f"timing/{stage}_seconds")]
        )
        for stage in STAGES
    ]
    keys = [f"figures/{figure}" for figure in ("flow_field", "loadings", "conditional_mean", "intervals")]
    looks = [panels.MediaBrowser(title="Figures", media_keys=keys), panels.RunComparer(diff_only=True)]
    tables = [panels.WeavePanelSummaryTable(table_name=f"tables/{table}") for table in ("neurons", "modes")]
    sections = {
        "Comparison": [parallel],
        "Measures": placed(bars),
        "Learning curves": placed(curves),
        "Figures and options": placed(looks),
        "Neurons and modes": placed(tables),
        "Time": placed(seconds),
    }
    order = workspaces.Ordering(workspaces.Summary(MEASURES[0]), ascending=METRICS[MEASURES[0]].direction == "lower")
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[workspaces.Section(name=head, panels=made, is_open=True) for head, made in sections.items()],
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")], order=[order]),
    )


def definition(workspace: Any) -> dict[str, Any]:
    """What would be saved, as plain values."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the dashboard; save it, or write its definition."""
    default = OmegaConf.load(CONF / "logger" / "csv.yaml").project
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", default="", help="account or team that the project belongs to")
    parser.add_argument("--project", default=default, help=f"as logger.project (default: {default})")
    parser.add_argument("--name", default="Connector", help="of the saved view (default: Connector)")
    parser.add_argument("--json", metavar="FILE", help="write the definition to a file in place of saving it")
    given = parser.parse_args(arguments)
    workspace = build(given.entity, given.project, given.name)
    if given.json:
        write_text(Path(given.json), json.dumps(definition(workspace), indent=2) + "\n")
        print(given.json)
        return
    if not given.entity:
        raise UserError("--entity, the account or team of the project", "none", "or write a file with --json FILE")
    try:
        workspace.save()
    except Exception as error:  # no key, no network, no such project: which error depends on the version
        said = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "log in with `wandb login` and send a run of the project first, or write a file with --json FILE"
        raise UserError(f"W&B to save a view of {given.entity}/{given.project}", said, remedy) from error
    print(workspace.url)


def run(arguments: Sequence[str] | None = None) -> int:
    return exit_code(main, arguments)


if __name__ == "__main__":
    sys.exit(run())
