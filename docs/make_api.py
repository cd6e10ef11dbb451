"""Writes docs/api.md, docs/metrics.md and docs/options.md from docstrings, explanations and declarations in the code.

python docs/make_api.py           # after a change of a docstring or of a measure
python docs/make_api.py --check   # exit code 1 where a page is not what the code says
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import NamedTuple

from connector.declarations import declared
from connector.report.glossary import METRICS
from connector.runs.describe import options_page

DOCS = Path(__file__).resolve().parent

# What a user calls: heading -> (sentence, names). A class brings its public methods along.
PARTS = {
    "Runs and sampled networks": (
        "What a finished run gives back.",
        [
            "connector.runs.saved.load_run",
            "connector.runs.saved.Run",
            "connector.connectivity.distribution.ConnectivityDistribution",
            "connector.connectivity.diagnosis.Diagnosis",
            "connector.connectivity.nu.draws.Draws",
            "connector.dynamics.Network",
        ],
    ),
    "Data": (
        "Axes, units and checks of what passes between the parts; readers of files.",
        [
            "connector.types.Recording",
            "connector.types.Latents",
            "connector.types.Loadings",
            "connector.data.readers.read_recording",
            "connector.data.npz.load_npz",
            "connector.data.npz.NpzOptions",
            "connector.data.rnn.load_rnn",
            "connector.data.rnn.RnnOptions",
            "connector.data.input_filter.filtered_inputs",
            "connector.data.arrays.load_arrays",
            "connector.data.arrays.ArraysOptions",
            "connector.data.clicks.load_rat",
            "connector.data.clicks.RatOptions",
            "connector.data.nwb.load_nwb",
            "connector.data.nwb_options.NwbOptions",
            "connector.data.nlb.load_nlb",
            "connector.data.nlb.NlbOptions",
            "connector.data.modules.RecordingDataModule",
            "connector.data.modules.FileDataModule",
            "connector.data.modules.AttractorDataModule",
            "connector.data.modules.TensorDataModule",
        ],
    ),
    "Teachers": (
        "Networks whose connectivity is known, and recordings simulated from them.",
        [
            "connector.data.attractors.Teacher",
            "connector.data.attractors.register_teacher",
            "connector.data.attractors.teacher",
            "connector.data.attractors.LinearGaussian",
            "connector.data.simulation.simulate_recording",
            "connector.data.simulation.SimulationOptions",
        ],
    ),
    "Models": (
        "Plain `torch.nn.Module`s, to be used without the framework, too.",
        ["connector.lrrnn.module.LowRankRNN", "connector.connectivity.flow.Flow"],
    ),
    "Training": (
        "LightningModules of the stages; each works with a `pytorch_lightning.Trainer` of your own and the data modules above.",
        [
            "connector.stages.lrrnn.LowRankRNNModule",
            "connector.stages.lrrnn.Prediction",
            "connector.stages.flows.FlowModule",
        ],
    ),
    "Measures": (
        "Functions of networks, states and densities; no files.",
        [
            "connector.analysis.distances.dissimilarity",
            "connector.analysis.distances.valente_dissimilarity",
            "connector.analysis.fields.field_error",
            "connector.analysis.fields.drift_r2",
            "connector.analysis.attractors.find_attractors",
            "connector.analysis.attractors.reference_attractors",
            "connector.analysis.attractors.attractors_kept",
            "connector.analysis.attractor_probabilities.count_attractors",
            "connector.analysis.fixed_points.count_fixed_points",
            "connector.analysis.cell_types.cell_type_test",
            "connector.analysis.separated_groups.separated_groups",
        ],
    ),
    "Mistakes": ("What is raised where something can be mended.", ["connector.errors.UserError"]),
}

# Where a measure is computed: the longest beginning of its key that stands here.
SOURCES = {
    "connectivity/": "connector.analysis.distances.dissimilarity",
    "connectivity/squared_error_of_n": "connector.analysis.distances.distance_of_n",
    "connectivity/r2_of_n": "connector.analysis.distances.distance_of_n",
    "connectivity/valente_dissimilarity": "connector.analysis.distances.valente_dissimilarity",
    "connectivity/determined_modes": "connector.connectivity.diagnosis.diagnose",
    "connectivity/output_shift": "connector.connectivity.drive_matching.fit_output_shift",
    "connectivity/predicted_error": "connector.connectivity.diagnosis.diagnose",
    "connectivity/entropy": "connector.connectivity.distribution.ConnectivityDistribution.entropy",
    "connectivity/groups": "connector.analysis.separated_groups.separated_groups",
    "connectivity/cell_types_p": "connector.analysis.cell_types.cell_type_test",
    "dynamics/": "connector.analysis.fields.field_error",
    "dynamics/attractors_kept": "connector.analysis.attractors.attractors_kept",
    "dynamics/stable_points": "connector.analysis.attractor_probabilities.count_attractors",
    "dynamics/several_stable_points": "connector.analysis.attractor_probabilities.count_attractors",
    "dynamics/drift_r2": "connector.analysis.fields.drift_r2",
    "lrrnn/": "connector.analysis.spike_scores",
    "lrrnn/val_loss": "connector.stages.lrrnn",
    "lrrnn/loadings_r2": "connector.stages.lrrnn.in_true_gauge",
    "lrrnn/latents_r2": "connector.stages.lrrnn.in_true_gauge",
    "lrrnn/origin_distance": "connector.stages.lrrnn.origin_distance",
    "lrrnn/posterior_": "connector.lrrnn.spikes.posterior.judge",
    "lrrnn/process_noise": "connector.lrrnn.spikes.posterior.sample_posterior",
    "lrrnn/rates_r2": "connector.analysis.explained.rates_explained",
    "lrrnn/bits_per_spike_null": "connector.analysis.spike_nulls",
    "loadings/": "connector.stages.loadings",
    "loadings/log_likelihood": "connector.connectivity.flow_selection",
    "loadings/gain_over_normal": "connector.connectivity.flow_selection",
    "loadings/gain_over_kernels": "connector.connectivity.flow_selection",
    "loadings/tail_advantage": "connector.connectivity.flow_selection",
    "outputs/": "connector.stages.outputs",
    "timing/": "connector.launch.job.all_metrics",
}
GROUPS = {
    "connectivity": "Distance to a known truth, and what the data determine",
    "dynamics": "What sampled networks do",
    "lrrnn": "Fit to the activity",
    "loadings": "Flow of the loadings",
    "outputs": "Flow of the output weights",
    "timing": "Time",
}
_SUFFIX = re.compile(r"_(standard|local)$")


def find(name: str):
    """The object of a dotted name."""
    module, attribute = name, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            attribute.insert(0, last)
    for part in attribute:
        found = getattr(found, part)
    return found


def source(key: str) -> str:
    """Where the measure of that key is computed, as a dotted name."""
    return SOURCES[max((prefix for prefix in SOURCES if key.startswith(prefix)), key=len)]


# --- docstrings as Markdown -------------------------------------------------------------------------------------------

_HEADS = ("Args", "Returns", "Raises", "Attributes", "Yields")


def markdown(doc: str) -> str:
    """A docstring of this package as Markdown: sections in bold, arguments as a list, code as it stands."""
    lines, out, item = inspect.cleandoc(doc).splitlines(), [], False
    for line in lines:
        line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line).replace("``", "`")
        head = re.fullmatch(rf"({'|'.join(_HEADS)})( \(.*\))?:", line)
        if head:
            out += ["", f"**{head[1]}**{head[2] or ''}", ""]
            item = True
            continue
        if item and line and not line.startswith(" "):
            item = False
        if item and line.strip():
            entry = re.match(r"    (\*{0,2}[\w, ]+)( \([^)]*\))?: (.*)", line)
            if entry and not line.startswith("     "):
                out.append(f"- `{entry[1]}`{entry[2] or ''}: {entry[3]}")
            elif line.startswith("     "):
                out.append(f"  {line.strip()}")
            else:
                out.append(f"- {line.strip()}" if not out[-1] else f"  {line.strip()}")
            continue
        out.append(line)
    return "\n".join(out).strip()


def signature(name: str, thing) -> str:
    """How it is called; annotations are in the text."""
    shown = inspect.signature(thing)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in shown.parameters.values() if p.name != "self"]
    return f"{name}{shown.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


class Member(NamedTuple):
    """A public method or property: what it says, and how it is called (a property is not)."""

    name: str
    doc: str
    call: str | None


def members(cls) -> list[Member]:
    """What the class itself defines and documents, in order."""
    found = []
    for name, value in vars(cls).items():
        if name.startswith("_") or inspect.isclass(value):
            continue
        # Of a property fget, of a cached one func, of a class method __func__ is what is documented.
        getter = getattr(value, "fget", None) or getattr(value, "func", None)
        function = getter or getattr(value, "__func__", value)
        if callable(function) and function.__doc__:
            bound = getattr(cls, name) if isinstance(value, classmethod) else function
            found.append(Member(name, function.__doc__, None if getter else signature(name, bound)))
    return found


def entry(name: str) -> str:
    """The section of one object."""
    thing, short = find(name), name.rpartition(".")[2]
    said = [f"### {short}", f"`{name}`", "", f"```text\n{signature(short, thing)}\n```", "", markdown(thing.__doc__)]
    if is_dataclass(thing):
        said += ["", *(f"- `{option}`: {about.meaning}{_limits(about)}" for option, about, _ in declared(thing))]
    for member in members(thing) if inspect.isclass(thing) else []:
        said += ["", f"#### {short}.{member.name}", ""]
        said += [] if member.call is None else [f"```text\n{member.call}\n```", ""]
        said.append(markdown(member.doc))
    return "\n".join(said)


def _limits(about) -> str:
    """Unit and range of an option, in brackets."""
    told = ", ".join(x for x in (about.unit, about.range) if x)
    return f" ({told})" if told else ""


def api() -> str:
    said = [
        "# Python reference",
        "",
        "Made from the docstrings by `python docs/make_api.py`; change it there. `from connector import ...` has "
        "`ConnectivityDistribution`, `Flow`, `Latents`, `Loadings`, `LowRankRNN`, `Network`, `Recording`, `UserError` "
        "and `load_run`; all else is imported from the module named. Shapes are of torch tensors. Symbols: K neurons, "
        "R latent dimensions (rank), U inputs, T states.",
    ]
    for heading, (sentence, names) in PARTS.items():
        said += ["", f"## {heading}", "", sentence]
        for name in names:
            said += ["", entry(name)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(said)) + "\n"


# --- measures ---------------------------------------------------------------------------------------------------------


def metrics() -> str:
    said = [
        "# The numbers in metrics.json",
        "",
        "Made from `connector/report/glossary.toml` by `python docs/make_api.py`; the report of a run explains the same numbers "
        "where they stand. `metrics.json` is flat: `stage/name` and a number. A measure that is not defined for a run "
        "is left out, never NaN: distances to the truth need a simulated network, scores of spikes need spikes, times "
        "are of stages that ran.",
        "",
        "On spikes the model is scored with both baselines: the name alone is the one that `lrrnn.baseline` chose "
        "(`local` by default), the other one has the suffix `_standard` or `_local`.",
    ]
    for group, title in GROUPS.items():
        said += ["", f"## {title}", "", "| key | meaning | unit | better | computed in |", "|---|---|---|---|---|"]
        for key, metric in METRICS.items():
            if not key.startswith(f"{group}/") or _SUFFIX.sub("", key) != key:
                continue
            twins = [f"`{k.removeprefix(key)}`" for k in METRICS if k != key and _SUFFIX.sub("", k) == key]
            suffixes = f" (also {', '.join(twins)})" if twins else ""
            meaning = f"**{metric.label}.** {metric.explanation}".replace("|", "\\|")
            cells = (f"`{key}`{suffixes}", meaning, metric.unit, metric.direction, f"`{source(key)}`")
            said.append(f"| {' | '.join(cells)} |")
    return "\n".join(said) + "\n"


PAGES = {"api.md": api, "metrics.md": metrics, "options.md": options_page}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    check, stale = parser.parse_args(arguments).check, []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
