"""The distribution of connectivity: draws networks of any size, evaluates their density, restores the observed drive.

p(m, b, d, n) = p(m, b, d) p(n | m, b, d). The loadings follow a flow. Dynamics determine p(n | m, b, d) through its
mean nu only; maximum entropy makes it normal about nu with a spread sigma that is stated, not inferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from connector.connectivity.diagnosis import Diagnosis, diagnose
from connector.connectivity.drive_matching import DriveTilt, OutputShift
from connector.connectivity.flow import Flow
from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.mean import ConditionalMean, from_state
from connector.connectivity.projection import project, project_alike
from connector.dynamics import ACTIVATIONS, Network
from connector.errors import UserError, require
from connector.files import read_saved, refusing_damage, write_saved
from connector.types import Loadings, States, require_finite_points, require_whole

OUTPUTS = ("conditional_mean", "flow")
_SAVED = "a file written by ConnectivityDistribution.save"
_MOST_STEPS = 10_000
_MOST_ROUNDS = 200  # of rejection; a ceiling is such that a third of the draws is kept


class ConnectivityDistribution(nn.Module):
    """Networks whose loadings follow ``loadings_flow`` and whose n has the conditional mean ``mean`` (plus ``shift``).

    Args:
        loadings_flow: density of stacked loadings (m, b, d), R + U + bias columns.
        mean: nu = E[n | m, b, d].
        alpha, activation: of the networks drawn.
        tilt: weights of the loadings under which the mean drive is the recorded neurons' (:mod:`connector.connectivity.drive_matching`); None:
            the loadings follow their flow as it is.
        shift: what is added to nu in the mean of n for sigma > 0, so that the infinite network has the recorded drive
            (same module); None: nothing.
        outputs_flow: flow of n given the stacked loadings, trained on n with spread ``sigma`` around nu; or None.
        sigma: the spread of n around nu to which log_prob and entropy refer; where there is an ``outputs_flow``, the
            one at which it was trained (0 where it was trained on conditional means, as the published recipe does).
        outputs: where n comes from for sigma > 0: "conditional_mean", n ~ N(nu, sigma^2 I); "flow", through the flow.
        reference: (z, u, y): states (T, R), inputs (T, U) or None and drive (T, R) that a projected network shall
            meet. None: no projection.
        projection_regularizer: lambda of the projection, see :meth:`project`.
        flow_steps: midpoint steps of the samplers.
    """

    def __init__(
        self,
        loadings_flow: Flow,
        mean: ConditionalMean,
        *,
        alpha: float,
        activation: str,
        tilt: DriveTilt | None = None,
        shift: OutputShift | None = None,
        outputs_flow: Flow | None = None,
        sigma: float = 1.0,
        outputs: str = "conditional_mean",
        reference: tuple[Tensor, Tensor | None, Tensor] | None = None,
        projection_regularizer: float = 1e-5,
        flow_steps: int = 8,
    ):
        super().__init__()
        self.loadings_flow, self.tilt, self.mean = loadings_flow, tilt, mean
        self.shift, self.outputs_flow = shift, outputs_flow
        self.sigma, self.outputs = float(sigma), self._checked_outputs(outputs)
        self.alpha, self.activation = float(alpha), activation
        self.run_seed = 0  # of the run that it is read from, for :meth:`diagnose`
        self.projection_regularizer, self.flow_steps = float(projection_regularizer), int(flow_steps)
        columns, of_n = sum(self._layout), outputs_flow
        sizes = (self.rank, columns) if of_n is None else (of_n.dim, of_n.context_dim)
        for what, value, right in (
            (f"a loadings flow of {columns} columns, as the mean has", loadings_flow.dim, loadings_flow.dim == columns),
            (f"an outputs flow of {self.rank} columns given {columns}", sizes, sizes == (self.rank, columns)),
            ("sigma of 0 or more", self.sigma, 0 <= self.sigma < math.inf),
            ("alpha in (0, 1]", self.alpha, 0 < self.alpha <= 1),
            ("a projection_regularizer greater than 0", projection_regularizer, 0 < projection_regularizer < math.inf),
            (f"an activation among {', '.join(ACTIVATIONS)}", activation, activation in ACTIVATIONS),
            (f"from 1 to {_MOST_STEPS} steps of the flow", self.flow_steps, 1 <= self.flow_steps <= _MOST_STEPS),
        ):
            if not right:
                raise UserError(what, str(value))
        for name, value in zip("zuy", reference or (None, None, None)):
            self.register_buffer(f"reference_{name}", None if value is None else value.detach().double().clone())

    @property
    def rank(self) -> int:
        return self.mean.rank

    @property
    def _layout(self) -> tuple[int, int, bool]:
        return self.mean.rank, self.mean.n_inputs, self.mean.has_bias

    @property
    def summary(self) -> dict:
        """Settings and results of the estimate of nu, as plain values."""
        return self.mean.summary

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n_neurons: int = 1000,
        sigma: float = 0.0,
        project: bool = False,
        seed: int = 0,
        outputs: str | None = None,
        posterior: bool = False,
        even_part: bool = False,
    ) -> Network:
        """Sample a network of ``n_neurons``, float64. A seed gives one network, with the same loadings at any sigma.

        Args:
            sigma: standard deviation of each component of n around its mean, nu and the ``shift``. At 0, n = nu(loading)
                exactly.
            project: restore the observed drive, see :meth:`project`.
            outputs: overrides where n comes from: "conditional_mean", or "flow" (also at sigma 0, where the flow was
                trained without spread).
            posterior: n about a draw of nu from its posterior instead of nu, another draw for each seed; a projected network
                has the drive of that draw. Networks of many seeds show what the data leave open.
            even_part: with ``posterior`` and ``project``, add an even part to nu where only its odd part acts on the intact network,
                see :meth:`posterior`. The projection keeps the drive of the intact network.

        Raises:
            UserError: no neurons; a negative sigma, or one below that at which the flow of n was trained; an estimate of
                nu without draws.
        """
        require_whole(n_neurons, 1, "n_neurons")
        require_whole(seed, -(2**63), "seed")
        if not 0 <= sigma < math.inf:
            raise UserError("sigma of 0 or more", str(sigma))
        require(not even_part or (posterior and project), "even_part with posterior=True and project=True", "without")
        if outputs is None:
            outputs = self.outputs if sigma > 0 else "conditional_mean"
        generator = torch.Generator(device=self.loadings_flow.location.device).manual_seed(seed)
        rows, nu = self._draw_loadings(n_neurons, generator)
        draw = None
        if posterior:
            require(outputs == "conditional_mean", "outputs 'conditional_mean' for a draw of nu", repr(outputs))
            draw = self.posterior(1, seed, even_part)
            nu = draw[0](rows)
        if self._checked_outputs(outputs) == "conditional_mean":
            n, spread = nu if sigma == 0 else self._shifted(nu, rows), sigma
        else:
            if sigma < self.sigma:
                raise UserError(
                    f"sigma of at least {self.sigma:g}, at which the flow of n was trained",
                    f"{sigma:g}",
                    "draw with outputs='conditional_mean'",
                )
            context = rows.to(self.outputs_flow.location.dtype)
            n = self.outputs_flow.sample(context=context, steps=self.flow_steps, generator=generator).double()
            spread = math.sqrt(sigma**2 - self.sigma**2)
        if spread > 0:
            n = n + spread * torch.randn(n.shape, generator=generator, dtype=n.dtype, device=n.device)
        loadings = self._unstack(rows)
        net = Network(loadings.m, n, loadings.b, loadings.d, alpha=self.alpha, activation=self.activation)
        if not project:
            return net
        return self.project(net) if draw is None else self._project_on(net, draw)

    @torch.no_grad()
    def posterior(self, n: int, seed: int = 0, even_part: bool = False) -> Draws:
        """Draw nu n times from its posterior. Each draw is a function of the loadings and has its own drive.

        ``draws = run.connectivity.posterior(100)``; ``draws(rows)`` is nu (n, K, R) at stacked loadings (K, R + U + bias),
        ``draws.vector_field(z)`` (n, T, R).

        Args:
            even_part: with tanh, no bias and no input only the odd part of nu acts, and draws are odd. True: each gets an even
                part besides, as large as its odd part in mean square. Activity says nothing about it, so its size is
                an assumption. It shows if neurons are silenced but not their mirror images. Where loadings of both signs are not
                equally frequent it acts on the intact network as well, unless that is projected.

        Raises:
            UserError: an estimate without draws: of another estimator, or of an older version.
        """
        return Draws(self.mean, n, seed, even_part)

    def _draw_loadings(self, n_neurons: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Stacked loadings (K, P) and their nu (K, R), float64; with a tilt by rejection of draws of the flow."""
        if self.tilt is None:
            rows = self.loadings_flow.sample(n_neurons, steps=self.flow_steps, generator=generator).double()
            return rows, self.mean(rows)
        kept, missing, rounds = [], n_neurons, 0
        while missing > 0:
            rounds += 1
            if rounds > _MOST_ROUNDS:
                raise UserError(
                    "a tilt that keeps draws of the flow", f"{n_neurons - missing} kept in {_MOST_ROUNDS} rounds"
                )
            count = int(1.1 * missing * math.exp(self.tilt.log_ceiling)) + 16
            rows = self.loadings_flow.sample(count, steps=self.flow_steps, generator=generator).double()
            nu = self.mean(rows)
            level = torch.rand(count, generator=generator, dtype=torch.float64, device=rows.device).log()
            keep = level < self.tilt.log_weight(rows, nu) - self.tilt.log_ceiling
            kept.append((rows[keep][:missing], nu[keep][:missing]))
            missing -= len(kept[-1][0])
        return torch.cat([rows for rows, _ in kept]), torch.cat([nu for _, nu in kept])

    def _shifted(self, nu: Tensor, rows: Tensor) -> Tensor:
        return nu if self.shift is None else nu + self.shift(rows.to(nu.dtype))

    @torch.no_grad()
    def conditional_mean(self, loadings: Loadings | Tensor) -> Tensor:
        """nu (K, R) at loadings, given as such or stacked (m, b, d) (K, R + U + bias); without the ``shift``."""
        return self.mean(_stacked(loadings))

    @torch.no_grad()
    def conditional_variance(self, loadings: Loadings | Tensor) -> Tensor:
        """Posterior variance of nu (K, R): what the data leave open about the conditional mean itself."""
        return self.mean.variance(_stacked(loadings))

    @torch.no_grad()
    def diagnose(
        self,
        loadings: Loadings | Tensor | None = None,
        *,
        level: float = 0.95,
        n_neurons: int = 1000,
        seed: int | None = None,
        errors: Tensor | None = None,
    ) -> Diagnosis:
        """What the data determine about nu, at given loadings or at ``n_neurons`` drawn from their flow.

        ``print("\\n".join(run.connectivity.diagnose().sentences()))`` says it in plain words, as the run's report does.

        Args:
            seed: of the loadings drawn; None: the run's, as in its report (0 for a distribution that is of no run).
            errors: (K, P, P) covariance of the error of each given loading, as recorded neurons have it
                (``run.stage_inputs.loadings_covariance``): intervals are then of nu at the true loadings.
        """
        if loadings is None:
            require_whole(n_neurons, 1, "n_neurons")
            seed = self.run_seed if seed is None else seed
            generator = torch.Generator(device=self.loadings_flow.location.device).manual_seed(seed)
            rows, _ = self._draw_loadings(n_neurons, generator)
        else:
            rows = _stacked(loadings)
        return diagnose(self.mean, rows, level, errors)

    @torch.no_grad()
    def quadrature(self, n_points: int = 32768, seed: int = 0) -> Network:
        """A network that stands for infinitely many neurons: loadings at quasi-random points of their flow, n its mean
        at sigma > 0.

        Its field scatters far less about the mean field of the distribution than that of as many random neurons. With a
        tilt, n carries the weight of each point besides.
        """
        require_whole(n_points, 1, "n_points")
        rows = self.loadings_flow.sample(
            base=self.loadings_flow.base_quadrature(n_points, seed), steps=self.flow_steps
        ).double()
        loadings, nu = self._unstack(rows), self.mean.quick(rows)
        n = self._shifted(nu, rows)
        if self.tilt is not None:
            n = n * self.tilt.log_weight(rows, nu).exp()[:, None]
        return Network(loadings.m, n, loadings.b, loadings.d, alpha=self.alpha, activation=self.activation)

    @torch.no_grad()
    def project(self, net: Network) -> Network:
        """The network with the smallest change of n that restores the observed drive at the reference states, see
        :func:`connector.connectivity.projection.project`; lambda is ``projection_regularizer``."""
        return project(net, self._reference([net]), self.projection_regularizer)

    @torch.no_grad()
    def project_all(self, nets: Sequence[Network]) -> list[Network]:
        """:meth:`project` of networks that were sampled from this distribution, sooner than one by one."""
        return project_alike(nets, self._reference(nets), self.projection_regularizer)

    def _reference(self, nets: Sequence[Network]) -> States:
        if self.reference_z is None:
            raise UserError(
                "reference states to project on", "a distribution built without", "pass reference=(z, u, y)"
            )
        for net in nets:
            self._check_network(net)
        return States(self.reference_z, self.reference_u, self.reference_y)

    def _project_on(self, net: Network, draw: Draws) -> Network:
        """The network with the drive of a draw at the reference states."""
        require(self.reference_z is not None, "reference states to project on", "a distribution built without")
        z, u = self.reference_z, self.reference_u
        return project(net, States(z, u, draw.drive(z, u)[0]), self.projection_regularizer)

    # -- density ------------------------------------------------------------------------------------------------------

    def log_prob(self, net: Network, sigma: float | None = None, outputs: str | None = None, **options: Any) -> Tensor:
        """log p(m, b, d, n) of each neuron, (K,), in nats; differentiable.

        Args:
            sigma: spread of n around its mean; default: the distribution's own.
            outputs: density of n: "conditional_mean", N(mean, sigma^2 I); "flow", the flow of n, at its own sigma only.
                Default: as the networks are sampled.
            options: of the integrator, see :meth:`connector.connectivity.flow.Flow.log_prob`.

        Raises:
            UserError: sigma 0, for which n has no density; loadings that do not fit.
        """
        self._check_network(net)
        net = net.double()
        require_finite_points(torch.cat([net.loadings.stack(), net.n], dim=1), "loadings and n of a network")
        outputs, sigma = self._density_of(outputs, sigma)
        rows = net.loadings.stack()
        density, nu = self.loadings_flow.log_prob(rows, **options), self.mean(rows)
        if self.tilt is not None:
            density = density + self.tilt.log_weight(rows, nu)
        if outputs == "flow":
            return density + self.outputs_flow.log_prob(net.n, rows, **options)
        squares = (net.n - self._shifted(nu, rows)).square().sum(1)
        return density - 0.5 * squares / sigma**2 - 0.5 * self.rank * math.log(2 * math.pi * sigma**2)

    def entropy(
        self, n_samples: int = 2000, sigma: float | None = None, seed: int = 0, outputs: str | None = None
    ) -> tuple[float, float]:
        """Differential entropy of (m, b, d, n) of one neuron in nats, by Monte Carlo, and its standard error."""
        outputs, sigma = self._density_of(outputs, sigma)
        require_whole(n_samples, 2, "n_samples")
        generator = torch.Generator(device=self.loadings_flow.location.device).manual_seed(seed)
        value, error = self._entropy_of_loadings(n_samples, generator)
        if outputs == "conditional_mean":
            return value + 0.5 * self.rank * math.log(2 * math.pi * math.e * sigma**2), error
        rows = self._draw_loadings(n_samples, generator)[0].to(self.outputs_flow.location.dtype).detach()
        of_n, error_n = self.outputs_flow.entropy(context=rows, generator=generator)
        return value + of_n, math.hypot(error, error_n)

    def _entropy_of_loadings(self, n_samples: int, generator: torch.Generator) -> tuple[float, float]:
        if self.tilt is None:
            return self.loadings_flow.entropy(n_samples, generator=generator)
        with torch.no_grad():
            rows, nu = self._draw_loadings(n_samples, generator)
            surprise = -(self.loadings_flow.log_prob(rows) + self.tilt.log_weight(rows, nu))
        return float(surprise.mean()), float(surprise.std() / n_samples**0.5)

    def _density_of(self, outputs: str | None, sigma: float | None) -> tuple[str, float]:
        outputs = self._checked_outputs(self.outputs if outputs is None else outputs)
        if outputs == "flow" and sigma is not None and sigma != self.sigma:
            raise UserError(f"sigma {self.sigma:g}, at which the flow of n was trained", f"{sigma:g}")
        sigma = self.sigma if sigma is None else float(sigma)
        if not sigma > 0:
            raise UserError(
                "sigma above 0 for a density of n",
                f"sigma {sigma:g}, at which n is a function of the loadings",
                "pass sigma=, the spread of n around its conditional mean",
            )
        return outputs, sigma

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write plain values and tensors, which :meth:`load` reads without running code."""
        names = ("alpha", "activation", "sigma", "outputs", "projection_regularizer", "flow_steps")
        saved: dict[str, Any] = {"arguments": {name: getattr(self, name) for name in names}}
        for name in ("loadings_flow", "mean", "tilt", "shift", "outputs_flow"):
            part = getattr(self, name)
            saved[name] = None if part is None else part.state()
        z, u, y = self.reference_z, self.reference_u, self.reference_y
        write_saved(saved | {"reference": None if z is None else [z, u, y]}, path)

    @classmethod
    def load(cls, path: str | Path, map_location: str = "cpu") -> ConnectivityDistribution:
        """The distribution that :meth:`save` wrote to ``path``; raises UserError for another or a damaged file."""
        saved = read_saved(path, _SAVED, map_location)
        if not isinstance(saved, dict) or not {"loadings_flow", "mean", "arguments"} <= set(saved):
            raise UserError(_SAVED, str(path))
        with refusing_damage(Path(path), _SAVED):
            parts: dict[str, Any] = {"tilt": DriveTilt, "shift": OutputShift, "outputs_flow": Flow}
            loaded = cls(
                Flow.rebuild(saved["loadings_flow"]),
                from_state(saved["mean"]),
                reference=None if saved["reference"] is None else States(*saved["reference"]),
                **{name: kind.rebuild(saved[name]) for name, kind in parts.items() if saved.get(name) is not None},
                **saved["arguments"],
            )
            loaded.eval().requires_grad_(False)._check_sampling()
        return loaded

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_sampling(self) -> None:
        """Draw a few neurons: parameters that do not fit each other fail here. Raises ValueError where n is not finite."""
        net = self.sample(3, sigma=max(self.sigma, 1.0), project=self.reference_z is not None)
        if not all(bool(torch.isfinite(x).all()) for x in (net.m, net.n)):
            raise ValueError("networks drawn are not finite")

    def _unstack(self, rows: Tensor) -> Loadings:
        return Loadings.unstack(rows, *self._layout)

    def _checked_outputs(self, outputs: str) -> str:
        if outputs not in OUTPUTS:
            raise UserError(f"outputs among {', '.join(OUTPUTS)}", repr(outputs))
        if outputs == "flow" and self.outputs_flow is None:
            raise UserError("a flow of n for outputs 'flow'", "a distribution built without", "pass outputs_flow=")
        return outputs

    def _check_network(self, net: Network) -> None:
        if not isinstance(net, Network):
            raise UserError("a Network", type(net).__name__, "as Network(m, n, b, d), or of sample()")
        if net.loadings.layout != self._layout:
            names = "rank {}, {} inputs, bias {}"
            raise UserError(f"a network of {names.format(*self._layout)}", names.format(*net.loadings.layout))


def _stacked(loadings: Loadings | Tensor) -> Tensor:
    rows = loadings.stack() if isinstance(loadings, Loadings) else loadings
    if not isinstance(rows, Tensor):
        raise UserError("Loadings, or a tensor of them stacked (m, b, d)", type(rows).__name__)
    require_finite_points(rows, "loadings")
    return rows if rows.is_floating_point() else rows.double()
