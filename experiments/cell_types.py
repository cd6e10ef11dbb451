"""How often does the test for cell types fire? On populations without any, and on a mixture of four.

    python experiments/cell_types.py --datasets 100 --out cell_types.json

Without cell types: bistable, limit_cycle, ring and heavy_tailed in turn. With: quadstable. Each data set is a fresh draw
of neurons; the test is :func:`connector.analysis.cell_types.cell_type_test` as a run makes it, on the loadings alone. Printed are
the share with p <= .05 and its 95 % interval (Wilson). Seeds of the populations count up from --seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from scipy.stats import binomtest

from connector.analysis.cell_types import cell_type_test
from connector.data.attractors import teacher

LEVEL = 0.05
WITHOUT = ("bistable", "limit_cycle", "ring", "heavy_tailed")
WITH = ("quadstable",)


def p_values(names: tuple[str, ...], count: int, n_neurons: int, seed: int, advance) -> dict[str, list[float]]:
    """p-values of ``count`` fresh populations, the teachers of ``names`` in turn, by teacher."""
    found = {name: [] for name in names}
    for i in range(count):
        name = names[i % len(names)]
        generator = torch.Generator().manual_seed(seed + i)
        loadings = teacher(name).sample(n_neurons, generator).loadings
        found[name].append(cell_type_test(loadings, seed=seed + i).p_value)
        advance()
    return found


def share(p: list[float]) -> tuple[int, float, float]:
    """Number of p <= LEVEL, and the Wilson interval of its share."""
    fired = sum(value <= LEVEL for value in p)
    interval = binomtest(fired, len(p)).proportion_ci(0.95, method="wilson")
    return fired, interval.low, interval.high


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=100, help="with and without cell types, each")
    parser.add_argument("--neurons", type=int, default=1000, help="of each population")
    parser.add_argument("--seed", type=int, default=0, help="of the first population")
    parser.add_argument("--out", default="cell_types.json")
    options = parser.parse_args(arguments)
    console = Console()
    started = time.process_time()
    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        bar = progress.add_task("", total=2 * options.datasets)
        found = {
            title: p_values(names, options.datasets, options.neurons, options.seed, lambda: progress.advance(bar))
            for title, names in (("without", WITHOUT), ("with", WITH))
        }
    table = Table(title=f"Test for cell types on the loadings of {options.neurons} neurons, level {LEVEL}")
    for head in ("cell types", "population", "data sets", "test fires", "95 % interval of the share"):
        table.add_column(head)
    for title, by_name in found.items():
        groups = {"all": [p for values in by_name.values() for p in values]} | (by_name if len(by_name) > 1 else {})
        for name, values in groups.items():
            if not values:
                continue
            fired, low, high = share(values)
            table.add_row(title, name, str(len(values)), str(fired), f"{low:.3f} to {high:.3f}")
    console.print(table)
    console.print(f"{time.process_time() - started:.0f} CPU seconds")
    Path(options.out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
