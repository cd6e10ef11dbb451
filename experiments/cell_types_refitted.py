"""Does the test for cell types fire on a recording like this one that has none? Simulated with, and without, and refitted.

    python experiments/cell_types_refitted.py --data-sets 20
    python experiments/cell_types_refitted.py --data-sets 20 --types 2

Each data set has the recording's trials, lengths and inputs, and the fitted latent dynamics with their noise. What is drawn
anew is how neurons read them: (m, b, d) of all neurons from one Gaussian with the mean and covariance of the recorded
ones (--types 1), or from K Gaussians of equal weight, narrow (a quarter of the covariance) and spread so that mean and
covariance over all neurons stay the same (--types K). Each neuron keeps its own drift and course around its mean, so that
rates are like the recorded ones. The data set is fitted by the same training, and the loadings found there are tested as
a run tests them (:func:`connector.analysis.cell_types.cell_type_test`, level .05).

Each finished data set is added to --out, and the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from attractor_power import quick_options, read_sets, refit, wilson
from rich.console import Console
from saved_runs import SpikeRun, finish, recording_arguments, spike_run
from torch import Tensor

from connector.analysis.cell_types import cell_type_test
from connector.dynamics import potentials
from connector.errors import UserError
from connector.files import write_json
from connector.launch.job import quiet
from connector.lrrnn.spikes.encoder import PathPosterior
from connector.lrrnn.spikes.readout import refit_loadings
from connector.runs.options import Options
from connector.types import Loadings, Recording, TrialBatch

LEVEL = 0.05
_WITHIN = 0.25  # covariance of a cell type over that of all neurons


def draw_loadings(like: Loadings, n_types: int, generator: torch.Generator) -> tuple[Loadings, Tensor]:
    """As many neurons with the mean and covariance of ``like`` over all types; and their types (K,)."""
    x = like.stack().double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    root = vectors * values.clamp_min(0).sqrt()
    normal = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    types = torch.arange(len(x)) % n_types
    if n_types > 1:
        # Centres of the types in whitened coordinates: mean 0, and as isotropic as so few points can be.
        centres = torch.randn(n_types, x.shape[1], generator=generator, dtype=torch.float64)
        centres = centres - centres.mean(0)
        left, _, right = torch.linalg.svd(centres, full_matrices=False)
        between = (left[:, : n_types - 1] @ right[: n_types - 1]) * (n_types * (1 - _WITHIN)) ** 0.5
        # In the directions that tell types apart a quarter of the variance is within types; in others all of it.
        along = right[: n_types - 1].T @ right[: n_types - 1]
        normal = normal - (1 - _WITHIN**0.5) * normal @ along + between[types]
    return Loadings.unstack(x.mean(0) + normal @ root.T, like.rank, like.n_inputs, like.has_bias), types


@torch.no_grad()
def simulate_population(run: SpikeRun, loadings: Loadings, generator: torch.Generator) -> Recording:
    """The recording's trials anew: latent states of the fitted model with its noise, read by ``loadings``."""
    recording, model = run.recording, run.model
    batch = TrialBatch.of(recording, None, run.baseline.argument)
    zero = torch.zeros(recording.n_trials, model.rank)
    prior = PathPosterior(zero, zero, zero.expand(recording.n_steps - 1, -1, -1))
    z = model.paths(batch, prior, generator=generator).posterior[:, 0].transpose(0, 1).double()
    around = (run.baseline.argument - model.baseline_mean).double()
    argument = potentials(loadings, z, None if loadings.b is None else recording.inputs.double()) + around
    counts = torch.poisson(model.scale * F.softplus(argument), generator=generator) * recording.mask[..., None]
    return replace(recording, activity=counts.float(), name="simulated")


def measure(run: SpikeRun, n_types: int, seed: int, options: Options) -> dict:
    """One data set: simulated, refitted, tested; plain numbers."""
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    loadings, _ = draw_loadings(run.loadings, n_types, generator)
    session = simulate_population(run, loadings, generator)
    model, baseline, fold = refit(session, options)
    found, _ = refit_loadings(model, session, fold.train, baseline, b_penalty=options.lrrnn.b_penalty)
    test, known = (cell_type_test(x, seed=options.seed) for x in (found, loadings))
    return {
        "p": test.p_value,
        "components": test.components,
        "p_true_loadings": known.p_value,
        "spikes_per_bin": float(session.activity[session.mask].mean()),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main(arguments=None) -> None:
    parser = recording_arguments(__doc__)
    parser.add_argument("--data-sets", type=int, default=20, help="default: 20")
    parser.add_argument("--types", type=int, default=1, metavar="K", help="cell types simulated (default: 1, none)")
    parser.add_argument("--seed", type=int, default=0, help="of the first data set (default: 0)")
    parser.add_argument("--epochs", type=int, help="of each fit (default: those of the run)")
    parser.add_argument("--json", metavar="FILE", help="results (default: cell_types_refitted.json in --out)")
    arguments = parser.parse_args(arguments)
    if min(arguments.data_sets, arguments.types) < 1:
        raise UserError("--data-sets and --types of 1 or more", f"{arguments.data_sets}, {arguments.types}")
    console = Console(width=120)
    run = spike_run(arguments)
    path = Path(arguments.json or Path(arguments.out) / "cell_types_refitted.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    quiet()
    options = quick_options(run, arguments.epochs)
    sets, settings = read_sets(path), {"recording": run.recording.name, "types": arguments.types}
    settings["epochs"] = options.lrrnn.max_epochs
    for seed in range(arguments.seed, arguments.seed + arguments.data_sets):
        this = settings | {"seed": seed}
        if any(this.items() <= one.items() for one in sets):
            continue
        found = measure(run, arguments.types, seed, options)
        sets.append(this | found)
        write_json(path, {"data_sets": sets})
        console.print(
            f"seed {seed}: p = {found['p']:.2g} (at the true loadings {found['p_true_loadings']:.2g}), "
            f"{found['spikes_per_bin']:.3f} spikes a bin, {found['cpu_seconds']:.0f} CPU s",
            highlight=False,
        )
    mine = [one for one in sets if settings.items() <= one.items()]
    what = "without cell types" if arguments.types == 1 else f"with {arguments.types} cell types"
    for key, where in (("p", "refitted loadings"), ("p_true_loadings", "true loadings, unknown in practice")):
        fired = sum(one[key] <= LEVEL for one in mine)
        console.print(f"Data sets {what}, {where}: the test fires in {wilson(fired, len(mine))}.", highlight=False)
    console.print(f"{path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    raise SystemExit(finish(main))
