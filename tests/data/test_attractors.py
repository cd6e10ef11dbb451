"""Teachers against Monte Carlo and closed forms."""

import math

import pytest
import torch

from connector.data.attractors import (
    MODULES,
    TEACHERS,
    LinearGaussian,
    Teacher,
    linear_attractors,
    load_teachers,
    register_teacher,
    teacher,
)
from connector.data.simulation import grid_of_states, simulate_recording
from connector.dynamics import leading_fixed_points
from connector.errors import UserError

NAMES = tuple(MODULES)


def _gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _states(n: int = 12) -> torch.Tensor:
    return 1.5 * torch.randn(n, 2, generator=_gen(5), dtype=torch.float64)


def test_a_teacher_without_its_closed_forms_is_refused_before_anything_is_simulated(monkeypatch):
    class Half(LinearGaussian):
        drive = Teacher.drive

    monkeypatch.setitem(TEACHERS, "half", lambda: Half.__new__(Half))
    with pytest.raises(UserError, match="'half' without drive"):
        teacher("half")


@pytest.mark.parametrize("name", NAMES)
def test_sampled_network_obeys_the_mean_field(name):
    source = teacher(name)
    net, z = source.sample(40_000, _gen()), _states()
    phi = torch.tanh(z @ net.m.T)
    for n in (net.n, source.conditional_mean(net.m)):  # nu carries all that the dynamics see of n
        terms = phi[..., None] * n
        error = (terms.mean(1) - source.drive(z)).abs()
        assert (error < 5 * terms.std(1) / math.sqrt(net.n_neurons)).all()


@pytest.mark.parametrize("name", NAMES)
def test_conditional_mean_leaves_no_regression(name):
    # n - nu(m) must be uncorrelated with any function of m.
    source = teacher(name)
    net = source.sample(60_000, _gen(1))
    residual = net.n - source.conditional_mean(net.loadings)
    for function in (lambda m: torch.ones_like(m), torch.tanh, torch.sin, lambda m: torch.tanh(m).flip(1) ** 3):
        product = residual * function(net.m)
        assert (product.mean(0).abs() < 5 * product.std(0) / math.sqrt(len(product))).all()


@pytest.mark.parametrize("name", NAMES)
def test_density_of_the_loadings_integrates_to_one_and_fits_the_draw(name):
    source = teacher(name)
    axis = torch.linspace(-60, 60, 2401, dtype=torch.float64)
    density = source.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert float(density.sum()) * 0.05**2 == pytest.approx(1, abs=2e-3)
    inside = torch.cartesian_prod(axis, axis).abs().max(1).values < 1.0 - 1e-9
    expected = float(density[inside].sum()) * 0.05**2
    m = source.sample(40_000, _gen(2)).m
    share = float((m.abs().max(1).values < 0.975).double().mean())
    assert share == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", ["bistable", "limit_cycle", "ring"])
def test_gaussian_teachers_have_the_published_covariances(name):
    expected = {
        "bistable": [[1.2, 0.8], [0.0, 1.6]],
        "limit_cycle": [[1.6, -0.8], [0.8, 1.6]],
        "ring": [[1.6, 0.0], [0.0, 1.6]],
    }[name]
    net = teacher(name).sample(1000, _gen(3), exact_moments=True)
    eye = torch.eye(2, dtype=torch.float64)
    assert torch.allclose(net.m.T @ net.m / 1000, eye)
    assert torch.allclose(net.n.T @ net.m / 1000, torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(net.n.T @ net.n / 1000, 4 * eye)


def test_quadstable_mixture():
    source = teacher("quadstable")
    net, labels = source.sample_with_components(1000, _gen())
    assert labels.bincount().tolist() == [250] * 4
    assert labels[:8].unique().numel() > 1  # the order of the neurons tells nothing
    for component in range(4):
        members = labels == component
        spread = torch.cat([net.m[members] - source.m_means[component], net.n[members] - source.n_means[component]], 1)
        assert torch.allclose(torch.cov(spread.T), 0.25 * torch.eye(4, dtype=torch.float64), atol=0.09)
    # The mixture factorises over the axes, where the posterior mean of a sign is a tanh.
    closed = 2.31 * torch.tanh(0.87 * net.m / 0.25)
    assert torch.allclose(source.conditional_mean(net.m), closed)
    assert (source.components(net.m) == labels).double().mean() > 0.9
    assert source.sample(10, _gen()).n_neurons == 10  # counts that do not divide


@pytest.mark.parametrize(("name", "stable", "rate"), [("bistable", 2, -0.25), ("heavy_tailed", 2, -0.5)])
def test_two_stable_points_with_the_predicted_slow_rate(name, stable, rate):
    source = teacher(name)
    points, eigenvalues = leading_fixed_points(source.vector_field, grid_of_states(5, 2.4))
    leading = eigenvalues.real.max(1).values
    assert (leading < 0).sum() == stable == source.n_attractors
    assert len(points) == 5
    # Directions turn under S alone: the slow rate is the ratio of its eigenvalues less one.
    assert leading[:2].tolist() == pytest.approx([rate, rate], abs=1e-5)


def test_quadstable_has_four_stable_points():
    points, eigenvalues = leading_fixed_points(teacher("quadstable").vector_field, grid_of_states(5, 2.4))
    stable = points[eigenvalues.real.max(1).values < 0]
    assert len(points) == 9
    # They lie on the axes: on a diagonal one pair of components is silent, which halves the drive.
    place = sorted(map(tuple, (stable / stable.norm(dim=1, keepdim=True)).round().int().tolist()))
    assert place == [(-1, 0), (0, -1), (0, 1), (1, 0)]
    radius = float(stable.norm(dim=1)[0])
    h = 0.87 * radius + 0.5 * radius * torch.randn(400_000, generator=_gen(), dtype=torch.float64)
    assert radius == pytest.approx(2.31 * float(torch.tanh(h).mean()), abs=0.01)


def test_limit_cycle_and_ring():
    cycle, ring = teacher("limit_cycle"), teacher("ring")
    assert (cycle.attractor_kind, ring.attractor_kind) == ("limit_cycle", "ring")
    z = _states()
    turn = (z[:, 0] * cycle.drive(z)[:, 1] - z[:, 1] * cycle.drive(z)[:, 0]) / (z * cycle.drive(z)).sum(1)
    assert torch.allclose(turn, torch.full_like(turn, 0.5))  # rotation 0.8 against gain 1.6, everywhere
    radius = float(leading_fixed_points(ring.vector_field, grid_of_states(3, 2.4))[0].norm(dim=1).max())
    angle = torch.linspace(0, 2 * math.pi, 17, dtype=torch.float64)
    circle = radius * torch.stack([angle.cos(), angle.sin()], 1)
    assert radius > 0.5
    assert ring.vector_field(circle).abs().max() < 1e-6


def test_kinds_of_linear_attractors():
    eye = torch.eye(2)
    assert linear_attractors(1.6 * eye, 1.0) == ("ring", 1)
    assert linear_attractors(0.9 * eye, 1.0) == ("fixed_points", 1)
    assert linear_attractors(0.9 * eye, 3.0) == ("ring", 1)
    assert linear_attractors(torch.tensor([[1.2, 0.8], [0, 1.6]]), 1.0) == ("fixed_points", 2)
    assert linear_attractors(torch.tensor([[1.6, -0.8], [0.8, 1.6]]), 1.0) == ("limit_cycle", 1)
    assert linear_attractors(torch.tensor([[1.6, 1.0], [0, 1.6]]), 1.0) == ("none", 0)


@pytest.mark.parametrize("name", ["bistable", "quadstable", "heavy_tailed"])
def test_simulated_networks_keep_their_teachers_attractors(name):
    source = teacher(name)
    for seed in range(3):
        _, network = simulate_recording(source, n_grid=1, n_steps=2, seed=seed)
        _, eigenvalues = network.fixed_points(grid_of_states(4, 2.4), relax_steps=150)
        assert (eigenvalues.real.max(1).values < 0).sum() == source.n_attractors


def test_heavy_tails():
    m = teacher("heavy_tailed").sample(20_000, _gen()).m[:, 0]
    # Quantiles of the Student t with 3 degrees of freedom.
    for probability, quantile in ((0.5, 0.0), (0.9, 1.6377), (0.99, 4.5407), (0.999, 10.2145)):
        assert float((m < quantile).double().mean()) == pytest.approx(
            probability, abs=0.012 * (1.05 - probability) + 6e-4
        )


def test_users_add_teachers():
    @register_teacher("one_point")
    def one_point(gain: float = 0.5) -> Teacher:
        return LinearGaussian([[gain, 0.0], [0.0, gain]], name="one_point")

    try:
        assert teacher("one_point").n_attractors == 1
        assert teacher("one_point", gain=1.5).attractor_kind == "ring"
    finally:
        del TEACHERS["one_point"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: teacher("quadstabel"),
        lambda: teacher("ring", gain=3),
        lambda: teacher("ring", alpha=0),
        lambda: teacher("heavy_tailed", dof=2),
        lambda: LinearGaussian([[3.0, 0.0], [0.0, 1.0]]),  # S S^T exceeds Cov(n)
        lambda: teacher("ring").conditional_mean(torch.zeros(3, 3)),
    ],
)
def test_mistakes_are_named(call):
    with pytest.raises(UserError):
        call()


def test_teachers_of_a_users_file_are_known_by_their_names(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from connector.data.attractors import LinearGaussian, register_teacher\n"
        "@register_teacher('test_of_mine')\n"
        "def mine():\n"
        "    return LinearGaussian([[1.5, -0.2], [0.2, 1.5]], name='mine')\n"
    )
    try:
        load_teachers(mine)
        assert (teacher("test_of_mine").attractor_kind, teacher("test_of_mine").n_attractors) == ("limit_cycle", 1)
    finally:
        TEACHERS.pop("test_of_mine", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nx = 1 / 0\n", "ZeroDivisionError in mine.py, line 2"),
        ("x = (", "line 1"),
        ("raise SystemExit", "SystemExit in mine.py, line 1"),
    ],
)
def test_a_users_file_that_fails_is_refused_with_the_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=said):
        load_teachers(tmp_path / "mine.py")
    with pytest.raises(UserError, match=r"a Python file .*absent\.py"):
        load_teachers(tmp_path / "absent.py")
