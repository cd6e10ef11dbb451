"""The command line: compose a configuration, check it, run the job. `python train.py --help` lists the options."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

# Hydra's own reporting hides the exception from this file and always ends with 1; here mistakes end with 2.
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from connector.errors import UserError
from connector.run_directory import run_directory, run_name

OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)
OmegaConf.register_new_resolver("sweep_directory", lambda c, o: run_directory(c, o, ","), replace=True)


def _remove_if_empty(directory: Path) -> None:
    """A refused job leaves no directory behind."""
    for path in (directory, directory.parent):
        with contextlib.suppress(OSError):
            path.rmdir()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> float | None:
    """One job: a single run, or one of a sweep. Returns the value that an optimizing sweeper minimises."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    group = Path(HydraConfig.get().sweep.dir).name if sweep else None
    try:
        # Imported here: --help, --cfg and refused options answer without waiting for torch.
        from connector.config import checked

        options = checked(config)
        from connector.run import run

        return run(options, config, directory, sweep_name=group, objective=config.get("objective"))
    except UserError as error:
        _remove_if_empty(directory)
        if sweep:
            print(f"{directory.name}: {error}", file=sys.stderr)
        raise


def _terminate(signum, frame) -> None:
    raise SystemExit(128 + signum)


def main() -> int:
    """Run the command line; returns the exit code: 0 done, 2 a mistake the user can mend, 1 anything else."""
    signal.signal(signal.SIGTERM, _terminate)
    many = any(flag in ("-m", "--multirun") for flag in sys.argv[1:])
    try:
        job()
    except UserError as error:
        if not many:
            print(f"Error: {error}", file=sys.stderr)
        return 1 if many else 2
    except (CompactHydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        detail = f"\n{str(cause).splitlines()[0]}" if isinstance(cause, OmegaConfBaseException) else ""
        lines = str(error).splitlines()
        print(f"Error: {' '.join(line.strip() for line in lines[:2])}{detail}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
