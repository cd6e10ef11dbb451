"""One slow point or two attractors along an axis? Both fitted to spikes by the exact likelihood on a grid.

The latent state along one axis, x, in time steps of some bins, is a hidden Markov model:

    x[t+1] = x[t] + dt (h + r x[t] - s x[t]^3) + push . u[t] + sigma sqrt(dt) eps[t],      x[0] ~ N(mean, sd^2)
    counts[t, k] ~ Poisson(scale * softplus(c_k x[t] + offset[t, k]))

The cubic is the normal form of the transition from one stable point (r < 0) to two (r > 0, small h). Few parameters,
all by maximum likelihood with x integrated out: what a network with many units, fitted through an approximate posterior,
leaves open because trials are short is constrained here by the form of the dynamics. How neurons read x is taken from a fitted
model. States across the axis are left out: to fix them at their posterior means biases r, because these already explain
part of what x does to the neurons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from connector.baselines import Baseline
from connector.errors import UserError
from connector.spikes import SpikeModel, trial_batch
from connector.types import Recording

KINDS = ("one", "two")
_BLOCK_S = 0.05  # of a time step, about
_GRID, _REACH = 65, 3.5  # grid points; half their range in standard deviations of x
_FIRST_RATE, _FARTHEST = 0.7, 5.0  # of the search: rate per s at its start; farthest from the start
_CHUNK_NUMBERS = 3e7


class AxisData(NamedTuple):
    """What the likelihood needs.

    Attributes:
        grid: (G,) values of x, even steps; axis: (R,) of length 1: x = z . axis in the model's gauge.
        log_emission: (B, T, G) log-likelihood of each time step's counts at each x, less terms without x; 0 past the end.
        inputs: (B, T, U) sums over each time step, 0 past the end; steps: (B,) time steps of each trial.
        dt_s: length of a time step, s.
        push, noise_var: (U,) displacement of x by one unit of each input, and variance of x's noise per s, as the fitted
            model has them: where the search starts.
    """

    grid: Tensor
    axis: Tensor
    log_emission: Tensor
    inputs: Tensor
    steps: Tensor
    dt_s: float
    push: Tensor
    noise_var: float


class AxisFit(NamedTuple):
    """Attributes:
    kind: of KINDS; log_likelihood: of all trials, nats.
    h, r, s: coefficients of the drift, units of x and s.
    push: (U,); sigma: noise, per square root of s; start: mean and sd of x[0].
    ends: (B,) mean of x at the last time step of each trial given all its spikes.
    """

    kind: str
    log_likelihood: float
    h: float
    r: float
    s: float
    push: Tensor
    sigma: float
    start: tuple[float, float]
    ends: Tensor

    def drift(self, x: Tensor) -> Tensor:
        """dx/dt without input."""
        return self.h + self.r * x - self.s * x**3


@torch.no_grad()
def input_axis(model: SpikeModel, recording: Recording, z: Tensor) -> tuple[Tensor, Tensor]:
    """Axis (R,), of length 1, along which the second input moves the state and the first one less, averaged over the states
    z (N, R); and (U,) displacement along it in one bin by one unit of each input.

    Raises:
        UserError: other than two inputs.
    """
    if recording.n_inputs != 2:
        raise UserError("two inputs, to the left and to the right", str(recording.n_inputs))
    network = model.rnn.network().double()
    states = z[:: max(1, len(z) // 500)]
    inputs = recording.inputs.double()
    size = float(inputs[inputs > 0].mean())
    unit = torch.eye(2, dtype=torch.float64) * size
    still = network.drive(states, torch.zeros(len(states), 2, dtype=torch.float64)).mean(0)
    moved = [network.drive(states, one.expand(len(states), -1)).mean(0) for one in unit]
    axis = (moved[1] - moved[0]) / (moved[1] - moved[0]).norm()
    return axis, torch.stack([(one - still) @ axis for one in moved]) * (model.alpha / size)


@torch.no_grad()
def axis_data(model: SpikeModel, recording: Recording, baseline: Baseline) -> AxisData:
    """The hidden Markov model's data for all trials, from a fitted model: its readout and its axis."""
    batch = trial_batch(recording, None, baseline)
    z = model.infer(batch).double()
    mask, bin_s = recording.mask, recording.bin_s or 0.01
    axis, push = input_axis(model, recording, z[mask])
    x = z @ axis
    spread = float(x[mask].std())
    grid = torch.linspace(-_REACH * spread, _REACH * spread, _GRID, dtype=torch.float64)
    readout = model.readout.double()
    offset = model.bias.double() + batch.baseline.double()
    block = max(1, round(_BLOCK_S / bin_s))
    n_blocks = -(-recording.n_steps // block)

    def blocks(values: Tensor) -> Tensor:
        """Sums over the recorded bins of each time step, (B, T, .)."""
        values = torch.where(mask[..., None], values.double(), 0.0)
        return F.pad(values, (0, 0, 0, n_blocks * block - values.shape[1])).unflatten(1, (n_blocks, block)).sum(2)

    bins = blocks(torch.ones(*mask.shape, 1))
    counts, offset = blocks(batch.activity), blocks(offset) / bins.clamp_min(1)
    along = (readout @ axis)[:, None] * grid  # (K, G)
    per_trial = n_blocks * along.numel()
    parts, size = [], max(1, int(_CHUNK_NUMBERS // per_trial))
    for i in range(0, len(counts), size):
        rate = F.softplus((offset[i : i + size, ..., None] + along).float()).clamp_min(1e-8)
        nats = torch.einsum("btk,btkg->btg", counts[i : i + size].float(), rate.log())
        parts.append(nats.double() - model.scale * bins[i : i + size] * rate.sum(2).double())
    noise = axis @ model.noise_factor.double()
    return AxisData(
        grid=grid,
        axis=axis,
        log_emission=torch.cat(parts) * (bins > 0),
        inputs=blocks(recording.inputs),
        steps=(bins[..., 0] > 0).sum(1),
        dt_s=block * bin_s,
        push=push,
        noise_var=float(noise.square().sum() * model.alpha / bin_s),
    )


def _shifted(p: Tensor, by: Tensor) -> Tensor:
    """Densities p (B, G) moved by (B,) grid steps, linearly interpolated; what leaves the grid stays at its end."""
    size = p.shape[1]
    target = (torch.arange(size, dtype=p.dtype) + by[:, None]).clamp(0, size - 1)
    low = target.detach().floor().clamp_max(size - 2)
    part, low = target - low, low.long()
    return torch.zeros_like(p).scatter_add(1, low, p * (1 - part)).scatter_add(1, low + 1, p * part)


def forward(
    data: AxisData, coefficients: Sequence[Tensor], push: Tensor, sigma: Tensor, start: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each trial (B,), and the mean of x at its last time step (B,), by the forward algorithm.

    Args:
        coefficients: h, r, s of the drift; push (U,); sigma; start: mean and sd of x[0].
    """
    grid, step = data.grid, data.grid[1] - data.grid[0]
    h, r, s = coefficients
    mean = (grid + data.dt_s * (h + r * grid - s * grid**3))[:, None]
    transition = torch.softmax(-0.5 * ((grid - mean) / (sigma * math.sqrt(data.dt_s))) ** 2, 1)
    p = torch.softmax(-0.5 * ((grid - start[0]) / start[1]) ** 2, 0).expand(len(data.steps), -1)
    moved = data.inputs @ push / step
    total, ends = 0.0, torch.zeros(len(p), dtype=p.dtype)
    for t in range(data.log_emission.shape[1]):
        joint = torch.log(p + 1e-300) + data.log_emission[:, t]
        evidence = torch.logsumexp(joint, 1)
        total = total + torch.where(t < data.steps, evidence, 0.0)
        p = torch.exp(joint - evidence[:, None])
        ends = torch.where(t == data.steps - 1, p @ grid, ends)
        p = _shifted(p @ transition, moved[:, t])
    return total, ends


def _coefficients(kind: str, theta: Tensor, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """h, r, s from three free numbers: r < 0 for one point; two stable ones, no nearer than the grid shows, for two."""
    rate = torch.exp(theta[0])
    if kind == "one":
        return theta[2], -rate, torch.exp(theta[1])
    width = spread * (0.3 + (_REACH - 1.0) * torch.sigmoid(theta[1]))
    s = rate / width**2
    return 0.9 * torch.tanh(theta[2]) * torch.sqrt(4 * rate**3 / (27 * s)), rate, s  # more |h| leaves one stable point


def _parameters(kind: str, theta: Tensor, data: AxisData) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """(h, r, s), push, sigma and start from the eight numbers that are searched."""
    spread = float(data.grid[-1]) / _REACH
    start = torch.stack([theta[6], torch.exp(theta[7]).clamp_min(0.05 * spread)])
    return _coefficients(kind, theta, spread), data.push * torch.exp(theta[3:5]), torch.exp(theta[5]), start


def fit_axis(data: AxisData, kind: str, steps: int = 40) -> AxisFit:
    """Maximum likelihood within one kind of dynamics (eight free numbers in each), by L-BFGS.

    A weak prior (sd 1.5 of the logarithms of rates, of the cubic and of the noise around their start) keeps what the data
    leave open from running away.
    """
    if kind not in KINDS:
        raise UserError(f"a kind among {', '.join(KINDS)}", repr(kind))
    spread = float(data.grid[-1]) / _REACH
    shape = -1.0 - 2 * math.log(spread) if kind == "one" else -0.5
    first = torch.tensor(
        [math.log(_FIRST_RATE), shape, 0.0, 0.0, 0.0, 0.5 * math.log(data.noise_var), 0.0, math.log(0.5 * spread)],
        dtype=torch.float64,
    )
    moved = torch.zeros_like(first, requires_grad=True)

    def here() -> Tensor:
        return first + _FARTHEST * torch.tanh(moved / _FARTHEST)  # a line search may try any distance

    optimizer = torch.optim.LBFGS([moved], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        theta = here()
        total, _ = forward(data, *_parameters(kind, theta, data))
        loss = (0.5 * ((theta - first) / 1.5).square().sum() - total.sum()) / len(total)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        coefficients, push, sigma, start = _parameters(kind, here(), data)
        total, ends = forward(data, coefficients, push, sigma, start)
    h, r, s = (float(x) for x in coefficients)
    return AxisFit(kind, float(total.sum()), h, r, s, push, float(sigma), tuple(start.tolist()), ends)
