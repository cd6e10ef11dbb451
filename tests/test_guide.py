"""The pages of docs/ say what the software does: generated pages are current, commands and Python blocks run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from connector.report import METRICS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- generated pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["api.md", "metrics.md"])
def test_generated_pages_are_what_the_code_says(page):
    assert (DOCS / page).read_text() == script("make_api").PAGES[page](), "run python docs/make_api.py"


def keys_of_the_table():
    """Keys that docs/metrics.md lists, those with a suffix included."""
    keys = set()
    for line in (DOCS / "metrics.md").read_text().splitlines():
        if cell := re.match(r"\| `(\w+/\w+)`(?: \(also (.*?)\))? \|", line):
            keys |= {cell[1], *(cell[1] + suffix for suffix in re.findall(r"`(\w+)`", cell[2] or ""))}
    return keys


def test_every_measure_stands_in_the_table_with_a_source_that_exists():
    make_api = script("make_api")
    assert keys_of_the_table() == set(METRICS)
    for key in METRICS:
        make_api.find(make_api.source(key))


def test_a_run_on_rates_writes_no_other_key_than_those_of_the_table(finished):
    assert set(json.loads((finished[0] / "metrics.json").read_text())) <= keys_of_the_table()
