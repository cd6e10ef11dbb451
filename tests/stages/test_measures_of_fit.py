"""The fit is measured against its nulls in every run, also where nothing follows the stage lrrnn."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import typed

from connector.analysis import readout_checks
from connector.stages import results

SMALL = [
    "data=npz", "stages=[lrrnn]", "lrrnn.max_epochs=1", "lrrnn.posterior_sweeps=4", "trainer.threads=1",
    "trainer.progress=false",
]  # fmt: skip


def run(tmp_path, *options, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    done = typed(*SMALL, f"data.path={tmp_path / 'a.npz'}", f"hydra.run.dir={tmp_path / 'run'}", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    return metrics, [line for line in done.stdout.splitlines() if line.startswith("Warning")]


def rates_of(m, n, z):
    """Of 25 samples (trials, time, neurons) from first states z."""
    states = []
    for _ in range(25):
        states.append(z)
        z = 0.9 * z + 0.1 * np.tanh(z @ m.T) @ n / len(m)
    return np.tanh(np.stack(states, 1) @ m.T)


@pytest.fixture(scope="module")
def of_rank_two():
    rng = np.random.default_rng(3)
    m = rng.normal(size=(30, 2))
    n = m @ np.array([[1.6, -0.8], [0.8, 1.6]]).T
    return rates_of(m, n, rng.uniform(-2, 2, size=(50, 2))) + 0.05 * rng.normal(size=(50, 25, 30))


def test_a_rank_is_chosen_where_asked_and_one_too_high_is_named(tmp_path, of_rank_two, monkeypatch):
    monkeypatch.setattr(readout_checks, "N_SAMPLES", 300)
    metrics, warnings = run(tmp_path, "lrrnn.rank=auto", rates=of_rank_two)
    assert (metrics["lrrnn/rank_chosen"], metrics["lrrnn/rank_of_least_error"]) == (2, 2)
    assert not warnings
    metrics, (said,) = run(tmp_path, "lrrnn.rank=3", rates=of_rank_two)
    assert metrics["lrrnn/cause_fewer"] == 1
    assert "lrrnn.rank may be too high" in said


def test_a_rank_that_is_too_low_is_named(tmp_path, of_rank_two):
    rates = of_rank_two
    metrics, warnings = run(tmp_path, "lrrnn.rank=1", "lrrnn.bias=false", rates=rates)
    assert metrics["lrrnn/cause_rank"] == 1
    (said,) = warnings
    assert "lrrnn.rank is too low" in said


@pytest.fixture(scope="module")
def rotating():
    """Rates (trials, time, neurons) of a plane in which trials rotate slowly, each about an offset of its own."""
    rng = np.random.default_rng(8)
    m = rng.normal(size=(30, 2))
    n = m @ np.array([[1.6, -0.3], [0.3, 1.6]]).T
    return rates_of(m, n, rng.uniform(-2, 2, size=(10, 2))) + 0.2 * rng.normal(size=(10, 1, 30))


def test_rates_of_few_trials_are_scored_beside_principal_components(tmp_path, rotating):
    metrics, warnings = run(tmp_path, "lrrnn.bias=true", rates=rotating)
    assert metrics["lrrnn/rates_r2_pca"] > 0.3
    assert metrics["lrrnn/rates_r2"] == pytest.approx(metrics["lrrnn/rates_r2_pca"], abs=0.15)
    assert not warnings


def test_spikes_without_a_latent_state_are_warned_of_in_each_prediction(tmp_path):
    metrics, warnings = run(tmp_path, spikes=np.random.default_rng(0).poisson(0.3, size=(20, 12, 6)))
    assert not any(
        f"lrrnn/{name}_gain" not in metrics for name in ("bits_per_spike", "bits_per_spike_prior", "co_smoothing")
    )
    for what in ("trials the fit predicts spikes no better", "the rollout of", "from those of the others no better"):
        assert sum(what in line for line in warnings) == 1, warnings


@pytest.mark.parametrize(
    ("error", "sampled", "read", "counted"),
    [
        (0.2, False, False, True),
        (0.3, False, False, False),  # states known as they are, and a field far from how they move
        (0.3, False, True, True),
        (1.2, False, True, False),  # no closer than a field of zero, and the dynamics were not sampled
        (1.2, True, True, True),  # the draws are of the dynamics themselves
    ],
)
def test_no_attractors_are_counted_in_a_field_far_from_the_states(monkeypatch, error, sampled, read, counted):
    monkeypatch.setattr(results, "count_attractors", lambda draws, z: "counted")
    latents = SimpleNamespace(trials=lambda _: SimpleNamespace(samples=lambda: SimpleNamespace(z=torch.zeros(5, 2))))
    inputs = SimpleNamespace(
        latents=latents, fold=SimpleNamespace(train=None), rollouts=False, readings=object() if read else None,
        field=SimpleNamespace(effective=torch.tensor([100.0])) if sampled else None,
    )  # fmt: skip
    of_run = SimpleNamespace(draws=object(), inputs=inputs, _of_field={"dynamics/field_error": error})
    assert results.Results.attractor_counts.func(of_run) == ("counted" if counted else None)
