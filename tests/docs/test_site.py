"""The documentation as a site: every page is in the menu, every name of the Python reference exists, and it builds."""

import importlib
import os
import re
import subprocess
import sys

import pytest
import yaml
from commands import ROOT

DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def leaves(menu):
    """The pages of a menu, those of its parts included."""
    for entry in menu:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from leaves(value) if isinstance(value, list) else [value]


def test_the_menu_has_every_page_once():
    notebooks = {f"{path.stem}.md" for path in DOCS.glob("*.ipynb")}
    assert sorted(leaves(SETTINGS["nav"])) == sorted(notebooks | {path.name for path in DOCS.glob("*.md")})


def test_the_names_of_the_python_reference_exist_and_are_documented():
    names = [n for page in DOCS.glob("api_*.md") for n in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)]
    assert len(names) == len(set(names)) > 40
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


@pytest.mark.slow
def test_the_site_builds_with_strict_links_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="https?://[^"]*"', text), page.name
    assert "recorded_fraction" in (tmp_path / "search" / "search_index.js").read_text()
    assert 'id="connector.dynamics.Network.simulate"' in (tmp_path / "api_runs.html").read_text()
