"""Draws from the posterior of a network's dynamics given spike counts, with the latent paths integrated out.

The model is that of :mod:`connector.lrrnn.spikes.paths`; unknown are the paths, the field's coefficients c, the process
noise Q, the counts' scale s, every neuron's loadings, and the hyper-parameters of their priors. Blocked Gibbs sweeps: whole
paths by independence Metropolis about their mode; Q, and c, by what the counts say of them with the paths integrated out
(Laplace), which they carry along; all else from its conditional. The latents are kept at zero mean and unit covariance,
turned towards a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from connector.lrrnn.spikes import marginal
from connector.lrrnn.spikes.coefficients import CoefficientPrior
from connector.lrrnn.spikes.covariances import hyper_of, inverse_wishart
from connector.lrrnn.spikes.paths import (
    LEAST_RATE,
    Counts,
    Parameters,
    climbed,
    curvature,
    log_target,
    most_likely,
    newton,
    potentials_of,
    values_along,
)
from connector.lrrnn.spikes.tridiagonal import Factor
from connector.numerics import inverse_root
from connector.shooting import Field
from connector.types import Loadings

_SCALE_SD = 1.0  # of the prior of log s about the scale that was assumed
# Of the process noise in any direction, in sds of the latents a step. Noise-free dynamics look alike below it, while draws there
# hardly move: a whole trial then follows from its first state.
LEAST_NOISE = 0.02
_FIRST_Q = 0.02  # share of the latents' covariance that the process noise starts from: from below it would not rise
_SETTLING = 8  # Gauss-Newton steps to the first mode
_TRIES = 12  # of kernel and amplitudes, a sweep
_WANTED = 0.4  # share of these moves accepted
_MOST_STEP = 3.0  # of the process noise, in logs
# Of the coefficients' joint step, in every other sweep that is kept: the noise may have settled after the step was fixed.
_SMALL = 0.2
_EAGER = 3, 40  # moves of the process noise a sweep, in the first sweeps
_LOOSE = 10  # sweeps until the coefficients' joint moves begin
_LEARN_EVERY, _LEARNT = 4, 5  # sweeps of the burn-in between estimates of c's information, averaged over so many
_LEARNING = 24  # sweeps of the burn-in after the basis was last built
_VOLUME_PIECES = 3  # of the samples, from which the volume's change with the scale is taken


MakeBasis = Callable[[Loadings, Tensor, Tensor | None], tuple[Field, CoefficientPrior]]


@dataclass
class Draws:
    """What is kept of each sweep after the burn-in, in one gauge and one basis.

    Attributes:
        c: (p, R) of each draw, several from each of the next.
        mean, root, prior: of each sweep, (pR,) and Cholesky factor (pR, pR) of the precision of c given noise, scale and
            loadings, the paths integrated out, and covariance (p, p) of x beforehand.
        beyond: of each sweep, (pR, 1), what drawn paths pull c by beyond the evidence, in standard deviations.
        q, loadings, log_scale, accepted: of each sweep.
        paths: (B, T, R) sum, then mean.
    """

    c: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    root: list[Tensor] = field(default_factory=list)
    beyond: list[Tensor] = field(default_factory=list)
    prior: list[Tensor] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    loadings: list[Tensor] = field(default_factory=list)
    log_scale: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    paths: Tensor | None = None


class PathSampler:
    """Gibbs sampler; :meth:`run` sweeps through all moves.

    Args:
        make_basis: field and prior of its coefficients for loadings and states (and inputs) as they are.
        loadings (K, R + U + 1), log_scale, z (B, T, R): where to start; the scale's prior is about its start.
    """

    draws_of_c = 4  # kept of each sweep

    def __init__(
        self, counts: Counts, make_basis: MakeBasis, loadings: Tensor, log_scale: float, z: Tensor, seed: int = 0
    ):
        self.counts, self.make_basis = counts, make_basis
        self.seed, self.g = seed, torch.Generator().manual_seed(seed)
        self.rank = z.shape[2]
        self.n_inputs = 0 if counts.u is None else counts.u.shape[1]
        self.scale0 = log_scale
        self.mode = self.z = z
        rows = counts.rows(z)
        self.reference = rows
        first, eye = z[:, 0], torch.eye(self.rank, dtype=torch.float64)
        start_cov = torch.cov(first.T).reshape(self.rank, self.rank) + 0.05 * eye
        self.theta, self.family = None, 0
        q = _FIRST_Q * torch.cov(rows.T).reshape(self.rank, self.rank)
        self.p = Parameters(loadings, log_scale, torch.zeros(1, self.rank), q, first.mean(0), start_cov)
        self.rebuild()
        self.p = replace(self.p, c=self.identity)
        self.rho = torch.zeros(len(z), dtype=torch.float64)
        self.rate = torch.full((len(z),), 0.5, dtype=torch.float64)
        self.steps = {False: 0.3, True: 0.05}  # of the process noise in logs: alone, and with the drift's pace
        self.angle, self.known, self.learnt, self.guided = 1.0, None, 0, None
        self.accepted = 0.5
        self.factor: Factor | None = None

    # -- basis -----------------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        rank, u = self.rank, self.n_inputs
        loadings = Loadings.unstack(self.p.loadings, rank, u, has_bias=True)
        rows = self.counts.rows(self.z)
        old = getattr(self, "field", None)
        self.field, self.prior = self.make_basis(loadings, rows, self.counts.u)
        pick = torch.randperm(len(rows), generator=self.g)[:4000]
        z, inputs = rows[pick], None if self.counts.u is None else self.counts.u[pick]
        b = self.field(z, inputs)
        gram = b.T @ b
        gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        self.identity = torch.linalg.solve(gram, b.T @ z)
        if old is not None:
            self.p = replace(self.p, c=torch.linalg.solve(gram, b.T @ (old(z, inputs) @ self.p.c)))
        if self.theta is None:
            self.family = int(self.prior.log_weights.argmax())
            self.theta = self.prior.centre[self.family].clone()

    # -- moves -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Paths to their mode, for the first time."""
        self.z = self.mode = climbed(self.counts, self.field, self.p, self.z, _SETTLING)

    def paths(self) -> None:
        """Mode and curvature for the parameters as they are, then a Metropolis step of each trial."""
        self.mode, self.factor = most_likely(self.counts, self.field, self.p, self.mode, 1)
        self.seen = None  # what the counts say along the mode, until the loadings change
        white = self.factor.transposed_times(self.z - self.mode)
        now = log_target(self.counts, self.field, self.p, self.z)
        keep = self.rho[:, None, None]
        eps = keep * white + (1 - keep**2).sqrt() * self._normal(white.shape)
        eps = eps * self.counts.mask[..., None]
        trial = self.mode + self.factor.backward(eps)
        new = log_target(self.counts, self.field, self.p, trial)
        ratio = new + 0.5 * eps.square().sum((1, 2)) - now - 0.5 * white.square().sum((1, 2))
        take = self._uniform(len(ratio)).log() < ratio
        self.z = torch.where(take[:, None, None], trial, self.z)
        self.accepted = float(take.double().mean())
        self.rate = 0.9 * self.rate + 0.1 * take.double()
        if self.adapting:
            self.rho = torch.where(self.rate < 0.15, 0.95, torch.where(self.rate < 0.3, 0.8, self.rho))

    def carry(self) -> None:
        """Process noise in some direction or in all of them, half the time with the drift's pace."""
        self._see()
        p, paced = self.p, float(self._uniform(1)) < 0.5
        delta, everywhere = self.steps[paced] * float(self._normal((1,))), float(self._uniform(1)) < 0.5
        way = torch.eye(self.rank, dtype=torch.float64) if everywhere else self._normal((self.rank, self.rank))
        turn = torch.linalg.matrix_exp(0.5 * delta * way / way.norm())
        new, log_ratio = replace(p, q=turn @ p.q @ turn.T), 0.0
        if paced:
            r = int(torch.randint(self.rank, (1,), generator=self.g))
            c = p.c.clone()
            c[:, r] = self.identity[:, r] + math.exp(delta) * (c[:, r] - self.identity[:, r])
            new = replace(new, c=c)
            log_ratio = self._prior_ratio(c) + len(c) * delta
        take = _allowed(new.q) and self._carried(new, self._at_mode(new, 2), log_ratio)
        self.steps[paced] = self._adapted(self.steps[paced], take, _MOST_STEP)

    def drift(self, share: float = 1.0) -> None:
        """Coefficients with the paths integrated out: a Crank-Nicolson step about where their evidence points, of a ``share`` of
        the size that adapts.

        ``self.guided``, of sweeps that are kept: mean and factor of the precision of their Gaussian given all but the paths,
        and what drawn paths pull by beyond it.
        """
        self._see()
        if self.known is None:
            self._learn()
        p, keep, spread = self.p, math.cos(share * self.angle), math.sin(share * self.angle)
        ahead, root, up = self._lead(p, self.mode, self.factor)
        if not self.adapting:
            # What the paths as drawn pull by beyond Laplace's evidence, in standard deviations.
            beyond = (marginal.gradient_of_path(self.counts, self.field, p, self.z) - up).reshape(-1, 1)
            self.guided = p.c + ahead, root, torch.linalg.solve_triangular(root, beyond, upper=False)
        white = self._normal((len(root), 1))
        c = p.c + (1 - keep) * ahead + spread * torch.linalg.solve_triangular(root.T, white, upper=True).view_as(p.c)
        new = replace(p, c=c)
        there = self._at_mode(new, 3)
        back, *_ = self._lead(new, *there[:2])
        off = root.T @ (p.c - c - (1 - keep) * back).reshape(-1, 1) / spread
        log_ratio = self._prior_ratio(c) + 0.5 * float(white.square().sum() - off.square().sum())
        self.angle = self._adapted(self.angle, self._carried(new, there, log_ratio), math.pi / 2)

    def _adapted(self, size: float, taken: bool, most: float) -> float:
        return min(most, max(1e-3, size * math.exp(0.15 * (taken - _WANTED)))) if self.adapting else size

    def _learn(self) -> None:
        """What the counts say about the coefficients, in units of the process noise."""
        found = marginal.information(self.counts, self.field, self.p, self.mode, self.factor)
        unit = torch.kron(torch.eye(len(self.p.c), dtype=torch.float64), torch.linalg.cholesky(self.p.q).contiguous())
        values, vectors = torch.linalg.eigh(unit.T @ found @ unit)
        # Where the paths explain all that the counts say of a coefficient, rounding leaves less than nothing.
        found, self.learnt = (vectors * values.clamp_min(0)) @ vectors.T, min(self.learnt, _LEARNT) + 1
        self.known = found if self.known is None else self.known + (found - self.known) / self.learnt

    def _lead(self, p: Parameters, mode: Tensor, factor: Factor) -> tuple[Tensor, Tensor, Tensor]:
        """Newton step (p, R) of the coefficients to their most likely values, the factor of their precision, and the gradient
        (p, R) of their evidence."""
        eye = torch.eye(len(p.c), dtype=torch.float64)
        unit = torch.kron(eye, torch.linalg.inv(torch.linalg.cholesky(p.q)).contiguous())
        prior = self.prior.precision(self.family, self.theta)
        whole = prior + unit.T @ self.known @ unit
        root = torch.linalg.cholesky(whole + 1e-9 * whole.diagonal().mean() * torch.eye(len(whole)))
        up = marginal.gradient(self.counts, self.field, p, mode, factor)
        step = torch.cholesky_solve(up.reshape(-1, 1) - prior @ p.c.reshape(-1, 1), root)
        return step.view_as(p.c), root, up

    def _see(self) -> None:
        """What the counts say along the mode, once after it has moved."""
        if self.seen is None:
            self.seen = self.mode, curvature(self.counts, self.p, self.counts.rows(self.mode))
            self.mode, self.factor, self.peak = self._at_mode(self.p, 1)

    def _at_mode(self, p: Parameters, steps: int) -> tuple[Tensor, Factor, Tensor]:
        """Most likely paths, the curvature's factor and the target (B,) there; counts to second order about those seen."""
        mode, _ = most_likely(self.counts, self.field, p, self.mode, steps - 1, known=self.seen)
        move, factor, before = newton(self.counts, self.field, p, mode, self.seen)
        return mode + move, factor, before + 0.5 * factor.transposed_times(move).square().sum((1, 2))

    def _carried(self, new: Parameters, there: tuple[Tensor, Factor, Tensor], log_ratio: float) -> bool:
        """Metropolis step to other parameters by their evidence (Laplace); paths keep their place about the mode."""
        mode, factor, peak = there
        log_ratio += float((peak - self.peak + self.factor.log_det - factor.log_det).sum())
        take = math.log(max(float(self._uniform(1)), 1e-300)) < log_ratio
        if take:
            self.z = mode + factor.backward(self.factor.transposed_times(self.z - self.mode))
            self.p, self.mode, self.factor, self.peak = new, mode, factor, peak
        return take

    def _prior_ratio(self, c: Tensor) -> float:
        ahead, now = (self.prior.log_prior(x, self.family, self.theta) for x in (c, self.p.c))
        return ahead - now

    def fix_gauge(self) -> None:
        """Latents of zero mean and unit covariance, turned towards the reference; loadings and noise follow."""
        rows, p, rank = self.counts.rows(self.z), self.p, self.rank
        mean = rows.mean(0)
        a = inverse_root(rows - mean)
        # nearest rotation of the whitened states to the reference
        u, _, vh = torch.linalg.svd(((rows - mean) @ a).T @ self.reference)
        a = (a @ (u @ vh)).T  # new = a (old - mean)
        inverse = torch.linalg.inv(a)
        mask = self.counts.mask[..., None]
        self.z = ((self.z - mean) @ a.T) * mask
        self.mode = ((self.mode - mean) @ a.T) * mask
        loadings = p.loadings.clone()
        loadings[:, -1] += loadings[:, :rank] @ mean
        loadings[:, :rank] = loadings[:, :rank] @ inverse
        self.p = replace(
            p,
            loadings=loadings,
            q=_at_least(a @ p.q @ a.T),
            start_mean=a @ (p.start_mean - mean),
            start_covariance=a @ p.start_covariance @ a.T,
        )

    def loadings_and_scale(self) -> None:
        """Loadings of all neurons and the scale by a Fisher step and a draw; hyper-parameters of the loadings first."""
        p = self.p
        mu, precision = hyper_of(p.loadings, self.g)
        z = self.counts.rows(self.z)
        parts = [z] if self.counts.u is None else [z, self.counts.u]
        design = torch.cat([*parts, torch.ones(len(z), 1, dtype=torch.float64)], 1)
        k, width = p.loadings.shape
        low = design.float()
        products = (low[:, :, None] * low[:, None, :]).flatten(1)
        h, score = torch.zeros(k, width * width), torch.zeros(k, width)
        cross, total, excess = torch.zeros(k, width), 0.0, 0.0
        scale = math.exp(p.log_scale)
        kept = []
        for i, at in enumerate(self.counts.pieces):
            x = potentials_of(p.loadings, z, self.counts, at)
            value = torch.nn.functional.softplus(x).clamp_min_(LEAST_RATE)
            slope = x.sigmoid_()
            row, neuron, y = self.counts.spikes[i]
            fisher = slope.square().div_(value)
            h += fisher.T @ products[at]
            flat = low[at]
            both = slope.T @ flat
            cross += both
            score -= scale * both
            seen = y * slope[row, neuron] / value[row, neuron]
            score.index_add_(0, neuron, seen[:, None] * flat[row])
            rate = scale * float(value.double().sum())
            total, excess = total + rate, excess + float(y.sum()) - rate
            if len(kept) < _VOLUME_PIECES:
                kept.append((at, value, slope))
        h, cross = scale * h, scale * cross
        h = h.double().view(k, width, width) + precision
        score = score.double() - (p.loadings - mu) @ precision
        cross = cross.double()
        factor = torch.linalg.cholesky(h)
        inverse = torch.cholesky_inverse(factor)
        along = -(inverse @ cross[..., None])[..., 0]  # change of the loadings with log s
        volume = -0.5 * self._volume(kept, low, products, inverse, along, scale)
        information = total + (cross * along).sum() + 1 / _SCALE_SD**2
        gradient = excess + (along * score).sum() + volume - (p.log_scale - self.scale0) / _SCALE_SD**2
        information = max(float(information), 1e-6)
        change = float(gradient) / information + float(self._normal((1,))) / math.sqrt(information)
        change = max(-0.3, min(0.3, change))
        own = (inverse @ score[..., None])[..., 0]
        noise = torch.linalg.solve_triangular(factor.mT, self._normal((k, width, 1)), upper=True)[..., 0]
        self.p = replace(p, loadings=p.loadings + own + change * along + noise, log_scale=p.log_scale + change)

    def _volume(self, kept, low: Tensor, products: Tensor, inverse: Tensor, along: Tensor, scale: float) -> float:
        """d/dlog s of sum_k log det H_k, loadings following; from some of the samples."""
        flat, towards = inverse.flatten(1).float(), along.float()
        total, rows = 0.0, 0
        for at, value, slope in kept:
            curve = slope * (1 - slope)
            w = slope.square() / value
            change = scale * (w + (2 * slope * curve / value - slope**3 / value**2) * (low[at] @ towards.T))
            total += float((change * (products[at] @ flat.T)).double().sum())
            rows += len(value)
        return total * len(low) / rows

    def coefficients(self, draws: int = 1) -> tuple[list[Tensor], Tensor, Tensor]:
        """Kernel and amplitudes with c integrated out, then c; some draws, its mean and covariance given the paths."""
        z, alpha, p = self.z, self.field.alpha, self.p
        pair = self.counts.mask.clone()
        pair[:, :-1] &= self.counts.mask[:, 1:]
        pair[:, -1] = False
        inside = self.counts.rows(pair)
        now = z[pair]
        shifted = torch.zeros_like(pair)
        shifted[:, 1:] = pair[:, :-1]
        y = (z[shifted] - (1 - alpha) * now) / alpha
        u = None if self.counts.u is None else self.counts.u[inside]
        b = torch.cat([x.double() @ self.field.mixing for _, x, _ in values_along(self.field, now, u, False)])
        gram, rhs = b.T @ b, b.T @ y
        noise = torch.linalg.inv(p.q / alpha**2)
        gauge = self.prior.gauge
        self.regression = (gram, rhs, y.T @ y)
        own = gauge.T @ noise @ gauge
        q_values, q_vectors = torch.linalg.eigh(own)
        target = rhs @ noise @ gauge @ q_vectors  # (p, R)

        def solved(f: int, theta: Tensor):
            root = torch.linalg.cholesky(self.prior.covariance(f, theta))
            values, vectors = torch.linalg.eigh(root.T @ gram @ root)
            values = values.clamp_min(0)
            turned = vectors.T @ root.T @ target
            precision = 1 + values[:, None] * q_values
            evidence = 0.5 * float((turned.square() / precision).sum()) - 0.5 * float(precision.log().sum())
            return evidence + self.prior.log_density(f, theta), root, vectors, turned, precision

        best = solved(self.family, self.theta)
        for _ in range(_TRIES):
            f, theta = self._proposal()
            try:
                new = solved(f, theta)
            except torch.linalg.LinAlgError:
                continue
            if math.log(max(float(self._uniform(1)), 1e-300)) < new[0] - best[0]:
                best, self.family, self.theta = new, f, theta
        _, root, vectors, turned, precision = best
        left, right = root @ vectors, gauge @ q_vectors
        mean = left @ (turned / precision) @ right.T
        found = []
        for _ in range(draws):
            x = self._normal(turned.shape) / precision.sqrt()
            found.append(mean + left @ x @ right.T)
        self.p = replace(p, c=found[0])
        both = torch.kron(left, right)
        covariance = (both / precision.reshape(-1)) @ both.T
        return found, mean, covariance

    def _proposal(self) -> tuple[int, Tensor]:
        if float(self._uniform(1)) < 0.3:
            f = int(torch.randint(len(self.prior.parts), (1,), generator=self.g))
            theta = torch.where(self.prior.width[f] > 0, self.theta, self.prior.centre[f])
            return f, theta
        free = (self.prior.width[self.family] > 0).double()
        return self.family, self.theta + 0.6 * free * self._normal((3,))

    def noise(self) -> None:
        """Q, and mean and covariance of the first states, from their conditionals; Q stays where the draw is too small."""
        gram, rhs, squares = self.regression
        c, alpha, p = self.p.c, self.field.alpha, self.p
        scatter = alpha**2 * (squares - c.T @ rhs - rhs.T @ c + c.T @ gram @ c)
        eye = torch.eye(self.rank, dtype=torch.float64)
        scatter = 0.5 * (scatter + scatter.T) + 1e-12 * eye
        q = inverse_wishart(scatter, self.counts.n_transitions, self.g)
        self.p = replace(p, q=q if _allowed(q) else p.q)
        first, trials = self.z[:, 0], len(self.z)
        centred = first - first.mean(0)
        cov = inverse_wishart(centred.T @ centred + 0.1 * eye, trials + self.rank + 1, self.g)
        mean = first.mean(0) + torch.linalg.cholesky(cov / trials) @ self._normal((self.rank,))
        self.p = replace(self.p, start_mean=mean, start_covariance=cov)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self, sweeps: int, burn: int, progress: Callable[[int], None] = lambda i: None,
        over: Callable[[Draws], bool] = lambda draws: False,
    ) -> Draws:  # fmt: skip
        """Sweeps, of which the first ``burn`` adapt and are not kept; ``progress`` is called with the number of each, and
        ``over`` with what is kept so far, after each: the sweeps end where it says so.

        Called again, it continues from the state reached.
        """
        draws, rebuilds = Draws(), {burn // 6, burn // 2, max(burn - _LEARNING, 3 * burn // 4)}
        self.adapting, first = True, min(_LOOSE, burn)
        if self.factor is None:
            self.settle()
        for i in range(sweeps):
            self.adapting = i < burn
            if i in rebuilds and i:
                self.rebuild()
                self.known, self.learnt = None, 0
            self.paths()
            if i >= first:
                if self.adapting and i % _LEARN_EVERY == 0:
                    self._see()
                    self._learn()
                self.drift(_SMALL if not self.adapting and (i - first) % 2 else 1.0)
                if i >= burn:
                    self._keep_coefficients(draws)
            for _ in range(_EAGER[0] if i < min(_EAGER[1], burn) else 1):
                self.carry()
            self.fix_gauge()
            self.loadings_and_scale()
            self.coefficients()
            self.noise()
            if i >= burn:
                self._keep(draws)
            progress(i)
            if draws.q and over(draws):
                break
        return self.finished(draws)

    def finished(self, draws: Draws) -> Draws:
        """With the mean of the paths, and draws of c about the means, which are moved by what drawn paths pull beyond Laplace's
        evidence on average."""
        seen = torch.stack(draws.beyond)
        beyond, error = seen.mean(0), seen.var(0).sum() / len(seen)
        beyond = beyond * float((1 - error / beyond.square().sum().clamp_min(1e-300)).clamp_min(0))
        g = torch.Generator().manual_seed(
            self.seed
        )  # of its own: what is looked at on the way does not change what follows
        means, found = [], []
        for mean, root in zip(draws.mean, draws.root):
            means.append(mean + torch.linalg.solve_triangular(root.T, beyond, upper=True)[:, 0])
            white = torch.randn((len(root), self.draws_of_c), generator=g, dtype=torch.float64)
            around = torch.linalg.solve_triangular(root.T, white, upper=True).T
            found += [x.view_as(self.p.c) for x in means[-1] + around]
        return replace(draws, mean=means, c=found, paths=draws.paths / len(draws.q))

    def _keep_coefficients(self, draws: Draws) -> None:
        mean, root, beyond = self.guided
        draws.mean.append(mean.reshape(-1))
        draws.root.append(root)
        draws.beyond.append(beyond)
        draws.prior.append(self.prior.covariance(self.family, self.theta))

    def _keep(self, draws: Draws) -> None:
        draws.q.append(self.p.q)
        draws.loadings.append(self.p.loadings)
        draws.log_scale.append(self.p.log_scale)
        draws.accepted.append(self.accepted)
        draws.paths = self.z.clone() if draws.paths is None else draws.paths + self.z

    def _normal(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.g, dtype=torch.float64)

    def _uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.g, dtype=torch.float64)


def _at_least(q: Tensor) -> Tensor:
    """Raised to the least noise in each of its own directions: a new unit of the latents may have put it below."""
    values, vectors = torch.linalg.eigh(q)
    return (vectors * values.clamp_min(LEAST_NOISE**2 * (1 + 1e-9))) @ vectors.T


def _allowed(q: Tensor) -> bool:
    return float(torch.linalg.eigvalsh(q)[0]) >= LEAST_NOISE**2
