"""The scoreboard: linear dynamics against the joint Gaussian, the teachers' gradients, what the page says of rows; and a small board."""

import itertools
import json

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def system(experiments_importable):
    from linear_models import LinearSystem

    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    eye = torch.eye(2, dtype=torch.float64)
    a = torch.tensor([[0.9, -0.2], [0.2, 0.8]], dtype=torch.float64)
    return LinearSystem(a, normal(2, 2), 0.1 * eye, normal(3, 2), normal(3), normal(3).exp(), normal(2), 0.5 * eye)


def joint(system, v):
    """Mean and covariance of all states of one trial under inputs v (T, U + 1), as one Gaussian."""
    steps, rank = len(v), 2
    means, spreads = [system.first], [system.spread]
    for t in range(steps - 1):
        means.append(system.a @ means[-1] + system.b @ v[t])
        spreads.append(system.a @ spreads[-1] @ system.a.T + system.q)
    covariance = torch.zeros(steps, rank, steps, rank, dtype=torch.float64)
    for s in range(steps):
        for t in range(s, steps):
            covariance[t, :, s] = torch.linalg.matrix_power(system.a, t - s) @ spreads[s]
            covariance[s, :, t] = covariance[t, :, s].T
    return torch.cat(means), covariance.reshape(steps * rank, steps * rank)


def test_the_smoother_is_the_conditional_of_the_joint_gaussian(system):
    from linear_models import smooth, with_one

    steps, g = 4, torch.Generator().manual_seed(1)
    y = torch.randn(2, steps, 3, generator=g, dtype=torch.float64)
    v = with_one(torch.randn(2, steps, 1, generator=g), y)
    found, total = smooth(system, y, v), 0.0
    readout = torch.block_diag(*[system.readout] * steps)
    for trial in range(2):
        mean, covariance = joint(system, v[trial])
        seen = readout @ covariance @ readout.T + torch.diag(system.s.repeat(steps))
        apart = y[trial].flatten() - readout @ mean - system.e.repeat(steps)
        gain = covariance @ readout.T @ torch.linalg.inv(seen)
        left = (covariance - gain @ readout @ covariance).reshape(steps, 2, steps, 2)
        assert torch.allclose(found.mean[trial].flatten(), mean + gain @ apart, atol=1e-10)
        for t in range(steps):
            assert torch.allclose(found.covariance[t], left[t, :, t], atol=1e-10)
        for t in range(steps - 1):
            assert torch.allclose(found.lagged[t], left[t + 1, :, t], atol=1e-10)
        whole = torch.distributions.MultivariateNormal(torch.zeros(len(apart), dtype=torch.float64), seen)
        total += float(whole.log_prob(apart))
    assert found.log_likelihood == pytest.approx(total, abs=1e-8)


def test_expectation_maximisation_rises_and_finds_the_dynamics(system):
    from linear_models import fit_linear_system, pca_ridge

    g = torch.Generator().manual_seed(2)
    u = torch.randn(150, 60, 1, generator=g, dtype=torch.float64)
    z = torch.zeros(150, 60, 2, dtype=torch.float64)
    for t in range(59):
        noise = 0.3 * torch.randn(150, 2, generator=g, dtype=torch.float64)
        z[:, t + 1] = z[:, t] @ system.a.T + u[:, t] @ system.b[:, :1].T + noise
    readout = torch.randn(2, 30, generator=g, dtype=torch.float64)
    y = z @ readout + 0.5 * torch.randn(150, 60, 30, generator=g, dtype=torch.float64)
    found, course = fit_linear_system(y, u, 2, iterations=15)
    assert all(later > earlier - 1e-9 for earlier, later in itertools.pairwise(course))
    true = torch.linalg.eigvals(system.a)
    assert torch.linalg.eigvals(found.a) == pytest.approx(true, abs=0.02)
    clean = pca_ridge(z @ readout, u, 2, 0.1)  # without errors of the rates the regression alone has them
    assert torch.linalg.eigvals(clean.a) == pytest.approx(true, abs=0.02)


def test_gradients_of_the_task_networks_are_those_of_autograd(experiments_importable):
    from task_teachers import ALPHA, TASKS, TaskNetwork, flip_flop

    g = torch.Generator().manual_seed(0)
    network = TaskNetwork(8, (2, 2), 0.9, g)
    u, targets, scored = flip_flop(4, g, 2, steps=15)
    found = network.gradients(u, targets, scored, network.run(u))
    p = {key: value.clone().requires_grad_() for key, value in network.parameters.items()}
    h, rates = torch.zeros(4, 8), []
    for t in range(15):
        rates.append(h.tanh())
        h = (1 - ALPHA) * h + ALPHA * (rates[-1] @ p["W"].T + u[:, t] @ p["B"].T + p["d"])
    rates = torch.stack(rates, 1)
    error = (rates @ p["O"].T + p["c"] - targets) * scored
    loss = error.square().sum() / scored.sum() + 1e-3 * rates.square().mean() + 2e-4 * p["W"].square().sum() / 8
    loss.backward()
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    for key, value in p.items():
        assert torch.allclose(found[1][key], value.grad, atol=1e-6), key
    for name, recipe in TASKS.items():
        u, targets, scored = recipe.task(3, g)
        assert u.shape[:2] == targets.shape[:2], name
        assert scored.shape == targets.shape, name
        assert {len(one) for one in recipe.held} == {u.shape[2]}, name


def test_the_noise_driven_network_has_no_attractor_but_the_origin(experiments_importable):
    from task_teachers import non_normal

    network = non_normal(20, 100, steps=100)
    h = torch.randn(10, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    h = h + 20 * network.m.sum(1)
    for _ in range(400):
        h = h + network.alpha * network.field(h)
    assert h.abs().max() < 1e-6
    slope = network.n @ network.m.T  # of the drive, at the origin: nilpotent
    assert (slope @ slope).abs().max() < 1e-9


def row(method, name="a", cut=None, **scores):
    scores = {
        key: {"value": value, "null": 0.0, "note": "of 2" if key == "attractors_found" else ""}
        for key, value in scores.items()
    }
    return {
        "set": name,
        "method": method,
        "scores": scores,
        "cpu_s": 2.0,
        "whole_s": 900.0 if cut else 2.0,
        "peak_gib": 0.5,
        "cut": cut or {},
    }


def test_the_page_says_by_itself_where_ours_loses(experiments_importable, tmp_path):
    from scoreboard_page import lost, write_page

    ours = row("ours, fit", rate_r2=0.9, dissimilarity=0.1, attractors_found=2, attractors_false=0)
    better = row("LDS", rate_r2=0.95, attractors_found=2, attractors_false=0)
    worse = row(
        "LINT", cut={"lrrnn": [7, 1000]}, rate_r2=0.5, dissimilarity=0.4, attractors_found=1, attractors_false=3
    )
    from scoreboard_page import COLUMNS

    assert lost([ours, worse], COLUMNS) == []
    assert lost([ours, better, worse], COLUMNS) == ["rate R²: 0.950 of LDS, 0.900 of ours, fit"]
    page = tmp_path / "page.md"
    page.write_text("Above.\n<!-- scoreboard -->\nold\n<!-- end of scoreboard -->\nBelow.\n")
    rows = [ours, better, worse, row("ours, fit", "rat", co_smoothing=0.1, few_shot=0.05)]
    write_page(page, rows, "A machine", 90.0)
    text = page.read_text()
    assert text.startswith("Above.\n")
    assert text.endswith("\nBelow.\n")
    assert "old" not in text
    assert "ours is not the best in rate R²: 0.950 of LDS" in text
    assert "LINT ran 7 of 1000 epochs" in text
    assert "2 of 900" in text
    assert "few-shot" in text
    assert "Not run yet on a: ours, sampled." in text
    assert (tmp_path / "page.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_small_board_is_run_once_and_goes_on(experiments_importable, tmp_path, monkeypatch, capsys):
    import scoreboard
    import scoreboard_sets

    calls = []

    def here(function, *arguments, **options):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(scoreboard, "in_own_process", here)
    small = scoreboard_sets.task_set
    monkeypatch.setattr(scoreboard_sets, "task_set", lambda name: small(name, iterations=30, trials=30))
    arguments = ["--sets", "integrate", "--methods", "LDS", "PCA + ridge", "--out", str(tmp_path)]
    assert scoreboard.main(arguments) == 0
    said = capsys.readouterr().out
    assert "left out" in said
    assert "| PCA + ridge |" in said
    assert len(calls) == 3  # the set and two methods
    assert scoreboard.main(arguments) == 0
    assert len(calls) == 3
    rows = json.loads(next((tmp_path / "rows").glob("*LDS.json")).read_text())
    assert rows["rows"]["LDS"]["scores"]["rate_r2"]["value"] < 1
    from connector.score import main as score

    assert score([str(tmp_path / "results/integrate/lds.npz"), "--on", str(tmp_path / "sets/integrate.npz")]) == 0
    assert f"{rows['rows']['LDS']['scores']['rate_r2']['value']:.4g}" in capsys.readouterr().out


def test_an_absent_session_is_told_in_two_lines(experiments_importable, tmp_path, capsys):
    import scoreboard

    assert scoreboard.main(["--rat", str(tmp_path / "none.mat"), "--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
