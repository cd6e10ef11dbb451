"""What is printed: consoles and paths as a terminal, or a log file, shows them best."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console


def wide_console(width: int = 250) -> Console:
    """The terminal; where output goes to a file, which has no right margin, a page of ``width`` characters."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def shortest(path: str | Path) -> str:
    """A path as short as it can be and still be found from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
