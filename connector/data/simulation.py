"""Recordings simulated from teacher networks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from connector.data.attractors import Teacher
from connector.dynamics import Network, potentials, simulate
from connector.errors import UserError
from connector.types import Recording

_MOST_SPIKES = 1e6  # simulated in a bin: counts are kept in single precision


def grid_of_states(n_grid: int, extent: float, rank: int = 2) -> Tensor:
    """Initial states on a regular grid over [-extent, extent]^rank, (n_grid^rank, rank), float64."""
    axis = torch.linspace(-extent, extent, n_grid, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * rank).reshape(-1, rank)


def _check_simulation(options: dict) -> None:
    rules = {
        "n_neurons": (lambda v: v >= 1, "at least 1"),
        "n_grid": (lambda v: v >= 1, "at least 1"),
        "extent": (lambda v: v > 0, "positive"),
        "n_steps": (lambda v: v >= 2, "at least 2"),
        "noise_std": (lambda v: v >= 0, "not negative"),
        "observation_noise_std": (lambda v: v >= 0, "not negative"),
        "recorded_fraction": (lambda v: 0 < v <= 1, "in (0, 1]"),
        "stride": (lambda v: v >= 1 and v == int(v), "a whole number of at least 1"),
        "rate_scale_hz": (lambda v: v > 0, "positive"),
        "bin_s": (lambda v: v > 0, "positive"),
        "observation": (lambda v: v in ("rates", "spikes"), "rates or spikes"),
    }
    for name, (rule, text) in rules.items():
        if not rule(options[name]):
            raise UserError(f"{name} {text}", repr(options[name]))
    if options["n_steps"] // options["stride"] < 2:
        raise UserError(
            "at least two recorded samples in a trial",
            f"n_steps {options['n_steps']} at stride {options['stride']}",
            "raise n_steps or lower stride",
        )
    if options["observation"] == "spikes" and options["observation_noise_std"] > 0:
        raise UserError(
            "observation_noise_std 0 for spikes (their noise is Poisson)", str(options["observation_noise_std"])
        )


def simulate_recording(
    source: Teacher,
    *,
    n_neurons: int = 1000,
    n_grid: int = 20,
    extent: float = 2.4,
    n_steps: int = 100,
    noise_std: float = 0.0,
    observation_noise_std: float = 0.0,
    observation: str = "rates",
    recorded_fraction: float = 1.0,
    stride: int = 1,
    rate_scale_hz: float = 10.0,
    rate_offset: float = 1.0,
    bin_s: float = 0.01,
    exact_moments: bool = True,
    seed: int = 0,
) -> tuple[Recording, Network]:
    """Draws a network from a teacher, runs it from a grid of states and records its neurons.

    Args:
        source: the teacher.
        n_neurons: K of the simulated network.
        n_grid, extent: trials start on an n_grid x n_grid grid over [-extent, extent]^2.
        n_steps: samples simulated per trial at the teacher's own alpha, the initial state included.
        noise_std: process noise: each simulated step adds noise_std * N(0, I) to the latents.
        observation_noise_std: sd of Gaussian noise on the rates, which then may leave the range of phi.
        observation: "rates", phi(h); or "spikes", Poisson counts of intensity
            rate_scale_hz * softplus(m.z + rate_offset). The softplus is the readout only: the network itself, and so
            ``Recording.activation``, keeps the teacher's phi.
        recorded_fraction: the share of neurons, chosen at random, that is recorded.
        stride: every stride-th sample is recorded, n_steps // stride in all; spikes are counted over the whole
            interval up to the next recorded sample. ``Recording.alpha`` becomes min(1, alpha * stride): with that
            value (z[t+1] - (1 - alpha) z[t]) / alpha of successive recorded samples approximates the drive, to first
            order in alpha * stride. The notes state the native step.
        rate_scale_hz, rate_offset: scale and offset of the intensity of spikes.
        bin_s: seconds between simulated samples; used for spikes only.
        exact_moments: the network's means and covariances are exactly the teacher's (Gaussian teachers). Otherwise
            chance can give a network of 1000 neurons other attractors than its teacher has: some bistable ones turn
            into limit cycles, and a ring breaks up into fixed points.
        seed: of network, noise and choice of neurons.

    Returns:
        the recording with its true latents, loadings and n (float64; activity is float32), and the whole network.

    Raises:
        UserError: an option out of its range.
    """
    _check_simulation(locals())
    generator = torch.Generator().manual_seed(seed)
    network = source.sample(n_neurons, generator, exact_moments)
    z0 = grid_of_states(n_grid, extent, source.rank)

    def step(z: Tensor, u: Tensor | None) -> Tensor:
        following = network.step(z, u)
        if noise_std == 0:
            return following
        return following + noise_std * torch.randn(z.shape, generator=generator, dtype=torch.float64)

    latents = simulate(step, z0, n_steps)
    n_recorded = max(1, round(recorded_fraction * n_neurons))
    chosen = torch.randperm(n_neurons, generator=generator)[:n_recorded].sort().values
    recorded = replace(network, m=network.m[chosen], n=network.n[chosen])
    samples = n_steps // stride
    kept = latents[:, : samples * stride]

    if observation == "rates":
        kept = kept[:, ::stride]
        activity = recorded.rates(kept).float()
        if observation_noise_std > 0:
            activity += observation_noise_std * torch.randn(activity.shape, generator=generator)
    else:
        intensity = rate_scale_hz * torch.nn.functional.softplus(potentials(recorded.loadings, kept) + rate_offset)
        expected = bin_s * intensity.unflatten(1, (samples, stride)).sum(2)
        if not float(expected.max()) < _MOST_SPIKES:
            raise UserError(
                f"fewer than {_MOST_SPIKES:g} spikes of a neuron in a bin",
                f"up to {float(expected.max()):.3g}",
                "choose a smaller rate_scale_hz or bin_s",
            )
        activity = torch.poisson(expected, generator=generator).float()
        kept = kept[:, ::stride]

    notes = [f"simulated from the teacher {source.name}: {n_neurons} neurons, {n_recorded} recorded"]
    if stride > 1:
        notes.append(f"every {stride}th sample recorded; native alpha {source.alpha:g}")
    if noise_std > 0:
        notes.append(f"process noise on the latents, sd {noise_std:g} per simulated step")
    if observation_noise_std > 0:
        notes.append(f"noise on the rates, sd {observation_noise_std:g}")
    if observation == "spikes":
        notes.append(f"Poisson spikes at {rate_scale_hz:g} Hz x softplus(m.z + {rate_offset:g})")
    recording = Recording(
        activity=activity,
        kind=observation,
        lengths=torch.full((len(z0),), samples),
        alpha=min(1.0, source.alpha * stride),
        activation=source.activation,
        bin_s=bin_s * stride if observation == "spikes" else None,
        latents=kept,
        loadings=recorded.loadings,
        n=recorded.n,
        name=source.name,
        notes=tuple(notes),
    )
    return recording, network
