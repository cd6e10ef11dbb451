"""What the activity says about the drive of the latent states, as a function of state and input, with its uncertainty.

    F(z, u) = B(z, u) c + constant,        B = phi(m.z + b.u + d) @ mixing over a few neurons that carry the basis

The activity alone says that log p(activity | c) = -(c - mean)^T precision (c - mean) / 2 + gradient^T (c - mean), up to a
constant; draws of c are from the posterior under the prior that they were sampled with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from connector.dynamics import activation, potentials
from connector.lrrnn.gauge import Gauge
from connector.numerics import pieces
from connector.shooting import Field
from connector.types import Latents, Loadings

ENOUGH_DRAWS = 20  # independent draws of the dynamics, below which no interval is called calibrated
_PARTS = ("mixing", "mean", "precision", "gradient", "draws", "constant", "noise", "effective")


@dataclass(frozen=True)
class FieldPosterior:
    """See the module's docstring. All float64.

    Attributes:
        activation: name of phi of the basis. neurons: loadings of the A neurons that carry it. mixing: (A, p).
        mean: (p, R) posterior mean of c. precision (pR, pR), gradient (pR,): of the likelihood at the mean; c is flattened
            as (mode, dimension).
        draws: (D, p, R) from the posterior of c, in the order they were sampled.
        constant: (R,), which a shift of the latents' origin adds to the drive.
        noise: (R, R) posterior mean of the covariance of the process noise of one step.
        effective: (1,) number of independent draws that these are worth.
    """

    activation: str
    neurons: Loadings
    mixing: Tensor
    mean: Tensor
    precision: Tensor
    gradient: Tensor
    draws: Tensor
    constant: Tensor
    noise: Tensor
    effective: Tensor

    def basis(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """B (N, p) at states z (N, R) and inputs u (N, U)."""
        phi = activation(self.activation)
        found = []
        for at in pieces(len(z), self.neurons.n_neurons):
            h = potentials(self.neurons, z[at].double(), None if u is None else u[at].double())
            found.append(phi(h) @ self.mixing)
        return torch.cat(found)

    def drive(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Posterior mean of F, (N, R)."""
        return self.basis(z, u) @ self.mean + self.constant

    def drives(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """F of every draw, (D, N, R)."""
        return self.basis(z, u) @ self.draws + self.constant

    def along(self, latents: Latents) -> Latents:
        """The same latents with the posterior mean of F as their ``drive``."""
        z, u = latents.z.flatten(0, 1), None if latents.inputs is None else latents.inputs.flatten(0, 1)
        return replace(latents, drive=self.drive(z, u).view_as(latents.z) * latents.mask[..., None])

    def moved(self, gauge: Gauge) -> FieldPosterior:
        """The same in other coordinates of the latents."""
        a, p = gauge.matrix, len(self.mean)
        back = torch.kron(torch.eye(p, dtype=a.dtype), torch.linalg.inv(a).contiguous())
        return replace(
            self,
            neurons=gauge.loadings(self.neurons),
            mean=self.mean @ a.T,
            draws=self.draws @ a.T,
            precision=back.T @ self.precision @ back,
            gradient=back.T @ self.gradient,
            constant=a @ self.constant + gauge.shift,
            noise=gauge.covariance(self.noise),
        )

    def arrays(self) -> dict[str, Any]:
        """By the names of latents.npz."""
        m, b, d = self.neurons.m, self.neurons.b, self.neurons.d
        found = {name: getattr(self, name) for name in _PARTS}
        found |= {"m": m, "b": b, "d": d, "activation": self.activation}
        return {f"field_{name}": value for name, value in found.items()}

    @staticmethod
    def of_arrays(tensors: Mapping[str, Tensor], activation: str) -> FieldPosterior | None:
        """The inverse of :meth:`arrays`; None where they hold none.

        Raises:
            KeyError, ValueError: some are missing, or do not fit each other.
        """
        if "field_mixing" not in tensors:
            return None
        neurons = Loadings(tensors["field_m"], tensors.get("field_b"), tensors.get("field_d"))
        found = FieldPosterior(activation, neurons, **{name: tensors[f"field_{name}"] for name in _PARTS})
        (p, rank), size = found.mean.shape, found.mean.numel()
        shapes = {
            "mixing": (neurons.n_neurons, p),
            "precision": (size, size),
            "gradient": (size,),
            "constant": (rank,),
            "noise": (rank, rank),
            "effective": (1,),
        }
        for name, shape in shapes.items():
            if tuple(getattr(found, name).shape) != shape:
                raise ValueError(f"field_{name} of shape {tuple(getattr(found, name).shape)}, not {shape}")
        return found


def posterior_of_draws(
    activation: str,
    field: Field,
    gauge: Tensor,
    conditional: tuple[Tensor, Tensor, Tensor],
    draws: Tensor,
    noise: Tensor,
    effective: float,
) -> FieldPosterior:
    """What sweeps of a sampler say of the drive B c of ``field``.

    Args:
        gauge: (R, R) of the prior, c = x gauge.
        conditional: of each of S sweeps the mean (S, pR) and the Cholesky factor (S, pR, pR) of the precision of c given all
            else, and the prior covariance (S, p, p) of x.
        draws: (D, p, R) of c. noise: (S, R, R) covariance of the process noise. effective: number of independent draws.
    """
    means, roots, priors = conditional
    mean, size, rank = means.mean(0), means.shape[1], len(gauge)
    covariance = torch.stack([torch.cholesky_inverse(root) for root in roots]).mean(0) + torch.cov(means.T).reshape(
        size, size
    )
    precision, gradient = likelihood_of(mean, covariance, torch.kron(priors.mean(0), (gauge @ gauge).contiguous()))
    return FieldPosterior(
        activation,
        field.neurons.map(Tensor.double),
        field.mixing,
        mean.view(-1, rank),
        precision,
        gradient,
        draws,
        torch.zeros(rank, dtype=torch.float64),
        noise.mean(0),
        torch.tensor([effective], dtype=torch.float64),
    )


def likelihood_of(mean: Tensor, covariance: Tensor, prior: Tensor, most: float = 0.98) -> tuple[Tensor, Tensor]:
    """Precision (N, N) and gradient (N,) at the mean of the Gaussian likelihood that turns a prior into a posterior.

    In the directions in which the posterior's variance is less than ``most`` of the prior's; elsewhere it says nothing.

    Args:
        mean (N,), covariance (N, N): of the posterior; prior: (N, N) covariance about zero.
    """
    root = torch.linalg.cholesky(prior + 1e-10 * prior.diagonal().mean() * torch.eye(len(prior)).to(prior))
    half = torch.linalg.solve_triangular(root, covariance, upper=False)
    white = torch.linalg.solve_triangular(root, half.T, upper=False)
    values, vectors = torch.linalg.eigh(0.5 * (white + white.T))
    back = torch.linalg.solve_triangular(root.T, vectors, upper=True)  # columns: root^-T times the eigenvectors
    kept = values < most
    information = torch.where(kept, 1 / values.clamp_min(1e-12) - 1, 0.0)
    turned = vectors.T @ torch.linalg.solve_triangular(root, mean[:, None], upper=False)[:, 0]
    return (back * information) @ back.T, back @ torch.where(kept, turned, 0.0)
