"""Figures draw into axes that are given, and in colours of one's own."""

import pytest
import torch
from drawn import network, normal
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from connector import figures
from connector.errors import UserError
from connector.figures.style import INFERRED, PALETTE

VALUES = normal(40, 2)
ENTRIES = {"true": torch.arange(1.0, 50.0), "inferred": torch.arange(2.0, 60.0)}


def hues(figure):
    """Colours of the lines and areas of a figure."""
    lines = {to_hex(line.get_color()) for axis in figure.axes for line in axis.lines}
    areas = {to_hex(c) for axis in figure.axes for area in axis.collections for c in area.get_facecolor()}
    return lines | areas


@pytest.mark.parametrize(
    ("n_axes", "draw"),
    [
        (1, lambda **how: figures.tails(ENTRIES, **how)),
        (2, lambda **how: figures.conditional_mean_fit(VALUES, VALUES + 0.1, half_width=VALUES.abs(), **how)),
        (2, lambda **how: figures.intervals(VALUES, VALUES - 1, VALUES + 1, **how)),
        (
            2,
            lambda **how: figures.losses(
                {"a": {"training": ([1, 2], [3, 2])}, "b": {"training": ([1, 2], [3, 2])}}, **how
            ),
        ),
        (1, lambda **how: figures.flow_field({"field": lambda z: -z}, normal(200, 2), n_grid=10, **how)),
    ],
)
def test_given_axes_are_drawn_into_and_their_figure_is_returned(n_axes, draw):
    own = Figure()
    axes = own.subplots(1, n_axes + 1, squeeze=False)[0]
    drawn = draw(axes=axes[:n_axes])
    assert drawn is own
    assert all(axis.has_data() or axis.lines or axis.collections for axis in axes[:n_axes])
    assert not axes[n_axes].has_data()
    assert own.get_suptitle() == ""
    assert draw() is not own
    if n_axes > 1:
        with pytest.raises(UserError, match="axes to draw into"):
            draw(axes=axes[0])


def test_colours_are_replaced_by_name_with_their_transparency():
    def draw(**how):
        return figures.intervals(VALUES, VALUES - 1, VALUES + 1, **how)

    assert INFERRED in hues(draw())
    own = draw(colours={"inferred": "#7b3294"})
    assert "#7b3294" in hues(own)
    assert INFERRED not in hues(own)
    assert own.axes[0].collections[0].get_facecolor()[0][3] == pytest.approx(0.25)
    handles = own.legends[0].get_patches()
    assert to_hex(handles[0].get_facecolor()) == "#7b3294"
    with pytest.raises(UserError, match="colours of ink"):
        draw(colours={"inferrred": "red"})
    assert set(PALETTE) >= {"true", "inferred", "accent", "group 1"}


def test_blocks_of_loadings_are_a_figure_of_their_own():
    net = network(1, 0, False)
    with pytest.raises(UserError, match="blocks of its own"):
        figures.loadings_scatter({"a": (net.loadings, net.n)}, axes=Figure().subplots())
