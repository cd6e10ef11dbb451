"""Networks trained with torch: run as torch runs them, and as equation (1) with filtered inputs."""

import numpy as np
import pytest
import torch
from commands import typed
from rate_networks import make_network, record_filtered

from connector import load_run
from connector.data.readers import read_recording
from connector.data.rnn import load_rnn
from connector.errors import UserError

K, U = 20, 2


def of_torch(kind=torch.nn.RNN, seed=0, **options):
    torch.manual_seed(seed)
    return kind(U, K, batch_first=True, **options)


def inputs(trials=12, steps=15):
    return torch.randn(trials, steps, U, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_torch_rnn_gives_the_rates_that_torch_gives(tmp_path, activation):
    net, u = of_torch(nonlinearity=activation), inputs()
    torch.save(net.state_dict() | {"externalinputs": u}, tmp_path / "net.pt")
    recording = read_recording(tmp_path / "net.pt", activation=activation)
    with torch.no_grad():
        torch.testing.assert_close(recording.activity, net(u)[0], rtol=1e-4, atol=1e-5)
    assert (recording.alpha, recording.n_inputs, recording.kind) == (1.0, U, "rates")


def test_names_in_front_and_files_beside_one_another(tmp_path):
    net, u = of_torch(bias=False), inputs()
    named = {f"model.rnn.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 3, "state": named | {"model.readout.weight": torch.ones(1, K)}}, tmp_path / "net.pt")
    np.savez(tmp_path / "trials.npz", externalinputs=u.numpy())
    recording = load_rnn([tmp_path / "net.pt", tmp_path / "trials.npz"])
    with torch.no_grad():
        torch.testing.assert_close(recording.activity, net(u)[0], rtol=1e-4, atol=1e-5)
    assert "keys not used: epoch" in recording.notes
    assert recording.trained.outputs.shape == (12, 15, 1)


def test_weights_of_a_network_that_filters_its_inputs(tmp_path):
    net = make_network(k=K, n_inputs=U, has_bias=True)
    known = record_filtered(net, trials=12)
    # At rest the potentials of the file's network are 0, those of the known one d: a trial of d = 0 is the same from there.
    weights = {"W": net.connectivity.numpy(), "B": net.b.numpy(), "alpha": 0.1, "externalinputs": known.inputs.numpy()}
    np.savez(tmp_path / "net.npz", **weights)
    still = record_filtered(type(net)(net.m, net.n, net.b, None, net.alpha), trials=12)
    recording = load_rnn(tmp_path / "net.npz")
    torch.testing.assert_close(recording.activity, still.activity, rtol=0, atol=1e-6)
    assert not any("other rates" in note for note in recording.notes)
    assert recording.trained.noiseless
    np.savez(tmp_path / "net.npz", **weights, d=net.d.numpy(), rates=known.activity.numpy())
    recording = load_rnn(tmp_path / "net.npz")
    torch.testing.assert_close(recording.activity, known.activity)
    assert any("other rates" in note for note in recording.notes)  # they did not start from rest
    assert not recording.trained.noiseless


def test_rates_of_the_weights_hold_no_noise_unless_it_was_added(tmp_path):
    net, u = of_torch(), inputs()
    with torch.no_grad():
        rates = net(u)[0]
    for noise, noiseless in ((0.0, True), (0.01, False)):
        torch.save(
            net.state_dict() | {"externalinputs": u, "rates": rates + noise * torch.randn(rates.shape)},
            tmp_path / "net.pt",
        )
        assert load_rnn(tmp_path / "net.pt").trained.noiseless == noiseless


def test_what_a_low_rank_misses_of_a_network_without_noise_is_not_taken_for_noise(tmp_path):
    net = make_network(k=40, n_inputs=1)
    generator = torch.Generator().manual_seed(4)
    w = net.connectivity + 0.5 * torch.randn(40, 40, generator=generator) / 40**0.5
    u = 2.0 * (torch.rand(60, 30, 1, generator=generator) < 0.2)
    torch.save({"W": w, "B": net.b, "alpha": 0.2, "externalinputs": u}, tmp_path / "net.pt")
    done = typed(
        "data=rnn", f"data.path={tmp_path / 'net.pt'}", "lrrnn.rank=2", "stages=[lrrnn]", "report=false", "trainer.threads=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hold no noise" in done.stdout + done.stderr
    assert load_run(tmp_path / "run").stage_inputs.rollouts


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (lambda: of_torch(torch.nn.GRU).state_dict() | {"externalinputs": inputs()}, "torch.nn.GRU"),
        (lambda: of_torch(torch.nn.LSTM).state_dict() | {"externalinputs": inputs()}, "torch.nn.LSTM"),
        (lambda: of_torch(num_layers=2).state_dict() | {"externalinputs": inputs()}, "one layer"),
        (lambda: of_torch(bidirectional=True).state_dict() | {"externalinputs": inputs()}, "run forward"),
        (lambda: of_torch().state_dict(), "data.path=[NET,TRIALS]"),
        (lambda: of_torch().state_dict() | {"externalinputs": inputs()[..., :1]}, f"(trials, time, {U})"),
        (lambda: of_torch().state_dict() | {"rates": torch.rand(12, 15, K + 1)}, f"{K} neurons"),
        (lambda: {"weights": torch.ones(3, 3)}, "weights (3, 3)"),
        (lambda: {"W": torch.ones(3, 4), "B": torch.ones(3, 1)}, "(3, 4)"),
        (lambda: {"W": torch.eye(3), "B": torch.ones(1, 3)}, "transposed"),
        (lambda: {"W": torch.eye(3), "B": torch.ones(3, 1), "externalinputs": torch.ones(9, 5, 1)}, "data.alpha"),
        (lambda: {"W": torch.eye(3) * torch.nan, "B": torch.ones(3, 1)}, "finite"),
        (lambda: of_torch(), "state dict"),
    ],
)  # fmt: skip
def test_what_is_no_such_network_is_refused_in_two_lines(tmp_path, saved, words):
    torch.save(saved(), tmp_path / "net.pt")
    with pytest.raises(UserError) as refused:
        load_rnn(tmp_path / "net.pt")
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 2


def test_a_network_of_low_rank_is_found_whole_from_the_command_line(tmp_path):
    net = make_network(k=40, n_inputs=1)
    u = 2.0 * (torch.rand(40, 30, 1, generator=torch.Generator().manual_seed(3)) < 0.2)
    torch.save({"W": net.connectivity, "B": net.b, "alpha": 0.2, "externalinputs": u}, tmp_path / "net.pt")
    done = typed(
        "data=rnn", f"data.path={tmp_path / 'net.pt'}", "stages=[lrrnn]", "report=false", "trainer.threads=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_run(tmp_path / "run")
    assert run.latents.input_kind == "filtered"
    assert run.metrics["lrrnn/rollout_r2"] > 0.999


@pytest.mark.parametrize("names", [("O", "c"), ("readout.weight", "readout.bias"), ("net.fc.weight", "net.fc.bias")])
def test_the_readout_gives_the_networks_outputs(tmp_path, names):
    net, u = of_torch(), inputs()
    weights, offset = torch.randn(3, K), torch.randn(3)
    torch.save(net.state_dict() | {"externalinputs": u} | dict(zip(names, (weights, offset))), tmp_path / "net.pt")
    recording = load_rnn(tmp_path / "net.pt")
    trained = recording.trained
    torch.testing.assert_close(trained.outputs, recording.activity @ weights.T + offset, rtol=1e-4, atol=1e-5)
    assert trained.targets is None
    assert not recording.notes[1:]


def test_targets_that_are_not_told_are_not_scored(tmp_path):
    saved = of_torch().state_dict() | {"externalinputs": inputs(), "O": torch.ones(1, K)}
    targets = torch.ones(12, 15, 1)
    targets[0, 0], targets[1] = torch.nan, 0.5
    mask = torch.ones(12, 15, 1)
    mask[1] = 0
    torch.save(saved | {"targets": targets, "score_mask": mask}, tmp_path / "net.pt")
    trained = load_rnn(tmp_path / "net.pt").trained
    assert trained.scored.sum() == 12 * 15 - 1 - 15
    assert torch.isfinite(trained.targets).all()
    torch.save(saved | {"targets": targets[:, :5]}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="of the outputs' shape"):
        load_rnn(tmp_path / "net.pt")
    del saved["O"]
    torch.save(saved | {"targets": targets}, tmp_path / "net.pt")
    assert any("no readout" in note for note in load_rnn(tmp_path / "net.pt").notes)


def test_the_inputs_that_trials_end_in_are_looked_at(tmp_path):
    u = inputs(40)
    u[:30, -1], u[30:, -1] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    torch.save(of_torch().state_dict() | {"externalinputs": u}, tmp_path / "net.pt")
    assert load_rnn(tmp_path / "net.pt").trained.held.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    torch.save(of_torch().state_dict() | {"externalinputs": inputs(40)}, tmp_path / "net.pt")  # all of them different
    assert load_rnn(tmp_path / "net.pt").trained.held.tolist() == [[0.0, 0.0]]


def test_a_network_that_runs_away_and_a_readout_that_does_not_fit_are_refused(tmp_path):
    saved = {"W": 50 * torch.eye(3), "B": torch.ones(3, 1), "alpha": 0.9, "externalinputs": torch.ones(6, 300, 1)}
    torch.save(saved, tmp_path / "net.pt")
    with pytest.raises(UserError, match="stay finite"):
        load_rnn(tmp_path / "net.pt", activation="relu")
    torch.save(saved | {"externalinputs": torch.zeros(6, 300, 1)}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="inputs that move the network"):
        load_rnn(tmp_path / "net.pt")
    torch.save(saved | {"O": torch.ones(2, 3), "c": torch.zeros(5)}, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"offset \(5,\)"):
        load_rnn(tmp_path / "net.pt")
