"""Score any method's result on a public set: connector score FILE.npz --on SET"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from connector.errors import UserError, exit_code
from connector.score.keys import keys_told

_EPILOG = """keys of FILE.npz, that of network.npz among them:
{keys}

docs/scoreboard.md says what the measures are, and has those of several methods."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="connector score",
        description="Measure a method's result, a network or linear dynamics in an npz, against the truth of a public set: predicted "
        "rates, latent states, attractors, connectivity; each measure beside its null. Nothing is trained.",
        epilog=_EPILOG.format(keys=keys_told()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path, metavar="FILE.npz")
    on = "quadstable, bistable, limit_cycle, ring or heavy_tailed, or the file of a set (default: the file's key `set`)"
    parser.add_argument("--on", metavar="SET", help=on)
    parser.add_argument("--out", type=Path, help="a json file to write the measures to")
    return parser


def _score(arguments: Sequence[str] | None) -> None:
    given = build_parser().parse_args(arguments)
    from connector.files import require_file, write_json
    from connector.score.models import read_result
    from connector.score.results import MEANINGS, model_of, scores
    from connector.score.sets import NAMED, named_set, read_set

    require_file(given.result)
    result = read_result(given.result)
    name = given.on or result.on
    if name is None:
        raise UserError(
            "--on SET, or a key `set` in the file", "neither", f"sets: {', '.join(NAMED)}, or the file of one"
        )
    if name not in NAMED and not Path(name).exists():
        raise UserError(f"a set among {', '.join(NAMED)}, or the file of one", repr(name))
    public = named_set(name) if name in NAMED else read_set(Path(name))
    model, how = model_of(result, public)
    found = scores(model, public, result.interval)
    test = len(public.fold.test)
    print(f"{given.result} on {public.name}: {public.rates.shape[2]} neurons, {test} test trials; {how}\n")
    print(f"{'measure':18} {'value':>9} {'null':>9}  what it is (and its null)")
    for key, (title, meaning, null) in MEANINGS.items():
        if key not in found:
            print(f"{title:18} {'—':>9} {'—':>9}  {meaning}: not defined here")
            continue
        one = found[key]
        note = f" ({one.note})" if one.note else ""
        print(f"{title:18} {_number(one.value):>9} {_number(one.null):>9}  {meaning}{note} (null: {null})")
    if given.out is not None:
        write_json(given.out, {"set": public.name, "read": how, "scores": {k: vars(v) for k, v in found.items()}})


def _number(value: float | None) -> str:
    if value is None:
        return "—"
    return "< -10" if value < -10 else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Score as the command line says; returns the exit code, 2 for mistakes the user can mend."""
    return exit_code(_score, arguments)
