"""Prints how long the sentences of Markdown and HTML files are: number, mean, 95th percentile, share above 30 words.

python docs/sentences.py README.md docs/*.md runs/quadstable/default/report.html

Counted is running text: no code, no tables, no headings, no pictures. A sentence ends with a full stop, a question mark, the
end of a paragraph or of a point of a list. Words are what stands between blanks and holds a letter or a digit.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LONG = 30
_STOP = re.compile(r"(?<=[.?!])[*_)\"]*\s+(?=[*_(\"`]*(?:[A-Z0-9`]|nu |phi |sigma |alpha ))")
_BLOCKS = {"p", "li", "dd", "dt", "div", "section", "figcaption", "blockquote", "summary", "br"}
_LEFT_OUT = {
    "script",
    "style",
    "svg",
    "table",
    "pre",
    "code",
    "h1",
    "h2",
    "h3",
    "h4",
    "nav",
    "footer",
    "title",
    "button",
}


class _Text(HTMLParser):
    """The paragraphs of a page."""

    def __init__(self):
        super().__init__()
        self.paragraphs, self.left_out = [""], 0

    def handle_starttag(self, tag, attrs):
        if tag in _BLOCKS:
            self.paragraphs.append("")
        if tag == "code":
            self.paragraphs[-1] += " x "  # a name in a sentence is a word
        self.left_out += tag in _LEFT_OUT

    def handle_endtag(self, tag):
        self.left_out -= tag in _LEFT_OUT
        if tag in _BLOCKS:
            self.paragraphs.append("")

    def handle_data(self, data):
        if not self.left_out:
            self.paragraphs[-1] += data


def of_html(text: str) -> list[str]:
    parser = _Text()
    parser.feed(text)
    return parser.paragraphs


def of_markdown(text: str) -> list[str]:
    """Paragraphs and points of lists, without code, tables, headings and pictures."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|!\[.*?\]\(.*?\)", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = [""]
    for line in text.splitlines():
        if re.match(r"\s*$|#|\||    \S|:::", line):
            paragraphs.append("")
        elif point := re.match(r"\s*(?:[-*>]|\d+\.)\s+(.*)", line):
            paragraphs.append(point[1])
        else:
            paragraphs[-1] += f" {line.strip()}"
    return paragraphs


def lengths(path: Path) -> list[int]:
    """Words of each sentence of a file."""
    text = path.read_text(encoding="utf-8")
    paragraphs = of_html(text) if path.suffix == ".html" else of_markdown(text)
    counted = (len(re.findall(r"\S*\w\S*", sentence)) for p in paragraphs for sentence in _STOP.split(p.strip()))
    return sorted(n for n in counted if n > 1)


def row(name: str, words: list[int]) -> str:
    if not words:
        return f"| {name} | 0 | | | | |"
    high = words[min(len(words) - 1, math.ceil(0.95 * len(words)) - 1)]
    above = sum(n > LONG for n in words) / len(words)
    return f"| {name} | {len(words)} | {sum(words)} | {sum(words) / len(words):.1f} | {high} | {above:.1%} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="Markdown (.md) and HTML (.html)")
    files = parser.parse_args(arguments).files
    print(f"| file | sentences | words | mean | 95th percentile | above {LONG} words |")
    print("|---|---:|---:|---:|---:|---:|")
    counted = [(path, lengths(path)) for path in files]
    for path, words in counted:
        print(row(str(path), words))
    if len(counted) > 1:
        print(row("all", sorted(n for _, words in counted for n in words)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
