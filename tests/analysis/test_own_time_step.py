"""The time step of a whole network, of any rank, from its rates alone."""

from dataclasses import replace

import pytest
import torch

from connector.analysis.model_checks import checks_of
from connector.analysis.step_checks import own_time_step
from connector.data.folds import fold
from connector.data.input_filter import with_inputs
from connector.lrrnn.handover import FittedDynamics
from connector.lrrnn.rate_model import RateModel, fitted_dynamics
from connector.report.causes import of_causes
from connector.types import Latents, Loadings, Recording

K, TRIALS, STEPS = 30, 40, 40


def trained(alpha=0.2, activation="tanh", noise=0.0, seed=2) -> Recording:
    """Rates of a network with a full matrix of weights, whose neurons filter the inputs."""
    g = torch.Generator().manual_seed(seed)
    w, b, d = (scale * torch.randn(K, n, generator=g).double() for scale, n in ((1.5 / K**0.5, K), (1, 2), (0.3, 1)))
    phi = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]
    u = torch.randn(TRIALS, STEPS, 2, generator=g).double()
    h, rates = torch.zeros(TRIALS, K).double(), []
    for t in range(STEPS):
        rates.append(phi(h))
        h = (1 - alpha) * h + alpha * (phi(h) @ w.T + u[:, t] @ b.T + d[:, 0])
    rates = torch.stack(rates, 1) + noise * torch.randn(TRIALS, STEPS, K, generator=g)
    return Recording(rates.float(), "rates", torch.full((TRIALS,), STEPS), alpha, activation, inputs=u.float())


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_a_wrong_time_step_is_found_to_its_digits_and_said(activation):
    recording = trained(activation=activation)
    assert own_time_step(recording, fold(TRIALS)) == recording.alpha  # as it is stated
    wrong = replace(recording, alpha=0.1)
    assert own_time_step(wrong, fold(TRIALS)) == pytest.approx(0.2, rel=1e-3)
    fit = FittedDynamics(
        Latents.of(wrong, torch.zeros(TRIALS, STEPS, 1).double()),
        Loadings(torch.ones(K, 1).double(), torch.ones(K, 2).double()),
        fold(TRIALS),
        activation,
    )
    (said,) = of_causes(checks_of(wrong, fit))
    assert "relax by 0.2 of the way in one step" in said


def fitted(recording: Recording, rank: int) -> FittedDynamics:
    model = RateModel(n_neurons=K, rank=rank, n_inputs=2, alpha=recording.alpha, has_bias=True, activation="tanh")
    model.initialise(recording.trials(fold(TRIALS).train))
    return fitted_dynamics(model, recording, fold(TRIALS))


def test_dimensions_that_were_cut_off_are_told_from_an_input_that_is_not_recorded():
    recording = trained()
    recording = replace(recording, inputs=with_inputs(recording, "filtered").inputs)
    found = checks_of(recording, fitted(recording, 3))
    assert {key for key in found if key.startswith("lrrnn/cause_")} == {"lrrnn/cause_rank"}
    assert "no input is missing" in of_causes(found)[0]


def test_nothing_is_said_of_noisy_rates_or_of_some_of_the_neurons():
    assert own_time_step(replace(trained(noise=0.05), alpha=0.1), fold(TRIALS)) is None
    assert own_time_step(replace(trained(), alpha=0.1).neurons(torch.arange(10)), fold(TRIALS)) is None
