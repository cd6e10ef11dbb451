"""The captions of a report's figures."""

from __future__ import annotations

INTERVALS = (
    "What the data determine of nu: the mean output weight of each sampled neuron with its interval. Neurons are ordered by the "
    "estimate. Where the band fills the whole range, the curve shows the prior."
)


def flow_field(*, rank: int, cycles: bool, ring: bool, inputs: bool) -> str:
    """Of which rank; whether limit cycles are drawn, the truth is a ring, and inputs drive the network."""
    if rank == 1:
        said = "Vector field on the range that the latents visit. Where the curve crosses zero, states rest."
    else:
        said = (
            "Vector field on the region that the latents visit (darker: faster), with example trajectories of held-out trials. "
            "Hatched: no trial came there, so the field is extrapolation."
        )
    said += " K → ∞: mean field of infinitely many sampled neurons."
    if cycles:
        said += " Thick closed curves: stable limit cycles of the noise-free field, dotted where most of a cycle lies where no trial came."
    if ring:
        said += " States on a ring hardly move; which of its points are fixed is chance in a finite network."
    if inputs:
        said += " Inputs are held at their mean."
        if rank > 1:
            said += " Steps in the trajectories are the effect of inputs."
        said += " Do not interpret fixed points that differ between panels, or that lie beyond the reach of trials of this length."
    return said


def field_band(*, rank: int, inputs: bool, counted: bool) -> str:
    """Of which rank; whether inputs drive the network, and fixed points were counted."""
    said = "What the data determine of the vector field: "
    if rank == 1:
        said += "median over draws from its posterior, with a band that holds 95 % of the draws."
    else:
        said += "mean over draws from its posterior. Arrows fade where the draws differ in direction."
    if counted:
        said += " Dots: stable fixed points of the draws in the visited region. The data show those that form a tight cloud."
    return said + (" Inputs are held at zero." if inputs else "")


def loadings(*, faded: bool, coloured: bool, spread: bool) -> str:
    """Whether neurons whose mean is open are faded, populations of the teacher are coloured, and n at the larger sigma is drawn."""
    said = "Output weights n against loadings. At sigma = 0 each n is the mean nu that the dynamics require. "
    if spread:
        said += "The spread at the larger sigma is chosen, not inferred. "
    if faded:
        said += "At sigma = 0 neurons fade where the data leave their mean open. "
    if coloured:
        said += "Colours: the teacher's population to which a neuron most likely belongs. "
    return said + "Margins: densities, each scaled to its own height."


def conditional_mean(*, bars: bool) -> str:
    said = "True and inferred mean output weight of each sampled neuron; correct estimates lie on the diagonal."
    return f"{said} Bars: 95 % intervals." if bars else said


def tails(sigma: float) -> str:
    said = (
        "Tails of the connection weights: share of all pairs of neurons whose weight mᵢ·nⱼ exceeds a given size. The far end rests "
        "on few neurons"
    )
    return said + (", and at sigma above 0 on the chosen spread." if sigma > 0 else ".")


def rates(activation: str) -> str:
    return (
        f"Rates of example neurons on held-out trials: recorded, and {activation}(m·z + …) from the inferred latents."
    )


def psths(*, inputs: bool) -> str:
    source = "the inputs alone" if inputs else "each trial's inferred start alone"
    return (
        f"Mean responses of the most modulated neurons on held-out trials: recorded, and predicted from {source} (average over "
        "noisy rollouts)."
    )


def latents(trials: str) -> str:
    """Of which trials a mean is drawn, such as "the trials of each choice"."""
    return f"Latent trajectories, mean over {trials}; bands: standard error of the mean."


def losses(*, joined: bool, bound: bool, kept: bool) -> str:
    """Whether the evidence bound joined the loss on the way, was part of it at all, and whether a start was kept."""
    said = (
        "Learning curves of each stage's last training. A flow is a velocity field that carries random numbers to neurons. Its loss "
        "is the mean squared difference between its velocity and straight paths from random numbers to neurons. The lowest possible "
        "value is not zero; training is complete when the loss has stopped falling."
    )
    if joined:
        said += (
            " Training starts with the likelihood of the input-driven rollout alone. Where the evidence bound joins it, the "
            "training loss becomes another quantity; its jump there is no loss of quality. The validation loss contains both "
            "throughout."
        )
    if bound:
        said += " At first the weight of the bound's divergence grows, which by itself raises the training loss."
    if kept:
        said += " Where no epoch improved on the start, the start was kept."
    return said


def trained_network(*, inputs: int, outputs: bool, trial: int) -> str:
    """Under how many inputs stable points are drawn; whether outputs are, of the test trial of that number."""
    said = (
        "The trained network beside its low-rank fit. Left: how many dimensions hold the recurrent drive W r of the visited states, "
        f"and how many the weights W. {'Middle' if outputs else 'Right'}: stable fixed points of both, in the plane of the two leading "
        "components of the rates."
    )
    if inputs > 1:
        said += " Each colour is one of the inputs in which trials end."
    if outputs:
        said += (
            f" Right: outputs in trial {trial} (numbered from 0, as in the file). The sampled network is simulated from the trial's "
            "first state. A linear readout, fitted to training trials, gives its outputs."
        )
    return said
