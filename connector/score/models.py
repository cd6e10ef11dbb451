"""What is scored: dynamics of latent states with a readout of the recorded neurons' rates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from connector.analysis.attractors import find_attractors
from connector.analysis.method_scores import Settling
from connector.data.input_filter import INPUT_KINDS, filtered_inputs
from connector.dynamics import Network, activation, potentials
from connector.errors import UserError
from connector.files import read_npz, refusing_damage
from connector.numerics import least_squares
from connector.runs.store import load_network
from connector.score.sets import SETTLE, settled
from connector.types import Loadings

_FIRST_STEPS, _DAMPING = 12, 1e-3
_FAR = 1e6  # states of systems that run away are stopped there


class Model(Protocol):
    """Latent dynamics with a readout; states (..., R), inputs (..., U) as :meth:`taken` gives them, rates (..., K)."""

    alpha: float

    def taken(self, u: Tensor) -> Tensor: ...

    def step(self, z: Tensor, u: Tensor | None) -> Tensor: ...

    def rates(self, z: Tensor, u: Tensor | None) -> Tensor: ...

    def read_back(self, rates: Tensor, u: Tensor | None) -> Tensor: ...

    def settling(self, u: Tensor, starts: Tensor) -> Settling: ...

    def part(self, neurons: Tensor) -> Model: ...


@dataclass(frozen=True)
class NetworkModel:
    """A low-rank network (equation 1), and the loadings by which the recorded neurons read its latent states.

    Attributes:
        network: float64. readout: of the recorded neurons. kind: of inputs, see :mod:`connector.data.input_filter`.
        gain, offset: (K,) rate = gain phi(h) + offset; None: 1 and 0.
    """

    network: Network
    readout: Loadings
    kind: str = "instant"
    gain: Tensor | None = None
    offset: Tensor | None = None

    @property
    def alpha(self) -> float:
        return self.network.alpha

    def taken(self, u: Tensor) -> Tensor:
        return filtered_inputs(u.double(), self.alpha, self.kind)

    def step(self, z: Tensor, u: Tensor | None) -> Tensor:
        return self.network.step(z, None if self.network.b is None else u).clamp(-_FAR, _FAR)

    def rates(self, z: Tensor, u: Tensor | None) -> Tensor:
        found = activation(self.network.activation)(potentials(self.readout, z, u))
        found = found if self.gain is None else found * self.gain
        return found if self.offset is None else found + self.offset

    def read_back(self, rates: Tensor, u: Tensor | None) -> Tensor:
        """Least squares of the potentials of rates (N, K) brought into the range of phi, (N, R)."""
        phi, own = activation(self.network.activation), rates.double()
        own = own if self.offset is None else own - self.offset
        own = own if self.gain is None else own / self.gain
        span = 1e-4
        low, high = phi.low + span, phi.high - span
        h = phi.inverse(own.clamp(low, high))
        h = h - potentials(self.readout, h.new_zeros(len(h), self.network.rank), u)
        slope = phi.derivative(h).mean(0)  # saturated neurons say little
        return least_squares(self.readout.m.double() * slope[:, None], (h * slope).T).T

    def settling(self, u: Tensor, starts: Tensor) -> Settling:
        net = self.network
        constant = None
        if net.b is not None and len(u):
            constant = torch.cat([u, u]) if self.kind == "both" else u
        found = find_attractors(net, starts, u=constant, settle=SETTLE)
        of_points = None if constant is None else constant
        return settled(
            found, lambda z: self.rates(z, None if of_points is None else of_points.expand(len(z), -1)), self.alpha
        )

    def part(self, neurons: Tensor) -> NetworkModel:
        """Of some of the recorded neurons (n,)."""
        of, cut = self.readout, [None if x is None else x[neurons] for x in (self.gain, self.offset)]
        b, d = (None if x is None else x[neurons] for x in (of.b, of.d))
        return replace(self, readout=Loadings(of.m[neurons], b, d), gain=cut[0], offset=cut[1])

    def shuffled(self, seed: int = 0) -> NetworkModel:
        """With the rows of n given to other neurons at random: the same loadings, the same n, nothing between them."""
        order = torch.randperm(self.network.n_neurons, generator=torch.Generator().manual_seed(seed))
        return replace(self, network=replace(self.network, n=self.network.n[order]))


@dataclass(frozen=True)
class LinearModel:
    """z[t+1] = A z[t] + B u[t] + c, rates C z + e.

    Attributes:
        a (R, R), b (R, U) or None, c (R,), readout (K, R), e (K,): float64. alpha: a sample in units of tau.
    """

    a: Tensor
    b: Tensor | None
    c: Tensor
    readout: Tensor
    e: Tensor
    alpha: float

    def taken(self, u: Tensor) -> Tensor:
        return u.double()

    def step(self, z: Tensor, u: Tensor | None) -> Tensor:
        following = z @ self.a.T + self.c
        return (following if u is None or self.b is None else following + u @ self.b.T).clamp(-_FAR, _FAR)

    def rates(self, z: Tensor, u: Tensor | None) -> Tensor:
        return z @ self.readout.T + self.e

    def read_back(self, rates: Tensor, u: Tensor | None) -> Tensor:
        return least_squares(self.readout, (rates.double() - self.e).T).T

    def part(self, neurons: Tensor) -> LinearModel:
        """Of some of the recorded neurons (n,)."""
        return replace(self, readout=self.readout[neurons], e=self.e[neurons])

    def settling(self, u: Tensor, starts: Tensor) -> Settling:
        """The fixed point, where all directions decay; nothing else is an attractor of linear dynamics."""
        radius = float(torch.linalg.eigvals(self.a).abs().max())
        if radius >= 1:
            return Settling("none", self.e.new_zeros(0, len(self.e)), self.e.new_zeros(0))
        constant = self.c if self.b is None or not len(u) else self.c + self.b @ u
        point = torch.linalg.solve(torch.eye(len(self.a), dtype=torch.float64) - self.a, constant)
        slowest = -self.alpha / torch.tensor([max(radius, 1e-9)], dtype=torch.float64).log()
        return Settling("fixed_points", self.rates(point[None], None), slowest)


def simulated(model: Model, z0: Tensor, u: Tensor | None, steps: int) -> Tensor:
    """States (N, steps, R) from z0 (N, R) under inputs (N, T, U) as taken."""
    states = [z0]
    for t in range(steps - 1):
        states.append(torch.nan_to_num(model.step(states[-1], None if u is None else u[:, t])))
    return torch.stack(states, 1)


def first_states(model: Model, rates: Tensor, u: Tensor | None) -> Tensor:
    """States (N, R) at the first sample from which a model explains the first few samples (N, S, K) best: Gauss-Newton with
    damping on the squared errors of the rates, from the states that the first sample alone gives."""
    wanted, n_first = rates.double(), rates.shape[1]
    z = torch.nan_to_num(model.read_back(wanted[:, 0], None if u is None else u[:, 0]))
    rank, damping = z.shape[1], torch.full((len(z), 1, 1), _DAMPING, dtype=torch.float64)

    def predicted(start: Tensor) -> Tensor:
        path = simulated(model, start, u, n_first)
        return torch.stack(
            [model.rates(path[:, t], None if u is None else u[:, t]) for t in range(n_first)], 1
        ).flatten(1)

    size = float(z.square().mean().sqrt()) + 1e-6
    h, target = 1e-4 * size, wanted.flatten(1)
    error = target - predicted(z)
    for _ in range(_FIRST_STEPS):
        at = predicted(z)
        slopes = torch.stack([(predicted(z + h * one) - at) / h for one in torch.eye(rank, dtype=torch.float64)], -1)
        gram = slopes.mT @ slopes
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
        move = torch.linalg.solve(
            gram + damping * scale * torch.eye(rank, dtype=torch.float64), slopes.mT @ error[..., None]
        )
        trial = z + move[..., 0]
        of_trial = target - predicted(trial)
        better = of_trial.square().sum(1) < error.square().sum(1)
        z, error = torch.where(better[:, None], trial, z), torch.where(better[:, None], of_trial, error)
        damping = torch.where(better[:, None, None], damping * 0.3, damping * 8).clamp(1e-9, 1e6)
        if float(move.norm()) < 1e-8 * float(z.norm()):
            break
    return z


@dataclass(frozen=True)
class Result:
    """What a file holds: a network or linear dynamics, and what is told of it. ``own``: (K_obs, P) loadings under MBD, or None."""

    network: Network | None
    linear: LinearModel | None
    kind: str
    own: Tensor | None
    gain: Tensor | None
    offset: Tensor | None
    latents: Tensor | None
    interval: tuple[Tensor, Tensor] | None
    on: str | None


def read_result(path: Path, alpha: float | None = None) -> Result:
    """A method's result from an npz; alpha: of linear dynamics, where the file does not say.

    Raises:
        UserError: a file that holds neither a network nor linear dynamics, or arrays that do not fit each other.
    """
    arrays = read_npz(path)
    linear = "A" in arrays
    missing = [key for key in (("A", "C") if linear else ("m", "n")) if key not in arrays]
    if missing:
        raise UserError(
            f"a network (m, n) or linear dynamics (A, C) in {path}",
            f"no {missing[0]}",
            "`connector score --help` lists the keys",
        )
    kind = str(arrays.get("input_kind", "instant"))
    if kind not in INPUT_KINDS:
        raise UserError(f"input_kind among {', '.join(INPUT_KINDS)} in {path}", repr(kind))
    with refusing_damage(Path(path), "arrays of a result, see `connector score --help`"):
        x = {
            key: torch.from_numpy(value).double()
            for key, value in arrays.items()
            if value.ndim and value.dtype.kind in "fiu"
        }
        bad = [key for key, value in x.items() if not torch.isfinite(value).all()]
        if bad:
            raise ValueError(f"{bad[0]} holds numbers that are not finite")
        interval = (x["n_low"], x["n_high"]) if "n_low" in x and "n_high" in x else None
        return Result(
            network=None if linear else load_network(path).double(),
            linear=_linear(x, float(arrays.get("alpha", alpha or 0.1))) if linear else None,
            kind=kind, own=x.get("MBD"), gain=x.get("gain"), offset=x.get("offset"), latents=x.get("latents"),
            interval=interval, on=str(arrays["set"]) if "set" in arrays else None,
        )  # fmt: skip


def _linear(x: dict[str, Tensor], alpha: float) -> LinearModel:
    a, readout = x["A"], x["C"]
    rank, neurons = len(a), len(readout)
    c, e = x.get("c", a.new_zeros(rank)), x.get("e", a.new_zeros(neurons))
    model = LinearModel(a, x.get("B"), c, readout, e, alpha)
    if a.shape != (rank, rank) or readout.shape != (neurons, rank) or c.shape != (rank,) or e.shape != (neurons,):
        raise ValueError("A (R, R), C (K, R), c (R,) and e (K,) of other shapes")
    if model.b is not None and (model.b.ndim != 2 or len(model.b) != rank):
        raise ValueError("B of another shape than (R, U)")
    return model
