"""What each number of a run means, and the words of a report, for a reader who meets them for the first time."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """What a number in ``metrics.json`` is.

    Attributes:
        label: short name.
        unit: "" for a pure number.
        explanation: what it means, what a good value is, what it cannot say; plain sentences.
        direction: "lower", "higher" or "" where neither is better.
    """

    label: str
    unit: str
    explanation: str
    direction: str = ""


# Labels and explanations stand alone: a table shows the rows that a run has, each closed until it is opened.
METRICS: dict[str, Metric] = {
    "connectivity/dissimilarity": Metric(
        "Dissimilarity D to the true connectivity",
        "squared weights",
        "How far the inferred distribution of weights is from the one that generated the data: Sinkhorn divergence of "
        "the loadings plus squared error of the output weights. 0 is perfect; the finite number of neurons alone gives "
        "about 0.005 to 0.01. It can be had only where the truth is known, that is for simulated data.",
        "lower",
    ),
    "connectivity/sinkhorn": Metric(
        "Sinkhorn divergence of the loadings from the true ones",
        "squared weights",
        "Optimal-transport distance between true and inferred loadings, averaged over fresh draws of true neurons. "
        "Compare it with the Sinkhorn divergence between two samples of the truth; it says nothing about the output "
        "weights.",
        "lower",
    ),
    "connectivity/sinkhorn_floor": Metric(
        "Sinkhorn divergence between two samples of the true loadings",
        "squared weights",
        "What two fresh samples of true neurons give between themselves. Inferred loadings as near to the true ones as "
        "that cannot be told from perfect with this many neurons.",
    ),
    "connectivity/squared_error": Metric(
        "Squared error of the mean output weights",
        "squared weights",
        "Mean squared difference between true and inferred conditional mean of the output weights, per neuron and "
        "dimension, in squared units of n. Read it against the spread of n: 0.01 with n around 2 is an error of 5 %.",
        "lower",
    ),
    "connectivity/squared_error_of_n": Metric(
        "Squared difference of the mean output weights from the file's N",
        "squared weights",
        "Mean squared difference between the inferred mean output weight at each recorded neuron's loadings and the output "
        "weights N that the file gives, per neuron and dimension. N spreads about its own mean, which dynamics do not "
        "determine, so this is the error of nu plus that spread: an upper bound, and the error itself where N is a "
        "function of the loadings.",
        "lower",
    ),
    "connectivity/r2_of_n": Metric(
        "The file's N explained by the mean output weights",
        "R²",
        "Share of the variance of the file's output weights N over neurons that the inferred mean at their loadings "
        "explains, worst dimension. The spread of N about its own mean keeps it below 1.",
        "higher",
    ),
    "connectivity/valente_dissimilarity": Metric(
        "Dissimilarity after Valente et al. 2022",
        "1 − correlation",
        "One minus the correlation of the sorted entries of the true and the inferred connectivity matrix. Small for "
        "almost any two networks of similar weights: it is blind to how the weights are arranged, and given for "
        "comparison only.",
        "lower",
    ),
    "connectivity/determined_modes": Metric(
        "Combinations of the output weights fixed by the data",
        "per latent dimension",
        "How many independent weighted sums of the neurons' output weights the recorded states pin down, for each "
        "latent dimension. Every neuron has a part in each of them; whatever structure lies outside of them is the "
        "prior speaking.",
    ),
    "connectivity/predicted_error": Metric(
        "Squared error of the mean output weights that the posterior expects",
        "of their mean square",
        "The squared error that the posterior itself expects at the loadings of the sampled network, relative to the "
        "mean square of nu. 0 means pinned down, 1 means unknown. An expectation, no measured error: it relies on the "
        "model and the recorded loadings being right. Where the truth is known, compare the squared error of the mean "
        "output weights.",
        "lower",
    ),
    "connectivity/output_shift": Metric(
        "Shift of the mean output weights towards the recorded drive",
        "units of n, rms",
        "The recorded neurons' output weights scatter about their conditional mean, and so few neurons do not average "
        "that out. By so much the mean of output weights sampled at sigma > 0 is off the estimate of nu, for the "
        "vector field of infinitely many sampled neurons to be the recorded one. It is no statement about nu.",
    ),
    "connectivity/entropy": Metric(
        "Entropy of the inferred distribution of weights",
        "nats per neuron",
        "How spread out the inferred distribution of (m, b, d, n) is. It depends on the units of the latents and on "
        "sigma, so it compares runs on the same data only.",
    ),
    "connectivity/cell_types_p": Metric(
        "Test for cell types in the loadings",
        "p-value",
        "How often a population without cell types looks at least as clustered as the recorded one. Below 0.05 counts "
        "as evidence, if the fitted loadings are right. The least value that 99 simulated populations allow is 0.01. A large "
        "value does not prove that there are none: few neurons, or overlapping types, hide them.",
    ),
    "dynamics/attractors_kept": Metric(
        "Sampled networks, projected, that keep the true attractors",
        "share",
        "In what share of networks sampled from the inferred distribution and projected the fixed points, the cycle or "
        "the ring of the truth are found again near their places. 1 is best.",
        "higher",
    ),
    "dynamics/attractors_kept_unprojected": Metric(
        "Sampled networks, not projected, that keep the true attractors",
        "share",
        "In what share of networks sampled from the inferred distribution, left as they were drawn, the true "
        "attractors are found again. Finite networks lose delicate attractors by chance, even when sampled from the "
        "truth.",
        "higher",
    ),
    "dynamics/field_error": Metric(
        "Error of the vector field, infinitely many sampled neurons",
        "of the field's rms",
        "Root-mean-square error of the inferred distribution's vector field at held-out states, relative to the size "
        "of the field there, for so many neurons that chance plays no part, against the recorded network's field: of "
        "recorded rates, how the inferred states move, their own noise included, which no connectivity reproduces. Where "
        "most states rest near fixed points the field itself is small and this ratio is strict.",
        "lower",
    ),
    "dynamics/field_error_mean_field": Metric(
        "Error of the vector field, infinitely many sampled neurons against the teacher's mean field",
        "of the field's rms",
        "The recorded network is finite, and so its field differs by chance from that of infinitely many neurons of its "
        "teacher. Who reproduces the recorded network misses the mean field by about that difference, which has a "
        "measure of its own.",
        "lower",
    ),
    "dynamics/field_error_finite_size": Metric(
        "Recorded network's vector field against its teacher's mean field",
        "of the field's rms",
        "What the finite number of neurons does to the field of the recorded network; no error of any estimate.",
        "",
    ),
    "dynamics/drive_error": Metric(
        "Error of the vector field relative to the recurrent drive",
        "of the drive's rms",
        "The root-mean-square error of the vector field of infinitely many sampled neurons, relative to the size of the "
        "recurrent drive, what all neurons together feed back to the latent state: F = field + z. It does not vanish at "
        "fixed points as the field does.",
        "lower",
    ),
    "dynamics/field_error_projected": Metric(
        "Error of the vector field, sampled network after projection",
        "of the field's rms",
        "Root-mean-square error at held-out states after the smallest change of the output weights that restores the "
        "observed field at training states. Small values show that the sampled loadings can carry the dynamics; they "
        "do not show that the output weights are the true ones.",
        "lower",
    ),
    "dynamics/drift_r2": Metric(
        "Drift explained by the sampled network after projection",
        "R²",
        "Share of the variance of the drift (the vector field at held-out states) that a sampled and projected network "
        "reproduces, worst dimension.",
        "higher",
    ),
    "dynamics/left_region": Metric(
        "Trials in which the projected network leaves the visited region",
        "share",
        "Share of test trials in which a sampled and projected network, started where the trial starts, gets farther from "
        "the states of the training trials than one and a half times the farthest of them. What it does there was never "
        "fitted. Above 0.05 the report warns.",
        "lower",
    ),
    "dynamics/saturated": Metric(
        "States at which neurons are saturated",
        "share",
        "Share of neurons and held-out states at which the activation is flat: a change of the state hardly changes the "
        "rate. Above 0.5 the report warns; for spikes silent neurons count, too.",
        "",
    ),
    "loadings/outside_support": Metric(
        "Sampled loadings far from those of all recorded neurons",
        "share",
        "Share of sampled neurons whose nearest recorded one is more than twice as far as the loneliest recorded neuron's "
        "is. Above 0.05 the report warns: the flow puts neurons where none was seen.",
        "lower",
    ),
    "lrrnn/val_loss": Metric(
        "Validation loss of the low-rank RNN",
        "squared rate (rates), nats per bin (spikes)",
        "On trials not used for fitting; the quantity by which the kept model was chosen. For rates it is the mean "
        "squared error; for spikes the negative log-likelihood of all neurons' counts in a time bin, once bounded from "
        "the posterior and once of the rollout from the inputs, added up. Compare it within one data set only.",
        "lower",
    ),
    "lrrnn/loadings_r2": Metric(
        "True loadings recovered by the low-rank RNN",
        "R²",
        "Share of the variance of the true loadings that the fitted ones explain, after a linear change of the latent "
        "coordinates to the true ones, since data fix latents up to such a change only. Known only for simulated data.",
        "higher",
    ),
    "lrrnn/latents_r2": Metric(
        "True latents recovered by the low-rank RNN",
        "R²",
        "Share of the variance of the true latents that the fitted ones explain after a linear change of coordinates, up to "
        "which data fix them. Known only for simulated data.",
        "higher",
    ),
    "lrrnn/bits_per_spike": Metric(
        "Spikes predicted, latents inferred from spikes and inputs",
        "bits per spike",
        "Gain in log-likelihood per spike of held-out trials over each neuron's mean rate, integrating over the "
        "latents (a lower bound). 0 is no better than the mean rate. Values near 0.1 are usual for single trials of "
        "frontal neurons. It depends on the model of the baseline: compare equal baselines only.",
        "higher",
    ),
    "lrrnn/bits_per_spike_prior": Metric(
        "Spikes predicted by the dynamics (rollout)",
        "bits per spike",
        "Gain in log-likelihood per spike of held-out trials over each neuron's mean rate, with latents that run on "
        "by the fitted dynamics: driven by the inputs and blind to the trial's spikes; in recordings without inputs from a "
        "start that is inferred from the trial's spikes. What the dynamics explain by themselves.",
        "higher",
    ),
    "lrrnn/co_smoothing": Metric(
        "Spikes of hidden neurons predicted from the other neurons (co-smoothing)",
        "bits per spike",
        "Gain in log-likelihood per spike over each neuron's mean rate when a fifth of the neurons is hidden and predicted, "
        "on held-out trials, from the spikes of the others and the inputs; each neuron is hidden once. The model is not "
        "trained anew: loadings of hidden neurons are those fitted on training trials. Unlike the bound for latents "
        "inferred from all spikes, no neuron's own spikes help to predict it.",
        "higher",
    ),
    "lrrnn/bits_per_spike_null_drift": Metric(
        "Spikes predicted by slow drift alone",
        "bits per spike",
        "What each neuron's drift across the session predicts over its mean rate, without latents, inputs or a course "
        "within the trial. A fitted model has to beat it to say anything about a trial.",
    ),
    "lrrnn/bits_per_spike_null_drift_psth": Metric(
        "Spikes predicted by drift × mean response",
        "bits per spike",
        "What each neuron's drift across the session times its mean course within a trial (its PSTH over training trials) "
        "predicts over its mean rate. Smoothing of the course was chosen on training trials.",
    ),
    "lrrnn/bits_per_spike_null_drift_evidence_psth": Metric(
        "Spikes predicted by drift × mean response by evidence",
        "bits per spike",
        "What each neuron's drift across the session times its mean course within a trial, given the sign of the evidence, "
        "predicts over its mean rate. It knows the trial's condition but nothing of its single clicks and spikes: what a "
        "model predicts beyond it is about single trials.",
    ),
    "lrrnn/psth_r2_evidence": Metric(
        "Mean responses by evidence",
        "R², median neuron",
        "How well the model predicts each neuron's mean response to strong left and strong right evidence, held-out "
        "trials. 1 is perfect; noise in the observed means keeps weakly firing neurons below it.",
        "higher",
    ),
    "lrrnn/psth_r2_choice": Metric(
        "Mean responses by choice",
        "R², median neuron",
        "How well the model predicts each neuron's mean response on held-out trials grouped by the animal's choice, "
        "which it has to predict from inputs and spikes.",
        "higher",
    ),
    "lrrnn/psth_r2_evidence_noise_free": Metric(
        "Mean responses by evidence, noise-free rollout",
        "R², median neuron",
        "As the mean responses by evidence, but of one rollout without noise instead of the average over noisy ones.",
        "higher",
    ),
    "lrrnn/choice_auc": Metric(
        "Choice read from the final latent state",
        "AUC",
        "Chance that the final latent state ranks a right-choice trial above a left-choice one: 0.5 is chance, 1 is "
        "perfect. The clicks alone predict the choice well, so compare with their value.",
        "higher",
    ),
    "lrrnn/choice_auc_prior": Metric(
        "Choice read from the final state of the rollout",
        "AUC",
        "Chance that the final state of latents simulated from the inputs, without the trial's own spikes (but for the start, in recordings "
        "without inputs), ranks a right-choice trial above a left-choice one.",
        "higher",
    ),
    "lrrnn/click_difference_auc": Metric(
        "Choice read from the difference of clicks", "AUC", "What the stimulus alone says about the choice."
    ),
    "loadings/tail_advantage": Metric(
        "Student-t over normal base of the flow of the loadings",
        "nats per neuron",
        "Held-out log-likelihood of an elliptical Student-t over a normal density. Where it is above zero by twice its "
        "standard error, the flow starts from the Student-t, so that heavy tails are in reach.",
        "",
    ),
    "loadings/val_loss": Metric(
        "Flow-matching loss of the loadings",
        "squared velocity of the flow",
        "A flow is a velocity field that carries random numbers to loadings. The loss is the mean squared difference "
        "between its velocity and the straight paths from the ones to the others, on the training neurons, in "
        "standardised units, with random numbers that stay the same. Its lowest possible value is not zero; what counts "
        "is that it has stopped falling.",
        "lower",
    ),
    "loadings/log_likelihood": Metric(
        "Held-out log-likelihood of the loadings",
        "nats per neuron",
        "How probable the flow finds loadings of neurons it was not trained on. It compares models of the same neurons "
        "only.",
        "higher",
    ),
    "outputs/val_loss": Metric(
        "Flow-matching loss of the output weights",
        "squared velocity of the flow",
        "As for the loadings, of the flow that carries random numbers to output weights, p(n | m, b, d), on drawn neurons "
        "held out, in standardised units. Its lowest possible value is not zero; what counts is that it has stopped "
        "falling.",
        "lower",
    ),
    "timing/lrrnn_seconds": Metric("Time for the low-rank RNN", "s", "Wall-clock seconds of this stage."),
    "timing/loadings_seconds": Metric("Time for the flow of the loadings", "s", "Wall-clock seconds of this stage."),
    "timing/outputs_seconds": Metric("Time for the output weights", "s", "Wall-clock seconds of this stage."),
    "timing/results_seconds": Metric(
        "Time for measures, figures and report", "s", "Wall-clock seconds after the last stage; no part of fitting."
    ),
}

# What runs are judged by, as far as they have it: what is known of the truth before the fit alone. The first that all
# of several runs have puts them in order.
MAIN_METRICS = (
    "connectivity/dissimilarity",
    "lrrnn/bits_per_spike",
    "dynamics/field_error",
    "dynamics/attractors_kept",
    "dynamics/field_error_projected",
    "lrrnn/bits_per_spike_prior",
    "lrrnn/val_loss",
)

# What each neuron is granted beside the latent state, as ``lrrnn.baseline`` names it.
BASELINES = {
    "standard": "slow drift across the session, where trial times are known, and the course within the trial",
    "local": "slow drift across the session, where trial times are known, and the course within the trial, scaled to the "
    "neuron's count in neighbouring training trials",
}

# The same with what is used where there is no trial time and bins are rich in spikes.
GRANTS = {**BASELINES, "constant": "its mean rate"}

NO_TIMES = "needs the times of trials in the session, which this recording does not have"

# The same quantity under the other baseline.
_SCORED = "Here the fitted model is scored with the {} baseline in place of the one it was fitted with: {}."
_NULL = "Here it has what the {} baseline grants beside the course within the trial: {}."
_GRANTED = {
    "standard": "slow drift across the session, where trial times are known",
    "local": "that drift, scaled to the neuron's count in neighbouring training trials",
}
METRICS |= {
    f"{key}_{baseline}": METRICS[key]._replace(
        label=f"{METRICS[key].label}, {baseline} baseline",
        explanation=f"{METRICS[key].explanation} {_NULL.format(baseline, _GRANTED[baseline])}",
    )
    for key in (
        "lrrnn/bits_per_spike_null_drift",
        "lrrnn/bits_per_spike_null_drift_psth",
        "lrrnn/bits_per_spike_null_drift_evidence_psth",
    )
    for baseline in BASELINES
}
METRICS |= {
    f"{key}_{baseline}": METRICS[key]._replace(
        label=f"{METRICS[key].label}, {baseline} baseline",
        explanation=f"{METRICS[key].explanation} {_SCORED.format(baseline, BASELINES[baseline])}",
    )
    for key in (
        "lrrnn/bits_per_spike",
        "lrrnn/bits_per_spike_prior",
        "lrrnn/co_smoothing",
        "lrrnn/psth_r2_evidence",
        "lrrnn/psth_r2_choice",
        "lrrnn/choice_auc",
        "lrrnn/choice_auc_prior",
        "lrrnn/click_difference_auc",
        "lrrnn/psth_r2_evidence_noise_free",
    )
    for baseline in BASELINES
}

# What an estimate of nu says of itself: key of its ``summary`` -> what it is called, what it means.
ESTIMATE: dict[str, tuple[str, str]] = {
    "estimator": ("estimator", "how nu was estimated, as connectivity.estimator names it"),
    "estimand": (
        "estimand",
        "mean: nu itself; folded: its odd part, each neuron counted with its mirror image (-m, -n)",
    ),
    "kernel": ("kernel", "prior of nu: family of smooth functions that fits best; none: a linear function"),
    "width": ("width of the kernel", "length over which nu may bend, in standard deviations of the loadings"),
    "kernel_weight": ("weight of that kernel", "its posterior probability among all kernels tried"),
    "n_kernels": ("kernels averaged", "how many kernels have a noticeable posterior probability"),
    "n_components": ("components averaged", "kernels with settings of their amplitudes, over which nu is averaged"),
    "evidence": ("log evidence", "nats; compares models of the same data only"),
    "amplitude_linear": ("prior variance, linear part", "of nu, where the latents are such that m has unit covariance"),
    "amplitude_curved": (
        "prior variance, curved part",
        "of nu beyond a linear function, in the same units as the linear part",
    ),
    "own_variance": ("neurons' own variance of n", "of n about nu among the recorded neurons, as far as it acts"),
    "noise_variance": (
        "noise variance",
        "of the drive, that no output weights explain, in units where m has unit covariance",
    ),
    "noise_sd": ("noise", "standard deviation in each latent dimension, from the trajectories' residuals"),
    "difference_noise_sd": (
        "noise between neighbours",
        "standard deviation in each latent dimension, from neighbouring samples alone",
    ),
    "residual_autocorrelation": (
        "correlation of successive residuals",
        "0 for independent noise; of no concern where the noise is negligible",
    ),
    "n_samples": ("samples used", "latent states in the trajectories' likelihood"),
    "n_dropped_segments": ("segments left out", "pieces of trajectories that the fit could not follow"),
    "lambda": ("regularizer lambda", "noise over prior variance of n, in the units of connectivity.regularizer"),
    "n_modes": ("combinations considered", "weighted sums of output weights that the recorded states tell apart"),
    "determined_modes": (
        "combinations determined",
        "how many of the combinations considered the data rather than the prior fix, per latent dimension",
    ),
    "function_modes": (
        "degrees of freedom of nu",
        "coefficients of nu itself that the data fix under its fitted prior; another way to count, which need not agree",
    ),
    "predicted_error": (
        "squared error of nu that the posterior expects, recorded neurons",
        "of its mean square, at the loadings of recorded neurons instead of sampled ones; no measured error",
    ),
    "validation_r2": ("drive explained", "R² on validation trials by n = nu, worst latent dimension"),
    "converged": ("converged", "whether the fit to the trajectories settled"),
    "odd": ("odd", "yes: nu(-m) = -nu(m) was imposed, since an even part would not act"),
}


# The words of a report, for a reader who meets them for the first time.
WORDS: tuple[tuple[str, str], ...] = (
    (
        "latent state z",
        "The few numbers that describe the activity of all neurons at one time, R of them. Data fix them up to a linear "
        "change of coordinates, hence up to units of their own, the latent units.",
    ),
    (
        "loadings m, b, d",
        "How a neuron reads: its rate is phi(m·z + b·u + d) with the nonlinearity phi, external inputs u (where there are "
        "any) and a bias d (where fitted).",
    ),
    (
        "output weight n",
        "How a neuron acts: tau dz/dt = -z + the mean over neurons of n times their rate. The weight of the connection "
        "from neuron j to neuron i is m_i·n_j / K in a network of K neurons.",
    ),
    ("recurrent drive", "That mean of n times rate: what all neurons together feed back to the latent state."),
    ("vector field", "-z + recurrent drive: how fast, and where to, the latent state moves from each place."),
    (
        "nu",
        "The mean output weight of neurons with given loadings, E[n | m, b, d]. Of n, it is all that acts on the latent "
        "states of a large network.",
    ),
    (
        "sigma",
        "Standard deviation of n about nu in sampled networks: a stated choice, since the dynamics do not determine it.",
    ),
    (
        "sampled network",
        "Neurons drawn from the inferred distribution: loadings from the learned density, n = nu plus noise of standard "
        "deviation sigma.",
    ),
    (
        "projection",
        "The smallest change of a sampled network's n that gives it the recorded drive at training states: it removes what "
        "chance does to a finite network.",
    ),
    (
        "attractor, saddle, repeller",
        "Fixed points, where the vector field is zero: states near them return; leave along some directions only; leave.",
    ),
    ("held-out", "On test trials, which no fit has seen."),
)
