"""Scripts that read runs over folds: what is pooled equals what all trials together give, by hand."""

import importlib
import json
import os
import shlex
from functools import cache

import numpy as np
import pytest
import torch
from commands import ROOT
from commands import typed as command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sessions import QUICK, session

from connector import figures
from connector.analysis.spike_scores import (
    ResponseSums,
    SpikeScores,
    auc,
    bits_per_spike,
    choice_conditions,
    poisson_log_likelihood,
    psth_r2,
    psth_r2_of_sums,
    sign_conditions,
)
from connector.data.folds import fold
from connector.lrrnn.spikes.baselines import fit_baseline
from connector.report.glossary import METRICS
from connector.runs.naming import register_resolvers
from connector.runs.store import RunStore
from connector.stages.responses import write_responses
from connector.types import Recording

N_FOLDS, N_TRIALS = 4, 50
BITS, LOSS = "lrrnn/bits_per_spike", "lrrnn/val_loss"


pytestmark = pytest.mark.usefixtures("experiments_importable")


def script(name):
    return importlib.import_module(name)


def ran(name, *arguments):
    """Exit code of a script."""
    return script("saved_runs").finish(script(name).main, list(map(str, arguments)))


@cache
def configuration(*overrides):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", [*overrides, "experiment_name=rat"])
    return OmegaConf.to_container(composed, resolve=True)


def write_run(path, overrides, metrics):
    """A finished run as far as the scripts read it."""
    store = RunStore(path)
    path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(configuration(*overrides)), path / "config.yaml")
    store.finish_stage("lrrnn", "mark", 12.0, {}, 9.0)
    store.write_metrics(metrics)
    return store


@pytest.fixture(scope="module")
def recording():
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(N_TRIALS, generator=generator)
    evidence[3] = 0.0
    lengths = torch.randint(12, 21, (N_TRIALS,), generator=generator)
    rate = (
        0.3
        + 0.2 * torch.rand(3, generator=generator) * evidence.sign()[:, None, None] * torch.linspace(0, 1, 20)[:, None]
    )
    counts = torch.poisson(rate, generator=generator) * (torch.arange(20) < lengths[:, None])[..., None]
    choices = (evidence + 0.5 * torch.randn(N_TRIALS, generator=generator) > 0).float()
    choices[7] = torch.nan
    return Recording(
        activity=counts, kind="spikes", lengths=lengths, alpha=0.1, activation="softplus", bin_s=0.02, evidence=evidence,
        choices=choices, click_difference=evidence.round(), trial_times_s=torch.arange(N_TRIALS) * 5.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def predictions(recording):
    """Made-up expected counts and log odds of each trial, as if some model had predicted them: suffix -> both."""
    generator = torch.Generator().manual_seed(1)

    def made_up():
        return (
            0.2 + 0.3 * torch.rand(recording.activity.shape, generator=generator),
            torch.randn(N_TRIALS, generator=generator, dtype=torch.float64),
        )

    return {"": made_up(), "_standard": made_up()}


BY_HAND = ["experiment=rat", "data.path=x.mat", f"data.n_folds={N_FOLDS}"]


@pytest.fixture(scope="module")
def runs(recording, predictions, tmp_path_factory):
    """Runs of all folds; their bits per spike are those of the made-up expected counts."""
    directory = tmp_path_factory.mktemp("sweep")
    for k in range(1, N_FOLDS + 1):
        part = fold(N_TRIALS, k, N_FOLDS)
        baseline = fit_baseline(recording, part.train, "local")
        metrics = {"lrrnn/val_loss": 1.0}
        for suffix, (expected, _) in predictions.items():
            metrics[BITS + suffix] = bits_of(recording, expected, part)
        store = write_run(directory / f"fold{k}", [*BY_HAND, f"data.fold={k}"], metrics)
        scores = {s: SpikeScores({}, e[part.test], odds[part.test]) for s, (e, odds) in predictions.items()}
        nulls = {suffix: {"drift_evidence_psth": 2 * e.double()} for suffix, (e, _) in predictions.items()}
        write_responses(store, recording, part, baseline, scores, nulls)
    return directory


def gain_of(recording, expected, part):
    """Log-likelihood gain over the mean rates of the fold's training trials, in bits; spikes of its test trials."""
    counts, mask = recording.activity[part.test], recording.mask[part.test]
    mean = fit_baseline(recording, part.train, "constant").null_counts
    gain = (
        poisson_log_likelihood(expected[part.test], counts, mask) - poisson_log_likelihood(mean, counts, mask)
    ).sum()
    return float(gain) / np.log(2), float((counts * mask[..., None]).sum())


def bits_of(recording, expected, part):
    counts, mask = recording.activity[part.test], recording.mask[part.test]
    mean = fit_baseline(recording, part.train, "constant").null_counts
    return bits_per_spike(poisson_log_likelihood(expected[part.test], counts, mask), counts, mask, mean)


@pytest.fixture(scope="module")
def rows(runs):
    found = script("fold_runs").find_runs([runs], lambda run: True)
    (groups,) = script("fold_runs").grouped(found)
    (group,) = groups.values()
    assert list(group.runs) == [1, 2, 3, 4]
    return {
        (measure, of, baseline): (values, pooled)
        for measure, of, baseline, values, pooled in script("folds").rows_of(group)
    }


@pytest.mark.parametrize(("baseline", "suffix"), [("local", ""), ("standard", "_standard")])
def test_pooled_measures_are_those_of_all_trials_together(rows, recording, predictions, baseline, suffix):
    expected, log_odds = predictions[suffix]
    parts = [fold(N_TRIALS, k, N_FOLDS) for k in range(1, N_FOLDS + 1)]
    values, pooled = rows["bits per spike", "low-rank RNN, marginal", baseline]
    gains, spikes = np.transpose([gain_of(recording, expected, part) for part in parts])
    np.testing.assert_allclose(values, gains / spikes, rtol=1e-6)
    assert pooled == pytest.approx(gains.sum() / spikes.sum())
    assert rows["bits per spike", "mean rate", baseline] == ([0.0] * N_FOLDS, 0.0)
    for name, conditions in (
        ("evidence", sign_conditions(recording.evidence)), ("choice", choice_conditions(recording.choices)),
    ):  # fmt: skip
        for of, guess in (("low-rank RNN, noise-averaged rollout", expected), ("drift × evidence PSTH", 2 * expected)):
            values, pooled = rows[f"PSTH R², {name}", of, baseline]
            means = torch.empty_like(recording.activity)  # of the training trials of the fold that tests a trial
            for part in parts:
                means[part.test] = fit_baseline(recording, part.train, "constant").null_counts
            sums = (ResponseSums.of(x, recording.mask, conditions, 2) for x in (recording.activity, guess, means))
            assert pooled == pytest.approx(psth_r2_of_sums(*sums, smooth_sd_bins=5.0)[0], rel=1e-5)
            test = parts[1].test
            alone = psth_r2(
                recording.activity[test], guess[test], recording.mask[test], conditions[test], means[test][0, 0],
                smooth_sd_bins=5.0,
            )  # fmt: skip
            assert values[1] == pytest.approx(alone[0], rel=1e-5)
    values, pooled = rows["choice AUC", "low-rank RNN, z(T)", baseline]
    assert pooled == auc(log_odds, recording.choices)
    assert values[2] == auc(log_odds[parts[2].test], recording.choices[parts[2].test])


def test_click_difference_and_seconds(rows, recording):
    assert rows["choice AUC", "click difference", ""][1] == auc(recording.click_difference, recording.choices)
    assert rows["seconds", "stage lrrnn, wall clock", ""] == ([12.0] * N_FOLDS, None)
    assert rows["seconds", "stage lrrnn, CPU", ""] == ([9.0] * N_FOLDS, None)


def test_the_table_is_printed(runs, capsys):
    assert ran("folds", runs) == 0
    said = capsys.readouterr().out
    for words in ("x.mat: 50 trials, each a test trial of one of 4 folds", "fold 4", "mean ± sd", "pooled", "marginal"):
        assert words in said
    assert "To make" not in said


def test_missing_folds_end_with_2_and_the_command(runs, tmp_path, capsys):
    for k in (1, 3):
        (tmp_path / f"fold{k}").symlink_to(runs / f"fold{k}")
    assert ran("folds", *tmp_path.iterdir()) == 2
    command = capsys.readouterr().err.splitlines()[-1]
    assert shlex.split(command) == ["python", "train.py", "-m", *BY_HAND, "data.fold=2,4", "stages=[lrrnn]"]
    assert ran("folds", tmp_path / "nowhere") == 2
    assert "python train.py -m data=npz data.path=FILE data.fold=1,2,3,4,5" in capsys.readouterr().err


def test_runs_that_kept_nothing_to_pool_are_made_anew(runs, tmp_path, capsys):
    for k in range(1, N_FOLDS + 1):
        write_run(tmp_path / f"{k}", [*BY_HAND, f"data.fold={k}"], {BITS: 0.1})
        if k != 2:
            (tmp_path / f"{k}" / "responses.npz").write_bytes((runs / f"fold{k}" / "responses.npz").read_bytes())
    assert ran("folds", tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("data.fold=2 'stages=[lrrnn]' force=true")


def test_trials_tested_twice_are_refused(runs, tmp_path, capsys):
    for k in range(1, N_FOLDS + 1):
        write_run(tmp_path / f"{k}", [*BY_HAND, f"data.fold={k}"], {BITS: 0.1})
        (tmp_path / f"{k}" / "responses.npz").write_bytes((runs / "fold1" / "responses.npz").read_bytes())
    assert ran("folds", tmp_path) == 2
    assert "trials tested twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        ["data.path=a.mat", "lrrnn.rank=3", "data.brain_areas=[mPFC,dmFC]", "data.min_rate_hz=1.5", "seed=7"],
        [
            "data.path='/some where/a=b,c.mat'",
            "data.click_adaptation=false",
            "lrrnn.max_epochs=4",
            "lrrnn.baseline=standard",
        ],
        ["data.path=a.mat", "lrrnn=published"],
    ],
)
def test_commands_make_the_same_run_but_for_its_fold(typed, tmp_path):
    write_run(tmp_path / "run", ["experiment=rat", *typed, "data.fold=2"], {BITS: 0.1})
    (run,) = script("fold_runs").find_runs([tmp_path], lambda run: True)
    again = configuration(*script("fold_runs").overrides_of(run), "data.fold=2")
    assert {name: again[name] for name in ("data", "lrrnn", "seed")} == {
        name: run.config[name] for name in ("data", "lrrnn", "seed")
    }
    assert len(script("fold_runs").overrides_of(run)) == len(typed) + 1  # nothing that is the default anyway


def test_the_newer_of_two_runs_of_a_fold_counts_and_other_options_do_not_mix(tmp_path):
    options = ["experiment=rat", "data.path=x.mat", "data.fold=1"]
    for number, (name, more) in enumerate((("a", []), ("b", []), ("c", ["lrrnn.rank=3"]), ("d", ["seed=2"]))):
        write_run(tmp_path / name, [*options, *more, "trainer.threads=1"], {BITS: float(number)})
        file = tmp_path / name / "config.yaml"
        os.utime(file, (1000 + number, 1000 + number))
    found = script("fold_runs").find_runs([tmp_path], lambda run: True)
    alone = [group.runs[1].metrics[BITS] for each in script("fold_runs").grouped(found) for group in each.values()]
    assert sorted(alone) == [1.0, 2.0, 3.0]
    sets = script("fold_runs").grouped(found, ["lrrnn.rank"])
    assert sorted(sorted(each) for each in sets) == [["2"], ["2", "3"]]
    groups = [group for each in script("fold_runs").grouped(found) for group in each.values()]
    assert sorted(script("fold_runs").differing(groups)) == [
        "lrrnn.rank=2, seed=1",
        "lrrnn.rank=2, seed=2",
        "lrrnn.rank=3, seed=1",
    ]


# --- the choice of the rank ----------------------------------------------------------------------------------------


def curve(key, values):
    values = np.array(values)
    return script("rank_selection").Curve(key, tuple(range(1, len(values) + 1)), values)


def test_one_standard_error_rule_by_hand():
    # Means 1, 1.95, 2, 1.99; standard error of the best, rank 3: sd .2 / sqrt(4) = .1, so that rank 2 is near enough.
    spread = np.array([-1, 1, -1, 1]) * 0.1 * np.sqrt(3)
    bits = curve(BITS, [mean + spread for mean in (1, 1.95, 2, 1.99)])
    np.testing.assert_allclose(bits.standard_error, 0.1)
    assert (bits.best, bits.choice) == (2, 2)
    assert bits.threshold == pytest.approx(1.9)
    difference, error = bits.difference()
    np.testing.assert_allclose(difference, [-1, -0.05, 0, -0.01], atol=1e-12)
    np.testing.assert_allclose(error, 0, atol=1e-12)  # the folds differ alike at every rank
    assert curve(BITS, [mean + spread for mean in (1, 1.85, 2, 1.99)]).choice == 3
    loss = curve(LOSS, [mean + spread for mean in (3, 2.05, 2, 2.5)])
    assert (loss.best, loss.choice, loss.threshold) == (2, 2, pytest.approx(2.1))
    assert curve(LOSS, [mean + spread for mean in (3, 2.2, 2, 2.5)]).choice == 3


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Runs of three ranks and three folds, the score highest at rank 3 but hardly above rank 2."""
    directory = tmp_path_factory.mktemp("ranks")
    for rank in (1, 2, 3):
        for k in (1, 2, 3):
            bits = (0.05, 0.0949, 0.095)[rank - 1] + 0.004 * k
            options = ["experiment=rat", "data.path=x.mat", "data.n_folds=3", f"data.fold={k}", f"lrrnn.rank={rank}"]
            write_run(directory / f"{rank},{k}", options, {BITS: bits, f"{BITS}_prior": bits - 0.01, LOSS: 1.0})
    return directory


def test_ranks_are_compared_drawn_and_chosen_as_a_choice(ranks, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)
    assert ran("rank_selection", ranks, "--out", tmp_path / "figures") == 0
    said = capsys.readouterr().out
    assert "One-standard-error choice: rank 2" in said
    assert "convention" in said
    assert "optimistic" in said
    for suffix in ("png", "pdf"):
        assert (tmp_path / "figures" / f"rank_selection.{suffix}").stat().st_size > 4000


def test_missing_ranks_end_with_2_and_the_command(ranks, tmp_path, capsys):
    kept = [path for path in ranks.iterdir() if path.name in ("1,1", "1,2", "2,1", "2,2", "2,3")]
    assert ran("rank_selection", *kept, "--out", tmp_path / "figures") == 2
    command = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert {"data.fold=3", "lrrnn.rank=1", "data.n_folds=3"} <= set(command)
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
def test_other_ranks_of_a_simulation_are_fitted_by_themselves_and_compared_by_validation_loss(
    tmp_path, capsys, no_measures
):
    small = [
        "experiment=quadstable", "data.n_neurons=60", "data.n_grid=5", "data.n_steps=30", "data.observation_noise=0.1",
        "data.n_folds=3", "lrrnn.max_epochs=1", "trainer.threads=1",
    ]  # fmt: skip
    done = command(
        "-m", *small, "lrrnn.rank=1,2", "data.fold=1,2,3", "stages=[lrrnn]", "hydra.sweep.dir=s", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran("rank_selection", tmp_path / "s", "--out", tmp_path / "figures") == 0
    said = capsys.readouterr().out
    assert METRICS[LOSS].label in said
    assert "One-standard-error choice: rank 2" in said  # the teacher's
    refused = command(*small, "lrrnn.rank=1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "stages=[lrrnn]" in refused.stderr
    assert not list((tmp_path / "runs").rglob("lrrnn.csv"))  # said before training, not after


# --- from training to the table ------------------------------------------------------------------------------------


def test_a_sweep_over_folds_gives_the_table_and_every_metric_is_explained(tmp_path, capsys):
    session(tmp_path / "A.mat", 0)
    options = ["experiment=rat", "data.path=A.mat", "data.n_folds=3", "data.fold=1,2,3"]
    done = command("-m", *options, *QUICK, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in (tmp_path / "sweep").glob("*/metrics.json"):
        metrics = json.loads(file.read_text())
        assert set(metrics) <= set(METRICS)
        for null in ("drift_psth", "drift_evidence_psth"):  # drift alone: too few training trials
            assert {f"{BITS}_null_{null}", f"{BITS}_null_{null}_standard"} <= set(metrics)
        assert "lrrnn/co_smoothing" in metrics
    assert ran("folds", tmp_path / "sweep") == 0
    said = capsys.readouterr().out
    assert "40 trials, each a test trial of one of 3 folds" in said
    for words in ("drift × evidence PSTH", "co-smoothing", "z(T)", "click difference", "local", "standard"):
        assert words in said
