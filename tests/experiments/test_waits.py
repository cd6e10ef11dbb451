"""The measurement of waits: its table on known numbers, and commands that end at once."""

import json
import subprocess
import sys

import pytest
from commands import ROOT


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


def test_a_rat_session_is_asked_for(waits, capsys):
    with pytest.raises(SystemExit):
        waits.main(["--cases", "rat"])
    assert "--recording FILE" in capsys.readouterr().err
