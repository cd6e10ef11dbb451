"""Which structure of the output weights the data require, and which is only the prior: numbers and plain words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.conditional_mean import ConditionalMean
from connector.trajectory_likelihood import TrajectoryMean

_UNDETERMINED = 0.5  # certainty below which the estimate at a loading is more prior than data
# What phi(h) and phi(-h) have in common lets a neuron and its mirror image (-m, -b, -d) stand in for each other.
_MIRROR = {
    "tanh": "tanh(-h) = -tanh(h): a neuron (m, b, d) with n acts as one of (-m, -b, -d) with -n, so that the part of nu that "
    "keeps its sign there",
    "sigmoid": "sigmoid(-h) = 1 - sigmoid(h): a neuron (m, b, d) with n acts as one of (-m, -b, -d) with -n, but for a "
    "constant, so that the part of nu that keeps its sign there",
    "softplus": "softplus(h) - softplus(-h) = h: of the part of nu that changes its sign from (m, b, d) to (-m, -b, -d), "
    "only its correlation with the loadings acts; the rest of it",
    "relu": "relu(h) - relu(-h) = h: of the part of nu that changes its sign from (m, b, d) to (-m, -b, -d), only its "
    "correlation with the loadings acts; the rest of it",
}
_NORMAL_QUANTILE = torch.distributions.Normal(0.0, 1.0).icdf


@dataclass(frozen=True)
class Diagnosis:
    """What the data say about nu = E[n | m, b, d] at some loadings.

    Attributes:
        loadings: (K, R + U + bias) where it was asked.
        nu, low, high: (K, R) estimate and posterior interval of probability ``level``.
        certainty: (K,) in [0, 1]: 1 - (posterior sd / rms size of nu), at least 0; by it figures fade neurons.
        level: of the intervals.
        determined_modes: how many numbers about n the data fix.
        predicted_error: expected squared error of nu over its mean square.
        calibrated: whether the coverage of these intervals has been measured (``experiments/coverage.py``); intervals
            of the other estimators leave out errors that do not show in the residuals, and are too narrow.
        estimand: "mean", or "folded": under an odd nonlinearity without bias and input only the odd part of nu acts.
        activation: name of phi. has_bias: whether neurons have a bias d.
        warnings: sentences on signs of misfit.
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

    @property
    def sign_determined(self) -> Tensor:
        """(K, R) whether the interval excludes zero."""
        return (self.low > 0) | (self.high < 0)

    @property
    def open_share(self) -> float:
        """Share of the loadings at which the uncertainty of nu exceeds half its typical size."""
        return float((self.certainty < _UNDETERMINED).double().mean())

    def sentences(self) -> list[str]:
        """The diagnosis in plain words."""
        percent = f"{100 * self.level:g} %"
        said = [
            f"The data fix about {self.determined_modes:.3g} combinations of the output weights in each latent dimension: "
            "weighted sums in which every neuron has a part. All else about nu comes from the prior, that nu is smooth "
            f"in the loadings. Expected squared error of nu: {self.predicted_error:.2g} of its mean square."
        ]
        shares = self.sign_determined.double().mean(0)
        parts = ", ".join(f"nu_{i + 1} at {100 * float(share):.0f} %" for i, share in enumerate(shares))
        said.append(
            f"Required by the data and that smoothness together: the sign of {parts} of the loadings (the {percent} "
            "interval there excludes zero). These signs follow from the few combinations above, neurons with like "
            "loadings sharing one; they are not so many separate findings."
        )
        loose = self.open_share
        if loose > 0.005:
            said.append(
                f"Only the prior: at {100 * loose:.0f} % of the loadings the uncertainty exceeds half the typical size of "
                "nu. Those neurons are faded in the figure; structure seen there is no finding."
            )
        else:
            said.append("At nearly all loadings the uncertainty is small beside the size of nu.")
        if self.estimand == "folded":
            said.append(
                "Intervals are for the folded mean [p(m) nu(m) - p(-m) nu(-m)] / [p(m) + p(-m)]: under this odd "
                "nonlinearity, without bias and input, the neuron (m, n) cannot be told from (-m, -n), so an even part "
                "of nu is invisible and gets no interval."
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
        return said + [f"Warning: {warning}" for warning in self.warnings]


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
    )
