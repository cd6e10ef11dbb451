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
        "number of latent dimensions R; auto, for rates: the smallest with which held-out rates are predicted as well as with any",
        stages=_LRRNN, at_least=1, at_most=20, choices=("auto",),
    )  # fmt: skip
    bias: bool | None = option(
        "a bias d in each neuron; null: as in the true loadings where known, else if the rates ask for it",
        stages=_LRRNN,
    )
    inputs: str = option(
        "how the network takes the recording's inputs: instant (inside phi at once), filtered (through the neurons' time "
        "constant, as most trained networks have it), both, auto: of rates what explains validation trials best, of spikes "
        "instant",
        stages=_LRRNN, choices=("auto", "instant", "filtered", "both"), before="instant",
    )  # fmt: skip
    scale: str = option(
        "of rates: what each neuron has beside its loadings, rate = gain * phi(h) + offset, with both, gain, offset or none; auto: "
        "none where rates lie in the range of phi and held-out trials ask for nothing else, otherwise what they ask for",
        stages=_LRRNN, choices=("auto", "none", "offset", "gain", "both"), before="none",
    )  # fmt: skip
    init: str = option(
        "start: closed_form (rates: least squares; spikes: principal components) or random",
        stages=_LRRNN, choices=("closed_form", "random"),
    )  # fmt: skip
    init_std: float = option("sd of the random initial weights", stages=_LRRNN, above=0)
    max_epochs: int | None = option(
        "null: 60 for spikes; for rates none where the closed form leaves nothing to gain, else 2",
        stages=_LRRNN, unit="epochs", at_least=1,
    )  # fmt: skip
    learning_rate: float | None = option(
        "of Adam; null: 1e-4 for rates (fine-tuning), 1e-2 for spikes", stages=_LRRNN, above=0
    )
    batch_size: int | None = option("null: 50 for rates, 32 for spikes", stages=_LRRNN, unit="trials", at_least=1)
    weight_penalty: float = option(
        "weight of the sum of the norms of the parameter tensors, for rates", stages=_LRRNN, at_least=0
    )
    n_units: int = option("units of the latent network, for spikes", stages=_LRRNN, at_least=1, at_most=2**14)
    rollout_weight: float = option(
        "weight of the noise-free, input-driven rollout beside the evidence bound, for spikes",
        stages=_LRRNN, at_least=0,
    )  # fmt: skip
    baseline: str = option(
        "for spikes: local (uses the neighbouring training trials) or standard",
        stages=_LRRNN, choices=("local", "standard"),
    )  # fmt: skip
    inference: str = option(
        "for spikes: encoder (learned), smoother (closed form, for many neurons), auto: smoother where bins are rich in "
        "spikes",
        stages=_LRRNN, choices=("auto", "encoder", "smoother"),
    )  # fmt: skip
    posterior_sweeps: int = option(
        "sweeps of the sampler of the dynamics' posterior, for spikes where the encoder infers, where twice as many follow if few of "
        "their draws are independent, and for rates whose states carry noise of their own; 0: none, states read sample by sample "
        "stand for it",
        stages=_LRRNN, at_least=0, at_most=100_000, before=0,
    )  # fmt: skip
    b_penalty: float = option(
        "ridge penalty on the neurons' input weights, for spikes; chosen for conditioning", stages=_LRRNN, at_least=0
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
