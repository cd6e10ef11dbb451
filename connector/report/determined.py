"""What the data determine about nu, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from connector.report.nulls import TO_DO
from connector.report.numbers import percent, rough

if TYPE_CHECKING:  # a finished run is told of without waiting for torch
    from torch import Tensor

# What phi(h) and phi(-h) have in common lets a neuron and its mirror image (-m, -b, -d) stand in for each other.
_EVEN = "Where loadings of both signs are equally frequent, the even part of nu has no effect on the dynamics of the intact network."
_PRIOR = "The prior sets it, hence the wide intervals there."
_MIRROR = {
    "tanh": f"With tanh a neuron (m, b, d) with n acts like its mirror image (-m, -b, -d) with -n. {_EVEN} {_PRIOR}",
    "sigmoid": "With sigmoid a neuron (m, b, d) with n acts, up to a constant, like its mirror image (-m, -b, -d) with -n. "
    f"{_EVEN} {_PRIOR}",
    **{
        name: f"With {name}, where loadings of both signs are equally frequent, the odd part of nu affects the dynamics only "
        "through its correlation with the loadings. The prior sets the rest, hence the wide intervals there."
        for name in ("softplus", "relu")
    },
}
OPEN = 0.3  # expected squared error of nu over its mean square above which a report cautions


class Determined(Protocol):
    """What :class:`connector.connectivity.diagnosis.Diagnosis` holds, as far as it is said in words."""

    level: float
    determined_modes: float
    predicted_error: float
    calibrated: bool
    estimand: str
    activation: str
    has_bias: bool
    warnings: tuple[str, ...]
    converged: bool
    sign_determined: Tensor
    signs_told: bool
    open_share: float


def signs(found: Determined) -> str:
    """For which share of the neurons the sign of each dimension of nu is determined: "80 % (nu_1) and none (nu_2)"."""
    shares = found.sign_determined.double().mean(0).tolist()
    if not any(shares):
        return "none"
    said = [f"{percent(share) if share else 'none'} (nu_{i + 1})" for i, share in enumerate(shares)]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _expected(found: Determined) -> str:
    return f"The posterior expects a squared error of nu of {rough(found.predicted_error)} times the mean square of nu"


def cautions(found: Determined, *, cause_named: bool = False) -> tuple[str, ...]:
    """What a reader should know before believing the rest: the signs of misfit, and what is no misfit.

    ``cause_named``: it is said elsewhere which assumption of the model is wrong, so that signs that leave it open are not.
    """
    said = [] if cause_named else list(found.warnings)
    if not found.converged:
        said.append(
            f"The fit of nu to the trajectories did not converge.{TO_DO}run again with another seed, and compare "
            "connectivity.estimator=gaussian_process."
        )
    if found.predicted_error > OPEN:
        why, remedy = (
            ("One assumption of the model is wrong.", "mend what the warning names; until then nu is open.")
            if cause_named
            else (
                "The data leave nu open, or data.alpha, data.activation or lrrnn.rank is not that of the network.",
                "check these options; else interpret nothing of nu but the stated signs.",
            )
        )
        said.append(f"{_expected(found)} (limit: {OPEN:g}). {why}{TO_DO}{remedy}")
    return tuple(said)


def sentences(found: Determined) -> list[str]:
    """What the data determine, what the prior does, what is left open, and what to beware of."""
    return [*findings(found), *(f"Caution: {caution}" for caution in cautions(found))]


def findings(found: Determined) -> list[str]:
    """:func:`sentences` without the cautions."""
    said = [
        f"The data constrain about {rough(found.determined_modes)} independent weighted sums of output weights per latent "
        "dimension. Every neuron takes part in each sum. The prior, that nu is smooth in the loadings, sets all else about nu.",
        f"{_expected(found)}. This is an expectation under the model, not a measured error.",
    ]
    if found.sign_determined.any():
        said.append(
            f"Assuming that nu is smooth, the data determine its sign for {signs(found)} of the neurons: the "
            f"{100 * found.level:g} % interval excludes zero. Neurons with similar loadings share a constraint, so these are not "
            "independent findings."
        )
    elif not found.signs_told:
        said.append(
            "The sign of nu is stated for no neuron, whatever its interval: the data leave too much of nu open."
        )
    else:
        said.append(
            "Even if nu is smooth, the data determine its sign for no neuron: all "
            f"{100 * found.level:g} % intervals contain zero."
        )
    loose = found.open_share
    if loose > 0:
        said.append(
            f"For {percent(loose)} of the neurons the prior sets the size of nu: its uncertainty exceeds half its typical size. "
            "These neurons are faded in the figure. Apart from stated signs, do not interpret structure among them."
        )
    else:
        said.append("For no neuron does the uncertainty exceed half the typical size of nu.")
    if found.estimand == "folded":
        said.append(
            "The intervals are for the odd part of nu. Under an odd nonlinearity, without bias and input, the neurons (m, n) and "
            "(-m, -n) act alike. The dynamics then depend only on the folded mean, [p(m) nu(m) - p(-m) nu(-m)] / [p(m) + p(-m)], "
            "with p the density of the loadings. The even part of nu gets no interval: it acts only if neurons are silenced."
        )
    else:
        said.append(_MIRROR[found.activation])
    if found.has_bias:
        said.append(
            "With biases the origin of the latents is arbitrary: the drive can make up for a shift. Another origin changes nu."
        )
    said.append("The dynamics never determine the spread of n around nu; sigma is a choice.")
    if not found.calibrated:
        said.append(
            "These intervals come from the quick estimate. Their coverage has not been measured; take them as a lower bound of "
            "the uncertainty."
        )
    return said
