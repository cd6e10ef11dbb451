"""Parts of pages that scripts write: what stands between `<!-- NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from connector.errors import UserError
from connector.files import write_text


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, as many as there are heads."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def rewrite(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the marks of that name; all else on the page stays. A page that is not there yet is made of it.

    Raises:
        UserError: the page has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    part = f"{begin}\n\n{text.strip()}\n\n{end}"
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, part + "\n")
        return
    old = page.read_text(encoding="utf-8")
    if begin not in old or end not in old[old.index(begin) :]:
        raise UserError(f"{begin} and, after it, {end} in {page}", "a page without them")
    first = old.index(begin)
    after = old.index(end, first) + len(end)
    write_text(page, old[:first] + part + old[after:])
