"""The table of how often verdicts on cell types fire, at a size that a test can wait for."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import cell_types


def test_a_cell_is_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    out = tmp_path / "cells.json"
    arguments = ["--populations", "2", "--neurons", "60", "--columns", "2", "--names", "Gaussian", "--out", str(out)]
    cell_types.main(arguments)
    found = json.loads(out.read_text())
    assert list(found) == ["Gaussian | 60 | 2 | 2 from 0"]
    monkeypatch.setattr(cell_types, "measure", lambda *_: 1 / 0)  # the same command goes on where it was
    cell_types.main(arguments)
    assert "Gaussian" in capsys.readouterr().out


def test_every_population_has_the_size_asked_for():
    for name, draw in (cell_types.SINGLE | cell_types.GROUPS).items():
        x = draw(40, 3, np.random.default_rng(0))
        assert x.shape == (40, 3), name
        assert np.isfinite(x).all(), name
