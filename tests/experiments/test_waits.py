"""The measurement of waits: its table on known numbers, and commands that end at once."""

import json
import subprocess
import sys

import pytest
from commands import ROOT

from connector.errors import UserError


@pytest.fixture
def waits(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import waits

    return waits


def test_the_table_gives_medians_with_their_spread_and_the_largest_memory(waits):
    wait = waits.Wait("default", "default run", [50.0, 54.0, 49.0], [55.0, 60.0, 51.0], [1.0, 1.2, 1.1])
    wait.stages["lrrnn"] = [6.0, 5.0, 5.5]
    quick = waits.Wait("help", "`--help`", [0.8], [0.9], [0.2])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in waits.table([wait, quick]).splitlines()]
    assert rows[2][:6] == ["default run", "3", "50.0 (49.0 to 54.0)", "55.0 (51.0 to 60.0)", "1.2", "5.5 (5.0 to 6.0)"]
    assert rows[3][:6] == ["`--help`", "1", "0.80", "0.90", "0.2", ""]


def test_earlier_measurements_stand_beside(waits):
    now = [
        waits.Wait("default", "default run", [20.0], [21.0], [1.0]),
        waits.Wait("help", "`--help`", [0.4], [0.4], [0.2]),
    ]
    first = [waits.Wait("default", "default run", [40.0, 44.0, 41.0], [1.0], [1.0])]
    head, _, *rows = (line.strip("|").split("|") for line in waits.table(now, {"first release": first}).splitlines())
    at = [cell.strip() for cell in head].index("CPU s, first release")
    assert [row[at].strip() for row in rows] == ["41.0 (40.0 to 44.0)", ""]


def test_cases_of_the_same_code_and_machine_stay_in_the_file(waits, tmp_path, monkeypatch):
    out, code = tmp_path / "waits.json", {"commit": "first", "changed": False}
    monkeypatch.setattr(waits, "git_state", lambda _: dict(code))
    monkeypatch.setattr(waits, "run_once", lambda case, found, *_: (found.cpu_s.append(1.0), found.elapsed_s.append(1.0), found.peak_gib.append(1.0)))  # fmt: skip
    for name in ("help", "refused"):
        waits.main(["--cases", name, "--repeats", "2", "--out", str(out)])
    assert [wait.name for wait in waits.read(out)[1]] == ["help", "refused"]
    code["commit"] = "second"
    waits.main(["--cases", "missing", "--repeats", "1", "--out", str(out)])
    assert [wait.name for wait in waits.read(out)[1]] == ["missing"]
    waits.main(["--cases", "help", "--repeats", "1", "--out", str(out), "--options", "seed=2"])
    assert [wait.name for wait in waits.read(out)[1]] == ["help"]
    code["changed"] = True  # otherwise each time
    for name in ("help", "refused"):
        waits.main(["--cases", name, "--repeats", "1", "--out", str(out)])
    assert [wait.name for wait in waits.read(out)[1]] == ["refused"]


def test_quick_commands_are_measured_and_a_page_is_rewritten(tmp_path):
    page, out = tmp_path / "page.md", tmp_path / "waits.json"
    page.write_text("before\n\n<!-- waits -->\n<!-- end of waits -->\n\nafter\n")
    command = [sys.executable, ROOT / "experiments" / "waits.py", "--cases", "refused", "--repeats", "1"]
    done = subprocess.run([*command, "--out", out, "--page", page], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wait,) = json.loads(out.read_text())["waits"]
    assert wait["name"] == "refused"
    assert wait["cpu_s"][0] > 0.05
    assert wait["peak_gib"][0] > 0.01
    text = page.read_text()
    assert text.startswith("before")
    assert text.rstrip().endswith("after")
    assert "| a refused option | 1 |" in text


def test_a_command_that_ends_otherwise_is_no_measurement(waits, tmp_path):
    case = waits.Case("refused", ("lrrnn.rnak=2",))
    with pytest.raises(RuntimeError, match="ended with 2, not 0"):
        waits.run_once(case, waits.Wait("", ""), ROOT, tmp_path, {}, [])
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("mistaken", "asked"),
    [(["--cases", "rat"], "--recording FILE"), (["--beside", "earlier=missing.json"], "--beside NAME=FILE"), (["--beside", "x"], "--beside NAME=FILE")],
)  # fmt: skip
def test_files_that_are_needed_are_asked_for(waits, capsys, mistaken, asked):
    with pytest.raises(SystemExit):
        waits.main(mistaken)
    assert asked in capsys.readouterr().err


def test_another_file_is_neither_read_nor_overwritten(waits, tmp_path):
    out = tmp_path / "notes.json"
    out.write_text('{"waits": [3]}')
    with pytest.raises(UserError, match=r"a file that waits\.py wrote"):
        waits.main(["--cases", "help", "--out", str(out)])
    assert out.read_text() == '{"waits": [3]}'
