"""What reports, terminal, messages and logs say is plain English: no old turns, no long sentences, on average short ones."""

import ast
import importlib.util
import re
import statistics
from functools import cache

import pytest
from commands import ROOT

from connector.report.glossary import ESTIMATE, METRICS, WORDS

# Turns that a reader has to read twice, beside those that no text of the project has (tests/docs/test_prose.py).
TURNS = re.compile(
    r"\b(as chance has it|by so much|such an?\b|foretell|foretold|made anew|trained anew|is told of|no measured error|"
    r"stands and falls|by the smallest|all but exactly|the ones to the others|the ones and the others|in place of the stated|"
    r"who reproduces|goes on where|what counts is that|is no finding either way|supported by the data are|not supported is)",
    re.IGNORECASE,
)
LONGEST, MEAN = 35, 18


@cache
def prose():
    path = ROOT / "tests" / "docs" / "test_prose.py"
    spec = importlib.util.spec_from_file_location("prose_of_docs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_all_texts(text):
    return prose().found(text)


def sentences(text):
    return [part for part in re.split(r"(?<=[.?!:;])\s+", text) if part]


def told(file):
    """Texts of a module that users read, formatted values as X: no docstrings, no single words."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    inner = {id(x) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for x in ast.walk(node)} - docs
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(x.value if isinstance(x, ast.Constant) else "X" for x in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inner:
            yield node.value


def own_texts():
    for file in sorted((ROOT / "connector").rglob("*.py")):
        for text in told(file):
            if len(text.split()) > 4:
                yield str(file.relative_to(ROOT)), text


@pytest.mark.parametrize("kind", ["code", "glossary"])
def test_no_old_turn_is_left(kind):
    texts = list(own_texts()) if kind == "code" else [(key, metric.explanation) for key, metric in METRICS.items()]
    assert len(texts) > 80
    found = [(where, hit[0]) for where, text in texts if (hit := TURNS.search(text))]
    found += [(where, better) for where, text in texts for better in of_all_texts(text)]
    assert found == []


def test_meanings_are_short_sentences():
    meanings = [(key, metric.explanation) for key, metric in METRICS.items()] + list(WORDS)
    meanings += [(name, meaning) for name, meaning in ESTIMATE.values()]
    lengths = {(key, said): len(said.split()) for key, text in meanings for said in sentences(text)}
    assert [key for key, words in lengths.items() if words > LONGEST] == []
    assert statistics.fmean(lengths.values()) <= MEAN


def test_the_word_list_finds_what_it_is_for():
    assert TURNS.search("Such a recording shows neither")
    assert TURNS.search("Who reproduces the recorded network misses")
    assert not TURNS.search("The data constrain such networks.")
