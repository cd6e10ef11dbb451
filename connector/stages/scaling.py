"""Rates on a scale of their own, in the stage ``lrrnn``: whether, of which kind, and what is said of it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from connector.analysis.scale_choice import choose_scale, gains_open
from connector.data.input_filter import with_inputs
from connector.data.modules import RecordingDataModule
from connector.data.recorded import require_in_range
from connector.errors import UserError
from connector.lrrnn.scales import fit_scale, on_own_scale
from connector.numerics import even_rows
from connector.report.glossary import SCALE_KINDS
from connector.stages.training import StageContext
from connector.types import Recording

_RANK = 3  # while it is to be chosen
_NEURONS, _SAMPLES = 100, 800  # by which inputs and bias are chosen


def take_scale(context: StageContext, data: RecordingDataModule) -> dict[str, float]:
    """Brings rates into units of phi, as ``lrrnn.scale`` says; ``data`` has them so from here on. What is known of the scale.

    Raises:
        UserError: rates out of the range of the activation, and ``lrrnn.scale=none``.
    """
    kind, recording = context.options.lrrnn.scale, data.recording
    in_units = data.teacher is not None or recording.trained is not None
    if recording.kind != "rates" or kind == "none" or (kind == "auto" and in_units):
        require_in_range(recording)
        return {}
    rank = data.sizes.rank or min(_RANK, max(1, recording.n_neurons // 4))
    if kind == "auto":
        kind = _chosen(context, data, rank)
        if kind == "none":
            require_in_range(recording, scale_tried=True)
            return {}
    return _taken(context, data, rank, kind)


def _chosen(context: StageContext, data: RecordingDataModule, rank: int) -> str:
    """The kind of scale that held-out trials ask for, and what was seen."""
    recording = data.recording
    found = choose_scale(recording, data.fold, rank, has_bias_of(context, data) is not False)
    if found.kind == "none":
        return "none"
    scores = ", ".join(f"{kind} {score:.3g}" for kind, score in found.scores.items())
    context.say(
        f"lrrnn: rates have a scale of their own; {SCALE_KINDS[found.kind]} "
        f"(log likelihood of held-out rates, nats per rate: {scores})"
    )
    if found.activations:
        others = ", ".join(f"{name} {score:.3g}" for name, score in found.activations.items())
        said = f"lrrnn: with gains and offsets, other activations: {others}; {recording.activation} {found.scores['both']:.3g}"
        context.say(f"{said}. data.activation={found.better} would explain more" if found.better else said)
    return found.kind


def refit_scale(context: StageContext, data: RecordingDataModule) -> dict[str, float]:
    """For a rank that was chosen on rates in units of phi: their scale again, at this rank."""
    scale = data.recording.scale
    return {} if scale is None else _taken(context, data, data.sizes.rank, scale.kind)


def has_bias_of(context: StageContext, data: RecordingDataModule) -> bool | None:
    """Whether neurons have a bias, as an option, known loadings or the fit of a scale say; None: what rates ask for."""
    known = data.recording.loadings is not None or data.recording.scale is not None
    return data.sizes.has_bias if known or context.options.lrrnn.bias is not None else None


def _taken(context: StageContext, data: RecordingDataModule, rank: int, kind: str) -> dict[str, float]:
    train, inputs = data.recorded.trials(data.fold.train), context.options.lrrnn.inputs
    given = context.options.lrrnn.bias is not None or train.loadings is not None
    biases = (data.sizes.has_bias,) if given else (False, True)
    kinds = (inputs,) if inputs != "auto" else ("instant",) if train.inputs is None else ("instant", "filtered")
    try:
        seen, has_bias = _simplest([(with_inputs(train, one), bias) for one in kinds for bias in biases], rank, kind)
        scale = on_own_scale(seen, rank, has_bias, kind)
    except torch.linalg.LinAlgError:
        got = "a fit of gains and offsets that met a singular matrix"
        raise UserError(
            "rates that neurons of this rank can give", got, "lower lrrnn.rank, or lrrnn.scale=none"
        ) from None
    data.sizes = replace(data.sizes, has_bias=has_bias)
    data.take_scale(scale)
    found = {"lrrnn/scale_offsets": float(scale.offsets), "lrrnn/scale_gains": float(scale.gains)}
    if not scale.gains and kind in ("gain", "both"):
        context.say("lrrnn: with relu a gain is the length of a loading, relu(c h) = c relu(h); gains are not fitted")
    if scale.gains:
        found |= {"lrrnn/gain_error": float(scale.errors[:, 0].median()), "lrrnn/gains_open": gains_open(scale)}
    return found


def _simplest(ways: list[tuple[Recording, bool]], rank: int, kind: str) -> tuple[Recording, bool]:
    """Among ways in which inputs enter, with and without a bias, the one that rates ask for by the Bayesian information
    criterion of their fit with gains and offsets."""
    if len(ways) == 1:
        return ways[0]
    found = []
    for recording, has_bias in ways:
        some = recording.neurons(even_rows(recording.n_neurons, _NEURONS))
        fit = fit_scale(some, rank, has_bias, kind, _SAMPLES)
        n_samples, k = len(fit.samples), some.n_neurons
        least = 1e-9 * fit.size.square()  # rounding
        surprise = n_samples * float(fit.variance.clamp_min(least).log().sum())
        found.append(surprise + has_bias * (k - rank) * math.log(n_samples * k))
    return ways[min(range(len(ways)), key=found.__getitem__)]
