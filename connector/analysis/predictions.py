"""What a network predicts beyond the recorded trials: where states go after a trial, what silencing neurons changes.

Both are extrapolations. Each comes with what it has to be judged against: the separation after trial end with the two
kinds of dynamics that it is to tell apart, the silencing of a cell type with the silencing of random neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from connector.analysis.fields import normalised_difference
from connector.analysis.spike_scores import fit_choice_axis, psths, sign_conditions
from connector.dynamics import Network, activation, potentials, simulate
from connector.errors import UserError
from connector.numerics import even_rows
from connector.types import Loadings, last_states, valid_mask

LEVEL = 0.05
_NEAR, _MOST_VISITED = 0.15, 5000  # of the visited states' rms distance from their mean; states that mark the region
_LEFT = 0.01  # share of the trials that leave the visited region above which nothing is called robust


# --- after the trials ------------------------------------------------------------------------------------------------


def separation(step: Callable[[Tensor], Tensor], ends: Tensor, choices: Tensor, steps: int) -> Tensor:
    """Distance between the mean states of right and left trials after their end, relative to that at their end.

    States run on without input and noise. Two attractors keep the two apart; at a single stable point the distance
    decays with its time constant (and oscillates around a spiral point only where the spiral is no circle).

    Args:
        step: one Euler step without input, (B, R) -> (B, R), such as ``Network.step``.
        ends: (B, R) states at the end of the trials.
        choices: (B,) 0 left, 1 right; others are left out.
        steps: samples followed.

    Returns:
        (steps,), 1 at the first; float64.

    Raises:
        UserError: no trial of one of the choices.
    """
    left, right = ends[choices == 0], ends[choices == 1]
    if len(left) == 0 or len(right) == 0:
        raise UserError("trials of both choices", f"{len(left)} left, {len(right)} right")
    with torch.no_grad():
        paths = [simulate(lambda z, _: step(z), side.double(), steps).double() for side in (left, right)]
    distance = (paths[1].mean(0) - paths[0].mean(0)).norm(dim=1)
    return distance / distance[0]


def decay_times(eigenvalues: Tensor, tau_s: float) -> Tensor:
    """Time in seconds in which a deviation from a fixed point falls to 1/e along its slowest direction, (F,).

    Args:
        eigenvalues: (F, R) of the Jacobian there, units 1 / tau; tau_s: tau in seconds.

    Returns:
        infinite for a point that is not stable.
    """
    slowest = eigenvalues.real.max(dim=1).values
    return torch.where(slowest < 0, tau_s / -slowest.clamp_max(-1e-12), torch.inf)


def stable_points(network: Network, starts: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Stable fixed points without input that the flow or Newton's method finds from ``starts``, within ``reach``.

    Args:
        starts: (P, R), such as visited states; reach: largest norm of a point that counts.

    Returns:
        points (F, R) and eigenvalues (F, R), units 1 / tau.
    """
    points, eigenvalues = network.fixed_points(starts)
    keep = (eigenvalues.real < 0).all(1) & (points.norm(dim=1) <= reach)
    return points[keep], eigenvalues[keep]


# --- contributions of cell types ---------------------------------------------------------------------------------------


@torch.no_grad()
def first_against_rest(network: Network, first: Tensor, z: Tensor, u: Tensor | None = None) -> Tensor:
    """(|F_A| - |F_B|) / (|F_A| + |F_B|) at each state, F_A the drive by group A of neurons and F_B that by all others.

    Args:
        first: (J, K) boolean, J choices of group A, such as a cell type and shuffles of it.
        z (T, R), u (T, U) or None.

    Returns:
        (J, T), in [-1, 1].
    """
    parts = first[:, :, None] * network.n  # (J, K, R)
    rates = network.rates(z, u)
    of_first = torch.einsum("tk,jkr->jtr", rates, parts) / network.n_neurons
    rest = rates @ network.n / network.n_neurons - of_first
    return normalised_difference(of_first.flatten(0, 1), rest.flatten(0, 1)).view(len(first), len(z))


def shuffles(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """The labels (K,) in random order, ``count`` times: (count, K)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(count)])


# --- silencing -------------------------------------------------------------------------------------------------------


class ChoiceReadout(NamedTuple):
    """P(right) = sigmoid(axis . z(T) + offset), as a downstream area might read it; silencing leaves it as it is.

    Attributes:
        axis: (R,); offset: number.
    """

    axis: Tensor
    offset: float

    def __call__(self, ends: Tensor) -> Tensor:
        return torch.sigmoid(ends.double() @ self.axis + self.offset)

    @staticmethod
    def fit(ends: Tensor, choices: Tensor) -> ChoiceReadout:
        """Logistic regression of the choices (B,) 0, 1 or NaN on the states at the end of the trials (B, R)."""
        return ChoiceReadout(*fit_choice_axis(ends, choices))


@dataclass(frozen=True)
class Trials:
    """Trials that a network is to run through, driven by their inputs alone.

    Attributes:
        start: (R,) state at their start; inputs: (B, time, U) or None; lengths: (B,).
        evidence: (B,) signed evidence for right, such as the difference of clicks; 0 and NaN count for neither side.
    """

    start: Tensor
    inputs: Tensor | None
    lengths: Tensor
    evidence: Tensor

    @property
    def sides(self) -> Tensor:
        """(B,) 0 evidence left, 1 right, -1 neither."""
        return sign_conditions(self.evidence)


@dataclass(frozen=True)
class Readouts:
    """What is read off the latent states.

    Attributes:
        choice: of z(T).
        loadings: of the recorded neurons: rate = scale_hz * phi(m.z + b.u + d), ``activation`` naming phi.
        smooth_sd_bins: sd of the causal Gaussian that smooths PSTHs.
    """

    choice: ChoiceReadout
    loadings: Loadings
    scale_hz: float
    activation: str = "softplus"
    smooth_sd_bins: float = 10.0


class Responses(NamedTuple):
    """What a network does in trials.

    Attributes:
        z: (B, time, R) latent states, z[t] for t < length of the trial.
        right: (B,) probability of choosing right.
        psths: (2, time, K_obs) rates of the recorded neurons by side of the evidence, Hz; valid: (2, time).
    """

    z: Tensor
    right: Tensor
    psths: Tensor
    valid: Tensor


@torch.no_grad()
def respond(network: Network, trials: Trials, readouts: Readouts) -> Responses:
    """Run a network, without noise, through trials and read choices and PSTHs off its states."""
    count = len(trials.lengths)
    steps = int(trials.lengths.max())
    inputs = None if trials.inputs is None else trials.inputs[:, :steps].to(network.m.dtype)
    z = network.simulate(trials.start.expand(count, -1), steps, inputs).double()
    # A silenced network may have no bounds: far out all that matters is that it is far out.
    z = z.nan_to_num(0.0, 1e6, -1e6).clamp(-1e6, 1e6)
    right = readouts.choice(last_states(z, trials.lengths))
    phi = activation(readouts.activation)
    loadings = readouts.loadings.map(Tensor.double)
    rates = readouts.scale_hz * phi(potentials(loadings, z, None if inputs is None else inputs.double()))
    mask = valid_mask(trials.lengths, steps)
    means, _, valid = psths(rates, mask, trials.sides, smooth_sd_bins=readouts.smooth_sd_bins, n_conditions=2)
    return Responses(z, right, means, valid)


class Effect(NamedTuple):
    """What silencing changes.

    Attributes:
        right: change of the mean probability of choosing right.
        correct: change of the mean probability of choosing the side with the evidence.
        rate_hz: root-mean-square change of the PSTHs, over neurons, time and sides of the evidence.
        selectivity: what is left of the neurons' differences between the sides: 1 all, 0 none, negative reversed
            (slope of the differences of the silenced network on those of the intact one).
        outside: share of the trials that leave the region which the intact ones visit (their states, and what is nearer to
            one than ``_NEAR`` of their spread): there readouts and dynamics are extrapolated.
    """

    right: float
    correct: float
    rate_hz: float
    selectivity: float
    outside: float


NO_EFFECT = Effect(0.0, 0.0, 0.0, 1.0, 0.0)


def effect(intact: Responses, silenced: Responses, trials: Trials) -> Effect:
    """What ``silenced`` differs in from ``intact``, on the same trials."""
    sides = trials.sides
    towards = torch.where(sides == 1, silenced.right - intact.right, intact.right - silenced.right)
    both = (intact.valid & silenced.valid).all(0)
    change = (silenced.psths - intact.psths)[:, both]
    before, after = ((r.psths[1] - r.psths[0])[both] for r in (intact, silenced))
    return Effect(
        right=float((silenced.right - intact.right).mean()),
        correct=float(towards[sides >= 0].mean()),
        rate_hz=float(change.square().mean().sqrt()),
        selectivity=float((before * after).sum() / before.square().sum().clamp_min(1e-12)),
        outside=float(_leaves(intact.z, silenced.z, trials.lengths).double().mean()),
    )


def _leaves(intact: Tensor, silenced: Tensor, lengths: Tensor) -> Tensor:
    """(B,) whether a trial's states come to where no state (B, time, R) of the intact network is near."""
    valid = valid_mask(lengths, intact.shape[1])
    visited = intact[valid]
    spread = float((visited - visited.mean(0)).square().sum(1).mean().sqrt())
    some = visited[even_rows(len(visited), _MOST_VISITED)]
    near, _ = cKDTree(some.numpy()).query(silenced[valid].numpy(), distance_upper_bound=max(_NEAR * spread, 1e-9))
    away = torch.zeros_like(valid)
    away[valid] = torch.from_numpy(near).isinf()
    return away.any(1)


class SilencingEffects(NamedTuple):
    """Effects in one network.

    Attributes:
        intact: its responses; silenced: those with each cell type silenced, C of them.
        types: (C, 5) effect of silencing each type, columns as in :class:`Effect`.
        random: (C, J, 5) effect of silencing as many neurons at random, J times.
        sizes: (C,) neurons of each type.
    """

    intact: Responses
    silenced: list[Responses]
    types: Tensor
    random: Tensor
    sizes: Tensor


def silencing_effects(
    network: Network, labels: Tensor, trials: Trials, readouts: Readouts, n_random: int = 19, seed: int = 0
) -> SilencingEffects:
    """Silence each cell type, and random groups of as many neurons, and compare with the intact network.

    Args:
        labels: (K,) cell type of each neuron, 0..C-1, each occurring.
        n_random: J random groups for each type; seed: of their choice.
    """
    generator = torch.Generator().manual_seed(seed)
    intact = respond(network, trials, readouts)
    silenced, types, random = [], [], []
    for c in range(int(labels.max()) + 1):
        silenced.append(respond(network.silence(labels == c), trials, readouts))
        types.append(effect(intact, silenced[-1], trials))
        groups = []
        for _ in range(n_random):
            shuffled = labels[torch.randperm(len(labels), generator=generator)]
            groups.append(effect(intact, respond(network.silence(shuffled == c), trials, readouts), trials))
        random.append(groups)
    return SilencingEffects(
        intact,
        silenced,
        torch.tensor(types, dtype=torch.float64),
        torch.tensor(random, dtype=torch.float64).reshape(len(types), n_random, len(Effect._fields)),
        torch.bincount(labels),
    )


class Prediction(NamedTuple):
    """An effect predicted by a distribution of networks, beside what random groups of neurons give.

    Attributes:
        value: median over networks; low, high: 95 % of the networks lie between.
        null_low, null_high: 95 % of the medians over networks lie between where each network loses random neurons.
        p_value: how often random neurons give a median at least as far from their usual one (two-sided).
        no_effect: the value that says that nothing changes.
        outside: share of the trials that leave the visited region, mean over networks.
    """

    value: float
    low: float
    high: float
    null_low: float
    null_high: float
    p_value: float
    no_effect: float = 0.0
    outside: float = 0.0

    @property
    def one_sign(self) -> bool:
        """The networks agree on the direction of the effect."""
        return not self.low <= self.no_effect <= self.high

    @property
    def robust(self) -> bool:
        """The networks agree on the direction, random neurons do not do the same, and trials stay where trials were."""
        return self.one_sign and self.beyond_random

    @property
    def beyond_random(self) -> bool:
        """Random neurons do not do the same, and trials stay where trials were."""
        return self.outside <= _LEFT and self.p_value <= LEVEL and not self.null_low <= self.value <= self.null_high


def predict(
    effects: Tensor,
    random: Tensor,
    no_effect: float = 0.0,
    n_draws: int = 1999,
    seed: int = 0,
    outside: Tensor | None = None,
) -> Prediction:
    """Summary of one effect over networks.

    Args:
        effects: (N,) of silencing a cell type in each network.
        random: (N, J) of silencing random groups of as many neurons in each.
        n_draws: draws of one random group from each network; their medians are the null distribution.
        outside: (N,) share of the trials that leave the visited region; None: none does.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    n_networks, n_groups = random.shape
    pick = torch.randint(n_groups, (n_draws, n_networks), generator=generator)
    medians = _median(random.double()[torch.arange(n_networks), pick])
    value, usual = float(_median(effects.double()[None])), _median(medians[None])
    p_value = (1 + int(((medians - usual).abs() >= (value - usual).abs()).sum())) / (1 + n_draws)
    low, high = torch.quantile(effects.double(), ends).tolist()
    null_low, null_high = torch.quantile(medians, ends).tolist()
    left = 0.0 if outside is None else float(outside.double().mean())
    return Prediction(value, low, high, null_low, null_high, p_value, no_effect, left)


def _median(values: Tensor) -> Tensor:
    """Median along the last axis, the mean of the middle two where there are two; (N, M) -> (N,)."""
    return torch.quantile(values, 0.5, dim=-1)


def single(network: Network) -> Network:
    """The network in single precision, in which long simulations of many trials take half the time."""
    parts = {k: getattr(network, k) for k in ("m", "n", "b", "d")}
    return replace(network, **{k: None if v is None else v.float() for k, v in parts.items()})
