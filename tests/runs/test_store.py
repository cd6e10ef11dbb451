"""What is written to a run directory comes back as it was, whole or not at all."""

import json

import numpy as np
import pytest
import torch

from connector.data.folds import Fold
from connector.dynamics import Network
from connector.errors import UserError
from connector.files import atomic, read_npz, write_npz
from connector.lrrnn.handover import FittedDynamics
from connector.runs.saved import load_run
from connector.runs.store import DONE, RUNNING, RunStore, fingerprint, load_network, write_network
from connector.types import Latents, Loadings


def test_a_write_that_fails_leaves_the_earlier_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail():
        with atomic(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_equal_content_gives_equal_bytes_and_loads_without_pickle(tmp_path):
    arrays = {"a": np.arange(5.0), "word": "tanh", "absent": None, "tensor": torch.ones(2, 0)}
    write_npz(tmp_path / "one.npz", arrays)
    write_npz(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = read_npz(tmp_path / "one.npz")
    assert set(back) == {"a", "word", "tensor"}
    assert str(back["word"]) == "tanh"
    assert back["tensor"].shape == (2, 0)


def test_fingerprints_depend_on_values_and_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2.0, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint("x", "y") != fingerprint("xy")


@pytest.mark.parametrize("with_inputs", [False, True])
def test_the_hand_over_between_stages_comes_back(tmp_path, with_inputs):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, 2, generator=generator, dtype=torch.float64)
    inputs = FittedDynamics(
        latents=Latents(
            z,
            torch.full((6,), 5),
            0.1,
            inputs=torch.randn(6, 5, 3, generator=generator) if with_inputs else None,
            drive=2 * z if with_inputs else None,
        ),
        loadings=Loadings(
            torch.randn(7, 2, generator=generator),
            torch.randn(7, 3, generator=generator) if with_inputs else None,
            torch.randn(7, generator=generator) if with_inputs else None,
        ),
        fold=Fold(torch.arange(4), torch.tensor([4]), torch.tensor([5])),
        activation="softplus" if with_inputs else "tanh",
    )
    store = RunStore(tmp_path)
    store.write_stage_inputs(inputs)
    back = store.read_stage_inputs()
    assert torch.equal(back.latents.z, inputs.latents.z)
    assert (back.latents.inputs is None) == (not with_inputs)
    assert torch.equal(back.loadings.stack(), inputs.loadings.stack())
    assert back.loadings.has_bias == with_inputs
    assert back.activation == inputs.activation
    assert torch.equal(back.fold.test, inputs.fold.test)


def test_a_stage_is_current_only_with_its_fingerprint_and_its_files(tmp_path):
    store = RunStore(tmp_path)
    file = tmp_path / "result"
    store.finish_stage("loadings", "abc", 1.0, {"loadings/val_loss": 0.5})
    assert not store.is_current("loadings", "abc", [file])
    file.write_text("")
    assert store.is_current("loadings", "abc", [file])
    assert not store.is_current("loadings", "abd", [file])
    store.forget_stage("loadings")
    assert not store.is_current("loadings", "abc", [file])


def test_networks_come_back_without_their_empty_parts(tmp_path):
    net = Network(torch.randn(4, 2), torch.randn(4, 2), alpha=0.2, activation="relu")
    write_network(tmp_path / "network.npz", net, sigma=0.5)
    arrays = read_npz(tmp_path / "network.npz")
    assert arrays["b"].shape == (4, 0)
    assert arrays["d"].shape == (4,)
    back = load_network(tmp_path / "network.npz")
    assert back.b is None
    assert back.d is None
    assert (back.alpha, back.activation) == (0.2, "relu")
    assert torch.equal(back.m, net.m)


def test_metrics_that_are_not_finite_are_left_out(tmp_path):
    store = RunStore(tmp_path)
    store.write_metrics({"a/b": 1.5, "a/c": float("nan"), "a/d": float("inf")})
    assert (tmp_path / "metrics.json").read_text() == '{\n  "a/b": 1.5\n}\n'


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="without it"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="got an empty one"):
        load_run("")


def _finished(path):
    """A run directory as far as the lrrnn stage, and its network."""
    store = RunStore(path)
    z, m, n = torch.randn(5, 6, 2).double(), torch.randn(7, 2).double(), torch.randn(7, 2).double()
    fold = Fold(torch.arange(3), torch.tensor([3]), torch.tensor([4]))
    store.write_stage_inputs(FittedDynamics(Latents(z, torch.full((5,), 6), 0.1), Loadings(m), fold, "tanh", n=n))
    store.write_metrics({"a": 1.0})
    (path / "config.yaml").write_text("seed: 1\n")
    write_network(path / "network.npz", Network(m, n), 0.0)
    return load_run(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latents": np.full((5, 6, 2), np.nan)}, "finite"),
        ({"latents": np.zeros((5, 6))}, "latents.npz"),
        ({"lengths": np.full(5, 7)}, "lengths"),
        ({"train": np.array([0, 5])}, "fold"),
        ({"m": np.zeros((7, 3))}, "shape"),
        ({"alpha": np.float64(2)}, "alpha"),
        ({"activation": np.array("cube")}, "activation"),
        ({"latents": np.array([[1, "x"]], dtype=object)}, "object array"),
    ],
)
def test_a_hand_over_that_does_not_fit_is_refused(tmp_path, changes, words):
    run = _finished(tmp_path)
    assert run.latents.rank == 2
    np.savez(tmp_path / "latents.npz", **(read_npz(tmp_path / "latents.npz") | changes))
    with pytest.raises(UserError, match=words):
        load_run(tmp_path).latents  # noqa: B018


@pytest.mark.parametrize(
    "changes",
    [
        {"m": np.full((7, 2), np.inf)}, {"n": np.ones((7, 2), dtype=complex)}, {"alpha": np.float64(3)},
        {"d": np.ones((7, 1))}, {"b": np.ones(7)}, {"activation": np.array("cube")}, {"m": np.array(["x"])},
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_one_is_refused(tmp_path, changes):
    _finished(tmp_path)
    np.savez(tmp_path / "network.npz", **(read_npz(tmp_path / "network.npz") | changes))
    with pytest.raises(UserError):
        load_network(tmp_path / "network.npz")


def test_damaged_options_metrics_and_stages_of_a_run_are_refused(tmp_path):
    _finished(tmp_path)
    for name, text, read in (
        ("metrics.json", "{", lambda run: run.metrics),
        ("metrics.json", '{"a": []}', lambda run: run.metrics),
        ("stages.json", "[1]", lambda run: run.store.stages()),
        ("config.yaml", "a: [", lambda run: run.config),
        ("config.yaml", "- a", lambda run: run.config),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            read(load_run(tmp_path))
        (tmp_path / "config.yaml").write_text("seed: 1\n")


def test_a_file_that_is_not_as_its_stage_wrote_it_is_never_read(tmp_path):
    run = _finished(tmp_path)
    store, network = run.store, tmp_path / "network.npz"
    store.finish_stage("lrrnn", "abc", 1.0, {}, files=[store.latents_file, store.path / "absent.npz"])
    store.finish_stage("results", "def", 0.0, {}, files=[network])
    assert store.stages()["lrrnn"]["files"].keys() == {"latents.npz"}
    assert store.is_current("lrrnn", "abc", [store.latents_file])
    assert load_run(tmp_path).latents.rank == 2
    for file, read in ((store.latents_file, lambda run: run.latents), (network, lambda run: run.network)):
        whole = file.read_bytes()
        np.savez(file, **read_npz(file))  # the same arrays: what is compared is the file
        with pytest.raises(UserError, match=f"{file.name}.*as the stage"):
            read(load_run(tmp_path))
        file.write_bytes(whole)
        read(load_run(tmp_path))
    store.latents_file.write_bytes(b"")
    assert not store.is_current("lrrnn", "abc", [store.latents_file])
    assert store.damaged("lrrnn", [store.latents_file]) == [store.latents_file]


def test_a_stage_made_from_what_is_no_longer_there_is_not_current(tmp_path):
    store = _finished(tmp_path).store
    store.loadings_flow_file.parent.mkdir()
    store.loadings_flow_file.write_text("a flow")
    store.finish_stage("lrrnn", "abc", 1.0, {}, files=[store.latents_file])
    store.finish_stage("loadings", "def", 1.0, {}, files=[store.loadings_flow_file], made_from=[store.latents_file])
    assert store.is_current("loadings", "def", [store.loadings_flow_file])
    np.savez(store.latents_file, **read_npz(store.latents_file))  # trained anew, and no longer the same
    store.finish_stage("lrrnn", "abc", 1.0, {}, files=[store.latents_file])
    assert store.is_current("lrrnn", "abc", [store.latents_file])
    assert not store.is_current("loadings", "def", [store.loadings_flow_file])


def test_the_manifest_tells_with_what_each_stage_was_made(tmp_path):
    store = RunStore(tmp_path)
    store.note_invocation({"command": "a"})
    store.finish_stage("lrrnn", "abc", 1.0, {})
    store.note_invocation({"command": "a"})
    store.note_invocation({"command": "b"})
    store.finish_stage("loadings", "def", 1.0, {})
    found = store.manifest()
    assert found["invocations"] == [{"command": "a"}, {"command": "b"}]
    assert [found["stages"][stage]["invocation"] for stage in ("lrrnn", "loadings")] == [0, 1]


def test_the_manifest_tells_how_the_last_job_ended(tmp_path):
    store = RunStore(tmp_path)
    store.note_state(RUNNING)
    store.finish_stage("lrrnn", "abc", 1.0, {})
    assert store.manifest()["state"] == RUNNING  # and stays so if it is killed here
    store.finish_stage("results", "def", 1.0, {})
    assert store.manifest()["state"] == DONE
    store.forget_stage("lrrnn")  # to train it anew
    assert store.manifest()["state"] == RUNNING
    store.note_state("failed (1): no space")
    assert RunStore(tmp_path).manifest()["state"] == "failed (1): no space"


def test_a_manifest_of_a_later_format_is_refused_and_records_of_earlier_versions_are_read(tmp_path):
    store = RunStore(tmp_path)
    record = {"fingerprint": "abc", "seconds": 1.0, "metrics": {}}
    (tmp_path / "stages.json").write_text(json.dumps({"lrrnn": record}))
    (tmp_path / "latents.npz").write_text("")
    assert store.is_current("lrrnn", "abc", [store.latents_file])
    store.finish_stage("loadings", "def", 1.0, {})
    assert store.stages().keys() == {"lrrnn", "loadings"}
    assert not (tmp_path / "stages.json").exists()
    (tmp_path / "manifest.json").write_text(json.dumps(store.manifest() | {"format": 99}))
    with pytest.raises(UserError, match="got format 99"):
        store.stages()
    for damaged in (
        "{",
        '{"stages": []}',
        '{"stages": {"lrrnn": 1}}',
        '{"format": "1"}',
        '{"invocations": {}}',
        '{"state": 1}',
    ):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json"):
            store.stages()
