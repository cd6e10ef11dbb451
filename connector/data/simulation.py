"""Recordings simulated from teacher networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from connector.data.settings import data_option, settled
from connector.declarations import require
from connector.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from connector.data.attractors import Teacher
    from connector.dynamics import Network
    from connector.types import Recording

_MOST_SPIKES = 1e6  # simulated in a bin: counts are kept in single precision


@dataclass
class SimulationOptions:
    """How a teacher is simulated and recorded: options of ``data=TEACHER``, keywords of :func:`simulate_recording`."""

    n_neurons: int = data_option("neurons of the simulated network", at_least=1, default=1000)
    n_grid: int = data_option("trials: n_grid^2, starting on a square grid of latent states", at_least=1, default=20)
    extent: float = data_option(
        "the grid of initial states covers [-extent, extent] along each latent dimension", above=0, default=2.4
    )
    n_steps: int = data_option(
        "Euler steps of each trial, including the initial state; n_steps // stride of them are recorded",
        at_least=2,
        default=100,
    )
    process_noise: float = data_option(
        "standard deviation of the noise added to the latents in each step", at_least=0, default=0.0
    )
    observation: str = data_option(
        "what is recorded: rates phi(h), or Poisson spike counts", choices=("rates", "spikes"), default="rates"
    )
    observation_noise: float = data_option(
        "standard deviation of the noise added to the rates; noisy rates may leave the range of phi",
        at_least=0,
        default=0.0,
    )
    recorded_fraction: float = data_option(
        "share of the neurons that is recorded, chosen at random", above=0, at_most=1, default=1.0
    )
    exact_moments: bool = data_option(
        "true: the network has exactly the teacher's means and covariances; false: neurons are drawn at random",
        default=True,
    )
    stride: int = data_option(
        "record every stride-th step; spikes are counted over the whole interval", at_least=1, default=1
    )
    bin_s: float = data_option("time between simulated steps, for spikes", unit="s", above=0, default=0.01)
    rate_scale_hz: float = data_option(
        "for spikes: firing rate = rate_scale_hz * softplus(potential + 1)", unit="Hz", above=0, default=10.0
    )

    def check(self) -> None:
        most = self.n_steps // 2
        require(self.stride <= most, "data.stride", f"of at most data.n_steps / 2 = {most}", self.stride)
        if self.observation == "spikes":
            noise = self.observation_noise
            require(noise == 0, "data.observation_noise", "of 0 for spikes, whose noise is Poisson", noise)


def simulate_recording(
    source: Teacher,
    options: SimulationOptions | None = None,
    *,
    rate_offset: float = 1.0,
    seed: int = 0,
    **keywords,
) -> tuple[Recording, Network]:
    """Draws a network from a teacher, runs it from a grid of states and records its neurons.

    ``Recording.alpha`` is min(1, alpha * stride): with that value (z[t+1] - (1 - alpha) z[t]) / alpha of successive
    recorded samples approximates the drive, to first order in alpha * stride. The notes state the native step.
    Spikes are Poisson counts of intensity rate_scale_hz * softplus(m.z + rate_offset). The softplus is the readout
    only: the network itself, and so ``Recording.activation``, keeps the teacher's phi.

    Args:
        source: the teacher.
        options: what is simulated and recorded; None: the defaults of :class:`SimulationOptions`. Without
            ``exact_moments`` a network of 1000 neurons may by chance have other attractors than its teacher: some
            bistable ones become limit cycles, and a ring breaks up into fixed points.
        rate_offset: offset of the intensity of spikes.
        seed: of network, noise and choice of neurons.
        keywords: options by their names, ``process_noise`` also as ``noise_std``, ``observation_noise`` also as
            ``observation_noise_std``.

    Returns:
        the recording with its true latents, loadings and n (float64; activity is float32), and the whole network.

    Raises:
        UserError: an option out of its range.
    """
    import torch

    from connector.types import Recording

    options = settled(SimulationOptions, options, keywords)
    stride, spiking = options.stride, options.observation == "spikes"
    generator = torch.Generator().manual_seed(seed)
    network = source.sample(options.n_neurons, generator, options.exact_moments)
    latents = _simulated_latents(network, options, generator)
    n_recorded = max(1, round(options.recorded_fraction * options.n_neurons))
    chosen = torch.randperm(options.n_neurons, generator=generator)[:n_recorded].sort().values
    recorded = replace(network, m=network.m[chosen], n=network.n[chosen])
    samples = options.n_steps // stride
    latents = latents[:, : samples * stride]
    if spiking:
        activity = _spike_counts(recorded, latents, rate_offset, options, generator)
    else:
        activity = _noisy_rates(recorded, latents, options, generator)

    recording = Recording(
        activity=activity,
        kind=options.observation,
        lengths=torch.full((len(latents),), samples),
        alpha=min(1.0, source.alpha * stride),
        activation=source.activation,
        bin_s=options.bin_s * stride if spiking else None,
        latents=latents[:, ::stride],
        loadings=recorded.loadings,
        n=recorded.n,
        name=source.name,
        notes=tuple(_notes(source, options, n_recorded, rate_offset)),
    )
    return recording, network


def _notes(source: Teacher, options: SimulationOptions, n_recorded: int, rate_offset: float) -> list[str]:
    notes = [f"simulated from the teacher {source.name}: {options.n_neurons} neurons, {n_recorded} recorded"]
    if options.stride > 1:
        notes.append(f"every {options.stride}th sample recorded; native alpha {source.alpha:g}")
    if options.process_noise > 0:
        notes.append(f"process noise on the latents, sd {options.process_noise:g} per simulated step")
    if options.observation_noise > 0:
        notes.append(f"noise on the rates, sd {options.observation_noise:g}")
    if options.observation == "spikes":
        notes.append(f"Poisson spikes at {options.rate_scale_hz:g} Hz x softplus(m.z + {rate_offset:g})")
    return notes


def grid_of_states(n_grid: int, extent: float, rank: int = 2) -> Tensor:
    """Initial states on a regular grid over [-extent, extent]^rank, (n_grid^rank, rank), float64."""
    import torch

    axis = torch.linspace(-extent, extent, n_grid, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * rank).reshape(-1, rank)


def _simulated_latents(network: Network, options: SimulationOptions, generator: torch.Generator) -> Tensor:
    """(trials, n_steps, R) from the grid of states."""
    import torch

    from connector.dynamics import simulate

    def step(z: Tensor, u: Tensor | None) -> Tensor:
        following = network.step(z, u)
        if options.process_noise == 0:
            return following
        return following + options.process_noise * torch.randn(z.shape, generator=generator, dtype=torch.float64)

    return simulate(step, grid_of_states(options.n_grid, options.extent, network.m.shape[1]), options.n_steps)


def _noisy_rates(recorded: Network, latents: Tensor, options: SimulationOptions, generator: torch.Generator) -> Tensor:
    import torch

    activity = recorded.rates(latents[:, :: options.stride]).float()
    if options.observation_noise > 0:
        activity += options.observation_noise * torch.randn(activity.shape, generator=generator)
    return activity


def _spike_counts(
    recorded: Network, latents: Tensor, rate_offset: float, options: SimulationOptions, generator: torch.Generator
) -> Tensor:
    import torch

    from connector.dynamics import potentials

    intensity = options.rate_scale_hz * torch.nn.functional.softplus(
        potentials(recorded.loadings, latents) + rate_offset
    )
    expected = options.bin_s * intensity.unflatten(1, (-1, options.stride)).sum(2)
    if not float(expected.max()) < _MOST_SPIKES:
        raise UserError(
            f"fewer than {_MOST_SPIKES:g} spikes of a neuron in a bin",
            f"up to {float(expected.max()):.3g}",
            "choose a smaller rate_scale_hz or bin_s",
        )
    return torch.poisson(expected, generator=generator).float()
