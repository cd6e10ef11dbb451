"""The benchmark: its arithmetic on known numbers, and all of it on the smallest sizes."""

import importlib.util
import json
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from commands import ROOT

SCRIPT = ROOT / "experiments" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module that the processes it starts can import by name, too."""
    name = "benchmark"
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))
    del sys.modules[name]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_of_a_power_law_is_its_exponent(benchmark, power):
    sizes = [1e3, 1e4, 1e5, 1e6]
    assert benchmark.log_slope(sizes, [0.03 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_extrapolation_of_a_stage(benchmark):
    # 5 s outside the epochs; a slow first epoch, then 2 s of training and .5 s of validation each
    training, after = [4.0, 2.0, 2.0, 2.0], [0.9, 0.5, 0.5, 0.5]
    cost = benchmark.stage_cost("lrrnn", 5 + sum(training) + sum(after), training, after, 1000, 40)
    assert (cost.epoch_s, cost.validation_s, cost.epochs, cost.n_epochs) == (2.0, 0.5, 3, 1000)
    assert cost.outside_s == pytest.approx(5.0)
    assert cost.total_s == pytest.approx(5 + 4 + 999 * 2 + 40 * 0.5)


def test_a_stage_that_ran_whole_is_not_extrapolated(benchmark):
    cost = benchmark.stage_cost("outputs", 9.0, [4.0, 2.0], [0.5, 0.5])
    assert (cost.total_s, cost.epochs, cost.n_epochs, cost.warmup) == (9.0, 2, 2, 0)
    assert cost.outside_s == pytest.approx(2.0)


def test_a_stage_in_closed_form_has_no_epochs(benchmark):
    cost = benchmark.stage_cost("lrrnn", 7.0, [], [])
    assert (cost.total_s, cost.epochs, cost.epoch_s, cost.outside_s) == (7.0, 0, 0.0, 7.0)


def test_extrapolation_needs_an_epoch_beside_the_warm_up(benchmark):
    with pytest.raises(ValueError, match="none beside 2"):
        benchmark.stage_cost("lrrnn", 9.0, [4.0, 2.0], [0.5, 0.5], 1000, 40, warmup=2)


def test_epochs_run_are_those_asked_for_and_the_rest_of_the_recipe_is_published(benchmark):
    published = ("experiment=ring", *benchmark.RECIPES["published"])
    whole, few = benchmark.composed(*published), benchmark.composed(*published, *benchmark.few_epochs([3, 10, 30], 1))
    assert benchmark.epochs_of(whole) == {"lrrnn": 1000, "loadings": 1000, "outputs": 1000}
    assert benchmark.epochs_of(few) == {"lrrnn": 4, "loadings": 11, "outputs": 31}
    whole.lrrnn.max_epochs, whole.connectivity.loadings_epochs, whole.connectivity.outputs_epochs = 4, 11, 31
    assert few == whole


def test_the_simulated_latents_follow_the_mean_field_of_nu(benchmark):
    latents, _ = benchmark.simulated(benchmark.Size(500, 1, 3))
    m = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, _, y = latents.samples()
    drive = torch.tanh(z[:50] @ m.T) @ (benchmark.GAIN * m) / len(m)
    # noise of z[t+1] and z[t], over alpha
    assert (drive - y[:50]).square().mean().sqrt() < 3 * benchmark.NOISE / benchmark.ALPHA


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_the_published_recipe_runs_whole_and_is_measured(benchmark):
    extra = ["data.n_neurons=100", "data.n_grid=6", "data.n_steps=40", "connectivity.outputs_loadings=200"]
    cost = benchmark.run_recipe("quadstable", "published", [*extra, *benchmark.few_epochs([1, 2, 2], 0)], None, 0, 1)
    assert not cost.extrapolated
    assert cost.metrics["connectivity/dissimilarity"] > 0
    assert "connectivity/predicted_error" not in cost.metrics  # ridge has no posterior


def test_peak_memory_sees_an_array(benchmark):
    def work():
        return np.ones(40_000_000).sum()  # 0.3 GiB

    result, cost = benchmark.cost_of(work)
    assert result == 4e7
    assert cost.peak_gib - cost.before_gib > 0.2
    assert cost.cpu_s > 0


@pytest.mark.slow
def test_a_process_gives_its_result_and_its_end_is_noticed(benchmark):
    assert benchmark.in_own_process(os.path.basename, "a/b") == "b"
    with pytest.raises(MemoryError):
        benchmark.in_own_process(os.abort)


@pytest.fixture
def in_this_process(benchmark, monkeypatch):
    """Without the seconds that every fresh process takes to load its libraries."""
    monkeypatch.setattr(benchmark, "in_own_process", lambda function, *arguments, fresh=False: function(*arguments))
    short = benchmark.composed("connectivity.early_stopping=false", "connectivity.loadings_epochs=5")
    monkeypatch.setattr(benchmark, "defaults", lambda: short)
    monkeypatch.setattr("connector.stages.results.N_NETWORKS", 1)
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_main_on_the_smallest_sizes(benchmark, tmp_path, capsys):
    out = tmp_path / "benchmark.json"
    tiny = ["data.n_neurons=100", "data.n_grid=6", "data.n_steps=40", "connectivity.early_stopping=false"]
    tiny += ["connectivity.outputs_loadings=200", "connectivity.flow.hidden_width=8"]
    sizes = ["--states", "1000", "2000", "--neurons", "100", "--ranks", "--rates-states", "1000"]
    sizes += ["--rates-neurons", "50", "--epochs", "1", "2", "2", "--out", str(out)]
    few = ["connectivity.loadings_epochs=5"]  # the published recipe's few epochs override them
    page = tmp_path / "page.md"
    page.write_text(
        "Above.\n<!-- recipes -->\nold\n<!-- end of recipes -->\n<!-- growth -->\n<!-- end of growth -->\nBelow.\n"
    )
    assert benchmark.main([*sizes, "--page", str(page), "--overrides", *tiny, *few]) == 0
    written = page.read_text()
    assert written.startswith("Above.\n")
    assert written.endswith("\nBelow.\n")
    assert "old" not in written
    assert written.count(benchmark.machine_line(benchmark.machine(1))) == 2
    assert (
        written.index("Recipes: error and cost")
        < written.index("<!-- growth -->")
        < written.index("Growth: CPU seconds")
    )
    found = json.loads(out.read_text())
    assert [recipe["recipe"] for recipe in found["recipes"]] == ["default", "published"]
    own, published = found["recipes"]
    assert not own["extrapolated"]
    assert published["extrapolated"]
    assert own["metrics"]["connectivity/dissimilarity"] > 0
    assert own["metrics"]["dynamics/field_error"] > 0
    assert published["metrics"] == {}
    assert [stage["epochs"] for stage in published["stages"]] == [1, 2, 2]
    assert all(stage["total_s"] > 0 for recipe in found["recipes"] for stage in recipe["stages"])
    assert {growth["work"] for growth in found["growth"]} == set(benchmark.WORK)
    assert all(cost["peak_gib"] > 0 for growth in found["growth"] for cost in growth["costs"])
    assert found["growth"][0]["slope"] is not None
    text = out.with_suffix(".md").read_text()
    assert "extrapolated from 1, 2, 2 epochs" in text
    assert "released checkpoints of the authors" in text
    assert "times the CPU seconds" in capsys.readouterr().out


def test_a_page_keeps_all_but_its_marked_parts(experiments_importable, tmp_path):
    from marked_pages import rewrite

    from connector.errors import UserError

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n<!-- y -->\nkept\n<!-- end of y -->\n")
    rewrite(page, "x", "new")
    rewrite(page, "x", "newer")
    assert page.read_text() == "a\n<!-- x -->\n\nnewer\n\n<!-- end of x -->\nb\n<!-- y -->\nkept\n<!-- end of y -->\n"
    with pytest.raises(UserError, match="end of z"):
        rewrite(page, "z", "new")


def test_the_page_of_benchmarks_has_the_parts_that_are_rewritten():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for part in ("recipes", "growth"):
        assert text.count(f"<!-- {part} -->") == text.count(f"<!-- end of {part} -->") == 1
    assert "--page docs/benchmarks.md" in (ROOT / "Makefile").read_text()


def test_the_target_is_what_every_device_reached(experiments_importable):
    from throughput import Throughput, set_targets, table

    slow = Throughput("flow of n", "cpu", 100, 50.0, 25.0, [(10.0, 2.0), (20.0, 1.005), (30.0, 1.0)])
    fast = Throughput("flow of n", "gpu", 100, 5.0, 5.0, [(1.0, 1.02), (2.0, 0.9)])
    unwatched = Throughput("low-rank RNN, rates", "cpu", 10, 1.0, 1.0, [])
    set_targets([slow, fast, unwatched])
    assert (slow.to_target_s, fast.to_target_s, unwatched.to_target_s) == (20.0, 2.0, None)
    assert "| flow of n | cpu | 100 | 2 | 4 | 20 |" in table([slow, fast, unwatched])


@pytest.mark.slow
def test_all_of_the_throughput_is_measured_with_small_sizes(experiments_importable, tmp_path, capsys):
    import throughput

    small = ["data.n_neurons=60", "data.n_grid=5", "data.n_steps=30", "connectivity.loadings_epochs=6"]
    small += ["connectivity.outputs_epochs=6", "connectivity.outputs_loadings=100", "connectivity.early_stopping=false"]
    cases = ["--cases", "flow of the loadings", "flow of n"]
    out = tmp_path / "throughput.json"
    assert (
        throughput.main(["--all", "--fits", "5", *cases, "--devices", "cpu", "--out", str(out), "--overrides", *small])
        == 0
    )
    found = json.loads(out.read_text())
    assert [(one["case"], one["device"]) for one in found["measured"]] == [
        ("flow of the loadings", "cpu"), ("flow of n", "cpu"), ("flow of the loadings", "ddp"),
    ]  # fmt: skip
    assert all(one["steps"] > 0 for one in found["measured"])
    assert [(one["stage"], one["fits"], one["epochs"]) for one in found["together"]] == [
        ("loadings", 5, 6),
        ("outputs", 5, 6),
    ]
    assert "| flows of loadings | " in capsys.readouterr().out


def test_copies_of_a_flow_start_elsewhere_and_share_their_data(experiments_importable):
    from types import SimpleNamespace

    from throughput import copies

    from connector.data.modules import TensorDataModule
    from connector.stages.flows import FlowJob, FlowModule

    rows = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    module = FlowModule("loadings", {"dim": 2, "hidden_width": 8, "hidden_layers": 1})
    job = FlowJob(
        "loadings", SimpleNamespace(), "", module, TensorDataModule((rows,), (rows,), 10, 0), 3, "last", lambda: None
    )
    one, other = copies(job, 2)
    assert (one.module.seed, other.module.seed) == (one.data.seed, other.data.seed) == (1, 2)
    assert one.data.train[0] is other.data.train[0]
    weights = [next(x.module.flow.velocity.parameters()) for x in (one, other)]
    assert not torch.equal(*weights)
    assert torch.equal(*(x.flatten().sort().values for x in weights))
