"""Draws from the posterior of nu: their law is the posterior's, jointly over loadings, and their drive goes with them."""

from dataclasses import replace

import pytest
import torch

from connector.connectivity.distribution import ConnectivityDistribution
from connector.connectivity.flow import Flow
from connector.connectivity.nu import kernels
from connector.connectivity.nu.draws import Draws
from connector.connectivity.nu.mean import from_state
from connector.connectivity.nu.prior import _thinned
from connector.connectivity.nu.trajectories import TrajectorySettings, fit_trajectories
from connector.data.attractors import teacher
from connector.data.simulation import grid_of_states
from connector.dynamics import Network
from connector.errors import UserError
from connector.types import Latents, Loadings

N = 300
FAST = TrajectorySettings(families=("arcsine", "matern12", "slope32"), widths=(0.8,), draws=2, pseudo_loadings=0)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _fit(fraction=1.0, settings=FAST, bias=False, seed=0):
    net = teacher("quadstable").sample(120, _generator(seed))
    if bias:
        net = replace(net, b=0.4 * _randn(120, 1, seed=7), d=0.3 * _randn(120, seed=8), activation="softplus")
    z0 = grid_of_states(4, 2.4, 2)
    u = None if not bias else _randn(len(z0), 1, 1, seed=9).expand(-1, 30, 1)
    z = net.simulate(z0, 30, u)
    latents = Latents(z + 0.01 * _randn(*z.shape), torch.full((len(z),), 30), net.alpha, u)
    model = fit_trajectories(
        latents, net.loadings, activation=net.activation, recorded_fraction=fraction, settings=settings
    )
    return model, net, latents


@pytest.fixture(scope="module", params=[False, True], ids=["odd", "with bias and input"])
def fitted(request):
    return _fit(fraction=0.5, bias=request.param)


def test_draws_have_the_posterior_mean_variance_and_intervals(fitted):
    model, net, _ = fitted
    rows = net.loadings.stack()[:25] + 0.05
    draws = Draws(model, N, seed=1)(rows)
    mean, variance = model.mean(rows), model.variance(rows)
    assert draws.shape == (N, 25, 2)
    assert 0.3 < float(((draws.mean(0) - mean).square() / (variance / N)).mean()) < 2.5
    assert 0.9 < float((draws.var(0) / variance).mean()) < 1.12
    for level in (0.5, 0.95):
        low, high = model.interval(rows, level)
        assert float(((low <= draws) & (draws <= high)).double().mean()) == pytest.approx(level, abs=0.05)


def test_draws_are_joint_over_loadings(fitted):
    """Neurons of nearly the same loading have nearly the same nu in each draw, however wide the interval."""
    model, net, _ = fitted
    rows = net.loadings.stack()[:20].double()
    draws = Draws(model, 60, seed=1)
    near = (draws(rows + 1e-6) - draws(rows)).square().mean((0, 2))
    assert bool((near < 1e-3 * model.variance(rows).mean(1)).all())
    assert torch.allclose(draws(rows)[3], draws[3](rows))
    assert torch.equal(draws(rows), Draws(model, 60, seed=1)(rows))
    assert not torch.allclose(draws(rows), Draws(model, 60, seed=2)(rows))


def test_drive_of_the_draws_holds_the_recorded_drive(fitted):
    model, net, latents = fitted
    z, u, _ = latents.samples()
    z, u = z[::7], None if u is None else u[::7]
    drive = Draws(model, 150, seed=1).drive(z, u)
    truth = net.drive(z, u)
    assert float((drive.mean(0) - truth).square().mean() / truth.square().mean()) < 1e-3
    score = (truth - drive.mean(0)) / drive.std(0)
    assert 0.2 < float(score.square().mean()) < 4


def test_drive_and_nu_are_drawn_together():
    """Without own deviations of neurons that are all recorded, their network with n of a draw has the draw's drive."""
    state = _fit()[0].state()
    state["tensors"]["amplitudes"][:, 2] = 1e-12
    model, pool = from_state(state), _fit()[1]
    draws, at = Draws(model, 40, seed=1), _randn(30, 2, seed=4)
    of_nu = torch.stack([Network(pool.m, n).drive(at) for n in draws(pool.m)])
    drive = draws.drive(at)
    assert float(drive.std(0).mean()) > 1e-4
    assert float((of_nu - drive).square().mean()) < 0.01 * float((drive - drive.mean(0)).square().mean())


def test_odd_draws_are_odd_and_saved_ones_are_the_same():
    model, net, _ = _fit()
    rows = net.loadings.stack()[:9]
    draws = Draws(model, 12, seed=3)
    assert torch.allclose(draws(-rows), -draws(rows))
    again = from_state(model.state())
    assert torch.equal(Draws(again, 12, seed=3)(rows), draws(rows))


@pytest.mark.parametrize("family", ["none", "arcsine", "additive", "matern12", "slope32"])
def test_even_part_is_even_as_large_as_the_odd_and_leaves_it_alone(family):
    model, net, _ = _fit(settings=replace(FAST, families=(family,), draws=1))
    rows = torch.cat([net.m, -net.m])
    plain, both = Draws(model, 60, seed=3)(rows), Draws(model, 60, seed=3, even_part=True)(rows)
    even = both - plain
    assert torch.allclose(even[:, :120], even[:, 120:])
    assert not torch.allclose(even[0], even[1])
    assert abs(float(even.mean() / even.std())) < 0.15
    assert 0.7 < float(even.square().mean() / plain.square().mean()) < 1.4
    drives = (Draws(model, 3, seed=3, even_part=x).coefficients for x in (False, True))
    assert torch.equal(*drives)


def test_even_part_is_not_added_where_all_of_nu_acts():
    model, net, _ = _fit(bias=True)
    rows = net.loadings.stack()[:9]
    assert torch.equal(Draws(model, 5, seed=3, even_part=True)(rows), Draws(model, 5, seed=3)(rows))


def test_width_factor_scales_draws_as_it_does_intervals():
    rows = _randn(8, 2, seed=5)
    settings = replace(FAST, families=("arcsine",), draws=1)
    plain, half = (_fit(settings=replace(settings, width_factor=w))[0] for w in (1.0, 0.5))
    wide, narrow = (Draws(model, 50, seed=2) for model in (plain, half))
    assert torch.allclose(narrow(rows) - half.mean(rows), 0.5 * (wide(rows) - plain.mean(rows)), atol=1e-8)
    even = [
        Draws(model, 50, seed=2, even_part=True)(rows) - draws(rows) for model, draws in ((plain, wide), (half, narrow))
    ]
    assert torch.allclose(even[0], even[1], atol=1e-8)
    spread = wide.coefficients - wide.coefficients.mean(0)
    assert torch.allclose(narrow.coefficients - narrow.coefficients.mean(0), 0.5 * spread, atol=1e-8)


def test_kernel_without_features_is_drawn_through_the_pool(monkeypatch):
    class Rational(kernels.Stationary):
        def profile(self, squared):
            return 1 / (1 + squared / 2)

    monkeypatch.setitem(kernels.KERNELS, "rational", Rational())
    model, net, _ = _fit(settings=replace(FAST, families=("rational",)))
    rows = net.loadings.stack()
    draws = Draws(model, 200, seed=1)(rows)
    assert 0.85 < float((draws.var(0) / model.variance(rows)).mean()) < 1.1


def test_what_has_no_draws_says_so():
    model, _, _ = _fit(settings=replace(FAST, families=("none",), draws=1))
    with pytest.raises(UserError, match="a whole number of 1 or more"):
        Draws(model, 0)
    old = model.state()
    old["tensors"] = {k: v for k, v in old["tensors"].items() if k not in ("data_weights", "data")}
    with pytest.raises(UserError, match="older fit"):
        Draws(from_state(old), 3)


def test_mixture_of_many_components_is_thinned_without_favour():
    weight = torch.rand(500, generator=_generator(1), dtype=torch.float64) + 0.2
    weight[7] = 20
    group = torch.arange(500) % 2 == 0
    total = []
    for seed in range(20):
        index, share = _thinned(weight, 64, _generator(seed))
        assert len(index) <= 64
        assert float(share.sum()) == pytest.approx(1)
        assert abs(float(share[index == 7].sum()) - float(weight[7] / weight.sum())) < 1 / 64
        total.append(float(share[group[index]].sum()))
    assert sum(total) / 20 == pytest.approx(float(weight[group].sum() / weight.sum()), abs=0.05)
    index, share = _thinned(weight[:40], 64, _generator())
    assert sorted(index.tolist()) == list(range(40))


def test_intervals_at_recorded_loadings_hold_nu_at_the_true_ones():
    """nu is steep, loadings have errors: the interval of nu at the true loading has to carry them."""
    net = teacher("quadstable").sample(400, _generator(2))
    net = replace(net, n=1.5 * net.m + torch.tanh(net.m))
    z = net.simulate(grid_of_states(5, 2.4, 2), 40)
    latents = Latents(z + 0.003 * _randn(*z.shape), torch.full((len(z),), 40), net.alpha)
    error = 0.15
    seen = Loadings(net.m + error * _randn(400, 2, seed=5))
    errors = (error**2 * torch.eye(2).double()).expand(400, 2, 2)
    settings = replace(FAST, families=("arcsine", "matern32"), widths=(0.4, 0.8))
    model = fit_trajectories(latents, seen, activation="tanh", loadings_covariance=errors, settings=settings)

    def held(*bounds):
        return float(((bounds[0] <= net.n) & (net.n <= bounds[1])).double().mean())

    assert held(*model.interval(seen.m, 0.95)) < 0.75
    with_errors = model.interval(seen.m, 0.95, errors)
    assert 0.88 < held(*with_errors) <= 1
    tiny = model.interval(seen.m[:20], 0.95, 1e-12 * errors[:20])
    assert torch.allclose(tiny[0], model.interval(seen.m[:20], 0.95)[0], atol=0.05)
    with pytest.raises(UserError, match="errors of shape"):
        model.interval(seen.m, 0.95, errors[:3])


def test_networks_about_draws_scatter_as_the_posterior_does():
    model, _, latents = _fit(settings=replace(FAST, families=("arcsine",)))
    flow = Flow(2, hidden_layers=0).double()
    for parameter in flow.parameters():
        parameter.data.zero_()
    z, u, y = latents.samples()
    distribution = ConnectivityDistribution(flow, model, alpha=0.1, activation="tanh", reference=(z, u, y))
    plain = distribution.sample(200, seed=5)
    assert torch.equal(plain.n, model(plain.m))
    drawn = distribution.sample(200, seed=5, posterior=True)
    assert torch.equal(drawn.m, plain.m)
    assert torch.equal(drawn.n, Draws(model, 1, 5)[0](plain.m))
    away = [distribution.sample(200, seed=i, posterior=True) for i in range(30)]
    score = torch.stack([(x.n - model(x.m)).square() / model.variance(x.m) for x in away])
    assert 0.6 < float(score.mean()) < 1.5
    projected = distribution.sample(200, seed=5, posterior=True, project=True)
    of_draw = distribution.posterior(1, 5).drive(z)[0]
    apart = (projected.drive(z) - of_draw).square().mean()
    assert float(apart) < 0.05 * float((drawn.drive(z) - of_draw).square().mean())
    even = distribution.sample(200, seed=5, posterior=True, project=True, even_part=True)
    assert not torch.allclose(even.n, projected.n, atol=0.1)
    with pytest.raises(UserError, match="even_part with posterior=True and project=True"):
        distribution.sample(200, posterior=True, even_part=True)
    assert float((even.drive(z) - of_draw).square().mean()) < 2 * float(apart)
    with pytest.raises(UserError, match="outputs 'conditional_mean'"):
        distribution.sample(5, posterior=True, outputs="flow")
