"""Rates on a scale of their own: rate = g phi(h) + o, with a gain g and an offset o of each neuron beside its loadings.

Gauss-Newton steps for loadings, gains, offsets and latents at once, in units of phi, (rate - o) / g. A gain shows in the
curvature of phi alone: where a neuron stays in the linear range, g and the length of its loading trade off. So gains have a weak
prior, and their uncertainty is carried into that of the loadings. Of relu a gain is no other than that length,
c relu(h) = relu(c h), and is not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from connector.dynamics import Activation, value_and_slope
from connector.lrrnn.samples import ActivitySamples, outer
from connector.lrrnn.start import conjugate_gradients
from connector.numerics import least_squares
from connector.units import RateScale

# Biases that single neurons are tried from: a weak drive has slope and curvature with a bias of either sign.
_BIASES = (-1.5, -0.7, 0.0, 0.7, 1.5)
# No neuron counts more than so many times the median one.
_MOST_WEIGHT = 10.0
# The prior of a gain counts so much. At full weight the mode of many gains at once, each near that of its prior, would be
# preferred to latents that the data ask for.
_PRIOR = 0.1
_LEAST_NOISE = 1e-10  # variance of a neuron's noise, over that of its signal


@dataclass(frozen=True)
class ScaleState:
    """Latents z (S, R), stacked loadings theta (K, P), log gains and offsets (K,) in the units of the rates; float64."""

    z: Tensor
    theta: Tensor
    log_gain: Tensor
    offset: Tensor

    def chosen(self, other: ScaleState, which: Tensor) -> ScaleState:
        """With the neurons ``which`` (K,) as they are in the other."""
        theta = torch.where(which[:, None], other.theta, self.theta)
        pairs = ((other.log_gain, self.log_gain), (other.offset, self.offset))
        return ScaleState(self.z, theta, *(torch.where(which, new, old) for new, old in pairs))


@dataclass(frozen=True)
class _Equations:
    """Of (loadings, log gain, offset / gain), unweighted: normal matrices (K, Q, Q), scores (K, Q), squared residuals (K,)."""

    normal: Tensor
    score: Tensor
    squares: Tensor

    def chosen(self, other: _Equations, which: Tensor) -> _Equations:
        pairs = ((other.normal, self.normal), (other.score, self.score), (other.squares, self.squares))
        return _Equations(*(torch.where(which.view(-1, *[1] * (x.ndim - 1)), x, y) for x, y in pairs))


class ScaleFit:
    """A fit of rates in their own units.

    The prior of a gain is that of the neuron's size in units of phi, s / g: what loadings that are Gaussian over the population
    give, a chi distribution of R degrees of freedom, its scale found from the population. So the units of no neuron matter.

    Args:
        samples: of rates in their own units; state: to start from; phi: the activation; has_bias: of the loadings.
        kind: "none", "offset", "gain" or "both", what is fitted beside loadings and latents.
        size: s (K,), standard deviation of what is signal in each neuron's rates.
        noise: variance (K,) of the noise of each sample's rates; None: from the residuals.
    """

    def __init__(
        self,
        samples: ActivitySamples,
        state: ScaleState,
        phi: Activation,
        has_bias: bool,
        kind: str,
        size: Tensor,
        noise: Tensor | None = None,
    ):
        self.samples, self.state, self.phi, self.has_bias, self.size = samples, state, phi, has_bias, size
        self.kind, self.gains = kind, kind in ("gain", "both") and phi.name != "relu"
        self.offsets = kind in ("offset", "both")
        self.rank, self.width = state.z.shape[1], state.theta.shape[1]
        self.n_extra = int(self.gains) + int(self.offsets)
        self.noise_is_known = noise is not None
        self.variance = (size.square() if noise is None else noise).clamp_min(_LEAST_NOISE * size.square())
        self.mean, self.freedom = float((size.log() - state.log_gain).mean()), _PRIOR * self.rank

    def _precision(self, state: ScaleState) -> Tensor:
        """Of the rates in units of phi, (K,)."""
        return state.log_gain.mul(2).exp() / self.variance

    def weights(self) -> Tensor:
        """Of the neurons (K,), with the mean 1."""
        found = self._precision(self.state)
        found = found.clamp_max(_MOST_WEIGHT * float(found.median()))
        return found / found.mean()

    def _parts(self, state: ScaleState, at: slice, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, phi and its slope at some rows (s, K), in units of phi."""
        low = y.dtype
        value, slope = value_and_slope(self.phi, x[at].to(low) @ state.theta.to(low).T)
        return (y - state.offset.to(low)) * (-state.log_gain).exp().to(low) - value, value, slope

    def _excess(self, state: ScaleState) -> Tensor:
        """Log sizes in units of phi over those that are usual, (K,)."""
        return self.size.log() - state.log_gain - self.mean

    def _objective(self, state: ScaleState, squares: Tensor) -> Tensor:
        """Twice the negative log posterior of each neuron (K,), up to a constant and the prior of its loadings."""
        found = squares * self._precision(state)
        if self.gains:
            excess = 2 * self._excess(state)
            found = found + self.freedom * (torch.expm1(excess) - excess)
        return found

    def _squares(self, state: ScaleState) -> Tensor:
        x, total = self.samples.design(state.z, self.has_bias), torch.zeros_like(self.size)
        for at, y in self.samples.pieces():
            total += self._parts(state, at, y, x)[0].square().sum(0).double()
        return total

    def equations(self) -> _Equations:
        state, low = self.state, self.samples.activity.dtype
        x = self.samples.design(state.z, self.has_bias)
        k, p, q = len(self.size), self.width, self.width + self.n_extra
        normal, score, squares = x.new_zeros(k, q, q), x.new_zeros(k, q), x.new_zeros(k)
        for at, y in self.samples.pieces():
            residual, value, slope = self._parts(state, at, y, x)
            piece = x[at].to(low)
            normal[:, :p, :p] += ((slope * slope).T @ outer(piece)).double().reshape(k, p, p)
            score[:, :p] += ((slope * residual).T @ piece).double()
            extra = self._extra(value)
            for i, column in enumerate(extra, start=p):
                mixed = ((slope * column).T @ piece).double()
                normal[:, i, :p] += mixed
                normal[:, :p, i] += mixed
                score[:, i] += (column * residual).sum(0).double()
                for j, other in enumerate(extra, start=p):
                    normal[:, i, j] += (column * other).sum(0).double()
            squares += residual.square().sum(0).double()
        return _Equations(normal, score, squares)

    def _extra(self, value: Tensor) -> list[Tensor]:
        """How rates in units of phi answer to log gains, and to offsets in these units."""
        return ([value] if self.gains else []) + ([torch.ones_like(value)] if self.offsets else [])

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Precisions and scores (K, Q) of the priors, over those of the rates; loadings are held where nothing else does."""
        state, p, precision = self.state, self.width, self._precision(self.state)
        held, pull = (precision.new_zeros(len(precision), p + self.n_extra) for _ in range(2))
        spread = 1.48 * state.theta.abs().median(0).values.clamp_min(1e-6)
        held[:, :p] = 1e-2 / (spread.square() * precision[:, None])
        pull[:, :p] = -held[:, :p] * state.theta
        if self.gains:
            excess = 2 * self._excess(state)
            held[:, p] = self.freedom * (2 * excess.exp()).clamp(0.5, 10) / precision
            pull[:, p] = self.freedom * torch.expm1(excess) / precision
        return held, pull

    def _learn(self, found: _Equations, free: float) -> None:
        """The noise of each neuron, and the usual size: that of the neurons whose gain the data tell."""
        if not self.noise_is_known:
            noise = found.squares / max(free, 1.0) * self.state.log_gain.mul(2).exp()
            self.variance = noise.clamp_min(_LEAST_NOISE * self.size.square())
        if self.gains:
            alone = self._covariance(found, 0.0)[:, self.width, self.width].clamp_min(1e-12)
            known = -torch.log1p(2 * self.rank * alone)
            size = 2 * (self.size.log() - self.state.log_gain)
            self.mean = 0.5 * float((known + size).logsumexp(0) - known.logsumexp(0))

    def _covariance(self, found: _Equations, gain_precision: float) -> Tensor:
        """Covariance (K, Q, Q) given the latents, with a prior of log gains of this precision."""
        normal = found.normal * self._precision(self.state)[:, None, None]
        floor = 1e-9 * normal.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(-1, normal.shape[1]).clone()
        if self.gains:
            floor[:, self.width] += gain_precision
        return torch.linalg.inv(normal + torch.diag_embed(floor))

    def _moved(self, state: ScaleState, z: Tensor | float, move: Tensor) -> ScaleState:
        extra = list(move[:, self.width :].T)
        log_gain = state.log_gain + extra.pop(0).clamp(-1, 1) if self.gains else state.log_gain
        offset = state.offset + state.log_gain.exp() * extra.pop(0) if self.offsets else state.offset
        return ScaleState(state.z + z, state.theta + move[:, : self.width], log_gain, offset)

    def _joint_step(self, found: _Equations, damping: float) -> tuple[Tensor, Tensor]:
        """Moves of latents (S, R) and of (loadings, log gains, offsets) (K, Q); the latents are eliminated sample by sample."""
        state, low, p = self.state, self.samples.activity.dtype, self.width
        weights = self.weights()
        w = weights.to(low)
        x, m = self.samples.design(state.z, self.has_bias).to(low), state.theta[:, : self.rank].to(low)
        residual, value, slope = self._parts(state, slice(None), self.samples.activity[self.samples.rows], x)
        columns, (held, pull) = self._extra(value), self._prior()
        normal = found.normal * weights[:, None, None]
        diagonal = normal.diagonal(dim1=1, dim2=2)
        lift = damping * diagonal + held * weights[:, None] + 1e-12 * diagonal.mean(1, keepdim=True)
        inverse = torch.linalg.inv(normal + torch.diag_embed(lift))
        of_z = ((slope * slope * w) @ outer(m)).double().reshape(-1, self.rank, self.rank)
        size = of_z.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        inverse_z = torch.linalg.inv(of_z + (damping * size + 1e-10 * size.mean()) * torch.eye(self.rank).to(of_z))

        def change(direction: Tensor) -> Tensor:
            moved = slope * (x @ direction[:, :p].to(low).T)
            for i, column in enumerate(columns, start=p):
                moved = moved + column * direction[:, i].to(low)
            return moved

        def back(field: Tensor) -> Tensor:
            parts = [(slope * field).T @ x, *((column * field).sum(0)[:, None] for column in columns)]
            return torch.cat(parts, 1).double()

        def of_latents(field: Tensor) -> Tensor:
            return torch.einsum("srq,sq->sr", inverse_z, ((slope * field) @ m).double())

        def without_latents(field: Tensor) -> Tensor:
            return field - w * slope * (of_latents(field).to(low) @ m.T)

        def schur(direction: Tensor) -> Tensor:
            return back(without_latents(w * change(direction))) + lift * direction

        right = back(without_latents(w * residual)) + pull * weights[:, None]
        move = conjugate_gradients(schur, right, lambda r: torch.einsum("kpq,kq->kp", inverse, r), 100)
        return of_latents(w * (residual - change(move))), move

    def run(self, steps: int, least: float = 1e-4) -> float:
        """Joint steps, while they gain this share of the objective; returns the mean squared residual over the squared sizes."""
        damping, idle, n_samples = 1e-3, 0, len(self.samples)
        free = n_samples - self.width - self.n_extra - n_samples * self.rank / len(self.size)
        for _ in range(steps):
            found = self.equations()
            self._learn(found, free)
            before = float(self._objective(self.state, found.squares).sum())
            trial = self._moved(self.state, *self._joint_step(found, damping))
            gained = before - float(self._objective(trial, self._squares(trial)).sum())
            if gained > 0:
                self.state, damping = trial, max(damping / 10, 1e-9)
                idle = idle + 1 if gained < least * abs(before) else 0
            else:
                damping *= 10
            if idle == 2 or damping > 10:
                break
        left = self._squares(self.state) * self.state.log_gain.mul(2).exp() / self.size.square()
        return float(left.mean()) / n_samples

    def given_latents(self, steps: int = 12) -> None:
        """Loadings, gains and offsets for the latents as they are: Levenberg-Marquardt, each neuron with its own damping."""
        kept, found = self.state, self.equations()
        damping = self.size.new_full((len(self.size),), 1e-4)
        for _ in range(steps):
            held, pull = self._prior()
            diagonal = found.normal.diagonal(dim1=1, dim2=2)
            lift = held + damping[:, None] * diagonal + 1e-12 * diagonal.mean(1, keepdim=True)
            move = torch.linalg.solve(found.normal + torch.diag_embed(lift), (found.score + pull)[..., None])[..., 0]
            before = self._objective(kept, found.squares)
            self.state = self._moved(kept, 0.0, move)
            trial = self.equations()
            gained = before - self._objective(self.state, trial.squares)
            better = gained > 0
            kept = self.state = kept.chosen(self.state, better)
            found = found.chosen(trial, better)
            damping = torch.where(better, damping / 10, damping * 10).clamp(1e-9, 1e3)
            if float(gained.clamp_min(0).sum()) < 1e-6 * float(before.sum()):
                break

    def restarted(self) -> None:
        """Given the latents, each neuron the best of what it is and of starts from several biases."""
        if not (self.has_bias and self.n_extra and self.phi.name != "relu"):
            return
        best = self.state
        least = self._objective(best, self._squares(best))
        y = self.samples.activity[self.samples.rows].double()
        line = least_squares(self.samples.design(best.z, True), y).T  # (K, P), the constant last
        log_gain = self.size.log() - self.mean if self.gains else best.log_gain
        for bias in _BIASES:
            value, slope = (float(x) for x in value_and_slope(self.phi, torch.tensor(bias, dtype=torch.float64)))
            theta = line / (log_gain.exp() * slope)[:, None]
            theta[:, -1] = bias
            offset = line[:, -1] - log_gain.exp() * value if self.offsets else best.offset
            self.state = ScaleState(best.z, theta, log_gain, offset)
            self.given_latents()
            found = self._objective(self.state, self._squares(self.state))
            best, least = best.chosen(self.state, found < least), torch.minimum(found, least)
        self.state = best

    def scale(self) -> RateScale:
        """Gains and offsets as they are, with their errors given the latents."""
        spread = 0.5 * float(torch.polygamma(1, torch.tensor(self.rank / 2))) ** 0.5 if self.gains else 0.0
        covariance = self._covariance(self.equations(), spread**-2 if self.gains else 0.0)
        errors = torch.zeros(len(self.size), 2, dtype=covariance.dtype)
        errors[:, [self.gains, self.offsets]] = covariance.diagonal(dim1=1, dim2=2)[:, self.width :].clamp_min(0).sqrt()
        return RateScale(self.kind, self.state.log_gain.exp(), self.state.offset, self.weights(), spread, errors)
