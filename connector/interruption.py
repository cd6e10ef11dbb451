"""SIGTERM, as a cluster sends it before it takes a machine away: the epoch at hand is finished and kept, then the process ends.

Outside of training the process ends at once: stages that are finished are on the disk, and nothing else can be kept.
Before the first job: :mod:`connector.early`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from connector import early

GRACE_S = 20.0  # for the epoch at hand; clusters kill after 30 s or more
EXIT_CODE = 128 + signal.SIGTERM

# In the environment of a process that belongs to another: whose it is, and where it says that it is ready to begin.
PARENT, READY = "CONNECTOR_PARENT", "CONNECTOR_READY"
_LOOK_EVERY_S = 0.2

_asked_at: float | None = None
_training = False
_installed = False


def install() -> None:
    """Handle SIGTERM in this process from now on."""
    global _installed
    _installed = True
    signal.signal(signal.SIGTERM, _on_signal)


def imported() -> None:
    """The imports are done: :func:`install`, where :mod:`connector.early` had taken the signals."""
    if early.give_way():
        install()


def end_with(parent: int) -> None:
    """End this process, at once, when the one that it belongs to is gone: whatever it was at would wait, or hold a run
    directory's lock, for minutes. What it has written is whole; the same command resumes from there."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        os._exit(EXIT_CODE)

    threading.Thread(target=watch, daemon=True, name="ends with its parent").start()


def belong_to_parent() -> None:
    """:func:`end_with` the process that started this one, where it has said so."""
    parent = os.environ.pop(PARENT, "")
    if parent.isdigit():
        end_with(int(parent))


def say_ready() -> None:
    """Tell the process that started this one as another rank of its job that it is about to join."""
    if READY in os.environ:
        with contextlib.suppress(OSError):
            Path(os.environ[READY], os.environ.get("LOCAL_RANK", "")).touch()


def training_starts() -> None:
    """From now on a signal is answered by :func:`stop_asked`. Takes the handler back from Lightning, which has its own."""
    global _training
    if _installed and threading.current_thread() is threading.main_thread():
        _training = True
        signal.signal(signal.SIGTERM, _on_signal)


def training_ends() -> None:
    global _training
    _training = False


def stop_asked() -> bool:
    """Whether training is to be left at the end of the epoch."""
    return _asked_at is not None


def grace_is_over() -> bool:
    """Whether the epoch at hand has gone on for too long since a stop was asked for."""
    return _asked_at is not None and time.monotonic() - _asked_at > GRACE_S


def leave() -> None:
    raise SystemExit(EXIT_CODE)


def what(left: BaseException) -> object:
    """What interrupted a job, in a word."""
    if isinstance(left, KeyboardInterrupt):
        return "Ctrl-C"
    return "SIGTERM" if left.code == EXIT_CODE else left


def goes_on(directory: Path) -> str:
    """What an interrupted run has on the disk, as the same command finds it; needs no torch."""
    order, planned, finished = ("lrrnn", "loadings", "outputs"), {}, []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        planned, finished = manifest.get("planned", {}), [stage for stage in order if stage in manifest["stages"]]
    # Directories of other trainings may lie beside them, a copy of the user's among them.
    last = [
        stage for stage in order if any(directory.glob(f"checkpoints/{stage}-{planned.get(stage, '*')}/last-*.ckpt"))
    ]
    if last:
        return f"the same command resumes from the last checkpoint of the stage {last[-1]}"
    if finished:
        return f"the same command resumes from what is finished ({', '.join(finished)})"
    return "no stage was finished and no checkpoint written yet, so the same command starts from the beginning"


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _asked_at
    if _training and _asked_at is None:
        _asked_at = time.monotonic()
    elif _in_destructor(frame):
        again = threading.Timer(_LOOK_EVERY_S, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()
    else:
        leave()


def _in_destructor(frame: FrameType | None) -> bool:
    """Whether Python would print what is raised here, and go on as if nothing had been asked."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
