"""What users read is plain English: no turns of phrase that hide the subject, and sentences that end."""

import importlib.util
import re

import pytest
from commands import ROOT

from connector.declarations import declared
from connector.runs.describe import _GROUPS
from connector.runs.options import DATA_TYPES, Options

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
WRITTEN = PAGES
# Each with a better one.
AVOIDED = {
    r"chance has it": "at random",
    r"\bsuch an? ": "a ... like this",
    r"\bwho (reproduces|reads|wants|asks)\b": "name the subject: a model that ..., if you ...",
    r"\b(go|goes|going|went) on\b": "resume, continue",
    r"\bforet(ell|ells|old|elling)\b": "predict",
    r"\banew\b": "again",
    r"\b(is|are|was|were) (not |no longer )?told (of|by|from|where|that)\b": "the report says",
    r"\bhardly ever\b": "rarely",
    r"\bby so much\b": "by this amount",
    r"\bwhatever ends\b": "after any interruption",
    r"^(Not )?supported (by the data )?(is|are)\b": "the data determine; the data do not determine",
    r"(^|\. )Of (spikes|rates|relu|networks)\b[^.]*\b(is|are)\b": "for spikes; with relu",
    r"\bas it comes\b": "unchanged",
    r"\bis no finding\b": "is a choice",
    r"\bat will\b": "say how",
}


def prose(text):
    """Without code, and without the examples of how not to write."""
    text = re.sub(r"^```.*?^```$|^    .*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^\| not so \|.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)


def found(text):
    return [
        f"{hit[0]!r}: {better}" for bad, better in AVOIDED.items() for hit in [re.search(bad, text, re.I | re.M)] if hit
    ]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_pages_avoid_turns_that_hide_the_subject(page):
    assert not found(prose(page.read_text()))


def test_meanings_of_options_do_too_and_begin_with_what_the_option_is():
    told = [*declared(Options), *(x for schema in (*_GROUPS.values(), *DATA_TYPES.values()) for x in declared(schema))]
    assert len(told) > 150
    for name, about, _ in told:
        assert not found(about.meaning), name
        assert not re.match(r"(of|in|among|null:)\b", about.meaning), f"{name}: {about.meaning}"


def test_the_list_finds_what_it_is_for():
    assert found("draws its neurons as chance has it")
    assert found("the same command goes on")
    assert not found("Run the same command again to resume.")


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_sentences_of_a_page_are_short_on_average(page):
    spec = importlib.util.spec_from_file_location("sentences", DOCS / "sentences.py")
    sentences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sentences)
    words = sentences.lengths(page)
    assert sum(words) <= 18 * len(words) or len(words) < 5
    assert sum(n > sentences.LONG for n in words) <= max(1, 0.06 * len(words))
