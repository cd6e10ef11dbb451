"""How often do the verdicts on cell types fire? On single populations of many shapes, and on groups.

    python experiments/cell_types.py --populations 200 --out figures/cell_types.json
    python experiments/cell_types.py --which groups --neurons 300
    python experiments/cell_types.py --detectable

Printed is the share of populations called "separated groups" by
:func:`connector.analysis.separated_groups.separated_groups`, beside the share with p <= .05 in the test of shape,
:func:`connector.analysis.cell_types.cell_type_test` (--shape; on the first 20 populations of each kind). Every population
is drawn afresh and turned by a random linear map, where it has no atoms. --errors gives each neuron an error and tests with
the errors' covariance, beside the share that is called so if errors are ignored: mild (a tenth to a half of a standard
deviation within the groups, another for each neuron), differ (log-normal sizes), middle, band and edges (neurons there are
the badly known ones), prior (posterior means, of a third of the neurons hardly anything is known), spikes (fitted to counts,
some neurons nearly silent). --detectable prints the separation of two groups that is shown with probability .8. "spindle
with skewed rates", "crescent" and "cosines of even angles" took no part in any choice. Finished cells are added to --out, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from connector.analysis.cell_types import cell_type_test
from connector.analysis.separated_groups import LEVEL, separated_groups
from connector.errors import UserError
from connector.lrrnn.spikes.baselines import poisson_regression

NEURONS, COLUMNS = (100, 300, 1000), (2, 3, 5)
SINGLE: dict[str, Callable] = {}
GROUPS: dict[str, Callable] = {}
ERRORS: dict[str, Callable] = {}  # (loadings, rng) -> fitted loadings, covariance of their errors
ATOMS = ("zeros in one column", "zeros in all columns")  # stay in their coordinates


def population(name: str, of: dict[str, Callable]) -> Callable:
    """Registers a function, of a population (neurons, columns, rng) -> (neurons, columns)."""

    def register(draw: Callable) -> Callable:
        of[name] = draw
        return draw

    return register


def widened(plane: np.ndarray, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A population in the plane with Gaussian columns beside it, as wide."""
    more = plane.std() * rng.normal(size=(len(plane), columns - plane.shape[1]))
    return np.concatenate([plane, more], axis=1)


def sphere(n: int, p: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(n, p))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def curve(x: np.ndarray, y: np.ndarray, noise: float, columns: int, rng: np.random.Generator) -> np.ndarray:
    plane = np.stack([x, y], axis=1)
    return widened(plane + noise * rng.normal(size=plane.shape), columns, rng)


@population("Gaussian", SINGLE)
def gaussian(n, p, rng):
    return rng.normal(size=(n, p))


@population("disc or ball", SINGLE)
def disc(n, p, rng):
    return sphere(n, p, rng) * rng.uniform(size=(n, 1)) ** (1 / p)


@population("square or cube", SINGLE)
def square(n, p, rng):
    return rng.uniform(size=(n, p))


@population("triangle or simplex", SINGLE)
def triangle(n, p, rng):
    return rng.dirichlet(np.ones(p + 1), size=n)[:, :p]


@population("ring", SINGLE)
def ring(n, p, rng):
    angle = rng.uniform(0, 2 * np.pi, n)
    return curve(np.cos(angle), np.sin(angle), 0.1, p, rng)


@population("shell", SINGLE)
def shell(n, p, rng):
    return sphere(n, p, rng) * (1 + 0.08 * rng.normal(size=(n, 1)))


@population("spiral", SINGLE)
def spiral(n, p, rng):
    angle = 3 * np.pi * np.sqrt(rng.uniform(0.05, 1, n))
    return curve(angle * np.cos(angle), angle * np.sin(angle), 0.12 * np.pi, p, rng)


@population("banana", SINGLE)
def banana(n, p, rng):
    x = rng.normal(size=n)
    return widened(np.stack([x, x**2 - 1 + 0.3 * rng.normal(size=n)], axis=1), p, rng)


@population("arc", SINGLE)
def arc(n, p, rng):
    angle = rng.uniform(0, 1.2 * np.pi, n)
    return curve(np.cos(angle), np.sin(angle), 0.12, p, rng)


@population("S", SINGLE)
def s_shape(n, p, rng):
    angle = rng.uniform(-1.5 * np.pi, 1.5 * np.pi, n)
    return curve(np.sin(angle), np.sign(angle) * (np.cos(angle) - 1), 0.15, p, rng)


@population("dumbbell, bridge a third as wide", SINGLE)
def dumbbell(n, p, rng):
    x = rng.uniform(size=(20 * n, 2)) * [6, 2] - [3, 1]
    inside = (np.hypot(np.abs(x[:, 0]) - 2, x[:, 1]) < 1) | ((np.abs(x[:, 1]) < 1 / 3) & (np.abs(x[:, 0]) < 2))
    return widened(x[inside][:n], p, rng)


@population("Laplace", SINGLE)
def laplace(n, p, rng):
    return rng.laplace(size=(n, p))


@population("Student t, 1.5 degrees of freedom", SINGLE)
def student(n, p, rng):
    return rng.normal(size=(n, p)) / np.sqrt(rng.chisquare(1.5, size=(n, 1)) / 1.5)


@population("gamma, shape 2", SINGLE)
def gamma(n, p, rng):
    return rng.gamma(2.0, size=(n, p))


@population("gamma, shape .5", SINGLE)
def steep_gamma(n, p, rng):
    return rng.gamma(0.5, size=(n, p))


@population("log-normal", SINGLE)
def log_normal(n, p, rng):
    return np.exp(rng.normal(size=(n, p)))


@population("skewed rates", SINGLE)
def skewed_rates(n, p, rng):
    bias = np.log(np.expm1(np.exp(0.8 * rng.normal(size=n))))
    return np.concatenate([rng.normal(size=(n, p - 1)), bias[:, None]], axis=1)


@population("zeros in one column", SINGLE)
def zeros(n, p, rng):
    x = rng.normal(size=(n, p))
    x[rng.uniform(size=n) < 0.4, 0] = 0
    return x


@population("zeros in all columns", SINGLE)
def sparse(n, p, rng):
    return rng.normal(size=(n, p)) * (rng.uniform(size=(n, p)) < 0.5)


@population("errors that differ", SINGLE)
def errors_differ(n, p, rng):
    return rng.normal(size=(n, p)) + np.exp(rng.normal(size=(n, 1))) * rng.normal(size=(n, p))


@population("duplicates", SINGLE)
def duplicates(n, p, rng):
    return rng.normal(size=(n, p))[rng.integers(0, 2 * n // 3, n)]


@population("half a shell", SINGLE)
def half_shell(n, p, rng):
    x = sphere(n, p, rng)
    x[:, 0] = np.abs(x[:, 0])
    return x * (1 + 0.08 * rng.normal(size=(n, 1)))


@population("spindle with skewed rates", SINGLE)
def spindle(n, p, rng):
    along = rng.uniform(-1, 1, size=(n, 1))
    beside = (1 - along**2) * rng.normal(size=(n, p - 2)) if p > 2 else np.empty((n, 0))
    rate = np.exp(0.7 * rng.normal(size=(n, 1))) + 0.5 * along
    return np.concatenate([along, beside, rate], axis=1)


@population("crescent", SINGLE)
def crescent(n, p, rng):
    x = rng.uniform(-1, 1, size=(20 * n, 2))
    inside = (np.hypot(*x.T) < 1) & (np.hypot(x[:, 0] - 0.5, x[:, 1]) > 0.8)
    return widened(x[inside][:n], p, rng)


@population("figure of eight", SINGLE)
def eight(n, p, rng):
    angle = rng.uniform(0, 2 * np.pi, n)
    return curve(np.sin(angle), np.sin(angle) * np.cos(angle), 0.08, p, rng)


@population("cosines of even angles", SINGLE)
def cosines(n, p, rng):
    return np.concatenate([np.cos(rng.uniform(0, np.pi, size=(n, 1))), 0.3 * rng.normal(size=(n, p - 1))], axis=1)


def apart(sd: float, share: float = 0.5) -> Callable:
    def draw(n, p, rng):
        x = rng.normal(size=(n, p))
        x[:, 0] += sd * (rng.uniform(size=n) < share)
        return x

    return draw


for _sd in (3, 4, 5):
    GROUPS[f"two, {_sd} sd apart"] = apart(_sd)
GROUPS["80/20, 5 sd apart"] = apart(5, 0.2)


@population("three, 4 sd apart", GROUPS)
def three(n, p, rng):
    x = rng.normal(size=(n, p))
    x[:, :2] += 4 * np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])[rng.integers(0, 3, n)]
    return x


@population("quadstable", GROUPS)
def quadstable(n, p, rng):
    x = 0.5 * rng.normal(size=(n, p))
    x[:, :2] += 0.87 * rng.choice([-1, 1], size=(n, 2))
    return x


def blurred(t: np.ndarray, size: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Loadings with errors of a size (n,) in random directions, and the errors' covariance (n, p, p)."""
    n, p = t.shape
    root = size[:, None, None] * rng.normal(size=(n, p, p)) / p**0.5
    return t + (root @ rng.normal(size=(n, p, 1)))[..., 0], root @ root.transpose(0, 2, 1)


def standard(t: np.ndarray) -> np.ndarray:
    return (t - t.mean(0)) / t.std(0)


@population("mild", ERRORS)
def mild(t, rng):
    return blurred(t, rng.uniform(0.1, 0.5, len(t)), rng)


@population("differ", ERRORS)
def differ(t, rng):
    return blurred(t, 0.3 * t.std(0).mean() * np.exp(rng.normal(size=len(t))), rng)


@population("middle", ERRORS)
def middle(t, rng):
    z = standard(t)
    return blurred(z, 0.03 + 0.7 * np.exp(-((z[:, 0] / 0.6) ** 2)), rng)


@population("band", ERRORS)
def band(t, rng):
    z = standard(t)
    return blurred(z, np.where(np.abs(z[:, 0]) < 0.4, 1.5, 0.05), rng)


@population("edges", ERRORS)
def edges(t, rng):
    z = standard(t)
    return blurred(z, 0.05 + 0.25 * np.minimum(np.abs(z[:, 0]), 2) ** 2, rng)


@population("prior", ERRORS)
def prior(t, rng):
    """Posterior means: of a third of the neurons, at one end, hardly anything is known."""
    n, p = t.shape
    z = standard(t)
    size = np.where(z[:, 0] + 0.3 * rng.normal(size=n) < -0.5, 4.0, 0.1)
    share = 1 / (1 + size**2)
    x = share[:, None] * (z + size[:, None] * rng.normal(size=(n, p)))
    return x, (share * size**2)[:, None, None] * np.eye(p)


@population("spikes", ERRORS)
def spikes(t, rng):
    """Poisson regression on 600 bins of known latents; the last column is the bias: .05 to 1 spikes a bin, many silent."""
    z = standard(t) * np.r_[[0.8] * (t.shape[1] - 1), 1.2] + np.r_[[0.0] * (t.shape[1] - 1), -2.5]
    design = np.concatenate([rng.normal(size=(600, t.shape[1] - 1)), np.ones((600, 1))], axis=1)
    counts = torch.from_numpy(rng.poisson(np.logaddexp(0, design @ z.T)))
    fit = poisson_regression(torch.from_numpy(design), counts, penalty=1e-2)
    return fit.coefficients.numpy(), fit.covariance.numpy()


def fires(name: str, n: int, p: int, number: int, errors: str = "none") -> tuple[bool, bool, np.ndarray]:
    """Is population ``number`` of a kind called separated groups, with its errors and without a word of them? One with too few
    different neurons is refused, and so not called that."""
    rng = np.random.default_rng([number, n, p, zlib.crc32(name.encode())])
    x, covariance = (SINGLE | GROUPS)[name](n, p, rng), None
    if errors != "none":
        x, covariance = ERRORS[errors](x, rng)
        covariance = torch.from_numpy(covariance)
    elif name not in ATOMS:
        x = x @ rng.normal(size=(p, p))
    try:
        found = separated_groups(torch.from_numpy(x), count=False, seed=number).p_value <= LEVEL
    except UserError:
        found = False
    unaware = found
    if found and covariance is not None:
        found = separated_groups(torch.from_numpy(x), covariance, count=False, seed=number).p_value <= LEVEL
    return found, unaware, x


def measure(name: str, n: int, p: int, options: argparse.Namespace) -> dict:
    """One cell of the table: plain numbers."""
    began, fired, unaware, shape = time.process_time(), 0, 0, 0
    for number in range(options.seed, options.seed + options.populations):
        found, without, x = fires(name, n, p, number, options.errors)
        fired, unaware = fired + found, unaware + without
        if options.shape and number < options.seed + 20:
            shape += cell_type_test(torch.from_numpy(x), seed=number).p_value <= LEVEL
    cell = {"fired": int(fired), "unaware": int(unaware), "cpu_seconds": round(time.process_time() - began, 1)}
    return cell | ({"shape": int(shape)} if options.shape else {})


def detectable(options: argparse.Namespace, console: Console) -> None:
    """Smallest separation that is shown with probability .8: a straight line through the shares on a grid."""
    grid = np.arange(3.0, 9.01, 0.5)
    for p in options.columns:
        for n in options.neurons:
            shares = []
            for sd in grid:
                GROUPS["two"] = apart(sd)
                shares.append(np.mean([fires("two", n, p, i)[0] for i in range(options.populations)]))
                if len(shares) > 1 and min(shares[-2:]) >= 0.85:
                    break
            at = float(np.interp(0.8, np.maximum.accumulate(shares), grid[: len(shares)]))
            console.print(f"{n} neurons, {p} columns: {at:.2f} sd", highlight=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=int, default=200, help="of each kind and size (default: 200)")
    parser.add_argument("--neurons", type=int, nargs="+", default=NEURONS)
    parser.add_argument("--columns", type=int, nargs="+", default=COLUMNS)
    parser.add_argument("--which", choices=("single", "groups", "both"), default="both")
    parser.add_argument("--names", nargs="+", metavar="KIND", help="some kinds only")
    parser.add_argument("--seed", type=int, default=0, help="of the first population (default: 0)")
    parser.add_argument(
        "--errors", choices=("none", *ERRORS), default="none", help="of the loadings, with their covariance"
    )
    parser.add_argument("--shape", action="store_true", help="the test of shape beside it (slow)")
    parser.add_argument("--detectable", action="store_true", help="the separation shown with probability .8")
    parser.add_argument("--out", default="cell_types.json")
    options = parser.parse_args(arguments)
    console = Console(width=140)
    if options.detectable:
        return detectable(options, console)
    kinds = {"single": SINGLE, "groups": GROUPS, "both": SINGLE | GROUPS}[options.which]
    path = Path(options.out)
    cells = json.loads(path.read_text()) if path.exists() else {}
    for n in options.neurons:
        for p in options.columns:
            for name in options.names or kinds:
                key = f"{name} | {n} | {p} | {options.populations} from {options.seed}{'' if options.errors == 'none' else ' | ' + options.errors}"
                if key not in cells or (options.shape and "shape" not in cells[key]):
                    cells[key] = measure(name, n, p, options)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(cells, indent=1))
    table = Table(title=f'"Separated groups", of {options.populations} populations each')
    heads = (
        "population",
        "neurons",
        "columns",
        "share",
        "95 % interval",
        "errors ignored",
        *["shape test"] * options.shape,
    )
    for head in heads:
        table.add_column(head)
    for key, cell in cells.items():
        name, n, p, *rest = key.split(" | ")
        of_errors = rest[1] if len(rest) > 1 else "none"
        if rest[0] != f"{options.populations} from {options.seed}" or of_errors != options.errors:
            continue
        interval = binomtest(cell["fired"], options.populations).proportion_ci(0.95, method="wilson")
        shape = [f"{cell.get('shape')} of {min(20, options.populations)}"] * options.shape
        share = f"{cell['fired'] / options.populations:.3f}"
        ignored = f"{cell.get('unaware', cell['fired']) / options.populations:.3f}"
        table.add_row(name, n, p, share, f"{interval.low:.3f} to {interval.high:.3f}", ignored, *shape)
    console.print(table)


if __name__ == "__main__":
    main()
