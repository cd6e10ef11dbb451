"""Which scale rates have, and their gains and offsets from no start: for all kinds alike, judged by held-out samples."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor

from connector.dynamics import Activation
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.lrrnn.closed_form import fit_rates_closed_form
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.observation import Observation
from connector.lrrnn.output_weights import SHOOT_MODES, rate_modes
from connector.lrrnn.samples import ActivitySamples
from connector.lrrnn.scale import ScaleFit, ScaleState
from connector.lrrnn.start import denoised, start_fit
from connector.numerics import even_rows, least_squares, random_rows
from connector.types import Recording
from connector.units import RateScale

SCALES = ("none", "offset", "gain", "both")  # the simplest first
# What gains are started from, over half the range of a neuron's rates; of unbounded phi over their standard deviation.
_STARTS = {"tanh": (1.02, 1.2, 2.0), "sigmoid": (1.02, 1.2, 2.0), "softplus": (0.4, 1.0, 2.5), "relu": (1.0,)}
# Samples of a fit from no start; samples times neurons from which tuning curves are taken.
_SAMPLES, _ELEMENTS = 1500, 4_000_000
_LEAST_SIGNAL = 0.05  # of a neuron's standard deviation, that is taken for its signal at least


def signal_range(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviation, lowest and highest value of what is signal in each column of y (S, K), (K,) float64."""
    y = y.double()
    mean, sd = y.mean(0), y.std(0).clamp_min(1e-300)
    kept, _ = denoised((y - mean) / sd)
    size = kept.std(0)
    kept = torch.where(size > _LEAST_SIGNAL, kept, (y - mean) / sd)
    low, high = torch.quantile(kept, y.new_tensor([0.002, 0.998]), dim=0)
    return sd * size.clamp_min(_LEAST_SIGNAL), mean + sd * low, mean + sd * high


def _first_guess(y: Tensor, phi: Activation, kind: str, factor: float) -> tuple[Tensor, Tensor]:
    """Gains and offsets (K,) to start from, by the range of the rates y (S, K)."""
    size, low, high = signal_range(y)
    one, zero = torch.ones_like(size), torch.zeros_like(size)
    if kind == "none":
        return one, zero
    if phi.high == float("inf"):
        gain = size * factor if kind in ("gain", "both") else one
        if phi.name == "relu":
            gain = one * float(size.median())
        return gain, low - 0.02 * gain if kind in ("offset", "both") else zero
    half, middle = (phi.high - phi.low) / 2, (phi.high + phi.low) / 2
    if kind == "offset":
        return one, (high + low) / 2 - middle
    if kind == "gain":
        return factor * torch.maximum((high - middle).abs(), (low - middle).abs()) / half, zero
    gain = factor * (high - low) / (2 * half)
    return gain, (high + low) / 2 - gain * middle


def fit_scale(recording: Recording, rank: int, has_bias: bool, kind: str, most: int = _SAMPLES) -> ScaleFit:
    """Gains and offsets with loadings and latents, from no start, on ``most`` samples of rates in their own units.

    Raises:
        UserError: rates that the rank cannot be fitted to.
    """
    phi = activation_named(recording.activation)
    samples = ActivitySamples.of(recording.activity, recording.mask, recording.inputs)
    few = samples.subset(random_rows(len(samples), most))
    y = few.activity[few.rows]
    size, found = signal_range(y)[0], []
    for factor in _STARTS[phi.name] if kind in ("gain", "both") else (1.0,):
        gain, offset = _first_guess(y, phi, kind, factor)
        own = torch.zeros_like(few.activity)
        own[few.rows] = ((y - offset) / gain).to(own)
        with contextlib.suppress(torch.linalg.LinAlgError):
            observation = Observation.of(phi.name, size=float(own[few.rows].square().mean().sqrt()))
            z, theta = start_fit(replace(few, activity=own), rank, has_bias, observation, joint_steps=5)
            fit = ScaleFit(few, ScaleState(z, theta, gain.log(), offset), phi, has_bias, kind, size)
            found.append((fit.run(8), fit))
    if not found:
        raise UserError(f"rates that {rank} latent dimensions can be fitted to", "none", "check lrrnn.rank")
    best = min(found, key=lambda pair: pair[0])[1]
    best.run(60)
    best.restarted()
    best.run(30)
    return best


def refined(recording: Recording, scale: RateScale, fit: FittedDynamics) -> RateScale:
    """Gains and offsets again, by a fit whose latents know the dynamics; of rates in their own units.

    Latents that are free in each sample take up a part of its noise, by which gains and loadings are biased. So the rates are
    replaced by their regression on the leading modes of the fitted ones: tuning curves over the smoothed latents, in
    whatever coordinates these are, nearly without noise.
    """
    phi = activation_named(recording.activation)
    samples = ActivitySamples.of(recording.activity, recording.mask, recording.inputs)
    samples = samples.subset(even_rows(len(samples), max(_SAMPLES, _ELEMENTS // recording.n_neurons)))
    theta, has_bias = fit.loadings.stack(), fit.loadings.has_bias
    z = fit.latents.z.reshape(-1, fit.latents.rank)[samples.rows]
    y = samples.activity[samples.rows].double()
    x = phi(samples.design(z, has_bias) @ theta.T)
    few = random_rows(len(x), _SAMPLES)
    features = torch.cat([x @ rate_modes(x[few], SHOOT_MODES), torch.ones_like(x[:, :1])], 1)
    curves = features @ least_squares(features, y)
    noise = (y - curves).square().sum(0) / max(len(y) - features.shape[1], 1)
    activity = torch.zeros_like(samples.activity)
    activity[samples.rows] = curves.to(activity)
    known = replace(samples, activity=activity, rows=samples.rows[few])
    state = ScaleState(z[few], theta, scale.gain.log(), scale.offset)
    size = signal_range(y)[0]
    # The few samples stand for all.
    found = ScaleFit(known, state, phi, has_bias, scale.kind, size, noise * len(few) / len(y))
    found.run(60, 1e-6)
    found.restarted()
    found.run(20, 1e-6)
    return found.scale()


def on_own_scale(recording: Recording, rank: int, has_bias: bool, kind: str, passes: int = 2) -> RateScale:
    """Gains and offsets of rates in their own units: from a subset of the samples, then given the latents of closed forms.

    Args:
        recording: training trials; kind: "offset", "gain" or "both".

    Raises:
        UserError: what :func:`fit_scale` and the closed form raise.
    """
    scale = fit_scale(recording, rank, has_bias, kind).scale()
    for _ in range(passes):
        fit = fit_rates_closed_form(recording.on_scale(scale), rank, has_bias)
        scale = refined(recording, scale, fit)
    return scale
