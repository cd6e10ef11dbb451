"""How often do the bands of vector field and nu hold the truth, from spikes? Simulated networks, sampled, compared.

    python experiments/spike_coverage.py --datasets 12 --out figures/spike_coverage.json
    python experiments/spike_coverage.py --kinds ring cycle --seed 700 --sweeps 400
    python experiments/spike_coverage.py --neurons 250 400 --runs --seed 9700 --datasets 40

Each data set draws a kind of dynamics, a form of nu, 50 to 150 recorded neurons of ten times as many (--neurons), 4 to 20 Hz,
200 to 600 trials of 80 bins of 10 ms, process noise of 0 to .2 a step, and drift in half of the cases. Sampling starts from
principal components of smoothed counts. With --runs each data set is a file that train.py fits with its defaults, on its training
trials: with many neurons in closed form, where that is good enough. Compared in the true gauge: the vector field at visited
states with that of the network itself, nu at fresh loadings, and the number of stable points. Finished data sets are added to
--out, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from marked_pages import markdown_table, rewrite
from rich.console import Console
from rich.table import Table
from scipy.stats import kstest
from torch import Tensor
from torch.nn.functional import softplus

from connector.analysis.attractor_probabilities import count_attractors
from connector.analysis.fixed_points import count_fixed_points
from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.field import fit_field, sampled_basis
from connector.connectivity.nu.mean import ConditionalMean, TrajectoryMean
from connector.data.folds import Fold
from connector.files import write_npz
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.lrrnn.spikes.posterior import Start, sample_posterior
from connector.runs.saved import load_run
from connector.stages.outputs import estimate_conditional_mean
from connector.types import Loadings, Recording

HERE = Path(__file__).resolve().parent
COUNTED = 50  # draws of the field in which stable points are counted
LEVELS = (0.5, 0.8, 0.95)
ALPHA, STEPS, BIN_S = 0.1, 80, 0.01
RECORDED = (50, 150)  # neurons
FIELDS = 200  # draws of the field after the closed form
OWN_SPREAD, UNRECORDED, FASTEST = 0.5, 10, 30.0  # Hz


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def uniform(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=g))


def turn(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


def along(g: torch.Generator, first: tuple[float, float], second: tuple[float, float]) -> Tensor:
    """A linear drive with these gains along two orthogonal axes."""
    axes = turn(uniform(g, 0, math.pi))
    return axes @ torch.diag(torch.tensor([uniform(g, *first), uniform(g, *second)], dtype=torch.float64)) @ axes.T


KINDS = {  # the drive near the origin, as a matrix: gains above 1 leave it
    "ring": lambda g: uniform(g, 1.5, 1.9) * torch.eye(2, dtype=torch.float64),
    "cycle": lambda g: uniform(g, 1.6, 2.0) * turn(uniform(g, 0.2, 0.5)),
    "bistable": lambda g: along(g, (1.6, 2.0), (0.3, 0.8)),
    "line": lambda g: along(g, (1.0, 1.1), (0.0, 0.5)),
    "slow": lambda g: along(g, (0.85, 0.95), (0.5, 0.8)),
    "decision": lambda g: along(g, (1.4, 1.8), (0.2, 0.6)),  # with an input
}
FORMS = {  # nu as a function of m, before it is scaled to the kind
    "linear": lambda m: m,
    "cubic": lambda m: m + 0.25 * m**3,
    "step": lambda m: torch.tanh(3 * m),
    "ramp": lambda m: torch.relu(m - 0.2) - torch.relu(-m - 0.2) + 0.2 * m,
    "quadratic": lambda m: m + 0.3 * (m[:, :1] ** 2 - 1.4) * torch.tensor([[1.0, -0.5]], dtype=torch.float64),
}


def simulate(kind: str, form: str, seed: int, recorded: tuple[int, int] = RECORDED) -> SimpleNamespace:
    """A network of softplus neurons, its latent states, spikes of a tenth of it, and what is true of it."""
    g = torch.Generator().manual_seed(seed)
    neurons, trials = round(uniform(g, *recorded)), round(uniform(g, 200, 600))
    noise = (0.0, 0.05, 0.1, 0.2)[int(torch.randint(4, (1,), generator=g))]
    scale, drifts = uniform(g, 3.5, 11) * BIN_S, bool(torch.rand(1, generator=g) < 0.5)

    def loadings(k: int) -> tuple[Tensor, Tensor]:
        sign = torch.where(torch.rand(k, generator=g) < 0.5, 1.0, -1.0).double()
        return 1.2 * normal(g, k, 2), 1.2 * sign + 0.2 * normal(g, k)

    gains = KINDS[kind](g)
    m, d = loadings(100_000)
    shape = (d.sign()[:, None] * FORMS[form](m) * torch.sigmoid(d)[:, None]).T @ m / len(m)
    size = gains @ torch.linalg.inv(shape)

    def nu(m: Tensor, d: Tensor) -> Tensor:
        return d.sign()[:, None] * FORMS[form](m) @ size.T

    m, d = loadings(UNRECORDED * neurons)
    n = nu(m, d) + OWN_SPREAD * normal(g, len(m), 2)
    b = (
        (m @ torch.tensor([[0.8], [0.24]], dtype=torch.float64) + 0.2 * normal(g, len(m), 1))
        if kind == "decision"
        else None
    )
    u = None
    if b is not None:
        mean = torch.linspace(-1, 1, 9, dtype=torch.float64)[torch.randint(9, (trials,), generator=g)]
        u = (mean[:, None] + 0.7 * normal(g, trials, STEPS))[..., None]

    def drive(z: Tensor, u: Tensor | None) -> Tensor:
        return softplus(z @ m.T + d + (0 if u is None else u @ b.T)) @ n / len(m)

    z = [(0.3 if u is not None else 1.2) * normal(g, trials, 2)]
    for t in range(STEPS - 1):
        step = z[-1] + ALPHA * (drive(z[-1], None if u is None else u[:, t]) - z[-1])
        z.append(step + noise * normal(g, trials, 2))
    z = torch.stack(z, 1)
    potential = z @ m[:neurons].T + d[:neurons] + (0 if u is None else u @ b[:neurons].T)
    offset = None
    if drifts:
        phase = 6 * torch.rand(neurons, generator=g, dtype=torch.float64)
        course = (
            torch.cos(6 * torch.linspace(0, 1, trials, dtype=torch.float64)[:, None] + phase) * 0.6 * normal(g, neurons)
        )
        offset = (course - course.mean(0))[:, None].expand(trials, STEPS, neurons)
        potential = potential + offset
    counts = torch.poisson((scale * softplus(potential)).float(), generator=g)
    about = {"neurons": neurons, "trials": trials, "noise": noise, "drift": drifts, "hz": float(counts.mean()) / BIN_S}
    if about["hz"] > FASTEST:  # states that run away: another network
        return simulate(kind, form, seed + 1_000_000, recorded)
    fresh = Loadings(*(x[-200:] if x is not None else None for x in (m, b, d)))
    return SimpleNamespace(
        z=z,
        u=u,
        potential=potential,
        counts=counts,
        offset=offset,
        drive=drive,
        fresh=fresh,
        nu=nu(fresh.m, fresh.d),
        about=about,
    )


def shares(draws_low_high, truth: Tensor) -> list[float]:
    """Of the truth within the interval of each level."""
    return [float(((low <= truth) & (truth <= high)).double().mean()) for low, high in map(draws_low_high, LEVELS)]


def fitted_to_field(fit: FittedDynamics, pick: Tensor) -> TrajectoryMean:
    """nu from the sampled field, at the states of these rows."""
    u = None if fit.loadings.b is None else fit.latents.inputs.flatten(0, 1)[pick]
    more = {"activation": "softplus", "alpha": ALPHA, "loadings_covariance": fit.loadings_covariance}
    return fit_field(fit.field, fit.latents.z.flatten(0, 1)[pick], u, fit.loadings, **more)


def expected_of(drives: Tensor, field: Tensor, outer: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Of draws (D, N, R) taken for the truth in turn, the share of which the outer intervals hold less than 80 %; and the
    share of draws that lie nearer to their mean than the truth does."""
    inside = ((outer[0] <= drives) & (drives <= outer[1])).double().mean((1, 2))
    away, of_truth = ((x - drives.mean(0)).square().sum((-2, -1)) for x in (drives, field))
    return {
        "field_below_predicted": float((inside < 0.8).double().mean()),
        "field_rank": float((away < of_truth).double().mean()),
    }


class Fitted(NamedTuple):
    """Of a data set: the fit, its independent draws (None where there is no sampling), and its estimate of nu once moved."""

    fit: FittedDynamics
    independent: float | None
    nu: Callable[[FittedDynamics], ConditionalMean] | None = None


def sampled(truth: SimpleNamespace, seed: int, sweeps: int) -> Fitted:
    """The sampler by itself, on all trials."""
    lengths, drifts = torch.full((len(truth.z),), STEPS), truth.about["drift"]
    u = None if truth.u is None else truth.u.float()
    times = torch.arange(len(truth.z), dtype=torch.float64) if drifts else None
    more = {"bin_s": BIN_S, "inputs": u, "trial_times_s": times}
    recording = Recording(truth.counts, "spikes", lengths, ALPHA, "softplus", **more)
    fold = Fold(torch.arange(len(truth.z)), torch.arange(0), torch.arange(0))
    basis = sampled_basis("softplus", ALPHA, seed)
    start = Start.of_counts(recording, fold, 2, fit_baseline(recording, fold.train, "local"))
    fit, mixing = sample_posterior(start, recording, fold, basis, sweeps=sweeps, seed=seed)
    return Fitted(fit, mixing.ess)


def fitted_by_a_run(truth: SimpleNamespace, seed: int, sweeps: int) -> Fitted:
    """The stage lrrnn of a run with default options."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = {
            "spikes": truth.counts.numpy(),
            "externalinputs": truth.u,
            "lengths": torch.full((len(truth.z),), STEPS),
        }
        if truth.about["drift"]:
            arrays["times"] = torch.arange(len(truth.z), dtype=torch.float64)
        write_npz(Path(folder, "spikes.npz"), arrays)
        options = [
            "data=npz", f"data.path={folder}/spikes.npz", f"data.alpha={ALPHA}", f"data.bin_s={BIN_S}", "lrrnn.rank=2",
            f"lrrnn.posterior_sweeps={sweeps}", f"seed={seed}", f"hydra.run.dir={folder}/run", "stages=[lrrnn]", "report=false",
        ]  # fmt: skip
        ended = subprocess.run([sys.executable, "train.py", *options], cwd=HERE.parent, capture_output=True, text=True)
        if ended.returncode:
            raise SystemExit(f"{ended.stdout}{ended.stderr}")
        found = load_run(f"{folder}/run")
        independent = found.metrics.get("lrrnn/posterior_ess")
        return Fitted(found.stage_inputs, independent, lambda fit: estimate_conditional_mean(found.config, fit, None))


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run(
    kind: str, form: str, seed: int, sweeps: int, recorded: tuple[int, int] = RECORDED, as_run: bool = False
) -> dict:
    """One data set: plain numbers."""
    truth, began = simulate(kind, form, seed, recorded), cpu_seconds()
    trials = len(truth.z)
    found = (fitted_by_a_run if as_run else sampled)(truth, seed, sweeps)
    fit, spent = found.fit, cpu_seconds() - began
    fit = fit.moved(Gauge.fit(fit.latents.z, truth.z, fit.latents.lengths, affine=True))
    pick = torch.randperm(trials * STEPS, generator=torch.Generator().manual_seed(seed))[:1500]
    z, v = truth.z.flatten(0, 1)[pick], None if truth.u is None else truth.u.flatten(0, 1)[pick]
    model = fitted_to_field(fit, pick) if found.nu is None else found.nu(fit)
    drives = (Draws(model, FIELDS, seed=1).drive(z, v) if fit.field is None else fit.field.drives(z, v)) - z
    field = truth.drive(z, v) - z
    size = field.square().sum().sqrt()

    def tail(level: float) -> tuple[Tensor, Tensor]:
        return torch.quantile(drives, (1 - level) / 2, 0), torch.quantile(drives, (1 + level) / 2, 0)

    counted = count_attractors(Draws(model, COUNTED, seed=1), fit.latents.z.flatten(0, 1)[pick])
    still = None if truth.u is None else torch.zeros(1, truth.u.shape[2], dtype=torch.float64)

    def own(z: Tensor, u: Tensor | None = None) -> Tensor:
        return truth.drive(z, None if still is None else still.expand(len(z), -1))

    stable = count_fixed_points(own, torch.eye(2).double(), counted.region).counts()
    rows, nu = truth.fresh.stack(), truth.nu
    low, high = model.interval(rows, 0.95)
    told = model.summary["signs_told"] and not model.summary["unbacked"]
    claimed = ((low > 0) | (high < 0)) & told
    return {
        "kind": kind,
        "form": form,
        "seed": seed,
        **truth.about,
        "field_error": float((drives.mean(0) - field).square().sum().sqrt() / size),
        "field_predicted": float(drives.var(0).sum().sqrt() / size),
        "field_inside": shares(tail, field),
        **expected_of(drives, field, tail(LEVELS[-1])),
        "nu_error": float((model.mean(rows) - nu).square().sum() / nu.square().sum()),
        "nu_inside": shares(lambda level: model.interval(rows, level), nu),
        "signs_claimed": int(claimed.sum()),
        "signs_wrong": int((claimed & (model.mean(rows).sign() != nu.sign())).sum()),
        "stable_points": int(stable[0]),
        "stable_points_drawn": dict(Counter(str(x) for x in counted.stable.tolist())),
        "nu_predicted": model.summary["predicted_error"],
        "draws": found.independent,
        "noise_found": None if fit.field is None else float(fit.field.noise.diagonal().sqrt().mean()),
        "cpu_seconds": round(spent, 1),
    }


HEADS = ("", "sets", "field: error (predicted), median", "50/80/95 %", "below 80 %: sets (predicted)", "ranks, p",
         "nu: error, median", "50/80/95 %", "signs wrong / claimed", "stable points: given p >= .8", "draws, median",
         "CPU s, median")  # fmt: skip


def cells(name: str, found: list[dict]) -> list[str]:
    """A row of the table for some data sets."""

    def median(key: str) -> float:
        return statistics.median([one[key] for one in found if one[key] is not None] or [math.nan])

    inside, of_nu = (
        "/".join(f"{statistics.fmean(x):.2f}" for x in zip(*(one[key] for one in found)))
        for key in ("field_inside", "nu_inside")
    )
    wrong, claimed = (sum(one[key] for one in found) for key in ("signs_wrong", "signs_claimed"))
    below = sum(one["field_inside"][-1] < 0.8 for one in found)
    sure = sum(one["stable_points_drawn"].get(str(one["stable_points"]), 0) >= 0.8 * COUNTED for one in found)
    return [
        name, str(len(found)), f"{median('field_error'):.3f} ({median('field_predicted'):.3f})", inside,
        f"{below} ({sum(one['field_below_predicted'] for one in found):.1f})",
        f"{kstest([one['field_rank'] for one in found], 'uniform').pvalue:.2f}",
        f"{median('nu_error'):.2f}", of_nu, f"{wrong} / {claimed}", f"{sure}", f"{median('draws'):.0f}",
        f"{median('cpu_seconds'):.0f}",
    ]  # fmt: skip


def rows_of(found: list[dict]) -> list[list[str]]:
    """All data sets, by process noise, by kind and by form of nu."""
    rows = [cells("all", found)]
    for key, said in (("noise", "noise of {} a step"), ("kind", "{}"), ("form", "nu {}")):
        for value in sorted({one[key] for one in found}):
            rows.append(cells(said.format(value), [one for one in found if one[key] == value]))
    return rows


def shown(found: list[dict]) -> Table:
    table = Table(title="From spikes")
    for head in HEADS:
        table.add_column(head)
    for row in rows_of(found):
        table.add_row(*row)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=100, help="of the first data set (default: 100)")
    parser.add_argument("--sweeps", type=int, default=110, help="of the sampler (default: 110, as a run has)")
    parser.add_argument(
        "--neurons", nargs=2, type=int, default=RECORDED, metavar=("LOW", "HIGH"), help="how many are recorded"
    )
    parser.add_argument(
        "--runs", action="store_true", help="fit each data set by train.py, in place of the sampler by itself"
    )
    parser.add_argument("--out", default="spike_coverage.json")
    parser.add_argument("--page", type=Path, help="Markdown file whose table of spikes to replace")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path, console = Path(options.out), Console(width=170)
    found = json.loads(path.read_text()) if path.exists() else []
    for seed in range(options.seed, options.seed + options.datasets):
        if all(one["seed"] != seed for one in found):
            kind, form = options.kinds[seed % len(options.kinds)], list(FORMS)[seed % len(FORMS)]
            found.append(run(kind, form, seed, options.sweeps, tuple(options.neurons), options.runs))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1))
            console.print(f"{kind}, {form}: field error {found[-1]['field_error']:.3f}", highlight=False)
    console.print(shown(found))
    if options.page:
        command = shlex.join(["python", "experiments/spike_coverage.py", *(arguments or sys.argv[1:])])
        rewrite(options.page, "spikes", f"`{command}`\n\n{markdown_table(HEADS, rows_of(found))}")


if __name__ == "__main__":
    main()
