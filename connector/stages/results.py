"""What a run ends with: measures of sampled networks, network.npz, figures and the report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cached_property
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import Tensor

from connector import figures
from connector.analysis import signs as watch
from connector.analysis.attractors import Attractors, attractors_kept, find_attractors, reference_attractors
from connector.analysis.cell_types import cell_type_test
from connector.analysis.distances import connectivity_entries, dissimilarity, distance_of_n, valente_dissimilarity
from connector.analysis.fields import drift_r2, drive_at, field_error, relative_field_error
from connector.data.modules import RecordingDataModule
from connector.dynamics import Network, activation, leading_fixed_points, potentials
from connector.errors import UserError
from connector.files import read_npz
from connector.lrrnn.handover import FittedDynamics
from connector.report.glossary import BASELINES
from connector.report.opening import Findings
from connector.runs.options import STAGES, Options
from connector.runs.store import RunStore
from connector.stages.curves import read_learning_curves

N_NEURONS = 1000
N_DRAWN = 20_000  # of the large network whose field is drawn
N_NETWORKS = 20  # in which the attractors are looked for
N_STATES_LARGE = 800  # at which the field of very many neurons is compared
_MAX_STATES = 8000
_N_STARTS = 7  # along each axis of the latent plane, from which fixed points are looked for
_N_CYCLE_STARTS = 4  # from which a limit cycle is looked for in fields of many neurons
_N_DRAWS = 10  # sampled networks whose field errors are averaged
_OF_DIAGNOSIS = ("connectivity/determined_modes", "connectivity/predicted_error")
_NEURONS_PER_COLUMN = 10  # below, a distribution of the loadings is mostly assumption
STAGE_TITLES = {
    "lrrnn": "low-rank RNN",
    "loadings": "flow of the loadings",
    "outputs": "flow of the output weights",
}
_NORMAL_95 = 1.96  # half a 95 % interval, in standard deviations


class Results:
    """The sampled networks of a run and what is measured of them.

    Args:
        options: of the run; store: its directory; data: its recording (with the teacher, where there is one).
    """

    def __init__(self, options: Options, store: RunStore, data: RecordingDataModule):
        self.options, self.store, self.data = options, store, data
        self.inputs: FittedDynamics = store.read_stage_inputs()
        self.distribution = store.read_connectivity()
        published = options.connectivity.outputs == "flow"
        self.sigma = options.connectivity.sigma
        seed = options.seed
        self._outputs = "flow" if published else "conditional_mean"
        self.network = self.distribution.sample(N_NEURONS, sigma=0.0, seed=seed, outputs=self._outputs)
        self.projected = self.distribution.sample(N_NEURONS, sigma=self.sigma, project=True, seed=seed)
        # The published ridge makes no statement about its error.
        has_posterior = options.connectivity.estimator != "ridge"
        self.diagnosis = self.distribution.diagnose(self.network.loadings) if has_posterior else None
        self.signs: list[str] = []
        self.reference: Attractors | None = None
        if data.teacher is not None and data.teacher.attractor_kind != "none":
            self.reference = reference_attractors(data.teacher)

    @cached_property
    def drawn(self) -> Network:
        """A large sampled network, sigma = 0."""
        return self.distribution.sample(N_DRAWN, sigma=0.0, seed=self.options.seed, outputs=self._outputs)

    @cached_property
    def truth(self) -> Network | None:
        """The true network of the recorded neurons, where it is known in the coordinates of the run's latents."""
        in_same_gauge = self.data.teacher is not None or self.data.recording.latents is not None
        return self.data.truth if in_same_gauge else None

    def held_out(self, n_states: int = _MAX_STATES) -> tuple[Tensor, Tensor | None, Tensor]:
        """States, inputs and drive of the test trials (``n_states`` of them at most, evenly spread).

        A simulated network's own drive, which is free of noise and of the stride; else what successive latents show.
        """
        z, u, y = self.inputs.latents.trials(self.inputs.fold.test).samples()
        keep = torch.linspace(0, len(z) - 1, min(n_states, len(z))).long()
        z, u = z[keep], None if u is None else u[keep]
        return z, u, y[keep] if self.data.teacher is None else self.data.truth.drive(z, u).to(y)

    def measures(self) -> dict[str, Callable[[], dict[str, float]]]:
        """What is measured -> the function that returns its metrics; a quantity that is not defined for this run is
        left out."""
        steps = {"vector field": self._field_errors, "projected network": self._of_projected}
        if self.distribution.outputs == "conditional_mean" and self.sigma > 0:
            steps["entropy"] = lambda: {"connectivity/entropy": self.distribution.entropy(n_samples=500)[0]}
        if self.data.teacher is not None:
            steps["distance to the truth"] = self._against_teacher
        elif self.truth is not None:
            steps["distance to the truth"] = self._against_file
        if self.reference is not None:
            steps["attractors"] = self._attractors
        steps["cell types"] = self._cell_types
        steps["signs of trouble"] = self._watch
        return steps

    def metrics(self) -> dict[str, float]:
        """All of :meth:`measures`."""
        return {key: value for measure in self.measures().values() for key, value in measure().items()}

    def _of_projected(self) -> dict[str, float]:
        held_out = self.held_out()
        found = {
            "dynamics/field_error_projected": field_error(self.projected, *held_out),
            "dynamics/drift_r2": float(drift_r2(self.projected, *held_out).min()),
            "connectivity/determined_modes": self.distribution.mean.determined_modes,
        }
        if self.diagnosis is not None:
            found["connectivity/predicted_error"] = self.diagnosis.predicted_error
        if self.distribution.shift is not None:
            shift = self.distribution.shift(self.network.loadings.stack().double())
            found["connectivity/output_shift"] = float(shift.square().mean().sqrt())
        return found

    def _cell_types(self) -> dict[str, float]:
        with contextlib.suppress(UserError):  # too few neurons for a test
            return {"connectivity/cell_types_p": cell_type_test(self.inputs.loadings, seed=self.options.seed).p_value}
        return {}

    def findings(self, metrics: Mapping[str, float]) -> Findings:
        """What the report's opening speaks of; ``metrics`` of the stages and of :meth:`measures`."""
        recording, fold = self.data.recording, self.inputs.fold
        baseline = other = None
        if recording.kind == "spikes" and "lrrnn/bits_per_spike" in metrics:
            # Without trial times the local baseline is the standard one, and there may be no other to score.
            other = next((name for name in BASELINES if f"lrrnn/bits_per_spike_{name}" in metrics), None)
            baseline = self._fitted_baseline()
        return Findings(
            kind=recording.kind,
            rank=self.inputs.latents.rank,
            n_neurons=recording.n_neurons,
            n_trials=recording.n_trials,
            n_test=len(fold.test),
            n_sampled=N_NEURONS,
            sigma=self.sigma,
            spread=self.spread,
            given="lrrnn/val_loss" not in metrics,
            metrics=metrics,
            explained=self._explained(fold.test) if recording.kind == "rates" else None,
            baseline=baseline,
            other_baseline=other,
            baseline_missing=baseline not in (None, self.options.lrrnn.baseline),
            n_networks=N_NETWORKS,
            unprojected_error=self._error_as_drawn(),
            drawn_from_teacher=self._error_drawn_from_teacher(),
            diagnosis=self.diagnosis,
            b_different=self._input_weights_different(),
            odd=self._only_odd(),
            has_inputs=recording.n_inputs > 0,
        )

    @cached_property
    def spread(self) -> float:
        """Root-mean-square deviation of nu from its mean over the sampled neurons, all dimensions together."""
        n = self.distribution.conditional_mean(self.network.loadings)
        return float((n - n.mean(0)).square().mean().sqrt())

    def _fitted_baseline(self) -> str:
        return str(read_npz(self.store.path / "responses.npz")["baseline"])

    def _explained(self, trials: Tensor) -> float:
        """Share of the variance of the recorded rates on these trials that latents and loadings explain."""
        latents, recorded = self.inputs.latents.trials(trials), self.data.recording.activity[trials].double()
        fitted = activation(self.inputs.activation)(potentials(self.inputs.loadings, latents.z, latents.inputs))
        recorded, fitted = recorded[latents.mask], fitted.double()[latents.mask]
        return 1 - float((recorded - fitted).square().sum() / (recorded - recorded.mean(0)).square().sum())

    def _input_weights_different(self) -> float | None:
        """Share of the input weights whose 95 % interval, as the low-rank RNN's fit leaves it, excludes zero."""
        b, covariance = self.inputs.loadings.b, self.inputs.loadings_covariance
        if b is None or covariance is None:
            return None
        rank = self.inputs.latents.rank
        sd = covariance.diagonal(dim1=1, dim2=2)[:, rank : rank + b.shape[1]].sqrt()
        return float((b.abs() > _NORMAL_95 * sd).double().mean())

    def _only_odd(self) -> bool:
        """Whether a neuron (m, n) acts like (-m, -n), so that an even part of nu does not act."""
        loadings = self.inputs.loadings
        return activation(self.inputs.activation).odd and loadings.b is None and loadings.d is None

    def _drawn_at_sigma(self, seed: int | None = None) -> Network:
        return self.distribution.sample(N_NEURONS, self.sigma, seed=self.options.seed if seed is None else seed)

    def _error_as_drawn(self) -> float:
        """Mean field error of sampled networks that are not projected, at held-out states."""
        held_out = self.held_out(N_STATES_LARGE)
        return fmean(field_error(self._drawn_at_sigma(1000 + i), *held_out) for i in range(_N_DRAWS))

    def _error_drawn_from_teacher(self) -> float | None:
        """The same for networks of the teacher, drawn by chance as sampled ones are, against its mean field."""
        if self.data.teacher is None:
            return None
        z = self.held_out(N_STATES_LARGE)[0].double()
        networks = (
            self.data.teacher.sample(N_NEURONS, torch.Generator().manual_seed(1000 + i)) for i in range(_N_DRAWS)
        )
        return fmean(field_error(network, z, None, self.data.teacher.drive(z)) for network in networks)

    def cautions(self) -> list[str]:
        """What a reader should know before believing the rest; plain sentences."""
        rows = self.inputs.loadings.stack()
        said = []
        if len(rows) < _NEURONS_PER_COLUMN * rows.shape[1]:
            said.append(
                f"Caution: {len(rows)} recorded neurons are few for a distribution over {rows.shape[1]} loadings each "
                f"(ask for {_NEURONS_PER_COLUMN * rows.shape[1]} or more). The distribution of the loadings, and so every "
                "sampled network, is then mostly assumption; no test for cell types is made."
            )
        cautions = () if self.diagnosis is None else self.diagnosis.cautions
        return [*said, *(f"Caution: {caution}" for caution in cautions), *(f"Warning: {sign}." for sign in self.signs)]

    def _watch(self) -> dict[str, float]:
        """Shares of :mod:`connector.analysis.signs`."""
        inputs, train = self.inputs, self.inputs.latents.trials(self.inputs.fold.train)
        z, u, _ = self.held_out(N_STATES_LARGE)
        return {
            watch.SATURATED: watch.saturated_share(inputs.loadings, z, inputs.activation, u),
            watch.LEFT_REGION: watch.left_share(
                self.projected, train.samples()[0], inputs.latents.trials(inputs.fold.test)
            ),
            watch.OUTSIDE_SUPPORT: watch.outside_share(self.network.loadings.stack(), inputs.loadings.stack()),
        }

    def note_signs(self, metrics: Mapping[str, float]) -> None:
        """Find the sentences to warn with, from the metrics of the stages and of :meth:`measures`."""
        explained = self._explained(self.inputs.fold.validation) if self.data.recording.kind == "rates" else None
        self.signs = watch.sentences(metrics, finite=watch.is_finite(self.network), explained=explained)

    def _field_errors(self) -> dict[str, float]:
        """Field error of the infinite network at held-out states, against the recorded network's drive; with a teacher
        also against its mean field, from which the recorded network's finite size keeps both."""
        z, u, y = self.held_out(N_STATES_LARGE)
        large = self.drawn if self.distribution.outputs == "flow" else self.distribution.quadrature()
        z, y = z.double(), y.double()
        drive = drive_at(large, z, u)
        error = relative_field_error(drive, z, y)
        of_drive = float(((y - z).square().sum(1).mean() / y.square().sum(1).mean()).sqrt())
        found = {"dynamics/field_error": error, "dynamics/drive_error": error * of_drive}
        if self.data.teacher is not None:
            mean_field = self.data.teacher.drive(z)
            found["dynamics/field_error_mean_field"] = relative_field_error(drive, z, mean_field)
            found["dynamics/field_error_finite_size"] = field_error(self.data.truth, z, u, mean_field)
        return found

    def _against_teacher(self) -> dict[str, float]:
        teacher = self.data.teacher
        distance = dissimilarity(teacher, self.network, seed=self.options.seed)
        return {
            "connectivity/sinkhorn": distance.sinkhorn,
            "connectivity/sinkhorn_floor": distance.floor,
            "connectivity/squared_error": distance.squared_error,
            "connectivity/dissimilarity": distance.total,
            "connectivity/valente_dissimilarity": valente_dissimilarity(self.data.truth, self.network),
        }

    def _against_file(self) -> dict[str, float]:
        """What a file with latents, MBD and N allows: its n are one draw about a nu that it does not tell."""
        error, explained = distance_of_n(self.truth.n, self.distribution.conditional_mean(self.truth.loadings))
        return {
            "connectivity/squared_error_of_n": error,
            "connectivity/r2_of_n": explained,
            "connectivity/valente_dissimilarity": valente_dissimilarity(self.truth, self.network),
        }

    def _attractors(self) -> dict[str, float]:
        kept = kept_unprojected = 0
        for i in range(N_NETWORKS):
            net = self.distribution.sample(N_NEURONS, self.sigma, seed=1000 + i)
            kept_unprojected += attractors_kept(net, self.reference)
            kept += attractors_kept(self.distribution.project(net), self.reference)
        return {
            "dynamics/attractors_kept": kept / N_NETWORKS,
            "dynamics/attractors_kept_unprojected": kept_unprojected / N_NETWORKS,
        }

    # -- figures -----------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Callable[[], tuple[str, Figure]]]:
        """name -> the function that draws it, returning caption and figure."""
        drawn = {"flow_field": self._flow_field, "loadings": self._loadings}
        if self.data.teacher is not None:
            drawn["conditional_mean"] = self._conditional_mean
        if self.diagnosis is not None:
            drawn["intervals"] = self._intervals
        drawn["tails"] = self._tails
        if self.data.recording.kind == "rates":
            drawn["rates"] = self._rates
        else:
            if (self.store.path / "responses.npz").exists():
                drawn["psths"] = self._psths
            drawn["latents"] = self._latents
        drawn["losses"] = self._losses
        return drawn

    def _conditional_mean(self) -> tuple[str, Figure]:
        nu = self.data.teacher.conditional_mean(self.network.loadings)
        caption, half_width = (
            "True and inferred mean output weight of each sampled neuron; on the diagonal is right.",
            None,
        )
        if self.diagnosis is not None:
            caption, half_width = f"{caption} Bars: 95 % intervals.", (self.diagnosis.high - self.diagnosis.low) / 2
        return caption, figures.conditional_mean_fit(nu, self.network.n, half_width=half_width)

    def _intervals(self) -> tuple[str, Figure]:
        found = self.diagnosis
        caption = (
            "What the data determine: the mean output weight nu of each sampled neuron with its interval, neurons in the "
            "order of the estimate. Where the band is as wide as the whole range, the curve shows the prior."
        )
        return caption, figures.intervals(found.nu, found.low, found.high, level=found.level)

    def _flow_field(self) -> tuple[str, Figure]:
        z, u, _ = self.inputs.latents.samples()
        mean_input = None if u is None else u.mean(0)
        z = z[torch.linspace(0, len(z) - 1, min(N_DRAWN, len(z))).long()]

        def field_of(net: Network):
            net, constant = net.double(), None if mean_input is None else mean_input.double()
            return lambda at: net.vector_field(at, None if constant is None else constant.expand(len(at), -1))

        fields = {}
        if self.data.teacher is not None:
            fields["true"] = self.data.teacher.vector_field
        fields[f"sampled, K = {N_DRAWN:,}, sigma = 0"] = field_of(self.drawn)
        fields[f"projected, K = {N_NEURONS:,}, sigma = {self.sigma:g}"] = field_of(self.projected)
        ring = self.data.teacher is not None and self.data.teacher.attractor_kind == "ring"
        # every point of a ring is one: where a search ends on it means nothing
        points = {} if ring else {name: _fixed_points(field, z) for name, field in fields.items()}
        caption = (
            "The vector field on the region that the latents visit (the darker, the faster), with example trajectories "
            "of held-out trials; hatched where no trial came, so that what the field is there is extrapolation."
        )
        cycles = {} if ring or u is not None else self._cycles(fields)
        if cycles:
            caption += (
                " Thick closed curves: stable limit cycles of the field without noise, dotted where most of a cycle lies where no "
                "trial came."
            )
        if ring:
            caption += " States on a ring hardly move; which of its points rest exactly is chance in a finite network."
        if u is not None:
            caption += (
                " Inputs are held at their mean; steps in the trajectories are their effect. Fixed points that differ "
                "between panels, or lie beyond what trials of this length reach, are no findings."
            )
        test = self.inputs.fold.test
        shown = self.inputs.latents.trials(test[torch.linspace(0, len(test) - 1, min(16, len(test))).long()])
        trajectories = shown.z.masked_fill(~shown.mask[..., None], float("nan"))
        return caption, figures.flow_field(fields, z, trajectories=trajectories, fixed_points=points, cycles=cycles)

    def _cycles(self, fields: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
        """The stable limit cycle of each field that has one, from where trials end: one turn (S, R)."""
        latents, trials = self.inputs.latents, self.inputs.fold.test
        trials = trials[torch.linspace(0, len(trials) - 1, min(_N_CYCLE_STARTS, len(trials))).long()]
        starts = latents.z[trials, latents.lengths[trials] - 1].double()
        found = {}
        for name, field in fields.items():
            orbit = (
                find_attractors(field, starts, alpha=latents.alpha, settle=40.0).orbit if starts.shape[1] > 1 else None
            )
            if orbit is not None:
                found[name] = orbit
        return found

    def _loadings(self) -> tuple[str, Figure]:
        populations, labels, certainty = {}, {}, {}
        if self.truth is not None:
            populations["true (this network)"] = (self.truth.loadings, self.truth.n)
        populations["inferred, sigma = 0"] = (self.network.loadings, self.network.n)
        if self.diagnosis is not None:
            certainty["inferred, sigma = 0"] = self.diagnosis.certainty
        drawn = self._drawn_at_sigma()
        populations[f"inferred, sigma = {self.sigma:g}"] = (drawn.loadings, drawn.n)
        if self.data.teacher is not None:
            labels = {name: self.data.teacher.components(loadings) for name, (loadings, _) in populations.items()}
            if all(int(label.max()) == 0 for label in labels.values()):
                labels = {}
        caption = (
            "Output weights n against loadings. At sigma = 0 each n is the mean that the dynamics ask for; the spread "
            "at the larger sigma is chosen, not inferred: dynamics do not determine it. "
        )
        if certainty:
            caption += "At sigma = 0 neurons whose mean the data leave open are faded. "
        if labels:
            caption += "Colours: the population of the teacher that a neuron most likely belongs to. "
        caption += "At the margins the densities, each to its own height."
        names = self.data.recording.input_names
        return caption, figures.loadings_scatter(
            populations, labels=labels or None, certainty=certainty or None, input_names=names
        )

    def _tails(self) -> tuple[str, Figure]:
        entries = {}
        if self.data.truth is not None:  # in any coordinates of the latents
            entries["true"] = connectivity_entries(self.data.truth)
        drawn = self._drawn_at_sigma()
        entries[f"inferred, sigma = {self.sigma:g}"] = connectivity_entries(drawn)
        caption = (
            "How often connection weights of a given size occur: the share of all pairs of neurons whose weight m_i·n_j is "
            "larger than that. Its far end rests on few neurons"
        )
        caption += ", and at sigma above 0 on the stated spread." if self.sigma > 0 else "."
        return caption, figures.tails(entries)

    def _rates(self) -> tuple[str, Figure]:
        trials = self.inputs.fold.test[torch.linspace(0, len(self.inputs.fold.test) - 1, 4).long()]
        latents, loadings = self.inputs.latents.trials(trials), self.inputs.loadings
        fitted = activation(self.inputs.activation)(potentials(loadings, latents.z, latents.inputs))
        observed = self.data.recording.activity[trials]
        caption = (
            f"Rates {self.inputs.activation}(m·z + …) of example neurons on held-out trials, recorded and read out of the "
            "inferred latents."
        )
        label = "rate (as recorded)" if self.data.teacher is None else "rate (pure number)"
        return caption, figures.rate_fit(
            observed,
            fitted,
            step=self.inputs.latents.alpha,
            lengths=latents.lengths,
            trials=range(len(trials)),
            trial_numbers=(trials + 1).tolist(),
            rate_label=label,
        )

    def _psths(self) -> tuple[str, Figure]:
        arrays = read_npz(self.store.path / "responses.npz")
        observed, model = (torch.from_numpy(arrays[k]) for k in ("observed", "model"))
        groups = list(map(str, arrays["groups"]))
        source = "the inputs alone" if self.data.recording.n_inputs else "each trial's inferred start alone"
        caption = (
            "Mean responses of the most modulated neurons on held-out trials, recorded and predicted from "
            f"{source} (average over noisy rollouts)."
        )
        by = groups[0].split()[0] if len(groups) > 1 else None
        return caption, figures.psths(
            torch.arange(observed.shape[1]) * float(arrays["step"]),
            observed,
            model,
            groups,
            neuron_names=self.data.recording.neuron_names,
            title="Responses, held-out trials" if by is None else f"Responses by {by}, held-out trials",
            time_unit="s" if self.data.recording.bin_s else "samples",
            # The trials of the clicks task begin with the stereo click; of others it is not known what happens then.
            origin="stimulus onset" if self.options.data.source == "rat" else "the start of the trial",
        )

    def _latents(self) -> tuple[str, Figure]:
        recording = self.data.recording
        if recording.click_difference is not None:
            signed = recording.click_difference.double().nan_to_num()
            edges = torch.quantile(signed, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
            groups, names = torch.bucketize(signed, edges), ["most left", "left", "right", "most right"]
            of = "the trials of each quarter of the click difference"
        elif recording.choices is not None:
            # a trial without a choice belongs to neither
            groups, names, of = (
                recording.choices.nan_to_num(-1.0).long(),
                ["left", "right"],
                "the trials of each choice",
            )
        else:
            groups, names, of = torch.zeros(recording.n_trials, dtype=torch.int64), ["all trials"], "all trials"
        step = recording.bin_s or self.inputs.latents.alpha
        return f"Latent trajectories, mean over {of}; bands: standard error of the mean.", figures.latent_trajectories(
            self.inputs.latents.z,
            groups,
            names,
            step=step,
            time_unit="s" if recording.bin_s else "tau",
            lengths=recording.lengths,
        )

    def _losses(self) -> tuple[str, Figure]:
        curves, changes, levels, finished, with_bound = {}, {}, {}, self.store.stages(), False
        for stage in STAGES:
            kept = finished.get(stage, {}).get("metrics", {}).get(f"{stage}/val_loss")
            if kept is None:  # not trained; the curves that may lie there are of other options
                continue
            read = read_learning_curves(self.store.path / "logs" / f"{stage}.csv")
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
        of_rates = self.data.recording.kind == "rates"
        units = dict.fromkeys(STAGE_TITLES.values(), "squared velocity of the flow")
        units[STAGE_TITLES["lrrnn"]] = "squared rate" if of_rates else "nats per time bin"
        caption = (
            "Learning curves of each stage's last training. A flow is a velocity field that carries random numbers to "
            "neurons; its loss is the mean squared difference between its velocity and straight paths from the ones to the "
            "others, whose lowest possible value is not zero: what counts is that it has stopped falling."
        )
        if changes:
            caption += (
                " Training starts with the likelihood of the input-driven rollout alone; where the evidence bound joins "
                "it, the training loss becomes another quantity, and its jump there is no loss of quality. The "
                "validation loss holds both throughout."
            )
        if with_bound:
            caption += " At first the weight of the bound's divergence grows, which raises the training loss by itself."
        if levels:
            caption += " Where no epoch improved on the start, the start was kept, and training changed nothing."
        return caption, figures.losses(curves, changes=changes, levels=levels, units=units)


def _fixed_points(field: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Fixed points of a field near the visited states z (T, R), and their eigenvalues."""
    starts = z[torch.linspace(0, len(z) - 1, min(_N_STARTS**2, len(z))).long()].double()
    if z.shape[1] == 2:  # trials stay away from repellers: a grid over the plane finds them
        low, high = z.min(0).values.double(), z.max(0).values.double()
        steps = torch.linspace(0, 1, _N_STARTS, dtype=torch.float64)
        starts = torch.cat([starts[::3], low + (high - low) * torch.cartesian_prod(steps, steps)])
    points, eigenvalues = leading_fixed_points(field, starts)
    inside = points.norm(dim=1) < 2.5 * float(z.abs().quantile(0.98)) * z.shape[1] ** 0.5
    return points[inside], eigenvalues[inside]
