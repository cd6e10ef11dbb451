"""Arrays in, matplotlib Figures out. No files, no training, no pyplot state: safe in threads, workers and notebooks.

Every function also takes ``axes``, matplotlib axes to draw into instead of a new figure, and ``colours``, such as
``{"inferred": "#7b3294"}`` (names: ``connector.figures.style.PALETTE``). ``loadings_scatter`` makes its own figure.
"""

from connector.moved import lazily

__getattr__ = lazily(
    __name__,
    "figures.fields",
    "figures.uncertain",
    "figures.weights",
    "figures.activity",
    "figures.trained",
    "figures.style",
)
