"""One process at a time on a run directory: a lock that dies with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from connector.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which exists, within the block.

    The operating system holds the lock and gives it up with the process that took it; the file that it hangs on says who
    that is, and means nothing by itself. On a file system without locks the directory is not guarded.

    Raises:
        UserError: another process, or another job of this one, holds it.
    """
    path = directory / LOCK_FILE
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"a run directory that no other process works on, {directory}",
            f"one in use by {_owner(path)}",
            "wait until that run has ended, or choose another directory with hydra.run.dir=DIR",
        ) from None
    except OSError:  # no locks on this file system
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a full disk holds no one back
            path.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        yield
    finally:
        # Removed while it is held: who has opened this file meanwhile sees that it is no longer in its place.
        with contextlib.suppress(OSError):  # of a directory that has become read-only
            path.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")[:200].strip() or "another process"
    return "another process"
