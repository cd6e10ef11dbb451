"""The captions of a report's figures."""

from __future__ import annotations

INTERVALS = (
    "What the data determine: the mean output weight nu of each sampled neuron with its interval, neurons in the "
    "order of the estimate. Where the band is as wide as the whole range, the curve shows the prior."
)


def flow_field(*, cycles: bool, ring: bool, inputs: bool) -> str:
    """Whether limit cycles are drawn, the truth is a ring, and inputs drive the network."""
    said = (
        "The vector field on the region that the latents visit (the darker, the faster), with example trajectories "
        "of held-out trials; hatched where no trial came, so that what the field is there is extrapolation. "
        "K → ∞: the mean field, of infinitely many sampled neurons."
    )
    if cycles:
        said += (
            " Thick closed curves: stable limit cycles of the field without noise, dotted where most of a cycle lies where no "
            "trial came."
        )
    if ring:
        said += " States on a ring hardly move; which of its points rest exactly is chance in a finite network."
    if inputs:
        said += (
            " Inputs are held at their mean; steps in the trajectories are their effect. Fixed points that differ "
            "between panels, or lie beyond what trials of this length reach, are no findings."
        )
    return said


def field_band(*, inputs: bool, counted: bool) -> str:
    """Whether inputs drive the network, and fixed points were counted."""
    said = (
        "What the data determine of the vector field: the mean over draws from its posterior, arrows faded where the draws "
        "differ in direction (rank 1: the band holds 95 % of the draws)."
    )
    if counted:
        said += " Dots: stable fixed points of the draws within the visited region; a tight cloud is one that the data show."
    return said + (" Inputs are held at zero." if inputs else "")


def loadings(*, faded: bool, coloured: bool) -> str:
    """Whether neurons whose mean is open are faded, and populations of the teacher are coloured."""
    said = (
        "Output weights n against loadings. At sigma = 0 each n is the mean that the dynamics ask for; the spread "
        "at the larger sigma is chosen, not inferred: dynamics do not determine it. "
    )
    if faded:
        said += "At sigma = 0 neurons whose mean the data leave open are faded. "
    if coloured:
        said += "Colours: the population of the teacher that a neuron most likely belongs to. "
    return said + "At the margins the densities, each to its own height."


def conditional_mean(*, bars: bool) -> str:
    said = "True and inferred mean output weight of each sampled neuron; on the diagonal is right."
    return f"{said} Bars: 95 % intervals." if bars else said


def tails(sigma: float) -> str:
    said = (
        "How often connection weights of a given size occur: the share of all pairs of neurons whose weight m_i·n_j is "
        "larger than that. Its far end rests on few neurons"
    )
    return said + (", and at sigma above 0 on the stated spread." if sigma > 0 else ".")


def rates(activation: str) -> str:
    return f"Rates {activation}(m·z + …) of example neurons on held-out trials, recorded and read out of the inferred latents."


def psths(*, inputs: bool) -> str:
    source = "the inputs alone" if inputs else "each trial's inferred start alone"
    return (
        "Mean responses of the most modulated neurons on held-out trials, recorded and predicted from "
        f"{source} (average over noisy rollouts)."
    )


def latents(trials: str) -> str:
    """Of which trials a mean is drawn, such as "the trials of each choice"."""
    return f"Latent trajectories, mean over {trials}; bands: standard error of the mean."


def losses(*, joined: bool, bound: bool, kept: bool) -> str:
    """Whether the evidence bound joined the loss on the way, was part of it at all, and whether a start was kept."""
    said = (
        "Learning curves of each stage's last training. A flow is a velocity field that carries random numbers to "
        "neurons; its loss is the mean squared difference between its velocity and straight paths from the ones to the "
        "others, whose lowest possible value is not zero: what counts is that it has stopped falling."
    )
    if joined:
        said += (
            " Training starts with the likelihood of the input-driven rollout alone; where the evidence bound joins "
            "it, the training loss becomes another quantity, and its jump there is no loss of quality. The "
            "validation loss holds both throughout."
        )
    if bound:
        said += " At first the weight of the bound's divergence grows, which raises the training loss by itself."
    if kept:
        said += " Where no epoch improved on the start, the start was kept, and training changed nothing."
    return said


def trained_network(*, outputs: bool, trial: int) -> str:
    """Whether outputs are drawn, of the test trial of that number."""
    said = (
        "The trained network beside its low-rank fit. Left: how many dimensions hold the recurrent drive W r of the visited states, "
        "and how many the weights W themselves; what W does beyond the visited states is spare. Middle: stable fixed points of both, "
        "in the plane of the rates' two leading components; each colour is one of the inputs in which trials end."
    )
    if outputs:
        said += (
            f" Right: outputs in trial {trial}, numbered from 0 as in the file. The sampled network is simulated from the trial's first "
            "state and has a linear readout of its own, fitted to the training trials."
        )
    return said
