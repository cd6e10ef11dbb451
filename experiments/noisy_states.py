"""How often do the bands of the vector field hold the truth, from rates whose states carry noise of their own?

    python experiments/noisy_states.py --datasets 24 --seed 9800

The networks are those of `spike_coverage.py`, without drift: six kinds of dynamics, five forms of nu, 50 to 150 neurons of ten times
as many, process noise of 0 to .2 a step. Recorded are 200 trials of their rates at most, with noise of .1, .3 or .6 standard
deviations of all rates. The fit is the closed form; the field is compared with the network's own in the true gauge. Where the
noise of the states is not recognised nothing is sampled, and the data set is only counted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from spike_coverage import (
    ALPHA,
    BIN_S,
    FORMS,
    KINDS,
    LEVELS,
    STEPS,
    expected_of,
    fitted_to_field,
    shares,
    simulate,
)
from torch.nn.functional import softplus

from connector.connectivity.nu.field import sampled_basis
from connector.connectivity.nu.mean import TrajectoryMean
from connector.data.folds import Fold
from connector.lrrnn.field_posterior import ENOUGH_DRAWS
from connector.lrrnn.gauge import Gauge
from connector.lrrnn.noisy_states import process_noise, sample_field
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.types import Recording

RATE_NOISE, TRIALS, SWEEPS = (0.1, 0.3, 0.6), 200, 110


def run(seed: int) -> dict:
    """One data set: plain numbers."""
    kind, form, noise = list(KINDS)[seed % 6], list(FORMS)[seed // 6 % 5], RATE_NOISE[seed % 3]
    truth, began = simulate(kind, form, seed), time.process_time()
    potential = truth.potential if truth.offset is None else truth.potential - truth.offset
    rates, generator = softplus(potential[:TRIALS]), torch.Generator().manual_seed(seed)
    rates = rates + noise * rates.flatten(0, 1).std(0).mean() * torch.randn(rates.shape, generator=generator)
    trials, u = len(rates), None if truth.u is None else truth.u[:TRIALS]
    lengths = torch.full((trials,), STEPS)
    inputs = None if u is None else u.float()
    recording = Recording(rates.float(), "rates", lengths, ALPHA, "softplus", bin_s=BIN_S, inputs=inputs)
    fold = Fold(torch.arange(trials), torch.arange(0), torch.arange(0))
    sizes = {"n_neurons": rates.shape[2], "rank": 2, "n_inputs": recording.n_inputs, "alpha": ALPHA}
    model = RateModel(**sizes, has_bias=True, activation="softplus")
    model.initialise(recording)
    fit = fitted_dynamics(model, recording, fold)
    row = {"kind": kind, "form": form, "seed": seed, "rate_noise": noise, "noise": truth.about["noise"]}
    own = process_noise(fit)
    if own is not None:
        fit = sample_field(fit, own, sampled_basis("softplus", ALPHA, seed), sweeps=SWEEPS, seed=seed)
        fit = fit.moved(Gauge.fit(fit.latents.z, truth.z[:TRIALS], lengths, affine=True))
        pick = torch.randperm(trials * STEPS, generator=torch.Generator().manual_seed(seed))[:1500]
        z, v = truth.z[:TRIALS].flatten(0, 1)[pick], None if u is None else u.flatten(0, 1)[pick]
        field, drives = truth.drive(z, v) - z, fit.field.drives(z, v) - z

        def between(level: float) -> tuple[torch.Tensor, torch.Tensor]:
            return drives.quantile((1 - level) / 2, 0), drives.quantile((1 + level) / 2, 0)

        row |= {
            "error": float((drives.mean(0) - field).norm() / field.norm()),
            "predicted": float(((drives - drives.mean(0)).square().sum((1, 2)).mean() / field.square().sum()).sqrt()),
            "inside": shares(between, field),
            **expected_of(drives, field, between(0.95)),
            **of_nu(fitted_to_field(fit, pick), truth),
            "draws": float(fit.field.effective),
            "noise_found": float(fit.field.noise.diagonal().mean().sqrt()),
        }
    return row | {"cpu_seconds": round(time.process_time() - began, 1)}


def of_nu(model: TrajectoryMean, truth: SimpleNamespace) -> dict:
    """Error and coverage of nu at fresh loadings, and the signs that are told."""
    rows, nu = truth.fresh.stack(), truth.nu
    mean, (low, high) = model.mean(rows), model.interval(rows, 0.95)
    claimed = ((low > 0) | (high < 0)) & (model.summary["signs_told"] and not model.summary["unbacked"])
    return {
        "nu_error": float((mean - nu).square().sum() / nu.square().sum()),
        "nu_predicted": model.summary["predicted_error"],
        "nu_inside": shares(lambda level: model.interval(rows, level), nu),
        "excluding_zero": int(((low > 0) | (high < 0)).sum()),
        "wrong_side": int((((low > 0) | (high < 0)) & (mean.sign() != nu.sign())).sum()),
        "signs_claimed": int(claimed.sum()),
    }


def table_of(rows: list[dict]) -> Table:
    """By noise of the rates: coverage at 50, 80 and 95 %, error, and sets below 80 % beside those predicted; of the sets in which
    so many draws are independent that bands are told."""
    table = Table(
        "noise of rates", "sets", "sampled", "error (predicted), median", "50/80/95 %", "below 80 % (predicted)",
        "nu: error (predicted), median", "50/80/95 %", "sets below 80 %", "wrong side / without zero",
    )  # fmt: skip
    for noise in (None, *RATE_NOISE):
        some = [row for row in rows if noise in (None, row["rate_noise"])]
        sampled = [row for row in some if "inside" in row]
        told = [row for row in sampled if row["draws"] >= ENOUGH_DRAWS]
        if not told:
            continue
        inside = torch.tensor([row["inside"] for row in told])
        error, predicted = (float(torch.tensor([row[k] for row in told]).median()) for k in ("error", "predicted"))
        below = int((inside[:, -1] < 0.8).sum())
        expected = sum(row["field_below_predicted"] for row in told)
        of_nu = torch.tensor([row["nu_inside"] for row in told])
        nu_error, nu_predicted = (
            float(torch.tensor([row[k] for row in told]).median()) for k in ("nu_error", "nu_predicted")
        )
        wrong, without_zero = (sum(row[k] for row in told) for k in ("wrong_side", "excluding_zero"))
        table.add_row(
            "all" if noise is None else f"{noise:g}",
            str(len(some)),
            f"{len(sampled)} ({len(told)})",
            f"{error:.3f} ({predicted:.3f})",
            "/".join(f"{x:.2f}" for x in inside.mean(0).tolist()),
            f"{below} ({expected:.1f})",
            f"{nu_error:.2f} ({nu_predicted:.2f})",
            "/".join(f"{x:.2f}" for x in of_nu.mean(0).tolist()),
            f"{int((of_nu[:, -1] < 0.8).sum())}",
            f"{wrong} / {without_zero}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=24)
    parser.add_argument("--seed", type=int, default=9800, help="of the first data set (default: 9800)")
    parser.add_argument("--out", type=Path, default=Path("noisy_states.json"))
    choice, rows, console = parser.parse_args(), [], Console(width=170)
    for seed in range(choice.seed, choice.seed + choice.datasets):
        rows.append(run(seed))
        console.print(rows[-1], soft_wrap=True)
        choice.out.write_text(json.dumps(rows, indent=1))
    console.print(table_of(rows))


if __name__ == "__main__":
    assert LEVELS[-1] == 0.95  # the last column
    main()
