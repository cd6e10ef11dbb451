"""A density of loadings, and of output weights given them, held to the drive of the recorded network.

A flow trained on the loadings of K neurons gives their density up to an error of the order of K^-1/2, and so the drive
E[nu(l) phi(h(l))] of the infinite network. Near a fixed point, where the field is small, that error is the largest part of
the field's. Among all densities under which nu(l) v_j(l) has the mean that the recorded network's drive asks for, v_j the
leading modes of phi over the visited states, the one closest to the flow in Kullback-Leibler divergence is

    p'(l) = p(l) exp(nu(l) . a(l)) / Z,        a(l) = sum_t a_t phi(m.z_t + b.u_t + d),

maximum entropy relative to the flow (Csiszar 1975). Its weights are close to 1: the flow is off by little.

What then is left of the recorded drive y is the recorded neurons' own: their n scatter about nu, and so few neurons do not
average that out. Among the densities of n given l, N(nu + delta(l), sigma^2), the closest to N(nu, sigma^2) under which the
infinite network has that drive as well is, by the same principle,

    delta(l) = sum_t c_t phi(m.z_t + b.u_t + d),        c to minimise  <|y - E p'[(nu + delta) phi]|^2>_t + lambda E p'[|delta|^2].

nu, what the data say of the conditional mean, and its intervals stay as they are, and so does n at sigma = 0, where there is no
such density: delta is far smaller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from connector.connectivity.nu.design import Design
from connector.dynamics import activation as get_activation
from connector.dynamics import potentials
from connector.errors import UserError
from connector.numerics import CACHED, leading_modes, pieces, ridge
from connector.types import Loadings, States

_MODES = 24  # at most, each with one mean for every dimension of nu
_CUTOFF = 3e-3  # of singular values of phi over the states, relative to the first
_LEAST_EFFECTIVE = 0.5  # share of the points that the weights may leave effective
_CEILING = 3.0  # of a weight: so that rejection keeps a third of its draws at least
_HIGHEST_LOG_CEILING = 10.0  # draws by rejection cost its exponential
# lambda of the shift. On the four attractor systems the shift is .015 to .04 (root mean square) beside output weights of 1 to 2,
# and two thirds of the field error go; at a third of lambda it doubles for what little is left.
SHIFT_REGULARIZER = 3e-3


class OutputShift(nn.Module):
    """delta(l) = sum_t c_t phi(m.z_t + b.u_t + d): by how much the mean of n of sampled neurons is off nu.

    Args:
        activation: name of phi.
        z: (T, R) states; u: (T, U) inputs or None; c: (T, R) their coefficients.
        shape: (rank, number of inputs, whether there is a bias) of the stacked loadings.
    """

    def __init__(self, activation: str, z: Tensor, u: Tensor | None, c: Tensor, shape: tuple[int, int, bool]):
        super().__init__()
        if z.ndim != 2 or c.shape != z.shape:
            raise UserError("coefficients for each state", f"shapes {tuple(z.shape)} and {tuple(c.shape)}")
        self.activation, self.shape = activation, (int(shape[0]), int(shape[1]), bool(shape[2]))
        for name, value in (("z", z), ("u", u), ("c", c)):
            self.register_buffer(name, value)

    def forward(self, rows: Tensor) -> Tensor:
        """delta (N, R) at stacked loadings (N, P), in units of n."""
        parts = [
            _rates(self.activation, rows[part], self.z, self.u, self.shape) @ self.c
            for part in pieces(len(rows), len(self.z), CACHED)
        ]
        return torch.cat(parts) if parts else rows.new_zeros(0, self.c.shape[1])

    def state(self) -> dict:
        """Plain values and tensors that :meth:`rebuild` makes it from."""
        return {"activation": self.activation, "z": self.z, "u": self.u, "c": self.c, "shape": list(self.shape)}

    @classmethod
    def rebuild(cls, state: dict) -> OutputShift:
        return cls(**{**state, "shape": tuple(state["shape"])})


class DriveTilt(OutputShift):
    """Weights exp(nu(l) . a(l)) / Z of loadings, of mean 1 under the flow; called, it is a(l) (N, R).

    Args:
        activation, z, u, a, shape: as of :class:`OutputShift`.
        log_normaliser: log Z; log_ceiling: where the log weight is cut, so that draws by rejection are cheap.
    """

    def __init__(
        self,
        activation: str,
        z: Tensor,
        u: Tensor | None,
        a: Tensor,
        log_normaliser: float,
        log_ceiling: float,
        shape: tuple[int, int, bool],
    ):
        super().__init__(activation, z, u, a, shape)
        if not abs(log_ceiling) <= _HIGHEST_LOG_CEILING:
            raise UserError(f"a log ceiling within {_HIGHEST_LOG_CEILING:g} of 0", str(log_ceiling))
        self.log_normaliser, self.log_ceiling = float(log_normaliser), float(log_ceiling)

    def log_weight(self, rows: Tensor, nu: Tensor) -> Tensor:
        """log p'(l) / p(l) at stacked loadings (N, P) with their nu (N, R): (N,)."""
        return ((self(rows) * nu).sum(1) - self.log_normaliser).clamp_max(self.log_ceiling)

    def state(self) -> dict:
        state = super().state()
        own = {"a": state.pop("c"), "log_normaliser": self.log_normaliser, "log_ceiling": self.log_ceiling}
        return state | own


def _rates(name: str, rows: Tensor, z: Tensor, u: Tensor | None, shape: tuple[int, int, bool]) -> Tensor:
    """phi of the potentials, (N, T): neurons in rows."""
    return get_activation(name)(potentials(Loadings.unstack(rows, *shape), z, u)).T


@torch.no_grad()
def fit_output_shift(
    points: Tensor,
    n_at_points: Tensor,
    z: Tensor,
    u: Tensor | None,
    drive: Tensor,
    *,
    activation: str,
    shape: tuple[int, int, bool],
    weights: Tensor | None = None,
    regularizer: float = SHIFT_REGULARIZER,
    max_states: int = 2000,
    spanning_states: int = 400,
) -> OutputShift:
    """The shift of n that brings the infinite network's drive to ``drive``, as this module's text defines it.

    Args:
        points, n_at_points: (N, P) and (N, R), as :func:`fit_drive_tilt` takes them.
        z, u, drive: (T, R), (T, U) or None and (T, R): visited states, the inputs and the recorded network's drive there;
            ``max_states`` of them are fitted, and ``spanning_states`` of these span delta.
        shape: (rank, number of inputs, bias) of stacked loadings.
        weights: (N,) of the points, of mean 1: those of the tilt. None: equal.
        regularizer: lambda.
    """
    states = States(z, u, drive).spread(max_states).double()
    few = states.spread(spanning_states)
    weights = (points.new_ones(len(points)) if weights is None else weights).double()
    x = _rates(activation, points, few.z, few.u, shape)
    values, vectors = leading_modes(x.T @ (x * weights[:, None]) / len(x), _CUTOFF**2)
    basis = vectors / values.sqrt()
    # under the weighted points the columns of v are orthonormal, so that E|delta|^2 is the sum of squares of its coefficients
    right = torch.cat([x @ basis, n_at_points], dim=1) * weights[:, None]
    drives = Design(get_activation(activation), Loadings.unstack(points, *shape), states.z, states.u).times(right)
    of_basis, had = drives.split([len(values), drive.shape[1]], dim=1)
    coefficients = ridge(of_basis, states.y - had, regularizer * len(states.z))
    return OutputShift(activation, few.z, few.u, basis @ coefficients, shape)


@torch.no_grad()
def fit_drive_tilt(
    points: Tensor,
    nu_at_points: Tensor,
    z: Tensor,
    u: Tensor | None,
    drive: Tensor,
    *,
    activation: str,
    shape: tuple[int, int, bool],
    n_neurons: int,
    max_states: int = 400,
    steps: int = 30,
) -> DriveTilt | None:
    """The tilt under which the flow's loadings have a given mean drive, E[nu(l) phi(h(l))] = ``drive``, in its leading modes.

    Args:
        points: (N, P) stacked loadings that stand for the flow with equal weight (a quadrature of it).
        nu_at_points: (N, R).
        z: (T, R) visited states, u: (T, U) inputs there or None, drive: (T, R) there, without noise; ``max_states`` of
            them span the modes.
        shape: (rank, number of inputs, bias) of stacked loadings.
        n_neurons: K of the recorded network: means are met up to what chance does to them in so many neurons, that is,
            K / 2 times the squared miss (in units of the spread of nu_r v_j) is weighed against the divergence.
        steps: of Newton's method on the convex dual.

    Returns:
        None where the weights would leave less than half of the points effective, however few modes are matched.
    """
    z, u, drive = States(z, u, drive).spread(max_states)
    x = _rates(activation, points, z, u, shape)
    values, vectors = leading_modes(x.T @ x / len(x), _CUTOFF**2)
    basis, count = vectors / values.sqrt(), min(len(values), _MODES)
    while count:
        found = _match(x, nu_at_points, drive, basis[:, :count], 1 / n_neurons, steps)
        if found is not None:
            a, log_weight, log_normaliser = found
            ceiling = min(float(log_weight.max()) + 0.1, math.log(_CEILING))
            lost = math.log(float(log_weight.clamp_max(ceiling).exp().mean()))
            # exp(..) / Z cut at the ceiling, its mean brought back to 1
            return DriveTilt(activation, z, u, a, log_normaliser + lost, ceiling - lost, shape)
        count //= 2
    return None


def _match(x, nu, drive, basis, penalty, steps):
    """(a (T, R), log weights (N,), log Z) with E[nu_r v_j] = (drive^T basis)_rj for v = x basis; None if out of reach."""
    rank, count = nu.shape[1], basis.shape[1]
    v = x @ basis
    f = (nu[:, :, None] * v[:, None, :]).flatten(1)
    centre, scale = f.mean(0), f.std(0).clamp_min(1e-300)
    f = (f - centre) / scale
    target = ((drive.T @ basis).flatten() - centre) / scale
    theta = torch.zeros_like(target)

    def dual(theta: Tensor) -> tuple[Tensor, Tensor]:
        exponent = f @ theta
        return torch.logsumexp(exponent, 0) - theta @ target + 0.5 * penalty * theta @ theta, exponent

    value, exponent = dual(theta)
    for _ in range(steps):
        weight = torch.softmax(exponent, 0)
        mean = weight @ f
        gradient = mean - target + penalty * theta
        hessian = (f * weight[:, None]).T @ f - torch.outer(mean, mean)
        hessian.diagonal().add_(penalty)
        move = torch.linalg.solve(hessian, gradient)
        if float(move @ gradient) < 1e-16:
            break
        length = 1.0
        for _ in range(20):
            trial, at = dual(theta - length * move)
            if trial <= value - 1e-4 * length * float(move @ gradient):
                break
            length *= 0.5
        else:
            break
        theta, value, exponent = theta - length * move, trial, at
    weight = torch.softmax(exponent, 0)
    effective = 1 / float(weight.square().sum()) / len(weight)
    if not effective > _LEAST_EFFECTIVE:
        return None
    # exponent = nu . (x a) - theta . centre / scale, with the second part going into the normaliser
    a = basis @ (theta / scale).view(rank, count).T
    log_weight = exponent - torch.logsumexp(exponent, 0) + math.log(len(exponent))
    log_normaliser = float(((x @ a) * nu).sum(1)[0] - log_weight[0])
    return a, log_weight, log_normaliser
