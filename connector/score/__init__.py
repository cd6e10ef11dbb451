"""Any method's result on a public set: its measures, each beside its null.

sets      what is scored on: a teacher of the package, or a file with rates, the truth behind them and the split of trials
models    what is scored: a network, or linear dynamics, read from a file
results   the measures of a model on a set
command   `connector score FILE.npz`
"""

from connector.score.command import main

__all__ = ["main"]
