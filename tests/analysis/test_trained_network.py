"""A trained network beside its fit: the part of W that acts, stable points, and the task, where the answer is known."""

from dataclasses import replace

import pytest
import torch

from connector import figures
from connector.analysis.trained_network import (
    BesideNetwork,
    acting_part,
    outputs_of,
    stable_points,
    task_measures,
    task_score,
)
from connector.data.folds import Fold
from connector.dynamics import Network
from connector.lrrnn.handover import FittedDynamics
from connector.types import Latents, Recording, TrainedNetwork

K = 60


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bistable(trials=40, steps=60):
    """A rank-1 network with stable points at plus and minus one size, recorded, with an output and targets: its state's sign."""
    m = 1 + 0.5 * normal(K, 1)
    net = Network(m, 2.5 * m, b=0.3 * normal(K, 1, seed=1), alpha=0.2)
    u = torch.zeros(trials, steps, 1, dtype=torch.float64)
    u[:, :3] = normal(trials, 1, 1, seed=2)
    z = net.simulate(torch.linspace(-1, 1, trials, dtype=torch.float64)[:, None], steps, u)
    rates = net.rates(z, u)
    readout = torch.linalg.lstsq(rates.reshape(-1, K), z.reshape(-1, 1)).solution
    trained = TrainedNetwork(
        w=net.connectivity,
        b=net.b,
        d=torch.zeros(K, dtype=torch.float64),
        neurons=torch.arange(K),
        held=torch.zeros(1, 1, dtype=torch.float64),
        visited=rates.reshape(-1, K)[::20],
        outputs=rates @ readout,
        targets=z[:, -1:].sign().expand(-1, steps, 1),
        scored=(torch.arange(steps) > steps - 10)[None, :, None].expand(trials, steps, 1),
    )
    lengths = torch.full((trials,), steps)
    recording = Recording(rates.float(), "rates", lengths, 0.2, "tanh", inputs=u.float(), trained=trained)
    parts = [torch.arange(i, trials, 4) for i in range(3)]
    fit = FittedDynamics(Latents.of(recording, z), net.loadings, Fold(*parts), "tanh", n=net.n)
    return net, recording, fit


def test_what_acts_is_told_from_what_is_spare():
    basis = torch.linalg.qr(normal(K, K)).Q
    visited, spare = basis[:, :3], basis[:, 3:]
    rates = 1.0 + normal(400, 3, seed=1) @ visited.T
    acting = normal(K, 2, seed=2) @ normal(2, 3, seed=3) @ visited.T
    for size in (0.0, 2.0):
        w = acting + size * normal(K, K - 3, seed=4) @ spare.T
        found = acting_part(w, rates)
        assert found.dimensions == 2
        assert found.directions <= 3
        expected = float(acting.square().sum() / w.square().sum())
        assert found.weights == pytest.approx(expected, rel=0.02)


def test_the_order_of_neurons_and_the_unit_of_rates_change_nothing_of_what_acts():
    w, rates, order = normal(K, K), torch.tanh(normal(300, 4, seed=1) @ normal(4, K, seed=2)), torch.randperm(K)
    one, other = acting_part(w, rates), acting_part(w[:, order] / 7, 7 * rates[:, order])
    assert (one.dimensions, one.directions) == (other.dimensions, other.directions)
    assert one.weights == pytest.approx(other.weights)


def test_a_network_of_the_fits_own_rank_has_the_fits_stable_points():
    _, recording, fit = bistable()
    (found,) = stable_points(recording, fit)
    assert len(found.network) == len(found.fitted) == 2
    assert float(found.matched.max()) < 1e-4
    # The fit of twice the drive has two as well, elsewhere.
    off = replace(fit, n=2 * fit.n)
    (found,) = stable_points(recording, off)
    assert len(found.fitted) == 2
    assert float(found.matched.max()) > 0.05
    metrics = BesideNetwork(recording, fit).measures()
    assert metrics["lrrnn/trained_stable_points"] == metrics["lrrnn/trained_stable_points_of_fit"] == 2
    assert metrics["lrrnn/trained_acting_dimensions"] == 1


def test_the_network_itself_does_its_task_and_one_without_recurrence_does_not():
    net, recording, fit = bistable()
    found = task_measures(outputs_of(net, recording.trained, fit), recording, fit)
    assert found["dynamics/task_r2"] == pytest.approx(1, abs=1e-3)
    assert found["dynamics/task"] == found["dynamics/task_trained"] == 1
    found = task_measures(outputs_of(replace(net, n=0 * net.n), recording.trained, fit), recording, fit)
    assert found["dynamics/task_r2"] < 0.5
    # Beside it the fit, which here is the network.
    assert found["dynamics/task_fit_r2"] == pytest.approx(1, abs=1e-3)
    assert found["dynamics/task_fit"] == 1


def test_neurons_that_are_left_out_leave_points_and_outputs():
    _, recording, fit = bistable()
    some = torch.arange(0, K, 2)
    part = recording.neurons(some)
    assert torch.equal(part.trained.neurons, some)
    fewer = replace(fit, loadings=fit.loadings.map(lambda x: x[some]), n=fit.n[some])
    (found,) = stable_points(part, fewer)
    assert len(found.network) == 2
    assert found.network.shape[1] == len(some)
    index = torch.tensor([5, 3])
    assert torch.equal(recording.trials(index).trained.targets, recording.trained.targets[index])


def test_scores_of_two_valued_and_of_other_targets():
    targets = torch.tensor([[[0.0], [1.0], [1.0], [0.0]]])
    outputs, scored = torch.tensor([[[0.4], [0.6], [0.4], [9.0]]]), torch.tensor([[[True], [True], [True], [False]]])
    assert task_score(outputs, targets, scored) == pytest.approx(2 / 3)
    targets = torch.tensor([[[1.0], [2.0], [-2.0]]])
    assert task_score(0.5 * targets, targets, torch.ones_like(targets).bool()) == pytest.approx(0.75)


def test_the_figure_shows_both_networks():
    net, recording, fit = bistable()
    part = acting_part(recording.trained.w, recording.activity.reshape(-1, K))
    points = [(of.network, of.fitted) for of in stable_points(recording, fit)]
    sampled = outputs_of(net, recording.trained, fit)[0]
    outputs = (recording.trained.outputs[int(fit.fold.test[0])], sampled, None)
    figure = figures.trained_network((part.drive, part.matrix), 1, recording.activity[0], points, outputs, step=0.2)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Which part of W acts",
        "Stable points",
        "Outputs, a held-out trial",
    ]
    assert len(figure.axes[2].lines) == 2
