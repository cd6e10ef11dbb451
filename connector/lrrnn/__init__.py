"""The low-rank RNN and its fit to rates, two-valued data and spikes."""

from connector.moved import lazily

__getattr__ = lazily(__name__, "lrrnn.module")
