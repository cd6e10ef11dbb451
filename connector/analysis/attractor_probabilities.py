"""How many attractors the data leave possible: counted in draws from the posterior of the vector field."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from connector.analysis.fixed_points import FixedPoints, Region, count_fixed_points
from connector.connectivity.nu.draws import Draws
from connector.dynamics import simulate
from connector.numerics import even_rows

_MAX_STATES = 20_000  # that mark the visited region
_N_STARTS, _DURATION, _STEP = 8, 80.0, 0.1  # of states that are followed where nothing is stable; tau
_MOVING = 0.05  # of the states' rms distance from their mean, per tau: slower counts as creeping, not as a cycle
MOTION = "lasting motion, as on a limit cycle"
NOTHING = "no attractor in the visited region"


@dataclass(frozen=True)
class AttractorCounts:
    """In each of n draws of the vector field, inputs at zero, within the visited region.

    Attributes:
        stable: (n,) stable fixed points. moving: (n,) whether states keep moving within the region, where none is stable.
        points: all fixed points of all draws. region: that was visited.
    """

    stable: Tensor
    moving: Tensor
    points: FixedPoints
    region: Region

    @property
    def probabilities(self) -> dict[str, float]:
        """Share of the draws with each kind and number of attractors, the most probable first."""
        kinds = [
            (f"{count} stable fixed point{'s' * (count != 1)}" if count else (MOTION if moving else NOTHING))
            for count, moving in zip(self.stable.tolist(), self.moving.tolist())
        ]
        return {kind: count / len(kinds) for kind, count in Counter(kinds).most_common()}

    def probability(self, at_least: int) -> float:
        """That there are so many stable fixed points or more."""
        return float((self.stable >= at_least).double().mean())

    def metrics(self) -> dict[str, float]:
        """The most probable number of stable points, its probability, and that of several."""
        number, count = Counter(self.stable.tolist()).most_common(1)[0]
        return {
            "dynamics/stable_points": number,
            "dynamics/stable_points_probability": count / len(self.stable),
            "dynamics/several_stable_points_probability": self.probability(2),
        }


def count_attractors(draws: Draws, states: Tensor) -> AttractorCounts:
    """Stable fixed points of every draw of the vector field in the region that ``states`` (T, R) have visited.

    Limit cycles beside stable points are not searched.

    Raises:
        UserError: states of more than three dimensions.
    """
    states = states[even_rows(len(states), _MAX_STATES)].double()
    region = Region.of(states)
    found = count_fixed_points(draws.basis, draws.coefficients, region)
    stable = found.counts()
    moving = torch.zeros(len(stable), dtype=torch.bool)
    none = (stable == 0).nonzero()[:, 0]
    if len(none) and states.shape[1] > 1:
        moving[none] = _keeps_moving(draws, none, region)
    return AttractorCounts(stable, moving, found, region)


def _keeps_moving(draws: Draws, which: Tensor, region: Region) -> Tensor:
    """(W,) whether, in each of some draws, states that start in the region stay there and do not come to rest."""
    starts = region.states[even_rows(len(region.states), _N_STARTS)]
    of = which.repeat_interleave(len(starts))
    coefficients = draws.coefficients[of]

    def field(z: Tensor) -> Tensor:
        return torch.einsum("sp,spr->sr", draws.basis(z), coefficients) - z

    bound = 1e3 * region.scale
    end = starts.repeat(len(which), 1)
    path = simulate(lambda z, _: (z + _STEP * field(z)).clamp(-bound, bound), end, round(_DURATION / _STEP))
    last = path[:, -1]
    stays = region.holds(last) & (field(last).norm(dim=1) > _MOVING * region.scale)
    return stays.view(len(which), -1).double().mean(1) > 0.5
