"""The flow against densities with a known answer."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, multivariate_t

from connector.connectivity.flow import Flow
from connector.connectivity.networks import NETWORKS
from connector.connectivity.student_t import fit_student_t
from connector.errors import UserError


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _randomised(flow, seed=0, size=0.5):
    """Weights large enough that the map is far from the identity; a scaler that is not one either."""
    g = _generator(seed)
    for p in flow.parameters():
        p.data = size * torch.randn(p.shape, generator=g)
    x = torch.randn(500, flow.dim, generator=g) @ torch.randn(flow.dim, flow.dim, generator=g) + 1
    context = torch.randn(500, flow.context_dim, generator=g) * 3 - 1 if flow.context_dim else None
    return flow.fit_scaler(x, context).double()


def _train(flow, x, context=None, steps=600, seed=0, lr=5e-3, batch=512):
    g = _generator(seed)
    flow.fit_scaler(x, context)
    optimiser = torch.optim.Adam(flow.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=g)
        optimiser.zero_grad()
        flow.loss(x[rows], None if context is None else context[rows], generator=g).backward()
        optimiser.step()
        schedule.step()
    return flow.eval()


# Each pair of settings by default, all triples with the slow tests.
TRIPLES = [(True, "normal", 0), (True, "student_t", 2), (False, "normal", 2), (False, "student_t", 0)]
OTHER_TRIPLES = [(precondition, base, 2 - context_dim) for precondition, base, context_dim in TRIPLES]


@pytest.mark.parametrize(
    ("precondition", "base", "context_dim"),
    [*TRIPLES, *(pytest.param(*triple, marks=pytest.mark.slow) for triple in OTHER_TRIPLES)],
)
def test_log_prob_is_the_change_of_variables_of_the_sampling_map(context_dim, base, precondition):
    flow = _randomised(Flow(3, context_dim, hidden_width=16, base=base, precondition=precondition))
    context = torch.randn(1, context_dim, generator=_generator(3)).double() if context_dim else None
    n = 5

    def mapped(x0):  # the sampling map itself, on given base points
        c = None if context is None else context.expand(len(x0), -1)
        _, c = flow._standardised(x0, c)
        end = flow.integrate(lambda t, x: flow.velocity(x, t, c), x0, 0, 1, "rk4", 100)
        return flow.location + end @ flow.scale.T

    x0 = flow.sample_base(n, _generator(1))
    h = 1e-5
    eye = torch.eye(3).double()
    columns = [(mapped(x0 + h * eye[j]) - mapped(x0 - h * eye[j])) / (2 * h) for j in range(3)]
    jacobian = torch.stack(columns, dim=-1)
    expected = flow.log_prob_base(x0) - torch.linalg.slogdet(jacobian).logabsdet
    got = flow.log_prob(mapped(x0), None if context is None else context.expand(n, -1), rtol=1e-9, atol=1e-9)
    assert torch.allclose(got, expected, atol=1e-6)
    assert (jacobian.det() - 1).abs().max() > 0.1  # the map is not trivially volume preserving


# Of the other networks the divergence is compared with autograd's by default.
@pytest.mark.parametrize("network", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "mlp")])
@pytest.mark.parametrize(("base", "context_dim"), [("normal", 2), pytest.param("student_t", 0, marks=pytest.mark.slow)])
def test_log_prob_is_that_of_zuko(base, context_dim, network):
    """zuko integrates the velocity in its own coordinate, with its own solver, and takes the divergence from autograd."""
    transforms = pytest.importorskip("zuko").transforms
    flow = _randomised(Flow(3, context_dim, hidden_width=16, base=base, network=network))
    g = _generator(1)
    context = torch.randn(20, context_dim, generator=g).double() if context_dim else None
    x = flow.location + 2 * torch.randn(20, 3, generator=g).double() @ flow.scale.T
    x1, c = flow._standardised(x, context)
    to_base = transforms.FreeFormJacobianTransform(
        lambda t, x: flow.velocity(x, t, c), 1.0, 0.0, atol=1e-10, rtol=1e-10
    )
    x0, log_det = to_base.call_and_ladj(x1)
    x0 = x0.detach().numpy()
    of_base = multivariate_normal(np.zeros(3)) if base == "normal" else multivariate_t(np.zeros(3), df=float(flow.dof))
    expected = torch.from_numpy(of_base.logpdf(x0)) + log_det - torch.linalg.slogdet(flow.scale).logabsdet
    torch.testing.assert_close(flow.log_prob(x, context, rtol=1e-9, atol=1e-9), expected, rtol=0, atol=1e-6)


def test_affine_velocity_has_the_gaussian_density_known_in_closed_form():
    flow = Flow(2, hidden_layers=0, standardise="none", precondition=False).double()
    a = torch.tensor([[0.4, -0.8], [0.3, -0.2]]).double()
    c = torch.tensor([0.5, -1.0]).double()
    flow.velocity.layers[0].weight.data = torch.cat([a, torch.zeros(2, 1).double()], 1)
    flow.velocity.layers[0].bias.data = c
    # x(1) = e^A x0 + A^-1 (e^A - 1) c
    growth = torch.linalg.matrix_exp(a)
    mean = torch.linalg.solve(a, (growth - torch.eye(2).double()) @ c)
    truth = torch.distributions.MultivariateNormal(mean, growth @ growth.T)
    x = truth.sample((50,))
    assert torch.allclose(flow.log_prob(x, rtol=1e-10, atol=1e-10), truth.log_prob(x), atol=1e-8)
    assert torch.allclose(flow.log_prob(x, method="rk4", steps=60), truth.log_prob(x), atol=1e-6)
    entropy, error = flow.entropy(4000, generator=_generator())
    assert abs(entropy - float(truth.entropy())) < 4 * error < 0.2


@pytest.mark.parametrize("network", NETWORKS)
def test_divergence_is_the_trace_of_autograd(network):
    flow = _randomised(Flow(4, 3, hidden_width=8, hidden_layers=3, network=network))
    g, net = _generator(5), flow.velocity
    x, context = torch.randn(6, 4, generator=g).double(), torch.randn(6, 3, generator=g).double()
    t = torch.rand(6, generator=g).double()
    value, divergence = net.learned_with_divergence(x, t, context)
    jacobian = torch.autograd.functional.jacobian(lambda y: net.learned(y, t, context).sum(0), x)
    assert torch.allclose(value, net.learned(x, t, context))
    assert torch.allclose(divergence, torch.einsum("jbj->b", jacobian))


def test_scaled_coordinate_is_the_flow_of_the_velocity():
    """The integrated field dy/dt = f / s and the trained velocity v(x, t) belong to one flow, x = s(t) y."""
    flow = _randomised(Flow(2, hidden_width=8, standardise="none"))
    x = flow.sample_base(5, _generator(1))
    end = flow.integrate(lambda t, x: flow.velocity(x, t), x, 0, 1, "rk4", 200)
    assert torch.allclose(flow.sample(5, steps=200, method="rk4", generator=_generator(1)), end, atol=1e-7)


def test_flow_that_learned_nothing_is_the_normal_of_its_scaler():
    x = torch.randn(1000, 2, generator=_generator()) @ torch.tensor([[1.0, 0.0], [1.5, 0.5]])
    flow = Flow(2).fit_scaler(x)
    for p in flow.velocity.layers[-1].parameters():
        torch.nn.init.zeros_(p)
    truth = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    assert torch.allclose(flow.log_prob(x[:9]), truth.log_prob(x[:9]), atol=1e-4)
    assert torch.allclose(flow.sample(20000, steps=1, generator=_generator(1)).T.cov(), x.T.cov(), atol=0.1)


def test_training_recovers_a_gaussian():
    g = _generator(2)
    mean, root = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.0], [1.5, 0.5]])
    x = mean + torch.randn(20000, 2, generator=g) @ root.T
    # scale, not whiten: the correlation is left for the network to learn
    flow = _train(Flow(2, hidden_width=32, standardise="scale"), x)
    with torch.no_grad():
        draws = flow.sample(20000, generator=g)
        truth = torch.distributions.MultivariateNormal(mean, root @ root.T)
        held_out = mean + torch.randn(2000, 2, generator=g) @ root.T
        gap = truth.log_prob(held_out) - flow.log_prob(held_out)
    assert torch.allclose(draws.mean(0), mean, atol=0.08)
    assert torch.allclose(draws.T.cov(), root @ root.T, atol=0.2)
    assert abs(float(gap.mean())) < 0.03  # Kullback-Leibler divergence to the truth


def test_training_recovers_a_conditional_density():
    g = _generator(4)
    context = torch.rand(20000, 1, generator=g) * 4 - 2
    x = torch.sin(2 * context) + (0.6 + 0.2 * context) * torch.randn(20000, 1, generator=g)
    flow = _train(Flow(1, 1), x, context, steps=800)
    at = torch.tensor([[-1.0], [0.0], [1.5]])
    with torch.no_grad():
        draws = flow.sample(context=at.repeat_interleave(4000, 0), generator=g).reshape(3, 4000)
    assert torch.allclose(draws.mean(1), torch.sin(2 * at[:, 0]), atol=0.1)
    assert torch.allclose(draws.std(1), 0.6 + 0.2 * at[:, 0], rtol=0.15)


def test_density_integrates_to_one():
    flow = _randomised(Flow(1, hidden_width=16, base="student_t", dof=4.0), size=0.4)
    x = torch.linspace(-200, 200, 40001).double()[:, None]
    with torch.no_grad():
        total = torch.trapezoid(flow.log_prob(x, method="rk4", steps=20).exp(), x[:, 0])
    assert abs(float(total) - 1) < 0.01


@pytest.mark.parametrize("standardise", ["whiten", "scale"])
def test_standardisation_makes_the_flow_equivariant(standardise):
    g = _generator(6)
    x = torch.randn(300, 2, generator=g).double() @ torch.tensor([[1.0, 0.3], [0.0, 2.0]]).double()
    scale = torch.tensor([100.0, 0.01]).double()
    one, two = _randomised(Flow(2, standardise=standardise)), Flow(2, standardise=standardise).double()
    two.load_state_dict(one.state_dict())
    one.fit_scaler(x)
    two.fit_scaler(x * scale + 7)
    loss = [f.loss(y, generator=_generator(1)) for f, y in ((one, x), (two, x * scale + 7))]
    draws = [f.sample(10, generator=_generator(1)) for f in (one, two)]
    assert torch.allclose(loss[0], loss[1], rtol=1e-6)
    assert torch.allclose(draws[0] * scale + 7, draws[1], rtol=1e-6, atol=1e-6)
    gap = one.log_prob(x[:5]) - two.log_prob(x[:5] * scale + 7)
    assert torch.allclose(gap, scale.log().sum().expand(5), atol=1e-4)


def test_gradients_reach_every_parameter():
    flow = _randomised(Flow(2, 1, base="student_t")).float()
    x, context = torch.randn(8, 2), torch.randn(8, 1)
    for objective in (flow.loss(x, context), flow.log_prob(x, context, method="midpoint", steps=4).mean()):
        flow.zero_grad()
        objective.backward()
        for name, p in flow.named_parameters():
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name
            assert p.grad.abs().sum() > 0, name


def test_student_t_fit_and_base_have_the_right_tails():
    g = _generator(7)
    flow = Flow(2, base="student_t", dof=3.0)
    x = flow.sample_base(40000, g)
    location, scatter, dof = fit_student_t(x * 2 + 1)
    assert 2.7 < dof < 3.3
    assert torch.allclose(location, torch.ones(2).double(), atol=0.05)
    assert torch.allclose(scatter, 4 * torch.eye(2).double(), atol=0.15)
    # margins of the elliptical Student-t are Student-t; its distribution function for 3 degrees of freedom:
    for q in (-3.0, 1.0, 5.0):
        expected = 0.5 + (q / (math.sqrt(3) * (1 + q * q / 3)) + math.atan(q / math.sqrt(3))) / math.pi
        spread = math.sqrt(expected * (1 - expected) / len(x))
        assert abs(float((x[:, 0] < q).double().mean()) - expected) < 4 * spread


def test_same_generator_same_draws_and_chunks_do_not_matter():
    flow = _randomised(Flow(2, 1)).float()
    context = torch.randn(100, 1, generator=_generator())
    torch.manual_seed(0)
    one = flow.sample(context=context, generator=_generator(3))
    torch.manual_seed(1)
    two = flow.sample(context=context, generator=_generator(3), chunk_size=7)
    assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_saved_flow_is_the_same(tmp_path, network):
    flow = _randomised(Flow(2, 1, hidden_width=8, base="student_t", network=network))
    flow.save(tmp_path / "flow.pt")
    again = Flow.load(tmp_path / "flow.pt")
    x, c = torch.randn(4, 2).double(), torch.randn(4, 1).double()
    assert torch.equal(flow.log_prob(x, c), again.log_prob(x, c))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="points of shape"):
        Flow(2).loss(torch.zeros(4, 3))
    with pytest.raises(UserError, match="context of shape"):
        Flow(2, 1).log_prob(torch.zeros(4, 2))
    with pytest.raises(UserError, match="no context"):
        Flow(2).sample(context=torch.zeros(4, 1))
    with pytest.raises(UserError, match="network among mlp"):
        Flow(2, network="transformer")
    with pytest.raises(UserError, match="base among"):
        Flow(2, base="cauchy")
    with pytest.raises(UserError, match="degrees of freedom"):
        Flow(2, base="student_t", dof=1.0)


def test_constant_columns_are_no_obstacle():
    x = torch.cat([torch.randn(200, 1, generator=_generator()), torch.full((200, 1), 3.0)], 1)
    flow = Flow(2).fit_scaler(x)
    draws = flow.sample(50, generator=_generator())
    assert torch.isfinite(draws).all()
    assert (draws[:, 1] - 3).abs().max() < 1e-2
    assert torch.isfinite(flow.loss(x))


def test_a_file_that_is_no_flow_or_says_what_it_does_not_hold_is_refused(tmp_path):
    flow, path = _randomised(Flow(2, hidden_width=8, hidden_layers=1)), tmp_path / "flow.pt"

    def saved(**changes):
        flow.save(path)
        held = torch.load(path, weights_only=True)
        for key, value in changes.items():
            held["arguments" if key in held["arguments"] else "state"][key] = value
        torch.save(held, path)

    for changes in (
        {"hidden_width": 10**9},  # would take the memory
        {"hidden_layers": 10**9},  # and the time
        {"dim": 3},
        {"location": torch.tensor([math.nan, 0.0]).double()},
        {"scale": torch.full((2, 2), math.inf, dtype=torch.float64)},
        {"scale": torch.zeros(1).expand(10**6, 10**6)},
        {"base": "gamma"},
        {"location": "text"},
    ):
        saved(**changes)
        with pytest.raises(UserError):
            Flow.load(path)
    saved()
    Flow.load(path)
    for content in (b"", b"text", path.read_bytes()[:500], pickle.dumps(print)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"Flow\.save"):
            Flow.load(path)
