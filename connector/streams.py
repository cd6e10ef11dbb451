"""What a process prints: standard streams that are closed, full or of another encoding stop nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class Lenient:
    """A text stream for printing that goes on when its reader has left or its disk is full: what cannot be written is lost.

    Args:
        stream: of the interpreter; told: where to say once that it is full, or None.
    """

    def __init__(self, stream: TextIO, told: TextIO | None = None):
        self._stream, self._told = stream, told

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """What is left in the buffer, and all that follows, goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._told is not None and not isinstance(error, BrokenPipeError):
            print(
                f"Standard output can no longer be written ({error.strerror}); the run continues without it.",
                file=self._told,
            )
            self._told = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Make the standard streams of this process ones that can be printed to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: a file opened later would take its number, and be printed into
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    out, error = (_printable(stream, number) for number, stream in ((1, sys.stdout), (2, sys.stderr)))
    sys.stderr = Lenient(error)  # type: ignore[assignment]
    sys.stdout = Lenient(out, sys.stderr)  # type: ignore[arg-type,assignment]


def _printable(stream: TextIO | None, number: int) -> TextIO:
    """The stream, in which characters that its encoding lacks are spelt out; where there is none, one on its number."""
    if stream is None:
        return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream
