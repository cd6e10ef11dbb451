"""Ctrl-C and SIGTERM while a command is still importing, which expects no interruption: the process ends, with one line.

Imports next to nothing, so that it stands before all else; :mod:`connector.interruption` takes over when a job begins.
"""

import os
import signal

_undo = []  # functions without arguments, to be called before the process ends


def install() -> None:
    """Until :func:`give_way`, end the process at once at Ctrl-C and SIGTERM, with the exit code that they have later.

    A process that was told to ignore Ctrl-C, as `nohup` or a shell's `&` does, goes on ignoring it.
    """
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def undo(function) -> None:
    """Something to do before the process ends early, such as removing an empty directory."""
    _undo.append(function)


def give_way() -> bool:
    """Give both signals back to Python; whether they were held here."""
    held = signal.getsignal(signal.SIGTERM) is _leave
    if held:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return held


def _leave(signum, frame) -> None:
    for function in _undo:
        try:
            function()
        except Exception:
            continue
    word = "Interrupted" if signum == signal.SIGINT else "Terminated"
    try:  # noqa: SIM105
        os.write(2, f"{word}; nothing was started yet.\n".encode())
    except OSError:
        pass
    os._exit(128 + signum)
