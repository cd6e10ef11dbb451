"""Takes the screenshots of the documentation with a headless Chromium, and draws what the terminal shows.

    python docs/make_screenshots.py --run runs/quadstable/default --comparison comparison/comparison.html

The run is that of `python train.py`, the page that of `python experiments/compare.py`. The terminal shows the same command
again, which finds its stages finished and makes its measures anew.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from connector.errors import UserError

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLUMNS, LINES = 100, 45  # of the terminal


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument("--comparison", type=Path, required=True, metavar="FILE.html")
    options = parser.parse_args(arguments)
    try:
        print(screenshot(options.run / "report.html", "screen_report", 1280, 760))
        print(screenshot(options.comparison, "screen_comparison", 1280, 800))
        print(terminal(options.run.resolve(), "screen_terminal"))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
