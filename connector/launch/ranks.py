"""The environment variables by which the processes of one job find each other: set by a launcher, or left by an earlier one.

A rank that nothing has launched would train, write nothing and end well; a launch that is half there would wait for ever.
"""

from __future__ import annotations

import os

from connector.errors import UserError, require

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")  # beside LOCAL_RANK, by Lightning and by torchrun


def _set() -> dict[str, str]:
    return {name: os.environ[name] for name in (*RANKS, "WORLD_SIZE") if os.environ.get(name, "").strip()}


def require_numbers() -> None:
    """Before Lightning is imported, which reads them: raises UserError where one is no whole number."""
    for name, value in _set().items():
        expected = f"a whole number as {name} in the environment, or none"
        require(value.strip().isascii() and value.strip().isdigit(), expected, repr(value), f"unset {name}")


def require_launched(processes: int) -> None:
    """Refuse ranks that no launcher has given to a job of so many processes.

    Raises:
        UserError: naming the variable.
    """
    found = _set()
    positive = [name for name in RANKS if int(found.get(name, 0)) > 0]
    if processes == 1:
        for name in positive:
            remedy = (
                f"unset {name}, if an earlier command left it; for several processes: trainer=ddp trainer.devices=N"
            )
            raise UserError("no rank in the environment of a job of one process", f"{name}={found[name]}", remedy)
        return
    if int(os.environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in found:
        return
    if "LOCAL_RANK" in found:
        missing = [name for name in _LAUNCH if not os.environ.get(name)]
        remedy = f"unset {' '.join(found)}, if an earlier command left them, or start the job by torchrun"
        got = f"LOCAL_RANK={found['LOCAL_RANK']} without {', '.join(missing)}"
        require(not missing, "the environment of a launcher with LOCAL_RANK", got, remedy)
        got = f"WORLD_SIZE={found['WORLD_SIZE']}"
        require(int(found["WORLD_SIZE"]) == processes, f"a launch of {processes} processes", got, remedy)
    elif positive and not (positive == ["NODE_RANK"] and os.environ.get("MASTER_ADDR")):
        name = positive[0]
        got, remedy = (
            f"{name}={found[name]} alone",
            f"unset {name}, if an earlier command left it, or start by torchrun",
        )
        raise UserError("all that a launcher sets in the environment, or nothing of it", got, remedy)
