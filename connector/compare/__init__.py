"""Comparing finished runs: `connector compare DIR...`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs that the command line names; returns the exit code, 2 for mistakes the user can mend."""
    from connector.compare.command import main as compare
    from connector.errors import exit_code

    return exit_code(compare, arguments)
