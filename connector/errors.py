"""The one exception that means: the user can mend this; and how a script ends with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


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

    def __reduce__(self):  # sweeps send exceptions between processes
        return type(self), (self.expected, self.got, self.remedy)


def exit_code(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Run a script's main: exit code 0, or 2 with a message for mistakes the user can mend."""
    try:
        main(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0
