"""nu from whole trajectories: against autograd, dense regression, simulated networks; invariances; calibration."""

import math
from dataclasses import replace

import pytest
import torch

from connector.connectivity.diagnosis import diagnose
from connector.connectivity.nu.design import Design, build_field
from connector.connectivity.nu.mean import from_state
from connector.connectivity.nu.population import build_pool
from connector.connectivity.nu.prior import Prior
from connector.connectivity.nu.regression import MeanSettings, fit_conditional_mean
from connector.connectivity.nu.trajectories import TrajectorySettings, difference_noise, fit_trajectories
from connector.data.attractors import teacher
from connector.data.simulation import grid_of_states
from connector.dynamics import Network, activation, potentials
from connector.errors import UserError
from connector.types import Latents, Loadings

FAST = TrajectorySettings(families=("none", "arcsine"), widths=(0.8,))


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _latents(net, noise=0.0, stride=1, n_grid=7, n_steps=60, seed=0, process=0.0):
    z = grid_of_states(n_grid, 2.4, net.rank)
    states = [z]
    g = _generator(seed + 1)
    for _ in range(n_steps - 1):
        pushed = process * torch.randn(z.shape, generator=g, dtype=torch.float64)
        states.append(net.step(states[-1]) + pushed)
    z = torch.stack(states, 1)[:, : n_steps // stride * stride : stride]
    z = z + noise * _randn(*z.shape, seed=seed)
    return Latents(z, torch.full((len(z),), z.shape[1]), net.alpha * stride)


def _error(estimate, truth):
    return float((estimate - truth).square().sum() / truth.square().sum())


# -- parts --------------------------------------------------------------------------------------------------------------


def test_anchors_carry_the_whole_pool():
    pool = Loadings(_randn(30, 2), 0.5 * _randn(30, 1, seed=1), 0.3 * _randn(30, seed=2))
    z, u = _randn(21, 2, seed=3), _randn(21, 1, seed=4)
    basis, v = build_field(Design(activation("softplus"), pool, z, u), 0.1, 1, 1e-6, 30, _generator())
    rates = activation("softplus")(potentials(pool, z, u))
    assert len(basis.mixing) < 30
    assert torch.allclose(basis(z, u) @ v.T, rates / 30, atol=1e-5 * float(rates.max()) / 30)
    assert torch.allclose(v.T @ v, torch.eye(v.shape[1]).double(), atol=1e-8)


@pytest.mark.parametrize(
    ("fraction", "error", "repeats"),
    [
        (0.3, 0.0, 150),
        *(pytest.param(f, e, 150, marks=pytest.mark.slow) for f, e in ((1.0, 0.4), (0.5, 0.3))),
        (0.5, 0.3, 40),
    ],
)
def test_prior_scatter_is_that_of_simulated_networks(fraction, error, repeats):
    """Spread of the drive about its mean given g, over neurons not recorded and over errors in the loadings."""
    k = 150
    z = torch.tensor([[0.7], [2.0]]).double()
    miss, expected = [], []
    for repeat in range(repeats):
        g = _generator(1000 + repeat)
        m = torch.randn(k, 1, generator=g, dtype=torch.float64)
        seen = round(fraction * k)
        observed = m[:seen] + error * torch.randn(seen, 1, generator=g, dtype=torch.float64)
        covariance = torch.full((seen, 1, 1), error**2).double() if error else None
        pool = build_pool(Loadings(observed), covariance, fraction, 0, g)
        states = torch.linspace(-3, 3, 60)[:, None].double()
        basis, v = build_field(Design(activation("tanh"), pool.points, states, None), 0.1, 1, 1e-6, 60, g)
        prior = Prior(pool, v, True, torch.eye(1).double(), 900, g)
        direct = prior.linear_weights[0] / prior.whitened.whitening[0, 0]  # of g(m) = m
        drive = (torch.tanh(z * m[:, 0]) * m[:, 0]).mean(1)
        at = basis(z, None)
        miss.append(drive - at @ direct)
        scatter = prior.linear - prior.linear_weights.T @ prior.linear_weights
        expected.append((at @ (scatter / prior.whitened.whitening[0, 0] ** 2) @ at.T).diagonal())
    measured = torch.stack(miss).square().mean(0)
    expected = torch.stack(expected).mean(0)
    assert torch.allclose(measured, expected, rtol=0.4 if repeats == 150 else 0.6)


def test_noise_is_read_off_fourth_differences():
    net = teacher("ring").sample(500, _generator())
    latents = _latents(net, noise=0.02)
    assert torch.allclose(difference_noise(latents), torch.full((2,), 0.02).double(), rtol=0.1)
    assert float(difference_noise(_latents(net)).max()) < 2e-3


# -- the whole ------------------------------------------------------------------------------------------------------------


def test_agrees_with_linear_regression_where_trajectories_are_linear_in_n():
    """With m = 0 and alpha = 1 a state is the drive of the input before it: regression on known regressors."""
    k, trials, steps = 40, 20, 50
    pool = Loadings(torch.zeros(k, 1).double(), _randn(k, 1), _randn(k, seed=1))
    n = 1 + 2 * pool.b + 0.5 * _randn(k, 1, seed=2)
    u = _randn(trials, steps, 1, seed=3)
    phi = activation("softplus")
    x = phi(potentials(pool, torch.zeros(trials, steps, 1).double(), u)) / k
    z = torch.cat([_randn(trials, 1, 1, seed=4), (x @ n)[:, :-1]], 1) + 0.05 * _randn(trials, steps, 1, seed=5)
    latents = Latents(z, torch.full((trials,), steps), 1.0, u)
    model = fit_trajectories(
        latents, pool, activation="softplus", settings=TrajectorySettings(families=("none",), draws=1, mode_cutoff=1e-6)
    )
    rows = torch.cat([torch.zeros(9, 1).double(), _randn(9, 2, seed=6)], 1)

    def features(rows):
        white = (rows - model.location) @ model.whitening
        return torch.cat([torch.ones(len(rows), 1).double(), white], 1)

    linear, _, own = model.amplitudes[0]
    design, targets = x[:, :-1].reshape(-1, k), z[:, 1:].reshape(-1, 1)
    f, at = features(pool.stack()), features(rows)
    total = design @ (linear * f @ f.T + own * torch.eye(k).double()) @ design.T
    total += model.summary["noise_sd"][0] ** 2 * torch.eye(len(total)).double()
    cross = linear * at @ f.T @ design.T
    mean = cross @ torch.linalg.solve(total, targets)
    variance = linear * at.square().sum(1) - (cross * torch.linalg.solve(total, cross.T).T).sum(1)
    assert torch.allclose(model.mean(rows), mean, rtol=1e-3, atol=1e-3)
    assert torch.allclose(model.variance(rows)[:, 0], variance, rtol=5e-3)
    low, high = model.interval(rows, 0.95)
    assert torch.allclose(high - low, 2 * 1.959964 * variance.sqrt()[:, None], rtol=5e-3)


@pytest.mark.parametrize("name", ["bistable", "limit_cycle"])
def test_linear_teachers_are_recovered(name):
    source = teacher(name)
    net = source.sample(1000, _generator(1))
    model = fit_trajectories(_latents(net, noise=0.01), net.loadings, activation="tanh")
    fresh = source.sample(500, _generator(9)).m
    assert _error(model.mean(fresh), source.conditional_mean(fresh)) < 0.01
    assert model.estimand == "folded"
    assert model.summary["warnings"] == []
    assert torch.allclose(torch.tensor(model.summary["noise_sd"]), torch.full((2,), 0.01), rtol=0.1)
    own = (net.n - source.conditional_mean(net.m)).square().mean()
    clean = fit_trajectories(_latents(net), net.loadings, activation="tanh", settings=FAST)
    assert 0.7 < float(clean.spread.diagonal().mean() / own) < 1.4


def test_noise_that_hides_in_which_basin_a_trial_begins():
    """A bistable network, noise as large as a third of the distance between its points: the middle is no attractor."""
    m = _randn(100, 1)
    net = Network(m, 3 * m + 0.5 * _randn(100, 1, seed=1), alpha=0.1)
    z = net.simulate(1.5 * _randn(40, 1, seed=2), 60)
    latents = Latents(z + 0.6 * _randn(*z.shape, seed=3), torch.full((40,), 60), 0.1)
    found = fit_trajectories(latents, Loadings(m), activation="tanh", settings=FAST)
    states = torch.linspace(-2.5, 2.5, 21).double()[:, None]
    drive = Design(activation("tanh"), Loadings(m), states, None).times(found(m))
    assert _error(drive - states, net.drive(states) - states) < 0.01


def test_stride_costs_little_where_differences_fail():
    source = teacher("limit_cycle")
    net = source.sample(1000, _generator(1))
    fresh = source.sample(500, _generator(9)).m
    truth = source.conditional_mean(fresh)
    fine = fit_trajectories(_latents(net, 0.003), net.loadings, activation="tanh", settings=FAST)
    coarse = _latents(net, 0.003, stride=3, n_steps=90)
    by_path = fit_trajectories(coarse, net.loadings, activation="tanh", stride=3, settings=FAST)
    by_difference = fit_conditional_mean(
        *coarse.samples(), net.loadings, activation="tanh", settings=MeanSettings(families=FAST.families)
    )
    assert _error(by_path.mean(fresh), truth) < 2 * _error(fine.mean(fresh), truth) + 0.003
    assert _error(by_difference(fresh), truth) > 5 * _error(by_path.mean(fresh), truth)
    native = fit_trajectories(coarse, net.loadings, activation="tanh", stride=3, native_alpha=net.alpha, settings=FAST)
    assert torch.allclose(native.mean(fresh), by_path.mean(fresh), rtol=1e-6, atol=1e-8)


def test_what_lies_past_a_trials_end_is_not_read():
    net = teacher("ring").sample(300, _generator(1))
    latents = _latents(net, noise=0.01)
    lengths = torch.arange(len(latents.z)) % 50 + 8
    past = ~Latents(latents.z, lengths, 0.1).mask
    rows = _randn(5, 2, seed=3)
    estimates = []
    for filling in (0.0, 1e6, math.nan):
        z = latents.z.masked_fill(past[:, :, None], filling)
        estimates.append(
            fit_trajectories(Latents(z, lengths, 0.1), net.loadings, activation="tanh", settings=FAST).mean(rows)
        )
    longer = torch.cat([latents.z, torch.ones(len(latents.z), 9, 2).double()], 1)
    estimates.append(
        fit_trajectories(Latents(longer, lengths, 0.1), net.loadings, activation="tanh", settings=FAST).mean(rows)
    )
    for other in estimates[1:]:  # to rounding: products may depend on how memory is aligned
        torch.testing.assert_close(estimates[0], other, rtol=1e-9, atol=1e-10)
    full = fit_trajectories(latents, net.loadings, activation="tanh", settings=FAST).mean(rows)
    assert not torch.allclose(estimates[0], full, rtol=1e-6)


def test_state_round_trip_and_shapes(tmp_path):
    net = teacher("quadstable").sample(300, _generator(1))
    model = fit_trajectories(_latents(net, noise=0.01), net.loadings, activation="tanh", recorded_fraction=0.5)
    torch.save(model.state(), tmp_path / "mean.pt")
    again = from_state(torch.load(tmp_path / "mean.pt", weights_only=True))
    rows = _randn(6, 2, seed=3)
    assert torch.equal(model.mean(rows), again.mean(rows))
    assert torch.equal(model.interval(rows)[1], again.interval(rows)[1])
    assert torch.equal(model.variance(rows), again.variance(rows))
    assert again.summary == model.summary
    assert again.predicted_error == model.predicted_error
    assert model.mean(rows.float()).dtype == torch.float32
    assert [x.shape for x in model.interval(rows[:0])] == [(0, 2), (0, 2)]
    assert len(model.weights) > 1
    assert math.isclose(float(model.weights.sum()), 1, rel_tol=1e-9)


def test_intervals_are_nested_and_hold_the_stated_share_of_the_posterior():
    net = teacher("quadstable").sample(300, _generator(1))
    model = fit_trajectories(_latents(net, noise=0.01), net.loadings, activation="tanh")
    rows = _randn(50, 2, seed=3)
    low, high = model.interval(rows, 0.01)
    for level in (0.5, 0.8, 0.95, 0.99):
        wider = model.interval(rows, level)
        assert bool((wider[0] < low).all() and (wider[1] > high).all())
        low, high = wider
        means, variances = model._components(rows)
        torch.testing.assert_close(model(rows), (model.weights[:, None, None] * means).sum(0))
        share = [model.weights[:, None, None] * torch.special.ndtr((x - means) / variances.sqrt()) for x in wider]
        assert torch.allclose((share[1] - share[0]).sum(0), torch.tensor(level).double(), atol=1e-4)
    narrow = fit_trajectories(
        _latents(net, noise=0.01), net.loadings, activation="tanh", settings=TrajectorySettings(width_factor=0.5)
    )
    assert torch.allclose(
        2 * (narrow.interval(rows)[1] - narrow.mean(rows)), model.interval(rows)[1] - model.mean(rows)
    )


def test_bias_and_input_are_part_of_the_estimate():
    k = 1000
    pool = Loadings(_randn(k, 2), _randn(k, 1, seed=1), 0.7 * _randn(k, seed=2))

    def nu(rows):
        return torch.stack([rows[:, 0] + 0.5 * rows[:, 2], 1 + torch.tanh(rows[:, 1]) - rows[:, 3]], 1)

    n = nu(pool.stack()) + 0.3 * _randn(k, 2, seed=4)
    net = Network(pool.m, n, pool.b, pool.d, activation="softplus")
    u = _randn(40, 12, 1, seed=6).repeat_interleave(5, 1)
    z = net.simulate(2 * _randn(40, 2, seed=5), 60, u)
    latents = Latents(z + 0.003 * _randn(*z.shape, seed=7), torch.full((40,), 60), 0.1, u)
    model = fit_trajectories(latents, pool, activation="softplus", settings=FAST)
    at = Loadings(_randn(300, 2, seed=7), _randn(300, 1, seed=8), 0.7 * _randn(300, seed=9)).stack()
    assert _error(model.mean(at), nu(at)) < 0.05
    assert model.estimand == "mean"
    still = Latents(latents.z, latents.lengths, 0.1, torch.zeros_like(u))
    found = diagnose(fit_trajectories(still, pool, activation="softplus", settings=FAST), at)
    assert found.cautions


@pytest.mark.slow
def test_covariance_of_the_loadings_errors_removes_their_bias():
    source = teacher("bistable")
    net = source.sample(1000, _generator(1))
    latents = _latents(net, noise=0.003)
    fresh = source.sample(500, _generator(9)).m
    truth = source.conditional_mean(fresh)
    seen = Loadings(net.m + 0.4 * _randn(1000, 2, seed=2))
    covariance = 0.16 * torch.eye(2).double().expand(1000, 2, 2)
    ignored = fit_trajectories(latents, seen, activation="tanh", settings=FAST)
    known = fit_trajectories(latents, seen, activation="tanh", loadings_covariance=covariance, settings=FAST)
    exact = fit_trajectories(latents, net.loadings, activation="tanh", settings=FAST)
    assert _error(known.mean(fresh), truth) < 0.5 * _error(ignored.mean(fresh), truth)
    assert float(known.variance(fresh).mean()) > 1.25 * float(exact.variance(fresh).mean())
    none = fit_trajectories(
        latents,
        net.loadings,
        activation="tanh",
        loadings_covariance=1e-12 * covariance,
        settings=replace(FAST, draws=1),
    )
    plain = fit_trajectories(latents, net.loadings, activation="tanh", settings=replace(FAST, draws=1))
    assert torch.allclose(none.mean(fresh), plain.mean(fresh), atol=0.02)


def test_fewer_recorded_neurons_widen_the_intervals():
    source = teacher("ring")
    net = source.sample(1000, _generator(1))
    latents = _latents(net, noise=0.003)
    rows = source.sample(200, _generator(9)).m
    few = Loadings(net.m[:100])
    part = fit_trajectories(latents, few, activation="tanh", recorded_fraction=0.1, settings=FAST)
    unknown = fit_trajectories(latents, few, activation="tanh", recorded_fraction=None, settings=FAST)
    whole = fit_trajectories(latents, net.loadings, activation="tanh", settings=FAST)
    assert float(part.variance(rows).mean()) > 3 * float(whole.variance(rows).mean())
    assert 0.5 < float(unknown.variance(rows).mean() / part.variance(rows).mean()) < 2


@pytest.mark.slow
@pytest.mark.parametrize("networks", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_coverage_over_some_networks(networks):
    inside = {0.5: [], 0.95: []}
    for seed in range(networks):
        source = teacher(("quadstable", "bistable")[seed % 2])
        net = source.sample(300, _generator(50 + seed))
        latents = _latents(net, noise=0.01, n_grid=5, seed=seed)
        model = fit_trajectories(latents, net.loadings, activation="tanh", settings=TrajectorySettings(seed=seed))
        fresh = source.sample(200, _generator(90 + seed)).m
        truth = source.conditional_mean(fresh)
        for level, shares in inside.items():
            low, high = model.interval(fresh, level)
            shares.append(float(((low <= truth) & (truth <= high)).double().mean()))
    assert 0.3 < sum(inside[0.5]) / networks < 0.8
    assert sum(inside[0.95]) / networks > 0.85


def test_misfit_is_said():
    net = teacher("limit_cycle").sample(500, _generator(1))
    pushed = fit_trajectories(_latents(net, process=0.02), net.loadings, activation="tanh", settings=FAST)
    assert any("correlated" in line for line in pushed.summary["warnings"])
    fast = Latents(_latents(net, noise=0.003).z, torch.full((49,), 60), 0.3)
    wrong = fit_trajectories(fast, Loadings(0.2 * net.m), activation="tanh", settings=FAST)
    assert wrong.summary["warnings"] != []
    clean = fit_trajectories(_latents(net), net.loadings, activation="tanh", settings=FAST)
    assert clean.summary["warnings"] == []


@pytest.mark.slow
def test_many_neurons_and_samples_stay_within_memory():
    net = teacher("ring").sample(6000, _generator(1))
    latents = _latents(net, noise=0.01, n_grid=20, n_steps=30)
    repeated = Latents(latents.z.repeat(10, 1, 1), latents.lengths.repeat(10), 0.1)
    model = fit_trajectories(repeated, net.loadings, activation="tanh", settings=FAST)
    assert len(model.centres) < 1000
    assert model.summary["n_samples"] <= 20_000
    assert _error(model.mean(net.m), teacher("ring").conditional_mean(net.m)) < 0.01


def test_mistakes_are_named():
    net = teacher("ring").sample(50, _generator(1))
    latents = _latents(net, n_grid=3, n_steps=20)
    loadings = net.loadings

    def fit(latents=latents, loadings=loadings, **options):
        return fit_trajectories(latents, loadings, **{"activation": "tanh", "settings": FAST, **options})

    for options, words in (
        ({"latents": Latents(latents.z[..., :1], latents.lengths, 0.1)}, "latents of shape"),
        ({"latents": Latents(latents.z, latents.lengths, 0.1, latents.z)}, "inputs"),
        ({"latents": Latents(latents.z, latents.lengths[:3], 0.1)}, "a length for each"),
        ({"latents": Latents(latents.z, torch.ones_like(latents.lengths), 0.1)}, "two samples"),
        ({"latents": Latents(latents.z * math.nan, latents.lengths, 0.1)}, "finite"),
        ({"stride": 0}, "stride"),
        ({"native_alpha": 2.0}, "native_alpha"),
        ({"recorded_fraction": 1.5}, "recorded_fraction"),
        ({"loadings_covariance": torch.eye(2)}, "loadings_covariance"),
        ({"activation": "step"}, "activation among"),
    ):
        with pytest.raises(UserError, match=words):
            fit(**options)
    for settings, words in (({"families": ("cubic",)}, "kernel families"), ({"draws": 0}, "draws")):
        with pytest.raises(UserError, match=words):
            TrajectorySettings(**settings)
    model = fit()
    with pytest.raises(UserError, match="level"):
        model.interval(loadings.m, 1.0)
    with pytest.raises(UserError, match="columns"):
        model.interval(torch.zeros(3, 5))


def test_samples_that_say_little_count_little():
    """With each sample's own covariance, samples of enormous noise do no harm; taken as alike they drown the rest."""
    net = teacher("ring").sample(300, _generator(2), exact_moments=True)
    clean = _latents(net, n_grid=10)
    g = _generator(5)
    shape = clean.z.shape
    sd = torch.where(torch.rand(shape[:2], generator=g) < 0.3, 3.0, 0.02).double()
    seen = clean.z + sd[..., None] * torch.randn(shape, generator=g, dtype=torch.float64)
    covariance = sd[..., None, None].square() * torch.eye(2).double()
    truth = teacher("ring").conditional_mean(net.loadings)

    plain = TrajectorySettings(families=("none",), draws=1)

    def error(**options):
        model = fit_trajectories(loadings=net.loadings, activation="tanh", settings=plain, **options)
        return float((model.mean(net.loadings.stack()) - truth).square().sum() / truth.square().sum()), model

    weighted, model = error(latents=clean, observed=(seen, covariance))
    assert weighted < 0.01
    assert math.isclose(model.summary["noise_sd"][0], 0.02, rel_tol=0.1)
    assert weighted < 0.2 * error(latents=replace(clean, z=seen))[0]


def test_observed_states_and_covariances_have_to_fit():
    net = teacher("ring").sample(100, _generator(2))
    latents = _latents(net, n_grid=4)
    with pytest.raises(UserError, match="covariances"):
        fit_trajectories(latents, net.loadings, activation="tanh", observed=(latents.z, latents.z))
