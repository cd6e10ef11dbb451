"""Simulated recordings against equation (1), the documented statistics of spikes and noise, and their options."""

import math

import pytest
import torch

from connector.data.attractors import teacher
from connector.data.simulation import SimulationOptions, grid_of_states, simulate_recording
from connector.errors import UserError
from connector.types import Latents


def test_recording_obeys_equation_one():
    recording, network = simulate_recording(teacher("bistable"), n_neurons=80, n_grid=4, n_steps=30, seed=1)
    z = recording.latents
    assert recording.activity.shape == (16, 30, 80)
    assert torch.equal(z[:, 0], grid_of_states(4, 2.4))
    assert torch.allclose(z[:, 1:], network.step(z[:, :-1]), atol=1e-12)
    states, _, drive = Latents(z, recording.lengths, recording.alpha).samples()
    assert torch.allclose(drive, network.drive(states), atol=1e-10)
    weak = (z @ recording.loadings.m.T).abs() < 2
    assert torch.allclose(torch.atanh(recording.activity)[weak], (z @ network.m.T).float()[weak], atol=1e-4)


def test_a_fraction_of_the_neurons_is_recorded():
    options = {"n_neurons": 100, "n_grid": 2, "n_steps": 5, "seed": 4}
    everything, network = simulate_recording(teacher("ring"), **options)
    part, same = simulate_recording(teacher("ring"), recorded_fraction=0.3, **options)
    assert torch.equal(network.m, same.m)
    assert part.n_neurons == 30
    assert same.n_neurons == 100
    place = [int((network.m == row).all(1).nonzero()) for row in part.loadings.m]
    assert len(set(place)) == 30
    assert max(place) >= 60  # not simply the first ones
    assert torch.equal(part.activity, everything.activity[:, :, place])
    assert torch.equal(part.n, network.n[place])


def test_stride_keeps_every_sth_sample_and_scales_alpha():
    options = {"n_neurons": 50, "n_grid": 2, "n_steps": 40, "seed": 4}
    fine, _ = simulate_recording(teacher("limit_cycle"), **options)
    coarse, _ = simulate_recording(teacher("limit_cycle"), stride=4, **options)
    assert torch.equal(coarse.latents, fine.latents[:, ::4])
    assert torch.equal(coarse.activity, fine.activity[:, ::4])
    assert coarse.alpha == pytest.approx(0.4)
    assert any("alpha 0.1" in note for note in coarse.notes)
    assert simulate_recording(teacher("ring"), n_neurons=9, n_grid=1, n_steps=40, stride=20)[0].alpha == 1.0


def test_spikes_have_the_documented_intensity():
    recording, network = simulate_recording(
        teacher("ring"),
        n_neurons=200,
        n_grid=8,
        n_steps=40,
        observation="spikes",
        rate_scale_hz=20.0,
        rate_offset=0.5,
        bin_s=0.02,
        stride=2,
        seed=2,
    )
    assert recording.activation == network.activation == "tanh"
    assert recording.bin_s == 0.04
    z, _ = simulate_recording(teacher("ring"), n_neurons=200, n_grid=8, n_steps=40, seed=2)
    expected = 0.02 * 20 * torch.nn.functional.softplus(z.latents @ network.m.T + 0.5)
    expected = expected[:, ::2] + expected[:, 1::2]
    counts = recording.activity.double()
    assert torch.equal(counts, counts.round())
    standardised = (counts - expected) / expected.sqrt()
    assert abs(float(standardised.mean())) < 5 / math.sqrt(counts.numel())
    assert float(standardised.square().mean()) == pytest.approx(1, abs=0.03)  # Poisson: variance = mean
    assert float(counts.sum((0, 1)).div(expected.sum((0, 1))).sub(1).abs().max()) < 0.2  # each neuron its own


def test_noise_has_the_size_asked_for():
    options = {"n_neurons": 60, "n_grid": 10, "n_steps": 20, "seed": 3}
    clean, network = simulate_recording(teacher("bistable"), **options)
    noisy, _ = simulate_recording(teacher("bistable"), observation_noise_std=0.3, **options)
    assert float((noisy.activity - clean.activity).std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(noisy.latents, clean.latents)
    restless, _ = simulate_recording(teacher("bistable"), noise_std=0.05, **options)
    kicks = restless.latents[:, 1:] - network.step(restless.latents[:, :-1])
    assert float(kicks.std()) == pytest.approx(0.05, rel=0.04)


def test_a_recording_is_a_function_of_its_seed():
    options = {"n_neurons": 20, "n_grid": 2, "n_steps": 5, "observation": "spikes"}
    first, _ = simulate_recording(teacher("quadstable"), seed=1, **options)
    torch.randn(3)  # the global random state plays no part
    again, _ = simulate_recording(teacher("quadstable"), seed=1, **options)
    other, _ = simulate_recording(teacher("quadstable"), seed=2, **options)
    assert torch.equal(first.activity, again.activity)
    assert not torch.equal(first.loadings.m, other.loadings.m)


def test_rates_beyond_counting_are_refused_before_anything_is_simulated_from_them():
    with pytest.raises(UserError, match="spikes of a neuron in a bin"):
        simulate_recording(
            teacher("quadstable"), n_neurons=20, n_grid=4, n_steps=12, observation="spikes", rate_scale_hz=1e300
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda: simulate_recording(teacher("ring"), observation="volts"),
        lambda: simulate_recording(teacher("ring"), recorded_fraction=0.0),
        lambda: simulate_recording(teacher("ring"), stride=80),
        lambda: simulate_recording(teacher("ring"), observation="spikes", observation_noise_std=0.1),
    ],
)
def test_mistakes_are_named(call):
    with pytest.raises(UserError):
        call()


def test_options_are_given_as_an_instance_as_keywords_or_both():
    small = {"n_neurons": 20, "n_grid": 2, "n_steps": 5}
    one, _ = simulate_recording(teacher("ring"), SimulationOptions(**small, process_noise=0.1))
    same, _ = simulate_recording(teacher("ring"), noise_std=0.1, **small)
    other, _ = simulate_recording(teacher("ring"), SimulationOptions(**small), process_noise=0.1, seed=1)
    assert torch.equal(one.activity, same.activity)
    assert not torch.equal(one.activity, other.activity)
    with pytest.raises(TypeError, match="n_neuron"):
        simulate_recording(teacher("ring"), n_neuron=3)
