"""Figure 5: connectivity inferred from rat frontal cortex, tested for cell types; dynamics; predictions of silencing.

    python experiments/figure5.py

A    the recording: spikes of two trials, responses by evidence and by choice on test trials (faint: recorded, strong:
     model driven by the clicks alone).
B    inferred connectivity: mean output weight nu against loading; neurons whose nu the data leave open are faded.
C    likelihood of Gaussian mixtures with k = 1..9 components, of sampled neurons and of the recorded ones, each beside
     populations simulated without cell types; and the test for cell types on the recorded neurons' loadings.
D    flow field where trials went, coloured by which cell type drives more (grey where shuffled labels do the same); mean
     trajectories by difference of clicks; fixed points; how long a deviation from them lasts, beside the length of the
     trials; and how far apart left and right trials stay after their end, beside what refitted simulations with one slow
     point and with two attractors give (experiments/attractor_power.py).

A second figure, figure5_predictions, silences each inferred cell type in networks sampled from the distribution. Its
table says which predictions are robust: all but 5 % of the networks agree on the direction, and silencing as many random
neurons does not do the same. Types are the components of a mixture fitted to the recorded neurons' loadings. Where the
test finds no cell types they are exploratory, and --types sets their number.

Needs a run of the experiment rat; --run names one, wherever it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from attractor_power import AFTER_S, KINDS, after_trials, found_points, groups_of, read_sets, verdict
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from panels import letter, mixture_curve
from rich.console import Console
from rich.table import Table
from saved_runs import SpikeRun, finish, note, recording_arguments, save, spike_run, styled
from torch import Tensor

from connector.analysis.cell_types import (
    COMPONENTS,
    CellTypes,
    CellTypeTest,
    cell_type_test,
    features,
    mixture_likelihood,
    null_mixture_likelihood,
)
from connector.analysis.fields import field_error
from connector.analysis.predictions import (
    LEVEL,
    NO_EFFECT,
    ChoiceReadout,
    Effect,
    Prediction,
    Readouts,
    SilencingEffects,
    Trials,
    decay_times,
    first_against_rest,
    predict,
    shuffles,
    silencing_effects,
    single,
)
from connector.analysis.spike_scores import choice_conditions, psths, sign_conditions
from connector.connectivity.diagnosis import Diagnosis
from connector.connectivity.nu.draws import has_draws
from connector.dynamics import Network
from connector.errors import UserError
from connector.figures.fields import draw_contrast_field
from connector.figures.style import ACCENT, FAINT, GROUPS, INFERRED, INK, MUTED, TRUE, group_colours
from connector.report.numbers import percent
from connector.types import Loadings, Recording, TrialBatch, last_states

N_NEURONS = 1000  # of each sampled network
N_STATES = 600  # at which contributions are averaged
N_SEEDS = 5  # of each test for cell types
N_BINS = 10  # of the position between left and right
_NORMAL_95 = 1.96
_SUPPORTED = 0.2  # share of input weights that differ from zero, from which on they count in the search for types
_EFFECTS = {
    "right": "P(right)",
    "correct": "P(side of the evidence)",
    "selectivity": "remaining selectivity",
    "rate_hz": "PSTH change (rms), Hz",
    "outside": "trials that leave",
}
# Type 1 and the rest have the colours of the two ends of the contrast map.
_TYPE_COLOURS = (GROUPS[3], GROUPS[2], GROUPS[4], GROUPS[5], GROUPS[6], GROUPS[0], GROUPS[1])
_SHOWN = ("right", "correct", "selectivity")


# --- cell types -------------------------------------------------------------------------------------------------------


@dataclass
class Types:
    """What the loadings of the recorded neurons say of cell types.

    Attributes:
        tests: (columns, null) -> the test with N_SEEDS seeds, ordered by p; the first entry is the run's own and decides,
            by its median.
        columns: of the loadings that the mixture is fitted to; their name.
        mixture: the types; supported: the test finds them.
    """

    tests: dict[tuple[str, str], list[CellTypeTest]]
    columns: list[int]
    name: str
    mixture: CellTypes
    supported: bool

    def of(self, loadings: Loadings) -> Tensor:
        return self.mixture.labels(features(loadings)[:, self.columns])

    @property
    def deciding(self) -> CellTypeTest:
        return middle(next(iter(self.tests.values())))


def middle(tests: list[CellTypeTest]) -> CellTypeTest:
    """The test with the median p."""
    return tests[len(tests) // 2]


def range_of(tests: list[CellTypeTest]) -> str:
    """Median p and, in brackets, the smallest and the largest."""
    low, high = (f"{tests[i].p_value:.2g}" for i in (0, -1))
    return f"{middle(tests).p_value:.2g}" + (f" [{low}, {high}]" if low != high else "")


def column_sets(run: SpikeRun) -> tuple[dict[str, list[int]], float | None]:
    """Columns of the loadings by name, all of them first; and the share of b that differs from zero (None without b)."""
    loadings, covariance = run.loadings, run.stage_inputs.loadings_covariance
    rank, inputs, width = loadings.rank, loadings.n_inputs, loadings.stack().shape[1]
    sets = {"m, b, d" if inputs else "m, d": list(range(width))}
    if inputs:
        sets["m, d"] = [*range(rank), *range(rank + inputs, width)]
    sets["m"] = list(range(rank))
    if not inputs or covariance is None:
        return sets, None
    sd = covariance.diagonal(dim1=1, dim2=2)[:, rank : rank + inputs].sqrt()
    return sets, float((loadings.b.abs() > _NORMAL_95 * sd).double().mean())


def find_types(run: SpikeRun, k: int | None, n_bootstrap: int) -> tuple[Types, float | None]:
    """Tests on all loadings and on parts of them, and a mixture; also the share of b that differs from zero."""
    sets, of_b = column_sets(run)
    rows, seed = features(run.loadings), int(run.config.seed)
    tests = {}
    for name, columns in sets.items():
        for null in ("student", "gaussian"):
            # The starts of the mixtures and the simulated populations are chance, and with few neurons they matter.
            again = [
                cell_type_test(rows[:, columns], null=null, n_bootstrap=n_bootstrap, seed=seed + i)
                for i in range(N_SEEDS)
            ]
            tests[name, null] = sorted(again, key=lambda test: test.p_value)
    first = middle(next(iter(tests.values())))
    supported = first.p_value <= LEVEL
    names = list(sets)
    # Weights that the spikes do not support would be noise in the mixture.
    name = names[1] if of_b is not None and of_b < _SUPPORTED else names[0]
    number = k or (first.components if supported else 2)
    return Types(tests, sets[name], name, CellTypes(rows[:, sets[name]], number, seed), supported), of_b


# --- measures ---------------------------------------------------------------------------------------------------------


def evidence_of(recording: Recording) -> Tensor:
    """(trials,) evidence for right: the difference of clicks, where it is known, else that of the two inputs' sums."""
    for value in (recording.click_difference, recording.evidence):
        if value is not None:
            return value.double().nan_to_num()
    if recording.n_inputs != 2:
        raise UserError("evidence for right: click_difference, evidence or two inputs", f"{recording.n_inputs} inputs")
    total = (recording.inputs.double() * recording.mask[..., None]).sum(1)
    return total[:, 1] - total[:, 0]


def networks_of(run: SpikeRun, count: int) -> list[Network]:
    """Networks sampled from the distribution and projected, with the run's sigma; of an estimate with draws each about a
    draw of nu and with the drive of that draw, so that they differ by what the data leave open."""
    sigma = float(run.config.connectivity.sigma)
    draws = {"project": True, "posterior": has_draws(run.connectivity.mean) and run.connectivity.outputs != "flow"}
    return [run.connectivity.sample(N_NEURONS, sigma, seed=seed, **draws) for seed in range(count)]


@dataclass
class Contributions:
    """Which of cell type 1 and all other neurons drives more, along the axis from left to right.

    Attributes:
        position: (B,) of the bins, in units in which left and right trials end at -1 and 1.
        value: (N, B) normalised difference, by network; shuffled: (N, J, B).
        mean, slope: over all states, and right less left.
    """

    position: Tensor
    value: Tensor
    shuffled: Tensor
    mean: Prediction
    slope: Prediction


def contributions_along(
    networks: list[Network], labels: list[Tensor], z: Tensor, position: Tensor, n_random: int
) -> Contributions:
    edges = torch.quantile(position, torch.linspace(0, 1, N_BINS + 1, dtype=torch.float64))
    index = torch.bucketize(position, edges[1:-1])
    member = torch.nn.functional.one_hot(index, N_BINS).double()
    member = member / member.sum(0)
    value, shuffled = [], []
    for i, (net, types) in enumerate(zip(networks, labels)):
        first = torch.cat([types[None], shuffles(types, n_random, seed=i)]) == 0
        found = first_against_rest(net, first, z) @ member
        value.append(found[0])
        shuffled.append(found[1:])
    value, shuffled = torch.stack(value), torch.stack(shuffled)
    third = N_BINS // 3

    def slope(x: Tensor) -> Tensor:
        return x[..., -third:].mean(-1) - x[..., :third].mean(-1)

    return Contributions(
        (position[:, None] * member).sum(0),
        value,
        shuffled,
        predict(value.mean(-1), shuffled.mean(-1)),
        predict(slope(value), slope(shuffled)),
    )


def null_of_means(shuffled: Tensor, n_draws: int = 500, seed: int = 0) -> Tensor:
    """2.5 and 97.5 % of means over networks, one shuffle drawn from each: shuffled (N, J, B) -> (2, B)."""
    networks, count = shuffled.shape[:2]
    pick = torch.randint(count, (n_draws, networks), generator=torch.Generator().manual_seed(seed))
    means = sum(shuffled[i, pick[:, i]] for i in range(networks)) / networks
    return torch.quantile(means, torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=means.dtype), dim=0)


def contrast(networks: list[Network], labels: list[Tensor], n_random: int):
    """States -> mean normalised difference over networks; 0 where it lies within what shuffled labels give."""

    def at(z: Tensor) -> Tensor:
        found = torch.stack(
            [
                first_against_rest(net, torch.cat([types[None], shuffles(types, n_random, seed=i)]) == 0, z)
                for i, (net, types) in enumerate(zip(networks, labels))
            ]
        )
        mean = found[:, 0].mean(0)
        low, high = null_of_means(found[:, 1:])
        return torch.where((mean < low) | (mean > high), mean, 0.0)

    return at


@dataclass
class Dynamics:
    """After the trials.

    Attributes:
        points, eigenvalues: stable points of the fitted low-rank RNN; of_networks: the same of each sampled network.
        decay_s: of the fitted RNN's stable points; network_decay_s: (N,) the longest of each network (NaN without).
        turn_s: periods of the fitted RNN's spiral points; lengths_s: (trials,).
        curve: (T,) separation by the fitted RNN; network_curves: (N, T).
    """

    points: Tensor
    eigenvalues: Tensor
    of_networks: list[tuple[Tensor, Tensor]]
    decay_s: Tensor
    network_decay_s: Tensor
    turn_s: list[float]
    lengths_s: Tensor
    curve: Tensor
    network_curves: Tensor


def dynamics_of(run: SpikeRun, networks: list[Network]) -> Dynamics:
    recording, latents = run.recording, run.latents
    tau_s = recording.bin_s / latents.alpha
    fitted = run.model.rnn.network().double()
    points, eigenvalues = found_points(fitted, latents.z, latents.mask)
    of_networks = [found_points(net, latents.z, latents.mask) for net in networks]
    longest = [float(decay_times(e, tau_s).max()) if len(e) else float("nan") for _, e in of_networks]
    arguments = (latents.z, recording, tau_s, latents.alpha)
    return Dynamics(
        points,
        eigenvalues,
        of_networks,
        decay_times(eigenvalues, tau_s),
        torch.tensor(longest),
        [2 * torch.pi * tau_s / float(e.imag.abs().max()) for e in eigenvalues if float(e.imag.abs().max()) > 1e-6],
        recording.lengths.double() * recording.bin_s,
        after_trials(fitted.step, *arguments),
        torch.stack([after_trials(net.step, *arguments) for net in networks]),
    )


def silencing(run: SpikeRun, networks: list[Network], labels: list[Tensor], n_random: int) -> tuple[Trials, list]:
    """Test trials, and the effects of silencing each type in each network."""
    recording, latents, fold = run.recording, run.latents, run.fold
    chosen = latents.trials(fold.test)
    start = latents.z[fold.train, 0].mean(0)
    trials = Trials(start, chosen.inputs, chosen.lengths, evidence_of(recording)[fold.test])
    found = []
    for i, (net, types) in enumerate(zip(networks, labels)):
        # Each network's choices are read out of its own noise-free runs through the training trials.
        train = latents.trials(fold.train)
        ran = single(net).simulate(start.expand(len(fold.train), -1), latents.z.shape[1], train.inputs.float())
        readout = ChoiceReadout.fit(last_states(ran, train.lengths), recording.choices[fold.train])
        readouts = Readouts(
            readout,
            run.loadings,
            run.baseline.scale / recording.bin_s,
            recording.activation,
            smooth_sd_bins=0.1 / recording.bin_s,
        )
        found.append(silencing_effects(single(net), types, trials, readouts, n_random, seed=i))
    return trials, found


_OUTSIDE = Effect._fields.index("outside")


def predictions_of(found: list[SilencingEffects]) -> list[dict[str, Prediction]]:
    """Type -> effect -> prediction."""
    types, random = torch.stack([f.types for f in found]), torch.stack([f.random for f in found])
    return [
        {
            name: predict(types[:, c, i], random[:, c, :, i], getattr(NO_EFFECT, name), outside=types[:, c, _OUTSIDE])
            for i, name in enumerate(Effect._fields)
        }
        for c in range(types.shape[1])
    ]


@dataclass
class Responses:
    """PSTHs of test trials, Hz: recorded and of the model driven by the clicks; by evidence and by choice."""

    observed: dict[str, Tensor]
    model: dict[str, Tensor]
    valid: dict[str, Tensor]


def responses_of(run: SpikeRun) -> Responses:
    recording, test = run.recording, run.fold.test
    batch = TrialBatch.of(recording, test, run.baseline.argument)
    expected = run.model.rollout_counts(batch, 32, torch.Generator().manual_seed(0))
    found = Responses({}, {}, {})
    options = {"smooth_sd_bins": 0.1 / recording.bin_s, "n_conditions": 2}
    for name, conditions in (
        ("evidence", sign_conditions(evidence_of(recording)[test])),
        ("choice", choice_conditions(recording.choices[test])),
    ):
        observed, trials, _ = psths(batch.activity, batch.mask, conditions, **options)
        found.observed[name] = observed / recording.bin_s
        found.model[name] = psths(expected, batch.mask, conditions, **options)[0] / recording.bin_s
        found.valid[name] = trials >= 5
    return found


def measure(run: SpikeRun, arguments) -> dict:
    """All that the figures and the tables show."""
    types, of_b = find_types(run, arguments.types, arguments.bootstrap)
    networks = networks_of(run, arguments.networks)
    labels = [types.of(net.loadings) for net in networks]
    empty = [c for c in range(types.mixture.k) if any(int((own == c).sum()) == 0 for own in labels)]
    if empty:
        raise UserError(
            "neurons of every type in each sampled network", f"none of type {empty[0] + 1}", "lower --types"
        )
    recording, latents = run.recording, run.latents
    z, u, y = latents.trials(run.fold.test).samples()
    ends = last_states(latents.z, recording.lengths)
    left, right = (ends[recording.choices == c].mean(0) for c in (0, 1))
    axis = 2 * (right - left) / (right - left).square().sum()
    states = z[torch.linspace(0, len(z) - 1, N_STATES).long()]
    drawn = run.connectivity.sample(N_NEURONS, 0.0, seed=int(run.config.seed))
    at_sigma = run.connectivity.sample(N_NEURONS, float(run.config.connectivity.sigma), seed=int(run.config.seed))
    curves = {
        f"{N_NEURONS} sampled neurons, $(m, b, d, n)$": (
            mixture_likelihood(features(at_sigma.loadings, at_sigma.n), COMPONENTS),
            null_mixture_likelihood(
                at_sigma.loadings, at_sigma.n, run.connectivity.conditional_mean, arguments.null_draws, COMPONENTS
            ),
        ),
        f"{recording.n_neurons} recorded neurons, $({types.name})$": _recorded_curve(run, types, arguments.null_draws),
    }
    position = (states - (left + right) / 2) @ axis
    trials, silenced = silencing(run, networks, labels, arguments.random)
    has_posterior = run.config.connectivity.estimator != "ridge"
    return {
        "types": types,
        "b_supported": of_b,
        "networks": networks,
        "labels": labels,
        "drawn": drawn,
        "diagnosis": run.connectivity.diagnose(drawn.loadings) if has_posterior else None,
        "curves": curves,
        "contributions": contributions_along(networks, labels, states, position, arguments.random),
        "dynamics": dynamics_of(run, networks),
        "trials": trials,
        "silenced": silenced,
        "predictions": predictions_of(silenced),
        "responses": responses_of(run),
        "errors": [field_error(net, z, u, y) for net in networks],
        "power": [s for s in read_sets(arguments.power) if s["recording"] == recording.name],
    }


def _recorded_curve(run: SpikeRun, types: Types, n_draws: int):
    rows = features(run.loadings)[:, types.columns]
    most = min(max(COMPONENTS), len(rows) * 4 // 10)
    components = tuple(k for k in COMPONENTS if k <= most)
    # Standardised, so that one floor of the covariances suits all columns; it shifts all curves alike.
    rows = Loadings((rows - rows.mean(0)) / rows.std(0))
    nothing = rows.m[:, :0]
    return mixture_likelihood(rows.m, components), null_mixture_likelihood(
        rows, nothing, None, n_draws, components
    )  # fmt: skip


# --- in words ---------------------------------------------------------------------------------------------------------


def sentences(run: SpikeRun, found: dict) -> list[str]:
    """What the data support and what not."""
    types, dynamics = found["types"], found["dynamics"]
    names = list(types.tests)
    others = ", ".join(f"{range_of(types.tests[name, null])} ({null}; {name})" for name, null in names[1:])
    verdict_ = "supports" if types.supported else "does not support"
    said = [
        f"Cell types: the test on the loadings of the {run.recording.n_neurons} recorded neurons {verdict_} more than one "
        f"population (p = {range_of(types.tests[names[0]])}, median and range over {N_SEEDS} seeds; {names[0][1]} null on "
        f"({names[0][0]}), chosen beforehand). Looked at besides, without correction for doing so: p = {others}. The bend "
        "of a mixture curve is no evidence."
    ]
    if not types.supported:
        said[0] += f" The {types.mixture.k} types drawn and silenced here are exploratory."
    if found["b_supported"] is not None and types.name != names[0][0]:
        said[0] += (
            f" They are fitted to ({types.name}): {percent(found['b_supported'])} of the input weights b differ from zero, where "
            "chance alone gives up to 5 %."
        )
    diagnosis: Diagnosis | None = found["diagnosis"]
    if diagnosis is not None:
        said.append(
            f"Output weights: the data determine {diagnosis.determined_modes:.2g} combinations of them in each latent "
            f"dimension; nu is open at {percent(diagnosis.open_share)} of the sampled neurons (uncertainty above half its size), "
            f"and intervals {'have' if diagnosis.calibrated else 'do not have'} a measured coverage."
        )
    lengths = dynamics.lengths_s
    decays = ", ".join(f"{t:.2g}" for t in dynamics.decay_s.tolist()) or "none"
    turns = f" (spiral, one turn in {', '.join(f'{t:.2g}' for t in dynamics.turn_s)} s)" if dynamics.turn_s else ""
    counts = sorted({len(p) for p, _ in dynamics.of_networks})
    of_networks = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    known = dynamics.network_decay_s[torch.isfinite(dynamics.network_decay_s)]
    said.append(
        f"Stable points without input: {len(dynamics.points)} in the fitted low-rank RNN, time constant {decays} s{turns}; "
        f"{of_networks} in sampled networks"
        + (f", {float(known.min()):.2g} to {float(known.max()):.2g} s" if len(known) else "")
        + f". Trials last {float(lengths.min()):.2g} to {float(lengths.max()):.2g} s (median {float(lengths.median()):.2g}): "
        "what states do later is extrapolation, and the number of fixed points by itself proves nothing."
    )
    curves = dynamics.network_curves[:, -1]
    said.append(
        f"Separation of left and right trials {AFTER_S:g} s after their end: {float(dynamics.curve[-1]):.2f} of that at "
        f"trial end by the fitted RNN, {float(curves.min()):.2f} to {float(curves.max()):.2f} by sampled networks."
    )
    if not found["power"]:
        said.append(
            "Whether that speaks against two attractors is open: python experiments/attractor_power.py measures it."
        )
    for (factor, epochs), sets in groups_of(found["power"]).items():
        value = float(dynamics.curve[-1]) if factor == 1 else None
        said.append(f"Power, trials x {factor}, {epochs} epochs: " + " ".join(verdict(sets, value)))
    return said


def show(run: SpikeRun, found: dict, console: Console) -> None:
    types: Types = found["types"]
    table = Table(title="Test for cell types on the loadings of the recorded neurons")
    for head in (
        "columns",
        "single population",
        "p [range over seeds]",
        "gain, nats per neuron",
        "its 95 % without types",
        "k",
    ):
        table.add_column(head, justify="left" if head in ("columns", "single population") else "right")
    for (name, null), tests in types.tests.items():
        test = middle(tests)
        high = float(torch.quantile(test.null_gains, 1 - LEVEL))
        tail = "Gaussian" if test.tail_index == float("inf") else f"Student t, {test.tail_index:.3g} d.o.f."
        table.add_row(name, f"{null}: {tail}", range_of(tests), f"{test.gain:.3f}", f"{high:.3f}", str(test.components))  # fmt: skip
    console.print(table)
    table = Table(
        title=f"Drive by type 1 against all others, {len(found['networks'])} networks (normalised difference)"
    )
    for head in ("", "median", "95 % of networks", "shuffled labels", "p", "robust"):
        table.add_column(head, justify="right" if head else "left")
    for name, one in (("all states", found["contributions"].mean), ("right less left", found["contributions"].slope)):
        table.add_row(name, *_cells(one))
    console.print(table)
    sizes = torch.stack([s.sizes for s in found["silenced"]]).double().mean(0) / N_NEURONS
    what = "" if types.supported else ", exploratory"
    table = Table(title=f"Silencing inferred cell types{what}: {len(found['networks'])} networks, test trials")
    for head in ("type", "change", "median", "95 % of networks", "random neurons", "p", "robust"):
        table.add_column(head, justify="left" if head in ("type", "change") else "right")
    for c, effects in enumerate(found["predictions"]):
        for name, label in _EFFECTS.items():
            title = f"{c + 1} ({percent(float(sizes[c]))} of neurons)" if name == "right" else ""
            table.add_row(title, label, *_cells(effects[name], sign_matters=name not in ("rate_hz", "outside")))
    console.print(table)
    console.print(
        "Remaining selectivity: 1 all, 0 none, negative reversed. Trials that leave go where no intact one goes: there "
        "the prediction is extrapolated. Robust: all but 5 % of the networks agree on the direction and random neurons "
        "do not do the same (p <= .05, outside of their band), and no more than 1 % of the trials leave; no correction for the number of rows.",
        highlight=False,
    )
    console.print(
        f"Field error of these networks: {min(found['errors']):.2f} to {max(found['errors']):.2f}", highlight=False
    )
    for line in sentences(run, found):
        console.print(line, highlight=False)


def _cells(one: Prediction, sign_matters: bool = True) -> list[str]:
    # An rms is above zero whatever happens: only the comparison with random neurons says anything.
    robust = one.robust if sign_matters else one.beyond_random
    return [f"{one.value:.2g}", f"{one.low:.2g} to {one.high:.2g}", f"{one.null_low:.2g} to {one.null_high:.2g}",
            f"{one.p_value:.2g}", "yes" if robust else "no"]  # fmt: skip


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw_raster(axis: Axes, counts: Tensor, inputs: Tensor | None, bin_s: float, order: Tensor, title: str) -> None:
    """Spikes of one trial: counts (time, K) with the neurons in ``order``; clicks (time, 2) above them."""
    bins, neurons = torch.nonzero(counts[:, order] > 0, as_tuple=True)
    axis.scatter(bins.numpy() * bin_s, neurons.numpy(), s=5, color=INK, marker="|", linewidths=0.6, rasterized=True)
    top = counts.shape[1]
    if inputs is not None:
        for side, colour in enumerate(group_colours([-1, 1])[: inputs.shape[1]]):
            at = torch.nonzero(inputs[:, side] > 0)[:, 0].numpy() * bin_s
            axis.plot(at, np.full(len(at), top * (1.06 + 0.07 * side)), "|", color=colour, markersize=4.5)
    axis.set_title(title, fontsize=9)
    axis.set(xlim=(0, len(counts) * bin_s), ylim=(-1, top * 1.2), xlabel="time (s)")
    axis.grid(False)


def draw_psth(axis: Axes, time: np.ndarray, observed: Tensor, model: Tensor, valid: Tensor, title: str) -> None:
    """observed, model (2, T) Hz, left and right."""
    for side, colour in enumerate(group_colours([-1, 1])):
        keep = valid[side].numpy()
        axis.plot(time[keep], observed[side].numpy()[keep], color=colour, alpha=0.4, linewidth=2.4)
        axis.plot(time[keep], model[side].numpy()[keep], color=colour, linewidth=1.2)
    axis.set_title(title, fontsize=8)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_locator(MaxNLocator(3))


def _draw_recording(part, run: SpikeRun, responses: Responses) -> None:
    recording, test = run.recording, run.fold.test
    rasters, histograms = part.subfigures(1, 2)
    pair, axes = rasters.subplots(1, 2), histograms.subplots(2, 3)
    order = run.loadings.m[:, 0].argsort()
    score = evidence_of(recording)[test] * (recording.lengths[test] > recording.lengths[test].double().median())
    for column, (trial, side) in enumerate(((int(score.argmin()), "left"), (int(score.argmax()), "right"))):
        number = int(test[trial])
        length = int(recording.lengths[number])
        axis = pair[column]
        draw_raster(
            axis,
            recording.activity[number, :length],
            None if recording.inputs is None else recording.inputs[number, :length],
            recording.bin_s,
            order,
            f"trial {number}: more clicks on the {side}",
        )
        axis.set_ylabel("neuron, by loading $m_1$" if column == 0 else "")
        if column == 0:
            letter(axis, "A")
            axis.annotate(
                f"{recording.name}: {recording.n_neurons} neurons, {recording.n_trials} trials",
                (0, 1), xycoords="axes fraction", xytext=(-20, 22), textcoords="offset points", fontsize=8.5, color=MUTED,
            )  # fmt: skip
    lines = [Line2D([], [], color=c, label=side) for c, side in zip(group_colours([-1, 1]), ("left", "right"))]
    lines += [
        Line2D([], [], color=MUTED, alpha=0.4, linewidth=2.4, label="recorded, test trials"),
        Line2D([], [], color=MUTED, linewidth=1.2, label="model, driven by the clicks alone"),
    ]
    part.legend(handles=lines, loc="outside upper right", ncols=4)
    time = np.arange(recording.n_steps) * recording.bin_s
    evident = responses.observed["evidence"]
    both = responses.valid["evidence"].all(0)
    strongest = (evident[1] - evident[0])[both].square().mean(0).argsort(descending=True)[:3]
    for row, name in enumerate(("evidence", "choice")):
        for column, neuron in enumerate(strongest.tolist()):
            axis = axes[row, column]
            own = recording.neuron_names[neuron] if recording.neuron_names else f"neuron {neuron + 1}"
            draw_psth(axis, time, responses.observed[name][..., neuron], responses.model[name][..., neuron],
                      responses.valid[name], f"{own}, by {name}")  # fmt: skip
            axis.tick_params(labelbottom=row == 1)
            if row == 1:
                axis.set_xlabel("time (s)")
            if column == 0:
                axis.set_ylabel("rate (Hz)")


def _draw_connectivity(part, found: dict) -> None:
    drawn, types, diagnosis = found["drawn"], found["types"], found["diagnosis"]
    rank = drawn.rank
    axes = part.subplots(min(rank, 2), min(rank, 2), squeeze=False, sharex="col", sharey="row")
    labels = types.of(drawn.loadings)
    colours = np.array([to_rgba(type_colour(int(c))) for c in labels])
    certainty = torch.ones(drawn.n_neurons) if diagnosis is None else diagnosis.certainty
    for (row, column), axis in np.ndenumerate(axes):
        shade = colours.copy()
        sure = certainty if certainty.ndim == 1 else certainty[:, row]
        shade[:, 3] = 0.05 + 0.6 * sure.double().clamp(0, 1).numpy()
        axis.scatter(drawn.m[:, column], drawn.n[:, row], s=5, c=shade, linewidths=0, rasterized=True)
        x, y = drawn.m[:, column].numpy(), drawn.n[:, row].numpy()
        axis.set(xlim=np.quantile(x, [0.003, 0.997]) * 1.15, ylim=np.quantile(y, [0.003, 0.997]) * 1.15)
        axis.tick_params(labelbottom=row == len(axes) - 1, labelleft=column == 0)
        if row == len(axes) - 1:
            axis.set_xlabel(f"loading $m_{{{column + 1}}}$")
        if column == 0:
            axis.set_ylabel(rf"output weight $\nu_{{{row + 1}}}$")
    kind = "type" if types.supported else "exploratory type"
    part.suptitle(f"{drawn.n_neurons} neurons of the inferred distribution", fontsize=9, x=0.1, ha="left")
    handles = [
        Line2D([], [], linestyle="none", marker="o", markersize=4, color=type_colour(c), label=f"{kind} {c + 1}")
        for c in range(types.mixture.k)
    ]
    handles.append(
        Line2D([], [], linestyle="none", marker="o", markersize=4, color=FAINT, label="left open by the data")
    )
    part.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, handletextpad=0.1)
    letter(axes[0, 0], "B")


def type_colour(c: int) -> str:
    return _TYPE_COLOURS[c % len(_TYPE_COLOURS)]


def draw_test(axis: Axes, test: CellTypeTest, title: str) -> None:
    """Statistic of the test beside its distribution without cell types."""
    axis.hist(test.null_gains.numpy(), bins=20, color=FAINT, label="one population, simulated")
    axis.axvline(test.gain, ymax=0.78, color=ACCENT, linewidth=1.8, label="recorded neurons")
    axis.set(title=title, xlabel="penalised gain of a mixture\n(nats per neuron)", ylabel="simulated populations")
    axis.legend(fontsize=7, loc="upper left", handlelength=1)
    axis.set_ylim(0, 1.35 * axis.get_ylim()[1])


def draw_profile(axis: Axes, found: Contributions) -> None:
    x = found.position.numpy()
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = null_of_means(found.shuffled).numpy()
    axis.fill_between(x, low, high, color=FAINT, alpha=0.8, linewidth=0, label="means with shuffled labels, 95 %")
    low, high = torch.quantile(found.value, ends, dim=0).numpy()
    axis.fill_between(x, low, high, color=INFERRED, alpha=0.22, linewidth=0, label="networks, 95 %")
    axis.plot(x, found.value.mean(0).numpy(), color=INFERRED, marker="o", markersize=3, label="mean of networks")
    axis.axhline(0, color=MUTED, linewidth=0.8)
    axis.set(xlabel="position (left trials end at -1, right at 1)", ylim=(-1.02, 1.02),
             ylabel="rest drives more  –  type 1 drives more", title="Contributions to the drive")  # fmt: skip
    axis.legend(fontsize=7, loc="best", handlelength=1.2)


def draw_decay(axis: Axes, found: Dynamics) -> None:
    """Time constants of the stable points beside the lengths of the trials."""
    axis.hist(found.lengths_s.numpy(), bins=15, color=FAINT, label="trial lengths")
    top = axis.get_ylim()[1]
    networks = found.network_decay_s[torch.isfinite(found.network_decay_s)].numpy()
    jitter = np.linspace(0.35, 0.6, max(1, len(networks)))[: len(networks)]
    axis.plot(networks, top * jitter, "o", color=INFERRED, markersize=4, alpha=0.6, label="sampled networks")
    for i, value in enumerate(found.decay_s.tolist()):
        axis.axvline(value, color=ACCENT, linewidth=1.8, label="fitted RNN" if i == 0 else None)
    axis.set(xlabel="time (s)", ylabel="trials", title="Decay time of stable points", ylim=(0, 1.45 * top))
    seen = [float(found.lengths_s.max()), *found.decay_s.tolist(), *networks.tolist()]
    axis.set_xlim(0, 1.1 * max(seen))
    axis.legend(fontsize=7, loc="upper left", handlelength=1)


def draw_separation(axis: Axes, found: Dynamics, power: list[dict]) -> None:
    time = np.linspace(0, AFTER_S, len(found.curve))
    for kind, colour in zip(KINDS, (MUTED, GROUPS[4])):
        curves = [s["curve"] for s in power if s["kind"] == kind]
        for i, curve in enumerate(curves):
            axis.plot(np.linspace(0, AFTER_S, len(curve)), curve, color=colour, alpha=0.55, linewidth=0.9,
                      label=f"refitted truths: {kind}" if i == 0 else None)  # fmt: skip
    for i, curve in enumerate(found.network_curves.numpy()):
        label = "sampled networks" if i == 0 else None
        axis.plot(time, curve, color=INFERRED, linewidth=0.8, alpha=0.7, label=label)
    axis.plot(time, found.curve.numpy(), color=ACCENT, linewidth=2.2, label="fitted RNN")
    axis.axhline(0, color=MUTED, linewidth=0.8)
    highest = [float(found.curve.max()), 1.05, *(max(s["curve"]) for s in power)]
    axis.set(xlabel="time after trial end, without input (s)", ylabel="left–right separation, relative",
             title="Do left and right stay apart?", ylim=(-0.03, min(2.0, 1.35 * max(highest))))  # fmt: skip
    axis.legend(fontsize=7, loc="upper right", handlelength=1.4)


def mean_paths(run: SpikeRun, n_groups: int = 4) -> tuple[list[Tensor], list[float]]:
    """Mean latents of trials by difference of clicks, as long as half of a group's trials run; and their mean differences."""
    recording, z = run.recording, run.latents.z
    value = evidence_of(recording)
    edges = torch.quantile(value, torch.linspace(0, 1, n_groups + 1, dtype=torch.float64)[1:-1])
    group, paths, values = torch.bucketize(value, edges), [], []
    for g in range(n_groups):
        member = group == g
        running = recording.mask[member]
        last = int((running.sum(0) * 2 >= member.sum()).sum())
        weight = running[:, :last, None]
        paths.append((z[member][:, :last] * weight).sum(0) / weight.sum(0))
        values.append(float(value[member].mean()))
    return paths, values


def draw(run: SpikeRun, found: dict, n_random: int) -> Figure:
    types: Types = found["types"]
    figure = Figure(figsize=(14, 12.6), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1, 1, 1.1])
    _draw_recording(top, run, found["responses"])
    left, right = middle.subfigures(1, 2, width_ratios=[1, 2])
    _draw_connectivity(left, found)
    axes = right.subplots(1, 3)
    for axis, (name, (curve, null)) in zip(axes, found["curves"].items()):
        mixture_curve(axis, curve, null, name)
        axis.title.set_fontsize(9)
        low, high = axis.get_ylim()
        axis.set_ylim(low - 0.28 * (high - low), high)  # room for the legend
        axis.legend(fontsize=6.5, loc="lower left", handlelength=1.4)
    name, null = next(iter(types.tests))
    draw_test(axes[2], types.deciding, f"Test on $({name})$, {null} null:\n$p$ = {types.deciding.p_value:.2g}")
    axes[2].title.set_fontsize(9)
    letter(axes[0], "C")
    axes = bottom.subplots(1, 4, gridspec_kw={"width_ratios": [1.25, 1, 0.9, 1.1]})
    network, dynamics = found["networks"][0], found["dynamics"]
    states = run.latents.z[run.latents.mask]
    paths, values = mean_paths(run)
    arrows = draw_contrast_field(
        axes[0],
        network.vector_field,
        states[:: max(1, len(states) // 8000)],
        contrast(found["networks"], found["labels"], n_random),
        paths=paths,
        path_values=values,
        fixed_points=dynamics.of_networks[0],
    )
    bar = bottom.colorbar(arrows, ax=axes[0], shrink=0.75, aspect=24, ticks=[-1, 0, 1], location="bottom")
    bar.ax.set_xticklabels(["rest drives more", "equal, or as shuffled", "type 1 drives more"], fontsize=7)
    axes[0].set_title(
        "A sampled network: field, stable point (dot);\npaths: means of quarters by click difference", fontsize=8.5
    )
    letter(axes[0], "D")
    draw_profile(axes[1], found["contributions"])
    draw_decay(axes[2], dynamics)
    draw_separation(axes[3], dynamics, [s for s in found["power"] if s["trials"] == 1])
    note(figure, " ".join(sentences(run, found)))
    return figure


def draw_psychometric(axis: Axes, trials: Trials, silenced: list[SilencingEffects], c: int, colour: str) -> None:
    """P(right) against the evidence, intact and with type c silenced: medians and 95 % of the networks."""
    value = trials.evidence
    edges = torch.quantile(value, torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1])
    index = torch.bucketize(value, edges)
    member = torch.nn.functional.one_hot(index).double()
    member = member[:, member.sum(0) > 0]
    member = member / member.sum(0)
    x = (value @ member).numpy()
    ends = torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)
    for name, of, shade in (("intact", [s.intact for s in silenced], TRUE),
                            (f"type {c + 1} silenced", [s.silenced[c] for s in silenced], colour)):  # fmt: skip
        low, mid, high = torch.quantile(torch.stack([r.right @ member for r in of]), ends, dim=0).numpy()
        axis.fill_between(x, low, high, color=shade, alpha=0.2, linewidth=0)
        axis.plot(x, mid, color=shade, marker="o", markersize=3, label=name)
    axis.set(ylim=(-0.02, 1.02), xlabel="right minus left clicks", ylabel="P(right)")
    axis.legend(fontsize=7, loc="lower right", handlelength=1.2)


def draw_effects(axis: Axes, effects: dict[str, Prediction]) -> None:
    """Effects (points, 95 % of the networks) beside what random neurons do (bars)."""
    for row, name in enumerate(_SHOWN):
        one = effects[name]
        axis.barh(row, one.null_high - one.null_low, left=one.null_low, height=0.5, color=FAINT)
        axis.plot([one.low, one.high], [row, row], color=INFERRED, linewidth=1.6)
        face = INFERRED if one.robust else "white"
        axis.plot(one.value, row, "o", color=face, markeredgecolor=INFERRED, markersize=6)
        axis.plot([one.no_effect] * 2, [row - 0.38, row + 0.38], color=MUTED, linewidth=1.0, linestyle=(0, (2, 1.5)))
    axis.set_yticks(range(len(_SHOWN)), ["change of\nP(right)", "change of\nP(correct)", "remaining\nselectivity"])
    seen = [v for name in _SHOWN for v in effects[name][:5]]
    if max(map(abs, seen)) > 4:  # a network without bounds would hide all else
        axis.set_xscale("symlog", linthresh=1.0)
        axis.xaxis.set_major_formatter(ScalarFormatter())
    room = 0.06 * (max(*seen, 1.0) - min(seen))
    axis.set_xlim(min(seen) - room, max(*seen, 1.0) + room)
    axis.set(ylim=(len(_SHOWN) - 0.4, -0.6))
    axis.grid(axis="y", visible=False)


def draw_predictions(run: SpikeRun, found: dict) -> Figure:
    types, silenced, trials = found["types"], found["silenced"], found["trials"]
    k = types.mixture.k
    figure = Figure(figsize=(13, 1.5 + 2.9 * k), layout="constrained")
    axes = figure.subplots(k, 4, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1, 1.15]})
    bin_s = run.recording.bin_s
    selective = torch.stack([(s.intact.psths[1] - s.intact.psths[0]) for s in silenced]).mean(0)
    both = silenced[0].intact.valid.all(0)
    neurons = selective[both].square().mean(0).argsort(descending=True)[:2].tolist()
    sizes = torch.stack([s.sizes for s in silenced]).double().mean(0) / N_NEURONS
    for c in range(k):
        colour = type_colour(c)
        draw_psychometric(axes[c, 0], trials, silenced, c, colour)
        axes[c, 0].set_title(f"type {c + 1}: {percent(float(sizes[c]))} of the neurons")
        for axis, neuron in zip(axes[c, 1:3], neurons):
            intact = torch.stack([s.intact.psths[..., neuron] for s in silenced]).median(0).values
            without = torch.stack([s.silenced[c].psths[..., neuron] for s in silenced])
            time = np.arange(intact.shape[1]) * bin_s
            for side, shade in enumerate(group_colours([-1, 1])):
                axis.plot(time, intact[side], color=shade, alpha=0.45, linewidth=2.2)
                low, mid, high = torch.quantile(without[:, side], torch.tensor([0.025, 0.5, 0.975]).double(), dim=0)
                axis.fill_between(time, low, high, color=shade, alpha=0.18, linewidth=0)
                axis.plot(time, mid, color=shade, linewidth=1.3, linestyle=(0, (4, 1.5)))
            own = run.recording.neuron_names[neuron] if run.recording.neuron_names else f"neuron {neuron + 1}"
            axis.set(xlabel="time (s)", ylabel="rate (Hz)", title=own)
            # A network that leaves the visited region would set the scale.
            axis.set_ylim(0, min(axis.get_ylim()[1], 4 * float(intact.max())))
        draw_effects(axes[c, 3], found["predictions"][c])
        axes[c, 3].set_title("effects and random neurons")
    axes[-1, 3].set_xlabel("effect")
    lines = [
        Line2D([], [], color=shade, linewidth=1.6, label=f"evidence {side}")
        for side, shade in zip(("left", "right"), group_colours([-1, 1]))
    ]
    lines += [
        Line2D([], [], color=MUTED, alpha=0.45, linewidth=2.4, label="intact"),
        Line2D([], [], color=MUTED, linestyle=(0, (4, 1.5)), label="silenced (band: 95 % of networks)"),
        Line2D([], [], color=FAINT, linewidth=7, label="random neurons, 95 %"),
        Line2D([], [], linestyle="none", marker="o", color=INFERRED, label="robust"),
        Line2D([], [], linestyle="none", marker="o", color="white", markeredgecolor=INFERRED, label="not robust"),
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines))
    note(figure, prediction_note(found))
    return figure


def prediction_note(found: dict) -> str:
    types = found["types"]
    robust = [
        f"type {c + 1}, {'' if name == 'selectivity' else 'change of '}{_EFFECTS[name]} {effects[name].value:.2g}"
        for c, effects in enumerate(found["predictions"])
        for name in _SHOWN
        if effects[name].robust
    ]
    said = (
        f"Each inferred type silenced in {len(found['networks'])} networks of {N_NEURONS} neurons sampled from the "
        "distribution and projected, run without noise through the test trials; choices are read along the axis fitted to "
        "the intact network's final states, which silencing is taken to leave alone. "
    )
    if not types.supported:
        said += f"The loadings do not support cell types (p = {types.deciding.p_value:.2g}): these are exploratory. "
    leave = ", ".join(percent(float(effects["outside"].value)) for effects in found["predictions"])
    said += f"Trials that go where no intact one goes, by type: {leave}; there the prediction is extrapolated. "
    return said + ("Robust: " + "; ".join(robust) + "." if robust else "No effect is robust.")


def main(arguments=None) -> None:
    parser = recording_arguments(__doc__)
    parser.add_argument("--types", type=int, metavar="K", help="cell types to silence (default: as tested, else 2)")
    parser.add_argument("--networks", type=int, default=12, help="sampled networks (default: 12)")
    parser.add_argument("--random", type=int, default=19, help="random groups of neurons for each type and network")
    parser.add_argument("--null-draws", type=int, default=10, help="populations simulated for each null of C")
    parser.add_argument("--bootstrap", type=int, default=199, help="populations simulated for each test of cell types")
    parser.add_argument(
        "--power", metavar="FILE", help="of attractor_power.py (default: attractor_power.json in --out)"
    )
    arguments = parser.parse_args(arguments)
    arguments.power = arguments.power or Path(arguments.out) / "attractor_power.json"
    if arguments.types is not None and arguments.types < 2:
        raise UserError("--types of 2 or more", str(arguments.types))
    console = Console(width=120)
    run = spike_run(arguments)
    if run.recording.choices is None or run.recording.bin_s is None:
        raise UserError("a recording with choices and a bin width in seconds", run.recording.name)
    found = measure(run, arguments)
    show(run, found, console)
    with styled():
        save(draw(run, found, arguments.random), arguments.out, "figure5", console)
        save(draw_predictions(run, found), arguments.out, "figure5_predictions", console)


if __name__ == "__main__":
    raise SystemExit(finish(main))
