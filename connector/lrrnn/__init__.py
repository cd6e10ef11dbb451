"""The low-rank RNN and its fit to rates, two-valued data and spikes."""
