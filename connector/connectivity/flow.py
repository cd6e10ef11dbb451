"""Continuous normalising flow trained by flow matching: draws from a density and evaluates it.

Time runs from the base density at t = 0 to the data at t = 1. A draw x0 of the base and a data point x1 are joined by
the straight path x_t = (1 - t) x0 + t x1, whose velocity x1 - x0 the network regresses on (x_t, t, context)
(Lipman et al. 2023, conditional flow matching). Its minimiser carries the base into the density of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from connector.connectivity.networks import NETWORKS, network_class
from connector.connectivity.student_t import draws, fit_student_t, log_density, quadrature
from connector.errors import UserError
from connector.files import check_module_state, read_saved, refusing_damage, write_saved
from connector.numerics import column_spread, covariance_root, moments, pieces
from connector.types import require_finite_points, require_whole

BASES = ("normal", "student_t")
STANDARDISATIONS = ("whiten", "scale", "none")
_FIXED_STEP = ("euler", "midpoint", "rk4", "heun3")
_METHODS = (*_FIXED_STEP, "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


def _identity(size: int) -> Tensor:
    """torch.eye, which on the device "meta" imports torch's compiler: as long as torch itself takes."""
    return torch.zeros(size, size).fill_diagonal_(1.0)


class Flow(nn.Module):
    """A density over R^D, optionally given a context in R^C.

    Args:
        dim: D.
        context_dim: C; 0 for a density without context.
        hidden_width, hidden_layers: of the velocity network.
        base: "normal", or "student_t" (elliptical, for heavy tails: a flow with a Lipschitz velocity cannot make
            them from a normal).
        dof: degrees of freedom of a Student-t base; None lets :meth:`fit_scaler` fit them by maximum likelihood.
        standardise: "whiten" (full covariance), "scale" (each column by itself) or "none"; how :meth:`fit_scaler`
            sets the affine map between data and the space in which the flow runs.
        precondition: give the velocity the part that normal data have, see
            :class:`connector.connectivity.networks.velocity.Velocity`.
        network: name of the velocity network, of :data:`connector.connectivity.networks.NETWORKS`.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_width: int = 64,
        hidden_layers: int = 2,
        base: str = "normal",
        dof: float | None = None,
        standardise: str = "whiten",
        precondition: bool = True,
        *,
        network: str = "mlp",
    ):
        super().__init__()
        for what, value, known in (
            ("a base", base, BASES),
            ("standardise", standardise, STANDARDISATIONS),
            ("a network", network, NETWORKS),
        ):
            if value not in known:
                raise UserError(f"{what} among {', '.join(known)}", repr(value))
        if dof is not None and not dof > 2:
            raise UserError("more than 2 degrees of freedom, so that the base has a variance", str(dof))
        self.dim, self.context_dim, self.base, self.standardise = dim, context_dim, base, standardise
        self.hidden_width, self.hidden_layers, self.fixed_dof, self.network = hidden_width, hidden_layers, dof, network
        self.velocity = network_class(network)(dim, context_dim, hidden_width, hidden_layers, precondition)
        self.register_buffer("location", torch.zeros(dim))
        self.register_buffer("scale", _identity(dim))  # x = location + standardised @ scale^T
        self.register_buffer("scale_inverse", _identity(dim))
        self.register_buffer("context_location", torch.zeros(context_dim))
        self.register_buffer("context_scale_inverse", _identity(context_dim))
        self.register_buffer("dof", torch.tensor(math.inf if base == "normal" else (dof or 5.0)))

    def arguments(self) -> dict:
        """Constructor arguments as plain values: with the state dict, all that is needed to rebuild the flow."""
        names = ("dim", "context_dim", "hidden_width", "hidden_layers", "base", "standardise", "network")
        others = {"dof": self.fixed_dof, "precondition": self.velocity.precondition}
        return {name: getattr(self, name) for name in names} | others

    def state(self) -> dict:
        """Plain values and tensors that :meth:`rebuild` makes the flow from."""
        return {"arguments": self.arguments(), "state": self.state_dict()}

    def save(self, path: str | Path) -> None:
        """Write plain values and tensors; :meth:`load` reads them without running code."""
        write_saved(self.state(), path)

    @classmethod
    def load(cls, path: str | Path, map_location: str = "cpu") -> Flow:
        """The flow that :meth:`save` wrote to ``path``; raises UserError for another kind of file, or a damaged one."""
        saved = read_saved(path, "a file written by Flow.save", map_location)
        with refusing_damage(Path(path), "a file written by Flow.save"):
            flow = cls.rebuild(saved)
            context = flow.context_location[None].expand(2, -1) if flow.context_dim else None
            generator = torch.Generator(flow.location.device).manual_seed(0)
            sample = flow.sample(None if flow.context_dim else 2, context=context, generator=generator)
            if not torch.isfinite(sample).all():
                raise ValueError("samples that are not finite")
        return flow

    @classmethod
    def rebuild(cls, saved: dict) -> Flow:
        """The flow from its :meth:`state`, in evaluation mode and in the dtype of the state.

        Raises:
            ValueError, TypeError, KeyError: a state that is not of the flow that the arguments describe.
        """
        arguments, state = saved["arguments"], saved["state"]
        if not 0 <= arguments["hidden_layers"] <= len(state):
            raise ValueError("the number of layers is not that of the parameters")
        with torch.device("meta"):  # takes no memory, however large the sizes named
            expected = cls(**arguments).state_dict()
        check_module_state(expected, state)
        flow = cls(**arguments).to(state["location"].dtype)
        flow.load_state_dict(state)
        return flow.eval()

    @torch.no_grad()
    def fit_scaler(self, x: Tensor, context: Tensor | None = None) -> Flow:
        """Set location and scale of the data (N, D) and of the context (N, C); returns the flow itself.

        With a Student-t base, location, scatter and degrees of freedom are those of the elliptical Student-t that is
        most likely for ``x``, so that single far points do not set the scale.
        """
        self._check(x, context)
        if self.base == "student_t":
            location, covariance, dof = fit_student_t(x, self.fixed_dof)
            self.dof.fill_(dof)
        else:
            location, covariance = moments(x.double())
        self._set_scaler(*self._scaler(location, covariance))
        if context is not None:
            location, scale = self._scaler(*moments(context.double()))
            self.context_location.copy_(location)
            self.context_scale_inverse.copy_(torch.linalg.inv(scale))
        return self

    @property
    def is_unscaled(self) -> bool:
        """Whether location and scale are still those of a new flow, 0 and the identity."""
        return not self.location.any() and torch.equal(self.scale, torch.eye(self.dim).to(self.scale))

    def _scaler(self, location: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Location (D,) and scale (D, D) that ``standardise`` asks for."""
        if self.standardise == "none":
            return torch.zeros_like(location), torch.eye(len(location)).to(location)
        whole = self.standardise == "whiten"
        return location, covariance_root(covariance) if whole else torch.diag(column_spread(covariance))

    def _set_scaler(self, location: Tensor, scale: Tensor) -> None:
        self.location.copy_(location)
        self.scale.copy_(scale)
        self.scale_inverse.copy_(torch.linalg.inv(scale))

    @torch.no_grad()
    def go_on_from(self, velocity: dict[str, Tensor], scale: Tensor) -> Flow:
        """Take the state of a velocity that was learned with another ``scale`` (D, D), of like data; returns the flow itself.

        A scale is known up to a rotation of the space in which the flow runs. The own one is turned until it is nearest to the other
        (orthogonal Procrustes problem), so that the velocity finds its axes again.
        """
        left, _, right = torch.linalg.svd(torch.linalg.solve(self.scale.double(), scale.to(self.scale).double()))
        self._set_scaler(self.location, self.scale.double() @ left @ right)
        self.velocity.load_state_dict(velocity)
        return self

    @torch.no_grad()
    def match_moments(self, x: Tensor, steps: int = 8, n_points: int = 8192) -> Flow:
        """Correct location and scale so that mean and covariance of the density are those of x (N, D); returns itself.

        A velocity that was stopped early has learned a shape, not every moment. What depends on the moments, as the
        drive of a large network does, then still agrees with the data. For a density without context.
        """
        self._check(x, None)
        mean, covariance = moments(x.double())
        own = self.sample(base=self.base_quadrature(n_points), steps=steps).double()
        own_mean, own_covariance = moments(own)
        turn = covariance_root(covariance) @ torch.linalg.inv(covariance_root(own_covariance))
        self._set_scaler(mean + turn @ (self.location.double() - own_mean), turn @ self.scale.double())
        return self

    def loss(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the velocity along straight paths that end in the data x (B, D); a scalar."""
        place, t, context, target = self.draw_paths(x, context, generator)
        return (self.velocity(place, t, context) - target).square().mean()

    def draw_paths(
        self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Places (B, D) and times (B,) on straight paths that end in the data x (B, D), the context there, and the
        velocities (B, D) to be learned; all standardised.

        Times are stratified: one in each of B equal cells of [0, 1], dealt to the points in random order.
        """
        self._check(x, context)
        x1, context = self._standardised(x, context)
        x0 = self.sample_base(len(x1), generator).to(x1)
        draw = {"generator": generator, "device": x0.device if generator is None else generator.device}
        cells = torch.randperm(len(x1), **draw)
        t = ((cells + torch.rand(len(x1), **draw)) / len(x1)).to(x1)
        return torch.lerp(x0, x1, t[:, None]), t, context, x1 - x0

    def sample_base(self, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(n_samples, D) draws of the base density, in standardised units."""
        device = self.location.device if generator is None else generator.device
        drawn = draws(
            n_samples, self.dim, float(self.dof), generator=generator, dtype=self.location.dtype, device=device
        )
        return drawn.to(self.location.device)

    def base_quadrature(self, n_points: int, seed: int = 0) -> Tensor:
        """(n_points, D) scrambled Sobol points carried to the base density, float64: averages over them converge much
        faster than over :meth:`sample_base`."""
        return quadrature(n_points, self.dim, float(self.dof), seed).to(self.location.device)

    def standardised(self, x: Tensor) -> Tensor:
        """Points x (N, D) of a density without context, in the space in which the flow runs."""
        return self._standardised(x, None)[0]

    def log_prob_base(self, x: Tensor) -> Tensor:
        """Log density of the base at standardised x (N, D): shape (N,)."""
        return log_density(x.square().sum(1), self.dim, self.dof.to(x.dtype))

    def log_prob_of_base(self, x: Tensor) -> Tensor:
        """Log density (N,) at x (N, D) of the base after location and scale: of a flow whose velocity is zero."""
        self._check(x, None)
        standardised, _ = self._standardised(x, None)
        return self.log_prob_base(standardised) + torch.linalg.slogdet(self.scale_inverse.to(x.dtype)).logabsdet

    def sample(
        self,
        n_samples: int | None = None,
        context: Tensor | None = None,
        *,
        steps: int = 8,
        method: str = "midpoint",
        generator: torch.Generator | None = None,
        base: Tensor | None = None,
        chunk_size: int = 65536,
    ) -> Tensor:
        """Draws (n_samples, D), or one for each row of ``context`` (n_samples, C); with gradients.

        Args:
            steps, method: fixed-step integration from t = 0 to 1 (euler, midpoint, rk4), or an adaptive method of
                torchdiffeq, for which ``steps`` is not used.
            base: (n_samples, D) points of the base density to carry over, instead of draws.
            chunk_size: integrate so many at a time; changes memory, not (for fixed steps) the draws.
        """
        if base is not None and n_samples is None and context is None:
            n_samples = len(base)
        if (context is None) == (n_samples is None):
            raise UserError("either a number of samples or one context row per sample", "both or none")
        if (context is None) != (self.context_dim == 0):
            raise UserError(
                f"{'a' if self.context_dim else 'no'} context for a flow of {self.context_dim} context columns",
                "none" if context is None else f"one of shape {tuple(context.shape)}",
            )
        require_whole(n_samples if context is None else len(context), 0, "n_samples")
        count = len(context) if context is not None else int(n_samples or 0)
        x = self.sample_base(count, generator) if base is None else base.to(self.location)
        if context is not None:
            self._check(x, context)
            _, context = self._standardised(x, context.to(x))
        ends = []
        for part, given in _chunks(x, context, chunk_size):

            def field(t: Tensor, y: Tensor, c: Tensor | None = given) -> Tensor:
                return self.velocity.learned(y, t, c) / self.velocity.scale(t)

            ends.append(self.integrate(field, part, 0, 1, method, steps))
        end = torch.cat(ends) if ends else x
        return self.location + end @ self.scale.T

    def log_prob(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        method: str = "dopri5",
        steps: int = 20,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        chunk_size: int = 16384,
    ) -> Tensor:
        """Log density (N,) at x (N, D), in nats per unit volume of x, with gradients.

        The instantaneous change of variables (Chen et al. 2018) with the exact divergence, integrated from t = 1 back
        to 0. Computes in the dtype of ``x``: pass float64 for tight tolerances.

        Args:
            method: "dopri5" and other adaptive methods of torchdiffeq heed ``rtol`` and ``atol``; "euler", "midpoint"
                and "rk4" take ``steps`` equal steps.
        """
        self._check(x, context)
        for value in (x,) if context is None else (x, context):
            require_finite_points(value, "points")
        x1, context = self._standardised(x if x.is_floating_point() else x.to(self.location), context)
        parts = []
        for part, given in _chunks(x1, context, chunk_size):

            def field(t: Tensor, state: tuple[Tensor, Tensor], c: Tensor | None = given) -> tuple[Tensor, ...]:
                scale = self.velocity.scale(t)
                return tuple(value / scale for value in self.velocity.learned_with_divergence(state[0], t, c))

            state = (part, part.new_zeros(len(part)))
            x0, divergence = self.integrate(field, state, 1, 0, method, steps, rtol, atol)
            parts.append(self.log_prob_base(x0) + divergence)
        log_scale = torch.linalg.slogdet(self.scale.to(x1.dtype)).logabsdet
        return (torch.cat(parts) if parts else x1.new_zeros(0)) - log_scale

    @torch.no_grad()
    def entropy(
        self,
        n_samples: int = 2000,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> tuple[float, float]:
        """Monte Carlo estimate of the differential entropy in nats, and its standard error.

        With ``context`` (N, C): the conditional entropy averaged over its rows, one draw for each.
        ``options`` go to :meth:`log_prob`.
        """
        draws = self.sample(None if context is not None else n_samples, context, generator=generator)
        values = -self.log_prob(draws.double(), context, **options)
        return float(values.mean()), float(values.std() / math.sqrt(len(values)))

    def integrate(
        self,
        field: Callable,
        state: Any,
        start: float,
        stop: float,
        method: str,
        steps: int,
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> Any:
        """Where a state, a tensor or a tuple of tensors, is carried by the field of (t, state) from one time to another."""
        if method not in _METHODS:
            raise UserError(f"a method among {', '.join(_METHODS)}", repr(method))
        require_whole(steps, 1, "steps")
        from torchdiffeq import odeint  # here: it imports half of scipy, and not every command draws

        first = state[0] if isinstance(state, tuple) else state
        t = torch.tensor([start, stop], dtype=first.dtype, device=first.device)
        if method in _FIXED_STEP:
            grid = torch.linspace(start, stop, steps + 1, dtype=first.dtype, device=first.device)
            path = odeint(field, state, t, method=method, options={"grid_constructor": lambda *_: grid})
        else:
            try:
                path = odeint(field, state, t, method=method, rtol=rtol, atol=atol)
            except AssertionError as error:  # the step underflows
                reason = f"points so far away that it takes none ({error})"
                raise UserError(f"points at which {method} takes steps", reason, "use method='rk4'") from error
        return tuple(p[-1] for p in path) if isinstance(state, tuple) else path[-1]

    def _standardised(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = (x - self.location.to(x.dtype)) @ self.scale_inverse.T.to(x.dtype)
        if context is not None:
            context = context.to(x.dtype)
            context = (context - self.context_location.to(x.dtype)) @ self.context_scale_inverse.T.to(x.dtype)
        return x, context

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise UserError(f"points of shape (number, {self.dim})", str(tuple(x.shape)))
        expected = None if self.context_dim == 0 else (len(x), self.context_dim)
        got = None if context is None else tuple(context.shape)
        if expected != got:
            raise UserError(f"a context of shape {expected}", str(got))


def _chunks(x: Tensor, context: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows of both, ``size`` at a time; nothing where there are none."""
    for rows in pieces(len(x), 1, size):
        yield x[rows], None if context is None else context[rows]
