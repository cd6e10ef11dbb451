"""Takes the screenshots of the documentation with a headless Chromium, and draws what the terminal shows.

    python docs/make_screenshots.py --run runs/quadstable/default --comparison comparison/comparison.html --logs runs/wandb

The run is that of `python train.py`, the page that of `python experiments/compare.py`. The terminal shows the same command
again, which finds the run finished. The logs are those of `docs/wandb.md`, of two seeds; `wandb leet` shows them, drawn
through the terminal emulator pyte (`pip install pyte`).
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text

from connector.errors import UserError

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLUMNS, LINES = 100, 45  # of the terminal
_UNKNOWN = re.compile(rb"\x1b\[[<=>][0-9;]*[a-zA-Z]|\x1b\[\?[0-9;]*\$p")  # sequences that pyte would print


def screenshot(page: Path, name: str, width: int, height: int) -> Path:
    """The upper part of a page, as docs/NAME.png of 128 colours."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"one of the browsers {', '.join(BROWSERS)}", "none", "install Chromium")
    path = DOCS / f"{name}.png"
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
        later = "--virtual-time-budget=3000"  # what the page draws by itself is there
        command = [browser, *flags, later, f"--screenshot={taken}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture = io.BytesIO(taken.read_bytes())
    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def terminal(run: Path, name: str) -> Path:
    """What `python train.py` prints for a finished run, as docs/NAME.svg."""
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={run}", "report=false"]
    environment = os.environ | {"COLUMNS": str(COLUMNS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=1200)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text("$ python train.py", style="bold"))
    lines = (done.stderr + done.stdout).replace(str(run), "runs/quadstable/default").splitlines()
    console.print(Text.from_ansi("\n".join(lines[:LINES])))
    path = DOCS / f"{name}.svg"
    console.save_svg(str(path), title="Connector", clear=True)
    return path


def leet(logs: Path, name: str) -> Path:
    """The losses of the runs in a directory of W&B logs as `wandb leet` shows them, as docs/NAME.svg."""
    try:
        import pyte
    except ImportError as error:
        raise UserError("the package pyte, a terminal emulator", "none", "install it: pip install pyte") from error
    screen = pyte.Screen(COLUMNS + 20, 31)
    keys = ["\x1b[B", " ", "/", "loss\r"]  # the second run beside the first, and metrics named after a loss
    with tempfile.TemporaryDirectory() as folder:  # what was selected last is kept beside the logs
        copied = Path(shutil.copytree(logs, Path(folder) / "wandb", ignore=shutil.ignore_patterns(".*", "latest-run")))
        command = ["env", f"WANDB_CONFIG_DIR={folder}", sys.executable, "-m", "wandb", "leet", str(copied)]
        _play(command, keys, screen, pyte.ByteStream(screen))
    console = Console(record=True, width=screen.columns, file=io.StringIO())
    shown = f"wandb dir: {copied}"
    for y in range(screen.lines):
        cells = [screen.buffer[y][x] for x in range(screen.columns)]
        at = "".join(cell.data or " " for cell in cells).find(shown)
        if at >= 0:  # paths of this machine are of no use to others
            for x, letter in enumerate("wandb dir: runs/wandb".ljust(len(shown))):
                cells[at + x] = cells[at + x]._replace(data=letter)
        console.print(Text.assemble(*((cell.data, _style(cell)) for cell in cells)), soft_wrap=True)
    path = DOCS / f"{name}.svg"
    console.save_svg(str(path), title="wandb leet runs/wandb", clear=True)
    return path


def _play(command: list[str], keys: list[str], screen: Any, stream: Any) -> None:
    """Type keys into a program that draws on the whole terminal, have it draw all once more, and end it."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execvp(command[0], command)

    def watch(columns: int, seconds: float) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.lines, columns, 0, 0))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if select.select([terminal], [], [], 0.1)[0]:
                stream.feed(_UNKNOWN.sub(b"", os.read(terminal, 65536)))

    watch(screen.columns, 8)
    for key in keys:
        os.write(terminal, key.encode())
        watch(screen.columns, 1.5)
    watch(screen.columns - 1, 1.5)
    screen.reset()  # what it drew piece by piece may stand in wrong places
    watch(screen.columns, 2)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)


def _style(cell: Any) -> Style:
    """Of a character of the emulated terminal."""

    def colour(name: str) -> str | None:
        if name == "default":
            return None
        known = name.replace("bright", "bright_").replace("brown", "yellow")
        return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else known

    return Style(color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, reverse=cell.reverse)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument("--comparison", type=Path, required=True, metavar="FILE.html")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        print(screenshot(options.run / "report.html", "screen_report", 1280, 760))
        print(screenshot(options.comparison, "screen_comparison", 1280, 800))
        print(terminal(options.run.resolve(), "screen_terminal"))
        print(leet(options.logs, "screen_leet"))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
