"""How long a flow is trained, and the densities that it is held against."""

import math

import pytest
import torch

from connector.connectivity import flow_selection
from connector.connectivity.flow import Flow
from connector.connectivity.flow_selection import Trial, best_stopping, kernel_log_density, run_as_one

SMALL = {"dim": 2, "network": "residual", "hidden_width": 32, "hidden_layers": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ring(n, thickness=0.1, seed=0):
    angle, radius = torch.randn(n, 2, generator=generator(seed)), torch.randn(n, 1, generator=generator(seed + 1))
    return (1 + thickness * radius) * angle / angle.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("base", ["normal", "student_t"])
def test_an_untrained_residual_flow_is_its_base_density(base):
    x = torch.randn(200, 3, generator=generator())
    flow = Flow(3, network="residual", hidden_layers=4, base=base).fit_scaler(x)
    found = flow.log_prob(x, method="midpoint", steps=2)
    torch.testing.assert_close(found, flow.log_prob_of_base(x), atol=1e-5, rtol=1e-5)


def test_kernels_are_a_mixture_of_normals_of_the_covariance_of_the_rows():
    x, at = torch.randn(150, 2, generator=generator()).double(), torch.randn(20, 2, generator=generator(1)).double()
    found = kernel_log_density(x, at)
    errors = []
    for width in torch.logspace(-2, 0.2, 23, dtype=torch.float64):
        kernels = torch.distributions.MultivariateNormal(x, x.T.cov() * width**2)
        mixture = kernels.log_prob(at[:, None]).logsumexp(1) - math.log(len(x))
        errors.append(float((found - mixture).abs().max()))
    assert min(errors) < 1e-6


def test_kernels_move_with_the_coordinates():
    x, turn = ring(300).double(), torch.tensor([[2.0, 1.0], [0.0, 0.3]], dtype=torch.float64)
    moved = kernel_log_density(x[:200] @ turn.T + 5, x[200:] @ turn.T + 5)
    torch.testing.assert_close(moved, kernel_log_density(x[:200], x[200:]) - math.log(0.6), atol=1e-6, rtol=1e-6)


def test_few_rows_of_one_gaussian_leave_the_flow_at_its_base():
    x, options = torch.randn(76, 5, generator=generator()), {"most": 50, "paths": 64, "learning_rate": 1e-2}
    assert best_stopping(x, SMALL | {"dim": 5}, **options).steps == 1


def test_no_more_steps_than_asked_for():
    assert best_stopping(ring(200), SMALL, most=20, learning_rate=1e-2).steps <= 20


def test_a_trial_goes_on_where_kernels_show_a_shape_that_it_has_not_learned(monkeypatch):
    monkeypatch.setattr(flow_selection, "_STRETCHES", (4, 8))
    options = {"most": 100, "paths": 64}
    hollow = best_stopping(ring(400), SMALL, **options)
    assert hollow.steps == 10  # five quarters of both stretches
    assert hollow.over_kernels < -0.5  # of 1.24 nats that a normal lacks on this ring: the entropies are known
    one = best_stopping(torch.randn(400, 2, generator=generator()), SMALL, **options)
    assert one.steps <= 5
    assert abs(one.over_normal) < 0.05


def test_what_rises_is_told_by_paired_errors():
    noise = torch.randn(200, generator=generator())
    rising = {step: noise + 0.01 * step for step in range(0, 121, 30)}
    assert flow_selection._still_rises(rising)
    assert not flow_selection._still_rises({step: noise for step in rising} | {120: noise + 1e-9 * noise})
    assert not flow_selection._still_rises({step: value * (-1 if step > 60 else 1) for step, value in rising.items()})


@pytest.mark.parametrize("stretches", [(60, 120), (120, 120)])
def test_trials_that_run_as_one_say_what_each_says_alone(monkeypatch, stretches):
    monkeypatch.setattr(flow_selection, "_STRETCHES", stretches)
    monkeypatch.setattr(flow_selection, "_MANY", 100)
    options = {"most": 150, "paths": 128, "learning_rate": 1e-2}
    rows = [ring(200), torch.randn(200, 2, generator=generator(3)), ring(200, 0.4, seed=5)]
    bases = ("normal", "normal", "student_t")
    trials = [Trial(x, SMALL | {"base": base}, seed=n, **options) for n, (x, base) in enumerate(zip(rows, bases))]
    assert len({trial.kind for trial in trials}) == 1
    together = run_as_one(trials)
    alone = [
        best_stopping(x, SMALL | {"base": base}, seed=n, **options) for n, (x, base) in enumerate(zip(rows, bases))
    ]
    assert len({found.steps for found in alone}) > 1  # some end before the others
    for one, other in zip(together, alone):
        assert one.steps == other.steps
        assert one[1:4] == pytest.approx(other[1:4], abs=1e-4)
        assert one.steps_left == other.steps_left
        for name, weight in {} if one.begun is None else one.begun.velocity.items():
            torch.testing.assert_close(weight, other.begun.velocity[name], atol=1e-3, rtol=0)
    if stretches == (120, 120):
        assert any(found.begun for found in together)


@pytest.mark.parametrize(("rows", "left"), [(1000, 30), (998, 60)])
def test_a_trial_ends_where_the_likelihood_has_fallen_from_a_maximum(rows, left):
    trial = Trial(torch.randn(rows, 2, generator=generator()), SMALL)
    gains = {0: 0.0, 30: 0.1, 60: 0.2, 90: 0.1, 120: -0.1}
    noise = 0.1 * torch.randn(len(trial.test), generator=generator(1))
    assert [trial.ends(at, trial.kernels + gain + noise * gain, {}) for at, gain in gains.items()] == [False] * 4 + [
        True
    ]
    found = trial.stopping()
    assert (found.steps, found.steps_left) == (60, left)  # few rows are trained on from no start


def test_a_velocity_finds_its_axes_in_the_space_of_like_data():
    # The roots of two such covariances differ by a rotation that is anything.
    x, bend = torch.randn(4000, 2, generator=generator()), torch.tensor([[1.0, 0.3], [0.0, 0.9]])
    learned, taking = Flow(**SMALL).fit_scaler(x), Flow(**SMALL).fit_scaler(x @ bend.T)
    with torch.no_grad():
        for p in learned.velocity.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(1)))
    turned = Flow(**SMALL).fit_scaler(x)
    angle = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    turned.scale.copy_(turned.scale @ angle)
    turned.scale_inverse.copy_(torch.linalg.inv(turned.scale))
    turned.go_on_from(learned.velocity.state_dict(), learned.scale)
    torch.testing.assert_close(turned.scale, learned.scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.log_prob(x[:50]), learned.log_prob(x[:50]), atol=1e-4, rtol=0)
    whole = taking.scale @ taking.scale.T
    taking.go_on_from(learned.velocity.state_dict(), learned.scale)
    torch.testing.assert_close(taking.scale @ taking.scale.T, whole, atol=1e-5, rtol=0)  # of its own data
