"""What a fitted low-rank RNN hands over to the estimate of the connectivity, in one object and one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from connector.data.folds import Fold
from connector.dynamics import Network, activation
from connector.lrrnn.field_posterior import FieldPosterior
from connector.lrrnn.gauge import Gauge
from connector.types import Latents, Loadings
from connector.units import RateScale


@dataclass(frozen=True)
class FittedDynamics:
    """Latents and loadings of a fit, with their uncertainty, in one gauge of the latents.

    Attributes:
        latents: of all trials; loadings: of the recorded neurons, as they are read: phi(m.z + b.u + d).
        fold: the trials of each part, or None for a fit that knows of none.
        activation: name of phi in the network whose connectivity is sought.
        loadings_covariance: (K_obs, P, P) uncertainty of each neuron's loadings (m, b, d) given the latents, or None.
        readings: (trials, time, R) states read from each sample on its own, so that their errors are independent between
            samples, and the covariance (trials, time, R, R) of each; None: the latents are as good as known, or the
            samples say too little by themselves.
        n: (K_obs, R) output weights of the fitted low-rank RNN, where its units are the recorded neurons; or None. The
            stages do not build on them: they show what the fit alone would say about the connectivity.
        field: what the activity says about the drive, where it was sampled (spikes); ``latents.drive`` is then its mean.
        decay: k of a slow indicator behind which the rates are; readings are then what it shows of the states,
            f[t] = k f[t-1] + (1 - k) z[t]. None: none.
        scale: of the recorded rates, where they have one of their own; those that were fitted are in units of phi.
        rollouts: whether the latents are the fitted network's own trajectories, in place of states read from the activity.
    """

    latents: Latents
    loadings: Loadings
    fold: Fold | None
    activation: str
    loadings_covariance: Tensor | None = None
    readings: tuple[Tensor, Tensor] | None = None
    n: Tensor | None = None
    field: FieldPosterior | None = None
    rollouts: bool = False
    scale: RateScale | None = None
    decay: float | None = None

    @property
    def network(self) -> Network:
        """The fitted network, whose units are the recorded neurons; for a fit with ``n``."""
        m, b, d = self.loadings.m, self.loadings.b, self.loadings.d
        return Network(m, self.n, b, d, self.latents.alpha, self.activation)

    def moved(self, gauge: Gauge) -> FittedDynamics:
        """The same fit in other coordinates of the latents: every rate stays, and every drive, in those coordinates.

        With a shift, n takes up its constant part on the visited states (:meth:`Gauge.network`).

        Raises:
            UserError: a shift, and loadings without a bias.
        """
        latents, spread, readings, n = self.latents, self.loadings_covariance, self.readings, self.n
        if spread is not None:
            spread = gauge.loadings_covariance(spread, self.loadings.n_inputs)
        if readings is not None:
            readings = gauge.latents(readings[0]), gauge.covariance(readings[1])
        if n is not None:
            n = gauge.network(self.network, *latents.samples()[:2]).n
        z = gauge.latents(latents.z) * latents.mask[..., None]
        drive = None if latents.drive is None else gauge.latents(latents.drive)
        return replace(
            self,
            latents=replace(latents, z=z, drive=drive),
            loadings=gauge.loadings(self.loadings),
            loadings_covariance=spread,
            readings=readings,
            n=n,
            field=None if self.field is None else self.field.moved(gauge),
        )

    def without_bias(self) -> FittedDynamics:
        """Without d, for neurons that are read with an offset of their own, which is no bias of the network."""
        spread = self.loadings_covariance
        return replace(
            self,
            loadings=replace(self.loadings, d=None),
            loadings_covariance=None if spread is None else spread[:, :-1, :-1],
        )

    def arrays(self) -> dict[str, Any]:
        """Everything by the names of latents.npz, None where it is not known.

        Raises:
            ValueError: latents, loadings or n are not finite.
        """
        latents, loadings, fold = self.latents, self.loadings, self.fold
        require_finite(latents.z, latents.drive, loadings.m, loadings.b, loadings.d, self.n)
        readings, covariance = (None, None) if self.readings is None else self.readings
        return {
            "latents": latents.z,
            "lengths": latents.lengths,
            "externalinputs": latents.inputs,
            "input_kind": latents.input_kind,
            "drive": latents.drive,
            "alpha": latents.alpha,
            "m": loadings.m,
            "b": loadings.b,
            "d": loadings.d,
            "n": self.n,
            "rollouts": True if self.rollouts else None,
            "decay": self.decay,
            "loadings_covariance": self.loadings_covariance,
            "readings": readings,
            "readings_covariance": covariance,
            "activation": self.activation,
            "train": fold.train,
            "validation": fold.validation,
            "test": fold.test,
            **({} if self.field is None else self.field.arrays()),
            **({} if self.scale is None else _of_scale(self.scale)),
        }

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray]) -> FittedDynamics:
        """The inverse of :meth:`arrays`; optional ones may be missing.

        Raises:
            KeyError, ValueError, UserError: arrays are missing, do not fit each other, or are not finite.
        """
        tensors = {k: torch.from_numpy(v) for k, v in arrays.items() if v.ndim > 0}
        z, lengths, alpha = tensors["latents"], tensors["lengths"], float(arrays["alpha"])
        found = FittedDynamics(
            latents=Latents(
                z,
                lengths,
                alpha,
                tensors.get("externalinputs"),
                tensors.get("drive"),
                str(arrays.get("input_kind", "instant")),
            ),
            loadings=Loadings(tensors["m"], tensors.get("b"), tensors.get("d")),
            fold=Fold(tensors["train"], tensors["validation"], tensors["test"]),
            activation=str(arrays["activation"]),
            loadings_covariance=tensors.get("loadings_covariance"),
            readings=(tensors["readings"], tensors["readings_covariance"]) if "readings" in tensors else None,
            n=tensors.get("n"),
            rollouts=bool(arrays.get("rollouts", False)),
            decay=float(arrays["decay"]) if "decay" in arrays else None,
            field=FieldPosterior.of_arrays(tensors, str(arrays.get("field_activation"))),
            scale=_scale_of(arrays, tensors),
        )
        _check(found)
        return found


def _of_scale(scale: RateScale) -> dict[str, Any]:
    """The arrays of a scale by the names of latents.npz."""
    return {
        "scale": scale.kind,
        "gain": scale.gain,
        "offset": scale.offset,
        "scale_weight": scale.weight,
        "scale_spread": scale.spread,
        "scale_errors": scale.errors,
    }


def _scale_of(arrays: Mapping[str, np.ndarray], tensors: Mapping[str, Tensor]) -> RateScale | None:
    if "scale" not in arrays:
        return None
    columns = (tensors[name] for name in ("gain", "offset", "scale_weight"))
    return RateScale(str(arrays["scale"]), *columns, float(arrays["scale_spread"]), tensors["scale_errors"])


def _check(fit: FittedDynamics) -> None:
    """Raises ValueError where the arrays do not fit each other, or hold what no fit has written."""
    latents, loadings = fit.latents, fit.loadings
    trials, steps, rank = latents.z.shape
    shapes = {
        "inputs": (latents.inputs, (trials, steps, loadings.n_inputs) if loadings.b is not None else None),
        "drive": (latents.drive, (trials, steps, rank)),
        "m": (loadings.m, (loadings.n_neurons, rank)),
        "n": (fit.n, (loadings.n_neurons, rank)),
        "lengths": (latents.lengths, (trials,)),
    }
    if fit.scale is not None:
        k = loadings.n_neurons
        shapes |= {name: (getattr(fit.scale, name), (k,)) for name in ("gain", "offset", "weight")}
        shapes["scale_errors"] = (fit.scale.errors, (k, 2))
        require_finite(fit.scale.gain, fit.scale.offset, fit.scale.weight, fit.scale.errors)
    for name, (value, shape) in shapes.items():
        if value is not None and shape is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} of shape {tuple(value.shape)}, not {shape}")
    if not _within(latents.lengths, 1, steps):
        raise ValueError(f"lengths are not whole numbers from 1 to {steps}")
    for part in (fit.fold.train, fit.fold.validation, fit.fold.test):
        if part.ndim != 1 or not _within(part, 0, trials - 1):
            raise ValueError(f"the trials of the fold are not numbers below {trials}")
    require_finite(latents.z, latents.inputs, latents.drive, loadings.m, loadings.b, loadings.d, fit.n)
    if not 0 < latents.alpha <= 1:
        raise ValueError(f"alpha {latents.alpha:g}")
    activation(fit.activation)


def _within(whole: Tensor, low: int, high: int) -> bool:
    return whole.dtype == torch.int64 and bool(((whole >= low) & (whole <= high)).all())


def require_finite(*tensors: Tensor | None) -> None:
    """Raises ValueError where one of them holds anything but finite real numbers."""
    for value in tensors:
        if value is not None and not (value.is_floating_point() and bool(torch.isfinite(value).all())):
            raise ValueError("values that are not finite real numbers")
