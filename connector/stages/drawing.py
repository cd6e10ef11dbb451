"""The figures of a run. One more is one function here, under ``@report_figure``: it is drawn, written and in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from connector import figures
from connector.analysis.attractors import find_attractors, network_field
from connector.analysis.distances import connectivity_entries
from connector.dynamics import activation, leading_fixed_points, potentials
from connector.files import read_npz
from connector.numerics import even_rows
from connector.report import captions
from connector.runs.options import STAGES
from connector.stages.curves import read_learning_curves
from connector.stages.results import N_DRAWN, N_NEURONS, Results

DYNAMICS, CONNECTIVITY, DETERMINED = "Dynamics", "Connectivity", "What the data determine"
FIT, TRAINING = "Fit to the activity", "Training"
SECTIONS = (DYNAMICS, CONNECTIVITY, DETERMINED, FIT, TRAINING)
STAGE_TITLES = {
    "lrrnn": "low-rank RNN",
    "loadings": "flow of the loadings",
    "outputs": "flow of the output weights",
}
_N_STARTS = 7  # along each axis of the latent plane, from which fixed points are looked for
_N_CYCLE_STARTS = 4  # from which a limit cycle is looked for in fields of many neurons


class ReportFigure(NamedTuple):
    """A figure of every report to which it applies.

    Attributes:
        section: of the report, one of SECTIONS.
        draw: gives the caption and the figure, from arrays of the results.
        applies: whether a run has what is drawn.
    """

    section: str
    draw: Callable[[Results], tuple[str, Figure]]
    applies: Callable[[Results], bool]


# In the order in which they are drawn, and stand in their sections.
FIGURES: dict[str, ReportFigure] = {}


def report_figure(name: str, section: str, applies: Callable[[Results], bool] = lambda results: True) -> Callable:
    """Register a function of results that returns caption and Figure: figures/NAME.png, and in ``section`` of the report.

    Args:
        name: of the file, without its ending; section: one of SECTIONS; applies: whether a run has what is drawn.
    """
    if section not in SECTIONS or name in FIGURES:
        raise ValueError(f"figure {name!r}: a name of its own and one of the sections {SECTIONS}, not {section!r}")

    def register(draw: Callable[[Results], tuple[str, Figure]]) -> Callable:
        FIGURES[name] = ReportFigure(section, draw, applies)
        return draw

    return register


def figures_due(results: Results) -> dict[str, ReportFigure]:
    """The figures that apply to a run."""
    return {name: figure for name, figure in FIGURES.items() if figure.applies(results)}


@report_figure("flow_field", DYNAMICS)
def flow_field(results: Results) -> tuple[str, Figure]:
    z, u, _ = results.inputs.latents.samples()
    mean_input = None if u is None else u.mean(0)
    z = z[even_rows(len(z), N_DRAWN)]

    fields = {}
    if results.data.teacher is not None:
        fields["true"] = results.data.teacher.vector_field
    name, field = results.field_drawn(mean_input)
    fields[name] = field
    fields[f"projected, K = {N_NEURONS}, sigma = {results.sigma:g}"] = network_field(results.projected, mean_input)
    ring = results.data.teacher is not None and results.data.teacher.attractor_kind == "ring"
    # every point of a ring is one: where a search ends on it means nothing
    points = {} if ring else {name: _fixed_points(field, z) for name, field in fields.items()}
    cycles = {} if ring or u is not None else _cycles(results, fields)
    caption = captions.flow_field(rank=z.shape[1], cycles=bool(cycles), ring=ring, inputs=u is not None)
    test = results.inputs.fold.test
    shown = results.inputs.latents.trials(test[even_rows(len(test), 16)])
    trajectories = shown.z.masked_fill(~shown.mask[..., None], float("nan"))
    return caption, figures.flow_field(fields, z, trajectories=trajectories, fixed_points=points, cycles=cycles)


@report_figure("field_band", DETERMINED, lambda results: results.draws is not None)
def field_band(results: Results) -> tuple[str, Figure]:
    z, counts = results.inputs.latents.samples().z, results.attractor_counts
    points = z[:0] if counts is None else counts.points.points[counts.points.stable]
    caption = captions.field_band(
        rank=z.shape[1], inputs=results.inputs.latents.inputs is not None, counted=counts is not None
    )
    return caption, figures.uncertain_field(z[even_rows(len(z), N_DRAWN)], results.draws.vector_field, points)


def _cycles(results: Results, fields: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """The stable limit cycle of each field that has one, from where trials end: one turn (S, R)."""
    latents, trials = results.inputs.latents, results.inputs.fold.test
    trials = trials[even_rows(len(trials), _N_CYCLE_STARTS)]
    starts = latents.z[trials, latents.lengths[trials] - 1].double()
    found = {}
    for name, field in fields.items():
        orbit = find_attractors(field, starts, alpha=latents.alpha, settle=40.0).orbit if starts.shape[1] > 1 else None
        if orbit is not None:
            found[name] = orbit
    return found


def _fixed_points(field: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Fixed points of a field near the visited states z (T, R), and their eigenvalues."""
    starts = z[even_rows(len(z), _N_STARTS**2)].double()
    if z.shape[1] == 2:  # trials stay away from repellers: a grid over the plane finds them
        low, high = z.min(0).values.double(), z.max(0).values.double()
        steps = torch.linspace(0, 1, _N_STARTS, dtype=torch.float64)
        starts = torch.cat([starts[::3], low + (high - low) * torch.cartesian_prod(steps, steps)])
    points, eigenvalues = leading_fixed_points(field, starts, scale=float(z.double().std(0).mean()))
    inside = points.norm(dim=1) < 2.5 * float(z.abs().quantile(0.98)) * z.shape[1] ** 0.5
    return points[inside], eigenvalues[inside]


_MANY_PANELS = 24  # in which n at the larger sigma says nothing that takes as many again


@report_figure("loadings", CONNECTIVITY)
def loadings(results: Results) -> tuple[str, Figure]:
    populations, labels, certainty = {}, {}, {}
    if results.truth is not None:
        populations["true (this network)"] = (results.truth.loadings, results.truth.n)
    populations["inferred, sigma = 0"] = (results.network.loadings, results.network.n)
    if results.diagnosis is not None:
        certainty["inferred, sigma = 0"] = results.diagnosis.certainty
    found = results.network
    many = found.rank * found.loadings.stack().shape[1] > _MANY_PANELS
    if not many:
        drawn = results.drawn_at_sigma()
        populations[f"inferred, sigma = {results.sigma:g}"] = (drawn.loadings, drawn.n)
    if results.data.teacher is not None:
        labels = {name: results.data.teacher.components(loadings) for name, (loadings, _) in populations.items()}
        if all(int(label.max()) == 0 for label in labels.values()):
            labels = {}
    caption = captions.loadings(faded=bool(certainty), coloured=bool(labels), spread=not many)
    names = results.data.recording.input_names
    return caption, figures.loadings_scatter(
        populations, labels=labels or None, certainty=certainty or None, input_names=names
    )


@report_figure("conditional_mean", CONNECTIVITY, lambda results: results.data.teacher is not None)
def conditional_mean(results: Results) -> tuple[str, Figure]:
    nu = results.data.teacher.conditional_mean(results.network.loadings)
    found = results.diagnosis
    half_width = None if found is None else (found.high - found.low) / 2
    caption = captions.conditional_mean(bars=found is not None)
    return caption, figures.conditional_mean_fit(nu, results.network.n, half_width=half_width)


@report_figure("intervals", DETERMINED, lambda results: results.diagnosis is not None)
def intervals(results: Results) -> tuple[str, Figure]:
    found = results.diagnosis
    return captions.INTERVALS, figures.intervals(found.nu, found.low, found.high, level=found.level)


@report_figure("tails", CONNECTIVITY)
def tails(results: Results) -> tuple[str, Figure]:
    entries = {}
    if results.data.truth is not None:  # in any coordinates of the latents
        entries["true"] = connectivity_entries(results.data.truth)
    drawn = results.drawn_at_sigma()
    entries[f"inferred, sigma = {results.sigma:g}"] = connectivity_entries(drawn)
    return captions.tails(results.sigma), figures.tails(entries)


@report_figure("rates", FIT, lambda results: results.data.recording.kind == "rates")
def rates(results: Results) -> tuple[str, Figure]:
    trials = results.inputs.fold.test
    trials = trials[even_rows(len(trials), 4)]
    latents, loadings = results.inputs.latents.trials(trials), results.inputs.loadings
    fitted = activation(results.inputs.activation)(potentials(loadings, latents.z, latents.inputs))
    observed = results.data.recording.activity[trials]
    label = "rate (as recorded)" if results.data.teacher is None else "rate (pure number)"
    return captions.rates(results.inputs.activation), figures.rate_fit(
        observed,
        fitted,
        step=results.inputs.latents.alpha,
        lengths=latents.lengths,
        trials=range(len(trials)),
        trial_numbers=trials.tolist(),
        rate_label=label,
    )


@report_figure("psths", FIT, lambda results: results.responses_file.exists())
def psths(results: Results) -> tuple[str, Figure]:
    arrays = read_npz(results.responses_file)
    observed, model = (torch.from_numpy(arrays[k]) for k in ("observed", "model"))
    groups = list(map(str, arrays["groups"]))
    by = groups[0].split()[0] if len(groups) > 1 else None
    return captions.psths(inputs=results.data.recording.n_inputs > 0), figures.psths(
        torch.arange(observed.shape[1]) * float(arrays["step"]),
        observed,
        model,
        groups,
        neuron_names=results.data.recording.neuron_names,
        title="Responses, held-out trials" if by is None else f"Responses by {by}, held-out trials",
        time_unit="s" if results.data.recording.bin_s else "samples",
        # The trials of the clicks task begin with the stereo click; of others it is not known what happens then.
        origin="stimulus onset" if results.options.data.source == "rat" else "the start of the trial",
    )


@report_figure("latents", FIT, lambda results: results.data.recording.kind == "spikes")
def latents(results: Results) -> tuple[str, Figure]:
    recording = results.data.recording
    if recording.click_difference is not None:
        signed = recording.click_difference.double().nan_to_num()
        edges = torch.quantile(signed, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        groups, names = torch.bucketize(signed, edges), ["most left", "left", "right", "most right"]
        of = "the trials of each quarter of the click difference"
    elif recording.choices is not None:
        # a trial without a choice belongs to neither
        groups, names, of = recording.choices.nan_to_num(-1.0).long(), ["left", "right"], "the trials of each choice"
    else:
        groups, names, of = torch.zeros(recording.n_trials, dtype=torch.int64), ["all trials"], "all trials"
    step = recording.bin_s or results.inputs.latents.alpha
    return captions.latents(of), figures.latent_trajectories(
        results.inputs.latents.z,
        groups,
        names,
        step=step,
        time_unit="s" if recording.bin_s else "tau",
        lengths=recording.lengths,
    )


@report_figure("trained_network", DYNAMICS, lambda results: results.data.recording.trained is not None)
def trained_network(results: Results) -> tuple[str, Figure]:
    recording, fit, beside = results.data.recording, results.inputs, results.beside
    trained, test = recording.trained, int(fit.fold.test[0])
    points = [(of.network, of.fitted) for of in beside.points]
    outputs = None
    if trained.outputs is not None:
        end, sampled = int(recording.lengths[test]), results.task_outputs[0]
        targets = None if trained.targets is None else trained.targets[test, :end]
        outputs = trained.outputs[test, :end], sampled[:end], targets
    figure = figures.trained_network(
        (beside.part.drive, beside.part.matrix),
        fit.latents.rank,
        beside.rates,
        points,
        outputs,
        step=fit.latents.alpha,
    )
    return captions.trained_network(inputs=len(points), outputs=outputs is not None, trial=test), figure


@report_figure("losses", TRAINING)
def losses(results: Results) -> tuple[str, Figure]:
    curves, changes, levels, finished, with_bound = {}, {}, {}, results.store.stages(), False
    for stage in STAGES:
        kept = finished.get(stage, {}).get("metrics", {}).get(f"{stage}/val_loss")
        if kept is None:  # not trained; the curves that may lie there are of other options
            continue
        read = read_learning_curves(results.store.path / "logs" / f"{stage}.csv")
        series = {"training": read.get(f"{stage}/train_loss"), "validation": read.get(f"{stage}/val_loss")}
        series = {name: values for name, values in series.items() if values}
        name = STAGE_TITLES[stage]
        if series:
            curves[name] = series
        bound = read.get(f"{stage}/train_bound_nats")
        with_bound = with_bound or bool(bound)
        if bound and bound[0][0] > series["training"][0][0]:
            changes[name] = (bound[0][0], "the evidence bound joins the rollout in the training loss")
        # Better than every epoch: the start itself was kept.
        if "validation" in series and kept < min(series["validation"][1]):
            levels[name] = (kept, "validation loss of the start, which was kept")
    of_rates = results.data.recording.kind == "rates"
    units = dict.fromkeys(STAGE_TITLES.values(), "squared velocity of the flow")
    units[STAGE_TITLES["lrrnn"]] = "squared rate" if of_rates else "nats per time bin"
    caption = captions.losses(joined=bool(changes), bound=with_bound, kept=bool(levels))
    return caption, figures.losses(curves, changes=changes, levels=levels, units=units)
