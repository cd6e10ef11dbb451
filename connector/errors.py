"""What ends a run: UserError, a mistake that the user can mend; RunFailure, all else, with the stage, what is kept, what to do."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a place says that cannot be written to: a directory that is read-only, gone, of somebody else, or no directory; names too
# long; a device that fails.
_NO_PLACE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EEXIST, errno.ESTALE, errno.EIO,
)  # fmt: skip
PRUNED = "pruned"  # how such a job ended, in the words of :func:`end_state`
_NUMERICAL = {
    "lrrnn": "try a smaller lrrnn.learning_rate or another lrrnn.rank, and look for neurons or trials far out of range",
    "loadings": "try a smaller connectivity.loadings_learning_rate",
    "outputs": "try a larger connectivity.regularizer or a smaller connectivity.outputs_learning_rate",
    "results": "try a larger connectivity.regularizer, or project with a larger connectivity.projection_regularizer",
}
_MEMORY = {
    "data": "try fewer trials or neurons",
    "lrrnn": "try a smaller lrrnn.batch_size, or fewer trials or neurons",
    "loadings": "try a smaller connectivity.loadings_batch_size and connectivity.loadings_paths",
    "outputs": "try a smaller connectivity.max_states, connectivity.outputs_loadings and connectivity.outputs_batch_size",
    "results": "try report=false, which draws no figures",
}


class UserError(Exception):
    """A mistake in an option, a file, a shape or a value that the user can mend.

    The command line prints ``expected``, ``got`` and ``remedy`` in one or two lines, without a traceback,
    and ends with exit code 2.

    Args:
        expected: what would have been right, as a sentence without its full stop.
        got: what was found instead.
        remedy: what to do about it; optional where it is obvious.
    """

    def __init__(self, expected: str, got: str, remedy: str = ""):
        self.expected, self.got, self.remedy = expected, got, remedy
        message = f"expected {expected}; got {got}."
        if remedy:
            message += f"\n{remedy[0].upper()}{remedy[1:].rstrip('.')}."
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple]:  # sweeps send exceptions between processes
        return type(self), (self.expected, self.got, self.remedy)


def require(condition: bool, expected: str, got: object, remedy: str = "") -> None:
    """Raises UserError unless the condition holds."""
    if not condition:
        raise UserError(expected, str(got), remedy)


def exit_code(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Run a script's main: exit code 0; 2 with a message for mistakes the user can mend, a place that cannot be written to among
    them; 1 for failures, such as a full disk; 130 for Ctrl-C."""
    try:
        main(arguments)
    except UserError as error:
        return _said(error, 2)
    except RunFailure as error:
        return _said(error, 1)
    except OSError as error:
        told = unwritable(error)
        if told is None:
            raise
        return _said(told, 2 if isinstance(told, UserError) else 1)
    except KeyboardInterrupt:
        print("Interrupted; files are written whole or not at all.", file=sys.stderr)
        return 130
    return 0


def _said(error: Exception, code: int) -> int:
    print(f"Error: {error}", file=sys.stderr)
    return code


class RunFailure(Exception):
    """A run that cannot go on. The command line prints it in two lines, without a traceback, and ends with exit code 1.

    Args:
        stage: "lrrnn", "loadings", "outputs" or "results"; before them "data" and "start".
        what: happened, as the end of a sentence: "the loss is nan".
        remedy: what to do about it.
        where: step or epoch, where there is one: "step 12 (epoch 3)".
        kept: what is left to go on from.
    """

    def __init__(self, stage: str, what: str, remedy: str, where: str = "", kept: str = ""):
        self.stage, self.what, self.remedy, self.where, self.kept = stage, what, remedy, where, kept
        at = f" at {where}" if where else ""
        second = [f"{text[0].upper()}{text[1:].rstrip('.')}." for text in (kept, remedy) if text]
        super().__init__("\n".join([f"{stage} stopped{at}: {what}.", *([" ".join(second)] if second else [])]))

    def __reduce__(self) -> tuple[type, tuple]:  # sweeps send exceptions between processes
        return type(self), (self.stage, self.what, self.remedy, self.where, self.kept)


class Pruned(Exception):
    """The trial of a study that is far behind the others: its job ends early, which is no failure."""


def unwritable(error: OSError, option: str = "--out") -> Exception | None:
    """What to end with where a file or directory cannot be made or read, as no reader of files has told; None for other errors.

    Args:
        option: that names another place.
    """
    where = str(error.filename2 or error.filename or "the file")
    where = where if len(where) <= 200 else f"{where[:80]}...{where[-80:]}"
    if error.errno in _NO_SPACE:
        return RunFailure(
            "writing", f"no space is left for {where} ({error.strerror})", "make room, and repeat the command"
        )
    if error.errno in _NO_PLACE:
        return UserError(
            "a place that can be written to", f"{where} ({error.strerror})", f"choose another with {option}"
        )
    return None


def numerical_failure(stage: str, what: str, where: str = "", kept: str = "") -> RunFailure:
    """Divergence, a singular system, numbers that are not finite."""
    return RunFailure(stage, what, _NUMERICAL.get(stage, ""), where, kept)


def process_end(code: int) -> str:
    """How a process ended, by the code that Python has of it."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def end_state(error: BaseException | None) -> str:
    """How a job ended, with its exit code had it run alone and the first line of what it said."""
    if error is None:
        return "done"
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, Pruned):
        return f"{PRUNED}: {line}"
    if isinstance(error, UserError):
        return f"mistake (2): {line}"
    if isinstance(error, RunFailure):
        return f"failed (1): {line}"
    return f"failed (1): {type(error).__name__}{f': {line}' if line else ''}"


def explain(error: Exception, stage: str, directory: Path) -> Exception:
    """The exception to end with for one that left a stage: a mistake or failure stays what it is; a full disk, too little
    memory and singular systems become a RunFailure that says so; and so does all else, with the log that tells more, once
    there is one."""
    if isinstance(error, (UserError, RunFailure, Pruned)):
        return error
    kept = f"finished stages are kept in {directory}"
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
            remedy = "make room, then run the same command to resume"
            return RunFailure(stage, f"no space is left to write to ({cause.strerror})", remedy, kept=kept)
        if isinstance(cause, OSError) and (told := _without_place(cause, stage, directory)):
            return told
        if _is_out_of_memory(cause):
            return RunFailure(stage, f"memory is exhausted ({_line(cause)})", _MEMORY.get(stage, ""), kept=kept)
        if "linalg" in type(cause).__name__.lower():
            return numerical_failure(stage, f"a linear system cannot be solved ({_line(cause)})", kept=kept)
    if stage == "data":
        return error
    remedy = f"{directory / 'train.log'} has the traceback; please report it, this is a fault of the program"
    return RunFailure(stage, f"{type(error).__name__}: {_line(error)}", remedy, kept=kept)


def _without_place(error: OSError, stage: str, directory: Path) -> Exception | None:
    """What to end with where the run directory cannot be written to any more, or from the start; None where it is not that."""
    gone = not directory.is_dir()
    inside = any(str(name or "").startswith(str(directory)) for name in (error.filename, error.filename2))
    if error.errno not in _NO_PLACE or not (gone or inside):
        return None
    if stage == "start" and not (gone and error.errno == errno.ENOENT):
        return UserError(
            "a run directory that can be written to",
            f"{directory} ({error.strerror})",
            "choose another with hydra.run.dir=DIR",
        )
    if gone:
        return RunFailure(stage, f"the run directory {directory} is gone", "run the same command to make it again")
    remedy = f"see that {directory} can be written to, then run the same command to resume"
    return RunFailure(
        stage, f"{error.filename} cannot be written ({error.strerror})", remedy, kept="finished stages are kept"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it: closing a file that cannot be written raises other errors on top of the first."""
    seen = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    # torch on the CPU has no class of its own for it, and that of a GPU is a RuntimeError.
    said = str(error)
    of_torch = isinstance(error, RuntimeError) and ("can't allocate memory" in said or "out of memory" in said)
    return isinstance(error, MemoryError) or of_torch


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200].rstrip(".")
