"""The command `connector`, the same as `python -m connector` and `python train.py`: a run, or what is done with runs.

connector [OPTIONS]                              a run, or a sweep with -m
connector sample RUN --out FILE.npz              a network from a finished run
connector export SESSION --out FILE.nwb          a recording of spikes as NWB
connector compare RUN RUN ...                    a page on several runs
connector look FILE                              the arrays of a file, and a guess of the command that reads them
connector score FILE.npz --on SET                any method's result on a public set: measures with their nulls
"""

from connector import early

if __name__ == "__main__":
    early.install()

import os
import sys
from importlib import import_module

from connector import interruption, streams

# Command -> the module that holds what it imports.
_BESIDE_RUNS = {
    "sample": "connector.sample",
    "export": "connector.export",
    "compare": "connector.compare.command",
    "look": "connector.look",
    "score": "connector.score.command",
}


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    early.install()
    streams.prepare()
    try:
        os.getcwd()
    except OSError as error:
        said = f"expected a working directory that is there; got one that is gone ({error.strerror}).\nGo to another with cd."
        print(f"Error: {said}", file=sys.stderr)
        return 2
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _BESIDE_RUNS:
        import_module(_BESIDE_RUNS[name])
        interruption.imported()
        return import_module(f"connector.{name}").main(sys.argv[2:])
    return import_module("connector.launch.command_line").main()


if __name__ == "__main__":
    sys.exit(main())
