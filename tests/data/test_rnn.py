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


@pytest.mark.parametrize("kind", ["torch", "filters"])
def test_rates_may_be_stored_before_or_after_their_inputs_act(tmp_path, kind):
    """The step r, u -> r written out here; the order in which a torch.nn.RNN stores rates is not that of other networks."""
    draw, u, alpha = torch.Generator().manual_seed(3), inputs(), 1.0 if kind == "torch" else 0.3
    w, b, d = (torch.randn(*shape, generator=draw) / 4 for shape in ((K, K), (K, U), (K,)))
    h, before, after = torch.zeros(len(u), K), [], []
    for t in range(u.shape[1]):
        before.append(torch.tanh(h))
        h = (1 - alpha) * h + alpha * (torch.tanh(h) @ w.T + u[:, t] @ b.T + d)
        after.append(torch.tanh(h))
    names = ("weight_hh_l0", "weight_ih_l0", "bias_ih_l0") if kind == "torch" else ("W", "B", "d")
    for rates, order in ((before, "before"), (after, "after")):
        file = tmp_path / f"{order}.pt"
        more = {} if kind == "torch" else {"alpha": alpha}
        torch.save(dict(zip(names, (w, b, d))) | {"externalinputs": u, "rates": torch.stack(rates, 1)} | more, file)
        recording = load_rnn(file)
        assert recording.trained.noiseless
        usual = order == ("after" if kind == "torch" else "before")
        said = [note for note in recording.notes if "stored" in note]
        assert len(said) == (not usual)
        assert all(order in note for note in said)
        assert not any("other rates" in note for note in recording.notes)


def test_zeros_past_a_trials_end_are_no_noise(tmp_path):
    net, u, lengths = of_torch(), inputs(), torch.arange(12) % 5 + 10
    past = torch.arange(15) >= lengths[:, None]
    with torch.no_grad():
        rates = net(u)[0]
    rates[past], u[past] = 0.0, 0.0
    torch.save(net.state_dict() | {"externalinputs": u, "rates": rates, "lengths": lengths}, tmp_path / "net.pt")
    assert load_rnn(tmp_path / "net.pt").trained.noiseless


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


def _of_rows():
    """W as r @ W has it, beside the rates of that network."""
    net, u = of_torch(), inputs()
    saved = net.state_dict()
    with torch.no_grad():
        return saved | {"externalinputs": u, "rates": net(u)[0], "weight_hh_l0": saved["weight_hh_l0"].T.contiguous()}


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (lambda: of_torch(torch.nn.GRU).state_dict() | {"externalinputs": inputs()}, "torch.nn.GRU"),
        (lambda: of_torch(torch.nn.LSTM).state_dict() | {"externalinputs": inputs()}, "torch.nn.LSTM"),
        (lambda: of_torch(torch.nn.LSTM, proj_size=5).state_dict() | {"externalinputs": inputs()}, "torch.nn.LSTM"),
        (lambda: of_torch(torch.nn.GRU).state_dict() | {"externalinputs": inputs()}, "numpy.savez(FILE, rates=r"),
        (lambda: {"h2h.weight": torch.eye(3), "i2h.weight": torch.ones(3, 1)}, "Save {'W': W"),
        (lambda: of_torch(num_layers=2).state_dict() | {"externalinputs": inputs()}, "one layer"),
        (lambda: of_torch(bidirectional=True).state_dict() | {"externalinputs": inputs()}, "run forward"),
        (lambda: of_torch().state_dict(), "data.path=[NET,TRIALS]"),
        (lambda: of_torch().state_dict() | {"externalinputs": inputs()[..., :1]}, f"(trials, time, {U})"),
        (lambda: of_torch().state_dict() | {"rates": torch.rand(12, 15, K + 1)}, f"{K} neurons"),
        (lambda: {"weights": torch.ones(3, 3)}, "weights (3, 3)"),
        (lambda: {"W": torch.ones(3, 4), "B": torch.ones(3, 1)}, "(3, 4)"),
        (lambda: {"W": torch.eye(3), "B": torch.ones(1, 3)}, "Give W and B transposed if the network is r @ W"),
        (lambda: _of_rows(), "Give W.T"),
        (lambda: {"W": torch.eye(3), "B": torch.ones(3, 1), "externalinputs": torch.ones(9, 5, 1)}, "data.alpha"),
        (lambda: {"W": torch.eye(3) * torch.nan, "B": torch.ones(3, 1)}, "finite"),
        (lambda: of_torch(), "torch.nn.modules.rnn.RNN and would have to be unpickled"),
        (lambda: of_torch().state_dict() | {"externalinputs": inputs().numpy()}, "torch.from_numpy(u)"),
        (lambda: of_torch().state_dict() | {"externalinputs": inputs(), "nonlinearity": "gelu"}, "'gelu'"),
        (lambda: of_torch().state_dict() | {"externalinputs": inputs(), "h0": torch.ones(12, K)}, f"{K} finite numbers"),
        (lambda: of_torch().state_dict() | {"externalinputs": [inputs()]}, "(12, 15, 2)"),
        (lambda: of_torch().state_dict() | {"externalinputs": inputs(), "O": "none"}, "readout O"),
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
    recording = load_rnn(tmp_path / "net.pt", activation="tanh")
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


def test_the_nonlinearity_named_in_the_file_is_used_and_an_option_wins(tmp_path):
    net, u = of_torch(nonlinearity="relu"), inputs()
    saved = net.state_dict() | {"externalinputs": u, "config": {"nonlinearity": "relu", "task": "flip-flop"}}
    torch.save(saved, tmp_path / "net.pt")
    recording = load_rnn(tmp_path / "net.pt")
    with torch.no_grad():
        torch.testing.assert_close(recording.activity, net(u)[0], rtol=1e-4, atol=1e-5)
    assert recording.activation == "relu"
    assert recording.notes[0] == "keys not used: config.task"
    assert not any("assumed" in note for note in recording.notes)
    recording = load_rnn(tmp_path / "net.pt", activation="tanh")
    assert recording.activation == "tanh"
    assert recording.notes[0] == "keys not used: config.nonlinearity, config.task"


def test_tanh_is_said_to_be_assumed_unless_the_rates_bear_it_out(tmp_path):
    net, u = of_torch(), inputs()
    with torch.no_grad():
        rates = net(u)[0]
    for more, assumed in (({}, True), ({"rates": rates}, False), ({"rates": rates.flip(0)}, True)):
        torch.save(net.state_dict() | {"externalinputs": u} | more, tmp_path / "net.pt")
        notes = load_rnn(tmp_path / "net.pt").notes
        assert any("tanh assumed" in note for note in notes) == assumed
    assert any("axes in another order" in note for note in notes)
    torch.save(net.state_dict() | {"rates": rates}, tmp_path / "net.pt")
    assert any("tanh assumed" in note for note in load_rnn(tmp_path / "net.pt").notes)


@pytest.mark.parametrize("trials", [12, 80])
def test_time_before_trials_is_refused_where_the_rates_show_it(tmp_path, trials):
    net, u = of_torch(), inputs(trials)
    with torch.no_grad():
        rates = net(u)[0]
    torch.save(net.state_dict() | {"externalinputs": u, "rates": rates}, tmp_path / "net.pt")
    assert load_rnn(tmp_path / "net.pt").n_trials == trials
    exchanged = {"externalinputs": u.transpose(0, 1), "rates": rates.transpose(0, 1)}
    torch.save(net.state_dict() | exchanged, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"got \(time, trials, U\)"):
        load_rnn(tmp_path / "net.pt")


@pytest.mark.parametrize(("key", "shape"), [("h0", (K,)), ("model.h_0", (1, 1, K))])
def test_a_torch_rnn_starts_from_the_initial_state_of_the_file(tmp_path, key, shape):
    net, u, h0 = of_torch(), inputs(), torch.linspace(-1, 1, K)
    torch.save(net.state_dict() | {"externalinputs": u, key: h0.reshape(shape)}, tmp_path / "net.pt")
    recording = load_rnn(tmp_path / "net.pt")
    with torch.no_grad():
        torch.testing.assert_close(recording.activity, net(u, h0.expand(1, 12, K))[0], rtol=1e-4, atol=1e-5)
    assert f"from {key.removeprefix('model.')} of the file" in recording.notes[0]


def test_a_network_that_filters_its_inputs_starts_from_the_initial_state_of_the_file(tmp_path):
    net = make_network(k=K, n_inputs=U, has_bias=True)
    known = record_filtered(net, trials=12)  # its potentials start from d
    weights = {"W": net.connectivity.numpy(), "B": net.b.numpy(), "d": net.d.numpy(), "h0": net.d.numpy(), "alpha": 0.1}
    np.savez(tmp_path / "net.npz", **weights, externalinputs=known.inputs.numpy())
    recording = load_rnn(tmp_path / "net.npz")
    torch.testing.assert_close(recording.activity, known.activity, rtol=0, atol=1e-6)


def test_a_damaged_file_is_not_said_to_hold_objects(tmp_path):
    torch.save(of_torch().state_dict() | {"externalinputs": inputs()}, tmp_path / "net.pt")
    content = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"))
    with pytest.raises(UserError, match=r"that is whole.*cannot be read"):
        load_rnn(tmp_path / "net.pt")


def test_a_list_of_trials_is_one_array_with_their_lengths(tmp_path):
    net, u = of_torch(), inputs()
    with torch.no_grad():
        rates = net(u)[0]
    lengths = [15 - i % 3 for i in range(12)]
    for ends, more in (([15] * 12, {}), (lengths, {}), ([15] * 12, {"lengths": lengths})):
        trials = [x[:end] for x, end in zip(u, ends, strict=True)]
        torch.save(net.state_dict() | more | {"externalinputs": trials}, tmp_path / "net.pt")
        recording = load_rnn(tmp_path / "net.pt")
        assert recording.lengths.tolist() == more.get("lengths", ends)
        torch.testing.assert_close(recording.activity[recording.mask], rates[recording.mask], rtol=1e-4, atol=1e-5)
        assert torch.equal(recording.inputs[recording.mask], u[recording.mask])
    given = {key: [x[:end] for x, end in zip(of, lengths)] for key, of in (("externalinputs", u), ("rates", rates))}
    torch.save(net.state_dict() | given, tmp_path / "net.pt")
    recording = load_rnn(tmp_path / "net.pt")
    assert recording.lengths.tolist() == lengths
    assert recording.trained.noiseless


def test_two_layers_that_could_be_the_readout_are_named(tmp_path):
    layers = {
        f"{name}.{key}": x for name in ("policy", "value") for key, x in torch.nn.Linear(K, 2).state_dict().items()
    }
    torch.save(of_torch().state_dict() | {"externalinputs": inputs()} | layers, tmp_path / "net.pt")
    recording = load_rnn(tmp_path / "net.pt")
    assert "the readout is ambiguous: policy.weight, value.weight" in recording.notes[0]
    assert recording.trained.outputs is None


@pytest.mark.parametrize("prefix", ["", "cell."])
def test_a_torch_rnn_cell_is_read_like_a_torch_rnn(tmp_path, prefix):
    torch.manual_seed(0)
    cell, u = torch.nn.RNNCell(U, K), inputs()
    saved = {f"{prefix}{key}": x for key, x in cell.state_dict().items()}
    torch.save(saved | {"externalinputs": u}, tmp_path / "net.pt")
    recording, h = load_rnn(tmp_path / "net.pt"), torch.zeros(12, K)
    with torch.no_grad():
        for t in range(15):
            h = cell(u[:, t], h)
            torch.testing.assert_close(recording.activity[:, t], h, rtol=1e-4, atol=1e-5)
    assert not any("not used" in note for note in recording.notes)
