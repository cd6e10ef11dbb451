"""Sample a network from a finished run: connector sample RUN --neurons 5000 --out FILE.npz"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from connector.connectivity.distribution import ConnectivityDistribution
from connector.errors import UserError
from connector.runs.saved import load_run
from connector.runs.store import write_network


def build_parser() -> argparse.ArgumentParser:
    """Options with the defaults of :meth:`ConnectivityDistribution.sample`, so that both give the same network."""
    default = {name: p.default for name, p in inspect.signature(ConnectivityDistribution.sample).parameters.items()}
    parser = argparse.ArgumentParser(
        prog="connector sample",
        description="Sample a network from a finished run's connectivity, as run.connectivity.sample does.",
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument(
        "--neurons", type=int, default=default["n_neurons"], help="neurons of the network (default %(default)s)"
    )
    parser.add_argument(
        "--sigma",
        type=float,
        default=default["sigma"],
        help="sd of n around its conditional mean (default %(default)s)",
    )
    parser.add_argument(
        "--project",
        action=argparse.BooleanOptionalAction,
        default=default["project"],
        help="correct n so that the observed field is restored (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=default["seed"], help="same seed, same network (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the npz to write: m b d n alpha activation sigma")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = build_parser().parse_args(arguments)
    try:
        if given.neurons < 1:
            raise UserError("--neurons of 1 or more", str(given.neurons))
        if given.sigma < 0:
            raise UserError("--sigma of 0 or more", str(given.sigma))
        network = load_run(given.run).connectivity.sample(
            n_neurons=given.neurons, sigma=given.sigma, project=given.project, seed=given.seed
        )
        write_network(given.out, network, given.sigma)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {network.n_neurons} neurons, rank {network.rank}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
