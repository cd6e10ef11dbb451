"""Teacher networks with known connectivity statistics and known attractors.

A teacher is a joint distribution p(m, n) of a neuron's loading and output weight. As the number of neurons grows,
the sum over neurons in equation (1) becomes F(z) = E[n phi(m.z)] = E[nu(m) phi(m.z)] with nu(m) = E[n | m]: the
dynamics see the density of the loadings and nu, and nothing else. Teachers supply all three in closed form.
"""

from __future__ import annotations

import math
import os
import runpy
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from connector.dynamics import Network
from connector.errors import UserError
from connector.moved import lazily
from connector.types import Loadings

ALPHA = 0.1  # Euler step dt / tau, where a teacher is given none
ATTRACTOR_KINDS = ("fixed_points", "limit_cycle", "ring", "none")


class Teacher:
    """A distribution of neurons p(m, n) whose mean-field dynamics are known.

    A subclass implements :meth:`sample_with_components`, :meth:`conditional_mean`, :meth:`log_prob` and
    :meth:`drive`, and says which attractors its mean field has. Register it with :func:`register_teacher`.

    Attributes:
        name: its name.
        rank: R, the number of latent dimensions.
        alpha: Euler step dt / tau of the networks drawn.
        activation: name of phi.
        attractor_kind: "fixed_points", "limit_cycle", "ring" or "none" (nothing is claimed).
        n_attractors: how many stable fixed points, cycles or rings the mean field has.
    """

    rank: int = 2

    def __init__(self, name: str, *, attractor_kind: str, n_attractors: int, alpha: float = ALPHA):
        if not 0 < alpha <= 1:
            raise UserError("alpha = dt / tau in (0, 1]", str(alpha))
        if attractor_kind not in ATTRACTOR_KINDS:
            raise UserError(f"attractor_kind among {', '.join(ATTRACTOR_KINDS)}", repr(attractor_kind))
        self.name, self.alpha, self.activation = name, float(alpha), "tanh"
        self.attractor_kind, self.n_attractors = attractor_kind, n_attractors

    def sample_with_components(
        self, n_neurons: int, generator: torch.Generator | None = None, exact_moments: bool = False
    ) -> tuple[Network, Tensor]:
        """A network of ``n_neurons`` (float64) and each neuron's mixture component, (n_neurons,) int64.

        With ``exact_moments`` the draw's means and covariances (within each component) are set to the teacher's by a
        linear map, if the teacher has Gaussian components and there are enough neurons.
        """
        raise NotImplementedError

    def conditional_mean(self, loadings: Loadings | Tensor) -> Tensor:
        """nu = E[n | m] at each loading, (K, R), exact."""
        raise NotImplementedError

    def log_prob(self, loadings: Loadings | Tensor) -> Tensor:
        """log p(m), (K,), in nats."""
        raise NotImplementedError

    def drive(self, z: Tensor) -> Tensor:
        """Mean-field drive F(z) = E[n phi(m.z)] of states z (..., R): the limit of infinitely many neurons."""
        raise NotImplementedError

    def vector_field(self, z: Tensor) -> Tensor:
        """Mean-field dz/dt = -z + F(z) in units of 1 / tau, (..., R)."""
        return -z + self.drive(z)

    def sample(
        self, n_neurons: int = 1000, generator: torch.Generator | None = None, exact_moments: bool = False
    ) -> Network:
        """Sample a network of ``n_neurons`` (float64), see :meth:`sample_with_components`; without a generator, a fixed seed."""
        return self.sample_with_components(n_neurons, generator, exact_moments)[0]

    def components(self, loadings: Loadings | Tensor) -> Tensor:
        """The most probable mixture component of each loading, (K,) int64; zeros where there is one component."""
        m = loadings_matrix(loadings)
        return torch.zeros(len(m), dtype=torch.int64, device=m.device)

    def _network(self, m: Tensor, n: Tensor) -> Network:
        return Network(m=m, n=n, alpha=self.alpha, activation=self.activation)


# The package's own teachers: the module that registers each. Imported when asked for.
MODULES = {
    "quadstable": "connector.data.quadstable",
    "bistable": "connector.data.attractors",
    "limit_cycle": "connector.data.attractors",
    "ring": "connector.data.attractors",
    "heavy_tailed": "connector.data.heavy_tailed",
}
TEACHERS: dict[str, Callable[..., Teacher]] = {}
_OF_EVERY_TEACHER = ("sample_with_components", "conditional_mean", "log_prob", "drive")


def load_teachers(path: str | os.PathLike) -> None:
    """Runs a Python file of the user's that registers teachers with :func:`register_teacher`.

    Raises:
        UserError: no such file, or what running it raised, with the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("a Python file that registers teachers", str(path))
    try:
        runpy.run_path(str(path), run_name=f"teachers of {path.name}")
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        where = path.name if line is None else f"{path.name}, line {line}"
        raise UserError(
            "a Python file that registers teachers", f"{type(error).__name__} in {where}: {error}"
        ) from error


def register_teacher(name: str) -> Callable[[Callable[..., Teacher]], Callable[..., Teacher]]:
    """Decorator: makes a Teacher subclass (or a function returning a Teacher) known to :func:`teacher` by name."""

    def register(factory: Callable[..., Teacher]) -> Callable[..., Teacher]:
        TEACHERS[name] = factory
        return factory

    return register


def teacher(name: str, **options) -> Teacher:
    """The teacher of that name.

    Args:
        name: quadstable, bistable, limit_cycle, ring, heavy_tailed, or one registered.
        options: keyword arguments of the teacher, such as ``alpha``.

    Raises:
        UserError: unknown name or option; a teacher that lacks a method.
    """
    if name not in TEACHERS and name in MODULES:
        import_module(MODULES[name])
    if name not in TEACHERS:
        raise UserError(f"a teacher among {', '.join(dict.fromkeys([*MODULES, *TEACHERS]))}", repr(name))
    try:
        made = TEACHERS[name](**options)
    except TypeError as error:
        raise UserError(f"options that the teacher {name!r} has", f"{options} ({error})") from error
    lacking = [x for x in _OF_EVERY_TEACHER if getattr(type(made), x, None) is getattr(Teacher, x)]
    if lacking:
        raise UserError(f"a teacher with {', '.join(_OF_EVERY_TEACHER)}", f"{name!r} without {', '.join(lacking)}")
    return made


def loadings_matrix(loadings: Loadings | Tensor) -> Tensor:
    m = loadings.m if isinstance(loadings, Loadings) else loadings
    if m.ndim != 2 or m.shape[1] != 2:
        raise UserError("loadings m of shape (neurons, 2)", str(tuple(m.shape)))
    return m


def generator_or_fixed(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def joint_normal(n: int, dim: int, generator: torch.Generator, exact_moments: bool) -> Tensor:
    """n draws of N(0, I), (n, dim); with ``exact_moments`` their mean is 0 and their covariance I exactly."""
    x = normal((n, dim), generator)
    if not exact_moments or n <= dim:
        return x
    x = x - x.mean(0)
    root = torch.linalg.cholesky(x.T @ x / n)
    return torch.linalg.solve_triangular(root, x.T, upper=False).T


@lru_cache
def gauss_hermite(order: int = 200) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(x)], x ~ N(0, 1), from the eigenvectors of the Jacobi matrix."""
    off = torch.arange(1, order, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, vectors[0] ** 2


def linear_attractors(S: Tensor, slope: float) -> tuple[str, int]:
    """Which attractors the mean field has when p(m) is isotropic and nu(m) = S m.

    There F(z) = S z f(|z|) / |z| with f increasing and bounded, f'(0) = ``slope``. So directions turn under S
    alone: they end on its leading eigenvector (two stable points), circle (complex eigenvalues), or stay (S = g I).

    Args:
        S: (2, 2).
        slope: variance of one component of m (phi'(0) = 1).

    Returns:
        (kind, number), kind as in Teacher.attractor_kind.
    """
    eigenvalues = torch.linalg.eigvals(S.double())
    if float(eigenvalues.real.max()) * slope <= 1:
        return "fixed_points", 1
    if float(eigenvalues.imag.abs().max()) > 1e-9:
        return "limit_cycle", 1
    if float((eigenvalues[0] - eigenvalues[1]).abs()) > 1e-9:
        return "fixed_points", 2
    isotropic = torch.allclose(S.double(), float(S[0, 0]) * torch.eye(2, dtype=torch.float64))
    return ("ring", 1) if isotropic else ("none", 0)


class IsotropicLinear(Teacher):
    """p(m) isotropic about zero and nu(m) = S m: F(z) = S z f(|z|) / |z|, f(r) = E[x tanh(x r)], x = one m."""

    def __init__(self, name: str, S, slope: float, alpha: float):
        self.S = torch.as_tensor(S, dtype=torch.float64)
        if self.S.shape != (2, 2):
            raise UserError("S of shape (2, 2)", str(tuple(self.S.shape)))
        kind, number = linear_attractors(self.S, slope)
        super().__init__(name, attractor_kind=kind, n_attractors=number, alpha=alpha)

    def conditional_mean(self, loadings: Loadings | Tensor) -> Tensor:
        m = loadings_matrix(loadings)
        return m @ self.S.to(m).T

    def _marginal(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights of an expectation over one component of m."""
        raise NotImplementedError

    def drive(self, z: Tensor) -> Tensor:
        x, weight = (v.to(z) for v in self._marginal())
        radius = z.norm(dim=-1, keepdim=True)
        amplitude = (torch.tanh(radius * x) * x * weight).sum(-1, keepdim=True)
        return (z * (amplitude / radius.clamp_min(1e-12))) @ self.S.to(z).T


class LinearGaussian(IsotropicLinear):
    """m ~ N(0, I), n jointly Gaussian with it: E[n | m] = S m and Cov(n) = ``variance`` I.

    Args:
        S: (2, 2) regression of n on m.
        variance: of each component of n; the part that m does not explain, variance I - S S^T, must not be negative.
        alpha: Euler step dt / tau.
    """

    def __init__(self, S, variance: float = 4.0, alpha: float = ALPHA, name: str = "linear_gaussian"):
        super().__init__(name, S, slope=1.0, alpha=alpha)
        self.variance = float(variance)
        self.residual_covariance = self.variance * torch.eye(2, dtype=torch.float64) - self.S @ self.S.T
        values, vectors = torch.linalg.eigh(self.residual_covariance)
        if float(values.min()) < -1e-9:
            raise UserError(
                "a variance of n of at least the largest eigenvalue of S S^T",
                f"variance {variance} and an eigenvalue {float(self.variance - values.min()):.3g}",
            )
        self._residual_root = vectors * values.clamp_min(0).sqrt()

    def sample_with_components(
        self, n_neurons: int, generator: torch.Generator | None = None, exact_moments: bool = False
    ) -> tuple[Network, Tensor]:
        generator = generator_or_fixed(generator)
        x = joint_normal(n_neurons, 4, generator, exact_moments)
        m = x[:, :2].contiguous()
        n = self.conditional_mean(m) + x[:, 2:] @ self._residual_root.T
        return self._network(m, n), torch.zeros(n_neurons, dtype=torch.int64)

    def log_prob(self, loadings: Loadings | Tensor) -> Tensor:
        m = loadings_matrix(loadings)
        return -m.square().sum(1) / 2 - math.log(2 * math.pi)

    def _marginal(self) -> tuple[Tensor, Tensor]:
        return gauss_hermite()


@register_teacher("bistable")
def bistable(**options) -> Teacher:
    """Two stable fixed points: Gaussian loadings, a shear that turns every state towards one line."""
    return LinearGaussian([[1.2, 0.8], [0.0, 1.6]], name="bistable", **options)


@register_teacher("limit_cycle")
def limit_cycle(**options) -> Teacher:
    """One stable limit cycle: Gaussian loadings, a rotation with gain."""
    return LinearGaussian([[1.6, -0.8], [0.8, 1.6]], name="limit_cycle", **options)


@register_teacher("ring")
def ring(**options) -> Teacher:
    """A ring of fixed points: Gaussian loadings, the same gain in every direction."""
    return LinearGaussian([[1.6, 0.0], [0.0, 1.6]], name="ring", **options)


__getattr__ = lazily(__name__, "data.simulation")  # simulate_recording stood here
