"""The low-rank recurrent network as a trainable module, and its fit to rates.

Equation (1) itself stands in :mod:`connector.dynamics`. Here are

* :class:`LowRankRNN`, the network with trainable parameters;
* :class:`Gauge`, changes of latent coordinates (latents are determined up to an invertible linear map only);
* :func:`least_squares_latents` and :func:`smooth_latents`, latents of any trial given a network;
* :func:`fit_rates_closed_form`, network and latents from recorded rates without gradient descent;
* :class:`RateModel`, which trains the network through its dynamics (LINT: Valente, Pillow, Ostojic 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from connector.dynamics import Activation, Network, potentials
from connector.dynamics import activation as activation_named
from connector.errors import UserError
from connector.observation import Observation, value_and_slope
from connector.types import Latents, Loadings, Recording, TrialBatch, valid_mask

# Elements of (samples x neurons) handled at once: temporaries stay in the cache and memory stays bounded.
_CHUNK_ELEMENTS = 1 << 19
# Most samples, and about how many elements (samples x neurons), for steps that hold all of a subset in memory.
_SUBSET_SAMPLES = 2000
_SUBSET_ELEMENTS = 20_000_000
# Prior standard deviation of latents, in units where they have variance one; binds only what the data leave open.
_PRIOR_SD = 10.0
# Levenberg damping relative to unit weights: without it what saturated or silent entries leave open is moved by the
# prior in one step, far enough to be driven back in the next.
_DAMPING = 1e-3
# Neurons that bring the latents of a sample near, before all of them finish: the first steps cost so much less.
_SCOUTS = 200
# Modes of the rates below this fraction of the first are not used for output weights.
_MODE_CUTOFF = 1e-5
# Simulated pieces of trials when output weights are found from noisy latents. Twenty samples (two time constants at
# alpha = .1) were as accurate as fifty and, unlike hundred, converge from any start.
_SEGMENT_SAMPLES = 20
_SHOOT_MODES = 48
# Ridge parameter of the start for them.
_NOISY_START = 1e-4
# Factors tried on the covariance of process noise in every iteration of the smoother.
_Q_SCALES = (1e-3, 1e-1, 0.3, 1.0, 3.0)


class LowRankRNN(nn.Module):
    """A low-rank RNN whose loadings and output weights are parameters.

    Every method goes through :class:`connector.dynamics.Network` holding the live parameters, so gradients flow
    and equation (1) is written once.

    Args:
        n_units: K, number of units of the latent dynamics.
        rank: R, number of latent dimensions; any positive number.
        n_inputs: U, external input channels; 0 for none.
        has_bias: whether units have a bias d.
        alpha: Euler step in units of the time constant, dt / tau, in (0, 1].
        activation: tanh, relu, softplus or sigmoid.
        init_std: standard deviation of the normal start of all parameters (the global random state is used, as
            for every module); 2 is the value of LINT.

    Attributes:
        m: (K, R); n: (K, R); b: (K, U) or None; d: (K,) or None: the trainable parameters.

    Raises:
        UserError: for sizes, a step or an activation that make no sense.
    """

    def __init__(
        self,
        n_units: int,
        rank: int,
        n_inputs: int = 0,
        has_bias: bool = False,
        alpha: float = 0.1,
        activation: str = "tanh",
        init_std: float = 1.0,
    ):
        super().__init__()
        if n_units < 1 or rank < 1 or n_inputs < 0:
            raise UserError("at least one unit and rank 1", f"{n_units} units, rank {rank}, {n_inputs} inputs")
        if not 0 < alpha <= 1:
            raise UserError("alpha = dt / tau in (0, 1]", str(alpha))
        activation_named(activation)
        self.alpha, self.activation = float(alpha), activation
        self.m = nn.Parameter(init_std * torch.randn(n_units, rank))
        self.n = nn.Parameter(init_std * torch.randn(n_units, rank))
        self.b = nn.Parameter(init_std * torch.randn(n_units, n_inputs)) if n_inputs else None
        self.d = nn.Parameter(init_std * torch.randn(n_units)) if has_bias else None

    @property
    def n_units(self) -> int:
        return self.m.shape[0]

    @property
    def rank(self) -> int:
        return self.m.shape[1]

    @property
    def n_inputs(self) -> int:
        return 0 if self.b is None else self.b.shape[1]

    @property
    def has_bias(self) -> bool:
        return self.d is not None

    def loadings(self) -> Loadings:
        """The live loadings m, b, d (gradients flow)."""
        return Loadings(self.m, self.b, self.d)

    def network(self) -> Network:
        """The network of the live parameters; ``.network().double()`` and ``torch.no_grad`` for analysis."""
        return Network(self.m, self.n, self.b, self.d, self.alpha, self.activation)

    def drive(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Recurrent drive F(z, u) = (1/K) sum_i n_i phi(m_i.z + b_i.u + d_i); z (..., R) -> (..., R)."""
        return self.network().drive(z, u)

    def vector_field(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """dz/dt = -z + F(z, u) in units of 1 / tau, (..., R)."""
        return self.network().vector_field(z, u)

    def step(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """One Euler step from z (..., R) under the input u (..., U)."""
        return self.network().step(z, u)

    def simulate(self, z0: Tensor, steps: int, u: Tensor | None = None) -> Tensor:
        """``steps`` states from z0 (..., R) on, z0 included: (..., steps, R); u is (..., steps - 1 or more, U)."""
        return self.network().simulate(z0, steps, u)

    @torch.no_grad()
    def set_network(self, network: Network) -> LowRankRNN:
        """Copy a network's m, n, b, d into the parameters (cast to their type); returns self.

        Raises:
            UserError: where a shape differs, or an input weight or bias is on one side only.
        """
        for name in ("m", "n", "b", "d"):
            mine, theirs = getattr(self, name), getattr(network, name)
            shapes = [None if x is None else tuple(x.shape) for x in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{name} of shape {shapes[0]}", str(shapes[1]))
            if mine is not None:
                mine.copy_(theirs)
        return self

    def extra_repr(self) -> str:
        return (
            f"n_units={self.n_units}, rank={self.rank}, n_inputs={self.n_inputs}, has_bias={self.has_bias}, "
            f"alpha={self.alpha}, activation={self.activation}"
        )


# ---------------------------------------------------------------------------------------------------------------
# Gauge


@dataclass(frozen=True)
class Gauge:
    """A change of latent coordinates, z' = A z + c, that leaves all rates as they are.

    The loadings become m' = A^-T m and d' = d - m'.c; input weights b stay. Output weights become n' = A n. Without
    a shift the dynamics are the same exactly. A shift also adds c to the drive, which equation (1) has no constant
    for: it is absorbed into n by the smallest correction that supplies c on given states.

    Attributes:
        matrix: A (R, R), float64.
        shift: c (R,), zero for a linear gauge.
    """

    matrix: Tensor
    shift: Tensor

    @staticmethod
    def fit(z: Tensor, truth: Tensor, lengths: Tensor, train: Tensor | None = None, affine: bool = False) -> Gauge:
        """Least squares of one set of latents on another.

        Args:
            z: (trials, time, R) latents to be moved; truth: (trials, time, R) where they should go.
            lengths: (trials,) recorded samples of each trial.
            train: indices of the trials to fit on; None for all.
            affine: allow a shift; for models with a bias only, since no other model can absorb it.

        Raises:
            UserError: where shapes differ, or the latents do not span their space.
        """
        if z.shape != truth.shape:
            raise UserError(f"latents of the shape of the true ones, {tuple(truth.shape)}", str(tuple(z.shape)))
        if train is not None:
            z, truth, lengths = z[train], truth[train], lengths[train]
        mask = valid_mask(lengths, z.shape[1])
        x, y = z[mask].double(), truth[mask].double()
        if affine:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        solution = torch.linalg.lstsq(x, y, driver="gelsd").solution
        matrix = solution[: z.shape[-1]].T
        shift = solution[-1] if affine else matrix.new_zeros(len(matrix))
        if not torch.linalg.cond(matrix) < 1e8:  # also for a zero matrix, whose condition is NaN
            raise UserError(
                "latents that are an invertible linear image of the true ones",
                "a singular map between them",
                "check the rank and that the trials visit more than one point",
            )
        return Gauge(matrix, shift)

    def latents(self, z: Tensor) -> Tensor:
        """A z + c for z (..., R)."""
        return z @ self.matrix.T.to(z.dtype) + self.shift.to(z.dtype)

    def readings(self, z: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Uncertain states (..., R) and their covariances (..., R, R), moved along."""
        matrix = self.matrix.to(covariance.dtype)
        return self.latents(z), matrix @ covariance @ matrix.T

    def loadings(self, loadings: Loadings) -> Loadings:
        """The loadings that read the new latents as the old ones were read; a shift needs a bias to go into."""
        inverse = torch.linalg.inv(self.matrix).to(loadings.m.dtype)
        m, d = loadings.m @ inverse, loadings.d
        if d is not None:
            d = d - m @ self.shift.to(m.dtype)
        elif self.shift.any():
            raise UserError("loadings with a bias for a gauge with a shift", "no bias", "fit a linear gauge")
        return Loadings(m, loadings.b, d)

    def loadings_covariance(self, covariance: Tensor, n_inputs: int = 0) -> Tensor:
        """Covariances (K, P, P) of stacked loadings (m, b, d), moved along."""
        rank, width = len(self.matrix), covariance.shape[-1]
        inverse = torch.linalg.inv(self.matrix).to(covariance.dtype)
        full = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
        full[:rank, :rank] = inverse.T
        if width > rank + n_inputs:
            full[-1, :rank] = -(inverse @ self.shift.to(covariance.dtype))
        return full @ covariance @ full.T

    def network(self, network: Network, z: Tensor | None = None, u: Tensor | None = None) -> Network:
        """The same network in the new coordinates.

        Args:
            z: states (..., R) in the *old* coordinates, needed with a shift only: n takes up the constant part of
                the drive there (minimum-norm correction, exact as far as the constant is in the span of the rates).
            u: inputs (..., U) at those states.
        """
        moved = self.loadings(network.loadings)
        n = network.n @ self.matrix.T.to(network.n.dtype)
        if self.shift.any():
            if z is None:
                raise UserError("visited states for a gauge with a shift", "none")
            n = n + _constant_drive(network, z, u) @ self.shift.to(n.dtype)[None, :]
        return replace(network, m=moved.m, d=moved.d, n=n)


def _constant_drive(network: Network, z: Tensor, u: Tensor | None) -> Tensor:
    """Output weights (K, 1) of least norm with (1/K) sum_i n_i phi_i = 1 on the states z."""
    states, inputs = z.reshape(-1, z.shape[-1]), None if u is None else u.reshape(-1, u.shape[-1])
    keep = _random_rows(len(states), _SUBSET_SAMPLES)
    x = network.double().rates(states[keep].double(), None if inputs is None else inputs[keep].double())
    solution = ridge_output_weights(x, x.new_ones(len(x), 1), regularizer=1e-12)[0]
    return solution.to(network.n.dtype)


# ---------------------------------------------------------------------------------------------------------------
# Samples of all trials run together, in pieces


@dataclass(frozen=True)
class _Samples:
    """Valid samples of ragged trials as rows; ``rows`` index the flattened (trials x time) axis."""

    activity: Tensor  # (trials * time, K)
    inputs: Tensor | None  # (trials * time, U)
    rows: Tensor  # (S,)
    offset: Tensor | None = None  # (trials * time, K), known part of the potential

    @staticmethod
    def of(activity: Tensor, mask: Tensor, inputs: Tensor | None, offset: Tensor | None = None) -> _Samples:
        flat, known = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (inputs, offset))
        return _Samples(activity.reshape(-1, activity.shape[-1]), flat, mask.reshape(-1).nonzero()[:, 0], known)

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, which: Tensor) -> _Samples:
        return replace(self, rows=self.rows[which])

    def every(self, step: int) -> _Samples:
        """The same samples of every ``step``-th neuron."""
        return replace(
            self, activity=self.activity[:, ::step], offset=None if self.offset is None else self.offset[:, ::step]
        )

    def design(self, z: Tensor, has_bias: bool) -> Tensor:
        """[z, u, 1] of shape (S, P), the factors of the stacked loadings."""
        return torch.cat([z, *self.offset_columns(z.dtype, has_bias)], dim=1)

    def has_bias(self, theta: Tensor, rank: int) -> bool:
        """Whether stacked loadings (K, P) hold a bias."""
        return theta.shape[1] > rank + (0 if self.inputs is None else self.inputs.shape[1])

    def offset_columns(self, dtype: torch.dtype, has_bias: bool) -> list[Tensor]:
        columns = [] if self.inputs is None else [self.inputs[self.rows].to(dtype)]
        if has_bias:
            columns.append(self.activity.new_ones(len(self), 1, dtype=dtype))
        return columns

    def with_offset(self, h: Tensor, at: slice, neurons: Tensor | None = None) -> Tensor:
        """Potentials h (s, K), of some neurons, of a slice of the rows, with what is known of them added."""
        if self.offset is None:
            return h
        known = self.offset[self.rows[at]]
        return h + (known if neurons is None else known[:, neurons]).to(h.dtype)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the S rows with their activity."""
        size = max(1, _CHUNK_ELEMENTS // self.activity.shape[1])
        for start in range(0, len(self), size):
            at = slice(start, min(start + size, len(self)))
            yield at, self.activity[self.rows[at]]


def _random_rows(n_rows: int, size: int, seed: int = 0) -> Tensor:
    """At most ``size`` of ``n_rows`` rows in ascending order, always the same ones."""
    if n_rows <= size:
        return torch.arange(n_rows)
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def _subset_size(samples: _Samples) -> int:
    """Samples on which loadings and latents are first found together and modes of the rates sought."""
    return max(200, min(_SUBSET_SAMPLES, _SUBSET_ELEMENTS // samples.activity.shape[1]))


def _outer(x: Tensor) -> Tensor:
    """Products of all pairs of columns, (..., P) -> (..., P * P)."""
    return (x[..., :, None] * x[..., None, :]).flatten(-2)


def _limited_solve(normal: Tensor, score: Tensor, scale: Tensor, limit: float = 1.5) -> Tensor:
    """Solutions (B, P) of B normal equations, shortened so that the rms change of the potential is at most limit.

    ``scale`` (P, P) is the second moment of what the solution multiplies.
    """
    step = torch.linalg.solve_ex(normal, score[..., None])[0][..., 0]
    change = torch.einsum("bp,pq,bq->b", step, scale, step).clamp_min(1e-300).sqrt()
    step = step * (limit / change).clamp_max(1.0)[:, None]
    return torch.where(torch.isfinite(step), step, torch.zeros_like(step))


def _prior_precision(dispersion: float | Tensor) -> float:
    return float(dispersion) / _PRIOR_SD**2 + 1e-10


def _column_precision(theta: Tensor, moment: Tensor, dispersion: float) -> Tensor:
    """Prior precision (P,) of the stacked loadings, in units of the weights: each column's robust spread.

    It binds a neuron that the data leave open in a direction, for instance one that every input saturates.
    """
    spread = 1.48 * theta.abs().median(0).values
    return dispersion / torch.maximum(spread, moment.diagonal().clamp_min(1e-12).rsqrt()).square() + 1e-10


def _loading_equations(
    samples: _Samples,
    x: Tensor,
    theta: Tensor,
    observation: Observation,
    matching: bool = False,
    neurons: Tensor | None = None,
    seen_only: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal matrices (K, P, P), scores (K, P) and losses (K,) of the stacked loadings, given x = [z, u, 1] (S, P).

    The loss is that of the observation, summed over samples (matching steps on the way to a squared error ignore it).

    Args:
        neurons: the columns of the activity that theta belongs to, where they are not all.
        seen_only: relu neurons inform on their loadings only where they were seen active.
    """
    width, n_neurons, low = x.shape[1], theta.shape[0], samples.activity.dtype
    normal, score = x.new_zeros(n_neurons, width * width), x.new_zeros(n_neurons, width)
    loss, theta_low = x.new_zeros(n_neurons), theta.to(low).T
    for at, y in samples.pieces():
        piece = x[at].to(low)
        y, h = y if neurons is None else y[:, neurons], samples.with_offset(piece @ theta_low, at, neurons)
        s, w, _ = observation.newton_terms(y, h, matching)
        if seen_only and observation.phi.name == "relu":
            w = w * (y > 0)
        normal += (w.T @ _outer(piece)).double()
        score += (s.T @ piece).double()
        loss += observation.loss(y, h).sum(0).double()
    return normal.reshape(n_neurons, width, width), score, loss


def _update_loadings(
    samples: _Samples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float, matching: bool = False
) -> Tensor:
    """One damped Newton step for the stacked loadings of all neurons."""
    normal, score, _ = _loading_equations(samples, x, theta, observation, matching)
    moment = x.T @ x
    precision = _column_precision(theta, moment / len(x), dispersion)
    damped = normal + torch.diag(precision) + _DAMPING * moment
    return theta + _limited_solve(damped, score - precision * theta, moment / len(x))


def _loadings_covariance(
    samples: _Samples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float
) -> Tensor:
    """Laplace covariance (K, P, P) of the stacked loadings given the latents in x: dispersion (X^T W X + prior)^-1.

    The dispersion is at least what rounding in the type of the activity leaves.
    """
    power = float(samples.activity[samples.rows[_random_rows(len(samples), 200)]].square().mean())
    dispersion = max(dispersion, power * (20 * torch.finfo(samples.activity.dtype).eps) ** 2)
    normal, _, _ = _loading_equations(samples, x, theta, observation, seen_only=True)
    precision = _column_precision(theta, x.T @ x / len(x), dispersion)
    return torch.linalg.inv(normal + torch.diag(precision)) * dispersion


def _converged_loadings(
    samples: _Samples, x: Tensor, theta: Tensor, observation: Observation, dispersion: float, passes: int = 30
) -> Tensor:
    """Loadings of all neurons given the design x (S, P): Levenberg-Marquardt, each neuron with its own damping.

    After a first pass over all neurons only those that still move, or were refused a step, are taken up again.
    """
    moment, theta = x.T @ x, theta.clone()
    scale = moment / len(x)
    precision = _column_precision(theta, scale, dispersion)
    step, damping = torch.zeros_like(theta), theta.new_full((len(theta),), 1e-9)
    best = theta.new_full((len(theta),), float("inf"))
    equations = [theta.new_zeros(len(theta), theta.shape[1], theta.shape[1]), torch.zeros_like(theta)]
    moving = torch.arange(len(theta), device=theta.device)
    for _ in range(passes):
        trial = theta[moving] + step[moving]
        some = None if len(moving) == len(theta) else moving
        normal, score, loss = _loading_equations(samples, x, trial, observation, neurons=some)
        loss = loss + (precision * trial.square()).sum(1)
        better = loss < best[moving]
        up = moving[better]
        theta[up], best[up] = trial[better], loss[better]
        equations[0][up], equations[1][up] = (
            normal[better] + torch.diag(precision),
            score[better] - precision * trial[better],
        )
        damping[moving] *= torch.where(better, 0.1, 30.0).to(theta)
        lifted = equations[0][moving] + damping[moving, None, None].clamp_min(1e-9) * moment
        step[moving] = _limited_solve(lifted, equations[1][moving], scale)
        change = torch.einsum("kp,pq,kq->k", step[moving], scale, step[moving])
        moving = moving[(change > 1e-6) & (damping[moving] < 1e3)]
        if not len(moving):
            break
    small = torch.einsum("kp,pq,kq->k", step, scale, step) <= 1e-6
    return torch.where(small[:, None], theta + step, theta)


def _update_latents(
    samples: _Samples,
    z: Tensor,
    theta: Tensor,
    observation: Observation,
    matching_steps: int,
    newton_steps: int,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor, float]:
    """Latents of every sample given the stacked loadings theta (K, P); at most matching + newton steps.

    Returns:
        z (S, R), the normal matrices (S, R, R) before the last step, the mean squared residual there.
    """
    rank, low = z.shape[1], samples.activity.dtype
    has_bias = samples.has_bias(theta, rank)
    m, rest = theta[:, :rank].to(low), theta[:, rank:].to(low).T
    pairs, scale = _outer(m), theta[:, :rank].T @ theta[:, :rank] / len(theta)
    eye, dispersion, total = torch.eye(rank, dtype=z.dtype, device=z.device), 1e-6, 0.0
    z, normals = z.clone(), z.new_zeros(len(z), rank, rank)
    columns = samples.offset_columns(low, has_bias)
    offsets = torch.cat(columns, dim=1) if columns else None
    for at, y in samples.pieces():
        fixed = None if offsets is None else offsets[at] @ rest
        matching_left = matching_steps
        for _ in range(matching_steps + newton_steps):
            h = z[at].to(low) @ m.T
            if fixed is not None:
                h += fixed
            h = samples.with_offset(h, at)
            s, w, residual = observation.newton_terms(y, h, matching_left > 0)
            normal = (w @ pairs).double().reshape(-1, rank, rank)
            dispersion = observation.dispersion(float(residual.square().mean()))
            precision = _prior_precision(dispersion)
            damped = normal + precision * eye + _DAMPING * len(theta) * scale
            move = _limited_solve(damped, (s @ m).double() - precision * z[at], scale)
            z[at] += move
            furthest = float(move.abs().max())
            error_bar = (dispersion / normal.diagonal(dim1=1, dim2=2).median().clamp_min(1e-12)).sqrt()
            if matching_left == 0 and furthest < max(tolerance, 0.05 * float(error_bar)):
                break
            matching_left = 0 if furthest < 0.03 else max(matching_left - 1, 0)
        normals[at] = normal
        total += float(residual.square().sum())
    return z, normals, total / (len(samples) * len(theta))


# ---------------------------------------------------------------------------------------------------------------
# Start: modes of the rates, inverse of phi, principal components


def _denoised(y: Tensor) -> tuple[Tensor, float]:
    """The part of y (S, K) in singular modes that stand out of white noise, and the rms of the rest.

    Threshold: the median singular value times the factor that is optimal for unknown white noise (Gavish, Donoho
    2014), in its cubic approximation.
    """
    wide = y.shape[0] < y.shape[1]
    tall = y.T if wide else y
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    singular = values.clamp_min(0).sqrt()
    beta = tall.shape[1] / tall.shape[0]
    cut = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * singular.median()
    basis = vectors[:, singular > cut]
    kept = basis @ (basis.T @ y) if wide else (y @ basis) @ basis.T
    return kept, float((y - kept).square().mean().sqrt())


def _principal_start(samples: _Samples, rank: int, has_bias: bool, observation: Observation) -> tuple[Tensor, Tensor]:
    """Latents (S, R) with unit second moment and stacked loadings (K, P) from the principal components of phi^-1."""
    y = samples.activity[samples.rows].double()
    kept, noise = _denoised(y)
    spread = observation.spread(y)
    margin = spread * min(max(0.2 * noise / max(spread, 1e-12), 1e-6), 0.05)
    full = observation.phi.inverse(observation.inside(kept, margin))
    if samples.offset is not None:
        full = full - samples.offset[samples.rows]
    h, columns = full, samples.offset_columns(torch.float64, has_bias)
    if columns:
        known = torch.cat(columns, dim=1)
        h = h - known @ torch.linalg.lstsq(known, h, driver="gelsd").solution
    gram = h @ h.T if len(h) < h.shape[1] else h.T @ h
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
    z = vectors if len(h) < h.shape[1] else h @ vectors
    z = z / z.square().mean(0).sqrt().clamp_min(1e-12)
    x = samples.design(z, has_bias)
    return z, torch.linalg.lstsq(x, full, driver="gelsd").solution.T.contiguous()


def _with_noise_seen(samples: _Samples, observation: Observation) -> Observation:
    """Of rates: two-valued noise where nearly all lie at the two ends of phi's range, else Gaussian noise."""
    phi = observation.phi
    if observation.noise == "poisson":
        return observation
    if phi.high == float("inf"):
        return observation.with_noise("gaussian")
    y = samples.activity[samples.rows[_random_rows(len(samples), 200)]]
    margin = 1e-4 * (phi.high - phi.low)
    at_ends = ((y - phi.low).abs() < margin) | ((y - phi.high).abs() < margin)
    return observation.with_noise("two_valued" if at_ends.double().mean() > 0.98 else "gaussian")


def _joint_step(
    samples: _Samples, z: Tensor, theta: Tensor, observation: Observation, has_bias: bool, damping: float
) -> tuple[Tensor, Tensor]:
    """Moves of latents (S, R) and stacked loadings (K, P) by one Gauss-Newton step for both at once.

    Alternation converges slowly where the two trade off (relu, softplus). The latents are eliminated sample by sample;
    what remains for the loadings is solved by conjugate gradients, preconditioned by each neuron's own block.
    ``damping`` is relative to the diagonal blocks (Levenberg-Marquardt).
    """
    low, rank, width = samples.activity.dtype, z.shape[1], theta.shape[1]
    x, m = samples.design(z, has_bias).to(low), theta[:, :rank].to(low)
    h = samples.with_offset(x @ theta.to(low).T, slice(None))
    s, w, _ = observation.newton_terms(samples.activity[samples.rows], h)

    def block(normal: Tensor, size: int) -> Tensor:
        normal = normal.double().reshape(-1, size, size)
        eye = torch.eye(size, dtype=normal.dtype, device=normal.device)
        return normal + (damping * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-10) * eye

    of_z, of_theta = block(w @ _outer(m), rank), block(w.T @ _outer(x), width)
    inverse_z, inverse_theta = torch.linalg.inv(of_z), torch.linalg.inv(of_theta)
    extra = of_theta - (w.T @ _outer(x)).double().reshape(-1, width, width)

    def eliminated(weighted: Tensor) -> Tensor:
        """The latents' answer to a weighted change of potentials (S, K)."""
        return torch.einsum("srq,sq->sr", inverse_z, (weighted @ m).double())

    def schur(direction: Tensor) -> Tensor:
        weighted = w * (x @ direction.to(low).T)
        back = w * (eliminated(weighted).to(low) @ m.T)
        return ((weighted - back).T @ x).double() + torch.einsum("kpq,kq->kp", extra, direction)

    residual = ((s - w * (eliminated(s).to(low) @ m.T)).T @ x).double()
    move = _conjugate_gradients(schur, residual, lambda r: torch.einsum("kpq,kq->kp", inverse_theta, r))
    return eliminated(s - w * (x @ move.to(low).T)), move


def _conjugate_gradients(
    operator: Callable, right: Tensor, precondition: Callable, iterations: int = 60, tolerance: float = 1e-3
) -> Tensor:
    """Solution of operator(x) = right for a positive semidefinite operator, to a relative residual."""
    x, residual = torch.zeros_like(right), right
    conditioned = precondition(residual)
    direction, power = conditioned, float((residual * conditioned).sum())
    goal = tolerance**2 * power
    for _ in range(iterations):
        image = operator(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0 or power <= goal:
            break
        x, residual = x + power / curvature * direction, residual - power / curvature * image
        conditioned = precondition(residual)
        power, before = float((residual * conditioned).sum()), power
        direction = conditioned + power / before * direction
    return x


def _mean_loss(samples: _Samples, z: Tensor, theta: Tensor, observation: Observation, has_bias: bool) -> float:
    """Mean squared residual, or twice the mean negative log likelihood up to a constant."""
    h = samples.with_offset(
        samples.design(z, has_bias).to(samples.activity.dtype) @ theta.to(samples.activity.dtype).T, slice(None)
    )
    return float(observation.loss(samples.activity[samples.rows], h).mean())


def _start_fit(
    samples: _Samples, rank: int, has_bias: bool, observation: Observation, joint_steps: int = 25
) -> tuple[Tensor, Tensor]:
    """Latents (S, R) and stacked loadings (K, P) of some samples.

    Alternating Newton steps on the convex matching loss bring them near; damped joint Gauss-Newton steps on the
    squared error (two-valued data and counts: on the log likelihood) finish. They end when a step gains less than a
    ten-thousandth, or at float32 rounding.
    """
    z, theta = _principal_start(samples, rank, has_bias, observation)
    relu, exact = observation.phi.name == "relu", observation.noise == "gaussian"
    for sweep in range(8 if relu else 4):
        matching = sweep < (6 if relu else 2)
        z, _, error = _update_latents(samples, z, theta, observation, int(matching), int(not matching))
        x, dispersion = samples.design(z, has_bias), observation.dispersion(error)
        theta = _update_loadings(samples, x, theta, observation, dispersion, matching)
    power = float(samples.activity[samples.rows].square().mean())
    damping, error = 1e-4, _mean_loss(samples, z, theta, observation, has_bias)
    for _ in range(joint_steps):
        if exact and error < 1e-13 * power:
            break
        z_move, move = _joint_step(samples, z, theta, observation, has_bias, damping)
        trial = _mean_loss(samples, z + z_move, theta + move, observation, has_bias)
        if trial < error:
            gained, error = (error - trial) / abs(error), trial
            z, theta, damping = z + z_move, theta + move, max(damping / 10, 1e-9)
            if gained < 1e-4:
                break
        else:
            damping *= 10
            if damping > 1:
                break
    return z, theta


# ---------------------------------------------------------------------------------------------------------------
# Output weights


def ridge_output_weights(x: Tensor, y: Tensor, regularizer: float | None = None) -> tuple[Tensor, float]:
    """Output weights N (K, R) minimising (1/T) ||Y - X N / K||^2 + (lambda / K) ||N||^2.

    Solved in the singular modes of X above a cutoff, by the smaller of its two Gram matrices, so that the cost is
    that of min(T, K) whatever the other size.

    Args:
        x: (T, K) rates, float64; y: (T, R) recurrent drives.
        regularizer: lambda; None chooses it by generalised cross-validation.

    Returns:
        N (K, R) and lambda.
    """
    basis = _rate_modes(x)
    features = (x @ basis) / x.shape[1] ** 0.5
    weights, chosen = _ridge_in_modes(features.T @ features, features.T @ y, y.square().sum(), len(y), regularizer)
    return x.shape[1] ** 0.5 * (basis @ weights), chosen


def _rate_modes(x: Tensor, most: int | None = None) -> Tensor:
    """Orthonormal directions (K, q) of the neuron space in which the rates x (T, K) vary, strongest first."""
    dual = x.shape[0] < x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if dual else x.T @ x)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = (values > _MODE_CUTOFF**2 * values[0]).nonzero()[:most, 0]
    values, vectors = values[keep], vectors[:, keep]
    return (x.T @ vectors) / values.sqrt() if dual else vectors


def _ridge_in_modes(
    gram: Tensor, cross: Tensor, power: Tensor, n_samples: int, regularizer: float | None
) -> tuple[Tensor, float]:
    """Ridge weights (q, R) from sufficient statistics P^T P, P^T Y and ||Y||^2; lambda by GCV where None."""
    values, vectors = torch.linalg.eigh(gram)
    values, rotated = values.clamp_min(0), vectors.T @ cross
    if regularizer is None:
        grid = float(values[-1]) * torch.logspace(-14, -2, 49, dtype=values.dtype, device=values.device)
        shrink = values / (values + grid[:, None])
        fitted = (rotated.square().sum(1) / values.clamp_min(1e-300)) * (2 * shrink - shrink.square())
        error = (power - fitted.sum(1)).clamp_min(1e-14 * float(power))
        free = (1 - shrink.sum(1) / n_samples).clamp_min(1e-3)
        regularizer = float(grid[(error / free.square()).argmin()]) / n_samples
    return vectors @ (rotated / (values + n_samples * regularizer)[:, None]), regularizer


@dataclass(frozen=True)
class _Dynamics:
    """What a regression of the drive on the rates gives."""

    n: Tensor  # (K, R)
    regularizer: float
    jump: Tensor | None  # (R, U): part of the latents that follows the input without delay


def _fit_dynamics(
    samples: _Samples, z: Tensor, theta: Tensor, mask: Tensor, alpha: float, phi: Activation, regularizer: float | None
) -> _Dynamics:
    """Output weights from latents z (trials, time, R) by ridge on all steps, and the jump of the latents with inputs.

    With inputs, loadings and activity fix the latents only up to z + C u, since b - m C undoes it. The dynamics
    decide: z[t+1] must not depend on u[t+1]. With latents z + C u the drive is F + C (u[t+1] - (1 - alpha) u[t]) /
    alpha, linear in n and C, while the rates do not depend on the choice; so both are found in one regression.
    C is left at zero where these columns are nearly in the span of the rates (constant inputs).
    """
    steps = z.shape[1]
    valid = (mask[:, 1:] & mask[:, :-1]).reshape(-1).nonzero()[:, 0]
    at = valid + torch.div(valid, steps - 1, rounding_mode="floor")  # row in the flattened (trials x time) axis
    flat = z.reshape(-1, z.shape[-1])
    y = (flat[at + 1] - (1 - alpha) * flat[at]) / alpha
    here = replace(samples, rows=at)
    sub = _random_rows(len(at), _subset_size(samples))
    few = here.subset(sub)
    has_bias = samples.has_bias(theta, z.shape[-1])
    basis = _rate_modes(phi(few.design(flat[at[sub]], has_bias) @ theta.T))
    v = None
    if samples.inputs is not None:
        v = (samples.inputs[at + 1].double() - (1 - alpha) * samples.inputs[at].double()) / alpha
    moments = _feature_moments(here, flat[at], theta, basis, phi, v, y)
    q, rank = basis.shape[1], y.shape[1]
    jump_map = None
    if v is not None:
        moments, jump_map = _partial_out(moments, q, v.shape[1])
    gram, cross, power = moments[:q, :q], moments[:q, -rank:], moments.diagonal()[-rank:].sum()
    weights, chosen = _ridge_in_modes(gram, cross, power, len(y), regularizer)
    jump = None if jump_map is None else (jump_map[:, -rank:] - jump_map[:, :q] @ weights).T
    return _Dynamics(len(theta) ** 0.5 * (basis @ weights), chosen, jump)


def _feature_moments(
    samples: _Samples, z: Tensor, theta: Tensor, basis: Tensor, phi: Activation, v: Tensor | None, y: Tensor
) -> Tensor:
    """Second moments, summed over samples, of [rates in the modes / sqrt(K), v, y] side by side."""
    low = samples.activity.dtype
    x, weights = samples.design(z, samples.has_bias(theta, z.shape[1])), (basis / len(theta) ** 0.5).to(low)
    total, theta_low = 0.0, theta.to(low).T
    for at, _ in samples.pieces():
        features = (phi(x[at].to(low) @ theta_low) @ weights).double()
        row = torch.cat([features, y[at]] if v is None else [features, v[at], y[at]], dim=1)
        total = total + row.T @ row
    return total


def _partial_out(moments: Tensor, q: int, n_inputs: int) -> tuple[Tensor, Tensor | None]:
    """Moments of features and y less their regression on v, and that regression (U, q + R).

    Where the features explain v nearly, v is dropped instead and there is no regression.
    """
    is_v = torch.zeros(len(moments), dtype=torch.bool, device=moments.device)
    is_v[q : q + n_inputs] = True
    of_v, rest, mixed = moments[is_v][:, is_v], moments[~is_v][:, ~is_v], moments[is_v][:, ~is_v]
    gram = moments[:q, :q] + 1e-12 * moments[:q, :q].diagonal().max() * torch.eye(
        q, dtype=moments.dtype, device=moments.device
    )
    own = of_v - mixed[:, :q] @ torch.linalg.solve(gram, mixed[:, :q].T)
    if bool((own.diagonal() < 1e-2 * of_v.diagonal()).any()):
        return rest, None
    coefficients = torch.linalg.solve(of_v, mixed)
    return rest - mixed.T @ coefficients, coefficients


# ---------------------------------------------------------------------------------------------------------------
# Output weights from noisy latents: Gauss-Newton on trajectories


@dataclass(frozen=True)
class _Segments:
    """Pieces of trials run side by side, each with its own initial state; information is zero past a trial's end."""

    z: Tensor  # (B, L, R)
    information: Tensor  # (B, L, R, R)
    inputs: Tensor | None  # (B, L, U)

    @staticmethod
    def cut(z: Tensor, information: Tensor, inputs: Tensor | None, length: int) -> _Segments:
        def split(x: Tensor) -> Tensor:
            extra = -x.shape[1] % length
            if extra:
                x = torch.cat([x, x.new_zeros(x.shape[0], extra, *x.shape[2:])], dim=1)
            return x.reshape(-1, length, *x.shape[2:])

        pieces = [split(z), split(information), None if inputs is None else split(inputs.double())]
        used = pieces[1].flatten(1).abs().amax(1) > 0
        return _Segments(*(None if x is None else x[used] for x in pieces))


def _shoot(segments: _Segments, network: Network, basis: Tensor, iterations: int = 8) -> tuple[Tensor, float, float]:
    """Output weights under which noise-free trajectories pass nearest to the sample-wise latents.

    Regressing one-step differences of noisy latents on rates at the same latents is biased, most of all near fixed
    points. Here the segments are simulated; their initial states are eliminated from the Gauss-Newton equations for
    the weights. Prior: n independent N(0, 1 / precision) in the modes of the rates, precision by the fixed point of
    the evidence (MacKay 1992), with the noise scaled to the misfit.

    Args:
        segments: latents with their information (inverse noise covariance).
        network: loadings, and output weights to start from.
        basis: (K, q) orthonormal modes of the rates; the weights found lie in their span.

    Returns:
        n (K, R), the precision divided by the number of samples (the lambda that plays its part), the misfit (mean
        squared normalised residual, about 1 where the noise is as stated and the dynamics are deterministic).
    """
    k, rank = network.n.shape
    weights = basis.T @ network.n / k**0.5
    start = segments.z[:, 0]
    n_obs = int((segments.information.flatten(2).abs().amax(2) > 0).sum()) * rank
    best, shrink, precision, state = None, 1.0, 1.0 / max(float(network.n.square().mean()), 1e-6), None
    for _ in range(iterations):
        trial = replace(network, n=k**0.5 * basis @ weights)
        chi2, *equations = _sensitivities(segments, trial, basis, start)
        objective = chi2 + precision * float(weights.square().sum())
        if not all(bool(torch.isfinite(part).all()) for part in equations):  # a simulation that ran away
            if best is None:
                return network.n, precision * rank / n_obs, float("inf")
            objective = math.inf
        if best is not None and not objective < best * (1 + 1e-9):
            shrink *= 0.5
            if shrink < 0.1:
                break
        else:
            if best is not None and best - objective < 1e-4 * best:
                state = weights, start, chi2
                break
            state, best, shrink = (weights, start, chi2), objective, 1.0
            move, start_move, precision = _eliminated_step(equations, weights, chi2, n_obs, precision)
            best = chi2 + precision * float(weights.square().sum())
        weights, start = state[0] + shrink * move, state[1] + shrink * start_move
    weights, _, chi2 = state
    misfit = chi2 / max(n_obs - weights.numel() - segments.z.shape[0] * rank, 1)
    return k**0.5 * basis @ weights, precision * rank / n_obs, misfit


def _sensitivities(segments: _Segments, network: Network, basis: Tensor, start: Tensor) -> tuple:
    """What :func:`_sensitivities_of` returns for all segments, computed for some at a time."""
    size = max(1, _CHUNK_ELEMENTS // network.n_neurons)
    parts = []
    for first in range(0, len(start), size):
        at = slice(first, first + size)
        u = None if segments.inputs is None else segments.inputs[at]
        some = _Segments(segments.z[at], segments.information[at], u)
        parts.append(_sensitivities_of(some, network, basis, start[at]))
    chi2, h_ww, h_ws, h_ss, g_w, g_s = zip(*parts)
    return sum(chi2), sum(h_ww), torch.cat(h_ws), torch.cat(h_ss), sum(g_w), torch.cat(g_s)


def _sensitivities_of(segments: _Segments, network: Network, basis: Tensor, start: Tensor) -> tuple:
    """Chi square of the simulated segments and the Gauss-Newton blocks for weights (q R) and initial states (R)."""
    (n_seg, steps, rank), q, k = segments.z.shape, basis.shape[1], network.n_neurons
    phi, alpha, low = activation_named(network.activation), network.alpha, network.loadings.map(lambda x: x.float())
    modes = (basis / k**0.5).float()
    pairs = (network.n[:, :, None] * network.m[:, None, :]).flatten(1).float() / k
    n = network.n.float() / k
    eye = torch.eye(rank, dtype=start.dtype, device=start.device)
    x, to_start = start, eye.expand(n_seg, rank, rank)
    to_weights = start.new_zeros(n_seg, rank, q, rank)
    size, chi2 = q * rank, 0.0
    h_ww, g_w = start.new_zeros(size, size), start.new_zeros(size)
    h_ws, h_ss, g_s = start.new_zeros(n_seg, size, rank), start.new_zeros(n_seg, rank, rank), torch.zeros_like(start)
    for t in range(steps):
        information, flat = segments.information[:, t], to_weights.reshape(n_seg, rank, size)
        pull = torch.einsum("bij,bj->bi", information, segments.z[:, t] - x)
        chi2 += float((pull * (segments.z[:, t] - x)).sum())
        weighted = information @ flat
        h_ww += flat.reshape(-1, size).T @ weighted.reshape(-1, size)
        g_w += flat.reshape(-1, size).T @ pull.reshape(-1)
        h_ws += weighted.mT @ to_start
        h_ss += to_start.mT @ information @ to_start
        g_s += torch.einsum("bji,bj->bi", to_start, pull)
        if t == steps - 1:
            break
        u = None if segments.inputs is None else segments.inputs[:, t].float()
        value, slope = value_and_slope(phi, potentials(low, x.float(), u))
        jacobian = (1 - alpha) * eye + alpha * (slope @ pairs).double().reshape(n_seg, rank, rank)
        to_weights = (jacobian @ flat).reshape(n_seg, rank, q, rank)
        to_weights = to_weights + alpha * (value @ modes).double()[:, None, :, None] * eye[None, :, None, :]
        to_start = jacobian @ to_start
        x = (1 - alpha) * x + alpha * (value @ n).double()
    return chi2, h_ww, h_ws, h_ss, g_w, g_s


def _eliminated_step(
    equations: list[Tensor], weights: Tensor, chi2: float, n_obs: int, precision: float
) -> tuple[Tensor, Tensor, float]:
    """Moves of weights and initial states, and the precision of the prior at the fixed point of its evidence."""
    h_ww, h_ws, h_ss, g_w, g_s = equations
    # a segment that leaves its initial state open in some direction must not end the fit
    ridge = 1e-6 + 1e-10 * h_ss.diagonal(dim1=1, dim2=2).mean(1)
    h_ss = h_ss + ridge[:, None, None] * torch.eye(h_ss.shape[-1], dtype=h_ss.dtype, device=h_ss.device)
    solved = torch.linalg.solve(h_ss, torch.cat([h_ws.mT, g_s[..., None]], dim=-1))
    hessian = h_ww - torch.einsum("bwi,biv->wv", h_ws, solved[..., :-1])
    score = g_w - torch.einsum("bwi,bi->w", h_ws, solved[..., -1])
    values, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
    values = values.clamp_min(0)
    scale = max(chi2 / max(n_obs - len(values) - h_ss.shape[0] * h_ss.shape[1], 1), 1.0)
    target = vectors.T @ (score + hessian @ weights.reshape(-1))
    for _ in range(30):
        solution = target / (values + precision)
        determined = float((values / (values + precision)).sum())
        precision = scale * determined / max(float(solution.square().sum()), 1e-12)
    move = (vectors @ (target / (values + precision))).reshape(weights.shape) - weights
    start_move = solved[..., -1] - torch.einsum("biw,w->bi", solved[..., :-1], move.reshape(-1))
    return move, start_move, precision


# ---------------------------------------------------------------------------------------------------------------
# Latents given a network


def least_squares_latents(
    activity: Tensor,
    mask: Tensor,
    loadings: Loadings,
    observation: Observation,
    inputs: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """The latents that best explain each sample's rates through the loadings, sample by sample.

    Newton's method on the convex matching loss from the projected phi^-1 of the rates, then Gauss-Newton on the
    squared error; for two-valued data and counts on the log likelihood throughout. Elementwise work is done in the type of the activity, sums over neurons are solved in float64.

    Args:
        activity: (trials, time, K) rates; mask: (trials, time) True where a sample counts.
        observation: phi and the noise about it.
        inputs: (trials, time, U) or None; offset: (trials, time, K), a known part of the potentials, or None.

    Returns:
        z (trials, time, R) float64, zero where masked; the normal matrices (trials, time, R, R) (information on z in
        units of the noise variance of one rate); the mean squared residual.
    """
    samples = _Samples.of(activity, mask, inputs, offset)
    theta, rank = loadings.stack().detach().double(), loadings.rank
    z, normal, error = _latents_of(samples, theta, rank, observation)
    full = z.new_zeros(mask.numel(), rank)
    information = z.new_zeros(mask.numel(), rank, rank)
    full[samples.rows], information[samples.rows] = z, normal
    return full.reshape(*mask.shape, rank), information.reshape(*mask.shape, rank, rank), error


def _latents_of(samples: _Samples, theta: Tensor, rank: int, observation: Observation) -> tuple[Tensor, Tensor, float]:
    """Latents (S, R) of every sample given the stacked loadings, from no start; see :func:`_update_latents`."""
    few = samples.every(max(1, len(theta) // _SCOUTS))
    some = theta[:: max(1, len(theta) // _SCOUTS)]
    start = _projected_start(few, some, rank, observation)
    z, normal, error = _update_latents(few, start, some, observation, 10, 8)
    if len(some) == len(theta):
        return z, normal, error
    return _update_latents(samples, z, theta, observation, 1, 8)


def _projected_start(samples: _Samples, theta: Tensor, rank: int, observation: Observation) -> Tensor:
    """phi^-1 of the rates, kept well inside the range, projected onto the loadings: (S, R)."""
    low = samples.activity.dtype
    m, rest = theta[:, :rank], theta[:, rank:]
    project = torch.linalg.pinv(m).T.to(low)
    columns = samples.offset_columns(low, samples.has_bias(theta, rank))
    offsets = torch.cat(columns, dim=1) if columns else None
    z = theta.new_empty(len(samples), rank)
    for at, y in samples.pieces():
        h = observation.phi.inverse(observation.inside(y, 0.03 * observation.spread(y)))
        if samples.offset is not None:
            h = h - samples.offset[samples.rows[at]].to(low)
        if offsets is not None:
            h = h - offsets[at] @ rest.to(low).T
        z[at] = (h @ project).double()
    return z


def smooth_latents(
    z: Tensor,
    information: Tensor,
    network: Network,
    lengths: Tensor,
    inputs: Tensor | None = None,
    process_covariance: Tensor | None = None,
    iterations: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents from sample-wise estimates and the network's dynamics: an iterated Rauch-Tung-Striebel smoother.

    Model: z[t+1] = step(z[t], u[t]) + N(0, Q); the estimate z[t] has the Fisher information given. The step is
    linearised about the last iterate; all trials run side by side, time is the only loop.

    Args:
        z: (trials, time, R) sample-wise estimates; information: (trials, time, R, R), zero where nothing was seen.
        lengths: (trials,); inputs: (trials, time, U) or None.
        process_covariance: Q (R, R); None estimates it, at first from the moments of the one-step errors and then by
            maximum likelihood along the iterations.

    Returns:
        smoothed z (trials, time, R), posterior covariances (trials, time, R, R), Q. Float64.
    """
    network, z, information = network.double(), z.double(), information.double()
    u = None if inputs is None else inputs.double()
    valid = valid_mask(lengths, z.shape[1])
    pairs = (valid[:, 1:] & valid[:, :-1])[..., None]
    learn, q, reference = process_covariance is None, process_covariance, z
    for _ in range(iterations):
        following, jacobian = _linearised_step(network, reference, u, valid)
        if q is None:
            q = _moment_covariance(z, information, following, jacobian, pairs[..., 0])
        # Expectation maximisation alone would need very many steps where Q is near zero: scale by the likelihood.
        scales = _Q_SCALES if learn else (1.0,)
        forward = [_filter(z, information, following, jacobian, reference, scale * q) for scale in scales]
        chosen = max(range(len(scales)), key=lambda i: forward[i].log_likelihood)
        mean, covariance, lagged = _smooth_back(forward[chosen], jacobian)
        q = scales[chosen] * q
        if learn:
            moved = torch.einsum("ntij,ntj->nti", jacobian[:, :-1], mean[:, :-1] - reference[:, :-1])
            error = torch.where(pairs, mean[:, 1:] - following[:, :-1] - moved, 0.0)
            a = jacobian[:, :-1]
            spread = covariance[:, 1:] - a @ lagged - (a @ lagged).mT + a @ covariance[:, :-1] @ a.mT
            total = torch.einsum("nti,ntj->ij", error, error) + (spread * pairs[..., None]).sum((0, 1))
            q = _positive(total / pairs.sum())
        settled = float((mean - reference)[valid].abs().max()) < 1e-7
        reference = torch.where(valid[..., None], mean, 0.0)
        if settled:
            break
    return reference, covariance, q


def _positive(matrix: Tensor, floor: float = 1e-12) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(floor)[..., None, :]) @ vectors.mT


def _linearised_step(network: Network, z: Tensor, u: Tensor | None, valid: Tensor) -> tuple[Tensor, Tensor]:
    """step(z, u) (trials, time, R) and its Jacobian (trials, time, R, R); the identity where nothing was recorded."""
    phi, rank, k = activation_named(network.activation), network.rank, network.n_neurons
    following = z.clone()
    jacobian = torch.eye(rank, dtype=z.dtype, device=z.device).repeat(*z.shape[:2], 1, 1)
    rows = valid.reshape(-1).nonzero()[:, 0]
    flat_z, flat_u = z.reshape(-1, rank), None if u is None else u.reshape(-1, u.shape[-1])
    low = network.loadings.map(lambda x: x.float())
    n, pairs = network.n.float() / k, (network.n[:, :, None] * network.m[:, None, :]).flatten(1).float() / k
    drive, slopes = z.new_empty(len(rows), rank), z.new_empty(len(rows), rank * rank)
    size = max(1, _CHUNK_ELEMENTS // k)
    for start in range(0, len(rows), size):
        at = slice(start, start + size)
        h = potentials(low, flat_z[rows[at]].float(), None if flat_u is None else flat_u[rows[at]].float())
        value, slope = value_and_slope(phi, h)
        drive[at], slopes[at] = (value @ n).double(), (slope @ pairs).double()
    keep, alpha = valid.reshape(-1), network.alpha
    following.view(-1, rank)[keep] = (1 - alpha) * flat_z[rows] + alpha * drive
    eye = torch.eye(rank, dtype=z.dtype, device=z.device)
    jacobian.view(-1, rank, rank)[keep] = (1 - alpha) * eye + alpha * slopes.reshape(-1, rank, rank)
    return following, jacobian


def _moment_covariance(z: Tensor, information: Tensor, following: Tensor, jacobian: Tensor, pairs: Tensor) -> Tensor:
    """Q from the one-step errors of the estimates, less what the estimates' own noise contributes to them."""
    error = (z[:, 1:] - following[:, :-1])[pairs]
    noise = torch.linalg.pinv(information, hermitian=True)
    a = jacobian[:, :-1][pairs]
    own = noise[:, 1:][pairs] + a @ noise[:, :-1][pairs] @ a.mT
    total = error.T @ error / len(error)
    return _positive(total - own.mean(0), floor=max(1e-12, 1e-2 * float(total.diagonal().mean())))


@dataclass(frozen=True)
class _Filtered:
    """Means and covariances after and before each sample, time first, and the log likelihood up to a constant."""

    filtered: list[tuple[Tensor, Tensor]]
    predicted: list[tuple[Tensor, Tensor]]
    log_likelihood: float


def _filter(
    z: Tensor, information: Tensor, following: Tensor, jacobian: Tensor, reference: Tensor, q: Tensor
) -> _Filtered:
    """Kalman filter of the linearised model; an estimate without information leaves the prediction as it is."""
    trials, steps, rank = z.shape
    eye = torch.eye(rank, dtype=z.dtype, device=z.device)
    mean, covariance = z.new_zeros(trials, rank), (_PRIOR_SD**2 * eye).expand(trials, rank, rank)
    filtered, predicted, total = [], [], z.new_zeros(())
    for t in range(steps):
        if t:
            a = jacobian[:, t - 1]
            mean = following[:, t - 1] + torch.einsum("nij,nj->ni", a, mean - reference[:, t - 1])
            covariance = a @ covariance @ a.mT + q
            predicted.append((mean, covariance))
        mixing = eye + covariance @ information[:, t]
        seen = torch.linalg.solve(mixing, covariance)
        covariance = (seen + seen.mT) / 2
        error = z[:, t] - mean
        pull = torch.einsum("nij,nj->ni", information[:, t], error)
        move = torch.einsum("nij,nj->ni", covariance, pull)
        # S^-1 = L - L P' L with the information L and the filtered covariance P'; det S = det(1 + P L) / det L
        total = total - (pull * error).sum()
        total = total + (pull * move).sum() - torch.linalg.slogdet(mixing)[1].sum()
        mean = mean + move
        filtered.append((mean, covariance))
    return _Filtered(filtered, predicted, 0.5 * float(total))


def _smooth_back(forward: _Filtered, jacobian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smoothed means, covariances, and Cov(z[t], z[t+1]) (trials, time - 1, R, R)."""
    mean, covariance = forward.filtered[-1]
    means, covariances, lagged = [mean], [covariance], []
    for t in range(len(forward.predicted) - 1, -1, -1):
        (at, spread), (ahead, ahead_spread) = forward.filtered[t], forward.predicted[t]
        gain = torch.linalg.solve(ahead_spread, jacobian[:, t] @ spread).mT
        lagged.append(gain @ covariances[-1])
        means.append(at + torch.einsum("nij,nj->ni", gain, means[-1] - ahead))
        covariances.append(spread + gain @ (covariances[-1] - ahead_spread) @ gain.mT)
    return tuple(torch.stack(x[::-1], dim=1) for x in (means, covariances, lagged))


# ---------------------------------------------------------------------------------------------------------------
# Closed form


@dataclass(frozen=True)
class ClosedFormFit:
    """A network fitted to rates without gradient descent; all float64.

    Gauge: latents have unit second moment about zero (about their mean, which is zero, where there is a bias) over all
    recorded samples, the columns of m are orthogonal, longest first, and the largest entry of each is positive.

    Attributes:
        latents: smoothed latents with their inputs.
        latents_covariance: (trials, time, R, R) posterior covariance of the latents given loadings and dynamics.
        least_squares: (trials, time, R) sample-wise latents, whose errors are independent from sample to sample.
        least_squares_covariance: (trials, time, R, R) covariance of those errors.
        loadings: of the recorded neurons.
        loadings_covariance: (K, P, P), P = R + U + 1 in the order m, b, d: sigma^2 (X^T W X)^-1 given the latents.
        n: (K, R) ridge output weights; regularizer: the lambda they were found with.
        residual_sd: standard deviation of rates about phi(h).
        process_covariance: (R, R) covariance of one step's error beside the fitted dynamics.
        observation: phi and the noise that the activity was found to have.
        misfit: mean squared normalised residual of the simulated segments: about 1 where dynamics are deterministic,
            more where phi, alpha or rank are wrong or the dynamics noisy. None where the rates are clean.
    """

    latents: Latents
    latents_covariance: Tensor
    least_squares: Tensor
    least_squares_covariance: Tensor
    loadings: Loadings
    loadings_covariance: Tensor
    n: Tensor
    regularizer: float
    residual_sd: float
    process_covariance: Tensor
    observation: Observation
    misfit: float | None

    @property
    def network(self) -> Network:
        """The fitted network, float64."""
        loadings = self.loadings
        return Network(loadings.m, self.n, loadings.b, loadings.d, self.latents.alpha, self.observation.phi.name)


def _check_rates(recording: Recording, rank: int) -> None:
    if recording.kind != "rates":
        raise UserError("rates", recording.kind, "use the spike model for spike counts")
    if not 1 <= rank <= min(recording.n_neurons, int(recording.lengths.sum())):
        raise UserError(f"a rank between 1 and the {recording.n_neurons} neurons", str(rank))


def bias_supported(recording: Recording, rank: int, seed: int = 0) -> bool:
    """Whether rates ask for a bias d in each neuron, by the Bayesian information criterion of fits with and without.

    Both fits see the same subset of samples and know nothing of the dynamics. A bias that the data do not ask for is
    not harmless: latents are then known up to a shift only, and an odd nonlinearity cannot drive them to it.
    """
    _check_rates(recording, rank)
    samples = _Samples.of(recording.activity, recording.mask, recording.inputs)
    observation = _with_noise_seen(samples, Observation.of(recording.activation))
    few = samples.subset(_random_rows(len(samples), _subset_size(samples), seed))
    n_observed, n_neurons = len(few) * recording.n_neurons, recording.n_neurons
    rounding = 1e-12 * float(few.activity[few.rows].square().mean())
    errors = [
        max(_mean_loss(few, *_start_fit(few, rank, bias, observation), observation, bias), rounding)
        for bias in (False, True)
    ]
    gain = errors[0] - errors[1] if observation.informative else math.log(errors[0] / errors[1])
    return n_observed * gain > (n_neurons - rank) * math.log(n_observed)


def _inverse(normal: Tensor) -> Tensor:
    """Inverses (..., P, P) of normal matrices under the weak prior, in units of the dispersion."""
    eye = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    return torch.linalg.inv(normal + 1e-10 * eye)


def _standardise(
    samples: _Samples, z: Tensor, theta: Tensor, normal: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (S, R), stacked loadings and information in the gauge that ClosedFormFit states."""
    rank, n_inputs = z.shape[1], 0 if samples.inputs is None else samples.inputs.shape[1]
    mean = z.mean(0) if has_bias else torch.zeros_like(z[0])
    values, vectors = torch.linalg.eigh((z - mean).T @ (z - mean) / len(z))
    if not float(values[0]) > 1e-14 * float(values[-1]):
        raise UserError(
            f"activity that varies in {rank} latent dimensions", "fewer", "lower the rank of the low-rank RNN"
        )
    root = vectors * values.sqrt()
    m = theta[:, :rank] @ root
    turn = torch.linalg.eigh(m.T @ m).eigenvectors.flip(1)
    m = m @ turn
    turn = turn * m.gather(0, m.abs().argmax(0, keepdim=True)).sign()
    gauge = Gauge(turn.T @ (vectors / values.sqrt()).T, torch.zeros_like(mean))
    gauge = replace(gauge, shift=-gauge.matrix @ mean)
    moved = gauge.loadings(Loadings.unstack(theta, rank, n_inputs, has_bias))
    back = torch.linalg.inv(gauge.matrix)
    return gauge.latents(z), moved.stack(), back.T @ normal @ back


def _without_inputs(samples: _Samples, z: Tensor, theta: Tensor, jump: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents less C u with C moved into b; C by least squares on the inputs where not given."""
    if samples.inputs is None:
        return z, theta
    rank, u = z.shape[1], samples.inputs[samples.rows].double()
    if jump is None:
        jump = torch.linalg.lstsq(u, z, driver="gelsd").solution.T
    theta = theta.clone()
    theta[:, rank : rank + u.shape[1]] += theta[:, :rank] @ jump
    return z - u @ jump.T, theta


class _RateFit:
    """The steps of :func:`fit_rates_closed_form` on all samples, with the state they pass on."""

    def __init__(
        self,
        recording: Recording,
        rank: int,
        has_bias: bool,
        regularizer: float | None,
        observation: Observation | None,
        offset: Tensor | None,
    ):
        self.recording, self.rank, self.has_bias, self.regularizer = recording, rank, has_bias, regularizer
        self.mask = recording.mask
        self.samples = _Samples.of(recording.activity, self.mask, recording.inputs, offset)
        self.observation = _with_noise_seen(self.samples, observation or Observation.of(recording.activation))
        self.phi = self.observation.phi
        self.misfit: float | None = None

    def start(self, seed: int) -> None:
        samples, observation = self.samples, self.observation
        few = samples.subset(_random_rows(len(samples), _subset_size(samples), seed))
        _, self.theta = _start_fit(few, self.rank, self.has_bias, observation)
        self.z, self.normal, error = _latents_of(samples, self.theta, self.rank, observation)
        before, rounding = float("inf"), 1e-12 * float(few.activity[few.rows].square().mean())
        while rounding < error < 0.5 * before:  # else the subset has settled all neurons
            x, dispersion = samples.design(self.z, self.has_bias), observation.dispersion(error)
            self.theta = _converged_loadings(samples, x, self.theta, observation, dispersion)
            before = error
            self.z, self.normal, error = _update_latents(samples, self.z, self.theta, observation, 0, 3)
        self.set_noise(error)
        self.z, self.theta = _without_inputs(samples, self.z, self.theta)
        self.standardise()

    def refit_loadings(self, z: Tensor) -> None:
        """Loadings given latents z, then one Newton pass for the sample-wise latents given them."""
        samples, observation = self.samples, self.observation
        x = samples.design(z, self.has_bias)
        self.theta = _converged_loadings(samples, x, self.theta, observation, self.dispersion)
        self.z, self.normal, error = _update_latents(samples, self.z, self.theta, observation, 0, 1)
        self.set_noise(error)

    def set_noise(self, error: float) -> None:
        """Variance of the rates about phi(h) from their mean squared residual, corrected for what was fitted."""
        observed, (k, p) = len(self.samples) * len(self.theta), self.theta.shape
        self.variance = error * observed / max(observed - k * p - len(self.samples) * self.rank, 1)
        self.dispersion = self.observation.dispersion(self.variance)

    def standardise(self) -> None:
        self.z, self.theta, self.normal = _standardise(self.samples, self.z, self.theta, self.normal, self.has_bias)

    def grid(self, rows: Tensor) -> Tensor:
        """Values of samples (S, ...) laid out as (trials, time, ...), zero where masked."""
        out = rows.new_zeros(self.mask.numel(), *rows.shape[1:])
        out[self.samples.rows] = rows
        return out.reshape(*self.mask.shape, *rows.shape[1:])

    def fit_dynamics(self, z: Tensor) -> None:
        """Output weights from latents z (S, R) in the gauge of self.theta."""
        alpha = self.recording.alpha
        regularizer = self.regularizer
        if regularizer is None and self.noisy:
            regularizer = _NOISY_START  # cross-validation would fit the noise that differences share with the states
        self.dynamics = _fit_dynamics(self.samples, self.grid(z), self.theta, self.mask, alpha, self.phi, regularizer)

    @property
    def noisy(self) -> bool:
        """Whether the sample-wise latents' standard error exceeds 1e-4 of their size."""
        return self.dispersion * float(_inverse(self.normal).diagonal(dim1=-2, dim2=-1).mean()) > 1e-8

    def shoot(self, iterations: int) -> None:
        """Output weights from trajectories, starting from those at hand."""
        has_bias, few = self.has_bias, _random_rows(len(self.samples), _subset_size(self.samples))
        x = self.samples.subset(few).design(self.z[few], has_bias)
        basis = _rate_modes(self.phi(x @ self.theta.T), _SHOOT_MODES)
        information = self.grid(self.normal) / self.dispersion
        segments = _Segments.cut(self.grid(self.z), information, self.recording.inputs, _SEGMENT_SAMPLES)
        n, regularizer, self.misfit = _shoot(segments, self.network(), basis, iterations)
        self.dynamics = replace(self.dynamics, n=n, regularizer=regularizer)

    def network(self) -> Network:
        split = Loadings.unstack(self.theta, self.rank, self.recording.n_inputs, self.has_bias)
        return Network(split.m, self.dynamics.n, split.b, split.d, self.recording.alpha, self.phi.name)

    def smooth(self) -> tuple[Tensor, Tensor, Tensor]:
        information = self.grid(self.normal) / self.dispersion
        return smooth_latents(
            self.grid(self.z), information, self.network(), self.recording.lengths, self.recording.inputs
        )


def fit_rates_closed_form(
    recording: Recording,
    rank: int,
    has_bias: bool = False,
    regularizer: float | None = None,
    smooth: bool | None = None,
    seed: int = 0,
    observation: Observation | None = None,
    offset: Tensor | None = None,
) -> ClosedFormFit:
    """Latents, loadings and output weights from recorded rates, or from counts over their scale.

    On a subset of samples: principal components of phi^-1 of the denoised rates, then alternating Newton steps for
    latents and loadings. Then on all samples: latents, loadings, and output weights by ridge. Where noise leaves the
    latents uncertain, output weights come from simulated trajectories (Gauss-Newton on segments), latents are
    smoothed with the fitted dynamics, and loadings and output weights are refitted. The work grows linearly with
    samples and with neurons; memory beside the activity is bounded by chunks, but for latents and loadings.

    Args:
        recording: rates with their mask, inputs, alpha and activation.
        rank: R; has_bias: whether neurons have a bias d.
        regularizer: lambda of the ridge for n; None: generalised cross-validation (trajectories: the evidence).
        smooth: None: where the sample-wise latents' standard error exceeds 1e-4 of their size.
        seed: chooses the subset of samples.
        observation: phi and the noise about it; None: the recording's activation, two-valued noise where all rates lie at
            the ends of its range, else Gaussian noise.
        offset: (trials, time, K), a known part of the neurons' potentials that is no part of the network.

    Raises:
        UserError: for spikes, or a rank that the recording cannot support.
    """
    _check_rates(recording, rank)
    fit = _RateFit(recording, rank, has_bias, regularizer, observation, offset)
    fit.start(seed)
    fit.fit_dynamics(fit.z)
    if fit.dynamics.jump is not None:
        fit.z, fit.theta = _without_inputs(fit.samples, fit.z, fit.theta, fit.dynamics.jump)
        fit.standardise()
        fit.fit_dynamics(fit.z)
    smooth = fit.noisy if smooth is None else smooth
    if smooth:
        fit.shoot(8)
        fit.refit_loadings(fit.smooth()[0].reshape(-1, rank)[fit.samples.rows])
        fit.shoot(3)
    return _finished(fit, smooth)


def _finished(fit: _RateFit, smooth: bool) -> ClosedFormFit:
    recording = fit.recording
    spread = fit.grid(_inverse(fit.normal) * fit.dispersion)
    if smooth:
        z, covariance, process = fit.smooth()
    else:
        z, covariance = fit.grid(fit.z), spread
        following, jacobian = _linearised_step(fit.network(), z, _double(recording.inputs), fit.mask)
        pairs = fit.mask[:, 1:] & fit.mask[:, :-1]
        process = _moment_covariance(z, fit.grid(fit.normal) / fit.dispersion, following, jacobian, pairs)
    x = fit.samples.design(z.reshape(-1, fit.rank)[fit.samples.rows], fit.has_bias)
    if smooth:
        fit.theta = _converged_loadings(fit.samples, x, fit.theta, fit.observation, fit.dispersion)
    spread_of_loadings = _loadings_covariance(fit.samples, x, fit.theta, fit.observation, fit.dispersion)
    return ClosedFormFit(
        latents=Latents(z, recording.lengths, recording.alpha, recording.inputs),
        latents_covariance=covariance,
        least_squares=fit.grid(fit.z),
        least_squares_covariance=spread,
        loadings=fit.network().loadings,
        loadings_covariance=spread_of_loadings,
        n=fit.dynamics.n,
        regularizer=fit.dynamics.regularizer,
        residual_sd=fit.variance**0.5,
        process_covariance=process,
        observation=fit.observation,
        misfit=fit.misfit,
    )


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


# ---------------------------------------------------------------------------------------------------------------
# Training through the dynamics


@dataclass(frozen=True)
class Posterior:
    """Latents of some trials given their activity.

    Attributes:
        z: (trials, time, R), zero past a trial's end; covariance: (trials, time, R, R); float64.
    """

    z: Tensor
    covariance: Tensor


class LeastSquares(NamedTuple):
    """z (trials, time, R); normal (trials, time, R, R); error: as :func:`least_squares_latents` returns them."""

    z: Tensor
    normal: Tensor
    error: float

    def trials(self, index: Tensor) -> LeastSquares:
        """Those of some trials; ``error`` stays that of all."""
        return LeastSquares(self.z[index], self.normal[index], self.error)


class RateModel(nn.Module):
    """A low-rank RNN fitted to recorded rates, or to counts over their scale, through its dynamics.

    The recorded neurons are the units of the network. A trial's initial state is read out of its first samples
    through the loadings (least squares, then smoothed with the dynamics), so held-out trials need no parameters
    of their own; it is recomputed for every batch and carries no gradient.

    Args:
        n_neurons: K; rank: R; n_inputs: U; has_bias, alpha, activation: as in :class:`LowRankRNN`.
        init: "closed_form" (:func:`fit_rates_closed_form`) or "random" (normal, ``init_std``), used by
            :meth:`initialise`.
        init_std: standard deviation of the random start; 2 as published for LINT.
        weight_penalty: times the sum of the parameter tensors' norms is added to the training loss. Published: 1e-5.
            Zero by default: beside a closed-form start it only biases, since the loss there is below it.
        start_samples: samples at a trial's start that its initial state is read from.
        count_scale: expected count where phi is 1, for Poisson counts: activity is counts / count_scale then. None: rates
            (with Gaussian noise, or two-valued where all lie at the ends of the range of phi).

    Raises:
        UserError: for an unknown start, and whatever LowRankRNN raises.
    """

    def __init__(
        self,
        n_neurons: int,
        rank: int,
        n_inputs: int = 0,
        has_bias: bool = False,
        alpha: float = 0.1,
        activation: str = "tanh",
        init: str = "closed_form",
        init_std: float = 2.0,
        weight_penalty: float = 0.0,
        start_samples: int = 10,
        count_scale: float | None = None,
    ):
        super().__init__()
        if init not in ("closed_form", "random"):
            raise UserError("init closed_form or random", repr(init))
        if start_samples < 1:
            raise UserError("at least one sample to read the initial state from", str(start_samples))
        self.rnn = LowRankRNN(n_neurons, rank, n_inputs, has_bias, alpha, activation, init_std)
        self.init, self.weight_penalty, self.start_samples = init, float(weight_penalty), start_samples
        self.count_scale = count_scale
        width = rank + n_inputs + int(has_bias)
        self.register_buffer("residual_variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("process_covariance", torch.eye(rank, dtype=torch.float64))
        self.register_buffer("loadings_covariance", torch.zeros(n_neurons, width, width, dtype=torch.float64))
        self.register_buffer("two_valued", torch.zeros((), dtype=torch.bool))

    @property
    def observation(self) -> Observation:
        """phi and the noise about it."""
        if self.count_scale is not None:
            return Observation.of(self.rnn.activation, "poisson", self.count_scale)
        return Observation.of(self.rnn.activation, "two_valued" if bool(self.two_valued) else "gaussian")

    def initialise(self, recording: Recording, offset: Tensor | None = None) -> ClosedFormFit | None:
        """Start from training trials: parameters by the closed form, unless the start is random; noise levels.

        Args:
            offset: (trials, time, K), a known part of the neurons' potentials that is no part of the network.

        Returns:
            the closed form, or None for a random start.
        """
        if self.init == "random":
            _check_rates(recording, self.rnn.rank)
            self.calibrate(recording, offset=offset)
            return None
        observation = None if self.count_scale is None else self.observation
        fit = fit_rates_closed_form(recording, self.rnn.rank, self.rnn.has_bias, observation=observation, offset=offset)
        self.rnn.set_network(fit.network)
        self.two_valued.fill_(fit.observation.noise == "two_valued")
        self.residual_variance.fill_(fit.residual_sd**2)
        self.process_covariance.copy_(fit.process_covariance)
        self.loadings_covariance.copy_(fit.loadings_covariance)
        return fit

    @torch.no_grad()
    def calibrate(self, recording: Recording, found: LeastSquares | None = None, offset: Tensor | None = None) -> None:
        """Re-estimate noise levels and the loadings' covariance for the present parameters; after training.

        Args:
            found: :meth:`least_squares` of the recording, where it is at hand.
            offset: as in :meth:`initialise`.
        """
        loadings = self.loadings()
        samples = _Samples.of(recording.activity, recording.mask, recording.inputs, offset)
        if self.count_scale is None:
            self.two_valued.fill_(_with_noise_seen(samples, self.observation).noise == "two_valued")
        if found is None:
            found = self.least_squares(recording.activity, recording.mask, recording.inputs, offset)
        self.residual_variance.fill_(found.error)
        z = found.z
        if self.is_noisy(found, recording.mask):
            z, _, q = smooth_latents(
                z, found.normal / self.dispersion, self.rnn.network(), recording.lengths, recording.inputs
            )
            self.process_covariance.copy_(q)
        x = samples.design(z.reshape(-1, self.rnn.rank)[samples.rows], self.rnn.has_bias)
        theta = loadings.stack().double()
        covariance = _loadings_covariance(samples, x, theta, self.observation, self.dispersion)
        self.loadings_covariance.copy_(covariance)

    @property
    def dispersion(self) -> float:
        """Variance that one unit of weight in the normal equations stands for."""
        return self.observation.dispersion(max(float(self.residual_variance), 1e-14))

    def loadings(self) -> Loadings:
        """Loadings of the recorded neurons, detached."""
        return self.rnn.loadings().map(Tensor.detach)

    def parameter_groups(self, lr: float) -> list[dict]:
        """One group for the optimizer."""
        return [{"params": list(self.rnn.parameters()), "lr": lr}]

    def initial_states(self, batch: TrialBatch) -> Tensor:
        """States at the first sample (B, R), float32, without gradient."""
        cut = slice(0, min(self.start_samples, batch.activity.shape[1]))
        u, offset = (None if x is None else x[:, cut] for x in (batch.inputs, batch.baseline))
        mask = batch.mask[:, cut]
        found = self.least_squares(batch.activity[:, cut], mask, u, offset)
        return self.posterior_from(found, mask, u).z[:, 0].to(self.rnn.m.dtype)

    def rollout(self, batch: TrialBatch) -> Tensor:
        """Trajectories of the network from the initial states, (B, time, R); gradients flow into the parameters."""
        return self.rnn.simulate(self.initial_states(batch), batch.activity.shape[1], batch.inputs)

    def validation_loss(self, batch: TrialBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the rates along the noise-free rollout, over recorded samples and neurons.

        Of counts, twice the mean negative log likelihood up to a constant.
        """
        h = potentials(self.rnn.loadings(), self.rollout(batch), batch.inputs)
        if batch.baseline is not None:
            h = h + batch.baseline
        observation = self.observation if self.count_scale is not None else self.observation.with_noise("gaussian")
        error = (observation.loss(batch.activity, h) * batch.mask[..., None]).sum()
        loss = error / (batch.mask.sum() * batch.activity.shape[-1])
        return loss, {"mean_squared_error" if self.count_scale is None else "deviance": loss.detach()}

    def loss(
        self, batch: TrialBatch, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training objective: the error of :meth:`validation_loss` plus the weight penalty.

        ``progress`` and ``generator`` belong to the common interface; nothing here depends on them.
        """
        loss, parts = self.validation_loss(batch)
        if self.weight_penalty:
            penalty = self.weight_penalty * sum(p.norm() for p in self.rnn.parameters())
            loss, parts = loss + penalty, parts | {"weight_penalty": penalty.detach()}
        return loss, parts

    @torch.no_grad()
    def infer(self, data: TrialBatch | Recording, method: str = "smooth") -> Tensor:
        """Latents (trials, time, R), float64, of any trials.

        Args:
            method: "smooth", the posterior mean given activity and dynamics; "least_squares", each sample on its own,
                with errors independent between samples; "rollout", the noise-free trajectory.
        """
        if method == "rollout":
            batch = _as_batch(data)
            return self.rollout(batch).double() * batch.mask[..., None]
        return self.posterior(data, method).z

    @torch.no_grad()
    def posterior(
        self, data: TrialBatch | Recording, method: str = "smooth", neurons: Tensor | None = None
    ) -> Posterior:
        """Latents with their covariance; ``method`` is "smooth" or "least_squares".

        ``neurons`` (K,) True for those that the latents are read from; None: all.
        """
        if method not in ("smooth", "least_squares"):
            raise UserError("a method among smooth, least_squares, rollout", repr(method))
        batch = _as_batch(data)
        found = self.least_squares(batch.activity, batch.mask, batch.inputs, batch.baseline, neurons)
        return self.posterior_from(found, batch.mask, batch.inputs, smooth=method == "smooth")

    @torch.no_grad()
    def least_squares(
        self,
        activity: Tensor,
        mask: Tensor,
        inputs: Tensor | None,
        offset: Tensor | None = None,
        neurons: Tensor | None = None,
    ) -> LeastSquares:
        """Sample-wise latents of some trials; see :func:`least_squares_latents`. ``neurons``: as in :meth:`posterior`."""
        loadings = self.loadings()
        if neurons is not None:
            activity, loadings = activity[..., neurons], loadings.map(lambda x: x[neurons])
            offset = None if offset is None else offset[..., neurons]
        return LeastSquares(*least_squares_latents(activity, mask, loadings, self.observation, inputs, offset))

    def is_noisy(self, found: LeastSquares, mask: Tensor) -> bool:
        """Whether the sample-wise latents' standard error exceeds 1e-4 of their size: else smoothing is idle."""
        variance = _inverse(found.normal[mask]).diagonal(dim1=-2, dim2=-1).mean() * self.dispersion
        return bool(variance > 1e-8 * found.z[mask].square().mean())

    @torch.no_grad()
    def posterior_from(
        self, found: LeastSquares, mask: Tensor, inputs: Tensor | None, smooth: bool = True
    ) -> Posterior:
        """Latents with their covariance from the sample-wise ones; ``smooth``: with the dynamics, where these help."""
        covariance = torch.where(mask[..., None, None], _inverse(found.normal) * self.dispersion, 0.0)
        if not smooth or mask.shape[1] < 2 or not self.is_noisy(found, mask):
            return Posterior(found.z, covariance)
        z, covariance, _ = smooth_latents(
            found.z, found.normal / self.dispersion, self.rnn.network(), mask.sum(1), inputs, self.process_covariance
        )
        return Posterior(z, covariance)


class ConnectivityInputs(NamedTuple):
    """What a fit to rates hands to the estimate of the connectivity.

    Attributes:
        latents: smoothed by the fitted dynamics.
        loadings: of the recorded neurons; loadings_covariance: (K, P, P) of their errors.
        readings: (trials, time, R) states read from each sample's activity, and the covariance (trials, time, R, R) of
            their errors, which are independent between samples (see :func:`read_states`); None where the rates are so
            clean that the latents are known.
    """

    latents: Latents
    loadings: Loadings
    loadings_covariance: Tensor
    readings: tuple[Tensor, Tensor] | None


def connectivity_inputs(
    model: RateModel, recording: Recording, train: Tensor, offset: Tensor | None = None
) -> ConnectivityInputs:
    """Latents and loadings of a fitted model, float64; noise levels are re-estimated on the training trials first."""
    mask = recording.mask
    found = model.least_squares(recording.activity, mask, recording.inputs, offset)  # the dear part, once
    model.calibrate(recording.trials(train), found.trials(train), None if offset is None else offset[train])
    posterior = model.posterior_from(found, mask, recording.inputs)
    z = posterior.z * mask[..., None]
    latents = Latents(z, recording.lengths, recording.alpha, _double(recording.inputs))
    loadings = model.loadings().map(Tensor.double)
    readings = None
    if model.is_noisy(found, mask):
        readings = read_states(
            recording.activity, mask, z, loadings, model.observation, model.dispersion, recording.inputs, offset
        )
    return ConnectivityInputs(latents, loadings, model.loadings_covariance, readings)


@torch.no_grad()
def read_states(
    activity: Tensor,
    mask: Tensor,
    guide: Tensor,
    loadings: Loadings,
    observation: Observation,
    dispersion: float = 1.0,
    inputs: Tensor | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One unregularised Fisher-scoring step from a good guide: what each sample says of the state, on its own.

    Iterated to its end the step would run away where neurons saturate; from a smoothed path it is the linearisation
    there of the sample's likelihood, unbiased to first order, with the inverse information as covariance.

    Args:
        activity: (trials, time, K) rates, or counts over their scale; mask: (trials, time).
        guide: (trials, time, R) smoothed states.
        dispersion: variance of a rate about phi(h) (1 for two-valued data and counts).
        inputs: (trials, time, U); offset: (trials, time, K), a known part of the potentials.

    Returns:
        (trials, time, R) readings, zero where masked; their covariances (trials, time, R, R); float64.
    """
    samples = _Samples.of(activity, mask, inputs, offset)
    theta, rank = loadings.stack().detach().double(), loadings.rank
    low = samples.activity.dtype
    z = guide.reshape(-1, rank)[samples.rows].double()
    x, m = samples.design(z, loadings.has_bias).to(low), theta[:, :rank].to(low)
    pairs, eye = _outer(m), torch.eye(rank, dtype=z.dtype, device=z.device)
    moved, covariance = torch.zeros_like(z), z.new_zeros(len(z), rank, rank)
    for at, y in samples.pieces():
        score, weight, _ = observation.newton_terms(y, samples.with_offset(x[at] @ theta.to(low).T, at))
        information = (weight @ pairs).double().reshape(-1, rank, rank) + _prior_precision(dispersion) * eye
        inverse = torch.linalg.inv(information)
        moved[at] = (inverse @ (score @ m).double()[..., None])[..., 0]
        covariance[at] = dispersion * inverse
    readings, spread = guide.new_zeros(mask.numel(), rank), guide.new_zeros(mask.numel(), rank, rank)
    readings[samples.rows], spread[samples.rows] = z + moved, covariance
    return readings.reshape(*mask.shape, rank), spread.reshape(*mask.shape, rank, rank)


def _as_batch(data: TrialBatch | Recording) -> TrialBatch:
    if isinstance(data, TrialBatch):
        return data
    return TrialBatch(data.activity, data.mask, torch.arange(data.n_trials), data.inputs)
