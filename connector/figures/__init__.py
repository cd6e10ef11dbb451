"""Arrays in, matplotlib Figures out. No files, no training, no pyplot state: safe in threads, workers and notebooks."""

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
