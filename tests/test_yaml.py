"""YAML that would take hours to read is refused at once, wherever a file of options is read."""

import pytest
import yaml
from commands import typed

from connector import load_run
from connector.compare.runs import read_run
from connector.errors import UserError
from connector.files import check_yaml, read_yaml
from connector.runs.fingerprints import recognise
from connector.runs.store import RunStore


def doubling(times, form="{{a: {0}, b: {0}}}"):
    """Aliases of aliases: 2^times entries in a few lines."""
    lines = ["x0: &x0 " + form.format(1)] + [f"x{i}: &x{i} " + form.format(f"*x{i - 1}") for i in range(1, times)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "mappings": doubling(40),
    "lists": doubling(40, "[{0}, {0}]"),
    "just too much": doubling(18),
    "merged": "a: &a {b: 1}\n" + "".join(f"c{i}: &c{i} [{', '.join(['*a'] * 1000)}]\n" for i in range(100)),
    "itself": "a: &a [*a]\n",
    "each other": "a: &a {b: &b [*a]}\n",
    "deep": "a: " + 20_000 * "[",
    "deep and whole": "a: " + 60 * "[" + 60 * "]",
    "block": "".join("  " * i + "a:\n" for i in range(80)),
    "long": "a: [" + 150_000 * "1," + "]",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_would_take_hours_is_refused_at_once(kind):
    with pytest.raises(UserError, match=r"at most 200000 characters and entries in mine\.yaml"):
        check_yaml(BOMBS[kind], "mine.yaml")


def test_ordinary_files_are_read_as_they_are(tmp_path):
    text = "a: &a {b: [1, 2.5, x], c: null}\nd:\n  <<: *a\n  e: *a\nf: [*a, *a]\n" + doubling(10)
    text += f"deep: {40 * '['}{40 * ']'}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)


def test_a_runs_options_are_looked_at_by_all_who_read_them(tmp_path):
    (tmp_path / "train.log").write_text("")
    (tmp_path / "config.yaml").write_text("trainer: {accelerator: cpu}\n" + doubling(40))
    with pytest.raises(UserError, match="aliases"):
        load_run(tmp_path)
    assert "aliases" in read_run(tmp_path).problem
    recognise(RunStore(tmp_path), None, {}, {"lrrnn": "mark"})  # passes over what it cannot read


def test_a_users_own_file_of_options_is_looked_at(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + doubling(40))
    done = typed("--config-dir", tmp_path, "experiment=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: expected options in YAML of at most")
    assert len(done.stderr.splitlines()) == 2
