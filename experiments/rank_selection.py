"""Cross-validation over the rank of the low-rank RNN: the score on held-out trials against the rank.

    python train.py -m data=npz data.path=FILE lrrnn.rank=1,2,3,4 data.fold=1,2,3,4,5 'stages=[lrrnn]'
    python experiments/rank_selection.py            # or: python experiments/rank_selection.py SWEEP_DIRECTORY

Spikes: bits per spike of test trials (the bound on the marginal likelihood, and the rollout from the inputs alone),
higher is better. Rates: validation loss, lower is better. Mean over folds ± standard error, sd / sqrt(number of folds);
beside it the difference from the best rank, fold by fold, whose error does not hold what makes one fold harder than
another for every rank.

The one-standard-error choice is the smallest rank whose mean lies within one standard error (the best rank's) of the best
mean. It is a choice and no finding: a convention that prefers few dimensions. It tells how many dimensions these trials
suffice to fit, not how many the circuit has; folds share training trials, so that the standard error is too small; and
the score of the rank chosen is optimistic, as the same trials chose it.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from fold_runs import FoldGroup, differing, find_runs, grouped
from matplotlib.figure import Figure
from rich.table import Table
from saved_runs import MissingRuns, finish, note, save, styled

from connector.figures.style import ACCENT, INFERRED, MUTED
from connector.report.glossary import METRICS
from connector.terminal import wide_console

EXAMPLE = (
    "python train.py -m data=npz data.path=FILE lrrnn.rank=1,2,3,4 data.fold=1,2,3,4,5 'stages=[lrrnn]'"
    "    # npz: or nwb, nlb, rat, as the file is"
)
RANK = "lrrnn.rank"
BITS, ROLLOUT, LOSS = "lrrnn/bits_per_spike", "lrrnn/bits_per_spike_prior", "lrrnn/val_loss"
CAVEAT = (
    "The choice is a convention (the smallest rank within one standard error of the best), not a finding: it says how many "
    "dimensions these trials suffice to fit, not how many the circuit has. Folds share training trials, which makes the "
    "standard error too small, and the score of the rank chosen is optimistic, as the same trials chose it."
)


@dataclass(frozen=True)
class Curve:
    """One score against the rank.

    Attributes:
        key: of metrics.json; ranks: ascending; values: (ranks, folds).
    """

    key: str
    ranks: tuple[int, ...]
    values: np.ndarray

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return -1 if METRICS[self.key].direction == "lower" else 1

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of each mean, over folds."""
        return self.values.std(1, ddof=1) / math.sqrt(self.values.shape[1])

    @property
    def best(self) -> int:
        """Index of the rank with the best mean."""
        return int(np.argmax(self.sign * self.mean))

    @property
    def threshold(self) -> float:
        """The score that the choice has to reach: the best mean less its standard error."""
        return float(self.mean[self.best] - self.sign * self.standard_error[self.best])

    @property
    def choice(self) -> int:
        """The rank of the one-standard-error rule."""
        good_enough = self.sign * self.mean >= self.sign * self.threshold
        return self.ranks[int(np.argmax(good_enough))]

    def difference(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean over folds of the difference from the best rank in the same fold, and its standard error."""
        paired = self.values - self.values[self.best]
        return paired.mean(1), paired.std(1, ddof=1) / math.sqrt(paired.shape[1])


def curves_of(groups: Mapping[str, FoldGroup]) -> list[Curve]:
    """The scores of complete groups, rank -> runs by fold: the first is the one that chooses."""
    ranks = sorted(groups, key=int)
    runs = [[groups[rank].runs[k] for k in sorted(groups[rank].runs)] for rank in ranks]
    keys = [BITS, ROLLOUT] if all(BITS in run.metrics for row in runs for run in row) else [LOSS]
    kept = [key for key in keys if all(key in run.metrics for row in runs for run in row)]
    values = {key: np.array([[run.metrics[key] for run in row] for row in runs]) for key in kept}
    return [Curve(key, tuple(map(int, ranks)), values[key]) for key in kept]


def table_of(curve: Curve) -> Table:
    metric = METRICS[curve.key]
    table = Table(title=f"{metric.label} ({metric.unit}, {metric.direction} is better)", title_justify="left")
    for name in ("rank", *(f"fold {k + 1}" for k in range(curve.values.shape[1])), "mean ± se", "less the best ± se"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    difference, error = curve.difference()
    for i, rank in enumerate(curve.ranks):
        said = [word for word, true in (("best", i == curve.best), ("choice", rank == curve.choice)) if true]
        paired = "" if i == curve.best else f"{difference[i]:+.4g} ± {error[i]:.2g}"
        mean = f"{curve.mean[i]:.4g} ± {curve.standard_error[i]:.2g}"
        table.add_row(str(rank), *(f"{value:.4g}" for value in curve.values[i]), mean, paired, ", ".join(said))
    return table


def draw(curves: Sequence[Curve]) -> Figure:
    figure = Figure(figsize=(4.4 * len(curves) + 1, 3.9), layout="constrained")
    for axis, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves):
        axis.plot(curve.ranks, curve.values, color=MUTED, linewidth=0.7, alpha=0.6)
        axis.errorbar(curve.ranks, curve.mean, yerr=curve.standard_error, color=INFERRED, fmt="o-", capsize=3)
        axis.axhline(curve.threshold, color=MUTED, linestyle=":", linewidth=1)
        chosen = curve.ranks.index(curve.choice)
        axis.plot(curve.choice, curve.mean[chosen], "o", markersize=12, fillstyle="none", color=ACCENT)
        metric = METRICS[curve.key]
        axis.set(xlabel="rank", ylabel=metric.unit, xticks=curve.ranks)
        axis.set_title(f"{textwrap.fill(metric.label, 42)}\nchoice: rank {curve.choice}")
    said = (
        "Points: mean over folds ± standard error; thin lines: folds; dotted: one standard error worse than the best; "
    )
    note(figure, f"{said}ring: the one-standard-error choice. {CAVEAT}")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directories", nargs="*", default=["runs"], metavar="DIR", help="sweeps, runs, or where they lie"
    )
    parser.add_argument("--out", default="figures", metavar="DIR", help="where figures go (default: figures)")
    parsed = parser.parse_args(arguments)
    console = wide_console(200)
    runs = find_runs(parsed.directories, lambda run: LOSS in run.metrics)
    complete, commands = [], []
    for ranks in grouped(runs, [RANK]):
        whole = {rank: group for rank, group in ranks.items() if not group.missing}
        commands += [group.command(group.missing) for group in ranks.values() if group.missing]
        if len(whole) > 1:
            complete.append(whole)
    if not complete:
        found = f"No two ranks with all folds in {', '.join(parsed.directories)}. To make them:"
        raise MissingRuns("\n".join([found, *(commands or [EXAMPLE])]))
    told = differing([next(iter(ranks.values())) for ranks in complete])
    for number, (ranks, options) in enumerate(zip(complete, told)):
        curves = curves_of(ranks)
        config = next(iter(ranks.values())).first.config
        title = str(config["data"].get("path", config["experiment_name"]))
        console.print(f"\n{title}{f' ({options})' if options else ''}", markup=False, highlight=False, soft_wrap=True)
        for curve in curves:
            console.print(table_of(curve))
        console.print(f"One-standard-error choice: rank {curves[0].choice}, by the first table.", highlight=False)
        console.print(CAVEAT, soft_wrap=True, highlight=False)
        with styled():
            save(draw(curves), parsed.out, "rank_selection" + (f"_{number + 1}" if number else ""), console)
    if commands:
        said = "\n".join(["\nOther runs lack folds. To make them:", *commands])
        console.print(said, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(finish(main))
