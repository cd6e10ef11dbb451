"""Habits of Hydra and Lightning: arguments of the Trainer, callbacks and loggers of one's own, files of one's own."""

import math
import subprocess
import sys

import pytest
import torch
from commands import CONF, ROOT, train, typed
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from connector.errors import UserError
from connector.files import read_json
from connector.launch.command_line import refused_override
from connector.launch.job import run
from connector.runs.naming import register_resolvers
from connector.runs.options import checked
from connector.stages.curves import read_rows

register_resolvers()

TINY = [
    "data.n_neurons=20", "data.n_grid=4", "data.n_steps=20", "lrrnn.max_epochs=3", "lrrnn.batch_size=2",
    "connectivity.loadings_epochs=2", "connectivity.outputs_epochs=2", "connectivity.outputs_loadings=64",
    "connectivity.max_states=100", "connectivity.flow.hidden_width=8", "connectivity.flow.hidden_layers=1",
    "trainer.threads=1", "trainer.progress=false", "report=false",
]  # fmt: skip
OWN = """
from pathlib import Path
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import Logger

class Mine(Callback):
    def __init__(self, file):
        self.file = Path(file)

    def on_train_epoch_end(self, trainer, pl_module):
        with self.file.open("a") as handle:
            handle.write(pl_module.stage + chr(10))

class Log(Logger):
    name, version = "mine", 0

    def __init__(self, file, save_dir=None):
        super().__init__()
        self.file, self.place = Path(file), save_dir
        self.file.write_text(f"save_dir {save_dir}" + chr(10))

    def log_hyperparams(self, params):
        self.write(f"seed {params['seed']}")

    def log_metrics(self, metrics, step=None):
        self.write(" ".join(sorted(metrics)))

    def finalize(self, status):
        self.write(status)

    def write(self, line):
        with self.file.open("a") as handle:
            handle.write(line + chr(10))
"""


@pytest.fixture(autouse=True)
def in_a_directory_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(OWN)
    yield
    sys.modules.pop("mine", None)


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, "experiment_name=test"])


def ran(directory, *overrides, stages="[lrrnn]"):
    config = composed(*TINY, f"stages={stages}", *overrides)
    run(checked(config), config, directory)
    return read_rows(directory / "logs" / "lrrnn.csv")


@pytest.mark.parametrize("spelling", ["+trainer.limit_train_batches=2", "+trainer.extra.limit_train_batches=2"])
def test_batches_are_limited(tmp_path, spelling):
    rows = ran(tmp_path / "run", spelling)
    assert [row["step"] for row in rows] == [2, 4, 6]


def test_fast_dev_run_ends_well_and_keeps_nothing(tmp_path, capsys):
    ran(tmp_path / "run", "+trainer.fast_dev_run=true", stages="auto")
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert "outputs: done" in said
    assert "nothing was kept" in said


def test_a_profile_is_written_beside_the_curves(tmp_path):
    ran(tmp_path / "run", "+trainer.profiler=simple")
    (profile,) = (tmp_path / "run" / "logs").glob("*profile_lrrnn*")
    assert "run_training_epoch" in profile.read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+trainer.limit_train_batch=2", ["trainer.limit_train_batch", "trainer.extra.limit_train_batches"]),
        ("+trainer.extra.foo=1", ["trainer.foo", "arguments of Lightning's Trainer"]),
        ("+trainer.extra.max_epochs=1", ["trainer.max_epochs", "lrrnn.max_epochs", "connectivity.loadings_epochs"]),
        ("+trainer.max_epoch=3", ["trainer.max_epoch", "lrrnn.max_epochs"]),
        ("+trainer.devces=2", ["trainer.devces", "trainer.devices"]),
        ("+trainer.logger=false", ["trainer.logger", "logger=csv"]),
        ("+trainer.limit_train_batches=-2", ["trainer.limit_train_batches=-2"]),
        ("+trainer.profiler._target_=nowhere.Profiler", ["trainer.extra.profiler._target_", "nowhere.Profiler"]),
        ("+callbacks.mine._target_=mine.Nope", ["callbacks.mine._target_", "mine.Nope", "MODULE.CLASS"]),
        ("+callbacks.mine._target_=mine.Mine", ["callbacks.mine", "file"]),
        ("+callbacks.mine._target_=pathlib.Path", ["callback of Lightning", "callbacks.mine", "Path"]),
        (
            "+callbacks.lr._target_=pytorch_lightning.callbacks.LearningRateMonitor",
            ["LearningRateMonitor", "logger=csv"],
        ),
        ("+callbacks.mine=3", ["callbacks.mine._target_=MODULE.CLASS", "3"]),
        ("+trainer.profiler=simpel", ["got trainer.profiler=simpel ("]),
        ("+logger._target_=nowhere.Logger", ["logger._target_", "nowhere.Logger"]),
        ("+logger._target_=mine.Log", ["logger._target_=mine.Log", "file"]),
        ("+logger._target_=pathlib.Path", ["logger of Lightning", "logger._target_"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_right_place(tmp_path, override, words):
    with pytest.raises(UserError) as refused:
        ran(tmp_path / "run", override)
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2
    assert not (tmp_path / "run" / "latents.npz").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_epoch=3", ["trainer.max_epoch", "lrrnn.max_epochs"]),
        ("trainer.limit_train_batches=2", ["+trainer.limit_train_batches=VALUE", "trainer.extra.limit_train_batches"]),
        ("trainer.device=2", ["earest is trainer.devices"]),
    ],
)
def test_an_option_without_its_plus_is_refused_with_the_right_place(override, words):
    with pytest.raises(HydraException) as refused:
        composed(override)
    said = refused_override(refused.value)
    assert all(word in said for word in words), said


def test_callbacks_of_ones_own_watch_all_stages_or_those_that_they_name(tmp_path, no_measures):
    mine = ["+callbacks.mine._target_=mine.Mine", f"+callbacks.mine.file={tmp_path / 'seen'}"]
    ran(tmp_path / "run", *mine, "+callbacks.mine.stages=[lrrnn,outputs]", stages="auto")
    assert (tmp_path / "seen").read_text().split() == ["lrrnn"] * 3 + ["outputs"] * 2


def test_a_callback_may_end_a_training_early_and_the_best_state_is_kept(tmp_path):
    stop = ["+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping", "+callbacks.stop.patience=1"]
    stop += ["+callbacks.stop.monitor=lrrnn/val_loss", "+callbacks.stop.min_delta=1e9", "lrrnn.max_epochs=20"]
    rows = ran(tmp_path / "run", *stop)
    assert len(rows) == 2
    assert (tmp_path / "run" / "checkpoints" / "lrrnn.ckpt").exists()


def test_steps_are_limited_and_the_last_state_is_kept(tmp_path):
    ran(tmp_path / "run", "+trainer.max_steps=3")  # within the first epoch
    kept = torch.load(tmp_path / "run" / "checkpoints" / "lrrnn.ckpt", weights_only=True)
    assert kept["global_step"] == 3


def test_a_training_without_validation_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match="a validation of the stage lrrnn"):
        ran(tmp_path / "run", "+trainer.limit_val_batches=0")


def test_a_logger_of_ones_own_is_given_options_curves_and_results(tmp_path):
    mine = ["+logger._target_=mine.Log", f"+logger.file={tmp_path / 'said'}"]
    ran(tmp_path / "run", *mine)
    said = (tmp_path / "said").read_text().splitlines()
    assert said[:2] == [f"save_dir {tmp_path / 'run'}", "seed 1"]
    assert any("lrrnn/train_loss" in line for line in said)
    assert any("timing/lrrnn_seconds" in line for line in said)
    assert said[-1] == "success"


def test_loggers_of_lightning_in_a_file_of_ones_own(tmp_path):
    (tmp_path / "files" / "logger").mkdir(parents=True)
    text = f"_target_: pytorch_lightning.loggers.CSVLogger\nsave_dir: {tmp_path / 'csv'}\nname: mine\n"
    (tmp_path / "files" / "logger" / "own.yaml").write_text(text)
    ran(tmp_path / "run", f"hydra.searchpath=[file://{tmp_path / 'files'}]", "logger=own")
    metrics = (tmp_path / "csv" / "mine" / "version_0" / "metrics.csv").read_text()
    assert "lrrnn/val_loss" in metrics.splitlines()[0]


EXPERIMENT = """# @package _global_
defaults:
  - override /data: ring
seed: 5
stages: [lrrnn]
report: false
force: true
lrrnn:
  rank: 3
trainer:
  extra:
    limit_train_batches: 2
"""


def test_an_experiment_sets_any_option_and_what_is_typed_wins(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    command = ["--config-dir", str(tmp_path), "--cfg", "job", "experiment=mine"]
    done = typed(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert (config.seed, config.stages, config.report, config.force) == (5, ["lrrnn"], False, True)
    assert (config.data.name, config.lrrnn.rank, config.trainer.extra) == ("ring", 3, {"limit_train_batches": 2})
    command += ["seed=7", "stages=auto", "report=true", "force=false"]
    config = OmegaConf.create(typed(*command, cwd=tmp_path).stdout)
    assert (config.seed, config.stages, config.report, config.force) == (7, "auto", True, False)


def test_an_experiment_without_its_first_line_is_told_so(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 5\n")
    with pytest.raises(UserError, match=r"# @package _global_"):
        checked(composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"))


def test_debug_is_small_and_without_figures():
    options = checked(composed("debug=default"))
    assert (options.report.draw, options.data.n_neurons, options.lrrnn.max_epochs) == (False, 100, 1)
    assert options.trainer.extra == {"detect_anomaly": True}
    assert checked(composed("debug=file", "data=npz", "data.path=x")).lrrnn.max_epochs == 1


def test_the_command_line_takes_open_groups_without_a_plus_and_is_verbose_when_asked(tmp_path):
    mine = ["callbacks.mine._target_=mine.Mine", f"callbacks.mine.file={tmp_path / 'seen'}"]
    mine += ["logger._target_=pytorch_lightning.loggers.CSVLogger"]
    done = train(*TINY, "stages=[lrrnn]", *mine, "trainer.extra.max_steps=2", "hydra.verbose=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen").read_text().split() == ["lrrnn"]
    assert "connector DEBUG fingerprints" in done.stderr
    (made,) = (tmp_path / "runs" / "quadstable").iterdir()
    assert "limit" not in made.name
    assert "max_steps" not in made.name


def test_help_tells_meanings_values_ranges_and_units_without_torch():
    code = "import sys; sys.argv[1:] = ['--help']; from connector.launch.command_line import main; main(); assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for line in (
        "lrrnn.rank = 2",
        "number of latent dimensions R; auto: the smallest that predicts",
        "[from 1 to 20, or auto]",
        "hidden layers [from 1 to 100]",
        "debug=default",
        "data.n_neurons = 1000",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("observation", "precision"), [("spikes", "bf16-mixed"), ("rates", "bf16-mixed"), ("rates", "64-true")]
)
def test_other_precisions_train_all_stages(observation, precision, tmp_path):
    done = typed(
        *TINY,
        f"data.observation={observation}",
        "lrrnn.inference=encoder",
        "lrrnn.posterior_sweeps=0",
        f"trainer.precision={precision}",
        "stages=[lrrnn,loadings,outputs]",
        f"hydra.run.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert math.isfinite(read_json(tmp_path / "metrics.json")["outputs/val_loss"])
