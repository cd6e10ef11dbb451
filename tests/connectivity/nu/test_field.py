"""nu from a sampled posterior of the drive: closed forms, and the same answer in any gauge and basis."""

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch.testing import assert_close

from connector.connectivity.diagnosis import diagnose
from connector.connectivity.nu.field import _in_basis, fit_field, sampled_basis
from connector.connectivity.nu.trajectories import TrajectorySettings
from connector.dynamics import Network, activation
from connector.lrrnn.field_posterior import FieldPosterior
from connector.lrrnn.gauge import Gauge
from connector.shooting import Field

FAST = TrajectorySettings(families=("none", "arcsine"), widths=(0.8,), draws=2)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known_drive(precision=1e8, effective=50):
    """A large softplus network with n linear in m, and its drive known to one part in sqrt(precision)."""
    m, d = normal(0, 400, 2), 0.5 + 0.5 * normal(1, 400)
    size = torch.tensor([[1.5, -0.5], [0.4, 1.2]], dtype=torch.float64)
    nu = m @ size.T
    net = Network(m, nu, None, d, 0.1, "softplus")
    z = normal(2, 1500, 2)
    basis, _ = sampled_basis("softplus", 0.1, 0)(net.loadings, z, None)
    b = basis(z, None)
    c = torch.linalg.lstsq(b, net.drive(z)).solution
    information = torch.kron((b.T @ b).contiguous(), torch.eye(2, dtype=torch.float64)) * precision / len(z)
    posterior = FieldPosterior(
        "softplus", basis.neurons, basis.mixing, c, information, torch.zeros_like(c).reshape(-1), c[None],
        torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64),
        torch.full((1,), float(effective), dtype=torch.float64),
    )  # fmt: skip
    return SimpleNamespace(net=net, nu=nu, z=z, posterior=posterior)


def fitted(truth, z=None, posterior=None, loadings=None):
    return fit_field(
        posterior or truth.posterior, truth.z if z is None else z, None, loadings or truth.net.loadings,
        activation="softplus", alpha=0.1, recorded_fraction=1.0, settings=FAST,
    )  # fmt: skip


def test_nu_of_a_known_drive_is_recovered():
    truth = known_drive()
    model, rows = fitted(truth), truth.net.loadings.stack()
    assert float((model.mean(rows) - truth.nu).square().sum() / truth.nu.square().sum()) < 0.02
    low, high = model.interval(rows, 0.95)
    assert float(((low <= truth.nu) & (truth.nu <= high)).double().mean()) > 0.9


def test_what_is_not_known_is_the_prior():
    truth = known_drive(precision=1e-9)
    model, rows = fitted(truth), truth.net.loadings.stack()[:50]
    low, high = model.interval(rows, 0.95)
    assert bool(((low < 0) & (high > 0)).all())


def test_the_likelihood_does_not_depend_on_the_basis():
    truth = known_drive()
    old, z = truth.posterior, truth.z
    turn = torch.eye(old.mixing.shape[1], dtype=torch.float64) + 0.1 * normal(
        3, old.mixing.shape[1], old.mixing.shape[1]
    )
    field = Field(activation("softplus"), old.neurons, old.mixing @ turn, 0.1)
    gauge = torch.eye(2, dtype=torch.float64)
    found = _in_basis(old, field, gauge, z, None)
    change = 1e-3 * normal(4, *old.mean.shape)
    there = torch.linalg.solve(turn, old.mean + change).reshape(-1) - found.c
    value = -0.5 * there @ found.h @ there + found.b @ there
    here = -0.5 * change.reshape(-1) @ old.precision @ change.reshape(-1)
    base = torch.linalg.solve(turn, old.mean).reshape(-1) - found.c
    base = -0.5 * base @ found.h @ base + found.b @ base
    assert_close(value - base, here, rtol=1e-4, atol=1e-6 * float(here.abs()))


def test_one_result_in_every_linear_gauge():
    truth = known_drive(precision=1e4)
    gauge = Gauge(torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    rows = truth.net.loadings.stack()[:100]
    here = fitted(truth)
    moved = gauge.loadings(truth.net.loadings)
    there = fitted(truth, gauge.latents(truth.z), truth.posterior.moved(gauge), moved)
    expected = gauge.latents(here.mean(rows))
    assert float((there.mean(moved.stack()[:100]) - expected).norm() / expected.norm()) < 0.02


def test_few_draws_are_told_and_make_no_claim_of_coverage():
    many, few = (fitted(known_drive(1e4, effective)) for effective in (50, 5))
    assert not many.summary["warnings"]
    assert "5 independent draws" in few.summary["warnings"][0]
    rows = known_drive().net.loadings.stack()[:20]
    assert diagnose(many, rows).calibrated
    assert not diagnose(few, rows).calibrated


def test_no_sign_is_told_of_nu_that_the_recorded_neurons_do_not_back():
    """Neurons whose own output weights give another drive: nu of the unrecorded rest is not theirs to tell."""
    truth = known_drive()
    diagnosis = diagnose(fitted(truth), truth.net.loadings.stack())
    assert diagnosis.sign_determined.any()
    assert not diagnosis.warnings
    odd = truth.net.loadings.m[:, 0].argsort()[-12:]  # of one side only
    few = truth.net.loadings.map(lambda x: x[odd])
    model = fit_field(truth.posterior, truth.z, None, few, activation="softplus", alpha=0.1, settings=FAST)
    own = activation("softplus")(truth.z @ few.m.T + few.d) @ model.mean(few.stack()) / 12
    drive = truth.net.drive(truth.z)
    assert float((own - drive).norm() / (drive - drive.mean(0)).norm()) > 0.5
    found = diagnose(model, few.stack())
    assert not found.sign_determined.any()
    assert "none of its signs is stated" in " ".join(found.cautions)
    narrow = replace(found, low=torch.ones_like(found.low))
    assert not narrow.sign_determined.any()
    assert replace(narrow, signs_told=True).sign_determined.all()
