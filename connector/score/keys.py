"""What the arrays of a result are called, for --help, which loads nothing else."""

from __future__ import annotations

_KEYS = (
    ("m, n", "(K, R) loadings and output weights of a network's neurons, equation (1)"),
    ("b, d", "(K, U), (K,) input weights and biases; absent or of no columns: none"),
    ("alpha, activation, input_kind", "dt / tau, name of phi, and instant, filtered or both, as network.npz has them"),
    ("A, B, c, C, e", "in place of these: z[t+1] = A z + B u + c, rates C z + e; (R, R), (R, U), (R,), (K, R), (K,)"),
    ("MBD", "(K_obs, R + U + 1 | R + U | R) loadings of the recorded neurons, where they are not the network's own"),
    ("gain, offset", "(K_obs,) recorded rate = gain phi(h) + offset"),
    ("latents", "(trials, time, R) states of all trials of the set, in the network's coordinates"),
    ("n_low, n_high", "(K, R) 95 % interval of nu = E[n given m, b, d] at each neuron"),
    ("set", "the public set, where --on does not name it"),
)  # fmt: skip


def keys_told() -> str:
    """What a result's arrays mean, a line each."""
    width = max(len(name) for name, _ in _KEYS)
    return "\n".join(f"  {name.ljust(width)}  {meaning}" for name, meaning in _KEYS)
