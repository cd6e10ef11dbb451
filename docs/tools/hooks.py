"""What MkDocs does with our pages beside rendering them: notebooks become pages, words for the tests leave code fences."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_IMAGES = {"image/png": "png", "image/jpeg": "jpg"}


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook with its outputs as Markdown, and the pictures that it shows by file name."""
    text, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text.append(source)
            continue
        text.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in _IMAGES if kind in data), None)
            if kind:
                name = f"{path.stem}_{len(pictures) + 1}.{_IMAGES[kind]}"
                pictures[name] = base64.b64decode("".join(data[kind]))
                text.append(f"![Figure {len(pictures)} of this notebook]({name})")
            elif said := "".join(output.get("text", data.get("text/plain", []))):
                text.append(f"```text\n{said.rstrip()}\n```")
    return "\n\n".join(text) + "\n", pictures


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(Path(config.docs_dir).glob("*.ipynb")):
        page, pictures = notebook_page(path)
        files.append(File.generated(config, f"{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages; a fence names its language alone; a link out of docs/ is its text."""
    markdown = re.sub(r"\]\((\w+)\.ipynb", r"](\1.md", markdown)
    return re.sub(r"^```(\w+) .*$", r"```\1", markdown, flags=re.MULTILINE)
