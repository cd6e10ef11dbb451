"""The conditional mean of n against direct solutions, dense formulae, invariances and known teachers."""

import math
from dataclasses import replace

import pytest
import torch

from connector.connectivity.nu import regression as module
from connector.connectivity.nu.design import Design, observed_modes
from connector.connectivity.nu.evidence import maximise_posterior
from connector.connectivity.nu.kernels import WhitenedPool, kernel, kernel_grid
from connector.connectivity.nu.mean import from_state
from connector.connectivity.nu.regression import MeanSettings, drive_offset, fit_conditional_mean, published_to_lambda
from connector.data.attractors import teacher
from connector.dynamics import activation, potentials
from connector.errors import UserError
from connector.types import Loadings


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _problem(n_states=300, n_neurons=80, phi="tanh", bias=False, inputs=0, seed=0):
    z, u = _randn(n_states, 2, seed=seed + 1), _randn(n_states, inputs, seed=seed + 2) if inputs else None
    pool = Loadings(
        _randn(n_neurons, 2, seed=seed + 3),
        _randn(n_neurons, inputs, seed=seed + 4) if inputs else None,
        _randn(n_neurons, seed=seed + 5) if bias else None,
    )
    n = pool.m @ torch.tensor([[1.0, -0.5], [0.5, 1.0]]).double() + 0.3 * _randn(n_neurons, 2, seed=seed + 6)
    y = activation(phi)(potentials(pool, z, u)) @ n / n_neurons
    return z, u, y, pool, n


def _attractor(name, n_neurons=1000, n_states=2000, seed=1):
    """States spread over the visited region and the drive of a network drawn from a teacher."""
    source = teacher(name)
    net = source.sample(n_neurons, _generator(seed))
    z = 4.8 * torch.rand(n_states, 2, generator=_generator(seed + 50), dtype=torch.float64) - 2.4
    return source, net, z, net.drive(z)


# -- ridge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 80), (60, 200)])
@pytest.mark.parametrize(("phi", "bias", "inputs"), [("tanh", False, 0), ("softplus", True, 2)])
def test_ridge_at_the_pool_is_the_direct_solution(shape, phi, bias, inputs):
    z, u, y, pool, _ = _problem(*shape, phi=phi, bias=bias, inputs=inputs)
    lam, (t, k) = 1e-3, shape
    x = activation(phi)(potentials(pool, z, u))
    eye = torch.eye(k).double()
    direct = torch.linalg.solve(x.T @ x / (t * k * k) + lam / k * eye, x.T @ y / (t * k))
    model = fit_conditional_mean(z, u, y, pool, activation=phi, estimator="ridge", regularizer=lam)
    assert torch.allclose(model(pool.stack()), direct, atol=1e-6 * float(direct.abs().max()))


def test_ridge_of_the_published_spelling():
    z, u, y, pool, _ = _problem()
    reg, alpha, (t, k) = 1e-4, 0.1, (300, 80)
    x = torch.tanh(z @ pool.m.T) / k
    direct = torch.linalg.solve(alpha**2 * x.T @ x + reg * torch.eye(k).double(), alpha**2 * x.T @ y)
    lam = published_to_lambda(reg, alpha, k, t)
    model = fit_conditional_mean(z, u, y, pool, activation="tanh", estimator="ridge", regularizer=lam)
    assert torch.allclose(model(pool.stack()), direct, atol=1e-6 * float(direct.abs().max()))
    assert math.isclose(model.summary["lambda"], lam)


def test_lambda_means_the_same_for_any_number_of_neurons_and_states():
    z, _, _, _, _ = _problem(n_states=1000)
    small = Loadings(_randn(400, 2, seed=9))
    y = torch.tanh(z) @ torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double()
    big = small.map(lambda m: m.repeat(3, 1))
    at = _randn(50, 2, seed=10)
    options = {"activation": "tanh", "estimator": "ridge", "regularizer": 1e-4}
    one = fit_conditional_mean(z, None, y, small, **options)(at)
    for states, pool in ((z, big), (z.repeat(2, 1), small)):
        again = fit_conditional_mean(states, None, y.repeat(len(states) // len(y), 1), pool, **options)(at)
        assert torch.allclose(one, again, rtol=1e-6, atol=1e-8)


def test_ridge_counts_determined_modes():
    z, u, y, pool, _ = _problem()
    g = torch.linalg.eigvalsh(torch.tanh(z @ pool.m.T) @ torch.tanh(z @ pool.m.T).T) / (80 * 300)
    model = fit_conditional_mean(z, u, y, pool, activation="tanh", estimator="ridge", regularizer=1e-3)
    assert abs(model.determined_modes - float((g / (g + 1e-3)).sum())) < 1e-3
    with pytest.raises(UserError, match="posterior"):
        model.variance(pool.stack())


# -- Gaussian process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phi", "bias", "inputs"), [("tanh", False, 0), ("softplus", True, 1)])
def test_posterior_is_that_of_the_dense_gaussian_process(phi, bias, inputs):
    z, u, y, pool, _ = _problem(phi=phi, bias=bias, inputs=inputs)
    y = y + 0.01 * _randn(*y.shape, seed=20)
    model = fit_conditional_mean(
        z, u, y, pool, activation=phi, settings=MeanSettings(("rbf",), (0.8,), mode_cutoff=1e-7, average=False)
    )
    linear, curved, white, noise = model.amplitudes[0]
    odd = phi == "tanh"
    at = 0.8 * _randn(11, pool.stack().shape[1], seed=30)
    x, xs = ((s - model.location) @ model.whitening for s in (pool.stack(), at))

    def covariance(a, b):
        return linear * (a @ b.T + (0 if odd else 1)) + curved * kernel(a, b, "rbf", 0.8, odd)

    design = activation(phi)(potentials(pool, z, u)) / pool.n_neurons
    targets = y @ torch.linalg.inv(model.gauge)
    k = covariance(x, x) + white * torch.eye(80).double()
    total = design @ k @ design.T + noise * torch.eye(300).double()
    cross = covariance(xs, x) @ design.T
    mean = cross @ torch.linalg.solve(total, targets) @ model.gauge
    variance = covariance(xs, xs).diagonal() - (cross * torch.linalg.solve(total, cross.T).T).sum(1)
    assert torch.allclose(model(at), mean, atol=1e-5)
    assert torch.allclose(model.variance(at), variance[:, None] * model.gauge.square().sum(0), atol=1e-5)
    assert (model.variance(at) > 0.01 * variance.max()).any()


def test_amplitudes_are_a_stationary_point_of_the_posterior():
    z, u, y, pool, _ = _problem()
    y = y + 0.01 * _randn(*y.shape, seed=20)
    modes = observed_modes(Design(activation("tanh"), pool, z, u), y, 1e-4, 300)
    whitened = WhitenedPool.of(pool.stack(), True, 2000, _generator())
    fit = module._GaussianProcess(pool, modes, whitened, kernel_grid(("arcsine", "none"), (0.8,)), True)
    found = maximise_posterior(fit.parts, fit.a, fit.centre, fit.width)
    theta = found.log_amplitudes.clone().requires_grad_(True)
    value = 0
    for i in range(2):
        cov = torch.einsum("k,kij->ij", theta[i].exp(), fit.parts[i])
        prior = torch.distributions.MultivariateNormal(torch.zeros(len(cov)).double(), cov)
        value = value + prior.log_prob(fit.a.T).sum()
    free = fit.width > 0
    value = value - 0.5 * (((theta - fit.centre) / fit.width.clamp_min(1e-9))[free] ** 2).sum()
    (gradient,) = torch.autograd.grad(value, theta)
    assert gradient[free].abs().max() < 0.05
    assert free.tolist() == [[True] * 4, [True, False, True, True]]


def test_change_of_gauge_moves_the_estimate_with_it():
    """z -> A z, m -> A^-T m, n -> A n leaves the dynamics alone; so must the estimator (up to a rotation)."""
    z, _, y, pool, _ = _problem(n_neurons=300)
    a = (
        torch.tensor([[1.5, 0.0], [0.0, 1.5]]).double()
        @ torch.linalg.matrix_exp(torch.tensor([[0.0, 0.6], [-0.6, 0.0]]).double())
        @ torch.diag(torch.tensor([1.0, 0.3]).double())
    )
    there = pool.map(lambda m: m @ torch.linalg.inv(a))
    options = {"activation": "tanh", "settings": MeanSettings(("arcsine", "rbf", "none"))}
    one = fit_conditional_mean(z, None, y, pool, **options)
    two = fit_conditional_mean(z @ a.T, None, y @ a.T, there, **options)
    assert torch.allclose(one(pool.m) @ a.T, two(there.m), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("quadstable", 0.02), ("limit_cycle", 0.012)]
    + [pytest.param(name, bound, marks=pytest.mark.slow) for name, bound in (("bistable", 0.02), ("ring", 0.012))],
)
def test_teachers_are_recovered(name, bound):
    source, net, z, y = _attractor(name)
    model = fit_conditional_mean(z, None, y, net.loadings, activation="tanh")
    fresh = source.sample(2000, _generator(9)).m
    truth = source.conditional_mean(fresh)
    # the bound leaves room for what the chance draw of n in a network of 1000 neurons costs any estimator
    assert float((model(fresh) - truth).square().mean()) < bound
    ridge = fit_conditional_mean(z, None, y, net.loadings, activation="tanh", estimator="ridge", regularizer=1e-4)
    assert float((ridge(fresh) - truth).square().mean()) > 2 * float((model(fresh) - truth).square().mean())
    own = (net.n - source.conditional_mean(net.m)).square().mean()
    assert 0.6 < float(model.spread.diagonal().mean() / own) < 1.5


def test_posterior_variance_tells_where_the_data_are_silent():
    source, net, states, drive = _attractor("quadstable")
    options = {"activation": "tanh", "settings": MeanSettings(("arcsine",))}
    z = 0.15 * _randn(2000, 2, seed=3)  # small states see little but the linear part of nu
    little = fit_conditional_mean(z, None, net.drive(z) + 0.01 * _randn(2000, 2, seed=4), net.loadings, **options)
    full = fit_conditional_mean(states, None, drive, net.loadings, **options)
    assert float(little.variance(net.m).mean()) > 2 * float(full.variance(net.m).mean())
    error = (full(net.m) - source.conditional_mean(net.m)).abs()
    assert float((error < 3 * full.variance(net.m).sqrt()).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("k", "t", "bound"), [(500, 1000, 0.05), pytest.param(1000, 2000, 0.03, marks=pytest.mark.slow)]
)
def test_bias_and_input_are_part_of_the_estimate(k, t, bound):
    """With a bias the even part of nu is visible, and nu may depend on b and d."""
    pool = Loadings(_randn(k, 2), _randn(k, 1, seed=1), 0.7 * _randn(k, seed=2))

    def nu(s):
        return torch.stack([s[:, 0] + 0.5 * s[:, 2], 1 + torch.tanh(s[:, 1]) - s[:, 3]], 1)

    n = nu(pool.stack()) + 0.3 * _randn(k, 2, seed=4)
    z, u = 1.5 * _randn(t, 2, seed=5), _randn(t, 1, seed=6)
    y = activation("softplus")(potentials(pool, z, u)) @ n / k
    model = fit_conditional_mean(z, u, y, pool, activation="softplus")
    at = Loadings(_randn(500, 2, seed=7), _randn(500, 1, seed=8), 0.7 * _randn(500, seed=9)).stack()
    error = (model(at) - nu(at)).square().mean() / nu(at).square().mean()
    assert float(error) < bound
    assert not model.summary["odd"]


@pytest.mark.slow
def test_noisy_drive_uses_more_states():
    source, net, z, y = _attractor("limit_cycle", n_states=8000)
    noisy = y + 0.3 * _randn(*y.shape, seed=11)
    at = net.m
    truth = source.conditional_mean(at)
    errors = [
        float((fit_conditional_mean(z, None, noisy, net.loadings, activation="tanh", **o)(at) - truth).square().mean())
        for o in ({}, {"settings": MeanSettings(max_states=500, max_noisy_states=500)})
    ]
    assert errors[0] < 0.03
    assert errors[0] < errors[1]


def test_subset_of_centres_agrees_with_the_whole_pool():
    _, net, z, y = _attractor("quadstable")
    settings = MeanSettings(("arcsine",), (0.8,))
    whole = fit_conditional_mean(z, None, y, net.loadings, activation="tanh", settings=settings)
    few = replace(settings, max_centres=800)
    part = fit_conditional_mean(z, None, y, net.loadings, activation="tanh", settings=few)
    assert len(part.centres) == 200
    assert float((whole(net.m) - part(net.m)).square().mean()) < 1e-4


def test_explicit_regularizer_sets_the_noise():
    z, u, y, pool, _ = _problem()
    for lam in (1e-6, 1e-2):
        model = fit_conditional_mean(z, u, y, pool, activation="tanh", regularizer=lam)
        assert math.isclose(model.summary["lambda"], lam, rel_tol=1e-6)
    assert model.determined_modes < 10


def test_validation_takes_the_largest_sufficient_regularizer():
    z, u, y, pool, _ = _problem(n_neurons=400)
    zv, uv, yv, _, _ = _problem(n_neurons=400, seed=0)
    for estimator in ("ridge", "gaussian_process"):
        options = {"activation": "tanh", "estimator": estimator}
        model = fit_conditional_mean(
            z,
            u,
            y,
            pool,
            regularizer="validation",
            validation=(zv, uv, yv),
            settings=MeanSettings(target_r2=0.99),
            **options,
        )
        assert model.summary["validation_r2"] >= 0.99
        larger = fit_conditional_mean(z, u, y, pool, regularizer=10**0.5 * model.summary["lambda"], **options)
        predicted = Design(activation("tanh"), pool, zv, uv).times(larger(pool.stack()))
        assert float((1 - (yv - predicted).square().sum(0) / (yv - yv.mean(0)).square().sum(0)).min()) < 0.99


def test_quick_is_single_precision_only_where_that_is_enough():
    z, u, y, pool, _ = _problem()
    at = _randn(200, 2, seed=41)
    for estimator in ("ridge", "gaussian_process"):
        model = fit_conditional_mean(z, u, y, pool, activation="tanh", estimator=estimator, regularizer=1e-3)
        quick, exact = model.quick(at), model(at)
        assert quick.dtype == at.dtype
        assert not torch.equal(quick, exact)
        torch.testing.assert_close(quick, exact, rtol=0, atol=1e-4 * float(exact.square().mean().sqrt()))
        assert torch.equal(model.quick(at, tolerance=1e-12), exact)


def test_state_round_trip_and_dtype():
    z, u, y, pool, _ = _problem()
    at = _randn(5, 2, seed=40)
    for estimator in ("ridge", "gaussian_process"):
        model = fit_conditional_mean(z, u, y, pool, activation="tanh", estimator=estimator)
        again = from_state(model.state())
        assert torch.equal(model(at), again(at))
        assert again.summary == model.summary
        assert model(at.float()).dtype == torch.float32
        assert model(at[:0]).shape == (0, 2)


def test_mistakes_are_named():
    z, u, y, pool, _ = _problem()
    fit = {"activation": "tanh"}
    for change, words in (
        ({"estimator": "lasso"}, "estimator among"),
        ({"regularizer": -1.0}, "positive regularizer"),
        ({"regularizer": "validation"}, "held-out"),
    ):
        with pytest.raises(UserError, match=words):
            fit_conditional_mean(z, u, y, pool, **fit, **change)
    with pytest.raises(UserError, match="kernel families"):
        MeanSettings(("cubic",))
    with pytest.raises(UserError, match="states of shape"):
        fit_conditional_mean(z[:, :1], u, y, pool, **fit)
    with pytest.raises(UserError, match="inputs"):
        fit_conditional_mean(z, z, y, pool, **fit)
    with pytest.raises(UserError, match="finite"):
        fit_conditional_mean(z, u, y * float("nan"), pool, **fit)
    with pytest.raises(UserError, match="columns"):
        fit_conditional_mean(z, u, y, pool, **fit)(torch.zeros(3, 5))


def _in_cell_types(n_states=1500, n_neurons=600):
    """Softplus neurons with a bias and an input in two cell types, which alone decide about n."""
    types = (_randn(n_neurons, seed=1) > 0).long()
    centres = torch.tensor([[1.0, -0.3, 0.5, 0.4], [-0.6, 1.1, -0.7, -0.5]]).double()
    rows = centres[types] + 0.5 * _randn(n_neurons, 4, seed=2)
    n = torch.tensor([[1.5, -0.8], [-1.2, 1.0]]).double()[types] + 0.3 * _randn(n_neurons, 2, seed=3)
    z, u = 1.2 * _randn(n_states, 2, seed=4), _randn(n_states, 1, seed=5)
    pool = Loadings.unstack(rows, 2, 1, True)
    return z, u, activation("softplus")(potentials(pool, z, u)) @ n / n_neurons, pool


def test_the_offset_of_the_drive_is_found_and_follows_the_origin():
    z, u, y, pool = _in_cell_types()
    at_home = drive_offset(z, u, y, pool, activation="softplus")
    assert float(at_home.norm()) < 0.05 * float(y.std(0).norm())
    shift = torch.tensor([2.0, -1.0]).double()
    moved = Loadings(pool.m, pool.b, pool.d - pool.m @ shift)
    away = drive_offset(z + shift, u, y + shift, moved, activation="softplus")
    # The additive kernel has the loadings' own axes, which turn a little with the bias.
    torch.testing.assert_close(away, at_home - shift, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("phi", "kept"), [("tanh", "none"), ("sigmoid", "sum"), ("softplus", "moments"), ("relu", "moments")]
)
def test_what_mirrored_neurons_hide(phi, kept):
    """n of one sign structure under (m, b, d) -> -(m, b, d), as the diagnosis names it, leaves no drive."""
    rows, n = _randn(200, 4, seed=1), _randn(200, 2, seed=2)
    if kept == "sum":
        n = n - n.mean(0)
    if kept == "moments":
        n = n - rows @ torch.linalg.solve(rows.T @ rows, rows.T @ n)
    pool = Loadings.unstack(torch.cat([rows, -rows]), 2, 1, True)
    z, u = _randn(50, 2, seed=3), _randn(50, 1, seed=4)
    both = torch.cat([n, n if phi in ("tanh", "sigmoid") else -n])
    drive = activation(phi)(potentials(pool, z, u)) @ both
    torch.testing.assert_close(drive, torch.zeros_like(drive), atol=1e-10, rtol=0)
