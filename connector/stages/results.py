"""The sampled networks of a run and what is measured of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from connector.analysis import signs
from connector.analysis.attractor_probabilities import AttractorCounts, count_attractors
from connector.analysis.attractors import (
    Attractors,
    attractors_kept,
    default_starts,
    find_attractors,
    network_field,
    reference_attractors,
)
from connector.analysis.cell_types import cell_type_test
from connector.analysis.distances import dissimilarity, distance_of_n, valente_dissimilarity
from connector.analysis.explained import rates_explained
from connector.analysis.fields import drift_r2, drive_at, drive_gain, field_error, relative_field_error
from connector.analysis.model_checks import checks_of
from connector.analysis.separated_groups import detectable_separation, separated_groups
from connector.analysis.trained_network import BesideNetwork, outputs_of, task_measures
from connector.connectivity.nu.draws import Draws
from connector.data.modules import RecordingDataModule
from connector.dynamics import Network, activation
from connector.errors import UserError
from connector.files import read_npz
from connector.lrrnn.field_posterior import ENOUGH_DRAWS
from connector.lrrnn.handover import FittedDynamics
from connector.numerics import even_rows, moments, symmetric_root
from connector.report import causes, cautions
from connector.report.glossary import BASELINES
from connector.report.opening import Findings
from connector.runs.options import Options
from connector.runs.store import RunStore
from connector.stages.lrrnn import origin_distance
from connector.types import Recording

N_NEURONS = 1000
N_DRAWN = 20_000  # of the large network whose field is drawn, where n is of a flow
N_QUADRATURE_DRAWN = 4096  # where it is not
N_NETWORKS = 20  # in which the attractors are looked for
N_POSTERIOR = 100  # draws of nu and of the vector field
N_STATES_LARGE = 800  # at which the field of very many neurons is compared
_MAX_STATES = 8000
_FAR = 0.25  # error of a vector field beyond which no attractor is told from it
_GAIN_DRAWS = 8  # of nu, from which the spread of its gain is taken
_N_DRAWS = 10  # sampled networks whose field errors are averaged
_NORMAL_95 = 1.96  # half a 95 % interval, in standard deviations


def beside_network(store: RunStore, recording: Recording) -> BesideNetwork | None:
    """The fit beside the trained network whose activity is recorded; None for another recording, or without a fit."""
    if recording.trained is None or not store.latents_file.exists():
        return None
    return BesideNetwork(recording, store.read_stage_inputs())


def measures_of_fit(store: RunStore, recording: Recording, beside: BesideNetwork | None = None) -> dict[str, float]:
    """How well latents and loadings explain held-out rates, whatever stages follow; spikes are scored by their stage.

    Args:
        beside: of :func:`beside_network`.
    """
    if recording.kind != "rates" or not store.latents_file.exists():
        return {}
    inputs, known = store.read_stage_inputs() if beside is None else beside.fit, recording.loadings
    given = recording.latents is not None and known is not None and torch.equal(inputs.loadings.m, known.m.double())
    found = rates_explained(inputs, recording.activity, given=given) | checks_of(recording, inputs)
    if beside is not None and inputs.n is not None:
        found |= beside.measures()
    return found | ({"lrrnn/origin_distance": origin_distance(inputs)} if given and known.has_bias else {})


class Results:
    """The sampled networks of a run and what is measured of them.

    Args:
        options: of the run; store: its directory; data: its recording (with the teacher, where there is one).
        beside: of :func:`beside_network`, where a measure has used it already.
    """

    def __init__(
        self, options: Options, store: RunStore, data: RecordingDataModule, beside: BesideNetwork | None = None
    ):
        self.options, self.store, self.data = options, store, data
        self.beside = beside_network(store, data.recording) if beside is None else beside
        self.inputs: FittedDynamics = store.read_stage_inputs() if self.beside is None else self.beside.fit
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
        self._at_sigma: dict[int, Network] = {}
        self.signs: list[str] = []
        self.cause_named = False
        self.reference: Attractors | None = None
        if data.teacher is not None and data.teacher.attractor_kind != "none":
            self.reference = reference_attractors(data.teacher)

    @cached_property
    def large(self) -> Network:
        """A network that stands for infinitely many neurons; where n is of a flow, a large sampled one."""
        if self.distribution.outputs == "flow":
            return self.distribution.sample(N_DRAWN, sigma=0.0, seed=self.options.seed, outputs=self._outputs)
        return self.distribution.quadrature()

    def field_drawn(self, u: Tensor | None) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Name and vector field, at a constant input (U,), of :attr:`large`, of so few of its neurons as a picture needs."""
        if self.distribution.outputs == "flow":
            return f"sampled, K = {N_DRAWN}, sigma = 0", network_field(self.large, u)
        # Points of a quadrature fill space evenly from the first on.
        few = {k: v[:N_QUADRATURE_DRAWN] for k, v in vars(self.large).items() if isinstance(v, Tensor)}
        return "inferred, K → ∞", network_field(replace(self.large, **few), u)

    @cached_property
    def truth(self) -> Network | None:
        """The true network of the recorded neurons, where it is known in the coordinates of the run's latents."""
        in_same_gauge = self.data.teacher is not None or self.data.recording.latents is not None
        return self.data.truth if in_same_gauge else None

    @cached_property
    def draws(self) -> Draws | None:
        """Draws from the posterior of nu and of the vector field, where the estimate has one."""
        with contextlib.suppress(UserError):
            return self.distribution.posterior(N_POSTERIOR, self.options.seed)
        return None

    @cached_property
    def task_outputs(self) -> Tensor:
        """(test, time, O) of the projected network, where the recording is of a trained one with a readout."""
        return outputs_of(self.projected, self.data.recording.trained, self.inputs)

    @cached_property
    def attractor_counts(self) -> AttractorCounts | None:
        """Attractors in the draws, inputs at zero, where states visit the region that they are looked for in; None where too
        few draws of the dynamics are independent for a probability."""
        z, field = self.inputs.latents.trials(self.inputs.fold.train).samples().z, self.inputs.field
        if self.draws is None or z.shape[1] > 3 or (field is not None and float(field.effective) < ENOUGH_DRAWS):
            return None
        # Where states are known as they are, a field that is far from how they move has no attractors of theirs; nor has, where
        # the dynamics themselves were not sampled, one no closer to them than a field of zero.
        error = self._of_field["dynamics/field_error"]
        far = (self.inputs.readings is None and error > _FAR) or (field is None and error >= 1)
        if far or self.inputs.rollouts:
            return None
        return count_attractors(self.draws, z)

    def held_out(self, n_states: int = _MAX_STATES) -> tuple[Tensor, Tensor | None, Tensor]:
        """States, inputs and drive of the test trials (``n_states`` of them at most, evenly spread).

        A simulated network's own drive, which is free of noise and of the stride; else what successive latents show.
        """
        z, u, y = self.inputs.latents.trials(self.inputs.fold.test).samples()
        keep = even_rows(len(z), n_states)
        z, u = z[keep], None if u is None else u[keep]
        return z, u, y[keep] if self.data.teacher is None else self.data.truth.drive(z, u).to(y)

    def measures(self) -> dict[str, Callable[[], dict[str, float]]]:
        """What is measured -> the function that returns its metrics; a quantity that is not defined for this run is
        left out."""
        steps = {"vector field": lambda: dict(self._of_field), "projected network": self._of_projected}
        if self.distribution.outputs == "conditional_mean" and self.sigma > 0:
            steps["entropy"] = lambda: {"connectivity/entropy": self.distribution.entropy(n_samples=500)[0]}
        if self.data.teacher is not None:
            steps["distance to the truth"] = self._against_teacher
        elif self.truth is not None:
            steps["distance to the truth"] = self._against_file
        if self.reference is not None:
            steps["attractors"] = self._attractors
        trained = self.data.recording.trained
        if trained is not None and trained.outputs is not None:
            steps["task"] = lambda: task_measures(self.task_outputs, self.data.recording, self.inputs)
        if self.attractor_counts is not None:
            steps["attractors of draws"] = self.attractor_counts.metrics
        steps["cell types"] = self._cell_types
        steps["signs of trouble"] = self._signs
        return steps

    def metrics(self) -> dict[str, float]:
        """All of :meth:`measures`."""
        return {key: value for measure in self.measures().values() for key, value in measure().items()}

    def _of_projected(self) -> dict[str, float]:
        held_out, (z, _, y) = self.held_out(), self.inputs.latents.trials(self.inputs.fold.train).samples()
        mean = (y.double() - z.double()).mean(0)
        found = {
            "dynamics/field_error_projected": field_error(self.projected, *held_out),
            "dynamics/drift_r2": float(drift_r2(self.projected, *held_out, mean).min()),
            "connectivity/determined_modes": self.distribution.mean.determined_modes,
        }
        if self.diagnosis is not None:
            found["connectivity/predicted_error"] = self.diagnosis.predicted_error
        if self.distribution.shift is not None:
            shift = self.distribution.shift(self.network.loadings.stack().double())
            found["connectivity/output_shift"] = float(shift.square().mean().sqrt())
        return found

    def _cell_types(self) -> dict[str, float]:
        loadings, seed, found = self.inputs.loadings, self.options.seed, {}
        with contextlib.suppress(UserError):  # too few neurons for a test
            found["connectivity/cell_types_p"] = cell_type_test(loadings, seed=seed).p_value
        with contextlib.suppress(UserError):
            groups = separated_groups(loadings, self.inputs.loadings_covariance, seed=seed)
            found |= {"connectivity/groups_p": groups.p_value, "connectivity/groups": groups.n_groups}
            if groups.stability is not None:
                found["connectivity/groups_stability"] = groups.stability
            if (least := detectable_separation(len(groups.labels))) is not None:
                found["connectivity/groups_detectable"] = least
        return found

    def findings(self, metrics: Mapping[str, float]) -> Findings:
        """What the report's opening speaks of; ``metrics`` of the stages and of :meth:`measures`."""
        recording, fold = self.data.recording, self.inputs.fold
        baseline = other = None
        if recording.kind == "spikes" and "lrrnn/bits_per_spike" in metrics:
            # Without trial times the local baseline is the standard one, and there may be no other to score.
            other = next((name for name in BASELINES if f"lrrnn/bits_per_spike_{name}" in metrics), None)
            baseline = str(read_npz(self.responses_file)["baseline"])
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
            baseline=baseline,
            other_baseline=other,
            baseline_missing=baseline not in (None, self.options.lrrnn.baseline),
            n_networks=N_NETWORKS,
            unprojected_error=self._error_as_drawn(),
            drawn_from_teacher=self._error_drawn_from_teacher(),
            diagnosis=self.diagnosis,
            b_different=self._input_weights_different(),
            odd=self._only_odd(),
            activation=self.inputs.activation,
            truth_settles_on=None if self.reference is None else str(self.reference),
            settles_on=self._settles_on(),
            attractors=None if self.attractor_counts is None else self.attractor_counts.probabilities,
            has_inputs=recording.n_inputs > 0,
            input_kind=self.inputs.latents.input_kind,
            scale="none" if self.inputs.scale is None else self.inputs.scale.kind,
        )

    @cached_property
    def spread(self) -> float:
        """Root-mean-square deviation of nu from its mean over the sampled neurons, all dimensions together."""
        n = self.distribution.conditional_mean(self.network.loadings)
        return float((n - n.mean(0)).square().mean().sqrt())

    @property
    def responses_file(self) -> Path:
        """Of a fit to spikes."""
        return self.store.path / "responses.npz"

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

    def _settles_on(self) -> str | None:
        """What the projected network settles on, in words; None where inputs drive it."""
        if self.inputs.latents.inputs is not None:
            return None
        if self.reference is not None:
            return str(find_attractors(self.projected, self.reference.starts))
        centre, covariance = moments(self.inputs.latents.trials(self.inputs.fold.train).samples().z.double())
        away = default_starts(len(centre)) @ symmetric_root(covariance)
        return str(find_attractors(self.projected, centre + away, extent=float(away.norm(dim=1).max())))

    def drawn_at_sigma(self, seed: int | None = None) -> Network:
        """A sampled network that is not projected, of each seed drawn once."""
        seed = self.options.seed if seed is None else seed
        if seed not in self._at_sigma:
            self._at_sigma[seed] = self.distribution.sample(N_NEURONS, self.sigma, seed=seed)
        return self._at_sigma[seed]

    def _error_as_drawn(self) -> float:
        """Mean field error of sampled networks that are not projected, at held-out states."""
        held_out = self.held_out(N_STATES_LARGE)
        return fmean(field_error(self.drawn_at_sigma(1000 + i), *held_out) for i in range(_N_DRAWS))

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
        return cautions.cautions(*rows.shape, self.diagnosis, self.signs, cause_named=self.cause_named)

    def _signs(self) -> dict[str, float]:
        """Shares of :mod:`connector.analysis.signs`, and the gain of nu at the recorded loadings."""
        inputs, train = self.inputs, self.inputs.latents.trials(self.inputs.fold.train)
        loadings = inputs.loadings.map(Tensor.double)
        of_nu = Network(
            loadings.m,
            self.distribution.conditional_mean(loadings),
            loadings.b,
            loadings.d,
            alpha=inputs.latents.alpha,
            activation=inputs.activation,
        )
        drawn = () if self.draws is None else [self.draws[i](loadings.stack()) for i in range(_GAIN_DRAWS)]
        gain, gain_sd = drive_gain(of_nu, train, drawn)
        z, u, _ = self.held_out(N_STATES_LARGE)
        test = inputs.latents.trials(inputs.fold.test)
        return {
            cautions.SATURATED: signs.saturated_share(inputs.loadings, z, inputs.activation, u),
            cautions.LEFT_REGION: signs.left_share(self.projected, train.samples()[0], test),
            cautions.DRIVE_GAIN: gain,
            cautions.DRIVE_GAIN_SD: gain_sd,
            cautions.OUTSIDE_SUPPORT: signs.outside_share(self.network.loadings.stack(), inputs.loadings.stack()),
        }

    def note_signs(self, metrics: Mapping[str, float]) -> None:
        """Find the sentences to warn with, from the metrics of the stages and of :meth:`measures`."""
        self.signs = cautions.of_signs(metrics, finite=signs.is_finite(self.network))
        self.cause_named = causes.named(metrics)

    @cached_property
    def _of_field(self) -> dict[str, float]:
        """Field error of the infinite network at held-out states, against the recorded network's drive; with a teacher
        also against its mean field, from which the recorded network's finite size keeps both."""
        z, u, y = self.held_out(N_STATES_LARGE)
        z, y = z.double(), y.double()
        drive = drive_at(self.large, z, u)
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
        drawn = [self.drawn_at_sigma(1000 + i) for i in range(N_NETWORKS)]
        kept = [
            fmean(attractors_kept(net, self.reference) for net in nets)
            for nets in (self.distribution.project_all(drawn), drawn)
        ]
        return {"dynamics/attractors_kept": kept[0], "dynamics/attractors_kept_unprojected": kept[1]}
