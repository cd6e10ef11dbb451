"""Which connectivity does a neural computation require, and which is guesswork?

from connector import load_run
run = load_run("runs/quadstable/default")
network = run.connectivity.sample(n_neurons=5000)
"""

from connector.connectivity import ConnectivityDistribution
from connector.dynamics import Network
from connector.errors import UserError
from connector.flow import Flow
from connector.lrrnn import LowRankRNN
from connector.store import load_run
from connector.types import Latents, Loadings, Recording

__version__ = "0.1.0"

__all__ = [
    "ConnectivityDistribution",
    "Flow",
    "Latents",
    "Loadings",
    "LowRankRNN",
    "Network",
    "Recording",
    "UserError",
    "load_run",
]
