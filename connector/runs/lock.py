"""One process at a time on a run directory: a lock that dies with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from connector.errors import UserError

try:
    import fcntl
except ImportError:  # no POSIX system: directories are not guarded
    fcntl = None

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which exists, within the block.

    The operating system holds the lock and gives it up with the process that took it; the file that it hangs on says who
    that is, and means nothing by itself. On a file system without locks the directory is not guarded.

    Raises:
        UserError: another process, or another job of this one, holds it.
    """
    handle = _take(directory / LOCK_FILE)
    try:
        yield
    finally:
        if handle is not None:
            # Removed while it is held: who has opened this file meanwhile sees that it is no longer in its place.
            (directory / LOCK_FILE).unlink(missing_ok=True)
            handle.close()


def _take(path: Path) -> IO[str] | None:
    while fcntl is not None:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115, it stays open as long as the lock
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_in_place(handle, path):
                handle.truncate(0)
                with contextlib.suppress(OSError):  # a full disk holds no one back
                    handle.write(
                        f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
                    )
                    handle.flush()
                return handle
            handle.close()
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read(200).strip() or "another process"
            handle.close()
            raise UserError(
                f"a run directory that no other process works on, {path.parent}",
                f"one in use by {owner}",
                "wait until that run has ended, or choose another directory with hydra.run.dir=DIR",
            ) from None
        except OSError:  # no locks on this file system
            handle.close()
            return None
    return None


def _is_in_place(handle: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    return False
