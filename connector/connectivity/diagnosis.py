"""Which structure of the output weights the data require, and which is only the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.connectivity.nu.mean import ConditionalMean, TrajectoryMean
from connector.report import determined

_UNDETERMINED = 0.5  # certainty below which the estimate at a loading is more prior than data
_NORMAL_QUANTILE = torch.distributions.Normal(0.0, 1.0).icdf


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the data say about nu = E[n | m, b, d] at some loadings.

    Attributes:
        loadings: (K, R + U + bias) at which nu was evaluated.
        nu, low, high: (K, R) estimate and posterior interval of probability ``level``.
        certainty: (K,) in [0, 1]: 1 - (posterior sd / rms size of nu), at least 0; by it figures fade neurons.
        level: of the intervals.
        determined_modes: how many independent weighted sums of n the data determine, for each latent dimension.
        predicted_error: squared error of nu that the posterior itself expects at these loadings, over the mean square of
            nu. It is not measured against a truth, and is too small if the model does not fit.
        calibrated: whether the coverage of these intervals has been measured (``experiments/coverage.py``); intervals
            of the other estimators leave out errors that do not show in the residuals, and are too narrow.
        estimand: "mean", or "folded": under an odd nonlinearity without bias and input only the odd part of nu acts.
        activation: name of phi. has_bias: whether neurons have a bias d.
        warnings: sentences on signs of misfit, where one of the detectors has fired.
        converged: whether the fit converged.
        signs_told: whether the recorded neurons support nu enough to report its signs.
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
    signs_told: bool = True

    @property
    def sign_determined(self) -> Tensor:
        """(K, R) whether the interval excludes zero; False everywhere if signs are not reported."""
        return ((self.low > 0) | (self.high < 0)) & self.signs_told

    @property
    def open_share(self) -> float:
        """Share of the loadings at which the uncertainty of nu exceeds half its typical size."""
        return float((self.certainty < _UNDETERMINED).double().mean())

    def __repr__(self) -> str:
        return (
            f"Diagnosis({len(self.nu)} neurons: the data constrain {self.determined_modes:.2g} weighted sums of output weights per "
            f"latent dimension; sign of nu determined for {self.signs}; {100 * self.level:g} % intervals; .sentences() says more)"
        )

    @property
    def signs(self) -> str:
        """For which share of the neurons the sign of each dimension of nu is determined, in words."""
        return determined.signs(self)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to know before you believe the rest: signs of misfit, and limits that are no misfit."""
        return determined.cautions(self)

    def sentences(self) -> list[str]:
        """The diagnosis in plain words."""
        return determined.sentences(self)


def diagnose(mean: ConditionalMean, rows: Tensor, level: float = 0.95, errors: Tensor | None = None) -> Diagnosis:
    """Ask an estimate of nu what the data determine at stacked loadings (K, R + U + bias).

    Args:
        errors: (K, P, P) covariance of the error of each row of P entries: nu is then that at the true loadings, of which
            these are estimates. The quick estimates leave the errors out.
    """
    rows = rows.double()
    whole = isinstance(mean, TrajectoryMean)
    if whole:
        nu, variance = mean.mean(rows, errors), mean.variance(rows, errors)
        low, high = mean.interval(rows, level, errors)
    else:
        nu, variance = mean(rows), mean.variance(rows)
        half = float(_NORMAL_QUANTILE(torch.tensor((1 + level) / 2))) * variance.sqrt()
        low, high = nu - half, nu + half
    size = nu.square().sum(1).mean().clamp_min(1e-300)
    told = not mean.summary.get("unbacked", False)
    return Diagnosis(
        loadings=rows,
        nu=nu,
        low=low,
        high=high,
        certainty=(1 - (variance.sum(1) / size).sqrt()).clamp(0, 1),
        level=level,
        determined_modes=float(mean.determined_modes),
        predicted_error=float(variance.sum() / (variance.sum() + nu.square().sum()).clamp_min(1e-300)),
        calibrated=told and whole,
        estimand=mean.estimand if whole else ("folded" if mean.summary.get("odd") else "mean"),
        activation=mean.values["activation"],
        has_bias=mean.has_bias,
        warnings=tuple(mean.summary.get("warnings", ())),
        converged=bool(mean.summary.get("converged", True)),
        signs_told=told and bool(mean.summary.get("signs_told", True)),
    )
