"""Many flows of one shape as one batched computation: a small flow leaves a processor idle, since most of a step is the cost
of calling kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from connector.connectivity.flow import Flow


class _Divergence(nn.Module):
    """A velocity, called for its part that is learned and the divergence of that."""

    def __init__(self, velocity: nn.Module):
        super().__init__()
        self.velocity = velocity

    def forward(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity.learned_with_divergence(y, t)


class FlowStack:
    """Weights of flows in training, stacked, with their running averages and their optimizer.

    Attributes:
        members: numbers of these flows among all.
    """

    def __init__(self, flows: Sequence[Flow], learning_rate: float, weight_decay: float = 0.0):
        self.flows, self.members = list(flows), list(range(len(flows)))
        weights, _ = stack_module_state([flow.velocity for flow in flows])
        self.weights = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
        self.averaged = [w.detach().clone() for w in self.weights.values()]
        self.settings = {"lr": learning_rate, "weight_decay": weight_decay, "fused": True}
        self.optimizer = torch.optim.AdamW(self.weights.values(), **self.settings)
        self._velocity = copy.deepcopy(flows[0].velocity).to("meta")

    def errors(self, places: Tensor, times: Tensor, contexts: Tensor | None, targets: Tensor) -> Tensor:
        """Mean squared errors (E,) at paths stacked over the flows."""

        def velocity(weights, place, time, context):
            return functional_call(self._velocity, weights, (place, time, context))

        axes = (0, 0, 0, None if contexts is None else 0)
        found = vmap(velocity, in_dims=axes)(self.weights, places, times, contexts)
        return (found - targets).square().flatten(1).mean(1)

    def step(self, errors: Tensor, rates: Tensor | None = None) -> None:
        """One step of each flow, at its own fraction (E,) of the learning rate: AdamW's step is proportional to it."""
        before = [] if rates is None else [w.detach().clone() for w in self.weights.values()]
        self.optimizer.zero_grad()
        errors.sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(before, self.weights.values()):
                new.copy_(torch.lerp(old, new, rates.to(new).view(-1, *[1] * (new.ndim - 1))))

    @torch.no_grad()
    def average(self, kept: float) -> None:
        """Take the weights into their averages, of which the fraction ``kept`` stays."""
        torch._foreach_lerp_(self.averaged, [w.detach() for w in self.weights.values()], 1 - kept)

    def weights_of(self, row: int) -> dict[str, Tensor]:
        """Weights of one flow, as its velocity's state."""
        return {name: w.detach()[row].clone() for name, w in self.weights.items()}

    def averages_of(self, row: int) -> dict[str, Tensor]:
        """Averaged weights of one flow, as its velocity's state."""
        return {name: w[row].clone() for name, w in zip(self.weights, self.averaged)}

    @torch.no_grad()
    def log_prob(self, x: Tensor, *, method: str = "midpoint", steps: int = 16) -> Tensor:
        """Log densities (E, N) at x (E, N, D) of the flows with their averaged weights, as :meth:`Flow.log_prob` has them."""
        weights = {f"velocity.{name}": w for name, w in zip(self.weights, self.averaged)}
        learned, first = _Divergence(self._velocity), self.flows[0]

        def one(of_flow, y, t):
            return functional_call(learned, of_flow, (y, t))

        def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            scale = first.velocity.scale(t)
            return tuple(value / scale for value in vmap(one, in_dims=(0, 0, None))(weights, state[0], t))

        ends = torch.stack([flow.standardised(points) for flow, points in zip(self.flows, x)])
        starts, divergence = first.integrate(field, (ends, ends.new_zeros(ends.shape[:2])), 1, 0, method, steps)
        of_base = [flow.log_prob_base(start) for flow, start in zip(self.flows, starts)]
        sizes = [torch.linalg.slogdet(flow.scale).logabsdet for flow in self.flows]
        return torch.stack(of_base) + divergence - torch.stack(sizes)[:, None]

    def keep(self, rows: list[int]) -> None:
        """Go on with these flows alone."""
        moments = [self.optimizer.state[w] for w in self.weights.values()]
        self.members, self.flows = [self.members[row] for row in rows], [self.flows[row] for row in rows]
        self.weights = {name: w.detach()[rows].requires_grad_() for name, w in self.weights.items()}
        self.averaged = [w[rows] for w in self.averaged]
        self.optimizer = torch.optim.AdamW(self.weights.values(), **self.settings)
        for weight, state in zip(self.weights.values(), moments):
            here = {name: value[rows] if value.ndim else value for name, value in state.items()}
            self.optimizer.state[weight] = here
