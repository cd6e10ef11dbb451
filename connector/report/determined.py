"""What the data determine about nu, in plain words."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from connector.report.numbers import percent

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
    """At which share of the neurons the sign of each dimension of nu is determined."""
    shares = found.sign_determined.double().mean(0).tolist()
    if not any(shares):
        return "nu at none"
    return ", ".join(f"nu_{i + 1} at {percent(share) if share else 'none'}" for i, share in enumerate(shares))


def cautions(found: Determined, *, cause_named: bool = False) -> tuple[str, ...]:
    """What a reader should know before believing the rest: the signs of misfit, and what is no misfit.

    ``cause_named``: it is said elsewhere which assumption of the model is wrong, so that signs that leave it open are not.
    """
    said = [] if cause_named else list(found.warnings)
    if not found.converged:
        said.append("The fit of nu to the trajectories did not converge.")
    if found.predicted_error > OPEN:
        why = (
            "nu stays open until what is named below is mended"
            if cause_named
            else "the data leave nu open, or data.alpha, data.activation or lrrnn.rank is not that of the network"
        )
        said.append(
            f"The squared error of nu that the posterior itself expects is {found.predicted_error:.3g} of the mean "
            f"square of nu: {why}."
        )
    return tuple(said)


def sentences(found: Determined) -> list[str]:
    """What the data determine, what the prior does, and what is left open."""
    said = [
        f"The data fix about {found.determined_modes:.3g} combinations of the output weights in each latent dimension: "
        "weighted sums in which every neuron has a part. All else about nu comes from the prior, that nu is smooth "
        f"in the loadings. The squared error of nu that the posterior expects is {found.predicted_error:.3g} of the mean "
        "square of nu: an expectation that stands and falls with the model, no measured error."
    ]
    if found.sign_determined.any():
        said.append(
            f"Required by the data and that smoothness together: whether nu is positive or negative, {signs(found)} of the "
            f"neurons (the {100 * found.level:g} % interval there excludes zero). These signs follow from the "
            "few combinations above, neurons with like loadings sharing one; they are not so many separate findings."
        )
    elif not found.signs_told:
        said.append(
            "Whether nu is positive or negative is told at no neuron, whatever the intervals: too much of nu is open, or what it is made "
            "from does not suffice."
        )
    else:
        said.append(
            "Even with that smoothness the data do not tell at any neuron whether nu is positive or negative: all "
            f"{100 * found.level:g} % intervals hold zero."
        )
    loose = found.open_share
    if loose > 0:
        said.append(
            f"How large nu is comes from the prior at {percent(loose)} of the neurons, where the uncertainty exceeds half "
            "the typical size of nu. Those neurons are faded in the figure; structure seen there is no finding beyond "
            "the signs that are told."
        )
    else:
        said.append("At no neuron does the uncertainty exceed half the typical size of nu.")
    if found.estimand == "folded":
        said.append(
            "Intervals are for the odd part of nu alone. Under an odd nonlinearity, without bias and input, the neuron "
            "(m, n) acts as (-m, -n) does, so that nu acts only through its folded mean, in which each neuron is "
            "counted together with its mirror image: [p(m) nu(m) - p(-m) nu(-m)] / [p(m) + p(-m)], with p the density "
            "of the loadings. An even part of nu is invisible and gets no interval."
        )
    else:
        said.append(
            f"{_MIRROR[found.activation]} is left to the prior wherever loadings of both signs are equally frequent. The "
            "intervals are that wide there."
        )
    if found.has_bias:
        said.append(
            "Neurons with a bias leave the origin of the latent states open: the drive can make up for a shift. The "
            "origin is a choice; about another one nu is another function."
        )
    said.append("The spread of n around nu is never determined by dynamics; sigma is a choice.")
    if not found.calibrated:
        said.append(
            "These intervals come from the quick estimate. Their coverage has not been measured; take them as a "
            "lower bound of the uncertainty."
        )
    return said + [f"Caution: {caution}" for caution in cautions(found)]
