"""Small networks that learn a task, as teachers whose dynamics are known in full, and networks that only seem to have attractors.

    python experiments/task_teachers.py flipflop3 --out runs/teachers

A task network of K = 100 neurons follows h[t+1] = (1 - a) h[t] + a (W tanh(h[t]) + B u[t] + d), h[0] = 0, a = .2; its rates are
tanh(h), its output is O tanh(h) + c. It is trained by Adam on the squared error of the output where the task scores it, with noise
on h and a small penalty on rates and weights. Gradients are those of back-propagation through time, written out: the networks are
small, and a training takes less than a minute of CPU time.

    flipflop2, flipflop3   each output keeps the sign of the last pulse of its input
    integrate              the sign of the summed evidence, at the end of the trial
    decision               the same of one of two streams of evidence; two further inputs say which
    ring_memory            the angle of a short input
    sine                   a sine of the frequency that a constant input names

A network of :func:`non_normal` has 500 neurons and W = M N^T of rank 2 with N^T M = 0. It is driven by noise, and its only
attractor is the origin, which every state approaches with the neurons' own time constant. Models that are fitted to a few of its
neurons see slow directions, cycles or further points there (Qian et al. 2024, Partial observation can induce mechanistic
mismatches in data-constrained models of neural dynamics).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from connector.files import write_npz

ALPHA = 0.2
GRACE = 6  # steps after a pulse in which the output is not scored
EVIDENCE = (10, 60)  # first step with evidence and the one after the last
Task = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def flip_flop(n: int, generator: torch.Generator, bits: int, steps: int = 120, rate: float = 0.03) -> tuple:
    """Pulses of +-4 on each channel; the target is the sign of the last one."""
    pulses = (torch.rand((n, steps, bits), generator=generator) < rate) * _normal(
        n, steps, bits, generator=generator
    ).sign()
    pulses[:, 0] = _normal(n, bits, generator=generator).sign()
    targets, scored = torch.zeros_like(pulses), torch.ones_like(pulses)
    held, since = torch.zeros(n, bits), torch.zeros(n, bits)
    for t in range(steps):
        new = pulses[:, t] != 0
        held, since = torch.where(new, pulses[:, t], held), torch.where(new, 0.0, since + 1)
        targets[:, t], scored[:, t] = held, (since >= GRACE).float()
    return 4 * pulses, targets, scored


def _evidence(n: int, streams: int, steps: int, generator: torch.Generator) -> Tensor:
    """Noise about one of eight means, (n, steps, streams), zero outside :data:`EVIDENCE`."""
    begin, end = EVIDENCE
    mean = 0.8 * (torch.randint(0, 8, (n, 1, streams), generator=generator) - 3.5) / 3.5
    u = torch.zeros(n, steps, streams)
    u[:, begin:end] = 0.5 * (mean + _normal(n, end - begin, streams, generator=generator))
    return u


def _sign_at_the_end(total: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Targets and scores of a decision: nothing before the evidence, its sign in the last steps."""
    targets, scored = torch.zeros(len(total), steps, 1), torch.zeros(len(total), steps, 1)
    targets[:, EVIDENCE[0] :, 0] = total.sign()[:, None]
    scored[:, : EVIDENCE[0]] = scored[:, EVIDENCE[1] + 10 :] = 1
    return targets, scored


def integration(n: int, generator: torch.Generator, steps: int = 90) -> tuple:
    u = _evidence(n, 1, steps, generator)
    return u, *_sign_at_the_end(u.sum((1, 2)), steps)


def decision(n: int, generator: torch.Generator, steps: int = 90) -> tuple:
    u = _evidence(n, 2, steps, generator)
    context = torch.randint(0, 2, (n,), generator=generator)
    cue = torch.nn.functional.one_hot(context, 2).float()[:, None].expand(-1, steps, -1)
    return torch.cat([u, cue], -1), *_sign_at_the_end(u.sum(1).gather(1, context[:, None])[:, 0], steps)


def ring_memory(n: int, generator: torch.Generator, steps: int = 100) -> tuple:
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    place = torch.stack([angle.cos(), angle.sin()], -1)[:, None]
    u, targets, scored = torch.zeros(n, steps, 2), torch.zeros(n, steps, 2), torch.ones(n, steps, 2)
    u[:, 5:15], targets[:, 5:], scored[:, 5:20] = place, place, 0
    return u, targets, scored


def sine(n: int, generator: torch.Generator, steps: int = 150) -> tuple:
    cue = torch.randint(0, 11, (n, 1), generator=generator) / 10
    u, scored = torch.zeros(n, steps, 2), torch.ones(n, steps, 1)
    u[..., 0], u[:, :5, 1], scored[:, :10] = cue, 1, 0  # a pulse fixes the phase
    cycles = 0.02 + 0.03 * cue  # a step
    return u, torch.sin(2 * math.pi * cycles * (torch.arange(steps) - 5)).unsqueeze(-1), scored


@dataclass(frozen=True)
class Recipe:
    """A task, how long its network learns, and the constant inputs under which its attractors are looked for.

    Attributes:
        task: (trials, generator) -> inputs (n, T, U), targets (n, T, O), scored of the shape of targets.
        sizes: U and O. rank: of the fits. iterations: of 64 trials. gain: of the weights at the start.
        held: constant inputs, U numbers each.
    """

    task: Task
    sizes: tuple[int, int]
    rank: int
    iterations: int
    held: tuple[tuple[float, ...], ...]
    gain: float = 0.9


TASKS = {
    "flipflop2": Recipe(lambda n, g: flip_flop(n, g, 2), (2, 2), 6, 600, ((0.0, 0.0),)),
    "flipflop3": Recipe(lambda n, g: flip_flop(n, g, 3), (3, 3), 8, 1000, ((0.0, 0.0, 0.0),)),
    "integrate": Recipe(integration, (1, 1), 2, 800, ((0.0,),)),
    "decision": Recipe(decision, (4, 1), 6, 1500, ((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))),
    "ring_memory": Recipe(ring_memory, (2, 2), 2, 1000, ((0.0, 0.0),)),
    "sine": Recipe(sine, (2, 1), 8, 1500, ((0.2, 0.0), (0.8, 0.0)), gain=1.2),
}


class TaskNetwork:
    """h[t+1] = (1 - a) h[t] + a (W tanh(h[t]) + B u[t] + d), output O tanh(h) + c; parameters float32 tensors."""

    def __init__(self, n_neurons: int, sizes: tuple[int, int], gain: float, generator: torch.Generator):
        k, (n_inputs, n_outputs) = n_neurons, sizes
        self.parameters = {
            "W": gain * _normal(k, k, generator=generator) / k**0.5,
            "B": 0.5 * _normal(k, n_inputs, generator=generator),
            "d": torch.zeros(k),
            "O": _normal(n_outputs, k, generator=generator) / (3 * k) ** 0.5,
            "c": torch.zeros(n_outputs),
        }

    def run(self, u: Tensor, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Rates (n, T, K) under inputs (n, T, U)."""
        p = self.parameters
        driven = ALPHA * (u @ p["B"].T + p["d"])
        h, rates, within = torch.zeros(len(u), len(p["W"])), [], ALPHA * p["W"].T
        if noise:
            driven = driven + noise * math.sqrt(2 * ALPHA) * _normal(*driven.shape, generator=generator)
        for t in range(u.shape[1]):
            rates.append(h.tanh())
            h = torch.addmm(h, rates[-1], within, beta=1 - ALPHA).add_(driven[:, t])
        return torch.stack(rates, 1)

    def outputs(self, rates: Tensor) -> Tensor:
        return rates @ self.parameters["O"].T + self.parameters["c"]

    def gradients(self, u: Tensor, targets: Tensor, scored: Tensor, rates: Tensor) -> tuple[float, dict[str, Tensor]]:
        """Loss and its gradient by back-propagation through time, for the rates that :meth:`run` gave.

        Loss: squared error where it is scored, its mean; 1e-3 times the mean squared rate; 2e-4 |W|^2 / K.
        """
        p, total = self.parameters, scored.sum()
        error = (self.outputs(rates) - targets) * scored
        of_outputs = 2 * error * scored / total
        of_rates = of_outputs @ p["O"] + 2e-3 * rates / rates.numel()
        slope = 1 - rates * rates
        of_next = torch.zeros_like(rates[:, 0])
        of_state = torch.empty_like(rates)  # of h[t+1]
        within = ALPHA * p["W"]
        for t in range(rates.shape[1] - 1, -1, -1):
            of_state[:, t] = of_next
            of_next = (1 - ALPHA) * of_next + torch.addmm(of_rates[:, t], of_next, within) * slope[:, t]
        flat = ALPHA * of_state.flatten(0, 1)
        found = {
            "W": flat.T @ rates.flatten(0, 1) + 4e-4 * p["W"] / len(p["W"]),
            "B": flat.T @ u.flatten(0, 1),
            "d": flat.sum(0),
            "O": of_outputs.flatten(0, 1).T @ rates.flatten(0, 1),
            "c": of_outputs.sum((0, 1)),
        }
        loss = error.square().sum() / total + 1e-3 * rates.square().mean() + 2e-4 * p["W"].square().sum() / len(p["W"])
        return float(loss), found


def learn(recipe: Recipe, seed: int = 0, n_neurons: int = 100, iterations: int | None = None) -> TaskNetwork:
    """A network trained on the task: Adam, the rate rising over the first tenth and falling as a cosine, gradients of norm 1 at
    most."""
    generator = torch.Generator().manual_seed(seed)
    network, n = TaskNetwork(n_neurons, recipe.sizes, recipe.gain, generator), iterations or recipe.iterations
    parameters = list(network.parameters.values())
    optimizer = torch.optim.Adam(parameters, 4e-3)
    for i in range(n):
        at = i / n
        optimizer.param_groups[0]["lr"] = 4e-3 * min(
            10 * at + 0.04, 0.5 * (1 + math.cos(math.pi * max(0, at - 0.1) / 0.9))
        )
        u, targets, scored = recipe.task(64, generator)
        found = network.gradients(u, targets, scored, network.run(u, 0.03, generator))[1]
        for name, parameter in network.parameters.items():
            parameter.grad = found[name]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return network


def score(network: TaskNetwork, recipe: Recipe, seed: int = 5000, n: int = 100) -> float:
    """Share of the variance about zero of the targets that the outputs explain where they are scored, on fresh trials."""
    u, targets, scored = recipe.task(n, torch.Generator().manual_seed(seed))
    error = (network.outputs(network.run(u)) - targets) * scored
    return float(1 - error.square().sum() / (targets * scored).square().sum())


@dataclass(frozen=True)
class NonNormal:
    """A network of :func:`non_normal`: m, n (K, 2); rates of a run (T, K); observed: numbers of the recorded neurons."""

    m: Tensor
    n: Tensor
    rates: Tensor
    observed: Tensor
    alpha: float

    def field(self, h: Tensor) -> Tensor:
        """dh/dt of all K neurons without noise, (..., K)."""
        return h.tanh() @ self.n @ self.m.T - h


def non_normal(
    n_observed: int,
    n_neurons: int = 500,
    steps: int = 30_000,
    strength: float = 40.0,
    noise: float = 0.1,
    seed: int = 0,
) -> NonNormal:
    """tau dh/dt = -h + M N^T tanh(h) + noise, M^T M = N^T N = strength I, M^T N = 0: its only attractor is the origin.

    Args:
        n_observed: recorded neurons, chosen at random. steps: of .1 tau. noise: sd of what is added to each h in a step.
    """
    generator, alpha = torch.Generator().manual_seed(seed), 0.1
    basis = torch.linalg.qr(_normal(n_neurons, 4, generator=generator).double())[0] * strength**0.5
    m, n = basis[:, :2], basis[:, 2:]
    h, states = torch.zeros(n_neurons, dtype=torch.float64), []
    for _ in range(steps + 200):
        h = (1 - alpha) * h + alpha * (h.tanh() @ n) @ m.T
        h = h + noise * torch.randn(n_neurons, generator=generator, dtype=torch.float64)
        states.append(h)
    observed = torch.randperm(n_neurons, generator=generator)[:n_observed].sort().values
    return NonNormal(m, n, torch.stack(states[200:]).tanh(), observed, alpha)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=tuple(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("runs/teachers"), help="NAME.npz, which data=rnn reads")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.tasks:
        network = learn(TASKS[name], given.seed)
        u, targets, scored = TASKS[name].task(given.trials, torch.Generator().manual_seed(given.seed + 5000))
        about = {"externalinputs": u, "rates": network.run(u), "targets": targets, "score_mask": scored, "alpha": ALPHA}
        weights = {"W_out" if key == "O" else key: value for key, value in network.parameters.items() if key != "c"}
        write_npz(given.out / f"{name}.npz", about | weights)
        print(f"{name}: explains {score(network, TASKS[name]):.4f} of the targets", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
