"""Which structure of the output weights the data require, and which is only the prior: numbers and plain words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.mean import ConditionalMean, TrajectoryMean

_UNDETERMINED = 0.5  # certainty below which the estimate at a loading is more prior than data
# What phi(h) and phi(-h) have in common lets a neuron and its mirror image (-m, -b, -d) stand in for each other.
_MIRROR = {
    "tanh": "tanh(-h) = -tanh(h): a neuron (m, b, d) with n acts as one of (-m, -b, -d) with -n, so that the part of nu that "
    "keeps its sign there",
    "sigmoid": "sigmoid(-h) = 1 - sigmoid(h): a neuron (m, b, d) with n acts as one of (-m, -b, -d) with -n, but for a "
    "constant, so that the part of nu that keeps its sign there",
    **{
        name: f"{name}(h) - {name}(-h) = h: of the part of nu that changes its sign from (m, b, d) to (-m, -b, -d), only its "
        "correlation with the loadings acts; the rest of it"
        for name in ("softplus", "relu")
    },
}
OPEN = 0.3  # expected squared error of nu over its mean square above which a report cautions
_NORMAL_QUANTILE = torch.distributions.Normal(0.0, 1.0).icdf


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the data say about nu = E[n | m, b, d] at some loadings.

    Attributes:
        loadings: (K, R + U + bias) where it was asked.
        nu, low, high: (K, R) estimate and posterior interval of probability ``level``.
        certainty: (K,) in [0, 1]: 1 - (posterior sd / rms size of nu), at least 0; by it figures fade neurons.
        level: of the intervals.
        determined_modes: how many numbers about n the data fix.
        predicted_error: squared error of nu that the posterior itself expects at these loadings, over the mean square of
            nu. It is no error measured against a truth, and too small where the model does not fit.
        calibrated: whether the coverage of these intervals has been measured (``experiments/coverage.py``); intervals
            of the other estimators leave out errors that do not show in the residuals, and are too narrow.
        estimand: "mean", or "folded": under an odd nonlinearity without bias and input only the odd part of nu acts.
        activation: name of phi. has_bias: whether neurons have a bias d.
        warnings: sentences on signs of misfit, where one of the detectors has fired.
        converged: whether the fit settled.
    """

    loadings: Tensor
    nu: Tensor
    low: Tensor
    high: Tensor
    certainty: Tensor
    level: float
    determined_modes: float
    predicted_error: float
    calibrated: bool
    estimand: str
    activation: str
    has_bias: bool
    warnings: tuple[str, ...]
    converged: bool = True

    @property
    def sign_determined(self) -> Tensor:
        """(K, R) whether the interval excludes zero."""
        return (self.low > 0) | (self.high < 0)

    @property
    def open_share(self) -> float:
        """Share of the loadings at which the uncertainty of nu exceeds half its typical size."""
        return float((self.certainty < _UNDETERMINED).double().mean())

    def __repr__(self) -> str:
        return (
            f"Diagnosis({len(self.nu)} neurons: {self.determined_modes:.3g} combinations of output weights determined in each "
            f"latent dimension; sign of {self.signs} of the neurons; {100 * self.level:g} % intervals; .sentences() says more)"
        )

    @property
    def signs(self) -> str:
        """At which share of the neurons the sign of each dimension of nu is determined, in words."""
        shares = self.sign_determined.double().mean(0).tolist()
        if not any(shares):
            return "nu at none"
        return ", ".join(f"nu_{i + 1} at {percent(share) if share else 'none'}" for i, share in enumerate(shares))

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a reader should know before believing the rest: the signs of misfit, and what is no misfit."""
        said = list(self.warnings)
        if not self.converged:
            said.append("The fit of nu to the trajectories did not converge.")
        if self.predicted_error > OPEN:
            said.append(
                f"The squared error of nu that the posterior itself expects is {self.predicted_error:.3g} of the mean "
                "square of nu: the data leave nu open."
            )
        return tuple(said)

    def sentences(self) -> list[str]:
        """The diagnosis in plain words."""
        said = [
            f"The data fix about {self.determined_modes:.3g} combinations of the output weights in each latent dimension: "
            "weighted sums in which every neuron has a part. All else about nu comes from the prior, that nu is smooth "
            f"in the loadings. The squared error of nu that the posterior expects is {self.predicted_error:.3g} of the mean "
            "square of nu: an expectation that stands and falls with the model, no measured error."
        ]
        if self.sign_determined.any():
            said.append(
                f"Required by the data and that smoothness together: whether nu is positive or negative, {self.signs} of the "
                f"neurons (the {100 * self.level:g} % interval there excludes zero). These signs follow from the "
                "few combinations above, neurons with like loadings sharing one; they are not so many separate findings."
            )
        else:
            said.append(
                "Even with that smoothness the data do not tell at any neuron whether nu is positive or negative: all "
                f"{100 * self.level:g} % intervals hold zero."
            )
        loose = self.open_share
        if loose > 0:
            said.append(
                f"How large nu is comes from the prior at {percent(loose)} of the neurons, where the uncertainty exceeds half "
                "the typical size of nu. Those neurons are faded in the figure; structure seen there is no finding beyond "
                "the signs that are told."
            )
        else:
            said.append("At no neuron does the uncertainty exceed half the typical size of nu.")
        if self.estimand == "folded":
            said.append(
                "Intervals are for the odd part of nu alone. Under an odd nonlinearity, without bias and input, the neuron "
                "(m, n) acts as (-m, -n) does, so that nu acts only through its folded mean, in which each neuron is "
                "counted together with its mirror image: [p(m) nu(m) - p(-m) nu(-m)] / [p(m) + p(-m)], with p the density "
                "of the loadings. An even part of nu is invisible and gets no interval."
            )
        else:
            said.append(
                f"{_MIRROR[self.activation]} is left to the prior wherever loadings of both signs are equally frequent. The "
                "intervals are that wide there."
            )
        if self.has_bias:
            said.append(
                "Neurons with a bias leave the origin of the latent states open: the drive can make up for a shift. The "
                "origin is a choice, where nu is the most plausible; about another one nu is another function."
            )
        said.append("The spread of n around nu is never determined by dynamics; sigma is a choice.")
        if not self.calibrated:
            said.append(
                "These intervals come from the quick estimate. Their coverage has not been measured; take them as a "
                "lower bound of the uncertainty."
            )
        return said + [f"Caution: {caution}" for caution in self.cautions]


def percent(share: float) -> str:
    """A share as a person says it; never rounded up to all, nor down to nothing."""
    value = 100 * share
    if 0 < value < 0.1:
        return "less than 0.1 %"
    if 99.95 <= value < 100:
        return "more than 99.9 %"
    return f"{value:.0f} %" if value >= 10 or value == round(value) else f"{value:.1f} %"


def diagnose(mean: ConditionalMean, rows: Tensor, level: float = 0.95) -> Diagnosis:
    """Ask an estimate of nu what the data determine at stacked loadings (K, R + U + bias)."""
    rows = rows.double()
    nu, variance = mean(rows), mean.variance(rows)
    calibrated = isinstance(mean, TrajectoryMean)
    if calibrated:
        low, high = mean.interval(rows, level)
    else:
        half = float(_NORMAL_QUANTILE(torch.tensor((1 + level) / 2))) * variance.sqrt()
        low, high = nu - half, nu + half
    size = nu.square().sum(1).mean().clamp_min(1e-300)
    return Diagnosis(
        loadings=rows,
        nu=nu,
        low=low,
        high=high,
        certainty=(1 - (variance.sum(1) / size).sqrt()).clamp(0, 1),
        level=level,
        determined_modes=float(mean.determined_modes),
        predicted_error=float(variance.sum() / (variance.sum() + nu.square().sum()).clamp_min(1e-300)),
        calibrated=calibrated,
        estimand=mean.estimand if calibrated else ("folded" if mean.summary.get("odd") else "mean"),
        activation=mean.values["activation"],
        has_bias=mean.has_bias,
        warnings=tuple(mean.summary.get("warnings", ())),
        converged=bool(mean.summary.get("converged", True)),
    )
