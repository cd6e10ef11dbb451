"""Comparing runs without an account: what is found, grouped and averaged, and the page in a browser."""

import csv
import html.parser
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import time
import urllib.parse
from pathlib import Path

import pytest
from commands import ROOT
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from connector.compare import main
from connector.compare.command import sentences
from connector.compare.page import thinned, with_half
from connector.compare.runs import find_runs, read_run
from connector.compare.settings import about, compare
from connector.errors import UserError, end_state
from connector.report.glossary import METRICS
from connector.runs.naming import register_resolvers
from connector.runs.store import DONE, RUNNING, RunStore

D, FIELD = "connectivity/dissimilarity", "dynamics/field_error"
T_2 = 4.302652729749464  # 97.5 % quantile of Student's t with 2 degrees of freedom, from a table
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


_composed = {}


def configured(*overrides):
    """config.yaml as a run with these options writes it."""
    if overrides not in _composed:
        register_resolvers()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = hydra_compose("train", overrides=[*overrides, "experiment_name=test"])
        _composed[overrides] = OmegaConf.to_container(config)
    return json.loads(json.dumps(_composed[overrides]))


def written(directory, metrics, overrides=(), log=("INFO outputs: done in 1.0 s",), curves=None, **options):
    """A run directory with the files that a finished run has; ``options`` as group__key=value set over the config."""
    directory.mkdir(parents=True)
    config = configured(*overrides)
    for key, value in options.items():
        *groups, name = key.split("__")
        part = config
        for group in groups:
            part = part[group]
        assert name in part, key
        part[name] = value
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    lines = [f"2026-11-24 10:00:00,000 {line}" if line.split()[0] in ("INFO", "ERROR") else line for line in log]
    (directory / "train.log").write_text("\n".join(lines) + "\n")
    if metrics is not None:
        (directory / "metrics.json").write_text(json.dumps(metrics))
        (directory / "report.html").write_text("<!DOCTYPE html><title>report</title>")
    for stage, rows in (curves or {}).items():
        (directory / "logs").mkdir(exist_ok=True)
        with (directory / "logs" / f"{stage}.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerows([("epoch", "step", f"{stage}/val_loss"), *((e, e, v) for e, v in rows)])
    return directory


def table_of(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def sweep(tmp_path):
    """Two ranks by three seeds; the larger rank is the better one, the means are round."""
    values = {2: (0.2, 0.3, 0.4), 3: (0.1, 0.1, 0.4)}
    for rank, of_rank in values.items():
        for seed, value in enumerate(of_rank, 1):
            metrics = {
                D: value,
                FIELD: value / 2,
                "dynamics/attractors_kept": float(rank == 2),
                "timing/lrrnn_seconds": 3.0,
            }
            written(tmp_path / "sweep" / f"rank={rank},seed={seed}", metrics, lrrnn__rank=rank, seed=seed)
    return tmp_path / "sweep"


# --- numbers --------------------------------------------------------------------------------------------------------


def test_means_and_intervals_over_seeds_in_table_and_csv(sweep, tmp_path, capsys):
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    rows = table_of(tmp_path / "out" / "comparison.csv")
    assert [row["lrrnn.rank"] for row in rows] == ["3", "2"]  # best first
    assert [row["runs"] for row in rows] == ["3", "3"]
    for row, values in zip(rows, ((0.1, 0.1, 0.4), (0.2, 0.3, 0.4))):
        mean = sum(values) / 3
        sd = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert float(row[D]) == pytest.approx(mean)
        assert float(row[f"{D} low"]) == pytest.approx(mean - T_2 * sd / 3**0.5)
        assert float(row[f"{D} high"]) == pytest.approx(mean + T_2 * sd / 3**0.5)
        assert row[f"{D} runs"] == "3"
    assert "seed" not in rows[0]
    assert re.search(r"^1 │ 3 +│ +3 │ +0.20 ± 0.43 ", said, re.MULTILINE)
    assert re.search(r"^2 │ 2 +│ +3 │ +0.30 ± 0.25 ", said, re.MULTILINE)
    assert "95 % t interval" in said
    assert METRICS[D].label in said
    runs = table_of(tmp_path / "out" / "comparison_runs.csv")
    assert sorted((row["lrrnn.rank"], row["seed"], float(row[D])) for row in runs)[:2] == [
        ("2", "1", 0.2),
        ("2", "2", 0.3),
    ]


def test_swept_options_stand_before_the_measures_and_numbers_are_rounded(sweep, tmp_path):
    for i, sigma in enumerate((0.1 + 0.2, 1.0)):
        written(
            sweep / f"more{i}",
            {D: 0.5},
            lrrnn__rank=5,
            connectivity__sigma=sigma,
            connectivity__regularizer=1e-3 * (i + 1),
        )
    runs = find_runs([sweep])
    assert compare(runs).n_swept == 0
    rows = [[1, "lrrnn.rank=5 connectivity.sigma=0.3"], [2, "lrrnn.rank=5 connectivity.sigma=1 seed=2"]]
    with (sweep / "jobs.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["job", "overrides"], *rows])
    comparison = compare(runs)
    assert (comparison.shown[0], comparison.n_swept) == ("connectivity.sigma", 1)
    main([str(sweep), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "comparison.html").read_text()
    heads = re.findall(r'data-key="([^"]*)" aria-sort', page)
    assert heads.index("option connectivity.sigma") < heads.index(D) < heads.index("option lrrnn.rank")
    assert "0.30000000000000004</td>" not in page
    assert '<span class="half">± ' in page
    assert "&lt;span" not in page


def test_order_follows_the_direction_of_the_measure(sweep):
    found = find_runs([sweep])
    higher = compare(found, "dynamics/attractors_kept")
    assert [setting.options["lrrnn.rank"] for setting in higher.settings] == [2, 3]
    assert about("lrrnn/own_r2").direction == "higher"
    assert about("timing/own_seconds").direction == "lower"
    assert about("connectivity/entropy").direction == ""


def test_the_main_measure_is_one_that_all_runs_have(sweep):
    assert compare(find_runs([sweep])).by == D
    written(sweep / "other", {FIELD: 0.01, "lrrnn/val_loss": 1.0}, lrrnn__rank=4)
    comparison = compare(find_runs([sweep]))
    assert comparison.by == FIELD
    assert [setting.options["lrrnn.rank"] for setting in comparison.settings] == [4, 3, 2]
    by_d = compare(find_runs([sweep]), D)
    assert by_d.settings[-1].options["lrrnn.rank"] == 4  # without the measure: last


def test_seeds_and_folds_are_repetitions_and_nothing_else_is(tmp_path):
    for seed in (1, 2):
        for fold in (1, 2, 3):
            for sigma in (0.5, 1.0):
                name = f"{seed}{fold}{sigma}"
                metrics = {D: seed + fold + 10 * sigma}
                written(tmp_path / name, metrics, seed=seed, data__fold=fold, connectivity__sigma=sigma)
    comparison = compare(find_runs([tmp_path]))
    assert [(s.options, len(s.runs)) for s in comparison.settings] == [
        ({"connectivity.sigma": 0.5}, 6), ({"connectivity.sigma": 1.0}, 6),
    ]  # fmt: skip
    assert comparison.settings[0].estimates[D].mean == pytest.approx(statistics.mean((2, 3, 4, 3, 4, 5)) + 5)
    assert comparison.repeated == ("seed", "data.fold")
    assert any("Folds share" in line for line in sentences(comparison))


def test_options_without_effect_tell_no_settings_apart(tmp_path):
    quiet = {"trainer__threads": 1, "trainer__extra": {"profiler": "simple"}}
    written(tmp_path / "a", {D: 0.1}, seed=1, logger__tags=["x"], stages="auto", **quiet)
    written(tmp_path / "b", {D: 0.3}, seed=2, logger__tags=[], stages=["outputs"])
    (setting,) = compare(find_runs([tmp_path])).settings
    assert setting.options == {}
    assert setting.estimates[D].n == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("precision", "16-mixed"), ("devices", 2), ("strategy", "ddp"), ("extra", {"limit_train_batches": 2})],
)
def test_what_changes_numbers_tells_settings_apart_wherever_it_stands(tmp_path, option, value):
    written(tmp_path / "a", {D: 0.1}, seed=1)
    written(tmp_path / "b", {D: 0.3}, seed=2, **{f"trainer__{option}": value})
    first, second = compare(find_runs([tmp_path])).settings
    name = f"trainer.{option}" + (".limit_train_batches" if option == "extra" else "")
    assert first.options.keys() == second.options.keys() == {name}


def test_a_number_is_one_setting_however_it_was_typed(tmp_path):
    written(tmp_path / "a", {D: 0.1}, seed=1, connectivity__sigma=1, lrrnn__rank=3)
    written(tmp_path / "b", {D: 0.3}, seed=2, connectivity__sigma=1.0, lrrnn__rank=3)
    (setting,) = compare(find_runs([tmp_path])).settings
    assert setting.estimates[D].n == 2


def test_a_rerun_of_the_same_seed_is_no_repetition(tmp_path):
    old = written(tmp_path / "old", {D: 0.9})
    new = written(tmp_path / "new", {D: 0.1})
    os.utime(old / "metrics.json", (1, 1))
    comparison = compare(find_runs([tmp_path, tmp_path / "new"]))
    assert comparison.settings[0].estimates[D] == (0.1, None, None, 1)
    assert [(a.path, b.path) for a, b in comparison.superseded] == [(old, new)]


def test_a_groups_name_stands_for_what_it_changes(tmp_path):
    written(tmp_path / "a", {D: 0.1})
    written(tmp_path / "b", {D: 0.2}, ("connectivity=published",))
    written(tmp_path / "c", {D: 0.3}, ("connectivity=published", "connectivity.sigma=0.5"))
    comparison = compare(find_runs([tmp_path]))
    assert set(comparison.shown) == {"connectivity.name", "connectivity.sigma"}
    assert {"connectivity.estimator", "connectivity.flow.hidden_width"} <= set(comparison.options)
    assert [comparison.name(setting) for setting in comparison.settings] == [
        "connectivity=default connectivity.sigma=1.0", "connectivity=published connectivity.sigma=1.0",
        "connectivity=published connectivity.sigma=0.5",
    ]  # fmt: skip


# --- what is not done -----------------------------------------------------------------------------------------------


def broken(root):
    """Runs that are not done -> a part of the reason that has to be given."""
    error = [
        "INFO lrrnn: done in 1.0 s", "ERROR the job ended early", "Traceback (most recent call last):",
        '  File "x.py", line 1, in f', "    raise ValueError", "ValueError: rank 7 > 5 neurons", "and a second line",
    ]  # fmt: skip
    stopped = "the job ended early (Ctrl-C); the same command resumes from what is finished (lrrnn)"
    states = {
        "failed": end_state(ValueError("rank 7 > 5 neurons\nand a second line")),
        "mistake": end_state(UserError("a file", "none", "Give one")),
        "interrupted": stopped,
        "killed": RUNNING,
    }
    for name, state in states.items():
        written(root / name, {D: 0.0}, log=error)  # the measures are of an earlier run
        RunStore(root / name).note_state(state)
    written(root / "failed earlier", {D: 0.0}, log=error)  # in version 0.1.0, which noted no state
    written(root / "stopped", None, log=[f"INFO {stopped}"])
    written(root / "running", None, log=["INFO lrrnn: done in 1.0 s"])
    written(root / "again", {D: 0.0, "timing/lrrnn_seconds": 3.0})
    (root / "again" / "stages.json").write_text("{}")  # its first stage is being trained anew
    written(root / "cut", {D: 0.0})
    (root / "cut" / "metrics.json").write_text('{"a": 1')
    (root / "early").mkdir()
    (root / "early" / "train.log").write_text("2026-11-24 10:00:00,000 INFO quadstable: 5 neurons\n")
    with (root / "jobs.csv").open("w", newline="") as handle:
        rows = [("job", "overrides", "directory", "state"), (1, "seed=1", root / "failed", "failed (1): ValueError")]
        csv.writer(handle).writerows(
            [*rows, (2, "seed=-1", root / "refused", "mistake (2): expected seed of 0 or more")]
        )
    return {
        "failed": "failed (1): ValueError: rank 7 > 5 neurons", "mistake": "mistake (2): expected a file; got none.",
        "interrupted": stopped, "killed": "still running, or killed", "failed earlier": "the job ended early",
        "stopped": stopped,
        "running": "no metrics.json: still running, or killed; train.log ends with: lrrnn: done in 1.0 s",
        "again": "earlier run", "cut": "cannot be read", "early": "no config.yaml",
        "refused": "mistake (2): expected seed of 0 or more",
    }  # fmt: skip


def test_runs_that_are_not_done_are_listed_with_the_reason_and_stay_out_of_the_numbers(sweep, tmp_path, capsys):
    reasons = broken(sweep)
    resumed = [
        "ERROR the job ended early",
        "Traceback (most recent call last):",
        "KeyboardInterrupt",
        "INFO outputs: done",
    ]
    written(sweep / "resumed", {D: 5.0}, log=resumed, lrrnn__rank=5)  # ended early once, then came to its end
    written(sweep / "whole", {D: 6.0}, log=["INFO the job ended early"], lrrnn__rank=6)  # the manifest knows better
    RunStore(sweep / "whole").note_state(DONE)
    comparison = compare(find_runs([sweep]))
    assert {run.path.name for run in comparison.not_done} == set(reasons)
    for run in comparison.not_done:
        assert reasons[run.path.name] in run.problem
        assert "\n" not in run.problem
    assert [setting.options["lrrnn.rank"] for setting in comparison.settings] == [3, 2, 5, 6]
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    states = {Path(row["directory"]).name: row for row in table_of(tmp_path / "out" / "comparison_runs.csv")}
    for name, reason in reasons.items():
        assert reason in said
        assert reason in states[name]["state"]
        assert states[name][D] == ""


def test_what_others_keep_beside_the_runs_is_no_run(sweep):
    n_runs = len(find_runs([sweep]))
    for place in ("wandb/offline-run-1/files", ".hidden", "rank=2,seed=1/checkpoints"):
        written(sweep / place, {D: 0.0})
    for name in ("circle", "other circle"):  # followed without end, two of them take for ever
        (sweep / name).symlink_to(sweep)
    assert len(find_runs([sweep, sweep / "rank=2,seed=1"])) == n_runs


def test_a_run_whose_stages_agree_with_its_measures_is_done(tmp_path):
    metrics = {"lrrnn/val_loss": 0.5, "timing/lrrnn_seconds": 2.0}
    path = written(tmp_path / "a", metrics)
    record = {"seconds": 2.0, "metrics": {"lrrnn/val_loss": 0.5, "lrrnn/other": float("nan")}}
    (path / "stages.json").write_text(json.dumps({"lrrnn": record, "loadings": {"seconds": 0.0, "metrics": {}}}))
    assert read_run(path).problem == ""
    record["metrics"]["lrrnn/val_loss"] = 0.25
    (path / "stages.json").write_text(json.dumps({"lrrnn": record}))
    assert "earlier run" in read_run(path).problem


def test_messages_where_there_is_nothing_to_compare(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    written(tmp_path / "only" / "running", None)
    written(tmp_path / "one", {D: 0.5})
    cases = {
        (str(tmp_path / "empty"),): ("expected run directories", "python train.py"),
        (str(tmp_path / "absent"),): ("absent, which is none",),
        (str(tmp_path / "only"),): ("expected runs that are done", "running: no metrics.json"),
        (str(tmp_path / "one"), "--by", "dissimilarity"): ("got dissimilarity", f"--by {D}"),
    }
    for arguments, words in cases.items():
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert len(said.splitlines()) <= 2
    assert not (tmp_path / "out").exists()


# --- the page -------------------------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """All elements with their attributes, and the text of the table."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


HOSTILE = '<img src=x onerror="document.title=1">&amp; "q" </script x>'


def page_written(directory, out):
    assert main([str(directory), "--out", str(out)]) == 0
    return (out / "comparison.html").read_text(encoding="utf-8")


def test_the_page_escapes_names_values_and_reasons(tmp_path):
    runs = tmp_path / 'runs <b>&"'
    written(runs / "a <i>&'", {D: 0.5}, data__name=HOSTILE, curves={"lrrnn": [(1, 1.0)]})
    written(runs / "b", {D: 0.7, HOSTILE: 1.0})
    written(runs / "c", None, log=[f"INFO {HOSTILE}"])
    page = Elements(page_written(runs, tmp_path / "out"))
    assert not page.named("img")
    assert not page.named("b")
    assert len(page.named("script")) == 2
    texts = "".join(page.text)
    assert HOSTILE in texts
    data = json.loads(page.text[page.text.index(next(t for t in page.text if t.startswith('{"by"')))])
    assert data["rows"][0]["options"]["data"] == HOSTILE
    links = [a["href"] for a in page.named("a")]
    assert len(links) == 2
    for link in links:
        assert (tmp_path / "out" / urllib.parse.unquote(link)).is_file()


def test_the_page_fetches_nothing(sweep, tmp_path):
    page = page_written(sweep, tmp_path / "out")
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert not Elements(page).named("link")
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", page)


def test_titles_and_units_are_those_of_the_report(sweep, tmp_path):
    page = "".join(Elements(page_written(sweep, tmp_path / "out")).text)
    for key in (D, FIELD, "dynamics/attractors_kept", "timing/lrrnn_seconds"):
        assert METRICS[key].label in page
        assert METRICS[key].unit in page


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [(0.00528, 0.00756, "0.0053 ± 0.0076"), (12.0, 3.14159, "12.0 ± 3.1"), (1234.5, 67.8, "1234 ± 68"), (0.5, 0.0, "0.5 ± 0"),
     (2.34e-10, 1.2e-11, "(2.34 ± 0.12) × 10^-10"), (-0.25, 0.1, "-0.25 ± 0.10"), (0.25, None, "0.25")],
)  # fmt: skip
def test_means_have_as_many_digits_as_their_interval_allows(mean, half, text):
    assert with_half(mean, half) == text


def test_curves_are_thinned_but_keep_their_ends():
    epochs, values = list(range(1, 1001)), [1 / n for n in range(1, 1001)]
    x, y = thinned(epochs, values)
    assert len(x) <= 120
    assert (x[0], x[-1], y[0], y[-1]) == (1, 1000, 1.0, 0.001)
    assert all(later > earlier for earlier, later in itertools.pairwise(x))
    assert thinned([1, 2], [float("nan"), 3.0]) == ([2], [3.0])


def test_curves_of_stages_that_the_run_did_not_train_are_left_out(tmp_path):
    curves = {"lrrnn": [(1, 2.0), (2, 1.0)], "loadings": [(1, 5.0)]}
    written(tmp_path / "a", {D: 0.1, "lrrnn/val_loss": 1.0}, curves=curves)
    (run,) = find_runs([tmp_path])
    assert run.curves == {"lrrnn": {"val_loss": ([1.0, 2.0], [2.0, 1.0])}}


@pytest.mark.slow
def test_two_hundred_runs_take_seconds(tmp_path):
    curve = [(epoch, 1 / epoch) for epoch in range(1, 301)]
    for number in range(200):
        written(
            tmp_path / "runs" / str(number), {D: 1 / (1 + number), FIELD: 0.1, "lrrnn/val_loss": 1.0},
            curves={"lrrnn": curve}, connectivity__sigma=float(number),
        )  # fmt: skip
    start = time.process_time()
    page = page_written(tmp_path / "runs", tmp_path / "out")
    assert time.process_time() - start < 30  # of a slow, busy machine; about a second or two otherwise
    assert len(page) < 8e6
    assert page.count('<tr data-row="') == 200


# --- in a browser ---------------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome to open the page in")


def dom(path, script="", fragment=""):
    """The page as a browser has it after its own script, and then ``script``, have run."""
    page = path.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    scripted = path.with_name("scripted.html")
    scripted.write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--window-size=1400,1000", "--dump-dom"]
    command += [f"file://{scripted}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def order(page):
    """Places of the rows that are shown, as they stand; and the sorted column with its direction."""
    elements = Elements(page)
    rows = [a["data-row"] for a in elements.named("tr") if "data-row" in a and "hidden" not in a]
    sorted_by = [(a["data-key"], a["aria-sort"]) for a in elements.named("th") if a.get("aria-sort", "none") != "none"]
    return list(map(int, rows)), sorted_by


CLICK = "document.querySelector('th[data-key=\"{}\"] button').click();"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page of four settings with curves: D says 0, 1, 2, 3, the field error 3, 1, 2 and none for the last."""
    directory = tmp_path_factory.mktemp("opened")
    for place, (rank, field) in enumerate([(2, 0.3), (5, 0.1), (3, 0.2), (4, None)]):
        metrics = {D: 0.1 + place, "lrrnn/val_loss": 1.0, "dynamics/drift_r2": place / 4}
        metrics |= {} if field is None else {FIELD: field}
        written(
            directory / "runs" / str(place), metrics, lrrnn__rank=rank, connectivity__sigma=1.0 + place // 2,
            curves={"lrrnn": [(1, 2.0), (2, 1.0 + place)]},
        )  # fmt: skip
    page_written(directory / "runs", directory)
    return directory / "comparison.html"


@in_browser
def test_clicking_a_column_sorts_by_it_with_missing_values_last(opened):
    assert order(opened.read_text()) == ([0, 1, 2, 3], [(D, "ascending")])
    assert order(dom(opened, CLICK.format(FIELD))) == ([1, 2, 0, 3], [(FIELD, "ascending")])
    assert order(dom(opened, 2 * CLICK.format(FIELD))) == ([0, 2, 1, 3], [(FIELD, "descending")])
    # Higher is better: best first is descending.
    assert order(dom(opened, CLICK.format("dynamics/drift_r2"))) == (
        [3, 2, 1, 0],
        [("dynamics/drift_r2", "descending")],
    )


@in_browser
def test_the_address_holds_order_and_filter(opened):
    page = dom(opened, fragment="#sort=lrrnn.rank&order=descending&filter=rank%3E=3")
    assert order(page) == ([1, 3, 2], [("option lrrnn.rank", "descending")])
    assert "3 of 4 shown" in page


@in_browser
def test_brushing_an_axis_chooses_settings_everywhere(opened):
    drag = """
    (() => {
      const axis = document.querySelector('[data-axis="connectivity.sigma"]');
      const box = axis.getBoundingClientRect();
      for (const [name, part] of [["pointerdown", 0.99], ["pointermove", TO], ["pointerup", TO]])
        axis.dispatchEvent(new PointerEvent(name, {clientY: box.top + part * box.height, bubbles: true}));
    })();
    """
    click = drag.replace("TO", "0.99")
    drag = drag.replace("TO", "0.6")
    page = dom(opened, drag)
    assert order(page)[0] == [0, 1]  # sigma 1, the lower end of the axis
    lines = [a for a in Elements(page).named("polyline") if "data-row" in a]
    on_axes = {a["data-row"]: a["class"] for a in lines[:4]}
    assert {row for row, name in on_axes.items() if "off" in name} == {"2", "3"}
    assert {a["data-row"] for a in lines[4:]} == {"0", "1"}  # learning curves of what is chosen
    assert order(dom(opened, drag + click))[0] == [0, 1, 2, 3]


@in_browser
def test_hostile_text_runs_nothing_in_the_browser(tmp_path):
    written(tmp_path / "a <i>&'", {D: 0.5}, data__name=HOSTILE, curves={"lrrnn": [(1, 1.0)]})
    written(tmp_path / "b", {D: 0.7})
    page_written(tmp_path, tmp_path / "out")
    elements = Elements(dom(tmp_path / "out" / "comparison.html"))
    assert not elements.named("img")
    assert HOSTILE in "".join(elements.text)
    assert len([a for a in elements.named("polyline") if "data-row" in a]) >= 2  # it was drawn all the same
