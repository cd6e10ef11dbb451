"""Streamlines against those of matplotlib."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from connector.figures.streamlines import streamlines

FLOWS = {
    "attractors and saddles": lambda x, y: (y + x - x**3, np.sin(2 * x) - y),
    "spiral": lambda x, y: (0.3 * y - x, x - y * y),
    "across": lambda x, y: (np.ones_like(x), np.cos(3 * x)),
}


def without_repeats(line):
    return line[np.r_[True, (np.diff(line, axis=0) != 0).any(1)]]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("radius", [2.0, np.inf])
def test_they_are_those_of_streamplot(name, radius):
    x, y = np.linspace(-2, 2, 50), np.linspace(-1.5, 2.2, 60)
    at = np.meshgrid(x, y)
    u, v = FLOWS[name](*at)
    hidden = np.hypot(*at) > radius
    axis = Figure().subplots()
    drawn = axis.streamplot(x, y, *(np.ma.array(part, mask=hidden) for part in (u, v)), density=1.15)
    flow = np.where(hidden[..., None], np.nan, np.stack([u, v], -1))
    found = streamlines(x, y, flow, density=1.15)
    expected = [without_repeats(np.asarray(line)) for line in drawn.lines.get_segments()]
    assert len(found) == len(expected) > 20
    for line, same in zip(found, expected):
        np.testing.assert_allclose(without_repeats(line), same, atol=1e-9)


def test_a_grid_without_a_flow_has_no_lines():
    grid = np.linspace(0, 1, 12)
    assert streamlines(grid, grid, np.zeros((12, 12, 2))) == []
    assert streamlines(grid, grid, np.full((12, 12, 2), np.nan)) == []
