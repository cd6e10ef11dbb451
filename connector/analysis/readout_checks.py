"""Does phi(m.z + b.u + d) of R latent states describe rates that it was not fitted to? If not, which one change helps most?

Nothing here knows of the dynamics. Loadings of a subset of the neurons are fitted to samples of training trials. On other
trials the states are read from half of these neurons, and the rates of the other half are predicted from them. So another
latent dimension, another activation, or loadings that drift over the session lower the squared error only where there is
something of the kind: the null of each is zero, and its standard error comes from the trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from connector.data.folds import Fold
from connector.dynamics import ACTIVATIONS
from connector.errors import require
from connector.lrrnn.latents import inverse_of_normal, latents_of
from connector.lrrnn.observation import Observation
from connector.lrrnn.samples import ActivitySamples
from connector.lrrnn.start import start_fit, with_noise_seen
from connector.numerics import even_rows, random_rows
from connector.types import Latents, Loadings, Recording

N_NEURONS, N_SAMPLES, N_PAIRS = 100, 800, 250
FEWEST_TRIALS = 20  # below, a drift over the session is not looked for
_SMALL = 1e-3  # of the rates' variance: an error below it is no reason to change the model
_OUTSIDE, _NEAR = (
    0.1,
    0.2,
)  # share of the fitted rates that may lie so many sds of the rates outside of an activation's range
LEAST_GAIN, LEVEL = (
    0.03,
    0.9987,
)  # of the error; of a one-sided t-test over trials, 3 standard errors where there are many
_LEAST_OF_FIRST = 0.1  # of the stated readout's error, that a further change has to remove
_SHARED = 3  # directions between neurons that are left out of the residuals' correlation in time
RANK, DRIFT = "rank", "drift"
NEGLIGIBLE = 0.005  # of what can be explained: a dimension that adds less is none that anyone would want


@dataclass(frozen=True)
class Readout:
    """A description of single samples: how many latent states, which activation, a bias, loadings that drift."""

    rank: int
    activation: str
    has_bias: bool
    drifts: bool = False


@dataclass(frozen=True)
class Gain:
    """Share of the held-out squared error that a change removes, its standard error over trials, and their number."""

    share: float
    error: float
    n_trials: int

    @property
    def clear(self) -> bool:
        return self.share > LEAST_GAIN and self.share > stdtrit(max(self.n_trials - 1, 1), LEVEL) * self.error

    @property
    def idle(self) -> bool:
        """Whether held-out activity is predicted as well without it."""
        return self.share <= max(self.error, NEGLIGIBLE)


@dataclass(frozen=True)
class Fitted:
    """Of one readout: squared errors (S,) of held-out samples, the residuals' correlation between neighbouring samples with
    its standard error, each but for what neurons share; how many directions between neurons residuals fill, 1 for noise of
    each neuron; the fitted rates (S, K); loadings theta (K, P) of the neurons used."""

    errors: Tensor
    correlation: float
    correlation_error: float
    filled: float
    rates: Tensor
    theta: Tensor

    @property
    def error(self) -> float:
        return float(self.errors.mean())


@dataclass(frozen=True)
class ReadoutChecks:
    """What :func:`check_readout` finds.

    Attributes:
        gains: change -> gain over the readout as it is stated: "rank" (one more latent dimension), "drift" (loadings that
            change over the session), the name of another activation.
        last: what the last of the stated dimensions gains over one fewer; None of a single one.
        adopted: the changes that help, the most helpful first, each on top of those before; "rank" once for each dimension.
        readout: with these changes. fitted: it.
        unexplained, left: held-out squared error of the stated readout, and with the changes, over the rates' variance.
    """

    gains: dict[str, Gain]
    last: Gain | None
    adopted: tuple[str, ...]
    readout: Readout
    fitted: Fitted
    unexplained: float
    left: float


def _pairs(samples: ActivitySamples, mask: Tensor, most: int) -> tuple[ActivitySamples, Tensor]:
    """Neighbouring samples of a mask (trials, time), all first ones before all second ones; the trial of each pair."""
    first = mask[:, :-1] & mask[:, 1:]
    rows = torch.nn.functional.pad(first, (0, 1)).reshape(-1).nonzero()[:, 0]
    rows = rows[random_rows(len(rows), most)]
    return replace(samples, rows=torch.cat([rows, rows + 1])), rows // mask.shape[1]


class ReadoutSamples:
    """Samples of training trials, pairs of neighbouring samples of other trials, and the place of each in the session."""

    def __init__(self, recording: Recording, fold: Fold):
        self.neurons = even_rows(recording.n_neurons, N_NEURONS)
        mask = recording.mask
        train, rest = torch.zeros_like(mask), torch.zeros_like(mask)
        for held, part in ((train, fold.train), (rest, fold.validation), (rest, fold.test)):
            held[part] = mask[part]
        whole = ActivitySamples.of(recording.activity[..., self.neurons], mask, recording.inputs)
        self.train, self.train_trial = _pairs(whole, train, N_SAMPLES // 2)
        self.held, self.trial = _pairs(whole, rest, N_PAIRS)
        times = recording.trial_times_s
        order = torch.arange(len(mask)).double() if times is None or bool(times.isnan().any()) else times.double()
        order = (order - order.mean()) / order.std().clamp_min(1e-12)
        self.session = torch.stack([order, order**2 - 1], 1).repeat_interleave(mask.shape[1], 0)  # (trials * time, 2)
        y = self.train.activity[self.train.rows].double()
        self.variance = float(y.var(0).mean())
        self.drift_is_seen = recording.n_trials >= FEWEST_TRIALS

    def drifting(self, samples: ActivitySamples, z: Tensor) -> ActivitySamples:
        """With s and s z of two courses s of the session as further inputs, z (S, R) being the states found without."""
        x = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        known = (self.session[samples.rows][:, :, None] * x[:, None]).flatten(1)
        if samples.inputs is not None:
            known = torch.cat([samples.inputs[samples.rows].double(), known], 1)
        inputs = known.new_zeros(len(samples.activity), known.shape[1])
        inputs[samples.rows] = known
        return replace(samples, inputs=inputs)

    def fit(self, readout: Readout) -> Fitted:
        rank, bias = readout.rank, readout.has_bias
        observation = with_noise_seen(self.train, Observation.of(readout.activation))
        train = self.train
        z, theta = start_fit(train, rank, bias, observation)
        if readout.drifts:
            fixed, train = theta, self.drifting(train, z)
            z, theta = start_fit(train, rank, bias, observation)
        left = train.activity[train.rows].double() - observation.phi(train.design(z, bias) @ theta.T)
        fitted = torch.zeros(len(self.held), len(theta), dtype=torch.float64)
        half = torch.arange(len(theta)) % 2 == 0
        for seen in (half, ~half):
            held = replace(self.held, activity=self.held.activity[:, seen])
            if readout.drifts:
                held = self.drifting(held, latents_of(held, fixed[seen], rank, observation)[0])
            z = latents_of(held, theta[seen], rank, observation)[0]
            fitted[:, ~seen] = observation.phi(held.design(z, bias) @ theta.T)[:, ~seen]
        residual = self.held.activity[self.held.rows].double() - fitted
        now, then = residual.square().mean(1).chunk(2)
        return Fitted(0.5 * (now + then), *self._correlation(left), fitted, theta)

    def _correlation(self, residual: Tensor) -> tuple[float, float, float]:
        """Of each neuron's own residuals at neighbouring training samples, its standard error, and how nearly residuals fill
        all directions between neurons. Of other samples they would be correlated by the errors of the loadings."""
        values, vectors = torch.linalg.eigh(residual.T @ residual)
        shared = vectors[:, -_SHARED:]
        now, then = (residual - residual @ shared @ shared.T).chunk(2)
        product, size = (now * then).mean(1), 0.5 * (now.square() + then.square()).mean(1)
        correlation = float(product.sum() / size.sum().clamp_min(1e-300))
        error = trial_error(product - correlation * size, self.train_trial) / max(float(size.mean()), 1e-300)
        filled = float(values.sum() ** 2 / values.square().sum().clamp_min(1e-300))
        of_noise = 1 / (1 / len(values) + 1 / len(now))
        return correlation, error, filled / of_noise

    def gain(self, before: Fitted, after: Fitted) -> Gain:
        better = before.errors - after.errors
        scale = max(float(before.errors.mean()), _SMALL * self.variance)
        return Gain(float(better.mean()) / scale, trial_error(better, self.trial) / scale, len(self.trial.unique()))

    def admits(self, activation: str, fitted: Fitted) -> bool:
        """Whether fitted rates lie in the range of an activation, or near it."""
        phi, near = ACTIVATIONS[activation], _NEAR * math.sqrt(self.variance)
        outside = (fitted.rates < phi.low - near) | (fitted.rates > phi.high + near)
        return float(outside.double().mean()) <= _OUTSIDE


def trial_error(x: Tensor, trial: Tensor) -> float:
    """Standard error of the mean of x (S,), of trials that are independent."""
    sums = torch.zeros(int(trial.max()) + 1, dtype=x.dtype).index_add_(0, trial, x - x.mean())
    return float(sums.square().sum().sqrt()) / len(x)


def check_readout(recording: Recording, fold: Fold, rank: int, has_bias: bool) -> ReadoutChecks:
    """Which single changes of the readout help on trials that it was not fitted to, and which together.

    Args:
        recording: rates; rank, has_bias: of the fit that is checked. Subsets of 100 neurons and 800 samples serve.

    Raises:
        UserError: fewer neurons than a readout of one more dimension needs; no held-out samples; two-valued activity.
    """
    few = f"neurons for half of them to show {rank + 1} latent dimensions: {4 * (rank + 1)} or more"
    require(recording.n_neurons >= 4 * (rank + 1), few, recording.n_neurons)
    samples = ReadoutSamples(recording, fold)
    require(len(samples.held) > 0, "held-out trials of two samples or more", "none")
    readout = Readout(rank, recording.activation, has_bias)
    noise = with_noise_seen(samples.train, Observation.of(recording.activation)).noise
    require(noise == "gaussian", "rates", f"{noise} activity")
    first = fitted = samples.fit(readout)
    admitted = [name for name in ACTIVATIONS if samples.admits(name, fitted)]
    gains, adopted = None, []
    for _ in range(4):
        tried = {
            name: replace(readout, activation=name, has_bias=True) for name in admitted if name != readout.activation
        }
        tried[RANK] = replace(readout, rank=readout.rank + 1)
        if samples.drift_is_seen and not readout.drifts:
            tried[DRIFT] = replace(readout, drifts=True)
        others = {name: samples.fit(other) for name, other in tried.items()}
        found = {name: samples.gain(fitted, other) for name, other in others.items()}
        gains = found if gains is None else gains
        least = _LEAST_OF_FIRST * first.error if adopted else 0.0
        clear = [name for name in found if found[name].clear and fitted.error - others[name].error > least]
        if not clear:
            break
        # Another dimension can do in part what a curve or a drift does, so it has to be clearly better than those.
        best = max(clear, key=lambda name: found[name].share - 0.05 * (name == RANK))
        adopted.append(best)
        readout, fitted = tried[best], others[best]
    fewer = None if rank == 1 else samples.fit(Readout(rank - 1, recording.activation, has_bias))
    last = None if fewer is None else samples.gain(fewer, first)
    return ReadoutChecks(
        gains, last, tuple(adopted), readout, fitted, first.error / samples.variance, fitted.error / samples.variance
    )


def states_of(
    recording: Recording, readout: Readout, fitted: Fitted, trials: Tensor
) -> tuple[Latents, Tensor, Loadings]:
    """States of some trials as another readout sees them, each sample by itself, the covariance (trials, time, R, R) of
    their errors, and the loadings of the neurons used; for a readout that does not drift."""
    neurons, some = even_rows(recording.n_neurons, N_NEURONS), recording.trials(trials)
    samples = ActivitySamples.of(some.activity[..., neurons], some.mask, some.inputs)
    observation = with_noise_seen(samples, Observation.of(readout.activation))
    z, normal, error = latents_of(samples, fitted.theta, readout.rank, observation)
    error = error * len(neurons) / max(len(neurons) - readout.rank, 1)
    covariance = inverse_of_normal(normal, observation.unit) * observation.dispersion(error)
    loadings = Loadings.unstack(fitted.theta, readout.rank, recording.n_inputs, readout.has_bias)
    return Latents.of(some, samples.grid(z, some.mask)), samples.grid(covariance, some.mask), loadings
