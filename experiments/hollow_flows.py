"""How good is the flow of the loadings on shapes with holes? Held-out nats per neuron against densities known in closed form.

    python experiments/hollow_flows.py --out figures/hollow_flows.json
    python experiments/hollow_flows.py --neurons 1000 --shapes "two rings" moons --seeds 0 1 2
    python experiments/hollow_flows.py --set connectivity.flow.network=mlp connectivity.flow.hidden_layers=2

Neurons are drawn from each shape and the stage `loadings` is run on them as train.py runs it, with the options of --set.
Printed, as means over the seeds: nats per neuron by which fresh neurons are less likely under the flow than under the truth
(0 at best), the same for one Gaussian and for normal kernels of the best width, the Sinkhorn divergence from fresh neurons
of samples of the flow and of as many fresh neurons (its floor), steps of the training and its CPU seconds. The shapes of
KEPT_BACK took no part in any choice. Finished cells are added to --out, and the same command goes on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from benchmark import composed
from rich.console import Console
from rich.table import Table
from torch import Tensor

from connector.analysis.distances import sinkhorn_divergence
from connector.connectivity.flow import Flow
from connector.connectivity.flow_selection import kernel_log_density
from connector.connectivity.student_t import draws, log_density
from connector.launch.flow_ensemble import train_as_one
from connector.runs.store import RunStore
from connector.stages.loadings import prepare_loadings
from connector.stages.training import StageContext

NEURONS, N_TEST, N_SAMPLES = (76, 300, 1000, 5000), 1500, 1000
LOG_TWO_PI = math.log(2 * math.pi)


@dataclass
class Mixture:
    """Equally wide isotropic normals about centres (C, P); many of them along a curve give the curve a thickness."""

    centres: Tensor
    sd: float
    weights: Tensor | None = None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        weights = torch.ones(len(self.centres)) if self.weights is None else self.weights
        centre = self.centres[torch.multinomial(weights.double(), n, replacement=True, generator=generator)]
        return centre + self.sd * torch.randn(centre.shape, generator=generator, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        weights = torch.ones(len(self.centres)) if self.weights is None else self.weights
        logs = (weights.double() / weights.sum()).log() - 0.5 * (torch.cdist(x, self.centres) / self.sd).square()
        return torch.logsumexp(logs, dim=1) - x.shape[1] * (0.5 * LOG_TWO_PI + math.log(self.sd))


@dataclass
class Shell:
    """Any direction in R^P alike, radius |r|, r ~ N(1, thickness^2)."""

    dim: int
    thickness: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        radius = 1 + self.thickness * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return radius.abs() * x / x.norm(dim=1, keepdim=True)

    def log_prob(self, x: Tensor) -> Tensor:
        radius, half = x.norm(dim=1), self.dim / 2
        of_radius = torch.logaddexp(*(-0.5 * ((sign * radius - 1) / self.thickness) ** 2 for sign in (1, -1)))
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return of_radius - 0.5 * LOG_TWO_PI - math.log(self.thickness) - area - (self.dim - 1) * radius.log()


@dataclass
class Annulus:
    """Uniform between two circles; the outer radius is 1."""

    inner: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return torch.lerp(torch.tensor(self.inner**2).double(), u.new_ones(()), u[:, 0]).sqrt()[:, None] * at(u[:, 1])

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), -math.log(math.pi * (1 - self.inner**2)), dtype=torch.float64)


@dataclass
class Torus:
    """Two circles of their own, in four columns."""

    ring: Shell

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.cat([self.ring.sample(n, generator) for _ in range(2)], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.ring.log_prob(x[:, :2]) + self.ring.log_prob(x[:, 2:])


@dataclass
class StudentT:
    """Elliptical, with ``dof`` degrees of freedom (infinitely many: the normal), under a fixed map of the columns."""

    dim: int
    dof: float
    mixed: float = 0.0

    @property
    def map(self) -> Tensor:
        noise = torch.randn(self.dim, self.dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return torch.eye(self.dim, dtype=torch.float64) + self.mixed * noise

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return draws(n, self.dim, self.dof, generator=generator, dtype=torch.float64) @ self.map.T

    def log_prob(self, x: Tensor) -> Tensor:
        squares = torch.linalg.solve(self.map, x.T).square().sum(0)
        dof = torch.tensor(self.dof, dtype=torch.float64)
        return log_density(squares, self.dim, dof) - torch.linalg.slogdet(self.map).logabsdet


def at(turns: Tensor) -> Tensor:
    """Points (N, 2) of the unit circle."""
    return torch.stack([(2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()], dim=1)


def grid(n: int, end: float = 1.0) -> Tensor:
    return torch.arange(n, dtype=torch.float64) / n * end


def bent_bar(n: int) -> Tensor:
    """Along the frame of a square of side 2, (4 n, 2)."""
    side = torch.stack([2 * grid(n) - 1, torch.ones(n, dtype=torch.float64)], dim=1)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    return torch.cat([side @ torch.linalg.matrix_power(quarter, k) for k in range(4)])


CIRCLE, HALF, RIGHT = at(grid(360)), at(grid(200, 0.5)), torch.tensor([1.0, 0.0], dtype=torch.float64)
SHAPES = {
    "ring, .05 thick": Shell(2, 0.05),
    "ring, .1 thick": Shell(2, 0.1),
    "ring, .2 thick": Shell(2, 0.2),
    "shell": Shell(3, 0.1),
    "disc with a hole": Annulus(0.6),
    "two rings": Mixture(torch.cat([CIRCLE - 1.5 * RIGHT, CIRCLE + 1.5 * RIGHT]), 0.1),
    "uneven ring": Mixture(CIRCLE, 0.1, CIRCLE[:, 0].exp()),
    "moons": Mixture(torch.cat([HALF, torch.tensor([1.0, 0.5]).double() - HALF]), 0.1),
    "torus": Torus(Shell(2, 0.15)),
    "eight normals": Mixture(at(grid(8)), 0.12),
}
CONTROLS = {
    "Gaussian, 2 columns": StudentT(2, math.inf),
    "Gaussian, 5 columns": StudentT(5, math.inf),
    "quadstable": Mixture(0.87 * bent_bar(1), 0.5),
    "Student t": StudentT(3, 3.0),
    "rat-like": StudentT(4, 5.0, 0.5),
}
KEPT_BACK = {
    "spiral": Mixture((0.3 + grid(400))[:, None] * at(grid(400, 1.75)), 0.06),
    "helix": Mixture(torch.cat([at(grid(400, 2)), 2 * grid(400)[:, None]], dim=1), 0.1),
    "square frame": Mixture(bent_bar(100), 0.08),
    "ring about a ring": Mixture(torch.cat([CIRCLE, 2 * CIRCLE]), 0.1),
}


def trained(x: Tensor, seed: int, overrides: list[str]) -> tuple[Flow, int, dict[str, float]]:
    """The flow that a run makes of loadings x (K, P), steps of its training, and the stage's metrics."""
    options = composed(f"seed={seed}", "trainer.accelerator=cpu", "trainer.threads=1", *overrides)
    with tempfile.TemporaryDirectory() as directory:
        store = RunStore(directory)
        context = StageContext(options, store, None, Console(quiet=True), lambda line: None)
        job = prepare_loadings(context, SimpleNamespace(loadings=SimpleNamespace(stack=lambda: x)), "mark")
        train_as_one([job])
        job.finish()
        return store.read_loadings_flow(), job.epochs, job.metrics


def measure(name: str, n: int, seed: int, overrides: list[str]) -> dict[str, float]:
    """One cell of the table: plain numbers."""
    shape = (SHAPES | CONTROLS | KEPT_BACK)[name]
    x = shape.sample(n, torch.Generator().manual_seed(1000 * seed + n))
    test = shape.sample(N_TEST, torch.Generator().manual_seed(77 + seed))
    began = time.process_time()
    flow, steps, metrics = trained(x, seed, overrides)
    flow.requires_grad_(False)
    seconds, fresh = time.process_time() - began, shape.sample(N_SAMPLES, torch.Generator().manual_seed(177 + seed))
    drawn = flow.sample(N_SAMPLES, generator=torch.Generator().manual_seed(seed)).double()
    densities = {
        "flow": flow.log_prob(test.float(), method="rk4", steps=16),
        "gaussian": Flow(x.shape[1], hidden_width=1, hidden_layers=1).double().fit_scaler(x).log_prob_of_base(test),
        "kernels": kernel_log_density(x, test),
    }
    short = {key: float((shape.log_prob(test) - value.detach().double()).mean()) for key, value in densities.items()}
    distances = {"sinkhorn": sinkhorn_divergence(test, drawn), "floor": sinkhorn_divergence(test, fresh)}
    return short | distances | {"steps": steps, "cpu_seconds": seconds} | metrics


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, nargs="+", default=NEURONS)
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", choices=[*SHAPES, *CONTROLS, *KEPT_BACK])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options of the run")
    parser.add_argument("--out", default="hollow_flows.json")
    options, console, path = parser.parse_args(arguments), Console(width=150), None
    path = Path(options.out)
    cells = json.loads(path.read_text()) if path.exists() else {}
    table = Table(
        title="Nats per neuron below the truth, and Sinkhorn divergence; means over seeds " + str(options.seeds)
    )
    heads = ("flow", "gaussian", "kernels", "sinkhorn", "floor", "steps", "cpu_seconds")
    for head in ("shape", "neurons", *(head.replace("_", " ") for head in heads)):
        table.add_column(head, justify="left" if head == "shape" else "right")
    for n in options.neurons:
        for name in options.shapes or [*SHAPES, *CONTROLS, *KEPT_BACK]:
            found = []
            for seed in options.seeds:
                key = " | ".join([name, str(n), str(seed), *sorted(options.set)])
                if key not in cells:
                    cells[key] = measure(name, n, seed, options.set)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(cells, indent=1))
                found.append(cells[key])
            means = [statistics.fmean(cell[head] for cell in found) for head in heads]
            table.add_row(name, str(n), *(f"{value:.3g}" for value in means))
    console.print(table)


if __name__ == "__main__":
    main()
