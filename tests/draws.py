"""Random numbers, arrays and networks that are a function of a seed."""

import torch

from connector.dynamics import Network


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_network(k=60, rank=2, n_inputs=0, seed=0, activation="tanh"):
    stacked = normal(k, 2 * rank + n_inputs + 1, seed=seed)
    return Network(
        m=stacked[:, :rank],
        n=stacked[:, rank : 2 * rank],
        b=stacked[:, 2 * rank : 2 * rank + n_inputs] if n_inputs else None,
        d=stacked[:, -1],
        activation=activation,
    )
