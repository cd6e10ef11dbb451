"""The options of the low-rank RNN that is fitted to the activity."""

from __future__ import annotations

from dataclasses import dataclass

from connector.declarations import option, require

LABEL = "name of the group's file; changes nothing"
_LRRNN = ("lrrnn",)


@dataclass
class LowRankRNNOptions:
    """The low-rank RNN that is fitted to the activity."""

    name: str = option(LABEL, stages=())
    rank: int | str = option(
        "number of latent dimensions R; auto: the smallest that predicts held-out neurons as well as any other",
        stages=_LRRNN, at_least=1, at_most=20, choices=("auto",),
    )  # fmt: skip
    bias: bool | None = option(
        "true: each neuron has a bias d; null: as in the true loadings if known, else if the rates ask for it",
        stages=_LRRNN,
    )
    inputs: str = option(
        "how inputs enter: instant (inside phi at once), filtered (through the neurons' time constant, as in "
        "most trained networks), both; auto: for rates what explains validation trials best, for spikes "
        "instant",
        stages=_LRRNN, choices=("auto", "instant", "filtered", "both"), before="instant",
    )  # fmt: skip
    scale: str = option(
        "scale of each neuron's rates, rate = gain * phi(h) + offset: both, gain, offset or none; auto: none "
        "if rates lie in the range of phi and held-out trials ask for nothing else, otherwise what they ask "
        "for",
        stages=_LRRNN, choices=("auto", "none", "offset", "gain", "both"), before="none",
    )  # fmt: skip
    init: str = option(
        "initial weights: closed_form (rates: least squares; spikes: principal components) or random",
        stages=_LRRNN, choices=("closed_form", "random"),
    )  # fmt: skip
    init_std: float = option("standard deviation of random initial weights", stages=_LRRNN, above=0)
    max_epochs: int | None = option(
        "passes through the training trials; null: 60 for spikes, fewer for recordings of more than 66,000 bins; for rates 2, "
        "none if the closed form leaves nothing to gain, or 3000 steps on growing windows if it misses much",
        stages=_LRRNN, unit="epochs", at_least=1,
    )  # fmt: skip
    learning_rate: float | None = option(
        "learning rate of Adam; null: 1e-4 for rates (fine-tuning; on growing windows 0.02 times each tensor's rms), 1e-2 for spikes",
        stages=_LRRNN,
        above=0,
    )
    batch_size: int | None = option(
        "trials in a batch; null: 50 for rates, 32 for spikes", stages=_LRRNN, unit="trials", at_least=1
    )
    weight_penalty: float = option(
        "for rates: weight of the penalty on the norms of the parameter tensors", stages=_LRRNN, at_least=0
    )
    n_units: int = option("for spikes: units of the latent network", stages=_LRRNN, at_least=1, at_most=2**14)
    rollout_weight: float = option(
        "for spikes: weight of the noise-free, input-driven rollout beside the evidence bound",
        stages=_LRRNN, at_least=0,
    )  # fmt: skip
    baseline: str = option(
        "for spikes: standard (drift and course within the trial), or local (also scaled by neighbouring "
        "training trials)",
        stages=_LRRNN, choices=("local", "standard"),
    )  # fmt: skip
    inference: str = option(
        "for spikes, how dynamics are fitted before they are sampled: encoder (gradient descent with an encoder of "
        "trials), smoother (closed form, for many neurons); auto: smoother if bins hold many spikes",
        stages=_LRRNN, choices=("auto", "encoder", "smoother"),
    )  # fmt: skip
    posterior_sweeps: int = option(
        "sweeps of the sampler of the dynamics' posterior, for spikes (unless the closed form says enough) and for rates "
        "whose states carry noise of their own; up to twice as many follow if few draws are independent; 0: no "
        "sampling, states are read sample by sample",
        stages=_LRRNN, at_least=0, at_most=100_000, before=0,
    )  # fmt: skip
    b_penalty: float = option(
        "for spikes: ridge penalty on the neurons' input weights, for numerical conditioning", stages=_LRRNN, at_least=0
    )

    @property
    def fixed_rank(self) -> int | None:
        """The rank where it is a number; None where it is to be chosen."""
        return None if self.rank == "auto" else self.rank

    def check(self) -> None:
        few = "of 4 or more, or 0 for none"
        require(
            self.posterior_sweeps == 0 or self.posterior_sweeps >= 4,
            "lrrnn.posterior_sweeps",
            few,
            self.posterior_sweeps,
        )
