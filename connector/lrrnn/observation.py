"""How the activity of a neuron depends on its potential: phi and the noise about it, as Newton's method sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from connector.dynamics import Activation, value_and_slope
from connector.dynamics import activation as activation_named
from connector.errors import UserError

NOISES = ("gaussian", "two_valued", "poisson")
_RATE_FLOOR = 1e-8


@dataclass(frozen=True)
class Observation:
    """p(y | h) of one neuron's activity y at its potential h.

    Attributes:
        phi: the activation.
        noise: "gaussian", y = phi(h) + N(0, dispersion); "two_valued", y at the ends of the range of phi with mean
            phi(h); "poisson", y = Poisson(scale * phi(h)) / scale.
        scale: expected count where phi is 1.
        unit: size of potentials and rates where phi has none of its own, which steps and floors are relative to: relu(c h) =
            c relu(h), and softplus is nearly so of large h.
    """

    phi: Activation
    noise: str = "gaussian"
    scale: float = 1.0
    unit: float = 1.0

    @staticmethod
    def of(activation: str, noise: str = "gaussian", scale: float = 1.0, size: float = 1.0) -> Observation:
        """By the activation's name, for potentials or rates of about this ``size``.

        Raises:
            UserError: for an unknown activation or noise, or Poisson counts of an activation that can be negative.
        """
        phi = activation_named(activation)
        if noise not in NOISES:
            raise UserError(f"noise among {', '.join(NOISES)}", repr(noise))
        if noise == "poisson" and phi.low < 0:
            raise UserError("a non-negative activation for Poisson counts", activation)
        unit = 1.0
        if noise == "gaussian" and size > 0 and phi.name in ("relu", "softplus"):
            unit = size if phi.name == "relu" else max(1.0, size)
        return Observation(phi, noise, float(scale), unit)

    def with_noise(self, noise: str) -> Observation:
        return replace(self, noise=noise)

    @property
    def informative(self) -> bool:
        """Whether weights are Fisher information as they stand: no dispersion has to be estimated beside them."""
        return self.noise != "gaussian"

    def dispersion(self, mean_squared_residual: float) -> float:
        """Variance that one unit of weight in the normal equations stands for."""
        return 1.0 if self.informative else mean_squared_residual

    def newton_terms(self, y: Tensor, h: Tensor, matching: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Score and weight of a Newton-type step in the potential h, and the residual y - phi(h).

        Gaussian noise gives Gauss-Newton: score phi' (y - phi), weight phi'^2; Poisson noise Fisher scoring, the same
        over the variance phi / scale. The matching loss (the integral of phi(h) - y) gives score y - phi and weight
        phi'. It is convex in h, hence in loadings and in latents each, and is the log likelihood of two-valued
        observations; for rates (``matching``) it brings near enough for Gauss-Newton. For relu an active neuron is
        matched on both sides of the threshold and a silent one only bounds h from above.
        """
        value, slope = value_and_slope(self.phi, h)
        residual = y - value
        if self.noise == "poisson":
            gain = self.scale * slope / value.clamp_min(_RATE_FLOOR)
            return gain * residual, gain * slope, residual
        if self.noise == "gaussian" and not matching:
            return slope * residual, slope * slope, residual
        if self.phi.name == "relu":
            active = y > 0  # the weight is a bound on the curvature
            return torch.where(active, y - h, -value), torch.ones_like(h), residual
        return residual, slope, residual

    def loss(self, y: Tensor, h: Tensor) -> Tensor:
        """The squared residual, or twice the negative log likelihood up to a constant; elementwise."""
        if self.noise == "gaussian":
            return (y - self.phi(h)).square()
        if self.noise == "poisson":
            value = self.phi(h).clamp_min(_RATE_FLOOR)
            return 2 * self.scale * (value - y * value.log())
        potential = torch.logaddexp(h, -h) if self.phi.name == "tanh" else torch.nn.functional.softplus(h)
        return 2 * (potential - y * h)

    def inside(self, y: Tensor, margin: float) -> Tensor:
        """Activity moved into the open range of phi, ``margin`` away from its finite ends."""
        return y.clamp(self.phi.low + margin, self.phi.high - margin if self.phi.high < float("inf") else None)

    def spread(self, y: Tensor) -> float:
        """The width of the range of phi, or the rms of y where that has no end: what margins are relative to."""
        return self.phi.high - self.phi.low if self.phi.high < float("inf") else float(y.square().mean().sqrt())
