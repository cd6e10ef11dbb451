"""What tests of figures share."""

import io
import warnings

from draws import normal
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from connector.dynamics import Network


def network(rank, n_inputs=0, bias=False, k=80):
    return Network(
        m=normal(k, rank),
        n=2 * normal(k, rank, seed=1),
        b=normal(k, n_inputs, seed=2) if n_inputs else None,
        d=normal(k, seed=3) if bias else None,
    )


def render(figure: Figure) -> int:
    """Draws to PNG with every warning an error; returns the number of bytes."""
    assert isinstance(figure, Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
    return buffer.tell()


def drawn_by(figure: Figure):
    """The renderer of the figure as it is laid out, to ask where things are."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def all_axes(figure: Figure):
    return [axis for axis in figure.axes if axis.has_data() and axis.get_label() != "<colorbar>"]
