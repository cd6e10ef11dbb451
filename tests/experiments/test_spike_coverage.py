import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import spike_coverage


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decision"])
def test_a_data_set_is_measured_once_and_kept(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spike_coverage, "STEPS", 20)
    monkeypatch.setattr(spike_coverage, "uniform", lambda g, low, high: low if high > 12 else 0.5 * (low + high))
    out = tmp_path / "found.json"
    arguments = ["--datasets", "1", "--kinds", kind, "--sweeps", "5", "--out", str(out)]
    spike_coverage.main(arguments)
    found = json.loads(out.read_text())[0]
    assert all(0 <= share <= 1 for key in ("field_inside", "nu_inside") for share in found[key])
    assert found["signs_wrong"] <= found["signs_claimed"]
    monkeypatch.setattr(spike_coverage, "run", lambda *_: 1 / 0)
    spike_coverage.main(arguments)
    assert "decision" in capsys.readouterr().out
