"""Sample a network from a finished run: connector sample RUN [--neurons 5000] [--out FILE.npz]"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from connector.connectivity.distribution import ConnectivityDistribution
from connector.errors import UserError, exit_code
from connector.runs.saved import load_run
from connector.runs.store import write_network

_OUT = Path("sampled.npz")


def build_parser() -> argparse.ArgumentParser:
    """Options with the defaults of :meth:`ConnectivityDistribution.sample`, so that both give the same network."""
    default = {name: p.default for name, p in inspect.signature(ConnectivityDistribution.sample).parameters.items()}
    parser = argparse.ArgumentParser(
        prog="connector sample",
        description="Sample a network from a finished run's connectivity, as run.connectivity.sample does.",
    )
    parser.add_argument("run", type=Path, help="a run directory")

    def add(flag: str, name: str, meaning: str, **how: Any) -> None:
        parser.add_argument(flag, default=default[name], help=f"{meaning} (default %(default)s)", **how)

    add("--neurons", "n_neurons", "neurons of the network", type=int)
    add("--sigma", "sigma", "sd of n around its conditional mean", type=float)
    restored = "correct n so that the observed field is restored"
    add("--project", "project", restored, action=argparse.BooleanOptionalAction)
    add("--seed", "seed", "same seed, same network", type=int)
    written = f"the npz to write: m b d n alpha activation sigma (default: {_OUT}, where there is none yet)"
    parser.add_argument("--out", type=Path, help=written)
    return parser


def _sample(arguments: Sequence[str] | None) -> None:
    given = build_parser().parse_args(arguments)
    if given.neurons < 1:
        raise UserError("--neurons of 1 or more", str(given.neurons))
    if given.sigma < 0:
        raise UserError("--sigma of 0 or more", str(given.sigma))
    if given.out is None and _OUT.exists():
        raise UserError(f"no {_OUT} here", "one", "name another file with --out, or remove it")
    out = given.out or _OUT
    run = load_run(given.run)
    network = run.connectivity.sample(given.neurons, sigma=given.sigma, project=given.project, seed=given.seed)
    write_network(out, network, given.sigma, run.latents.input_kind)
    print(f"{out}: {network.n_neurons} neurons, rank {network.rank}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Sample as the command line says; returns the exit code, 2 for mistakes the user can mend."""
    return exit_code(_sample, arguments)


if __name__ == "__main__":
    sys.exit(main())
