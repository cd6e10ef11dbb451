"""The distribution of connectivity against Gaussian densities in closed form, and its projection against the drive."""

import math
from dataclasses import replace

import pytest
import torch

from connector.analysis.fields import field_error
from connector.connectivity import projection
from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.drive_matching import fit_drive_tilt, fit_output_shift
from connector.connectivity.flow import Flow
from connector.connectivity.nu.regression import MeanSettings, fit_conditional_mean
from connector.data.attractors import teacher
from connector.dynamics import Network
from connector.errors import UserError

LINEAR = MeanSettings(families=("none",))
MIX = torch.tensor([[1.2, 0.8], [0.0, 1.6]]).double()


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _affine_flow(root, dim, mean=None, context_dim=0):
    """A flow whose density is the normal with covariance root root^T: the learned velocity is zero, the scaler does it."""
    flow = Flow(dim, context_dim, hidden_layers=0).double()
    for p in flow.parameters():
        p.data.zero_()
    flow.scale.copy_(root)
    flow.scale_inverse.copy_(torch.linalg.inv(root))
    if mean is not None:
        flow.location.copy_(mean)
    return flow


def _distribution(n_neurons=1000, seed=1, **options):
    """Built on a bistable network: m ~ N(0, I), nu = m MIX^T."""
    source = teacher("bistable")
    net = source.sample(n_neurons, _generator(seed))
    z = 4.8 * torch.rand(2000, 2, generator=_generator(2), dtype=torch.float64) - 2.4
    y = source.drive(z)
    mean = fit_conditional_mean(z, None, net.drive(z), net.loadings, activation="tanh", settings=LINEAR)
    flow = _affine_flow(torch.eye(2).double(), 2)
    return ConnectivityDistribution(flow, mean, alpha=0.1, activation="tanh", reference=(z, None, y), **options)


@pytest.fixture(scope="module")
def distribution():
    return _distribution(sigma=0.7)


def test_log_prob_is_the_joint_gaussian(distribution):
    nu = distribution.conditional_mean(torch.eye(2).double())  # nu(m) = m @ nu, as the estimate is linear here
    net = distribution.sample(20, sigma=0.7, seed=3)
    joint = torch.eye(4).double()
    joint[:2, 2:], joint[2:, :2] = nu, nu.T
    joint[2:, 2:] = nu.T @ nu + 0.49 * torch.eye(2).double()
    truth = torch.distributions.MultivariateNormal(torch.zeros(4).double(), joint)
    got = distribution.log_prob(net, rtol=1e-8, atol=1e-8)
    assert torch.allclose(got, truth.log_prob(torch.cat([net.m, net.n], 1)), atol=1e-6)
    entropy, error = distribution.entropy(4000)
    assert abs(entropy - float(truth.entropy())) < 4 * error
    assert error < 0.05


def test_log_prob_through_the_flow_of_n():
    """A flow of n given m that is, by an affine velocity, N(m, s^2 I) for every m."""
    s = 0.5
    flow = Flow(2, 2, hidden_layers=0, standardise="none", precondition=False).double()
    # dx/dt = a x + c m with a = log s carries N(0, 1) at t = 0 to N(c (s - 1) / a m, s^2)
    a = math.log(s)
    flow.velocity.layers[0].weight.data = torch.cat(
        [a * torch.eye(2), torch.zeros(2, 1), a / (s - 1) * torch.eye(2)], 1
    ).double()
    flow.velocity.layers[0].bias.data.zero_()
    both = _distribution(n_neurons=200, outputs_flow=flow, outputs="flow", sigma=s)
    net = both.sample(2000, sigma=s, seed=5)
    expected = torch.distributions.Normal(0, 1).log_prob(net.m).sum(1)
    expected = expected + torch.distributions.Normal(net.m, s).log_prob(net.n).sum(1)
    assert torch.allclose(both.log_prob(net, rtol=1e-8, atol=1e-8), expected, atol=1e-6)
    assert torch.allclose((net.n - net.m).std(0), torch.full((2,), s).double(), rtol=0.1)
    wider = both.sample(4000, sigma=1.3, seed=5)
    assert torch.allclose((wider.n - wider.m).std(0), torch.full((2,), 1.3).double(), rtol=0.1)
    with pytest.raises(UserError, match="sigma of at least"):
        both.sample(5, sigma=0.2)
    with pytest.raises(UserError, match="trained"):
        both.log_prob(net, sigma=1.0)
    entropy, error = both.entropy(4000)
    truth = 2 * (0.5 * math.log(2 * math.pi * math.e)) + 2 * (0.5 * math.log(2 * math.pi * math.e * s * s))
    assert abs(entropy - truth) < 4 * error
    exact = both.sample(5)
    assert torch.equal(exact.n, both.conditional_mean(exact.loadings))


def test_sigma_zero_is_the_conditional_mean_and_has_no_density(distribution):
    net = distribution.sample(300, sigma=0.0, seed=4)
    assert torch.equal(net.n, distribution.conditional_mean(net.loadings))
    assert torch.allclose(net.n, net.m @ MIX.T, atol=0.5)
    wide = distribution.sample(3000, sigma=1.5, seed=4)
    assert torch.allclose((wide.n - distribution.conditional_mean(wide.m)).std(0), torch.tensor(1.5).double(), rtol=0.1)
    for call in (lambda: distribution.log_prob(net, sigma=0.0), lambda: distribution.entropy(10, sigma=0.0)):
        with pytest.raises(UserError, match="sigma above 0"):
            call()


def test_seed_alone_decides(distribution):
    torch.manual_seed(1)
    one = distribution.sample(50, sigma=1.0, seed=7)
    torch.manual_seed(2)
    torch.randn(3)
    state = torch.random.get_rng_state()
    two = distribution.sample(50, sigma=1.0, seed=7)
    assert torch.equal(state, torch.random.get_rng_state())
    other = distribution.sample(50, sigma=1.0, seed=8)
    assert torch.equal(one.m, two.m)
    assert torch.equal(one.n, two.n)
    assert not torch.equal(one.m, other.m)
    assert torch.equal(one.m, distribution.sample(50, sigma=0.0, seed=7).m)


def test_no_neuron_is_the_mirror_of_another(distribution):
    m = distribution.sample(500, seed=0).m
    assert torch.cdist(m, -m).min() > 1e-6


def test_projection_restores_the_drive_on_held_out_states(distribution):
    z = 4.4 * torch.rand(500, 2, generator=_generator(11), dtype=torch.float64) - 2.2
    truth = teacher("bistable").drive(z)
    net = distribution.sample(1000, sigma=1.0, seed=3)
    projected = distribution.project(net)
    scale = truth.square().mean()
    before, after = ((n.drive(z) - truth).square().mean() / scale for n in (net, projected))
    assert after < 1e-3
    assert after < 0.02 * before
    assert (projected.n - net.n).square().mean() < 0.5
    assert torch.equal(projected.m, net.m)
    same = distribution.sample(1000, sigma=1.0, seed=3, project=True)
    assert torch.equal(same.n, projected.n)


def test_projection_minimises_what_it_says(distribution):
    net = distribution.sample(60, sigma=1.0, seed=3)
    change = (distribution.project(net).n - net.n).requires_grad_(True)
    z, y = distribution.reference_z, distribution.reference_y
    x = torch.tanh(z @ net.m.T) / 60
    objective = (y - x @ (net.n + change)).square().sum() / len(z) + 1e-5 / 60 * change.square().sum()
    (gradient,) = torch.autograd.grad(objective, change)
    assert gradient.abs().max() < 1e-9


def test_projection_leaves_a_network_alone_that_is_right_already(distribution):
    net = distribution.sample(400, sigma=1.0, seed=3)
    right = ConnectivityDistribution(
        distribution.loadings_flow,
        distribution.mean,
        alpha=0.1,
        activation="tanh",
        reference=(distribution.reference_z, None, net.drive(distribution.reference_z)),
    )
    assert (right.project(net).n - net.n).abs().max() < 1e-8


def test_projection_in_a_basis_of_the_states_agrees_with_the_direct_one(distribution, monkeypatch):
    net = distribution.sample(1500, sigma=1.0, seed=3)
    in_basis = distribution.project(net).n
    basis = projection.state_basis(net.loadings, distribution.reference_z, None, "tanh")
    assert basis is not None
    assert basis.shape[1] < 150
    monkeypatch.setattr(projection, "state_basis", lambda *_: None)
    direct = distribution.project(net).n
    assert (in_basis - direct).norm() < 1e-3 * (direct - net.n).norm()


def test_networks_projected_together_are_those_projected_one_by_one(distribution):
    nets = [distribution.sample(1500, sigma=1.0, seed=seed) for seed in range(3)]
    for net, together in zip(nets, distribution.project_all(nets), strict=True):
        alone = distribution.project(net).n
        assert (together.n - alone).norm() < 5e-3 * (alone - net.n).norm()
        z = distribution.reference_z
        assert (together.drive(z) - replace(net.double(), n=alone).drive(z)).abs().max() < 1e-4
    steep = [replace(net, m=100 * net.m) for net in nets]  # no few neurons span these
    assert torch.equal(distribution.project_all(steep)[0].n, distribution.project(steep[0]).n)


def test_steep_neurons_that_few_cannot_span_are_projected_directly(distribution):
    steep = distribution.sample(1000, sigma=1.0, seed=3).loadings.map(lambda m: 100 * m)
    assert projection.state_basis(steep, distribution.reference_z, None, "tanh") is None


def test_heavy_tailed_networks_are_projected_too():
    source = teacher("heavy_tailed")
    net = source.sample(1000, _generator(1))
    z = 4 * torch.rand(1500, 2, generator=_generator(2), dtype=torch.float64) - 2
    mean = fit_conditional_mean(z, None, net.drive(z), net.loadings, activation="tanh", settings=LINEAR)
    flow = Flow(2, base="student_t", dof=3.0, hidden_layers=0)
    for p in flow.parameters():
        p.data.zero_()
    both = ConnectivityDistribution(flow, mean, alpha=0.1, activation="tanh", reference=(z, None, source.drive(z)))
    drawn = both.sample(1000, sigma=1.0, seed=1, project=True)
    assert torch.isfinite(drawn.n).all()
    assert (drawn.drive(z) - source.drive(z)).square().mean() < 1e-3 * source.drive(z).square().mean()
    assert drawn.m.abs().max() > 6


def test_file_round_trip_is_exact(tmp_path):
    flow = Flow(2, 2).double()
    both = _distribution(n_neurons=200, outputs_flow=flow, sigma=0.3)
    both.save(tmp_path / "connectivity.pt")
    again = ConnectivityDistribution.load(tmp_path / "connectivity.pt")
    for options in ({"sigma": 0.4, "project": True}, {"sigma": 0.3, "outputs": "flow"}, {}):
        one, two = (d.sample(30, seed=2, **options) for d in (both, again))
        assert torch.equal(one.n, two.n)
        assert torch.equal(one.m, two.m)
    assert torch.equal(both.log_prob(one), again.log_prob(one))
    assert again.summary == both.summary
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="written by"):
        ConnectivityDistribution.load(tmp_path / "other.pt")


def test_loadings_with_bias_and_input_come_back_as_such():
    g = _generator(3)
    rows = torch.randn(300, 4, generator=g, dtype=torch.float64)
    z, u = (torch.randn(500, k, generator=g, dtype=torch.float64) for k in (2, 1))
    net = Network(rows[:, :2], rows[:, :2], rows[:, 2:3], rows[:, 3], activation="softplus")
    y = net.drive(z, u)
    mean = fit_conditional_mean(z, u, y, net.loadings, activation="softplus", settings=LINEAR)
    flow = Flow(4).fit_scaler(rows)
    both = ConnectivityDistribution(flow, mean, alpha=0.1, activation="softplus", reference=(z, u, y))
    drawn = both.sample(400, sigma=0.5, project=True)
    assert drawn.b.shape == (400, 1)
    assert drawn.d.shape == (400,)
    assert (drawn.drive(z, u) - y).square().mean() < 1e-3 * y.square().mean()
    with pytest.raises(UserError, match="1 inputs, bias True"):
        both.project(Network(drawn.m, drawn.n))


def test_mistakes_are_named(distribution):
    with pytest.raises(UserError, match="n_neurons"):
        distribution.sample(0)
    with pytest.raises(UserError, match="sigma of 0"):
        distribution.sample(5, sigma=-1.0)
    with pytest.raises(UserError, match="flow of n"):
        distribution.sample(5, sigma=1.0, outputs="flow")
    with pytest.raises(UserError, match="loadings flow"):
        ConnectivityDistribution(Flow(3), distribution.mean, alpha=0.1, activation="tanh")
    bare = ConnectivityDistribution(distribution.loadings_flow, distribution.mean, alpha=0.1, activation="tanh")
    with pytest.raises(UserError, match="reference states"):
        bare.sample(5, project=True)


@pytest.mark.slow
def test_draws_of_a_tilted_distribution_follow_its_density(tmp_path):
    plain = _distribution(sigma=0.7)
    rows = plain.loadings_flow.sample(base=plain.loadings_flow.base_quadrature(4096, 1), steps=1).double()
    z = plain.reference_z
    drive = 1.03 * plain.quadrature(8192).drive(z)
    tilt = fit_drive_tilt(
        rows, plain.mean(rows), z, None, drive, activation="tanh", shape=(2, 0, False), n_neurons=1000
    )
    tilted = _distribution(sigma=0.7, tilt=tilt)
    assert field_error(tilted.quadrature(8192), z, None, drive) < 0.2 * field_error(
        plain.quadrature(8192), z, None, drive
    )
    net = tilted.sample(20_000, seed=2)
    weights = tilt.log_weight(rows, plain.mean(rows)).exp()
    expected = (weights[:, None] * rows.square()).mean(0)
    error = net.m.square().std(0) / len(net.m) ** 0.5
    assert ((net.m.square().mean(0) - expected).abs() < 4 * error).all()
    gain = tilted.log_prob(net) - plain.log_prob(net)
    torch.testing.assert_close(gain, tilt.log_weight(net.m, net.n))
    tilted.save(tmp_path / "tilted.pt")
    again = ConnectivityDistribution.load(tmp_path / "tilted.pt")
    assert torch.equal(again.sample(50, seed=3).m, tilted.sample(50, seed=3).m)


def test_a_shift_moves_the_mean_of_n_in_draws_density_and_field_alike(tmp_path):
    plain = _distribution(sigma=0.7)
    rows = plain.loadings_flow.sample(base=plain.loadings_flow.base_quadrature(4096, 1), steps=1).double()
    z = plain.reference_z
    drive = 1.03 * plain.quadrature(8192).drive(z)
    shift = fit_output_shift(rows, plain.mean(rows), z, None, drive, activation="tanh", shape=(2, 0, False))
    shifted = _distribution(sigma=0.7, shift=shift)
    before, after = (field_error(which.quadrature(8192), z, None, drive) for which in (plain, shifted))
    assert after < 0.3 * before
    drawn, at_nu = shifted.sample(50, sigma=0.7, seed=3), plain.sample(50, sigma=0.7, seed=3)
    assert torch.equal(drawn.m, at_nu.m)
    torch.testing.assert_close(drawn.n - at_nu.n, shift(drawn.m))
    torch.testing.assert_close(shifted.log_prob(drawn), plain.log_prob(at_nu))
    exact = shifted.sample(50, seed=3)  # at sigma 0 nu itself
    assert torch.equal(exact.n, plain.sample(50, seed=3).n)
    assert torch.equal(exact.n, shifted.conditional_mean(exact.m))
    shifted.save(tmp_path / "shifted.pt")
    again = ConnectivityDistribution.load(tmp_path / "shifted.pt").sample(50, sigma=0.7, seed=3)
    assert torch.equal(again.n, drawn.n)


def test_a_file_whose_parts_do_not_fit_each_other_is_refused(tmp_path, distribution):
    path = tmp_path / "connectivity.pt"
    for part, key, value in (
        ("arguments", "alpha", 3.0),
        ("arguments", "flow_steps", 10**9),
        ("arguments", "activation", "cube"),
        ("mean", "estimator", "none such"),
        ("mean", "values", {}),
        ("mean", "tensors", {}),
        ("loadings_flow", "state", {}),
        ("reference", 0, torch.full((2000, 2), math.nan).double()),
        ("reference", 2, torch.zeros(3, 2).double()),
    ):
        distribution.save(path)
        saved = torch.load(path, weights_only=True)
        saved[part][key] = value
        torch.save(saved, path)
        with pytest.raises(UserError):
            ConnectivityDistribution.load(path)
