"""Measures on held-out trials, fold by fold and pooled over folds: one table for the runs of a sweep over folds.

    python train.py -m experiment=rat data.path=FILE data.fold=1,2,3,4,5 'stages=[lrrnn]'
    python experiments/folds.py                     # or: python experiments/folds.py SWEEP_DIRECTORY

Every trial is a test trial of one fold. Columns: each fold, mean ± standard deviation over folds, and pooled:

- bits per spike: sum over folds of (log L_model - log L_mean rate) / (ln 2 x sum of their spikes); each fold's mean rates
  are those of its training trials, and 0 by definition.
- PSTH R^2: counts of the test trials of all folds, observed and expected, are added up by condition c and time t before
  the PSTHs P and Q are taken; then, for each neuron, both smoothed by the same causal Gaussian (sd 0.1 s),
      R^2 = 1 - sum_ct (P_c(t) - Q_c(t))^2 / sum_ct (P_c(t) - N_c(t))^2,
  and the median over neurons. N is of each fold's mean rates over training trials, Q of the noise-averaged rollout: what
  the fitted model predicts from the inputs alone. A single fold's R^2 is limited by the noise of its few trials' PSTHs; do
  not compare it with the pooled one.
- choice AUC: of the log odds at z(T) that each fold's training trials fit, and of the click difference, for all trials.

The nulls know no latent state: drift across the session, times each neuron's PSTH, times its PSTH by evidence. All stand
on the local or on the standard baseline, as the column says: compare rows of the same one only.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from fold_runs import EXAMPLE, FoldGroup, FoldRun, differing, find_runs, grouped
from rich.table import Table
from saved_runs import MissingRuns, finish

from connector.analysis.spike_nulls import NULLS
from connector.analysis.spike_scores import ResponseSums, auc, psth_r2_of_sums
from connector.errors import UserError
from connector.report.glossary import BASELINES
from connector.runs.store import RunStore
from connector.terminal import wide_console

BITS = "lrrnn/bits_per_spike"
MODEL = "low-rank RNN"
NULL_NAMES = {"drift": "drift", "drift_psth": "drift × PSTH", "drift_evidence_psth": "drift × evidence PSTH"}
OF_BITS = {
    **{f"{BITS}_null_{name}": NULL_NAMES[name] for name in NULLS},
    f"{BITS}_prior": f"{MODEL}, prior rollout",
    BITS: f"{MODEL}, marginal",
    "lrrnn/co_smoothing": f"{MODEL}, co-smoothing",
}
POOLED_KEYS = {"trials", "spikes", "baseline", "smooth_sd_bins"}


def keeps_responses(run: FoldRun) -> bool:
    """Whether the run kept what is pooled, as runs of an older version did not."""
    found = set(run.responses)
    means = {f"{condition}_mean" for condition in ("evidence", "choice") if f"{condition}_trials" in found}
    return found >= POOLED_KEYS | means


def lacking(group: FoldGroup) -> list[int]:
    """Folds that are to be run, or to be run anew."""
    return sorted([*group.missing, *(k for k, run in group.runs.items() if not keeps_responses(run))])


def suffix_of(run: FoldRun, baseline: str) -> str:
    """What names of a quantity end with where it holds for ``baseline``."""
    return "" if str(run.responses["baseline"]) == baseline else f"_{baseline}"


def pooled_bits(runs: Sequence[FoldRun], key: str) -> float:
    """Bits per spike of the test trials of all folds together."""
    spikes = np.array([float(run.responses["spikes"]) for run in runs])
    return float(np.dot([run.metrics[key] for run in runs], spikes) / spikes.sum())


def shared_neurons(runs: Sequence[FoldRun]) -> list[np.ndarray]:
    """Columns of each run's neurons that all runs have, in one order: a fold leaves out those silent in its training trials."""
    names = [run.responses.get("neurons", np.arange(run.responses["observed"].shape[2]).astype(str)) for run in runs]
    everywhere = [name for name in names[0].tolist() if all(name in other for other in names[1:])]
    return [np.array([of_run.tolist().index(name) for name in everywhere], dtype=int) for of_run in names]


def psth_r2_of(runs: Sequence[FoldRun], condition: str, predicted: str) -> float:
    """Median R^2 of PSTHs of the runs' test trials together, by "evidence" or "choice".

    ``predicted``: which expected counts, such as "model" or "null_drift_psth_standard".
    """

    def total(name: str, *columns: np.ndarray) -> torch.Tensor:
        parts = [run.responses[f"{condition}_{name}"] for run in runs]
        parts = [part[..., own] for part, own in zip(parts, columns)] if columns else parts
        return torch.from_numpy(np.sum(parts, 0, dtype=np.float64))

    trials, columns = total("trials"), shared_neurons(runs)
    sums = (ResponseSums(total(name, *columns), trials) for name in ("observed", predicted, "mean"))
    return psth_r2_of_sums(*sums, smooth_sd_bins=float(runs[0].responses["smooth_sd_bins"]))[0]


def auc_of(runs: Sequence[FoldRun], scores: str) -> float:
    """Choice AUC of ``scores`` ("choice_log_odds", "click_difference") for the runs' test trials together."""
    both = (np.concatenate([run.responses[name] for run in runs]) for name in (scores, "choices"))
    return auc(*map(torch.from_numpy, both))


def check_folds(runs: Sequence[FoldRun]) -> None:
    """Refuse to pool runs that test on the same trials, or record other neurons."""
    tested = np.concatenate([run.responses["trials"] for run in runs])
    if len(np.unique(tested)) < len(tested):
        raise UserError("runs whose test trials are different ones", "trials tested twice", "make the runs anew")
    fewest = min(run.responses["observed"].shape[2] for run in runs)
    shared = len(shared_neurons(runs)[0])
    if shared < 0.5 * fewest:
        raise UserError(
            "runs on the same neurons", f"{shared} of {fewest} in common", "did the file change between runs?"
        )


Row = tuple[str, str, str, list[float], float | None]  # measure, of what, baseline, by fold, pooled


def rows_of(group: FoldGroup) -> list[Row]:
    """The table's rows; what a recording does not have (evidence, choices, trial times) is left out."""
    runs = list(group.runs.values())
    check_folds(runs)
    rows: list[Row] = []

    def add(measure: str, what: str, baseline: str, value: Callable[[Sequence[FoldRun]], float]) -> None:
        rows.append((measure, what, baseline, [value([run]) for run in runs], value(runs)))

    for baseline in BASELINES:
        suffix = suffix_of(runs[0], baseline)
        if all(f"{BITS}{suffix}" in run.metrics for run in runs):
            rows.append(("bits per spike", "mean rate", baseline, [0.0] * len(runs), 0.0))
            for key, what in OF_BITS.items():
                if all(key + suffix in run.metrics for run in runs):
                    add("bits per spike", what, baseline, lambda r, key=key + suffix: pooled_bits(r, key))
    for condition in ("evidence", "choice"):
        for baseline in BASELINES:
            names = [f"null_{null}" for null in NULLS if null != "drift"] + ["model"]
            for name in (name + suffix_of(runs[0], baseline) for name in names):
                if all(f"{condition}_{name}" in run.responses for run in runs):
                    null = name.removeprefix("null_").removesuffix(f"_{baseline}")
                    what = f"{MODEL}, noise-averaged rollout" if name.startswith("model") else NULL_NAMES[null]
                    add(f"PSTH R², {condition}", what, baseline, lambda r, c=condition, n=name: psth_r2_of(r, c, n))
    for baseline in BASELINES:
        scores = "choice_log_odds" + suffix_of(runs[0], baseline)
        if all(scores in run.responses for run in runs):
            add("choice AUC", f"{MODEL}, z(T)", baseline, lambda r, s=scores: auc_of(r, s))
    if all({"click_difference", "choices"} <= set(run.responses) for run in runs):
        add("choice AUC", "click difference", "", lambda r: auc_of(r, "click_difference"))
    for what, key in (("stage lrrnn, wall clock", "seconds"), ("stage lrrnn, CPU", "cpu_seconds")):
        records = [RunStore(run.path).stages()["lrrnn"] for run in runs]
        if all(key in record for record in records):
            rows.append(("seconds", what, "", [record[key] for record in records], None))
    return rows


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1 in its denominator) over folds."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def table_of(group: FoldGroup) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("measure", "of", "baseline"):
        table.add_column(name, no_wrap=True)
    for name in (*(f"fold {k}" for k in group.runs), "mean ± sd", "pooled"):
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for measure, what, baseline, values, pooled in rows_of(group):
        digits = {"bits per spike": 4, "seconds": 0}.get(measure, 3)
        mean, sd = mean_and_sd(values)
        cells = [f"{value:.{digits}f}" for value in values]
        cells.append(f"{mean:.{digits}f} ± {sd:.{digits}f}")
        if before not in (None, (measure, baseline)):
            table.add_section()
        table.add_row(
            measure if before != (measure, baseline) else "", what, baseline if before != (measure, baseline) else "",
            *cells, "" if pooled is None else f"{pooled:.{digits}f}",
        )  # fmt: skip
        before = measure, baseline
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directories", nargs="*", default=["runs"], metavar="DIR", help="sweeps, runs, or where they lie"
    )
    parsed = parser.parse_args(arguments)
    runs = find_runs(parsed.directories, lambda run: BITS in run.metrics)
    groups = [group for each in grouped(runs) for group in each.values()]
    complete = [group for group in groups if not lacking(group)]
    console = wide_console(200)
    for group, told in zip(complete, differing(complete)):
        path = group.first.config["data"].get("path", group.first.config["experiment_name"])
        n_trials = sum(len(run.responses["trials"]) for run in group.runs.values())
        said = f"{path}{f' ({told})' if told else ''}: {n_trials} trials, each a test trial of one of {group.n_folds} folds"
        console.print(f"\n{said}", markup=False, highlight=False, soft_wrap=True)
        console.print(table_of(group))
    commands = [
        group.command(lacking(group), force=bool(set(lacking(group)) & set(group.runs)))
        for group in groups
        if lacking(group)
    ]
    if not complete:
        found = f"No complete set of folds in {', '.join(parsed.directories)}. To make one:"
        raise MissingRuns("\n".join([found, *(commands or [EXAMPLE])]))
    if commands:
        said = "\n".join(["\nOf other runs folds are missing. To make them:", *commands])
        console.print(said, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(finish(main))
