"""What users pass to the Python API by mistake is refused with what was expected; nothing ends inside torch, or as NaN."""

import math
from pathlib import Path

import pytest
import torch

from connector import Flow, Loadings, Network, UserError, load_run

RUN = load_run(Path(__file__).parent / "fixtures" / "run_v1")
DISTRIBUTION = RUN.connectivity
FLOW, NET = DISTRIBUTION.loadings_flow, DISTRIBUTION.sample(5)
DRIVEN = Network(torch.randn(5, 2), torch.randn(5, 2), b=torch.randn(5, 3), d=torch.randn(5))
Z, NAN = torch.zeros(4, 2), torch.full((4, 2), math.nan)


def with_nan(x):
    return torch.cat([x[:-1], torch.full_like(x[-1:], math.nan)])


REFUSED = {
    "states of another rank": (
        lambda: NET.vector_field(torch.zeros(4, 3)),
        r"states z, .* \(\.\.\., 2\); got \(4, 3\)",
    ),
    "a number as a state": (lambda: NET.drive(torch.tensor(1.0)), r"got \(\)"),
    "a list": (lambda: NET.vector_field([[0.0, 0.0]]), "got list"),
    "inputs of another width": (
        lambda: DRIVEN.vector_field(Z, torch.zeros(4, 2)),
        r"inputs u, .*\(\.\.\., 3\); got \(4, 2\)",
    ),
    "inputs of other states": (
        lambda: DRIVEN.step(Z, torch.zeros(5, 3)),
        r"states of shape \(4, 2\); got shape \(5, 3\)",
    ),
    "inputs that end early": (lambda: DRIVEN.simulate(Z, 10, torch.zeros(4, 5, 3)), "9 or more, U"),
    "a constant input to simulate": (lambda: DRIVEN.simulate(Z, 10, torch.zeros(3)), r"got \(3,\)"),
    "a wide start": (lambda: NET.simulate(torch.zeros(4, 3), 10), "states z0"),
    "a wide input to simulate": (lambda: DRIVEN.simulate(Z, 3, torch.zeros(4, 2, 2)), "inputs u"),
    "no steps": (lambda: NET.simulate(Z, 0), "steps, a whole number of 1 or more; got 0"),
    "half a step": (lambda: NET.simulate(Z, 2.5), "got 2.5"),
    "one start": (lambda: NET.fixed_points(torch.zeros(2)), r"\(number, 2\); got \(2,\)"),
    "wide starts": (lambda: NET.fixed_points(torch.zeros(4, 3)), r"got \(4, 3\)"),
    "no starts": (lambda: NET.fixed_points(torch.zeros(0, 2)), "one point or more"),
    "starts that are NaN": (lambda: NET.fixed_points(NAN), "8 NaN or infinite entries"),
    "a wide constant input": (
        lambda: DRIVEN.fixed_points(Z, torch.zeros(2)),
        r"constant input u, .*\(3,\); got \(2,\)",
    ),
    "an input for each start": (lambda: DRIVEN.fixed_points(Z, torch.zeros(4, 3)), r"got \(4, 3\)"),
    "a list as a mask": (lambda: NET.silence([True] * 5), "got list"),
    "whole numbers as loadings": (lambda: Network(Z.long(), Z.long()), "floating point"),
    "log_prob of NaN in m": (lambda: DISTRIBUTION.log_prob(Network(with_nan(NET.m), NET.n)), "2 NaN or infinite"),
    "log_prob of NaN in n": (lambda: DISTRIBUTION.log_prob(Network(NET.m, with_nan(NET.n))), "2 NaN or infinite"),
    "log_prob of infinity": (lambda: DISTRIBUTION.log_prob(Network(NET.m / 0, NET.n)), "NaN or infinite"),
    "log_prob of another rank": (
        lambda: DISTRIBUTION.log_prob(Network(torch.zeros(4, 3), torch.zeros(4, 3))),
        "rank 2",
    ),
    "log_prob of a tensor": (lambda: DISTRIBUTION.log_prob(NET.m), "a Network; got Tensor"),
    "density at NaN": (lambda: FLOW.log_prob(NAN), "points that are finite"),
    "density at infinity": (lambda: FLOW.log_prob(NAN.nan_to_num(math.inf)), "points that are finite"),
    "density by no method": (lambda: FLOW.log_prob(Z, method="nope"), "a method among euler"),
    "density in no steps": (lambda: FLOW.log_prob(Z, method="rk4", steps=0), "steps, a whole number"),
    "context that is NaN": (lambda: Flow(2, 2).log_prob(Z, NAN), "points that are finite"),
    "fewer than no samples": (lambda: FLOW.sample(-1), "n_samples, a whole number of 0 or more"),
    "wide loadings": (lambda: DISTRIBUTION.conditional_mean(torch.zeros(4, 7)), "2 columns"),
    "loadings of another rank": (lambda: DISTRIBUTION.conditional_variance(Loadings(torch.zeros(4, 5))), "2 columns"),
    "loadings that are NaN": (lambda: DISTRIBUTION.conditional_mean(NAN), "loadings that are finite"),
    "a list of loadings": (lambda: DISTRIBUTION.diagnose([[0.0, 0.0]]), "got list"),
    "a diagnosis of none": (lambda: DISTRIBUTION.diagnose(n_neurons=0), "n_neurons"),
    "half a neuron": (lambda: DISTRIBUTION.sample(2.5), "n_neurons, a whole number of 1 or more; got 2.5"),
    "sigma that is NaN": (lambda: DISTRIBUTION.sample(5, sigma=math.nan), "sigma of 0 or more"),
    "a text as a seed": (lambda: DISTRIBUTION.sample(5, seed="a"), "seed"),
    "an entropy of one sample": (lambda: DISTRIBUTION.entropy(1), "n_samples, a whole number of 2 or more"),
    "a quadrature of nothing": (lambda: DISTRIBUTION.quadrature(0), "n_points"),
    "no path": (lambda: load_run(None), "path of a run directory; got NoneType"),
    "a long path": (lambda: load_run("a" * 300), "no such directory"),
    "a null character": (lambda: load_run("a\0b"), "no such directory"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_refused_with_what_was_expected(mistake):
    call, said = REFUSED[mistake]
    with pytest.raises(UserError, match=said):
        call()


def test_what_is_meant_to_work_does():
    whole = DISTRIBUTION.conditional_mean(torch.ones(3, 2, dtype=torch.int64))  # not cut down to whole numbers
    assert torch.allclose(whole, DISTRIBUTION.conditional_mean(torch.ones(3, 2, dtype=torch.float64)))
    assert torch.allclose(FLOW.log_prob(torch.ones(3, 2, dtype=torch.int64)), FLOW.log_prob(torch.ones(3, 2)))
    constant = torch.randn(3)
    assert torch.allclose(DRIVEN.vector_field(Z, constant), DRIVEN.vector_field(Z, constant.expand(4, 3)))
    shared = torch.randn(9, 3)
    assert torch.allclose(DRIVEN.simulate(Z, 10, shared), DRIVEN.simulate(Z, 10, shared.expand(4, 9, 3)))
    assert NET.simulate(torch.zeros(2), 1).shape == (1, 2)
    assert FLOW.log_prob(torch.zeros(0, 2)).shape == (0,)
    assert FLOW.sample(0).shape == (0, 2)
