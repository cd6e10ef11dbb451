"""Heavy-tailed connectivity: are the tails of J recovered? System: heavy_tailed (Student-t neurons).

    python experiments/heavy_tails.py

Quantiles of |m_i.n_j| over pairs of neurons in sampled networks of 1000 neurons, against networks of the teacher. Twice:
at n = nu (sigma = 0 against the teacher's conditional mean), the part that dynamics determine; and with a spread about nu
(the run's sigma against the teacher's own heavy-tailed residual), where the inferred spread is Gaussian by choice. Bands:
5 to 95 % over networks; the tails of a network of 1000 neurons rest on a few of them.

"recorded" is the one network the estimates were made from, whose own tails are a draw of chance.

Needs a run of heavy_tailed. Where one with connectivity.flow.base=normal is there, it is drawn beside the default, which
chooses between a normal and a Student-t base by the likelihood of held-out neurons.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from saved_runs import AttractorRun, Wanted, arguments_of, finish, note, require, save, styled
from torch import Tensor

from connector.analysis.distances import TAIL_PROBABILITIES, connectivity_entries, tail_quantiles
from connector.data.attractors import Teacher
from connector.dynamics import Network
from connector.figures.style import ACCENT, INFERRED, MUTED, TRUE

NORMAL = ("connectivity.flow.base=normal",)
_SURVIVAL = torch.logspace(0, -5, 60, dtype=torch.float64)  # fractions of pairs


def truths(teacher: Teacher, count: int, spread: bool) -> list[Network]:
    """Networks of the teacher; without ``spread`` with n = nu."""
    drawn = [teacher.sample(1000, torch.Generator().manual_seed(seed)) for seed in range(count)]
    if spread:
        return drawn
    return [replace(network, n=teacher.conditional_mean(network.loadings)) for network in drawn]


def survival(network: Network) -> Tensor:
    """|m_i.n_j| that a fraction ``_SURVIVAL`` of pairs exceeds."""
    magnitude = connectivity_entries(network).abs().sort().values
    return magnitude[((1 - _SURVIVAL) * (len(magnitude) - 1)).round().long()]


def band(rows: list[Tensor]) -> Tensor:
    """5 %, median and 95 % over networks, (3, ...)."""
    return torch.quantile(torch.stack(rows), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=0)


def base_of(run: AttractorRun) -> str:
    return {"StudentT": "Student-t base", "student_t": "Student-t base"}.get(
        str(run.connectivity.loadings_flow.arguments().get("base", "normal")), "normal base"
    )


def measure(runs: dict[str, AttractorRun], count: int) -> dict[str, dict[str, dict[str, Tensor]]]:
    """ "nu" or "spread" -> name -> bands of tail quantiles and of survival curves."""
    found = {}
    run_of_truth = next(iter(runs.values()))
    teacher = run_of_truth.teacher
    for part in ("nu", "spread"):
        recorded = run_of_truth.truth
        if part == "nu":
            recorded = replace(recorded, n=teacher.conditional_mean(recorded.loadings))
        networks = {"true": truths(teacher, count, part == "spread"), "recorded": [recorded]}
        for name, run in runs.items():
            sigma = run.sigma if part == "spread" else 0.0
            networks[name] = [run.sample(1000, sigma, seed=seed) for seed in range(count)]
        found[part] = {
            name: {
                "quantiles": band([tail_quantiles(network) for network in several]),
                "survival": band([survival(network) for network in several]),
            }
            for name, several in networks.items()
        }
    return found


def show(found: dict, sigma: float, console: Console) -> None:
    titles = {"nu": "n = nu: determined by dynamics", "spread": f"with spread: inferred sigma = {sigma:g}, a choice"}
    for part, title in titles.items():
        table = Table(title=f"Quantiles of |m.n|, {title}; median (5 to 95 % over networks)")
        table.add_column("networks")
        for probability in TAIL_PROBABILITIES:
            table.add_column(f"{100 * probability:g} %", justify="right")
        for name, bands in found[part].items():
            low, middle, high = bands["quantiles"]
            table.add_row(name, *(f"{b:.3g} ({a:.3g} to {c:.3g})" for a, b, c in zip(low, middle, high)))
        console.print(table)


def draw(found: dict, sigma: float) -> Figure:
    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1])
    colours = {name: colour for name, colour in zip(found["nu"], (TRUE, MUTED, INFERRED, ACCENT))}
    titles = {"nu": r"$n = \nu$ (determined)", "spread": rf"With spread, $\sigma$ = {sigma:g} (a choice)"}
    for axis, (part, title) in zip(axes, titles.items()):
        for name, bands in found[part].items():
            low, middle, high = bands["survival"].numpy()
            axis.fill_betweenx(_SURVIVAL.numpy(), low, high, color=colours[name], alpha=0.18, linewidth=0)
            axis.plot(
                middle, _SURVIVAL.numpy(), color=colours[name], label=name, linewidth=2.2 if name == "true" else 1.5
            )
        axis.set(xscale="log", yscale="log", title=title, xlabel="$|m_i \\cdot n_j|$, connection weight times $K$",
                 ylabel="fraction of pairs above", xlim=(0.1, None), ylim=(1e-5, 1.5))  # fmt: skip
    axes[0].legend(loc="lower left")
    axis, at = axes[2], torch.arange(len(TAIL_PROBABILITIES), dtype=torch.float64)
    true = found["nu"]["true"]["quantiles"]
    axis.fill_between(at, true[0] / true[1], true[2] / true[1], color=TRUE, alpha=0.15, linewidth=0)
    axis.axhline(1, color=TRUE, linewidth=1)
    for shift, (name, bands) in enumerate(list(found["nu"].items())[1:]):
        low, middle, high = bands["quantiles"] / true[1]
        error = torch.stack([middle - low, high - middle]).numpy()
        axis.errorbar(at + 0.12 * (shift - 1), middle, yerr=error, color=colours[name], fmt="o", capsize=2.5)
    axis.set_xticks(at.numpy(), [f"{100 * p:g} %" for p in TAIL_PROBABILITIES])
    axis.set(
        title=r"Quantiles over true ones, $n = \nu$",
        xlabel="quantile of $|m_i \\cdot n_j|$",
        ylabel="ratio to the true quantile",
    )
    note(
        figure,
        "Lines and dots: medians; bands and bars: 5 to 95 % over networks of 1000 neurons (dark: of the teacher itself, the "
        "null of this comparison; grey: the one network that was recorded; the right panel has the colours of the left). Data determine p(m) and nu, hence the left and right panels; in the middle one the inferred "
        "spread about nu is the stated Gaussian, while the teacher's is heavy-tailed: no data on dynamics could tell.",
    )
    return figure


def main(arguments=None) -> None:
    parser = arguments_of(__doc__, options=False)
    parser.add_argument("--samples", type=int, default=20, help="networks sampled of each kind")
    arguments = parser.parse_args(arguments)
    console = Console(width=170)
    run = require(arguments.runs, Wanted("heavy_tailed"))[0][0]
    runs = {f"inferred, {base_of(run)}": run}
    normal = Wanted("heavy_tailed", NORMAL)
    there = normal.found(Path(arguments.runs))
    if there:
        runs.setdefault("inferred, normal base", AttractorRun(there[0]))
    else:
        console.print(
            f"To draw a flow from a normal base beside: {normal.command(Path(arguments.runs))}", highlight=False
        )
    found = measure(runs, arguments.samples)
    show(found, run.sigma, console)
    with styled():
        save(draw(found, run.sigma), arguments.out, "heavy_tails", console)


if __name__ == "__main__":
    raise SystemExit(finish(main))
