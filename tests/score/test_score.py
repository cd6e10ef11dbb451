"""`connector score`: a teacher's own network has the best scores, linear dynamics and other coordinates are read right, mistakes
are told in two lines."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from connector.__main__ import main as connector_main
from connector.data.folds import fold
from connector.dynamics import Network
from connector.files import read_npz, write_npz
from connector.lrrnn.gauge import Gauge
from connector.runs.store import write_network
from connector.score import main
from connector.score.models import LinearModel, NetworkModel, first_states, read_result, simulated
from connector.score.results import MEANINGS, N_FIRST, model_of, scores
from connector.score.sets import PublicSet, named_set, read_set, settling_of, write_set


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def bistable():
    return named_set("bistable")


@pytest.fixture(scope="module")
def driven():
    """A network of 30 neurons with inputs that it filters, on 20 trials of random inputs; two stable points without input."""
    m = normal(30, 2)
    n = 30 * m @ torch.linalg.inv(m.T @ m) * torch.tensor([1.8, 0.4], dtype=torch.float64)
    network = Network(m, n, 0.5 * normal(30, 1, seed=1), None, 0.2, "tanh")
    model = NetworkModel(network, network.loadings, "filtered")
    u = normal(20, 40, 1, seed=2)
    taken = model.taken(u)
    z = simulated(model, normal(20, 2, seed=3), taken, 40)
    rates, parts = model.rates(z, taken).float(), fold(20)
    held = (torch.zeros(1, dtype=torch.float64),)
    truth = model.settling(held[0], z.flatten(0, 1)[::20])
    return model, z, PublicSet("driven", rates, u.float(), parts, 0.2, "tanh", z.float(), held, (truth,))


def test_the_network_that_made_the_rates_has_perfect_scores(driven):
    model, _, public = driven
    found = scores(model, public)
    assert found["rate_r2"].value == pytest.approx(1, abs=1e-6)
    assert found["state_r2"].value == pytest.approx(1, abs=1e-6)
    assert found["cycle_consistency"].value > 0.98
    assert found["attractors_found"].value == public.settling[0].number == 2
    assert found["attractors_false"].value == 0
    assert found["time_scale_error"].value == pytest.approx(0, abs=1e-6)
    for key in ("rate_r2", "state_r2", "cycle_consistency"):
        assert found[key].null < 0.7 < found[key].value
    assert found["attractors_found"].null < 2


def test_first_states_are_those_that_made_the_samples(driven):
    model, z, public = driven
    own = first_states(model, public.rates[:, :N_FIRST], model.taken(public.inputs))
    assert torch.allclose(own, z[:, 0], atol=1e-4)


def test_a_teachers_network_scores_on_its_set_and_shuffled_output_weights_do_not(bistable):
    found = scores(NetworkModel(bistable.network.double(), bistable.loadings), bistable)
    assert set(found) == set(MEANINGS) - {"coverage"}
    assert found["field_error"].value == 0 < 1 < found["field_error"].null
    # n is one draw about nu: their squared difference has the mean 4 - (1.2^2 + .8^2 + 1.6^2) / 2
    assert found["dissimilarity"].value == pytest.approx(1.68, abs=0.15)
    assert found["dissimilarity"].value < found["dissimilarity"].null / 3
    assert (found["attractors_found"].value, found["attractors_false"].value) == (2, 0)


def test_coverage_is_that_of_the_intervals_in_the_file(bistable):
    network = bistable.network.double()
    nu = bistable.teacher.conditional_mean(network.loadings)
    low, high = nu - 0.5, nu + 0.5
    low[:250] += 1  # the first quarter misses
    model = NetworkModel(network, bistable.loadings)
    assert scores(model, bistable, (low, high))["coverage"].value == pytest.approx(0.75)


def test_a_result_in_other_coordinates_is_brought_back_by_its_latents(bistable, tmp_path):
    turned = Gauge(torch.tensor([[0.0, 2.0], [-1.0, 0.5]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    network = turned.network(bistable.network.double())
    arrays = {"m": network.m, "n": network.n, "latents": turned.latents(bistable.states), "set": "bistable"}
    write_npz(tmp_path / "turned.npz", arrays)
    model, how = model_of(read_result(tmp_path / "turned.npz"), bistable)
    assert "least squares" in how
    assert torch.allclose(model.network.m, bistable.network.m, atol=1e-6)
    assert torch.allclose(model.readout.m, bistable.loadings.m, atol=1e-2)  # read from the rates


def test_a_linear_map_is_scored_and_its_point_is_found(tmp_path):
    a = torch.tensor([[0.9, 0.1], [0.0, 0.8]], dtype=torch.float64)
    model = LinearModel(a, None, torch.tensor([0.1, 0.2], dtype=torch.float64), normal(6, 2), normal(6, seed=1), 0.1)
    z = simulated(model, 3 * normal(20, 2, seed=2), None, 30)
    rates = model.rates(z, None)
    nothing = torch.zeros(0, dtype=torch.float64)
    truth = model.settling(nothing, z[:, 0])
    assert truth.points[0] == pytest.approx((torch.linalg.inv(torch.eye(2) - a) @ model.c) @ model.readout.T + model.e)
    assert float(truth.slowest) == pytest.approx(-0.1 / np.log(0.9))
    public = PublicSet("linear", rates.float(), None, fold(20), 0.1, "tanh", z, (nothing,), (truth,))
    found = scores(model, public)
    assert found["rate_r2"].value == pytest.approx(1, abs=1e-6)
    assert (found["attractors_found"].value, found["attractors_false"].value) == (1, 0)
    write_set(tmp_path / "linear.npz", public)
    write_npz(tmp_path / "model.npz", {"A": a, "c": model.c, "C": model.readout, "e": model.e, "alpha": 0.1})
    again = read_set(tmp_path / "linear.npz")
    of_file = scores(model_of(read_result(tmp_path / "model.npz"), again)[0], again)
    assert {key: one.value for key, one in of_file.items()} == pytest.approx(
        {key: one.value for key, one in found.items()}, abs=1e-6
    )


def test_dynamics_that_grow_have_no_attractor():
    model = LinearModel(
        1.1 * torch.eye(2).double(), None, torch.zeros(2).double(), normal(5, 2), torch.zeros(5).double(), 0.1
    )
    assert model.settling(torch.zeros(0).double(), torch.zeros(3, 2)).number == 0


def test_settling_of_a_field_finds_its_points():
    found = settling_of(
        lambda z: z - z**3, torch.linspace(-2, 2, 40).double()[:, None, None], lambda z: z.repeat(1, 3), 0.1
    )
    assert found.points[:, 0].sort().values == pytest.approx(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert found.slowest == pytest.approx(torch.full((2,), -0.1 / np.log(0.8), dtype=torch.float64))


def test_a_ring_is_told_from_where_trials_end():
    """Of a field that leads every state to the unit circle: states along the trials lie everywhere, their ends on a ring."""

    def field(z):
        return z * (1 - z.norm(dim=1, keepdim=True))

    z, path = 0.05 * normal(60, 2, seed=5), []
    for _ in range(80):
        path.append(z)
        z = z + 0.1 * field(z)
    found = settling_of(field, torch.stack(path, 1), lambda x: x, 0.1)
    assert found.kind == "ring"
    assert found.orbit.norm(dim=1) == pytest.approx(torch.ones(len(found.orbit), dtype=torch.float64), abs=0.02)


def test_the_command_prints_every_measure_and_writes_them(bistable, tmp_path, capsys, monkeypatch):
    write_network(tmp_path / "network.npz", bistable.network, 0.0)
    monkeypatch.setattr(
        "sys.argv",
        ["connector", "score", str(tmp_path / "network.npz"), "--on", "bistable", "--out", str(tmp_path / "x.json")],
    )
    assert connector_main() == 0
    said = capsys.readouterr().out
    assert all(title in said for title, _, _ in MEANINGS.values())
    assert "true loadings" in said
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["scores"]["field_error"]["value"] == 0


def refused(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) <= 2
    return said


def test_mistakes_are_told_in_two_lines(driven, tmp_path, capsys):
    model, _, public = driven
    write_set(tmp_path / "driven.npz", public)
    network = model.network
    arrays = {"m": network.m, "n": network.n, "b": network.b, "alpha": 0.2, "input_kind": "filtered"}
    write_npz(tmp_path / "good.npz", arrays)
    write_npz(tmp_path / "no_n.npz", {"m": network.m})
    write_npz(tmp_path / "other.npz", {"m": network.m[:7], "n": network.n[:7]})
    write_npz(tmp_path / "bent.npz", arrays | {"MBD": network.m[:, :1]})
    write_npz(tmp_path / "nan.npz", arrays | {"n": network.n * float("nan")})
    on = ("--on", tmp_path / "driven.npz")
    assert main([str(tmp_path / "good.npz"), *map(str, on)]) == 0
    assert "no n" in refused(capsys, tmp_path / "no_n.npz", *on)
    assert "--on" in refused(capsys, tmp_path / "good.npz")
    assert "'nowhere'" in refused(capsys, tmp_path / "good.npz", "--on", "nowhere")
    assert "MBD" in refused(capsys, tmp_path / "other.npz", *on)
    assert "MBD (30, 3 or 4)" in refused(capsys, tmp_path / "bent.npz", *on)
    assert "finite" in refused(capsys, tmp_path / "nan.npz", *on)
    assert "public set" in refused(capsys, tmp_path / "good.npz", "--on", tmp_path / "good.npz")
    assert "input_kind" in refused(capsys, _with(tmp_path, arrays, input_kind="twice"), *on)
    assert refused(capsys, tmp_path / "absent.npz", *on)


def _with(directory, arrays, **changes):
    write_npz(directory / "changed.npz", arrays | changes)
    return directory / "changed.npz"


def test_a_set_is_written_and_read_whole(driven, tmp_path):
    _, _, public = driven
    write_set(tmp_path / "driven.npz", public)
    again = read_set(tmp_path / "driven.npz")
    assert torch.equal(again.rates, public.rates)
    assert torch.equal(again.fold.test, public.fold.test)
    assert torch.equal(again.settling[0].points, public.settling[0].points)
    assert {"rates", "externalinputs"} <= set(read_npz(tmp_path / "driven.npz"))  # what data=npz reads
    ring = replace(public.settling[0], orbit=public.rates[0].double(), period=3.0)
    write_set(tmp_path / "orbit.npz", replace(public, settling=(ring,)))
    assert read_set(tmp_path / "orbit.npz").settling[0].period == 3.0
