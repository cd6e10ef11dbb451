"""The pages of docs/ say what the software does: generated pages are current, commands and Python blocks run."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import yaml
from commands import ROOT, SMALL, train
from hydra import compose, initialize_config_dir
from sessions import session

import connector
from connector.report.glossary import METRICS
from connector.runs.naming import register_resolvers, run_directory
from connector.runs.options import checked

register_resolvers()

DOCS = ROOT / "docs"
# Made from the code; all others are written, and their blocks run.
GENERATED = {"metrics.md", "options.md"}
PAGES = ["README.md", *sorted(page.name for page in DOCS.glob("*.md") if page.name not in GENERATED)]


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- generated pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(GENERATED))
def test_generated_pages_are_what_the_code_says(page):
    assert (DOCS / page).read_text() == script("generate").PAGES[page](), "run python docs/generate.py"


def listed_keys():
    """Keys that docs/metrics.md lists, those with a suffix included."""
    keys = set()
    for line in (DOCS / "metrics.md").read_text().splitlines():
        if heading := re.match(r"#### `(\w+/\w+)`(?: \(also (.*)\))?", line):
            keys |= {heading[1], *(heading[1] + suffix for suffix in re.findall(r"`(\w+)`", heading[2] or ""))}
    return keys


def test_every_measure_is_listed_with_a_source_that_exists():
    generate = script("generate")
    assert listed_keys() == set(METRICS)
    for key in METRICS:
        generate.find(generate.source(key))


def test_a_run_on_rates_writes_no_other_key_than_those_listed(finished):
    assert set(json.loads((finished[0] / "metrics.json").read_text())) <= listed_keys()


@pytest.mark.slow
def test_a_run_on_spikes_writes_no_other_key_than_those_listed(tmp_path):
    session(tmp_path / "A.mat", seed=0)
    options = [
        "experiment=rat",
        "data.path=A.mat",
        *SMALL_RAT,
        *SMALL_SPIKES,
        "lrrnn.max_epochs=1",
        "trainer.threads=1",
    ]
    done = train(*options, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    written = set(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert {"lrrnn/bits_per_spike", "lrrnn/psth_r2_evidence", "lrrnn/choice_auc"} <= written <= listed_keys()


def test_the_version_is_the_same_everywhere():
    version = connector.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors", "license", "references"} <= set(citation)


def anchors(page):
    """Targets of links into a page: as GitHub makes them of its headings, where the site makes them alike."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    bare = [re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings]
    return {text.replace(" ", "-") for text in bare if not re.search(r"[- ]{2}", text)}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.ipynb"])
def test_links_lead_somewhere(page):
    for path in ROOT.glob(page):
        for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#?)([^)\s]*)\)", path.read_text()):
            if "://" in target:
                continue
            to = path.parent / target if target else path
            assert to.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(to), f"{path.name}: {target}#{anchor}"


# --- blocks ------------------------------------------------------------------------------------------------------------

# What makes a run small. An option that a command types itself stays as typed.
SMALL_FLOWS = [option for option in SMALL if not option.startswith("data.")]
SMALL_SPIKES = ["lrrnn.n_units=8"]
SMALL_RAT = ["stages=[lrrnn]"]  # five neurons: too few for a distribution
FILES = ("data=npz", "data=rnn", "data=arrays", "data=nwb", "data=nlb", "data=rat", "experiment=rat")
# A machine with what a command asks for is not always there; the nearest thing that every machine has.
INSTEAD = {
    "trainer=gpu": ["trainer=cpu"],
    "trainer.devices=4": ["trainer.accelerator=cpu", "trainer.devices=2"],
    "seed=range(1,17)": ["seed=range(1,3)"],
    "lrrnn.rank=1,2,3": ["lrrnn.rank=1,2"],
    "data.fold=1,2,3,4,5": ["data.n_folds=3", "data.fold=1,2,3"],
    "hydra.sweeper.n_trials=20": ["hydra.sweeper.n_trials=2"],
}
# Words in the first line of a block: `quick` belongs to the default tests, `slow` takes minutes, `needs=...` names
# packages, `account` or `cluster` what no test has: such a command is looked at, not run.
NOT_RUN = {"account", "cluster"}
COMMANDS = {"sample", "export", "compare", "look", "score"}  # of `connector`, beside runs


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"


def path_of(page):
    return ROOT / page if page == "README.md" else DOCS / page


def blocks_of(page):
    """The fenced blocks of the README or of a page of docs/, in order."""
    found, lines = [], path_of(page).read_text().splitlines()
    start = None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line == "```":
            language, *words = lines[start][3:].split() or [""]
            found.append(Block(page, start + 2, language, tuple(words), "\n".join(lines[start + 1 : number])))
            start = None
    assert start is None, f"{page}:{start + 1}: a block without end"
    return found


def commands_of(block):
    """The commands of a shell block as lists of words; a backslash joins lines."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def small_run(words):
    """The options of `python train.py ...` with those that make it small, in the directory of the command as typed."""
    typed = [replacement for word in words for replacement in INSTEAD.get(word, [word])]
    keys = {word.partition("=")[0] for word in typed}
    if keys & {"--help", "--cfg", "--config-name"}:
        return typed
    small = SMALL_FLOWS + SMALL_SPIKES if set(FILES) & set(typed) or "--config-dir" in typed else SMALL
    small = small + SMALL_RAT if {"data=rat", "experiment=rat"} & set(typed) else small
    if "-m" in typed:
        # Launchers and loggers are followed for how they run; one stage shows that. The ensemble is about the flows.
        other = [word for word in typed if word.startswith(("hydra/launcher=", "logger="))]
        all_stages = not other or "hydra/launcher=ensemble" in other
        small = [*small, "report=false", *([] if all_stages else ["stages=[lrrnn]"])]
    added = [option for option in small if option.partition("=")[0] not in keys]
    if "-m" not in typed and "hydra.run.dir" not in keys:
        options = [word for word in words if "=" in word]
        choices = {"data": "quadstable", "experiment": None} | dict(word.split("=", 1) for word in options)
        added.append(f"hydra.run.dir='runs/{run_directory(choices, options)}'")
    return typed + added


def argv(words, block):
    """What is executed for a command of a page."""
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", *words[1:]]
    if words[0] == "connector":
        words = ["python", "-m", *words] if words[1] in COMMANDS else ["python", "train.py", *words[1:]]
    assert words[0] == "python", f"{block.place}: {words[0]} is none of the commands that the tests know"
    script = next((word for word in words if word.endswith(".py")), "")
    if script == "train.py":
        at = words.index(script) + 1
        return [sys.executable, *words[1 : at - 1], str(ROOT / script), *small_run(words[at:])]
    return [sys.executable, *(str(ROOT / word) if word == script else word for word in words[1:])]


class Reader:
    """Someone who follows pages in one directory: types each command, runs each Python block in one session."""

    def __init__(self, directory, monkeypatch, finished):
        self.directory, self.names = directory, {}
        # The first run, as another test has made it: the same command finds all stages done.
        shutil.copytree(finished, directory / "runs" / "quadstable" / "default")
        session(directory / "T176_2018_05_03.mat", seed=0)  # stands for the public one
        monkeypatch.chdir(directory)
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            monkeypatch.setenv(name, str(directory / "wandb_home"))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def follow(self, block):
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), self.names)
            return
        for words in commands_of(block):
            done = subprocess.run(argv(words, block), capture_output=True, text=True, timeout=1500)
            assert done.returncode == 0, f"{block.place}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def reader(tmp_path, monkeypatch, finished):
    return Reader(tmp_path, monkeypatch, finished[0])


def missing(block):
    """A package that the block asks for and that is not here."""
    needs = [word.removeprefix("needs=") for word in block.words if word.startswith("needs=")]
    return next((name for need in needs for name in need.split(",") if importlib.util.find_spec(name) is None), None)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_known_kinds(page):
    known = {"quick", "slow", *NOT_RUN}
    for block in blocks_of(page):
        assert block.language in {"sh", "python", "text", "yaml"}, block.place
        assert all(word in known or word.startswith("needs=") for word in block.words), block.place


def test_what_no_test_can_run_names_options_and_files_that_exist():
    looked_at = [block for page in PAGES for block in blocks_of(page) if NOT_RUN & set(block.words)]
    assert looked_at
    for block in looked_at:
        for words in commands_of(block):
            assert words[0] in {"python", "torchrun", "wandb"} or words[1] in COMMANDS, block.place
            if "train.py" in words:
                # Launchers are plugins, which may be absent; another test composes them.
                options = [word for word in words[words.index("train.py") + 1 :] if word[0] not in "-h"]
                with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                    checked(compose("train", overrides=[*(o for o in options if "," not in o), "experiment_name=x"]))
            for word in words[1:]:
                if word.endswith((".py", ".yaml")):
                    assert (ROOT / word).exists(), f"{block.place}: {word}"


def quick(page):
    """`finished` has run the first command of the guide; a second time would cost what results cost."""
    return [block for block in blocks_of(page) if "quick" in block.words and block.text != "python train.py"]


def runnable(page):
    return [block for block in blocks_of(page) if block.language in ("sh", "python") and not NOT_RUN & set(block.words)]


@pytest.mark.parametrize("page", filter(quick, PAGES))
def test_quick_blocks_run(page, reader):
    for block in quick(page):
        reader.follow(block)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("page", filter(runnable, PAGES))
def test_all_blocks_run(page, reader):
    for block in runnable(page):
        if not missing(block):
            reader.follow(block)


# --- notebooks ---------------------------------------------------------------------------------------------------------


def executed(name, directory, monkeypatch):
    """The text that a notebook's cells print, run in ``directory`` by a kernel of its own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(DOCS / f"{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(book, timeout=3000, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_the_notebook_on_attractors_runs_on_a_small_run(tmp_path, monkeypatch, finished):
    shutil.copytree(finished[0], tmp_path / "runs" / "quadstable" / "default")
    said = executed("attractors", tmp_path, monkeypatch)
    assert len(re.findall(r"^(?:holds|DOES NOT HOLD HERE): ", said, re.MULTILINE)) >= 6  # small: some may not


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("name", ["attractors", "recording"])
def test_what_a_notebook_states_holds_at_the_size_it_states(name, tmp_path, monkeypatch):
    said = executed(name, tmp_path, monkeypatch)
    assert said.count("holds: ") >= 6
    assert "DOES NOT HOLD" not in said


@pytest.mark.parametrize("name", ["attractors", "recording"])
def test_notebooks_show_what_they_printed_when_all_they_state_held(name):
    cells = json.loads((DOCS / f"{name}.ipynb").read_text())["cells"]
    last = "".join(text for output in cells[-1]["outputs"] for text in output["text"])
    claims = len(re.findall(r'^    "', "".join(cells[-1]["source"]), re.MULTILINE))
    assert last.count("holds: ") == claims >= 6
