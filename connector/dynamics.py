"""Equation (1): a low-rank network as a dynamical system on its latent state.

    z[t+1] = z[t] + alpha * ( -z[t] + (1/K) sum_i n_i phi(m_i.z[t] + b_i.u[t] + d_i) )

Time is counted in Euler steps; one step is ``alpha`` time constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from connector.errors import UserError
from connector.numerics import least_squares
from connector.types import Loadings, require_finite_points, require_points, require_whole


@dataclass(frozen=True)
class Activation:
    """A neuron's nonlinearity phi with its derivative, inverse and open range.

    Attributes:
        function, derivative, inverse: elementwise; ``inverse`` expects values inside the open range.
        low, high: the open range of phi.
        odd: phi(-h) = -phi(h), so that the even part of n cannot be seen without a bias or an input.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float
    high: float
    odd: bool = False

    def __call__(self, h: Tensor) -> Tensor:
        return self.function(h)


def _tanh(h: Tensor) -> Tensor:
    """tanh(h) = 2 sigmoid(2 h) - 1, to the rounding of 1: half the time of torch.tanh, which gradients still take."""
    return torch.tanh(h) if h.requires_grad else (2 * h).sigmoid_().mul_(2).sub_(1)


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("tanh", _tanh, lambda h: 1 - _tanh(h) ** 2, torch.atanh, -1.0, 1.0, odd=True),
        # phi^-1 of relu is defined on active neurons only; silent ones are left at the threshold.
        Activation("relu", torch.relu, lambda h: (h > 0).to(h.dtype), torch.relu, 0.0, float("inf")),
        Activation(
            "softplus",
            torch.nn.functional.softplus,
            torch.sigmoid,
            lambda r: r + torch.log(-torch.expm1(-r)),
            0.0,
            float("inf"),
        ),
        Activation(
            "sigmoid",
            torch.sigmoid,
            lambda h: torch.sigmoid(h) * torch.sigmoid(-h),
            lambda r: torch.log(r) - torch.log1p(-r),
            0.0,
            1.0,
        ),
    )
}


def activation(name: str) -> Activation:
    """The nonlinearity of that name; raises UserError for an unknown one."""
    if name not in ACTIVATIONS:
        raise UserError(f"an activation among {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]


def value_and_slope(phi: Activation, h: Tensor) -> tuple[Tensor, Tensor]:
    """phi(h) and phi'(h); the slope is taken from the value where that saves a transcendental."""
    if phi.name == "softplus":
        rest = torch.sigmoid(-h)
        # -log sigmoid(-h) to rounding; where that would underflow the value is h itself
        return torch.maximum(-rest.clamp_min(1e-30).log(), h), 1 - rest
    value = phi(h)
    if phi.name == "tanh":
        return value, 1 - value * value
    if phi.name == "sigmoid":
        return value, value * (1 - value)
    return value, phi.derivative(h)


def potentials(loadings: Loadings, z: Tensor, u: Tensor | None = None) -> Tensor:
    """h_i = m_i.z + b_i.u + d_i for states z (..., R) and inputs u (..., U): shape (..., K)."""
    h = z @ loadings.m.T
    if loadings.b is not None and u is not None:
        h = h + u @ loadings.b.T
    if loadings.d is not None:
        h = h + loadings.d
    return h


def simulate(
    step: Callable[[Tensor, Tensor | None], Tensor], z0: Tensor, steps: int, u: Tensor | None = None
) -> Tensor:
    """Iterate ``step`` from ``z0`` (..., R); ``u`` (..., steps - 1 or more, U) acts from sample t to t + 1.

    Returns:
        (..., steps, R): the states from z0 on, ``steps`` of them.
    """
    states = [z0]
    for t in range(steps - 1):
        states.append(step(states[-1], None if u is None else u[..., t, :]))
    return torch.stack(states, dim=-2)


_SLOW = 1e-5  # speed at which a relaxation leaves the rest of the way to Newton's method, units of the states' scale per tau
_CONVERGED = 1e-10  # Newton step below which a fixed point is found, in units of the states' scale


_MOST_ROWS = 4096  # of states, at which a field is asked for at once where its derivatives are taken


def _solution(matrices: Tensor, right: Tensor) -> Tensor:
    """x (P, R) of matrices (P, R, R) x = right (P, R), the smallest one where a matrix is singular."""
    found = torch.linalg.solve_ex(matrices, right)[0]
    failed = ~torch.isfinite(found).all(1)
    if failed.any():
        found[failed] = least_squares(matrices[failed], right[failed, :, None])[..., 0]
    return found


def leading_fixed_points(
    field: Callable[[Tensor], Tensor],
    starts: Tensor,
    relax_steps: int = 400,
    step_size: float = 0.2,
    newton_steps: int = 20,
    tolerance: float = 1e-6,
    merge_distance: float = 0.05,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Fixed points of a vector field that a relaxation or Newton's method reaches from ``starts``.

    Args:
        field: (P, R) -> (P, R), dz/dt in units of 1 / tau.
        starts: (P, R) initial conditions; both the starts and where they flow to are polished by Newton steps.
        relax_steps, step_size: Euler relaxation along the flow.
        tolerance: largest |field| at an accepted point, in units of ``scale``.
        merge_distance: points nearer than this are one point, in units of ``scale``.
        scale: size of the states, a third to a half of the region that they visit.

    Returns:
        points (F, R), sorted by descending stability, and the eigenvalues of their Jacobians (F, R), complex,
        units 1 / tau.
    """
    if not isinstance(starts, Tensor) or starts.ndim != 2 or starts.numel() == 0:
        got = tuple(starts.shape) if isinstance(starts, Tensor) else type(starts).__name__
        raise UserError("starts, a tensor of shape (number, R) with one point or more", str(got))
    starts = starts.double()
    require_finite_points(starts, "starts")
    relaxed, moving = starts.clone(), torch.arange(len(starts), device=starts.device)
    for _ in range(relax_steps):
        flow = field(relaxed[moving])
        relaxed[moving] += step_size * flow
        moving = moving[flow.norm(dim=1) >= _SLOW * scale]
        if len(moving) == 0:
            break
    z = torch.cat([relaxed, starts])
    rank = z.shape[1]
    eye = torch.eye(rank, dtype=z.dtype, device=z.device)

    def jacobians(at: Tensor) -> Tensor:
        h, found = 1e-5 * scale, []
        for along in eye.split(max(1, _MOST_ROWS // max(1, len(at)))):
            around = torch.cat([at + h * along[:, None], at - h * along[:, None]])  # (2 directions, P, R)
            ahead, behind = field(around.flatten(0, 1)).unflatten(0, around.shape[:2]).chunk(2)
            found.append((ahead - behind) / (2 * h))
        return torch.cat(found).permute(1, 2, 0)

    reach, moving = 3 * starts.abs().max() + scale, torch.arange(len(z), device=z.device)
    for _ in range(newton_steps):
        at = z[moving]
        move = _solution(jacobians(at), -field(at))
        length = move.norm(dim=1, keepdim=True)
        z[moving] = at + move * torch.clamp(0.5 * scale / length.clamp_min(1e-300), max=1.0)
        moving = moving[length[:, 0] > _CONVERGED * scale]
        if len(moving) == 0:
            break
    good = torch.isfinite(z).all(1) & (field(z).norm(dim=1) < tolerance * scale) & (z.norm(dim=1) < reach)
    points: list[Tensor] = []
    for candidate in z[good]:
        if all((candidate - p).norm() > merge_distance * scale for p in points):
            points.append(candidate)
    if not points:
        return z.new_zeros(0, rank), torch.zeros(0, rank, dtype=torch.complex128)
    found = torch.stack(points)
    eigenvalues = torch.linalg.eigvals(jacobians(found))
    order = eigenvalues.real.max(dim=1).values.argsort()
    return found[order], eigenvalues[order]


@dataclass(frozen=True)
class Network:
    """A low-rank RNN of K neurons (equation 1).

    Attributes:
        m: (K, R) loadings; n: (K, R) output weights; b: (K, U) input weights or None; d: (K,) biases or None.
        alpha: Euler step dt / tau.
        activation: name of phi.
    """

    m: Tensor
    n: Tensor
    b: Tensor | None = None
    d: Tensor | None = None
    alpha: float = 0.1
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.n.shape != self.m.shape:
            raise UserError(f"n of the shape of m, {tuple(self.m.shape)}", str(tuple(self.n.shape)))
        activation(self.activation)
        if not (self.m.is_floating_point() and self.n.is_floating_point()):
            raise UserError(
                "m and n of floating point", f"{self.m.dtype} and {self.n.dtype}", "convert them with .double()"
            )
        self.loadings  # noqa: B018  (checks the shapes of b and d)

    @property
    def loadings(self) -> Loadings:
        return Loadings(self.m, self.b, self.d)

    @property
    def n_neurons(self) -> int:
        return self.m.shape[0]

    @property
    def rank(self) -> int:
        return self.m.shape[1]

    @property
    def connectivity(self) -> Tensor:
        """J = M N^T / K, shape (K, K). Large: K^2 numbers."""
        return self.m @ self.n.T / self.n_neurons

    def rates(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """phi(m.z + b.u + d), shape (..., K); raises UserError if states or inputs have another width."""
        self._check(z, u)
        return activation(self.activation)(potentials(self.loadings, z.to(self.m.dtype), _like(u, self.m)))

    def _check(self, z: Tensor, u: Tensor | None) -> None:
        require_points(z, self.rank, "states z")
        if u is None or self.b is None:
            return
        require_points(u, self.b.shape[1], "inputs u")
        try:
            torch.broadcast_shapes(z.shape[:-1], u.shape[:-1])
        except RuntimeError as error:
            raise UserError(f"inputs u for states of shape {tuple(z.shape)}", f"shape {tuple(u.shape)}") from error

    def drive(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Recurrent drive F(z, u) = (1/K) sum_i n_i phi_i, shape (..., R)."""
        return self.rates(z, u) @ self.n / self.n_neurons

    def vector_field(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """dz/dt = -z + F(z, u) in units of 1 / tau, shape (..., R)."""
        drive = self.drive(z, u)
        return drive - z.to(drive.dtype)

    def step(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """One Euler step: z + alpha * vector_field(z, u)."""
        field = self.vector_field(z, u)
        return z.to(field.dtype) + self.alpha * field

    def simulate(self, z0: Tensor, steps: int, u: Tensor | None = None) -> Tensor:
        """Latent trajectories (..., steps, R) from z0 (..., R), z0 included; u is (..., steps - 1 or more, U)."""
        require_whole(steps, 1, "steps")
        require_points(z0, self.rank, "states z0")
        if u is not None:
            got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            if not isinstance(u, Tensor) or u.ndim < 2 or u.shape[-2] < steps - 1:
                raise UserError(f"inputs u of shape (..., {steps - 1} or more, U) for {steps} steps", str(got))
        return simulate(self.step, z0.to(self.m.dtype), steps, u)

    def fixed_points(self, starts: Tensor, u: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        """Fixed points reached from ``starts`` (P, R) under a constant input u (U,); see
        :func:`leading_fixed_points`."""
        require_points(starts, self.rank, "starts", ndim=2)
        if u is not None and self.b is not None:
            require_points(u, self.b.shape[1], "a constant input u", ndim=1)
        net = self.double()
        constant = None if u is None else u.double()
        return leading_fixed_points(
            lambda z: net.vector_field(z, None if constant is None else constant.expand(len(z), -1)),
            starts,
            **options,
        )

    def silence(self, mask: Tensor) -> Network:
        """The network with the neurons where ``mask`` (K,) is True dropped from the sum in (1); K stays."""
        if not isinstance(mask, Tensor) or mask.shape != (self.n_neurons,) or mask.dtype != torch.bool:
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise UserError(f"a boolean mask of shape ({self.n_neurons},), a tensor", got)
        return replace(self, n=torch.where(mask[:, None], torch.zeros_like(self.n), self.n))

    def double(self) -> Network:
        """The same network in float64."""
        return replace(
            self,
            **{k: _to_double(getattr(self, k)) for k in ("m", "n", "b", "d") if getattr(self, k) is not None},
        )


def _to_double(x: Tensor) -> Tensor:
    return x.double()


def _like(u: Tensor | None, reference: Tensor) -> Tensor | None:
    return None if u is None else u.to(reference.dtype)
